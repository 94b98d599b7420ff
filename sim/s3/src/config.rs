//! What a server is started with.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Access key and secret that requests must be signed with.
#[derive(Clone)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, …)", self.access_key)
    }
}

/// A bucket that exists from the start.
#[derive(Clone, Debug)]
pub struct BucketConfig {
    /// Its name.
    pub name: String,
    /// Files below this directory are its objects; `None`: in memory.
    pub directory: Option<PathBuf>,
}

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where S3 is served; port 0 picks one.
    pub listen: SocketAddr,
    /// Where faults and statistics are served as JSON; port 0 picks one.
    pub control: SocketAddr,
    /// Requests must be signed with these; `None` takes any request, signed or not.
    pub credentials: Option<Credentials>,
    /// Buckets. Others can be added later.
    pub buckets: Vec<BucketConfig>,
    /// Do buckets keep versions?
    pub versioned: bool,
    /// Bytes per second that leave the server, all requests together.
    pub rate_bytes_per_s: Option<u64>,
}

impl Default for ServerConfig {
    /// On loopback, ports picked, anonymous, one bucket `data` in memory.
    fn default() -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        ServerConfig {
            listen: loopback,
            control: loopback,
            credentials: None,
            buckets: vec![BucketConfig { name: "data".to_owned(), directory: None }],
            versioned: false,
            rate_bytes_per_s: None,
        }
    }
}
