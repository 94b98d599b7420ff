//! Misbehaving peers on either side: what they send is refused with the reason, and costs only their own requests.

mod transport_support;

use std::time::Duration;

use millstream_agent::transport::FetchError;
use millstream_agent::transport::tcp::{ServerConfig, TcpConfig};
use millstream_agent_core::wire::{Frame, StatusCode};
use millstream_types::Crc64;
use rand::{Rng, RngCore, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use transport_support::*;

const LEN: u32 = 200_000;

#[tokio::test]
async fn a_wrong_length_is_refused_before_a_byte_is_read() {
    for wrong in [LEN - 1, LEN + 1, 1, 4 << 20] {
        let (listener, address) = raw_listener().await;
        let client = Client::new();
        let (fetched, ()) = tokio::join!(client.fetch(&address, 0, LEN), async {
            let mut peer = RawPeer::accept(&listener).await;
            let (id, ..) = peer.request().await;
            peer.send(Frame::Data { id, len: wrong }).await;
            assert_eq!(peer.frame().await, None, "the client hangs up");
        });
        assert!(matches!(&fetched, Err(FetchError::Protocol { .. })), "{fetched:?}");
        assert_eq!(client.transport.stats().broken(), vec![("protocol", 1)]);
        client.all_slots_back().await;
    }
}

#[tokio::test]
async fn a_swapped_piece_has_another_checksum() {
    let (listener, address) = raw_listener().await;
    let client = Client::new();
    let (fetched, ()) = tokio::join!(client.fetch(&address, 0, LEN), async {
        let mut peer = RawPeer::accept(&listener).await;
        let (id, ..) = peer.request().await;
        peer.send(Frame::Data { id, len: LEN }).await;
        peer.send_bytes(&piece_bytes(1, LEN)).await;
    });
    let expected = Crc64::of(&piece_bytes(0, LEN));
    let (mismatch, _slot) = fetched.unwrap().verify(expected).unwrap_err();
    assert_eq!((mismatch.expected, mismatch.actual), (expected, Crc64::of(&piece_bytes(1, LEN))));
}

#[tokio::test]
async fn answers_to_what_was_not_asked_break_the_protocol() {
    let unasked = [
        Frame::Data { id: 999, len: LEN },
        Frame::Status { id: 999, code: StatusCode::NotHave },
        Frame::Cancel { id: 1 },
    ];
    for frame in unasked {
        let (listener, address) = raw_listener().await;
        let client = Client::new();
        let (fetched, ()) = tokio::join!(client.fetch(&address, 0, LEN), async {
            let mut peer = RawPeer::accept(&listener).await;
            peer.request().await;
            peer.send(frame).await;
            assert_eq!(peer.frame().await, None, "the client hangs up");
        });
        assert!(matches!(&fetched, Err(FetchError::Protocol { .. })), "{frame:?}: {fetched:?}");
        client.all_slots_back().await;
    }
}

#[tokio::test]
async fn a_second_answer_to_a_request_breaks_the_protocol() {
    let (listener, address) = raw_listener().await;
    let client = Client::new();
    let (first, second, ()) = tokio::join!(client.fetch(&address, 0, LEN), client.fetch(&address, 1, LEN), async {
        let mut peer = RawPeer::accept(&listener).await;
        let (id, piece, _) = peer.request().await;
        for _ in 0..2 {
            peer.send(Frame::Data { id, len: LEN }).await;
            let _ = peer.stream.write_all(&piece_bytes(piece, LEN)).await;
        }
    });
    assert_eq!(first.unwrap().crc(), Crc64::of(&piece_bytes(0, LEN)));
    assert!(matches!(&second, Err(FetchError::Protocol { .. })), "{second:?}");
    client.all_slots_back().await;
}

#[tokio::test]
async fn a_peer_that_dies_within_a_piece_fails_only_its_own_requests() {
    let (listener, address) = raw_listener().await;
    let good = Server::start(TestSource::memory(1, LEN)).await;
    let client = Client::new();
    let (first, second, third, ()) = tokio::join!(
        client.fetch(&address, 0, LEN),
        client.fetch(&address, 1, LEN),
        fetch_right(&client, &good.address, 0, LEN),
        async {
            let mut peer = RawPeer::accept(&listener).await;
            let (id, ..) = peer.request().await;
            peer.request().await;
            peer.send(Frame::Data { id, len: LEN }).await;
            peer.send_bytes(&[0; 1000]).await;
        }
    );
    for failed in [first, second] {
        assert!(matches!(&failed, Err(FetchError::Unreachable { .. })), "{failed:?}");
    }
    let () = third;
    client.all_slots_back().await;
}

#[tokio::test]
async fn a_fetch_dropped_within_its_piece_leaves_the_stream_in_place() {
    let (listener, address) = raw_listener().await;
    let client = Client::new();
    let fetch = client.fetch(&address, 0, LEN);
    tokio::pin!(fetch);
    let half = LEN as usize / 2;
    let bytes = piece_bytes(0, LEN);
    let begin = async {
        let mut peer = RawPeer::accept(&listener).await;
        let (id, ..) = peer.request().await;
        peer.send(Frame::Data { id, len: LEN }).await;
        peer.send_bytes(&bytes[..half]).await;
        peer
    };
    let mut peer = tokio::select! { _ = &mut fetch => panic!("half a piece"), peer = begin => peer };
    let dropped = client.fetch_within(&address, 7, LEN, Duration::from_millis(1)).await;
    assert!(matches!(dropped, Err(FetchError::Timeout { .. })), "{dropped:?}");
    let (id, ..) = peer.request().await;
    assert!(matches!(peer.frame().await, Some(Frame::Cancel { id: cancelled }) if cancelled == id));
    // The answer was on its way already: it is read and dropped.
    peer.send_bytes(&bytes[half..]).await;
    peer.send(Frame::Data { id, len: LEN }).await;
    peer.send_bytes(&piece_bytes(7, LEN)).await;
    assert_eq!(fetch.await.unwrap().crc(), Crc64::of(&bytes));
    let (third, ()) = tokio::join!(client.fetch(&address, 2, LEN), async {
        let (id, piece, _) = peer.request().await;
        peer.send(Frame::Data { id, len: LEN }).await;
        peer.send_bytes(&piece_bytes(piece, LEN)).await;
    });
    assert_eq!(third.unwrap().crc(), Crc64::of(&piece_bytes(2, LEN)));
    assert_eq!(client.transport.stats().discarded_bytes(), u64::from(LEN));
    assert_eq!(client.transport.stats().connects(), 1);
}

#[tokio::test]
async fn a_slot_comes_back_only_after_nothing_writes_to_it() {
    let (listener, address) = raw_listener().await;
    let client = Client::new();
    let mut peer = {
        let fetch = client.fetch(&address, 0, LEN);
        tokio::pin!(fetch);
        let begin = async {
            let mut peer = RawPeer::accept(&listener).await;
            let (id, ..) = peer.request().await;
            peer.send(Frame::Data { id, len: LEN }).await;
            peer.send_bytes(&[5; 100_000]).await;
            peer
        };
        let peer = tokio::select! { _ = &mut fetch => panic!("half a piece"), peer = begin => peer };
        // The header has to be read before the fetch is dropped, or the slot may rightly go back at once.
        let stats = client.transport.stats().clone();
        let arriving = eventually(|| stats.received_bytes() > 0, || "bytes arrive".into());
        tokio::select! { _ = &mut fetch => panic!("half a piece"), () = arriving => {} }
        peer
    };
    // Dropped. A later request is cancelled through the same task, so the drop has been dealt with when it is.
    let late = client.fetch_within(&address, 1, LEN, Duration::from_millis(1)).await;
    assert!(matches!(late, Err(FetchError::Timeout { .. })));
    peer.request().await;
    assert!(matches!(peer.frame().await, Some(Frame::Cancel { .. })));
    assert!(client.arena.free_bytes() < client.arena.bytes(), "the half-filled slot is still the connection's");
    drop(peer);
    client.all_slots_back().await;
}

#[tokio::test]
async fn a_silent_peer_is_pinged_then_given_up() {
    let (listener, address) = raw_listener().await;
    let mut config = TcpConfig::new("client");
    config.silence = Duration::from_millis(20);
    let client = Client::with(config);
    let (fetched, ()) = tokio::join!(client.fetch(&address, 0, LEN), async {
        let mut peer = RawPeer::accept(&listener).await;
        peer.request().await;
        let Some(Frame::Ping { nonce }) = peer.frame().await else { panic!("no ping") };
        peer.send(Frame::Pong { nonce }).await;
        assert!(matches!(peer.frame().await, Some(Frame::Ping { .. })), "an answer buys time");
        assert_eq!(peer.frame().await, None, "silence does not");
    });
    assert!(
        matches!(&fetched, Err(FetchError::Unreachable { detail, .. }) if detail.contains("silent")),
        "{fetched:?}"
    );
    client.all_slots_back().await;
}

#[tokio::test]
async fn a_peer_that_refuses_connections_is_left_alone_for_a_while() {
    let (listener, address) = raw_listener().await;
    drop(listener);
    let client = Client::new();
    for _ in 0..20 {
        let refused = client.fetch(&address, 0, LEN).await;
        assert!(matches!(&refused, Err(FetchError::Unreachable { .. })), "{refused:?}");
    }
    assert!(client.transport.stats().connect_failures() < 20, "backs off");
}

#[tokio::test]
async fn a_foreign_server_is_recognised() {
    let (listener, address) = raw_listener().await;
    let client = Client::new();
    let (fetched, ()) = tokio::join!(client.fetch(&address, 0, LEN), async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 smtp ready\r\n").await.unwrap();
    });
    assert!(
        matches!(&fetched, Err(FetchError::Unreachable { detail, .. }) if detail.contains("not the millstream peer protocol")),
        "{fetched:?}"
    );
}

