//! Prolog and TaskProlog: what happens on each node.
//!
//! Prolog asks the local agent, in milliseconds. It fails, which drains the node, only when that agent does not
//! answer. Where nobody staged before (no PrologSlurmctld, or data that went missing since), it stages for this node
//! and waits.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millstream_proto::v1::{JobReply, ShowJobRequest};
use millstream_slurm::policy::{self, Job, Trouble};
use millstream_slurm::{Hook, Want, What};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::before::{Stuck, budget, troubles};
use super::scontrol::Slurm;
use super::{How, SlurmSettings, after, open, refused, resolve, words};
use crate::client::Session;
use crate::failure::{Code, Failure, Result};
use crate::limits::{RECONNECT_PAUSE, SLURM_AGENT_PATIENCE, SLURM_EPILOG_BUDGET, SLURM_SHOW_TIMEOUT};
use crate::output::{self, note};
use crate::socket::Agent;
use crate::verbs::wait;

/// What Prolog leaves for TaskProlog, which runs as the user and is not told the job's comment.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Left {
    socket: PathBuf,
    datasets: Vec<String>,
    roots: Vec<String>,
    line: String,
}

fn left_at(settings: &SlurmSettings, hook: &Hook) -> PathBuf {
    // A node's name is Slurm's, but a path is a path.
    let node: String =
        hook.node.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')).collect();
    settings.run_dir().join(format!("{}.{node}.json", hook.job))
}

/// Removes what Prolog left.
pub fn forget(settings: &SlurmSettings, hook: &Hook) {
    let path = left_at(settings, hook);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            note(&format!("note: {}: {error}", path.display()))
        }
        _ => {}
    }
}

/// Is everything ready on this node?
pub async fn prolog(settings: &SlurmSettings, hook: &Hook) -> Result<()> {
    let wants = match hook.wants() {
        Ok(wants) if wants.is_empty() => return Ok(()),
        Ok(wants) => wants,
        // Where a PrologSlurmctld runs, it has held the job already.
        Err(error) => return stop_job(settings, hook, refused(&error).into()).await,
    };
    let socket = settings.socket(&hook.node);
    let session = settings.session();
    let (agent, known) = tokio::join!(connect(&socket), shown(&session, hook));
    let mut agent = match agent {
        Ok(agent) => agent,
        Err(failure) => return broken(settings, hook, failure).await,
    };
    match check(&mut agent, &wants, known.as_ref()).await {
        Ok(found) => leave(settings, hook, &socket, found, known.as_ref()),
        Err(_) => match stage_here(settings, hook, &wants, &session, &mut agent).await {
            Ok((found, job)) => leave(settings, hook, &socket, found, job.as_ref()),
            Err(stuck) => stop_job(settings, hook, stuck).await,
        },
    }
}

/// An agent that was restarted a moment ago is back soon.
async fn connect(socket: &Path) -> Result<Agent> {
    let until = Instant::now() + SLURM_AGENT_PATIENCE;
    loop {
        let greeted = async {
            let mut agent = Agent::connect(socket).await?;
            agent.hello().await?;
            Ok(agent)
        };
        match greeted.await {
            Err(_) if Instant::now() < until => tokio::time::sleep(RECONNECT_PAUSE).await,
            agent => return agent,
        }
    }
}

/// The node's agent is dead. Failing makes Slurm drain the node; a site may prefer to lose only the job.
async fn broken(settings: &SlurmSettings, hook: &Hook, failure: Failure) -> Result<()> {
    if settings.policy().on_dead_agent == policy::Node::Drain {
        let text = format!("millstream: no agent answers on {}", hook.node);
        Slurm::new(settings).tell(hook.job, &words::one_line(&text)).await;
        return Err(failure);
    }
    let trouble = Trouble::Nodes(vec![hook.node.clone()]);
    stop_job(settings, hook, Stuck { failure, trouble }).await
}

/// What the coordinator knows of the job, when it says so at once: for names without version, and for the line.
async fn shown(session: &Session, hook: &Hook) -> Option<JobReply> {
    let request = ShowJobRequest { job: hook.key() };
    let shown = session.call("job", |mut client| {
        let request = request.clone();
        async move { client.show_job(request).await }
    });
    let job = tokio::time::timeout(SLURM_SHOW_TIMEOUT, shown).await.ok()?.ok()?;
    (job.state != "ended" && job.attempt == hook.attempt && !job.datasets.is_empty()).then_some(job)
}

type Found = Vec<(String, Option<String>)>;

/// Names and paths of everything, or why not.
async fn check(agent: &mut Agent, wants: &[Want], known: Option<&JobReply>) -> Result<Found> {
    let spread = wants.iter().any(|w| w.spread.is_some());
    let names: Vec<String> = match known {
        Some(job) => job.datasets.clone(),
        None => wants.iter().map(pinned).collect::<Option<_>>().ok_or_else(|| {
            Failure::new(Code::NotReady, "the job's data", "which version is meant is not decided yet")
        })?,
    };
    let mut found = Found::new();
    for name in names {
        let asked = agent.call(&name, json!({"op": "path", "dataset": name, "key": null})).await;
        let path = match asked {
            Ok(reply) => reply.get("path").and_then(Value::as_str).map(str::to_owned),
            // This node has its share; the whole is on all of them together.
            Err(_) if spread && known.is_some_and(|job| job.state == "ready") => None,
            Err(failure) => return Err(failure),
        };
        found.push((name, path));
    }
    Ok(found)
}

