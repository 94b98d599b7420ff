//! `slurm …`: what Slurm's hooks run. Each may run twice, late, or after a restart of any daemon.
//!
//! Participants: `before` stages for a whole job (PrologSlurmctld), `node` checks one node (Prolog, TaskProlog),
//! `after` lets go (both epilogs), `ahead` acts while the job is pending, `scontrol` speaks to Slurm. What follows
//! from a failure is decided in `millstream-slurm`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use millstream_proto::v1::{JobReply, JobWant, ListDatasetsReply, ListDatasetsRequest, OpenJobRequest};
use millstream_slurm::policy::{self, Policy};
use millstream_slurm::{Hook, Want, What, want};
use serde::{Deserialize, Serialize};

use crate::client::Session;
use crate::config::{self, ClientSettings, Span};
use crate::failure::{Code, Failure, Result};
use crate::output::note;
use crate::verbs::dataset::check_selector;

mod after;
mod ahead;
mod before;
mod node;
mod scontrol;
mod words;

/// The verbs of `millstream slurm`.
#[derive(Subcommand, Debug)]
pub enum SlurmVerb {
    /// PrologSlurmctld: stage on all nodes of the job at once, and wait
    PrologSlurmctld(Settings),
    /// Prolog: is it ready on this node? Without a PrologSlurmctld, stage here and wait
    Prolog(Settings),
    /// TaskProlog: one line for the user, MILLSTREAM_ROOT and MILLSTREAM_SOCKET
    TaskProlog(Settings),
    /// Epilog: this node is done with the job
    Epilog(Settings),
    /// EpilogSlurmctld: the job has ended: cancel what is still on its way
    EpilogSlurmctld(Settings),
    /// Is a request well written, and is there such data?
    Check(ahead::CheckArgs),
    /// For burst_buffer.lua: pull the data of a pending job
    StageIn(ahead::StageInArgs),
    /// For burst_buffer.lua: a job is not pending any more
    StageOut(ahead::StageOutArgs),
    /// Keep a directory with one file per known version, for job_submit.lua
    Catalog(ahead::CatalogArgs),
    /// Let go of a job by hand
    End(after::EndArgs),
}

/// Settings of the hooks.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlurmSettings {
    /// Coordinators, tried in order [default: http://127.0.0.1:7070]
    #[arg(long, env = "MILLSTREAM_COORDINATOR", value_delimiter = ',', value_name = "URL[,URL...]")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "config::list")]
    pub coordinator: Vec<String>,
    /// The local agent's Unix socket; %n in it is the node's name [default: as of the other verbs]
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// How long a job may wait for its data [default: 30m]
    #[arg(long, value_name = "D")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Span>,
    /// How long an agent may be away before its node counts as broken [default: 30s]
    #[arg(long, value_name = "D")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_grace: Option<Span>,
    /// The job, when its data is wrong or does not exist [default: hold]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_data: Option<JobAction>,
    /// The job, when the budget is over or nobody answers [default: requeue]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<JobAction>,
    /// A node whose agent does not answer [default: drain]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_dead_agent: Option<NodeAction>,
    /// What is brought while a job is pending [default: auto]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ahead: Option<AheadChoice>,
    /// Slurm's configuration: hooks of the controller are not told it [default: Slurm's own default]
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slurm_conf: Option<PathBuf>,
    /// Where scontrol, squeue and sinfo are: hooks have no PATH [default: /usr/bin]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slurm_bin: Option<PathBuf>,
    /// What Prolog leaves for TaskProlog [default: /run/millstream-jobs]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_dir: Option<PathBuf>,
}

/// What the hooks take: settings, and where more of them are.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    #[command(flatten)]
    given: SlurmSettings,
    /// TOML file with settings [default: /etc/millstream/slurm.toml, if it is there]
    #[arg(long, env = "MILLSTREAM_SLURM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What happens to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobAction {
    /// Back into the queue, held
    Hold,
    /// Back into the queue
    Requeue,
    /// Ended
    Cancel,
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeAction {
    /// Drained, with the reason
    Drain,
    /// Left as it is
    Leave,
}

/// What is brought before nodes are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AheadChoice {
    /// By the size of the job
    Auto,
    /// One copy over all candidates
    Spread,
    /// Everything on every candidate
    Everywhere,
    /// Nothing
    Off,
}

