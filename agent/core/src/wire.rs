//! The peer protocol's codec: bytes to frames and back, without I/O.
//!
//! Purpose: one description of what travels between two agents. Participants: the shell's transports send and
//! receive; fuzz tests feed it garbage. Goals: every frame has a fixed size, every length is checked before anything
//! is allocated or read for it, and the decoder never looks past the bytes of one frame. Non-goals: piece bytes
//! (they follow a [`Frame::Data`] header raw, straight into the requester's buffer), sockets, timeouts.
//!
//! What the wire says about lengths, piece numbers or checksums is never believed: the receiver compares it with
//! what it asked for. No checksum travels with the bytes; the expected one comes from the manifest.
//!
//! # Layout (little-endian)
//!
//! Each side begins with a [`Hello`] (see [`hello`]); after that the connection carries frames:
//!
//! ```text
//! offset size field
//!      0    1 kind      1 request, 2 data, 3 status, 4 cancel, 5 ping, 6 pong, 7 go away, 8 queue pair, 9 write here,
//!                       10 broken
//!      1    1 code      status: StatusCode; broken: Trouble; every other kind: 0
//!      2    2 reserved  0
//!      4    4 len       request, data, write here: length of the piece in bytes; every other kind: 0
//!      8    8 id        request, data, status, cancel, write here: the request; ping, pong: a number to echo;
//!                       queue pair: its number; go away, broken: 0
//! request and write here:
//!     16   32 digest    the version
//!     48    4 piece
//!     52    4 deadline  milliseconds that the server may wait for the piece
//! write here only:
//!     56    8 address   of the requester's slot
//!     64    4 key       that lets the server's queue pair write to it
//!     68    4 tag       immediate value of each write
//! data only:
//!     16  len bytes of the piece
//! queue pair only:
//!     16   16 gid       the port's address
//!     32    4 psn       first packet number, 24 bits
//!     36    2 lid       InfiniBand's local identifier
//!     38    1 mtu       packet size as a code, 1 to 5
//!     39    1 link      0 InfiniBand, 1 Ethernet
//! ```
//!
//! Where both hellos offer [`Features::RDMA`], each side sends one queue pair; after that pieces are asked for with
//! "write here", and an answer with data is no frame: it is the writes. All other answers are statuses as ever.
//! "Broken" is the last frame of a side that cannot go on with its queue pair, or has none to give: the other side
//! counts why.
//!
//! Each request gets exactly one answer, data or status, in the order in which pieces become available; that holds
//! for cancelled ones too, so that a stream never loses its place.

use millstream_types::limits::PIECE_BYTES_MAX;
use millstream_types::{Digest, PieceNo};

pub mod fuzz;
pub mod hello;

pub use hello::{Features, Hello, Refusal, TokenHash, Version};

/// Bytes of every frame that has nothing behind its header.
pub const HEADER_BYTES: usize = 16;
/// Bytes of [`Frame::Request`].
pub const REQUEST_BYTES: usize = 56;
/// Bytes of [`Frame::QueuePair`].
pub const QUEUE_PAIR_BYTES: usize = 40;
/// Bytes of [`Frame::WriteHere`].
pub const WRITE_HERE_BYTES: usize = 72;
/// Longest frame, without the piece that follows a data header.
pub const FRAME_BYTES_MAX: usize = WRITE_HERE_BYTES;

const LEN_MAX: u32 = PIECE_BYTES_MAX as u32;

/// Why bytes are not this protocol. The connection cannot go on after any of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Does not begin with the magic.
    #[error("not the millstream peer protocol")]
    Magic,
    /// Spoken by a newer or unknown release.
    #[error("peer protocol version {theirs} is not known here; {ours} is")]
    Version {
        /// Theirs.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The other side's name is no UTF-8.
    #[error("the node name is not utf-8")]
    Name,
    /// No such frame.
    #[error("unknown frame kind {kind}")]
    Kind {
        /// What it says.
        kind: u8,
    },
    /// No such code.
    #[error("unknown {what} code {code}")]
    Code {
        /// "status", "refusal", …
        what: &'static str,
        /// What it says.
        code: u8,
    },
    /// A field that must be zero is not.
    #[error("the {field} field of frame kind {kind} must be zero")]
    Reserved {
        /// Which.
        field: &'static str,
        /// In which frame.
        kind: u8,
    },
    /// A piece is never empty nor longer than the largest piece.
    #[error("a piece of {len} bytes was named; 1 to {LEN_MAX} are possible")]
    Length {
        /// What it says.
        len: u32,
    },
}

