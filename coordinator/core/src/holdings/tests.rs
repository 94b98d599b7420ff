use millstream_types::RunSet;
use proptest::prelude::*;

use super::states::in_range;
use super::*;

/// What the states must be, member by member and shard by shard, without bit tricks.
fn plainly(h: &Holdings, shard: ShardNo, member: &Member) -> ShardState {
    let on = |e: &Held| e.have.get(member.node.0);
    let coming = |e: &Held| h.transfers.iter().any(|t| t.node == member.node && t.pieces.start == e.pieces.start);
    let held = &h.extents[h.extents_of(shard)];
    let wanted = member.refused.is_none() && member.wanted.wants(shard);
    let any = held.iter().any(|e| on(e) || coming(e));
    if member.sealed.contains(shard) {
        ShardState::Ready
    } else if (h.failed.contains_key(&shard) || h.disputed.contains(&shard)) && (wanted || any) {
        ShardState::Bad
    } else if !held.is_empty() && held.iter().all(on) {
        ShardState::Verifying
    } else if any {
        ShardState::Receiving
    } else if wanted {
        ShardState::Queued
    } else {
        ShardState::Missing
    }
}

prop_compose! {
    fn holdings()(
        lens in proptest::collection::vec(0u64..200_000, 1..40),
        nodes in 1u32..150,
        seed in any::<u64>(),
    ) -> Holdings {
        let mut x = seed | 1;
        let mut random = move |below: u32| {
            x ^= x << 13; x ^= x >> 7; x ^= x << 17;
            (x >> 33) as u32 % below.max(1)
        };
        let layout = Arc::new(Layout::new(65_536, &lens).unwrap());
        let mut extents = Vec::new();
        let mut at = 0;
        while at < layout.pieces() {
            let end = (at + 1 + random(4)).min(layout.pieces());
            let mut have = Bits::default();
            let everywhere = random(3) == 0;
            for n in 0..nodes {
                if everywhere || random(3) == 0 { have.set(n); }
            }
            extents.push(Held { pieces: at..end, have });
            at = end;
        }
        // Every second number is a member; the order is turned round.
        let members = (0..nodes).rev().filter(|n| n % 2 == 0).map(|n| Member {
            node: NodeId(n),
            wanted: match random(3) {
                0 => Wanted::Nothing,
                1 => Wanted::All,
                _ => Wanted::Some(RunSet::from_range(0..layout.shards() / 2)),
            },
            sealed: RunSet::from_range(0..(random(2 * layout.shards() + 1)).min(layout.shards())),
            refused: (random(5) == 0).then(|| "full".to_owned()),
            down: false,
        });
        let members = members.collect();
        let mut transfers = Vec::new();
        for e in &extents {
            if random(2) == 0 {
                transfers.push(Transfer {
                    node: NodeId(random(nodes)),
                    source: Source::Origin,
                    pieces: e.pieces.clone(),
                    bytes: 1,
                    age_us: 0,
                    source_ready: true,
                    resourced: 0,
                });
            }
        }
        let disputed = (0..layout.shards()).filter(|_| random(6) == 0).collect();
        Holdings { layout, members, transfers, failed: BTreeMap::new(), disputed, origin_bytes: 0, extents }
    }
}

proptest! {
    #[test]
    fn states_are_as_told_one_by_one(h in holdings(), step in 1u32..4) {
        let states = h.states(step);
        let expected: Vec<_> = (0..h.layout.shards()).step_by(step as usize).collect();
        prop_assert_eq!(states.shards(), &expected[..]);
        let mut sums = [0u32; 6];
        for (i, &shard) in states.shards().iter().enumerate() {
            let mut counts = [0; 6];
            for (m, member) in h.members.iter().enumerate() {
                let state = plainly(&h, shard, member);
                prop_assert_eq!(states.get(i, m), state, "shard {} on {}", shard, member.node);
                counts[state as usize] += 1;
                sums[state as usize] += 1;
                if state != ShardState::Missing {
                    prop_assert!(states.members_in(i, state).any(|x| x == m));
                }
            }
            prop_assert_eq!(states.count(i, 0..h.members.len()), counts);
        }
        // However it is cut into cells, nothing is lost and nothing counted twice.
        for (rows, columns) in [(1, 1), (3, 7), (1000, 1000)] {
            let grid = states.grid(0..usize::MAX, 0..usize::MAX, rows, columns);
            prop_assert!(grid.rows <= rows && grid.columns <= columns);
            let mut all = [0u32; 6];
            for cell in &grid.cells {
                for (sum, n) in all.iter_mut().zip(cell) {
                    *sum += n;
                }
            }
            prop_assert_eq!(all, sums);
        }
        // A part of it is what that part counts.
        let part = states.grid(1..3, 1..4, 2, 3);
        for (at, cell) in part.cells.iter().enumerate() {
            let (row, column) = (at / part.columns, at % part.columns);
            prop_assert_eq!(*cell, states.count(1 + column, 1 + row..2 + row));
        }
    }
}

#[test]
fn a_bucket_of_a_row_counts_only_its_members() {
    assert_eq!(in_range(u64::MAX, 0, &(3..5)), 0b11000);
    assert_eq!(in_range(u64::MAX, 1, &(60..66)), 0b11);
    assert_eq!(in_range(u64::MAX, 0, &(60..66)), 0b1111 << 60);
    assert_eq!(in_range(u64::MAX, 2, &(0..128)), 0);
    assert_eq!(in_range(u64::MAX, 0, &(64..128)), 0);
}
