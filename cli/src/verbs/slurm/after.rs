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

/// This node is done with the job.
pub async fn epilog(settings: &SlurmSettings, hook: &Hook) -> Result<()> {
    node::forget(settings, hook);
    if hook.asks() && !hook.node.is_empty() {
        let_go(&settings.session(), hook, &hook.node, "ended on all nodes", SLURM_EPILOG_BUDGET).await;
    }
    Ok(())
}

/// The job has ended everywhere, or never began.
pub async fn epilog_slurmctld(settings: &SlurmSettings, hook: &Hook) -> Result<()> {
    if hook.asks() {
        let outcome = match std::env::var("SLURM_JOB_EXIT_CODE2") {
            Ok(code) => format!("ended, exit code {code}"),
            Err(_) => "ended".to_owned(),
        };
        let_go(&settings.session(), hook, "", &outcome, SLURM_EPILOG_SLURMCTLD_BUDGET).await;
    }
    Ok(())
}

/// Closes the job at the coordinator; on one node only, where `node` is given. Takes no longer than `budget`.
pub async fn let_go(session: &Session, hook: &Hook, node: &str, outcome: &str, budget: Duration) {
    let (until, key) = (Instant::now() + budget, hook.key());
    let failure = loop {
        let left = until.saturating_duration_since(Instant::now());
        let closed = close(session, &key, hook.attempt, node, outcome);
        match tokio::time::timeout(left, closed).await {
            Ok(Ok(())) => return,
            Ok(Err(failure)) if failure.code == Code::Unreachable && Instant::now() < until => {
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
            Ok(Err(failure)) => break failure.to_string(),
            Err(_) => break format!("coordinator: no answer within {budget:?}"),
        }
    };
    note(&format!("error: {failure}; the job's data stays held: `millstream slurm end {key}`"));
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
