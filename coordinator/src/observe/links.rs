//! Who feeds whom, and how fast: bytes of finished orders, forgotten over ten seconds.

use std::collections::BTreeMap;

use millstream_coordinator_core::event::Source;
use millstream_types::{NodeId, Time};

use crate::limits::LINKS_MAX;

/// Bytes are forgotten with this time constant.
const MEMORY_US: f64 = 10e6;
/// Below this a link is idle: one small piece in a minute.
const IDLE_BYTES_PER_S: f64 = 1.0;

#[derive(Clone, Copy, Debug)]
struct Link {
    at: Time,
    /// Faded bytes.
    bytes: f64,
}

/// Rates by (who sends, who receives).
#[derive(Debug, Default)]
pub(crate) struct Links(BTreeMap<(Source, NodeId), Link>);

impl Links {
    /// Bytes went over a link.
    pub(crate) fn moved(&mut self, now: Time, from: Source, to: NodeId, bytes: u64) {
        if self.0.len() >= LINKS_MAX && !self.0.contains_key(&(from, to)) {
            return;
        }
        let link = self.0.entry((from, to)).or_insert(Link { at: now, bytes: 0.0 });
        link.bytes = faded(link, now) + bytes as f64;
        link.at = now;
    }

    /// Forgets those that are idle.
    pub(crate) fn sweep(&mut self, now: Time) {
        self.0.retain(|_, link| faded(link, now) / (MEMORY_US / 1e6) > IDLE_BYTES_PER_S);
    }

    /// Bytes per second from `from` to `to`.
    pub(crate) fn rate(&self, now: Time, from: Source, to: NodeId) -> f64 {
        self.0.get(&(from, to)).map_or(0.0, |link| faded(link, now) / (MEMORY_US / 1e6))
    }

    /// Links that end at a node, and those that begin there.
    pub(crate) fn of(&self, node: NodeId) -> (Vec<Source>, Vec<NodeId>) {
        let into = self.0.keys().filter(|(_, to)| *to == node).map(|(from, _)| *from).collect();
        let peer = Source::Peer(node);
        let out = self.0.range((peer, NodeId(0))..=(peer, NodeId(u32::MAX))).map(|((_, to), _)| *to).collect();
        (into, out)
    }
}

fn faded(link: &Link, now: Time) -> f64 {
    link.bytes * (-(now.since(link.at) as f64) / MEMORY_US).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_flow_shows_its_rate_and_fades() {
        let mut links = Links::default();
        let (from, to) = (Source::Peer(NodeId(1)), NodeId(2));
        for tenth in 0..1_000u64 {
            links.moved(Time(tenth * 100_000), from, to, 1_000_000);
        }
        let now = Time(100_000_000);
        assert!((links.rate(now, from, to) / 1e7 - 1.0).abs() < 0.05, "{}", links.rate(now, from, to));
        assert_eq!(links.of(NodeId(2)), (vec![from], vec![]));
        assert_eq!(links.of(NodeId(1)), (vec![], vec![NodeId(2)]));
        links.sweep(now + 600_000_000);
        assert_eq!(links.of(NodeId(2)), (vec![], vec![]));
    }
}
