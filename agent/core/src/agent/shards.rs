//! The whole shard: sealing it, and dropping what turned out wrong.

use millstream_types::{AssignmentId, DatasetId, ShardNo, Time};

use super::AgentCore;
use super::orders::cancelled;
use crate::dataset::{PieceState, Sealing};
use crate::event::{Action, FailureKind, Report};
use crate::limits;

impl AgentCore {
    /// Has a shard sealed when all of it is on disk and its pieces combine into what the origin holds.
    pub(super) fn try_seal(&mut self, id: DatasetId, shard: ShardNo) {
        let Some(dataset) = self.datasets.get_mut(&id) else {
            return;
        };
        if dataset.shard(shard).sealing != Sealing::Open {
            return;
        }
        let Some(crc) = dataset.whole(shard) else {
            return;
        };
        let mismatch = dataset.origin_says(shard).filter(|theirs| *theirs != crc);
        let state = dataset.shard_mut(shard);
        if let Some(theirs) = mismatch {
            state.sealing = Sealing::Mismatched;
            self.report(Report::Mismatch { dataset: id, shard, expected: theirs.to_string(), actual: crc.to_string() });
            return;
        }
        state.sealing = Sealing::Asked;
        let dataset = id;
        self.actions.push_back(Action::Seal { dataset, shard, crc });
    }

    /// True when an answer to `Seal` is for the present bytes.
    fn seal_answered(&mut self, id: DatasetId, shard: ShardNo) -> bool {
        let dataset = self.datasets.get_mut(&id);
        let Some(dataset) = dataset.filter(|d| shard < d.layout.shards()) else {
            return false;
        };
        let state = dataset.shard_mut(shard);
        if state.stale_answers > 0 {
            state.stale_answers -= 1;
            return false;
        }
        state.sealing == Sealing::Asked
    }

    fn set_sealing(&mut self, id: DatasetId, shard: ShardNo, sealing: Sealing) {
        if let Some(dataset) = self.datasets.get_mut(&id) {
            dataset.shard_mut(shard).sealing = sealing;
        }
    }

    pub(super) fn shard_sealed(&mut self, id: DatasetId, shard: ShardNo) {
        if self.seal_answered(id, shard) {
            self.set_sealing(id, shard, Sealing::Sealed);
            self.report(Report::Sealed { dataset: id, shard });
        }
    }

    pub(super) fn seal_mismatch(&mut self, id: DatasetId, shard: ShardNo, expected: String, actual: String) {
        if self.seal_answered(id, shard) {
            self.set_sealing(id, shard, Sealing::Mismatched);
            self.report(Report::Mismatch { dataset: id, shard, expected, actual });
        }
    }

    pub(super) fn seal_failed(&mut self, now: Time, id: DatasetId, shard: ShardNo, detail: String) {
        if !self.seal_answered(id, shard) {
            return;
        }
        self.set_sealing(id, shard, Sealing::Open);
        let Some(dataset) = self.datasets.get_mut(&id) else {
            return;
        };
        let state = dataset.shard_mut(shard);
        state.failures += 1;
        if state.failures > limits::SEAL_RETRIES_MAX {
            state.failures = 0;
            self.refuse(now, id, FailureKind::Disk, detail);
        } else {
            self.try_seal(id, shard);
        }
    }

    /// The coordinator says that what was read of a shard is wrong: its orders end, its checksums are forgotten.
    pub(super) fn discard_shard(&mut self, now: Time, id: DatasetId, shard: ShardNo) {
        let dataset = self.datasets.get(&id);
        let Some(dataset) = dataset.filter(|d| shard < d.layout.shards()) else {
            return;
        };
        let pieces = dataset.layout.shard_pieces(shard);
        let (_, orders) = self.drop_bytes(now, id, shard);
        if let Some(dataset) = self.datasets.get_mut(&id) {
            dataset.forget_checksums(shard);
        }
        self.reads.retain(|(dataset, first, crcs)| {
            let end = *first + crcs.len() as u32;
            *dataset != id || end <= pieces.start || pieces.end <= *first
        });
        self.actions.push_back(Action::Discard { dataset: id, shard });
        for order in orders {
            if let Some(source) = self.orders.get(&order).map(|o| o.source) {
                let failure = cancelled(source, "the shard was discarded");
                self.fail_order(now, order, failure);
            }
        }
    }

