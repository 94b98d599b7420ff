//! `status`: the coordinator's document, as it is with `--json`, as tables for people.

use std::io::IsTerminal as _;

use millstream_proto::v1::StatusRequest;
use millstream_types::size::format_size;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::args::StatusArgs;
use crate::client::Session;
use crate::failure::{Code, Failure, Result};
use crate::limits::WATCH_EVERY;
use crate::output::{self, Table};
use crate::verbs::dataset::check_selector;

mod screen;
mod watch;

/// Prints it, once or again and again.
pub async fn run(args: StatusArgs) -> Result<()> {
    if let Some(dataset) = &args.dataset {
        check_selector(dataset)?;
    }
    let session = Session::new(&args.client)?;
    if let Some(path) = &args.view {
        return any(&session, path, args.watch).await;
    }
    let terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if args.watch && !session.json && terminal {
        let view = match (args.node, args.dataset) {
            (Some(node), _) => screen::View::Node(node),
            (None, Some(dataset)) => screen::View::Dataset(dataset),
            (None, None) => screen::View::Overview,
        };
        return watch::run(&session, view).await;
    }
    if let Some(node) = &args.node {
        return one_node(&session, node, args.watch).await;
    }
    loop {
        let document = document(&session, args.dataset.as_deref().unwrap_or("")).await?;
        match (session.json, args.watch) {
            (true, true) => output::json_line(&document)?,
            (true, false) => output::json(&document)?,
            (false, _) => output::line(&render(&document))?,
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Any document of the API, once or again and again.
async fn any(session: &Session, path: &str, again: bool) -> Result<()> {
    loop {
        let document = watch::view(session, path).await?;
        if let Some(error) = document.get("error").and_then(Value::as_str) {
            let code = document.get("code").and_then(Value::as_u64).map_or(Code::Other, Code::from_number);
            return Err(Failure::new(code, path, error).next(text(&document, "/next")));
        }
        if !again {
            return output::json(&document);
        }
        output::json_line(&document)?;
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// One node's document, as it is with `--json`, as lines for people.
async fn one_node(session: &Session, node: &str, again: bool) -> Result<()> {
    let name = utf8_percent_encode(node, NON_ALPHANUMERIC);
    loop {
        let document = watch::view(session, &format!("nodes/{name}")).await?;
        if let Some(error) = document.get("error").and_then(Value::as_str) {
            return Err(Failure::new(Code::Unknown, node, error).next("millstream status lists all nodes"));
        }
        match (session.json, again) {
            (true, true) => output::json_line(&document)?,
            (true, false) => output::json(&document)?,
            (false, _) => output::line(&render_node(&document))?,
        }
        if !again {
            return Ok(());
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

fn render_node(node: &Value) -> String {
    let mut parts = vec![format!(
        "{}  {}  {}  disk {} of {}, {} pinned  in {}/s  out {}/s",
        text(node, "/node"),
        text(node, "/state"),
        text(node, "/address"),
        size(node, "/disk/used_bytes"),
        size(node, "/disk/capacity_bytes"),
        size(node, "/disk/pinned_bytes"),
        size(node, "/rate_bytes_per_s/in"),
        size(node, "/rate_bytes_per_s/out"),
    )];
    let mut table = Table::new(&["DATASET", "STATE", ">SHARDS", ">OF", "WHY"]);
    for dataset in rows(node, "datasets") {
        let of = |field: &str| text(dataset, field);
        table.row([of("/dataset"), of("/state"), of("/shards_ready"), of("/shards_wanted"), of("/reason")]);
    }
    parts.push(table.render());
    for alarm in rows(node, "alarms") {
        parts.push(format!("{}: {}; next: {}", text(alarm, "/severity"), text(alarm, "/text"), text(alarm, "/next")));
    }
    parts.join("\n\n")
}

/// The status document; `dataset` narrows it.
pub async fn document(session: &Session, dataset: &str) -> Result<Value> {
    let thing = if dataset.is_empty() { "status" } else { dataset };
    let reply = session
        .call(thing, |mut client| {
            let request = StatusRequest { dataset: dataset.to_owned() };
            async move { client.status(request).await }
        })
        .await?;
    serde_json::from_str(&reply.json).map_err(|e| Failure::other(thing, format!("the coordinator's document: {e}")))
}

fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".into(),
        Some(other) => other.to_string(),
    }
}

fn size(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_f64).map_or_else(|| "-".into(), |n| format_size(n.max(0.0) as u64))
}

fn seconds(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_f64).map_or_else(|| "-".into(), |s| format!("{s:.1} s"))
}

fn rows<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn render(document: &Value) -> String {
    let mut parts = vec![format!(
        "millstream {}  coordinator {}  up {}  catalog in {}",
        text(document, "/version"),
        text(document, "/coordinator/id"),
        seconds(document, "/coordinator/uptime_s"),
        text(document, "/coordinator/state_store"),
    )];
    parts.push(nodes(document));
    parts.push(datasets(document));
    parts.push(stages(document));
    parts.extend(remarks(document));
    parts.join("\n\n")
}

fn nodes(document: &Value) -> String {
    let mut table = Table::new(&[
        "NODE",
        "STATE",
        "ADDRESS",
        "IO",
        ">USED",
        ">OF",
        ">IN/s",
        ">OUT/s",
        ">FROM ORIGIN",
        ">FROM PEERS",
    ]);
    for node in rows(document, "nodes") {
        let from = |name| node.pointer(&format!("/received_bytes/{name}")).and_then(Value::as_u64).unwrap_or(0);
        table.row([
            text(node, "/node"),
            text(node, "/state"),
            text(node, "/address"),
            text(node, "/io"),
            size(node, "/disk/used_bytes"),
            size(node, "/disk/capacity_bytes"),
            size(node, "/rate_bytes_per_s/in"),
            size(node, "/rate_bytes_per_s/out"),
            format_size(from("origin")),
            format_size(from("tcp") + from("rdma")),
        ]);
    }
    table.render()
}

fn datasets(document: &Value) -> String {
    let mut table = Table::new(&["DATASET", ">SHARDS", ">SIZE", "ORIGIN CHECKSUMS", ">READY ON", "NOT READY"]);
    for dataset in rows(document, "datasets") {
        let nodes = rows(dataset, "nodes");
        let ready = nodes.iter().filter(|n| text(n, "/state") == "ready").count();
        let mut others: Vec<String> = nodes
            .iter()
            .filter(|n| !matches!(text(n, "/state").as_str(), "ready" | "absent"))
            .map(|n| format!("{} {}", text(n, "/node"), text(n, "/state")))
            .collect();
        if others.len() > 4 {
            let more = others.len() - 4;
            others.truncate(4);
            others.push(format!("and {more} more"));
        }
        let verified = dataset.get("origin_verified").and_then(Value::as_bool).unwrap_or(false);
        table.row([
            format!("{}@{}", text(dataset, "/name"), text(dataset, "/version")),
            text(dataset, "/shards"),
            size(dataset, "/bytes"),
            if verified { "all" } else { "missing" }.into(),
            ready.to_string(),
            others.join(", "),
        ]);
    }
    table.render()
}

fn stages(document: &Value) -> String {
    let mut table = Table::new(&[
        "STAGE",
        "DATASET",
        "STATE",
        ">NODES",
        ">READY",
        ">OF",
        ">FROM ORIGIN",
        ">TIME",
        ">LEFT",
        ">BOUND",
        ">RATIO",
    ]);
    for stage in rows(document, "stages") {
        let nodes =
            stage.get("nodes").map_or(0, |n| n.as_array().map_or_else(|| n.as_u64().unwrap_or(0), |a| a.len() as u64));
        let bound = match stage.get("bound_by").and_then(Value::as_str) {
            Some(by) => format!("{} ({by})", seconds(stage, "/bound_s")),
            None => seconds(stage, "/bound_s"),
        };
        table.row([
            text(stage, "/id"),
            text(stage, "/dataset"),
            text(stage, "/state"),
            nodes.to_string(),
            size(stage, "/bytes_ready"),
            size(stage, "/bytes_total"),
            size(stage, "/origin_bytes"),
            seconds(stage, "/elapsed_s"),
            seconds(stage, "/eta_s"),
            bound,
            stage.get("ratio_to_bound").and_then(Value::as_f64).map_or_else(|| "-".into(), |r| format!("{r:.2}")),
        ]);
    }
    table.render()
}

/// Fallbacks and reasons: what an operator should not have to search for.
fn remarks(document: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for node in rows(document, "nodes") {
        for f in rows(node, "fallbacks") {
            let (from, to) = (text(f, "/from"), text(f, "/to"));
            let (reason, count) = (text(f, "/reason"), text(f, "/count"));
            lines.push(format!("{}: {from} -> {to}, {count} times: {reason}", text(node, "/node")));
        }
    }
    for dataset in rows(document, "datasets") {
        let name = format!("{}@{}", text(dataset, "/name"), text(dataset, "/version"));
        for node in rows(dataset, "nodes") {
            if let Some(reason) = node.get("reason").and_then(Value::as_str).filter(|r| !r.is_empty()) {
                lines.push(format!("{name} on {}: {reason}", text(node, "/node")));
            }
        }
    }
    for stage in rows(document, "stages") {
        if let Some(since) = stage.get("counted_since").and_then(Value::as_str) {
            let (id, dataset) = (text(stage, "/id"), text(stage, "/dataset"));
            lines.push(format!("stage {id} of {dataset}: its time and bound are counted from {since}"));
        }
    }
    if lines.is_empty() { Vec::new() } else { vec![lines.join("\n")] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_becomes_tables() {
        let shown = render(&json!({
            "version": "0.1.0", "coordinator": {"id": "c1", "uptime_s": 3.0, "state_store": "/s"},
            "nodes": [{"node": "n1", "state": "up", "received_bytes": {"origin": 1048576, "tcp": 10, "rdma": 0},
                       "fallbacks": [{"from": "uring", "to": "blocking", "reason": "EPERM", "count": 1}]}],
            "datasets": [{"name": "d", "version": "v1", "shards": 2, "bytes": 3, "origin_verified": true,
                          "nodes": [{"node": "n1", "state": "ready"}, {"node": "n2", "state": "failed", "reason": "disk full"}]}],
            "stages": [{"id": 1, "dataset": "d@v1", "nodes": ["n1", "n2"], "ratio_to_bound": 1.061, "bound_by": "link", "bound_s": 2.0,
                        "counted_since": "2026-11-01T00:00:00Z"}],
        }));
        for part in [
            "n1    up",
            "1.00 MiB",
            "d@v1",
            "n2 failed",
            "disk full",
            "uring -> blocking, 1 times: EPERM",
            "1.06",
            "2.0 s (link)",
            "stage 1 of d@v1: its time and bound are counted from 2026-11-01T00:00:00Z",
        ] {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
    }

    #[test]
    fn an_empty_document_is_no_reason_to_stop() {
        assert!(render(&json!({})).contains("NODE"));
    }
}
