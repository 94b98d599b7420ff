//! Throughput of the last minutes, by where the bytes came from; what readers found in place is one of these.

use std::collections::BTreeMap;

use millstream_types::Time;

use crate::limits::HISTORY_SECONDS;
use crate::nodes::Moved;

/// Bytes per second of all nodes together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    pub(crate) origin: f64,
    pub(crate) rdma: f64,
    pub(crate) tcp: f64,
    /// Of shards that readers found in place: nothing had to come.
    pub(crate) local: f64,
}

/// Samples by second since 1970.
#[derive(Debug, Default)]
pub(crate) struct History {
    samples: BTreeMap<i64, Sample>,
    last: Option<(Time, Moved)>,
}

impl History {
    /// Takes the sum of all counters; the first time there is nothing to compare with.
    pub(crate) fn take(&mut self, now: Time, unix_s: i64, moved: Moved) {
        let last = self.last.replace((now, moved));
        let Some((then, before)) = last else { return };
        let seconds = now.since(then) as f64 / 1e6;
        if seconds <= 0.0 {
            return;
        }
        let rate = |after: u64, before: u64| after.saturating_sub(before) as f64 / seconds;
        let sample = Sample {
            origin: rate(moved.received_origin, before.received_origin),
            rdma: rate(moved.received_rdma, before.received_rdma),
            tcp: rate(moved.received_tcp, before.received_tcp),
            local: rate(moved.local_hits, before.local_hits),
        };
        self.samples.insert(unix_s, sample);
        self.samples.retain(|&at, _| at > unix_s - HISTORY_SECONDS && at <= unix_s);
    }

    /// By second since 1970, oldest first.
    pub(crate) fn samples(&self) -> &BTreeMap<i64, Sample> {
        &self.samples
    }

    /// Bytes per second over the last ten seconds.
    pub(crate) fn recent(&self) -> Sample {
        let newest: Vec<&Sample> = self.samples.values().rev().take(10).collect();
        let mean = |of: fn(&Sample) -> f64| newest.iter().map(|s| of(s)).sum::<f64>() / newest.len().max(1) as f64;
        Sample { origin: mean(|s| s.origin), rdma: mean(|s| s.rdma), tcp: mean(|s| s.tcp), local: mean(|s| s.local) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(origin: u64, tcp: u64) -> Moved {
        Moved { received_origin: origin, received_tcp: tcp, ..Moved::default() }
    }

    #[test]
    fn rates_are_differences_over_time() {
        let mut history = History::default();
        history.take(Time(0), 100, moved(50, 0));
        assert!(history.samples().is_empty(), "one reading is no rate");
        history.take(Time(2_000_000), 102, moved(70, 8));
        assert_eq!(history.samples()[&102], Sample { origin: 10.0, tcp: 4.0, ..Sample::default() });
        // A counter that went back (a node was forgotten) is no negative rate.
        history.take(Time(3_000_000), 103, moved(0, 8));
        assert_eq!(history.samples()[&103], Sample::default());
        assert_eq!(history.recent().origin, 5.0);
    }

    #[test]
    fn what_is_old_goes() {
        let mut history = History::default();
        for second in 0..3 * HISTORY_SECONDS {
            history.take(Time(second as u64 * 1_000_000), second, moved(0, 0));
        }
        assert!(history.samples().len() as i64 <= HISTORY_SECONDS);
    }
}
