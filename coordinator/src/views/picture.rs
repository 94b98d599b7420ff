//! One version in full: the map, the shards, what moves. Worked out on a copy, outside of the driver.
//!
//! Taking the [`Sample`] is cheap and happens under the driver; [`Sample::work_out`] and everything after it do not
//! hold anybody up. A [`Picture`] is used again for [`PICTURE_REUSE`], however many people look.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use millstream_coordinator_core::holdings::{Holdings, ShardState, StateCounts, States};
use millstream_types::{DatasetId, Manifest, Time};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use super::datasets::{DatasetItem, FailureItem, NAMED_IN_DETAIL, TransferItem};
use super::{Page, Paging, natural, percent, usage};
use crate::driver::{DriverHandle, State};
use crate::failure::RequestError;
use crate::limits::{LIST_OFFSET_MAX, MAP_SIDE_MAX, PICTURE_CELLS_MAX, PICTURE_REUSE, PICTURES_MAX};
use crate::status::StageStatus;

/// Failures named in the detail of a version.
const FAILURES_SHOWN: usize = 100;
/// Sources and targets named for one shard.
const PEERS_NAMED: usize = 3;

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
    stages: Vec<StageStatus>,
}

/// A version as it was a moment ago.
pub(crate) struct Picture {
    sample: Sample,
    states: States,
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

/// One version: verdict, availability, failures.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct DatasetDetail {
    #[serde(flatten)]
    dataset: DatasetItem,
    /// All (node, shard) pairs that were looked at, by state.
    pairs: Counts,
    /// Only every n-th shard was looked at; 1 is all of them.
    sampled_every: u32,
    /// How many shards have how many verified copies.
    availability: Vec<AvailabilityBin>,
    /// Read from the origin for it since this coordinator began.
    origin_bytes: u64,
    /// What moves now.
    transfers_from_origin: u32,
    transfers_from_peers: u32,
    /// Shards in doubt, being read again by other nodes.
    shards_disputed: u32,
    /// The first failures.
    failures: Page<FailureItem>,
    /// Its stages.
    stages: Vec<StageStatus>,
}

/// Shards with so many verified copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct AvailabilityBin {
    copies_from: u32,
    copies_to: u32,
    shards: u32,
}

/// Which part of the map, and how finely.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct MapQuery {
    /// Rows at most.
    #[param(minimum = 1, maximum = 512)]
    pub(crate) rows: Option<u32>,
    /// Columns at most.
    #[param(minimum = 1, maximum = 512)]
    pub(crate) columns: Option<u32>,
    /// The first node, by its place in the order of names.
    #[param(maximum = 1_000_000_000)]
    pub(crate) first_node: Option<u32>,
    /// How many nodes from there on.
    #[param(minimum = 1, maximum = 1_000_000_000)]
    pub(crate) nodes: Option<u32>,
    /// The first shard, by number.
    #[param(maximum = 4_294_967_295_i64)]
    pub(crate) first_shard: Option<u32>,
    /// How many shards from there on.
    #[param(minimum = 1, maximum = 4_294_967_295_i64)]
    pub(crate) shards: Option<u32>,
}

impl MapQuery {
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        let side = |v: Option<u32>| v.is_some_and(|v| v == 0 || v > MAP_SIDE_MAX);
        for (field, value) in [("rows", self.rows), ("columns", self.columns)] {
            if side(value) {
                return Err(usage(field, format!("must be between 1 and {MAP_SIDE_MAX}")));
            }
        }
        for (field, value) in [("first_node", self.first_node), ("nodes", self.nodes)] {
            if value.is_some_and(|v| v > LIST_OFFSET_MAX) {
                return Err(usage(field, format!("must be at most {LIST_OFFSET_MAX}")));
            }
        }
        for (field, value) in [("nodes", self.nodes), ("shards", self.shards)] {
            if value == Some(0) {
                return Err(usage(field, "must be at least 1".into()));
            }
        }
        Ok(())
    }
}

