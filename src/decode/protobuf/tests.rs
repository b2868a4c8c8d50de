//! What prost-reflect writes and reads, columns have too; and what only the wire can hold.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DurationNanosecondType, Float32Type, Float64Type, Int32Type, Int64Type,
    TimestampNanosecondType, UInt32Type, UInt64Type,
};
use proptest::prelude::*;
use prost::Message as _;
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value as Dynamic,
};
use serde_json::{Value as Json, json};

use super::*;
use crate::decode::schemas::RegisteredSchema;
use crate::error::ErrorKind;

/// All types in one message.
const BROAD: &str = r#"
    syntax = "proto3";
    package t;
    import "google/protobuf/any.proto";
    import "google/protobuf/duration.proto";
    import "google/protobuf/empty.proto";
    import "google/protobuf/field_mask.proto";
    import "google/protobuf/struct.proto";
    import "google/protobuf/timestamp.proto";
    import "google/protobuf/wrappers.proto";
    enum Color { NONE = 0; RED = 1; BLUE = 2; FAR = 100000; BELOW = -3; }
    message Leaf { int32 x = 1; string s = 2; repeated int32 r = 3; Inner inner = 4; map<string, int32> m = 5; }
    message Inner { optional int64 y = 1; double z = 2; }
    message Nothing {}
    message Broad {
        int32 i32 = 1; sint32 s32 = 2; sfixed32 sf32 = 3; int64 i64 = 4; sint64 s64 = 5; sfixed64 sf64 = 6;
        uint32 u32 = 7; fixed32 f32 = 8; uint64 u64 = 9; fixed64 f64 = 10; float fl = 11; double db = 12;
        bool b = 13; string s = 14; bytes by = 15; Color c = 16;
        optional int32 oi = 17; optional string os = 18; optional Color oc = 19; optional bool ob = 20;
        Leaf leaf = 21; Nothing nothing = 22;
        repeated int32 ri = 23; repeated sint64 rs = 24 [packed = false]; repeated double rd = 25;
        repeated string rstr = 26; repeated Leaf rleaf = 27; repeated Color rc = 28; repeated bool rb = 29;
        repeated fixed32 rf = 30; repeated float rfl = 31; repeated bytes rby = 32; repeated uint64 ru = 33;
        map<string, int32> msi = 40; map<int32, string> mis = 41; map<bool, Leaf> mbl = 42;
        map<uint64, double> mud = 43; map<sint64, Color> mcol = 44;
        oneof choice { int32 ci = 50; string cs = 51; Leaf cl = 52; Nothing cn = 53; google.protobuf.Timestamp ct = 54; }
        google.protobuf.Timestamp at = 60; google.protobuf.Duration took = 61;
        google.protobuf.Int32Value wi = 62; google.protobuf.StringValue ws = 63; google.protobuf.BoolValue wb = 64;
        google.protobuf.Struct js = 65; google.protobuf.Value jv = 66; google.protobuf.ListValue jl = 67;
        google.protobuf.Any any = 68; google.protobuf.FieldMask mask = 69; google.protobuf.Empty empty = 70;
        repeated google.protobuf.Timestamp rat = 71; repeated google.protobuf.DoubleValue rw = 72;
        repeated google.protobuf.Value rjv = 73; map<string, google.protobuf.Duration> mdur = 74;
        Leaf far = 2000; int32 farther = 536870911;
    }
"#;

struct Registry(HashMap<SchemaKey, Lookup>);

impl Schemas for Registry {
    fn look_up(&self, key: &SchemaKey) -> Lookup {
        self.0.get(key).cloned().unwrap_or(Lookup::Unknown("no such schema".to_owned()))
    }
}

fn registry(texts: &[(u32, &str)]) -> Arc<dyn Schemas> {
    let known = |(id, text): &(u32, &str)| {
        let key = SchemaKey::Id(*id);
        let text = (*text).to_owned();
        let kind = SchemaKind::Protobuf;
        (key, Lookup::Known(Arc::new(RegisteredSchema { key, kind, text, references: Vec::new() })))
    };
    Arc::new(Registry(texts.iter().map(known).collect()))
}

fn message(text: &str, name: &str) -> MessageDescriptor {
    let schema = Schema::compile("schema 1", text, &[]).expect("compiles");
    schema.message_named(name).expect("a message")
}

/// A decoder of bare values, of all columns.
fn given(text: &str, name: &str) -> ProtobufDecoder {
    given_part(text, name, Projection::All)
}

fn given_part(text: &str, name: &str, projection: Projection) -> ProtobufDecoder {
    let message = GivenMessage::new(Path::new("it.proto"), text, name).expect("a message");
    let limits = RecordLimits::default();
    ProtobufDecoder::with_message(SharedMessages::new(), message, projection, limits)
}

fn with_registry(shared: &Arc<SharedMessages>, schemas: &Arc<dyn Schemas>) -> ProtobufDecoder {
    let limits = RecordLimits::default();
    ProtobufDecoder::with_registry(shared.clone(), schemas.clone(), Projection::All, limits)
}

fn decode<B: AsRef<[u8]>>(
    decoder: &mut ProtobufDecoder,
    rows: &[Option<B>],
) -> (ArrayRef, Vec<(usize, String)>) {
    let values: Vec<Option<Value<'_>>> =
        rows.iter().map(|row| row.as_ref().map(|bytes| Value::new(bytes.as_ref()))).collect();
    let mut bad = Vec::new();
    let array = decoder.decode(&values, &mut bad).expect("decodes");
    assert_eq!(array.len(), rows.len());
    array.to_data().validate_full().expect("a valid array");
    (array, bad.into_iter().map(|bad| (bad.row, bad.reject.message)).collect())
}

/// The only record, which is good.
fn one(decoder: &mut ProtobufDecoder, bytes: &[u8]) -> Json {
    let (array, bad) = decode(decoder, &[Some(bytes)]);
    assert_eq!(bad, []);
    row_of(&array, 0)
}

/// Why the only record is bad.
fn error(decoder: &mut ProtobufDecoder, bytes: &[u8]) -> String {
    let (array, bad) = decode(decoder, &[Some(bytes)]);
    assert!(array.is_null(0));
    bad.into_iter().next().expect("bad").1
}

