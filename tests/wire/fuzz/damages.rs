//! Every message of every script with every damage: nothing that is damaged is believed where it
//! must not be. `cargo test` draws a share of them by a seed, which is printed.

use super::server::{
    Client, Damage, Login, Play, STREAM_SAYS, Turn, authentication, message, said, turns,
};
use super::{Outcome, perform, share};
use crate::support::{Random, seed};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Of all exchanges, so many in `cargo test`.
const SHARE: usize = 8_000;
/// Of those that end by a time-out, so many.
const STALLS: usize = 250;

/// Long enough for the two SCRAM messages, which are made when they are due.
fn length_of(turn: &Turn) -> usize {
    match turn {
        Turn::Hear => 0,
        Turn::Say(message) => message.len(),
        Turn::ScramFirst => 9 + "r=".len() + 24 + "server,s=MDEyMzQ1Njc4OWFiY2RlZg==,i=1".len(),
        Turn::ScramFinal => 9 + "v=".len() + 44,
    }
}

/// Every message of every script with every damage.
fn all_plays() -> Vec<(Client, Play)> {
    let mut plays = Vec::new();
    for client in Client::ALL {
        for login in Login::ALL {
            let turns = Arc::new(turns(login, client));
            let open_from = said(&turns).count() - STREAM_SAYS;
            for (at, turn) in said(&turns).enumerate() {
                // Silence on an open stream is the pipeline's to notice; see `faults::network`.
                let is_open = client == Client::Replication && at >= open_from;
                let is_noticed = |damage: &Damage| !is_open || !matches!(damage, Damage::Stall(_));
                for damage in damages(turn).into_iter().filter(is_noticed) {
                    plays.push((client, Play::new(&turns, at, damage)));
                }
            }
        }
    }
    plays
}

fn damages(turn: &Turn) -> Vec<Damage> {
    let length = length_of(turn);
    let number = u32::try_from(length - 1).unwrap();
    let lengths = [
        number - 1,
        number + 1,
        0,
        3,
        1 << 31,
        (1 << 31) - 1,
        u32::MAX,
        1 << 20,
    ];
    let mut damages: Vec<Damage> = lengths.into_iter().map(Damage::Length).collect();
    damages.extend((0..length).map(Damage::Cut));
    damages.extend((0..length).map(Damage::Stall));
    damages.extend((0..=u8::MAX).map(Damage::Tag));
    damages.extend((0..length).flat_map(|at| (0..8).map(move |bit| Damage::Flip(at, bit))));
    damages.extend([Damage::Left, Damage::Twice]);
    let strangers = [
        authentication(0, b""),
        authentication(12, b"v=AAAA"),
        message(b'Z', b"I"),
        message(b'W', &[0, 0, 0]),
        message(b'd', b"k"),
        message(b'c', b""),
        message(b'E', b""),
        message(b'E', b"SFATAL\0C28000\0Mno"),
        message(b'E', b"\0\0\0"),
        message(b'v', &[0, 3, 0, 0, 0, 0, 0, 0]),
        message(b'K', &[0, 0, 0, 1, 2, 3, 4, 5, 6]),
        message(b'A', &[0, 0, 0, 1, b'c', 0]),
        message(b'D', &[0xFF, 0xFF]),
        message(b'T', &[0xFF, 0xFF]),
        message(b'G', &[0, 0xFF, 0xFF]),
    ];
    damages.extend(strangers.map(Damage::Before));
    damages
}

/// What cannot be a session, whatever else is said.
fn cannot_be_believed(turns: &[Turn], at: usize, damage: &Damage) -> bool {
    let turn = said(turns).nth(at).unwrap();
    let authenticates = match turn {
        Turn::Say(message) => message[0] == b'R',
        _ => true,
    };
    match damage {
        Damage::Cut(_) | Damage::Stall(_) | Damage::Length(_) => true,
        Damage::Tag(tag) => authenticates && *tag != b'R',
        // Each of its bits counts, but for those that base64 leaves over.
        Damage::Flip(place, _) => matches!(turn, Turn::ScramFinal) && *place != 53,
        Damage::Left => authenticates,
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undamaged_scripts_are_believed() {
    let mut plays = Vec::new();
    for client in Client::ALL {
        for login in Login::ALL {
            let turns = Arc::new(turns(login, client));
            assert!(said(&turns).count() >= 9);
            plays.push((client, Play::new(&turns, 0, Damage::None)));
        }
    }
    for (client, play, outcome, _) in perform(plays).await {
        assert_eq!(outcome, Outcome::Believed, "{client:?} {play:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_damaged() {
    let seed = seed();
    let mut random = Random::new(seed);
    let is_stall = |play: &(Client, Play)| matches!(play.1.damage, Damage::Stall(_));
    let (stalls, others): (Vec<_>, Vec<_>) = all_plays().into_iter().partition(is_stall);
    let whole = stalls.len() + others.len();
    let mut plays = share(stalls, STALLS, &mut random);
    plays.extend(share(others, SHARE, &mut random));
    eprintln!(
        "{} of {whole} exchanges, PGLOCKSTEP_SEED={seed}",
        plays.len()
    );
    let mut counts: BTreeMap<(bool, String), usize> = BTreeMap::new();
    for (client, play, outcome, _) in perform(plays).await {
        let must_fail = cannot_be_believed(&play.turns, play.at, &play.damage);
        let is_believed = outcome == Outcome::Believed;
        assert!(!(must_fail && is_believed), "{client:?} believes {play:?}");
        let how = format!("{:?}", play.damage);
        let how = how.split('(').next().unwrap().to_owned();
        *counts.entry((is_believed, how)).or_default() += 1;
    }
    eprintln!("believed or not, by damage: {counts:?}");
}
