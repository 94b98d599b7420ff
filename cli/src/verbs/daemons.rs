//! `coordinator` and `agent`: settings become typed configurations, then the libraries run until a signal.

use std::net::SocketAddr;
use std::path::PathBuf;

use millstream_agent::config::{Config as AgentConfig, IoMode, RdmaMode};
use millstream_coordinator::{Bound, Config as CoordinatorConfig};
use serde_json::json;
use tokio::sync::oneshot;

use crate::args::Daemon;
use crate::client;
use crate::config::{self, AgentSettings, CoordinatorSettings, DEFAULT_DATA_DIR, Io, host_name};
use crate::failure::{Failure, Result};
use crate::logging;
use crate::signals::{shutdown_token, tie_to_parent};
use crate::systemd::{self, Probe};
use crate::verbs::s3_server::write_ready;

/// Runs a coordinator.
pub async fn coordinator(daemon: Daemon<CoordinatorSettings>) -> Result<()> {
    tie_to_parent(daemon.parent)?;
    let settings = config::layered("coordinator", daemon.config.as_deref(), &daemon.settings)?;
    let ready_file = settings.ready_file.clone();
    let config = coordinator_config(settings)?;
    logging::init(&daemon.log, daemon.log_format)?;
    let shutdown = shutdown_token()?;
    let (tell, told) = oneshot::channel::<Bound>();
    let announce = async {
        // Without an address it did not start: its own error says why.
        let Ok(bound) = told.await else { return Ok(()) };
        tokio::spawn(systemd::tell(Probe::Http(bound.http), shutdown.clone()));
        let Some(path) = ready_file else { return Ok(()) };
        let ready = json!({"role": "coordinator", "grpc": bound.grpc.to_string(), "http": bound.http.to_string()});
        write_ready(&path, &ready)
    };
    let running = millstream_coordinator::run(config, shutdown.clone(), Some(tell));
    let (ran, announced) = tokio::join!(running, async {
        let announced = announce.await;
        if announced.is_err() {
            shutdown.cancel();
        }
        announced
    });
    ran.map_err(|e| stopped("coordinator", &e))?;
    announced
}

/// Runs an agent.
pub async fn agent(daemon: Daemon<AgentSettings>) -> Result<()> {
    tie_to_parent(daemon.parent)?;
    let mut settings = config::layered("agent", daemon.config.as_deref(), &daemon.settings)?;
    settings.label = daemon.settings.label.clone();
    let config = agent_config(settings)?;
    logging::init(&daemon.log, daemon.log_format)?;
    let shutdown = shutdown_token()?;
    let socket = config.socket.clone().unwrap_or_else(|| config.data_dir.join("agent.sock"));
    tokio::spawn(systemd::tell(Probe::Socket(socket), shutdown.clone()));
    millstream_agent::run(config, shutdown).await.map_err(|e| stopped("agent", &e))
}

/// A daemon's error with all its causes on one line.
fn stopped(role: &str, error: &anyhow::Error) -> Failure {
    Failure::other(role, format!("{error:#}")).next("correct what it names; docs/operations.md lists causes")
}

fn address(flag: &str, text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| {
        Failure::usage(format!("--{flag} {text}"), "is not ADDRESS:PORT").next("write, for example, 0.0.0.0:7070")
    })
}

fn coordinator_config(settings: CoordinatorSettings) -> Result<CoordinatorConfig> {
    let mut config = CoordinatorConfig::default();
    if let Some(grpc) = &settings.grpc {
        config.grpc = address("grpc", grpc)?;
    }
    if let Some(http) = &settings.http {
        config.http = address("http", http)?;
    }
    if let Some(state_dir) = settings.state_dir {
        config.state_dir = state_dir;
    }
    config.etcd = settings.etcd;
    config.id = Some(settings.id.unwrap_or_else(host_name));
    config.heartbeat_ms = settings.heartbeat_ms.unwrap_or(config.heartbeat_ms);
    config.node_timeout_ms = settings.node_timeout_ms.unwrap_or(config.node_timeout_ms);
    config.alarm_hold_ms = settings.alarm_hold_ms.unwrap_or(config.alarm_hold_ms);
    config.shutdown_grace_ms = settings.shutdown_grace_ms.unwrap_or(config.shutdown_grace_ms);
    config.check().map_err(|e| Failure::usage("coordinator", e).next("`millstream coordinator --help`"))?;
    Ok(config)
}

