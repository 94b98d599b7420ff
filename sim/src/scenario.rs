//! What is simulated: a cluster, a dataset and what goes wrong.

use millstream_coordinator_core::CoreConfig;
use millstream_types::Layout;

use crate::rng::Rng;

/// How finely the data plane is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fidelity {
    /// Piece by piece, with the real agent cores.
    Pieces,
    /// Extent by extent, with a stand-in that obeys: for thousands of nodes.
    Extents,
}

/// A run, completely described.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Decides everything that is random.
    pub seed: u64,
    /// How fine.
    pub fidelity: Fidelity,
    /// Nodes of the stage (some may join late, by a fault).
    pub nodes: u32,
    /// Shard lengths in bytes.
    pub shards: Vec<u64>,
    /// Bytes per second of each node's link, each way.
    pub link_bytes_per_s: f64,
    /// Bytes per second of the origin for everyone together.
    pub origin_bytes_per_s: f64,
    /// Bytes per second that a node writes.
    pub disk_bytes_per_s: f64,
    /// Until the first byte of a GET.
    pub origin_latency_us: u64,
    /// One way between two nodes.
    pub peer_latency_us: u64,
    /// One way between a node and the coordinator.
    pub control_latency_us: u64,
    /// Piece checksums are known beforehand.
    pub indexed: bool,
    /// The origin has a CRC-64/NVME of each shard.
    pub origin_checksums: bool,
    /// Buffers of an agent.
    pub buffer_bytes: u64,
    /// What goes wrong, and when.
    pub faults: Vec<Fault>,
    /// Loaders that read on the nodes, instead of a stage that brings everything everywhere.
    pub loaders: Option<Loaders>,
    /// Settings of the coordinator's core.
    pub core: CoreConfig,
    /// Simulated time after which a run counts as stuck.
    pub time_max_us: u64,
    /// Spell out every event and order on stderr.
    pub aloud: bool,
}

/// One loader on each node, and how much of the dataset a node may hold.
#[derive(Clone, Debug)]
pub struct Loaders {
    /// The shards that each node's loader reads, in order.
    pub orders: Vec<Vec<u32>>,
    /// Bytes per second that a loader reads.
    pub bytes_per_s: f64,
    /// Bytes of the dataset that a node may hold.
    pub room_bytes: u64,
}

/// Something that happens to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When, in microseconds after the stage was asked for.
    pub at_us: u64,
    /// What.
    pub kind: FaultKind,
}

/// What can happen to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The process is gone; its disk stays.
    Dies(u32),
    /// It is back, with what its disk holds.
    Returns(u32),
    /// The node was not there before (must be the first fault of that node).
    Joins(u32),
    /// Its link runs at this many percent.
    Slow(u32, u32),
    /// Nothing reaches it, nor from it, for this many microseconds.
    Cut(u32, u64),
    /// It serves wrong bytes this many times in a million.
    Corrupts(u32, u32),
    /// It answers its peers that it has nothing.
    Refuses(u32),
    /// Its disk takes nothing more.
    Full(u32),
    /// The origin sends wrong bytes for the next reads of a piece: (piece, reads).
    OriginCorrupts(u32, u32),
    /// The origin refuses requests for this many microseconds.
    OriginThrottles(u64),
    /// This many GETs in a million break off.
    OriginBreaks(u32),
    /// The coordinator's process is replaced; it is away for this many microseconds.
    CoordinatorRestarts(u64),
}

impl FaultKind {
    /// The node that it happens to, if it is one.
    pub fn node(&self) -> Option<u32> {
        match self {
            FaultKind::Dies(n)
            | FaultKind::Returns(n)
            | FaultKind::Joins(n)
            | FaultKind::Slow(n, _)
            | FaultKind::Cut(n, _)
            | FaultKind::Corrupts(n, _)
            | FaultKind::Refuses(n)
            | FaultKind::Full(n) => Some(*n),
            _ => None,
        }
    }
}

impl Scenario {
    /// `nodes` nodes get `bytes` bytes in `shards` shards, with links, origin and disks of a small cloud; no faults.
    pub fn new(seed: u64, nodes: u32, bytes: u64, shards: u64) -> Scenario {
        let shards = shards.max(1);
        let lens = (0..shards).map(|i| bytes * (i + 1) / shards - bytes * i / shards);
        let link = 1.25e9;
        Scenario {
            seed,
            fidelity: Fidelity::Pieces,
            nodes,
            shards: lens.collect(),
            link_bytes_per_s: link,
            origin_bytes_per_s: link,
            disk_bytes_per_s: 2.0 * link,
            origin_latency_us: 20_000,
            peer_latency_us: 100,
            control_latency_us: 300,
            indexed: false,
            origin_checksums: true,
            buffer_bytes: 1 << 30,
            faults: Vec::new(),
            loaders: None,
            core: CoreConfig { link_bytes_per_s: link, ..CoreConfig::default() },
            time_max_us: 3_600_000_000,
            aloud: false,
        }
    }

