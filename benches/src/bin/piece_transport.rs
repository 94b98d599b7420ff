//! Goodput and CPU cost of the TCP carrier, each side a process of its own, so that they can run in two network
//! namespaces.
//!
//! ```text
//! piece_transport server --listen ADDR [--piece BYTES] [--pieces N] [--from memory|file] [--threads N]
//! piece_transport client --peer ADDR [--piece BYTES] [--pieces N] [--seconds S] [--inflight N]
//!                        [--connections N] [--threads N]
//! ```
//!
//! The server runs until SIGTERM; each side prints one JSON object at its end. The client checks the checksum of
//! every piece. `benches/macro/transport.sh` runs both beside iperf3.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use millstream_agent::buffers::Arena;
use millstream_agent::piece::{Served, Unverified, Verified};
use millstream_agent::transport::tcp::{ServerConfig, TcpConfig, TcpTransport, serve};
use millstream_agent::transport::{PieceRequest, PieceSource, Transport};
use millstream_types::{Crc64, Digest};
use rand::{RngCore, SeedableRng};
use tokio_util::sync::CancellationToken;

type Error = Box<dyn std::error::Error + Send + Sync>;

const DIGEST: Digest = Digest([1; 32]);

/// Flags as `--name value`.
struct Flags(BTreeMap<String, String>);

impl Flags {
    fn parse(args: impl Iterator<Item = String>) -> Result<Flags, Error> {
        let mut flags = BTreeMap::new();
        let mut args = args;
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("{name} wants a value"))?;
            flags.insert(name.trim_start_matches("--").to_owned(), value);
        }
        Ok(Flags(flags))
    }

    fn text(&self, name: &str, default: &str) -> String {
        self.0.get(name).cloned().unwrap_or_else(|| default.to_owned())
    }

    fn number(&self, name: &str, default: u64) -> Result<u64, Error> {
        match self.0.get(name) {
            Some(text) => Ok(text.parse().map_err(|e| format!("--{name}: {e}"))?),
            None => Ok(default),
        }
    }
}

fn piece_bytes(piece: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(u64::from(piece)).fill_bytes(&mut bytes);
    bytes
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15, counted behind the process name, in ticks of 1/100 s.
    let ticks = |field: usize| -> f64 {
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        behind_name.split_whitespace().nth(field - 3).and_then(|t| t.parse().ok()).unwrap_or(0.0)
    };
    (ticks(14) + ticks(15)) / 100.0
}

fn print(value: &serde_json::Value) -> Result<(), Error> {
    writeln!(std::io::stdout(), "{value}")?;
    Ok(())
}

enum Source {
    Memory(Vec<Verified>),
    File { file: Arc<File>, crcs: Vec<Crc64> },
}

impl Source {
    fn new(from: &str, pieces: u32, len: u32) -> Result<Source, Error> {
        if from == "file" {
            let path = std::env::temp_dir().join(format!("piece_transport.{}", std::process::id()));
            let mut file = File::options().create_new(true).read(true).write(true).open(&path)?;
            std::fs::remove_file(&path)?;
            let mut crcs = Vec::new();
            for piece in 0..pieces {
                let bytes = piece_bytes(piece, len as usize);
                file.write_all(&bytes)?;
                crcs.push(Crc64::of(&bytes));
            }
            return Ok(Source::File { file: Arc::new(file), crcs });
        }
        let arena = Arena::new(u64::from(pieces) * u64::from(len.next_power_of_two()))?;
        let mut memory = Vec::new();
        for piece in 0..pieces {
            let bytes = piece_bytes(piece, len as usize);
            let mut slot = arena.try_slot(bytes.len()).ok_or("arena too small")?;
            slot[..bytes.len()].copy_from_slice(&bytes);
            let crc = Crc64::of(&bytes);
            memory.push(Unverified::sum(slot, len).verify(crc).map_err(|(mismatch, _)| mismatch)?);
        }
        Ok(Source::Memory(memory))
    }
}

#[async_trait::async_trait]
impl PieceSource for Source {
    async fn open(&self, request: PieceRequest, _: Duration) -> Option<Served> {
        match self {
            Source::Memory(pieces) => pieces.get(request.piece as usize).cloned().map(Served::Memory),
            Source::File { file, crcs } => Some(Served::File {
                file: file.clone(),
                offset: u64::from(request.piece) * u64::from(request.len),
                len: request.len,
                crc: *crcs.get(request.piece as usize)?,
            }),
        }
    }
}

