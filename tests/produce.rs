//! Messages on their way to Kafka: counts, failures, caps, and topics that are not there.

use std::time::{Duration, Instant};

use crate::support::kafka::{Code, METADATA, PRODUCE};
use crate::support::{Kafka, Karrow, Reply, eventually};

/// Messages to topics that did not exist, whatever their names.
const FAILED_MISSING: &str = "karrow_deliveries_total{outcome=\"failed\",topic=\"(missing)\"}";

/// A field of `HGETALL stats`.
fn stat(karrow: &Karrow, name: &str) -> usize {
    let stats = karrow.connect().say("HGETALL stats");
    let mut fields = stats.array().chunks(2);
    let found = fields.find(|pair| pair[0].text() == name).expect("a field");
    found[1].text().parse().expect("a number")
}

#[test]
fn keys_and_values_arrive_as_they_were_said() {
    let kafka = Kafka::with(&[("p", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.connect();
    let cases: &[(&[&[u8]], i64)] = &[
        (&[b"RPUSH", b"topics:p", b"one"], 1),
        (&[b"RPUSH", b"topics:p:key", b"two", b"three"], 2),
        (&[b"RPUSHX", b"topics:p:a:b:c", b"four"], 1),
        (&[b"RPUSHX", b"topic:p:k", b"five"], 1),
        (&[b"rpushx", b"topics:p:", b"six"], 1),
        (&[b"RPUSH", b"topics:p:\xff\r\n", b"\xfe\0\r\n"], 1),
        (&[b"RPUSH", b"topics:p", b""], 1),
        // rafka does not look at the prefix of a produce key.
        (&[b"RPUSHX", b"anything:p", b"seven"], 1),
    ];
    for (command, expect) in cases {
        assert_eq!(client.call(command).int(), *expect, "{}", command[1].escape_ascii());
    }
    assert_eq!(client.say("DUMP 30000").int(), 0);
    type KeyAndValue<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);
    let expect: [KeyAndValue<'_>; 9] = [
        (None, Some(b"one")),
        (Some(b"key"), Some(b"two")),
        (Some(b"key"), Some(b"three")),
        (Some(b"a:b:c"), Some(b"four")),
        (Some(b"k"), Some(b"five")),
        (None, Some(b"six")),
        (Some(b"\xff\r\n"), Some(b"\xfe\0\r\n")),
        (None, Some(b"")),
        (None, Some(b"seven")),
    ];
    let found = kafka.records("p", 0);
    let found: Vec<_> =
        found.iter().map(|(key, value)| (key.as_deref(), value.as_deref())).collect();
    assert_eq!(found, expect);
    let bad_key =
        "-PROD First argument must be in the form of 'topics:<topic>' or 'topics:<topic>:<key>'";
    for (command, expect) in [
        ("RPUSHX topics:p a b", "-PROD RPUSHX accepts 2 arguments, got 3"),
        ("RPUSHX topics a", bad_key),
        ("RPUSHX topics: a", bad_key),
        ("RPUSHX topics::k a", bad_key),
        ("RPUSH topics: a", bad_key),
        ("RPUSH anything:p a", "-CONS You can only RPUSH to the 'acks' key"),
        ("DUMP", "-ERR wrong number of arguments for 'dump' command"),
        ("DUMP x", "-PROD NaN"),
        ("DUMP 1.5", "-PROD NaN"),
        ("DUMP 0", ":0"),
        ("DUMP -1", ":0"),
    ] {
        assert_eq!(client.say(command).to_string(), expect, "{command}");
    }
    for topic in ["a b", "..", "\u{e4}", &"x".repeat(250)] {
        for command in ["RPUSH", "RPUSHX"] {
            let reply = client.call(&[command, &format!("topics:{topic}"), "x"]);
            assert!(
                reply.error().starts_with("PROD ") && reply.error().contains("topic"),
                "{reply}"
            );
        }
    }
    assert_eq!(client.say("PING").to_string(), "+PONG");
}

#[test]
fn a_missing_topic_is_found_out_at_once() {
    let kafka = Kafka::with(&[("gone", 1)]);
    // The mock cluster would create it for a producer.
    kafka.set_topic_error("gone", Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.connect();
    // Connect first: the half second is the topic's, not the broker's.
    client.say("KEYS *");
    let start = Instant::now();
    assert_eq!(client.say("RPUSHX topics:gone a").int(), 1);
    eventually("the delivery error", || {
        (stat(&karrow, "producer.delivery.errors") == 1).then_some(())
    });
    let took = start.elapsed();
    assert!(
        took < Duration::from_millis(1500),
        "promised is half a second on an idle machine: {took:?}"
    );
    assert_eq!(karrow.metric(FAILED_MISSING), 1.0);
    let missing = "PROD Broker: Unknown topic or partition: 'gone'";
    assert_eq!(client.say("RPUSHX topics:gone b").error(), missing);
    assert_eq!(
        client.say("RPUSH topics:gone c d").error(),
        format!("{missing} (2 of 2 messages not stored)")
    );
    assert_eq!(client.say("DUMP 1000").int(), 0);
    assert_eq!(stat(&karrow, "producer.unflushed.messages"), 0);
    // Whoever insists asks the brokers once a second.
    kafka.track();
    let start = Instant::now();
    let mut said = 0;
    while start.elapsed() < Duration::from_secs(3) {
        assert_eq!(client.say("RPUSHX topics:gone e").error(), missing);
        said += 1;
    }
    let asked = kafka.count(METADATA);
    // librdkafka asks for a topic that it has just missed on its own, too.
    assert!(asked <= 15 && asked < said, "{asked} lookups for {said} messages in 3 s");
    // DEL starts the counters again.
    assert_eq!(client.say("DEL stats").int(), 1);
    assert_eq!(stat(&karrow, "producer.delivery.errors"), 0);
    // When it is there it is found.
    kafka.set_topic_error("gone", Code::RD_KAFKA_RESP_ERR_NO_ERROR);
    eventually("the topic", || {
        matches!(client.say("RPUSH topics:gone f"), Reply::Int(1)).then_some(())
    });
    assert_eq!(kafka.values("gone", 0), [b"f"]);
}

/// More names than may wait for their verdict at once: they pass, and leave nothing behind.
#[test]
fn names_that_clients_invent_do_not_stay() {
    let kafka = Kafka::with(&[("p", 1)]);
    let karrow = Karrow::with(&kafka, &[], |config| {
        // The mock cluster would create them all.
        config.kafka.producer.insert("allow.auto.create.topics".into(), "false".into());
    });
    let mut client = karrow.connect();
    let names = 600;
    for index in 0..names {
        client.start(&format!("RPUSHX topics:invented-{index} x"));
    }
    client.start("RPUSH topics:p y");
    for _ in 0..=names {
        assert_eq!(client.reply().int(), 1);
    }
    assert_eq!(client.say("DUMP 30000").int(), 0);
    let reply = client.say("RPUSH topics:invented-x a b");
    assert!(reply.error().ends_with("(2 of 2 messages not stored)"), "{reply}");
    // The last two count if they were taken before the verdict on their topic came; refused at once, they are no deliveries.
    let failed = karrow.metric(FAILED_MISSING);
    assert!(failed == f64::from(names) || failed == f64::from(names + 2), "{failed}");
    assert_eq!(stat(&karrow, "producer.delivery.errors") as f64, failed);
    let metrics = karrow.metrics();
    assert!(!metrics.keys().any(|name| name.contains("invented")), "{metrics:?}");
    eventually("the names to be forgotten", || {
        let page = client.say("INFO kafka");
        let (_, rest) = page.text().split_once("producer_topics:").expect("a row");
        let count: usize = rest.lines().next().and_then(|row| row.parse().ok()).expect("a number");
        // The real one, and the missing ones that are remembered.
        (count <= 257).then_some(())
    });
    assert_eq!(client.say("RPUSH topics:p z").int(), 1);
    // A name that was forgotten is asked for anew.
    kafka.create("invented-0", 1);
    eventually("the topic", || {
        matches!(client.say("RPUSH topics:invented-0 x"), Reply::Int(1)).then_some(())
    });
}

/// While no broker answers, messages to a topic that nobody knows wait as long as those of any other.
#[test]
fn without_a_broker_messages_wait_until_their_time_is_over() {
    let karrow = Karrow::at("127.0.0.1:1", &[], |config| {
        config.kafka.producer.insert("message.timeout.ms".into(), "1000".into());
        config.kafka.producer.insert("linger.ms".into(), "0".into());
    });
    let mut client = karrow.connect();
    assert_eq!(client.say("RPUSHX topics:unknown a").int(), 1);
    let reply = client.say("RPUSH topics:unknown b");
    assert_eq!(
        reply.error(),
        "PROD Local: Message timed out: 'unknown' (1 of 1 messages not stored)"
    );
    assert_eq!(stat(&karrow, "producer.delivery.errors"), 2);
    assert_eq!(client.say("DUMP 1000").int(), 0);
}

#[test]
fn failures_of_delivery_reach_rpush() {
    let kafka = Kafka::with(&[("p", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.connect();
    assert_eq!(client.say("RPUSH topics:p before").int(), 1);
    let refused = Code::RD_KAFKA_RESP_ERR_INVALID_RECORD;
    kafka.fail(PRODUCE, &[refused]);
    let reply = client.say("RPUSH topics:p refused");
    let text = reply.error();
    assert!(text.starts_with("PROD ") && text.contains("'p'"), "{text}");
    assert!(text.ends_with("(1 of 1 messages not stored)"), "{text}");
    assert_eq!(stat(&karrow, "producer.delivery.errors"), 1);
    assert_eq!(client.say("RPUSH topics:p after").int(), 1);
    // RPUSHX's show in the stats only.
    kafka.fail(PRODUCE, &[refused]);
    assert_eq!(client.say("RPUSHX topics:p refused").int(), 1);
    eventually("the error", || (stat(&karrow, "producer.delivery.errors") == 2).then_some(()));
    assert_eq!(client.say("RPUSH topics:p end").int(), 1);
    // One that passes is tried again.
    kafka.fail(PRODUCE, &[Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION]);
    assert_eq!(client.say("RPUSH topics:p retried").int(), 1);
    assert_eq!(kafka.values("p", 0), [&b"before"[..], b"after", b"end", b"retried"]);
}

#[test]
fn dump_counts_the_messages_of_its_own_connection() {
    let kafka = Kafka::with(&[("p", 1), ("stuck", 1)]);
    kafka.set_leader("stuck", 0, None);
    let karrow = Karrow::start(&kafka);
    let (mut one, mut two) = (karrow.connect(), karrow.connect());
    for _ in 0..3 {
        assert_eq!(one.say("RPUSHX topics:stuck x").int(), 1);
    }
    assert_eq!(one.say("DUMP 50").int(), 3);
    assert_eq!(two.say("DUMP 50").int(), 0);
    assert_eq!(two.say("RPUSH topics:p x").int(), 1, "others go on");
    assert_eq!(stat(&karrow, "producer.unflushed.messages"), 3);
    assert_eq!(karrow.metric("karrow_producer_unflushed_messages"), 3.0);
    kafka.set_leader("stuck", 0, Some(1));
    assert_eq!(one.say("DUMP 30000").int(), 0);
    assert_eq!(kafka.values("stuck", 0).len(), 3);
}

/// A cap delays whoever is over it, and nobody else; nothing fails.
#[track_caller]
fn caps_delay(flag: &str, fills_the_topic: bool) {
    let kafka = Kafka::with(&[("p", 1), ("stuck", 1)]);
    kafka.set_leader("stuck", 0, None);
    let karrow = Karrow::with(&kafka, &[flag, "1000"], |_| {});
    let mut client = karrow.connect();
    let value = "x".repeat(100);
    for _ in 0..50 {
        client.send(&["RPUSHX", "topics:stuck", &value]);
    }
    client.start("PING");
    let mut taken = 0;
    while !client.is_silent_for(Duration::from_millis(300)) {
        assert_eq!(client.reply().int(), 1);
        taken += 1;
    }
    assert!((1..10).contains(&taken), "{flag}: {taken} of about 1000 bytes");
    let mut other = karrow.connect();
    assert_eq!(other.say("RPUSH topics:p x").int(), 1, "{flag}");
    let mut another = karrow.connect();
    if fills_the_topic {
        another.send(&["RPUSHX", "topics:stuck", &value]);
        assert!(
            another.is_silent_for(Duration::from_millis(300)),
            "{flag}: the topic is full for all"
        );
        assert_eq!(other.say("RPUSH topics:p y").int(), 1, "{flag}");
    }
    kafka.set_leader("stuck", 0, Some(1));
    for _ in taken..50 {
        assert_eq!(client.reply().int(), 1, "{flag}");
    }
    assert_eq!(client.reply().to_string(), "+PONG");
    assert_eq!(client.say("DUMP 30000").int(), 0);
    let stored = 50 + usize::from(fills_the_topic);
    eventually("all to be stored", || (kafka.end("stuck", 0) as usize == stored).then_some(()));
    assert_eq!(stat(&karrow, "producer.delivery.errors"), 0);
}

#[test]
fn a_full_connection_waits() {
    caps_delay("--connection-inflight", false);
}

#[test]
fn a_full_topic_makes_its_senders_wait() {
    caps_delay("--topic-inflight", true);
}

#[test]
fn a_message_beyond_a_cap_passes_alone() {
    let kafka = Kafka::with(&[("p", 1)]);
    let karrow = Karrow::with(&kafka, &["--connection-inflight", "1000"], |_| {});
    let mut client = karrow.connect();
    let big = vec![b'x'; 500_000];
    assert_eq!(client.call(&[b"RPUSH".as_slice(), b"topics:p", &big, &big, &big]).int(), 3);
    // Beyond message.max.bytes is an error of that command.
    let too_big = vec![b'x'; 1_100_000];
    let reply = client.call(&[b"RPUSH".as_slice(), b"topics:p", &too_big, b"small"]);
    assert!(reply.error().ends_with("(1 of 2 messages not stored)"), "{reply}");
    assert!(
        client.call(&[b"RPUSHX".as_slice(), b"topics:p", &too_big]).error().starts_with("PROD ")
    );
    assert_eq!(client.say("RPUSH topics:p x").int(), 1);
}

/// With `enable.gapless.guarantee` librdkafka calls a lost sequence fatal.
#[test]
fn after_a_fatal_error_a_new_producer_takes_over() {
    let kafka = Kafka::with(&[("p", 1), ("stuck", 1)]);
    kafka.set_leader("stuck", 0, None);
    let karrow = Karrow::with(&kafka, &[], |config| {
        config.kafka.producer.insert("enable.gapless.guarantee".into(), "true".into());
    });
    let (mut client, mut bystander) = (karrow.connect(), karrow.connect());
    assert_eq!(client.say("RPUSH topics:p before").int(), 1);
    bystander.start("RPUSH topics:stuck in-flight");
    eventually("it to be in flight", || {
        (stat(&karrow, "producer.unflushed.messages") == 1).then_some(())
    });
    kafka.fail(PRODUCE, &[Code::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER; 3]);
    let reply = client.say("RPUSH topics:p doomed");
    assert!(reply.error().starts_with("PROD "), "{reply}");
    // Each connection hears of its own.
    let reply = bystander.reply();
    assert!(reply.error().starts_with("PROD ") && reply.error().contains("'stuck'"), "{reply}");
    kafka.heal(PRODUCE);
    assert_eq!(stat(&karrow, "producer.unflushed.messages"), 0);
    assert_eq!(client.say("RPUSH topics:p after").int(), 1);
    assert_eq!(client.say("RPUSHX topics:p more").int(), 1);
    assert_eq!(client.say("DUMP 30000").int(), 0);
    assert_eq!(kafka.values("p", 0).last().map(Vec::as_slice), Some(&b"more"[..]));
}

#[cfg(feature = "embedded-broker")]
#[test]
fn the_embedded_broker_creates_topics_as_they_are_produced_to() {
    let karrow = Karrow::embedded(&["--topics", "given"]);
    let mut client = karrow.named("g:n");
    assert_eq!(client.say("KEYS topics:").to_string(), r#"["topics:given"]"#);
    assert_eq!(client.say("RPUSH topics:made one two").int(), 2);
    assert_eq!(client.say("RPUSHX topics:made2 three").int(), 1);
    assert_eq!(client.say("DUMP 30000").int(), 0);
    assert_eq!(
        client.say("KEYS topics:").to_string(),
        r#"["topics:given", "topics:made", "topics:made2"]"#
    );
    assert_eq!(client.say("LLEN topics:made").int(), 2);
    for expect in ["one", "two"] {
        let message = client.say("BLPOP topics:made 30").message().expect("a message");
        assert_eq!(message.text(), expect);
    }
    assert_eq!(client.say("RPUSH acks last").int(), 1);
    eventually("the commit", || {
        let committed = crate::support::kafka::committed(&karrow.brokers, "g", "made", 0);
        (committed == Some(2)).then_some(())
    });
}
