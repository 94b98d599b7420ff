//! One order of the coordinator, while it is carried out.

use millstream_types::{AssignmentId, DatasetId, PieceRange, RunSet, Time};

use crate::event::{Assignment, Failure, FetchId, PeerId, Source};
use crate::limits;
use crate::ordered::OrderedMap;

/// An order in hand. Its pieces are those that `Owners` says are its own.
#[derive(Debug)]
pub(crate) struct Order {
    pub id: AssignmentId,
    pub dataset: DatasetId,
    pub pieces: PieceRange,
    pub priority: u32,
    /// Whom to ask now.
    pub source: Source,
    primary: Source,
    alternates: Vec<PeerId>,
    next_alternate: usize,
    rounds: u32,
    /// Pieces to ask for: not here, not asked for.
    pub todo: RunSet,
    /// Pieces not on disk.
    pub left: u32,
    /// Pieces verified and being written.
    pub writing: u32,
    /// Its fetches that were not aborted.
    pub fetches: OrderedMap<FetchId, ()>,
    /// Bytes of those (from peers).
    pub asked_bytes: u64,
    /// Bytes accepted for it.
    pub bytes: u64,
    pub started: Option<Time>,
    pub lease_end: Time,
    /// Asks nobody before this moment.
    pub wait_until: Time,
    pub origin_failures: u32,
    pub checksum_failures: u32,
    pub forgiven: u32,
    pub not_have: u32,
    /// Being given back: waits for its writes.
    pub failing: Option<Failure>,
}

/// What comes after a source failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Ask the next source.
    Source,
    /// All failed: begin again after a pause (the number of rounds so far).
    Pause(u32),
    /// Give the order back.
    GiveUp,
}

impl Order {
    pub fn new(now: Time, assignment: Assignment) -> Order {
        let lease_end = match (assignment.source, assignment.lease_us) {
            (Source::Origin, us) if us > 0 => now + us,
            _ => Time::NEVER,
        };
        Order {
            id: assignment.id,
            dataset: assignment.dataset,
            pieces: assignment.pieces,
            priority: assignment.priority,
            source: assignment.source,
            primary: assignment.source,
            alternates: assignment.alternates,
            next_alternate: 0,
            rounds: 0,
            todo: RunSet::new(),
            left: 0,
            writing: 0,
            fetches: OrderedMap::default(),
            asked_bytes: 0,
            bytes: 0,
            started: None,
            lease_end,
            wait_until: Time::ZERO,
            origin_failures: 0,
            checksum_failures: 0,
            forgiven: 0,
            not_have: 0,
            failing: None,
        }
    }

    /// Goes on to the next source after the present one failed.
    pub fn advance(&mut self) -> Next {
        self.forgiven = 0;
        self.not_have = 0;
        if let Some(&peer) = self.alternates.get(self.next_alternate) {
            self.next_alternate += 1;
            self.source = Source::Peer(peer);
            return Next::Source;
        }
        self.rounds += 1;
        self.next_alternate = 0;
        self.source = self.primary;
        if self.rounds < limits::PEER_ROUNDS_MAX { Next::Pause(self.rounds) } else { Next::GiveUp }
    }

    /// Is the source the one that the coordinator chose?
    pub fn is_at_primary(&self) -> bool {
        self.source == self.primary
    }

    /// A piece arrived and was right: past failures no longer count.
    pub fn progressed(&mut self) {
        self.rounds = 0;
        self.origin_failures = 0;
        self.forgiven = 0;
        self.not_have = 0;
    }

    /// Still asking, or waiting to ask?
    pub fn is_reading(&self) -> bool {
        self.failing.is_none() && !(self.todo.is_empty() && self.fetches.is_empty())
    }

    /// The next moment at which it needs attention by itself.
    pub fn wake(&self, now: Time) -> Option<Time> {
        if self.failing.is_some() {
            return None; // the disk's answers wake it
        }
        let wait = (self.wait_until > now).then_some(self.wait_until);
        let lease = (now < self.lease_end && self.lease_end < Time::NEVER).then_some(self.lease_end);
        wait.into_iter().chain(lease).min()
    }
}

/// Microseconds to wait before attempt number `attempt` (from 1): doubling, and spread over the upper half by a hash of
/// what differs between orders and nodes.
pub(crate) fn backoff_us(attempt: u32, seed: u64, id: AssignmentId) -> u64 {
    let doubled = limits::BACKOFF_MIN_US << attempt.saturating_sub(1).min(20);
    let full = doubled.min(limits::BACKOFF_MAX_US);
    full / 2 + mix(seed ^ id.0.rotate_left(32) ^ u64::from(attempt)) % (full / 2 + 1)
}

/// SplitMix64's finaliser: spreads close numbers.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_is_bounded_and_differs() {
        let waits: Vec<u64> = (1..40).map(|n| backoff_us(n, 7, AssignmentId(1))).collect();
        assert!(waits.iter().all(|&w| w <= limits::BACKOFF_MAX_US));
        assert!(waits[0] >= limits::BACKOFF_MIN_US / 2 && waits[30] >= limits::BACKOFF_MAX_US / 2);
        assert_ne!(backoff_us(3, 7, AssignmentId(1)), backoff_us(3, 8, AssignmentId(1)));
    }

    #[test]
    fn sources_are_tried_in_order_and_rounds_are_bounded() {
        let mut order = Order::new(
            Time::ZERO,
            Assignment {
                id: AssignmentId(1),
                dataset: DatasetId(0),
                pieces: 0..1,
                source: Source::Peer(PeerId(1)),
                alternates: vec![PeerId(2), PeerId(3)],
                lease_us: 0,
                priority: 0,
            },
        );
        let mut asked = vec![order.source];
        loop {
            match order.advance() {
                Next::GiveUp => break,
                _ => asked.push(order.source),
            }
        }
        let peers: Vec<_> = [1, 2, 3, 1, 2, 3, 1, 2, 3].map(PeerId).to_vec();
        assert_eq!(asked, peers.into_iter().map(Source::Peer).collect::<Vec<_>>());
    }
}
