//! The decoder against what servers really send: the same script of changes on each major.
//!
//! ```text
//!  setup.sql, changes.sql ─▶ a server ─▶ bytes ─▶ decoder ─▶ lines == CAPTURE.txt
//!                 tests/golden/MAJOR-CAPTURE.hex ─▶ decoder ─▶ lines == CAPTURE.txt
//! ```
//!
//! The files hold what the servers of the day sent, so the second half needs no server.
//! `PGLOCKSTEP_WRITE_GOLDEN=1 cargo test write_golden` writes them anew, to be read in the diff.

mod render;

use std::fmt::Write as _;
use std::path::PathBuf;

use pglockstep::demo::cluster::{Cluster, ClusterOptions};
use pglockstep::pgoutput::Streaming;
use tokio_postgres::Client;

use render::render;

const MAJORS: [u32; 5] = [14, 15, 16, 17, 18];

/// One way to ask for the stream.
struct Capture {
    name: &'static str,
    protocol_version: u8,
    streaming: Streaming,
    /// The first major version that can be asked so.
    since: u32,
    slot: &'static str,
    options: &'static [(&'static str, &'static str)],
}

const CAPTURES: [Capture; 5] = [
    Capture {
        name: "plain",
        protocol_version: 1,
        streaming: Streaming::Off,
        since: 14,
        slot: "one_phase",
        options: &[],
    },
    Capture {
        name: "binary",
        protocol_version: 1,
        streaming: Streaming::Off,
        since: 14,
        slot: "one_phase",
        options: &[("binary", "true")],
    },
    Capture {
        name: "streaming",
        protocol_version: 2,
        streaming: Streaming::On,
        since: 14,
        slot: "one_phase",
        options: &[("streaming", "on")],
    },
    Capture {
        name: "two-phase",
        protocol_version: 3,
        streaming: Streaming::On,
        since: 15,
        slot: "two_phase",
        options: &[("streaming", "on"), ("two_phase", "on")],
    },
    Capture {
        name: "parallel",
        protocol_version: 4,
        streaming: Streaming::Parallel,
        since: 16,
        slot: "two_phase",
        options: &[("streaming", "parallel"), ("two_phase", "on")],
    },
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

fn golden_file(name: &str) -> PathBuf {
    PathBuf::from("tests/golden").join(name)
}

/// What a capture must read as: the same on every major, but for the exceptions that have
/// a file of their own (18 skips what it knows to be rolled back).
fn expected(major: u32, capture: &Capture) -> String {
    let exception = golden_file(&format!("{major}-{}.txt", capture.name));
    let shared = golden_file(&format!("{}.txt", capture.name));
    std::fs::read_to_string(exception)
        .or_else(|_| std::fs::read_to_string(shared))
        .unwrap()
}

/// Each statement on its own: some refuse to share a transaction.
async fn run_script(client: &Client, script: &str) {
    let code: String = script
        .lines()
        .filter(|line| !line.starts_with("--"))
        .fold(String::new(), |code, line| code + line + "\n");
    for statement in code
        .split(";\n")
        .map(str::trim)
        .filter(|statement| !statement.is_empty())
    {
        client
            .simple_query(statement)
            .await
            .unwrap_or_else(|error| panic!("{error:?}\n{statement}"));
    }
}

/// Reads the slot from its start, without moving it.
async fn messages(client: &Client, capture: &Capture) -> Vec<Vec<u8>> {
    let version = capture.protocol_version.to_string();
    let mut options = vec![
        ("proto_version", &*version),
        ("publication_names", "p"),
        ("messages", "true"),
    ];
    options.extend(capture.options);
    let options: Vec<_> = options
        .iter()
        .map(|(name, value)| format!("'{name}', '{value}'"))
        .collect();
    let sql = format!(
        "SELECT data FROM pg_logical_slot_peek_binary_changes('{}', NULL, NULL, {})",
        capture.slot,
        options.join(", ")
    );
    client
        .query(&sql, &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// What this major sends, with the server's exact version.
async fn captures(major: u32) -> (String, Vec<(&'static Capture, Vec<Vec<u8>>)>) {
    let options = ClusterOptions::version(major)
        .with("logical_decoding_work_mem", "64kB")
        // Its transactions would stand between ours.
        .with("autovacuum", "off");
    let cluster = Cluster::start(options).await.unwrap();
    let client = cluster.connect("postgres").await.unwrap();
    run_script(&client, include_str!("golden/setup.sql")).await;
    run_script(&client, include_str!("golden/changes.sql")).await;
    let version = client
        .query_one("SHOW server_version", &[])
        .await
        .unwrap()
        .get(0);
    let mut captured = Vec::new();
    for capture in CAPTURES.iter().filter(|capture| capture.since <= major) {
        captured.push((capture, messages(&client, capture).await));
    }
    (version, captured)
}

async fn check_live(major: u32) {
    let (version, captured) = captures(major).await;
    for (capture, messages) in captured {
        let lines = render(capture.protocol_version, capture.streaming, &messages);
        let what = format!("{version} {}", capture.name);
        assert_same_lines(&lines, &expected(major, capture), &what);
    }
}

/// Not a test by itself: writes the files when asked to.
#[tokio::test]
async fn write_golden_files() {
    if std::env::var_os("PGLOCKSTEP_WRITE_GOLDEN").is_none() {
        return;
    }
    for major in MAJORS {
        let (version, captured) = captures(major).await;
        for (capture, messages) in captured {
            let mut text = format!(
                "# PostgreSQL {version}, protocol {}, {}, {:?}: a message a line\n",
                capture.protocol_version, capture.streaming, capture.options
            );
            for message in &messages {
                let _ = writeln!(text, "{}", hex(message));
            }
            let name = capture.name;
            std::fs::write(golden_file(&format!("{major}-{name}.hex")), text).unwrap();
            let lines = render(capture.protocol_version, capture.streaming, &messages);
            let exception = golden_file(&format!("{major}-{name}.txt"));
            if major == capture.since {
                std::fs::write(golden_file(&format!("{name}.txt")), lines).unwrap();
            } else if lines != expected(capture.since, capture) {
                std::fs::write(exception, lines).unwrap();
            } else if exception.exists() {
                std::fs::remove_file(exception).unwrap();
            }
        }
    }
}

/// Panics with the first line that differs.
fn assert_same_lines(actual: &str, expected: &str, what: &str) {
    let mut expected_lines = expected.lines();
    for (number, actual) in actual.lines().enumerate() {
        assert_eq!(
            Some(actual),
            expected_lines.next(),
            "{what}, line {}",
            number + 1
        );
    }
    assert_eq!(expected_lines.next(), None, "{what} ends too early");
}

#[tokio::test]
async fn postgresql_14_sends_what_is_expected() {
    check_live(14).await;
}

#[tokio::test]
async fn postgresql_15_sends_what_is_expected() {
    check_live(15).await;
}

#[tokio::test]
async fn postgresql_16_sends_what_is_expected() {
    check_live(16).await;
}

#[tokio::test]
async fn postgresql_17_sends_what_is_expected() {
    check_live(17).await;
}

#[tokio::test]
async fn postgresql_18_sends_what_is_expected() {
    check_live(18).await;
}

#[test]
fn golden_bytes_decode_to_what_is_expected() {
    for capture in &CAPTURES {
        for major in MAJORS.iter().filter(|major| **major >= capture.since) {
            let name = format!("{major}-{}.hex", capture.name);
            let text = std::fs::read_to_string(golden_file(&name)).unwrap();
            let messages: Vec<_> = text
                .lines()
                .filter(|line| !line.starts_with('#'))
                .map(unhex)
                .collect();
            let lines = render(capture.protocol_version, capture.streaming, &messages);
            assert_same_lines(&lines, &expected(*major, capture), &name);
        }
    }
}
