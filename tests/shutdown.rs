//! The end: everybody gets an answer, what was acked is committed, what was produced is stored.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Client, Kafka, Karrow, eventually};

#[track_caller]
fn offset(client: &mut Client) -> i64 {
    client.say("BLPOP topics:t 30").message().expect("a message").offset
}

#[test]
fn a_graceful_stop_answers_commits_and_flushes() {
    let kafka = Kafka::with(&[("t", 1), ("p", 1)]);
    kafka.put_all("t", 0, ["0", "1", "2"]);
    let mut karrow = Karrow::with(&kafka, &["--shutdown-grace", "20s"], |config| {
        // Only the end commits, and only the end stops lingering.
        config.kafka.consumer.insert("auto.commit.interval.ms".into(), "3600000".into());
        config.kafka.producer.insert("linger.ms".into(), "600000".into());
        config.kafka.producer.insert("message.timeout.ms".into(), "900000".into());
    });
    let mut acked = karrow.named("g:acked");
    for expect in 0..2 {
        assert_eq!(offset(&mut acked), expect);
    }
    assert_eq!(acked.say("RPUSH acks last").int(), 1);
    let mut blocked = karrow.named("g2:blocked");
    for _ in 0..3 {
        offset(&mut blocked);
    }
    blocked.raw(b"BLPOP topics:t 0\r\nPING\r\nLPOP topics:t\r\n");
    karrow.await_blocked("g2:blocked");
    let mut producer = karrow.connect();
    assert_eq!(producer.say("RPUSHX topics:p x").int(), 1);
    // Its reply waits for the brokers, which wait for the linger.
    producer.raw(b"RPUSH topics:p y\r\n");
    eventually("both to be on their way", || {
        (karrow.metric("karrow_producer_unflushed_messages") == 2.0).then_some(())
    });
    let mut idle = karrow.connect();
    idle.say("PING");
    let addr = karrow.resp_addr();

    let start = Instant::now();
    let stopped = karrow.stop();
    assert_eq!(blocked.reply().error(), "CONS Server shutdown");
    // What was said before is answered; nothing new is consumed.
    assert_eq!(blocked.reply().to_string(), "+PONG");
    assert_eq!(blocked.reply().error(), "CONS Server shutdown");
    assert!(blocked.is_closed());
    assert!(idle.is_closed());
    assert!(acked.is_closed());
    assert_eq!(producer.reply().int(), 1);
    assert!(producer.is_closed());
    stopped.join().expect("no panic");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(kafka.committed("g", "t", 0), Some(2));
    assert_eq!(kafka.committed("g2", "t", 0), None);
    assert_eq!(kafka.values("p", 0), [b"x", b"y"]);
    assert!(std::net::TcpStream::connect_timeout(&addr, Duration::from_secs(1)).is_err());
}

#[test]
fn the_grace_ends_a_stop_that_cannot_finish() {
    let kafka = Kafka::with(&[("stuck", 1)]);
    kafka.set_leader("stuck", 0, None);
    let mut karrow = Karrow::with(&kafka, &["--shutdown-grace", "3s"], |_| {});
    let mut client = karrow.connect();
    client.start("RPUSHX topics:stuck x");
    assert_eq!(client.reply().int(), 1);
    // Its reply never comes.
    client.start("RPUSH topics:stuck y");
    let start = Instant::now();
    let stopped = karrow.stop();
    eventually("/readyz to say so", || {
        (karrow.get("/readyz") == (503, "shutting down\n".to_owned())).then_some(())
    });
    stopped.join().expect("no panic");
    let took = start.elapsed();
    assert!(took < Duration::from_secs(12), "a grace of 3 s took {took:?}");
}

