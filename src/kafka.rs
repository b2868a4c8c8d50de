//! Kafka through librdkafka: consumers, the producer, metadata. The only folder that names rdkafka.

pub mod admin;
pub mod embedded;
