//! Obedient agents: what they do when they are told something, and when pieces arrive.

use std::ops::Range;

use millstream_coordinator_core::event::{Action, Event, Failure, FailureKind, Source};
use millstream_types::{AssignmentId, Crc64, NodeId, PieceNo, RunSet, ShardNo, Time};

use super::{DS, Ev, Order, World};

impl World {
    pub(super) fn accept_verified(&mut self, node: u32, run: Range<u32>) {
        for piece in run {
            if self.nodes[node as usize].unverified.contains(piece) {
                self.nodes[node as usize].unverified.remove_range(piece..piece + 1);
                self.accept(node, piece, false);
            }
        }
    }

    pub(super) fn kill(&mut self, node: u32) {
        let n = &mut self.nodes[node as usize];
        n.alive = false;
        n.up = false;
        n.orders.clear();
        n.asked.clear();
        n.waiting.clear();
        n.unverified = RunSet::new();
        self.later_core(Event::NodeLost { node: NodeId(node) });
        // Those that wait for it notice soon, and turn to their alternates.
        for other in 0..self.setup.nodes {
            self.drop_source(other, node);
        }
    }

    /// `other` learns that `dead` does not answer.
    pub(super) fn drop_source(&mut self, other: u32, dead: u32) {
        let stalled: Vec<PieceNo> =
            self.nodes[other as usize].asked.iter().filter(|&(_, &from)| from == Some(dead)).map(|(&p, _)| p).collect();
        for piece in &stalled {
            self.nodes[other as usize].asked.remove(piece);
        }
        let mut failed = Vec::new();
        for order in &mut self.nodes[other as usize].orders {
            let assignment = &mut order.assignment;
            if assignment.source != Source::Peer(NodeId(dead)) {
                continue;
            }
            assignment.alternates.retain(|a| a.0 != dead);
            if assignment.alternates.is_empty() {
                failed.push(assignment.id);
            } else {
                assignment.source = Source::Peer(assignment.alternates.remove(0));
            }
        }
        if !stalled.is_empty() {
            let failure = Failure::new(FailureKind::Unreachable, Source::Peer(NodeId(dead)), "model".into());
            self.later_core(Event::SourceFailed { node: NodeId(other), dataset: DS, failure });
        }
        for id in failed {
            self.fail(other, id, FailureKind::Unreachable, Source::Peer(NodeId(dead)));
        }
        self.work(other);
    }

    pub(super) fn fail(&mut self, node: u32, id: AssignmentId, kind: FailureKind, source: Source) {
        let n = &mut self.nodes[node as usize];
        let Some(at) = n.orders.iter().position(|o| o.assignment.id == id) else {
            return;
        };
        let order = n.orders.remove(at);
        let missing = RunSet::from_runs(n.have.gaps(order.assignment.pieces.clone()));
        let failure = Failure::new(kind, source, "model".into());
        self.later_core(Event::AssignmentFailed { node: NodeId(node), assignment: id, missing, failure });
    }

