//! What the user typed: the command line and its `KARROW_…` twins in the environment.
//!
//! [`Settings`] is one list read twice: by clap from flags and environment, by serde from
//! karrow.toml. So every setting has the same name in all three places.

pub mod client;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Deserializer};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use client::ClientFlags;

use super::formats::{Format, OnBadRecord, TopicSettings};
use super::sql::QuerySettings;
use super::streams::{Start, WhenFull, topic_pattern};
use super::topic_is_legal;
use super::units::{ByteSize, Count, Span, from_text};

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "karrow", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway until SIGTERM or SIGINT
    Serve(Box<ServeFlags>),
    /// List, create and delete topics, on any Kafka
    Topics(TopicsFlags),
    /// Read and write topics of a running karrow, over Arrow Flight
    Client(ClientFlags),
}

/// `karrow serve`.
#[derive(Debug, Default, Args)]
pub struct ServeFlags {
    /// Configuration file: *.json is librdkafka's, *.toml is karrow's; one of each at most
    #[arg(short, long, value_name = "FILE", env = "KARROW_CONFIG", value_delimiter = ',')]
    pub config: Vec<PathBuf>,

    /// All that karrow.toml may hold, too.
    #[command(flatten)]
    pub settings: Settings,
}

/// `karrow topics`.
#[derive(Debug, Args)]
pub struct TopicsFlags {
    /// Configuration file: *.json is librdkafka's, *.toml is karrow's; one of each at most
    // Short only: `--config` is a topic's setting here, as in Kafka's own tools.
    #[arg(
        short = 'c',
        value_name = "FILE",
        env = "KARROW_CONFIG",
        value_delimiter = ',',
        global = true
    )]
    pub files: Vec<PathBuf>,

    /// Kafka's addresses [default: localhost:9092]
    #[arg(long, value_name = "HOST:PORT,…", env = "KARROW_BROKERS", global = true)]
    pub brokers: Option<Brokers>,

    /// How long to wait for Kafka
    #[arg(long, value_name = "DURATION", default_value = "10s", global = true)]
    pub timeout: Span,

    /// What to do with topics.
    #[command(subcommand)]
    pub command: TopicsCommand,
}

