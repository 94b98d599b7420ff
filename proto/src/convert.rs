//! Wire messages into the words of `millstream-types`: parse, don't validate.
//!
//! Purpose: the one place where fields of [`crate::v1`] become types that cannot be wrong.
//! Participants: the coordinator's and the agent's control streams, and the client service behind the CLI.
//! Goals: every function is total (no panic, no unbounded allocation for any input); every refusal names the field.
//! Non-goals: whole messages: each shell matches on its own and calls this for the fields.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use millstream_types::id::DatasetSelector;
use millstream_types::{Crc64, Digest, RunSet};
use prost::Message as _;
use thiserror::Error;

use crate::limits::{
    ADDRESS_BYTES_MAX, CRCS_PER_MESSAGE_MAX, HOSTLIST_BYTES_MAX, HOSTLIST_NAMES_MAX, LABEL_BYTES_MAX, LABELS_MAX,
    NODE_NAME_BYTES_MAX, RUNS_MAX,
};
use crate::v1;

/// A field of a message that means nothing: which, and why.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {reason}")]
pub struct ConvertError {
    /// The field, by its name in the schema.
    pub field: &'static str,
    /// Why it was refused, with the value where it is short.
    pub reason: String,
}

fn refuse<T>(field: &'static str, reason: impl Into<String>) -> Result<T, ConvertError> {
    Err(ConvertError { field, reason: reason.into() })
}

/// Runs on the wire into a set. Runs must be pairs, not empty, sorted and disjoint.
///
/// # Errors
/// [`ConvertError`] saying which run is wrong.
pub fn runs_to_set(runs: &v1::Runs) -> Result<RunSet, ConvertError> {
    const FIELD: &str = "runs";
    let flat = &runs.start_len;
    if !flat.len().is_multiple_of(2) {
        return refuse(FIELD, "a start without a length");
    }
    if flat.len() / 2 > RUNS_MAX {
        return refuse(FIELD, format!("{} runs, and {RUNS_MAX} are the most", flat.len() / 2));
    }
    let mut end_before = 0;
    for (no, run) in flat.chunks_exact(2).enumerate() {
        let (start, len) = (run[0], run[1]);
        let Some(end) = start.checked_add(len) else {
            return refuse(FIELD, format!("run {no} ends beyond 2^32"));
        };
        if len == 0 {
            return refuse(FIELD, format!("run {no} is empty"));
        }
        if start < end_before {
            return refuse(FIELD, format!("run {no} begins at {start}, before {end_before}"));
        }
        end_before = end;
    }
    Ok(RunSet::from_runs(flat.chunks_exact(2).map(|run| run[0]..run[0] + run[1])))
}

/// Like [`runs_to_set`], and nothing at or beyond `end` (the number of pieces or shards of the version).
///
/// # Errors
/// [`ConvertError`] saying what is wrong.
pub fn runs_within(runs: &v1::Runs, end: u32) -> Result<RunSet, ConvertError> {
    let set = runs_to_set(runs)?;
    match set.runs().last() {
        Some(last) if last.end > end => {
            refuse("runs", format!("number {}, but the version ends at {end}", last.end - 1))
        }
        _ => Ok(set),
    }
}

/// A set as runs on the wire.
pub fn set_to_runs(set: &RunSet) -> v1::Runs {
    v1::Runs { start_len: set.runs().iter().flat_map(|run| [run.start, run.end - run.start]).collect() }
}

/// First number and count into a range that lies within `0..end`.
///
/// # Errors
/// [`ConvertError`] for an empty range or one that goes beyond `end`.
pub fn range_within(field: &'static str, first: u32, count: u32, end: u32) -> Result<Range<u32>, ConvertError> {
    match first.checked_add(count) {
        _ if count == 0 => refuse(field, "an empty range"),
        Some(past) if past <= end => Ok(first..past),
        _ => refuse(field, format!("{count} from {first} on, but the version ends at {end}")),
    }
}

/// Checksums of consecutive pieces, checked against the number of pieces of the version: the first piece and one
/// checksum per piece.
///
/// # Errors
/// [`ConvertError`] for none, too many, or pieces that the version does not have.
pub fn crcs_within(message: &v1::PieceChecksums, pieces: u32) -> Result<(u32, Vec<Crc64>), ConvertError> {
    const FIELD: &str = "crcs";
    let count = message.crcs.len();
    if count > CRCS_PER_MESSAGE_MAX {
        return refuse(FIELD, format!("{count} checksums, and {CRCS_PER_MESSAGE_MAX} are the most in one message"));
    }
    range_within(FIELD, message.first, count as u32, pieces)?;
    Ok((message.first, crcs_from_wire(&message.crcs)))
}

