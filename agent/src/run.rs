//! Putting an agent together, and taking it apart in order.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use millstream_agent_core::wire::Features;
use millstream_agent_core::{AgentConfig, AgentCore};
use millstream_proto::v1;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::buffers::Arena;
use crate::config::{Config, IoMode, RdmaMode};
use crate::control::{CoordinatorLink, MakeHello, keep_session};
use crate::counters::Counters;
use crate::driver::{Driver, Parts};
use crate::limits::DRIVER_INPUTS_MAX;
use crate::local::LocalState;
use crate::local_api::{self, LocalApi};
use crate::storage::{Store, StoreConfig, io};
use crate::table::PieceTable;
use crate::transport::PieceSource;
use crate::transport::faulty::FaultySource;
use crate::transport::select::SelectTransport;
use crate::transport::tcp::{ServerConfig, Takeover, TcpConfig, TcpTransport};
use crate::{http, transport, verify};

/// Makes an agent misbehave towards its peers, for tests of real clusters: see [`FaultySource`].
const FAULT_VARIABLE: &str = "MILLSTREAM_FAULT_SERVE";

/// Runs an agent until `shutdown`, then drains within the configured time.
///
/// # Errors
/// What could not be bound, opened or read, and what to do about it.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let arena = Arena::new(config.buffer_bytes).context("cannot set up the buffers (flag --buffers)")?;
    let counters = Arc::new(Counters::default());
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot create the data directory {}", config.data_dir.display()))?;
    let mode = match config.io {
        IoMode::Auto => io::Mode::Auto,
        IoMode::Uring => io::Mode::Uring,
        IoMode::Blocking => io::Mode::Blocking,
    };
    let (engine, choice) = io::probe(mode, &config.data_dir, &arena).await.context("no storage engine (flag --io)")?;
    if let Some(reason) = &choice.buffered {
        counters.fallback("direct", "buffered", reason);
    }
    if let Some(reason) = &choice.fallback {
        counters.fallback("uring", "blocking", reason);
    }
    let store = Store::open(StoreConfig::new(&config.data_dir, config.capacity_bytes), engine, arena.clone())
        .await
        .with_context(|| format!("cannot open the data directory {}", config.data_dir.display()))?;
    let bound = Bound::new(&config).await?;
    let table = Arc::new(PieceTable::new(store.clone()));
    let link = CoordinatorLink::default();
    let local = Arc::new(LocalState::default());
    let tasks = TaskTracker::new();

    let mut tcp = TcpConfig::new(&config.node);
    tcp.connections_per_peer = config.connections_per_peer;
    let peers_down = CancellationToken::new();
    let rdma = start_rdma(&config, &arena, &peers_down).await?;
    #[cfg_attr(not(feature = "rdma"), allow(clippy::clone_on_copy))]
    let takeover = rdma.clone().map(as_takeover);
    let transport = SelectTransport::new(TcpTransport::new(tcp), rdma, arena.clone(), counters.clone());
    let transport = Arc::new(transport);
    let parts = Parts {
        store: store.clone(),
        arena: arena.clone(),
        table: table.clone(),
        transport: transport.clone(),
        carriers: transport.clone(),
        local: local.clone(),
        counters: counters.clone(),
        link: link.clone(),
        tasks,
    };
    let (inputs, inputs_rx) = mpsc::channel(DRIVER_INPUTS_MAX);
    let (sessions, sessions_rx) = mpsc::channel(DRIVER_INPUTS_MAX);
    let core = AgentCore::new(AgentConfig {
        buffer_bytes: config.buffer_bytes,
        origin_gets_max: config.origin_concurrency,
        jitter_seed: rand::random(),
        ..AgentConfig::default()
    });
    let mut driver = Driver::new(parts, core, inputs.clone());
    driver.open_all(store.datasets_on_disk().await.context("cannot read the data directory")?);

    let mut server_config = ServerConfig::new(&config.node);
    server_config.takeover = takeover.clone();
    let server_stats = server_config.stats.clone();
    let source: Arc<dyn PieceSource> = match std::env::var(FAULT_VARIABLE) {
        Ok(script) => {
            tracing::warn!(script, "this agent serves its peers badly, as {FAULT_VARIABLE} tells it to");
            Arc::new(FaultySource::from_spec(&script, table.clone())?)
        }
        Err(_) => table.clone(),
    };
    let server = tokio::spawn(transport::tcp::serve(bound.peers, source, server_config, peers_down.clone()));
    tokio::spawn(mirror_sent(counters.clone(), server_stats, transport.clone(), shutdown.clone()));
    if let Some(listener) = bound.http {
        tokio::spawn(http::serve(listener, counters.clone(), link.clone(), shutdown.clone()));
    }
    let api = Arc::new(LocalApi {
        node: config.node.clone(),
        io: choice.engine.to_string(),
        local: local.clone(),
        store: store.clone(),
        counters: counters.clone(),
        link: link.clone(),
        inputs: inputs.clone(),
        transport,
    });
    tokio::spawn(local_api::serve(bound.socket, api, shutdown.clone()));
    tokio::spawn(verify::scrub(
        store.clone(),
        local,
        counters.clone(),
        inputs.clone(),
        config.scrub_bytes_per_s,
        shutdown.clone(),
    ));
    let hello = make_hello(&config, &store, &choice, takeover, bound.addresses.clone());
    let sessions_task =
        tokio::spawn(keep_session(config.coordinators.clone(), hello, link, sessions, shutdown.clone()));
    drop(inputs);
    announce(&config, &bound.addresses)?;

    let drain = config.drain_timeout;
    let mut driving = Some(tokio::spawn(driver.run(inputs_rx, sessions_rx, shutdown.clone())));
    if let Some(running) = &mut driving {
        tokio::select! {
            ended = running => {
                driving = None; // a finished task must not be waited for again
                if !shutdown.is_cancelled() {
                    ended.context("the driver failed")?;
                    bail!("the driver stopped by itself");
                }
            }
            () = shutdown.cancelled() => {}
        }
    }
    peers_down.cancel();
    let drained = tokio::time::timeout(drain, async {
        if let Some(driving) = driving {
            let _ = driving.await;
        }
        let _ = server.await;
        let _ = sessions_task.await;
    });
    match drained.await {
        Ok(()) => tracing::info!("stopped; everything in hand was finished"),
        Err(_) => {
            tracing::warn!(?drain, "stopped before everything in hand was finished; it is resumed at the next start")
        }
    }
    let _ = std::fs::remove_file(config.socket_path());
    Ok(())
}