/// Why a request is not answered with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum StatusCode {
    /// The server neither has the piece nor is receiving it.
    NotHave = 1,
    /// The piece did not become available before the request's deadline.
    Deadline = 2,
    /// The server's piece has another length than the one asked for.
    Length = 3,
    /// The server is going away: ask someone else.
    Draining = 4,
    /// The server has the piece but could not read it.
    Failed = 5,
    /// The requester took the request back before the answer began.
    Cancelled = 6,
}

impl StatusCode {
    /// All of them.
    pub const ALL: [StatusCode; 6] = [
        StatusCode::NotHave,
        StatusCode::Deadline,
        StatusCode::Length,
        StatusCode::Draining,
        StatusCode::Failed,
        StatusCode::Cancelled,
    ];

    fn from_wire(code: u8) -> Result<StatusCode, WireError> {
        let known = StatusCode::ALL.into_iter().find(|c| *c as u8 == code);
        known.ok_or(WireError::Code { what: "status", code })
    }
}

/// Why a side cannot go on with its queue pair, as far as the other side can do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Trouble {
    /// The packets of its writes were not acknowledged.
    RetryExceeded = 1,
    /// The other side's device was not ready to receive.
    ReceiverNotReady = 2,
    /// The other side's device refused the key or the request.
    Refused = 3,
    /// Its own device or port is gone, or paused.
    Device = 4,
    /// It has no queue pair to give.
    Resources = 5,
    /// Something else.
    Other = 6,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Trouble; 6] = [
        Trouble::RetryExceeded,
        Trouble::ReceiverNotReady,
        Trouble::Refused,
        Trouble::Device,
        Trouble::Resources,
        Trouble::Other,
    ];

    /// The reason code of the side that hears it.
    pub fn reason(self) -> &'static str {
        match self {
            Trouble::RetryExceeded => "retry-exceeded",
            Trouble::ReceiverNotReady => "receiver-not-ready",
            Trouble::Refused => "remote-access",
            Trouble::Device => "peer-device",
            Trouble::Resources => "peer-refused",
            Trouble::Other => "peer-fault",
        }
    }

    fn from_wire(code: u8) -> Result<Trouble, WireError> {
        let known = Trouble::ALL.into_iter().find(|t| *t as u8 == code);
        known.ok_or(WireError::Code { what: "trouble", code })
    }
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// "Send me this piece."
    Request {
        /// Chosen by the requester, unique among its open requests on this connection.
        id: u64,
        /// The version.
        digest: Digest,
        /// The piece.
        piece: PieceNo,
        /// The length that the requester's manifest gives.
        len: u32,
        /// How long the server may wait for the piece, in milliseconds.
        deadline_ms: u32,
    },
    /// "Here it is": `len` bytes follow.
    Data {
        /// The request.
        id: u64,
        /// Bytes that follow.
        len: u32,
    },
    /// "You will not get it."
    Status {
        /// The request.
        id: u64,
        /// Why.
        code: StatusCode,
    },
    /// "I no longer want it." Answered by `Status` with `Cancelled`, or by the data that was already on its way.
    Cancel {
        /// The request.
        id: u64,
    },
    /// "Are you there?"
    Ping {
        /// Echoed.
        nonce: u64,
    },
    /// "I am."
    Pong {
        /// The ping's.
        nonce: u64,
    },
    /// "Ask me nothing more."
    GoAway,
    /// "This is my queue pair."
    QueuePair(QueuePair),
    /// "Write this piece into my slot."
    WriteHere {
        /// Chosen by the requester, unique among its open requests on this connection.
        id: u64,
        /// The version.
        digest: Digest,
        /// The piece.
        piece: PieceNo,
        /// The length that the requester's manifest gives.
        len: u32,
        /// How long the server may wait for the piece, in milliseconds.
        deadline_ms: u32,
        /// Where.
        place: RemoteSlot,
    },
    /// "My queue pair is at its end", or "I have none for you".
    Broken {
        /// Why.
        trouble: Trouble,
    },
}

