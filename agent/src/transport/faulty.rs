//! Peers that misbehave to order: another implementation of [`PieceSource`] and of [`Transport`].
//!
//! Purpose: show that the rest survives what a bad disk, a bad cable or a bad peer does to bytes on their way.
//! A script is text, so that a whole agent can be told to misbehave:
//!
//! ```text
//! flip         one bit of each piece is wrong
//! truncate     the connection breaks off in the middle of each piece
//! swap         another piece of the same length is sent
//! stall        no answer until the deadline
//! stall:250    the answer comes 250 ms late
//! refuse       "I do not have it"
//! flip@3       only every third piece; faults are separated by commas, the first that applies is taken
//! ```

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{MemfdFlags, memfd_create};

use super::{Carrier, FetchError, PieceRequest, PieceSource, Transport};
use crate::buffers::{Arena, Slot};
use crate::limits::FAULTY_ARENA_BYTES;
use crate::piece::{Served, Unverified};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One bit is wrong.
    Flip,
    /// The bytes end too early.
    Truncate,
    /// Another piece comes.
    Swap,
    /// Nothing comes, for ever or for this long.
    Stall(Option<Duration>),
    /// The piece is said not to be here.
    Refuse,
}

/// Text that is no script of faults.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no fault; write flip, truncate, swap, stall, stall:MILLISECONDS or refuse, each with @EVERY or without"
)]
pub struct FaultSpecError {
    text: String,
}

/// Which pieces go wrong, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultScript(Vec<(Fault, u64)>);

impl FaultScript {
    /// The fault of the `n`th piece, counted from zero.
    pub fn nth(&self, n: u64) -> Option<Fault> {
        self.0.iter().find(|(_, every)| (n + 1).is_multiple_of(*every)).map(|(fault, _)| *fault)
    }
}

impl FromStr for FaultScript {
    type Err = FaultSpecError;

    fn from_str(text: &str) -> Result<FaultScript, FaultSpecError> {
        let one = |part: &str| -> Option<(Fault, u64)> {
            let (fault, every) = match part.split_once('@') {
                Some((fault, every)) => (fault, every.parse().ok().filter(|n| *n > 0)?),
                None => (part, 1),
            };
            let fault = match fault.split_once(':') {
                Some(("stall", ms)) => Fault::Stall(Some(Duration::from_millis(ms.parse().ok()?))),
                Some(_) => return None,
                None => match fault {
                    "flip" => Fault::Flip,
                    "truncate" => Fault::Truncate,
                    "swap" => Fault::Swap,
                    "stall" => Fault::Stall(None),
                    "refuse" => Fault::Refuse,
                    _ => return None,
                },
            };
            Some((fault, every))
        };
        text.split(',')
            .map(|part| one(part.trim()).ok_or_else(|| FaultSpecError { text: part.to_owned() }))
            .collect::<Result<_, _>>()
            .map(FaultScript)
    }
}

/// Serves what another source serves, wrong.
pub struct FaultySource {
    inner: Arc<dyn PieceSource>,
    script: FaultScript,
    served: AtomicU64,
    arena: Arc<Arena>,
}

impl FaultySource {
    /// `spec` as in the module's documentation.
    ///
    /// # Errors
    /// [`FaultSpecError`] names the part that is no fault.
    pub fn from_spec(spec: &str, inner: Arc<dyn PieceSource>) -> Result<FaultySource, FaultSpecError> {
        let script = spec.parse()?;
        let arena = Arena::new(FAULTY_ARENA_BYTES).map_err(|e| FaultSpecError { text: format!("{spec} ({e})") })?;
        Ok(FaultySource { inner, script, served: AtomicU64::new(0), arena })
    }

    /// The bytes of a piece, to be spoilt.
    async fn copy(&self, served: &Served) -> Option<(Slot, u32)> {
        match served {
            Served::Memory(piece) => {
                let mut slot = self.arena.slot(piece.bytes().len()).await;
                slot[..piece.bytes().len()].copy_from_slice(piece.bytes());
                Some((slot, piece.len()))
            }
            Served::File { file, offset, len, .. } => {
                let mut slot = self.arena.slot(*len as usize).await;
                file.read_exact_at(&mut slot[..*len as usize], *offset).ok()?;
                Some((slot, *len))
            }
        }
    }

    async fn flip(&self, served: Served, n: u64) -> Option<Served> {
        let (mut slot, len) = self.copy(&served).await?;
        flip_bit(&mut slot, len, n);
        vouch(slot, len)
    }

    /// A file that ends in the middle of the piece: the server has promised more than it can send.
    async fn truncate(&self, served: Served) -> Option<Served> {
        let (slot, len) = self.copy(&served).await?;
        let mut file = File::from(memfd_create("truncated", MemfdFlags::CLOEXEC).ok()?);
        file.write_all(&slot[..len as usize / 2]).ok()?;
        let crc = Unverified::sum(slot, len).crc();
        Some(Served::File { file: Arc::new(file), offset: 0, len, crc })
    }