fn hex(bytes: &[u8]) -> Json {
    json!(format!("0x{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// Floats by their digits, so that none is equal to another or to an integer.
fn float(value: f64) -> Json {
    json!(format!("{value:?}"))
}

/// A row as JSON: a struct without its nulls, bytes and floats as text.
fn row_of(array: &dyn Array, row: usize) -> Json {
    if array.is_null(row) {
        return Json::Null;
    }
    match array.data_type() {
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::Int32 => json!(array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt32 => json!(array.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => json!(array.as_primitive::<UInt64Type>().value(row)),
        DataType::Float32 => float(f64::from(array.as_primitive::<Float32Type>().value(row))),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Timestamp(..) => {
            json!(array.as_primitive::<TimestampNanosecondType>().value(row))
        }
        DataType::Duration(_) => json!(array.as_primitive::<DurationNanosecondType>().value(row)),
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::Binary => hex(array.as_binary::<i32>().value(row)),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            (0..items.len()).map(|at| row_of(&items, at)).collect()
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let entry = |at| {
                let key = match row_of(entries.column(0), at) {
                    Json::String(key) => key,
                    key => key.to_string(),
                };
                (key, row_of(entries.column(1), at))
            };
            let object: serde_json::Map<String, Json> = (0..entries.len()).map(entry).collect();
            assert_eq!(object.len(), entries.len(), "each key once");
            Json::Object(object)
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            let all = fields.iter().zip(columns);
            all.map(|(field, column)| (field.name().clone(), row_of(column, row)))
                .filter(|(_, value)| !value.is_null())
                .collect()
        }
        other => panic!("{other} is no type of Protobuf"),
    }
}

/// The same of a message as prost-reflect has it.
fn expected(message: &DynamicMessage) -> Json {
    let descriptor = message.descriptor();
    let mut object = serde_json::Map::new();
    for field in descriptor.fields() {
        let value = match (message.has_field(&field), field.supports_presence()) {
            (false, true) if field.field_descriptor_proto().default_value.is_none() => continue,
            _ => message.get_field(&field),
        };
        object.insert(field.name().to_owned(), expected_field(&field, &value));
    }
    Json::Object(object)
}

fn expected_field(field: &FieldDescriptor, value: &Dynamic) -> Json {
    match value {
        Dynamic::List(items) => {
            items.iter().map(|item| expected_item(&field.kind(), item)).collect()
        }
        Dynamic::Map(entries) => {
            let kind = field.kind().as_message().expect("an entry").map_entry_value_field().kind();
            let key = |key: &MapKey| match key {
                MapKey::Bool(key) => key.to_string(),
                MapKey::I32(key) => key.to_string(),
                MapKey::I64(key) => key.to_string(),
                MapKey::U32(key) => key.to_string(),
                MapKey::U64(key) => key.to_string(),
                MapKey::String(key) => key.clone(),
            };
            entries.iter().map(|(name, value)| (key(name), expected_item(&kind, value))).collect()
        }
        value => expected_item(&field.kind(), value),
    }
}

fn expected_item(kind: &Kind, value: &Dynamic) -> Json {
    match value {
        Dynamic::Bool(value) => json!(value),
        Dynamic::I32(value) => json!(value),
        Dynamic::I64(value) => json!(value),
        Dynamic::U32(value) => json!(value),
        Dynamic::U64(value) => json!(value),
        Dynamic::F32(value) => float(f64::from(*value)),
        Dynamic::F64(value) => float(*value),
        Dynamic::String(value) => json!(value),
        Dynamic::Bytes(value) => hex(value),
        Dynamic::EnumNumber(number) => {
            let value = kind.as_enum().expect("an enum").get_value(*number);
            json!(value.map_or_else(|| number.to_string(), |value| value.name().to_owned()))
        }
        Dynamic::Message(message) => expected_message(message),
        other => panic!("{other:?} is no item"),
    }
}

fn expected_message(message: &DynamicMessage) -> Json {
    let get = |name: &str| message.get_field_by_name(name).expect("a field").into_owned();
    match message.descriptor().full_name() {
        "google.protobuf.Timestamp" | "google.protobuf.Duration" => {
            let seconds = get("seconds").as_i64().expect("seconds");
            json!(seconds * 1_000_000_000 + i64::from(get("nanos").as_i32().expect("nanos")))
        }
        "google.protobuf.Struct" | "google.protobuf.Value" | "google.protobuf.ListValue" => {
            json!(plain_json(message).to_string())
        }
        "google.protobuf.FieldMask" => {
            let paths = message.descriptor().get_field(1).expect("paths");
            expected_field(&paths, &get("paths"))
        }
        name if name.ends_with("Value") && name.starts_with("google.") => {
            expected_item(&message.descriptor().get_field(1).expect("it").kind(), &get("value"))
        }
        _ if message.descriptor().fields().len() == 0 => json!(true),
        _ => expected(message),
    }
}

/// JSON messages, as the texts in columns have them.
fn plain_json(message: &DynamicMessage) -> Json {
    match message.descriptor().name() {
        "Struct" => match &*message.get_field_by_name("fields").expect("fields") {
            Dynamic::Map(fields) => {
                let mut all: Vec<(String, Json)> = fields
                    .iter()
                    .map(|(name, value)| {
                        let name = name.as_str().expect("a name").to_owned();
                        (name, plain_json(value.as_message().expect("a value")))
                    })
                    .collect();
                all.sort_by(|left, right| left.0.cmp(&right.0));
                all.into_iter().collect()
            }
            other => panic!("{other:?}"),
        },
        "ListValue" => match &*message.get_field_by_name("values").expect("values") {
            Dynamic::List(values) => values
                .iter()
                .map(|value| plain_json(value.as_message().expect("a value")))
                .collect(),
            other => panic!("{other:?}"),
        },
        _ => match message.fields().next() {
            None => Json::Null,
            Some((_, Dynamic::F64(number))) => match *number {
                number if number.fract() == 0.0 => json!(number as i64),
                number => json!(number),
            },
            Some((_, Dynamic::String(text))) => json!(text),
            Some((_, Dynamic::Bool(value))) => json!(value),
            Some((_, Dynamic::Message(message))) => plain_json(message),
            _ => Json::Null,
        },
    }
}

/// Objects inside of texts have no order to rely on.
fn sorted(json: &Json) -> Json {
    match json {
        Json::String(text) if text.starts_with(['{', '[']) => match serde_json::from_str(text) {
            Ok(inner) => json!(["parsed", sorted(&inner)]),
            Err(_) => json.clone(),
        },
        Json::Array(items) => items.iter().map(sorted).collect(),
        Json::Object(object) => {
            object.iter().map(|(name, value)| (name.clone(), sorted(value))).collect()
        }
        other => other.clone(),
    }
}

/// Pseudo-random messages.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn integer(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(200),
            1 => self.below(200).wrapping_neg(),
            2 => self.next() >> self.below(64),
            _ => 1 << self.below(64),
        }
    }

    fn text(&mut self) -> String {
        let len = self.below(12);
        (0..len)
            .map(|_| ['a', 'B', '0', ' ', 'ä', '€', '😀', '"'][self.below(8) as usize])
            .collect()
    }

    fn message(&mut self, descriptor: &MessageDescriptor, depth: u32) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        match descriptor.full_name() {
            "google.protobuf.Timestamp" => {
                let seconds = self.below(18_000_000_000) as i64 - 9_000_000_000;
                message.set_field_by_name("seconds", Dynamic::I64(seconds));
                message.set_field_by_name("nanos", Dynamic::I32(self.below(1_000_000_000) as i32));
                return message;
            }
            "google.protobuf.Duration" => {
                let sign = if self.below(2) == 0 { 1 } else { -1 };
                let seconds = sign * self.below(9_000_000_000) as i64;
                let nanos = sign as i32 * self.below(1_000_000_000) as i32;
                message.set_field_by_name("seconds", Dynamic::I64(seconds));
                message.set_field_by_name("nanos", Dynamic::I32(nanos));
                return message;
            }
            _ => {}
        }
        for field in descriptor.fields() {
            if self.below(3) == 0 || depth > 4 {
                continue;
            }
            let value = if field.is_map() {
                let entry = field.kind().as_message().expect("an entry").clone();
                let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
                let entries = (0..self.below(5)).map(|_| {
                    let key = match self.scalar(&key.kind()) {
                        Dynamic::Bool(key) => MapKey::Bool(key),
                        Dynamic::I32(key) => MapKey::I32(key),
                        Dynamic::I64(key) => MapKey::I64(key),
                        Dynamic::U32(key) => MapKey::U32(key),
                        Dynamic::U64(key) => MapKey::U64(key),
                        Dynamic::String(key) => MapKey::String(key),
                        other => panic!("{other:?} is no key"),
                    };
                    (key, self.value(&value.kind(), depth))
                });
                Dynamic::Map(entries.collect())
            } else if field.is_list() {
                let len = self.below(5);
                Dynamic::List((0..len).map(|_| self.value(&field.kind(), depth)).collect())
            } else {
                self.value(&field.kind(), depth)
            };
            message.set_field(&field, value);
        }
        message
    }

    fn value(&mut self, kind: &Kind, depth: u32) -> Dynamic {
        match kind {
            Kind::Message(descriptor) => Dynamic::Message(self.message(descriptor, depth + 1)),
            kind => self.scalar(kind),
        }
    }

    fn scalar(&mut self, kind: &Kind) -> Dynamic {
        let integer = self.integer();
        match kind {
            Kind::Bool => Dynamic::Bool(integer & 1 == 0),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Dynamic::I32(integer as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Dynamic::I64(integer as i64),
            Kind::Uint32 | Kind::Fixed32 => Dynamic::U32(integer as u32),
            Kind::Uint64 | Kind::Fixed64 => Dynamic::U64(integer),
            Kind::Float => Dynamic::F32(integer as i32 as f32 / 8.0),
            Kind::Double => Dynamic::F64(f64::from(integer as i32) / 8.0),
            Kind::String => Dynamic::String(self.text()),
            Kind::Bytes => Dynamic::Bytes(integer.to_le_bytes().to_vec().into()),
            Kind::Enum(_) => {
                Dynamic::EnumNumber([0, 1, 2, 100_000, -3, 7, -9][integer as usize % 7])
            }
            Kind::Message(_) => panic!("no scalar"),
        }
    }
}

/// What prost-reflect makes of bytes: the last scalar wins, messages merge, a oneof has one field.
fn oracle(descriptor: &MessageDescriptor, bytes: &[u8]) -> Json {
    expected(&DynamicMessage::decode(descriptor.clone(), bytes).expect("decodes"))
}

proptest! {
    #[test]
    fn records_are_what_prost_reflect_reads(seed: u64) {
        let descriptor = message(BROAD, "t.Broad");
        let mut random = Random(seed);
        let mut decoder = given(BROAD, "t.Broad");
        let records: Vec<Option<Vec<u8>>> = (0..8)
            .map(|_| {
                // One message behind the other is the merged one.
                let count = random.below(4);
                let messages = (0..count).map(|_| random.message(&descriptor, 0).encode_to_vec());
                (count > 0).then(|| messages.collect::<Vec<_>>().concat())
            })
            .collect();
        for _ in 0..2 {
            let (array, bad) = decode(&mut decoder, &records);
            prop_assert_eq!(&bad, &[]);
            for (row, record) in records.iter().enumerate() {
                let wanted = record.as_ref().map_or(Json::Null, |it| oracle(&descriptor, it));
                prop_assert_eq!(sorted(&row_of(&array, row)), sorted(&wanted));
            }
        }
    }

    #[test]
    fn bad_records_leave_their_neighbours_alone(seed: u64) {
        let descriptor = message(BROAD, "t.Broad");
        let mut random = Random(seed);
        let mut decoder = given(BROAD, "t.Broad");
        let mut records = Vec::new();
        let mut wanted = Vec::new();
        for _ in 0..6 {
            let mut bytes = random.message(&descriptor, 0).encode_to_vec();
            match random.below(3) {
                0 => bytes.extend_from_slice(b"\x0a\x7f"),
                1 => bytes.extend_from_slice(b"\x72\x02\xff\xff"),
                _ => {}
            }
            wanted.push(DynamicMessage::decode(descriptor.clone(), &*bytes).ok());
            records.push(Some(bytes));
        }
        let (array, bad) = decode(&mut decoder, &records);
        let rows: Vec<usize> = bad.iter().map(|(row, _)| *row).collect();
        let wanted_rows: Vec<usize> =
            (0..6).filter(|row| wanted[*row].is_none()).collect();
        prop_assert_eq!(rows, wanted_rows);
        for (row, wanted) in wanted.iter().enumerate() {
            let wanted = wanted.as_ref().map_or(Json::Null, expected);
            prop_assert_eq!(sorted(&row_of(&array, row)), sorted(&wanted));
        }
    }

    #[test]
    fn no_bytes_do_harm(seed: u64, noise: Vec<u8>) {
        let descriptor = message(BROAD, "t.Broad");
        let mut random = Random(seed);
        let good = random.message(&descriptor, 0).encode_to_vec();
        let mut changed = good.clone();
        for _ in 0..3 {
            let at = random.below(changed.len().max(1) as u64) as usize;
            if let Some(byte) = changed.get_mut(at) {
                *byte = random.next() as u8;
            }
        }
        let wanted = expected(&DynamicMessage::decode(descriptor.clone(), &*good).expect("good"));
        let mut decoder = given(BROAD, "t.Broad");
        let records = [Some(good.clone()), Some(changed), Some(noise), Some(good)];
        let (array, _) = decode(&mut decoder, &records);
        prop_assert_eq!(sorted(&row_of(&array, 0)), sorted(&wanted));
        prop_assert_eq!(sorted(&row_of(&array, 3)), sorted(&wanted));
    }
}

#[test]
fn every_truncation_is_survived() {
    let descriptor = message(BROAD, "t.Broad");
    let mut decoder = given(BROAD, "t.Broad");
    for seed in 0..4 {
        let good = Random(seed).message(&descriptor, 0).encode_to_vec();
        let records: Vec<Option<&[u8]>> =
            (0..=good.len()).flat_map(|end| [Some(&good[..end]), Some(&good[..])]).collect();
        let (array, bad) = decode(&mut decoder, &records);
        let whole = sorted(&oracle(&descriptor, &good));
        let is_bad: HashSet<usize> = bad.iter().map(|(row, _)| *row).collect();
        for (row, record) in records.iter().enumerate() {
            let record = record.expect("a record");
            match DynamicMessage::decode(descriptor.clone(), record) {
                _ if row % 2 == 1 => assert_eq!(sorted(&row_of(&array, row)), whole),
                Ok(message) if !is_bad.contains(&row) => {
                    assert_eq!(sorted(&row_of(&array, row)), sorted(&expected(&message)));
                }
                // A timestamp's nanoseconds can be cut off from its seconds; nothing else may differ.
                Ok(_) => panic!("row {row} is good: {bad:?}"),
                Err(_) => assert!(is_bad.contains(&row) && array.is_null(row), "row {row} is bad"),
            }
        }
    }
}

#[test]
fn columns_have_these_types() {
    let mut decoder = given(BROAD, "t.Broad");
    let (array, _) = decode(&mut decoder, &[Some(b"")]);
    let fields = array.as_struct().fields();
    let type_of = |name: &str| {
        let found = fields.iter().find(|field| field.name() == name).expect(name);
        assert!(found.is_nullable());
        found.data_type().to_string()
    };
    for (name, wanted) in [
        ("s32", "Int32"),
        ("sf64", "Int64"),
        ("f32", "UInt32"),
        ("u64", "UInt64"),
        ("fl", "Float32"),
        ("db", "Float64"),
        ("b", "Boolean"),
        ("s", "Utf8"),
        ("by", "Binary"),
        ("c", "Utf8"),
        ("nothing", "Boolean"),
        ("empty", "Boolean"),
        ("ri", "List(Int32)"),
        ("at", "Timestamp(ns, \"UTC\")"),
        ("took", "Duration(ns)"),
        ("wi", "Int32"),
        ("js", "Utf8"),
        ("mask", "List(Utf8)"),
        ("any", "Struct(\"type_url\": Utf8, \"value\": Binary)"),
    ] {
        assert_eq!(type_of(name), wanted, "{name}");
    }
    assert!(type_of("msi").starts_with("Map("));
    let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
    assert_eq!((names[0], names[names.len() - 1]), ("i32", "farther"));
}

#[test]
fn what_a_message_leaves_out_is_its_default_or_null() {
    let text = r#"syntax = "proto3";
        enum E { ZERO = 0; }
        message M { int32 a = 1; string b = 2; E e = 3; optional int32 c = 4; oneof o { int32 d = 5; string f = 6; }
            repeated int32 g = 7; map<string, int32> h = 8; M2 m = 9; bool i = 10; bytes j = 11; double k = 12; }
        message M2 { int32 x = 1; }"#;
    let mut decoder = given(text, "M");
    let empty = json!({
        "a": 0, "b": "", "e": "ZERO", "g": [], "h": {}, "i": false, "j": "0x", "k": "0.0",
    });
    assert_eq!(one(&mut decoder, b""), empty);
    let mut some = empty.clone();
    some["c"] = json!(0);
    some["m"] = json!({"x": 0});
    some["f"] = json!("");
    assert_eq!(one(&mut decoder, b"\x20\x00\x4a\x00\x32\x00"), some);
    let (array, _) = decode(&mut decoder, &[Some(&b""[..]), None, Some(b"\x08\x05"), None]);
    assert_eq!(row_of(&array, 0), empty);
    assert!(array.is_null(1) && array.is_null(3));
    assert_eq!(row_of(&array, 2)["a"], 5);
}

#[test]
fn fields_come_in_any_way_the_wire_allows() {
    let text = r#"syntax = "proto3";
        message M { int32 a = 1; repeated int32 r = 2; repeated string s = 3; oneof o { int32 x = 4; string y = 5; N n = 6; }
            N m = 7; map<string, int32> p = 8; map<int32, N> q = 9; }
        message N { int32 v = 1; repeated int32 w = 2; string t = 3; }"#;
    let mut decoder = given(text, "M");
    let cases: [(&str, &[u8], &str, Json); 20] = [
        ("the last wins", b"\x08\x01\x08\x02", "a", json!(2)),
        ("the last wins, even zero", b"\x08\x01\x08\x00", "a", json!(0)),
        ("ten bytes", b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a", json!(-1)),
        ("five bytes", b"\x08\xff\xff\xff\xff\x0f", "a", json!(-1)),
        ("packed", b"\x12\x03\x01\x02\x03", "r", json!([1, 2, 3])),
        ("unpacked", b"\x10\x01\x10\x02\x10\x03", "r", json!([1, 2, 3])),
        ("both, apart", b"\x10\x01\x08\x07\x12\x02\x02\x03\x10\x04", "r", json!([1, 2, 3, 4])),
        ("packed and empty", b"\x12\x00", "r", json!([])),
        ("strings apart", b"\x1a\x01a\x08\x01\x1a\x00\x1a\x01b", "s", json!(["a", "", "b"])),
        ("the other of a oneof", b"\x20\x05\x2a\x01z", "x", Json::Null),
        ("the last of a oneof", b"\x20\x05\x2a\x01z", "y", json!("z")),
        ("back again", b"\x20\x05\x2a\x01z\x20\x06", "y", Json::Null),
        (
            "cleared in between",
            b"\x32\x02\x08\x01\x20\x05\x32\x03\x1a\x01q",
            "n",
            json!({"v": 0, "w": [], "t": "q"}),
        ),
        (
            "merged",
            b"\x3a\x04\x08\x01\x10\x02\x3a\x05\x10\x03\x1a\x01q",
            "m",
            json!({"v": 1, "w": [2, 3], "t": "q"}),
        ),
        ("an entry without a key", b"\x42\x02\x10\x05", "p", json!({"": 5})),
        ("an entry without a value", b"\x42\x03\x0a\x01k", "p", json!({"k": 0})),
        ("an empty entry", b"\x42\x00", "p", json!({"": 0})),
        (
            "a key again",
            b"\x42\x05\x0a\x01k\x10\x01\x42\x05\x0a\x01j\x10\x02\x42\x05\x0a\x01k\x10\x03",
            "p",
            json!({"j": 2, "k": 3}),
        ),
        (
            "the value first",
            b"\x4a\x06\x12\x02\x08\x05\x08\x09",
            "q",
            json!({"9": {"v": 5, "w": [], "t": ""}}),
        ),
        (
            "an empty message as a value",
            b"\x4a\x02\x08\x07",
            "q",
            json!({"7": {"v": 0, "w": [], "t": ""}}),
        ),
    ];
    for (what, bytes, field, wanted) in &cases {
        let row = one(&mut decoder, bytes);
        assert_eq!(row.get(field).unwrap_or(&Json::Null), wanted, "{what}");
        let descriptor = message(text, "M");
        if *what != "five bytes" {
            assert_eq!(row, oracle(&descriptor, bytes), "{what}");
        }
    }
    // Many entries, of which half come twice.
    let entry = |key: u8, value: u8| vec![0x42, 5, 0x0a, 1, b'A' + key, 0x10, value];
    let many: Vec<u8> = (0..40).flat_map(|at| entry(at % 20, at)).collect();
    let wanted: serde_json::Map<String, Json> =
        (0..20).map(|key| (char::from(b'A' + key).to_string(), json!(key + 20))).collect();
    assert_eq!(one(&mut decoder, &many)["p"], Json::Object(wanted));
}

#[test]
fn bad_records_say_where() {
    let text = r#"syntax = "proto3"; package p;
        import "google/protobuf/timestamp.proto"; import "google/protobuf/duration.proto";
        message M { int32 a = 1; string s = 2; N n = 3; repeated fixed32 f = 4; google.protobuf.Timestamp t = 5;
            google.protobuf.Duration d = 6; map<string, string> m = 7; uint32 u = 8; }
        message N { string deep = 1; }"#;
    let mut decoder = given(text, "p.M");
    let cases: [(&[u8], &str); 22] = [
        (b"\x08", "ends inside of field 'a' of p.M"),
        (b"\x12\x05ab", "ends inside of field 's' of p.M"),
        (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "ends inside of field 's' of p.M"),
        (b"\x1a\x03\x0a\x05a", "ends inside of field 'deep' of p.N"),
        (b"\x1a\x03\x0a\x01\xff", "no UTF-8 in field 'deep' of p.N"),
        (b"\x12\x01\xff", "no UTF-8 in field 's' of p.M"),
        (b"\x0a\x00", "wire type 2 in field 'a' of p.M"),
        (b"\x10\x00", "wire type 0 in field 's' of p.M"),
        (b"\x20\x00", "wire type 0 in field 'f' of p.M"),
        (b"\x22\x03abc", "ends inside of field 'f' of p.M"),
        (
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
            "a varint of more than 64 bits in field 'a' of p.M",
        ),
        (b"\x08\xff\xff\xff\xff\x1f", "a value beyond 32 bits in field 'a' of p.M"),
        (
            b"\x40\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            "a value beyond 32 bits in field 'u' of p.M",
        ),
        (b"\x00", "a field that cannot be in p.M"),
        (b"\x0e", "a field that cannot be in p.M"),
        (b"\x0c", "a group that ends wrongly in p.M"),
        (b"\xfa\x7f\x05a", "ends inside of unknown field 2047 of p.M"),
        (
            b"\x2a\x06\x08\x80\xe8\x92\xa6\x23",
            "a value beyond the years 1678 to 2261 in field 't' of p.M",
        ),
        (
            b"\x2a\x06\x10\x80\x94\xeb\xdc\x03",
            "a value beyond the nanoseconds of a second in field 't' of p.M",
        ),
        (
            b"\x2a\x0b\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            "a value beyond the nanoseconds of a second in field 't' of p.M",
        ),
        (
            b"\x32\x0d\x08\x01\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            "a value beyond the nanoseconds of a second in field 'd' of p.M",
        ),
        (b"\x3a\x03\x0a\x01\xff", "no UTF-8 in field 'm' of p.M"),
    ];
    for (bytes, wanted) in cases {
        assert_eq!(error(&mut decoder, bytes), wanted);
    }
    // The ends of what a timestamp can be: i64::MIN and i64::MAX nanoseconds.
    let time = |seconds: i64, nanos: i32| {
        let mut message = DynamicMessage::new(message(text, "p.M"));
        let field = message.descriptor().get_field(5).expect("t");
        let mut inner = DynamicMessage::new(field.kind().as_message().expect("it").clone());
        inner.set_field_by_name("seconds", Dynamic::I64(seconds));
        inner.set_field_by_name("nanos", Dynamic::I32(nanos));
        message.set_field(&field, Dynamic::Message(inner));
        message.encode_to_vec()
    };
    assert_eq!(one(&mut decoder, &time(9_223_372_036, 854_775_807))["t"], json!(i64::MAX));
    assert_eq!(one(&mut decoder, &time(-9_223_372_037, 145_224_192))["t"], json!(i64::MIN));
    error(&mut decoder, &time(9_223_372_036, 854_775_808));
    error(&mut decoder, &time(-9_223_372_037, 145_224_191));
    error(&mut decoder, &time(253_402_300_799, 0));
}

#[test]
fn limits_make_bad_records() {
    let text = r#"syntax = "proto3"; import "google/protobuf/struct.proto";
        message M { repeated N n = 1; repeated int32 r = 2; google.protobuf.Value v = 3; string s = 4; }
        message N { int32 a = 1; int32 b = 2; int32 c = 3; }"#;
    let message = GivenMessage::new(Path::new("it.proto"), text, "M").expect("a message");
    let limits = RecordLimits { bytes_max: 1_000, elements_max: 100, depth_max: 8 };
    let mut decoder =
        ProtobufDecoder::with_message(SharedMessages::new(), message, Projection::All, limits);
    let mut nested = b"\x08\x00".to_vec();
    for _ in 0..9 {
        let list = [&[0x0a, nested.len() as u8], &*nested].concat();
        nested = [&[0x32, list.len() as u8], &*list].concat();
    }
    let value = [&[0x1a, nested.len() as u8], &*nested].concat();
    let long = [b"\x22\xe8\x07".to_vec(), vec![b'a'; 1000]].concat();
    let cases: [(&[u8], &str); 5] = [
        (&b"\x0a\x00".repeat(26), "more than the elements one record may have"),
        (&b"\x10\x01".repeat(101), "more than the elements one record may have"),
        (
            &[b"\x12\x7f".to_vec(), vec![0; 127]].concat(),
            "more than the elements one record may have",
        ),
        (&value, "more than 8 nested values"),
        (&long, "more than 1000 bytes"),
    ];
    for (bytes, wanted) in cases {
        assert_eq!(error(&mut decoder, bytes), wanted);
    }
    one(&mut decoder, &b"\x0a\x00".repeat(20));
}

#[test]
fn proto2_has_groups_and_defaults() {
    let text = r#"syntax = "proto2"; package old;
        message M {
            required int32 id = 1;
            optional int32 plain = 2;
            optional int32 answer = 3 [default = 42];
            optional string name = 4 [default = "nobody"];
            optional Kind kind = 5 [default = B];
            optional bool yes = 6 [default = true];
            optional double inf = 7 [default = -inf];
            optional group Inner = 8 { optional int32 x = 1; repeated int32 y = 2; optional group Deep = 3 { optional string z = 1; } }
            repeated group Many = 9 { optional int32 x = 1; }
            repeated int32 nums = 10;
            optional Kind other = 11;
            extensions 100 to 200;
            oneof o { int32 left = 12 [default = 9]; int32 right = 13; }
        }
        enum Kind { A = 1; B = 2; }
        extend M { optional string more = 100; }"#;
    let mut decoder = given(text, "old.M");
    let empty = json!({
        "answer": 42, "name": "nobody", "kind": "B", "yes": true, "inf": "-inf", "many": [], "nums": [],
    });
    assert_eq!(one(&mut decoder, b""), empty);
    // id, a group with a group in it, two of many, packed numbers, an extension, an unknown group, an unknown kind.
    let bytes = b"\x08\x05\x43\x08\x01\x10\x02\x1b\x0a\x01z\x1c\x44\x4b\x08\x01\x4c\x4b\x4c\x52\x02\x01\x02\
        \xa2\x06\x01e\xab\x06\x08\x01\xac\x06\x58\x09\x43\x10\x03\x44";
    let row = one(&mut decoder, bytes);
    let mut wanted = empty;
    wanted["id"] = json!(5);
    wanted["inner"] = json!({"x": 1, "y": [2, 3], "deep": {"z": "z"}});
    wanted["many"] = json!([{"x": 1}, {}]);
    wanted["nums"] = json!([1, 2]);
    wanted["other"] = json!("9");
    assert_eq!(row, wanted);
    for (bytes, wanted) in [
        (&b"\x43\x08\x01"[..], "ends inside of old.M.Inner"),
        (b"\x43\x08\x01\x4c", "a group that ends wrongly in old.M.Inner"),
        (b"\x42\x00", "wire type 2 in field 'inner' of old.M"),
        (b"\x44", "a group that ends wrongly in old.M"),
    ] {
        assert_eq!(error(&mut decoder, bytes), wanted);
    }
    let descriptor = message(text, "old.M");
    let mut decoder = given(text, "old.M");
    for seed in 0..200 {
        let mut random = Random(seed);
        let bytes = [random.message(&descriptor, 0), random.message(&descriptor, 0)]
            .map(|message| message.encode_to_vec())
            .concat();
        let mut wanted = oracle(&descriptor, &bytes);
        // prost-reflect knows the defaults of a oneof's fields too; they are null while another is set.
        if !DynamicMessage::decode(descriptor.clone(), &*bytes)
            .expect("good")
            .has_field_by_name("left")
        {
            wanted.as_object_mut().expect("an object").remove("left");
        }
        assert_eq!(one(&mut decoder, &bytes), wanted, "seed {seed}");
    }
}

#[test]
fn recursive_messages_are_bytes_where_they_begin_again() {
    let text = r#"syntax = "proto3";
        message Node { int32 v = 1; Node next = 2; repeated Node all = 3; Other other = 4; map<string, Node> by = 5; }
        message Other { Node back = 1; int32 w = 2; Other again = 3; }"#;
    let mut decoder = given(text, "Node");
    let bytes = b"\x08\x01\x12\x02\x08\x02\x12\x03\x12\x01\x08\x1a\x02\x08\x03\x1a\x00\x22\x06\x0a\x02\x08\x04\x10\x05\x2a\x07\x0a\x01k\x12\x02\x08\x06";
    assert_eq!(
        one(&mut decoder, bytes),
        json!({
            "v": 1,
            // Both occurrences: what is merged is what is concatenated.
            "next": "0x0802120108",
            "all": ["0x0803", "0x"],
            "other": {"back": "0x0804", "w": 5},
            "by": {"k": "0x0806"},
        })
    );
}

#[test]
fn too_wide_and_too_deep_messages_are_bytes_too() {
    // Ten levels of ten messages each would be 10^10 columns.
    let mut text = "syntax = \"proto3\";\n".to_owned();
    for level in 0..10 {
        let fields: Vec<String> =
            (1..=10).map(|field| format!("M{} f{field} = {field};", level + 1)).collect();
        text.push_str(&format!("message M{level} {{ {} int32 v = 11; }}\n", fields.join(" ")));
    }
    text.push_str("message M10 { int32 x = 1; }");
    let mut decoder = given(&text, "M0");
    let row = one(&mut decoder, b"\x0a\x02\x58\x05\x52\x02\x58\x06\x58\x07");
    assert_eq!(row["f1"]["v"], 5);
    assert_eq!(row["f10"], "0x5806");
    assert_eq!(row["v"], 7);

    let mut text = "syntax = \"proto3\";\n".to_owned();
    for level in 0..60 {
        text.push_str(&format!("message D{level} {{ D{} d = 1; int32 v = 2; }}\n", level + 1));
    }
    text.push_str("message D60 { int32 x = 1; }");
    let mut decoder = given(&text, "D0");
    assert_eq!(one(&mut decoder, b"\x0a\x02\x10\x05\x10\x06"), json!({"v": 6, "d": {"v": 5}}));
}

#[test]
fn few_bytes_are_no_huge_batch() {
    let fields: Vec<String> = (1..=990).map(|at| format!("optional int64 f{at} = {at};")).collect();
    let text = format!(
        "syntax = \"proto3\"; message R {{ repeated I l = 1; I one = 2; }} message I {{ {} }}",
        fields.join(" ")
    );
    let mut decoder = given(&text, "R");
    let rows = vec![Some(Value::new(b"")); 50_000];
    let full = decoder.decode(&rows, &mut Vec::new()).expect_err("0.4 GB");
    assert_eq!(full.kind(), ErrorKind::Exhausted);
    let items = |count: usize| b"\x0a\0".repeat(count);
    assert_eq!(error(&mut decoder, &items(200_000)), "more than the elements one record may have");
    // Each record is within its limits, all of them together are not.
    let record = items(1_000);
    let rows = vec![Some(Value::new(&record)); 50];
    let full = decoder.decode(&rows, &mut Vec::new()).expect_err("0.4 GB");
    assert_eq!(full.kind(), ErrorKind::Exhausted);
    let (array, bad) = decode(&mut decoder, &[Some(&record); 10]);
    assert_eq!((array.len(), bad.len()), (10, 0));
}

#[test]
fn columns_never_nest_too_deeply_for_readers() {
    // What is single first is in lists later, and the second type of a topic is a struct in a struct.
    let chain = |field: &str| {
        let mut text = "syntax = \"proto3\"; message Other { int32 v = 1; }\n".to_owned();
        for level in 0..40 {
            let field = field.replace('D', &format!("D{}", level + 1));
            text.push_str(&format!("message D{level} {{ {field} d = 1; int32 v = 2; }}\n"));
        }
        text.push_str("message D40 { map<int32, int32> x = 1; }");
        text
    };
    let (single, lists, maps) = (chain("D"), chain("repeated D"), chain("map<int32, D>"));
    let schemas = registry(&[(1, &single), (2, &lists), (3, &maps)]);
    for ids in [&[1, 2][..], &[2], &[3]] {
        let mut decoder = with_registry(&SharedMessages::new(), &schemas);
        for id in ids {
            let (array, bad) = decode(
                &mut decoder,
                &[Some(framed(*id, &[0], b"\x08\x01")), Some(framed(*id, &[2, 2], b"\x10\x01"))],
            );
            assert_eq!(bad, [], "{ids:?}");
            let levels = crate::decode::column::levels(array.data_type());
            assert!(
                (30..=crate::decode::column::LEVELS_MAX).contains(&levels),
                "{ids:?}: {levels}"
            );
        }
    }
}

#[test]
fn well_known_messages_merge() {
    let text = r#"syntax = "proto3"; import "google/protobuf/struct.proto"; import "google/protobuf/timestamp.proto";
        import "google/protobuf/wrappers.proto"; import "google/protobuf/field_mask.proto";
        message M { google.protobuf.Struct s = 1; google.protobuf.Timestamp t = 2; google.protobuf.Int64Value w = 3;
            google.protobuf.FieldMask f = 4; google.protobuf.Value v = 5; oneof o { google.protobuf.Value x = 6; int32 y = 7; } }"#;
    let mut decoder = given(text, "M");
    let entry = |name: u8, value: &[u8]| {
        let value = [&[0x0a, 1, name, 0x12, value.len() as u8], value].concat();
        let entry = [&[0x0a, value.len() as u8], &*value].concat();
        [&[0x0a, entry.len() as u8], &*entry].concat()
    };
    let bytes = [
        entry(b'a', b"\x08\x00"),
        entry(b'b', b"\x1a\x02hi"),
        entry(b'a', b"\x20\x01"),
        b"\x12\x02\x08\x05\x12\x02\x10\x07".to_vec(),
        b"\x1a\x02\x08\x05\x1a\x00".to_vec(),
        b"\x22\x03\x0a\x01p\x22\x03\x0a\x01q".to_vec(),
        b"\x2a\x02\x32\x00\x2a\x06\x32\x04\x0a\x02\x20\x01".to_vec(),
        b"\x32\x02\x32\x00\x38\x01\x32\x06\x32\x04\x0a\x02\x20\x00".to_vec(),
    ]
    .concat();
    assert_eq!(
        one(&mut decoder, &bytes),
        json!({
            "s": r#"{"a":true,"b":"hi"}"#, "t": 5_000_000_007_i64, "w": 5, "f": ["p", "q"],
            "v": "[true]", "x": "[false]",
        })
    );
    assert_eq!(one(&mut decoder, b"\x2a\x00\x0a\x00"), json!({"v": "null", "s": "{}"}));
    let number = |value: f64| [&b"\x2a\x09\x11"[..], &value.to_le_bytes()].concat();
    for (value, wanted) in [
        (1.0, "1"),
        (-0.0, "-0.0"),
        (1.5, "1.5"),
        (9_007_199_254_740_991.0, "9007199254740991"),
        (1e300, "1e+300"),
        (1e17, "1e+17"),
    ] {
        assert_eq!(one(&mut decoder, &number(value)), json!({"v": wanted}));
    }
    for value in [f64::NAN, f64::INFINITY] {
        let wanted = "a value beyond the numbers of JSON in field 'v' of M";
        assert_eq!(error(&mut decoder, &number(value)), wanted);
    }
}

fn framed(id: u32, indexes: &[u8], message: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], indexes, message].concat()
}

