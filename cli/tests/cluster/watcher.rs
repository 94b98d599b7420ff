//! Looks at every file below `datasets/` of every node, all the time: whatever is visible must be right at once.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::harness::Expected;

/// Between two looks. Files are small: a look at an unchanged directory costs a few stat calls.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A thread that watches until it is dropped.
pub struct Watcher {
    stop: Arc<AtomicBool>,
    wrong: Arc<Mutex<Vec<String>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Watcher {
    /// Watches these `datasets/` directories.
    pub fn start(roots: Vec<PathBuf>, dataset: &'static str, expected: Expected) -> Watcher {
        let (stop, wrong) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let looking = Looking { dataset, expected, wrong: wrong.clone(), seen: HashSet::new() };
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || looking.run(&roots, &stopped));
        Watcher { stop, wrong, thread: Mutex::new(Some(thread)) }
    }

    /// Panics with everything that was wrong.
    pub fn check(&self) {
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "visible, and wrong:\n{}", wrong.join("\n"));
    }

    /// Stops looking, and returns when the last look is over; what was found so far stands.
    pub fn retire(&self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.lock().unwrap().take() {
            // A panic of its own would be a bug of the test: it shows in the output.
            let _ = thread.join();
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.retire();
    }
}

struct Looking {
    dataset: &'static str,
    expected: Expected,
    wrong: Arc<Mutex<Vec<String>>>,
    /// Files that were read and right, by inode and time of change: looked at again only when they change.
    seen: HashSet<(PathBuf, u64, i64, i64)>,
}

impl Looking {
    fn run(mut self, roots: &[PathBuf], stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            for root in roots {
                self.look(root, root);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn look(&mut self, root: &Path, dir: &Path) {
        // Not there yet, or evicted while we look: nothing is visible.
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.look(root, &path),
                Ok(_) => self.file(root, &path),
                Err(_) => {}
            }
        }
    }

    fn file(&mut self, root: &Path, path: &Path) {
        let Ok(meta) = fs::symlink_metadata(path) else { return };
        let identity = (path.to_owned(), meta.ino(), meta.mtime_nsec(), meta.ctime_nsec());
        if self.seen.contains(&identity) {
            return;
        }
        match self.problem(root, path, &meta) {
            Ok(None) => {
                self.seen.insert(identity);
            }
            Ok(Some(problem)) => self.wrong.lock().unwrap().push(format!("{}: {problem}", path.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => self.wrong.lock().unwrap().push(format!("{}: {e}", path.display())),
        }
    }

    fn problem(&self, root: &Path, path: &Path, meta: &fs::Metadata) -> io::Result<Option<String>> {
        let below = path.strip_prefix(root).map_err(io::Error::other)?.to_string_lossy().into_owned();
        let Some(key) = below.strip_prefix(self.dataset).and_then(|k| k.strip_prefix('/')) else {
            return Ok(Some("is of no dataset of this test".into()));
        };
        if !meta.is_file() {
            return Ok(Some("is no plain file".into()));
        }
        if meta.mode() & 0o7777 != 0o444 {
            return Ok(Some(format!("has mode {:o}", meta.mode() & 0o7777)));
        }
        let Some(expected) = self.expected.lock().unwrap().get(key).cloned() else {
            return Ok(Some("is no shard".into()));
        };
        let found = fs::read(path)?;
        if found.len() != expected.len() {
            return Ok(Some(format!("has {} bytes, and should have {}", found.len(), expected.len())));
        }
        Ok(found.iter().zip(&expected).position(|(a, b)| a != b).map(|at| format!("differs at byte {at}")))
    }
}
