//! How fast a link or a disk is: bytes, over the time in which some of them were being moved. What is idle in between
//! does not count, so that this is what it can do, not what it was asked for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What was moved, and how long that took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes that arrived.
    pub bytes: u64,
    /// The time in which at least one move was under way.
    pub time: Duration,
}

impl Moved {
    /// The time as it goes over the wire.
    pub fn micros(&self) -> u64 {
        u64::try_from(self.time.as_micros()).unwrap_or(u64::MAX)
    }
}

/// Counts moves that may be under way at once.
#[derive(Debug, Default)]
pub struct Pace(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    under_way: u32,
    /// When the first of those that are under way began.
    since: Option<Instant>,
    moved: Moved,
}

/// A move under way, until it is dropped.
#[derive(Debug)]
pub struct Moving(Arc<Pace>);

impl Pace {
    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A move begins.
    pub fn begin(self: &Arc<Self>) -> Moving {
        let mut counted = self.counted();
        counted.under_way += 1;
        counted.since.get_or_insert_with(Instant::now);
        Moving(self.clone())
    }

    /// Until now.
    pub fn moved(&self) -> Moved {
        let counted = self.counted();
        let running = counted.since.map_or(Duration::ZERO, |since| since.elapsed());
        Moved { time: counted.moved.time + running, ..counted.moved }
    }
}

impl Moving {
    /// So much of it arrived.
    pub fn done(self, bytes: u64) {
        self.0.counted().moved.bytes += bytes;
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        let mut counted = self.0.counted();
        counted.under_way -= 1;
        if counted.under_way == 0 {
            let took = counted.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            counted.moved.time += took;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Until the clock has moved on.
    fn tick() {
        let now = Instant::now();
        while now.elapsed().is_zero() {}
    }

    #[test]
    fn time_is_counted_once_however_many_move_and_not_between() {
        let pace = Arc::new(Pace::default());
        let began = Instant::now();
        let (one, two) = (pace.begin(), pace.begin());
        tick();
        assert!(pace.moved().time > Duration::ZERO, "what is under way counts");
        one.done(10);
        tick();
        two.done(5);
        let moved = pace.moved();
        assert_eq!(moved.bytes, 15);
        assert!(moved.time <= began.elapsed(), "twice");
        tick();
        assert_eq!(pace.moved(), moved, "nothing is moved now");
        drop(pace.begin());
        assert_eq!(pace.moved().bytes, 15, "what failed brings no bytes");
    }
}
