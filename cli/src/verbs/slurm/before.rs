//! PrologSlurmctld: one fan-out for the whole job, before any node begins.
//!
//! While this runs, the user's time limit does not, scancel works at once, and failing drains nothing. It exits 0
//! when the data is ready on all nodes or when nothing was asked for; else the job does not start.

use std::time::{Duration, Instant};

use millstream_proto::convert;
use millstream_proto::v1::{JobReply, JobWant, ShowJobRequest, StatusRequest, WaitProgress};
use millstream_slurm::policy::{Job, Trouble, Verdict};
use millstream_slurm::{Hook, Want};
use serde_json::Value;

use super::scontrol::Slurm;
use super::{How, SlurmSettings, after, open, refused, resolve, words};
use crate::client::Session;
use crate::failure::{Code, Failure, Result};
use crate::limits::{RECONNECT_PAUSE, SLURM_EPILOG_BUDGET, SLURM_PROGRESS_EVERY};
use crate::output::note;
use crate::verbs::wait;

/// Why a job cannot start, and whose fault it is.
pub struct Stuck {
    pub failure: Failure,
    pub trouble: Trouble,
}

impl From<Failure> for Stuck {
    fn from(failure: Failure) -> Stuck {
        let trouble = Trouble::of_code(failure.code as u8);
        Stuck { failure, trouble }
    }
}

/// Stages, waits, and decides.
pub async fn run(settings: &SlurmSettings, hook: &Hook) -> Result<()> {
    let slurm = Slurm::new(settings);
    let brought = match hook.wants() {
        Ok(wants) if wants.is_empty() => return Ok(()),
        Ok(wants) => bring(settings, hook, &wants, &slurm).await,
        Err(error) => Err(refused(&error).into()),
    };
    match brought {
        Ok(Some(job)) => {
            let text = words::ready(&job);
            note(&text);
            slurm.describe(hook.job, &text).await;
            Ok(())
        }
        // A checkpoint that does not exist yet.
        Ok(None) => Ok(()),
        Err(stuck) => Err(give_up(settings, hook, &slurm, stuck).await),
    }
}

async fn give_up(settings: &SlurmSettings, hook: &Hook, slurm: &Slurm, stuck: Stuck) -> Failure {
    let verdict: Verdict = settings.policy().verdict(&stuck.trouble);
    let text = words::failed(&stuck.failure, &verdict);
    for node in &verdict.drain {
        slurm.drain(node, "millstream: the agent does not answer").await;
    }
    slurm.tell(hook.job, &text).await;
    after::let_go(&settings.session(), hook, "", &text, SLURM_EPILOG_BUDGET).await;
    match verdict.job {
        // Where it cannot be held, our exit code ends it.
        Job::Hold => _ = slurm.hold(hook.job).await,
        Job::Cancel => slurm.cancel(hook.job).await,
        Job::Requeue => {}
    }
    Failure { thing: text, reason: String::new(), next: None, code: stuck.failure.code }
}

/// The time that a job may wait: the site's, or less where the job says so.
pub fn budget(settings: &SlurmSettings, wants: &[Want]) -> Duration {
    let asked = wants.iter().filter_map(|w| w.timeout).min();
    asked.map_or(settings.budget(), |asked| asked.min(settings.budget()))
}

async fn bring(
    settings: &SlurmSettings,
    hook: &Hook,
    wants: &[Want],
    slurm: &Slurm,
) -> Result<Option<JobReply>, Stuck> {
    let session = settings.session();
    let until = Instant::now() + budget(settings, wants);
    let wants = patiently(until, async || resolve(&session, wants, &hook.name).await).await?;
    if wants.is_empty() {
        return Ok(None);
    }
    let job = all_present(settings, hook, &session, &wants, until).await?;
    if job.state != "ready" {
        let mut told = Told { slurm, job: hook.job, last: Instant::now() };
        for dataset in &job.datasets {
            ready(settings, &session, dataset, &hook.nodes, until, &mut told).await?;
        }
    }
    Ok(Some(accounting(&session, job).await))
}

/// What the coordinator says in the end; what it said before, should it not answer now.
async fn accounting(session: &Session, job: JobReply) -> JobReply {
    let request = ShowJobRequest { job: job.job.clone() };
    let shown = session.call("job", |mut client| {
        let request = request.clone();
        async move { client.show_job(request).await }
    });
    shown.await.unwrap_or(job)
}

