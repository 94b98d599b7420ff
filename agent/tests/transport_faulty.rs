//! The scripted liars: what they do reaches the fetching side as what it is.
#![allow(clippy::unwrap_used)] // a panic here is a failed test

mod transport_support;

use std::sync::Arc;
use std::time::Duration;

use millstream_agent::piece::Unverified;
use millstream_agent::transport::faulty::{FaultySource, FaultyTransport};
use millstream_agent::transport::{FetchError, PieceSource, Transport};
use millstream_types::Crc64;
use transport_support::*;

const LEN: u32 = 100_000;

fn is_right(piece: u32, fetched: &Result<Unverified, FetchError>) -> bool {
    fetched.as_ref().is_ok_and(|f| f.crc() == Crc64::of(&piece_bytes(piece, LEN)))
}

async fn liar(spec: &str, inner: Arc<dyn PieceSource>) -> Server {
    Server::start(Arc::new(FaultySource::from_spec(spec, inner).unwrap())).await
}

#[tokio::test]
async fn flipped_and_swapped_pieces_do_not_verify() {
    for source in [TestSource::memory(3, LEN), TestSource::file(3, LEN)] {
        for spec in ["flip", "swap"] {
            let server = liar(spec, source.clone()).await;
            let client = Client::new();
            for piece in 0..3 {
                let fetched = client.fetch(&server.address, piece, LEN).await.unwrap();
                assert!(fetched.verify(Crc64::of(&piece_bytes(piece, LEN))).is_err(), "{spec} {piece}");
            }
        }
    }
}

#[tokio::test]
async fn a_swapped_piece_is_another_whole_piece() {
    let server = liar("swap", TestSource::memory(2, LEN)).await;
    let fetched = Client::new().fetch(&server.address, 1, LEN).await.unwrap();
    assert_eq!(fetched.crc(), Crc64::of(&piece_bytes(0, LEN)));
}

#[tokio::test]
async fn every_other_piece_can_be_spared() {
    let server = liar("flip@2", TestSource::memory(4, LEN)).await;
    let client = Client::new();
    let mut right = Vec::new();
    for piece in 0..4 {
        right.push(is_right(piece, &client.fetch(&server.address, piece, LEN).await));
    }
    assert_eq!(right, [true, false, true, false]);
}

#[tokio::test]
async fn a_truncated_piece_breaks_the_connection() {
    let server = liar("truncate@2", TestSource::memory(2, LEN)).await;
    let client = Client::new();
    fetch_right(&client, &server.address, 0, LEN).await;
    let cut = client.fetch(&server.address, 1, LEN).await;
    assert!(matches!(&cut, Err(FetchError::Unreachable { .. })), "{cut:?}");
    server.wait_closed("short file").await;
    client.all_slots_back().await;
    fetch_right(&client, &server.address, 0, LEN).await;
}

#[tokio::test]
async fn stalls_and_refusals_are_told_apart() {
    let client = Client::new();
    let stalled = liar("stall", TestSource::memory(1, LEN)).await;
    let late = client.fetch_within(&stalled.address, 0, LEN, Duration::from_secs(1)).await;
    assert!(matches!(&late, Err(FetchError::NotYet { .. })), "{late:?}");
    let slow = liar("stall:5", TestSource::memory(1, LEN)).await;
    fetch_right(&client, &slow.address, 0, LEN).await;
    let refusing = liar("refuse", TestSource::memory(1, LEN)).await;
    let refused = client.fetch(&refusing.address, 0, LEN).await;
    assert!(matches!(&refused, Err(FetchError::NotHave { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_faulty_transport_spoils_on_arrival() {
    let server = Server::start(TestSource::memory(1, LEN)).await;
    let client = Client::new();
    let spec = "flip@2,truncate@3,refuse@5,swap@7";
    let transport = FaultyTransport::from_spec(spec, client.transport.clone()).unwrap();
    let mut results = Vec::new();
    for _ in 0..7 {
        results.push(transport.fetch(&server.address, ask(0, LEN), client.slot(LEN), LONG).await);
    }
    assert!(is_right(0, &results[0]));
    assert!(results[1].is_ok() && !is_right(0, &results[1]));
    assert!(matches!(results[2], Err(FetchError::Unreachable { .. })));
    assert!(results[3].is_ok() && !is_right(0, &results[3]));
    assert!(matches!(results[4], Err(FetchError::NotHave { .. })));
    assert!(results[6].is_ok() && !is_right(0, &results[6]));
    drop(results);
    client.all_slots_back().await;
}
