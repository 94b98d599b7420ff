//! Bodies: bytes read in frames that are used again, and what faults and rate limits do to them on the way out.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use hyper::body::{Body, Frame, SizeHint};
use s3s::StdError;
use s3s::stream::{ByteStream, RemainingLength};
use tokio::time::{Instant, Sleep};

use crate::connection::Connection;
use crate::limits::{FLUSH_BEFORE_CUT, FRAME_BYTES, FRAME_POOL_MAX, PACED_FRAME_BYTES};
use crate::object::Reader;
use crate::stats::KeyCounters;

/// Frame buffers that come back when their bytes are sent.
#[derive(Clone, Default)]
pub(crate) struct FramePool(Arc<Mutex<Vec<Vec<u8>>>>);

struct Pooled {
    buf: Vec<u8>,
    len: usize,
    pool: FramePool,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.buf[..self.len]
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let buf = std::mem::take(&mut self.buf);
        let mut pool = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < FRAME_POOL_MAX {
            pool.push(buf);
        }
    }
}

impl FramePool {
    fn take(&self) -> Vec<u8> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.pop().unwrap_or_else(|| vec![0; FRAME_BYTES])
    }
}

/// A range of an object as frames. Reads block, briefly: this is a test server, and files come from the page cache.
pub(crate) struct ContentStream {
    reader: Reader,
    at: u64,
    end: u64,
    pool: FramePool,
}

impl ContentStream {
    pub(crate) fn new(reader: Reader, range: std::ops::Range<u64>, pool: FramePool) -> Self {
        ContentStream { reader, at: range.start, end: range.end, pool }
    }

    fn next_frame(&mut self) -> Result<Bytes, StdError> {
        let want = (self.end - self.at).min(FRAME_BYTES as u64) as usize;
        if let Reader::Memory(bytes) = &self.reader {
            let from = self.at as usize;
            self.at += want as u64;
            return Ok(bytes.slice(from..from + want));
        }
        let mut buf = self.pool.take();
        let len = self.reader.read_at(self.at, &mut buf[..want])?;
        if len == 0 {
            return Err("the file became shorter".into());
        }
        self.at += len as u64;
        let pool = self.pool.clone();
        Ok(Bytes::from_owner(Pooled { buf, len, pool }))
    }
}

impl Stream for ContentStream {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.at >= self.end {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(self.next_frame()))
    }
}

impl ByteStream for ContentStream {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact((self.end - self.at) as usize)
    }
}

/// A rate that many requests share: whoever takes bytes owes the time for them.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    bytes_per_s: AtomicU64,
    /// When the bytes taken so far will have been paid for.
    paid_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_s: Option<u64>) -> Pace {
        let pace = Pace::default();
        pace.set(bytes_per_s);
        pace
    }

    /// `None`: no limit.
    pub(crate) fn set(&self, bytes_per_s: Option<u64>) {
        let rate = bytes_per_s.map_or(0, |rate| rate.max(1));
        self.bytes_per_s.store(rate, Ordering::Relaxed);
    }

    fn holds(&self) -> bool {
        self.bytes_per_s.load(Ordering::Relaxed) != 0
    }

    /// Takes `bytes`; until when to wait before sending them.
    fn take(&self, bytes: usize) -> Option<Instant> {
        let rate = self.bytes_per_s.load(Ordering::Relaxed);
        if rate == 0 {
            return None;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let at = paid_at.map_or(now, |at| at.max(now)) + cost;
        *paid_at = Some(at);
        Some(at)
    }
}

/// How a body ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// As if that were all.
    End,
    /// The connection is closed.
    Fin,
    /// The connection is reset.
    Rst,
    /// Nothing comes any more.
    Stall,
}

/// What happens to a body on its way out.
#[derive(Default)]
pub(crate) struct Effects {
    pub(crate) cut: Option<(u64, Cut)>,
    pub(crate) corrupt_at: Vec<u64>,
    pub(crate) paces: Vec<Arc<Pace>>,
}

