//! `passfile`: libpq's password file, `host:port:database:user:password` on each line.
//!
//! A `*` matches anything, a backslash takes the next character as it is, the first
//! line that fits wins, and a file which others may read is refused (manual, "The Password File").

use super::ConnFailure;
use super::hosts::{Host, HostAddress};
use super::url::ConnectionUrl;
use secrecy::SecretString;
use std::os::unix::fs::PermissionsExt;

/// The URL's password, or the one its passfile has for this host. Read at every connect.
pub(super) async fn password_for(
    url: &ConnectionUrl,
    host: &Host,
) -> Result<Option<SecretString>, ConnFailure> {
    let (None, Some(path)) = (&url.password, &url.passfile) else {
        return Ok(url.password.clone());
    };
    let wrong = |why: String| ConnFailure::Passfile {
        path: path.clone(),
        why,
    };
    let unreadable = |error| wrong(format!("cannot be read: {error}"));
    let metadata = tokio::fs::metadata(path).await.map_err(unreadable)?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(wrong("can be read by others".to_owned()));
    }
    let text = tokio::fs::read_to_string(path).await.map_err(unreadable)?;
    let name = match &host.address {
        HostAddress::Tcp { name, .. } => name.clone(),
        // libpq looks up its default socket directory under this name.
        HostAddress::Unix(path) if path.ends_with("run/postgresql") => "localhost".to_owned(),
        HostAddress::Unix(path) => path.display().to_string(),
    };
    let key = [
        name.as_str(),
        &host.port.to_string(),
        &url.database,
        &url.user,
    ];
    Ok(text
        .lines()
        .find_map(|line| password_in(line, key))
        .map(SecretString::from))
}

fn password_in(line: &str, key: [&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let fields = split_fields(line);
    let (pattern, password) = (fields.get(..4)?, fields.get(4)?);
    let fits = pattern
        .iter()
        .zip(key)
        .all(|(field, value)| field == "*" || field == value);
    fits.then(|| password.clone())
}

fn split_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        let character = match character {
            ':' => {
                fields.push(String::new());
                continue;
            }
            '\\' => characters.next(),
            other => Some(other),
        };
        if let Some(field) = fields.last_mut() {
            field.extend(character);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_fit() {
        let key = ["db", "5432", "app", "u:1"];
        for (line, expected) in [
            (r"db:5432:app:u\:1:pa\:ss\\", Some(r"pa:ss\")),
            ("*:*:*:*:x", Some("x")),
            ("other:*:*:*:x", None),
            ("#*:*:*:*:x", None),
            ("db:5432:app", None),
            ("", None),
        ] {
            assert_eq!(password_in(line, key).as_deref(), expected, "{line}");
        }
    }
}
