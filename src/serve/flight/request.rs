//! [`ReadRequest`]: what a reader asks for, in a descriptor's command; and [`Ticket`], the same with every question answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::{FlightData, SchemaAsIpc};
use arrow_ipc::CompressionType;
use arrow_ipc::convert::try_schema_from_ipc_buffer;
use arrow_ipc::writer::IpcWriteOptions;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::decode::envelope::{Layout, check_columns};
use crate::decode::projection::Projection;
use crate::error::{Error, Result};
use crate::stream::batch::{COMPRESSIONS, columns_of, compression};
use crate::stream::window::Positions;

/// Where a read begins or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the first record that Kafka has.
    Earliest,
    /// At what comes next.
    Latest,
    /// Where the window of the topic's stream begins.
    Window,
    /// At the first record whose timestamp is at least so many milliseconds since the epoch.
    Time(i64),
    /// At these offsets; a partition that is not named is at its beginning.
    Positions(Positions),
}

/// What a reader asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// The topic.
    pub topic: String,
    /// Where it begins; the window of the topic's stream, or else the beginning, if there is none.
    pub from: Option<Place>,
    /// Where it ends, exclusive; `None` follows.
    pub to: Option<Place>,
    /// One endpoint a partition.
    pub split: bool,
    /// The wanted columns, as the reader wrote them.
    pub columns: Option<Value>,
    /// Where the payload's fields go.
    pub layout: Layout,
    /// Most rows.
    pub limit: Option<u64>,
    /// Of the buffers in messages: `none`, `lz4` or `zstd`.
    pub compression: Option<String>,
}

/// A read that can be done anywhere, and again: a topic, bounds as numbers, and the columns that were promised.
#[derive(Clone, Debug, PartialEq)]
pub struct Ticket {
    /// The topic.
    pub topic: String,
    /// Where it begins.
    pub from: Positions,
    /// Where it ends, exclusive; `None` follows.
    pub to: Option<Positions>,
    /// The only partition to read, if not all are.
    pub partition: Option<i32>,
    /// The wanted columns, as the reader wrote them.
    pub columns: Option<Value>,
    /// Where the payload's fields go.
    pub layout: Layout,
    /// Most rows.
    pub limit: Option<u64>,
    /// Of the buffers in messages: `none`, `lz4` or `zstd`.
    pub compression: Option<String>,
    /// The columns that were promised.
    pub schema: SchemaRef,
}

impl ReadRequest {
    /// All of `topic` that is in reach.
    pub fn of_topic(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            from: None,
            to: Some(Place::Latest),
            split: false,
            columns: None,
            layout: Layout::Struct,
            limit: None,
            compression: None,
        }
    }

    /// From the JSON of a descriptor's command.
    ///
    /// # Errors
    /// Names the field, and what it may be.
    pub fn parse(command: &[u8]) -> Result<Self> {
        let wrong = |error: serde_json::Error| Error::invalid(format!("command: {error}"));
        let mut fields: Map<String, Value> = serde_json::from_slice(command).map_err(wrong)?;
        let topic = match fields.remove("topic") {
            Some(Value::String(topic)) => topic,
            _ => return Err(Error::invalid("topic: the name of a topic is needed")),
        };
        let mut request = Self::of_topic(&topic);
        for (name, value) in fields {
            match name.as_str() {
                "from" => request.from = Some(place("from", &value)?),
                "to" if value == "follow" => request.to = None,
                "to" => request.to = Some(place("to", &value)?),
                "split" => request.split = split(&value)?,
                "columns" => {
                    columns_of(&value).ok_or_else(|| not("columns", &value, "a list of names"))?;
                    request.columns = Some(value);
                }
                "layout" => request.layout = layout(&value)?,
                "limit" => request.limit = Some(limit(&value)?),
                "compression" => request.compression = Some(compression_name(&value)?),
                _ => return Err(Error::invalid(format!("{name}: no such field of a read"))),
            }
        }
        if request.split && request.limit.is_some() {
            return Err(Error::invalid("limit: of all partitions together, so not with split"));
        }
        Ok(request)
    }

    /// As the JSON of a descriptor's command, which [`parse`](Self::parse) reads.
    pub fn encode(&self) -> Vec<u8> {
        let optional = [
            ("topic", Some(self.topic.as_str().into())),
            ("from", self.from.as_ref().map(place_json)),
            ("to", Some(self.to.as_ref().map_or("follow".into(), place_json))),
            ("split", self.split.then(|| "partition".into())),
            ("columns", self.columns.clone()),
            ("layout", (self.layout == Layout::Flat).then(|| "flat".into())),
            ("limit", self.limit.map(Value::from)),
            ("compression", self.compression.clone().map(Value::from)),
        ];
        let given = optional.into_iter().filter_map(|(name, value)| Some((name.into(), value?)));
        Value::Object(given.collect()).to_string().into_bytes()
    }

    /// The wanted columns.
    pub fn projection(&self) -> Projection {
        projection(self.columns.as_ref())
    }
}

