//! [`Forbidden`]: functions that a query must not call although it only reads. Some of them act (on DuckDB itself, on its file,
//! on memory whose address they are given), some tell what is nobody's business, some run a text as SQL that nobody has
//! looked at.

use regex::{Regex, RegexBuilder};

use super::duck::Connection;
use crate::error::{Error, ErrorKind, Result};

/// Table functions that a query may call; of all others DuckDB has many, and new ones with each version.
const TABLES: &[&str] = &[
    "duckdb_columns",
    "duckdb_constraints",
    "duckdb_extensions",
    "duckdb_functions",
    "duckdb_indexes",
    "duckdb_keywords",
    "duckdb_schemas",
    "duckdb_sequences",
    "duckdb_tables",
    "duckdb_types",
    "duckdb_views",
    "generate_series",
    "icu_calendar_names",
    "json_each",
    "json_tree",
    "pg_timezone_names",
    "pragma_collations",
    "pragma_database_size",
    "pragma_table_info",
    "pragma_version",
    "range",
    "repeat",
    "repeat_row",
    "summary",
    "test_all_types",
    "unnest",
    "version",
];

/// Views that tell where files are.
const VIEWS: &[&str] = &[
    "duckdb_databases",
    "duckdb_logs",
    "duckdb_secrets",
    "duckdb_settings",
    "pg_settings",
    "pragma_database_list",
];

/// Words with which statements begin that do more than reading, or that tell of DuckDB itself.
const WRITES: &[&str] = &[
    "abort",
    "alter",
    "analyze",
    "attach",
    "begin",
    "call",
    "checkpoint",
    "comment",
    "commit",
    "copy",
    "create",
    "deallocate",
    "delete",
    "detach",
    "drop",
    "end",
    "execute",
    "export",
    "force",
    "import",
    "insert",
    "install",
    "load",
    "merge",
    "pragma",
    "prepare",
    "reset",
    "rollback",
    "set",
    "start",
    "truncate",
    "update",
    "use",
    "vacuum",
];

/// Words with which statements begin that may be explained.
const READS: &[&str] =
    &["describe", "from", "select", "show", "summarize", "table", "values", "with"];

/// Other functions that a query must not call.
const SCALARS: &[&str] = &[
    "current_setting",
    "getenv",
    "getvariable",
    "live_scan",
    "tail_scan",
    "nextval",
    "setval",
    "write_log",
];

/// See the top of this file.
pub struct Forbidden {
    calls: Regex,
}

impl Forbidden {
    /// Of what this DuckDB has.
    ///
    /// # Errors
    /// It does not say.
    pub fn new(connection: &Connection) -> Result<Self> {
        let sql = "select distinct function_name from duckdb_functions() where function_type in ('table', 'pragma')";
        let mut known = connection.prepare(sql)?;
        let mut names: Vec<String> = SCALARS.iter().map(|name| (*name).to_owned()).collect();
        for rows in known.run()? {
            let rows = rows?;
            let column = arrow::array::AsArray::as_string::<i32>(rows.column(0).as_ref());
            let others = column.iter().flatten().filter(|name| !TABLES.contains(name));
            names.extend(others.map(regex::escape));
        }
        // Wherever it stands, also in a text: what is taken for a text here might be none for DuckDB. Between a name and its
        // parenthesis there may be comments. A name may be written with escapes.
        let pattern = format!(
            r#"(?s)(?:^|[^\w$])(?:u&"|({})"?(?:[\s\p{{Z}}\p{{Cf}}\p{{Cc}}]|/\*.*?\*/|\*/|--[^\n]*(?:\n|$))*\(|({})(?:[^\w$]|$))"#,
            names.join("|"),
            VIEWS.join("|")
        );
        let calls = RegexBuilder::new(&pattern).case_insensitive(true).size_limit(1 << 24).build();
        let calls = calls.map_err(|error| Error::internal(error.to_string()))?;
        Ok(Self { calls })
    }

    /// Looks through a statement.
    ///
    /// # Errors
    /// It calls such a function: names it.
    pub fn check(&self, sql: &str) -> Result<()> {
        check_characters(sql)?;
        // What begins otherwise reads, or is no SQL, of which DuckDB says where.
        let first = uncommented(sql);
        let word: String = first.chars().take_while(char::is_ascii_alphabetic).collect();
        let word = word.to_ascii_lowercase();
        if WRITES.contains(&word.as_str()) || (word == "explain" && !explains_a_read(first)) {
            return Err(not_reading());
        }
        let Some(found) = self.calls.captures(sql) else { return Ok(()) };
        let why = match (found.get(1), found.get(2)) {
            (Some(name), _) => format!("the function {} is not for queries", name.as_str()),
            (None, Some(name)) => format!("{} is not for queries", name.as_str()),
            (None, None) => "names with escapes (U&\"…\") are not taken".to_owned(),
        };
        Err(Error::new(ErrorKind::Invalid, why))
    }
}

