//! `[listen]`: where the API listens.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;
use toml::Spanned;
use warmd_api::{Listen, TlsFiles};
use warmd_core::plan_file::text::{Text, TextError};

/// What a Unix socket's path holds.
const MAX_SOCKET: usize = 107;

const SOCKET: &str = "/run/warmd/warmd.sock";

/// `[listen]` as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListenTable {
    socket: Option<Spanned<PathBuf>>,
    tcp: Option<Spanned<SocketAddr>>,
    tls: Option<Spanned<TlsTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsTable {
    cert: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
    client_ca: Spanned<PathBuf>,
}

impl ListenTable {
    pub(super) fn check(self, text: Text) -> Result<Listen, TextError> {
        let path = |path: Spanned<PathBuf>| absolute(path, text);
        match (self.socket, self.tcp, self.tls) {
            (None, None, None) => Ok(Listen::Unix(PathBuf::from(SOCKET))),
            (Some(socket), None, None) => {
                let (span, length) = (socket.span(), socket.get_ref().as_os_str().len());
                let path = path(socket)?;
                if length > MAX_SOCKET {
                    let why = format!(
                        "the path of a Unix socket has at most {MAX_SOCKET} bytes, and this one has {length}: use a shorter one"
                    );
                    return Err(text.wrong(Some(span), why));
                }
                Ok(Listen::Unix(path))
            }
            (Some(_), Some(tcp), _) => {
                Err(text.wrong(Some(tcp.span()), "`socket` and `tcp` exclude each other: remove one"))
            }
            (None, Some(tcp), Some(tls)) => {
                let tls = tls.into_inner();
                let (certificate, key) = (path(tls.cert)?, path(tls.key)?);
                let tls = Some(TlsFiles { certificate, key, client_ca: path(tls.client_ca)? });
                Ok(Listen::Tcp { address: tcp.into_inner(), tls })
            }
            (None, Some(tcp), None) => Err(text.wrong(
                Some(tcp.span()),
                "a TCP address is served only with certificates on both sides: \
                 add `[listen.tls]` with `cert`, `key` and `client_ca`, or use `socket`",
            )),
            (_, None, Some(tls)) => Err(text.wrong(
                Some(tls.span()),
                "`tls` is for a TCP address: add `tcp`, or remove it (the socket is its owner's alone)",
            )),
        }
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
