//! A small HTTP server for the figures: `GET /metrics` and `GET /healthz`, and nothing else.
//!
//! Rule: it listens on a loopback address only, as it does not authenticate clients. A client gets a few
//! kilobytes for its request and a few seconds of patience, one request a connection, and at most a few can
//! be there at once.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use warmd_core::metrics_view::Present;

use super::Metrics;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 16;
/// How long a connection may last, from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a request's head, the smallest that the server takes as a limit.
const HEAD: usize = 8 << 10;
/// How long accepting rests after a failure that concerns no single connection, such as too many open files.
const REST: Duration = Duration::from_millis(200);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Why the metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("metrics are served to everybody who can connect, so not on {0}: use a loopback address")]
    NotLoopback(SocketAddr),
    #[error("cannot listen on {address} for the metrics: {cause}")]
    Bind {
        address: SocketAddr,
        #[source]
        cause: io::Error,
    },
}

/// A listener for scrapes.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl MetricsServer {
    /// Listens on `address`, which must be a loopback one; port 0 takes a free one.
    pub async fn bind(address: SocketAddr) -> Result<Self, MetricsError> {
        if !address.ip().is_loopback() {
            return Err(MetricsError::NotLoopback(address));
        }
        let bound = async {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        bound.await.map_err(|cause| MetricsError::Bind { address, cause })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown`; what is being answered then ends on its own, within seconds.
    pub async fn serve(self, metrics: Metrics, present: Present, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let next = async {
                // Never closed.
                let place = Arc::clone(&places).acquire_owned().await.ok();
                (place, self.listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = shutdown.cancelled() => return,
                next = next => next,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (metrics, present) = (metrics.clone(), Arc::clone(&present));
                    tokio::spawn(async move {
                        talk(stream, &metrics, &present).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a scrape could not be accepted");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }
}

async fn talk(stream: TcpStream, metrics: &Metrics, present: &Present) {
    let service =
        service_fn(|request| async move { Ok::<_, Infallible>(answer(&request, metrics, present).await) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD)
        .keep_alive(false)
        // A client that has said all it has to say is answered all the same.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a scrape went wrong"),
        Err(_) => tracing::debug!("a scrape took too long"),
    }
}

async fn answer(request: &Request<Incoming>, metrics: &Metrics, present: &Present) -> Response<Full<Bytes>> {
    let known = matches!(request.uri().path(), "/metrics" | "/healthz");
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") => response(StatusCode::OK, PLAIN, "ok\n"),
        (&Method::GET, "/metrics") => match metrics.render(&present().await) {
            Ok(text) => response(StatusCode::OK, OPEN_METRICS, text),
            Err(error) => {
                tracing::error!(%error, "the metrics cannot be written");
                response(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, "the metrics cannot be written\n")
            }
        },
        _ if known => {
            let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            refused
        }
        _ => response(StatusCode::NOT_FOUND, PLAIN, "there are /metrics and /healthz\n"),
    }
}

fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