impl From<JobAction> for policy::Job {
    fn from(action: JobAction) -> policy::Job {
        match action {
            JobAction::Hold => policy::Job::Hold,
            JobAction::Requeue => policy::Job::Requeue,
            JobAction::Cancel => policy::Job::Cancel,
        }
    }
}

impl SlurmSettings {
    fn budget(&self) -> Duration {
        self.budget.map_or(Duration::from_secs(1800), |d| d.0)
    }

    fn agent_grace(&self) -> Duration {
        self.agent_grace.map_or(Duration::from_secs(30), |d| d.0)
    }

    fn run_dir(&self) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(|| "/run/millstream-jobs".into())
    }

    fn policy(&self) -> Policy {
        let default = Policy::default();
        Policy {
            on_data: self.on_data.map_or(default.on_data, Into::into),
            on_timeout: self.on_timeout.map_or(default.on_timeout, Into::into),
            on_dead_agent: match self.on_dead_agent {
                Some(NodeAction::Leave) => policy::Node::Leave,
                Some(NodeAction::Drain) | None => default.on_dead_agent,
            },
        }
    }

    /// The agent's socket on a node.
    fn socket(&self, node: &str) -> PathBuf {
        let path = self.client().socket_or_default();
        PathBuf::from(path.to_string_lossy().replace("%n", node))
    }

    fn client(&self) -> ClientSettings {
        ClientSettings { coordinator: self.coordinator.clone(), socket: self.socket.clone() }
    }

    fn session(&self) -> Session {
        Session { settings: self.client(), json: false }
    }
}

/// Runs one of them.
pub async fn run(verb: SlurmVerb) -> Result<()> {
    match verb {
        SlurmVerb::PrologSlurmctld(s) => match concerned()? {
            Some(hook) => before::run(&readable(&s, &hook).await?, &hook).await,
            None => Ok(()),
        },
        SlurmVerb::Prolog(s) => match concerned()? {
            Some(hook) => node::prolog(&readable(&s, &hook).await?, &hook).await,
            None => Ok(()),
        },
        SlurmVerb::TaskProlog(s) => excused(async { node::task_prolog(&s.layered()?, &hook()?).await }.await),
        SlurmVerb::Epilog(s) => excused(async { after::epilog(&s.layered()?, &hook()?).await }.await),
        SlurmVerb::EpilogSlurmctld(s) => {
            excused(async { after::epilog_slurmctld(&s.layered()?, &hook()?).await }.await)
        }
        SlurmVerb::Check(args) => ahead::check(args).await,
        SlurmVerb::StageIn(args) => ahead::stage_in(args).await,
        SlurmVerb::StageOut(args) => ahead::stage_out(args).await,
        SlurmVerb::Catalog(args) => ahead::catalog(args).await,
        SlurmVerb::End(args) => after::end(args).await,
    }
}

impl Settings {
    fn layered(&self) -> Result<SlurmSettings> {
        config::layered("slurm", self.config.as_deref(), &self.given)
    }
}

/// The hook of a job that asks for data. One that does not must not depend on our settings.
fn concerned() -> Result<Option<Hook>> {
    hook().map(|hook| Some(hook).filter(Hook::asks))
}

/// The settings; who waits for the job is told why there are none.
async fn readable(settings: &Settings, hook: &Hook) -> Result<SlurmSettings> {
    let read = settings.layered();
    if let Err(failure) = &read {
        let text = words::one_line(&format!("millstream: {failure}; the job cannot start before that is mended"));
        scontrol::Slurm::new(&settings.given).tell(hook.job, &text).await;
    }
    read
}

/// An epilog that fails drains its node, and a TaskProlog that fails ends its task: neither is worth that.
fn excused(done: Result<()>) -> Result<()> {
    if let Err(failure) = done {
        note(&format!("error: {failure}"));
    }
    Ok(())
}

fn hook() -> Result<Hook> {
    Hook::read(|name| std::env::var(name).ok()).map_err(|e| Failure::usage("hook", e).next("docs/slurm.md"))
}

