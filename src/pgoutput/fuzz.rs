//! What real servers sent, damaged: every message at every place, and streams at random.
//!
//! ```text
//!  golden ─▶ cut, prolonged, each field bent, misplaced ─▶ Decoder ─▶ an error that names tag and
//!         └▶ flipped, spliced, swapped, dropped … (seed) ─▶           offset, or a message that
//!                                                                     means exactly those bytes
//! ```
//!
//! The judge is the encoder: what is accepted must be, byte for byte, what a server would send
//! to say just that. And what comes out holds no more memory than the input accounts for.

use super::encode::encode;
use super::{DecodeErrorKind, Decoder, Message, Streaming};
use crate::faults::golden::{Capture, captures};
use crate::faults::random::{Random, for_seeds, is_soak};
use crate::pg::{Change, OldTuple, Tuple, TupleError, TupleValue};
use bytes::Bytes;
use std::collections::HashSet;
use std::time::Duration;

const SECONDS: u64 = 3;
const SOAK_SECONDS: u64 = 600;

/// A message, decoded, with the decoder as it was before it.
type Step = (Decoder, Bytes, Message);

fn decoder(capture: &Capture) -> Decoder {
    let streaming = match capture.streaming.as_str() {
        "off" => Streaming::Off,
        "on" => Streaming::On,
        _ => Streaming::Parallel,
    };
    Decoder::new(capture.protocol_version, streaming)
}

fn steps(capture: &Capture) -> Vec<Step> {
    let mut decoder = decoder(capture);
    let step = |wire: &Bytes| {
        let before = decoder.clone();
        let message = decoder.decode(wire.clone()).unwrap();
        (before, wire.clone(), message)
    };
    capture.messages.iter().map(step).collect()
}

/// How often what came of a damaged message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Judged {
    refused: u64,
    /// It is a message still, or again, and was read as just that.
    read: u64,
}

impl Judged {
    fn add(&mut self, is_read: bool) {
        if is_read {
            self.read += 1;
        } else {
            self.refused += 1;
        }
    }
}

/// Decodes damaged bytes and holds the outcome against what may come of them.
pub(crate) fn judged(decoder: &mut Decoder, wire: &Bytes) -> Option<Message> {
    match decoder.decode(wire.clone()) {
        Ok(message) => {
            let meant = encode(&message);
            assert!(
                meant == wire || spells_out_pg_catalog(wire),
                "{} is believed to be {message:?}",
                wire.escape_ascii()
            );
            let (held, most) = (heap_bytes(&message), 16 * wire.len() + 512);
            assert!(held <= most, "{held} bytes for {} bytes", wire.len());
            Some(message)
        }
        Err(error) => {
            assert!(error.offset <= wire.len(), "{error}");
            assert_eq!(error.tag, wire.first().copied(), "{error}");
            assert!(error.to_string().contains("at byte"), "{error}");
            None
        }
    }
}

/// A server sends that schema as nothing; written out it means the same.
fn spells_out_pg_catalog(wire: &[u8]) -> bool {
    let name = b"pg_catalog\0";
    wire.windows(name.len()).any(|window| window == name)
}

/// What a message holds beside the bytes it came in.
fn heap_bytes(message: &Message) -> usize {
    match message {
        Message::Relation { relation, .. } => {
            let names = relation.columns.iter().map(|c| c.name.capacity());
            relation.columns.capacity() * size_of::<crate::pg::Column>()
                + names.sum::<usize>()
                + relation.name.schema.capacity()
                + relation.name.name.capacity()
        }
        Message::Type { name, .. } => name.0.schema.capacity() + name.0.name.capacity(),
        Message::Origin { name, .. } => name.capacity(),
        Message::Logical {
            prefix, content, ..
        } => prefix.capacity() + content.0.len(),
        Message::Change { change, .. } => match change {
            Change::Truncate { relations, .. } => relations.capacity() * 4,
            other => tuples(other).map(Tuple::wire_bytes).sum(),
        },
        Message::BeginPrepare { gid, .. }
        | Message::Prepare { gid, .. }
        | Message::CommitPrepared { gid, .. }
        | Message::RollbackPrepared { gid, .. }
        | Message::StreamPrepare { gid, .. } => gid.capacity(),
        _ => 0,
    }
}