    /// Adds a fault.
    pub fn with(mut self, at_us: u64, kind: FaultKind) -> Scenario {
        self.faults.push(Fault { at_us, kind });
        self
    }

    /// Every node reads everything once, each in an order of its own or all in the same, with a cache of this part of
    /// the dataset.
    pub fn epoch(mut self, same_order: bool, cache_part: f64, bytes_per_s: f64) -> Scenario {
        let shards = self.shards.len() as u32;
        let shuffled = |stream: u64| {
            let mut rng = Rng::new(self.seed, stream);
            let mut order: Vec<u32> = (0..shards).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, rng.below(i as u64 + 1) as usize);
            }
            order
        };
        let orders = (0..u64::from(self.nodes)).map(|n| shuffled(if same_order { 100 } else { 100 + n })).collect();
        let room_bytes = (self.bytes() as f64 * cache_part) as u64;
        self.loaders = Some(Loaders { orders, bytes_per_s, room_bytes });
        self
    }

    /// Sets link, origin and disk rates, in bytes per second.
    pub fn rates(mut self, link: f64, origin: f64, disk: f64) -> Scenario {
        self.link_bytes_per_s = link;
        self.origin_bytes_per_s = origin;
        self.disk_bytes_per_s = disk;
        self.core.link_bytes_per_s = link;
        self
    }

    /// Bytes of the dataset.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().sum()
    }

    /// The geometry, as registration would choose it.
    ///
    /// # Panics
    /// When the dataset has too many pieces for one version.
    pub fn layout(&self) -> Layout {
        let piece_len = Layout::piece_len_for(self.bytes());
        match Layout::new(piece_len, &self.shards) {
            Some(layout) => layout,
            None => panic!("a dataset of {} bytes has too many pieces", self.bytes()),
        }
    }

    /// T* in seconds and what sets it.
    pub fn bound(&self) -> (f64, &'static str) {
        crate::bound::lower_bound(
            self.bytes(),
            self.nodes,
            self.origin_bytes_per_s,
            self.link_bytes_per_s,
            self.disk_bytes_per_s,
        )
    }

    /// A small cluster with random geometry, rates and (when `faults`) accidents that it must survive.
    pub fn random(seed: u64, faults: bool) -> Scenario {
        let mut rng = Rng::new(seed, 1);
        let nodes = rng.between(2, 14) as u32;
        let bytes = rng.between(1 << 20, 96 << 20);
        let mut scenario = Scenario::new(seed, nodes, bytes, rng.between(1, 12));
        if rng.chance(300_000) {
            // Many small files, and empty ones.
            let files = rng.between(20, 120);
            scenario.shards = (0..files).map(|_| rng.below(3) * rng.below(300_000)).collect();
            scenario.shards.push(rng.between(1, 1 << 20));
        }
        let link = rng.between(10, 200) as f64 * 1e6;
        let origin = link * rng.pick(&[0.3, 1.0, 1.0, 2.5]);
        let disk = link * rng.pick(&[0.7, 2.0, 4.0]);
        let mut scenario = scenario.rates(link, origin, disk);
        scenario.indexed = rng.chance(300_000);
        scenario.origin_checksums = rng.chance(800_000);
        scenario.control_latency_us = rng.pick(&[100, 1_000, 20_000]);
        scenario.buffer_bytes = rng.between(8 << 20, 128 << 20);
        scenario.time_max_us = 900_000_000;
        if faults {
            let horizon = (scenario.bound().0 * 1.5e6) as u64 + 1;
            for _ in 0..rng.between(1, 5) {
                let at_us = rng.below(horizon);
                scenario.random_fault(&mut rng, at_us);
            }
            scenario.faults.sort_by_key(|f| f.at_us);
        }
        scenario
    }

    fn random_fault(&mut self, rng: &mut Rng, at_us: u64) {
        let node = rng.below(u64::from(self.nodes)) as u32;
        let named = |faults: &[Fault]| faults.iter().any(|f| f.kind.node() == Some(node));
        let kind = match rng.below(10) {
            _ if named(&self.faults) => return,
            0 | 1 => {
                let back = at_us + rng.between(10_000, 20_000_000);
                self.faults.push(Fault { at_us: back, kind: FaultKind::Returns(node) });
                FaultKind::Dies(node)
            }
            2 => FaultKind::Joins(node),
            3 => FaultKind::Slow(node, rng.between(5, 60) as u32),
            4 => FaultKind::Cut(node, rng.between(100_000, 12_000_000)),
            5 => FaultKind::Corrupts(node, rng.between(1_000, 300_000) as u32),
            6 => FaultKind::OriginCorrupts(rng.below(u64::from(self.layout().pieces().max(1))) as u32, 1),
            7 => FaultKind::OriginThrottles(rng.between(50_000, 3_000_000)),
            8 => FaultKind::OriginBreaks(rng.between(1_000, 200_000) as u32),
            _ => FaultKind::CoordinatorRestarts(rng.between(10_000, 5_000_000)),
        };
        self.faults.push(Fault { at_us, kind });
    }
}
