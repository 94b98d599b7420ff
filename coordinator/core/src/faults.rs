//! What went wrong, who is to blame, and what is done about it.
//!
//! Sources are blamed, never the node that complains. Bytes that contradict what is known put the *origin read* in
//! doubt: the shard is discarded everywhere and read again by other nodes, a few times; then it fails by name.

use millstream_types::{AssignmentId, DatasetId, NodeId, RunSet, ShardNo, Time};

use crate::Core;
use crate::catalog::Dataset;
use crate::event::{Action, Failure, FailureKind, NodeState, Note, ShardFailure, Source};
use crate::limits::{
    DISPUTE_ROUNDS_MAX, FAILURES_KEPT_MAX, ORIGIN_ATTEMPTS_MAX, ORIGIN_RETRY_MAX_US, ORIGIN_RETRY_MIN_US, SLANDER_US,
};
use crate::membership::doubled;
use crate::sums::Contradiction;

impl Core {
    pub(crate) fn assignment_failed(
        &mut self,
        now: Time,
        node: NodeId,
        assignment: AssignmentId,
        missing: &RunSet,
        failure: Failure,
    ) {
        self.counters.failed += 1;
        let Some(no) = self.flights.find(assignment, node) else {
            self.counters.ignored += 1;
            self.complaint(now, node, &failure, false);
            return;
        };
        let Some(id) = self.flights.get(no).map(|f| f.dataset) else {
            return;
        };
        self.counters.requeues += 1;
        let refused = matches!(failure.kind, FailureKind::NoSpace | FailureKind::Disk);
        let mut denied = false;
        self.with(id, |core, ds| {
            denied = core.flights.get(no).is_some_and(|flight| flight.denied(now, &failure));
            let Some(flight) = core.land(ds, now, no, 0) else {
                return;
            };
            let e = flight.extent;
            let extent = &mut ds.extents[e as usize];
            let had =
                (extent.pieces.end - extent.pieces.start).saturating_sub(missing.count_range(extent.pieces.clone()));
            if had > extent.hint.map_or(0, |(_, most)| most) {
                extent.hint = Some((node, had));
            }
            ds.settle(e, node, false);
            if refused {
                return;
            }
            if let Some(known) = core.nodes.get_mut(node) {
                known.failed(now);
            }
            match failure.source {
                Source::Origin => core.origin_failed(ds, now, e, missing, &failure),
                Source::Peer(peer) => core.peer_failed(ds, now, e, node, peer, failure.kind),
            }
        });
        if refused {
            self.node_refused(now, node, id, failure.detail);
            return;
        }
        self.complaint(now, node, &failure, denied);
        self.serve(now, node);
        self.serve_some(now);
    }

    /// A node goes on with another source.
    pub(crate) fn source_failed(&mut self, now: Time, node: NodeId, dataset: DatasetId, failure: &Failure) {
        let denied = self.with(dataset, |core, ds| {
            let e = failure.piece.and_then(|piece| ds.extent_of(piece))?;
            core.flight_on(ds, e, node).map(|flight| flight.denied(now, failure))
        });
        self.complaint(now, node, failure, denied.flatten().unwrap_or(false));
    }

    /// One origin read failed: wait, read elsewhere, or give the shard up.
    fn origin_failed(&mut self, ds: &mut Dataset, now: Time, e: u32, missing: &RunSet, failure: &Failure) {
        let pieces = ds.extents[e as usize].pieces.clone();
        let piece = failure
            .piece
            .filter(|p| pieces.contains(p))
            .or_else(|| missing.runs().iter().map(|r| r.start).find(|p| pieces.contains(p)))
            .unwrap_or(pieces.start);
        let shard = ds.layout.shard_of(piece);
        let code = match failure.kind {
            FailureKind::OriginChanged => Some(8),
            FailureKind::OriginDenied => Some(9),
            FailureKind::Checksum => {
                let text = |crc: Option<millstream_types::Crc64>| crc.map(|c| c.to_string()).unwrap_or_default();
                let doubt = Contradiction {
                    shard,
                    piece: Some(piece),
                    expected: text(failure.expected),
                    actual: text(failure.actual),
                };
                self.dispute(ds, now, doubt);
                return;
            }
            FailureKind::Throttled => {
                self.origin.throttled(now);
                None
            }
            FailureKind::Cancelled => None,
            _ => {
                let extent = &mut ds.extents[e as usize];
                extent.attempts = extent.attempts.saturating_add(1);
                (extent.attempts >= ORIGIN_ATTEMPTS_MAX).then_some(1)
            }
        };
        if let Some(code) = code {
            let failure = ShardFailure {
                shard,
                code,
                piece: Some(piece),
                expected: String::new(),
                actual: String::new(),
                source: Source::Origin,
                detail: format!("{}: {}", failure.kind.as_str(), failure.detail),
            };
            self.fail_shard(ds, now, failure);
            return;
        }
        // Those below the reader would only wait; they keep what they have and are planned again with the next read.
        let extent = &mut ds.extents[e as usize];
        let attempts = u32::from(extent.attempts.max(1)) - 1;
        extent.not_before = now + doubled(ORIGIN_RETRY_MIN_US, attempts, ORIGIN_RETRY_MAX_US);
        if extent.have.is_empty() {
            for no in extent.flights.clone() {
                self.recall(ds, now, no);
            }
        }
    }

