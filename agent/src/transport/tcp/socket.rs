//! System calls on a connection's socket, such that a task that waits is only woken for work worth doing.
//!
//! This file is a small wall for `unsafe`: `SO_RCVLOWAT` has no safe wrapper.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;

use rustix::net::{SendFlags, sockopt};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::limits;

/// What came of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// As many bytes as were asked for; from a file, some of them.
    All(usize),
    /// Fewer (or none): the socket is empty, or full. Its readiness is cleared, so the next wait is a wait.
    Partly(usize),
    /// No bytes, and there will never be any.
    End,
}

/// Settings that every connection gets.
pub(in crate::transport) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(limits::PEER_KEEPALIVE).with_interval(limits::PEER_KEEPALIVE / 3).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(limits::PEER_UNACKED_TIMEOUT))?;
    avoid_bbr(stream);
    Ok(())
}

/// CUBIC where the system's choice is BBR, if the kernel lets us. BBR bounds what is in flight by the shortest round
/// trip seen, some microseconds here; a node that also reads from the origin has a queue before its link that
/// acknowledgements of what it sends wait in for tens of milliseconds, and BBR then sends at a fraction of the rate.
fn avoid_bbr(stream: &TcpStream) {
    if sockopt::tcp_congestion(stream).is_ok_and(|name| name.starts_with("bbr")) {
        let _ = sockopt::set_tcp_congestion(stream, "cubic");
    }
}

/// Wakes a reader only once this many bytes have come (or the connection ended). The kernel grows the receive buffer
/// to fit and wakes earlier when it cannot.
pub(super) fn set_read_low_water(stream: &TcpStream, bytes: usize) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX).max(1);
    // SAFETY: the descriptor is open as long as `stream` is borrowed; the pointer and length describe one c_int.
    let rc = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One non-blocking call for `wanted` bytes. A short count of a stream socket says that nothing is left to move, so
/// it clears the readiness without paying for the call that would say `EAGAIN`.
fn call(
    stream: &TcpStream,
    interest: Interest,
    wanted: usize,
    mut op: impl FnMut() -> rustix::io::Result<usize>,
) -> io::Result<Moved> {
    let mut moved = Moved::Partly(0);
    let done = stream.try_io(interest, || {
        loop {
            return match op() {
                Ok(0) if wanted > 0 => {
                    moved = Moved::End;
                    Ok(())
                }
                Ok(n) if n >= wanted => {
                    moved = Moved::All(n);
                    Ok(())
                }
                Ok(n) => {
                    moved = Moved::Partly(n);
                    Err(io::ErrorKind::WouldBlock.into())
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => Err(e.into()),
            };
        }
    });
    match done {
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
        _ => Ok(moved),
    }
}

/// Reads into `bufs`, `wanted` bytes in all.
pub(super) fn read(stream: &TcpStream, bufs: &mut [IoSliceMut<'_>], wanted: usize) -> io::Result<Moved> {
    call(stream, Interest::READABLE, wanted, || rustix::io::readv(stream, bufs))
}

/// Writes `bufs`, `wanted` bytes in all.
pub(super) fn write(stream: &TcpStream, bufs: &[IoSlice<'_>], wanted: usize) -> io::Result<Moved> {
    call(stream, Interest::WRITABLE, wanted, || rustix::io::writev(stream, bufs))
}

/// Writes `bytes` and tells the kernel that more follows at once, so that they share a segment with it.
pub(super) fn write_more(stream: &TcpStream, bytes: &[u8]) -> io::Result<Moved> {
    let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
    call(stream, Interest::WRITABLE, bytes.len(), || rustix::net::send(stream, bytes, flags))
}

/// Sends `len` bytes of `file` from `offset`, from the page cache, without a copy. [`Moved::End`]: the file is
/// shorter than that.
pub(super) fn send_file(stream: &TcpStream, file: &File, offset: u64, len: usize) -> io::Result<Moved> {
    // A short count may also be the end of the file, so only `EAGAIN` (that is, a wanted count of one byte) clears
    // the readiness.
    let wanted = len.min(1);
    call(stream, Interest::WRITABLE, wanted, || {
        let mut at = offset;
        rustix::fs::sendfile(stream, file, Some(&mut at), len)
    })
}
