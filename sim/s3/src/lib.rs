//! A small S3 server for tests, benches and the demo: the real protocol, quick, and faulty on order.
//!
//! Purpose: an origin on loopback that is never the bottleneck, says what S3 says (ETags, stored checksums,
//! conditional and ranged GETs, listings), and misbehaves the way object stores do.
//! Participants: [`S3Server::start`] gives a [`ServerHandle`] to put objects, order [`faults`], and read [`stats`];
//! other processes do the same over the control port.
//! Goals: bytes leave in large frames without copies beyond the one into the socket; every byte sent is counted.
//! Non-goals: durability, access control beyond one key pair, TLS, most of S3.

mod body;
mod connection;
mod control;
mod front;
mod service;
mod store;

pub mod config;
pub mod faults;
pub mod limits;
pub mod object;
pub mod seeded;
pub mod stats;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s::validation::NameValidation;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use config::{BucketConfig, Credentials, ServerConfig};
pub use faults::{Fault, FaultKind, Faults};
pub use object::{EtagKind, Object, ObjectOptions, StoredChecksum};
pub use seeded::Seeded;
pub use stats::{Snapshot, Stats};

use body::{FramePool, Pace};
use connection::Connection;
use front::Front;
use service::Service;
use store::Store;

/// Starts servers.
#[derive(Debug)]
pub struct S3Server;

/// A running server. It stops when this is dropped.
#[derive(Debug)]
pub struct S3ServerGuard {
    handle: Arc<ServerHandle>,
    _stop: DropGuard,
}

impl std::ops::Deref for S3ServerGuard {
    type Target = ServerHandle;
    fn deref(&self) -> &ServerHandle {
        &self.handle
    }
}

/// What one can do to a running server.
pub struct ServerHandle {
    addr: SocketAddr,
    control_addr: SocketAddr,
    store: Arc<Store>,
    faults: Arc<Faults>,
    stats: Arc<Stats>,
    pace: Arc<Pace>,
}

impl std::fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "S3Server({})", self.addr)
    }
}

impl ServerHandle {
    /// Where S3 is served.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where control is served.
    pub fn control_addr(&self) -> SocketAddr {
        self.control_addr
    }

    /// For `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Faults on order.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Bytes per second that leave the server, all requests together; `None`: no limit.
    pub fn set_rate(&self, bytes_per_s: Option<u64>) {
        self.pace.set(bytes_per_s);
    }

    /// Adds an empty bucket in memory.
    pub fn add_bucket(&self, name: &str) -> io::Result<()> {
        self.store.add_bucket(name, None)
    }

    /// Puts (or replaces) an object with these bytes.
    pub fn put_bytes(
        &self,
        bucket: &str,
        key: &str,
        bytes: impl Into<Bytes>,
        options: ObjectOptions,
    ) -> io::Result<()> {
        let object = Object::from_bytes(bytes.into(), options);
        self.store.put(bucket, key, object)
    }

    /// Puts (or replaces) an object with the bytes of [`Seeded::new`]`(seed)`, which take no memory.
    pub fn put_seeded(&self, bucket: &str, key: &str, seed: u64, len: u64, options: ObjectOptions) -> io::Result<()> {
        let object = Object::seeded(seed, len, options);
        self.store.put(bucket, key, object)
    }

    /// The object as it is now.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Arc<Object>> {
        self.store.get(bucket, key)
    }

    /// Removes an object.
    pub fn delete(&self, bucket: &str, key: &str) {
        self.store.delete(bucket, key);
    }
}

/// Buckets of any name.
struct AnyName;

impl NameValidation for AnyName {
    fn validate_bucket_name(&self, name: &str) -> bool {
        !name.is_empty()
    }
}

impl S3Server {
    /// Starts a server on the current runtime; it answers when this returns.
    ///
    /// # Errors
    /// When a port cannot be bound or a bucket's directory cannot be read.
    pub async fn start(config: ServerConfig) -> io::Result<S3ServerGuard> {
        let listener = TcpListener::bind(config.listen).await?;
        let control = TcpListener::bind(config.control).await?;
        let store = Arc::new(Store::new(config.versioned));
        for bucket in &config.buckets {
            store.add_bucket(&bucket.name, bucket.directory.clone())?;
        }
        let handle = Arc::new(ServerHandle {
            addr: listener.local_addr()?,
            control_addr: control.local_addr()?,
            store: store.clone(),
            faults: Arc::default(),
            stats: Arc::default(),
            pace: Arc::new(Pace::new(config.rate_bytes_per_s)),
        });
        let pool = FramePool::default();
        let mut builder = S3ServiceBuilder::new(Service { store, pool });
        builder.set_validation(AnyName);
        if let Some(c) = &config.credentials {
            builder.set_auth(SimpleAuth::from_single(c.access_key.clone(), c.secret_key.clone()));
        }
        let front = Arc::new(Front {
            s3: builder.build(),
            anonymous: config.credentials.is_none(),
            faults: handle.faults.clone(),
            stats: handle.stats.clone(),
            pace: handle.pace.clone(),
        });
        let stop = CancellationToken::new();
        let stats = handle.stats.clone();
        let serve = move |stream| {
            stats.connections.fetch_add(1, Ordering::Relaxed);
            serve_s3(front.clone(), stream)
        };
        tokio::spawn(accept(listener, stop.clone(), serve));
        let controlled = handle.clone();
        let serve = move |stream| serve_control(controlled.clone(), stream);
        tokio::spawn(accept(control, stop.clone(), serve));
        Ok(S3ServerGuard { handle, _stop: stop.drop_guard() })
    }
}

/// Runs a server until `shutdown` completes; `ready` is told once it answers.
///
/// # Errors
/// As [`S3Server::start`].
pub async fn serve(
    config: ServerConfig,
    ready: impl FnOnce(&ServerHandle),
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let server = S3Server::start(config).await?;
    ready(&server);
    shutdown.await;
    Ok(())
}

async fn accept<F>(listener: TcpListener, stop: CancellationToken, serve: impl Fn(TcpStream) -> F + Send)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let connection = serve(stream);
                let stop = stop.clone();
                tokio::spawn(async move { stop.run_until_cancelled(connection).await });
            }
            Err(e) => {
                // Out of descriptors: pause instead of spinning.
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_s3(front: Arc<Front>, stream: TcpStream) {
    let connection = Arc::new(Connection::of(&stream));
    let service = service_fn(move |request| {
        let (front, connection) = (front.clone(), connection.clone());
        async move { front.answer(request, connection).await }
    });
    let served =
        http1::Builder::new().timer(TokioTimer::new()).writev(true).serve_connection(TokioIo::new(stream), service);
    if let Err(e) = served.await {
        tracing::debug!(error = %e, "connection ended");
    }
}

async fn serve_control(handle: Arc<ServerHandle>, stream: TcpStream) {
    let service = service_fn(move |request| control::answer(handle.clone(), request));
    let served = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    if let Err(e) = served.await {
        tracing::debug!(error = %e, "control connection ended");
    }
}
