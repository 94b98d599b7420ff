//! The whole coordinator over its sockets, with agents and clients played by the test.

#![allow(clippy::unwrap_used)]

mod support;

use millstream_proto::v1::agent_message::Body;
use millstream_proto::v1::coordinator_message::Body as Order;
use millstream_proto::v1::{self};
use support::*;

#[tokio::test]
async fn a_dataset_is_staged_and_the_wait_ends() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shard(data.path(), "a.bin", 300_000, 1);
    shard(data.path(), "sub/b.bin", 70_000, 2);
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    let mut one = Agent::join(&coordinator, "n1").await;
    let mut two = Agent::join(&coordinator, "n2").await;

    let added = add(&mut client, "d", "", data.path()).await.unwrap();
    let info = added.done.unwrap();
    assert_eq!((info.version.as_str(), info.shards, info.bytes), ("v1", 2, 370_000));
    let reply = stage(&mut client, "d", "all").await.unwrap();
    assert_eq!((reply.dataset.as_str(), reply.nodes.len()), ("d@v1", 2));
    let again = stage(&mut client, "d@v1", "n[1-2]").await.unwrap();
    assert!(again.joined_existing && again.stage == reply.stage, "{again:?}");

    let mut waiter = client.clone();
    let waiting = tokio::spawn(async move { wait(&mut waiter, "d", "all", 0).await });
    tokio::join!(one.obey_until_sealed(2), two.obey_until_sealed(2));
    let last = waiting.await.unwrap().unwrap();
    assert_eq!((last.state.as_str(), last.nodes_ready, last.nodes_total), ("ready", 2, 2));
    assert_eq!(last.bytes_ready, 2 * 370_000);
    let read: Vec<_> = one.origin_pieces.iter().chain(&two.origin_pieces).collect();
    assert_eq!(read.len() as u32, one.held[&0].manifest.layout().pieces(), "each byte is read once from the origin");

    // A node that comes later learns every checksum, with the manifest or after it, and reads nothing from the origin.
    let mut late = Agent::join(&coordinator, "n3").await;
    stage(&mut client, "d", "n3").await.unwrap();
    late.obey_until_sealed(2).await;
    let pieces = late.held[&0].manifest.layout().pieces();
    while !late.held[&0].known.contains_range(0..pieces) {
        late.obey_one().await;
    }
    assert!(late.origin_pieces.is_empty());
    assert!(!late.peer_sources.is_empty());
    wait(&mut client, "d", "all", 0).await.unwrap();

    let status = coordinator.status().await;
    assert_eq!(status["datasets"][0]["nodes"][0]["state"], "ready");
    assert_eq!(status["stages"][0]["state"], "done");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_catalog_and_stages_and_reads_nothing_again() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shard(data.path(), "a.bin", 300_000, 1);
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    let mut agent = Agent::join(&coordinator, "n1").await;
    add(&mut client, "d", "", data.path()).await.unwrap();
    let reply = stage(&mut client, "d", "n1").await.unwrap();
    agent.obey_until_sealed(1).await;
    wait(&mut client, "d", "n1", 0).await.unwrap();
    client
        .pin(v1::PinRequest { dataset: "d".into(), nodes: "n1".into(), pinned: true, by: "ann@login".into() })
        .await
        .unwrap();
    coordinator.stop().await;
    while agent.next().await.is_some() {}
    let disk = agent.into_disk();
    let digest = *disk.keys().next().unwrap();

    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    let listed = client.list_datasets(v1::ListDatasetsRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.datasets[0].name, "d");
    let mut hello = hello("n1");
    hello.digests = vec![digest.0.to_vec()];
    let (mut agent, first) = Agent::connect(&coordinator, hello).await;
    assert!(matches!(first, Some(Order::Welcome(_))));
    agent.disk = disk;
    let obeying = tokio::spawn(async move {
        agent.obey().await;
        agent
    });
    let last = wait(&mut client, "d", "all", 0).await.unwrap();
    assert_eq!(last.state, "ready");
    let status = coordinator.status().await;
    assert_eq!(status["stages"][0]["id"], reply.stage);
    assert_eq!(status["datasets"][0]["pinned_on"][0], "n1");
    let refused = client.remove_dataset(v1::RemoveDatasetRequest { dataset: "d".into() }).await.unwrap_err();
    assert_eq!(code(&refused), "8", "{refused:?}");
    coordinator.stop().await;
    let agent = obeying.await.unwrap();
    assert!(agent.origin_pieces.is_empty(), "nothing is read again");
    // Its inventory named no checksums: they were kept.
    let held = agent.held.values().next().unwrap();
    assert!(held.known.contains_range(0..held.manifest.layout().pieces()));
}

