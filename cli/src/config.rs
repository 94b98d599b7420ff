//! Settings in layers: flags, then `MILLSTREAM_*`, then a TOML file, then defaults.
//!
//! clap reads flags and environment into the same structs that a file is read into; figment lays them over each
//! other. Unknown keys in a file are refused by name. Nothing is bound or opened here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use figment::Figment;
use figment::providers::{Format as _, Serialized, Toml};
use millstream_types::size::{SizeError, format_size, parse_size};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::failure::{Failure, Result};

/// A size in bytes, written `512MiB`, `10GB` or `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Size, SizeError> {
        parse_size(text).map(Size)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Size, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size such as 512MiB, or bytes as a number")]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(from)? {
            Written::Bytes(bytes) => Ok(Size(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_size(self.0))
    }
}

/// A time span, written `250ms`, `30s`, `2h 10m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Span, String> {
        humantime::parse_duration(text)
            .map(Span)
            .map_err(|_| format!("{text:?} is not a time span; write a number and a unit, such as 30s, 5m or 2h"))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&humantime::format_duration(self.0).to_string())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Span, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A list, written as an array, or as one text with commas.
pub(crate) fn list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a list of texts, or one text with commas")]
    enum Written {
        List(Vec<String>),
        Text(String),
    }
    Ok(match Written::deserialize(from)? {
        Written::List(list) => list,
        Written::Text(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
    })
}

/// Which storage engine to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Io {
    /// io_uring where the kernel allows it, else blocking calls; the choice is counted and shown
    Auto,
    /// io_uring, or refuse to start
    Uring,
    /// Blocking calls
    Blocking,
}

/// Settings of the coordinator.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoordinatorSettings {
    /// Where agents and clients connect [default: 0.0.0.0:7070]
    #[arg(long, env = "MILLSTREAM_GRPC", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// Status page, API and metrics [default: 0.0.0.0:7071]
    #[arg(long, env = "MILLSTREAM_HTTP", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Where the catalog is kept [default: /var/lib/millstream/coordinator]
    #[arg(long, env = "MILLSTREAM_STATE_DIR", value_name = "DIR", conflicts_with = "etcd")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Shared catalog in etcd, for several coordinators (not in this version)
    #[arg(long, env = "MILLSTREAM_ETCD", value_delimiter = ',', value_name = "URL")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub etcd: Vec<String>,
    /// Its name in greetings and on the status page [default: the host's name]
    #[arg(long, env = "MILLSTREAM_ID", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How often agents report [default: 1000]
    #[arg(long, env = "MILLSTREAM_HEARTBEAT_MS", value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u32>,
    /// Silence after which an agent's session is given up [default: 5000]
    #[arg(long, env = "MILLSTREAM_NODE_TIMEOUT_MS", value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_timeout_ms: Option<u32>,
    /// How long an alarm about something that happened stays after the last time [default: 300000]
    #[arg(long, env = "MILLSTREAM_ALARM_HOLD_MS", value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alarm_hold_ms: Option<u32>,
    /// How long a stop may take [default: 5000]
    #[arg(long, env = "MILLSTREAM_SHUTDOWN_GRACE_MS", value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_grace_ms: Option<u32>,
    /// Written when everything is bound: one JSON object with the addresses
    #[arg(long, env = "MILLSTREAM_READY_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_file: Option<PathBuf>,
}

