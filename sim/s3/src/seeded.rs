//! Bytes out of a seed: gigabytes of test data without a file, the same on every machine.
//!
//! A block of pseudo-random bytes repeats, and every 4 KiB of it is stamped with its place, so that no two stretches
//! of an object are equal and swapped pieces show. Making it costs little more than a copy.

use std::sync::Arc;

/// Bytes that repeat.
const TEMPLATE_BYTES: usize = 256 << 10;
/// Every this many bytes carry a stamp of eight.
const STAMP_EVERY: usize = 4 << 10;

/// The bytes of one seed.
#[derive(Clone)]
pub struct Seeded {
    seed: u64,
    template: Arc<[u8]>,
}

impl std::fmt::Debug for Seeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seeded({})", self.seed)
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Seeded {
    /// The bytes of `seed`.
    pub fn new(seed: u64) -> Seeded {
        let mut state = seed;
        let template = (0..TEMPLATE_BYTES / 8).flat_map(|_| splitmix(&mut state).to_le_bytes());
        Seeded { seed, template: template.collect() }
    }

    /// Fills `out` with what is at `offset`.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let at = ((offset + done as u64) % TEMPLATE_BYTES as u64) as usize;
            let n = (out.len() - done).min(TEMPLATE_BYTES - at);
            out[done..done + n].copy_from_slice(&self.template[at..at + n]);
            done += n;
        }
        let every = STAMP_EVERY as u64;
        let mut page = offset / every;
        while page * every < offset + out.len() as u64 {
            let mut state = self.seed ^ page.rotate_left(32);
            let stamp = splitmix(&mut state).to_le_bytes();
            for (i, byte) in stamp.iter().enumerate() {
                let at = (page * every + i as u64).checked_sub(offset);
                if let Some(slot) = at.and_then(|at| out.get_mut(at as usize)) {
                    *slot = *byte;
                }
            }
            page += 1;
        }
    }

    /// `len` bytes from the start: what a test compares with.
    pub fn bytes(&self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.fill(0, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_stretch_is_the_same_whichever_way_it_is_read(offset in 0usize..600_000, len in 0usize..20_000) {
            let seeded = Seeded::new(7);
            let whole = seeded.bytes(620_000);
            let mut part = vec![0; len];
            seeded.fill(offset as u64, &mut part);
            prop_assert!(part == whole[offset..offset + len]);
        }
    }

    #[test]
    fn no_two_pages_and_no_two_seeds_are_equal() {
        let bytes = Seeded::new(1).bytes(8 * TEMPLATE_BYTES);
        let pages: std::collections::HashSet<&[u8]> = bytes.chunks(STAMP_EVERY).collect();
        assert_eq!(pages.len(), bytes.len() / STAMP_EVERY);
        assert_ne!(Seeded::new(1).bytes(64), Seeded::new(2).bytes(64));
    }
}
