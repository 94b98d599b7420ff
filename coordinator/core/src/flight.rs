//! Assignments in flight: a slab whose index is part of the assignment's number, so that answers find it at once.

use millstream_types::{AssignmentId, DatasetId, NodeId, Time};

use crate::event::{Failure, FailureKind, Source};
use crate::limits::CONTROL_DELAY_US;

/// Index of a flight in the slab.
pub(crate) type FlightNo = u32;

/// Low bits of an assignment's number that index the slab (16 M in flight).
const INDEX_BITS: u32 = 24;
/// The rest counts assignments.
const SEQUENCE_MAX: u64 = 1 << (64 - INDEX_BITS);

/// One assignment that a node works on.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) id: AssignmentId,
    pub(crate) node: NodeId,
    pub(crate) dataset: DatasetId,
    pub(crate) extent: u32,
    pub(crate) source: Source,
    pub(crate) alternates: Vec<NodeId>,
    pub(crate) bytes: u64,
    pub(crate) started: Time,
    /// When the source itself had the extent (at once for holders); for blaming and for the overdue check.
    pub(crate) source_ready: Option<Time>,
    /// Last sign of progress of an origin read.
    pub(crate) progress: Time,
    pub(crate) lease_us: u64,
    pub(crate) priority: u32,
    /// How often its source was changed.
    pub(crate) resourced: u8,
    /// When so many origin reads are done, those that began after this one stalled are among them.
    pub(crate) overtaken: Option<u64>,
    /// Counts against the shared origin budget.
    pub(crate) shared_lease: bool,
    /// Positions in the lists of its extent, its node and its source.
    pub(crate) at_extent: u32,
    pub(crate) at_node: u32,
    pub(crate) at_source: u32,
}

impl Flight {
    /// Does this failure say that the source denies what it said it has? It counts only if it was asked after that: the
    /// answer may have waited behind pieces, and the source received the extent meanwhile.
    pub(crate) fn denied(&self, now: Time, failure: &Failure) -> bool {
        let asked = failure.asked_us > 0 && failure.kind == FailureKind::NotHave && failure.source == self.source;
        asked && self.source_ready.is_some_and(|at| now.since(at) >= failure.asked_us.saturating_add(CONTROL_DELAY_US))
    }
}

/// All flights.
#[derive(Debug)]
pub(crate) struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<FlightNo>,
    sequence: u64,
}

impl Flights {
    pub(crate) fn new(first: u64) -> Flights {
        Flights { slots: Vec::new(), free: Vec::new(), sequence: first % SEQUENCE_MAX }
    }

    /// Keeps a flight and numbers it; `None` when the slab is full.
    pub(crate) fn insert(&mut self, mut flight: Flight) -> Option<FlightNo> {
        let no = match self.free.pop() {
            Some(no) => no,
            None if self.slots.len() < 1 << INDEX_BITS => {
                self.slots.push(None);
                (self.slots.len() - 1) as FlightNo
            }
            None => return None,
        };
        flight.id = AssignmentId(self.sequence << INDEX_BITS | u64::from(no));
        self.sequence = (self.sequence + 1) % SEQUENCE_MAX;
        self.slots[no as usize] = Some(flight);
        Some(no)
    }

    pub(crate) fn remove(&mut self, no: FlightNo) -> Option<Flight> {
        let flight = self.slots.get_mut(no as usize)?.take()?;
        self.free.push(no);
        Some(flight)
    }

    pub(crate) fn get(&self, no: FlightNo) -> Option<&Flight> {
        self.slots.get(no as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, no: FlightNo) -> Option<&mut Flight> {
        self.slots.get_mut(no as usize)?.as_mut()
    }

    /// The flight of that number, if it is still in the air and the node's.
    pub(crate) fn find(&self, id: AssignmentId, node: NodeId) -> Option<FlightNo> {
        let no = (id.0 & ((1 << INDEX_BITS) - 1)) as FlightNo;
        self.get(no).filter(|f| f.id == id && f.node == node).map(|_| no)
    }

    #[cfg(test)]
    pub(crate) fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Numbers of all flights in the air, ascending.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = FlightNo> + '_ {
        (0..self.slots.len()).filter(|&i| self.slots[i].is_some()).map(|i| i as FlightNo)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Option<Flight>>() + self.free.capacity() * 4
    }
}

#[cfg(test)]
pub(crate) fn sample(node: u32) -> Flight {
    Flight {
        id: AssignmentId(0),
        node: NodeId(node),
        dataset: DatasetId(0),
        extent: 0,
        source: Source::Origin,
        alternates: Vec::new(),
        bytes: 1,
        started: Time::ZERO,
        source_ready: None,
        progress: Time::ZERO,
        lease_us: 0,
        priority: 0,
        resourced: 0,
        overtaken: None,
        shared_lease: false,
        at_extent: 0,
        at_node: 0,
        at_source: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_asked_before_it_has_it_denies_nothing() {
        let source = Source::Peer(NodeId(7));
        let flight = Flight { source, source_ready: Some(Time(1_000_000)), ..sample(1) };
        let failure = |asked_us| Failure { asked_us, ..Failure::new(FailureKind::NotHave, source, String::new()) };
        assert!(flight.denied(Time(1_200_000), &failure(100_000)));
        assert!(!flight.denied(Time(1_199_999), &failure(100_000)), "the question came before");
        assert!(!flight.denied(Time(9_000_000), &failure(u64::MAX)), "whatever a node says");
        assert!(!flight.denied(Time(9_000_000), &Failure { source: Source::Peer(NodeId(8)), ..failure(1) }));
        assert!(!Flight { source_ready: None, ..flight }.denied(Time(9_000_000), &failure(1)));
    }

    #[test]
    fn numbers_are_never_used_twice() {
        let mut flights = Flights::new(7);
        let a = flights.insert(sample(1)).unwrap();
        let id = flights.get(a).unwrap().id;
        assert_eq!(flights.find(id, NodeId(1)), Some(a));
        assert_eq!(flights.find(id, NodeId(2)), None);
        flights.remove(a).unwrap();
        assert_eq!(flights.find(id, NodeId(1)), None);
        let b = flights.insert(sample(1)).unwrap();
        assert_eq!(a, b);
        assert_eq!(flights.find(id, NodeId(1)), None);
        assert_eq!(flights.live(), 1);
    }
}
