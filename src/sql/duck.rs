//! DuckDB's C interface, as far as karrow needs it: databases, connections, prepared statements, and results as Arrow.
//!
//! The `duckdb` crate runs all but the last statement of a text when it prepares it, and knows no columns before a statement
//! ran. Here a text is one statement, and its columns are known when it is prepared.

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, RecordBatchOptions, StructArray};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi};
use duckdb::ffi;
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};

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
        Ok(Connection { raw: Arc::new(Mutex::new(RawConnection(raw))), database: self.clone() })
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

    /// Prepares a text that must be one statement.
    ///
    /// # Errors
    /// It is none or several; or DuckDB's.
    pub fn prepare(&self, sql: &str) -> Result<Prepared<'_>> {
        self.prepare_one(sql).map_err(|error| located(error, sql))
    }

    fn prepare_one(&self, sql: &str) -> Result<Prepared<'_>> {
        let sql = c_text(sql)?;
        let mut extracted = Extracted(ptr::null_mut());
        // SAFETY: the connection is open, the text a C string, and the place may be written.
        let count = unsafe {
            ffi::duckdb_extract_statements(self.raw(), sql.as_ptr(), &raw mut extracted.0)
        };
        match count {
            0 => {
                // SAFETY: it was written; the text is its.
                let why = unsafe { text(ffi::duckdb_extract_statements_error(extracted.0)) };
                Err(why.map_or_else(|| Error::invalid("no statement"), |why| failure(Some(why))))
            }
            1 => {
                let mut prepared = Prepared { raw: ptr::null_mut(), connection: self };
                // SAFETY: the connection is open, and there is a first statement.
                let state = unsafe {
                    ffi::duckdb_prepare_extracted_statement(
                        self.raw(),
                        extracted.0,
                        0,
                        &raw mut prepared.raw,
                    )
                };
                if state == ffi::DuckDBSuccess {
                    return Ok(prepared);
                }
                // SAFETY: a failed statement has a text until it is destroyed.
                Err(failure(unsafe { text(ffi::duckdb_prepare_error(prepared.raw)) }))
            }
            count => Err(Error::invalid(format!("one statement is wanted, not {count}"))),
        }
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

struct Extracted(ffi::duckdb_extracted_statements);

impl Drop for Extracted {
    fn drop(&mut self) {
        // SAFETY: it is ours, or null.
        unsafe { ffi::duckdb_destroy_extracted(&raw mut self.0) };
    }
}

/// What a statement does, as far as karrow cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It answers rows and changes nothing.
    Reads,
    /// Anything else.
    Other,
}

/// A parameter's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// SQL's null.
    Null,
    /// A truth value.
    Boolean(bool),
    /// An integer.
    Integer(i64),
    /// An integer that may be larger.
    Unsigned(u64),
    /// A number.
    Double(f64),
    /// A text; DuckDB casts it to what is wanted.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
    /// A number of at most 38 digits, `scale` of them behind the point.
    Decimal {
        /// All digits, as an integer.
        value: i128,
        /// How many there may be.
        digits: u8,
        /// At most as many.
        scale: u8,
    },
    /// Days since 1970.
    Date(i32),
    /// Microseconds since midnight.
    Time(i64),
    /// Microseconds since 1970, in no zone.
    Timestamp(i64),
    /// Microseconds since 1970 in UTC.
    TimestampTz(i64),
    /// Nanoseconds since 1970, in no zone.
    TimestampNs(i64),
    /// A span.
    Interval {
        /// Calendar months.
        months: i32,
        /// Calendar days.
        days: i32,
        /// The rest.
        micros: i64,
    },
}

/// A statement with its parameters.
pub struct Prepared<'c> {
    raw: ffi::duckdb_prepared_statement,
    connection: &'c Connection,
}

