//! Start-up and authentication of the sessions that we speak the protocol on ourselves: those for
//! replication, and raw ones.
//!
//! ```text
//!  StartupMessage ─▶ R: ok | cleartext | md5 | SASL ─▶ … ─▶ R ok ─▶ S parameters, K key ─▶ Z ready
//! ```
//!
//! Channel binding as libpq decides it (`fe-auth.c`):
//!
//! ```text
//!  server offers PLUS, certificate has a hash    p=tls-server-end-point
//!  TLS with a hash, server does not offer PLUS   y,,   the server notices if somebody took PLUS away
//!  anything else                                 n,,
//!  channel_binding=require                       p= or no login, whatever the method
//! ```

use super::url::ChannelBinding;
use super::wire::{Incoming, Wire};
use super::{AuthError, ConnFailure, ConnectionUrl, ErrorResponse};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use secrecy::{ExposeSecret, SecretString};
use std::collections::HashMap;
use tokio_postgres::fallible_iterator::FallibleIterator;

/// What the server reported of itself: `server_version`, `TimeZone`, …
pub(crate) type ServerParameters = HashMap<String, String>;

/// Parameters are a dozen; a server that sends these many is not one.
const PARAMETERS_MAX: usize = 1000;

/// What answers at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// A walsender for logical replication, which also answers SQL.
    Walsender,
    /// An ordinary one.
    Ordinary,
}

/// Logs in and waits until the server is ready.
pub(crate) async fn log_in(
    wire: &mut Wire,
    url: &ConnectionUrl,
    password: Option<&SecretString>,
    application_name: &str,
    backend: Backend,
) -> Result<ServerParameters, ConnFailure> {
    let mut parameters = vec![
        ("user", url.user.as_str()),
        ("database", url.database.as_str()),
        ("client_encoding", "UTF8"),
        ("application_name", application_name),
    ];
    if backend == Backend::Walsender {
        parameters.push(("replication", "database"));
    }
    if let Some(options) = &url.options {
        parameters.push(("options", options));
    }
    frontend::startup_message(parameters, &mut wire.write).map_err(unsendable)?;
    wire.send().await?;
    authenticate(wire, url, password).await?;
    wait_until_ready(wire).await
}

async fn authenticate(
    wire: &mut Wire,
    url: &ConnectionUrl,
    password: Option<&SecretString>,
) -> Result<(), ConnFailure> {
    let password = || {
        let given = password.map(|password| password.expose_secret().as_bytes());
        given.ok_or(ConnFailure::Authentication(AuthError::PasswordMissing))
    };
    let request = next(wire).await?;
    let binds = matches!(request, Message::AuthenticationSasl(_));
    let refuses = matches!(request, Message::ErrorResponse(_));
    if url.channel_binding == ChannelBinding::Require && !binds && !refuses {
        return Err(ConnFailure::Authentication(
            AuthError::ChannelBindingMissing,
        ));
    }
    match request {
        Message::AuthenticationOk => return Ok(()),
        // Over an open network the stream itself refuses this one.
        Message::AuthenticationCleartextPassword => {
            frontend::password_message(password()?, &mut wire.write).map_err(unsendable)?;
        }
        Message::AuthenticationMd5Password(body) => {
            let hash = md5_hash(url.user.as_bytes(), password()?, body.salt());
            frontend::password_message(hash.as_bytes(), &mut wire.write).map_err(unsendable)?;
        }
        Message::AuthenticationSasl(body) => {
            scram(wire, url.channel_binding, password()?, &body).await?;
        }
        Message::AuthenticationGss | Message::AuthenticationSspi => {
            return Err(unsupported("GSSAPI or SSPI"));
        }
        Message::AuthenticationKerberosV5 | Message::AuthenticationScmCredential => {
            return Err(unsupported("an authentication method of the past"));
        }
        other => return Err(unexpected(&other, "a request to authenticate")),
    }
    wire.send().await?;
    match next(wire).await? {
        Message::AuthenticationOk => Ok(()),
        other => Err(unexpected(&other, "the outcome of authentication")),
    }
}

