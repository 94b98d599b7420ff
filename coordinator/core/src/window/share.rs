//! A node's room, when readers there read several versions.
//!
//! Readers sit down in the order in which they came, as long as there is room for all that they have open at a time: a
//! reader that got a part of it would hold what another one lacks, and wait. What is left is shared equally by the
//! versions that are read. A version may have more than its share while nobody lacks it; then others go first that nobody
//! reads there, and after them those that have more than theirs. What stages want on a node is not room of readers.

use std::collections::{BTreeMap, BTreeSet};

use millstream_types::{DatasetId, NodeId, RunSet, Time};

use super::moves::{Lack, Moves};
use super::{Group, ReaderReport, Window};
use crate::Core;
use crate::catalog::{Dataset, Wanted};
use crate::event::Placement;
use crate::stage::StageState;

/// What a node has for readers, by its own last word.
#[derive(Debug, Default)]
pub(crate) struct NodeRoom {
    /// Bytes for all of their versions together.
    bytes: u64,
    versions: BTreeSet<DatasetId>,
}

/// Readers of one version that sit on one node.
#[derive(Default)]
struct Table {
    readers: BTreeSet<u64>,
    open: BTreeSet<Group>,
    bytes: u64,
}

impl Core {
    /// A node said what a version may take there, and what others have.
    pub(super) fn take_room(&mut self, node: NodeId, dataset: DatasetId, report: &ReaderReport) {
        let before = self.nodes.get(node).map(|n| n.room.versions.clone()).unwrap_or_default();
        let named = report.others.iter().map(|(id, _)| *id).chain([dataset]).chain(before);
        // Also those that have nothing there yet: something may be on its way to them.
        let versions: BTreeSet<DatasetId> = named.filter(|&id| self.lends(id, node, id == dataset)).collect();
        let Some(known) = self.nodes.get_mut(node) else { return };
        if versions.contains(&dataset) {
            let others = report.others.iter().filter(|(id, _)| *id != dataset && versions.contains(id));
            let bytes = others.fold(report.room_bytes, |sum, (_, bytes)| sum.saturating_add(*bytes));
            known.room = NodeRoom { bytes, versions };
            return;
        }
        known.room.versions.remove(&dataset);
        if let Some(window) = self.datasets.get_mut(dataset.0 as usize).and_then(|d| d.as_mut()?.window.as_mut()) {
            window.rooms.insert(node, report.room_bytes);
        }
    }

    /// The version is there for readers (`read`: there is one now), and no stage wants any of it.
    fn lends(&self, dataset: DatasetId, node: NodeId, read: bool) -> bool {
        let Some(ds) = self.dataset(dataset) else { return false };
        let staged = ds.replica(node).is_some_and(|r| r.staged.count(ds.layout.shards()) > 0);
        let mut stages = ds.stages.iter().filter_map(|s| self.stages.get(s));
        let window = stages.any(|s| {
            s.placement == Placement::Window && s.state != StageState::Cancelled && s.nodes.binary_search(&node).is_ok()
        });
        // What other nodes' readers need says nothing of what this one asked for by itself.
        !staged && (read || window || ds.window.as_ref().is_some_and(|w| w.rooms.contains_key(&node)))
    }

    /// Seats the readers of a node and shares out what is left: after one of them came, moved or went.
    pub(super) fn share_room(&mut self, node: NodeId, dataset: DatasetId) {
        let (total, versions) = match self.nodes.get(node).map(|n| &n.room) {
            Some(room) if room.versions.contains(&dataset) => (room.bytes, room.versions.clone()),
            // A stage wants it there: its readers have to get on with what that leaves.
            _ => {
                let window = self.dataset(dataset).and_then(|ds| ds.window.as_ref());
                let Some(room) = window.and_then(|w| w.rooms.get(&node).copied()) else { return };
                (room, BTreeSet::from([dataset]))
            }
        };
        let tables = self.seat(node, total, &versions);
        let read: u64 = tables.values().map(|t| t.bytes).sum();
        let spare = total.saturating_sub(read) / (tables.len() as u64).max(1);
        for id in versions {
            let Some(window) = self.datasets.get_mut(id.0 as usize).and_then(|d| d.as_mut()?.window.as_mut()) else {
                continue;
            };
            let table = tables.get(&id);
            window.rooms.insert(node, table.map_or(total, |t| (t.bytes + spare).min(total)));
            for (&(_, number), reader) in window.readers.range_mut((node, 0)..=(node, u64::MAX)) {
                reader.seated = table.is_some_and(|t| t.readers.contains(&number));
            }
        }
    }

