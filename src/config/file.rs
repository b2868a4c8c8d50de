//! karrow.toml: the settings of [`flags`](super::flags) in a file, and how to read any file here.

use std::path::Path;

use crate::error::{Error, Result};

use super::flags::Settings;

/// Reads and parses karrow.toml. Errors are one line: file, place, setting, reason.
pub(super) fn load(path: &Path) -> Result<Settings> {
    let mut settings = parse(path, &read(path)?)?;
    if let Some(directory) = path.parent() {
        settings.topic.values_mut().for_each(|topic| topic.beside(directory));
    }
    Ok(settings)
}

/// A whole text file; the error names it.
pub(super) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::InvalidData => "is not UTF-8 text".to_owned(),
            _ => error.to_string(),
        };
        Error::invalid(format!("cannot read {}: {reason}", path.display()))
    })
}

fn parse(path: &Path, text: &str) -> Result<Settings> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        // toml points at a bad value without naming its setting, which is what the user looks for.
        let unnamed = !error.message().starts_with("unknown field");
        let setting = text
            .lines()
            .nth(line - 1)
            .filter(|_| unnamed)
            .and_then(|line| line.split_once('='))
            .map(|(name, _)| format!("{}: ", name.trim()))
            .unwrap_or_default();
        let reason = error.message().lines().collect::<Vec<_>>().join(" ");
        let reason = reason.replacen("unknown field", "unknown setting", 1);
        // Of the table that the line is in.
        let header =
            text.lines().take(line).filter(|line| line.trim_start().starts_with('[')).last();
        let hint = header
            .and_then(dotted_topic)
            .map(|name| format!("; names with dots need quotes: [topic.\"{name}\"]"))
            .unwrap_or_default();
        Error::invalid(format!("{}:{line}:{column}: {setting}{reason}{hint}", path.display()))
    })
}

/// The name that the header of a topic's table may have been meant to have: its dots, if not in quotes, lead to tables
/// in tables.
fn dotted_topic(line: &str) -> Option<&str> {
    let header = line.trim_start().strip_prefix("[topic.")?;
    let (name, _) = header.split_once(']')?;
    let name = name.strip_suffix(".columns").unwrap_or(name);
    (name.contains('.') && super::topic_is_legal(name)).then_some(name)
}
