//! What is known of each version: extents, who holds them, who still has to get them.
//!
//! Two views of the same facts are kept in step: per extent (which nodes) for planning trees, and per node (which
//! extents) for serving one node. All changes go through the methods here.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_types::{DatasetId, Layout, NodeId, PieceNo, PieceRange, RunSet, ShardNo, StageId, Time};

use crate::bits::{Bits, ones};
use crate::event::{DatasetFacts, ShardFailure};
use crate::extent;
use crate::flight::FlightNo;
use crate::limits::CANDIDATES_MAX;
use crate::sums::Sums;

/// Index of an extent in [`Dataset::extents`].
pub(crate) type ExtentNo = u32;

/// An extent and where it is.
#[derive(Debug, Default)]
pub(crate) struct Extent {
    pub(crate) pieces: PieceRange,
    pub(crate) bytes: u64,
    /// Nodes that have all of it.
    pub(crate) have: Bits,
    /// Nodes that need it, do not have it and are not getting it.
    pub(crate) todo: Bits,
    pub(crate) flights: Vec<FlightNo>,
    /// The flight that reads it from the origin.
    pub(crate) lease: Option<FlightNo>,
    /// Given up: its shard failed.
    pub(crate) failed: bool,
    /// Origin reads that failed in a row.
    pub(crate) attempts: u8,
    /// No origin read before.
    pub(crate) not_before: Time,
    /// Who read it from the origin last.
    pub(crate) last_root: Option<NodeId>,
    /// Who has the largest part of it, as far as known: should be the next to read the rest.
    pub(crate) hint: Option<(NodeId, u32)>,
}

/// Shards wanted on a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Wanted {
    /// None.
    #[default]
    Nothing,
    /// The whole version.
    All,
    /// These.
    Some(RunSet),
}

impl Wanted {
    pub(crate) fn wants(&self, shard: ShardNo) -> bool {
        match self {
            Wanted::Nothing => false,
            Wanted::All => true,
            Wanted::Some(set) => set.contains(shard),
        }
    }

    pub(crate) fn count(&self, shards: u32) -> u32 {
        match self {
            Wanted::Nothing => 0,
            Wanted::All => shards,
            Wanted::Some(set) => set.len() as u32,
        }
    }

    /// Bytes of what is wanted.
    pub(crate) fn bytes(&self, layout: &Layout) -> u64 {
        let bytes = |r: &std::ops::Range<u32>| {
            layout.range_bytes(layout.shard_pieces(r.start).start..layout.shard_pieces(r.end - 1).end)
        };
        match self {
            Wanted::Nothing => 0,
            Wanted::All => layout.bytes(),
            Wanted::Some(set) => set.runs().iter().map(bytes).sum(),
        }
    }

    /// Wants these, too.
    pub(crate) fn add(&mut self, shards: RunSet) {
        match self {
            Wanted::All => {}
            Wanted::Nothing if shards.is_empty() => {}
            Wanted::Nothing => *self = Wanted::Some(shards),
            Wanted::Some(set) => set.union_with(&shards),
        }
    }

    /// How many of `set` are wanted.
    pub(crate) fn overlap(&self, set: &RunSet) -> u32 {
        match self {
            Wanted::Nothing => 0,
            Wanted::All => set.len() as u32,
            Wanted::Some(wanted) => set.runs().iter().map(|r| wanted.count_range(r.clone())).sum(),
        }
    }
}

/// A version on a node.
#[derive(Debug, Default)]
pub(crate) struct Replica {
    /// `Attach` was sent in this session.
    pub(crate) attached: bool,
    /// And answered.
    pub(crate) inventoried: bool,
    /// Origin reads wait for the answer until then.
    pub(crate) inventory_due: Option<Time>,
    /// `Attach`es not answered yet, and shards discarded meanwhile: the answers may still name them.
    pub(crate) asked: u32,
    pub(crate) discarded: Vec<ShardNo>,
    /// Outstanding orders may have been lost with a session: send them again after the inventory.
    pub(crate) resend: bool,
    /// The node cannot or shall not have it; why.
    pub(crate) refused: Option<String>,
    /// Shards that it was told to drop, and has not answered.
    pub(crate) dropping: RunSet,
    /// What stages want here.
    pub(crate) staged: Wanted,
    /// What the node asked for itself: whole placement groups.
    pub(crate) demanded: RunSet,
    /// Both together.
    pub(crate) wanted: Wanted,
    pub(crate) wanted_bytes: u64,
    /// Extents to get.
    pub(crate) todo: Bits,
    /// Bytes of complete extents, and of those that are wanted.
    pub(crate) have_bytes: u64,
    pub(crate) ready_bytes: u64,
    pub(crate) sealed: RunSet,
    /// It was told to drop the version: what it has is no copy to count on.
    pub(crate) leaving: bool,
    /// Sealed as the node says, but not believed yet.
    pub(crate) claimed: RunSet,
    /// It lacks much more than the typical node.
    pub(crate) late: bool,
    /// Where the next search for work begins, so that nodes do not all pick the same.
    pub(crate) cursor: u32,
}

