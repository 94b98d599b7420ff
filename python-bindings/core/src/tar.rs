//! Headers of tar files: ustar, GNU long names, pax records. Bytes in, members out; reading is the caller's.

use thiserror::Error;

/// A tar file is made of blocks of this size.
pub const BLOCK: usize = 512;
/// Longest name or pax record that is accepted: paths end at 4,096 bytes, records carry a few of them.
pub const EXTENSION_BYTES_MAX: u64 = 64 * 1024;

/// What a header block announces.
#[derive(Debug, PartialEq, Eq)]
pub enum Header {
    /// A regular file of that name, with so many bytes after the header.
    File {
        /// Its path in the archive.
        name: String,
        /// Bytes.
        len: u64,
    },
    /// The next header's name, or pax records for it, in the `len` bytes that follow.
    Extension {
        /// GNU (a bare name) or pax.
        kind: Extension,
        /// Bytes.
        len: u64,
    },
    /// A directory, link or other thing without use for loaders.
    Other {
        /// Bytes to skip.
        len: u64,
    },
    /// A block of zeros: the archive ends.
    End,
}

/// How a long name is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// GNU's `L`: the name itself.
    GnuName,
    /// Pax: `length key=value` lines.
    Pax,
}

/// Why bytes are no tar header.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TarError {
    /// The sum over the header does not match.
    #[error("no tar header at byte {at}: its checksum does not match")]
    Checksum {
        /// Where.
        at: u64,
    },
    /// A number that is none.
    #[error("the tar header at byte {at} has a field that is not a number")]
    Number {
        /// Where.
        at: u64,
    },
    /// The file ends within a member.
    #[error("the archive ends within the member at byte {at}")]
    Short {
        /// Where.
        at: u64,
    },
    /// A name or record that is too long or not text.
    #[error("the tar header at byte {at} has a name that cannot be read")]
    Name {
        /// Where.
        at: u64,
    },
}

/// Reads the header block at byte `at` of the archive.
///
/// # Errors
/// [`TarError`] naming the byte.
pub fn header(block: &[u8; BLOCK], at: u64) -> Result<Header, TarError> {
    if block.iter().all(|&b| b == 0) {
        return Ok(Header::End);
    }
    // Its own field counts as blanks.
    let sum = |bytes: &[u8]| bytes.iter().map(|&b| u32::from(b)).sum::<u32>();
    let expected = sum(block) - sum(&block[148..156]) + 8 * u32::from(b' ');
    if number(&block[148..156], at)? != u64::from(expected) {
        return Err(TarError::Checksum { at });
    }
    let len = number(&block[124..136], at)?;
    match block[156] {
        b'0' | 0 | b'7' => {
            let name = text(&block[..100], at)?;
            let prefix =
                if &block[257..262] == b"ustar" && block[263] == b'0' { text(&block[345..500], at)? } else { "" };
            let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
            Ok(Header::File { name, len })
        }
        b'L' if len <= EXTENSION_BYTES_MAX => Ok(Header::Extension { kind: Extension::GnuName, len }),
        b'x' if len <= EXTENSION_BYTES_MAX => Ok(Header::Extension { kind: Extension::Pax, len }),
        b'L' | b'x' => Err(TarError::Name { at }),
        // Hard links and the like say a length that has no bytes after it.
        b'1'..=b'6' => Ok(Header::Other { len: 0 }),
        _ => Ok(Header::Other { len }),
    }
}

/// What an extension changes of the next file: its name, its length.
///
/// # Errors
/// [`TarError::Name`] or [`TarError::Number`].
pub fn extension(kind: Extension, bytes: &[u8], at: u64) -> Result<(Option<String>, Option<u64>), TarError> {
    let bad = TarError::Name { at };
    if kind == Extension::GnuName {
        return Ok((Some(text(bytes, at)?.to_owned()), None));
    }
    let (mut rest, mut name, mut len) = (bytes, None, None);
    while !rest.is_empty() && rest[0] != 0 {
        let space = rest.iter().position(|&b| b == b' ').ok_or_else(|| bad.clone())?;
        let size: usize =
            std::str::from_utf8(&rest[..space]).ok().and_then(|s| s.parse().ok()).ok_or_else(|| bad.clone())?;
        let record = rest.get(space + 1..size).ok_or_else(|| bad.clone())?;
        let record = std::str::from_utf8(record).map_err(|_| bad.clone())?.trim_end_matches('\n');
        match record.split_once('=') {
            Some(("path", value)) => name = Some(value.to_owned()),
            Some(("size", value)) => len = Some(value.parse().map_err(|_| TarError::Number { at })?),
            _ => {}
        }
        rest = &rest[size..];
    }
    Ok((name, len))
}

