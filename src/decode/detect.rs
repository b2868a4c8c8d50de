//! What values are made of, found out from a few of them.

use super::decoder::Value;
use super::json::scan::Scanner;
use super::reject::{Meter, RecordLimits};
use super::schemas::{Lookup, SchemaKey, SchemaKind, Schemas};
use crate::config::formats::Format;

/// How many values are looked at.
pub const SAMPLES_MAX: usize = 100;

/// The schemas that values of a registry's serializers name.
pub fn framed_keys(samples: &[Value<'_>]) -> Vec<SchemaKey> {
    let mut keys: Vec<SchemaKey> = Vec::new();
    for key in samples.iter().filter_map(schema_key) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// The format of most of `samples`, of which there is at least one. The more a format demands, the sooner it is
/// believed: a schema that the registry knows, then Arrow, then JSON, then text.
pub fn detect(samples: &[Value<'_>], schemas: Option<&dyn Schemas>) -> Format {
    let most = |is_it: &dyn Fn(&Value<'_>) -> bool| {
        samples.iter().filter(|sample| is_it(sample)).count() * 2 > samples.len()
    };
    let kind = |sample: &Value<'_>| match schemas?.look_up(&schema_key(sample)?) {
        Lookup::Known(schema) => Some(schema.kind),
        Lookup::Unknown(_) | Lookup::Unfetched => None,
    };
    let kinds = [
        (SchemaKind::Avro, Format::Avro),
        (SchemaKind::Protobuf, Format::Protobuf),
        (SchemaKind::Json, Format::Json),
    ];
    for (wanted, format) in kinds {
        if most(&|sample| kind(sample) == Some(wanted)) {
            return format;
        }
    }
    if most(&|sample| is_ipc_stream(sample.bytes)) {
        Format::Arrow
    } else if most(&|sample| is_json_object(sample.bytes)) {
        Format::Json
    } else if samples.iter().all(|sample| is_text(sample.bytes)) {
        Format::Text
    } else {
        Format::Raw
    }
}

/// The schema that a value seems to name.
fn schema_key(value: &Value<'_>) -> Option<SchemaKey> {
    match super::wire::frame(value) {
        Ok(framed) => Some(framed.schema),
        Err(_) => None,
    }
}

/// The mark that every message of a stream begins with, and the length of the first one, which is the schema.
fn is_ipc_stream(bytes: &[u8]) -> bool {
    matches!(bytes, [0xFF, 0xFF, 0xFF, 0xFF, a, b, c, d, ..]
        if i32::from_le_bytes([*a, *b, *c, *d]) > 0)
}

fn is_json_object(bytes: &[u8]) -> bool {
    if simdutf8::basic::from_utf8(bytes).is_err() {
        return false;
    }
    let mut scanner = Scanner::new(bytes);
    scanner.peek() == b'{'
        && scanner.skip(&mut Meter::new(&RecordLimits::default())).is_ok()
        && scanner.end().is_ok()
}

/// UTF-8 without control characters: numbers in binary are full of them.
fn is_text(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
        && !bytes.iter().any(|byte| *byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_samples_decide() {
        let cases: &[(&[&[u8]], Format)] = &[
            (&[b"{}"], Format::Json),
            (&[b" {\"a\":1}\n", b"{\"a\":2}", b"oops"], Format::Json),
            (&[b"{\"a\":1}", b"oops"], Format::Text),
            (&[b"{\"a\":", b"[1]", b"3"], Format::Text),
            (&[b"caf\xc3\xa9\tx\r\n"], Format::Text),
            (&[b"caf\xe9"], Format::Raw),
            (&[b"\x00\x00\x00\x07"], Format::Raw),
            (&[b"\x00\x00\x00\x00\x07{}"], Format::Raw),
            (&[b"\xff\xff\xff\xff\x10\x00\x00\x00rest"], Format::Arrow),
            (&[b""], Format::Text),
        ];
        for (samples, format) in cases {
            let samples: Vec<Value<'_>> = samples.iter().map(|bytes| Value::new(bytes)).collect();
            assert_eq!(detect(&samples, None), *format, "{samples:?}");
        }
    }
}
