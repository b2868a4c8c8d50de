//! [`Columns`]: names and Arrow types as karrow.toml writes them, `{ id = "int64", at = "timestamp[us, UTC]" }`.
//!
//! Types are spelled as pyarrow prints them, so that what a user sees there can be copied here. What nests is text too
//! (`list<string>`, `struct<sku: string>`), or a table and an array: `{ sku = "string" }`, `["string"]`.

use std::fmt;
use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

/// Nesting of one type.
const DEPTH_MAX: usize = 64;

/// The columns of a topic, in their order; all of them are nullable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns(pub Fields);

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(TypeVisitor)? {
            TypeOf(DataType::Struct(fields)) => Ok(Self(fields)),
            _ => Err(de::Error::custom("a table is wanted: { name = \"type\", … }")),
        }
    }
}

/// A type as a value of karrow.toml.
struct TypeOf(DataType);

struct TypeVisitor;

impl<'de> Deserialize<'de> for TypeOf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TypeVisitor)
    }
}

impl<'de> Visitor<'de> for TypeVisitor {
    type Value = TypeOf;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a type (\"int64\"), a table of them or an array of one")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<TypeOf, E> {
        parse(text).map(TypeOf).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<TypeOf, A::Error> {
        let one = || de::Error::custom("an array has one type, that of its items: [\"string\"]");
        let TypeOf(item) = items.next_element()?.ok_or_else(one)?;
        match items.next_element::<TypeOf>()? {
            None => Ok(TypeOf(list(item))),
            Some(_) => Err(one()),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<TypeOf, A::Error> {
        let mut fields = Vec::new();
        while let Some((name, TypeOf(data_type))) = entries.next_entry::<String, TypeOf>()? {
            fields.push(Field::new(name, data_type, true));
        }
        if fields.is_empty() {
            return Err(de::Error::custom("no column is named"));
        }
        Ok(TypeOf(DataType::Struct(fields.into())))
    }
}

fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

/// The type that `text` spells.
///
/// # Errors
/// Why it is none.
pub fn parse(text: &str) -> Result<DataType, String> {
    let mut parser = Parser { rest: text, depth: 0 };
    let parsed = parser.data_type().and_then(|data_type| match parser.rest.trim() {
        "" => Ok(data_type),
        rest => Err(format!("'{rest}' is too much")),
    });
    parsed.map_err(|why| format!("'{text}' is no type: {why}"))
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn data_type(&mut self) -> Result<DataType, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("it nests deeper than {DEPTH_MAX}"));
        }
        let name = self.word();
        let data_type = match name {
            "bool" | "boolean" => DataType::Boolean,
            "int8" => DataType::Int8,
            "int16" => DataType::Int16,
            "int32" => DataType::Int32,
            "int64" => DataType::Int64,
            "uint8" => DataType::UInt8,
            "uint16" => DataType::UInt16,
            "uint32" => DataType::UInt32,
            "uint64" => DataType::UInt64,
            "float" | "float32" => DataType::Float32,
            "double" | "float64" => DataType::Float64,
            "string" | "utf8" => DataType::Utf8,
            "binary" => DataType::Binary,
            "date" | "date32" => {
                self.arguments('[', ']')?;
                DataType::Date32
            }
            "time32" => match self.unit()? {
                unit @ (TimeUnit::Second | TimeUnit::Millisecond) => DataType::Time32(unit),
                _ => return Err("time32 counts in s or ms".to_owned()),
            },
            "time64" => match self.unit()? {
                unit @ (TimeUnit::Microsecond | TimeUnit::Nanosecond) => DataType::Time64(unit),
                _ => return Err("time64 counts in us or ns".to_owned()),
            },
            "duration" => DataType::Duration(self.unit()?),
            "timestamp" => self.timestamp()?,
            "decimal" | "decimal128" | "decimal256" => self.decimal(name)?,
            "fixed_size_binary" => match self.arguments('[', ']')?.as_deref() {
                Some([size]) => match size.parse() {
                    Ok(size @ 1..=4_096) => DataType::FixedSizeBinary(size),
                    _ => return Err(format!("'{size}' is no size from 1 to 4096")),
                },
                _ => return Err("its size is missing, as in fixed_size_binary[16]".to_owned()),
            },
            "list" => {
                self.expect('<')?;
                // pyarrow prints the name of the items, too.
                let _ = self.take("item:") || self.take("element:");
                let item = self.data_type()?;
                self.expect('>')?;
                list(item)
            }
            "struct" => self.fields()?,
            "map" => {
                self.expect('<')?;
                if self.data_type()? != DataType::Utf8 {
                    return Err("the keys of a map are strings".to_owned());
                }
                self.expect(',')?;
                let value = self.data_type()?;
                self.expect('>')?;
                let pair = vec![
                    Field::new("key", DataType::Utf8, false),
                    Field::new("value", value, true),
                ];
                let entries = Field::new("entries", DataType::Struct(pair.into()), false);
                DataType::Map(Arc::new(entries), false)
            }
            "" => return Err("a name is missing".to_owned()),
            other => return Err(format!("there is no type '{other}'")),
        };
        self.depth -= 1;
        Ok(data_type)
    }

