//! Kafka through librdkafka: consumers, the producer, metadata. The only folder that names rdkafka.

pub mod admin;
pub mod consumer;
pub mod embedded;
mod native;
pub mod options;
pub mod producer;
pub mod reader;
pub mod record;
mod spent;
pub mod topics;

pub use native::{KafkaCode, Partition, client_count};
