//! Orders of the coordinator: taking them, changing hands, giving them back.

use std::cmp::Reverse;

use millstream_types::{AssignmentId, DatasetId, PieceRange, RunSet, Time};

use super::{AgentCore, Early};
use crate::dataset::PieceState;
use crate::event::{Action, Assignment, Failure, FailureKind, FetchId, Report, Source};
use crate::limits;
use crate::order::Order;
use crate::ordered::OrderedMap;

impl AgentCore {
    pub(super) fn assigned(&mut self, now: Time, assignment: Assignment) {
        let Some(dataset) = self.datasets.get_mut(&assignment.dataset) else {
            let kept = self.keep_early(assignment.dataset, Early::Assigned(assignment.clone()));
            if !kept {
                self.refuse_order(&assignment, "too many orders for versions not open yet");
            }
            return;
        };
        let pieces = &assignment.pieces;
        if pieces.end > dataset.layout.pieces() || pieces.start >= pieces.end {
            self.refuse_order(&assignment, "the version has no such pieces");
            return;
        }
        if self.orders.len() >= limits::ORDERS_MAX {
            self.refuse_order(&assignment, "too many orders in hand");
            return;
        }
        dataset.refused = false;
        dataset.disk_failures = 0;
        self.take_over(now, Order::new(now, assignment));
    }

    /// Answers an order that cannot be taken.
    fn refuse_order(&mut self, assignment: &Assignment, why: &str) {
        let missing = RunSet::from_range(assignment.pieces.clone());
        let failure = cancelled(assignment.source, why);
        self.report(Report::Failed { assignment: assignment.id, dataset: assignment.dataset, missing, failure });
    }

    /// Makes the order the owner of its pieces, whoever had them before.
    fn take_over(&mut self, now: Time, mut order: Order) {
        let (id, dataset_id, pieces) = (order.id, order.dataset, order.pieces.clone());
        // An order of the same number is the same order, said again.
        let again = self.orders.remove(&id);
        let taken = self.owners.give(dataset_id, pieces.clone(), id);
        if order.source == Source::Origin {
            // Who was to report their checksum may be gone: now it is for us to read them.
            self.reject_held(dataset_id, pieces.clone());
        }
        let Some(dataset) = self.datasets.get(&dataset_id) else {
            return;
        };
        for piece in pieces {
            match dataset.state(piece) {
                PieceState::Written => continue,
                PieceState::Accepted => order.writing += 1,
                PieceState::Held => {}
                PieceState::Missing => order.todo.insert(piece),
            }
            order.left += 1;
        }
        if let Some(old) = again {
            (order.bytes, order.started) = (old.bytes, old.started);
            self.forget_former(&old, &order);
            for fetch in old.fetches.into_keys() {
                self.keep_or_abort(fetch, &mut order);
            }
        }
        let mut losers: Vec<AssignmentId> = taken.iter().map(|(_, id)| *id).collect();
        losers.sort_unstable();
        losers.dedup();
        for loser in losers.into_iter().filter(|loser| *loser != id) {
            self.lose_pieces(now, loser, &mut order, &taken);
        }
        self.queue.insert((Reverse(order.priority), id));
        self.orders.insert(id, order);
        self.set_timer(now, id);
        self.finish_if_complete(now, id);
    }

    /// Frees what the former order of the same number had beyond the new one.
    fn forget_former(&mut self, old: &Order, new: &Order) {
        self.queue.remove(&(Reverse(old.priority), old.id));
        let (start, end) = match old.dataset == new.dataset {
            true => (new.pieces.start, new.pieces.end),
            false => (old.pieces.end, old.pieces.end),
        };
        for rest in [old.pieces.start..start.min(old.pieces.end), end.max(old.pieces.start)..old.pieces.end] {
            for (range, _) in self.owners.release(old.dataset, rest, old.id) {
                self.reject_held(old.dataset, range);
            }
        }
    }

