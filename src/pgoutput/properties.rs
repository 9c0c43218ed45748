//! Properties of the decoder over made-up messages: what is encoded is decoded, what
//! is cut or bent is an error or another message, and nothing panics.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::encode::{Value, encode, tuple};
use super::{DecodeErrorKind, Decoder, Message, Payload, Streaming};
use crate::pg::{
    Change, Column, Lsn, OldTuple, QualifiedName, Relation, ReplicaIdentity, Tuple, TupleError,
    TypeName,
};

fn any_name() -> impl Strategy<Value = String> {
    "[^\\x00]{1,20}"
}

fn any_lsn() -> impl Strategy<Value = Lsn> {
    (1..=u64::MAX).prop_filter_map("never zero", Lsn::from_wire)
}

fn any_xid() -> impl Strategy<Value = u32> {
    1..=u32::MAX
}

fn any_qualified_name() -> impl Strategy<Value = QualifiedName> {
    let schema = prop_oneof![Just("pg_catalog".to_owned()), any_name()];
    (schema, any_name()).prop_map(|(schema, name)| QualifiedName { schema, name })
}

fn any_tuple() -> impl Strategy<Value = Tuple> {
    let value = prop_oneof![
        Just(Value::Null),
        Just(Value::UnchangedToast),
        vec(any::<u8>(), 0..40).prop_map(Value::Text),
        vec(any::<u8>(), 0..40).prop_map(Value::Binary),
    ];
    vec(value, 0..12).prop_map(|values| tuple(&values))
}

fn any_old() -> impl Strategy<Value = OldTuple> {
    prop_oneof![
        any_tuple().prop_map(OldTuple::Key),
        any_tuple().prop_map(OldTuple::Full)
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<u32>(), any_tuple()).prop_map(|(relation, new)| Change::Insert { relation, new }),
        (any::<u32>(), option::of(any_old()), any_tuple())
            .prop_map(|(relation, old, new)| Change::Update { relation, old, new }),
        (any::<u32>(), any_old()).prop_map(|(relation, old)| Change::Delete { relation, old }),
        (vec(any::<u32>(), 0..9), any::<bool>(), any::<bool>()).prop_map(
            |(relations, cascade, restart_identity)| Change::Truncate {
                relations,
                cascade,
                restart_identity
            }
        ),
    ]
}

fn any_relation() -> impl Strategy<Value = Relation> {
    let identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index),
    ];
    let column = (any_name(), any::<u32>(), any::<i32>(), any::<bool>()).prop_map(
        |(name, type_oid, type_modifier, is_key)| Column {
            name,
            type_oid,
            type_modifier,
            is_key,
        },
    );
    (
        any::<u32>(),
        any_qualified_name(),
        identity,
        vec(column, 0..12),
    )
        .prop_map(|(id, name, replica_identity, columns)| Relation {
            id,
            name,
            replica_identity,
            columns,
        })
}

/// Messages that may stand anywhere; inside a segment they carry the xid.
fn any_content(inside: bool) -> impl Strategy<Value = Message> {
    let xid = move || any_xid().prop_map(move |xid| inside.then_some(xid));
    prop_oneof![
        6 => (xid(), any_change()).prop_map(|(xid, change)| Message::Change { xid, change }),
        1 => (xid(), any_relation())
            .prop_map(|(xid, relation)| Message::Relation { xid, relation }),
        1 => (xid(), any::<u32>(), any_qualified_name())
            .prop_map(|(xid, oid, name)| Message::Type { xid, oid, name: TypeName(name) }),
        1 => (xid(), any::<bool>(), any_lsn(), any_name(), vec(any::<u8>(), 0..60)).prop_map(
            |(xid, transactional, lsn, prefix, content)| Message::Logical {
                xid,
                transactional,
                lsn,
                prefix,
                content: Payload(content.into()),
            }
        ),
        1 => (option::of(any_lsn()), any_name())
            .prop_map(|(commit_lsn, name)| Message::Origin { commit_lsn, name }),
    ]
}

/// Messages that may stand outside a segment only.
fn any_boundary() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any_lsn(), any::<i64>(), any_xid()).prop_map(|(final_lsn, commit_time_us, xid)| {
            Message::Begin {
                final_lsn,
                commit_time_us,
                xid,
            }
        }),
        (any_lsn(), any_lsn(), any::<i64>()).prop_map(|(commit_lsn, end_lsn, commit_time_us)| {
            Message::Commit {
                commit_lsn,
                end_lsn,
                commit_time_us,
            }
        }),
        (any_xid(), any_lsn(), any_lsn(), any::<i64>()).prop_map(
            |(xid, commit_lsn, end_lsn, commit_time_us)| Message::StreamCommit {
                xid,
                commit_lsn,
                end_lsn,
                commit_time_us
            }
        ),
        (any_xid(), any_xid(), option::of(any_lsn()), any::<i64>()).prop_map(
            |(xid, subxid, abort_lsn, time_us)| Message::StreamAbort {
                xid,
                subxid,
                abort_lsn,
                abort_time_us: Some(time_us)
            }
        ),
        any_two_phase(),
    ]
}