impl<'c> Prepared<'c> {
    /// What it does.
    pub fn kind(&self) -> Kind {
        // SAFETY: the statement is there.
        match unsafe { ffi::duckdb_prepared_statement_type(self.raw) } {
            ffi::duckdb_statement_type_DUCKDB_STATEMENT_TYPE_SELECT
            | ffi::duckdb_statement_type_DUCKDB_STATEMENT_TYPE_EXPLAIN => Kind::Reads,
            _ => Kind::Other,
        }
    }

    /// The names of its parameters in their order; those of `?` are numbers.
    pub fn parameters(&self) -> Vec<String> {
        // SAFETY: the statement is there.
        let count = unsafe { ffi::duckdb_nparams(self.raw) };
        let name = |at| {
            // SAFETY: there is such a parameter; its name is ours to be freed.
            unsafe {
                let raw = ffi::duckdb_parameter_name(self.raw, at);
                let name = text(raw);
                ffi::duckdb_free(raw.cast_mut().cast());
                name.unwrap_or_else(|| at.to_string())
            }
        };
        (1..=count).map(name).collect()
    }

    /// Its columns, as DuckDB knows them before it runs. `None`, if that depends on parameters.
    ///
    /// # Errors
    /// A type that has no Arrow type.
    pub fn schema(&self) -> Result<Option<SchemaRef>> {
        let (mut types, mut names) = (Vec::new(), Vec::new());
        // SAFETY: the statement is there, and has so many columns.
        unsafe {
            for at in 0..ffi::duckdb_prepared_statement_column_count(self.raw) {
                let raw =
                    LogicalType(ffi::duckdb_prepared_statement_column_logical_type(self.raw, at));
                if raw.is_open() {
                    return Ok(None);
                }
                types.push(raw);
                let name = ffi::duckdb_prepared_statement_column_name(self.raw, at);
                names.push(text(name).unwrap_or_default());
                ffi::duckdb_free(name.cast_mut().cast());
            }
        }
        let options = ArrowOptions::of_connection(self.connection);
        let (schema, _) = arrow_schema(&options, &types, &names)?;
        Ok(Some(schema))
    }

