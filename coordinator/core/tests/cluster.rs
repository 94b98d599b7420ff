//! Whole stages in the model: speed against the bound, and what faults cost.

mod model;

use millstream_coordinator_core::event::{Event, FailureKind, Note, Placement};
use millstream_types::{NodeId, StageId, Time};
use model::{DS, STAGE, Setup, World};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

const LIMIT: Time = Time(3_600_000_000);

fn started(setup: Setup) -> World {
    let mut world = World::new(setup);
    world.join_all();
    world.request_all();
    world
}

fn cold(setup: Setup) -> (f64, World) {
    let bound = setup.bound();
    let mut world = started(setup);
    let took = world.run(LIMIT) - 0.001;
    assert!(world.finished(), "not finished: {:?}", world.core.stages(world.now));
    (took / bound, world)
}

fn all_there(world: &World, nodes: impl IntoIterator<Item = u32>) {
    for node in nodes {
        assert!(world.has_all(node), "node {node}: {:?}", world.have(node));
    }
}

#[test]
fn cold_starts_are_near_the_bound_and_read_each_byte_once() {
    // 512 pieces: the tree's depth shows. More pieces: it does not.
    let cases = [(1, 512, 1.01), (2, 512, 1.02), (4, 512, 1.03), (8, 512, 1.03), (16, 512, 1.05), (64, 2048, 1.08)];
    for (nodes, pieces, most) in cases {
        for origin in [1.0, 4.0, 0.5] {
            let (ratio, world) = cold(Setup::new(nodes, pieces, origin));
            assert_eq!(world.origin_ratio(), 1.0);
            all_there(&world, 0..nodes);
            let counters = world.core.counters();
            assert_eq!(counters.requeues + counters.ignored, 0, "{counters:?}");
            assert_eq!(counters.origin_bytes, world.setup.bytes());
            assert!(ratio <= most, "N={nodes} S={origin}B: {ratio:.3}");
        }
    }
}

#[test]
fn the_same_events_give_the_same_actions() {
    let trace = || {
        let mut setup = Setup::new(12, 128, 1.0);
        setup.core.down_us = 200_000;
        let mut world = World::new(setup);
        world.keep_trace = true;
        world.corrupt = Some((17, 1));
        world.join_all();
        world.request_all();
        world.at(Time(30_000), "kill", 3);
        world.run(LIMIT);
        world.trace
    };
    let (a, b) = (trace(), trace());
    assert!(a.len() > 1000);
    assert_eq!(a, b);
}

/// Runs until these nodes have everything (the stage ends later: a dead node is waited for a while); seconds.
fn done_at(world: &mut World, nodes: impl Iterator<Item = u32> + Clone) -> f64 {
    for step in 1..5_000 {
        world.run(Time(step * 2_000));
        if nodes.clone().all(|n| world.has_all(n)) {
            break;
        }
    }
    world.now.as_secs_f64()
}

#[test]
fn a_node_that_dies_does_not_stop_the_others() {
    let clean = cold(Setup::new(8, 512, 1.0)).0;
    for victim in [0, 3, 7] {
        let setup = Setup::new(8, 512, 1.0);
        let bound = setup.bound();
        let mut world = started(setup);
        world.at(Time(200_000), "kill", victim);
        let others = || (0..8).filter(|&n| n != victim);
        let took = done_at(&mut world, others()) / bound;
        world.run(LIMIT);
        all_there(&world, others());
        assert!(took < clean + 0.05, "victim {victim}: {took:.3}");
        // Only what the victim alone had read may be read again.
        assert!(world.origin_ratio() < 1.05, "{}", world.origin_ratio());
    }
}

#[test]
fn a_node_that_comes_back_gets_the_rest() {
    let mut setup = Setup::new(4, 256, 1.0);
    setup.core.down_us = 50_000;
    let mut world = started(setup);
    world.at(Time(60_000), "kill", 2);
    world.at(Time(150_000), "revive", 2);
    world.run(LIMIT);
    all_there(&world, 0..4);
}

