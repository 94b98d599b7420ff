//! Readers: what they will read next, in order, and who still needs what. `room` decides what follows from it.
//!
//! Everything here is in placement groups, because extents do not divide them; a group is mostly one shard. Goals: the
//! next shards are on a reader's node before it asks for them; a byte that some reader still needs stays on some node,
//! so that it leaves the origin once; nothing is kept that nobody needs when room is needed.

mod moves;
mod room;
mod share;

pub(crate) use moves::Lack;
pub(crate) use share::NodeRoom;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use millstream_types::{DatasetId, NodeId, RunSet, ShardNo, Time};

use crate::Core;
use crate::bits::Bits;
use crate::catalog::{Dataset, ExtentNo};
use crate::event::NodeState;
use crate::limits::{AHEAD_GROUPS_MAX, GATHER_US, READERS_MAX, WORD_FOR_US};

/// Index of a placement group.
pub(crate) type Group = u32;

/// One reader: a loader on a node, for as long as its connection lives.
#[derive(Debug, Default)]
struct Reader {
    /// Groups in the order of their first upcoming shard; those not in `left` any more are over.
    order: VecDeque<Group>,
    upcoming: RunSet,
    /// Upcoming shards by group.
    left: BTreeMap<Group, u32>,
    /// How many shards it reads at a time.
    open: u32,
    /// There is room for those, beside what readers before it read at a time.
    seated: bool,
}

/// What the origin said of a group when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Asked(Time),
    Holds(Time),
    Lacks(Time),
}

/// All readers of a version.
#[derive(Debug, Default)]
pub(crate) struct Window {
    readers: BTreeMap<(NodeId, u64), Reader>,
    /// Bytes of a node's room that are the version's share.
    rooms: BTreeMap<NodeId, u64>,
    /// Readers that still need a group, by group.
    need: Vec<u32>,
    words: BTreeMap<Group, Word>,
    /// Groups that a node would not drop, because something there uses them, and since when.
    kept: BTreeMap<(NodeId, Group), Time>,
}

/// What a reader says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReaderReport {
    /// The reader's number on its node.
    pub reader: u64,
    /// What it announced before is void.
    pub restart: bool,
    /// Shards that it will read after those announced before, in that order.
    pub upcoming: Vec<ShardNo>,
    /// Shards that it has read.
    pub finished: Vec<ShardNo>,
    /// Bytes that the version may take on the node.
    pub room_bytes: u64,
    /// Bytes that other versions have there.
    pub others: Vec<(DatasetId, u64)>,
    /// How many shards it reads at a time; 0 for no news.
    pub open: u32,
}

impl Window {
    fn forget(&mut self, key: (NodeId, u64)) {
        for group in self.readers.remove(&key).map(|r| r.left).unwrap_or_default().into_keys() {
            self.need[group as usize] -= 1;
        }
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.rooms.keys().copied().collect()
    }

    /// Readers of a node that have something left to read, by number.
    fn readers_on(&self, node: NodeId) -> impl Iterator<Item = (u64, &Reader)> {
        let readers = self.readers.range((node, 0)..=(node, u64::MAX));
        readers.map(|(&(_, number), reader)| (number, reader)).filter(|(_, reader)| !reader.left.is_empty())
    }

    fn seated(&self, node: NodeId) -> impl Iterator<Item = &Reader> {
        self.readers_on(node).map(|(_, reader)| reader).filter(|reader| reader.seated)
    }

    /// Readers of a node for which there is no room yet.
    fn waiting_on(&self, node: NodeId) -> Vec<u64> {
        self.readers_on(node).filter(|(_, reader)| !reader.seated).map(|(number, _)| number).collect()
    }

    /// What the readers of a node need, soonest first: each reader's next, each reader's second, and so on.
    fn sequence(&self, node: NodeId) -> Vec<Group> {
        let mut heads: Vec<_> = self.seated(node).map(Reader::ahead).collect();
        let (mut out, mut seen) = (Vec::new(), Bits::default());
        while out.len() < AHEAD_GROUPS_MAX {
            let mut any = false;
            for head in &mut heads {
                if let Some(group) = head.next() {
                    any = true;
                    if seen.set(group) {
                        out.push(group);
                    }
                }
            }
            if !any {
                break;
            }
        }
        out
    }

