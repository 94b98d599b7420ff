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
use millstream_agent::transport::{Carrier, FetchError, PieceSource, Transport};
use millstream_types::Crc64;
use tokio_util::sync::CancellationToken;

mod transport_support;
use transport_support::{LONG, Server, TestSource, ask, eventually, piece_bytes};

const PIECE: u32 = 4 << 20;

fn config(name: &str) -> RdmaConfig {
    let mut config = RdmaConfig::new(name, RdmaMode::Auto);
    // A peer that is gone is noticed quickly: 67 ms, 3 tries.
    config.options.ack_timeout = 14;
    config.options.retries = 3;
    config
}

async fn serve(source: Arc<dyn PieceSource>, arena: Arc<Arena>) -> (Server, Rdma) {
    let rdma = Rdma::start(config("server"), arena, CancellationToken::new()).await.unwrap();
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
        let arena = Arena::new(64 << 20).unwrap();
        let counters = Arc::new(Counters::default());
        let rdma = Rdma::start(config("client"), arena.clone(), CancellationToken::new()).await.unwrap();
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
    let late = asking.select.fetch(&server.address, ask(0, PIECE), slot, Duration::from_millis(300)).await;
    assert!(matches!(late, Err(FetchError::Timeout { .. })), "{late:?}");
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

/// Not a test of speed: it prints what `docs/rdma.md` quotes, next to `ib_write_bw` in the same run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goodput_is_printed() {
    let (pieces, rounds) = (8u32, 3u32);
    let source = TestSource::memory(pieces, PIECE);
    let (server, serving) = serve(source.clone(), source.arena.clone()).await;
    let asking = Asking::new().await;
    asking.fetch_right(&server.address, 0, PIECE, Carrier::Rdma).await;
    let start = Instant::now();
    for _ in 0..rounds {
        let all = (0..pieces).map(|piece| asking.fetch(&server.address, piece, PIECE));
        assert!(futures::future::join_all(all).await.iter().all(Result::is_ok));
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes = f64::from(pieces * rounds) * f64::from(PIECE);
    let sample = vec![7; 8 << 20];
    let start = Instant::now();
    std::hint::black_box(Crc64::of(&sample));
    println!("one core sums {:.0} MB/s here", sample.len() as f64 / start.elapsed().as_secs_f64() / 1e6);
    println!("goodput_mb_per_s={:.2} bytes={bytes} copied={}", bytes / seconds / 1e6, serving.stats().copied_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registering_the_arena_is_timed() {
    let rail = millstream_rdma::Rail::open("rxe0", millstream_rdma::RailOptions::default()).unwrap();
    for touched in [true, false] {
        let arena = Arena::new(512 << 20).unwrap();
        if touched {
            let slots: Vec<_> = std::iter::from_fn(|| arena.try_slot(PIECE as usize)).collect();
            slots.into_iter().for_each(|mut slot| slot.iter_mut().step_by(4096).for_each(|byte| *byte = 1));
        }
        let start = Instant::now();
        rail.register(arena).unwrap();
        let took = start.elapsed().as_secs_f64();
        let state = if touched { "that is in memory" } else { "that the kernel has to zero first" };
        println!("registered 512 MiB of arena {state} in {took:.3} s: 16 GiB would take {:.2} s", took * 32.0);
    }
}
