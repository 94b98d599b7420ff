//! A fingerprint of everything that happened: equal for equal runs, byte for byte.

use std::fmt::{self, Debug, Write};

/// FNV-1a over the text of every event and action.
#[derive(Debug)]
pub(crate) struct Trace(u64);

impl Trace {
    pub fn new() -> Trace {
        Trace(0xcbf2_9ce4_8422_2325)
    }

    /// Adds something that happened.
    pub fn add(&mut self, what: &dyn Debug) {
        // Writing into a hash cannot fail.
        let _ = writeln!(self, "{what:?}");
    }

    /// Adds numbers: for runs too long to spell out.
    pub fn add_numbers(&mut self, numbers: &[u64]) {
        for n in numbers {
            self.0 = (self.0 ^ n).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
        }
    }

    pub fn value(&self) -> u64 {
        self.0
    }
}

impl Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(())
    }
}
