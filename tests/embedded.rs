//! The embedded broker as Kafka clients see it, also across its restarts.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use karrow::config::{EmbeddedConfig, KafkaOptions};
use karrow::error::ErrorKind;
use karrow::kafka::admin::{Admin, TopicSpec, ensure_topics};
use karrow::kafka::embedded::EmbeddedBroker;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientConfig, ClientContext};
use tokio::runtime::Runtime;

use crate::support::{Client, DEADLINE, Karrow, Reply, eventually};

/// A broker over a directory, with a runtime to start and stop it from a plain test.
struct Broker {
    runtime: Runtime,
    dir: tempfile::TempDir,
    addr: SocketAddr,
    broker: Option<EmbeddedBroker>,
}

impl Broker {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let broker = runtime.block_on(EmbeddedBroker::start(&config(dir.path(), 0))).unwrap();
        Self { runtime, addr: broker.addr(), broker: Some(broker), dir }
    }

    fn stop(&mut self) {
        self.runtime.block_on(self.broker.take().unwrap().shutdown());
    }

    /// Stops it, and starts it over the same data at the same address.
    fn restart(&mut self) {
        self.stop();
        let config = config(self.dir.path(), self.addr.port());
        self.broker = Some(self.runtime.block_on(EmbeddedBroker::start(&config)).unwrap());
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.addr.to_string());
        config.set("reconnect.backoff.max.ms", "200");
        config.set("log_level", "0");
        config
    }

    fn options(&self) -> KafkaOptions {
        KafkaOptions::from([("bootstrap.servers".to_owned(), self.addr.to_string())])
    }

    fn create(&self, topic: &str, partitions: i32) {
        let admin = Admin::new(&self.options(), DEADLINE).unwrap();
        let spec = TopicSpec { partitions, ..TopicSpec::new(topic) };
        let results = self.runtime.block_on(admin.create(&[spec])).unwrap();
        results.into_iter().for_each(|result| result.unwrap());
    }

    fn idempotent_producer(&self) -> TestProducer {
        self.client()
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .create_with_context(Deliveries::default())
            .unwrap()
    }

    fn consumer(&self, group: &str) -> BaseConsumer {
        self.client()
            .set("group.id", group)
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap()
    }

    fn assigned(&self, topic: &str, offset: Offset) -> BaseConsumer {
        let consumer = self.consumer("unused");
        let mut positions = TopicPartitionList::new();
        positions.add_partition_offset(topic, 0, offset).unwrap();
        consumer.assign(&positions).unwrap();
        consumer
    }
}

fn config(dir: &Path, port: u16) -> EmbeddedConfig {
    EmbeddedConfig {
        data_dir: dir.to_path_buf(),
        kafka_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
    }
}

/// Counts what became of each message.
#[derive(Clone, Default)]
struct Deliveries {
    failed: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

impl ClientContext for Deliveries {}

impl rdkafka::producer::ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &rdkafka::producer::DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.failed.lock().unwrap().push(error.to_string());
        }
    }
}

type TestProducer = BaseProducer<Deliveries>;

fn send(producer: &TestProducer, topic: &str, value: &[u8]) {
    let record = BaseRecord::<'_, [u8], [u8]>::to(topic).payload(value);
    producer.send(record).map_err(|(error, _)| error).unwrap();
}

fn flush(producer: &TestProducer) {
    producer.flush(DEADLINE).unwrap();
    assert_eq!(*producer.context().failed.lock().unwrap(), Vec::<String>::new());
}

fn next(consumer: &BaseConsumer) -> (i64, Vec<u8>) {
    eventually("a message", || {
        let message = consumer.poll(Duration::from_millis(100))?.ok()?;
        Some((message.offset(), message.payload().unwrap_or_default().to_vec()))
    })
}

