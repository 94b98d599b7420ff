//! Accepts connections, within limits, and drains them at the end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millstream_agent_core::wire::{Features, Refusal};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ServerConfig;
use super::greeting::{GreetingError, welcome};
use super::serving::Serving;
use super::socket;
use super::stats::add;
use crate::limits::{ACCEPT_RETRY, COLD_READS_MAX};
use crate::transport::PieceSource;

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainOutcome {
    /// Every connection was finished with.
    Clean,
    /// The drain timeout passed; this many connections were cut.
    Cut(usize),
}

/// What all connections share.
pub(super) struct Context {
    pub(super) config: ServerConfig,
    pub(super) source: Arc<dyn PieceSource>,
    pub(super) shutdown: CancellationToken,
    /// Blocking reads of cold pieces at once.
    pub(super) cold_reads: Semaphore,
    per_ip: Mutex<HashMap<IpAddr, usize>>,
}

/// Counts a connection while it lives.
struct Admitted {
    context: Arc<Context>,
    ip: IpAddr,
}

impl Admitted {
    /// With the reason to refuse it, if there is one. Refused ones are counted too: they hold a socket.
    fn new(context: &Arc<Context>, ip: IpAddr) -> (Admitted, Option<Refusal>) {
        let total = context.config.stats.connections.fetch_add(1, Relaxed) + 1;
        let mut per_ip = context.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        let from_ip = per_ip.entry(ip).or_insert(0);
        *from_ip += 1;
        let busy = total > context.config.connections_max as u64 || *from_ip > context.config.connections_per_ip_max;
        drop(per_ip);
        (Admitted { context: context.clone(), ip }, busy.then_some(Refusal::Busy))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.context.config.stats.connections.fetch_sub(1, Relaxed);
        let mut per_ip = self.context.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = per_ip.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                per_ip.remove(&self.ip);
            }
        }
    }
}

/// Serves verified pieces from `source` until `shutdown`, then says goodbye on every connection, finishes the pieces
/// that are ready, and returns at the latest after the drain timeout.
pub async fn serve(
    listener: TcpListener,
    source: Arc<dyn PieceSource>,
    config: ServerConfig,
    shutdown: CancellationToken,
) -> DrainOutcome {
    let context = Arc::new(Context {
        config,
        source,
        shutdown,
        cold_reads: Semaphore::new(COLD_READS_MAX),
        per_ip: Mutex::default(),
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = context.shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => accept(&context, &mut connections, stream, from.ip()),
                Err(error) => {
                    // Out of descriptors or memory: accepting again at once would fail again at once.
                    if context.config.stats.closed.count("accept failed") {
                        tracing::warn!(%error, "cannot accept a peer's connection");
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    drain(connections, context.config.drain_timeout).await
}

async fn drain(mut connections: JoinSet<()>, timeout: Duration) -> DrainOutcome {
    let finished = tokio::time::timeout(timeout, async { while connections.join_next().await.is_some() {} });
    if finished.await.is_ok() {
        return DrainOutcome::Clean;
    }
    let left = connections.len();
    connections.shutdown().await;
    tracing::warn!(connections = left, "cut connections that did not drain in time");
    DrainOutcome::Cut(left)
}

fn accept(context: &Arc<Context>, connections: &mut JoinSet<()>, stream: TcpStream, ip: IpAddr) {
    add(&context.config.stats.accepted, 1);
    let (admitted, refusal) = Admitted::new(context, ip);
    // Over twice the limit not even a refusal is written: a task and its buffers per connection cost too.
    let total = context.config.stats.connections();
    if total > 2 * context.config.connections_max as u64 {
        context.config.stats.closed.count("flood");
        return;
    }
    let context = context.clone();
    connections.spawn(async move {
        let reason = connection(&context, stream, ip, refusal).await;
        if context.config.stats.closed.count(reason) {
            tracing::debug!(peer = %ip, reason, "first connection closed for this reason");
        }
        drop(admitted);
    });
}

/// One connection's life; returns why it ended.
async fn connection(
    context: &Arc<Context>,
    mut stream: TcpStream,
    ip: IpAddr,
    refusal: Option<Refusal>,
) -> &'static str {
    if socket::prepare(&stream).is_err() {
        return "i/o error";
    }
    let config = &context.config;
    let mut held = Vec::new();
    let refusal = refusal.or_else(|| context.shutdown.is_cancelled().then_some(Refusal::Draining));
    let features = config.takeover.as_ref().map_or(Features::NONE, |t| t.features());
    let window = config.requests_per_connection;
    let welcomed = welcome(&mut stream, &config.node, config.token, features, window, refusal, &mut held);
    let hello = match tokio::time::timeout(config.hello_timeout, welcomed).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(GreetingError::Io(_))) => return "i/o error",
        Ok(Err(GreetingError::Closed | GreetingError::Chatty)) => return "closed before hello",
        Ok(Err(GreetingError::Wire(error))) => {
            tracing::debug!(peer = %ip, %error, "refused a greeting");
            return "garbage hello";
        }
        Ok(Err(GreetingError::Refused(refusal))) => return refusal.as_str(),
        Err(_) => return "no hello in time",
    };
    tracing::debug!(peer = %ip, node = %hello.node, "serving a peer");
    if let Some(takeover) = &config.takeover
        && hello.features.common(features) != Features::NONE
    {
        return takeover.serve(stream, held, hello, context.source.clone(), context.shutdown.clone()).await;
    }
    let closed = Serving::new(stream, context.clone(), held).run().await;
    if closed.is_fault() {
        tracing::warn!(peer = %ip, node = hello.node, reason = %closed, "closed a peer's connection");
    } else {
        tracing::debug!(peer = %ip, node = hello.node, reason = %closed, "a peer's connection ended");
    }
    closed.reason()
}
