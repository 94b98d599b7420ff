//! Documents live: server-sent events with the whole document first and then what changed (JSON Patch, RFC 6902).
//!
//! One task per stream looks at its documents once a second. A slow reader is waited for: it gets fewer, larger steps.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as Shared};
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::api::{ErrorBody, HttpError};
use super::documents::Documents;
use crate::driver::state::unix_ms;
use crate::failure::RequestError;
use crate::limits::{STREAM_EVERY, STREAM_WATCHES_MAX, STREAMS_MAX};

/// Events that wait for a slow reader.
const QUEUE: usize = 16;
/// A patch of more operations than this costs more than the document.
const OPERATIONS_MAX: usize = 2_000;

#[derive(Clone)]
pub(super) struct Streams {
    documents: Documents,
    places: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Streams {
    pub(super) fn new(documents: Documents, shutdown: CancellationToken) -> Streams {
        Streams { documents, places: Arc::new(Semaphore::new(STREAMS_MAX)), shutdown }
    }
}

/// Documents live (server-sent events)
///
/// `watch` (repeated, at most 8) names documents by their path below `/api/v1/`, with their query. Events: `document`
/// `{watch, status, document}` first and when much has changed; `patch` `{watch, patch}` (RFC 6902, relative to the
/// last one sent); `tick` `{at_unix_ms}` every second, so that a reader knows that it is up to date.
#[utoipa::path(get, path = "/api/v1/stream", tag = "now",
    params(("watch" = Vec<String>, Query, description = "a path below `/api/v1/`", example = json!(["overview"]), max_items = 8)),
    responses(
        (status = 200, content_type = "text/event-stream", body = String),
        (status = 400, body = ErrorBody, description = "the query makes no sense"),
        (status = 503, body = ErrorBody, description = "the coordinator stops, or too many streams are open"),
    ))]
pub(super) async fn stream(
    streams: Shared<Streams>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, HttpError> {
    let usage = |reason: String| RequestError::Usage { field: "watch", reason };
    let mut watches = Vec::new();
    for (name, value) in query?.0 {
        if name != "watch" {
            return Err(usage(format!("{:?} is not known here", crate::nodes::short(&name))).into());
        }
        watches.push(value);
    }
    if watches.is_empty() || watches.len() > STREAM_WATCHES_MAX {
        return Err(usage(format!("name 1 to {STREAM_WATCHES_MAX} documents")).into());
    }
    let place = streams.places.clone().try_acquire_owned();
    let place = place.map_err(|_| RequestError::TooMany { what: "live streams", limit: STREAMS_MAX })?;
    let (out, events) = mpsc::channel(QUEUE);
    let streams = streams.0;
    tokio::spawn(async move {
        let stop = streams.shutdown.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = out.closed() => {}
            () = follow(&streams.documents, watches, &out) => {}
        }
        drop(place);
    });
    let events = ReceiverStream::new(events).map(Ok::<_, Infallible>);
    let mut response = Sse::new(events).into_response();
    // Proxies must not collect events.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

async fn follow(documents: &Documents, watches: Vec<String>, out: &mpsc::Sender<Event>) {
    let mut sent: BTreeMap<String, Value> = BTreeMap::new();
    let mut ticks = interval(STREAM_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for watch in &watches {
            let answered = documents.get(watch).await;
            let (status, now) = (answered.status.as_u16(), answered.document);
            let event = match sent.get(watch) {
                Some(before) if *before == now => None,
                Some(before) => Some(step(watch, status, before, &now)),
                None => Some(whole(watch, status, &now)),
            };
            sent.insert(watch.clone(), now);
            if let Some(event) = event
                && out.send(event).await.is_err()
            {
                return;
            }
        }
        let tick = Event::default().event("tick").data(json!({"at_unix_ms": unix_ms()}).to_string());
        if out.send(tick).await.is_err() {
            return;
        }
    }
}

fn whole(watch: &str, status: u16, document: &Value) -> Event {
    let data = json!({"watch": watch, "status": status, "document": document});
    Event::default().event("document").data(data.to_string())
}

fn step(watch: &str, status: u16, before: &Value, now: &Value) -> Event {
    // An error in place of a document, or the other way round, has nothing in common with it.
    if before.get("error").is_some() || now.get("error").is_some() {
        return whole(watch, status, now);
    }
    let patch = json_patch::diff(before, now);
    if patch.0.len() > OPERATIONS_MAX {
        return whole(watch, status, now);
    }
    Event::default().event("patch").data(json!({"watch": watch, "patch": patch}).to_string())
}