#[tokio::test]
async fn versions_conflict_join_and_count_up() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shard(data.path(), "a.bin", 1000, 1);
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    let first = add(&mut client, "d", "v1", data.path()).await.unwrap();
    assert!(!first.already_there);
    let again = add(&mut client, "d", "v1", data.path()).await.unwrap();
    assert!(again.already_there);
    let same = add(&mut client, "d", "", data.path()).await.unwrap();
    assert!(same.already_there && same.done.unwrap().version == "v1");
    shard(data.path(), "b.bin", 500, 2);
    let conflict = add(&mut client, "d", "v1", data.path()).await.unwrap_err();
    assert_eq!(code(&conflict), "8", "{conflict:?}");
    let next = add(&mut client, "d", "", data.path()).await.unwrap();
    assert_eq!(next.done.unwrap().version, "v2");
    let empty = tempfile::tempdir().unwrap();
    let nothing = add(&mut client, "e", "", empty.path()).await.unwrap_err();
    assert_eq!(code(&nothing), "3", "{nothing:?}");
    let bad = add(&mut client, "d/..", "", data.path()).await.unwrap_err();
    assert_eq!(code(&bad), "2", "{bad:?}");
    coordinator.stop().await;
}

#[tokio::test]
async fn shards_come_in_pages() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for n in 0..25 {
        shard(data.path(), &format!("s{n:02}"), 10, n);
    }
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    add(&mut client, "d", "", data.path()).await.unwrap();
    let mut keys = Vec::new();
    loop {
        let request = v1::ShowDatasetRequest { dataset: "d".into(), page_offset: keys.len() as u32, page_limit: 10 };
        let page = client.show_dataset(request).await.unwrap().into_inner();
        assert_eq!(page.info.unwrap().shards, 25);
        if page.shards.is_empty() {
            break;
        }
        keys.extend(page.shards.into_iter().map(|s| s.key));
    }
    assert_eq!(keys, (0..25).map(|n| format!("s{n:02}")).collect::<Vec<_>>());
    let far = v1::ShowDatasetRequest { dataset: "d".into(), page_offset: u32::MAX, page_limit: u32::MAX };
    assert!(client.show_dataset(far).await.unwrap().into_inner().shards.is_empty());
    coordinator.stop().await;
}

#[tokio::test]
async fn what_is_unknown_is_named() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shard(data.path(), "a", 10, 1);
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    let unknown = stage(&mut client, "nope", "all").await.unwrap_err();
    assert!(code(&unknown) == "3" && unknown.message().contains("nope"), "{unknown:?}");
    add(&mut client, "d", "", data.path()).await.unwrap();
    let version = wait(&mut client, "d@v9", "all", 0).await.unwrap_err();
    assert!(code(&version) == "3" && version.message().contains("v1"), "{version:?}");
    let nobody = stage(&mut client, "d", "all").await.unwrap_err();
    assert_eq!(code(&nobody), "4", "{nobody:?}");
    let _agent = Agent::join(&coordinator, "n1").await;
    let nodes = stage(&mut client, "d", "n1,n7,n8").await.unwrap_err();
    assert!(code(&nodes) == "3" && nodes.message().contains("n7, n8"), "{nodes:?}");
    let late = wait(&mut client, "d", "n1", 1).await.unwrap_err();
    assert!(code(&late) == "4" && late.message().contains("n1"), "{late:?}");
    let placement =
        v1::StageRequest { dataset: "d".into(), nodes: "n1".into(), placement: "spread=2".into(), priority: 0 };
    let placement = client.stage(placement).await.unwrap_err();
    assert_eq!(code(&placement), "2", "{placement:?}");
    coordinator.stop().await;
}

