//! Nodes: the list, and one node with its links, transfers, versions and where it stands out.

use std::cmp::Reverse;

use millstream_coordinator_core::event::Source;
use millstream_coordinator_core::holdings::Transfer;
use millstream_types::{DatasetId, NodeId, Time};
use serde::Serialize;
use utoipa::ToSchema;

use super::datasets::TransferItem;
use super::{Page, Paging, natural};
use crate::datasets::Dataset;
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
    /// What it receives and sends now.
    transfers: Vec<TransferItem>,
    /// Versions of which it has or shall have something.
    datasets: Vec<NodeDataset>,
    /// How many there are of what is listed here: lists end after 100.
    totals: NodeTotals,
    /// Who keeps versions there.
    keepers: Vec<KeeperItem>,
    /// Why it has no rails, where it wants one; may be empty.
    rdma_reason: String,
    /// Its last errors, the latest first.
    errors: Vec<ErrorItem>,
}

/// How many there are in all.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct NodeTotals {
    links_in: u32,
    links_out: u32,
    transfers: u32,
    datasets: u32,
    keepers: u32,
}

/// Somebody because of whom a version stays on the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct KeeperItem {
    /// `name@version`.
    dataset: String,
    /// `pin` (until `millstream unpin`), `lease` (as long as a process lives), `reader` (as long as a loader reads) or
    /// `job` (as long as a job of a batch scheduler runs).
    kind: &'static str,
    /// Who, in words; empty when they did not say.
    by: String,
    count: u32,
}