#[test]
fn schemas_evolve() {
    let old = r#"syntax = "proto3"; message M { int32 a = 1; string gone = 2; N n = 3; uint32 u = 4; int32 bad = 5; repeated N r = 6; int64 big = 7; N was = 8; }
        message N { int32 x = 1; }"#;
    let new = r#"syntax = "proto3"; message M { int64 a = 1; N n = 3; float u = 4; string bad = 5; repeated N r = 6; double big = 7; string added = 9; M was = 8; }
        message N { int32 x = 1; string y = 2; }"#;
    let schemas = registry(&[(1, old), (2, new)]);
    let shared = SharedMessages::new();
    let mut decoder = with_registry(&shared, &schemas);
    let old_bytes =
        framed(1, b"\0", b"\x08\x05\x12\x01g\x1a\x02\x08\x06\x20\x07\x28\x08\x32\x02\x08\x09\x38\x0a\x42\x02\x08\x0b");
    let old_row = json!({"a": 5, "gone": "g", "n": {"x": 6}, "u": 7, "bad": 8, "r": [{"x": 9}], "big": 10, "was": {"x": 11}});
    assert_eq!(one(&mut decoder, &old_bytes), old_row);
    let epoch = shared.epoch();
    // Another reader brings in the new schema.
    let mut other = with_registry(&shared, &schemas);
    let new_bytes = framed(
        2,
        b"\0",
        b"\x08\xff\xff\xff\xff\x7f\x1a\x05\x08\x06\x12\x01y\x25\0\0\0\x3f\x32\x02\x12\x00\x39\0\0\0\0\0\0\xf8\x3f\x4a\x01+\x42\x07\x08\x01\x1a\x03\x12\x01d",
    );
    let wide_old = json!({"a": 5, "gone": "g", "n": {"x": 6}, "u": "7.0", "bad": 8, "r": [{"x": 9}], "big": "10.0", "was": {"x": 11}});
    let wide_new = json!({
        "a": 34_359_738_367_i64, "n": {"x": 6, "y": "y"}, "u": "0.5", "r": [{"x": 0, "y": ""}], "big": "1.5",
        "added": "+", "was": {"a": 1, "n": {"x": 0, "y": "d"}, "u": "0.0", "bad": "", "r": [], "big": "0.0", "added": ""},
    });
    let (array, bad) = decode(&mut other, &[Some(new_bytes.clone()), Some(old_bytes.clone())]);
    assert_eq!(bad, []);
    assert_eq!((row_of(&array, 0), row_of(&array, 1)), (wide_new, wide_old.clone()));
    assert!(shared.epoch() > epoch);
    assert_eq!(one(&mut decoder, &old_bytes), wide_old);
    let with_bad = [new_bytes, b"\x2a\x01!".to_vec()].concat();
    let (array, bad) = decode(&mut decoder, &[Some(with_bad), Some(old_bytes)]);
    assert_eq!(
        bad,
        [(
            0,
            "field 'bad' of M is single string in schema 2, which does not fit its column of type Int32"
                .to_owned()
        )]
    );
    assert_eq!(row_of(&array, 0)["added"], "+", "the other fields are there");
    assert_eq!(row_of(&array, 1), wide_old);
    let epoch = shared.epoch();
    let mut third = with_registry(&shared, &schemas);
    assert_eq!(one(&mut third, &framed(2, b"\0", b""))["added"], "");
    assert_eq!(shared.epoch(), epoch, "nothing new");
    // 2^53 + 1 is no Float64.
    let exact = framed(1, b"\0", b"\x38\x81\x80\x80\x80\x80\x80\x80\x10");
    assert!(error(&mut third, &exact).contains("the integers that a Float64 holds"));
}

