//! The producer's options: karrow's defaults, the file's, and what the books rest on.

use std::time::Duration;

use crate::config::KafkaOptions;

/// `message.timeout.ms`, unless the options say otherwise.
pub(super) const MESSAGE_TIMEOUT_MS: u64 = 300_000;

/// karrow's defaults under the file's options, with what the books rest on above both.
pub(in crate::kafka) fn producer_options(file: &KafkaOptions) -> KafkaOptions {
    let mut options = KafkaOptions::new();
    // The caps count bytes per connection and topic; librdkafka's count of messages would fail those first.
    options.insert("queue.buffering.max.messages".into(), "0".into());
    options.insert("enable.metrics.push".into(), "false".into());
    options.insert("log.connection.close".into(), "false".into());
    if let Some((name, value)) = forbids_idempotence(file) {
        tracing::warn!("the producer is not idempotent: `{name}={value}` forbids it");
    } else {
        options.insert("enable.idempotence".into(), "true".into());
    }
    options.extend(file.clone());
    // Without reports nothing would ever leave the books.
    options.insert("delivery.report.only.error".into(), "false".into());
    options
}

/// `None` is never.
pub(super) fn message_timeout(options: &KafkaOptions) -> Option<Duration> {
    let said = ["message.timeout.ms", "delivery.timeout.ms"]
        .iter()
        .find_map(|name| options.get(*name)?.parse().ok());
    Some(said.unwrap_or(MESSAGE_TIMEOUT_MS)).filter(|millis| *millis > 0).map(Duration::from_millis)
}

/// The first option of the file that librdkafka refuses beside `enable.idempotence` (KIP-98).
pub(super) fn forbids_idempotence(file: &KafkaOptions) -> Option<(&str, &str)> {
    file.iter().map(|(name, value)| (name.as_str(), value.as_str())).find(|(name, value)| {
        match *name {
            "enable.idempotence" => *value == "false",
            "acks" | "request.required.acks" => *value != "all" && *value != "-1",
            "max.in.flight" | "max.in.flight.requests.per.connection" => {
                value.parse::<u64>().is_ok_and(|count| count > 5)
            }
            "retries" | "message.send.max.retries" => {
                value.parse::<u64>().is_ok_and(|count| count < 1)
            }
            "queuing.strategy" => *value != "fifo",
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotence_gives_way_to_the_file() {
        let with = |name: &str, value: &str| {
            producer_options(&[(name.to_owned(), value.to_owned())].into())
                .get("enable.idempotence")
                .is_some_and(|value| value == "true")
        };
        assert!(with("linger.ms", "1") && with("acks", "all") && with("retries", "3"));
        assert!(!with("acks", "1") && !with("max.in.flight", "6") && !with("retries", "0"));
        assert!(!with("enable.idempotence", "false"));
    }
}
