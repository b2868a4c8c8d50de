//! What the program needs to run, validated once; where each value came from is `config/`'s business.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};

pub mod columns;
pub mod environment;
mod file;
pub mod flags;
pub mod formats;
mod librdkafka;
pub mod sql;
pub mod streams;
pub mod units;

use flags::{Brokers, Host, LogFormat, LogLevel, OptionalPort, ServeFlags, Settings, TopicName};
use formats::{Format, FormatsConfig, SchemaRegistrySettings};
pub use librdkafka::OWNED as OWNED_CONSUMER_OPTIONS;
use sql::{SqlConfig, query_name_is_legal};
use streams::{StreamsConfig, topic_pattern};
use units::{ByteSize, Count, Span};

/// Everything `karrow serve` needs, after flags, environment and files are merged and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Redis edge.
    pub resp: RespConfig,
    /// The HTTP edge; `None` switches it off.
    pub http: Option<HttpConfig>,
    /// The Flight edge; `None` switches it off.
    pub flight: Option<FlightConfig>,
    /// librdkafka options of consumers and of the producer, `bootstrap.servers` included.
    pub kafka: KafkaConfig,
    /// The broker inside this process, if any.
    pub embedded: Option<EmbeddedConfig>,
    /// Topics that are streams, and how these are kept. The embedded broker has them from the start.
    pub streams: StreamsConfig,
    /// How SQL is answered, and what is stored.
    pub sql: SqlConfig,
    /// What keys and payloads are made of.
    pub formats: FormatsConfig,
    /// Limits of Arrow batches.
    pub batches: BatchConfig,
    /// How long a graceful shutdown may take before the process exits anyway.
    pub shutdown_grace: Duration,
    /// What goes to stderr.
    pub log: LogConfig,
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

/// Listener and limits of the HTTP edge.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where `/metrics`, `/livez` and `/readyz` are served; port 0 lets the system choose.
    pub addr: SocketAddr,
    /// As [`RespConfig::protected_mode`]: remote clients learn only whether karrow lives and is ready.
    pub protected_mode: bool,
    /// Connections beyond this are closed at once.
    pub connections_max: usize,
    /// How long a connection may be silent before the head of a request, and how long a reader may read nothing.
    pub request_time_max: Duration,
}

/// Listener and limits of the Flight edge.
#[derive(Clone, Debug)]
pub struct FlightConfig {
    /// Where Flight clients connect; port 0 lets the system choose.
    pub addr: SocketAddr,
    /// Largest message of a client, in bytes.
    pub request_bytes_max: usize,
    /// Refuse remote clients while listening beyond loopback without users.
    pub protected_mode: bool,
}

/// Limits of Arrow batches, where a reader asks for no others.
#[derive(Clone, Copy, Debug)]
pub struct BatchConfig {
    /// Most records.
    pub rows_max: usize,
    /// Most bytes of their keys and payloads.
    pub bytes_max: usize,
}

/// What goes to stderr, and how it looks.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Lines for people or JSON for machines.
    pub format: LogFormat,
    /// A level, or tracing's filter directives.
    pub level: String,
}

/// librdkafka options by client type: the file's `general` section is merged under both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// Something odd about the configuration that does not keep karrow from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Redis allows arguments of up to 512 MiB; so may a whole request here be that large.
const REQUEST_BYTES_MAX: usize = 512 << 20;
/// What a request may need around its largest argument: a command, a key, lengths.
const REQUEST_OVERHEAD_BYTES: usize = 64 << 10;
/// librdkafka's own default of `message.max.bytes`.
const MESSAGE_BYTES_MAX: usize = 1_000_000;
/// Each client that asks for named queries all the time keeps one.
const HTTP_CONNECTIONS_MAX: usize = 1024;
/// Prometheus gives up after ten seconds, too.
const HTTP_REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
const BROKERS: &str = "localhost:9092";
const BOOTSTRAP_SERVERS: &str = "bootstrap.servers";

impl Config {
    /// Merges flags and environment with the files they name, and checks the result.
    ///
    /// A flag beats its environment variable, both beat karrow.toml. Errors are
    /// [`ErrorKind::Invalid`](crate::error::ErrorKind::Invalid) and one line that names the setting,
    /// and the file where it is in one.
    pub fn load(flags: ServeFlags) -> Result<(Self, Vec<Warning>)> {
        let mut warnings = Vec::new();
        let (file, kafka) = load_files(&flags.config, &mut warnings)?;
        let brokers_typed = flags.settings.brokers.is_some();
        let settings = flags.settings.or(file);
        let config = Self::build(settings, kafka, brokers_typed, &mut warnings)?;
        Ok((config, warnings))
    }