    /// What the readers of a node are reading now: the first of their orders.
    pub(crate) fn in_use(&self, node: NodeId) -> BTreeSet<Group> {
        self.seated(node).flat_map(Reader::open_groups).collect()
    }

    /// Does a reader on the node still need it?
    fn needed_on(&self, node: NodeId, group: Group) -> bool {
        self.readers.range((node, 0)..=(node, u64::MAX)).any(|(_, r)| r.left.contains_key(&group))
    }

    /// What the origin said of a group lately.
    fn word(&self, now: Time, group: Group) -> Option<Word> {
        let word = self.words.get(&group).copied()?;
        let (Word::Asked(since) | Word::Holds(since) | Word::Lacks(since)) = word;
        (now.since(since) < WORD_FOR_US).then_some(word)
    }

    /// How many groups the first of all readers has to go before it needs each group.
    fn distances(&self) -> BTreeMap<Group, usize> {
        let mut out = BTreeMap::new();
        for reader in self.readers.values() {
            for (at, group) in reader.ahead().enumerate() {
                let nearest = out.entry(group).or_insert(at);
                *nearest = at.min(*nearest);
            }
        }
        out
    }
}

impl Core {
    pub(crate) fn reader_report(&mut self, now: Time, node: NodeId, dataset: DatasetId, report: &ReaderReport) {
        let up = self.nodes.get(node).is_some_and(|n| n.seen && n.state != NodeState::Down);
        let taken = up && self.with(dataset, |core, ds| core.take_report(ds, now, node, report)).unwrap_or(false);
        if !taken {
            self.counters.ignored += 1;
            return;
        }
        self.take_room(node, dataset, report);
        self.readers_changed(now, node, dataset);
        if self.demanding.insert(dataset) {
            self.rank();
        }
        self.serve(now, node);
    }

    /// Seats them anew, and brings what follows.
    fn readers_changed(&mut self, now: Time, node: NodeId, dataset: DatasetId) {
        self.share_room(node, dataset);
        self.with(dataset, |core, ds| core.refill(ds, now, node));
        self.refill_beside(now, dataset, node);
    }

    fn take_report(&mut self, ds: &mut Dataset, now: Time, node: NodeId, report: &ReaderReport) -> bool {
        self.cut(ds);
        let mut window = ds.window.take().unwrap_or_default();
        window.need.resize(ds.groups.len(), 0);
        let key = (node, report.reader);
        if report.restart {
            window.forget(key);
        }
        if window.readers.is_empty() {
            self.gather_until.get_or_insert(now + GATHER_US);
        }
        let known = window.readers.contains_key(&key) || window.readers.len() < READERS_MAX;
        if known {
            let reader = window.readers.entry(key).or_default();
            if report.open > 0 {
                reader.open = report.open;
            }
            for &shard in report.upcoming.iter().filter(|&&s| s < ds.layout.shards()) {
                if !reader.upcoming.contains(shard) {
                    reader.upcoming.insert(shard);
                    let group = ds.group_of(shard);
                    let left = reader.left.entry(group).or_insert(0);
                    *left += 1;
                    if *left == 1 {
                        reader.order.push_back(group);
                        window.need[group as usize] += 1;
                    }
                }
            }
            for &shard in &report.finished {
                reader.finish(ds, shard, &mut window.need);
            }
        }
        ds.window = Some(window);
        known
    }

    pub(crate) fn reader_gone(&mut self, now: Time, node: NodeId, dataset: DatasetId, reader: u64) {
        self.with(dataset, |core, ds| {
            if let Some(window) = &mut ds.window {
                window.forget((node, reader));
            }
            core.refill_all(ds, now);
        });
        self.readers_changed(now, node, dataset);
        self.serve_all(now);
    }

    /// A node is given up, and its readers with it. Should it come back, they announce themselves again.
    pub(crate) fn readers_lost(&mut self, ds: &mut Dataset, node: NodeId) {
        if let Some(window) = &mut ds.window {
            let lost: Vec<_> = window.readers.range((node, 0)..=(node, u64::MAX)).map(|(key, _)| *key).collect();
            for key in lost {
                window.forget(key);
            }
            window.rooms.remove(&node);
            window.kept.retain(|(n, _), _| *n != node);
        }
    }
}

