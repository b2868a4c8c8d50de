//! What a consumer's librdkafka options become: the file's, karrow's own, and those a client may ask for.

use std::time::Duration;

use serde_json::{Map, Value};

use super::native::{ClientKind, Handle};
use super::producer::producer_options;
use crate::config::{KafkaConfig, KafkaOptions, OWNED_CONSUMER_OPTIONS};
use crate::error::{Error, Result};

/// What the file may change: karrow's defaults where they are not librdkafka's.
const DEFAULTS: &[(&str, &str)] = &[
    ("auto.offset.reset", "earliest"),
    ("auto.commit.interval.ms", "1000"),
    ("group.protocol", "classic"),
    // A new topic or partition is found within five seconds.
    ("topic.metadata.refresh.interval.ms", "4000"),
    // The prefetch budget of a session, all its partitions together: sized for hundreds of sessions.
    ("queued.min.messages", "10000"),
    ("queued.max.messages.kbytes", "8192"),
    ("fetch.max.bytes", "8388608"),
    // Client telemetry costs requests that an idle session need not make.
    ("enable.metrics.push", "false"),
    // An idle connection that the broker reaps is no event for a log.
    ("log.connection.close", "false"),
];

/// Largest prefetch or fetch size a client may ask for, in bytes.
const FETCH_BYTES_MAX: i64 = 64 << 20;

/// Longest value that a client may give. Kafka's strings have 16-bit lengths, which librdkafka does not check.
const VALUE_BYTES_MAX: usize = 249;

/// What a client may set in its key's JSON, each with its largest number. Everything else could load code
/// (`plugin.library.paths`) or send the file's secrets elsewhere (`bootstrap.servers`).
const ALLOWED: &[(&str, Option<i64>)] = &[
    ("auto.offset.reset", None),
    ("auto.commit.interval.ms", None),
    ("session.timeout.ms", None),
    ("heartbeat.interval.ms", None),
    ("max.poll.interval.ms", None),
    ("fetch.wait.max.ms", None),
    ("fetch.min.bytes", Some(FETCH_BYTES_MAX)),
    ("fetch.max.bytes", Some(FETCH_BYTES_MAX)),
    ("fetch.message.max.bytes", Some(FETCH_BYTES_MAX)),
    ("max.partition.fetch.bytes", Some(FETCH_BYTES_MAX)),
    ("queued.min.messages", Some(100_000)),
    ("queued.max.messages.kbytes", Some(FETCH_BYTES_MAX >> 10)),
    ("isolation.level", None),
    ("group.protocol", None),
    ("group.instance.id", None),
    ("partition.assignment.strategy", None),
    ("client.rack", None),
    ("log.connection.close", None),
];

/// Options that KIP-848 moves to the broker: librdkafka refuses them beside `group.protocol=consumer`.
const CLASSIC_ONLY: &[&str] = &[
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "partition.assignment.strategy",
    "group.protocol.type",
];

/// The options of one group member, complete, and what karrow itself reads from them.
#[derive(Clone, Debug)]
pub struct ConsumerOptions {
    /// For librdkafka.
    pub options: KafkaOptions,
    /// `max.poll.interval.ms`: a client silent for this long leaves the group.
    pub max_poll_interval: Duration,
    /// `isolation.level=read_uncommitted`: the end of a partition is not its stable end.
    pub reads_uncommitted: bool,
    /// `auto.commit.interval.ms`: acks are committed after at most this long.
    pub commit_interval: Duration,
    /// `session.timeout.ms`: bounds how long a name's next owner waits for the old consumer to leave.
    pub session_timeout: Duration,
    /// Whether a partition without a commit starts at its end, so that the start must be committed at once.
    pub starts_at_end: bool,
    /// Whether such a partition starts at its beginning. If neither, it is an error, which librdkafka reports.
    pub starts_at_beginning: bool,
}

impl ConsumerOptions {
    /// Merges `file` (the configuration's consumer section) and `asked` (the JSON of a client's key) for the
    /// member `client_id` of `group`.
    ///
    /// # Errors
    /// Names the option that is not allowed or has a value of the wrong type or size.
    pub fn new(
        file: &KafkaOptions,
        asked: &Map<String, Value>,
        group: &str,
        client_id: &str,
    ) -> Result<Self> {
        let mut options: KafkaOptions = DEFAULTS
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        options.extend(file.clone());
        for (name, value) in asked {
            options.insert(name.clone(), allowed_value(name, value)?);
        }
        if options
            .get("group.protocol")
            .is_some_and(|protocol| protocol.eq_ignore_ascii_case("consumer"))
        {
            for name in CLASSIC_ONLY {
                options.remove(*name);
            }
        }
        for (name, value) in OWNED_CONSUMER_OPTIONS {
            if let Some(value) = value {
                options.insert(name.to_owned(), value.to_owned());
            }
        }
        let is = |options: &KafkaOptions, name: &str, values: &[&str]| {
            options
                .get(name)
                .is_some_and(|value| values.iter().any(|known| value.eq_ignore_ascii_case(known)))
        };
        let starts_at_end = is(&options, "auto.offset.reset", &["latest", "end", "largest"]);
        let starts_at_beginning =
            is(&options, "auto.offset.reset", &["earliest", "beginning", "smallest"]);
        if starts_at_end {
            // The session gives each partition its start as a number. What is left for librdkafka is a position that
            // the topic's retention has passed: the end would skip what is still there and was never acked.
            options.insert("auto.offset.reset".to_owned(), "earliest".to_owned());
        }
        options.insert("group.id".to_owned(), group.to_owned());
        options.insert("client.id".to_owned(), client_id.to_owned());

        Ok(Self {
            max_poll_interval: millis(&options, "max.poll.interval.ms", 300_000)?,
            commit_interval: millis(&options, "auto.commit.interval.ms", 1_000)?,
            reads_uncommitted: is(&options, "isolation.level", &["read_uncommitted"]),
            session_timeout: millis(&options, "session.timeout.ms", 45_000)?,
            starts_at_end,
            starts_at_beginning,
            options,
        })
    }
}