#[test]
fn what_bounds_a_stage_is_the_origin_the_links_or_the_disks() {
    let by = |origin: f64, rates: [f64; 2]| {
        let setup = Setup::new(4, 512, origin);
        let link = setup.link;
        let mut world = World::new(setup);
        world.rates = rates.map(|rate| (rate * link) as u64);
        world.join_all();
        // Until heartbeats have told them.
        world.pass(2_000_000);
        world.request_all();
        world.run(LIMIT);
        let stage = world.core.stage(STAGE, world.now).expect("the stage");
        (
            stage.bound_by,
            (stage.bound_us.expect("rates") as f64 / 1e6 * link / world.setup.bytes() as f64 * 10.0).round(),
        )
    };
    assert_eq!(by(0.25, [1.0, 0.0]), ("origin", 40.0), "tenths of what the link alone takes");
    assert_eq!(by(4.0, [1.0, 0.0]), ("link", 10.0), "the origin gives no more than the first node takes");
    assert_eq!(by(4.0, [1.0, 3.0]).0, "link");
    assert_eq!(by(4.0, [1.0, 0.5]), ("disk", 20.0));
    assert_eq!(by(0.25, [1.0, 0.5]).0, "origin");
    assert_eq!(by(0.25, [0.0, 0.0]), ("origin", 40.0), "nothing is known of links");
    assert_eq!(by(4.0, [0.0, 1.0]).0, "disk", "it writes all the time that it receives");
}

#[test]
fn what_was_done_stays_done_and_names_the_node_that_went() {
    let mut setup = Setup::new(3, 64, 1.0);
    setup.core.down_us = 50_000;
    let mut world = started(setup);
    world.at(Time(10_000), "kill", 1);
    world.pass(5_000_000);
    let stage = |world: &World| world.core.stage(STAGE, world.now).expect("the stage");
    let failed = stage(&world);
    assert_eq!((failed.state, failed.lacking.as_slice()), ("failed", [NodeId(1)].as_slice()));
    assert!(failed.bytes_ready < failed.bytes_total);
    let now = world.now;
    world.at(now, "revive", 1);
    world.pass(5_000_000);
    let done = stage(&world);
    assert_eq!((done.state, done.bytes_ready, done.lacking.as_slice()), ("done", done.bytes_total, [].as_slice()));

    // What links do later is no measure of it.
    world.rates = [1_000, 0];
    let now = world.now;
    world.at(now, "kill", 2);
    world.pass(1_000_000);
    let later = stage(&world);
    assert_eq!((later.state, later.bytes_ready, later.elapsed_us), ("done", done.bytes_ready, done.elapsed_us));
    assert_eq!(later.lacking, [NodeId(2)], "what it achieved, and where it is gone");
    let now = world.now;
    world.at(now, "revive", 2);
    world.pass(5_000_000);
    assert_eq!(stage(&world), done);
    assert!(done.bound_us.is_some());
    world.request(StageId(77), vec![0, 1, 2]);
    let found = world.core.stage(StageId(77), world.now).expect("the other stage");
    assert_eq!(
        (found.state, found.bytes_found, found.bound_us),
        ("done", found.bytes_total, None),
        "nothing had to move"
    );
}

