//! Lines over a Unix socket, blocking, with deadlines.
//!
//! A connection belongs to the process that opened it: after a fork the child finds it closed and opens its own.
//! Waiting happens without the GIL, in slices, so that Ctrl-C is answered in any thread's wait; no signal handler is
//! installed.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyConnectionError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longest wait between two looks for signals.
const SLICE: Duration = Duration::from_millis(50);
/// Longest line that is accepted: a page of shards with the longest keys takes a few megabytes.
const LINE_BYTES_MAX: usize = 64 << 20;
/// One read.
const READ_BYTES: usize = 64 << 10;

struct Open {
    pid: u32,
    stream: UnixStream,
    /// Received and not yet handed out.
    buffer: Vec<u8>,
}

/// A connection to the agent: `exchange` sends one line and returns the next one, `receive` those after it; `send` does
/// not wait for any.
#[pyclass(frozen, weakref, module = "millstream._millstream")]
pub(crate) struct Connection {
    path: PathBuf,
    open: Mutex<Option<Open>>,
}

/// What a step of waiting found.
enum Step<T> {
    Done(T),
    Again,
}

#[pymethods]
impl Connection {
    #[new]
    fn new(path: PathBuf) -> Connection {
        Connection { path, open: Mutex::new(None) }
    }

    /// Is it open in this process?
    #[getter]
    fn is_open(&self) -> bool {
        self.lock().as_ref().is_some_and(|open| open.pid == std::process::id())
    }

    /// Opens it, if it is not open in this process. Raises OSError, TimeoutError among them.
    fn connect(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let until = until(timeout)?;
        while !py.detach(|| self.try_connect())? {
            // The listener's queue is full: an agent that is stopped, or has a thousand trainers start at once.
            if Instant::now() >= until {
                return Err(PyTimeoutError::new_err("the agent does not accept connections"));
            }
            py.detach(|| std::thread::sleep(SLICE));
            py.check_signals()?;
        }
        Ok(())
    }

    /// Sends `line` (without the newline) and returns the next line. Raises TimeoutError after `timeout` seconds and
    /// ConnectionError when the connection breaks; it is closed then.
    fn exchange<'py>(&self, py: Python<'py>, line: &[u8], timeout: f64) -> PyResult<Bound<'py, PyBytes>> {
        let until = until(timeout)?;
        self.write(py, line, until)?;
        self.line(py, until)
    }

    /// Sends `line` (without the newline); `receive` returns the answer. Raises as `exchange` does.
    fn send(&self, py: Python<'_>, line: &[u8], timeout: f64) -> PyResult<()> {
        self.write(py, line, until(timeout)?)
    }

    /// The next line, after `exchange` or `send`.
    fn receive<'py>(&self, py: Python<'py>, timeout: f64) -> PyResult<Bound<'py, PyBytes>> {
        let until = until(timeout)?;
        self.line(py, until)
    }

    /// Closes it; the next `connect` opens it again. What the agent held for it (leases) is released.
    fn close(&self, py: Python<'_>) {
        py.detach(|| *self.lock() = None);
    }

    /// In a child after a fork: lets go of the parent's socket. A thread that was waiting on it at the moment of the
    /// fork does not exist here, but its lock does: then the descriptor stays.
    fn close_inherited(&self) {
        if let Ok(mut open) = self.open.try_lock() {
            *open = None;
        }
    }

    fn __repr__(&self) -> String {
        format!("Connection({:?}, {})", self.path, if self.is_open() { "open" } else { "closed" })
    }
}

impl Connection {
    fn write(&self, py: Python<'_>, line: &[u8], until: Instant) -> PyResult<()> {
        let mut message = Vec::with_capacity(line.len() + 1);
        message.extend_from_slice(line);
        message.push(b'\n');
        let mut sent = 0;
        self.run(py, until, PollFlags::OUT, |open| match open.stream.write(&message[sent..]) {
            Ok(n) => {
                sent += n;
                Ok(if sent == message.len() { Step::Done(()) } else { Step::Again })
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Step::Again),
            Err(e) => Err(e),
        })
    }