/// A version.
#[derive(Debug)]
pub(crate) struct Dataset {
    pub(crate) id: DatasetId,
    pub(crate) layout: Arc<Layout>,
    pub(crate) sums: Sums,
    pub(crate) groups: Vec<ShardNo>,
    pub(crate) extents: Vec<Extent>,
    /// Extents by first piece.
    order: Vec<ExtentNo>,
    /// Extent length that was used to cut.
    pub(crate) target: u64,
    /// Extents that can be had from a node, or that one is reading from the origin.
    pub(crate) seeded: Bits,
    /// All extents before this word of `seeded` are seeded or failed.
    low: usize,
    replicas: Vec<Option<Box<Replica>>>,
    /// Readers, where there are any.
    pub(crate) window: Option<crate::window::Window>,
    pub(crate) stages: Vec<StageId>,
    pub(crate) priority: u32,
    pub(crate) failed: BTreeMap<ShardNo, ShardFailure>,
    /// Flights of this version.
    pub(crate) flying: u32,
    /// Typical microseconds from order to completion, from peers and from the origin.
    pub(crate) typical_peer_us: f64,
    pub(crate) typical_origin_us: f64,
    /// Inventories that origin reads wait for.
    pub(crate) pending: u32,
    /// After a restart: all known nodes are back, or were waited for.
    pub(crate) recovered: bool,
    pub(crate) direct: bool,
    pub(crate) origin_bytes: u64,
}

impl Dataset {
    pub(crate) fn new(id: DatasetId, facts: DatasetFacts) -> Dataset {
        let layout = facts.layout;
        let mut sums = Sums::new(&layout, facts.shard_checksums);
        for (first, crcs) in &facts.known {
            sums.record(&layout, *first, crcs, false);
        }
        for (first, crcs) in &facts.learned {
            sums.record(&layout, *first, crcs, true);
        }
        Dataset {
            id,
            sums,
            groups: extent::groups(&layout),
            layout,
            extents: Vec::new(),
            order: Vec::new(),
            target: 0,
            seeded: Bits::default(),
            low: 0,
            replicas: Vec::new(),
            window: None,
            stages: Vec::new(),
            priority: 0,
            failed: BTreeMap::new(),
            flying: 0,
            typical_peer_us: 0.0,
            typical_origin_us: 0.0,
            pending: 0,
            recovered: false,
            direct: false,
            origin_bytes: 0,
        }
    }

    /// Cuts (anew) into extents of about `target` bytes. Only while nothing flies; holdings must be told again.
    pub(crate) fn cut(&mut self, target: u64) {
        debug_assert_eq!(self.flying, 0);
        self.target = target;
        let ranges = extent::cut(&self.layout, &self.groups, target);
        self.order = (0..ranges.len() as u32).collect();
        self.extents = ranges
            .into_iter()
            .map(|pieces| Extent { bytes: self.layout.range_bytes(pieces.clone()), pieces, ..Extent::default() })
            .collect();
        self.seeded = Bits::default();
        self.low = 0;
        for replica in self.replicas.iter_mut().flatten() {
            replica.todo = Bits::default();
            replica.have_bytes = 0;
            replica.ready_bytes = 0;
        }
    }

    pub(crate) fn replica(&self, node: NodeId) -> Option<&Replica> {
        self.replicas.get(node.0 as usize)?.as_deref()
    }

    pub(crate) fn replica_mut(&mut self, node: NodeId) -> Option<&mut Replica> {
        self.replicas.get_mut(node.0 as usize)?.as_deref_mut()
    }

    /// The replica on a known node, made when new.
    pub(crate) fn replica_entry(&mut self, node: NodeId) -> &mut Replica {
        let at = node.0 as usize;
        if at >= self.replicas.len() {
            self.replicas.resize_with(at + 1, || None);
        }
        self.replicas[at]
            .get_or_insert_with(|| Box::new(Replica { cursor: node.0.wrapping_mul(0x9e37_79b1), ..Replica::default() }))
    }

    /// Nodes with a replica record.
    pub(crate) fn members(&self) -> impl Iterator<Item = (NodeId, &Replica)> {
        self.replicas.iter().enumerate().filter_map(|(i, r)| Some((NodeId(i as u32), r.as_deref()?)))
    }

    /// The extent that a piece is in.
    pub(crate) fn extent_of(&self, piece: PieceNo) -> Option<ExtentNo> {
        let i = self.order.partition_point(|&e| self.extents[e as usize].pieces.start <= piece);
        let e = *self.order.get(i.checked_sub(1)?)?;
        self.extents[e as usize].pieces.contains(&piece).then_some(e)
    }

