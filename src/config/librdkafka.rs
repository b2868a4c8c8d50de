//! librdkafka's options from a JSON file in rafka's format: `general`, `consumer`, `producer`.
//!
//! `general` is merged under the other two. librdkafka itself judges each name and value, so this
//! file is, beside `kafka/`, the one place that names its crate.

use std::path::Path;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

use super::file::read;
use super::{KafkaConfig, KafkaOptions, Warning};

/// Consumer options that karrow sets, because its promises rest on them; `None`: it sets them for each consumer. A file
/// may repeat our value; another one is dropped with a warning.
pub const OWNED: [(&str, Option<&str>); 6] = [
    ("group.id", None),
    ("client.id", None),
    // Only acks move the position...
    ("enable.auto.offset.store", Some("false")),
    // ...and librdkafka commits them, at `auto.commit.interval.ms` and when a partition or the session goes.
    ("enable.auto.commit", Some("true")),
    // librdkafka's batch call takes an end-of-partition event for a message and moves the position past it, where a
    // partition that is kept over a cooperative rebalance then resumes. Ends are asked for instead.
    ("enable.partition.eof", Some("false")),
    // A full prefetch queue sleeps this long; librdkafka's own second makes a drain 50 times slower.
    ("fetch.queue.backoff.ms", Some("5")),
];

/// Names that mean another option. Keeping both would leave it to chance which one wins.
const ALIASES: [(&str, &str); 1] = [("metadata.broker.list", "bootstrap.servers")];

/// Reads, merges and checks the file. Errors are one line naming file, section and option.
pub(super) fn load(path: &Path, warnings: &mut Vec<Warning>) -> Result<KafkaConfig> {
    parse(path, &read(path)?, warnings)
}

fn parse(path: &Path, text: &str, warnings: &mut Vec<Warning>) -> Result<KafkaConfig> {
    let file = path.display();
    let root: Value = serde_json::from_str(text).map_err(|error| {
        // serde_json's own text ends in "at line 3 column 5".
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        Error::invalid(format!("{file}:{}:{}: {reason}", error.line(), error.column()))
    })?;
    let Value::Object(mut root) = root else {
        return Err(Error::invalid(format!("{file}: must hold a JSON object")));
    };
    let mut section = |name: &str| match root.remove(name) {
        None => Ok(KafkaOptions::new()),
        Some(Value::Object(options)) => read_section(&file.to_string(), name, options, warnings),
        Some(_) => Err(Error::invalid(format!("{file}: {name} must be a JSON object"))),
    };
    let general = section("general")?;
    let mut consumer = section("consumer")?;
    let mut producer = section("producer")?;
    if let Some(name) = root.keys().next() {
        return Err(Error::invalid(format!(
            "{file}: unknown section '{name}', expected general, consumer or producer"
        )));
    }
    for (name, value) in general {
        consumer.entry(name.clone()).or_insert_with(|| value.clone());
        producer.entry(name).or_insert(value);
    }
    for (name, ours) in OWNED {
        let given = consumer.remove(name);
        if name != "client.id" {
            producer.remove(name);
        }
        if let Some(value) = given.filter(|value| ours != Some(value.as_str())) {
            warnings.push(Warning(format!(
                "{file}: {name}={value} is ignored for consumers, karrow sets it itself"
            )));
        }
    }
    Ok(KafkaConfig { consumer, producer })
}

fn read_section(
    file: &str,
    section: &str,
    options: Map<String, Value>,
    warnings: &mut Vec<Warning>,
) -> Result<KafkaOptions> {
    let mut kept = KafkaOptions::new();
    for (name, value) in options {
        if name.starts_with("go.") {
            warnings.push(Warning(format!(
                "{file}: {section}.{name} is ignored, it belongs to rafka's Go client"
            )));
            continue;
        }
        let value = match value {
            Value::String(text) => text,
            Value::Bool(switch) => switch.to_string(),
            Value::Number(number) => whole(&number),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                return Err(Error::invalid(format!(
                    "{file}: {section}.{name}: expected a string, a number or a boolean"
                )));
            }
        };
        check(&name, &value)
            .map_err(|reason| Error::invalid(format!("{file}: {section}.{name}: {reason}")))?;
        let name = ALIASES
            .iter()
            .find(|(alias, _)| *alias == name)
            .map_or(name, |(_, real)| (*real).to_owned());
        if name == super::BOOTSTRAP_SERVERS {
            super::flags::check_brokers(&value)
                .map_err(|reason| Error::invalid(format!("{file}: {section}.{name}: {reason}")))?;
        }
        kept.insert(name, value);
    }
    Ok(kept)
}

/// `1e3` and `1000.0` are whole numbers to the user; librdkafka wants to see `1000`.
fn whole(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => {
            format!("{float:.0}")
        }
        _ => number.to_string(),
    }
}

/// Asks librdkafka whether it knows the option and takes the value.
fn check(name: &str, value: &str) -> Result<(), String> {
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(_, reason, ..)) => Err(reason.trim().to_owned()),
        // A NUL byte inside the name or value.
        Err(other) => Err(other.to_string()),
    }
}