    /// A neighbour of the same length, or, where there is none, the piece's bytes in another order.
    async fn swap(&self, request: PieceRequest, served: Served) -> Option<Served> {
        for piece in [request.piece.checked_sub(1), request.piece.checked_add(1)].into_iter().flatten() {
            let neighbour = PieceRequest { piece, ..request };
            // A neighbour that is not here yet is not waited for.
            if let Some(other) = self.inner.open(neighbour, Duration::ZERO).await
                && len_of(&other) == request.len
            {
                return Some(other);
            }
        }
        let (mut slot, len) = self.copy(&served).await?;
        slot[..len as usize].reverse();
        vouch(slot, len)
    }
}

fn len_of(served: &Served) -> u32 {
    match served {
        Served::Memory(piece) => piece.len(),
        Served::File { len, .. } => *len,
    }
}

fn flip_bit(slot: &mut Slot, len: u32, n: u64) {
    let at = (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % u64::from(len.max(1))) as usize;
    slot[at] ^= 1 << (n % 8);
}

/// Spoilt bytes as a liar serves them: verified against themselves.
fn vouch(slot: Slot, len: u32) -> Option<Served> {
    let piece = Unverified::sum(slot, len);
    let crc = piece.crc();
    piece.verify(crc).ok().map(Served::Memory)
}

#[async_trait]
impl PieceSource for FaultySource {
    async fn open(&self, request: PieceRequest, deadline: Duration) -> Option<Served> {
        let served = self.inner.open(request, deadline).await?;
        let n = self.served.fetch_add(1, Relaxed);
        match self.script.nth(n) {
            None => Some(served),
            Some(Fault::Flip) => self.flip(served, n).await,
            Some(Fault::Truncate) => self.truncate(served).await,
            Some(Fault::Swap) => self.swap(request, served).await,
            Some(Fault::Stall(Some(time))) if time < deadline => {
                tokio::time::sleep(time).await;
                Some(served)
            }
            Some(Fault::Stall(_)) => {
                tokio::time::sleep(deadline).await;
                None
            }
            Some(Fault::Refuse) => None,
        }
    }
}

/// Fetches what another transport fetches, and spoils it on arrival.
pub struct FaultyTransport<T> {
    inner: T,
    script: FaultScript,
    fetched: AtomicU64,
}

impl<T: Transport> FaultyTransport<T> {
    /// `spec` as in the module's documentation; `truncate` is a broken connection, `swap` reversed bytes.
    ///
    /// # Errors
    /// [`FaultSpecError`] names the part that is no fault.
    pub fn from_spec(spec: &str, inner: T) -> Result<FaultyTransport<T>, FaultSpecError> {
        Ok(FaultyTransport { inner, script: spec.parse()?, fetched: AtomicU64::new(0) })
    }
}

impl<T: fmt::Debug> fmt::Debug for FaultyTransport<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyTransport").field("inner", &self.inner).field("script", &self.script).finish()
    }
}

impl<T: Transport> Transport for FaultyTransport<T> {
    fn carrier(&self) -> Carrier {
        self.inner.carrier()
    }

    async fn fetch(
        &self,
        peer: &str,
        request: PieceRequest,
        slot: Slot,
        deadline: Duration,
    ) -> Result<Unverified, FetchError> {
        let n = self.fetched.fetch_add(1, Relaxed);
        let fault = self.script.nth(n);
        match fault {
            Some(Fault::Stall(time)) => {
                tokio::time::sleep(time.unwrap_or(deadline).min(deadline)).await;
                if time.is_none_or(|t| t >= deadline) {
                    return Err(FetchError::Timeout { peer: peer.to_owned(), after: deadline });
                }
            }
            Some(Fault::Refuse) => return Err(FetchError::NotHave { peer: peer.to_owned() }),
            Some(Fault::Truncate) => {
                return Err(FetchError::Unreachable { peer: peer.to_owned(), detail: "broken by a script".into() });
            }
            None | Some(Fault::Flip | Fault::Swap) => {}
        }
        let piece = self.inner.fetch(peer, request, slot, deadline).await?;
        if !matches!(fault, Some(Fault::Flip | Fault::Swap)) {
            return Ok(piece);
        }
        let len = piece.len();
        let mut slot = piece.into_slot();
        if fault == Some(Fault::Flip) {
            flip_bit(&mut slot, len, n);
        } else {
            slot[..len as usize].reverse();
        }
        Ok(Unverified::sum(slot, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_read() {
        let script: FaultScript = "flip@3, stall:20@2".parse().unwrap();
        let stall = Some(Fault::Stall(Some(Duration::from_millis(20))));
        assert_eq!(
            [0, 1, 2, 3, 4, 5].map(|n| script.nth(n)),
            [None, stall, Some(Fault::Flip), stall, None, Some(Fault::Flip)]
        );
        assert_eq!("stall".parse::<FaultScript>().unwrap().nth(7), Some(Fault::Stall(None)));
        for bad in ["", "flop", "flip@0", "flip@x", "stall:", "flip:3", "flip,,swap"] {
            assert!(bad.parse::<FaultScript>().is_err(), "{bad:?}");
        }
    }
}