    /// Gives a parameter its value; `at` counts from 1.
    ///
    /// # Errors
    /// There is no such parameter.
    pub fn bind(&mut self, at: u64, value: &Parameter) -> Result<()> {
        let raw = self.raw;
        // SAFETY: the statement is there, and DuckDB copies texts and bytes.
        let state = unsafe {
            match value {
                Parameter::Null => ffi::duckdb_bind_null(raw, at),
                Parameter::Boolean(value) => ffi::duckdb_bind_boolean(raw, at, *value),
                Parameter::Integer(value) => ffi::duckdb_bind_int64(raw, at, *value),
                Parameter::Unsigned(value) => ffi::duckdb_bind_uint64(raw, at, *value),
                Parameter::Double(value) => ffi::duckdb_bind_double(raw, at, *value),
                Parameter::Text(value) => ffi::duckdb_bind_varchar_length(
                    raw,
                    at,
                    value.as_ptr().cast(),
                    value.len() as u64,
                ),
                Parameter::Blob(value) => {
                    ffi::duckdb_bind_blob(raw, at, value.as_ptr().cast(), value.len() as u64)
                }
                Parameter::Decimal { value, digits, scale } => {
                    let (lower, upper) = (*value as u64, (*value >> 64) as i64);
                    let value = ffi::duckdb_hugeint { lower, upper };
                    let value = ffi::duckdb_decimal { width: *digits, scale: *scale, value };
                    ffi::duckdb_bind_decimal(raw, at, value)
                }
                Parameter::Date(days) => {
                    ffi::duckdb_bind_date(raw, at, ffi::duckdb_date { days: *days })
                }
                Parameter::Time(micros) => {
                    ffi::duckdb_bind_time(raw, at, ffi::duckdb_time { micros: *micros })
                }
                Parameter::Timestamp(micros) => {
                    let value = ffi::duckdb_timestamp { micros: *micros };
                    ffi::duckdb_bind_timestamp(raw, at, value)
                }
                Parameter::TimestampTz(micros) => {
                    let value = ffi::duckdb_timestamp { micros: *micros };
                    ffi::duckdb_bind_timestamp_tz(raw, at, value)
                }
                Parameter::TimestampNs(nanos) => {
                    let value = ffi::duckdb_timestamp_ns { nanos: *nanos };
                    let mut value = ffi::duckdb_create_timestamp_ns(value);
                    let state = ffi::duckdb_bind_value(raw, at, value);
                    ffi::duckdb_destroy_value(&raw mut value);
                    state
                }
                Parameter::Interval { months, days, micros } => {
                    let (months, days, micros) = (*months, *days, *micros);
                    let value = ffi::duckdb_interval { months, days, micros };
                    ffi::duckdb_bind_interval(raw, at, value)
                }
            }
        };
        if state == ffi::DuckDBSuccess {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the statement has no parameter {at}, or it cannot be {value:?}"
        )))
    }

    /// The types of its parameters, in their order, as far as they are known.
    ///
    /// # Errors
    /// A type that has no Arrow type.
    pub fn parameter_types(&self) -> Result<Vec<Option<DataType>>> {
        let options = ArrowOptions::of_connection(self.connection);
        // SAFETY: the statement is there.
        let count = unsafe { ffi::duckdb_nparams(self.raw) };
        let data_type = |at| {
            // SAFETY: there is such a parameter.
            let of = LogicalType(unsafe { ffi::duckdb_param_logical_type(self.raw, at) });
            if of.is_open() {
                return Ok(None);
            }
            let (schema, _) = arrow_schema(&options, &[of], &["parameter".to_owned()])?;
            Ok(schema.fields().first().map(|field| field.data_type().clone()))
        };
        (1..=count).map(data_type).collect()
    }

    /// Runs it. Rows are made as they are taken.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn run(&mut self) -> Result<Rows<'_>> {
        // SAFETY: all zeros is a result that nothing was written to.
        let mut result = unsafe { std::mem::zeroed() };
        // SAFETY: the statement is there, and the place may be written.
        let state = unsafe { ffi::duckdb_execute_prepared_streaming(self.raw, &raw mut result) };
        let mut result = QueryResult(result);
        if state != ffi::DuckDBSuccess {
            return Err(result.failure());
        }
        let (mut types, mut names) = (Vec::new(), Vec::new());
        // SAFETY: the result is there, and has so many columns.
        unsafe {
            for at in 0..ffi::duckdb_column_count(&raw mut result.0) {
                types.push(LogicalType(ffi::duckdb_column_logical_type(&raw mut result.0, at)));
                let name = ffi::duckdb_column_name(&raw mut result.0, at);
                names.push(text(name).unwrap_or_default());
            }
        }
        let options = ArrowOptions::of_result(&mut result);
        let (schema, raw_schema) = arrow_schema(&options, &types, &names)?;
        let statement = std::marker::PhantomData;
        Ok(Rows { result, options, schema, raw_schema, is_over: false, statement })
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        // SAFETY: its results borrow it.
        unsafe { ffi::duckdb_destroy_prepare(&raw mut self.raw) };
    }
}

/// The rows of a statement, in batches of at most 2,048.
pub struct Rows<'s> {
    result: QueryResult,
    options: ArrowOptions,
    schema: SchemaRef,
    raw_schema: FFI_ArrowSchema,
    is_over: bool,
    statement: std::marker::PhantomData<&'s mut ()>,
}

