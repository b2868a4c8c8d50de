//! What acks move, what they refuse, and when they are committed.

use crate::support::{Client, Kafka, Karrow, Reply, eventually};

#[track_caller]
fn pop(client: &mut Client, key: &str) -> (i64, i64) {
    let message = client.call(&["BLPOP", key, "30"]).message().expect("a message");
    (message.partition, message.offset)
}

/// A session that has popped `count` messages of one partition.
#[track_caller]
fn popped(karrow: &Karrow, name: &str, count: i64) -> Client {
    let mut client = karrow.named(name);
    for offset in 0..count {
        assert_eq!(pop(&mut client, "topics:t"), (0, offset));
    }
    client
}

fn kafka(count: usize) -> Kafka {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, (0..count).map(|index| index.to_string()));
    kafka
}

#[test]
fn acks_answer_how_many_moved_a_position() {
    let kafka = kafka(10);
    let karrow = Karrow::start(&kafka);
    let mut client = popped(&karrow, "g:n", 6);
    let undelivered = |ack: &str| {
        format!("-CONS {ack} was not delivered to g:n since the partition was assigned to it")
    };
    let foreign = |partition: &str| format!("-CONS {partition} is not assigned to g:n");
    for (command, expect) in [
        ("RPUSH acks t:0:0", ":1".to_owned()),
        // Repeated and late ones move nothing.
        ("RPUSH acks t:0:0", ":0".to_owned()),
        ("RPUSH acks t:0:2", ":1".to_owned()),
        ("RPUSH acks t:0:1", ":0".to_owned()),
        ("RPUSH acks t:0:0 t:0:1 t:0:2", ":0".to_owned()),
        // Each that moves counts, also within one command.
        ("RPUSH acks t:0:3 t:0:4", ":2".to_owned()),
        ("RPUSH acks t:0:4,t:0:3", ":0".to_owned()),
        // Not delivered, not ours, not legal: nothing of the command is applied.
        ("RPUSH acks t:0:6", undelivered("t:0:6")),
        ("RPUSH acks t:0:5 t:0:9999999999999999", undelivered("t:0:9999999999999999")),
        ("RPUSH acks t:0:5,t:1:0", foreign("t:1:0").replace("t:1:0", "t:1")),
        ("RPUSH acks t:0:5 other:0:0", foreign("other:0")),
        ("RPUSH acks t:0:5 nonsense", "-CONS Cannot parse ack: 'nonsense'".to_owned()),
        ("RPUSH acks t:0:5,", "-CONS Cannot parse ack: ''".to_owned()),
        ("RPUSH acks t:0:-1", "-CONS offset cannot be negative, got -1".to_owned()),
        ("RPUSH acks t:0:5 t:0:-5", "-CONS offset cannot be negative, got -5".to_owned()),
        ("RPUSH acks t:0", "-CONS Cannot parse ack: 't:0'".to_owned()),
        ("RPUSH acks t:0:1:2", "-CONS Cannot parse ack: 't:0:1:2'".to_owned()),
        ("RPUSH acks t:x:1", "-CONS Cannot parse ack: 't:x:1'".to_owned()),
        (
            "RPUSH acks t:0:9223372036854775807",
            "-CONS Cannot parse ack: 't:0:9223372036854775807'".to_owned(),
        ),
        ("RPUSH other t:0:5", "-CONS You can only RPUSH to the 'acks' key".to_owned()),
        ("RPUSH acks t:0:5", ":1".to_owned()),
    ] {
        assert_eq!(client.say(command).to_string(), expect, "{command}");
    }
    eventually("the commit", || (kafka.committed("g", "t", 0) == Some(6)).then_some(()));
    let reply = client.call(&[b"RPUSH".as_slice(), b"acks", b"t:0:\xff"]);
    assert!(reply.error().starts_with("CONS Cannot parse ack: 't:0:"), "{reply}");
    // What was counted.
    let acks =
        |outcome: &str| karrow.metric(&format!("karrow_acks_total{{outcome=\"{outcome}\"}}"));
    assert_eq!((acks("moved"), acks("repeated")), (5.0, 7.0));
    assert_eq!(acks("refused"), 13.0);
}

