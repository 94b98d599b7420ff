//! `simulate`: the real page and API over a simulated cluster, as large as no test machine could carry.

use std::sync::mpsc::sync_channel;

use millstream_coordinator::replay::{Replay, replay};
use millstream_sim::{Fault, FaultKind, Fidelity, Scenario, core_config, tell};
use serde_json::json;
use tokio::sync::oneshot;

use crate::args::SimulateArgs;
use crate::failure::{Failure, Result};
use crate::limits::SIMULATED_AHEAD_MAX;
use crate::output;
use crate::signals::{shutdown_token, tie_to_parent};
use crate::verbs::s3_server::write_ready;

/// Serves until a signal comes.
pub async fn run(args: SimulateArgs) -> Result<()> {
    tie_to_parent(args.parent)?;
    let shutdown = shutdown_token()?;
    let bytes = args.shard_size.0.saturating_mul(args.shards.into());
    let mut scenario = Scenario::new(1, args.nodes, bytes, args.shards.into());
    scenario.fidelity = Fidelity::Extents;
    scenario.indexed = true;
    for i in 0..args.deaths.min(args.nodes / 2) {
        let node = i.wrapping_mul(0x9e37) % args.nodes;
        scenario.faults.push(Fault { at_us: u64::from(i + 1) * 500_000, kind: FaultKind::Dies(node) });
    }
    let state = std::env::temp_dir().join(format!("millstream-simulate-{}", std::process::id()));
    let dataset = "simulated@v1";
    let (tap, told) = sync_channel(SIMULATED_AHEAD_MAX);
    let plan = Replay {
        http: args.http,
        state_dir: state.clone(),
        core: core_config(&scenario.core, 1),
        dataset: dataset.parse().map_err(|e| Failure::other(dataset, e))?,
        shards: scenario.shards.clone(),
        nodes: args.nodes,
        speed: args.speed,
        told,
    };
    // Ends when the replay no longer takes what it tells.
    let simulate = move || drop(tell(scenario, tap));
    std::thread::Builder::new()
        .name("simulation".into())
        .spawn(simulate)
        .map_err(|e| Failure::other("simulation", e))?;
    let (ready, address) = oneshot::channel();
    let serving = replay(plan, shutdown.clone(), ready);
    let announce = async {
        let Ok(address) = address.await else { return Ok(()) };
        let ready = json!({"role": "simulate", "http": address.to_string(), "dataset": dataset, "nodes": args.nodes, "shards": args.shards});
        if let Some(path) = &args.ready_file {
            write_ready(path, &ready)?;
        }
        output::json_line(&ready)
    };
    let (served, announced) = tokio::join!(serving, async {
        let announced = announce.await;
        if announced.is_err() {
            shutdown.cancel();
        }
        announced
    });
    // Left-overs in the system's temporary directory are harmless.
    let _ = std::fs::remove_dir_all(&state);
    served.map_err(|e| Failure::other("simulate", format!("{e:#}")).next("choose another --http"))?;
    announced
}
