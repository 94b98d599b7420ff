//! Loaders: each reads the shards of its order on its node, one after the other, and tells the coordinator.

use millstream_agent_core::event::Event as Heard;
use millstream_coordinator_core::ReaderReport;
use millstream_coordinator_core::event::Event as Word;
use millstream_types::{NodeId, RunSet, Time};

use super::{Event, World};
use crate::clock::transfer_us;
use crate::coordinator::DATASET;
use crate::scenario::Scenario;

/// The loader of one node.
pub(super) struct Loader {
    order: Vec<u32>,
    /// The next shard in its order, and whether it is being read.
    at: usize,
    reading: bool,
    waits_since: Option<Time>,
    waited_us: u64,
    ended: Time,
}

impl Loader {
    pub fn all(scenario: &Scenario) -> Vec<Loader> {
        let orders = scenario.loaders.iter().flat_map(|l| &l.orders).cloned();
        let loader =
            |order| Loader { order, at: 0, reading: false, waits_since: None, waited_us: 0, ended: Time::ZERO };
        orders.map(loader).collect()
    }
}

impl World {
    /// A session begins: what is left to read is announced.
    pub(super) fn announce(&mut self, n: u32) {
        let Some(loader) = self.loaders.get(n as usize) else {
            return;
        };
        let upcoming = loader.order[loader.at..].to_vec();
        self.tell_moved(n, ReaderReport { restart: true, upcoming, ..ReaderReport::default() });
        self.loader_looks(n);
    }

    fn tell_moved(&mut self, n: u32, report: ReaderReport) {
        let room_bytes = self.scenario.loaders.as_ref().map_or(0, |l| l.room_bytes);
        let report = ReaderReport { room_bytes, ..report };
        self.say(n, Word::ReaderMoved { node: NodeId(n), dataset: DATASET, report });
    }

    /// Begins with its next shard if that is visible.
    pub(super) fn loader_looks(&mut self, n: u32) {
        let now = self.clock.now();
        let rate = self.scenario.loaders.as_ref().map_or(1.0, |l| l.bytes_per_s);
        let node = &self.nodes[n as usize];
        let Some(loader) = self.loaders.get_mut(n as usize).filter(|l| !l.reading && node.alive) else {
            return;
        };
        let Some(&shard) = loader.order.get(loader.at) else {
            return;
        };
        if !node.sealed.contains(&shard) {
            loader.waits_since.get_or_insert(now);
            return;
        }
        if let Some(since) = loader.waits_since.take() {
            loader.waited_us += now.since(since);
        }
        loader.reading = true;
        self.clock.after(transfer_us(self.layout.shard_len(shard), rate), Event::LoaderRead { node: n });
    }

    pub(super) fn loader_read(&mut self, n: u32) {
        let now = self.clock.now();
        let loader = &mut self.loaders[n as usize];
        let shard = loader.order[loader.at];
        (loader.at, loader.reading, loader.ended) = (loader.at + 1, false, now);
        let there = self.nodes[n as usize].sealed.contains(&shard);
        self.checks.that(there, || format!("n{n}: shard {shard} was dropped while a loader read it"));
        self.tell_moved(n, ReaderReport { finished: vec![shard], ..ReaderReport::default() });
        self.loader_looks(n);
    }

    /// What the shell does: what a loader here still needs stays.
    pub(super) fn drop_shards(&mut self, n: u32, shards: &RunSet) {
        let left: RunSet =
            self.loaders.get(n as usize).map_or(RunSet::new(), |l| l.order[l.at..].iter().copied().collect());
        let (mut dropped, mut kept) = (shards.clone(), shards.clone());
        dropped.remove_all(&left);
        kept.remove_all(&dropped);
        for shard in dropped.iter() {
            self.tell(n, Heard::DropShard { dataset: DATASET, shard });
        }
        self.say(n, Word::ShardsDropped { node: NodeId(n), dataset: DATASET, dropped, kept });
        self.check_room(n);
    }

    fn check_room(&mut self, n: u32) {
        let Some(room) = self.scenario.loaders.as_ref().map(|l| l.room_bytes) else {
            return;
        };
        let held: u64 = self.nodes[n as usize].disk.keys().map(|&p| u64::from(self.layout.place(p).len)).sum();
        self.checks.that(held <= room, || format!("n{n} holds {held} bytes with room for {room}"));
    }

    /// The origin still has everything as it was.
    pub(super) fn origin_says(&mut self, shards: RunSet) {
        let word = Word::OriginSays { dataset: DATASET, asked: shards.clone(), holds: shards };
        let orders = self.coordinator.handle(self.clock.now(), word);
        self.carry_out(orders);
    }

    pub(super) fn all_read(&self) -> bool {
        self.loaders.iter().all(|l| l.at == l.order.len())
    }

    /// The part of its time that a loader waited, on average.
    pub(super) fn waited_part(&self) -> f64 {
        let parts = self.loaders.iter().map(|l| l.waited_us as f64 / l.ended.0.max(1) as f64);
        parts.sum::<f64>() / self.loaders.len().max(1) as f64
    }
}
