//! Hears out a server whose connection was given up, until it has answered every change that it was sent whole.
//!
//! Rule: nothing more is sent by that connection, and its end is not begun from this side while an answer may come:
//! a server that sees the end drops the answers, but not the changes.

use std::{collections::BTreeMap, io, time::Duration};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt};

use super::{
    astray::Debt,
    reply::{self, Expect, HEAD_LEN, Head},
};

/// The longest that a server is heard out. What is unanswered after that is lost.
const LIMIT: Duration = Duration::from_hours(1);

/// A request that was in flight when its connection was given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unanswered {
    pub(super) expect: Expect,
    pub(super) length: u64,
    /// The change's place in the debt, if it is one that a server can have whole.
    pub(super) owed: Option<usize>,
    /// All of it has gone out, so that an answer is due.
    pub(super) is_due: bool,
}

/// Reads replies by which `open` requests end. `input` must be at the beginning of one.
pub(super) async fn drain<R: AsyncBufRead + Unpin>(
    mut input: R,
    open: BTreeMap<u64, Unanswered>,
    debt: Debt,
) {
    let left = open.values().filter(|request| request.owed.is_some()).count();
    tracing::warn!(
        left,
        "an NBD connection is given up; the server is heard out on the changes that it was sent"
    );
    match tokio::time::timeout(LIMIT, hear(&mut input, open, &debt)).await {
        Ok(Ok(())) => {
            tracing::info!("the server has answered the changes of the NBD connection that was given up")
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "an NBD connection ended before the server answered all changes")
        }
        Err(_) => {
            tracing::warn!(after = ?LIMIT, "the server does not answer the changes of an NBD connection")
        }
    }
}

async fn hear<R: AsyncRead + Unpin>(
    input: &mut R,
    mut open: BTreeMap<u64, Unanswered>,
    debt: &Debt,
) -> io::Result<()> {
    while open.values().any(|request| request.owed.is_some() && request.is_due) {
        let mut bytes = [0; HEAD_LEN];
        input.read_exact(&mut bytes).await?;
        let head = reply::head(&bytes).map_err(io::Error::other)?;
        let (cookie, ends, follows) = match head {
            Head::Simple { errno, cookie } => {
                let data = |request: &Unanswered| errno.0 == 0 && request.expect == Expect::Data;
                let length = open.get(&cookie).filter(|request| data(request)).map_or(0, |r| r.length);
                (cookie, true, length)
            }
            Head::Chunk { done, cookie, .. } => (cookie, done, u64::from(input.read_u32().await?)),
        };
        let Some(request) = open.get(&cookie).copied() else {
            return Err(io::Error::other("it answers a request that was not made"));
        };
        skip(input, follows).await?;
        if ends {
            open.remove(&cookie);
            if let Some(index) = request.owed {
                debt.answered(index);
            }
        }
    }
    Ok(())
}

async fn skip<R: AsyncRead + Unpin>(input: &mut R, bytes: u64) -> io::Result<()> {
    let skipped = tokio::io::copy(&mut input.take(bytes), &mut tokio::io::sink()).await?;
    if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
