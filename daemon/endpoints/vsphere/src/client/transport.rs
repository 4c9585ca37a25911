//! The way to the server: HTTP/1.1 over TLS, a few connections that are used again.
//!
//! Rule: every exchange has a deadline and a bound on its answer. It is known of each failure whether the
//! server may have read the request. No proxy of the environment is used: a vCenter is reached directly.

use std::{error::Error as StdError, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{Request, Uri, header};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use thiserror::Error;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    error::{Kind, Result, VsphereError},
    limits::SOAP_CONNECTIONS,
    soap,
};

use super::{
    Account,
    trust::{self, SeenCertificate, Seer, TrustError},
};

const CONNECT: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(50);
const COOKIE: &str = "vmware_soap_session";

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) cookie: Option<String>,
    pub(super) body: Bytes,
}

/// Why nothing came back.
#[derive(Debug, Error)]
pub(super) enum TransportError {
    #[error("the server's certificate is not trusted: {0}")]
    Trust(TrustError),
    #[error("no connection: {0}")]
    Connect(String),
    #[error("no connection within {} s", CONNECT.as_secs())]
    ConnectTimeout,
    #[error("the connection was lost: {0}")]
    Lost(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the answer has more than {} MiB", soap::MAX_BYTES >> 20)]
    TooLarge,
    #[error("the request cannot be made: {0}")]
    Request(#[from] hyper::http::Error),
}

impl TransportError {
    /// Whether the server may have read the request.
    pub(super) fn was_sent(&self) -> bool {
        match self {
            Self::Trust(_) | Self::Connect(_) | Self::ConnectTimeout | Self::Request(_) => false,
            Self::Lost(_) | Self::Timeout(_) | Self::TooLarge => true,
        }
    }

    /// Whether the same request may succeed in a moment.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Connect(_) | Self::ConnectTimeout | Self::Lost(_) | Self::Timeout(_) => true,
            Self::Trust(_) | Self::TooLarge | Self::Request(_) => false,
        }
    }

    pub(super) fn into_vsphere(self, context: String) -> VsphereError {
        let kind = match &self {
            Self::Connect(_) | Self::ConnectTimeout | Self::Lost(_) => Kind::Unreachable,
            Self::Timeout(_) => Kind::Timeout,
            Self::Trust(_) => Kind::Refused,
            Self::TooLarge | Self::Request(_) => Kind::Failed,
        };
        VsphereError::new(kind, context, self)
    }
}

/// The connections to one server.
#[derive(Debug)]
pub(super) struct Transport {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    at_once: Semaphore,
    seer: Seer,
}

impl Transport {
    pub(super) fn new(account: &Account) -> Result<Self> {
        let context = || format!("source at {}", account.server);
        let uri = format!("https://{}/sdk", account.server)
            .parse::<Uri>()
            .map_err(|error| VsphereError::new(Kind::Refused, context(), error))?;
        let (tls, seer) = trust::tls(&account.trust)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_keepalive(Some(Duration::from_mins(1)));
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(tcp);
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(SOAP_CONNECTIONS)
            .build(https);
        Ok(Self { http, uri, at_once: Semaphore::new(SOAP_CONNECTIONS), seer })
    }

    pub(super) fn seen(&self) -> Option<SeenCertificate> {
        self.seer.seen()
    }

    /// Posts an envelope, and reads the answer whole. `version` is the API's that is spoken.
    pub(super) async fn post(
        &self,
        version: &str,
        cookie: Option<&str>,
        envelope: String,
        within: Duration,
    ) -> std::result::Result<Reply, TransportError> {
        let mut request = Request::post(self.uri.clone())
            .header(header::CONTENT_TYPE, "text/xml; charset=utf-8")
            .header("SOAPAction", format!("urn:vim25/{version}"))
            .header(header::USER_AGENT, concat!("warmd/", env!("CARGO_PKG_VERSION")));
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, format!("{COOKIE}={cookie}"));
        }
        let request = request.body(Full::new(Bytes::from(envelope)))?;
        match timeout(within, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(TransportError::Timeout(within)),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> std::result::Result<Reply, TransportError> {
        // It is never closed.
        let _turn = self.at_once.acquire().await;
        let answer = self.http.request(request).await.map_err(|error| failure(&error))?;
        let status = answer.status().as_u16();
        let cookie = answer
            .headers()
            .get_all(header::SET_COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .find_map(session_cookie);
        let body = Limited::new(answer.into_body(), soap::MAX_BYTES).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                TransportError::TooLarge
            } else {
                TransportError::Lost(chain(&*error))
            }
        })?;
        Ok(Reply { status, cookie, body: body.to_bytes() })
    }
}

/// The value of the session's cookie in a `Set-Cookie` header.
fn session_cookie(header: &str) -> Option<String> {
    let (name, value) = header.split(';').next()?.split_once('=')?;
    (name.trim() == COOKIE && !value.trim().is_empty()).then(|| value.trim().to_owned())
}

fn failure(error: &hyper_util::client::legacy::Error) -> TransportError {
    if let Some(trust) = trust::refusal(error) {
        return TransportError::Trust(trust);
    }
    if error.is_connect() {
        let timed_out = causes(error).any(|cause| {
            cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut)
        });
        return if timed_out {
            TransportError::ConnectTimeout
        } else {
            TransportError::Connect(chain(error))
        };
    }
    TransportError::Lost(chain(error))
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}

/// The innermost causes, which alone tell something.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut texts: Vec<String> = causes(error).map(ToString::to_string).collect();
    texts.dedup();
    if texts.len() > 1 {
        texts.remove(0);
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sessions_cookie_is_found_among_others() {
        let value = "vmware_soap_session=\"52773cd3-35c6\"; Path=/; HttpOnly; Secure;";
        assert_eq!(session_cookie(value).as_deref(), Some("\"52773cd3-35c6\""));
        assert_eq!(session_cookie("other=1; vmware_soap_session=x"), None);
        assert_eq!(session_cookie("vmware_soap_session=; Path=/"), None);
    }

    #[test]
    fn what_may_have_been_read_is_not_taken_for_unsent() {
        assert!(!TransportError::Connect("refused".to_owned()).was_sent());
        assert!(TransportError::Lost("reset".to_owned()).was_sent());
        assert!(TransportError::Timeout(CONNECT).was_sent());
        assert!(!TransportError::TooLarge.may_pass());
    }
}
