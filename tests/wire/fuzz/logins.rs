//! A login by other rules than the protocol's is refused, and the password is not told.

use super::scram::{PASSWORD, Rules};
use super::server::{Client, Damage, Login, Play, Turn, authentication, message, turns};
use super::{Outcome, perform};
use std::sync::Arc;

/// A server that makes its own rules of SCRAM, or does not know the password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scram_is_held_to_its_rules() {
    let mut plays = Vec::new();
    for client in Client::ALL {
        let turns = Arc::new(turns(Login::Scram, client));
        plays.push((client, Play::new(&turns, 0, Damage::None)));
        for rules in wrong_rules() {
            let play = Play::new(&turns, usize::MAX, Damage::None);
            plays.push((client, Play { rules, ..play }));
        }
        for turns in wrong_turns(client) {
            plays.push((
                client,
                Play::new(&Arc::new(turns), usize::MAX, Damage::Left),
            ));
        }
    }
    assert_eq!(plays.len(), (12 + 7) + (12 + 8));
    for (client, play, outcome, _) in perform(plays).await {
        let is_good = play.at == 0;
        assert_eq!(
            outcome == Outcome::Believed,
            is_good,
            "{client:?} {play:?}: {outcome:?}"
        );
    }
}

/// More rounds than anybody needs, or no number; another nonce than the client's; another password.
fn wrong_rules() -> Vec<Rules> {
    let like = Rules::default;
    let iterations = ["100001", "4294967295", "4294967296", "-1", "", "1,m=ext"];
    let iterations = iterations.map(|iterations| Rules {
        iterations,
        ..like()
    });
    let nonces = [("theirs", true), ("", true), ("a,b", false)];
    let nonces = nonces.map(|(nonce, forgets_nonce)| Rules {
        nonce,
        forgets_nonce,
        ..like()
    });
    let passwords = ["guess", ""].map(|password| Rules { password, ..like() });
    [&iterations[..], &nonces, &passwords].concat()
}

/// No mechanism that we know; the last word first, and alone; a refusal in SCRAM's own words.
fn wrong_turns(client: Client) -> Vec<Vec<Turn>> {
    let by_the_book = || turns(Login::Scram, client);
    let mechanisms: [&[u8]; 5] = [
        b"OAUTHBEARER\0\0",
        b"\0",
        b"",
        b"SCRAM-SHA-256",
        b"SCRAM-SHA-256-PLUS\0\0",
    ];
    let mut wrong: Vec<Vec<Turn>> = Vec::new();
    for list in mechanisms {
        if client == Client::Sql && list.starts_with(b"SCRAM-SHA-256-PLUS") {
            // The library takes it for an offer of both; the proofs are the same.
            continue;
        }
        let mut turns = by_the_book();
        turns[1] = Turn::Say(authentication(10, list));
        wrong.push(turns);
    }
    let mut first = by_the_book();
    first.swap(3, 5);
    let mut alone = by_the_book();
    alone.drain(2..5);
    let mut refused = by_the_book();
    refused[5] = Turn::Say(authentication(12, b"e=other-error"));
    wrong.extend([first, alone, refused]);
    wrong
}

/// It was sent in clear, by a socket of this host; whoever has it may say it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_the_server_repeats_is_not_told() {
    let error =
        format!("SFATAL\0VFATAL\0C28P01\0Mno {PASSWORD}\0D\x1b[2J\n{PASSWORD}\0H{PASSWORD}\0\0");
    let turns = vec![
        Turn::Hear,
        Turn::Say(authentication(3, b"")),
        Turn::Hear,
        Turn::Say(message(b'E', error.as_bytes())),
    ];
    let play = Play::new(&Arc::new(turns), usize::MAX, Damage::None);
    let plays = Client::ALL.map(|client| (client, play.clone()));
    for (client, _, outcome, _) in perform(plays.to_vec()).await {
        let Outcome::Refused(text) = outcome else {
            panic!("{client:?}")
        };
        assert!(text.contains("no … (FATAL 28P01)"), "{client:?}: {text}");
        assert!(!text.contains(char::is_control), "{client:?}: {text:?}");
    }
}
