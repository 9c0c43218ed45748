//! Cleans up after us when we cannot: `kill -9` leaves no Drop.
//!
//! A small shell in a process group of its own waits for the other end of its
//! standard input to close, which the kernel does however our process ends. It then
//! stops the server whose folder this is and removes the folder.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::ClusterError;

/// Before it signals a process it makes sure that the number still names this
/// cluster's server, which has the data folder as its working directory.
const SCRIPT: &str = r#"
cat >/dev/null
is_server() { [ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$1/data" ]; }
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && is_server "$1"; then
    kill -QUIT "$pid"
    tries=0
    while is_server "$1" && [ "$tries" -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
    ! is_server "$1" || kill -KILL "$pid"
fi
rm -rf -- "$1"
"#;

/// The waiting shell.
#[derive(Debug)]
pub(super) struct Guard(Child);

impl Guard {
    pub(super) fn watch(folder: &Path) -> Result<Self, ClusterError> {
        Command::new("/bin/sh")
            .args(["-c", SCRIPT, "pglockstep-cluster-guard"])
            .arg(folder)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map(Self)
            .map_err(|source| ClusterError::Spawn {
                program: "/bin/sh".into(),
                source,
            })
    }

    /// Lets it do what is left to do and waits for its end.
    pub(super) fn dismiss(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            tracing::debug!(%error, "a cluster's guard cannot be waited for");
        }
    }
}
