//! Errors as users see them: the thing, the reason, the next step, and the exit code.
//!
//! This is the one place that maps gRPC codes and the socket's codes to exit codes.

use std::fmt;
use std::io::Write as _;

/// Exit codes; a promise to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Also used where output had nowhere to go any more (a closed pipe).
    Ok = 0,
    /// Anything without a class of its own.
    Other = 1,
    /// Wrong flags or configuration.
    Usage = 2,
    /// Unknown dataset, version, node or key.
    Unknown = 3,
    /// Not ready in time: retry.
    NotReady = 4,
    /// Bytes that do not match.
    Integrity = 5,
    /// Coordinator or agent unreachable: retry.
    Unreachable = 6,
    /// No space, or over quota.
    NoSpace = 7,
    /// Conflicts with something that is there.
    Conflict = 8,
    /// Not allowed.
    Denied = 9,
    /// Stopped by a signal.
    Interrupted = 130,
}

impl Code {
    /// From the number that a coordinator or an agent sends.
    pub fn from_number(code: u64) -> Code {
        match code {
            0 => Code::Ok,
            2 => Code::Usage,
            3 => Code::Unknown,
            4 => Code::NotReady,
            5 => Code::Integrity,
            6 => Code::Unreachable,
            7 => Code::NoSpace,
            8 => Code::Conflict,
            9 => Code::Denied,
            _ => Code::Other,
        }
    }
}

/// Why a verb did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// What the process exits with.
    pub code: Code,
    /// What it is about: a dataset, a URL, a file.
    pub thing: String,
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub next: Option<String>,
}

/// What verbs return.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure without a next step.
    pub fn new(code: Code, thing: impl Into<String>, reason: impl fmt::Display) -> Failure {
        Failure { code, thing: thing.into(), reason: reason.to_string(), next: None }
    }

    /// [`Code::Other`].
    pub fn other(thing: impl Into<String>, reason: impl fmt::Display) -> Failure {
        Failure::new(Code::Other, thing, reason)
    }

    /// [`Code::Usage`].
    pub fn usage(thing: impl Into<String>, reason: impl fmt::Display) -> Failure {
        Failure::new(Code::Usage, thing, reason)
    }

    /// Says what to do about it.
    pub fn next(mut self, step: impl Into<String>) -> Failure {
        self.next = Some(step.into());
        self
    }

    /// Ctrl-C or SIGTERM.
    pub fn interrupted() -> Failure {
        Failure::new(Code::Interrupted, "interrupted", "")
    }

    /// Standard output is closed: end quietly.
    pub fn closed_pipe() -> Failure {
        Failure::new(Code::Ok, "", "")
    }

    /// A gRPC error about `thing`.
    pub fn from_status(thing: &str, status: &tonic::Status) -> Failure {
        let meta = |key| status.metadata().get(key).and_then(|v| v.to_str().ok());
        let code = match meta("millstream-code").and_then(|v| v.parse().ok()) {
            Some(number) => Code::from_number(number),
            None => code_of(status.code()),
        };
        let reason = match status.message() {
            "" => format!("the coordinator answered {:?}", status.code()),
            message => message.to_owned(),
        };
        let next = meta("millstream-next").map(str::to_owned).or_else(|| next_of(code).map(str::to_owned));
        Failure { code, thing: thing.to_owned(), reason, next }
    }

    /// Prints it, once. Nothing can be done when standard error is closed.
    pub fn report(&self) {
        if matches!(self.code, Code::Ok | Code::Interrupted) {
            return;
        }
        let mut err = std::io::stderr().lock();
        let _ = writeln!(err, "error: {self}");
        if let Some(next) = &self.next {
            let _ = writeln!(err, "  next: {next}");
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.thing)?;
        // Coordinators tend to begin with the thing as well: once is enough.
        match self.reason.strip_prefix(&format!("{}: ", self.thing)).unwrap_or(&self.reason) {
            "" => Ok(()),
            reason => write!(f, ": {reason}"),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::closed_pipe();
        }
        Failure::other("output", error)
    }
}

fn code_of(code: tonic::Code) -> Code {
    use tonic::Code as Grpc;
    match code {
        Grpc::Ok => Code::Ok,
        Grpc::InvalidArgument | Grpc::OutOfRange => Code::Usage,
        Grpc::NotFound => Code::Unknown,
        Grpc::DeadlineExceeded => Code::NotReady,
        Grpc::DataLoss => Code::Integrity,
        Grpc::Unavailable => Code::Unreachable,
        Grpc::ResourceExhausted => Code::NoSpace,
        Grpc::AlreadyExists | Grpc::Aborted | Grpc::FailedPrecondition => Code::Conflict,
        Grpc::PermissionDenied | Grpc::Unauthenticated => Code::Denied,
        _ => Code::Other,
    }
}

fn next_of(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::Unknown => "`millstream dataset ls` lists datasets, `millstream status` lists nodes",
        Code::NotReady => "wait longer with --timeout, or look at `millstream status`",
        Code::Integrity => {
            "`millstream status` names the shard and the source; fix the object at the origin, then `dataset add` a new version"
        }
        Code::Unreachable => "is the coordinator running? see --coordinator and MILLSTREAM_COORDINATOR; then try again",
        Code::NoSpace => "free space with `millstream evict`, or raise the agent's --capacity",
        Code::Conflict => "`millstream status` shows what is there",
        Code::Denied => "check the credentials (AWS_* for S3) and their permissions",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::MetadataValue;

    #[test]
    fn the_coordinators_own_code_wins_over_grpc() {
        let mut status = tonic::Status::internal("x");
        status.metadata_mut().insert("millstream-code", MetadataValue::from_static("7"));
        assert_eq!(Failure::from_status("d", &status).code, Code::NoSpace);
        assert_eq!(Failure::from_status("d", &tonic::Status::not_found("x")).code, Code::Unknown);
        assert_eq!(Failure::from_status("d", &tonic::Status::internal("x")).code, Code::Other);
    }

    #[test]
    fn the_thing_is_named_once() {
        let failure = Failure::new(Code::Unknown, "digits@v9", "digits@v9: no such version");
        assert_eq!(failure.to_string(), "digits@v9: no such version");
        assert_eq!(Failure::interrupted().to_string(), "interrupted");
    }

    #[test]
    fn codes_are_the_documented_numbers() {
        for n in 0..=9 {
            assert_eq!(u64::from(Code::from_number(n) as u8), n);
        }
        assert_eq!(Code::from_number(77), Code::Other);
        assert_eq!(Code::Interrupted as u8, 130);
    }
}
