//! Small clusters, piece by piece, with the real cores.

use millstream_sim::{FaultKind, Outcome, Scenario, run};

fn clean(outcome: &Outcome) {
    assert!(outcome.violations.is_empty(), "seed {}: {:#?}", outcome.seed, outcome.violations);
}

#[test]
fn a_cold_start_is_near_its_bound() {
    for nodes in [1, 2, 4, 8, 16] {
        let outcome = run(Scenario::new(1, nodes, 256 << 20, 16));
        clean(&outcome);
        assert!(outcome.complete);
        assert!(outcome.origin_ratio <= 1.02, "{nodes} nodes: origin {}", outcome.origin_ratio);
        eprintln!("{nodes} nodes: T/T* {:.3} ({:.2} s), {} events", outcome.ratio, outcome.elapsed_s, outcome.events);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 4] {
        let (a, b) = (run(Scenario::random(seed, true)), run(Scenario::random(seed, true)));
        assert_eq!(a, b);
        assert_ne!(a.trace, run(Scenario::random(seed + 100, true)).trace);
    }
}

#[test]
fn a_corrupt_source_is_found_out() {
    let outcome = run(Scenario::new(5, 6, 64 << 20, 4).with(0, FaultKind::Corrupts(2, 500_000)));
    clean(&outcome);
    assert!(outcome.complete);
}
