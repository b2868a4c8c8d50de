//! The edges. They never import one another.

pub mod http;
mod listener;
pub mod resp;
