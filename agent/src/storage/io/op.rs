//! What engines are told to do: operations that own everything they need, and the answers to them.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::{FileHandle, Purpose};
use crate::buffers::Slot;
use crate::piece::Verified;
use crate::reply::{Receiver, Replies, Sender, Unanswered};
use crate::storage::dir::Dir;

/// Where the result of an operation goes.
pub type Done<T> = Sender<io::Result<T>>;

/// An operation. Whoever ordered it may go away: it owns its file and its buffer.
#[derive(Debug)]
pub enum Op {
    /// Open a file below `dir`.
    Open {
        /// The directory.
        dir: Dir,
        /// The path in it.
        path: String,
        /// What for.
        purpose: Purpose,
        /// The file.
        done: Done<FileHandle>,
    },
    /// Write all of a piece at `offset`, or fail. The file keeps its length.
    Write {
        /// The file.
        file: FileHandle,
        /// Where in it.
        offset: u64,
        /// What.
        piece: Verified,
        /// That it is written.
        done: Done<()>,
    },
    /// Read exactly `len` bytes at `offset` into the start of `slot`.
    Read {
        /// The file.
        file: FileHandle,
        /// Where in it.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// Where to.
        slot: Slot,
        /// The slot, filled.
        done: Done<Slot>,
    },
    /// Write `bytes` at `offset`, through the page cache.
    Append {
        /// The file.
        file: FileHandle,
        /// Where in it.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
        /// The buffer again, and whether all of it is written.
        done: Sender<(io::Result<()>, Vec<u8>)>,
    },
    /// Make everything written to the file lasting.
    Sync {
        /// The file.
        file: FileHandle,
        /// That it is.
        done: Done<()>,
    },
}

/// Cells for the answers of one engine.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    pub(super) files: Replies<io::Result<FileHandle>>,
    pub(super) units: Replies<io::Result<()>>,
    pub(super) slots: Replies<io::Result<Slot>>,
    pub(super) appends: Replies<(io::Result<()>, Vec<u8>)>,
}

/// The result of an operation, when it is there. Dropping it does not stop the operation.
#[must_use = "an operation may fail"]
#[derive(Debug)]
pub struct Answer<T>(pub(super) Receiver<T>);

impl<T> Future for Answer<io::Result<T>> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or_else(|Unanswered| Err(stopped())))
    }
}

impl Future for Answer<(io::Result<()>, Vec<u8>)> {
    type Output = (io::Result<()>, Vec<u8>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or_else(|Unanswered| (Err(stopped()), Vec::new())))
    }
}

fn stopped() -> io::Error {
    io::Error::other("the storage engine stopped")
}
