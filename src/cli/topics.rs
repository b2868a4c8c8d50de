//! `karrow topics`: list, create and delete topics, on any Kafka.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::config::KafkaConfig;
use crate::config::flags::{TopicsCommand, TopicsFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::admin::{Admin, TopicSpec};

/// Runs the command and prints what it did on stdout. Blocks.
///
/// With several topics all are tried; the error lists those that failed, separated by `; `.
pub async fn run(flags: TopicsFlags, kafka: KafkaConfig) -> Result<()> {
    let admin = Admin::new(&kafka.producer, flags.timeout.0)?;
    let brokers = kafka.bootstrap_servers();
    let named = |error: Error| Error::new(error.kind(), format!("{error} ({brokers})"));
    match flags.command {
        TopicsCommand::List => {
            let topics = admin.list().map_err(named)?;
            let width = topics.iter().map(|topic| topic.name.len()).max().unwrap_or(0);
            let mut text = String::new();
            for topic in topics {
                let plural = if topic.partitions == 1 { "" } else { "s" };
                let _ =
                    writeln!(text, "{:width$}  {} partition{plural}", topic.name, topic.partitions);
            }
            print(&text)
        }
        TopicsCommand::Create { topics, partitions, replication_factor, config } => {
            let specs: Vec<_> = topics
                .iter()
                .map(|name| TopicSpec { name, partitions, replication_factor, config: &config })
                .collect();
            let results = admin.create(&specs).await.map_err(named)?;
            report("created", &topics, results)
        }
        TopicsCommand::Delete { topics } => {
            let names: Vec<_> = topics.iter().map(String::as_str).collect();
            let results = admin.delete(&names).await.map_err(named)?;
            report("deleted", &topics, results)
        }
    }
}

fn report(done: &str, topics: &[String], results: Vec<Result<()>>) -> Result<()> {
    let mut failed: Option<Error> = None;
    let mut text = String::new();
    for (topic, result) in topics.iter().zip(results) {
        match (result, failed.take()) {
            (Ok(()), before) => {
                let _ = writeln!(text, "{done} {topic}");
                failed = before;
            }
            (Err(error), None) => failed = Some(error),
            (Err(error), Some(before)) => {
                failed = Some(Error::new(before.kind(), format!("{before}; {error}")));
            }
        }
    }
    print(&text)?;
    failed.map_or(Ok(()), Err)
}

fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // `karrow topics list | head` is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(ErrorKind::Internal, format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}