/// The subcommands of `karrow topics`.
#[derive(Debug, Subcommand)]
pub enum TopicsCommand {
    /// Print one line per topic: its name and how many partitions it has
    List,
    /// Create topics
    Create {
        /// Names of the topics
        #[arg(required = true, value_name = "TOPIC")]
        topics: Vec<String>,
        /// Partitions of each
        #[arg(long, default_value_t = 1, value_name = "N",
              value_parser = clap::value_parser!(i32).range(1..=10_000))]
        partitions: i32,
        /// Copies of each partition; -1 is the brokers' default
        #[arg(long, default_value_t = 1, value_name = "R", allow_hyphen_values = true,
              value_parser = clap::value_parser!(i32).range(-1..=100))]
        replication_factor: i32,
        /// A topic setting such as retention.ms=60000; may be repeated
        #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
        config: Vec<(String, String)>,
    },
    /// Delete topics and all that is in them
    Delete {
        /// Names of the topics
        #[arg(required = true, value_name = "TOPIC")]
        topics: Vec<String>,
    },
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Every setting of `karrow serve`, each absent until somebody gives it.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", env = "KARROW_HOST")]
    pub host: Option<Host>,

    /// Port for Redis clients; 0 lets the system choose [default: 6380]
    #[arg(short, long, value_name = "PORT", env = "KARROW_PORT")]
    pub port: Option<u16>,

    /// Port for /metrics, /livez, /readyz, /v1/streams, /v1/sql and /v1/queries; `off` for none [default: 8080]
    #[arg(long, value_name = "PORT", env = "KARROW_HTTP_PORT")]
    pub http_port: Option<OptionalPort>,

    /// Port for Arrow Flight; `off` for none [default: 8815]
    #[arg(long, value_name = "PORT", env = "KARROW_FLIGHT_PORT")]
    pub flight_port: Option<OptionalPort>,

    /// Kafka's addresses [default: localhost:9092]
    #[arg(long, value_name = "HOST:PORT,…", env = "KARROW_BROKERS")]
    pub brokers: Option<Brokers>,

    /// Topics that are streams from the start, and exist in the embedded broker; `^…` is a regular expression
    #[arg(long, value_name = "TOPIC,…", env = "KARROW_TOPICS", value_delimiter = ',')]
    pub topics: Option<Vec<TopicName>>,

    /// Run a durable Kafka-compatible broker in this process; no other Kafka is needed
    #[arg(long, value_name = "BOOL", env = "KARROW_EMBEDDED", num_args = 0..=1, hide_possible_values = true,
          require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub embedded: Option<bool>,

    /// Where the embedded broker keeps its data [default: ./karrow-data]
    #[arg(long, value_name = "DIR", env = "KARROW_DATA_DIR")]
    pub data_dir: Option<PathBuf>,

    /// Port of the embedded broker, on 127.0.0.1, for ordinary Kafka clients [default: 9092]
    #[arg(long, value_name = "PORT", env = "KARROW_KAFKA_PORT")]
    pub kafka_port: Option<u16>,

    /// Where the schemas are that values name by an id: the URL of a schema registry, or several
    #[arg(long, value_name = "URL,…", env = "KARROW_SCHEMA_REGISTRY")]
    pub schema_registry: Option<String>,

    /// User of the schema registry
    #[arg(long, value_name = "USER", env = "KARROW_SCHEMA_REGISTRY_USER")]
    pub schema_registry_user: Option<String>,

    /// Password of that user; better in the environment, where others cannot see it
    #[arg(
        long,
        value_name = "PASSWORD",
        env = "KARROW_SCHEMA_REGISTRY_PASSWORD",
        hide_env_values = true
    )]
    pub schema_registry_password: Option<String>,

    /// Bearer token for the schema registry, in the place of a user
    #[arg(
        long,
        value_name = "TOKEN",
        env = "KARROW_SCHEMA_REGISTRY_TOKEN",
        hide_env_values = true
    )]
    pub schema_registry_token: Option<String>,

    /// Certificates (PEM) of authorities that vouch for the schema registry, besides the system's
    #[arg(long, value_name = "FILE", env = "KARROW_SCHEMA_REGISTRY_CA")]
    pub schema_registry_ca: Option<PathBuf>,

    /// What payloads are made of, where karrow.toml does not say it for their topic [default: auto]
    #[arg(long, value_name = "FORMAT", env = "KARROW_PAYLOAD_FORMAT")]
    pub payload_format: Option<Format>,

    /// What keys are made of, where karrow.toml does not say it for their topic [default: raw]
    #[arg(long, value_name = "FORMAT", env = "KARROW_KEY_FORMAT")]
    pub key_format: Option<Format>,

    /// What becomes of a record that cannot be decoded [default: column]
    #[arg(long, value_name = "POLICY", env = "KARROW_ON_BAD_RECORD")]
    pub on_bad_record: Option<OnBadRecord>,

    /// Most records of an Arrow batch [default: 8192]
    #[arg(long, value_name = "N", env = "KARROW_BATCH_SIZE")]
    pub batch_size: Option<Count<1, 1_048_576>>,

    /// Most bytes of keys and payloads in an Arrow batch [default: 1MiB]
    #[arg(long, value_name = "SIZE", env = "KARROW_BATCH_BYTES")]
    pub batch_bytes: Option<ByteSize>,

    /// How long a batch of a stream may wait to fill up [default: 50ms]
    #[arg(long, value_name = "DURATION", env = "KARROW_BATCH_LINGER")]
    pub batch_linger: Option<Span>,

    /// Where streams begin: latest, earliest, timestamp:<ms>, offset:<n> [default: latest]
    #[arg(long, value_name = "WHERE", env = "KARROW_START")]
    pub start: Option<Start>,

    /// How old a batch of a stream may become, and how long a stream nobody reads stays [default: 60s]
    #[arg(long, value_name = "DURATION", env = "KARROW_TTL")]
    pub ttl: Option<Span>,

    /// Bytes in the window of one stream [default: 100MiB]
    #[arg(long, value_name = "SIZE", env = "KARROW_BUFFER_LIMIT")]
    pub buffer_limit: Option<ByteSize>,

    /// Bytes in the windows of all streams [default: 1GiB]
    #[arg(long, value_name = "SIZE", env = "KARROW_MEMORY_LIMIT")]
    pub memory_limit: Option<ByteSize>,

    /// What happens when the window of a stream is full [default: drop-oldest]
    #[arg(long, value_name = "POLICY", env = "KARROW_WHEN_FULL")]
    pub when_full: Option<WhenFull>,

    /// Fields of a topic's JSON objects that get columns; the rest shares one, as text [default: 1000]
    #[arg(long, value_name = "N", env = "KARROW_JSON_FIELDS")]
    pub json_fields: Option<Count<1, 100_000>>,

    /// What is known of single topics; only in karrow.toml.
    #[arg(skip)]
    #[serde(default)]
    pub topic: BTreeMap<String, TopicSettings>,

    /// Store streams in tables of a DuckDB file
    #[arg(long, value_name = "BOOL", env = "KARROW_PERSIST", num_args = 0..=1, hide_possible_values = true,
          require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub persist: Option<bool>,

    /// That file [default: ./karrow.duckdb]
    #[arg(long, value_name = "FILE", env = "KARROW_DB_PATH")]
    pub db_path: Option<PathBuf>,

    /// How old a stored row may become, by its timestamp [default: without a limit]
    #[arg(long, value_name = "DURATION", env = "KARROW_DB_MAX_AGE")]
    pub db_max_age: Option<Span>,

    /// How large the file may become, about; then the oldest rows of its largest table leave it [default: without a limit]
    #[arg(long, value_name = "SIZE", env = "KARROW_DB_MAX_SIZE")]
    pub db_max_size: Option<ByteSize>,

    /// Memory of all SQL queries, and of what is written into the file, which takes at least 64MiB [default: 512MiB]
    #[arg(long, value_name = "SIZE", env = "KARROW_SQL_MEMORY")]
    pub sql_memory: Option<ByteSize>,

    /// Threads of all SQL queries; 0 is half of the cores [default: 0]
    #[arg(long, value_name = "N", env = "KARROW_SQL_THREADS")]
    pub sql_threads: Option<Count<0, 1024>>,

    /// How long an SQL query may run [default: 30s]
    #[arg(long, value_name = "DURATION", env = "KARROW_SQL_TIME")]
    pub sql_time: Option<Span>,

    /// SQL queries that run at once; others wait [default: 4]
    #[arg(long, value_name = "N", env = "KARROW_SQL_CONCURRENCY")]
    pub sql_concurrency: Option<Count<1, 1024>>,

    /// Largest answer of SQL to Redis clients, and of named queries [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "KARROW_SQL_RESULT_LIMIT")]
    pub sql_result_limit: Option<ByteSize>,

    /// SQL queries by name; only in karrow.toml.
    #[arg(skip)]
    #[serde(default)]
    pub queries: BTreeMap<String, QuerySettings>,

    /// Threads that serve connections; 0 is half of the cores [default: 0]
    #[arg(long, value_name = "N", env = "KARROW_IO_THREADS")]
    pub io_threads: Option<Count<0, 1024>>,

    /// Connections at a time [default: 10000]
    #[arg(long, value_name = "N", env = "KARROW_MAX_CLIENTS")]
    pub max_clients: Option<Count<1, 16_777_216>>,

    /// Largest argument of a request; never below the producer's message.max.bytes [default: 32MiB]
    #[arg(long, value_name = "SIZE", env = "KARROW_BULK_LIMIT")]
    pub bulk_limit: Option<ByteSize>,

    /// Replies that may wait for a slow reader before its next command does [default: 1MiB]
    #[arg(long, value_name = "SIZE", env = "KARROW_OUTPUT_LIMIT")]
    pub output_limit: Option<ByteSize>,

    /// How long a new session's LPOP waits for its first assignment and fetch [default: 5s]
    #[arg(long, value_name = "DURATION", env = "KARROW_LPOP_WAIT")]
    pub lpop_wait: Option<Span>,

    /// Bytes one connection may have on the way to Kafka before its next command waits [default: 16MiB]
    #[arg(long, value_name = "SIZE", env = "KARROW_CONNECTION_INFLIGHT")]
    pub connection_inflight: Option<ByteSize>,

    /// Bytes one topic may have on the way to Kafka before the next command waits [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "KARROW_TOPIC_INFLIGHT")]
    pub topic_inflight: Option<ByteSize>,

    /// Serve remote clients although no users are configured
    #[arg(long, value_name = "BOOL", env = "KARROW_NO_PROTECTED_MODE", num_args = 0..=1, hide_possible_values = true,
          require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub no_protected_mode: Option<bool>,

    /// How long a shutdown may take before the process exits anyway [default: 30s]
    #[arg(long, value_name = "DURATION", env = "KARROW_SHUTDOWN_GRACE")]
    pub shutdown_grace: Option<Span>,

    /// How log lines look, on stderr [default: text]
    #[arg(long, value_name = "FORMAT", env = "KARROW_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,

    /// error, warn, info, debug or trace; or directives such as info,librdkafka=debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "KARROW_LOG_LEVEL")]
    pub log_level: Option<LogLevel>,
}

