//! `google.protobuf.Struct`, `Value` and `ListValue` as JSON text.

use serde_json::{Map, Number, Value};

use super::reader::{BYTES, FIXED64, Fault, Reader, VARINT};
use super::shape::JsonRoot;
use crate::decode::reject::{Meter, Reject};

/// Makes JSON text of messages. Fields that come again are merged, as in other messages.
pub struct JsonMessage<'m> {
    meter: &'m mut Meter,
    depth_max: usize,
}

impl<'m> JsonMessage<'m> {
    /// Counts with `meter`, and nests no deeper than `depth_max`.
    pub fn new(meter: &'m mut Meter, depth_max: usize) -> Self {
        Self { meter, depth_max }
    }

    /// The JSON text of a message.
    ///
    /// # Errors
    /// It is malformed, holds what JSON cannot, or asks for too much.
    pub fn text(mut self, root: JsonRoot, bytes: &[u8]) -> Result<String, Fault> {
        let value = match root {
            JsonRoot::Value => self.value(bytes, None, 0)?,
            JsonRoot::Object => self.object(bytes, Map::new(), 0)?,
            JsonRoot::List => self.list(bytes, Vec::new(), 0)?,
        };
        let text = value.to_string();
        self.meter.bytes(text.len())?;
        Ok(text)
    }

    /// Reads a value over what was there before.
    fn value(
        &mut self,
        bytes: &[u8],
        mut value: Option<Value>,
        depth: usize,
    ) -> Result<Value, Fault> {
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let tag = reader.tag()?;
            match (tag >> 3, tag & 7) {
                (1, VARINT) => {
                    reader.varint()?;
                    value = Some(Value::Null);
                }
                (2, FIXED64) => {
                    value = Some(number(f64::from_le_bytes(reader.fixed()?))?);
                }
                (3, BYTES) => value = Some(Value::String(string(&mut reader)?)),
                (4, VARINT) => value = Some(Value::Bool(reader.varint()? != 0)),
                (5, BYTES) => {
                    let object = take_object(value.take());
                    value = Some(self.object(reader.bytes()?, object, depth + 1)?);
                }
                (6, BYTES) => {
                    let list = take_list(value.take());
                    value = Some(self.list(reader.bytes()?, list, depth + 1)?);
                }
                (1..=6, wire) => return Err(Fault::Wire(wire)),
                _ => reader.skip(tag)?,
            }
        }
        Ok(value.unwrap_or(Value::Null))
    }

    fn object(
        &mut self,
        bytes: &[u8],
        mut object: Map<String, Value>,
        depth: usize,
    ) -> Result<Value, Fault> {
        self.check(depth)?;
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let tag = reader.tag()?;
            match (tag >> 3, tag & 7) {
                (1, BYTES) => {
                    self.meter.elements(1)?;
                    let (mut name, mut value) = (String::new(), None);
                    let mut entry = Reader::new(reader.bytes()?);
                    while !entry.is_empty() {
                        let tag = entry.tag()?;
                        match (tag >> 3, tag & 7) {
                            (1, BYTES) => name = string(&mut entry)?,
                            (2, BYTES) => {
                                value = Some(self.value(entry.bytes()?, value, depth)?);
                            }
                            (1 | 2, wire) => return Err(Fault::Wire(wire)),
                            _ => entry.skip(tag)?,
                        }
                    }
                    object.insert(name, value.unwrap_or(Value::Null));
                }
                (1, wire) => return Err(Fault::Wire(wire)),
                _ => reader.skip(tag)?,
            }
        }
        Ok(Value::Object(object))
    }

    fn list(&mut self, bytes: &[u8], mut list: Vec<Value>, depth: usize) -> Result<Value, Fault> {
        self.check(depth)?;
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let tag = reader.tag()?;
            match (tag >> 3, tag & 7) {
                (1, BYTES) => {
                    self.meter.elements(1)?;
                    list.push(self.value(reader.bytes()?, None, depth)?);
                }
                (1, wire) => return Err(Fault::Wire(wire)),
                _ => reader.skip(tag)?,
            }
        }
        Ok(Value::Array(list))
    }

    fn check(&self, depth: usize) -> Result<(), Fault> {
        if depth >= self.depth_max {
            return Err(Reject::limit(format_args!("{} nested values", self.depth_max)).into());
        }
        Ok(())
    }
}

/// The object that was there, or a new one.
fn take_object(value: Option<Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// The list that was there, or a new one.
fn take_list(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn string(reader: &mut Reader<'_>) -> Result<String, Fault> {
    let text = simdutf8::basic::from_utf8(reader.bytes()?).map_err(|_| Fault::Utf8)?;
    Ok(text.to_owned())
}

/// Integers as such, as Protobuf's own serializers to JSON write them.
fn number(value: f64) -> Result<Value, Fault> {
    let whole = value as i64;
    let is_exact = whole.unsigned_abs() < 1 << 53 && whole as f64 == value;
    if is_exact && !(value == 0.0 && value.is_sign_negative()) {
        return Ok(Value::Number(Number::from(whole)));
    }
    Number::from_f64(value).map(Value::Number).ok_or(Fault::Range("the numbers of JSON"))
}
