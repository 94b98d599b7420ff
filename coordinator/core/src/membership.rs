//! Nodes: with us or not, how fast, how busy, how trustworthy.

use millstream_types::{NodeId, Time};

use crate::chain::Flow;
use crate::event::{FailureKind, NodeInfo, NodeState};
use crate::flight::FlightNo;
use crate::limits::{
    DISTRUST_OFFENCES, HOLD_MAX_US, HOLD_MIN_US, NODES_MAX, QUARANTINE_MAX_US, QUARANTINE_MIN_US,
    QUARANTINE_OFFENCE_MAX_US, QUARANTINE_OFFENCE_US, SLOW_FACTOR, SLOW_FADE, SLOW_MAX, SLOW_NOISE,
};
use crate::window::NodeRoom;

/// Weight of a new sample in every moving average.
const ALPHA: f64 = 0.2;
/// Shortest busy time that makes a rate sample.
const RATE_WINDOW_US: u64 = 250_000;
/// Shortest busy time that makes a rate sample when the node ran out of work.
const RATE_WINDOW_IDLE_US: u64 = 20_000;

/// Bytes over busy time, averaged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    busy_since: Option<Time>,
    window_start: Time,
    busy_us: u64,
    bytes: u64,
    /// Bytes per second; zero before the first sample.
    pub(crate) rate: f64,
}

impl Meter {
    pub(crate) fn begin(&mut self, now: Time) {
        if self.busy_since.is_none() {
            self.busy_since = Some(now);
            self.window_start = now;
        }
    }

    /// How long something has been on its way without a pause.
    pub(crate) fn busy_for(&self, now: Time) -> Option<u64> {
        self.busy_since.map(|since| now.since(since))
    }

    /// Bytes arrived; `idle`: nothing more is on its way.
    pub(crate) fn took(&mut self, now: Time, bytes: u64, idle: bool) {
        self.bytes += bytes;
        let busy = self.busy_us + now.since(self.window_start);
        if busy >= RATE_WINDOW_US || (idle && busy >= RATE_WINDOW_IDLE_US) {
            let sample = self.bytes as f64 * 1e6 / busy.max(1) as f64;
            if sample > 0.0 {
                self.rate = if self.rate == 0.0 { sample } else { self.rate + ALPHA * (sample - self.rate) };
            }
            self.busy_us = 0;
            self.bytes = 0;
            self.window_start = now;
        } else if idle {
            self.busy_us = busy;
        }
        if idle {
            self.busy_since = None;
        }
    }
}

/// A slowness factor: 1 is typical.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slowness(f64);

impl Default for Slowness {
    fn default() -> Slowness {
        Slowness(1.0)
    }
}

impl Slowness {
    pub(crate) fn sample(&mut self, ratio: f64) {
        let ratio = ratio.clamp(0.25, SLOW_MAX);
        self.0 += ALPHA * (ratio - self.0);
    }

    /// It kept somebody waiting for long: believe it at once.
    pub(crate) fn strike(&mut self) {
        self.0 = (self.0 * 2.0).clamp(2.0 * SLOW_FACTOR, SLOW_MAX);
    }

    /// It keeps up.
    pub(crate) fn clear(&mut self) {
        *self = Slowness::default();
    }

    /// Who is taken for slow serves nobody, and so could never show that it no longer is.
    pub(crate) fn fade(&mut self) {
        self.0 = 1.0 + (self.0 - 1.0) * SLOW_FADE;
    }

    /// The factor, without noise.
    pub(crate) fn factor(self) -> f64 {
        if self.0 < SLOW_NOISE { 1.0 } else { self.0 }
    }

    pub(crate) fn is_slow(self) -> bool {
        self.0 >= SLOW_FACTOR
    }
}

/// Why and until when a node is avoided as a source.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quarantine {
    pub(crate) until: Time,
    /// Quarantines for bad bytes, or for denying what it said it has.
    offences: u32,
    other_strikes: u32,
    last_reporter: Option<NodeId>,
    /// Who reported the offence first since the quarantine began, and whether that was borne out.
    accuser: Option<NodeId>,
    corroborated: bool,
}

impl Quarantine {
    /// Somebody complains; the length of the quarantine that follows, if one does.
    pub(crate) fn complain(&mut self, now: Time, kind: FailureKind, by: NodeId) -> Option<u64> {
        let running = now < self.until;
        let for_us = if matches!(kind, FailureKind::Checksum | FailureKind::NotHave) {
            // Complaints about pieces sent before the quarantine began are the same offence. Bad bytes may be the
            // accuser's own fault; what it was told twice is not.
            if running && self.offences > 0 {
                self.corroborated |= self.accuser != Some(by) || kind == FailureKind::NotHave;
                return None;
            }
            self.offences += 1;
            self.accuser = Some(by);
            self.corroborated = false;
            doubled(QUARANTINE_OFFENCE_US, self.offences - 1, QUARANTINE_OFFENCE_MAX_US)
        } else {
            if running {
                return None;
            }
            // One complainer may itself be cut off: its complaints do not add up.
            if self.last_reporter != Some(by) || self.other_strikes == 0 {
                self.other_strikes += 1;
            }
            self.last_reporter = Some(by);
            doubled(QUARANTINE_MIN_US, self.other_strikes - 1, QUARANTINE_MAX_US)
        };
        self.until = self.until.max(now + for_us);
        Some(for_us)
    }