impl Settings {
    /// Each setting of `self`, where it is given, else the one of `lower`.
    pub fn or(self, lower: Self) -> Self {
        Self {
            host: self.host.or(lower.host),
            port: self.port.or(lower.port),
            http_port: self.http_port.or(lower.http_port),
            flight_port: self.flight_port.or(lower.flight_port),
            brokers: self.brokers.or(lower.brokers),
            topics: self.topics.or(lower.topics),
            embedded: self.embedded.or(lower.embedded),
            data_dir: self.data_dir.or(lower.data_dir),
            kafka_port: self.kafka_port.or(lower.kafka_port),
            schema_registry: self.schema_registry.or(lower.schema_registry),
            schema_registry_user: self.schema_registry_user.or(lower.schema_registry_user),
            schema_registry_password: self
                .schema_registry_password
                .or(lower.schema_registry_password),
            schema_registry_token: self.schema_registry_token.or(lower.schema_registry_token),
            schema_registry_ca: self.schema_registry_ca.or(lower.schema_registry_ca),
            payload_format: self.payload_format.or(lower.payload_format),
            key_format: self.key_format.or(lower.key_format),
            on_bad_record: self.on_bad_record.or(lower.on_bad_record),
            batch_size: self.batch_size.or(lower.batch_size),
            batch_bytes: self.batch_bytes.or(lower.batch_bytes),
            batch_linger: self.batch_linger.or(lower.batch_linger),
            start: self.start.or(lower.start),
            ttl: self.ttl.or(lower.ttl),
            buffer_limit: self.buffer_limit.or(lower.buffer_limit),
            memory_limit: self.memory_limit.or(lower.memory_limit),
            when_full: self.when_full.or(lower.when_full),
            json_fields: self.json_fields.or(lower.json_fields),
            topic: if self.topic.is_empty() { lower.topic } else { self.topic },
            persist: self.persist.or(lower.persist),
            db_path: self.db_path.or(lower.db_path),
            db_max_age: self.db_max_age.or(lower.db_max_age),
            db_max_size: self.db_max_size.or(lower.db_max_size),
            sql_memory: self.sql_memory.or(lower.sql_memory),
            sql_threads: self.sql_threads.or(lower.sql_threads),
            sql_time: self.sql_time.or(lower.sql_time),
            sql_concurrency: self.sql_concurrency.or(lower.sql_concurrency),
            sql_result_limit: self.sql_result_limit.or(lower.sql_result_limit),
            queries: if self.queries.is_empty() { lower.queries } else { self.queries },
            io_threads: self.io_threads.or(lower.io_threads),
            max_clients: self.max_clients.or(lower.max_clients),
            bulk_limit: self.bulk_limit.or(lower.bulk_limit),
            output_limit: self.output_limit.or(lower.output_limit),
            lpop_wait: self.lpop_wait.or(lower.lpop_wait),
            connection_inflight: self.connection_inflight.or(lower.connection_inflight),
            topic_inflight: self.topic_inflight.or(lower.topic_inflight),
            no_protected_mode: self.no_protected_mode.or(lower.no_protected_mode),
            shutdown_grace: self.shutdown_grace.or(lower.shutdown_grace),
            log_format: self.log_format.or(lower.log_format),
            log_level: self.log_level.or(lower.log_level),
        }
    }
}

