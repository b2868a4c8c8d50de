//! [`RecordDecoder`]: whole records into batches with the envelope that every batch has.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, BinaryArray, BinaryBuilder, Int32Array, Int64Array, ListArray, RecordBatch,
    RecordBatchOptions, StringArray, StringBuilder, StructArray, TimestampMillisecondArray,
    new_null_array,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, TimeUnit};
use futures::future::BoxFuture;

use super::decoder::{BadRow, Decoder, Value};
use super::ipc::ROW_BYTES_MAX;
use super::ipc::plain::{plain_type, slot_bytes};
use super::projection::Projection;
use super::reject::Reject;
use super::schemas::{BatchSchemas, SchemaKey};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::record::RecordView;

/// Where the fields of a payload go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Into one struct column, `payload`.
    #[default]
    Struct,
    /// To the top; the envelope's names then start with `_`.
    Flat,
}

/// Which side of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Its key.
    Key,
    /// Its payload.
    Payload,
}

/// A batch, and what was wrong with it.
#[derive(Debug)]
pub struct Decoded {
    /// One row a record, in their order; several for a payload that holds several.
    pub batch: RecordBatch,
    /// Why rows have their `error` filled, in the order of the rows. A row may come twice.
    pub bad: Vec<Bad>,
}

/// A reason for a row's `error`.
#[derive(Clone, Debug)]
pub struct Bad {
    /// Which row of the batch.
    pub row: usize,
    /// Which of the records.
    pub record: usize,
    /// What of it; `None` for its headers.
    pub side: Option<Side>,
    /// Why.
    pub reject: Reject,
}

/// Decodes the records of one topic.
pub struct RecordDecoder {
    key: Box<dyn Decoder>,
    payload: Box<dyn Decoder>,
    layout: Layout,
    projection: Projection,
    /// What both sides look schemas up in.
    schemas: Option<Arc<BatchSchemas>>,
}

/// What repeated keys and headers, the rows of Arrow payloads, or the columns of other ones may fill in one batch.
pub const BATCH_BYTES_MAX: usize = 256 << 20;

/// The columns of the struct layout, in their order.
pub const ENVELOPE: [&str; 8] =
    ["topic", "partition", "offset", "timestamp", "key", "headers", "payload", "error"];

static HEADER: LazyLock<Fields> = LazyLock::new(|| {
    Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Binary, true),
    ])
});
static ERROR: LazyLock<Fields> = LazyLock::new(|| {
    Fields::from(vec![
        Field::new("message", DataType::Utf8, false),
        Field::new("key", DataType::Binary, true),
        Field::new("payload", DataType::Binary, true),
    ])
});

impl RecordDecoder {
    /// A decoder of records whose sides `key` and `payload` decode; they were made for the part of them that
    /// `projection` wants (see [`side`](Self::side)), and look schemas up in `schemas`.
    pub fn new(
        key: Box<dyn Decoder>,
        payload: Box<dyn Decoder>,
        layout: Layout,
        projection: Projection,
        schemas: Option<Arc<BatchSchemas>>,
    ) -> Self {
        Self { key, payload, layout, projection, schemas }
    }

    /// The part of a key or payload that a reader with `projection` wants; `None` for nothing of it.
    pub fn side(projection: &Projection, layout: Layout, side: Side) -> Option<Projection> {
        match (side, layout) {
            (Side::Key, _) => projection.field(&envelope_name("key", layout)).cloned(),
            (Side::Payload, Layout::Struct) => projection.field("payload").cloned(),
            // Its fields are at the top, next to names that no field has.
            (Side::Payload, Layout::Flat) if projection.field("payload").is_some() => {
                Some(Projection::All)
            }
            (Side::Payload, Layout::Flat) => {
                Some(projection.renamed(field_of_column)).filter(|fields| !fields.is_nothing())
            }
        }
    }

    /// Whether it looks at the headers of records; they cost something to read.
    pub fn wants_headers(&self) -> bool {
        self.wants("headers")
            || self.wants("error")
            || self.key.reads_schemas()
            || self.payload.reads_schemas()
    }