    /// A node read an extent, but what it said of the bytes did not count (it came during a dispute, or was lost with
    /// a session): nobody could check them. They are read again.
    pub(crate) fn unreported(&mut self, ds: &mut Dataset, now: Time, e: u32, node: NodeId) {
        self.counters.requeues += 1;
        ds.settle(e, node, false);
        let pieces = ds.extents[e as usize].pieces.clone();
        let mut shards: Vec<ShardNo> = ds
            .sums
            .known()
            .gaps(pieces)
            .flat_map(|gap| [gap.start, gap.end - 1])
            .map(|p| ds.layout.shard_of(p))
            .collect();
        shards.dedup();
        for shard in shards {
            for e in ds.extents_in(ds.layout.shard_pieces(shard)) {
                // Also what it is about to report: that is gone too.
                let mut flights = ds.extents[e as usize].flights.clone();
                flights.retain(|&no| self.flights.get(no).is_some_and(|f| f.node == node));
                for no in flights {
                    self.recall(ds, now, no);
                }
                ds.lose(e, node);
                self.rescue_orphans(ds, now, e);
            }
            let reason = "read without a valid report of its checksums".to_owned();
            self.actions.push_back(Action::DiscardShard {
                to: vec![node],
                dataset: ds.id,
                shard,
                reason,
                fatal: false,
            });
            // It forgets the checksums too: what is known of them is told again.
            let pieces = ds.layout.shard_pieces(shard);
            for run in ds.sums.known().runs() {
                let run = run.start.max(pieces.start)..run.end.min(pieces.end);
                if run.start < run.end {
                    let crcs = ds.sums.slice(run.clone());
                    self.actions.push_back(Action::Checksums {
                        to: vec![node],
                        dataset: ds.id,
                        first: run.start,
                        crcs,
                    });
                }
            }
        }
        let extent = &mut ds.extents[e as usize];
        extent.hint = None;
        extent.not_before = now + ORIGIN_RETRY_MIN_US;
        if extent.have.is_empty() {
            for no in extent.flights.clone() {
                self.recall(ds, now, no);
            }
        }
    }

    /// A node got an extent from none of its peers.
    fn peer_failed(&mut self, ds: &mut Dataset, now: Time, e: u32, node: NodeId, peer: NodeId, kind: FailureKind) {
        if kind == FailureKind::NotHave && ds.extents[e as usize].have.get(peer.0) {
            // It does not have what we believed it has; if it was wanted there, it is fetched again.
            ds.lose(e, peer);
        }
        let ready = self.nodes.get(node).is_some_and(|n| n.ready(now));
        if ready
            && kind != FailureKind::Cancelled
            && let Some(found) = self.find_source(ds, now, e, node, Some(peer))
        {
            let source = Source::Peer(found.source);
            self.launch(ds, now, e, node, source, found.alternates, 1);
        }
        self.rescue_orphans(ds, now, e);
    }

    /// What the node could not reach of late was not to blame.
    pub(crate) fn slanders(&self, now: Time, node: NodeId) -> bool {
        self.nodes.get(node).and_then(|n| n.last_poor).is_some_and(|at| now.since(at) < SLANDER_US)
    }

