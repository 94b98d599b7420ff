//! Why there is no RDMA, or no longer. Each reason has a short code that metrics, status and documents use.

use std::io;

/// Why something could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum RdmaError {
    /// libibverbs is not installed, or not usable.
    #[error("cannot load {library}: {detail}; install libibverbs1 and ibverbs-providers")]
    Library {
        /// The library.
        library: &'static str,
        /// What the loader says.
        detail: String,
    },
    /// The kernel or the library lists no device, or not the one that was named.
    #[error("no RDMA device{}", .wanted.as_ref().map(|w| format!(" named {w}")).unwrap_or_default())]
    NoDevice {
        /// The name that was asked for.
        wanted: Option<String>,
    },
    /// The device is listed but cannot be used.
    #[error("cannot open {device}: {source}")]
    Open {
        /// The device.
        device: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No port of it is active.
    #[error("no port of {device} is active")]
    PortDown {
        /// The device.
        device: String,
    },
    /// The port has no address that peers could use.
    #[error("port {port} of {device} has no usable GID")]
    NoGid {
        /// The device.
        device: String,
        /// The port.
        port: u8,
    },
    /// Memory cannot be registered: usually the limit on locked memory.
    #[error("cannot register {bytes} bytes with {device}: {source}")]
    Register {
        /// The device.
        device: String,
        /// How much.
        bytes: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something else that a device must give was refused.
    #[error("{device} gives no {what}: {source}")]
    Create {
        /// The device.
        device: String,
        /// What.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The peer's address cannot be reached from this port.
    #[error("{device} does not reach the peer's queue pair: {source}")]
    Connect {
        /// The device.
        device: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// As many queue pairs as are allowed exist already.
    #[error("{device} has its {limit} queue pairs")]
    TooManyQueues {
        /// The device.
        device: String,
        /// [`crate::RailOptions::queues_max`].
        limit: usize,
    },
    /// The rail has failed before.
    #[error("{device} has failed: {fault}")]
    Failed {
        /// The device.
        device: String,
        /// Why.
        fault: Fault,
    },
}

impl RdmaError {
    /// The reason code.
    pub fn reason(&self) -> &'static str {
        match self {
            RdmaError::Library { .. } => "library-missing",
            RdmaError::NoDevice { .. } => "no-device",
            RdmaError::Open { .. } => "device-unusable",
            RdmaError::PortDown { .. } => "port-down",
            RdmaError::NoGid { .. } => "no-gid",
            RdmaError::Register { source, .. } => match source.raw_os_error() {
                Some(libc::ENOMEM | libc::EAGAIN | libc::EPERM) => "memlock",
                _ => "registration-refused",
            },
            RdmaError::Create { .. } => "no-resources",
            RdmaError::Connect { .. } => "no-route",
            RdmaError::TooManyQueues { .. } => "queue-pairs-used-up",
            RdmaError::Failed { fault, .. } => fault.reason(),
        }
    }

    pub(crate) fn create(device: &str, what: &'static str) -> RdmaError {
        RdmaError::Create { device: device.to_owned(), what, source: io::Error::last_os_error() }
    }
}

/// Why a queue pair, or a whole rail, works no longer. Everything in flight ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// The peer did not acknowledge.
    #[error("the peer does not acknowledge (retries exceeded)")]
    RetryExceeded,
    /// The peer posted no receive for an immediate value.
    #[error("the peer is not ready to receive (retries exceeded)")]
    ReceiverNotReady,
    /// The peer's NIC refused the key or the address.
    #[error("the peer's device refused the key or address")]
    RemoteAccess,
    /// The peer's NIC refused the request.
    #[error("the peer's device refused the request")]
    RemoteRefused,
    /// This side's NIC refused a request or a buffer.
    #[error("the device refused a request (completion status {0})")]
    Local(u32),
    /// The queue pair went into error without saying why.
    #[error("the queue pair was flushed")]
    Flushed,
    /// The peer wrote what it was not asked for.
    #[error("the peer wrote something that was not asked for")]
    Protocol,
    /// A request could not be posted.
    #[error("a request could not be posted (errno {0})")]
    Post(i32),
    /// The device went away.
    #[error("the device was removed")]
    DeviceRemoved,
    /// The port went down.
    #[error("the port went down")]
    PortDown,
    /// The port's address changed.
    #[error("the port's GID changed")]
    GidChanged,
    /// Queue pair after queue pair of the rail failed, and nothing worked in between.
    #[error("the rail is paused after repeated faults")]
    RailPaused,
    /// Memory is not registered.
    #[error("the buffer is not in registered memory")]
    NotRegistered,
    /// All slots that may be lent at once are.
    #[error("too many slots are lent on this queue pair")]
    Busy,
    /// This side closed the queue pair.
    #[error("closed")]
    Closed,
}

impl Fault {
    /// The reason code.
    pub fn reason(self) -> &'static str {
        match self {
            Fault::RetryExceeded => "retry-exceeded",
            Fault::ReceiverNotReady => "receiver-not-ready",
            Fault::RemoteAccess => "remote-access",
            Fault::RemoteRefused => "remote-refused",
            Fault::Local(_) => "local-error",
            Fault::Flushed => "flushed",
            Fault::Protocol => "protocol",
            Fault::Post(_) => "post-refused",
            Fault::DeviceRemoved => "device-removed",
            Fault::PortDown => "port-down",
            Fault::GidChanged => "gid-changed",
            Fault::RailPaused => "rail-paused",
            Fault::NotRegistered => "not-registered",
            Fault::Busy => "busy",
            Fault::Closed => "closed",
        }
    }

    /// From a completion's status; `None` is success.
    pub(crate) fn from_status(status: rdma_sys::ibv_wc_status::Type) -> Option<Fault> {
        use rdma_sys::ibv_wc_status::*;
        match status {
            IBV_WC_SUCCESS => None,
            IBV_WC_RETRY_EXC_ERR | IBV_WC_RESP_TIMEOUT_ERR => Some(Fault::RetryExceeded),
            IBV_WC_RNR_RETRY_EXC_ERR => Some(Fault::ReceiverNotReady),
            IBV_WC_REM_ACCESS_ERR => Some(Fault::RemoteAccess),
            IBV_WC_REM_INV_REQ_ERR | IBV_WC_REM_OP_ERR | IBV_WC_REM_ABORT_ERR => Some(Fault::RemoteRefused),
            IBV_WC_WR_FLUSH_ERR => Some(Fault::Flushed),
            other => Some(Fault::Local(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Newer libraries have more statuses than this version knows.
    #[test]
    fn any_completion_status_is_success_or_a_fault() {
        assert_eq!(Fault::from_status(0), None);
        for status in (1..=64).chain([u32::MAX]) {
            let fault = Fault::from_status(status).expect("not success");
            assert!(!fault.reason().is_empty());
        }
        assert_eq!(Fault::from_status(9999), Some(Fault::Local(9999)));
    }
}
