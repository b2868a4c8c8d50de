//! Values that went in come out: apache-avro writes them.

use apache_avro::types::Value as Avro;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    Date32Type, Decimal128Type, Decimal256Type, Float32Type, Float64Type, Int32Type, Int64Type,
    IntervalMonthDayNanoType, Time32MillisecondType, Time64MicrosecondType, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::super::reject::Reason;
use super::super::schemas::Reference;
use super::*;

/// Schemas by id; those in `unfetched` have to be fetched first.
#[derive(Default)]
struct Registry {
    known: HashMap<u32, RegisteredSchema>,
    unfetched: Vec<u32>,
}

impl Registry {
    fn of(schemas: &[&str]) -> Arc<Self> {
        let mut registry = Self::default();
        for (id, text) in (1..).zip(schemas) {
            registry.add(id, SchemaKind::Avro, text, &[]);
        }
        Arc::new(registry)
    }

    fn add(&mut self, id: u32, kind: SchemaKind, text: &str, references: &[&str]) {
        let reference = |text: &&str| Reference { name: "ref".into(), text: (*text).into() };
        let references = references.iter().map(reference).collect();
        let text = text.to_owned();
        let schema = RegisteredSchema { key: SchemaKey::Id(id), kind, text, references };
        self.known.insert(id, schema);
    }
}

impl Schemas for Registry {
    fn look_up(&self, key: &SchemaKey) -> Lookup {
        match key {
            SchemaKey::Id(id) if self.unfetched.contains(id) => Lookup::Unfetched,
            SchemaKey::Id(id) => match self.known.get(id) {
                Some(schema) => Lookup::Known(Arc::new(schema.clone())),
                None => Lookup::Unknown("the registry does not know it".into()),
            },
            SchemaKey::Guid(_) => Lookup::Unknown("no".into()),
        }
    }
}

fn registered(registry: &Arc<Registry>) -> AvroDecoder {
    let limits = RecordLimits::default();
    AvroDecoder::registered(AvroShape::new(), registry.clone(), Projection::All, limits)
}

fn plain(schema: &str) -> AvroDecoder {
    let shape = AvroShape::given(schema, []).expect("a schema");
    AvroDecoder::plain(shape, Projection::All, RecordLimits::default()).expect("a decoder")
}

fn framed(id: u32, body: &[u8]) -> Vec<u8> {
    [&[0], id.to_be_bytes().as_slice(), body].concat()
}

/// The bytes of a value that JSON describes.
fn written(schema: &str, value: &Json) -> Vec<u8> {
    let schema = Schema::parse(schema, []).expect("a schema");
    let mut bytes = Vec::new();
    assert!(default::encode(&schema, schema.root, value, &mut bytes), "{value}");
    bytes
}

#[test]
fn many_rows_of_wide_columns_are_too_much_for_a_batch() {
    let schema = r#"{"type":"record","name":"R","fields":[{"name":"a",
        "type":["null",{"type":"fixed","name":"F","size":4096}]}]}"#;
    let mut decoder = plain(schema);
    let nulls = vec![Some(Value::new(b"\0")); 100_000];
    let error = decoder.decode(&nulls, &mut Vec::new()).expect_err("too much");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    let (array, bad) = decode(&mut decoder, &vec![b"\0".to_vec(); 50_000]);
    assert_eq!((array.len(), bad.len()), (50_000, 0));
}

#[test]
fn items_take_their_room_before_they_are_there() {
    let fields: Vec<String> =
        (0..990).map(|at| format!(r#"{{"name":"f{at}","type":["null","long"]}}"#)).collect();
    let schema = format!(
        r#"{{"type":"record","name":"R","fields":[{{"name":"l","type":{{"type":"array","items":["null",
            {{"type":"record","name":"I","fields":[{}]}}]}}}}]}}"#,
        fields.join(",")
    );
    let mut decoder = plain(&schema);
    let nulls = |count: usize| written(&schema, &json!({"l": vec![Json::Null; count]}));
    let (_, bad) = decode(&mut decoder, &[nulls(200_000)]);
    assert_eq!(bad.len(), 1, "1.6 GB");
    assert!(bad[0].1.contains("more than the bytes one record may have"), "{bad:?}");
    // Each record is within its limits, all of them together are not.
    let record = nulls(8_000);
    let values = vec![Some(Value::new(&record)); 8];
    let error = decoder.decode(&values, &mut Vec::new()).expect_err("0.5 GB");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    let (array, bad) = decode(&mut decoder, &[record.clone(), record]);
    assert_eq!((array.len(), bad.len()), (2, 0));
}

type Bad = Vec<(usize, String)>;

fn decode(decoder: &mut AvroDecoder, records: &[Vec<u8>]) -> (ArrayRef, Bad) {
    let values: Vec<_> = records.iter().map(|record| Some(Value::new(record))).collect();
    let mut bad = Vec::new();
    let array = decoder.decode(&values, &mut bad).expect("no failure of ours");
    assert_eq!(array.len(), records.len());
    let bad = bad.into_iter().map(|bad| (bad.row, bad.reject.message)).collect();
    (array, bad)
}

fn rows(array: &ArrayRef) -> Vec<Json> {
    (0..array.len()).map(|row| show(array, row)).collect()
}

fn hex(bytes: &[u8]) -> Json {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

/// A row as JSON.
fn show(array: &dyn Array, row: usize) -> Json {
    if array.is_null(row) {
        return Json::Null;
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Date32 => array.as_primitive::<Date32Type>().value(row).into(),
        DataType::Time32(_) => array.as_primitive::<Time32MillisecondType>().value(row).into(),
        DataType::Time64(_) => array.as_primitive::<Time64MicrosecondType>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            array.as_primitive::<TimestampMillisecondType>().value(row).into()
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            array.as_primitive::<TimestampMicrosecondType>().value(row).into()
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            array.as_primitive::<TimestampNanosecondType>().value(row).into()
        }
        DataType::Float32 => format!("{:?}", array.as_primitive::<Float32Type>().value(row)).into(),
        DataType::Float64 => format!("{:?}", array.as_primitive::<Float64Type>().value(row)).into(),
        DataType::Decimal128(..) => {
            array.as_primitive::<Decimal128Type>().value(row).to_string().into()
        }
        DataType::Decimal256(..) => {
            array.as_primitive::<Decimal256Type>().value(row).to_string().into()
        }
        DataType::Interval(_) => {
            let value = array.as_primitive::<IntervalMonthDayNanoType>().value(row);
            json!([value.months, value.days, value.nanoseconds])
        }
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::Binary => hex(array.as_binary::<i32>().value(row)),
        DataType::FixedSizeBinary(_) => hex(array.as_fixed_size_binary().value(row)),
        DataType::Struct(fields) => fields
            .iter()
            .zip(array.as_struct().columns())
            .map(|(field, column)| (field.name().clone(), show(column, row)))
            .collect(),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            (0..items.len()).map(|item| show(&items, item)).collect()
        }
        DataType::Map(..) => {
            let pairs = array.as_map().value(row);
            let (keys, values) = (pairs.column(0).as_string::<i32>(), pairs.column(1));
            let mut shown: Vec<(String, Json)> = (0..pairs.len())
                .map(|item| (keys.value(item).to_owned(), show(values, item)))
                .collect();
            shown.sort_by(|left, right| left.0.cmp(&right.0));
            Json::Object(shown.into_iter().collect())
        }
        other => panic!("{other}"),
    }
}