    fn fields(&mut self) -> Result<DataType, String> {
        self.expect('<')?;
        let mut fields: Vec<Field> = Vec::new();
        loop {
            let (name, rest) =
                self.rest.split_once(':').ok_or("a field is written 'name: type'")?;
            let name = name.trim();
            if fields.iter().any(|field| field.name() == name) {
                return Err(format!("the field '{name}' is there twice"));
            }
            self.rest = rest;
            fields.push(Field::new(name, self.data_type()?, true));
            // As pyarrow prints it; in JSON a field may be absent all the same.
            self.take("not null");
            if !self.take(",") {
                break;
            }
        }
        self.expect('>')?;
        Ok(DataType::Struct(fields.into()))
    }

    fn timestamp(&mut self) -> Result<DataType, String> {
        let arguments = self.arguments('[', ']')?.unwrap_or_default();
        let (unit, zone) = match arguments.as_slice() {
            [unit] => (unit, None),
            [unit, zone] => (unit, Some(zone.strip_prefix("tz=").unwrap_or(zone).trim())),
            _ => return Err("its unit is missing, as in timestamp[us, UTC]".to_owned()),
        };
        if let Some(zone) = zone
            && zone.parse::<Tz>().is_err()
        {
            return Err(format!("there is no time zone '{zone}'"));
        }
        Ok(DataType::Timestamp(time_unit(unit)?, zone.map(Arc::from)))
    }

    fn decimal(&mut self, name: &str) -> Result<DataType, String> {
        let wrong = || format!("its digits and decimals are missing, as in {name}(10, 2)");
        let arguments = self.arguments('(', ')')?.ok_or_else(wrong)?;
        let [precision, scale] = arguments.as_slice() else { return Err(wrong()) };
        let (Ok(precision), Ok(scale)) = (precision.parse::<u8>(), scale.parse::<i8>()) else {
            return Err(wrong());
        };
        let precision_max = if name == "decimal128" { 38 } else { 76 };
        if precision == 0 || precision > precision_max {
            return Err(format!("it has from 1 to {precision_max} digits"));
        }
        if scale.unsigned_abs() > precision {
            return Err("it has more decimals than digits".to_owned());
        }
        Ok(match name {
            "decimal256" => DataType::Decimal256(precision, scale),
            _ if precision > 38 => DataType::Decimal256(precision, scale),
            _ => DataType::Decimal128(precision, scale),
        })
    }

    fn unit(&mut self) -> Result<TimeUnit, String> {
        match self.arguments('[', ']')?.as_deref() {
            Some([unit]) => time_unit(unit),
            _ => Err("its unit is missing, one of [s], [ms], [us] and [ns]".to_owned()),
        }
    }

    /// What stands between brackets, split at the commas; `None` without brackets.
    fn arguments(&mut self, open: char, close: char) -> Result<Option<Vec<&'a str>>, String> {
        let Some(rest) = self.rest.trim_start().strip_prefix(open) else { return Ok(None) };
        let (inside, rest) =
            rest.split_once(close).ok_or_else(|| format!("'{close}' is missing"))?;
        self.rest = rest;
        Ok(Some(inside.split(',').map(str::trim).collect()))
    }

    fn word(&mut self) -> &'a str {
        let text = self.rest.trim_start();
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.rest = rest;
        word
    }

    fn take(&mut self, text: &str) -> bool {
        match self.rest.trim_start().strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        match self.rest.trim_start().strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(format!("'{wanted}' is missing")),
        }
    }
}

