//! The Unix socket: JSON lines for trainers, the Python package and the CLI.
//!
//! One request line, one reply line (`wait` sends progress lines before it). The reference is
//! `docs/reference/socket.md`. A lease lives as long as its connection: when the process dies, the kernel closes the
//! socket and the lease is gone.

mod caller;
mod fetch;
mod reader;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use millstream_proto::v1::client_service_client::ClientServiceClient;
use millstream_proto::v1::{EvictRequest, ShowDatasetRequest};
use millstream_types::id::DatasetSelector;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use crate::control::CoordinatorLink;
use crate::counters::Counters;
use crate::driver::{Ask, Input, Inputs};
use crate::limits::{SOCKET_CLIENTS_MAX, SOCKET_LINE_BYTES_MAX};
use crate::local::{LocalState, LocalVersion};
use crate::storage::{Lease, Store};

mod cluster;

/// What this agent can do beyond the first protocol; clients look here before they ask for it.
const FEATURES: [&str; 9] =
    ["fetch", "reader", "reader-open", "shards", "datasets", "stage", "add", "wait-nodes", "wait-key"];

/// What the socket's clients are answered from.
pub(crate) struct LocalApi {
    pub node: String,
    pub io: String,
    pub local: Arc<LocalState>,
    pub store: Arc<Store>,
    pub counters: Arc<Counters>,
    pub link: CoordinatorLink,
    pub inputs: Inputs,
    /// How pieces travel.
    pub transport: Arc<crate::transport::select::SelectTransport>,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Hello {},
    Path { dataset: String, key: Option<String> },
    Fetch { dataset: String, key: String, timeout_ms: Option<u64> },
    Wait { dataset: String, timeout_ms: Option<u64>, key: Option<String>, nodes: Option<String> },
    Reader(reader::Announcement),
    Pin { dataset: String },
    Unpin { dataset: String },
    Lease { dataset: String },
    Status {},
    Evict { dataset: String },
    Verify { dataset: String },
    Shards(cluster::Shards),
    Datasets {},
    Stage(cluster::Stage),
    Add(cluster::Add),
}

/// An answer that is not a yes: exit code class, words, and fields that programs may look at (null: none).
struct Refusal {
    code: u32,
    error: String,
    details: Value,
}

fn refusal(code: u32, error: impl Into<String>) -> Refusal {
    Refusal { code, error: error.into(), details: Value::Null }
}

/// Serves the socket until `shutdown`.
pub(crate) async fn serve(listener: UnixListener, api: Arc<LocalApi>, shutdown: CancellationToken) {
    let clients = Arc::new(Semaphore::new(SOCKET_CLIENTS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client on the socket");
                tokio::time::sleep(Duration::from_millis(100)).await; // out of file descriptors: do not spin
                continue;
            }
        };
        let Ok(permit) = clients.clone().try_acquire_owned() else {
            tracing::warn!(limit = SOCKET_CLIENTS_MAX, "too many clients on the socket");
            continue;
        };
        let (api, shutdown) = (api.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = client(stream, &api) => {}
                () = shutdown.cancelled() => {}
            }
            drop(permit);
        });
    }
}

/// What a connection holds: it goes with it.
struct Held {
    /// Whose connection it is, in words.
    by: String,
    leases: Vec<Lease>,
    readers: reader::Readers,
}