impl Rows<'_> {
    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn fetch(&mut self) -> Result<Option<RecordBatch>> {
        // SAFETY: the result is there.
        let chunk = Chunk(unsafe { ffi::duckdb_fetch_chunk(self.result.0) });
        // SAFETY: the chunk is there, where it is not null.
        if chunk.0.is_null() || unsafe { ffi::duckdb_data_chunk_get_size(chunk.0) } == 0 {
            self.is_over = true;
            return match self.result.said() {
                Some(why) => Err(failure(Some(why))),
                None => Ok(None),
            };
        }
        let mut array = FFI_ArrowArray::empty();
        // SAFETY: options and chunk are there; both structures are those of Arrow's C interface.
        let outcome = unsafe {
            ffi::duckdb_data_chunk_to_arrow(
                self.options.0,
                chunk.0,
                (&raw mut array).cast::<ffi::ArrowArray>(),
            )
        };
        checked(outcome)?;
        // SAFETY: the schema was made for chunks of this result.
        let data = unsafe { from_ffi(array, &self.raw_schema) };
        let data = data.map_err(|error| Error::internal(format!("DuckDB: {error}")))?;
        let columns = StructArray::from(data);
        let options = RecordBatchOptions::new().with_row_count(Some(columns.len()));
        RecordBatch::try_new_with_options(self.schema.clone(), columns.columns().to_vec(), &options)
            .map(Some)
            .map_err(|error| Error::internal(format!("DuckDB: {error}")))
    }
}

impl Iterator for Rows<'_> {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let fetched = self.fetch();
        self.is_over |= fetched.is_err();
        fetched.transpose()
    }
}

struct QueryResult(ffi::duckdb_result);

impl QueryResult {
    fn said(&mut self) -> Option<String> {
        // SAFETY: the result is there; the text is its.
        unsafe { text(ffi::duckdb_result_error(&raw mut self.0)) }
    }

    fn failure(&mut self) -> Error {
        failure(self.said())
    }
}

impl Drop for QueryResult {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        unsafe { ffi::duckdb_destroy_result(&raw mut self.0) };
    }
}

struct Chunk(ffi::duckdb_data_chunk);

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: it is ours, or null.
        unsafe { ffi::duckdb_destroy_data_chunk(&raw mut self.0) };
    }
}

struct LogicalType(ffi::duckdb_logical_type);

impl LogicalType {
    /// Whether it depends on parameters.
    fn is_open(&self) -> bool {
        // SAFETY: it is ours, or null.
        let id = unsafe { ffi::duckdb_get_type_id(self.0) };
        self.0.is_null()
            || id == ffi::DUCKDB_TYPE_DUCKDB_TYPE_INVALID
            || id == ffi::DUCKDB_TYPE_DUCKDB_TYPE_ANY
    }
}

impl Drop for LogicalType {
    fn drop(&mut self) {
        // SAFETY: it is ours, or null.
        unsafe { ffi::duckdb_destroy_logical_type(&raw mut self.0) };
    }
}

/// How DuckDB's types become Arrow's.
struct ArrowOptions(ffi::duckdb_arrow_options);

impl ArrowOptions {
    fn of_connection(connection: &Connection) -> Self {
        let mut raw = ptr::null_mut();
        // SAFETY: the connection is open, and the place may be written.
        unsafe { ffi::duckdb_connection_get_arrow_options(connection.raw(), &raw mut raw) };
        Self(raw)
    }

    fn of_result(result: &mut QueryResult) -> Self {
        // SAFETY: the result is there.
        Self(unsafe { ffi::duckdb_result_get_arrow_options(&raw mut result.0) })
    }
}

impl Drop for ArrowOptions {
    fn drop(&mut self) {
        // SAFETY: they are ours, or null.
        unsafe { ffi::duckdb_destroy_arrow_options(&raw mut self.0) };
    }
}

fn arrow_schema(
    options: &ArrowOptions,
    types: &[LogicalType],
    names: &[String],
) -> Result<(SchemaRef, FFI_ArrowSchema)> {
    let mut types: Vec<_> = types.iter().map(|of| of.0).collect();
    let names: Vec<CString> = names.iter().map(|name| c_text(name)).collect::<Result<_>>()?;
    let mut names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let mut raw = FFI_ArrowSchema::empty();
    // SAFETY: there are as many names as types; the structure is that of Arrow's C interface.
    let outcome = unsafe {
        ffi::duckdb_to_arrow_schema(
            options.0,
            types.as_mut_ptr(),
            names.as_mut_ptr(),
            types.len() as u64,
            (&raw mut raw).cast::<ffi::ArrowSchema>(),
        )
    };
    checked(outcome)?;
    let schema =
        Schema::try_from(&raw).map_err(|error| Error::internal(format!("DuckDB: {error}")))?;
    Ok((Arc::new(schema), raw))
}