/// DuckDB takes some characters for blanks that nobody sees, and ends a comment where others see no end of a line: what is
/// looked through here would be another text than what runs.
fn check_characters(sql: &str) -> Result<()> {
    let mut rest = sql.chars().peekable();
    while let Some(c) = rest.next() {
        let is_alone = c == '\r' && rest.peek() != Some(&'\n');
        if is_alone || matches!(c, '\u{180e}' | '\u{200b}' | '\u{2060}' | '\u{feff}') {
            let code = u32::from(c);
            let why = format!("a statement cannot have U+{code:04X}: give it as a parameter");
            return Err(Error::invalid(why));
        }
    }
    Ok(())
}

/// The error for a statement that does not only read.
pub fn not_reading() -> Error {
    Error::invalid("only statements that read are taken, such as SELECT")
}

/// Whether what EXPLAIN explains reads: with ANALYZE it runs.
fn explains_a_read(sql: &str) -> bool {
    let mut rest = sql;
    loop {
        rest = uncommented(rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()));
        let word: String = rest.chars().take_while(char::is_ascii_alphabetic).collect();
        match word.to_ascii_lowercase().as_str() {
            "analyze" | "verbose" => {}
            word => return READS.contains(&word),
        }
    }
}

/// A text behind its first comments, blanks and parentheses.
fn uncommented(mut sql: &str) -> &str {
    loop {
        sql = sql.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ';' | '('));
        let rest = match (sql.strip_prefix("--"), sql.strip_prefix("/*")) {
            (Some(line), _) => line.split_once('\n').map(|(_, rest)| rest),
            (_, Some(block)) => block.split_once("*/").map(|(_, rest)| rest),
            (None, None) => return sql,
        };
        sql = rest.unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::duck::Database;

    #[test]
    fn what_acts_or_tells_is_found_however_it_is_written() {
        let database = Database::in_memory(&[("threads", "1")]).expect("a database");
        let connection = database.connect().expect("a connection");
        let forbidden = Forbidden::new(&connection).expect("functions");
        for sql in [
            "select * from force_checkpoint('stored')",
            "select * from FORCE_Checkpoint ('stored')",
            "select * from \"force_checkpoint\"('stored')",
            "select * from main.\"force_checkpoint\" /* x */ -- y\n ('stored')",
            "select * from force_checkpoint/* /* */ */('stored')",
            "select E'\\'', * from force_checkpoint('stored') --'",
            "select $$ ' $$, * from read_blob('x') --'",
            "from read_csv('x')",
            "from query('select 1')",
            "from json_execute_serialized_sql('x')",
            "from arrow_scan(1, 2, 3)",
            "select current_setting('x')",
            "from duckdb_settings()",
            "from duckdb_databases()",
            "select * from system.main.PRAGMA_database_list",
            "from live_scan(null)",
            "from tail_scan ('t')",
            "select * from force_checkpoint\u{200b}('stored')",
            "\u{200b}explain analyze set search_path = 'live'",
            "\u{feff}explain analyze checkpoint stored",
            "\u{2060}explain analyze commit",
            "--\rexplain analyze checkpoint stored",
            "select current_setting--\r('threads')",
            "from query--\r('select 42')",
            "select current_setting\u{feff}\u{a0}('x')",
            "explain analyze set search_path = 'live'",
            "EXPLAIN /* */ checkpoint stored",
            "explain analyze (commit)",
            "explain (analyze) set threads = 1",
            "from u&\"force\\005fcheckpoint\"('x')",
            " /* ( */ -- ;\n ;( pragma version",
            "Create table t (i int)",
            "copy (select 1) to 'x'",
        ] {
            let error = forbidden.check(sql).expect_err(sql);
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
        for sql in [
            "select checkpoint from t where query in ('a')",
            "select count(*), max(glob) from range(3) group by version()",
            "select * from duckdb_tables(), unnest([1])",
            "select my_read_csv(1), pragmatic from t",
            "select 'read_csv' as x",
            "-- one\r\nselect\r\n1",
            "explain select 1",
            "explain analyze with a as (select 1) from a",
        ] {
            forbidden.check(sql).expect(sql);
        }
    }
}
