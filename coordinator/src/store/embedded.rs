//! The catalog in one redb file on local disk.
//!
//! Goals: one process at a time; a torn last write rolls back to the commit before it; anything worse is found when
//! the file is opened (every page is checked) and named. Non-goals: several coordinators (an external store's part).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use millstream_types::Digest;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction,
};

use super::{
    CatalogStore, Change, ChecksumRow, JobRecord, KnownChecksums, Loaded, StageRecord, StoreError, VersionRecord,
};
use crate::limits::{AUDIT_LINES_MAX, STORE_CACHE_BYTES};

/// Name of the file in the state directory.
const FILE: &str = "catalog.redb";
/// Of the tables below and what is in them.
const FORMAT: u64 = 1;

type Bytes = &'static [u8];
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const VERSIONS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("versions");
const MANIFESTS: TableDefinition<'_, Bytes, Bytes> = TableDefinition::new("manifests");
const CHECKSUMS: TableDefinition<'_, (Bytes, u32), Bytes> = TableDefinition::new("checksums");
const STAGES: TableDefinition<'_, u64, Bytes> = TableDefinition::new("stages");
const JOBS: TableDefinition<'_, &str, Bytes> = TableDefinition::new("jobs");
const PINS: TableDefinition<'_, (Bytes, &str), ()> = TableDefinition::new("pins");
/// Those of whom it is known.
const PINNED_BY: TableDefinition<'_, (Bytes, &str), &str> = TableDefinition::new("pinned-by");
const REMOVED: TableDefinition<'_, Bytes, &str> = TableDefinition::new("removed");
const AUDIT: TableDefinition<'_, u64, &str> = TableDefinition::new("audit");

/// The catalog in `<state-dir>/catalog.redb`.
#[derive(Debug)]
pub struct EmbeddedStore {
    db: Database,
    path: PathBuf,
}

impl EmbeddedStore {
    /// Opens or creates the catalog of `state_dir`, and checks every page of it.
    ///
    /// # Errors
    /// [`StoreError`] naming the file and what to do.
    pub fn open(state_dir: &Path) -> Result<EmbeddedStore, StoreError> {
        std::fs::create_dir_all(state_dir).map_err(|source| StoreError::Open { path: state_dir.to_owned(), source })?;
        let path = state_dir.join(FILE);
        // redb asserts what it wrote itself; on a damaged file that is a panic, which is an answer, not a crash.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let mut db = Database::builder().set_cache_size(STORE_CACHE_BYTES).create(&path)?;
            if !db.check_integrity()? {
                tracing::warn!(?path, "the catalog was damaged and could be repaired");
            }
            Ok(db)
        }));
        let db = match opened {
            Ok(Ok(db)) => db,
            Ok(Err(error)) => return Err(open_error(&path, error)),
            Err(_) => {
                return Err(StoreError::Damaged { path, detail: "its pages contradict each other".into() });
            }
        };
        let store = EmbeddedStore { db, path };
        store.prepare()?;
        Ok(store)
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let found = self.write(|tx| {
            let mut meta = tx.open_table(META)?;
            let found = meta.get("format")?.map(|v| v.value());
            if found.is_none() {
                meta.insert("format", FORMAT)?;
            }
            // Opening creates: readers then need not care for missing tables.
            tx.open_table(VERSIONS)?;
            tx.open_table(MANIFESTS)?;
            tx.open_table(CHECKSUMS)?;
            tx.open_table(STAGES)?;
            tx.open_table(JOBS)?;
            tx.open_table(PINS)?;
            tx.open_table(PINNED_BY)?;
            tx.open_table(REMOVED)?;
            tx.open_table(AUDIT)?;
            Ok(found)
        })?;
        match found {
            Some(found) if found != FORMAT => {
                Err(StoreError::Format { path: self.path.clone(), found, expected: FORMAT })
            }
            _ => Ok(()),
        }
    }

    fn write<R>(&self, change: impl FnOnce(&WriteTransaction) -> Result<R, redb::Error>) -> Result<R, StoreError> {
        let run = || {
            let tx = self.db.begin_write()?;
            let result = change(&tx)?;
            tx.commit()?;
            Ok(result)
        };
        run().map_err(|e| self.io("write", &e))
    }

    fn read<R>(&self, look: impl FnOnce(&redb::ReadTransaction) -> Result<R, redb::Error>) -> Result<R, StoreError> {
        let run = || look(&self.db.begin_read()?);
        run().map_err(|e| self.io("read", &e))
    }

    fn io(&self, what: &'static str, error: &redb::Error) -> StoreError {
        let path = self.path.clone();
        match error {
            redb::Error::Corrupted(detail) => StoreError::Damaged { path, detail: detail.clone() },
            other => StoreError::Io { what, path, detail: other.to_string() },
        }
    }

    fn damaged(&self, detail: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), detail: detail.into() }
    }

    fn load_jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        let rows: Vec<Vec<u8>> = self.read(|tx| {
            let mut rows = Vec::new();
            for row in tx.open_table(JOBS)?.iter()? {
                rows.push(row?.1.value().to_vec());
            }
            Ok(rows)
        })?;
        rows.iter().map(|row| self.json("a job", row)).collect()
    }

    fn digest(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        Digest::from_slice(bytes).ok_or_else(|| self.damaged("a digest that is not 32 bytes"))
    }

    fn json<T: serde::de::DeserializeOwned>(&self, what: &str, bytes: &[u8]) -> Result<T, StoreError> {
        serde_json::from_slice(bytes).map_err(|e| self.damaged(format!("{what}: {e}")))
    }
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path },
        // redb reports what is no file of its own as invalid data.
        DatabaseError::Storage(redb::StorageError::Io(source))
            if !matches!(source.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) =>
        {
            StoreError::Open { path, source }
        }
        other => StoreError::Damaged { path, detail: other.to_string() },
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|e| redb::Error::Io(e.into()))
}

