//! Sources, servers and misbehaving peers for the transport's tests.
#![allow(dead_code)] // each test binary uses its part
#![allow(clippy::unwrap_used)] // a panic here is a failed test

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use millstream_agent::buffers::{Arena, Slot};
use millstream_agent::piece::{Served, Unverified, Verified};
use millstream_agent::transport::tcp::{DrainOutcome, ServerConfig, ServerStats, TcpConfig, TcpTransport, serve};
use millstream_agent::transport::{FetchError, PieceRequest, PieceSource, Transport};
use millstream_agent_core::wire::{Features, Frame, Hello, Refusal, TokenHash};
use millstream_types::{Crc64, Digest};
use rand::{RngCore, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The one version of these tests.
pub const DIGEST: Digest = Digest([7; 32]);
/// Long enough for any machine; no test waits for it unless something hangs.
pub const LONG: Duration = Duration::from_secs(60);

/// The bytes of a piece.
pub fn piece_bytes(piece: u32, len: u32) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    rand::rngs::StdRng::seed_from_u64(u64::from(piece) << 32 | u64::from(len)).fill_bytes(&mut bytes);
    bytes
}

/// A request for a piece of these tests' version.
pub fn ask(piece: u32, len: u32) -> PieceRequest {
    PieceRequest { digest: DIGEST, piece, len }
}

/// Those bytes, verified, in a slot of `arena`.
pub fn verified(arena: &Arc<Arena>, bytes: &[u8]) -> Verified {
    let mut slot = arena.try_slot(bytes.len()).expect("the test's arena is large enough");
    slot[..bytes.len()].copy_from_slice(bytes);
    let crc = Crc64::of(bytes);
    Unverified::sum(slot, bytes.len() as u32).verify(crc).expect("summed just now")
}

/// Serves every piece below `count` of one length; pieces wait until they are released.
pub struct TestSource {
    pub arena: Arc<Arena>,
    len: u32,
    count: u32,
    file: Option<Arc<std::fs::File>>,
    memory: HashMap<u32, Verified>,
    /// Pieces that are held back.
    held: watch::Sender<HashSet<u32>>,
    opened: AtomicUsize,
}

impl TestSource {
    /// From memory.
    pub fn memory(count: u32, len: u32) -> Arc<TestSource> {
        let arena = Arena::new(u64::from(count) * u64::from(len.next_power_of_two()) + (64 << 20)).unwrap();
        let memory = (0..count).map(|p| (p, verified(&arena, &piece_bytes(p, len)))).collect();
        Arc::new(TestSource {
            arena,
            len,
            count,
            file: None,
            memory,
            held: watch::Sender::new(HashSet::new()),
            opened: AtomicUsize::new(0),
        })
    }

    /// From a file.
    pub fn file(count: u32, len: u32) -> Arc<TestSource> {
        let mut file = tempfile::tempfile().unwrap();
        (0..count).for_each(|p| file.write_all(&piece_bytes(p, len)).unwrap());
        let file = Some(Arc::new(file));
        let arena = Arena::new(1 << 20).unwrap();
        Arc::new(TestSource {
            arena,
            len,
            count,
            file,
            memory: HashMap::new(),
            held: watch::Sender::new(HashSet::new()),
            opened: AtomicUsize::new(0),
        })
    }

    /// Holds pieces back until they are released.
    pub fn hold(&self, pieces: impl IntoIterator<Item = u32>) {
        self.held.send_modify(|held| held.extend(pieces));
    }

    /// Lets a piece go.
    pub fn release(&self, piece: u32) {
        self.held.send_modify(|held| {
            held.remove(&piece);
        });
    }

    /// How often a piece was opened.
    pub fn opened(&self) -> usize {
        self.opened.load(Relaxed)
    }

    /// How many requests wait for a piece.
    pub fn waiting(&self) -> usize {
        self.held.receiver_count()
    }
}

#[async_trait]
impl PieceSource for TestSource {
    async fn open(&self, request: PieceRequest, deadline: Duration) -> Option<Served> {
        self.opened.fetch_add(1, Relaxed);
        if request.digest != DIGEST || request.piece >= self.count {
            return None;
        }
        if self.held.borrow().contains(&request.piece) {
            let mut held = self.held.subscribe();
            let released = held.wait_for(|held| !held.contains(&request.piece));
            tokio::time::timeout(deadline, released).await.ok()?.ok()?;
        }
        match &self.file {
            Some(file) => Some(Served::File {
                file: file.clone(),
                offset: u64::from(request.piece) * u64::from(self.len),
                len: self.len,
                crc: Crc64::default(),
            }),
            None => self.memory.get(&request.piece).cloned().map(Served::Memory),
        }
    }
}

/// A server that runs until it is stopped.
pub struct Server {
    pub address: String,
    pub stats: Arc<ServerStats>,
    pub shutdown: CancellationToken,
    pub task: tokio::task::JoinHandle<DrainOutcome>,
}

impl Server {
    pub async fn start(source: Arc<dyn PieceSource>) -> Server {
        Server::start_with(source, ServerConfig::new("server")).await
    }

