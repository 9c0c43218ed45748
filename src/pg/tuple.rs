//! The bytes of one row, exactly as pgoutput sent them.
//!
//! ```text
//!  TupleData (manual, "Logical Replication Message Formats"):
//!    i16 columns, then for each:  'n'                  null
//!                                 'u'                  unchanged TOAST, not sent
//!                                 't' i32 len, bytes   text
//!                                 'b' i32 len, bytes   binary
//! ```
//!
//! A [`Tuple`] is checked once, when it is decoded, and then walked without a
//! possible error. It keeps the wire bytes: one handle a row, no vector of values.
//! No function turns [`TupleValue::UnchangedToast`] into [`TupleValue::Null`].

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::fmt;

/// One value of a row. The bytes are the user's: they are never parsed and never logged.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum TupleValue<'a> {
    /// SQL NULL.
    Null,
    /// A TOASTed value that the update left alone and the source did not send.
    UnchangedToast,
    /// The type's text output.
    Text(&'a [u8]),
    /// The type's binary (send) output.
    Binary(&'a [u8]),
}

impl fmt::Debug for TupleValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::UnchangedToast => f.write_str("unchanged"),
            Self::Text(bytes) => write!(f, "text[{}]", bytes.len()),
            Self::Binary(bytes) => write!(f, "binary[{}]", bytes.len()),
        }
    }
}

/// Why bytes are not a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TupleError {
    /// The bytes end inside the tuple.
    #[error("the row ends before its last column")]
    Truncated,
    /// A column count below zero.
    #[error("a row cannot have {0} columns")]
    ColumnCount(i16),
    /// A value's length below zero.
    #[error("a value cannot have a length of {0}")]
    Length(i32),
    /// None of `n`, `u`, `t`, `b`.
    #[error("unknown kind of value 0x{0:02X}")]
    Kind(u8),
}

/// One row: checked wire bytes and the number of its columns.
#[derive(Clone, PartialEq, Eq)]
pub struct Tuple {
    columns: u16,
    body: Bytes,
}

impl Tuple {
    /// Takes one tuple off the front of `wire` and checks it whole.
    ///
    /// # Errors
    /// [`TupleError`] when the bytes are not a tuple; `wire` is then left undefined.
    pub fn decode(wire: &mut Bytes) -> Result<Self, TupleError> {
        let columns = wire.try_get_i16().map_err(|_| TupleError::Truncated)?;
        let columns = u16::try_from(columns).map_err(|_| TupleError::ColumnCount(columns))?;
        let length = checked_length(wire, columns)?;
        // The last row of a message takes its handle over, which costs no second one.
        let body = match length == wire.len() {
            true => std::mem::take(wire),
            false => wire.split_to(length),
        };
        Ok(Self { columns, body })
    }

    /// How many columns the row has.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// A row of a table without columns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// Bytes on the wire, as queues count them.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        self.body.len()
    }

    /// Appends the tuple as it came.
    pub fn put_wire(&self, wire: &mut Vec<u8>) {
        wire.put_u16(self.columns);
        wire.put_slice(&self.body);
    }

    /// Appends the values as a row of a binary COPY has them, each behind its length (manual, "COPY");
    /// false, and a part of them, where one is not binary or was not sent.
    #[must_use]
    pub fn put_copy_fields(&self, out: &mut BytesMut) -> bool {
        out.reserve(self.body.len() + 4 * self.len());
        let mut rest: &[u8] = &self.body;
        while let Some((kind, after)) = rest.split_first() {
            rest = match kind {
                b'n' => {
                    out.put_i32(-1);
                    after
                }
                b'b' => {
                    let length = after.first_chunk().map_or(0, |l| u32::from_be_bytes(*l));
                    let Some((field, after)) = after.split_at_checked(4 + length as usize) else {
                        return false;
                    };
                    out.put_slice(field);
                    after
                }
                _ => return false,
            }
        }
        true
    }

    /// The values in column order.
    #[must_use]
    pub fn values(&self) -> Values<'_> {
        Values {
            rest: &self.body,
            left: self.columns,
        }
    }

    /// One value by position; walks the row up to it.
    #[must_use]
    pub fn value(&self, position: usize) -> Option<TupleValue<'_>> {
        self.values().nth(position)
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.values()).finish()
    }
}

