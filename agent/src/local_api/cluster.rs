//! Socket operations that ask the coordinator on a trainer's behalf: the Python package speaks to the agent only.
//!
//! Participants: [`LocalApi`] parses the request; the coordinator answers over the agent's own link. Goals: trainers
//! need neither gRPC nor the coordinator's address; refusals keep the coordinator's class, words and next step.
//! Non-goals: retries; a client that asked for a minute may ask again.

use std::time::Duration;

use millstream_proto::v1::client_service_client::ClientServiceClient;
use millstream_proto::v1::{
    AddDatasetRequest, DatasetInfo, ListDatasetsRequest, Problem, ShowDatasetRequest, StageRequest, WaitProgress,
    WaitRequest,
};
use millstream_types::id::DatasetSelector;
use millstream_types::manifest::DatasetKind;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::{Answer, LocalApi, Refusal, refusal, send};
use crate::limits::{COORDINATOR_CALL_TIMEOUT, FAILURE_ASKED_TIMEOUT, SHARDS_PAGE_MAX};
use crate::local::LocalVersion;

/// `{"op":"stage",…}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stage {
    dataset: String,
    nodes: Option<String>,
    placement: Option<String>,
    priority: Option<u32>,
}

/// `{"op":"add",…}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Add {
    name: String,
    url: String,
    version: Option<String>,
    run: Option<String>,
    step: Option<u64>,
}

/// `{"op":"shards",…}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shards {
    dataset: String,
    #[serde(default)]
    offset: u32,
    limit: Option<u32>,
}

type Clients = ClientServiceClient<Channel>;

impl LocalApi {
    fn coordinator(&self) -> Result<Clients, Refusal> {
        let channel = self.link.channel().ok_or_else(|| {
            refusal(6, format!("node {} has no session with a coordinator; see the agent's log", self.node))
        })?;
        Ok(ClientServiceClient::new(channel).max_decoding_message_size(64 << 20))
    }

    /// A page of a version's shards, and what the version is. A name without a version is the latest registered one,
    /// where a coordinator answers.
    pub(super) async fn shards(&self, request: Shards) -> Answer {
        let text = &request.dataset;
        let selector: DatasetSelector = text.parse().map_err(|e| refusal(2, format!("{text:?}: {e}")))?;
        let limit = request.limit.unwrap_or(SHARDS_PAGE_MAX).min(SHARDS_PAGE_MAX);
        let here = self.local.find(&selector);
        if let (Some(version), Some(_)) = (&here, &selector.version) {
            return Ok(page(version, request.offset, limit));
        }
        let page_limit = limit.max(1); // to the coordinator 0 means its own default
        let show = ShowDatasetRequest { dataset: text.clone(), page_offset: request.offset, page_limit };
        let shown = match self.coordinator() {
            Ok(mut clients) => unary(clients.show_dataset(show)).await,
            Err(refused) => Err(refused),
        };
        let shown = match (shown, here) {
            (Ok(shown), _) => shown,
            (Err(refused), Some(version)) if refused.code == 6 => return Ok(page(&version, request.offset, limit)),
            (Err(refused), _) => return Err(refused),
        };
        let info = shown.info.ok_or_else(|| refusal(1, "the coordinator's answer has no description"))?;
        let shards: Vec<Value> =
            shown.shards.iter().take(limit as usize).map(|s| shard(&s.key, s.len, &s.etag, &s.checksum)).collect();
        let name = format!("{}@{}", info.name, info.version);
        let local = name.parse().ok().and_then(|selector| self.local.find(&selector));
        let mut out = description(&info);
        out["root"] = local.map(|v| json!(v.root.to_string_lossy())).unwrap_or(Value::Null);
        out["shards"] = json!(shards);
        Ok(out)
    }

    pub(super) async fn datasets(&self) -> Answer {
        let mut clients = self.coordinator()?;
        let listed = unary(clients.list_datasets(ListDatasetsRequest {})).await?;
        Ok(json!({"datasets": listed.datasets.iter().map(description).collect::<Vec<_>>()}))
    }

    pub(super) async fn stage(&self, request: Stage) -> Answer {
        let nodes = self.nodes(request.nodes.as_deref().unwrap_or("self"));
        let asked = StageRequest {
            dataset: request.dataset,
            nodes,
            placement: request.placement.unwrap_or_else(|| "replicate".into()),
            priority: request.priority.unwrap_or(0),
        };
        let reply = unary(self.coordinator()?.stage(asked)).await?;
        Ok(json!({
            "stage": reply.stage, "dataset": reply.dataset, "nodes": reply.nodes,
            "joined_existing": reply.joined_existing,
        }))
    }

