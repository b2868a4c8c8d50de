//! The edges. They never import one another.

pub mod http;
pub mod resp;