#[test]
fn what_is_produced_idempotently_survives_restarts_once_and_in_order() {
    let mut broker = Broker::start();
    broker.create("orders", 1);
    let producer = broker.idempotent_producer();
    let mut sent = 0;
    for round in 0..3 {
        for _ in 0..200 {
            send(&producer, "orders", format!("{sent}").as_bytes());
            sent += 1;
        }
        if round == 2 {
            break;
        }
        // Some are on their way while the broker goes: the producer sends them again.
        producer.poll(Duration::from_millis(5));
        broker.restart();
    }
    flush(&producer);
    // A second producer gets an id of its own.
    let second = broker.idempotent_producer();
    send(&second, "orders", b"last");
    flush(&second);
    let consumer = broker.assigned("orders", Offset::Beginning);
    for expected in 0..sent {
        assert_eq!(next(&consumer), (expected, format!("{expected}").into_bytes()));
    }
    assert_eq!(next(&consumer), (sent, b"last".to_vec()));
}

#[test]
fn a_group_goes_on_where_it_committed_before_the_restart() {
    let mut broker = Broker::start();
    broker.create("orders", 1);
    let producer = broker.idempotent_producer();
    (0..5).for_each(|i| send(&producer, "orders", format!("{i}").as_bytes()));
    flush(&producer);
    let consumer = broker.consumer("readers");
    consumer.subscribe(&["orders"]).unwrap();
    assert_eq!(next(&consumer).0, 0);
    assert_eq!(next(&consumer).0, 1);
    let mut position = TopicPartitionList::new();
    position.add_partition_offset("orders", 0, Offset::Offset(2)).unwrap();
    consumer.commit(&position, CommitMode::Sync).unwrap();

    // The same member, with an id that the restarted broker does not know.
    broker.restart();
    eventually("the message after the commit", || {
        let message = consumer.poll(Duration::from_millis(100))?.ok()?;
        (message.offset() == 2).then_some(())
    });
}

#[test]
fn a_new_member_does_not_wait_for_members_from_before_the_restart() {
    let mut broker = Broker::start();
    broker.create("orders", 1);
    let producer = broker.idempotent_producer();
    send(&producer, "orders", b"1");
    flush(&producer);
    let mut child = member_process(&broker, "readers");
    child.kill().unwrap();
    child.wait().unwrap();
    broker.restart();
    let start = Instant::now();
    let consumer = broker.consumer("readers");
    consumer.subscribe(&["orders"]).unwrap();
    assert_eq!(next(&consumer).0, 0);
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
}

#[test]
fn a_group_recovers_from_a_member_that_was_killed() {
    let broker = Broker::start();
    broker.create("orders", 1);
    let producer = broker.idempotent_producer();
    send(&producer, "orders", b"1");
    flush(&producer);
    let mut child = member_process(&broker, "readers");
    child.kill().unwrap();
    child.wait().unwrap();
    let consumer = broker.consumer("readers");
    consumer.subscribe(&["orders"]).unwrap();
    assert_eq!(next(&consumer).0, 0);
}

/// A process that is a member of the group and has consumed, ready to be killed.
fn member_process(broker: &Broker, group: &str) -> std::process::Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded::member_process_body", "--nocapture"])
        .env("MEMBER_OF", group)
        .env("MEMBER_AT", broker.addr.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("consumed") {
        line.clear();
        let read = std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        assert!(read > 0, "the member ended early");
    }
    child
}

/// Not a test of its own: what [`member_process`] runs.
#[test]
fn member_process_body() {
    let (Ok(group), Ok(addr)) = (std::env::var("MEMBER_OF"), std::env::var("MEMBER_AT")) else {
        return;
    };
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", addr)
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("session.timeout.ms", "6000")
        .create()
        .unwrap();
    consumer.subscribe(&["orders"]).unwrap();
    next(&consumer);
    println!("\nconsumed");
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        consumer.poll(Duration::from_millis(100));
    }
}

