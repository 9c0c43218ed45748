//! A data folder put back as it was: only what has changed since is copied, and with `is_synced` it
//! is on disk when this returns, so that none of it is written while a clock runs.
//!
//! A file is taken for unchanged where size and time of the last write are the same: the server
//! was down when the folder was put aside, and every write since moves the time on.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirEntry, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Makes `to` the same as `from`.
pub fn put_back(from: &Path, to: &Path, is_synced: bool) -> Result<()> {
    let wanted = fs::metadata(from).with_context(|| from.display().to_string())?;
    if !to.exists() {
        fs::create_dir(to).with_context(|| format!("making {}", to.display()))?;
        fs::set_permissions(to, wanted.permissions())?;
        own(to, &wanted)?;
    }
    let mut names = BTreeSet::new();
    for entry in entries(from)? {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let wanted = entry.metadata()?;
        ensure!(
            wanted.is_dir() || wanted.is_file(),
            "{} is neither file nor folder",
            from.display()
        );
        if wanted.is_dir() {
            put_back(&from, &to, is_synced)?;
        } else if !is_same(&wanted, &to) {
            copy(&from, &to, &wanted, is_synced)
                .with_context(|| format!("copying {}", from.display()))?;
        }
        names.insert(entry.file_name());
    }
    remove_others(to, &names)
}

fn copy(from: &Path, to: &Path, wanted: &Metadata, is_synced: bool) -> io::Result<()> {
    fs::copy(from, to)?;
    own(to, wanted)?;
    let file = File::options().write(true).open(to)?;
    file.set_modified(wanted.modified()?)?;
    if is_synced {
        file.sync_all()?;
    }
    Ok(())
}

fn is_same(wanted: &Metadata, path: &Path) -> bool {
    let same = |there: Metadata| {
        there.is_file()
            && there.len() == wanted.len()
            && (there.mtime(), there.mtime_nsec()) == (wanted.mtime(), wanted.mtime_nsec())
    };
    fs::symlink_metadata(path).is_ok_and(same)
}

/// What has come since.
fn remove_others(folder: &Path, names: &BTreeSet<OsString>) -> Result<()> {
    for entry in entries(folder)? {
        if names.contains(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        let removed = if entry.file_type()?.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<DirEntry>> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect);
    entries.with_context(|| format!("reading {}", folder.display()))
}

/// The server may run as another user than we do.
fn own(path: &Path, wanted: &Metadata) -> io::Result<()> {
    let now = fs::metadata(path)?;
    if (now.uid(), now.gid()) == (wanted.uid(), wanted.gid()) {
        return Ok(());
    }
    chown(path, Some(wanted.uid()), Some(wanted.gid()))
}