#[tokio::test]
async fn agents_that_cannot_be_served_are_told_why() {
    let state = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut old = hello("n1");
    old.protocol = 99;
    let (_, refused) = Agent::connect(&coordinator, old).await;
    let Some(Order::Refused(refused)) = refused else { panic!("{refused:?}") };
    assert!(refused.reason.contains("99"), "{refused:?}");

    let mut first = Agent::join(&coordinator, "n1").await;
    let mut second = hello("n1");
    second.listen = "elsewhere:7072".into();
    second.boot_id = 2;
    let (_, refused) = Agent::connect(&coordinator, second).await;
    let Some(Order::Refused(refused)) = refused else { panic!("{refused:?}") };
    assert!(refused.reason.contains("n1.example:7072"), "{refused:?}");

    // The first is still there: it is answered.
    first.say(Body::Heartbeat(v1::Heartbeat { sequence: 7, ..Default::default() })).await;
    assert!(matches!(first.next().await, Some(Order::HeartbeatAck(ack)) if ack.sequence == 7));
    // Its own next start takes over, and the old session ends.
    let mut restarted = hello("n1");
    restarted.boot_id = 3;
    let (_, welcome) = Agent::connect(&coordinator, restarted).await;
    assert!(matches!(welcome, Some(Order::Welcome(_))));
    while first.next().await.is_some() {}
    coordinator.stop().await;
}

#[tokio::test]
async fn a_node_without_room_fails_the_wait_with_numbers() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shard(data.path(), "a", 1000, 1);
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    let mut agent = Agent::join(&coordinator, "n1").await;
    add(&mut client, "d", "", data.path()).await.unwrap();
    stage(&mut client, "d", "n1").await.unwrap();
    let attach = loop {
        if let Some(Order::Attach(attach)) = agent.next().await {
            break attach;
        }
    };
    assert_eq!(attach.wanted_bytes, 1000);
    let storage = v1::StorageReport {
        dataset: attach.dataset,
        state: "no-space".into(),
        reason: "needs 1000 bytes, 10 are free".into(),
        ..Default::default()
    };
    agent.say(Body::Storage(storage)).await;
    let last = wait(&mut client, "d", "all", 0).await.unwrap();
    let problem = last.problem.unwrap();
    assert_eq!((last.state.as_str(), problem.code, problem.node.as_str()), ("failed", 7, "n1"));
    assert!(problem.message.contains("10 are free"), "{problem:?}");
    coordinator.stop().await;
}

#[tokio::test]
async fn verify_evict_and_remove_reach_the_nodes() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shard(data.path(), "a", 100_000, 1);
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    let mut agents = Vec::new();
    for node in ["n1", "n2"] {
        let mut agent = Agent::join(&coordinator, node).await;
        agents.push(tokio::spawn(async move {
            agent.obey().await;
            agent
        }));
    }
    add(&mut client, "d", "", data.path()).await.unwrap();
    stage(&mut client, "d", "all").await.unwrap();
    wait(&mut client, "d", "all", 0).await.unwrap();

    let request = v1::VerifyDatasetRequest { dataset: "d".into(), nodes: "all".into() };
    let mut steps = client.verify(request).await.unwrap().into_inner();
    let mut done = Vec::new();
    while let Some(step) = soon(steps.message()).await.unwrap() {
        assert!(step.done && step.error.is_empty() && step.bytes_checked == 100_000, "{step:?}");
        done.push((step.node, step.nodes_done));
    }
    assert_eq!(done.len(), 2);
    assert_eq!(done[1].1, 2);

    let evicted =
        client.evict(v1::EvictRequest { dataset: "d".into(), nodes: "n2".into() }).await.unwrap().into_inner();
    assert_eq!((evicted.nodes, evicted.bytes), (vec!["n2".to_owned()], 100_000));
    let status = coordinator.status().await;
    let states: Vec<_> = status["datasets"][0]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| (n["node"].as_str().unwrap().to_owned(), n["state"].as_str().unwrap().to_owned()))
        .collect();
    assert!(states.contains(&("n1".into(), "ready".into())), "{states:?}");
    assert!(!states.iter().any(|(n, s)| n == "n2" && s != "absent"), "{states:?}");

    let removed = client.remove_dataset(v1::RemoveDatasetRequest { dataset: "d".into() }).await.unwrap().into_inner();
    assert_eq!(removed.removed, ["d@v1"]);
    let gone = wait(&mut client, "d", "all", 0).await.unwrap_err();
    assert_eq!(code(&gone), "3");
    coordinator.stop().await;
    for agent in agents {
        assert!(agent.await.unwrap().held.is_empty(), "removed from every node");
    }
}

