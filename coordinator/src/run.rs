//! From a configuration to a running coordinator, and down again.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use millstream_coordinator_core::{Core, CoreConfig};
use millstream_proto::manifest;
use millstream_types::Time;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::driver::state::{Settings, State, unix_s};
use crate::failure::RequestError;
use crate::limits::{AUDIT_LINES_MAX, GRPC_CONNECTIONS_MAX, HTTP_CONNECTIONS_MAX};
use crate::net::Listener;
use crate::observe::events::{Kind, Severity, Telling};
use crate::store::{CatalogStore, EmbeddedStore, KnownChecksums, Loaded, StoreHandle, VersionRecord};
use crate::{driver, grpc, http};

/// Where a coordinator listens: the ports that the system chose, when the configuration said 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Agents and clients.
    pub grpc: SocketAddr,
    /// Status page, API, metrics.
    pub http: SocketAddr,
}

/// Runs a coordinator until `shutdown`. `ready` is told the addresses when it listens and has its catalog.
///
/// # Errors
/// When the configuration, the catalog or a port cannot be used, or a part of it ended unexpectedly.
pub async fn run(
    config: Config,
    shutdown: CancellationToken,
    ready: Option<oneshot::Sender<Bound>>,
) -> anyhow::Result<()> {
    config.check()?;
    let grpc_listener = Listener::bind(config.grpc, GRPC_CONNECTIONS_MAX, "grpc").await?;
    let http_listener = Listener::bind(config.http, HTTP_CONNECTIONS_MAX, "http").await?;
    let bound = Bound { grpc: grpc_listener.address()?, http: http_listener.address()? };
    let dir = config.state_dir.clone();
    let (catalog, opened) = tokio::task::spawn_blocking(move || open(&dir)).await??;
    let (store, store_thread) = StoreHandle::start(opened)?;
    let state = restore(&config, catalog, store.clone())?;
    let stop_driver = CancellationToken::new();
    let (driver, driving) = driver::start(state, stop_driver.clone());
    let grpc_stop = shutdown.child_token();
    let documents = http::Documents::new(driver.clone(), store.clone());
    let grpc = tokio::spawn(grpc::serve(grpc_listener, driver.clone(), documents.clone(), grpc_stop.clone()));
    let http = tokio::spawn(http::serve(http_listener, driver, documents, grpc_stop.clone()));
    tracing::info!(grpc = %bound.grpc, http = %bound.http, catalog = store.description(), "the coordinator is ready");
    if let Some(ready) = ready {
        let _ = ready.send(bound);
    }

    let mut parts = Parts { driving, grpc, http };
    let failed = parts.until_stopped(&shutdown).await;
    grpc_stop.cancel();
    stop_driver.cancel();
    let grace = Duration::from_millis(config.shutdown_grace_ms.into());
    let cut = [parts.grpc.abort_handle(), parts.http.abort_handle()];
    let drained = tokio::time::timeout(grace, parts.drain()).await.is_ok();
    cut.iter().for_each(tokio::task::AbortHandle::abort);
    // The store goes last: every acknowledged change is durable already, learned checksums may not be.
    let flushed = store.close().await;
    let _ = tokio::task::spawn_blocking(move || store_thread.join()).await;
    if drained {
        tracing::info!("the coordinator stopped; all sessions ended");
    } else {
        tracing::warn!(?grace, "the coordinator stopped; some streams did not end in time and were cut");
    }
    failed?;
    flushed.context("the catalog could not be flushed at the end")
}

struct Parts {
    driving: tokio::task::JoinHandle<()>,
    grpc: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    http: tokio::task::JoinHandle<()>,
}

impl Parts {
    /// Until the shutdown, or until a part ends that should not.
    async fn until_stopped(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            // Without a server left to send it requests, the driver ends as well: that is seen first now and then.
            ended = &mut self.driving => match ended {
                Ok(()) if shutdown.is_cancelled() => Ok(()),
                ended => Err(anyhow::anyhow!("the driver ended: {ended:?}")),
            },
            ended = &mut self.grpc => match ended {
                Ok(Ok(())) if shutdown.is_cancelled() => Ok(()),
                ended => Err(anyhow::anyhow!("the gRPC server ended: {ended:?}")),
            },
            ended = &mut self.http => match ended {
                Ok(()) if shutdown.is_cancelled() => Ok(()),
                ended => Err(anyhow::anyhow!("the HTTP server ended: {ended:?}")),
            },
        }
    }

    async fn drain(self) {
        let Parts { driving, grpc, http } = self;
        for part in [finished(driving), finished_any(grpc), finished(http)] {
            part.await;
        }
    }
}

