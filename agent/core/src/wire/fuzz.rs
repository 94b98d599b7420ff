//! Entry points for fuzzing: plain functions over bytes that panic when a promise of the codec is broken.
//!
//! `tests/fuzz_wire.rs` calls them with seeded mutations in every test run; a coverage-guided fuzzer can call them
//! with whatever it finds.

use super::hello::HELLO_BYTES_MAX;
use super::{FRAME_BYTES_MAX, Frame, Hello};

/// Decodes frames until the bytes end. Each one re-encodes to exactly the bytes it was taken from; an incomplete or
/// wrong one leaves the rest untouched; what is incomplete stays shorter than the longest frame. Returns how many
/// there were.
pub fn frames(bytes: &[u8]) -> usize {
    let (mut view, mut count) = (bytes, 0);
    loop {
        let before = view;
        match Frame::decode(&mut view) {
            Ok(Some(frame)) => {
                let mut again = Vec::new();
                frame.encode(&mut again);
                assert_eq!(&again[..], &before[..before.len() - view.len()], "{frame:?}");
                count += 1;
            }
            Ok(None) => {
                assert_eq!(view, before, "an incomplete frame was touched");
                assert!(view.len() < FRAME_BYTES_MAX, "{} bytes and no frame", view.len());
                return count;
            }
            Err(_) => {
                assert_eq!(view, before, "a wrong frame was touched");
                return count;
            }
        }
    }
}

/// The same for a greeting; also, what a prefix makes certain stays so when more bytes come.
pub fn hello(bytes: &[u8]) -> bool {
    let mut view = bytes;
    let whole = Hello::decode(&mut view);
    for cut in 0..bytes.len().min(HELLO_BYTES_MAX) {
        match Hello::decode(&mut &bytes[..cut]) {
            Ok(None) => {}
            Ok(Some(early)) => assert_eq!(Ok(Some(early)), whole),
            Err(early) => assert_eq!(Err(early), whole.clone().map(|_| ())),
        }
    }
    match whole {
        Ok(Some(hello)) => {
            let mut again = Vec::new();
            hello.encode(&mut again);
            assert_eq!(&again[..], &bytes[..bytes.len() - view.len()]);
            true
        }
        Ok(None) => {
            assert!(bytes.len() < HELLO_BYTES_MAX, "{} bytes and no hello", bytes.len());
            false
        }
        Err(_) => false,
    }
}
