//! Byte sizes as people write them: `16MiB`, `500 kB`, `65536`.

/// The text is not a size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a size such as 65536, 500kB or 16MiB")]
pub(super) struct ParseSizeError;

/// Units, the customary spelling of each; compared without regard to case.
const UNITS: [(&str, u64); 8] = [
    ("", 1),
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
];

/// Bytes from text. Fractions are not sizes: `1.5GiB` is refused.
pub(super) fn parse_size(text: &str) -> Result<u64, ParseSizeError> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| ParseSizeError)?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, factor) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or(ParseSizeError)?;
    number.checked_mul(*factor).ok_or(ParseSizeError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65_536),
            (" 16MiB ", 16 << 20),
            ("500 kB", 500_000),
            ("1gib", 1 << 30),
            ("2GB", 2_000_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "-1",
            "1.5GiB",
            "16 M",
            "16MiBs",
            "99999999999GiB",
            "1e3",
        ] {
            assert_eq!(parse_size(text), Err(ParseSizeError), "{text}");
        }
    }
}
