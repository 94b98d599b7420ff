//! Whether it fits: a quota on Millstream's own bytes, kept by version. Pure accounting.

use std::collections::HashMap;

use millstream_types::Digest;
use millstream_types::size::format_size;

/// A version does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} more are needed, and {} of {} are free; evict something or raise the capacity",
    format_size(*.needed),
    format_size(*.free),
    format_size(*.capacity)
)]
pub struct NoSpace {
    /// Bytes that the version needs beyond what it has.
    pub needed: u64,
    /// Bytes neither held nor reserved by any version.
    pub free: u64,
    /// Bytes that all versions may have together.
    pub capacity: u64,
}

/// Bytes on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In sealed shards.
    pub used_bytes: u64,
    /// In versions that are pinned or leased (part of the other two).
    pub pinned_bytes: u64,
    /// In pieces of shards not sealed yet.
    pub partial_bytes: u64,
    /// The quota.
    pub capacity_bytes: u64,
}

/// What one version has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// In sealed shards.
    pub used: u64,
    /// In pieces of shards not sealed yet.
    pub partial: u64,
    /// What it may grow to without asking again.
    pub reserved: u64,
}

impl Held {
    fn now(&self) -> u64 {
        self.used + self.partial
    }

    fn committed(&self) -> u64 {
        self.reserved.max(self.now())
    }
}

#[derive(Debug)]
pub(super) struct Quota {
    capacity: u64,
    versions: HashMap<Digest, Held>,
}

impl Quota {
    pub fn new(capacity: u64) -> Quota {
        Quota { capacity, versions: HashMap::new() }
    }

    /// Lets a version grow to `total` bytes.
    pub fn reserve(&mut self, digest: &Digest, total: u64) -> Result<(), NoSpace> {
        let own = self.versions.get(digest).copied().unwrap_or_default();
        let others: u64 = self.versions.iter().filter(|(d, _)| *d != digest).map(|(_, held)| held.committed()).sum();
        let free = self.capacity.saturating_sub(others).saturating_sub(own.now());
        let needed = total.saturating_sub(own.now());
        if needed > free {
            return Err(NoSpace { needed, free, capacity: self.capacity });
        }
        self.versions.entry(*digest).or_default().reserved = total;
        Ok(())
    }

    /// Bytes that no version has or was promised.
    pub fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.versions.values().map(Held::committed).sum())
    }

    /// Bytes that a version may have in all.
    pub fn room(&self, digest: &Digest) -> u64 {
        self.free() + self.versions.get(digest).map_or(0, Held::committed)
    }

    /// What all versions but one have or were promised.
    pub fn others(&self, digest: &Digest) -> impl Iterator<Item = (&Digest, u64)> {
        self.versions.iter().filter(move |(other, _)| *other != digest).map(|(other, held)| (other, held.committed()))
    }

    /// Changes what a version has.
    pub fn update(&mut self, digest: &Digest, change: impl FnOnce(&mut Held)) {
        change(self.versions.entry(*digest).or_default());
    }

    /// A version is gone; returns the bytes that it had.
    pub fn remove(&mut self, digest: &Digest) -> u64 {
        self.versions.remove(digest).map_or(0, |held| held.now())
    }

    /// The sums. `kept` says which versions are pinned or leased.
    pub fn usage(&self, kept: impl Fn(&Digest) -> bool) -> Usage {
        let mut usage = Usage { capacity_bytes: self.capacity, ..Usage::default() };
        for (digest, held) in &self.versions {
            usage.used_bytes += held.used;
            usage.partial_bytes += held.partial;
            if kept(digest) {
                usage.pinned_bytes += held.now();
            }
        }
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let (a, b) = (Digest([1; 32]), Digest([2; 32]));
        let mut quota = Quota::new(100);
        quota.reserve(&a, 60).unwrap();
        assert_eq!(quota.reserve(&b, 41), Err(NoSpace { needed: 41, free: 40, capacity: 100 }));
        quota.reserve(&b, 40).unwrap();
        quota.update(&b, |held| held.used = 30);
        quota.update(&a, |held| held.partial = 10);
        // What it has counts towards what it asks for, and asking again replaces the reservation.
        assert_eq!(quota.reserve(&b, 41), Err(NoSpace { needed: 11, free: 10, capacity: 100 }));
        quota.reserve(&a, 20).unwrap();
        quota.reserve(&b, 80).unwrap();
        // `a` has 10 of the 20 that it was promised: those are not free.
        assert_eq!(quota.others(&b).collect::<Vec<_>>(), [(&a, 20)]);
        assert_eq!(quota.room(&b), 80);
        let kept = quota.usage(|d| *d == a);
        assert_eq!(kept, Usage { used_bytes: 30, pinned_bytes: 10, partial_bytes: 10, capacity_bytes: 100 });
        assert_eq!(quota.remove(&b), 30);
        quota.reserve(&a, 100).unwrap();
    }
}
