//! [`append`]: the rows of a batch as messages to be produced, the way back from columns to records.

mod json;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, OffsetSizeTrait, RecordBatch, StructArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Fields, Int32Type, Int64Type, TimeUnit, TimestampMillisecondType,
};

use super::ipc::plain::bytes_at;
use super::ipc::{guarded, read_stream};
use super::reject::{RecordLimits, Reject};
use crate::error::{Error, Result};
use crate::kafka::producer::{Header, OwnedMessage};
use json::Json;

/// How much larger than the largest argument or message of a client an Arrow stream may become without its compression, and
/// the rows of all streams of a command.
pub const STREAM_EXPANSION_MAX: usize = 8;

/// Rows, values and list items in all the columns of one Arrow stream.
const STREAM_ELEMENTS_MAX: usize = 16_000_000;

/// Rows of all the Arrow streams of one command.
const ROWS_MAX: usize = 1_000_000;

/// Columns that say something about a message and are no part of its payload.
const META: [&str; 4] = ["key", "headers", "timestamp", "partition"];

/// The rows of one batch.
struct Rows {
    /// How many rows of the command come before, so that errors name rows as whoever sent it counts them.
    before: usize,
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
    /// Text or bytes.
    Bytes(ArrayRef),
    /// To be written as JSON objects.
    Json(ArrayRef),
}

/// What the rows of one command may still fill. A few bytes of a stream may stand for very many: a value of a dictionary
/// does for as many rows as name it, and a column's name for as many as there are.
#[derive(Debug)]
pub struct Budget {
    left: usize,
    max: usize,
}

impl Budget {
    /// For one command.
    pub fn new(max: usize) -> Self {
        Self { left: max, max }
    }

    fn check(&self, bytes: usize) -> Result<(), Wrong> {
        if bytes > self.left {
            let max = self.max;
            return Err(Wrong::new(format!("the rows of one command are more than {max} bytes")));
        }
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> Result<(), Wrong> {
        self.check(bytes)?;
        self.left -= bytes;
        Ok(())
    }
}

/// Why a row is refused.
#[derive(Debug)]
struct Wrong {
    /// Fields below the column, each with a dot in front.
    path: String,
    what: String,
}

impl Wrong {
    fn new(what: impl Into<String>) -> Self {
        Self { path: String::new(), what: what.into() }
    }

    fn below(mut self, field: &str) -> Self {
        self.path.insert_str(0, field);
        self.path.insert(0, '.');
        self
    }

    fn of(self, column: &str, row: usize) -> Error {
        Error::invalid(format!("{column}{}: row {row}: {}", self.path, self.what))
    }
}

/// The messages of the IPC streams of one command, of `bytes_max` in all. Errors count rows from `before` on.
///
/// # Errors
/// A stream is damaged, or is too large without its compression; or as [`append`].
pub fn rows_of(streams: &[&[u8]], before: usize, bytes_max: usize) -> Result<Vec<OwnedMessage>> {
    let limits =
        RecordLimits { bytes_max, elements_max: STREAM_ELEMENTS_MAX, ..RecordLimits::default() };
    let wrong = |reject: Reject| Error::invalid(reject.message);
    let mut budget = Budget::new(bytes_max);
    let mut rows = Vec::new();
    for stream in streams {
        for batch in read_stream(stream, &limits).map_err(wrong)? {
            if rows.len() + batch.num_rows() > ROWS_MAX {
                return Err(Error::invalid(format!("more than {ROWS_MAX} rows in one command")));
            }
            guarded(|| Ok(append(&batch, before, &mut budget, &mut rows))).map_err(wrong)??;
        }
    }
    Ok(rows)
}

/// Appends the rows of `batch` to `rows`: its columns `key`, `headers`, `timestamp`, `partition` and `payload` are those
/// of a message; without a `payload` the other columns are the fields of a JSON object. They are booked in `budget`
/// before they are made. Errors count rows from `before` on.
///
/// # Errors
/// A column has a type that its part of a message cannot have; it is named. A payload that cannot be written as JSON, a
/// negative partition, a header without a name, or no budget for it: the row is named.
pub fn append(
    batch: &RecordBatch,
    before: usize,
    budget: &mut Budget,
    rows: &mut Vec<OwnedMessage>,
) -> Result<()> {
    // Names are looked at batch by batch.
    budget.take(names(batch.schema_ref().fields())).map_err(|wrong| Error::invalid(wrong.what))?;
    Rows::new(batch, before + rows.len())?.append(budget, rows)
}

/// Bytes of the names of all fields.
fn names(fields: &Fields) -> usize {
    fn below(data_type: &DataType) -> usize {
        match data_type {
            DataType::Struct(fields) => names(fields),
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::FixedSizeList(item, _)
            | DataType::Map(item, _) => below(item.data_type()),
            DataType::Dictionary(_, value) => below(value),
            _ => 0,
        }
    }
    fields.iter().map(|field| field.name().len() + below(field.data_type())).sum()
}

impl Rows {
    fn new(batch: &RecordBatch, before: usize) -> Result<Self> {
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
        Ok(Self { before, len: batch.num_rows(), key, headers, timestamp, partition, payload })
    }

