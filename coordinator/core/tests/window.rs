//! Loaders that read everything once, on nodes that hold a part of it: what leaves the origin, and how long they wait.

#![allow(clippy::print_stdout, reason = "figures for people to read, beside what is asserted")]

mod model;

use millstream_coordinator_core::ReaderReport;
use millstream_coordinator_core::event::{Event, Placement};
use millstream_coordinator_core::view::ReplicaState;
use millstream_types::{NodeId, RunSet, Time};
use model::{DS, Loader, STAGE, Setup, World};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

const NODES: u32 = 4;
const SHARDS: u32 = 100;
/// A cold epoch takes some seconds of model time.
const LIMIT: Time = Time(600_000_000);

fn world() -> World {
    let mut setup = Setup::new(NODES, 400, 1.0);
    setup.shards = vec![4 << 20; SHARDS as usize];
    setup.placement = Placement::Window;
    let mut world = World::new(setup);
    world.join_all();
    world.request_all();
    world
}

/// Reads at a fifth of the link: four nodes together at less than the origin gives.
fn loader(order: Vec<u32>, cache: f64) -> Loader {
    let room = (f64::from(SHARDS) * cache) as u64 * (4 << 20);
    Loader { order, bytes_per_s: 2e8, room, ..Loader::default() }
}

fn shuffled(seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..SHARDS).collect();
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    order
}

struct Epoch {
    /// Bytes from the origin over the size of the data.
    origin: f64,
    /// Share of the time that loaders waited.
    waiting: f64,
}

/// One epoch; the quota holds at every moment.
fn epoch(world: &mut World, orders: [Vec<u32>; NODES as usize], cache: f64) -> Epoch {
    let (began, read) = (world.now, world.origin_ratio());
    for (node, order) in (0..).zip(orders) {
        world.load(node, loader(order, cache));
    }
    let room = loader(Vec::new(), cache).room;
    while !world.all_read() {
        assert!(world.now < LIMIT, "stuck: {}\n{:?}", world.describe(), world.readers);
        world.pass(10_000);
        for node in 0..NODES {
            assert!(world.held_bytes(node) <= room, "node {node} holds {} of {room}", world.held_bytes(node));
        }
    }
    let waited: u64 = world.readers.values().map(|l| l.waited_us).sum();
    Epoch {
        origin: world.origin_ratio() - read,
        waiting: waited as f64 / (u64::from(NODES) * world.now.since(began)) as f64,
    }
}

fn report(what: &str, epoch: &Epoch, world: &World) {
    let counters = world.core.counters();
    println!(
        "{what}: origin {:.3} x D, loaders waited {:.1} % of the time, {} shards dropped, {} handed over",
        epoch.origin,
        100.0 * epoch.waiting,
        counters.dropped,
        counters.handed_over
    );
}

#[test]
fn a_cold_epoch_in_one_order_reads_the_origin_once() {
    let mut world = world();
    let epoch = epoch(&mut world, std::array::from_fn(|_| shuffled(1)), 0.3);
    report("same order, cache 30 %", &epoch, &world);
    assert!(epoch.origin <= 1.05, "{:.3}", epoch.origin);
}

#[test]
fn a_cold_epoch_in_different_orders_reads_the_origin_once() {
    for seed in [1, 100, 200] {
        let mut world = world();
        let epoch = epoch(&mut world, std::array::from_fn(|n| shuffled(seed + n as u64)), 0.3);
        report("different orders, cache 30 %", &epoch, &world);
        assert!(epoch.origin <= 1.05, "{:.3}", epoch.origin);
    }
}

#[test]
fn disjoint_shares_are_read_once_and_forgotten() {
    let mut world = world();
    let order = shuffled(7);
    let share = |n: usize| order.iter().copied().skip(n).step_by(NODES as usize).collect();
    let epoch = epoch(&mut world, std::array::from_fn(share), 0.05);
    report("a quarter each, cache 5 %", &epoch, &world);
    assert!(epoch.origin <= 1.0 + 1e-9, "{:.3}", epoch.origin);
}

