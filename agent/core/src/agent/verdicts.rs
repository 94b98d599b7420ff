//! What arrived: accepted, held until its checksum is known, or rejected; and what the disk says of it.

use millstream_types::{Crc64, DatasetId, PieceNo, PieceRange, Time};

use super::{AgentCore, Early, Held, Writing};
use crate::dataset::PieceState;
use crate::event::{Action, Failure, FailureKind, FetchId, Report, Source};
use crate::limits;

/// A piece that arrived, and how.
#[derive(Clone, Copy)]
struct Arrival {
    fetch: FetchId,
    dataset: DatasetId,
    piece: PieceNo,
    actual: Crc64,
    source: Source,
    bytes: u64,
}

impl AgentCore {
    pub(super) fn received(&mut self, now: Time, fetch: FetchId, dataset_id: DatasetId, piece: PieceNo, actual: Crc64) {
        let known = self.fetches.get_mut(&fetch);
        let dataset = self.datasets.get(&dataset_id);
        let (Some(f), Some(dataset)) = (known, dataset) else {
            self.reject(fetch, dataset_id, piece);
            return;
        };
        if f.dataset != dataset_id || !(f.next..f.pieces.end).contains(&piece) {
            self.reject(fetch, dataset_id, piece);
            return;
        }
        let skipped = f.next..piece;
        f.next = piece + 1;
        let bytes = dataset.len_of(piece);
        let left = dataset.layout.range_bytes(f.next..f.pieces.end);
        let charge = f.charge.min(left);
        let released = f.charge - charge;
        self.charged_bytes -= released;
        f.charge = charge;
        self.unknown_bytes -= f.unknown;
        f.unknown = 0;
        let (source, issued, aborted, order_id) = (f.source, f.issued, f.aborted, f.order);
        if let Source::Peer(peer) = source {
            self.peer_delivered(now, peer, issued, bytes);
        }
        if let Some(order) = self.orders.get_mut(&order_id).filter(|_| !aborted) {
            if source != Source::Origin {
                order.asked_bytes = order.asked_bytes.saturating_sub(released);
            }
            self.not_brought(order_id, skipped);
        }
        let arrival = Arrival { fetch, dataset: dataset_id, piece, actual, source, bytes };
        self.judge_arrival(now, arrival, aborted);
    }

    fn judge_arrival(&mut self, now: Time, arrival: Arrival, aborted: bool) {
        let dataset = &self.datasets[&arrival.dataset];
        let (state, expected) = (dataset.state(arrival.piece), dataset.expected(arrival.piece));
        let here = matches!(state, PieceState::Accepted | PieceState::Written);
        match (arrival.source, expected) {
            _ if here => self.reject(arrival.fetch, arrival.dataset, arrival.piece),
            (_, Some(expected)) => {
                if state == PieceState::Held {
                    self.reject_held(arrival.dataset, arrival.piece..arrival.piece + 1);
                }
                if expected == arrival.actual {
                    // Known to us is not known to everyone: a report too many does no harm.
                    if arrival.source == Source::Origin {
                        self.tell_reading(arrival);
                    }
                    self.accept(arrival);
                } else {
                    self.wrong(now, arrival, expected, aborted);
                }
            }
            (Source::Origin, None) if !aborted => {
                if state == PieceState::Held {
                    self.reject_held(arrival.dataset, arrival.piece..arrival.piece + 1);
                }
                self.learn(arrival);
                self.accept(arrival);
            }
            (Source::Peer(_), None) if state == PieceState::Missing && !aborted => {
                self.hold(arrival);
            }
            _ => self.reject(arrival.fetch, arrival.dataset, arrival.piece),
        }
    }

    /// The origin's bytes make the checksum; the coordinator is told at once.
    fn learn(&mut self, arrival: Arrival) {
        if let Some(dataset) = self.datasets.get_mut(&arrival.dataset) {
            dataset.learn(arrival.piece, arrival.actual);
        }
        self.tell_reading(arrival);
    }

    /// Notes a reading of the origin for the coordinator; consecutive ones become one report.
    fn tell_reading(&mut self, arrival: Arrival) {
        if let Some((dataset, first, crcs)) = self.reads.last_mut()
            && *dataset == arrival.dataset
            && *first + crcs.len() as u32 == arrival.piece
        {
            crcs.push(arrival.actual);
            return;
        }
        let run = (arrival.dataset, arrival.piece, vec![arrival.actual]);
        self.reads.push(run);
    }

