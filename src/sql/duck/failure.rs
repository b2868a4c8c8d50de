//! DuckDB's errors as karrow's.

use crate::error::{Error, ErrorKind};

/// DuckDB's word for the kind of an error.
pub fn class(error: &Error) -> &str {
    class_of(error.message())
}

/// DuckDB's errors say in their first words what kind they are of.
fn class_of(why: &str) -> &str {
    why.split_once(" Error:").map_or("", |(class, _)| class)
}

/// The error with the place of what is wrong in `sql` in its first line: DuckDB shows a part of the line, and a caret below
/// it.
pub fn located(error: Error, sql: &str) -> Error {
    let place = || {
        let (head, shown) = error.message().rsplit_once("\n\nLINE ")?;
        let (line, shown) = shown.split_once(": ")?;
        let (part, caret) = shown.split_once('\n')?;
        // The caret is below what it means, with the label before it.
        let at = caret.find('^')?.checked_sub("LINE : ".len() + line.len())?;
        let counted: usize = line.parse().ok()?;
        let cut = part.strip_prefix("...");
        let text = cut.unwrap_or(part);
        let text = text.strip_suffix("...").unwrap_or(text);
        // Comments and blanks before a statement do not count for DuckDB.
        let mut lines = (1..).zip(sql.lines()).skip(counted.checked_sub(1)?);
        let (number, whole) = lines.find(|(_, whole)| whole.contains(text))?;
        let before = whole.get(..whole.find(text)?)?.chars().count();
        let skipped = if cut.is_some() { "...".len() } else { 0 };
        let column = before + at.checked_sub(skipped)? + 1;
        let (first, _) = head.split_once('\n').unwrap_or((head, ""));
        let rest = head.get(first.len()..)?;
        let place = format!("(line {number}, column {column})");
        // The caret stays where it is below its line.
        let label = format!("{number:>width$}", width = line.len());
        let why = format!("{first} {place}{rest}\n\nLINE {label}: {shown}");
        Some(Error::new(error.kind(), why))
    };
    place().unwrap_or(error)
}

/// An error of DuckDB's.
pub fn failure(why: Option<String>) -> Error {
    let why = why.unwrap_or_else(|| "DuckDB has failed and does not say why".to_owned());
    let kind = match class_of(&why) {
        "INTERRUPT" => ErrorKind::Timeout,
        "Out of Memory" => ErrorKind::Exhausted,
        "Catalog"
        | "Binder"
        | "Parser"
        | "Conversion"
        | "Invalid Input"
        | "Out of Range"
        | "Syntax"
        | "Not implemented"
        | "Invalid"
        | "Constraint"
        | "Permission"
        | "Mismatch Type"
        | "Invalid type"
        | "Parameter Not Allowed"
        | "Parameter Not Resolved"
        | "Sequence"
        | "Dependency"
        | "Settings"
        | "Resource In Use"
        | "Invalid Configuration" => ErrorKind::Invalid,
        "TransactionContext" if why.contains("read-only mode") => ErrorKind::Invalid,
        "TransactionContext" | "Transaction" | "IO" => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    if kind == ErrorKind::Exhausted {
        // What DuckDB advises is not for those who ask.
        let first = why.lines().next().unwrap_or_default();
        return Error::new(kind, format!("{first}; see sql-memory"));
    }
    Error::new(kind, why)
}
