//! The hot path allocates nothing per piece. Counts, and asserts no time.
#![allow(clippy::unwrap_used)] // helpers of tests: a panic is the report

use millstream_benches::allocations::{Setup, measure};
use millstream_benches::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Whatever is left comes from things that grow to what is in flight (tasks, cells, queues), a few hundred at most, and
/// on a busy machine the longer run has more in flight. One allocation for every ten pieces is more than that; a tree in
/// the core would need one for every six, a task or a box one for each.
const PER_PIECE_MAX: f64 = 0.1;

fn check(blocking: bool) {
    let setup = Setup { piece_bytes: 64 * 1024, small: 512, large: 4096, blocking, trace: false };
    let outcome = measure(setup).unwrap();
    assert_eq!(outcome.bytes, 4096 * 64 * 1024, "nothing was moved");
    for (who, per_piece) in [
        ("receiver", outcome.per_piece(|c| c.receiver)),
        ("sender", outcome.per_piece(|c| c.sender)),
        ("storage threads", outcome.per_piece(|c| c.storage)),
    ] {
        assert!(per_piece <= PER_PIECE_MAX, "{who}: {per_piece} allocations per piece; {outcome:?}");
    }
}

#[test]
fn a_piece_costs_no_allocation() {
    check(false);
}

#[test]
fn a_piece_costs_no_allocation_without_io_uring() {
    check(true);
}