fn apply(tx: &WriteTransaction, change: &Change) -> Result<(), redb::Error> {
    match change {
        Change::AddVersion { digest, record, manifest } => {
            tx.open_table(VERSIONS)?.insert(&digest.0[..], &json(record)?[..])?;
            tx.open_table(MANIFESTS)?.insert(&digest.0[..], &manifest[..])?;
            tx.open_table(REMOVED)?.remove(&digest.0[..])?;
        }
        Change::RemoveVersion { digest, name } => {
            tx.open_table(VERSIONS)?.remove(&digest.0[..])?;
            tx.open_table(MANIFESTS)?.remove(&digest.0[..])?;
            tx.open_table(CHECKSUMS)?.retain_in((&digest.0[..], 0)..=(&digest.0[..], u32::MAX), |_, _| false)?;
            tx.open_table(PINS)?.retain(|(d, _), ()| d != &digest.0[..])?;
            tx.open_table(PINNED_BY)?.retain(|(d, _), _| d != &digest.0[..])?;
            tx.open_table(REMOVED)?.insert(&digest.0[..], name.to_string().as_str())?;
        }
        Change::Checksums { digest, row, change } => {
            let mut table = tx.open_table(CHECKSUMS)?;
            let key = (&digest.0[..], *row);
            // An unreadable row cannot be: every page is checked when the file is opened.
            let mut whole = table.get(key)?.and_then(|old| ChecksumRow::from_bytes(old.value())).unwrap_or_default();
            whole.apply(change);
            if whole.is_empty() {
                table.remove(key)?;
            } else {
                table.insert(key, &whole.to_bytes()[..])?;
            }
        }
        Change::PutStage(stage) => {
            tx.open_table(STAGES)?.insert(stage.id, &json(stage)?[..])?;
        }
        Change::RemoveStage(id) => {
            tx.open_table(STAGES)?.remove(id.0)?;
        }
        Change::PutJob(job) => {
            tx.open_table(JOBS)?.insert(job.job.as_str(), &json(job)?[..])?;
        }
        Change::RemoveJob(job) => {
            tx.open_table(JOBS)?.remove(job.as_str())?;
        }
        Change::Pin { digest, node, pinned, by } => {
            let (mut pins, mut owners) = (tx.open_table(PINS)?, tx.open_table(PINNED_BY)?);
            let key = (&digest.0[..], node.as_str());
            if *pinned {
                pins.insert(key, ())?;
                owners.insert(key, by.as_str())?;
            } else {
                pins.remove(key)?;
                owners.remove(key)?;
            }
        }
        Change::Audit(line) => {
            let mut table = tx.open_table(AUDIT)?;
            let next = table.last()?.map_or(0, |(k, _)| k.value() + 1);
            table.insert(next, line.as_str())?;
            while table.len()? > AUDIT_LINES_MAX {
                table.pop_first()?;
            }
        }
    }
    Ok(())
}

