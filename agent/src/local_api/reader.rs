//! `reader`: a loader says what it will read next and what it has read, so that shards come ahead of it and go behind it.
//!
//! A reader is a connection and a name that the client chooses; it ends with the connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millstream_types::id::DatasetSelector;
use millstream_types::size::format_size;
use millstream_types::{Digest, RunSet};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, LocalApi, Refusal, fetch, refusal};
use crate::driver::{Ask, Input, Inputs, ReaderMove};
use crate::limits::{OPEN_TIMEOUT, READERS_PER_CLIENT_MAX};
use crate::local::{LocalState, LocalVersion};

/// The request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Announcement {
    dataset: String,
    /// Of the client's choice, unique on its connection.
    reader: String,
    /// Keys that it will read, in order.
    #[serde(default)]
    upcoming: Option<Vec<String>>,
    /// After those announced before, instead of in their place.
    #[serde(default)]
    append: bool,
    /// Keys that it has read.
    #[serde(default)]
    finished: Vec<String>,
    /// How many shards it reads at a time.
    #[serde(default)]
    open: u32,
}

/// Numbers of all readers of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The readers of one connection. Those who drop it end them.
pub(super) struct Readers {
    known: BTreeMap<(Digest, String), u64>,
    local: Arc<LocalState>,
    inputs: Inputs,
}

impl Readers {
    pub(super) fn new(api: &LocalApi) -> Readers {
        Readers { known: BTreeMap::new(), local: api.local.clone(), inputs: api.inputs.clone() }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        for ((digest, _), reader) in std::mem::take(&mut self.known) {
            self.local.announced.gone(digest, reader);
            let gone = Input::Ask(Ask::ReaderGone { digest, reader });
            // A driver that is behind is told by a task: a reader must not be forgotten.
            if let Err(tokio::sync::mpsc::error::TrySendError::Full(gone)) = self.inputs.try_send(gone) {
                let inputs = self.inputs.clone();
                tokio::spawn(async move { inputs.send(gone).await });
            }
        }
    }
}

/// Takes an announcement.
pub(super) async fn announce(api: &LocalApi, said: Announcement, by: &str, readers: &mut Readers) -> Answer {
    let version = opened(api, &said.dataset).await?;
    let digest = version.manifest.digest();
    let name = version.manifest.name().to_string();
    let (key, open) = ((digest, said.reader), said.open);
    if !readers.known.contains_key(&key) && readers.known.len() >= READERS_PER_CLIENT_MAX {
        return Err(refusal(2, format!("more than {READERS_PER_CLIENT_MAX} readers on one connection")));
    }
    let restart = said.upcoming.is_some() && !said.append;
    let upcoming = shards(&version, said.upcoming.as_deref().unwrap_or_default())?;
    if restart || !readers.known.contains_key(&key) {
        fits_at_a_time(&version, &upcoming, open, api.store.usage().capacity_bytes)?;
    }
    let finished: RunSet = shards(&version, &said.finished)?.into_iter().collect();
    let reader = *readers.known.entry(key).or_insert_with(|| NEXT.fetch_add(1, Ordering::Relaxed));
    api.local.announced.moved(digest, reader, restart, &upcoming, &finished);
    let announced = upcoming.len();
    let moved = ReaderMove { digest, reader, by: by.to_owned(), restart, upcoming, finished, open };
    let sent = api.inputs.send(Input::Ask(Ask::Reader(moved))).await;
    sent.map_err(|_| refusal(6, "the agent is stopping"))?;
    Ok(json!({"dataset": name, "announced": announced}))
}

/// The version, once it is open here. A reader may be faster than the order that opens it, or come where no stage wants
/// it: the coordinator is asked to have it opened.
async fn opened(api: &LocalApi, dataset: &str) -> Result<Arc<LocalVersion>, Refusal> {
    match api.find(dataset).await {
        Err(refused) if refused.code == 4 => {}
        found => return found,
    }
    let not_open = |why: String| refusal(4, format!("{dataset} is not open on node {}: {why}", api.node));
    let opening = async {
        let name = fetch::want_opened(api, dataset).await.map_err(|refused| not_open(refused.error))?;
        let selector: DatasetSelector = name.parse().map_err(|e| not_open(format!("{name:?}: {e}")))?;
        Ok(api.local.opened(&selector).await)
    };
    let late = |_| Err(not_open(format!("it was not opened within {OPEN_TIMEOUT:?}")));
    tokio::time::timeout(OPEN_TIMEOUT, opening).await.unwrap_or_else(late)
}

/// What a reader has open at a time has to be here at a time: it would wait for ever for the last of it.
fn fits_at_a_time(version: &LocalVersion, upcoming: &[u32], open: u32, capacity: u64) -> Result<(), Refusal> {
    let layout = version.manifest.layout();
    let first: RunSet = upcoming.iter().take(open as usize).copied().collect();
    let needed: u64 = first.iter().map(|shard| layout.range_bytes(layout.shard_pieces(shard))).sum();
    if needed <= capacity {
        return Ok(());
    }
    let (name, needed, has) = (version.manifest.name(), format_size(needed), format_size(capacity));
    Err(refusal(
        7,
        format!(
            "reading {open} shards of {name} at a time takes {needed}, and this node's quota is {has}; next: read fewer \
             at a time (lanes=), or raise --capacity"
        ),
    ))
}

fn shards(version: &LocalVersion, keys: &[String]) -> Result<Vec<u32>, Refusal> {
    let name = version.manifest.name();
    let number = |key: &String| match version.manifest.find(key) {
        Some((shard, _)) => Ok(shard),
        None => Err(refusal(3, format!("{name} has no shard {key:?}; run: millstream dataset show {name}"))),
    };
    keys.iter().map(number).collect()
}
