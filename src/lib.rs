//! karrow: one binary between Apache Kafka and everything that speaks Redis.
//!
//! The map, in reading order. A module imports only from those above it.

pub mod error;

pub mod config;

pub mod metrics;

pub mod kafka;

pub mod decode;

pub mod encode;

pub mod stream;

pub mod sql;

pub mod serve;

pub mod banner;

pub mod app;

pub mod cli;

pub mod client;
