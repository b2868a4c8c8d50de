//! karrow: one binary between Apache Kafka and everything that speaks Redis.
//!
//! The map, in reading order.

pub mod app;
pub mod banner;
pub mod cli;
pub mod config;
pub mod error;
pub mod kafka;