/// Length in bytes of `columns` values at the front of `wire`, each checked.
fn checked_length(wire: &[u8], columns: u16) -> Result<usize, TupleError> {
    let mut rest = wire;
    for _ in 0..columns {
        match rest.try_get_u8().map_err(|_| TupleError::Truncated)? {
            b'n' | b'u' => {}
            b't' | b'b' => {
                let length = rest.try_get_i32().map_err(|_| TupleError::Truncated)?;
                let length = usize::try_from(length).map_err(|_| TupleError::Length(length))?;
                rest = rest.get(length..).ok_or(TupleError::Truncated)?;
            }
            kind => return Err(TupleError::Kind(kind)),
        }
    }
    Ok(wire.len() - rest.len())
}

/// Iterator over the values of a checked [`Tuple`].
#[derive(Clone)]
pub struct Values<'a> {
    rest: &'a [u8],
    left: u16,
}

impl<'a> Iterator for Values<'a> {
    type Item = TupleValue<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        // The tuple was checked when it was decoded: `?` never ends the walk early.
        let (kind, rest) = self.rest.split_first()?;
        let (value, rest) = match kind {
            b'n' => (TupleValue::Null, rest),
            b'u' => (TupleValue::UnchangedToast, rest),
            _ => {
                let (length, rest) = rest.split_first_chunk::<4>()?;
                let (bytes, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
                let value = if *kind == b't' {
                    TupleValue::Text(bytes)
                } else {
                    TupleValue::Binary(bytes)
                };
                (value, rest)
            }
        };
        self.rest = rest;
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Values<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(parts: &[&[u8]]) -> Bytes {
        Bytes::from(parts.concat())
    }

    #[test]
    fn every_kind_of_value() {
        let mut bytes = wire(&[
            b"\0\x05n",
            b"u",
            b"t\0\0\0\x02ab",
            b"b\0\0\0\x01\x07",
            b"t\0\0\0\0",
            b"rest",
        ]);
        let tuple = Tuple::decode(&mut bytes).unwrap();
        let values: Vec<_> = tuple.values().collect();
        assert_eq!(
            values,
            [
                TupleValue::Null,
                TupleValue::UnchangedToast,
                TupleValue::Text(b"ab"),
                TupleValue::Binary(&[7]),
                TupleValue::Text(b""),
            ]
        );
        assert_eq!(&bytes[..], b"rest");
        assert_eq!(
            format!("{tuple:?}"),
            "[null, unchanged, text[2], binary[1], text[0]]"
        );
    }

    #[test]
    fn binary_values_are_fields_of_a_copy() {
        let fields = |parts: &[&[u8]]| {
            let mut out = BytesMut::from(&b"before"[..]);
            let tuple = Tuple::decode(&mut wire(parts)).unwrap();
            tuple.put_copy_fields(&mut out).then(|| out.freeze())
        };
        let copied = fields(&[b"\0\x03", b"b\0\0\0\x02\x07n", b"n", b"b\0\0\0\0"]);
        let expected = b"before\0\0\0\x02\x07n\xff\xff\xff\xff\0\0\0\0";
        assert_eq!(copied.as_deref(), Some(&expected[..]));
        assert_eq!(fields(&[b"\0\x02", b"n", b"t\0\0\0\x01a"]), None);
        assert_eq!(fields(&[b"\0\x02", b"n", b"u"]), None);
    }

    #[test]
    fn malformed_is_an_error() {
        let decode =
            |bytes: &'static [u8]| Tuple::decode(&mut Bytes::from_static(bytes)).unwrap_err();
        assert_eq!(decode(b"\0"), TupleError::Truncated);
        assert_eq!(decode(b"\0\x01"), TupleError::Truncated);
        assert_eq!(decode(b"\xff\xff"), TupleError::ColumnCount(-1));
        assert_eq!(decode(b"\0\x01t\x7f\xff\xff\xffab"), TupleError::Truncated);
        assert_eq!(decode(b"\0\x01t\xff\xff\xff\xff"), TupleError::Length(-1));
        assert_eq!(decode(b"\0\x01x"), TupleError::Kind(b'x'));
    }
}
