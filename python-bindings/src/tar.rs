//! Samples of a tar shard, WebDataset-style: members with the same name up to the first dot are one sample.
//!
//! The headers are read once, when the shard is opened; then any sample is a `pread` away. Large members are read
//! straight into the bytes object that Python gets; small ones through a window, so that a walk in order costs few
//! system calls. Tiny ones (labels, beside large ones) came with the headers and are kept.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Mutex;

use millstream_loader_core::tar::{BLOCK, Extension, Header, TarError, extension, header, padded, split};
use pyo3::exceptions::{PyIndexError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};
use rustix::io::pread;

/// What is read at once while looking for headers of small members, and for samples in their order.
const WINDOW_BYTES: usize = 256 << 10;
/// Members from this size on are read by themselves.
const LARGE_BYTES: u64 = 64 << 10;
/// Members up to this size are kept as their header is read.
const TINY_BYTES: u64 = 64;
/// Bytes of tiny members that are kept per file, at most.
const TINY_BYTES_MAX: usize = 1 << 20;

struct Member {
    field: u32,
    at: At,
    len: u64,
}

enum At {
    /// Where in the file.
    File(u64),
    /// Where in what was kept.
    Kept(usize),
}

struct Sample {
    key: String,
    members: Vec<Member>,
}

/// Bytes of the file that were read last.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

/// A tar file whose headers were read.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct Tar {
    path: PathBuf,
    file: File,
    samples: Vec<Sample>,
    /// Names of fields, each once as a Python text.
    fields: Vec<Py<PyString>>,
    /// Tiny members.
    kept: Vec<u8>,
    window: Mutex<Window>,
}

/// What the headers say.
#[derive(Default)]
struct Scan {
    samples: Vec<Sample>,
    fields: Vec<String>,
    kept: Vec<u8>,
}

enum Bad {
    Io(std::io::Error),
    Tar(TarError),
}

impl From<std::io::Error> for Bad {
    fn from(error: std::io::Error) -> Bad {
        Bad::Io(error)
    }
}

impl From<TarError> for Bad {
    fn from(error: TarError) -> Bad {
        Bad::Tar(error)
    }
}

#[pymethods]
impl Tar {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Tar> {
        let scanned = py.detach(|| {
            let file = File::open(&path)?;
            let scan = Scan::of(&file)?;
            Ok::<_, Bad>((file, scan))
        });
        let (file, Scan { samples, fields, kept }) = scanned.map_err(|bad| match bad {
            Bad::Io(error) => match error.raw_os_error() {
                // With its number Python makes it FileNotFoundError and the like.
                Some(number) => {
                    let text = error.to_string();
                    PyOSError::new_err((number, text, path.display().to_string()))
                }
                None => PyOSError::new_err(format!("{}: {error}", path.display())),
            },
            Bad::Tar(error) => PyValueError::new_err(format!("{}: {error}", path.display())),
        })?;
        let fields = fields.iter().map(|name| PyString::intern(py, name).unbind()).collect();
        Ok(Tar { path, file, samples, fields, kept, window: Mutex::new(Window::default()) })
    }

    /// Samples in the file.
    fn __len__(&self) -> usize {
        self.samples.len()
    }

    /// Sample `index`: `{"__key__": …, field: bytes, …}`.
    fn __getitem__<'py>(&self, py: Python<'py>, index: isize) -> PyResult<Bound<'py, PyDict>> {
        let at = if index < 0 { index + self.samples.len() as isize } else { index };
        let sample = usize::try_from(at).ok().and_then(|i| self.samples.get(i)).ok_or_else(|| {
            PyIndexError::new_err(format!("sample {index} of {} in {}", self.samples.len(), self.path.display()))
        })?;
        let out = PyDict::new(py);
        out.set_item(pyo3::intern!(py, "__key__"), &sample.key)?;
        for member in &sample.members {
            let bytes = self.read(py, member).map_err(|e| {
                let words = format!("{}: {e} (sample {:?})", self.path.display(), sample.key);
                PyOSError::new_err((e.raw_os_error().unwrap_or(0), words))
            })?;
            out.set_item(self.fields[member.field as usize].bind(py), bytes)?;
        }
        Ok(out)
    }

    fn __repr__(&self) -> String {
        format!("Tar({:?}, {} samples)", self.path, self.samples.len())
    }
}

impl Tar {
    fn read<'py>(&self, py: Python<'py>, member: &Member) -> std::io::Result<Bound<'py, PyBytes>> {
        let len = member.len as usize;
        let offset = match member.at {
            At::Kept(start) => return Ok(PyBytes::new(py, &self.kept[start..start + len])),
            At::File(offset) if member.len >= LARGE_BYTES => return read_into_bytes(py, &self.file, offset, len),
            At::File(offset) => offset,
        };
        let mut window = self.window.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if window.slice(offset, len).is_none() {
            // In order: the next samples too. Anywhere else: this one only, with its neighbours of the page.
            let end = window.start + window.bytes.len() as u64;
            let near = offset >= end && offset - end <= 4 * BLOCK as u64;
            let want = if near { WINDOW_BYTES } else { len.max(4096) };
            window.fill(&self.file, offset, want)?;
        }
        let slice = window.slice(offset, len).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        Ok(PyBytes::new(py, slice))
    }
}