    fn hold(&mut self, arrival: Arrival) {
        if let Some(dataset) = self.datasets.get_mut(&arrival.dataset) {
            dataset.set_state(arrival.piece, PieceState::Held);
        }
        self.charged_bytes += arrival.bytes;
        self.unknown_bytes += arrival.bytes;
        let held = Held { fetch: arrival.fetch, actual: arrival.actual, source: arrival.source, bytes: arrival.bytes };
        self.held.insert((arrival.dataset, arrival.piece), held);
    }

    fn accept(&mut self, arrival: Arrival) {
        let (id, piece) = (arrival.dataset, arrival.piece);
        if let Some(dataset) = self.datasets.get_mut(&id) {
            dataset.set_state(piece, PieceState::Accepted);
        }
        self.charged_bytes += arrival.bytes;
        let writing = self.writing.get_or_insert((id, piece), Writing { bytes: 0, live: false, stale: 0 });
        writing.bytes = arrival.bytes;
        writing.live = true;
        let owner = self.owners.owner(id, piece);
        if let Some(order) = owner.and_then(|owner| self.orders.get_mut(&owner)) {
            order.todo.remove_range(piece..piece + 1);
            order.writing += 1;
            order.bytes += arrival.bytes;
            order.progressed();
        }
        self.actions.push_back(Action::Accept {
            fetch: arrival.fetch,
            dataset: id,
            piece,
            crc: arrival.actual,
            from_origin: arrival.source == Source::Origin,
        });
    }

    /// Bytes that are not what they must be: never kept, named, read again elsewhere.
    fn wrong(&mut self, now: Time, arrival: Arrival, expected: Crc64, aborted: bool) {
        let (id, piece) = (arrival.dataset, arrival.piece);
        self.reject(arrival.fetch, id, piece);
        let failure = Failure {
            kind: FailureKind::Checksum,
            source: arrival.source,
            piece: Some(piece),
            expected: Some(expected),
            actual: Some(arrival.actual),
            detail: "the bytes do not match the manifest".to_owned(),
            asked_us: 0,
        };
        let owner = self.owners.owner(id, piece);
        let order = owner.and_then(|owner| self.orders.get_mut(&owner));
        let Some(order) = order.filter(|_| !aborted) else {
            let dataset = id;
            self.report(Report::SourceFailed { dataset, failure });
            return;
        };
        let order_id = order.id;
        order.todo.insert(piece);
        if order.source != arrival.source {
            let dataset = id;
            self.report(Report::SourceFailed { dataset, failure });
        } else if arrival.source == Source::Origin {
            order.checksum_failures += 1;
            if order.checksum_failures > limits::ORIGIN_CHECKSUM_RETRIES_MAX {
                self.fail_order(now, order_id, failure);
            } else {
                let dataset = id;
                self.report(Report::SourceFailed { dataset, failure });
            }
        } else {
            self.switch_source(now, order_id, failure);
        }
    }

    fn reject(&mut self, fetch: FetchId, dataset: DatasetId, piece: PieceNo) {
        self.actions.push_back(Action::Reject { fetch, dataset, piece });
    }

    /// Drops held bytes; their pieces are missing again, and asked for again by the order that owns them.
    pub(super) fn reject_held(&mut self, id: DatasetId, range: PieceRange) {
        loop {
            let first = self.held.range((id, range.start)..(id, range.end)).next().map(|(key, _)| *key);
            let Some(key) = first else {
                return;
            };
            let Some(held) = self.held.remove(&key) else {
                return;
            };
            self.charged_bytes -= held.bytes;
            self.unknown_bytes -= held.bytes;
            if let Some(dataset) = self.datasets.get_mut(&id) {
                dataset.set_state(key.1, PieceState::Missing);
            }
            let owner = self.owners.owner(id, key.1);
            if let Some(order) = owner.and_then(|owner| self.orders.get_mut(&owner)) {
                order.todo.insert(key.1);
            }
            self.reject(held.fetch, id, key.1);
        }
    }

