//! Defaults of fields: JSON as a schema has it, written as a record would have it.

use serde_json::Value as Json;

use super::schema::{Kind, NodeId, Schema};

/// Appends `value` as Avro of the type `id`; `false` if it is not of that type. For a union, the first type that fits.
pub fn encode(schema: &Schema, id: NodeId, value: &Json, bytes: &mut Vec<u8>) -> bool {
    match (&schema.node(id).kind, value) {
        (Kind::Null, Json::Null) => {}
        (Kind::Boolean, Json::Bool(value)) => bytes.push(u8::from(*value)),
        (Kind::Int, value) => match value.as_i64().and_then(|value| i32::try_from(value).ok()) {
            Some(value) => long(i64::from(value), bytes),
            None => return false,
        },
        (Kind::Long, value) => match value.as_i64() {
            Some(value) => long(value, bytes),
            None => return false,
        },
        (Kind::Float, value) => match float(value) {
            Some(value) => bytes.extend((value as f32).to_le_bytes()),
            None => return false,
        },
        (Kind::Double, value) => match float(value) {
            Some(value) => bytes.extend(value.to_le_bytes()),
            None => return false,
        },
        (Kind::String, Json::String(text)) => sized(text.as_bytes(), bytes),
        (Kind::Bytes, Json::String(text)) => match latin(text) {
            Some(text) => sized(&text, bytes),
            None => return false,
        },
        (Kind::Fixed { size, .. }, Json::String(text)) => match latin(text) {
            Some(text) if text.len() == *size => bytes.extend(text),
            _ => return false,
        },
        (Kind::Enum { symbols, .. }, Json::String(text)) => {
            match symbols.iter().position(|symbol| **symbol == **text) {
                Some(at) => long(count(at), bytes),
                None => return false,
            }
        }
        (Kind::Array(item), Json::Array(items)) => {
            if !items.is_empty() {
                long(count(items.len()), bytes);
                if !items.iter().all(|value| encode(schema, *item, value, bytes)) {
                    return false;
                }
            }
            bytes.push(0);
        }
        (Kind::Map(node), Json::Object(pairs)) => {
            if !pairs.is_empty() {
                long(count(pairs.len()), bytes);
                for (key, value) in pairs {
                    sized(key.as_bytes(), bytes);
                    if !encode(schema, *node, value, bytes) {
                        return false;
                    }
                }
            }
            bytes.push(0);
        }
        (Kind::Record { fields, .. }, Json::Object(pairs)) => {
            return fields.iter().all(|field| {
                match pairs.get(&*field.name).or(field.default.as_ref()) {
                    Some(value) => encode(schema, field.node, value, bytes),
                    None => false,
                }
            });
        }
        (Kind::Union(branches), value) => {
            let start = bytes.len();
            return branches.iter().enumerate().any(|(at, branch)| {
                bytes.truncate(start);
                long(count(at), bytes);
                encode(schema, *branch, value, bytes)
            });
        }
        _ => return false,
    }
    true
}

fn long(value: i64, bytes: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        bytes.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn sized(text: &[u8], bytes: &mut Vec<u8>) {
    long(count(text.len()), bytes);
    bytes.extend(text);
}

/// JSON has no word for what is no number; Avro's libraries write these.
fn float(value: &Json) -> Option<f64> {
    match value {
        Json::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" | "INF" => Some(f64::INFINITY),
            "-Infinity" | "-INF" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        value => value.as_f64(),
    }
}

/// Bytes stand in JSON as the characters 0 to 255.
fn latin(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}
