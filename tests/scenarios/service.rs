//! What a service manager hears of the daemon (`sd_notify`).

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{Daemon, Family, Scenario, WAIT_SECONDS_MAX};

static FAMILY: Family = Family::const_new();

/// Reads until a message says this; what came before it is given back.
fn until(socket: &UnixDatagram, word: &str) -> String {
    let mut heard = String::new();
    let mut buffer = [0; 4096];
    while !heard.lines().any(|line| line.starts_with(word)) {
        let length = socket
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("no {word}: {error}; heard: {heard}"));
        heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
        heard.push('\n');
    }
    heard
}

#[tokio::test]
async fn a_service_manager_hears_of_start_life_and_end() {
    let s = Scenario::new(&FAMILY, "service").await;
    s.on_both("CREATE TABLE t (id int PRIMARY KEY)").await;
    s.publish_all().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let wait = Duration::from_secs(WAIT_SECONDS_MAX);
    socket.set_read_timeout(Some(wait)).unwrap();
    let environment = [
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "3000000"),
    ];
    let mut daemon = Daemon::start_with(&s.config(""), &environment);
    until(&socket, "READY=1");
    until(&socket, "STATUS=streaming");
    until(&socket, "WATCHDOG=1");
    until(&socket, "WATCHDOG=1");
    // Failed, it waits for an operator: a restart would not help, and its heart goes on.
    s.on_replica("ALTER TABLE t ADD CHECK (id < 10)").await;
    s.on_source("INSERT INTO t VALUES (10)").await;
    let heard = until(&socket, "STATUS=failed");
    assert!(!heard.contains("STOPPING"), "{heard}");
    until(&socket, "WATCHDOG=1");
    daemon.signal(Signal::TERM);
    until(&socket, "STOPPING=1");
    assert!(daemon.wait().success(), "{}", daemon.stderr());
}
