//! Readers with windows: they wait for shards, read them, and say what they have read.

use millstream_coordinator_core::ReaderReport;
use millstream_coordinator_core::event::Event;
use millstream_types::{NodeId, RunSet, Time};

use super::{DS, Ev, World};

/// Reads shards in its order: so many at a time, and then as many others.
#[derive(Clone, Debug)]
pub struct Loader {
    pub order: Vec<u32>,
    pub lanes: usize,
    /// The next one, and whether it is being read.
    pub at: usize,
    pub reading: bool,
    pub bytes_per_s: f64,
    pub room: u64,
    /// Waited for shards to come once it had its first ones, in microseconds, and since when it waits.
    pub waited_us: u64,
    pub waits: Option<Time>,
    /// What it asked for last: it opens one after the other.
    pub asked: Option<u32>,
}

impl Default for Loader {
    fn default() -> Loader {
        let (order, lanes, at, reading) = (Vec::new(), 1, 0, false);
        Loader { order, lanes, at, reading, bytes_per_s: 0.0, room: 0, waited_us: 0, waits: None, asked: None }
    }
}

impl Loader {
    /// What it reads now.
    fn open(&self) -> &[u32] {
        &self.order[self.at..self.order.len().min(self.at + self.lanes)]
    }
}

impl World {
    /// Starts a loader on a node.
    pub fn load(&mut self, node: u32, loader: Loader) {
        let report = ReaderReport {
            reader: 1,
            restart: true,
            upcoming: loader.order.clone(),
            room_bytes: loader.room,
            open: loader.lanes as u32,
            ..ReaderReport::default()
        };
        self.readers.insert(node, loader);
        self.later_core(Event::ReaderMoved { node: NodeId(node), dataset: DS, report });
        self.loader_looks(node);
    }

    /// Begins with its next shards if they are there.
    pub(super) fn loader_looks(&mut self, node: u32) {
        let now = self.now;
        let sealed = &self.nodes[node as usize].sealed;
        let Some(loader) = self.readers.get_mut(&node).filter(|l| !l.reading) else {
            return;
        };
        if loader.open().is_empty() {
            return;
        }
        if let Some(&shard) = loader.open().iter().find(|&&shard| !sealed.contains(shard)) {
            loader.waits.get_or_insert(now);
            if loader.asked.replace(shard) != Some(shard) {
                let (node, shards) = (NodeId(node), RunSet::from_range(shard..shard + 1));
                self.later_core(Event::ShardsDemanded { node, dataset: DS, shards });
            }
            return;
        }
        if let Some(since) = loader.waits.take().filter(|_| loader.at > 0) {
            loader.waited_us += now.since(since);
        }
        loader.reading = true;
        let bytes: u64 = loader.open().iter().map(|&shard| self.layout.shard_len(shard)).sum();
        let us = bytes as f64 * 1e6 / loader.bytes_per_s;
        self.push(now + us as u64, Ev::Read(node));
    }

    pub(super) fn loader_read(&mut self, node: u32) {
        let Some(loader) = self.readers.get_mut(&node) else {
            return;
        };
        let finished = loader.open().to_vec();
        for &shard in &finished {
            // It was there all the time.
            assert!(
                self.nodes[node as usize].sealed.contains(shard),
                "shard {shard} was taken from node {node}'s reader"
            );
        }
        loader.at += finished.len();
        loader.reading = false;
        let report = ReaderReport { reader: 1, finished, room_bytes: loader.room, ..ReaderReport::default() };
        self.later_core(Event::ReaderMoved { node: NodeId(node), dataset: DS, report });
        self.loader_looks(node);
    }

    /// Everything that loaders were to read, they have read.
    pub fn all_read(&self) -> bool {
        self.readers.values().all(|l| l.at == l.order.len())
    }
}