fn time_unit(text: &str) -> Result<TimeUnit, String> {
    match text {
        "s" => Ok(TimeUnit::Second),
        "ms" => Ok(TimeUnit::Millisecond),
        "us" => Ok(TimeUnit::Microsecond),
        "ns" => Ok(TimeUnit::Nanosecond),
        other => Err(format!("'{other}' is none of the units s, ms, us and ns")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[(&str, DataType)]) -> DataType {
        let field =
            |(name, data_type): &(&str, DataType)| Field::new(*name, data_type.clone(), true);
        DataType::Struct(fields.iter().map(field).collect())
    }

    #[test]
    fn types_are_spelled_as_pyarrow_prints_them() {
        use DataType::*;
        let utc = || Some("UTC".into());
        let cases = [
            ("int64", Int64),
            (" uint8 ", UInt8),
            ("float", Float32),
            ("double", Float64),
            ("date32[day]", Date32),
            ("time32[ms]", Time32(TimeUnit::Millisecond)),
            ("time64[ns]", Time64(TimeUnit::Nanosecond)),
            ("duration[s]", Duration(TimeUnit::Second)),
            ("timestamp[us]", Timestamp(TimeUnit::Microsecond, None)),
            ("timestamp[us, tz=UTC]", Timestamp(TimeUnit::Microsecond, utc())),
            ("timestamp[ms,UTC]", Timestamp(TimeUnit::Millisecond, utc())),
            (
                "timestamp[ns, tz=Europe/Berlin]",
                Timestamp(TimeUnit::Nanosecond, Some("Europe/Berlin".into())),
            ),
            ("decimal128(10, 2)", Decimal128(10, 2)),
            ("decimal(50,2)", Decimal256(50, 2)),
            ("fixed_size_binary[16]", FixedSizeBinary(16)),
            ("list<item: string>", list(Utf8)),
            ("list<list<bool>>", list(list(Boolean))),
            ("list<element: int8>", list(Int8)),
            ("struct<a: int64 not null, b: bool>", of(&[("a", Int64), ("b", Boolean)])),
            (
                "struct<a: int64, b: list<item: struct<c: decimal128(4, 1)>>>",
                of(&[("a", Int64), ("b", list(of(&[("c", Decimal128(4, 1))])))]),
            ),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse(text), Ok(wanted), "{text}");
        }
        let map = parse("map<string, int32>").expect("a type");
        assert!(matches!(map, Map(..)), "{map}");
    }

    #[test]
    fn what_is_no_type_is_told() {
        let cases = [
            ("", "a name is missing"),
            ("int65", "there is no type 'int65'"),
            ("large_string", "there is no type 'large_string'"),
            ("int64 int64", "'int64' is too much"),
            ("timestamp", "its unit is missing, as in timestamp[us, UTC]"),
            ("timestamp[us, Mars/Base]", "there is no time zone 'Mars/Base'"),
            ("timestamp[us", "']' is missing"),
            ("time64[ms]", "time64 counts in us or ns"),
            ("decimal128(39, 2)", "it has from 1 to 38 digits"),
            ("decimal128(3, 4)", "it has more decimals than digits"),
            ("decimal128", "its digits and decimals are missing, as in decimal128(10, 2)"),
            ("list<int64", "'>' is missing"),
            ("struct<a int64>", "a field is written 'name: type'"),
            ("struct<a: int64, a: int64>", "the field 'a' is there twice"),
            ("map<int64, string>", "the keys of a map are strings"),
            ("fixed_size_binary[0]", "'0' is no size from 1 to 4096"),
        ];
        for (text, why) in cases {
            assert_eq!(parse(text), Err(format!("'{text}' is no type: {why}")), "{text}");
        }
        parse(&"list<".repeat(10_000)).expect_err("too deep");
    }

    #[test]
    fn tables_and_arrays_nest_and_keep_their_order() {
        #[derive(Deserialize)]
        struct File {
            columns: Columns,
        }
        let text = r#"columns = { z = "int64", a = { y = "string", b = ["double"] }, m = [{ k = "bool" }] }"#;
        let file: File = toml::from_str(text).expect("columns");
        let wanted = of(&[
            ("z", DataType::Int64),
            ("a", of(&[("y", DataType::Utf8), ("b", list(DataType::Float64))])),
            ("m", list(of(&[("k", DataType::Boolean)]))),
        ]);
        assert_eq!(DataType::Struct(file.columns.0), wanted);
        for (text, why) in [
            ("columns = {}", "no column is named"),
            ("columns = \"int64\"", "a table is wanted"),
            ("columns = { a = [] }", "an array has one type"),
            ("columns = { a = [\"int64\", \"bool\"] }", "an array has one type"),
            ("columns = { a = 3 }", "a type (\"int64\"), a table of them or an array of one"),
        ] {
            let error = toml::from_str::<File>(text).map(|file| file.columns).expect_err("wrong");
            assert!(error.message().contains(why), "{text}: {error}");
        }
    }
}
