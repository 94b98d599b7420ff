//! What the agent counts: atomics that every part adds to, read by heartbeats, `/metrics` and the socket.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

use crate::limits::LAST_ERRORS_MAX;

/// All metrics of an agent: name, labels, help. Mirrored in `docs/metrics.md`.
const METRICS: [(&str, &[&str], &str); 15] = [
    ("millstream_received_bytes_total", &["source"], "Bytes of accepted pieces."),
    ("millstream_local_hit_bytes_total", &[], "Bytes of shards that readers wanted and found in place."),
    ("millstream_sent_bytes_total", &["transport"], "Piece bytes sent to peers."),
    ("millstream_verified_pieces_total", &[], "Pieces that matched the manifest."),
    ("millstream_checksum_failures_total", &["source", "reason"], "Bytes that did not match."),
    ("millstream_fallbacks_total", &["from", "to", "reason"], "Something slower was used than what was wanted."),
    ("millstream_rdma_devices", &[], "RDMA devices of this node that can be used now."),
    ("millstream_rdma_copied_bytes_total", &[], "Bytes copied in memory to be sent over RDMA."),
    (
        "millstream_rdma_device_received_bytes",
        &["device", "counted_by"],
        "Bytes received over a device since it was opened, as the agent and as the device counts them.",
    ),
    (
        "millstream_rdma_device_sent_bytes",
        &["device", "counted_by"],
        "Bytes sent over a device since it was opened, as the agent and as the device counts them.",
    ),
    ("millstream_shards", &["state"], "Shards on this node."),
    ("millstream_cache_bytes", &["class"], "Bytes on disk."),
    ("millstream_evictions_total", &["cause"], "Versions evicted, and shards dropped behind readers."),
    ("millstream_extent_duration_seconds", &[], "From an assignment to its completion."),
    ("millstream_build_info", &["version", "role"], "Always 1."),
];

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Sets a value that another part counts.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }
}

/// An RDMA device of this node, with what went over it by the agent's own count and by the device's.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RdmaDevice {
    /// `mlx5_0`.
    pub device: String,
    /// The port in use; 0 when none is.
    pub port: u32,
    /// `up`, or the reason code of why it is not used now.
    pub state: String,
    /// Its address.
    pub gid: String,
    /// `ib`, `roce-v1`, `roce-v2`.
    pub kind: String,
    /// Bytes of a packet.
    pub mtu_bytes: u32,
    /// Queue pairs there are now.
    pub queue_pairs: u64,
    /// Piece bytes that peers wrote into this node's slots since the device was opened.
    pub received_bytes: u64,
    /// Piece bytes written into peers' slots.
    pub sent_bytes: u64,
    /// What the device says that it received, headers included; `None` when it does not count.
    pub wire_received_bytes: Option<u64>,
    /// What it says that it sent.
    pub wire_sent_bytes: Option<u64>,
}

impl RdmaDevice {
    /// Does the device confirm that what counts as RDMA went over its wire? `None` when it does not count.
    pub fn is_confirmed(&self) -> Option<bool> {
        Some(self.wire_received_bytes? >= self.received_bytes && self.wire_sent_bytes? >= self.sent_bytes)
    }
}

/// `from`, `to`, `reason` of a fallback.
pub type FallbackKey = (String, String, String);