fn checked(mut outcome: ffi::duckdb_error_data) -> Result<()> {
    if outcome.is_null() {
        return Ok(());
    }
    // SAFETY: it is ours, and its text lives as long.
    unsafe {
        let has_failed = ffi::duckdb_error_data_has_error(outcome);
        let why = text(ffi::duckdb_error_data_message(outcome));
        ffi::duckdb_destroy_error_data(&raw mut outcome);
        if has_failed { Err(failure(why)) } else { Ok(()) }
    }
}

fn c_text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid("SQL has a zero byte"))
}

/// # Safety
/// `raw` is null, or a C string.
unsafe fn text(raw: *const c_char) -> Option<String> {
    if raw.is_null() {
        return None;
    }
    // SAFETY: the caller's word.
    Some(unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned())
}

/// DuckDB's word for the kind of an error.
pub(super) fn class(error: &Error) -> &str {
    class_of(error.message())
}

/// DuckDB's errors say in their first words what kind they are of.
fn class_of(why: &str) -> &str {
    why.split_once(" Error:").map_or("", |(class, _)| class)
}

/// The error with the place of what is wrong in `sql` in its first line: DuckDB shows a part of the line, and a caret below
/// it.
pub(super) fn located(error: Error, sql: &str) -> Error {
    let place = || {
        let (head, shown) = error.message().rsplit_once("\n\nLINE ")?;
        let (line, shown) = shown.split_once(": ")?;
        let (part, caret) = shown.split_once('\n')?;
        // The caret is below what it means, with the label before it.
        let at = caret.find('^')?.checked_sub("LINE : ".len() + line.len())?;
        let number: usize = line.parse().ok()?;
        let whole = sql.lines().nth(number.checked_sub(1)?)?;
        let cut = part.strip_prefix("...");
        let text = cut.unwrap_or(part);
        let text = text.strip_suffix("...").unwrap_or(text);
        let before = whole.get(..whole.find(text)?)?.chars().count();
        let skipped = if cut.is_some() { "...".len() } else { 0 };
        let column = before + at.checked_sub(skipped)? + 1;
        let (first, _) = head.split_once('\n').unwrap_or((head, ""));
        let rest = error.message().get(first.len()..)?;
        Some(Error::new(error.kind(), format!("{first} (line {line}, column {column}){rest}")))
    };
    place().unwrap_or(error)
}

