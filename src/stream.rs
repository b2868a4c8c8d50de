//! Consumer sessions and the registry that names them; knows no protocol.

pub mod acks;
pub mod registry;
pub mod session;