#[test]
fn two_members_share_the_partitions_and_one_takes_over_what_the_other_leaves() {
    let broker = Broker::start();
    broker.create("orders", 4);
    let first = broker.consumer("readers");
    first.subscribe(&["orders"]).unwrap();
    let count = |consumer: &BaseConsumer| {
        consumer.poll(Duration::from_millis(20));
        consumer.assignment().unwrap().count()
    };
    eventually("all four for the first", || (count(&first) == 4).then_some(()));
    let second = broker.consumer("readers");
    second.subscribe(&["orders"]).unwrap();
    eventually("two each", || (count(&first) == 2 && count(&second) == 2).then_some(()));
    drop(first);
    eventually("all four for the second", || (count(&second) == 4).then_some(()));
}

#[test]
fn offsets_are_listed_and_reset_as_kafka_does() {
    let broker = Broker::start();
    broker.create("orders", 1);
    let latest = broker.assigned("orders", Offset::End);
    // Its place is the end as it is now, once it has asked for it.
    eventually("the end", || latest.poll(Duration::from_millis(20)).is_none().then_some(()));
    let producer = broker.idempotent_producer();
    (0..3).for_each(|i| send(&producer, "orders", format!("{i}").as_bytes()));
    flush(&producer);
    let consumer = broker.consumer("readers");
    assert_eq!(consumer.fetch_watermarks("orders", 0, DEADLINE).unwrap(), (0, 3));

    let mut unknown = TopicPartitionList::new();
    unknown.add_partition("orders", 0);
    let committed = consumer.committed_offsets(unknown, DEADLINE).unwrap();
    assert_eq!(committed.elements()[0].offset(), Offset::Invalid, "an unknown group has none");

    // Behind the end: the reset policy decides, nothing hangs.
    let beyond = broker.assigned("orders", Offset::Offset(99));
    assert_eq!(next(&beyond).0, 0);

    let mut times = TopicPartitionList::new();
    times.add_partition_offset("orders", 0, Offset::Offset(0)).unwrap();
    let by_time = consumer.offsets_for_times(times, DEADLINE).unwrap();
    assert_eq!(by_time.elements()[0].offset(), Offset::Offset(0));
}

#[test]
fn a_record_arrives_as_it_was_sent() {
    let broker = Broker::start();
    broker.create("orders", 1);
    let producer = broker.idempotent_producer();
    let headers = OwnedHeaders::new()
        .insert(Header { key: "a", value: Some("1") })
        .insert(Header { key: "empty", value: None::<&str> });
    let record = BaseRecord::to("orders")
        .key(b"key".as_slice())
        .payload(b"\x00\xff".as_slice())
        .timestamp(1_234_567_890_123)
        .headers(headers);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    let tombstone = BaseRecord::<'_, [u8], [u8]>::to("orders").key(b"key");
    producer.send(tombstone).map_err(|(error, _)| error).unwrap();
    flush(&producer);
    let consumer = broker.assigned("orders", Offset::Beginning);
    let message = eventually("the record", || {
        consumer.poll(Duration::from_millis(100))?.ok().map(|m| m.detach())
    });
    assert_eq!(message.key(), Some(b"key".as_slice()));
    assert_eq!(message.payload(), Some(b"\x00\xff".as_slice()));
    assert_eq!(message.timestamp().to_millis(), Some(1_234_567_890_123));
    let headers = message.headers().unwrap();
    assert_eq!((headers.get(0).key, headers.get(0).value), ("a", Some(b"1".as_slice())));
    assert_eq!((headers.get(1).key, headers.get(1).value), ("empty", None));
    let message = eventually("the tombstone", || {
        consumer.poll(Duration::from_millis(100))?.ok().map(|m| m.detach())
    });
    assert_eq!(message.payload(), None);
}

