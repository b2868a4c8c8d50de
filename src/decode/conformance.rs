//! What every decoder keeps to, run over all of them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::compute::concat;
use arrow::datatypes::{DataType, Fields};
use arrow::ipc::writer::StreamWriter;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use proptest::prelude::*;

use super::avro::{AvroDecoder, AvroShape};
use super::csv::CsvDecoder;
use super::decoder::{BadRow, Decoder, Value};
use super::ipc::IpcDecoder;
use super::json::{JsonDecoder, SharedShape, arrow_schema};
use super::projection::Projection;
use super::protobuf::{ProtobufDecoder, SharedMessages};
use super::raw::RawDecoder;
use super::reject::RecordLimits;
use super::schemas::{Lookup, RegisteredSchema, SchemaKey, SchemaKind, Schemas};
use super::text::TextDecoder;
use crate::config::columns;

/// A format with values of it.
struct Fixture {
    name: &'static str,
    make: Box<dyn Fn() -> Box<dyn Decoder>>,
    good: Vec<Vec<u8>>,
    /// What no decoder of this format takes.
    bad: Vec<Vec<u8>>,
}

struct Known(HashMap<SchemaKey, Arc<RegisteredSchema>>);

impl Schemas for Known {
    fn look_up(&self, key: &SchemaKey) -> Lookup {
        match self.0.get(key) {
            Some(schema) => Lookup::Known(schema.clone()),
            None => Lookup::Unknown("no such schema".to_owned()),
        }
    }
}

fn schemas() -> Arc<dyn Schemas> {
    let schema = |id, kind, text: &str| {
        let key = SchemaKey::Id(id);
        let schema = RegisteredSchema { key, kind, text: text.to_owned(), references: Vec::new() };
        (key, Arc::new(schema))
    };
    let order = r#"{"type":"record","name":"Order","fields":[
        {"name":"id","type":"long"},{"name":"tags","type":{"type":"array","items":"string"}}]}"#;
    let proto = r#"syntax = "proto3"; message Order { int64 id = 1; repeated string tags = 2; }"#;
    Arc::new(Known(HashMap::from([
        schema(1, SchemaKind::Avro, order),
        schema(2, SchemaKind::Protobuf, proto),
    ])))
}

fn stream(ids: &[i64]) -> Vec<u8> {
    let ids = Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef;
    let names = Arc::new(StringArray::from(vec!["name"; ids.len()])) as ArrayRef;
    let batch = RecordBatch::try_from_iter([("id", ids), ("name", names)]).expect("a batch");
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
    writer.write(&batch).expect("written");
    writer.into_inner().expect("finished")
}

/// Columns as pyarrow prints a struct of them.
fn columns_of(text: &str) -> Fields {
    match columns::parse(&format!("struct<{text}>")) {
        Ok(DataType::Struct(fields)) => fields,
        other => panic!("{other:?}"),
    }
}