    /// The extents that overlap a range of pieces, in piece order.
    pub(crate) fn extents_in(&self, pieces: PieceRange) -> Vec<ExtentNo> {
        let from = self.order.partition_point(|&e| self.extents[e as usize].pieces.end <= pieces.start);
        self.order[from..].iter().copied().take_while(|&e| self.extents[e as usize].pieces.start < pieces.end).collect()
    }

    /// Does a stage want the extent on the node?
    pub(crate) fn needs(&self, e: ExtentNo, node: NodeId) -> bool {
        let Some(replica) = self.replica(node) else {
            return false;
        };
        replica.refused.is_none()
            && match &replica.wanted {
                Wanted::Nothing => false,
                Wanted::All => true,
                // Extents do not cross groups, and groups are wanted as a whole.
                Wanted::Some(set) => set.contains(self.layout.shard_of(self.extents[e as usize].pieces.start)),
            }
    }

    /// Sets or clears "to get", in both views, from need, holdings and `flying`.
    pub(crate) fn settle(&mut self, e: ExtentNo, node: NodeId, flying: bool) {
        let extent = &self.extents[e as usize];
        let todo = !flying && !extent.failed && !extent.have.get(node.0) && self.needs(e, node);
        let changed =
            if todo { self.extents[e as usize].todo.set(node.0) } else { self.extents[e as usize].todo.clear(node.0) };
        if changed {
            let replica = self.replica_entry(node);
            if todo {
                replica.todo.set(e);
            } else {
                replica.todo.clear(e);
            }
        }
    }

    /// The node has the extent; true when that is news.
    pub(crate) fn gain(&mut self, e: ExtentNo, node: NodeId) -> bool {
        let extent = &mut self.extents[e as usize];
        if !extent.have.set(node.0) {
            return false;
        }
        let bytes = extent.bytes;
        extent.attempts = 0;
        let needed = self.needs(e, node);
        let replica = self.replica_entry(node);
        replica.have_bytes += bytes;
        replica.ready_bytes += if needed { bytes } else { 0 };
        if replica.todo.clear(e) {
            self.extents[e as usize].todo.clear(node.0);
        }
        self.seed(e);
        true
    }

    /// The node no longer has the extent; true when it had.
    pub(crate) fn lose(&mut self, e: ExtentNo, node: NodeId) -> bool {
        if !self.extents[e as usize].have.clear(node.0) {
            return false;
        }
        let bytes = self.extents[e as usize].bytes;
        let needed = self.needs(e, node);
        let replica = self.replica_entry(node);
        replica.have_bytes -= bytes;
        replica.ready_bytes -= if needed { bytes } else { 0 };
        self.seed(e);
        self.settle(e, node, false);
        true
    }

    /// Are the checksums of all its pieces known? Without them nobody can take it from a peer.
    pub(crate) fn checkable(&self, e: ExtentNo) -> bool {
        self.sums.known().contains_range(self.extents[e as usize].pieces.clone())
    }

    /// Brings `seeded` up to date after holders or the lease changed.
    pub(crate) fn seed(&mut self, e: ExtentNo) {
        let extent = &self.extents[e as usize];
        if extent.lease.is_some() || (!extent.have.is_empty() && self.checkable(e)) {
            self.seeded.set(e);
        } else if self.seeded.clear(e) {
            self.low = self.low.min(e as usize / 64);
        }
    }

    /// Changes what is wanted on a node, and everything that follows from it.
    pub(crate) fn want(&mut self, node: NodeId, wanted: Wanted, flying: &Bits) {
        let bytes = wanted.bytes(&self.layout);
        let replica = self.replica_entry(node);
        replica.wanted = wanted;
        replica.wanted_bytes = bytes;
        self.resettle(node, flying);
    }

    /// Recomputes the node's work and ready bytes from its needs and holdings.
    pub(crate) fn resettle(&mut self, node: NodeId, flying: &Bits) {
        let mut ready = 0;
        for e in 0..self.extents.len() as u32 {
            self.settle(e, node, flying.get(e));
            let extent = &self.extents[e as usize];
            if extent.have.get(node.0) && self.needs(e, node) {
                ready += extent.bytes;
            }
        }
        self.replica_entry(node).ready_bytes = ready;
    }

    /// The next extent for the node that nobody has and nobody reads.
    pub(crate) fn next_fresh(&mut self, node: NodeId, now: Time) -> Option<ExtentNo> {
        let words = self.extents.len().div_ceil(64);
        while self.low < words {
            let full = ones(self.low, !self.seeded.word(self.low))
                .take_while(|&e| (e as usize) < self.extents.len())
                .all(|e| self.extents[e as usize].failed);
            if !full {
                break;
            }
            self.low += 1;
        }
        let todo = &self.replica(node)?.todo;
        (self.low..todo.words())
            .flat_map(|i| ones(i, todo.word(i) & !self.seeded.word(i)))
            .find(|&e| self.extents[e as usize].not_before <= now)
    }