/// A value of a narrower column, as a wider one has it.
fn widened(value: &Json, data_type: &DataType) -> Json {
    match (data_type, value) {
        (DataType::List(item), Json::Array(items)) => {
            items.iter().map(|value| widened(value, item.data_type())).collect()
        }
        (DataType::List(item), value) => json!([widened(value, item.data_type())]),
        (DataType::Struct(fields), Json::Object(object)) => {
            let of = |name: &str| fields.iter().find(|it| it.name() == name).expect("a field");
            let all = object.iter();
            all.map(|(name, it)| (name.clone(), widened(it, of(name).data_type()))).collect()
        }
        (DataType::Map(entries, _), Json::Object(object)) => {
            let DataType::Struct(pair) = entries.data_type() else { panic!("no entries") };
            let of = pair[1].data_type();
            object.iter().map(|(name, it)| (name.clone(), widened(it, of))).collect()
        }
        (DataType::Binary, Json::String(text)) if !text.starts_with("0x") => hex(text.as_bytes()),
        (_, value) => value.clone(),
    }
}

const SINGLE: &str = r#"syntax = "proto3"; import "google/protobuf/timestamp.proto"; import "google/protobuf/wrappers.proto";
    enum E { ZERO = 0; ONE = 1; }
    message N { int32 x = 1; string s = 2; repeated int32 r = 3; map<string, string> m = 4; }
    message Empty {}
    message M {
        string a = 1; repeated string b = 2; string c = 3; bytes d = 4; int32 e = 5; N f = 6; repeated N g = 7;
        optional string h = 8; E i = 9; google.protobuf.StringValue j = 10; google.protobuf.Timestamp k = 11;
        oneof o { string l = 12; int32 m = 13; N n = 14; } map<string, string> p = 15; bool q = 16; M again = 17;
        int32 gains = 18; optional int32 loses = 19; Empty t = 20; double u = 21; fixed64 v = 22; bytes w = 23;
    }"#;

