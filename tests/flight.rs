//! Arrow Flight, through its Rust client: what is planned, read, followed, put and consumed.

use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use arrow_flight::decode::{DecodedPayload, FlightRecordBatchStream};
use arrow_flight::error::FlightError;
use arrow_flight::{Action, FlightClient, FlightDescriptor, FlightInfo, Ticket};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use crate::support::{DEADLINE, Kafka, Karrow};

pub async fn connect(karrow: &Karrow) -> FlightClient {
    let address = format!("http://{}", karrow.flight_addr());
    let channel = Channel::from_shared(address).expect("an address").connect().await;
    FlightClient::new(channel.expect("a connection"))
}

pub fn command(request: Value) -> FlightDescriptor {
    FlightDescriptor::new_cmd(request.to_string())
}

#[track_caller]
pub fn in_time<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    let timed = tokio::time::timeout(DEADLINE, work);
    async move { timed.await.unwrap_or_else(|_| panic!("{caller}: waited in vain")) }
}

pub fn code(error: &FlightError) -> (Code, String) {
    match error {
        FlightError::Tonic(status) => (status.code(), status.message().to_owned()),
        other => panic!("{other}"),
    }
}

pub async fn read(client: &mut FlightClient, ticket: Ticket) -> Vec<(RecordBatch, Value)> {
    let mut found = Vec::new();
    let mut batches = get(client, ticket).await;
    while let Some(data) = in_time(batches.next()).await {
        found.push(data.expect("no error"));
    }
    found
}

pub type Said = stream::BoxStream<'static, Result<(RecordBatch, Value), FlightError>>;

/// Batches, each with what is said beside it.
pub fn said(batches: FlightRecordBatchStream) -> Said {
    let decoded = batches.into_inner().try_filter_map(|data| async move {
        let said = data.inner.app_metadata.clone();
        Ok(match data.payload {
            DecodedPayload::RecordBatch(batch) => {
                Some((batch, serde_json::from_slice(&said).expect("JSON")))
            }
            DecodedPayload::Schema(_) | DecodedPayload::None => None,
        })
    });
    decoded.boxed()
}

pub async fn get(client: &mut FlightClient, ticket: Ticket) -> Said {
    said(client.do_get(ticket).await.expect("a stream"))
}

pub fn ticket(info: &FlightInfo, endpoint: usize) -> Ticket {
    info.endpoint[endpoint].ticket.clone().expect("a ticket")
}

pub async fn plan(client: &mut FlightClient, request: Value) -> FlightInfo {
    client.get_flight_info(command(request)).await.expect("a plan")
}

pub async fn rows(client: &mut FlightClient, request: Value) -> Vec<(i32, i64)> {
    let info = plan(client, request).await;
    let mut places = Vec::new();
    for endpoint in 0..info.endpoint.len() {
        for (batch, _) in read(client, ticket(&info, endpoint)).await {
            places.extend(places_of(&batch));
        }
    }
    places.sort_unstable();
    places
}

pub fn places_of(batch: &RecordBatch) -> Vec<(i32, i64)> {
    let partitions =
        batch.column_by_name("partition").expect("a column").as_primitive::<Int32Type>();
    let offsets = batch.column_by_name("offset").expect("a column").as_primitive::<Int64Type>();
    partitions.values().iter().copied().zip(offsets.values().iter().copied()).collect()
}

pub fn range(partition: i32, offsets: std::ops::Range<i64>) -> Vec<(i32, i64)> {
    offsets.map(|offset| (partition, offset)).collect()
}

