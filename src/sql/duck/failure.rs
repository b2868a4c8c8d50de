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

/// How many bytes of comments, blanks and semicolons come before a statement. DuckDB counts places from where the text begins,
/// but shows lines of what is behind these, so it gets that alone.
pub fn leading(sql: &str) -> usize {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ';');
        let behind = match (rest.strip_prefix("--"), rest.strip_prefix("/*")) {
            (Some(line), _) => line.split_once('\n'),
            // Where a comment that has another one inside ends is DuckDB's to say.
            (_, Some(block)) => block.split_once("*/").filter(|(inside, _)| !inside.contains("/*")),
            (None, None) => None,
        };
        match behind {
            Some((_, behind)) => rest = behind,
            None => return sql.len() - rest.len(),
        }
    }
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
        let (before, statement) = sql.split_at_checked(leading(sql))?;
        let whole = statement.lines().nth(counted.checked_sub(1)?)?;
        let within = whole.get(..whole.find(text)?)?.chars().count();
        let skipped = if cut.is_some() { "...".len() } else { 0 };
        // Its first line begins behind what is before it there.
        let last = before.rsplit('\n').next().filter(|_| counted == 1).unwrap_or_default();
        let column = last.chars().count() + within + at.checked_sub(skipped)? + 1;
        let number = before.matches('\n').count() + counted;
        let (first, _) = head.split_once('\n').unwrap_or((head, ""));
        let rest = head.get(first.len()..)?;
        // The caret stays below what it means.
        let label = number.to_string();
        let shift = " ".repeat(label.len().checked_sub(line.len())?);
        let why = format!(
            "{first} (line {number}, column {column}){rest}\n\nLINE {label}: {part}\n{shift}{caret}"
        );
        Some(Error::new(error.kind(), why))
    };
    place().unwrap_or(error)
}

/// An error of DuckDB's.
pub fn failure(why: Option<String>) -> Error {
    let why = why.unwrap_or_else(|| "DuckDB has failed and does not say why".to_owned());
    let kind = match class_of(&why) {
        // Whatever it was doing then.
        _ if why.contains("allocate block of size") || why.contains("allocate data of size") => {
            ErrorKind::Exhausted
        }
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
