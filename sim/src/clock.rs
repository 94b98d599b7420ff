//! Virtual time: what happens next, in one order for one scenario.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use millstream_types::Time;

/// Events to come. Of two at the same moment, the one scheduled first comes first.
#[derive(Debug)]
pub(crate) struct Clock<E> {
    now: Time,
    scheduled: u64,
    popped: u64,
    heap: BinaryHeap<Reverse<Entry<E>>>,
}

#[derive(Debug)]
struct Entry<E> {
    at: Time,
    nth: u64,
    event: E,
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.nth).cmp(&(other.at, other.nth))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

impl<E> Clock<E> {
    pub fn new() -> Clock<E> {
        Clock { now: Time::ZERO, scheduled: 0, popped: 0, heap: BinaryHeap::new() }
    }

    pub fn now(&self) -> Time {
        self.now
    }

    /// Events that have happened.
    pub fn popped(&self) -> u64 {
        self.popped
    }

    /// Lets `event` happen at `at`, or now when that is past.
    pub fn at(&mut self, at: Time, event: E) {
        let at = at.max(self.now);
        self.heap.push(Reverse(Entry { at, nth: self.scheduled, event }));
        self.scheduled += 1;
    }

    /// Lets `event` happen `us` microseconds from now.
    pub fn after(&mut self, us: u64, event: E) {
        self.at(self.now + us, event);
    }

    /// The next event; time moves to it.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        self.popped += 1;
        Some(entry.event)
    }
}

/// Microseconds that `bytes` take at `rate` bytes per second.
pub(crate) fn transfer_us(bytes: u64, rate: f64) -> u64 {
    (bytes as f64 * 1e6 / rate).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_time_and_then_in_order() {
        let mut clock = Clock::new();
        clock.at(Time(5), 'b');
        clock.at(Time(3), 'a');
        clock.at(Time(5), 'c');
        let order: Vec<_> = std::iter::from_fn(|| clock.pop()).collect();
        assert_eq!(order, ['a', 'b', 'c']);
        assert_eq!(clock.now(), Time(5));
        clock.at(Time(1), 'd');
        clock.pop();
        assert_eq!(clock.now(), Time(5), "time never goes back");
    }
}