    /// A shard is not needed here any more: its bytes go, what its pieces must sum to stays known.
    pub(super) fn drop_shard(&mut self, now: Time, id: DatasetId, shard: ShardNo) {
        if self.datasets.get(&id).is_none_or(|d| shard >= d.layout.shards()) {
            return;
        }
        let (_, orders) = self.drop_bytes(now, id, shard);
        self.actions.push_back(Action::Discard { dataset: id, shard });
        for order in orders {
            if let Some(source) = self.orders.get(&order).map(|o| o.source) {
                self.fail_order(now, order, cancelled(source, "the shard was dropped"));
            }
        }
    }

    /// The coordinator's checksum of a piece differs from the one under which its bytes were accepted here: the bytes
    /// go, its orders fetch them again.
    pub(super) fn contradicted(&mut self, now: Time, id: DatasetId, shard: ShardNo) {
        let (lost, orders) = self.drop_bytes(now, id, shard);
        if let Some(dataset) = self.datasets.get_mut(&id) {
            dataset.forget_own_readings(shard);
        }
        self.actions.push_back(Action::Discard { dataset: id, shard });
        if lost {
            let reason = "its checksums are not those of the manifest".to_owned();
            self.report(Report::Lost { dataset: id, shard, reason });
        }
        for order in orders {
            self.settle_failing(order);
        }
    }

    /// The shell found bad bytes and removed the file.
    pub(super) fn shard_lost(&mut self, now: Time, id: DatasetId, shard: ShardNo, reason: String) {
        let dataset = self.datasets.get(&id);
        if dataset.is_some_and(|d| shard < d.layout.shards()) {
            let (_, orders) = self.drop_bytes(now, id, shard);
            self.report(Report::Lost { dataset: id, shard, reason });
            for order in orders {
                self.settle_failing(order);
            }
        }
    }

    /// Makes all pieces of a shard missing, whatever they were. Says whether pieces went that no order
    /// will bring back, and which orders to settle once the shell knows.
    fn drop_bytes(&mut self, now: Time, id: DatasetId, shard: ShardNo) -> (bool, Vec<AssignmentId>) {
        let Some(dataset) = self.datasets.get(&id) else {
            return (false, Vec::new());
        };
        let pieces = dataset.layout.shard_pieces(shard);
        let mut touched: Vec<_> = (pieces.clone()).filter_map(|piece| self.owners.owner(id, piece)).collect();
        touched.dedup();
        for order in &touched {
            self.abort_fetches(now, *order);
        }
        self.reject_held(id, pieces.clone());
        let mut lost = false;
        for piece in pieces {
            let Some(dataset) = self.datasets.get_mut(&id) else {
                return (lost, touched);
            };
            let was = dataset.state(piece);
            if was == PieceState::Missing {
                continue;
            }
            dataset.set_state(piece, PieceState::Missing);
            self.forget_write(id, piece);
            let owner = self.owners.owner(id, piece);
            match owner.and_then(|owner| self.orders.get_mut(&owner)) {
                Some(order) => {
                    order.writing -= u32::from(was == PieceState::Accepted);
                    order.left += u32::from(was == PieceState::Written);
                    order.todo.insert(piece);
                }
                None => lost = true,
            }
        }
        if let Some(dataset) = self.datasets.get_mut(&id) {
            let state = dataset.shard_mut(shard);
            state.stale_answers += u32::from(state.sealing == Sealing::Asked);
            state.sealing = Sealing::Open;
            state.failures = 0;
        }
        (lost, touched)
    }
}
