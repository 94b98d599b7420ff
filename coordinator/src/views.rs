//! The documents of the API: from the state to what people and scripts read.
//!
//! Purpose: one module per group of documents. Participants: `http::api` asks for them under the driver; the page,
//! `status --watch` and scripts read them. Goals: lists come in pages and can be filtered here, so that a thousand
//! nodes cost a reader no more than fifty; what takes long is worked out on a copy, outside of the driver
//! ([`picture`]). Non-goals: decisions.

use millstream_coordinator_core::view::{ReplicaState, ReplicaView};
use millstream_types::size::{counted, format_size};
use millstream_types::{DatasetId, Time};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

pub(crate) mod datasets;
pub(crate) mod jobs;
pub(crate) mod nodes;
pub(crate) mod overview;
pub(crate) mod picture;

use crate::datasets::Dataset;
use crate::driver::State;
use crate::failure::RequestError;
use crate::limits::{FILTER_CHARS_MAX, LIST_OFFSET_MAX, LIST_PAGE_DEFAULT, LIST_PAGE_MAX};
use crate::nodes::short;

/// Which part of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Paging {
    /// Items to leave out at the front.
    #[param(maximum = 1_000_000_000)]
    pub(crate) offset: Option<u32>,
    /// Items to return at most.
    #[param(minimum = 1, maximum = 1_000)]
    pub(crate) limit: Option<u32>,
    /// Only items whose name (node, key, dataset, text) contains this; case does not matter.
    #[param(max_length = 256)]
    pub(crate) q: Option<String>,
    /// Only items in these states (or of these kinds), with commas.
    #[param(max_length = 256)]
    pub(crate) state: Option<String>,
}

impl Paging {
    /// Are the values usable?
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        if self.limit.is_some_and(|l| l == 0 || l > LIST_PAGE_MAX) {
            return Err(usage("limit", format!("must be between 1 and {LIST_PAGE_MAX}")));
        }
        if self.offset.is_some_and(|o| o > LIST_OFFSET_MAX) {
            return Err(usage("offset", format!("must be at most {LIST_OFFSET_MAX}")));
        }
        for (field, text) in [("q", &self.q), ("state", &self.state)] {
            short_enough(field, text.as_deref(), FILTER_CHARS_MAX)?;
        }
        Ok(())
    }

    /// Does a name match `q`?
    pub(crate) fn names(&self, name: &str) -> bool {
        self.q.as_deref().is_none_or(|q| q.is_empty() || name.to_lowercase().contains(&q.to_lowercase()))
    }

    /// Is a state among those asked for?
    pub(crate) fn in_state(&self, state: &str) -> bool {
        let asked = self.state.as_deref().unwrap_or("");
        asked.is_empty() || asked.split(',').any(|s| s.trim() == state)
    }

    /// Cuts a page out of what matched.
    pub(crate) fn page<T, U>(&self, total: usize, matched: Vec<T>, show: impl FnMut(T) -> U) -> Page<U> {
        let offset = self.offset.unwrap_or(0) as usize;
        let limit = self.limit.unwrap_or(LIST_PAGE_DEFAULT) as usize;
        let count = matched.len();
        let items = matched.into_iter().skip(offset).take(limit).map(show).collect();
        Page { total: total as u64, matched: count as u64, offset: offset as u64, items }
    }
}

/// Is a filter's text within its bound?
pub(crate) fn short_enough(field: &'static str, text: Option<&str>, most: usize) -> Result<(), RequestError> {
    match text {
        Some(text) if text.chars().count() > most => Err(usage(field, format!("must be at most {most} characters"))),
        _ => Ok(()),
    }
}

pub(crate) fn usage(field: &'static str, reason: String) -> RequestError {
    RequestError::Usage { field, reason }
}

