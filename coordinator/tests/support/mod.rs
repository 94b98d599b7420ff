//! A coordinator in this process, and agents that are played by the test.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use millstream_coordinator::{Bound, Config, run};
use millstream_proto::v1::agent_message::Body;
use millstream_proto::v1::agent_service_client::AgentServiceClient;
use millstream_proto::v1::client_service_client::ClientServiceClient;
use millstream_proto::v1::coordinator_message::Body as Order;
use millstream_proto::v1::{self, AgentMessage};
use millstream_proto::{convert, manifest};
use millstream_types::{Crc64, Digest, Manifest, RunSet};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Nothing here takes this long; a test that hangs fails instead.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

pub struct Coordinator {
    pub bound: Bound,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

pub fn config(state_dir: &Path) -> Config {
    Config {
        grpc: "127.0.0.1:0".parse().unwrap(),
        http: "127.0.0.1:0".parse().unwrap(),
        state_dir: state_dir.to_owned(),
        id: Some("test".into()),
        // The agents here send no heartbeats, and the machine may be slow.
        heartbeat_ms: 60_000,
        node_timeout_ms: 600_000,
        ..Config::default()
    }
}

impl Coordinator {
    pub async fn start(config: Config) -> Coordinator {
        let shutdown = CancellationToken::new();
        let (ready, bound) = oneshot::channel();
        let task = tokio::spawn(run(config, shutdown.clone(), Some(ready)));
        match soon(bound).await {
            Ok(bound) => Coordinator { bound, shutdown, task },
            Err(_) => panic!("it did not start: {:?}", task.await),
        }
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        soon(self.task).await.unwrap().unwrap();
    }

    pub async fn channel(&self) -> Channel {
        let url = format!("http://{}", self.bound.grpc);
        soon(Channel::from_shared(url).unwrap().connect()).await.unwrap()
    }

    pub async fn client(&self) -> ClientServiceClient<Channel> {
        ClientServiceClient::new(self.channel().await)
    }

    /// A GET, as status and body. Reads to the end of the connection.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = raw(self.bound.http, request.as_bytes()).await;
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, body.to_owned())
    }

    pub async fn status(&self) -> serde_json::Value {
        let (code, body) = self.get("/api/v1/status").await;
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

/// Sends bytes, and reads until the other side closes.
pub async fn raw(to: std::net::SocketAddr, bytes: &[u8]) -> Vec<u8> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = soon(tokio::net::TcpStream::connect(to)).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut out = Vec::new();
    let _ = soon(stream.read_to_end(&mut out)).await;
    out
}

pub fn code(status: &Status) -> &str {
    status.metadata().get("millstream-code").map_or("none", |v| v.to_str().unwrap())
}

/// Adds a dataset and returns the last message.
pub async fn add(
    client: &mut ClientServiceClient<Channel>,
    name: &str,
    version: &str,
    dir: &Path,
) -> Result<v1::AddDatasetProgress, Status> {
    let request = v1::AddDatasetRequest {
        name: name.into(),
        version: version.into(),
        url: format!("file://{}", dir.display()),
        ..Default::default()
    };
    let mut steps = soon(client.add_dataset(request)).await?.into_inner();
    let mut last = None;
    while let Some(step) = soon(steps.message()).await? {
        last = Some(step);
    }
    Ok(last.expect("a last step"))
}

pub async fn stage(
    client: &mut ClientServiceClient<Channel>,
    dataset: &str,
    nodes: &str,
) -> Result<v1::StageReply, Status> {
    let request =
        v1::StageRequest { dataset: dataset.into(), nodes: nodes.into(), placement: "replicate".into(), priority: 0 };
    Ok(soon(client.stage(request)).await?.into_inner())
}

/// Waits to the end: the last step.
pub async fn wait(
    client: &mut ClientServiceClient<Channel>,
    dataset: &str,
    nodes: &str,
    timeout_ms: u64,
) -> Result<v1::WaitProgress, Status> {
    let request = v1::WaitRequest { dataset: dataset.into(), nodes: nodes.into(), timeout_ms };
    let mut steps = soon(client.wait(request)).await?.into_inner();
    let mut last = None;
    while let Some(step) = soon(steps.message()).await? {
        last = Some(step);
    }
    Ok(last.expect("a last step"))
}

