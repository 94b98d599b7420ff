//! Opening and closing versions: manifest, room on the disk, what is there already.

use std::collections::VecDeque;
use std::sync::Arc;

use millstream_agent_core::event::{Event, FailureKind};
use millstream_origin::Origin;
use millstream_types::{Crc64, DatasetId, Digest, Manifest, PieceNo};
use tokio::sync::watch;

use super::{Driver, Input, OpenVersion, Slot};
use crate::local::{LocalVersion, Progress};
use crate::storage::{DatasetError, OpenedDataset};

/// A version whose files were looked at.
pub(crate) struct Opened {
    pub manifest: Arc<Manifest>,
    pub on_disk: OpenedDataset,
}

/// Why a version cannot be opened here.
pub(crate) struct OpenFailure {
    pub kind: FailureKind,
    pub reason: String,
}

impl Driver {
    /// Opens everything that was here before the start, so that peers are served before a coordinator is found.
    pub(crate) fn open_all(&mut self, digests: Vec<Digest>) {
        for digest in digests {
            self.start_open(digest, None);
        }
    }

    /// `wanted_bytes`: what a stage wants here; room for it is reserved before anything is fetched.
    pub(super) fn start_open(&mut self, digest: Digest, wanted_bytes: Option<u64>) -> DatasetId {
        let dataset = DatasetId(self.next_dataset);
        self.next_dataset += 1;
        self.by_digest.insert(digest, dataset);
        self.versions.insert(dataset, Slot::Opening { orders: VecDeque::new() });
        let (store, link, inputs) = (self.parts.store.clone(), self.parts.link.clone(), self.inputs.clone());
        self.parts.tasks.spawn(async move {
            let result = open(&store, &link, digest, wanted_bytes).await;
            let _ = inputs.send(Input::Opened { dataset, result: result.map(Box::new) }).await;
        });
        dataset
    }

    pub(super) fn apply_opened(&mut self, dataset: DatasetId, result: Result<Box<Opened>, OpenFailure>) {
        let orders = match self.versions.remove(&dataset) {
            Some(Slot::Opening { orders }) => orders,
            other => {
                self.versions.extend(other.map(|slot| (dataset, slot)));
                return;
            }
        };
        let Opened { manifest, on_disk } = match result {
            Ok(opened) => *opened,
            Err(failure) => {
                self.refuse(dataset, failure.kind, &failure.reason);
                self.by_digest.retain(|_, d| *d != dataset);
                return;
            }
        };
        let digest = manifest.digest();
        let layout = Arc::new(manifest.layout().clone());
        self.parts.table.open(digest, layout.clone(), &on_disk.have);
        let bytes_ready = on_disk.have.runs().iter().map(|r| layout.range_bytes(r.clone())).sum();
        let progress = Progress { sealed: on_disk.sealed.clone(), bytes_ready, failed: None, closed: false };
        let local = Arc::new(LocalVersion {
            root: self.parts.store.root_of(manifest.name()),
            manifest: manifest.clone(),
            dataset,
            progress: watch::Sender::new(progress),
        });
        self.parts.local.insert(local.clone());
        self.versions
            .insert(dataset, Slot::Open(OpenVersion { digest, local, origin: None, origin_read: on_disk.origin_read }));
        let known = known_checksums(&manifest, &on_disk.crcs);
        self.handle(Event::Opened {
            dataset,
            layout,
            shard_checksums: manifest.shards().iter().map(|s| s.checksum.clone()).collect(),
            known,
            have: on_disk.have,
            sealed: on_disk.sealed,
        });
        self.send_inventory(dataset);
        self.tell_room();
        self.replay_orders(dataset, orders);
    }

    /// Forgets a version: its fetches stop, peers and trainers are told that it is gone.
    pub(super) fn close(&mut self, dataset: DatasetId) {
        let Some(Slot::Open(open)) = self.versions.remove(&dataset) else { return };
        self.by_digest.remove(&open.digest);
        self.parts.table.close(&open.digest);
        self.parts.local.remove(open.local.manifest.name());
        self.handle(Event::Closed { dataset });
    }

    /// The origin of a version, made when first needed.
    pub(super) fn origin_of(&mut self, dataset: DatasetId) -> Result<Arc<Origin>, String> {
        let Some(Slot::Open(open)) = self.versions.get_mut(&dataset) else {
            return Err("the version is closed here".into());
        };
        if let Some(origin) = &open.origin {
            return Ok(origin.clone());
        }
        let origin = Origin::from_url(open.local.manifest.origin_url()).map_err(|e| e.to_string())?;
        Ok(open.origin.insert(Arc::new(origin)).clone())
    }
}

async fn open(
    store: &crate::storage::Store,
    link: &crate::control::CoordinatorLink,
    digest: Digest,
    wanted_bytes: Option<u64>,
) -> Result<Opened, OpenFailure> {
    let refuse = |kind, reason: String| OpenFailure { kind, reason };
    let disk = |error: DatasetError| {
        let kind = if error.is_no_space() { FailureKind::NoSpace } else { FailureKind::Disk };
        refuse(kind, on_disk_words(store, &error.to_string()))
    };
    let bytes = match store.load_manifest(&digest).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) | Err(_) => {
            let bytes =
                link.manifest(digest).await.map_err(|e| refuse(FailureKind::Disk, format!("no manifest: {e}")))?;
            let saved = store.save_manifest(&digest, &bytes).await;
            saved.map_err(|error| disk(DatasetError::Disk { name: digest.to_string(), error }))?;
            bytes
        }
    };
    let manifest = millstream_proto::manifest::decode(&bytes)
        .map_err(|e| refuse(FailureKind::Disk, format!("manifest {digest}: {e}")))?;
    if manifest.digest() != digest {
        let reason = format!("asked for manifest {digest}, got {}", manifest.digest());
        return Err(refuse(FailureKind::Disk, reason));
    }
    let manifest = Arc::new(manifest);
    let on_disk = store.open_dataset(manifest.clone()).await.map_err(disk)?;
    if let Some(wanted) = wanted_bytes {
        let wanted = if wanted == 0 { manifest.layout().bytes() } else { wanted };
        if let Err(no_space) = store.reserve(&digest, wanted) {
            let name = manifest.name();
            return Err(refuse(FailureKind::NoSpace, format!("{name} does not fit: {no_space}")));
        }
    }
    Ok(Opened { manifest, on_disk })
}

/// What the disk answered, and which disk that is.
pub(super) fn on_disk_words(store: &crate::storage::Store, reason: &str) -> String {
    format!("{reason} (the disk under {})", store.data_dir().display())
}

/// Expected checksums: those of the index in the manifest, and those that were checked before a restart.
fn known_checksums(manifest: &Manifest, on_disk: &[(PieceNo, Vec<Crc64>)]) -> Vec<(PieceNo, Vec<Crc64>)> {
    let layout = manifest.layout();
    let indexed = manifest
        .shards()
        .iter()
        .enumerate()
        .filter_map(|(no, shard)| Some((layout.shard_pieces(no as u32).start, shard.piece_crcs.clone()?)));
    indexed.chain(on_disk.iter().cloned()).collect()
}