#[test]
fn compressed_batches_come_back() {
    let broker = Broker::start();
    for codec in ["gzip", "zstd", "none"] {
        let producer: TestProducer = broker
            .client()
            .set("compression.type", codec)
            .create_with_context(Deliveries::default())
            .unwrap();
        for i in 0..100 {
            send(&producer, codec, format!("{i:0100}").as_bytes());
        }
        flush(&producer);
        let consumer = broker.assigned(codec, Offset::Beginning);
        for i in 0..100 {
            assert_eq!(next(&consumer), (i, format!("{i:0100}").into_bytes()), "{codec}");
        }
    }
}

#[test]
fn a_record_larger_than_any_fetch_limit_arrives() {
    let broker = Broker::start();
    broker.create("orders", 1);
    let producer: TestProducer = broker
        .client()
        .set("message.max.bytes", "40000000")
        .create_with_context(Deliveries::default())
        .unwrap();
    let large = vec![7; 20 << 20];
    send(&producer, "orders", b"small");
    send(&producer, "orders", &large);
    send(&producer, "orders", b"small again");
    flush(&producer);
    let consumer = broker.assigned("orders", Offset::Beginning);
    assert_eq!(next(&consumer).0, 0);
    assert_eq!(next(&consumer), (1, large));
    assert_eq!(next(&consumer), (2, b"small again".to_vec()));
}

#[test]
fn a_waiting_fetch_is_answered_at_once() {
    let broker = Broker::start();
    broker.create("orders", 1);
    let producer = broker.idempotent_producer();
    let consumer: BaseConsumer = {
        let consumer: BaseConsumer = broker
            .client()
            .set("group.id", "unused")
            .set("fetch.wait.max.ms", "10000")
            .create()
            .unwrap();
        let mut positions = TopicPartitionList::new();
        positions.add_partition_offset("orders", 0, Offset::Beginning).unwrap();
        consumer.assign(&positions).unwrap();
        consumer
    };
    send(&producer, "orders", b"first");
    flush(&producer);
    next(&consumer);
    // By the second message the consumer's next fetch is waiting, up to ten seconds.
    let start = Instant::now();
    send(&producer, "orders", b"second");
    flush(&producer);
    next(&consumer);
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
}

#[test]
fn producers_create_topics_and_consumers_do_not() {
    let broker = Broker::start();
    let consumer = broker.consumer("readers");
    consumer.subscribe(&["later"]).unwrap();
    assert!(consumer.poll(Duration::from_millis(500)).is_none_or(|message| message.is_err()));
    assert!(Admin::new(&broker.options(), DEADLINE).unwrap().list().unwrap().is_empty());

    let producer = broker.idempotent_producer();
    send(&producer, "later", b"hello");
    flush(&producer);
    let consumer = broker.assigned("later", Offset::Beginning);
    assert_eq!(next(&consumer), (0, b"hello".to_vec()));
}

#[test]
fn topics_are_created_listed_and_deleted() {
    let broker = Broker::start();
    let admin = Admin::new(&broker.options(), DEADLINE).unwrap();
    broker.create("b", 3);
    let wanted = ["a".to_owned(), "b".to_owned()];
    // Twice: what is there stays as it is.
    for _ in 0..2 {
        broker.runtime.block_on(ensure_topics(&broker.options(), &wanted, DEADLINE)).unwrap();
    }
    let listed = || {
        let topics = admin.list().unwrap();
        topics.into_iter().map(|topic| (topic.name, topic.partitions)).collect::<Vec<_>>()
    };
    assert_eq!(listed(), [("a".to_owned(), 1), ("b".to_owned(), 3)]);

    let results = broker.runtime.block_on(admin.create(&[TopicSpec::new("b")])).unwrap();
    let error = results[0].as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains("topic 'b'"), "{error}");

    let results = broker.runtime.block_on(admin.delete(&["b", "nowhere"])).unwrap();
    assert!(results[0].is_ok());
    assert_eq!(results[1].as_ref().unwrap_err().kind(), ErrorKind::NotFound);
    eventually("the deletion", || (listed() == [("a".to_owned(), 1)]).then_some(()));
}

