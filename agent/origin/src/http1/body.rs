//! The body of an answer, in whichever way its end is announced.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, header};
use tokio::time::timeout;

use super::Client;
use super::connection::Connection;
use crate::limits::READ_STALL;

/// How the end of a body is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    /// In chunks: so many bytes of the present one are still to come.
    Chunked { left: u64, first: bool },
    /// When the connection closes.
    Close,
}

impl Framing {
    pub(crate) fn of(method: &Method, status: u16, headers: &HeaderMap) -> io::Result<Framing> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
        if *method == Method::HEAD || status == 204 || status == 304 {
            return Ok(Framing::Length(0));
        }
        if let Some(coding) = headers.get(header::TRANSFER_ENCODING) {
            return match coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
                true => Ok(Framing::Chunked { left: 0, first: true }),
                false => Err(invalid("a transfer coding that was not asked for")),
            };
        }
        let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
        let Some(first) = lengths.next() else { return Ok(Framing::Close) };
        if lengths.any(|other| other != first) {
            return Err(invalid("two lengths that differ"));
        }
        let len = first.to_str().ok().and_then(|text| text.parse().ok());
        Ok(Framing::Length(len.ok_or_else(|| invalid("a length that is no number"))?))
    }
}

/// The body of an answer. Its connection goes back to the pool once it was read to its end; dropped before, it is
/// closed.
pub(crate) struct Body {
    connection: Option<Connection>,
    framing: Framing,
    pool: Option<Arc<Client>>,
}

impl Body {
    pub(crate) fn new(connection: Connection, framing: Framing, pool: Option<Arc<Client>>) -> Body {
        let mut body = Body { connection: Some(connection), framing, pool };
        if framing == Framing::Length(0) {
            body.finish();
        }
        body
    }

    fn finish(&mut self) {
        // Bytes beyond the end belong to nothing: such a connection is not used again.
        if let (Some(connection), Some(pool)) = (self.connection.take(), self.pool.take())
            && connection.buffered().is_empty()
        {
            pool.give_back(connection);
        }
    }

    /// The announced length, where there is one.
    pub(crate) fn announced(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(len) => Some(len),
            _ => None,
        }
    }

    /// Reads some bytes; zero at the end. An end before its time is an error, and so is a stall.
    ///
    /// Cancel-safe: bytes are either in `out` and counted, or still to come.
    pub(crate) async fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let stalled = || io::Error::new(io::ErrorKind::TimedOut, format!("no byte came for {READ_STALL:?}"));
        match timeout(READ_STALL, self.read_some(out)).await {
            Ok(read) => read,
            Err(_) => Err(stalled()),
        }
    }

    async fn read_some(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(connection) = &mut self.connection else { return Ok(0) };
        let left = match &mut self.framing {
            Framing::Close => match connection.read(out).await? {
                0 => {
                    self.connection = None;
                    return Ok(0);
                }
                n => return Ok(n),
            },
            Framing::Chunked { left, first } => {
                if *left == 0 && !next_chunk(connection, left, first).await? {
                    self.finish();
                    return Ok(0);
                }
                left
            }
            Framing::Length(left) => left,
        };
        let max = usize::try_from(*left).unwrap_or(usize::MAX).min(out.len());
        let n = connection.read(&mut out[..max]).await?;
        if n == 0 && max > 0 {
            let why = format!("the body ended at least {left} bytes early");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        *left -= n as u64;
        if self.framing == Framing::Length(0) {
            self.finish();
        }
        Ok(n)
    }

    /// The whole body, if it has at most `max` bytes.
    pub(crate) async fn read_all(&mut self, max: u64) -> io::Result<Bytes> {
        let mut all = Vec::with_capacity(self.announced().unwrap_or(0).min(max).min(1 << 20) as usize);
        let mut buf = vec![0; 64 << 10];
        loop {
            match self.read(&mut buf).await? {
                0 => return Ok(all.into()),
                n if all.len() as u64 + n as u64 > max => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {max} bytes")));
                }
                n => all.extend_from_slice(&buf[..n]),
            }
        }
    }
}

/// Reads the line before a chunk (and the end of the one before it); `false` after the last one.
async fn next_chunk(connection: &mut Connection, left: &mut u64, first: &mut bool) -> io::Result<bool> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a chunk without a length");
    loop {
        let (ahead, skip) = match (*first, connection.buffered()) {
            (false, [b'\r', b'\n', rest @ ..]) => (rest, 2),
            (false, [] | [b'\r']) => {
                connection.fill().await?;
                continue;
            }
            (false, _) => return Err(invalid()),
            (true, ahead) => (ahead, 0),
        };
        match httparse::parse_chunk_size(ahead).map_err(|_| invalid())? {
            httparse::Status::Partial => connection.fill().await?,
            httparse::Status::Complete((line, 0)) => {
                // Trailers are not expected; without them the body ends with one empty line.
                let end = skip + line;
                if connection.buffered().len() < end + 2 {
                    connection.fill().await?;
                    continue;
                }
                let clean = connection.buffered()[end..].starts_with(b"\r\n");
                // With trailers, what is left in the buffer keeps the connection out of the pool.
                connection.consume(if clean { end + 2 } else { end });
                return Ok(false);
            }
            httparse::Status::Complete((line, len)) => {
                connection.consume(skip + line);
                (*left, *first) = (len, false);
                return Ok(true);
            }
        }
    }
}
