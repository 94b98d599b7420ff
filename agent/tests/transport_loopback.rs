//! Client and server over loopback: what is fetched is what was asked for, whatever the order, source or load.
#![allow(clippy::unwrap_used)] // a panic here is a failed test

mod transport_support;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use millstream_agent::transport::tcp::{DrainOutcome, ServerConfig, TcpConfig};
use millstream_agent::transport::{FetchError, Transport};
use millstream_agent_core::wire::TokenHash;
use millstream_types::Crc64;
use proptest::prelude::*;
use transport_support::*;

#[tokio::test]
async fn pieces_come_from_memory() {
    let server = Server::start(TestSource::memory(4, 300_001)).await;
    let client = Client::new();
    for piece in 0..4 {
        fetch_right(&client, &server.address, piece, 300_001).await;
    }
    assert_eq!(client.transport.stats().connects(), 1, "one connection is enough");
    server.wait_sent(4).await;
    assert_eq!((server.stats.sent_bytes(), server.stats.sent_bytes_file()), (4 * 300_001, 0));
    client.all_slots_back().await;
    assert_eq!(server.stop().await, DrainOutcome::Clean);
}

#[tokio::test]
async fn pieces_come_from_files() {
    let server = Server::start(TestSource::file(3, 4 << 20)).await;
    let client = Client::new();
    for piece in [2, 0, 1] {
        fetch_right(&client, &server.address, piece, 4 << 20).await;
    }
    server.wait_sent(3).await;
    assert_eq!(server.stats.sent_bytes_file(), 3 * (4 << 20));
    assert_eq!(server.stop().await, DrainOutcome::Clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pipelined_fetches_get_their_own_pieces() {
    for source in [TestSource::memory(60, 150_000), TestSource::file(60, 150_000)] {
        source.hold(0..60);
        let server = Server::start(source.clone()).await;
        let client = Client::new();
        let mut fetches: FuturesUnordered<_> = (0..240u32)
            .map(|i| i * 7 % 60)
            .map(|piece| {
                let (client, address) = (&client, &server.address);
                async move { fetch_right(client, address, piece, 150_000).await }
            })
            .collect();
        tokio::join!(async { while fetches.next().await.is_some() {} }, async {
            // Both windows are full before the first piece comes; the other requests wait on this side.
            eventually(|| source.waiting() == 128, || format!("{} requests wait", source.waiting())).await;
            (0..60).for_each(|piece| source.release(piece));
        });
        assert_eq!(client.transport.stats().connects(), 2, "a full pipeline opens the second connection, no third");
        server.wait_sent(240).await;
    }
}

#[tokio::test]
async fn answers_come_in_the_order_of_availability() {
    let source = TestSource::memory(3, 70_000);
    source.hold([0, 1]);
    let server = Server::start(source.clone()).await;
    let client = Client::new();
    let first = client.fetch(&server.address, 0, 70_000);
    let second = client.fetch(&server.address, 1, 70_000);
    tokio::pin!(first, second);
    tokio::select! {
        _ = &mut first => panic!("piece 0 is held back"),
        _ = &mut second => panic!("piece 1 is held back"),
        () = fetch_right(&client, &server.address, 2, 70_000) => {}
    }
    source.release(1);
    tokio::select! {
        _ = &mut first => panic!("piece 0 is held back"),
        piece = &mut second => assert_eq!(piece.unwrap().crc(), Crc64::of(&piece_bytes(1, 70_000))),
    }
    source.release(0);
    assert_eq!(first.await.unwrap().crc(), Crc64::of(&piece_bytes(0, 70_000)));
}

#[tokio::test]
async fn what_the_peer_lacks_is_said_so() {
    let server = Server::start(TestSource::memory(2, 70_000)).await;
    let client = Client::new();
    let missing = client.fetch(&server.address, 9, 70_000).await;
    assert!(matches!(missing, Err(FetchError::NotHave { .. })), "{missing:?}");
    let other_length = client.fetch(&server.address, 1, 69_999).await;
    assert!(matches!(other_length, Err(FetchError::Protocol { .. })), "{other_length:?}");
    fetch_right(&client, &server.address, 1, 70_000).await;
    assert_eq!(client.transport.stats().connects(), 1, "refusals do not cost the connection");
    client.all_slots_back().await;
}

#[tokio::test]
async fn a_deadline_ends_the_wait_and_leaves_the_connection() {
    let source = TestSource::memory(2, 70_000);
    source.hold([0]);
    let server = Server::start(source.clone()).await;
    let client = Client::new();
    let late = client.fetch_within(&server.address, 0, 70_000, Duration::from_secs(1)).await;
    assert!(matches!(late, Err(FetchError::NotYet { .. })), "{late:?}");
    client.all_slots_back().await;
    fetch_right(&client, &server.address, 1, 70_000).await;
    source.release(0);
    fetch_right(&client, &server.address, 0, 70_000).await;
    assert_eq!(client.transport.stats().connects(), 1);
}

#[tokio::test]
async fn a_dropped_fetch_is_taken_back_at_the_peer() {
    let source = TestSource::memory(2, 70_000);
    source.hold([0]);
    let server = Server::start(source.clone()).await;
    let client = Client::new();
    {
        let fetch = client.fetch(&server.address, 0, 70_000);
        tokio::pin!(fetch);
        let waits = eventually(|| source.waiting() == 1, || "the request arrives".into());
        tokio::select! { _ = &mut fetch => panic!("held back"), () = waits => {} }
    }
    eventually(|| source.waiting() == 0, || "the server stops waiting".into()).await;
    client.all_slots_back().await;
    assert_eq!(server.stats.answers(), vec![("cancelled", 1)]);
    fetch_right(&client, &server.address, 1, 70_000).await;
    assert_eq!(client.transport.stats().connects(), 1);
}

#[tokio::test]
async fn draining_sends_what_is_ready_and_refuses_the_rest() {
    let source = TestSource::memory(2, 70_000);
    source.hold([0]);
    let server = Server::start(source.clone()).await;
    let client = Client::new();
    fetch_right(&client, &server.address, 1, 70_000).await;
    let address = server.address.clone();
    let fetch = client.fetch(&address, 0, 70_000);
    tokio::pin!(fetch);
    let waits = eventually(|| source.waiting() == 1, || "the request arrives".into());
    tokio::select! { _ = &mut fetch => panic!("held back"), () = waits => {} }
    server.shutdown.cancel();
    let refused = (&mut fetch).await;
    assert!(
        matches!(&refused, Err(FetchError::Unreachable { detail, .. }) if detail.contains("going away")),
        "{refused:?}"
    );
    assert_eq!(server.stop().await, DrainOutcome::Clean);
    let gone = client.fetch(&address, 1, 70_000).await;
    assert!(matches!(gone, Err(FetchError::Unreachable { .. })), "{gone:?}");
    client.all_slots_back().await;
}

#[tokio::test]
async fn another_cluster_is_refused_with_the_reason() {
    let mut config = ServerConfig::new("server");
    config.token = TokenHash([1; 32]);
    let server = Server::start_with(TestSource::memory(1, 70_000), config).await;
    let refused = Client::new().fetch(&server.address, 0, 70_000).await;
    assert!(
        matches!(&refused, Err(FetchError::Unreachable { detail, .. }) if detail.contains("cluster token")),
        "{refused:?}"
    );
    let mut config = TcpConfig::new("client");
    config.token = TokenHash([1; 32]);
    fetch_right(&Client::with(config), &server.address, 0, 70_000).await;
    server.wait_closed("cluster token").await;
}

#[tokio::test]
async fn connections_are_bounded() {
    let mut config = ServerConfig::new("server");
    config.connections_per_ip_max = 1;
    let server = Server::start_with(TestSource::memory(1, 70_000), config).await;
    let first = Client::new();
    fetch_right(&first, &server.address, 0, 70_000).await;
    let second = Client::new();
    let refused = second.fetch(&server.address, 0, 70_000).await;
    assert!(
        matches!(&refused, Err(FetchError::Unreachable { detail, .. }) if detail.contains("too many")),
        "{refused:?}"
    );
    drop(first);
    server.wait_closed("closed by peer").await;
    // The peer is barred for a moment after a failure; then it is let in.
    loop {
        match second.fetch(&server.address, 0, 70_000).await {
            Ok(_) => break,
            Err(FetchError::Unreachable { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn idle_connections_close_and_come_back() {
    let server = Server::start(TestSource::memory(1, 70_000)).await;
    let mut config = TcpConfig::new("client");
    config.idle_close = Duration::from_millis(20);
    let client = Client::with(config);
    fetch_right(&client, &server.address, 0, 70_000).await;
    server.wait_closed("closed by peer").await;
    fetch_right(&client, &server.address, 0, 70_000).await;
    assert_eq!(client.transport.stats().connects(), 2);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Fetch(u32),
    Drop(usize),
    Release(u32),
    Await(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u32..12).prop_map(Op::Fetch),
        1 => (0usize..64).prop_map(Op::Drop),
        3 => (0u32..12).prop_map(Op::Release),
        2 => (0usize..64).prop_map(Op::Await),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever is asked, dropped and released in whatever order: every fetch that ends well has its own piece's
    /// bytes, and all slots come back.
    #[test]
    fn any_interleaving_returns_the_right_piece(ops in proptest::collection::vec(op(), 1..60), from_file in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(interleave(ops, from_file));
    }
}

async fn interleave(ops: Vec<Op>, from_file: bool) {
    const LEN: u32 = 66_000;
    let source = if from_file { TestSource::file(12, LEN) } else { TestSource::memory(12, LEN) };
    source.hold((0..12).filter(|p| p % 3 != 0));
    let server = Server::start(source.clone()).await;
    let client = Arc::new(Client::new());
    let mut running = Vec::new();
    let mut released = [false; 12];
    for op in ops {
        match op {
            Op::Fetch(piece) => {
                let (client, address) = (client.clone(), server.address.clone());
                let task = tokio::spawn(async move { client.fetch(&address, piece, LEN).await });
                running.push((piece, task));
            }
            Op::Drop(i) if !running.is_empty() => running.swap_remove(i % running.len()).1.abort(),
            Op::Release(piece) => {
                source.release(piece);
                released[piece as usize] = true;
            }
            Op::Await(i) if !running.is_empty() => {
                let i = i % running.len();
                if running[i].0 % 3 == 0 || released[running[i].0 as usize] {
                    let (piece, task) = running.swap_remove(i);
                    check(piece, task.await.unwrap());
                }
            }
            Op::Drop(_) | Op::Await(_) => {}
        }
    }
    (0..12).for_each(|p| source.release(p));
    for (piece, task) in running {
        check(piece, task.await.unwrap());
    }
    client.all_slots_back().await;

    fn check(piece: u32, fetched: Result<millstream_agent::piece::Unverified, FetchError>) {
        let bytes = piece_bytes(piece, LEN);
        let fetched = fetched.unwrap().verify(Crc64::of(&bytes)).unwrap();
        assert_eq!(fetched.bytes(), bytes);
    }
}

#[tokio::test]
async fn a_clone_shares_connections() {
    let server = Server::start(TestSource::memory(1, 70_000)).await;
    let client = Client::new();
    let clone = client.transport.clone();
    fetch_right(&client, &server.address, 0, 70_000).await;
    clone.fetch(&server.address, ask(0, 70_000), client.slot(70_000), LONG).await.unwrap();
    assert_eq!(clone.stats().connects(), 1);
}
