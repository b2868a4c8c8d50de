//! Batches: what a reader asks of them, and their IPC form.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{IpcWriteOptions, StreamEncoder};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::acks::Ack;
use crate::config::formats::Format;
use crate::decode::envelope::{ENVELOPE, Layout};
use crate::decode::projection::Projection;
use crate::error::{Error, Result};

/// What the options of a subscription that are karrow's own begin with.
pub const OPTION_PREFIX: &str = "karrow.";

/// Most rows of one batch.
const ROWS_MAX: usize = 1 << 20;

/// Most bytes of records in one batch.
const BYTES_MAX: usize = 256 << 20;

/// Longest time a batch may wait to fill up.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What a reader asks of its batches.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    /// Most records.
    pub rows_max: usize,
    /// Most bytes of keys, headers and payloads, as Kafka has them; one record may be larger.
    pub bytes_max: usize,
    /// How long to wait for more, once there is a record.
    pub wait: Duration,
    /// The wanted columns.
    pub projection: Projection,
    /// Where the payload's fields go.
    pub layout: Layout,
    /// Of the buffers in the IPC stream.
    pub compression: Option<CompressionType>,
    /// In the place of the topic's payload format.
    pub format: Option<Format>,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            rows_max: 8_192,
            bytes_max: 1 << 20,
            wait: Duration::ZERO,
            projection: Projection::All,
            layout: Layout::Struct,
            compression: None,
            format: None,
        }
    }
}

impl BatchOptions {
    /// These options with those of `asked` that are karrow's own, which are removed there.
    ///
    /// # Errors
    /// Names the option, and what it may be.
    pub fn with(mut self, asked: &mut Map<String, Value>) -> Result<Self> {
        let names: Vec<String> =
            asked.keys().filter(|name| name.starts_with(OPTION_PREFIX)).cloned().collect();
        for name in names {
            if let Some(value) = asked.remove(&name) {
                self.set(&name, &value)?;
            }
        }
        // In the flat layout any name may be a field's.
        let is_unknown = |name: &&str| !ENVELOPE.contains(name);
        if self.layout == Layout::Struct
            && let Some(unknown) = self.projection.names().find(is_unknown)
        {
            return Err(Error::invalid(format!(
                "karrow.columns: no column '{unknown}', but {}; fields are below payload, or in the flat layout",
                ENVELOPE.join(", ")
            )));
        }
        Ok(self)
    }

    fn set(&mut self, name: &str, value: &Value) -> Result<()> {
        let wrong = |wanted: &str| Error::invalid(format!("{name}: {value} is not {wanted}"));
        let number = |max: usize, wanted: &str| {
            let number = match value {
                Value::String(text) => text.parse().ok(),
                value => value.as_u64(),
            };
            let number = number.and_then(|number| usize::try_from(number).ok());
            number.filter(|number| (1..=max).contains(number)).ok_or_else(|| wrong(wanted))
        };
        let text = || value.as_str().unwrap_or_default();
        match name {
            "karrow.batch.rows" => {
                self.rows_max = number(ROWS_MAX, "a number of rows, 1 to 1048576")?
            }
            "karrow.batch.bytes" => {
                self.bytes_max = number(BYTES_MAX, "a number of bytes, 1 to 268435456")?;
            }
            "karrow.batch.wait.ms" => {
                let millis = if value == &Value::from(0) || text() == "0" {
                    0
                } else {
                    number(WAIT_MAX.as_millis() as usize, "a time in milliseconds, 0 to 60000")?
                };
                self.wait = Duration::from_millis(millis as u64);
            }
            "karrow.columns" => {
                self.projection =
                    columns_of(value).ok_or_else(|| wrong("a list of column names"))?
            }
            "karrow.layout" => {
                self.layout = match text() {
                    "struct" => Layout::Struct,
                    "flat" => Layout::Flat,
                    _ => return Err(wrong("struct or flat")),
                };
            }
            "karrow.ipc.compression" => {
                self.compression = compression(text()).ok_or_else(|| wrong(COMPRESSIONS))?;
            }
            "karrow.format" => {
                let format = serde_json::from_value(value.clone());
                self.format =
                    Some(format.map_err(|_| {
                        wrong("auto, raw, text, json, avro, protobuf, arrow or csv")
                    })?);
            }
            _ => return Err(Error::invalid(format!("{name}: no such option"))),
        }
        Ok(())
    }
}

/// What [`compression`] knows.
pub const COMPRESSIONS: &str = "none, lz4 or zstd";

/// The compression of this name.
pub fn compression(name: &str) -> Option<Option<CompressionType>> {
    match name {
        "none" => Some(None),
        "lz4" => Some(Some(CompressionType::LZ4_FRAME)),
        "zstd" => Some(Some(CompressionType::ZSTD)),
        _ => None,
    }
}

