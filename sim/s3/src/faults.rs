//! Faults on order: which requests suffer, how often, and what happens to them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::limits::FAULTS_MAX;

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FaultKind {
    /// An answer with this status (500, 503 with `SlowDown`, 429, 403 …) and no object.
    Status {
        /// The HTTP status.
        status: u16,
        /// Sent as `Retry-After`.
        #[serde(default)]
        retry_after_s: Option<u32>,
    },
    /// A well-formed answer with fewer bytes than were asked for.
    ShortBody {
        /// Bytes that come.
        bytes: u64,
    },
    /// The announced length, but the connection ends orderly (FIN) after so many bytes.
    Truncate {
        /// Bytes that come.
        bytes: u64,
    },
    /// The connection is reset (RST) after so many bytes.
    Reset {
        /// Bytes that come.
        bytes: u64,
    },
    /// One bit is wrong, the length right.
    Corrupt {
        /// Which byte of the answer's body.
        at: u64,
    },
    /// The answer says that the object is not the one that was asked for (412).
    Changed,
    /// The answer comes this much later.
    Latency {
        /// Milliseconds.
        ms: u64,
    },
    /// After so many bytes nothing comes any more, while the connection stays open.
    Stall {
        /// Bytes that come.
        bytes: u64,
    },
    /// The body comes at this rate.
    Rate {
        /// Bytes per second.
        bytes_per_s: u64,
    },
}

/// A fault and whom it hits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// `bucket/key`, where `*` stands for any text.
    pub key: String,
    /// `get`, `head`, `list`, `put`; `None`: all of them.
    #[serde(default)]
    pub request: Option<String>,
    /// Requests that pass first.
    #[serde(default)]
    pub skip: u64,
    /// Requests that are hit; `None`: all from then on.
    #[serde(default)]
    pub count: Option<u64>,
    /// What happens.
    pub kind: FaultKind,
}

impl Fault {
    /// Hits every GET of `bucket/key` (`*` stands for any text).
    pub fn on_get(key: &str, kind: FaultKind) -> Fault {
        Fault { key: key.to_owned(), request: Some("get".to_owned()), skip: 0, count: None, kind }
    }

    /// Only so many times.
    pub fn times(self, count: u64) -> Fault {
        Fault { count: Some(count), ..self }
    }
}

/// A fault on duty.
#[derive(Clone, Debug, Serialize)]
pub struct Armed {
    /// Its number.
    pub id: u64,
    /// Requests hit so far.
    pub hits: u64,
    /// The fault.
    #[serde(flatten)]
    pub fault: Fault,
}

/// All faults on duty.
#[derive(Debug, Default)]
pub struct Faults {
    armed: Mutex<(u64, Vec<Armed>)>,
}

impl Faults {
    fn armed(&self) -> MutexGuard<'_, (u64, Vec<Armed>)> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a fault on duty and returns its number; `None` when there are too many.
    pub fn add(&self, fault: Fault) -> Option<u64> {
        let mut armed = self.armed();
        if armed.1.len() >= FAULTS_MAX {
            return None;
        }
        armed.0 += 1;
        let id = armed.0;
        armed.1.push(Armed { id, hits: 0, fault });
        Some(id)
    }

    /// Takes one off duty.
    pub fn remove(&self, id: u64) -> bool {
        let mut armed = self.armed();
        let before = armed.1.len();
        armed.1.retain(|a| a.id != id);
        armed.1.len() != before
    }

    /// Takes all off duty.
    pub fn clear(&self) {
        self.armed().1.clear();
    }

    /// All of them, also those that are used up.
    pub fn list(&self) -> Vec<Armed> {
        self.armed().1.clone()
    }

    /// What hits this request: every fault that matches, in the order they were added.
    pub(crate) fn pick(&self, request: &str, path: &str) -> Vec<FaultKind> {
        let mut armed = self.armed();
        if armed.1.is_empty() {
            return Vec::new();
        }
        let mut out = Vec::new();
        for a in &mut armed.1 {
            let wanted = a.fault.request.as_deref().is_none_or(|r| r == request);
            if !wanted || !matches(&a.fault.key, path) {
                continue;
            }
            if a.fault.skip > 0 {
                a.fault.skip -= 1;
                continue;
            }
            if let Some(left) = &mut a.fault.count {
                if *left == 0 {
                    continue;
                }
                *left -= 1;
            }
            a.hits += 1;
            out.push(a.fault.kind.clone());
        }
        out
    }
}

/// Does `text` fit `pattern`, where `*` stands for any text?
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, fits) in [
            ("data/a", "data/a", true),
            ("data/a", "data/ab", false),
            ("data/*", "data/x/y", true),
            ("*", "", true),
            ("*.tar", "data/x.tar", true),
            ("*.tar", "data/x.tar.gz", false),
            ("d*a/*1*", "data/s-123", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn faults_skip_count_and_end() {
        let faults = Faults::default();
        let mut fault = Fault::on_get("b/*", FaultKind::Changed).times(2);
        fault.skip = 1;
        faults.add(fault).unwrap();
        let hit = |request, path| !faults.pick(request, path).is_empty();
        assert!(!hit("head", "b/k") && !hit("get", "c/k"), "not concerned");
        let hits: Vec<bool> = (0..5).map(|_| hit("get", "b/k")).collect();
        assert_eq!(hits, [false, true, true, false, false]);
        assert_eq!(faults.list()[0].hits, 2);
    }

    #[test]
    fn faults_read_from_json() {
        let text = r#"{"key":"data/*","count":1,"kind":{"type":"status","status":503}}"#;
        let fault: Fault = serde_json::from_str(text).unwrap();
        assert_eq!(fault.count, Some(1));
        assert!(matches!(fault.kind, FaultKind::Status { status: 503, .. }));
    }
}
