//! Shards that nodes ask for themselves, in the model.

mod model;

use millstream_coordinator_core::event::{Event, Placement};
use millstream_types::{NodeId, RunSet, Time};
use model::{DS, STAGE, Setup, World};

const LIMIT: Time = Time(60_000_000);

fn spread(nodes: u32, copies: u32) -> World {
    let mut setup = Setup::new(nodes, 64, 1.0);
    setup.shards = vec![4 << 20; 16];
    setup.placement = Placement::Spread(copies);
    let mut world = World::new(setup);
    world.join_all();
    world.request_all();
    world.run(LIMIT);
    world
}

fn demand(world: &mut World, node: u32, shards: std::ops::Range<u32>) {
    let shards = RunSet::from_range(shards);
    world.tell_core(Event::ShardsDemanded { node: NodeId(node), dataset: DS, shards });
}

fn has(world: &World, node: u32, shard: u32) -> bool {
    world.have(node).contains_range(world.layout.shard_pieces(shard))
}

#[test]
fn what_a_peer_has_is_not_read_again() {
    let mut world = spread(4, 1);
    assert_eq!(world.origin_ratio(), 1.0);
    let lacking: Vec<u32> = (0..16).filter(|&s| !has(&world, 2, s)).collect();
    assert!(lacking.len() > 4);
    for &shard in &lacking {
        demand(&mut world, 2, shard..shard + 1);
    }
    world.pass(5_000_000);
    assert!(lacking.iter().all(|&s| has(&world, 2, s)));
    assert_eq!(world.origin_ratio(), 1.0);
    let stage = world.core.stage(STAGE, world.now).expect("the stage");
    assert_eq!(stage.state, "done", "what nodes ask for themselves does not open stages again");
}

#[test]
fn what_nobody_has_is_read_once_for_all_who_ask() {
    let mut world = World::new(Setup::new(6, 64, 1.0));
    world.join_all();
    for node in 0..6 {
        demand(&mut world, node, 1..2);
    }
    world.pass(5_000_000);
    assert!((0..6).all(|n| has(&world, n, 1) && !has(&world, n, 0)));
    assert_eq!(world.origin_ratio(), 0.25);
}

#[test]
fn what_is_asked_for_overtakes_what_is_staged() {
    let mut world = World::new(Setup::new(3, 2048, 1.0));
    world.join_all();
    world.request_all();
    world.pass(200_000);
    demand(&mut world, 1, 3..4);
    while !has(&world, 1, 3) {
        assert!(world.now < LIMIT, "it never came");
        world.pass(50_000);
    }
    // A quarter of the data was asked for: it is there long before the rest.
    assert!(world.have(1).len() < 1600, "{}", world.have(1).len());
    world.run(LIMIT);
    assert!((0..3).all(|n| world.has_all(n)));
    assert_eq!(world.origin_ratio(), 1.0);
}

#[test]
fn holders_that_die_are_replaced_by_the_origin() {
    let mut setup = Setup::new(3, 64, 1.0);
    setup.core.down_us = 50_000;
    setup.placement = Placement::Spread(1);
    let mut world = World::new(setup);
    world.join_all();
    world.request(STAGE, vec![0]);
    world.run(LIMIT);
    let now = world.now;
    world.at(now + 1_000, "kill", 0);
    world.pass(2_000);
    demand(&mut world, 2, 0..1);
    world.pass(10_000_000);
    assert!(has(&world, 2, 0));
}

#[test]
fn an_evicted_version_is_opened_again() {
    let mut world = World::new(Setup::new(2, 64, 1.0));
    world.join_all();
    demand(&mut world, 0, 0..1);
    world.pass(5_000_000);
    assert!(has(&world, 0, 0));
    world.keep_trace = true;
    world.tell_core(Event::Evicted { node: NodeId(0), dataset: DS });
    demand(&mut world, 0, 1..2);
    let attach = world.trace.iter().position(|t| t.contains("Attach"));
    let assign = world.trace.iter().position(|t| t.contains("Assign"));
    assert!(attach.is_some() && assign.is_none(), "nothing is ordered before its inventory: {:?}", world.trace);
    world.pass(5_000_000);
    assert!(has(&world, 0, 1));
}

#[test]
fn what_it_takes_is_told_beforehand() {
    let mut world = World::new(Setup::new(2, 64, 1.0));
    world.join_all();
    let one = RunSet::from_range(0..1);
    let before = world.core.demand(DS, NodeId(0), &one).expect("known");
    assert_eq!((before.bytes_more, before.bytes_wanted, before.refused), (16 << 20, 16 << 20, None));
    demand(&mut world, 0, 0..1);
    let after = world.core.demand(DS, NodeId(0), &RunSet::from_range(0..2)).expect("known");
    assert_eq!((after.bytes_more, after.bytes_wanted), (16 << 20, 32 << 20));
}
