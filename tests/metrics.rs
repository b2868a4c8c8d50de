//! Every metric moves.

use std::collections::BTreeSet;
use std::time::Duration;

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::{FlightClient, FlightDescriptor};
use futures::StreamExt;
use tonic::transport::Channel;

use karrow::config::sql::QuerySettings;

use crate::support::kafka::{Code, HEARTBEAT, OFFSET_COMMIT, PRODUCE};
use crate::support::registry::Registry;
use crate::support::{Kafka, Karrow, Reply, eventually};

/// The names in the source, so that a new metric has to be moved here.
fn names() -> BTreeSet<String> {
    let source = include_str!("../src/metrics.rs");
    let names = source.split('"').filter(|text| {
        text.starts_with("karrow_") && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    });
    names.map(str::to_owned).collect()
}

async fn flights(karrow: &Karrow) -> FlightClient {
    let address = format!("http://{}", karrow.flight_addr());
    let channel = Channel::from_shared(address).expect("an address").connect().await;
    FlightClient::new(channel.expect("a connection"))
}

/// What comes to `topic` from now on.
async fn follow(karrow: &Karrow, topic: &str) -> FlightRecordBatchStream {
    let mut client = flights(karrow).await;
    let command = format!(r#"{{"topic":"{topic}","from":"latest","to":"follow"}}"#);
    let plan = client.get_flight_info(FlightDescriptor::new_cmd(command)).await.expect("a plan");
    let ticket = plan.endpoint[0].ticket.clone().expect("a ticket");
    client.do_get(ticket).await.expect("a stream")
}

/// The metrics of SQL, each of which has moved.
fn move_those_of_sql() -> Vec<String> {
    let kafka = Kafka::with(&[("q", 1), ("w", 1)]);
    kafka.put("q", 0, "first");
    kafka.put("w", 0, r#"{"a":1}"#);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("q.duckdb");
    let is_some = |count: f64| count > 0.0;
    let mut flags = vec!["--topics", "q,w", "--start", "earliest", "--persist"];
    flags.extend(["--db-path", file.to_str().expect("UTF-8")]);
    let mut karrow = Karrow::with(&kafka, &flags, |_| {});
    karrow.await_metric("karrow_stored_rows_total{topic=\"q\"}", is_some);
    karrow.await_metric("karrow_stored_rows_total{topic=\"w\"}", is_some);
    let widened = "karrow_store_columns_widened_total{topic=\"w\"}";
    assert_eq!(karrow.metric(widened), 0.0);
    kafka.put("w", 0, r#"{"a":"x"}"#);
    karrow.await_metric(widened, |count| count == 1.0);
    // What comes is stored after a second at most, and is not stored before.
    let lag = "karrow_store_lag_records{topic=\"w\"}";
    eventually("a lag", || {
        kafka.put("w", 0, r#"{"a":"x"}"#);
        (karrow.metric(lag) > 0.0).then_some(())
    });
    karrow.await_metric(lag, |lag| lag == 0.0);
    karrow.await_metric("karrow_store_bytes{state=\"file\"}", is_some);
    karrow.stop().join().expect("it stops");
    kafka.put_all("q", 0, (0..80).map(|_| "x".repeat(100_000)));
    flags.extend(["--buffer-limit", "1", "--when-full", "error"]);
    let karrow = Karrow::with(&kafka, &flags, |config| {
        let sql = "select count(*) from q".to_owned();
        config.sql.stored_age_max = Some(Duration::from_millis(1));
        config.sql.queries = [("n".to_owned(), QuerySettings { sql, max_age: None })].into();
    });
    karrow.await_metric("karrow_stored_rows_total{topic=\"q\"}", is_some);
    // The mock cluster keeps five megabytes, so the rest was deleted before it was stored.
    karrow.await_metric("karrow_store_skipped_offsets_total{topic=\"q\"}", is_some);
    karrow.await_metric("karrow_store_bytes{state=\"used\"}", is_some);
    karrow.await_metric("karrow_store_expired_rows_total", is_some);
    // The window is full, which ends the stream.
    kafka.put("q", 0, "second");
    karrow.await_metric("karrow_store_errors_total{topic=\"q\"}", is_some);
    assert_eq!(karrow.get("/readyz").0, 503);
    let mut client = karrow.connect();
    client.send(&["SQL", "select sum(a.i * b.i) from range(10000000) a(i), range(10000000) b(i)"]);
    karrow.await_metric("karrow_sql_running", is_some);
    drop(client);
    assert_eq!(karrow.get("/v1/queries/n").0, 200);
    let run = "karrow_named_queries_total{query=\"n\",source=\"run\"}";
    karrow.await_metric(run, is_some);
    karrow.await_metric("karrow_sql_queries_total{outcome=\"ok\"}", is_some);
    karrow.await_metric("karrow_sql_seconds_count", is_some);
    let moved = [
        "stored_rows_total",
        "store_skipped_offsets_total",
        "store_errors_total",
        "store_lag_records",
        "store_bytes",
        "store_expired_rows_total",
        "store_columns_widened_total",
        "sql_running",
        "named_queries_total",
    ];
    let moved = moved.iter().chain(&["sql_queries_total", "sql_seconds"]);
    moved.map(|name| format!("karrow_{name}")).collect()
}

#[test]
fn every_metric_moves() {
    let kafka = Kafka::with(&[("t", 1), ("p", 1), ("stuck", 1), ("j", 1), ("j.dlq", 1), ("s", 1)]);
    kafka.put_all("t", 0, ["one", "three", "five"]);
    let registry = Registry::start();
    let url = registry.url();
    let mut flags = vec!["--max-clients", "6", "--json-fields", "1", "--schema-registry", &url];
    flags.extend(["--on-bad-record", "dead-letter"]);
    flags.extend(["--ttl", "3s", "--when-full", "pause", "--buffer-limit", "1"]);
    let karrow = Karrow::with(&kafka, &flags, |_| {});
    let before = karrow.metrics();
    let mut moved = BTreeSet::new();
    let mut look = || {
        for (name, value) in karrow.metrics() {
            if before.get(&name).copied().unwrap_or(0.0) != value {
                let name = name.split('{').next().expect("a name");
                // A histogram has a count, a sum and buckets.
                moved.insert(name.strip_suffix("_count").unwrap_or(name).to_owned());
            }
        }
    };
    let metric = |name: &str| karrow.metric(name);
    let labelled = |name: &str, labels: &str| karrow.metric(&format!("{name}{{{labels}}}"));

    // A window that is full after one batch, until that is old.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut followed = runtime.block_on(follow(&karrow, "s"));
    let is_some = |count: f64| count > 0.0;
    // What comes before the stream has begun is not in its window.
    karrow.await_metric("karrow_streams{phase=\"live\"}", is_some);
    kafka.put("s", 0, "first");
    karrow.await_metric("karrow_streams{phase=\"paused\"}", is_some);
    for gauge in ["window_bytes", "window_rows", "window_age_ms", "readers"] {
        karrow.await_metric(&format!("karrow_stream_{gauge}{{topic=\"s\"}}"), is_some);
    }
    karrow.await_metric("karrow_stream_paused_partitions{topic=\"s\"}", is_some);
    look();
    kafka.put("s", 0, "second");
    karrow.await_metric("karrow_stream_lag_messages{topic=\"s\"}", is_some);
    look();
    let dropped = "karrow_stream_dropped_rows_total{reason=\"old\",topic=\"s\"}";
    karrow.await_metric(dropped, is_some);
    let next = runtime.block_on(async { followed.next().await });
    assert_eq!(next.expect("a batch").expect("no error").num_rows(), 1);
    assert!(labelled("karrow_flight_requests_total", "rpc=\"DoGet\"") == 1.0);
    assert!(labelled("karrow_flight_bytes_total", "rpc=\"DoGet\"") > 0.0);
    assert!(labelled("karrow_flight_batches_total", "encoding=\"encoded\"") > 0.0);
    runtime.block_on(async {
        let mut flights = flights(&karrow).await;
        let nothing = flights.get_flight_info(FlightDescriptor::new_path(vec!["none".to_owned()]));
        assert!(nothing.await.is_err());
    });
    let not_found = "code=\"NOT_FOUND\",rpc=\"GetFlightInfo\"";
    assert_eq!(labelled("karrow_flight_errors_total", not_found), 1.0);
    drop(followed);
    look();
    // A range that no window has, from a broker that takes its time.
    runtime.block_on(async {
        let mut flights = flights(&karrow).await;
        let topic = FlightDescriptor::new_path(vec!["t".to_owned()]);
        let plan = flights.get_flight_info(topic).await.expect("a plan");
        let ticket = plan.endpoint[0].ticket.clone().expect("a ticket");
        kafka.delay(Duration::from_secs(1));
        let read = tokio::spawn(async move {
            let batches = flights.do_get(ticket).await.expect("a stream");
            batches.map(|batch| batch.expect("a batch").num_rows()).collect::<Vec<_>>().await
        });
        let reading = "karrow_range_readers{state=\"reading\"}";
        tokio::task::block_in_place(|| karrow.await_metric(reading, is_some));
        kafka.delay(Duration::ZERO);
        assert_eq!(read.await.expect("read").iter().sum::<usize>(), 3);
    });

    let mut client = karrow.named("g:n");
    assert_eq!(metric("karrow_connections"), 1.0);
    let message = client.say("BLPOP topics:t 30").message().expect("a message");
    assert_eq!(message.text(), "one");
    client.say("BLPOP topics:t 30");
    assert_eq!(labelled("karrow_consumed_messages_total", "topic=\"t\""), 2.0);
    assert_eq!(labelled("karrow_consumed_bytes_total", "topic=\"t\""), 8.0);
    let lag = "group=\"g\",partition=\"0\",topic=\"t\"";
    eventually("the lag", || (labelled("karrow_consumer_lag_messages", lag) == 3.0).then_some(()));
    assert_eq!(labelled("karrow_sessions", "state=\"live\""), 1.0);
    assert_eq!(labelled("karrow_rebalances_total", "kind=\"assigned\""), 1.0);
    assert!(metric("karrow_kafka_clients") >= 1.0);
    client.say("RPUSH acks t:0:0");
    client.say("RPUSH acks t:0:0");
    client.say("RPUSH acks t:0:9");
    for outcome in ["moved", "repeated", "refused"] {
        assert_eq!(labelled("karrow_acks_total", &format!("outcome=\"{outcome}\"")), 1.0);
    }
    assert_eq!(labelled("karrow_consumer_lag_messages", lag), 2.0);
    look();
    karrow.await_metric("karrow_commits_total{outcome=\"ok\"}", |count| count >= 1.0);
    kafka.fail(OFFSET_COMMIT, &[Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    client.say("RPUSH acks t:0:1");
    karrow.await_metric("karrow_commits_total{outcome=\"error\"}", |count| count >= 1.0);

    // A command whose outcome comes later is counted by it.
    let rpush = |outcome: &str| {
        labelled("karrow_commands_total", &format!("command=\"rpush\",outcome=\"{outcome}\""))
    };
    let (ok, error) = (rpush("ok"), rpush("error"));
    assert_eq!(client.call(&["RPUSH", "topics:p", "four", "sixsix"]).int(), 2);
    assert_eq!((rpush("ok"), rpush("error")), (ok + 1.0, error));
    assert_eq!(labelled("karrow_produced_messages_total", "topic=\"p\""), 2.0);
    assert_eq!(labelled("karrow_produced_bytes_total", "topic=\"p\""), 10.0);
    assert_eq!(labelled("karrow_deliveries_total", "outcome=\"stored\",topic=\"p\""), 2.0);
    kafka.fail(PRODUCE, &[Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    assert!(client.say("RPUSH topics:p refused").error().starts_with("PROD "));
    assert_eq!((rpush("ok"), rpush("error")), (ok + 1.0, error + 1.0));
    assert_eq!(labelled("karrow_deliveries_total", "outcome=\"failed\",topic=\"p\""), 1.0);
    kafka.set_leader("stuck", 0, None);
    client.say("RPUSHX topics:stuck x");
    assert_eq!(metric("karrow_producer_unflushed_messages"), 1.0);

    let mut other = karrow.named("g2:n");
    assert!(other.say("BLPOP topics:never 0.5").is_null());
    karrow.await_metric("karrow_missing_topics{topic=\"never\"}", |count| count == 1.0);
    let command = |name: &str, outcome: &str| {
        labelled("karrow_commands_total", &format!("command=\"{name}\",outcome=\"{outcome}\""))
    };
    other.say("NOSUCH");
    other.say("PING");
    other.say("PING a b");
    assert_eq!((command("ping", "ok"), command("ping", "error")), (1.0, 1.0));
    assert!(other.say("LLEN topics:..").error().starts_with("ERR "));
    assert_eq!(other.say("LLEN topics:p").int(), 2);
    assert_eq!((command("llen", "ok"), command("llen", "error")), (1.0, 1.0));
    assert_eq!((command("unknown", "error"), command("blpop", "ok")), (1.0, 3.0));
    assert!(metric("karrow_received_bytes_total") > 200.0);
    assert!(metric("karrow_sent_bytes_total") > 100.0);

    // A registry's JSON, one field too many, and a record that is none.
    registry.put(5, "JSON", "{}");
    for text in [r#"{"a":1,"b":2}"#, r#"{"a":3}"#, r#"{"a":"#] {
        kafka.put("j", 0, [b"\0\0\0\0\x05", text.as_bytes()].concat());
    }
    let mut columns = karrow.named("g3:n");
    let reply = columns.call(&[
        "BLPOP",
        r#"arrow:j:{"karrow.batch.rows":3,"karrow.batch.wait.ms":30000}"#,
        "30",
    ]);
    assert_eq!(reply.array().len(), 2);
    let json = "format=\"json\",topic=\"j\"";
    assert_eq!(labelled("karrow_decoded_rows_total", json), 3.0);
    assert_eq!(labelled("karrow_decoded_bytes_total", json), 40.0);
    assert_eq!(labelled("karrow_decode_seconds_count", "format=\"json\""), 1.0);
    assert_eq!(labelled("karrow_bad_rows_total", "reason=\"truncated\",topic=\"j\""), 1.0);
    assert_eq!(labelled("karrow_dead_letters_total", "outcome=\"stored\",topic=\"j\""), 1.0);
    assert_eq!(labelled("karrow_overflow_values_total", "topic=\"j\""), 1.0);
    columns.say("QUIT");

    // A session that lost its consumer has none until its next pop.
    kafka.fail(HEARTBEAT, &[Code::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID; 2]);
    karrow.await_metric("karrow_sessions{state=\"dormant\"}", |count| count >= 1.0);
    look();

    let mut crowd: Vec<_> = (0..6).map(|_| karrow.connect()).collect();
    let mut refused = 0;
    for client in &mut crowd {
        client.raw_unless_closed(b"PING\r\n");
        if matches!(client.try_reply(), Some(Reply::Error(_)) | None) {
            refused += 1;
        }
    }
    assert!(refused >= 1);
    let reason = "reason=\"clients_max\"";
    assert_eq!(labelled("karrow_connections_refused_total", reason), f64::from(refused));
    look();
    drop(crowd);
    client.say("QUIT");
    other.say("QUIT");
    karrow.await_metric("karrow_connections", |count| count == 0.0);
    karrow.await_metric("karrow_sessions{state=\"live\"}", |count| count == 0.0);
    assert_eq!(labelled("karrow_consumer_lag_messages", lag), 0.0, "gone with its session");
    look();
    // Awaited above; it is back by the next look.
    moved.insert("karrow_range_readers".to_owned());
    moved.extend(move_those_of_sql());
    let still: Vec<String> = names().difference(&moved).cloned().collect();
    assert!(still.is_empty(), "these never moved: {still:?}");
}
