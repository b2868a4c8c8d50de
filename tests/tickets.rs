//! What a ticket and a position promise: nothing is lost behind them, and nobody can make karrow work for a forged one.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Fields, Int64Type, Schema, TimeUnit};
use arrow::ipc::writer::StreamWriter;
use arrow_flight::{SchemaAsIpc, Ticket};
use arrow_ipc::writer::IpcWriteOptions;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use serde_json::{Value, json};
use tonic::Code;

use crate::flight::{Said, code, connect, get, in_time, plan, read, ticket};
use crate::support::{Kafka, Karrow};

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
    let options = IpcWriteOptions::default()
        .try_with_compression(Some(arrow::ipc::CompressionType::ZSTD))
        .expect("zstd");
    let mut writer =
        StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options).expect("a writer");
    writer.write(&batch).expect("written");
    writer.into_inner().expect("whole")
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
