//! What a line does to bytes, measured by asking a server through it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How an answer came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    /// From the question to the answer's last byte.
    pub(super) took: Duration,
    pub(super) bytes: usize,
    /// It took so many reads.
    pub(super) pieces: usize,
}

/// Asks the server behind this port for so many bytes, in a session of its own.
pub(super) async fn ask_for(bytes: usize, port: u16) -> Answer {
    // By a thread of its own: it takes each piece when it comes, and not when the proxy rests.
    let asked = tokio::task::spawn_blocking(move || {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_nodelay(true).unwrap();
        // The protocol's version, then pairs.
        let parameters = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
        ask(&mut socket, &framed(parameters));
        let sql = format!("SELECT repeat('x', {bytes})\0");
        let query = [b"Q".as_slice(), &framed(sql.as_bytes())].concat();
        ask(&mut socket, &query)
    });
    asked.await.unwrap()
}

/// Until the server is ready for the next question.
fn ask(socket: &mut TcpStream, question: &[u8]) -> Answer {
    const READY: &[u8] = b"Z\0\0\0\x05I";
    let asked = Instant::now();
    socket.write_all(question).unwrap();
    let (mut answer, mut pieces) = (Vec::new(), 0);
    let mut piece = vec![0; 64 * 1024];
    while !answer.ends_with(READY) {
        let count = socket.read(&mut piece).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..count]);
        pieces += 1;
    }
    Answer {
        took: asked.elapsed(),
        bytes: answer.len(),
        pieces,
    }
}

/// Behind its own length.
fn framed(body: &[u8]) -> Vec<u8> {
    let length = i32::try_from(body.len() + 4).unwrap();
    [&length.to_be_bytes(), body].concat()
}
