//! The two spellings of a libpq connection string, taken apart into parameters.
//!
//! ```text
//!  postgresql://user:password@host:port,host:port/dbname?name=value&name=value
//!  host=a,b port=5432 user=u password='it''s \'quoted\'' dbname=d
//! ```
//!
//! Source: the manual, "Connection Strings". Nothing here is ever quoted in an
//! error: a misspelt string may hold a piece of the password anywhere.

use super::url::UrlError;

/// Parameter names and values in the order in which they were written.
pub(super) type Parameters = Vec<(String, String)>;

/// Takes a connection string apart, whichever spelling it has.
pub(super) fn parse_parameters(text: &str) -> Result<Parameters, UrlError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(UrlError::Syntax("it is empty"));
    }
    match text
        .strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"))
    {
        Some(rest) => parse_uri(rest),
        None if text.contains("://") => Err(UrlError::Syntax(
            "it begins with neither postgres:// nor postgresql://",
        )),
        None => parse_key_values(text),
    }
}

/// What follows `postgresql://`.
fn parse_uri(text: &str) -> Result<Parameters, UrlError> {
    let (rest, query) = text.split_once('?').unwrap_or((text, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    // The last '@': a password with a bare '@' in it still reads as meant.
    let (user_info, hosts) = match authority.rsplit_once('@') {
        Some((user_info, hosts)) => (Some(user_info), hosts),
        None => (None, authority),
    };
    let mut parameters = Parameters::new();
    let mut push = |name: &str, value: String| parameters.push((name.to_owned(), value));
    if let Some(user_info) = user_info {
        let (user, password) = match user_info.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (user_info, None),
        };
        if !user.is_empty() {
            push("user", percent_decode(user)?);
        }
        if let Some(password) = password {
            push("password", percent_decode(password)?);
        }
    }
    if !hosts.is_empty() {
        let (names, ports) = split_hosts(hosts)?;
        push("host", names);
        if !ports.bytes().all(|byte| byte == b',') {
            push("port", ports);
        }
    }
    if !database.is_empty() {
        push("dbname", percent_decode(database)?);
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair
            .split_once('=')
            .ok_or(UrlError::Syntax("a parameter after ? has no ="))?;
        let (name, value) = (percent_decode(name)?, percent_decode(value)?);
        if name == "ssl" && value == "true" {
            push("sslmode", "require".to_owned()); // as libpq reads JDBC's spelling
        } else {
            push(&name, value);
        }
    }
    Ok(parameters)
}

/// `a:1,[::1]:2` as two lists of equal length, `a,::1` and `1,2`.
fn split_hosts(hosts: &str) -> Result<(String, String), UrlError> {
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (name, rest) = rest
                    .split_once(']')
                    .ok_or(UrlError::Syntax("an IPv6 address lacks its closing ]"))?;
                (name, rest.strip_prefix(':').unwrap_or(rest))
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        names.push(percent_decode(name)?);
        ports.push(port);
    }
    Ok((names.join(","), ports.join(",")))
}

fn percent_decode(text: &str) -> Result<String, UrlError> {
    const WRONG: UrlError = UrlError::Syntax("a % is not followed by two hexadecimal digits");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            rest.next()
                .and_then(|b| char::from(b).to_digit(16))
                .ok_or(WRONG)
        };
        let value = digit()? * 16 + digit()?;
        match u8::try_from(value) {
            Ok(0) | Err(_) => return Err(UrlError::Syntax("it holds a zero byte (%00)")),
            Ok(byte) => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Syntax("it is not UTF-8 once decoded"))
}

/// `name = value` pairs; a value may be in single quotes, a backslash takes the next character as it is.
fn parse_key_values(text: &str) -> Result<Parameters, UrlError> {
    let mut parameters = Parameters::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest
            .split_once('=')
            .ok_or(UrlError::Syntax("a parameter has no = and no value"))?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(UrlError::Syntax(
                "a value with a space in it needs single quotes, or a parameter has no =",
            ));
        }
        let (value, after) = take_value(after.trim_start())?;
        parameters.push((name.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(parameters)
}

/// One value off the front, and what follows it.
fn take_value(text: &str) -> Result<(String, &str), UrlError> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some((_, escaped)) => value.push(escaped),
                None => return Err(UrlError::Syntax("it ends in a backslash")),
            },
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            space if !quoted && space.is_whitespace() => return Ok((value, &text[at..])),
            other => value.push(other),
        }
    }
    if quoted {
        Err(UrlError::Syntax("a single quote is not closed"))
    } else {
        Ok((value, ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<String> {
        let parameters = parse_parameters(text).ok()?;
        Some(
            parameters
                .iter()
                .map(|(n, v)| format!("{n}={v}"))
                .collect::<Vec<_>>()
                .join("|"),
        )
    }

    #[test]
    fn uris() {
        for (text, expected) in [
            ("postgres://h", "host=h"),
            (
                "postgresql://u:p%40s@h:1/d",
                "user=u|password=p@s|host=h|port=1|dbname=d",
            ),
            (
                "postgres://u:p@s@h/d",
                "user=u|password=p@s|host=h|dbname=d",
            ),
            ("postgres://a:1,b:2/d", "host=a,b|port=1,2|dbname=d"),
            ("postgres://a,b:2/d", "host=a,b|port=,2|dbname=d"),
            ("postgres://[::1]:5/d", "host=::1|port=5|dbname=d"),
            (
                "postgres://%2Ftmp%2Fs:5433/d",
                "host=/tmp/s|port=5433|dbname=d",
            ),
            (
                "postgres:///d?host=/tmp&user=u",
                "dbname=d|host=/tmp|user=u",
            ),
            (
                "postgres://u@h?ssl=true&options=-c%20a%3Db",
                "user=u|host=h|sslmode=require|options=-c a=b",
            ),
            ("postgres://?sslmode=disable", "sslmode=disable"),
        ] {
            assert_eq!(parse(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn key_values() {
        for (text, expected) in [
            ("host=a user = u", "host=a|user=u"),
            (
                r"password='it\'s a \\' dbname=''",
                r"password=it's a \|dbname=",
            ),
            (r"password=a\ b\\ x=1", r"password=a b\|x=1"),
            ("  host=ä\n\tport=1 ", "host=ä|port=1"),
        ] {
            assert_eq!(parse(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn wrong_strings_are_refused_without_quoting_them() {
        for text in [
            "",
            "   ",
            "secret",
            "mysql://secret@h/d",
            "host=a secret",
            "password=my secret x=1",
            "password='secret",
            "password=secret\\",
            "postgres://u:secret%0@h",
            "postgres://u:secret%zz@h",
            "postgres://u:secret%00@h",
            "postgres://u:secret%ff@h",
            "postgres://[::1/secret",
            "postgres://h?secret",
        ] {
            let message = parse_parameters(text).unwrap_err().to_string();
            assert!(!message.contains("secret"), "{text}: {message}");
        }
    }
}
