//! A small HTTP client that can also send invalid requests.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::openmetrics::{Family, parse};

/// The timeout of every server operation.
const PATIENCE: Duration = Duration::from_mins(2);

/// An answer.
#[derive(Debug)]
pub struct HttpResponse {
    pub status: u16,
    /// As it was sent.
    pub head: String,
    pub body: String,
}

/// The metrics, strictly parsed.
pub fn scrape(address: SocketAddr) -> Result<Vec<Family>> {
    let answer = get(address, "/metrics")?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(answer.head.contains("application/openmetrics-text; version=1.0.0"), "{}", answer.head);
    parse(&answer.body).with_context(|| answer.body.clone())
}

/// A GET.
pub fn get(address: SocketAddr, path: &str) -> Result<HttpResponse> {
    say(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())?
        .context("the server hung up without an answer")
}

/// Sends text and reads until the server closes the connection; `None` if it sends nothing.
pub fn say(address: SocketAddr, words: &[u8]) -> Result<Option<HttpResponse>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // A server may close the connection before it has read everything.
    let said = stream.write_all(words).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut bytes = Vec::new();
    let heard = stream.read_to_end(&mut bytes);
    if bytes.is_empty() {
        return Ok(None);
    }
    let text = String::from_utf8(bytes).with_context(|| format!("said: {said:?}, heard: {heard:?}"))?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Some(HttpResponse { status, head: head.to_owned(), body: body.to_owned() }))
}
