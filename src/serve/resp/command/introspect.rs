//! Looking at topics, counters, the server and its commands.

use std::fmt::Write;

use super::session::REDIS_VERSION;
use super::{COMMANDS, Client, Command, Outcome, look_up, reply_from, text};
use crate::error::{Error, Result};
use crate::kafka::client_count;
use crate::kafka::producer::Producer;
use crate::serve::glob;
use crate::serve::resp::reply::{Output, Value};

/// The form in which topics are keys.
const PREFIX: &str = "topics:";

pub fn keys(client: &mut Client, args: &[&[u8]], _: &mut Output) -> Outcome {
    let pattern = args.get(1).copied().unwrap_or_default();
    // rafka's way to ask for all.
    let pattern = if pattern == PREFIX.as_bytes() { b"*".to_vec() } else { pattern.to_vec() };
    let producer = client.gateway.producer.clone();
    reply_from(
        async move { Ok(Value::Array(matching(&producer, &pattern).await?)) },
        "ERR Error getting metadata:",
    )
}

pub fn scan(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let mut pattern = b"*".to_vec();
    let mut lists = true;
    let options = args.get(2..).unwrap_or_default();
    if args
        .get(1)
        .and_then(|cursor| std::str::from_utf8(cursor).ok()?.parse::<u64>().ok())
        .is_none()
    {
        out.error("ERR invalid cursor");
        return Outcome::Done;
    }
    for pair in options.chunks(2) {
        match pair {
            [option, value] if option.eq_ignore_ascii_case(b"MATCH") => pattern = value.to_vec(),
            [option, value] if option.eq_ignore_ascii_case(b"TYPE") => {
                lists = value.eq_ignore_ascii_case(b"list")
            }
            [option, value]
                if option.eq_ignore_ascii_case(b"COUNT")
                    && super::integer(value).is_some_and(|count| count > 0) => {}
            _ => {
                out.error("ERR syntax error");
                return Outcome::Done;
            }
        }
    }
    let producer = client.gateway.producer.clone();
    reply_from(
        async move {
            let keys = if lists { matching(&producer, &pattern).await? } else { Vec::new() };
            Ok(Value::Array(vec![Value::Bulk(b"0".to_vec()), Value::Array(keys)]))
        },
        "ERR Error getting metadata:",
    )
}

async fn matching(producer: &Producer, pattern: &[u8]) -> Result<Vec<Value>> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a pattern may have {PATTERN_BYTES_MAX} bytes, this one has {}",
            pattern.len()
        )));
    }
    let topics = producer.topics().await?;
    let keys = topics.into_iter().map(|topic| format!("{PREFIX}{}", topic.name).into_bytes());
    Ok(keys.filter(|key| glob::matches(pattern, key)).map(Value::Bulk).collect())
}

/// Longest pattern. Topics' names have 249 bytes; matching costs the product of both lengths at worst.
const PATTERN_BYTES_MAX: usize = 1024;

/// The topic that a key names.
fn topic_of(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)
}

pub fn exists(client: &mut Client, args: &[&[u8]], _: &mut Output) -> Outcome {
    let keys: Vec<String> = args.iter().skip(1).map(|key| text(key)).collect();
    let producer = client.gateway.producer.clone();
    reply_from(
        async move {
            let topics = producer.topics().await?;
            let known = |key: &&String| {
                key.as_str() == "stats"
                    || key
                        .strip_prefix(PREFIX)
                        .is_some_and(|name| topics.iter().any(|topic| topic.name == name))
            };
            Ok(Value::Int(keys.iter().filter(known).count() as i64))
        },
        "ERR Error getting metadata:",
    )
}

pub fn kind(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let key = args.get(1).copied().unwrap_or_default();
    let Some(topic) = topic_of(key).map(str::to_owned) else {
        out.simple(if key == b"stats" { "hash" } else { "none" });
        return Outcome::Done;
    };
    let producer = client.gateway.producer.clone();
    reply_from(
        async move {
            let exists = producer.topics().await?.iter().any(|known| known.name == topic);
            Ok(Value::Simple(if exists { "list" } else { "none" }))
        },
        "ERR Error getting metadata:",
    )
}

