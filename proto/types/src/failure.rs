//! What can go wrong with a fetch: one list for agents, coordinator and simulator.

use crate::{Crc64, PieceNo};

/// What went wrong with a fetch. The names of [`FailureKind::as_str`] are what travels and what people see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// Bytes that do not match the manifest.
    Checksum,
    /// No connection, or it broke.
    Unreachable,
    /// The source did not answer in time.
    Timeout,
    /// The source does not have the piece.
    NotHave,
    /// The source broke the peer protocol.
    Protocol,
    /// The origin asks for fewer requests (503 SlowDown, 429).
    Throttled,
    /// The origin failed in a way that may pass (5xx, short body, reset).
    OriginTransient,
    /// The object is not the one that was pinned (412, changed ETag or length).
    OriginChanged,
    /// The origin refuses us (401, 403) or has no such object (404).
    OriginDenied,
    /// The node has no room.
    NoSpace,
    /// The node's disk failed.
    Disk,
    /// The node is shutting down or was told to stop.
    Cancelled,
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [FailureKind; 12] = [
        FailureKind::Checksum,
        FailureKind::Unreachable,
        FailureKind::Timeout,
        FailureKind::NotHave,
        FailureKind::Protocol,
        FailureKind::Throttled,
        FailureKind::OriginTransient,
        FailureKind::OriginChanged,
        FailureKind::OriginDenied,
        FailureKind::NoSpace,
        FailureKind::Disk,
        FailureKind::Cancelled,
    ];

    /// The name on the wire and in reasons.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureKind::Checksum => "checksum",
            FailureKind::Unreachable => "unreachable",
            FailureKind::Timeout => "timeout",
            FailureKind::NotHave => "not-have",
            FailureKind::Protocol => "protocol",
            FailureKind::Throttled => "throttled",
            FailureKind::OriginTransient => "origin-transient",
            FailureKind::OriginChanged => "origin-changed",
            FailureKind::OriginDenied => "origin-denied",
            FailureKind::NoSpace => "no-space",
            FailureKind::Disk => "disk",
            FailureKind::Cancelled => "cancelled",
        }
    }

    /// From the name; `None` for an unknown one.
    pub fn parse(name: &str) -> Option<FailureKind> {
        FailureKind::ALL.into_iter().find(|k| k.as_str() == name)
    }
}

/// A failed fetch, or a failed attempt of one, with everything a person needs to know of it. `S`: how sources are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure<S> {
    /// What kind.
    pub kind: FailureKind,
    /// Whom it was read from.
    pub source: S,
    /// The piece, where one is to blame.
    pub piece: Option<PieceNo>,
    /// What the manifest says (for [`FailureKind::Checksum`]).
    pub expected: Option<Crc64>,
    /// What arrived (for [`FailureKind::Checksum`]).
    pub actual: Option<Crc64>,
    /// The underlying error, in words.
    pub detail: String,
    /// How long ago the source was asked, in microseconds: what it answered is no older. Zero: not asked.
    pub asked_us: u64,
}

impl<S> Failure<S> {
    /// One of which nothing more is known.
    pub fn new(kind: FailureKind, source: S, detail: String) -> Failure<S> {
        Failure { kind, source, piece: None, expected: None, actual: None, detail, asked_us: 0 }
    }

    /// The same, with its source named in another way.
    pub fn named<T>(self, name: impl FnOnce(S) -> T) -> Failure<T> {
        let Failure { kind, source, piece, expected, actual, detail, asked_us } = self;
        Failure { kind, source: name(source), piece, expected, actual, detail, asked_us }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_and_is_nobody_elses() {
        for kind in FailureKind::ALL {
            assert_eq!(FailureKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(FailureKind::parse("Checksum"), None);
    }
}