/// Nodes by shards.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Map {
    dataset: String,
    /// Nodes that have or shall have something of it.
    nodes_total: u32,
    shards_total: u32,
    /// The part that is shown.
    first_node: u32,
    nodes: u32,
    first_shard: u32,
    shards: u32,
    /// One row shows so many nodes (fewer in the last).
    nodes_per_row: u32,
    /// One column shows so many shards (fewer in the last).
    shards_per_column: u32,
    /// Only every n-th shard was looked at; 1 is all of them.
    sampled_every: u32,
    /// Keys of the first shard of each column.
    columns: Vec<String>,
    rows: Vec<MapRow>,
    /// All pairs that are shown.
    totals: Counts,
}

/// Some nodes (or one) in the map.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct MapRow {
    /// The node, or the first and the last.
    label: String,
    nodes: u32,
    /// Of those, given up for now.
    down: u32,
    /// Two characters for each cell. The letter: `b` something is bad; `o` all ready; `r` something is being received;
    /// `v` being verified; `q` queued; `m` missing (beside what is ready). The digit: tenths that are ready, rounded
    /// down, 9 for all.
    cells: String,
    counts: Counts,
}

/// A shard.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ShardItem {
    shard: u32,
    key: String,
    bytes: u64,
    /// The most telling state that it is in anywhere.
    state: &'static str,
    /// Verified copies.
    copies: u32,
    /// Nodes that have or shall have it.
    wanted: u32,
    /// `copies` of `wanted`, never 100 before all.
    percent: u64,
    /// Nodes by the state that it is in there.
    nodes: Counts,
    /// The first nodes that receive it now, and from whom.
    targets: Vec<String>,
    sources: Vec<String>,
    /// The origin's own checksum, empty where it has none.
    origin_checksum: String,
}