/// An error of DuckDB's.
pub(super) fn failure(why: Option<String>) -> Error {
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

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int32Array};
    use arrow::datatypes::{Int32Type, Int64Type};

    use super::*;

    fn connect() -> Connection {
        let database = Database::in_memory(&[("threads", "1")]).expect("a database");
        database.connect().expect("a connection")
    }

    #[test]
    fn rows_come_in_batches_of_the_schema_that_was_known_before() {
        let connection = connect();
        let sql =
            "select (i % 7)::int as a, {'x': i, 'y': [i]} as s from range(5000) t(i) where i >= ?";
        let mut prepared = connection.prepare(sql).expect("prepared");
        assert_eq!((prepared.kind(), prepared.parameters()), (Kind::Reads, vec!["1".to_owned()]));
        let schema = prepared.schema().expect("types").expect("known");
        prepared.bind(1, &Parameter::Integer(1000)).expect("bound");
        let rows = prepared.run().expect("rows");
        assert_eq!(rows.schema(), &schema);
        let batches: Vec<RecordBatch> = rows.collect::<Result<_>>().expect("no error");
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 4000);
        assert!(batches.iter().all(|batch| batch.schema() == schema));
        let first = batches.first().expect("a batch");
        assert_eq!(first.column(0).as_primitive::<Int32Type>().value(0), 1000 % 7);
        let x = first.column(1).as_struct().column(0).as_primitive::<Int64Type>();
        assert_eq!(x.value(0), 1000);
    }

    #[test]
    fn a_text_is_one_statement() {
        let connection = connect();
        for (sql, why) in [
            ("", "no statement"),
            (" -- nothing", "no statement"),
            ("create table t (i int); select 1", "one statement is wanted, not 2"),
            ("selec 1", "Parser Error: syntax error at or near \"selec\""),
            ("select nosuch", "Binder Error: Referenced column \"nosuch\""),
            ("select 1\0", "SQL has a zero byte"),
        ] {
            let error = connection.prepare(sql).err().expect("refused");
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.message().starts_with(why), "{error}");
        }
        assert!(connection.prepare("select * from t").is_err(), "nothing ran");
        assert!(connection.prepare("select 1;").is_ok());
    }

    #[test]
    fn errors_say_where() {
        let connection = connect();
        let long = format!("select {} nosuch", "1 + 1, ".repeat(40));
        for (sql, place) in [
            ("selec 1", "(line 1, column 1)"),
            ("select 1,\n  nosuch\nfrom range(1)", "(line 2, column 3)"),
            ("select 'ä', nosuch", "(line 1, column 13)"),
            (&long, "(line 1, column 289)"),
        ] {
            let error = connection.prepare(sql).err().expect("refused");
            let first = error.message().lines().next().unwrap_or_default();
            assert!(first.contains(place), "{sql}: {error}");
        }
    }

    #[test]
    fn what_changes_something_is_told_apart() {
        let connection = connect();
        connection.execute("create table t (i int)").expect("created");
        for sql in [
            "insert into t values (1)",
            "drop table t",
            "copy t to 'x'",
            "set threads = 1",
            "call pragma_version()",
            "checkpoint",
            "begin",
            "vacuum",
            "attach ':memory:' as x",
            "load x",
            "create table x as select 1",
            "insert into t values (1) returning i",
            "use memory",
        ] {
            assert_eq!(
                connection.prepare(sql).map(|one| one.kind()).ok(),
                Some(Kind::Other),
                "{sql}"
            );
        }
        for sql in [
            "select 1",
            "from t",
            "with a as (select 1) from a",
            "values (1)",
            "explain select 1",
            "describe t",
            "show tables",
            "summarize t",
            "table t",
        ] {
            assert_eq!(
                connection.prepare(sql).map(|one| one.kind()).ok(),
                Some(Kind::Reads),
                "{sql}"
            );
        }
    }

    #[test]
    fn parameters_have_names_and_values() {
        let connection = connect();
        let sql = "select $a::int as a, $b as b, $c::blob as c, $d::bool as d, $e::date as e";
        let mut prepared = connection.prepare(sql).expect("prepared");
        assert_eq!(prepared.parameters(), ["a", "b", "c", "d", "e"]);
        let values = [
            Parameter::Text("7".to_owned()),
            Parameter::Double(0.5),
            Parameter::Blob(vec![0, 255]),
            Parameter::Boolean(true),
            Parameter::Null,
        ];
        for (at, value) in (1..).zip(&values) {
            prepared.bind(at, value).expect("bound");
        }
        let batch = prepared.run().expect("rows").next().expect("a batch").expect("no error");
        assert_eq!(batch.column(0).as_primitive::<Int32Type>(), &Int32Array::from(vec![7]));
        assert_eq!(batch.schema().field(1).data_type(), &DataType::Float64);
        assert_eq!(batch.column(2).as_binary::<i32>().value(0), [0, 255]);
        assert!(prepared.bind(6, &Parameter::Null).is_err());
    }

    #[test]
    fn what_depends_on_parameters_is_not_known() {
        let connection = connect();
        for (sql, is_known, wanted) in [
            ("select ? as a", false, vec![None]),
            ("select ? + ? as a", false, vec![None, None]),
            ("select i from range(3) t(i) where i = ?", true, vec![Some(DataType::Int64)]),
            ("select ?::int as a", true, vec![Some(DataType::Int32)]),
        ] {
            let prepared = connection.prepare(sql).expect("prepared");
            assert_eq!(prepared.schema().expect("types").is_some(), is_known, "{sql}");
            assert_eq!(prepared.parameter_types().expect("types"), wanted, "{sql}");
        }
    }

    #[test]
    fn parameters_keep_their_types() {
        let connection = connect();
        let (value, digits, scale) = (-123_456_789_012_345_678_901_234_567_890, 38, 9);
        for (value, name, shown) in [
            (Parameter::Unsigned(u64::MAX), "UBIGINT", "18446744073709551615"),
            (Parameter::Integer(i64::MIN), "BIGINT", "-9223372036854775808"),
            (
                Parameter::Decimal { value, digits, scale },
                "DECIMAL(38,9)",
                "-123456789012345678901.234567890",
            ),
            (Parameter::Date(-1), "DATE", "1969-12-31"),
            (Parameter::Time(86_399_999_999), "TIME", "23:59:59.999999"),
            (Parameter::Timestamp(1), "TIMESTAMP", "1970-01-01 00:00:00.000001"),
            (Parameter::TimestampNs(1), "TIMESTAMP_NS", "1970-01-01 00:00:00.000000001"),
            (
                Parameter::Interval { months: 14, days: 3, micros: 1_000_000 },
                "INTERVAL",
                "1 year 2 months 3 days 00:00:01",
            ),
        ] {
            let mut prepared =
                connection.prepare("select typeof($1), $1::varchar").expect("prepared");
            prepared.bind(1, &value).expect("bound");
            let batch = prepared.run().expect("rows").next().expect("a batch").expect("no error");
            let text = |at| batch.column(at).as_string::<i32>().value(0).to_owned();
            assert_eq!((text(0).as_str(), text(1).as_str()), (name, shown));
        }
        // Whatever comes from outside, DuckDB must live.
        for value in [
            Parameter::Date(i32::MIN),
            Parameter::Date(i32::MAX),
            Parameter::Timestamp(i64::MIN),
            Parameter::Timestamp(i64::MAX),
            Parameter::TimestampTz(i64::MIN),
            Parameter::TimestampNs(i64::MIN),
            Parameter::Interval { months: i32::MIN, days: i32::MIN, micros: i64::MIN },
        ] {
            let mut prepared =
                connection.prepare("select $1::varchar, hash($1)").expect("prepared");
            prepared.bind(1, &value).expect("bound");
            if let Ok(rows) = prepared.run() {
                rows.for_each(drop);
            }
        }
    }

    #[test]
    fn what_runs_can_be_stopped() {
        let connection = connect();
        let interrupter = connection.interrupter();
        let (began, has_begun) = std::sync::mpsc::channel();
        let stopper = std::thread::spawn(move || {
            has_begun.recv().expect("it begins");
            // Before it has begun there is nothing to stop, so until it has an effect.
            for _ in 0..1000 {
                interrupter.interrupt();
                std::thread::sleep(std::time::Duration::from_millis(10));
                if has_begun.try_recv().is_ok() {
                    return;
                }
            }
        });
        let sql = "select sum(a.i * b.i) from range(1000000) a(i), range(1000000) b(i)";
        let mut prepared = connection.prepare(sql).expect("prepared");
        began.send(()).expect("heard");
        let error = match prepared.run() {
            Err(error) => error,
            Ok(mut rows) => rows.find_map(Result::err).expect("stopped"),
        };
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        drop(prepared);
        began.send(()).expect("heard");
        stopper.join().expect("it ends");
        let left = connection.interrupter();
        drop(connection);
        left.interrupt();
    }
}
