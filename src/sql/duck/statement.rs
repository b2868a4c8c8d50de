//! [`Prepared`]: a statement with its parameters, and [`Rows`], what it answers.

use std::ptr;

use arrow::array::{Array, RecordBatch, RecordBatchOptions, StructArray};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi};
use duckdb::ffi;

use super::Connection;
use super::failure::{failure, leading};
use super::handles::{
    ArrowOptions, Chunk, Extracted, LogicalType, QueryResult, arrow_schema, c_text, checked, text,
};
use crate::error::{Error, Result};

/// What a statement does, as far as karrow cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It answers rows and changes nothing.
    Reads,
    /// It says how another one runs, or runs it.
    Explains,
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
    /// Prepares a text that must be one statement.
    ///
    /// # Errors
    /// It is none or several; or DuckDB's.
    pub(super) fn new(connection: &'c Connection, sql: &str) -> Result<Self> {
        let sql = c_text(sql.get(leading(sql)..).unwrap_or(sql))?;
        let mut extracted = Extracted(ptr::null_mut());
        // SAFETY: the connection is open, the text a C string, and the place may be written.
        let count = unsafe {
            ffi::duckdb_extract_statements(connection.raw(), sql.as_ptr(), &raw mut extracted.0)
        };
        match count {
            0 => {
                // SAFETY: it was written; the text is its.
                let why = unsafe { text(ffi::duckdb_extract_statements_error(extracted.0)) };
                Err(why.map_or_else(|| Error::invalid("no statement"), |why| failure(Some(why))))
            }
            1 => {
                let mut prepared = Prepared { raw: ptr::null_mut(), connection };
                // SAFETY: the connection is open, and there is a first statement.
                let state = unsafe {
                    ffi::duckdb_prepare_extracted_statement(
                        connection.raw(),
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

    /// What it does.
    pub fn kind(&self) -> Kind {
        // SAFETY: the statement is there.
        match unsafe { ffi::duckdb_prepared_statement_type(self.raw) } {
            ffi::duckdb_statement_type_DUCKDB_STATEMENT_TYPE_SELECT => Kind::Reads,
            ffi::duckdb_statement_type_DUCKDB_STATEMENT_TYPE_EXPLAIN => Kind::Explains,
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