#[test]
fn what_nodes_held_before_they_were_asked_is_found_and_not_moved() {
    let mut setup = Setup::new(3, 64, 1.0);
    setup.core.down_us = 50_000;
    let mut world = World::new(setup);
    world.join_all();
    world.request(StageId(7), vec![1]);
    world.run(LIMIT);
    all_there(&world, [1]);
    // The restarted coordinator tells its core of the stage before any node has told what it holds.
    let now = world.now;
    world.at(now, "restart", 0);
    world.pass(2_000);
    let found = |world: &World| world.core.stage(STAGE, world.now).expect("the stage").bytes_found;
    let each = world.setup.bytes();
    assert_eq!(found(&world), each);
    // One that was asked already comes back with part of it: that was received, not found.
    let now = world.now;
    world.at(now, "kill", 2);
    world.pass(5_000_000);
    let now = world.now;
    world.at(now, "revive", 2);
    world.pass(5_000_000);
    all_there(&world, 0..3);
    let done = world.core.stage(STAGE, world.now).expect("the stage");
    assert_eq!((done.state, done.bytes_ready), ("done", 3 * each));
    assert_eq!(done.bytes_found, each, "received since is not found");
    let wire = 2.0 * each as f64 / 3.0 / 1e9;
    assert!(done.bound_us.is_none_or(|us| us as f64 / 1e6 <= 2.0 * wire), "what was there bounds nothing: {done:?}");
}

#[test]
fn a_slow_uplink_costs_little() {
    for (victim, rate) in [(2, 0.5), (2, 0.1), (5, 0.1), (6, 0.03)] {
        let setup = Setup::new(8, 4096, 1.0);
        let bound = setup.bound();
        let mut world = started(setup);
        world.set_rates(victim, rate * 1e9, 1e9);
        // The node behind it is blamed first; then the chain breaks again, behind the same one.
        let others = done_at(&mut world, (0..8).filter(|&n| n != victim && n != victim + 1)) - bound;
        let lost = world.run(LIMIT) - bound;
        all_there(&world, 0..8);
        assert_eq!(world.origin_ratio(), 1.0);
        assert!(others < 1.5 && lost < 4.0, "node {victim} at {rate}: {others:.3} s, {lost:.3} s");
    }
}

#[test]
fn a_source_behind_which_the_last_one_keeps_up_again_is_called_slow() {
    let mut world = started(Setup::new(8, 4096, 1.0));
    world.set_rates(6, 3e7, 1e9);
    let mut slow = [false; 8];
    for step in 1..60 {
        world.run(Time(step * 100_000));
        slow.iter_mut().zip(world.core.nodes(world.now)).for_each(|(slow, node)| *slow |= node.avoided_as_slow);
    }
    assert_eq!(slow, [false, false, false, false, false, false, true, false]);
}

#[test]
fn a_slow_node_does_not_slow_the_others() {
    let setup = Setup::new(8, 2048, 1.0);
    let bound = setup.bound();
    let mut world = started(setup);
    world.set_rates(5, 1e8, 1e8);
    let mut done = None;
    for step in 1..1000 {
        world.run(Time(step * 50_000));
        if done.is_none() && (0..8).filter(|&n| n != 5).all(|n| world.has_all(n)) {
            done = Some(world.now.as_secs_f64() / bound);
        }
        if world.finished() {
            break;
        }
    }
    all_there(&world, 0..8);
    assert!(done.is_some_and(|t| t < 1.25), "{done:?}");
}

#[test]
fn one_wrong_origin_read_is_read_again_and_two_more_fail_the_shard() {
    let mut world = started(Setup::new(4, 64, 1.0));
    world.corrupt = Some((5, 1));
    world.run(LIMIT);
    all_there(&world, 0..4);
    assert_eq!(world.core.counters().disputes, 1);
    assert!(world.core.failures(DS).is_empty());
    assert!(world.origin_ratio() <= 1.3, "{}", world.origin_ratio());

    let mut world = started(Setup::new(4, 64, 1.0));
    world.corrupt = Some((5, 100));
    world.run(LIMIT);
    let failures = world.core.failures(DS);
    assert_eq!(failures.len(), 1);
    assert_eq!((failures[0].shard, failures[0].code), (0, 5));
    assert!(failures[0].expected != failures[0].actual);
    assert!(world.notes.contains(&Note::StageFinished { stage: STAGE, ok: false }));
    // The other shards are everywhere.
    for node in 0..4 {
        assert!(world.have(node).contains_range(16..64));
    }
}

