//! Names and numbers of things, one type each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::NAME_BYTES_MAX;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// A node, numbered by the coordinator that runs now (soft state: not the same after a restart).
    NodeId(u32)
}
number! {
    /// A dataset version, numbered by the coordinator that runs now; [`Digest`] is its lasting identity.
    DatasetId(u32)
}
number! {
    /// A request that a version be on given nodes.
    StageId(u64)
}
number! {
    /// One order of the coordinator to one node: fetch this extent from this source.
    AssignmentId(u64)
}

/// Why a dataset name, version or reference was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing there.
    #[error("the {what} is empty")]
    Empty {
        /// "name" or "version".
        what: &'static str,
    },
    /// Over [`NAME_BYTES_MAX`].
    #[error("the {what} has {len} bytes, and {NAME_BYTES_MAX} are the most")]
    TooLong {
        /// "name" or "version".
        what: &'static str,
        /// Bytes given.
        len: usize,
    },
    /// Outside letters, digits, `-`, `_` and `.` (and `/` between parts of a name).
    #[error("the {what} {text:?} has the character {bad:?}; letters, digits, '-', '_' and '.' are allowed")]
    Character {
        /// "name" or "version".
        what: &'static str,
        /// What was given.
        text: String,
        /// The first character refused.
        bad: char,
    },
    /// Begins with a dot, so that it would be hidden or climb out of its directory.
    #[error("the {what} {text:?} begins with a dot")]
    LeadingDot {
        /// "name" or "version".
        what: &'static str,
        /// What was given.
        text: String,
    },
}

fn check(what: &'static str, text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong { what, len: text.len() });
    }
    if let Some(bad) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))) {
        return Err(NameError::Character { what, text: text.to_owned(), bad });
    }
    if text.starts_with('.') {
        return Err(NameError::LeadingDot { what, text: text.to_owned() });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                check($what, s)?;
                Ok($name(s.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> {
                check($what, &s)?;
                Ok($name(s))
            }
        }

        impl From<$name> for String {
            fn from(n: $name) -> String {
                n.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// The name of a dataset: letters, digits, `-`, `_`, `.`; not beginning with a dot.
    DatasetName, "dataset name"
}
name! {
    /// A version of a dataset: letters, digits, `-`, `_`, `.`; not beginning with a dot.
    Version, "version"
}

/// `name@version`: one immutable snapshot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DatasetRef {
    /// The dataset.
    pub name: DatasetName,
    /// The snapshot of it.
    pub version: Version,
}

impl fmt::Display for DatasetRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// What a user types: `name` (the latest version) or `name@version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetSelector {
    /// The dataset.
    pub name: DatasetName,
    /// The version asked for; `None` is the latest.
    pub version: Option<Version>,
}

impl FromStr for DatasetSelector {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        Ok(match s.split_once('@') {
            Some((name, version)) => DatasetSelector { name: name.parse()?, version: Some(version.parse()?) },
            None => DatasetSelector { name: s.parse()?, version: None },
        })
    }
}

impl fmt::Display for DatasetSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}@{}", self.name, version),
            None => write!(f, "{}", self.name),
        }
    }
}

impl FromStr for DatasetRef {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let DatasetSelector { name, version } = s.parse()?;
        let version = version.ok_or(NameError::Empty { what: "version" })?;
        Ok(DatasetRef { name, version })
    }
}

/// SHA-256 of a manifest's content: the lasting identity of a version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// From 32 bytes; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Digest> {
        Some(Digest(bytes.try_into().ok()?))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = hex::FromHexError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut out = [0; 32];
        hex::decode_to_slice(s, &mut out)?;
        Ok(Digest(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_parse_and_print() {
        let r: DatasetRef = "digits@v1".parse().unwrap();
        assert_eq!(r.to_string(), "digits@v1");
        assert_eq!("digits".parse::<DatasetSelector>().unwrap().version, None);
    }

    #[test]
    fn names_that_would_climb_or_hide_are_refused() {
        for bad in ["", ".", "..", ".x", "a/b", "a b", "a\0b", "ü", "a@", "@v", &"x".repeat(101)] {
            assert!(bad.parse::<DatasetRef>().is_err(), "{bad:?}");
        }
    }
}