#[tokio::test]
async fn status_has_the_shape_that_scripts_rely_on() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shard(data.path(), "a", 1000, 1);
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    let mut agent = Agent::join(&coordinator, "n1").await;
    add(&mut client, "d", "", data.path()).await.unwrap();
    stage(&mut client, "d", "n1").await.unwrap();
    let fallback = v1::Fallback { from: "rdma".into(), to: "tcp".into(), reason: "no device".into(), count: 3 };
    let heartbeat = v1::Heartbeat {
        received_tcp_bytes: 5,
        used_bytes: 9,
        capacity_bytes: 10,
        fallbacks: vec![fallback],
        ..Default::default()
    };
    agent.say(Body::Heartbeat(heartbeat)).await;
    let rail = v1::Rail {
        device: "mlx5_0".into(),
        state: "up".into(),
        received_bytes: 7,
        wire_received_bytes: Some(9),
        wire_sent_bytes: Some(0),
        counters: [("rcvd_pkts".into(), 3)].into(),
        ..Default::default()
    };
    agent.say(Body::Details(v1::NodeDetails { rails: vec![rail], ..Default::default() })).await;
    agent.obey_until_sealed(1).await;
    wait(&mut client, "d", "n1", 0).await.unwrap();

    let status = coordinator.status().await;
    let same = client.status(v1::StatusRequest::default()).await.unwrap().into_inner().json;
    let same: serde_json::Value = serde_json::from_str(&same).unwrap();
    assert_eq!(status["datasets"], same["datasets"], "the same document on both ports");
    let keys = |value: &serde_json::Value, wanted: &[&str]| {
        for key in wanted {
            assert!(value.get(key).is_some(), "{key} is missing in {value}");
        }
    };
    keys(&status, &["version", "coordinator", "nodes", "datasets", "stages"]);
    keys(&status["coordinator"], &["id", "leader", "uptime_s", "state_store"]);
    let node = &status["nodes"][0];
    keys(
        node,
        &[
            "node",
            "state",
            "address",
            "labels",
            "transports",
            "io",
            "disk",
            "received_bytes",
            "sent_bytes",
            "rate_bytes_per_s",
            "fallbacks",
        ],
    );
    assert_eq!(node["state"], "up");
    assert_eq!(node["received_bytes"], serde_json::json!({"origin": 0, "rdma": 0, "tcp": 5}));
    keys(&node["disk"], &["capacity_bytes", "used_bytes", "pinned_bytes"]);
    assert_eq!(
        node["fallbacks"],
        serde_json::json!([{"from": "rdma", "to": "tcp", "reason": "no device", "count": 3}])
    );
    let mut rail = serde_json::json!({
        "device": "mlx5_0", "state": "up", "port": 0, "gid": "", "kind": "", "mtu_bytes": 0, "queue_pairs": 0,
        "received_bytes": 7, "sent_bytes": 0, "wire_received_bytes": 9, "wire_sent_bytes": 0, "confirmed": true,
        "counters": {},
    });
    assert_eq!(node["rails"], serde_json::json!([rail]));
    keys(&node["sent_bytes"], &["rdma", "tcp"]);
    keys(&node["rate_bytes_per_s"], &["in", "out"]);
    let dataset = &status["datasets"][0];
    keys(dataset, &["name", "version", "digest", "shards", "bytes", "origin_url", "origin_verified", "nodes"]);
    keys(&dataset["nodes"][0], &["node", "shards_ready", "bytes_ready", "state", "reason"]);
    let stage = &status["stages"][0];
    keys(
        stage,
        &[
            "id",
            "dataset",
            "nodes",
            "placement",
            "priority",
            "state",
            "bytes_total",
            "bytes_ready",
            "origin_bytes",
            "started_at",
            "elapsed_s",
            "eta_s",
            "bound_s",
            "bound_by",
            "ratio_to_bound",
        ],
    );
    assert_eq!(stage["placement"], "replicate");

    let (code, metrics) = coordinator.get("/metrics").await;
    assert_eq!(code, 200);
    for line in [
        "millstream_build_info{version=",
        "millstream_nodes{state=\"up\"} 1",
        "millstream_cluster_received_bytes_total{source=\"tcp\"} 5",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    let assignments = metrics.lines().find(|l| l.starts_with("millstream_assignments_total ")).unwrap();
    assert_ne!(assignments, "millstream_assignments_total 0");
    assert_eq!(coordinator.get("/healthz").await.0, 200);
    assert_eq!(coordinator.get("/readyz").await.0, 200);
    let (code, detail) = coordinator.get("/api/v1/nodes/n1").await;
    assert_eq!(code, 200);
    rail["counters"] = serde_json::json!({"rcvd_pkts": 3});
    let detail: serde_json::Value = serde_json::from_str(&detail).unwrap();
    assert_eq!(detail["rails"], serde_json::json!([rail]), "with the device's own counters");
    assert_eq!(coordinator.get("/api/v1/nodes/n2").await.0, 404);
    let (code, page) = coordinator.get("/").await;
    assert!(code == 200 && page.contains("web/app.js"));
    coordinator.stop().await;
}

