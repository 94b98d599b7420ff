//! The greeting: who speaks, which protocol, which carriers, with which right.
//!
//! The connecting side sends its [`Hello`], the serving side answers with its own, whose verdict is a welcome or a
//! [`Refusal`]; after a refusal the connection closes. The first twelve bytes mean the same in every version, so
//! that two releases that cannot talk can at least say so.
//!
//! ```text
//! offset size field
//!      0    8 magic     "mlstream"
//!      8    2 version   Version
//!     10    1 verdict   0 from the connecting side, and as a welcome; else Refusal
//!     11    1 name_len  bytes of the name that ends the hello
//!     12    2 window    requests that this side accepts at once on this connection
//!     14    2 reserved  0
//!     16    8 features  bit set; what both sides set is in force
//!     24   32 token     SHA-256 of the cluster's shared secret; zeros without one
//!     56   32 auth      zeros; kept for a challenge that proves the secret without showing its hash
//!     88    n name      UTF-8 name of the node
//! ```

use super::{WireError, array};

/// Bytes of a hello before the name.
pub const HELLO_FIXED_BYTES: usize = 88;
/// Longest hello.
pub const HELLO_BYTES_MAX: usize = HELLO_FIXED_BYTES + u8::MAX as usize;

const MAGIC: [u8; 8] = *b"mlstream";
/// Up to and with `name_len`: the part that no version changes.
const COMMON_BYTES: usize = 12;

/// Versions of the peer protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Version {
    /// The first: pipelined requests, answers in order of availability, raw piece bytes.
    V1 = 1,
}

impl Version {
    /// What this release speaks.
    pub const CURRENT: Version = Version::V1;
}

/// What a side can do beyond the basics, as a bit set. Unknown bits are kept and mean nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Nothing beyond the basics.
    pub const NONE: Features = Features(0);
    /// Pieces may travel by one-sided RDMA write.
    pub const RDMA: Features = Features(1);

    /// Are all of `other` set?
    pub fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// What both sides can do.
    pub fn common(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }
}

/// SHA-256 of the cluster's shared secret. Does not print itself.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    /// Equal? Takes the same time whatever differs.
    pub fn matches(&self, other: &TokenHash) -> bool {
        self.0.iter().zip(&other.0).fold(0, |acc, (a, b)| acc | (a ^ b)) == 0
    }
}

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// Why a connection is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// It does not speak the connecting side's version.
    Version = 1,
    /// Not the same cluster secret.
    Token = 2,
    /// Too many connections.
    Busy = 3,
    /// It is going away.
    Draining = 4,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Refusal; 4] = [Refusal::Version, Refusal::Token, Refusal::Busy, Refusal::Draining];

    /// For logs, errors and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Version => "protocol version",
            Refusal::Token => "cluster token",
            Refusal::Busy => "too many connections",
            Refusal::Draining => "draining",
        }
    }
}

/// One side's greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// From the serving side: `Some` says no.
    pub refusal: Option<Refusal>,
    /// Requests accepted at once on this connection.
    pub window: u16,
    /// What this side can do.
    pub features: Features,
    /// The cluster.
    pub token: TokenHash,
    /// Kept for a challenge; zeros.
    pub auth: [u8; 32],
    /// The node. Longer than 255 bytes is cut.
    pub node: String,
}

impl Hello {
    /// Appends the hello's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut name_len = self.node.len().min(usize::from(u8::MAX));
        while !self.node.is_char_boundary(name_len) {
            name_len -= 1;
        }
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&(Version::CURRENT as u16).to_le_bytes());
        out.extend_from_slice(&[self.refusal.map_or(0, |r| r as u8), name_len as u8]);
        out.extend_from_slice(&self.window.to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&self.features.0.to_le_bytes());
        out.extend_from_slice(&self.token.0);
        out.extend_from_slice(&self.auth);
        out.extend_from_slice(&self.node.as_bytes()[..name_len]);
    }

    /// Takes a hello off the front of `buf`; `Ok(None)` and `buf` untouched when it is not whole yet.
    ///
    /// # Errors
    /// [`WireError`] as soon as it is certain that this will be none: foreign bytes are refused at the first
    /// byte that differs from the magic.
    pub fn decode(buf: &mut &[u8]) -> Result<Option<Hello>, WireError> {
        let known = buf.len().min(MAGIC.len());
        if buf[..known] != MAGIC[..known] {
            return Err(WireError::Magic);
        }
        let Some(common) = buf.first_chunk::<COMMON_BYTES>() else {
            return Ok(None);
        };
        let theirs = u16::from_le_bytes(array(common, 8));
        if theirs != Version::CURRENT as u16 {
            return Err(WireError::Version { theirs, ours: Version::CURRENT as u16 });
        }
        let refusal = match common[10] {
            0 => None,
            code => Some(
                Refusal::ALL.into_iter().find(|r| *r as u8 == code).ok_or(WireError::Code { what: "refusal", code })?,
            ),
        };
        let whole = HELLO_FIXED_BYTES + usize::from(common[11]);
        let Some((hello, rest)) = buf.split_at_checked(whole) else {
            return Ok(None);
        };
        if hello[14..16] != [0, 0] {
            return Err(WireError::Reserved { field: "reserved", kind: 0 });
        }
        let node = std::str::from_utf8(&hello[HELLO_FIXED_BYTES..]).map_err(|_| WireError::Name)?;
        let hello = Hello {
            refusal,
            window: u16::from_le_bytes(array(hello, 12)),
            features: Features(u64::from_le_bytes(array(hello, 16))),
            token: TokenHash(array(hello, 24)),
            auth: array(hello, 56),
            node: node.to_owned(),
        };
        *buf = rest;
        Ok(Some(hello))
    }
}