    /// Registers a version; progress lines count what was listed.
    pub(super) async fn add(&self, request: Add, write: &mut (impl AsyncWriteExt + Unpin)) -> std::io::Result<Answer> {
        let kind = if request.run.is_some() { "checkpoint" } else { "dataset" };
        let asked = AddDatasetRequest {
            name: request.name,
            url: request.url,
            version: request.version.unwrap_or_default(),
            kind: kind.into(),
            run: request.run.unwrap_or_default(),
            step: request.step.unwrap_or_default(),
        };
        let opened = match self.coordinator() {
            Ok(mut clients) => unary(clients.add_dataset(asked)).await,
            Err(refused) => Err(refused),
        };
        let mut steps = match opened {
            Ok(steps) => steps,
            Err(refused) => return Ok(Err(refused)),
        };
        loop {
            match steps.message().await {
                Ok(Some(step)) => {
                    if let Some(done) = &step.done {
                        let mut out = description(done);
                        out["already_there"] = json!(step.already_there);
                        return Ok(Ok(out));
                    }
                    let listed = json!({"objects_listed": step.objects_listed, "bytes_listed": step.bytes_listed});
                    send(write, &json!({"progress": listed})).await?;
                }
                Ok(None) => return Ok(Err(refusal(6, "the coordinator ended the registration without a result"))),
                Err(status) => return Ok(Err(from_status(&status))),
            }
        }
    }

    /// Waits for nodes of the cluster: relays the coordinator's progress.
    pub(super) async fn wait_for_nodes(
        &self,
        dataset: &str,
        nodes: &str,
        timeout_ms: Option<u64>,
        write: &mut (impl AsyncWriteExt + Unpin),
    ) -> std::io::Result<Answer> {
        let request = WaitRequest {
            dataset: dataset.to_owned(),
            nodes: self.nodes(nodes),
            timeout_ms: timeout_ms.map_or(0, |ms| ms.max(1)),
        };
        let opened = match self.coordinator() {
            Ok(mut clients) => unary(clients.wait(request)).await,
            Err(refused) => Err(refused),
        };
        let mut steps = match opened {
            Ok(steps) => steps,
            Err(refused) => return Ok(Err(refused)),
        };
        let mut last = WaitProgress::default();
        loop {
            match steps.message().await {
                Ok(Some(step)) if step.state == "ready" => return Ok(Ok(progress(dataset, &step))),
                Ok(Some(step)) if step.state == "failed" => {
                    return Ok(Err(problem(step.problem.as_ref(), dataset)));
                }
                Ok(Some(step)) => {
                    send(write, &json!({"progress": progress(dataset, &step)})).await?;
                    last = step;
                }
                Ok(None) => return Ok(Err(refusal(6, "the coordinator ended the wait without a result"))),
                Err(status) => {
                    let mut refused = from_status(&status);
                    if refused.code == 4 {
                        let slow: Vec<&str> = last.waiting_for.iter().map(|n| n.node.as_str()).collect();
                        refused.details = json!({"slow_nodes": slow, "eta_s": eta(&last)});
                    }
                    return Ok(Err(refused));
                }
            }
        }
    }

    /// Why a version will not come to this node, as the coordinator tells it within `patience`: its class, words and
    /// fields. `None` when it knows of nothing, or is away.
    pub(super) async fn failure_here(&self, dataset: &str, patience: Duration) -> Option<Refusal> {
        let mut clients = self.coordinator().ok()?;
        let timeout_ms = patience.as_millis().max(1) as u64;
        let request = WaitRequest { dataset: dataset.to_owned(), nodes: self.node.clone(), timeout_ms };
        let asked = async {
            let mut steps = clients.wait(request).await.ok()?.into_inner();
            // The last step before the stream ends, or the first that says so.
            while let Some(step) = steps.message().await.ok()? {
                if step.state == "failed" {
                    return Some(problem(step.problem.as_ref(), dataset));
                }
            }
            None
        };
        tokio::time::timeout(patience + FAILURE_ASKED_TIMEOUT, asked).await.ok().flatten()
    }

    fn nodes(&self, text: &str) -> String {
        if text == "self" { self.node.clone() } else { text.to_owned() }
    }
}

