//! Nodes: the list, and one node with its links, transfers, versions and where it stands out.

use millstream_coordinator_core::event::Source;
use millstream_coordinator_core::holdings::Transfer;
use millstream_types::{DatasetId, NodeId, Time};
use serde::Serialize;
use utoipa::ToSchema;

use super::datasets::TransferItem;
use super::{Page, Paging, natural};
use crate::driver::State;
use crate::nodes::Node;
use crate::observe::alarms::Alarm;
use crate::status::NodeStatus;

/// Transfers, links and versions of one node that are shown.
const SHOWN: usize = 100;

/// One node in full.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct NodeDetail {
    /// As in the list and in `status`.
    #[serde(flatten)]
    status: NodeStatus,
    /// What is wrong with it now.
    alarms: Vec<Alarm>,
    /// Where it differs from the median of the nodes that are up.
    compared: Vec<Compared>,
    /// Who feeds it.
    links_in: Vec<Link>,
    /// Whom it feeds.
    links_out: Vec<Link>,
    /// What it received from each peer since its process began, by carrier; the most first.
    from_peers: Vec<FromPeer>,
    /// What it receives and sends now.
    transfers: Vec<TransferItem>,
    /// Versions of which it has or shall have something.
    datasets: Vec<NodeDataset>,
}

/// Piece bytes from one peer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct FromPeer {
    /// A node, or an address where no node is now.
    peer: String,
    rdma_bytes: u64,
    tcp_bytes: u64,
}

/// A measure of a node beside the median of all.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Compared {
    /// What is measured.
    what: &'static str,
    value: f64,
    median: f64,
    /// `bytes_per_s`, `share`, `factor` or `count`.
    unit: &'static str,
    /// Far from the median, in the direction that is bad.
    outlier: bool,
}

/// Bytes between two nodes, or from the origin.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Link {
    /// A node, or `origin`.
    peer: String,
    /// Over the last ten seconds or so.
    bytes_per_s: u64,
    /// Orders that use it now.
    transfers: u32,
}

/// A version on the node.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct NodeDataset {
    /// `name@version`.
    dataset: String,
    /// `absent`, `receiving`, `verifying`, `ready` or `failed`.
    state: &'static str,
    reason: String,
    shards_ready: u32,
    shards_wanted: u32,
    bytes_ready: u64,
    bytes_wanted: u64,
    /// It stays until it is unpinned (`millstream unpin`).
    pinned: bool,
}

