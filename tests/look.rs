//! Looking at topics, counters and commands.

use std::time::{Duration, Instant};

use crate::support::kafka::Code;
use crate::support::{Kafka, Karrow, Reply};

#[track_caller]
fn check(karrow: &Karrow, cases: &[(&str, &str)]) {
    let mut client = karrow.connect();
    for (command, expect) in cases {
        assert_eq!(client.say(command).to_string(), *expect, "{command}");
    }
}

#[test]
fn topics_are_keys() {
    let kafka = Kafka::with(&[("orders", 2), ("orders.dlq", 1), ("clicks", 1)]);
    kafka.put_all("orders", 0, ["a", "b"]);
    kafka.put_all("orders", 1, ["c"]);
    let karrow = Karrow::start(&kafka);
    let all = r#"["topics:clicks", "topics:orders", "topics:orders.dlq"]"#;
    let metadata = "-ERR Expected key to be";
    check(
        &karrow,
        &[
            ("KEYS topics:", all),
            ("KEYS *", all),
            ("KEYS topics:*", all),
            ("KEYS topics:o*", r#"["topics:orders", "topics:orders.dlq"]"#),
            ("KEYS topics:orders", r#"["topics:orders"]"#),
            ("KEYS topics:[bc]l?cks", r#"["topics:clicks"]"#),
            ("KEYS topics:nope*", "[]"),
            ("KEYS nope", "[]"),
            ("SCAN 0", &format!("[\"0\", {all}]")),
            ("SCAN 0 MATCH *click* COUNT 10 TYPE list", r#"["0", ["topics:clicks"]]"#),
            ("SCAN 0 TYPE hash", r#"["0", []]"#),
            ("SCAN x", "-ERR invalid cursor"),
            ("SCAN 0 COUNT 0", "-ERR syntax error"),
            ("SCAN 0 MATCH", "-ERR syntax error"),
            ("SCAN 0 NOSUCH 1", "-ERR syntax error"),
            ("EXISTS topics:orders", ":1"),
            ("EXISTS topics:orders topics:orders topics:nope stats nope", ":3"),
            ("TYPE topics:orders", "+list"),
            ("TYPE topics:nope", "+none"),
            ("TYPE stats", "+hash"),
            ("TYPE nope", "+none"),
            ("LLEN topics:orders", ":3"),
            ("LLEN topics:clicks", ":0"),
            ("LLEN orders", "-ERR Expected key to be 'topics:<topic>', got orders"),
            ("HGETALL other", &format!("{metadata} 'stats', got other")),
            ("DEL other", &format!("{metadata} 'stats', got other")),
            ("DEL stats", ":1"),
        ],
    );
    // Looking creates nothing.
    check(&karrow, &[("KEYS topics:", all)]);
}

#[test]
fn what_does_not_exist_is_empty() {
    let kafka = Kafka::with(&[("gone", 1)]);
    // The mock cluster creates whatever a producer asks for, unless it is told what to say.
    kafka.set_topic_error("gone", Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
    let karrow = Karrow::start(&kafka);
    check(&karrow, &[("LLEN topics:gone", ":0"), ("EXISTS topics:gone", ":0"), ("KEYS *", "[]")]);
}

#[test]
fn without_a_broker_looking_is_an_error_and_the_connection_lives() {
    let karrow = Karrow::at("127.0.0.1:1", &[], |_| {});
    let mut client = karrow.connect();
    let start = Instant::now();
    let looks = ["SCAN 0", "EXISTS topics:t", "TYPE topics:t", "LLEN topics:t", "KEYS *"];
    let mut lookers: Vec<_> = looks.iter().map(|_| karrow.connect()).collect();
    for (looker, command) in lookers.iter_mut().zip(looks) {
        looker.start(command);
    }
    let reply = client.say("KEYS topics:");
    assert!(reply.error().starts_with("ERR Error getting metadata: "), "{reply}");
    for (looker, command) in lookers.iter_mut().zip(looks) {
        let reply = looker.reply();
        assert!(reply.error().starts_with("ERR "), "{command}: {reply}");
        assert!(reply.error().contains("metadata"), "{command}: {reply}");
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "promised are ten seconds: {took:?}");
    assert_eq!(client.say("PING").to_string(), "+PONG");
    let (status, page) = karrow.get("/livez");
    assert_eq!((status, page.as_str()), (200, "ok\n"));
}

#[test]
fn stats_begin_with_rafkas_three() {
    let kafka = Kafka::with(&[("p", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.connect();
    client.say("RPUSH topics:p x");
    let stats = client.say("HGETALL stats");
    let names: Vec<&str> = stats.array().iter().step_by(2).map(Reply::text).collect();
    assert_eq!(
        names[..3],
        ["producer.unflushed.messages", "producer.delivery.errors", "producer.unknown.events"]
    );
    let values: Vec<&str> = stats.array().iter().skip(1).step_by(2).map(Reply::text).collect();
    assert_eq!(values[..3], ["0", "0", "0"]);
}

#[test]
fn monitor_shows_commands_and_hides_secrets() {
    let karrow = Karrow::at("127.0.0.1:1", &[], |_| {});
    let mut monitor = karrow.connect();
    assert_eq!(monitor.say("MONITOR").to_string(), "+OK");
    let mut client = karrow.connect();
    client.call(&[b"ECHO".as_slice(), b"a\"b\r\n\xff"]);
    client.say("AUTH default secret");
    client.say("HELLO 2 AUTH default secret SETNAME g:m");
    client.say("NOSUCH secret-of-a-typo");
    client.say("PING");
    let addr = client.local_addr();
    let mut lines = Vec::new();
    for _ in 0..4 {
        let Reply::Simple(line) = monitor.reply() else { panic!("a line") };
        let (time, rest) = line.split_once(' ').expect("a time");
        assert!(time.parse::<f64>().is_ok(), "{line}");
        lines.push(rest.to_owned());
    }
    assert_eq!(
        lines,
        [
            format!("[0 {addr}] \"ECHO\" \"a\\\"b\\r\\n\\xff\""),
            format!("[0 {addr}] \"AUTH\" \"(redacted)\" \"(redacted)\""),
            format!(
                "[0 {addr}] \"HELLO\" \"2\" \"AUTH\" \"(redacted)\" \"(redacted)\" \"SETNAME\" \"g:m\""
            ),
            format!("[0 {addr}] \"PING\""),
        ]
    );
    // RESET ends it.
    assert_eq!(monitor.say("RESET").to_string(), format!("+{}", "RESET"));
    client.say("PING");
    assert_eq!(monitor.say("PING").to_string(), "+PONG");
}
