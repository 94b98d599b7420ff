//! `fetch`: a reader wants one shard now, whether or not a stage put it on this node.
//!
//! The coordinator is asked to bring it, from peers or, when none has it, from the origin; it arrives, is verified and
//! becomes visible like any other. Goals: an answer within the deadline, naming what is waited for; a coordinator that
//! restarts meanwhile is asked again. Non-goals: making room (a shard that does not fit is refused with numbers).

use std::io;
use std::time::Duration;

use millstream_proto::v1::agent_service_client::AgentServiceClient;
use millstream_proto::v1::{WantReply, WantRequest};
use millstream_types::id::DatasetSelector;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::cluster::from_status;
use super::{Answer, LocalApi, Refusal, path, refusal, send};
use crate::limits::{FETCH_ASK_AGAIN, FETCH_TIMEOUT, FETCH_TIMEOUT_MAX};
use crate::local::LocalVersion;

/// The path of a shard, brought here first when it is not. The outer error is the client's connection.
pub(super) async fn fetch(
    api: &LocalApi,
    dataset: &str,
    key: &str,
    timeout_ms: Option<u64>,
    write: &mut (impl AsyncWriteExt + Unpin),
) -> io::Result<Answer> {
    let mut selector: DatasetSelector = match dataset.parse() {
        Ok(selector) => selector,
        Err(error) => return Ok(Err(refusal(2, format!("{dataset:?}: {error}")))),
    };
    let timeout = timeout_ms.map_or(FETCH_TIMEOUT, Duration::from_millis).min(FETCH_TIMEOUT_MAX);
    let until = Instant::now() + timeout;
    let mut asked = false;
    loop {
        let here = api.local.find(&selector);
        if let Some(version) = &here {
            match path(version, Some(key)) {
                Err(not_yet) if not_yet.code == 4 => {}
                answer => {
                    if !asked {
                        api.found_in_place(version, Some(key), &answer);
                    }
                    return Ok(answer);
                }
            }
            // A name alone means one version from here on, whatever is opened meanwhile.
            let name = version.manifest.name().clone();
            selector = DatasetSelector { name: name.name, version: Some(name.version) };
        }
        let again = std::mem::replace(&mut asked, true);
        let why = match tokio::time::timeout_at(until, want(api, &selector, key, again)).await {
            Ok(Ok(wanted)) => {
                selector = wanted.dataset.parse().unwrap_or(selector);
                match wanted.waits_for.is_empty() {
                    true => "its bytes have not all come".to_owned(),
                    false => wanted.waits_for,
                }
            }
            // Those may pass: asked again until the deadline.
            Ok(Err(refused)) if matches!(refused.code, 4 | 6) => refused.error,
            Ok(Err(refused)) => return Ok(Err(refused)),
            Err(_) => "the coordinator does not answer".to_owned(),
        };
        // Also finds out whether the client is still there.
        send(write, &json!({"progress": {"state": "receiving", "dataset": selector.to_string(), "reason": why}}))
            .await?;
        let pause = until.min(Instant::now() + FETCH_ASK_AGAIN);
        match &here {
            Some(version) => arrives(version, key, pause).await,
            // It is being opened: looked at again soon.
            None => tokio::time::sleep_until(until.min(Instant::now() + Duration::from_millis(20))).await,
        }
        if Instant::now() >= until {
            let arrived = api.local.find(&selector).map(|version| path(&version, Some(key)));
            return Ok(arrived.filter(Result::is_ok).unwrap_or_else(|| {
                let late = format!("{key:?} of {selector} is not on node {} within {timeout:?}: {why}", api.node);
                Err(refusal(4, late))
            }));
        }
    }
}

/// Did a reader here say that it will read the shard?
fn announced(api: &LocalApi, selector: &DatasetSelector, key: &str) -> bool {
    let Some(version) = api.local.find(selector) else { return false };
    let digest = version.manifest.digest();
    version.manifest.find(key).is_some_and(|(shard, _)| api.local.announced.contains(digest, shard))
}

/// Has the coordinator open a version here, for a reader that will announce itself. Returns its name.
pub(super) async fn want_opened(api: &LocalApi, dataset: &str) -> Result<String, Refusal> {
    let nothing = WantRequest { node: api.node.clone(), dataset: dataset.to_owned(), ..WantRequest::default() };
    Ok(ask(api, nothing).await?.dataset)
}

async fn ask(api: &LocalApi, request: WantRequest) -> Result<WantReply, Refusal> {
    let channel = api.link.channel().ok_or_else(|| refusal(6, "no coordinator is reachable"))?;
    let asked = AgentServiceClient::new(channel).want(request).await;
    asked.map(|reply| reply.into_inner()).map_err(|status| from_status(&status))
}

/// Asks the coordinator, and reserves room for what it will send; what readers announced comes within theirs.
async fn want(api: &LocalApi, selector: &DatasetSelector, key: &str, again: bool) -> Result<WantReply, Refusal> {
    let announced = announced(api, selector, key);
    let request = WantRequest {
        node: api.node.clone(),
        dataset: selector.to_string(),
        keys: vec![key.to_owned()],
        free_bytes: api.store.free_bytes(),
        again,
        announced,
    };
    let reply = ask(api, request).await?;
    if !announced
        && let Ok(selector) = reply.dataset.parse()
        && let Some(version) = api.local.find(&selector)
    {
        let reserved = api.store.reserve(&version.manifest.digest(), reply.wanted_bytes);
        reserved.map_err(|full| refusal(7, format!("{key:?} of {selector} does not fit: {full}")))?;
    }
    Ok(reply)
}

/// Waits until the shard is visible or the version is closed, at most until `until`.
async fn arrives(version: &LocalVersion, key: &str, until: Instant) {
    let Some((shard, _)) = version.manifest.find(key) else { return };
    let mut changes = version.progress.subscribe();
    let arrived = changes.wait_for(|p| p.closed || p.sealed.contains(shard));
    let _ = tokio::time::timeout_at(until, arrived).await;
}
