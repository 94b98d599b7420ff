//! The RDMA carrier between two agents' halves, over soft-RoCE: `make test-rdma` runs this in a virtual machine that
//! has `rxe0`.
#![allow(clippy::unwrap_used)] // a panic here is a failed test

use std::sync::Arc;
use std::time::{Duration, Instant};

use millstream_agent::buffers::Arena;
use millstream_agent::config::RdmaMode;
use millstream_agent::counters::Counters;
use millstream_agent::piece::Unverified;
use millstream_agent::transport::faulty::FaultySource;
use millstream_agent::transport::rdma::{Rdma, RdmaConfig};
use millstream_agent::transport::select::SelectTransport;
use millstream_agent::transport::tcp::{ServerConfig, TcpConfig, TcpTransport};
use millstream_agent::transport::{Carrier, FetchError, PieceRequest, PieceSource, Transport};
use millstream_agent_core::wire::{Features, Frame, QueuePair, Refusal, RemoteSlot, StatusCode, Trouble};
use millstream_rdma::SEGMENT_BYTES;
use millstream_types::Crc64;
use tokio_util::sync::CancellationToken;

mod transport_support;
use transport_support::{LONG, RawPeer, Server, TestSource, ask, eventually, piece_bytes, raw_listener};

const PIECE: u32 = 4 << 20;

fn config(name: &str) -> RdmaConfig {
    let mut config = RdmaConfig::new(name, RdmaMode::Auto);
    // A peer that is gone is noticed quickly: 67 ms, 3 tries.
    config.options.ack_timeout = 14;
    config.options.retries = 3;
    config
}

async fn serve(source: Arc<dyn PieceSource>, arena: Arc<Arena>) -> (Server, Rdma) {
    serve_with(config("server"), source, arena).await
}

async fn serve_with(config: RdmaConfig, source: Arc<dyn PieceSource>, arena: Arc<Arena>) -> (Server, Rdma) {
    let rdma = Rdma::start(config, arena, CancellationToken::new()).await.unwrap();
    assert_eq!(rdma.lack(), Ok(()));
    let mut server = ServerConfig::new("server");
    server.takeover = Some(Arc::new(rdma.clone()));
    (Server::start_with(source, server).await, rdma)
}

struct Asking {
    select: SelectTransport,
    rdma: Rdma,
    arena: Arc<Arena>,
    counters: Arc<Counters>,
}

impl Asking {
    async fn new() -> Asking {
        Asking::with(config("client")).await
    }

    async fn with(config: RdmaConfig) -> Asking {
        let arena = Arena::new(64 << 20).unwrap();
        let counters = Arc::new(Counters::default());
        let rdma = Rdma::start(config, arena.clone(), CancellationToken::new()).await.unwrap();
        let tcp = TcpTransport::new(TcpConfig::new("client"));
        let select = SelectTransport::new(tcp, Some(rdma.clone()), arena.clone(), counters.clone());
        Asking { select, rdma, arena, counters }
    }

    async fn fetch(&self, peer: &str, piece: u32, len: u32) -> Result<Unverified, FetchError> {
        self.select.fetch(peer, ask(piece, len), self.arena.slot(len as usize).await, LONG).await
    }

    async fn fetch_right(&self, peer: &str, piece: u32, len: u32, carrier: Carrier) {
        let fetched = self.fetch(peer, piece, len).await.unwrap();
        assert_eq!(fetched.carrier(), carrier, "{:?}", self.counters.fallbacks());
        let bytes = piece_bytes(piece, len);
        assert!(fetched.verify(Crc64::of(&bytes)).unwrap().bytes() == bytes);
    }

    async fn all_slots_back(&self) {
        let arena = &self.arena;
        eventually(|| arena.free_bytes() == arena.bytes(), || format!("slots lost: {arena:?}")).await;
    }

