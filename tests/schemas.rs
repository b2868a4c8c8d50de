//! Schemas type the columns of JSON and CSV topics: those of files, of karrow.toml, and of a registry.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit};
use arrow::ipc::writer::StreamWriter;
use serde_json::json;

use crate::arrow::{framed, pop, shown};
use crate::support::registry::Registry;
use crate::support::{Kafka, Karrow};

/// The next `rows` records of a topic, as a group of its own gets them.
fn read(karrow: &Karrow, topic: &str, rows: usize) -> RecordBatch {
    let mut client = karrow.named(&format!("readers-of-{topic}:one"));
    let options = format!(r#"{{"karrow.batch.rows":{rows},"karrow.batch.wait.ms":30000}}"#);
    let batch = pop(&mut client, &format!("arrow:{topic}:{options}"));
    assert_eq!(batch.num_rows(), rows);
    batch
}

fn payload_type(batch: &RecordBatch) -> DataType {
    batch.column_by_name("payload").expect("a payload").data_type().clone()
}

fn of(fields: &[(&str, DataType)]) -> Fields {
    fields.iter().map(|(name, kind)| Field::new(*name, kind.clone(), true)).collect()
}

fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

fn micros() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// karrow in front of `kafka`, with a karrow.toml of this text.
fn with_toml(kafka: &Kafka, text: &str) -> Karrow {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("karrow.toml");
    std::fs::write(&path, text).expect("written");
    Karrow::with(kafka, &["-c", path.to_str().expect("UTF-8")], |_| {})
}

#[test]
fn a_json_schema_file_says_the_columns() {
    let kafka = Kafka::with(&[("orders", 1)]);
    let dir = tempfile::tempdir().expect("a directory");
    let schema = dir.path().join("order.json");
    let text = r##"{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
        "properties":{"id":{"type":"integer"},"at":{"type":"string","format":"date-time"},
            "note":{"type":["string","null"]},"lines":{"type":"array","items":{"$ref":"#/$defs/line"}}},
        "$defs":{"line":{"type":"object","properties":{"sku":{"type":"string"},"price":{"type":"number"}},
            "additionalProperties":false}}}"##;
    std::fs::write(&schema, text).expect("written");
    kafka.put_all(
        "orders",
        0,
        [
            r#"{"note":"first"}"#,
            r#"{"id":"seven"}"#,
            r#"{"id":7,"at":"2024-02-29T12:00:00+02:00","lines":[{"sku":"x","price":1},{"gift":true}],"rush":1}"#,
        ],
    );
    let schema = schema.to_str().expect("UTF-8");
    let karrow = with_toml(&kafka, &format!("[topic.orders]\npayload-schema = \"{schema}\"\n"));
    let batch = read(&karrow, "orders", 3);
    let line = [("sku", DataType::Utf8), ("price", DataType::Float64), ("_more", DataType::Utf8)];
    assert_eq!(
        payload_type(&batch),
        DataType::Struct(of(&[
            ("id", DataType::Int64),
            ("at", micros()),
            ("note", DataType::Utf8),
            ("lines", list_of(DataType::Struct(of(&line)))),
            // The schema leaves other fields open: they are found out.
            ("rush", DataType::Int64),
        ]))
    );
    assert_eq!(
        shown(&batch, "payload"),
        [
            "{id: null, at: null, note: first, lines: null, rush: null}",
            "null",
            "{id: 7, at: 2024-02-29T10:00:00Z, note: null, lines: [{sku: x, price: 1.0, _more: null}, {sku: null, price: null, _more: {\"gift\":true}}], rush: 1}",
        ]
    );
    let errors = shown(&batch, "error");
    assert!(errors[1].contains("payload: id: a string that should be an integer"), "{errors:?}");
    assert_eq!(karrow.metric(r#"karrow_bad_rows_total{reason="value",topic="orders"}"#), 1.0);
}

#[test]
fn an_arrow_schema_file_is_the_schema_of_the_table() {
    let kafka = Kafka::with(&[("json", 1), ("csv", 1)]);
    let fields = of(&[
        ("id", DataType::Int16),
        ("at", DataType::Timestamp(TimeUnit::Nanosecond, Some("Europe/Berlin".into()))),
        ("price", DataType::Decimal128(10, 2)),
        ("day", DataType::Date32),
    ]);
    // As pyarrow's Schema.serialize() has it: the message that begins a stream.
    let strict: Vec<Field> =
        fields.iter().map(|field| field.as_ref().clone().with_nullable(false)).collect();
    let schema = StreamWriter::try_new(Vec::new(), &Schema::new(strict)).expect("a writer");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("orders.arrow");
    std::fs::write(&path, schema.get_ref()).expect("written");
    kafka.put_all(
        "json",
        0,
        [
            "{}",
            r#"{"id":40000}"#,
            r#"{"price":19.99,"id":-32768,"day":"2024-02-29","at":"2024-02-29T12:00:00.123456789+01:00"}"#,
            r#"{"price":19.999}"#,
        ],
    );
    kafka.put_all("csv", 0, ["007,,1,2024-02-29", "7,2024-02-29T12:00:00Z,+1.5,", "x,,,"]);
    let path = path.to_str().expect("UTF-8");
    let karrow = with_toml(
        &kafka,
        &format!(
            "[topic.json]\npayload = \"json\"\npayload-schema = \"{path}\"\n\
             [topic.csv]\npayload = \"csv\"\npayload-schema = \"{path}\"\n"
        ),
    );
    let batch = read(&karrow, "json", 4);
    assert_eq!(payload_type(&batch), DataType::Struct(fields.clone()));
    let rows = shown(&batch, "payload");
    assert_eq!(rows[0], "{id: null, at: null, price: null, day: null}");
    assert_eq!(
        rows[2],
        "{id: -32768, at: 2024-02-29T12:00:00.123456789+01:00, price: 19.99, day: 2024-02-29}"
    );
    let errors = shown(&batch, "error");
    assert!(errors[1].contains("payload: id: '40000' is beyond Int16"), "{errors:?}");
    assert!(errors[3].contains("payload: price: '19.999' has more than 10 digits"), "{errors:?}");
    let batch = read(&karrow, "csv", 3);
    assert_eq!(payload_type(&batch), DataType::Struct(fields));
    assert_eq!(
        shown(&batch, "payload"),
        [
            "{id: 7, at: null, price: 1.00, day: 2024-02-29}",
            "{id: 7, at: 2024-02-29T13:00:00+01:00, price: 1.50, day: null}",
            "null",
        ]
    );
}

#[test]
fn columns_are_written_in_karrow_toml() {
    let kafka = Kafka::with(&[("orders", 1), ("readings", 1)]);
    kafka.put("orders", 0, r#"{"tags":["a"],"who":{"name":"x"},"stock":{"left":3}}"#);
    kafka.put("orders", 0, r#"{"later":1}"#);
    kafka.put("readings", 0, "007,1.50");
    let karrow = with_toml(
        &kafka,
        r#"
[topic.orders.columns]
id = "int64"
at = "timestamp[us, UTC]"
tags = ["string"]
who = { name = "string", age = "uint8" }
stock = "map<string, int32>"
[topic.readings]
payload = "csv"
columns = { sensor = "string", value = "decimal128(6, 2)" }
"#,
    );
    let batch = read(&karrow, "orders", 2);
    let pair = Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Int32, true),
    ]);
    let entries = Field::new("entries", DataType::Struct(pair), false);
    assert_eq!(
        payload_type(&batch),
        DataType::Struct(of(&[
            ("id", DataType::Int64),
            ("at", micros()),
            ("tags", list_of(DataType::Utf8)),
            ("who", DataType::Struct(of(&[("name", DataType::Utf8), ("age", DataType::UInt8)]))),
            ("stock", DataType::Map(Arc::new(entries), false)),
            ("_more", DataType::Utf8),
        ]))
    );
    assert_eq!(
        shown(&batch, "payload"),
        [
            "{id: null, at: null, tags: [a], who: {name: x, age: null}, stock: {left: 3}, _more: null}",
            "{id: null, at: null, tags: null, who: null, stock: null, _more: {\"later\":1}}",
        ]
    );
    assert_eq!(shown(&read(&karrow, "readings", 1), "payload"), ["{sensor: 007, value: 1.50}"]);
}

#[test]
fn json_schemas_of_a_registry_say_the_columns() {
    let kafka = Kafka::with(&[("orders", 1), ("guids", 1), ("odd", 1)]);
    let registry = Registry::start();
    let first = r#"{"type":"object","properties":{"id":{"type":"integer"},"who":{"$ref":"person.json#/definitions/who"}}}"#;
    registry.answer(
        "/schemas/ids/1",
        &json!({"schemaType": "JSON", "schema": first,
            "references": [{"name": "person.json", "subject": "person", "version": 3}]}),
    );
    let person = r#"{"definitions":{"who":{"type":"object","properties":{"born":{"type":"string","format":"date"}}}}}"#;
    registry
        .answer("/subjects/person/versions/3", &json!({"schemaType": "JSON", "schema": person}));
    registry.put(
        2,
        "JSON",
        r#"{"type":"object","properties":{"id":{"type":"number"},"note":{"type":"string"}}}"#,
    );
    registry.put(3, "JSON", r#"{"type":"array"}"#);
    registry.answer(
        "/schemas/guids/01010101-0101-0101-0101-010101010101",
        &json!({"schemaType": "JSON", "schema": r#"{"properties":{"deep":{"properties":{"x":{"type":"boolean"}}}}}"#}),
    );
    kafka.put("orders", 0, framed(1, br#"{"id":1}"#));
    kafka.put("orders", 0, framed(2, br#"{}"#));
    kafka.put("odd", 0, framed(3, br#"{"a":1}"#));
    kafka.put("odd", 0, framed(3, br#"{"a":2}"#));
    kafka.put("odd", 0, framed(99, br#"{"a":3}"#));
    let guid = [1u8; 17];
    kafka.put_full("guids", None, Some(b"{}"), &[(b"__value_schema_id", Some(&guid))], 1);
    let karrow = Karrow::with(&kafka, &["--schema-registry", &registry.url()], |_| {});
    let batch = read(&karrow, "orders", 2);
    assert_eq!(
        payload_type(&batch),
        DataType::Struct(of(&[
            ("id", DataType::Float64),
            ("who", DataType::Struct(of(&[("born", DataType::Date32)]))),
            ("note", DataType::Utf8),
        ]))
    );
    assert_eq!(
        shown(&batch, "payload"),
        ["{id: 1.0, who: null, note: null}", "{id: null, who: null, note: null}"]
    );
    let deep = DataType::Struct(of(&[("x", DataType::Boolean)]));
    assert_eq!(payload_type(&read(&karrow, "guids", 1)), DataType::Struct(of(&[("deep", deep)])));
    // Schemas that say nothing of objects, and ids that nobody knows, are no fault of the data.
    let batch = read(&karrow, "odd", 3);
    assert_eq!(payload_type(&batch), DataType::Struct(of(&[("a", DataType::Int64)])));
    assert_eq!(shown(&batch, "error"), ["null"; 3]);
}
