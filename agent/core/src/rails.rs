//! Which of a node's RDMA ports carries the bytes of which peer.

use std::collections::BTreeMap;

use millstream_types::Time;

use crate::limits::{COOLDOWN_SUBJECTS_MAX, RAIL_FAULT_MAX_US, RAIL_FAULT_MIN_US};

/// A port as the choice sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RailView {
    /// The device's name.
    pub device: String,
    /// Distance between its memory node and that of the buffers; 0 is the same, or unknown.
    pub distance: u32,
    /// Can it be used now?
    pub up: bool,
    /// Failures in a row with this peer: a port may work, and yet not reach it.
    pub faults: u32,
    /// On the network of the peer's address, or nobody knows.
    pub same_network: bool,
    /// Leading address bits that it shares with the peer, where that is known.
    pub shared_prefix: u32,
}

/// The rail for a peer: one that works, and has not failed with this peer more often than another; on the peer's
/// network where that is known, near the buffers. Among equals each peer has its own order of preference, so that peers
/// spread over the rails and move only when theirs fails.
pub fn choose_rail(rails: &[RailView], peer: &str) -> Option<usize> {
    let rank = |(at, rail): &(usize, &RailView)| {
        let far = (!rail.same_network, std::cmp::Reverse(rail.shared_prefix), rail.distance);
        (rail.faults, far, weight(&rail.device, peer), *at)
    };
    rails.iter().enumerate().filter(|(_, rail)| rail.up).min_by_key(rank).map(|(at, _)| at)
}

/// The peer has answered from another network than that of the rail `asked`: the rail that is on its network, if one
/// is. It has lost the counterpart of the first one, most likely.
pub fn nearer_rail(rails: &[RailView], peer: &str, asked: usize) -> Option<usize> {
    let is_there = |at: &usize| rails[*at].same_network && !rails.get(asked).is_some_and(|rail| rail.same_network);
    choose_rail(rails, peer).filter(is_there)
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    in_a_row: u32,
    /// Then it may be tried again.
    until: Time,
}

/// Which rails have failed with which peers, in a row. It is forgotten for a choice after a while, which doubles each
/// time: what a peer has lost may come back.
#[derive(Clone, Debug, Default)]
pub struct RailFaults(BTreeMap<String, BTreeMap<String, Fault>>);

impl RailFaults {
    /// How often `device` has failed with `peer` since it last worked; 0 when it may be tried again.
    pub fn count(&self, peer: &str, device: &str, now: Time) -> u32 {
        let fault = self.0.get(peer).and_then(|devices| devices.get(device));
        fault.filter(|fault| now < fault.until).map_or(0, |fault| fault.in_a_row)
    }

    /// It failed.
    pub fn failed(&mut self, peer: &str, device: &str, now: Time) {
        if self.0.len() >= COOLDOWN_SUBJECTS_MAX && !self.0.contains_key(peer) {
            // Whoever is forgotten costs one more failure at most.
            self.0.pop_first();
        }
        let devices = self.0.entry(peer.to_owned()).or_default();
        let fault = devices.entry(device.to_owned()).or_insert(Fault { in_a_row: 0, until: now });
        let wait = RAIL_FAULT_MIN_US.saturating_mul(1 << fault.in_a_row.min(16)).min(RAIL_FAULT_MAX_US);
        fault.in_a_row += 1;
        fault.until = Time(now.0 + wait);
    }

    /// It worked.
    pub fn worked(&mut self, peer: &str, device: &str) {
        let Some(devices) = self.0.get_mut(peer) else { return };
        devices.remove(device);
        if devices.is_empty() {
            self.0.remove(peer);
        }
    }
}

