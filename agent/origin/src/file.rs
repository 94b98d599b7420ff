//! A local directory as an origin: a shared file system, a mounted disk, tests.

use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use millstream_types::ShardKey;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::Pin;
use crate::error::OriginError;
use crate::limits::{FILE_READ_BYTES, OBJECTS_MAX};

/// Files below a directory; symbolic links are followed.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    root: PathBuf,
}

/// A file in the listing.
pub(crate) struct Found {
    /// Relative to the root. Names that are no UTF-8 come with the replacement character and are refused by it.
    pub(crate) key: String,
    pub(crate) len: u64,
    pub(crate) etag: String,
}

/// Changes whenever a file is replaced or written to.
fn etag_of(meta: &Metadata) -> String {
    let ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    format!("\"{:x}-{ns:x}-{:x}\"", meta.ino(), meta.len())
}

fn failed(name: &str, e: &io::Error) -> OriginError {
    let (key, detail) = (name.to_owned(), e.to_string());
    match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OriginError::NotFound { key, detail },
        io::ErrorKind::PermissionDenied => OriginError::Denied { key, detail },
        _ => OriginError::Transient { key, detail },
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

impl Directory {
    pub(crate) fn new(root: PathBuf) -> Directory {
        Directory { root }
    }

    fn path(&self, name: &str, key: &str) -> Result<PathBuf, OriginError> {
        let safe: Result<ShardKey, _> = key.parse();
        let safe = safe.map_err(|e| OriginError::NotFound { key: name.to_owned(), detail: e.to_string() })?;
        Ok(self.root.join(safe.as_str()))
    }

    pub(crate) async fn list(&self) -> Result<Vec<Found>, OriginError> {
        let root = self.root.clone();
        let name = root.display().to_string();
        blocking(move || walk(&root)).await.map_err(|e| failed(&name, &e))
    }

    pub(crate) async fn open(
        &self,
        name: &str,
        key: &str,
        range: Range<u64>,
        pin: &Pin,
    ) -> Result<FileReader, OriginError> {
        let path = self.path(name, key)?;
        let opened = blocking(move || {
            let file = File::open(path)?;
            let meta = file.metadata()?;
            Ok((file, meta))
        });
        let (file, meta) = opened.await.map_err(|e| failed(name, &e))?;
        check(name, &meta, pin)?;
        let reader =
            FileReader { file: Arc::new(file), pin: pin.clone(), range, ahead: None, chunk: Vec::new(), used: 0 };
        Ok(reader)
    }

    /// Length and ETag of a file.
    pub(crate) async fn head(&self, name: &str, key: &str) -> Result<(u64, String), OriginError> {
        let path = self.path(name, key)?;
        let meta = blocking(move || fs::metadata(path)).await.map_err(|e| failed(name, &e))?;
        Ok((meta.len(), etag_of(&meta)))
    }

    pub(crate) async fn put(&self, name: &str, key: &str, bytes: Bytes) -> Result<(), OriginError> {
        let path = self.path(name, key)?;
        let work = move || {
            let parent = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(parent)?;
            let temporary = path.with_extension(format!("{}.partial", std::process::id()));
            fs::write(&temporary, bytes)?;
            fs::rename(&temporary, &path)
        };
        blocking(work).await.map_err(|e| failed(name, &e))
    }

    pub(crate) async fn get_all(&self, name: &str, key: &str, max: u64) -> Result<Option<Bytes>, OriginError> {
        let path = self.path(name, key)?;
        let work = move || match fs::metadata(&path) {
            Ok(meta) if meta.len() > max => Ok(Err(meta.len())),
            Ok(_) => fs::read(&path).map(|bytes| Ok(Some(Bytes::from(bytes)))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Ok(None)),
            Err(e) => Err(e),
        };
        let got = blocking(work).await.map_err(|e| failed(name, &e))?;
        got.map_err(|len| OriginError::TooLarge { key: name.to_owned(), len, limit: max })
    }
}

fn check(name: &str, meta: &Metadata, pin: &Pin) -> Result<(), OriginError> {
    let etag = etag_of(meta);
    let changed = |detail: String| Err(OriginError::Changed { key: name.to_owned(), detail });
    match &pin.etag {
        _ if meta.len() != pin.len => changed(format!("it has {} bytes now, {} were pinned", meta.len(), pin.len)),
        Some(pinned) if *pinned != etag => changed(format!("its ETag was {pinned}, now it is {etag}")),
        _ => Ok(()),
    }
}

fn walk(root: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let meta = fs::metadata(&path)?;
            if meta.is_dir() {
                // A link that leads up would go on for ever.
                if path.components().count() < root.components().count() + 128 {
                    open.push(path);
                }
                continue;
            }
            if !meta.is_file() {
                continue;
            }
            let key = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            found.push(Found { key, len: meta.len(), etag: etag_of(&meta) });
            if found.len() > OBJECTS_MAX {
                return Err(io::Error::other(format!("more than {OBJECTS_MAX} files")));
            }
        }
    }
    Ok(found)
}

/// A range of a file, one chunk ahead of the reader.
pub(crate) struct FileReader {
    file: Arc<File>,
    pin: Pin,
    /// Not yet asked for.
    range: Range<u64>,
    ahead: Option<JoinHandle<io::Result<Vec<u8>>>>,
    chunk: Vec<u8>,
    used: usize,
}

impl FileReader {
    fn start(&mut self, mut buffer: Vec<u8>) {
        let at = self.range.start;
        let len = (self.range.end - at).min(FILE_READ_BYTES as u64);
        if len == 0 {
            return;
        }
        self.range.start += len;
        let file = self.file.clone();
        self.ahead = Some(spawn_blocking(move || {
            buffer.resize(len as usize, 0);
            file.read_exact_at(&mut buffer, at)?;
            Ok(buffer)
        }));
    }

    /// Some bytes into `out`; zero at the end. At the end the file must still be the pinned one.
    pub(crate) async fn read(&mut self, name: &str, out: &mut [u8]) -> Result<usize, OriginError> {
        if self.used == self.chunk.len() {
            if self.ahead.is_none() {
                self.start(Vec::new());
            }
            let Some(ahead) = &mut self.ahead else { return Ok(0) };
            let read = ahead.await.map_err(io::Error::other).and_then(|read| read);
            self.ahead = None;
            let buffer = std::mem::replace(&mut self.chunk, read.map_err(|e| failed(name, &e))?);
            self.used = 0;
            self.start(buffer);
            if self.ahead.is_none() {
                let meta = self.file.metadata().map_err(|e| failed(name, &e))?;
                check(name, &meta, &self.pin)?;
            }
        }
        let n = (self.chunk.len() - self.used).min(out.len());
        out[..n].copy_from_slice(&self.chunk[self.used..self.used + n]);
        self.used += n;
        Ok(n)
    }
}