    fn append(&self, budget: &mut Budget, rows: &mut Vec<OwnedMessage>) -> Result<()> {
        let mut json = match &self.payload {
            Payload::Bytes(_) => None,
            Payload::Json(rows) => Some(Json::new("payload", rows.as_ref())?),
        };
        let mut text = Vec::new();
        rows.reserve(self.len);
        for row in 0..self.len {
            rows.push(self.message(row, json.as_mut(), &mut text, budget)?);
        }
        Ok(())
    }

    fn message(
        &self,
        row: usize,
        json: Option<&mut Json<'_>>,
        text: &mut Vec<u8>,
        budget: &mut Budget,
    ) -> Result<OwnedMessage> {
        let number = self.before + row;
        let wrong = |what: &str| Error::invalid(format!("row {number}: {what}"));
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
            (Payload::Bytes(array), _) => value(array, row, budget),
            (Payload::Json(_), Some(json)) if !json.is_null(row) => {
                text.clear();
                json.write(row, text, budget).map(|()| Some(text.clone()))
            }
            (Payload::Json(_), _) => Ok(None),
        };
        let payload = payload.map_err(|wrong| wrong.of("payload", number))?;
        let headers = match &self.headers {
            None => Vec::new(),
            Some(headers) => headers.of(row, budget).map_err(|why| wrong(&why.what))?,
        };
        let key = match &self.key {
            None => None,
            Some(array) => value(array, row, budget).map_err(|wrong| wrong.of("key", number))?,
        };
        Ok(OwnedMessage { key, headers, timestamp, partition, payload })
    }
}

impl Headers {
    fn of(&self, row: usize, budget: &mut Budget) -> Result<Vec<Header>, Wrong> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return Ok(Vec::new());
        }
        let place = |row: usize| self.offsets.get(row).copied().unwrap_or(0);
        let places = place(row)..place(row + 1);
        budget.take(places.len().saturating_mul(size_of::<Header>()))?;
        places
            .map(|at| {
                let name = value(&self.names, at, budget)?
                    .ok_or_else(|| Wrong::new("a header without a name"))?;
                let name = String::from_utf8(name)
                    .map_err(|_| Wrong::new("a header whose name is no UTF-8"))?;
                if name.contains('\0') {
                    return Err(Wrong::new("a header whose name has a NUL"));
                }
                Ok((name, value(&self.values, at, budget)?))
            })
            .collect()
    }
}

fn value(array: &ArrayRef, row: usize, budget: &mut Budget) -> Result<Option<Vec<u8>>, Wrong> {
    let Some(bytes) = bytes_at(array.as_ref(), row) else { return Ok(None) };
    budget.take(bytes.len())?;
    Ok(Some(bytes.to_vec()))
}

/// A column of text or bytes. It stays as it is: spelled out it may be too large.
fn bytes(name: &str, array: &ArrayRef) -> Result<ArrayRef> {
    fn is_bytes(data_type: &DataType) -> bool {
        match data_type {
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_)
            | DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Null => true,
            DataType::Dictionary(_, value) => is_bytes(value),
            _ => false,
        }
    }
    if is_bytes(array.data_type()) {
        return Ok(array.clone());
    }
    Err(Error::invalid(format!("{name}: {} is neither Binary nor Utf8", array.data_type())))
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