/// Bytes from the start of a member's content to the next header.
pub fn padded(len: u64) -> u64 {
    len.div_ceil(BLOCK as u64) * BLOCK as u64
}

/// The sample's key and the member's field, as WebDataset cuts names: at the first dot of the last part.
pub fn split(name: &str) -> (&str, &str) {
    let base = name.rfind('/').map_or(0, |i| i + 1);
    match name[base..].find('.') {
        Some(dot) => (&name[..base + dot], &name[base + dot + 1..]),
        None => (name, ""),
    }
}

fn text(field: &[u8], at: u64) -> Result<&str, TarError> {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).map_err(|_| TarError::Name { at })
}

/// Octal digits, or GNU's base 256 for large files.
fn number(field: &[u8], at: u64) -> Result<u64, TarError> {
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x7F);
        for &b in &field[1..] {
            value = value.checked_mul(256).map(|v| v | u64::from(b)).ok_or(TarError::Number { at })?;
        }
        return Ok(value);
    }
    let digits = field.iter().copied().skip_while(|&b| b == b' ').take_while(|&b| b != 0 && b != b' ');
    digits.into_iter().try_fold(0u64, |value, b| match b {
        b'0'..=b'7' => value.checked_mul(8).map(|v| v | u64::from(b - b'0')).ok_or(TarError::Number { at }),
        _ => Err(TarError::Number { at }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str, size: &str, kind: u8) -> [u8; BLOCK] {
        let mut b = [0u8; BLOCK];
        b[..name.len()].copy_from_slice(name.as_bytes());
        b[124..124 + size.len()].copy_from_slice(size.as_bytes());
        b[156] = kind;
        b[148..156].fill(b' ');
        let sum: u64 = b.iter().map(|&x| u64::from(x)).sum();
        b[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        b
    }

    #[test]
    fn files_ends_and_others() {
        assert_eq!(header(&block("a.cls", "17", b'0'), 0), Ok(Header::File { name: "a.cls".into(), len: 15 }));
        assert_eq!(header(&[0; BLOCK], 0), Ok(Header::End));
        assert_eq!(header(&block("d/", "0", b'5'), 0), Ok(Header::Other { len: 0 }));
        let mut broken = block("a.cls", "17", b'0');
        broken[0] = b'b';
        assert_eq!(header(&broken, 512), Err(TarError::Checksum { at: 512 }));
        assert_eq!(header(&block("a", "9", b'0'), 0), Err(TarError::Number { at: 0 }));
    }

    #[test]
    fn long_names() {
        let pax = b"18 path=long/n.npy\n12 size=777\n";
        // The length of a pax record counts itself and the newline.
        assert_eq!(extension(Extension::Pax, &pax[..], 0), Err(TarError::Name { at: 0 }));
        let pax = b"19 path=long/n.npy\n12 size=777\n";
        assert_eq!(extension(Extension::Pax, &pax[..], 0), Ok((Some("long/n.npy".into()), Some(777))));
        assert_eq!(extension(Extension::GnuName, b"x.y\0\0", 0), Ok((Some("x.y".into()), None)));
        assert_eq!(extension(Extension::Pax, b"99 path=x\n", 0), Err(TarError::Name { at: 0 }));
    }

    #[test]
    fn names_are_cut_at_the_first_dot_of_the_last_part() {
        assert_eq!(split("a.b/c.seg.png"), ("a.b/c", "seg.png"));
        assert_eq!(split("plain"), ("plain", ""));
    }

    #[test]
    fn large_numbers() {
        let mut field = [0u8; 12];
        field[0] = 0x80;
        field[4..].copy_from_slice(&(9u64 << 33).to_be_bytes());
        assert_eq!(number(&field, 0), Ok(9 << 33));
        field[1] = 1;
        assert_eq!(number(&field, 0), Err(TarError::Number { at: 0 }));
    }
}