fn any_two_phase() -> impl Strategy<Value = Message> {
    let fields = (
        any_lsn(),
        any_lsn(),
        any::<i64>(),
        any::<i64>(),
        any_xid(),
        any_name(),
    );
    (0..5, fields).prop_map(|(kind, (lsn, end_lsn, time_us, other_time_us, xid, gid))| {
        let (prepare_lsn, prepare_time_us) = (lsn, time_us);
        match kind {
            0 => Message::BeginPrepare {
                prepare_lsn,
                end_lsn,
                prepare_time_us,
                xid,
                gid,
            },
            1 => Message::Prepare {
                prepare_lsn,
                end_lsn,
                prepare_time_us,
                xid,
                gid,
            },
            2 => Message::StreamPrepare {
                prepare_lsn,
                end_lsn,
                prepare_time_us,
                xid,
                gid,
            },
            3 => {
                let (commit_lsn, commit_time_us) = (lsn, time_us);
                Message::CommitPrepared {
                    commit_lsn,
                    end_lsn,
                    commit_time_us,
                    xid,
                    gid,
                }
            }
            _ => Message::RollbackPrepared {
                prepare_end_lsn: lsn,
                rollback_end_lsn: end_lsn,
                prepare_time_us,
                rollback_time_us: other_time_us,
                xid,
                gid,
            },
        }
    })
}

/// One message, and whether it stands inside a segment.
fn any_message() -> impl Strategy<Value = (bool, Message)> {
    let start = (any_xid(), any::<bool>())
        .prop_map(|(xid, first_segment)| Message::StreamStart { xid, first_segment });
    prop_oneof![
        4 => any_content(true).prop_map(|message| (true, message)),
        4 => any_content(false).prop_map(|message| (false, message)),
        4 => any_boundary().prop_map(|message| (false, message)),
        1 => start.prop_map(|message| (false, message)),
        1 => Just((true, Message::StreamStop)),
    ]
}

/// A stretch of stream in which every message stands where it may.
fn any_stream() -> impl Strategy<Value = Vec<Message>> {
    let segment = (any_xid(), any::<bool>(), vec(any_content(true), 0..4)).prop_map(
        |(xid, first_segment, content)| {
            let mut messages = vec![Message::StreamStart { xid, first_segment }];
            messages.extend(content);
            messages.push(Message::StreamStop);
            messages
        },
    );
    let piece = prop_oneof![
        any_content(false).prop_map(|message| vec![message]),
        any_boundary().prop_map(|message| vec![message]),
        segment,
    ];
    vec(piece, 1..6).prop_map(|pieces| pieces.concat())
}

fn decoder() -> Decoder {
    Decoder::new(4, Streaming::Parallel)
}

/// A decoder inside a segment, or outside.
fn decoder_at(inside: bool) -> Decoder {
    let mut decoder = decoder();
    if inside {
        decoder
            .decode(Bytes::from_static(b"S\0\0\0\x01\x01"))
            .unwrap();
    }
    decoder
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(messages in any_stream()) {
        let mut decoder = decoder();
        for message in messages {
            prop_assert_eq!(decoder.decode(encode(&message)), Ok(message));
        }
    }

    #[test]
    fn every_truncation_is_an_error((inside, message) in any_message()) {
        let wire = encode(&message);
        for length in 0..wire.len() {
            let error = decoder_at(inside).decode(wire.slice(..length)).unwrap_err();
            prop_assert!(error.offset <= length);
            let is_cut = matches!(
                error.kind,
                DecodeErrorKind::Truncated | DecodeErrorKind::Tuple(TupleError::Truncated)
            );
            prop_assert!(is_cut, "cut to {} of {}: {}", length, wire.len(), error);
        }
    }

    #[test]
    fn every_extra_byte_is_an_error((inside, message) in any_message(), extra in any::<u8>()) {
        let wire = encode(&message);
        let longer = [&wire[..], &[extra]].concat();
        let error = decoder_at(inside).decode(longer.into()).unwrap_err();
        prop_assert_eq!(error.kind, DecodeErrorKind::Trailing(1));
        prop_assert_eq!(error.offset, wire.len());
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), inside in any::<bool>()) {
        let _ = decoder_at(inside).decode(bytes.into());
    }

    #[test]
    fn random_bytes_after_a_tag_never_panic(
        tag in prop::sample::select(b"BCORYIUDTMSEcAbPKrp".to_vec()),
        bytes in vec(prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()], 0..120),
        inside in any::<bool>(),
    ) {
        let _ = decoder_at(inside).decode([&[tag][..], &bytes].concat().into());
    }

    /// A bent byte yields an error, or a message that means exactly those bytes.
    #[test]
    fn a_bent_byte_is_never_lost(
        (inside, message) in any_message(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bent = encode(&message).to_vec();
        *at.get_mut(&mut bent) = byte;
        if let Ok(other) = decoder_at(inside).decode(bent.clone().into()) {
            prop_assert_eq!(&encode(&other)[..], &bent[..]);
        }
    }
}
