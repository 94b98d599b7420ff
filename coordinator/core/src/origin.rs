//! The budget of origin reads: how many leases at once.
//!
//! It starts small (what is read from the origin is shared by all nodes, so few parallel reads do). While nodes go
//! hungry it is probed upwards as long as more leases make the origin faster, and downwards as long as fewer do not make
//! it slower: reads that add nothing only lengthen the queue before the reader's link, and what the reader sends to its
//! peers waits there for its acknowledgements. It is halved when the origin complains.

use millstream_types::Time;

use crate::limits::{CHAIN_LEASES, THROTTLE_MEMORY_US, THROTTLE_PAUSE_MAX_US, THROTTLE_PAUSE_MIN_US};
use crate::membership::{Meter, doubled};

/// A larger budget must make the origin at least this much faster to be kept.
const PROBE_GAIN: f64 = 1.03;
/// And by this many times what rounds are usually off.
const PROBE_NOISE: f64 = 1.5;
/// A smaller one must leave it at least this fast.
const PROBE_LOSS: f64 = 0.985;
/// The budget grows in haste, by half each time, only while that makes the origin this much faster: less may be noise.
const GROWTH_GAIN: f64 = 1.2;
/// Shortest round, and how many times the budget ends within it: rates over less are noise.
const ROUND_US: u64 = 250_000;
const ROUND_TURNS: u32 = 4;
/// And while the budget grows.
const GROWTH_ROUND_US: u64 = 50_000;
const GROWTH_ROUND_TURNS: u32 = 2;
/// Rounds that the usual rate is the average of: one slow round before a probe must not make it look like a gain.
const USUAL_ROUNDS: u32 = 8;
/// Rounds between probes, at first and at most.
const PROBE_REST_MIN: u32 = 8;
const PROBE_REST_MAX: u32 = 256;

/// Leases in flight and how many there may be.
#[derive(Debug)]
pub(crate) struct OriginBudget {
    /// Shared leases in flight.
    pub(crate) shared: u32,
    /// All leases in flight.
    pub(crate) all: u32,
    /// Leases that ended.
    pub(crate) done: u64,
    /// Allowed at once, of the shared.
    pub(crate) budget: u32,
    min: u32,
    max: u32,
    pause_until: Time,
    throttles: u32,
    throttled_at: Option<Time>,
    /// Of the whole origin.
    pub(crate) meter: Meter,
    round: Round,
    rest: u32,
    rest_next: u32,
    /// No probe failed yet.
    growing: bool,
    /// The next probe is downwards.
    downwards: bool,
    /// Budget before the running probe.
    probe: Option<u32>,
    /// Rate when the running series of probes downwards began: small losses do not add up.
    full_rate: f64,
    /// The average rate of the rounds without a probe, and of how many.
    usual: f64,
    usual_of: u32,
    /// By how much those rounds were off.
    noise: f64,
    /// The next round begins with what was slow to start: it says nothing.
    cold: bool,
}

#[derive(Debug, Default)]
struct Round {
    start: Time,
    done: u32,
    bytes: u64,
}

impl OriginBudget {
    pub(crate) fn new(first: u32, max: u32) -> OriginBudget {
        let first = first.max(1);
        OriginBudget {
            shared: 0,
            all: 0,
            done: 0,
            budget: first,
            min: first.min(CHAIN_LEASES),
            max: max.max(first),
            pause_until: Time::ZERO,
            throttles: 0,
            throttled_at: None,
            meter: Meter::default(),
            round: Round::default(),
            rest: 2,
            rest_next: PROBE_REST_MIN,
            growing: true,
            downwards: false,
            probe: None,
            full_rate: 0.0,
            usual: 0.0,
            usual_of: 0,
            noise: 0.0,
            cold: true,
        }
    }

    /// So many do no harm.
    pub(crate) fn at_least(&mut self, min: u32) {
        self.min = min.min(self.max);
        if self.throttled_at.is_none() {
            self.budget = self.budget.max(self.min);
        }
    }

    /// May one more lease be granted?
    pub(crate) fn allows(&self, now: Time, shared: bool) -> bool {
        let within = if self.throttled_at.is_some() { self.all < self.budget } else { self.all < self.max };
        now >= self.pause_until && within && (!shared || self.shared < self.budget)
    }

    pub(crate) fn granted(&mut self, now: Time, shared: bool) {
        self.all += 1;
        self.shared += u32::from(shared);
        if self.all == 1 && self.round.done == 0 {
            self.round.start = now;
        }
        self.meter.begin(now);
    }

