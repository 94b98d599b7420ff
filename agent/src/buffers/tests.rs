use super::*;
use futures::FutureExt;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Take(usize),
    Give(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0u32..7, 1usize..1000).prop_map(|(class, less)| Op::Take((SLOT_BYTES_MIN << class) - less)),
        any::<usize>().prop_map(Op::Give),
    ]
}

proptest! {
    #[test]
    fn slots_never_overlap_and_all_come_back(ops in proptest::collection::vec(op(), 0..200)) {
        let arena = Arena::new(3 * CHUNK_BYTES as u64).unwrap();
        let mut held: Vec<Slot> = Vec::new();
        for op in ops {
            match op {
                Op::Take(len) => if let Some(slot) = arena.try_slot(len) {
                    prop_assert!(slot.capacity() >= len && slot.len() == len);
                    prop_assert_eq!(slot.as_ptr() as usize % 4096, 0);
                    let (from, to) = (slot.as_ptr() as usize, slot.as_ptr() as usize + slot.capacity());
                    let base = arena.base() as usize;
                    prop_assert!(from >= base && to <= base + arena.bytes() as usize);
                    for other in &held {
                        let start = other.as_ptr() as usize;
                        prop_assert!(to <= start || from >= start + other.capacity());
                    }
                    held.push(slot);
                },
                Op::Give(i) => if !held.is_empty() { held.swap_remove(i % held.len()); },
            }
            let used: usize = held.iter().map(Slot::capacity).sum();
            prop_assert_eq!(arena.free_bytes(), arena.bytes() - used as u64);
        }
        held.clear();
        let whole: Vec<_> = (0..3).map(|_| arena.try_slot(CHUNK_BYTES)).collect();
        prop_assert!(whole.iter().all(Option::is_some), "every chunk is whole again");
    }
}

#[test]
fn too_long_is_none() {
    let arena = Arena::new(1).unwrap();
    assert!(arena.try_slot(CHUNK_BYTES + 1).is_none());
    assert!(arena.try_slot(usize::MAX).is_none());
    assert!(matches!(Arena::new(u64::MAX), Err(ArenaError::TooLarge { .. })));
}

#[tokio::test]
async fn waiters_are_served_in_order_and_not_overtaken() {
    let arena = Arena::new(CHUNK_BYTES as u64).unwrap();
    let all = arena.slot(CHUNK_BYTES).await;
    let mut big = Box::pin(arena.slot(CHUNK_BYTES));
    assert!(big.as_mut().now_or_never().is_none());
    let mut small = Box::pin(arena.slot(1));
    assert!(small.as_mut().now_or_never().is_none());
    drop(all);
    assert!(arena.try_slot(1).is_none(), "others wait");
    assert!(small.as_mut().now_or_never().is_none(), "the first in line is another");
    let got = big.await;
    drop(got);
    small.await;
}

#[tokio::test]
async fn a_cancelled_waiter_does_not_hold_up_the_next() {
    let arena = Arena::new(CHUNK_BYTES as u64).unwrap();
    let all = arena.slot(CHUNK_BYTES).await;
    let mut first = Box::pin(arena.slot(1));
    assert!(first.as_mut().now_or_never().is_none());
    let mut second = Box::pin(arena.slot(1));
    assert!(second.as_mut().now_or_never().is_none());
    drop(all);
    drop(first);
    second.await;
    assert!(arena.try_slot(CHUNK_BYTES).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_few_slots() {
    let arena = Arena::new(2 * CHUNK_BYTES as u64).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..16u8 {
        let arena = arena.clone();
        tasks.spawn(async move {
            for round in 0..50usize {
                let len = SLOT_BYTES_MIN << ((round + usize::from(i)) % CLASSES);
                let mut slot = arena.slot(len).await;
                slot[..len].fill(i);
                let shared = slot.share();
                let reader = shared.clone();
                tokio::task::yield_now().await;
                assert!(shared[..len].iter().all(|&b| b == i));
                drop(shared);
                assert_eq!(reader[len - 1], i);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(arena.free_bytes(), arena.bytes());
}

#[test]
fn a_shared_slot_can_be_taken_back_by_its_only_holder() {
    let arena = Arena::new(1).unwrap();
    let shared = arena.try_slot(1).unwrap().share();
    let other = shared.clone();
    let shared = shared.unshare().unwrap_err();
    drop(other);
    drop(shared.unshare().unwrap());
    assert_eq!(arena.free_bytes(), arena.bytes());
}
