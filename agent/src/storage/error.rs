//! What can go wrong in the store, by operation. The system's answer is part of the text: reports carry only text.

use std::io;

use millstream_types::{Crc64, Digest, PieceNo, ShardNo};
use rustix::io::Errno;

use super::pins::Keeper;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another agent uses the data directory.
    #[error("another agent runs on {path}{holder}; stop it or choose another --data-dir")]
    Locked {
        /// The data directory.
        path: String,
        /// " (process 123)", where known.
        holder: String,
    },
    /// The disk, or its permissions.
    #[error("cannot set up {path}")]
    Disk {
        /// The data directory.
        path: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Why a version cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// Another version of that very name is here: its files would mix with ours.
    #[error("{name} is here already with other content (manifest {other}); evict that first")]
    NameTaken {
        /// name@version.
        name: String,
        /// The digest that is here.
        other: Digest,
    },
    /// The disk.
    #[error("cannot set up {name} on disk: {error}")]
    Disk {
        /// name@version.
        name: String,
        /// The system's answer.
        error: io::Error,
    },
}

impl DatasetError {
    /// Is the disk full, or a quota of the file system used up?
    pub fn is_no_space(&self) -> bool {
        matches!(self, DatasetError::Disk { error, .. } if is_no_space(error))
    }
}

/// Why a piece cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The version is not open here.
    #[error("version {0} is not open here")]
    NotOpen(Digest),
    /// The bytes are not that piece: another length, another checksum, or no such piece.
    #[error("{detail} for piece {piece} of {digest}")]
    WrongPiece {
        /// The version.
        digest: Digest,
        /// The piece.
        piece: PieceNo,
        /// What does not fit.
        detail: &'static str,
    },
    /// The disk.
    #[error("cannot write piece {piece} of {key:?}: {error}")]
    Disk {
        /// The shard.
        key: String,
        /// The piece.
        piece: PieceNo,
        /// The system's answer.
        error: io::Error,
    },
}

impl WriteError {
    /// Is the disk full, or a quota of the file system used up?
    pub fn is_no_space(&self) -> bool {
        matches!(self, WriteError::Disk { error, .. } if is_no_space(error))
    }
}

/// Is the disk full, or a quota of the file system used up?
pub(super) fn is_no_space(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull
        || matches!(Errno::from_io_error(error), Some(Errno::NOSPC | Errno::DQUOT))
}

/// Why a piece cannot be served from the disk.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The version is not open here.
    #[error("version {0} is not open here")]
    NotOpen(Digest),
    /// The piece is not on disk here.
    #[error("piece {piece} of {digest} is not here")]
    NotHere {
        /// The version.
        digest: Digest,
        /// The piece.
        piece: PieceNo,
    },
    /// The disk.
    #[error("cannot open {key:?}: {error}")]
    Disk {
        /// The shard.
        key: String,
        /// The system's answer.
        error: io::Error,
    },
}

/// Why a shard was not made visible.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The version is not open here.
    #[error("version {0} is not open here")]
    NotOpen(Digest),
    /// Pieces lack.
    #[error("{key:?} lacks {missing} pieces")]
    Incomplete {
        /// The shard.
        key: String,
        /// How many.
        missing: u32,
    },
    /// The whole is not what the origin says.
    #[error("{key:?} should have {expected}, but has {actual}")]
    Mismatch {
        /// The shard.
        key: String,
        /// The origin's checksum.
        expected: String,
        /// Ours.
        actual: String,
    },
    /// The disk gave back other bytes than were written.
    #[error("the disk changed piece {piece} of {key:?}: {expected} was written, {actual} read")]
    Corrupt {
        /// The shard.
        key: String,
        /// The piece.
        piece: PieceNo,
        /// What was written.
        expected: Crc64,
        /// What was read.
        actual: Crc64,
    },
    /// The disk.
    #[error("cannot seal {key:?}: {error}")]
    Disk {
        /// The shard.
        key: String,
        /// The system's answer.
        error: io::Error,
    },
}

/// Why a shard could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// The version is not open here.
    #[error("version {0} is not open here")]
    NotOpen(Digest),
    /// The disk.
    #[error("cannot remove {key:?}: {error}")]
    Disk {
        /// The shard.
        key: String,
        /// The system's answer.
        error: io::Error,
    },
}

/// Why a version was not evicted.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// The version is not open here.
    #[error("version {0} is not open here")]
    NotOpen(Digest),
    /// Someone keeps it.
    #[error("{name} is kept here by {}; unpin it or end its readers first", keeper_words(*.keeper))]
    Kept {
        /// name@version.
        name: String,
        /// Who.
        keeper: Keeper,
    },
    /// The disk.
    #[error("cannot remove {name}: {error}")]
    Disk {
        /// name@version.
        name: String,
        /// The system's answer.
        error: io::Error,
    },
}

fn keeper_words(keeper: Keeper) -> String {
    match keeper {
        Keeper::Nobody => "nobody".into(),
        Keeper::Pin => "a pin".into(),
        Keeper::Leases(n) => format!("{n} open readers"),
    }
}

/// What is wrong with a sealed shard on disk.
#[derive(Debug, thiserror::Error)]
pub enum BadShard {
    /// It is not sealed here, or its version is not open.
    #[error("shard {shard} of {digest} is not sealed here")]
    NotSealed {
        /// The version.
        digest: Digest,
        /// The shard.
        shard: ShardNo,
    },
    /// A piece is not what was verified.
    #[error("piece {piece} of {key:?} should have {expected}, but has {actual}")]
    Piece {
        /// The shard.
        key: String,
        /// The piece.
        piece: PieceNo,
        /// What was verified.
        expected: Crc64,
        /// What was read.
        actual: Crc64,
    },
    /// The file has another length.
    #[error("{key:?} should have {expected} bytes, but has {actual}")]
    Length {
        /// The shard.
        key: String,
        /// Bytes in the manifest.
        expected: u64,
        /// Bytes on disk.
        actual: u64,
    },
    /// It cannot be read.
    #[error("cannot read {key:?}: {error}")]
    Unreadable {
        /// The shard.
        key: String,
        /// The system's answer.
        error: io::Error,
    },
}

impl BadShard {
    /// The piece to blame, where there is one, and expected and actual as text.
    pub fn piece_parts(&self) -> (Option<PieceNo>, String, String) {
        match self {
            BadShard::Piece { piece, expected, actual, .. } => (Some(*piece), expected.to_string(), actual.to_string()),
            BadShard::Length { expected, actual, .. } => (None, format!("{expected} bytes"), format!("{actual} bytes")),
            BadShard::Unreadable { error, .. } => (None, String::new(), error.to_string()),
            BadShard::NotSealed { .. } => (None, String::new(), String::new()),
        }
    }
}