/// Settings of an agent.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentSettings {
    /// Coordinators, tried in order [default: http://127.0.0.1:7070]
    #[arg(long, env = "MILLSTREAM_COORDINATOR", value_delimiter = ',', value_name = "URL[,URL...]")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub coordinator: Vec<String>,
    /// Where everything on this node is kept [default: /var/lib/millstream]
    #[arg(long, env = "MILLSTREAM_DATA_DIR", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// This node's name, unique in the cluster [default: the host's name]
    #[arg(long, env = "MILLSTREAM_NODE", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Where peers are served [default: 0.0.0.0:7072]
    #[arg(long, env = "MILLSTREAM_LISTEN", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// What peers are told to connect to [default: the address used towards the coordinator]
    #[arg(long, env = "MILLSTREAM_ADVERTISE", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// Metrics and health; "off" for none [default: 0.0.0.0:7073]
    #[arg(long, env = "MILLSTREAM_HTTP", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// The Unix socket of trainers and this CLI [default: <data-dir>/agent.sock]
    #[arg(long, env = "MILLSTREAM_SOCKET", value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The most that Millstream keeps here, such as 2TiB [default: 90 % of the file system]
    #[arg(long, env = "MILLSTREAM_CAPACITY", value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Size>,
    /// Memory that pieces pass through [default: 2GiB]
    #[arg(long, env = "MILLSTREAM_BUFFERS", value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffers: Option<Size>,
    /// auto (every device that works), off, or a device's name [default: auto]
    #[arg(long, env = "MILLSTREAM_RDMA", value_name = "auto|off|DEVICE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdma: Option<String>,
    /// Storage engine [default: auto]
    #[arg(long, env = "MILLSTREAM_IO", value_name = "ENGINE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Io>,
    /// Labels such as rack=r12; may be given several times
    #[arg(long = "label", env = "MILLSTREAM_LABELS", value_delimiter = ',', value_name = "KEY=VALUE")]
    #[serde(skip)]
    pub label: Vec<String>,
    /// `[labels]` in the file.
    #[arg(skip)]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// TCP connections per peer, at most [default: 2]
    #[arg(long, env = "MILLSTREAM_CONNECTIONS_PER_PEER", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_peer: Option<usize>,
    /// Reads from the origin at once, at most [default: 8]
    #[arg(long, env = "MILLSTREAM_ORIGIN_CONCURRENCY", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin_concurrency: Option<usize>,
    /// Bytes a second that the background scrub reads; 0 turns the scrub off [default: 16MiB]
    #[arg(long, env = "MILLSTREAM_SCRUB_RATE", value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrub_rate: Option<Size>,
    /// How long a stop may take [default: 10s]
    #[arg(long, env = "MILLSTREAM_DRAIN_TIMEOUT", value_name = "D")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<Span>,
    /// Written when everything is bound: one JSON object with the addresses
    #[arg(long, env = "MILLSTREAM_READY_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_file: Option<PathBuf>,
}

/// Settings of client verbs.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientSettings {
    /// Coordinators, tried in order [default: http://127.0.0.1:7070]
    #[arg(long, env = "MILLSTREAM_COORDINATOR", value_delimiter = ',', value_name = "URL[,URL...]")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub coordinator: Vec<String>,
    /// The local agent's Unix socket [default: agent.sock in /run/millstream or /var/lib/millstream]
    #[arg(long, env = "MILLSTREAM_SOCKET", value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

/// The coordinator that everyone without settings means.
pub const DEFAULT_COORDINATOR: &str = "http://127.0.0.1:7070";
/// Where an agent without settings keeps its data.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/millstream";
/// Where client verbs look for the agent's socket.
const DEFAULT_SOCKETS: [&str; 2] = ["/run/millstream/agent.sock", "/var/lib/millstream/agent.sock"];

impl ClientSettings {
    /// The coordinators, at least one.
    pub fn coordinators(&self) -> Vec<String> {
        match self.coordinator.is_empty() {
            true => vec![DEFAULT_COORDINATOR.to_owned()],
            false => self.coordinator.clone(),
        }
    }

    /// The socket that was named, or a default one that exists.
    pub fn socket(&self) -> Option<PathBuf> {
        // In a directory that this user may not enter there is one, most likely.
        let there = |p: &PathBuf| p.try_exists().unwrap_or(true);
        self.socket.clone().or_else(|| DEFAULT_SOCKETS.iter().map(PathBuf::from).find(there))
    }

    /// The socket to try when one is needed.
    pub fn socket_or_default(&self) -> PathBuf {
        self.socket().unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKETS[0]))
    }
}

