//! [`Feed`]: Arrow batches as what a table function answers.
//!
//! DuckDB's own conversion, because it answers with an error where there is no memory. The functions that fill vectors value by
//! value throw an exception then, which must not reach a callback in Rust: it would end the process.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StructArray};
use arrow::datatypes::Schema;
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema};
use duckdb::core::DataChunkHandle;
use duckdb::ffi;
use parking_lot::Mutex;

use super::handles::{Chunk, checked};
use super::{Connection, Database};
use crate::error::{Error, Result};

/// See the top of this file. For batches of one schema.
pub struct Feed {
    /// One converts at a time. It has no statement of its own.
    connection: Mutex<Connection>,
    types: ConvertedTypes,
}

struct ConvertedTypes(ffi::duckdb_arrow_converted_schema);

// SAFETY: it is read only, once it is made, and freed by its owner.
unsafe impl Send for ConvertedTypes {}
// SAFETY: the same.
unsafe impl Sync for ConvertedTypes {}

impl Drop for ConvertedTypes {
    fn drop(&mut self) {
        // SAFETY: it is ours, or null.
        unsafe { ffi::duckdb_destroy_arrow_converted_schema(&raw mut self.0) };
    }
}

impl Feed {
    /// For batches of `schema`.
    ///
    /// # Errors
    /// A type that DuckDB does not have; or there is no memory.
    pub fn new(database: &Arc<Database>, schema: &Schema) -> Result<Self> {
        let connection = database.connect()?;
        let mut raw = FFI_ArrowSchema::try_from(schema)
            .map_err(|error| Error::internal(error.to_string()))?;
        let mut types = ConvertedTypes(std::ptr::null_mut());
        // SAFETY: the connection is open, the structure that of Arrow's C interface, and the place may be written.
        checked(unsafe {
            ffi::duckdb_schema_from_arrow(
                connection.raw(),
                (&raw mut raw).cast::<ffi::ArrowSchema>(),
                &raw mut types.0,
            )
        })?;
        Ok(Self { connection: Mutex::new(connection), types })
    }

    /// Puts a batch of at most 2,048 rows into `output`, whose vectors then share its memory.
    ///
    /// # Errors
    /// There is no memory.
    pub fn fill(&self, batch: &RecordBatch, output: &mut DataChunkHandle) -> Result<()> {
        let mut array = FFI_ArrowArray::new(&StructArray::from(batch.clone()).to_data());
        let mut chunk = Chunk(std::ptr::null_mut());
        {
            let connection = self.connection.lock();
            // SAFETY: the connection is open, the types were made for this schema, and DuckDB takes the array over, where it
            // does not fail.
            checked(unsafe {
                ffi::duckdb_data_chunk_from_arrow(
                    connection.raw(),
                    (&raw mut array).cast::<ffi::ArrowArray>(),
                    self.types.0,
                    &raw mut chunk.0,
                )
            })?;
        }
        for column in 0..batch.num_columns() as u64 {
            // SAFETY: both chunks have so many columns, of the same types: those of the table function are this schema's.
            unsafe {
                ffi::duckdb_vector_reference_vector(
                    ffi::duckdb_data_chunk_get_vector(output.get_ptr(), column),
                    ffi::duckdb_data_chunk_get_vector(chunk.0, column),
                );
            }
        }
        output.set_len(batch.num_rows());
        Ok(())
    }
}
