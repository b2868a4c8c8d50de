//! [`Json`]: the slots of an array as JSON text, and never more of it than there is room for.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, AsArray, MapArray};
use arrow::datatypes::{DataType, Field, FieldRef};
use arrow_json::writer::{EncoderOptions, NullableEncoder, make_encoder};

use super::{Budget, Wrong};
use crate::decode::ipc::plain::{bytes_at, items_at, key_at};
use crate::error::{Error, Result};

static FIELD: LazyLock<FieldRef> =
    LazyLock::new(|| Arc::new(Field::new("value", DataType::Null, true)));
static OPTIONS: LazyLock<EncoderOptions> = LazyLock::new(EncoderOptions::default);

/// Bytes of a text that is escaped most: `\u0000`.
const ESCAPED_BYTES_MAX: usize = 6;

/// See the top of this file. Single values are written by Arrow's own encoder. Its containers neither stop where a few
/// bytes stand for many, nor say what they cannot write.
pub(super) enum Json<'a> {
    Leaf { array: &'a dyn Array, encoder: NullableEncoder<'a> },
    Struct { array: &'a dyn Array, fields: Vec<JsonField<'a>> },
    List { array: &'a dyn Array, item: Box<Json<'a>> },
    Map { array: &'a MapArray, key: Box<Json<'a>>, value: Box<Json<'a>> },
    Dictionary { array: &'a dyn Array, values: Box<Json<'a>> },
}

pub(super) struct JsonField<'a> {
    name: &'a str,
    /// The name as it is written, with its colon.
    text: Vec<u8>,
    value: Json<'a>,
}

impl<'a> Json<'a> {
    /// The slots of `array`, which is called `name`.
    ///
    /// # Errors
    /// A type that JSON does not have.
    pub(super) fn new(name: &str, array: &'a dyn Array) -> Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| Error::invalid(format!("{name}: {error}"));
        Ok(match array.data_type() {
            DataType::Struct(fields) => {
                let columns = array.as_struct().columns();
                let fields = fields.iter().zip(columns).map(|(field, column)| {
                    let path = format!("{name}.{}", shown(field.name()));
                    let mut text =
                        serde_json::to_vec(field.name()).map_err(|error| wrong(&error))?;
                    text.push(b':');
                    let value = Self::new(&path, column.as_ref())?;
                    Ok(JsonField { name: field.name(), text, value })
                });
                Self::Struct { array, fields: fields.collect::<Result<_>>()? }
            }
            DataType::List(_) => {
                Self::list(array, Self::new(name, array.as_list::<i32>().values().as_ref())?)
            }
            DataType::LargeList(_) => {
                Self::list(array, Self::new(name, array.as_list::<i64>().values().as_ref())?)
            }
            DataType::FixedSizeList(..) => {
                Self::list(array, Self::new(name, array.as_fixed_size_list().values().as_ref())?)
            }
            DataType::Map(..) => {
                let array = array.as_map();
                if !is_text(array.key_type()) {
                    let what = format!("{} as the keys of a JSON object", array.key_type());
                    return Err(wrong(&what));
                }
                let key = Box::new(Self::new(name, array.keys().as_ref())?);
                let value = Box::new(Self::new(name, array.values().as_ref())?);
                Self::Map { array, key, value }
            }
            DataType::Dictionary(..) => {
                let values = array.as_any_dictionary().values();
                Self::Dictionary { array, values: Box::new(Self::new(name, values.as_ref())?) }
            }
            _ => {
                let encoder =
                    make_encoder(&FIELD, array, &OPTIONS).map_err(|error| wrong(&error))?;
                Self::Leaf { array, encoder }
            }
        })
    }

    fn list(array: &'a dyn Array, item: Self) -> Self {
        Self::List { array, item: Box::new(item) }
    }

    /// Whether a slot is null, also where it is a dictionary's value that is.
    pub(super) fn is_null(&self, slot: usize) -> bool {
        match self {
            Self::Leaf { encoder, .. } => encoder.is_null(slot),
            Self::Struct { array, .. } | Self::List { array, .. } => array.is_null(slot),
            Self::Map { array, .. } => array.is_null(slot),
            Self::Dictionary { array, values } => {
                key_at(*array, slot).is_none_or(|at| values.is_null(at))
            }
        }
    }

