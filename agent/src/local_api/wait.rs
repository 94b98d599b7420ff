//! `wait`: until a version, or one shard of it, is ready on this node.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::{Answer, LocalApi, Refusal, path, refusal, send, version_status, waiting_for};
use crate::limits::{FAILURE_PATIENCE, MISSING_NAMED_MAX};
use crate::local::LocalVersion;

impl LocalApi {
    /// Sends progress lines until the version (or one shard of it) is ready, failed, or the time is over.
    pub(super) async fn wait(
        &self,
        dataset: &str,
        key: Option<&str>,
        timeout_ms: Option<u64>,
        write: &mut (impl AsyncWriteExt + Unpin),
    ) -> std::io::Result<Answer> {
        let until = timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        let mut shown = None;
        loop {
            let version = match self.find(dataset).await {
                Ok(version) => Some(version),
                Err(refusal) if refusal.code == 4 => None,
                Err(refusal) => return Ok(Err(refusal)),
            };
            if let Some(version) = &version {
                match path(version, key) {
                    Err(refusal) if refusal.code == 4 => {}
                    ended => {
                        if shown.is_none() {
                            self.found_in_place(version, key, &ended);
                        }
                        return Ok(ended);
                    }
                }
                let failed = version.progress.borrow().failed.clone();
                if let Some((code, reason)) = failed {
                    // This node learns of it a moment before the coordinator tells clients, whose words name it all.
                    let name = version.manifest.name().to_string();
                    let known = self.failure_here(&name, FAILURE_PATIENCE).await;
                    let own = || refusal(code, format!("{} cannot take {name}: {reason}", self.node));
                    return Ok(Err(known.unwrap_or_else(own)));
                }
            } else if let Some(refused) = self.failure_here(dataset, Duration::ZERO).await {
                return Ok(Err(refused)); // refused before anything of it came here: it does not fit, for example
            }
            let line = version.as_ref().map(|v| version_status(v)).unwrap_or(json!({"state": "absent"}));
            if shown.as_ref() != Some(&line) {
                send(write, &json!({"progress": line})).await?;
                shown = Some(line);
            }
            let tick = Instant::now() + Duration::from_millis(200);
            let next = until.map_or(tick, |until| until.min(tick));
            match &version {
                Some(version) => {
                    let shard = key.and_then(|key| version.manifest.find(key)).map(|(shard, _)| shard);
                    let mut changes = version.progress.subscribe();
                    let ready = changes.wait_for(|p| {
                        let shards = u64::from(version.manifest.layout().shards());
                        let there = shard.map_or(p.sealed.len() == shards, |shard| p.sealed.contains(shard));
                        p.failed.is_some() || p.closed || there
                    });
                    let _ = tokio::time::timeout_at(next, ready).await;
                }
                None => tokio::time::sleep_until(next).await,
            }
            if until.is_some_and(|until| Instant::now() >= until)
                && version.as_ref().is_none_or(|v| path(v, key).is_err())
            {
                return Ok(Err(not_in_time(&self.node, dataset, key, version.as_deref())));
            }
        }
    }
}

/// Names what is missing: a few keys, and how many in all.
fn not_in_time(node: &str, dataset: &str, key: Option<&str>, version: Option<&LocalVersion>) -> Refusal {
    let state = version.map_or("not staged here".to_owned(), waiting_for);
    let missing: Vec<&str> = match (key, version) {
        (Some(key), _) => vec![key],
        (None, Some(version)) => {
            let progress = version.progress.borrow();
            let absent = version.manifest.shards().iter().zip(0u32..).filter(|(_, no)| !progress.sealed.contains(*no));
            absent.map(|(shard, _)| shard.key.as_str()).take(MISSING_NAMED_MAX).collect()
        }
        (None, None) => Vec::new(),
    };
    let total = version.map(|v| u64::from(v.manifest.layout().shards()) - v.progress.borrow().sealed.len());
    let thing = key.map_or(dataset.to_owned(), |key| format!("{key:?} of {dataset}"));
    Refusal {
        code: 4,
        error: format!("{thing} is not ready in time on node {node}: {state}"),
        details: json!({"missing": missing, "missing_total": total, "slow_nodes": [node]}),
    }
}
