//! [`Json`]: rows as JSON objects. No digit is lost: integers have all of theirs, bytes that are no text are in base64.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, AsArray, MapArray, RecordBatch, StructArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type};
use arrow_json::writer::{EncoderOptions, NullableEncoder, make_encoder};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::flatten::is_bytes;
use crate::decode::ipc::plain::{bytes_at, items_at};
use crate::error::{Error, Result};

static FIELD: LazyLock<FieldRef> =
    LazyLock::new(|| Arc::new(Field::new("value", DataType::Null, true)));
static OPTIONS: LazyLock<EncoderOptions> = LazyLock::new(EncoderOptions::default);

/// See the top of this file. A field whose bytes are not all UTF-8 has the name `<name>_base64`, as the messages of
/// `json:` keys have it; so do lists and maps of bytes.
pub enum Json<'a> {
    /// A single value, written by Arrow's own encoder.
    Leaf(&'a dyn Array, NullableEncoder<'a>),
    /// Bytes.
    Bytes(&'a dyn Array),
    /// A struct.
    Struct(&'a dyn Array, Vec<(&'a str, Json<'a>)>),
    /// A list.
    List(&'a dyn Array, Box<Json<'a>>),
    /// A map: keys and values.
    Map(&'a MapArray, Box<Json<'a>>, Box<Json<'a>>),
}

impl<'a> Json<'a> {
    /// The slots of `array`.
    ///
    /// # Errors
    /// A type that JSON does not have.
    pub fn new(array: &'a dyn Array) -> Result<Self> {
        Ok(match array.data_type() {
            data_type if is_bytes(data_type) => Self::Bytes(array),
            DataType::Struct(_) => Self::Struct(array, fields(array.as_struct())?),
            DataType::List(_) => Self::list(array, array.as_list::<i32>().values().as_ref())?,
            DataType::LargeList(_) => Self::list(array, array.as_list::<i64>().values().as_ref())?,
            DataType::FixedSizeList(..) => {
                Self::list(array, array.as_fixed_size_list().values().as_ref())?
            }
            DataType::Map(..) => {
                let map = array.as_map();
                let key = Box::new(Self::new(map.keys().as_ref())?);
                Self::Map(map, key, Box::new(Self::new(map.values().as_ref())?))
            }
            data_type => {
                let encoder = make_encoder(&FIELD, array, &OPTIONS)
                    .map_err(|error| Error::invalid(format!("{data_type}: {error}")))?;
                Self::Leaf(array, encoder)
            }
        })
    }

    fn list(array: &'a dyn Array, items: &'a dyn Array) -> Result<Self> {
        Ok(Self::List(array, Box::new(Self::new(items)?)))
    }

    fn is_null(&self, slot: usize) -> bool {
        match self {
            Self::Leaf(_, encoder) => encoder.is_null(slot),
            Self::Map(map, ..) => map.is_null(slot),
            Self::Bytes(array) | Self::Struct(array, _) | Self::List(array, _) => {
                array.is_null(slot)
            }
        }
    }

    /// Whether its bytes are text, those below it too; a struct's fields say it for themselves.
    fn is_text(&self, slot: usize) -> bool {
        match self {
            Self::Bytes(array) => {
                bytes_at(*array, slot).is_none_or(|bytes| std::str::from_utf8(bytes).is_ok())
            }
            Self::List(array, item) => {
                array.is_null(slot) || items_at(*array, slot).all(|at| item.is_text(at))
            }
            Self::Map(map, _, value) => {
                map.is_null(slot) || items_at(*map, slot).all(|at| value.is_text(at))
            }
            Self::Leaf(..) | Self::Struct(..) => true,
        }
    }

    /// Writes a slot.
    pub fn write(&mut self, slot: usize, out: &mut Vec<u8>) {
        let is_text = self.is_text(slot);
        self.write_as(slot, is_text, out);
    }

    fn write_as(&mut self, slot: usize, is_text: bool, out: &mut Vec<u8>) {
        if self.is_null(slot) {
            out.extend_from_slice(b"null");
            return;
        }
        match self {
            Self::Leaf(array, encoder) => {
                let start = out.len();
                encoder.encode(slot, out);
                repair(*array, slot, start, out);
            }
            Self::Bytes(array) => {
                let bytes = bytes_at(*array, slot).unwrap_or_default();
                match std::str::from_utf8(bytes) {
                    Ok(text) if is_text => quote(text, out),
                    _ => quote(&BASE64_STANDARD.encode(bytes), out),
                }
            }
            Self::Struct(_, fields) => write_fields(fields, slot, out),
            Self::List(array, item) => {
                out.push(b'[');
                for (nth, at) in items_at(*array, slot).enumerate() {
                    if nth > 0 {
                        out.push(b',');
                    }
                    item.write_as(at, is_text, out);
                }
                out.push(b']');
            }
            Self::Map(map, key, value) => {
                out.push(b'{');
                for (nth, at) in items_at(*map, slot).enumerate() {
                    if nth > 0 {
                        out.push(b',');
                    }
                    let start = out.len();
                    key.write(at, out);
                    if out.get(start) != Some(&b'"') {
                        let text = String::from_utf8_lossy(&out.split_off(start)).into_owned();
                        quote(&text, out);
                    }
                    out.push(b':');
                    value.write_as(at, is_text, out);
                }
                out.push(b'}');
            }
        }
    }
}

fn fields(array: &StructArray) -> Result<Vec<(&str, Json<'_>)>> {
    let fields = array.fields().iter().zip(array.columns());
    fields.map(|(field, column)| Ok((field.name().as_str(), Json::new(column.as_ref())?))).collect()
}

fn write_fields(fields: &mut [(&str, Json<'_>)], slot: usize, out: &mut Vec<u8>) {
    out.push(b'{');
    for (nth, (name, value)) in fields.iter_mut().enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        let is_text = value.is_text(slot);
        match is_text {
            true => quote(name, out),
            false => quote(&format!("{name}_base64"), out),
        }
        out.push(b':');
        value.write_as(slot, is_text, out);
    }
    out.push(b'}');
}

/// Writes each row as an object on a line of its own.
///
/// # Errors
/// A type that JSON does not have.
pub fn write_lines(batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
    let mut columns = batch
        .schema_ref()
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, column)| Ok((field.name().as_str(), Json::new(column.as_ref())?)))
        .collect::<Result<Vec<_>>>()?;
    for row in 0..batch.num_rows() {
        write_fields(&mut columns, row, out);
        out.push(b'\n');
    }
    Ok(())
}

/// A JSON string.
pub fn quote(text: &str, out: &mut Vec<u8>) {
    // It cannot fail: text has a form in JSON, and there is always room.
    let _ = serde_json::to_writer(out, text);
}

/// Puts the value itself where Arrow's encoder has something in its place: JSON has no NaN and no infinities, and some
/// times are no dates.
fn repair(array: &dyn Array, slot: usize, start: usize, out: &mut Vec<u8>) {
    let written = out.get(start..).unwrap_or_default();
    if array.data_type().is_floating() && written == b"null" {
        out.truncate(start);
        let value = cast(array, &DataType::Float64)
            .ok()
            .map_or(f64::NAN, |floats| floats.as_primitive::<Float64Type>().value(slot));
        let word = match value {
            f64::INFINITY => "Infinity",
            f64::NEG_INFINITY => "-Infinity",
            _ => "NaN",
        };
        quote(word, out);
    } else if array.data_type().is_temporal() && written.starts_with(b"\"ERROR") {
        out.truncate(start);
        out.extend_from_slice(number_of_time(array, slot).as_bytes());
    }
}

/// A time that is no date, as the number that it is.
pub fn number_of_time(array: &dyn Array, slot: usize) -> String {
    let number = cast(array, &DataType::Int64)
        .or_else(|_| cast(array, &DataType::Int32).and_then(|days| cast(&days, &DataType::Int64)));
    match number {
        Ok(numbers) => numbers.as_primitive::<Int64Type>().value(slot).to_string(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        ArrayRef, BinaryArray, Decimal128Array, Float64Array, Int64Array, ListBuilder, MapBuilder,
        StringBuilder, TimestampMillisecondArray,
    };
    use arrow::array::{BinaryBuilder, StringArray};

    use super::*;

    fn lines(columns: Vec<(&str, ArrayRef)>) -> Vec<String> {
        let batch = RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().map(|(name, array)| (name, array, true)),
        );
        let mut out = Vec::new();
        write_lines(&batch.expect("a batch"), &mut out).expect("all types are known");
        let text = String::from_utf8(out).expect("text");
        for line in text.lines() {
            serde_json::from_str::<serde_json::Value>(line).expect(line);
        }
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn no_value_is_lost() {
        let times = TimestampMillisecondArray::from(vec![
            Some(1_700_000_000_123),
            Some(i64::MAX),
            Some(0),
            None,
        ])
        .with_timezone("UTC");
        let decimals =
            Decimal128Array::from(vec![Some(10_i128.pow(20) + 1), None, Some(5), Some(-5)])
                .with_precision_and_scale(38, 2)
                .expect("a decimal");
        let found = lines(vec![
            ("t", Arc::new(times)),
            ("i", Arc::new(Int64Array::from(vec![i64::MAX, i64::MIN, 0, 1]))),
            (
                "f",
                Arc::new(Float64Array::from(vec![0.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY])),
            ),
            ("d", Arc::new(decimals)),
            ("s", Arc::new(StringArray::from(vec!["a\"\n", "", "\u{1}", "ä"]))),
        ]);
        assert_eq!(
            found,
            [
                r#"{"t":"2023-11-14T22:13:20.123Z","i":9223372036854775807,"f":0.1,"d":1000000000000000000.01,"s":"a\"\n"}"#,
                r#"{"t":9223372036854775807,"i":-9223372036854775808,"f":"NaN","d":null,"s":""}"#,
                r#"{"t":"1970-01-01T00:00:00Z","i":0,"f":"Infinity","d":0.05,"s":"\u0001"}"#,
                r#"{"t":null,"i":1,"f":"-Infinity","d":-0.05,"s":"ä"}"#,
            ]
        );
    }

    #[test]
    fn bytes_that_are_no_text_have_another_name() {
        let bytes: Vec<Option<&[u8]>> = vec![Some(b"text"), Some(b"\xff\x00"), None];
        let mut list = ListBuilder::new(BinaryBuilder::new());
        list.append_value([Some(b"a".as_slice()), None]);
        list.append_value([Some(b"a".as_slice()), Some(b"\xff")]);
        list.append_null();
        let mut map = MapBuilder::new(None, StringBuilder::new(), BinaryBuilder::new());
        for value in [b"v".as_slice(), b"\xfe"] {
            map.keys().append_value("k");
            map.values().append_value(value);
            map.append(true).expect("an entry");
        }
        map.append(true).expect("an entry");
        let found = lines(vec![
            ("b", Arc::new(BinaryArray::from(bytes))),
            ("l", Arc::new(list.finish())),
            ("m", Arc::new(map.finish())),
        ]);
        assert_eq!(
            found,
            [
                r#"{"b":"text","l":["a",null],"m":{"k":"v"}}"#,
                r#"{"b_base64":"/wA=","l_base64":["YQ==","/w=="],"m_base64":{"k":"/g=="}}"#,
                r#"{"b":null,"l":null,"m":{}}"#,
            ]
        );
    }
}