    /// A shared lease makes no progress: another may be granted beside it.
    pub(crate) fn stalled(&mut self) {
        self.shared -= 1;
    }

    /// A lease is over; `bytes` came.
    pub(crate) fn ended(&mut self, now: Time, shared: bool, bytes: u64) {
        self.all -= 1;
        self.done += 1;
        self.shared -= u32::from(shared);
        self.meter.took(now, bytes, self.all == 0);
        self.round.done += 1;
        self.round.bytes += bytes;
    }

    /// Ends a round once it is long enough. `hungry`: nodes wait for the origin.
    pub(crate) fn end_round(&mut self, now: Time, hungry: bool) {
        let took = now.since(self.round.start);
        // The first round of a probe only waits for the old leases; while the budget grows, haste matters more than noise.
        let settling = self.probe.is_some() && self.rest > 0;
        let (turns, least) = match (settling, self.growing) {
            (true, _) => (1, 1),
            (false, true) => (GROWTH_ROUND_TURNS, GROWTH_ROUND_US),
            (false, false) => (ROUND_TURNS, ROUND_US),
        };
        if self.round.done < turns * self.budget.max(4) || took < least {
            return;
        }
        let rate = self.round.bytes as f64 / took as f64;
        self.round = Round { start: now, done: 0, bytes: 0 };
        if let Some(at) = self.throttled_at {
            if now.since(at) > THROTTLE_MEMORY_US {
                self.throttled_at = None;
                self.throttles = 0;
            } else if now >= self.pause_until {
                self.budget = (self.budget + 1).min(self.max);
            }
            return;
        }
        if self.rest > 0 {
            self.rest -= 1;
            if self.probe.is_none() {
                self.average(rate);
            }
            return;
        }
        match self.probe.take() {
            Some(before) => self.judge_probe(before, rate),
            None => self.average(rate),
        }
        if hungry && self.rest == 0 {
            self.begin_probe();
        }
    }

    fn average(&mut self, rate: f64) {
        if std::mem::take(&mut self.cold) {
            return;
        }
        let off = if self.usual_of == 0 { 0.0 } else { (rate - self.usual).abs() };
        self.usual_of = (self.usual_of + 1).min(USUAL_ROUNDS);
        self.usual += (rate - self.usual) / f64::from(self.usual_of);
        self.noise += (off - self.noise) / f64::from(self.usual_of);
    }

    /// Keeps a probed budget, and goes on in that direction; or takes the former one, and tries the other direction.
    fn judge_probe(&mut self, before: u32, rate: f64) {
        let larger = self.budget > before;
        let needed =
            if larger { PROBE_GAIN * self.usual + PROBE_NOISE * self.noise } else { PROBE_LOSS * self.full_rate };
        self.growing &= rate >= GROWTH_GAIN * self.usual;
        if rate >= needed || self.growing {
            (self.usual, self.usual_of) = (rate, 1);
            self.rest_next = PROBE_REST_MIN;
            return;
        }
        self.budget = before;
        self.downwards = larger;
        self.growing = false;
        // Upwards was tried first: now both were.
        if !larger {
            self.rest = self.rest_next;
            self.rest_next = (self.rest_next * 2).min(PROBE_REST_MAX);
        }
    }

    fn begin_probe(&mut self) {
        let next = match self.downwards {
            true => (self.budget - (self.budget / 4).max(1)).max(self.min.min(self.budget)),
            false => (self.budget + self.budget.div_ceil(2)).min(self.max),
        };
        if next == self.budget {
            self.downwards = !self.downwards;
            self.rest = self.rest_next;
            return;
        }
        self.full_rate = if self.downwards { self.full_rate.max(self.usual) } else { 0.0 };
        self.probe = Some(self.budget);
        self.budget = next;
        self.rest = 1;
    }

    /// Something else than the budget changed the rate: what was measured last says nothing.
    pub(crate) fn disturbed(&mut self, now: Time) {
        if let Some(before) = self.probe.take() {
            self.budget = before;
        }
        self.full_rate = 0.0;
        (self.usual_of, self.cold) = (0, true);
        self.rest = self.rest.max(2);
        self.round = Round { start: now, done: 0, bytes: 0 };
    }