    /// It served well.
    pub(crate) fn forgive(&mut self, now: Time) {
        if now >= self.until {
            self.other_strikes = 0;
        }
    }

    /// Its copies do not count: two nodes got bad bytes from it, or one did again and again (that one may itself be
    /// the broken one); or it denied twice what it said it has.
    pub(crate) fn distrusted(&self, now: Time) -> bool {
        now < self.until && (self.corroborated || self.offences >= DISTRUST_OFFENCES)
    }
}

/// `first * 2^times`, at most `max`.
pub(crate) fn doubled(first: u64, times: u32, max: u64) -> u64 {
    first.saturating_mul(1 << times.min(32)).min(max)
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) info: NodeInfo,
    pub(crate) state: NodeState,
    /// Was it ever with this coordinator?
    pub(crate) seen: bool,
    /// Its session is open.
    pub(crate) session: bool,
    pub(crate) last_seen: Time,
    pub(crate) suspect_since: Time,
    pub(crate) rack: u32,
    /// What it fetches.
    pub(crate) flights: Vec<FlightNo>,
    /// What others fetch from it.
    pub(crate) serving: Vec<FlightNo>,
    pub(crate) down_backlog: u64,
    pub(crate) up_backlog: u64,
    /// Bytes passed on less bytes received, as ordered; kept near zero.
    pub(crate) debit: i64,
    /// Origin leases it holds.
    pub(crate) leases: u32,
    pub(crate) rate_in: Meter,
    /// What its link and its disk can do, as it says; zero: not measured.
    pub(crate) link_rate: f64,
    pub(crate) disk_rate: f64,
    /// Its part in chains.
    pub(crate) flow: Flow,
    /// The sweep at which it was last sent to the end of the line.
    pub(crate) demoted: u32,
    /// It was slow or not to be trusted at the last sweep.
    pub(crate) was_poor: bool,
    /// Sweeps in a row in which as much came to it as to others.
    pub(crate) kept_up: u8,
    /// The last sweep that found it so.
    pub(crate) last_poor: Option<Time>,
    pub(crate) slow_in: Slowness,
    pub(crate) slow_out: Slowness,
    pub(crate) quarantine: Quarantine,
    /// When a peer last could not reach it.
    pub(crate) unreachable: Option<Time>,
    failures_in_row: u32,
    /// No new work before.
    pub(crate) hold_until: Time,
    /// What it has for readers.
    pub(crate) room: NodeRoom,
}

impl Node {
    fn new() -> Node {
        Node {
            info: NodeInfo::default(),
            state: NodeState::Down,
            seen: false,
            session: false,
            last_seen: Time::ZERO,
            suspect_since: Time::ZERO,
            rack: 0,
            flights: Vec::new(),
            serving: Vec::new(),
            down_backlog: 0,
            up_backlog: 0,
            debit: 0,
            leases: 0,
            rate_in: Meter::default(),
            link_rate: 0.0,
            disk_rate: 0.0,
            flow: Flow::default(),
            demoted: 0,
            was_poor: false,
            kept_up: 0,
            last_poor: None,
            slow_in: Slowness::default(),
            slow_out: Slowness::default(),
            quarantine: Quarantine::default(),
            unreachable: None,
            failures_in_row: 0,
            hold_until: Time::ZERO,
            room: NodeRoom::default(),
        }
    }

    /// May get new work.
    pub(crate) fn ready(&self, now: Time) -> bool {
        self.state == NodeState::Up && now >= self.hold_until
    }

    /// May serve new work, quarantine aside.
    pub(crate) fn serves(&self) -> bool {
        self.state == NodeState::Up
    }

    /// Serves, and gladly.
    pub(crate) fn serves_well(&self, now: Time) -> bool {
        self.serves() && now >= self.quarantine.until && !self.slow_out.is_slow()
    }

    /// Feeds nobody while others can.
    pub(crate) fn is_poor(&self, now: Time) -> bool {
        !self.serves_well(now) || self.slow_in.is_slow()
    }

    /// An assignment of it failed: pause before the next one.
    pub(crate) fn failed(&mut self, now: Time) {
        // The first failure costs nothing: another source is tried at once.
        if self.failures_in_row > 0 {
            self.hold_until = now + doubled(HOLD_MIN_US, self.failures_in_row - 1, HOLD_MAX_US);
        }
        self.failures_in_row += 1;
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures_in_row = 0;
    }
}