/// Where the agent is reached.
#[derive(Clone, Debug)]
struct Addresses {
    peers: SocketAddr,
    http: Option<SocketAddr>,
}

struct Bound {
    peers: TcpListener,
    http: Option<TcpListener>,
    socket: UnixListener,
    addresses: Addresses,
}

impl Bound {
    async fn new(config: &Config) -> anyhow::Result<Bound> {
        let peers = TcpListener::bind(&config.listen)
            .await
            .with_context(|| format!("cannot listen for peers on {} (flag --listen)", config.listen))?;
        let http = match &config.http {
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .with_context(|| format!("cannot listen on {address} (flag --http)"))?,
            ),
            None => None,
        };
        let addresses =
            Addresses { peers: peers.local_addr()?, http: http.as_ref().map(TcpListener::local_addr).transpose()? };
        let socket = bind_socket(&config.socket_path()).await?;
        Ok(Bound { peers, http, socket, addresses })
    }
}

/// A socket file that nobody listens on is left over from a killed agent, and replaced.
async fn bind_socket(path: &Path) -> anyhow::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        bail!("another agent listens on {}; stop it, or choose another path with --socket", path.display());
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot create the socket {} (flag --socket)", path.display()))?;
    // Whoever may enter the directory may ask for paths; the files are world-readable anyway.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

