//! What people are shown beyond the present state: what happened, what is wrong, how fast it went.
//!
//! Participants: the driver tells and asks once a second ([`Observed::due`]); views read. Goals: everything bounded;
//! an alarm names the thing, the reason and the next step, and goes when its cause goes. Non-goals: decisions.

use std::collections::{BTreeMap, BTreeSet};

use millstream_types::{DatasetId, NodeId, StageId, Time};

pub(crate) mod alarms;
pub(crate) mod events;
pub(crate) mod history;
pub(crate) mod links;
pub(crate) mod troubles;

use crate::limits::{LOST_SHARDS_MAX, OBSERVE_EVERY};
use alarms::Alarm;
use events::Events;
use history::History;
use links::Links;
use troubles::Troubles;

/// How far a running stage was, and since when it is no further.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) bytes_ready: u64,
    pub(crate) since: Time,
}

/// All that is remembered for people.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    pub(crate) events: Events,
    pub(crate) history: History,
    pub(crate) links: Links,
    pub(crate) troubles: Troubles,
    /// As of the last look.
    pub(crate) alarms: Vec<Alarm>,
    /// When each alarm that stands was raised.
    pub(crate) raised: BTreeMap<String, i64>,
    pub(crate) paces: BTreeMap<StageId, Pace>,
    /// Nodes on which a version became complete, to be told together.
    pub(crate) sealed: BTreeMap<DatasetId, Vec<NodeId>>,
    /// Shards that a node lost: repaired when it has them again.
    lost: BTreeSet<(DatasetId, NodeId, u32)>,
    next: Time,
}

impl Observed {
    /// When the next look is due.
    pub(crate) fn due(&self) -> Time {
        self.next
    }

    /// The next look is due at once: for those whose time does not run like the clock.
    pub(crate) fn hurry(&mut self) {
        self.next = Time::ZERO;
    }

    /// Is it time? Then the next look is set.
    pub(crate) fn begin(&mut self, now: Time) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + u64::try_from(OBSERVE_EVERY.as_micros()).unwrap_or(u64::MAX);
        true
    }

    /// A node lost a shard.
    pub(crate) fn lost(&mut self, dataset: DatasetId, node: NodeId, shard: u32) {
        if self.lost.len() < LOST_SHARDS_MAX {
            self.lost.insert((dataset, node, shard));
        }
    }

    /// Of the shards that a node has (again), those that it had lost.
    pub(crate) fn repaired(&mut self, dataset: DatasetId, node: NodeId, has: &millstream_types::RunSet) -> Vec<u32> {
        let range = (dataset, node, 0)..=(dataset, node, u32::MAX);
        let back: Vec<_> = self.lost.range(range).filter(|l| has.contains(l.2)).copied().collect();
        if back.is_empty() {
            return Vec::new();
        }
        self.lost.retain(|l| !back.contains(l));
        back.into_iter().map(|l| l.2).collect()
    }

    /// A version left the catalog.
    pub(crate) fn dataset_removed(&mut self, dataset: DatasetId) {
        self.lost.retain(|(d, _, _)| *d != dataset);
        self.sealed.remove(&dataset);
        self.troubles.forget(dataset);
    }
}