    /// The origin asked for fewer requests.
    pub(crate) fn throttled(&mut self, now: Time) {
        // Answers to requests made before the last cut say nothing new.
        if now < self.pause_until {
            return;
        }
        self.throttled_at = Some(now);
        self.probe = None;
        self.budget = (self.all.max(1).min(self.budget) / 2).max(1);
        self.pause_until = now + doubled(THROTTLE_PAUSE_MIN_US, self.throttles, THROTTLE_PAUSE_MAX_US);
        self.throttles += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of a second each, by the rate that so many leases reach.
    fn rounds(budget: &mut OriginBudget, now: &mut Time, rate: impl Fn(u32) -> f64, count: u32) {
        for _ in 0..count {
            let n = ROUND_TURNS * budget.budget.max(4);
            let bytes = (rate(budget.budget) * 1e6 / f64::from(n)) as u64;
            for _ in 0..n {
                budget.granted(*now, true);
            }
            *now = *now + 1_000_000;
            for _ in 0..n {
                budget.ended(*now, true, bytes);
            }
            budget.end_round(*now, true);
        }
    }

    #[test]
    fn grows_while_more_leases_are_faster_and_not_beyond() {
        let mut now = Time(0);
        let mut budget = OriginBudget::new(4, 4096);
        rounds(&mut budget, &mut now, |n| f64::from(n.min(100)), 200);
        assert!((90..=160).contains(&budget.budget), "{}", budget.budget);
        let mut budget = OriginBudget::new(4, 4096);
        rounds(&mut budget, &mut now, |_| 10.0, 200);
        assert!(budget.budget <= 3, "{}", budget.budget);
    }

    #[test]
    fn a_floor_is_where_growth_begins_and_reduction_ends() {
        let mut now = Time(0);
        let mut budget = OriginBudget::new(4, 4096);
        budget.at_least(12);
        assert_eq!(budget.budget, 12);
        rounds(&mut budget, &mut now, |n| f64::from(n.min(100)), 200);
        assert!((90..=160).contains(&budget.budget), "{}", budget.budget);
        rounds(&mut budget, &mut now, |_| 10.0, 600);
        assert_eq!(budget.budget, 12);
        // What the origin cannot bear comes first.
        budget.throttled(now);
        budget.at_least(12);
        assert!(budget.budget < 12, "{}", budget.budget);
    }

    #[test]
    fn noise_is_no_gain() {
        // A link that is full with three leases; every round is up to a quarter off.
        for seed in 0..40u64 {
            let mut now = Time(0);
            let mut budget = OriginBudget::new(4, 4096);
            let state = std::cell::Cell::new(seed);
            let noisy = |n: u32| {
                state.set(state.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
                let noise = (state.get() >> 40) as f64 / (1u64 << 24) as f64;
                f64::from(n.min(3)) * (0.75 + noise / 2.0)
            };
            let mut most = 0;
            for _ in 0..200 {
                rounds(&mut budget, &mut now, noisy, 1);
                most = most.max(budget.budget);
            }
            assert!(most <= 14, "{seed}: {most}");
        }
    }

    #[test]
    fn leases_that_add_nothing_are_given_up_and_no_others() {
        let mut now = Time(0);
        for (first, needed) in [(64, 10), (64, 40), (8, 3), (4, 4)] {
            let mut budget = OriginBudget::new(first, 4096);
            rounds(&mut budget, &mut now, |n| f64::from(n.min(needed)), 300);
            assert!((needed..=needed + needed.div_ceil(2)).contains(&budget.budget), "{needed}: {}", budget.budget);
        }
    }

    #[test]
    fn a_short_round_says_nothing() {
        let mut budget = OriginBudget { growing: false, ..OriginBudget::new(4, 64) };
        for i in 0..1000 {
            budget.granted(Time(i * 100), true);
            budget.ended(Time(i * 100 + 50), true, 1 << 20);
            budget.end_round(Time(i * 100 + 50), true);
        }
        assert_eq!(budget.budget, 4);
    }

    #[test]
    fn throttling_halves_and_pauses() {
        let mut budget = OriginBudget::new(16, 64);
        for _ in 0..16 {
            budget.granted(Time(0), true);
        }
        budget.throttled(Time(1));
        assert_eq!(budget.budget, 8);
        budget.throttled(Time(2));
        assert_eq!(budget.budget, 8);
        for _ in 0..16 {
            budget.ended(Time(3), true, 0);
        }
        assert!(!budget.allows(Time(4), true));
        assert!(budget.allows(Time(200_000), true));
    }
}
