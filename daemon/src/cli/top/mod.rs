//! `top`: all migrations on one screen, and keys to steer them.
//!
//! Rule: the terminal is put back whatever happens. What cannot be taken back is asked twice, and a key asks for what the
//! command of the same name asks for, no more.

mod board;
mod draw;
mod keys;

use std::{path::Path, time::Duration};

use chrono::Utc;
use crossterm::event::{Event, EventStream};
use futures::StreamExt as _;
use ratatui::DefaultTerminal;
use tokio::time::{MissedTickBehavior, interval};
use warmd_proto::v1::{Answer, Migration, MigrationsVerifyRequest};

use self::{
    board::Board,
    keys::{Act, Key},
};
use super::{
    client::Client,
    failure::{Exit, Failure},
    feed::{Feed, News},
    follow::{self, Task},
    out::Out,
    words,
};

/// How often the screen is drawn anew, changes or not: lags and clocks go on.
const EVERY: Duration = Duration::from_millis(500);

/// Shows the screen until it is left.
pub(super) async fn run(socket: &Path, out: &Out) -> Result<(), Failure> {
    if out.is_json() || !out.is_terminal() {
        let why =
            "`top` needs a terminal, and makes no JSON: `migration watch` and `migration list` are for pipes";
        return Err(Failure::new(Exit::Usage, why));
    }
    let client = Client::connect(socket).await?;
    let feed = Feed::open(&client, socket.to_owned(), None, false).await?;
    let terminal = ratatui::try_init()?;
    let ended = show(terminal, client, feed, socket).await;
    ratatui::try_restore()?;
    ended
}

async fn show(
    mut terminal: DefaultTerminal,
    mut client: Client,
    mut feed: Feed,
    socket: &Path,
) -> Result<(), Failure> {
    let mut board = Board::default();
    let mut events = EventStream::new();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                terminal.draw(|frame| draw::screen(frame, &mut board, Utc::now()))?;
            }
            news = feed.next() => match news? {
                News::Migration(migration) => board.take(*migration),
                News::Lost(why) => board.say(why),
                News::Back => {
                    client = Client::connect(socket).await?;
                    board.say("the daemon is back");
                }
                News::Ended => return Ok(()),
            },
            event = events.next() => match event {
                Some(Ok(Event::Key(event))) => {
                    let Some(key) = keys::key(&event) else { continue };
                    match board.press(key) {
                        Act::None => {}
                        Act::Leave => return Ok(()),
                        Act::Ask(key, id) => {
                            let answer = ask(&client, key, id).await;
                            board.say(answer);
                        }
                    }
                    terminal.draw(|frame| draw::screen(frame, &mut board, Utc::now()))?;
                }
                Some(Ok(_)) => {
                    terminal.draw(|frame| draw::screen(frame, &mut board, Utc::now()))?;
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(()),
            },
        }
    }
}

/// Asks the daemon for what a key means; what it answered, or why it did not, in words.
async fn ask(client: &Client, key: Key, id: String) -> String {
    let answered = match key {
        Key::Pause => client.pause(id).await.map(|said| (said.answer(), said.migration.unwrap_or_default())),
        Key::Resume => {
            client.resume(id).await.map(|said| (said.answer(), said.migration.unwrap_or_default()))
        }
        Key::Sync => task(client, Task::Sync, id).await,
        Key::Cutover => task(client, Task::Cutover, id).await,
        Key::Abort => task(client, Task::AbortCutover, id).await,
        _ => return String::new(),
    };
    match answered {
        Ok((answer, migration)) => {
            format!("{} of {}: {}", key.word(), words::who(&migration), words::answer(answer))
        }
        Err(failure) => format!("{}: {failure}", key.word()),
    }
}

async fn task(client: &Client, task: Task, id: String) -> Result<(Answer, Migration), Failure> {
    let asked = follow::ask(client, &id, task, MigrationsVerifyRequest::default()).await?;
    Ok((asked.answer, asked.migration))
}
