//! Avro messages with a registry's frame beside two others: apache-avro, whose values Arrow's builders get, and
//! arrow-avro, which gets all records without frames in one buffer.

use std::hint::black_box;
use std::sync::Arc;

use apache_avro::types::Value as Avro;
use arrow::array::{
    Array, ArrayBuilder, ArrayRef, AsArray, BooleanBuilder, Float32Builder, Float64Builder,
    Int32Builder, Int64Builder, ListBuilder, MapBuilder, StringBuilder, StructBuilder,
    TimestampMillisecondBuilder, make_builder,
};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_avro::reader::{DecoderMode, ReaderBuilder};
use arrow_avro::schema::{AvroSchema, Fingerprint, FingerprintAlgorithm, SchemaStore};
use karrow::decode::avro::{AvroDecoder, AvroShape};
use karrow::decode::decoder::{Decoder, Value};
use karrow::decode::projection::Projection;
use karrow::decode::reject::RecordLimits;
use karrow::decode::schemas::{Lookup, RegisteredSchema, SchemaKey, SchemaKind, Schemas};

use super::{Pair, ROWS};

const FLAT: &str = r#"{"type":"record","name":"Flat","fields":[
    {"name":"id","type":"long"},
    {"name":"user","type":"string"},
    {"name":"price","type":"double"},
    {"name":"count","type":"int"},
    {"name":"paid","type":"boolean"},
    {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}},
    {"name":"note","type":["null","string"]},
    {"name":"ratio","type":"float"}]}"#;

const NESTED: &str = r#"{"type":"record","name":"Order","fields":[
    {"name":"id","type":"long"},
    {"name":"customer","type":{"type":"record","name":"Customer","fields":[
        {"name":"id","type":"long"},
        {"name":"name","type":"string"},
        {"name":"address","type":{"type":"record","name":"Address","fields":[
            {"name":"street","type":"string"},{"name":"city","type":"string"},
            {"name":"zip","type":["null","string"]}]}}]}},
    {"name":"items","type":{"type":"array","items":{"type":"record","name":"Item","fields":[
        {"name":"sku","type":"string"},{"name":"count","type":"int"},
        {"name":"price","type":{"type":"record","name":"Price","fields":[
            {"name":"amount","type":"double"},{"name":"currency","type":"string"}]}},
        {"name":"tags","type":{"type":"array","items":"string"}}]}}},
    {"name":"attributes","type":{"type":"map","values":"string"}},
    {"name":"total","type":"double"}]}"#;

/// Its name, its schema, and what makes its records from a number.
type Shape = (&'static str, &'static str, fn(u64) -> Avro);

/// The records of each shape beside each of the others.
pub fn pairs() -> Vec<Pair> {
    let shapes: [Shape; 2] = [("Avro, flat", FLAT, flat), ("Avro, nested", NESTED, nested)];
    shapes
        .into_iter()
        .flat_map(|(name, schema, record)| {
            let parsed = apache_avro::Schema::parse_str(schema).expect("a schema");
            let bodies: Vec<Vec<u8>> = (0..ROWS as u64)
                .map(|row| record(row.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16))
                .map(|value| apache_avro::to_avro_datum(&parsed, value).expect("written"))
                .collect();
            [
                pair(name, "apache-avro and builders", schema, &bodies, with_builders),
                pair(name, "arrow-avro, one buffer", schema, &bodies, with_arrow_avro),
            ]
        })
        .collect()
}

fn text(text: String) -> Avro {
    Avro::String(text)
}

