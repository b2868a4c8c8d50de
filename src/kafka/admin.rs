//! Topics by hand: list, create and delete, on any Kafka that librdkafka reaches.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::{KafkaOptions, topic_is_legal};
use crate::error::{Error, ErrorKind, Result};

/// A topic to create.
#[derive(Clone, Debug)]
pub struct TopicSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// How many partitions it gets, at least 1.
    pub partitions: i32,
    /// Copies of each; -1 is the brokers' default.
    pub replication_factor: i32,
    /// Topic settings, such as `retention.ms`.
    pub config: &'a [(String, String)],
}

impl<'a> TopicSpec<'a> {
    /// One partition, one copy, the brokers' defaults.
    pub fn new(name: &'a str) -> Self {
        Self { name, partitions: 1, replication_factor: 1, config: &[] }
    }
}

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExistingTopic {
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: usize,
}

/// One client for several requests. It owns librdkafka threads: make one, use it, drop it, and do
/// that where blocking is allowed.
pub struct Admin {
    client: AdminClient<DefaultClientContext>,
    timeout: Duration,
}

impl Admin {
    /// A client with the producer's `options`; each request fails after `timeout`.
    pub fn new(options: &KafkaOptions, timeout: Duration) -> Result<Self> {
        let client = options
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<ClientConfig>()
            .create()
            .map_err(|error| Error::invalid(format!("librdkafka: {error}")))?;
        Ok(Self { client, timeout })
    }

    /// All topics that are not Kafka's own, by name. Blocks.
    pub fn list(&self) -> Result<Vec<ExistingTopic>> {
        let metadata = self
            .client
            .inner()
            .fetch_metadata(None, self.timeout)
            .map_err(|error| unreachable(&error, self.timeout))?;
        let mut topics: Vec<_> = metadata
            .topics()
            .iter()
            .filter(|topic| !topic.name().starts_with("__"))
            .map(|topic| ExistingTopic {
                name: topic.name().to_owned(),
                partitions: topic.partitions().len(),
            })
            .collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// Creates the topics; one result each, in their order. Without a broker the whole call fails.
    pub async fn create(&self, topics: &[TopicSpec<'_>]) -> Result<Vec<Result<()>>> {
        for topic in topics {
            if !topic_is_legal(topic.name) {
                return Err(Error::invalid(format!(
                    "topic '{}': no legal name (1 to 249 of a-z A-Z 0-9 . _ -)",
                    topic.name
                )));
            }
        }
        let topics: Vec<_> = topics
            .iter()
            .map(|topic| {
                let replication = TopicReplication::Fixed(topic.replication_factor);
                let new = NewTopic::new(topic.name, topic.partitions, replication);
                topic.config.iter().fold(new, |new, (name, value)| new.set(name, value))
            })
            .collect();
        let results = self
            .client
            .create_topics(&topics, &self.options())
            .await
            .map_err(|error| unreachable(&error, self.timeout))?;
        Ok(results.into_iter().map(outcome).collect())
    }

    /// Deletes the topics; one result each, in their order. Without a broker the whole call fails.
    pub async fn delete(&self, topics: &[&str]) -> Result<Vec<Result<()>>> {
        let results = self
            .client
            .delete_topics(topics, &self.options())
            .await
            .map_err(|error| unreachable(&error, self.timeout))?;
        Ok(results.into_iter().map(outcome).collect())
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.timeout))
            .operation_timeout(Some(self.timeout))
    }
}

/// Creates those of `topics` that do not exist, with one partition each.
pub async fn ensure_topics(
    options: &KafkaOptions,
    topics: &[String],
    timeout: Duration,
) -> Result<()> {
    if topics.is_empty() {
        return Ok(());
    }
    let specs: Vec<_> = topics.iter().map(|topic| TopicSpec::new(topic)).collect();
    let admin = Admin::new(options, timeout)?;
    let results = admin.create(&specs).await;
    // Joining librdkafka's threads takes a moment.
    tokio::task::spawn_blocking(move || drop(admin));
    for result in results? {
        match result {
            Err(error) if error.kind() != ErrorKind::Conflict => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn outcome(result: Result<String, (String, RDKafkaErrorCode)>) -> Result<()> {
    let (topic, code) = match result {
        Ok(_) => return Ok(()),
        Err(failed) => failed,
    };
    let kind = match code {
        RDKafkaErrorCode::TopicAlreadyExists => ErrorKind::Conflict,
        RDKafkaErrorCode::UnknownTopicOrPartition => ErrorKind::NotFound,
        RDKafkaErrorCode::TopicAuthorizationFailed
        | RDKafkaErrorCode::ClusterAuthorizationFailed => ErrorKind::Unauthorized,
        RDKafkaErrorCode::RequestTimedOut | RDKafkaErrorCode::OperationTimedOut => {
            ErrorKind::Timeout
        }
        _ => ErrorKind::Invalid,
    };
    Err(Error::new(kind, format!("topic '{topic}': {}", text(code))))
}

/// What happened, in words. librdkafka's own text for a code begins with "Broker: ".
fn text(code: RDKafkaErrorCode) -> String {
    match code {
        RDKafkaErrorCode::InvalidReplicationFactor => {
            return "the replication factor is below 1 or more than there are brokers".to_owned();
        }
        RDKafkaErrorCode::InvalidConfig => {
            return "a setting is unknown, or its value is wrong".to_owned();
        }
        _ => {}
    }
    let text = code.to_string();
    // rdkafka shows a code as "TopicAlreadyExists (Broker: Topic 'x' already exists)".
    let text = text.split_once('(').map_or(text.as_str(), |(_, rest)| rest.trim_end_matches(')'));
    text.trim_start_matches("Broker: ").to_owned()
}

fn unreachable(error: &KafkaError, timeout: Duration) -> Error {
    let reason = match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::RequestTimedOut,
        ) => format!("no broker answered within {timeout:?}"),
        Some(code) => text(code),
        None => error.to_string(),
    };
    Error::new(ErrorKind::Unavailable, format!("Kafka: {reason}"))
}
