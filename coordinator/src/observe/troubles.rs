//! Bytes that were wrong and cost nobody anything: noticed before they were seen, and fetched again.
//!
//! What failed for good the core knows; this is what did not come to that.

use std::collections::VecDeque;

use millstream_coordinator_core::event::Source;
use millstream_types::{DatasetId, NodeId};

use crate::limits::TROUBLES_MAX;

/// Something was wrong with bytes of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) at_unix_ms: i64,
    pub(crate) dataset: DatasetId,
    /// Who noticed.
    pub(crate) node: NodeId,
    pub(crate) shard: u32,
    /// The piece, where one is to blame.
    pub(crate) piece: Option<u32>,
    /// Checksums; empty where it is not about them.
    pub(crate) expected: String,
    pub(crate) actual: String,
    /// Where the bytes came from; `None`: the node's own disk.
    pub(crate) source: Option<Source>,
    pub(crate) detail: String,
    /// What was done about it.
    pub(crate) done: &'static str,
}

/// The last ones.
#[derive(Debug, Default)]
pub(crate) struct Troubles(VecDeque<Trouble>);

impl Troubles {
    /// Remembers one; the oldest makes room.
    pub(crate) fn push(&mut self, trouble: Trouble) {
        while self.0.len() >= TROUBLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(trouble);
    }

    /// Those of a version, the newest first.
    pub(crate) fn of(&self, dataset: DatasetId) -> impl Iterator<Item = &Trouble> {
        self.0.iter().rev().filter(move |t| t.dataset == dataset)
    }

    /// A version left the catalog.
    pub(crate) fn forget(&mut self, dataset: DatasetId) {
        self.0.retain(|t| t.dataset != dataset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(dataset: u32, shard: u32) -> Trouble {
        Trouble {
            at_unix_ms: 0,
            dataset: DatasetId(dataset),
            node: NodeId(0),
            shard,
            piece: None,
            expected: String::new(),
            actual: String::new(),
            source: None,
            detail: String::new(),
            done: "",
        }
    }

    #[test]
    fn the_newest_of_a_version_come_first_and_the_oldest_go() {
        let mut troubles = Troubles::default();
        for shard in 0..TROUBLES_MAX as u32 + 2 {
            troubles.push(trouble(shard % 2, shard));
        }
        let even: Vec<u32> = troubles.of(DatasetId(0)).map(|t| t.shard).collect();
        assert_eq!((even.first(), even.last()), (Some(&(TROUBLES_MAX as u32)), Some(&2)));
        troubles.forget(DatasetId(0));
        assert_eq!((troubles.of(DatasetId(0)).count(), troubles.of(DatasetId(1)).count()), (0, TROUBLES_MAX / 2));
    }
}
