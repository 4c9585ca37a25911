//! `top`: all migrations on one screen, and keys to steer them.
//!
//! Rule: the terminal is restored whatever happens. What cannot be undone is asked twice, and a key asks for
//! what the command of the same name asks for, no more. Nothing blocks the screen.

mod asking;
mod draw;
mod keys;
mod model;

use std::time::Duration;

use chrono::Utc;
use crossterm::event::{Event, EventStream};
use futures::StreamExt as _;
use ratatui::DefaultTerminal;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_util::task::AbortOnDropHandle;

use self::{asking::RequestSender, keys::KeyAction, model::TopModel};
use super::{
    address::DaemonAddress,
    client::Client,
    failure::{CliFailure, Exit},
    migration_stream::{MigrationStream, StreamItem},
    out::Out,
};

/// How often the screen is drawn again, changes or not: lags and clocks go on.
const EVERY: Duration = Duration::from_millis(500);

/// News that wait while the screen is drawn.
const WAITING: usize = 64;

/// Shows the screen until it is left.
pub(super) async fn run(daemon: &DaemonAddress, out: &Out) -> Result<(), CliFailure> {
    if out.is_json() || !out.is_terminal() {
        let why =
            "`top` needs a terminal, and makes no JSON: `migration watch` and `migration list` are for pipes";
        return Err(CliFailure::new(Exit::Usage, why));
    }
    let client = Client::connect(daemon).await?;
    let feed = MigrationStream::open(&client, daemon.clone(), None, false).await?;
    let (sender, news) = mpsc::channel(WAITING);
    // In a task of its own: a stream that is dropped while it waits begins again, and the screen is drawn
    // often.
    let _feeding = AbortOnDropHandle::new(tokio::spawn(pass_on(feed, sender)));
    let terminal = ratatui::try_init()?;
    let ended = show(terminal, news, daemon).await;
    ratatui::try_restore()?;
    ended
}

async fn pass_on(mut feed: MigrationStream, to: mpsc::Sender<Result<StreamItem, CliFailure>>) {
    loop {
        let news = feed.next().await;
        let is_last = matches!(news, Ok(StreamItem::Ended) | Err(_));
        if to.send(news).await.is_err() || is_last {
            return;
        }
    }
}

async fn show(
    mut terminal: DefaultTerminal,
    mut feed: mpsc::Receiver<Result<StreamItem, CliFailure>>,
    daemon: &DaemonAddress,
) -> Result<(), CliFailure> {
    let mut board = TopModel::default();
    let mut asking = RequestSender::new(daemon.clone());
    let mut events = EventStream::new();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                terminal.draw(|frame| draw::screen(frame, &mut board, Utc::now()))?;
            }
            news = feed.recv() => match news.transpose()? {
                Some(StreamItem::Migration(migration)) => board.take(*migration),
                Some(StreamItem::Lost(why)) => board.say(why),
                Some(StreamItem::Back) => board.say("the daemon is back"),
                Some(StreamItem::Ended) | None => return Ok(()),
            },
            answer = asking.answer() => {
                board.say(answer);
                terminal.draw(|frame| draw::screen(frame, &mut board, Utc::now()))?;
            }
            event = events.next() => match event {
                Some(Ok(Event::Key(event))) => {
                    let Some(key) = keys::key(&event) else { continue };
                    match board.press(key) {
                        KeyAction::None => {}
                        KeyAction::Leave => return Ok(()),
                        KeyAction::Ask(key, id) => board.say(asking.ask(key, id)),
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