// ------------------------------------------------------------- towards the server

/// Reads until the server hangs up.
async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    // A reset is as good as an end.
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut all)).await.expect("the server hangs up");
    all
}

#[tokio::test]
async fn garbage_at_the_port_is_closed_and_counted() {
    let server = Server::start(TestSource::memory(1, LEN)).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\0\0\0", b"mlstreaX"] {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        assert!(until_closed(&mut stream).await.is_empty(), "strangers get no answer");
    }
    server.wait_closed("garbage hello").await;
    let mut peer = RawPeer::connect(&server.address).await;
    peer.send_bytes(&[9; 16]).await;
    assert_eq!(peer.frame().await, None);
    server.wait_closed("garbage frame").await;
    fetch_right(&Client::new(), &server.address, 0, LEN).await;
}

#[tokio::test]
async fn another_version_is_told_which_one_is_spoken() {
    let server = Server::start(TestSource::memory(1, LEN)).await;
    let mut hello = RawPeer::hello();
    hello[8] = 2;
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    let answer = until_closed(&mut stream).await;
    assert_eq!(answer[8..11], [1, 0, 1], "version 1, refused for the version");
}

#[tokio::test]
async fn half_a_hello_and_half_a_frame_do_not_hold_a_connection_for_ever() {
    let mut config = ServerConfig::new("server");
    config.hello_timeout = Duration::from_millis(30);
    config.idle_close = Duration::from_millis(30);
    let server = Server::start_with(TestSource::memory(1, LEN), config).await;
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    stream.write_all(b"mlstr").await.unwrap();
    until_closed(&mut stream).await;
    server.wait_closed("no hello in time").await;
    let mut peer = RawPeer::connect(&server.address).await;
    peer.send_bytes(&[1, 0, 0]).await;
    assert_eq!(peer.frame().await, None);
    server.wait_closed("idle").await;
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_is_cut_off() {
    let mut config = ServerConfig::new("server");
    config.write_timeout = Duration::from_millis(50);
    let server = Server::start_with(TestSource::memory(16, 4 << 20), config).await;
    let mut peer = RawPeer::connect(&server.address).await;
    for piece in 0..16 {
        let request = Frame::Request { id: u64::from(piece), digest: DIGEST, piece, len: 4 << 20, deadline_ms: 60_000 };
        peer.send(request).await;
    }
    server.wait_closed("receiver stalled").await;
}

#[tokio::test]
async fn frames_that_make_no_sense_end_the_connection() {
    let source = TestSource::memory(4, LEN);
    source.hold([0]);
    let mut config = ServerConfig::new("server");
    config.requests_per_connection = 2;
    let server = Server::start_with(source, config).await;
    let request = |id| Frame::Request { id, digest: DIGEST, piece: 0, len: LEN, deadline_ms: 60_000 };
    let misuse = [
        vec![request(1), request(1)],
        vec![request(1), request(2), request(3)],
        vec![Frame::Status { id: 1, code: StatusCode::NotHave }],
        vec![Frame::Data { id: 1, len: 5 }],
    ];
    for frames in misuse {
        let mut peer = RawPeer::connect(&server.address).await;
        for frame in frames {
            peer.send(frame).await;
        }
        assert_eq!(peer.frame().await, None);
    }
    eventually(|| server.closed("misuse") == 4, || format!("{:?}", server.stats.closed())).await;
}

#[tokio::test]
async fn someone_who_asks_and_never_reads_does_not_fill_the_memory() {
    let server = Server::start(TestSource::memory(1, LEN)).await;
    let mut peer = RawPeer::connect(&server.address).await;
    let mut bytes = Vec::new();
    for id in 0..1000 {
        Frame::Request { id, digest: DIGEST, piece: 99, len: LEN, deadline_ms: 1 }.encode(&mut bytes);
        Frame::Ping { nonce: id }.encode(&mut bytes);
    }
    while peer.stream.write_all(&bytes).await.is_ok() {}
    eventually(|| server.stats.connections() == 0, || format!("{:?}", server.stats.closed())).await;
}

#[tokio::test]
async fn pings_are_answered_while_a_piece_is_waited_for() {
    let source = TestSource::memory(1, LEN);
    source.hold([0]);
    let server = Server::start(source).await;
    let mut peer = RawPeer::connect(&server.address).await;
    peer.send(Frame::Request { id: 1, digest: DIGEST, piece: 0, len: LEN, deadline_ms: 60_000 }).await;
    peer.send(Frame::Ping { nonce: 42 }).await;
    assert_eq!(peer.frame().await, Some(Frame::Pong { nonce: 42 }));
}

#[tokio::test]
async fn frames_never_come_in_the_middle_of_a_piece() {
    const PIECE: u32 = 4 << 20;
    for source in [TestSource::memory(12, PIECE), TestSource::file(12, PIECE)] {
        let server = Server::start(source).await;
        let mut peer = RawPeer::connect(&server.address).await;
        for piece in 0..12 {
            let id = u64::from(piece);
            peer.send(Frame::Request { id, digest: DIGEST, piece, len: PIECE, deadline_ms: 60_000 }).await;
        }
        let (mut pieces, mut pongs) = (0, 0);
        while pieces < 12 || pongs < 24 {
            match peer.frame().await {
                Some(Frame::Pong { .. }) => pongs += 1,
                Some(Frame::Data { id, len: PIECE }) => {
                    let half = PIECE as usize / 2;
                    let mut bytes = peer.bytes(half).await;
                    // More is queued than sockets hold, so the server is within some piece when these come.
                    peer.send(Frame::Ping { nonce: 2 * id }).await;
                    peer.send(Frame::Cancel { id: 999 }).await;
                    peer.send(Frame::Ping { nonce: 2 * id + 1 }).await;
                    bytes.extend(peer.bytes(half).await);
                    assert!(bytes == piece_bytes(id as u32, PIECE), "piece {id}");
                    pieces += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_queue_of_ready_pieces_holds_few_buffers_and_keeps_its_order() {
    const PIECE: u32 = 4 << 20;
    let source = TestSource::memory(12, PIECE);
    let server = Server::start(source.clone()).await;
    let mut peer = RawPeer::connect(&server.address).await;
    for piece in 0..12 {
        let id = u64::from(piece);
        peer.send(Frame::Request { id, digest: DIGEST, piece, len: PIECE, deadline_ms: 60_000 }).await;
    }
    eventually(|| source.opened() >= 12, || "all requests arrive".into()).await;
    // One that waits in the queue is taken back; how far the others are does not matter.
    peer.send(Frame::Cancel { id: 11 }).await;
    let mut order = Vec::new();
    while order.len() < 12 {
        match peer.frame().await {
            Some(Frame::Data { id, len }) => {
                assert!(peer.bytes(len as usize).await == piece_bytes(id as u32, PIECE), "piece {id}");
                order.push(id);
            }
            Some(Frame::Status { id: 11, code: StatusCode::Cancelled }) => order.push(11),
            other => panic!("{other:?}"),
        }
    }
    order.retain(|id| *id != 11);
    assert_eq!(order, (0..11).collect::<Vec<_>>());
    let opened = source.opened();
    assert!((13..=24).contains(&opened), "each piece is opened at most twice: {opened}");
}

#[tokio::test]
async fn a_deadline_is_kept_by_the_server_too() {
    let source = TestSource::memory(1, LEN);
    source.hold([0]);
    let server = Server::start(source).await;
    let mut peer = RawPeer::connect(&server.address).await;
    peer.send(Frame::Request { id: 1, digest: DIGEST, piece: 0, len: LEN, deadline_ms: 5 }).await;
    assert_eq!(peer.frame().await, Some(Frame::Status { id: 1, code: StatusCode::Deadline }));
}

/// Random bytes, and valid conversations with random damage, for a bounded number of rounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_never_takes_the_server_down() {
    let server = Server::start(TestSource::memory(4, LEN)).await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(20_261_121);
    for round in 0..200 {
        let mut bytes = if round % 4 == 0 { Vec::new() } else { RawPeer::hello() };
        for id in 0..rng.random_range(0..6) {
            let piece = rng.random_range(0..6);
            Frame::Request { id, digest: DIGEST, piece, len: LEN, deadline_ms: 10 }.encode(&mut bytes);
        }
        let mut noise = vec![0; rng.random_range(1..64)];
        rng.fill_bytes(&mut noise);
        let at = rng.random_range(0..=bytes.len());
        bytes.splice(at..at, noise);
        bytes.truncate(rng.random_range(0..=bytes.len()));
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        if round % 3 == 0 {
            let _ = stream.shutdown().await;
            until_closed(&mut stream).await;
        }
    }
    fetch_right(&Client::new(), &server.address, 3, LEN).await;
    eventually(|| server.stats.connections() <= 1, || "connections stay".into()).await;
}