pub fn llen(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let key = args.get(1).copied().unwrap_or_default();
    let Some(topic) = topic_of(key).map(str::to_owned) else {
        out.error(&format!("ERR Expected key to be 'topics:<topic>', got {}", text(key)));
        return Outcome::Done;
    };
    let producer = client.gateway.producer.clone();
    reply_from(async move { Ok(Value::Int(producer.len(&topic).await?)) }, "ERR")
}

pub fn hgetall(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    if let Some(why) = not_stats(args) {
        out.error(&why);
        return Outcome::Done;
    }
    let producer = &client.gateway.producer;
    let registry = &client.gateway.registry;
    let rows = [
        ("producer.unflushed.messages", producer.unflushed()),
        ("producer.delivery.errors", producer.stats().delivery_errors()),
        ("producer.unknown.events", producer.stats().unknown_events()),
        ("consumer.sessions", registry.len()),
        ("consumer.missing.topics", registry.missing()),
        ("clients.connected", client.gateway.clients.len()),
    ];
    out.map(rows.len());
    for (name, value) in rows {
        out.bulk(name);
        out.bulk(value.to_string());
    }
    Outcome::Done
}

pub fn del(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    match not_stats(args) {
        Some(why) => out.error(&why),
        None => {
            client.gateway.producer.stats().reset();
            out.int(1);
        }
    }
    Outcome::Done
}

fn not_stats(args: &[&[u8]]) -> Option<String> {
    match args {
        [_, b"stats"] => None,
        [_, keys @ ..] if !keys.is_empty() => {
            let other = keys.iter().find(|key| **key != b"stats").or(keys.last());
            Some(format!(
                "ERR Expected key to be 'stats', got {}",
                text(other.copied().unwrap_or_default())
            ))
        }
        _ => Some("ERR Expected key to be 'stats'".to_owned()),
    }
}

