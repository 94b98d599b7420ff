//! The documents of the API over a real coordinator: paged, filtered, live, and as they are described.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use millstream_proto::v1::agent_message::Body;
use millstream_proto::v1::{self, ViewRequest};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

mod support;
use support::{Agent, Coordinator, add, config, raw, shard, soon, stage, wait};

const SHARDS: usize = 7;

async fn json(coordinator: &Coordinator, path: &str) -> Value {
    let (code, body) = coordinator.get(&format!("/api/v1/{path}")).await;
    assert_eq!(code, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn data(dir: &Path) {
    for i in 0..SHARDS {
        shard(dir, &format!("part/shard-{i}"), 100_000 + i, i as u64 + 1);
    }
}

/// A coordinator with one version on two nodes; the agents go on obeying.
async fn cluster(state: &Path, data_dir: &Path) -> (Coordinator, Vec<tokio::task::JoinHandle<()>>) {
    let coordinator = Coordinator::start(config(state)).await;
    let mut agents = Vec::new();
    for name in ["n1", "n2"] {
        let mut agent = Agent::join(&coordinator, name).await;
        agents.push(tokio::spawn(async move { agent.obey().await }));
    }
    let mut client = coordinator.client().await;
    add(&mut client, "d", "v1", data_dir).await.unwrap();
    stage(&mut client, "d@v1", "n1,n2").await.unwrap();
    assert_eq!(wait(&mut client, "d@v1", "n1,n2", 0).await.unwrap().state, "ready");
    (coordinator, agents)
}

#[tokio::test]
async fn documents_say_the_same_as_status_in_pages() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    data(dir.path());
    let (coordinator, _agents) = cluster(state.path(), dir.path()).await;
    let status = coordinator.status().await;
    let dataset = json(&coordinator, "datasets/d@v1").await;
    assert_eq!(dataset["verdict"]["text"], "ready on 2 of 2 nodes");
    assert_eq!(dataset["digest"], status["datasets"][0]["digest"]);
    assert_eq!(dataset["pairs"]["ready"], 2 * SHARDS);
    assert_eq!(dataset["availability"][2], serde_json::json!({"copies_from": 2, "copies_to": 2, "shards": SHARDS}));
    let map = json(&coordinator, "datasets/d/map?columns=3").await;
    assert_eq!(map["rows"][1]["label"], "n2");
    assert_eq!((&map["rows"][1]["cells"], &map["shards_per_column"]), (&"o9o9o9".into(), &3.into()));
    let part = json(&coordinator, "datasets/d/map?first_node=1&first_shard=5").await;
    assert_eq!((part["rows"].as_array().unwrap().len(), &part["shards"]), (1, &2.into()));
    let shards = json(&coordinator, "datasets/d@v1/shards?limit=2&offset=1&q=SHARD-&order=size").await;
    assert_eq!((&shards["total"], &shards["matched"], &shards["offset"]), (&7.into(), &7.into(), &1.into()));
    assert_eq!(shards["items"][0]["key"], "part/shard-5");
    let shards = json(&coordinator, "datasets/d@v1/shards?state=bad,queued").await;
    assert_eq!((&shards["total"], &shards["matched"]), (&7.into(), &0.into()));
    let nodes = json(&coordinator, "datasets/d@v1/nodes?q=n2").await;
    assert_eq!((&nodes["matched"], &nodes["items"][0]["percent"]), (&1.into(), &100.into()));
    assert_eq!(json(&coordinator, "nodes?q=n1").await["items"][0]["node"], "n1");
    let node = json(&coordinator, "nodes/n2").await;
    assert_eq!((&node["state"], &node["datasets"][0]["state"]), (&"up".into(), &"ready".into()));
    let overview = json(&coordinator, "overview").await;
    assert_eq!(overview["totals"]["nodes_up"], 2);
    assert_eq!(overview["stages"]["items"][0]["bytes_ready"], status["stages"][0]["bytes_ready"]);
    // The same for those who have no HTTP.
    let reply = coordinator.client().await.view(ViewRequest { path: "nodes?q=n1".into() }).await.unwrap().into_inner();
    assert_eq!(reply.status, 200);
    assert_eq!(serde_json::from_str::<Value>(&reply.json).unwrap()["matched"], 1);
    let reply =
        coordinator.client().await.view(ViewRequest { path: "../../metrics".into() }).await.unwrap().into_inner();
    assert_eq!(reply.status, 404);
    coordinator.stop().await;
}

#[tokio::test]
async fn wrong_questions_get_reasons() {
    let state = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(config(state.path())).await;
    for (code, path) in [
        (400, "nodes?limit=0"),
        (400, "nodes?limit=1001"),
        (400, "nodes?limit=many"),
        (400, "nodes?colour=red"),
        (400, "datasets/d/map?rows=0"),
        (404, "datasets/%20"),
        (404, "datasets/nothing@v1/shards"),
        (404, "nodes/nobody"),
        (400, "stream"),
        (400, "stream?other=1"),
    ] {
        let (found, body) = coordinator.get(&format!("/api/v1/{path}")).await;
        assert_eq!(found, code, "{path}: {body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert!(body["error"].as_str().is_some_and(|e| !e.is_empty()), "{path}: {body}");
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn every_path_that_is_described_answers() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    data(dir.path());
    let (coordinator, _agents) = cluster(state.path(), dir.path()).await;
    let description = json(&coordinator, "openapi.json").await;
    let paths = description["paths"].as_object().unwrap();
    assert!(paths.len() >= 16, "{:?}", paths.keys());
    for path in paths.keys().filter(|p| !p.ends_with("/stream")) {
        let asked = path.replace("{dataset}", "d@v1").replace("{node}", "n1");
        assert_eq!(coordinator.get(&asked).await.0, 200, "{asked}");
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn events_outlive_the_coordinator() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    data(dir.path());
    let (coordinator, _agents) = cluster(state.path(), dir.path()).await;
    // Told with the next look.
    loop {
        if json(&coordinator, "events?kind=sealed").await["matched"] != 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    let before = json(&coordinator, "events?dataset=d@v1&limit=1000").await;
    coordinator.stop().await;
    let coordinator = Coordinator::start(config(state.path())).await;
    let after = json(&coordinator, "events?dataset=d@v1&limit=1000").await;
    assert_eq!(after["items"], before["items"]);
    let kinds: Vec<_> = after["items"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    for kind in ["added", "staged", "stage-done", "sealed"] {
        assert!(kinds.contains(&kind), "{kind} is not among {kinds:?}");
    }
    assert_eq!(json(&coordinator, "events?kind=coordinator").await["matched"], 2);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_stream_sends_all_and_then_what_changed() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    data(dir.path());
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut stream = tokio::net::TcpStream::connect(coordinator.bound.http).await.unwrap();
    let request = "GET /api/v1/stream?watch=datasets&watch=datasets%2Fd@v1 HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut seen: Vec<(String, Value)> = Vec::new();
    let mut name = String::new();
    let mut added = false;
    // First what there is (nothing, and an error), then what has changed.
    while !seen.iter().any(|(n, v)| n == "document" && v["watch"] == "datasets/d@v1" && v["status"] == 200) {
        let line = soon(lines.next_line()).await.unwrap().expect("the stream goes on");
        if let Some(event) = line.strip_prefix("event: ") {
            name = event.to_owned();
        } else if let Some(data) = line.strip_prefix("data: ") {
            seen.push((name.clone(), serde_json::from_str(data).unwrap()));
        }
        if !added && seen.iter().any(|(n, _)| n == "tick") {
            added = true;
            add(&mut coordinator.client().await, "d", "v1", dir.path()).await.unwrap();
        }
    }
    let of = |watch: &str| seen.iter().filter(|(_, v)| v["watch"] == watch).collect::<Vec<_>>();
    let list = of("datasets");
    assert_eq!((list[0].0.as_str(), &list[0].1["document"]["total"]), ("document", &0.into()));
    assert_eq!(list[1].0, "patch");
    let mut document = list[0].1["document"].clone();
    let patch: json_patch::Patch = serde_json::from_value(list[1].1["patch"].clone()).unwrap();
    json_patch::patch(&mut document, &patch).unwrap();
    assert_eq!((&document["total"], &document["items"][0]["dataset"]), (&1.into(), &"d@v1".into()));
    assert_eq!(of("datasets/d@v1")[0].1["status"], 404);
    // Streams end with the coordinator.
    coordinator.stop().await;
    while soon(lines.next_line()).await.unwrap_or(None).is_some() {}
}

/// No machine of the tests has the devices: an agent says what one with two rails would.
#[tokio::test]
async fn a_node_says_over_which_rails_it_is_fed() {
    let state = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(config(state.path())).await;
    let agent = Agent::join(&coordinator, "n1").await;
    let rail = |port, received_bytes| v1::Rail {
        device: "mlx5_0".into(),
        port,
        gid: "fe80::1".into(),
        kind: "RoCE v2".into(),
        mtu_bytes: 4096,
        queue_pairs: 3,
        received_bytes,
        wire_received_bytes: Some(received_bytes + 100),
        sent_bytes: 0,
        wire_sent_bytes: None,
        state: "up".into(),
        counters: [("out_of_sequence".to_owned(), 7)].into(),
    };
    let rails = vec![rail(1, 1_000), rail(2, 0)];
    agent.say(Body::Details(v1::NodeDetails { rails, ..Default::default() })).await;
    let known = soon(async {
        loop {
            let rails = json(&coordinator, "nodes/n1").await["rails"].take();
            if rails.as_array().is_some_and(|r| !r.is_empty()) {
                return rails;
            }
        }
    });
    let rails = known.await;
    assert_eq!((&rails[0]["device"], &rails[0]["kind"]), (&"mlx5_0".into(), &"RoCE v2".into()));
    assert_eq!((&rails[0]["received_bytes"], &rails[0]["wire_received_bytes"]), (&1_000.into(), &1_100.into()));
    assert_eq!((&rails[1]["port"], &rails[1]["counters"]["out_of_sequence"]), (&2.into(), &7.into()));
    coordinator.stop().await;
}

#[tokio::test]
async fn the_page_comes_with_a_strict_policy_and_nothing_from_elsewhere() {
    let state = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(config(state.path())).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let index = String::from_utf8(raw(coordinator.bound.http, get("/").as_bytes()).await).unwrap();
    let (head, body) = index.split_once("\r\n\r\n").unwrap();
    let policy = head.lines().find(|l| l.starts_with("content-security-policy")).unwrap();
    for part in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(!body.contains("//"), "something is from elsewhere: {body}");
    let modules = ["app", "dom", "format", "live", "chart", "map", "overview", "dataset", "node", "lists", "uplot"];
    for name in modules {
        let (code, text) = coordinator.get(&format!("/web/{name}.js")).await;
        assert!(code == 200 && !text.is_empty(), "{name}");
        for unsafe_way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(name == "uplot" || !text.contains(unsafe_way), "{name} uses {unsafe_way}");
        }
    }
    assert_eq!(coordinator.get("/web/nothing.js").await.0, 404);
    coordinator.stop().await;
}