/// An address to listen on. Names are not resolved: a start must not wait for DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host(pub IpAddr);

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "localhost" => Ok(Self(Ipv4Addr::LOCALHOST.into())),
            _ => text.parse().map(Self).map_err(|_| {
                format!("'{text}' is no address to listen on, try 127.0.0.1, 0.0.0.0 or ::")
            }),
        }
    }
}

/// A port, or no listener at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionalPort {
    /// Serve nothing.
    Off,
    /// Serve here; 0 lets the system choose.
    On(u16),
}

impl FromStr for OptionalPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => text
                .parse()
                .map(Self::On)
                .map_err(|_| format!("'{text}' is neither a port (0 to 65535) nor `off`")),
        }
    }
}

/// Kafka's addresses, as librdkafka takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brokers(pub String);

impl FromStr for Brokers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        check_brokers(text)?;
        Ok(Self(text.to_owned()))
    }
}

/// librdkafka passes over what it cannot read, and would wait for brokers for ever. An entry is
/// `[protocol://]host[:port]`; a host that has colons stands in brackets.
pub(super) fn check_brokers(brokers: &str) -> Result<(), String> {
    for broker in brokers.split(',') {
        let shown = broker.trim();
        let expected = |what: &str| format!("expected host:port[,host:port…], {what}");
        let address = shown.split_once("://").map_or(shown, |(_, address)| address);
        let (host, port) = match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (host, Some(rest.strip_prefix(':').unwrap_or(""))),
            None => {
                address.rsplit_once(':').map_or((address, None), |(host, port)| (host, Some(port)))
            }
        };
        if shown.is_empty() {
            return Err(expected("an entry is empty"));
        }
        let is_bare = !address.starts_with('[') && host.contains(':');
        if host.is_empty() || is_bare || host.contains(char::is_whitespace) {
            return Err(expected(&format!("'{shown}' has no legal host")));
        }
        if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
            return Err(expected(&format!("'{shown}' has no legal port")));
        }
    }
    Ok(())
}

