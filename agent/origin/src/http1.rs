//! A small HTTP/1.1 client for GETs of large ranges.
//!
//! Purpose: body bytes go from the socket into the caller's buffer, without a buffer of the client's in between and
//! without an allocation per chunk; that is the difference between one copy per byte and two.
//! Participants: the S3 and the plain-HTTP origin.
//! Goals: keep-alive with a small pool; every wait bounded; a stale pooled connection costs a second attempt, not an
//! error; answers are bounded.
//! Non-goals: HTTP/2 (one stream per TCP connection is what fills a link), redirects, compression, cookies.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tokio::time::timeout;

use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX, IDLE_AGE_MAX, IDLE_CONNECTIONS, READ_STALL};

mod body;
mod connection;
mod proxy;

pub(crate) use body::Body;
use body::Framing;
use connection::Connection;
pub(crate) use connection::Endpoint;

/// One request. `target` is path and query, encoded.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// An answer whose body is still to come.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
}

impl Response {
    pub(crate) fn text(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Connections to one server.
pub(crate) struct Client {
    endpoint: Endpoint,
    idle: Mutex<VecDeque<(Instant, Connection)>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.endpoint.origin())
    }
}

impl Client {
    pub(crate) fn new(endpoint: Endpoint) -> Client {
        Client { endpoint, idle: Mutex::default() }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while idle.front().is_some_and(|(since, _)| since.elapsed() > IDLE_AGE_MAX) {
            idle.pop_front();
        }
        // The one used last is the least likely to be closed, and the one that TCP knows best.
        idle.pop_back().map(|(_, connection)| connection)
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= IDLE_CONNECTIONS {
            idle.pop_front();
        }
        idle.push_back((Instant::now(), connection));
    }

    /// Sends a request and reads the head of the answer.
    pub(crate) async fn send(self: &Arc<Self>, request: &Request) -> io::Result<Response> {
        if let Some(connection) = self.take_idle() {
            match self.send_on(connection, request).await {
                // It was closed while it lay idle: nobody has seen the request.
                Err(e) if is_stale(&e) => {}
                done => return done,
            }
        }
        let connection = Connection::open(&self.endpoint).await?;
        self.send_on(connection, request).await
    }

    async fn send_on(self: &Arc<Self>, mut connection: Connection, request: &Request) -> io::Result<Response> {
        let head = self.head(request);
        let exchange = async {
            connection.write_all(&head).await?;
            connection.write_all(&request.body).await?;
            loop {
                // Interim answers (100 Continue) are skipped.
                let parsed = read_head(&mut connection).await?;
                if parsed.0 >= 200 {
                    return io::Result::Ok(parsed);
                }
            }
        };
        // Uploads take their time; the answer must not.
        let allowed = READ_STALL + std::time::Duration::from_secs(request.body.len() as u64 >> 20);
        let (status, headers) = match timeout(allowed, exchange).await {
            Ok(done) => done?,
            Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer for {allowed:?}"))),
        };
        let framing = Framing::of(&request.method, status, &headers)?;
        let close = headers.get(header::CONNECTION).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"close"));
        let pool = (!close).then(|| self.clone());
        Ok(Response { status, headers, body: Body::new(connection, framing, pool) })
    }

    fn head(&self, request: &Request) -> Vec<u8> {
        let mut head = Vec::with_capacity(1024);
        let mut line = |parts: &[&[u8]]| {
            parts.iter().for_each(|part| head.extend_from_slice(part));
            head.extend_from_slice(b"\r\n");
        };
        let target = self.endpoint.target(&request.target);
        line(&[request.method.as_str().as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1"]);
        line(&[b"host: ", self.endpoint.host_header().as_bytes()]);
        if let Some(authorization) = self.endpoint.proxy_authorization() {
            line(&[b"proxy-authorization: ", authorization.as_bytes()]);
        }
        for (name, value) in &request.headers {
            line(&[name.as_str().as_bytes(), b": ", value.as_bytes()]);
        }
        if !request.body.is_empty() || request.method == Method::PUT {
            line(&[b"content-length: ", request.body.len().to_string().as_bytes()]);
        }
        line(&[]);
        head
    }
}

/// Closed by the other side before it answered a single byte.
fn is_stale(e: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}

async fn read_head(connection: &mut Connection) -> io::Result<(u16, HeaderMap)> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    loop {
        let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut lines);
        let parsed = response.parse(connection.buffered()).map_err(|e| invalid(format!("not HTTP: {e}")))?;
        if let httparse::Status::Complete(len) = parsed {
            let status = response.code.ok_or_else(|| invalid("no status".to_owned()))?;
            let mut headers = HeaderMap::with_capacity(response.headers.len());
            for line in response.headers.iter() {
                let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|e| invalid(e.to_string()))?;
                let value = HeaderValue::from_bytes(line.value).map_err(|e| invalid(e.to_string()))?;
                headers.append(name, value);
            }
            connection.consume(len);
            return Ok((status, headers));
        }
        if connection.buffered().len() >= HEAD_BYTES_MAX {
            return Err(invalid("the head of the answer is too long".to_owned()));
        }
        connection.fill().await?;
    }
}