/// The same ticket for what is left of its read: it begins at `from`, and has `limit` more rows. What a newer server has
/// written there stays as it is.
///
/// # Errors
/// It is no ticket.
pub fn rest_of(ticket: &[u8], from: &Positions, limit: Option<u64>) -> Result<Vec<u8>> {
    let mut fields: Map<String, Value> = serde_json::from_slice(ticket)
        .map_err(|error| Error::invalid(format!("no ticket: {error}")))?;
    fields.insert("from".to_owned(), from.to_json());
    if let Some(limit) = limit {
        fields.insert("limit".to_owned(), limit.into());
    }
    Ok(Value::Object(fields).to_string().into_bytes())
}

/// What a message's `app_metadata` says: the positions after it, and whether the columns change behind it.
///
/// # Errors
/// It is something else.
pub fn said(app_metadata: &[u8]) -> Result<(Positions, bool)> {
    let fields: Map<String, Value> = serde_json::from_slice(app_metadata)
        .map_err(|error| Error::invalid(format!("no positions: {error}")))?;
    let positions = fields.get("positions").unwrap_or(&Value::Null);
    let is_changed = fields.get("schema_changed").and_then(Value::as_bool).unwrap_or(false);
    Ok((positions_of("positions", positions)?, is_changed))
}

impl Ticket {
    /// As bytes that say all of it: no secret, no expiry.
    pub fn encode(&self) -> Vec<u8> {
        let options = IpcWriteOptions::default();
        let schema = FlightData::from(SchemaAsIpc::new(&self.schema, &options)).data_header;
        let mut fields = json!({
            "topic": self.topic,
            "from": self.from.to_json(),
            "schema": STANDARD.encode(schema),
        });
        let optional = [
            ("to", self.to.as_ref().map(Positions::to_json)),
            ("partition", self.partition.map(Value::from)),
            ("columns", self.columns.clone()),
            ("layout", (self.layout == Layout::Flat).then(|| "flat".into())),
            ("limit", self.limit.map(Value::from)),
            ("compression", self.compression.clone().map(Value::from)),
        ];
        if let Value::Object(fields) = &mut fields {
            let given = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
            fields.extend(given.map(|(name, value)| (name.to_owned(), value)));
        }
        fields.to_string().into_bytes()
    }

    /// What [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// It is no ticket; names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let no_ticket = |why: String| Error::invalid(format!("no ticket: {why}"));
        let fields: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|error| no_ticket(error.to_string()))?;
        let text = |name: &str| {
            let value = fields.get(name).and_then(Value::as_str);
            value.ok_or_else(|| no_ticket(format!("{name} is missing")))
        };
        let schema = STANDARD.decode(text("schema")?).map_err(|error| no_ticket(error.to_string()));
        let schema = schema_of(&schema?).map_err(|why| no_ticket(format!("schema: {why}")))?;
        let layout = fields.get("layout").map_or(Ok(Layout::Struct), layout)?;
        check_columns(&schema, layout).map_err(|why| no_ticket(format!("schema: {why}")))?;
        let positions =
            |name: &str| fields.get(name).map(|value| positions_of(name, value)).transpose();
        let partition = match fields.get("partition") {
            None => None,
            Some(value) => Some(
                value
                    .as_i64()
                    .and_then(|number| i32::try_from(number).ok())
                    .filter(|number| *number >= 0)
                    .ok_or_else(|| not("partition", value, "the number of a partition"))?,
            ),
        };
        Ok(Self {
            topic: text("topic")?.to_owned(),
            from: positions("from")?.ok_or_else(|| no_ticket("from is missing".to_owned()))?,
            to: positions("to")?,
            partition,
            columns: fields.get("columns").cloned(),
            layout,
            limit: fields.get("limit").map(limit).transpose()?,
            compression: fields.get("compression").map(compression_name).transpose()?,
            schema,
        })
    }

    /// The wanted columns.
    pub fn projection(&self) -> Projection {
        projection(self.columns.as_ref())
    }

    /// Of the buffers in messages.
    pub fn compression(&self) -> Option<CompressionType> {
        self.compression.as_deref().and_then(compression).flatten()
    }
}

