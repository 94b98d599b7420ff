//! What must hold in every run, and the list of what did not.

use std::fmt::Display;

/// Broken promises. Only the first few are spelled out: one cause breaks many.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    violations: Vec<String>,
}

/// Violations kept in words.
const KEPT_MAX: usize = 20;

impl Checks {
    /// Notes `what` when `holds` is false.
    pub fn that<W: Display>(&mut self, holds: bool, what: impl FnOnce() -> W) {
        if !holds && self.violations.len() < KEPT_MAX {
            self.violations.push(what().to_string());
        }
    }

    pub fn into_violations(self) -> Vec<String> {
        self.violations
    }
}
