//! Types that schemas say hold from the first record on, and no value is changed to fit them.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Field, Fields};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::super::column::{LEVELS_MAX, levels, map_of};
use super::*;
use crate::config::columns;
use crate::decode::schemas::{Lookup, Reference, RegisteredSchema, SchemaKind, Schemas};

fn limits() -> RecordLimits {
    RecordLimits::default()
}

/// Columns as pyarrow prints a struct of them.
fn columns_of(text: &str) -> Fields {
    match columns::parse(&format!("struct<{text}>")) {
        Ok(DataType::Struct(fields)) => fields,
        other => panic!("{text}: {other:?}"),
    }
}

fn with(said: StructShape) -> JsonDecoder {
    JsonDecoder::new(SharedShape::said(1_000, said), Projection::All, limits())
}

fn with_columns(text: &str) -> JsonDecoder {
    with(arrow_schema::shape(&columns_of(text), 64).expect("columns"))
}

fn with_schema(text: &str) -> JsonDecoder {
    with(schema::of_user(text, 64).expect("a schema"))
}

fn decode(decoder: &mut JsonDecoder, records: &[&str]) -> (ArrayRef, Vec<(usize, String)>) {
    let values: Vec<_> = records.iter().map(|text| Some(Value::new(text.as_bytes()))).collect();
    let mut bad = Vec::new();
    let array = decoder.decode(&values, &mut bad).expect("no failure of ours");
    (array, bad.into_iter().map(|bad| (bad.row, bad.reject.message)).collect())
}

fn shown(array: &dyn Array) -> Vec<String> {
    let options = FormatOptions::default().with_null("-");
    let formatter = ArrayFormatter::try_new(array, &options).expect("a formatter");
    (0..array.len()).map(|row| formatter.value(row).to_string()).collect()
}

/// The columns as `name: type`, types as Arrow writes them.
fn types(array: &ArrayRef) -> Vec<String> {
    let DataType::Struct(fields) = array.data_type() else { panic!("{}", array.data_type()) };
    assert!(fields.iter().all(|field| field.is_nullable()));
    fields.iter().map(|field| format!("{}: {}", field.name(), field.data_type())).collect()
}