    /// Nothing that holds the lock panics or waits for the GIL; a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when it has to be tried again.
    fn try_connect(&self) -> std::io::Result<bool> {
        let mut open = self.lock();
        if open.as_ref().is_some_and(|open| open.pid == std::process::id()) {
            return Ok(true);
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &SocketAddrUnix::new(&self.path)?) {
            Ok(()) => *open = Some(Open { pid: std::process::id(), stream: socket.into(), buffer: Vec::new() }),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        Ok(true)
    }

    fn line<'py>(&self, py: Python<'py>, until: Instant) -> PyResult<Bound<'py, PyBytes>> {
        let mut searched = 0;
        let mut chunk = vec![0u8; READ_BYTES];
        let line = self.run(py, until, PollFlags::IN, |open| {
            loop {
                if let Some(end) = open.buffer[searched..].iter().position(|&b| b == b'\n').map(|i| i + searched) {
                    let mut line: Vec<u8> = open.buffer.drain(..=end).collect();
                    line.pop();
                    return Ok(Step::Done(line));
                }
                searched = open.buffer.len();
                if searched > LINE_BYTES_MAX {
                    return Err(std::io::Error::new(ErrorKind::InvalidData, "a line without an end"));
                }
                match open.stream.read(&mut chunk) {
                    Ok(0) => return Err(std::io::Error::new(ErrorKind::UnexpectedEof, "the agent hung up")),
                    Ok(n) => open.buffer.extend_from_slice(&chunk[..n]),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Step::Again),
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        })?;
        Ok(PyBytes::new(py, &line))
    }

    /// Repeats `step` until it is done, waiting for `ready` in between. Any error closes the connection: what comes
    /// after it on the line would answer something else.
    fn run<T: Send>(
        &self,
        py: Python<'_>,
        until: Instant,
        ready: PollFlags,
        mut step: impl FnMut(&mut Open) -> std::io::Result<Step<T>> + Send,
    ) -> PyResult<T> {
        loop {
            let found = py.detach(|| self.slice(until, ready, &mut step));
            match found {
                Ok(Some(Step::Done(value))) => return Ok(value),
                Ok(Some(Step::Again)) => {
                    if let Err(interrupted) = py.check_signals() {
                        self.close(py);
                        return Err(interrupted);
                    }
                }
                Ok(None) => {
                    self.close(py);
                    return Err(PyTimeoutError::new_err("no answer in time"));
                }
                Err(error) => {
                    self.close(py);
                    return Err(PyConnectionError::new_err(error.to_string()));
                }
            }
        }
    }

    /// One slice of waiting; `None` when the time is over.
    fn slice<T>(
        &self,
        until: Instant,
        ready: PollFlags,
        step: &mut impl FnMut(&mut Open) -> std::io::Result<Step<T>>,
    ) -> std::io::Result<Option<Step<T>>> {
        let mut guard = self.lock();
        let open = guard
            .as_mut()
            .filter(|open| open.pid == std::process::id())
            .ok_or_else(|| std::io::Error::new(ErrorKind::NotConnected, "not connected in this process"))?;
        if let Step::Done(value) = step(open)? {
            return Ok(Some(Step::Done(value)));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let wait = left.min(SLICE);
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as _ };
        let mut fds = [PollFd::from_borrowed_fd(open.stream.as_fd(), ready)];
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => Ok(Some(Step::Again)),
            Err(e) => Err(e.into()),
        }
    }
}

fn until(timeout: f64) -> PyResult<Instant> {
    let wait = Duration::try_from_secs_f64(timeout)
        .map_err(|_| PyValueError::new_err(format!("timeout {timeout} is not a number of seconds")))?;
    Instant::now().checked_add(wait).ok_or_else(|| PyValueError::new_err(format!("timeout {timeout} s is too long")))
}
