//! The one test binary: one file a surface.

mod config;
#[cfg(feature = "embedded-broker")]
mod embedded;
mod support;
mod tidy;
