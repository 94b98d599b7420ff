//! Loaders on nodes that hold a part of the data, with the real cores of both sides.

#![allow(clippy::print_stdout, reason = "figures for people to read, beside what is asserted")]

use millstream_sim::{FaultKind, Outcome, Scenario, run};

/// 4 nodes, 512 MiB in 64 shards; a loader reads at a quarter of the link.
fn cluster(seed: u64) -> Scenario {
    Scenario::new(seed, 4, 512 << 20, 64).rates(50e6, 50e6, 200e6)
}

fn epoch(what: &str, scenario: Scenario) -> Outcome {
    let outcome = run(scenario);
    println!(
        "{what}: origin {:.3} x D, loaders waited {:.1} % of the time, {} shards dropped, {} handed over",
        outcome.origin_ratio,
        100.0 * outcome.waited_part,
        outcome.dropped,
        outcome.handed_over
    );
    assert!(outcome.violations.is_empty(), "{what}: {:#?}", outcome.violations);
    outcome
}

#[test]
fn cold_epochs_read_the_origin_once() {
    for seed in 1..4 {
        for (what, same) in [("the same order", true), ("different orders", false)] {
            let outcome = epoch(what, cluster(seed).epoch(same, 0.3, 12.5e6));
            assert!(outcome.origin_ratio <= 1.05, "{what}: {:.3}", outcome.origin_ratio);
        }
    }
}

#[test]
fn the_same_seed_twice_is_the_same_epoch() {
    let twice = [(); 2].map(|()| run(cluster(5).epoch(false, 0.3, 12.5e6)));
    assert_eq!(twice[0], twice[1]);
}

#[test]
fn a_coordinator_that_restarts_costs_little() {
    let scenario = cluster(2).epoch(false, 0.3, 12.5e6).with(15_000_000, FaultKind::CoordinatorRestarts(2_000_000));
    let outcome = epoch("a restart of the coordinator", scenario);
    assert!(outcome.origin_ratio <= 1.15, "{:.3}", outcome.origin_ratio);
}

#[test]
fn a_slow_node_does_not_send_the_others_to_the_origin() {
    let scenario = cluster(3).epoch(false, 0.3, 12.5e6).with(5_000_000, FaultKind::Slow(1, 20));
    let outcome = epoch("one node at a fifth", scenario);
    assert!(outcome.origin_ratio <= 1.2, "{:.3}", outcome.origin_ratio);
}
