//! `Lsn`: a position in a server's write-ahead log.
//!
//! PostgreSQL uses 0/0 for "no position" (`InvalidXLogRecPtr`, `access/xlogdefs.h`).
//! Here absence is `Option<Lsn>`; [`Lsn::from_wire`] is the only door through which
//! a zero can arrive, and it closes it.

use bytes::BytesMut;
use std::error::Error;
use std::fmt;
use std::str::FromStr;
use tokio_postgres::types::{FromSql, IsNull, PgLsn, ToSql, Type};

/// A byte position in the write-ahead log of one server and timeline. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(std::num::NonZeroU64);

impl Lsn {
    /// What the wire says: `None` for 0/0, PostgreSQL's "no position".
    #[must_use]
    pub const fn from_wire(raw: u64) -> Option<Self> {
        match std::num::NonZeroU64::new(raw) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// The raw 64-bit position, as it goes on the wire.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0.get()
    }

    /// Bytes from `earlier` up to `self`; 0 when `earlier` is not earlier.
    #[must_use]
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.as_u64().saturating_sub(earlier.as_u64())
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:X}/{:X}",
            self.as_u64() >> 32,
            self.as_u64() & 0xFFFF_FFFF
        )
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The text is not two hexadecimal halves around a slash, or it is 0/0.
#[derive(Debug, thiserror::Error)]
#[error("not a log position: expected two hexadecimal numbers around a slash, such as 0/16B3748")]
pub struct ParseLsnError;

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        let half = |part: &str| u32::from_str_radix(part, 16).map_err(|_| ParseLsnError);
        let raw = (u64::from(half(high)?) << 32) | u64::from(half(low)?);
        Self::from_wire(raw).ok_or(ParseLsnError)
    }
}

impl ToSql for Lsn {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        PgLsn::from(self.as_u64()).to_sql(ty, out)
    }

    fn accepts(ty: &Type) -> bool {
        <PgLsn as ToSql>::accepts(ty)
    }

    tokio_postgres::types::to_sql_checked!();
}

impl<'a> FromSql<'a> for Lsn {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Self::from_wire(PgLsn::from_sql(ty, raw)?.into()).ok_or_else(|| ParseLsnError.into())
    }

    fn accepts(ty: &Type) -> bool {
        <PgLsn as FromSql>::accepts(ty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in ["0/1", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        for text in ["", "0/0", "1", "1/2/3", "G/1", "100000000/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }
}
