//! Agents: one session each, and manifests.
//!
//! Goals: an agent that is refused learns why and what to do; a driver that is behind slows agents down instead of
//! filling memory; many agents that open one version at once cost one encoding of its manifest.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::Stream;
use millstream_proto::v1::agent_message::Body;
use millstream_proto::v1::agent_service_server::AgentService;
use millstream_proto::v1::coordinator_message::Body as Order;
use millstream_proto::v1::{self, AgentMessage, CoordinatorMessage};
use millstream_proto::{convert, manifest};
use millstream_types::{Crc64, Digest, Manifest, NodeId};
use tokio::sync::{OnceCell, mpsc};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::driver::{DriverHandle, Input};
use crate::failure::RequestError;
use crate::limits::{HELLO_TIMEOUT, MANIFEST_CHUNK_BYTES, MANIFEST_CHUNKS_MAX, NODE_QUEUE_MAX};
use crate::nodes::{Hello, Refusal, SessionId, parse_hello};
use crate::store::KnownChecksums;

type Orders = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

/// An encoded manifest is used again for this long: checksums that are newer reach the agent by message.
const MANIFEST_REUSE: Duration = Duration::from_secs(1);

type Encoded = Arc<OnceCell<Arc<Vec<u8>>>>;

/// The service.
pub(crate) struct Agents {
    driver: DriverHandle,
    shutdown: CancellationToken,
    encoded: Mutex<HashMap<(Digest, bool), (Instant, Encoded)>>,
}

impl Agents {
    pub(crate) fn new(driver: DriverHandle, shutdown: CancellationToken) -> Agents {
        Agents { driver, shutdown, encoded: Mutex::default() }
    }

    async fn greet(&self, from: Option<IpAddr>, messages: &mut Streaming<AgentMessage>) -> Result<Hello, Refusal> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, messages.message()).await;
        let Ok(Ok(Some(AgentMessage { body: Some(Body::Hello(mut hello)) }))) = first else {
            return Err(Refusal::NoHello);
        };
        reachable(&mut hello.listen, from);
        parse_hello(&hello)
    }

    /// The slot of that manifest: one encoding for all who ask within [`MANIFEST_REUSE`].
    fn slot(&self, key: (Digest, bool)) -> Encoded {
        let mut all = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        all.retain(|_, (since, _)| now.duration_since(*since) < MANIFEST_REUSE);
        all.entry(key).or_insert_with(|| (now, Encoded::default())).1.clone()
    }

    async fn encode(&self, digest: Digest, with_checksums: bool) -> Result<Arc<Vec<u8>>, RequestError> {
        let found = self.driver.call(move |state, _| {
            let dataset = state.datasets.by_digest(digest)?;
            let known = if with_checksums { state.core.known_checksums(dataset.id) } else { KnownChecksums::new() };
            Some((dataset.manifest.clone(), known))
        });
        let (manifest, known) = found
            .await?
            .ok_or_else(|| RequestError::UnknownDataset { selector: digest.to_string(), hint: String::new() })?;
        let work = move || encode(&manifest, &known);
        let encoded = tokio::task::spawn_blocking(work).await;
        Ok(Arc::new(encoded.map_err(|_| RequestError::Stopping)??))
    }
}

/// The manifest with the checksums of shards of which every piece is known.
fn encode(manifest: &Manifest, known: &KnownChecksums) -> Result<Vec<u8>, manifest::ManifestEncodeError> {
    let of = |shard: u32| -> Option<Vec<Crc64>> {
        let pieces = manifest.layout().shard_pieces(shard);
        let at = known.partition_point(|(first, _)| *first <= pieces.start);
        let (first, crcs) = known.get(at.checked_sub(1)?)?;
        let start = (pieces.start - first) as usize;
        crcs.get(start..start + pieces.len()).map(<[Crc64]>::to_vec)
    };
    manifest::encode(manifest, Some(&of))
}

/// `0.0.0.0:7072` means: the address that the agent comes from.
fn reachable(listen: &mut String, from: Option<IpAddr>) {
    if let (Some(from), Ok(address)) = (from, listen.parse::<std::net::SocketAddr>())
        && address.ip().is_unspecified()
    {
        *listen = std::net::SocketAddr::new(from, address.port()).to_string();
    }
}

fn refused(refusal: &Refusal) -> Orders {
    tracing::warn!(%refusal, "refused an agent");
    let refused = CoordinatorMessage { body: Some(Order::Refused(v1::Refused { reason: refusal.to_string() })) };
    Box::pin(tokio_stream::once(Ok(refused)))
}

