//! A cursor over one message that cannot run past its end, and the error it makes.

use bytes::{Buf, Bytes};

use crate::pg::{Disposition, Lsn, Tuple, TupleError};

/// PostgreSQL's `MaxHeapAttributeNumber`: no table has more columns.
const COLUMNS_MAX: u16 = 1600;

/// A message that is not what the protocol allows at this point of the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot decode the pgoutput message {}, at byte {offset}: {kind}", quoted_tag(*.tag))]
pub struct DecodeError {
    /// The message's first byte; `None` when there was none.
    pub tag: Option<u8>,
    /// Where in the message the offending field begins.
    pub offset: usize,
    /// What is wrong there.
    pub kind: DecodeErrorKind,
}

impl DecodeError {
    /// The source would send the same bytes again.
    #[must_use]
    pub const fn disposition(&self) -> Disposition {
        Disposition::Definite
    }
}

fn quoted_tag(tag: Option<u8>) -> String {
    match tag {
        Some(tag) if tag.is_ascii_graphic() => format!("'{}'", char::from(tag)),
        Some(tag) => format!("0x{tag:02X}"),
        None => "without a tag".to_owned(),
    }
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeErrorKind {
    /// The bytes end inside a field.
    #[error("the message ends too early")]
    Truncated,
    /// Bytes follow the last field.
    #[error("{0} bytes follow the end of the message")]
    Trailing(usize),
    /// No message of any known version begins with this byte.
    #[error("unknown kind of message; the source may speak a newer protocol than was asked for")]
    UnknownTag,
    /// The message exists, but not under what was agreed with the source.
    #[error("this kind of message was not asked for: protocol {protocol_version}, {streaming}")]
    NotNegotiated {
        /// The version agreed.
        protocol_version: u8,
        /// The streaming mode agreed.
        streaming: super::Streaming,
    },
    /// The message may not stand inside a stream segment.
    #[error("this kind of message cannot stand inside a stream segment")]
    InsideSegment,
    /// The message may stand inside a stream segment only.
    #[error("this kind of message cannot stand outside a stream segment")]
    OutsideSegment,
    /// A log position of 0/0 where there must be one.
    #[error("the log position is missing")]
    NoLsn,
    /// A transaction id of 0.
    #[error("the transaction id is missing")]
    NoXid,
    /// Bits that mean nothing in any known version.
    #[error("unknown flags 0x{0:02X}")]
    Flags(u8),
    /// A letter other than those that announce a row here.
    #[error("0x{0:02X} does not announce a row here")]
    TupleKind(u8),
    /// A replica identity other than `d`, `n`, `f`, `i`.
    #[error("unknown replica identity 0x{0:02X}")]
    ReplicaIdentity(u8),
    /// A count or length that cannot be.
    #[error("a count or length of {0} cannot be")]
    Count(i32),
    /// A name that is not UTF-8, though the session's encoding is.
    #[error("a name is not UTF-8; the session's client_encoding must be UTF8")]
    NotUtf8,
    /// A malformed row.
    #[error(transparent)]
    Tuple(#[from] TupleError),
}

type Result<T> = std::result::Result<T, DecodeErrorKind>;

/// Reads fields off the front of one message.
pub(super) struct Reader {
    rest: Bytes,
    length: usize,
    field_start: usize,
}

impl Reader {
    pub(super) fn new(message: Bytes) -> Self {
        Self {
            length: message.len(),
            rest: message,
            field_start: 0,
        }
    }

    /// Where the field read last begins.
    pub(super) const fn field_start(&self) -> usize {
        self.field_start
    }

    /// The bytes still to read, as the start of a new field.
    fn field(&mut self) -> &mut Bytes {
        self.field_start = self.length - self.rest.len();
        &mut self.rest
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        self.field()
            .try_get_u8()
            .map_err(|_| DecodeErrorKind::Truncated)
    }

    pub(super) fn uint32(&mut self) -> Result<u32> {
        self.field()
            .try_get_u32()
            .map_err(|_| DecodeErrorKind::Truncated)
    }

    pub(super) fn int32(&mut self) -> Result<i32> {
        self.field()
            .try_get_i32()
            .map_err(|_| DecodeErrorKind::Truncated)
    }

    pub(super) fn time_us(&mut self) -> Result<i64> {
        self.field()
            .try_get_i64()
            .map_err(|_| DecodeErrorKind::Truncated)
    }

    pub(super) fn xid(&mut self) -> Result<u32> {
        match self.uint32()? {
            0 => Err(DecodeErrorKind::NoXid),
            xid => Ok(xid),
        }
    }

    /// A position that may be 0/0.
    pub(super) fn optional_lsn(&mut self) -> Result<Option<Lsn>> {
        self.field()
            .try_get_u64()
            .map(Lsn::from_wire)
            .map_err(|_| DecodeErrorKind::Truncated)
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn> {
        self.optional_lsn()?.ok_or(DecodeErrorKind::NoLsn)
    }

    /// A byte of flags of which only `known` may be set.
    pub(super) fn flags(&mut self, known: u8) -> Result<u8> {
        let flags = self.byte()?;
        if flags & !known == 0 {
            Ok(flags)
        } else {
            Err(DecodeErrorKind::Flags(flags))
        }
    }

    /// A name up to its terminating zero.
    pub(super) fn string(&mut self) -> Result<String> {
        let rest = self.field();
        let end = rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(DecodeErrorKind::Truncated)?;
        let name = rest.split_to(end);
        rest.advance(1);
        std::str::from_utf8(&name)
            .map(str::to_owned)
            .map_err(|_| DecodeErrorKind::NotUtf8)
    }

    /// A schema's name; empty stands for `pg_catalog`.
    pub(super) fn schema(&mut self) -> Result<String> {
        let name = self.string()?;
        Ok(if name.is_empty() {
            "pg_catalog".to_owned()
        } else {
            name
        })
    }

    /// Bytes after their length.
    pub(super) fn sized(&mut self) -> Result<Bytes> {
        let length = self.int32()?;
        let length = usize::try_from(length).map_err(|_| DecodeErrorKind::Count(length))?;
        let rest = self.field();
        if length > rest.len() {
            return Err(DecodeErrorKind::Truncated);
        }
        Ok(rest.split_to(length))
    }

    /// How many columns a table has.
    pub(super) fn column_count(&mut self) -> Result<u16> {
        let count = self
            .field()
            .try_get_i16()
            .map_err(|_| DecodeErrorKind::Truncated)?;
        u16::try_from(count)
            .ok()
            .filter(|count| *count <= COLUMNS_MAX)
            .ok_or(DecodeErrorKind::Count(count.into()))
    }

    /// How many `item_bytes` long items follow, when nothing but them does.
    pub(super) fn item_count(&mut self, item_bytes: usize) -> Result<usize> {
        let raw = self.int32()?;
        let count = usize::try_from(raw).map_err(|_| DecodeErrorKind::Count(raw))?;
        if count > self.rest.len() / item_bytes {
            return Err(DecodeErrorKind::Truncated);
        }
        Ok(count)
    }

    pub(super) fn tuple(&mut self) -> Result<Tuple> {
        let tuple = Tuple::decode(self.field())?;
        if tuple.len() > usize::from(COLUMNS_MAX) {
            let count = i32::try_from(tuple.len()).unwrap_or(i32::MAX);
            return Err(DecodeErrorKind::Count(count));
        }
        Ok(tuple)
    }

    /// Nothing may be left.
    pub(super) fn end(&mut self) -> Result<()> {
        match self.field().len() {
            0 => Ok(()),
            left => Err(DecodeErrorKind::Trailing(left)),
        }
    }
}
