//! The session with the coordinator: connect, say hello, pass messages both ways, begin anew when it breaks.
//!
//! Participants: the driver gets [`SessionEvent`]s; it sends through the [`SessionOut`] of the session that is up.
//! Goals: an agent never needs the coordinator to keep serving; reconnects are spread by jitter; a slow or silent
//! stream is given up, not waited for. Non-goals: meaning of the messages.

use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millstream_proto::v1::agent_service_client::AgentServiceClient;
use millstream_proto::v1::coordinator_message::Body;
use millstream_proto::v1::{self, AgentMessage, agent_message};
use rand::Rng as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::limits::{
    CONNECT_TIMEOUT, CONTROL_OUT_MAX, GOODBYE_TIMEOUT, MANIFEST_BYTES_MAX, RECONNECT_MAX, RECONNECT_MIN,
};

/// What the driver learns of sessions.
#[derive(Debug)]
pub enum SessionEvent {
    /// A coordinator welcomed us.
    Up {
        /// Where to send.
        out: SessionOut,
        /// What it said.
        welcome: v1::Welcome,
    },
    /// A message of the session that is up.
    Message(Body),
    /// The session ended; the next one is on its way.
    Down {
        /// In words.
        reason: String,
    },
}

/// The sending side of one session. Dropping it ends the session.
#[derive(Debug, Clone)]
pub struct SessionOut(mpsc::Sender<AgentMessage>);

impl SessionOut {
    /// Sends; `false` when the session is gone or too slow: drop it then.
    #[must_use]
    pub fn send(&self, body: agent_message::Body) -> bool {
        self.0.try_send(AgentMessage { body: Some(body) }).is_ok()
    }
}

/// The connection to the coordinator that answers now, for unary calls.
#[derive(Clone, Default, Debug)]
pub struct CoordinatorLink(Arc<Mutex<Option<Channel>>>);

impl CoordinatorLink {
    /// The channel, when there is one.
    pub fn channel(&self) -> Option<Channel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, channel: Option<Channel>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }

    /// A manifest, as Arrow IPC bytes.
    ///
    /// # Errors
    /// In words: no coordinator, unknown digest, or over [`MANIFEST_BYTES_MAX`].
    pub async fn manifest(&self, digest: millstream_types::Digest) -> Result<Vec<u8>, String> {
        let channel = self.channel().ok_or("no coordinator is reachable")?;
        let request = v1::GetManifestRequest { digest: digest.0.to_vec(), with_checksums: true };
        let mut chunks = AgentServiceClient::new(channel)
            .max_decoding_message_size(16 << 20)
            .get_manifest(request)
            .await
            .map_err(|s| s.message().to_owned())?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await.map_err(|s| s.message().to_owned())? {
            if bytes.len() + chunk.data.len() > MANIFEST_BYTES_MAX {
                return Err(format!("the manifest is over {MANIFEST_BYTES_MAX} bytes"));
            }
            bytes.extend_from_slice(&chunk.data);
        }
        Ok(bytes)
    }
}

/// Builds the hello of each session anew: what is on disk changes. The argument is the address that the
/// coordinator would see us under.
pub type MakeHello = Arc<dyn Fn(Option<IpAddr>) -> v1::Hello + Send + Sync>;

/// Keeps a session with one of the coordinators until `shutdown`.
pub async fn keep_session(
    coordinators: Vec<String>,
    hello: MakeHello,
    link: CoordinatorLink,
    events: mpsc::Sender<SessionEvent>,
    shutdown: CancellationToken,
) {
    let mut wait = RECONNECT_MIN;
    let mut logged = String::new();
    for coordinator in coordinators.iter().cycle() {
        let session = one_session(coordinator, &hello, &link, &events);
        let ended = tokio::select! {
            ended = session => ended,
            () = goodbye(&shutdown) => return,
        };
        link.set(None);
        let reason = match ended {
            Ok(reason) => {
                wait = RECONNECT_MIN;
                reason
            }
            Err(reason) => reason,
        };
        if reason != logged {
            tracing::warn!(coordinator, reason, "no session with the coordinator; trying again");
            logged.clone_from(&reason);
        }
        if events.send(SessionEvent::Down { reason }).await.is_err() {
            return;
        }
        let jitter = rand::rng().random_range(0.5..1.5);
        tokio::select! {
            () = tokio::time::sleep(wait.mul_f64(jitter)) => {}
            () = shutdown.cancelled() => return,
        }
        wait = (wait * 2).min(RECONNECT_MAX);
    }
}

/// Shutdown, and time for the last words: the driver says that the agent leaves and ends the session's stream, and the
/// coordinator then ends it on its side.
async fn goodbye(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(GOODBYE_TIMEOUT).await;
}

/// `Ok`: a session was up and ended for this reason. `Err`: it did not come up.
async fn one_session(
    coordinator: &str,
    hello: &MakeHello,
    link: &CoordinatorLink,
    events: &mpsc::Sender<SessionEvent>,
) -> Result<String, String> {
    let endpoint = Endpoint::from_shared(coordinator.to_owned())
        .map_err(|e| format!("{coordinator:?} is not an address: {e}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(|e| with_source(&e))?;
    let (out, rx) = mpsc::channel(CONTROL_OUT_MAX);
    let greeting = agent_message::Body::Hello(hello(address_towards(coordinator)));
    let _ = out.try_send(AgentMessage { body: Some(greeting) });
    let mut inbound = AgentServiceClient::new(channel.clone())
        .max_decoding_message_size(64 << 20)
        .session(ReceiverStream::new(rx))
        .await
        .map_err(|s| s.message().to_owned())?
        .into_inner();
    let welcome = match inbound.message().await {
        Ok(Some(v1::CoordinatorMessage { body: Some(Body::Welcome(welcome)) })) => welcome,
        Ok(Some(v1::CoordinatorMessage { body: Some(Body::Refused(refused)) })) => return Err(refused.reason),
        Ok(other) => return Err(format!("the coordinator began with {other:?} instead of a welcome")),
        Err(status) => return Err(status.message().to_owned()),
    };
    tracing::info!(coordinator, id = welcome.coordinator, version = welcome.version, "session with the coordinator");
    link.set(Some(channel));
    let _ = events.send(SessionEvent::Up { out: SessionOut(out), welcome }).await;
    loop {
        match inbound.message().await {
            Ok(Some(message)) => {
                for body in flatten(message) {
                    if events.send(SessionEvent::Message(body)).await.is_err() {
                        return Ok("the agent stops".into());
                    }
                }
            }
            Ok(None) => return Ok("the coordinator ended the session".into()),
            Err(status) => return Ok(status.message().to_owned()),
        }
    }
}

fn flatten(message: v1::CoordinatorMessage) -> Vec<Body> {
    match message.body {
        Some(Body::Batch(batch)) => batch.messages.into_iter().filter_map(|m| m.body).collect(),
        Some(body) => vec![body],
        None => Vec::new(),
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// The local address that packets to the coordinator leave from. Connecting a UDP socket sends nothing.
fn address_towards(coordinator: &str) -> Option<IpAddr> {
    let authority = coordinator.split("://").last()?.split('/').next()?;
    let socket = UdpSocket::bind("0.0.0.0:0").or_else(|_| UdpSocket::bind("[::]:0")).ok()?;
    socket.connect(authority).ok()?;
    socket.local_addr().ok().map(|a| a.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_towards_a_coordinator_on_this_host_is_loopback() {
        assert_eq!(address_towards("http://127.0.0.1:7070"), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(address_towards("nonsense"), None);
    }
}