/// The body of an answer.
pub(crate) struct OutBody {
    inner: s3s::Body,
    effects: Effects,
    counters: Option<Arc<KeyCounters>>,
    connection: Option<Arc<Connection>>,
    sent: u64,
    /// A frame that waits for its time, and what is left of the one it was cut from.
    waiting: Option<(Pin<Box<Sleep>>, Bytes)>,
    rest: Bytes,
    flushing: Option<Pin<Box<Sleep>>>,
}

impl OutBody {
    pub(crate) fn plain(inner: s3s::Body) -> OutBody {
        OutBody::new(inner, Effects::default(), None, None)
    }

    pub(crate) fn new(
        inner: s3s::Body,
        effects: Effects,
        counters: Option<Arc<KeyCounters>>,
        connection: Option<Arc<Connection>>,
    ) -> OutBody {
        OutBody { inner, effects, counters, connection, sent: 0, waiting: None, rest: Bytes::new(), flushing: None }
    }

    /// Cuts the frame where the body ends early and where a rate wants smaller ones.
    fn shape(&mut self, mut frame: Bytes) -> Bytes {
        let mut max = frame.len();
        if self.effects.paces.iter().any(|pace| pace.holds()) {
            max = max.min(PACED_FRAME_BYTES);
        }
        if let Some((at, _)) = self.effects.cut {
            max = max.min((at - self.sent) as usize);
        }
        if max < frame.len() {
            self.rest = frame.split_off(max);
        }
        let (start, end) = (self.sent, self.sent + frame.len() as u64);
        for &at in &self.effects.corrupt_at {
            if (start..end).contains(&at) {
                let mut bytes = frame.to_vec();
                bytes[(at - start) as usize] ^= 0x10;
                frame = bytes.into();
            }
        }
        frame
    }

    fn send(&mut self, frame: Bytes) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        self.sent += frame.len() as u64;
        if let Some(counters) = &self.counters {
            let order = Ordering::Relaxed;
            counters.bytes.fetch_add(frame.len() as u64, order);
        }
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn cut(&mut self, cut: Cut, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        if matches!(cut, Cut::Fin | Cut::Rst) {
            // What came before is still in buffers: an error now would take it along.
            let flushed = || Box::pin(tokio::time::sleep(FLUSH_BEFORE_CUT));
            std::task::ready!(self.flushing.get_or_insert_with(flushed).as_mut().poll(cx));
        }
        match cut {
            Cut::End => Poll::Ready(None),
            Cut::Fin => Poll::Ready(Some(Err("cut by order".into()))),
            Cut::Rst => {
                if let Some(connection) = &self.connection {
                    connection.reset_on_close();
                }
                Poll::Ready(Some(Err("reset by order".into())))
            }
            // Hyper notices by itself when the other side goes away.
            Cut::Stall => Poll::Pending,
        }
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        loop {
            if let Some((sleep, _)) = &mut this.waiting {
                std::task::ready!(sleep.as_mut().poll(cx));
                if let Some((_, frame)) = this.waiting.take() {
                    return this.send(frame);
                }
            }
            if let Some((at, cut)) = this.effects.cut
                && this.sent >= at
            {
                return this.cut(cut, cx);
            }
            let next = match this.rest.is_empty() {
                false => std::mem::take(&mut this.rest),
                true => match std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => data,
                        Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                    },
                    Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                    None => return Poll::Ready(None),
                },
            };
            let frame = this.shape(next);
            let takes = this.effects.paces.iter();
            match takes.filter_map(|pace| pace.take(frame.len())).max() {
                Some(at) => this.waiting = Some((Box::pin(tokio::time::sleep_until(at)), frame)),
                None => return this.send(frame),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let idle = self.waiting.is_none() && self.rest.is_empty();
        idle && self.effects.cut.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // The length header says it; after faults this could only be wrong.
        match self.effects.cut {
            None if self.sent == 0 => Body::size_hint(&self.inner),
            _ => SizeHint::default(),
        }
    }
}
