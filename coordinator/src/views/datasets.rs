//! Versions: the list, one version's nodes and transfers.

use std::cmp::Reverse;

use millstream_coordinator_core::event::{ShardFailure, Source};
use millstream_coordinator_core::holdings::Transfer;
use millstream_coordinator_core::view::ReplicaState;
use millstream_types::{DatasetId, Time};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Page, Paging, Verdict, natural, percent};
use crate::datasets::Dataset;
use crate::driver::State;
use crate::observe::troubles::Trouble;

/// Nodes named in the verdict of a list's item.
pub(crate) const NAMED_IN_LIST: usize = 3;
/// Nodes named in the verdict of one version: its list of nodes has all.
pub(super) const NAMED_IN_DETAIL: usize = 20;

/// A version.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct DatasetItem {
    /// `name@version`.
    pub(crate) dataset: String,
    /// `dataset` or `checkpoint`.
    kind: &'static str,
    digest: String,
    shards: u64,
    bytes: u64,
    origin_url: String,
    /// The origin has a checksum of every shard that could be compared.
    origin_verified: bool,
    /// Piece checksums were known in advance.
    indexed: bool,
    created_unix_s: i64,
    /// Nodes on which it is pinned.
    pinned_on: Vec<String>,
    /// Shards that failed for good.
    shards_failed: u32,
    pub(crate) verdict: Verdict,
}

/// A version on a node.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ReplicaItem {
    node: String,
    /// `absent`, `receiving`, `verifying`, `ready` or `failed`.
    state: &'static str,
    /// Why it is not ready.
    reason: String,
    shards_ready: u32,
    shards_wanted: u32,
    bytes_ready: u64,
    bytes_wanted: u64,
    /// Never 100 before all is there.
    percent: u64,
    /// What the node receives now, of all versions.
    in_bytes_per_s: u64,
    pinned: bool,
}

/// An order that a node works on.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct TransferItem {
    /// `name@version`.
    dataset: String,
    /// `origin` or `peer`.
    r#type: &'static str,
    /// `receiving`, or `queued` while the source does not have it itself.
    stage: &'static str,
    /// `origin`, or a node.
    source: String,
    /// The node that receives.
    target: String,
    /// The first and the last shard that it has a part of.
    first_key: String,
    last_key: String,
    shards: u32,
    bytes: u64,
    /// Since it was ordered.
    age_s: f64,
    /// How often its source was changed.
    resourced: u8,
    /// Of the first shard's bytes on the target, verified; absent where it is not worked out.
    shard_percent: Option<u64>,
}

/// A shard that failed for good.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct FailureItem {
    key: String,
    shard: u32,
    /// The piece, where one is to blame.
    piece: Option<u32>,
    /// Checksums, where it is about them; empty otherwise.
    expected: String,
    actual: String,
    source: String,
    /// What happened.
    detail: String,
    /// What was done about it.
    done: &'static str,
    /// Exit code class of `millstream wait`.
    code: u32,
}

/// Wrong bytes that nobody saw: noticed, thrown away, fetched again.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct MendedItem {
    /// When, in milliseconds since 1970 (UTC).
    at_unix_ms: i64,
    /// Who noticed.
    node: String,
    key: String,
    /// The piece, where one is to blame.
    piece: Option<u32>,
    /// Checksums, where it is about them; empty otherwise.
    expected: String,
    actual: String,
    /// `origin`, a node, or `disk`: that node's own.
    source: String,
    /// What happened.
    detail: String,
    /// What was done about it.
    done: &'static str,
}

impl State {
    /// Versions: those that are not where they shall be first, then the newest.
    pub(crate) fn dataset_list(&self, now: Time, paging: &Paging) -> Page<DatasetItem> {
        let named = self.datasets.iter().filter(|d| paging.names(&d.record.name.to_string()));
        let mut matched: Vec<(&Dataset, Verdict)> =
            named.map(|d| (d, self.verdict(now, d.id, NAMED_IN_LIST))).collect();
        matched.retain(|(_, v)| paging.in_state(v.state));
        let order = |state: &str| ["failed", "staging", "ready", "idle"].iter().position(|s| *s == state);
        matched.sort_by_key(|(d, v)| (order(v.state), Reverse(d.record.sequence)));
        paging.page(self.datasets.len(), matched, |(d, v)| self.dataset_item(d, v))
    }

    pub(super) fn dataset_item(&self, dataset: &Dataset, verdict: Verdict) -> DatasetItem {
        let info = dataset.info();
        DatasetItem {
            dataset: dataset.record.name.to_string(),
            kind: if info.kind == "checkpoint" { "checkpoint" } else { "dataset" },
            digest: info.digest,
            shards: info.shards,
            bytes: info.bytes,
            origin_url: info.origin_url,
            origin_verified: info.origin_verified,
            indexed: info.indexed,
            created_unix_s: info.created_unix_s,
            pinned_on: dataset.pins.keys().cloned().collect(),
            shards_failed: self.core.failures(dataset.id).len() as u32,
            verdict,
        }
    }

