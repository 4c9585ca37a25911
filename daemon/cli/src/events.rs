//! `events`.
//!
//! Rule: a follower misses no line and sees none twice, also across restarts of the daemon.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use warmd_proto::v1::{Event, MigrationsEventsRequest, MigrationsEventsResponse};

use super::{
    address::DaemonAddress,
    client::{Client, asked},
    failure::{CliFailure, Exit},
    labels,
    migration_stream::{PATIENCE, TRY_EVERY},
    out::{Out, complain, one_line},
    screen::interrupted,
    table::{Column, TableLayout},
};

/// How often new lines are asked for.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Lines of one answer while following.
const PAGE: u32 = 1000;

pub(super) async fn list(
    client: &Client,
    out: &Out,
    id: Option<String>,
    limit: u32,
) -> Result<(), CliFailure> {
    let answer = page(client, id.unwrap_or_default(), None, limit).await?;
    if out.is_json() {
        return out.json(&answer);
    }
    out.table(&COLUMNS, answer.events.into_iter().map(cells))
}

/// Prints the last `limit` lines, and then each that is written, one JSON object a line if JSON is asked for.
pub(super) async fn follow(
    daemon: &DaemonAddress,
    out: &Out,
    id: Option<String>,
    limit: u32,
) -> Result<(), CliFailure> {
    tokio::select! {
        result = go_on(daemon, out, id.unwrap_or_default(), limit) => result,
        () = interrupted() => Ok(()),
    }
}

async fn go_on(daemon: &DaemonAddress, out: &Out, id: String, limit: u32) -> Result<(), CliFailure> {
    let client = Client::connect(daemon).await?;
    let mut answer = page(&client, id.clone(), None, limit).await?;
    let layout = TableLayout::new(&COLUMNS, cell_widths(out.screen()), out.screen());
    if !out.is_json() {
        out.text(&layout.head().join("\n"))?;
    }
    loop {
        let is_full = answer.events.len() == PAGE as usize;
        for event in answer.events {
            if out.is_json() {
                out.json_line(&event)?;
            } else {
                out.text(&layout.row(&cells(event).map(|cell| one_line(&cell))).join("\n"))?;
            }
        }
        let after = answer.cursor;
        if !is_full {
            sleep(ASK_EVERY).await;
        }
        answer = next(daemon, &client, &id, after).await?;
        if answer.cursor < after {
            complain("warmd's state was put back from an older copy: going on at the end of its journal");
        }
    }
}

/// The lines after a cursor; it waits a while for a daemon that does not answer, and reports its loss and its
/// return.
async fn next(
    daemon: &DaemonAddress,
    client: &Client,
    id: &str,
    after: u64,
) -> Result<MigrationsEventsResponse, CliFailure> {
    let mut failure = match page(client, id.to_owned(), Some(after), PAGE).await {
        Err(failure) if failure.exit == Exit::Unreachable => failure,
        result => return result,
    };
    let lost = Instant::now();
    complain(&format!("lost the daemon; trying again for {} s", PATIENCE.as_secs()));
    while lost.elapsed() < PATIENCE {
        sleep(TRY_EVERY).await;
        let again = async { page(&Client::connect(daemon).await?, id.to_owned(), Some(after), PAGE).await };
        failure = match again.await {
            Err(failure) if failure.exit == Exit::Unreachable => failure,
            result => {
                complain("the daemon is back");
                return result;
            }
        };
    }
    let message = format!("the daemon went away and did not come back: {failure}");
    Err(CliFailure::new(Exit::Unreachable, message))
}

async fn page(
    client: &Client,
    migration: String,
    after: Option<u64>,
    limit: u32,
) -> Result<MigrationsEventsResponse, CliFailure> {
    let request = asked(MigrationsEventsRequest { migration, limit, after });
    Ok(client.migrations().events(request).await?.into_inner())
}

const COLUMNS: [Column; 5] = [
    Column::text("AT (UTC)"),
    Column::text("MIGRATION"),
    Column::text("BY").cut(1, 9),
    Column::text("KIND"),
    Column::text("WHAT").wrap(24),
];

/// The cells of a table whose lines come one by one; the last column takes the rest of the screen.
fn cell_widths(screen: Option<usize>) -> [usize; 5] {
    [19, 12, 26, 8, screen.unwrap_or_default()]
}

fn cells(event: Event) -> [String; 5] {
    let migration = event.migration_id.as_deref().map_or("-", labels::short).to_owned();
    [labels::moment(event.at.as_ref()), migration, event.by, event.kind, event.text]
}
