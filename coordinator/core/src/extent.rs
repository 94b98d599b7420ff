//! Cutting a version into extents, the units of assignment, and into placement groups.
//!
//! A placement group is whole consecutive shards, from the layout alone, so that `spread` places the same shards on
//! the same nodes whatever the extent length is. No extent crosses a group.

use millstream_types::{Layout, PieceRange, ShardNo};

use crate::limits::{EXTENT_BYTES_MAX, EXTENT_BYTES_NORMAL, EXTENTS_WANTED, GROUP_BYTES_MAX};

/// How long extents should be, in bytes.
pub(crate) fn extent_bytes(layout: &Layout, nodes: usize, rate_bytes_per_s: f64, assignments_per_s: u64) -> u64 {
    let wanted = layout.bytes() / EXTENTS_WANTED;
    let normal = wanted.clamp(layout.piece_len(), EXTENT_BYTES_NORMAL);
    // N nodes that receive at full rate ask for N * rate / extent assignments per second.
    let control = nodes as f64 * rate_bytes_per_s / assignments_per_s.max(1) as f64;
    let control = (control as u64).min(EXTENT_BYTES_MAX);
    // The control budget never takes the last few extents away: without them nothing overlaps.
    let control = control.min((layout.bytes() / EXTENTS_WANTED).max(layout.bytes() / 64));
    normal.max(control).max(layout.piece_len())
}

/// First shard of every placement group.
pub(crate) fn groups(layout: &Layout) -> Vec<ShardNo> {
    let goal = (layout.bytes() / EXTENTS_WANTED).clamp(layout.piece_len(), GROUP_BYTES_MAX);
    let mut groups = Vec::new();
    let mut filled = goal;
    for shard in 0..layout.shards() {
        let len = layout.shard_len(shard);
        if filled > 0 && filled + len > goal {
            groups.push(shard);
            filled = 0;
        }
        filled += len;
    }
    groups
}

/// Cuts the version into extents of about `target` bytes, evenly within each group.
pub(crate) fn cut(layout: &Layout, groups: &[ShardNo], target: u64) -> Vec<PieceRange> {
    let mut extents = Vec::new();
    for (i, &first) in groups.iter().enumerate() {
        let last = groups.get(i + 1).copied().unwrap_or(layout.shards());
        let (start, end) = (layout.shard_pieces(first).start, layout.shard_pieces(last - 1).end);
        let pieces = end - start;
        if pieces == 0 {
            continue;
        }
        let parts = layout.range_bytes(start..end).div_ceil(target.max(1));
        let parts = parts.clamp(1, u64::from(pieces));
        let bound = |part: u64| start + (u64::from(pieces) * part / parts) as u32;
        extents.extend((0..parts).map(|p| bound(p)..bound(p + 1)));
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_types::limits::PIECE_BYTES_MIN;
    use proptest::prelude::*;

    const P: u64 = PIECE_BYTES_MIN;

    proptest! {
        #[test]
        fn extents_tile_the_pieces_and_respect_groups(
            lens in proptest::collection::vec(0u64..20 * P, 1..60),
            target in P..40 * P,
        ) {
            let layout = Layout::new(P, &lens).unwrap();
            let groups = groups(&layout);
            prop_assert_eq!(groups.first(), Some(&0));
            let extents = cut(&layout, &groups, target);
            let mut next = 0;
            for extent in &extents {
                prop_assert_eq!(extent.start, next);
                prop_assert!(extent.end > extent.start);
                let group = |piece| groups.partition_point(|&g| g <= layout.shard_of(piece));
                prop_assert_eq!(group(extent.start), group(extent.end - 1));
                next = extent.end;
            }
            prop_assert_eq!(next, layout.pieces());
        }
    }

    #[test]
    fn the_control_budget_grows_extents() {
        let layout = Layout::new(4 << 20, &[1 << 40]).unwrap();
        let small = extent_bytes(&layout, 8, 1e9, 100_000);
        assert_eq!(small, 64 << 20);
        let large = extent_bytes(&layout, 1024, 12.5e9, 100_000);
        assert!((1024.0 * 12.5e9 / large as f64) < 100_001.0, "{large}");
    }
}
