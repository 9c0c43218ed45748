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

/// Sections of its configuration, beside the connections.
pub struct Sections<'a> {
    pub http: &'a str,
    pub verify: &'a str,
    /// Rules of its mapping.
    pub tables: &'a str,
}

impl Default for Sections<'_> {
    /// It compares nothing by itself.
    fn default() -> Self {
        Self {
            http: "listen = \"127.0.0.1:0\"",
            verify: "every = \"0s\"\ncounts_every = \"0s\"",
            tables: "",
        }
    }
}

impl Daemon {
    pub fn spawn(ground: &Ground, contender: Contender, sections: &Sections<'_>) -> Result<Self> {
        let Sections {
            http,
            verify,
            tables,
        } = sections;
        let config = format!(
            "name = \"{}\"\n[source]\nurl = \"{}\"\npublication = \"{PUBLICATION}\"\nslot = \"{}\"\n\
             [replica]\nurl = \"{}\"\n[http]\n{http}\n[verify]\n{verify}\n{tables}",
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