/// `name@version`, where that is what was written.
fn pinned(want: &Want) -> Option<String> {
    match &want.what {
        What::Dataset(selector) if selector.version.is_some() && want.spread.is_none() => Some(selector.to_string()),
        _ => None,
    }
}

async fn stage_here(
    settings: &SlurmSettings,
    hook: &Hook,
    wants: &[Want],
    session: &Session,
    agent: &mut Agent,
) -> Result<(Found, Option<JobReply>), Stuck> {
    let until = Instant::now() + budget(settings, wants);
    let resolved = resolve(session, wants, &hook.name).await?;
    if resolved.is_empty() {
        return Ok((Found::new(), None));
    }
    let job = open(session, hook, resolved, &hook.node, How::OneNode).await?;
    for dataset in &job.datasets {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        if let Err(mut failure) = wait::follow(session, dataset, &hook.node, Some(left), |_| Ok(())).await {
            if let Some(troubles) = troubles(session, &hook.node).await {
                failure.reason.push_str(&format!("; last error: {troubles}"));
            }
            return Err(failure.into());
        }
    }
    let job = shown(session, hook).await;
    Ok((check(agent, wants, job.as_ref()).await?, job))
}

/// The job cannot start here, and the node is fine: Slurm takes the job back, and this hook succeeds.
async fn stop_job(settings: &SlurmSettings, hook: &Hook, stuck: Stuck) -> Result<()> {
    let slurm = Slurm::new(settings);
    let verdict = settings.policy().verdict(&stuck.trouble);
    let text = words::failed(&stuck.failure, &verdict);
    note(&text);
    slurm.tell(hook.job, &text).await;
    after::let_go(&settings.session(), hook, &hook.node, &text, SLURM_EPILOG_BUDGET).await;
    let back = match verdict.job {
        Job::Hold => slurm.hold(hook.job).await,
        Job::Requeue => slurm.requeue(hook.job).await,
        Job::Cancel => false,
    };
    // Another node's hook may have put it back a moment ago; only what cannot go back is ended.
    if !back && (verdict.job == Job::Cancel || slurm.interactive(hook.job).await) {
        slurm.cancel(hook.job).await;
    }
    Ok(())
}

fn leave(settings: &SlurmSettings, hook: &Hook, socket: &Path, found: Found, job: Option<&JobReply>) -> Result<()> {
    let datasets: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
    let line = match job.filter(|j| j.state == "ready") {
        Some(job) => words::ready(job),
        None if datasets.is_empty() => "millstream: there is no checkpoint yet".to_owned(),
        None => format!("millstream: {} ready on {}", datasets.join(", "), hook.node),
    };
    let roots = found.into_iter().filter_map(|(_, path)| path).collect();
    let left = Left { socket: socket.to_owned(), datasets, roots, line };
    // Without it the job runs all the same, only without the variables.
    if let Err(error) = write(&left_at(settings, hook), &left) {
        note(&format!("note: {}: {error}", settings.run_dir().display()));
    }
    Ok(())
}

fn write(path: &Path, left: &Left) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let next = path.with_extension("next");
    std::fs::write(&next, serde_json::to_vec(left)?)?;
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o644))?;
    std::fs::rename(&next, path)
}

/// As the user: variables for each task, and one line in the job's output.
pub async fn task_prolog(settings: &SlurmSettings, hook: &Hook) -> Result<()> {
    let Ok(bytes) = std::fs::read(left_at(settings, hook)) else {
        return Ok(());
    };
    let Ok(left) = serde_json::from_slice::<Left>(&bytes) else {
        return Ok(());
    };
    let mut said = Vec::new();
    if let Some(root) = left.roots.first() {
        said.push(format!("export MILLSTREAM_ROOT={root}"));
        said.push(format!("export MILLSTREAM_ROOTS={}", left.roots.join(":")));
    }
    said.push(format!("export MILLSTREAM_DATASETS={}", left.datasets.join(",")));
    said.push(format!("export MILLSTREAM_SOCKET={}", left.socket.display()));
    if speaks(|name| std::env::var(name).ok()) {
        said.push(format!("print {}", left.line));
        if let Err(failure) = Agent::connect(&left.socket).await {
            said.push(format!(
                "print millstream: you cannot use the agent's socket ({}){}",
                failure.reason,
                failure.next.map(|n| format!("; next: {n}")).unwrap_or_default()
            ));
        }
    }
    said.iter().try_for_each(|line| output::line(&words::one_line(line)))
}

/// One task speaks for the job: the batch script, else the first task of the first step.
fn speaks(get: impl Fn(&str) -> Option<String>) -> bool {
    let is = |name: &str, wanted: &[&str]| get(name).is_some_and(|v| wanted.contains(&v.as_str()));
    let batch_step = is("SLURM_STEP_ID", &["batch", "4294967291"]) || get("SLURM_STEP_ID").is_none();
    let in_batch_job = is("ENVIRONMENT", &["BATCH"]);
    batch_step || (!in_batch_job && is("SLURM_STEP_ID", &["0"]) && is("SLURM_PROCID", &["0"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_task_speaks() {
        let speaks = |pairs: &[(&str, &str)]| {
            speaks(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert!(speaks(&[("SLURM_STEP_ID", "4294967291"), ("ENVIRONMENT", "BATCH"), ("SLURM_PROCID", "0")]));
        assert!(!speaks(&[("SLURM_STEP_ID", "0"), ("ENVIRONMENT", "BATCH"), ("SLURM_PROCID", "0")]));
        assert!(speaks(&[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "0")]));
        assert!(!speaks(&[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1")]));
        assert!(!speaks(&[("SLURM_STEP_ID", "1"), ("SLURM_PROCID", "0")]));
    }
}