/// One end of a reliable connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePair {
    /// Its number, 24 bits.
    pub number: u32,
    /// The first packet's number, 24 bits.
    pub psn: u32,
    /// The port's address.
    pub gid: [u8; 16],
    /// InfiniBand's local identifier.
    pub lid: u16,
    /// Packet size: 1 is 256 bytes, 5 is 4096.
    pub mtu_code: u8,
    /// InfiniBand, else Ethernet.
    pub infiniband: bool,
}

/// A slot that is lent to the peer of one queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteSlot {
    /// Its first byte.
    pub address: u64,
    /// The key to it.
    pub key: u32,
    /// Comes back with each write.
    pub tag: u32,
}

const REQUEST: u8 = 1;
const DATA: u8 = 2;
const STATUS: u8 = 3;
const CANCEL: u8 = 4;
const PING: u8 = 5;
const PONG: u8 = 6;
const GO_AWAY: u8 = 7;
const QUEUE_PAIR: u8 = 8;
const WRITE_HERE: u8 = 9;
const BROKEN: u8 = 10;
/// Queue pair numbers and packet numbers have 24 bits.
const BITS_24: u32 = 0x00ff_ffff;

impl Frame {
    /// Appends the frame's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, code, len, id) = match *self {
            Frame::Request { id, len, .. } => (REQUEST, 0, len, id),
            Frame::Data { id, len } => (DATA, 0, len, id),
            Frame::Status { id, code } => (STATUS, code as u8, 0, id),
            Frame::Cancel { id } => (CANCEL, 0, 0, id),
            Frame::Ping { nonce } => (PING, 0, 0, nonce),
            Frame::Pong { nonce } => (PONG, 0, 0, nonce),
            Frame::GoAway => (GO_AWAY, 0, 0, 0),
            Frame::QueuePair(pair) => (QUEUE_PAIR, 0, 0, u64::from(pair.number)),
            Frame::WriteHere { id, len, .. } => (WRITE_HERE, 0, len, id),
            Frame::Broken { trouble } => (BROKEN, trouble as u8, 0, 0),
        };
        out.extend_from_slice(&[kind, code, 0, 0]);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
        if let Frame::Request { digest, piece, deadline_ms, .. } | Frame::WriteHere { digest, piece, deadline_ms, .. } =
            *self
        {
            out.extend_from_slice(&digest.0);
            out.extend_from_slice(&piece.to_le_bytes());
            out.extend_from_slice(&deadline_ms.to_le_bytes());
        }
        if let Frame::WriteHere { place, .. } = *self {
            out.extend_from_slice(&place.address.to_le_bytes());
            out.extend_from_slice(&place.key.to_le_bytes());
            out.extend_from_slice(&place.tag.to_le_bytes());
        }
        if let Frame::QueuePair(pair) = *self {
            out.extend_from_slice(&pair.gid);
            out.extend_from_slice(&pair.psn.to_le_bytes());
            out.extend_from_slice(&pair.lid.to_le_bytes());
            out.extend_from_slice(&[pair.mtu_code, u8::from(!pair.infiniband)]);
        }
    }

    /// Takes one frame off the front of `buf`; `Ok(None)` and `buf` untouched when it is not whole yet.
    ///
    /// # Errors
    /// [`WireError`] when the bytes cannot become a frame, as early as that can be said.
    pub fn decode(buf: &mut &[u8]) -> Result<Option<Frame>, WireError> {
        if let Some(&kind) = buf.first()
            && !(REQUEST..=BROKEN).contains(&kind)
        {
            return Err(WireError::Kind { kind });
        }
        let Some((header, rest)) = buf.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = Header::parse(header)?;
        let (frame, rest) = match header.kind {
            REQUEST => {
                header.check_code_zero()?;
                let len = header.piece_len()?;
                let Some((body, rest)) = rest.split_first_chunk::<{ REQUEST_BYTES - HEADER_BYTES }>() else {
                    return Ok(None);
                };
                (header.request(body, len), rest)
            }
            QUEUE_PAIR => {
                header.check_code_zero()?;
                let number = header.number_24()?;
                let Some((body, rest)) = rest.split_first_chunk::<{ QUEUE_PAIR_BYTES - HEADER_BYTES }>() else {
                    return Ok(None);
                };
                (Frame::QueuePair(queue_pair(number, body)?), rest)
            }
            WRITE_HERE => {
                header.check_code_zero()?;
                let len = header.piece_len()?;
                let Some((body, rest)) = rest.split_first_chunk::<{ WRITE_HERE_BYTES - HEADER_BYTES }>() else {
                    return Ok(None);
                };
                (header.write_here(body, len), rest)
            }
            _ => (header.short_frame()?, rest),
        };
        *buf = rest;
        Ok(Some(frame))
    }
}