    /// The oldest readers first; the very first one has a seat in any case.
    fn seat(&self, node: NodeId, total: u64, versions: &BTreeSet<DatasetId>) -> BTreeMap<DatasetId, Table> {
        let versions =
            versions.iter().filter_map(|&id| self.dataset(id)).filter_map(|ds| Some((ds, ds.window.as_ref()?)));
        let mut readers: Vec<_> =
            versions.flat_map(|(ds, window)| window.readers_on(node).map(move |(number, r)| (number, ds, r))).collect();
        readers.sort_by_key(|(number, ds, _)| (*number, ds.id));
        let (mut tables, mut bytes) = (BTreeMap::<DatasetId, Table>::new(), 0);
        for (number, ds, reader) in readers {
            let first = tables.is_empty();
            let table = tables.entry(ds.id).or_default();
            let more: Vec<Group> = reader.open_groups().filter(|g| !table.open.contains(g)).collect();
            let needed: u64 = more.iter().map(|&g| ds.group_bytes(g)).sum();
            if first || bytes + needed <= total {
                table.readers.insert(number);
                table.open.extend(more);
                table.bytes += needed;
                bytes += needed;
            }
        }
        tables
    }

    /// What the readers of a node have, and what versions other than this one take of it.
    pub(super) fn room_beside(&self, ds: &Dataset, window: &Window, node: NodeId) -> (u64, u64) {
        let own = window.rooms.get(&node).copied().unwrap_or(0);
        let room = self.nodes.get(node).map(|n| &n.room).filter(|room| room.versions.contains(&ds.id));
        room.map_or((own, 0), |room| {
            let others = room.versions.iter().filter(|&&id| id != ds.id).filter_map(|&id| self.dataset(id));
            (room.bytes, others.map(|other| other.taken_on(node)).sum())
        })
    }

    /// The first reader of a node has more open at a time than there is room for: so many bytes, of so many.
    pub(crate) fn too_much_open(&self, ds: &Dataset, node: NodeId) -> Option<(u64, u64)> {
        let window = ds.window.as_ref()?;
        let needed: u64 = window.in_use(node).into_iter().map(|g| ds.group_bytes(g)).sum();
        let (total, _) = self.room_beside(ds, window, node);
        (needed > total).then_some((needed, total))
    }

    /// Those who will read some of these on the node wait for their turn: others have so many bytes open, of so many.
    pub(crate) fn turn_of_others(&self, ds: &Dataset, node: NodeId, shards: &RunSet) -> Option<(u64, u64)> {
        let window = ds.window.as_ref()?;
        let groups: BTreeSet<Group> = shards.iter().map(|s| ds.group_of(s)).collect();
        let mut readers = window.readers_on(node).filter(|(_, r)| groups.iter().any(|g| r.left.contains_key(g)));
        if readers.any(|(_, reader)| reader.seated) {
            return None;
        }
        let room = self.nodes.get(node).map(|n| &n.room).filter(|room| room.versions.contains(&ds.id));
        let versions = room.map_or_else(|| BTreeSet::from([ds.id]), |room| room.versions.clone());
        let open = |ds: &Dataset| {
            let groups = ds.window.as_ref().map(|w| w.in_use(node)).unwrap_or_default();
            groups.into_iter().map(|g| ds.group_bytes(g)).sum::<u64>()
        };
        let (total, _) = self.room_beside(ds, window, node);
        Some((versions.into_iter().filter_map(|id| self.dataset(id)).map(open).sum(), total))
    }

