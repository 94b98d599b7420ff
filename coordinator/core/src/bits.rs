//! A growing bit set with its count: rows of holdings and of work to do.

/// Bits by number; those never set read as clear.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits {
    words: Vec<u64>,
    ones: u32,
}

impl Bits {
    pub(crate) fn get(&self, i: u32) -> bool {
        self.words.get(i as usize / 64).is_some_and(|w| w >> (i % 64) & 1 == 1)
    }

    /// Sets a bit; true when it was clear.
    pub(crate) fn set(&mut self, i: u32) -> bool {
        let word = i as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let mask = 1 << (i % 64);
        let changed = self.words[word] & mask == 0;
        self.words[word] |= mask;
        self.ones += u32::from(changed);
        changed
    }

    /// Clears a bit; true when it was set.
    pub(crate) fn clear(&mut self, i: u32) -> bool {
        let mask = 1 << (i % 64);
        match self.words.get_mut(i as usize / 64) {
            Some(word) if *word & mask != 0 => {
                *word &= !mask;
                self.ones -= 1;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.ones
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ones == 0
    }

    pub(crate) fn word(&self, i: usize) -> u64 {
        self.words.get(i).copied().unwrap_or(0)
    }

    pub(crate) fn words(&self) -> usize {
        self.words.len()
    }

    /// The set bits, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &word)| ones(i, word))
    }

    /// The set bits, ascending from `start`, then from zero.
    pub(crate) fn iter_from(&self, start: u32) -> impl Iterator<Item = u32> + '_ {
        let len = self.words.len();
        let first = (start as usize / 64).min(len);
        let low = (1u64 << (start % 64)) - 1;
        let head = (first..len)
            .flat_map(move |i| ones(i, if i == start as usize / 64 { self.words[i] & !low } else { self.words[i] }));
        let tail = (0..(first + 1).min(len))
            .flat_map(move |i| ones(i, if i == start as usize / 64 { self.words[i] & low } else { self.words[i] }));
        head.chain(tail)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.words.capacity() * 8
    }
}

/// The numbers of the set bits of word `i`.
pub(crate) fn ones(i: usize, mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros();
        word &= word - 1;
        Some(i as u32 * 64 + bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn like_a_set(ops in proptest::collection::vec((any::<bool>(), 0u32..300), 0..200), start in 0u32..400) {
            let (mut bits, mut model) = (Bits::default(), BTreeSet::new());
            for (add, n) in ops {
                if add {
                    prop_assert_eq!(bits.set(n), model.insert(n));
                } else {
                    prop_assert_eq!(bits.clear(n), model.remove(&n));
                }
                prop_assert_eq!(bits.get(n), model.contains(&n));
            }
            prop_assert_eq!(bits.count() as usize, model.len());
            prop_assert_eq!(bits.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            let turned: Vec<_> = model.range(start..).chain(model.range(..start)).copied().collect();
            prop_assert_eq!(bits.iter_from(start).collect::<Vec<_>>(), turned);
        }
    }
}