/// Makes and drops a client of each kind that the file has options for: librdkafka judges combinations of options only
/// then. Costs a few milliseconds, so nothing is made where there is nothing to judge.
///
/// # Errors
/// librdkafka's own sentence, with the section whose options it refuses.
pub fn check(config: &KafkaConfig) -> Result<()> {
    let says_something =
        |options: &KafkaOptions| options.keys().any(|name| name != "bootstrap.servers");
    let refused = |section: &str, error: Error| {
        Error::invalid(format!("librdkafka refuses the {section} options: {error}"))
    };
    if says_something(&config.consumer) {
        let options = ConsumerOptions::new(&config.consumer, &Map::new(), "check", "check")
            .map_err(|error| refused("consumer", error))?;
        Handle::new(ClientKind::Consumer, &options.options, 0)
            .map_err(|error| refused("consumer", error))?;
    }
    if says_something(&config.producer) {
        Handle::new(ClientKind::Producer, &producer_options(&config.producer), 0)
            .map_err(|error| refused("producer", error))?;
    }
    Ok(())
}

fn allowed_value(name: &str, value: &Value) -> Result<String> {
    let Some((_, max)) = ALLOWED.iter().find(|(allowed, _)| *allowed == name) else {
        return Err(Error::invalid(format!(
            "option `{}` is not allowed here",
            name.escape_debug()
        )));
    };
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        _ => {
            return Err(Error::invalid(format!(
                "option `{name}` wants a string, a number or a boolean"
            )));
        }
    };
    if text.len() > VALUE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "option `{name}` may have at most {VALUE_BYTES_MAX} bytes, got {}",
            text.len()
        )));
    }
    if let Some(max) = max {
        // librdkafka also takes other bases, which would pass a cap unseen.
        match text.parse::<i64>() {
            Ok(number) if number <= *max => {}
            _ => {
                return Err(Error::invalid(format!(
                    "option `{name}` wants a number of at most {max}, got '{}'",
                    text.escape_debug()
                )));
            }
        }
    }
    Ok(text)
}

fn millis(options: &KafkaOptions, name: &str, default: u64) -> Result<Duration> {
    let Some(text) = options.get(name) else { return Ok(Duration::from_millis(default)) };
    text.parse()
        .map(Duration::from_millis)
        .map_err(|_| Error::invalid(format!("option `{name}` wants milliseconds, got '{text}'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(file: &[(&str, &str)], asked: &str) -> Result<ConsumerOptions> {
        let file = file.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let asked: Map<String, Value> = serde_json::from_str(asked).expect("test JSON");
        ConsumerOptions::new(&file, &asked, "g", "g:n")
    }

    #[test]
    fn the_client_wins_over_the_file_and_the_file_over_defaults() {
        let merged = merge(&[], "{}").unwrap();
        assert_eq!(merged.options["auto.offset.reset"], "earliest");
        let merged =
            merge(&[("auto.offset.reset", "latest"), ("session.timeout.ms", "6000")], "{}")
                .unwrap();
        assert!(merged.starts_at_end);
        let merged_upper = merge(&[], r#"{"auto.offset.reset":"LATEST"}"#).unwrap();
        assert!(merged_upper.starts_at_end);
        assert_eq!(
            merged_upper.options["auto.offset.reset"], "earliest",
            "retention must not skip"
        );
        assert_eq!(merged.session_timeout, Duration::from_secs(6));
        let merged =
            merge(&[("auto.offset.reset", "latest")], r#"{"auto.offset.reset":"earliest"}"#)
                .unwrap();
        assert!(!merged.starts_at_end && merged.starts_at_beginning);
        let merged = merge(&[], r#"{"auto.offset.reset":"error"}"#).unwrap();
        assert!(!merged.starts_at_end && !merged.starts_at_beginning);
    }

    #[test]
    fn what_karrow_owns_cannot_be_changed() {
        let merged =
            merge(&[("enable.auto.offset.store", "true"), ("group.id", "other")], "{}").unwrap();
        assert_eq!(merged.options["enable.auto.offset.store"], "false");
        assert_eq!(merged.options["group.id"], "g");
    }

    #[test]
    fn clients_have_an_allow_list() {
        for (asked, named) in [
            (r#"{"bootstrap.servers":"evil:9092"}"#, "bootstrap.servers"),
            (r#"{"plugin.library.paths":"/tmp/x.so"}"#, "plugin.library.paths"),
            (r#"{"sasl.password":"x"}"#, "sasl.password"),
            (r#"{"enable.auto.commit":false}"#, "enable.auto.commit"),
            (r#"{"fetch.max.bytes":99999999999}"#, "fetch.max.bytes"),
            (r#"{"auto.offset.reset":["earliest"]}"#, "auto.offset.reset"),
            (r#"{"max.poll.interval.ms":"soon"}"#, "max.poll.interval.ms"),
            (r#"{"queued.max.messages.kbytes":"0x1ffff0"}"#, "queued.max.messages.kbytes"),
        ] {
            let error = merge(&[], asked).expect_err(asked);
            assert!(error.message().contains(named), "{error}");
        }
    }

    #[test]
    fn kip_848_drops_what_the_broker_decides() {
        let merged =
            merge(&[("session.timeout.ms", "6000")], r#"{"group.protocol":"consumer"}"#).unwrap();
        assert!(!merged.options.contains_key("session.timeout.ms"));
    }
}
