//! [`Table`]: rows for people, as wide as the terminal, batch by batch.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use arrow::array::RecordBatch;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ColumnConstraint, Row, Table as Grid, TableComponent, Width};

use crate::encode::flatten::{Leaf, leaves};
use crate::error::Result;

/// What a column gets before the others have what they need.
const CELL_WIDTH_MAX: usize = 40;

/// A narrower column says nothing.
const CELL_WIDTH_MIN: usize = 8;

/// Characters of a cell that are looked at. It does not matter where nobody can see them.
const CELL_CHARS_MAX: usize = 10_000;

/// Between two columns.
const GAP: usize = 2;

/// Columns that are shown once there is something in them.
const QUIET: [&str; 3] = ["key", "headers", "error"];

/// See the top of this file. It remembers what it has shown, so that the columns of batches stand below one another.
#[derive(Debug, Default)]
pub struct Table {
    /// Of the terminal, if there is one.
    width: Option<usize>,
    /// The user has named the columns, so all of them are shown.
    is_picked: bool,
    shown: Vec<String>,
    widths: HashMap<String, usize>,
    /// Quiet columns that have had something.
    seen: HashSet<String>,
    left_out: Vec<String>,
}

/// What is to be written of a batch.
#[derive(Debug, Default)]
pub struct Printed {
    /// Lines for stdout.
    pub text: String,
    /// The columns for which there is no room, when they have changed.
    pub left_out: Option<Vec<String>>,
}

impl Table {
    /// For a terminal of `width`.
    pub fn new(width: Option<usize>, is_picked: bool) -> Self {
        Self { width, is_picked, ..Self::default() }
    }

    /// Whether nothing was shown yet.
    pub fn is_new(&self) -> bool {
        self.shown.is_empty()
    }

    /// The rows of `batch`, below a header where the columns are not those of the batch before.
    ///
    /// # Errors
    /// A type that cannot be written.
    pub fn print(&mut self, batch: &RecordBatch) -> Result<Printed> {
        let leaves: Vec<Leaf> = leaves(batch).into_iter().filter(|leaf| self.wants(leaf)).collect();
        let mut grid = grid(&leaves, batch.num_rows())?;
        let widths: Vec<usize> = grid
            .column_max_content_widths()
            .into_iter()
            .zip(&leaves)
            .map(|(width, leaf)| {
                usize::from(width).max(self.widths.get(&leaf.name).copied().unwrap_or(0))
            })
            .collect();
        let room = self.room(&leaves, &widths);
        let mut shown = Vec::new();
        let mut left_out = Vec::new();
        for ((nth, leaf), width) in leaves.iter().enumerate().zip(&room) {
            let Some(column) = grid.column_mut(nth) else { continue };
            column.set_padding((0, GAP as u16));
            if leaf.array.data_type().is_numeric() {
                column.set_cell_alignment(CellAlignment::Right);
            }
            let Some(width) = width else {
                column.set_constraint(ColumnConstraint::Hidden);
                left_out.push(leaf.name.clone());
                continue;
            };
            let with_gap = u16::try_from(width + GAP).unwrap_or(u16::MAX);
            column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(with_gap)));
            shown.push(leaf.name.clone());
            self.widths.insert(leaf.name.clone(), *width);
        }
        let skipped = if shown == self.shown { 2 } else { 0 };
        let mut text = String::new();
        if skipped == 0 && !self.shown.is_empty() {
            text.push('\n');
        }
        write_lines(&grid, skipped, self.width, &mut text);
        self.shown = shown;
        let is_news = left_out != self.left_out && !left_out.is_empty();
        self.left_out.clone_from(&left_out);
        Ok(Printed { text, left_out: is_news.then_some(left_out) })
    }

    fn wants(&mut self, leaf: &Leaf) -> bool {
        let name = leaf.name.strip_prefix('_').unwrap_or(&leaf.name);
        // The topic is the one that was asked for.
        if self.is_picked || !(name == "topic" || QUIET.contains(&first(name))) {
            return true;
        }
        if name == "topic" {
            return false;
        }
        self.seen.contains(&leaf.name) || (!leaf.is_empty() && self.seen.insert(leaf.name.clone()))
    }

    /// How wide each column is; `None` for those that are left out.
    fn room(&self, leaves: &[Leaf], widths: &[usize]) -> Vec<Option<usize>> {
        let Some(mut left) = self.width else { return widths.iter().copied().map(Some).collect() };
        left += GAP;
        let mut order: Vec<usize> = (0..leaves.len()).collect();
        // What went wrong is never left out for what went well.
        let is_error =
            |nth: &usize| leaves.get(*nth).is_some_and(|leaf| leaf.name.ends_with("error.message"));
        order.sort_by_key(|nth| !is_error(nth));
        let mut room = vec![None; leaves.len()];
        for nth in order.iter().copied() {
            let wanted = widths.get(nth).copied().unwrap_or(0).min(CELL_WIDTH_MAX);
            let got = match left.checked_sub(wanted + GAP) {
                Some(_) => wanted,
                None if left >= CELL_WIDTH_MIN.min(wanted) + GAP => left - GAP,
                None => continue,
            };
            left -= got + GAP;
            if let Some(place) = room.get_mut(nth) {
                *place = Some(got);
            }
        }
        for (place, width) in room.iter_mut().zip(widths) {
            if let Some(place) = place {
                let more = width.saturating_sub(*place).min(left);
                *place += more;
                left -= more;
            }
        }
        room
    }
}

