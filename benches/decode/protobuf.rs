//! Protobuf messages, each behind the prefix of a schema registry, beside ptars and beside prost-reflect's messages
//! with Arrow's builders. ptars takes the message type from its caller and the prefix for granted, and checks neither.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanBuilder, Float64Builder, Int32Builder,
    Int64Builder, ListArray, MapArray, NullBufferBuilder, RecordBatch, StringBuilder, StructArray,
    TimestampNanosecondBuilder,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, TimestampNanosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use karrow::decode::decoder::{Decoder, Value};
use karrow::decode::projection::Projection;
use karrow::decode::protobuf::{ProtobufDecoder, SharedMessages};
use karrow::decode::reject::RecordLimits;
use karrow::decode::schemas::{Lookup, RegisteredSchema, SchemaKey, SchemaKind, Schemas};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    Value as Dynamic,
};
use ptars_core::{ConfluentWirePolicy, EnumRepr, PtarsConfig, binary_array_to_record_batch_direct};

use super::{Pair, ROWS};

const TRADE: &str = r#"
    syntax = "proto3";
    package bench;
    enum Side { SIDE_UNKNOWN = 0; SIDE_BUY = 1; SIDE_SELL = 2; }
    message Trade {
        int64 id = 1; string symbol = 2; Side side = 3; double price = 4;
        int32 quantity = 5; int64 at = 6; bool open = 7; string account = 8;
    }
"#;

#[derive(Clone, PartialEq, Message)]
struct Trade {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(string, tag = "2")]
    symbol: String,
    #[prost(int32, tag = "3")]
    side: i32,
    #[prost(double, tag = "4")]
    price: f64,
    #[prost(int32, tag = "5")]
    quantity: i32,
    #[prost(int64, tag = "6")]
    at: i64,
    #[prost(bool, tag = "7")]
    open: bool,
    #[prost(string, tag = "8")]
    account: String,
}

const ORDER: &str = r#"
    syntax = "proto3";
    package bench;
    import "google/protobuf/timestamp.proto";
    message Order {
        int64 id = 1; Customer customer = 2; repeated Item items = 3; double total = 4; bool paid = 5;
        optional string note = 6; repeated int32 history = 7; map<string, string> labels = 8;
        google.protobuf.Timestamp at = 9;
    }
    message Address { string street = 1; string city = 2; string zip = 3; }
    message Customer { int64 id = 1; string name = 2; Address address = 3; }
    message Price { double amount = 1; string currency = 2; }
    message Item { string sku = 1; int32 count = 2; Price price = 3; repeated string tags = 4; }
"#;

#[derive(Clone, PartialEq, Message)]
struct Address {
    #[prost(string, tag = "1")]
    street: String,
    #[prost(string, tag = "2")]
    city: String,
    #[prost(string, tag = "3")]
    zip: String,
}

#[derive(Clone, PartialEq, Message)]
struct Customer {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, optional, tag = "3")]
    address: Option<Address>,
}

#[derive(Clone, PartialEq, Message)]
struct Price {
    #[prost(double, tag = "1")]
    amount: f64,
    #[prost(string, tag = "2")]
    currency: String,
}

