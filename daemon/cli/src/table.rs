//! Tables that fit the screen.
//!
//! Rule: what matters most stays whole longest. Where a table is wider than the screen, first its prose goes
//! over several lines; then its columns give way one after the other, each in its turn: values are cut in the
//! middle, or the column is left out, and a line below says so. Without a screen nothing gives way: a row is
//! a line.

use super::width::{cut, width, wrap_all};

/// Between two columns.
const GAP: usize = 2;

/// A column: its head, and how it gives way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    head: &'static str,
    is_figure: bool,
    /// In which turn its values are cut, and to how many cells at least.
    cut: Option<(u8, usize)>,
    /// In which turn it is left out.
    leave: Option<u8>,
    /// If it is prose: how many cells its lines have at least.
    wrap: Option<usize>,
}

/// How a column gives way.
#[derive(Clone, Copy, Debug)]
enum Step {
    Cut(usize),
    Leave,
}

impl Column {
    /// Words, aligned left.
    pub(super) const fn text(head: &'static str) -> Self {
        Self { head, is_figure: false, cut: None, leave: None, wrap: None }
    }

    /// Figures, aligned right.
    pub(super) const fn figure(head: &'static str) -> Self {
        Self { is_figure: true, ..Self::text(head) }
    }

    /// In its turn (the lowest is the first) it is cut, to no less than so many cells.
    pub(super) const fn cut(self, turn: u8, least: usize) -> Self {
        Self { cut: Some((turn, least)), ..self }
    }

    /// In its turn it is left out.
    pub(super) const fn leave(self, turn: u8) -> Self {
        Self { leave: Some(turn), ..self }
    }

    /// It is prose that goes over several lines of no less than so many cells.
    pub(super) const fn wrap(self, least: usize) -> Self {
        Self { wrap: Some(least), ..self }
    }

    /// What happens to it, and in which turn. No column is narrower than its head.
    fn steps(self) -> impl Iterator<Item = (u8, Step)> {
        let cut = self.cut.map(|(turn, least)| (turn, Step::Cut(least.max(width(self.head)))));
        cut.into_iter().chain(self.leave.map(|turn| (turn, Step::Leave)))
    }
}

/// The widths of a table's columns.
#[derive(Debug)]
pub(super) struct TableLayout<'a, const N: usize> {
    columns: &'a [Column; N],
    /// A column without a width is left out.
    widths: [Option<usize>; N],
    is_limited: bool,
}

/// All lines of a table.
pub(super) fn lines<const N: usize>(
    columns: &[Column; N],
    rows: &[[String; N]],
    screen: Option<usize>,
) -> Vec<String> {
    let mut natural = [0; N];
    for row in rows {
        for (widest, cell) in natural.iter_mut().zip(row) {
            *widest = width(cell).max(*widest);
        }
    }
    let layout = TableLayout::new(columns, natural, screen);
    let mut lines = layout.head();
    lines.extend(rows.iter().flat_map(|row| layout.row(row)));
    lines.extend(layout.left_out());
    lines
}

impl<'a, const N: usize> TableLayout<'a, N> {
    /// For cells of these widths, or wider heads, on a screen of this width.
    pub(super) fn new(columns: &'a [Column; N], cells: [usize; N], screen: Option<usize>) -> Self {
        let mut natural = cells;
        for (widest, column) in natural.iter_mut().zip(columns) {
            *widest = width(column.head).max(*widest);
        }
        let whole = natural.map(Some);
        let widths = match screen {
            Some(screen) if total(&whole) > screen => fit(columns, &natural, screen),
            _ => whole,
        };
        Self { columns, widths, is_limited: screen.is_some() }
    }

    /// The line of heads.
    pub(super) fn head(&self) -> Vec<String> {
        let mut heads = [const { String::new() }; N];
        for (cell, column) in heads.iter_mut().zip(self.columns) {
            column.head.clone_into(cell);
        }
        self.row(&heads)
    }

    /// A row: one line, or more if it has prose that is too long for one.
    pub(super) fn row(&self, cells: &[String; N]) -> Vec<String> {
        let shown = self.columns.iter().zip(&self.widths).zip(cells);
        let shown: Vec<_> = shown
            .filter_map(|((column, width), cell)| {
                let width = (*width)?;
                Some((column, width, self.cell(*column, width, cell)))
            })
            .collect();
        let height = shown.iter().map(|(.., lines)| lines.len()).max().unwrap_or_default();
        (0..height)
            .map(|nth| {
                let mut line = String::new();
                for (column, room, lines) in &shown {
                    let text = lines.get(nth).map_or("", String::as_str);
                    let blank = " ".repeat(room.saturating_sub(width(text)));
                    let parts = if column.is_figure { [&blank, text] } else { [text, &blank] };
                    line.extend(parts);
                    line.push_str(&" ".repeat(GAP));
                }
                line.truncate(line.trim_end().len());
                line
            })
            .collect()
    }

    fn cell(&self, column: Column, width: usize, cell: &str) -> Vec<String> {
        if self.is_limited && column.wrap.is_some() {
            wrap_all(cell, width)
        } else if self.is_limited && column.cut.is_some() {
            vec![cut(cell, width)]
        } else {
            vec![cell.to_owned()]
        }
    }