/// All nodes, by number.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    racks: std::collections::BTreeMap<String, u32>,
}

impl Nodes {
    /// The node, made when new; `None` over the limit.
    pub(crate) fn entry(&mut self, node: NodeId) -> Option<&mut Node> {
        if node.0 >= NODES_MAX {
            return None;
        }
        while self.nodes.len() <= node.0 as usize {
            self.nodes.push(Node::new());
        }
        Some(&mut self.nodes[node.0 as usize])
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<&Node> {
        self.nodes.get(node.0 as usize)
    }

    pub(crate) fn get_mut(&mut self, node: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(node.0 as usize)
    }

    /// What comes to the node comes too slowly.
    pub(crate) fn receives_slowly(&mut self, node: NodeId) {
        if let Some(known) = self.get_mut(node) {
            known.slow_in.strike();
        }
    }

    /// What the node gives comes too slowly.
    pub(crate) fn sends_slowly(&mut self, node: NodeId) {
        if let Some(known) = self.get_mut(node) {
            known.slow_out.strike();
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.nodes.len() as u32
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, n)| (NodeId(i as u32), n))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut()
    }

    /// The number of a rack; zero for "unknown".
    pub(crate) fn rack(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let next = self.racks.len() as u32 + 1;
        *self.racks.entry(name.to_owned()).or_insert(next)
    }

    /// How many racks have a name.
    pub(crate) fn racks(&self) -> usize {
        self.racks.len()
    }

    /// Median of the measured receiving rates; `None` before there are any.
    pub(crate) fn median_rate(&self) -> Option<f64> {
        self.median(|n| n.rate_in.rate)
    }

    /// The same of what their links can do, and their disks.
    pub(crate) fn median_link_rate(&self) -> Option<f64> {
        self.median(|n| n.link_rate)
    }

    pub(crate) fn median_disk_rate(&self) -> Option<f64> {
        self.median(|n| n.disk_rate)
    }

    fn median(&self, rate: impl Fn(&Node) -> f64) -> Option<f64> {
        let mut rates: Vec<f64> = self.nodes.iter().map(rate).filter(|&r| r > 0.0).collect();
        if rates.is_empty() {
            return None;
        }
        let middle = rates.len() / 2;
        let (_, median, _) = rates.select_nth_unstable_by(middle, f64::total_cmp);
        Some(*median)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let lists: usize = self.nodes.iter().map(|n| 4 * (n.flights.capacity() + n.serving.capacity())).sum();
        self.nodes.capacity() * size_of::<Node>() + lists
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarantines_double_and_one_offence_counts_once() {
        let mut q = Quarantine::default();
        let (a, b) = (NodeId(1), NodeId(2));
        let first = q.complain(Time(0), FailureKind::Checksum, a).unwrap();
        assert_eq!(q.complain(Time(1), FailureKind::Checksum, a), None);
        assert!(!q.distrusted(Time(1)));
        assert_eq!(q.complain(Time(2), FailureKind::Checksum, b), None);
        assert!(q.distrusted(Time(2)));
        let second = q.complain(Time(first), FailureKind::Checksum, b).unwrap();
        assert_eq!(second, 2 * first);
        assert!(q.distrusted(Time(first)));
    }

    #[test]
    fn what_is_denied_twice_is_not_there() {
        let mut q = Quarantine::default();
        let by = NodeId(1);
        assert_eq!(q.complain(Time(0), FailureKind::NotHave, by), Some(QUARANTINE_OFFENCE_US));
        assert!(!q.distrusted(Time(1)));
        assert_eq!(q.complain(Time(1), FailureKind::NotHave, by), None);
        assert!(q.distrusted(Time(2)));
        assert!(!q.distrusted(Time(QUARANTINE_OFFENCE_US)));
    }

    #[test]
    fn one_complainer_does_not_add_up() {
        let mut q = Quarantine::default();
        let mut now = Time(0);
        for _ in 0..5 {
            assert_eq!(q.complain(now, FailureKind::Timeout, NodeId(1)), Some(QUARANTINE_MIN_US));
            now = q.until;
        }
        assert_eq!(q.complain(now, FailureKind::Timeout, NodeId(2)), Some(2 * QUARANTINE_MIN_US));
    }

    #[test]
    fn rates_are_of_busy_time() {
        let mut meter = Meter::default();
        for second in 0..10u64 {
            // Busy for 100 ms of every second.
            meter.begin(Time(second * 1_000_000));
            meter.took(Time(second * 1_000_000 + 100_000), 10_000_000, true);
        }
        assert!((meter.rate - 1e8).abs() < 1e6, "{}", meter.rate);
    }
}
