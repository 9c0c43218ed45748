//! From parameters as written to a [`ConnectionUrl`]: meaning, defaults, contradictions.

use super::hosts::hosts;
use super::url::{
    ChannelBinding, ConnectionUrl, RootCertificates, SslMode, SslNegotiation, TargetSessionAttrs,
    TcpSettings, TlsSettings, UrlError,
};
use secrecy::SecretString;
use std::path::PathBuf;
use std::time::Duration;

const SSL_MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];
const NEGOTIATIONS: [(&str, SslNegotiation); 2] = [
    ("postgres", SslNegotiation::Postgres),
    ("direct", SslNegotiation::Direct),
];
const BINDINGS: [(&str, ChannelBinding); 3] = [
    ("disable", ChannelBinding::Disable),
    ("prefer", ChannelBinding::Prefer),
    ("require", ChannelBinding::Require),
];
pub(super) const ATTRS: [(&str, TargetSessionAttrs); 6] = [
    ("any", TargetSessionAttrs::Any),
    ("read-write", TargetSessionAttrs::ReadWrite),
    ("read-only", TargetSessionAttrs::ReadOnly),
    ("primary", TargetSessionAttrs::Primary),
    ("standby", TargetSessionAttrs::Standby),
    ("prefer-standby", TargetSessionAttrs::PreferStandby),
];
const SWITCH: [(&str, bool); 2] = [("0", false), ("1", true)];

/// Parameters as written, each with its own type.
#[derive(Default)]
pub(super) struct Raw {
    host: Option<String>,
    hostaddr: Option<String>,
    port: Option<String>,
    user: Option<String>,
    database: Option<String>,
    password: Option<SecretString>,
    passfile: Option<PathBuf>,
    options: Option<String>,
    application_name: Option<String>,
    connect_timeout: Option<u32>,
    keepalives: Option<bool>,
    keepalives_idle: Option<u32>,
    keepalives_interval: Option<u32>,
    keepalives_count: Option<u32>,
    tcp_user_timeout_ms: Option<u32>,
    mode: Option<SslMode>,
    negotiation: Option<SslNegotiation>,
    root_cert: Option<String>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    sni: Option<bool>,
    channel_binding: Option<ChannelBinding>,
    attrs: Option<TargetSessionAttrs>,
}

impl Raw {
    pub(super) fn set(&mut self, name: &str, value: String) -> Result<(), UrlError> {
        // libpq reads an empty value as one not given; an empty password is no password.
        if value.is_empty() && KNOWN.contains(&name) {
            return Ok(());
        }
        match name {
            "host" => self.host = Some(value),
            "hostaddr" => self.hostaddr = Some(value),
            "port" => self.port = Some(value),
            "user" => self.user = Some(value),
            "dbname" => self.database = Some(value),
            "password" => self.password = Some(value.into()),
            "passfile" => self.passfile = Some(value.into()),
            "options" => self.options = Some(value),
            "application_name" => self.application_name = Some(value),
            "connect_timeout" => self.connect_timeout = Some(number("connect_timeout", &value)?),
            "keepalives" => self.keepalives = Some(choice("keepalives", &value, &SWITCH)?),
            "keepalives_idle" => self.keepalives_idle = Some(number("keepalives_idle", &value)?),
            "keepalives_interval" => {
                self.keepalives_interval = Some(number("keepalives_interval", &value)?);
            }
            "keepalives_count" => self.keepalives_count = Some(number("keepalives_count", &value)?),
            "tcp_user_timeout" => {
                self.tcp_user_timeout_ms = Some(number("tcp_user_timeout", &value)?)
            }
            "sslmode" => self.mode = Some(choice("sslmode", &value, &SSL_MODES)?),
            "sslnegotiation" => {
                self.negotiation = Some(choice("sslnegotiation", &value, &NEGOTIATIONS)?);
            }
            "sslrootcert" => self.root_cert = Some(value),
            "sslcert" => self.cert = Some(value.into()),
            "sslkey" => self.key = Some(value.into()),
            "sslsni" => self.sni = Some(choice("sslsni", &value, &SWITCH)?),
            "channel_binding" => {
                self.channel_binding = Some(choice("channel_binding", &value, &BINDINGS)?);
            }
            "target_session_attrs" => {
                self.attrs = Some(choice("target_session_attrs", &value, &ATTRS)?);
            }
            other => return refuse_or_ignore(other, &value),
        }
        Ok(())
    }

    pub(super) fn check(self) -> Result<ConnectionUrl, UrlError> {
        let hosts = hosts(
            self.host.as_deref(),
            self.hostaddr.as_deref(),
            self.port.as_deref(),
        )?;
        let user = self.user.ok_or(UrlError::Impossible(
            "the connection string names no role: add user=ROLE, or ROLE@ before the host",
        ))?;
        let seconds = |value: Option<u32>, default: u64| match value {
            Some(0) | None => Duration::from_secs(default),
            Some(seconds) => Duration::from_secs(seconds.into()),
        };
        let tcp = TcpSettings {
            keepalives: self.keepalives.unwrap_or(true),
            idle: seconds(self.keepalives_idle, 30),
            interval: seconds(self.keepalives_interval, 10),
            count: self
                .keepalives_count
                .filter(|count| *count > 0)
                .unwrap_or(3),
            user_timeout: match self.tcp_user_timeout_ms {
                Some(0) | None => Duration::from_secs(60),
                Some(ms) => Duration::from_millis(ms.into()),
            },
        };
        let channel_binding = self.channel_binding.unwrap_or(ChannelBinding::Prefer);
        let tls = tls_settings(
            self.mode,
            self.negotiation.unwrap_or(SslNegotiation::Postgres),
            self.root_cert,
            (self.cert, self.key),
            self.sni.unwrap_or(true),
        )?;
        if channel_binding == ChannelBinding::Require && tls.mode == SslMode::Disable {
            return Err(UrlError::Impossible(
                "channel_binding=require needs TLS, and sslmode=disable forbids it",
            ));
        }
        Ok(ConnectionUrl {
            database: self.database.unwrap_or_else(|| user.clone()),
            hosts,
            user,
            password: self.password,
            passfile: self.passfile,
            options: self.options,
            application_name: self.application_name,
            connect_timeout: seconds(self.connect_timeout, 10),
            tcp,
            tls,
            channel_binding,
            target_session_attrs: self.attrs.unwrap_or(TargetSessionAttrs::Any),
        })
    }
}

