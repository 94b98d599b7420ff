//! Arrow IPC bytes into a [`Manifest`], believing none of them.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BinaryArray, ListArray, StringArray};
use arrow::buffer::Buffer;
use arrow::datatypes::UInt64Type;
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::{FileDecoder, read_footer_length};
use arrow::ipc::{Block, root_as_footer, root_as_message};
use millstream_types::limits::SHARDS_MAX;
use millstream_types::{DatasetRef, Digest};

use super::*;
use crate::limits::{MANIFEST_BYTES_MAX, MANIFEST_TEXT_BYTES_MAX};

/// Why bytes are no manifest.
#[derive(Debug, Error)]
pub enum ManifestDecodeError {
    /// Over [`MANIFEST_BYTES_MAX`].
    #[error("{len} bytes, and manifests have at most {MANIFEST_BYTES_MAX}")]
    TooLong {
        /// Bytes given.
        len: usize,
    },
    /// Not an Arrow IPC file, or a damaged one.
    #[error("not an arrow file: {0}")]
    NotArrow(String),
    /// An Arrow file with other columns.
    #[error("an arrow file, but not of a manifest: {0}")]
    Columns(String),
    /// Metadata that is missing or means nothing.
    #[error("the metadata {field} {reason}")]
    Metadata {
        /// Its name.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A row that means nothing.
    #[error("row {row}: {reason}")]
    Row {
        /// Its number.
        row: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Rows that are no manifest together.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The content is not what the digest in the file says.
    #[error("the content has the digest {actual}, but the file says {stated}")]
    Digest {
        /// In the metadata.
        stated: Digest,
        /// Computed.
        actual: Digest,
    },
}

/// Reads a manifest from an Arrow IPC file.
///
/// # Errors
/// [`ManifestDecodeError`] for anything that [`super::encode`] would not have written.
pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestDecodeError> {
    if bytes.len() > MANIFEST_BYTES_MAX {
        return Err(ManifestDecodeError::TooLong { len: bytes.len() });
    }
    // Blocks and columns are checked before Arrow sees them, and Arrow checks every buffer; its readers still contain
    // assertions. A damaged file must cost an error, not the process.
    let caught = catch_unwind(AssertUnwindSafe(|| read_batches(bytes)));
    let (metadata, batches) =
        caught.unwrap_or_else(|_| Err(ManifestDecodeError::NotArrow("the arrow reader gave up on it".to_owned())))?;
    let head = read_head(&metadata)?;
    let combiner = PieceCombiner::new(head.piece_len);
    let mut shards = Vec::new();
    for batch in &batches {
        read_rows(batch, &combiner, &mut shards)?;
    }
    drop(batches);
    let stated = head.digest;
    let manifest = Manifest::new(head.name, head.kind, head.origin_url, head.piece_len, shards)?;
    let actual = manifest.digest();
    if actual != stated {
        return Err(ManifestDecodeError::Digest { stated, actual });
    }
    Ok(manifest)
}

type Metadata = HashMap<String, String>;

fn not_arrow(e: impl ToString) -> ManifestDecodeError {
    ManifestDecodeError::NotArrow(e.to_string())
}

fn read_batches(bytes: &[u8]) -> Result<(Metadata, Vec<RecordBatch>), ManifestDecodeError> {
    const TRAILER: usize = 10;
    let Some((before, trailer)) = bytes.split_last_chunk::<TRAILER>() else {
        return Err(not_arrow(format!("{} bytes only", bytes.len())));
    };
    let footer_len = read_footer_length(*trailer).map_err(not_arrow)?;
    let Some(body_len) = before.len().checked_sub(footer_len) else {
        return Err(not_arrow("the footer is longer than the file"));
    };
    let (body, footer) = before.split_at(body_len);
    // Flatbuffers want their alignment; a copy into a buffer of Arrow's has it.
    let footer = Buffer::from(footer);
    let footer = root_as_footer(&footer).map_err(not_arrow)?;
    let schema = footer.schema().ok_or_else(|| not_arrow("no schema"))?;
    if !schema.endianness().equals_to_target_endianness() {
        return Err(not_arrow("of the other endianness"));
    }
    let schema = try_fb_to_schema(schema).map_err(not_arrow)?;
    check_columns(&schema)?;
    let metadata = schema.metadata().clone();
    if footer.dictionaries().is_some_and(|d| !d.is_empty()) {
        return Err(ManifestDecodeError::Columns("it has dictionaries".into()));
    }
    let decoder = FileDecoder::new(Arc::new(schema), footer.version());
    let mut batches = Vec::new();
    let mut at = 0;
    for block in footer.recordBatches().into_iter().flatten() {
        // Blocks come one after the other, so that a small file cannot name one block a million times.
        let (start, end) = block_bounds(block, body_len).ok_or_else(|| not_arrow("a bad block"))?;
        if start < at {
            return Err(not_arrow("blocks that overlap"));
        }
        at = end;
        let data = Buffer::from(&body[start..end]);
        check_message(&data, block).map_err(not_arrow)?;
        let batch = decoder.read_record_batch(block, &data).map_err(not_arrow)?;
        batches.push(batch.ok_or_else(|| not_arrow("a block without a batch"))?);
    }
    Ok((metadata.into(), batches))
}

fn block_bounds(block: &Block, body_len: usize) -> Option<(usize, usize)> {
    let start = usize::try_from(block.offset()).ok()?;
    let meta = usize::try_from(block.metaDataLength()).ok()?;
    let data = usize::try_from(block.bodyLength()).ok()?;
    let end = start.checked_add(meta)?.checked_add(data)?;
    (end <= body_len && meta >= 8).then_some((start, end))
}

/// Sizes of what is in the buffers of a batch, which the order of [`fields`] gives: validity, then offsets and bytes or
/// values.
const ELEMENT_BYTES: [i64; 23] = [
    1, 4, 1, // key
    1, 8, // length
    1, 4, 1, // etag
    1, 4, 1, // version_id
    1, 4, 1, // checksum_algorithm
    1, 4, 1, // checksum
    1, 4, 1, 8, // piece_crcs and their values
    1, 8, // crc64nvme
];

/// What Arrow's reader asserts about a message instead of checking it.
fn check_message(data: &[u8], block: &Block) -> Result<(), String> {
    let meta_len = block.metaDataLength() as usize;
    let (meta, body) = data.split_at_checked(meta_len).ok_or("a short block")?;
    // A marker and the length come first; files of old have the length only.
    let skip = if meta.starts_with(&[0xff; 4]) { 8 } else { 4 };
    let message = meta.get(skip..).ok_or("a short message")?;
    let message = root_as_message(message).map_err(|e| e.to_string())?;
    let batch = message.header_as_record_batch().ok_or("no record batch")?;
    if batch.compression().is_some() {
        return Err("compressed".to_owned());
    }
    let count = |n: i64, max: usize| usize::try_from(n).is_ok_and(|n| n <= max);
    // No column has less than a bit per row, nor a list less than a byte per value.
    let values_max = body.len().saturating_mul(8);
    if !count(batch.length(), SHARDS_MAX) {
        return Err("too many rows".to_owned());
    }
    for node in batch.nodes().into_iter().flatten() {
        if !count(node.length(), values_max) || !count(node.null_count(), values_max) {
            return Err("a column longer than its bytes".to_owned());
        }
    }
    let buffers = batch.buffers().ok_or("no buffers")?;
    if buffers.len() != ELEMENT_BYTES.len() {
        return Err(format!("{} buffers", buffers.len()));
    }
    for (buffer, element) in buffers.iter().zip(ELEMENT_BYTES) {
        let end = buffer.offset().checked_add(buffer.length());
        let inside = end.is_some_and(|end| count(end, body.len()));
        if !inside || buffer.offset() < 0 || buffer.length() < 0 {
            return Err("a buffer outside its block".to_owned());
        }
        if buffer.length() % element != 0 || buffer.offset() % 8 != 0 {
            return Err("a buffer that ends within a value".to_owned());
        }
    }
    Ok(())
}

fn check_columns(schema: &Schema) -> Result<(), ManifestDecodeError> {
    let expected = fields();
    let wrong = |text: String| Err(ManifestDecodeError::Columns(text));
    if schema.fields().len() != expected.len() {
        return wrong(format!("{} columns instead of {}", schema.fields().len(), expected.len()));
    }
    for (have, want) in schema.fields().iter().zip(&expected) {
        // Nullability may be lost when another tool rewrites the file; rows are checked anyway.
        let same_type = match (have.data_type(), want.data_type()) {
            (DataType::List(have), DataType::List(want)) => have.data_type() == want.data_type(),
            (have, want) => have == want,
        };
        if have.name() != want.name() || !same_type {
            return wrong(format!(
                "the column {} of {} instead of {} of {}",
                have.name(),
                have.data_type(),
                want.name(),
                want.data_type()
            ));
        }
    }
    Ok(())
}

/// One row's columns, by the order of [`fields`] (which [`check_columns`] made sure of).
struct Rows<'a> {
    combiner: &'a PieceCombiner,
    key: &'a StringArray,
    length: &'a UInt64Array,
    etag: &'a StringArray,
    version_id: &'a StringArray,
    checksum_algorithm: &'a StringArray,
    checksum: &'a BinaryArray,
    piece_crcs: &'a ListArray,
    crc64nvme: &'a UInt64Array,
}

fn read_rows(
    batch: &RecordBatch,
    combiner: &PieceCombiner,
    shards: &mut Vec<ShardEntry>,
) -> Result<(), ManifestDecodeError> {
    let rows = Rows {
        combiner,
        key: batch.column(0).as_string(),
        length: batch.column(1).as_primitive(),
        etag: batch.column(2).as_string(),
        version_id: batch.column(3).as_string(),
        checksum_algorithm: batch.column(4).as_string(),
        checksum: batch.column(5).as_binary(),
        piece_crcs: batch.column(6).as_list(),
        crc64nvme: batch.column(7).as_primitive(),
    };
    for row in 0..batch.num_rows() {
        let entry = rows.entry(row);
        shards.push(entry.map_err(|reason| ManifestDecodeError::Row { row: shards.len(), reason })?);
    }
    Ok(())
}

impl Rows<'_> {
    fn entry(&self, row: usize) -> Result<ShardEntry, String> {
        let text = |column: &StringArray| column.is_valid(row).then(|| column.value(row).to_owned());
        if self.key.is_null(row) || self.length.is_null(row) {
            return Err("without a key or a length".to_owned());
        }
        let key = self.key.value(row).parse();
        let key = key.map_err(|e: millstream_types::KeyError| e.to_string())?;
        let checksum = match (text(self.checksum_algorithm), self.checksum.is_valid(row)) {
            (None, false) => None,
            (Some(algorithm), true) => Some(
                OriginChecksum::from_parts(&algorithm, self.checksum.value(row))
                    .ok_or_else(|| format!("no checksum of the kind {algorithm:?}"))?,
            ),
            _ => return Err("a checksum without its algorithm, or the reverse".to_owned()),
        };
        let piece_crcs = match self.piece_crcs.is_valid(row) {
            true => {
                let list = self.piece_crcs.value(row);
                let list = list.as_primitive::<UInt64Type>();
                if list.null_count() != 0 {
                    return Err("a piece without a checksum".to_owned());
                }
                Some(list.values().iter().copied().map(Crc64).collect())
            }
            false => None,
        };
        let entry = ShardEntry {
            key,
            len: self.length.value(row),
            etag: text(self.etag),
            version_id: text(self.version_id),
            checksum,
            piece_crcs,
        };
        self.check_whole(row, entry)
    }

