//! `[listen]`: where the API listens.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;
use toml::Spanned;
use warmd_api::{Listen, TcpListen, TlsFiles, UnixListen};
use warmd_core::plan_file::text::{Text, TextError};

/// What a Unix socket's path holds.
const MAX_SOCKET: usize = 107;

const SOCKET: &str = "/run/warmd/warmd.sock";

/// `[listen]` as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListenTable {
    socket: Option<Spanned<PathBuf>>,
    group: Option<String>,
    tcp: Option<Spanned<SocketAddr>>,
    tls: Option<Spanned<TlsTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsTable {
    cert: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
    client_ca: Spanned<PathBuf>,
    client_crl: Option<Spanned<PathBuf>>,
}

impl ListenTable {
    pub(super) fn check(self, text: Text) -> Result<Listen, TextError> {
        let path = match self.socket {
            None => PathBuf::from(SOCKET),
            Some(socket) => {
                let (span, length) = (socket.span(), socket.get_ref().as_os_str().len());
                let path = absolute(socket, text)?;
                if length > MAX_SOCKET {
                    let why = format!(
                        "the path of a Unix socket has at most {MAX_SOCKET} bytes, and this one has {length}: use a shorter one"
                    );
                    return Err(text.wrong(Some(span), why));
                }
                path
            }
        };
        let tcp = match (self.tcp, self.tls) {
            (None, None) => None,
            (Some(tcp), Some(tls)) => {
                let tls = tls.into_inner();
                let (certificate, key) = (absolute(tls.cert, text)?, absolute(tls.key, text)?);
                let client_crl = tls.client_crl.map(|path| absolute(path, text)).transpose()?;
                let tls =
                    TlsFiles { certificate, key, client_ca: absolute(tls.client_ca, text)?, client_crl };
                Some(TcpListen { address: tcp.into_inner(), tls })
            }
            (Some(tcp), None) => {
                let why = "a TCP address is served only with certificates on both sides: \
                           add `[listen.tls]` with `cert`, `key` and `client_ca`, or use `socket`";
                return Err(text.wrong(Some(tcp.span()), why));
            }
            (None, Some(tls)) => {
                let why = "`tls` is for a TCP address: add `tcp`, or remove it (users of this host need no certificate)";
                return Err(text.wrong(Some(tls.span()), why));
            }
        };
        Ok(Listen { socket: UnixListen { path, group: self.group }, tcp })
    }
}

/// The path, if it does not depend on where the daemon was started.
pub(super) fn absolute(path: Spanned<PathBuf>, text: Text) -> Result<PathBuf, TextError> {
    if path.get_ref().is_absolute() {
        Ok(path.into_inner())
    } else {
        let shown = path.get_ref().display();
        Err(text.wrong(Some(path.span()), format!("`{shown}` is a relative path: write all of it, from `/`")))
    }
}
