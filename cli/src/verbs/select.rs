//! `pin`, `unpin`, `evict`, `verify`: a version on some nodes.

use millstream_proto::v1::{EvictRequest, Failure as WireFailure, PinRequest, VerifyDatasetRequest, source};
use millstream_types::size::format_size;
use serde_json::{Value, json};

use crate::args::SelectArgs;
use crate::client::Session;
use crate::config::host_name;
use crate::failure::{Code, Failure, Result};
use crate::output::{self, Progress};
use crate::verbs::dataset::check_selector;
use crate::verbs::wait::node_names;

/// Pins or unpins.
pub async fn pin(args: SelectArgs, pinned: bool) -> Result<()> {
    check_selector(&args.dataset)?;
    let session = Session::new(&args.client)?;
    let nodes = node_names(&session, &args.nodes).await;
    let reply = session
        .call(&args.dataset, |mut client| {
            let request = PinRequest { dataset: args.dataset.clone(), nodes: nodes.clone(), pinned, by: who() };
            async move { client.pin(request).await }
        })
        .await?;
    if session.json {
        return output::json(&json!({"dataset": reply.dataset, "nodes": reply.nodes, "pinned": pinned}));
    }
    let done = if pinned { "pinned" } else { "unpinned" };
    output::note(&format!("{done} {} on {}", reply.dataset, output::nodes(reply.nodes.len())));
    Ok(())
}

/// Who runs this, for those who find the pin later.
fn who() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let user = user.unwrap_or_else(|_| format!("user {}", rustix::process::getuid().as_raw()));
    format!("{user}@{}", host_name())
}

/// Evicts. Exit 8 when some node refused (pinned or in use).
pub async fn evict(args: SelectArgs) -> Result<()> {
    check_selector(&args.dataset)?;
    let session = Session::new(&args.client)?;
    let nodes = node_names(&session, &args.nodes).await;
    let reply = session
        .call(&args.dataset, |mut client| {
            let request = EvictRequest { dataset: args.dataset.clone(), nodes: nodes.clone() };
            async move { client.evict(request).await }
        })
        .await?;
    if session.json {
        output::json(&json!({
            "dataset": reply.dataset, "bytes": reply.bytes, "nodes": reply.nodes, "refused": reply.refused,
        }))?;
    } else {
        let freed = format_size(reply.bytes);
        let nodes = output::nodes(reply.nodes.len());
        output::note(&format!("evicted {} from {nodes}, {freed} freed", reply.dataset));
    }
    if reply.refused.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Code::Conflict, args.dataset, format!("kept: {}", reply.refused.join("; ")))
        .next("unpin it or end the processes that use it; a last copy goes only with `millstream dataset rm`"))
}

/// Verifies. Exit 5 when some byte does not match.
pub async fn verify(args: SelectArgs) -> Result<()> {
    check_selector(&args.dataset)?;
    let session = Session::new(&args.client)?;
    let nodes = node_names(&session, &args.nodes).await;
    let mut steps = session
        .stream(&args.dataset, |mut client| {
            let request = VerifyDatasetRequest { dataset: args.dataset.clone(), nodes: nodes.clone() };
            async move { client.verify(request).await }
        })
        .await?;
    let mut progress = Progress::new(session.json);
    let (mut failures, mut errors, mut totals) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(step) = steps.message().await.map_err(|s| Failure::from_status(&args.dataset, &s))? {
        if session.json {
            let failures: Vec<Value> = step.failures.iter().map(failure_json).collect();
            output::json_line(&json!({
                "node": step.node, "shards_checked": step.shards_checked, "bytes_checked": step.bytes_checked,
                "failures": failures, "done": step.done, "error": step.error,
                "nodes_done": step.nodes_done, "nodes_total": step.nodes_total,
            }))?;
        }
        let words = format!("{}: {} checked", step.node, format_size(step.bytes_checked));
        progress.show(u64::from(step.nodes_done), u64::from(step.nodes_total), &words);
        failures.extend(step.failures.iter().map(|f| format!("{}: {}", step.node, failure_words(f))));
        if !step.error.is_empty() {
            errors.push(format!("{}: {}", step.node, step.error));
        }
        if step.done {
            totals.push(step.bytes_checked);
        }
    }
    progress.finish();
    if !failures.is_empty() {
        return Err(Failure::new(Code::Integrity, args.dataset, failures.join("; "))
            .next("damaged shards are fetched anew; see `millstream status`, and check that node's disk"));
    }
    if !errors.is_empty() {
        return Err(Failure::other(args.dataset, errors.join("; ")).next("see `millstream status`, then try again"));
    }
    if !session.json {
        let (nodes, bytes) = (output::nodes(totals.len()), format_size(totals.iter().sum()));
        output::note(&format!("{}: every byte matches on {nodes}, {bytes} read", args.dataset));
    }
    Ok(())
}

fn source_words(failure: &WireFailure) -> Option<String> {
    match failure.source.as_ref()?.from.as_ref()? {
        source::From::Origin(_) => Some("origin".into()),
        source::From::Peer(peer) => Some(format!("peer {}", peer.node)),
    }
}

fn failure_json(failure: &WireFailure) -> Value {
    json!({
        "kind": failure.kind, "key": failure.key, "piece": failure.has_piece.then_some(failure.piece),
        "expected": failure.expected, "actual": failure.actual, "source": source_words(failure),
        "detail": failure.detail,
    })
}

fn failure_words(failure: &WireFailure) -> String {
    let mut words = format!("{} {}", failure.key, failure.kind);
    if failure.has_piece {
        words.push_str(&format!(", piece {}", failure.piece));
    }
    if !failure.expected.is_empty() {
        words.push_str(&format!(", expected {}, found {}", failure.expected, failure.actual));
    }
    if !failure.detail.is_empty() {
        words.push_str(&format!(" ({})", failure.detail));
    }
    words
}