#[test]
fn what_one_broker_cannot_do_is_refused() {
    let broker = Broker::start();
    let admin = Admin::new(&broker.options(), DEADLINE).unwrap();
    let pair = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
    let copies = "the replication factor is below 1 or more than there are brokers";
    let setting = "a setting is unknown, or its value is wrong";
    for (replication_factor, config, expected) in [
        (1, pair("retention.ms", "60000"), None),
        (-1, pair("cleanup.policy", "compact,delete"), None),
        (3, pair("retention.ms", "60000"), Some(copies)),
        (1, pair("no.such.setting", "1"), Some(setting)),
        (1, pair("retention.ms", "soon"), Some(setting)),
        (1, pair("cleanup.policy", "shred"), Some(setting)),
    ] {
        // Beside one that is well.
        let name =
            format!("t{replication_factor}-{}-{}", config[0].0, config[0].1.replace(',', "-"));
        let well = format!("well-{name}");
        let specs = [
            TopicSpec { replication_factor, config: &config, ..TopicSpec::new(&name) },
            TopicSpec::new(&well),
        ];
        let results = broker.runtime.block_on(admin.create(&specs)).unwrap();
        let error = results[0].as_ref().err().map(|error| error.message().to_owned());
        assert_eq!(error, expected.map(|why| format!("topic '{name}': {why}")), "{name}");
        assert!(results[1].is_ok(), "{name}");
        let exists = admin.list().unwrap().iter().any(|topic| topic.name == name);
        assert_eq!(exists, expected.is_none(), "{name}");
    }

    let servers = &broker.options()["bootstrap.servers"];
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_karrow"))
        .args(["topics", "create", "x", "--replication-factor", "3", "--brokers", servers])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("karrow: topic 'x': {copies}\n"));
}

#[test]
fn a_consumer_outlives_its_topic() {
    let broker = Broker::start();
    broker.create("orders", 2);
    let producer = broker.idempotent_producer();
    send(&producer, "orders", b"1");
    flush(&producer);
    let consumer = broker.consumer("readers");
    consumer.subscribe(&["orders"]).unwrap();
    next(&consumer);
    let admin = Admin::new(&broker.options(), DEADLINE).unwrap();
    broker.runtime.block_on(admin.delete(&["orders"])).unwrap()[0].as_ref().unwrap();
    // It goes on asking for what is gone, and the broker is well.
    let asking = Instant::now() + Duration::from_secs(1);
    while Instant::now() < asking {
        consumer.poll(Duration::from_millis(100));
    }
    broker.create("orders", 1);
    let producer = broker.idempotent_producer();
    send(&producer, "orders", b"2");
    flush(&producer);
    let consumer = broker.assigned("orders", Offset::Beginning);
    assert_eq!(next(&consumer), (0, b"2".to_vec()));
}

/// A producer that knows `topic` with three partitions, none of which may come back by itself.
fn producer_of(broker: &Broker, topic: &str, idempotent: bool) -> TestProducer {
    let producer: TestProducer = broker
        .client()
        .set("enable.idempotence", idempotent.to_string())
        .set("allow.auto.create.topics", "false")
        .set("message.timeout.ms", "4000")
        .set("linger.ms", "0")
        .create_with_context(Deliveries::default())
        .unwrap();
    for partition in 0..3 {
        send_to(&producer, topic, partition);
    }
    flush(&producer);
    producer
}

fn send_to(producer: &TestProducer, topic: &str, partition: i32) {
    let record = BaseRecord::<'_, [u8], [u8]>::to(topic).partition(partition).payload(b"x");
    producer.send(record).map_err(|(error, _)| error).unwrap();
}

/// Until the client's metadata are those of the new topic.
fn send_until_stored(producer: &TestProducer, topic: &str) {
    eventually("a stored message", || {
        send_to(producer, topic, 0);
        producer.flush(DEADLINE).unwrap();
        std::mem::take(&mut *producer.context().failed.lock().unwrap()).is_empty().then_some(())
    });
}

