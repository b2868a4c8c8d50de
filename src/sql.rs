//! SQL with DuckDB: the only folder that names it.

mod catalog;
pub mod duck;
pub mod engine;
mod forbidden;
pub mod growth;
pub mod live;
mod missing;
mod plain;
pub mod queries;
mod running;
pub mod sink;
pub mod store;
pub mod tail;
pub mod types;
pub mod values;