/// `orders:0:41,orders:1:17`: the form that `RPUSH acks` takes.
pub fn acks_text(acks: &[Ack]) -> String {
    let mut text = String::new();
    for ack in acks {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing into a string cannot fail.
        let _ = write!(text, "{comma}{}:{}:{}", ack.topic, ack.partition, ack.offset);
    }
    text
}

/// A list of names, or one text with commas between them. Dots lead into structs; where a field's own name has some, a list
/// of the names on the way to it is one name.
pub fn columns_of(value: &Value) -> Option<Projection> {
    fn path(name: &Value) -> Option<Vec<&str>> {
        match name {
            Value::String(name) => Some(name.split('.').collect()),
            Value::Array(path) => path.iter().map(Value::as_str).collect(),
            _ => None,
        }
    }
    let paths: Vec<Vec<&str>> = match value {
        Value::String(names) => {
            names.split(',').map(|name| name.trim().split('.').collect()).collect()
        }
        Value::Array(names) => names.iter().map(path).collect::<Option<_>>()?,
        _ => return None,
    };
    let are_names = |path: &Vec<&str>| !path.is_empty() && !path.contains(&"");
    (!paths.is_empty() && paths.iter().all(are_names)).then(|| Projection::of_paths(paths))
}

/// A stream of one batch, in parts that lie one after the other. `acks` become the schema's metadata `karrow.acks`, in
/// the form that `RPUSH acks` takes.
///
/// # Errors
/// A type that IPC cannot carry, which no decoder makes.
pub fn encode(
    batch: RecordBatch,
    acks: &[Ack],
    compression: Option<CompressionType>,
) -> Result<Vec<Bytes>> {
    let internal = |error: arrow::error::ArrowError| Error::internal(format!("Arrow IPC: {error}"));
    let mut schema = batch.schema().as_ref().clone();
    schema.metadata.insert("karrow.acks".to_owned(), acks_text(acks));
    let batch = batch.with_schema(Arc::new(schema)).map_err(internal)?;
    let options = IpcWriteOptions::default().try_with_compression(compression).map_err(internal)?;
    let mut encoder =
        StreamEncoder::try_new_with_options(batch.schema_ref(), options).map_err(internal)?;
    let mut parts = encoder.encode(&batch).map_err(internal)?;
    parts.extend(encoder.finish().map_err(internal)?);
    Ok(parts.into_iter().map(Bytes::from_owner).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked_by_name() {
        let ask = |text: &str| {
            let mut asked = serde_json::from_str::<Map<String, Value>>(text).expect("JSON");
            BatchOptions::default().with(&mut asked).map(|options| (options, asked.len()))
        };
        let (options, rest) = ask(
            r#"{"karrow.batch.rows":"10","karrow.batch.wait.ms":0,"karrow.columns":"offset,payload.a",
                "karrow.layout":"flat","karrow.ipc.compression":"zstd","karrow.format":"json","fetch.min.bytes":1}"#,
        )
        .expect("all of them are right");
        assert_eq!((options.rows_max, options.layout, rest), (10, Layout::Flat, 1));
        assert_eq!(options.format, Some(Format::Json));
        let (options, _) =
            ask(r#"{"karrow.columns":["offset",["payload","a.b"]]}"#).expect("names");
        let payload = options.projection.field("payload").expect("wanted");
        assert!(payload.field("a.b").is_some() && payload.field("a").is_none());
        for (text, why) in [
            (
                r#"{"karrow.batch.rows":0}"#,
                "karrow.batch.rows: 0 is not a number of rows, 1 to 1048576",
            ),
            (
                r#"{"karrow.batch.bytes":-1}"#,
                "karrow.batch.bytes: -1 is not a number of bytes, 1 to 268435456",
            ),
            (
                r#"{"karrow.batch.wait.ms":1e9}"#,
                "karrow.batch.wait.ms: 1000000000.0 is not a time in milliseconds, 0 to 60000",
            ),
            (r#"{"karrow.columns":""}"#, r#"karrow.columns: "" is not a list of column names"#),
            (r#"{"karrow.columns":[[]]}"#, "karrow.columns: [[]] is not a list of column names"),
            (
                r#"{"karrow.columns":["a..b"]}"#,
                r#"karrow.columns: ["a..b"] is not a list of column names"#,
            ),
            (r#"{"karrow.layout":"wide"}"#, r#"karrow.layout: "wide" is not struct or flat"#),
            (
                r#"{"karrow.format":"xml"}"#,
                r#"karrow.format: "xml" is not auto, raw, text, json, avro, protobuf, arrow or csv"#,
            ),
            (r#"{"karrow.colums":"a"}"#, "karrow.colums: no such option"),
            (
                r#"{"karrow.columns":["offset","nope"]}"#,
                "karrow.columns: no column 'nope', but topic, partition, offset, timestamp, key, headers, payload, \
                 error; fields are below payload, or in the flat layout",
            ),
        ] {
            assert_eq!(ask(text).expect_err(text).message(), why);
        }
    }
}
