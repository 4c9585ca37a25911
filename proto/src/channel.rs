//! gRPC channels to programs of this host: by a Unix socket, or by a port of the loopback.
//!
//! Rule: without TLS no other host is called. Nothing is connected before the first call, and a connection
//! that is lost is made again at the next.

use std::{error::Error, net::IpAddr, path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Status, TimeoutExpired,
    transport::{Channel, Endpoint, Uri},
};

/// A channel to `address`: `unix:/path/of/socket` or `http://127.0.0.1:PORT`; else what to write. Connecting
/// may take as long as `connect`.
pub fn open(address: &str, connect: Duration) -> Result<Channel, String> {
    if let Some(path) = address.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            return Err("write unix:/absolute/path/of/socket".to_owned());
        }
        // The name is never looked up: the connector knows the socket.
        let endpoint = Endpoint::from_static("http://here").connect_timeout(connect);
        return Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        })));
    }
    let uri: Uri = address.parse().map_err(|error| format!("{error}"))?;
    if uri.scheme_str() != Some("http") || !uri.host().is_some_and(is_this_host) {
        return Err("write unix:/path/of/socket or http://127.0.0.1:PORT; without TLS only programs on this host are \
                    called, so put a TLS tunnel before one that is elsewhere"
            .to_owned());
    }
    Ok(Endpoint::from(uri).connect_timeout(connect).connect_lazy())
}

/// Whether a call was ended by its own deadline, here or at the other end. tonic calls that cancelled; so is
/// a connection that broke under the call, but with another cause.
pub fn is_late(status: &Status) -> bool {
    match (status.code(), status.source()) {
        (Code::DeadlineExceeded, _) | (Code::Cancelled, None) => true,
        (_, mut cause) => {
            while let Some(error) = cause {
                if error.is::<TimeoutExpired>() {
                    return true;
                }
                cause = error.source();
            }
            false
        }
    }
}

fn is_this_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_deadline_is_not_a_broken_connection() {
        let late = Status::from_error(Box::new(TimeoutExpired(())));
        let broken = Status::from_error(Box::new(io::Error::from(io::ErrorKind::BrokenPipe)));
        for (status, expected) in [
            (late, true),
            (Status::deadline_exceeded("x"), true),
            (Status::cancelled("x"), true),
            (broken, false),
            (Status::unavailable("x"), false),
        ] {
            assert_eq!(is_late(&status), expected, "{status:?}");
        }
    }

    #[tokio::test]
    async fn only_this_host_is_called() {
        for good in ["unix:/run/x.sock", "http://127.0.0.1:7", "http://[::1]:7", "http://localhost:7"] {
            assert!(open(good, Duration::from_secs(1)).is_ok(), "{good}");
        }
        for wrong in ["unix:x.sock", "http://10.0.0.1:7", "https://127.0.0.1:7", "127.0.0.1:7", "", "a b"] {
            assert!(open(wrong, Duration::from_secs(1)).is_err(), "{wrong}");
        }
    }
}
