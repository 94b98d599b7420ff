//! Readers on nodes: what agents ask for them, and what comes of it.

#![allow(clippy::unwrap_used)]

mod support;

use millstream_proto::v1::agent_message::Body;
use millstream_proto::v1::{self};
use support::*;

fn question(keys: &[&str], free_bytes: u64) -> v1::WantRequest {
    let keys = keys.iter().map(|&key| key.to_owned()).collect();
    v1::WantRequest { node: "n1".into(), dataset: "d".into(), keys, free_bytes, ..Default::default() }
}

#[tokio::test]
async fn a_reader_has_its_version_opened_and_what_it_announces_comes() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shard(data.path(), "a.bin", 300_000, 1);
    shard(data.path(), "b.bin", 70_000, 2);
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut agent = Agent::join(&coordinator, "n1").await;
    add(&mut coordinator.client().await, "d", "", data.path()).await.unwrap();

    // Nothing is staged, and nothing asked for: it is opened there all the same.
    let reply = agent.want(question(&[], 0)).await.unwrap();
    assert_eq!((reply.dataset.as_str(), reply.wanted_bytes), ("d@v1", 0));
    while agent.held.is_empty() {
        assert!(agent.obey_one().await);
    }
    let dataset = *agent.held.keys().next().unwrap();
    let moved = v1::ReaderMoved {
        dataset,
        reader: 1,
        restart: true,
        upcoming: vec![1],
        room_bytes: 70_000,
        ..Default::default()
    };
    agent.say(Body::Reader(moved)).await;
    agent.obey_until_sealed(1).await;
    assert!(agent.held[&dataset].sealed.contains(1));
    coordinator.stop().await;
}

#[tokio::test]
async fn a_question_that_overtakes_its_announcement_is_not_refused() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    shard(data.path(), "a.bin", 300_000, 1);
    let coordinator = Coordinator::start(config(state.path())).await;
    let agent = Agent::join(&coordinator, "n1").await;
    add(&mut coordinator.client().await, "d", "", data.path()).await.unwrap();

    // Its announcement says later within which room it comes; until then nothing more is wanted there.
    let announced = v1::WantRequest { announced: true, ..question(&["a.bin"], 1000) };
    assert_eq!(agent.want(announced.clone()).await.unwrap().wanted_bytes, 0);
    // Who asks again, or announces nothing, is told that there is no room.
    for refused in [v1::WantRequest { again: true, ..announced }, question(&["a.bin"], 1000)] {
        let no_room = agent.want(refused).await.unwrap_err();
        assert_eq!(code(&no_room), "7", "{no_room:?}");
    }
    coordinator.stop().await;
}
