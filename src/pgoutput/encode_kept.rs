//! The other direction for what is kept: a change, and the form of its table, as the source
//! would send them. What is read back goes through the [`Decoder`](super::Decoder) like the stream.

use crate::pg::{Change, OldTuple, Relation, ReplicaIdentity};
use bytes::BufMut;

/// A Relation message outside a segment.
#[must_use]
pub fn encode_relation(relation: &Relation) -> Vec<u8> {
    let mut wire = vec![b'R'];
    wire.put_u32(relation.id);
    let schema = relation.name.schema.as_str();
    // LogicalRepWriteNamespace: the system's own schema is sent as nothing.
    put_string(&mut wire, if schema == "pg_catalog" { "" } else { schema });
    put_string(&mut wire, &relation.name.name);
    wire.put_u8(match relation.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    // A table has 1600 columns at most.
    wire.put_u16(u16::try_from(relation.columns.len()).unwrap_or(u16::MAX));
    for column in &relation.columns {
        wire.put_u8(column.is_key.into());
        put_string(&mut wire, &column.name);
        wire.put_u32(column.type_oid);
        wire.put_i32(column.type_modifier);
    }
    wire
}

/// An Insert, Update, Delete or Truncate message outside a segment.
#[must_use]
pub fn encode_change(change: &Change) -> Vec<u8> {
    match change {
        Change::Insert { relation, new } => {
            let mut wire = head(b'I', *relation);
            wire.put_u8(b'N');
            new.put_wire(&mut wire);
            wire
        }
        Change::Update { relation, old, new } => {
            let mut wire = head(b'U', *relation);
            if let Some(old) = old {
                put_old(&mut wire, old);
            }
            wire.put_u8(b'N');
            new.put_wire(&mut wire);
            wire
        }
        Change::Delete { relation, old } => {
            let mut wire = head(b'D', *relation);
            put_old(&mut wire, old);
            wire
        }
        Change::Truncate {
            relations,
            cascade,
            restart_identity,
        } => {
            let mut wire = vec![b'T'];
            wire.put_u32(u32::try_from(relations.len()).unwrap_or(u32::MAX));
            wire.put_u8(u8::from(*cascade) | u8::from(*restart_identity) << 1);
            for relation in relations {
                wire.put_u32(*relation);
            }
            wire
        }
    }
}

fn head(tag: u8, relation: u32) -> Vec<u8> {
    let mut wire = vec![tag];
    wire.put_u32(relation);
    wire
}

fn put_old(wire: &mut Vec<u8>, old: &OldTuple) {
    wire.put_u8(match old {
        OldTuple::Key(_) => b'K',
        OldTuple::Full(_) => b'O',
    });
    old.tuple().put_wire(wire);
}

fn put_string(wire: &mut Vec<u8>, text: &str) {
    wire.put_slice(text.as_bytes());
    wire.put_u8(0);
}
