//! What the machine itself says: kernel, limits, devices, disk.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use millstream_agent::buffers::Arena;
use millstream_agent::storage::io::{Mode, probe};
use millstream_types::size::format_size;
use rustix::process::{Resource, getrlimit};

use super::Check;

/// Memory for the probe of the storage engine: a few blocks.
pub const PROBE_ARENA_BYTES: u64 = 8 << 20;
/// Connections of a few hundred peers and files of a few thousand shards.
const NOFILE_WANTED: u64 = 65_536;
/// Buffers that a NIC or the kernel may pin.
const MEMLOCK_WANTED: u64 = 1 << 30;
/// Below this, hardly any version fits.
const FREE_WANTED: u64 = 10 << 30;
/// The block size that every disk takes for writes past the page cache.
const BLOCK: usize = 4096;

/// 5.10 and later are tested and have the io_uring features that are used.
pub fn kernel() -> Check {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version >= (5, 10) {
        true => Check::ok("kernel", format!("Linux {release}")),
        false => Check::warn("kernel", format!("Linux {release}"), "Linux 5.10 or later has the io_uring that is used"),
    }
}

fn limit(resource: Resource) -> u64 {
    getrlimit(resource).current.unwrap_or(u64::MAX)
}

/// How much memory may be pinned.
pub fn memlock() -> Check {
    match limit(Resource::Memlock) {
        u64::MAX => Check::ok("memlock", "unlimited"),
        now if now >= MEMLOCK_WANTED => Check::ok("memlock", format_size(now)),
        now => Check::warn(
            "memlock",
            format_size(now),
            "set LimitMEMLOCK=infinity in the systemd unit, or `* - memlock unlimited` in /etc/security/limits.conf",
        ),
    }
}

/// How many files and sockets may be open.
pub fn nofile() -> Check {
    let now = limit(Resource::Nofile);
    match now >= NOFILE_WANTED {
        true => Check::ok("open files", now.to_string()),
        false => Check::warn(
            "open files",
            now.to_string(),
            format!("set LimitNOFILE={NOFILE_WANTED} in the systemd unit, or `ulimit -n {NOFILE_WANTED}`"),
        ),
    }
}

/// The data directory: writable, roomy, past the page cache; and the storage engine that an agent would use there.
pub async fn disk(dir: &Path) -> Vec<Check> {
    let shown = dir.display();
    if !dir.exists() {
        let fix = "an agent makes it when it may; or choose the disk with --data-dir, then look again";
        return vec![Check::warn("data directory", format!("{shown} is not there yet"), fix)];
    }
    if let Err(error) = fs::read_dir(dir) {
        let fix = format!("create it for the user that runs the agent, or choose another --data-dir than {shown}");
        return vec![Check::fail("data directory", format!("{shown}: {error}"), fix)];
    }
    let file = match tempfile(dir) {
        Ok((path, file)) => (path, file),
        Err(error) => {
            let fix = format!("make {shown} writable for the user that runs the agent");
            return vec![Check::fail("data directory", format!("{shown}: {error}"), fix)];
        }
    };
    let mut checks = vec![Check::ok("data directory", format!("{shown} is writable"))];
    drop(file.1);
    checks.push(direct(&file.0));
    // Gone already, or it will be overwritten the next time.
    let _ = fs::remove_file(&file.0);
    checks.push(free_space(dir));
    checks.push(engine(dir).await);
    checks
}

fn tempfile(dir: &Path) -> std::io::Result<(std::path::PathBuf, File)> {
    let path = dir.join(format!(".doctor-{}", std::process::id()));
    let mut file = File::create(&path)?;
    file.write_all(b"written by millstream doctor")?;
    file.sync_all()?;
    Ok((path, file))
}

fn direct(path: &Path) -> Check {
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    let written = OpenOptions::new().write(true).custom_flags(flags).open(path).and_then(|mut file| {
        let buffer = vec![0u8; 2 * BLOCK];
        let start = buffer.as_ptr().align_offset(BLOCK);
        file.write_all(&buffer[start..start + BLOCK])
    });
    match written {
        Ok(()) => Check::ok("O_DIRECT", "works"),
        Err(error) => Check::warn(
            "O_DIRECT",
            format!("refused: {error}; writes go through the page cache"),
            "use ext4 or XFS on a local disk",
        ),
    }
}

fn free_space(dir: &Path) -> Check {
    match rustix::fs::statvfs(dir) {
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            let found =
                format!("{} free of {}", format_size(free), format_size(fs.f_blocks.saturating_mul(fs.f_frsize)));
            match free >= FREE_WANTED {
                true => Check::ok("space", found),
                false => Check::warn("space", found, "free some, or choose another --data-dir"),
            }
        }
        Err(error) => Check::fail("space", error.to_string(), "look at the file system's state with dmesg"),
    }
}

async fn engine(dir: &Path) -> Check {
    let fix = "look at the disk with dmesg";
    let arena = match Arena::new(PROBE_ARENA_BYTES) {
        Ok(arena) => arena,
        Err(error) => return Check::fail("storage engine", error.to_string(), "free some memory"),
    };
    match probe(Mode::Auto, dir, &arena).await {
        Ok((_, choice)) => match choice.fallback {
            None => Check::ok("storage engine", choice.engine),
            Some(reason) => Check::warn(
                "storage engine",
                format!("{}, because io_uring does not work: {reason}", choice.engine),
                "allow io_uring in the container's seccomp profile; see sysctl kernel.io_uring_disabled",
            ),
        },
        Err(error) => Check::fail("storage engine", error.to_string(), fix),
    }
}