const REPEATED: &str = r#"syntax = "proto3"; import "google/protobuf/timestamp.proto"; import "google/protobuf/wrappers.proto";
    enum E { ZERO = 0; ONE = 1; }
    message N { repeated int32 x = 1; bytes s = 2; int32 r = 3; map<string, bytes> m = 4; }
    message Empty {}
    message M {
        repeated string a = 1; string b = 2; bytes c = 3; string d = 4; repeated int64 e = 5; repeated N f = 6; N g = 7;
        repeated bytes h = 8; repeated E i = 9; repeated google.protobuf.StringValue j = 10;
        repeated google.protobuf.Timestamp k = 11; repeated string l = 12; oneof o { int32 m = 13; N n = 14; }
        map<string, bytes> p = 15; repeated bool q = 16; repeated M again = 17;
        optional int32 gains = 18; int32 loses = 19; repeated Empty t = 20; repeated double u = 21;
        repeated fixed64 v = 22 [packed = false]; repeated string w = 23;
    }"#;

#[test]
fn single_and_repeated_text_and_bytes_share_a_column() {
    let schemas = registry(&[(1, SINGLE), (2, REPEATED)]);
    let descriptors = [message(SINGLE, "M"), message(REPEATED, "M")];
    for seed in 0..120 {
        let mut random = Random(seed);
        let shared = SharedMessages::new();
        let mut early = with_registry(&shared, &schemas);
        let mut records = Vec::new();
        let mut wanted = Vec::new();
        for _ in 0..6 {
            let of = random.below(2) as usize;
            let descriptor = &descriptors[of];
            // One message behind the other is the merged one: singles come again then.
            let bytes: Vec<u8> = (0..1 + random.below(3))
                .flat_map(|_| random.message(descriptor, 0).encode_to_vec())
                .collect();
            wanted.push(oracle(descriptor, &bytes));
            records.push(Some(framed(of as u32 + 1, b"\x02\x04", &bytes)));
        }
        // One schema after the other, as it happens; then all of them with what they have taught.
        for record in &records {
            decode(&mut early, &[Some(record.as_deref().expect("a record"))]);
        }
        for decoder in [&mut early, &mut with_registry(&shared, &schemas)] {
            let (array, bad) = decode(decoder, &records);
            assert_eq!(bad, [], "seed {seed}");
            for (row, wanted) in wanted.iter().enumerate() {
                let wanted = widened(&without_recursion(wanted, &array), array.data_type());
                let got = without_recursion(&row_of(&array, row), &array);
                assert_eq!(sorted(&got), sorted(&wanted), "seed {seed} row {row}");
            }
        }
    }
}

