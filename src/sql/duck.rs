//! DuckDB's C interface, as far as karrow needs it: databases, connections, prepared statements, and results as Arrow.
//!
//! The `duckdb` crate runs all but the last statement of a text when it prepares it, and knows no columns before a statement
//! ran. Here a text is one statement, and its columns are known when it is prepared.

mod failure;
mod feed;
mod handles;
mod statement;

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::AsArray;
use duckdb::ffi;
use parking_lot::Mutex;
use serde_json::Value;

pub(super) use failure::{class, failure, located};
pub use feed::Feed;
use handles::{QueryResult, c_text, text};
pub use statement::{Kind, Parameter, Prepared, Rows};

use crate::error::{Error, Result};

/// The names in a statement's tree.
fn gather_tables(tree: &Value, names: &mut Vec<String>) {
    match tree {
        Value::Object(node) => {
            if node.get("type").and_then(Value::as_str) == Some("BASE_TABLE") {
                names.extend(node.get("table_name").and_then(Value::as_str).map(str::to_owned));
            }
            node.values().for_each(|below| gather_tables(below, names));
        }
        Value::Array(nodes) => nodes.iter().for_each(|below| gather_tables(below, names)),
        _ => {}
    }
}

/// A DuckDB instance, closed when nobody has it any more.
pub struct Database {
    raw: ffi::duckdb_database,
}

// SAFETY: DuckDB's instances may be used by any thread at any time; only their connections may not.
unsafe impl Send for Database {}
// SAFETY: the same.
unsafe impl Sync for Database {}

impl Database {
    /// An instance with its data in memory, and these settings, which DuckDB lists in `duckdb_settings()`.
    ///
    /// # Errors
    /// DuckDB refuses a setting.
    pub fn in_memory(settings: &[(&str, &str)]) -> Result<Arc<Self>> {
        let mut config = Config::new()?;
        for (name, value) in settings {
            config.set(name, value)?;
        }
        let mut raw = ptr::null_mut();
        let mut why = ptr::null_mut();
        // SAFETY: the path is a C string, the configuration is alive, and both places may be written.
        let state = unsafe {
            ffi::duckdb_open_ext(c":memory:".as_ptr(), &raw mut raw, config.0, &raw mut why)
        };
        if state == ffi::DuckDBSuccess {
            return Ok(Arc::new(Self { raw }));
        }
        // SAFETY: DuckDB allocates the text, or leaves null.
        let said = unsafe { text(why) };
        // SAFETY: it is DuckDB's, and nobody has it.
        unsafe { ffi::duckdb_free(why.cast()) };
        Err(failure(said))
    }

    /// Another connection.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn connect(self: &Arc<Self>) -> Result<Connection> {
        let mut raw = ptr::null_mut();
        // SAFETY: the instance is open, and the place may be written.
        let state = unsafe { ffi::duckdb_connect(self.raw, &raw mut raw) };
        if state != ffi::DuckDBSuccess {
            return Err(Error::internal("DuckDB gives no connection"));
        }
        Ok(Connection {
            raw: Arc::new(Mutex::new(RawConnection(raw))),
            database: self.clone(),
            is_spoiled: AtomicBool::new(false),
        })
    }

    /// A connection of the `duckdb` crate, for its appenders and table functions. It must be gone before the instance is.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn crate_connection(&self) -> Result<duckdb::Connection> {
        // SAFETY: the instance is open, and closed by ourselves alone.
        unsafe { duckdb::Connection::open_from_raw(self.raw) }
            .map_err(|error| failure(Some(error.to_string())))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // SAFETY: whoever has a connection has the instance, too.
        unsafe { ffi::duckdb_close(&raw mut self.raw) };
    }
}

struct Config(ffi::duckdb_config);

