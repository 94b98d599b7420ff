//! Whole stages in the model: speed against the bound, and what faults cost.

mod model;

use millstream_types::Time;
use model::{Setup, World};

const LIMIT: Time = Time(600_000_000);

fn cold(setup: Setup) -> (f64, World) {
    let bound = setup.bound();
    let mut world = World::new(setup);
    world.join_all();
    world.request_all();
    let took = world.run(LIMIT) - 0.001;
    assert!(world.finished(), "not finished: {:?}", world.core.stages(world.now));
    (took / bound, world)
}

#[test]
fn cold_starts_are_near_the_bound_and_read_each_byte_once() {
    let mut worst = Vec::new();
    for nodes in [1, 2, 4, 8, 16, 64] {
        for origin in [1.0, 4.0, 0.5] {
            let (ratio, world) = cold(Setup::new(nodes, 512, origin));
            assert_eq!(world.origin_ratio(), 1.0);
            for node in 0..nodes {
                assert!(world.has_all(node), "node {node} of {nodes}");
            }
            eprintln!("N={nodes} S={origin}B: {ratio:.3} {:?}", world.core.counters());
            worst.push((ratio, nodes, origin));
        }
    }
    for (ratio, nodes, origin) in worst {
        assert!(ratio <= 1.05, "N={nodes} S={origin}B: {ratio:.3}");
    }
}

#[test]
fn dbg_tree() {
    let n: u32 = std::env::var("N").unwrap().parse().unwrap();
    let r: f64 = std::env::var("R").unwrap().parse().unwrap();
    let setup = Setup::new(n, 512, r);
    let mut world = World::new(setup);
    world.keep_trace = true;
    world.join_all();
    world.request_all();
    let took = world.run(LIMIT);
    let b = world.setup.bound();
    eprintln!("ratio {}", took / b);
    let mut last = 0u64;
    let mut c = 0;
    for line in &world.trace {
        let t: u64 = line.split(' ').next().unwrap().parse().unwrap();
        if line.contains("Origin") {
            c += 1;
            last = t;
            if c % 64 == 0 {
                eprintln!("lease {c} at {:.3}", t as f64 / 1e6 / b);
            }
        }
    }
    eprintln!("last lease {}", last as f64 / 1e6 / b);
    for (i, nv) in world.samples.iter().enumerate() {
        if i % 8 == 0 {
            eprintln!("{:?}", nv);
        }
    }
}