    fn reasons(&self) -> Vec<(String, u64)> {
        self.counters.fallbacks().into_iter().map(|((_, _, reason), n)| (reason, n)).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_travel_from_memory_and_from_files() {
    for (len, from_file) in [(PIECE, false), (70_001, false), (PIECE, true), (65_536, true)] {
        let source = if from_file { TestSource::file(6, len) } else { TestSource::memory(6, len) };
        let (server, serving) = serve(source.clone(), source.arena.clone()).await;
        let asking = Asking::new().await;
        let all = (0..6).map(|piece| asking.fetch_right(&server.address, piece, len, Carrier::Rdma));
        futures::future::join_all(all).await;
        assert_eq!(asking.reasons(), vec![]);
        assert_eq!(serving.stats().copied_bytes(), 0, "nothing is copied between memory and the device");
        assert_eq!(asking.rdma.stats().received_bytes(), 6 * u64::from(len));
        assert_eq!(asking.rdma.stats().links_opened(), 1);
        asking.all_slots_back().await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_no_is_an_answer_not_a_fallback() {
    let source = TestSource::memory(2, PIECE);
    let (server, _serving) = serve(source.clone(), source.arena.clone()).await;
    let asking = Asking::new().await;
    assert!(matches!(asking.fetch(&server.address, 9, PIECE).await, Err(FetchError::NotHave { .. })));
    assert!(matches!(asking.fetch(&server.address, 1, 70_000).await, Err(FetchError::Protocol { .. })));
    asking.fetch_right(&server.address, 1, PIECE, Carrier::Rdma).await;
    assert_eq!(asking.reasons(), vec![]);
    asking.all_slots_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_waits_for_any_more_gives_its_slot_back() {
    let source = TestSource::memory(4, PIECE);
    source.hold([0, 1]);
    let (server, _serving) = serve(source.clone(), source.arena.clone()).await;
    let asking = Asking::new().await;
    let slot = asking.arena.slot(PIECE as usize).await;
    let late = asking.select.fetch(&server.address, ask(0, PIECE), slot, Duration::from_secs(2)).await;
    assert!(matches!(late, Err(FetchError::NotYet { .. })), "{late:?}");
    {
        let dropped = asking.fetch(&server.address, 1, PIECE);
        let source = source.clone();
        let opened = async move { eventually(|| source.opened() >= 2, || "asked".into()).await };
        tokio::select! {
            _ = dropped => panic!("it is held back"),
            () = opened => {}
        }
    }
    asking.all_slots_back().await;
    asking.fetch_right(&server.address, 2, PIECE, Carrier::Rdma).await;
    assert_eq!(asking.reasons(), vec![]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_bytes_are_seen_by_their_sum() {
    let source = TestSource::memory(3, PIECE);
    let faulty = Arc::new(FaultySource::from_spec("flip@2", source.clone()).unwrap());
    let (server, serving) = serve(faulty, source.arena.clone()).await;
    let asking = Asking::new().await;
    asking.fetch_right(&server.address, 0, PIECE, Carrier::Rdma).await;
    let bad = asking.fetch(&server.address, 1, PIECE).await.unwrap();
    assert!(bad.verify(Crc64::of(&piece_bytes(1, PIECE))).is_err(), "one bit is wrong");
    println!("copied to be sent: {}", serving.stats().copied_bytes());
    asking.all_slots_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_rdma_is_asked_over_tcp_and_counted() {
    let source = TestSource::memory(3, PIECE);
    let server = Server::start(source).await;
    let asking = Asking::new().await;
    for piece in 0..3 {
        asking.fetch_right(&server.address, piece, PIECE, Carrier::Tcp).await;
    }
    assert_eq!(asking.reasons(), vec![("peer-without-rdma".to_owned(), 3)]);
    assert_eq!(asking.select.peers()[&server.address].tcp, 3 * u64::from(PIECE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_in_the_middle_gives_every_slot_back() {
    let source = TestSource::memory(8, PIECE);
    source.hold(4..8);
    let (server, serving) = serve(source.clone(), source.arena.clone()).await;
    let asking = Arc::new(Asking::new().await);
    let peer = server.address.clone();
    let all: Vec<_> = (0..8)
        .map(|piece| {
            let (asking, peer) = (asking.clone(), peer.clone());
            tokio::spawn(async move { asking.fetch(&peer, piece, PIECE).await.is_ok() })
        })
        .collect();
    eventually(|| asking.rdma.stats().received_bytes() > 0, || "bytes flow".into()).await;
    server.task.abort();
    drop((server, serving));
    for one in all {
        let _ = one.await.unwrap();
    }
    asking.all_slots_back().await;
    println!("fallbacks: {:?}", asking.reasons());
}

/// Run by [`a_source_killed_with_writes_in_flight_gives_every_slot_back`], and killed by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by another test"]
async fn child_serves_pieces() {
    let source = TestSource::memory(8, PIECE);
    let (server, _serving) = serve(source.clone(), source.arena.clone()).await;
    println!("address={}", server.address);
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_killed_with_writes_in_flight_gives_every_slot_back() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    // A kill may fall between two pieces; one of a few does not.
    for attempt in 1..=6 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "child_serves_pieces", "--nocapture"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.find_map(|line| Some(line.unwrap().split_once("address=")?.1.to_owned())).unwrap();
        let asking = Arc::new(Asking::new().await);
        let all: Vec<_> = (0..8)
            .map(|piece| {
                let (asking, address) = (asking.clone(), address.clone());
                tokio::spawn(async move { asking.fetch(&address, piece, PIECE).await.is_ok() })
            })
            .collect();
        let segments = || asking.rdma.device_list()[0].received_bytes;
        let pieces = || asking.rdma.stats().received_bytes();
        eventually(|| segments() > pieces() + u64::from(SEGMENT_BYTES), || "segments of a piece have come".into())
            .await;
        child.kill().unwrap();
        child.wait().unwrap();
        for one in all {
            let _ = one.await.unwrap();
        }
        asking.all_slots_back().await;
        let partial = segments() - pieces();
        println!("killed, attempt {attempt}: {partial} bytes of unfinished pieces; fallbacks {:?}", asking.reasons());
        assert!(asking.reasons().iter().any(|(reason, _)| reason == "peer-closed"), "{:?}", asking.reasons());
        if partial > 0 {
            return;
        }
    }
    panic!("no kill fell into the writes of a piece");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_link_is_closed_and_opened_again_when_it_is_needed() {
    let source = TestSource::memory(2, PIECE);
    let (server, _serving) = serve(source.clone(), source.arena.clone()).await;
    let asking = Asking::with(RdmaConfig { idle_close: Duration::from_millis(100), ..config("client") }).await;
    asking.fetch_right(&server.address, 0, PIECE, Carrier::Rdma).await;
    eventually(|| asking.rdma.device_list()[0].queue_pairs == 0, || "it is closed".into()).await;
    asking.fetch_right(&server.address, 1, PIECE, Carrier::Rdma).await;
    assert_eq!((asking.rdma.stats().links_opened(), asking.reasons()), (2, vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_pairs_are_bounded_and_who_gets_none_is_told() {
    let source = TestSource::memory(2, PIECE);
    let mut bounded = config("server");
    bounded.options.queues_max = 1;
    let (server, _serving) = serve_with(bounded, source.clone(), source.arena.clone()).await;
    let (first, second) = (Asking::new().await, Asking::new().await);
    first.fetch_right(&server.address, 0, PIECE, Carrier::Rdma).await;
    second.fetch_right(&server.address, 1, PIECE, Carrier::Tcp).await;
    assert_eq!(second.reasons(), vec![("peer-refused".to_owned(), 1)]);
    let mut bounded = config("client");
    bounded.options.queues_max = 0;
    let third = Asking::with(bounded).await;
    third.fetch_right(&server.address, 1, PIECE, Carrier::Tcp).await;
    assert_eq!(third.reasons(), vec![("queue-pairs-used-up".to_owned(), 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_says_of_its_queue_pair_is_the_reason() {
    for trouble in Trouble::ALL {
        let (listener, address) = raw_listener().await;
        let asking = Asking::new().await;
        let peer = async {
            let mut peer = RawPeer::accept_with(&listener, Features::RDMA, None).await;
            let Some(Frame::QueuePair(pair)) = peer.frame().await else { panic!("a queue pair") };
            peer.send(Frame::QueuePair(pair)).await;
            let Some(Frame::WriteHere { .. }) = peer.frame().await else { panic!("a request") };
            peer.send(Frame::Broken { trouble }).await;
            assert_eq!(peer.frame().await, None, "that is the end");
            // The piece is asked for again, over TCP.
            let mut peer = RawPeer::accept(&listener).await;
            let (id, ..) = peer.request().await;
            peer.send(Frame::Status { id, code: StatusCode::NotHave }).await;
            peer
        };
        let (answer, _peer) = tokio::join!(asking.fetch(&address, 0, PIECE), peer);
        assert!(matches!(answer, Err(FetchError::NotHave { .. })), "{answer:?}");
        assert_eq!(asking.reasons(), vec![(trouble.reason().to_owned(), 1)]);
        asking.all_slots_back().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_is_named() {
    let (listener, address) = raw_listener().await;
    let asking = Asking::new().await;
    let peer = async {
        drop(RawPeer::accept_with(&listener, Features::NONE, Some(Refusal::Version)).await);
        // Over TCP it is no better.
        drop(RawPeer::accept_with(&listener, Features::NONE, Some(Refusal::Version)).await);
    };
    let (answer, ()) = tokio::join!(asking.fetch(&address, 0, PIECE), peer);
    assert!(answer.is_err());
    assert_eq!(asking.reasons(), vec![("version-mismatch".to_owned(), 1)]);
    asking.all_slots_back().await;
}

/// A requester whose queue pair does not exist: each write to it fails, and says so; after some in a row the rail is
/// paused, and opened again after its cooldown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_rail_is_named_and_opened_again() {
    let source = TestSource::memory(2, PIECE);
    let (server, serving) = serve(source.clone(), source.arena.clone()).await;
    let gid = millstream_rdma::Rail::open("rxe0", config("x").options).unwrap().gid().gid.0;
    for n in 0..millstream_rdma::RAIL_FAULTS_MAX {
        assert_eq!(serving.lack(), Ok(()), "after {n} faults");
        let mut peer = RawPeer::connect_with(&server.address, Features::RDMA).await;
        // Nobody has this number.
        let nobody = QueuePair { number: 0x00ff_fff0, psn: 1, gid, lid: 0, mtu_code: 5, infiniband: false };
        peer.send(Frame::QueuePair(nobody)).await;
        let Some(Frame::QueuePair(_)) = peer.frame().await else { panic!("a queue pair") };
        let place = RemoteSlot { address: 4096, key: 1, tag: 1 };
        let PieceRequest { digest, piece, len } = ask(0, PIECE);
        peer.send(Frame::WriteHere { id: 1, digest, piece, len, deadline_ms: 60_000, place }).await;
        assert_eq!(peer.frame().await, Some(Frame::Broken { trouble: Trouble::RetryExceeded }));
    }
    eventually(|| serving.lack() == Err(Some("rail-paused")), || format!("{:?}", serving.lack())).await;
    let asking = Asking::new().await;
    asking.fetch_right(&server.address, 0, PIECE, Carrier::Tcp).await;
    assert_eq!(asking.reasons(), vec![("peer-without-rdma".to_owned(), 1)], "meanwhile");
    eventually(|| serving.lack() == Ok(()), || "it is opened again".into()).await;
    let asking = Asking::new().await;
    asking.fetch_right(&server.address, 0, PIECE, Carrier::Rdma).await;
}

/// Not a test of speed: it prints what `docs/rdma.md` quotes; `scripts/rdma-guest` runs it between runs of
/// `ib_write_bw`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goodput_is_printed() {
    use futures::StreamExt;
    let (pieces, fetches, at_once) = (8u32, 64u32, 8);
    let source = TestSource::memory(pieces, PIECE);
    let (server, serving) = serve(source.clone(), source.arena.clone()).await;
    let asking = Asking::new().await;
    asking.fetch_right(&server.address, 0, PIECE, Carrier::Rdma).await;
    let sample = source.arena.slot(PIECE as usize).await;
    let start = Instant::now();
    std::hint::black_box(Crc64::of(&sample));
    let sum_rate = f64::from(PIECE) / start.elapsed().as_secs_f64();
    let start = Instant::now();
    let all = futures::stream::iter(0..fetches).map(|n| asking.fetch(&server.address, n % pieces, PIECE));
    let fetched = all.buffer_unordered(at_once).filter(|f| std::future::ready(f.is_ok())).count().await;
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!((fetched, asking.reasons()), (fetches as usize, vec![]));
    let bytes = f64::from(fetches) * f64::from(PIECE);
    println!(
        "goodput_mb_per_s={:.2} bytes={bytes} copied={} sum_seconds={:.2} of {seconds:.2}",
        bytes / seconds / 1e6,
        serving.stats().copied_bytes(),
        bytes / sum_rate
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registering_the_arena_is_timed() {
    let rail = millstream_rdma::Rail::open("rxe0", millstream_rdma::RailOptions::default()).unwrap();
    let arena = Arena::new(512 << 20).unwrap();
    let start = Instant::now();
    arena.populate();
    let populated = Instant::now();
    rail.register(arena).unwrap();
    let (zeroing, took) = ((populated - start).as_secs_f64(), populated.elapsed().as_secs_f64());
    println!("the kernel zeroed 512 MiB in {zeroing:.3} s");
    println!("registered 512 MiB of arena in {took:.3} s: 16 GiB would take {:.2} s", took * 32.0);
}