pub fn info(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let gateway = &client.gateway;
    let asked: Vec<String> = args.iter().skip(1).map(|name| text(name).to_lowercase()).collect();
    let wants = |name: &str| {
        asked.is_empty()
            || asked
                .iter()
                .any(|asked| [name, "all", "everything", "default"].contains(&asked.as_str()))
    };
    let mut page = String::new();
    let mut section = |title: &str, rows: &[(&str, String)]| {
        if wants(&title.to_lowercase()) {
            if !page.is_empty() {
                page.push_str("\r\n");
            }
            let _ = write!(page, "# {title}\r\n");
            for (name, value) in rows {
                let _ = write!(page, "{name}:{value}\r\n");
            }
        }
    };
    let uptime = gateway.started.elapsed().as_secs();
    section(
        "Server",
        &[
            ("redis_version", REDIS_VERSION.to_owned()),
            ("redis_mode", "standalone".to_owned()),
            ("karrow_version", env!("CARGO_PKG_VERSION").to_owned()),
            ("os", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
            ("process_id", std::process::id().to_string()),
            ("tcp_port", gateway.addr.port().to_string()),
            ("uptime_in_seconds", uptime.to_string()),
            ("uptime_in_days", (uptime / 86_400).to_string()),
            ("io_threads_active", gateway.config.io_threads.to_string()),
        ],
    );
    section(
        "Clients",
        &[
            ("connected_clients", gateway.clients.len().to_string()),
            ("maxclients", gateway.config.clients_max.to_string()),
        ],
    );
    section("Persistence", &[("loading", "0".to_owned())]);
    section(
        "Stats",
        &[
            ("total_connections_received", gateway.metrics.connections_accepted.get().to_string()),
            ("total_commands_processed", gateway.counters.total().to_string()),
            ("total_net_input_bytes", gateway.metrics.received_bytes.get().to_string()),
            ("total_net_output_bytes", gateway.metrics.sent_bytes.get().to_string()),
        ],
    );
    section("Replication", &[("role", "master".to_owned()), ("connected_slaves", "0".to_owned())]);
    section(
        "Kafka",
        &[
            ("kafka_clients", client_count().to_string()),
            ("consumer_sessions", gateway.registry.len().to_string()),
            ("producer_topics", gateway.producer.topic_count().to_string()),
            ("producer_unflushed_messages", gateway.producer.unflushed().to_string()),
            ("producer_delivery_errors", gateway.producer.stats().delivery_errors().to_string()),
        ],
    );
    section("Cluster", &[("cluster_enabled", "0".to_owned())]);
    out.text(&page);
    Outcome::Done
}

pub fn monitor(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    if args.len() > 1 {
        out.error("ERR command 'monitor' does not accept any extra arguments");
    } else {
        client.gateway.clients.monitor(&client.info);
        out.simple("OK");
    }
    Outcome::Done
}

pub fn config(_: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    match args {
        [_, get, _, ..] if get.eq_ignore_ascii_case(b"GET") => out.map(0),
        [_, get] if get.eq_ignore_ascii_case(b"GET") => {
            out.error("ERR wrong number of arguments for 'config|get' command");
        }
        [_, other, ..] => out.error(&format!(
            "ERR unknown subcommand '{}': karrow is configured by its flags and files",
            text(other)
        )),
        _ => out.error("ERR wrong number of arguments for 'config' command"),
    }
    Outcome::Done
}

pub fn cluster(_: &mut Client, _: &[&[u8]], out: &mut Output) -> Outcome {
    out.error("ERR This instance has cluster support disabled");
    Outcome::Done
}

pub fn command(_: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let named = |names: &[&[u8]]| -> Vec<Option<&'static Command>> {
        if names.is_empty() {
            COMMANDS.iter().map(Some).collect()
        } else {
            names.iter().map(|name| look_up(name).map(|(_, command)| command)).collect()
        }
    };
    let subcommand = args.get(1).map(|name| name.to_ascii_lowercase());
    let names = args.get(2..).unwrap_or_default();
    match subcommand.as_deref() {
        None => infos(&named(&[]), out),
        Some(b"info") => infos(&named(names), out),
        Some(b"count") => out.int(COMMANDS.len() as i64),
        Some(b"list") => {
            out.array(COMMANDS.len());
            for command in COMMANDS {
                out.bulk(command.name);
            }
        }
        Some(b"docs") => {
            let commands: Vec<&Command> = named(names).into_iter().flatten().collect();
            out.map(commands.len());
            for command in commands {
                out.bulk(command.name);
                docs(command, out);
            }
        }
        Some(other) => {
            out.error(&format!("ERR unknown subcommand '{}'. Try COMMAND HELP.", text(other)))
        }
    }
    Outcome::Done
}

fn infos(commands: &[Option<&Command>], out: &mut Output) {
    out.array(commands.len());
    for command in commands {
        let Some(command) = command else {
            out.null_array();
            continue;
        };
        out.array(6);
        out.bulk(command.name);
        out.int(command.arity.into());
        out.array(0);
        // Keys are not what a cluster would route by.
        out.int(0);
        out.int(0);
        out.int(0);
    }
}

fn docs(command: &Command, out: &mut Output) {
    out.map(4);
    out.bulk("summary");
    out.bulk(command.summary);
    out.bulk("since");
    out.bulk("0.1.0");
    out.bulk("group");
    out.bulk(command.group);
    out.bulk("arguments");
    if command.syntax.is_empty() {
        out.array(0);
    } else {
        out.array(1);
        out.map(3);
        out.bulk("name");
        out.bulk("arguments");
        out.bulk("type");
        out.bulk("string");
        out.bulk("display_text");
        out.bulk(command.syntax);
    }
}
