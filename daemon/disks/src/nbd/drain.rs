//! Reads the answers of a server whose connection was abandoned, until it has answered every change that it
//! was sent whole.
//!
//! Rule: no more requests are sent by that connection, and it is not closed from this side while an answer
//! may come: a server that sees the end drops the answers, but not the changes.

use std::{collections::BTreeMap, io, time::Duration};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt};

use super::{
    late_changes::OwedAnswers,
    reply::{self, Expect, HEAD_LEN, Head},
};

/// The longest wait for a server's answers. Unanswered changes count as lost after that.
const LIMIT: Duration = Duration::from_hours(1);

/// A request that was in flight when its connection was abandoned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unanswered {
    pub(super) expect: Expect,
    pub(super) length: u64,
    /// The change's place in the debt, if the server can have received it whole.
    pub(super) owed: Option<usize>,
    /// It was sent completely, so that an answer is due.
    pub(super) is_due: bool,
}

/// Reads replies that end `open` requests. `input` must be at the beginning of one.
pub(super) async fn drain<R: AsyncBufRead + Unpin>(
    mut input: R,
    open: BTreeMap<u64, Unanswered>,
    debt: OwedAnswers,
) {
    let left = open.values().filter(|request| request.owed.is_some()).count();
    tracing::warn!(
        left,
        "an NBD connection is abandoned; warmd waits for the server's answers to the changes that it was sent"
    );
    match tokio::time::timeout(LIMIT, hear(&mut input, open, &debt)).await {
        Ok(Ok(())) => {
            tracing::info!("the server has answered the changes of the abandoned NBD connection");
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "an NBD connection ended before the server answered all changes");
        }
        Err(_) => {
            tracing::warn!(after = ?LIMIT, "the server does not answer the changes of an NBD connection");
        }
    }
}

async fn hear<R: AsyncRead + Unpin>(
    input: &mut R,
    mut open: BTreeMap<u64, Unanswered>,
    debt: &OwedAnswers,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::nbd::late_changes::LateChanges;

    const WRITE: u64 = 1;
    const READ: u64 = 2;

    /// The suspect ranges after these bytes from a server, and its end, for a write of 512 bytes and a read.
    async fn left(said: &[u8]) -> usize {
        let late_changes = Arc::new(LateChanges::default());
        let debt = late_changes.owe([(4096, 512)].into_iter());
        let request = |expect, owed| Unanswered { expect, length: 8, owed, is_due: true };
        let open = [(WRITE, request(Expect::Nothing, Some(0))), (READ, request(Expect::Data, None))];
        drain(said, BTreeMap::from(open), debt).await;
        late_changes.suspects().len()
    }

    fn simple(errno: u32, cookie: u64, data: &[u8]) -> Vec<u8> {
        [&0x6744_6698_u32.to_be_bytes()[..], &errno.to_be_bytes(), &cookie.to_be_bytes(), data].concat()
    }

    fn chunk(is_last: u16, cookie: u64, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap();
        [
            &0x668e_33ef_u32.to_be_bytes()[..],
            &is_last.to_be_bytes(),
            &[0, 1],
            &cookie.to_be_bytes(),
            &length.to_be_bytes(),
            body,
        ]
        .concat()
    }

    #[tokio::test]
    async fn an_answer_of_either_kind_ends_a_change_also_behind_a_reads() {
        let reads = [vec![], simple(0, READ, &[7; 8]), simple(5, READ, &[]), chunk(0, READ, &[7; 16])];
        for read in reads {
            for answer in [simple(0, WRITE, &[]), simple(5, WRITE, &[]), chunk(1, WRITE, &[])] {
                assert_eq!(left(&[read.clone(), answer].concat()).await, 0);
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_whole_answer_leaves_the_change_suspect() {
        let answer = simple(0, WRITE, &[]);
        for said in [
            vec![],
            answer[..15].to_vec(),
            simple(0, READ, &[7; 8]),
            simple(0, 3, &[]),
            vec![0; 16],
            chunk(0, WRITE, &[]),
            chunk(1, WRITE, &[1, 2])[..21].to_vec(),
            [simple(0, READ, &[7; 7]), answer].concat(),
        ] {
            assert_eq!(left(&said).await, 1, "{said:?}");
        }
    }
}