    /// Writes a slot that is not null; null fields are left out.
    ///
    /// # Errors
    /// A value that JSON does not have, or no room for it; something of it may be written then.
    pub(super) fn write(
        &mut self,
        slot: usize,
        out: &mut Vec<u8>,
        budget: &mut Budget,
    ) -> Result<(), Wrong> {
        match self {
            Self::Leaf { array, encoder } => {
                check_room(*array, slot, budget)?;
                let start = out.len();
                encoder.encode(slot, out);
                let written = out.get(start..).unwrap_or_default();
                budget.take(written.len())?;
                check_written(array.data_type(), written)
            }
            Self::Struct { fields, .. } => {
                budget.take(2)?;
                let mut mark = b'{';
                for field in fields {
                    // A null is not written, but looked at.
                    budget.take(1)?;
                    if field.value.is_null(slot) {
                        continue;
                    }
                    out.push(std::mem::replace(&mut mark, b','));
                    budget.take(field.text.len())?;
                    out.extend_from_slice(&field.text);
                    let written = field.value.write(slot, out, budget);
                    written.map_err(|wrong| wrong.below(&shown(field.name)))?;
                }
                if mark == b'{' {
                    out.push(mark);
                }
                out.push(b'}');
                Ok(())
            }
            Self::List { array, item } => {
                budget.take(2)?;
                out.push(b'[');
                for (nth, at) in items_at(*array, slot).enumerate() {
                    budget.take(1)?;
                    if nth > 0 {
                        out.push(b',');
                    }
                    if item.is_null(at) {
                        budget.take(4)?;
                        out.extend_from_slice(b"null");
                    } else {
                        item.write(at, out, budget)?;
                    }
                }
                out.push(b']');
                Ok(())
            }
            Self::Map { array, key, value } => {
                check_keys(array, slot)?;
                budget.take(2)?;
                let mut mark = b'{';
                for at in items_at(*array, slot) {
                    budget.take(2)?;
                    if array.entries().is_null(at) || key.is_null(at) {
                        return Err(Wrong::new("a map with a key that is null"));
                    }
                    if value.is_null(at) {
                        continue;
                    }
                    out.push(std::mem::replace(&mut mark, b','));
                    key.write(at, out, budget)?;
                    out.push(b':');
                    value.write(at, out, budget)?;
                }
                if mark == b'{' {
                    out.push(mark);
                }
                out.push(b'}');
                Ok(())
            }
            Self::Dictionary { array, values } => match key_at(*array, slot) {
                Some(at) => values.write(at, out, budget),
                None => Ok(()),
            },
        }
    }
}

/// Whether what a slot of text or bytes becomes has room; of others it is a few bytes.
fn check_room(array: &dyn Array, slot: usize, budget: &Budget) -> Result<(), Wrong> {
    let Some(bytes) = bytes_at(array, slot) else { return Ok(()) };
    if !is_text(array.data_type()) {
        return budget.check(bytes.len().saturating_mul(2));
    }
    if budget.check(bytes.len().saturating_mul(ESCAPED_BYTES_MAX)).is_ok() {
        return Ok(());
    }
    let escaped = |byte: &u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0C => 2,
        ..0x20 => ESCAPED_BYTES_MAX,
        _ => 1,
    };
    budget.check(bytes.iter().map(escaped).sum())
}

/// Refuses a key that is in a map twice: readers of JSON do not agree on which one counts.
fn check_keys(array: &MapArray, slot: usize) -> Result<(), Wrong> {
    let keys = array.keys().as_ref();
    let mut keys: Vec<&[u8]> = items_at(array, slot).filter_map(|at| bytes_at(keys, at)).collect();
    keys.sort_unstable();
    for pair in keys.windows(2) {
        if let [key, next] = pair
            && key == next
        {
            let key = shown(&String::from_utf8_lossy(key)).escape_debug().to_string();
            return Err(Wrong::new(format!("the key '{key}' is there twice")));
        }
    }
    Ok(())
}

/// Refuses what the encoder has written in the place of a value that JSON does not have.
fn check_written(data_type: &DataType, written: &[u8]) -> Result<(), Wrong> {
    if data_type.is_floating() && written == b"null" {
        return Err(Wrong::new("JSON has neither NaN nor infinities"));
    }
    if data_type.is_temporal() && written.starts_with(b"\"ERROR") {
        return Err(Wrong::new(format!("a {data_type} that is no date")));
    }
    Ok(())
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// As much of a name or key as an error shows.
fn shown(name: &str) -> String {
    /// More than most names have.
    const CHARS_MAX: usize = 100;
    name.chars().take(CHARS_MAX).collect()
}