    /// Somebody met a bad source. `denied`: it does not have what it said it has.
    fn complaint(&mut self, now: Time, by: NodeId, failure: &Failure, denied: bool) {
        let Source::Peer(peer) = failure.source else {
            return;
        };
        // Who is slow or cut off itself blames those who are not; but this one answered.
        let no_answer = matches!(failure.kind, FailureKind::Unreachable | FailureKind::Timeout);
        let slander = no_answer && self.slanders(now, by);
        let Some(known) = self.nodes.get_mut(peer).filter(|_| peer != by && !slander) else {
            return;
        };
        if failure.kind == FailureKind::Unreachable {
            known.unreachable = Some(now);
        }
        match failure.kind {
            FailureKind::Unreachable if known.state == NodeState::Suspect && !known.session => {
                // Its session is gone and a peer cannot reach it either: no need to wait longer.
                self.node_down(now, peer);
            }
            FailureKind::NotHave if !denied => {}
            FailureKind::Checksum
            | FailureKind::NotHave
            | FailureKind::Unreachable
            | FailureKind::Timeout
            | FailureKind::Protocol => {
                let before = known.quarantine.distrusted(now);
                let quarantined = known.quarantine.complain(now, failure.kind, by);
                let distrusted = !before && known.quarantine.distrusted(now);
                if let Some(for_us) = quarantined {
                    self.counters.quarantines += 1;
                    self.excuse_lags(now);
                    self.demote_poor(now);
                    self.note(Note::Quarantined { node: peer, kind: failure.kind, for_us });
                }
                if distrusted {
                    self.shun(now, peer);
                }
            }
            _ => {}
        }
    }

    /// The copies of a node do not count any more: what only it has is read again, elsewhere.
    fn shun(&mut self, now: Time, node: NodeId) {
        for id in self.dataset_ids() {
            self.with(id, |core, ds| {
                for e in 0..ds.extents.len() as u32 {
                    if ds.extents[e as usize].have.get(node.0) {
                        core.abandon_copies(ds, now, e);
                    }
                }
            });
        }
        self.serve_all(now);
    }

    /// Recalls all that wait for copies none of which is to be trusted, so that one of them reads the origin.
    pub(crate) fn abandon_copies(&mut self, ds: &mut Dataset, now: Time, e: u32) {
        let extent = &ds.extents[e as usize];
        let distrusted = |h| self.nodes.get(NodeId(h)).is_some_and(|n| n.quarantine.distrusted(now));
        if extent.lease.is_none() && !extent.have.is_empty() && extent.have.iter().all(distrusted) {
            for no in extent.flights.clone() {
                self.recall(ds, now, no);
            }
        }
    }

    /// What was read of a shard is contradicted: forget it everywhere and read it again, elsewhere.
    pub(crate) fn dispute(&mut self, ds: &mut Dataset, now: Time, doubt: Contradiction) {
        let shard = doubt.shard;
        if ds.failed.contains_key(&shard) {
            return;
        }
        self.counters.disputes += 1;
        let roots: Vec<NodeId> = ds
            .extents_in(ds.layout.shard_pieces(shard))
            .iter()
            .filter_map(|&e| ds.extents[e as usize].last_root)
            .collect();
        let dispute = ds.sums.disputes.entry(shard).or_default();
        dispute.rounds += 1;
        for root in roots {
            if !dispute.used.contains(&root) {
                dispute.used.push(root);
            }
        }
        let rounds = dispute.rounds;
        let words = format!("expected {}, read {} from the origin", doubt.expected, doubt.actual);
        if rounds > DISPUTE_ROUNDS_MAX {
            let failure = ShardFailure {
                shard,
                code: 5,
                piece: doubt.piece,
                expected: doubt.expected,
                actual: doubt.actual,
                source: Source::Origin,
                detail: format!("checksums still differ after {DISPUTE_ROUNDS_MAX} more reads"),
            };
            self.fail_shard(ds, now, failure);
            return;
        }
        self.clear_shard(ds, now, shard, |_| true);
        ds.sums.forget(&ds.layout, shard);
        let to = self.openers(ds, |_| true);
        self.actions.push_back(Action::DiscardShard { to, dataset: ds.id, shard, reason: words, fatal: false });
    }