/// A shard file of pseudo-random bytes.
pub fn shard(dir: &Path, key: &str, len: usize, seed: u64) {
    let mut x = seed | 1;
    let bytes: Vec<u8> = (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect();
    let path = dir.join(key);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

pub fn hello(node: &str) -> v1::Hello {
    v1::Hello {
        protocol: 1,
        node: node.into(),
        agent_version: "0.1.0".into(),
        listen: format!("{node}.example:7072"),
        transports: vec!["tcp".into()],
        io: "blocking".into(),
        io_reason: "a test".into(),
        capacity_bytes: 1 << 40,
        boot_id: 1,
        ..Default::default()
    }
}

/// What an agent has of a version.
pub struct Held {
    pub digest: Digest,
    pub manifest: Manifest,
    pub pieces: RunSet,
    pub sealed: RunSet,
    /// Pieces whose checksum it was told, with the manifest or since.
    pub known: RunSet,
}

/// An agent whose session is open.
pub struct Agent {
    pub name: String,
    channel: Channel,
    out: mpsc::Sender<AgentMessage>,
    orders: Streaming<v1::CoordinatorMessage>,
    queue: std::collections::VecDeque<Order>,
    /// By the coordinator's number.
    pub held: BTreeMap<u32, Held>,
    /// Carried over from before: pieces and sealed shards by digest.
    pub disk: BTreeMap<Digest, (RunSet, RunSet)>,
    /// Orders for pieces whose checksums it was not told yet.
    waiting: Vec<v1::Assign>,
    /// Assignments that read from the origin, and others.
    pub origin_pieces: BTreeSet<u32>,
    pub peer_sources: BTreeSet<String>,
}

impl Agent {
    /// Opens a session; the first order that comes.
    pub async fn connect(coordinator: &Coordinator, hello: v1::Hello) -> (Agent, Option<Order>) {
        let channel = coordinator.channel().await;
        let (out, rx) = mpsc::channel(1000);
        let name = hello.node.clone();
        let first = AgentMessage { body: Some(Body::Hello(hello)) };
        out.send(first).await.unwrap();
        let session = AgentServiceClient::new(channel.clone()).session(ReceiverStream::new(rx)).await;
        let agent = Agent {
            name,
            channel,
            out,
            orders: session.unwrap().into_inner(),
            queue: Default::default(),
            held: BTreeMap::new(),
            disk: BTreeMap::new(),
            waiting: Vec::new(),
            origin_pieces: BTreeSet::new(),
            peer_sources: BTreeSet::new(),
        };
        let mut agent = agent;
        let first = agent.next().await;
        (agent, first)
    }

    pub async fn join(coordinator: &Coordinator, node: &str) -> Agent {
        let (agent, first) = Agent::connect(coordinator, hello(node)).await;
        assert!(matches!(first, Some(Order::Welcome(_))), "{first:?}");
        agent
    }

    /// The next order; `None` when the session ended.
    pub async fn next(&mut self) -> Option<Order> {
        loop {
            if let Some(order) = self.queue.pop_front() {
                return Some(order);
            }
            match soon(self.orders.message()).await {
                Ok(Some(v1::CoordinatorMessage { body: Some(Order::Batch(batch)) })) => {
                    self.queue.extend(batch.messages.into_iter().filter_map(|m| m.body));
                }
                Ok(Some(message)) => self.queue.extend(message.body),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    pub async fn say(&self, body: Body) {
        self.out.send(AgentMessage { body: Some(body) }).await.unwrap();
    }

    /// Asks for shards, as an agent does for its readers.
    pub async fn want(&self, request: v1::WantRequest) -> Result<v1::WantReply, Status> {
        Ok(soon(AgentServiceClient::new(self.channel.clone()).want(request)).await?.into_inner())
    }

    pub async fn manifest(&self, digest: &[u8]) -> Manifest {
        let request = v1::GetManifestRequest { digest: digest.to_vec(), with_checksums: true };
        let mut chunks =
            soon(AgentServiceClient::new(self.channel.clone()).get_manifest(request)).await.unwrap().into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = soon(chunks.message()).await.unwrap() {
            bytes.extend(chunk.data);
        }
        manifest::decode(&bytes).unwrap()
    }

    async fn attach(&mut self, attach: &v1::Attach) {
        let manifest = self.manifest(&attach.digest).await;
        let digest = manifest.digest();
        let (pieces, sealed) = match self.held.get(&attach.dataset) {
            Some(held) => (held.pieces.clone(), held.sealed.clone()),
            None => self.disk.get(&digest).cloned().unwrap_or_default(),
        };
        let layout = manifest.layout();
        let listed = manifest.shards().iter().enumerate().filter(|(_, s)| s.piece_crcs.is_some());
        let known = RunSet::from_runs(listed.map(|(shard, _)| layout.shard_pieces(shard as u32)));
        self.say(Body::Inventory(v1::Inventory {
            dataset: attach.dataset,
            digest: attach.digest.clone(),
            pieces: Some(convert::set_to_runs(&pieces)),
            sealed_shards: Some(convert::set_to_runs(&sealed)),
            origin_read: Vec::new(),
        }))
        .await;
        self.held.insert(attach.dataset, Held { digest, manifest, pieces, sealed, known });
    }

    async fn fetch(&mut self, assign: &v1::Assign) {
        let held = self.held.get_mut(&assign.dataset).expect("attached before it is assigned");
        let range = assign.first..assign.first + assign.pieces;
        let source = assign.source.clone().unwrap();
        let mut crcs = Vec::new();
        match source.from.as_ref().unwrap() {
            v1::source::From::Origin(_) => {
                for piece in range.clone() {
                    assert!(self.origin_pieces.insert(piece), "piece {piece} read twice");
                    held.known.insert(piece);
                    crcs.push(crc_at_origin(&held.manifest, piece).0);
                }
            }
            // Nothing from a peer is written before it is known what it should be.
            v1::source::From::Peer(_) if !held.known.contains_range(range.clone()) => {
                self.waiting.push(assign.clone());
                return;
            }
            v1::source::From::Peer(peer) => {
                assert!(peer.address.ends_with(":7072"), "{peer:?}");
                self.peer_sources.insert(peer.node.clone());
            }
        }
        held.pieces.insert_range(range.clone());
        let layout = held.manifest.layout();
        let mut sealed = RunSet::new();
        for (shard, _) in layout.split_by_shard(range.clone()) {
            if held.pieces.contains_range(layout.shard_pieces(shard)) {
                sealed.insert(shard);
            }
        }
        held.sealed.union_with(&sealed);
        let bytes = layout.range_bytes(range);
        let dataset = assign.dataset;
        let mut messages = Vec::new();
        if !crcs.is_empty() {
            messages.push(Body::Checksums(v1::PieceChecksums { dataset, first: assign.first, crcs }));
        }
        messages.push(Body::Done(v1::AssignmentDone {
            assignment: assign.assignment,
            bytes,
            elapsed_us: 1000,
            source: Some(source),
        }));
        if !sealed.is_empty() {
            messages.push(Body::Sealed(v1::ShardsSealed { dataset, shards: Some(convert::set_to_runs(&sealed)) }));
        }
        let messages = messages.into_iter().map(|body| AgentMessage { body: Some(body) }).collect();
        self.say(Body::Batch(v1::Batch { messages })).await;
    }

    /// Obeys until it holds `shards` sealed shards of every version that it was given.
    pub async fn obey_until_sealed(&mut self, shards: u64) {
        while self.held.is_empty() || self.held.values().any(|h| h.sealed.len() < shards) {
            self.obey_one().await;
        }
    }

    /// Obeys until the session ends or the task is dropped.
    pub async fn obey(&mut self) {
        while self.obey_one().await {}
    }

    /// One order; false at the end of the session.
    pub async fn obey_one(&mut self) -> bool {
        let Some(order) = self.next().await else { return false };
        match order {
            Order::Attach(attach) => self.attach(&attach).await,
            Order::Assign(assign) => self.fetch(&assign).await,
            Order::Checksums(checksums) => {
                let held = self.held.get_mut(&checksums.dataset).expect("attached before");
                held.known.insert_range(checksums.first..checksums.first + checksums.crcs.len() as u32);
                for waiting in std::mem::take(&mut self.waiting) {
                    self.fetch(&waiting).await;
                }
            }
            Order::Detach(detach) => {
                let held = self.held.remove(&detach.dataset);
                let bytes = held.map_or(0, |h| h.manifest.layout().bytes());
                self.say(Body::Evicted(v1::Evicted { dataset: detach.dataset, bytes, refused: String::new() })).await;
            }
            Order::Verify(verify) => {
                let held = &self.held[&verify.dataset];
                self.say(Body::Verified(v1::VerifyReport {
                    request: verify.request,
                    dataset: verify.dataset,
                    shards_checked: held.sealed.len() as u32,
                    bytes_checked: held.manifest.layout().bytes(),
                    done: true,
                    ..Default::default()
                }))
                .await;
            }
            _ => {}
        }
        true
    }

    /// What stays when the process ends.
    pub fn into_disk(self) -> BTreeMap<Digest, (RunSet, RunSet)> {
        self.held.into_values().map(|h| (h.digest, (h.pieces, h.sealed))).collect()
    }
}

fn crc_at_origin(manifest: &Manifest, piece: u32) -> Crc64 {
    let place = manifest.layout().place(piece);
    let dir = manifest.origin_url().strip_prefix("file://").unwrap();
    let bytes = std::fs::read(Path::new(dir).join(manifest.shards()[place.shard as usize].key.as_str())).unwrap();
    let at = place.offset as usize;
    Crc64::of(&bytes[at..at + place.len as usize])
}
