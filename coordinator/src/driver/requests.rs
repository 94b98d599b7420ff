//! What clients ask of the catalog: add, list, show, remove.
//!
//! Every change is applied at once and handed to the store; the service answers the client when it is durable.

use std::sync::Arc;

use millstream_coordinator_core::event::Event;
use millstream_proto::convert;
use millstream_proto::v1;
use millstream_types::id::DatasetSelector;
use millstream_types::{DatasetId, DatasetName, DatasetRef, Manifest, StageId, Time, Version};

use super::State;
use super::state::unix_s;
use crate::failure::{RequestError, named};
use crate::limits::{DATASETS_MAX, PAGE_DEFAULT, PAGE_MAX};
use crate::observe::events::{Kind, Severity, Telling};
use crate::store::{Change, Durable, VersionRecord};

pub(super) type Asked<T> = Result<T, RequestError>;

/// An answer, and what must be on disk before it is given.
pub(crate) struct Answer<T> {
    pub(crate) reply: T,
    pub(crate) durable: Option<Durable>,
}

impl<T> Answer<T> {
    /// The reply, once it is durable.
    pub(crate) async fn settle(self) -> Asked<T> {
        if let Some(durable) = self.durable {
            durable.wait().await.inspect_err(|error| tracing::error!(%error, "a change is not durable"))?;
        }
        Ok(self.reply)
    }
}

/// Which version an addition is to be, and what there is to compare with.
pub(crate) struct Plan {
    pub(crate) version: Version,
    /// The newest version of that name.
    pub(crate) latest: Option<Arc<Manifest>>,
}

impl State {
    /// The version that a new snapshot of `name` gets when none is given.
    pub(crate) fn plan(&self, name: &DatasetName) -> Asked<Plan> {
        let none = || RequestError::TooMany { what: "versions of one name", limit: DATASETS_MAX };
        Ok(Plan {
            version: self.datasets.next_version(name, self.removed.values()).ok_or_else(none)?,
            latest: self.datasets.versions(name).last().map(|d| d.manifest.clone()),
        })
    }

    /// Registers a snapshot. The flag: it was there already.
    pub(crate) fn add_version(
        &mut self,
        now: Time,
        manifest: Arc<Manifest>,
        encoded: Arc<Vec<u8>>,
        indexed: bool,
    ) -> Asked<Answer<(v1::DatasetInfo, bool)>> {
        let name = manifest.name().clone();
        if let Some(there) = self.datasets.by_ref(&name) {
            if there.manifest.digest() == manifest.digest() {
                return Ok(Answer { reply: (there.info(), true), durable: None });
            }
            return Err(RequestError::VersionConflict {
                name: name.to_string(),
                existing: there.manifest.digest().to_string(),
                found: manifest.digest().to_string(),
            });
        }
        if self.datasets.len() >= DATASETS_MAX {
            return Err(RequestError::TooMany { what: "versions in the catalog", limit: DATASETS_MAX });
        }
        let record = VersionRecord { name, sequence: self.datasets.next_sequence(), created_unix_s: unix_s(), indexed };
        let digest = manifest.digest();
        let what = format!("added {} from {}", record.name, manifest.origin_url());
        let line = self.told(Telling::new(Kind::Added, Severity::Info, what).dataset(record.name.to_string()));
        let durable = self.store.commit(vec![
            Change::AddVersion { digest, record: record.clone(), manifest: encoded },
            Change::Audit(line),
        ]);
        self.removed.remove(&digest);
        let id = self.restore_version(now, record, manifest, Vec::new());
        // Nodes may hold it from an earlier life of the same snapshot.
        let holders: Vec<_> = self
            .nodes
            .connected()
            .filter(|n| n.hello.as_ref().is_some_and(|h| h.digests.contains(&digest)))
            .map(|n| n.id)
            .collect();
        for node in holders {
            self.attach(node, id, None);
        }
        let info = self.datasets.get(id).map(|d| d.info()).unwrap_or_default();
        Ok(Answer { reply: (info, false), durable: Some(durable) })
    }

    /// Puts a version into the catalog in memory and tells the core.
    pub(crate) fn restore_version(
        &mut self,
        now: Time,
        record: VersionRecord,
        manifest: Arc<Manifest>,
        learned: crate::store::KnownChecksums,
    ) -> DatasetId {
        let dataset = self.datasets.insert(record, manifest);
        if let Some(known) = self.datasets.get(dataset) {
            let facts = known.facts(learned);
            self.core.handle_event(now, Event::DatasetAdded { dataset, facts });
        }
        dataset
    }