#[test]
fn producing_to_what_is_gone_is_an_error_and_other_topics_go_on() {
    let broker = Broker::start();
    let admin = Admin::new(&broker.options(), DEADLINE).unwrap();
    let delete = |topic| {
        broker.runtime.block_on(admin.delete(&[topic])).unwrap()[0].as_ref().unwrap();
    };
    broker.create("other", 1);
    for idempotent in [true, false] {
        broker.create("gone", 3);
        broker.create("smaller", 3);
        let to_gone = producer_of(&broker, "gone", idempotent);
        let to_smaller = producer_of(&broker, "smaller", idempotent);
        delete("gone");
        delete("smaller");
        broker.create("smaller", 1);
        for (producer, topic) in [(&to_gone, "gone"), (&to_smaller, "smaller")] {
            // Their metadata is older than the deletion.
            send_to(producer, topic, 2);
            let failed = eventually("an error", || {
                producer.poll(Duration::from_millis(20));
                producer.context().failed.lock().unwrap().pop()
            });
            // librdkafka repeats what is unknown, until it gives up.
            assert!(failed.contains("Unknown") || failed.contains("timed out"), "{failed}");
            send(producer, "other", b"goes on");
            flush(producer);
        }
        send_until_stored(&to_smaller, "smaller");
        delete("smaller");
    }
    let consumer = broker.assigned("other", Offset::Beginning);
    for offset in 0..4 {
        assert_eq!(next(&consumer), (offset, b"goes on".to_vec()));
    }
    assert!(broker.broker.as_ref().unwrap().health().is_healthy());
}

#[test]
fn an_auto_created_topic_comes_back_after_its_deletion() {
    let broker = Broker::start();
    let producer = broker.idempotent_producer();
    let admin = Admin::new(&broker.options(), DEADLINE).unwrap();
    for _ in 0..3 {
        send_until_stored(&producer, "orders");
        broker.runtime.block_on(admin.delete(&["orders"])).unwrap()[0].as_ref().unwrap();
    }
    send_until_stored(&producer, "orders");
    let consumer = broker.assigned("orders", Offset::Beginning);
    assert_eq!(next(&consumer), (0, b"x".to_vec()));
}

#[test]
fn a_partition_asked_for_twice_is_answered() {
    let broker = Broker::start();
    broker.create("orders", 1);
    let consumer = broker.consumer("readers");
    let mut twice = TopicPartitionList::new();
    twice.add_partition("orders", 0);
    twice.add_partition("orders", 0);
    let _ = consumer.committed_offsets(twice, DEADLINE).unwrap();
    broker.create("more", 1);
}

#[test]
fn it_says_in_one_line_why_it_does_not_start() {
    let broker = Broker::start();
    let start = |config: &EmbeddedConfig| {
        let error = broker.runtime.block_on(EmbeddedBroker::start(config)).unwrap_err();
        assert!(!error.message().contains('\n'), "{error}");
        error.message().to_owned()
    };
    let dir = tempfile::tempdir().unwrap();

    let text = start(&config(dir.path(), broker.addr.port()));
    assert!(text.contains(&broker.addr.to_string()) && text.contains("in use"), "{text}");

    let text = start(&config(broker.dir.path(), 0));
    assert!(text.contains("another karrow uses it"), "{text}");

    let file = dir.path().join("file");
    std::fs::write(&file, "no directory").unwrap();
    let text = start(&config(&file, 0));
    assert!(text.contains(file.to_str().unwrap()), "{text}");

    std::fs::write(dir.path().join("broker.db"), "no database".repeat(1000)).unwrap();
    let text = start(&config(dir.path(), 0));
    assert!(text.contains("broker.db cannot be opened: file is not a database"), "{text}");
}

