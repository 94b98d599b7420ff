//! While a job is pending: is its request good, and where may its data be brought already?

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use millstream_proto::convert;
use millstream_proto::v1::{ListDatasetsReply, ListDatasetsRequest, ShowDatasetRequest, ShowJobRequest};
use millstream_slurm::ahead::{Ahead, Plan, plan};
use millstream_slurm::{Hook, Want, want};
use millstream_types::DatasetName;
use serde_json::Value;

use super::before::budget;
use super::scontrol::Slurm;
use super::{AheadChoice, How, Settings, SlurmSettings, after, open, refused, resolve};
use crate::client::Session;
use crate::failure::{Code, Failure, Result};
use crate::limits::{SLURM_CATALOG_EVERY, SLURM_EPILOG_BUDGET};
use crate::output::{self, note};
use crate::verbs::wait;

/// The file whose presence says that the others are true.
const CURRENT: &str = ".current";

/// `slurm check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// A job's comment
    #[arg(long, default_value = "")]
    comment: String,
    /// A value of --stage
    #[arg(long, default_value = "")]
    stage: String,
    /// The job's name, for ckpt/%x
    #[arg(long, default_value = "")]
    name: String,
    #[command(flatten)]
    settings: Settings,
}

/// `slurm stage-in`.
#[derive(Args, Debug)]
pub struct StageInArgs {
    /// The job's number
    job: u64,
    /// Its script: lines that begin with #BB_LUA are read
    #[arg(long, value_name = "FILE")]
    script: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

/// `slurm stage-out`.
#[derive(Args, Debug)]
pub struct StageOutArgs {
    /// The job's number
    job: u64,
    #[command(flatten)]
    settings: Settings,
}

/// `slurm catalog`.
#[derive(Args, Debug)]
pub struct CatalogArgs {
    /// The directory, made when it is not there
    #[arg(long, value_name = "DIR", default_value = "/run/millstream-catalog")]
    out: PathBuf,
    /// Keep it true until stopped, instead of once
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Parses, and asks the coordinator for everything that is named.
pub async fn check(args: CheckArgs) -> Result<()> {
    let session = args.settings.layered()?.session();
    let wants = want::of_both(&args.comment, &args.stage).map_err(|e| refused(&e))?;
    if wants.is_empty() {
        note("nothing is asked for: no word of --comment begins with millstream:, and --stage is empty");
    }
    for line in known(&session, &wants, &args.name).await? {
        output::line(&line)?;
    }
    Ok(())
}

/// Everything that is asked for, as `name@version` and bytes.
async fn known(session: &Session, wants: &[Want], name: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for want in resolve(session, wants, name).await? {
        let shown = session.call(&want.dataset, |mut client| {
            let request = ShowDatasetRequest { dataset: want.dataset.clone(), page_offset: 0, page_limit: 1 };
            async move { client.show_dataset(request).await }
        });
        let info = shown.await?.info.unwrap_or_default();
        lines.push(format!("{}@{} {} bytes", info.name, info.version, info.bytes));
    }
    Ok(lines)
}

/// Pulls what a pending job asks for; returns when it is there. Slurm shows the reason of a failure at the job.
pub async fn stage_in(args: StageInArgs) -> Result<()> {
    let settings = args.settings.layered()?;
    let script =
        std::fs::read_to_string(&args.script).map_err(|e| Failure::usage(args.script.display().to_string(), e))?;
    let wants = want::of_script(&script).map_err(|e| refused(&e))?;
    if wants.is_empty() {
        return Ok(());
    }
    let session = settings.session();
    let slurm = Slurm::new(&settings);
    let pending = Pending::ask(&slurm, args.job).await?;
    let resolved = resolve(&session, &wants, &pending.hook.name).await?;
    let plan = place(&settings, &session, &slurm, &pending).await?;
    let (nodes, one_copy) = match plan {
        Plan::Nothing => {
            known(&session, &wants, &pending.hook.name).await?;
            return Ok(());
        }
        Plan::OneCopy(nodes) => (nodes, true),
        Plan::Everywhere(nodes) => (nodes, false),
    };
    let mut asked = resolved;
    for want in asked.iter_mut().filter(|_| one_copy) {
        want.placement = "spread=1".into();
    }
    if asked.is_empty() {
        return Ok(());
    }
    let nodes = nodes.join(",");
    let job = open(&session, &pending.hook, asked, &nodes, How::Pending).await?;
    note(&format!("job {}: {} on {nodes}", args.job, job.datasets.join(", ")));
    let until = Instant::now() + budget(&settings, &wants);
    for dataset in &job.datasets {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match wait::follow(&session, dataset, &nodes, Some(left), |_| Ok(())).await {
            Ok(_) => {}
            // Slurm would never try again: the job goes on to its prologue, where there is time to wait.
            Err(failure) if matches!(failure.code, Code::NotReady | Code::Unreachable) => {
                note(&format!("note: {failure}"));
                return Ok(());
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// A job that was pulled ahead for is not pending any more: lets go of it when it never began. One that ran has its
/// epilogs.
pub async fn stage_out(args: StageOutArgs) -> Result<()> {
    let settings = args.settings.layered()?;
    let (session, slurm) = (settings.session(), Slurm::new(&settings));
    let hook = match Pending::ask(&slurm, args.job).await {
        Ok(pending) => pending.hook,
        // Slurm has forgotten it already.
        Err(_) => Hook { cluster: cluster(&slurm).await?, job: args.job, ..Hook::default() },
    };
    let request = ShowJobRequest { job: hook.key() };
    let shown = session.call("job", |mut client| {
        let request = request.clone();
        async move { client.show_job(request).await }
    });
    match shown.await {
        Ok(job) if job.state == "pending" => {
            let hook = Hook { attempt: job.attempt, ..hook };
            after::let_go(&session, &hook, "", "ended while it was pending", SLURM_EPILOG_BUDGET).await;
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(failure) if failure.code == Code::Unknown => Ok(()),
        Err(failure) => Err(failure),
    }
}

async fn cluster(slurm: &Slurm) -> Result<String> {
    let config = slurm.ask("scontrol", &["show", "config"]).await?;
    let line = config.lines().find_map(|l| l.strip_prefix("ClusterName")).unwrap_or_default();
    Ok(line.trim_start_matches([' ', '=']).trim().to_owned())
}

/// A job that has no nodes yet, as squeue tells it.
struct Pending {
    hook: Hook,
    partition: String,
    count: u32,
    required: String,
}

impl Pending {
    async fn ask(slurm: &Slurm, job: u64) -> Result<Pending> {
        let number = job.to_string();
        // No field of this list can hold a line feed; the name, which may hold anything else, comes last.
        let format = "%u|%P|%D|%n|%j";
        let line = slurm.ask("squeue", &["-h", "-j", &number, "-o", format]).await?;
        let restarts = slurm.ask("squeue", &["-h", "-j", &number, "-O", "restartcnt"]).await?;
        let cluster = cluster(slurm).await?;
        let fields: Vec<&str> = line.lines().next().unwrap_or_default().splitn(5, '|').collect();
        let [user, partition, count, required, name] = fields[..] else {
            return Err(Failure::new(Code::Unknown, format!("job {job}"), "squeue does not know it"));
        };
        let hook = Hook::read(|variable| {
            Some(match variable {
                "SLURM_JOB_ID" => number.clone(),
                "SLURM_CLUSTER_NAME" => cluster.clone(),
                "SLURM_JOB_RESTART_COUNT" => restarts.trim().to_owned(),
                "SLURM_JOB_NAME" => name.to_owned(),
                "SLURM_JOB_USER" => user.to_owned(),
                _ => return None,
            })
        });
        let hook = hook.map_err(|e| Failure::other(format!("job {job}"), e))?;
        let partition = partition.split(',').next().unwrap_or_default().to_owned();
        Ok(Pending { hook, partition, count: count.parse().unwrap_or(1), required: required.to_owned() })
    }
}

/// Candidates are the nodes of the partition that have an agent.
async fn place(settings: &SlurmSettings, session: &Session, slurm: &Slurm, pending: &Pending) -> Result<Plan> {
    let ahead = match settings.ahead {
        None | Some(AheadChoice::Auto) => Ahead::Auto,
        Some(AheadChoice::Spread) => Ahead::Spread,
        Some(AheadChoice::Everywhere) => Ahead::Everywhere,
        Some(AheadChoice::Off) => Ahead::Nothing,
    };
    let in_partition = slurm.ask("sinfo", &["-h", "-N", "-p", &pending.partition, "-o", "%N"]).await?;
    let in_partition: BTreeSet<&str> = in_partition.lines().map(str::trim).filter(|n| !n.is_empty()).collect();
    let status = session.call("status", |mut client| async move {
        client.status(millstream_proto::v1::StatusRequest { dataset: String::new() }).await
    });
    let status: Value = serde_json::from_str(&status.await?.json).map_err(|e| Failure::other("status", e))?;
    let nodes = status["nodes"].as_array().into_iter().flatten();
    let up = nodes.filter(|n| n["state"] == "up").filter_map(|n| n["node"].as_str());
    let candidates: Vec<String> = up.filter(|n| in_partition.contains(n)).map(str::to_owned).collect();
    let required = match pending.required.as_str() {
        "" | "(null)" => Vec::new(),
        list => convert::hostlist("required nodes", list).map_err(|e| Failure::other("squeue", e))?,
    };
    Ok(plan(ahead, candidates, required, pending.count))
}

/// One empty file per `name@version`, per `name` and per `ckpt:run@step`, so that Lua can ask with an `open`, without
/// the network.
pub async fn catalog(args: CatalogArgs) -> Result<()> {
    let session = args.settings.layered()?.session();
    loop {
        let listed = session
            .call("catalog", |mut client| async move { client.list_datasets(ListDatasetsRequest {}).await })
            .await;
        let written = match listed {
            Ok(reply) => write(&args.out, &reply),
            Err(failure) => Err(failure),
        };
        if !args.watch {
            return written;
        }
        if let Err(failure) = written {
            note(&format!("note: {failure}"));
            // Nobody must be refused because of what was true a while ago.
            let _ = std::fs::remove_file(args.out.join(CURRENT));
        }
        tokio::time::sleep(SLURM_CATALOG_EVERY).await;
    }
}

fn write(out: &Path, reply: &ListDatasetsReply) -> Result<()> {
    let failed = |e: std::io::Error| Failure::other(out.display().to_string(), e);
    std::fs::create_dir_all(out).map_err(failed)?;
    let mut wanted: BTreeSet<String> = BTreeSet::from([CURRENT.to_owned()]);
    for dataset in &reply.datasets {
        // Names of datasets have neither slashes nor leading dots.
        wanted.insert(dataset.name.clone());
        wanted.insert(format!("{}@{}", dataset.name, dataset.version));
        if dataset.kind == "checkpoint" && dataset.run.parse::<DatasetName>().is_ok() {
            wanted.insert(format!("ckpt:{}@{}", dataset.run, dataset.step));
        }
    }
    let mut there = BTreeSet::new();
    for entry in std::fs::read_dir(out).map_err(failed)? {
        there.insert(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    for name in there.difference(&wanted) {
        std::fs::remove_file(out.join(name)).map_err(failed)?;
    }
    // Last of all the sign that everything else is there.
    wanted.remove(CURRENT);
    for name in wanted.difference(&there).map(String::as_str).chain([CURRENT]) {
        std::fs::write(out.join(name), []).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_proto::v1::DatasetInfo;

    #[test]
    fn the_directory_follows_the_catalog() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("catalog");
        let info = |name: &str, version: &str| DatasetInfo {
            name: name.into(),
            version: version.into(),
            ..DatasetInfo::default()
        };
        let names = || {
            let names = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            names.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
        };
        write(&out, &ListDatasetsReply { datasets: vec![info("d", "v1"), info("d", "v2")] }).unwrap();
        assert_eq!(names(), ".current d d@v1 d@v2");
        write(&out, &ListDatasetsReply { datasets: vec![info("d", "v2"), info("e", "v1")] }).unwrap();
        assert_eq!(names(), ".current d d@v2 e e@v1");
        let step = |run: &str| DatasetInfo { kind: "checkpoint".into(), run: run.into(), step: 12, ..info("c", "s12") };
        write(&out, &ListDatasetsReply { datasets: vec![step("train"), step("../x")] }).unwrap();
        assert_eq!(names(), ".current c c@s12 ckpt:train@12");
    }
}
