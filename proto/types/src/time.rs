//! Time as the cores see it: microseconds since an arbitrary start, handed in by the shell.

use std::ops::{Add, Sub};

/// A moment, in microseconds since the shell's (or simulator's) own start. Never wall-clock time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The start of time.
    pub const ZERO: Time = Time(0);
    /// Later than every other moment: "never".
    pub const NEVER: Time = Time(u64::MAX);

    /// A moment `ms` milliseconds after the start.
    pub const fn from_millis(ms: u64) -> Time {
        Time(ms * 1_000)
    }

    /// A moment `s` seconds after the start.
    pub fn from_secs_f64(s: f64) -> Time {
        Time((s * 1e6).max(0.0) as u64)
    }

    /// Seconds since the start.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Microseconds from `earlier` to `self`; zero when `earlier` is later (clocks may be jumped).
    pub const fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Adds microseconds.
impl Add<u64> for Time {
    type Output = Time;
    fn add(self, us: u64) -> Time {
        Time(self.0.saturating_add(us))
    }
}

/// Subtracts microseconds, stopping at zero.
impl Sub<u64> for Time {
    type Output = Time;
    fn sub(self, us: u64) -> Time {
        Time(self.0.saturating_sub(us))
    }
}
