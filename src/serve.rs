//! The edges. They never import one another.

pub mod flight;
mod glob;
pub mod http;
mod listener;
pub mod resp;
