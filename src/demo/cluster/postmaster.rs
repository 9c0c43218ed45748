//! The server process itself: start, signals, end.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::ClusterError;
use super::install::{Installation, ServerUser};

/// A fast shutdown writes a checkpoint and waits for walsenders.
const STOP_SECONDS_MAX: u64 = 60;
/// An immediate one writes nothing.
const STOP_NOW_SECONDS_MAX: u64 = 5;

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are ended, a checkpoint is written.
    Fast,
    /// As after a crash: the next start recovers.
    Immediate,
}

/// A port that was free a moment ago.
pub(super) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A running postmaster.
#[derive(Debug)]
pub(super) struct Postmaster(Child);

impl Postmaster {
    pub(super) fn spawn(
        installation: &Installation,
        user: &ServerUser,
        folder: &Path,
        port: u16,
    ) -> Result<Self, ClusterError> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join("log"))
            .map_err(ClusterError::Folder)?;
        let program = installation.program("postgres");
        let mut command = Command::new(&program);
        user.run_as(&mut command);
        command
            .arg("-D")
            .arg(folder.join("data"))
            .arg("-k")
            .arg(folder)
            .args(["-p", &port.to_string()])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(ClusterError::Folder)?)
            .stderr(log);
        command
            .spawn()
            .map(Self)
            .map_err(|source| ClusterError::Spawn { program, source })
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    pub(super) async fn stop(&mut self, mode: StopMode) -> Result<(), ClusterError> {
        self.signal(match mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        });
        let deadline = Instant::now() + Duration::from_secs(STOP_SECONDS_MAX);
        while !self.has_ended() {
            if Instant::now() > deadline {
                self.kill_all();
                return Err(ClusterError::NotStopped {
                    seconds: STOP_SECONDS_MAX,
                });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Stops it without a runtime: from Drop.
    pub(super) fn stop_now(&mut self) {
        self.signal(Signal::QUIT);
        let deadline = Instant::now() + Duration::from_secs(STOP_NOW_SECONDS_MAX);
        while !self.has_ended() {
            if Instant::now() > deadline {
                return self.kill_all();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it and its children at once.
    pub(super) fn kill_all(&mut self) {
        if self.has_ended() {
            return;
        }
        // Stopped, it cannot fork while its children are counted.
        self.signal(Signal::STOP);
        let id = self.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            send(child.parse().ok(), Signal::KILL);
        }
        self.signal(Signal::KILL);
        if let Err(error) = self.0.wait() {
            tracing::debug!(%error, "a killed server cannot be waited for");
        }
    }

    /// Only while `has_ended` is false is the number still ours to signal: an ended
    /// child keeps it until it is waited for.
    fn signal(&mut self, signal: Signal) {
        if !self.has_ended() {
            send(i32::try_from(self.id()).ok(), signal);
        }
    }
}

fn send(id: Option<i32>, signal: Signal) {
    let Some(pid) = id.and_then(Pid::from_raw) else {
        return;
    };
    if let Err(error) = kill_process(pid, signal) {
        tracing::debug!(%error, ?signal, "a server process cannot be signalled");
    }
}
