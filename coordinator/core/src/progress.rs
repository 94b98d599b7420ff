//! What nodes report done: pieces read, assignments finished, shards visible.

use millstream_types::{AssignmentId, Crc64, DatasetId, NodeId, PieceNo, PieceRange, RunSet, Time};

use crate::Core;
use crate::catalog::{Dataset, ExtentNo};
use crate::event::{Action, Source};
use crate::flight::Flight;

/// Weight of a new sample of typical durations.
const ALPHA: f64 = 0.05;

fn average(mean: &mut f64, sample: f64) {
    *mean = if *mean == 0.0 { sample } else { *mean + ALPHA * (sample - *mean) };
}

impl Core {
    pub(crate) fn assignment_done(
        &mut self,
        now: Time,
        node: NodeId,
        assignment: AssignmentId,
        bytes: u64,
        source: Source,
    ) {
        let Some(no) = self.flights.find(assignment, node) else {
            self.counters.ignored += 1;
            return;
        };
        let Some(id) = self.flights.get(no).map(|f| f.dataset) else {
            return;
        };
        let leased = self.with(id, |core, ds| {
            let flight = core.land(ds, now, no, bytes)?;
            core.counters.done += 1;
            match source {
                Source::Origin => {
                    core.counters.origin_bytes += bytes;
                    ds.origin_bytes += bytes;
                }
                Source::Peer(_) => core.counters.peer_bytes += bytes,
            }
            core.learn_pace(ds, now, &flight, source);
            // Also from a peer: it had it already, read under an order of a coordinator that is gone.
            if !ds.checkable(flight.extent) {
                core.unreported(ds, now, flight.extent, node);
                return Some(true);
            }
            ds.gain(flight.extent, node);
            ds.extents[flight.extent as usize].hint = None;
            if ds.settle_claims(node) {
                core.judge_stages(now, ds);
            }
            core.mark_ready(ds, now, flight.extent, node);
            core.abandon_copies(ds, now, flight.extent);
            if let Some(known) = core.nodes.get_mut(node) {
                known.succeeded();
            }
            if flight.source == Source::Origin {
                let hungry = core.has_room(ds, node) && ds.next_fresh(node, now).is_some();
                core.origin.end_round(now, hungry);
            }
            Some(flight.source == Source::Origin)
        });
        self.serve(now, node);
        if leased.flatten() == Some(true) {
            self.serve_some(now);
        }
    }

    /// Learns from a finished flight how long they take, and who is slower than typical.
    fn learn_pace(&mut self, ds: &mut Dataset, now: Time, flight: &Flight, source: Source) {
        let took = now.since(flight.started) as f64;
        let Source::Peer(peer) = source else {
            average(&mut ds.typical_origin_us, took);
            return;
        };
        average(&mut ds.typical_peer_us, took);
        if self.chain(ds) {
            // There it is the flow that is judged: these times contain the wait for what was ordered before.
            if let Some(parent) = self.nodes.get_mut(peer) {
                parent.quarantine.forgive(now);
            }
            return;
        }
        if flight.source != source {
            return;
        }
        // A source is to blame only for the time since it had the extent itself.
        let since = flight.source_ready.unwrap_or(flight.started).max(flight.started);
        let ratio = now.since(since) as f64 / ds.typical_peer_us.max(1.0);
        let mut slow_receiver = 1.0;
        if let Some(known) = self.nodes.get_mut(flight.node) {
            known.slow_in.sample(ratio);
            slow_receiver = known.slow_in.factor();
        }
        if let Some(parent) = self.nodes.get_mut(peer) {
            parent.slow_out.sample(ratio / slow_receiver);
            parent.quarantine.forgive(now);
        }
    }

    /// The node has the extent now: whom it feeds waits for nothing but it.
    pub(crate) fn mark_ready(&mut self, ds: &Dataset, now: Time, e: ExtentNo, node: NodeId) {
        let count = self.nodes.get(node).map_or(0, |n| n.serving.len());
        for i in 0..count {
            let Some(no) = self.nodes.get(node).and_then(|n| n.serving.get(i)).copied() else {
                return;
            };
            if let Some(flight) = self.flights.get_mut(no).filter(|f| f.extent == e && f.dataset == ds.id) {
                flight.source_ready = Some(now);
            }
        }
    }