fn agent_config(settings: AgentSettings) -> Result<AgentConfig> {
    let data_dir = settings.data_dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR));
    let node = settings.node.clone().unwrap_or_else(host_name);
    let mut config = AgentConfig::new(node, data_dir);
    config.labels = config::labels(&settings)?;
    config.rdma = match settings.rdma.as_deref() {
        None | Some("auto") => RdmaMode::Auto,
        Some("off") => RdmaMode::Off,
        Some(device) => RdmaMode::Device(device.to_owned()),
    };
    // Else the agent would come up and try again for ever.
    settings.coordinator.iter().try_for_each(|url| client::endpoint(url).map(drop))?;
    if !settings.coordinator.is_empty() {
        config.coordinators = settings.coordinator;
    }
    if let Some(listen) = settings.listen {
        config.listen = address("listen", &listen)?.to_string();
    }
    match settings.http.as_deref() {
        None => {}
        Some("off") => config.http = None,
        Some(http) => config.http = Some(address("http", http)?.to_string()),
    }
    config.io = match settings.io {
        None | Some(Io::Auto) => IoMode::Auto,
        Some(Io::Uring) => IoMode::Uring,
        Some(Io::Blocking) => IoMode::Blocking,
    };
    config.advertise = settings.advertise;
    config.socket = settings.socket;
    config.capacity_bytes = settings.capacity.map(|c| c.0);
    config.buffer_bytes = settings.buffers.map_or(config.buffer_bytes, |b| b.0);
    config.connections_per_peer =
        at_least_one("connections-per-peer", settings.connections_per_peer)?.unwrap_or(config.connections_per_peer);
    config.origin_concurrency =
        at_least_one("origin-concurrency", settings.origin_concurrency)?.unwrap_or(config.origin_concurrency);
    config.scrub_bytes_per_s = settings.scrub_rate.map_or(config.scrub_bytes_per_s, |s| s.0);
    config.drain_timeout = settings.drain_timeout.map_or(config.drain_timeout, |d| d.0);
    config.ready_file = settings.ready_file;
    Ok(config)
}

fn at_least_one(flag: &str, value: Option<usize>) -> Result<Option<usize>> {
    if value == Some(0) {
        return Err(Failure::usage(format!("--{flag} 0"), "must be at least 1").next("leave it out for the default"));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Size;

    #[test]
    fn settings_reach_the_agent() {
        let config = agent_config(AgentSettings {
            node: Some("n1".into()),
            data_dir: Some("/d".into()),
            listen: Some("127.0.0.1:0".into()),
            http: Some("off".into()),
            capacity: Some(Size(5)),
            io: Some(Io::Blocking),
            label: vec!["rack=r1".into()],
            ..AgentSettings::default()
        })
        .unwrap();
        assert_eq!((config.node.as_str(), config.http, config.capacity_bytes), ("n1", None, Some(5)));
        assert_eq!(config.io, IoMode::Blocking);
        assert_eq!(config.labels["rack"], "r1");
    }

    #[test]
    fn what_this_version_does_not_have_is_refused() {
        let rdma = AgentSettings { rdma: Some("mlx5_0".into()), ..AgentSettings::default() };
        assert_eq!(agent_config(rdma).unwrap().rdma, RdmaMode::Device("mlx5_0".into()));
        let etcd = CoordinatorSettings { etcd: vec!["http://e:2379".into()], ..CoordinatorSettings::default() };
        assert!(coordinator_config(etcd).is_err());
        let listen = AgentSettings { listen: Some("here".into()), ..AgentSettings::default() };
        assert!(agent_config(listen).is_err());
        let coordinator = AgentSettings { coordinator: vec!["head:7070".into()], ..AgentSettings::default() };
        assert!(agent_config(coordinator).unwrap_err().to_string().contains("http://"));
    }
}