    /// The column `crc64nvme` says twice what is known already: that is what it is for. The digest does not cover
    /// piece checksums, so this is where a flipped bit in one of them shows.
    fn check_whole(&self, row: usize, entry: ShardEntry) -> Result<ShardEntry, String> {
        let stated = optional(self.crc64nvme, row).map(Crc64);
        let known = match (&entry.piece_crcs, &entry.checksum) {
            (Some(crcs), _) => Some(self.combiner.shard(crcs.iter().copied(), entry.len)),
            (None, Some(OriginChecksum::Crc64Nvme(crc))) => Some(*crc),
            _ => None,
        };
        if stated != known {
            let text = |crc: Option<Crc64>| crc.map_or("none".to_owned(), |crc| crc.to_string());
            let (stated, known) = (text(stated), text(known));
            return Err(format!("its crc64nvme is {stated}, but the rest of it says {known}"));
        }
        Ok(entry)
    }
}

/// What belongs to the whole version.
struct Head {
    name: DatasetRef,
    kind: DatasetKind,
    origin_url: String,
    piece_len: u64,
    digest: Digest,
}

fn read_head(metadata: &Metadata) -> Result<Head, ManifestDecodeError> {
    let bad = |field, reason: String| ManifestDecodeError::Metadata { field, reason };
    let text = |field| {
        let value = metadata.get(field).map(String::as_str);
        let value = value.ok_or_else(|| bad(field, "is missing".to_owned()))?;
        if value.len() > MANIFEST_TEXT_BYTES_MAX {
            return Err(bad(field, format!("has {} bytes", value.len())));
        }
        Ok(value)
    };
    let number = |field| {
        let value = text(field)?;
        let parsed = value.parse::<u64>();
        parsed.map_err(|_| bad(field, format!("is no number: {value:?}")))
    };
    let format = text(meta::FORMAT)?;
    if format != FORMAT {
        let reason = format!("is {format:?}, and this program reads {FORMAT:?}");
        return Err(bad(meta::FORMAT, reason));
    }
    let name = text(meta::NAME)?.parse();
    let version = text(meta::VERSION)?.parse();
    let name = DatasetRef {
        name: name.map_err(|e| bad(meta::NAME, format!("is refused: {e}")))?,
        version: version.map_err(|e| bad(meta::VERSION, format!("is refused: {e}")))?,
    };
    let kind = match text(meta::KIND)? {
        "dataset" => DatasetKind::Dataset,
        "checkpoint" => DatasetKind::Checkpoint { run: text(meta::RUN)?.to_owned(), step: number(meta::STEP)? },
        other => return Err(bad(meta::KIND, format!("is unknown: {other:?}"))),
    };
    let digest = text(meta::DIGEST)?.parse();
    Ok(Head {
        name,
        kind,
        origin_url: text(meta::ORIGIN_URL)?.to_owned(),
        piece_len: number(meta::PIECE_LENGTH)?,
        digest: digest.map_err(|e| bad(meta::DIGEST, format!("is no digest: {e}")))?,
    })
}
