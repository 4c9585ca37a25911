//! `[metrics]`: where Prometheus may ask.

use std::net::SocketAddr;

use serde::Deserialize;
use toml::Spanned;
use warmd_core::plan_file::text::{Text, TextError};

/// `[metrics]` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetricsTable {
    listen: Spanned<SocketAddr>,
}

impl MetricsTable {
    pub(super) fn check(self, text: Text) -> Result<SocketAddr, TextError> {
        let address = *self.listen.get_ref();
        if address.ip().is_loopback() {
            return Ok(address);
        }
        Err(text.wrong(
            Some(self.listen.span()),
            format!(
                "metrics are served to everybody who can connect, so not on {address}: use a loopback address such \
                 as \"127.0.0.1:9464\", and a proxy if others are to see them"
            ),
        ))
    }
}
