//! Jobs over the sockets: what hooks may repeat, lose, or say too late.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use millstream_proto::v1::client_service_client::ClientServiceClient;
use millstream_proto::v1::{self};
use support::*;
use tonic::transport::Channel;
use tonic::{Code, Status};

type Client = ClientServiceClient<Channel>;

fn request(job: &str, nodes: &str) -> v1::OpenJobRequest {
    v1::OpenJobRequest {
        job: job.into(),
        user: "ada".into(),
        nodes: nodes.into(),
        wants: vec![v1::JobWant { dataset: "d".into(), ..Default::default() }],
        ..Default::default()
    }
}

async fn open(client: &mut Client, request: v1::OpenJobRequest) -> Result<v1::JobReply, Status> {
    Ok(soon(client.open_job(request)).await?.into_inner())
}

async fn close(client: &mut Client, job: &str, attempt: u32, node: &str) -> v1::JobReply {
    let request = v1::CloseJobRequest { job: job.into(), attempt, node: node.into(), outcome: "done".into() };
    soon(client.close_job(request)).await.unwrap().into_inner()
}

async fn stages(coordinator: &Coordinator) -> usize {
    coordinator.status().await["stages"].as_array().unwrap().len()
}

async fn start(state: &Path, data: &Path) -> (Coordinator, Client) {
    shard(data, "a.bin", 300_000, 1);
    let coordinator = Coordinator::start(config(state)).await;
    let mut client = coordinator.client().await;
    add(&mut client, "d", "", data).await.unwrap();
    (coordinator, client)
}

#[tokio::test]
async fn a_job_is_opened_once_and_counted_once() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (coordinator, mut client) = start(state.path(), data.path()).await;
    let mut one = Agent::join(&coordinator, "n1").await;
    let mut two = Agent::join(&coordinator, "n2").await;
    let first = open(&mut client, request("c/1", "n[1-2]")).await.unwrap();
    assert_eq!((first.state.as_str(), first.asked_bytes), ("staging", 600_000));
    assert_eq!(first.datasets, ["d@v1"]);
    open(&mut client, request("c/1", "n[1-2]")).await.unwrap();
    open(&mut client, request("c/2", "n[1-2]")).await.unwrap();
    assert_eq!(stages(&coordinator).await, 1, "the same wish is one stage");
    tokio::join!(one.obey_until_sealed(1), two.obey_until_sealed(1));
    wait(&mut client, "d", "n[1-2]", 0).await.unwrap();
    let shown = client.show_job(v1::ShowJobRequest { job: "c/1".into() }).await.unwrap().into_inner();
    let counted = (shown.cache_bytes, shown.origin_bytes, shown.peer_bytes, shown.shared_bytes);
    assert_eq!((shown.state.as_str(), counted), ("ready", (0, 300_000, 300_000, 0)));
    let shown = client.show_job(v1::ShowJobRequest { job: "c/2".into() }).await.unwrap().into_inner();
    let counted = (shown.cache_bytes, shown.origin_bytes, shown.peer_bytes, shown.shared_bytes);
    assert_eq!((shown.state.as_str(), counted), ("ready", (0, 0, 0, 600_000)));

    // What a job has is not taken from under it.
    let evict = v1::EvictRequest { dataset: "d".into(), nodes: "n1".into() };
    let kept = client.evict(evict).await.unwrap().into_inner();
    assert!(kept.refused[0].contains("job c/1 of ada"), "{kept:?}");
    let late = open(&mut client, request("c/3", "n1")).await.unwrap();
    assert_eq!((late.state.as_str(), late.cache_bytes), ("ready", 300_000));
    let (_, metrics) = coordinator.get("/metrics").await;
    assert!(metrics.contains("millstream_job_bytes_total{source=\"origin\"} 300000"), "{metrics}");
    assert!(metrics.contains("millstream_job_bytes_total{source=\"shared\"} 600000"), "{metrics}");
    assert!(metrics.contains("millstream_job_bytes_total{source=\"cache\"} 300000"), "{metrics}");
    assert!(metrics.contains("millstream_job_waits_total 3"), "{metrics}");
    assert!(metrics.contains("millstream_jobs{state=\"ready\"} 3"), "{metrics}");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_stage_ends_with_the_last_job_that_wants_it() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (coordinator, mut client) = start(state.path(), data.path()).await;
    open(&mut client, request("c/1", "n1")).await.unwrap();
    let second = open(&mut client, request("c/2", "n1")).await.unwrap();
    assert_eq!(second.absent_nodes, ["n1"], "an agent that never came is named");
    close(&mut client, "c/1", 0, "").await;
    assert_eq!(stages(&coordinator).await, 1);
    close(&mut client, "c/2", 0, "").await;
    assert_eq!(stages(&coordinator).await, 0);
    // What a person asked for stays, also when jobs wanted it first.
    open(&mut client, request("c/3", "n1")).await.unwrap();
    stage(&mut client, "d", "n1").await.unwrap();
    close(&mut client, "c/3", 0, "").await;
    assert_eq!(stages(&coordinator).await, 1);
    coordinator.stop().await;
}