    pub(super) fn obey(&mut self, node: u32, action: Action) {
        if !self.nodes[node as usize].alive {
            return;
        }
        match action {
            Action::Attach { .. } => {
                // The manifest brings what is known; what is not, and was read here, is reported again.
                for (first, crcs) in self.core.known_checksums(DS) {
                    let run = first..first + crcs.len() as u32;
                    self.nodes[node as usize].known.insert_range(run.clone());
                    self.accept_verified(node, run);
                }
                let n = &self.nodes[node as usize];
                let (pieces, sealed) = (n.have.clone(), n.sealed.clone());
                let again: Vec<PieceNo> =
                    n.read.runs().iter().cloned().flatten().filter(|&p| n.have.contains(p)).collect();
                for first in again {
                    let crcs = vec![self.truth[first as usize]];
                    self.later_core(Event::PiecesRead { node: NodeId(node), dataset: DS, first, crcs });
                }
                self.later_core(Event::Inventory { node: NodeId(node), dataset: DS, pieces, sealed });
            }
            Action::Checksums { first, crcs, .. } => {
                let run = first..first + crcs.len() as u32;
                self.nodes[node as usize].known.insert_range(run.clone());
                self.accept_verified(node, run);
            }
            Action::DiscardShard { shard, .. } => self.discard(node, shard),
            Action::DropShards { shards, .. } => {
                for shard in shards.iter() {
                    let pieces = self.layout.shard_pieces(shard);
                    let n = &mut self.nodes[node as usize];
                    n.have.remove_range(pieces.clone());
                    n.read.remove_range(pieces);
                    n.sealed.remove_range(shard..shard + 1);
                }
                let kept = RunSet::new();
                self.later_core(Event::ShardsDropped { node: NodeId(node), dataset: DS, dropped: shards, kept });
            }
            Action::Assign { assignment, .. } => {
                let (id, pieces) = (assignment.id, assignment.pieces.clone());
                let n = &mut self.nodes[node as usize];
                if assignment.source == Source::Origin {
                    // Whoever reads from the origin does not wait to be told what the bytes should be.
                    n.unverified.remove_range(pieces.clone());
                }
                n.orders.retain(|o| o.assignment.pieces != pieces);
                n.orders.push(Order { assignment, began: self.now, bytes: 0 });
                self.finish(node, id);
                self.reask(node, pieces);
                self.work(node);
            }
            Action::Cancel { assignment, .. } => {
                let n = &mut self.nodes[node as usize];
                let pieces =
                    n.orders.iter().find(|o| o.assignment.id == assignment).map(|o| o.assignment.pieces.clone());
                n.orders.retain(|o| o.assignment.id != assignment);
                if let Some(pieces) = pieces {
                    self.reask(node, pieces);
                }
            }
            _ => {}
        }
    }

    fn discard(&mut self, node: u32, shard: ShardNo) {
        let pieces = self.layout.shard_pieces(shard);
        let n = &mut self.nodes[node as usize];
        n.have.remove_range(pieces.clone());
        n.known.remove_range(pieces.clone());
        n.unverified.remove_range(pieces.clone());
        n.sealed.remove_range(shard..shard + 1);
        n.asked.retain(|p, _| !pieces.contains(p));
        // Orders that it had of them end.
        let touched = |o: &Order| o.assignment.pieces.start < pieces.end && pieces.start < o.assignment.pieces.end;
        let ended: Vec<_> =
            n.orders.iter().filter(|o| touched(o)).map(|o| (o.assignment.id, o.assignment.source)).collect();
        for (id, source) in ended {
            self.fail(node, id, FailureKind::Cancelled, source);
        }
    }

    /// Withdraws requests that still wait at a source.
    pub(super) fn reask(&mut self, node: u32, pieces: Range<u32>) {
        for piece in pieces {
            if let Some(&Some(from)) = self.nodes[node as usize].asked.get(&piece) {
                let waiting = self.nodes[from as usize].waiting.get_mut(&piece);
                if waiting.is_some_and(|w| w.remove(&node)) {
                    self.nodes[node as usize].asked.remove(&piece);
                }
            }
        }
    }

