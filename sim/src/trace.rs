//! A fingerprint of everything that happened: equal for equal runs, byte for byte.

use std::fmt::{self, Debug, Write as _};
use std::io::Write as _;

/// FNV-1a over the text of every event and action.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    /// Also spell it out on stderr.
    aloud: bool,
}

impl Trace {
    pub fn new(aloud: bool) -> Trace {
        Trace { hash: 0xcbf2_9ce4_8422_2325, aloud }
    }

    /// Adds something that happened.
    pub fn add(&mut self, what: &dyn Debug) {
        // Writing into a hash cannot fail.
        let _ = writeln!(self, "{what:?}");
        if self.aloud {
            let _ = writeln!(std::io::stderr(), "{what:?}");
        }
    }

    /// Adds numbers: for runs too long to spell out.
    pub fn add_numbers(&mut self, numbers: &[u64]) {
        for n in numbers {
            self.hash = (self.hash ^ n).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
        }
    }

    pub fn value(&self) -> u64 {
        self.hash
    }
}

impl fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(())
    }
}