    pub async fn start_with(source: Arc<dyn PieceSource>, config: ServerConfig) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        let stats = config.stats.clone();
        let task = tokio::spawn(serve(listener, source, config, shutdown.clone()));
        Server { address, stats, shutdown, task }
    }

    pub async fn stop(self) -> DrainOutcome {
        self.shutdown.cancel();
        self.task.await.unwrap()
    }

    /// Waits until so many pieces are counted as sent: the receiver may have the last byte before that.
    pub async fn wait_sent(&self, pieces: u64) {
        eventually(|| self.stats.sent_pieces() == pieces, || format!("{} sent", self.stats.sent_pieces())).await;
    }

    /// How often connections were closed for this reason.
    pub fn closed(&self, reason: &str) -> u64 {
        self.stats.closed().into_iter().find(|(r, _)| *r == reason).map_or(0, |(_, n)| n)
    }

    /// Waits until a connection was closed for this reason.
    pub async fn wait_closed(&self, reason: &str) {
        eventually(|| self.closed(reason) > 0, || format!("{reason}: {:?}", self.stats.closed())).await;
    }
}

/// Polls until `done`; fails after [`LONG`].
pub async fn eventually(mut done: impl FnMut() -> bool, what: impl Fn() -> String) {
    let polled = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    if tokio::time::timeout(LONG, polled).await.is_err() {
        panic!("never happened: {}", what());
    }
}

/// An asking side with its own arena.
pub struct Client {
    pub transport: TcpTransport,
    pub arena: Arc<Arena>,
}

impl Client {
    pub fn new() -> Client {
        Client::with(TcpConfig::new("client"))
    }

    pub fn with(config: TcpConfig) -> Client {
        Client { transport: TcpTransport::new(config), arena: Arena::new(256 << 20).unwrap() }
    }

    pub fn slot(&self, len: u32) -> Slot {
        self.arena.try_slot(len as usize).expect("the test's arena is large enough")
    }

    pub async fn fetch(&self, peer: &str, piece: u32, len: u32) -> Result<Unverified, FetchError> {
        self.fetch_within(peer, piece, len, LONG).await
    }

    pub async fn fetch_within(
        &self,
        peer: &str,
        piece: u32,
        len: u32,
        deadline: Duration,
    ) -> Result<Unverified, FetchError> {
        self.transport.fetch(peer, ask(piece, len), self.slot(len), deadline).await
    }

    /// Waits until every slot is back.
    pub async fn all_slots_back(&self) {
        let arena = &self.arena;
        eventually(|| arena.free_bytes() == arena.bytes(), || format!("slots lost: {arena:?}")).await;
    }
}

/// Fetches and compares the bytes.
pub async fn fetch_right(client: &Client, peer: &str, piece: u32, len: u32) {
    let fetched = client.fetch(peer, piece, len).await.unwrap();
    let bytes = piece_bytes(piece, len);
    let checked = fetched.verify(Crc64::of(&bytes)).unwrap();
    assert_eq!(checked.bytes(), bytes);
}

/// A peer's end of a connection, spoken by hand.
pub struct RawPeer {
    pub stream: TcpStream,
    held: Vec<u8>,
}

impl RawPeer {
    pub fn hello() -> Vec<u8> {
        RawPeer::hello_with(Features::NONE, None)
    }

    pub fn hello_with(features: Features, refusal: Option<Refusal>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let hello =
            Hello { refusal, window: 64, features, token: TokenHash::default(), auth: [0; 32], node: "raw".into() };
        hello.encode(&mut bytes);
        bytes
    }

    /// Connects to a server and is welcomed.
    pub async fn connect(address: &str) -> RawPeer {
        RawPeer::connect_with(address, Features::NONE).await
    }

    /// The same, with something to offer.
    pub async fn connect_with(address: &str, features: Features) -> RawPeer {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&RawPeer::hello_with(features, None)).await.unwrap();
        let mut peer = RawPeer { stream, held: Vec::new() };
        assert_eq!(peer.read_hello().await.refusal, None);
        peer
    }

    /// Accepts a client and welcomes it.
    pub async fn accept(listener: &TcpListener) -> RawPeer {
        RawPeer::accept_with(listener, Features::NONE, None).await
    }

    /// Accepts a client and answers with this.
    pub async fn accept_with(listener: &TcpListener, features: Features, refusal: Option<Refusal>) -> RawPeer {
        let (stream, _) = listener.accept().await.unwrap();
        let mut peer = RawPeer { stream, held: Vec::new() };
        peer.read_hello().await;
        peer.stream.write_all(&RawPeer::hello_with(features, refusal)).await.unwrap();
        peer
    }

    pub async fn read_hello(&mut self) -> Hello {
        loop {
            let mut view = self.held.as_slice();
            if let Some(hello) = Hello::decode(&mut view).unwrap() {
                let taken = self.held.len() - view.len();
                self.held.drain(..taken);
                return hello;
            }
            assert_ne!(self.stream.read_buf(&mut self.held).await.unwrap(), 0, "closed before hello");
        }
    }

    /// The next frame, or `None` when the connection has ended.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            let mut view = self.held.as_slice();
            if let Some(frame) = Frame::decode(&mut view).unwrap() {
                let taken = self.held.len() - view.len();
                self.held.drain(..taken);
                return Some(frame);
            }
            match self.stream.read_buf(&mut self.held).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub async fn bytes(&mut self, len: usize) -> Vec<u8> {
        while self.held.len() < len {
            assert_ne!(self.stream.read_buf(&mut self.held).await.unwrap(), 0, "closed within a piece");
        }
        self.held.drain(..len).collect()
    }

    pub async fn send(&mut self, frame: Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next request's id, piece and length.
    pub async fn request(&mut self) -> (u64, u32, u32) {
        match self.frame().await {
            Some(Frame::Request { id, piece, len, .. }) => (id, piece, len),
            other => panic!("expected a request, got {other:?}"),
        }
    }
}

/// A listener for [`RawPeer::accept`].
pub async fn raw_listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    (listener, address.to_string())
}
