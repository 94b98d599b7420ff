//! Allocations per piece of two whole agents: one has a version, the other fetches it from the first.
//!
//! Everything is real but the coordinator, which says in one order what a real one says in many: so what the agents
//! allocate per order is the same for a small version and a large one, and the difference between the two is what
//! they allocate per piece. The binary (or test) that calls this installs [`Counting`](crate::counting::Counting).

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures::Stream;
use millstream_agent::config::{IoMode, RdmaMode};
use millstream_proto::v1::agent_message::Body as Said;
use millstream_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use millstream_proto::v1::coordinator_message::Body as Order;
use millstream_proto::v1::{self, AgentMessage, CoordinatorMessage};
use millstream_types::{Crc64, DatasetKind, Digest, Manifest, OriginChecksum, ShardEntry};
use rand::{RngCore, SeedableRng};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::counting::{self, Role};

/// What goes wrong on the way.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A message that never comes is missed after this time.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is moved.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Length of a piece.
    pub piece_bytes: u32,
    /// Pieces of the small version; more than are ever in flight.
    pub small: u32,
    /// Pieces of the large version.
    pub large: u32,
    /// Does the receiver write by blocking calls?
    pub blocking: bool,
    /// Note where the allocations of the large version come from.
    pub trace: bool,
}

/// Allocations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Of the agent that fetched.
    pub receiver: u64,
    /// Of the agent that served.
    pub sender: u64,
    /// Of the threads that write for both; only the receiver writes.
    pub storage: u64,
}

/// What it came to.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// For the small version, all in all.
    pub small: Counts,
    /// For the large version, all in all.
    pub large: Counts,
    /// Pieces by which they differ.
    pub pieces: u32,
    /// Bytes of the receiver's shards on disk, as a check that something was moved.
    pub bytes: u64,
}

impl Outcome {
    /// Allocations per piece, of one of the counts.
    pub fn per_piece(&self, of: impl Fn(&Counts) -> u64) -> f64 {
        (of(&self.large) as f64 - of(&self.small) as f64) / f64::from(self.pieces)
    }
}

type Orders = ReceiverStream<Result<CoordinatorMessage, Status>>;
type Sent = tokio::sync::mpsc::Sender<Result<CoordinatorMessage, Status>>;

/// What the scripted coordinator hears.
enum Heard {
    Hello { node: String, listen: String, orders: Sent },
    Said { node: String, what: Box<Said> },
}

struct Scripted {
    manifests: Arc<Vec<(Digest, Vec<u8>)>>,
    heard: mpsc::Sender<Heard>,
}

