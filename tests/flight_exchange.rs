//! DoExchange: a consumer session whose batches come down and whose acks go up.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_flight::error::FlightError;
use arrow_flight::{FlightClient, FlightData};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tonic::Code;

use crate::flight::{Said, code, command, connect, in_time, places_of, range, said};
use crate::support::{Kafka, Karrow, ipc_stream};

/// A consumer by DoExchange.
struct Consumer {
    acks: tokio::sync::mpsc::UnboundedSender<FlightData>,
    batches: Said,
}

impl Consumer {
    async fn start(client: &mut FlightClient, request: Value) -> Result<Self, FlightError> {
        let (acks, mut sent) = tokio::sync::mpsc::unbounded_channel();
        let first =
            FlightData { flight_descriptor: Some(command(request)), ..FlightData::default() };
        acks.send(first).expect("it is open");
        let sent = stream::poll_fn(move |cx| sent.poll_recv(cx)).map(Ok);
        let batches = said(client.do_exchange(sent).await?);
        Ok(Self { acks, batches })
    }

    async fn next(&mut self) -> Option<(RecordBatch, Value)> {
        in_time(self.batches.next()).await.map(|next| next.expect("no error"))
    }

    async fn ack(&mut self, acks: &str) -> Value {
        let message = FlightData { app_metadata: acks.to_owned().into(), ..FlightData::default() };
        self.acks.send(message).expect("it is open");
        let (empty, said) = self.next().await.expect("an answer");
        assert_eq!(empty.num_rows(), 0);
        said
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_is_a_session() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, (0..3).map(|id| format!(r#"{{"id":{id}}}"#)));
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    let request = json!({"group": "g", "name": "n", "topics": ["t"]});
    let mut consumer = Consumer::start(&mut client, request.clone()).await.expect("a session");
    let (batch, said) = consumer.next().await.expect("a batch");
    assert_eq!((places_of(&batch), said), (range(0, 0..3), json!({"acks": "t:0:2"})));
    assert_eq!(consumer.ack("t:0:1").await, json!({"acked": 1}));
    assert_eq!(consumer.ack("t:0:1").await, json!({"acked": 0}));
    assert_eq!(
        consumer.ack("t:0:9").await,
        json!({"error": "t:0:9 was not delivered to g:n since the partition was assigned to it"})
    );
    let mut other = connect(&karrow).await;
    let error = Consumer::start(&mut other, request.clone()).await.map(|_| ()).expect_err("taken");
    assert_eq!(code(&error), (Code::FailedPrecondition, "id g:n is already taken".to_owned()));
    let flights: Vec<_> =
        other.list_flights("*").await.expect("flights").try_collect().await.expect("all");
    let path = flights[0].flight_descriptor.clone().expect("a descriptor").path;
    assert_eq!(path, ["sessions", "g", "n"]);

    // What was not acked comes again, also when the columns have changed.
    let Consumer { acks, mut batches } = consumer;
    drop(acks);
    assert!(in_time(batches.next()).await.is_none(), "it has said that it is done");
    kafka.put_all("t", 0, [r#"{"id":3,"more":true}"#]);
    let mut consumer =
        Consumer::start(&mut client, request.clone()).await.expect("the name is free");
    let (batch, said) = consumer.next().await.expect("a batch");
    assert_eq!(places_of(&batch)[0], (0, 2), "{said}");
    let mut seen = batch.num_rows();
    while seen < 2 {
        match consumer.next().await {
            Some((batch, _)) => seen += batch.num_rows(),
            // The column came in a batch of its own: another exchange has it.
            None => {
                consumer = Consumer::start(&mut client, request.clone()).await.expect("free again");
                seen = 0;
            }
        }
    }
    let acked = consumer.ack("last").await;
    assert!(acked["error"].as_str().is_some_and(|why| why.starts_with("last: ")), "{acked}");
    for (request, why) in [
        (json!({"group": "g", "topics": ["t"]}), "name is missing"),
        (json!({"group": "g", "name": "n", "topics": []}), "topics: a list of names is wanted"),
        (
            json!({"group": "g", "name": "m", "topics": ["a", "b", "a"]}),
            "topics: 'a' is there twice",
        ),
        (json!({"group": "a:b", "name": "n", "topics": ["t"]}), "group: 'a:b' has a colon"),
        (
            json!({"group": "g", "name": "m", "topics": ["t"], "x": 1}),
            "x: no such field of an exchange",
        ),
    ] {
        let error = Consumer::start(&mut other, request).await.map(|_| ()).expect_err("refused");
        assert_eq!(code(&error), (Code::InvalidArgument, why.to_owned()));
    }
}

/// An Arrow stream as the payload of one record.
fn payload(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    ipc_stream(&RecordBatch::try_from_iter(columns).expect("a batch"), None)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_acks_whole_records() {
    const ROWS: [usize; 3] = [1, 64, 1];
    let kafka = Kafka::with(&[("t", 1), ("u", 1)]);
    // Small as a record, and too large for one message as rows.
    let values = Arc::new(StringArray::from(vec!["x".repeat(128 << 10)]));
    kafka.put_all(
        "t",
        0,
        ROWS.map(|rows| {
            let keys = Int32Array::from(vec![0; rows]);
            payload(vec![("text", Arc::new(DictionaryArray::new(keys, values.clone())))])
        }),
    );
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    // Who joins a group again waits for it, so that each topic has one of its own.
    let request = |topic: &str| json!({"group": topic, "name": "n", "topics": [topic]});
    // Reads from the record `first` on until `is_enough` of the rows seen; how many records were acked.
    let read = async |consumer: &mut Consumer, first: usize, is_enough: fn(usize) -> bool| {
        let (mut seen, mut done) = ([0; 3], first);
        while !is_enough(seen.iter().sum()) {
            let (batch, said) = consumer.next().await.expect("a batch");
            for (_, offset) in places_of(&batch) {
                assert!(offset as usize >= first, "{offset} was acked");
                seen[offset as usize] += 1;
            }
            let before = done;
            while done < 3 && seen[done] == ROWS[done] {
                done += 1;
            }
            let acks = if done > before { format!("t:0:{}", done - 1) } else { String::new() };
            assert_eq!(said, json!({"acks": acks}), "{seen:?}");
        }
        done
    };
    let mut consumer = Consumer::start(&mut client, request("t")).await.expect("a session");
    // A part of the second record was handed out.
    assert_eq!(read(&mut consumer, 0, |seen| seen > 1).await, 1);
    let ack = FlightData { app_metadata: "t:0:0".into(), ..FlightData::default() };
    consumer.acks.send(ack).expect("it is open");
    while consumer.next().await.expect("an answer").1 != json!({"acked": 1}) {}
    drop(consumer);
    let start = async |client: &mut FlightClient, topic: &str| loop {
        match Consumer::start(client, request(topic)).await {
            Ok(consumer) => break consumer,
            Err(error) => assert_eq!(code(&error).0, Code::FailedPrecondition, "{error}"),
        }
    };
    let mut consumer = in_time(start(&mut client, "t")).await;
    assert_eq!(read(&mut consumer, 1, |seen| seen == 65).await, 3);
    drop(consumer);

    // Rows that do not fit take those before them in their record along.
    let ids = |ids: Vec<i64>| Arc::new(Int64Array::from(ids)) as ArrayRef;
    kafka.put("u", 0, payload(vec![("id", ids(vec![0]))]));
    let mut consumer = in_time(start(&mut client, "u")).await;
    let (batch, said) = consumer.next().await.expect("a batch");
    assert_eq!((places_of(&batch), said), (range(0, 0..1), json!({"acks": "u:0:0"})));
    assert_eq!(consumer.ack("u:0:0").await, json!({"acked": 1}));
    let more = Arc::new(StringArray::from(vec![None, Some("x")]));
    kafka.put("u", 0, payload(vec![("id", ids(vec![1, 2])), ("more", more)]));
    let (batch, said) = consumer.next().await.expect("the end");
    assert_eq!((places_of(&batch), said), (vec![], json!({"acks": "", "schema_changed": true})));
    assert!(consumer.next().await.is_none());
    let mut consumer = in_time(start(&mut client, "u")).await;
    let (batch, said) = consumer.next().await.expect("a batch");
    assert_eq!((places_of(&batch), said), (vec![(0, 1), (0, 1)], json!({"acks": "u:0:1"})));
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_before_the_first_batch_are_answered_behind_its_schema() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    let message =
        |acks: &str| FlightData { app_metadata: acks.to_owned().into(), ..FlightData::default() };
    let request = json!({"group": "g", "name": "n", "topics": ["t"]});
    let first = FlightData { flight_descriptor: Some(command(request)), ..message("") };
    let (is_read, mut read) = tokio::sync::mpsc::unbounded_channel();
    // They are there before the group has any partition for its member.
    let sent = [first, message("oops"), message("t:0:0"), message("last")];
    let sent = stream::iter(sent)
        .chain(stream::once(async move { is_read.send(()) }).filter_map(|_| async { None }))
        .chain(stream::pending());
    let mut batches = said(client.do_exchange(sent.map(Ok)).await.expect("a session"));
    in_time(read.recv()).await.expect("all of them are on their way");
    kafka.put("t", 0, "x");
    let mut found = Vec::new();
    while found.len() < 4 {
        let (batch, said) = in_time(batches.next()).await.expect("more").expect("no error");
        found.push((batch.num_rows(), said));
    }
    assert_eq!(
        found,
        [
            (0, json!({"error": "Cannot parse ack: 'oops'"})),
            (0, json!({"error": "t:0 is not assigned to g:n"})),
            (0, json!({"error": "last: an exchange takes the acks that came with a message"})),
            (1, json!({"acks": "t:0:0"})),
        ]
    );
}