    /// The nodes of a version: those that are not ready first, the furthest behind first of all.
    pub(crate) fn replica_list(&self, now: Time, dataset: &Dataset, paging: &Paging) -> Page<ReplicaItem> {
        let all = self.core.replicas(dataset.id);
        let total = all.len();
        let mut matched: Vec<_> = all
            .into_iter()
            .filter(|r| paging.in_state(r.state.as_str()) && paging.names(self.nodes.name(r.node)))
            .collect();
        matched.sort_by_cached_key(|r| {
            let share = percent(r.bytes_ready, r.bytes_wanted);
            (r.state == ReplicaState::Ready, r.state != ReplicaState::Failed, share, natural(self.nodes.name(r.node)))
        });
        paging.page(total, matched, |r| ReplicaItem {
            node: self.nodes.name(r.node).to_owned(),
            state: r.state.as_str(),
            reason: self.why_waiting(now, dataset.id, &r),
            shards_ready: r.shards_ready,
            shards_wanted: r.shards_wanted,
            bytes_ready: r.bytes_ready,
            bytes_wanted: r.bytes_wanted,
            percent: percent(r.bytes_ready, r.bytes_wanted),
            in_bytes_per_s: self.nodes.get(r.node).map_or(0, |n| n.report.in_bytes_per_s),
            pinned: dataset.pins.contains_key(self.nodes.name(r.node)),
        })
    }

    pub(crate) fn transfer_item(&self, dataset: DatasetId, transfer: &Transfer) -> TransferItem {
        let layout = self.datasets.get(dataset).map(|d| d.manifest.layout());
        let (first, last) =
            layout.map_or((0, 0), |l| (l.shard_of(transfer.pieces.start), l.shard_of(transfer.pieces.end.max(1) - 1)));
        TransferItem {
            dataset: self.dataset_name(dataset),
            r#type: if transfer.source == Source::Origin { "origin" } else { "peer" },
            stage: if transfer.source_ready { "receiving" } else { "queued" },
            source: self.source_name(transfer.source),
            target: self.nodes.name(transfer.node).to_owned(),
            first_key: self.shard_key(dataset, first),
            last_key: self.shard_key(dataset, last),
            shards: last - first + 1,
            bytes: transfer.bytes,
            age_s: (transfer.age_us / 100_000) as f64 / 10.0,
            resourced: transfer.resourced,
            shard_percent: None,
        }
    }

    pub(super) fn failure_item(&self, dataset: DatasetId, failure: &ShardFailure) -> FailureItem {
        FailureItem {
            key: self.shard_key(dataset, failure.shard),
            shard: failure.shard,
            piece: failure.piece,
            expected: failure.expected.clone(),
            actual: failure.actual.clone(),
            source: self.source_name(failure.source),
            detail: failure.detail.clone(),
            done: match failure.code {
                5 => "thrown away on every node and read again by other nodes, several times; then given up",
                8 => "given up at once: the object at the origin is not the one that was registered",
                9 => "given up at once: the origin refuses us",
                _ => "tried again with growing pauses; then given up",
            },
            code: failure.code,
        }
    }
}

impl State {
    pub(super) fn mended_item(&self, trouble: &Trouble) -> MendedItem {
        MendedItem {
            at_unix_ms: trouble.at_unix_ms,
            node: self.nodes.name(trouble.node).to_owned(),
            key: self.shard_key(trouble.dataset, trouble.shard),
            piece: trouble.piece,
            expected: trouble.expected.clone(),
            actual: trouble.actual.clone(),
            source: trouble.source.map_or_else(|| "disk".into(), |source| self.source_name(source)),
            detail: trouble.detail.clone(),
            done: trouble.done,
        }
    }
}

impl TransferItem {
    pub(super) fn with_percent(mut self, percent: u64) -> TransferItem {
        self.shard_percent = Some(percent);
        self
    }

    pub(super) fn kind(&self) -> &'static str {
        self.r#type
    }

    pub(super) fn is_from_origin(&self) -> bool {
        self.r#type == "origin"
    }

    pub(super) fn target(&self) -> &str {
        &self.target
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn age(&self) -> f64 {
        self.age_s
    }

    pub(super) fn matches(&self, paging: &Paging) -> bool {
        let named = [&self.source, &self.target, &self.first_key, &self.last_key].iter().any(|n| paging.names(n));
        named && (paging.in_state(self.stage) || paging.in_state(self.r#type))
    }
}
