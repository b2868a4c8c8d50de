//! SQL: what it may use, what is stored, and queries with names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::units::Span;

/// How SQL is answered, and what of topics is stored.
#[derive(Clone, Debug)]
pub struct SqlConfig {
    /// DuckDB's file with the tables of topics, if these are stored.
    pub file: Option<PathBuf>,
    /// How old a stored row may become.
    pub stored_age_max: Option<Duration>,
    /// How large the file may become, about; then the oldest rows leave it.
    pub stored_bytes_max: Option<usize>,
    /// Bytes of memory, of all queries and what is written together.
    pub memory_bytes_max: usize,
    /// Threads of all queries together.
    pub threads: usize,
    /// How long a query may run; the time that its client takes for reading does not count.
    pub time_max: Duration,
    /// How many run at once; others wait.
    pub queries_max: usize,
    /// Bytes of an answer that is held as a whole, as Redis's protocol needs it.
    pub result_bytes_max: usize,
    /// The `[queries.<name>]` tables.
    pub queries: BTreeMap<String, QuerySettings>,
}

/// One `[queries.<name>]` of karrow.toml.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct QuerySettings {
    /// A statement that reads, with parameters as `$name`.
    pub sql: String,
    /// How old an answer may be that was made for somebody else. By default it is one that would be the same now.
    pub max_age: Option<Span>,
}

/// Whether a query may have this name: it is a part of URLs.
pub(super) fn query_name_is_legal(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
