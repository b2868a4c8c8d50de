//! `arrow:` keys: typed batches out of topics, and rows into them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, DictionaryArray, Float64Array, Int8Array,
    Int32Array, Int64Array, LargeListArray, LargeStringArray, RecordBatch, StringArray,
    StructArray, TimestampMillisecondArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::support::kafka::{Code, PRODUCE};
use crate::support::registry::Registry;
use crate::support::{Client, Kafka, Karrow, Reply, eventually};

/// What a reply's IPC stream holds; there is one batch in it.
#[track_caller]
fn batch_of(stream: &[u8]) -> RecordBatch {
    let mut reader = StreamReader::try_new(stream, None).expect("an Arrow IPC stream");
    let batch = reader.next().expect("a batch").expect("a good batch");
    assert!(reader.next().is_none(), "one batch a reply");
    batch
}

#[track_caller]
pub fn pop(client: &mut Client, key: &str) -> RecordBatch {
    let reply = client.call(&["BLPOP", key, "30"]);
    let [named, stream] = reply.array() else { panic!("{reply} is no pair") };
    assert_eq!(named.text(), key);
    batch_of(stream.bytes())
}

/// Batches of `key` until there are `rows` rows.
fn pop_rows(client: &mut Client, key: &str, rows: usize) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    while batches.iter().map(RecordBatch::num_rows).sum::<usize>() < rows {
        batches.push(pop(client, key));
    }
    batches
}

/// A column's values as text.
pub fn shown(batch: &RecordBatch, column: &str) -> Vec<String> {
    let column = batch
        .column_by_name(column)
        .unwrap_or_else(|| panic!("{:?} has no {column}", batch.schema()));
    // Times as what they are: numbers.
    let column = match column.data_type() {
        DataType::Timestamp(..) => {
            &arrow::compute::cast(column, &DataType::Int64).expect("numbers")
        }
        _ => column,
    };
    let options = FormatOptions::default().with_null("null");
    let formatter = ArrayFormatter::try_new(column, &options).expect("a formatter");
    (0..batch.num_rows()).map(|row| formatter.value(row).to_string()).collect()
}

fn acks(batch: &RecordBatch) -> String {
    batch.schema().metadata()["karrow.acks"].clone()
}

fn names(batch: &RecordBatch) -> Vec<String> {
    batch.schema().fields().iter().map(|field| field.name().clone()).collect()
}

/// The stream of one batch.
fn stream_of(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).expect("a batch");
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
    writer.write(&batch).expect("written");
    writer.into_inner().expect("finished")
}

