//! `wait`: until a version is verified and visible. For this node the local agent is asked, where there is one.

use std::time::{Duration, Instant};

use millstream_proto::convert;
use millstream_proto::v1::{Problem, ShowDatasetRequest, WaitProgress, WaitRequest};
use millstream_types::size::format_size;
use serde_json::{Value, json};
use tonic::Status;

use crate::args::WaitArgs;
use crate::client::Session;
use crate::config::host_name;
use crate::failure::{Code, Failure, Result};
use crate::limits::{RECONNECT_PAUSE, WAIT_RECONNECT};
use crate::output::{self, Progress, of};
use crate::socket::Agent;
use crate::verbs::slurm;

/// Waits.
pub async fn run(args: WaitArgs) -> Result<()> {
    check_nodes(&args.nodes)?;
    let session = Session::new(&args.client)?;
    let args = WaitArgs { dataset: slurm::selector(&session, &args.dataset).await?, ..args };
    let timeout = args.timeout.map(|t| t.0);
    if args.nodes == "self"
        && let Some(socket) = session.settings.socket()
    {
        match Agent::connect(&socket).await {
            Ok(agent) => {
                let dataset = latest(&session, &args.dataset).await;
                return at_agent(&session, agent, &dataset, timeout).await;
            }
            // Who may not use the socket can still ask the coordinator about this node.
            Err(failure) if failure.code == Code::Denied => output::note(&format!("note: {failure}")),
            Err(failure) => return Err(failure),
        }
    }
    let last = at_coordinator(&session, &args.dataset, &args.nodes, timeout).await?;
    if !session.json {
        let (nodes, bytes) = (output::nodes(last.nodes_total as usize), format_size(last.bytes_total));
        output::note(&format!("{} is ready on {nodes}, {bytes}", args.dataset));
    }
    Ok(())
}

/// `name` as `name@version`, where a coordinator answers; else as it is.
async fn latest(session: &Session, dataset: &str) -> String {
    if dataset.contains('@') {
        return dataset.to_owned();
    }
    let shown = session
        .call(dataset, |mut client| {
            let request = ShowDatasetRequest { dataset: dataset.to_owned(), page_offset: 0, page_limit: 1 };
            async move { client.show_dataset(request).await }
        })
        .await;
    match shown {
        Ok(reply) => reply.info.map_or_else(|| dataset.to_owned(), |i| format!("{}@{}", i.name, i.version)),
        Err(_) => dataset.to_owned(),
    }
}

async fn at_agent(session: &Session, mut agent: Agent, dataset: &str, timeout: Option<Duration>) -> Result<()> {
    let mut progress = Progress::new(session.json);
    let timeout_ms = timeout.map(|t| t.as_millis().max(1) as u64);
    let request = json!({"op": "wait", "dataset": dataset, "timeout_ms": timeout_ms});
    let step = |step: &Value| {
        if session.json {
            return output::json_line(step);
        }
        let number = |key| step.get(key).and_then(Value::as_u64).unwrap_or(0);
        let (ready, total) = (number("bytes_ready"), number("bytes_total"));
        progress.show(ready, total, &format!("{dataset}: {}", of(ready, total)));
        Ok(())
    };
    let reply = agent.stream(dataset, request, None, step).await?;
    progress.finish();
    if session.json {
        let path = reply.get("path");
        return output::json_line(&json!({"state": "ready", "dataset": reply.get("dataset"), "path": path}));
    }
    output::note(&format!("{dataset} is ready here"));
    Ok(())
}

/// What `--nodes self` means to a coordinator.
pub async fn node_names(session: &Session, nodes: &str) -> String {
    if nodes == "job" {
        // Checked where the flags were read.
        return job_nodes().unwrap_or_default();
    }
    if nodes != "self" {
        return nodes.to_owned();
    }
    if let Some(socket) = session.settings.socket()
        && let Ok(mut agent) = Agent::connect(&socket).await
        && let Ok(hello) = agent.hello().await
        && let Some(node) = hello.get("node").and_then(Value::as_str)
    {
        return node.to_owned();
    }
    // In a job step, Slurm's name of the node; its agent has the same.
    std::env::var("SLURMD_NODENAME").unwrap_or_else(|_| host_name())
}

/// The nodes of the Slurm job that this runs in, as a host list.
fn job_nodes() -> Option<String> {
    ["SLURM_JOB_NODELIST", "SLURM_NODELIST"].iter().find_map(|name| std::env::var(name).ok()).filter(|n| !n.is_empty())
}