fn record(fields: Vec<(&str, Avro)>) -> Avro {
    Avro::Record(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn nullable(value: Option<Avro>) -> Avro {
    match value {
        None => Avro::Union(0, Box::new(Avro::Null)),
        Some(value) => Avro::Union(1, Box::new(value)),
    }
}

fn flat(seed: u64) -> Avro {
    let at = 1_700_000_000_000 + seed % 1_000_000_000;
    record(vec![
        ("id", Avro::Long((seed % 1_000_000_000).cast_signed())),
        ("user", text(format!("user-{}", seed % 100_000))),
        ("price", Avro::Double((seed % 10_000) as f64 / 100.0)),
        ("count", Avro::Int((seed % 300) as i32)),
        ("paid", Avro::Boolean(seed & 2 == 0)),
        ("at", Avro::TimestampMillis(at.cast_signed())),
        ("note", nullable((seed & 5 == 0).then(|| text(format!("note {}", seed % 77))))),
        ("ratio", Avro::Float((seed % 1000) as f32 / 1000.0)),
    ])
}

fn nested(seed: u64) -> Avro {
    let item = |item: u64| {
        let seed = seed.wrapping_mul(item + 3);
        let price = record(vec![
            ("amount", Avro::Double((seed % 100_000) as f64 / 100.0)),
            ("currency", text("EUR".into())),
        ]);
        let tags = vec![text(format!("t{}", seed % 7)), text(format!("t{}", seed % 11))];
        record(vec![
            ("sku", text(format!("A-{:06}", seed % 1_000_000))),
            ("count", Avro::Int((seed % 9 + 1) as i32)),
            ("price", price),
            ("tags", Avro::Array(tags)),
        ])
    };
    let address = record(vec![
        ("street", text(format!("Main Street {}", seed % 300))),
        ("city", text("Springfield".into())),
        ("zip", nullable((seed & 1 == 0).then(|| text(format!("{:05}", seed % 99_999))))),
    ]);
    let customer = record(vec![
        ("id", Avro::Long((seed % 100_000).cast_signed())),
        ("name", text(format!("Customer {}", seed % 1000))),
        ("address", address),
    ]);
    // One: apache-avro's maps have no order.
    let attributes = [("channel".to_owned(), text("web".into()))];
    record(vec![
        ("id", Avro::Long(seed.cast_signed())),
        ("customer", customer),
        ("items", Avro::Array((0..6).map(item).collect())),
        ("attributes", Avro::Map(attributes.into_iter().collect())),
        ("total", Avro::Double((seed % 5000) as f64 + 0.5)),
    ])
}

/// One schema, known beforehand.
struct One(Arc<RegisteredSchema>);

impl Schemas for One {
    fn look_up(&self, _key: &SchemaKey) -> Lookup {
        Lookup::Known(self.0.clone())
    }
}

type Theirs = Box<dyn FnMut() -> Vec<ArrayRef>>;

fn pair(
    name: &str,
    other: &str,
    schema: &'static str,
    bodies: &[Vec<u8>],
    theirs: fn(&'static str, &[Vec<u8>], &DataType) -> Theirs,
) -> Pair {
    let key = SchemaKey::Id(7);
    let framed: Vec<Vec<u8>> =
        bodies.iter().map(|body| [b"\0\0\0\0\x07".as_slice(), body].concat()).collect();
    let bytes: usize = framed.iter().map(Vec::len).sum();
    let name = format!("{name} ({} B) / {other}", bytes / framed.len());
    let one = One(Arc::new(RegisteredSchema {
        key,
        kind: SchemaKind::Avro,
        text: schema.to_owned(),
        references: Vec::new(),
    }));
    let limits = RecordLimits::default();
    let mut decoder =
        AvroDecoder::registered(AvroShape::new(), Arc::new(one), Projection::All, limits);
    let mut decode = move || {
        let values: Vec<Option<Value<'_>>> =
            framed.iter().map(|record| Some(Value::new(record))).collect();
        let mut bad = Vec::new();
        let array = decoder.decode(&values, &mut bad).expect("decodes");
        assert!(bad.is_empty());
        array
    };
    let columns = decode();
    let mut theirs = theirs(schema, bodies, columns.data_type());
    let options = FormatOptions::default();
    // Each has another name for the zone.
    let plain = |array: &ArrayRef| match array.data_type() {
        DataType::Timestamp(..) => cast(array, &DataType::Int64).expect("a number"),
        _ => array.clone(),
    };
    for (ours, theirs) in columns.as_struct().columns().iter().zip(theirs()) {
        let (ours, theirs) = (plain(ours), plain(&theirs));
        let show = |array: &dyn Array, row: usize| {
            ArrayFormatter::try_new(array, &options).expect("shown").value(row).to_string()
        };
        assert_eq!(ours.len(), theirs.len());
        for row in (0..ROWS).step_by(97) {
            assert_eq!(show(&ours, row), show(&theirs, row), "{name}: both give the same");
        }
    }
    Pair {
        name,
        bytes,
        ours: Box::new(move || {
            black_box(decode());
        }),
        theirs: Box::new(move || {
            black_box(theirs());
        }),
    }
}

fn with_arrow_avro(schema: &'static str, bodies: &[Vec<u8>], _: &DataType) -> Theirs {
    let buffer = bodies.concat();
    let mut store = SchemaStore::new_with_type(FingerprintAlgorithm::Id);
    store.set(Fingerprint::Id(7), AvroSchema::new(schema.to_owned())).expect("a schema");
    let mut decoder = ReaderBuilder::new()
        .with_batch_size(ROWS)
        .with_writer_schema_store(store)
        .with_active_fingerprint(Fingerprint::Id(7))
        .with_decoder_mode(DecoderMode::UnframedDatum)
        .build_decoder()
        .expect("a decoder");
    Box::new(move || {
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let read = decoder.decode(rest).expect("decodes");
            rest = &rest[read..];
        }
        decoder.flush().expect("flushes").expect("a batch").columns().to_vec()
    })
}

fn with_builders(schema: &'static str, bodies: &[Vec<u8>], columns: &DataType) -> Theirs {
    let parsed = apache_avro::Schema::parse_str(schema).expect("a schema");
    let bodies = bodies.to_vec();
    let columns = columns.clone();
    Box::new(move || {
        let mut builder = make_builder(&columns, ROWS);
        for body in &bodies {
            let value =
                apache_avro::from_avro_datum(&parsed, &mut body.as_slice(), None).expect("read");
            append(builder.as_mut(), Some(value));
        }
        builder.finish().as_struct().columns().to_vec()
    })
}

fn append(builder: &mut dyn ArrayBuilder, value: Option<Avro>) {
    type Any = Box<dyn ArrayBuilder>;
    let value = match value {
        Some(Avro::Union(_, value)) => Some(*value),
        value => value,
    };
    let builder = builder.as_any_mut();
    match value {
        Some(Avro::Record(fields)) => {
            let builder = builder.downcast_mut::<StructBuilder>().expect("a struct");
            for (column, (_, value)) in builder.field_builders_mut().iter_mut().zip(fields) {
                append(column.as_mut(), Some(value));
            }
            builder.append(true);
        }
        Some(Avro::Array(items)) => {
            let builder = builder.downcast_mut::<ListBuilder<Any>>().expect("a list");
            for item in items {
                append(builder.values().as_mut(), Some(item));
            }
            builder.append(true);
        }
        Some(Avro::Map(pairs)) => {
            let builder = builder.downcast_mut::<MapBuilder<Any, Any>>().expect("a map");
            for (key, value) in pairs {
                append(builder.keys().as_mut(), Some(Avro::String(key)));
                append(builder.values().as_mut(), Some(value));
            }
            builder.append(true).expect("a map");
        }
        Some(Avro::Long(value)) => {
            builder.downcast_mut::<Int64Builder>().expect("a long").append_value(value);
        }
        Some(Avro::TimestampMillis(value)) => builder
            .downcast_mut::<TimestampMillisecondBuilder>()
            .expect("a timestamp")
            .append_value(value),
        Some(Avro::Int(value)) => {
            builder.downcast_mut::<Int32Builder>().expect("an int").append_value(value);
        }
        Some(Avro::Double(value)) => {
            builder.downcast_mut::<Float64Builder>().expect("a double").append_value(value);
        }
        Some(Avro::Float(value)) => {
            builder.downcast_mut::<Float32Builder>().expect("a float").append_value(value);
        }
        Some(Avro::Boolean(value)) => {
            builder.downcast_mut::<BooleanBuilder>().expect("a boolean").append_value(value);
        }
        Some(Avro::String(value)) => {
            builder.downcast_mut::<StringBuilder>().expect("text").append_value(value);
        }
        Some(Avro::Null) => {
            builder.downcast_mut::<StringBuilder>().expect("text").append_null();
        }
        other => panic!("{other:?}"),
    }
}
