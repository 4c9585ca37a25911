//! Migrations as they change, across interruptions of the connection.
//!
//! Rule: the stream waits a while for a daemon that goes away, and reports its loss and its return; then
//! watching continues from there.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Streaming};
use warmd_proto::v1::{Migration, MigrationState, MigrationsWatchRequest, MigrationsWatchResponse};

use super::{
    address::DaemonAddress,
    client::Client,
    failure::{CliFailure, Exit, is_connection},
};

/// The daemon sends every ten seconds; after this long it is gone.
const SILENCE: Duration = Duration::from_secs(30);

/// How long the stream waits for a daemon that went away, and how often it tries to connect.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);
pub(super) const TRY_EVERY: Duration = Duration::from_millis(500);

/// What a stream yields.
#[derive(Debug)]
pub(super) enum StreamItem {
    Migration(Box<Migration>),
    /// The daemon went away, and the error that showed it.
    Lost(String),
    Back,
    /// All watched migrations are done or cancelled.
    Ended,
}

/// One watch.
#[derive(Debug)]
pub(super) struct MigrationStream {
    daemon: DaemonAddress,
    /// The migration's key; all migrations if empty.
    key: String,
    stream: Option<Streaming<MigrationsWatchResponse>>,
    until_final: bool,
    /// Why and since when the daemon is gone.
    lost: Option<(Instant, String)>,
    /// Which migrations are final.
    seen: BTreeMap<String, bool>,
}

impl MigrationStream {
    /// Watches the migration that `key` names, with `until_final` until it is final; or all without end if it
    /// names none.
    pub(super) async fn open(
        client: &Client,
        daemon: DaemonAddress,
        key: Option<String>,
        until_final: bool,
    ) -> Result<Self, CliFailure> {
        let key = key.unwrap_or_default();
        let until_final = until_final && !key.is_empty();
        let stream = watch(client, &key, until_final).await?;
        Ok(Self { daemon, key, stream: Some(stream), until_final, lost: None, seen: BTreeMap::new() })
    }

    /// The next item to report.
    pub(super) async fn next(&mut self) -> Result<StreamItem, CliFailure> {
        loop {
            let Some(stream) = &mut self.stream else {
                if self.retry().await? {
                    return Ok(StreamItem::Back);
                }
                continue;
            };
            let why = match timeout(SILENCE, stream.message()).await {
                Ok(Ok(Some(MigrationsWatchResponse { migration: Some(migration), .. }))) => {
                    self.remember(&migration);
                    return Ok(StreamItem::Migration(Box::new(migration)));
                }
                Ok(Ok(Some(MigrationsWatchResponse { migration: None, .. }))) => continue,
                Ok(Ok(None)) if self.is_finished() => return Ok(StreamItem::Ended),
                Ok(Ok(None)) => "it shut down".to_owned(),
                Ok(Err(status)) if is_connection(&status) => "the connection broke".to_owned(),
                Ok(Err(status)) => return Err(status.into()),
                Err(_) => format!("it was silent for {} s", SILENCE.as_secs()),
            };
            self.stream = None;
            self.lost = Some((Instant::now(), why.clone()));
            return Ok(StreamItem::Lost(format!(
                "lost the daemon: {why}; trying again for {} s",
                PATIENCE.as_secs()
            )));
        }
    }

    /// Tries once to connect again; whether it worked.
    async fn retry(&mut self) -> Result<bool, CliFailure> {
        let (since, why) = self.lost.clone().unwrap_or_else(|| (Instant::now(), String::new()));
        sleep(TRY_EVERY).await;
        let tried = match Client::connect(&self.daemon).await {
            Ok(client) => watch(&client, &self.key, self.until_final).await,
            Err(failure) => Err(failure),
        };
        match tried {
            Ok(stream) => {
                self.stream = Some(stream);
                self.lost = None;
                Ok(true)
            }
            Err(failure) if failure.exit == Exit::Unreachable && since.elapsed() < PATIENCE => Ok(false),
            Err(failure) if failure.exit == Exit::Unreachable => {
                let message = format!("the daemon went away ({why}) and did not come back: {failure}");
                Err(CliFailure::new(Exit::Unreachable, message))
            }
            Err(failure) => Err(failure),
        }
    }

    fn remember(&mut self, migration: &Migration) {
        let is_final = matches!(migration.state(), MigrationState::Done | MigrationState::Cancelled);
        self.seen.insert(migration.id.clone(), is_final);
        if !self.key.is_empty() {
            // The VM's name may mean nothing any more when the migration is done.
            self.key.clone_from(&migration.id);
        }
    }

    fn is_finished(&self) -> bool {
        self.until_final && self.seen.values().all(|is_final| *is_final)
    }
}

async fn watch(
    client: &Client,
    key: &str,
    until_final: bool,
) -> Result<Streaming<MigrationsWatchResponse>, CliFailure> {
    // Not `asked`: a watch has no end, and silence is noticed in `next`.
    let request =
        Request::new(MigrationsWatchRequest { migration: key.to_owned(), plan: String::new(), until_final });
    Ok(client.migrations().watch(request).await?.into_inner())
}
