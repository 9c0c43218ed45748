//! Frames, damaged: a whole stream of a real server's changes, as bytes.
//!
//! Every frame is cut, its head bent, its tag changed; then whole streams at random. What comes
//! out is an error, a wish for more, or frames; what is in them is judged in `pgoutput`.

use super::ReplicationMessage;
use crate::conn::wire::{ANSWER_BYTES_MAX, Incoming, READ_BYTES, Wire, WireError};
use crate::faults::golden::{Capture, captures};
use crate::faults::random::{Random, for_seeds, is_soak, seed};
use std::collections::BTreeMap;
use std::time::Duration;

const SECONDS: u64 = 2;
const SOAK_SECONDS: u64 = 600;

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &length[..], body].concat()
}

/// A stream as a walsender frames it, with what may come between.
fn frames(capture: &Capture) -> Vec<Vec<u8>> {
    let mut frames = vec![
        frame(b'S', b"TimeZone\0UTC\0"),
        frame(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mwelcome\0\0"),
        frame(b'd', b"k\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\x01"),
    ];
    for payload in &capture.messages {
        let head = b"w\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\0";
        frames.push(frame(b'd', &[&head[..], payload].concat()));
    }
    frames.push(frame(b'c', b""));
    frames.push(frame(b'C', b"COPY 0\0"));
    frames
}

/// How bytes end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    /// After a whole frame.
    Whole,
    /// The rest of a frame is missing.
    Cut,
    TooLarge,
    TooMuch,
    Malformed,
    /// Not a message of replication.
    NotReplication,
}

/// Reads all that the bytes yield, and how they end.
fn read(bytes: &[u8], is_stream: bool) -> (usize, Ending) {
    let mut wire = Wire::of(bytes, is_stream);
    let mut frames = 0;
    loop {
        let most = 2 * bytes.len().max(READ_BYTES);
        assert!(wire.rest().capacity() <= most, "{}", wire.rest().capacity());
        match wire.try_next() {
            Ok(Some(Incoming::CopyData(payload))) => match ReplicationMessage::decode(payload) {
                Ok(_) => {}
                Err(_) => return (frames, Ending::NotReplication),
            },
            Ok(Some(_)) => {}
            Ok(None) if wire.rest().is_empty() => return (frames, Ending::Whole),
            Ok(None) => return (frames, Ending::Cut),
            Err(WireError::TooLarge { bytes, limit, .. }) => {
                assert!(bytes > limit);
                return (frames, Ending::TooLarge);
            }
            Err(WireError::TooMuch) => return (frames, Ending::TooMuch),
            Err(WireError::Malformed(why)) => {
                assert!(!why.is_empty());
                return (frames, Ending::Malformed);
            }
            Err(WireError::Io(error)) => panic!("{error}"),
        }
        frames += 1;
    }
}

#[test]
fn every_frame_damaged() {
    let mut endings: BTreeMap<(&str, Ending), u64> = BTreeMap::new();
    for capture in captures().iter().filter(|c| c.protocol_version == 1) {
        let frames = frames(capture);
        assert_eq!(read(&frames.concat(), true), (frames.len(), Ending::Whole));
        for (number, frame) in frames.iter().enumerate() {
            // Behind it stands another whole frame, for too large a length to eat.
            let next = frames.get(number + 1).map_or(&[][..], Vec::as_slice);
            let length = u32::from_be_bytes(frame[1..5].try_into().unwrap());
            for cut in 1..frame.len() {
                let ending = read(&frame[..cut], true);
                assert_eq!(ending, (0, Ending::Cut), "{cut} of {frame:?}");
            }
            for other in [
                length - 1,
                length + 1,
                0,
                3,
                1 << 30,
                (1 << 31) - 1,
                1 << 31,
                u32::MAX,
            ] {
                let bent = [&frame[..1], &other.to_be_bytes(), &frame[5..], next].concat();
                let (_, ending) = read(&bent, true);
                assert_ne!(ending, Ending::Whole, "{other} for {length}: {frame:?}");
                *endings.entry(("length", ending)).or_default() += 1;
            }
            for tag in 0..=u8::MAX {
                let (_, ending) = read(&[&[tag], &frame[1..]].concat(), true);
                *endings.entry(("tag", ending)).or_default() += 1;
            }
            let header = usize::from(frame[0] == b'd') * frame.len().min(30);
            for at in 5..header {
                let mut shorter = frame.clone();
                shorter.truncate(at);
                shorter[1..5].copy_from_slice(&u32::try_from(at - 1).unwrap().to_be_bytes());
                assert_eq!(
                    read(&shorter, true).1,
                    Ending::NotReplication,
                    "{shorter:?}"
                );
            }
        }
    }
    eprintln!("{endings:?}");
    assert!(
        endings[&("length", Ending::TooLarge)] > 100
            && endings[&("tag", Ending::Malformed)] > 1_000
    );
}

#[test]
fn an_answer_ends() {
    let notice = frame(b'N', b"SNOTICE\0Magain\0\0");
    let (heard, ending) = read(&notice.repeat(1 << 17), false);
    assert_eq!(
        (heard, ending),
        (ANSWER_BYTES_MAX / notice.len(), Ending::TooMuch)
    );
}

fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    let at = random.below(bytes.len());
    if bytes.is_empty() {
        return;
    }
    let end = (at + 1 + random.below(40)).min(bytes.len());
    match random.below(5) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][random.below(5)],
        2 => drop(bytes.drain(at..end)),
        3 => {
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        _ => bytes.truncate(at + 1),
    }
}

#[test]
fn frames_damaged_at_random() {
    let captures = captures();
    let streams: Vec<Vec<Vec<u8>>> = captures.iter().map(frames).collect();
    let mut endings: BTreeMap<Ending, u64> = BTreeMap::new();
    let time = Duration::from_secs(if is_soak() { SOAK_SECONDS } else { SECONDS });
    let seeds = for_seeds(time, |mut random| {
        let number = random.below(streams.len());
        let most = 3 + random.below(20);
        let mut bytes: Vec<u8> = streams[number]
            .iter()
            .take(most)
            .flatten()
            .copied()
            .collect();
        for _ in 0..=random.below(4) {
            damage(&mut random, &mut bytes);
        }
        let (_, ending) = read(&bytes, true);
        *endings.entry(ending).or_default() += 1;
    });
    eprintln!("{seeds} streams: {endings:?}");
    assert!(seed().is_some() || endings.len() == 5, "{endings:?}");
}
