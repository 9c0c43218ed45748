//! Tables for the decoder: chosen messages, each kind of damage, and what may come when.

use bytes::Bytes;

use super::{DecodeErrorKind, Decoder, Message, Streaming};
use crate::pg::{Change, Lsn, OldTuple, TupleError, TupleValue};

fn plain(wire: &'static [u8]) -> Result<Message, DecodeErrorKind> {
    Decoder::new(1, Streaming::Off)
        .decode(Bytes::from_static(wire))
        .map_err(|e| e.kind)
}

#[test]
fn every_field_of_begin() {
    let wire = b"B\0\0\0\x01\x16\xB3\x74\x80\0\x02\x8F\x5C\x28\xF5\xC2\x8F\0\0\x02\xEA";
    assert_eq!(
        plain(wire),
        Ok(Message::Begin {
            final_lsn: "1/16B37480".parse().unwrap(),
            commit_time_us: 720_575_940_379_279,
            xid: 746,
        })
    );
}

#[test]
fn an_update_keeps_old_and_new_apart() {
    let message = plain(b"U\0\0\x40\0O\0\x02t\0\0\0\x011nN\0\x02ut\0\0\0\0").unwrap();
    let Message::Change {
        xid: None,
        change: Change::Update { relation, old, new },
    } = message
    else {
        panic!("{message:?}")
    };
    assert_eq!(relation, 0x4000);
    let Some(OldTuple::Full(old)) = old else {
        panic!("{old:?}")
    };
    assert_eq!(old.value(0), Some(TupleValue::Text(b"1")));
    assert_eq!(old.value(1), Some(TupleValue::Null));
    assert_eq!(new.value(0), Some(TupleValue::UnchangedToast));
    assert_eq!(new.value(1), Some(TupleValue::Text(b"")));
}