    fn wants(&self, column: &str) -> bool {
        self.projection.field(&envelope_name(column, self.layout)).is_some()
    }

    /// Decodes `records` into a batch.
    ///
    /// # Errors
    /// A failure of ours, not of the data.
    pub fn decode(&mut self, records: &[RecordView<'_>]) -> Result<Decoded> {
        let layout = self.layout;
        let wants_error = self.wants("error");
        let wants_payload = Self::side(&self.projection, layout, Side::Payload).is_some();
        let wants_key = self.wants("key");
        let mut bad = Vec::new();
        // What nobody sees is not decoded, unless its errors are wanted.
        let (payload, counts) = if wants_payload || wants_error {
            let array = decode_side(&mut *self.payload, records, Side::Payload, &mut bad)?;
            (wants_payload.then_some(array), self.payload.take_counts())
        } else {
            (None, None)
        };
        let (repeated, starts);
        let fits = counts.as_ref().map(|counts| check_repeated(records, counts)).transpose();
        let (payload, counts) = match fits {
            Ok(_) => (payload, counts),
            Err(error) if records.len() > 1 => return Err(error),
            // No smaller batch would have room for it.
            Err(_) => {
                let reject = Reject::limit(format_args!(
                    "{BATCH_BYTES_MAX} bytes of repeated keys and headers"
                ));
                bad = vec![Bad { row: 0, record: 0, side: Some(Side::Payload), reject }];
                (payload.map(|array| new_null_array(array.data_type(), 1)), None)
            }
        };
        let (records, starts) = match counts {
            None => (records, None),
            Some(counts) => {
                (repeated, starts) = repeat(records, &counts, &mut bad);
                (repeated.as_slice(), Some(starts))
            }
        };
        let key = if wants_key || wants_error {
            let array = decode_side(&mut *self.key, records, Side::Key, &mut bad)?;
            wants_key.then_some(array)
        } else {
            None
        };
        let rows = records.len();
        let mut columns: Vec<(FieldRef, ArrayRef)> = Vec::with_capacity(ENVELOPE.len());
        let mut add = |name: &str, array: ArrayRef, nullable: bool| {
            let name = envelope_name(name, layout);
            columns.push((Arc::new(Field::new(name, array.data_type().clone(), nullable)), array));
        };
        if self.wants("topic") {
            add("topic", topics(records), false);
        }
        if self.wants("partition") {
            let partitions = records.iter().map(|record| record.partition);
            add("partition", Arc::new(Int32Array::from_iter_values(partitions)), false);
        }
        if self.wants("offset") {
            let offsets = records.iter().map(|record| record.offset);
            add("offset", Arc::new(Int64Array::from_iter_values(offsets)), false);
        }
        if self.wants("timestamp") {
            let timestamps: TimestampMillisecondArray =
                records.iter().map(|record| record.timestamp).collect();
            add("timestamp", Arc::new(timestamps.with_timezone("UTC")), true);
        }
        if let Some(key) = key {
            add("key", key, true);
        }
        if self.wants("headers") {
            add("headers", headers(records, &mut bad)?, false);
        }
        match (layout, payload) {
            (_, None) => {}
            (Layout::Struct, Some(payload)) => add("payload", payload, true),
            (Layout::Flat, Some(payload)) => {
                let lifted = lifted(&payload);
                let is_wanted =
                    |(field, _): &(FieldRef, _)| self.projection.field(field.name()).is_some();
                columns.extend(lifted.into_iter().filter(is_wanted));
            }
        }
        if let Some(starts) = &starts {
            // Keys and headers were looked at row by row.
            for bad in bad.iter_mut().filter(|bad| bad.side != Some(Side::Payload)) {
                bad.record = starts.partition_point(|start| *start <= bad.row).saturating_sub(1);
            }
        }
        bad.sort_by_key(|bad| bad.row);
        if wants_error {
            let errors = errors(records, &bad, starts.as_deref())?;
            let field =
                Field::new(envelope_name("error", layout), errors.data_type().clone(), true);
            columns.push((Arc::new(field), errors));
        }
        let (fields, arrays): (Vec<FieldRef>, Vec<ArrayRef>) = columns.into_iter().unzip();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch =
            RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options);
        Ok(Decoded { batch: batch.map_err(internal)?, bad })
    }

