//! Shard by shard: copies, who receives it from whom, how far it is.

use millstream_coordinator_core::holdings::{ShardState, StateCounts};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::datasets::TransferItem;
use super::super::{Page, Paging, natural, percent};
use super::{Counts, Picture};

/// Sources and targets named for one shard.
const PEERS_NAMED: usize = 3;

/// A shard.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ShardItem {
    shard: u32,
    key: String,
    bytes: u64,
    /// The most telling state that it is in anywhere.
    state: &'static str,
    /// Verified copies.
    copies: u32,
    /// Nodes that have or shall have it.
    wanted: u32,
    /// `copies` of `wanted`, never 100 before all.
    percent: u64,
    /// Nodes by the state that it is in there.
    nodes: Counts,
    /// Since the oldest order that brings a part of it was given; absent while nothing moves.
    time_s: Option<f64>,
    /// `origin`, `peer`, or `origin, peer`: what brings it now; empty while nothing moves.
    r#type: String,
    /// The first nodes that receive it now, and from whom.
    targets: Vec<String>,
    sources: Vec<String>,
    /// How many there are of both.
    targets_total: u32,
    sources_total: u32,
    /// Verified bytes of it on all nodes together, of those that they want; never 100 before all.
    bytes_percent: u64,
    /// The origin's own checksum, empty where it has none.
    origin_checksum: String,
}

/// In which order shards come.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ShardOrder {
    /// Fewest verified copies first.
    #[default]
    Rarest,
    /// As in the manifest.
    Key,
    /// Largest first.
    Size,
}

impl Picture {
    /// Shards, as far as they were looked at.
    pub(crate) fn shards(&self, paging: &Paging, order: ShardOrder) -> Page<ShardItem> {
        let manifest = &self.sample.manifest;
        let states = &self.states;
        let mut matched: Vec<(usize, StateCounts)> = Vec::new();
        for (i, &shard) in states.shards().iter().enumerate() {
            if manifest.shards().get(shard as usize).is_none_or(|s| !paging.names(s.key.as_str())) {
                continue;
            }
            let counts = self.counts[i];
            let somewhere = ShardState::ALL.iter().any(|&s| counts[s as usize] > 0 && paging.in_state(s.as_str()));
            if somewhere || (states.members() == 0 && paging.in_state("missing")) {
                matched.push((i, counts));
            }
        }
        match order {
            ShardOrder::Key => {}
            ShardOrder::Rarest => matched.sort_by_key(|(i, c)| (complete(c), c[ShardState::Ready as usize], *i)),
            ShardOrder::Size => {
                let len = |i: usize| self.sample.holdings.layout.shard_len(states.shards()[i]);
                matched.sort_by_key(|(i, _)| (std::cmp::Reverse(len(*i)), *i));
            }
        }
        paging.page(states.shards().len(), matched, |(i, counts)| self.shard_item(i, counts))
    }

    fn shard_item(&self, i: usize, counts: StateCounts) -> ShardItem {
        let shard = self.states.shards()[i];
        let h = &self.sample.holdings;
        let pieces = h.layout.shard_pieces(shard);
        let wanted: u32 = counts[1..].iter().sum();
        let copies = counts[ShardState::Ready as usize];
        // Transfers of the copy and their words are in the same order, turned round.
        let moving = h.transfers.iter().rev().zip(&self.sample.transfers);
        let moving: Vec<_> = moving
            .filter(|(t, _)| t.pieces.start < pieces.end && pieces.start < t.pieces.end)
            .map(|(_, w)| w)
            .collect();
        let there: u64 = h.shard_copies_bytes(shard);
        let mut types: Vec<&str> = moving.iter().map(|t| t.kind()).collect();
        types.sort_unstable();
        types.dedup();
        let few = |of: fn(&TransferItem) -> &str| {
            let mut names: Vec<String> = moving.iter().map(|&t| of(t).to_owned()).collect();
            names.sort_unstable();
            names.dedup();
            let total = names.len() as u32;
            names.sort_by_cached_key(|name| natural(name));
            names.truncate(PEERS_NAMED);
            (names, total)
        };
        let ((targets, targets_total), (sources, sources_total)) =
            (few(TransferItem::target), few(TransferItem::source));
        let entry = self.sample.manifest.shards().get(shard as usize);
        ShardItem {
            shard,
            key: self.key(shard),
            bytes: h.layout.shard_len(shard),
            state: telling(&counts),
            copies,
            wanted,
            percent: if wanted == 0 { 0 } else { percent(copies.into(), wanted.into()) },
            nodes: counts.into(),
            time_s: moving.iter().map(|t| t.age()).max_by(f64::total_cmp),
            r#type: types.join(", "),
            bytes_percent: if wanted == 0 { 0 } else { percent(there, h.layout.shard_len(shard) * u64::from(wanted)) },
            targets,
            targets_total,
            sources,
            sources_total,
            origin_checksum: entry.and_then(|s| s.checksum.as_ref()).map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// What moves now, the oldest first.
    pub(crate) fn transfers(&self, paging: &Paging) -> Page<TransferItem> {
        let all = &self.sample.transfers;
        let mut matched: Vec<&TransferItem> = all.iter().filter(|t| t.matches(paging)).collect();
        matched.sort_by(|a, b| b.age().total_cmp(&a.age()));
        paging.page(all.len(), matched, Clone::clone)
    }
}

/// No node still waits for it.
fn complete(counts: &StateCounts) -> bool {
    let [_, queued, receiving, verifying, ready, bad] = *counts;
    queued + receiving + verifying + bad == 0 && ready > 0
}

/// The most telling state of some pairs.
fn telling(counts: &StateCounts) -> &'static str {
    let order = [ShardState::Bad, ShardState::Receiving, ShardState::Verifying, ShardState::Queued, ShardState::Ready];
    order.into_iter().find(|&s| counts[s as usize] > 0).unwrap_or(ShardState::Missing).as_str()
}