/// What RPUSHX answered 1 for is stored, although its topic was still being looked up when the stop came.
#[test]
fn a_stop_waits_for_messages_whose_topic_is_being_looked_up() {
    let kafka = Kafka::with(&[("p", 1), ("first", 1)]);
    let mut karrow = Karrow::start(&kafka);
    let mut client = karrow.connect();
    assert_eq!(client.say("RPUSH topics:first x").int(), 1);
    kafka.delay(Duration::from_millis(200));
    assert_eq!(client.say("RPUSHX topics:p x").int(), 1);
    karrow.stop().join().expect("no panic");
    kafka.delay(Duration::ZERO);
    assert_eq!(kafka.values("p", 0), [b"x"]);
}

/// Whoever supervises the process learns that something was lost.
#[test]
fn messages_that_were_not_stored_are_counted_and_change_the_exit_code() {
    let kafka = Kafka::with(&[("stuck", 1)]);
    kafka.set_leader("stuck", 0, None);
    let mut process = Command::new(env!("CARGO_BIN_EXE_karrow"))
        .args([
            "serve",
            "--port",
            "0",
            "--http-port",
            "off",
            "--flight-port",
            "off",
            "--shutdown-grace",
            "500ms",
        ])
        .args(["--brokers", &kafka.servers()])
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("karrow starts");
    let mut out = BufReader::new(process.stdout.take().expect("a pipe"));
    let mut client = Client::connect(banner_addr(&mut out));
    for _ in 0..3 {
        assert_eq!(client.say("RPUSHX topics:stuck x").int(), 1);
    }
    terminate(&process);
    let mut log = String::new();
    process.stderr.take().expect("a pipe").read_to_string(&mut log).expect("the log");
    let status = process.wait().expect("it ends");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("not stored") && log.contains("messages=3"), "{log}");
}

/// Where the process that prints its banner to `out` serves Redis clients.
fn banner_addr(out: &mut impl BufRead) -> SocketAddr {
    loop {
        let mut line = String::new();
        assert!(out.read_line(&mut line).expect("a line") > 0, "no banner");
        if let Some(addr) = line.trim().strip_prefix("Redis") {
            return addr.trim().parse().expect("an address");
        }
    }
}

fn terminate(process: &Child) {
    let pid = libc::pid_t::try_from(process.id()).expect("a pid");
    // SAFETY: a signal to our own child.
    unsafe { libc::kill(pid, libc::SIGTERM) };
}

/// The same as a process, by its signal.
#[test]
fn sigterm_is_a_graceful_stop() {
    stop_by_signal(Stdio::null());
}

/// Every line of the log fails then, the one that says "stopping" as well.
#[test]
fn a_log_that_nobody_reads_changes_nothing() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    stop_by_signal(writer.into());
}

fn stop_by_signal(log: Stdio) {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put("t", 0, "0");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("librdkafka.json");
    let json =
        r#"{"consumer": {"auto.commit.interval.ms": 3600000, "heartbeat.interval.ms": 100}}"#;
    std::fs::write(&file, json).expect("written");
    let mut process = Command::new(env!("CARGO_BIN_EXE_karrow"))
        .args([
            "serve",
            "--port",
            "0",
            "--http-port",
            "off",
            "--flight-port",
            "off",
            "--brokers",
            &kafka.servers(),
            "-c",
        ])
        .arg(&file)
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .expect("karrow starts");
    let mut out = BufReader::new(process.stdout.take().expect("a pipe"));
    let addr = banner_addr(&mut out);
    let mut client = Client::connect(addr);
    client.say("CLIENT SETNAME g:n");
    assert_eq!(offset(&mut client), 0);
    assert_eq!(client.say("RPUSH acks last").int(), 1);
    client.start("BLPOP topics:t 0");
    let mut other = Client::connect(addr);
    eventually("the pop to block", || {
        other.say("CLIENT LIST").text().contains(" flags=b ").then_some(())
    });
    terminate(&process);
    assert_eq!(client.reply().error(), "CONS Server shutdown");
    assert!(client.is_closed());
    let status = process.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
    out.read_to_string(&mut String::new()).expect("the rest of the banner");
    assert_eq!(kafka.committed("g", "t", 0), Some(1));
}
