//! The choice of the carrier on machines without RDMA devices; with one, see `rdma_carrier.rs`.
#![cfg(feature = "rdma")]
#![allow(clippy::unwrap_used)] // a panic here is a failed test

use std::sync::Arc;

use millstream_agent::buffers::Arena;
use millstream_agent::config::RdmaMode;
use millstream_agent::counters::Counters;
use millstream_agent::transport::rdma::{Rdma, RdmaConfig};
use millstream_agent::transport::select::SelectTransport;
use millstream_agent::transport::tcp::{ServerConfig, Takeover, TcpConfig, TcpTransport};
use millstream_agent::transport::{Carrier, Transport};
use millstream_agent_core::wire::Features;
use millstream_types::Crc64;
use tokio_util::sync::CancellationToken;

mod transport_support;
use transport_support::{LONG, Server, TestSource, ask, piece_bytes};

const LEN: u32 = 70_000;

async fn rdma(mode: RdmaMode, arena: &Arc<Arena>) -> Rdma {
    Rdma::start(RdmaConfig::new("node", mode), arena.clone(), CancellationToken::new()).await.unwrap()
}

/// Fetches three pieces and returns the fallbacks that were counted.
async fn fallbacks(mode: RdmaMode) -> Vec<(String, String, String, u64)> {
    let source = TestSource::memory(3, LEN);
    let serving = rdma(mode.clone(), &source.arena).await;
    assert_eq!(serving.features(), Features::NONE, "what does not work is not offered");
    let mut config = ServerConfig::new("server");
    config.takeover = Some(Arc::new(serving));
    let server = Server::start_with(source, config).await;
    let arena = Arena::new(16 << 20).unwrap();
    let counters = Arc::new(Counters::default());
    let asking = rdma(mode, &arena).await;
    let tcp = TcpTransport::new(TcpConfig::new("client"));
    let select = SelectTransport::new(tcp, Some(asking), arena.clone(), counters.clone());
    for piece in 0..3 {
        let slot = arena.slot(LEN as usize).await;
        let fetched = select.fetch(&server.address, ask(piece, LEN), slot, LONG).await.unwrap();
        assert_eq!(fetched.carrier(), Carrier::Tcp);
        assert!(fetched.verify(Crc64::of(&piece_bytes(piece, LEN))).is_ok());
    }
    assert_eq!(select.peers()[&server.address].tcp, 3 * u64::from(LEN));
    counters.fallbacks().into_iter().map(|((from, to, reason), n)| (from, to, reason, n)).collect()
}

#[tokio::test]
async fn a_device_that_is_not_there_is_a_fallback_for_every_piece() {
    let counted = fallbacks(RdmaMode::Device("no-such-device".into())).await;
    assert_eq!(counted, [("rdma".into(), "tcp".into(), "no-device".into(), 3)]);
}

#[tokio::test]
async fn a_node_that_is_told_to_do_without_counts_nothing() {
    assert_eq!(fallbacks(RdmaMode::Off).await, []);
}