fn queue_pair(number: u32, body: &[u8; QUEUE_PAIR_BYTES - HEADER_BYTES]) -> Result<QueuePair, WireError> {
    let psn = u32::from_le_bytes(array(body, 16));
    let (mtu_code, link) = (body[22], body[23]);
    let wrong = |field| Err(WireError::Reserved { field, kind: QUEUE_PAIR });
    if psn > BITS_24 {
        return wrong("upper byte of the psn");
    }
    if !(1..=5).contains(&mtu_code) {
        return Err(WireError::Code { what: "mtu", code: mtu_code });
    }
    if link > 1 {
        return Err(WireError::Code { what: "link", code: link });
    }
    let lid = u16::from_le_bytes(array(body, 20));
    Ok(QueuePair { number, psn, gid: array(body, 0), lid, mtu_code, infiniband: link == 0 })
}

struct Header {
    kind: u8,
    code: u8,
    len: u32,
    id: u64,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, WireError> {
        let kind = bytes[0];
        if bytes[2..4] != [0, 0] {
            return Err(WireError::Reserved { field: "reserved", kind });
        }
        let len = u32::from_le_bytes(array(bytes, 4));
        let id = u64::from_le_bytes(array(bytes, 8));
        Ok(Header { kind, code: bytes[1], len, id })
    }

    fn check_code_zero(&self) -> Result<(), WireError> {
        if self.code == 0 { Ok(()) } else { Err(WireError::Reserved { field: "code", kind: self.kind }) }
    }

    fn number_24(&self) -> Result<u32, WireError> {
        if self.len != 0 {
            return Err(WireError::Reserved { field: "len", kind: self.kind });
        }
        let number = u32::try_from(self.id).ok().filter(|n| *n <= BITS_24);
        number.ok_or(WireError::Reserved { field: "upper part of the id", kind: self.kind })
    }

    fn request(&self, body: &[u8], len: u32) -> Frame {
        Frame::Request {
            id: self.id,
            digest: Digest(array(body, 0)),
            piece: u32::from_le_bytes(array(body, 32)),
            len,
            deadline_ms: u32::from_le_bytes(array(body, 36)),
        }
    }

    fn write_here(&self, body: &[u8], len: u32) -> Frame {
        Frame::WriteHere {
            id: self.id,
            digest: Digest(array(body, 0)),
            piece: u32::from_le_bytes(array(body, 32)),
            len,
            deadline_ms: u32::from_le_bytes(array(body, 36)),
            place: RemoteSlot {
                address: u64::from_le_bytes(array(body, 40)),
                key: u32::from_le_bytes(array(body, 48)),
                tag: u32::from_le_bytes(array(body, 52)),
            },
        }
    }

    fn piece_len(&self) -> Result<u32, WireError> {
        if (1..=LEN_MAX).contains(&self.len) { Ok(self.len) } else { Err(WireError::Length { len: self.len }) }
    }

    fn short_frame(&self) -> Result<Frame, WireError> {
        if self.kind != STATUS && self.kind != BROKEN {
            self.check_code_zero()?;
        }
        if self.kind == DATA {
            return Ok(Frame::Data { id: self.id, len: self.piece_len()? });
        }
        if self.len != 0 {
            return Err(WireError::Reserved { field: "len", kind: self.kind });
        }
        match self.kind {
            STATUS => Ok(Frame::Status { id: self.id, code: StatusCode::from_wire(self.code)? }),
            CANCEL => Ok(Frame::Cancel { id: self.id }),
            PING => Ok(Frame::Ping { nonce: self.id }),
            PONG => Ok(Frame::Pong { nonce: self.id }),
            GO_AWAY | BROKEN if self.id != 0 => Err(WireError::Reserved { field: "id", kind: self.kind }),
            BROKEN => Ok(Frame::Broken { trouble: Trouble::from_wire(self.code)? }),
            GO_AWAY => Ok(Frame::GoAway),
            kind => Err(WireError::Kind { kind }),
        }
    }
}

/// `N` bytes from `at`; the caller's fixed-size type guarantees that they are there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests;
