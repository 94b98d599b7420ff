//! Directories as open descriptors. Every path is walked part by part without following symbolic links, so that
//! nothing planted below the data directory can lead a read or a write out of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An open directory.
#[derive(Clone, Debug)]
pub struct Dir(Arc<OwnedFd>);

impl Dir {
    /// Opens a directory by its path, which the operator chose: links in it are followed.
    pub fn open(path: &Path) -> io::Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Dir(Arc::new(rustix::fs::open(path, flags, Mode::empty())?)))
    }

    /// The directory of that name in this one.
    pub fn sub(&self, name: &str) -> io::Result<Dir> {
        Ok(Dir(Arc::new(rustix::fs::openat(&*self.0, name, DIRECTORY, Mode::empty())?)))
    }

    /// The directory of that name in this one, made when it is not there. True: it was made.
    pub fn make(&self, name: &str) -> io::Result<(Dir, bool)> {
        let made = match rustix::fs::mkdirat(&*self.0, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e.into()),
        };
        Ok((self.sub(name)?, made))
    }

    /// The directory that holds the last part of `path`, and that part.
    fn walk<'a>(&self, path: &'a str) -> io::Result<(Dir, &'a str)> {
        let mut dir = self.clone();
        let mut rest = path;
        while let Some((part, below)) = rest.split_once('/') {
            dir = dir.sub(part)?;
            rest = below;
        }
        Ok((dir, rest))
    }

    /// Like `walk`, making directories on the way. Every directory that got a new entry is added to `changed`.
    pub fn make_parents<'a>(&self, path: &'a str, changed: &mut Vec<Dir>) -> io::Result<(Dir, &'a str)> {
        let mut dir = self.clone();
        let mut rest = path;
        while let Some((part, below)) = rest.split_once('/') {
            let (next, made) = dir.make(part)?;
            if made {
                changed.push(dir);
            }
            dir = next;
            rest = below;
        }
        Ok((dir, rest))
    }

    /// Opens a file below this directory.
    pub fn open_file(&self, path: &str, flags: OFlags) -> io::Result<File> {
        let (dir, name) = self.walk(path)?;
        // NONBLOCK: a planted FIFO must not hang us. It does nothing to regular files.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&*dir.0, name, flags, Mode::from_raw_mode(0o644))?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(File::from(file))
    }

    /// What is there, links not followed; `None` when nothing is.
    pub fn stat(&self, path: &str) -> io::Result<Option<Stat>> {
        let found =
            self.walk(path).and_then(|(dir, name)| Ok(rustix::fs::statat(&*dir.0, name, AtFlags::SYMLINK_NOFOLLOW)?));
        match found.as_ref().map_err(Errno::from_io_error) {
            // Something else stands where a directory should be: the path leads to nothing of ours.
            Err(Some(Errno::NOTDIR | Errno::LOOP)) => Ok(None),
            _ => absent_is_none(found),
        }
    }

    /// Removes a file or link; false when it was not there.
    pub fn unlink(&self, path: &str) -> io::Result<bool> {
        let removed =
            self.walk(path).and_then(|(dir, name)| Ok(rustix::fs::unlinkat(&*dir.0, name, AtFlags::empty())?));
        Ok(absent_is_none(removed)?.is_some())
    }

    /// Moves a direct entry of this directory to `name` in `to`, replacing a file there.
    pub fn rename(&self, from: &str, to: &Dir, name: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&*self.0, from, &*to.0, name)?)
    }

    /// Moves a file below this directory to `name` in `to`. False when it was not there.
    pub fn move_out(&self, path: &str, to: &Dir, name: &str) -> io::Result<bool> {
        let moved = self.walk(path).and_then(|(dir, last)| dir.rename(last, to, name));
        Ok(absent_is_none(moved)?.is_some())
    }

    /// Makes its entries lasting.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&*self.0)?)
    }

    /// Names of its entries.
    pub fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&*self.0)? {
            // Names that are not UTF-8 are not ours.
            if let Ok(name) = entry?.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Replaces a direct entry by a file with these bytes: a crash leaves the old one or the new one.
    pub fn replace_file(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        use std::io::Write as _;
        let new = format!("{name}.new");
        let mut file = self.open_file(&new, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        self.rename(&new, self, name)?;
        self.sync()
    }

    /// The bytes of a file, `None` when it is not there.
    pub fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        use std::io::Read as _;
        let Some(mut file) = absent_is_none(self.open_file(name, OFlags::RDONLY))? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Bytes of the whole file system.
    pub fn file_system_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&*self.0)?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_links_lead_nowhere() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), inside.path().join("file")).unwrap();
        let dir = Dir::open(inside.path()).unwrap();
        assert!(dir.open_file("link/secret", OFlags::RDONLY).is_err());
        assert!(dir.open_file("file", OFlags::RDONLY).is_err());
        assert!(dir.make_parents("link/new/x", &mut Vec::new()).is_err());
        assert!(dir.unlink("link/secret").is_err());
        assert!(outside.path().join("secret").exists());
        // A link that stands where a file goes is replaced, not followed.
        std::fs::write(inside.path().join("mine"), "y").unwrap();
        dir.rename("mine", &dir, "file").unwrap();
        assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"x");
    }

    #[test]
    fn files_are_replaced_whole() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open(tmp.path()).unwrap();
        assert_eq!(dir.read_file("f").unwrap(), None);
        dir.replace_file("f", b"one").unwrap();
        dir.replace_file("f", b"two").unwrap();
        assert_eq!(dir.read_file("f").unwrap().unwrap(), b"two");
        assert_eq!(dir.list().unwrap(), ["f"]);
    }
}
