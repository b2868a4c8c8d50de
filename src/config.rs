//! What the program needs to run, validated once; where each value came from is `config/`'s business.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything `karrow serve` needs, after flags, environment and files are merged and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Redis edge.
    pub resp: RespConfig,
    /// Where `/metrics`, `/livez` and `/readyz` are served; `None` switches HTTP off.
    pub http_addr: Option<SocketAddr>,
    /// librdkafka options of consumers and of the producer, `bootstrap.servers` included.
    pub kafka: KafkaConfig,
    /// The broker inside this process, if any.
    pub embedded: Option<EmbeddedConfig>,
    /// Topics to create in the embedded broker at start.
    pub topics: Vec<String>,
    /// How long a graceful shutdown may take before the process exits anyway.
    pub shutdown_grace: Duration,
}

/// Listener and limits of the Redis edge.
#[derive(Clone, Debug)]
pub struct RespConfig {
    /// Where Redis clients connect; port 0 lets the system choose.
    pub addr: SocketAddr,
    /// Threads that serve connections. One serves several hundred thousand commands a second.
    pub io_threads: usize,
    /// Refuse remote clients while the listener is not on loopback and no users are configured.
    pub protected_mode: bool,
    /// Connections beyond this are answered with an error and closed.
    pub clients_max: usize,
    /// Largest single argument of a request, in bytes.
    pub bulk_bytes_max: usize,
    /// Largest whole request, in bytes.
    pub request_bytes_max: usize,
    /// A connection executes no further command while more than this many reply bytes wait for it.
    pub output_bytes_max: usize,
    /// How long LPOP waits for the first assignment and fetch of a new session.
    pub lpop_wait: Duration,
    /// Produced bytes that one connection may have in flight before its next command waits.
    pub connection_inflight_bytes_max: usize,
    /// Produced bytes that one topic may have in flight before the next command for it waits.
    pub topic_inflight_bytes_max: usize,
}

/// librdkafka options by client type: the file's `general` section is merged under both.
#[derive(Clone, Debug, Default)]
pub struct KafkaConfig {
    /// Options of consumers.
    pub consumer: KafkaOptions,
    /// Options of the producer, which also serves metadata and admin requests.
    pub producer: KafkaOptions,
}

/// librdkafka options, name to value, as librdkafka's CONFIGURATION.md lists them.
pub type KafkaOptions = BTreeMap<String, String>;

/// The broker inside the process.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// Where records and group offsets are kept.
    pub data_dir: PathBuf,
    /// Where ordinary Kafka clients connect; port 0 lets the system choose.
    pub kafka_addr: SocketAddr,
}