/// A source of types and values.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("small")
    }

    /// A number of any magnitude.
    fn long(&mut self) -> i64 {
        let bits = self.below(64);
        self.next().cast_signed() >> bits
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

#[derive(Clone, Debug)]
enum Type {
    /// Its schema and its name in a union.
    Plain(Json, &'static str),
    Null,
    /// Whether null comes first.
    Nullable(Box<Type>, bool),
    Union(Vec<Type>),
    Array(Box<Type>),
    Map(Box<Type>),
    Record(u64, Vec<Type>),
}

const PLAIN: usize = 24;

fn plain_type(at: usize, rng: &mut Rng) -> Type {
    let logical = |of: &str, logical: &str| json!({"type": of, "logicalType": logical});
    let fixed = |size: usize, rng: &mut Rng| json!({"type": "fixed", "name": format!("F{}", rng.next()), "size": size});
    let (schema, label) = match at {
        0 => (json!("boolean"), "boolean"),
        1 => (json!("int"), "int"),
        2 => (json!("long"), "long"),
        3 => (json!("float"), "float"),
        4 => (json!("double"), "double"),
        5 => (json!("bytes"), "bytes"),
        6 => (json!("string"), "string"),
        7 => (logical("int", "date"), "int"),
        8 => (logical("int", "time-millis"), "int"),
        9 => (logical("long", "time-micros"), "long"),
        10 => (logical("long", "timestamp-millis"), "long"),
        11 => (logical("long", "timestamp-micros"), "long"),
        12 => (logical("long", "timestamp-nanos"), "long"),
        13 => (logical("long", "local-timestamp-millis"), "long"),
        14 => (logical("long", "local-timestamp-micros"), "long"),
        15 => (logical("long", "local-timestamp-nanos"), "long"),
        16 => (logical("string", "uuid"), "string"),
        17 => {
            let mut schema = logical("bytes", "decimal");
            schema["precision"] = json!(30);
            schema["scale"] = json!(4);
            (schema, "bytes")
        }
        18 => {
            let mut schema = logical("bytes", "decimal");
            schema["precision"] = json!(60);
            (schema, "bytes")
        }
        19 => {
            let mut schema = fixed(9, rng);
            schema["logicalType"] = json!("decimal");
            schema["precision"] = json!(19);
            (schema, "")
        }
        20 => {
            let mut schema = fixed(12, rng);
            schema["logicalType"] = json!("duration");
            (schema, "")
        }
        21 => (fixed(5, rng), ""),
        22 => {
            let name = format!("E{}", rng.next());
            (json!({"type": "enum", "name": name, "symbols": ["ONE", "two", "Three"]}), "")
        }
        _ => (logical("string", "unheard-of"), "string"),
    };
    Type::Plain(schema, label)
}

fn any_type(rng: &mut Rng, depth: usize) -> Type {
    let inner = |rng: &mut Rng| Box::new(any_type(rng, depth - 1));
    match rng.below(if depth == 0 { 10 } else { 18 }) {
        0..=8 => plain_type(rng.below(PLAIN), rng),
        9 => Type::Null,
        10 | 11 => match any_type(rng, depth - 1) {
            Type::Null | Type::Nullable(..) | Type::Union(_) => Type::Null,
            other => Type::Nullable(Box::new(other), rng.below(2) == 0),
        },
        12 => {
            let mut branches: Vec<Type> = Vec::new();
            let mut labels = Vec::new();
            for _ in 0..4 {
                let branch = any_type(rng, depth - 1);
                let label = match &branch {
                    Type::Nullable(..) | Type::Union(_) => continue,
                    branch => label(branch),
                };
                if !labels.contains(&label) {
                    labels.push(label);
                    branches.push(branch);
                }
            }
            match branches.iter().filter(|branch| !matches!(branch, Type::Null)).count() {
                0 | 1 => Type::Null,
                _ => Type::Union(branches),
            }
        }
        13 | 14 => Type::Array(inner(rng)),
        15 => Type::Map(inner(rng)),
        _ => record_type(rng, depth),
    }
}

fn record_type(rng: &mut Rng, depth: usize) -> Type {
    let fields = (0..rng.below(6)).map(|_| any_type(rng, depth - 1)).collect();
    Type::Record(rng.next(), fields)
}

/// The name of a type in a union.
fn label(of: &Type) -> String {
    match of {
        Type::Plain(schema, "") => schema["name"].as_str().expect("a name").to_owned(),
        Type::Plain(_, label) => (*label).to_owned(),
        Type::Null => "null".to_owned(),
        Type::Array(_) => "array".to_owned(),
        Type::Map(_) => "map".to_owned(),
        Type::Record(name, _) => format!("R{name}"),
        Type::Nullable(..) | Type::Union(_) => panic!("a union in a union"),
    }
}

fn schema_of(of: &Type) -> Json {
    match of {
        Type::Plain(schema, _) => schema.clone(),
        Type::Null => json!("null"),
        Type::Nullable(other, true) => json!(["null", schema_of(other)]),
        Type::Nullable(other, false) => json!([schema_of(other), "null"]),
        Type::Union(branches) => branches.iter().map(schema_of).collect(),
        Type::Array(item) => json!({"type": "array", "items": schema_of(item)}),
        Type::Map(value) => json!({"type": "map", "values": schema_of(value)}),
        Type::Record(name, fields) => {
            let field =
                |(at, of): (usize, &Type)| json!({"name": format!("f{at}"), "type": schema_of(of)});
            let fields: Vec<Json> = fields.iter().enumerate().map(field).collect();
            json!({"type": "record", "name": format!("R{name}"), "fields": fields})
        }
    }
}

fn has_column(of: &Type) -> bool {
    match of {
        Type::Plain(..) => true,
        Type::Null => false,
        Type::Nullable(of, _) | Type::Array(of) | Type::Map(of) => has_column(of),
        Type::Union(parts) | Type::Record(_, parts) => parts.iter().any(has_column),
    }
}

/// A value, and how its column shows it.
fn any_value(of: &Type, rng: &mut Rng) -> (Avro, Json) {
    match of {
        Type::Null => (Avro::Null, Json::Null),
        Type::Plain(schema, _) => plain_value(schema, rng),
        Type::Nullable(other, null_first) => match rng.below(3) {
            0 => (Avro::Union(u32::from(!null_first), Box::new(Avro::Null)), Json::Null),
            _ => {
                let (value, shown) = any_value(other, rng);
                (Avro::Union(u32::from(*null_first), Box::new(value)), shown)
            }
        },
        Type::Union(branches) => {
            let at = rng.below(branches.len());
            let (value, shown) = any_value(&branches[at], rng);
            let value = Avro::Union(u32::try_from(at).expect("small"), Box::new(value));
            if matches!(branches[at], Type::Null) {
                return (value, Json::Null);
            }
            let field = |(branch, of): (usize, &Type)| {
                let shown = if branch == at { shown.clone() } else { Json::Null };
                (label(of), shown)
            };
            let with_columns = branches.iter().enumerate().filter(|(_, of)| has_column(of));
            (value, with_columns.map(field).collect())
        }
        Type::Array(item) => {
            let (values, shown) = (0..rng.below(4)).map(|_| any_value(item, rng)).unzip();
            (Avro::Array(values), Json::Array(shown))
        }
        Type::Map(of) => {
            let mut values = HashMap::new();
            let mut shown = std::collections::BTreeMap::new();
            for key in 0..rng.below(12) {
                let (value, text) = any_value(of, rng);
                values.insert(format!("ключ {key}"), value);
                shown.insert(format!("ключ {key}"), text);
            }
            (Avro::Map(values), shown.into_iter().collect())
        }
        Type::Record(_, fields) => {
            let mut values = Vec::new();
            let mut shown = serde_json::Map::new();
            for (at, of) in fields.iter().enumerate() {
                let (value, text) = any_value(of, rng);
                values.push((format!("f{at}"), value));
                if has_column(of) {
                    shown.insert(format!("f{at}"), text);
                }
            }
            (Avro::Record(values), Json::Object(shown))
        }
    }
}

fn plain_value(schema: &Json, rng: &mut Rng) -> (Avro, Json) {
    let kind = schema["type"].as_str().or(schema.as_str()).expect("a type");
    let int = |rng: &mut Rng| rng.long() as i32;
    match (kind, schema["logicalType"].as_str()) {
        ("boolean", _) => {
            let value = rng.below(2) == 0;
            (Avro::Boolean(value), value.into())
        }
        ("int", None) => {
            let value = int(rng);
            (Avro::Int(value), value.into())
        }
        ("int", Some("date")) => {
            let value = int(rng);
            (Avro::Date(value), value.into())
        }
        ("int", _) => {
            let value = int(rng).rem_euclid(86_400_000);
            (Avro::TimeMillis(value), value.into())
        }
        ("long", logical) => {
            let value = rng.long();
            let avro = match logical {
                None => Avro::Long(value),
                Some("time-micros") => {
                    let value = value.rem_euclid(86_400_000_000);
                    return (Avro::TimeMicros(value), value.into());
                }
                Some("timestamp-millis") => Avro::TimestampMillis(value),
                Some("timestamp-micros") => Avro::TimestampMicros(value),
                Some("timestamp-nanos") => Avro::TimestampNanos(value),
                Some("local-timestamp-millis") => Avro::LocalTimestampMillis(value),
                Some("local-timestamp-micros") => Avro::LocalTimestampMicros(value),
                Some("local-timestamp-nanos") => Avro::LocalTimestampNanos(value),
                Some(other) => panic!("{other}"),
            };
            (avro, value.into())
        }
        ("float", _) => {
            let value = f32::from_bits(rng.next() as u32);
            (Avro::Float(value), format!("{value:?}").into())
        }
        ("double", _) => {
            let value = f64::from_bits(rng.next());
            (Avro::Double(value), format!("{value:?}").into())
        }
        ("string", Some("uuid")) => {
            let bytes: [u8; 16] = rng.bytes(16).try_into().expect("16");
            let text = String::from_utf8(run::hyphenated(bytes)).expect("text");
            (Avro::String(text.clone()), text.into())
        }
        ("string", _) => {
            let words = ["", "x", "grüezi ", "a longer text than the others have ", "😀"];
            let text: String = (0..rng.below(4)).map(|_| words[rng.below(5)]).collect();
            (Avro::String(text.clone()), text.into())
        }
        (_, Some("decimal")) => {
            let digits = schema["precision"].as_u64().expect("digits") as usize;
            let value = (0..rng.below(digits) + 1).fold(i256::ZERO, |value, _| {
                let digit = i256::from_i128(rng.below(10) as i128);
                value.wrapping_mul(i256::from_i128(10)).wrapping_add(digit)
            });
            let value = if rng.below(2) == 0 { value.wrapping_neg() } else { value };
            let bytes = value.to_be_bytes();
            // The shortest form of bytes, and all those of a fixed.
            let length = schema["size"].as_u64().map_or_else(
                || (1..=32).find(|length| is_extended(&bytes, 32 - length)).expect("a length"),
                |size| size as usize,
            );
            let avro = Avro::Decimal(apache_avro::Decimal::from(&bytes[32 - length..]));
            (avro, value.to_string().into())
        }
        ("bytes", _) => {
            let count = rng.below(9);
            let bytes = rng.bytes(count);
            (Avro::Bytes(bytes.clone()), hex(&bytes))
        }
        ("fixed", Some("duration")) => {
            let (months, days, millis) =
                (rng.next() as u32 >> 1, rng.next() as u32 >> 1, rng.next() as u32);
            let duration = apache_avro::Duration::new(
                apache_avro::Months::new(months),
                apache_avro::Days::new(days),
                apache_avro::Millis::new(millis),
            );
            (Avro::Duration(duration), json!([months, days, i64::from(millis) * 1_000_000]))
        }
        ("fixed", _) => {
            let bytes = rng.bytes(5);
            (Avro::Fixed(5, bytes.clone()), hex(&bytes))
        }
        ("enum", _) => {
            let at = rng.below(3);
            let symbol = ["ONE", "two", "Three"][at];
            (Avro::Enum(u32::try_from(at).expect("small"), symbol.into()), symbol.into())
        }
        other => panic!("{other:?}"),
    }
}

/// Whether the first `count` bytes only repeat the sign.
fn is_extended(bytes: &[u8; 32], count: usize) -> bool {
    let sign = bytes[count] & 0x80;
    bytes[..count].iter().all(|byte| *byte == if sign == 0 { 0 } else { 0xff })
}

use arrow::datatypes::i256;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// Any values of any schema come back, whatever is wrong with their neighbours, in batches of any size.
    #[test]
    fn every_value_comes_back(seed: u64) {
        let mut rng = Rng(seed);
        let of = match rng.below(5) {
            0 => any_type(&mut rng, 3),
            _ => record_type(&mut rng, 4),
        };
        let text = schema_of(&of).to_string();
        // It takes two logical types for one, and then refuses a union of both.
        let Ok(theirs) = apache_avro::Schema::parse_str(&text) else { return Ok(()) };
        // See `bytes_alone_have_no_length`.
        if Schema::parse(&text, []).expect("a schema").is_bytes() {
            return Ok(());
        }
        let is_record = matches!(of, Type::Record(..));
        let mut records = Vec::new();
        let mut wanted = Vec::new();
        for _ in 0..rng.below(16) {
            let (value, shown) = any_value(&of, &mut rng);
            let mut bytes = apache_avro::to_avro_datum(&theirs, value).expect("written");
            let mut shown = if is_record { shown } else { json!({"value": shown}) };
            match rng.below(6) {
                0 if !bytes.is_empty() => {
                    bytes.truncate(rng.below(bytes.len()));
                    shown = Json::from("bad");
                }
                1 => {
                    bytes.push(rng.next() as u8);
                    shown = Json::from("bad");
                }
                _ => {}
            }
            records.push(framed(1, &bytes));
            wanted.push(shown);
        }
        let registry = Registry::of(&[&text]);
        let mut decoder = registered(&registry);
        let size = 1 + rng.below(16);
        for (records, wanted) in records.chunks(size).zip(wanted.chunks(size)) {
            let (array, bad) = decode(&mut decoder, records);
            let wrong: Vec<usize> = bad.iter().map(|bad| bad.0).collect();
            let is_wrong = |row: &usize| wanted[*row] == "bad";
            prop_assert_eq!(&wrong, &(0..records.len()).filter(is_wrong).collect::<Vec<_>>(), "{:?}", bad);
            for (row, wanted) in wanted.iter().enumerate() {
                if is_wrong(&row) {
                    prop_assert!(array.is_null(row));
                } else if array.data_type() == &DataType::Binary {
                    prop_assert!(!has_column(&of) || records.len() == wrong.len());
                    prop_assert_eq!(show(&array, row), hex(&records[row]));
                } else {
                    prop_assert_eq!(&show(&array, row), wanted, "{}", text);
                }
            }
        }
    }

    #[test]
    fn garbage_is_harmless(seed: u64, garbage in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..6], 0..80)) {
        let mut rng = Rng(seed);
        let text = schema_of(&record_type(&mut rng, 4)).to_string();
        let good = written(MIXED, &mixed());
        let registry = Registry::of(&[MIXED, &text]);
        let records = [framed(1, &good), framed(2, &garbage), framed(1, &garbage), garbage, framed(1, &good)];
        let (array, bad) = decode(&mut registered(&registry), &records);
        prop_assert!(bad.iter().all(|(row, _)| (1..4).contains(row)));
        for row in [0, 4] {
            let Json::Object(shown) = show(&array, row) else { panic!("no row") };
            for (name, value) in mixed().as_object().expect("an object") {
                if name != "map" && name != "union" {
                    prop_assert_eq!(&shown[name], value);
                }
            }
        }
    }
}