/// An error that the agent met.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ErrorItem {
    text: String,
    /// How often, since the agent began or it was last forgotten.
    count: u64,
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
    /// Bytes since the receiving agent began, by carrier, as that agent counts; of its largest peers only.
    rdma_bytes: u64,
    tcp_bytes: u64,
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
        let mut transfers = self.core.node_transfers(node.id, now);
        transfers.sort_by_key(|(_, t)| Reverse(t.age_us));
        let mut links_in = self.links_in(now, node, &transfers);
        let mut links_out = self.links_out(now, node, &transfers);
        let mut datasets = self.node_datasets(now, node);
        let mut keepers = self.keepers(node);
        let totals = NodeTotals {
            links_in: links_in.len() as u32,
            links_out: links_out.len() as u32,
            transfers: transfers.len() as u32,
            datasets: datasets.len() as u32,
            keepers: keepers.len() as u32,
        };
        links_in.truncate(SHOWN);
        links_out.truncate(SHOWN);
        datasets.truncate(SHOWN);
        keepers.truncate(SHOWN);
        let error = |(text, count): &(String, u64)| ErrorItem { text: text.clone(), count: *count };
        let mut status = self.node_status(now, node);
        status.rails.clone_from(&node.details.rails);
        NodeDetail {
            status,
            alarms: self.observed.alarms.iter().filter(|a| a.node.as_ref() == Some(&node.name)).cloned().collect(),
            compared: self.compared(now, node),
            links_in,
            links_out,
            transfers: transfers.iter().take(SHOWN).map(|(dataset, t)| self.transfer_item(*dataset, t)).collect(),
            datasets,
            totals,
            keepers,
            rdma_reason: node.details.rdma_reason.clone(),
            errors: node.report.last_errors.iter().rev().map(error).collect(),
        }
    }

    fn links_in(&self, now: Time, node: &Node, transfers: &[(DatasetId, Transfer)]) -> Vec<Link> {
        let (mut sources, _) = self.observed.links.of(node.id);
        sources.extend(transfers.iter().filter(|(_, t)| t.node == node.id).map(|(_, t)| t.source));
        let counted = |n: &&Node| node.details.peers.contains_key(n.address());
        sources.extend(self.nodes.iter().filter(counted).map(|n| Source::Peer(n.id)));
        sources.sort_unstable();
        sources.dedup();
        let link = |source: Source| {
            let known = match source {
                Source::Origin => None,
                Source::Peer(peer) => self.nodes.get(peer).and_then(|p| node.details.peers.get(p.address())),
            };
            let carried = known.copied().unwrap_or_default();
            Link {
                peer: self.source_name(source),
                bytes_per_s: self.observed.links.rate(now, source, node.id) as u64,
                transfers: transfers.iter().filter(|(_, t)| t.node == node.id && t.source == source).count() as u32,
                rdma_bytes: carried.rdma,
                tcp_bytes: carried.tcp,
            }
        };
        sorted(sources.into_iter().map(link).collect())
    }

    fn links_out(&self, now: Time, node: &Node, transfers: &[(DatasetId, Transfer)]) -> Vec<Link> {
        let (_, mut to) = self.observed.links.of(node.id);
        let me = Source::Peer(node.id);
        to.extend(transfers.iter().filter(|(_, t)| t.source == me).map(|(_, t)| t.node));
        let counts_me = |n: &&Node| n.details.peers.contains_key(node.address());
        to.extend(self.nodes.iter().filter(counts_me).map(|n| n.id));
        to.sort_unstable();
        to.dedup();
        let link = |peer: NodeId| {
            let known = self.nodes.get(peer).and_then(|p| p.details.peers.get(node.address()));
            let carried = known.copied().unwrap_or_default();
            Link {
                peer: self.nodes.name(peer).to_owned(),
                bytes_per_s: self.observed.links.rate(now, me, peer) as u64,
                transfers: transfers.iter().filter(|(_, t)| t.source == me && t.node == peer).count() as u32,
                rdma_bytes: carried.rdma,
                tcp_bytes: carried.tcp,
            }
        };
        sorted(to.into_iter().map(link).collect())
    }

    /// Pins as the coordinator knows them, jobs, and what the agent says beyond that.
    fn keepers(&self, node: &Node) -> Vec<KeeperItem> {
        let keeper = |dataset: &Dataset, kind, by: String, count| KeeperItem {
            dataset: dataset.record.name.to_string(),
            kind,
            by,
            count,
        };
        let mut out = Vec::new();
        for dataset in self.datasets.iter() {
            let pin = dataset.pins.get(&node.name).map(|by| keeper(dataset, "pin", by.clone(), 1));
            let job = self.jobs.holder(dataset.id, node.id).map(|job| keeper(dataset, "job", job, 1));
            out.extend(pin.into_iter().chain(job));
        }
        for said in &node.details.keepers {
            let Some(dataset) = self.datasets.by_digest(said.digest) else { continue };
            // A pin that the coordinator ordered is one already.
            if said.kind != "pin" || !dataset.pins.contains_key(&node.name) {
                out.push(keeper(dataset, said.kind, said.by.clone(), said.count));
            }
        }
        out
    }

    fn node_datasets(&self, now: Time, node: &Node) -> Vec<NodeDataset> {
        let mut out = Vec::new();
        for dataset in self.datasets.iter() {
            let pinned = dataset.pins.contains_key(&node.name);
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
        }
        out
    }

    fn compared(&self, now: Time, node: &Node) -> Vec<Compared> {
        let up: Vec<&Node> = self.nodes.connected().collect();
        let rate = |n: &Node| self.core.node(n.id, now).map_or(0.0, |v| v.in_bytes_per_s);
        let slow = |n: &Node| self.core.node(n.id, now).map_or(1.0, |v| v.slow_out);
        let link = |n: &Node| n.report.link.bytes_per_s as f64;
        let disk = |n: &Node| n.report.disk.bytes_per_s as f64;
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
            measure("link, while peers send", "bytes_per_s", &link, |v, m| v > 0.0 && v < 0.5 * m),
            measure("disk, while it is written to", "bytes_per_s", &disk, |v, m| v > 0.0 && v < 0.5 * m),
            measure("disk used", "share", &used, |v, m| v > 0.9 || (v > 0.5 && v > 2.0 * m)),
            measure("checksum failures", "count", &bad, |v, m| v > m),
            measure("fallbacks", "count", &fallbacks, |v, m| v > m),
        ]
    }
}

fn sorted(mut links: Vec<Link>) -> Vec<Link> {
    let carried = |l: &Link| l.rdma_bytes + l.tcp_bytes;
    let busy = |a: &Link, b: &Link| b.bytes_per_s.cmp(&a.bytes_per_s).then(carried(b).cmp(&carried(a)));
    links.sort_by(|a, b| busy(a, b).then_with(|| natural(&a.peer).cmp(&natural(&b.peer))));
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