    pub(crate) fn pieces_read(&mut self, now: Time, node: NodeId, dataset: DatasetId, first: PieceNo, crcs: &[Crc64]) {
        let doubtful = self.with(dataset, |core, ds| {
            let end = u64::from(first) + crcs.len() as u64;
            let range = first..end.min(u64::from(ds.layout.pieces())) as u32;
            let mut doubt = None;
            for e in ds.extents_in(range.clone()) {
                let pieces = &ds.extents[e as usize].pieces;
                let part = pieces.start.max(range.start)..pieces.end.min(range.end);
                let known = &crcs[(part.start - first) as usize..(part.end - first) as usize];
                let found = core.learn(ds, now, node, e, part, known);
                doubt = doubt.or(found);
            }
            if let Some(doubt) = doubt {
                core.dispute(ds, now, doubt);
                return true;
            }
            false
        });
        match doubtful {
            None => self.counters.ignored += 1,
            Some(true) => self.serve_all(now),
            Some(false) => {}
        }
    }

    fn learn(
        &mut self,
        ds: &mut Dataset,
        now: Time,
        node: NodeId,
        e: ExtentNo,
        part: PieceRange,
        crcs: &[Crc64],
    ) -> Option<crate::sums::Contradiction> {
        let extent = &mut ds.extents[e as usize];
        let lease = extent.lease.filter(|&no| self.flights.get(no).is_some_and(|f| f.node == node));
        if let Some(flight) = lease.and_then(|no| self.flights.get_mut(no)) {
            flight.progress = now;
        } else {
            // Read under an order that is no longer valid. In a dispute that is no evidence.
            let shard = ds.layout.shard_of(part.start);
            if extent.failed || (ds.sums.disputes.contains_key(&shard) && !extent.have.get(node.0)) {
                self.counters.ignored += 1;
                return None;
            }
            if extent.lease.is_none() && extent.have.is_empty() {
                extent.hint = Some((node, u32::MAX));
            }
        }
        let learned = ds.sums.record(&ds.layout, part.start, crcs, true);
        ds.seed(e);
        for run in learned.new {
            self.counters.checksums_learned += u64::from(run.end - run.start);
            let crcs = ds.sums.slice(run.clone());
            let persist = Action::PersistChecksums { dataset: ds.id, first: run.start, crcs: crcs.clone() };
            self.actions.push_back(persist);
            // Who reads under a valid order knows; anyone else may have been told to forget it.
            let to = self.receivers(ds, e, lease.map(|_| node));
            if !to.is_empty() {
                self.actions.push_back(Action::Checksums { to, dataset: ds.id, first: run.start, crcs });
            }
        }
        learned.contradiction.or_else(|| learned.complete.iter().find_map(|&shard| ds.sums.check(&ds.layout, shard)))
    }

    /// Nodes that will receive the extent and have the version open, but for one that knows.
    fn receivers(&self, ds: &Dataset, e: ExtentNo, knows: Option<NodeId>) -> Vec<NodeId> {
        let extent = &ds.extents[e as usize];
        let flying = extent.flights.iter().filter_map(|&no| self.flights.get(no)).map(|f| f.node);
        let mut to: Vec<NodeId> = extent
            .todo
            .iter()
            .map(NodeId)
            .chain(flying)
            .filter(|&n| Some(n) != knows && ds.replica(n).is_some_and(|r| r.inventoried))
            .collect();
        to.sort_unstable();
        to.dedup();
        to
    }

    pub(crate) fn shards_sealed(&mut self, now: Time, node: NodeId, dataset: DatasetId, shards: &RunSet) {
        let known = self.nodes.get(node).is_some_and(|n| n.seen);
        let mut moved = false;
        let taken = known
            && self
                .with(dataset, |core, ds| {
                    ds.seal(node, shards.clone());
                    if ds.complete_on(node) {
                        core.judge_stages(now, ds);
                    }
                    moved = core.refill_all(ds, now);
                })
                .is_some();
        if !taken {
            self.counters.ignored += 1;
        }
        if moved {
            self.serve_all(now);
        }
    }
}
