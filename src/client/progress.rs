//! [`Progress`]: how far a read into a file is, on stderr, where that is a terminal.

use arrow::array::{Array as _, RecordBatch};
use indicatif::{ProgressBar, ProgressStyle};

use crate::decode::envelope::Layout;
use crate::serve::flight::request::Ticket;
use crate::stream::window::Positions;

/// See the top of this file.
pub struct Progress {
    bar: ProgressBar,
    measure: Measure,
    rows: u64,
    /// The column of what could not be read.
    errors: Option<&'static str>,
    bad_rows: u64,
}

enum Measure {
    /// Rows, of which so many were asked for.
    Rows,
    /// Offsets behind these.
    Offsets(Positions),
    /// It has no end.
    Open,
}

impl Progress {
    /// Of the read that `ticket` begins.
    pub fn new(ticket: Option<&[u8]>, is_shown: bool) -> Self {
        let ticket = ticket.and_then(|ticket| Ticket::parse(ticket).ok());
        let errors = ticket.as_ref().map(|ticket| match ticket.layout {
            Layout::Struct => "error",
            Layout::Flat => "_error",
        });
        let (measure, total) = match ticket.filter(|_| is_shown) {
            None => (Measure::Open, None),
            Some(Ticket { limit: Some(limit), .. }) => (Measure::Rows, Some(limit)),
            Some(Ticket { to: None, .. }) => (Measure::Open, None),
            Some(Ticket { from, to: Some(to), .. }) => {
                let total = between(&from, &to);
                (Measure::Offsets(from), Some(total))
            }
        };
        let (bar, template) = match (is_shown, total) {
            // It hides itself where stderr is no terminal.
            (true, Some(total)) => {
                (ProgressBar::new(total), "{bar:30} {percent:>3} %  {msg}  {elapsed}")
            }
            (true, None) => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
            (false, _) => (ProgressBar::hidden(), ""),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, measure, rows: 0, errors, bad_rows: 0 }
    }

    /// Rows were written; the read is at `positions`.
    pub fn add(&mut self, batch: &RecordBatch, positions: Option<&Positions>) {
        self.rows += batch.num_rows() as u64;
        let errors = self.errors.and_then(|name| batch.column_by_name(name));
        self.bad_rows += errors.map_or(0, |errors| (errors.len() - errors.null_count()) as u64);
        match (&self.measure, positions) {
            (Measure::Rows, _) => self.bar.set_position(self.rows),
            (Measure::Offsets(from), Some(positions)) => {
                self.bar.set_position(between(from, positions));
            }
            _ => self.bar.tick(),
        }
        self.bar.set_message(format!("{} rows", self.rows));
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Those of them that say an error.
    pub fn bad_rows(&self) -> u64 {
        self.bad_rows
    }

    /// Leaves the line to others.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Offsets from one place to another, over all partitions.
fn between(from: &Positions, to: &Positions) -> u64 {
    let of = |(partition, end): (i32, i64)| {
        u64::try_from(end.saturating_sub(from.get(partition))).unwrap_or(0)
    };
    to.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_counts_for_nothing() {
        let from = Positions::new(vec![5, 0]);
        let to = Positions::new(vec![9, 3, 2]);
        assert_eq!((between(&from, &to), between(&to, &from)), (9, 0));
    }
}
