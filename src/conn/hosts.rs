//! `host`, `hostaddr` and `port`: three lists that together say which servers to try.

use super::parameters::invalid;
use super::url::UrlError;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostAddress {
    /// A name to resolve and verify, and perhaps the address that saves the resolving.
    Tcp {
        name: String,
        address: Option<IpAddr>,
    },
    /// The directory of a unix socket.
    Unix(PathBuf),
}

/// One of the servers that may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) address: HostAddress,
    pub(crate) port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            HostAddress::Tcp { name, .. } if name.contains(':') => {
                write!(f, "[{name}]:{}", self.port)
            }
            HostAddress::Tcp { name, .. } => write!(f, "{name}:{}", self.port),
            HostAddress::Unix(directory) => write!(f, "{}:{}", directory.display(), self.port),
        }
    }
}

pub(super) fn hosts(
    host: Option<&str>,
    hostaddr: Option<&str>,
    port: Option<&str>,
) -> Result<Vec<Host>, UrlError> {
    let list = |text: Option<&str>| -> Vec<String> {
        text.map(|text| text.split(',').map(|part| part.trim().to_owned()).collect())
            .unwrap_or_default()
    };
    let (names, addresses, ports) = (list(host), list(hostaddr), list(port));
    let count = names.len().max(addresses.len()).max(1);
    if !addresses.is_empty() && !names.is_empty() && addresses.len() != names.len() {
        return Err(UrlError::Impossible(
            "host and hostaddr must list equally many servers",
        ));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(UrlError::Impossible(
            "port must be one for all hosts, or one for each",
        ));
    }
    let port_of = |position: usize| match ports
        .get(position)
        .or(ports.first().filter(|_| ports.len() == 1))
    {
        None => Ok(5432),
        Some(text) if text.is_empty() => Ok(5432),
        Some(text) => match text.parse() {
            Ok(0) | Err(_) => Err(invalid("port", "a number from 1 to 65535")),
            Ok(port) => Ok(port),
        },
    };
    (0..count)
        .map(|position| {
            let address = match addresses.get(position).map(String::as_str) {
                None | Some("") => None,
                Some(text) => Some(
                    text.parse::<IpAddr>()
                        .map_err(|_| invalid("hostaddr", "an IP address"))?,
                ),
            };
            let name = names.get(position).map_or("", String::as_str);
            let address = match (name, address) {
                ("", None) => HostAddress::Unix("/var/run/postgresql".into()),
                ("", Some(address)) => HostAddress::Tcp {
                    name: address.to_string(),
                    address: Some(address),
                },
                (path, _) if path.starts_with('/') => HostAddress::Unix(path.into()),
                (name, address) => HostAddress::Tcp {
                    name: name.to_owned(),
                    address,
                },
            };
            Ok(Host {
                address,
                port: port_of(position)?,
            })
        })
        .collect()
}
