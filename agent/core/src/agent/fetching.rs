//! What to ask of whom: requests within the budgets, and what follows when a source fails.

use millstream_types::{AssignmentId, PieceNo, Time};

use super::orders::cancelled;
use super::{AgentCore, Fetch, Peer};
use crate::event::{Action, Failure, FailureKind, FetchId, PeerId, Report, Source};
use crate::limits;
use crate::order::{Next, backoff_us};

/// Did a request fit into the budgets?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    /// Yes: ask on.
    Some,
    /// Not for this order at present.
    Order,
    /// Not for any peer (or the origin) at present: the buffers are spoken for.
    Buffers,
}

impl AgentCore {
    /// Asks for as much as the budgets allow, first orders first.
    pub(super) fn pump(&mut self, now: Time) {
        let (mut peers, mut origin) = (true, true);
        let (mut at, mut expired) = (None, Vec::new());
        while peers || origin {
            let next = match at {
                None => self.queue.first(),
                Some(key) => self.queue.range((std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded)).next(),
            };
            let Some(&key) = next else {
                break;
            };
            at = Some(key);
            let order = &self.orders[&key.1];
            if order.todo.is_empty() || order.failing.is_some() || order.wait_until > now {
                continue;
            }
            if order.lease_end <= now {
                expired.push(key.1); // it had nothing to ask when its timer rang
                continue;
            }
            match order.source {
                Source::Origin if origin => origin = self.ask_origin(now, key.1) != Room::Buffers,
                Source::Peer(peer) if peers => {
                    peers = self.ask_peer(now, key.1, peer) != Room::Buffers;
                }
                _ => {}
            }
        }
        for id in expired {
            self.lease_check(now, id);
        }
    }

    /// One ranged GET per run of missing pieces within a shard.
    fn ask_origin(&mut self, now: Time, id: AssignmentId) -> Room {
        loop {
            if self.origin_gets >= self.origin_gets_limit {
                return Room::Buffers;
            }
            let order = &self.orders[&id];
            let dataset = &self.datasets[&order.dataset];
            let Some(run) = order.todo.runs().first().cloned() else {
                return Room::Some;
            };
            let shard = dataset.layout.shard_of(run.start);
            let run = run.start..run.end.min(dataset.layout.shard_pieces(shard).end);
            let bytes = dataset.layout.range_bytes(run.clone());
            let charge = bytes.min(limits::ORIGIN_WINDOW_PIECES * dataset.layout.piece_len());
            if self.charged_bytes > 0 && self.charged_bytes + charge > self.budget_bytes {
                return Room::Buffers;
            }
            let slow = bytes.saturating_mul(1_000_000) / limits::SLOWEST_BYTES_PER_S;
            let lease = order.lease_end.since(now);
            let deadline_us = self.config.deadline_us.max(slow).min(lease);
            self.origin_gets += 1;
            self.issue(now, id, run, Source::Origin, (charge, 0), deadline_us);
        }
    }

    /// One request per piece, as many as the pipeline takes.
    fn ask_peer(&mut self, now: Time, id: AssignmentId, peer_id: PeerId) -> Room {
        let reserve = self.budget_bytes / limits::ORIGIN_RESERVE_PART;
        let hold = match self.config.hold_bytes {
            0 => self.budget_bytes / limits::HOLD_PART,
            bytes => bytes,
        };
        self.forget_idle_peers();
        loop {
            let order = &self.orders[&id];
            let dataset = &self.datasets[&order.dataset];
            let Some(piece) = order.todo.runs().first().map(|run| run.start) else {
                return Room::Some;
            };
            let bytes = dataset.len_of(piece);
            if self.charged_bytes > 0 && self.charged_bytes + bytes > self.budget_bytes - reserve {
                return Room::Buffers;
            }
            let pipeline = self.config.peer_pipeline_bytes;
            let peer = self.peers.entry(peer_id).or_default();
            let order_full = !fits(order.fetches.len() as u32, order.asked_bytes, bytes, pipeline);
            let peer_pipeline = pipeline.saturating_mul(limits::PEER_PIPELINES);
            if order_full || !fits(peer.pieces, peer.bytes, bytes, peer_pipeline) {
                return Room::Order;
            }
            let unknown = match dataset.expected(piece) {
                Some(_) => 0,
                None => bytes,
            };
            if unknown > 0 && self.unknown_bytes > 0 && self.unknown_bytes + unknown > hold {
                return Room::Order;
            }
            let rate = peer.rate.max(limits::SLOWEST_BYTES_PER_S);
            let queued_us = (peer.bytes + bytes).saturating_mul(1_000_000) / rate;
            peer.pieces += 1;
            peer.bytes += bytes;
            let patience_us = match order.is_at_primary() {
                true => self.config.deadline_us,
                false => self.config.deadline_us / limits::ALTERNATE_DEADLINE_PART,
            };
            let deadline_us = patience_us.saturating_add(queued_us);
            let source = Source::Peer(peer_id);
            let charges = (bytes, unknown);
            self.issue(now, id, piece..piece + 1, source, charges, deadline_us);
        }
    }

