//! What can go wrong with a fetch: one list for agents, coordinator and simulator.

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
