//! Small clusters, piece by piece, with the real cores: how fast, and what each kind of accident costs.

use millstream_sim::{FaultKind, Fidelity, Outcome, Scenario, run};

/// 16 nodes, 256 MiB, 12.5 MB/s links: T* is 21 s, long against every timeout.
fn cluster(seed: u64) -> Scenario {
    Scenario::new(seed, 16, 256 << 20, 4).rates(12.5e6, 12.5e6, 50e6)
}

fn clean(outcome: &Outcome) {
    assert!(outcome.violations.is_empty(), "seed {}: {:#?}", outcome.seed, outcome.violations);
}

/// The first node of the chain, some further on, and the last one.
const VICTIMS: [u32; 5] = [0, 1, 3, 9, 15];

/// Promise 6: the accident makes the others less than 5 % later, whomever it meets, early or late.
fn costs_little(kind: impl Fn(u32) -> FaultKind) -> Vec<Outcome> {
    let smooth = run(cluster(1));
    let mut outcomes = Vec::new();
    for victim in VICTIMS {
        for at_us in [6_000_000, 17_130_000] {
            let outcome = run(cluster(1).with(at_us, kind(victim)));
            clean(&outcome);
            let cost = outcome.elapsed_unharmed_s / smooth.elapsed_s;
            assert!(cost < 1.05, "{:?} at {at_us} us costs {:.1} %", kind(victim), (cost - 1.0) * 100.0);
            outcomes.push(outcome);
        }
    }
    outcomes
}

#[test]
fn a_cold_start_is_near_its_bound() {
    for (nodes, link) in [(4, 50e6), (8, 25e6), (16, 12.5e6)] {
        for origin in [link, 4.0 * link] {
            let outcome = run(Scenario::new(1, nodes, 256 << 20, 4).rates(link, origin, 4.0 * link));
            clean(&outcome);
            assert!(outcome.complete);
            assert!(outcome.ratio <= 1.03, "{nodes} nodes: T/T* {:.3}", outcome.ratio);
            assert!(outcome.origin_ratio <= 1.02, "{nodes} nodes: origin {}", outcome.origin_ratio);
        }
    }
}

#[test]
fn the_coarse_world_agrees() {
    let fine = run(Scenario::new(1, 32, 2 << 30, 16));
    let mut scenario = Scenario::new(1, 32, 2 << 30, 16);
    scenario.fidelity = Fidelity::Extents;
    scenario.indexed = true;
    let coarse = run(scenario);
    clean(&fine);
    clean(&coarse);
    let apart = fine.elapsed_s / coarse.elapsed_s;
    assert!((0.9..1.1).contains(&apart), "fine {} s, coarse {} s", fine.elapsed_s, coarse.elapsed_s);
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
fn a_death_costs_little() {
    for outcome in costs_little(FaultKind::Dies) {
        assert!(outcome.origin_ratio <= 1.02, "origin {}", outcome.origin_ratio);
    }
}

#[test]
fn a_slow_node_costs_little() {
    for percent in [10, 40] {
        costs_little(|node| FaultKind::Slow(node, percent));
    }
}

#[test]
fn a_corrupting_node_costs_little() {
    for outcome in costs_little(|node| FaultKind::Corrupts(node, 1_000_000)) {
        assert!(outcome.complete);
    }
}

#[test]
fn a_node_that_refuses_its_peers_costs_little() {
    let outcomes = costs_little(FaultKind::Refuses);
    for outcome in outcomes {
        assert!(outcome.complete && outcome.origin_ratio <= 1.05, "origin {}", outcome.origin_ratio);
    }
}

#[test]
fn a_small_version_that_only_a_refusing_node_holds_is_read_again_at_once() {
    for nodes in [2, 3, 8] {
        let outcome =
            run(Scenario::new(1, nodes, 12_000_000, 4).rates(50e6, 100e6, 200e6).with(0, FaultKind::Refuses(0)));
        clean(&outcome);
        assert!(outcome.complete && outcome.origin_ratio <= 2.0, "origin {}", outcome.origin_ratio);
        assert!(outcome.elapsed_s < 2.0, "{nodes} nodes: {} s", outcome.elapsed_s);
    }
}

#[test]
fn a_cut_link_costs_little() {
    for outcome in costs_little(|node| FaultKind::Cut(node, 3_000_000)) {
        assert!(outcome.complete);
    }
}

#[test]
fn a_full_disk_stops_one_node_only() {
    costs_little(FaultKind::Full);
}

#[test]
fn a_node_that_joins_late_is_served_by_its_peers() {
    let outcome = run(cluster(1).with(15_000_000, FaultKind::Joins(5)));
    clean(&outcome);
    assert!(outcome.complete);
    assert!(outcome.origin_ratio <= 1.02, "origin {}", outcome.origin_ratio);
}

#[test]
fn a_node_that_returns_keeps_what_it_had() {
    let away = cluster(1).with(8_000_000, FaultKind::Dies(5)).with(12_000_000, FaultKind::Returns(5));
    let outcome = run(away);
    clean(&outcome);
    assert!(outcome.complete);
    assert!(outcome.origin_ratio <= 1.02, "origin {}", outcome.origin_ratio);
}

#[test]
fn a_coordinator_restart_adds_no_origin_bytes() {
    let outcome = run(cluster(1).with(8_000_000, FaultKind::CoordinatorRestarts(1_000_000)));
    clean(&outcome);
    assert!(outcome.complete);
    assert!(outcome.origin_ratio <= 1.02, "origin {}", outcome.origin_ratio);
}

#[test]
fn a_wrong_read_of_the_origin_is_found_and_read_again() {
    let outcome = run(cluster(1).with(0, FaultKind::OriginCorrupts(100, 1)));
    clean(&outcome);
    assert!(outcome.complete);
    assert_eq!(outcome.shards_failed, 0);
}

#[test]
fn an_origin_that_stays_wrong_fails_its_shard_and_no_other() {
    let outcome = run(cluster(1).with(0, FaultKind::OriginCorrupts(100, u32::MAX)));
    clean(&outcome);
    assert_eq!(outcome.shards_failed, 1);
}

#[test]
fn an_origin_that_throttles_or_breaks_off_is_asked_again() {
    for kind in [FaultKind::OriginThrottles(2_000_000), FaultKind::OriginBreaks(50_000)] {
        let outcome = run(cluster(1).with(3_000_000, kind));
        clean(&outcome);
        assert!(outcome.complete);
    }
}