/// FNV-1a, finished with a mixer: the same everywhere, also in the simulator.
fn weight(device: &str, peer: &str) -> u64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = device.bytes().chain([0]).chain(peer.bytes()).fold(0xcbf2_9ce4_8422_2325, fnv);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rail(device: &str, distance: u32, up: bool) -> RailView {
        RailView { device: device.into(), distance, up, faults: 0, same_network: true, shared_prefix: 0 }
    }

    #[test]
    fn peers_spread_over_near_rails_and_leave_only_failed_ones() {
        let mut rails = vec![rail("mlx5_0", 0, true), rail("mlx5_1", 0, true), rail("mlx5_2", 1, true)];
        let peers: Vec<String> = (0..1000).map(|n| format!("10.0.0.{n}:7072")).collect();
        let before: Vec<usize> = peers.iter().map(|p| choose_rail(&rails, p).unwrap()).collect();
        let on_first = before.iter().filter(|r| **r == 0).count();
        assert!((400..600).contains(&on_first), "{on_first} of 1000");
        assert!(!before.contains(&2), "a far rail is not used while near ones work");
        rails[0].up = false;
        for (peer, was) in peers.iter().zip(&before) {
            assert_eq!(choose_rail(&rails, peer), Some(1), "was on {was}");
        }
        rails[1].up = false;
        assert_eq!(choose_rail(&rails, "p"), Some(2));
        rails[2].up = false;
        assert_eq!(choose_rail(&rails, "p"), None);
    }

    #[test]
    fn a_rail_that_does_not_reach_a_peer_is_left_for_another() {
        let mut faults = RailFaults::default();
        let mut rails = [rail("mlx5_0", 0, true), rail("mlx5_1", 3, true)];
        rails[0].shared_prefix = 128;
        let choose_at = |faults: &RailFaults, peer: &str, now: Time| {
            let view = |r: &RailView| RailView { faults: faults.count(peer, &r.device, now), ..r.clone() };
            choose_rail(&rails.iter().map(view).collect::<Vec<_>>(), peer)
        };
        let choose = |faults: &RailFaults, peer: &str| choose_at(faults, peer, Time(1));
        assert_eq!(choose(&faults, "p"), Some(0));
        faults.failed("p", "mlx5_0", Time(0));
        assert_eq!((choose(&faults, "p"), choose(&faults, "q")), (Some(1), Some(0)), "others are not concerned");
        faults.worked("p", "mlx5_1");
        assert_eq!(choose(&faults, "p"), Some(1), "it stays where it works");
        faults.failed("p", "mlx5_1", Time(0));
        assert_eq!(choose(&faults, "p"), Some(0), "each gets its turn");
        // After a while each may be tried again; who then fails waits for longer.
        assert_eq!(choose_at(&faults, "p", Time(RAIL_FAULT_MIN_US)), Some(0));
        faults.failed("p", "mlx5_0", Time(RAIL_FAULT_MIN_US));
        assert_eq!(choose_at(&faults, "p", Time(3 * RAIL_FAULT_MIN_US - 1)), Some(1));
        assert_eq!(choose_at(&faults, "p", Time(3 * RAIL_FAULT_MIN_US)), Some(0));
        (0..100).for_each(|_| faults.failed("p", "mlx5_0", Time(0)));
        assert_eq!(choose_at(&faults, "p", Time(RAIL_FAULT_MAX_US)), Some(0), "the wait is bounded");
        faults.worked("p", "mlx5_0");
        faults.worked("p", "mlx5_1");
        assert!(faults.0.is_empty());
        (0..2 * COOLDOWN_SUBJECTS_MAX).for_each(|n| faults.failed(&format!("n{n}"), "mlx5_0", Time(0)));
        assert_eq!(faults.0.len(), COOLDOWN_SUBJECTS_MAX);
    }

    #[test]
    fn the_peers_own_fabric_comes_before_distance() {
        let mut rails = vec![rail("mlx5_0", 0, true), rail("mlx5_1", 1, true)];
        rails[1].shared_prefix = 120;
        assert_eq!(choose_rail(&rails, "p"), Some(1));
    }

    #[test]
    fn an_answer_from_another_network_leads_to_the_rail_that_is_there() {
        let mut rails = vec![rail("mlx5_0", 0, true), rail("mlx5_1", 1, true)];
        assert_eq!(nearer_rail(&rails, "p", 0), None, "it is there already");
        rails[0].same_network = false;
        assert_eq!(nearer_rail(&rails, "p", 0), Some(1));
        rails[1].faults = 1;
        assert_eq!(nearer_rail(&rails, "p", 0), None, "that one has just failed");
        rails[1] = RailView { same_network: false, shared_prefix: 120, faults: 0, ..rails[1].clone() };
        assert_eq!(nearer_rail(&rails, "p", 0), None, "behind a router, perhaps: nothing says that another is better");
    }
}
