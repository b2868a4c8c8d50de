//! `auto.offset.reset=latest` without a loss: where a partition starts is committed before its first delivery.

use crate::support::kafka::{Code, HEARTBEAT};
use crate::support::{Client, Kafka, Karrow, eventually};

const KEY: &str = r#"topics:t:{"auto.offset.reset":"latest"}"#;

fn key(topics: &str) -> String {
    format!(r#"topics:{topics}:{{"auto.offset.reset":"latest"}}"#)
}

#[track_caller]
fn offset(client: &mut Client, key: &str) -> i64 {
    client.call(&["BLPOP", key, "30"]).message().expect("a message").offset
}

#[test]
fn the_start_is_committed_before_anything_is_delivered() {
    let kafka = Kafka::with(&[("t", 2)]);
    kafka.put_all("t", 0, ["0", "1", "2", "3", "4"]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    assert!(client.call(&["LPOP", KEY]).is_null(), "nothing is new");
    eventually("the starts", || {
        let starts = [0, 1].map(|partition| kafka.committed("g", "t", partition));
        (starts == [Some(5), Some(0)]).then_some(())
    });
    kafka.put_all("t", 0, ["5", "6"]);
    assert_eq!(offset(&mut client, KEY), 5);
    // Nothing was acked: the whole of it comes again, although the reset still says latest.
    client.say("QUIT");
    kafka.put("t", 0, "7");
    let mut next = karrow.named("g:n");
    for expect in 5..8 {
        assert_eq!(offset(&mut next, KEY), expect);
    }
    assert_eq!(next.say("RPUSH acks t:0:6").int(), 1);
    next.say("QUIT");
    assert_eq!(offset(&mut karrow.named("g:n"), KEY), 7);
}

#[test]
fn messages_of_the_time_between_two_sessions_are_not_lost() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put("t", 0, "old");
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    assert!(client.call(&["LPOP", KEY]).is_null());
    eventually("the start", || (kafka.committed("g", "t", 0) == Some(1)).then_some(()));
    drop(client);
    kafka.put_all("t", 0, ["new", "newer"]);
    let mut next = karrow.named("g:other");
    assert_eq!(offset(&mut next, KEY), 1);
    assert_eq!(offset(&mut next, KEY), 2);
}

#[test]
fn topics_that_come_later_start_at_their_beginning() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put("t", 0, "old");
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let key = key("t,later");
    assert!(client.call(&["BLPOP", &key, "1"]).is_null());
    eventually("the start", || (kafka.committed("g", "t", 0) == Some(1)).then_some(()));
    kafka.create("later", 1);
    kafka.put_all("later", 0, ["first", "second"]);
    for expect in ["first", "second"] {
        let message = client.call(&["BLPOP", &key, "30"]).message().expect("a message");
        assert_eq!((message.topic.as_str(), message.text()), ("later", expect));
    }
    assert_eq!(kafka.committed("g", "later", 0), Some(0));
    kafka.put("t", 0, "new");
    assert_eq!(offset(&mut client, &key), 1, "the old one goes on where it was");
}

#[test]
fn a_commit_of_the_group_wins() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, ["0", "1", "2"]);
    let karrow = Karrow::start(&kafka);
    let mut early = karrow.named("g:early");
    assert_eq!(offset(&mut early, "topics:t"), 0);
    assert_eq!(early.say("RPUSH acks last").int(), 1);
    early.say("QUIT");
    assert_eq!(offset(&mut karrow.named("g:late"), KEY), 1);
}

/// The session goes on with a new consumer; what came in between is new to it.
#[test]
fn topics_that_came_while_no_consumer_ran_start_at_their_beginning() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put("t", 0, "old");
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let key = key("t,later");
    assert!(client.call(&["BLPOP", &key, "1"]).is_null());
    eventually("the start", || (kafka.committed("g", "t", 0) == Some(1)).then_some(()));
    kafka.fail(HEARTBEAT, &[Code::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID; 2]);
    karrow.await_metric("karrow_sessions{state=\"dormant\"}", |count| count == 1.0);
    kafka.heal(HEARTBEAT);
    kafka.create("later", 1);
    kafka.put_all("later", 0, ["first", "second"]);
    // The fatal error is said once.
    assert!(client.call(&["BLPOP", &key, "30"]).error().starts_with("CONS Poll "));
    for expect in ["first", "second"] {
        let message = client.call(&["BLPOP", &key, "30"]).message().expect("a message");
        assert_eq!((message.topic.as_str(), message.text()), ("later", expect));
    }
}