#[test]
fn a_value_is_read_exactly_or_makes_a_bad_row() {
    // Type, value, and how it is shown, or else why not.
    let cases: &[(&str, &str, Result<&str, &str>)] = &[
        ("int8", "-128", Ok("-128")),
        ("int8", "1.0", Ok("1")),
        ("int8", "12e1", Ok("120")),
        ("int8", "128", Err("'128' is beyond Int8")),
        ("int8", "1.5", Err("'1.5' is no integer")),
        ("int8", "\"1\"", Err("a string that should be of type Int8")),
        ("int8", "[1]", Err("an array that should be of type Int8")),
        ("int16", "32767", Ok("32767")),
        ("int16", "-32769", Err("'-32769' is beyond Int16")),
        ("int32", "2147483648", Err("'2147483648' is beyond Int32")),
        ("int64", "-9223372036854775808", Ok("-9223372036854775808")),
        ("int64", "9223372036854775808", Err("'9223372036854775808' is beyond Int64")),
        ("uint8", "255", Ok("255")),
        ("uint8", "-1", Err("'-1' is beyond UInt8")),
        ("uint16", "65535", Ok("65535")),
        ("uint32", "4294967296", Err("'4294967296' is beyond UInt32")),
        ("uint64", "18446744073709551615", Ok("18446744073709551615")),
        ("uint64", "18446744073709551616", Err("'18446744073709551616' is beyond UInt64")),
        ("float", "0.1", Ok("0.1")),
        ("float", "16777217", Err("'16777217' is beyond Float32")),
        ("float", "1e39", Err("'1e39' is beyond Float32")),
        ("float", "1e-60", Err("'1e-60' is beyond Float32")),
        ("double", "1152921504606846976", Ok("1.152921504606847e18")),
        ("double", "-0", Ok("-0.0")),
        ("double", "-0.0", Ok("-0.0")),
        ("float", "-0", Ok("-0.0")),
        ("int64", "-0", Ok("0")),
        ("double", "9007199254740993", Err("'9007199254740993' is beyond Float64")),
        ("double", "1e400", Err("'1e400' is beyond Float64")),
        ("double", "\"NaN\"", Err("a string that should be of type Float64")),
        ("bool", "true", Ok("true")),
        ("bool", "1", Err("a number that should be of type Boolean")),
        ("string", "\"\\u0061\"", Ok("a")),
        ("string", "5", Err("a number that should be of type Utf8")),
        ("decimal128(10, 2)", "12.3400", Ok("12.34")),
        ("decimal128(10, 2)", "\"-0.01\"", Ok("-0.01")),
        (
            "decimal128(10, 2)",
            "12.345",
            Err("'12.345' has more than 10 digits, 2 of them decimals"),
        ),
        ("decimal128(10, 2)", "\"abc\"", Err("'abc' is no number")),
        ("decimal256(50, 0)", "1e49", Ok("10000000000000000000000000000000000000000000000000")),
        ("binary", "\"AP8=\"", Ok("00ff")),
        ("binary", "\"AP8\"", Ok("00ff")),
        ("binary", "\"a!\"", Err("'a!' is no base64")),
        ("fixed_size_binary[2]", "\"AP8=\"", Ok("00ff")),
        ("fixed_size_binary[4]", "\"AP8=\"", Err("'AP8=' has 2 bytes, not 4")),
        ("date32", "\"2024-02-29\"", Ok("2024-02-29")),
        ("date32", "\"2023-02-29\"", Err("'2023-02-29' is no date")),
        ("time32[s]", "\"23:59:59\"", Ok("23:59:59")),
        ("time64[us]", "\"00:00:00.000001\"", Ok("00:00:00.000001")),
        (
            "time64[us]",
            "\"00:00:00.0000001\"",
            Err("'00:00:00.0000001' is finer than microseconds"),
        ),
        ("timestamp[us, UTC]", "\"2024-02-29T12:00:00+02:00\"", Ok("2024-02-29T10:00:00Z")),
        ("timestamp[ms]", "\"2024-02-29 12:00:00.5\"", Ok("2024-02-29T12:00:00.500")),
        ("timestamp[ms, UTC]", "1709200800000", Ok("2024-02-29T10:00:00Z")),
        ("timestamp[ms, UTC]", "0.5", Err("'0.5' is no integer")),
        (
            "timestamp[s, UTC]",
            "\"2024-02-29T12:00:00.5Z\"",
            Err("'2024-02-29T12:00:00.5Z' is finer than seconds"),
        ),
        (
            "timestamp[ns, UTC]",
            "\"2500-01-01T00:00:00Z\"",
            Err("'2500-01-01T00:00:00Z' is out of range"),
        ),
        (
            "timestamp[us]",
            "\"2024-02-29T12:00:00Z\"",
            Err("'2024-02-29T12:00:00Z' is no time without an offset from UTC"),
        ),
        (
            "timestamp[us, UTC]",
            "\"2024-02-29T12:00:00\"",
            Err("'2024-02-29T12:00:00' is no time with an offset from UTC, as Z or +02:00"),
        ),
        ("duration[ms]", "-1500", Ok("-PT1.5S")),
        ("list<int8>", "[1,null,2]", Ok("[1, -, 2]")),
        ("list<int8>", "[1,300]", Err("'300' is beyond Int8")),
        ("list<int8>", "1", Err("a number that should be an array")),
        ("list<list<string>>", "[[\"x\"],[]]", Ok("[[x], []]")),
        ("struct<b: int64>", "{\"b\":1}", Ok("{b: 1}")),
        ("struct<b: int64>", "[]", Err("an array that should be an object")),
        ("map<string, int8>", "{\"x\":1,\"y\":null}", Ok("{x: 1, y: -}")),
        ("map<string, int8>", "{}", Ok("{}")),
        ("map<string, int8>", "\"x\"", Err("a string that should be an object")),
    ];
    for (data_type, value, wanted) in cases {
        let columns = format!("k: string, a: {data_type}");
        let mut decoder = with_columns(&columns);
        let record = format!(r#"{{"a":{value},"k":"x"}}"#);
        let good = r#"{"k":"good"}"#;
        let (array, bad) = decode(&mut decoder, &[good, &record, r#"{"a":null}"#, good]);
        let a = array.as_struct().column(1);
        assert_eq!(a.data_type(), columns_of(&columns)[1].data_type(), "{data_type}");
        match wanted {
            Ok(wanted) => {
                assert_eq!(bad, [], "{data_type} {value}");
                assert_eq!(shown(a)[1], *wanted, "{data_type} {value}");
            }
            Err(why) => {
                assert_eq!(bad, [(1, format!("a: {why}"))], "{data_type} {value}");
                assert!(array.is_null(1), "{data_type} {value}");
            }
        }
        assert_eq!(shown(array.as_struct().column(0))[3], "good", "{data_type} {value}");
        assert!(a.is_null(0) && a.is_null(2) && a.is_null(3), "{data_type} {value}");
    }
}

#[test]
fn reasons_name_the_field_wherever_it_is() {
    let mut decoder = with_columns("a: struct<b: list<struct<c: int8>>>, m: map<string, int8>");
    let (_, bad) = decode(
        &mut decoder,
        &[r#"{"a":{"b":[{"c":1},{"c":999}]}}"#, r#"{"m":{"x\ny":999}}"#, r#"{"m":{"x":1,"x":2}}"#],
    );
    assert_eq!(
        bad,
        [
            (0, "a.b.c: '999' is beyond Int8".to_owned()),
            (1, "m.x\\ny: '999' is beyond Int8".to_owned()),
            (2, "the field 'x' is there twice".to_owned()),
        ]
    );
}

#[test]
fn columns_are_there_before_any_value_and_stay_as_they_are() {
    let text = "z: int64, at: timestamp[us, UTC], price: decimal128(10, 2), tags: list<string>, \
                who: struct<name: string, id: int32>, stock: map<string, int64>";
    let mut decoder = with_columns(text);
    let wanted = DataType::Struct(columns_of(text));
    let (array, bad) = decode(&mut decoder, &[]);
    assert_eq!((array.data_type(), bad.len()), (&wanted, 0));
    let (array, bad) = decode(&mut decoder, &["{}", r#"{"tags":[]}"#, "oops"]);
    assert_eq!((array.data_type(), bad.len()), (&wanted, 1));
    assert_eq!(shown(&array)[1], "{z: -, at: -, price: -, tags: [], who: -, stock: -}");
    // Fields that the schema does not have are kept as text, from the first one on.
    let (array, bad) = decode(
        &mut decoder,
        &[r#"{"z":1}"#, r#"{"new": [1.50],"z":2,"who":{"name":"x","age":3}}"#, r#"{"new":null}"#],
    );
    assert_eq!(bad, []);
    let rows = array.as_struct();
    assert_eq!(rows.column_names(), ["z", "at", "price", "tags", "who", "stock", "_more"]);
    assert_eq!(shown(rows.column(6)), ["-", r#"{"new":[1.50]}"#, r#"{"new":null}"#]);
    assert_eq!(shown(rows.column(4))[1], r#"{name: x, id: -, _more: {"age":3}}"#);
    assert_eq!(decoder.texts(), 3);
    // A part of them, for who wants no more.
    let said = arrow_schema::shape(&columns_of(text), 64).expect("columns");
    let wanted = Projection::new(["who.id", "stock.x"]);
    let mut decoder = JsonDecoder::new(SharedShape::said(1_000, said), wanted, limits());
    let (array, bad) = decode(&mut decoder, &[r#"{"z":"ignored","stock":{"x":1},"who":{"id":2}}"#]);
    assert_eq!((shown(&array), bad.len()), (vec!["{who: {id: 2}, stock: {x: 1}}".to_owned()], 0));
}

#[test]
fn a_users_json_schema_holds_and_leaves_open_what_it_leaves_open() {
    let text = r#"{"type":"object","properties":{
        "id":{"type":"integer"},"ratio":{"type":"number"},"name":{"type":"string"},
        "at":{"type":"string","format":"date-time"},"any":{},
        "who":{"type":"object","properties":{"age":{"type":"integer"}},"additionalProperties":false}}}"#;
    let mut decoder = with_schema(text);
    let (array, bad) = decode(
        &mut decoder,
        &[
            r#"{"id":1.0,"ratio":2,"at":"2024-02-29T00:00:00Z","who":{"age":1e1}}"#,
            r#"{"id":"1"}"#,
            r#"{"id":1.5}"#,
            r#"{"name":5}"#,
            r#"{"at":"yesterday"}"#,
            r#"{"who":[]}"#,
            r#"{"who":{"age":"x"}}"#,
            r#"{"id":null,"ratio":null,"who":null}"#,
        ],
    );
    assert_eq!(
        bad,
        [
            (1, "id: a string that should be an integer".to_owned()),
            (2, "id: '1.5' is no integer".to_owned()),
            (3, "name: a number that should be of type Utf8".to_owned()),
            (4, "at: 'yesterday' is no time".to_owned()),
            (5, "who: an array that should be an object".to_owned()),
            (6, "who.age: a string that should be an integer".to_owned()),
        ]
    );
    let first = types(&array);
    assert_eq!(first[..2], ["id: Int64", "ratio: Float64"]);
    assert_eq!(
        shown(&array)[0],
        "{id: 1, ratio: 2.0, name: -, at: 2024-02-29T00:00:00Z, who: {age: 10}}"
    );
    // What is open is found out, and what the schema allows is never a bad row.
    let (array, bad) = decode(
        &mut decoder,
        &[
            r#"{"any":1,"extra":true,"who":{"age":2,"more":"kept"}}"#,
            r#"{"any":1.5,"id":12345678901234567890,"ratio":9007199254740993,"at":"2024-02-29T00:00:00.123456789Z"}"#,
            r#"{"id":7,"ratio":1.50,"at":"2024-02-29T00:00:00Z"}"#,
            r#"{"id":"still no number"}"#,
        ],
    );
    assert_eq!(bad, [(3, "id: a string that should be a number".to_owned())]);
    assert_eq!(
        types(&array),
        [
            "id: Utf8",
            "ratio: Utf8",
            "name: Utf8",
            "at: Utf8",
            "any: Float64",
            "who: Struct(\"age\": Int64, \"_more\": Utf8)",
            "extra: Boolean",
        ]
    );
    assert_eq!(
        shown(&array)[..3],
        [
            r#"{id: -, ratio: -, name: -, at: -, any: 1.0, who: {age: 2, _more: {"more":"kept"}}, extra: true}"#,
            "{id: 12345678901234567890, ratio: 9007199254740993, name: -, at: 2024-02-29T00:00:00.123456789Z, any: 1.5, who: -, extra: -}",
            "{id: 7, ratio: 1.50, name: -, at: 2024-02-29T00:00:00Z, any: -, who: -, extra: -}",
        ]
    );
}

#[test]
fn timestamps_of_karrow_toml_hold_beside_a_schema() {
    let said = arrow_schema::shape(&columns_of("at: string, to: string"), 64).expect("columns");
    let mut decoder = with(said).with_timestamps(Projection::new(["at"]));
    let record = r#"{"at":"2024-02-29T00:00:00Z","to":"2024-02-29T00:00:00Z"}"#;
    let (array, bad) = decode(&mut decoder, &[record]);
    assert_eq!((bad.len(), &types(&array)[1]), (0, &"to: Utf8".to_owned()));
    assert!(types(&array)[0].starts_with("at: Timestamp"), "{:?}", types(&array));
}

#[derive(Default)]
struct Known {
    schemas: Mutex<HashMap<u32, RegisteredSchema>>,
}

impl Known {
    fn put(&self, id: u32, kind: SchemaKind, text: &str, references: &[(&str, &str)]) {
        let references = references
            .iter()
            .map(|(name, text)| Reference { name: (*name).into(), text: (*text).into() })
            .collect();
        let key = SchemaKey::Id(id);
        self.schemas
            .lock()
            .insert(id, RegisteredSchema { key, kind, text: text.into(), references });
    }
}

impl Schemas for Known {
    fn look_up(&self, key: &SchemaKey) -> Lookup {
        match key {
            SchemaKey::Guid(_) => Lookup::Unfetched,
            SchemaKey::Id(id) => match self.schemas.lock().get(id) {
                Some(schema) => Lookup::Known(Arc::new(schema.clone())),
                None => Lookup::Unknown("no such schema".to_owned()),
            },
        }
    }
}

fn of_writers(schemas: &Arc<Known>) -> JsonDecoder {
    JsonDecoder::new(SharedShape::new(1_000), Projection::All, limits())
        .with_writers(Writers::new("t".into(), schemas.clone()))
}

fn framed(id: u32, text: &str) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], text.as_bytes()].concat()
}

fn decode_framed(
    decoder: &mut JsonDecoder,
    records: &[(u32, &str)],
) -> (ArrayRef, Vec<(usize, String)>) {
    let records: Vec<Vec<u8>> = records.iter().map(|(id, text)| framed(*id, text)).collect();
    let values: Vec<_> = records.iter().map(|bytes| Some(Value::new(bytes))).collect();
    let mut bad = Vec::new();
    let array = decoder.decode(&values, &mut bad).expect("no failure of ours");
    (array, bad.into_iter().map(|bad| (bad.row, bad.reject.message)).collect())
}

#[test]
fn writers_schemas_give_types_and_unite() {
    let schemas = Arc::new(Known::default());
    schemas.put(
        1,
        SchemaKind::Json,
        r#"{"type":"object","properties":{"n":{"type":"integer"},"at":{"type":"string","format":"date-time"},
            "who":{"$ref":"person.json"}}}"#,
        &[("person.json", r#"{"type":"object","properties":{"name":{"type":"string"}}}"#)],
    );
    schemas.put(
        2,
        SchemaKind::Json,
        r#"{"type":"object","properties":{"n":{"type":"number"},"x":{"type":"boolean"}}}"#,
        &[],
    );
    let mut decoder = of_writers(&schemas);
    let (array, bad) = decode_framed(&mut decoder, &[(1, "{}")]);
    assert_eq!(bad, []);
    let time = "at: Timestamp(µs, \"UTC\")";
    assert_eq!(types(&array), ["n: Int64", time, "who: Struct(\"name\": Utf8)"]);
    let (array, bad) = decode_framed(&mut decoder, &[(1, r#"{"n":1}"#), (2, "{}"), (1, "{}")]);
    assert_eq!(bad, []);
    assert_eq!(types(&array), ["n: Float64", time, "who: Struct(\"name\": Utf8)", "x: Boolean"]);
    // They are a beginning, no law: columns widen as without them.
    let (array, bad) = decode_framed(
        &mut decoder,
        &[
            (1, r#"{"at":"soon","n":"many","extra":1}"#),
            (2, r#"{"at":"2024-02-29T00:00:00Z","n":1}"#),
        ],
    );
    assert_eq!(bad, []);
    assert_eq!(
        shown(&array),
        [
            "{n: many, at: soon, who: -, x: -, extra: 1}",
            "{n: 1, at: 2024-02-29T00:00:00Z, who: -, x: -, extra: -}",
        ]
    );
}

#[test]
fn schemas_that_give_no_types_do_no_harm() {
    let schemas = Arc::new(Known::default());
    schemas.put(3, SchemaKind::Json, r#"{"type":"string"}"#, &[]);
    schemas.put(4, SchemaKind::Json, r##"{"$ref":"#/nowhere"}"##, &[]);
    schemas.put(5, SchemaKind::Avro, r#""string""#, &[]);
    schemas.put(
        6,
        SchemaKind::Json,
        r#"{"type":"object","properties":{"b":{"type":"string"}},"additionalProperties":false}"#,
        &[],
    );
    let mut decoder = of_writers(&schemas);
    for id in [3, 4, 5, 99] {
        let (array, bad) = decode_framed(&mut decoder, &[(id, r#"{"a":1}"#), (id, "oops")]);
        assert_eq!((types(&array), bad.len()), (vec!["a: Int64".to_owned()], 1), "{id}");
    }
    // Bytes that only look as if they named a schema bring no columns.
    let (array, bad) = decode_framed(&mut decoder, &[(6, "oops"), (3, "{}")]);
    assert_eq!((types(&array), bad.len()), (vec!["a: Int64".to_owned()], 1));
    let (array, bad) = decode_framed(&mut decoder, &[(6, "oops"), (6, "{}")]);
    assert_eq!((types(&array), bad.len()), (vec!["a: Int64".to_owned(), "b: Utf8".to_owned()], 1));
    // The registry knows it later.
    schemas.put(99, SchemaKind::Json, r#"{"properties":{"late":{"type":"integer"}}}"#, &[]);
    let (array, _) = decode_framed(&mut decoder, &[(99, "{}")]);
    assert_eq!(types(&array)[2..], ["late: Int64"]);
}

#[test]
fn a_closed_schema_of_a_writer_keeps_other_fields_as_text() {
    let schemas = Arc::new(Known::default());
    let schema = |field: &str| {
        format!(
            r#"{{"type":"object","properties":{{"{field}":{{"type":"string"}}}},"additionalProperties":false}}"#
        )
    };
    schemas.put(1, SchemaKind::Json, &schema("a"), &[]);
    schemas.put(2, SchemaKind::Json, &schema("b"), &[]);
    let mut decoder = of_writers(&schemas);
    let (array, bad) =
        decode_framed(&mut decoder, &[(1, r#"{"a":"x"}"#), (2, r#"{"b":"y"}"#), (1, r#"{"c":1}"#)]);
    assert_eq!(bad, []);
    assert_eq!(
        shown(&array),
        ["{a: x, b: -, _more: -}", "{a: -, b: y, _more: -}", "{a: -, b: -, _more: {\"c\":1}}"]
    );
}

#[test]
fn schemas_in_headers_are_asked_for() {
    let schemas = Arc::new(Known::default());
    schemas.put(1, SchemaKind::Json, r#"{"properties":{"a":{"type":"integer"}}}"#, &[]);
    let mut decoder = of_writers(&schemas);
    let guid = [[1].as_slice(), &[7; 16]].concat();
    let header = [0, 0, 0, 0, 1];
    let values = [
        Some(Value { bytes: b"{}", schema_header: Some(&guid) }),
        Some(Value { bytes: b"{}", schema_header: Some(&header) }),
        Some(Value::new(b"{}")),
        None,
    ];
    assert!(decoder.reads_schemas());
    assert_eq!(decoder.unfetched(&values), [SchemaKey::Guid([7; 16])]);
    let mut bad = Vec::new();
    let array = decoder.decode(&values, &mut bad).expect("no failure of ours");
    assert_eq!((types(&array), bad.len()), (vec!["a: Int64".to_owned()], 0));
    // Without a registry nobody looks.
    let plain = with_columns("a: int64");
    assert!(!plain.reads_schemas() && plain.unfetched(&values).is_empty());
}

/// Whether a value fits a type, told in another way than the decoder does.
fn fits(data_type: &DataType, value: &Json) -> bool {
    let number = |min: f64, max: f64| {
        value.as_f64().is_some_and(|value| value.fract() == 0.0 && (min..=max).contains(&value))
    };
    match (data_type, value) {
        (_, Json::Null) => true,
        (DataType::Int8, _) => number(-128.0, 127.0),
        (DataType::UInt16, _) => number(0.0, 65_535.0),
        (DataType::Utf8, value) => value.is_string(),
        (DataType::Boolean, value) => value.is_boolean(),
        (DataType::Decimal128(..), Json::Number(_)) => {
            value.as_f64().is_some_and(|value| (value * 4.0).fract() == 0.0)
        }
        (DataType::List(item), Json::Array(items)) => {
            items.iter().all(|value| fits(item.data_type(), value))
        }
        (DataType::Map(entries, _), Json::Object(object)) => match entries.data_type() {
            DataType::Struct(pair) => object.values().all(|value| fits(pair[1].data_type(), value)),
            _ => false,
        },
        (DataType::Struct(fields), Json::Object(object)) => fields.iter().all(|field| {
            object.get(field.name()).is_none_or(|value| fits(field.data_type(), value))
        }),
        _ => false,
    }
}

/// A value of a column as JSON.
fn json_of(array: &dyn Array, row: usize) -> Json {
    if array.is_null(row) {
        return Json::Null;
    }
    match array.data_type() {
        DataType::Struct(fields) => fields
            .iter()
            .zip(array.as_struct().columns())
            .filter(|(_, column)| column.is_valid(row))
            .map(|(field, column)| (field.name().clone(), json_of(column, row)))
            .collect(),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            (0..items.len()).map(|item| json_of(&items, item)).collect()
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let names = entries.column(0).as_string::<i32>();
            (0..entries.len())
                .map(|entry| (names.value(entry).to_owned(), json_of(entries.column(1), entry)))
                .collect()
        }
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::Boolean => array.as_boolean().value(row).into(),
        _ => {
            let text = shown(&array.slice(row, 1)).remove(0);
            text.parse::<f64>().expect("a number").into()
        }
    }
}

/// Numbers as doubles, and without what a struct shows of nulls.
fn plain(value: &Json) -> Json {
    match value {
        Json::Number(number) => number.as_f64().into(),
        Json::Array(items) => items.iter().map(plain).collect(),
        Json::Object(object) => {
            object.iter().map(|(name, value)| (name.clone(), plain(value))).collect()
        }
        other => other.clone(),
    }
}

fn without_null_fields(value: &Json, data_type: &DataType) -> Json {
    match (value, data_type) {
        (Json::Object(object), DataType::Struct(fields)) => fields
            .iter()
            .filter_map(|field| {
                let value = object.get(field.name()).filter(|value| !value.is_null())?;
                Some((field.name().clone(), without_null_fields(value, field.data_type())))
            })
            .collect(),
        (Json::Array(items), DataType::List(item)) => {
            items.iter().map(|value| without_null_fields(value, item.data_type())).collect()
        }
        (value, _) => plain(value),
    }
}

fn any_value() -> impl Strategy<Value = Json> {
    let scalar = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        (-300i64..70_000).prop_map(Json::from),
        (-300i64..300).prop_map(|value| json!(value as f64 / 4.0)),
        "[a-c]{0,3}".prop_map(Json::from),
    ];
    scalar.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Json::from),
            prop::collection::btree_map("[a-f]", inner, 0..3)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// A record comes out as it was or is a bad row, whatever lies beside it.
    #[test]
    fn nothing_is_changed_to_fit(
        records in prop::collection::vec(prop::collection::btree_map("[a-f]", any_value(), 0..5), 1..8),
    ) {
        let fields = columns_of(
            "a: int8, b: decimal128(8, 2), c: list<uint16>, d: map<string, bool>, e: struct<a: string, b: list<int8>>, f: string",
        );
        let data_type = DataType::Struct(fields.clone());
        let records: Vec<Json> = records.into_iter().map(|record| record.into_iter().collect()).collect();
        let texts: Vec<String> = records.iter().map(Json::to_string).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut decoder = with(arrow_schema::shape(&fields, 64).expect("columns"));
        let (array, bad) = decode(&mut decoder, &texts);
        let wrong: Vec<usize> = bad.iter().map(|(row, _)| *row).collect();
        let wanted: Vec<usize> = (0..records.len()).filter(|row| !fits(&data_type, &records[*row])).collect();
        prop_assert_eq!(&wrong, &wanted, "{:?} {:?}", texts, bad);
        for (row, record) in records.iter().enumerate().filter(|(row, _)| !wrong.contains(row)) {
            let mut got = json_of(&array, row);
            // Other fields of `e` are kept as text beside it.
            if let Some(Json::Object(e)) = got.get_mut("e") {
                e.remove("_more");
            }
            prop_assert_eq!(got, without_null_fields(record, &data_type), "{:?}", texts);
        }
    }
}

#[test]
fn what_is_said_to_nest_deeply_stays_openable() {
    // A map is two levels of Arrow's.
    for maps in [20, 28, 29, 30, 31, 40] {
        let said = (0..maps).fold(r#"{"type":"integer"}"#.to_owned(), |inner, _| {
            format!(r#"{{"type":"object","additionalProperties":{inner}}}"#)
        });
        let text = format!(r#"{{"type":"object","properties":{{"a":{said}}}}}"#);
        let mut decoder = with_schema(&text);
        let record = format!("{}1{}", r#"{"a":"#.repeat(maps + 1), "}".repeat(maps + 1));
        let (array, bad) = decode(&mut decoder, &[&record]);
        assert_eq!(bad, [], "{maps}");
        assert!(levels(array.data_type()) <= LEVELS_MAX, "{maps}");

        let inner = (0..maps).fold(DataType::Int64, |inner, _| map_of(DataType::Utf8, inner));
        let columns = Fields::from(vec![Field::new("a", inner, true)]);
        let all = levels(&DataType::Struct(columns.clone()));
        assert_eq!(arrow_schema::shape(&columns, 64).is_ok(), all <= LEVELS_MAX, "{maps}");
    }
    // Values of maps whose types are found out.
    let text = r#"{"type":"object","properties":{"a":{"additionalProperties":
        {"properties":{"b":{"type":"object"}}}}}}"#;
    let mut decoder = with_schema(text);
    let deep = format!("{}1{}", r#"{"c":"#.repeat(70), "}".repeat(70));
    let (array, bad) = decode(&mut decoder, &[&format!(r#"{{"a":{{"k":{{"b":{deep}}}}}}}"#)]);
    assert_eq!((bad, levels(array.data_type())), (vec![], LEVELS_MAX));
}