#[test]
fn last_means_everything_of_the_last_reply() {
    let kafka = Kafka::with(&[("t", 2)]);
    for partition in 0..2 {
        kafka.put_all("t", partition, (0..10).map(|index| index.to_string()));
    }
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    assert_eq!(client.say("RPUSH acks last").error(), "CONS No consumer registered for Client g:n");
    pop(&mut client, "topics:t");
    assert_eq!(client.say("RPUSH acks last").int(), 1);
    assert_eq!(client.say("RPUSH acks last").int(), 0);
    // An array is a reply, too; so is the other form.
    let mut left = 19;
    while left > 0 {
        let reply = client.say("LPOP json:t 100");
        let Reply::Array(records) = &reply else { panic!("{left} are missing") };
        left -= records.len();
        assert_eq!(client.say("RPUSH acks last").int(), records.len() as i64);
    }
    // Nothing was delivered by the last pop.
    assert!(client.say("BLPOP topics:t 0.01").is_null());
    assert_eq!(client.say("RPUSH acks last").int(), 0);
    assert_eq!(client.say("QUIT").to_string(), "+OK");
    eventually("the commits", || {
        let committed = [0, 1].map(|partition| kafka.committed("g", "t", partition));
        (committed == [Some(10), Some(10)]).then_some(())
    });
}

#[test]
fn any_connection_of_the_name_may_ack() {
    let kafka = kafka(3);
    let karrow = Karrow::start(&kafka);
    let mut owner = popped(&karrow, "g:n", 2);
    let mut other = karrow.named("g:n");
    assert_eq!(other.say("RPUSH acks t:0:0").int(), 1);
    assert_eq!(other.say("RPUSH acks t:0:0").int(), 0);
    assert_eq!(owner.say("RPUSH acks t:0:0").int(), 0);
    // Another connection has had no reply of its own.
    assert_eq!(other.say("RPUSH acks last").int(), 0);
    // One of another name has no session, one of no name not even that.
    let mut stranger = karrow.named("g:stranger");
    assert_eq!(
        stranger.say("RPUSH acks t:0:1").error(),
        "CONS No consumer registered for Client g:stranger"
    );
    let mut nameless = karrow.connect();
    let addr = nameless.local_addr();
    assert_eq!(
        nameless.say("RPUSH acks t:0:1").error(),
        format!("CONS No consumer registered for Client {addr}")
    );
    // After the session is over there is nothing to ack.
    owner.say("QUIT");
    assert_eq!(other.say("RPUSH acks t:0:1").error(), "CONS No consumer registered for Client g:n");
    assert_eq!(pop(&mut other, "topics:t"), (0, 1));
}

/// With an interval that never comes, only the end of the session commits.
#[test]
fn the_end_of_a_session_commits_what_was_acked() {
    let kafka = kafka(10);
    let karrow = Karrow::with(&kafka, &[], |config| {
        config.kafka.consumer.insert("auto.commit.interval.ms".into(), "3600000".into());
    });
    type End = fn(&Karrow, Client);
    let ends: [(&str, End); 4] = [
        ("QUIT", |_, mut client| assert_eq!(client.say("QUIT").to_string(), "+OK")),
        ("a lost connection", |_, client| drop(client)),
        ("RESET", |_, mut client| assert_eq!(client.say("RESET").to_string(), "+RESET")),
        ("CLIENT KILL", |karrow, mut client| {
            let id = client.say("CLIENT ID").int().to_string();
            assert_eq!(karrow.connect().call(&["CLIENT", "KILL", "ID", &id]).int(), 1);
            assert!(client.is_closed());
        }),
    ];
    for (index, (what, end)) in ends.into_iter().enumerate() {
        let group = format!("g{index}");
        let mut client = popped(&karrow, &format!("{group}:n"), 5);
        assert_eq!(client.say("RPUSH acks t:0:2").int(), 1);
        assert_eq!(kafka.committed(&group, "t", 0), None);
        end(&karrow, client);
        eventually(what, || (kafka.committed(&group, "t", 0) == Some(3)).then_some(()));
        // What was not acked comes again, to the next owner of the name, in order.
        let mut next = karrow.named(&format!("{group}:n"));
        for offset in 3..10 {
            let got = eventually("the name", || match next.say("BLPOP topics:t 30") {
                Reply::Error(_) => None,
                reply => reply.message(),
            });
            assert_eq!(got.offset, offset, "{what}");
        }
    }
}

#[test]
fn without_an_ack_nothing_is_committed() {
    let kafka = kafka(5);
    let karrow = Karrow::start(&kafka);
    let mut client = popped(&karrow, "g:n", 5);
    client.say("QUIT");
    let mut next = popped(&karrow, "g:n", 5);
    assert_eq!(kafka.committed("g", "t", 0), None);
    assert_eq!(next.say("RPUSH acks last").int(), 1);
    eventually("the commit", || (kafka.committed("g", "t", 0) == Some(5)).then_some(()));
}