impl Window {
    fn slice(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.bytes.get(from..from.checked_add(len)?)
    }

    fn fill(&mut self, file: &File, offset: u64, want: usize) -> std::io::Result<()> {
        self.start = offset;
        self.bytes.resize(want, 0);
        let mut filled = 0;
        while filled < want {
            match pread(file.as_fd(), &mut self.bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    self.bytes.clear();
                    return Err(e.into());
                }
            }
        }
        self.bytes.truncate(filled);
        Ok(())
    }
}

/// Reads straight into a new bytes object: no zeroing, no second copy.
#[allow(unsafe_code)]
fn read_into_bytes<'py>(py: Python<'py>, file: &File, offset: u64, len: usize) -> std::io::Result<Bound<'py, PyBytes>> {
    struct Target(*mut u8, usize);
    // SAFETY: the pointer is used by one thread at a time: this one hands it to `detach`, which runs in this thread.
    unsafe impl Send for Target {}
    let size = isize::try_from(len).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    // SAFETY: a null pointer asks for an uninitialised bytes object of `size`; the result is a new reference or null,
    // and null becomes an error.
    let object =
        unsafe { Bound::from_owned_ptr_or_err(py, pyo3::ffi::PyBytes_FromStringAndSize(std::ptr::null(), size)) }
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
    // SAFETY: the object is of exactly this type, as the call above says.
    let object = unsafe { object.cast_into_unchecked::<PyBytes>() };
    // SAFETY: as above; nobody else has seen the object, so its buffer may be written until it is returned.
    let target = Target(unsafe { pyo3::ffi::PyBytes_AsString(object.as_ptr()) }.cast::<u8>(), len);
    py.detach(move || {
        let target = target;
        // SAFETY: the buffer has `len` bytes, which `object` keeps alive; they are written before they are read.
        let buffer = unsafe { std::slice::from_raw_parts_mut(target.0.cast::<std::mem::MaybeUninit<u8>>(), target.1) };
        let mut filled = 0;
        while filled < buffer.len() {
            match pread(file.as_fd(), &mut buffer[filled..], offset + filled as u64) {
                Ok(([], _)) => {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
                }
                Ok((read, _)) => filled += read.len(),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    })?;
    Ok(object)
}

impl Scan {
    /// Reads all headers.
    fn of(file: &File) -> Result<Scan, Bad> {
        let len = file.metadata()?.len();
        let mut scan = Scan::default();
        let mut window = Window::default();
        let (mut at, mut next_window) = (0u64, WINDOW_BYTES);
        let (mut long_name, mut long_len) = (None, None);
        while at + BLOCK as u64 <= len {
            if window.slice(at, BLOCK).is_none() {
                window.fill(file, at, next_window)?;
            }
            let block = window.slice(at, BLOCK).and_then(|b| b.try_into().ok()).ok_or(TarError::Short { at })?;
            let content = at + BLOCK as u64;
            let skip = match header(block, at)? {
                Header::End => break,
                Header::Other { len } => len,
                Header::Extension { kind, len } => {
                    if window.slice(content, len as usize).is_none() {
                        window.fill(file, content, (len as usize).max(BLOCK))?;
                    }
                    let bytes = window.slice(content, len as usize).ok_or(TarError::Short { at })?;
                    let (name, size) = extension(kind, bytes, at)?;
                    long_name = name.or(long_name);
                    if kind == Extension::Pax {
                        long_len = size.or(long_len);
                    }
                    len
                }
                Header::File { name, len: short_len } => {
                    let name = long_name.take().unwrap_or(name);
                    let member_len = long_len.take().unwrap_or(short_len);
                    if content.checked_add(member_len).is_none_or(|end| end > len) {
                        return Err(TarError::Short { at }.into());
                    }
                    scan.add(&name, content, member_len, &window);
                    // Behind a large member lies another header, not much else worth reading now.
                    next_window = if member_len >= LARGE_BYTES { 4 * BLOCK } else { WINDOW_BYTES };
                    member_len
                }
            };
            at = content + padded(skip);
        }
        Ok(scan)
    }

    fn add(&mut self, name: &str, offset: u64, len: u64, window: &Window) {
        let (key, field) = split(name);
        // A dataset has a handful of fields, mostly in lower case.
        let place = |fields: &[String], field: &str| fields.iter().position(|f| f == field);
        let number = place(&self.fields, field).unwrap_or_else(|| {
            let field = field.to_lowercase();
            place(&self.fields, &field).unwrap_or_else(|| {
                self.fields.push(field);
                self.fields.len() - 1
            })
        });
        let tiny = len <= TINY_BYTES && self.kept.len() < TINY_BYTES_MAX;
        let at = match window.slice(offset, len as usize).filter(|_| tiny) {
            Some(bytes) => {
                self.kept.extend_from_slice(bytes);
                At::Kept(self.kept.len() - bytes.len())
            }
            None => At::File(offset),
        };
        let member = Member { field: number as u32, at, len };
        match self.samples.last_mut() {
            Some(last) if last.key == key => last.members.push(member),
            _ => self.samples.push(Sample { key: key.to_owned(), members: vec![member] }),
        }
    }
}
