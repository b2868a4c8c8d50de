//! Consumer sessions, the registry that names them, and batches; knows no protocol.

pub mod acks;
pub mod batch;
pub mod drain;
pub mod letters;
pub mod owed;
pub mod registry;
pub mod session;
