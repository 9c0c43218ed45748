//! `Decoder`: one payload in, one `Message` out.
//!
//! The wire does not say whether a change carries a transaction id; that depends on
//! what came before:
//!
//! ```text
//!              'S' StreamStart
//!   outside ───────────────────▶ inside: R Y I U D T M carry an xid first
//!           ◀───────────────────
//!              'E' StreamStop        a message that failed to decode moves nothing
//! ```
//!
//! Rows keep the wire's bytes ([`Tuple::decode`](crate::pg::Tuple::decode)): decoding
//! an insert, update or delete allocates nothing.

use bytes::Bytes;
use std::fmt;

use super::reader::{DecodeError, DecodeErrorKind, Reader};
use super::{Message, Payload};
use crate::pg::{Change, Column, OldTuple, QualifiedName, Relation, ReplicaIdentity, TypeName};

type Result<T> = std::result::Result<T, DecodeErrorKind>;

/// Whether the source was asked to send transactions while they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaming {
    /// Only after their commit.
    Off,
    /// In segments (protocol 2, PostgreSQL 14).
    On,
    /// In segments; aborts say where and when (protocol 4, PostgreSQL 16).
    Parallel,
}

impl fmt::Display for Streaming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "streaming off",
            Self::On => "streaming on",
            Self::Parallel => "streaming parallel",
        })
    }
}

/// Decodes the messages of one replication connection, in their order.
#[derive(Clone, Debug)]
pub struct Decoder {
    protocol_version: u8,
    streaming: Streaming,
    inside_segment: bool,
}

impl Decoder {
    /// For a connection that asked for this `proto_version` and `streaming`.
    #[must_use]
    pub const fn new(protocol_version: u8, streaming: Streaming) -> Self {
        Self {
            protocol_version,
            streaming,
            inside_segment: false,
        }
    }

    /// Decodes one whole message.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are anything but one well-formed message that may
    /// come next under what was agreed. The stream cannot be continued after it.
    pub fn decode(&mut self, payload: Bytes) -> std::result::Result<Message, DecodeError> {
        let mut reader = Reader::new(payload);
        let tag = reader.byte().map_err(|kind| DecodeError {
            tag: None,
            offset: 0,
            kind,
        })?;
        let message = self.check_place(tag).and_then(|()| {
            let message = self.message(tag, &mut reader)?;
            reader.end()?;
            Ok(message)
        });
        let offset = reader.field_start();
        let message = message.map_err(|kind| DecodeError {
            tag: Some(tag),
            offset,
            kind,
        })?;
        match message {
            Message::StreamStart { .. } => self.inside_segment = true,
            Message::StreamStop => self.inside_segment = false,
            _ => {}
        }
        Ok(message)
    }

    /// Whether a message of this kind may come now.
    fn check_place(&self, tag: u8) -> Result<()> {
        let streams = self.protocol_version >= 2 && self.streaming != Streaming::Off;
        let prepares = self.protocol_version >= 3;
        let negotiated = match tag {
            b'S' | b'E' | b'c' | b'A' => streams,
            b'p' => streams && prepares,
            b'b' | b'P' | b'K' | b'r' => prepares,
            _ => true,
        };
        if !negotiated {
            let (protocol_version, streaming) = (self.protocol_version, self.streaming);
            return Err(DecodeErrorKind::NotNegotiated {
                protocol_version,
                streaming,
            });
        }
        match tag {
            b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' | b'O' => Ok(()),
            b'E' if self.inside_segment => Ok(()),
            b'E' => Err(DecodeErrorKind::OutsideSegment),
            b'B' | b'C' | b'S' | b'c' | b'A' | b'b' | b'P' | b'K' | b'r' | b'p' => {
                if self.inside_segment {
                    Err(DecodeErrorKind::InsideSegment)
                } else {
                    Ok(())
                }
            }
            _ => Err(DecodeErrorKind::UnknownTag),
        }
    }

