//! What DuckDB hands out and wants back: results, chunks, types; and its types as Arrow's.

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::ffi::FFI_ArrowSchema;
use duckdb::ffi;

use super::Connection;
use super::failure::failure;
use crate::error::{Error, Result};

pub struct Extracted(pub ffi::duckdb_extracted_statements);

impl Drop for Extracted {
    fn drop(&mut self) {
        // SAFETY: it is ours, or null.
        unsafe { ffi::duckdb_destroy_extracted(&raw mut self.0) };
    }
}

pub struct QueryResult(pub ffi::duckdb_result);

impl QueryResult {
    pub fn said(&mut self) -> Option<String> {
        // SAFETY: the result is there; the text is its.
        unsafe { text(ffi::duckdb_result_error(&raw mut self.0)) }
    }

    pub fn failure(&mut self) -> Error {
        failure(self.said())
    }
}

impl Drop for QueryResult {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        unsafe { ffi::duckdb_destroy_result(&raw mut self.0) };
    }
}

pub struct Chunk(pub ffi::duckdb_data_chunk);

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: it is ours, or null.
        unsafe { ffi::duckdb_destroy_data_chunk(&raw mut self.0) };
    }
}

pub struct LogicalType(pub ffi::duckdb_logical_type);

impl LogicalType {
    /// Whether it depends on parameters.
    pub fn is_open(&self) -> bool {
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
pub struct ArrowOptions(pub ffi::duckdb_arrow_options);

impl ArrowOptions {
    pub fn of_connection(connection: &Connection) -> Self {
        let mut raw = ptr::null_mut();
        // SAFETY: the connection is open, and the place may be written.
        unsafe { ffi::duckdb_connection_get_arrow_options(connection.raw(), &raw mut raw) };
        Self(raw)
    }

    pub fn of_result(result: &mut QueryResult) -> Self {
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

pub fn arrow_schema(
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

pub fn checked(mut outcome: ffi::duckdb_error_data) -> Result<()> {
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

pub fn c_text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid("SQL has a zero byte"))
}

/// # Safety
/// `raw` is null, or a C string.
pub unsafe fn text(raw: *const c_char) -> Option<String> {
    if raw.is_null() {
        return None;
    }
    // SAFETY: the caller's word.
    Some(unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned())
}