fn first(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn grid(leaves: &[Leaf], rows: usize) -> Result<Grid> {
    let mut grid = new_grid(leaves.iter().map(|leaf| leaf.name.clone()));
    let mut columns =
        leaves.iter().map(|leaf| Ok((leaf, leaf.cells()?))).collect::<Result<Vec<_>>>()?;
    for row in 0..rows {
        let cells = columns.iter_mut().map(|(leaf, cells)| {
            if leaf.is_null(row) {
                return String::new();
            }
            match cells.text(row) {
                Ok(text) => visible(&text),
                Err(bytes) => hexadecimal(&bytes),
            }
        });
        add(&mut grid, cells);
    }
    Ok(grid)
}

fn new_grid(header: impl Iterator<Item = String>) -> Grid {
    let mut grid = Grid::new();
    grid.load_preset(NOTHING).set_style(TableComponent::HeaderLines, '─');
    // Lines are cut where they end, not between two words. No cell has this character, see `visible`.
    grid.set_delimiter('\0').set_truncation_indicator("…");
    let mut header = Row::from(header.map(|name| visible(&name)).collect::<Vec<_>>());
    header.max_height(1);
    grid.set_header(header);
    grid
}

fn add(grid: &mut Grid, cells: impl Iterator<Item = String>) {
    let mut row = Row::from(cells.collect::<Vec<_>>());
    row.max_height(1);
    grid.add_row(row);
}

/// A whole table of texts; its last column is cut where the terminal ends.
pub fn simple(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let mut grid = new_grid(header.iter().map(|name| (*name).to_owned()));
    for row in rows {
        add(&mut grid, row.iter().map(|text| visible(text)));
    }
    let widths = grid.column_max_content_widths();
    let mut left = width.unwrap_or(usize::MAX);
    let total = left;
    for (nth, width) in widths.into_iter().enumerate() {
        let Some(column) = grid.column_mut(nth) else { continue };
        column.set_padding((0, GAP as u16));
        let width = usize::from(width).min(left.max(CELL_WIDTH_MIN));
        left = left.saturating_sub(width + GAP);
        let with_gap = u16::try_from(width + GAP).unwrap_or(u16::MAX);
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(with_gap)));
    }
    let mut text = String::new();
    write_lines(&grid, 0, Some(total), &mut text);
    text
}

/// Appends the lines behind the first `skipped` ones. The gap behind the last column is not seen, not even in the line
/// below the header.
fn write_lines(grid: &Grid, skipped: usize, width: Option<usize>, text: &mut String) {
    for (nth, line) in grid.lines().enumerate().skip(skipped) {
        let cut = if nth == 1 { width } else { None };
        let end = cut.and_then(|width| line.char_indices().nth(width));
        let line = end.and_then(|(end, _)| line.get(..end)).unwrap_or(&line);
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

/// What a terminal may be sent: whoever writes a topic must not steer the terminal of who reads it.
fn visible(text: &str) -> String {
    let is_invisible = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::new();
    for c in text.chars().take(CELL_CHARS_MAX) {
        match is_invisible(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut shown = "0x".to_owned();
    for byte in bytes.iter().take(CELL_CHARS_MAX / 2) {
        let _ = write!(shown, "{byte:02x}");
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray};

    use super::*;

    fn batch(offsets: &[i64], texts: &[&str], key: Option<&[u8]>) -> RecordBatch {
        let keys: ArrayRef = Arc::new(BinaryArray::from(vec![key; offsets.len()]));
        let offsets: ArrayRef = Arc::new(Int64Array::from(offsets.to_vec()));
        let topics: ArrayRef = Arc::new(StringArray::from(vec!["t"; texts.len()]));
        let texts: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        let columns = [("_topic", topics), ("_offset", offsets), ("_key", keys), ("text", texts)];
        RecordBatch::try_from_iter(columns).expect("a batch")
    }

    #[test]
    fn batches_stand_below_one_another() {
        let mut table = Table::new(Some(24), false);
        let first = table.print(&batch(&[1, 10], &["short", "a b\u{1b}[2J"], None)).expect("rows");
        assert_eq!(
            first.text,
            "_offset  text\n───────────────────────\n      1  short\n     10  a b\\u{1b}[2J\n"
        );
        assert_eq!(first.left_out, None);
        let next = table.print(&batch(&[11], &["much too long for this"], None)).expect("rows");
        assert_eq!(next.text, "     11  much too long …\n");
        // A key is there, so there is a column more, and less room.
        let next = table.print(&batch(&[12], &["x"], Some(b"\xff\x00"))).expect("rows");
        let header = next.text.lines().nth(1).expect("a header");
        assert!(header.starts_with("_offset  _key") && next.text.contains("0xff00"), "{next:?}");
        assert!(next.text.lines().all(|line| line.chars().count() <= 24), "{next:?}");
    }

    #[test]
    fn columns_without_room_are_named() {
        let mut table = Table::new(Some(9), true);
        let printed = table.print(&batch(&[1], &["short"], None)).expect("rows");
        assert_eq!(printed.left_out, Some(["_offset", "_key", "text"].map(str::to_owned).to_vec()));
        let again = table.print(&batch(&[2], &["short"], None)).expect("rows");
        assert_eq!(again.left_out, None);
        let mut whole = Table::new(None, true);
        let long = "x".repeat(300);
        let printed = whole.print(&batch(&[1], &[&long], Some(b"k"))).expect("rows");
        assert!(printed.text.contains(&long), "nothing is cut where there is no terminal");
    }
}
