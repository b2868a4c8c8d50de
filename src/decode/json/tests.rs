//! Values that went in come out.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use proptest::prelude::*;
use serde_json::Value as Json;

use super::super::column::{LEVELS_MAX, levels};
use super::*;
use crate::error::ErrorKind;

/// What readers of Arrow IPC make of a column.
fn opens(array: &ArrayRef) {
    assert!(levels(array.data_type()) <= LEVELS_MAX, "{}", levels(array.data_type()));
    let batch = RecordBatch::try_from_iter([("payload", array.clone())]).expect("a batch");
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
    writer.write(&batch).expect("written");
    let stream = writer.into_inner().expect("finished");
    let mut reader = StreamReader::try_new(stream.as_slice(), None).expect("an open stream");
    assert_eq!(reader.next().expect("a batch").expect("read"), batch);
}

fn decoder() -> JsonDecoder {
    JsonDecoder::new(SharedShape::new(1000), Projection::All, RecordLimits::default())
}

fn decode(decoder: &mut JsonDecoder, records: &[Option<&str>]) -> (ArrayRef, Vec<(usize, String)>) {
    let values: Vec<_> =
        records.iter().map(|record| record.map(|record| Value::new(record.as_bytes()))).collect();
    let mut bad = Vec::new();
    let array = decoder.decode(&values, &mut bad).expect("no failure of ours");
    (array, bad.into_iter().map(|bad| (bad.row, bad.reject.message)).collect())
}

/// A row as JSON again.
fn show(array: &dyn Array, row: usize) -> Json {
    if array.is_null(row) {
        return Json::Null;
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::Binary => {
            String::from_utf8_lossy(array.as_binary::<i32>().value(row)).into_owned().into()
        }
        DataType::Struct(fields) => fields
            .iter()
            .zip(array.as_struct().columns())
            .map(|(field, column)| (field.name().clone(), show(column, row)))
            .collect(),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            (0..items.len()).map(|item| show(&items, item)).collect()
        }
        other => panic!("{other}"),
    }
}

/// What a column of `data_type` shows of `value`; `None` where nothing of it may be lost.
fn expected(value: Option<&Json>, data_type: &DataType) -> Option<Json> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Some(Json::Null) };
    Some(match (data_type, value) {
        (DataType::Boolean, Json::Bool(_)) | (DataType::Int64, Json::Number(_)) => value.clone(),
        (DataType::Float64, Json::Number(number)) => number.as_f64()?.into(),
        (DataType::Utf8, Json::String(_)) => value.clone(),
        (DataType::Utf8, _) => value.to_string().into(),
        (DataType::List(item), Json::Array(items)) => Json::Array(
            items
                .iter()
                .map(|value| expected(Some(value), item.data_type()))
                .collect::<Option<_>>()?,
        ),
        (DataType::Struct(fields), Json::Object(object)) => {
            let known = |name: &String| fields.iter().any(|field| field.name() == name);
            if object.iter().any(|(name, value)| !known(name) && !is_empty(value)) {
                return None;
            }
            fields
                .iter()
                .map(|field| {
                    Some((
                        field.name().clone(),
                        expected(object.get(field.name()), field.data_type())?,
                    ))
                })
                .collect::<Option<_>>()?
        }
        _ => return None,
    })
}

/// Nothing that a column could show.
fn is_empty(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Array(items) => items.iter().all(is_empty),
        Json::Object(object) => object.values().all(is_empty),
        _ => false,
    }
}