    /// Values so far that became text because a limit left no column of their own.
    pub fn texts(&self) -> u64 {
        self.key.texts() + self.payload.texts()
    }

    /// Schemas that have to be fetched before `records` can be decoded.
    pub fn unfetched(&self, records: &[RecordView<'_>]) -> Vec<SchemaKey> {
        let of = |decoder: &dyn Decoder, side: Side| {
            let values: Vec<Option<Value<'_>>> =
                records.iter().map(|record| value(record, side)).collect();
            decoder.unfetched(&values)
        };
        let mut keys = Vec::new();
        for (decoder, side) in [(&*self.payload, Side::Payload), (&*self.key, Side::Key)] {
            if decoder.reads_schemas() {
                keys.extend(of(decoder, side));
            }
        }
        keys
    }

    /// Fetches the schemas that are [unfetched](Self::unfetched); they stay until the batch [is done](Self::done).
    pub fn fetch(&self, keys: Vec<SchemaKey>) -> BoxFuture<'static, ()> {
        match &self.schemas {
            Some(schemas) => Box::pin(schemas.clone().fetch_all(keys)),
            None => Box::pin(std::future::ready(())),
        }
    }

    /// The batch that was decoded is done with.
    pub fn done(&self) {
        if let Some(schemas) = &self.schemas {
            schemas.forget();
        }
    }
}

fn decode_side(
    decoder: &mut dyn Decoder,
    records: &[RecordView<'_>],
    side: Side,
    bad: &mut Vec<Bad>,
) -> Result<ArrayRef> {
    let values: Vec<Option<Value<'_>>> = records.iter().map(|record| value(record, side)).collect();
    let mut rejected = Vec::new();
    let array = decoder.decode(&values, &mut rejected)?;
    bad.extend(rejected.into_iter().map(|BadRow { row, reject }| Bad {
        row,
        record: row,
        side: Some(side),
        reject,
    }));
    Ok(array)
}

/// Keys and headers are there once for each row of a payload.
fn check_repeated(records: &[RecordView<'_>], counts: &[usize]) -> Result<()> {
    let mut bytes: usize = 0;
    for (record, count) in records.iter().zip(counts) {
        let value = |value: Option<&[u8]>| value.map_or(0, <[u8]>::len);
        let headers = record.headers.iter().map(|(name, header)| name.len() + value(*header));
        let of_row = value(record.key) + headers.sum::<usize>();
        bytes = bytes.saturating_add(of_row.saturating_mul(*count));
    }
    if bytes > BATCH_BYTES_MAX {
        return Err(Error::new(ErrorKind::Exhausted, "keys and headers fill more than a batch"));
    }
    Ok(())
}

/// Each record as often as its payload has rows, and where the rows of each begin; `bad` then names those rows.
fn repeat<'a>(
    records: &[RecordView<'a>],
    counts: &[usize],
    bad: &mut [Bad],
) -> (Vec<RecordView<'a>>, Vec<usize>) {
    let mut repeated = Vec::with_capacity(counts.iter().sum());
    let mut starts = Vec::with_capacity(counts.len());
    for (record, count) in records.iter().zip(counts) {
        starts.push(repeated.len());
        repeated.extend(std::iter::repeat_n(record, *count).cloned());
    }
    for bad in bad {
        bad.row = starts.get(bad.record).copied().unwrap_or(bad.record);
    }
    (repeated, starts)
}

/// Whether batches can have these columns, and what a row of them takes is bounded. Somebody else has said so.
///
/// # Errors
/// Names the column.
pub fn check_columns(schema: &Schema, layout: Layout) -> std::result::Result<(), String> {
    let part_of = |data_type: &DataType, whole: &Fields| match data_type {
        DataType::Struct(fields) => fields.iter().all(|field| whole.iter().any(|of| of == field)),
        _ => false,
    };
    for field in schema.fields() {
        let (data_type, is_nullable) = (field.data_type(), field.is_nullable());
        let name = ENVELOPE.into_iter().find(|name| envelope_name(name, layout) == *field.name());
        let is_ours = match name {
            Some("topic") => *data_type == DataType::Utf8 && !is_nullable,
            Some("partition") => *data_type == DataType::Int32 && !is_nullable,
            Some("offset") => *data_type == DataType::Int64 && !is_nullable,
            Some("timestamp") => {
                let zone = Some("UTC".into());
                *data_type == DataType::Timestamp(TimeUnit::Millisecond, zone) && is_nullable
            }
            Some("headers") => {
                let list = matches!(data_type, DataType::List(item) if !item.is_nullable()
                    && part_of(item.data_type(), &HEADER));
                list && !is_nullable
            }
            Some("error") => part_of(data_type, &ERROR) && is_nullable,
            _ => {
                is_nullable && plain_type(data_type).is_ok_and(|is| is.as_ref() == Some(data_type))
            }
        };
        if !is_ours {
            return Err(format!("column '{}' cannot be {data_type}", field.name().escape_debug()));
        }
    }
    let row = DataType::Struct(schema.fields().clone());
    if slot_bytes(&row) > ROW_BYTES_MAX {
        return Err(format!("more than {ROW_BYTES_MAX} bytes of a row"));
    }
    Ok(())
}

/// The name of an envelope's column under `layout`.
pub fn envelope_name(name: &str, layout: Layout) -> String {
    match layout {
        Layout::Struct => name.to_owned(),
        Layout::Flat => format!("_{name}"),
    }
}

/// The field that a column of the flat layout may be; none for the envelope's own columns.
fn field_of_column(column: &str) -> Option<String> {
    if is_taken(column) {
        return None;
    }
    // What `lifted` calls `_offset_` is the payload's own `_offset`.
    let bare = column.trim_end_matches('_');
    Some(if is_taken(bare) { bare } else { column }.to_owned())
}

/// Whether an envelope's column has this name in the flat layout.
fn is_taken(name: &str) -> bool {
    name.strip_prefix('_').is_some_and(|name| ENVELOPE.contains(&name))
}

/// A batch of the struct layout in the flat one.
///
/// # Errors
/// A failure of ours.
pub fn flat(batch: &RecordBatch) -> Result<RecordBatch> {
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if field.name() == "payload" {
            columns.extend(lifted(array));
        } else {
            let name = envelope_name(field.name(), Layout::Flat);
            columns.push((Arc::new(field.as_ref().clone().with_name(name)), array.clone()));
        }
    }
    let (fields, arrays): (Vec<FieldRef>, Vec<ArrayRef>) = columns.into_iter().unzip();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)
        .map_err(internal)
}

