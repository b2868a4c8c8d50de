//! Records into Arrow columns: one file a format. A bad record never spoils its neighbours.

pub mod avro;
pub mod column;
pub mod csv;
pub mod decoder;
pub mod detect;
pub mod envelope;
pub mod formats;
pub mod given;
pub mod ipc;
pub mod json;
pub mod projection;
pub mod protobuf;
pub mod raw;
pub mod reject;
pub mod rows;
pub mod schema_registry;
pub mod schemas;
pub mod text;
pub mod unite;
pub mod wire;

#[cfg(test)]
mod conformance;