impl Core {
    /// A reader waits for some of these: what it announced comes next, within its room.
    pub(crate) fn hurry(&mut self, now: Time, node: NodeId, dataset: DatasetId, shards: &RunSet) {
        self.with(dataset, |_, ds| ds.hurry(node, shards));
        self.readers_changed(now, node, dataset);
    }
}

impl Dataset {
    fn hurry(&mut self, node: NodeId, shards: &RunSet) {
        let announced = self.announced(node);
        let groups: Vec<Group> = shards.iter().filter(|&s| announced.contains(s)).map(|s| self.group_of(s)).collect();
        let Some(window) = &mut self.window else { return };
        for group in groups.into_iter().rev() {
            // Who asks is not said. Whoever reads it now goes on reading the same; else somebody has left its order.
            let read = window.readers_on(node).any(|(_, r)| r.open_groups().any(|g| g == group));
            for (_, reader) in window.readers.range_mut((node, 0)..=(node, u64::MAX)) {
                let asks =
                    if read { reader.open_groups().any(|g| g == group) } else { reader.left.contains_key(&group) };
                if asks {
                    reader.order.retain(|&g| g != group);
                    reader.order.push_front(group);
                }
            }
        }
    }
}

impl Reader {
    /// What it has not read, in its order.
    fn ahead(&self) -> impl Iterator<Item = Group> + '_ {
        self.order.iter().copied().filter(|g| self.left.contains_key(g))
    }

    /// What it reads now.
    fn open_groups(&self) -> impl Iterator<Item = Group> + '_ {
        self.ahead().take(self.open.max(1) as usize)
    }

    fn finish(&mut self, ds: &Dataset, shard: ShardNo, need: &mut [u32]) {
        if shard >= ds.layout.shards() || !self.upcoming.contains(shard) {
            return;
        }
        self.upcoming.remove_range(shard..shard + 1);
        let group = ds.group_of(shard);
        if let Some(left) = self.left.get_mut(&group) {
            *left -= 1;
            if *left == 0 {
                self.left.remove(&group);
                need[group as usize] -= 1;
            }
        }
        while self.order.front().is_some_and(|g| !self.left.contains_key(g)) {
            self.order.pop_front();
        }
    }
}

impl Dataset {
    pub(crate) fn group_of(&self, shard: ShardNo) -> Group {
        self.groups.partition_point(|&g| g <= shard) as Group - 1
    }

    pub(crate) fn group_shards(&self, group: Group) -> std::ops::Range<ShardNo> {
        let at = group as usize;
        self.groups[at]..self.groups.get(at + 1).copied().unwrap_or(self.layout.shards())
    }

    pub(crate) fn group_pieces(&self, group: Group) -> millstream_types::PieceRange {
        let shards = self.group_shards(group);
        self.layout.shard_pieces(shards.start).start..self.layout.shard_pieces(shards.end - 1).end
    }

    /// Shards of the groups that readers on a node still need.
    pub(crate) fn announced(&self, node: NodeId) -> RunSet {
        let Some(window) = &self.window else {
            return RunSet::new();
        };
        let readers = window.readers.range((node, 0)..=(node, u64::MAX));
        RunSet::from_runs(readers.flat_map(|(_, r)| r.left.keys()).map(|&g| self.group_shards(g)))
    }

    /// Readers on the node announced the extent, and read something else now.
    pub(crate) fn is_ahead(&self, node: NodeId, e: ExtentNo, reading: &BTreeSet<Group>) -> bool {
        let group = self.group_of(self.layout.shard_of(self.extents[e as usize].pieces.start));
        !reading.contains(&group) && self.window.as_ref().is_some_and(|w| w.needed_on(node, group))
    }

    /// What a node asked for itself, soonest needed first.
    pub(crate) fn demand_order(&self, node: NodeId) -> Vec<std::ops::Range<ShardNo>> {
        let Some(replica) = self.replica(node) else {
            return Vec::new();
        };
        let soon = self.window.as_ref().map(|w| w.sequence(node)).unwrap_or_default();
        let soon = soon.into_iter().map(|g| self.group_shards(g)).filter(|s| replica.demanded.contains(s.start));
        soon.chain(replica.demanded.runs().iter().cloned()).collect()
    }
}