    /// A line that names the columns that are not shown.
    pub(super) fn left_out(&self) -> Option<String> {
        let missing = self.columns.iter().zip(&self.widths).filter(|(_, width)| width.is_none());
        let names: Vec<_> = missing.map(|(column, _)| column.head).collect();
        (!names.is_empty()).then(|| format!("not shown: {} (--wide shows all)", names.join(", ")))
    }
}

fn total<const N: usize>(widths: &[Option<usize>; N]) -> usize {
    let shown = widths.iter().flatten();
    shown.clone().sum::<usize>() + GAP * shown.count().saturating_sub(1)
}

/// Widths for a table that is too wide.
fn fit<const N: usize>(columns: &[Column; N], natural: &[usize; N], screen: usize) -> [Option<usize>; N] {
    let mut widths = natural.map(Some);
    let mut prose = Vec::new();
    for (index, column) in columns.iter().enumerate() {
        if let Some(least) = column.wrap {
            widths[index] = Some(natural[index].min(least.max(width(column.head))));
            prose.push(index);
        }
    }
    let of = |(index, column): (usize, &Column)| column.steps().map(move |(turn, step)| (turn, index, step));
    let mut steps: Vec<_> = columns.iter().enumerate().flat_map(of).collect();
    steps.sort_by_key(|(turn, ..)| *turn);
    for (_, index, step) in &steps {
        let excess = total(&widths).saturating_sub(screen);
        if excess == 0 {
            break;
        }
        widths[*index] = match step {
            Step::Cut(least) => widths[*index].map(|now| now.saturating_sub(excess).max(*least).min(now)),
            Step::Leave => None,
        };
    }
    // What a column that was left out made free goes to those that were cut, the most important first; the
    // rest to the prose, evenly.
    let mut free = screen.saturating_sub(total(&widths));
    for (_, index, _) in steps.iter().rev() {
        if let Some(width) = widths[*index].as_mut().filter(|_| columns[*index].cut.is_some()) {
            let more = free.min(natural[*index].saturating_sub(*width));
            *width += more;
            free -= more;
        }
    }
    while free > 0 {
        let before = free;
        for index in &prose {
            if let Some(width) = &mut widths[*index]
                && free > 0
                && *width < natural[*index]
            {
                *width += 1;
                free -= 1;
            }
        }
        if free == before {
            break;
        }
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 5] = [
        Column::text("NAME").cut(3, 6),
        Column::figure("SIZE"),
        Column::text("PLAN").leave(2),
        Column::text("PLACE").cut(1, 9),
        Column::text("WHY").wrap(12),
    ];

    fn rows() -> Vec<[String; 5]> {
        let row = |cells: [&str; 5]| cells.map(str::to_owned);
        vec![
            row([
                "データベース-1",
                "1.00 GiB",
                "nightly",
                "/srv/vms/shop/vda.img",
                "a backup job runs on the VM",
            ]),
            row(["web", "12 B", "web", "/srv/b", "-"]),
        ]
    }

    #[test]
    fn without_a_screen_a_row_is_a_line() {
        assert_eq!(
            lines(&COLUMNS, &rows(), None),
            [
                "NAME                SIZE  PLAN     PLACE                  WHY",
                "データベース-1  1.00 GiB  nightly  /srv/vms/shop/vda.img  a backup job runs on the VM",
                "web                 12 B  web      /srv/b                 -",
            ]
        );
        assert_eq!(lines(&COLUMNS, &rows(), Some(200)), lines(&COLUMNS, &rows(), None));
    }

    #[test]
    fn what_matters_least_gives_way_first() {
        assert_eq!(
            lines(&COLUMNS, &rows(), Some(74)),
            [
                "NAME                SIZE  PLAN     PLACE                  WHY",
                "データベース-1  1.00 GiB  nightly  /srv/vms/shop/vda.img  a backup job",
                "                                                          runs on the VM",
                "web                 12 B  web      /srv/b                 -",
            ]
        );
        assert_eq!(
            lines(&COLUMNS, &rows(), Some(60)),
            [
                "NAME                SIZE  PLAN     PLACE        WHY",
                "データベース-1  1.00 GiB  nightly  /srv/…a.img  a backup job",
                "                                                runs on the",
                "                                                VM",
                "web                 12 B  web      /srv/b       -",
            ]
        );
        assert_eq!(
            lines(&COLUMNS, &rows(), Some(50)),
            [
                "NAME                SIZE  PLACE       WHY",
                "データベース-1  1.00 GiB  /srv/….img  a backup job",
                "                                      runs on the",
                "                                      VM",
                "web                 12 B  /srv/b      -",
                "not shown: PLAN (--wide shows all)",
            ]
        );
    }

    #[test]
    fn nothing_is_wider_than_the_screen_while_it_can_fit() {
        for screen in 0..130 {
            let lines = lines(&COLUMNS, &rows(), Some(screen));
            let widest = lines.iter().map(|line| width(line)).max().unwrap_or_default();
            // 6 + 8 + 9 + 12 and three gaps is the least that this table needs.
            assert!(widest <= screen.max(41), "{screen}: {lines:#?}");
        }
    }
}
