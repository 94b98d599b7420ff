//! The hot path allocates nothing per piece. Counts, and asserts no time.
#![allow(clippy::unwrap_used)] // helpers of tests: a panic is the report

use millstream_benches::allocations::{Outcome, Setup, measure};
use millstream_benches::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Whatever is left comes from things that grow to what is in flight (tasks, cells, queues), a few hundred at most, and
/// on a busy machine the longer run has more in flight. One allocation for every ten pieces is more than that; a tree in
/// the core would need one for every six, a task or a box one for each.
const PER_PIECE_MAX: f64 = 0.1;

/// Where another program pushes pages out of the cache, some pieces are read on blocking threads, which allocates (see the
/// changelog's known limits). That is not the hot path: what does allocate there does so each time.
const ATTEMPTS: u32 = 3;

fn check(blocking: bool) {
    let setup = Setup { piece_bytes: 64 * 1024, small: 512, large: 4096, blocking, trace: false };
    let mut outcome = measure(setup).unwrap();
    for _ in 1..ATTEMPTS {
        if per_piece(&outcome).iter().all(|(_, n)| *n <= PER_PIECE_MAX) {
            break;
        }
        outcome = measure(setup).unwrap();
    }
    assert_eq!(outcome.bytes, 4096 * 64 * 1024, "nothing was moved");
    for (who, n) in per_piece(&outcome) {
        assert!(n <= PER_PIECE_MAX, "{who}: {n} allocations per piece; {outcome:?}");
    }
}

fn per_piece(outcome: &Outcome) -> [(&'static str, f64); 3] {
    [
        ("receiver", outcome.per_piece(|c| c.receiver)),
        ("sender", outcome.per_piece(|c| c.sender)),
        ("storage threads", outcome.per_piece(|c| c.storage)),
    ]
}

#[test]
fn a_piece_costs_no_allocation() {
    check(false);
}

#[test]
fn a_piece_costs_no_allocation_without_io_uring() {
    check(true);
}
