//! What this node has, as trainers and the CLI may see it: versions, which shards are visible, why not the others.
//!
//! Written by the driver (but for what readers announce); read by the Unix socket and the HTTP port.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use millstream_types::id::DatasetSelector;
use millstream_types::{DatasetId, DatasetRef, Digest, Manifest, RunSet, ShardNo};
use tokio::sync::watch;

/// How far a version is here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Visible shards.
    pub sealed: RunSet,
    /// Bytes of verified pieces.
    pub bytes_ready: u64,
    /// Why it will not become ready: exit code class and words.
    pub failed: Option<(u32, String)>,
    /// The version was closed here (evicted).
    pub closed: bool,
}

/// A version that is open on this node.
#[derive(Debug)]
pub struct LocalVersion {
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// `<data-dir>/datasets/<name>@<version>`.
    pub root: PathBuf,
    /// The driver's number for it. They grow: of several versions of a name, the highest was opened last.
    pub dataset: DatasetId,
    /// Changes as shards become visible.
    pub progress: watch::Sender<Progress>,
}

/// Shards by version and reader.
#[derive(Debug, Default)]
pub struct Announced(Mutex<BTreeMap<(Digest, u64), RunSet>>);

impl Announced {
    fn readers(&self) -> MutexGuard<'_, BTreeMap<(Digest, u64), RunSet>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader will read these, too (or instead), and has read those.
    pub fn moved(&self, digest: Digest, reader: u64, restart: bool, upcoming: &[ShardNo], finished: &RunSet) {
        let mut readers = self.readers();
        let left = readers.entry((digest, reader)).or_default();
        if restart {
            *left = RunSet::new();
        }
        upcoming.iter().for_each(|&shard| left.insert(shard));
        left.remove_all(finished);
    }

    /// The reader has ended.
    pub fn gone(&self, digest: Digest, reader: u64) {
        self.readers().remove(&(digest, reader));
    }

    /// Does a reader wait for the shard, or will it?
    pub fn contains(&self, digest: Digest, shard: ShardNo) -> bool {
        self.readers().range((digest, 0)..=(digest, u64::MAX)).any(|(_, left)| left.contains(shard))
    }
}

impl LocalVersion {
    /// All shards visible?
    pub fn is_ready(&self) -> bool {
        self.progress.borrow().sealed.len() == u64::from(self.manifest.layout().shards())
    }
}

/// All open versions.
#[derive(Debug, Default)]
pub struct LocalState {
    versions: RwLock<BTreeMap<DatasetRef, Arc<LocalVersion>>>,
    /// Tells that a version was added.
    added: watch::Sender<()>,
    /// What readers here announced and have not read: it comes within their room. Written by the Unix socket.
    pub announced: Announced,
}

impl LocalState {
    /// Adds or replaces a version.
    pub fn insert(&self, version: Arc<LocalVersion>) {
        let name = version.manifest.name().clone();
        self.versions.write().unwrap_or_else(PoisonError::into_inner).insert(name, version);
        self.added.send_replace(());
    }

    /// Removes a version and tells those who wait for it.
    pub fn remove(&self, name: &DatasetRef) {
        let removed = self.versions.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(version) = removed {
            version.progress.send_modify(|p| p.closed = true);
        }
    }

    /// The version that a user means: the one named, or the one opened last.
    pub fn find(&self, selector: &DatasetSelector) -> Option<Arc<LocalVersion>> {
        let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        versions
            .values()
            .filter(|v| v.manifest.name().name == selector.name)
            .filter(|v| selector.version.as_ref().is_none_or(|wanted| *wanted == v.manifest.name().version))
            .max_by_key(|v| v.dataset)
            .cloned()
    }

    /// The same, once there is one.
    pub async fn opened(&self, selector: &DatasetSelector) -> Arc<LocalVersion> {
        let mut added = self.added.subscribe();
        loop {
            if let Some(version) = self.find(selector) {
                return version;
            }
            // Never an error: what sends is `self`.
            let _ = added.changed().await;
        }
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<LocalVersion>> {
        self.versions.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
