//! `doctor`: is this machine fit to run an agent, and does it reach what it needs? Each line says what to fix.
//!
//! Every check tries the real thing (a ring is set up, a block is written past the page cache, a listing is read):
//! configuration that looks right and does not work is what it is there to find.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use millstream_origin::{Origin, OriginError};
use millstream_proto::v1::StatusRequest;
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::client::Session;
use crate::config::{self, AgentSettings, DEFAULT_DATA_DIR};
use crate::failure::{Failure, Result};
use crate::limits::{CLOCK_SKEW_MAX, DOCTOR_ORIGIN};
use crate::output::{self, Table};
use crate::socket::Agent;

mod machine;
mod rdma;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// Works, but slower or less safe than it could be.
    Warn,
    /// Does not work.
    Fail,
}

/// One line of the diagnosis.
#[derive(Clone, Debug, Serialize)]
struct Check {
    check: &'static str,
    level: Level,
    found: String,
    fix: Option<String>,
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Check {
        Check { check, level: Level::Ok, found: found.into(), fix: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Check {
        Check { check, level: Level::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Check {
        Check { check, level: Level::Fail, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Examines, prints, and fails (exit 1) when something does not work.
pub async fn run(args: DoctorArgs) -> Result<()> {
    let session = Session::new(&args.client)?;
    let data_dir = data_dir(&args);
    let mut checks = vec![machine::kernel(), machine::memlock(), machine::nofile()];
    checks.extend(rdma::checks());
    checks.extend(machine::disk(&data_dir).await);
    checks.extend(coordinator(&session).await);
    checks.extend(agent(&session).await);
    if let Some(url) = &args.url {
        checks.push(origin(url).await);
    }
    let failed = checks.iter().filter(|c| c.level == Level::Fail).count();
    if session.json {
        output::json(&serde_json::json!({"ok": failed == 0, "checks": checks}))?;
    } else {
        print(&checks)?;
    }
    if failed > 0 {
        return Err(Failure::other("doctor", format!("{failed} of {} checks failed", checks.len()))
            .next("do what the lines marked FAIL say, then run it again"));
    }
    Ok(())
}

fn print(checks: &[Check]) -> Result<()> {
    let mut table = Table::new(&["CHECK", "", "FOUND"]);
    for c in checks {
        let level = match c.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        table.row([c.check.to_owned(), level.to_owned(), c.found.clone()]);
        if let Some(fix) = &c.fix {
            table.row([String::new(), String::new(), format!("fix: {fix}")]);
        }
    }
    table.print()
}

/// The directory that was named, or the one that the agent here is configured with.
fn data_dir(args: &DoctorArgs) -> PathBuf {
    let configured = || config::layered("agent", None, &AgentSettings::default()).ok().and_then(|s| s.data_dir);
    args.data_dir.clone().or_else(configured).unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR))
}

async fn coordinator(session: &Session) -> Vec<Check> {
    // Of a dataset that cannot be: the answer is short in a large cluster too.
    let asked = session
        .first_that_answers("status", |mut client| async move { client.status(StatusRequest::default()).await })
        .await;
    let reply = match asked {
        Ok(reply) => reply,
        Err(failure) => {
            let fix = failure.next.clone().unwrap_or_default();
            return vec![Check::fail("coordinator", failure.to_string(), fix)];
        }
    };
    let document: serde_json::Value = serde_json::from_str(&reply.get_ref().json).unwrap_or_default();
    let nodes = document["nodes"].as_array().map_or(0, Vec::len);
    let version = document["version"].as_str().unwrap_or("of unknown version");
    let mut checks = vec![Check::ok("coordinator", format!("{version}, {nodes} nodes"))];
    if version != env!("CARGO_PKG_VERSION") {
        let fix = "install the same version everywhere";
        checks.push(Check::warn("versions", format!("this is {}", env!("CARGO_PKG_VERSION")), fix));
    }
    let date = reply.metadata().get("date").and_then(|d| d.to_str().ok()).and_then(http_date);
    checks.push(clock(SystemTime::now(), date));
    checks
}

/// The coordinator stamps its answers with its own time, to the second.
fn clock(now: SystemTime, coordinator: Option<SystemTime>) -> Check {
    let Some(there) = coordinator else {
        return match now > SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) {
            true => Check::ok("clock", "plausible; the coordinator did not say its time"),
            false => Check::fail("clock", "far in the past", "set the clock; run chrony or systemd-timesyncd"),
        };
    };
    let apart = now.duration_since(there).unwrap_or_else(|e| e.duration());
    match apart > CLOCK_SKEW_MAX {
        true => Check::warn(
            "clock",
            format!("{} s from the coordinator's", apart.as_secs()),
            "run chrony or systemd-timesyncd on both; signed requests to S3 fail with wrong clocks",
        ),
        false => Check::ok("clock", "agrees with the coordinator's"),
    }
}

/// `Tue, 15 Nov 1994 08:12:31 GMT`.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = text.split_once(", ")?.1.split(' ');
    let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
    let month = MONTHS.iter().position(|m| *m == month)? + 1;
    humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{}Z", parts.next()?)).ok()
}

async fn agent(session: &Session) -> Vec<Check> {
    let path = session.settings.socket_or_default();
    let asked = async { Agent::connect(&path).await?.call("agent", serde_json::json!({"op": "status"})).await };
    match asked.await {
        Ok(status) => {
            let node = status["node"].as_str().unwrap_or("?");
            let mut checks = vec![Check::ok("agent", format!("node {node} at {}", path.display()))];
            checks.extend(rdma::of_agent(&status));
            checks
        }
        // Also run before the agent is installed.
        Err(failure) => vec![Check::warn("agent", failure.to_string(), failure.next.unwrap_or_default())],
    }
}

async fn origin(url: &str) -> Check {
    let fix = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL and the permission to list";
    match tokio::time::timeout(DOCTOR_ORIGIN, first_listed(url)).await {
        Ok(Ok(true)) => Check::ok("origin", format!("{url} can be listed")),
        Ok(Ok(false)) => Check::warn("origin", format!("{url} can be listed, and is empty"), "correct the prefix"),
        Ok(Err(error)) => Check::fail("origin", format!("{url}: {error}"), fix),
        Err(_) => Check::fail("origin", format!("{url}: no answer within {DOCTOR_ORIGIN:?}"), fix),
    }
}

/// Is anything there? The listing is given up at the first object: there may be millions.
async fn first_listed(url: &str) -> Result<bool, OriginError> {
    let origin = Origin::from_url(url)?;
    let seen = tokio::sync::Notify::new();
    let listing = origin.list(|progress| {
        if progress.objects > 0 {
            seen.notify_one();
        }
    });
    tokio::select! {
        biased;
        listed = listing => Ok(!listed?.objects.is_empty()),
        () = seen.notified() => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_compared() {
        let there = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(there, humantime::parse_rfc3339("1994-11-06T08:49:37Z").unwrap());
        assert_eq!(http_date("soon"), None);
        assert_eq!(clock(there + Duration::from_secs(2), Some(there)).level, Level::Ok);
        assert_eq!(clock(there + Duration::from_secs(60), Some(there)).level, Level::Warn);
        assert_eq!(clock(there, Some(there + Duration::from_secs(60))).level, Level::Warn);
        assert_eq!(clock(there, None).level, Level::Fail);
    }
}
