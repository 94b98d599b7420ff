//! What each kind of accident costs the nodes that nothing happened to, relative to the undisturbed run: `cargo run
//! --release -p millstream-sim --example fault_costs [KIND]`. The cluster is that of `tests/small.rs`: 256 MiB, links
//! that need 21 s for them. With `sweep` for KIND: other sizes, victims and times too, the worst of each kind.

#![allow(clippy::print_stdout, reason = "a tool for people to read")]

use millstream_sim::{FaultKind, Outcome, Scenario, run};

fn cluster(seed: u64, nodes: u32, origin: f64) -> Scenario {
    Scenario::new(seed, nodes, u64::from(nodes.max(16)) << 24, 4).rates(12.5e6, 12.5e6 * origin, 50e6)
}

fn kinds(victim: u32) -> [FaultKind; 6] {
    [
        FaultKind::Dies(victim),
        FaultKind::Slow(victim, 10),
        FaultKind::Slow(victim, 40),
        FaultKind::Cut(victim, 3_000_000),
        FaultKind::Corrupts(victim, 1_000_000),
        FaultKind::Full(victim),
    ]
}

fn cost(smooth: &Outcome, outcome: &Outcome) -> f64 {
    (outcome.elapsed_unharmed_s / smooth.elapsed_s - 1.0) * 100.0
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    if filter == "sweep" {
        return sweep();
    }
    let smooth = run(cluster(1, 16, 1.0));
    println!("undisturbed: T/T* {:.3}", smooth.ratio);
    for kind in [0, 3, 9, 15].into_iter().flat_map(kinds) {
        let name = format!("{kind:?}");
        if !name.contains(&filter) {
            continue;
        }
        let outcome = run(cluster(1, 16, 1.0).with(6_000_000, kind));
        let all = (outcome.elapsed_s / smooth.elapsed_s - 1.0) * 100.0;
        println!(
            "{name:24} {:6.1} % (with the victim {all:6.1} %), origin {:.3}, requeues {}, {} violations",
            cost(&smooth, &outcome),
            outcome.origin_ratio,
            outcome.requeues,
            outcome.violations.len()
        );
    }
}

fn sweep() {
    let mut costs: Vec<Vec<(f64, f64, String)>> = vec![Vec::new(); kinds(0).len()];
    for (nodes, origin) in [(4, 1.0), (8, 1.0), (16, 1.0), (16, 4.0), (48, 1.0)] {
        let smooth = run(cluster(1, nodes, origin));
        for victim in [0, 1, nodes / 2, nodes - 1] {
            for at in [700_000, 6_000_000, 13_130_000, 19_000_000] {
                for (i, kind) in kinds(victim).into_iter().enumerate() {
                    let name = format!("{kind:?} at {at} us, {nodes} nodes, origin x{origin}");
                    let outcome = run(cluster(7, nodes, origin).with(at, kind));
                    if !outcome.violations.is_empty() {
                        println!("{name}: {:?}", outcome.violations);
                    }
                    costs[i].push((cost(&smooth, &outcome), outcome.origin_ratio, name));
                }
            }
        }
    }
    for mut kind in costs {
        kind.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (worst, _, name) = &kind[0];
        let over = kind.iter().filter(|k| k.0 > 5.0).count();
        let origin = kind.iter().map(|k| k.1).fold(0.0, f64::max);
        println!(
            "worst {worst:6.1} %, median {:5.1} %, {over} of {} above 5 %, origin <= {origin:.3}: {name}",
            kind[kind.len() / 2].0,
            kind.len()
        );
        for (cost, origin, name) in kind.iter().skip(1).take_while(|k| k.0 > 5.0).take(12) {
            println!("      {cost:6.1} % {origin:.3} {name}");
        }
    }
}
