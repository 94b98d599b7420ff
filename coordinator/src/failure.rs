//! What can go wrong with a client's request, and its one mapping to gRPC status and exit code.
//!
//! Every answer names the thing and the reason in its message, the exit code in the metadata `millstream-code` and
//! the next step in `millstream-next`.

use millstream_origin::OriginError;
use millstream_proto::convert::{ConvertError, problem_to_details};
use millstream_proto::manifest::{ManifestDecodeError, ManifestEncodeError};
use millstream_proto::v1;
use millstream_types::id::NameError;
use millstream_types::manifest::ManifestError;
use millstream_types::size::format_size;
use thiserror::Error;
use tonic::{Code as Grpc, Status};

use crate::limits::NODES_NAMED_MAX;
use crate::store::StoreError;

/// Metadata key of the exit code.
pub const META_CODE: &str = "millstream-code";
/// Metadata key of the next step.
pub const META_NEXT: &str = "millstream-next";

/// Exit codes of the command line, as a client's request may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ExitCode {
    /// Anything else.
    Other = 1,
    /// The request makes no sense.
    Usage = 2,
    /// No such dataset, version, node or key.
    Unknown = 3,
    /// Not in time: try again.
    NotReady = 4,
    /// Bytes do not match.
    Integrity = 5,
    /// Nobody there: try again.
    Unreachable = 6,
    /// No room.
    NoSpace = 7,
    /// Something else is there already, or changed.
    Conflict = 8,
    /// Not allowed.
    Denied = 9,
}

impl ExitCode {
    /// From a number as it travels in failures of the core.
    pub fn from_number(number: u32) -> ExitCode {
        match number {
            2 => ExitCode::Usage,
            3 => ExitCode::Unknown,
            4 => ExitCode::NotReady,
            5 => ExitCode::Integrity,
            6 => ExitCode::Unreachable,
            7 => ExitCode::NoSpace,
            8 => ExitCode::Conflict,
            9 => ExitCode::Denied,
            _ => ExitCode::Other,
        }
    }

    fn grpc(self) -> Grpc {
        match self {
            ExitCode::Other => Grpc::Internal,
            ExitCode::Usage => Grpc::InvalidArgument,
            ExitCode::Unknown => Grpc::NotFound,
            ExitCode::NotReady => Grpc::DeadlineExceeded,
            ExitCode::Integrity => Grpc::DataLoss,
            ExitCode::Unreachable => Grpc::Unavailable,
            ExitCode::NoSpace => Grpc::ResourceExhausted,
            ExitCode::Conflict => Grpc::AlreadyExists,
            ExitCode::Denied => Grpc::PermissionDenied,
        }
    }
}

/// Why a client's request was refused or failed.
#[derive(Debug, Error)]
pub enum RequestError {
    /// A field of the request.
    #[error(transparent)]
    Field(#[from] ConvertError),
    /// A name or version.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A field, in our own words.
    #[error("{field}: {reason}")]
    Usage {
        /// Of the request.
        field: &'static str,
        /// In words.
        reason: String,
    },
    /// Not in the catalog.
    #[error("no dataset {selector:?} in the catalog{hint}")]
    UnknownDataset {
        /// As asked for.
        selector: String,
        /// The versions that there are, in words.
        hint: String,
    },
    /// Not in the version.
    #[error("{dataset} has no shard {key:?}")]
    UnknownKey {
        /// The version.
        dataset: String,
        /// As asked for.
        key: String,
    },
    /// Never seen.
    #[error("no node {}", named(names))]
    UnknownNodes {
        /// As asked for.
        names: Vec<String>,
    },
    /// Never opened, or forgotten.
    #[error("no job {job}")]
    UnknownJob {
        /// As asked for.
        job: String,
    },
    /// `all` of nothing.
    #[error("no agent is connected, so there is no node to use")]
    NoNodes,
    /// Not ready in time.
    #[error("{dataset} is not ready after {after}: {nodes_ready} of {nodes_total} nodes are; missing: {missing}")]
    NotInTime {
        /// The version.
        dataset: String,
        /// The timeout.
        after: String,
        /// Of the selection.
        nodes_ready: u32,
        /// The selection.
        nodes_total: u32,
        /// In words.
        missing: String,
    },
    /// Another content under the same name.
    #[error("{name} exists with other content (digest {existing}, now {found}); a version never changes")]
    VersionConflict {
        /// `name@version`.
        name: String,
        /// In the catalog.
        existing: String,
        /// At the origin now.
        found: String,
    },
    /// Something stands in the way.
    #[error("{reason}")]
    Conflict {
        /// In words, naming the thing.
        reason: String,
        /// What to do.
        next: String,
    },
    /// What is asked for will not come: a shard failed for good, or the node's disk does not take the version. The
    /// whole problem travels in the status's details.
    #[error("{}", .0.message)]
    WillNotCome(Box<v1::Problem>),
    /// What a node asks for does not fit there.
    #[error(
        "{what} does not fit on {node}: {} more are needed, and {} are free",
        format_size(*.needed),
        format_size(*.free)
    )]
    NoRoom {
        /// The shard and its version.
        what: String,
        /// Where.
        node: String,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// A limit of [`limits`](crate::limits).
    #[error("{what}: {limit} are the most")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many may be.
        limit: usize,
    },
    /// The origin.
    #[error("cannot read {url}: {source}")]
    Origin {
        /// As given.
        url: String,
        /// Why.
        source: OriginError,
    },
    /// What is under the URL cannot be a dataset.
    #[error("{url} cannot be a dataset: {source}")]
    Manifest {
        /// As given.
        url: String,
        /// Why.
        source: ManifestError,
    },
    /// The manifest cannot be written.
    #[error(transparent)]
    Encode(#[from] ManifestEncodeError),
    /// The manifest in the catalog cannot be read.
    #[error("the manifest of {digest} in the catalog is damaged: {source}")]
    Decode {
        /// The version.
        digest: String,
        /// Why.
        source: ManifestDecodeError,
    },
    /// The catalog's disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// On its way down.
    #[error("the coordinator is stopping")]
    Stopping,
}