/// A part of a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Page<T> {
    /// All items that there are.
    pub(crate) total: u64,
    /// Those that match the filter.
    pub(crate) matched: u64,
    /// Items left out at the front.
    pub(crate) offset: u64,
    /// The items of this page.
    pub(crate) items: Vec<T>,
}

/// A node that a version waits for.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Blocking {
    /// The node.
    pub(crate) node: String,
    /// `absent`, `receiving`, `verifying` or `failed`.
    pub(crate) state: &'static str,
    /// Why it is not ready, in words.
    pub(crate) reason: String,
    pub(crate) bytes_ready: u64,
    pub(crate) bytes_wanted: u64,
}

/// Is a version where it shall be?
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Verdict {
    /// `ready`, `staging`, `failed`, or `idle` when no stage wants it anywhere.
    pub(crate) state: &'static str,
    /// In words: `ready on 61 of 64 nodes`.
    pub(crate) text: String,
    /// Nodes on which all of it is verified and visible.
    pub(crate) nodes_ready: u32,
    /// Nodes that have or shall have it.
    pub(crate) nodes_wanted: u32,
    /// Nodes on which it failed.
    pub(crate) nodes_failed: u32,
    /// The first of those that it waits for: failed ones first, then the furthest behind.
    pub(crate) waiting_for: Vec<Blocking>,
}

/// A share in percent, never 100 before it is all.
pub(crate) fn percent(part: u64, whole: u64) -> u64 {
    match whole {
        0 => 100,
        _ if part >= whole => 100,
        _ => (part.saturating_mul(100) / whole).min(99),
    }
}

/// Names in the order that people expect: `n2` before `n10`.
pub(crate) fn natural(name: &str) -> Vec<(u64, String)> {
    let mut parts = vec![(0, String::new())];
    let mut digits = String::new();
    for c in name.chars() {
        if c.is_ascii_digit() && digits.len() < 18 {
            digits.push(c);
            continue;
        }
        if !digits.is_empty() {
            parts.push((digits.parse().unwrap_or(0), String::new()));
            digits.clear();
        }
        if let Some(last) = parts.last_mut() {
            last.1.push(c);
        }
    }
    if !digits.is_empty() {
        parts.push((digits.parse().unwrap_or(0), String::new()));
    }
    parts
}

impl State {
    /// The version that a path names. What can be no name is the name of no version.
    pub(crate) fn find_dataset(&self, text: &str) -> Result<&Dataset, RequestError> {
        let unknown = || RequestError::UnknownDataset { selector: short(text), hint: String::new() };
        match self.select(text) {
            Err(RequestError::Field(_)) => Err(unknown()),
            found => found,
        }
    }

    /// Why a version is not ready on a node, in words that name what it waits for.
    pub(crate) fn why_waiting(&self, now: Time, dataset: DatasetId, view: &ReplicaView) -> String {
        let node = self.nodes.get(view.node);
        if view.state == ReplicaState::Ready || view.state == ReplicaState::Failed {
            return view.reason.clone();
        }
        let away = node.filter(|n| n.session.is_none() && n.hello.is_some());
        if let Some(node) = away {
            let silent = now.since(node.last_seen) / 1_000_000;
            return format!("its agent is not connected, for {silent} s now");
        }
        if !view.reason.is_empty() {
            return view.reason.clone();
        }
        if view.state == ReplicaState::Verifying {
            let left = view.shards_wanted.saturating_sub(view.shards_ready);
            let left = counted(left.into(), "shard");
            return format!("all bytes are there; to be checked as a whole: {left}");
        }
        let share = percent(view.bytes_ready, view.bytes_wanted);
        let known = self.core.node(view.node, now);
        let outstanding = known.as_ref().map_or(0, |k| k.outstanding_bytes);
        let rate = node.map_or(0, |n| n.report.in_bytes_per_s);
        let left = view.bytes_wanted.saturating_sub(view.bytes_ready);
        if outstanding == 0 {
            let others = self.core.stage_of(dataset, view.node).is_some();
            let why = if others { "nothing is on its way to it yet" } else { "no stage that runs wants it here" };
            return format!("{share} % there; {why}");
        }
        if rate == 0 {
            return format!("{share} % there; {} ordered, none of it has arrived lately", format_size(outstanding));
        }
        format!("{share} % there, {}/s, about {} s left", format_size(rate), left / rate.max(1) + 1)
    }

