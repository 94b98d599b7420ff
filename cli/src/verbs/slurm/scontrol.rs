//! Slurm's own commands. They wait for long when the controller is away, so each has a time limit; what they fail at
//! is noted and never fails a hook.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::SlurmSettings;
use crate::failure::{Failure, Result};
use crate::limits::SLURM_COMMAND_TIMEOUT;
use crate::output::note;

/// Slurm, as the hooks' settings describe it.
pub struct Slurm {
    bin: PathBuf,
    conf: Option<PathBuf>,
}

impl Slurm {
    pub fn new(settings: &SlurmSettings) -> Slurm {
        Slurm {
            bin: settings.slurm_bin.clone().unwrap_or_else(|| "/usr/bin".into()),
            conf: settings.slurm_conf.clone(),
        }
    }

    /// Runs a command of Slurm; its standard output.
    pub async fn ask(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let path = self.bin.join(program);
        let mut command = Command::new(&path);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        if let Some(conf) = &self.conf {
            command.env("SLURM_CONF", conf);
        }
        let thing = format!("{} {}", path.display(), arguments.first().copied().unwrap_or_default());
        let limit: Duration = SLURM_COMMAND_TIMEOUT;
        let output = match tokio::time::timeout(limit, command.output()).await {
            Err(_) => return Err(Failure::other(thing, format!("no answer within {limit:?}"))),
            Ok(Err(error)) => {
                return Err(Failure::other(thing, error).next("name the directory with slurm_bin in slurm.toml"));
            }
            Ok(Ok(output)) => output,
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::other(thing, format!("{}: {}", output.status, said.trim())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs scontrol; what it fails at is noted.
    async fn control(&self, arguments: &[&str]) -> bool {
        match self.ask("scontrol", arguments).await {
            Ok(_) => true,
            Err(failure) => {
                note(&format!("note: {failure}"));
                false
            }
        }
    }

    /// Tells the user: at once when the job is interactive, and in its description.
    pub async fn tell(&self, job: u64, text: &str) {
        let number = job.to_string();
        self.describe(job, text).await;
        self.control(&["notify", &number, text]).await;
    }

    /// Leaves words in the job's description.
    pub async fn describe(&self, job: u64, text: &str) {
        let (job, comment) = (format!("jobid={job}"), format!("admincomment={text}"));
        self.control(&["update", &job, &comment]).await;
    }

    /// Back into the queue, held. False for jobs that cannot be requeued.
    pub async fn hold(&self, job: u64) -> bool {
        self.control(&["requeuehold", &job.to_string()]).await
    }

    /// Back into the queue. False for jobs that cannot be requeued.
    pub async fn requeue(&self, job: u64) -> bool {
        self.control(&["requeue", &job.to_string()]).await
    }

    /// Is it one of srun or salloc, which cannot go back into the queue?
    pub async fn interactive(&self, job: u64) -> bool {
        self.ask("scontrol", &["show", "job", &job.to_string()]).await.is_ok_and(|shown| shown.contains("BatchFlag=0"))
    }

    /// Ends a job.
    pub async fn cancel(&self, job: u64) {
        if let Err(failure) = self.ask("scancel", &[&job.to_string()]).await {
            note(&format!("note: {failure}"));
        }
    }

    /// Takes a node out of service, with the reason.
    pub async fn drain(&self, node: &str, reason: &str) {
        let (node, reason) = (format!("nodename={node}"), format!("reason={reason}"));
        self.control(&["update", &node, "state=drain", &reason]).await;
    }
}