/// What can be said of `--nodes` without asking anybody.
pub fn check_nodes(nodes: &str) -> Result<()> {
    if nodes == "job" && job_nodes().is_none() {
        return Err(Failure::usage("--nodes job", "this is not a Slurm job: SLURM_JOB_NODELIST is not set")
            .next("name the nodes, or write --nodes all"));
    }
    match convert::hostlist("nodes", nodes) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::usage(format!("--nodes {nodes}"), error)
            .next("write all, self, job, names with commas, or a host list such as node[001-016]")),
    }
}

/// Waits at the coordinator, through its restarts, and shows progress.
pub async fn at_coordinator(
    session: &Session,
    dataset: &str,
    nodes: &str,
    timeout: Option<Duration>,
) -> Result<WaitProgress> {
    let nodes = node_names(session, nodes).await;
    let mut progress = Progress::new(session.json);
    let result = follow(session, dataset, &nodes, timeout, |step| {
        if session.json {
            return output::json_line(&progress_json(dataset, step));
        }
        progress.show(step.bytes_ready, step.bytes_total, &words(dataset, step));
        Ok(())
    })
    .await;
    progress.finish();
    result
}

/// Waits at the coordinator, through its restarts. The last step, when it is "ready".
pub async fn follow(
    session: &Session,
    dataset: &str,
    nodes: &str,
    timeout: Option<Duration>,
    mut on_step: impl FnMut(&WaitProgress) -> Result<()>,
) -> Result<WaitProgress> {
    let began = Instant::now();
    let mut last: Option<WaitProgress> = None;
    let mut lost: Option<Instant> = None;
    loop {
        let left = timeout.map(|t| t.saturating_sub(began.elapsed()));
        if left == Some(Duration::ZERO) && (last.is_some() || lost.is_some()) {
            return Err(not_in_time(dataset, timeout, last.as_ref()));
        }
        let request = WaitRequest {
            dataset: dataset.to_owned(),
            nodes: nodes.to_owned(),
            timeout_ms: left.map_or(0, |l| l.as_millis().max(1) as u64),
        };
        match attempt(session, dataset, request, left, &mut last, &mut on_step).await? {
            Ended::Ready(step) => return Ok(step),
            Ended::TimeOver => return Err(not_in_time(dataset, timeout, last.as_ref())),
            // Never answered at all: that is an error. Answered before: it is restarting, most likely.
            Ended::Lost(failure) => {
                let since = *lost.get_or_insert_with(Instant::now);
                if last.is_none() || since.elapsed() > WAIT_RECONNECT {
                    return Err(failure);
                }
                tokio::time::sleep(RECONNECT_PAUSE.min(left.unwrap_or(RECONNECT_PAUSE))).await;
            }
            Ended::Broken => {
                lost = Some(Instant::now());
                tokio::time::sleep(RECONNECT_PAUSE.min(left.unwrap_or(RECONNECT_PAUSE))).await;
            }
        }
    }
}

/// How one stream of progress ended.
enum Ended {
    Ready(WaitProgress),
    TimeOver,
    /// No coordinator answered.
    Lost(Failure),
    /// One answered, and then the stream broke.
    Broken,
}

async fn attempt(
    session: &Session,
    dataset: &str,
    request: WaitRequest,
    left: Option<Duration>,
    last: &mut Option<WaitProgress>,
    on_step: &mut impl FnMut(&WaitProgress) -> Result<()>,
) -> Result<Ended> {
    let opened = session.stream(dataset, |mut client| {
        let request = request.clone();
        async move { client.wait(request).await }
    });
    let mut steps = match opened.await {
        Ok(steps) => steps,
        Err(failure) if failure.code == Code::Unreachable => return Ok(Ended::Lost(failure)),
        Err(failure) => return Err(failure),
    };
    // The coordinator ends the stream in time; a hanging one must not hold us much longer.
    let until = left.map(|l| Instant::now() + l + Duration::from_secs(5));
    loop {
        let next = match until {
            Some(until) => match tokio::time::timeout_at(until.into(), steps.message()).await {
                Ok(next) => next,
                Err(_) => return Ok(Ended::TimeOver),
            },
            None => steps.message().await,
        };
        match next {
            Ok(Some(step)) => {
                on_step(&step)?;
                if step.state == "ready" {
                    return Ok(Ended::Ready(step));
                }
                if step.state == "failed" {
                    return Err(problem(dataset, step.problem.as_ref()));
                }
                *last = Some(step);
            }
            Ok(None) if left.is_some() => return Ok(Ended::TimeOver),
            Ok(None) => return Ok(Ended::Broken),
            Err(status) if broke(&status) => return Ok(Ended::Broken),
            Err(status) => return Err(Failure::from_status(dataset, &status)),
        }
    }
}

