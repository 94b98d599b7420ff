//! `stage`: ask that a version be on nodes.

use millstream_proto::v1::StageRequest;
use serde_json::json;

use crate::args::StageArgs;
use crate::client::Session;
use crate::failure::{Failure, Result};
use crate::output::{self, Progress};
use crate::verbs::{slurm, wait};

/// Stages, and waits when asked to.
pub async fn run(args: StageArgs) -> Result<()> {
    check_placement(&args.placement)?;
    wait::check_nodes(&args.nodes)?;
    let session = Session::new(&args.client)?;
    let args = StageArgs { dataset: slurm::selector(&session, &args.dataset).await?, ..args };
    let nodes = wait::node_names(&session, &args.nodes).await;
    let reply = session
        .call(&args.dataset, |mut client| {
            let request = StageRequest {
                dataset: args.dataset.clone(),
                nodes: nodes.clone(),
                placement: args.placement.clone(),
                priority: args.priority,
            };
            async move { client.stage(request).await }
        })
        .await?;
    let mut document = json!({
        "stage": reply.stage, "dataset": reply.dataset, "nodes": reply.nodes, "joined_existing": reply.joined_existing,
    });
    if args.wait {
        // One document comes at the end, so nothing is printed on the way.
        let mut progress = Progress::new(session.json);
        let followed = wait::follow(&session, &reply.dataset, &nodes, args.timeout.map(|t| t.0), |step| {
            progress.show(step.bytes_ready, step.bytes_total, &wait::words(&reply.dataset, step));
            Ok(())
        })
        .await;
        progress.finish();
        let last = followed?;
        document["wait"] = wait::progress_json(&reply.dataset, &last);
    }
    if session.json {
        return output::json(&document);
    }
    let joined = if reply.joined_existing { ", joined one that was there" } else { "" };
    let state = if args.wait { "ready on" } else { "staging on" };
    let nodes = output::nodes(reply.nodes.len());
    output::note(&format!("{} {state} {nodes} (stage {}{joined})", reply.dataset, reply.stage));
    Ok(())
}

fn check_placement(text: &str) -> Result<()> {
    let spread = text.strip_prefix("spread=").and_then(|r| r.parse::<u32>().ok()).is_some_and(|r| r > 0);
    if matches!(text, "replicate" | "window") || spread {
        return Ok(());
    }
    Err(Failure::usage(format!("--placement {text}"), "is not replicate, spread=R or window")
        .next("write --placement replicate, --placement spread=2, or --placement window"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placements() {
        for (text, good) in [
            ("replicate", true),
            ("window", true),
            ("spread=2", true),
            ("spread=0", false),
            ("spread", false),
            ("x", false),
        ] {
            assert_eq!(check_placement(text).is_ok(), good, "{text}");
        }
    }
}