    fn build(
        settings: Settings,
        mut kafka: KafkaConfig,
        brokers_typed: bool,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self> {
        let Host(host) = settings.host.unwrap_or(Host(Ipv4Addr::LOCALHOST.into()));
        let http = match settings.http_port.unwrap_or(OptionalPort::On(8080)) {
            OptionalPort::Off => None,
            OptionalPort::On(port) => Some(HttpConfig {
                addr: SocketAddr::new(host, port),
                protected_mode: !settings.no_protected_mode.unwrap_or(false),
                connections_max: HTTP_CONNECTIONS_MAX,
                request_time_max: HTTP_REQUEST_TIME_MAX,
            }),
        };
        let topics = distinct(settings.topics.clone().unwrap_or_default());
        let brokers = settings.brokers.as_ref().map(|Brokers(list)| list.as_str());
        let embedded = settings.embedded.unwrap_or(false).then(|| EmbeddedConfig {
            data_dir: settings.data_dir.clone().unwrap_or_else(|| PathBuf::from("karrow-data")),
            // Loopback whatever --host says: this listener has neither users nor protected mode.
            kafka_addr: SocketAddr::new(
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                settings.kafka_port.unwrap_or(9092),
            ),
        });
        match &embedded {
            Some(embedded) => {
                if brokers_typed {
                    return Err(Error::invalid(
                        "--brokers and --embedded exclude each other: one names a Kafka, the other brings its own",
                    ));
                }
                kafka.embed(embedded.kafka_addr, brokers, warnings);
            }
            None => {
                for (name, given) in [
                    ("data-dir", settings.data_dir.is_some()),
                    ("kafka-port", settings.kafka_port.is_some()),
                ] {
                    if given {
                        warnings.push(Warning(format!(
                            "{name} is not used: it is the embedded broker's, see --embedded"
                        )));
                    }
                }
                kafka.choose_brokers(brokers, brokers_typed, warnings);
            }
        }
        let resp = resp_config(&settings, host, &kafka, warnings);
        let flight = match settings.flight_port.unwrap_or(OptionalPort::On(8815)) {
            OptionalPort::Off => None,
            OptionalPort::On(port) => Some(FlightConfig {
                addr: SocketAddr::new(host, port),
                request_bytes_max: resp.bulk_bytes_max,
                protected_mode: resp.protected_mode,
            }),
        };
        let streams = streams_config(&settings, topics);
        Ok(Self {
            sql: sql_config(&settings, warnings)?,
            formats: formats_config(&settings)?,
            batches: BatchConfig {
                rows_max: settings.batch_size.map_or(8_192, |Count(rows)| rows),
                bytes_max: settings.batch_bytes.map_or(1 << 20, |ByteSize(bytes)| bytes),
            },
            resp,
            http,
            flight,
            kafka,
            embedded,
            streams,
            shutdown_grace: span(settings.shutdown_grace, Duration::from_secs(30)),
            log: LogConfig {
                format: settings.log_format.unwrap_or_default(),
                level: settings
                    .log_level
                    .map_or_else(|| "info".to_owned(), |LogLevel(level)| level),
            },
        })
    }
}

fn streams_config(settings: &Settings, topics: Vec<String>) -> StreamsConfig {
    let bytes = |size: Option<ByteSize>, default| size.map_or(default, |ByteSize(bytes)| bytes);
    let (patterns, topics): (Vec<_>, Vec<_>) =
        topics.into_iter().partition(|name| name.starts_with('^'));
    let window_bytes_max = bytes(settings.buffer_limit, 100 << 20);
    StreamsConfig {
        // They were checked when they were parsed.
        patterns: patterns.iter().filter_map(|pattern| topic_pattern(pattern).ok()).collect(),
        topics,
        start: settings.start.unwrap_or_default(),
        rows_max: settings.batch_size.map_or(8_192, |Count(rows)| rows),
        // A window of few batches would be far from full after one has left it.
        bytes_max: bytes(settings.batch_bytes, 1 << 20).min(window_bytes_max / 4).max(1),
        linger: span(settings.batch_linger, Duration::from_millis(50)),
        age_max: span(settings.ttl, Duration::from_secs(60)),
        window_bytes_max,
        memory_bytes_max: bytes(settings.memory_limit, 1 << 30),
        when_full: settings.when_full.unwrap_or_default(),
    }
}

/// What DuckDB needs to write its log into its file, while queries leave it some.
const STORING_MEMORY_BYTES_MIN: usize = 64 << 20;

fn sql_config(settings: &Settings, warnings: &mut Vec<Warning>) -> Result<SqlConfig> {
    for (name, query) in &settings.queries {
        if !query_name_is_legal(name) {
            let why = "no legal name of a query (1 to 100 of a-z A-Z 0-9 . _ -)";
            return Err(Error::invalid(format!("queries.{name}: {why}")));
        }
        if query.sql.trim().is_empty() {
            return Err(Error::invalid(format!("queries.{name}: sql is empty")));
        }
    }
    let is_stored = settings.persist.unwrap_or(false);
    for (name, given) in [
        ("db-path", settings.db_path.is_some()),
        ("db-max-age", settings.db_max_age.is_some()),
        ("db-max-size", settings.db_max_size.is_some()),
    ] {
        if given && !is_stored {
            let why = format!("{name} is not used: nothing is stored, see --persist");
            warnings.push(Warning(why));
        }
    }
    let memory_bytes_max = bytes(settings.sql_memory, 512 << 20);
    if is_stored && memory_bytes_max < STORING_MEMORY_BYTES_MIN {
        let min = STORING_MEMORY_BYTES_MIN >> 20;
        let why = format!("sql-memory: storing (--persist) takes at least {min}MiB");
        return Err(Error::invalid(why));
    }
    let file = || settings.db_path.clone().unwrap_or_else(|| PathBuf::from("karrow.duckdb"));
    Ok(SqlConfig {
        file: is_stored.then(file),
        stored_age_max: settings.db_max_age.map(|Span(age)| age),
        stored_bytes_max: settings.db_max_size.map(|ByteSize(bytes)| bytes),
        memory_bytes_max,
        threads: threads(settings.sql_threads.map_or(0, |Count(asked)| asked)),
        time_max: span(settings.sql_time, Duration::from_secs(30)),
        queries_max: settings.sql_concurrency.map_or(4, |Count(queries)| queries),
        result_bytes_max: bytes(settings.sql_result_limit, 64 << 20),
        queries: settings.queries.clone(),
    })
}

/// Checks what karrow.toml says of single topics, as far as that needs no other file.
fn formats_config(settings: &Settings) -> Result<FormatsConfig> {
    for (topic, known) in &settings.topic {
        if !topic_is_legal(topic) {
            return Err(Error::invalid(format!("topic.{topic}: no legal topic name")));
        }
        let payload = known.payload.or(settings.payload_format);
        known
            .check(payload.unwrap_or(Format::Auto))
            .map_err(|why| Error::invalid(format!("topic.{topic}: {why}")))?;
    }
    let registry = settings.schema_registry.as_ref().map(|urls| SchemaRegistrySettings {
        urls: urls.clone(),
        user: settings.schema_registry_user.clone(),
        password: settings.schema_registry_password.clone(),
        token: settings.schema_registry_token.clone(),
        ca_file: settings.schema_registry_ca.clone(),
    });
    let default = FormatsConfig::default();
    Ok(FormatsConfig {
        registry,
        payload: settings.payload_format.unwrap_or(default.payload),
        key: settings.key_format.unwrap_or(default.key),
        on_bad_record: settings.on_bad_record.unwrap_or(default.on_bad_record),
        fields_max: settings.json_fields.map_or(default.fields_max, |Count(fields)| fields),
        topics: settings.topic.clone(),
        ..default
    })
}

impl KafkaConfig {
    /// What `karrow topics` needs: the options of the files, and `brokers` where given.
    pub fn load(files: &[PathBuf], brokers: Option<Brokers>) -> Result<(Self, Vec<Warning>)> {
        let mut warnings = Vec::new();
        let (settings, mut kafka) = load_files(files, &mut warnings)?;
        let typed = brokers.is_some();
        let brokers = brokers.or(settings.brokers).map(|Brokers(list)| list);
        kafka.choose_brokers(brokers.as_deref(), typed, &mut warnings);
        Ok((kafka, warnings))
    }