    fn issue(
        &mut self,
        now: Time,
        id: AssignmentId,
        pieces: std::ops::Range<PieceNo>,
        source: Source,
        (charge, unknown): (u64, u64),
        deadline_us: u64,
    ) {
        let fetch = FetchId(self.next_fetch);
        self.next_fetch += 1;
        self.charged_bytes += charge;
        self.unknown_bytes += unknown;
        let Some(order) = self.orders.get_mut(&id) else {
            return;
        };
        order.todo.remove_range(pieces.clone());
        order.fetches.insert(fetch, ());
        order.started.get_or_insert(now);
        if source != Source::Origin {
            order.asked_bytes += charge;
        }
        let dataset = order.dataset;
        self.fetches.insert(
            fetch,
            Fetch {
                dataset,
                order: id,
                next: pieces.start,
                pieces: pieces.clone(),
                source,
                charge,
                unknown,
                issued: now,
                aborted: false,
            },
        );
        self.actions.push_back(Action::Fetch { fetch, dataset, pieces, source, deadline_us });
    }

    pub(super) fn fetch_ended(&mut self, now: Time, id: FetchId, result: Result<(), Failure>) {
        let Some(fetch) = self.fetches.remove(&id) else {
            return;
        };
        self.charged_bytes -= fetch.charge;
        self.unknown_bytes -= fetch.unknown;
        match fetch.source {
            Source::Origin => self.origin_gets -= 1,
            Source::Peer(peer) => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.pieces = peer.pieces.saturating_sub(1);
                    peer.bytes = peer.bytes.saturating_sub(fetch.charge);
                }
            }
        }
        if fetch.aborted {
            return;
        }
        let rest = fetch.next..fetch.pieces.end;
        let Some(order) = self.orders.get_mut(&fetch.order) else {
            return;
        };
        order.fetches.remove(&id);
        if fetch.source != Source::Origin {
            order.asked_bytes = order.asked_bytes.saturating_sub(fetch.charge);
        }
        if rest.is_empty() {
            if fetch.source == Source::Origin {
                let more = self.origin_gets_limit + 1;
                self.origin_gets_limit = more.min(self.config.origin_gets_max.max(1));
            }
            return;
        }
        self.not_brought(fetch.order, rest);
        let mut failure = result.err().unwrap_or_else(|| Failure {
            kind: match fetch.source {
                Source::Origin => FailureKind::OriginTransient,
                Source::Peer(_) => FailureKind::Protocol,
            },
            ..cancelled(fetch.source, "ended before all pieces came")
        });
        failure.asked_us = now.since(fetch.issued).max(1);
        match fetch.source {
            Source::Origin => self.origin_failed(now, fetch.order, failure),
            Source::Peer(peer) => {
                self.peer_failed(now, fetch.order, peer, fetch.issued, failure);
            }
        }
    }

    fn origin_failed(&mut self, now: Time, id: AssignmentId, failure: Failure) {
        let Some(order) = self.orders.get_mut(&id) else {
            return;
        };
        let for_good = matches!(failure.kind, FailureKind::OriginChanged | FailureKind::OriginDenied);
        if for_good {
            self.fail_order(now, id, failure);
            return;
        }
        if failure.kind == FailureKind::Throttled {
            self.origin_gets_limit = (self.origin_gets_limit / 2).max(1);
        }
        if order.wait_until > now {
            return; // another GET of this order failed a moment ago: one failure, one pause
        }
        order.origin_failures += 1;
        let attempt = order.origin_failures;
        if attempt > limits::ORIGIN_RETRIES_MAX {
            self.fail_order(now, id, failure);
            return;
        }
        order.wait_until = now + backoff_us(attempt, self.config.jitter_seed, id);
        let dataset = order.dataset;
        self.report(Report::SourceFailed { dataset, failure });
        self.set_timer(now, id);
    }

    fn peer_failed(&mut self, now: Time, id: AssignmentId, peer: PeerId, issued: Time, failure: Failure) {
        let Some(order) = self.orders.get_mut(&id) else {
            return;
        };
        if order.source != Source::Peer(peer) || order.wait_until > now {
            return; // it was given up already, or just told us to wait
        }
        match failure.kind {
            // Loaded, not dead: other pieces came meanwhile.
            FailureKind::Timeout if order.forgiven < limits::FORGIVEN_TIMEOUTS_MAX => {
                let delivery = self.peers.get(&peer).map_or(Time::ZERO, |p| p.last_delivery);
                if delivery > issued {
                    order.forgiven += 1;
                    return;
                }
            }
            // Its own order may still be on the way, unless it has waited for that.
            FailureKind::NotHave
                if order.not_have < limits::NOT_HAVE_GRACE && now.since(issued) < limits::NOT_HAVE_WAITED_US =>
            {
                order.not_have += 1;
                order.wait_until = now + backoff_us(order.not_have, self.config.jitter_seed, id);
                let (dataset, again) = (order.dataset, order.not_have > 1);
                self.set_timer(now, id);
                if again {
                    // The coordinator knows whether it should have it.
                    self.report(Report::SourceFailed { dataset, failure });
                }
                return;
            }
            _ => {}
        }
        self.switch_source(now, id, failure);
    }

    /// Reports the source and goes on with the next one.
    pub(super) fn switch_source(&mut self, now: Time, id: AssignmentId, failure: Failure) {
        self.abort_fetches(now, id);
        let Some(order) = self.orders.get_mut(&id) else {
            return;
        };
        let dataset = order.dataset;
        let next = order.advance();
        if let Next::Pause(round) = next {
            order.wait_until = now + backoff_us(round, self.config.jitter_seed, id);
        }
        if next == Next::GiveUp {
            self.fail_order(now, id, failure);
            return;
        }
        self.report(Report::SourceFailed { dataset, failure });
        self.set_timer(now, id);
    }

    /// Notes that a peer delivered, and how fast it does.
    pub(super) fn peer_delivered(&mut self, now: Time, peer: PeerId, issued: Time, bytes: u64) {
        let Some(peer) = self.peers.get_mut(&peer) else {
            return;
        };
        // From the later of the request and the delivery before: the peer worked on this piece since then.
        let since = issued.max(peer.last_delivery);
        let rate = bytes.saturating_mul(1_000_000) / now.since(since).max(1);
        peer.rate = match peer.rate {
            0 => rate,
            old => old / 8 * 7 + rate / 8,
        };
        peer.last_delivery = now;
        peer.pieces = peer.pieces.saturating_sub(1);
        peer.bytes = peer.bytes.saturating_sub(bytes);
    }

    fn forget_idle_peers(&mut self) {
        if self.peers.len() > limits::PEERS_MAX {
            self.peers.retain(|_, peer: &mut Peer| peer.pieces > 0);
        }
    }
}

/// May another request of `bytes` bytes join `pieces` requests of `asked` bytes?
fn fits(pieces: u32, asked: u64, bytes: u64, pipeline: u64) -> bool {
    pieces < limits::PEER_PIECES_MIN || (pieces < limits::PEER_PIECES_MAX && asked + bytes <= pipeline)
}