#[tokio::test]
async fn garbage_at_the_ports_harms_nobody() {
    let state = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(config(state.path())).await;
    for port in [coordinator.bound.grpc, coordinator.bound.http] {
        for garbage in [
            &b"\0\xff\0\xff\0\xff\0\xff\0\xff\0\xff\0\xff\0\xff\0\xff\0\xff\0\xff\0\xff\r\n\r\n"[..],
            b"GET / HTTP/9.9\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            raw(port, garbage).await;
        }
    }
    // An agent that names what does not exist is not acted on, and not thrown out.
    let mut agent = Agent::join(&coordinator, "n1").await;
    let runs = Some(v1::Runs { start_len: vec![5, 5, 1] });
    agent.say(Body::Sealed(v1::ShardsSealed { dataset: 77, shards: runs.clone() })).await;
    agent.say(Body::Failed(v1::AssignmentFailed { assignment: 9, failure: None, missing: runs })).await;
    agent
        .say(Body::Done(v1::AssignmentDone { assignment: 1 << 60, bytes: u64::MAX, elapsed_us: 0, source: None }))
        .await;
    agent.say(Body::Checksums(v1::PieceChecksums { dataset: 0, first: u32::MAX, crcs: vec![1; 100] })).await;
    agent.say(Body::Hello(hello("n1"))).await;
    agent.say(Body::Heartbeat(v1::Heartbeat { sequence: 1, ..Default::default() })).await;
    assert!(matches!(agent.next().await, Some(Order::HeartbeatAck(_))));
    let (_, metrics) = coordinator.get("/metrics").await;
    assert!(metrics.contains("millstream_coordinator_dropped_total{kind=\"message\"} 4"), "{metrics}");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_second_coordinator_on_the_same_directory_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(config(state.path())).await;
    let second = millstream_coordinator::run(config(state.path()), Default::default(), None);
    let error = soon(second).await.unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    coordinator.stop().await;
}

/// The catalog as it lies on disk while the coordinator runs is what `kill -9` leaves.
#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shard(data.path(), "a", 1000, 1);
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    let _agent = Agent::join(&coordinator, "n1").await;
    let added = add(&mut client, "d", "", data.path()).await.unwrap().done.unwrap();
    let staged = stage(&mut client, "d", "n1").await.unwrap();
    let left = tempfile::tempdir().unwrap();
    std::fs::copy(state.path().join("catalog.redb"), left.path().join("catalog.redb")).unwrap();

    let second = Coordinator::start(config(left.path())).await;
    let status = second.status().await;
    assert_eq!(status["datasets"][0]["digest"], added.digest);
    assert_eq!(status["stages"][0]["id"], staged.stage);
    assert_eq!(status["stages"][0]["nodes"], serde_json::json!(["n1"]));
    assert_eq!(status["nodes"][0]["state"], "down", "a node of a stage is known before it is back");
    second.stop().await;
    coordinator.stop().await;
}

#[tokio::test]
async fn a_damaged_catalog_is_named_at_the_start() {
    let state = tempfile::tempdir().unwrap();
    Coordinator::start(config(state.path())).await.stop().await;
    let file = state.path().join("catalog.redb");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.iter_mut().for_each(|b| *b ^= 0x5a);
    std::fs::write(&file, bytes).unwrap();
    let started = millstream_coordinator::run(config(state.path()), Default::default(), None);
    let error = soon(started).await.unwrap_err().to_string();
    assert!(error.contains("catalog.redb") && error.contains("restore a copy"), "{error}");
}

#[tokio::test]
async fn a_wait_ends_when_the_coordinator_stops_and_says_so() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shard(data.path(), "a", 1000, 1);
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    add(&mut client, "d", "", data.path()).await.unwrap();
    let request = v1::WaitRequest { dataset: "d".into(), nodes: "all".into(), timeout_ms: 0 };
    let mut steps = client.wait(request).await.unwrap().into_inner();
    let first = soon(steps.message()).await.unwrap().unwrap();
    assert!(first.waiting_for[0].reason.contains("no stage"), "{first:?}");
    coordinator.stop().await;
    let last = soon(steps.message()).await.unwrap_err();
    assert_eq!(
        (last.code(), code(&last)),
        (tonic::Code::Unavailable, "none"),
        "as if the connection broke: clients come back"
    );
}
