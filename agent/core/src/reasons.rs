//! Why pieces go over TCP although a node wants RDMA: the reason codes, and what to do about each.

/// Code and remedy. `docs/rdma.md` has the same codes, with their meaning.
pub const REASONS: [(&str, &str); 35] = [
    ("library-missing", "apt install libibverbs1 ibverbs-providers (or rdma-core)"),
    (
        "no-device",
        "rdma link; dmesg; in a container pass /dev/infiniband through; for tests: rdma link add rxe0 type rxe netdev IFACE",
    ),
    ("device-unusable", "apt install ibverbs-providers; permissions of /dev/infiniband/*; dmesg"),
    (
        "device-removed",
        "dmesg; rdma link; it is used again when it is back (a software device: rdma link add rxe0 type rxe netdev IFACE)",
    ),
    ("port-down", "ip link set IFACE up; check the cable; on InfiniBand a subnet manager (opensm) must run"),
    ("no-gid", "give the device's network interface an IP address"),
    (
        "gid-changed",
        "leave the addresses of the interface as they are while agents run; the new one is used after the cooldown",
    ),
    ("memlock", "set LimitMEMLOCK=infinity in the systemd unit, or `ulimit -l unlimited`"),
    ("registration-refused", "dmesg; smaller --buffers"),
    ("no-resources", "dmesg; fewer peers at once, smaller --buffers"),
    ("queue-pairs-used-up", "fewer peers at once"),
    ("no-route", "routes and addresses of the interface (ip route get PEER); both nodes on one fabric"),
    (
        "retry-exceeded",
        "PFC or ECN on NICs and switches (mlnx_qos -i IFACE); the same MTU along the path; is the peer up?",
    ),
    ("receiver-not-ready", "the same version on both nodes; the peer's log"),
    ("remote-access", "the same version on both nodes; firmware of the devices"),
    ("remote-refused", "the same version on both nodes; firmware of the devices"),
    ("local-error", "dmesg; firmware of the device"),
    ("post-refused", "dmesg; firmware of the device"),
    ("flushed", "dmesg; the peer's log"),
    ("busy", "nothing: too many pieces at once for one peer"),
    ("not-registered", "restart the agent, and report it"),
    ("rail-paused", "dmesg; cable, switch and device of the rail; it is opened again after the cooldown"),
    ("peer-without-rdma", "run millstream doctor on the peer"),
    ("peer-device", "run millstream doctor on the peer"),
    ("peer-fault", "the peer's log"),
    ("peer-refused", "the peer's log; fewer peers at once"),
    ("refused", "the same cluster token on both nodes"),
    ("setup-timeout", "is the peer overloaded? its log"),
    ("peer-closed", "the peer was stopped; its log"),
    ("peer-draining", "nothing: the peer is going away"),
    ("peer-silent", "is the peer overloaded or frozen? its log"),
    ("cancel-ignored", "the peer's log"),
    ("closed", "nothing: this node or the peer was stopping"),
    ("version-mismatch", "install the same version everywhere"),
    ("protocol", "install the same version everywhere"),
];

/// What to do about a reason.
pub fn fix(reason: &str) -> &'static str {
    REASONS.iter().find(|(code, _)| *code == reason).map_or("the agent's log; dmesg", |(_, fix)| fix)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::wire::Trouble;

    #[test]
    fn the_document_has_the_same_codes() {
        let text = include_str!("../../../docs/rdma.md");
        let (_, section) = text.split_once("| reason | meaning | what to do |").expect("the table");
        let rows = section.lines().skip(2).take_while(|line| line.starts_with('|'));
        let first = rows.filter_map(|row| row.split('|').nth(1));
        let documented: BTreeSet<&str> = first.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        let ours: BTreeSet<&str> = REASONS.iter().map(|(code, _)| *code).collect();
        assert_eq!(documented, ours);
    }

    #[test]
    fn every_trouble_of_a_peer_has_a_remedy() {
        for trouble in Trouble::ALL {
            assert!(REASONS.iter().any(|(code, _)| *code == trouble.reason()), "{trouble:?}");
        }
        assert_eq!(fix("something new"), "the agent's log; dmesg");
    }
}