    /// Takes the pieces of `taken` from `loser` for `order`; a loser of everything ends without a word.
    fn lose_pieces(&mut self, now: Time, loser: AssignmentId, order: &mut Order, taken: &[(PieceRange, AssignmentId)]) {
        let Some(mut old) = self.orders.remove(&loser) else {
            return;
        };
        let dataset = &self.datasets[&old.dataset];
        for (range, _) in taken.iter().filter(|(_, id)| *id == loser) {
            old.todo.remove_range(range.clone());
            for piece in range.clone() {
                let state = dataset.state(piece);
                old.left -= u32::from(state != PieceState::Written);
                old.writing -= u32::from(state == PieceState::Accepted);
            }
        }
        let fetches: Vec<FetchId> = old.fetches.keys().copied().collect();
        for fetch in fetches {
            let f = &self.fetches[&fetch];
            let rest = f.next..f.pieces.end;
            let touches = order.pieces.start < rest.end && rest.start < order.pieces.end;
            if rest.is_empty() || !touches {
                continue;
            }
            old.fetches.remove(&fetch);
            old.asked_bytes = old.asked_bytes.saturating_sub(f.charge);
            self.keep_or_abort(fetch, order);
            // What the old order still owns of an aborted fetch, it asks for again.
            self.want_again(&mut old, rest);
        }
        let nothing_left = !self.owners.has_any(old.dataset, old.pieces.clone(), loser);
        if nothing_left && old.failing.is_none() {
            self.queue.remove(&(Reverse(old.priority), loser));
            return;
        }
        self.orders.insert(loser, old);
        self.settle_failing(loser);
        self.finish_if_complete(now, loser);
        self.set_timer(now, loser);
    }

    /// A running fetch whose pieces `order` takes over: goes on when it reads what the order wants from whom the order
    /// wants, else it is aborted.
    fn keep_or_abort(&mut self, fetch: FetchId, order: &mut Order) {
        let Some(f) = self.fetches.get_mut(&fetch) else {
            return;
        };
        let rest = f.next..f.pieces.end;
        let inside = order.pieces.start <= rest.start && rest.end <= order.pieces.end;
        if f.source == order.source && inside && f.dataset == order.dataset {
            f.order = order.id;
            order.todo.remove_range(rest);
            order.fetches.insert(fetch, ());
            order.started = order.started.or(Some(f.issued));
            if matches!(f.source, Source::Peer(_)) {
                order.asked_bytes += f.charge;
            }
        } else {
            f.aborted = true;
            self.actions.push_back(Action::Abort { fetch });
        }
    }

    pub(super) fn cancel(&mut self, now: Time, id: AssignmentId) {
        for early in self.early.values_mut() {
            early.retain(|e| !matches!(e, Early::Assigned(a) if a.id == id));
        }
        self.drop_order(now, id);
    }

    /// Ends an order without a report. Verified pieces stay.
    fn drop_order(&mut self, now: Time, id: AssignmentId) {
        self.abort_fetches(now, id);
        let Some(order) = self.orders.remove(&id) else {
            return;
        };
        self.queue.remove(&(Reverse(order.priority), id));
        for (range, _) in self.owners.release(order.dataset, order.pieces, id) {
            self.reject_held(order.dataset, range);
        }
    }

    /// Ends all orders of a version without a report.
    pub(super) fn drop_orders(&mut self, now: Time, dataset: DatasetId) {
        let of_dataset = self.orders.values().filter(|o| o.dataset == dataset);
        let ids: Vec<AssignmentId> = of_dataset.map(|o| o.id).collect();
        for id in ids {
            self.drop_order(now, id);
        }
    }

    /// Pieces that a fetch did not bring: to be asked for again, unless they came another way or are another order's.
    fn want_again(&self, order: &mut Order, pieces: PieceRange) {
        let Some(dataset) = self.datasets.get(&order.dataset) else {
            return;
        };
        for piece in pieces {
            if dataset.state(piece) == PieceState::Missing && self.owners.owner(order.dataset, piece) == Some(order.id)
            {
                order.todo.insert(piece);
            }
        }
    }

    /// As [`want_again`](Self::want_again), for the order `id`.
    pub(super) fn not_brought(&mut self, id: AssignmentId, pieces: PieceRange) {
        if !pieces.is_empty()
            && let Some(mut order) = self.orders.remove(&id)
        {
            self.want_again(&mut order, pieces);
            self.orders.insert(id, order);
        }
    }

