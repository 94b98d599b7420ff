//! What arrives on an asking connection: headers, and pieces that go straight into their slots.
//!
//! One `readv` takes the rest of a piece and the header behind it, so a busy connection pays one system call per
//! chunk. Chunks are small enough to be summed while they are in the core's own cache.

use std::io::{self, IoSliceMut};

use millstream_agent_core::wire::{Frame, HEADER_BYTES, WireError};
use millstream_types::checksum::Crc64Stream;
use tokio::net::TcpStream;

use super::socket::{self, Moved};
use crate::buffers::Slot;
use crate::limits::{PEER_LOW_WATER_MAX, PEER_READ_BYTES};
use crate::pace::Moving;
use crate::piece::Unverified;

/// A piece that is arriving.
struct Body {
    id: u64,
    len: usize,
    filled: usize,
    /// `None`: nobody wants it any more, its bytes are read and dropped.
    into: Option<(Slot, Crc64Stream)>,
    moving: Moving,
}

/// Something whole arrived.
#[derive(Debug)]
pub(super) enum Arrived {
    /// A frame. After [`Frame::Data`] the caller must call [`Inbound::begin`] before it reads on.
    Frame(Frame),
    /// A piece, whole.
    Piece {
        /// The request.
        id: u64,
        /// The piece, unless nobody wants it.
        piece: Option<Unverified>,
    },
}

/// One step of reading.
#[derive(Debug)]
pub(super) enum Step {
    /// Something whole arrived; there may be more.
    Arrived(Arrived),
    /// Part of something arrived; there may be more.
    Progress,
    /// The socket is empty: wait.
    Drained,
    /// The peer closed its side.
    End,
}

/// Why reading stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum InboundError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not our protocol.
    #[error("{0}")]
    Wire(#[from] WireError),
}

/// See the module's documentation.
pub(super) struct Inbound {
    head: [u8; HEADER_BYTES],
    head_filled: usize,
    body: Option<Body>,
    /// The last read came short: after what it brought is dealt with, wait.
    drained: bool,
    low_water: usize,
    scratch: Option<Box<[u8]>>,
    /// Piece bytes since the last look.
    pub(super) bytes: u64,
    /// Of those, bytes that nobody wanted.
    pub(super) dropped: u64,
}

impl Inbound {
    /// `held` came with the greeting. `None`: it is more than one header, and a server that was asked nothing has
    /// nothing to say.
    pub(super) fn new(held: &[u8]) -> Option<Inbound> {
        let mut head = [0; HEADER_BYTES];
        head.get_mut(..held.len())?.copy_from_slice(held);
        Some(Inbound {
            head,
            head_filled: held.len(),
            body: None,
            drained: false,
            low_water: 1,
            scratch: None,
            bytes: 0,
            dropped: 0,
        })
    }

    /// The request whose piece is arriving.
    pub(super) fn arriving(&self) -> Option<u64> {
        self.body.as_ref().map(|b| b.id)
    }

    /// The `len` bytes behind the data header just decoded go into `slot`, or nowhere.
    pub(super) fn begin(&mut self, id: u64, len: u32, slot: Option<Slot>, moving: Moving) {
        let into = slot.map(|slot| (slot, Crc64Stream::default()));
        self.body = Some(Body { id, len: len as usize, filled: 0, into, moving });
    }

    /// How many bytes are worth waking up for.
    fn wanted(&self) -> usize {
        match &self.body {
            Some(body) => (body.len - body.filled).min(PEER_LOW_WATER_MAX),
            None => HEADER_BYTES - self.head_filled,
        }
    }

    /// To be called before waiting for the socket: sets how many bytes wake the task.
    pub(super) fn before_wait(&mut self, stream: &TcpStream) -> io::Result<()> {
        self.drained = false;
        let wanted = self.wanted();
        if wanted != self.low_water {
            socket::set_read_low_water(stream, wanted)?;
            self.low_water = wanted;
        }
        Ok(())
    }

    /// Reads once, unless something whole is here already.
    pub(super) fn step(&mut self, stream: &TcpStream) -> Result<Step, InboundError> {
        if self.body.is_none() && self.head_filled == HEADER_BYTES {
            return self.take_frame();
        }
        if std::mem::take(&mut self.drained) {
            return Ok(Step::Drained);
        }
        let moved = match self.body {
            Some(_) => self.read_body(stream)?,
            None => self.read_head(stream)?,
        };
        match moved {
            Moved::End => return Ok(Step::End),
            Moved::Partly(0) => return Ok(Step::Drained),
            Moved::Partly(_) => self.drained = true,
            Moved::All(_) => {}
        }
        if let Some(body) = self.body.take_if(|b| b.filled == b.len) {
            return Ok(Step::Arrived(Self::take_piece(body)));
        }
        if self.body.is_none() && self.head_filled == HEADER_BYTES {
            return self.take_frame();
        }
        Ok(Step::Progress)
    }

    fn read_head(&mut self, stream: &TcpStream) -> io::Result<Moved> {
        let free = &mut self.head[self.head_filled..];
        let wanted = free.len();
        let moved = socket::read(stream, &mut [IoSliceMut::new(free)], wanted)?;
        if let Moved::All(n) | Moved::Partly(n) = moved {
            self.head_filled += n;
        }
        Ok(moved)
    }

    fn read_body(&mut self, stream: &TcpStream) -> io::Result<Moved> {
        let Some(body) = &mut self.body else { return Ok(Moved::Partly(0)) };
        let chunk = (body.len - body.filled).min(PEER_READ_BYTES);
        let into = match &mut body.into {
            Some((slot, _)) => &mut slot[body.filled..body.filled + chunk],
            None => {
                let scratch = self.scratch.get_or_insert_with(|| vec![0; PEER_READ_BYTES].into_boxed_slice());
                &mut scratch[..chunk]
            }
        };
        // The header behind the piece comes with its last chunk.
        let is_last = body.filled + chunk == body.len;
        let head = if is_last { &mut self.head[..] } else { &mut [] };
        let wanted = chunk + head.len();
        let moved = socket::read(stream, &mut [IoSliceMut::new(into), IoSliceMut::new(head)], wanted)?;
        if let Moved::All(n) | Moved::Partly(n) = moved {
            let of_body = n.min(chunk);
            match &mut body.into {
                Some((slot, crc)) => crc.update(&slot[body.filled..body.filled + of_body]),
                None => self.dropped += of_body as u64,
            }
            body.filled += of_body;
            self.head_filled = n - of_body;
            self.bytes += of_body as u64;
        }
        Ok(moved)
    }

    fn take_piece(body: Body) -> Arrived {
        let len = body.len as u32;
        body.moving.done(u64::from(len));
        let piece = body.into.map(|(slot, crc)| Unverified::new(slot, len, crc.value()));
        Arrived::Piece { id: body.id, piece }
    }

    fn take_frame(&mut self) -> Result<Step, InboundError> {
        let mut view = &self.head[..];
        let frame = Frame::decode(&mut view)?;
        self.head_filled = 0;
        // A request is longer than the header, and servers send none.
        match frame {
            Some(frame) => Ok(Step::Arrived(Arrived::Frame(frame))),
            None => Err(WireError::Kind { kind: self.head[0] }.into()),
        }
    }
}