#[derive(Clone, PartialEq, Message)]
struct Item {
    #[prost(string, tag = "1")]
    sku: String,
    #[prost(int32, tag = "2")]
    count: i32,
    #[prost(message, optional, tag = "3")]
    price: Option<Price>,
    #[prost(string, repeated, tag = "4")]
    tags: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Moment {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Order {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(message, optional, tag = "2")]
    customer: Option<Customer>,
    #[prost(message, repeated, tag = "3")]
    items: Vec<Item>,
    #[prost(double, tag = "4")]
    total: f64,
    #[prost(bool, tag = "5")]
    paid: bool,
    #[prost(string, optional, tag = "6")]
    note: Option<String>,
    #[prost(int32, repeated, tag = "7")]
    history: Vec<i32>,
    #[prost(map = "string, string", tag = "8")]
    labels: HashMap<String, String>,
    #[prost(message, optional, tag = "9")]
    at: Option<Moment>,
}

/// The records of each shape, beside both.
pub fn pairs() -> Vec<Pair> {
    let flat = records(|seed| flat(seed).encode_to_vec());
    let nested = records(|seed| nested(seed).encode_to_vec());
    [
        ("Protobuf, flat", TRADE, "bench.Trade", flat),
        ("Protobuf, nested", ORDER, "bench.Order", nested),
    ]
    .into_iter()
    .flat_map(|(name, text, message, records)| shape(name, text, message, records))
    .collect()
}

fn records(record: impl Fn(u64) -> Vec<u8>) -> Vec<Vec<u8>> {
    (0..ROWS as u64).map(|row| record(row.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16)).collect()
}

fn flat(seed: u64) -> Trade {
    Trade {
        id: (seed % 1_000_000_000) as i64 + 1,
        symbol: format!("SYM{}", seed % 500),
        side: (seed % 2 + 1) as i32,
        price: (seed % 100_000) as f64 / 100.0,
        quantity: (seed % 1000) as i32,
        at: 1_700_000_000_000 + (seed % 1_000_000_000) as i64,
        open: seed & 2 == 0,
        account: format!("account-{:08}", seed % 100_000_000),
    }
}

fn nested(seed: u64) -> Order {
    let item = |item: u64| {
        let seed = seed.wrapping_mul(item + 3);
        Item {
            sku: format!("A-{:06}", seed % 1_000_000),
            count: (seed % 9 + 1) as i32,
            price: Some(Price {
                amount: (seed % 100_000) as f64 / 100.0,
                currency: "EUR".to_owned(),
            }),
            tags: vec![format!("t{}", seed % 7), format!("t{}", seed % 11)],
        }
    };
    Order {
        id: seed as i64 + 1,
        customer: Some(Customer {
            id: (seed % 100_000) as i64,
            name: format!("Customer {}", seed % 1000),
            address: Some(Address {
                street: format!("Main Street {}", seed % 300),
                city: "Springfield".to_owned(),
                zip: format!("{:05}", seed % 99_999),
            }),
        }),
        items: (0..6).map(item).collect(),
        total: (seed % 5000) as f64 + 0.5,
        paid: true,
        note: seed.is_multiple_of(3).then(|| "leave it at the door".to_owned()),
        history: (0..3).map(|at| (seed % (10 * (at + 1))) as i32).collect(),
        // One: prost has them in no order.
        labels: HashMap::from([("channel".to_owned(), format!("web-{}", seed % 5))]),
        at: Some(Moment {
            seconds: 1_700_000_000 + (seed % 1_000_000) as i64,
            nanos: (seed % 1_000_000_000) as i32,
        }),
    }
}

struct One(Arc<RegisteredSchema>);

impl Schemas for One {
    fn look_up(&self, _: &SchemaKey) -> Lookup {
        Lookup::Known(self.0.clone())
    }
}

fn shape(name: &str, text: &str, message: &str, records: Vec<Vec<u8>>) -> Vec<Pair> {
    // Magic byte, schema 7, and the first message of the file: ptars misreads the index of any other.
    let prefix = [0, 0, 0, 0, 7, 0];
    let framed: Arc<Vec<Vec<u8>>> =
        Arc::new(records.iter().map(|record| [&prefix, &**record].concat()).collect());
    let bytes: usize = framed.iter().map(Vec::len).sum();
    let size = bytes / framed.len();
    let descriptor = descriptor(text, message);

    let key = SchemaKey::Id(7);
    let kind = SchemaKind::Protobuf;
    let schema = RegisteredSchema { key, kind, text: text.to_owned(), references: Vec::new() };
    let schemas: Arc<dyn Schemas> = Arc::new(One(Arc::new(schema)));
    let ours = || {
        let mut decoder = ProtobufDecoder::with_registry(
            SharedMessages::new(),
            schemas.clone(),
            Projection::All,
            RecordLimits::default(),
        );
        let rows = framed.clone();
        move || {
            let values: Vec<Option<Value<'_>>> =
                rows.iter().map(|record| Some(Value::new(record))).collect();
            let mut bad = Vec::new();
            let array = decoder.decode(&values, &mut bad).expect("decodes");
            assert!(bad.is_empty());
            array
        }
    };

    // Its input is one Arrow array, made outside of the clock.
    let array = BinaryArray::from_iter_values(framed.iter());
    let config = PtarsConfig::new()
        .with_enum_repr(EnumRepr::String)
        .with_confluent_wire_policy(ConfluentWirePolicy::Protobuf);
    let of_ptars = descriptor.clone();
    let ptars =
        move || binary_array_to_record_batch_direct(&array, &of_ptars, &config).expect("decodes");

    let rows = framed.clone();
    let skip = prefix.len();
    let dynamic = move || {
        let mut builder = Builder::of_message(&descriptor);
        for record in rows.iter() {
            let message = DynamicMessage::decode(descriptor.clone(), &record[skip..]);
            builder.message(&message.expect("decodes"));
        }
        builder.finish()
    };

    let mut with_ptars = ours();
    let mut with_dynamic = ours();
    let columns = with_ptars();
    same(&columns, &StructArray::from(ptars()), name);
    same(&columns, dynamic().as_struct(), name);
    with_dynamic();
    vec![
        Pair {
            name: format!("{name} ({size} B) / ptars"),
            bytes,
            ours: Box::new(move || {
                black_box(with_ptars());
            }),
            theirs: Box::new(move || {
                black_box::<RecordBatch>(ptars());
            }),
        },
        Pair {
            name: format!("{name} ({size} B) / prost-reflect, builders"),
            bytes,
            ours: Box::new(move || {
                black_box(with_dynamic());
            }),
            theirs: Box::new(move || {
                black_box(dynamic());
            }),
        },
    ]
}

/// Both sides have the same values, whatever they say of nulls in their types.
fn same(ours: &ArrayRef, theirs: &StructArray, name: &str) {
    let ours = ours.as_struct();
    assert_eq!(ours.column_names(), theirs.column_names(), "{name}");
    let options = FormatOptions::new().with_null("null");
    for (left, right) in ours.columns().iter().zip(theirs.columns()) {
        // Times with a zone cannot be shown without a database of zones.
        if let Some(left) = left.as_primitive_opt::<TimestampNanosecondType>() {
            assert_eq!(left, right.as_primitive::<TimestampNanosecondType>(), "{name}");
            continue;
        }
        let left = ArrayFormatter::try_new(left, &options).expect("formats");
        let right = ArrayFormatter::try_new(right, &options).expect("formats");
        for row in 0..ours.len() {
            assert_eq!(left.value(row).to_string(), right.value(row).to_string(), "{name}");
        }
    }
}

struct Texts(&'static str);

impl protox::file::FileResolver for Texts {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        match name {
            "it.proto" => protox::file::File::from_source(name, self.0),
            name => protox::file::GoogleFileResolver::new().open_file(name),
        }
    }
}

fn descriptor(text: &str, message: &str) -> MessageDescriptor {
    let mut compiler = protox::Compiler::with_file_resolver(Texts(text.to_owned().leak()));
    compiler.open_file("it.proto").expect("compiles");
    let pool: DescriptorPool = compiler.descriptor_pool();
    pool.get_message_by_name(message).expect("a message")
}

/// What one writes who has messages and needs columns.
enum Builder {
    Bool(BooleanBuilder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Double(Float64Builder),
    Text(StringBuilder),
    Enum(EnumDescriptor, StringBuilder),
    Time(TimestampNanosecondBuilder),
    Struct(Vec<(FieldDescriptor, Builder)>, NullBufferBuilder),
    List(Box<Builder>, Vec<i32>),
    Map(Box<Builder>, Box<Builder>, Vec<i32>),
}

impl Builder {
    fn of_message(message: &MessageDescriptor) -> Self {
        let fields = message.fields().map(|field| {
            let builder = Self::of_field(&field);
            (field, builder)
        });
        Self::Struct(fields.collect(), NullBufferBuilder::new(ROWS))
    }

