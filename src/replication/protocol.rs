//! What travels inside CopyData while replication streams; pure.
//!
//! ```text
//!  source ─▶ us   'w' XLogData           i64 start, i64 end, i64 clock, payload (pgoutput)
//!                 'k' PrimaryKeepalive   i64 end, i64 clock, u8 reply
//!  us ─▶ source   'r' StandbyStatusUpdate  i64 write, i64 flush, i64 apply, i64 clock, u8 reply
//! ```
//!
//! Source: the manual, "Streaming Replication Protocol". Clocks count microseconds since 2000-01-01.

use crate::pg::Lsn;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 2000-01-01, PostgreSQL's own zero, as seconds of the unix clock.
const PG_EPOCH_SECONDS: u64 = 946_684_800;

/// A piece of the log: one pgoutput message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XLogData {
    /// Where the piece begins; none for messages without a place of their own.
    pub wal_start: Option<Lsn>,
    /// How far the source's log went when it was sent.
    pub wal_end: Option<Lsn>,
    /// The source's clock, microseconds since 2000-01-01 UTC.
    pub server_time_us: i64,
    /// What the output plugin wrote.
    pub payload: Bytes,
}

/// A sign of life, and a question for ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimaryKeepalive {
    /// How far the source has read its log for us.
    pub wal_end: Option<Lsn>,
    /// The source's clock, microseconds since 2000-01-01 UTC.
    pub server_time_us: i64,
    /// Whether the source will hang up unless it hears of us.
    pub reply_requested: bool,
}

/// Either of the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicationMessage {
    /// Changes.
    XLogData(XLogData),
    /// A sign of life.
    Keepalive(PrimaryKeepalive),
}

/// How far we are. `None` leaves the source with what it knew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StandbyStatusUpdate {
    /// Received.
    pub write: Option<Lsn>,
    /// Durable on the replica: moves `confirmed_flush_lsn`, and with it what the source may forget.
    pub flush: Option<Lsn>,
    /// Visible on the replica.
    pub apply: Option<Lsn>,
    /// Asks for a keepalive in return.
    pub reply_requested: bool,
}

/// The bytes are none of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Ends inside a field.
    #[error("a replication message ends before its last field")]
    Truncated,
    /// Goes on behind the last field.
    #[error("{0} bytes follow a keepalive")]
    Trailing(usize),
    /// Neither `w` nor `k`.
    #[error("unknown replication message 0x{0:02X}")]
    Kind(u8),
}

impl ReplicationMessage {
    /// Reads one CopyData payload; a change's payload is a handle into it, not a copy.
    ///
    /// # Errors
    /// [`MessageError`] when the bytes are not a message.
    #[inline]
    pub fn decode(mut wire: Bytes) -> Result<Self, MessageError> {
        let truncated = |_| MessageError::Truncated;
        match wire.try_get_u8().map_err(truncated)? {
            b'w' if wire.len() >= 24 => {
                let wal_start = Lsn::from_wire(wire.get_u64());
                let wal_end = Lsn::from_wire(wire.get_u64());
                let server_time_us = wire.get_i64();
                Ok(Self::XLogData(XLogData {
                    wal_start,
                    wal_end,
                    server_time_us,
                    payload: wire,
                }))
            }
            b'k' if wire.len() > 17 => Err(MessageError::Trailing(wire.len() - 17)),
            b'k' if wire.len() == 17 => Ok(Self::Keepalive(PrimaryKeepalive {
                wal_end: Lsn::from_wire(wire.get_u64()),
                server_time_us: wire.get_i64(),
                reply_requested: wire.get_u8() != 0,
            })),
            b'w' | b'k' => Err(MessageError::Truncated),
            kind => Err(MessageError::Kind(kind)),
        }
    }
}

impl StandbyStatusUpdate {
    /// Writes the whole CopyData message.
    pub fn encode(&self, now_us: i64, wire: &mut BytesMut) {
        let raw = |lsn: Option<Lsn>| lsn.map_or(0, Lsn::as_u64);
        wire.reserve(39);
        wire.put_u8(b'd');
        wire.put_u32(4 + 34);
        wire.put_u8(b'r');
        wire.put_u64(raw(self.write));
        wire.put_u64(raw(self.flush));
        wire.put_u64(raw(self.apply));
        wire.put_i64(now_us);
        wire.put_u8(self.reply_requested.into());
    }
}

/// A moment as the protocol counts it: microseconds since 2000-01-01 UTC.
#[must_use]
pub fn pg_time_us(moment: SystemTime) -> i64 {
    let epoch = UNIX_EPOCH + Duration::from_secs(PG_EPOCH_SECONDS);
    let us = |length: Duration| i64::try_from(length.as_micros()).unwrap_or(i64::MAX);
    match moment.duration_since(epoch) {
        Ok(since) => us(since),
        Err(before) => -us(before.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_and_keepalives() {
        let wire = b"w\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x07payload";
        let expected = XLogData {
            wal_start: Lsn::from_wire(1),
            wal_end: None,
            server_time_us: 7,
            payload: Bytes::from_static(b"payload"),
        };
        let decoded = ReplicationMessage::decode(Bytes::from_static(wire));
        assert_eq!(decoded, Ok(ReplicationMessage::XLogData(expected)));
        let wire = b"k\0\0\0\x01\0\0\0\x02\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        let decoded = ReplicationMessage::decode(Bytes::from_static(wire));
        let expected = PrimaryKeepalive {
            wal_end: "1/2".parse().ok(),
            server_time_us: -1,
            reply_requested: true,
        };
        assert_eq!(decoded, Ok(ReplicationMessage::Keepalive(expected)));
    }

    #[test]
    fn cut_at_every_byte() {
        let wire = b"k\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\0\x01!";
        for length in 0..18 {
            let decoded = ReplicationMessage::decode(Bytes::from_static(&wire[..length]));
            assert_eq!(decoded, Err(MessageError::Truncated), "{length}");
        }
        assert_eq!(
            ReplicationMessage::decode(Bytes::from_static(wire)),
            Err(MessageError::Trailing(1))
        );
        assert_eq!(
            ReplicationMessage::decode(Bytes::from_static(b"x")),
            Err(MessageError::Kind(b'x'))
        );
        assert_eq!(
            ReplicationMessage::decode(Bytes::from_static(&[b'w'; 24])),
            Err(MessageError::Truncated)
        );
    }

    #[test]
    fn feedback() {
        let mut wire = BytesMut::new();
        let update = StandbyStatusUpdate {
            write: Lsn::from_wire(3),
            flush: Lsn::from_wire(2),
            apply: None,
            reply_requested: true,
        };
        update.encode(258, &mut wire);
        assert_eq!(
            &wire[..],
            b"d\0\0\0\x26r\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x02\x01"
        );
    }

    #[test]
    fn clocks() {
        let epoch = UNIX_EPOCH + Duration::from_secs(PG_EPOCH_SECONDS);
        assert_eq!(pg_time_us(epoch + Duration::from_millis(1)), 1000);
        assert_eq!(pg_time_us(epoch - Duration::from_millis(1)), -1000);
    }
}