/// A message inside of itself is bytes, whose fields may be in another order.
fn without_recursion(row: &Json, array: &dyn Array) -> Json {
    assert!(array.as_struct().column_by_name("again").is_some());
    let mut row = row.clone();
    row.as_object_mut().expect("an object").remove("again");
    row
}

#[test]
fn fields_change_their_cardinality_and_type() {
    // (first schema's field, second one's, first record, second one, what they become)
    type Case<'a> = (&'a str, &'a str, &'a [u8], &'a [u8], Json, Json);
    let cases: [Case<'_>; 14] = [
        (
            "string f = 1",
            "repeated string f = 1",
            b"\x0a\x01a",
            b"\x0a\x01b\x0a\x01c",
            json!(["a"]),
            json!(["b", "c"]),
        ),
        (
            "repeated string f = 1",
            "string f = 1",
            b"",
            b"\x0a\x01b\x0a\x01c",
            json!([]),
            json!(["c"]),
        ),
        // What the wire leaves out is this writer's default, or null.
        ("repeated string f = 1", "string f = 1", b"\x0a\x01a", b"", json!(["a"]), json!([""])),
        ("optional string f = 1", "repeated string f = 1", b"", b"", Json::Null, json!([])),
        (
            "repeated int32 f = 1",
            "int64 f = 1",
            b"\x0a\x02\x01\x02",
            b"\x08\x80\x80\x80\x80\x10",
            json!([1, 2]),
            json!([1_u64 << 32]),
        ),
        (
            "int32 f = 1",
            "repeated int32 f = 1",
            b"\x08\x05\x08\x06",
            b"\x0a\x02\x01\x02\x08\x03",
            json!([6]),
            json!([1, 2, 3]),
        ),
        (
            "N f = 1",
            "repeated N f = 1",
            b"\x0a\x02\x08\x01\x0a\x03\x12\x01y",
            b"\x0a\x00\x0a\x02\x08\x02",
            json!([{"x": 1, "y": "y"}]),
            json!([{"x": 0, "y": ""}, {"x": 2, "y": ""}]),
        ),
        (
            "string f = 1",
            "bytes f = 1",
            b"\x0a\x02\xc3\xa4",
            b"\x0a\x01\xff",
            json!("0xc3a4"),
            json!("0xff"),
        ),
        ("bytes f = 1", "string f = 1", b"", b"\x0a\x01a", json!("0x"), json!("0x61")),
        (
            "bytes f = 1",
            "repeated string f = 1",
            b"\x0a\x01\xff",
            b"\x0a\x01a",
            json!(["0xff"]),
            json!(["0x61"]),
        ),
        (
            "google.protobuf.Value f = 1",
            "bytes f = 1",
            b"\x0a\x02\x20\x01",
            b"\x0a\x01\xff",
            json!("0x74727565"),
            json!("0xff"),
        ),
        (
            "google.protobuf.Value f = 1",
            "repeated google.protobuf.Value f = 1",
            b"\x0a\x02\x20\x01\x0a\x02\x20\x00",
            b"\x0a\x02\x20\x01\x0a\x02\x20\x00",
            json!(["false"]),
            json!(["true", "false"]),
        ),
        ("int32 f = 1", "optional int32 f = 1", b"", b"", json!(0), Json::Null),
        (
            "oneof o { string f = 1; int32 g = 3; }",
            "repeated string f = 1; int32 g = 3",
            b"\x0a\x01a\x18\x01\x0a\x01b",
            b"\x18\x01",
            json!(["b"]),
            json!([]),
        ),
    ];
    for (first, second, one, two, wanted_one, wanted_two) in &cases {
        let text = |field: &str| {
            let end = if field.ends_with('}') { "" } else { ";" };
            format!(
                "syntax = 'proto3'; import 'google/protobuf/struct.proto';
                 message M {{ {field}{end} int32 z = 2; }} message N {{ int32 x = 1; string y = 2; }}"
            )
        };
        let (first, second) = (text(first), text(second));
        let schemas = registry(&[(1, &first), (2, &second)]);
        let record = |id, bytes: &[u8]| framed(id, b"\0", &[bytes, b"\x10\x07"].concat());
        let both = [Some(record(1, one)), Some(record(2, two))];
        let shared = SharedMessages::new();
        let mut decoder = with_registry(&shared, &schemas);
        // The first schema alone; both; the first one again.
        decode(&mut decoder, &both[..1]);
        for rows in [&both[..], &both[..1]] {
            let (array, bad) = decode(&mut decoder, rows);
            assert_eq!(bad, [], "{first} {second}");
            for (row, wanted) in [wanted_one, wanted_two].into_iter().enumerate().take(rows.len()) {
                let got = row_of(&array, row);
                assert_eq!(got.get("f").unwrap_or(&Json::Null), wanted, "{first} {second}");
                assert_eq!(got["z"], 7);
            }
        }
    }
}