    fn of_field(field: &FieldDescriptor) -> Self {
        match field.kind() {
            Kind::Message(entry) if field.is_map() => Self::Map(
                Box::new(Self::of_kind(&entry.map_entry_key_field().kind())),
                Box::new(Self::of_kind(&entry.map_entry_value_field().kind())),
                vec![0],
            ),
            kind if field.is_list() => Self::List(Box::new(Self::of_kind(&kind)), vec![0]),
            kind => Self::of_kind(&kind),
        }
    }

    fn of_kind(kind: &Kind) -> Self {
        match kind {
            Kind::Bool => Self::Bool(BooleanBuilder::new()),
            Kind::Int32 => Self::Int32(Int32Builder::new()),
            Kind::Int64 => Self::Int64(Int64Builder::new()),
            Kind::Double => Self::Double(Float64Builder::new()),
            Kind::String => Self::Text(StringBuilder::new()),
            Kind::Enum(names) => Self::Enum(names.clone(), StringBuilder::new()),
            Kind::Message(it) if it.full_name() == "google.protobuf.Timestamp" => {
                Self::Time(TimestampNanosecondBuilder::new().with_timezone("UTC"))
            }
            Kind::Message(message) => Self::of_message(message),
            other => panic!("{other:?} is in none of the messages"),
        }
    }