const MIXED: &str = r#"{"type":"record","name":"M","fields":[
    {"name":"id","type":"long"},
    {"name":"name","type":["null","string"]},
    {"name":"tags","type":{"type":"array","items":"string"}},
    {"name":"map","type":{"type":"map","values":{"type":"array","items":"int"}}},
    {"name":"inner","type":{"type":"record","name":"I","fields":[
        {"name":"flag","type":"boolean"},
        {"name":"list","type":{"type":"array","items":{"type":"record","name":"J","fields":[
            {"name":"x","type":"int"},{"name":"y","type":["string","null"]}]}}}]}},
    {"name":"union","type":["int","string","J","null"]},
    {"name":"kind","type":{"type":"enum","name":"K","symbols":["A","B"]}}]}"#;

fn mixed() -> Json {
    json!({"id": 1_234_567_890_123i64, "name": "näme", "tags": ["a", "bc", ""],
        "map": {"k": [1, -2], "l": []},
        "inner": {"flag": true, "list": [{"x": 5, "y": "why"}, {"x": 300, "y": null}]},
        "union": "text", "kind": "B"})
}

fn mixed_shown() -> Json {
    let mut shown = mixed();
    shown["union"] = json!({"int": null, "string": "text", "J": null});
    shown
}

#[test]
fn every_prefix_is_a_bad_row_between_good_ones() {
    let good = written(MIXED, &mixed());
    let registry = Registry::of(&[MIXED]);
    let mut records = Vec::new();
    for length in 0..good.len() {
        records.push(framed(1, &good));
        records.push(framed(1, &good[..length]));
        records.push(framed(1, &good)[..length.min(4)].to_vec());
    }
    let (array, bad) = decode(&mut registered(&registry), &records);
    let wrong: Vec<usize> = bad.iter().map(|bad| bad.0).collect();
    assert_eq!(wrong, (0..records.len()).filter(|row| row % 3 != 0).collect::<Vec<_>>());
    for (row, shown) in rows(&array).into_iter().enumerate() {
        assert_eq!(shown, if row % 3 == 0 { mixed_shown() } else { Json::Null });
    }
    // Any changed byte: whatever it makes of the record, its neighbours stay.
    for at in 0..good.len() {
        let changed = (0..=255).step_by(5).flat_map(|byte| {
            let mut changed = good.clone();
            changed[at] = byte;
            [framed(1, &changed), framed(1, &good)]
        });
        let records: Vec<Vec<u8>> = changed.collect();
        let (array, _) = decode(&mut registered(&registry), &records);
        assert!((1..records.len()).step_by(2).all(|row| show(&array, row) == mixed_shown()));
    }
}