    fn message(&self, tag: u8, reader: &mut Reader) -> Result<Message> {
        match tag {
            b'I' => self.change(reader, insert),
            b'U' => self.change(reader, update),
            b'D' => self.change(reader, delete),
            b'T' => self.change(reader, truncate),
            b'B' => begin(reader),
            b'C' => commit(reader),
            b'O' => origin(reader),
            b'R' => Ok(Message::Relation {
                xid: self.xid(reader)?,
                relation: relation(reader)?,
            }),
            b'Y' => self.type_name(reader),
            b'M' => self.logical(reader),
            b'S' => stream_start(reader),
            b'E' => Ok(Message::StreamStop),
            b'c' => stream_commit(reader),
            b'A' => self.stream_abort(reader),
            b'b' => begin_prepare(reader),
            b'P' => prepare(reader),
            b'K' => commit_prepared(reader),
            b'r' => rollback_prepared(reader),
            b'p' => stream_prepare(reader),
            _ => Err(DecodeErrorKind::UnknownTag),
        }
    }

    /// The transaction id that only messages inside a segment carry.
    fn xid(&self, reader: &mut Reader) -> Result<Option<u32>> {
        if self.inside_segment {
            reader.xid().map(Some)
        } else {
            Ok(None)
        }
    }

    fn change(
        &self,
        reader: &mut Reader,
        body: fn(&mut Reader) -> Result<Change>,
    ) -> Result<Message> {
        Ok(Message::Change {
            xid: self.xid(reader)?,
            change: body(reader)?,
        })
    }

    fn type_name(&self, reader: &mut Reader) -> Result<Message> {
        let xid = self.xid(reader)?;
        let oid = reader.uint32()?;
        Ok(Message::Type {
            xid,
            oid,
            name: TypeName(qualified_name(reader)?),
        })
    }

    fn logical(&self, reader: &mut Reader) -> Result<Message> {
        Ok(Message::Logical {
            xid: self.xid(reader)?,
            transactional: reader.flags(1)? == 1,
            lsn: reader.lsn()?,
            prefix: reader.string()?,
            content: Payload(reader.sized()?),
        })
    }

    fn stream_abort(&self, reader: &mut Reader) -> Result<Message> {
        let (xid, subxid) = (reader.xid()?, reader.xid()?);
        let says_where = self.protocol_version >= 4 && self.streaming == Streaming::Parallel;
        let (abort_lsn, abort_time_us) = if says_where {
            (reader.optional_lsn()?, Some(reader.time_us()?))
        } else {
            (None, None)
        };
        Ok(Message::StreamAbort {
            xid,
            subxid,
            abort_lsn,
            abort_time_us,
        })
    }
}

fn insert(reader: &mut Reader) -> Result<Change> {
    let relation = reader.uint32()?;
    match reader.byte()? {
        b'N' => Ok(Change::Insert {
            relation,
            new: reader.tuple()?,
        }),
        kind => Err(DecodeErrorKind::TupleKind(kind)),
    }
}

fn update(reader: &mut Reader) -> Result<Change> {
    let relation = reader.uint32()?;
    let (old, kind) = match reader.byte()? {
        b'N' => (None, b'N'),
        kind => (Some(old_tuple(kind, reader)?), reader.byte()?),
    };
    match kind {
        b'N' => Ok(Change::Update {
            relation,
            old,
            new: reader.tuple()?,
        }),
        kind => Err(DecodeErrorKind::TupleKind(kind)),
    }
}

fn delete(reader: &mut Reader) -> Result<Change> {
    let relation = reader.uint32()?;
    let kind = reader.byte()?;
    Ok(Change::Delete {
        relation,
        old: old_tuple(kind, reader)?,
    })
}

fn old_tuple(kind: u8, reader: &mut Reader) -> Result<OldTuple> {
    match kind {
        b'K' => Ok(OldTuple::Key(reader.tuple()?)),
        b'O' => Ok(OldTuple::Full(reader.tuple()?)),
        kind => Err(DecodeErrorKind::TupleKind(kind)),
    }
}

fn truncate(reader: &mut Reader) -> Result<Change> {
    // The flags stand between the count and what it counts.
    let count = reader.item_count(size_of::<u32>())?;
    let flags = reader.flags(0b11)?;
    let relations = (0..count)
        .map(|_| reader.uint32())
        .collect::<Result<Vec<_>>>()?;
    Ok(Change::Truncate {
        relations,
        cascade: flags & 1 != 0,
        restart_identity: flags & 2 != 0,
    })
}