    /// Is a version where it shall be? `most`: nodes named at most.
    pub(crate) fn verdict(&self, now: Time, dataset: DatasetId, most: usize) -> Verdict {
        let replicas = self.core.replicas(dataset);
        let staged = |r: &&ReplicaView| r.reason != "not staged here" || r.state == ReplicaState::Ready;
        let wanted: Vec<&ReplicaView> = replicas.iter().filter(staged).collect();
        let ready = wanted.iter().filter(|r| r.state == ReplicaState::Ready).count() as u32;
        let failed = wanted.iter().filter(|r| r.state == ReplicaState::Failed).count() as u32;
        let mut missing: Vec<&&ReplicaView> = wanted.iter().filter(|r| r.state != ReplicaState::Ready).collect();
        missing.sort_by_key(|r| (r.state != ReplicaState::Failed, percent(r.bytes_ready, r.bytes_wanted), r.node));
        let waiting_for = missing.into_iter().take(most).map(|r| self.blocking(now, dataset, r)).collect();
        let total = wanted.len() as u32;
        let (state, text) = match (total, failed) {
            (0, _) => ("idle", "on no node, and no stage wants it".to_owned()),
            (_, 0) if ready == total => ("ready", format!("ready on {ready} of {}", counted(total.into(), "node"))),
            (_, 0) => ("staging", format!("ready on {ready} of {}", counted(total.into(), "node"))),
            _ => ("failed", format!("ready on {ready} of {}, failed on {failed}", counted(total.into(), "node"))),
        };
        Verdict { state, text, nodes_ready: ready, nodes_wanted: total, nodes_failed: failed, waiting_for }
    }

    pub(crate) fn blocking(&self, now: Time, dataset: DatasetId, view: &ReplicaView) -> Blocking {
        Blocking {
            node: self.nodes.name(view.node).to_owned(),
            state: view.state.as_str(),
            reason: self.why_waiting(now, dataset, view),
            bytes_ready: view.bytes_ready,
            bytes_wanted: view.bytes_wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_filters() {
        let paging = Paging { offset: Some(2), limit: Some(2), q: Some("N1".into()), state: Some("up, down".into()) };
        paging.check().unwrap();
        assert!(paging.names("an10") && !paging.names("n2"));
        assert!(paging.in_state("down") && !paging.in_state("suspect"));
        let page = paging.page(9, vec![1, 2, 3, 4, 5], |i| i * 10);
        assert_eq!((page.total, page.matched, page.offset, page.items), (9, 5, 2, vec![30, 40]));
        let beyond = Paging { offset: Some(100), ..Paging::default() }.page(1, vec![1], |i| i);
        assert!(beyond.items.is_empty());
        for wrong in [0, LIST_PAGE_MAX + 1] {
            assert!(Paging { limit: Some(wrong), ..Paging::default() }.check().is_err());
        }
        assert!(Paging { q: Some("x".repeat(FILTER_CHARS_MAX + 1)), ..Paging::default() }.check().is_err());
    }

    #[test]
    fn a_hundred_percent_is_all() {
        assert_eq!([percent(0, 0), percent(999, 1000), percent(1000, 1000), percent(1, u64::MAX)], [100, 99, 100, 0]);
    }

    #[test]
    fn numbers_in_names_count() {
        let mut names = ["n10", "n2", "a", "n1", "n", "n2b"];
        names.sort_by_key(|n| natural(n));
        assert_eq!(names, ["a", "n", "n1", "n2", "n2b", "n10"]);
    }
}