/// Opens the job until all of its agents are connected.
async fn all_present(
    settings: &SlurmSettings,
    hook: &Hook,
    session: &Session,
    wants: &[JobWant],
    until: Instant,
) -> Result<JobReply, Stuck> {
    let grace = (Instant::now() + settings.agent_grace()).min(until);
    loop {
        let ask = async || open(session, hook, wants.to_vec(), &hook.nodes, How::Allocated).await;
        let job = patiently(until, ask).await?;
        if job.absent_nodes.is_empty() {
            return Ok(job);
        }
        if Instant::now() >= grace {
            return Err(dead(&job.absent_nodes));
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

fn dead(nodes: &[String]) -> Stuck {
    let reason = "the agent there is not connected to the coordinator";
    Stuck {
        failure: Failure::new(Code::Unreachable, nodes.join(", "), reason),
        trouble: Trouble::Nodes(nodes.to_vec()),
    }
}

/// Asks again while nobody answers.
async fn patiently<T>(until: Instant, mut ask: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    loop {
        match ask().await {
            Err(failure) if failure.code == Code::Unreachable && Instant::now() < until => {
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// Tells the user now and then how far it is.
struct Told<'a> {
    slurm: &'a Slurm,
    job: u64,
    last: Instant,
}

async fn ready(
    settings: &SlurmSettings,
    session: &Session,
    dataset: &str,
    nodes: &str,
    until: Instant,
    told: &mut Told<'_>,
) -> Result<(), Stuck> {
    let grace = settings.agent_grace();
    let mut gone: Option<(Vec<String>, Instant)> = None;
    loop {
        // In slices, so that the user hears something meanwhile.
        let left = until.saturating_duration_since(Instant::now());
        let slice = left.min(SLURM_PROGRESS_EVERY).max(Duration::from_millis(1));
        let mut last = String::new();
        let step = |step: &WaitProgress| {
            last = wait::words(dataset, step);
            let away = step.waiting_for.iter().filter(|n| n.reason.contains("not connected"));
            let away: Vec<String> = away.map(|n| n.node.clone()).collect();
            gone = match gone.take() {
                Some((nodes, since)) if nodes == away => Some((nodes, since)),
                _ if away.is_empty() => None,
                _ => Some((away, Instant::now())),
            };
            Ok(())
        };
        let waited = wait::follow(session, dataset, nodes, Some(slice), step).await;
        match waited {
            Ok(_) => return Ok(()),
            Err(failure) if !matches!(failure.code, Code::NotReady | Code::Unreachable) => return Err(failure.into()),
            Err(failure) if Instant::now() >= until => {
                let troubles = troubles(session, nodes).await;
                return Err(out_of_time(dataset, &failure, &gone, troubles).into());
            }
            Err(_) => {}
        }
        if let Some((nodes, _)) = gone.as_ref().filter(|(_, since)| since.elapsed() >= grace) {
            return Err(dead(nodes));
        }
        if told.last.elapsed() >= SLURM_PROGRESS_EVERY && !last.is_empty() {
            told.last = Instant::now();
            told.slurm.describe(told.job, &words::one_line(&format!("millstream: {last}"))).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What the job's agents met last: that S3 is down, most likely. Said once, however many say it.
pub async fn troubles(session: &Session, nodes: &str) -> Option<String> {
    let ask = session
        .call("status", |mut client| async move { client.status(StatusRequest { dataset: String::new() }).await });
    let status: Value = serde_json::from_str(&ask.await.ok()?.json).ok()?;
    let nodes = convert::hostlist("nodes", nodes).ok()?;
    let mine = status["nodes"].as_array()?.iter().filter(|n| nodes.iter().any(|name| n["node"] == *name));
    let last = mine.filter_map(|n| n["last_errors"].as_array()?.last()?.as_str());
    last.max_by_key(|text| text.contains("origin")).map(str::to_owned)
}

fn out_of_time(
    dataset: &str,
    failure: &Failure,
    gone: &Option<(Vec<String>, Instant)>,
    troubles: Option<String>,
) -> Failure {
    let away = gone.as_ref().map(|(nodes, _)| format!("; no agent on {}", nodes.join(", "))).unwrap_or_default();
    let troubles = troubles.map(|t| format!("; last error: {t}")).unwrap_or_default();
    // "dataset: not ready ..." of another voice.
    let reason = failure.reason.strip_prefix(&format!("{dataset} is ")).unwrap_or(&failure.reason);
    Failure::new(Code::NotReady, dataset, format!("the time for staging is over: {reason}{away}{troubles}"))
        .next("`millstream status` says what it waits for")
}
