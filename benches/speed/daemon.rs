//! The daemon as a process of its own, as an operator runs it.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::contender::Contender;
use crate::ground::{DATABASE, Ground, PUBLICATION};

/// Dropped, it is killed.
pub struct Daemon {
    child: Child,
    config: tempfile::TempPath,
}

impl Daemon {
    /// `tables` are rules of its mapping, as the configuration has them.
    pub fn spawn(ground: &Ground, contender: Contender, tables: &str) -> Result<Self> {
        let listen = "[http]\nlisten = \"127.0.0.1:0\"\n";
        Self::spawn_with(ground, contender, tables, listen)
    }

    /// With this in the place of the endpoints' settings.
    pub fn spawn_with(
        ground: &Ground,
        contender: Contender,
        tables: &str,
        listen: &str,
    ) -> Result<Self> {
        let config = format!(
            "name = \"{}\"\n[source]\nurl = \"{}\"\npublication = \"{PUBLICATION}\"\nslot = \"{}\"\n\
             [replica]\nurl = \"{}\"\n{listen}[verify]\nevery = \"0s\"\ncounts_every = \"0s\"\n{tables}",
            contender.pipeline(),
            ground.source.url(DATABASE),
            contender.slot(),
            ground.replica.url(DATABASE),
        );
        let mut file = tempfile::NamedTempFile::new().context("the daemon's configuration")?;
        file.write_all(config.as_bytes())?;
        let config = file.into_temp_path();
        // A build for tests warns of itself at each start.
        let log = if cfg!(feature = "faults") {
            "error"
        } else {
            "warn"
        };
        let child = Command::new(env!("CARGO_BIN_EXE_pglockstep"))
            .arg("--config")
            .arg(&config)
            .arg("run")
            .env("PGLOCKSTEP_LOG", log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting the daemon")?;
        Ok(Self { child, config })
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends it in order; the slot stays.
    pub fn terminate(mut self) -> Result<()> {
        let id =
            Pid::from_raw(i32::try_from(self.child.id())?).context("a process has a number")?;
        kill_process(id, Signal::TERM).context("ending the daemon")?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