impl Config {
    fn new() -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: the place may be written.
        match unsafe { ffi::duckdb_create_config(&raw mut raw) } {
            ffi::DuckDBSuccess => Ok(Self(raw)),
            _ => Err(Error::internal("DuckDB gives no configuration")),
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let (c_name, c_value) = (c_text(name)?, c_text(value)?);
        // SAFETY: the configuration is alive, and both are C strings.
        match unsafe { ffi::duckdb_set_config(self.0, c_name.as_ptr(), c_value.as_ptr()) } {
            ffi::DuckDBSuccess => Ok(()),
            _ => Err(Error::invalid(format!("DuckDB does not take '{value}' for {name}"))),
        }
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        unsafe { ffi::duckdb_destroy_config(&raw mut self.0) };
    }
}

/// Null when it was closed.
struct RawConnection(ffi::duckdb_connection);

// SAFETY: a connection may be used by one thread after the other, and interrupted by any; whoever closes it has the lock.
unsafe impl Send for RawConnection {}

/// A connection, used by one thread at a time.
pub struct Connection {
    raw: Arc<Mutex<RawConnection>>,
    database: Arc<Database>,
    is_spoiled: AtomicBool,
}

/// Stops what a connection is doing, from any thread; does nothing when the connection has gone.
#[derive(Clone)]
pub struct Interrupter(Arc<Mutex<RawConnection>>);

impl Interrupter {
    /// What runs fails with an error, soon.
    pub fn interrupt(&self) {
        let raw = self.0.lock();
        if !raw.0.is_null() {
            // SAFETY: the connection is open as long as we have the lock.
            unsafe { ffi::duckdb_interrupt(raw.0) };
        }
    }
}

impl Connection {
    /// What stops it.
    pub fn interrupter(&self) -> Interrupter {
        Interrupter(self.raw.clone())
    }

    /// Something may have changed what the next statement means here.
    pub fn spoil(&self) {
        self.is_spoiled.store(true, Ordering::Relaxed);
    }

    /// Whether that has happened.
    pub fn is_spoiled(&self) -> bool {
        self.is_spoiled.load(Ordering::Relaxed)
    }

    /// The instance.
    pub fn database(&self) -> &Arc<Database> {
        &self.database
    }

    fn raw(&self) -> ffi::duckdb_connection {
        self.raw.lock().0
    }

    /// Runs statements of ours, of which it takes any number.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn execute(&self, sql: &str) -> Result<()> {
        let sql = c_text(sql)?;
        // SAFETY: all zeros is a result that nothing was written to.
        let mut result = unsafe { std::mem::zeroed() };
        // SAFETY: the connection is open, the text a C string, and the place may be written.
        let state = unsafe { ffi::duckdb_query(self.raw(), sql.as_ptr(), &raw mut result) };
        let mut result = QueryResult(result);
        if state == ffi::DuckDBSuccess { Ok(()) } else { Err(result.failure()) }
    }

    /// The names of the tables that a statement mentions, as it spells them, without their schemas; `None`, if it is none that
    /// selects.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn table_names(&self, sql: &str) -> Result<Option<Vec<String>>> {
        let mut parsed = self.prepare("select json_serialize_sql(?::varchar)::varchar")?;
        parsed.bind(1, &Parameter::Text(sql.to_owned()))?;
        let rows = parsed.run()?.next().transpose()?;
        let text = rows.as_ref().map(|rows| rows.column(0).as_string::<i32>().value(0));
        let tree: Value = serde_json::from_str(text.unwrap_or_default())
            .map_err(|error| Error::internal(format!("json_serialize_sql: {error}")))?;
        if tree.get("error") != Some(&Value::Bool(false)) {
            return Ok(None);
        }
        let mut names = Vec::new();
        gather_tables(&tree, &mut names);
        Ok(Some(names))
    }

    /// Prepares a text that must be one statement.
    ///
    /// # Errors
    /// It is none or several; or DuckDB's.
    pub fn prepare(&self, sql: &str) -> Result<Prepared<'_>> {
        Prepared::new(self, sql).map_err(|error| located(error, sql))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut raw = self.raw.lock();
        // SAFETY: what was prepared with it borrows it, and interrupters wait for the lock.
        unsafe { ffi::duckdb_disconnect(&raw mut raw.0) };
        raw.0 = ptr::null_mut();
    }
}

#[cfg(test)]
mod tests;
