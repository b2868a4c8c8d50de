//! [`Rows`]: the rows of a batch as messages to be produced, the way back from columns to records.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, OffsetSizeTrait, RecordBatch, StructArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Field, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMillisecondType,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_json::writer::{EncoderOptions, NullableEncoder, make_encoder};

use crate::error::{Error, Result};
use crate::kafka::producer::{Header, Message};

/// Columns that say something about a message and are no part of its payload.
const META: [&str; 4] = ["key", "headers", "timestamp", "partition"];

/// The rows of one batch.
pub struct Rows {
    len: usize,
    key: Option<ArrayRef>,
    /// Lists or maps of names and values.
    headers: Option<Headers>,
    timestamp: Option<ArrayRef>,
    partition: Option<ArrayRef>,
    payload: Payload,
}

struct Headers {
    nulls: Option<arrow::buffer::NullBuffer>,
    /// Where those of a row begin, and after the last one where they end.
    offsets: Vec<usize>,
    names: ArrayRef,
    values: ArrayRef,
}

enum Payload {
    /// Binary.
    Bytes(ArrayRef),
    /// To be written as JSON objects.
    Json(ArrayRef),
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its headers, in order.
    pub headers: Vec<Header>,
    /// Milliseconds since the epoch; now, if there is none.
    pub timestamp: Option<i64>,
    /// Where it goes; the partitioner chooses, if there is none.
    pub partition: Option<i32>,
    /// `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
}

impl Row {
    /// As the producer takes it.
    pub fn message(&self) -> Message<'_> {
        Message {
            key: self.key.as_deref(),
            payload: self.payload.as_deref(),
            headers: &self.headers,
            timestamp: self.timestamp,
            partition: self.partition,
        }
    }
}

impl Rows {
    /// The rows of `batch`: its columns `key`, `headers`, `timestamp`, `partition` and `payload` are those of a message;
    /// without a `payload` the other columns are the fields of a JSON object.
    ///
    /// # Errors
    /// A column has a type that its part of a message cannot have; it is named.
    pub fn new(batch: &RecordBatch) -> Result<Self> {
        let mut names = HashSet::new();
        for field in batch.schema_ref().fields() {
            if !names.insert(field.name()) {
                let name = field.name().escape_debug();
                return Err(Error::invalid(format!("the column '{name}' is there twice")));
            }
        }
        let column = |name: &str| batch.column_by_name(name);
        let key = column("key").map(|array| bytes("key", array)).transpose()?;
        let timestamp = column("timestamp").map(timestamps).transpose()?;
        let partition = column("partition").map(partitions).transpose()?;
        let headers = column("headers").map(headers).transpose()?;
        let payload = match column("payload") {
            Some(payload) if matches!(payload.data_type(), DataType::Struct(_)) => {
                Payload::Json(payload.clone())
            }
            Some(payload) => Payload::Bytes(bytes("payload", payload)?),
            None => {
                let schema = batch.schema();
                let (fields, arrays): (Vec<_>, Vec<_>) = schema
                    .fields()
                    .iter()
                    .cloned()
                    .zip(batch.columns().iter().cloned())
                    .filter(|(field, _)| !META.contains(&field.name().as_str()))
                    .unzip();
                if arrays.is_empty() {
                    return Err(Error::invalid("no column is left to be the payload"));
                }
                let rows = StructArray::try_new(fields.into(), arrays, None);
                Payload::Json(Arc::new(rows.map_err(|error| Error::invalid(error.to_string()))?))
            }
        };
        if let Payload::Json(rows) = &payload {
            check_json("payload", rows)?;
        }
        Ok(Self { len: batch.num_rows(), key, headers, timestamp, partition, payload })
    }

    /// All of them, in order.
    ///
    /// # Errors
    /// A payload that cannot be written as JSON, a negative partition, a header without a name: the row is named.
    pub fn messages(&self) -> Result<Vec<Row>> {
        let options = EncoderOptions::default();
        let field;
        let mut json = match &self.payload {
            Payload::Bytes(_) => None,
            Payload::Json(rows) => {
                field = Arc::new(Field::new("payload", rows.data_type().clone(), true));
                let encoder = make_encoder(&field, rows, &options);
                Some(encoder.map_err(|error| Error::invalid(format!("payload: {error}")))?)
            }
        };
        (0..self.len).map(|row| self.message(row, json.as_mut())).collect()
    }

