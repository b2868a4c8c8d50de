//! [`Table`]: rows for people, as wide as the terminal, batch by batch.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, FieldRef, Schema};
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

/// Lines of a cell that are shown.
const CELL_LINES_MAX: usize = 100;

/// Columns that are shown once there is something in them.
const QUIET: [&str; 3] = ["key", "headers", "error"];

/// What the fields of a payload begin with.
const PAYLOAD: &str = "payload.";

/// The columns of what DuckDB answers to EXPLAIN.
const PLAN: [&str; 2] = ["explain_key", "explain_value"];

/// What rows are of, which decides the columns that are shown, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowsOf {
    /// Columns that the user has named: all of them.
    #[default]
    Columns,
    /// A topic: without the topic, and without key, headers and error as long as there is nothing in them.
    Topic,
    /// A statement in SQL: without the envelope's key, headers and error as long as there is nothing in them. A text of
    /// several lines takes as many.
    Statement,
}

/// See the top of this file. It remembers what it has shown, so that the columns of batches stand below one another.
#[derive(Debug, Default)]
pub struct Table {
    /// Of the terminal, if there is one.
    width: Option<usize>,
    of: RowsOf,
    /// Fields of payloads go by their own names, because there is no room for longer ones.
    is_short: bool,
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
    pub fn new(width: Option<usize>, of: RowsOf) -> Self {
        Self { width, of, ..Self::default() }
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
        let mut leaves = self.wanted(batch);
        let mut grid = self.grid(&leaves, batch.num_rows())?;
        let mut widths = self.widths(&grid, &leaves);
        if self.of == RowsOf::Statement && !self.is_short && self.is_narrow(&widths) {
            self.is_short = true;
            shorten(&mut leaves, batch.schema_ref());
            grid = self.grid(&leaves, batch.num_rows())?;
            widths = self.widths(&grid, &leaves);
        }
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

    /// The columns to show.
    fn wanted(&mut self, batch: &RecordBatch) -> Vec<Leaf> {
        let all = leaves(batch);
        let is_wanted: Vec<bool> =
            all.iter().map(|leaf| self.wants(leaf, batch.schema_ref())).collect();
        // Who asks for nothing but quiet columns wants to see them.
        let is_any = is_wanted.contains(&true);
        let wanted = all.into_iter().zip(is_wanted).filter(|(_, is_wanted)| *is_wanted || !is_any);
        let mut wanted: Vec<Leaf> = wanted.map(|(leaf, _)| leaf).collect();
        if self.is_short {
            shorten(&mut wanted, batch.schema_ref());
        }
        wanted
    }

    fn wants(&mut self, leaf: &Leaf, schema: &Schema) -> bool {
        let is_quiet = match self.of {
            RowsOf::Columns => false,
            RowsOf::Topic => match leaf.name.strip_prefix('_').unwrap_or(&leaf.name) {
                // It is the one that was asked for.
                "topic" => return false,
                name => QUIET.contains(&first(name)),
            },
            RowsOf::Statement => is_of_envelope(first(&leaf.name), schema),
        };
        !is_quiet
            || self.seen.contains(&leaf.name)
            || (!leaf.is_empty() && self.seen.insert(leaf.name.clone()))
    }

    fn grid(&self, leaves: &[Leaf], rows: usize) -> Result<Grid> {
        grid(leaves, rows, self.of == RowsOf::Statement)
    }

    /// What columns want, now and before.
    fn widths(&self, grid: &Grid, leaves: &[Leaf]) -> Vec<usize> {
        let before = |leaf: &Leaf| self.widths.get(&leaf.name).copied().unwrap_or(0);
        let now = grid.column_max_content_widths().into_iter().map(usize::from);
        now.zip(leaves).map(|(width, leaf)| width.max(before(leaf))).collect()
    }

    /// Whether the terminal has no room for all that is in the columns.
    fn is_narrow(&self, widths: &[usize]) -> bool {
        let wanted: usize = widths.iter().map(|width| width + GAP).sum();
        self.width.is_some_and(|width| wanted > width + GAP)
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

/// Whether a column is one of a topic's [quiet](QUIET) ones, and not another one of the same name.
fn is_of_envelope(name: &str, schema: &Schema) -> bool {
    let type_of = |name| schema.field_with_name(name).ok().map(|field| field.data_type());
    let is_struct = |of: &DataType, names: &[&str]| match of {
        DataType::Struct(fields) => fields.iter().map(|field| field.name()).eq(names),
        _ => false,
    };
    let is_error =
        || type_of("error").is_some_and(|of| is_struct(of, &["message", "key", "payload"]));
    let is_headers = || match type_of("headers") {
        Some(DataType::List(item)) => is_struct(item.data_type(), &["key", "value"]),
        _ => false,
    };
    match name {
        // Keys may be decoded, so only what is beside one says whose it is.
        "key" => type_of("key") == Some(&DataType::Binary) || (is_headers() && is_error()),
        "headers" => is_headers(),
        "error" => is_error(),
        _ => false,
    }
}

/// Gives fields of payloads their own names, unless other columns have them, shown or not.
fn shorten(leaves: &mut [Leaf], schema: &Schema) {
    let columns = schema.fields().iter().map(|field| field.name().clone());
    let taken: HashSet<String> =
        leaves.iter().map(|leaf| leaf.name.clone()).chain(columns).collect();
    for leaf in leaves {
        if let Some(own) = leaf.name.strip_prefix(PAYLOAD)
            && !own.is_empty()
            && !taken.contains(own)
        {
            leaf.name = own.to_owned();
        }
    }
}

/// Whether rows are what DuckDB answers to EXPLAIN.
pub fn is_plan(schema: &Schema) -> bool {
    let is_text = |(field, name): (&FieldRef, &&str)| {
        field.name() == name && field.data_type() == &DataType::Utf8
    };
    schema.fields().len() == PLAN.len() && schema.fields().iter().zip(&PLAN).all(is_text)
}

/// The plans in rows of EXPLAIN, as DuckDB draws them, and whether they are wider than the terminal; then they are cut.
pub fn plans(batch: &RecordBatch, width: Option<usize>) -> (String, bool) {
    let (mut text, mut is_cut) = (String::new(), false);
    let plans = batch.column_by_name(PLAN[1]).and_then(|column| column.as_string_opt::<i32>());
    for line in plans.into_iter().flatten().flatten().flat_map(str::lines) {
        let line = visible(line);
        let line = line.trim_end();
        match width.filter(|width| line.chars().count() > *width) {
            None => text.push_str(line),
            Some(width) => {
                is_cut = true;
                text.extend(line.chars().take(width.saturating_sub(1)).chain(['…']));
            }
        }
        text.push('\n');
    }
    (text, is_cut)
}

/// Where `has_lines`, a row has as many lines as its longest cell, else one.
fn grid(leaves: &[Leaf], rows: usize, has_lines: bool) -> Result<Grid> {
    let mut grid = new_grid(leaves.iter().map(|leaf| leaf.name.clone()));
    let mut columns =
        leaves.iter().map(|leaf| Ok((leaf, leaf.cells()?))).collect::<Result<Vec<_>>>()?;
    for row in 0..rows {
        let cells = columns.iter_mut().map(|(leaf, cells)| {
            if leaf.is_null(row) {
                return Vec::new();
            }
            match cells.text(row) {
                Ok(text) if has_lines => lines(&text),
                Ok(text) => vec![visible(&text)],
                Err(bytes) => vec![hexadecimal(&bytes)],
            }
        });
        let mut cells: Vec<_> = cells.map(Vec::into_iter).collect();
        let height = cells.iter().map(ExactSizeIterator::len).max().unwrap_or(0).max(1);
        for _ in 0..height {
            add(&mut grid, cells.iter_mut().map(|lines| lines.next().unwrap_or_default()));
        }
    }
    Ok(grid)
}

/// The lines of a text.
fn lines(text: &str) -> Vec<String> {
    let mut all = text.lines();
    let mut lines: Vec<String> = all.by_ref().take(CELL_LINES_MAX).map(visible).collect();
    if all.next().is_some() {
        lines.push("…".to_owned());
    }
    lines
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

    use arrow::array::{
        Array, ArrayRef, BinaryArray, Int64Array, ListArray, StringArray, StructArray,
    };
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::Field;

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
        let mut table = Table::new(Some(24), RowsOf::Topic);
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

    /// A batch as `select *` has it, with these bytes as the key.
    fn selected(key: Option<&[u8]>, header: Option<&str>) -> RecordBatch {
        let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![key]));
        let of = |name: &str, array: &ArrayRef| {
            (Arc::new(Field::new(name, array.data_type().clone(), true)), array.clone())
        };
        let texts: ArrayRef = Arc::new(StringArray::from(vec![header]));
        let header: ArrayRef =
            Arc::new(StructArray::from(vec![of("key", &texts), of("value", &bytes)]));
        let item = Arc::new(Field::new("l", header.data_type().clone(), true));
        let count = i32::from(texts.null_count() == 0);
        let headers: ArrayRef = Arc::new(ListArray::new(
            item,
            OffsetBuffer::new(vec![0, count].into()),
            header.slice(0, count as usize),
            None,
        ));
        let no_text: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>]));
        let no_bytes: ArrayRef = Arc::new(BinaryArray::from(vec![None::<&[u8]>]));
        let errors: ArrayRef = Arc::new(StructArray::from(vec![
            of("message", &no_text),
            of("key", &no_bytes),
            of("payload", &no_bytes),
        ]));
        let prices: ArrayRef = Arc::new(Int64Array::from(vec![7]));
        let payloads: ArrayRef =
            Arc::new(StructArray::from(vec![of("price", &prices), of("key", &prices)]));
        let offsets: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        RecordBatch::try_from_iter_with_nullable([
            ("offset", offsets, true),
            ("key", bytes, true),
            ("headers", headers, true),
            ("payload", payloads, true),
            ("error", errors, true),
        ])
        .expect("a batch")
    }

    fn header(text: &str) -> Vec<&str> {
        text.lines().find(|line| !line.is_empty()).unwrap_or_default().split_whitespace().collect()
    }

    #[test]
    fn statements_have_no_empty_columns_of_topics() {
        let mut table = Table::new(None, RowsOf::Statement);
        let printed = table.print(&selected(None, None)).expect("rows");
        assert_eq!(header(&printed.text), ["offset", "payload.price", "payload.key"]);
        let printed = table.print(&selected(Some(b"k"), Some("h"))).expect("rows");
        assert_eq!(
            header(&printed.text),
            ["offset", "key", "headers", "payload.price", "payload.key"]
        );
        assert!(printed.text.contains(r#"[{"key":"h","value":"k"}]"#), "{printed:?}");
        // Other columns may have these names, and may be all that there is.
        let texts: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>]));
        let others = ["key", "headers", "error"].map(|name| (name, texts.clone(), true));
        let others = RecordBatch::try_from_iter_with_nullable(others).expect("a batch");
        let printed = Table::new(None, RowsOf::Statement).print(&others).expect("rows");
        assert_eq!(header(&printed.text), ["key", "headers", "error"]);
        let alone = selected(None, None).project(&[1]).expect("a column");
        let printed = Table::new(None, RowsOf::Statement).print(&alone).expect("rows");
        assert_eq!(header(&printed.text), ["key"]);
        let picked = Table::new(None, RowsOf::Columns).print(&selected(None, None)).expect("rows");
        assert!(header(&picked.text).contains(&"error.message"), "{picked:?}");
    }

    #[test]
    fn payloads_go_by_short_names_where_it_is_narrow() {
        let wide = Table::new(Some(34), RowsOf::Statement).print(&selected(None, None));
        assert_eq!(header(&wide.expect("rows").text), ["offset", "payload.price", "payload.key"]);
        let mut table = Table::new(Some(33), RowsOf::Statement);
        for _ in 0..2 {
            let narrow = table.print(&selected(None, None)).expect("rows");
            assert_eq!((narrow.left_out, table.is_short), (None, true));
        }
        assert_eq!(
            table.shown,
            ["offset", "price", "payload.key"],
            "one of the names is a column's, though it is not shown"
        );
    }

    #[test]
    fn texts_of_statements_have_lines() {
        let rows = batch(&[1, 2], &["a\nb\r\n\u{1b}c\n", ""], None);
        let mut table = Table::new(None, RowsOf::Statement);
        let printed = table.print(&rows.project(&[1, 3]).expect("columns")).expect("rows");
        assert_eq!(
            printed.text,
            "_offset  text\n──────────────────\n      1  a\n         b\n         \\u{1b}c\n      2\n"
        );
        let long = "x\n".repeat(CELL_LINES_MAX + 1);
        let printed = Table::new(None, RowsOf::Statement).print(&batch(&[1], &[&long], None));
        let text = printed.expect("rows").text;
        assert_eq!(text.lines().count(), 2 + CELL_LINES_MAX + 1);
        assert!(text.trim_end().ends_with('…'), "{text}");
        // One record of a topic is one line.
        let printed = Table::new(None, RowsOf::Topic).print(&rows).expect("rows");
        assert_eq!(printed.text.lines().count(), 4, "{printed:?}");
    }

    #[test]
    fn plans_are_drawn() {
        let keys: ArrayRef = Arc::new(StringArray::from(vec!["physical_plan"]));
        let plan: ArrayRef = Arc::new(StringArray::from(vec!["╭─ Scan ─╮\n╰────────╯\n"]));
        let batch = RecordBatch::try_from_iter([("explain_key", keys), ("explain_value", plan)]);
        let batch = batch.expect("a batch");
        assert!(is_plan(batch.schema_ref()));
        assert!(!is_plan(&batch.schema_ref().project(&[1]).expect("a column")));
        assert_eq!(plans(&batch, None), ("╭─ Scan ─╮\n╰────────╯\n".to_owned(), false));
        assert!(!plans(&batch, Some(10)).1);
        assert_eq!(plans(&batch, Some(8)), ("╭─ Scan…\n╰──────…\n".to_owned(), true));
    }

    #[test]
    fn columns_without_room_are_named() {
        let mut table = Table::new(Some(9), RowsOf::Columns);
        let printed = table.print(&batch(&[1], &["short"], None)).expect("rows");
        assert_eq!(printed.left_out, Some(["_offset", "_key", "text"].map(str::to_owned).to_vec()));
        let again = table.print(&batch(&[2], &["short"], None)).expect("rows");
        assert_eq!(again.left_out, None);
        let mut whole = Table::new(None, RowsOf::Columns);
        let long = "x".repeat(300);
        let printed = whole.print(&batch(&[1], &[&long], Some(b"k"))).expect("rows");
        assert!(printed.text.contains(&long), "nothing is cut where there is no terminal");
    }
}
