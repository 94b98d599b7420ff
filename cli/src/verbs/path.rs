//! `path`: where verified data lies on this node. Asks the local agent only, so it works without a coordinator.

use serde_json::{Value, json};

use crate::args::PathArgs;
use crate::client::Session;
use crate::failure::{Code, Failure, Result};
use crate::output;
use crate::socket::Agent;

/// Prints the path.
pub async fn run(args: PathArgs) -> Result<()> {
    let session = Session::new(&args.client)?;
    let mut agent = Agent::connect(&session.settings.socket_or_default()).await?;
    let thing = match &args.key {
        Some(key) => format!("{} {key}", args.dataset),
        None => args.dataset.clone(),
    };
    let request = json!({"op": "path", "dataset": args.dataset, "key": args.key});
    let reply = agent.call(&thing, request).await?;
    let Some(path) = reply.get("path").and_then(Value::as_str) else {
        return Err(Failure::new(Code::Other, thing, format!("the agent's answer has no path: {reply}")));
    };
    if session.json {
        let document = json!({"dataset": reply.get("dataset"), "key": args.key, "path": path});
        return output::json(&document);
    }
    output::line(path)
}
