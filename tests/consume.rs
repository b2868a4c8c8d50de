//! Pops: what they answer, whom they belong to, and what they wait for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::support::client::{Message, request};
use crate::support::kafka::{Code, HEARTBEAT};
use crate::support::{Client, Kafka, Karrow, Reply, eventually};

/// The next message of `key` in rafka's form.
#[track_caller]
fn pop(client: &mut Client, key: &str) -> Message {
    client.call(&["BLPOP", key, "30"]).message().expect("a message before the timeout")
}

#[track_caller]
fn pop_text(client: &mut Client, key: &str) -> String {
    pop(client, key).text().to_owned()
}

/// The next message of `key` as JSON, after the key itself.
#[track_caller]
fn pop_json(client: &mut Client, key: &str) -> Json {
    let reply = client.call(&["BLPOP", key, "30"]);
    let [named, document] = reply.array() else { panic!("{reply} is no pair") };
    assert_eq!(named.text(), key);
    serde_json::from_slice(document.bytes()).expect("JSON")
}

#[test]
fn messages_come_in_rafkas_eight_elements() {
    let kafka = Kafka::with(&[("t", 1)]);
    let values: &[Option<&[u8]>] =
        &[Some(b"hello"), None, Some(b""), Some(b"\xff\r\n\0"), Some(b"last")];
    for value in values {
        kafka.put_full("t", Some(b"k"), *value, &[], 1);
    }
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    assert_eq!(
        client.say("BLPOP topics:t 30").to_string(),
        r#"["topic", "t", "partition", :0, "offset", :0, "value", "hello"]"#
    );
    let head = r"*8\r\n$5\r\ntopic\r\n$1\r\nt\r\n$9\r\npartition\r\n:0\r\n$6\r\noffset\r\n:";
    client.raw(b"BLPOP topics:t 30\r\n");
    let tombstone = head.to_owned() + r"1\r\n$5\r\nvalue\r\n$-1\r\n";
    let len = tombstone.replace(r"\r\n", "12").len();
    assert_eq!(client.bytes(len), tombstone);
    assert_eq!(pop(&mut client, "topics:t").value.as_deref(), Some(b"".as_slice()));
    assert_eq!(pop(&mut client, "topics:t").value.as_deref(), Some(b"\xff\r\n\0".as_slice()));
    // A trailing colon is fine, and the words are not Redis's: the case of the command does not matter.
    assert_eq!(client.say("blpop topics:t: 30").message().expect("one").text(), "last");
}

#[test]
fn resp3_has_nulls_of_its_own() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_full("t", None, None, &[], 1);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.connect();
    client.resp3();
    client.say("HELLO 3 SETNAME g:n");
    let message = client.say("BLPOP topics:t 30").message().expect("a message");
    assert_eq!(message.value, None);
    client.raw(b"BLPOP topics:t 0.01\r\nLPOP topics:t\r\nLPOP topics:t 5\r\n");
    assert_eq!(client.bytes(9), r"_\r\n_\r\n_\r\n");
}

#[test]
fn json_holds_everything_of_a_message() {
    let kafka = Kafka::with(&[("j", 1)]);
    let repeated: &[(&[u8], Option<&[u8]>)] = &[
        (b"h", Some(b"1")),
        (b"h", Some(b"2")),
        (b"n", None),
        (b"b", Some(b"\xff")),
        (b"\xfe", Some(b"x")),
    ];
    kafka.put_full("j", Some(b"key"), Some(b"va\"l\n"), repeated, 1_700_000_000_123);
    kafka.put_full("j", Some(b"\xff\x00"), Some(b"\xfe"), &[], 5);
    kafka.put_full("j", None, None, &[], 6);
    kafka.put_full("j", Some(b""), Some(b""), &[], 7);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    for expect in [
        json!({
            "topic": "j", "partition": 0, "offset": 0, "timestamp": 1_700_000_000_123_i64, "key": "key",
            "headers": [
                {"key": "h", "value": "1"}, {"key": "h", "value": "2"}, {"key": "n", "value": null},
                {"key": "b", "value_base64": "/w=="}, {"key_base64": "/g==", "value": "x"},
            ],
            "value": "va\"l\n",
        }),
        json!({
            "topic": "j", "partition": 0, "offset": 1, "timestamp": 5, "key_base64": "/wA=", "headers": [],
            "value_base64": "/g==",
        }),
        json!({
            "topic": "j", "partition": 0, "offset": 2, "timestamp": 6, "key": null, "headers": [], "value": null,
        }),
        json!({
            "topic": "j", "partition": 0, "offset": 3, "timestamp": 7, "key": "", "headers": [], "value": "",
        }),
    ] {
        assert_eq!(pop_json(&mut client, "json:j"), expect);
    }
    assert_eq!(client.say("RPUSH acks last").int(), 1);
}