    pub(crate) fn list(&self) -> v1::ListDatasetsReply {
        v1::ListDatasetsReply { datasets: self.datasets.iter().map(|d| d.info()).collect() }
    }

    /// One page of the shards of a version.
    pub(crate) fn show(&self, request: &v1::ShowDatasetRequest) -> Asked<v1::ShowDatasetReply> {
        let dataset = self.select(&request.dataset)?;
        let limit = match request.page_limit {
            0 => PAGE_DEFAULT,
            n => n.min(PAGE_MAX),
        };
        let page = dataset.manifest.shards().iter().skip(request.page_offset as usize).take(limit as usize);
        let shards = page.map(|s| v1::ShardInfo {
            key: s.key.to_string(),
            len: s.len,
            etag: s.etag.clone().unwrap_or_default(),
            version_id: s.version_id.clone().unwrap_or_default(),
            checksum: s.checksum.as_ref().map(ToString::to_string).unwrap_or_default(),
        });
        Ok(v1::ShowDatasetReply { shards: shards.collect(), info: Some(dataset.info()) })
    }

    pub(crate) fn select(&self, text: &str) -> Asked<&crate::datasets::Dataset> {
        self.datasets.select(&convert::selector("dataset", text)?)
    }

    /// Removes `name@version`, or all versions of `name`.
    pub(crate) fn remove(&mut self, now: Time, text: &str) -> Asked<Answer<v1::RemoveDatasetReply>> {
        let selector: DatasetSelector = convert::selector("dataset", text)?;
        let first = self.datasets.select(&selector)?.id;
        let doomed: Vec<DatasetId> = match selector.version {
            Some(_) => vec![first],
            None => self.datasets.versions(&selector.name).map(|d| d.id).collect(),
        };
        for &id in &doomed {
            self.refuse_pinned(id, "removed")?;
        }
        let mut changes = Vec::new();
        let mut removed = Vec::new();
        for id in doomed {
            self.drop_stages(id, &mut changes);
            let Some(dataset) = self.datasets.remove(id) else {
                continue;
            };
            self.event(now, Event::DatasetRemoved { dataset: id });
            // The core's orders name the version, which is gone when the round ends: carry them out now.
            self.drain();
            // Nodes that had it without a stage are not the core's concern.
            let holders: Vec<_> = self.nodes.connected().filter(|n| self.attached(n.id, id)).map(|n| n.id).collect();
            for node in holders {
                self.detach(node, id);
            }
            self.refusals.retain(|(d, _), _| *d != id);
            let name: DatasetRef = dataset.record.name.clone();
            let digest = dataset.manifest.digest();
            self.removed.insert(digest, name.clone());
            let removal = Telling::new(Kind::Removed, Severity::Info, format!("removed {name}"));
            changes.push(Change::Audit(self.told(removal.dataset(name.to_string()))));
            self.observed.dataset_removed(id);
            removed.push(name.to_string());
            changes.push(Change::RemoveVersion { digest, name });
            self.watchers.dataset_removed(id);
            self.jobs.dataset_removed(id);
        }
        Ok(Answer { reply: v1::RemoveDatasetReply { removed }, durable: Some(self.store.commit(changes)) })
    }

    fn refuse_pinned(&self, id: DatasetId, what: &str) -> Asked<()> {
        let Some(dataset) = self.datasets.get(id).filter(|d| !d.pins.is_empty()) else {
            return Ok(());
        };
        let name = &dataset.record.name;
        let nodes: Vec<_> = dataset.pins.keys().cloned().collect();
        Err(RequestError::Conflict {
            reason: format!("{name} is pinned on {}, so it cannot be {what}", named(&nodes)),
            next: format!("unpin it first: millstream unpin {name}"),
        })
    }

    fn drop_stages(&mut self, dataset: DatasetId, changes: &mut Vec<Change>) {
        let ids: Vec<StageId> = self.stages.iter().filter(|(_, s)| s.dataset == dataset).map(|(id, _)| *id).collect();
        for id in ids {
            self.stages.remove(&id);
            changes.push(Change::RemoveStage(id));
        }
    }
}
