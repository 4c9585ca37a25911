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
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_util::task::AbortOnDropHandle;
use warmd_proto::v1::{Answer, Migration};

use self::{
    board::Board,
    keys::{Act, Key},
};
use super::{
    client::Client,
    failure::{Exit, Failure},
    feed::{Feed, News},
    follow::{self, Order, Task},
    out::Out,
    words,
};

/// How often the screen is drawn anew, changes or not: lags and clocks go on.
const EVERY: Duration = Duration::from_millis(500);

/// News that wait while the screen is drawn.
const WAITING: usize = 64;

/// Shows the screen until it is left.
pub(super) async fn run(socket: &Path, out: &Out) -> Result<(), Failure> {
    if out.is_json() || !out.is_terminal() {
        let why =
            "`top` needs a terminal, and makes no JSON: `migration watch` and `migration list` are for pipes";
        return Err(Failure::new(Exit::Usage, why));
    }
    let client = Client::connect(socket).await?;
    let feed = Feed::open(&client, socket.to_owned(), None, false).await?;
    let (sender, news) = mpsc::channel(WAITING);
    // By itself: a feed that is dropped in the middle of waiting begins anew, and the screen is drawn often.
    let _feeding = AbortOnDropHandle::new(tokio::spawn(pass_on(feed, sender)));
    let terminal = ratatui::try_init()?;
    let ended = show(terminal, news, socket).await;
    ratatui::try_restore()?;
    ended
}

async fn pass_on(mut feed: Feed, to: mpsc::Sender<Result<News, Failure>>) {
    loop {
        let news = feed.next().await;
        let is_last = matches!(news, Ok(News::Ended) | Err(_));
        if to.send(news).await.is_err() || is_last {
            return;
        }
    }
}

async fn show(
    mut terminal: DefaultTerminal,
    mut feed: mpsc::Receiver<Result<News, Failure>>,
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
            news = feed.recv() => match news.transpose()? {
                Some(News::Migration(migration)) => board.take(*migration),
                Some(News::Lost(why)) => board.say(why),
                Some(News::Back) => board.say("the daemon is back"),
                Some(News::Ended) | None => return Ok(()),
            },
            event = events.next() => match event {
                Some(Ok(Event::Key(event))) => {
                    let Some(key) = keys::key(&event) else { continue };
                    match board.press(key) {
                        Act::None => {}
                        Act::Leave => return Ok(()),
                        Act::Ask(key, id) => {
                            let answer = ask(socket, key, id).await;
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
async fn ask(socket: &Path, key: Key, id: String) -> String {
    match answer(socket, key, id).await {
        Ok((answer, migration)) => {
            format!("{} of {}: {}", key.word(), words::who(&migration), words::answer(answer))
        }
        Err(failure) => format!("{}: {failure}", key.word()),
    }
}

async fn answer(socket: &Path, key: Key, id: String) -> Result<(Answer, Migration), Failure> {
    let client = Client::connect(socket).await?;
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
        _ => return Err(Failure::new(Exit::Usage, "the daemon is asked for nothing")),
    };
    let asked = follow::ask(&client, &id, task, Order::default()).await?;
    Ok((asked.answer, asked.migration))
}
