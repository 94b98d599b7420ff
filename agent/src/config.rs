//! The agent's configuration, typed. The CLI fills it from flags, environment and file; nothing binds while parsing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Which storage engine to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoMode {
    /// io_uring where the kernel allows it, else blocking calls; the choice is counted and shown.
    #[default]
    Auto,
    /// io_uring or refuse to start.
    Uring,
    /// Blocking calls on a thread pool.
    Blocking,
}

/// Whether pieces may travel over RDMA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RdmaMode {
    /// With every device that works.
    #[default]
    Auto,
    /// No.
    Off,
    /// With this device.
    Device(String),
}

/// Everything an agent needs to know before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// Coordinators, `http://host:port`, tried in order.
    pub coordinators: Vec<String>,
    /// Where Millstream keeps everything on this node.
    pub data_dir: PathBuf,
    /// This node's name; unique in the cluster.
    pub node: String,
    /// Where peers are served, `address:port`; port 0 takes a free one.
    pub listen: String,
    /// What peers are told to connect to, `host:port`; by default the address used towards the coordinator.
    pub advertise: Option<String>,
    /// `/metrics`, `/healthz`, `/readyz`; `None` is off.
    pub http: Option<String>,
    /// The Unix socket of trainers and the CLI; default `<data_dir>/agent.sock`.
    pub socket: Option<PathBuf>,
    /// Quota for Millstream's own bytes; default 90 % of the file system.
    pub capacity_bytes: Option<u64>,
    /// The arena that pieces pass through.
    pub buffer_bytes: u64,
    /// Storage engine.
    pub io: IoMode,
    /// RDMA.
    pub rdma: RdmaMode,
    /// `rack=…` and whatever else the site wants to see.
    pub labels: BTreeMap<String, String>,
    /// TCP connections per peer, at most.
    pub connections_per_peer: usize,
    /// Ranged GETs at once, at most.
    pub origin_concurrency: usize,
    /// The background scrub's budget; 0 is off.
    pub scrub_bytes_per_s: u64,
    /// How long a stop may take.
    pub drain_timeout: Duration,
    /// Written when everything is bound: one JSON object with the addresses.
    pub ready_file: Option<PathBuf>,
}

impl Config {
    /// Defaults for a node of that name.
    pub fn new(node: impl Into<String>, data_dir: impl Into<PathBuf>) -> Config {
        Config {
            coordinators: vec!["http://127.0.0.1:7070".into()],
            data_dir: data_dir.into(),
            node: node.into(),
            listen: "0.0.0.0:7072".into(),
            advertise: None,
            http: Some("0.0.0.0:7073".into()),
            socket: None,
            capacity_bytes: None,
            buffer_bytes: 2 << 30,
            io: IoMode::Auto,
            rdma: RdmaMode::Auto,
            labels: BTreeMap::new(),
            connections_per_peer: 2,
            origin_concurrency: millstream_agent_core::limits::ORIGIN_GETS_MAX,
            scrub_bytes_per_s: 16 << 20,
            drain_timeout: Duration::from_secs(10),
            ready_file: None,
        }
    }

    /// The Unix socket's path.
    pub fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.data_dir.join("agent.sock"))
    }
}