    /// Points every client at `servers`, a list as librdkafka takes it.
    pub fn set_bootstrap_servers(&mut self, servers: &str) {
        for options in [&mut self.consumer, &mut self.producer] {
            options.insert(BOOTSTRAP_SERVERS.to_owned(), servers.to_owned());
        }
    }

    /// The largest message that the producer takes, in bytes of key, headers and payload.
    pub fn message_bytes_max(&self) -> usize {
        let given = self.producer.get("message.max.bytes").and_then(|bytes| bytes.parse().ok());
        given.unwrap_or(MESSAGE_BYTES_MAX)
    }

    /// Where the producer, and all that asks for metadata, connects.
    pub fn bootstrap_servers(&self) -> &str {
        self.producer.get(BOOTSTRAP_SERVERS).map_or(BROKERS, String::as_str)
    }

    /// `typed` brokers beat the file's without a word; two files that differ are worth one.
    fn choose_brokers(&mut self, brokers: Option<&str>, typed: bool, warnings: &mut Vec<Warning>) {
        match brokers {
            Some(brokers) => {
                if !typed && self.named_brokers().is_some_and(|named| named != brokers) {
                    warnings.push(Warning(format!(
                        "brokers={brokers} replaces bootstrap.servers of the librdkafka file"
                    )));
                }
                self.set_bootstrap_servers(brokers);
            }
            None => {
                for options in [&mut self.consumer, &mut self.producer] {
                    options
                        .entry(BOOTSTRAP_SERVERS.to_owned())
                        .or_insert_with(|| BROKERS.to_owned());
                }
            }
        }
    }

