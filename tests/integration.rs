//! The one test binary: one file a surface.

// A helper that meets the unexpected shall stop the test there, as the test itself does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod config;
#[cfg(feature = "embedded-broker")]
mod embedded;
mod support;
mod tidy;
