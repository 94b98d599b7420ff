//! `path`: where verified data lies on this node. Asks the local agent only; without `--fetch` that works without a
//! coordinator; only which version holds a checkpoint is known there.

use serde_json::{Value, json};

use crate::args::PathArgs;
use crate::client::Session;
use crate::failure::{Code, Failure, Result};
use crate::limits::SOCKET_TIMEOUT;
use crate::output;
use crate::socket::Agent;
use crate::verbs::slurm;

/// Prints the path.
pub async fn run(args: PathArgs) -> Result<()> {
    let session = Session::new(&args.client)?;
    let args = match args.dataset.starts_with("ckpt/") {
        true => PathArgs { dataset: slurm::selector(&session, &args.dataset).await?, ..args },
        false => args,
    };
    let mut agent = Agent::connect(&session.settings.socket_or_default()).await?;
    let thing = match &args.key {
        Some(key) => format!("{} {key}", args.dataset),
        None => args.dataset.clone(),
    };
    let request = if args.fetch {
        let timeout_ms = u64::try_from(args.timeout.0.as_millis()).unwrap_or(u64::MAX);
        json!({"op": "fetch", "dataset": args.dataset, "key": args.key, "timeout_ms": timeout_ms})
    } else {
        json!({"op": "path", "dataset": args.dataset, "key": args.key})
    };
    // The agent answers within the timeout, and says every few seconds that it is at it.
    let reply = agent.stream(&thing, request, Some(SOCKET_TIMEOUT), |_| Ok(())).await?;
    let Some(path) = reply.get("path").and_then(Value::as_str) else {
        return Err(Failure::new(Code::Other, thing, format!("the agent's answer has no path: {reply}")));
    };
    if session.json {
        let document = json!({"dataset": reply.get("dataset"), "key": args.key, "path": path});
        return output::json(&document);
    }
    output::line(path)
}
