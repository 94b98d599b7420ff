//! Shard keys: object names that are safe as relative paths below a dataset's directory.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::limits::{KEY_BYTES_MAX, KEY_COMPONENT_BYTES_MAX};

/// Why an object name cannot become a local file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Nothing there.
    #[error("the key is empty")]
    Empty,
    /// Over [`KEY_BYTES_MAX`].
    #[error("the key has {len} bytes, and {KEY_BYTES_MAX} are the most")]
    TooLong {
        /// Bytes given.
        len: usize,
    },
    /// A part over [`KEY_COMPONENT_BYTES_MAX`]: no Linux file system would take it.
    #[error("a part of the key {key:?} has {len} bytes, and file names have at most {KEY_COMPONENT_BYTES_MAX}")]
    ComponentTooLong {
        /// The key.
        key: String,
        /// Bytes of that part.
        len: usize,
    },
    /// `.` or `..` or nothing between two slashes: the file would land elsewhere.
    #[error("the key {key:?} has the part {part:?}, which is not a file name")]
    BadComponent {
        /// The key.
        key: String,
        /// The part.
        part: String,
    },
    /// NUL cannot be in a path; other control characters would garble terminals and logs.
    #[error("the key {key:?} has a control character")]
    Control {
        /// The key.
        key: String,
    },
    /// One key is a file where another needs a directory.
    #[error("the key {file:?} is a file, but {below:?} needs a directory of that name")]
    FileAndDirectory {
        /// The shorter key.
        file: String,
        /// A key below it.
        below: String,
    },
    /// The same key twice.
    #[error("the key {key:?} is there twice")]
    Twice {
        /// The key.
        key: String,
    },
}

/// A shard's name, relative to the dataset: parts joined by `/`, none of them empty, `.` or `..`.
///
/// Spaces and any other printable Unicode are kept as they are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardKey(Box<str>);

impl ShardKey {
    /// The text, a safe relative path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ShardKey {
    type Err = KeyError;

    fn from_str(key: &str) -> Result<ShardKey, KeyError> {
        if key.is_empty() {
            return Err(KeyError::Empty);
        }
        if key.len() > KEY_BYTES_MAX {
            return Err(KeyError::TooLong { len: key.len() });
        }
        if key.chars().any(char::is_control) {
            return Err(KeyError::Control { key: key.to_owned() });
        }
        for part in key.split('/') {
            if matches!(part, "" | "." | "..") {
                return Err(KeyError::BadComponent { key: key.to_owned(), part: part.to_owned() });
            }
            if part.len() > KEY_COMPONENT_BYTES_MAX {
                return Err(KeyError::ComponentTooLong { key: key.to_owned(), len: part.len() });
            }
        }
        Ok(ShardKey(key.into()))
    }
}

impl fmt::Display for ShardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ShardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Checks that keys, sorted, can all exist in one directory tree.
///
/// # Errors
/// [`KeyError::Twice`] or [`KeyError::FileAndDirectory`], naming the keys.
pub fn check_tree<'a>(sorted: impl Iterator<Item = &'a ShardKey>) -> Result<(), KeyError> {
    // Keys between "a" and "a/…" (such as "a.b") may sort in between: remember every key that may still be a parent.
    let mut open: Vec<&ShardKey> = Vec::new();
    for key in sorted {
        while let Some(last) = open.last() {
            if key == *last {
                return Err(KeyError::Twice { key: key.to_string() });
            }
            if !key.as_str().starts_with(last.as_str()) {
                open.pop();
                continue;
            }
            break;
        }
        let below = |file: &&&ShardKey| key.as_str().as_bytes().get(file.as_str().len()) == Some(&b'/');
        if let Some(file) = open.iter().find(below) {
            return Err(KeyError::FileAndDirectory { file: file.to_string(), below: key.to_string() });
        }
        open.push(key);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_and_odd_names_are_kept() {
        for good in ["a", "a/b c/ü.tar", "…/x", "a..b", "...", "-rf", "日本/シャード", "a\\b"] {
            assert_eq!(good.parse::<ShardKey>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn names_that_would_land_elsewhere_are_refused() {
        for bad in ["", "/a", "a/", "a//b", "..", "../a", "a/../b", "./a", "a/.", "a\0", "a\nb"] {
            assert!(bad.parse::<ShardKey>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(256).parse::<ShardKey>().is_err());
        assert!(vec!["x"; 600].join("/").parse::<ShardKey>().is_err());
    }

    fn tree(keys: &[&str]) -> Result<(), KeyError> {
        let mut keys: Vec<ShardKey> = keys.iter().map(|k| k.parse().unwrap()).collect();
        keys.sort();
        check_tree(keys.iter())
    }

    #[test]
    fn a_file_cannot_also_be_a_directory() {
        assert!(tree(&["a", "a.b", "ab", "b/c", "b/d"]).is_ok());
        assert!(matches!(tree(&["a", "a.b", "a/c"]), Err(KeyError::FileAndDirectory { .. })));
        assert!(matches!(tree(&["a", "a"]), Err(KeyError::Twice { .. })));
    }
}
