//! Arrow columns as text, and batches as what leaves the process: JSON, CSV, an Arrow IPC stream.

pub mod csv;
pub mod flatten;
pub mod json;
pub mod writer;
