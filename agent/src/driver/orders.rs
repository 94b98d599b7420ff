//! The coordinator's orders, parsed into the core's events. What does not parse is logged and dropped: an agent
//! never stops because of one bad message.

use std::collections::VecDeque;

use millstream_agent_core::event::{Assignment, Event, PeerId, Source};
use millstream_proto::v1::coordinator_message::Body as Order;
use millstream_proto::v1::{self, agent_message::Body, source::From as WireSource};
use millstream_types::{AssignmentId, Crc64, DatasetId, Digest};

use super::{Driver, Slot};
use crate::limits::WAITING_ORDERS_MAX;

impl Driver {
    pub(super) fn apply_order(&mut self, order: Order) {
        let wire = match &order {
            Order::Attach(attach) => return self.apply_attach(attach.clone()),
            Order::Cancel(cancel) => return self.handle(Event::Cancelled(AssignmentId(cancel.assignment))),
            Order::Assign(assign) => assign.dataset,
            Order::Checksums(checksums) => checksums.dataset,
            Order::Discard(discard) => discard.dataset,
            Order::Detach(detach) => detach.dataset,
            Order::Verify(verify) => verify.dataset,
            Order::Pin(pin) => pin.dataset,
            Order::Drop(drop) => drop.dataset,
            Order::HeartbeatAck(_) | Order::Welcome(_) | Order::Refused(_) | Order::Batch(_) => return,
        };
        let Some(&dataset) = self.from_wire.get(&wire) else {
            tracing::warn!(dataset = wire, "order for a version that was never attached; ignored");
            return;
        };
        self.apply_order_for(dataset, order);
    }

    /// An order for a version: at once when it is open, later when it is being opened.
    fn apply_order_for(&mut self, dataset: DatasetId, order: Order) {
        match self.versions.get_mut(&dataset) {
            Some(Slot::Opening { orders }) if orders.len() < WAITING_ORDERS_MAX => orders.push_back(order),
            Some(Slot::Opening { .. }) => {
                tracing::warn!(%dataset, "too many orders wait for this version; dropped one")
            }
            Some(Slot::Open(_)) => self.apply_order_now(dataset, order),
            None => {}
        }
    }

    pub(super) fn replay_orders(&mut self, dataset: DatasetId, orders: VecDeque<Order>) {
        for order in orders {
            self.apply_order_now(dataset, order);
        }
    }

    fn apply_order_now(&mut self, dataset: DatasetId, order: Order) {
        match order {
            Order::Assign(assign) => self.apply_assign(dataset, assign),
            Order::Checksums(c) => {
                let crcs = c.crcs.into_iter().map(Crc64).collect();
                self.handle(Event::Checksums { dataset, first: c.first, crcs });
            }
            Order::Discard(discard) => {
                tracing::warn!(%dataset, shard = discard.shard, reason = discard.reason, "the coordinator discards a shard");
                let known = self.open(dataset).is_some_and(|o| discard.shard < o.local.manifest.layout().shards());
                if known {
                    if discard.fatal
                        && let Some(open) = self.open(dataset)
                    {
                        open.local.progress.send_modify(|p| p.failed = Some((5, discard.reason.clone())));
                    }
                    self.handle(Event::DiscardShard { dataset, shard: discard.shard });
                }
            }
            Order::Detach(detach) => {
                if detach.evict {
                    self.start_evict(dataset);
                } else {
                    self.close(dataset);
                }
            }
            Order::Verify(verify) => self.start_verify(dataset, verify.request, None),
            Order::Pin(pin) => self.set_pin(dataset, pin.pinned),
            Order::Drop(drop) => self.drop_shards(dataset, drop),
            _ => {}
        }
    }

    fn apply_assign(&mut self, dataset: DatasetId, assign: v1::Assign) {
        let Some(open) = self.open(dataset) else { return };
        let pieces_total = open.local.manifest.layout().pieces();
        let end = assign.first.checked_add(assign.pieces).filter(|&end| end <= pieces_total && assign.pieces > 0);
        let (Some(end), Some(source)) = (end, assign.source.as_ref().and_then(|s| self.source(s))) else {
            tracing::warn!(%dataset, first = assign.first, pieces = assign.pieces, "assignment does not fit the version; ignored");
            return;
        };
        let alternates: Vec<PeerId> = assign
            .alternates
            .iter()
            .filter_map(|s| match self.source(s) {
                Some(Source::Peer(peer)) => Some(peer),
                _ => None,
            })
            .collect();
        let Some(digest) = self.open(dataset).map(|o| o.digest) else { return };
        self.parts.table.expect(&digest, assign.first..end);
        if let Some(open) = self.open(dataset)
            && open.local.progress.borrow().failed.is_some()
        {
            open.local.progress.send_modify(|p| p.failed = None); // the coordinator tries again
        }
        self.handle(Event::Assigned(Assignment {
            id: AssignmentId(assign.assignment),
            dataset,
            pieces: assign.first..end,
            source,
            alternates,
            lease_us: u64::from(assign.lease_ms) * 1000,
            priority: assign.priority,
        }));
    }

    fn source(&mut self, source: &v1::Source) -> Option<Source> {
        match source.from.as_ref()? {
            WireSource::Origin(_) => Some(Source::Origin),
            WireSource::Peer(peer) => Some(Source::Peer(self.peer(&peer.node, &peer.address))),
        }
    }

    fn apply_attach(&mut self, attach: v1::Attach) {
        let Some(digest) = Digest::from_slice(&attach.digest) else {
            tracing::warn!("attach without a digest; ignored");
            return;
        };
        let dataset = match self.by_digest.get(&digest) {
            Some(&dataset) => dataset,
            None => self.start_open(digest, attach.wanted.then_some(attach.wanted_bytes)),
        };
        self.from_wire.insert(attach.dataset, dataset);
        self.to_wire.insert(dataset, attach.dataset);
        if attach.pinned {
            self.set_pin(dataset, true);
        }
        if self.open(dataset).is_some() {
            self.send_inventory(dataset);
        }
    }

    /// What this node holds of a version.
    pub(super) fn send_inventory(&mut self, dataset: DatasetId) {
        let (Some(&wire), Some(open)) = (self.to_wire.get(&dataset), self.open(dataset)) else { return };
        let digest = open.digest;
        let Some((have, sealed)) = self.core.inventory(dataset) else { return };
        let origin_read = self
            .core
            .learned(dataset)
            .into_iter()
            .chain(open.origin_read.iter().cloned())
            .map(|(first, crcs)| v1::PieceChecksums {
                dataset: wire,
                first,
                crcs: crcs.into_iter().map(|c| c.0).collect(),
            })
            .collect();
        self.send(Body::Inventory(v1::Inventory {
            dataset: wire,
            digest: digest.0.to_vec(),
            pieces: Some(millstream_proto::convert::set_to_runs(&have)),
            sealed_shards: Some(millstream_proto::convert::set_to_runs(&sealed)),
            origin_read,
        }));
        self.announce_readers(digest);
    }
}