    fn message(&self, row: usize, json: Option<&mut NullableEncoder<'_>>) -> Result<Row> {
        let wrong = |what: &str| Error::invalid(format!("row {row}: {what}"));
        let partition = self
            .partition
            .as_ref()
            .filter(|array| array.is_valid(row))
            .map(|array| array.as_primitive::<Int32Type>().value(row));
        if partition.is_some_and(|partition| partition < 0) {
            return Err(wrong("a negative partition"));
        }
        let timestamp = self
            .timestamp
            .as_ref()
            .filter(|array| array.is_valid(row))
            .map(|array| array.as_primitive::<TimestampMillisecondType>().value(row));
        if timestamp.is_some_and(|timestamp| timestamp <= 0) {
            return Err(wrong("a timestamp that is not after 1970-01-01T00:00:00Z"));
        }
        let payload = match (&self.payload, json) {
            (Payload::Bytes(array), _) => value(array, row),
            (Payload::Json(_), Some(json)) if !json.is_null(row) => {
                let mut text = Vec::new();
                json.encode(row, &mut text);
                Some(text)
            }
            (Payload::Json(_), _) => None,
        };
        let headers = match &self.headers {
            None => Vec::new(),
            Some(headers) => headers.of(row).map_err(|why| wrong(&why))?,
        };
        let key = self.key.as_ref().and_then(|array| value(array, row));
        Ok(Row { key, headers, timestamp, partition, payload })
    }
}

impl Headers {
    fn of(&self, row: usize) -> Result<Vec<Header>, String> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return Ok(Vec::new());
        }
        let place = |row: usize| self.offsets.get(row).copied().unwrap_or(0);
        (place(row)..place(row + 1))
            .map(|at| {
                let name = value(&self.names, at).ok_or("a header without a name")?;
                let name =
                    String::from_utf8(name).map_err(|_| "a header whose name is no UTF-8")?;
                if name.contains('\0') {
                    return Err("a header whose name has a NUL".to_owned());
                }
                Ok((name, value(&self.values, at)))
            })
            .collect()
    }
}

fn value(array: &ArrayRef, row: usize) -> Option<Vec<u8>> {
    array.is_valid(row).then(|| array.as_binary::<i32>().value(row).to_vec())
}

/// Refuses values that JSON does not have: the encoder would write something else in their place.
fn check_json(name: &str, array: &ArrayRef) -> Result<()> {
    let wrong = |row: usize, what: &str| Error::invalid(format!("{name}: row {row}: {what}"));
    match array.data_type() {
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let floats = cast(array, &DataType::Float64);
            let floats = floats.map_err(|error| Error::invalid(format!("{name}: {error}")))?;
            let mut values = floats.as_primitive::<Float64Type>().iter().enumerate();
            match values.find(|(_, value)| value.is_some_and(|value| !value.is_finite())) {
                Some((row, _)) => Err(wrong(row, "JSON has neither NaN nor infinities")),
                None => Ok(()),
            }
        }
        data_type if data_type.is_temporal() => {
            let options = FormatOptions::default().with_display_error(false);
            let shown = ArrayFormatter::try_new(array, &options)
                .map_err(|error| Error::invalid(format!("{name}: {error}")))?;
            let mut rows = (0..array.len()).filter(|row| array.is_valid(*row));
            match rows.find(|row| shown.value(*row).try_to_string().is_err()) {
                Some(row) => Err(wrong(row, &format!("a {data_type} that is no date"))),
                None => Ok(()),
            }
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            fields.iter().zip(columns).try_for_each(|(field, column)| {
                check_json(&format!("{name}.{}", field.name()), column)
            })
        }
        DataType::List(_) => check_json(name, array.as_list::<i32>().values()),
        DataType::LargeList(_) => check_json(name, array.as_list::<i64>().values()),
        DataType::FixedSizeList(..) => check_json(name, array.as_fixed_size_list().values()),
        DataType::Map(..) => check_json(name, array.as_map().values()),
        DataType::Dictionary(..) => check_json(name, array.as_any_dictionary().values()),
        _ => Ok(()),
    }
}

