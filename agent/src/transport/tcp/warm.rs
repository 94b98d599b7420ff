//! Brings a piece of a file into the page cache before `sendfile`, which would otherwise block the whole worker
//! thread on the disk.
//!
//! Asked first is whether it is there already (`preadv2` with `RWF_NOWAIT`, one byte per step): on a node that has
//! just received the data it is, and the questions cost about a microsecond. Only a cold piece takes the way over a
//! blocking thread.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::sync::Semaphore;

use crate::limits::{WARM_PROBE_BYTES, WARM_READ_BYTES};

/// Is every probed place of the range in the page cache? File systems that cannot say count as warm.
pub(super) fn is_warm(file: &File, offset: u64, len: u64) -> bool {
    if len == 0 {
        return true;
    }
    let last = offset + len - 1;
    (offset..last).step_by(WARM_PROBE_BYTES).chain([last]).all(|at| {
        let mut byte = [0];
        let probe = preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
        !matches!(probe, Err(Errno::AGAIN))
    })
}

/// Reads the range through the page cache. Blocks.
fn pull(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if let Some(len) = std::num::NonZeroU64::new(len) {
        // Lets the kernel read ahead further than its default window; refusal only costs speed.
        let _ = fadvise(file, offset, Some(len), Advice::WillNeed);
    }
    let mut scratch = vec![0; WARM_READ_BYTES];
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let want = scratch.len().min((end - at) as usize);
        match file.read_at(&mut scratch[..want], at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => at += n as u64,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Makes the range warm. True when the disk had to be read.
///
/// # Errors
/// The file is shorter, or cannot be read.
pub(super) async fn warm(file: &Arc<File>, offset: u64, len: u32, at_once: &Semaphore) -> io::Result<bool> {
    if is_warm(file, offset, u64::from(len)) {
        return Ok(false);
    }
    // Never closed; were it, reading without the permit would do no harm.
    let _permit = at_once.acquire().await.ok();
    let file = file.clone();
    tokio::task::spawn_blocking(move || pull(&file, offset, u64::from(len))).await.map_err(io::Error::other)??;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn warms_what_is_there_and_says_what_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![1; 3 << 20]).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        file.sync_all().unwrap();
        fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
        let at_once = Semaphore::new(1);
        warm(&file, 5, (2 << 20) + 1, &at_once).await.unwrap();
        assert!(is_warm(&file, 5, (2 << 20) + 1));
        assert!(!warm(&file, 5, (2 << 20) + 1, &at_once).await.unwrap());
        assert!(pull(&file, 2 << 20, 2 << 20).is_err(), "past the end");
    }
}
