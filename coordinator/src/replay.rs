//! A coordinator's page and API over a cluster that is only told of: the simulator's, with thousands of nodes.
//!
//! Purpose: look at, and measure, what people see of clusters that no test machine can carry. The core, the views and
//! the HTTP port are the real ones; no agent, no store of its own beside an empty one. Non-goals: orders (nobody is
//! there to take them).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use millstream_coordinator_core::event::{Event, Source};
use millstream_coordinator_core::{Core, CoreConfig};
use millstream_proto::v1;
use millstream_types::{DatasetId, DatasetKind, DatasetRef, Layout, Manifest, NodeId, StageId, Time};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::driver::state::{Settings, Stage, State, unix_s};
use crate::driver::{DriverHandle, Input};
use crate::http;
use crate::limits::{HTTP_CONNECTIONS_MAX, INPUTS_MAX, INPUTS_PER_ROUND};
use crate::net::Listener;
use crate::nodes::parse_hello;
use crate::store::{EmbeddedStore, StageRecord, StoreHandle, VersionRecord};

/// Between two steps of the replay.
const STEP: Duration = Duration::from_millis(50);
/// Between two reports of the nodes' rates.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// What is replayed, and how.
#[derive(Debug)]
pub struct Replay {
    /// Where the page is served.
    pub http: SocketAddr,
    /// An empty directory for the store.
    pub state_dir: PathBuf,
    /// The settings of the core that was told.
    pub core: CoreConfig,
    /// `name@version` of the one version.
    pub dataset: DatasetRef,
    /// Lengths of its shards.
    pub shards: Vec<u64>,
    /// How many nodes.
    pub nodes: u32,
    /// Seconds of the simulation in a second.
    pub speed: f64,
    /// What the core was told.
    pub told: Receiver<(Time, Option<Event>)>,
}

/// Serves the page until `shutdown`; `ready` is told where.
///
/// # Errors
/// When the port or the directory cannot be used, or the version makes no sense.
pub async fn replay(
    replay: Replay,
    shutdown: CancellationToken,
    ready: oneshot::Sender<SocketAddr>,
) -> anyhow::Result<()> {
    let listener = Listener::bind(replay.http, HTTP_CONNECTIONS_MAX, "http").await?;
    let address = listener.address()?;
    let (store, thread) = StoreHandle::start(EmbeddedStore::open(&replay.state_dir)?)?;
    let state = state(&replay, store.clone())?;
    let (inputs, rx) = mpsc::channel(INPUTS_MAX);
    let driver = DriverHandle::new(inputs);
    let documents = http::Documents::new(driver.clone(), store.clone());
    let serving = tokio::spawn(http::serve(listener, driver, documents, shutdown.clone()));
    let _ = ready.send(address);
    Player::new(state, replay.nodes, replay.speed).play(replay.told, rx, shutdown.clone()).await;
    shutdown.cancel();
    serving.await?;
    store.close().await?;
    let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    Ok(())
}

fn state(replay: &Replay, store: StoreHandle) -> anyhow::Result<State> {
    let settings =
        Settings { id: "replay".into(), heartbeat_ms: 1_000, node_timeout_us: u64::MAX, alarm_hold_us: 60_000_000 };
    let mut state = State::new(settings, Core::new(replay.core.clone()), store);
    let width = replay.shards.len().to_string().len();
    let shards = replay.shards.iter().enumerate().map(|(i, &len)| {
        Ok(millstream_types::ShardEntry {
            key: format!("train/shard-{i:0width$}.tar").parse()?,
            len,
            etag: None,
            version_id: None,
            checksum: None,
            piece_crcs: None,
        })
    });
    let shards = shards.collect::<anyhow::Result<Vec<_>>>()?;
    let piece_len = Layout::piece_len_for(replay.shards.iter().sum());
    let url = "s3://simulated/train/".to_owned();
    let manifest = Manifest::new(replay.dataset.clone(), DatasetKind::Dataset, url, piece_len, shards)?;
    let record = VersionRecord { name: replay.dataset.clone(), sequence: 0, created_unix_s: unix_s(), indexed: true };
    state.datasets.insert(record, Arc::new(manifest));
    for n in 0..replay.nodes {
        let name = format!("n{n}");
        let hello = v1::Hello {
            protocol: millstream_proto::PROTOCOL,
            node: name.clone(),
            agent_version: "simulated".into(),
            listen: format!("{name}.simulated:7072"),
            transports: vec!["tcp".into()],
            io: "uring".into(),
            capacity_bytes: 1 << 50,
            boot_id: 1,
            labels: [("rack".to_owned(), format!("r{}", n / 32))].into(),
            ..Default::default()
        };
        // Nobody reads the other end: nothing is sent to nodes that are only told of.
        let (out, _) = mpsc::channel(1);
        let opened = state.nodes.open(Time::ZERO, parse_hello(&hello)?, out, 0)?;
        anyhow::ensure!(opened.node == NodeId(n), "nodes are numbered in their order");
    }
    Ok(state)
}

