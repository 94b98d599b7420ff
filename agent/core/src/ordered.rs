//! A map in the order of its keys that needs no memory per entry once it has grown.
//!
//! For what comes and goes with every piece: keys arrive nearly in order and leave nearly in order, so entries are
//! put in near one end of a ring and taken out near the other, and hardly any of them move. A `BTreeMap` would
//! allocate and free a node for every few of them.

use std::collections::VecDeque;
use std::ops::{Bound, Index, RangeBounds};

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) struct OrderedMap<K, V> {
    entries: VecDeque<(K, V)>,
}

impl<K, V> Default for OrderedMap<K, V> {
    fn default() -> Self {
        OrderedMap { entries: VecDeque::new() }
    }
}

impl<K: Ord, V> OrderedMap<K, V> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn find(&self, key: &K) -> Result<usize, usize> {
        self.entries.binary_search_by(|(k, _)| k.cmp(key))
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(key).ok().map(|at| &self.entries[at].1)
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.find(key).ok().map(|at| &mut self.entries[at].1)
    }

    /// Puts an entry in; what was there under the key is returned.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.entries[at].1, value)),
            Err(at) => {
                self.entries.insert(at, (key, value));
                None
            }
        }
    }

    pub fn get_or_insert(&mut self, key: K, value: V) -> &mut V {
        let at = match self.find(&key) {
            Ok(at) => at,
            Err(at) => {
                self.entries.insert(at, (key, value));
                at
            }
        };
        &mut self.entries[at].1
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(key).ok()?;
        self.entries.remove(at).map(|(_, value)| value)
    }

    /// The entries within `range`, in order.
    pub fn range(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&K, &V)> {
        let before = |bound: Bound<&K>, inclusive_is_before: bool| match bound {
            Bound::Unbounded => None,
            Bound::Included(key) => Some(self.entries.partition_point(|(k, _)| match inclusive_is_before {
                true => k <= key,
                false => k < key,
            })),
            Bound::Excluded(key) => Some(self.entries.partition_point(|(k, _)| match inclusive_is_before {
                true => k < key,
                false => k <= key,
            })),
        };
        let start = before(range.start_bound(), false).unwrap_or(0);
        let end = before(range.end_bound(), true).unwrap_or(self.entries.len());
        self.entries.range(start..end.max(start)).map(|(key, value)| (key, value))
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.iter().map(|(key, _)| key)
    }

    pub fn into_keys(self) -> impl Iterator<Item = K> {
        self.entries.into_iter().map(|(key, _)| key)
    }
}

impl<K: Ord, V> Index<&K> for OrderedMap<K, V> {
    type Output = V;

    /// Panics when there is no such entry, as maps do.
    fn index(&self, key: &K) -> &V {
        self.get(key).expect("an entry that is there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in proptest::collection::vec((0u32..30, any::<u8>(), 0u8..4), 0..80), probe in (0u32..32, 0u32..32)) {
            let (mut ours, mut model) = (OrderedMap::default(), BTreeMap::new());
            for (key, value, op) in ops {
                match op {
                    0 => prop_assert_eq!(ours.remove(&key), model.remove(&key)),
                    1 => prop_assert_eq!(*ours.get_or_insert(key, value), *model.entry(key).or_insert(value)),
                    _ => prop_assert_eq!(ours.insert(key, value), model.insert(key, value)),
                }
                prop_assert_eq!(ours.get(&key), model.get(&key));
                prop_assert_eq!((ours.len(), ours.is_empty()), (model.len(), model.is_empty()));
            }
            let (low, high) = (probe.0.min(probe.1), probe.0.max(probe.1));
            prop_assert!(ours.range(low..high).eq(model.range(low..high)));
            prop_assert!(ours.range(low..=high).eq(model.range(low..=high)));
            prop_assert!(ours.range(..).eq(model.range(..)));
            prop_assert!(ours.keys().eq(model.keys()));
            prop_assert!(ours.into_keys().eq(model.into_keys()));
        }
    }
}
