//! Sizes and counts as people write them: `512MiB`, `2TiB`, `10 GB`, `4096`; "1 node", "2 nodes".

use thiserror::Error;

/// Why a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a size; write a number and a unit, such as 512MiB, 2TiB or 10GB")]
pub struct SizeError {
    text: String,
}

/// Bytes from text such as `512MiB` (binary), `10GB` (decimal) or `4096`.
///
/// # Errors
/// [`SizeError`] with the text when it is no size or over 2^64 - 1.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let err = || SizeError { text: text.to_owned() };
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "p" | "pib" => 1 << 50,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "pb" => 1_000_000_000_000_000,
        _ => return Err(err()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).ok_or_else(err);
    }
    let bytes = number.parse::<f64>().map_err(|_| err())? * scale as f64;
    if bytes.is_finite() && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(err()) }
}

/// `bytes` for people: three significant digits and a binary unit.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// "1 node", "2 nodes".
pub fn counted(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("2TiB"), Ok(2 << 40));
        assert_eq!(parse_size(" 1.5 GiB "), Ok(3 << 29));
        assert_eq!(parse_size("10GB"), Ok(10_000_000_000));
        for bad in ["", "x", "1XB", "-1", "1..2", "99999999999999TiB", "nan"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_print() {
        assert_eq!(format_size(512), "512 B");
        assert_eq!(format_size(1 << 20), "1.00 MiB");
        assert_eq!(format_size(256 << 20), "256 MiB");
    }

    #[test]
    fn one_of_something_is_not_several() {
        assert_eq!([0, 1, 2].map(|n| counted(n, "shard")), ["0 shards", "1 shard", "2 shards"]);
    }
}
