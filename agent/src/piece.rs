//! Pieces in memory: received, verified, served. Bytes that are not verified are another type than bytes that are,
//! so that code which forwards, writes or exposes unverified bytes does not compile.
//!
//! Participants: receivers build [`Unverified`]; whoever knows the expected checksum turns it into [`Verified`];
//! storage writes it and the serving side sends it, at the same time, from the same slot. Non-goals: where the
//! expected checksum comes from.

use std::fs::File;
use std::sync::Arc;

use millstream_types::Crc64;

use crate::buffers::{SharedSlot, Slot};
use crate::limits::IO_ALIGN;
use crate::transport::Carrier;

/// Bytes that are not what the manifest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, got {actual}")]
pub struct Mismatch {
    /// What the manifest says.
    pub expected: Crc64,
    /// What the bytes sum to.
    pub actual: Crc64,
}

/// A piece as it arrived. Nothing can be done with its bytes but sum them.
#[derive(Debug)]
pub struct Unverified {
    slot: Slot,
    len: u32,
    crc: Crc64,
    carrier: Carrier,
}

impl Unverified {
    /// `len` bytes at the start of `slot` that sum to `crc`, computed by the receiver while they were in cache.
    ///
    /// Panics when the slot is shorter than `len`.
    pub fn new(slot: Slot, len: u32, crc: Crc64) -> Unverified {
        assert!(len as usize <= slot.capacity(), "{len} bytes in {slot:?}");
        Unverified { slot, len, crc, carrier: Carrier::Tcp }
    }

    /// Sums `len` bytes at the start of `slot`.
    ///
    /// Panics when the slot is shorter than `len`.
    pub fn sum(slot: Slot, len: u32) -> Unverified {
        let crc = Crc64::of(&slot[..len as usize]);
        Unverified { slot, len, crc, carrier: Carrier::Tcp }
    }

    /// Says that it came by another carrier than TCP.
    pub fn by(self, carrier: Carrier) -> Unverified {
        Unverified { carrier, ..self }
    }

    /// How it came, if it came from a peer.
    pub fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)] // pieces are never empty
    pub fn len(&self) -> u32 {
        self.len
    }

    /// What the bytes sum to.
    pub fn crc(&self) -> Crc64 {
        self.crc
    }

    /// The bytes are what the manifest says, or the slot comes back to be filled again.
    ///
    /// # Errors
    /// [`Mismatch`], and the slot.
    pub fn verify(self, expected: Crc64) -> Result<Verified, (Mismatch, Slot)> {
        if self.crc == expected { Ok(self.accept()) } else { Err((Mismatch { expected, actual: self.crc }, self.slot)) }
    }

    /// Only for what the holder of the origin lease read from the origin itself: the bytes define the checksum.
    pub fn learn_from_origin(self) -> (Verified, Crc64) {
        let crc = self.crc;
        (self.accept(), crc)
    }

    /// Gives the buffer up.
    pub fn into_slot(self) -> Slot {
        self.slot
    }

    fn accept(mut self) -> Verified {
        let len = self.len as usize;
        self.slot[len..len.next_multiple_of(IO_ALIGN)].fill(0);
        Verified { bytes: self.slot.share(), len: self.len, crc: self.crc }
    }
}

/// A piece that is what the manifest says. Cheap to clone; its slot goes back with the last clone.
#[derive(Clone, Debug)]
pub struct Verified {
    bytes: SharedSlot,
    len: u32,
    crc: Crc64,
}

impl Verified {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }

    /// Its bytes and zeros up to the next multiple of [`IO_ALIGN`], from an aligned address: for direct writes.
    pub fn padded(&self) -> &[u8] {
        &self.bytes[..(self.len as usize).next_multiple_of(IO_ALIGN)]
    }

    /// Length in bytes, without padding.
    #[allow(clippy::len_without_is_empty)] // pieces are never empty
    pub fn len(&self) -> u32 {
        self.len
    }

    /// What they sum to.
    pub fn crc(&self) -> Crc64 {
        self.crc
    }
}

impl std::ops::Deref for Verified {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes()
    }
}

impl AsRef<[u8]> for Verified {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// A verified piece, from wherever it is cheapest to send.
#[derive(Clone, Debug)]
pub enum Served {
    /// Still in its slot.
    Memory(Verified),
    /// On disk: verified before it was written.
    File {
        /// The shard's file, sealed or partial.
        file: Arc<File>,
        /// Where the piece begins in it, in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u32,
        /// What it sums to.
        crc: Crc64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Arena;

    fn received(bytes: &[u8]) -> Unverified {
        let mut slot = Arena::new(1).unwrap().try_slot(bytes.len()).unwrap();
        slot.fill(0xff);
        slot[..bytes.len()].copy_from_slice(bytes);
        Unverified::sum(slot, bytes.len() as u32)
    }

    #[test]
    fn right_bytes_become_verified_with_a_zero_tail() {
        let piece = received(b"abc").verify(Crc64::of(b"abc")).unwrap();
        assert_eq!((piece.bytes(), piece.len()), (&b"abc"[..], 3));
        assert_eq!(piece.padded().len(), 4096);
        assert!(piece.padded()[3..].iter().all(|&b| b == 0));
        assert_eq!(received(&[7; 4096]).learn_from_origin().0.padded(), [7; 4096]);
    }

    #[test]
    fn wrong_bytes_give_their_slot_back() {
        let (mismatch, slot) = received(b"abc").verify(Crc64::of(b"abd")).unwrap_err();
        assert_eq!(mismatch, Mismatch { expected: Crc64::of(b"abd"), actual: Crc64::of(b"abc") });
        assert_eq!(slot.arena().free_bytes(), slot.arena().bytes() - slot.capacity() as u64);
    }
}