    fn message(&mut self, message: &DynamicMessage) {
        let Self::Struct(fields, nulls) = self else { panic!("no struct") };
        nulls.append_non_null();
        for (field, builder) in fields {
            if field.supports_presence() && !message.has_field(field) {
                builder.null();
            } else {
                builder.value(&message.get_field(field));
            }
        }
    }

    fn value(&mut self, value: &Dynamic) {
        match (self, value) {
            (Self::Bool(builder), Dynamic::Bool(value)) => builder.append_value(*value),
            (Self::Int32(builder), Dynamic::I32(value)) => builder.append_value(*value),
            (Self::Int64(builder), Dynamic::I64(value)) => builder.append_value(*value),
            (Self::Double(builder), Dynamic::F64(value)) => builder.append_value(*value),
            (Self::Text(builder), Dynamic::String(value)) => builder.append_value(value),
            (Self::Enum(names, builder), Dynamic::EnumNumber(number)) => {
                builder.append_value(names.get_value(*number).expect("known").name());
            }
            (Self::Time(builder), Dynamic::Message(message)) => {
                let seconds = message.get_field_by_number(1).and_then(|it| it.as_i64());
                let nanos = message.get_field_by_number(2).and_then(|it| it.as_i32());
                let seconds = seconds.expect("seconds") * 1_000_000_000;
                builder.append_value(seconds + i64::from(nanos.expect("nanos")));
            }
            (builder @ Self::Struct(..), Dynamic::Message(message)) => builder.message(message),
            (Self::List(items, offsets), Dynamic::List(values)) => {
                values.iter().for_each(|value| items.value(value));
                offsets.push(offsets[offsets.len() - 1] + values.len() as i32);
            }
            (Self::Map(keys, items, offsets), Dynamic::Map(entries)) => {
                for (key, value) in entries {
                    keys.value(&Dynamic::from(key.clone()));
                    items.value(value);
                }
                offsets.push(offsets[offsets.len() - 1] + entries.len() as i32);
            }
            (_, other) => panic!("{other:?} is no value of its field"),
        }
    }

    fn null(&mut self) {
        match self {
            Self::Bool(builder) => builder.append_null(),
            Self::Int32(builder) => builder.append_null(),
            Self::Int64(builder) => builder.append_null(),
            Self::Double(builder) => builder.append_null(),
            Self::Text(builder) | Self::Enum(_, builder) => builder.append_null(),
            Self::Time(builder) => builder.append_null(),
            Self::Struct(fields, nulls) => {
                nulls.append_null();
                fields.iter_mut().for_each(|(_, builder)| builder.null());
            }
            Self::List(_, offsets) | Self::Map(_, _, offsets) => {
                offsets.push(offsets[offsets.len() - 1]);
            }
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(builder) => Arc::new(builder.finish()),
            Self::Int32(builder) => Arc::new(builder.finish()),
            Self::Int64(builder) => Arc::new(builder.finish()),
            Self::Double(builder) => Arc::new(builder.finish()),
            Self::Text(builder) | Self::Enum(_, builder) => Arc::new(builder.finish()),
            Self::Time(builder) => Arc::new(builder.finish()),
            Self::Struct(fields, nulls) => {
                let (names, arrays): (Vec<FieldRef>, Vec<ArrayRef>) = fields
                    .iter_mut()
                    .map(|(field, builder)| {
                        let array = builder.finish();
                        let data_type = array.data_type().clone();
                        (Arc::new(Field::new(field.name(), data_type, true)), array)
                    })
                    .unzip();
                Arc::new(StructArray::new(names.into(), arrays, nulls.finish()))
            }
            Self::List(items, offsets) => {
                let items = items.finish();
                let field = Field::new_list_field(items.data_type().clone(), true);
                let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::take(offsets)));
                Arc::new(ListArray::new(Arc::new(field), offsets, items, None))
            }
            Self::Map(keys, values, offsets) => {
                let (keys, values) = (keys.finish(), values.finish());
                let pair = Fields::from(vec![
                    Field::new("key", keys.data_type().clone(), false),
                    Field::new("value", values.data_type().clone(), true),
                ]);
                let entries = StructArray::new(pair.clone(), vec![keys, values], None);
                let field = Arc::new(Field::new("entries", DataType::Struct(pair), false));
                let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::take(offsets)));
                Arc::new(MapArray::new(field, offsets, entries, None, false))
            }
        }
    }
}
