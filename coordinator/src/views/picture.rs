//! One version in full: the map, the shards, what moves. Worked out on a copy, outside of the driver.
//!
//! Taking the [`Sample`] is cheap and happens under the driver; [`Sample::work_out`] and everything after it do not
//! hold anybody up. A [`Picture`] is used again for [`PICTURE_REUSE`], however many people look.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use millstream_coordinator_core::holdings::{Holdings, StateCounts, States};
use millstream_types::{DatasetId, Manifest, Time};
use serde::Serialize;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::datasets::{DatasetItem, FailureItem, MendedItem, NAMED_IN_DETAIL, TransferItem};
use super::{natural, percent};
use crate::driver::{DriverHandle, State};
use crate::failure::RequestError;
use crate::limits::{PICTURE_CELLS_MAX, PICTURE_REUSE, PICTURES_MAX};
use crate::status::StageStatus;

pub(crate) mod detail;
pub(crate) mod map;
pub(crate) mod shards;

/// Failures named in the detail of a version.
const FAILURES_SHOWN: usize = 100;
/// Wrong bytes that were mended, named in the detail of a version.
const MENDED_SHOWN: usize = 20;

/// What the driver gives: a copy, and names.
struct Sample {
    dataset: DatasetItem,
    manifest: Arc<Manifest>,
    holdings: Holdings,
    /// In the order of the members.
    names: Vec<String>,
    down: Vec<bool>,
    transfers: Vec<TransferItem>,
    failures: Vec<FailureItem>,
    mended: Vec<MendedItem>,
    stages: Vec<StageStatus>,
}

/// A version as it was a moment ago.
pub(crate) struct Picture {
    sample: Sample,
    states: States,
    /// Of each looked-at shard, on all members.
    counts: Vec<StateCounts>,
    step: u32,
}

/// How many (node, shard) pairs, or shards, or nodes are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Counts {
    /// Not there, and not to come.
    missing: u32,
    /// Wanted; no byte is on its way.
    queued: u32,
    /// Some bytes are there, or on their way.
    receiving: u32,
    /// All bytes are there; it is not visible yet.
    verifying: u32,
    /// Verified and visible.
    ready: u32,
    /// What was read is wrong: failed, or in doubt and read again.
    bad: u32,
}

impl From<StateCounts> for Counts {
    fn from([missing, queued, receiving, verifying, ready, bad]: StateCounts) -> Counts {
        Counts { missing, queued, receiving, verifying, ready, bad }
    }
}

fn add(sum: &mut StateCounts, more: StateCounts) {
    sum.iter_mut().zip(more).for_each(|(a, b)| *a += b);
}

impl Sample {
    fn take(state: &State, now: Time, selector: &str) -> Result<Sample, RequestError> {
        let dataset = state.find_dataset(selector)?;
        let unknown = || RequestError::UnknownDataset { selector: selector.to_owned(), hint: String::new() };
        let mut holdings = state.core.holdings(dataset.id, now).ok_or_else(unknown)?;
        holdings.sort_members(|node| natural(state.nodes.name(node)));
        let names = holdings.members.iter().map(|m| state.nodes.name(m.node).to_owned()).collect();
        let mut transfers: Vec<_> =
            holdings.transfers.iter().map(|t| transfer(state, dataset.id, &holdings, t)).collect();
        transfers.reverse();
        let failures = holdings.failed.values().take(FAILURES_SHOWN);
        let stages = state.stages.iter().filter(|(_, s)| s.dataset == dataset.id);
        Ok(Sample {
            dataset: state.dataset_item(dataset, state.verdict(now, dataset.id, NAMED_IN_DETAIL)),
            manifest: dataset.manifest.clone(),
            names,
            down: holdings.members.iter().map(|m| m.down).collect(),
            transfers,
            failures: failures.map(|f| state.failure_item(dataset.id, f)).collect(),
            mended: state.observed.troubles.of(dataset.id).take(MENDED_SHOWN).map(|t| state.mended_item(t)).collect(),
            stages: stages.rev().filter_map(|(&id, s)| state.stage_status(now, id, s)).take(20).collect(),
            holdings,
        })
    }

    fn work_out(self) -> Picture {
        let pairs = self.names.len() as u64 * u64::from(self.holdings.layout.shards());
        let step = u32::try_from(pairs.div_ceil(PICTURE_CELLS_MAX).max(1)).unwrap_or(u32::MAX);
        let states = self.holdings.states(step);
        let counts = (0..states.shards().len()).map(|i| states.count(i, 0..usize::MAX)).collect();
        Picture { states, counts, step, sample: self }
    }
}

fn transfer(
    state: &State,
    dataset: DatasetId,
    h: &Holdings,
    t: &millstream_coordinator_core::holdings::Transfer,
) -> TransferItem {
    let shard = h.layout.shard_of(t.pieces.start);
    let there = h.shard_bytes_on(shard, t.node);
    state.transfer_item(dataset, t).with_percent(percent(there, h.layout.shard_len(shard)))
}

impl Picture {
    fn key(&self, shard: u32) -> String {
        self.sample.manifest.shards().get(shard as usize).map(|s| s.key.to_string()).unwrap_or_default()
    }
}

type Slot = Arc<OnceCell<Arc<Picture>>>;

/// Pictures that were worked out a moment ago, by what was asked for.
#[derive(Default)]
pub(crate) struct Pictures(Mutex<HashMap<String, (Instant, Slot)>>);

impl Pictures {
    /// The picture of a version, at most [`PICTURE_REUSE`] old.
    pub(crate) async fn get(&self, driver: &DriverHandle, selector: String) -> Result<Arc<Picture>, RequestError> {
        let slot = self.slot(&selector);
        let make = async {
            let sample = driver.call(move |state, now| Sample::take(state, now, &selector)).await??;
            let worked_out = tokio::task::spawn_blocking(move || sample.work_out()).await;
            Ok::<_, RequestError>(Arc::new(worked_out.map_err(|_| RequestError::Stopping)?))
        };
        slot.get_or_try_init(|| make).await.cloned()
    }

    fn slot(&self, selector: &str) -> Slot {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        all.retain(|_, (since, _)| now.duration_since(*since) < PICTURE_REUSE);
        if let Some((_, slot)) = all.get(selector) {
            return slot.clone();
        }
        let slot = Slot::default();
        // Beyond the limit it is worked out for this one reader only.
        if all.len() < PICTURES_MAX {
            all.insert(selector.to_owned(), (now, slot.clone()));
        }
        slot
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Picture").field("dataset", &self.sample.dataset.dataset).finish_non_exhaustive()
    }
}
