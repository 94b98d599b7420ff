//! How a node is equipped, with whom it trades, who keeps what there: what its agent says for people, checked.

use std::collections::BTreeMap;

use millstream_proto::convert::{self, ConvertError};
use millstream_proto::v1;
use millstream_types::Digest;
use serde::Serialize;
use utoipa::ToSchema;

use super::short;
use crate::limits::{KEEPERS_MAX, PEERS_SHOWN_MAX, RAIL_COUNTERS_MAX, RAILS_MAX};

/// An RDMA device of the node: in use, or left alone for now. Bytes are those since it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Rail {
    device: String,
    /// `up`, or the reason code of why it is not used now.
    state: String,
    /// 0 when none is in use.
    port: u32,
    gid: String,
    /// `ib`, `roce-v1` or `roce-v2`.
    kind: String,
    mtu_bytes: u32,
    queue_pairs: u32,
    /// Of pieces, as the agent counts.
    pub(crate) received_bytes: u64,
    sent_bytes: u64,
    /// Everything, as the device counts; null when it does not.
    wire_received_bytes: Option<u64>,
    wire_sent_bytes: Option<u64>,
    /// The device counted no less than the agent: those bytes were on the wire. Null when it does not count.
    confirmed: Option<bool>,
    /// The device's own counters; empty where many nodes are listed.
    counters: BTreeMap<String, u64>,
}

impl Rail {
    /// As lists of nodes show it.
    pub(crate) fn without_counters(&self) -> Rail {
        Rail { counters: BTreeMap::new(), ..self.clone() }
    }
}

/// Bytes received from a peer since the agent began, by carrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerBytes {
    pub(crate) rdma: u64,
    pub(crate) tcp: u64,
}

/// Who keeps a version on the node, as its agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keeper {
    pub(crate) digest: Digest,
    /// `pin`, `lease` or `reader`.
    pub(crate) kind: &'static str,
    pub(crate) by: String,
    pub(crate) count: u32,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Details {
    pub(crate) rails: Vec<Rail>,
    /// Why it has none, where it wants one.
    pub(crate) rdma_reason: String,
    /// By the peer's address.
    pub(crate) peers: BTreeMap<String, PeerBytes>,
    pub(crate) keepers: Vec<Keeper>,
}

impl Details {
    /// Checks what an agent sent.
    pub(crate) fn parse(wire: v1::NodeDetails) -> Result<Details, ConvertError> {
        let peers = wire.peers.into_iter().take(PEERS_SHOWN_MAX);
        let keepers = wire.keepers.into_iter().take(KEEPERS_MAX).map(keeper);
        Ok(Details {
            rails: wire.rails.into_iter().take(RAILS_MAX).map(rail).collect(),
            rdma_reason: short(&wire.rdma_reason),
            peers: peers.map(|p| (short(&p.address), PeerBytes { rdma: p.rdma, tcp: p.tcp })).collect(),
            keepers: keepers.collect::<Result<_, _>>()?,
        })
    }
}

fn rail(wire: v1::Rail) -> Rail {
    // A map has no order: the first by name, so that it is the same ones each time.
    let counters: BTreeMap<String, u64> = wire.counters.into_iter().map(|(name, n)| (short(&name), n)).collect();
    let on_wire = wire.wire_received_bytes.zip(wire.wire_sent_bytes);
    Rail {
        device: short(&wire.device),
        state: short(&wire.state),
        port: wire.port,
        gid: short(&wire.gid),
        kind: short(&wire.kind),
        mtu_bytes: wire.mtu_bytes,
        queue_pairs: wire.queue_pairs,
        received_bytes: wire.received_bytes,
        sent_bytes: wire.sent_bytes,
        wire_received_bytes: wire.wire_received_bytes,
        wire_sent_bytes: wire.wire_sent_bytes,
        confirmed: on_wire.map(|(received, sent)| received >= wire.received_bytes && sent >= wire.sent_bytes),
        counters: counters.into_iter().take(RAIL_COUNTERS_MAX).collect(),
    }
}

fn keeper(wire: v1::Keeper) -> Result<Keeper, ConvertError> {
    let kind = match wire.kind.as_str() {
        "pin" => "pin",
        "lease" => "lease",
        "reader" => "reader",
        other => return Err(ConvertError { field: "kind", reason: format!("{:?} keeps nothing", short(other)) }),
    };
    let digest = convert::digest("digest", &wire.digest)?;
    Ok(Keeper { digest, kind, by: short(&wire.by), count: wire.count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_counts_less_than_the_agent_denies_it() {
        let told = v1::Rail { received_bytes: 9, sent_bytes: 2, wire_received_bytes: Some(9), ..v1::Rail::default() };
        assert_eq!(rail(told.clone()).confirmed, None, "it does not count what it sends");
        assert_eq!(rail(v1::Rail { wire_sent_bytes: Some(2), ..told.clone() }).confirmed, Some(true));
        assert_eq!(rail(v1::Rail { wire_sent_bytes: Some(1), ..told }).confirmed, Some(false));
    }

    #[test]
    fn what_agents_say_is_bounded_and_checked() {
        let keeper = v1::Keeper { digest: vec![7; 32], kind: "lease".into(), by: "p (pid 1)\n".into(), count: 2 };
        let rail =
            v1::Rail { device: "mlx5_0".into(), counters: [("sent_pkts".into(), 3)].into(), ..v1::Rail::default() };
        let good = v1::NodeDetails {
            rails: vec![rail; RAILS_MAX + 1],
            keepers: vec![keeper.clone(); KEEPERS_MAX + 1],
            peers: vec![v1::PeerBytes { address: "h:1".into(), rdma: 1, tcp: 2 }],
            ..v1::NodeDetails::default()
        };
        let details = Details::parse(good.clone()).unwrap();
        assert_eq!((details.rails.len(), details.keepers.len()), (RAILS_MAX, KEEPERS_MAX));
        assert_eq!(details.rails[0].counters["sent_pkts"], 3);
        assert_eq!((details.keepers[0].kind, details.keepers[0].by.as_str()), ("lease", "p (pid 1) "));
        assert_eq!(details.peers["h:1"], PeerBytes { rdma: 1, tcp: 2 });
        for wrong in [v1::Keeper { kind: "lock".into(), ..keeper.clone() }, v1::Keeper { digest: vec![1], ..keeper }] {
            assert!(Details::parse(v1::NodeDetails { keepers: vec![wrong], ..good.clone() }).is_err());
        }
    }
}