#[test]
fn several_topics_and_keys_are_one_subscription() {
    let kafka = Kafka::with(&[("a", 1), ("b", 2), ("c", 1)]);
    for round in 0..3 {
        kafka.put("a", 0, format!("a{round}"));
        kafka.put("b", 0, format!("b0{round}"));
        kafka.put("b", 1, format!("b1{round}"));
        kafka.put("c", 0, format!("c{round}"));
    }
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let mut seen = HashMap::new();
    // The prefixes change from pop to pop; a message is answered by the key that its topic came by.
    for keys in [["topics:a,b", "json:c"], ["json:a,b", "topics:c"]].iter().cycle().take(12) {
        let reply = client.call(&["BLPOP", keys[0], keys[1], "30"]);
        let (topic, partition, offset) = match reply.array() {
            [key, document] => {
                let document: Json = serde_json::from_slice(document.bytes()).expect("JSON");
                let topic = document["topic"].as_str().expect("a topic").to_owned();
                assert!(key.text().starts_with("json:") && key.text().contains(&topic), "{reply}");
                (topic, document["partition"].as_i64(), document["offset"].as_i64())
            }
            _ => {
                let message = reply.message().expect("a message");
                let key = keys.iter().find(|key| key.starts_with("topics:")).expect("one");
                assert!(key.contains(&message.topic), "{reply} by {keys:?}");
                (message.topic, Some(message.partition), Some(message.offset))
            }
        };
        let next = seen.entry((topic, partition)).or_insert(0);
        assert_eq!(offset, Some(*next), "in order");
        *next += 1;
    }
    assert!(seen.values().all(|count| *count == 3), "{seen:?}");
    // The identity is the ordered list of topics.
    for (keys, id) in [("topics:a", "a"), ("topics:a,b,c,d", "a,b,c,d"), ("topics:b,a,c", "b,a,c")]
    {
        assert_eq!(
            client.call(&["BLPOP", keys, "1"]).error(),
            format!(
                "CONS Client 'g:n' has Consumer 'g:n|a,b,c' registered (new consID: 'g:n|{id}')"
            )
        );
    }
    kafka.put("a", 0, "more");
    assert_eq!(pop_text(&mut client, "topics:a,b,c"), "more", "the session is unharmed");
}

#[test]
fn a_member_may_have_an_empty_name() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put("t", 0, "x");
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:");
    assert_eq!(pop_text(&mut client, "topics:t"), "x");
    assert_eq!(client.say("RPUSH acks last").int(), 1);
    assert_eq!(karrow.named("g:").say("BLPOP topics:t 1").error(), "CONS id g: is already taken");
    client.say("QUIT");
    assert!(karrow.named("g:").say("LPOP topics:t").is_null(), "what was acked stays so");
}

