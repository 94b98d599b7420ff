//! The little that faults need to know of a connection.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

/// A second handle to an accepted socket.
pub(crate) struct Connection(Option<OwnedFd>);

impl Connection {
    pub(crate) fn of(stream: &TcpStream) -> Connection {
        Connection(stream.as_fd().try_clone_to_owned().ok())
    }

    /// From now on, closing it sends RST instead of FIN.
    pub(crate) fn reset_on_close(&self) {
        if let Some(socket) = &self.0 {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
}