#[test]
fn values_arrive_as_they_were() {
    let cases: &[(&[&str], &[&str])] = &[
        (
            &[r#"{"a":1,"b":"x"}"#, r#"{"b":"y","a":2}"#],
            &[r#"{"a":1,"b":"x"}"#, r#"{"a":2,"b":"y"}"#],
        ),
        (
            &[r#" { "a" : 1 } "#, r#"{"b":true}"#],
            &[r#"{"a":1,"b":null}"#, r#"{"a":null,"b":true}"#],
        ),
        (&[r#"{"a":1}"#, r#"{"a":1.5}"#], &[r#"{"a":1.0}"#, r#"{"a":1.5}"#]),
        (
            &[r#"{"a":1.50}"#, r#"{"a":9007199254740993}"#],
            &[r#"{"a":"1.50"}"#, r#"{"a":"9007199254740993"}"#],
        ),
        (
            &[r#"{"a":9007199254740993}"#, r#"{"a":-1}"#],
            &[r#"{"a":9007199254740993}"#, r#"{"a":-1}"#],
        ),
        (&[r#"{"a":"x"}"#, r#"{"a":{ "b":[1] }}"#], &[r#"{"a":"x"}"#, r#"{"a":"{ \"b\":[1] }"}"#]),
        (
            &[r#"{"a":[1,null]}"#, r#"{"a":[]}"#, "{}"],
            &[r#"{"a":[1,null]}"#, r#"{"a":[]}"#, r#"{"a":null}"#],
        ),
        (
            &[r#"{"a":[{"b":1},null,{"c":"x"}]}"#, r#"{"a":[{"b":2}]}"#],
            &[r#"{"a":[{"b":1,"c":null},null,{"b":null,"c":"x"}]}"#, r#"{"a":[{"b":2,"c":null}]}"#],
        ),
        (&[r#"{"\u0061":"\ud83d\ude00\n"}"#, r#"{"a":"é"}"#], &[r#"{"a":"😀\n"}"#, r#"{"a":"é"}"#]),
        (
            &[r#"{"a\\b":1,"c":2}"#, r#"{"c":3,"a\\b":4}"#],
            &[r#"{"a\\b":1,"c":2}"#, r#"{"a\\b":4,"c":3}"#],
        ),
    ];
    for (records, wanted) in cases {
        let records: Vec<Option<&str>> = records.iter().copied().map(Some).collect();
        let (array, bad) = decode(&mut decoder(), &records);
        assert_eq!(bad, [], "{records:?}");
        for (row, wanted) in wanted.iter().enumerate() {
            let wanted: Json = serde_json::from_str(wanted).expect("JSON");
            assert_eq!(show(&array, row), wanted, "{records:?}");
        }
    }
}

#[test]
fn doubles_keep_the_sign_of_zero() {
    let (array, bad) = decode(&mut decoder(), &[Some(r#"{"a":-0,"b":-0}"#), Some(r#"{"a":1.5}"#)]);
    assert_eq!(bad, []);
    assert_eq!(show(&array, 0).to_string(), r#"{"a":-0.0,"b":0}"#);
}

#[test]
fn bad_records_say_what_is_wrong() {
    let cases = [
        ("", "ends inside of a JSON object"),
        ("{", "ends inside of an object"),
        (r#"{"a":1"#, "ends inside of an object"),
        (r#"{"a":"x"#, "ends inside of a string"),
        (r#"{"a":1,}"#, "not JSON: '}' at byte 7 of an object"),
        (r#"{"a":tru}"#, "not JSON: 't' at byte 5 of a word"),
        (r#"{"a":01}"#, "not JSON: '0' at byte 5 of a number"),
        (r#"{"a":1} x"#, "more than one JSON value: the first ends before byte 8"),
        (r#"{"a":1}{"a":2}"#, "more than one JSON value: the first ends before byte 7"),
        (r#"{"a":1,"a":2}"#, "the field 'a' is there twice"),
        (r#"{"new":1,"a":{"x":1,"x":2}}"#, "the field 'x' is there twice"),
        ("[1]", "an array, not a JSON object"),
        ("null", "null, not a JSON object"),
        ("3", "a number, not a JSON object"),
        (" \"a\" ", "a string, not a JSON object"),
        ("false", "a boolean, not a JSON object"),
        ("notjson", "not JSON: 'n' at byte 0 of a word"),
        ("true story", "not JSON: 's' at byte 5 behind a boolean"),
        ("nullx", "not JSON: 'x' at byte 4 behind null"),
        ("2024-02-29", "not JSON: '-' at byte 4 behind a number"),
        ("\"abc", "ends inside of a string"),
        ("[1,]", "not JSON: ']' at byte 3 of a value"),
        ("[1", "ends inside of an array"),
        ("x", "not JSON: 'x' at byte 0 of a JSON object"),
    ];
    for (text, why) in cases {
        let good = r#"{"a":1,"b":["x"]}"#;
        let (array, bad) = decode(&mut decoder(), &[Some(good), Some(text), None, Some(good)]);
        assert_eq!(bad, [(1, why.to_owned())], "{text}");
        let good: Json = serde_json::from_str(good).expect("JSON");
        assert_eq!([show(&array, 0), show(&array, 3)], [good.clone(), good], "{text}");
        assert!(array.is_null(1) && array.is_null(2), "{text}");
    }
    let mut bad = Vec::new();
    let values = [Some(Value::new(b"{\"a\":\"\xff\"}"))];
    decoder().decode(&values, &mut bad).expect("no failure of ours");
    assert_eq!(bad.first().map(|bad| bad.reject.message.as_str()), Some("no UTF-8"));
}

#[test]
fn objects_in_which_nothing_can_be_seen_come_as_bytes() {
    let mut decoder = decoder();
    let (array, bad) = decode(&mut decoder, &[Some("{}"), Some(r#"{"a":[]}"#), None, Some("[")]);
    assert_eq!((array.data_type(), bad.len()), (&DataType::Binary, 1));
    assert_eq!(show(&array, 1), Json::from(r#"{"a":[]}"#));
    assert!(array.is_null(2) && array.is_null(3));
    let (array, _) = decode(&mut decoder, &[Some(r#"{"a":[1]}"#)]);
    assert_eq!(show(&array, 0).to_string(), r#"{"a":[1]}"#);
}

#[test]
fn fields_beyond_the_limit_stay_readable() {
    let mut decoder =
        JsonDecoder::new(SharedShape::new(2), Projection::All, RecordLimits::default());
    let (array, bad) = decode(
        &mut decoder,
        &[
            Some(r#"{"a":1,"b":2}"#),
            Some(r#"{"c": 3,"a":4,"d":{"e" :5}}"#),
            Some(r#"{"c":1,"c":2}"#),
        ],
    );
    assert_eq!(bad, [(2, "the field 'c' is there twice".to_owned())]);
    assert_eq!(show(&array, 0).to_string(), r#"{"a":1,"b":2,"_more":null}"#);
    assert_eq!(
        show(&array, 1).to_string(),
        r#"{"a":4,"b":null,"_more":"{\"c\":3,\"d\":{\"e\" :5}}"}"#
    );
    assert_eq!(decoder.texts(), 2);
}

#[test]
fn a_topic_of_maps_stays_within_the_limits() {
    let mut decoder =
        JsonDecoder::new(SharedShape::new(50), Projection::All, RecordLimits::default());
    for batch in 0..20 {
        let records: Vec<String> =
            (0..100).map(|row| format!(r#"{{"key-{batch}-{row}":{row}}}"#)).collect();
        let records: Vec<Option<&str>> =
            records.iter().map(|record| Some(record.as_str())).collect();
        let (array, bad) = decode(&mut decoder, &records);
        assert_eq!((bad.len(), array.as_struct().num_columns()), (0, 51));
        let last = show(&array, 99);
        assert_eq!(last["_more"], format!(r#"{{"key-{batch}-99":99}}"#), "{batch}");
    }
}

#[test]
fn only_what_is_wanted_is_there() {
    let wanted = Projection::new(["b", "c.d", "later"]);
    let mut decoder = JsonDecoder::new(SharedShape::new(100), wanted, RecordLimits::default());
    let (array, bad) = decode(
        &mut decoder,
        &[Some(r#"{"a":[1,{}],"b":2,"c":{"d":3,"e":4}}"#), Some(r#"{"a":[1}"#)],
    );
    assert_eq!((show(&array, 0).to_string().as_str(), bad.len()), (r#"{"b":2,"c":{"d":3}}"#, 1));
}

#[test]
fn strings_are_times_only_where_that_is_said() {
    let times = Projection::new(["at", "in.at"]);
    let mut decoder =
        JsonDecoder::new(SharedShape::new(100), Projection::All, RecordLimits::default())
            .with_timestamps(times);
    let (array, bad) = decode(
        &mut decoder,
        &[
            Some(
                r#"{"at":"2026-11-21T15:00:00.000001+01:00","in":{"at":["1969-12-31T23:59:59Z"]},"to":"2026-11-21T15:00:00Z"}"#,
            ),
            Some(r#"{"at":"yesterday"}"#),
            Some(r#"{"at":"2026-11-21T15:00:00.0000001Z"}"#),
            Some(r#"{"at":5}"#),
            Some(r#"{"at":null}"#),
            Some(r#"{"at":"2016-12-31T23:59:60Z"}"#),
            Some(r#"{"at":"2026-11-21T14:00:00.00000100000Z"}"#),
        ],
    );
    let why: Vec<(usize, &str)> = bad.iter().map(|(row, why)| (*row, why.as_str())).collect();
    assert_eq!(
        why,
        [
            (1, "'yesterday' is no time"),
            (2, "'2026-11-21T15:00:00.0000001Z' is finer than microseconds"),
            (3, "a time that is not in a string"),
            (5, "'2016-12-31T23:59:60Z' is a leap second"),
        ]
    );
    let row = array.as_struct();
    let at = row.column_by_name("at").expect("a column").as_primitive::<TimestampMicrosecondType>();
    assert_eq!([at.value(0), at.value(6)], [1_795_269_600_000_001; 2]);
    let inner =
        row.column_by_name("in").expect("a column").as_struct().column(0).as_list::<i32>().value(0);
    assert_eq!(inner.as_primitive::<TimestampMicrosecondType>().value(0), -1_000_000);
    assert_eq!(
        show(row.column_by_name("to").expect("a column"), 0),
        Json::from("2026-11-21T15:00:00Z")
    );
}

#[test]
fn fields_that_are_there_twice_are_found_where_they_are_decoded() {
    let record = r#"{"a":{"b":1,"b":2},"c":1}"#;
    let first = r#"{"a":{"b":1},"c":1}"#;
    let (_, bad) = decode(&mut decoder(), &[Some(first), Some(record)]);
    assert_eq!(bad, [(1, "the field 'b' is there twice".to_owned())]);
    // Not where nobody wants them.
    let wanted = Projection::new(["c"]);
    let mut decoder = JsonDecoder::new(SharedShape::new(100), wanted, RecordLimits::default());
    let (_, bad) = decode(&mut decoder, &[Some(first), Some(record)]);
    assert_eq!(bad, []);
    // Text has both.
    let (array, bad) = decode(&mut self::decoder(), &[Some(r#"{"a":"x"}"#), Some(record)]);
    assert_eq!(bad.len(), 1, "a new field: the whole record is looked at");
    assert!(array.is_null(1));
    let (array, bad) = decode(&mut self::decoder(), &[Some(r#"{"a":"x","c":1}"#), Some(record)]);
    assert_eq!((show(&array, 1)["a"].clone(), bad), (Json::from(r#"{"b":1,"b":2}"#), vec![]));
}

#[test]
fn a_registrys_header_is_passed_over() {
    let mut bad = Vec::new();
    let values = [
        Some(Value::new(b"\0\0\0\0\x07{\"a\":1}")),
        Some(Value::new(b"\x010123456789abcdef{\"a\":2}")),
        Some(Value::new(b"{\"a\":3}")),
        Some(Value::new(b"\0\0\0")),
    ];
    let array = decoder().decode(&values, &mut bad).expect("no failure of ours");
    let rows: Vec<String> = (0..3).map(|row| show(&array, row).to_string()).collect();
    assert_eq!(rows, [r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":3}"#]);
    assert_eq!(
        bad.first().map(|bad| bad.reject.message.as_str()),
        Some("ends inside of a registry's header")
    );
}

#[test]
fn one_record_may_not_ask_for_too_much() {
    let limits = RecordLimits { elements_max: 100, bytes_max: 1000, depth_max: 64 };
    let mut decoder = JsonDecoder::new(SharedShape::new(100), Projection::All, limits);
    let many = format!(r#"{{"a":[{}1]}}"#, "1,".repeat(100));
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(1000));
    let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(90), "]".repeat(90));
    let (array, bad) = decode(&mut decoder, &[Some(&many), Some(&long), Some(&deep)]);
    let rows: Vec<usize> = bad.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows, [0, 1]);
    assert!(
        show(&array, 2).to_string().contains("[1]"),
        "what is too deep is text: {}",
        show(&array, 2)
    );
}

#[test]
fn what_nests_deeply_stays_openable() {
    for depth in [56, 57, 58, 59, 60, 61, 63, 64, 65, 1_000] {
        let lists = format!(r#"{{"a":{}1{}}}"#, "[".repeat(depth), "]".repeat(depth));
        let objects = format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        for record in [lists, objects] {
            let mut decoder = decoder();
            let (array, bad) = decode(&mut decoder, &[Some(&record), None]);
            assert_eq!(bad, [], "{record}");
            opens(&array);
            // No value is lost.
            let shown = show(&array, 0).to_string().replace(['\\', '"'], "");
            assert_eq!(shown, record.replace('"', ""), "{depth}");
            let (array, _) = decode(&mut decoder, &[Some(r#"{"b":1}"#)]);
            opens(&array);
        }
    }
}

#[test]
fn what_is_too_deep_for_columns_is_counted() {
    let limits = RecordLimits { depth_max: 2, ..RecordLimits::default() };
    let mut decoder = JsonDecoder::new(SharedShape::new(100), Projection::All, limits);
    let (array, bad) = decode(
        &mut decoder,
        &[
            Some(r#"{"a":{"b":{"c":1}},"l":[[1],[]],"t":{}}"#),
            // What is text for another reason, or no container, is not.
            Some(r#"{"a":{"b":"x"},"l":[2],"t":"x"}"#),
            // Widens the columns, which begins the batch anew.
            Some(r#"{"a":{"b":null},"new":{"x":1}}"#),
        ],
    );
    assert_eq!(bad, []);
    assert_eq!(show(&array, 0)["l"], serde_json::json!(["[1]", "[]"]));
    assert_eq!(show(&array, 0)["a"]["b"], r#"{"c":1}"#);
    assert_eq!(decoder.texts(), 3);
    decode(&mut decoder, &[Some(r#"{"a":{"b":{}}}"#), Some(r#"{"l":null}"#)]);
    assert_eq!(decoder.texts(), 4);
}

#[test]
fn many_rows_of_many_columns_are_too_much_for_a_batch() {
    let mut decoder = decoder();
    let fields: Vec<String> = (0..999).map(|field| format!(r#""f{field}":1"#)).collect();
    let wide = format!("{{{}}}", fields.join(","));
    decode(&mut decoder, &[Some(&wide)]);
    let empty = vec![Some(Value::new(b"{}")); 50_000];
    let error = decoder.decode(&empty, &mut Vec::new()).expect_err("too much");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    // Tombstones are rows as well.
    decoder.decode(&vec![None; 50_000], &mut Vec::new()).expect_err("too much");
    // Half as many are not.
    let (array, bad) = decode(&mut decoder, &vec![Some("{}"); 25_000]);
    assert_eq!((array.len(), bad.len()), (25_000, 0));

    // The columns are found out only now.
    let mut decoder = self::decoder();
    let mut values = empty;
    values.push(Some(Value::new(wide.as_bytes())));
    let error = decoder.decode(&values, &mut Vec::new()).expect_err("too much");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    let (array, bad) = decode(&mut decoder, &[Some(&wide), Some("{}")]);
    assert_eq!((show(&array, 0)["f998"].clone(), bad.len()), (1.into(), 0));
}

#[test]
fn items_take_their_room_before_they_are_there() {
    let fields: Vec<String> = (0..990).map(|field| format!(r#""f{field}":1"#)).collect();
    let wide = format!("{{{}}}", fields.join(","));
    for (first, item) in [
        (format!(r#"{{"l":[{wide}]}}"#), "null"),
        (format!(r#"{{"l":[{{"w":{wide}}}]}}"#), "{}"),
        (format!(r#"{{"l":[{{"w":{wide}}}]}}"#), "null"),
    ] {
        let list = |count: usize| format!(r#"{{"l":[{}]}}"#, vec![item; count].join(","));
        let mut decoder = decoder();
        decode(&mut decoder, &[Some(&first)]);
        let (_, bad) = decode(&mut decoder, &[Some(&list(200_000)), Some(&first)]);
        assert_eq!(bad, [(0, "more than the bytes one record may have".to_owned())]);
        // Each record is within its limits, all of them together are not.
        let record = list(8_000);
        let values = vec![Some(Value::new(record.as_bytes())); 8];
        let error = decoder.decode(&values, &mut Vec::new()).expect_err("0.5 GB");
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        let (array, bad) = decode(&mut decoder, &[Some(&record), Some(&first)]);
        assert_eq!((array.len(), bad.len()), (2, 0));
    }
    // Nobody wants them.
    let mut decoder =
        JsonDecoder::new(SharedShape::new(1000), Projection::new(["x"]), RecordLimits::default());
    let list = format!(r#"{{"l":[{wide}{}],"x":1}}"#, ",null".repeat(200_000));
    assert_eq!(decode(&mut decoder, &[Some(&list)]).1, []);
}

fn json() -> impl Strategy<Value = Json> {
    let name = prop_oneof!["[a-d]", "[ä\"\\\\\n]"];
    let scalar = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        (-9i64..9).prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        (-1e300..1e300f64).prop_map(Json::from),
        any::<String>().prop_map(Json::from),
    ];
    let value = scalar.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| map.into_iter().collect()),
        ]
    });
    prop::collection::btree_map(name, value, 0..5).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Any mixture of good and bad records gives exactly the good values, in batches of any size.
    #[test]
    fn every_value_comes_back(
        records in prop::collection::vec((json(), prop::option::weighted(0.3, 0usize..40)), 0..20),
        batch_size in 1usize..20,
    ) {
        let texts: Vec<(String, bool)> = records
            .iter()
            .map(|(record, cut)| {
                let text = record.to_string();
                match cut {
                    // Cut short, it is not JSON any more.
                    Some(at) => (text.chars().take((*at).min(text.chars().count() - 1)).collect(), false),
                    None => (text, true),
                }
            })
            .collect();
        let mut decoder = decoder();
        for (batch, batch_records) in texts.chunks(batch_size).zip(records.chunks(batch_size)) {
            let rows: Vec<Option<&str>> = batch.iter().map(|(text, _)| Some(text.as_str())).collect();
            let (array, bad) = decode(&mut decoder, &rows);
            let wrong: Vec<usize> = bad.iter().map(|(row, _)| *row).collect();
            let cut: Vec<usize> = (0..batch.len()).filter(|row| !batch[*row].1).collect();
            prop_assert_eq!(wrong, cut);
            for (row, ((text, is_good), (record, _))) in batch.iter().zip(batch_records).enumerate() {
                if !is_good {
                    prop_assert!(array.is_null(row));
                } else if array.data_type() == &DataType::Binary {
                    prop_assert_eq!(show(&array, row), Json::from(text.as_str()));
                } else {
                    prop_assert_eq!(Some(show(&array, row)), expected(Some(record), array.data_type()), "{}", text);
                }
            }
        }
    }

    #[test]
    fn garbage_is_harmless(bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\",:\\tfn01.e- ".to_vec())], 0..60)) {
        let mut bad = Vec::new();
        let mut decoder = decoder();
        let good = Some(Value::new(br#"{"a":[{"b":"c"}]}"#));
        let array = decoder.decode(&[good, Some(Value::new(&bytes)), good], &mut bad).expect("no failure of ours");
        let is_object = serde_json::from_slice::<serde_json::Map<String, Json>>(&bytes).is_ok();
        prop_assert!(is_object || bad.len() == 1);
        prop_assert_eq!(&show(&array, 2)["a"], &serde_json::json!([{"b": "c"}]));
    }
}
