//! The screen: a head, the table, the chosen migration, and a line for keys and answers. It fits 80×24.

use chrono::{DateTime, Utc};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState, Wrap},
};
use warmd_core::format;
use warmd_proto::v1::{Forecast, Migration, MigrationState};

use super::{
    super::{labels, out::one_line, show, width::cut},
    model::{TopModel, alarms},
};

const KEYS: &str = "↑↓ choose  ⏎ details  s sync  p pause  r resume  c cutover  a abort  q quit";

/// Lines of the chosen migration below the table.
const BELOW: u16 = 8;

/// Draws the whole screen.
pub(super) fn screen(frame: &mut Frame<'_>, board: &mut TopModel, now: DateTime<Utc>) {
    board.drawn();
    let whole = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(if board.details { 0 } else { BELOW }),
        Constraint::Length(1),
        Constraint::Length(1),
    ]);
    let [head, middle, below, said, keys] = whole.areas(frame.area());
    frame.render_widget(Line::styled(summary(board, now), Style::new().add_modifier(Modifier::BOLD)), head);
    if board.details {
        details(frame, board, middle, now);
    } else {
        table(frame, board, middle, now);
        details(frame, board, below, now);
    }
    let style = if board.asks() { Style::new().fg(Color::Black).bg(Color::Yellow) } else { Style::new() };
    frame.render_widget(Line::styled(one_line(&board.line()), style), said);
    frame.render_widget(Line::styled(KEYS, Style::new().fg(Color::DarkGray)), keys);
}

fn summary(board: &TopModel, now: DateTime<Utc>) -> String {
    let rows = board.rows();
    let count = |test: &dyn Fn(&Migration) -> bool| rows.iter().filter(|row| test(row)).count();
    let rate: f64 = rows.iter().filter_map(|row| show::rate(row)).sum();
    let mut parts = vec![
        labels::count(rows.len(), "migration"),
        format!("{} copying", count(&show::is_copying)),
        format!("{} synced", count(&|row| row.state() == MigrationState::Synced)),
        format::rate(rate),
        format!("{} done", count(&|row| row.state() == MigrationState::Done)),
    ];
    let alarms = count(&alarms);
    if alarms > 0 {
        parts.insert(1, format!("{alarms} TO LOOK AT"));
    }
    format!("warmd  {}  {}", now.format("%H:%M:%S UTC"), parts.join("  "))
}

fn table(frame: &mut Frame<'_>, board: &TopModel, area: Rect, now: DateTime<Utc>) {
    let rows = board.rows();
    let widths = [
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Length(17),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(7),
    ];
    let rooms = Layout::horizontal(widths).spacing(1).split(area);
    let room = |column: usize| rooms.get(column).map_or(0, |room| usize::from(room.width));
    let lines = rows.iter().map(|migration| {
        let cells = [
            migration.vm_name.clone(),
            migration.plan.clone(),
            labels::state(migration),
            show::pass(migration),
            show::rate(migration).map_or_else(|| "-".to_owned(), format::rate),
            board.lag(migration, now).map_or_else(|| "-".to_owned(), format::span),
            downtime(migration),
            window(migration, now),
        ];
        let cells = cells.into_iter().enumerate();
        Row::new(cells.map(|(column, cell)| Cell::from(cut(&one_line(&cell), room(column)))))
            .style(colour(migration))
    });
    let heads = Row::new(["VM", "PLAN", "STATE", "PASS", "RATE", "LAG", "DOWNTIME", "WINDOW"])
        .style(Style::new().add_modifier(Modifier::UNDERLINED));
    let table = Table::new(lines, widths)
        .header(heads)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected((!rows.is_empty()).then(|| board.at()));
    frame.render_stateful_widget(table, area, &mut state);
    if rows.is_empty() {
        let none = "No migrations: `warmctl plan apply -f PLAN.toml` begins them.";
        frame.render_widget(Line::raw(none), area.centered_vertically(Constraint::Length(1)));
    }
}