#[test]
fn a_cache_that_is_too_small_still_ends() {
    let mut world = world();
    let epoch = epoch(&mut world, std::array::from_fn(|n| shuffled(n as u64)), 0.06);
    report("different orders, cache 6 %", &epoch, &world);
    // Each node alone would read everything.
    assert!(epoch.origin <= 4.0, "{:.3}", epoch.origin);
}

/// Four nodes and an origin with links of 400 Mbit/s.
fn small_links(shards: usize) -> World {
    let mut setup = Setup::new(NODES, 400, 1.0);
    setup.shards = vec![4 << 20; shards];
    setup.placement = Placement::Window;
    (setup.origin, setup.link) = (5e7, 5e7);
    let mut world = World::new(setup);
    world.join_all();
    world.request_all();
    world
}

fn read_all(world: &mut World) {
    while !world.all_read() {
        assert!(world.now < LIMIT, "stuck: {}", world.describe());
        world.pass(10_000);
    }
}

/// Four nodes of which each holds so many of 64 shards, and reads so many at a time.
fn small_world(orders: impl Fn(usize) -> Vec<u32>, lanes: usize, bytes_per_s: f64, room: u64) -> World {
    let mut world = small_links(64);
    for node in 0..NODES {
        let order = orders(node as usize);
        world.load(node, Loader { order, lanes, bytes_per_s, room: room * (4 << 20), ..Loader::default() });
    }
    read_all(&mut world);
    world
}

fn what_it_took(world: &World) -> Epoch {
    let waited: u64 = world.readers.values().map(|l| l.waited_us).sum();
    Epoch { origin: world.origin_ratio(), waiting: waited as f64 / (u64::from(NODES) * world.now.0) as f64 }
}

/// The nodes are ranks of one job and each meets every lane: all read all shards, at the same time, a part of each. All
/// shards that are open end together, and as many others begin.
#[test]
fn lanes_that_end_together_find_the_next_ones_there() {
    for lanes in [2, 5] {
        // Which of the lanes is opened first differs.
        let order = |node: usize| {
            let mut order: Vec<u32> = (0..64).collect();
            order.chunks_mut(lanes).for_each(|open| open.rotate_left(node % open.len()));
            order
        };
        // At four fifths of what a link carries.
        let world = small_world(order, lanes, 4e7, 19);
        let epoch = what_it_took(&world);
        report(&format!("{lanes} lanes that end together, cache 30 %"), &epoch, &world);
        assert!(epoch.origin <= 1.0 + 1e-9, "{:.3}", epoch.origin);
        assert!(epoch.waiting <= 0.02, "{:.3}", epoch.waiting);
    }
}

/// Ranks of one job announce themselves one after the other, in any order, each with another of the shards first. Their
/// first shards come at the rate of the origin all the same, down one chain.
#[test]
fn readers_that_begin_together_get_their_first_shards_in_the_time_of_one() {
    const LANES: usize = 5;
    for begin in [[0, 1, 2, 3], [0, 3, 1, 2], [3, 2, 1, 0], [1, 3, 0, 2]] {
        let mut setup = Setup::new(NODES, 400, 1.0);
        setup.piece_len = 512 << 10;
        setup.shards = vec![4 << 20; 64];
        setup.placement = Placement::Window;
        (setup.origin, setup.link) = (5e7, 5e7);
        let mut world = World::new(setup);
        world.join_all();
        world.request_all();
        let began = world.now;
        for node in begin {
            let mut order: Vec<u32> = (0..64).collect();
            order.chunks_mut(LANES).for_each(|open| open.rotate_left(node as usize % open.len()));
            world.load(
                node,
                Loader { order, lanes: LANES, bytes_per_s: 4e7, room: 19 * (4 << 20), ..Loader::default() },
            );
            world.pass(3_000);
        }
        // All wait for the last one; then a few reads begin, not all.
        world.keep_trace = true;
        let reads = |world: &World| world.trace.iter().filter(|line| line.contains("source: Origin")).count();
        while reads(&world) == 0 {
            assert!(world.now < LIMIT, "nothing is read");
            world.pass(500);
        }
        world.pass(500);
        assert!((4..=12).contains(&reads(&world)), "{} reads at once", reads(&world));
        while !world.readers.values().all(|l| l.reading || l.at > 0) {
            assert!(world.now < LIMIT, "stuck: {}", world.describe());
            world.pass(1_000);
        }
        let took = world.now.since(began) as f64 / 1e6;
        let one = LANES as f64 * f64::from(4 << 20) / 5e7;
        println!("{begin:?}: the first shards after {:.2} times what one node takes", took / one);
        assert!(took < 1.25 * one, "{begin:?}: {took:.3} s, and one node takes {one:.3} s");
    }
}

