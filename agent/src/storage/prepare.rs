//! Taking a data directory into use: directories, the lock, leftovers.

use std::fs::File;
use std::path::Path;

use millstream_types::Digest;
use rustix::fs::{FlockOperation, OFlags};

use super::dir::Dir;
use super::error::OpenError;
use super::pins::Pins;
use super::restart;
use super::store::{Dirs, StoreConfig};
use crate::limits::CAPACITY_PERCENT;

/// Directories in `partial/` with this prefix are being removed.
pub(super) const TRASH_PREFIX: &str = "evicted-";

/// What a store begins with.
pub(super) struct Prepared {
    pub dirs: Dirs,
    pub lock: File,
    pub capacity: u64,
    pub pins: Pins,
    /// Bytes of versions that were here before.
    pub left_behind: Vec<(Digest, u64)>,
}

/// Makes the directories, locks them, clears what an interrupted eviction left. Blocks.
pub(super) fn prepare(config: &StoreConfig) -> Result<Prepared, OpenError> {
    let path = &config.data_dir;
    let disk = |source| OpenError::Disk { path: path.display().to_string(), source };
    std::fs::create_dir_all(path).map_err(disk)?;
    let root = Dir::open(path).map_err(disk)?;
    let lock = lock(&root, path)?;
    let prepared = (|| {
        let sub = |name| root.make(name).map(|(dir, _)| dir);
        let dirs = Dirs {
            datasets: sub("datasets")?,
            partial: sub("partial")?,
            records: sub("records")?,
            manifests: sub("manifests")?,
        };
        for name in dirs.partial.list()?.iter().filter(|name| name.starts_with(TRASH_PREFIX)) {
            std::fs::remove_dir_all(path.join("partial").join(name))?;
        }
        root.sync()?;
        let capacity = match config.capacity_bytes {
            Some(bytes) => bytes,
            None => root.file_system_bytes()? / 100 * CAPACITY_PERCENT,
        };
        let pins = Pins::open(root.clone())?;
        let left_behind = restart::left_behind(&dirs)?;
        Ok(Prepared { dirs, lock, capacity, pins, left_behind })
    })();
    prepared.map_err(disk)
}

/// Takes the data directory for this process. The lock goes with the process, however it ends.
fn lock(root: &Dir, path: &Path) -> Result<File, OpenError> {
    use std::io::{Read as _, Write as _};
    let disk = |source| OpenError::Disk { path: path.display().to_string(), source };
    let mut file = root.open_file("lock", OFlags::RDWR | OFlags::CREATE).map_err(disk)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let known = file.read_to_string(&mut pid).is_ok_and(|n| n > 0);
            let holder = if known { format!(" (process {})", pid.trim()) } else { String::new() };
            return Err(OpenError::Locked { path: path.display().to_string(), holder });
        }
        Err(e) => return Err(disk(e.into())),
    }
    let noted = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    noted.map_err(disk)?;
    Ok(file)
}