/// What librdkafka's idempotent producer asks for after an error it cannot resolve otherwise.
#[test]
fn a_producer_that_renews_its_id_gets_a_new_one() {
    use std::io::{Read, Write};

    let broker = Broker::start();
    let producer_ids = [(-1_i64, -1_i16), (1, 0), (77, 3)].map(|(id, epoch)| {
        // InitProducerId, version 3: header, no transactional id, timeout, id, epoch; no tags.
        let mut request = Vec::new();
        request.extend([0, 22, 0, 3, 0, 0, 0, 9, 0xff, 0xff, 0]);
        request.push(0);
        request.extend(60_000_i32.to_be_bytes());
        request.extend(id.to_be_bytes());
        request.extend(epoch.to_be_bytes());
        request.push(0);
        let mut stream = std::net::TcpStream::connect(broker.addr).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&i32::try_from(request.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&request).unwrap();
        // Length, correlation id, tags, throttle time, error, id.
        let mut answer = [0; 23];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[4..8], [0, 0, 0, 9]);
        assert_eq!(answer[13..15], [0, 0], "no error");
        i64::from_be_bytes(answer[15..23].try_into().unwrap())
    });
    assert!(producer_ids[0] < producer_ids[1] && producer_ids[1] < producer_ids[2]);
    let producer = broker.idempotent_producer();
    send(&producer, "orders", b"still there");
    flush(&producer);
}

/// tansu stores such batches and cannot write them for a fetch: the partition could never be read again.
#[test]
fn snappy_batches_can_be_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("librdkafka.json");
    std::fs::write(&file, r#"{"producer":{"compression.type":"snappy"}}"#).expect("written");
    let karrow = Karrow::embedded(&["-c", file.to_str().expect("UTF-8")]);
    let mut client = karrow.named("g:n");
    let long = "snappy ".repeat(20_000);
    assert_eq!(client.call(&["RPUSH", "topics:t", &long, "short"]).int(), 2);
    for expected in [long.as_str(), "short"] {
        let message = client.say("BLPOP topics:t 30").message().expect("a message");
        assert_eq!(message.text(), expected);
    }
}

/// Its name may come again; the acks of the one that went must not pass over the messages of the next.
#[test]
fn acks_of_a_deleted_topic_are_not_owed_to_its_successor() {
    let karrow = Karrow::embedded(&[]);
    let admin = karrow.admin();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut producer = karrow.connect();
    let produce = |producer: &mut Client, values: &[&str]| {
        let command = [&["RPUSH", "topics:t"], values].concat();
        eventually("the messages to be stored", || {
            let reply = producer.call(&command);
            (!matches!(reply, Reply::Error(_))).then_some(())
        });
    };
    produce(&mut producer, &["old", "old", "old"]);
    let key = r#"topics:t:{"auto.commit.interval.ms":60000}"#;
    let mut client = karrow.named("g:n");
    for offset in 0..3 {
        let message = client.call(&["BLPOP", key, "30"]).message().expect("a message");
        assert_eq!(message.offset, offset);
    }
    assert_eq!(client.say("RPUSH acks t:0:2").int(), 1);
    runtime.block_on(admin.delete(&["t"])).expect("an answer").remove(0).expect("deleted");
    client.say("QUIT");
    // Kafka knows topics by name: a commit that comes when the next one is there would be its commit.
    karrow.await_metric("karrow_commits_total{outcome=\"error\"}", |count| count >= 1.0);
    produce(&mut producer, &["new-0", "new-1", "new-2", "new-3", "new-4"]);
    let mut client = karrow.named("g:n");
    for offset in 0..5 {
        let message = client.call(&["BLPOP", key, "30"]).message().expect("a message");
        assert_eq!((message.offset, message.text()), (offset, &*format!("new-{offset}")));
    }
}