/// Readers elsewhere make no room where there are none.
#[test]
fn what_a_node_without_readers_asks_for_stays() {
    let mut world = world();
    world.load(0, loader(shuffled(1), 0.3));
    world.pass(1_000_000);
    for shard in [5, 77] {
        let shards = RunSet::from_range(shard..shard + 1);
        world.tell_core(Event::ShardsDemanded { node: NodeId(1), dataset: DS, shards });
        world.pass(1_000_000);
    }
    read_all(&mut world);
    world.pass(2_000_000);
    for shard in [5, 77] {
        assert!(world.have(1).contains_range(world.layout.shard_pieces(shard)), "shard {shard} went");
    }
}

#[test]
fn a_window_is_ready_when_its_nodes_have_opened_the_version() {
    let mut world = world();
    let states = |world: &World| {
        let node = world.core.replica(DS, NodeId(0)).expect("the node").state;
        (world.core.stage(STAGE, world.now).expect("the stage").state, node)
    };
    assert_eq!(states(&world), ("running", ReplicaState::Receiving), "no node has said yet what it holds");
    world.pass(1_000_000);
    assert_eq!(states(&world), ("done", ReplicaState::Ready));
}

/// What nobody asked for could not come: a first node whose readers ask in bursts is not slow.
#[test]
fn readers_that_ask_in_bursts_make_no_node_slow() {
    let mut world = small_links(400);
    for node in 0..NODES {
        let order = (0..400).collect();
        world.load(node, Loader { order, lanes: 5, bytes_per_s: 3.8e7, room: 19 * (4 << 20), ..Loader::default() });
    }
    read_all(&mut world);
    assert_eq!(world.core.counters().overdue, 0, "nothing was late");
}

/// Two readers on one node of which each fits, but not both: one after the other, and not each with half of it.
#[test]
fn readers_that_do_not_fit_beside_each_other_take_turns() {
    let mut setup = Setup::new(1, 400, 1.0);
    setup.shards = vec![4 << 20; 12];
    setup.placement = Placement::Window;
    let mut world = World::new(setup);
    world.join_all();
    world.request_all();
    let say = |world: &mut World, reader, upcoming: &[u32], finished: &[u32]| {
        let (upcoming, finished) = (upcoming.to_vec(), finished.to_vec());
        let report =
            ReaderReport { reader, upcoming, finished, room_bytes: 5 * (4 << 20), open: 3, ..ReaderReport::default() };
        world.tell_core(Event::ReaderMoved { node: NodeId(0), dataset: DS, report });
        world.pass(1_000_000);
        (0..12).filter(|&s| world.have(0).contains_range(world.layout.shard_pieces(s))).collect::<Vec<u32>>()
    };
    assert_eq!(say(&mut world, 1, &[0, 1, 2, 3], &[])[..3], [0, 1, 2]);
    let both = say(&mut world, 2, &[8, 9, 10], &[]);
    assert!(both.iter().all(|&s| s < 8), "the second one would hold what the first one needs next: {both:?}");
    let next = say(&mut world, 1, &[4, 5], &[0, 1, 2]);
    assert!([3, 4, 5].iter().all(|s| next.contains(s)), "{next:?}");
    let last = say(&mut world, 1, &[], &[3, 4, 5]);
    assert!([8, 9, 10].iter().all(|s| last.contains(s)), "{last:?}");
}