fn tuples(change: &Change) -> impl Iterator<Item = &Tuple> {
    let (old, new) = match change {
        Change::Insert { new, .. } => (None, Some(new)),
        Change::Update { old, new, .. } => (old.as_ref(), Some(new)),
        Change::Delete { old, .. } => (Some(old), None),
        Change::Truncate { .. } => (None, None),
    };
    old.map(OldTuple::tuple).into_iter().chain(new)
}

/// Where the lengths of a row's values stand: before the values, which are handles into `wire`.
fn value_lengths(wire: &Bytes, message: &Message) -> Vec<usize> {
    let Message::Change { change, .. } = message else {
        return Vec::new();
    };
    let place = |value: TupleValue<'_>| match value {
        TupleValue::Text(bytes) | TupleValue::Binary(bytes) if !bytes.is_empty() => {
            Some(bytes.as_ptr() as usize - wire.as_ptr() as usize - 4)
        }
        _ => None,
    };
    tuples(change)
        .flat_map(Tuple::values)
        .filter_map(place)
        .collect()
}

/// The bytes with `width` of them read as a number and replaced by another.
fn bent(wire: &[u8], at: usize, width: usize, to: u64) -> Bytes {
    let mut bent = wire.to_vec();
    bent[at..at + width].copy_from_slice(&to.to_be_bytes()[8 - width..]);
    bent.into()
}

/// One less, one more, nothing, the largest, minus one and the smallest of a signed number.
fn other_numbers(wire: &[u8], at: usize, width: usize) -> [u64; 6] {
    let mut raw = [0; 8];
    raw[8 - width..].copy_from_slice(&wire[at..at + width]);
    let (number, sign) = (u64::from_be_bytes(raw), 1 << (8 * width - 1));
    let (less, more) = (number.wrapping_sub(1), number.wrapping_add(1));
    [less, more, 0, sign - 1, u64::MAX, sign]
}

#[test]
fn every_golden_message_damaged_at_every_place() {
    let (mut cut, mut prolonged) = (0_u64, 0_u64);
    let (mut lengths, mut fields, mut misplaced) = (0_u64, Judged::default(), Judged::default());
    let mut seen = HashSet::new();
    for capture in captures() {
        let steps = steps(&capture);
        let inside = steps.iter().position(|(_, wire, _)| wire[0] == b'S');
        for (before, wire, message) in &steps {
            assert_eq!(encode(message), wire, "{}", capture.name);
            if !seen.insert((format!("{before:?}"), wire.clone())) {
                continue;
            }
            for length in 0..wire.len() {
                let error = before.clone().decode(wire.slice(..length)).unwrap_err();
                let is_cut = matches!(
                    error.kind,
                    DecodeErrorKind::Truncated | DecodeErrorKind::Tuple(TupleError::Truncated)
                );
                assert!(is_cut && error.offset <= length, "{length}: {error}");
                cut += 1;
            }
            for more in [&b"\0"[..], b"N", wire] {
                let longer: Bytes = [wire, more].concat().into();
                let error = before.clone().decode(longer).unwrap_err();
                let (kind, at) = (error.kind, error.offset);
                assert_eq!(
                    (kind, at),
                    (DecodeErrorKind::Trailing(more.len()), wire.len())
                );
                prolonged += 1;
            }
            for at in value_lengths(wire, message) {
                for impossible in [u64::MAX, 1 << 31, (1 << 31) - 1, wire.len() as u64] {
                    let bent = bent(wire, at, 4, impossible);
                    assert_eq!(judged(&mut before.clone(), &bent), None);
                    lengths += 1;
                }
            }
            for width in [1, 2, 4, 8] {
                for at in 1..=wire.len().saturating_sub(width) {
                    for number in other_numbers(wire, at, width) {
                        let bent = bent(wire, at, width, number);
                        fields.add(judged(&mut before.clone(), &bent).is_some());
                    }
                }
            }
            // Once within a segment, once outside, and once under the oldest agreement.
            let places = [
                decoder(&capture),
                inside.map_or(decoder(&capture), |at| steps[at + 1].0.clone()),
                Decoder::new(1, Streaming::Off),
            ];
            for mut place in places {
                misplaced.add(judged(&mut place, wire).is_some());
            }
        }
    }
    eprintln!(
        "{} messages; cut {cut}, prolonged {prolonged}, impossible lengths {lengths}: all refused; \
         numbers {fields:?}, misplaced {misplaced:?}",
        seen.len()
    );
    assert!(cut > 10_000 && prolonged > 500 && lengths > 500);
    assert!(fields.refused > 10_000 && fields.read > 10_000);
    assert!(misplaced.refused > 100 && misplaced.read > 100);
}

