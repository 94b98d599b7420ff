//! Which order a piece belongs to: disjoint ranges, the latest order wins.

use std::collections::BTreeMap;

use millstream_types::{AssignmentId, DatasetId, PieceNo, PieceRange};

/// Disjoint ranges of pieces, each with its order.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    /// (version, first piece) → (end, order).
    ranges: BTreeMap<(DatasetId, PieceNo), (PieceNo, AssignmentId)>,
}

impl Owners {
    pub fn owner(&self, dataset: DatasetId, piece: PieceNo) -> Option<AssignmentId> {
        let (&(found, _), &(end, id)) = self.ranges.range(..=(dataset, piece)).next_back()?;
        (found == dataset && piece < end).then_some(id)
    }

    /// Has `id` anything within `range`?
    pub fn has_any(&self, dataset: DatasetId, range: PieceRange, id: AssignmentId) -> bool {
        let from = (dataset, range.start)..(dataset, range.end);
        self.owner(dataset, range.start) == Some(id) || self.ranges.range(from).any(|(_, (_, owner))| *owner == id)
    }

    /// Gives `range` to `id`; what it takes from others is returned.
    pub fn give(&mut self, dataset: DatasetId, range: PieceRange, id: AssignmentId) -> Vec<(PieceRange, AssignmentId)> {
        let taken = self.take(dataset, range.clone(), None);
        if range.start < range.end {
            self.ranges.insert((dataset, range.start), (range.end, id));
        }
        taken
    }

    /// Frees what `id` has within `range`.
    pub fn release(
        &mut self,
        dataset: DatasetId,
        range: PieceRange,
        id: AssignmentId,
    ) -> Vec<(PieceRange, AssignmentId)> {
        self.take(dataset, range, Some(id))
    }

    fn take(
        &mut self,
        dataset: DatasetId,
        range: PieceRange,
        only: Option<AssignmentId>,
    ) -> Vec<(PieceRange, AssignmentId)> {
        let mut taken = Vec::new();
        if range.start >= range.end {
            return taken;
        }
        let first =
            self.ranges.range(..=(dataset, range.start)).next_back().map_or((dataset, range.start), |(key, _)| *key);
        let keys: Vec<_> = self
            .ranges
            .range(first..(dataset, range.end))
            .filter(|&(key, &(end, id))| key.0 == dataset && end > range.start && only.is_none_or(|only| only == id))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            let Some((end, id)) = self.ranges.remove(&key) else {
                continue;
            };
            if key.1 < range.start {
                self.ranges.insert(key, (range.start, id));
            }
            if range.end < end {
                self.ranges.insert((dataset, range.end), (end, id));
            }
            taken.push((key.1.max(range.start)..end.min(range.end), id));
        }
        taken
    }

    /// Forgets a version.
    pub fn forget(&mut self, dataset: DatasetId) {
        self.ranges.retain(|key, _| key.0 != dataset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_like_a_map_of_pieces(ops in proptest::collection::vec((0u32..2, 0u32..30, 1u32..12, any::<bool>()), 0..30)) {
            let mut owners = Owners::default();
            let mut model = BTreeMap::new();
            for (n, (dataset, start, len, give)) in ops.into_iter().enumerate() {
                let (dataset, range, id) = (DatasetId(dataset), start..start + len, AssignmentId(n as u64));
                let expected: BTreeMap<u32, AssignmentId> = range.clone()
                    .filter_map(|p| model.get(&(dataset, p)).map(|id| (p, *id)))
                    .collect();
                if give {
                    let taken: BTreeMap<u32, AssignmentId> = owners.give(dataset, range.clone(), id)
                        .into_iter().flat_map(|(r, id)| r.map(move |p| (p, id))).collect();
                    prop_assert_eq!(taken, expected);
                    model.extend(range.map(|p| ((dataset, p), id)));
                } else if let Some(id) = owners.owner(dataset, start) {
                    owners.release(dataset, range.clone(), id);
                    model.retain(|&(d, p), owner| d != dataset || !range.contains(&p) || *owner != id);
                }
                for d in [DatasetId(0), DatasetId(1)] {
                    let any = model.iter().any(|(&(of, p), owner)| of == d && (3..20).contains(&p) && *owner == id);
                    prop_assert_eq!(owners.has_any(d, 3..20, id), any);
                    for p in 0..45 {
                        prop_assert_eq!(owners.owner(d, p), model.get(&(d, p)).copied());
                    }
                }
            }
        }
    }
}