/// All that is on a node may be the last copy of what it needs later: what it reads now comes nevertheless.
#[test]
fn many_lanes_and_little_room_still_end() {
    for (room, lanes) in [(4, 2), (8, 2), (6, 4), (12, 4), (8, 6), (12, 6), (19, 8)] {
        let order = |node: usize| {
            let mut order = shuffled(100 + node as u64);
            order.retain(|&shard| shard < 64);
            order
        };
        let world = small_world(order, lanes, 1e7, room);
        let epoch = what_it_took(&world);
        report(&format!("different orders, {lanes} lanes, room for {room} of 64 shards"), &epoch, &world);
        // Each node alone would read everything.
        assert!(epoch.origin <= 4.0, "{:.3}", epoch.origin);
    }
}

#[test]
fn a_second_epoch_uses_what_the_first_one_left() {
    let mut world = world();
    epoch(&mut world, std::array::from_fn(|n| shuffled(n as u64)), 0.3);
    let second = epoch(&mut world, std::array::from_fn(|n| shuffled(50 + n as u64)), 0.3);
    report("second epoch", &second, &world);
    assert!(second.origin < 0.8, "{:.3}", second.origin);
}

#[test]
fn last_copies_of_what_the_origin_lost_stay() {
    let mut world = world();
    // Of a third of the data, the origin has something else once it was read.
    let lost: RunSet = (0..SHARDS).step_by(3).collect();
    world.origin_lacks = lost.clone();
    epoch(&mut world, std::array::from_fn(|n| shuffled(n as u64)), 0.3);
    world.pass(1_000_000);
    for shard in lost.iter() {
        let pieces = world.layout.shard_pieces(shard);
        assert!((0..NODES).any(|n| world.have(n).contains_range(pieces.clone())), "shard {shard} is gone");
    }
}

#[test]
fn a_node_with_little_room_hands_its_last_copies_over() {
    let mut world = world();
    // Ahead of all others, it reads what they will need much later, and has no room for it.
    world.load(0, loader(shuffled(300), 0.12));
    for node in 1..NODES {
        let slow = loader(shuffled(300 + u64::from(node)), 0.4);
        world.load(node, Loader { bytes_per_s: 2e6, ..slow });
    }
    while world.readers[&0].at < SHARDS as usize {
        assert!(world.now < LIMIT, "stuck: {}", world.describe());
        world.pass(10_000);
    }
    let epoch = Epoch { origin: world.origin_ratio(), waiting: 0.0 };
    report("one node with 12 % ahead of three with 40 %", &epoch, &world);
    assert!(world.core.counters().handed_over > 20);
    assert!(epoch.origin <= 1.0 + 1e-9, "{:.3}", epoch.origin);
    // And whatever they need is somewhere.
    for shard in 0..SHARDS {
        let pieces = world.layout.shard_pieces(shard);
        assert!((0..NODES).any(|n| world.have(n).contains_range(pieces.clone())), "shard {shard} is gone");
    }
}

#[test]
fn readers_that_end_hold_nothing_back() {
    let mut world = world();
    // One node stops after a few shards: what only it still wanted may go.
    world.load(0, Loader { bytes_per_s: 1e3, ..loader(shuffled(1), 0.3) });
    world.pass(200_000);
    world.tell_core(Event::ReaderGone { node: NodeId(0), dataset: DS, reader: 1 });
    world.readers.clear();
    let order = shuffled(2);
    world.load(1, loader(order, 0.1));
    read_all(&mut world);
    assert!(world.origin_ratio() <= 1.05);
    let stage = world.core.stage(STAGE, world.now).expect("the stage");
    assert_eq!(stage.state, "done");
}