/// The schema of a message's header.
///
/// # Errors
/// It is none.
pub fn schema_of(bytes: &[u8]) -> Result<SchemaRef, String> {
    // What this reads has a stream's framing around the flatbuffer.
    let mut framed = vec![0xff, 0xff, 0xff, 0xff];
    framed.extend(u32::try_from(bytes.len()).map_err(|_| "too long")?.to_le_bytes());
    framed.extend(bytes);
    let schema: Schema = try_schema_from_ipc_buffer(&framed).map_err(|error| error.to_string())?;
    Ok(Arc::new(schema))
}

fn projection(columns: Option<&Value>) -> Projection {
    columns.and_then(columns_of).unwrap_or_default()
}

fn place_json(place: &Place) -> Value {
    match place {
        Place::Earliest => "earliest".into(),
        Place::Latest => "latest".into(),
        Place::Window => "window".into(),
        Place::Time(millis) => json!({ "timestamp": millis }),
        Place::Positions(positions) => json!({ "positions": positions.to_json() }),
    }
}

/// Positions of a ticket, which names all partitions.
fn positions_of(name: &str, value: &Value) -> Result<Positions> {
    named_positions(name, value).map(|positions| positions.or(&Positions::default()))
}

fn named_positions(name: &str, value: &Value) -> Result<Positions> {
    let wrong = || not(name, value, "offsets by partition");
    let mut named = BTreeMap::new();
    for (partition, offset) in value.as_object().ok_or_else(wrong)? {
        let partition: i32 = partition.parse().map_err(|_| wrong())?;
        let offset = offset.as_i64().filter(|offset| *offset >= 0).ok_or_else(wrong)?;
        if !(0..PARTITIONS_MAX).contains(&partition) {
            return Err(wrong());
        }
        named.insert(partition, offset);
    }
    Ok(Positions::named(&named))
}

/// More than any topic has; a position of a partition costs memory for all before it.
const PARTITIONS_MAX: i32 = 1 << 20;

fn place(name: &str, value: &Value) -> Result<Place> {
    let wrong = || {
        not(name, value, "earliest, latest, window, now, {\"timestamp\": …} or {\"positions\": …}")
    };
    match value {
        Value::String(place) => match place.as_str() {
            "earliest" => Ok(Place::Earliest),
            "latest" | "now" => Ok(Place::Latest),
            "window" => Ok(Place::Window),
            _ => Err(wrong()),
        },
        Value::Object(fields) if fields.len() == 1 => {
            match (fields.get("timestamp"), fields.get("positions")) {
                (Some(millis), _) => {
                    let millis = millis.as_i64().filter(|millis| *millis >= 0);
                    millis.map(Place::Time).ok_or_else(wrong)
                }
                (_, Some(positions)) => named_positions(name, positions).map(Place::Positions),
                _ => Err(wrong()),
            }
        }
        _ => Err(wrong()),
    }
}

fn split(value: &Value) -> Result<bool> {
    match value.as_str() {
        Some("none") => Ok(false),
        Some("partition") => Ok(true),
        _ => Err(not("split", value, "none or partition")),
    }
}

fn compression_name(value: &Value) -> Result<String> {
    let name = value.as_str().filter(|name| compression(name).is_some());
    name.map(str::to_owned).ok_or_else(|| not("compression", value, COMPRESSIONS))
}

/// The layout of this name.
///
/// # Errors
/// There is none.
pub fn layout(value: &Value) -> Result<Layout> {
    match value.as_str() {
        Some("struct") => Ok(Layout::Struct),
        Some("flat") => Ok(Layout::Flat),
        _ => Err(not("layout", value, "struct or flat")),
    }
}

fn limit(value: &Value) -> Result<u64> {
    value.as_u64().ok_or_else(|| not("limit", value, "a number of rows"))
}