#[test]
fn what_is_wrong_is_named_and_harms_nothing() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put("t", 0, "x");
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.connect();
    let not_ready = "CONS Connection not ready. Identify yourself using `CLIENT SETNAME` first";
    assert_eq!(client.say("BLPOP topics:t 1").error(), not_ready);
    assert_eq!(client.say("LPOP topics:t").error(), not_ready);
    client.say("CLIENT SETNAME predis");
    assert_eq!(client.say("BLPOP topics:t 1").error(), "CONS Cannot parse group.id");
    client.say("CLIENT SETNAME :me");
    assert_eq!(
        client.say("BLPOP topics:t 1").error(),
        "CONS Failed to register Consumer (attr: `group.id` is missing)"
    );
    let mut client = karrow.named("g:n");
    for (command, expect) in [
        ("BLPOP topics 1", "CONS Cannot parse topics from `topics`"),
        ("BLPOP nope:t 1", "CONS Cannot parse topics from `nope:t`"),
        ("BLPOP topics: 1", "CONS Not enough topics in `topics:`"),
        ("BLPOP topics:t, 1", "CONS Not enough topics in `topics:t,`"),
        ("BLPOP topics:t:[] 1", "CONS Error parsing configuration from '[]'; it is no JSON object"),
        ("BLPOP topics:t -1", "ERR timeout is negative"),
        ("BLPOP topics:t -0.001", "ERR timeout is negative"),
        ("BLPOP topics:t x", "ERR timeout is not a float or out of range"),
        ("BLPOP topics:t nan", "ERR timeout is not a float or out of range"),
        ("BLPOP topics:t 1e300", "ERR timeout is not a float or out of range"),
        ("LPOP topics:t x", "ERR value is out of range, must be positive"),
        ("LPOP topics:t -1", "ERR value is out of range, must be positive"),
        ("LPOP topics:t 99999999999999999999", "ERR value is out of range, must be positive"),
    ] {
        assert_eq!(client.say(command).error(), expect, "{command}");
    }
    let parse = client.call(&["BLPOP", "topics:t:{x", "1"]);
    assert!(parse.error().starts_with("CONS Error parsing configuration from '{x'; "), "{parse}");
    for topics in ["^t.*", "a b", "..", "\u{e4}", &"x".repeat(250)] {
        let reply = client.call(&["BLPOP", &format!("topics:{topics}"), "1"]);
        assert!(
            reply.error().starts_with(&format!(
                "CONS Failed to register Consumer 'g:n|{topics}' for Client 'g:n'"
            )),
            "{reply}"
        );
    }
    for (options, named) in [
        (r#"{"bootstrap.servers":"127.0.0.1:1"}"#, "bootstrap.servers"),
        (r#"{"plugin.library.paths":"x"}"#, "plugin.library.paths"),
        (r#"{"sasl.password":"x"}"#, "sasl.password"),
        (r#"{"security.protocol":"ssl"}"#, "security.protocol"),
        (r#"{"enable.auto.commit":"false"}"#, "enable.auto.commit"),
        (r#"{"enable.auto.offset.store":true}"#, "enable.auto.offset.store"),
        (r#"{"group.id":"other"}"#, "group.id"),
        (r#"{"client.id":"other"}"#, "client.id"),
        (r#"{"nonsense":1}"#, "nonsense"),
        (r#"{"auto.offset.reset":["earliest"]}"#, "auto.offset.reset"),
        (r#"{"auto.offset.reset":{}}"#, "auto.offset.reset"),
        (r#"{"auto.offset.reset":null}"#, "auto.offset.reset"),
        (r#"{"auto.offset.reset":"nonsense"}"#, "auto.offset.reset"),
        (r#"{"session.timeout.ms":"soon"}"#, "session.timeout.ms"),
        (r#"{"session.timeout.ms":-1}"#, "session.timeout.ms"),
        (r#"{"fetch.max.bytes":99999999999}"#, "fetch.max.bytes"),
        (r#"{"queued.max.messages.kbytes":2097151}"#, "queued.max.messages.kbytes"),
        (r#"{"isolation.level":7}"#, "isolation.level"),
    ] {
        let reply = client.call(&["BLPOP", &format!("topics:t:{options}"), "30"]);
        let text = reply.error();
        assert!(
            text.starts_with("CONS Failed to register Consumer 'g:n|t' for Client 'g:n'"),
            "{text}"
        );
        assert!(text.contains(named), "{named} in {text}");
    }
    // What is allowed counts at the first pop, and is ignored later, whatever it says.
    let allowed = r#"topics:t:{"auto.offset.reset":"earliest","fetch.wait.max.ms":10,"isolation.level":"read_uncommitted","log.connection.close":false}"#;
    assert_eq!(pop_text(&mut client, allowed), "x");
    kafka.put("t", 0, "y");
    assert_eq!(pop_text(&mut client, r#"topics:t:{"bootstrap.servers":"127.0.0.1:1"}"#), "y");
}

#[test]
fn timeouts_are_seconds_with_fractions() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    for (timeout, seconds) in [("0.05", 0.05), ("1", 1.0), ("1.5", 1.5), ("1e-3", 0.001)] {
        let start = Instant::now();
        client.send(&["BLPOP", "topics:t", timeout]);
        assert_eq!(client.bytes(5), r"*-1\r\n", "{timeout}");
        let waited = start.elapsed();
        assert!(waited >= Duration::from_secs_f64(seconds), "{timeout} took {waited:?}");
        assert!(waited < Duration::from_secs_f64(seconds + 10.0), "{timeout} took {waited:?}");
    }
    // 0 is for ever, which a message ends.
    client.start("BLPOP topics:t 0");
    karrow.await_blocked("g:n");
    kafka.put("t", 0, "at last");
    assert_eq!(client.reply().message().expect("a message").text(), "at last");
}

#[test]
fn lpop_answers_null_at_the_end_of_everything() {
    let kafka = Kafka::with(&[("t", 3)]);
    for partition in 0..3 {
        kafka.put_all("t", partition, (0..20).map(|index| format!("{partition}-{index}")));
    }
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    // A count of nothing takes nothing.
    assert_eq!(client.say("LPOP topics:t 0").to_string(), "[]");
    let mut next = [0; 3];
    let mut take = |reply: &Reply| {
        let message = reply.message().expect("a message");
        assert_eq!(message.offset, next[message.partition as usize], "in order");
        next[message.partition as usize] += 1;
    };
    let mut left = 60;
    take(&client.say("LPOP topics:t"));
    left -= 1;
    let reply = client.say("LPOP topics:t 2");
    assert!((1..=2).contains(&reply.array().len()), "{reply}");
    reply.array().iter().for_each(&mut take);
    left -= reply.array().len();
    while left > 0 {
        // Null would mean that all was there.
        let reply = client.say("LPOP topics:t 7");
        reply.array().iter().for_each(&mut take);
        left -= reply.array().len();
    }
    assert_eq!(next, [20; 3]);
    client.raw(b"LPOP topics:t\r\nLPOP topics:t 3\r\n");
    assert_eq!(client.bytes(10), r"$-1\r\n*-1\r\n");
    // More is seen as soon as it is there.
    kafka.put("t", 1, "more");
    let message = eventually("the message", || client.say("LPOP topics:t").message());
    assert_eq!(message.text(), "more");
    // In the other form there is no key in front.
    kafka.put("t", 1, "even more");
    let reply = eventually("the message", || {
        let reply = client.say("LPOP json:t 9");
        (!reply.is_null()).then_some(reply)
    });
    let document: Json = serde_json::from_slice(reply.array()[0].bytes()).expect("JSON");
    assert_eq!(document["value"], "even more");
}

#[test]
fn pops_inside_a_transaction_never_block() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let transaction = |client: &mut Client| {
        for command in ["MULTI", "BLPOP topics:t 0", "LPOP topics:t", "RPUSH acks last", "PING"] {
            client.start(command);
        }
        client.start("EXEC");
        for expect in ["+OK", "+QUEUED", "+QUEUED", "+QUEUED", "+QUEUED"] {
            assert_eq!(client.reply().to_string(), expect);
        }
        client.reply()
    };
    assert_eq!(transaction(&mut client).to_string(), "[nil, nil, :0, +PONG]");
    kafka.put_all("t", 0, ["one", "two"]);
    let taken = eventually("both messages in one transaction, or one in each", || {
        let reply = transaction(&mut client);
        let acked = reply.array()[2].int();
        let offset = |index: usize| reply.array()[index].message().map(|message| message.offset);
        let last = offset(1).or(offset(0))?;
        assert!(acked <= 1, "{reply}");
        (last == 1).then_some(last)
    });
    assert_eq!(taken, 1);
    // What redis-py sends for a pipeline that produces and acks.
    for command in ["MULTI", "RPUSH topics:t a b", "RPUSHX topics:t c", "PING", "EXEC"] {
        client.start(command);
    }
    for _ in 0..4 {
        client.reply();
    }
    assert_eq!(client.reply().to_string(), "[:2, :1, +PONG]");
}

#[test]
fn a_missing_topic_is_an_empty_one_until_it_comes() {
    let kafka = Kafka::with(&[("here", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    assert!(client.say("BLPOP topics:here,later 1").is_null());
    let line = eventually("CLIENT LIST to show it", || {
        karrow.clients().into_iter().find(|line| line.ends_with(" missing-topics=later"))
    });
    assert!(line.contains(" topics=here,later "), "{line}");
    assert_eq!(karrow.metric("karrow_missing_topics{topic=\"later\"}"), 1.0);
    // The topic that exists works meanwhile.
    kafka.put("here", 0, "present");
    assert_eq!(pop_text(&mut client, "topics:here,later"), "present");
    // Eagerly rebalanced groups begin again behind their commits.
    assert_eq!(client.say("RPUSH acks last").int(), 1);
    client.start("BLPOP topics:here,later 0");
    karrow.await_blocked("g:n");
    let created = Instant::now();
    kafka.create("later", 2);
    kafka.put_all("later", 1, ["from", "the", "beginning"]);
    for expect in ["from", "the", "beginning"] {
        let message = client.reply().message().expect("a message");
        assert_eq!((message.topic.as_str(), message.text()), ("later", expect));
        client.start("BLPOP topics:here,later 0");
    }
    // Five seconds are promised; a busy machine and the group's own time come on top.
    assert!(created.elapsed() < Duration::from_secs(12), "{:?}", created.elapsed());
    karrow.await_metric("karrow_missing_topics{topic=\"later\"}", |missing| missing == 0.0);
    assert!(karrow.clients().iter().all(|line| !line.contains("missing-topics=later")));
    // A topic alone that never comes: LPOP does not wait for ever either.
    let mut other = karrow.named("g2:n");
    assert!(other.say("LPOP topics:never").is_null());
    assert!(other.say("BLPOP topics:never 0.1").is_null());
}

#[test]
fn a_name_belongs_to_one_session() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, ["0", "1", "2", "3"]);
    let karrow = Karrow::start(&kafka);
    let (mut one, mut two) = (karrow.named("g:n"), karrow.named("g:n"));
    let taken = "CONS id g:n is already taken";
    assert_eq!(pop_text(&mut one, "topics:t"), "0");
    assert_eq!(one.say("RPUSH acks last").int(), 1);
    assert_eq!(pop_text(&mut one, "topics:t"), "1");
    // Also while its owner is idle, and whatever is asked for.
    assert_eq!(two.say("BLPOP topics:t 1").error(), taken);
    assert_eq!(two.say("LPOP topics:other").error(), taken);
    // Free before QUIT is answered; the next owner begins where the acks ended.
    assert_eq!(one.say("QUIT").to_string(), "+OK");
    assert_eq!(pop_text(&mut two, "topics:t"), "1");
    assert_eq!(two.say("RPUSH acks last").int(), 1);
    assert_eq!(pop_text(&mut two, "topics:t"), "2");
    // Free when the connection is lost.
    drop(two);
    let mut three = karrow.named("g:n");
    let message = eventually("the name to be free", || match three.say("BLPOP topics:t 30") {
        Reply::Error(text) => {
            assert_eq!(text, taken);
            None
        }
        reply => reply.message(),
    });
    assert_eq!(message.text(), "2");
    // Free after RESET; and the connection may take it again.
    three.say("RESET");
    let mut four = karrow.named("g:n");
    assert_eq!(pop_text(&mut four, "topics:t"), "2");
    // Another group has nothing to do with it.
    let mut other = karrow.named("g2:n");
    assert_eq!(pop_text(&mut other, "topics:t"), "0");
}

#[test]
fn a_blocked_pop_notices_the_end_of_its_connection() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    let free = |karrow: &Karrow| {
        let mut next = karrow.named("g:n");
        eventually("the name to be free", || {
            next.say("BLPOP topics:t 0.01").is_null().then_some(())
        });
        next.say("QUIT");
    };
    // A closed connection.
    let mut client = karrow.named("g:n");
    client.start("BLPOP topics:t 0");
    karrow.await_blocked("g:n");
    drop(client);
    free(&karrow);
    // One whose client has sent a lot behind the pop, so that nothing more is read from it. The rest fits into the
    // socket's buffer: behind a closed window the end could not arrive.
    let mut client = karrow.named("g:n");
    client.start("BLPOP topics:t 0");
    karrow.await_blocked("g:n");
    client.raw(&request(&["ECHO", &"x".repeat((1 << 20) + (48 << 10))]));
    drop(client);
    free(&karrow);
    // One that ended only its writing: nobody who waits for a message does that.
    let mut client = karrow.named("g:n");
    client.start("BLPOP topics:t 0");
    karrow.await_blocked("g:n");
    client.end_writing();
    assert!(client.is_closed());
    free(&karrow);
    // CLIENT KILL.
    let mut client = karrow.named("g:n");
    let id = client.say("CLIENT ID").int().to_string();
    client.start("BLPOP topics:t 0");
    karrow.await_blocked("g:n");
    assert_eq!(karrow.connect().call(&["CLIENT", "KILL", "ID", &id]).int(), 1);
    assert!(client.is_closed());
    free(&karrow);
    karrow.await_metric("karrow_sessions{state=\"live\"}", |live| live == 0.0);
}

#[test]
fn what_is_pipelined_behind_a_blocked_pop_waits() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    client.raw(b"PING\r\nBLPOP topics:t 0\r\nPING behind\r\nBLPOP topics:t 0\r\nPING end\r\n");
    assert_eq!(client.reply().to_string(), "+PONG");
    karrow.await_blocked("g:n");
    assert!(client.is_silent_for(Duration::from_millis(200)));
    kafka.put("t", 0, "one");
    assert_eq!(client.reply().message().expect("a message").text(), "one");
    assert_eq!(client.reply().text(), "behind");
    kafka.put("t", 0, "two");
    assert_eq!(client.reply().message().expect("a message").text(), "two");
    assert_eq!(client.reply().text(), "end");
}

#[test]
fn a_silent_client_leaves_and_comes_back_with_its_next_pop() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, ["0", "1", "2"]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let key = r#"topics:t:{"session.timeout.ms":1500,"max.poll.interval.ms":1500}"#;
    assert_eq!(pop_text(&mut client, key), "0");
    assert_eq!(client.say("RPUSH acks last").int(), 1);
    assert_eq!(pop_text(&mut client, key), "1");
    karrow.await_metric("karrow_sessions{state=\"dormant\"}", |count| count == 1.0);
    assert_eq!(kafka.committed("g", "t", 0), Some(1));
    // Others hear nothing of it: the name is still taken.
    assert_eq!(karrow.named("g:n").say("BLPOP topics:t 1").error(), "CONS id g:n is already taken");
    // Acks for what is not ours any more are refused; the next pop rejoins without an error.
    assert!(client.say("RPUSH acks t:0:1").error().starts_with("CONS "));
    assert_eq!(pop_text(&mut client, key), "1");
    assert_eq!(pop_text(&mut client, key), "2");
    assert_eq!(client.say("RPUSH acks last").int(), 1);
    // A blocked pop counts as alive for as long as it waits.
    let joined = karrow.metric("karrow_rebalances_total{kind=\"assigned\"}");
    assert!(client.call(&["BLPOP", key, "4"]).is_null());
    assert_eq!(karrow.metric("karrow_rebalances_total{kind=\"assigned\"}"), joined);
    assert_eq!(karrow.metric("karrow_sessions{state=\"live\"}"), 1.0);
}

#[test]
fn errors_of_the_consumer_are_told_once() {
    let kafka = Kafka::with(&[("t", 1), ("secret", 1)]);
    kafka.put_all("t", 0, ["0", "1"]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    assert_eq!(pop_text(&mut client, "topics:t"), "0");
    // A fatal one is answered once; the next pop builds a new consumer.
    kafka.fail(HEARTBEAT, &[Code::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID]);
    let mut again = Vec::new();
    let text = eventually("the fatal error", || match client.say("BLPOP topics:t 0.2") {
        Reply::Error(text) => Some(text),
        reply => {
            again.extend(reply.message());
            None
        }
    });
    assert!(text.starts_with("CONS Poll "), "{text}");
    assert_eq!(pop_text(&mut client, "topics:t"), "0", "unacked ones come again");
    // Others are, too.
    kafka.set_topic_error("secret", Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    let mut client = karrow.named("g2:n");
    let reply = client.say("BLPOP topics:secret 30");
    assert!(reply.error().starts_with("CONS Poll "), "{reply}");
    assert_eq!(client.say("PING").to_string(), "+PONG");
}

#[test]
fn a_slow_reader_holds_its_messages_in_kafka() {
    let partitions = 10;
    let (each, size) = (40, 100_000);
    let kafka = Kafka::with(&[("big", partitions)]);
    for partition in 0..partitions {
        kafka.put_all("big", partition, (0..each).map(|index| vec![b'0' + index as u8 % 10; size]));
    }
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let total = partitions * each;
    for _ in 0..total {
        client.start("BLPOP topics:big 30");
    }
    // As much is taken as the socket and the output limit hold (some megabytes), then nothing more.
    let consumed = || karrow.metric("karrow_consumed_messages_total{topic=\"big\"}");
    let (mut last, mut since) = (0.0, Instant::now());
    eventually("deliveries to pause", || {
        let now = consumed();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (last > 0.0 && since.elapsed() > Duration::from_millis(500)).then_some(())
    });
    assert!(
        last < f64::from(total) / 2.0,
        "{last} of {total} were taken for a client that reads nothing"
    );
    assert_eq!(karrow.connect().say("PING").to_string(), "+PONG", "others are served");
    let mut next = vec![0; partitions as usize];
    for _ in 0..total {
        let message = client.reply().message().expect("a message");
        assert_eq!(message.offset, next[message.partition as usize]);
        next[message.partition as usize] += 1;
        assert_eq!(message.value.expect("a value").len(), size);
    }
    assert_eq!(next, vec![i64::from(each); partitions as usize]);
}

#[test]
fn a_drain_of_a_hundred_times_the_prefetch_is_complete() {
    let (partitions, each) = (4, 1000);
    let kafka = Kafka::with(&[("t", partitions)]);
    for partition in 0..partitions {
        kafka.put_all("t", partition, (0..each).map(|_| vec![b'x'; 1000]));
    }
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    // 40 kB of 4 MB.
    let key = r#"topics:t:{"queued.max.messages.kbytes":40,"queued.min.messages":40,"fetch.message.max.bytes":10000}"#;
    let start = Instant::now();
    let mut next = vec![0; partitions as usize];
    let pipeline = 100;
    for _ in 0..partitions * each / pipeline {
        for _ in 0..pipeline {
            client.send(&["BLPOP", key, "30"]);
        }
        for _ in 0..pipeline {
            let message = client.reply().message().expect("a message");
            assert_eq!(message.offset, next[message.partition as usize], "none lost, none twice");
            next[message.partition as usize] += 1;
        }
    }
    assert_eq!(next, vec![i64::from(each); partitions as usize]);
    // librdkafka's own back-off of a second for each full queue would take minutes.
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    eventually("the end", || client.call(&["LPOP", key]).is_null().then_some(()));
}

#[test]
fn a_client_that_does_not_read_can_be_killed() {
    let kafka = Kafka::with(&[("big", 4)]);
    for partition in 0..4 {
        kafka.put_all("big", partition, (0..40).map(|_| vec![b'x'; 100_000]));
    }
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let id = client.say("CLIENT ID").int().to_string();
    for _ in 0..160 {
        client.start("BLPOP topics:big 30");
    }
    karrow.await_metric("karrow_consumed_messages_total{topic=\"big\"}", |count| count >= 10.0);
    assert_eq!(karrow.connect().call(&["CLIENT", "KILL", "ID", &id]).int(), 1);
    karrow.await_metric("karrow_connections", |count| count == 0.0);
    let mut next = karrow.named("g:n");
    assert_eq!(pop(&mut next, "topics:big").offset, 0, "nothing was acked");
}

#[test]
fn a_broker_that_goes_and_comes_is_no_error() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, ["0", "1"]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    assert_eq!(pop_text(&mut client, "topics:t"), "0");
    assert_eq!(pop_text(&mut client, "topics:t"), "1");
    assert_eq!(client.say("RPUSH acks t:0:0").int(), 1);
    kafka.set_up(false);
    assert!(client.say("BLPOP topics:t 2").is_null());
    kafka.set_up(true);
    kafka.put("t", 0, "2");
    // The group may have missed the member, then what was not acked comes again.
    let mut text = pop_text(&mut client, "topics:t");
    while text == "1" {
        text = pop_text(&mut client, "topics:t");
    }
    assert_eq!(text, "2");
    assert_eq!(client.say("RPUSH acks last").int(), 1);
    eventually("the commit", || (kafka.committed("g", "t", 0) == Some(3)).then_some(()));
}

#[test]
fn replies_larger_than_the_output_limit_pass_one_by_one() {
    let kafka = Kafka::with(&[("big", 1)]);
    kafka.put_all("big", 0, (0..20).map(|index| vec![b'a' + index; 200_000]));
    let karrow = Karrow::with(&kafka, &["--output-limit", "1KiB"], |_| {});
    let mut client = karrow.named("g:n");
    for _ in 0..10 {
        client.start("BLPOP topics:big 30");
    }
    for offset in 0..10 {
        let message = client.reply().message().expect("a message");
        assert_eq!(message.offset, offset);
        assert_eq!(message.value.expect("a value"), vec![b'a' + offset as u8; 200_000]);
    }
    // An array of what is ready ends at the limit, after at least one.
    let reply = client.say("LPOP topics:big 100");
    assert_eq!(reply.array().len(), 1);
    assert_eq!(client.say("RPUSH acks last").int(), 1);
}
