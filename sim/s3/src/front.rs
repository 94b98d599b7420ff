//! The HTTP front: counts, applies faults, and hands the rest to the S3 protocol.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use s3s::service::S3Service;

use crate::body::{Cut, Effects, OutBody, Pace};
use crate::connection::Connection;
use crate::faults::{FaultKind, Faults};
use crate::stats::Stats;

pub(crate) struct Front {
    pub(crate) s3: S3Service,
    pub(crate) anonymous: bool,
    pub(crate) faults: Arc<Faults>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) pace: Arc<Pace>,
}

/// What is asked, as far as counting and faults care: the kind, and `bucket/key`.
fn classify<B>(request: &Request<B>) -> (&'static str, String) {
    let path = request.uri().path().trim_start_matches('/');
    let path = percent_decode(path);
    let has_key = path.split_once('/').is_some_and(|(_, key)| !key.is_empty());
    let kind = match *request.method() {
        Method::GET if has_key => "get",
        Method::GET => "list",
        Method::HEAD => "head",
        Method::PUT => "put",
        Method::DELETE => "delete",
        _ => "other",
    };
    (kind, path)
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| first == b'%');
        let mut value = [0];
        let decoded = digits.is_some_and(|digits| hex::decode_to_slice(digits, &mut value).is_ok());
        out.push(if decoded { value[0] } else { first });
        rest = if decoded { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Front {
    pub(crate) async fn answer(
        &self,
        mut request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> Result<Response<OutBody>, s3s::HttpError> {
        let (kind, path) = classify(&request);
        self.stats.request(kind);
        let faults = self.faults.pick(kind, &path);
        let head = *request.method() == Method::HEAD;
        for fault in &faults {
            let answer = match fault {
                FaultKind::Latency { ms } => {
                    tokio::time::sleep(Duration::from_millis(*ms)).await;
                    continue;
                }
                FaultKind::Status { status, retry_after_s } => refusal(*status, *retry_after_s, head),
                FaultKind::Changed => refusal(412, None, head),
                _ => continue,
            };
            self.stats.status(answer.status().as_u16());
            return Ok(answer);
        }
        if self.anonymous {
            request.headers_mut().remove(AUTHORIZATION);
        }
        let response = self.s3.call(request.map(s3s::Body::from)).await?;
        self.stats.status(response.status().as_u16());
        if kind != "get" || !response.status().is_success() {
            return Ok(response.map(OutBody::plain));
        }
        let counters = self.stats.key(&path);
        counters.requests.fetch_add(1, Ordering::Relaxed);
        let (mut parts, body) = response.into_parts();
        let mut effects = self.effects(&faults);
        let announced = parts.headers.get(CONTENT_LENGTH);
        let announced = announced.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if let (Some((at, cut)), Some(len)) = (effects.cut, announced) {
            if at >= len {
                effects.cut = None;
            } else if cut == Cut::End {
                parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(at));
            }
        }
        let body = OutBody::new(body, effects, Some(counters), Some(connection));
        Ok(Response::from_parts(parts, body))
    }

    fn effects(&self, faults: &[FaultKind]) -> Effects {
        let mut effects = Effects { paces: vec![self.pace.clone()], ..Effects::default() };
        for fault in faults {
            match *fault {
                FaultKind::ShortBody { bytes } => effects.cut = Some((bytes, Cut::End)),
                FaultKind::Truncate { bytes } => effects.cut = Some((bytes, Cut::Fin)),
                FaultKind::Reset { bytes } => effects.cut = Some((bytes, Cut::Rst)),
                FaultKind::Stall { bytes } => effects.cut = Some((bytes, Cut::Stall)),
                FaultKind::Corrupt { at } => effects.corrupt_at.push(at),
                FaultKind::Rate { bytes_per_s } => {
                    effects.paces.push(Arc::new(Pace::new(Some(bytes_per_s))));
                }
                FaultKind::Status { .. } | FaultKind::Changed | FaultKind::Latency { .. } => {}
            }
        }
        effects
    }
}

/// An S3 error document, as AWS words it.
fn refusal(status: u16, retry_after_s: Option<u32>, head: bool) -> Response<OutBody> {
    let (code, message) = match status {
        412 => ("PreconditionFailed", "At least one of the pre-conditions you specified did not hold"),
        403 => ("AccessDenied", "Access Denied"),
        404 => ("NoSuchKey", "The specified key does not exist."),
        429 | 503 => ("SlowDown", "Please reduce your request rate."),
        _ => ("InternalError", "We encountered an internal error. Please try again."),
    };
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    let text = if head { String::new() } else { text };
    let mut response = Response::new(OutBody::plain(Bytes::from(text).into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::IM_A_TEAPOT);
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    if let Some(seconds) = retry_after_s {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
