//! DoAction: what can be asked of karrow beside reading and writing.

use std::time::Duration;

use arrow_flight::{Action, ActionType};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::request::not;
use super::service::Parts;
use super::sql;
use crate::config::streams::topic_pattern;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::admin::{Admin, TopicSpec};
use crate::stream::acks::parse_acks;

/// Deadline of creating a topic.
const CREATE_TIMEOUT: Duration = Duration::from_secs(10);

/// Most partitions of a new topic.
const PARTITIONS_MAX: i64 = 10_000;

const ACTIONS: [(&str, &str); 6] = [
    ("health", "answers ok"),
    ("list-topics", "the names of all topics of Kafka, a result each"),
    ("create-topic", r#"body: a name, or {"topic", "partitions", "replication_factor"}"#),
    ("ack", r#"body: {"group", "name", "acks"}, acks as RPUSH acks takes them; answers {"acked"}"#),
    (
        "add-stream",
        "body: a topic, or a regular expression that begins with ^; keeps a stream of it, whether it is read or not",
    ),
    ("drop-stream", "body: a topic, or a regular expression that was added; the topic stays"),
];

/// All actions.
pub fn list() -> Vec<ActionType> {
    let action = |(name, about): (&str, &str)| ActionType {
        r#type: name.to_owned(),
        description: about.to_owned(),
    };
    ACTIONS.into_iter().chain(sql::ACTIONS).map(action).collect()
}

/// Does one.
///
/// # Errors
/// There is no such action, or its body is wrong.
pub async fn act(parts: &Parts, action: &Action) -> Result<Vec<Bytes>> {
    let text = || match std::str::from_utf8(&action.body) {
        Ok("") => Err(Error::invalid(format!("{}: the body is empty", action.r#type))),
        Ok(text) => Ok(text),
        Err(_) => Err(Error::invalid(format!("{}: the body is no UTF-8", action.r#type))),
    };
    match action.r#type.as_str() {
        "health" => Ok(vec![Bytes::from_static(b"ok")]),
        "list-topics" => {
            let topics = parts.streams.topics().await?;
            Ok(topics.into_iter().map(|topic| Bytes::from(topic.name)).collect())
        }
        "create-topic" => create_topic(parts, text()?).await.map(|()| Vec::new()),
        "ack" => ack(parts, text()?).map(|count| vec![json!({"acked": count}).to_string().into()]),
        "add-stream" => add_stream(parts, text()?).await.map(|()| Vec::new()),
        "drop-stream" => {
            let name = text()?;
            match name.starts_with('^') {
                true if parts.streams.remove_pattern(name) => Ok(Vec::new()),
                true => Err(missing(format!("no streams of '{name}' are wanted"))),
                false if parts.streams.close(name) => Ok(Vec::new()),
                false => Err(missing(format!("topic '{name}' is no stream"))),
            }
        }
        other => {
            let known: Vec<&str> = ACTIONS.iter().map(|(name, _)| *name).collect();
            Err(missing(format!("no action '{other}', but {}", known.join(", "))))
        }
    }
}

fn missing(why: String) -> Error {
    Error::new(ErrorKind::NotFound, why)
}

async fn create_topic(parts: &Parts, body: &str) -> Result<()> {
    let mut fields = match body.starts_with('{') {
        true => object(body)?,
        false => Map::from_iter([("topic".to_owned(), body.into())]),
    };
    let mut number = |name: &str, min: i64, max: i64| match fields.remove(name) {
        None => Ok(1),
        Some(value) => value
            .as_i64()
            .filter(|number| (min..=max).contains(number))
            .map(|number| number as i32)
            .ok_or_else(|| not(name, &value, &format!("a number from {min} to {max}"))),
    };
    let partitions = number("partitions", 1, PARTITIONS_MAX)?;
    let replication_factor = number("replication_factor", -1, 100)?;
    let topic = take_text(&mut fields, "topic")?;
    nothing_else(&fields)?;
    let spec = TopicSpec { partitions, replication_factor, ..TopicSpec::new(&topic) };
    let admin = Admin::new(&parts.producer_options, CREATE_TIMEOUT)?;
    let created = admin.create(&[spec]).await;
    // Joining librdkafka's threads takes a moment.
    tokio::task::spawn_blocking(move || drop(admin));
    created?.into_iter().collect()
}

async fn add_stream(parts: &Parts, name: &str) -> Result<()> {
    if name.starts_with('^') {
        let names = topic_pattern(name).map_err(Error::invalid)?;
        return parts.streams.open_pattern(names).await;
    }
    parts.streams.partition_count(name).await?;
    parts.streams.open(name).await.map(|_| ())
}

fn ack(parts: &Parts, body: &str) -> Result<usize> {
    let mut fields = object(body)?;
    let group = take_text(&mut fields, "group")?;
    let name = take_text(&mut fields, "name")?;
    let acks = take_text(&mut fields, "acks")?;
    nothing_else(&fields)?;
    let name = format!("{group}:{name}");
    let session = parts.registry.session(&name);
    let session = session.ok_or_else(|| missing(format!("no consumer '{name}' is registered")))?;
    session.ack(&parse_acks([acks.as_bytes()].into_iter())?)
}

fn object(body: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(body).map_err(|error| Error::invalid(format!("body: {error}")))
}

fn take_text(fields: &mut Map<String, Value>, name: &str) -> Result<String> {
    match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(value) => Err(not(name, &value, "a text")),
        None => Err(Error::invalid(format!("{name} is missing"))),
    }
}

fn nothing_else(fields: &Map<String, Value>) -> Result<()> {
    match fields.keys().next() {
        Some(unknown) => Err(Error::invalid(format!("{unknown}: no such field"))),
        None => Ok(()),
    }
}
