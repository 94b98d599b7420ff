//! How fast a disk takes what is written to it: bytes, over the time in which something was being written.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What was written, and how long that took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes that are on disk.
    pub bytes: u64,
    /// The time in which at least one write was under way.
    pub time: Duration,
}

/// Counts writes that may be under way at once.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    under_way: u32,
    /// When the first of those that are under way began.
    since: Option<Instant>,
    written: Written,
}

/// A write under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Writing<'a>(&'a Pace);

impl Pace {
    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write begins.
    pub(super) fn begin(&self) -> Writing<'_> {
        let mut counted = self.counted();
        counted.under_way += 1;
        counted.since.get_or_insert_with(Instant::now);
        Writing(self)
    }

    /// Until now.
    pub(super) fn written(&self) -> Written {
        let counted = self.counted();
        let running = counted.since.map_or(Duration::ZERO, |since| since.elapsed());
        Written { time: counted.written.time + running, ..counted.written }
    }
}

impl Writing<'_> {
    /// So much of it is on disk.
    pub(super) fn done(self, bytes: u64) {
        self.0.counted().written.bytes += bytes;
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut counted = self.0.counted();
        counted.under_way -= 1;
        if counted.under_way == 0 {
            let took = counted.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            counted.written.time += took;
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
    fn time_is_counted_once_however_many_write_and_not_between() {
        let pace = Pace::default();
        let began = Instant::now();
        let (one, two) = (pace.begin(), pace.begin());
        tick();
        assert!(pace.written().time > Duration::ZERO, "what is under way counts");
        one.done(10);
        tick();
        two.done(5);
        let written = pace.written();
        assert_eq!(written.bytes, 15);
        assert!(written.time <= began.elapsed(), "twice");
        tick();
        assert_eq!(pace.written(), written, "nothing is written now");
        drop(pace.begin());
        assert_eq!(pace.written().bytes, 15, "what failed brings no bytes");
    }
}
