//! Finds server programs on this machine, and the user they may run as.
//!
//! In this order: the folders in `PGLOCKSTEP_PG_BIN` (separated by colons), Debian's
//! `/usr/lib/postgresql/N/bin`, and the npm packages that `tests/install-postgres.sh`
//! puts into `.pg/` of the checkout: the current directory or one above it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ClusterError;

/// The server programs of one major version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The major version.
    pub major: u32,
    /// The folder that holds `postgres` and `initdb`.
    pub bin: PathBuf,
}

impl Installation {
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// The major versions that can be started here, in ascending order.
#[must_use]
pub fn installed_majors() -> Vec<u32> {
    let mut majors: Vec<_> = installations().map(|found| found.major).collect();
    majors.sort_unstable();
    majors.dedup();
    majors
}

pub(super) fn find(wanted: Option<u32>) -> Result<Installation, ClusterError> {
    installations()
        .find(|found| wanted.is_none_or(|major| major == found.major))
        .ok_or_else(|| {
            let looked = "PGLOCKSTEP_PG_BIN, /usr/lib/postgresql, .pg/node_modules".to_owned();
            ClusterError::NotInstalled { wanted, looked }
        })
}

fn installations() -> impl Iterator<Item = Installation> {
    let named = std::env::var_os("PGLOCKSTEP_PG_BIN").unwrap_or_default();
    let named: Vec<_> = std::env::split_paths(&named)
        .filter_map(ask_for_major)
        .collect();
    let npm = std::env::current_dir().ok().and_then(|here| {
        here.ancestors()
            .map(|up| up.join(".pg/node_modules"))
            .find(|p| p.is_dir())
    });
    let mut others = numbered(Path::new("/usr/lib/postgresql"), "", "bin");
    others.extend(
        npm.iter()
            .flat_map(|folder| numbered(folder, "pg", "native/bin")),
    );
    named.into_iter().chain(others)
}

/// Installations in `parent/{prefix}N/{bin}`, the newest first.
fn numbered(parent: &Path, prefix: &str, bin: &str) -> Vec<Installation> {
    let mut found: Vec<_> = std::fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let major = entry
                .file_name()
                .to_str()?
                .strip_prefix(prefix)?
                .parse()
                .ok()?;
            // Links resolved: the user that runs the server may not be able to follow them.
            let bin = entry.path().join(bin).canonicalize().ok()?;
            bin.join("initdb")
                .is_file()
                .then_some(Installation { major, bin })
        })
        .collect();
    found.sort_unstable_by_key(|found| std::cmp::Reverse(found.major));
    found
}

/// Asks the programs in a folder with any name: `postgres (PostgreSQL) 16.14`.
fn ask_for_major(bin: PathBuf) -> Option<Installation> {
    let output = Command::new(bin.join("postgres"))
        .arg("--version")
        .output()
        .ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    let version = said.split_once("(PostgreSQL) ")?.1;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    Some(Installation {
        major: digits.parse().ok()?,
        bin,
    })
}

/// Who runs the server: we ourselves, or `postgres` when we are root.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerUser {
    /// User and group id, when it is not us.
    other: Option<(u32, u32)>,
}

impl ServerUser {
    pub(super) fn find() -> Result<Self, ClusterError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { other: None });
        }
        let id = |option| -> Option<u32> {
            let output = Command::new("id")
                .args([option, "postgres"])
                .output()
                .ok()?;
            String::from_utf8(output.stdout).ok()?.trim().parse().ok()
        };
        let other = id("-u").zip(id("-g")).ok_or(ClusterError::NoServerUser)?;
        Ok(Self { other: Some(other) })
    }

    /// Gives it a file or folder of ours.
    pub(super) fn own(&self, path: &Path) -> std::io::Result<()> {
        match self.other {
            Some((uid, gid)) => std::os::unix::fs::chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    /// Makes a command its own, away from our terminal's signals and our settings.
    pub(super) fn run_as(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.other {
            command.uid(uid).gid(gid);
        }
        for name in [
            "PGDATA",
            "PGPORT",
            "PGHOST",
            "PGUSER",
            "PGDATABASE",
            "PGOPTIONS",
            "TZ",
        ] {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").process_group(0);
    }
}
