//! What has failed is left alone for a while, then tried again by one: peers over RDMA, and RDMA devices.
//!
//! Pure: time and randomness are arguments. The wait doubles with each failure in a row; half of it is random, so
//! that the many who lost the same device do not come back at once.

use std::collections::BTreeMap;

use millstream_types::Time;

use crate::limits::{COOLDOWN_MAX_US, COOLDOWN_MIN_US, COOLDOWN_SUBJECTS_MAX};

/// May it be tried?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// Yes.
    Go,
    /// Not now, because of this.
    Wait {
        /// The last failure's reason code.
        reason: &'static str,
    },
}

#[derive(Clone, Copy, Debug)]
struct Failure {
    reason: &'static str,
    in_a_row: u32,
    until: Time,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Cooldowns {
    failed: BTreeMap<String, Failure>,
}

impl Cooldowns {
    /// May `subject` be tried now? Who is told to go after a failure probes for all: the others wait until it has
    /// reported, or until a further wait has passed.
    pub fn trial(&mut self, subject: &str, now: Time) -> Trial {
        let Some(failure) = self.failed.get_mut(subject) else { return Trial::Go };
        if now < failure.until {
            return Trial::Wait { reason: failure.reason };
        }
        failure.until = Time(now.0 + COOLDOWN_MAX_US);
        Trial::Go
    }

    /// It failed. `random` is a number from 0 to 1.
    pub fn failed(&mut self, subject: &str, reason: &'static str, now: Time, random: f64) {
        if self.failed.len() >= COOLDOWN_SUBJECTS_MAX && !self.failed.contains_key(subject) {
            self.failed.retain(|_, f| f.until > now);
            if self.failed.len() >= COOLDOWN_SUBJECTS_MAX {
                self.failed.pop_first();
            }
        }
        let entry = self.failed.entry(subject.to_owned());
        let failure = entry.or_insert(Failure { reason, in_a_row: 0, until: now });
        let wait = COOLDOWN_MIN_US.saturating_mul(1 << failure.in_a_row.min(16)).min(COOLDOWN_MAX_US);
        let wait = wait / 2 + (wait as f64 / 2.0 * random.clamp(0.0, 1.0)) as u64;
        failure.in_a_row += 1;
        failure.reason = reason;
        failure.until = Time(now.0 + wait);
    }

    /// Who was told to go has gone away without a result: another may go at once.
    pub fn retry(&mut self, subject: &str, now: Time) {
        if let Some(failure) = self.failed.get_mut(subject) {
            failure.until = now;
        }
    }

    /// It worked: whatever was is forgotten. True when there was something.
    pub fn worked(&mut self, subject: &str) -> bool {
        self.failed.remove(subject).is_some()
    }

    /// What is left alone, and why.
    pub fn waiting(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.failed.iter().map(|(subject, failure)| (subject.as_str(), failure.reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_one_probes_for_all() {
        let mut c = Cooldowns::default();
        assert_eq!(c.trial("n1", Time(0)), Trial::Go);
        c.failed("n1", "port-down", Time(0), 1.0);
        assert_eq!(c.trial("n1", Time(COOLDOWN_MIN_US - 1)), Trial::Wait { reason: "port-down" });
        assert_eq!(c.trial("n2", Time(0)), Trial::Go, "others are not concerned");
        let at = Time(COOLDOWN_MIN_US);
        assert_eq!(c.trial("n1", at), Trial::Go);
        assert_eq!(c.trial("n1", at), Trial::Wait { reason: "port-down" }, "one probes");
        c.failed("n1", "retry-exceeded", at, 1.0);
        let next = Time(at.0 + 2 * COOLDOWN_MIN_US);
        assert_eq!(c.trial("n1", Time(next.0 - 1)), Trial::Wait { reason: "retry-exceeded" });
        assert_eq!(c.trial("n1", next), Trial::Go);
        assert!(c.worked("n1"));
        assert!(!c.worked("n1"));
        assert_eq!(c.trial("n1", next), Trial::Go);
    }

    #[test]
    fn half_of_the_wait_is_random_and_all_of_it_bounded() {
        let mut c = Cooldowns::default();
        c.failed("n1", "x", Time(0), 0.0);
        assert_eq!(c.trial("n1", Time(COOLDOWN_MIN_US / 2)), Trial::Go);
        (0..40).for_each(|_| c.failed("n1", "x", Time(0), 1.0));
        assert_eq!(c.trial("n1", Time(COOLDOWN_MAX_US)), Trial::Go);
    }

    #[test]
    fn memory_is_bounded() {
        let mut c = Cooldowns::default();
        for n in 0..2 * COOLDOWN_SUBJECTS_MAX {
            c.failed(&format!("n{n}"), "x", Time(0), 1.0);
        }
        assert!(c.waiting().count() <= COOLDOWN_SUBJECTS_MAX);
    }
}