async fn server(flags: &Flags) -> Result<(), Error> {
    let len = flags.number("piece", 4 << 20)? as u32;
    let pieces = flags.number("pieces", 16)? as u32;
    let source = Source::new(&flags.text("from", "memory"), pieces, len)?;
    let listener = tokio::net::TcpListener::bind(flags.text("listen", "127.0.0.1:7072")).await?;
    let config = ServerConfig::new("bench-server");
    let stats = config.stats.clone();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, Arc::new(source), config, shutdown.clone()));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let cpu_before = cpu_seconds();
    terminate.recv().await;
    shutdown.cancel();
    serving.await?;
    let cpu_s = cpu_seconds() - cpu_before;
    let gib = stats.sent_bytes() as f64 / (1u64 << 30) as f64;
    print(&serde_json::json!({
        "role": "server",
        "bytes": stats.sent_bytes(),
        "file_bytes": stats.sent_bytes_file(),
        "cold_reads": stats.cold_reads(),
        "cpu_s": cpu_s,
        "cpu_s_per_gib": cpu_s / gib.max(1e-9),
    }))
}

async fn client(flags: &Flags) -> Result<(), Error> {
    let len = flags.number("piece", 4 << 20)? as u32;
    let pieces = flags.number("pieces", 16)? as u32;
    let inflight = flags.number("inflight", 8)?;
    let peer: Arc<str> = flags.text("peer", "127.0.0.1:7072").into();
    let mut config = TcpConfig::new("bench-client");
    config.connections_per_peer = flags.number("connections", 2)? as usize;
    let transport = TcpTransport::new(config);
    let arena = Arena::new(inflight * u64::from(len.next_power_of_two()))?;
    let crcs: Arc<[Crc64]> = (0..pieces).map(|p| Crc64::of(&piece_bytes(p, len as usize))).collect();
    // The first piece is not measured: it pays for the connection.
    transport.fetch(&peer, request(0, len), arena.slot(len as usize).await, Duration::from_secs(10)).await?;
    let (next, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (started, cpu_before) = (Instant::now(), cpu_seconds());
    let until = started + Duration::from_secs_f64(flags.text("seconds", "3").parse()?);
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..inflight {
        let (transport, arena, peer, crcs) = (transport.clone(), arena.clone(), peer.clone(), crcs.clone());
        let (next, received) = (next.clone(), received.clone());
        workers.spawn(async move {
            while Instant::now() < until {
                let piece = (next.fetch_add(1, Relaxed) % u64::from(pieces)) as u32;
                let slot = arena.slot(len as usize).await;
                let got = transport.fetch(&peer, request(piece, len), slot, Duration::from_secs(30)).await?;
                got.verify(crcs[piece as usize]).map_err(|(mismatch, _)| mismatch)?;
                received.fetch_add(u64::from(len), Relaxed);
            }
            Ok::<(), Error>(())
        });
    }
    while let Some(done) = workers.join_next().await {
        done??;
    }
    let (seconds, cpu_s) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu_before);
    let bytes = received.load(Relaxed);
    print(&serde_json::json!({
        "role": "client",
        "piece_bytes": len,
        "inflight": inflight,
        "connections": transport.stats().connects(),
        "bytes": bytes,
        "seconds": seconds,
        "goodput_bytes_per_s": bytes as f64 / seconds,
        "cpu_s": cpu_s,
        "cpu_s_per_gib": cpu_s / (bytes as f64 / (1u64 << 30) as f64),
    }))
}

fn request(piece: u32, len: u32) -> PieceRequest {
    PieceRequest { digest: DIGEST, piece, len }
}

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let role = args.next().unwrap_or_default();
    let flags = Flags::parse(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(flags.number("threads", 2)? as usize)
        .enable_all()
        .build()?;
    match role.as_str() {
        "server" => runtime.block_on(server(&flags)),
        "client" => runtime.block_on(client(&flags)),
        other => Err(format!("{other:?} is no role; say server or client").into()),
    }
}