/// A column of text or bytes as Binary.
fn bytes(name: &str, array: &ArrayRef) -> Result<ArrayRef> {
    match array.data_type() {
        DataType::Binary => Ok(array.clone()),
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_)
        | DataType::Null => cast(array, &DataType::Binary)
            .map_err(|error| Error::invalid(format!("{name}: {error}"))),
        DataType::Dictionary(_, value) => {
            let plain =
                cast(array, value).map_err(|error| Error::invalid(format!("{name}: {error}")))?;
            bytes(name, &plain)
        }
        other => Err(Error::invalid(format!("{name}: {other} is neither Binary nor Utf8"))),
    }
}

fn timestamps(array: &ArrayRef) -> Result<ArrayRef> {
    let wanted = DataType::Timestamp(TimeUnit::Millisecond, None);
    let failed = |error: arrow::error::ArrowError| Error::invalid(format!("timestamp: {error}"));
    match array.data_type() {
        DataType::Timestamp(unit, _) => {
            // Without its zone: Kafka's milliseconds are UTC, as Arrow's are.
            let plain = cast(array, &DataType::Timestamp(*unit, None)).map_err(failed)?;
            let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
            arrow::compute::cast_with_options(&plain, &wanted, &options).map_err(failed)
        }
        DataType::Int64 => {
            let millis =
                array.as_primitive::<Int64Type>().reinterpret_cast::<TimestampMillisecondType>();
            Ok(Arc::new(millis))
        }
        DataType::Null => cast(array, &wanted).map_err(failed),
        other => Err(Error::invalid(format!(
            "timestamp: {other} is neither a timestamp nor Int64 milliseconds"
        ))),
    }
}

fn partitions(array: &ArrayRef) -> Result<ArrayRef> {
    let is_integer = array.data_type().is_integer() || *array.data_type() == DataType::Null;
    if !is_integer {
        return Err(Error::invalid(format!("partition: {} is no integer", array.data_type())));
    }
    // Without `safe`, a number beyond 32 bits is an error, not a null.
    let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
    arrow::compute::cast_with_options(array, &DataType::Int32, &options)
        .map_err(|error| Error::invalid(format!("partition: {error}")))
}

fn places<O: OffsetSizeTrait>(offsets: &[O]) -> Vec<usize> {
    offsets.iter().map(|offset| offset.as_usize()).collect()
}

fn headers(array: &ArrayRef) -> Result<Headers> {
    let wrong = || {
        Error::invalid(format!(
            "headers: {} is neither a list of structs with key and value nor a map",
            array.data_type()
        ))
    };
    let (offsets, entries) = match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let entries = list.values().as_struct_opt().ok_or_else(wrong)?;
            (places(list.offsets()), entries.clone())
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let entries = list.values().as_struct_opt().ok_or_else(wrong)?;
            (places(list.offsets()), entries.clone())
        }
        DataType::Map(..) => (places(array.as_map().offsets()), array.as_map().entries().clone()),
        DataType::Null => {
            return Ok(Headers {
                nulls: Some(arrow::buffer::NullBuffer::new_null(array.len())),
                offsets: Vec::new(),
                names: arrow::array::new_empty_array(&DataType::Binary),
                values: arrow::array::new_empty_array(&DataType::Binary),
            });
        }
        _ => return Err(wrong()),
    };
    let part = |name: &str, position: usize| match entries.column_by_name(name) {
        Some(column) => Ok(column.clone()),
        None if matches!(array.data_type(), DataType::Map(..)) => {
            entries.columns().get(position).cloned().ok_or_else(wrong)
        }
        None => Err(wrong()),
    };
    Ok(Headers {
        nulls: array.nulls().cloned(),
        offsets,
        names: bytes("headers.key", &part("key", 0)?)?,
        values: bytes("headers.value", &part("value", 1)?)?,
    })
}
