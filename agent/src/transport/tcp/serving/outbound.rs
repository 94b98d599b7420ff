//! What a serving connection still has to send: frames, then one piece, then the frames that came up meanwhile.

use std::io::{self, IoSlice};
use std::net::Shutdown;

use millstream_agent_core::wire::Frame;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::super::socket::{self, Moved};
use crate::limits::OUT_FRAMES_BYTES_MAX;
use crate::piece::Served;

/// Why sending stopped.
#[derive(Debug)]
pub(super) enum SendError {
    /// The socket failed.
    Io(io::Error),
    /// The file ended too early.
    ShortFile,
}

impl From<io::Error> for SendError {
    fn from(e: io::Error) -> SendError {
        SendError::Io(e)
    }
}

/// What comes after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The socket is full: wait.
    Full,
    /// Go on.
    More,
    /// A piece was sent to its end; go on.
    Piece,
}

/// One step of sending.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) memory: u64,
    pub(super) file: u64,
    pub(super) frames: usize,
    pub(super) then: Sent,
}

impl Step {
    /// Did anything move?
    pub(super) fn any(&self) -> bool {
        self.memory > 0 || self.file > 0 || self.frames > 0
    }
}

struct Piece {
    id: u64,
    served: Served,
    sent: usize,
}

impl Piece {
    fn len(&self) -> usize {
        match &self.served {
            Served::Memory(piece) => piece.len() as usize,
            Served::File { len, .. } => *len as usize,
        }
    }
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Outbound {
    /// Frames before the piece, its header last.
    frames: Vec<u8>,
    frames_sent: usize,
    piece: Option<Piece>,
    /// Frames after the piece.
    later: Vec<u8>,
    closed: bool,
}

impl Outbound {
    /// Anything to send?
    pub(super) fn has_work(&self) -> bool {
        self.piece.is_some() || self.frames_sent < self.frames.len()
    }

    /// The request whose piece is being sent.
    pub(super) fn sending(&self) -> Option<u64> {
        self.piece.as_ref().map(|p| p.id)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Ends this side of the connection.
    pub(super) fn close(&mut self, stream: &TcpStream) -> io::Result<()> {
        self.closed = true;
        match SockRef::from(stream).shutdown(Shutdown::Write) {
            Err(e) if e.kind() != io::ErrorKind::NotConnected => Err(e),
            _ => Ok(()),
        }
    }

    /// Queues a frame. False: so many wait that the peer cannot be reading.
    pub(super) fn queue(&mut self, frame: Frame) -> bool {
        if self.closed {
            return true;
        }
        let to = if self.piece.is_some() { &mut self.later } else { &mut self.frames };
        frame.encode(to);
        self.frames.len() - self.frames_sent + self.later.len() <= OUT_FRAMES_BYTES_MAX
    }

    /// Queues a piece; there must be none.
    pub(super) fn begin(&mut self, id: u64, served: Served) {
        debug_assert!(self.piece.is_none(), "one piece at a time");
        let piece = Piece { id, served, sent: 0 };
        Frame::Data { id, len: piece.len() as u32 }.encode(&mut self.frames);
        self.piece = Some(piece);
    }

    /// One system call's worth of sending.
    pub(super) fn step(&mut self, stream: &TcpStream) -> Result<Step, SendError> {
        let mut step = Step { memory: 0, file: 0, frames: 0, then: Sent::More };
        let waiting = &self.frames[self.frames_sent..];
        let moved = match &self.piece {
            None => socket::write(stream, &[IoSlice::new(waiting)], waiting.len())?,
            Some(Piece { served: Served::Memory(piece), sent, .. }) => {
                let rest = &piece.bytes()[*sent..];
                let bufs = [IoSlice::new(waiting), IoSlice::new(rest)];
                // An empty first buffer is only looked at; the call is the same.
                socket::write(stream, &bufs, waiting.len() + rest.len())?
            }
            Some(_) if !waiting.is_empty() => socket::write_more(stream, waiting)?,
            Some(Piece { served: Served::File { file, offset, len, .. }, sent, .. }) => {
                let rest = *len as usize - sent;
                match socket::send_file(stream, file, offset + *sent as u64, rest)? {
                    Moved::End => return Err(SendError::ShortFile),
                    moved => moved,
                }
            }
        };
        let n = match moved {
            Moved::All(n) => n,
            Moved::Partly(n) => {
                step.then = Sent::Full;
                n
            }
            Moved::End => return Err(SendError::Io(io::ErrorKind::WriteZero.into())),
        };
        step.frames = n.min(waiting.len());
        self.frames_sent += step.frames;
        if self.frames_sent == self.frames.len() {
            self.frames.clear();
            self.frames_sent = 0;
        }
        let of_piece = n - step.frames;
        if let Some(piece) = &mut self.piece {
            piece.sent += of_piece;
            match piece.served {
                Served::Memory(_) => step.memory = of_piece as u64,
                Served::File { .. } => step.file = of_piece as u64,
            }
            if piece.sent == piece.len() {
                self.piece = None;
                std::mem::swap(&mut self.frames, &mut self.later);
                step.then = Sent::Piece;
            }
        }
        Ok(step)
    }
}
