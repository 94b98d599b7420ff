//! Manifests as Arrow IPC files: in the bucket, in the catalog and on their way to agents, one encoding.
//!
//! Purpose: one file that DuckDB, pandas and the agents read alike. One row per shard; what belongs to the whole
//! version is in the schema's metadata under `millstream.*`.
//! Goals: [`decode`] trusts nothing: every row goes through [`Manifest::new`], the digest is computed anew and compared
//! with the one in the file, piece checksums are compared with the shard's. Any bytes give a result, never a panic.
//! Non-goals: partial reads; older formats (the format number is there for when there will be one).

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryBuilder, ListBuilder, StringBuilder, UInt64Array, UInt64Builder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::FileWriter;
use arrow::record_batch::RecordBatch;
use millstream_types::manifest::ManifestError;
use millstream_types::{Crc64, DatasetKind, Manifest, OriginChecksum, PieceCombiner, ShardEntry, ShardNo};
use thiserror::Error;

use crate::limits::MANIFEST_BATCH_ROWS;

mod decode;

pub use decode::{ManifestDecodeError, decode};

/// The format's number, in the metadata.
const FORMAT: &str = "1";
/// The object that `dataset index` writes beside the data.
pub const INDEX_KEY: &str = "millstream-manifest.arrow";

/// Why a manifest could not be written.
#[derive(Debug, Error)]
pub enum ManifestEncodeError {
    /// Piece checksums that are not the shard's.
    #[error("shard {key:?} has {given} piece checksums, but {pieces} pieces")]
    PieceCount {
        /// The shard.
        key: String,
        /// Checksums given.
        given: usize,
        /// Pieces of the shard.
        pieces: usize,
    },
    /// Arrow refused (a column over its 2 GiB).
    #[error("cannot write the manifest as arrow")]
    Arrow(#[from] ArrowError),
}

/// Piece checksums of a shard, where they are known.
pub type ChecksumsOf<'a> = &'a dyn Fn(ShardNo) -> Option<Vec<Crc64>>;

/// A manifest as an Arrow IPC file. `checksums` adds piece checksums that were learned since; where it has none, the
/// manifest's own stand.
///
/// # Errors
/// [`ManifestEncodeError`] when `checksums` gives a wrong number of them.
pub fn encode(manifest: &Manifest, checksums: Option<ChecksumsOf<'_>>) -> Result<Vec<u8>, ManifestEncodeError> {
    let schema = schema(metadata(manifest));
    let mut writer = FileWriter::try_new(Vec::new(), &schema)?;
    let combiner = PieceCombiner::new(manifest.layout().piece_len());
    let mut no: ShardNo = 0;
    for rows in manifest.shards().chunks(MANIFEST_BATCH_ROWS) {
        let mut columns = Columns::default();
        for shard in rows {
            let learned = checksums.and_then(|of| of(no));
            let crcs = learned.as_deref().or(shard.piece_crcs.as_deref());
            let pieces = manifest.layout().shard_pieces(no).len();
            if let Some(given) = crcs.map(<[Crc64]>::len).filter(|&n| n != pieces) {
                return Err(ManifestEncodeError::PieceCount { key: shard.key.to_string(), given, pieces });
            }
            columns.push(shard, crcs, &combiner);
            no += 1;
        }
        writer.write(&columns.finish(schema.clone())?)?;
    }
    writer.finish()?;
    Ok(writer.into_inner()?)
}

/// Names of the metadata.
mod meta {
    pub const FORMAT: &str = "millstream.format";
    pub const NAME: &str = "millstream.name";
    pub const VERSION: &str = "millstream.version";
    pub const KIND: &str = "millstream.kind";
    pub const RUN: &str = "millstream.run";
    pub const STEP: &str = "millstream.step";
    pub const ORIGIN_URL: &str = "millstream.origin_url";
    pub const PIECE_LENGTH: &str = "millstream.piece_length";
    pub const DIGEST: &str = "millstream.digest";
}

fn metadata(manifest: &Manifest) -> HashMap<String, String> {
    let mut out = HashMap::new();
    let mut put = |key: &str, value: String| out.insert(key.to_owned(), value);
    put(meta::FORMAT, FORMAT.to_owned());
    put(meta::NAME, manifest.name().name.to_string());
    put(meta::VERSION, manifest.name().version.to_string());
    match manifest.kind() {
        DatasetKind::Dataset => {
            put(meta::KIND, "dataset".to_owned());
        }
        DatasetKind::Checkpoint { run, step } => {
            put(meta::KIND, "checkpoint".to_owned());
            put(meta::RUN, run.clone());
            put(meta::STEP, step.to_string());
        }
    }
    put(meta::ORIGIN_URL, manifest.origin_url().to_owned());
    put(meta::PIECE_LENGTH, manifest.layout().piece_len().to_string());
    put(meta::DIGEST, manifest.digest().to_string());
    out
}

fn fields() -> Vec<Field> {
    let item = Arc::new(Field::new("item", DataType::UInt64, false));
    vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("length", DataType::UInt64, false),
        Field::new("etag", DataType::Utf8, true),
        Field::new("version_id", DataType::Utf8, true),
        Field::new("checksum_algorithm", DataType::Utf8, true),
        Field::new("checksum", DataType::Binary, true),
        Field::new("piece_crcs", DataType::List(item), true),
        Field::new("crc64nvme", DataType::UInt64, true),
    ]
}

