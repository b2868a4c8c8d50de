//! DoPut: rows become messages, and every answer says which.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::ipc::writer::{DictionaryHandling as IpcDictionaries, IpcWriteOptions};
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::error::FlightError;
use arrow_flight::{FlightClient, FlightData, FlightDescriptor, PutResult};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::flight::{code, connect, in_time, rows};
use crate::support::{Kafka, Karrow};

fn table(rows: std::ops::Range<i64>) -> RecordBatch {
    let names: Vec<String> = rows.clone().map(|id| format!("n{id}")).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from_iter_values(rows.clone()))),
        ("name", Arc::new(StringArray::from(names))),
        ("partition", Arc::new(Int32Array::from_iter_values(rows.map(|id| (id % 2) as i32)))),
    ];
    RecordBatch::try_from_iter(columns).expect("a batch")
}

async fn put(
    client: &mut FlightClient,
    path: Vec<String>,
    batches: Vec<RecordBatch>,
) -> Result<Vec<Value>, FlightError> {
    let data = FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(FlightDescriptor::new_path(path)))
        .build(stream::iter(batches.into_iter().map(Ok)));
    let results: Vec<_> = client.do_put(data).await?.try_collect().await?;
    let said = |result: arrow_flight::PutResult| serde_json::from_slice(&result.app_metadata);
    Ok(results.into_iter().map(|result| said(result).expect("JSON")).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_is_popped() {
    let kafka = Kafka::with(&[("t", 2)]);
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    let path = || vec!["t".to_owned()];
    let results = put(&mut client, path(), vec![table(0..4), table(4..5)]).await.expect("stored");
    assert_eq!(
        results,
        [
            json!({"rows": 4, "offsets": {"0": [0, 1], "1": [0, 1]}}),
            json!({"rows": 1, "offsets": {"0": [2, 2]}}),
        ]
    );
    let mut redis = karrow.named("g:n");
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let message = tokio::task::block_in_place(|| redis.say("BLPOP topics:t 10"));
        seen.push(message.message().expect("a message").text().to_owned());
    }
    seen.sort();
    let expected: Vec<String> =
        (0..5).map(|id| format!(r#"{{"id":{id},"name":"n{id}"}}"#)).collect();
    assert_eq!(seen, expected);

    // Refused as a whole, before anything is sent.
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let wrong = RecordBatch::try_from_iter([("partition", texts)]).expect("a batch");
    let error = put(&mut client, path(), vec![wrong]).await.expect_err("no partition");
    assert_eq!(code(&error), (Code::InvalidArgument, "partition: Utf8 is no integer".to_owned()));
    let beyond: ArrayRef = Arc::new(Int32Array::from(vec![0, 9]));
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let beyond = RecordBatch::try_from_iter([("id", ids), ("partition", beyond)]).expect("a batch");
    let error = put(&mut client, path(), vec![beyond]).await.expect_err("no partition 9");
    assert_eq!(
        code(&error),
        (Code::NotFound, "row 1: topic 't' has 2 partitions, none with the number 9".to_owned())
    );
    let negative: ArrayRef = Arc::new(Int32Array::from(vec![0, -1]));
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let fine: ArrayRef = Arc::new(Int32Array::from(vec![0, 0]));
    let two =
        |partitions| RecordBatch::try_from_iter([("id", ids.clone()), ("partition", partitions)]);
    let batches = vec![two(fine).expect("a batch"), two(negative).expect("a batch")];
    let error = put(&mut client, path(), batches).await.expect_err("a negative partition");
    assert_eq!(code(&error), (Code::InvalidArgument, "row 3: a negative partition".to_owned()));
    for path in [vec![], vec!["a".to_owned(), "b".to_owned()], vec!["no such".to_owned()]] {
        let error = put(&mut client, path, vec![table(0..1)]).await.expect_err("no topic");
        assert_eq!(code(&error).0, Code::InvalidArgument);
    }
    assert_eq!(
        rows(&mut client, json!({"topic": "t"})).await.len(),
        7,
        "only what came before a wrong batch"
    );
}

/// What a client sends to put `batches`.
async fn messages(batches: Vec<RecordBatch>, options: IpcWriteOptions) -> Vec<FlightData> {
    let data = FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(FlightDescriptor::new_path(vec!["t".to_owned()])))
        .with_dictionary_handling(DictionaryHandling::Resend)
        .with_options(options)
        .build(stream::iter(batches.into_iter().map(Ok)));
    data.try_collect().await.expect("encoded")
}

/// A karrow that takes messages of at most 64 KiB.
fn with_small_messages(kafka: &Kafka) -> Karrow {
    Karrow::with(kafka, &[], |config| {
        config.flight.as_mut().expect("Flight is on").request_bytes_max = 1 << 16;
    })
}

/// The outcome of a put of these messages.
async fn put_messages(
    client: &mut FlightClient,
    messages: Vec<FlightData>,
) -> Result<usize, (Code, String)> {
    let results = async {
        let results: Vec<_> =
            client.do_put(stream::iter(messages.into_iter().map(Ok))).await?.try_collect().await?;
        Ok(results.len())
    };
    in_time(results).await.map_err(|error: FlightError| code(&error))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_results_of_a_put_may_be_left_unread() {
    // Their results are more than what is on the way between a server and a client that does not read.
    const BATCHES: usize = 30_000;
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    let row = |partition| {
        let columns = ["id", "partition"]
            .map(|name| (name, Arc::new(Int32Array::from(vec![partition])) as ArrayRef));
        RecordBatch::try_from_iter(columns).expect("a batch")
    };
    let sent = messages(vec![row(0), row(9)], IpcWriteOptions::default()).await;
    let [schema, good, bad] = <[FlightData; 3]>::try_from(sent).expect("three messages");
    let put = async |behind: Vec<FlightData>| {
        let address = format!("http://{}", karrow.flight_addr());
        let channel = Channel::from_shared(address).expect("an address");
        let channel = channel.initial_stream_window_size(1 << 16).connect().await;
        let mut client = FlightClient::new(channel.expect("a connection"));
        let (end, at_end) = tokio::sync::oneshot::channel();
        let end = stream::once(async { end.send(()) }).filter_map(|_| async { None });
        let batches = stream::iter(vec![good.clone(); BATCHES]);
        let all = stream::iter([schema.clone()]).chain(batches).chain(stream::iter(behind));
        let results = in_time(client.inner_mut().do_put(all.chain(end))).await.expect("an answer");
        in_time(at_end).await.expect("all of it is taken");
        in_time(results.into_inner().collect::<Vec<_>>()).await
    };
    let mut next = 0;
    let mut check = |results: Vec<Result<PutResult, Status>>| {
        assert!(results.len() < BATCHES, "one for each batch");
        let first = next;
        for result in results {
            let result: Value =
                serde_json::from_slice(&result.expect("no error").app_metadata).expect("JSON");
            let rows = result["rows"].as_i64().expect("a number");
            assert_eq!(result["offsets"], json!({"0": [next, next + rows - 1]}));
            next += rows;
        }
        assert_eq!(next - first, BATCHES as i64);
    };
    check(put(vec![]).await);
    // What is refused is said after what was stored, whatever comes behind it.
    let mut results = put([vec![bad], vec![good.clone(); BATCHES]].concat()).await;
    let error = results.pop().expect("a status").expect_err("refused");
    assert_eq!(error.message(), "row 30000: topic 't' has 1 partition, none with the number 9");
    check(results);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_keeps_the_dictionaries_that_are_in_use() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = with_small_messages(&kafka);
    let mut client = connect(&karrow).await;
    let coded = |values: &[String], key: usize| -> ArrayRef {
        let values = Arc::new(StringArray::from(values.to_vec()));
        Arc::new(DictionaryArray::new(Int32Array::from(vec![key as i32]), values))
    };
    let batch = |columns: Vec<(&str, ArrayRef)>| RecordBatch::try_from_iter(columns).expect("one");
    let values: Vec<String> = (0..10).map(|n| format!("{n:0>20000}")).collect();
    let replaced: Vec<_> = values
        .iter()
        .map(|value| batch(vec![("payload", coded(std::slice::from_ref(value), 0))]))
        .collect();
    let sent = messages(replaced, IpcWriteOptions::default()).await;
    assert_eq!(sent.len(), 1 + 10 + 10);
    assert_eq!(put_messages(&mut client, sent).await, Ok(10));
    let stored = |at: usize| -> Vec<String> {
        let values = kafka.values("t", 0).split_off(at);
        values.into_iter().map(|value| String::from_utf8(value).expect("UTF-8")).collect()
    };
    assert_eq!(stored(0), values);

    // One that grows piece by piece is in use as a whole.
    let grown: Vec<String> = (0..3).map(|n| format!("{n:0>10000}")).collect();
    let pieces = (1..=3).map(|n| batch(vec![("payload", coded(&grown[..n], n - 1))])).collect();
    let delta = IpcWriteOptions::default().with_dictionary_handling(IpcDictionaries::Delta);
    let sent = messages(pieces, delta).await;
    assert!(sent.iter().all(|message| message.data_body.len() < 20_000), "pieces");
    assert_eq!(put_messages(&mut client, sent).await, Ok(3));
    assert_eq!(stored(10), grown);

    let large = coded(&["x".repeat(40_000)], 0);
    let both = batch(vec![("key", large.clone()), ("payload", large)]);
    let sent = messages(vec![both], IpcWriteOptions::default()).await;
    let why = "dictionaries of more than 65536 bytes".to_owned();
    assert_eq!(put_messages(&mut client, sent).await, Err((Code::InvalidArgument, why)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused_by_name_and_counted_once() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = with_small_messages(&kafka);
    let mut client = connect(&karrow).await;
    let of_size = |size| {
        let payload: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(size)]));
        RecordBatch::try_from_iter([("payload", payload)]).expect("a batch")
    };
    let errors = || {
        let name = "karrow_flight_errors_total{code=\"RESOURCE_EXHAUSTED\",rpc=\"DoPut\"}";
        karrow.metric(name)
    };
    let mut sent = messages(vec![of_size(1), of_size(100_000)], IpcWriteOptions::default()).await;
    let refused = |why: &str| Err((Code::ResourceExhausted, why.to_owned()));
    let why = "topic 't': a message of more than 65536 bytes";
    assert_eq!(put_messages(&mut client, sent.clone()).await, refused(why));
    assert_eq!(kafka.end("t", 0), 1, "what came before it");
    assert_eq!(errors(), 1.0);
    sent[0].app_metadata = vec![0; 100_000].into();
    let why = "a message of more than 65536 bytes";
    assert_eq!(put_messages(&mut client, sent).await, refused(why));
    assert_eq!(errors(), 2.0);
}