    /// Asks for pieces, in the order of the orders, as many as fit.
    pub(super) fn work(&mut self, node: u32) {
        if self.stuck.contains(&node) {
            return;
        }
        let n = &self.nodes[node as usize];
        let mut room = self.setup.requests.saturating_sub(n.asked.len());
        let mut wanted = Vec::new();
        'orders: for order in &n.orders {
            for gap in n.have.gaps(order.assignment.pieces.clone()) {
                for piece in gap {
                    if room == 0 {
                        break 'orders;
                    }
                    if !n.asked.contains_key(&piece)
                        && !n.unverified.contains(piece)
                        && !wanted.iter().any(|&(p, _, _)| p == piece)
                    {
                        wanted.push((piece, order.assignment.source, order.assignment.id));
                        room -= 1;
                    }
                }
            }
        }
        for (piece, source, id) in wanted {
            match source {
                Source::Origin => {
                    if self.origin_failures > 0 {
                        self.origin_failures -= 1;
                        let kind = self.origin_failure_kind;
                        self.fail(node, id, kind, Source::Origin);
                        return self.work(node);
                    }
                    self.reads[piece as usize] += 1;
                    self.nodes[node as usize].asked.insert(piece, None);
                    let len = f64::from(self.layout.place(piece).len);
                    let start = ((self.now + self.setup.latency_us).0 as f64).max(self.origin_free);
                    self.origin_free = start + len * 1e6 / self.setup.origin;
                    self.push(Time(self.origin_free.ceil() as u64), Ev::Left { to: node, piece, from: None });
                }
                Source::Peer(peer) => {
                    if !self.nodes[peer.0 as usize].alive {
                        return self.drop_source(node, peer.0);
                    }
                    self.nodes[node as usize].asked.insert(piece, Some(peer.0));
                    if self.nodes[peer.0 as usize].have.contains(piece) {
                        self.send(peer.0, node, piece);
                    } else {
                        self.nodes[peer.0 as usize].waiting.entry(piece).or_default().insert(node);
                    }
                }
            }
        }
    }

    pub(super) fn send(&mut self, from: u32, to: u32, piece: PieceNo) {
        let len = f64::from(self.layout.place(piece).len);
        let now = (self.now + self.setup.latency_us).0 as f64;
        let n = &mut self.nodes[from as usize];
        n.up_free = n.up_free.max(now) + len * 1e6 / n.up_rate;
        let at = Time(n.up_free.ceil() as u64);
        self.push(at, Ev::Left { to, piece, from: Some(from) });
    }

    pub(super) fn arrived(&mut self, to: u32, piece: PieceNo, from: Option<u32>, life: u32) {
        let n = &mut self.nodes[to as usize];
        if !n.alive || n.life != life || n.asked.get(&piece) != Some(&from) {
            return;
        }
        n.asked.remove(&piece);
        if from.is_some() && !n.known.contains(piece) {
            // Bytes wait until it is known what they should be.
            n.unverified.insert(piece);
            return;
        }
        self.accept(to, piece, from.is_none());
    }

    pub(super) fn accept(&mut self, to: u32, piece: PieceNo, from_origin: bool) {
        let n = &mut self.nodes[to as usize];
        n.have.insert(piece);
        if from_origin {
            let mut crc = self.truth[piece as usize];
            if let Some((bad, times)) = &mut self.corrupt
                && *bad == piece
                && *times > 0
            {
                *times -= 1;
                crc = Crc64(!crc.0);
            }
            n.known.insert(piece);
            n.read.insert(piece);
            let event = Event::PiecesRead { node: NodeId(to), dataset: DS, first: piece, crcs: vec![crc] };
            self.later_core(event);
        }
        let waiting = self.nodes[to as usize].waiting.remove(&piece).unwrap_or_default();
        for child in waiting {
            self.send(to, child, piece);
        }
        let len = u64::from(self.layout.place(piece).len);
        let mut done = Vec::new();
        for order in &mut self.nodes[to as usize].orders {
            if order.assignment.pieces.contains(&piece) {
                order.bytes += len;
                done.push(order.assignment.id);
            }
        }
        for id in done {
            self.finish(to, id);
        }
        let shard = self.layout.shard_of(piece);
        if self.nodes[to as usize].have.contains_range(self.layout.shard_pieces(shard)) {
            self.nodes[to as usize].sealed.insert(shard);
            self.loader_looks(to);
            let shards = RunSet::from_range(shard..shard + 1);
            self.later_core(Event::ShardsSealed { node: NodeId(to), dataset: DS, shards });
        }
        self.work(to);
    }

    /// Reports an order whose pieces are all there.
    pub(super) fn finish(&mut self, node: u32, id: AssignmentId) {
        let n = &mut self.nodes[node as usize];
        let Some(at) = n.orders.iter().position(|o| o.assignment.id == id) else {
            return;
        };
        if !n.have.contains_range(n.orders[at].assignment.pieces.clone()) {
            return;
        }
        let order = n.orders.remove(at);
        self.later_core(Event::AssignmentDone {
            node: NodeId(node),
            assignment: id,
            bytes: order.bytes,
            elapsed_us: self.now.since(order.began),
            source: order.assignment.source,
        });
    }
}
