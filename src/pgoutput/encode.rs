//! The other direction, for tests only: a `Message` as a server would send it.

use bytes::{BufMut, Bytes};

use super::Message;
use super::encode_kept::{encode_change, encode_relation};
use crate::pg::Tuple;

/// A value with its bytes, from which a row is put together.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    UnchangedToast,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

/// A row of these values, through its wire form.
pub(crate) fn tuple(values: &[Value]) -> Tuple {
    let mut wire = Vec::new();
    wire.put_i16(values.len().try_into().unwrap());
    for value in values {
        match value {
            Value::Null => wire.put_u8(b'n'),
            Value::UnchangedToast => wire.put_u8(b'u'),
            Value::Text(bytes) => put_value(&mut wire, b't', bytes),
            Value::Binary(bytes) => put_value(&mut wire, b'b', bytes),
        }
    }
    Tuple::decode(&mut Bytes::from(wire)).unwrap()
}

fn put_value(wire: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    wire.put_u8(kind);
    wire.put_i32(bytes.len().try_into().unwrap());
    wire.put_slice(bytes);
}

fn put_string(wire: &mut Vec<u8>, text: &str) {
    wire.put_slice(text.as_bytes());
    wire.put_u8(0);
}

fn put_schema(wire: &mut Vec<u8>, schema: &str) {
    put_string(wire, if schema == "pg_catalog" { "" } else { schema });
}

/// A tag and, inside a segment, the transaction id.
fn head(tag: u8, xid: Option<u32>) -> Vec<u8> {
    let mut wire = vec![tag];
    if let Some(xid) = xid {
        wire.put_u32(xid);
    }
    wire
}

/// What is kept, within a segment or outside.
fn inside(xid: Option<u32>, mut wire: Vec<u8>) -> Vec<u8> {
    if let Some(xid) = xid {
        wire.splice(1..1, xid.to_be_bytes());
    }
    wire
}

/// Fields of a fixed size after tag and flags, then a name.
fn encode_prepared(tag: u8, has_flags: bool, numbers: [u64; 3], xid: u32, gid: &str) -> Vec<u8> {
    let mut wire = vec![tag];
    if has_flags {
        wire.put_u8(0);
    }
    numbers.iter().for_each(|number| wire.put_u64(*number));
    wire.put_u32(xid);
    put_string(&mut wire, gid);
    wire
}

/// The wire form. A stream abort is encoded with place and time when it has a time.
pub(crate) fn encode(message: &Message) -> Bytes {
    Bytes::from(match message {
        Message::Begin {
            final_lsn,
            commit_time_us,
            xid,
        } => {
            let mut wire = vec![b'B'];
            wire.put_u64(final_lsn.as_u64());
            wire.put_i64(*commit_time_us);
            wire.put_u32(*xid);
            wire
        }
        Message::Commit {
            commit_lsn,
            end_lsn,
            commit_time_us,
        } => {
            let mut wire = vec![b'C', 0];
            wire.put_u64(commit_lsn.as_u64());
            wire.put_u64(end_lsn.as_u64());
            wire.put_i64(*commit_time_us);
            wire
        }
        Message::Origin { commit_lsn, name } => {
            let mut wire = vec![b'O'];
            wire.put_u64(commit_lsn.map_or(0, |lsn| lsn.as_u64()));
            put_string(&mut wire, name);
            wire
        }
        Message::Relation { xid, relation } => inside(*xid, encode_relation(relation)),
        Message::Type { xid, oid, name } => {
            let mut wire = head(b'Y', *xid);
            wire.put_u32(*oid);
            put_schema(&mut wire, &name.0.schema);
            put_string(&mut wire, &name.0.name);
            wire
        }
        Message::Change { xid, change } => inside(*xid, encode_change(change)),
        Message::Logical {
            xid,
            transactional,
            lsn,
            prefix,
            content,
        } => {
            let mut wire = head(b'M', *xid);
            wire.put_u8((*transactional).into());
            wire.put_u64(lsn.as_u64());
            put_string(&mut wire, prefix);
            wire.put_i32(content.0.len().try_into().unwrap());
            wire.put_slice(&content.0);
            wire
        }
        other => encode_stream(other),
    })
}

fn encode_stream(message: &Message) -> Vec<u8> {
    match message {
        Message::StreamStart { xid, first_segment } => {
            let mut wire = head(b'S', Some(*xid));
            wire.put_u8((*first_segment).into());
            wire
        }
        Message::StreamStop => vec![b'E'],
        Message::StreamCommit {
            xid,
            commit_lsn,
            end_lsn,
            commit_time_us,
        } => {
            let mut wire = head(b'c', Some(*xid));
            wire.put_u8(0);
            wire.put_u64(commit_lsn.as_u64());
            wire.put_u64(end_lsn.as_u64());
            wire.put_i64(*commit_time_us);
            wire
        }
        Message::StreamAbort {
            xid,
            subxid,
            abort_lsn,
            abort_time_us,
        } => {
            let mut wire = head(b'A', Some(*xid));
            wire.put_u32(*subxid);
            if let Some(time_us) = abort_time_us {
                wire.put_u64(abort_lsn.map_or(0, |lsn| lsn.as_u64()));
                wire.put_i64(*time_us);
            }
            wire
        }
        other => encode_two_phase(other),
    }
}

fn encode_two_phase(message: &Message) -> Vec<u8> {
    match message {
        Message::BeginPrepare {
            prepare_lsn: a,
            end_lsn: b,
            prepare_time_us: t,
            xid,
            gid,
        } => encode_prepared(
            b'b',
            false,
            [a.as_u64(), b.as_u64(), t.cast_unsigned()],
            *xid,
            gid,
        ),
        Message::Prepare {
            prepare_lsn: a,
            end_lsn: b,
            prepare_time_us: t,
            xid,
            gid,
        } => encode_prepared(
            b'P',
            true,
            [a.as_u64(), b.as_u64(), t.cast_unsigned()],
            *xid,
            gid,
        ),
        Message::CommitPrepared {
            commit_lsn: a,
            end_lsn: b,
            commit_time_us: t,
            xid,
            gid,
        } => encode_prepared(
            b'K',
            true,
            [a.as_u64(), b.as_u64(), t.cast_unsigned()],
            *xid,
            gid,
        ),
        Message::StreamPrepare {
            prepare_lsn: a,
            end_lsn: b,
            prepare_time_us: t,
            xid,
            gid,
        } => encode_prepared(
            b'p',
            true,
            [a.as_u64(), b.as_u64(), t.cast_unsigned()],
            *xid,
            gid,
        ),
        Message::RollbackPrepared {
            prepare_end_lsn,
            rollback_end_lsn,
            prepare_time_us,
            rollback_time_us,
            xid,
            gid,
        } => {
            let mut wire = vec![b'r', 0];
            wire.put_u64(prepare_end_lsn.as_u64());
            wire.put_u64(rollback_end_lsn.as_u64());
            wire.put_i64(*prepare_time_us);
            wire.put_i64(*rollback_time_us);
            wire.put_u32(*xid);
            put_string(&mut wire, gid);
            wire
        }
        other => panic!("not of this family: {other:?}"),
    }
}