/// Checksums as they travel.
pub fn crcs_to_wire(crcs: &[Crc64]) -> Vec<u64> {
    crcs.iter().map(|crc| crc.0).collect()
}

/// Checksums as we keep them.
pub fn crcs_from_wire(crcs: &[u64]) -> Vec<Crc64> {
    crcs.iter().copied().map(Crc64).collect()
}

/// 32 bytes into a digest.
///
/// # Errors
/// [`ConvertError`] for any other length.
pub fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, ConvertError> {
    match Digest::from_slice(bytes) {
        Some(digest) => Ok(digest),
        None => refuse(field, format!("a digest has 32 bytes, and these are {}", bytes.len())),
    }
}

/// `name` or `name@version`.
///
/// # Errors
/// [`ConvertError`] with the reason of [`millstream_types::id::NameError`].
pub fn selector(field: &'static str, text: &str) -> Result<DatasetSelector, ConvertError> {
    text.parse().or_else(|e| refuse(field, format!("{e}")))
}

/// Where a fetch reads from, as it travels: peers by name and address, because numbers of nodes are private to one
/// coordinator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WireSource {
    /// The object store.
    Origin,
    /// Another agent.
    Peer {
        /// Its name.
        node: String,
        /// host:port where it serves peers.
        address: String,
    },
}

/// A source off the wire.
///
/// # Errors
/// [`ConvertError`] when it is missing, or a peer without a proper name and address.
pub fn source(field: &'static str, source: Option<&v1::Source>) -> Result<WireSource, ConvertError> {
    match source.and_then(|s| s.from.as_ref()) {
        Some(v1::source::From::Origin(_)) => Ok(WireSource::Origin),
        Some(v1::source::From::Peer(peer)) => Ok(WireSource::Peer {
            node: node_name(field, &peer.node)?.to_owned(),
            address: address(field, &peer.address)?.to_owned(),
        }),
        None => refuse(field, "no source"),
    }
}

impl From<WireSource> for v1::Source {
    fn from(source: WireSource) -> v1::Source {
        let from = match source {
            WireSource::Origin => v1::source::From::Origin(true),
            WireSource::Peer { node, address } => v1::source::From::Peer(v1::PeerSource { node, address }),
        };
        v1::Source { from: Some(from) }
    }
}

/// A node's name: 1 to 255 printable bytes without spaces, commas or brackets (those have a meaning in host lists).
///
/// # Errors
/// [`ConvertError`] with the reason.
pub fn node_name<'a>(field: &'static str, name: &'a str) -> Result<&'a str, ConvertError> {
    if name.is_empty() {
        return refuse(field, "the node name is empty");
    }
    if name.len() > NODE_NAME_BYTES_MAX {
        return refuse(
            field,
            format!("the node name has {} bytes, and {NODE_NAME_BYTES_MAX} are the most", name.len()),
        );
    }
    let bad = |c: char| c.is_control() || c.is_whitespace() || matches!(c, ',' | '[' | ']');
    match name.chars().find(|&c| bad(c)) {
        Some(c) => refuse(field, format!("the node name {name:?} has {c:?}")),
        None => Ok(name),
    }
}