impl State {
    /// Nodes in the order of their names; those that are not up first.
    pub(crate) fn node_list(&self, now: Time, paging: &Paging) -> Page<NodeStatus> {
        let known = self.nodes.iter().filter(|n| paging.names(&n.name));
        let state = |n: &Node| self.core.node(n.id, now).map_or("down", |v| v.state.as_str());
        let mut matched: Vec<(&'static str, &Node)> = known.map(|n| (state(n), n)).collect();
        matched.retain(|(state, _)| paging.in_state(state));
        matched.sort_by_cached_key(|(state, n)| (*state == "up", natural(&n.name)));
        paging.page(self.nodes.iter().count(), matched, |(_, n)| self.node_status(now, n))
    }

    pub(crate) fn node_detail(&self, now: Time, node: &Node) -> NodeDetail {
        let transfers = self.core.node_transfers(node.id, now);
        let links_in = self.links_in(now, node.id, &transfers);
        let links_out = self.links_out(now, node.id, &transfers);
        let items = transfers.iter().take(SHOWN);
        NodeDetail {
            status: self.node_status(now, node),
            alarms: self.observed.alarms.iter().filter(|a| a.node.as_ref() == Some(&node.name)).cloned().collect(),
            compared: self.compared(now, node),
            links_in,
            links_out,
            from_peers: self.bytes_from_peers(node),
            transfers: items.map(|(dataset, t)| self.transfer_item(*dataset, t)).collect(),
            datasets: self.node_datasets(now, node),
        }
    }

    fn links_in(&self, now: Time, node: NodeId, transfers: &[(DatasetId, Transfer)]) -> Vec<Link> {
        let (mut sources, _) = self.observed.links.of(node);
        sources.extend(transfers.iter().filter(|(_, t)| t.node == node).map(|(_, t)| t.source));
        sources.sort_unstable();
        sources.dedup();
        let link = |source: Source| Link {
            peer: self.source_name(source),
            bytes_per_s: self.observed.links.rate(now, source, node) as u64,
            transfers: transfers.iter().filter(|(_, t)| t.node == node && t.source == source).count() as u32,
        };
        sorted(sources.into_iter().map(link).collect())
    }

    fn links_out(&self, now: Time, node: NodeId, transfers: &[(DatasetId, Transfer)]) -> Vec<Link> {
        let (_, mut to) = self.observed.links.of(node);
        let me = Source::Peer(node);
        to.extend(transfers.iter().filter(|(_, t)| t.source == me).map(|(_, t)| t.node));
        to.sort_unstable();
        to.dedup();
        let link = |peer: NodeId| Link {
            peer: self.nodes.name(peer).to_owned(),
            bytes_per_s: self.observed.links.rate(now, me, peer) as u64,
            transfers: transfers.iter().filter(|(_, t)| t.source == me && t.node == peer).count() as u32,
        };
        sorted(to.into_iter().map(link).collect())
    }

    fn bytes_from_peers(&self, node: &Node) -> Vec<FromPeer> {
        let name = |address: &str| {
            let at = self.nodes.iter().find(|n| n.address() == address);
            at.map_or_else(|| address.to_owned(), |n| n.name.clone())
        };
        let from = |(address, &(rdma_bytes, tcp_bytes)): (&String, &(u64, u64))| FromPeer {
            peer: name(address),
            rdma_bytes,
            tcp_bytes,
        };
        let mut all: Vec<FromPeer> = node.report.peers.iter().map(from).collect();
        all.sort_by_key(|p| std::cmp::Reverse(p.rdma_bytes.saturating_add(p.tcp_bytes)));
        all.truncate(SHOWN);
        all
    }

    fn node_datasets(&self, now: Time, node: &Node) -> Vec<NodeDataset> {
        let mut out = Vec::new();
        for dataset in self.datasets.iter() {
            let pinned = dataset.pins.contains(&node.name);
            let view = self.core.replica(dataset.id, node.id);
            let Some(view) = view.filter(|v| {
                pinned
                    || v.bytes_ready > 0
                    || v.shards_ready > 0
                    || v.state.as_str() != "absent"
                    || !v.reason.is_empty()
            }) else {
                continue;
            };
            out.push(NodeDataset {
                dataset: dataset.record.name.to_string(),
                state: view.state.as_str(),
                reason: self.why_waiting(now, dataset.id, &view),
                shards_ready: view.shards_ready,
                shards_wanted: view.shards_wanted,
                bytes_ready: view.bytes_ready,
                bytes_wanted: view.bytes_wanted,
                pinned,
            });
            if out.len() == SHOWN {
                break;
            }
        }
        out
    }

    fn compared(&self, now: Time, node: &Node) -> Vec<Compared> {
        let up: Vec<&Node> = self.nodes.connected().collect();
        let rate = |n: &Node| self.core.node(n.id, now).map_or(0.0, |v| v.in_bytes_per_s);
        let slow = |n: &Node| self.core.node(n.id, now).map_or(1.0, |v| v.slow_out);
        let used = |n: &Node| n.report.used_bytes as f64 / n.report.capacity_bytes.max(1) as f64;
        let bad = |n: &Node| n.report.moved().checksum_failures as f64;
        let fallbacks = |n: &Node| n.report.fallbacks.values().sum::<u64>() as f64;
        let measure = |what, unit, of: &dyn Fn(&Node) -> f64, outlier: fn(f64, f64) -> bool| {
            let values = up.iter().map(|n| of(n)).collect();
            let (value, median) = (of(node), median(values));
            Compared { what, value, median, unit, outlier: outlier(value, median) }
        };
        vec![
            measure("receiving rate while busy", "bytes_per_s", &rate, |v, m| v > 0.0 && v < 0.5 * m),
            measure("slowness as a source (1 is typical)", "factor", &slow, |v, m| v >= 2.0 && v > 1.5 * m),
            measure("disk used", "share", &used, |v, m| v > 0.9 || (v > 0.5 && v > 2.0 * m)),
            measure("checksum failures", "count", &bad, |v, m| v > m),
            measure("fallbacks", "count", &fallbacks, |v, m| v > m),
        ]
    }
}

fn sorted(mut links: Vec<Link>) -> Vec<Link> {
    links.sort_by(|a, b| b.bytes_per_s.cmp(&a.bytes_per_s).then_with(|| natural(&a.peer).cmp(&natural(&b.peer))));
    links.truncate(SHOWN);
    links
}

fn median(mut values: Vec<f64>) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!([median(vec![]), median(vec![3.0]), median(vec![9.0, 1.0, 2.0])], [0.0, 3.0, 2.0]);
    }
}