#[tonic::async_trait]
impl AgentService for Scripted {
    type SessionStream = Orders;
    type GetManifestStream = Pin<Box<dyn Stream<Item = Result<v1::ManifestChunk, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Orders>, Status> {
        let mut said = request.into_inner();
        let (orders, rx) = tokio::sync::mpsc::channel(16);
        let Some(AgentMessage { body: Some(Said::Hello(hello)) }) = said.message().await? else {
            return Err(Status::invalid_argument("no hello"));
        };
        // Heartbeats as rare as they may be: they are counted by time, not by pieces.
        let welcome = v1::Welcome { coordinator: "bench".into(), heartbeat_ms: 60_000, version: "0".into() };
        let _ = orders.send(Ok(CoordinatorMessage { body: Some(Order::Welcome(welcome)) })).await;
        let (node, heard) = (hello.node.clone(), self.heard.clone());
        let _ = heard.send(Heard::Hello { node: hello.node, listen: hello.listen, orders });
        tokio::spawn(async move {
            while let Ok(Some(message)) = said.message().await {
                let Some(what) = message.body else { continue };
                let _ = heard.send(Heard::Said { node: node.clone(), what: Box::new(what) });
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }

    async fn get_manifest(
        &self,
        request: Request<v1::GetManifestRequest>,
    ) -> Result<Response<Self::GetManifestStream>, Status> {
        let digest = request.into_inner().digest;
        let found = self.manifests.iter().find(|(d, _)| d.0[..] == digest[..]);
        let (_, bytes) = found.ok_or_else(|| Status::not_found("no such manifest"))?;
        let chunk = |data: &[u8]| Ok(v1::ManifestChunk { data: data.to_vec() });
        let chunks: Vec<_> = bytes.chunks(1 << 20).map(chunk).collect();
        Ok(Response::new(Box::pin(futures::stream::iter(chunks))))
    }

    async fn want(&self, _: Request<v1::WantRequest>) -> Result<Response<v1::WantReply>, Status> {
        Err(Status::unimplemented("nothing is fetched on demand here"))
    }
}

/// An object in the origin's directory, and the version that is made of it.
fn version(origin: &Path, name: &str, pieces: u32, piece_bytes: u32) -> Result<Manifest, Error> {
    let mut bytes = vec![0; pieces as usize * piece_bytes as usize];
    rand::rngs::StdRng::seed_from_u64(u64::from(pieces)).fill_bytes(&mut bytes);
    std::fs::create_dir_all(origin.join(name))?;
    std::fs::write(origin.join(name).join("shard"), &bytes)?;
    let shard = ShardEntry {
        key: "shard".parse()?,
        len: bytes.len() as u64,
        etag: None,
        version_id: None,
        checksum: Some(OriginChecksum::Crc64Nvme(Crc64::of(&bytes))),
        piece_crcs: Some(bytes.chunks(piece_bytes as usize).map(Crc64::of).collect()),
    };
    let url = format!("file://{}", origin.join(name).display());
    Ok(Manifest::new(format!("{name}@v1").parse()?, DatasetKind::Dataset, url, u64::from(piece_bytes), vec![shard])?)
}

/// An agent in a runtime of its own, whose threads have a role.
struct Agent {
    runtime: tokio::runtime::Runtime,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<Result<(), String>>,
}

impl Agent {
    fn start(role: Role, node: &str, dir: &Path, coordinator: &str, io: IoMode) -> Result<Agent, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .on_thread_start(move || counting::enter(role))
            .enable_all()
            .build()?;
        let mut config = millstream_agent::Config::new(node, dir.join(node));
        config.coordinators = vec![coordinator.to_owned()];
        config.listen = "127.0.0.1:0".into();
        config.http = None;
        config.buffer_bytes = 32 << 20;
        config.io = io;
        config.rdma = RdmaMode::Off;
        config.scrub_bytes_per_s = 0;
        let stop = CancellationToken::new();
        let running = millstream_agent::run(config, stop.clone());
        let ended = runtime.spawn(async move { running.await.map_err(|e| format!("{e:#}")) });
        Ok(Agent { runtime, stop, ended })
    }

    fn stop(self) -> Result<(), Error> {
        self.stop.cancel();
        self.runtime.block_on(self.ended)??;
        Ok(())
    }
}

/// The two agents as the bench sees them.
struct World {
    heard: mpsc::Receiver<Heard>,
    nodes: Vec<(String, String, Sent)>,
}

impl World {
    fn hear(&self) -> Result<Heard, Error> {
        Ok(self.heard.recv_timeout(PATIENCE)?)
    }

    /// Waits until both agents are there.
    fn gather(&mut self, nodes: usize) -> Result<(), Error> {
        while self.nodes.len() < nodes {
            if let Heard::Hello { node, listen, orders } = self.hear()? {
                self.nodes.push((node, listen, orders));
            }
        }
        Ok(())
    }

    fn node(&self, name: &str) -> Result<&(String, String, Sent), Error> {
        self.nodes.iter().find(|(node, ..)| node == name).ok_or_else(|| format!("no node {name}").into())
    }

    fn order(&self, name: &str, order: Order) -> Result<(), Error> {
        Ok(self.node(name)?.2.blocking_send(Ok(CoordinatorMessage { body: Some(order) }))?)
    }

    /// Waits until the node says what is waited for.
    fn until(&self, name: &str, done: impl Fn(&Said) -> bool) -> Result<(), Error> {
        loop {
            let Heard::Said { node, what } = self.hear()? else { continue };
            if node == name && done(&what) {
                return Ok(());
            }
            if matches!(*what, Said::Failed(_) | Said::Storage(_) | Said::Problem(_)) {
                return Err(format!("{node}: {what:?}").into());
            }
        }
    }

    /// Has a node fetch a whole version in one order.
    fn fetch(&self, name: &str, number: u32, manifest: &Manifest, from: v1::source::From) -> Result<Counts, Error> {
        let attach = v1::Attach {
            dataset: number,
            digest: manifest.digest().0.to_vec(),
            name: manifest.name().to_string(),
            wanted: true,
            wanted_bytes: 0,
            pinned: false,
        };
        self.order(name, Order::Attach(attach))?;
        self.until(name, |said| matches!(said, Said::Inventory(i) if i.dataset == number))?;
        let before = counts();
        let assign = v1::Assign {
            assignment: u64::from(number),
            dataset: number,
            first: 0,
            pieces: manifest.layout().pieces(),
            source: Some(v1::Source { from: Some(from) }),
            alternates: Vec::new(),
            lease_ms: 0,
            priority: 0,
        };
        self.order(name, Order::Assign(assign))?;
        // All pieces are written and journaled. What comes now is the shard's, and takes the disk's time.
        self.until(name, |said| matches!(said, Said::Done(d) if d.assignment == u64::from(number)))?;
        let after = counts();
        self.until(name, |said| matches!(said, Said::Sealed(s) if s.dataset == number))?;
        Ok(Counts {
            receiver: after.receiver - before.receiver,
            sender: after.sender - before.sender,
            storage: after.storage - before.storage,
        })
    }
}

fn counts() -> Counts {
    Counts {
        receiver: counting::count(Role::Receiver),
        sender: counting::count(Role::Sender),
        storage: counting::count(Role::Storage),
    }
}

/// Moves both versions and counts.
///
/// # Errors
/// Whatever went wrong on the way.
pub fn measure(setup: Setup) -> Result<Outcome, Error> {
    counting::enter(Role::Harness);
    let dir = tempfile::tempdir()?;
    let origin = dir.path().join("origin");
    // The first warms up: connections, buffers, tasks.
    let sizes = [("warm", setup.small), ("small", setup.small), ("large", setup.large)];
    let versions: Vec<Manifest> = sizes
        .iter()
        .map(|(name, pieces)| version(&origin, name, *pieces, setup.piece_bytes))
        .collect::<Result<_, _>>()?;
    let encoded = versions.iter().map(|m| Ok((m.digest(), millstream_proto::manifest::encode(m, None)?)));
    let manifests = Arc::new(encoded.collect::<Result<Vec<_>, Error>>()?);

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(|| counting::enter(Role::Harness))
        .enable_all()
        .build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let coordinator = format!("http://{}", listener.local_addr()?);
    let (heard_tx, heard) = mpsc::channel();
    let service = AgentServiceServer::new(Scripted { manifests, heard: heard_tx });
    runtime.spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );

    let io = if setup.blocking { IoMode::Blocking } else { IoMode::Auto };
    let sender = Agent::start(Role::Sender, "sender", dir.path(), &coordinator, io)?;
    let receiver = Agent::start(Role::Receiver, "receiver", dir.path(), &coordinator, io)?;
    let mut world = World { heard, nodes: Vec::new() };
    world.gather(2)?;
    let peer = v1::PeerSource { node: "sender".into(), address: world.node("sender")?.1.clone() };
    let mut counted = Vec::new();
    for (number, manifest) in (1..).zip(&versions) {
        world.fetch("sender", number, manifest, v1::source::From::Origin(true))?;
        // Past the page cache on its way to the disk: now as it is on a node whose trainers read it.
        let file = dir.path().join("sender/datasets").join(manifest.name().to_string()).join("shard");
        std::io::copy(&mut std::fs::File::open(file)?, &mut std::io::sink())?;
        counting::trace(setup.trace && number == 3);
        counted.push(world.fetch("receiver", number, manifest, v1::source::From::Peer(peer.clone()))?);
        counting::trace(false);
    }
    let shard = dir.path().join("receiver/datasets/large@v1/shard");
    let bytes = std::fs::metadata(shard)?.len();
    receiver.stop()?;
    sender.stop()?;
    let [_, small, large] = counted[..] else { return Err("three versions were moved".into()) };
    Ok(Outcome { small, large, pieces: setup.large - setup.small, bytes })
}