/// In which order shards come.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ShardOrder {
    /// Fewest verified copies first.
    #[default]
    Rarest,
    /// As in the manifest.
    Key,
    /// Largest first.
    Size,
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
            stages: stages.rev().filter_map(|(&id, s)| state.stage_status(now, id, s)).take(20).collect(),
            holdings,
        })
    }

    fn work_out(self) -> Picture {
        let pairs = self.names.len() as u64 * u64::from(self.holdings.layout.shards());
        let step = u32::try_from(pairs.div_ceil(PICTURE_CELLS_MAX).max(1)).unwrap_or(u32::MAX);
        Picture { states: self.holdings.states(step), step, sample: self }
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
    pub(crate) fn detail(&self) -> DatasetDetail {
        let mut pairs = [0; 6];
        for i in 0..self.states.shards().len() {
            add(&mut pairs, self.states.count(i, 0..usize::MAX));
        }
        let from_origin = self.sample.transfers.iter().filter(|t| t.is_from_origin()).count();
        let failed = self.sample.holdings.failed.len();
        DatasetDetail {
            dataset: self.sample.dataset.clone(),
            pairs: pairs.into(),
            sampled_every: self.step,
            availability: self.availability(),
            origin_bytes: self.sample.holdings.origin_bytes,
            transfers_from_origin: from_origin as u32,
            transfers_from_peers: (self.sample.transfers.len() - from_origin) as u32,
            shards_disputed: self.sample.holdings.disputed.len() as u32,
            failures: Page {
                total: failed as u64,
                matched: failed as u64,
                offset: 0,
                items: self.sample.failures.clone(),
            },
            stages: self.sample.stages.clone(),
        }
    }

    fn availability(&self) -> Vec<AvailabilityBin> {
        let mut bins = bins(self.states.members() as u32);
        for i in 0..self.states.shards().len() {
            let copies = self.states.count(i, 0..usize::MAX)[ShardState::Ready as usize];
            if let Some(bin) = bins.iter_mut().find(|b| (b.copies_from..=b.copies_to).contains(&copies)) {
                bin.shards += 1;
            }
        }
        bins
    }

    pub(crate) fn map(&self, query: &MapQuery) -> Map {
        let layout = &self.sample.holdings.layout;
        let members = window(query.first_node, query.nodes, self.sample.names.len());
        let shards = window(query.first_shard, query.shards, layout.shards() as usize);
        let looked_at = |at: usize| at.div_ceil(self.step as usize);
        let indices = looked_at(shards.start)..looked_at(shards.end);
        let (rows, columns) = (query.rows.unwrap_or(64) as usize, query.columns.unwrap_or(128) as usize);
        let grid = self.states.grid(members.clone(), indices.clone(), rows, columns);
        let key = |i: usize| self.key(self.states.shards()[i]);
        let mut totals = [0; 6];
        let rows = (0..grid.rows).map(|row| {
            let first = members.start + row * grid.members_per_row;
            let of_row = first..(first + grid.members_per_row).min(members.end);
            let cells = &grid.cells[row * grid.columns..(row + 1) * grid.columns];
            let mut counts = [0; 6];
            cells.iter().for_each(|&c| add(&mut counts, c));
            add(&mut totals, counts);
            self.map_row(of_row, cells, counts)
        });
        let rows = rows.collect();
        Map {
            dataset: self.sample.dataset.dataset.clone(),
            nodes_total: self.sample.names.len() as u32,
            shards_total: layout.shards(),
            first_node: members.start as u32,
            nodes: members.len() as u32,
            first_shard: shards.start as u32,
            shards: shards.len() as u32,
            nodes_per_row: grid.members_per_row as u32,
            shards_per_column: grid.shards_per_column as u32 * self.step,
            sampled_every: self.step,
            columns: (0..grid.columns).map(|c| key(indices.start + c * grid.shards_per_column)).collect(),
            rows,
            totals: totals.into(),
        }
    }

    fn map_row(&self, members: Range<usize>, cells: &[StateCounts], counts: StateCounts) -> MapRow {
        let names = &self.sample.names[members.clone()];
        let label = match names {
            [only] => only.clone(),
            [first, .., last] => format!("{first} … {last}"),
            [] => String::new(),
        };
        MapRow {
            label,
            nodes: names.len() as u32,
            down: self.sample.down[members].iter().filter(|&&d| d).count() as u32,
            cells: cells.iter().flat_map(|c| cell(*c)).collect(),
            counts: counts.into(),
        }
    }

    fn key(&self, shard: u32) -> String {
        self.sample.manifest.shards().get(shard as usize).map(|s| s.key.to_string()).unwrap_or_default()
    }

    /// Shards, as far as they were looked at.
    pub(crate) fn shards(&self, paging: &Paging, order: ShardOrder) -> Page<ShardItem> {
        let manifest = &self.sample.manifest;
        let states = &self.states;
        let mut matched: Vec<(usize, StateCounts)> = Vec::new();
        for (i, &shard) in states.shards().iter().enumerate() {
            if manifest.shards().get(shard as usize).is_none_or(|s| !paging.names(s.key.as_str())) {
                continue;
            }
            let counts = states.count(i, 0..usize::MAX);
            let somewhere = ShardState::ALL.iter().any(|&s| counts[s as usize] > 0 && paging.in_state(s.as_str()));
            if somewhere || (states.members() == 0 && paging.in_state("missing")) {
                matched.push((i, counts));
            }
        }
        match order {
            ShardOrder::Key => {}
            ShardOrder::Rarest => matched.sort_by_key(|(i, c)| (complete(c), c[ShardState::Ready as usize], *i)),
            ShardOrder::Size => {
                let len = |i: usize| self.sample.holdings.layout.shard_len(states.shards()[i]);
                matched.sort_by_key(|(i, _)| (std::cmp::Reverse(len(*i)), *i));
            }
        }
        paging.page(states.shards().len(), matched, |(i, counts)| self.shard_item(i, counts))
    }

    fn shard_item(&self, i: usize, counts: StateCounts) -> ShardItem {
        let shard = self.states.shards()[i];
        let h = &self.sample.holdings;
        let pieces = h.layout.shard_pieces(shard);
        let wanted: u32 = counts[1..].iter().sum();
        let copies = counts[ShardState::Ready as usize];
        // Transfers of the copy and their words are in the same order, turned round.
        let moving = h.transfers.iter().rev().zip(&self.sample.transfers);
        let moving: Vec<_> = moving
            .filter(|(t, _)| t.pieces.start < pieces.end && pieces.start < t.pieces.end)
            .map(|(_, w)| w)
            .collect();
        let few = |of: fn(&TransferItem) -> &str| {
            let mut names: Vec<String> = moving.iter().map(|&t| of(t).to_owned()).collect();
            names.sort_unstable();
            names.dedup();
            names.truncate(PEERS_NAMED);
            names
        };
        let entry = self.sample.manifest.shards().get(shard as usize);
        ShardItem {
            shard,
            key: self.key(shard),
            bytes: h.layout.shard_len(shard),
            state: telling(&counts),
            copies,
            wanted,
            percent: if wanted == 0 { 0 } else { percent(copies.into(), wanted.into()) },
            nodes: counts.into(),
            targets: few(TransferItem::target),
            sources: few(TransferItem::source),
            origin_checksum: entry.and_then(|s| s.checksum.as_ref()).map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// What moves now, the oldest first.
    pub(crate) fn transfers(&self, paging: &Paging) -> Page<TransferItem> {
        let all = &self.sample.transfers;
        let mut matched: Vec<&TransferItem> = all.iter().filter(|t| t.matches(paging)).collect();
        matched.sort_by(|a, b| b.age().total_cmp(&a.age()));
        paging.page(all.len(), matched, Clone::clone)
    }
}

/// No node still waits for it.
fn complete(counts: &StateCounts) -> bool {
    let [_, queued, receiving, verifying, ready, bad] = *counts;
    queued + receiving + verifying + bad == 0 && ready > 0
}

/// The most telling state of some pairs.
fn telling(counts: &StateCounts) -> &'static str {
    let order = [ShardState::Bad, ShardState::Receiving, ShardState::Verifying, ShardState::Queued, ShardState::Ready];
    order.into_iter().find(|&s| counts[s as usize] > 0).unwrap_or(ShardState::Missing).as_str()
}

/// Two characters for one cell; see [`MapRow::cells`].
fn cell(counts: StateCounts) -> [char; 2] {
    let [_, queued, receiving, verifying, ready, bad] = counts;
    let all: u32 = counts.iter().sum();
    let letter = match () {
        () if bad > 0 => 'b',
        () if ready == all && all > 0 => 'o',
        () if receiving > 0 => 'r',
        () if verifying > 0 => 'v',
        () if queued > 0 => 'q',
        () => 'm',
    };
    let tenths = if ready == all { 9 } else { (u64::from(ready) * 10 / u64::from(all.max(1))).min(8) };
    [letter, char::from_digit(tenths as u32, 10).unwrap_or('0')]
}

fn window(first: Option<u32>, count: Option<u32>, all: usize) -> Range<usize> {
    let first = (first.unwrap_or(0) as usize).min(all);
    first..first.saturating_add(count.map_or(all, |c| c as usize)).min(all)
}

/// One bin per number of copies while they are few; growing ones between none and all otherwise.
fn bins(members: u32) -> Vec<AvailabilityBin> {
    let bin = |copies_from, copies_to| AvailabilityBin { copies_from, copies_to, shards: 0 };
    if members <= 16 {
        return (0..=members).map(|n| bin(n, n)).collect();
    }
    let mut out = vec![bin(0, 0)];
    let (mut from, mut width) = (1, 1);
    while from < members {
        let to = (from + width - 1).min(members - 1);
        out.push(bin(from, to));
        from = to + 1;
        width *= 2;
    }
    out.push(bin(members, members));
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_tells_the_worst_and_how_much_is_ready() {
        let text = |c: StateCounts| cell(c).iter().collect::<String>();
        assert_eq!(text([0, 0, 0, 0, 5, 0]), "o9");
        assert_eq!(text([0, 0, 0, 0, 5, 1]), "b8");
        assert_eq!(text([0, 9, 0, 0, 1, 0]), "q1");
        assert_eq!(text([0, 1, 1, 1, 97, 0]), "r8", "never all before all");
        assert_eq!(text([0, 1, 0, 1, 0, 0]), "v0");
        assert_eq!(text([3, 0, 0, 0, 1, 0]), "m2");
        assert_eq!(text([3, 0, 0, 0, 0, 0]), "m0");
    }

    #[test]
    fn every_number_of_copies_has_one_bin() {
        for members in [0, 1, 3, 16, 17, 64, 1000, 4096] {
            let bins = bins(members);
            for copies in 0..=members {
                let holds = |b: &&AvailabilityBin| (b.copies_from..=b.copies_to).contains(&copies);
                assert_eq!(bins.iter().filter(holds).count(), 1, "{copies} of {members}: {bins:?}");
            }
            assert!(bins.len() <= 20);
        }
    }

    #[test]
    fn windows_stay_inside() {
        assert_eq!(window(None, None, 7), 0..7);
        assert_eq!(window(Some(5), Some(9), 7), 5..7);
        assert_eq!(window(Some(9), Some(u32::MAX), 7), 7..7);
    }
}