fn record(fields: &str) -> String {
    format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#)
}

#[test]
fn schemas_of_a_topic_unite() {
    // Schemas with a value each, in one batch; what the rows show; what is said of them.
    type Case<'a> = (&'a [(&'a str, Json)], Json, &'a [(usize, &'a str)]);
    let cases: &[Case<'_>] = &[
        (
            &[
                (r#"{"name":"a","type":"int"}"#, json!({"a": 1})),
                (
                    r#"{"name":"b","type":"string"},{"name":"a","type":"long"}"#,
                    json!({"a": 2, "b": "x"}),
                ),
                (r#"{"name":"b","type":["null","string"]}"#, json!({"b": null})),
            ],
            json!([{"a": 1, "b": null}, {"a": 2, "b": "x"}, {"a": null, "b": null}]),
            &[],
        ),
        (
            &[
                (r#"{"name":"a","type":"int"}"#, json!({"a": 7})),
                (r#"{"name":"a","type":"float"}"#, json!({"a": 0.5})),
                (r#"{"name":"a","type":"long"}"#, json!({"a": 9_007_199_254_740_992i64})),
                (r#"{"name":"a","type":"long"}"#, json!({"a": 9_007_199_254_740_993i64})),
                (r#"{"name":"a","type":"double"}"#, json!({"a": 0.1})),
            ],
            json!([{"a": "7.0"}, {"a": "0.5"}, {"a": "9007199254740992.0"}, null, {"a": "0.1"}]),
            &[(
                3,
                "the field 'a': the column is of floating point and does not hold 9007199254740993 exactly",
            )],
        ),
        // The fields that fit are kept.
        (
            &[
                (r#"{"name":"a","type":"int"},{"name":"b","type":"int"}"#, json!({"a": 1, "b": 2})),
                (
                    r#"{"name":"a","type":"string"},{"name":"b","type":"int"}"#,
                    json!({"a": "x", "b": 3}),
                ),
                (r#"{"name":"a","type":["null","string"]}"#, json!({"a": null})),
            ],
            json!([{"a": 1, "b": 2}, {"a": null, "b": 3}, {"a": null, "b": null}]),
            &[(1, "the field 'a': a value of type string does not fit a column of type Int32")],
        ),
        (
            &[
                (
                    r#"{"name":"a","type":{"type":"record","name":"S","fields":[{"name":"x","type":"int"}]}}"#,
                    json!({"a": {"x": 1}}),
                ),
                (
                    r#"{"name":"a","type":{"type":"record","name":"S","fields":[{"name":"x","type":"bytes"},{"name":"y","type":"int"}]}}"#,
                    json!({"a": {"x": "x", "y": 2}}),
                ),
            ],
            json!([{"a": {"x": 1, "y": null}}, {"a": {"x": null, "y": 2}}]),
            &[(1, "the field 'a.x': a value of type bytes does not fit a column of type Int32")],
        ),
        (
            &[
                (r#"{"name":"a","type":{"type":"array","items":"int"}}"#, json!({"a": [1]})),
                (r#"{"name":"a","type":{"type":"array","items":"long"}}"#, json!({"a": [2, 3]})),
                (r#"{"name":"a","type":{"type":"array","items":"string"}}"#, json!({"a": ["x"]})),
            ],
            json!([{"a": [1]}, {"a": [2, 3]}, {"a": null}]),
            &[(2, "the field 'a': a value of type array does not fit a column of lists")],
        ),
        // A union grows, and shrinks to one type.
        (
            &[
                (r#"{"name":"a","type":["null","int","string"]}"#, json!({"a": 1})),
                (r#"{"name":"a","type":["string","double","int"]}"#, json!({"a": "x"})),
                (r#"{"name":"a","type":["null","string"]}"#, json!({"a": "y"})),
            ],
            json!([
                {"a": {"int": 1, "string": null, "double": null}},
                {"a": {"int": null, "string": "x", "double": null}},
                {"a": {"int": null, "string": "y", "double": null}}
            ]),
            &[],
        ),
        // One type becomes a union: what is of that type still fits.
        (
            &[
                (r#"{"name":"a","type":"int"}"#, json!({"a": 1})),
                (r#"{"name":"a","type":["string","int"]}"#, json!({"a": 2})),
                (r#"{"name":"a","type":["string","int"]}"#, json!({"a": "x"})),
            ],
            json!([{"a": 1}, {"a": 2}, {"a": null}]),
            &[(2, "the field 'a': a value of type string does not fit a column of type Int32")],
        ),
        (
            &[
                (r#"{"name":"a","type":{"type":"int","logicalType":"date"}}"#, json!({"a": 1})),
                (r#"{"name":"a","type":"int"}"#, json!({"a": 2})),
                (
                    r#"{"name":"a","type":{"type":"enum","name":"E","symbols":["X"]}}"#,
                    json!({"a": "X"}),
                ),
            ],
            json!([{"a": 1}, {"a": null}, {"a": null}]),
            &[
                (1, "the field 'a': a value of type int does not fit a column of type Date32"),
                (2, "the field 'a': the enum E does not fit a column of type Date32"),
            ],
        ),
    ];
    for (records, wanted, said) in cases {
        let schemas: Vec<String> = records.iter().map(|(fields, _)| record(fields)).collect();
        let texts: Vec<&str> = schemas.iter().map(String::as_str).collect();
        let registry = Registry::of(&texts);
        let batch: Vec<Vec<u8>> = (1..)
            .zip(*records)
            .zip(&schemas)
            .map(|((id, (_, value)), schema)| framed(id, &written(schema, value)))
            .collect();
        let said: Bad = said.iter().map(|(row, text)| (*row, (*text).to_owned())).collect();
        let mut decoder = registered(&registry);
        let (array, bad) = decode(&mut decoder, &batch);
        assert_eq!(&Json::Array(rows(&array)), wanted, "{texts:?}");
        assert_eq!(bad, said);
        // The same when they come one after the other, with what was known from the start.
        for (row, value) in batch.iter().enumerate() {
            let (array, bad) = decode(&mut decoder, std::slice::from_ref(value));
            assert_eq!(show(&array, 0), wanted[row]);
            assert_eq!(
                bad.first().map(|bad| &bad.1),
                said.iter().find(|said| said.0 == row).map(|said| &said.1)
            );
        }
    }
}

#[test]
fn columns_grow_for_all_who_share_them() {
    let old = record(r#"{"name":"a","type":"int"}"#);
    let new = record(r#"{"name":"a","type":"int"},{"name":"b","type":"int"}"#);
    let registry = Registry::of(&[&old, &new]);
    let shape = AvroShape::new();
    let make = || {
        let limits = RecordLimits::default();
        AvroDecoder::registered(shape.clone(), registry.clone(), Projection::All, limits)
    };
    let (mut first, mut second) = (make(), make());
    let old = framed(1, &written(&old, &json!({"a": 1})));
    let new = framed(2, &written(&new, &json!({"a": 2, "b": 3})));
    assert_eq!(shape.data_type(), None);
    assert_eq!(rows(&decode(&mut first, std::slice::from_ref(&old)).0), [json!({"a": 1})]);
    let epoch = shape.epoch();
    assert_eq!(rows(&decode(&mut second, &[new]).0), [json!({"a": 2, "b": 3})]);
    assert!(shape.epoch() > epoch);
    assert_eq!(rows(&decode(&mut first, &[old]).0), [json!({"a": 1, "b": null})]);
}

#[test]
fn bad_records_bring_no_columns() {
    let wide = record(r#"{"name":"z","type":"double"}"#);
    let good = record(r#"{"name":"a","type":"int"}"#);
    let registry = Registry::of(&[&good, &wide]);
    let mut decoder = registered(&registry);
    let (array, bad) = decode(&mut decoder, &[framed(2, b"short"), framed(1, b"\x02")]);
    assert_eq!(rows(&array), [Json::Null, json!({"a": 1})]);
    assert_eq!(bad, [(0, "ends inside of bytes or a string".to_owned())]);
}

#[test]
fn schemas_that_cannot_be_used_make_bad_rows() {
    let mut registry = Registry::default();
    registry.add(1, SchemaKind::Avro, &record(r#"{"name":"a","type":"int"}"#), &[]);
    registry.add(2, SchemaKind::Protobuf, "message M {}", &[]);
    registry.add(3, SchemaKind::Avro, r#""Nowhere""#, &[]);
    let node =
        r#"{"type":"record","name":"Node","fields":[{"name":"next","type":["null","Node"]}]}"#;
    registry.add(4, SchemaKind::Avro, node, &[]);
    registry.add(
        5,
        SchemaKind::Avro,
        r#"{"type":"array","items":"k.K"}"#,
        &[r#"{"type":"record","name":"K","namespace":"k","fields":[{"name":"id","type":"int"}]}"#],
    );
    let registry = Arc::new(registry);
    let mut decoder = registered(&registry);
    let records = [
        framed(1, b"\x02"),
        framed(2, b"\x02"),
        framed(3, b"\x02"),
        framed(4, b"\0"),
        framed(6, b"\x02"),
        framed(5, b"\x02\x06\0"),
        b"plain".to_vec(),
    ];
    let values: Vec<_> = records.iter().map(|record| Some(Value::new(record))).collect();
    for _ in 0..2 {
        let mut bad = Vec::new();
        let array = decoder.decode(&values, &mut bad).expect("no failure of ours");
        assert_eq!(show(&array, 0), json!({"a": 1, "value": null}));
        assert_eq!(show(&array, 5), json!({"a": null, "value": [{"id": 3}]}));
        let said: Vec<_> = bad.iter().map(|bad| (bad.row, bad.reject.message.as_str())).collect();
        assert_eq!(
            said,
            [
                (1, "schema 2: it is of type Protobuf, not Avro"),
                (2, "schema 3: the type 'Nowhere' is not defined"),
                (3, "schema 4: the type 'Node' contains itself; no Arrow type is recursive"),
                (4, "schema 6: the registry does not know it"),
                (6, "no schema: the schema's prefix begins with byte 0x70"),
            ]
        );
        assert!(bad.iter().take(4).all(|bad| bad.reject.reason == Reason::Schema));
    }
}

#[test]
fn schemas_are_fetched_first() {
    let mut registry = Registry { unfetched: vec![1, 2], ..Registry::default() };
    let decoder = registered(&Arc::new(Registry { unfetched: vec![1, 2], ..Registry::default() }));
    let records = [framed(1, b""), framed(9, b""), framed(2, b""), framed(1, b""), vec![7]];
    let mut values: Vec<_> = records.iter().map(|record| Some(Value::new(record))).collect();
    values.push(None);
    assert_eq!(decoder.unfetched(&values), [SchemaKey::Id(1), SchemaKey::Id(2)]);
    registry.unfetched.push(9);
    let error =
        registered(&Arc::new(registry)).decode(&values, &mut Vec::new()).expect_err("not at hand");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.message(), "schema 1 is not fetched");
}

/// A schema that is nothing but bytes: Confluent's serializer writes them behind the frame as they are.
#[test]
fn bytes_alone_have_no_length() {
    let decimal = r#"{"type":"bytes","logicalType":"decimal","precision":6,"scale":2}"#;
    let record = r#"{"type":"record","name":"R","fields":[{"name":"value","type":"bytes"}]}"#;
    let registry =
        Registry::of(&[r#""bytes""#, decimal, r#"["null","bytes"]"#, record, r#""string""#]);
    let long = vec![7; 300_000];
    // The second one could be Avro's, with its length.
    let bodies: [&[u8]; 6] = [b"", b"\x06abc", b"{}", b"\x04", b"\xff\xff\xff\xff", &long];
    let records: Vec<Vec<u8>> = bodies.iter().map(|body| framed(1, body)).collect();
    let (array, bad) = decode(&mut registered(&registry), &records);
    assert_eq!(bad, []);
    let wanted: Vec<Json> = bodies.iter().map(|body| json!({"value": hex(body)})).collect();
    assert_eq!(rows(&array), wanted);
    // Also with the id in a header, and where there are other things around them.
    let header = framed(1, b"");
    let value = Value { bytes: b"\x06abc", schema_header: Some(&header) };
    let array = registered(&registry).decode(&[Some(value)], &mut Vec::new()).expect("decoded");
    assert_eq!(rows(&array), [json!({"value": hex(b"\x06abc")})]);
    let (array, bad) = decode(&mut registered(&registry), &[framed(2, b"\x03\xe7")]);
    assert_eq!((rows(&array), bad), (vec![json!({"value": "999"})], vec![]));
    for (id, good, cut) in [(3, &b"\x02\x06abc"[..], &b"\x02abc"[..]), (4, b"\x06abc", b"abc")] {
        let (array, bad) = decode(&mut registered(&registry), &[framed(id, good), framed(id, cut)]);
        assert_eq!(rows(&array)[0], json!({"value": hex(b"abc")}));
        assert_eq!(bad.len(), 1);
    }
    let (array, _) = decode(&mut registered(&registry), &[framed(5, b"\x06abc")]);
    assert_eq!(rows(&array), [json!({"value": "abc"})]);
    // Nothing but the bytes is too much.
    let limits = RecordLimits { bytes_max: 1_000, ..RecordLimits::default() };
    let shape = AvroShape::new();
    let mut small = AvroDecoder::registered(shape, registry, Projection::All, limits);
    let (_, bad) = decode(&mut small, &[framed(1, &long)]);
    assert_eq!(bad.len(), 1);
    // What names no schema is Avro and nothing else.
    let (array, bad) = decode(&mut plain(r#""bytes""#), &[b"\x06abc".to_vec(), b"abc".to_vec()]);
    assert_eq!(rows(&array)[0], json!({"value": hex(b"abc")}));
    assert_eq!(bad.len(), 1);
}

#[test]
fn schemas_in_headers() {
    let schema = record(r#"{"name":"a","type":"int"}"#);
    let mut decoder = registered(&Registry::of(&[&schema]));
    let header = framed(1, b"");
    let value = Value { bytes: b"\x06", schema_header: Some(&header) };
    let array = decoder.decode(&[None, Some(value)], &mut Vec::new()).expect("decoded");
    assert_eq!(rows(&array), [Json::Null, json!({"a": 3})]);
}

#[test]
fn the_configured_schema_decides() {
    let reader = r#"{"type":"record","name":"R","fields":[
        {"name":"id","type":"double"},
        {"name":"name","aliases":["title","old"],"type":["null","string"],"default":null},
        {"name":"level","type":{"type":"enum","name":"L","symbols":["LOW","HIGH"],"default":"LOW"},"default":"HIGH"},
        {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"},"default":5},
        {"name":"tags","type":{"type":"array","items":"string"},"default":["none"]},
        {"name":"sub","type":{"type":"record","name":"S","fields":[
            {"name":"x","type":"int","default":1},{"name":"y","type":["int","string"],"default":"why"}]},"default":{"x":7}},
        {"name":"any","type":["null","long","string"],"default":null}]}"#;
    let first = record(r#"{"name":"id","type":"int"}"#);
    let second = record(
        r#"{"name":"extra","type":{"type":"array","items":"string"}},{"name":"title","type":"string"},
        {"name":"id","type":"long"},{"name":"any","type":"int"},{"name":"at","type":"int"},
        {"name":"level","type":{"type":"enum","name":"L","symbols":["HIGH","HIGHER"]}},
        {"name":"sub","type":{"type":"record","name":"S","fields":[{"name":"y","type":"string"}]}},
        {"name":"tags","type":{"type":"array","items":"bytes"}}"#,
    );
    let third = record(r#"{"name":"name","type":"string"}"#);
    let fourth = record(
        r#"{"name":"id","type":"int"},{"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}}"#,
    );
    let registry = Registry::of(&[&first, &second, &third, &fourth]);
    let shape = AvroShape::given(reader, []).expect("a schema");
    let limits = RecordLimits::default();
    let make =
        |projection| AvroDecoder::registered(shape.clone(), registry.clone(), projection, limits);
    let records = [
        framed(1, &written(&first, &json!({"id": 3}))),
        framed(
            2,
            &written(
                &second,
                &json!({"extra": ["a"], "title": "t", "id": 4, "any": 5, "at": 6,
            "level": "HIGHER", "sub": {"y": "z"}, "tags": ["b"]}),
            ),
        ),
        framed(3, &written(&third, &json!({"name": "n"}))),
        framed(
            2,
            &written(
                &second,
                &json!({"extra": [], "title": "t", "id": 9_007_199_254_740_993i64, "any": 5,
            "at": 6, "level": "HIGH", "sub": {"y": "z"}, "tags": []}),
            ),
        ),
        framed(4, &written(&fourth, &json!({"id": 1, "at": 2}))),
    ];
    let (array, bad) = decode(&mut make(Projection::All), &records);
    let defaults = json!({"id": "3.0", "name": null, "level": "HIGH", "at": 5, "tags": ["none"],
        "sub": {"x": 7, "y": {"int": null, "string": "why"}}, "any": null});
    let mut last = defaults.clone();
    last["id"] = json!("1.0");
    last["at"] = Json::Null;
    assert_eq!(
        rows(&array),
        [
            defaults,
            json!({"id": "4.0", "name": "t", "level": "LOW", "at": 6, "tags": ["b"],
            "sub": {"x": 1, "y": {"int": null, "string": "z"}}, "any": {"long": 5, "string": null}}),
            Json::Null,
            Json::Null,
            last,
        ]
    );
    assert_eq!(bad, [
        (2, "schema 3: it does not have the field 'id', for which the configured schema has no default".to_owned()),
        (3, "the field 'id': the column is of floating point and does not hold 9007199254740993 exactly".to_owned()),
        (4, "the field 'at': a long (Timestamp { unit: Microsecond, is_utc: true }) does not fit a column of type Timestamp(ms, \"UTC\")".to_owned()),
    ]);
    let (array, bad) = decode(&mut make(Projection::new(["name", "sub.x"])), &records[1..2]);
    assert_eq!((rows(&array), bad), (vec![json!({"name": "t", "sub": {"x": 1}})], vec![]));
}

#[test]
fn plain_values_are_of_the_configured_schema() {
    let mut decoder = plain(MIXED);
    let good = written(MIXED, &mixed());
    let (array, bad) = decode(&mut decoder, &[good.clone(), good[..9].to_vec(), good]);
    assert_eq!(rows(&array), [mixed_shown(), Json::Null, mixed_shown()]);
    assert_eq!(bad.len(), 1);
    let error = AvroShape::given(r#""Nowhere""#, []).expect_err("no schema");
    assert_eq!(error.message(), "the Avro schema: the type 'Nowhere' is not defined");
    let limits = RecordLimits::default();
    assert!(AvroDecoder::plain(AvroShape::new(), Projection::All, limits).is_err());
    let (array, _) = decode(&mut plain(r#""long""#), &[vec![2], vec![]]);
    assert_eq!(rows(&array), [json!({"value": 1}), Json::Null]);
}

#[test]
fn what_nobody_wants_is_not_decoded() {
    let registry = Registry::of(&[MIXED]);
    let limits = RecordLimits::default();
    let records = [framed(1, &written(MIXED, &mixed())), framed(1, b"\x02")];
    let cases = [
        (
            vec!["id", "inner.list.x"],
            json!({"id": 1_234_567_890_123i64, "inner": {"list": [{"x": 5}, {"x": 300}]}}),
        ),
        (vec!["union.int"], json!({"union": {"int": null}})),
        (vec!["kind", "map"], json!({"map": {"k": [1, -2], "l": []}, "kind": "B"})),
    ];
    for (names, wanted) in cases {
        let projection = Projection::new(names);
        let mut decoder =
            AvroDecoder::registered(AvroShape::new(), registry.clone(), projection, limits);
        let (array, bad) = decode(&mut decoder, &records);
        assert_eq!(rows(&array), [wanted, Json::Null]);
        assert_eq!(bad.len(), 1, "it is checked all the same");
    }
    let projection = Projection::new(["nothing"]);
    let mut decoder = AvroDecoder::registered(AvroShape::new(), registry, projection, limits);
    let (array, bad) = decode(&mut decoder, &records);
    assert_eq!((array.null_count(), bad.len()), (2, 1));
}

#[test]
fn hostile_bytes_say_what_is_wrong() {
    let field = |schema: &str| record(&format!(r#"{{"name":"a","type":{schema}}}"#));
    let array = |items: &str| field(&format!(r#"{{"type":"array","items":{items}}}"#));
    let empty = r#"{"type":"record","name":"E","fields":[]}"#;
    let decimal = r#"{"type":"bytes","logicalType":"decimal","precision":2}"#;
    let big = r#"{"type":"fixed","name":"F","size":40,"logicalType":"decimal","precision":50}"#;
    let cases: &[(String, &[u8], &str)] = &[
        (
            field("\"int\""),
            b"\xff\xff\xff\xff\xff\x01",
            "the field 'a': an int of more than 32 bits",
        ),
        (field("\"boolean\""), b"\x02", "the field 'a': a boolean that is neither 0 nor 1"),
        (field("\"string\""), b"\x01", "the field 'a': a negative length"),
        (field("\"string\""), b"\x04a", "the field 'a': ends inside of bytes or a string"),
        (
            field("\"string\""),
            b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            "the field 'a': ends inside of bytes or a string",
        ),
        (field("\"string\""), b"\x02\xff", "the field 'a': no UTF-8"),
        (field(r#"["null","int"]"#), b"\x04", "the field 'a': branch 2 of 2"),
        (field(r#"["string","int","null"]"#), b"\x01", "the field 'a': branch -1 of 3"),
        (
            field(r#"{"type":"enum","name":"E","symbols":["X"]}"#),
            b"\x02",
            "the field 'a': symbol 1 of 1",
        ),
        (array("\"int\""), b"\x01\x7f\x02\0", "the field 'a': a block of a negative size"),
        (array("\"int\""), b"\x01\x06\x02\0", "the field 'a': ends inside of a block of items"),
        (array("\"int\""), b"\x01\x02\x02\x02\0", "the field 'a': ends inside of a number"),
        (
            array("\"int\""),
            b"\x01\x04\x02\0",
            "the field 'a': a block of 2 bytes whose items have 1",
        ),
        (
            array("\"int\""),
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\0\0",
            "the field 'a': more than the elements one record may have",
        ),
        (
            array("\"null\""),
            b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01\0",
            "the field 'a': more than the elements one record may have",
        ),
        (
            array(empty),
            b"\x80\x80\x80\x01\0",
            "the field 'a': more than the elements one record may have",
        ),
        (
            field(r#"{"type":"map","values":"int"}"#),
            b"\x04\x02k\x02\x02k\x02\0",
            "the field 'a': the key 'k' is in a map twice",
        ),
        (field(decimal), b"\0", "the field 'a': a decimal without bytes"),
        (
            field(decimal),
            b"\x02\x64",
            "the field 'a': a decimal of more digits than the schema says",
        ),
        (
            field(decimal),
            b"\x02\x9c",
            "the field 'a': a decimal of more digits than the schema says",
        ),
        (field(big), &[1; 40], "the field 'a': a decimal of more digits than the schema says"),
        (
            field(r#"{"type":"int","logicalType":"time-millis"}"#),
            b"\x01",
            "the field 'a': -1 milliseconds are no time of a day",
        ),
        (
            field(r#"{"type":"fixed","name":"D","size":12,"logicalType":"duration"}"#),
            b"\xff\xff\xff\xff\0\0\0\0\0\0\0\0",
            "the field 'a': a duration of 4294967295 months and 0 days; Arrow holds 2^31 of each",
        ),
        (field("\"int\""), b"\x02\x02\x02", "2 bytes follow the value"),
    ];
    for (schema, bytes, error) in cases {
        let registry = Registry::of(&[schema, MIXED]);
        let good = framed(2, &written(MIXED, &mixed()));
        let records = [good.clone(), framed(1, bytes), good];
        let (array, bad) = decode(&mut registered(&registry), &records);
        // Found before it is decoded, the same may be said in other words.
        assert!(bad.len() == 1 && bad[0].0 == 1, "{schema} {bytes:?}: {bad:?}");
        assert_eq!(show(&array, 0), show(&array, 2));
        // And once its columns are known.
        let (_, bad) = decode(&mut plain(schema), &[bytes.to_vec()]);
        assert_eq!(bad, [(0, (*error).to_owned())], "{schema}");
    }
}

#[test]
fn few_bytes_do_not_become_many() {
    // A million items of one byte, each of which has a hundred columns of another schema.
    let columns: Vec<String> =
        (0..100).map(|at| format!(r#"{{"name":"c{at}","type":"long"}}"#)).collect();
    let items = |fields: &str| {
        format!(r#"{{"type":"array","items":{{"type":"record","name":"I","fields":[{fields}]}}}}"#)
    };
    let wide = items(&columns.join(","));
    let narrow = items(r#"{"name":"x","type":"boolean"}"#);
    let registry = Registry::of(&[&wide, &narrow]);
    let many = [b"\x80\xb5\x18".as_slice(), &vec![1; 200_000], b"\0"].concat();
    let records = [framed(1, b"\0"), framed(2, b"\x02\x01\0"), framed(2, &many)];
    let (array, bad) = decode(&mut registered(&registry), &records);
    assert_eq!(bad, [(2, "the field 'value': more than the bytes one record may have".to_owned())]);
    assert_eq!(array.len(), 3);

    let limits = RecordLimits { bytes_max: 10, ..RecordLimits::default() };
    let shape = AvroShape::given(r#""string""#, []).expect("a schema");
    let mut decoder = AvroDecoder::plain(shape, Projection::All, limits).expect("a decoder");
    let (_, bad) = decode(&mut decoder, &[b"\x14abcdefghij".to_vec(), b"\x12abcdefghi".to_vec()]);
    assert_eq!(bad, [(0, "more than the bytes one record may have".to_owned())]);
}

#[test]
fn values_of_16_bytes_are_text() {
    let uuid = r#"{"type":"fixed","name":"U","size":16,"logicalType":"uuid"}"#;
    let (array, bad) = decode(&mut plain(uuid), &[b"0123456789abcdef".to_vec()]);
    assert_eq!(rows(&array), [json!({"value": "30313233-3435-3637-3839-616263646566"})]);
    assert!(bad.is_empty());
}

#[test]
fn blocks_with_sizes_are_read() {
    let schema = r#"{"type":"array","items":"int"}"#;
    let (array, bad) = decode(&mut plain(schema), &[b"\x03\x04\x02\x04\x02\x06\0".to_vec()]);
    assert_eq!((rows(&array), bad), (vec![json!({"value": [1, 2, 3]})], vec![]));
}
