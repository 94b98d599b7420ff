//! What each kind of accident costs the nodes that nothing happened to: `cargo run --release -p millstream-sim
//! --example fault_costs`. The cluster is that of `tests/small.rs`: 16 nodes, 256 MiB, 12.5 MB/s links.

#![allow(clippy::print_stdout, reason = "a tool for people to read")]

use millstream_sim::{FaultKind, Scenario, run};

fn cluster(seed: u64) -> Scenario {
    Scenario::new(seed, 16, 256 << 20, 4).rates(12.5e6, 12.5e6, 50e6)
}

fn main() {
    let smooth = run(cluster(1));
    println!("undisturbed: T/T* {:.3}", smooth.ratio);
    let filter = std::env::args().nth(1).unwrap_or_default();
    for victim in [0, 3, 9] {
        let kinds = [
            FaultKind::Dies(victim),
            FaultKind::Slow(victim, 10),
            FaultKind::Cut(victim, 3_000_000),
            FaultKind::Corrupts(victim, 1_000_000),
            FaultKind::Full(victim),
        ];
        for kind in kinds {
            let name = format!("{kind:?}");
            if !name.contains(&filter) {
                continue;
            }
            let outcome = run(cluster(1).with(6_000_000, kind));
            let cost = (outcome.elapsed_unharmed_s / smooth.elapsed_s - 1.0) * 100.0;
            let all = (outcome.elapsed_s / smooth.elapsed_s - 1.0) * 100.0;
            let (origin, violations) = (outcome.origin_ratio, outcome.violations.len());
            println!(
                "{name:24} {cost:6.1} % (with the victim {all:6.1} %), origin {origin:.3}, requeues {}, {violations} violations",
                outcome.requeues
            );
        }
    }
}
