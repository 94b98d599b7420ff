//! The body of one ranged read, copied once into the caller's buffer.

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::time::timeout;

use crate::error::{OriginError, with_causes};
use crate::file::FileReader;
use crate::http1::Body;
use crate::limits::READ_STALL;

type Chunks = BoxStream<'static, object_store::Result<Bytes>>;

enum Inner {
    Empty,
    Http(Box<Body>),
    File(Box<FileReader>),
    Stream { chunks: Chunks, chunk: Bytes },
}

/// Reads exactly the bytes that were asked for, or fails: a short body is an error, a long one too.
pub struct BodyReader {
    key: String,
    inner: Inner,
    left: u64,
}

impl std::fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BodyReader({:?}, {} bytes left)", self.key, self.left)
    }
}

impl BodyReader {
    pub(crate) fn empty(key: &str) -> BodyReader {
        BodyReader { key: key.to_owned(), inner: Inner::Empty, left: 0 }
    }

    pub(crate) fn from_http(key: &str, body: Body, left: u64) -> BodyReader {
        BodyReader { key: key.to_owned(), inner: Inner::Http(Box::new(body)), left }
    }

    pub(crate) fn from_file(key: &str, reader: FileReader, left: u64) -> BodyReader {
        BodyReader { key: key.to_owned(), inner: Inner::File(Box::new(reader)), left }
    }

    pub(crate) fn from_stream(key: &str, chunks: Chunks, left: u64) -> BodyReader {
        let inner = Inner::Stream { chunks, chunk: Bytes::new() };
        BodyReader { key: key.to_owned(), inner, left }
    }

    /// Bytes that are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Fills at least one byte of `buffer` and returns how many; zero at the end of the range, or for an empty
    /// buffer. Cancel-safe.
    ///
    /// # Errors
    /// [`OriginError::Transient`] when the body ends early, breaks or stalls; [`OriginError::Changed`] when a local
    /// file changed under the reader.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, OriginError> {
        let max = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if max == 0 {
            return Ok(0);
        }
        let buffer = &mut buffer[..max];
        let n = match &mut self.inner {
            Inner::Empty => 0,
            Inner::Http(body) => {
                let read = body.read(buffer).await;
                read.map_err(|e| OriginError::transient(&self.key, with_causes(&e)))?
            }
            Inner::File(file) => file.read(&self.key, buffer).await?,
            Inner::Stream { chunks, chunk } => {
                if chunk.is_empty() {
                    *chunk = next_chunk(&self.key, chunks).await?;
                }
                let n = chunk.len().min(max);
                buffer[..n].copy_from_slice(&chunk.split_to(n));
                n
            }
        };
        if n == 0 {
            return Err(OriginError::transient(&self.key, format!("the body ended {} bytes early", self.left)));
        }
        self.left -= n as u64;
        Ok(n)
    }

    /// Fills the whole buffer.
    ///
    /// # Errors
    /// As [`read`](Self::read); also when the range has fewer bytes left.
    pub async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), OriginError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..]).await? {
                0 => return Err(OriginError::transient(&self.key, "read beyond the range asked for")),
                n => filled += n,
            }
        }
        Ok(())
    }
}

/// The next bytes of a stream; empty at its end.
async fn next_chunk(key: &str, chunks: &mut Chunks) -> Result<Bytes, OriginError> {
    loop {
        match timeout(READ_STALL, chunks.next()).await {
            Ok(Some(Ok(chunk))) if chunk.is_empty() => {}
            Ok(Some(Ok(chunk))) => return Ok(chunk),
            Ok(None) => return Ok(Bytes::new()),
            Ok(Some(Err(e))) => return Err(OriginError::transient(key, with_causes(&e))),
            Err(_) => return Err(OriginError::transient(key, format!("no byte came for {READ_STALL:?}"))),
        }
    }
}
