//! The request to the daemon that runs while the screen is updated.
//!
//! Rule: one at a time. A key that is pressed meanwhile requests nothing: no operation begins minutes later
//! because it waited behind a slow request.

use std::future::pending;

use tokio_util::task::AbortOnDropHandle;
use warmd_proto::v1::{Migration, RequestOutcome};

use super::{
    super::{
        address::DaemonAddress,
        client::Client,
        failure::{CliFailure, Exit},
        follow::{self, Order, Task},
        labels,
    },
    keys::Key,
};

/// The client, and the request under way.
#[derive(Debug)]
pub(super) struct RequestSender {
    daemon: DaemonAddress,
    under_way: Option<(Key, AbortOnDropHandle<String>)>,
}

impl RequestSender {
    pub(super) fn new(daemon: DaemonAddress) -> Self {
        Self { daemon, under_way: None }
    }

    /// Begins the request that `key` means, for the migration `id`; gives the text that the screen shows
    /// until the answer. Like that of any command, it comes within the deadlines of [`Client`], if only to
    /// say that the daemon did not answer.
    pub(super) fn ask(&mut self, key: Key, id: String) -> String {
        if let Some((before, _)) = &self.under_way {
            return format!("{}: not asked, {} has no answer yet", key.word(), before.word());
        }
        let daemon = self.daemon.clone();
        let question = tokio::spawn(async move { in_words(&daemon, key, id).await });
        self.under_way = Some((key, AbortOnDropHandle::new(question)));
        format!("{}: asked, no answer yet", key.word())
    }

    /// The answer, once; without a request it never comes. May be dropped and called again.
    pub(super) async fn answer(&mut self) -> String {
        let Some((key, question)) = &mut self.under_way else { return pending().await };
        let key = *key;
        let answer = question.await;
        self.under_way = None;
        answer.unwrap_or_else(|error| format!("{}: {error}", key.word()))
    }
}

/// Sends the request that a key means; the answer, or the error, in words.
async fn in_words(daemon: &DaemonAddress, key: Key, id: String) -> String {
    match answer(daemon, key, id).await {
        Ok((answer, migration)) => {
            format!("{} of {}: {}", key.word(), labels::who(&migration), labels::answer(answer))
        }
        Err(failure) => format!("{}: {failure}", key.word()),
    }
}

async fn answer(
    daemon: &DaemonAddress,
    key: Key,
    id: String,
) -> Result<(RequestOutcome, Migration), CliFailure> {
    let client = Client::connect(daemon).await?;
    let task = match key {
        Key::Pause => {
            let said = client.pause(id).await?;
            return Ok((said.answer(), said.migration.unwrap_or_default()));
        }
        Key::Resume => {
            let said = client.resume(id).await?;
            return Ok((said.answer(), said.migration.unwrap_or_default()));
        }
        Key::Sync => Task::Sync,
        Key::Cutover => Task::Cutover,
        Key::Abort => Task::AbortCutover,
        _ => return Err(CliFailure::new(Exit::Usage, "the daemon is asked for nothing")),
    };
    let asked = follow::ask(&client, &id, task, Order::default()).await?;
    Ok((asked.answer, asked.migration))
}