/// All counters of one agent.
pub struct Counters {
    /// Bytes of accepted pieces, by where they came from.
    pub received_origin: Count,
    /// See `received_origin`.
    pub received_tcp: Count,
    /// See `received_origin`.
    pub received_rdma: Count,
    /// Bytes of shards that readers wanted and found in place.
    pub local_hits: Count,
    /// Piece bytes sent to peers over TCP.
    pub sent_tcp: Count,
    /// Piece bytes sent to peers over RDMA.
    pub sent_rdma: Count,
    /// RDMA devices that can be used now.
    pub rdma_devices: Count,
    /// Bytes that were copied in memory to be sent over RDMA.
    pub rdma_copied: Count,
    /// Pieces that matched the manifest.
    pub verified_pieces: Count,
    /// Bytes in sealed shards.
    pub used_bytes: Count,
    /// Bytes in pinned versions.
    pub pinned_bytes: Count,
    /// Bytes in shards not sealed yet.
    pub partial_bytes: Count,
    /// Shards visible.
    pub shards_ready: Count,
    /// Shards open, not visible yet.
    pub shards_partial: Count,
    fallbacks: Mutex<BTreeMap<FallbackKey, u64>>,
    rdma: Mutex<Vec<RdmaDevice>>,
    checksum_failures: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    evictions: Mutex<BTreeMap<&'static str, u64>>,
    /// With how often each was met; the latest last.
    last_errors: Mutex<VecDeque<(String, u64)>>,
    recorder: PrometheusRecorder,
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            received_origin: Count::default(),
            received_tcp: Count::default(),
            received_rdma: Count::default(),
            local_hits: Count::default(),
            sent_tcp: Count::default(),
            sent_rdma: Count::default(),
            rdma_devices: Count::default(),
            rdma_copied: Count::default(),
            verified_pieces: Count::default(),
            used_bytes: Count::default(),
            pinned_bytes: Count::default(),
            partial_bytes: Count::default(),
            shards_ready: Count::default(),
            shards_partial: Count::default(),
            fallbacks: Mutex::default(),
            rdma: Mutex::default(),
            checksum_failures: Mutex::default(),
            evictions: Mutex::default(),
            last_errors: Mutex::default(),
            recorder: PrometheusBuilder::new()
                .set_buckets(&[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0])
                .unwrap_or_else(|_| PrometheusBuilder::new())
                .build_recorder(),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Counters {
    /// Counts a fallback, and logs its first occurrence.
    pub fn fallback(&self, from: &str, to: &str, reason: &str) {
        let mut all = locked(&self.fallbacks);
        // A handful of kinds, counted for every piece: looked through rather than copied to be looked up.
        if let Some((_, count)) = all.iter_mut().find(|((f, t, r), _)| f == from && t == to && r == reason) {
            *count += 1;
            return;
        }
        all.insert((from.into(), to.into(), reason.into()), 1);
        tracing::warn!(from, to, reason, "fallback");
    }

    /// All fallbacks so far.
    pub fn fallbacks(&self) -> Vec<(FallbackKey, u64)> {
        locked(&self.fallbacks).iter().map(|(k, v)| (k.clone(), *v)).collect()
    }

    /// The RDMA devices as they were looked at last.
    pub fn rdma(&self) -> Vec<RdmaDevice> {
        locked(&self.rdma).clone()
    }

    /// Sets what [`Counters::rdma`] returns.
    pub fn set_rdma(&self, devices: Vec<RdmaDevice>) {
        *locked(&self.rdma) = devices;
    }

    /// Counts bytes that did not match the manifest. `source` is `origin`, `tcp`, `rdma` or `disk`.
    pub fn checksum_failure(&self, source: &'static str, reason: &'static str) {
        *locked(&self.checksum_failures).entry((source, reason)).or_insert(0) += 1;
    }

    /// All of them.
    pub fn checksum_failures(&self) -> u64 {
        locked(&self.checksum_failures).values().sum()
    }

    /// Counts an eviction.
    pub fn eviction(&self, cause: &'static str) {
        *locked(&self.evictions).entry(cause).or_insert(0) += 1;
    }

    /// Keeps an error for the status page (a bounded number of the last ones; the same again is counted).
    pub fn error(&self, text: String) {
        let mut errors = locked(&self.last_errors);
        let known = errors.iter().position(|(t, _)| *t == text).and_then(|at| errors.remove(at));
        let before = known.map_or(0, |(_, count)| count);
        if errors.len() == LAST_ERRORS_MAX {
            errors.pop_front();
        }
        errors.push_back((text, before + 1));
    }

    /// The last errors and how often each was met, the latest last.
    pub fn last_errors(&self) -> Vec<(String, u64)> {
        locked(&self.last_errors).iter().cloned().collect()
    }

    /// Seconds that one assignment took.
    pub fn extent_duration(&self, seconds: f64) {
        metrics::with_local_recorder(&self.recorder, || {
            metrics::histogram!("millstream_extent_duration_seconds").record(seconds);
        });
    }

    /// Prometheus text.
    pub fn render(&self) -> String {
        metrics::with_local_recorder(&self.recorder, || self.mirror());
        self.recorder.handle().render()
    }

    fn mirror(&self) {
        use metrics::{counter, gauge};
        for (name, _, help) in METRICS {
            match name {
                _ if name.ends_with("_total") => metrics::describe_counter!(name, help),
                _ if name.ends_with("_seconds") => metrics::describe_histogram!(name, help),
                _ => metrics::describe_gauge!(name, help),
            }
        }
        for (source, count) in
            [("origin", &self.received_origin), ("rdma", &self.received_rdma), ("tcp", &self.received_tcp)]
        {
            counter!("millstream_received_bytes_total", "source" => source).absolute(count.get());
        }
        counter!("millstream_local_hit_bytes_total").absolute(self.local_hits.get());
        for (transport, count) in [("rdma", &self.sent_rdma), ("tcp", &self.sent_tcp)] {
            counter!("millstream_sent_bytes_total", "transport" => transport).absolute(count.get());
        }
        counter!("millstream_verified_pieces_total").absolute(self.verified_pieces.get());
        for ((source, reason), count) in locked(&self.checksum_failures).iter() {
            counter!("millstream_checksum_failures_total", "source" => *source, "reason" => *reason).absolute(*count);
        }
        for ((from, to, reason), count) in locked(&self.fallbacks).iter() {
            counter!("millstream_fallbacks_total", "from" => from.clone(), "to" => to.clone(), "reason" => reason.clone())
                .absolute(*count);
        }
        for (cause, count) in locked(&self.evictions).iter() {
            counter!("millstream_evictions_total", "cause" => *cause).absolute(*count);
        }
        for (class, count) in
            [("used", &self.used_bytes), ("pinned", &self.pinned_bytes), ("partial", &self.partial_bytes)]
        {
            gauge!("millstream_cache_bytes", "class" => class).set(count.get() as f64);
        }
        for (state, count) in [("ready", &self.shards_ready), ("partial", &self.shards_partial)] {
            gauge!("millstream_shards", "state" => state).set(count.get() as f64);
        }
        gauge!("millstream_rdma_devices").set(self.rdma_devices.get() as f64);
        counter!("millstream_rdma_copied_bytes_total").absolute(self.rdma_copied.get());
        for d in locked(&self.rdma).iter() {
            let received = [("agent", Some(d.received_bytes)), ("device", d.wire_received_bytes)];
            let sent = [("agent", Some(d.sent_bytes)), ("device", d.wire_sent_bytes)];
            for (name, counts) in
                [("millstream_rdma_device_received_bytes", received), ("millstream_rdma_device_sent_bytes", sent)]
            {
                for (by, bytes) in counts.into_iter().filter_map(|(by, bytes)| Some((by, bytes?))) {
                    gauge!(name, "device" => d.device.clone(), "counted_by" => by).set(bytes as f64);
                }
            }
        }
        gauge!("millstream_build_info", "version" => env!("CARGO_PKG_VERSION"), "role" => "agent").set(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, kinds and labels of the metrics of agents in `docs/metrics.md`.
    fn documented() -> BTreeMap<String, (String, Vec<String>)> {
        let text = include_str!("../../docs/metrics.md");
        let (_, section) = text.split_once("\n## Agents\n").expect("the heading");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter(|l| l.starts_with("| `millstream_"));
        let ticked = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let row = |line: &str| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            (ticked(cells[1]).remove(0), (cells[2].to_owned(), ticked(cells[3])))
        };
        rows.map(row).collect()
    }

    #[test]
    fn the_page_and_the_constants_say_the_same() {
        let ours = METRICS.map(|(name, labels, _)| {
            let kind = match name {
                _ if name.ends_with("_total") => "counter",
                _ if name.ends_with("_seconds") => "histogram",
                _ => "gauge",
            };
            (name.to_owned(), (kind.to_owned(), labels.iter().map(|&l| l.to_owned()).collect()))
        });
        assert_eq!(documented(), BTreeMap::from(ours));
    }

    #[test]
    fn the_same_error_is_one_with_a_count() {
        let counters = Counters::default();
        for text in ["a", "b", "a"] {
            counters.error(text.into());
        }
        assert_eq!(counters.last_errors(), [("b".to_owned(), 1), ("a".to_owned(), 2)]);
        for n in 0..2 * LAST_ERRORS_MAX {
            counters.error(n.to_string());
        }
        assert_eq!(counters.last_errors().len(), LAST_ERRORS_MAX);
    }

    #[test]
    fn a_device_that_counts_less_than_we_do_denies_it() {
        let mut device = RdmaDevice { received_bytes: 9, sent_bytes: 0, ..RdmaDevice::default() };
        assert_eq!(device.is_confirmed(), None, "it does not count");
        (device.wire_received_bytes, device.wire_sent_bytes) = (Some(9), Some(1));
        assert_eq!(device.is_confirmed(), Some(true));
        device.wire_received_bytes = Some(8);
        assert_eq!(device.is_confirmed(), Some(false));
    }

    #[test]
    fn what_is_rendered_is_in_the_constants() {
        let counters = Counters::default();
        counters.fallback("uring", "blocking", "a test");
        counters.checksum_failure("tcp", "piece");
        counters.eviction("request");
        counters.extent_duration(0.5);
        counters.set_rdma(vec![RdmaDevice { device: "mlx5_0".into(), ..RdmaDevice::default() }]);
        let text = counters.render();
        let kinds = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next());
        let mut rendered: Vec<&str> = kinds.collect();
        rendered.sort_unstable();
        let mut named = METRICS.map(|m| m.0);
        named.sort_unstable();
        assert_eq!(rendered, named);
    }
}