/// Golden streams, to be damaged at random.
pub(crate) struct Corpus(Vec<Vec<Step>>);

/// A part of a stream, damaged somewhere.
pub(crate) struct Damaged {
    /// Which stream of the corpus, and its first message.
    pub(crate) from: (usize, usize),
    /// As it is before the first message.
    pub(crate) decoder: Decoder,
    pub(crate) messages: Vec<Bytes>,
}

impl Corpus {
    pub(crate) fn new(is_wanted: impl Fn(&Capture) -> bool) -> Self {
        let wanted = captures().into_iter().filter(is_wanted);
        Self(wanted.map(|capture| steps(&capture)).collect())
    }

    /// The messages of one stream, decoded.
    pub(crate) fn steps(&self, stream: usize) -> &[Step] {
        &self.0[stream]
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn any(&self, random: &mut Random) -> (usize, usize) {
        let stream = random.below(self.0.len());
        (stream, random.below(self.0[stream].len()))
    }

    /// A part that begins where `begins` says it may.
    pub(crate) fn damaged(
        &self,
        random: &mut Random,
        begins: impl Fn(&Message) -> bool,
    ) -> Damaged {
        let from = loop {
            let from = self.any(random);
            if begins(&self.0[from.0][from.1].2) {
                break from;
            }
        };
        let steps = &self.0[from.0][from.1..];
        let most = 1 + random.below(20);
        let part = steps.iter().take(most).map(|(_, wire, _)| wire.clone());
        let mut messages: Vec<Bytes> = part.collect();
        for _ in 0..=random.below(3) {
            self.damage_stream(random, &mut messages);
        }
        Damaged {
            from,
            decoder: steps[0].0.clone(),
            messages,
        }
    }

    fn damage_stream(&self, random: &mut Random, messages: &mut Vec<Bytes>) {
        let at = random.below(messages.len());
        let (stream, other) = self.any(random);
        let other = self.0[stream][other].1.clone();
        match random.below(8) {
            0 => {
                let with = random.below(messages.len());
                messages.swap(at, with);
            }
            1 => messages.insert(at, messages[at].clone()),
            2 => messages.insert(at, other),
            3 if messages.len() > 1 => drop(messages.remove(at)),
            _ => {
                let mut wire = messages[at].to_vec();
                for _ in 0..=random.below(3) {
                    damage(random, &mut wire, &other);
                }
                messages[at] = wire.into();
            }
        }
    }
}

/// Bytes flipped, set, put in, taken out; spliced with those of another message.
fn damage(random: &mut Random, wire: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(wire.len() + 1);
    let end = (at + 1 + random.below(8)).min(wire.len());
    match random.below(8) {
        0 | 1 if at < wire.len() => wire[at] ^= 1 << random.below(8),
        2 if at < wire.len() => wire[at] = [0, 1, 0x7F, 0x80, 0xFF][random.below(5)],
        3 if at + 4 <= wire.len() => {
            let number = [0_u32, 1, 0x7FFF_FFFF, 0x8000_0000, u32::MAX][random.below(5)];
            wire[at..at + 4].copy_from_slice(&number.to_be_bytes());
        }
        4 => {
            let more: Vec<u8> = (0..=random.below(8)).map(|_| random.next() as u8).collect();
            wire.splice(at..at, more);
        }
        5 if at < end => drop(wire.drain(at..end)),
        6 if at < end => {
            let again = wire[at..end].to_vec();
            wire.splice(at..at, again);
        }
        _ => {
            wire.truncate(at);
            wire.extend_from_slice(&other[random.below(other.len() + 1)..]);
        }
    }
}

#[test]
fn golden_streams_damaged_at_random() {
    let corpus = Corpus::new(|_| true);
    let mut all = Judged::default();
    let time = Duration::from_secs(if is_soak() { SOAK_SECONDS } else { SECONDS });
    let seeds = for_seeds(time, |mut random| {
        let Damaged {
            mut decoder,
            messages,
            ..
        } = corpus.damaged(&mut random, |_| true);
        for wire in &messages {
            let message = judged(&mut decoder, wire);
            all.add(message.is_some());
            if message.is_none() {
                break;
            }
        }
    });
    eprintln!("{seeds} streams: {all:?}");
    let is_replay = crate::faults::random::seed().is_some();
    assert!(is_replay || all.refused > 1_000 && all.read > 1_000);
}