fn fixtures() -> Vec<Fixture> {
    let limits = RecordLimits::default();
    let bytes = |values: &[&[u8]]| values.iter().map(|value| value.to_vec()).collect::<Vec<_>>();
    vec![
        Fixture {
            name: "raw",
            make: Box::new(|| Box::new(RawDecoder::new())),
            good: bytes(&[b"", b"a", b"\xff\0"]),
            bad: Vec::new(),
        },
        Fixture {
            name: "text",
            make: Box::new(|| Box::new(TextDecoder::new())),
            good: bytes(&[b"", b"a", "é😀".as_bytes()]),
            bad: bytes(&[b"\xff", b"a\xc3"]),
        },
        Fixture {
            name: "json",
            make: Box::new(move || {
                Box::new(JsonDecoder::new(SharedShape::new(100), Projection::All, limits))
            }),
            good: bytes(&[
                br#"{"id":1,"tags":["a","b"],"in":{"x":1.5}}"#,
                br#"{"tags":[],"id":2}"#,
                br#"{"in":{"x":2,"y":"z"}}"#,
            ]),
            bad: bytes(&[b"", b"[1]", br#"{"id":1,"new":}"#, br#"{"id":1}}"#, b"\xff"]),
        },
        Fixture {
            name: "json with columns",
            make: Box::new(move || {
                let columns = "id: int8, tags: list<string>, in: map<string, decimal128(4, 1)>";
                let said = arrow_schema::shape(&columns_of(columns), 64).expect("columns");
                Box::new(JsonDecoder::new(SharedShape::said(100, said), Projection::All, limits))
            }),
            good: bytes(&[
                br#"{"id":1,"tags":["a","b"],"in":{"x":1.5}}"#,
                br#"{"tags":[],"id":2}"#,
                br#"{"in":{"x":2,"y":null}}"#,
            ]),
            bad: bytes(&[
                b"",
                b"[1]",
                br#"{"tags":["a"],"id":128}"#,
                br#"{"in":{"x":1,"y":2.25}}"#,
                br#"{"in":{"x":1},"tags":["a",1]}"#,
                br#"{"id":1}}"#,
            ]),
        },
        Fixture {
            name: "csv with columns",
            make: Box::new(move || {
                let columns = columns_of("a: int8, b: string");
                let said = arrow_schema::shape(&columns, 64).expect("columns");
                let shape = SharedShape::said(100, said);
                Box::new(CsvDecoder::typed(&columns, b',', shape, Projection::All, limits))
            }),
            good: bytes(&[b"1,x", b"2,\"y,z\"\r\n", b",7"]),
            bad: bytes(&[b"1", b"1,2,3", b"1,\"x", b"\xff,1", b"128,x", b"x,y"]),
        },
        Fixture {
            name: "csv",
            make: Box::new(move || {
                let columns = Some(vec!["a".to_owned(), "b".to_owned()]);
                let shape = SharedShape::new(100);
                Box::new(CsvDecoder::new(columns, b',', shape, Projection::All, limits))
            }),
            good: bytes(&[b"1,x", b"2,\"y,z\"\r\n", b",7"]),
            bad: bytes(&[b"1", b"1,2,3", b"1,\"x", b"\xff,1"]),
        },
        Fixture {
            name: "arrow",
            make: Box::new(move || {
                Box::new(IpcDecoder::new(Arc::default(), Projection::All, limits))
            }),
            good: vec![stream(&[1]), stream(&[2])],
            bad: bytes(&[
                b"",
                b"x",
                b"\xff\xff\xff\xff\0\0\0\0",
                b"\xff\xff\xff\xff\xff\xff\xff\x7f",
            ]),
        },
        Fixture {
            name: "avro",
            make: Box::new(move || {
                Box::new(AvroDecoder::registered(
                    AvroShape::new(),
                    schemas(),
                    Projection::All,
                    limits,
                ))
            }),
            good: bytes(&[b"\0\0\0\0\x01\x02\x04\x02a\x02b\0", b"\0\0\0\0\x01\x04\0"]),
            bad: bytes(&[
                b"",
                b"\0",
                b"\0\0\0\0\x63\x02\0",
                b"\0\0\0\0\x01\x02\x02",
                b"\0\0\0\0\x01\x02\0\0",
            ]),
        },
        Fixture {
            name: "protobuf",
            make: Box::new(move || {
                let shared = SharedMessages::new();
                Box::new(ProtobufDecoder::with_registry(shared, schemas(), Projection::All, limits))
            }),
            good: bytes(&[b"\0\0\0\0\x02\0\x08\x01\x12\x01a\x12\x01b", b"\0\0\0\0\x02\0"]),
            bad: bytes(&[
                b"",
                b"\0",
                b"\0\0\0\0\x63\0",
                b"\0\0\0\0\x02\0\x08",
                b"\0\0\0\0\x02\x04",
            ]),
        },
    ]
}

fn decode(decoder: &mut dyn Decoder, values: &[Option<&[u8]>]) -> (ArrayRef, Vec<usize>) {
    let values: Vec<Option<Value<'_>>> = values.iter().map(|value| value.map(Value::new)).collect();
    let mut bad: Vec<BadRow> = Vec::new();
    let array = decoder.decode(&values, &mut bad).expect("no failure of ours");
    assert!(bad.is_sorted_by_key(|bad| bad.row), "bad rows come in order");
    (array, bad.into_iter().map(|bad| bad.row).collect())
}

/// Every row as text, fields by name: columns may come in another order when others were seen before.
fn rows(array: &ArrayRef) -> Vec<Vec<String>> {
    let options = FormatOptions::default().with_null("-");
    let text = |array: &dyn Array, row: usize| {
        let formatter = ArrayFormatter::try_new(array, &options).expect("a formatter");
        formatter.value(row).to_string()
    };
    (0..array.len())
        .map(|row| match array.as_any().downcast_ref::<StructArray>() {
            Some(_) if array.is_null(row) => vec!["null".to_owned()],
            Some(fields) => {
                let mut fields: Vec<String> = fields
                    .fields()
                    .iter()
                    .zip(fields.columns())
                    .map(|(field, column)| format!("{}: {}", field.name(), text(column, row)))
                    // A column that another record brought is null in this one.
                    .filter(|shown| !shown.ends_with(": -"))
                    .collect();
                fields.sort();
                fields
            }
            None if array.is_null(row) => vec!["null".to_owned()],
            None => vec![text(array, row)],
        })
        .collect()
}

#[test]
fn nothing_gives_nothing_and_null_gives_null() {
    for Fixture { name, make, good, .. } in fixtures() {
        let mut decoder = make();
        assert_eq!(decode(&mut *decoder, &[]).0.len(), 0, "{name}");
        let (array, bad) = decode(&mut *decoder, &[None, None, None]);
        assert_eq!((array.len(), array.logical_null_count(), bad.len()), (3, 3, 0), "{name}");
        let (array, bad) = decode(&mut *decoder, &[None, Some(&good[0]), None]);
        assert_eq!(
            (array.len(), array.is_null(0), array.is_valid(1), array.is_null(2)),
            (3, true, true, true),
            "{name}"
        );
        assert!(bad.is_empty(), "{name}");
    }
}

#[test]
fn batches_do_not_depend_on_one_another() {
    for Fixture { name, make, good, bad } in fixtures() {
        let values: Vec<Option<&[u8]>> = good.iter().map(|value| Some(value.as_slice())).collect();
        let mut decoder = make();
        let (first, _) = decode(&mut *decoder, &values);
        let worst: Vec<Option<&[u8]>> = bad.iter().map(|value| Some(value.as_slice())).collect();
        let (nothing, rejected) = decode(&mut *decoder, &worst);
        assert_eq!(rejected, (0..worst.len()).collect::<Vec<_>>(), "{name}");
        assert_eq!(nothing.logical_null_count(), worst.len(), "{name}");
        let (again, rejected) = decode(&mut *decoder, &values);
        assert_eq!((rows(&again), rejected), (rows(&first), vec![]), "{name}");
        // One by one they are what they are together.
        let single: Vec<ArrayRef> =
            values.iter().map(|value| decode(&mut *decoder, &[*value]).0).collect();
        let single: Vec<&dyn Array> = single.iter().map(AsRef::as_ref).collect();
        assert_eq!(rows(&concat(&single).expect("one type")), rows(&again), "{name}");
    }
}

#[test]
fn a_bad_value_leaves_its_neighbours_alone() {
    for Fixture { name, make, good, bad } in fixtures() {
        let values: Vec<Option<&[u8]>> = good.iter().map(|value| Some(value.as_slice())).collect();
        let expected = rows(&decode(&mut *make(), &values).0);
        for bad in &bad {
            for at in 0..=values.len() {
                let mut mixed = values.clone();
                mixed.insert(at, Some(bad));
                let (array, rejected) = decode(&mut *make(), &mixed);
                assert_eq!(rejected, [at], "{name}: {}", bad.escape_ascii());
                let mut shown = rows(&array);
                assert_eq!(shown.remove(at), ["null"], "{name}: {}", bad.escape_ascii());
                assert_eq!(shown, expected, "{name}: {}", bad.escape_ascii());
            }
        }
    }
}

#[test]
fn values_may_end_anywhere() {
    for Fixture { name, make, good, .. } in fixtures() {
        let expected = rows(&decode(&mut *make(), &[Some(&good[0])]).0);
        for value in &good {
            for end in 0..value.len() {
                let cut = &value[..end];
                let (array, _) = decode(&mut *make(), &[Some(&good[0]), Some(cut), Some(&good[0])]);
                let shown = rows(&array);
                assert_eq!(
                    (&shown[..1], &shown[shown.len() - 1..]),
                    (&expected[..], &expected[..]),
                    "{name}: {end}"
                );
            }
        }
    }
}

proptest! {
    /// Bytes of any kind, and good values with a few of their bytes changed.
    #[test]
    fn garbage_is_harmless(
        noise in prop::collection::vec(any::<u8>(), 0..80),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for Fixture { name, make, good, .. } in fixtures() {
            let expected = rows(&decode(&mut *make(), &[Some(&good[0])]).0);
            let mut changed = good[0].clone();
            for (at, byte) in &changes {
                if !changed.is_empty() {
                    let at = at.index(changed.len());
                    changed[at] = *byte;
                }
            }
            let (array, _) = decode(&mut *make(), &[Some(&good[0]), Some(&noise), Some(&changed), Some(&good[0])]);
            let shown = rows(&array);
            // Garbage may bring columns, or widen those that are there: then only the count can be compared.
            prop_assert!(shown.len() >= 2, "{}", name);
            if name != "json" && name != "csv" && name != "arrow" && name != "json with columns" {
                prop_assert_eq!(&shown[0], &expected[0], "{}", name);
                prop_assert_eq!(&shown[shown.len() - 1], &expected[0], "{}", name);
            }
        }
    }
}
