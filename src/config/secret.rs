//! Where connection strings are. They may hold passwords: never shown, never logged.

use crate::conn::{ConnectionUrl, UrlError};
use secrecy::{ExposeSecret, SecretString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where a connection string is.
#[derive(Clone, Debug)]
pub enum UrlSource {
    /// In the configuration itself.
    Inline(SecretString),
    /// In a file, read whenever a connection is made, so that it may change meanwhile.
    File(PathBuf),
}

/// A connection string cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadUrlError {
    /// The file cannot be opened or read.
    #[error("cannot read {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Anybody on the machine can read the file.
    #[error("{path} is open to every user (mode {mode:03o}); do: chmod o-rwx {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// There is nothing in it.
    #[error("{path} is empty; it should hold one connection string")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// `enc:v1:…`
    #[error("encrypted connection strings (enc:v1:) are not supported yet by this version")]
    Encrypted,
    /// It is not a connection string.
    #[error(transparent)]
    Malformed(UrlError),
}

impl ReadUrlError {
    /// Whether this user may not read the file.
    pub(super) fn is_denied(&self) -> bool {
        let denied = std::io::ErrorKind::PermissionDenied;
        matches!(self, Self::Unreadable { source, .. } if source.kind() == denied)
    }
}

impl UrlSource {
    /// The connection string as it is now, taken apart.
    ///
    /// # Errors
    /// The file cannot be read, is open to everybody or is empty; or what is there is
    /// encrypted or no connection string.
    pub fn read(&self) -> Result<ConnectionUrl, ReadUrlError> {
        let text = match self {
            Self::Inline(text) => text.clone(),
            Self::File(path) => read_secret_file(path)?,
        };
        if text.expose_secret().starts_with("enc:v1:") {
            return Err(ReadUrlError::Encrypted);
        }
        ConnectionUrl::parse(&text).map_err(ReadUrlError::Malformed)
    }
}

fn read_secret_file(path: &Path) -> Result<SecretString, ReadUrlError> {
    let unreadable = |source| ReadUrlError::Unreadable {
        path: path.to_owned(),
        source,
    };
    // Permissions of the very file that is read: the name may be swapped in between.
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(ReadUrlError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let text = std::io::read_to_string(file).map_err(unreadable)?;
    let text = text.trim_end_matches(['\n', '\r']);
    if text.trim().is_empty() {
        return Err(ReadUrlError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(SecretString::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(folder: &tempfile::TempDir, mode: u32, text: &str) -> UrlSource {
        let path = folder.path().join("url");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        UrlSource::File(path)
    }

    #[test]
    fn a_file_is_read_at_each_use() {
        let folder = tempfile::tempdir().unwrap();
        let url = file(&folder, 0o640, "postgres://a:b@c/d\r\n");
        assert_eq!(url.read().unwrap().describe(), "c:5432/d");
        file(&folder, 0o640, "postgres://a@rotated/d");
        assert_eq!(url.read().unwrap().describe(), "rotated:5432/d");
    }

    #[test]
    fn a_file_that_cannot_be_trusted_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let exposed = file(&folder, 0o644, "postgres://a:hunter2@c/d")
            .read()
            .unwrap_err();
        assert!(exposed.to_string().contains("chmod o-rwx"), "{exposed}");
        assert!(!format!("{exposed:?}").contains("hunter2"));
        assert!(matches!(
            file(&folder, 0o600, "\n").read(),
            Err(ReadUrlError::Empty { .. })
        ));
        let missing = UrlSource::File(folder.path().join("none"));
        assert!(matches!(
            missing.read(),
            Err(ReadUrlError::Unreadable { .. })
        ));
        assert!(matches!(
            file(&folder, 0o600, "enc:v1:abc").read(),
            Err(ReadUrlError::Encrypted)
        ));
    }

    #[test]
    fn debug_shows_no_secret() {
        let url = UrlSource::Inline("postgres://a:hunter2@c/d".into());
        assert!(!format!("{url:?}").contains("hunter2"));
    }
}