/// Lays flags and environment (already in `given`) over the role's file.
pub fn layered<S: Serialize + DeserializeOwned>(role: &str, file: Option<&Path>, given: &S) -> Result<S> {
    let default_file = PathBuf::from(format!("/etc/millstream/{role}.toml"));
    let file = match file {
        Some(file) if !file.is_file() => {
            return Err(Failure::usage(file.display().to_string(), "there is no such file")
                .next("correct --config or MILLSTREAM_CONFIG"));
        }
        Some(file) => Some(file.to_owned()),
        None => default_file.is_file().then_some(default_file),
    };
    let mut layers = Figment::new();
    if let Some(file) = &file {
        layers = layers.merge(Toml::file_exact(file));
    }
    layers.merge(Serialized::defaults(given)).extract().map_err(|error| {
        let thing = file.map_or_else(|| role.to_owned(), |f| f.display().to_string());
        Failure::usage(thing, describe(&error))
            .next("the command's --help and docs/reference/configuration.md list every key")
    })
}

/// figment's error in one line: the key and what is wrong with it.
fn describe(error: &figment::Error) -> String {
    match (&error.kind, error.path.join(".")) {
        (figment::error::Kind::UnknownField(field, expected), _) => {
            format!("unknown key {field:?}; known are {}", expected.join(", "))
        }
        (kind, path) if path.is_empty() => kind.to_string(),
        (kind, path) => format!("{path}: {kind}"),
    }
}

/// `KEY=VALUE` texts over the file's table.
pub fn labels(settings: &AgentSettings) -> Result<BTreeMap<String, String>> {
    let mut labels = settings.labels.clone();
    for text in &settings.label {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => labels.insert(key.to_owned(), value.to_owned()),
            _ => {
                return Err(Failure::usage(format!("--label {text:?}"), "is not KEY=VALUE")
                    .next("write, for example, --label rack=r12"));
            }
        };
    }
    Ok(labels)
}

/// This host's name.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn flags_win_over_the_file_key_by_key() {
        let (_dir, path) = file(
            "coordinator = [\"http://a:1\", \"http://b:2\"]\nnode = \"file\"\ncapacity = \"2TiB\"\nbuffers = 4096\n\
             drain_timeout = \"3s\"\nio = \"blocking\"\n[labels]\nrack = \"r1\"\n",
        );
        let given = AgentSettings {
            node: Some("flag".into()),
            buffers: Some(Size(7)),
            label: vec!["rack=r2".into(), "zone=z".into()],
            ..AgentSettings::default()
        };
        let mut settings = layered("agent", Some(&path), &given).unwrap();
        assert_eq!(settings.node.as_deref(), Some("flag"));
        assert_eq!(settings.coordinator, ["http://a:1", "http://b:2"]);
        assert_eq!(settings.capacity, Some(Size(2 << 40)));
        assert_eq!(settings.buffers, Some(Size(7)));
        assert_eq!(settings.drain_timeout, Some(Span(Duration::from_secs(3))));
        assert_eq!(settings.io, Some(Io::Blocking));
        settings.label = given.label;
        let labels = labels(&settings).unwrap();
        assert_eq!(labels.into_iter().collect::<Vec<_>>(), [("rack".into(), "r2".into()), ("zone".into(), "z".into())]);
    }

    #[test]
    fn a_list_may_be_one_text() {
        let (_dir, path) = file("coordinator = \"http://a:1, http://b:2\"\n");
        let settings: ClientSettings = layered("client", Some(&path), &ClientSettings::default()).unwrap();
        assert_eq!(settings.coordinators(), ["http://a:1", "http://b:2"]);
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused_by_name() {
        for (text, named) in
            [("data_dri = \"/x\"\n", "data_dri"), ("capacity = \"lots\"\n", "capacity"), ("node = 3\n", "node")]
        {
            let (_dir, path) = file(text);
            let failure = layered("agent", Some(&path), &AgentSettings::default()).unwrap_err();
            assert_eq!(failure.code, crate::failure::Code::Usage);
            assert!(failure.reason.contains(named), "{named}: {failure}");
        }
        assert!(layered("agent", Some(Path::new("/nowhere.toml")), &AgentSettings::default()).is_err());
    }

    #[test]
    fn labels_need_an_equals_sign() {
        let settings = AgentSettings { label: vec!["rack".into()], ..AgentSettings::default() };
        assert!(labels(&settings).is_err());
    }
}