fn refused(error: &want::WantError) -> Failure {
    Failure::usage("the job's request for data", error)
        .next("write --comment=\"millstream:NAME@VERSION\" or --stage=NAME@VERSION; docs/slurm.md has the options")
}

/// Requests with every checkpoint resolved to the version that holds it. A run without any checkpoint yet asks for
/// nothing with `@latest`.
async fn resolve(session: &Session, wants: &[Want], job_name: &str) -> Result<Vec<JobWant>> {
    let mut catalog: Option<ListDatasetsReply> = None;
    let mut resolved = Vec::new();
    for want in wants {
        let dataset = match &want.what {
            What::Dataset(selector) => selector.to_string(),
            What::Checkpoint { run, step } => {
                if catalog.is_none() {
                    let list = |mut client: crate::client::Grpc| async move {
                        client.list_datasets(ListDatasetsRequest {}).await
                    };
                    catalog = Some(session.call("catalog", list).await?);
                }
                let run = run.as_ref().map_or(job_name, |r| r.as_str());
                match find_checkpoint(catalog.as_ref(), run, *step) {
                    Some(selector) => selector,
                    None if step.is_none() => continue,
                    None => {
                        return Err(Failure::new(
                            Code::Unknown,
                            want.what.to_string(),
                            format!("run {run:?} has no such checkpoint"),
                        )
                        .next("`millstream dataset ls` lists checkpoints with their steps"));
                    }
                }
            }
        };
        let placement = want.spread.map_or_else(|| "replicate".to_owned(), |r| format!("spread={r}"));
        resolved.push(JobWant { dataset, placement, priority: want.priority });
    }
    Ok(resolved)
}

/// A version as people write it, `ckpt/RUN@latest` and `ckpt/RUN@STEP` among them: as jobs write them, with `%x` for the
/// name of the job that this runs in.
pub async fn selector(session: &Session, text: &str) -> Result<String> {
    if !text.starts_with(want::CHECKPOINT) {
        check_selector(text)?;
        return Ok(text.to_owned());
    }
    let wrong = |e: &dyn std::fmt::Display| Failure::usage(text, e).next("write ckpt/RUN@latest or ckpt/RUN@STEP");
    let want: Want = text.parse().map_err(|e: want::WantError| wrong(&e))?;
    let plain = Want { spread: None, priority: 0, timeout: None, ..want.clone() };
    if want != plain {
        return Err(wrong(&"options are for requests of jobs"));
    }
    let name = std::env::var("SLURM_JOB_NAME").unwrap_or_default();
    if name.is_empty() && matches!(plain.what, What::Checkpoint { run: None, .. }) {
        return Err(wrong(&"%x is the name of a Slurm job, and this is none: SLURM_JOB_NAME is not set"));
    }
    let found = resolve(session, &[plain], &name).await?.pop().map(|found| found.dataset);
    found.ok_or_else(|| {
        Failure::new(Code::Unknown, text, "this run has no checkpoint yet")
            .next("`millstream dataset ls` lists checkpoints with their steps")
    })
}

fn find_checkpoint(catalog: Option<&ListDatasetsReply>, run: &str, step: Option<u64>) -> Option<String> {
    let all = catalog?.datasets.iter().filter(|d| d.kind == "checkpoint");
    // What the coordinator names is a name.
    let steps = all.filter_map(|d| Some((d.run.as_str(), d.step, d.name.parse().ok()?, d.version.parse().ok()?)));
    want::checkpoint(steps, run, step).map(|selector| selector.to_string())
}

/// Tells the coordinator that the job wants this.
async fn open(session: &Session, hook: &Hook, wants: Vec<JobWant>, nodes: &str, how: How) -> Result<JobReply> {
    let request = OpenJobRequest {
        job: hook.key(),
        attempt: hook.attempt,
        name: hook.name.clone(),
        user: hook.user.clone(),
        nodes: nodes.to_owned(),
        wants,
        pending: how == How::Pending,
        add_nodes: how == How::OneNode,
    };
    let thing = format!("job {}", hook.job);
    session
        .call(&thing, |mut client| {
            let request = request.clone();
            async move { client.open_job(request).await }
        })
        .await
}

/// For which nodes a job is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// All that it got.
    Allocated,
    /// One of them, by that node itself.
    OneNode,
    /// Candidates.
    Pending,
}
