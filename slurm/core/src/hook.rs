//! A hook's environment: which job, where, and what it asks for.
//!
//! Which variables each hook sees differs (docs/slurm.md has the table): this reads what is there.

use crate::want::{self, Want, WantError};

/// Where the SPANK plugin leaves the value of `--stage` for the hooks.
pub const STAGE_VARIABLE: &str = "SPANK_MILLSTREAM_STAGE";

/// What a hook was started for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hook {
    /// The cluster's name.
    pub cluster: String,
    /// The job's number.
    pub job: u64,
    /// How often it was requeued.
    pub attempt: u32,
    /// Its name; empty in hooks that do not know it.
    pub name: String,
    /// Whose it is.
    pub user: String,
    /// All its nodes, as a host list.
    pub nodes: String,
    /// The node that the hook runs on; empty on the controller.
    pub node: String,
    /// The job's comment.
    pub comment: String,
    /// The value of `--stage`.
    pub stage: String,
}

/// The variable that a hook cannot do without.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not set, or not a number: this is to be run by Slurm as one of its hooks")]
pub struct NoHook(pub &'static str);

impl Hook {
    /// From a lookup of environment variables.
    ///
    /// # Errors
    /// [`NoHook`] without a job's number.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Hook, NoHook> {
        let text = |names: &[&str]| names.iter().filter_map(|n| get(n)).find(|v| !v.is_empty()).unwrap_or_default();
        let job = text(&["SLURM_JOB_ID", "SLURM_JOBID"]).parse().map_err(|_| NoHook("SLURM_JOB_ID"))?;
        let cluster = text(&["SLURM_CLUSTER_NAME"]);
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        Ok(Hook {
            cluster: if cluster.is_empty() || !cluster.chars().all(fine) { "slurm".into() } else { cluster },
            job,
            attempt: text(&["SLURM_JOB_RESTART_COUNT", "SLURM_RESTART_COUNT"]).parse().unwrap_or(0),
            name: text(&["SLURM_JOB_NAME"]),
            user: text(&["SLURM_JOB_USER"]),
            nodes: text(&["SLURM_JOB_NODELIST", "SLURM_NODELIST"]),
            node: text(&["SLURMD_NODENAME"]),
            comment: text(&["SLURM_JOB_COMMENT"]),
            stage: text(&[STAGE_VARIABLE]),
        })
    }

    /// What the coordinator knows the job by.
    pub fn key(&self) -> String {
        format!("{}/{}", self.cluster, self.job)
    }

    /// Does it ask for anything, as far as can be told?
    pub fn asks(&self) -> bool {
        self.wants().map_or(true, |wants| !wants.is_empty())
    }

    /// What the job asks for, in its comment and with `--stage`.
    ///
    /// # Errors
    /// [`WantError`] in words for the user.
    pub fn wants(&self) -> Result<Vec<Want>, WantError> {
        want::of_both(&self.comment, &self.stage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Hook, NoHook> {
        Hook::read(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn both_prologs_and_both_requests() {
        let ctld = read(&[
            ("SLURM_JOB_ID", "7"),
            ("SLURM_JOB_NODELIST", "n[1-3]"),
            ("SLURM_JOB_RESTART_COUNT", "2"),
            ("SLURM_JOB_COMMENT", "hello millstream:d@v"),
            ("SPANK_MILLSTREAM_STAGE", "e@w"),
            ("SLURM_CLUSTER_NAME", "rig"),
        ]);
        let ctld = ctld.unwrap();
        assert_eq!((ctld.key().as_str(), ctld.attempt, ctld.nodes.as_str()), ("rig/7", 2, "n[1-3]"));
        assert_eq!(ctld.wants().unwrap().len(), 2);
        let node = read(&[("SLURM_JOBID", "7"), ("SLURM_NODELIST", "n1"), ("SLURMD_NODENAME", "n1")]).unwrap();
        assert_eq!((node.node.as_str(), node.nodes.as_str()), ("n1", "n1"));
        assert!(node.wants().unwrap().is_empty() && !node.asks() && ctld.asks());
        assert!(read(&[("SLURM_JOB_ID", "7"), ("SLURM_JOB_COMMENT", "millstream:a/b")]).unwrap().asks());
    }

    #[test]
    fn without_a_job_it_is_no_hook() {
        assert!(read(&[]).is_err());
        assert!(read(&[("SLURM_JOB_ID", "seven")]).is_err());
        let odd = read(&[("SLURM_JOB_ID", "7"), ("SLURM_CLUSTER_NAME", "a b")]).unwrap();
        assert_eq!(odd.key(), "slurm/7");
    }
}