    /// Stops an order's fetches; their pieces are to be asked for again.
    pub(super) fn abort_fetches(&mut self, now: Time, id: AssignmentId) {
        let Some(mut order) = self.orders.remove(&id) else {
            return;
        };
        for fetch in std::mem::take(&mut order.fetches).into_keys() {
            let Some(f) = self.fetches.get_mut(&fetch) else {
                continue;
            };
            f.aborted = true;
            let rest = f.next..f.pieces.end;
            self.want_again(&mut order, rest);
            self.actions.push_back(Action::Abort { fetch });
        }
        order.asked_bytes = 0;
        self.orders.insert(id, order);
        self.set_timer(now, id);
    }

    /// Gives an order back, as soon as its writes are answered.
    pub(super) fn fail_order(&mut self, now: Time, id: AssignmentId, failure: Failure) {
        self.abort_fetches(now, id);
        let Some(order) = self.orders.get_mut(&id) else {
            return;
        };
        order.failing.get_or_insert(failure);
        let (dataset, pieces) = (order.dataset, order.pieces.clone());
        let held: Vec<u32> = self
            .held
            .range((dataset, pieces.start)..(dataset, pieces.end))
            .map(|((_, piece), _)| *piece)
            .filter(|piece| self.owners.owner(dataset, *piece) == Some(id))
            .collect();
        for piece in held {
            self.reject_held(dataset, piece..piece + 1);
        }
        self.settle_failing(id);
    }

    /// Reports a failed order once its writes are answered.
    pub(super) fn settle_failing(&mut self, id: AssignmentId) {
        let settled = |order: &&Order| order.writing == 0 && order.failing.is_some();
        if self.orders.get(&id).filter(settled).is_none() {
            return;
        }
        let Some(order) = self.orders.remove(&id) else {
            return;
        };
        self.queue.remove(&(Reverse(order.priority), id));
        let mut missing = RunSet::new();
        let owned = self.owners.release(order.dataset, order.pieces, id);
        if let Some(dataset) = self.datasets.get(&order.dataset) {
            for piece in owned.into_iter().flat_map(|(range, _)| range) {
                if dataset.state(piece) != PieceState::Written {
                    missing.insert(piece);
                }
            }
        }
        if let Some(failure) = order.failing {
            self.report(Report::Failed { assignment: id, dataset: order.dataset, missing, failure });
        }
    }

    /// Reports an order whose pieces are all on disk.
    pub(super) fn finish_if_complete(&mut self, now: Time, id: AssignmentId) {
        let complete = |order: &&Order| order.left == 0 && order.failing.is_none();
        if self.orders.get(&id).filter(complete).is_none() {
            return;
        }
        self.abort_duplicates(id);
        if let Some(order) = self.orders.remove(&id) {
            self.queue.remove(&(Reverse(order.priority), id));
            self.owners.release(order.dataset, order.pieces, id);
            self.report(Report::Done {
                assignment: id,
                bytes: order.bytes,
                elapsed_us: order.started.map_or(0, |started| now.since(started)),
                source: order.source,
            });
        }
    }

    /// Stops fetches of an order that is complete: what they read came another way.
    fn abort_duplicates(&mut self, id: AssignmentId) {
        let fetches = self.orders.get_mut(&id).map(|o| std::mem::take(&mut o.fetches));
        for fetch in fetches.into_iter().flat_map(OrderedMap::into_keys) {
            if let Some(f) = self.fetches.get_mut(&fetch) {
                f.aborted = true;
                if f.next < f.pieces.end {
                    self.actions.push_back(Action::Abort { fetch });
                }
            }
        }
    }

    /// Gives an order back whose right to read the origin ran out.
    pub(super) fn lease_check(&mut self, now: Time, id: AssignmentId) {
        let Some(order) = self.orders.get(&id) else {
            return;
        };
        if order.lease_end > now || !order.is_reading() {
            return;
        }
        let failure = Failure { kind: FailureKind::Timeout, ..cancelled(order.source, "the lease ran out") };
        self.fail_order(now, id, failure);
    }
}

/// A failure that is nobody's fault.
pub(super) fn cancelled(source: Source, why: &str) -> Failure {
    Failure::new(FailureKind::Cancelled, source, why.to_owned())
}