    pub(super) fn checksums(&mut self, now: Time, id: DatasetId, first: PieceNo, crcs: Vec<Crc64>) {
        let Some(dataset) = self.datasets.get(&id) else {
            // Lost when too many wait: the coordinator says them again with the orders it repeats.
            self.keep_early(id, Early::Checksums(first, crcs));
            return;
        };
        let pieces = dataset.layout.pieces();
        let told: Vec<(PieceNo, Crc64)> = (first..pieces).zip(crcs).collect();
        let Some(last) = told.last().map(|(piece, _)| *piece) else {
            return;
        };
        let shards = dataset.layout.shard_of(first)..dataset.layout.shard_of(last) + 1;
        let mut wrong: Vec<u32> = told
            .iter()
            .filter(|(piece, crc)| dataset.contradicts(*piece, *crc))
            .map(|(piece, _)| dataset.layout.shard_of(*piece))
            .collect();
        wrong.dedup();
        for shard in wrong {
            self.contradicted(now, id, shard);
        }
        for (piece, crc) in told {
            if let Some(dataset) = self.datasets.get_mut(&id) {
                dataset.tell(piece, crc);
            }
            self.judge_held(now, id, piece, crc);
        }
        for shard in shards {
            self.try_seal(id, shard);
        }
    }

    /// The checksum that held bytes waited for has come.
    fn judge_held(&mut self, now: Time, dataset: DatasetId, piece: PieceNo, expected: Crc64) {
        let Some(held) = self.held.remove(&(dataset, piece)) else {
            return;
        };
        self.charged_bytes -= held.bytes;
        self.unknown_bytes -= held.bytes;
        let arrival =
            Arrival { fetch: held.fetch, dataset, piece, actual: held.actual, source: held.source, bytes: held.bytes };
        if held.actual == expected {
            self.accept(arrival);
            return;
        }
        if let Some(dataset) = self.datasets.get_mut(&dataset) {
            dataset.set_state(piece, PieceState::Missing);
        }
        self.wrong(now, arrival, expected, false);
    }

    /// The disk answered for a piece. False when the answer is for bytes that were dropped since.
    fn write_answered(&mut self, id: DatasetId, piece: PieceNo) -> bool {
        let Some(writing) = self.writing.get_mut(&(id, piece)) else {
            return false;
        };
        self.charged_bytes -= writing.bytes;
        if writing.stale > 0 {
            writing.stale -= 1;
            if writing.stale == 0 && !writing.live {
                self.writing.remove(&(id, piece));
            }
            return false;
        }
        self.writing.remove(&(id, piece));
        true
    }

    /// Bytes being written are not wanted any more; the disk's answer will be for nothing.
    pub(super) fn forget_write(&mut self, id: DatasetId, piece: PieceNo) {
        if let Some(writing) = self.writing.get_mut(&(id, piece))
            && writing.live
        {
            writing.live = false;
            writing.stale += 1;
        }
    }

    pub(super) fn written(&mut self, now: Time, id: DatasetId, piece: PieceNo) {
        if !self.write_answered(id, piece) {
            return;
        }
        let Some(dataset) = self.datasets.get_mut(&id) else {
            return;
        };
        dataset.set_state(piece, PieceState::Written);
        dataset.disk_failures = 0;
        let shard = dataset.layout.shard_of(piece);
        let owner = self.owners.owner(id, piece);
        if let Some(order) = owner.and_then(|owner| self.orders.get_mut(&owner)) {
            order.writing -= 1;
            order.left -= 1;
            let order = order.id;
            self.settle_failing(order);
            self.finish_if_complete(now, order);
        }
        self.try_seal(id, shard);
    }

    pub(super) fn write_failed(&mut self, now: Time, id: DatasetId, piece: PieceNo, kind: FailureKind, detail: String) {
        if !self.write_answered(id, piece) {
            return;
        }
        let Some(dataset) = self.datasets.get_mut(&id) else {
            return;
        };
        dataset.set_state(piece, PieceState::Missing);
        dataset.disk_failures += 1;
        let give_up = kind == FailureKind::NoSpace || dataset.disk_failures > limits::DISK_RETRIES_MAX;
        let owner = self.owners.owner(id, piece);
        if let Some(order) = owner.and_then(|owner| self.orders.get_mut(&owner)) {
            order.writing -= 1;
            order.todo.insert(piece);
            let order = order.id;
            self.settle_failing(order);
        }
        if give_up {
            self.refuse(now, id, kind, detail);
        }
    }

    /// The disk does not take the version: stop, and tell the coordinator once.
    pub(super) fn refuse(&mut self, now: Time, id: DatasetId, kind: FailureKind, reason: String) {
        self.drop_orders(now, id);
        let Some(dataset) = self.datasets.get_mut(&id).filter(|d| !d.refused) else {
            return;
        };
        dataset.refused = true;
        self.report(Report::Refused { dataset: id, kind, reason });
    }
}