    /// Carries out what [`refill`](Self::refill) could not while it held one version: others make room.
    pub(crate) fn settle_lacks(&mut self, now: Time) {
        for lack in std::mem::take(&mut self.lacks) {
            if !self.clear_beside(now, &lack) {
                // Nothing goes there, now or soon: then what it has itself.
                self.with(lack.dataset, |core, ds| core.clear(ds, now, &lack, lack.bytes, true));
            }
        }
    }

    /// Other versions on the node go: those that nobody reads there, then those that have more than their share.
    fn clear_beside(&mut self, now: Time, lack: &Lack) -> bool {
        let Some(room) = self.nodes.get(lack.node).map(|n| &n.room) else { return false };
        let mut others: Vec<(bool, u64, DatasetId)> = (room.versions.iter())
            .filter(|&&id| id != lack.dataset)
            .filter_map(|&id| self.dataset(id))
            .filter_map(|ds| {
                let read = ds.window.as_ref().is_some_and(|w| w.readers_on(lack.node).next().is_some());
                let share = ds.window.as_ref().filter(|_| read).and_then(|w| w.rooms.get(&lack.node)).copied();
                let over = ds.taken_on(lack.node).saturating_sub(share.unwrap_or(0));
                (over > 0).then_some((read, over, ds.id))
            })
            .collect();
        others.sort_by_key(|&(read, over, id)| (read, std::cmp::Reverse(over), id));
        let (mut lacking, mut soon) = (lack.bytes, false);
        // What is still read there is not read again for this, but where nothing else helps.
        let turns = others.iter().map(|o| (o, !o.0)).chain(others.iter().filter(|o| o.0).map(|o| (o, true)));
        for (&(_, over, id), all) in turns {
            if lacking == 0 || (soon && all) {
                break;
            }
            let goes = self.with(id, |core, ds| core.clear(ds, now, lack, lacking.min(over), all));
            let (bytes, more) = goes.unwrap_or_default();
            lacking = lacking.saturating_sub(bytes);
            soon |= more;
        }
        soon || lacking == 0
    }

    /// Has a version let go of so many bytes on a node: how many do, and whether anything comes of it. `all`: be it to
    /// be read again.
    fn clear(&mut self, ds: &mut Dataset, now: Time, lack: &Lack, bytes: u64, all: bool) -> (u64, bool) {
        let mut window = ds.window.take().unwrap_or_default();
        window.need.resize(ds.groups.len(), 0);
        let shelf = self.shelf(ds, now, &window, lack.node);
        let mut moves = Moves::default();
        let sequence = window.sequence(lack.node);
        let (at, urgent) = if all { (lack.at, lack.urgent) } else { (usize::MAX, false) };
        let soon = self.make_room(ds, now, &window, lack.node, &shelf, bytes, at, urgent, &sequence, &mut moves);
        ds.window = Some(window);
        let goes = shelf.going() + moves.go.iter().map(|&g| ds.group_bytes(g)).sum::<u64>();
        self.carry_moves(ds, now, lack.node, moves);
        (goes, soon)
    }

    /// Room became free on a node, or may: for readers of other versions, too.
    pub(super) fn refill_beside(&mut self, now: Time, dataset: DatasetId, node: NodeId) {
        let room = self.nodes.get(node).map(|n| &n.room).filter(|room| room.versions.contains(&dataset));
        let others: Vec<_> = room.into_iter().flat_map(|r| &r.versions).copied().filter(|&id| id != dataset).collect();
        for id in others {
            self.with(id, |core, ds| core.refill(ds, now, node));
        }
    }
}

impl Dataset {
    /// Bytes of it on a node, on their way there, or being dropped.
    fn taken_on(&self, node: NodeId) -> u64 {
        if self
            .replica(node)
            .is_none_or(|r| r.wanted == Wanted::Nothing && r.sealed.is_empty() && r.dropping.is_empty())
        {
            return 0;
        }
        let groups = 0..self.groups.len() as Group;
        let taken = groups.filter(|&g| self.is_here(node, g) || self.is_coming(node, g) || self.is_going(node, g));
        taken.map(|g| self.group_bytes(g)).sum()
    }
}