/// The SCRAM exchange up to the server's proof that it knows the password too.
async fn scram(
    wire: &mut Wire,
    wanted: ChannelBinding,
    password: &[u8],
    body: &AuthenticationSaslBody,
) -> Result<(), ConnFailure> {
    let failed =
        |error: std::io::Error| ConnFailure::Authentication(AuthError::Scram(error.to_string()));
    let (mut offers_plain, mut offers_plus) = (false, false);
    let mut mechanisms = body.mechanisms();
    while let Some(mechanism) = mechanisms.next().map_err(failed)? {
        offers_plain |= mechanism == SCRAM_SHA_256;
        offers_plus |= mechanism == SCRAM_SHA_256_PLUS;
    }
    let hash = wire
        .stream()
        .end_point_hash()
        .filter(|_| wanted != ChannelBinding::Disable);
    let (mechanism, binding) = match hash {
        Some(hash) if offers_plus => (
            SCRAM_SHA_256_PLUS,
            sasl::ChannelBinding::tls_server_end_point(hash.to_vec()),
        ),
        _ if wanted == ChannelBinding::Require => {
            return Err(ConnFailure::Authentication(
                AuthError::ChannelBindingMissing,
            ));
        }
        _ if !offers_plain => return Err(unsupported("an unknown SASL mechanism")),
        Some(_) => (SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
    };
    let mut scram = ScramSha256::new(password, binding);
    frontend::sasl_initial_response(mechanism, scram.message(), &mut wire.write)
        .map_err(unsendable)?;
    wire.send().await?;
    match next(wire).await? {
        Message::AuthenticationSaslContinue(body) => scram.update(body.data()).map_err(failed)?,
        other => return Err(unexpected(&other, "SCRAM's first answer")),
    }
    frontend::sasl_response(scram.message(), &mut wire.write).map_err(unsendable)?;
    wire.send().await?;
    match next(wire).await? {
        Message::AuthenticationSaslFinal(body) => scram.finish(body.data()).map_err(failed),
        other => Err(unexpected(&other, "SCRAM's last answer")),
    }
}

async fn wait_until_ready(wire: &mut Wire) -> Result<ServerParameters, ConnFailure> {
    let mut parameters = ServerParameters::new();
    loop {
        match next(wire).await? {
            Message::ReadyForQuery(_) => return Ok(parameters),
            Message::BackendKeyData(_) => {}
            Message::ParameterStatus(body) if parameters.len() < PARAMETERS_MAX => {
                let (Ok(name), Ok(value)) = (body.name(), body.value()) else {
                    continue;
                };
                parameters.insert(name.to_owned(), value.to_owned());
            }
            other => return Err(unexpected(&other, "the end of start-up")),
        }
    }
}

/// The next message; errors of the server are errors, notices are passed over.
async fn next(wire: &mut Wire) -> Result<Message, ConnFailure> {
    loop {
        match wire.next().await? {
            Incoming::Message(Message::ErrorResponse(body)) => {
                return Err(ConnFailure::Server(ErrorResponse::from_wire(body.fields())));
            }
            Incoming::Message(Message::NoticeResponse(_)) => {}
            Incoming::Message(message) => return Ok(message),
            Incoming::CopyData(_) | Incoming::CopyBoth => {
                return Err(ConnFailure::Protocol("data in place of a login".to_owned()));
            }
        }
    }
}

fn unexpected(_: &Message, place: &str) -> ConnFailure {
    ConnFailure::Protocol(format!("another message in place of {place}"))
}

fn unsupported(method: &str) -> ConnFailure {
    ConnFailure::Authentication(AuthError::Method(method.to_owned()))
}

/// A user name, password or option with a zero byte in it.
fn unsendable(error: std::io::Error) -> ConnFailure {
    ConnFailure::Protocol(format!("a login message cannot be sent: {error}"))
}
