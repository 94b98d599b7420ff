//! The hot path allocates nothing per piece. Counts, and asserts no time.

use millstream_benches::allocations::{Setup, measure};
use millstream_benches::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Whatever is left comes from things that are not per piece, but that a longer run has more of: a ring that grows, a
/// tick of a clock. One allocation in fifty pieces is a few dozen in all; one per piece would be thousands.
const PER_PIECE_MAX: f64 = 0.02;

fn check(blocking: bool) {
    let setup = Setup { piece_bytes: 64 * 1024, small: 512, large: 2048, blocking, trace: false };
    let outcome = measure(setup).unwrap();
    assert_eq!(outcome.bytes, 2048 * 64 * 1024, "nothing was moved");
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