fn tls_settings(
    mode: Option<SslMode>,
    negotiation: SslNegotiation,
    root_cert: Option<String>,
    identity: (Option<PathBuf>, Option<PathBuf>),
    send_server_name: bool,
) -> Result<TlsSettings, UrlError> {
    let roots = root_cert.map(|value| match value.as_str() {
        "system" => RootCertificates::System,
        path => RootCertificates::File(path.into()),
    });
    let system = roots == Some(RootCertificates::System);
    let default = if system {
        SslMode::VerifyFull
    } else {
        SslMode::Prefer
    };
    let mode = mode.unwrap_or(default);
    if system && mode != SslMode::VerifyFull {
        return Err(UrlError::Impossible(
            "sslrootcert=system trusts every public authority and so needs sslmode=verify-full",
        ));
    }
    if negotiation == SslNegotiation::Direct && mode < SslMode::Require {
        return Err(UrlError::Impossible(
            "sslnegotiation=direct needs sslmode=require, verify-ca or verify-full",
        ));
    }
    let roots = match roots {
        None if mode >= SslMode::VerifyCa => Some(RootCertificates::System),
        roots => roots,
    };
    let client_identity = match identity {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => {
            return Err(UrlError::Impossible(
                "sslcert and sslkey are needed together",
            ));
        }
    };
    Ok(TlsSettings {
        mode,
        negotiation,
        roots,
        client_identity,
        send_server_name,
    })
}

const KNOWN: [&str; 23] = [
    "host",
    "hostaddr",
    "port",
    "user",
    "dbname",
    "password",
    "passfile",
    "options",
    "application_name",
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslsni",
    "channel_binding",
    "target_session_attrs",
];

/// Parameters of libpq's without a field of ours: harmless ones pass, the others are named.
fn refuse_or_ignore(name: &str, value: &str) -> Result<(), UrlError> {
    let unsupported = |name, remedy| Err(UrlError::Unsupported { name, remedy });
    match (name, value) {
        (_, "") if matches!(name, "service" | "sslcrl" | "sslcrldir" | "sslpassword") => Ok(()),
        ("gssencmode", "disable" | "prefer" | "")
        | ("load_balance_hosts", "disable" | "")
        | ("sslcompression", "0" | "")
        | ("client_encoding", "auto" | "UTF8" | "utf8" | "")
        | ("fallback_application_name", _) => Ok(()),
        ("gssencmode", _) => unsupported("gssencmode", "remove it; GSSAPI is not available"),
        ("load_balance_hosts", _) => unsupported("load_balance_hosts", "list the hosts in order"),
        ("sslcompression", _) => unsupported("sslcompression", "remove it"),
        ("client_encoding", _) => unsupported("client_encoding", "remove it; sessions speak UTF8"),
        ("service", _) => unsupported("service", "write its parameters out"),
        ("sslcrl", _) => unsupported("sslcrl", "remove it and let certificates expire early"),
        ("sslcrldir", _) => unsupported("sslcrldir", "remove it and let certificates expire early"),
        ("sslpassword", _) => unsupported(
            "sslpassword",
            "store the key decrypted, readable by the daemon only",
        ),
        ("replication", _) => unsupported("replication", "remove it; it is set where it is needed"),
        ("require_auth", _) => unsupported("require_auth", "use channel_binding=require"),
        ("ssl_min_protocol_version", _) => unsupported(
            "ssl_min_protocol_version",
            "remove it; TLS 1.2 is the least that is spoken",
        ),
        // Only what looks like a name: in a mangled string this could be half a password.
        (name, _)
            if name.len() <= 40 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') =>
        {
            Err(UrlError::UnknownParameter(name.to_owned()))
        }
        _ => Err(UrlError::Syntax(
            "a parameter's name has characters that no parameter's name has",
        )),
    }
}

pub(super) fn invalid(name: &'static str, expected: &str) -> UrlError {
    UrlError::InvalidValue {
        name,
        expected: expected.to_owned(),
    }
}

fn number(name: &'static str, value: &str) -> Result<u32, UrlError> {
    value
        .trim()
        .parse()
        .map_err(|_| invalid(name, "a whole number, 0 for the default"))
}

fn choice<T: Copy>(name: &'static str, value: &str, all: &[(&str, T)]) -> Result<T, UrlError> {
    all.iter()
        .find(|(text, _)| *text == value)
        .map(|(_, meaning)| *meaning)
        .ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|(text, _)| *text).collect();
            invalid(name, &format!("one of {}", names.join(", ")))
        })
}