/// Two partitions with 50 JSON objects each.
fn orders() -> Kafka {
    let kafka = Kafka::with(&[("orders", 2)]);
    for partition in 0..2 {
        let value = |offset| format!(r#"{{"id":{offset},"name":"n{offset}"}}"#);
        kafka.put_all("orders", partition, (0..50).map(value));
    }
    kafka
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_read_with_types_and_in_ranges() {
    let kafka = orders();
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    let info = client
        .get_flight_info(FlightDescriptor::new_path(vec!["orders".to_owned()]))
        .await
        .expect("a plan");
    let schema = info.clone().try_decode_schema().expect("a schema");
    let DataType::Struct(fields) =
        schema.field_with_name("payload").expect("a payload").data_type()
    else {
        panic!("{schema}");
    };
    let types: Vec<_> = fields.iter().map(|f| (f.name().as_str(), f.data_type().clone())).collect();
    assert_eq!(types, [("id", DataType::Int64), ("name", DataType::Utf8)]);
    let read_all = read(&mut client, ticket(&info, 0)).await;
    assert!(read_all.iter().all(|(batch, _)| *batch.schema() == schema), "as promised");
    let (_, said) = read_all.last().expect("a batch");
    assert_eq!(said["positions"], json!({"0": 50, "1": 50}));
    let described = client.get_schema(FlightDescriptor::new_path(vec!["orders".to_owned()])).await;
    assert_eq!(described.expect("a schema"), schema);
    let mut all = range(0, 0..50);
    all.extend(range(1, 0..50));
    assert_eq!(rows(&mut client, json!({"topic": "orders"})).await, all);
    let split = json!({"topic": "orders", "split": "partition"});
    let info = plan(&mut client, split.clone()).await;
    let mut ends = Vec::new();
    for endpoint in 0..info.endpoint.len() {
        let found = read(&mut client, ticket(&info, endpoint)).await;
        ends.push(found.last().expect("a batch").1["positions"].clone());
    }
    // As the beginning of another read, these skip nothing that the endpoint did not have.
    assert_eq!(ends, [json!({"0": 50, "1": 0}), json!({"0": 0, "1": 50})]);
    assert_eq!(rows(&mut client, split).await, all);
    for compression in ["none", "lz4", "zstd"] {
        let request = json!({"topic": "orders", "compression": compression});
        assert_eq!(rows(&mut client, request).await, all);
    }
    let mut some = range(0, 40..45);
    some.extend(range(1, 0..45));
    let request = json!({
        "topic": "orders", "from": {"positions": {"0": 40}}, "to": {"positions": {"0": 45, "1": 45}},
    });
    assert_eq!(rows(&mut client, request).await, some);
    assert_eq!(rows(&mut client, json!({"topic": "orders", "from": "latest"})).await, []);
    assert_eq!(rows(&mut client, json!({"topic": "orders", "limit": 7})).await.len(), 7);
    let info = plan(
        &mut client,
        json!({"topic": "orders", "layout": "flat", "columns": ["name", "_offset"]}),
    )
    .await;
    for (batch, _) in read(&mut client, ticket(&info, 0)).await {
        let schema = batch.schema();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names, ["_offset", "name"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_goes_on_at_any_message() {
    let kafka = orders();
    let karrow = Karrow::with(&kafka, &["--batch-size", "7"], |_| {});
    let mut client = connect(&karrow).await;
    let info = plan(&mut client, json!({"topic": "orders"})).await;
    let messages = read(&mut client, ticket(&info, 0)).await;
    assert!(messages.len() > 5, "{} messages", messages.len());
    for cut in 0..messages.len() {
        let mut seen: Vec<_> =
            messages[..=cut].iter().flat_map(|(batch, _)| places_of(batch)).collect();
        let from = json!({"positions": messages[cut].1["positions"]});
        seen.extend(rows(&mut client, json!({"topic": "orders", "from": from})).await);
        seen.sort_unstable();
        let mut all = range(0, 0..50);
        all.extend(range(1, 0..50));
        assert_eq!(seen, all, "after message {cut}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follow_ends_before_what_does_not_fit() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, (0..3).map(|id| format!(r#"{{"id":{id}}}"#)));
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    let info = plan(&mut client, json!({"topic": "t", "from": "earliest", "to": "follow"})).await;
    let mut batches = get(&mut client, ticket(&info, 0)).await;
    let mut seen = 0;
    while seen < 3 {
        seen += in_time(batches.next()).await.expect("more").expect("no error").0.num_rows();
    }
    // The stream lives on while it is read.
    let names = |flights: Vec<FlightInfo>| -> Vec<Vec<String>> {
        flights.into_iter().map(|info| info.flight_descriptor.expect("one").path).collect()
    };
    let mut other = connect(&karrow).await;
    let flights = other.list_flights("*").await;
    assert_eq!(names(flights.expect("flights").try_collect().await.expect("all")), [["t"]]);
    kafka.put_all("t", 0, [r#"{"id":3}"#, r#"{"id":4,"more":"x"}"#, r#"{"id":5}"#]);
    let mut last = Value::Null;
    while let Some(batch) = in_time(batches.next()).await {
        let (batch, said) = batch.expect("it ends without an error");
        seen += batch.num_rows();
        last = said;
    }
    assert_eq!((seen, &last), (4, &json!({"positions": {"0": 4}, "schema_changed": true})));
    let from = json!({"positions": last["positions"]});
    let info = plan(&mut client, json!({"topic": "t", "from": from, "to": "now"})).await;
    let mut more = Vec::new();
    for (batch, _) in read(&mut client, ticket(&info, 0)).await {
        let payload = batch.column_by_name("payload").expect("a payload").as_struct();
        let texts = payload.column_by_name("more").expect("the new field").as_string::<i32>();
        more.extend(texts.iter().map(|text| text.map(str::to_owned)));
    }
    assert_eq!(more, [Some("x".to_owned()), None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_questions_are_told_so_by_name() {
    let kafka = orders();
    let karrow = Karrow::start(&kafka);
    let mut client = connect(&karrow).await;
    for (request, wanted, why) in [
        (json!({"topic": "nosuch"}), Code::NotFound, "topic 'nosuch' does not exist"),
        (json!({"topic": "no such"}), Code::InvalidArgument, "no such"),
        (
            json!({"topic": "orders", "form": 1}),
            Code::InvalidArgument,
            "form: no such field of a read",
        ),
        (
            json!({"topic": "orders", "limit": 1, "split": "partition"}),
            Code::InvalidArgument,
            "limit: ",
        ),
        (
            json!({"topic": "orders", "columns": ["offset", "nope"]}),
            Code::InvalidArgument,
            "columns: topic 'orders' has no column 'nope'",
        ),
        (
            json!({"topic": "orders", "columns": ["payload.id", "payload.nope"]}),
            Code::InvalidArgument,
            "columns: topic 'orders' has no column 'payload.nope'",
        ),
        (
            json!({"topic": "orders", "columns": ["_offset", "offset"], "layout": "flat"}),
            Code::InvalidArgument,
            "columns: topic 'orders' has no column 'offset'",
        ),
        (
            json!({"topic": "orders", "from": "window"}),
            Code::NotFound,
            "topic 'orders' is no stream",
        ),
        (
            json!({"topic": "orders", "from": {"positions": {"7": 1}}}),
            Code::InvalidArgument,
            "positions: topic 'orders' has 2 partitions, none with the number 7",
        ),
    ] {
        let error = client.get_flight_info(command(request.clone())).await.expect_err("refused");
        let (code, text) = code(&error);
        assert!(code == wanted && text.contains(why), "{request}: {code:?} {text}");
    }
    for path in [vec!["sessions", "g", "n"], vec![], vec!["a", "b"]] {
        let path: Vec<String> = path.into_iter().map(str::to_owned).collect();
        let error = client.get_flight_info(FlightDescriptor::new_path(path)).await.expect_err("no");
        assert_eq!(code(&error).0, Code::InvalidArgument);
    }
    let error = client.do_get(Ticket::new("forged")).await.map(|_| ()).expect_err("no ticket");
    assert_eq!(code(&error).0, Code::InvalidArgument);
    let info = plan(&mut client, json!({"topic": "orders", "limit": 0})).await;
    let nothing = read(&mut client, ticket(&info, 0)).await;
    assert_eq!(nothing.len(), 1, "one message, for its positions");
    assert_eq!(
        (nothing[0].0.num_rows(), &nothing[0].1),
        (0, &json!({"positions": {"0": 0, "1": 0}}))
    );
    let good: Value = serde_json::from_slice(&ticket(&info, 0).ticket).expect("JSON");
    for (field, value, wanted, why) in [
        ("topic", json!("gone"), Code::NotFound, "topic 'gone' does not exist"),
        ("partition", json!(2), Code::InvalidArgument, "has 2 partitions, none with the number 2"),
        (
            "from",
            json!({"9": 1}),
            Code::InvalidArgument,
            "has 2 partitions, none with the number 9",
        ),
        ("from", json!({"1": 51}), Code::OutOfRange, "orders:1 does not have offset 51 yet"),
        ("to", json!({"0": 9_999}), Code::OutOfRange, "orders:0 does not have offset 9999 yet"),
    ] {
        let mut changed = good.clone();
        changed[field] = value;
        let answer = in_time(client.do_get(Ticket::new(changed.to_string()))).await;
        let (code, text) = code(&answer.map(|_| ()).expect_err("refused"));
        assert!(code == wanted && text.contains(why), "{field}: {code:?} {text}");
    }
    let beyond = json!({"topic": "orders", "from": {"positions": {"0": 60}}});
    let error = client.get_flight_info(command(beyond)).await.expect_err("there is no such offset");
    let (code, text) = code(&error);
    assert_eq!(code, Code::OutOfRange, "{text}");
    assert!(text.starts_with("orders:0 does not have offset 60 yet, the next one is 50"), "{text}");
    assert!(
        karrow.metric("karrow_flight_errors_total{code=\"NOT_FOUND\",rpc=\"GetFlightInfo\"}")
            >= 2.0
    );
    assert_eq!(karrow.get("/v1/streams").1, "[]", "nothing was opened for it");
}

async fn act(
    client: &mut FlightClient,
    name: &str,
    body: &str,
) -> Result<Vec<String>, (Code, String)> {
    let action = Action::new(name, body.to_owned());
    let results = async {
        let results: Vec<_> = client.do_action(action).await?.try_collect().await?;
        Ok(results
            .into_iter()
            .map(|body| String::from_utf8(body.to_vec()).expect("UTF-8"))
            .collect())
    };
    results.await.map_err(|error: FlightError| code(&error))
}

#[tokio::test(flavor = "multi_thread")]
async fn actions() {
    let kafka = Kafka::with(&[("a", 1), ("b", 1)]);
    let karrow = Karrow::with(&kafka, &["--topics", "a"], |_| {});
    let mut client = connect(&karrow).await;
    let known: Vec<_> =
        client.list_actions().await.expect("actions").try_collect().await.expect("all");
    let known: Vec<&str> = known.iter().map(|action| action.r#type.as_str()).collect();
    assert_eq!(
        known[..6],
        ["health", "list-topics", "create-topic", "ack", "add-stream", "drop-stream"]
    );
    // The rest are Flight SQL's.
    assert_eq!(known[6..], ["CreatePreparedStatement", "ClosePreparedStatement"]);
    assert_eq!(act(&mut client, "health", "").await, Ok(vec!["ok".to_owned()]));
    assert_eq!(act(&mut client, "list-topics", "").await, Ok(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(act(&mut client, "drop-stream", "a").await, Ok(vec![]));
    let (code, why) = act(&mut client, "drop-stream", "a").await.expect_err("it is gone");
    assert_eq!((code, why.as_str()), (Code::NotFound, "topic 'a' is no stream"));
    let missing = |why: &str| Err((Code::NotFound, why.to_owned()));
    assert_eq!(act(&mut client, "add-stream", "b").await, Ok(vec![]));
    assert_eq!(act(&mut client, "add-stream", "^new").await, Ok(vec![]));
    let why = "topic 'nosuch' does not exist";
    assert_eq!(act(&mut client, "add-stream", "nosuch").await, missing(why));
    kafka.create("new1", 1);
    let live = r#"{"phase":"live"}"#;
    let listed = in_time(async {
        loop {
            let flights = client.list_flights("").await.expect("a list");
            let flights: Vec<FlightInfo> = flights.try_collect().await.expect("all");
            if flights.len() == 2 && flights.iter().all(|flight| flight.app_metadata == live) {
                break flights;
            }
        }
    });
    let path = |info: &FlightInfo| info.flight_descriptor.as_ref().expect("a path").path.clone();
    assert_eq!(listed.await.iter().map(path).collect::<Vec<_>>(), [["b"], ["new1"]]);
    assert_eq!(act(&mut client, "drop-stream", "^new").await, Ok(vec![]));
    let why = "no streams of '^new' are wanted";
    assert_eq!(act(&mut client, "drop-stream", "^new").await, missing(why));
    for (action, body, why) in [
        ("add-stream", "^[", "'^[': regex parse error"),
        (
            "add-stream",
            r"^\w{100}\d{100}x",
            "'^\\w{100}\\d{100}x': Compiled regex exceeds size limit",
        ),
        ("add-stream", "a b", "illegal topic name 'a b'"),
        ("add-stream", "", "add-stream: the body is empty"),
        ("ack", "", "ack: the body is empty"),
    ] {
        let (code, said) = act(&mut client, action, body).await.expect_err("refused");
        assert_eq!(code, Code::InvalidArgument);
        assert!(said.starts_with(why), "{said}");
    }
    let (code, why) = act(&mut client, "dance", "").await.expect_err("unknown");
    assert_eq!(code, Code::NotFound);
    assert!(why.starts_with("no action 'dance', but health, "), "{why}");
    for (body, why) in [
        (r#"{"partitions":2}"#, "topic is missing"),
        (r#"{"topic":"x","partitions":0}"#, "partitions: 0 is not a number from 1 to 10000"),
        (r#"{"topic":"x","size":0}"#, "size: no such field"),
    ] {
        let error = act(&mut client, "create-topic", body).await.expect_err("refused");
        assert_eq!(error, (Code::InvalidArgument, why.to_owned()));
    }
    let body = r#"{"group":"g","name":"n","acks":"acked:0:1"}"#;
    let error = act(&mut client, "ack", body).await.expect_err("no such session");
    assert_eq!(error, (Code::NotFound, "no consumer 'g:n' is registered".to_owned()));
    kafka.create("acked", 1);
    kafka.put_all("acked", 0, (0..2).map(|n| n.to_string()));
    let mut redis = karrow.named("g:n");
    for offset in 0..2 {
        let message = redis.say("BLPOP topics:acked 30").message().expect("a message");
        assert_eq!(message.offset, offset);
    }
    for moved in [1, 0] {
        let said = act(&mut client, "ack", body).await.expect("acked");
        assert_eq!(said, [json!({"acked": moved}).to_string()]);
    }
    let beyond = r#"{"group":"g","name":"n","acks":"acked:0:2"}"#;
    let (code, why) = act(&mut client, "ack", beyond).await.expect_err("not delivered");
    assert_eq!(code, Code::InvalidArgument, "{why}");
    assert!(why.starts_with("acked:0:2 was not delivered to g:n"), "{why}");
}

fn streams(karrow: &Karrow) -> Vec<Value> {
    let (status, page) = karrow.get("/v1/streams");
    assert_eq!(status, 200, "{page}");
    serde_json::from_str(&page).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_come_and_go() {
    let kafka = Kafka::with(&[("kept", 1), ("orders-1", 1), ("other", 1)]);
    let flags = ["--topics", "kept,^orders-", "--ttl", "300ms", "--start", "earliest"];
    let karrow = Karrow::with(&kafka, &flags, |_| {});
    let topics = |karrow: &Karrow| -> Vec<String> {
        streams(karrow)
            .iter()
            .map(|stream| stream["topic"].as_str().expect("a name").to_owned())
            .collect()
    };
    let until = |wanted: &[&str]| {
        crate::support::eventually(&format!("{wanted:?} are streams"), || {
            (topics(&karrow) == wanted).then_some(())
        });
    };
    until(&["kept", "orders-1"]);
    kafka.create("orders-2", 1);
    until(&["kept", "orders-1", "orders-2"]);
    let mut client = connect(&karrow).await;
    let info = plan(&mut client, json!({"topic": "other", "to": "follow"})).await;
    let mut batches = get(&mut client, ticket(&info, 0)).await;
    kafka.put("other", 0, "x");
    let (batch, _) = in_time(batches.next()).await.expect("a batch").expect("no error");
    assert_eq!(places_of(&batch), [(0, 0)]);
    until(&["kept", "orders-1", "orders-2", "other"]);
    let other = streams(&karrow).pop().expect("the last one");
    assert_eq!((&other["readers"], &other["phase"]), (&json!(1), &json!("live")));
    assert_eq!(karrow.metric("karrow_stream_readers{topic=\"other\"}"), 1.0);
    drop(batches);
    drop(client);
    until(&["kept", "orders-1", "orders-2"]);
    let (status, page) = karrow.get("/v1/streams/other");
    assert_eq!((status, page.as_str()), (404, r#"{"error":"topic 'other' is no stream"}"#));
    // Rows leave the window when they are old.
    kafka.put("kept", 0, "y");
    karrow
        .await_metric("karrow_stream_dropped_rows_total{reason=\"old\",topic=\"kept\"}", |rows| {
            rows == 1.0
        });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_window_does_what_it_is_told() {
    let kafka = Kafka::with(&[("t", 1)]);
    let long = Duration::from_secs(600);
    for (policy, phase) in [("pause", "paused"), ("error", "failed"), ("drop-oldest", "live")] {
        let flags = [
            "--topics",
            "t",
            "--buffer-limit",
            "10000",
            "--when-full",
            policy,
            "--start",
            "earliest",
            "--batch-linger",
            "1ms",
            "--batch-size",
            "10",
        ];
        let karrow = Karrow::with(&kafka, &flags, |config| config.streams.age_max = long);
        if policy == "pause" {
            kafka.put_all("t", 0, (0..500).map(|n| format!("{n:0>100}")));
        }
        crate::support::eventually(&format!("{policy}: {phase}"), || {
            let stream = &streams(&karrow)[0];
            let is_there = phase != "live" || stream["ends"] == json!({"0": 500});
            (stream["phase"] == phase && is_there).then_some(())
        });
        let stream = &streams(&karrow)[0];
        let dropped = stream["dropped"]["full"].as_u64().expect("a number");
        assert_eq!(dropped > 0, policy == "drop-oldest", "{stream}");
        if policy == "error" {
            let why = stream["error"].as_str().expect("a reason");
            assert!(why.contains("the window of 't' is full"), "{why}");
        }
        // Whatever the window does, nothing is lost to a reader.
        let mut client = connect(&karrow).await;
        assert_eq!(
            rows(&mut client, json!({"topic": "t", "from": "earliest"})).await,
            range(0, 0..500),
            "{policy}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_start_where_they_are_told() {
    let kafka = orders();
    for (start, starts) in [
        ("earliest", json!({"0": 0, "1": 0})),
        ("latest", json!({"0": 50, "1": 50})),
        ("offset:20", json!({"0": 20, "1": 20})),
        ("offset:999", json!({"0": 50, "1": 50})),
    ] {
        let karrow = Karrow::with(&kafka, &["--topics", "orders", "--start", start], |_| {});
        crate::support::eventually(&format!("{start}: {starts}"), || {
            (streams(&karrow)[0]["starts"] == starts).then_some(())
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_is_counted() {
    let kafka = Kafka::with(&[]);
    let karrow = Karrow::start(&kafka);
    let error = connect(&karrow).await.handshake("").await.expect_err("there are no users");
    assert_eq!(code(&error).0, Code::Unimplemented);
    for name in ["requests_total{", "errors_total{code=\"UNIMPLEMENTED\","] {
        assert_eq!(karrow.metric(&format!("karrow_flight_{name}rpc=\"Handshake\"}}")), 1.0);
    }
}