/// The fields of a payload as columns; one that has none is a column itself. A null payload is null in each; a name that an envelope's column has gets a `_`
/// behind it, so that metadata never collides with a field.
fn lifted(payload: &ArrayRef) -> Vec<(FieldRef, ArrayRef)> {
    let Some(payload) = payload.as_any().downcast_ref::<StructArray>() else {
        let field = Field::new("payload", payload.data_type().clone(), true);
        return vec![(Arc::new(field), payload.clone())];
    };
    let is_field = |name: &str| payload.fields().iter().any(|field| field.name() == name);
    payload
        .fields()
        .iter()
        .zip(payload.columns())
        .map(|(field, array)| {
            let mut name = field.name().clone();
            while is_taken(&name) || (name != *field.name() && is_field(&name)) {
                name.push('_');
            }
            (Arc::new(Field::new(name, array.data_type().clone(), true)), array.clone())
        })
        .collect()
}

fn value<'a>(record: &RecordView<'a>, side: Side) -> Option<Value<'a>> {
    let (bytes, name) = match side {
        Side::Key => (record.key, b"__key_schema_id".as_slice()),
        Side::Payload => (record.payload, b"__value_schema_id".as_slice()),
    };
    let header = record.headers.iter().rev().find(|(key, _)| *key == name);
    bytes.map(|bytes| Value { bytes, schema_header: header.and_then(|(_, value)| *value) })
}

