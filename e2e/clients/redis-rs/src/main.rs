//! redis-rs with its default options: the scenario of e2e/README.md.

use redis::{Commands, Connection, RedisResult, Value};
use std::env;

fn setting(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// Prints one result line; each check is (what, got, want).
fn step(name: &str, checks: &[(&str, String, String)]) {
    let wrong: Vec<String> = checks
        .iter()
        .filter(|(_, got, want)| got != want)
        .map(|(what, got, want)| format!("{what}: got {got}, want {want}"))
        .collect();
    if wrong.is_empty() {
        println!("ok {name}");
    } else {
        println!("not ok {name} {}", wrong.join("; ").replace('\n', " "));
    }
}

/// Names itself with the library's own call: redis-rs has no option for it.
fn connect(client: &redis::Client, name: &str) -> RedisResult<Connection> {
    let mut connection = client.get_connection()?;
    let _: () = connection.client_setname(name)?;
    Ok(connection)
}

type Record = (String, String, String, i32, String, i64, String, String);

fn pop(connection: &mut Connection, topic: &str) -> String {
    let reply: RedisResult<Record> = redis::cmd("BLPOP").arg(format!("topics:{topic}")).arg(10).query(connection);
    format!("{reply:?}")
}

fn record(topic: &str, offset: i64, value: &str) -> String {
    let of = |text: &str| text.to_owned();
    let want: Record = (of("topic"), of(topic), of("partition"), 0, of("offset"), offset, of("value"), of(value));
    format!("{:?}", RedisResult::Ok(want))
}

fn fields(text: &str) -> String {
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(json) => ["topic", "partition", "offset", "key", "value"].map(|name| json[name].to_string()).join(" "),
        Err(error) => format!("{error} in {text}"),
    }
}

fn pair(connection: &mut Connection, key: &str) -> RedisResult<String> {
    let reply: Option<[String; 2]> = connection.blpop(key, 10.0)?;
    Ok(reply.map_or_else(|| "nothing".to_owned(), |[key, text]| format!("{key} {}", fields(&text))))
}

fn main() -> RedisResult<()> {
    let topic = setting("TOPIC");
    let name = format!("{}:redis-rs", setting("GROUP"));
    let (topics, json) = (format!("topics:{topic}"), format!("json:{topic}"));
    let client = redis::Client::open(format!("redis://127.0.0.1:{}/", setting("KARROW_PORT")))?;

    let mut consumer = connect(&client, &name)?;
    let shown: String = consumer.client_getname()?;
    step("connect", &[("CLIENT GETNAME", shown, name.clone())]);

    let mut producer = client.get_connection()?;
    let stored: (i64, i64) = redis::pipe()
        .rpush(&topics, &["m0", "m1"])
        .cmd("RPUSHX").arg(format!("{topics}:user:2")).arg("m2")
        .query(&mut producer)?;
    let atomic: (i64, i64) = redis::pipe().atomic().rpush(&topics, "m3").rpush(&topics, "m4").query(&mut producer)?;
    step("produce", &[
        ("pipe", format!("{stored:?}"), "(2, 1)".to_owned()),
        ("pipe().atomic()", format!("{atomic:?}"), "(1, 1)".to_owned()),
    ]);

    let mut ack = |connection: &mut Connection, offset: i64| -> String {
        format!("{:?}", connection.rpush::<_, _, usize>("acks", format!("{topic}:0:{offset}")))
    };
    step("consume", &[("BLPOP topics:", pop(&mut consumer, &topic), record(&topic, 0, "m0"))]);
    step("json", &[("BLPOP json:", pair(&mut consumer, &json)?, format!("{json} \"{topic}\" 0 1 null \"m1\""))]);
    step("ack", &[
        ("ack", ack(&mut consumer, 1), "Ok(1)".to_owned()),
        ("late ack", ack(&mut consumer, 0), "Ok(0)".to_owned()),
    ]);
    let text: String = consumer.lpop(&json, None)?;
    step("lpop", &[("message", fields(&text), format!("\"{topic}\" 0 2 \"user:2\" \"m2\""))]);
    let mut other = connect(&client, &name)?;
    step("ack-elsewhere", &[("ack", ack(&mut other, 2), "Ok(1)".to_owned())]);
    drop(other);
    let drained: Vec<String> = consumer.lpop(&json, std::num::NonZeroUsize::new(10))?;
    let nothing: Option<[String; 2]> = consumer.blpop(&json, 1.0)?;
    let empty: Value = redis::cmd("LPOP").arg(&json).query(&mut consumer)?;
    step("timeout", &[
        ("LPOP json: 10", drained.iter().map(|text| fields(text)).collect::<Vec<_>>().join(", "),
            format!("\"{topic}\" 0 3 null \"m3\", \"{topic}\" 0 4 null \"m4\"")),
        ("BLPOP", format!("{nothing:?}"), "None".to_owned()),
        ("LPOP", format!("{empty:?}"), format!("{:?}", Value::Nil)),
    ]);

    drop(consumer);
    let mut consumer = connect(&client, &name)?;
    step("resume-unacked", &[
        ("first", pop(&mut consumer, &topic), record(&topic, 3, "m3")),
        ("second", pop(&mut consumer, &topic), record(&topic, 4, "m4")),
        ("ack", ack(&mut consumer, 4), "Ok(1)".to_owned()),
    ]);
    drop(consumer);
    let mut consumer = connect(&client, &name)?;
    let _: i64 = consumer.rpush(&topics, "m5")?;
    step("resume-acked", &[
        ("next", pair(&mut consumer, &json)?, format!("{json} \"{topic}\" 0 5 null \"m5\"")),
        ("ack", ack(&mut consumer, 5), "Ok(1)".to_owned()),
    ]);
    Ok(())
}