fn schema(metadata: HashMap<String, String>) -> SchemaRef {
    Arc::new(Schema::new(fields()).with_metadata(metadata))
}

struct Columns {
    key: StringBuilder,
    length: UInt64Builder,
    etag: StringBuilder,
    version_id: StringBuilder,
    checksum_algorithm: StringBuilder,
    checksum: BinaryBuilder,
    piece_crcs: ListBuilder<UInt64Builder>,
    crc64nvme: UInt64Builder,
}

impl Default for Columns {
    fn default() -> Self {
        Columns {
            key: StringBuilder::new(),
            length: UInt64Builder::new(),
            etag: StringBuilder::new(),
            version_id: StringBuilder::new(),
            checksum_algorithm: StringBuilder::new(),
            checksum: BinaryBuilder::new(),
            piece_crcs: ListBuilder::new(UInt64Builder::new()).with_field(Field::new("item", DataType::UInt64, false)),
            crc64nvme: UInt64Builder::new(),
        }
    }
}

impl Columns {
    fn push(&mut self, shard: &ShardEntry, crcs: Option<&[Crc64]>, combiner: &PieceCombiner) {
        self.key.append_value(shard.key.as_str());
        self.length.append_value(shard.len);
        self.etag.append_option(shard.etag.as_deref());
        self.version_id.append_option(shard.version_id.as_deref());
        let checksum = shard.checksum.as_ref();
        self.checksum_algorithm.append_option(checksum.map(OriginChecksum::algorithm));
        self.checksum.append_option(checksum.map(OriginChecksum::value));
        // What the pieces combine to; without them, what the origin says.
        let whole = match (crcs, checksum) {
            (Some(crcs), _) => Some(combiner.shard(crcs.iter().copied(), shard.len)),
            (None, Some(OriginChecksum::Crc64Nvme(crc))) => Some(*crc),
            _ => None,
        };
        if let Some(crcs) = crcs {
            for crc in crcs {
                self.piece_crcs.values().append_value(crc.0);
            }
        }
        self.piece_crcs.append(crcs.is_some());
        self.crc64nvme.append_option(whole.map(|crc| crc.0));
    }

    fn finish(mut self, schema: SchemaRef) -> Result<RecordBatch, ArrowError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.key.finish()),
            Arc::new(self.length.finish()),
            Arc::new(self.etag.finish()),
            Arc::new(self.version_id.finish()),
            Arc::new(self.checksum_algorithm.finish()),
            Arc::new(self.checksum.finish()),
            Arc::new(self.piece_crcs.finish()),
            Arc::new(self.crc64nvme.finish()),
        ];
        RecordBatch::try_new(schema, columns)
    }
}

/// The value of a nullable number.
fn optional(column: &UInt64Array, row: usize) -> Option<u64> {
    column.is_valid(row).then(|| column.value(row))
}

#[cfg(test)]
mod tests;