#[test]
fn what_no_column_holds_spoils_only_its_own_field() {
    let cases = [
        ("string f = 1", "repeated int32 f = 1", "repeated int32", "Utf8"),
        ("repeated string f = 1", "N f = 1", "single N", "List(Utf8)"),
        ("N f = 1", "repeated bytes f = 1", "repeated bytes", "Struct(\"x\": Int32)"),
        ("map<string, int32> f = 1", "repeated N f = 1", "repeated N", "Map("),
        ("repeated N f = 1", "map<string, int32> f = 1", "a map", "List(Struct(\"x\": Int32))"),
        (
            "google.protobuf.FieldMask f = 1",
            "repeated google.protobuf.FieldMask f = 1",
            "repeated google.protobuf.FieldMask",
            "List(Utf8)",
        ),
        ("uint64 f = 1", "repeated int64 f = 1", "repeated int64", "UInt64"),
    ];
    for (first, second, is, column) in cases {
        let text = |field: &str| {
            format!(
                "syntax = 'proto3'; import 'google/protobuf/field_mask.proto';
                 message M {{ {field}; int32 z = 2; }} message N {{ int32 x = 1; }}"
            )
        };
        let (first, second) = (text(first), text(second));
        let schemas = registry(&[(1, &first), (2, &second)]);
        let mut decoder = with_registry(&SharedMessages::new(), &schemas);
        let good = framed(1, b"\0", b"\x10\x01");
        let alone = row_of(&decode(&mut decoder, &[Some(&good)]).0, 0);
        let odd = framed(2, b"\0", b"\x0a\x00\x10\x02");
        let (array, bad) = decode(&mut decoder, &[Some(&good), Some(&odd), Some(&good)]);
        assert_eq!((row_of(&array, 0), row_of(&array, 2)), (alone.clone(), alone));
        assert_eq!(row_of(&array, 1)["z"], 2);
        assert_eq!(row_of(&array, 1).get("f"), None);
        let [(1, why)] = bad.as_slice() else { panic!("{first} {second} gave {bad:?}") };
        assert!(why.starts_with(&format!("field 'f' of M is {is}")), "{why}");
        assert!(why.contains("in schema 2, which does not fit its column of type"), "{why}");
        assert!(why.contains(column), "{why}");
    }
}