fn topics(records: &[RecordView<'_>]) -> ArrayRef {
    // Nearly always there is one name, in one place.
    let name = records.first().map_or("", |record| record.topic);
    if records.iter().all(|record| std::ptr::eq(record.topic, name)) {
        let offsets = OffsetBuffer::from_repeated_length(name.len(), records.len());
        let names = Buffer::from_vec(name.repeat(records.len()).into_bytes());
        if let Ok(array) = StringArray::try_new(offsets, names, None) {
            return Arc::new(array);
        }
    }
    Arc::new(StringArray::from_iter_values(records.iter().map(|record| record.topic)))
}

/// The headers' column. A name that is no UTF-8 is escaped there, and its row is a bad one.
fn headers(records: &[RecordView<'_>], bad: &mut Vec<Bad>) -> Result<ArrayRef> {
    let mut names = StringBuilder::new();
    let mut values = BinaryBuilder::new();
    for (row, record) in records.iter().enumerate() {
        for (name, value) in &record.headers {
            match std::str::from_utf8(name) {
                Ok(name) => names.append_value(name),
                Err(_) => {
                    let shown = name.escape_ascii().to_string();
                    let reject =
                        Reject::malformed(format!("the name of header '{shown}' is no UTF-8"));
                    bad.push(Bad { row, record: row, side: None, reject });
                    names.append_value(shown);
                }
            }
            values.append_option(*value);
        }
    }
    let offsets =
        OffsetBuffer::<i32>::from_lengths(records.iter().map(|record| record.headers.len()));
    let pairs = StructArray::try_new(
        HEADER.clone(),
        vec![Arc::new(names.finish()), Arc::new(values.finish())],
        None,
    )
    .map_err(internal)?;
    let item = Arc::new(Field::new_list_field(DataType::Struct(HEADER.clone()), false));
    let list = ListArray::try_new(item, offsets, Arc::new(pairs), None);
    Ok(Arc::new(list.map_err(internal)?))
}

/// The column of errors: the reasons of a row in one sentence, and its bytes; those of a record that has become several rows
/// only in the first of them that is bad. `starts` is where the rows of each record begin, if not each is one.
fn errors(records: &[RecordView<'_>], bad: &[Bad], starts: Option<&[usize]>) -> Result<ArrayRef> {
    if bad.is_empty() {
        return Ok(new_null_array(&DataType::Struct(ERROR.clone()), records.len()));
    }
    let mut messages: Vec<Option<String>> = vec![None; records.len()];
    for bad in bad {
        let Some(message) = messages.get_mut(bad.row) else { continue };
        let side = match bad.side {
            Some(Side::Key) => "key: ",
            Some(Side::Payload) => "payload: ",
            None => "",
        };
        let text = format!("{side}{}", bad.reject);
        *message = Some(match message.take() {
            None => text,
            Some(before) => format!("{before}; {text}"),
        });
    }
    let is_bad: Vec<bool> = messages.iter().map(Option::is_some).collect();
    let mut has_bytes = is_bad.clone();
    if let Some(starts) = starts {
        let ends = starts.iter().skip(1).copied().chain([records.len()]);
        for (start, end) in starts.iter().zip(ends) {
            let rows = has_bytes.get_mut(*start..end).unwrap_or_default();
            if let Some(first) = rows.iter().position(|is_bad| *is_bad) {
                rows.iter_mut().skip(first + 1).for_each(|has_bytes| *has_bytes = false);
            }
        }
    }
    let raw = |bytes: for<'a> fn(&RecordView<'a>) -> Option<&'a [u8]>| -> BinaryArray {
        records
            .iter()
            .zip(&has_bytes)
            .map(|(record, has_bytes)| has_bytes.then(|| bytes(record)).flatten())
            .collect()
    };
    let keys = raw(|record| record.key);
    let payloads = raw(|record| record.payload);
    let messages: StringArray =
        messages.iter().map(|message| Some(message.as_deref().unwrap_or_default())).collect();
    let nulls = NullBuffer::from(is_bad);
    let errors = StructArray::try_new(
        ERROR.clone(),
        vec![Arc::new(messages), Arc::new(keys), Arc::new(payloads)],
        Some(nulls),
    );
    Ok(Arc::new(errors.map_err(internal)?))
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::internal(error.to_string())
}
