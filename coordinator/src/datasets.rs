//! The catalog in memory: versions by number, digest and name.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use millstream_coordinator_core::event::DatasetFacts;
use millstream_proto::v1;
use millstream_types::id::DatasetSelector;
use millstream_types::{DatasetId, DatasetKind, DatasetName, DatasetRef, Digest, Manifest, Version};

use crate::failure::RequestError;
use crate::store::{KnownChecksums, VersionRecord};

/// A version.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Its number.
    pub id: DatasetId,
    /// What is kept of it beside the manifest.
    pub record: VersionRecord,
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Names of nodes where it is pinned, with who wants that; empty when they did not say.
    pub pins: BTreeMap<String, String>,
}

impl Dataset {
    /// As clients see it.
    pub fn info(&self) -> v1::DatasetInfo {
        let manifest = &self.manifest;
        let (kind, run, step) = match manifest.kind() {
            DatasetKind::Dataset => ("dataset", String::new(), 0),
            DatasetKind::Checkpoint { run, step } => ("checkpoint", run.clone(), *step),
        };
        v1::DatasetInfo {
            name: manifest.name().name.to_string(),
            version: manifest.name().version.to_string(),
            digest: manifest.digest().to_string(),
            shards: manifest.shards().len() as u64,
            bytes: manifest.layout().bytes(),
            origin_url: manifest.origin_url().to_owned(),
            origin_verified: manifest.origin_verified(),
            kind: kind.into(),
            run,
            step,
            created_unix_s: self.record.created_unix_s,
            piece_bytes: manifest.layout().piece_len(),
            indexed: self.record.indexed,
        }
    }

    /// As the core needs it, with what is known of its pieces: from the manifest and learned since.
    pub fn facts(&self, learned: KnownChecksums) -> DatasetFacts {
        let manifest = &self.manifest;
        let layout = manifest.layout();
        let mut known: KnownChecksums = Vec::new();
        for (no, shard) in manifest.shards().iter().enumerate() {
            if let Some(crcs) = shard.piece_crcs.as_ref().filter(|c| !c.is_empty()) {
                known.push((layout.shard_pieces(no as u32).start, crcs.clone()));
            }
        }
        // A row that reaches beyond the version cannot be of this version.
        let fits = |(first, crcs): &(u32, Vec<_>)| *first as usize + crcs.len() <= layout.pieces() as usize;
        let learned = learned.into_iter().filter(fits).collect();
        DatasetFacts {
            layout: Arc::new(layout.clone()),
            shard_checksums: manifest.shards().iter().map(|s| s.checksum.clone()).collect(),
            known,
            learned,
        }
    }
}

/// All versions.
#[derive(Debug, Default)]
pub struct Datasets {
    by_id: BTreeMap<DatasetId, Dataset>,
    by_digest: HashMap<Digest, DatasetId>,
    /// Versions of a name in order of creation.
    by_name: BTreeMap<DatasetName, Vec<DatasetId>>,
    next: u32,
    sequence: u64,
}

impl Datasets {
    /// Adds a version. The caller has checked that its name is free.
    pub fn insert(&mut self, record: VersionRecord, manifest: Arc<Manifest>) -> DatasetId {
        let id = DatasetId(self.next);
        self.next += 1;
        self.sequence = self.sequence.max(record.sequence + 1);
        self.by_digest.insert(manifest.digest(), id);
        let versions = self.by_name.entry(record.name.name.clone()).or_default();
        versions.push(id);
        self.by_id.insert(id, Dataset { id, record, manifest, pins: BTreeMap::new() });
        id
    }

    /// Removes a version.
    pub fn remove(&mut self, id: DatasetId) -> Option<Dataset> {
        let dataset = self.by_id.remove(&id)?;
        self.by_digest.remove(&dataset.manifest.digest());
        let name = &dataset.record.name.name;
        if let Some(versions) = self.by_name.get_mut(name) {
            versions.retain(|v| *v != id);
            if versions.is_empty() {
                self.by_name.remove(name);
            }
        }
        Some(dataset)
    }

    /// By number.
    pub fn get(&self, id: DatasetId) -> Option<&Dataset> {
        self.by_id.get(&id)
    }

    /// By number.
    pub fn get_mut(&mut self, id: DatasetId) -> Option<&mut Dataset> {
        self.by_id.get_mut(&id)
    }

    /// By digest.
    pub fn by_digest(&self, digest: Digest) -> Option<&Dataset> {
        self.by_id.get(self.by_digest.get(&digest)?)
    }

