//! What flows through one node of a chain, and where that falls short of what the node before it has to give.

use crate::limits::{CHAIN_BREAK_EXTENTS, CHAIN_HEAD_SLACK, CHAIN_LATE_PART, CHAIN_USUAL_SWEEPS};

/// What came to a node, sweep by sweep.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    /// Bytes since the last sweep, in the sweep before, and as many as usually come.
    pub(crate) came: u64,
    pub(super) before: u64,
    pub(super) usual: u64,
    /// Bytes by which it fell behind what the node before it in the chain had to give.
    pub(super) lag: u64,
}

impl Flow {
    /// Takes note of what came since the last sweep, where `given` came to the node before, and `at_hand` of it early
    /// enough to be passed on; the first node has what usually comes to compare with. Is this where the chain breaks?
    pub(super) fn judge(&mut self, given: Option<(u64, u64)>, target: u64) -> bool {
        let usual = self.usual - self.usual / CHAIN_HEAD_SLACK;
        let (expected, at_hand) = given.unwrap_or((usual, usual));
        let stopped = at_hand > CHAIN_LATE_PART * (self.came + target);
        // What one sweep lacks the next one makes up for, where there is nothing but noise.
        self.lag = (self.lag + expected).saturating_sub(self.came);
        let lagging = self.came < expected && self.lag > 2 * expected.max(self.usual) + CHAIN_BREAK_EXTENTS * target;
        stopped || lagging
    }

    /// What came since the last sweep, and how much of it was there to be passed on in that time: where little came
    /// before, it came late on the average.
    pub(super) fn given(&self) -> (u64, u64) {
        (self.came, self.came.min(u64::midpoint(self.came, self.before)))
    }

    /// Something came lately.
    pub(crate) fn runs(&self) -> bool {
        self.came > 0 || self.before > 0
    }

    /// Begins the next sweep.
    pub(super) fn turn(&mut self) {
        // Completions come in bursts: one sweep is no measure.
        let recent = u64::midpoint(self.came, self.before);
        self.usual = recent.max(self.usual - self.usual.saturating_sub(recent) / CHAIN_USUAL_SWEEPS);
        self.before = self.came;
        self.came = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: u64 = 256 << 10;
    const USUAL: u64 = 12 << 20;

    /// Sweeps until the chain is found broken, at most so many; the n-th gets and is given as many bytes as told.
    fn broken_after(sweeps: u64, mut flow: Flow, bytes: impl Fn(u64) -> (u64, Option<u64>)) -> Option<u64> {
        for n in 0..sweeps {
            let (came, given) = bytes(n);
            flow.came = came;
            if flow.judge(given.map(|bytes| (bytes, bytes)), TARGET) {
                return Some(n + 1);
            }
            flow.turn();
        }
        None
    }

    fn running() -> Flow {
        Flow { before: USUAL, usual: USUAL, ..Flow::default() }
    }

    #[test]
    fn a_link_a_fifth_too_slow_is_found_in_seconds() {
        let after = broken_after(60, running(), |_| (USUAL * 4 / 5, Some(USUAL))).unwrap();
        assert!((8..=20).contains(&after), "{after}");
        assert_eq!(broken_after(60, running(), |_| (0, Some(USUAL))), Some(1));
    }

    #[test]
    fn what_comes_late_in_a_sweep_is_not_passed_on_in_it() {
        let broken = |mut flow: Flow, before: Flow| flow.judge(Some(before.given()), TARGET);
        // The node before has just begun to receive, and the links have not come to their speed.
        let (first, began) = (Flow { came: USUAL, ..Flow::default() }, Flow { came: USUAL / 6, ..Flow::default() });
        assert!(!broken(began, first));
        let running = Flow { came: USUAL, ..running() };
        assert!(broken(began, running), "when it has been at it for a while, that is slow");
        let stalls = Flow { came: 0, ..running };
        assert!(!broken(Flow::default(), stalls), "what did not come is not missing");
    }

    #[test]
    fn completions_in_bursts_are_not_a_break() {
        // Whole sweeps late, at times, but nothing is lost.
        let bursts = |n: u64| if n.is_multiple_of(2) { 2 * USUAL } else { 0 };
        let late =
            |n: u64| if n == 0 { (USUAL, Some(USUAL)) } else { (bursts(n - 1) / 2 + USUAL / 2, Some(bursts(n))) };
        assert_eq!(broken_after(1000, running(), late), None);
    }

    #[test]
    fn a_first_node_that_fluctuates_is_not_a_break_and_a_slow_one_is() {
        let noise = |n: u64| USUAL * [100, 78, 104, 97, 103, 98, 95, 106][n as usize % 8] / 100;
        assert_eq!(broken_after(2000, running(), |n| (noise(n), None)), None);
        let after = broken_after(60, running(), |n| (noise(n) * 6 / 10, None)).unwrap();
        assert!(after <= 16, "{after}");
        // What an origin loses little by little is not the node's fault.
        assert_eq!(broken_after(500, running(), |n| (USUAL * 1000 / (1000 + 2 * n), None)), None);
    }
}