/// `name: value is not wanted`.
pub fn not(name: &str, value: &Value, wanted: &str) -> Error {
    Error::invalid(format!("{name}: {value} is not {wanted}"))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;

    #[test]
    fn requests_are_checked_by_name() {
        let parse = |text: &str| ReadRequest::parse(text.as_bytes());
        let request = parse(
            r#"{"topic":"t","from":{"positions":{"1":7}},"to":"follow","columns":["offset"],"layout":"flat"}"#,
        )
        .expect("all of it is right");
        // The other partition is where it begins, which is not always 0.
        let from = Place::Positions(Positions::named(&BTreeMap::from([(1, 7)])));
        assert_eq!((request.from, request.to, request.layout), (Some(from), None, Layout::Flat));
        for (text, why) in [
            ("{}", "topic: the name of a topic is needed"),
            (r#"{"topic":"t","form":1}"#, "form: no such field of a read"),
            (r#"{"topic":"t","limit":-1}"#, "limit: -1 is not a number of rows"),
            (
                r#"{"topic":"t","limit":1,"split":"partition"}"#,
                "limit: of all partitions together, so not with split",
            ),
            (
                r#"{"topic":"t","to":{"positions":{"x":1}}}"#,
                r#"to: {"x":1} is not offsets by partition"#,
            ),
            (
                r#"{"topic":"t","compression":"gzip"}"#,
                r#"compression: "gzip" is not none, lz4 or zstd"#,
            ),
            (r#"{"topic":"t","layout":"wide"}"#, r#"layout: "wide" is not struct or flat"#),
        ] {
            assert_eq!(parse(text).expect_err(text).message(), why);
        }
    }

    #[test]
    fn a_request_says_all_of_it() {
        let mut request = ReadRequest::of_topic("t");
        assert_eq!(ReadRequest::parse(&request.encode()).expect("a request"), request);
        for place in [
            Place::Earliest,
            Place::Latest,
            Place::Window,
            Place::Time(7),
            Place::Positions(Positions::new(vec![0, 7])),
        ] {
            request = ReadRequest {
                from: Some(place),
                to: None,
                columns: Some(json!(["offset", ["payload", "a.b"]])),
                layout: Layout::Flat,
                limit: Some(10),
                compression: Some("lz4".to_owned()),
                ..request
            };
            assert_eq!(ReadRequest::parse(&request.encode()).expect("a request"), request);
        }
    }

    #[test]
    fn a_read_goes_on_from_what_was_said() {
        let (positions, is_changed) =
            said(br#"{"positions":{"0":3,"1":9},"schema_changed":true}"#).expect("positions");
        assert_eq!((&positions, is_changed), (&Positions::new(vec![3, 9]), true));
        for bad in ["", "{}", r#"{"positions":[1]}"#] {
            assert!(said(bad.as_bytes()).is_err(), "{bad}");
        }
        let ticket = br#"{"topic":"t","from":{},"limit":9,"new":1}"#;
        let rest = rest_of(ticket, &positions, Some(4)).expect("a ticket");
        let expected = r#"{"topic":"t","from":{"0":3,"1":9},"limit":4,"new":1}"#;
        assert_eq!(String::from_utf8(rest).expect("text"), expected);
        assert!(rest_of(b"opaque", &positions, None).is_err());
    }

    #[test]
    fn a_ticket_says_all_of_it() {
        let item = Field::new_list_field(DataType::Utf8, true);
        let schema = Schema::new(vec![
            Field::new("_offset", DataType::Int64, false),
            Field::new("tags", DataType::List(Arc::new(item)), true),
        ]);
        let ticket = Ticket {
            topic: "t".to_owned(),
            from: Positions::new(vec![0, 7]),
            to: Some(Positions::new(vec![9, 8])),
            partition: Some(1),
            columns: Some(json!(["offset", ["payload", "a.b"]])),
            layout: Layout::Flat,
            limit: Some(10),
            compression: Some("zstd".to_owned()),
            schema: Arc::new(schema),
        };
        assert_eq!(Ticket::parse(&ticket.encode()).expect("a ticket"), ticket);
        for bad in ["", "x", "{}", r#"{"topic":"t","from":{},"schema":"AAAA"}"#] {
            assert!(Ticket::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