/// What a node would have counted.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    origin: u64,
    tcp: u64,
    sent: u64,
    /// Of these, when it last reported.
    reported: (u64, u64),
}

struct Player {
    state: State,
    counted: Vec<Counted>,
    speed: f64,
    /// The simulation's time.
    now: Time,
    reported: Time,
    waiting: Option<(Time, Option<Event>)>,
}

impl Player {
    fn new(state: State, nodes: u32, speed: f64) -> Player {
        let counted = vec![Counted::default(); nodes as usize];
        Player { state, counted, speed, now: Time::ZERO, reported: Time::ZERO, waiting: None }
    }

    async fn play(
        mut self,
        told: Receiver<(Time, Option<Event>)>,
        mut inputs: mpsc::Receiver<Input>,
        shutdown: CancellationToken,
    ) {
        let mut step = tokio::time::interval(STEP);
        step.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last = Instant::now();
        let mut reported = last;
        let mut round = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                taken = inputs.recv_many(&mut round, INPUTS_PER_ROUND) => {
                    if taken == 0 {
                        return;
                    }
                    for input in round.drain(..) {
                        if let Input::Call(call) = input {
                            call(&mut self.state, self.now);
                        }
                    }
                }
                at = step.tick() => {
                    let passed = at.duration_since(last).as_secs_f64() * self.speed;
                    last = at;
                    self.advance(&told, self.now + (passed * 1e6) as u64);
                    if at.duration_since(reported) >= REPORT_EVERY {
                        reported = at;
                        self.report();
                        self.state.observed.hurry();
                        self.state.observe(self.now);
                    }
                }
            }
        }
    }

    /// Everything that was told until `until`; after the end time goes on alone.
    fn advance(&mut self, told: &Receiver<(Time, Option<Event>)>, until: Time) {
        loop {
            let next = match self.waiting.take() {
                Some(next) => next,
                None => match told.try_recv() {
                    Ok(next) => next,
                    // The simulation is behind, or over.
                    Err(TryRecvError::Empty) => return,
                    Err(TryRecvError::Disconnected) => break,
                },
            };
            if next.0 > until {
                self.waiting = Some(next);
                break;
            }
            self.now = next.0;
            match next.1 {
                None => self.state.core.handle_timeout(self.now),
                Some(event) => self.tell(event),
            }
            self.state.take_notes();
        }
        self.now = self.now.max(until);
    }

    fn tell(&mut self, event: Event) {
        match &event {
            Event::AssignmentDone { node, bytes, source, .. } => {
                self.state.observed.links.moved(self.now, *source, *node, *bytes);
                match source {
                    Source::Origin => self.count(*node, |c| c.origin += bytes),
                    Source::Peer(peer) => {
                        self.count(*node, |c| c.tcp += bytes);
                        self.count(*peer, |c| c.sent += bytes);
                    }
                }
            }
            Event::StageRequested { stage, dataset, nodes, .. } => self.staged(*stage, *dataset, nodes),
            Event::Heartbeat { node, .. } => {
                if let Some(known) = self.state.nodes.get_mut(*node) {
                    known.last_seen = self.now;
                }
            }
            _ => {}
        }
        self.state.core.handle_event(self.now, event);
    }

    fn staged(&mut self, stage: StageId, dataset: DatasetId, nodes: &[NodeId]) {
        let record = StageRecord {
            id: stage.0,
            digest: String::new(),
            nodes: self.state.names(nodes),
            spread: None,
            window: false,
            for_jobs: false,
            priority: 0,
            created_unix_s: unix_s(),
        };
        self.state.stages.insert(stage, Stage { record, dataset, nodes: nodes.to_vec(), told_unix_s: unix_s() });
    }

    fn count(&mut self, node: NodeId, count: impl FnOnce(&mut Counted)) {
        if let Some(counted) = self.counted.get_mut(node.0 as usize) {
            count(counted);
        }
    }

    /// What agents would say of their rates in a heartbeat.
    fn report(&mut self) {
        let seconds = (self.now.since(self.reported) as f64 / 1e6).max(1e-6);
        for (n, counted) in self.counted.iter_mut().enumerate() {
            let (received, sent) = (counted.origin + counted.tcp, counted.sent);
            let (before, sent_before) = counted.reported;
            let heartbeat = v1::Heartbeat {
                received_origin_bytes: counted.origin,
                received_tcp_bytes: counted.tcp,
                sent_tcp_bytes: sent,
                in_bytes_per_s: ((received - before) as f64 / seconds) as u64,
                out_bytes_per_s: ((sent - sent_before) as f64 / seconds) as u64,
                used_bytes: received,
                capacity_bytes: 1 << 50,
                ..Default::default()
            };
            counted.reported = (received, sent);
            if let Some(node) = self.state.nodes.get_mut(NodeId(n as u32)) {
                node.take_report(self.now, heartbeat);
            }
        }
        self.reported = self.now;
    }
}