/// A call whose first answer must come in time. Streams go on for as long as they want.
async fn unary<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Refusal> {
    match tokio::time::timeout(COORDINATOR_CALL_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(from_status(&status)),
        Err(_) => Err(refusal(6, format!("the coordinator did not answer within {COORDINATOR_CALL_TIMEOUT:?}"))),
    }
}

/// The coordinator's class where it says one, else the nearest to gRPC's.
pub(super) fn from_status(status: &Status) -> Refusal {
    use tonic::Code;
    let meta = |key| status.metadata().get(key).and_then(|v| v.to_str().ok());
    let code = meta("millstream-code").and_then(|v| v.parse().ok()).unwrap_or(match status.code() {
        Code::InvalidArgument | Code::OutOfRange => 2,
        Code::NotFound => 3,
        Code::DeadlineExceeded => 4,
        Code::DataLoss => 5,
        // The last two are what a connection that breaks looks like.
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal => 6,
        Code::ResourceExhausted => 7,
        Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => 8,
        Code::PermissionDenied | Code::Unauthenticated => 9,
        _ => 1,
    });
    let words = match status.message() {
        "" => format!("the coordinator answered {:?}", status.code()),
        message => message.to_owned(),
    };
    let mut out = refusal(code, words);
    if let Some(problem) = millstream_proto::convert::problem_from_details(status.details()) {
        out.details = fields(&problem);
    }
    if let Some(next) = meta("millstream-next") {
        out.error = format!("{}; next: {next}", out.error);
    }
    out
}

fn problem(problem: Option<&Problem>, dataset: &str) -> Refusal {
    let Some(p) = problem else {
        return refusal(1, format!("{dataset} failed, and the coordinator does not say why"));
    };
    Refusal { code: p.code, error: p.message.clone(), details: fields(p) }
}

fn fields(p: &Problem) -> Value {
    json!({"key": p.key, "piece": p.piece, "expected": p.expected, "actual": p.actual, "source": p.source,
           "node": p.node})
}

fn progress(dataset: &str, step: &WaitProgress) -> Value {
    let waiting: Vec<Value> = step
        .waiting_for
        .iter()
        .map(|n| {
            json!({"node": n.node, "state": n.state, "reason": n.reason, "bytes_ready": n.bytes_ready,
                   "bytes_total": n.bytes_total, "shards_ready": n.shards_ready, "shards_total": n.shards_total})
        })
        .collect();
    json!({
        "dataset": dataset, "state": step.state, "bytes_ready": step.bytes_ready, "bytes_total": step.bytes_total,
        "nodes_ready": step.nodes_ready, "nodes_total": step.nodes_total, "eta_s": eta(step),
        "rate_bytes_per_s": step.rate_bytes_per_s, "waiting_for": waiting,
    })
}

fn eta(step: &WaitProgress) -> Option<f64> {
    (step.eta_s > 0.0).then_some(step.eta_s)
}

fn description(info: &DatasetInfo) -> Value {
    let checkpoint = info.kind == "checkpoint";
    json!({
        "dataset": format!("{}@{}", info.name, info.version), "digest": info.digest, "kind": info.kind,
        "run": checkpoint.then_some(&info.run), "step": checkpoint.then_some(info.step),
        "origin_url": info.origin_url, "origin_verified": info.origin_verified, "shards_total": info.shards,
        "bytes_total": info.bytes,
    })
}

fn shard(key: &str, len: u64, etag: &str, checksum: &str) -> Value {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({"key": key, "bytes": len, "etag": given(etag), "checksum": given(checksum)})
}

/// The same from the manifest on this node.
fn page(version: &LocalVersion, offset: u32, limit: u32) -> Value {
    let m = &version.manifest;
    let (kind, run, step) = match m.kind() {
        DatasetKind::Dataset => ("dataset", None, None),
        DatasetKind::Checkpoint { run, step } => ("checkpoint", Some(run), Some(step)),
    };
    let shards: Vec<Value> = m
        .shards()
        .iter()
        .skip(offset as usize)
        .take(limit as usize)
        .map(|s| {
            let checksum = s.checksum.as_ref().map(ToString::to_string).unwrap_or_default();
            shard(s.key.as_str(), s.len, s.etag.as_deref().unwrap_or(""), &checksum)
        })
        .collect();
    json!({
        "dataset": m.name().to_string(), "digest": m.digest().to_string(), "kind": kind, "run": run, "step": step,
        "origin_url": m.origin_url(), "origin_verified": m.origin_verified(), "shards_total": m.layout().shards(),
        "bytes_total": m.layout().bytes(), "root": version.root.to_string_lossy(), "shards": shards,
    })
}
