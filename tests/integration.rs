//! The one test binary: one file a surface.

// A helper that meets the unexpected shall stop the test there, as the test itself does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ack;
mod arrow;
mod client;
mod config;
mod consume;
#[cfg(feature = "embedded-broker")]
mod embedded;
mod flight;
mod flight_exchange;
mod flight_put;
mod flight_sql;
mod handshake;
mod http;
mod latest;
mod look;
mod metrics;
mod produce;
mod protocol;
mod rebalance;
mod schemas;
mod shutdown;
mod sql;
mod sql_edges;
mod sql_store;
mod streams;
mod support;
mod tickets;
mod tidy;