fn begin(reader: &mut Reader) -> Result<Message> {
    Ok(Message::Begin {
        final_lsn: reader.lsn()?,
        commit_time_us: reader.time_us()?,
        xid: reader.xid()?,
    })
}

fn commit(reader: &mut Reader) -> Result<Message> {
    reader.flags(0)?;
    Ok(Message::Commit {
        commit_lsn: reader.lsn()?,
        end_lsn: reader.lsn()?,
        commit_time_us: reader.time_us()?,
    })
}

fn origin(reader: &mut Reader) -> Result<Message> {
    Ok(Message::Origin {
        commit_lsn: reader.optional_lsn()?,
        name: reader.string()?,
    })
}

fn qualified_name(reader: &mut Reader) -> Result<QualifiedName> {
    Ok(QualifiedName {
        schema: reader.schema()?,
        name: reader.string()?,
    })
}

fn relation(reader: &mut Reader) -> Result<Relation> {
    let (id, name) = (reader.uint32()?, qualified_name(reader)?);
    let letter = reader.byte()?;
    let replica_identity =
        ReplicaIdentity::from_letter(letter).ok_or(DecodeErrorKind::ReplicaIdentity(letter))?;
    // Not reserved by the count: the bytes, not what they claim, decide the memory.
    let mut columns = Vec::new();
    for _ in 0..reader.column_count()? {
        columns.push(column(reader)?);
    }
    Ok(Relation {
        id,
        name,
        replica_identity,
        columns,
    })
}

fn column(reader: &mut Reader) -> Result<Column> {
    Ok(Column {
        is_key: reader.flags(1)? == 1,
        name: reader.string()?,
        type_oid: reader.uint32()?,
        type_modifier: reader.int32()?,
    })
}

fn stream_start(reader: &mut Reader) -> Result<Message> {
    Ok(Message::StreamStart {
        xid: reader.xid()?,
        first_segment: reader.flags(1)? == 1,
    })
}

fn stream_commit(reader: &mut Reader) -> Result<Message> {
    let xid = reader.xid()?;
    reader.flags(0)?;
    Ok(Message::StreamCommit {
        xid,
        commit_lsn: reader.lsn()?,
        end_lsn: reader.lsn()?,
        commit_time_us: reader.time_us()?,
    })
}

fn begin_prepare(reader: &mut Reader) -> Result<Message> {
    Ok(Message::BeginPrepare {
        prepare_lsn: reader.lsn()?,
        end_lsn: reader.lsn()?,
        prepare_time_us: reader.time_us()?,
        xid: reader.xid()?,
        gid: reader.string()?,
    })
}

fn prepare(reader: &mut Reader) -> Result<Message> {
    reader.flags(0)?;
    Ok(Message::Prepare {
        prepare_lsn: reader.lsn()?,
        end_lsn: reader.lsn()?,
        prepare_time_us: reader.time_us()?,
        xid: reader.xid()?,
        gid: reader.string()?,
    })
}

fn commit_prepared(reader: &mut Reader) -> Result<Message> {
    reader.flags(0)?;
    Ok(Message::CommitPrepared {
        commit_lsn: reader.lsn()?,
        end_lsn: reader.lsn()?,
        commit_time_us: reader.time_us()?,
        xid: reader.xid()?,
        gid: reader.string()?,
    })
}

fn rollback_prepared(reader: &mut Reader) -> Result<Message> {
    reader.flags(0)?;
    Ok(Message::RollbackPrepared {
        prepare_end_lsn: reader.lsn()?,
        rollback_end_lsn: reader.lsn()?,
        prepare_time_us: reader.time_us()?,
        rollback_time_us: reader.time_us()?,
        xid: reader.xid()?,
        gid: reader.string()?,
    })
}

fn stream_prepare(reader: &mut Reader) -> Result<Message> {
    reader.flags(0)?;
    Ok(Message::StreamPrepare {
        prepare_lsn: reader.lsn()?,
        end_lsn: reader.lsn()?,
        prepare_time_us: reader.time_us()?,
        xid: reader.xid()?,
        gid: reader.string()?,
    })
}