/// Did the connection break, rather than the coordinator refuse?
fn broke(status: &Status) -> bool {
    let refused = status.metadata().contains_key("millstream-code");
    !refused && (status.code() == tonic::Code::Unavailable || std::error::Error::source(status).is_some())
}

fn not_in_time(dataset: &str, timeout: Option<Duration>, last: Option<&WaitProgress>) -> Failure {
    let after = humantime::format_duration(timeout.unwrap_or_default());
    let state = last.map(|s| {
        let missing: Vec<String> = s
            .waiting_for
            .iter()
            .take(5)
            .map(|n| match n.reason.as_str() {
                "" => format!("{} {}", n.node, n.state),
                reason => format!("{} {} ({reason})", n.node, n.state),
            })
            .collect();
        let more = s.waiting_for.len().saturating_sub(missing.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("; {} of {} nodes are ready; missing: {}{more}", s.nodes_ready, s.nodes_total, missing.join(", "))
    });
    Failure::new(Code::NotReady, dataset, format!("not ready after {after}{}", state.unwrap_or_default()))
        .next("wait longer with --timeout, or look at `millstream status`")
}

fn problem(dataset: &str, problem: Option<&Problem>) -> Failure {
    let Some(p) = problem else { return Failure::other(dataset, "failed, and the coordinator does not say why") };
    let mut reason = p.message.clone();
    let details = [
        ("node", &p.node),
        ("shard", &p.key),
        ("piece", &p.piece),
        ("expected", &p.expected),
        ("actual", &p.actual),
        ("source", &p.source),
    ];
    for (name, value) in details {
        if !value.is_empty() && !p.message.contains(value.as_str()) {
            reason.push_str(&format!("; {name} {value}"));
        }
    }
    let mut status = Status::unknown(reason);
    if let Ok(code) = p.code.to_string().parse() {
        status.metadata_mut().insert("millstream-code", code);
    }
    Failure::from_status(dataset, &status)
}

/// One step in words.
pub fn words(dataset: &str, step: &WaitProgress) -> String {
    let eta = if step.eta_s > 0.0 { format!(", {:.0} s left", step.eta_s.ceil()) } else { String::new() };
    format!(
        "{dataset}: {} at {}/s, {} of {} nodes ready{eta}",
        of(step.bytes_ready, step.bytes_total),
        format_size(step.rate_bytes_per_s.max(0.0) as u64),
        step.nodes_ready,
        step.nodes_total
    )
}

/// One step as JSON.
pub fn progress_json(dataset: &str, step: &WaitProgress) -> Value {
    let waiting: Vec<Value> = step
        .waiting_for
        .iter()
        .map(|n| {
            json!({"node": n.node, "state": n.state, "reason": n.reason, "bytes_ready": n.bytes_ready,
                   "bytes_total": n.bytes_total, "shards_ready": n.shards_ready, "shards_total": n.shards_total})
        })
        .collect();
    let problem = step.problem.as_ref().map(|p| {
        json!({"code": p.code, "message": p.message, "key": p.key, "piece": p.piece, "expected": p.expected,
               "actual": p.actual, "source": p.source, "node": p.node})
    });
    json!({
        "dataset": dataset, "state": step.state, "bytes_ready": step.bytes_ready, "bytes_total": step.bytes_total,
        "eta_s": step.eta_s, "rate_bytes_per_s": step.rate_bytes_per_s, "nodes_ready": step.nodes_ready,
        "nodes_total": step.nodes_total, "waiting_for": waiting, "problem": problem,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_everything_once() {
        let p = Problem {
            code: 5,
            message: "shard a.tar does not match the origin".into(),
            key: "a.tar".into(),
            piece: "3".into(),
            expected: "00ff".into(),
            actual: "0ff0".into(),
            source: "peer n2".into(),
            node: String::new(),
        };
        let failure = problem("d@v", Some(&p));
        assert_eq!(failure.code, Code::Integrity);
        let text = failure.to_string();
        assert_eq!(text.matches("a.tar").count(), 1, "{text}");
        assert!(text.contains("expected 00ff; actual 0ff0; source peer n2"), "{text}");
        assert!(failure.next.is_some());
    }

    #[test]
    fn a_refusal_is_not_a_broken_connection() {
        let mut refused = Status::unavailable("x");
        assert!(broke(&refused));
        refused.metadata_mut().insert("millstream-code", tonic::metadata::MetadataValue::from_static("6"));
        assert!(!broke(&refused));
    }
}