#[test]
fn each_kind_of_damage() {
    use DecodeErrorKind as Kind;
    let table: &[(&'static [u8], Kind)] = &[
        (b"", Kind::Truncated),
        (b"Z", Kind::UnknownTag),
        (b"\0", Kind::UnknownTag),
        (b"B\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01", Kind::NoLsn),
        (b"B\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0", Kind::NoXid),
        (
            b"B\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x01!?",
            Kind::Trailing(2),
        ),
        (b"C\x01", Kind::Flags(1)),
        (b"I\0\0\0\x01K\0\0", Kind::TupleKind(b'K')),
        (
            b"I\0\0\0\x01N\xFF\xFF",
            Kind::Tuple(TupleError::ColumnCount(-1)),
        ),
        (b"I\0\0\0\x01N\0\x01x", Kind::Tuple(TupleError::Kind(b'x'))),
        (
            b"I\0\0\0\x01N\0\x01t\x7F\xFF\xFF\xFF.",
            Kind::Tuple(TupleError::Truncated),
        ),
        (b"U\0\0\0\x01X", Kind::TupleKind(b'X')),
        (b"U\0\0\0\x01K\0\0K\0\0", Kind::TupleKind(b'K')),
        (b"D\0\0\0\x01N\0\0", Kind::TupleKind(b'N')),
        (b"T\0\0\0\x02\0\0\0\0\x01", Kind::Truncated),
        (b"T\xFF\xFF\xFF\xFF\0", Kind::Count(-1)),
        (b"T\0\0\0\x01\x04\0\0\0\x01", Kind::Flags(4)),
        (b"R\0\0\0\x01s\0t\0x\0\0", Kind::ReplicaIdentity(b'x')),
        (b"R\0\0\0\x01s\0t\0d\x06\x41", Kind::Count(1601)),
        (b"R\0\0\0\x01s\0t\0d\0\x01\x02", Kind::Flags(2)),
        (b"R\0\0\0\x01\xFF\0t\0d\0\0", Kind::NotUtf8),
        (b"R\0\0\0\x01s", Kind::Truncated),
        (b"M\x02", Kind::Flags(2)),
        (b"M\0\0\0\0\0\0\0\0\x01p\0\xFF\xFF\xFF\xFE", Kind::Count(-2)),
        (
            b"M\0\0\0\0\0\0\0\0\x01p\0\x7F\xFF\xFF\xFFx",
            Kind::Truncated,
        ),
    ];
    for (wire, expected) in table {
        assert_eq!(plain(wire), Err(*expected), "{}", wire.escape_ascii());
    }
}

#[test]
fn the_error_names_tag_and_field() {
    let mut decoder = Decoder::new(1, Streaming::Off);
    let error = decoder
        .decode(Bytes::from_static(b"C\0\0\0\0\0\0\0\0\0"))
        .unwrap_err();
    assert_eq!((error.tag, error.offset), (Some(b'C'), 2));
    assert_eq!(
        error.to_string(),
        "cannot decode the pgoutput message 'C', at byte 2: the log position is missing"
    );
}

#[test]
fn segments() {
    let start = Bytes::from_static(b"S\0\0\0\x07\x01");
    let insert = Bytes::from_static(b"I\0\0\0\x08\0\0\x40\0N\0\0");
    let stop = Bytes::from_static(b"E");
    let begin = Bytes::from_static(b"B\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x01");
    let mut decoder = Decoder::new(2, Streaming::On);
    let mut kind = |wire: &Bytes| decoder.decode(wire.clone()).map_err(|error| error.kind);
    assert_eq!(kind(&stop), Err(DecodeErrorKind::OutsideSegment));
    assert_eq!(
        kind(&start),
        Ok(Message::StreamStart {
            xid: 7,
            first_segment: true
        })
    );
    assert!(matches!(
        kind(&insert),
        Ok(Message::Change { xid: Some(8), .. })
    ));
    assert_eq!(kind(&start), Err(DecodeErrorKind::InsideSegment));
    assert_eq!(kind(&begin), Err(DecodeErrorKind::InsideSegment));
    assert_eq!(kind(&stop), Ok(Message::StreamStop));
    assert_eq!(
        kind(&insert),
        Err(DecodeErrorKind::TupleKind(0)),
        "no xid outside"
    );
    assert!(kind(&begin).is_ok());
}

#[test]
fn only_what_was_agreed() {
    let refused = |version, streaming, tag: &'static [u8]| {
        let kind = Decoder::new(version, streaming)
            .decode(Bytes::from_static(tag))
            .unwrap_err()
            .kind;
        matches!(kind, DecodeErrorKind::NotNegotiated { .. })
    };
    for tag in [b"S", b"E", b"c", b"A"] {
        assert!(refused(1, Streaming::On, tag) && refused(4, Streaming::Off, tag));
        assert!(!refused(2, Streaming::On, tag));
    }
    for tag in [b"b", b"P", b"K", b"r"] {
        assert!(refused(2, Streaming::On, tag) && !refused(3, Streaming::Off, tag));
    }
    assert!(refused(2, Streaming::On, b"p") && refused(3, Streaming::Off, b"p"));
}

#[test]
fn an_abort_says_where_only_under_parallel_streaming() {
    let short = Bytes::from_static(b"A\0\0\0\x07\0\0\0\x08");
    let long = Bytes::from_static(b"A\0\0\0\x07\0\0\0\x08\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x0A");
    assert!(Decoder::new(4, Streaming::On).decode(short.clone()).is_ok());
    assert!(Decoder::new(4, Streaming::On).decode(long.clone()).is_err());
    assert!(Decoder::new(4, Streaming::Parallel).decode(short).is_err());
    assert_eq!(
        Decoder::new(4, Streaming::Parallel).decode(long).unwrap(),
        Message::StreamAbort {
            xid: 7,
            subxid: 8,
            abort_lsn: Lsn::from_wire(9),
            abort_time_us: Some(10),
        }
    );
}
