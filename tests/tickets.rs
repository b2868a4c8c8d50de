//! What a ticket and a position promise: nothing is lost behind them, and nobody can make karrow work for a forged one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Fields, Int64Type, Schema, TimeUnit};
use arrow::ipc::CompressionType;
use arrow_flight::{Action, FlightClient, SchemaAsIpc, Ticket};
use arrow_ipc::writer::IpcWriteOptions;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
#[cfg(feature = "embedded-broker")]
use karrow::kafka::admin::TopicSpec;
use serde_json::{Value, json};
use tonic::Code;

use crate::flight::{Said, code, connect, get, in_time, plan, read, ticket};
use crate::support::{Kafka, Karrow, eventually, ipc_stream};

fn header(schema: &Schema) -> String {
    let data =
        arrow_flight::FlightData::from(SchemaAsIpc::new(schema, &IpcWriteOptions::default()));
    STANDARD.encode(data.data_header)
}

/// Types that karrow hands out never, or that would fill its memory: each is refused before anything is read.
#[tokio::test(flavor = "multi_thread")]
async fn the_schema_of_a_ticket_is_checked() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, (0..100).map(|id| format!(r#"{{"id":{id}}}"#)));
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    let info = plan(&mut client, json!({"topic": "t"})).await;
    let good: Value = serde_json::from_slice(&ticket(&info, 0).ticket).expect("JSON");
    let item = |data_type| Arc::new(Field::new_list_field(data_type, true));
    let wide =
        (0..2000).map(|n| Field::new(format!("f{n}"), DataType::FixedSizeBinary(4096), true));
    for field in [
        Field::new("x", DataType::FixedSizeBinary(i32::MAX), true),
        Field::new("x", DataType::FixedSizeBinary(-1), true),
        Field::new("x", DataType::FixedSizeList(item(DataType::Int64), 1_000_000), true),
        Field::new("x", DataType::Null, true),
        Field::new("x", DataType::Utf8View, true),
        Field::new("x", DataType::Int64, false),
        Field::new("offset", DataType::Int32, false),
        Field::new("error", DataType::Int8, true),
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Second, None), true),
        Field::new(
            "x",
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
            true,
        ),
        Field::new("x", DataType::Struct(Fields::from(wide.collect::<Vec<_>>())), true),
    ] {
        let name = field.name().clone();
        let mut forged = good.clone();
        forged["schema"] = header(&Schema::new(vec![field.clone()])).into();
        let answer = in_time(client.do_get(Ticket::new(forged.to_string()))).await;
        let (code, text) = code(&answer.map(|_| ()).expect_err("refused"));
        assert_eq!(code, Code::InvalidArgument, "{field}: {text}");
        let is_named =
            text.contains(&format!("column '{name}'")) || text.contains("bytes of a row");
        assert!(text.starts_with("no ticket: schema: ") && is_named, "{field}: {text}");
    }
    assert_eq!(rows_of(read(&mut client, ticket(&info, 0)).await).len(), 100, "and all is well");
}

fn rows_of(messages: Vec<(RecordBatch, Value)>) -> Vec<i64> {
    messages.iter().flat_map(|(batch, _)| ids(batch)).collect()
}

fn ids(batch: &RecordBatch) -> Vec<i64> {
    let payload = batch.column_by_name("payload").expect("a payload").as_struct();
    payload.column_by_name("id").expect("an id").as_primitive::<Int64Type>().values().to_vec()
}

/// An Arrow stream as one message, with ids from `first` on.
fn table(first: i64, rows: i64, more: bool) -> Vec<u8> {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(first..first + rows));
    let text = "x".repeat(600);
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|_| &text)));
    let mut columns = vec![("id", ids), ("text", texts.clone())];
    if more {
        columns.push(("more", texts));
    }
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    )
    .expect("a batch");
    ipc_stream(&batch, Some(CompressionType::ZSTD))
}

/// One record may be many rows, and more than a message holds: who goes on behind any message, or behind a limit, may get
/// rows of that record again, but never misses one.
#[tokio::test(flavor = "multi_thread")]
async fn positions_are_never_behind_rows_that_were_not_sent() {
    const ROWS: i64 = 8000;
    let kafka = Kafka::with(&[("t", 1)]);
    for (first, rows) in [(0, 10), (10, ROWS), (ROWS + 10, 10)] {
        kafka.put("t", 0, table(first, rows, false));
    }
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    let all: BTreeSet<i64> = (0..ROWS + 20).collect();
    let info = plan(&mut client, json!({"topic": "t"})).await;
    let messages = read(&mut client, ticket(&info, 0)).await;
    assert!(messages.len() > 1, "the large record is in several messages");
    let mut seen = BTreeSet::new();
    let mut from = Vec::new();
    for (batch, said) in &messages {
        seen.extend(ids(batch));
        from.push((seen.clone(), said["positions"].clone()));
    }
    assert_eq!(seen, all);
    for limit in [5, 10, 15, 3000, ROWS + 10] {
        let info = plan(&mut client, json!({"topic": "t", "limit": limit})).await;
        let messages = read(&mut client, ticket(&info, 0)).await;
        let positions = messages.last().expect("a message").1["positions"].clone();
        let limited: BTreeSet<i64> = rows_of(messages).into_iter().collect();
        assert_eq!(limited.len() as i64, limit);
        from.push((limited, positions));
    }
    for (before, positions) in from {
        let request = json!({"topic": "t", "from": {"positions": positions}});
        let info = plan(&mut client, request.clone()).await;
        let mut together = before.clone();
        together.extend(rows_of(read(&mut client, ticket(&info, 0)).await));
        assert_eq!(together, all, "{} rows, then {request}", before.len());
    }
}

