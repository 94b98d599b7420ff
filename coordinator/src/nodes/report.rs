//! What heartbeats say of a node: counters that go on over restarts, rates, fallbacks, errors.

use std::collections::BTreeMap;

use millstream_proto::v1;
use millstream_types::Time;

use super::short;
use crate::limits::{FALLBACKS_MAX, MOVING_US_MIN, NODE_ERRORS_MAX};

/// Bytes that agents moved, as counters that never go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the origin.
    pub received_origin: u64,
    /// From peers over TCP.
    pub received_tcp: u64,
    /// From peers over RDMA.
    pub received_rdma: u64,
    /// To peers over TCP.
    pub sent_tcp: u64,
    /// To peers over RDMA.
    pub sent_rdma: u64,
    /// Pieces or shards that did not match.
    pub checksum_failures: u64,
    /// Of shards that readers wanted and found in place.
    pub local_hits: u64,
}

impl Moved {
    fn of(heartbeat: &v1::Heartbeat) -> Moved {
        Moved {
            received_origin: heartbeat.received_origin_bytes,
            received_tcp: heartbeat.received_tcp_bytes,
            received_rdma: heartbeat.received_rdma_bytes,
            sent_tcp: heartbeat.sent_tcp_bytes,
            sent_rdma: heartbeat.sent_rdma_bytes,
            checksum_failures: heartbeat.checksum_failures,
            local_hits: heartbeat.local_hit_bytes,
        }
    }

    /// Both together.
    pub fn plus(self, other: Moved) -> Moved {
        let add = u64::saturating_add;
        Moved {
            received_origin: add(self.received_origin, other.received_origin),
            received_tcp: add(self.received_tcp, other.received_tcp),
            received_rdma: add(self.received_rdma, other.received_rdma),
            sent_tcp: add(self.sent_tcp, other.sent_tcp),
            sent_rdma: add(self.sent_rdma, other.sent_rdma),
            checksum_failures: add(self.checksum_failures, other.checksum_failures),
            local_hits: add(self.local_hits, other.local_hits),
        }
    }
}

/// One fallback of one node: from, to, reason.
pub type FallbackKey = (String, String, String);

/// Bytes over the time in which some were moved, from counters of both.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Speed {
    /// Zero: not measured yet.
    pub(crate) bytes_per_s: u64,
    /// Bytes and microseconds, as the process that runs counts them.
    seen: (u64, u64),
}

impl Speed {
    /// Half of the rate is what was known before.
    fn take(&mut self, bytes: u64, us: u64) {
        let (new, took) = (bytes.saturating_sub(self.seen.0), us.saturating_sub(self.seen.1));
        if new > 0 && took >= MOVING_US_MIN {
            let rate = (new as f64 * 1e6 / took as f64) as u64;
            self.bytes_per_s = if self.bytes_per_s == 0 { rate } else { self.bytes_per_s.midpoint(rate) };
            self.seen = (bytes, us);
        }
    }
}

/// What heartbeats said.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Of processes of this node that ended.
    before: Moved,
    /// Of the process that runs.
    now: Moved,
    /// Receiving, bytes per second.
    pub in_bytes_per_s: u64,
    /// Sending, bytes per second.
    pub out_bytes_per_s: u64,
    /// What its link gives while pieces of peers arrive.
    pub(crate) link: Speed,
    /// What its disk takes while it is written to.
    pub(crate) disk: Speed,
    /// On disk.
    pub used_bytes: u64,
    /// Of those, pinned.
    pub pinned_bytes: u64,
    /// Of those, not sealed yet.
    pub partial_bytes: u64,
    /// Quota.
    pub capacity_bytes: u64,
    /// Fallbacks of the process that runs.
    pub fallbacks: BTreeMap<FallbackKey, u64>,
    /// Newest errors, the latest last, and how often each was met.
    pub last_errors: Vec<(String, u64)>,
    /// When each fallback was counted last.
    pub fell_back_at: BTreeMap<FallbackKey, Time>,
    /// When a checksum failure was counted last.
    pub checksum_failed_at: Option<Time>,
}

impl Report {
    /// Since this coordinator knows the node.
    pub fn moved(&self) -> Moved {
        self.before.plus(self.now)
    }

    /// Fallbacks that were counted for the first time by this process are returned.
    pub(super) fn take(&mut self, now: Time, heartbeat: v1::Heartbeat) -> Vec<FallbackKey> {
        let failures = self.now.checksum_failures;
        self.now = Moved::of(&heartbeat);
        if self.now.checksum_failures > failures {
            self.checksum_failed_at = Some(now);
        }
        self.in_bytes_per_s = heartbeat.in_bytes_per_s;
        self.out_bytes_per_s = heartbeat.out_bytes_per_s;
        self.link.take(heartbeat.arrived_bytes, heartbeat.arriving_us);
        self.disk.take(heartbeat.written_bytes, heartbeat.writing_us);
        self.used_bytes = heartbeat.used_bytes;
        self.pinned_bytes = heartbeat.pinned_bytes;
        self.partial_bytes = heartbeat.partial_bytes;
        self.capacity_bytes = heartbeat.capacity_bytes;
        let fallbacks = heartbeat.fallbacks.into_iter().take(FALLBACKS_MAX);
        let fallbacks = fallbacks.map(|f| ((short(&f.from), short(&f.to), short(&f.reason)), f.count));
        let before = std::mem::replace(&mut self.fallbacks, fallbacks.collect());
        let mut new = Vec::new();
        for (key, &count) in &self.fallbacks {
            let old = before.get(key).copied();
            if old.is_none_or(|old| count > old) {
                self.fell_back_at.insert(key.clone(), now);
            }
            if old.is_none() {
                new.push(key.clone());
            }
        }
        self.fell_back_at.retain(|key, _| self.fallbacks.contains_key(key));
        // Agents from before they were counted send no counts.
        let counts = heartbeat.last_error_counts.iter().copied().chain(std::iter::repeat(1));
        let errors: Vec<_> = heartbeat.last_errors.iter().zip(counts).collect();
        self.last_errors = errors.iter().rev().take(NODE_ERRORS_MAX).map(|(e, n)| (short(e), *n)).collect();
        self.last_errors.reverse();
        new
    }

    pub(super) fn process_ended(&mut self) {
        self.before = self.moved();
        self.now = Moved::default();
        (self.link.seen, self.disk.seen) = ((0, 0), (0, 0));
        (self.in_bytes_per_s, self.out_bytes_per_s) = (0, 0);
        self.fallbacks.clear();
        self.fell_back_at.clear();
        self.checksum_failed_at = None;
    }
}
