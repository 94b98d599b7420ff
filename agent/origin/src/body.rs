//! The body of one ranged read, copied once into the caller's buffer.

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::time::timeout;

use crate::error::{OriginError, with_causes};
use crate::limits::READ_STALL;

enum Inner {
    Http(Box<reqwest::Response>),
    Stream(BoxStream<'static, object_store::Result<Bytes>>),
}

/// Reads exactly the bytes that were asked for, or fails: a short body is an error, a long one too.
pub struct BodyReader {
    key: String,
    inner: Inner,
    chunk: Bytes,
    left: u64,
}

impl std::fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BodyReader({:?}, {} bytes left)", self.key, self.left)
    }
}

impl BodyReader {
    pub(crate) fn from_response(key: &str, response: reqwest::Response, len: u64) -> BodyReader {
        BodyReader { key: key.to_owned(), inner: Inner::Http(Box::new(response)), chunk: Bytes::new(), left: len }
    }

    pub(crate) fn from_stream(
        key: &str,
        stream: BoxStream<'static, object_store::Result<Bytes>>,
        len: u64,
    ) -> BodyReader {
        BodyReader { key: key.to_owned(), inner: Inner::Stream(stream), chunk: Bytes::new(), left: len }
    }

    /// Bytes that are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Fills at least one byte of `buffer` and returns how many; zero only for an empty buffer.
    ///
    /// # Errors
    /// [`OriginError::Transient`] when the body ends early, breaks, stalls or is longer than announced.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, OriginError> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.chunk.is_empty() {
            self.chunk = self.next_chunk().await?;
        }
        let n = self.chunk.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.chunk[..n]);
        let _ = self.chunk.split_to(n);
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| OriginError::transient(&self.key, "the body is longer than the range asked for"))?;
        Ok(n)
    }

    async fn next_chunk(&mut self) -> Result<Bytes, OriginError> {
        let next = async {
            match &mut self.inner {
                Inner::Http(response) => response.chunk().await.map_err(|e| with_causes(&e)),
                Inner::Stream(stream) => stream.next().await.transpose().map_err(|e| with_causes(&e)),
            }
        };
        match timeout(READ_STALL, next).await {
            Ok(Ok(Some(chunk))) => Ok(chunk),
            Ok(Ok(None)) => {
                let detail = format!("the body ended {} bytes early", self.left);
                Err(OriginError::transient(&self.key, detail))
            }
            Ok(Err(detail)) => Err(OriginError::transient(&self.key, detail)),
            Err(_) => Err(OriginError::transient(&self.key, format!("no byte came for {READ_STALL:?}"))),
        }
    }
}
