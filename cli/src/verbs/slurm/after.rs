//! Both epilogs: let go at once, never fail. What cannot be said now is said again by hand (`slurm end`).

use std::time::{Duration, Instant};

use clap::Args;
use millstream_proto::v1::CloseJobRequest;
use millstream_slurm::Hook;

use super::{Settings, SlurmSettings, node};
use crate::client::Session;
use crate::failure::{Code, Result};
use crate::limits::{RECONNECT_PAUSE, SLURM_EPILOG_BUDGET, SLURM_EPILOG_SLURMCTLD_BUDGET};
use crate::output::note;

/// `slurm end`.
#[derive(Args, Debug)]
pub struct EndArgs {
    /// CLUSTER/NUMBER, as in `millstream status --json`
    pub job: String,
    /// How often it was requeued, as there
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub attempt: u32,
    #[command(flatten)]
    settings: Settings,
}

/// Does it ask for anything, as far as can be told?
fn concerns_us(hook: &Hook) -> bool {
    hook.wants().map_or(true, |wants| !wants.is_empty())
}

/// This node is done with the job.
pub async fn epilog(settings: Result<SlurmSettings>, hook: Result<Hook>) -> Result<()> {
    let (settings, hook) = match (settings, hook) {
        (Ok(settings), Ok(hook)) => (settings, hook),
        (Err(failure), _) | (_, Err(failure)) => return excuse(&failure),
    };
    node::forget(&settings, &hook);
    if concerns_us(&hook) && !hook.node.is_empty() {
        let node = hook.node.clone();
        let_go(&settings.session(), &hook, &node, "ended on all nodes", SLURM_EPILOG_BUDGET).await;
    }
    Ok(())
}

/// The job has ended everywhere, or never began.
pub async fn epilog_slurmctld(settings: Result<SlurmSettings>, hook: Result<Hook>) -> Result<()> {
    let (settings, hook) = match (settings, hook) {
        (Ok(settings), Ok(hook)) => (settings, hook),
        (Err(failure), _) | (_, Err(failure)) => return excuse(&failure),
    };
    if concerns_us(&hook) {
        let outcome = match std::env::var("SLURM_JOB_EXIT_CODE2") {
            Ok(code) => format!("ended, exit code {code}"),
            Err(_) => "ended".to_owned(),
        };
        let_go(&settings.session(), &hook, "", &outcome, SLURM_EPILOG_SLURMCTLD_BUDGET).await;
    }
    Ok(())
}

fn excuse(failure: &crate::failure::Failure) -> Result<()> {
    // An epilog that fails drains the node.
    note(&format!("error: {failure}"));
    Ok(())
}

/// Closes the job at the coordinator; on one node only, where `node` is given.
pub async fn let_go(session: &Session, hook: &Hook, node: &str, outcome: &str, budget: Duration) {
    let until = Instant::now() + budget;
    while let Err(failure) = close(session, &hook.key(), hook.attempt, node, outcome).await {
        if failure.code != Code::Unreachable || Instant::now() >= until {
            note(&format!("error: {failure}; the job's data stays held: `millstream slurm end {}`", hook.key()));
            return;
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn close(session: &Session, job: &str, attempt: u32, node: &str, outcome: &str) -> Result<()> {
    let request = CloseJobRequest { job: job.to_owned(), attempt, node: node.to_owned(), outcome: outcome.to_owned() };
    let closed = session.call(job, |mut client| {
        let request = request.clone();
        async move { client.close_job(request).await }
    });
    closed.await.map(|_| ())
}

/// By hand.
pub async fn end(args: EndArgs) -> Result<()> {
    let session = args.settings.layered()?.session();
    close(&session, &args.job, args.attempt, "", "ended by hand").await
}
