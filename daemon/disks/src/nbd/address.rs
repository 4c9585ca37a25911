//! Where an NBD server listens, and the URIs that name an export.
//!
//! Source for URIs: the NetworkBlockDevice project's `doc/uri.md`. TLS schemes are refused by name.

use std::{fmt, path::PathBuf, str::FromStr};

use thiserror::Error;

/// NBD's registered port.
pub const DEFAULT_PORT: u16 = 10809;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NbdAddress {
    Unix(PathBuf),
    Tcp {
        /// A name or a numeric address, IPv6 without brackets.
        host: String,
        port: u16,
    },
}

/// A server and the name of one of its exports; the empty name is the server's default export.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NbdUri {
    pub address: NbdAddress,
    pub export: String,
}

/// Why a text names no NBD server.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    #[error("`{0}` is no NBD URI: expected nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH")]
    NoUri(String),
    #[error("the scheme `{0}` is not supported: use nbd or nbd+unix")]
    Scheme(String),
    #[error("an nbd+unix URI needs `?socket=PATH`")]
    NoSocket,
    #[error("an nbd+unix URI has no host: write nbd+unix:///EXPORT?socket=PATH")]
    HostOfUnix,
    #[error("`{0}` names no host")]
    NoHost(String),
    #[error("`{0}` is no port: expected 1 to 65535")]
    Port(String),
    #[error("`{0}` is not understood in an NBD URI's query")]
    Query(String),
    #[error("`{0}` is not valid percent-encoded UTF-8")]
    Encoding(String),
    #[error("the export's name is longer than 4096 bytes")]
    LongName,
}

impl FromStr for NbdAddress {
    type Err = AddressError;

    /// A path (`/run/x.sock`, `unix:/run/x.sock`) or `HOST[:PORT]`, with IPv6 addresses in brackets.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some("") => Err(AddressError::NoSocket),
            Some(path) => Ok(Self::Unix(path.into())),
            None if text.starts_with('/') => Ok(Self::Unix(text.into())),
            None => tcp(text),
        }
    }
}

impl FromStr for NbdUri {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| AddressError::NoUri(text.into()))?;
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = percent_decode(export)?;
        if export.len() > super::wire::MAX_STRING {
            return Err(AddressError::LongName);
        }
        let socket = query.map(socket_of).transpose()?;
        let address = match (scheme, socket) {
            ("nbd+unix", _) if !host.is_empty() => return Err(AddressError::HostOfUnix),
            ("nbd+unix", Some(path)) => NbdAddress::Unix(path),
            ("nbd+unix", None) => return Err(AddressError::NoSocket),
            ("nbd", None) => tcp(host)?,
            ("nbd", Some(_)) => return Err(AddressError::Query(query.unwrap_or_default().into())),
            (other, _) => return Err(AddressError::Scheme(other.into())),
        };
        Ok(Self { address, export })
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = percent_encode(&self.export);
        match &self.address {
            NbdAddress::Unix(path) => {
                write!(f, "nbd+unix:///{export}?socket={}", percent_encode(&path.to_string_lossy()))
            }
            tcp @ NbdAddress::Tcp { .. } => write!(f, "nbd://{tcp}/{export}"),
        }
    }
}

fn tcp(text: &str) -> Result<NbdAddress, AddressError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (host, rest) = bracketed.split_once(']').ok_or_else(|| AddressError::NoHost(text.into()))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(AddressError::Port(rest.into())),
            }
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() || host.contains('/') || host.contains(char::is_whitespace) {
        return Err(AddressError::NoHost(text.into()));
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(digits) => {
            digits.parse().ok().filter(|port| *port > 0).ok_or_else(|| AddressError::Port(digits.into()))?
        }
    };
    Ok(NbdAddress::Tcp { host: host.into(), port })
}

fn socket_of(query: &str) -> Result<PathBuf, AddressError> {
    match query.strip_prefix("socket=") {
        Some("") => Err(AddressError::NoSocket),
        Some(path) if !path.contains('&') => Ok(percent_decode(path)?.into()),
        _ => Err(AddressError::Query(query.into())),
    }
}

fn percent_decode(text: &str) -> Result<String, AddressError> {
    let wrong = || AddressError::Encoding(text.into());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => return Err(wrong()),
                }
            }
            other => other,
        });
    }
    if bytes.contains(&0) {
        return Err(wrong());
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                out.push(char::from(byte));
            }
            other => {
                let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0').to_ascii_uppercase();
                out.extend(['%', digit(other >> 4), digit(other & 15)]);
            }
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_at(host: &str, port: u16) -> NbdAddress {
        NbdAddress::Tcp { host: host.into(), port }
    }

    #[test]
    fn uris_are_read_and_written() {
        let unix = |path: &str| NbdAddress::Unix(path.into());
        let cases = [
            ("nbd://host/vda", tcp_at("host", DEFAULT_PORT), "vda"),
            ("nbd://host:1234/", tcp_at("host", 1234), ""),
            ("nbd://host", tcp_at("host", DEFAULT_PORT), ""),
            ("nbd://[::1]:9/a%20b", tcp_at("::1", 9), "a b"),
            ("nbd+unix:///vda?socket=/run/x.sock", unix("/run/x.sock"), "vda"),
            ("nbd+unix:///?socket=/run/a%3fb", unix("/run/a?b"), ""),
            ("nbd://host/a/b", tcp_at("host", DEFAULT_PORT), "a/b"),
        ];
        for (text, address, export) in cases {
            let uri = NbdUri { address, export: export.into() };
            assert_eq!(text.parse(), Ok(uri.clone()), "{text}");
            assert_eq!(uri.to_string().parse(), Ok(uri), "{text} written and read again");
        }
    }

    #[test]
    fn wrong_uris_are_refused_with_the_reason() {
        use AddressError as E;
        let cases = [
            ("host:10809", E::NoUri("host:10809".into())),
            ("nbds://host/x", E::Scheme("nbds".into())),
            ("nbd+unix:///x", E::NoSocket),
            ("nbd+unix:///x?socket=", E::NoSocket),
            ("nbd+unix://host/x?socket=/y", E::HostOfUnix),
            ("nbd+unix:///x?sock=/y", E::Query("sock=/y".into())),
            ("nbd://host/x?socket=/y", E::Query("socket=/y".into())),
            ("nbd:///x", E::NoHost(String::new())),
            ("nbd://host:0/x", E::Port("0".into())),
            ("nbd://host:70000/x", E::Port("70000".into())),
            ("nbd://[::1/x", E::NoHost("[::1".into())),
            ("nbd://host/%zz", E::Encoding("%zz".into())),
            ("nbd://host/%ff", E::Encoding("%ff".into())),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<NbdUri>(), Err(error), "{text}");
        }
        let long = format!("nbd://host/{}", "x".repeat(5000));
        assert_eq!(long.parse::<NbdUri>(), Err(E::LongName));
    }

    #[test]
    fn plain_addresses_are_read_and_written() {
        for text in ["unix:/run/x.sock", "host:1", "[fe80::1]:10809"] {
            let address: NbdAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("/run/x".parse(), Ok(NbdAddress::Unix("/run/x".into())));
        assert_eq!("host".parse(), Ok(tcp_at("host", DEFAULT_PORT)));
        assert!("".parse::<NbdAddress>().is_err());
    }
}
