//! What people are told of this node beyond heartbeats: rails, traffic by peer, who keeps what.
//!
//! Goals: nothing is sent while nothing changes, and never more than one report in [`DETAILS_EVERY`]. Non-goals:
//! anything that a decision hangs on.

use std::collections::BTreeMap;
use std::time::Instant;

use millstream_proto::v1::{self, agent_message::Body};
use millstream_types::Digest;
use serde_json::Value;

use super::Driver;
use crate::limits::{DETAILS_EVERY, DETAILS_KEEPERS_MAX, DETAILS_PEERS_MAX};

/// What was told last, and when.
#[derive(Default)]
pub(super) struct Told {
    at: Option<Instant>,
    details: Option<v1::NodeDetails>,
}

impl Driver {
    /// Tells what has changed, when it is time.
    pub(super) fn tell_details(&mut self) {
        if self.told.at.is_some_and(|at| at.elapsed() < DETAILS_EVERY) {
            return;
        }
        let described = self.parts.transport.describe();
        let rdma = described.get("rdma").unwrap_or(&Value::Null);
        let devices = rdma.get("devices").and_then(Value::as_array);
        let details = v1::NodeDetails {
            rails: devices.into_iter().flatten().map(rail).collect(),
            rdma_reason: text(rdma, "reason"),
            peers: self.traffic(),
            keepers: self.keepers(),
        };
        if self.told.details.as_ref() == Some(&details) {
            return;
        }
        self.told = Told { at: Some(Instant::now()), details: Some(details.clone()) };
        self.send(Body::Details(details));
    }

    fn traffic(&self) -> Vec<v1::PeerBytes> {
        let peers = self.parts.transport.peers().into_iter();
        let mut peers: Vec<_> = peers.map(|(address, b)| v1::PeerBytes { address, rdma: b.rdma, tcp: b.tcp }).collect();
        peers.sort_by_key(|p| std::cmp::Reverse(p.rdma + p.tcp));
        peers.truncate(DETAILS_PEERS_MAX);
        peers
    }

    /// Pins, leases and readers; the same words for the same version are one, with a count.
    fn keepers(&self) -> Vec<v1::Keeper> {
        let holders = self.parts.store.holders().into_iter();
        let held = holders.map(|h| (h.digest, if h.pin { "pin" } else { "lease" }, h.by));
        let reading = self.readers.iter().map(|((digest, _), reader)| (*digest, "reader", reader.by.clone()));
        let mut counts: BTreeMap<(Digest, &str, String), u32> = BTreeMap::new();
        for key in held.chain(reading) {
            *counts.entry(key).or_default() += 1;
        }
        let keeper = |((digest, kind, by), count): ((Digest, &str, String), u32)| v1::Keeper {
            digest: digest.0.to_vec(),
            kind: kind.to_owned(),
            by,
            count,
        };
        counts.into_iter().take(DETAILS_KEEPERS_MAX).map(keeper).collect()
    }
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A device as the transport describes it.
fn rail(device: &Value) -> v1::Rail {
    let counted = |field: &str| device.get(field).and_then(Value::as_u64);
    let number = |field: &str| counted(field).unwrap_or_default();
    let small = |field: &str| u32::try_from(number(field)).unwrap_or(u32::MAX);
    let counters = device.get("counters").and_then(Value::as_object).into_iter().flatten();
    v1::Rail {
        device: text(device, "device"),
        port: small("port"),
        gid: text(device, "gid"),
        kind: text(device, "kind"),
        mtu_bytes: small("mtu_bytes"),
        queue_pairs: small("queue_pairs"),
        received_bytes: number("received_bytes"),
        wire_received_bytes: counted("wire_received_bytes"),
        counters: counters.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect(),
        state: text(device, "state"),
        sent_bytes: number("sent_bytes"),
        wire_sent_bytes: counted("wire_sent_bytes"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rail_is_told_as_it_is_described() {
        let described = json!({"device": "mlx5_0", "port": 1, "gid": "fe80::1", "kind": "roce-v2", "mtu_bytes": 4096,
            "queue_pairs": 7, "received_bytes": 9, "wire_received_bytes": 11, "counters": {"rcvd_pkts": 3},
            "state": "up", "sent_bytes": 5, "wire_sent_bytes": null});
        let told = rail(&described);
        assert_eq!((told.device.as_str(), told.port, told.mtu_bytes, told.queue_pairs), ("mlx5_0", 1, 4096, 7));
        assert_eq!((told.received_bytes, told.wire_received_bytes, told.counters["rcvd_pkts"]), (9, Some(11), 3));
        assert_eq!((told.state.as_str(), told.sent_bytes, told.wire_sent_bytes), ("up", 5, None));
        assert_eq!(rail(&Value::Null), v1::Rail::default(), "what is not described is not told");
    }
}
