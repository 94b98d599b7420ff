//! The demo's child processes: started from this very binary, watched, and stopped however the demo ends.
//!
//! Three nets below each other: a graceful stop at the end, a kill when this is dropped, and the kernel's own signal
//! when the demo itself is killed (`--parent`).

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::failure::{Failure, Result};
use crate::limits::DEMO_STOP;

/// All of them, in the order they were started.
pub struct Children {
    logs: PathBuf,
    running: Vec<(String, Child)>,
}

impl Children {
    /// None yet; their logs and ready files go to `logs`.
    pub fn new(logs: PathBuf) -> Children {
        Children { logs, running: Vec::new() }
    }

    fn ready_file(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.ready"))
    }

    /// Starts `millstream ARGUMENTS`, as `name`.
    pub fn spawn(&mut self, name: &str, arguments: &[&str], environment: &[(&str, String)]) -> Result<()> {
        let failed = |e: std::io::Error| Failure::other(name, format!("cannot be started: {e}"));
        let log = File::create(self.logs.join(format!("{name}.log"))).map_err(failed)?;
        // A ready file of an earlier demo in the same directory says nothing about this one.
        let _ = std::fs::remove_file(self.ready_file(name));
        let child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(arguments)
            .args(["--parent", &std::process::id().to_string(), "--ready-file"])
            .arg(self.ready_file(name))
            .envs(environment.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        self.running.push((name.to_owned(), child));
        Ok(())
    }

    /// What `name` said when it was ready.
    pub async fn ready(&mut self, name: &str, within: Duration) -> Result<Value> {
        let until = Instant::now() + within;
        let path = self.ready_file(name);
        loop {
            if let Ok(text) = std::fs::read(&path) {
                return serde_json::from_slice(&text).map_err(|e| Failure::other(path.display().to_string(), e));
            }
            if let Some((_, child)) = self.running.iter_mut().find(|(n, _)| n == name)
                && let Ok(Some(status)) = child.try_wait()
            {
                return Err(Failure::other(name, format!("ended at once ({status}): {}", self.last_line(name))));
            }
            if Instant::now() > until {
                return Err(Failure::other(name, format!("not ready within {within:?}: {}", self.last_line(name))));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn last_line(&self, name: &str) -> String {
        let log = std::fs::read_to_string(self.logs.join(format!("{name}.log"))).unwrap_or_default();
        log.lines().last().unwrap_or("its log is empty").to_owned()
    }

    /// Asks all to stop, the last started first, and kills those that do not.
    pub async fn stop(&mut self) {
        for (_, child) in self.running.iter().rev() {
            if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)) {
                // Gone already: then there is nothing to stop.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        let until = Instant::now() + DEMO_STOP;
        for (name, child) in &mut self.running {
            if tokio::time::timeout_at(until, child.wait()).await.is_err() {
                tracing::warn!(child = name.as_str(), "does not stop; killing it");
                // Waits for it as well: no zombies.
                let _ = child.kill().await;
            }
        }
        self.running.clear();
    }
}
