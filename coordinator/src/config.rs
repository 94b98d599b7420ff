//! What can be configured, as types. The command line fills it from flags, environment, file and defaults.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Configuration of a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where agents and clients reach it.
    pub grpc: SocketAddr,
    /// Where the status page, the API and the metrics are.
    pub http: SocketAddr,
    /// Directory of the durable catalog; one coordinator at a time.
    pub state_dir: PathBuf,
    /// Endpoints of an etcd cluster that holds the catalog instead of `state_dir`.
    pub etcd: Vec<String>,
    /// Its name in greetings and in status; the host's name when not given.
    pub id: Option<String>,
    /// How often agents report.
    pub heartbeat_ms: u32,
    /// Silence after which an agent's session is given up.
    pub node_timeout_ms: u32,
    /// Time that a shutdown may take before it is cut short.
    pub shutdown_grace_ms: u32,
    /// How long an alarm about something that happened (a fallback, a bad checksum) stays after the last time.
    pub alarm_hold_ms: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            grpc: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7070)),
            http: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7071)),
            state_dir: PathBuf::from("/var/lib/millstream/coordinator"),
            etcd: Vec::new(),
            id: None,
            heartbeat_ms: 1_000,
            node_timeout_ms: 5_000,
            shutdown_grace_ms: 5_000,
            alarm_hold_ms: 300_000,
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Asked for what does not exist.
    #[error("--etcd is not built yet: this version keeps its catalog in --state-dir on local disk; leave --etcd out")]
    Etcd,
    /// Not between the limits.
    #[error("{field} is {value}, and must be between {min} and {max}")]
    Range {
        /// Which.
        field: &'static str,
        /// As given.
        value: u32,
        /// Least.
        min: u32,
        /// Most.
        max: u32,
    },
    /// Agents would be given up between two of their reports.
    #[error("node_timeout_ms is {timeout}, and must be at least three times heartbeat_ms, which is {heartbeat}")]
    TimeoutTooShort {
        /// As given.
        timeout: u32,
        /// As given.
        heartbeat: u32,
    },
}

impl Config {
    /// Names of all settings, as in a file; `MILLSTREAM_` and the name in capitals in the environment.
    pub const KEYS: [&'static str; 9] = [
        "grpc",
        "http",
        "state_dir",
        "etcd",
        "id",
        "heartbeat_ms",
        "node_timeout_ms",
        "shutdown_grace_ms",
        "alarm_hold_ms",
    ];

    /// Are the values usable, also together?
    ///
    /// # Errors
    /// [`ConfigError`] naming the setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !self.etcd.is_empty() {
            return Err(ConfigError::Etcd);
        }
        range("heartbeat_ms", self.heartbeat_ms, 50, 60_000)?;
        range("node_timeout_ms", self.node_timeout_ms, 150, 3_600_000)?;
        range("shutdown_grace_ms", self.shutdown_grace_ms, 0, 600_000)?;
        range("alarm_hold_ms", self.alarm_hold_ms, 0, 86_400_000)?;
        if self.node_timeout_ms / 3 < self.heartbeat_ms {
            return Err(ConfigError::TimeoutTooShort { timeout: self.node_timeout_ms, heartbeat: self.heartbeat_ms });
        }
        Ok(())
    }
}

fn range(field: &'static str, value: u32, min: u32, max: u32) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Range { field, value, min, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_good_and_every_key_is_listed() {
        Config::default().check().unwrap();
        let json = serde_json::to_value(Config::default()).unwrap();
        let mut keys: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        let mut listed = Config::KEYS.map(str::to_owned).to_vec();
        keys.sort();
        listed.sort();
        assert_eq!(keys, listed);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let etcd = Config { etcd: vec!["http://e:2379".into()], ..Config::default() };
        assert_eq!(etcd.check(), Err(ConfigError::Etcd));
        let short = Config { node_timeout_ms: 2_000, ..Config::default() };
        assert!(matches!(short.check(), Err(ConfigError::TimeoutTooShort { .. })));
        assert!(serde_json::from_str::<Config>(r#"{"grcp":"0.0.0.0:1"}"#).is_err());
    }
}
