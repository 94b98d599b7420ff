//! Tables through the Arrow C stream interface: the shards of a version, and Arrow IPC files mapped without a copy.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchIterator, RecordBatchReader, StringArray, UInt64Array};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ffi_stream::FFI_ArrowArrayStream;
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::{FileDecoder, StreamDecoder, read_footer_length};
use arrow::ipc::{Block, root_as_footer};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

/// First and last bytes of an Arrow IPC file; a stream begins with something else.
const FILE_MAGIC: &[u8] = b"ARROW1";
/// The footer's length and the magic at the end of a file.
const TRAILER_BYTES: usize = 10;

fn capsule<'py>(py: Python<'py>, reader: Box<dyn RecordBatchReader + Send>) -> PyResult<Bound<'py, PyCapsule>> {
    PyCapsule::new_with_value(py, FFI_ArrowArrayStream::new(reader), c"arrow_array_stream")
}

/// The shards of a version as a stream: key, bytes, etag, checksum, path.
#[pyfunction]
pub(crate) fn manifest_stream<'py>(
    py: Python<'py>,
    keys: Vec<String>,
    bytes: Vec<u64>,
    etags: Vec<Option<String>>,
    checksums: Vec<Option<String>>,
    metadata: std::collections::HashMap<String, String>,
) -> PyResult<Bound<'py, PyCapsule>> {
    let fields = vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("bytes", DataType::UInt64, false),
        Field::new("etag", DataType::Utf8, true),
        Field::new("checksum", DataType::Utf8, true),
    ];
    let schema: SchemaRef = Arc::new(Schema::new(fields).with_metadata(metadata));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(keys)),
        Arc::new(UInt64Array::from(bytes)),
        Arc::new(StringArray::from(etags)),
        Arc::new(StringArray::from(checksums)),
    ];
    let batch = RecordBatch::try_new(schema.clone(), columns).map_err(|e| PyValueError::new_err(e.to_string()))?;
    capsule(py, Box::new(RecordBatchIterator::new([Ok(batch)], schema)))
}

/// The batches of an Arrow IPC file or stream on disk, mapped: columns point into the page cache.
#[pyfunction]
pub(crate) fn ipc_stream<'py>(py: Python<'py>, path: PathBuf) -> PyResult<Bound<'py, PyCapsule>> {
    let file = File::open(&path).map_err(|e| match e.raw_os_error() {
        Some(number) => PyOSError::new_err((number, e.to_string(), path.display().to_string())),
        None => PyOSError::new_err(e.to_string()),
    })?;
    let wrong = |e: ArrowError| PyValueError::new_err(format!("{}: {e}", path.display()));
    let buffer = map(&file).map_err(|e| PyOSError::new_err(format!("{}: {e}", path.display())))?;
    let reader: Box<dyn RecordBatchReader + Send> = if buffer.starts_with(FILE_MAGIC) {
        Box::new(MappedFile::new(buffer).map_err(wrong)?)
    } else {
        Box::new(MappedStream::new(buffer).map_err(wrong)?)
    };
    capsule(py, reader)
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Buffer> {
    // SAFETY: verified files do not change while they exist; an eviction removes the name and leaves the mapping.
    let mapped = unsafe { memmap2::Mmap::map(file)? };
    Ok(Buffer::from(bytes::Bytes::from_owner(mapped)))
}

/// Batches of an IPC file.
struct MappedFile {
    buffer: Buffer,
    decoder: FileDecoder,
    blocks: std::vec::IntoIter<Block>,
    schema: SchemaRef,
}

fn slice(buffer: &Buffer, offset: usize, len: usize) -> Result<Buffer, ArrowError> {
    match offset.checked_add(len) {
        Some(end) if end <= buffer.len() => Ok(buffer.slice_with_length(offset, len)),
        _ => Err(ArrowError::ParseError(format!("{len} bytes at {offset} lie outside of the file"))),
    }
}

fn block_bytes(buffer: &Buffer, block: &Block) -> Result<Buffer, ArrowError> {
    let bad = |_| ArrowError::ParseError("a block of negative length".into());
    let offset = usize::try_from(block.offset()).map_err(bad)?;
    let body = usize::try_from(block.bodyLength()).map_err(bad)?;
    let head = usize::try_from(block.metaDataLength()).map_err(bad)?;
    slice(buffer, offset, body.saturating_add(head))
}

impl MappedFile {
    fn new(buffer: Buffer) -> Result<MappedFile, ArrowError> {
        let short = || ArrowError::ParseError("too short for an Arrow file".into());
        let trailer_start = buffer.len().checked_sub(TRAILER_BYTES).ok_or_else(short)?;
        let trailer: [u8; TRAILER_BYTES] = buffer[trailer_start..].try_into().map_err(|_| short())?;
        let footer_len = read_footer_length(trailer)?;
        let footer = slice(&buffer, trailer_start.checked_sub(footer_len).ok_or_else(short)?, footer_len)?;
        let footer =
            root_as_footer(&footer).map_err(|e| ArrowError::ParseError(format!("the footer cannot be read: {e}")))?;
        let none = || ArrowError::ParseError("the footer has no schema".into());
        let schema = Arc::new(try_fb_to_schema(footer.schema().ok_or_else(none)?)?);
        let mut decoder = FileDecoder::new(schema.clone(), footer.version());
        for block in footer.dictionaries().iter().flatten() {
            decoder.read_dictionary(block, &block_bytes(&buffer, block)?)?;
        }
        let blocks: Vec<Block> = footer.recordBatches().iter().flatten().copied().collect();
        Ok(MappedFile { buffer, decoder, blocks: blocks.into_iter(), schema })
    }
}

impl Iterator for MappedFile {
    type Item = Result<RecordBatch, ArrowError>;
    fn next(&mut self) -> Option<Self::Item> {
        let block = self.blocks.next()?;
        let bytes = block_bytes(&self.buffer, &block);
        bytes.and_then(|bytes| self.decoder.read_record_batch(&block, &bytes)).transpose()
    }
}

impl RecordBatchReader for MappedFile {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

/// Batches of an IPC stream.
struct MappedStream {
    rest: Buffer,
    decoder: StreamDecoder,
    first: Option<RecordBatch>,
    schema: SchemaRef,
}

impl MappedStream {
    fn new(mut rest: Buffer) -> Result<MappedStream, ArrowError> {
        let mut decoder = StreamDecoder::new();
        let first = decoder.decode(&mut rest)?;
        let none = || ArrowError::ParseError("neither an Arrow file nor an Arrow stream".into());
        let schema = decoder.schema().ok_or_else(none)?;
        Ok(MappedStream { rest, decoder, first, schema })
    }
}

impl Iterator for MappedStream {
    type Item = Result<RecordBatch, ArrowError>;
    fn next(&mut self) -> Option<Self::Item> {
        self.first.take().map(Ok).or_else(|| self.decoder.decode(&mut self.rest).transpose())
    }
}

impl RecordBatchReader for MappedStream {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}