/// Passes what the agent says on to the driver until the stream ends, the session is replaced or we stop.
async fn listen(
    driver: DriverHandle,
    mut messages: Streaming<AgentMessage>,
    (node, session): (NodeId, SessionId),
    ended: CancellationToken,
) {
    loop {
        let message = tokio::select! {
            () = ended.cancelled() => break,
            message = messages.message() => message,
        };
        match message {
            Ok(Some(AgentMessage { body: Some(body) })) => {
                let body = Box::new(body);
                if !driver.send(Input::Agent { node, session, body }).await {
                    return;
                }
            }
            Ok(Some(AgentMessage { body: None })) => {}
            Ok(None) => break,
            Err(status) => {
                tracing::debug!(%node, %status, "an agent's stream broke");
                break;
            }
        }
    }
    driver.send(Input::Closed { node, session }).await;
}

#[tonic::async_trait]
impl AgentService for Agents {
    type SessionStream = Orders;

    async fn session(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Orders>, Status> {
        let from = request.remote_addr().map(|a| a.ip());
        let mut messages = request.into_inner();
        let hello = match self.greet(from, &mut messages).await {
            Ok(hello) => hello,
            Err(refusal) => return Ok(Response::new(refused(&refusal))),
        };
        let (out, orders) = mpsc::channel(NODE_QUEUE_MAX);
        let opened = self.driver.call(move |state, now| state.open_session(now, hello, out));
        let opened = match opened.await.unwrap_or(Err(Refusal::Stopping)) {
            Ok(opened) => opened,
            Err(refusal) => return Ok(Response::new(refused(&refusal))),
        };
        let ended = CancellationToken::new();
        tokio::spawn(listen(self.driver.clone(), messages, opened, ended.clone()));
        let shutdown = self.shutdown.clone();
        // Ends with words, so that the agent's log says why; dropping it (the agent has gone) ends the listening.
        let ended = ended.drop_guard();
        let last = futures::stream::once(async move {
            drop(ended);
            let why = if shutdown.is_cancelled() {
                "the coordinator is stopping"
            } else {
                "the coordinator ended this session: another one took its place, or it fell behind"
            };
            Err(Status::unavailable(why))
        });
        let orders = ReceiverStream::new(orders).map(Ok);
        Ok(Response::new(Box::pin(futures::StreamExt::chain(orders, last))))
    }

    async fn want(&self, request: Request<v1::WantRequest>) -> Result<Response<v1::WantReply>, Status> {
        let request = request.into_inner();
        let reply = self.driver.call(move |state, now| state.want(now, &request)).await??;
        Ok(Response::new(reply))
    }

    type GetManifestStream = ReceiverStream<Result<v1::ManifestChunk, Status>>;

    async fn get_manifest(
        &self,
        request: Request<v1::GetManifestRequest>,
    ) -> Result<Response<Self::GetManifestStream>, Status> {
        let request = request.into_inner();
        let digest = convert::digest("digest", &request.digest).map_err(RequestError::from)?;
        let slot = self.slot((digest, request.with_checksums));
        let encode = || self.encode(digest, request.with_checksums);
        let bytes = slot.get_or_try_init(encode).await?.clone();
        let (out, chunks) = mpsc::channel(MANIFEST_CHUNKS_MAX);
        tokio::spawn(async move {
            for chunk in bytes.chunks(MANIFEST_CHUNK_BYTES) {
                let data = chunk.to_vec();
                if out.send(Ok(v1::ManifestChunk { data })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(chunks)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_carries_the_checksums_of_whole_shards_only() {
        let shard = |key: &str, len| millstream_types::ShardEntry {
            key: key.parse().unwrap(),
            len,
            etag: None,
            version_id: None,
            checksum: None,
            piece_crcs: None,
        };
        let piece = 65536;
        let shards = vec![shard("a", piece * 2), shard("b", piece), shard("c", piece * 3), shard("d", 0)];
        let kind = millstream_types::DatasetKind::Dataset;
        let manifest = Manifest::new("d@v1".parse().unwrap(), kind, "file:///x".into(), piece, shards).unwrap();
        let crcs = |range: std::ops::Range<u64>| range.map(Crc64).collect::<Vec<_>>();
        // Of c, only two of three pieces are known.
        let known = vec![(0, crcs(0..3)), (4, crcs(4..6))];
        let decoded = manifest::decode(&encode(&manifest, &known).unwrap()).unwrap();
        let found: Vec<_> = decoded.shards().iter().map(|s| s.piece_crcs.clone().filter(|c| !c.is_empty())).collect();
        assert_eq!(found, [Some(crcs(0..2)), Some(crcs(2..3)), None, None]);
    }

    #[test]
    fn an_unspecified_address_is_where_the_agent_comes_from() {
        let listen = |text: &str| {
            let mut text = text.to_owned();
            reachable(&mut text, Some("10.0.0.7".parse().unwrap()));
            text
        };
        assert_eq!(listen("0.0.0.0:7072"), "10.0.0.7:7072");
        assert_eq!(listen("10.0.0.1:7072"), "10.0.0.1:7072");
        assert_eq!(listen("host:7072"), "host:7072");
    }
}
