//! Keys and what they mean.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    First,
    Last,
    Details,
    Back,
    Leave,
    Yes,
    Pause,
    Resume,
    Sync,
    Cutover,
    Abort,
}

/// The action after a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyAction {
    None,
    Leave,
    /// Send the request for this migration.
    Ask(Key, String),
}

impl Key {
    /// The request to the daemon.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Sync => "sync",
            Self::Cutover => "cutover",
            Self::Abort => "cutover --abort",
            _ => "",
        }
    }
}

/// The meaning of a key that was pressed, if it has one.
pub(super) fn key(event: &KeyEvent) -> Option<Key> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    if event.modifiers.contains(KeyModifiers::CONTROL) {
        return (event.code == KeyCode::Char('c')).then_some(Key::Leave);
    }
    Some(match event.code {
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        KeyCode::Home | KeyCode::Char('g') => Key::First,
        KeyCode::End | KeyCode::Char('G') => Key::Last,
        KeyCode::Enter | KeyCode::Char('d') => Key::Details,
        KeyCode::Esc => Key::Back,
        KeyCode::Char('q') => Key::Leave,
        KeyCode::Char('y' | 'Y') => Key::Yes,
        KeyCode::Char('p') => Key::Pause,
        KeyCode::Char('r') => Key::Resume,
        KeyCode::Char('s') => Key::Sync,
        KeyCode::Char('c') => Key::Cutover,
        KeyCode::Char('a') => Key::Abort,
        _ => return None,
    })
}