/// The restarted broker knows no members. The first that comes back gets all partitions, also those that the other one
/// believes to have until its next heartbeat: what that one had acked does not come again, what it acks from now on is
/// refused.
#[test]
fn acks_outlive_a_member_whose_group_is_forgotten() {
    let mut broker = Broker::start();
    broker.create("orders", 1);
    let producer = broker.idempotent_producer();
    (0..6).for_each(|i| send(&producer, "orders", format!("{i}").as_bytes()));
    flush(&producer);
    let karrow = Karrow::at(&broker.addr.to_string(), &[], |_| {});
    let slow = r#"topics:orders:{"auto.commit.interval.ms":60000,"heartbeat.interval.ms":30000}"#;
    let mut one = karrow.named("g:one");
    for offset in 0..4 {
        let message = one.call(&["BLPOP", slow, "30"]).message().expect("a message");
        assert_eq!(message.offset, offset);
    }
    broker.restart();
    assert_eq!(one.call(&["RPUSH", "acks", "orders:0:1"]).int(), 1);
    let mut two = karrow.named("g:two");
    let next = two.call(&["BLPOP", "topics:orders", "30"]).message().expect("a message");
    assert_eq!(next.offset, 2);
    let refused = one.call(&["RPUSH", "acks", "orders:0:3"]);
    assert_eq!(refused.error(), "CONS orders:0 is not assigned to g:one");
    // The first is a member again: it gets what the other one leaves.
    assert_eq!(two.call(&["RPUSH", "acks", "orders:0:2"]).int(), 1);
    two.say("QUIT");
    let next = one.call(&["BLPOP", slow, "30"]).message().expect("a message");
    assert_eq!(next.offset, 3);
}

/// A partition that goes before its beginning is known: librdkafka fetches it all the same once it knows, and what it has
/// fetched must not come when the partition is back, because others have had it meanwhile.
#[test]
fn a_partition_that_went_before_it_began_comes_back_where_others_left_it() {
    let broker = Broker::start();
    broker.create("orders", 2);
    let producer = broker.idempotent_producer();
    (0..10).for_each(|_| send_to(&producer, "orders", 0));
    send_to(&producer, "orders", 1);
    flush(&producer);
    // One partition has been read to its end: a fetch waits there for two seconds, and whatever else is asked on that
    // connection waits with it, the beginning of the other partition above all. Meanwhile a heartbeat takes both away.
    let mut end = TopicPartitionList::new();
    end.add_partition_offset("orders", 1, Offset::Offset(1)).unwrap();
    broker.consumer("g").commit(&end, CommitMode::Sync).unwrap();
    let karrow = Karrow::at(&broker.addr.to_string(), &[], |_| {});
    let key = r#"topics:orders:{"fetch.wait.max.ms":2000,"heartbeat.interval.ms":1000}"#;
    let mut later = karrow.named("g:2");
    later.send(&["BLPOP", key, "30"]);
    karrow.await_metric("karrow_rebalances_total{kind=\"assigned\"}", |count| count >= 1.0);
    let mut first = karrow.named("g:1");
    let mut pop = |offset| {
        let message = first.call(&["BLPOP", key, "30"]).message().expect("a message");
        assert_eq!((message.partition, message.offset), (0, offset));
    };
    (0..10).for_each(&mut pop);
    assert_eq!(first.call(&["RPUSH", "acks", "orders:0:9"]).int(), 1);
    // What the second member has fetched of the first partition by now, it has fetched without having it.
    send_to(&producer, "orders", 1);
    flush(&producer);
    let mut message = later.reply().message().expect("a message");
    if message.partition == 0 {
        // It came before the first member did.
        assert_eq!(message.offset, 0);
        message = later.call(&["BLPOP", key, "30"]).message().expect("a message");
    }
    assert_eq!((message.partition, message.offset), (1, 1));
    assert!(later.call(&["BLPOP", key, "2"]).is_null());
    first.say("QUIT");
    send_to(&producer, "orders", 0);
    flush(&producer);
    let back = eventually("the first partition to come back", || {
        let message = later.call(&["BLPOP", key, "30"]).message().expect("a message");
        // The one of the other partition was not acked: it may come again.
        (message.partition == 0).then_some(message.offset)
    });
    assert_eq!(back, 10);
}