/// The first few names, and how many more.
pub fn named(names: &[String]) -> String {
    let mut text = names.iter().take(NODES_NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > NODES_NAMED_MAX {
        text.push_str(&format!(" and {} more", names.len() - NODES_NAMED_MAX));
    }
    text
}

impl RequestError {
    /// The exit code that a client ends with.
    pub fn code(&self) -> ExitCode {
        match self {
            RequestError::Field(_)
            | RequestError::Name(_)
            | RequestError::Usage { .. }
            | RequestError::Manifest { .. } => ExitCode::Usage,
            RequestError::UnknownDataset { .. }
            | RequestError::UnknownKey { .. }
            | RequestError::UnknownNodes { .. }
            | RequestError::UnknownJob { .. } => ExitCode::Unknown,
            RequestError::NoNodes | RequestError::NotInTime { .. } => ExitCode::NotReady,
            RequestError::VersionConflict { .. } | RequestError::Conflict { .. } => ExitCode::Conflict,
            RequestError::TooMany { .. } | RequestError::NoRoom { .. } => ExitCode::NoSpace,
            RequestError::WillNotCome(problem) => ExitCode::from_number(problem.code),
            RequestError::Origin { source, .. } => origin_code(source),
            RequestError::Decode { .. } => ExitCode::Integrity,
            RequestError::Encode(_) | RequestError::Store(_) => ExitCode::Other,
            RequestError::Stopping => ExitCode::Unreachable,
        }
    }

    /// What the caller can do about it.
    pub fn next(&self) -> String {
        match self {
            RequestError::Field(_) | RequestError::Name(_) | RequestError::Usage { .. } => {
                "correct the request and try again".into()
            }
            RequestError::UnknownDataset { .. } => {
                "see `millstream dataset ls`, or register it with `millstream dataset add NAME URL`".into()
            }
            RequestError::UnknownKey { dataset, .. } => format!("see `millstream dataset show {dataset}`"),
            RequestError::UnknownNodes { .. } => "see `millstream status` for the nodes that there are".into(),
            RequestError::UnknownJob { .. } => "see `millstream status --json`, under jobs".into(),
            RequestError::NoNodes => {
                "start `millstream agent` on the nodes, see `millstream status`, then try again".into()
            }
            RequestError::NotInTime { .. } => "wait longer with --timeout, or look at `millstream status`".into(),
            RequestError::VersionConflict { .. } => {
                "register the new content under another --version, or leave --version out".into()
            }
            RequestError::Conflict { next, .. } => next.clone(),
            // Of a shard: its key is named. Of a node: nothing in particular.
            RequestError::WillNotCome(problem) if problem.key.is_empty() => {
                "mend the disk there, then stage it again".into()
            }
            RequestError::WillNotCome(_) => {
                "see `millstream status`; if the object changed, register a new version with `millstream dataset add`"
                    .into()
            }
            RequestError::NoRoom { .. } => "evict something there, or raise the agent's --capacity".into(),
            RequestError::TooMany { .. } => "remove what is no longer needed, or wait".into(),
            RequestError::Origin { .. } => {
                "check the URL, the credentials and the network of the coordinator (`millstream doctor`)".into()
            }
            RequestError::Manifest { .. } => "rename the objects, or choose a prefix that leaves them out".into(),
            RequestError::Decode { .. } => {
                "remove the version and add it again; agents keep their verified files".into()
            }
            RequestError::Encode(_) => "split the prefix into several datasets".into(),
            RequestError::Store(_) => "see the coordinator's log, and its disk".into(),
            RequestError::Stopping => "try again when it is back".into(),
        }
    }
}

fn origin_code(error: &OriginError) -> ExitCode {
    match error {
        OriginError::Url { .. } | OriginError::BadKeys { .. } => ExitCode::Usage,
        OriginError::NotFound { .. } => ExitCode::Unknown,
        OriginError::Throttled { .. } | OriginError::Transient { .. } => ExitCode::NotReady,
        OriginError::Changed { .. } => ExitCode::Conflict,
        OriginError::Denied { .. } => ExitCode::Denied,
        _ => ExitCode::Other,
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Status {
        let code = error.code();
        if matches!(error, RequestError::Stopping) {
            // Without a code: clients take it like a broken connection, and come back.
            return Status::unavailable(error.to_string());
        }
        let details = match &error {
            RequestError::WillNotCome(problem) => problem_to_details(problem),
            _ => Vec::new(),
        };
        let mut status = Status::with_details(code.grpc(), error.to_string(), details.into());
        let meta = status.metadata_mut();
        meta.insert(META_CODE, (code as u32).into());
        // A next step that names something that is no ASCII is left out; the message has it.
        if let Ok(next) = error.next().parse() {
            meta.insert(META_NEXT, next);
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_carries_message_code_and_next_step() {
        let status = Status::from(RequestError::UnknownNodes { names: vec!["n9".into()] });
        assert_eq!(status.code(), Grpc::NotFound);
        assert_eq!(status.message(), "no node n9");
        assert_eq!(status.metadata().get(META_CODE).unwrap(), "3");
        assert!(status.metadata().contains_key(META_NEXT));
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<_> = (0..1000).map(|n| format!("n{n}")).collect();
        let text = named(&names);
        assert!(text.ends_with("and 936 more"), "{text}");
    }
}