    /// Extents that the node can get from others: the rarest of a few, best first.
    pub(crate) fn catch_up_candidates(&self, node: NodeId, out: &mut Vec<(u32, ExtentNo)>) {
        out.clear();
        let Some(replica) = self.replica(node) else {
            return;
        };
        if replica.todo.is_empty() {
            return;
        }
        let words = replica.todo.words();
        let start = replica.cursor as usize % words.max(1);
        let turned = (start..words).chain(0..start);
        out.extend(
            turned
                .flat_map(|i| ones(i, replica.todo.word(i) & self.seeded.word(i)))
                .map(|e| (self.extents[e as usize].have.count(), e))
                .take(CANDIDATES_MAX),
        );
        out.sort_by_key(|&(holders, _)| holders);
    }

    /// The node opened the version, and all shards that stages want there are sealed, or failed for good.
    pub(crate) fn complete_on(&self, node: NodeId) -> bool {
        let Some(replica) = self.replica(node).filter(|r| r.inventoried) else {
            return false;
        };
        let wanted = replica.staged.count(self.layout.shards());
        let sealed = replica.staged.overlap(&replica.sealed);
        if sealed + self.failed.len() as u32 >= wanted {
            let lost = self.failed.keys().filter(|&&s| replica.staged.wants(s) && !replica.sealed.contains(s));
            return sealed + lost.count() as u32 == wanted;
        }
        false
    }

    /// The node says that it sealed these: that counts once it has them, by what it reported before. (It may have sealed
    /// what it was since told to discard.)
    pub(crate) fn seal(&mut self, node: NodeId, mut shards: RunSet) {
        shards.remove_range(self.layout.shards()..u32::MAX);
        self.replica_entry(node).claimed.union_with(&shards);
        self.settle_claims(node);
    }

    /// Counts claims that hold by now; true when there were any.
    pub(crate) fn settle_claims(&mut self, node: NodeId) -> bool {
        let claimed = match self.replica(node) {
            Some(replica) if !replica.claimed.is_empty() => replica.claimed.clone(),
            _ => return false,
        };
        let has = |&e: &ExtentNo| self.extents[e as usize].have.get(node.0);
        let held = claimed.runs().iter().cloned().flatten();
        let held: Vec<ShardNo> =
            held.filter(|&s| self.extents_in(self.layout.shard_pieces(s)).iter().all(has)).collect();
        let replica = self.replica_entry(node);
        for &shard in &held {
            replica.claimed.remove_range(shard..shard + 1);
            replica.sealed.insert(shard);
        }
        !held.is_empty()
    }

    /// Splits extents so that `shard` shares none with others. Only for extents without flights.
    pub(crate) fn isolate(&mut self, shard: ShardNo) {
        let pieces = self.layout.shard_pieces(shard);
        for at in [pieces.start, pieces.end] {
            if let Some(e) = self.extent_of(at).filter(|&e| self.extents[e as usize].pieces.start < at) {
                self.split(e, at);
            }
        }
    }

    fn split(&mut self, e: ExtentNo, at: PieceNo) {
        let new = self.extents.len() as ExtentNo;
        let layout = Arc::clone(&self.layout);
        let first = &mut self.extents[e as usize];
        debug_assert!(first.flights.is_empty() && first.lease.is_none());
        let second = Extent {
            pieces: at..first.pieces.end,
            bytes: layout.range_bytes(at..first.pieces.end),
            have: first.have.clone(),
            todo: first.todo.clone(),
            failed: first.failed,
            last_root: first.last_root,
            ..Extent::default()
        };
        first.pieces.end = at;
        first.bytes -= second.bytes;
        for node in second.todo.iter() {
            if let Some(replica) = self.replicas[node as usize].as_deref_mut() {
                replica.todo.set(new);
            }
        }
        if self.seeded.get(e) {
            self.seeded.set(new);
        } else {
            self.low = self.low.min(new as usize / 64);
        }
        self.extents.push(second);
        let i = self.order.partition_point(|&o| self.extents[o as usize].pieces.start < at);
        self.order.insert(i, new);
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let extents: usize = self
            .extents
            .iter()
            .map(|e| size_of::<Extent>() + e.have.memory_bytes() + e.todo.memory_bytes() + 4 * e.flights.capacity())
            .sum();
        let replicas: usize =
            self.members().map(|(_, r)| size_of::<Replica>() + r.todo.memory_bytes() + 8 * r.sealed.runs().len()).sum();
        extents + replicas + self.replicas.capacity() * 8 + self.sums.memory_bytes()
    }
}