#[test]
fn passing_origin_failures_are_retried_and_lasting_ones_end_the_shard() {
    for kind in [FailureKind::OriginTransient, FailureKind::Throttled] {
        let mut world = started(Setup::new(4, 64, 1.0));
        world.origin_failures = 6;
        world.origin_failure_kind = kind;
        world.run(LIMIT);
        all_there(&world, 0..4);
        assert!(world.core.failures(DS).is_empty());
    }
    for (kind, code) in
        [(FailureKind::OriginChanged, 8), (FailureKind::OriginDenied, 9), (FailureKind::OriginTransient, 1)]
    {
        let mut world = started(Setup::new(4, 64, 1.0));
        world.origin_failures = u32::MAX;
        world.origin_failure_kind = kind;
        world.run(LIMIT);
        let failures = world.core.failures(DS);
        assert_eq!(failures.len(), 4, "{kind:?}");
        assert!(failures.iter().all(|f| f.code == code));
    }
}

#[test]
fn a_stuck_lease_goes_to_another_node() {
    // Trees: in a chain it is the flow that tells.
    let mut setup = Setup::new(12, 64, 1.0);
    setup.core.lease_min_us = 100_000;
    let mut world = World::new(setup);
    world.stuck.insert(1);
    world.join_all();
    world.request_all();
    world.run(Time(200_000_000));
    all_there(&world, (0..12).filter(|&n| n != 1));
    assert!(world.notes.iter().any(|n| matches!(n, Note::LeaseExpired { node: NodeId(1), .. })));
}

#[test]
fn a_node_that_hangs_in_a_chain_is_passed_by() {
    // It is over before the first sweep could measure anything, or it is not.
    for (hangs, pieces) in [(1, 128), (2, 128), (1, 1024), (2, 1024)] {
        let mut world = World::new(Setup::new(4, pieces, 1.0));
        world.stuck.insert(hangs);
        world.join_all();
        world.request_all();
        world.run(Time(30_000_000));
        all_there(&world, (0..4).filter(|&n| n != hangs));
        assert_eq!(world.origin_ratio(), 1.0);
    }
}

#[test]
fn a_node_that_hangs_in_a_ring_is_passed_by() {
    // Node 4 has all; the ring runs on from there, and the first of the line is in its middle.
    for hangs in [0, 1, 3, 5, 7] {
        let mut world = World::new(Setup::new(8, 512, 1.0));
        world.join_all();
        world.request(StageId(7), vec![4]);
        world.run(LIMIT);
        world.stuck.insert(hangs);
        world.request_all();
        world.run(Time(60_000_000));
        all_there(&world, (0..8).filter(|&n| n != hangs));
        assert_eq!(world.origin_ratio(), 1.0);
    }
}

#[test]
fn a_restarted_coordinator_reads_nothing_again() {
    let mut world = started(Setup::new(8, 512, 1.0));
    world.at(Time(250_000), "restart", 0);
    world.run(LIMIT);
    all_there(&world, 0..8);
    // Orders in hand go on while it is away; at most those in flight are read twice.
    assert!(world.origin_ratio() < 1.03, "{}", world.origin_ratio());
}

#[test]
fn what_nodes_hold_is_passed_on_and_not_read() {
    // A ring from the one node that has all, whatever its place in the line; trees.
    for (nodes, pieces, at_most) in [(8, 1024, 1.02), (16, 512, 1.05), (16, 256, 1.08), (48, 256, 1.7)] {
        let mut world = World::new(Setup::new(nodes, pieces, 1.0));
        world.join_all();
        world.request(StageId(7), vec![4]);
        world.run(LIMIT);
        all_there(&world, [4]);
        world.notes.clear();
        let before = world.now;
        world.request_all();
        world.run(LIMIT);
        all_there(&world, 0..nodes);
        assert_eq!(world.origin_ratio(), 1.0);
        let took = world.now.since(before) as f64 / 1e6 / (world.setup.bytes() as f64 / 1e9);
        assert!(took < at_most, "{nodes} nodes, {pieces} pieces: {took:.3}");
    }
}