    /// Points every client at the embedded broker, which speaks neither TLS nor SASL.
    fn embed(&mut self, addr: SocketAddr, brokers: Option<&str>, warnings: &mut Vec<Warning>) {
        if let Some(named) = brokers.or(self.named_brokers()) {
            warnings.push(Warning(format!("{named} is not used: --embedded brings its own Kafka")));
        }
        for options in [&mut self.consumer, &mut self.producer] {
            options.remove("security.protocol");
        }
        self.set_bootstrap_servers(&addr.to_string());
    }

    fn named_brokers(&self) -> Option<&str> {
        self.consumer
            .get(BOOTSTRAP_SERVERS)
            .or_else(|| self.producer.get(BOOTSTRAP_SERVERS))
            .map(String::as_str)
    }
}

/// Sorts the files by what they hold and reads them.
fn load_files(files: &[PathBuf], warnings: &mut Vec<Warning>) -> Result<(Settings, KafkaConfig)> {
    let mut settings: Option<Settings> = None;
    let mut kafka: Option<KafkaConfig> = None;
    for path in files {
        let twice = match kind(path)? {
            FileKind::Karrow => settings.replace(file::load(path)?).is_some(),
            FileKind::Librdkafka => kafka.replace(librdkafka::load(path, warnings)?).is_some(),
        };
        if twice {
            return Err(Error::invalid(format!(
                "{}: a second file of its kind, one *.json and one *.toml are read",
                path.display()
            )));
        }
    }
    Ok((settings.unwrap_or_default(), kafka.unwrap_or_default()))
}

enum FileKind {
    Karrow,
    Librdkafka,
}

/// By extension; the samples of the repository count as what they are samples of.
fn kind(path: &Path) -> Result<FileKind> {
    let name = path.to_string_lossy();
    let name = name.strip_suffix(".sample").unwrap_or(&name);
    if name.ends_with(".json") {
        Ok(FileKind::Librdkafka)
    } else if name.ends_with(".toml") {
        Ok(FileKind::Karrow)
    } else {
        Err(Error::invalid(format!(
            "{}: expected *.json (librdkafka options) or *.toml (karrow's settings)",
            path.display()
        )))
    }
}

fn resp_config(
    settings: &Settings,
    host: IpAddr,
    kafka: &KafkaConfig,
    warnings: &mut Vec<Warning>,
) -> RespConfig {
    // librdkafka has checked the number.
    let message_bytes_max = kafka.message_bytes_max();
    let mut bulk_bytes_max = bytes(settings.bulk_limit, 32 << 20);
    if bulk_bytes_max < message_bytes_max {
        if settings.bulk_limit.is_some() {
            warnings.push(Warning(format!(
                "bulk-limit is raised to the producer's message.max.bytes, {message_bytes_max}"
            )));
        }
        bulk_bytes_max = message_bytes_max;
    }
    RespConfig {
        addr: SocketAddr::new(host, settings.port.unwrap_or(6380)),
        io_threads: threads(settings.io_threads.map_or(0, |Count(asked)| asked)),
        protected_mode: !settings.no_protected_mode.unwrap_or(false),
        clients_max: settings.max_clients.map_or(10_000, |Count(clients)| clients),
        bulk_bytes_max,
        request_bytes_max: REQUEST_BYTES_MAX.max(bulk_bytes_max + REQUEST_OVERHEAD_BYTES),
        output_bytes_max: bytes(settings.output_limit, 1 << 20),
        lpop_wait: span(settings.lpop_wait, Duration::from_secs(5)),
        connection_inflight_bytes_max: bytes(settings.connection_inflight, 16 << 20),
        topic_inflight_bytes_max: bytes(settings.topic_inflight, 64 << 20),
    }
}

/// So many threads; with 0, as many as half of the cores.
fn threads(asked: usize) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1)),
        _ => asked,
    }
}

fn bytes(size: Option<ByteSize>, default: usize) -> usize {
    size.map_or(default, |ByteSize(bytes)| bytes)
}

fn span(span: Option<Span>, default: Duration) -> Duration {
    span.map_or(default, |Span(duration)| duration)
}

fn distinct(topics: Vec<TopicName>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for TopicName(name) in topics {
        if !name.is_empty() && !kept.contains(&name) {
            kept.push(name);
        }
    }
    kept
}

/// Kafka's own rule for topic names.
pub fn topic_is_legal(name: &str) -> bool {
    (1..=249).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
