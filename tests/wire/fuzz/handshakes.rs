//! Nothing but TLS may follow the question for it: handshakes that are made up at random.

use super::scram::PASSWORD;
use super::{EXCHANGE_MAX, SLACK, TIMEOUT, panics};
use crate::support::{Random, is_soak, seed};
use crate::wire::source;
use pglockstep::conn::Session;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a handshake may begin with, and anything else.
fn tls_answer(random: &mut Random) -> Vec<u8> {
    let mut answer = [&b"S"[..], b"", b"N", b"E", b"SS"][random.below(5) as usize].to_vec();
    let record = [0x16, 0x15, 0x14, 0x17, 0x00][random.below(5) as usize];
    let length = [0_u16, 1, 7, 300, 0x4000, 0xFFFF][random.below(6) as usize];
    answer.extend([record, 3, 3]);
    answer.extend(length.to_be_bytes());
    answer.extend([2, 0, 0, random.next() as u8]);
    answer.extend((0..random.below(600)).map(|_| random.next() as u8));
    answer.truncate(random.below(700) as usize);
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_made_up_at_random() {
    let before = panics();
    let seed = seed();
    let mut random = Random::new(seed);
    let many = if is_soak() { 5_000 } else { 300 };
    eprintln!("{many} handshakes, PGLOCKSTEP_SEED={seed}");
    for _ in 0..many / 20 {
        let answers: Vec<Vec<u8>> = (0..20).map(|_| tls_answer(&mut random)).collect();
        let mut lanes = tokio::task::JoinSet::new();
        for (number, answer) in answers.into_iter().enumerate() {
            lanes.spawn(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let port = listener.local_addr().unwrap().port();
                let how = ["postgres", "direct"][number % 2];
                let url = format!(
                    "postgres://u:{PASSWORD}@127.0.0.1:{port}/d?connect_timeout={TIMEOUT}\
                     &sslmode=require&sslnegotiation={how}"
                );
                let said = answer.clone();
                tokio::spawn(async move {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let _ = stream.write_all(&said).await;
                    // One of them waits for what comes next.
                    let patience = if number == 0 {
                        SLACK
                    } else {
                        Duration::from_millis(30)
                    };
                    let mut heard = Vec::new();
                    let _ = tokio::time::timeout(patience, stream.read_to_end(&mut heard)).await;
                });
                let endpoint = source(&url);
                let opened =
                    tokio::time::timeout(EXCHANGE_MAX, endpoint.connect(Session::SourceRead));
                let text = opened.await.unwrap().map(drop).unwrap_err().to_string();
                assert!(
                    !text.contains(PASSWORD) && text.len() < 4_000,
                    "{answer:?}: {text}"
                );
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane.unwrap();
        }
    }
    assert_eq!(panics(), before, "a task has panicked");
}