#[cfg(feature = "rdma")]
async fn start_rdma(
    config: &Config,
    arena: &Arc<Arena>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<transport::rdma::Rdma>> {
    use transport::rdma::{Rdma, RdmaConfig};
    if config.rdma == RdmaMode::Off {
        return Ok(None);
    }
    let rdma = RdmaConfig::new(&config.node, config.rdma.clone());
    let rdma = Rdma::start(rdma, arena.clone(), shutdown.clone()).await.context("cannot set up buffers for RDMA")?;
    Ok(Some(rdma))
}

#[cfg(feature = "rdma")]
fn as_takeover(rdma: transport::rdma::Rdma) -> Arc<dyn Takeover> {
    Arc::new(rdma)
}

#[cfg(not(feature = "rdma"))]
fn as_takeover(rdma: std::convert::Infallible) -> Arc<dyn Takeover> {
    match rdma {}
}

#[cfg(not(feature = "rdma"))]
async fn start_rdma(
    config: &Config,
    _arena: &Arc<Arena>,
    _shutdown: &CancellationToken,
) -> anyhow::Result<Option<std::convert::Infallible>> {
    match &config.rdma {
        RdmaMode::Device(name) => bail!("--rdma {name}: this binary was built without RDMA (cargo feature `rdma`)"),
        RdmaMode::Auto | RdmaMode::Off => Ok(None),
    }
}

fn make_hello(
    config: &Arc<Config>,
    store: &Arc<Store>,
    choice: &io::IoChoice,
    takeover: Option<Arc<dyn Takeover>>,
    bound: Addresses,
) -> MakeHello {
    let (config, store, choice) = (config.clone(), store.clone(), choice.clone());
    let boot_id = rand::random();
    Arc::new(move |towards| {
        let reach = |address: SocketAddr| match towards {
            Some(ip) if address.ip().is_unspecified() => SocketAddr::new(ip, address.port()).to_string(),
            _ => address.to_string(),
        };
        v1::Hello {
            protocol: millstream_proto::PROTOCOL,
            node: config.node.clone(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            listen: config.advertise.clone().unwrap_or_else(|| reach(bound.peers)),
            http: bound.http.map(reach).unwrap_or_default(),
            labels: config.labels.clone().into_iter().collect(),
            transports: carriers(takeover.as_deref()),
            io: choice.engine.to_string(),
            io_reason: choice.fallback.clone().unwrap_or_default(),
            capacity_bytes: store.usage().capacity_bytes,
            boot_id,
            digests: store.open_digests().iter().map(|d| d.0.to_vec()).collect(),
        }
    })
}

/// What this node offers now.
fn carriers(takeover: Option<&dyn Takeover>) -> Vec<String> {
    match takeover.map(Takeover::features) {
        Some(features) if features.contains(Features::RDMA) => vec!["rdma".into(), "tcp".into()],
        _ => vec!["tcp".into()],
    }
}

/// The server counts what it sent; the heartbeat and `/metrics` read it here.
async fn mirror_sent(
    counters: Arc<Counters>,
    stats: Arc<transport::tcp::ServerStats>,
    transport: Arc<SelectTransport>,
    shutdown: CancellationToken,
) {
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    while !shutdown.is_cancelled() {
        tick.tick().await;
        counters.sent_tcp.set(stats.sent_bytes());
        transport.mirror(&counters);
    }
}

fn announce(config: &Config, addresses: &Addresses) -> anyhow::Result<()> {
    tracing::info!(node = config.node, peers = %addresses.peers, socket = %config.socket_path().display(), "agent is up");
    let Some(path) = &config.ready_file else { return Ok(()) };
    let json = serde_json::json!({
        "role": "agent", "node": config.node, "listen": addresses.peers.to_string(),
        "http": addresses.http.map(|a| a.to_string()), "socket": config.socket_path(),
    });
    let partial = path.with_extension("partial");
    std::fs::write(&partial, json.to_string())
        .and_then(|()| std::fs::rename(&partial, path))
        .with_context(|| format!("cannot write {} (flag --ready-file)", path.display()))
}