const TWO: &str = r#"syntax = "proto3"; package shop;
    message Order { int32 id = 1; Part part = 2; message Part { string sku = 1; } }
    message Refund { int32 of = 1; }
    message Nothing {}"#;

#[test]
fn a_second_message_type_gets_a_struct_of_its_own() {
    let schemas = registry(&[(1, TWO), (2, "syntax = 'proto3'; message Loose { int32 z = 1; }")]);
    let order = framed(1, b"\0", b"\x08\x05");
    let refund = framed(1, b"\x02\x02", b"\x08\x06");
    let part = framed(1, b"\x04\0\0", b"\x0a\x01s");
    let nothing = framed(1, b"\x02\x04", b"");
    let loose = framed(2, b"\0", b"\x08\x07");

    // It comes later.
    let shared = SharedMessages::new();
    let mut decoder = with_registry(&shared, &schemas);
    assert_eq!(one(&mut decoder, &order), json!({"id": 5}));
    let rows = [Some(&refund), Some(&order), None, Some(&part), Some(&nothing), Some(&loose)];
    let (array, bad) = decode(&mut decoder, &rows);
    assert_eq!(bad, []);
    let got: Vec<Json> = (0..rows.len()).map(|row| row_of(&array, row)).collect();
    assert_eq!(
        got,
        [
            json!({"shop.Refund": {"of": 6}}),
            json!({"id": 5}),
            Json::Null,
            json!({"shop.Order.Part": {"sku": "s"}}),
            json!({"shop.Nothing": true}),
            json!({".Loose": {"z": 7}}),
        ]
    );

    // Both are in the first batch.
    let shared = SharedMessages::new();
    let mut decoder = with_registry(&shared, &schemas);
    let (array, bad) = decode(&mut decoder, &[Some(&order), Some(&refund)]);
    assert_eq!(bad, []);
    assert_eq!(row_of(&array, 0), json!({"shop.Order": {"id": 5}}));
    assert_eq!(row_of(&array, 1), json!({"shop.Refund": {"of": 6}}));

    // Only one of them is wanted.
    let wanted = Projection::new(["shop.Refund.of"]);
    let limits = RecordLimits::default();
    let mut decoder = ProtobufDecoder::with_registry(shared, schemas, wanted, limits);
    let (array, bad) = decode(&mut decoder, &[Some(&order), Some(&refund)]);
    assert_eq!(bad, []);
    assert_eq!(row_of(&array, 0), json!({}));
    assert_eq!(row_of(&array, 1), json!({"shop.Refund": {"of": 6}}));
}

#[test]
fn what_names_no_usable_schema_is_a_bad_row() {
    let broken = "message {";
    let mut known = HashMap::new();
    for (id, kind, text) in [
        (1, SchemaKind::Protobuf, TWO),
        (2, SchemaKind::Protobuf, broken),
        (3, SchemaKind::Avro, "{}"),
    ] {
        let key = SchemaKey::Id(id);
        let text = text.to_owned();
        let schema = RegisteredSchema { key, kind, text, references: Vec::new() };
        known.insert(key, Lookup::Known(Arc::new(schema)));
    }
    known.insert(SchemaKey::Id(4), Lookup::Unfetched);
    let schemas: Arc<dyn Schemas> = Arc::new(Registry(known));
    let mut decoder = with_registry(&SharedMessages::new(), &schemas);
    let good = framed(1, b"\0", b"\x08\x05");
    let rows: Vec<Option<Vec<u8>>> = [
        good.clone(),
        framed(2, b"\0", b""),
        framed(3, b"\0", b""),
        framed(4, b"\0", b""),
        framed(5, b"\0", b""),
        framed(1, b"\x02\x0a", b""),
        framed(1, b"", b""),
        b"{}".to_vec(),
        Vec::new(),
        good,
    ]
    .into_iter()
    .map(Some)
    .collect();
    let values: Vec<Option<Value<'_>>> =
        rows.iter().map(|row| row.as_deref().map(Value::new)).collect();
    assert_eq!(decoder.unfetched(&values), [SchemaKey::Id(4)]);
    let (array, bad) = decode(&mut decoder, &rows);
    assert_eq!((row_of(&array, 0), row_of(&array, 9)), (json!({"id": 5}), json!({"id": 5})));
    let messages: Vec<&str> = bad.iter().map(|(_, message)| message.as_str()).collect();
    assert!(messages[0].starts_with("schema 2 cannot be used: "), "{messages:?}");
    assert_eq!(
        messages[1..],
        [
            "schema 3 is Avro, not Protobuf",
            "schema 4 was not fetched",
            "schema 5: no such schema",
            "schema 1 has no message at the indexes [5]",
            "ends inside of the message indexes",
            "no schema: the schema's prefix begins with byte 0x7b",
            "ends inside of the schema's prefix",
        ]
    );
    assert_eq!(bad.iter().map(|(row, _)| *row).collect::<Vec<_>>(), (1..9).collect::<Vec<_>>());
    assert_eq!(decoder.unfetched(&values), [SchemaKey::Id(4)]);
}

#[test]
fn many_writers_share_a_batch() {
    let texts: Vec<(u32, String)> = (0..9)
        .map(|id| (id, format!("syntax = 'proto3'; message M {{ int32 f{id} = {}; }}", id + 1)))
        .collect();
    let texts: Vec<(u32, &str)> = texts.iter().map(|(id, text)| (*id, text.as_str())).collect();
    let schemas = registry(&texts);
    let mut decoder = with_registry(&SharedMessages::new(), &schemas);
    let rows: Vec<Option<Vec<u8>>> = (0..50_u32)
        .map(|row| Some(framed(row % 9, b"\0", &[(row % 9 + 1) as u8 * 8, row as u8])))
        .collect();
    for _ in 0..2 {
        let (array, bad) = decode(&mut decoder, &rows);
        assert_eq!(bad, []);
        for row in 0..50 {
            assert_eq!(row_of(&array, row), json!({format!("f{}", row % 9): row}));
        }
    }
}

#[test]
fn schemas_may_be_in_a_header() {
    let schemas = registry(&[(1, TWO)]);
    let mut decoder = with_registry(&SharedMessages::new(), &schemas);
    let header = framed(1, b"\x02\x02", b"");
    let values = [Some(Value { bytes: b"\x08\x06", schema_header: Some(&header) })];
    let array = decoder.decode(&values, &mut Vec::new()).expect("decodes");
    assert_eq!(row_of(&array, 0), json!({"of": 6}));
}

#[test]
fn what_nobody_wants_is_skipped() {
    let wanted = Projection::new(["i32", "leaf.inner.z", "cs", "msi", "gone", "leaf.gone"]);
    let mut decoder = given_part(BROAD, "t.Broad", wanted);
    let descriptor = message(BROAD, "t.Broad");
    for seed in 0..50 {
        let bytes = Random(seed).message(&descriptor, 0).encode_to_vec();
        let full = oracle(&descriptor, &bytes);
        let mut part = serde_json::Map::new();
        for name in ["i32", "cs", "msi"] {
            if let Some(value) = full.get(name) {
                part.insert(name.to_owned(), value.clone());
            }
        }
        if let Some(leaf) = full.get("leaf") {
            let inner = leaf.get("inner").map(|inner| json!({"z": inner["z"]}));
            let leaf = inner.map_or(json!({}), |inner| json!({"inner": inner}));
            part.insert("leaf".to_owned(), leaf);
        }
        assert_eq!(one(&mut decoder, &bytes), Json::Object(part));
    }
    // A field that nobody wants still clears the others of its oneof, and what it holds is not looked at.
    assert_eq!(one(&mut decoder, b"\x9a\x03\x01a\x90\x03\x05")["cs"], Json::Null);
    assert_eq!(one(&mut decoder, b"\x72\x01\xff")["i32"], 0);
    let mut nothing = given_part(BROAD, "t.Broad", Projection::new(["gone"]));
    let (array, bad) = decode(&mut nothing, &[Some(&b"\x08\x01"[..]), Some(b"\x08")]);
    assert_eq!((array.null_count(), bad.len()), (2, 1));
}

#[test]
fn a_type_without_fields_stays_bytes() {
    let mut decoder = given("syntax = 'proto3'; message M {}", "M");
    let (array, bad) = decode(&mut decoder, &[Some(&b"\x08\x01"[..]), None, Some(b"\x08")]);
    assert_eq!(bad.len(), 1);
    assert_eq!(row_of(&array, 0), "0x0801");
    assert!(array.is_null(1) && array.is_null(2));
}