async fn client(stream: UnixStream, api: &LocalApi) -> std::io::Result<()> {
    let by = caller::words(&stream);
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut held = Held { by, leases: Vec::new(), readers: reader::Readers::new(api) };
    loop {
        let mut line = Vec::new();
        let n = (&mut read).take(SOCKET_LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).await?;
        if n == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_slice::<Request>(&line) {
            _ if line.last() != Some(&b'\n') => {
                Err(refusal(2, format!("request over {SOCKET_LINE_BYTES_MAX} bytes or cut short")))
            }
            Ok(request) => api.answer(request, &mut held, &mut write).await?,
            Err(error) => Err(refusal(2, format!("not a request: {error}"))),
        };
        let line = match answer {
            Ok(mut value) => {
                value["ok"] = json!(true);
                value
            }
            Err(Refusal { code, error, details }) => {
                let mut line = json!({"ok": false, "code": code, "error": error});
                if !details.is_null() {
                    line["details"] = details;
                }
                line
            }
        };
        send(&mut write, &line).await?;
    }
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), line: &Value) -> std::io::Result<()> {
    let mut bytes = line.to_string().into_bytes();
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

type Answer = Result<Value, Refusal>;

impl LocalApi {
    /// The outer error is the client's connection.
    async fn answer(
        &self,
        request: Request,
        held: &mut Held,
        write: &mut (impl AsyncWriteExt + Unpin),
    ) -> std::io::Result<Answer> {
        Ok(match request {
            Request::Hello {} => Ok(json!({
                "version": env!("CARGO_PKG_VERSION"), "protocol": 1, "node": self.node, "io": self.io,
                "features": FEATURES,
            })),
            Request::Status {} => Ok(self.status()),
            Request::Wait { dataset, timeout_ms, nodes: Some(nodes), .. } => {
                return self.wait_for_nodes(&dataset, &nodes, timeout_ms, write).await;
            }
            Request::Wait { dataset, timeout_ms, key, .. } => {
                return self.wait(&dataset, key.as_deref(), timeout_ms, write).await;
            }
            Request::Shards(request) => self.shards(request).await,
            Request::Datasets {} => self.datasets().await,
            Request::Stage(request) => self.stage(request).await,
            Request::Add(request) => return self.add(request, write).await,
            Request::Path { dataset, key } => match self.find(&dataset).await {
                Ok(version) => {
                    let answer = path(&version, key.as_deref());
                    self.found_in_place(&version, key.as_deref(), &answer);
                    answer
                }
                Err(refusal) => Err(refusal),
            },
            Request::Reader(announcement) => reader::announce(self, announcement, &held.by, &mut held.readers).await,
            Request::Fetch { dataset, key, timeout_ms } => {
                return fetch::fetch(self, &dataset, &key, timeout_ms, write).await;
            }
            Request::Lease { dataset } => self.find(&dataset).await.map(|version| {
                held.leases.push(self.store.lease(&version.manifest.digest(), &held.by));
                json!({"dataset": version.manifest.name().to_string()})
            }),
            Request::Pin { dataset } => self.pin(&dataset, true, &held.by).await,
            Request::Unpin { dataset } => self.pin(&dataset, false, &held.by).await,
            Request::Evict { dataset } => match self.find(&dataset).await {
                Ok(version) => self.evict(&version).await,
                Err(refusal) => Err(refusal),
            },
            Request::Verify { dataset } => match self.find(&dataset).await {
                Ok(version) => self.verify(&version).await,
                Err(refusal) => Err(refusal),
            },
        })
    }

    /// The version here, or why not: not staged here (4), or not known to the cluster at all (3).
    async fn find(&self, text: &str) -> Result<Arc<LocalVersion>, Refusal> {
        let selector: DatasetSelector = text.parse().map_err(|e| refusal(2, format!("{text:?}: {e}")))?;
        if let Some(version) = self.local.find(&selector) {
            return Ok(version);
        }
        if let Some(channel) = self.link.channel() {
            let request = ShowDatasetRequest { dataset: text.to_owned(), page_offset: 0, page_limit: 1 };
            let mut client = ClientServiceClient::new(channel);
            let shown = client.show_dataset(request);
            if let Ok(Err(status)) = tokio::time::timeout(Duration::from_secs(2), shown).await
                && status.code() == tonic::Code::NotFound
            {
                return Err(refusal(3, status.message()));
            }
        }
        let node = &self.node;
        Err(refusal(
            4,
            format!("{selector} is not staged on node {node}; run: millstream stage {selector} --nodes {node}"),
        ))
    }

    fn status(&self) -> Value {
        let usage = self.store.usage();
        let c = &self.counters;
        let fallbacks = c.fallbacks().into_iter();
        let fallbacks: Vec<Value> = fallbacks
            .map(|((from, to, reason), count)| json!({"from": from, "to": to, "reason": reason, "count": count}))
            .collect();
        let datasets: Vec<Value> = self.local.all().iter().map(|v| version_status(v)).collect();
        json!({
            "node": self.node, "io": self.io, "version": env!("CARGO_PKG_VERSION"), "features": FEATURES,
            "disk": {"capacity_bytes": usage.capacity_bytes, "used_bytes": usage.used_bytes,
                     "pinned_bytes": usage.pinned_bytes, "partial_bytes": usage.partial_bytes},
            "received_bytes": {"origin": c.received_origin.get(), "tcp": c.received_tcp.get(), "rdma": c.received_rdma.get()},
            "sent_bytes": {"tcp": c.sent_tcp.get(), "rdma": c.sent_rdma.get()},
            "transport": self.transport.describe(),
            "fallbacks": fallbacks,
            "coordinator": self.link.channel().is_some(),
            "local_hit_bytes": c.local_hits.get(),
            "last_errors": c.last_errors().into_iter().map(|(text, _)| text).collect::<Vec<_>>(),
            "datasets": datasets,
        })
    }

    async fn pin(&self, dataset: &str, pinned: bool, by: &str) -> Answer {
        let version = self.find(dataset).await?;
        self.store.set_pin(&version.manifest.digest(), pinned, by).map_err(|e| refusal(1, e.to_string()))?;
        Ok(json!({"dataset": version.manifest.name().to_string(), "pinned": pinned}))
    }

    async fn evict(&self, version: &LocalVersion) -> Answer {
        let dataset = version.manifest.name().to_string();
        // Whether other copies exist, only the coordinator knows.
        let Some(channel) = self.link.channel() else {
            let why = format!(
                "no coordinator is reachable, and only it knows whether {dataset} exists elsewhere; try again later"
            );
            return Err(refusal(6, why));
        };
        let request = EvictRequest { dataset: dataset.clone(), nodes: self.node.clone() };
        let asked = ClientServiceClient::new(channel).evict(request).await;
        let reply = asked.map_err(|status| cluster::from_status(&status))?.into_inner();
        match reply.refused.is_empty() {
            true => Ok(json!({"dataset": dataset, "bytes": reply.bytes})),
            false => Err(refusal(8, reply.refused.join("; "))),
        }
    }

    async fn verify(&self, version: &LocalVersion) -> Answer {
        let (answer, answered) = oneshot::channel();
        let ask = Ask::Verify { digest: version.manifest.digest(), answer };
        let stops = || refusal(6, "the agent is stopping");
        self.inputs.send(Input::Ask(ask)).await.map_err(|_| stops())?;
        let report = answered.await.map_err(|_| stops())?;
        let failures: Vec<Value> = report
            .failures
            .iter()
            .map(|f| json!({"key": f.key, "piece": f.has_piece.then_some(f.piece), "expected": f.expected, "actual": f.actual, "detail": f.detail}))
            .collect();
        if let Some(first) = report.failures.first() {
            let detail = format!("{}: {} (repair has begun)", first.key, first.detail);
            let fields = json!({"key": first.key, "piece": first.has_piece.then_some(first.piece),
                "expected": first.expected, "actual": first.actual, "source": "disk", "failures": failures});
            return Err(Refusal { code: 5, error: detail, details: fields });
        }
        Ok(
            json!({"shards_checked": report.shards_checked, "bytes_checked": report.bytes_checked, "failures": failures}),
        )
    }

    /// A reader wanted a shard, and it was there: counted. A whole version is not: how much of it is read, nobody says.
    fn found_in_place(&self, version: &LocalVersion, key: Option<&str>, answer: &Answer) {
        let found = key.filter(|_| answer.is_ok()).and_then(|key| version.manifest.find(key));
        if let Some((_, shard)) = found {
            self.counters.local_hits.add(shard.len);
        }
    }
}

fn waiting_for(version: &LocalVersion) -> String {
    let (progress, layout) = (version.progress.borrow(), version.manifest.layout());
    let total = u64::from(layout.shards());
    format!("{} of {total} shards visible, {} of {} bytes", progress.sealed.len(), progress.bytes_ready, layout.bytes())
}

fn version_status(version: &LocalVersion) -> Value {
    let (progress, layout) = (version.progress.borrow(), version.manifest.layout());
    let ready = progress.sealed.len() == u64::from(layout.shards());
    let state = match (&progress.failed, ready) {
        (Some(_), _) => "failed",
        (None, true) => "ready",
        (None, false) if progress.bytes_ready >= layout.bytes() => "verifying",
        (None, false) => "receiving",
    };
    json!({
        "dataset": version.manifest.name().to_string(), "digest": version.manifest.digest().to_string(), "state": state,
        "shards_ready": progress.sealed.len(), "shards_total": layout.shards(),
        "bytes_ready": progress.bytes_ready.min(layout.bytes()), "bytes_total": layout.bytes(),
        "reason": progress.failed.as_ref().map(|(_, reason)| reason),
    })
}

/// The path of one visible shard, or of the version's directory when all of them are.
fn path(version: &LocalVersion, key: Option<&str>) -> Answer {
    let name = version.manifest.name();
    match key {
        Some(key) => {
            let Some((shard, _)) = version.manifest.find(key) else {
                return Err(refusal(3, format!("{name} has no shard {key:?}; run: millstream dataset show {name}")));
            };
            if !version.progress.borrow().sealed.contains(shard) {
                return Err(refusal(
                    4,
                    format!("{key:?} of {name} is not verified here yet ({})", waiting_for(version)),
                ));
            }
            Ok(json!({"dataset": name.to_string(), "path": version.root.join(key).to_string_lossy()}))
        }
        None if version.is_ready() => Ok(json!({"dataset": name.to_string(), "path": version.root.to_string_lossy()})),
        None => Err(refusal(4, format!("{name} is not ready here: {}", waiting_for(version)))),
    }
}