#[test]
fn a_batch_has_the_envelope_and_typed_columns() {
    let kafka = Kafka::with(&[("orders", 1)]);
    let headers: &[(&[u8], Option<&[u8]>)] = &[(b"h", Some(b"1")), (b"n", None)];
    kafka.put_full(
        "orders",
        Some(b"k1"),
        Some(br#"{"id":1,"price":2.5,"tags":["a"]}"#),
        headers,
        1_700_000_000_000,
    );
    kafka.put_full("orders", None, Some(br#"{"id":2,"at":{"x":true}}"#), &[], 1_700_000_000_001);
    kafka.put_full("orders", Some(b"k3"), None, &[], 1_700_000_000_002);
    kafka.put_full("orders", Some(b"k4"), Some(b"oops"), &[], 1_700_000_000_003);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let key = r#"arrow:orders:{"karrow.batch.rows":4,"karrow.batch.wait.ms":30000}"#;
    let batch = pop(&mut client, key);
    assert_eq!(
        names(&batch),
        ["topic", "partition", "offset", "timestamp", "key", "headers", "payload", "error"]
    );
    let nullable: Vec<bool> =
        batch.schema().fields().iter().map(|field| field.is_nullable()).collect();
    assert_eq!(nullable, [false, false, false, true, true, false, true, true]);
    assert_eq!(shown(&batch, "topic"), ["orders"; 4]);
    assert_eq!(shown(&batch, "partition"), ["0"; 4]);
    assert_eq!(shown(&batch, "offset"), ["0", "1", "2", "3"]);
    assert_eq!(shown(&batch, "timestamp")[1], "1700000000001");
    assert_eq!(shown(&batch, "key"), ["6b31", "null", "6b33", "6b34"]);
    assert_eq!(
        shown(&batch, "headers")[..2],
        ["[{key: h, value: 31}, {key: n, value: null}]", "[]"]
    );
    assert_eq!(
        shown(&batch, "payload"),
        [
            "{id: 1, price: 2.5, tags: [a], at: null}",
            "{id: 2, price: null, tags: null, at: {x: true}}",
            "null",
            "null",
        ]
    );
    assert_eq!(
        shown(&batch, "error"),
        [
            "null",
            "null",
            "null",
            "{message: payload: not JSON: 'o' at byte 0 of a JSON object, key: 6b34, payload: 6f6f7073}",
        ]
    );
    // Bad rows are acked like any other.
    assert_eq!(acks(&batch), "orders:0:3");
    assert_eq!(client.call(&["RPUSH", "acks", &acks(&batch)]).int(), 1);
    eventually("the commit", || (kafka.committed("g", "orders", 0) == Some(4)).then_some(()));
    assert_eq!(karrow.metric(r#"karrow_decoded_rows_total{format="json",topic="orders"}"#), 4.0);
    assert_eq!(karrow.metric(r#"karrow_bad_rows_total{reason="malformed",topic="orders"}"#), 1.0);
    assert!(karrow.metric(r#"karrow_decoded_bytes_total{format="json",topic="orders"}"#) > 50.0);
    assert_eq!(karrow.metric(r#"karrow_decode_seconds_count{format="json"}"#), 1.0);
}

#[test]
fn partitions_lie_together_and_every_message_comes_once() {
    let kafka = Kafka::with(&[("t", 3)]);
    for partition in 0..3 {
        let values: Vec<String> = (0..5_000).map(|value| format!(r#"{{"v":{value}}}"#)).collect();
        kafka.put_all("t", partition, values.iter());
    }
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let batches = pop_rows(&mut client, "arrow:t", 15_000);
    let mut next: BTreeMap<i32, i64> = BTreeMap::new();
    for batch in &batches {
        let partitions =
            batch.column(1).as_any().downcast_ref::<Int32Array>().expect("Int32").values().to_vec();
        let offsets =
            batch.column(2).as_any().downcast_ref::<Int64Array>().expect("Int64").values().to_vec();
        assert!(partitions.is_sorted(), "rows of a partition lie together");
        for (partition, offset) in partitions.into_iter().zip(offsets) {
            let next = next.entry(partition).or_default();
            assert_eq!(offset, *next, "{partition}");
            *next += 1;
        }
        let payload = batch.column(6).as_any().downcast_ref::<StructArray>().expect("a struct");
        assert_eq!(payload.column(0).data_type(), &DataType::Int64);
        assert_eq!(
            payload.column(0).to_data().buffers()[0].as_slice(),
            batch.column(2).to_data().buffers()[0].as_slice()
        );
    }
    assert_eq!(next, BTreeMap::from([(0, 5_000), (1, 5_000), (2, 5_000)]));
    // Nothing was acked: it all comes again to the next.
    client.say("QUIT");
    let mut client = karrow.named("g:n");
    let again: usize =
        pop_rows(&mut client, "arrow:t", 15_000).iter().map(RecordBatch::num_rows).sum();
    assert_eq!(again, 15_000);
    // The last reply covers each of its partitions up to its last row.
    assert!(client.say("RPUSH acks last").int() > 0);
}

#[test]
fn batches_keep_their_limits() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, (0..10).map(|value| format!("value {value}")));
    kafka.put("t", 0, "x".repeat(100_000));
    kafka.put("t", 0, "y");
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let key = r#"arrow:t:{"karrow.batch.rows":4,"karrow.batch.bytes":1000,"karrow.format":"text"}"#;
    let mut rows = Vec::new();
    for batch in pop_rows(&mut client, key, 12) {
        assert!(batch.num_rows() <= 4);
        let of_batch = shown(&batch, "payload");
        let bytes: usize = of_batch.iter().map(String::len).sum();
        assert!(bytes <= 1000 || of_batch.len() == 1, "only a single row may be larger");
        rows.extend(of_batch);
    }
    assert_eq!(
        (rows.len(), rows[9].as_str(), rows[10].len(), rows[11].as_str()),
        (12, "value 9", 100_000, "y")
    );
}

#[test]
fn topics_take_turns() {
    let kafka = Kafka::with(&[("a", 1), ("b", 1)]);
    // Enough that both have been fetched before one is empty.
    const COUNT: usize = 2_000;
    for topic in ["a", "b"] {
        kafka.put_all(topic, 0, (0..COUNT).map(|value| format!("{topic}{value}")));
    }
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let key = r#"arrow:a,b:{"karrow.batch.rows":2}"#;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut turns = Vec::new();
    while seen.values().sum::<usize>() < 2 * COUNT {
        let batch = pop(&mut client, key);
        let topics = shown(&batch, "topic");
        assert!(topics.iter().all(|topic| *topic == topics[0]), "one topic a batch");
        let values = shown(&batch, "payload");
        for value in values {
            let count = seen.entry(topics[0].clone()).or_default();
            assert_eq!(value, format!("{}{count}", topics[0]));
            *count += 1;
        }
        turns.push(topics[0].clone());
    }
    assert_eq!(seen, BTreeMap::from([("a".to_owned(), COUNT), ("b".to_owned(), COUNT)]));
    // Once both are there, they alternate; where one began late, the other has its end for itself.
    let changes = turns.windows(2).filter(|turns| turns[0] != turns[1]).count();
    assert!(changes > turns.len() / 4, "the other one waited: {changes} changes in {turns:?}");
}

#[test]
fn only_the_columns_that_are_asked_for() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_full(
        "t",
        Some(b"k"),
        Some(br#"{"a":1,"b":{"c":"x","d":[1]},"_offset":"mine"}"#),
        &[],
        1,
    );
    let karrow = Karrow::start(&kafka);
    let cases = [
        (
            r#"{"karrow.columns":["offset","payload.b.c"]}"#,
            vec!["offset", "payload"],
            "payload",
            "{b: {c: x}}",
        ),
        (r#"{"karrow.columns":"payload.a,key"}"#, vec!["key", "payload"], "payload", "{a: 1}"),
        (
            r#"{"karrow.layout":"flat"}"#,
            vec![
                "_topic",
                "_partition",
                "_offset",
                "_timestamp",
                "_key",
                "_headers",
                "a",
                "b",
                "_offset_",
                "_error",
            ],
            "_offset_",
            "mine",
        ),
        (
            r#"{"karrow.layout":"flat","karrow.columns":["_offset","b.c"]}"#,
            vec!["_offset", "b"],
            "b",
            "{c: x}",
        ),
        // Neither a payload that nobody asked for, nor fields beside the one that was.
        (
            r#"{"karrow.layout":"flat","karrow.columns":["_offset"]}"#,
            vec!["_offset"],
            "_offset",
            "0",
        ),
        (
            r#"{"karrow.layout":"flat","karrow.columns":["_offset","payload","a"]}"#,
            vec!["_offset", "a"],
            "a",
            "1",
        ),
        (
            r#"{"karrow.ipc.compression":"lz4","karrow.columns":"payload"}"#,
            vec!["payload"],
            "payload",
            "{a: 1, b: {c: x, d: [1]}, _offset: mine}",
        ),
        (
            r#"{"karrow.ipc.compression":"zstd","karrow.columns":"topic"}"#,
            vec!["topic"],
            "topic",
            "t",
        ),
    ];
    for (number, (options, columns, column, value)) in cases.into_iter().enumerate() {
        let mut client = karrow.named(&format!("g{number}:n"));
        let batch = pop(&mut client, &format!("arrow:t:{options}"));
        assert_eq!(names(&batch), columns, "{options}");
        assert_eq!(shown(&batch, column), [value], "{options}");
        assert_eq!(acks(&batch), "t:0:0", "{options}");
    }
}

#[test]
fn columns_only_grow_and_widen() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let types = |batch: &RecordBatch| {
        batch.column_by_name("payload").expect("a payload").data_type().to_string()
    };
    kafka.put("t", 0, r#"{"a":1}"#);
    let first = types(&pop(&mut client, "arrow:t"));
    kafka.put("t", 0, r#"{"a":1.5,"b":"x"}"#);
    let second = types(&pop(&mut client, "arrow:t"));
    kafka.put("t", 0, r#"{"a":2}"#);
    let batch = pop(&mut client, "arrow:t");
    assert!(first.contains("Int64") && second.contains("Float64"), "{first} {second}");
    assert_eq!(types(&batch), second, "what was seen stays");
    assert_eq!(shown(&batch, "payload"), ["{a: 2.0, b: null}"]);
    // Another reader of the topic starts with what is known.
    let mut other = karrow.named("h:n");
    assert_eq!(types(&pop(&mut other, "arrow:t")), second);
}

#[test]
fn lpop_gives_batches_and_ends() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, (0..10).map(|value| value.to_string()));
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let key = r#"arrow:t:{"karrow.batch.rows":3}"#;
    let mut rows = 0;
    loop {
        match client.call(&["LPOP", key]) {
            Reply::Null => break,
            Reply::Bulk(stream) => rows += batch_of(&stream).num_rows(),
            other => panic!("{other}"),
        }
    }
    assert_eq!(rows, 10);
    let mut client = karrow.named("h:n");
    let mut rows = 0;
    while rows < 10 {
        let reply = client.call(&["LPOP", key, "2"]);
        assert!(reply.array().len() <= 2);
        rows +=
            reply.array().iter().map(|stream| batch_of(stream.bytes()).num_rows()).sum::<usize>();
        assert!(client.say("RPUSH acks last").int() > 0);
    }
    eventually("the commit", || (kafka.committed("h", "t", 0) == Some(10)).then_some(()));
}

#[test]
fn wrong_options_are_named() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    for (key, why) in [
        (r#"arrow:t:{"karrow.batch.rows":0}"#, "karrow.batch.rows: 0 is not a number of rows"),
        (r#"arrow:t:{"karrow.nothing":1}"#, "karrow.nothing: no such option"),
        (r#"topics:t:{"karrow.layout":"x"}"#, "karrow.layout"),
        ("arrow:", "CONS Not enough topics in `arrow:`"),
    ] {
        let reply = karrow.named("g:n").call(&["BLPOP", key, "1"]);
        assert!(reply.error().starts_with("CONS ") && reply.error().contains(why), "{reply}");
    }
    let reply = karrow.named("g:n").call(&["BLPOP", "arrow:t", "topics:u", "1"]);
    assert_eq!(reply.error(), "CONS keys of one pop are either all `arrow:` or none of them is");
}

#[test]
fn fail_hands_nothing_out_from_the_bad_record_on() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, [r#"{"a":1}"#, r#"{"a":2}"#, "oops", r#"{"a":4}"#]);
    let karrow = Karrow::with(&kafka, &["--on-bad-record", "fail"], |_| {});
    let mut client = karrow.named("g:n");
    let key = r#"arrow:t:{"karrow.batch.rows":4,"karrow.batch.wait.ms":30000,"karrow.columns":"payload"}"#;
    let batch = pop(&mut client, key);
    assert_eq!(
        (shown(&batch, "payload"), acks(&batch).as_str()),
        (vec!["{a: 1}".to_owned(), "{a: 2}".to_owned()], "t:0:1")
    );
    for _ in 0..2 {
        let reply = client.call(&["BLPOP", key, "30"]);
        assert_eq!(
            reply.error(),
            "CONS Poll bad record t:0:2: not JSON: 'o' at byte 0 of a JSON object"
        );
    }
    // Acked, it is passed over.
    assert_eq!(client.say("RPUSH acks t:0:2").int(), 1);
    assert_eq!(shown(&pop(&mut client, key), "payload"), ["{a: 4}"]);
}

#[test]
fn dead_letters_are_stored_before_the_batch_is_answered() {
    let kafka = Kafka::with(&[("t", 1), ("t.dlq", 1)]);
    kafka.put_all("t", 0, [r#"{"a":1}"#, r#"{"a":2}"#]);
    kafka.put_full("t", Some(b"k"), Some(b"oops"), &[(b"h".as_slice(), Some(b"v".as_slice()))], 1);
    let karrow = Karrow::with(&kafka, &["--on-bad-record", "dead-letter"], |_| {});
    let mut client = karrow.named("g:n");
    let key = r#"arrow:t:{"karrow.batch.rows":3,"karrow.batch.wait.ms":30000}"#;
    let batch = pop(&mut client, key);
    assert_eq!(shown(&batch, "payload"), ["{a: 1}", "{a: 2}", "null"]);
    assert_eq!(kafka.records("t.dlq", 0), [(Some(b"k".to_vec()), Some(b"oops".to_vec()))]);
    let mut letters = karrow.named("letters:n");
    let letter = pop(&mut letters, "arrow:t.dlq");
    let headers = &shown(&letter, "headers")[0];
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let wanted =
        [("h", "v"), ("karrow.topic", "t"), ("karrow.partition", "0"), ("karrow.offset", "2")];
    for (name, value) in wanted {
        let header = format!("{{key: {name}, value: {}}}", hex(value));
        assert!(headers.contains(&header), "{headers}");
    }
    let why = format!("{{key: karrow.error, value: {}", hex("not JSON"));
    assert!(headers.contains(&why), "{headers}");
}

/// What will never be stored must not stop its topic: its bytes are in the row.
#[test]
fn a_record_that_cannot_be_a_dead_letter_is_handed_out() {
    let kafka = Kafka::with(&[("t", 1), ("t.dlq", 1)]);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("librdkafka.json");
    std::fs::write(&file, r#"{"producer":{"message.max.bytes":2000}}"#).expect("written");
    let file = file.to_str().expect("UTF-8").to_owned();
    let arguments = ["--on-bad-record", "dead-letter", "-c", &file];
    let karrow = Karrow::with(&kafka, &arguments, |_| {});
    let mut client = karrow.named("g:n");
    // Its own producer says that it is too large.
    let large = format!("oops{}", "s".repeat(1990));
    kafka.put_all("t", 0, ["oops", &large, r#"{"a":1}"#]);
    let key =
        r#"arrow:t:{"karrow.format":"json","karrow.batch.rows":3,"karrow.batch.wait.ms":30000}"#;
    let batch = pop(&mut client, key);
    assert_eq!(shown(&batch, "payload"), ["null", "null", "{a: 1}"]);
    // Sent together with one that is refused, it may be there twice.
    let stored = kafka.values("t.dlq", 0);
    assert!(!stored.is_empty() && stored.iter().all(|value| value == b"oops"));
    let letters = |outcome: &str| {
        karrow.metric(&format!("karrow_dead_letters_total{{outcome=\"{outcome}\",topic=\"t\"}}"))
    };
    assert_eq!((letters("stored"), letters("refused")), (1.0, 1.0));
    // The broker says it, of all that came in one request.
    kafka.put_all("t", 0, ["bad", "worse", r#"{"a":2}"#]);
    kafka.fail(PRODUCE, &[Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 3]);
    let batch = pop(&mut client, key);
    assert_eq!(shown(&batch, "payload"), ["null", "null", "{a: 2}"]);
    eventually("a letter to be refused", || (letters("refused") >= 2.0).then_some(()));
    assert_eq!(letters("stored") + letters("refused"), 4.0);
}

#[test]
fn without_a_place_for_dead_letters_nothing_is_handed_out() {
    let kafka = Kafka::with(&[("t", 1), ("t.dlq", 1)]);
    kafka.put_all("t", 0, [r#"{"a":1}"#, r#"{"a":2}"#, "oops"]);
    kafka.set_topic_error("t.dlq", Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
    let karrow = Karrow::with(&kafka, &["--on-bad-record", "dead-letter"], |_| {});
    let mut client = karrow.named("g:n");
    let key = r#"arrow:t:{"karrow.batch.rows":3,"karrow.batch.wait.ms":30000}"#;
    for _ in 0..2 {
        let reply = client.call(&["BLPOP", key, "30"]);
        assert!(reply.error().starts_with("CONS Poll dead letters to t.dlq: "), "{reply}");
        let reply = client.call(&["BLPOP", "topics:t", "30"]);
        assert!(reply.error().starts_with("CONS a batch waits for its dead letters"), "{reply}");
    }
    kafka.set_topic_error("t.dlq", Code::RD_KAFKA_RESP_ERR_NO_ERROR);
    let batch = eventually("the topic", || {
        let reply = client.call(&["BLPOP", key, "30"]);
        (!matches!(reply, Reply::Error(_))).then(|| batch_of(reply.array()[1].bytes()))
    });
    assert_eq!(shown(&batch, "payload"), ["{a: 1}", "{a: 2}", "null"]);
    assert_eq!(kafka.values("t.dlq", 0).last().map(Vec::as_slice), Some(b"oops".as_slice()));
}

#[test]
fn rows_become_messages() {
    let kafka = Kafka::with(&[("raw", 2), ("json", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.connect();
    let stream = stream_of(vec![
        ("key", Arc::new(StringArray::from(vec![Some("k"), None, Some("")])) as ArrayRef),
        ("partition", Arc::new(Int32Array::from(vec![1, 1, 1]))),
        (
            "timestamp",
            Arc::new(TimestampMillisecondArray::from(vec![Some(1_700_000_000_000), None, None])),
        ),
        ("payload", Arc::new(BinaryArray::from(vec![Some(b"\xff".as_slice()), None, Some(b"")]))),
    ]);
    assert_eq!(client.call(&[b"RPUSH".as_slice(), b"arrow:raw", &stream]).int(), 3);
    let stored = kafka.records("raw", 1);
    assert_eq!(
        stored,
        [
            (Some(b"k".to_vec()), Some(b"\xff".to_vec())),
            (None, None),
            (Some(b"".to_vec()), Some(b"".to_vec())),
        ]
    );
    let row = StructArray::from(vec![(
        Arc::new(Field::new("x", DataType::Float64, true)),
        Arc::new(Float64Array::from(vec![Some(1.5), None])) as ArrayRef,
    )]);
    let columns = vec![
        ("id", Arc::new(Int64Array::from(vec![1, i64::MAX])) as ArrayRef),
        ("row", Arc::new(row)),
    ];
    let stream = stream_of(columns);
    assert_eq!(client.call(&[b"RPUSH".as_slice(), b"arrow:json", &stream, &stream]).int(), 4);
    let texts: Vec<String> = kafka
        .values("json", 0)
        .into_iter()
        .map(|text| String::from_utf8(text).expect("UTF-8"))
        .collect();
    assert_eq!(
        texts[..2],
        [r#"{"id":1,"row":{"x":1.5}}"#, r#"{"id":9223372036854775807,"row":{}}"#]
    );
    // What was written comes back as it was, headers and all.
    let mut reader = karrow.named("g:n");
    let batch =
        pop(&mut reader, r#"arrow:raw:{"karrow.batch.rows":3,"karrow.batch.wait.ms":30000}"#);
    assert_eq!(shown(&batch, "timestamp")[0], "1700000000000");
    let mut stream = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
    stream.write(&batch).expect("written");
    let stream = stream.into_inner().expect("finished");
    assert_eq!(client.call(&[b"RPUSH".as_slice(), b"arrow:raw", &stream]).int(), 3);
    assert_eq!(kafka.records("raw", 1)[3..], stored);
}

#[test]
fn a_dictionary_is_not_spelled_out() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.connect();
    let stream = |value: &str, rows: usize| {
        let values = Arc::new(LargeStringArray::from(vec![value]));
        let keys = Int8Array::from(vec![0; rows]);
        stream_of(vec![("payload", Arc::new(DictionaryArray::new(keys, values)) as ArrayRef)])
    };
    // A terabyte, spelled out.
    let large = stream(&"x".repeat(1_000_000), 1_000_000);
    let reply = client.call(&[b"RPUSH".as_slice(), b"arrow:t", &large]);
    let why = "PROD payload: row 268: the rows of one command are more than 268435456 bytes";
    assert_eq!(reply.error(), why);
    let small = stream("x", 3);
    assert_eq!(client.call(&[b"RPUSH".as_slice(), b"arrow:t", &small]).int(), 3);
    assert_eq!(kafka.end("t", 0), 3);
}

/// As polars writes lists.
#[test]
fn headers_may_be_a_large_list() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    let pairs = StructArray::from(vec![
        (
            Arc::new(Field::new("key", DataType::Utf8, true)),
            Arc::new(StringArray::from(vec!["a", "b", "c"])) as ArrayRef,
        ),
        (
            Arc::new(Field::new("value", DataType::Binary, true)),
            Arc::new(BinaryArray::from(vec![Some(b"1".as_slice()), None, Some(b"")])),
        ),
    ]);
    let item = Arc::new(Field::new("item", pairs.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths([2, 0, 1]);
    let headers = LargeListArray::new(item, offsets, Arc::new(pairs), None);
    let stream = stream_of(vec![
        ("payload", Arc::new(StringArray::from(vec!["x", "y", "z"])) as ArrayRef),
        ("headers", Arc::new(headers)),
    ]);
    assert_eq!(karrow.connect().call(&[b"RPUSH".as_slice(), b"arrow:t", &stream]).int(), 3);
    let key = r#"arrow:t:{"karrow.batch.rows":3,"karrow.batch.wait.ms":30000}"#;
    let batch = pop(&mut karrow.named("g:n"), key);
    assert_eq!(
        shown(&batch, "headers"),
        ["[{key: a, value: 31}, {key: b, value: null}]", "[]", "[{key: c, value: }]"]
    );
}

/// A batch counts headers as the bytes that they are.
#[test]
fn headers_count_for_a_batch() {
    let kafka = Kafka::with(&[("t", 1)]);
    let value = vec![b'h'; 1000];
    for _ in 0..4 {
        kafka.put_full("t", None, Some(b"x"), &[(b"h".as_slice(), Some(value.as_slice()))], 1);
    }
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let key = r#"arrow:t:{"karrow.batch.bytes":2100,"karrow.batch.wait.ms":30000}"#;
    for _ in 0..2 {
        assert_eq!(pop(&mut client, key).num_rows(), 2);
    }
}

#[test]
fn rows_that_cannot_be_messages_are_refused_whole() {
    let kafka = Kafka::with(&[("t", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.connect();
    let one = |name: &'static str, array: ArrayRef| {
        stream_of(vec![
            ("payload", Arc::new(StringArray::from(vec!["x", "y"])) as ArrayRef),
            (name, array),
        ])
    };
    let good = stream_of(vec![("payload", Arc::new(StringArray::from(vec!["x"])) as ArrayRef)]);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"no stream".to_vec(), "PROD no Arrow IPC stream"),
        (b"ARROW1\0\0 a file".to_vec(), "PROD an Arrow IPC file, not a stream"),
        (Vec::new(), "PROD no Arrow IPC stream"),
        (good[..good.len() - 20].to_vec(), "PROD ends inside of an Arrow IPC message"),
        (
            [good.clone(), b"x".to_vec()].concat(),
            "PROD something behind the end of an Arrow IPC stream",
        ),
        (
            one("partition", Arc::new(Int64Array::from(vec![0, -1]))),
            "PROD row 2: a negative partition",
        ),
        (one("partition", Arc::new(Int64Array::from(vec![0, 1 << 40]))), "PROD partition: "),
        (
            one("partition", Arc::new(Int64Array::from(vec![0, 9]))),
            "PROD row 2: topic 't' has 1 partition, none with the number 9",
        ),
        (
            stream_of(vec![(
                "payload",
                Arc::new(StringArray::from(vec!["x".to_owned(), "y".repeat(1_000_001)]))
                    as ArrayRef,
            )]),
            "PROD row 2: 1000001 bytes are more than message.max.bytes, 1000000",
        ),
        (
            one("timestamp", Arc::new(Int64Array::from(vec![1, 0]))),
            "PROD row 2: a timestamp that is not after 1970",
        ),
        (
            stream_of(vec![("a", Arc::new(Float64Array::from(vec![1.0, f64::NAN])) as ArrayRef)]),
            "PROD payload.a: row 2: JSON has neither NaN nor infinities",
        ),
        (
            stream_of(vec![(
                "a",
                Arc::new(TimestampMillisecondArray::from(vec![1, i64::MAX])) as ArrayRef,
            )]),
            "PROD payload.a: row 2: a Timestamp(ms) that is no date",
        ),
        (
            one("key", Arc::new(Float64Array::from(vec![1.0, 2.0]))),
            "PROD key: Float64 is neither Binary nor Utf8",
        ),
        (
            one("headers", Arc::new(Int64Array::from(vec![1, 2]))),
            "PROD headers: Int64 is neither a list",
        ),
        (
            stream_of(vec![("payload", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]),
            "PROD payload: Int64 is neither Binary nor Utf8",
        ),
        (
            stream_of(vec![("key", Arc::new(StringArray::from(vec!["k"])) as ArrayRef)]),
            "PROD no column is left to be the payload",
        ),
    ];
    for (stream, why) in cases {
        // The good one before it is not sent either, and its row counts.
        let reply = client.call(&[b"RPUSH".as_slice(), b"arrow:t", &good, &stream]);
        assert!(reply.error().starts_with(why), "{reply} for {why}");
    }
    assert_eq!(kafka.end("t", 0), 0);
    let empty = RecordBatch::new_empty(Arc::new(Schema::new(vec![Field::new(
        "payload",
        DataType::Utf8,
        true,
    )])));
    let mut writer = StreamWriter::try_new(Vec::new(), &empty.schema()).expect("a writer");
    writer.write(&empty).expect("written");
    let stream = writer.into_inner().expect("finished");
    assert_eq!(client.call(&[b"RPUSH".as_slice(), b"arrow:t", &stream]).int(), 0);
    let reply = client.call(&[b"RPUSH".as_slice(), b"arrow:t:key", &good]);
    assert!(reply.error().contains("arrow:<topic>"), "{reply}");
    assert_eq!(client.call(&[b"RPUSH".as_slice(), b"arrow:t", &good]).int(), 1);
}

#[test]
fn arrow_payloads_become_rows() {
    let kafka = Kafka::with(&[("t", 1)]);
    let ints = |values: Vec<Option<i64>>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let texts = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
    kafka.put(
        "t",
        0,
        stream_of(vec![("a", ints(vec![Some(1), None])), ("b", texts(vec!["x", "y"]))]),
    );
    kafka.put_full("t", None, None, &[], 1);
    kafka.put(
        "t",
        0,
        stream_of(vec![
            ("c", Arc::new(Float64Array::from(vec![0.5])) as ArrayRef),
            ("a", ints(vec![Some(3)])),
        ]),
    );
    kafka.put("t", 0, "oops");
    let empty = stream_of(vec![("a", ints(vec![]))]);
    kafka.put_full("t", Some(b"k"), Some(&empty), &[], 1);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.named("g:n");
    let batch = pop(&mut client, r#"arrow:t:{"karrow.batch.rows":5,"karrow.batch.wait.ms":30000}"#);
    assert_eq!(shown(&batch, "offset"), ["0", "0", "1", "2", "3", "4"]);
    assert_eq!(
        shown(&batch, "payload"),
        [
            "{a: 1, b: x, c: null}",
            "{a: null, b: y, c: null}",
            "null",
            "{a: 3, b: null, c: 0.5}",
            "null",
            "null"
        ]
    );
    assert_eq!(
        shown(&batch, "error")[4],
        "{message: payload: no Arrow IPC stream, key: null, payload: 6f6f7073}"
    );
    assert_eq!(shown(&batch, "key")[5], "6b");
    let error = &shown(&batch, "error")[5];
    let why = "{message: payload: an Arrow stream without rows, key: 6b, payload: ffffffff";
    assert!(error.starts_with(why), "{error}");
    assert_eq!(acks(&batch), "t:0:4", "the empty stream is covered, too");
}

/// A value as a registry's serializers write it.
pub fn framed(id: u32, body: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], body].concat()
}

const ORDER: &str = r#"{"type":"record","name":"Order","fields":[
    {"name":"id","type":"long"},{"name":"note","type":["null","string"],"default":null}]}"#;
const ORDER_WITH_PRICE: &str = r#"{"type":"record","name":"Order","fields":[
    {"name":"id","type":"long"},{"name":"price","type":"double","default":0.5}]}"#;

#[test]
fn schemas_of_a_registry_give_columns() {
    let kafka = Kafka::with(&[("avro", 1), ("proto", 1), ("json", 1)]);
    let registry = Registry::start();
    registry.put(7, "AVRO", ORDER);
    registry.put(8, "AVRO", ORDER_WITH_PRICE);
    registry.put(
        9,
        "PROTOBUF",
        r#"syntax = "proto3"; message Other {} message Order { int64 id = 1; string note = 2; }"#,
    );
    registry.put(10, "JSON", r#"{"type":"object"}"#);
    // Avro: 1, "hi"; 2 and 2.5; an id that nobody knows; one that ends too early.
    kafka.put("avro", 0, framed(7, &[2, 2, 4, b'h', b'i']));
    kafka.put("avro", 0, framed(8, &[&[4][..], &2.5f64.to_le_bytes()].concat()));
    kafka.put("avro", 0, framed(99, &[2]));
    kafka.put("avro", 0, framed(7, &[2, 2, 4, b'h']));
    kafka.put("avro", 0, framed(7, &[6, 0]));
    // Protobuf: the second message of the file.
    kafka.put("proto", 0, framed(9, &[2, 2, 8, 5, 18, 1, b'x']));
    kafka.put("json", 0, framed(10, br#"{"id":3}"#));
    let karrow = Karrow::with(&kafka, &["--schema-registry", &registry.url()], |_| {});
    let pop_all = |topic: &str, rows: usize| {
        let mut client = karrow.named(&format!("{topic}:n"));
        let options = format!(r#"{{"karrow.batch.rows":{rows},"karrow.batch.wait.ms":30000}}"#);
        pop(&mut client, &format!("arrow:{topic}:{options}"))
    };
    let batch = pop_all("avro", 5);
    assert_eq!(
        shown(&batch, "payload"),
        [
            "{id: 1, note: hi, price: null}",
            "{id: 2, note: null, price: 2.5}",
            "null",
            "null",
            "{id: 3, note: null, price: null}",
        ]
    );
    let errors = shown(&batch, "error");
    assert!(errors[2].contains("99") && errors[3].contains("ends inside of"), "{errors:?}");
    assert_eq!(errors.iter().filter(|error| *error == "null").count(), 3);
    assert_eq!(shown(&pop_all("proto", 1), "payload"), ["{id: 5, note: x}"]);
    assert_eq!(shown(&pop_all("json", 1), "payload"), ["{id: 3}"]);
    // Each schema was asked for once, however many records name it.
    assert_eq!(registry.requests(), 5);
    assert!(karrow.metric(r#"karrow_schema_cache_total{outcome="hit"}"#) >= 1.0);
    assert!(karrow.metric(r#"karrow_schema_cache_total{outcome="miss"}"#) >= 1.0);
    assert_eq!(karrow.metric(r#"karrow_schema_registry_requests_total{outcome="ok"}"#), 4.0);
    assert_eq!(karrow.metric(r#"karrow_schema_registry_requests_total{outcome="unknown"}"#), 1.0);
    assert_eq!(karrow.metric("karrow_schema_registry_seconds_count"), 5.0);
    assert_eq!(karrow.metric(r#"karrow_bad_rows_total{reason="schema",topic="avro"}"#), 1.0);
}

#[test]
fn a_registry_that_is_away_is_waited_for() {
    let kafka = Kafka::with(&[("t", 1)]);
    let registry = Registry::start();
    registry.put(7, "AVRO", ORDER);
    registry.set_away(true);
    kafka.put("t", 0, framed(7, &[2, 0]));
    let karrow = Karrow::with(&kafka, &["--schema-registry", &registry.url()], |_| {});
    let mut client = karrow.named("g:n");
    eventually("the record to be there, and the registry to be asked", || {
        assert!(client.say("BLPOP arrow:t 0.2").is_null(), "nothing is handed out");
        (registry.requests() > 0).then_some(())
    });
    let (status, page) = karrow.get("/readyz");
    assert_eq!((status, page.as_str()), (503, "the schema registry does not answer\n"));
    assert!(karrow.metric(r#"karrow_schema_registry_requests_total{outcome="error"}"#) >= 1.0);
    // A pop that waits for ever does so also when its batch has waited long enough to fill up.
    let mut patient = karrow.named("g2:n");
    let key = r#"arrow:t:{"karrow.batch.wait.ms":100}"#;
    let before = registry.requests();
    patient.send(&["BLPOP", key, "0"]);
    eventually("the registry to be asked again and again", || {
        (registry.requests() >= before + 3).then_some(())
    });
    registry.set_away(false);
    let reply = patient.reply();
    assert_eq!(shown(&batch_of(reply.array()[1].bytes()), "payload"), ["{id: 1, note: null}"]);
    assert_eq!(shown(&pop(&mut client, "arrow:t"), "payload"), ["{id: 1, note: null}"]);
    assert_eq!(karrow.get("/readyz").0, 200);
}

/// Few bytes that stand for many rows, and much beside them: it is a bad row, and its neighbours are handed out.
#[test]
fn an_arrow_payload_with_more_around_it_than_a_batch_may_hold_is_a_bad_row() {
    let kafka = Kafka::with(&[("t", 1)]);
    let rows = |count: usize| {
        stream_of(vec![("a", Arc::new(BooleanArray::from(vec![true; count])) as ArrayRef)])
    };
    let key = vec![b'k'; 1024];
    kafka.put_full("t", Some(b"k"), Some(&rows(1)), &[], 1);
    kafka.put_full("t", Some(&key), Some(&rows(400_000)), &[], 1);
    kafka.put_full("t", Some(b"\xff"), Some(&rows(10_000)), &[], 1);
    kafka.put_full("t", Some(b"k"), Some(&rows(1)), &[], 1);
    let karrow = Karrow::with(&kafka, &["--key-format", "text"], |_| {});
    let mut client = karrow.named("g:n");
    let batches = pop_rows(&mut client, "arrow:t", 10_003);
    let errors: Vec<String> = batches.iter().flat_map(|batch| shown(batch, "error")).collect();
    let offsets: Vec<String> = batches.iter().flat_map(|batch| shown(batch, "offset")).collect();
    assert_eq!((offsets.len(), &*offsets[0], &*offsets[10_002]), (10_003, "0", "3"));
    assert!(errors[1].contains("bytes of repeated keys and headers"), "{}", &errors[1][..100]);
    // A key that is no text makes each of its rows a bad one; its bytes are there once.
    let with_bytes = errors.iter().filter(|error| error.contains("key: ff")).count();
    let bad = errors.iter().filter(|error| error.contains("UTF-8")).count();
    assert_eq!((with_bytes, bad), (1, 10_000));
}

#[test]
fn given_schemas_are_for_values_that_name_none() {
    let kafka = Kafka::with(&[("a", 1), ("p", 1)]);
    kafka.put("a", 0, [2, 2, 4, b'h', b'i']);
    kafka.put("p", 0, [8, 5, 18, 3, 10, 1, b'x']);
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let avsc = file("order.avsc", ORDER);
    file("item.proto", r#"syntax = "proto3"; package shop; message Item { string sku = 1; }"#);
    let proto = file(
        "order.proto",
        r#"syntax = "proto3"; package shop; import "item.proto";
            message Order { int64 id = 1; Item item = 2; }"#,
    );
    let toml = file(
        "karrow.toml",
        &format!(
            "[topic.a]\npayload = \"avro\"\npayload-schema = \"{avsc}\"\n\
             [topic.p]\npayload = \"protobuf\"\npayload-schema = \"{proto}\"\npayload-message = \"shop.Order\"\n"
        ),
    );
    let karrow = Karrow::with(&kafka, &["-c", &toml], |_| {});
    assert_eq!(shown(&pop(&mut karrow.named("a:n"), "arrow:a"), "payload"), ["{id: 1, note: hi}"]);
    assert_eq!(
        shown(&pop(&mut karrow.named("p:n"), "arrow:p"), "payload"),
        ["{id: 5, item: {sku: x}}"]
    );
}

#[test]
fn a_partition_that_goes_takes_what_was_gathered_with_it() {
    let kafka = Kafka::with(&[("t", 2)]);
    kafka.put("t", 0, r#"{"a":0}"#);
    kafka.put("t", 1, r#"{"a":1}"#);
    let karrow = Karrow::start(&kafka);
    let mut one = karrow.named("g:one");
    // Long enough for the group to take in a second member meanwhile.
    let key = r#"arrow:t:{"karrow.batch.rows":100,"karrow.batch.wait.ms":15000}"#;
    one.send(&["BLPOP", key, "60"]);
    karrow.await_metric(r#"karrow_consumed_messages_total{topic="t"}"#, |count| count == 2.0);
    let mut two = karrow.named("g:two");
    let other = pop(&mut two, "arrow:t");
    let reply = one.reply();
    let batch = batch_of(reply.array()[1].bytes());
    let mut partitions = [shown(&batch, "partition"), shown(&other, "partition")].concat();
    partitions.sort();
    assert_eq!(partitions, ["0", "1"], "each row came to the member that has its partition");
    for (client, batch) in [(&mut one, &batch), (&mut two, &other)] {
        assert_eq!(client.call(&["RPUSH", "acks", &acks(batch)]).int(), 1);
    }
}