/// Columns that come in the middle of a record end a follow before the record.
#[tokio::test(flavor = "multi_thread")]
async fn a_follow_ends_before_the_record_that_does_not_fit() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put("t", 0, table(0, 10, false));
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    let info = plan(&mut client, json!({"topic": "t", "from": "earliest", "to": "follow"})).await;
    let mut following = get(&mut client, ticket(&info, 0)).await;
    kafka.put("t", 0, table(10, 10, true));
    let (seen, last) = rest(&mut following).await;
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
    assert_eq!(last, json!({"positions": {"0": 1}, "schema_changed": true}));
    let info = plan(&mut client, json!({"topic": "t", "from": {"positions": {"0": 1}}})).await;
    let rest = rows_of(read(&mut client, ticket(&info, 0)).await);
    assert_eq!(rest, (10..20).collect::<Vec<_>>());
}

async fn rest(following: &mut Said) -> (Vec<i64>, Value) {
    let (mut seen, mut last) = (Vec::new(), Value::Null);
    while let Some(message) = in_time(following.next()).await {
        let (batch, said) = message.expect("it ends without an error");
        seen.extend(ids(&batch));
        last = said;
    }
    (seen, last)
}

/// Its offsets begin anew: who is behind them is told so, and others get all that is there.
#[cfg(feature = "embedded-broker")]
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_ends_its_follows() {
    let karrow = Karrow::embedded(&[]);
    let admin = karrow.admin();
    let mut producer = karrow.connect();
    let mut produce = |range: std::ops::Range<i64>| {
        let values: Vec<String> = range.map(|id| format!(r#"{{"id":{id}}}"#)).collect();
        let command: Vec<&str> =
            ["RPUSH", "topics:t"].into_iter().chain(values.iter().map(String::as_str)).collect();
        crate::support::eventually("the messages to be stored", || {
            let reply = producer.call(&command);
            (!matches!(reply, crate::support::Reply::Error(_))).then_some(())
        });
    };
    produce(0..100);
    let mut client = connect(&karrow).await;
    let request = json!({"topic": "t", "from": "earliest", "to": "follow"});
    let info = plan(&mut client, request.clone()).await;
    let old = ticket(&info, 0);
    let mut following = get(&mut client, old).await;
    let mut seen = Vec::new();
    while seen.len() < 100 {
        let (batch, _) = in_time(following.next()).await.expect("more").expect("no error");
        seen.extend(ids(&batch));
    }
    admin.delete(&["t"]).await.expect("an answer").remove(0).expect("deleted");
    produce(1000..1010);
    let error = loop {
        match in_time(following.next()).await.expect("not without a word") {
            Ok((batch, _)) => assert_eq!(ids(&batch), Vec::<i64>::new(), "these are other offsets"),
            Err(error) => break error,
        }
    };
    let (refused, text) = code(&error);
    assert_eq!(refused, Code::OutOfRange, "{text}");
    assert!(text.contains("t:0 does not have offset 100"), "{text}");
    produce(1010..1050);
    let info = plan(&mut client, request).await;
    let mut following = get(&mut client, ticket(&info, 0)).await;
    let mut seen = Vec::new();
    while seen.len() < 50 {
        let (batch, _) = in_time(following.next()).await.expect("more").expect("no error");
        seen.extend(ids(&batch));
    }
    assert_eq!(seen, (1000..1050).collect::<Vec<_>>());
}

/// The first columns of a topic, which newer records do not have any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_follow_of_older_records_has_their_columns() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    kafka.put_all("t", 0, [r#"{"old":"x","a":1}"#, r#"{"old":"y","a":2}"#]);
    add_stream(&mut client, "t").await;
    assert_eq!(starts(&karrow, "t"), json!({"0": 2}));
    kafka.put("t", 0, r#"{"a":3.5}"#);
    karrow.await_metric("karrow_stream_window_rows{topic=\"t\"}", |rows| rows == 1.0);
    let info = plan(&mut client, json!({"topic": "t", "from": "earliest", "to": "follow"})).await;
    let mut batches = get(&mut client, ticket(&info, 0)).await;
    let (mut rows, mut olds) = (0, Vec::new());
    while rows < 3 {
        let (batch, said) = in_time(batches.next()).await.expect("a batch").expect("no error");
        assert_eq!(said.get("schema_changed"), None, "{said}");
        let payload = batch.column_by_name("payload").expect("a column").as_struct();
        let old = payload.column_by_name("old").expect("a field").as_string::<i32>();
        olds.extend(old.iter().flatten().map(str::to_owned));
        rows += batch.num_rows();
    }
    assert_eq!(olds, ["x", "y"]);
}

async fn add_stream(client: &mut FlightClient, topic: &str) {
    let added = client.do_action(Action::new("add-stream", topic.to_owned())).await;
    assert_eq!(added.expect("added").count().await, 0);
}

/// Where the window of a topic begins, once it does.
fn starts(karrow: &Karrow, topic: &str) -> Value {
    eventually("a window", || {
        let (_, page) = karrow.get(&format!("/v1/streams/{topic}"));
        let mut view: Value = serde_json::from_str(&page).expect("JSON");
        (view["phase"] == "live").then(|| view["starts"].take())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_waits_until_a_stream_has_begun() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, (0..20).map(|n| n.to_string()));
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    kafka.delay(Duration::from_millis(100));
    add_stream(&mut client, "t").await;
    for from in [json!(null), json!("window")] {
        let mut request = json!({"topic": "t", "from": from});
        if request["from"].is_null() {
            request.as_object_mut().expect("an object").remove("from");
        }
        let info = plan(&mut client, request).await;
        let planned: Value = serde_json::from_slice(&ticket(&info, 0).ticket).expect("JSON");
        assert_eq!(planned["from"], json!({"0": 20}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_before_a_bad_record_is_read() {
    let kafka = Kafka::with(&[("t", 1), ("u", 1)]);
    let value = |n: usize| if n == 5 { "oops".to_owned() } else { format!(r#"{{"id":{n}}}"#) };
    kafka.put_all("t", 0, (0..8).map(value));
    kafka.put("u", 0, "oops");
    let flags = ["--on-bad-record", "fail", "--payload-format", "json"];
    let karrow = Karrow::with(&kafka, &flags, |_| {});
    let mut client = connect(&karrow).await;
    for (topic, good) in [("t", 5), ("u", 0)] {
        let info = plan(&mut client, json!({"topic": topic})).await;
        let mut batches = get(&mut client, ticket(&info, 0)).await;
        let mut rows = 0;
        let error = loop {
            match in_time(batches.next()).await.expect("an error at the end") {
                Ok((batch, _)) => rows += batch.num_rows(),
                Err(error) => break code(&error),
            }
        };
        let why = format!("bad record {topic}:0:{good}: not JSON: 'o' at byte 0 of a JSON object");
        assert_eq!((rows, error), (good, (Code::FailedPrecondition, why)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follow_of_one_partition_hears_of_no_other() {
    let kafka = Kafka::with(&[("t", 2)]);
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    kafka.put_all("t", 0, ["old"; 10]);
    add_stream(&mut client, "t").await;
    assert_eq!(starts(&karrow, "t"), json!({"0": 10, "1": 0}));
    let request = json!({"topic": "t", "from": "earliest", "to": "follow", "split": "partition"});
    let info = plan(&mut client, request).await;
    let mut batches = get(&mut client, ticket(&info, 1)).await;
    for n in 0..5 {
        kafka.put("t", 0, "x");
        let rows = |rows| rows >= f64::from(n + 1);
        karrow.await_metric("karrow_stream_window_rows{topic=\"t\"}", rows);
    }
    kafka.put("t", 1, "y");
    let (batch, said) = in_time(batches.next()).await.expect("a batch").expect("no error");
    assert_eq!((batch.num_rows(), said), (1, json!({"positions": {"0": 0, "1": 1}})));
}

/// Its stream begins anew, with all that is there now.
#[cfg(feature = "embedded-broker")]
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_with_fewer_partitions_is_a_new_stream() {
    let karrow = Karrow::embedded(&[]);
    let kafka = Kafka::at(&karrow.brokers);
    let admin = karrow.admin();
    let create = async |partitions| {
        let spec = TopicSpec { partitions, ..TopicSpec::new("t") };
        admin.create(&[spec]).await.expect("an answer").remove(0).expect("created");
    };
    create(3).await;
    let mut client = connect(&karrow).await;
    kafka.put("t", 2, "old");
    add_stream(&mut client, "t").await;
    starts(&karrow, "t");
    admin.delete(&["t"]).await.expect("an answer").remove(0).expect("deleted");
    create(1).await;
    kafka.put("t", 0, "new");
    let began = eventually("a stream of one partition", || {
        let starts = starts(&karrow, "t");
        (starts.as_object().expect("positions").len() == 1).then_some(starts)
    });
    assert_eq!(began, json!({"0": 0}));
    let info = plan(&mut client, json!({"topic": "t", "from": "window"})).await;
    let found = read(&mut client, ticket(&info, 0)).await;
    assert_eq!(found.iter().map(|(batch, _)| batch.num_rows()).sum::<usize>(), 1);
}
