//! The control port: faults, statistics and objects as JSON, for tests in other languages and for benches.
//!
//! `GET /stats` · `DELETE /stats` · `GET|POST|DELETE /faults` · `DELETE /faults/ID` ·
//! `POST /rate {"bytes_per_s": N or null}` · `POST /objects {"bucket","key","seed","len"}` (or `"text"`)

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::ServerHandle;
use crate::faults::Fault;
use crate::limits::CONTROL_BODY_BYTES_MAX;
use crate::object::ObjectOptions;

#[derive(Deserialize)]
struct Rate {
    bytes_per_s: Option<u64>,
}

#[derive(Deserialize)]
struct NewObject {
    bucket: String,
    key: String,
    seed: Option<u64>,
    #[serde(default)]
    len: u64,
    text: Option<String>,
    #[serde(flatten)]
    options: ObjectOptions,
}

pub(crate) async fn answer(
    server: Arc<ServerHandle>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let (status, value) = match handle(&server, request).await {
        Ok(value) => (StatusCode::OK, value),
        Err((status, reason)) => (status, json!({ "error": reason })),
    };
    let mut response = Response::new(Full::from(value.to_string()));
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    Ok(response)
}

type Refusal = (StatusCode, String);

async fn handle(server: &ServerHandle, request: Request<Incoming>) -> Result<Value, Refusal> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, CONTROL_BODY_BYTES_MAX).collect().await;
    let body = body.map_err(bad)?.to_bytes();
    let path = parts.uri.path();
    match (&parts.method, path) {
        (&Method::GET, "/stats") => Ok(json!(server.stats().snapshot())),
        (&Method::DELETE, "/stats") => {
            server.stats().reset();
            Ok(json!({}))
        }
        (&Method::GET, "/faults") => Ok(json!(server.faults().list())),
        (&Method::POST, "/faults") => {
            let fault: Fault = parse(&body)?;
            let id = server.faults().add(fault);
            let id = id.ok_or((StatusCode::CONFLICT, "too many faults".to_owned()))?;
            Ok(json!({ "id": id }))
        }
        (&Method::DELETE, "/faults") => {
            server.faults().clear();
            Ok(json!({}))
        }
        (&Method::DELETE, path) if path.starts_with("/faults/") => {
            let id = path["/faults/".len()..].parse().map_err(bad)?;
            match server.faults().remove(id) {
                true => Ok(json!({})),
                false => Err((StatusCode::NOT_FOUND, format!("no fault {id}"))),
            }
        }
        (&Method::POST, "/rate") => {
            let rate: Rate = parse(&body)?;
            server.set_rate(rate.bytes_per_s);
            Ok(json!({}))
        }
        (&Method::POST, "/objects") => {
            put(server, parse(&body)?).map_err(bad)?;
            Ok(json!({}))
        }
        _ => Err((StatusCode::NOT_FOUND, format!("no {} {path}", parts.method))),
    }
}

fn put(server: &ServerHandle, new: NewObject) -> std::io::Result<()> {
    match (new.text, new.seed) {
        (Some(text), _) => server.put_bytes(&new.bucket, &new.key, text, new.options),
        (None, seed) => {
            let seed = seed.unwrap_or_default();
            server.put_seeded(&new.bucket, &new.key, seed, new.len, new.options)
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(bad)
}

fn bad(e: impl ToString) -> Refusal {
    (StatusCode::BAD_REQUEST, e.to_string())
}