/// The chosen migration at a glance.
fn details(frame: &mut Frame<'_>, board: &TopModel, area: Rect, now: DateTime<Utc>) {
    let Some(migration) = board.chosen() else {
        return;
    };
    let mut lines = show::frame([migration]);
    let mut add = |name: &str, text: String| lines.push(one_line(&format!("{name}: {text}")));
    for disk in &migration.disks {
        if let Some(fault) = &disk.tracking_fault {
            add(&disk.key, format!("CHANGE TRACKING CANNOT BE TRUSTED: {fault}"));
        }
    }
    if let Some(waiting) = &migration.waiting {
        add("waits", show::waiting(migration).unwrap_or_default());
        add("what to do", waiting.advice.clone());
    }
    if let Some(why) = migration.next_pass_why.as_ref().filter(|_| migration.next_pass.is_none()) {
        add("waits because", why.clone());
    }
    if let Some(awaited) = &migration.scheduled_cutover {
        add("cutover", show::awaited(awaited));
    }
    if let Some(forecast) = migration.forecast.as_ref().filter(|_| show::may_cut_over(migration)) {
        add("forecast", foretold(forecast, now));
    }
    for warning in &migration.warnings {
        add("warning", warning.clone());
    }
    if !show::is_copying(migration) {
        for disk in &migration.disks {
            let (size, pending) = (format::bytes(disk.size_bytes), format::bytes(disk.pending_bytes));
            add(&disk.key, format!("{size}, {pending} pending, {}", disk.location));
        }
    }
    if let Some(result) = migration.verification.as_ref().and_then(|run| run.result.as_ref()) {
        add("verification", show::result(result));
    }
    if let Some(line) = migration.pass.as_ref().and_then(bottleneck) {
        add("waits for", line);
    }
    add("id", migration.id.clone());
    let block = Block::new().borders(Borders::TOP);
    let text: Vec<_> = lines.into_iter().map(Line::raw).collect();
    frame.render_widget(Paragraph::new(text).block(block).wrap(Wrap { trim: false }), area);
}

/// Its downtime; a mark says that the plan's limit, or the window, would be exceeded.
fn downtime(migration: &Migration) -> String {
    let expected = labels::span(migration.downtime_forecast.as_ref());
    let is_against = migration.forecast.as_ref().is_some_and(|forecast| !forecast.against.is_empty());
    if is_against && show::may_cut_over(migration) { format!("{expected}!") } else { expected }
}

/// Whether a cutover may begin now, or the time until then.
fn window(migration: &Migration, now: DateTime<Utc>) -> String {
    let forecast = migration.forecast.as_ref().filter(|_| show::may_cut_over(migration));
    match forecast.and_then(|forecast| labels::at(forecast.at.as_ref())) {
        None => "-".to_owned(),
        Some(opens) if opens <= now => "open".to_owned(),
        Some(opens) => format::span((opens - now).as_seconds_f64()),
    }
}

/// `down for 8.0 s to 20 s from now on, fits`.
fn foretold(forecast: &Forecast, now: DateTime<Utc>) -> String {
    let [low, high] =
        [&forecast.downtime_low, &forecast.downtime_high].map(|span| labels::span(span.as_ref()));
    let from = match labels::at(forecast.at.as_ref()) {
        Some(opens) if opens > now => format!("from {} (UTC) on", labels::moment(forecast.at.as_ref())),
        _ => "from now on".to_owned(),
    };
    let fits = if forecast.against.is_empty() {
        "fits".to_owned()
    } else {
        format!("DOES NOT FIT: {}", forecast.against.join("; "))
    };
    format!("down for {low} to {high} {from}, {fits}")
}

fn bottleneck(pass: &warmd_proto::v1::Pass) -> Option<String> {
    let of = |disk: &warmd_proto::v1::DiskPass| Some(format!("{} {}", disk.key, show::bottleneck(disk)?));
    let all: Vec<_> = pass.disks.iter().filter_map(of).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn colour(migration: &Migration) -> Style {
    match migration.state() {
        _ if alarms(migration) => Style::new().fg(Color::Red),
        MigrationState::CuttingOver => Style::new().fg(Color::Yellow),
        MigrationState::Done => Style::new().fg(Color::Green),
        MigrationState::Cancelled | MigrationState::Paused => Style::new().fg(Color::DarkGray),
        _ => Style::new(),
    }
}

#[cfg(test)]
mod tests;