impl CatalogStore for EmbeddedStore {
    fn load(&self) -> Result<Loaded, StoreError> {
        type Named = Vec<(Vec<u8>, String)>;
        type Raw = (Vec<(Vec<u8>, Vec<u8>)>, Vec<Vec<u8>>, Vec<(Vec<u8>, String, String)>, Named);
        let (versions, stages, pins, removed): Raw = self.read(|tx| {
            let mut versions = Vec::new();
            for row in tx.open_table(VERSIONS)?.iter()? {
                let (k, v) = row?;
                versions.push((k.value().to_vec(), v.value().to_vec()));
            }
            let mut stages = Vec::new();
            for row in tx.open_table(STAGES)?.iter()? {
                stages.push(row?.1.value().to_vec());
            }
            let mut pins = Vec::new();
            let owners = tx.open_table(PINNED_BY)?;
            for row in tx.open_table(PINS)?.iter()? {
                let (key, _) = row?;
                let (digest, node) = key.value();
                let by = owners.get(key.value())?.map(|by| by.value().to_owned());
                pins.push((digest.to_vec(), node.to_owned(), by.unwrap_or_default()));
            }
            let mut removed = Vec::new();
            for row in tx.open_table(REMOVED)?.iter()? {
                let (k, v) = row?;
                removed.push((k.value().to_vec(), v.value().to_owned()));
            }
            Ok((versions, stages, pins, removed))
        })?;
        let mut loaded = Loaded::default();
        for (digest, record) in versions {
            let record: VersionRecord = self.json("a version", &record)?;
            loaded.versions.push((self.digest(&digest)?, record));
        }
        loaded.versions.sort_by_key(|(_, r)| r.sequence);
        for stage in stages {
            loaded.stages.push(self.json::<StageRecord>("a stage", &stage)?);
        }
        for (digest, node, by) in pins {
            loaded.pins.push((self.digest(&digest)?, node, by));
        }
        for (digest, name) in removed {
            let name = name.parse().map_err(|e| self.damaged(format!("a removed version: {e}")))?;
            loaded.removed.push((self.digest(&digest)?, name));
        }
        loaded.jobs = self.load_jobs()?;
        Ok(loaded)
    }

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.write(|tx| changes.iter().try_for_each(|change| apply(tx, change)))
    }

    fn manifest(&self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(MANIFESTS)?;
            Ok(table.get(&digest.0[..])?.map(|v| v.value().to_vec()))
        })
    }

    fn checksums(&self, digest: Digest) -> Result<KnownChecksums, StoreError> {
        let rows: Vec<(u32, Vec<u8>)> = self.read(|tx| {
            let table = tx.open_table(CHECKSUMS)?;
            let range = table.range((&digest.0[..], 0)..=(&digest.0[..], u32::MAX))?;
            let mut rows = Vec::new();
            for row in range {
                let (k, v) = row?;
                rows.push((k.value().1, v.value().to_vec()));
            }
            Ok(rows)
        })?;
        let mut out = KnownChecksums::new();
        for (row, bytes) in rows {
            ChecksumRow::from_bytes(&bytes)
                .ok_or_else(|| self.damaged("a checksum row of a wrong length"))?
                .runs(row, &mut out);
        }
        Ok(out)
    }

    fn audit(&self, lines: usize) -> Result<Vec<String>, StoreError> {
        self.read(|tx| {
            let table = tx.open_table(AUDIT)?;
            let mut out = Vec::new();
            for row in table.iter()?.rev().take(lines) {
                out.push(row?.1.value().to_owned());
            }
            out.reverse();
            Ok(out)
        })
    }

    fn describe(&self) -> String {
        format!("embedded:{}", self.path.display())
    }
}

#[cfg(test)]
mod tests;