type Finished = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn finished(task: tokio::task::JoinHandle<()>) -> Finished {
    finished_any(task)
}

fn finished_any<T: Send + 'static>(task: tokio::task::JoinHandle<T>) -> Finished {
    Box::pin(async move {
        // One that ended before is not to be polled again.
        if !task.is_finished() {
            let _ = task.await;
        }
    })
}

/// The catalog as it was read: versions with manifests and learned checksums.
struct Catalog {
    loaded: Loaded,
    audit: Vec<String>,
    versions: Vec<(VersionRecord, millstream_types::Manifest, KnownChecksums)>,
}

fn open(dir: &std::path::Path) -> anyhow::Result<(Catalog, EmbeddedStore)> {
    let store = EmbeddedStore::open(dir)?;
    let mut loaded = store.load()?;
    let mut versions = Vec::new();
    for (digest, record) in std::mem::take(&mut loaded.versions) {
        let bytes =
            store.manifest(digest)?.with_context(|| format!("the catalog has {} but not its manifest", record.name))?;
        let manifest =
            manifest::decode(&bytes).map_err(|source| RequestError::Decode { digest: digest.to_string(), source })?;
        let learned = store.checksums(digest)?;
        versions.push((record, manifest, learned));
    }
    let audit = store.audit(usize::try_from(AUDIT_LINES_MAX).unwrap_or(usize::MAX))?;
    Ok((Catalog { loaded, audit, versions }, store))
}

/// The state that follows from the catalog. Stages begin anew: what nodes hold, their inventories tell.
fn restore(config: &Config, catalog: Catalog, store: StoreHandle) -> anyhow::Result<State> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let core = Core::new(CoreConfig {
        recovering: !catalog.loaded.stages.is_empty(),
        heartbeat_timeout_us: u64::from(config.heartbeat_ms) * 3_500,
        // Seconds above, a million assignments per second below: no number is used in two lives of the coordinator.
        first_assignment: since_1970.as_secs() << 20,
        ..CoreConfig::default()
    });
    let settings = Settings {
        id: config.id.clone().unwrap_or_else(host_name),
        heartbeat_ms: config.heartbeat_ms,
        node_timeout_us: u64::from(config.node_timeout_ms) * 1_000,
        alarm_hold_us: u64::from(config.alarm_hold_ms) * 1_000,
    };
    let mut state = State::new(settings, core, store);
    state.observed.events.restore(&catalog.audit);
    for (record, manifest, learned) in catalog.versions {
        state.restore_version(Time::ZERO, record, manifest.into(), learned);
    }
    for (digest, node, by) in catalog.loaded.pins {
        let id = state.datasets.by_digest(digest).map(|d| d.id);
        if let Some(dataset) = id.and_then(|id| state.datasets.get_mut(id)) {
            dataset.pins.insert(node, by);
        }
    }
    state.removed.extend(catalog.loaded.removed);
    for record in catalog.loaded.stages {
        let dataset = record.digest.parse().ok().and_then(|d| state.datasets.by_digest(d)).map(|d| d.id);
        let Some(dataset) = dataset else {
            tracing::warn!(stage = record.id, "a stage of a version that is not in the catalog was left out");
            continue;
        };
        let nodes = record.nodes.iter().map(|name| state.know_node(Time::ZERO, name)).collect();
        state.restore_stage(Time::ZERO, record, dataset, nodes, unix_s());
    }
    for record in catalog.loaded.jobs {
        state.restore_job(record);
    }
    let began = format!(
        "coordinator {} {} began, with {} versions and {} stages",
        state.settings.id,
        env!("CARGO_PKG_VERSION"),
        state.datasets.len(),
        state.stages.len()
    );
    state.tell(Telling::new(Kind::Coordinator, Severity::Info, began));
    Ok(state)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "coordinator".into(),
        name => name.to_owned(),
    }
}
