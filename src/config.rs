//! What the program needs to run, validated once; where each value came from is `config/`'s business.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};

mod file;
pub mod flags;
mod librdkafka;
pub mod units;

use flags::{Host, HttpPort, LogFormat, ServeFlags, Settings};
pub use librdkafka::OWNED as OWNED_CONSUMER_OPTIONS;
use units::{ByteSize, Span};

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
        let http_addr = match settings.http_port.unwrap_or(HttpPort::On(8080)) {
            HttpPort::Off => None,
            HttpPort::On(port) => Some(SocketAddr::new(host, port)),
        };
        let topics = checked_topics(settings.topics.clone().unwrap_or_default())?;
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
                kafka.embed(embedded.kafka_addr, settings.brokers.as_deref(), warnings);
            }
            None => {
                if !topics.is_empty() {
                    warnings.push(Warning(
                        "topics are created in the embedded broker only, use `karrow topics create`"
                            .to_owned(),
                    ));
                }
                kafka.choose_brokers(settings.brokers.as_deref(), brokers_typed, warnings)?;
            }
        }
        let resp = resp_config(&settings, host, &kafka, warnings)?;
        Ok(Self {
            resp,
            http_addr,
            kafka,
            embedded,
            topics,
            shutdown_grace: span(settings.shutdown_grace, Duration::from_secs(30)),
            log: LogConfig {
                format: settings.log_format.unwrap_or_default(),
                level: settings.log_level.unwrap_or_else(|| "info".to_owned()),
            },
        })
    }
}

impl KafkaConfig {
    /// What `karrow topics` needs: the options of the files, and `brokers` where given.
    pub fn load(files: &[PathBuf], brokers: Option<&str>) -> Result<(Self, Vec<Warning>)> {
        let mut warnings = Vec::new();
        let (settings, mut kafka) = load_files(files, &mut warnings)?;
        let typed = brokers.is_some();
        let brokers = brokers.or(settings.brokers.as_deref());
        kafka.choose_brokers(brokers, typed, &mut warnings)?;
        Ok((kafka, warnings))
    }

    /// Points every client at `servers`, a list as librdkafka takes it.
    pub fn set_bootstrap_servers(&mut self, servers: &str) {
        for options in [&mut self.consumer, &mut self.producer] {
            options.insert(BOOTSTRAP_SERVERS.to_owned(), servers.to_owned());
        }
    }

    /// Where the producer, and all that asks for metadata, connects.
    pub fn bootstrap_servers(&self) -> &str {
        self.producer.get(BOOTSTRAP_SERVERS).map_or(BROKERS, String::as_str)
    }

    /// `typed` brokers beat the file's without a word; two files that differ are worth one.
    fn choose_brokers(
        &mut self,
        brokers: Option<&str>,
        typed: bool,
        warnings: &mut Vec<Warning>,
    ) -> Result<()> {
        match brokers {
            Some(brokers) => {
                checked_brokers(brokers)
                    .map_err(|why| Error::invalid(format!("brokers: {why}")))?;
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
        Ok(())
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
) -> Result<RespConfig> {
    // librdkafka has checked the number.
    let message_bytes_max = kafka
        .producer
        .get("message.max.bytes")
        .and_then(|bytes| bytes.parse().ok())
        .unwrap_or(MESSAGE_BYTES_MAX);
    let mut bulk_bytes_max = positive("bulk-limit", settings.bulk_limit, 32 << 20)?;
    if bulk_bytes_max < message_bytes_max {
        if settings.bulk_limit.is_some() {
            warnings.push(Warning(format!(
                "bulk-limit is raised to the producer's message.max.bytes, {message_bytes_max}"
            )));
        }
        bulk_bytes_max = message_bytes_max;
    }
    let clients_max = settings.max_clients.unwrap_or(10_000);
    if clients_max == 0 {
        return Err(Error::invalid("max-clients: must be at least 1"));
    }
    Ok(RespConfig {
        addr: SocketAddr::new(host, settings.port.unwrap_or(6380)),
        io_threads: io_threads(settings.io_threads.unwrap_or(0))?,
        protected_mode: !settings.no_protected_mode.unwrap_or(false),
        clients_max,
        bulk_bytes_max,
        request_bytes_max: REQUEST_BYTES_MAX.max(bulk_bytes_max + REQUEST_OVERHEAD_BYTES),
        output_bytes_max: positive("output-limit", settings.output_limit, 1 << 20)?,
        lpop_wait: span(settings.lpop_wait, Duration::from_secs(5)),
        connection_inflight_bytes_max: positive(
            "connection-inflight",
            settings.connection_inflight,
            16 << 20,
        )?,
        topic_inflight_bytes_max: positive("topic-inflight", settings.topic_inflight, 64 << 20)?,
    })
}

fn io_threads(asked: usize) -> Result<usize> {
    match asked {
        0 => Ok(std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))),
        1..=1024 => Ok(asked),
        _ => Err(Error::invalid(format!("io-threads: {asked} is more than 1024"))),
    }
}

fn positive(name: &str, size: Option<ByteSize>, default: usize) -> Result<usize> {
    match size {
        None => Ok(default),
        Some(ByteSize(0)) => Err(Error::invalid(format!("{name}: must be at least 1 byte"))),
        // Half of the address space: sums of two limits must not overflow.
        Some(ByteSize(bytes)) => Ok(bytes.min(usize::MAX / 4)),
    }
}

fn span(span: Option<Span>, default: Duration) -> Duration {
    span.map_or(default, |Span(duration)| duration)
}

/// librdkafka passes over what it cannot read, and would wait for brokers for ever. An entry is
/// `[protocol://]host[:port]`; a host that has colons stands in brackets.
fn checked_brokers(brokers: &str) -> std::result::Result<(), String> {
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

fn checked_topics(topics: Vec<String>) -> Result<Vec<String>> {
    let mut kept: Vec<String> = Vec::new();
    for topic in topics {
        let name = topic.trim();
        // An empty KARROW_TOPICS is how compose files say "none".
        if name.is_empty() || kept.iter().any(|known| known == name) {
            continue;
        }
        if !topic_is_legal(name) {
            return Err(Error::invalid(format!(
                "topics: '{name}' is no legal topic name (1 to 249 of a-z A-Z 0-9 . _ -)"
            )));
        }
        kept.push(name.to_owned());
    }
    Ok(kept)
}

/// Kafka's own rule for topic names.
pub fn topic_is_legal(name: &str) -> bool {
    (1..=249).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