/// `host:port`, with `[v6]:port` for IPv6; the port is not zero.
///
/// # Errors
/// [`ConvertError`] with the reason.
pub fn address<'a>(field: &'static str, text: &'a str) -> Result<&'a str, ConvertError> {
    let short = || text.chars().take(80).collect::<String>();
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == '/' || c == '@';
    if text.len() > ADDRESS_BYTES_MAX || text.chars().any(odd) {
        return refuse(field, format!("{:?} is not host:port", short()));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return refuse(field, format!("{:?} is not host:port", short()));
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || (host.contains(':') && !bracketed) {
        return refuse(field, format!("{:?} has no host", short()));
    }
    match port.parse::<u16>() {
        Ok(port) if port != 0 => Ok(text),
        _ => refuse(field, format!("{:?} has no port", short())),
    }
}

/// Labels of a node, in order of their keys.
///
/// # Errors
/// [`ConvertError`] for too many, or for keys and values that are too long or not printable.
pub fn labels(field: &'static str, labels: &HashMap<String, String>) -> Result<BTreeMap<String, String>, ConvertError> {
    if labels.len() > LABELS_MAX {
        return refuse(field, format!("{} labels, and {LABELS_MAX} are the most", labels.len()));
    }
    let mut out = BTreeMap::new();
    for (key, value) in labels {
        let long = key.len().max(value.len()) > LABEL_BYTES_MAX;
        let odd = key.chars().any(|c| c.is_control() || c.is_whitespace()) || value.chars().any(char::is_control);
        if key.is_empty() || long || odd {
            let key: String = key.chars().take(80).collect();
            return refuse(field, format!("the label {key:?} is not usable"));
        }
        out.insert(key.clone(), value.clone());
    }
    Ok(out)
}

/// Names behind a host list in Slurm's notation: `node[01-04,7],x` is node01, node02, node03, node04, node7, x.
///
/// Several brackets in one name multiply; numbers keep the width they are written with. Each name comes once, at its
/// first place.
///
/// # Errors
/// [`ConvertError`] for unbalanced brackets, ranges that run backwards, bad names, or more than
/// [`HOSTLIST_NAMES_MAX`] names.
pub fn hostlist(field: &'static str, text: &str) -> Result<Vec<String>, ConvertError> {
    if text.len() > HOSTLIST_BYTES_MAX {
        return refuse(field, format!("{} bytes, and {HOSTLIST_BYTES_MAX} are the most", text.len()));
    }
    let mut names = Vec::new();
    let mut seen = HashSet::new();
    for part in split_outside_brackets(field, text)? {
        let part = part.trim();
        if part.is_empty() {
            return refuse(field, "an empty name between commas");
        }
        // Bounded by what is still allowed; names that come again use up the allowance too, so that the work is
        // bounded as well as the result.
        for name in expand(field, part)? {
            node_name(field, &name)?;
            if seen.insert(name.clone()) {
                names.push(name);
            }
            if names.len() > HOSTLIST_NAMES_MAX {
                return too_many(field);
            }
        }
    }
    Ok(names)
}

fn too_many<T>(field: &'static str) -> Result<T, ConvertError> {
    refuse(field, format!("more than {HOSTLIST_NAMES_MAX} names"))
}

fn split_outside_brackets<'a>(field: &'static str, text: &'a str) -> Result<Vec<&'a str>, ConvertError> {
    let mut parts = Vec::new();
    let (mut open, mut start) = (false, 0);
    for (at, c) in text.char_indices() {
        match c {
            '[' if open => return refuse(field, "a bracket within brackets"),
            '[' => open = true,
            ']' if !open => return refuse(field, "']' without '['"),
            ']' => open = false,
            ',' if !open => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if open {
        return refuse(field, "'[' without ']'");
    }
    parts.push(&text[start..]);
    if parts.len() > HOSTLIST_NAMES_MAX {
        return too_many(field);
    }
    Ok(parts)
}

/// One comma-free part, brackets balanced: prefix, bracket, rest, as often as there are brackets.
fn expand(field: &'static str, part: &str) -> Result<Vec<String>, ConvertError> {
    let mut names = vec![String::new()];
    let mut rest = part;
    while let Some(open) = rest.find('[') {
        let close = rest[open..].find(']').map_or(rest.len(), |at| open + at);
        let numbers = expand_numbers(field, &rest[open + 1..close])?;
        if names.len().saturating_mul(numbers.len()) > HOSTLIST_NAMES_MAX {
            return too_many(field);
        }
        let prefix = &rest[..open];
        if names[0].len() + prefix.len() > NODE_NAME_BYTES_MAX {
            return refuse(field, "a name that is too long");
        }
        names = names.iter().flat_map(|name| numbers.iter().map(move |n| format!("{name}{prefix}{n}"))).collect();
        rest = &rest[(close + 1).min(rest.len())..];
    }
    if names.len() > 1 && rest.len() > NODE_NAME_BYTES_MAX {
        return refuse(field, "a name that is too long");
    }
    for name in &mut names {
        name.push_str(rest);
    }
    Ok(names)
}

/// `01-04,7` into its numbers as text.
fn expand_numbers(field: &'static str, text: &str) -> Result<Vec<String>, ConvertError> {
    let mut out = Vec::new();
    for item in text.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let number = |s: &str| {
            let digits = !s.is_empty() && s.len() <= 18 && s.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| s.parse::<u64>().ok()).flatten()
        };
        let (Some(from), Some(to)) = (number(first), number(last)) else {
            let item: String = item.chars().take(40).collect();
            return refuse(field, format!("{item:?} is not a number or a range"));
        };
        if from > to {
            return refuse(field, format!("the range {item:?} runs backwards"));
        }
        if to - from >= (HOSTLIST_NAMES_MAX - out.len().min(HOSTLIST_NAMES_MAX)) as u64 {
            return too_many(field);
        }
        let width = first.len();
        out.extend((from..=to).map(|n| format!("{n:0width$}")));
    }
    Ok(out)
}

/// A problem as the details of a gRPC status, so that whoever is refused gets its fields.
pub fn problem_to_details(problem: &v1::Problem) -> Vec<u8> {
    problem.encode_to_vec()
}

/// The problem in the details of a status, if that is what they are.
pub fn problem_from_details(details: &[u8]) -> Option<v1::Problem> {
    v1::Problem::decode(details).ok().filter(|problem| problem.code != 0)
}

#[cfg(test)]
mod tests;