    /// Takes back all work on a shard, and the copies on the nodes that `of` names.
    fn clear_shard(
        &mut self,
        ds: &mut Dataset,
        now: Time,
        shard: ShardNo,
        of: impl Fn(&crate::catalog::Replica) -> bool,
    ) {
        let pieces = ds.layout.shard_pieces(shard);
        for e in ds.extents_in(pieces.clone()) {
            for no in ds.extents[e as usize].flights.clone() {
                self.recall(ds, now, no);
            }
        }
        ds.isolate(shard);
        for e in ds.extents_in(pieces) {
            let holders: Vec<NodeId> = ds.extents[e as usize].have.iter().map(NodeId).collect();
            for node in holders {
                if ds.replica(node).is_some_and(&of) {
                    ds.lose(e, node);
                }
            }
            ds.extents[e as usize].hint = None;
        }
        let members: Vec<NodeId> = ds.members().filter(|(_, r)| of(r)).map(|(n, _)| n).collect();
        for node in members {
            let replica = ds.replica_entry(node);
            replica.sealed.remove_range(shard..shard + 1);
            replica.claimed.remove_range(shard..shard + 1);
            if replica.asked > 0 && !replica.discarded.contains(&shard) {
                replica.discarded.push(shard);
            }
        }
    }

    /// Nodes that have the version open.
    fn openers(&self, ds: &Dataset, of: impl Fn(&crate::catalog::Replica) -> bool) -> Vec<NodeId> {
        ds.members()
            .filter(|(n, r)| r.attached && of(r) && self.nodes.get(*n).is_some_and(|n| n.state != NodeState::Down))
            .map(|(n, _)| n)
            .collect()
    }

    /// Gives a shard up, by name and reason. Verified copies stay, unless the bytes themselves are in doubt.
    pub(crate) fn fail_shard(&mut self, ds: &mut Dataset, now: Time, failure: ShardFailure) {
        let shard = failure.shard;
        if ds.failed.contains_key(&shard) {
            return;
        }
        let all = failure.code == 5;
        let of = move |r: &crate::catalog::Replica| all || !r.sealed.contains(shard);
        let to = self.openers(ds, of);
        self.clear_shard(ds, now, shard, of);
        self.counters.shards_failed += 1;
        let mut kept = failure.clone();
        if ds.failed.len() >= FAILURES_KEPT_MAX {
            (kept.expected, kept.actual, kept.detail) = Default::default();
        }
        ds.failed.insert(shard, kept);
        self.close_shard(ds, shard);
        if all {
            ds.sums.forget(&ds.layout, shard);
        }
        let reason = failure.detail.clone();
        self.actions.push_back(Action::DiscardShard { to, dataset: ds.id, shard, reason, fatal: true });
        self.note(Note::ShardFailed { dataset: ds.id, failure });
        self.judge_stages(now, ds);
    }

    /// Nobody shall fetch the shard any more.
    pub(crate) fn close_shard(&mut self, ds: &mut Dataset, shard: ShardNo) {
        ds.isolate(shard);
        for e in ds.extents_in(ds.layout.shard_pieces(shard)) {
            ds.extents[e as usize].failed = true;
            let wanting: Vec<NodeId> = ds.extents[e as usize].todo.iter().map(NodeId).collect();
            for node in wanting {
                ds.settle(e, node, false);
            }
        }
    }

    pub(crate) fn shard_mismatch(
        &mut self,
        now: Time,
        node: NodeId,
        dataset: DatasetId,
        shard: ShardNo,
        expected: String,
        actual: String,
    ) {
        self.with(dataset, |core, ds| {
            if shard >= ds.layout.shards() {
                core.counters.ignored += 1;
                return;
            }
            // After the first complaint nobody has the shard; later ones are about the same bytes.
            let pieces = ds.layout.shard_pieces(shard);
            let holds = ds.extents_in(pieces).iter().all(|&e| ds.extents[e as usize].have.get(node.0));
            if !holds {
                core.counters.ignored += 1;
                return;
            }
            core.dispute(ds, now, Contradiction { shard, piece: None, expected, actual });
        });
        self.serve_all(now);
    }

    pub(crate) fn shard_lost(&mut self, now: Time, node: NodeId, dataset: DatasetId, shard: ShardNo) {
        self.with(dataset, |core, ds| {
            if shard >= ds.layout.shards() || ds.replica(node).is_none() {
                core.counters.ignored += 1;
                return;
            }
            for e in ds.extents_in(ds.layout.shard_pieces(shard)) {
                ds.lose(e, node);
            }
            ds.replica_entry(node).sealed.remove_range(shard..shard + 1);
        });
        self.serve(now, node);
        self.serve_some(now);
    }
}