/// The name of a topic, or behind a `^` a regular expression for names. Empty is none: that is how compose files say it in a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicName(pub String);

impl FromStr for TopicName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.trim();
        if name.starts_with('^') {
            topic_pattern(name)?;
            return Ok(Self(name.to_owned()));
        }
        match name.is_empty() || topic_is_legal(name) {
            true => Ok(Self(name.to_owned())),
            false => {
                Err(format!("'{name}' is no legal topic name (1 to 249 of a-z A-Z 0-9 . _ -)"))
            }
        }
    }
}

/// A level, or tracing's filter directives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(pub String);

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // tracing takes any other word for a target, and then logs nothing but that.
        let word = text.split(',').map(str::trim).find(|part| {
            !part.contains('=') && !text.contains('[') && part.parse::<LevelFilter>().is_err()
        });
        if let Some(word) = word {
            return Err(format!("'{word}' is no level, try error, warn, info, debug or trace"));
        }
        EnvFilter::try_new(text).map_err(|error| format!("'{text}': {error}"))?;
        Ok(Self(text.to_owned()))
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl<'de> Deserialize<'de> for Host {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        from_text(input)
    }
}

impl<'de> Deserialize<'de> for OptionalPort {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        from_text(input)
    }
}

impl<'de> Deserialize<'de> for Brokers {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        from_text(input)
    }
}

impl<'de> Deserialize<'de> for TopicName {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        from_text(input)
    }
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        from_text(input)
    }
}
