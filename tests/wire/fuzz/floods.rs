//! Before the session is ours nobody may talk for ever: a server that does not end is hung up on.

use super::server::{
    Client, Damage, FLOOD_BYTES, Login, Play, STREAM_SAYS, authentication, message, said, turns,
};
use super::{Outcome, perform, share};
use crate::support::{Random, seed};
use std::sync::Arc;

/// A client that was flooded hung up before it was sent this much; most of it is the sockets'.
const HEARD_BYTES_MAX: usize = 4 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_are_cut_off() {
    let many: Vec<u8> = (0..2_000_u32)
        .flat_map(|n| message(b'S', format!("p{n}\0{}\0", "x".repeat(500)).as_bytes()))
        .collect();
    let endless = |tag: u8| [&[tag][..], &(1_u32 << 30).to_be_bytes()].concat();
    let floods = [
        many,
        message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhear, hear\0\0"),
        message(b'A', &[0, 0, 0, 1, b'c', 0, b'p', 0]),
        message(b'K', &[0, 0, 0, 1, 2, 3, 4, 5]),
        message(b'S', b"TimeZone\0UTC\0"),
        message(b'D', &[0, 1, 0, 0, 0, 1, b'x']),
        message(b'C', b"SELECT 1\0"),
        message(b'T', &[0, 0]),
        message(b'I', b""),
        authentication(0, b""),
        authentication(11, b"r=x,s=AAAA,i=4096"),
        endless(b'E'),
        endless(b'N'),
        endless(b'R'),
        endless(b'S'),
        endless(b'D'),
    ];
    let mut plays = Vec::new();
    for client in Client::ALL {
        let turns = Arc::new(turns(Login::Scram, client));
        // Until the session is pinned; and for replication until the stream begins.
        let open = if client == Client::Sql {
            said(&turns).count()
        } else {
            said(&turns).count() - STREAM_SAYS + 1
        };
        for at in 0..open {
            for flood in &floods {
                let damage = Damage::Flood(flood.clone());
                plays.push((client, Play::new(&turns, at, damage)));
            }
        }
    }
    let mut random = Random::new(seed());
    let plays = share(plays, 200, &mut random);
    const { assert!(HEARD_BYTES_MAX < FLOOD_BYTES) };
    for (client, play, outcome, sent) in perform(plays).await {
        let (at, Damage::Flood(flood)) = (play.at, &play.damage) else {
            unreachable!()
        };
        let flood = flood[..flood.len().min(24)].escape_ascii();
        assert!(outcome != Outcome::Believed, "{client:?} at {at}: {flood}");
        assert!(
            sent < HEARD_BYTES_MAX,
            "{client:?} at {at}: {sent} bytes of {flood}: {outcome:?}"
        );
    }
}