    /// By exact name and version.
    pub fn by_ref(&self, name: &DatasetRef) -> Option<&Dataset> {
        self.versions(&name.name).find(|d| d.record.name.version == name.version)
    }

    /// All versions of a name, oldest first.
    pub fn versions(&self, name: &DatasetName) -> impl Iterator<Item = &Dataset> {
        let ids = self.by_name.get(name).into_iter().flatten();
        ids.filter_map(|id| self.by_id.get(id))
    }

    /// All, by name and order of creation.
    pub fn iter(&self) -> impl Iterator<Item = &Dataset> {
        self.by_name.values().flatten().filter_map(|id| self.by_id.get(id))
    }

    /// A number that no version has: for one that is not in the catalog any more.
    pub fn spare_number(&mut self) -> DatasetId {
        let id = DatasetId(self.next);
        self.next += 1;
        id
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The order of the next version.
    pub fn next_sequence(&self) -> u64 {
        self.sequence
    }

    /// What a person means by `name` (the latest) or `name@version`.
    ///
    /// # Errors
    /// [`RequestError::UnknownDataset`] with the versions that there are.
    pub fn select(&self, selector: &DatasetSelector) -> Result<&Dataset, RequestError> {
        let found = match &selector.version {
            None => self.versions(&selector.name).last(),
            Some(version) => self.versions(&selector.name).find(|d| d.record.name.version == *version),
        };
        found.ok_or_else(|| RequestError::UnknownDataset {
            selector: selector.to_string(),
            hint: self.hint(&selector.name),
        })
    }

    fn hint(&self, name: &DatasetName) -> String {
        let versions: Vec<_> = self.versions(name).map(|d| d.record.name.version.to_string()).collect();
        match versions.len() {
            0 => String::new(),
            n => format!(
                " (versions of {name}: {}{})",
                versions[n.saturating_sub(5)..].join(", "),
                if n > 5 { ", and older ones" } else { "" }
            ),
        }
    }

    /// `v1`, `v2`, …: one more than the highest that there is, or was (`removed`): a name never means two contents.
    pub fn next_version<'a>(
        &'a self,
        name: &'a DatasetName,
        removed: impl Iterator<Item = &'a DatasetRef>,
    ) -> Option<Version> {
        let there = self.versions(name).map(|d| &d.record.name);
        let all = there.chain(removed.filter(|r| r.name == *name));
        let numbers = all.filter_map(|r| r.version.as_str().strip_prefix('v')?.parse::<u64>().ok());
        let next = numbers.max().unwrap_or(0).checked_add(1)?;
        format!("v{next}").parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(datasets: &mut Datasets, name: &str) -> DatasetId {
        let name: DatasetRef = name.parse().unwrap();
        let manifest =
            Manifest::new(name.clone(), DatasetKind::Dataset, "file:///x".into(), 65536, Vec::new()).unwrap();
        let sequence = datasets.next_sequence();
        datasets.insert(VersionRecord { name, sequence, created_unix_s: 0, indexed: false }, manifest.into())
    }

    fn selected(datasets: &Datasets, text: &str) -> Result<String, String> {
        let found = datasets.select(&text.parse().unwrap());
        found.map(|d| d.record.name.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_latest_is_the_newest_and_not_the_largest() {
        let mut datasets = Datasets::default();
        let ids: Vec<_> = ["d@v9", "d@v10", "d@a", "e@v1"].iter().map(|n| add(&mut datasets, n)).collect();
        assert_eq!(selected(&datasets, "d").unwrap(), "d@a");
        assert_eq!(selected(&datasets, "d@v9").unwrap(), "d@v9");
        datasets.remove(ids[2]);
        assert_eq!(selected(&datasets, "d").unwrap(), "d@v10");
        assert!(selected(&datasets, "d@a").unwrap_err().contains("v9, v10"));
        assert!(selected(&datasets, "f").unwrap_err().contains("\"f\""));
    }

    #[test]
    fn version_numbers_go_up_and_are_not_used_again() {
        let mut datasets = Datasets::default();
        let name: DatasetName = "d".parse().unwrap();
        let next = |d: &Datasets, removed: &[DatasetRef]| d.next_version(&name, removed.iter()).unwrap().to_string();
        assert_eq!(next(&datasets, &[]), "v1");
        add(&mut datasets, "d@v2");
        add(&mut datasets, "d@last");
        assert_eq!(next(&datasets, &[]), "v3");
        let removed = ["d@v7", "e@v9"].map(|r| r.parse().unwrap());
        assert_eq!(next(&datasets, &removed), "v8");
    }
}