#[tokio::test]
async fn late_hooks_do_not_bring_a_job_back() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (coordinator, mut client) = start(state.path(), data.path()).await;
    close(&mut client, "c/1", 0, "").await;
    let refused = open(&mut client, request("c/1", "n1")).await.unwrap_err();
    assert_eq!(code(&refused), "8", "{refused:?}");
    // Slurm counts a requeue before the epilog of what it requeues: attempt 0 ends, attempt 1 may begin.
    open(&mut client, request("c/2", "n1")).await.unwrap();
    let ended = close(&mut client, "c/2", 1, "").await;
    assert_eq!((ended.state.as_str(), ended.attempt), ("ended", 0));
    let again = v1::OpenJobRequest { attempt: 1, ..request("c/2", "n1") };
    open(&mut client, again.clone()).await.unwrap();
    // An epilog of the attempt before changes nothing.
    assert_eq!(close(&mut client, "c/2", 0, "").await.state, "staging");
    assert_eq!(open(&mut client, request("c/2", "n1")).await.unwrap_err().code(), Code::AlreadyExists);
    coordinator.stop().await;
}

#[tokio::test]
async fn nodes_are_given_back_one_by_one() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (coordinator, mut client) = start(state.path(), data.path()).await;
    open(&mut client, request("c/1", "n[1-2]")).await.unwrap();
    assert_eq!(close(&mut client, "c/1", 0, "n1").await.state, "staging");
    assert_eq!(close(&mut client, "c/1", 0, "n1").await.state, "staging");
    assert_eq!(close(&mut client, "c/1", 0, "n2").await.state, "ended");
    assert_eq!(stages(&coordinator).await, 0);
    // Where each node stages for itself, the job has both until both are done.
    for node in ["n1", "n2"] {
        let one = v1::OpenJobRequest { add_nodes: true, ..request("c/2", node) };
        open(&mut client, one).await.unwrap();
    }
    assert_eq!(stages(&coordinator).await, 2);
    close(&mut client, "c/2", 0, "n1").await;
    assert_eq!(stages(&coordinator).await, 1);
    coordinator.stop().await;
    // What is done stays done through a restart, and the account names both.
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    assert_eq!(stages(&coordinator).await, 1);
    let ended = close(&mut client, "c/2", 0, "n2").await;
    assert_eq!((ended.state.as_str(), ended.nodes.len()), ("ended", 2));
    assert_eq!(stages(&coordinator).await, 0);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_pending_job_gets_other_nodes_and_the_same_version() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (coordinator, mut client) = start(state.path(), data.path()).await;
    let pending = v1::OpenJobRequest { pending: true, ..request("c/1", "n[1-4]") };
    assert_eq!(open(&mut client, pending.clone()).await.unwrap().state, "pending");
    // A newer version does not change what the job began with.
    shard(data.path(), "b.bin", 1000, 2);
    add(&mut client, "d", "", data.path()).await.unwrap();
    let allocated = open(&mut client, request("c/1", "n[2-3]")).await.unwrap();
    assert_eq!((allocated.state.as_str(), allocated.nodes.len()), ("staging", 2));
    assert_eq!(allocated.datasets, ["d@v1"]);
    assert_eq!(stages(&coordinator).await, 1, "the candidates are let go of");
    coordinator.stop().await;

    // All of it survives a restart.
    let coordinator = Coordinator::start(config(state.path())).await;
    let mut client = coordinator.client().await;
    let shown = client.show_job(v1::ShowJobRequest { job: "c/1".into() }).await.unwrap().into_inner();
    assert_eq!((shown.state.as_str(), shown.user.as_str(), shown.nodes.len()), ("staging", "ada", 2));
    close(&mut client, "c/1", 0, "").await;
    assert_eq!(stages(&coordinator).await, 0);
    coordinator.stop().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let (state, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (coordinator, mut client) = start(state.path(), data.path()).await;
    let bad = [
        request("", "n1"),
        request("c/1;rm", "n1"),
        request("c/1", ""),
        v1::OpenJobRequest { wants: Vec::new(), ..request("c/1", "n1") },
        v1::OpenJobRequest {
            wants: vec![v1::JobWant { priority: 1001, ..Default::default() }],
            ..request("c/1", "n1")
        },
    ];
    for request in bad {
        assert_eq!(code(&open(&mut client, request.clone()).await.unwrap_err()), "2", "{request:?}");
    }
    let unknown = v1::JobWant { dataset: "ghost@v1".into(), ..Default::default() };
    let unknown = v1::OpenJobRequest { wants: vec![unknown], ..request("c/1", "n1") };
    assert_eq!(code(&open(&mut client, unknown).await.unwrap_err()), "3");
    let nobody = client.show_job(v1::ShowJobRequest { job: "c/9".into() }).await.unwrap_err();
    assert_eq!(code(&nobody), "3");
    coordinator.stop().await;
}