#[test]
fn spread_places_each_shard_on_that_many_nodes() {
    let mut setup = Setup::new(6, 240, 1.0);
    setup.shards = vec![4 << 20; 60];
    setup.placement = Placement::Spread(2);
    let (_, world) = cold(setup);
    assert_eq!(world.origin_ratio(), 1.0);
    for shard in 0..60 {
        let pieces = world.layout.shard_pieces(shard);
        let copies = (0..6).filter(|&n| world.have(n).contains_range(pieces.clone())).count();
        assert_eq!(copies, 2, "shard {shard}");
    }
    let most = (0..6).map(|n| world.have(n).len()).max();
    assert!(most < Some(240), "{most:?}");
}

#[test]
fn a_node_without_room_fails_alone() {
    let mut world = started(Setup::new(4, 128, 1.0));
    world.run(Time(20_000));
    world.tell_core(Event::NodeRefused {
        node: NodeId(2),
        dataset: DS,
        kind: FailureKind::NoSpace,
        reason: "needs 128 MiB, 3 MiB free".into(),
    });
    world.run(LIMIT);
    all_there(&world, [0, 1, 3]);
    assert!(world.notes.contains(&Note::StageFinished { stage: STAGE, ok: false }));
    assert_eq!(world.core.replica(DS, NodeId(2)).unwrap().reason, "needs 128 MiB, 3 MiB free");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_everyone_left_gets_everything(seed in any::<u64>()) {
        one(seed);
    }
}

#[test]
fn what_was_found_once_stays_found() {
    // A seal reported before a discard counted (node "ready" without the bytes); bytes that a node had read under an
    // order of a coordinator before counted although nobody knew what they should be (others waited for ever).
    for seed in [13739802986227552336, 5234211268778046425, 9519303715652818648, 4519700340163669381] {
        one(seed);
    }
}

fn one(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let nodes = rng.random_range(2..12);
    let mut setup = Setup::new(nodes, rng.random_range(4..40) * 4, [0.5, 1.0, 4.0][rng.random_range(0..3)]);
    setup.core.down_us = rng.random_range(10_000..500_000);
    setup.core.extent_bytes = Some(1 << rng.random_range(20..24));
    setup.latency_us = rng.random_range(1..2_000);
    setup.requests = rng.random_range(32..64);
    let mut world = World::new(setup);
    if rng.random_bool(0.3) {
        world.corrupt = Some((rng.random_range(0..world.layout.pieces()), 1));
    }
    world.origin_failures = rng.random_range(0..4);
    let (late, dying) = (rng.random_range(0..nodes), rng.random_range(0..nodes));
    for node in 0..nodes {
        if node != late || nodes == 2 || late == dying {
            world.join(node);
        }
    }
    world.request_all();
    if rng.random_bool(0.5) {
        world.at(Time(rng.random_range(2_000..100_000)), "kill", dying);
        if rng.random_bool(0.5) {
            world.at(Time(rng.random_range(100_000..400_000)), "revive", dying);
        }
    }
    let restart = rng.random_bool(0.3);
    if restart {
        world.at(Time(rng.random_range(2_000..200_000)), "restart", 0);
    }
    if late != dying && nodes > 2 {
        world.at(Time(rng.random_range(2_000..300_000)), "revive", late);
    }
    world.run(Time(300_000_000));
    // A coordinator that restarted cannot know that a dead node will not come back: it waits for it.
    let waits = restart && (0..nodes).any(|n| !world.is_up(n));
    assert!(waits || world.finished(), "seed {} {}", seed, world.describe());
    for node in 0..nodes {
        assert!(!world.is_up(node) || world.has_all(node), "seed {} node {} {}", seed, node, world.describe());
    }
}
