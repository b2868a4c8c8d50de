//! Arrow IPC streams from strangers: checked before anything is allocated, then read. As a payload, each row of a stream
//! becomes a row, with the envelope of its record, and one without rows becomes a bad row; streams of different schemas
//! share the columns of both.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, MapArray, OffsetSizeTrait, RecordBatch, StructArray,
    new_empty_array, new_null_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{CastOptions, cast_with_options, concat};
use arrow::datatypes::{DataType, Field, Fields};
use arrow::downcast_dictionary_array;
use arrow_ipc::MessageHeader;
use arrow_ipc::reader::StreamReader;
use parking_lot::Mutex;

use super::decoder::{BadRow, Decoder, Value};
use super::envelope::BATCH_BYTES_MAX;
use super::projection::Projection;
use super::reject::{Meter, RecordLimits, Reject};
use super::unite::unite;
use crate::error::{Error, ErrorKind, Result};

/// The mark in front of every message.
const CONTINUATION: [u8; 4] = [0xFF; 4];

/// The columns of a topic's streams, shared by all its decoders.
#[derive(Debug, Default)]
pub struct SharedColumns {
    columns: Mutex<Option<DataType>>,
}

/// Columns of a topic, all that are nested included.
const COLUMNS_MAX: usize = 10_000;

/// Size of a value of a fixed size, in bytes or items.
const FIXED_SIZE_MAX: i32 = 4_096;

/// What a row of a topic may take in all its columns, where all of them are null: a record that has a column brings it
/// to all others. Far below what a batch may hold, so that each batch has many rows.
const ROW_BYTES_MAX: usize = 4 << 20;

/// How many times the bytes of a record the pieces of its dictionaries may make Arrow's reader copy: for each it copies
/// the whole dictionary.
const DICTIONARY_COPIES_MAX: usize = 8;

/// Rows of one batch, of all its streams.
const BATCH_ROWS_MAX: usize = 1 << 20;

/// See the top of this file.
pub struct IpcDecoder {
    shared: Arc<SharedColumns>,
    projection: Projection,
    limits: RecordLimits,
    counts: Vec<usize>,
}

impl IpcDecoder {
    /// Decodes what `projection` wants of the columns.
    pub fn new(shared: Arc<SharedColumns>, projection: Projection, limits: RecordLimits) -> Self {
        Self { shared, projection, limits, counts: Vec::new() }
    }

    /// The rows of one stream, in the types that karrow hands out.
    fn rows(&self, stream: &[u8]) -> Result<Option<StructArray>, Reject> {
        // What was read was validated, but kernels that spell it out may assert more.
        guarded(|| self.plain_rows(read_stream(stream, &self.limits)?))
    }

    fn plain_rows(&self, batches: Vec<RecordBatch>) -> Result<Option<StructArray>, Reject> {
        // One for all of them: they may share a dictionary.
        let mut meter = Meter::new(&self.limits);
        let mut parts: Vec<ArrayRef> = Vec::with_capacity(batches.len());
        for batch in batches {
            parts.push(plain(&(Arc::new(StructArray::from(batch)) as ArrayRef), &mut meter)?);
        }
        let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        if parts.is_empty() {
            return Ok(None);
        }
        let rows = concat(&parts).map_err(malformed)?;
        Ok(rows.as_struct_opt().cloned())
    }

    /// Takes the columns of `rows` into those of the topic.
    fn learn(&self, rows: &StructArray) -> Result<(), Reject> {
        let mut known = self.shared.columns.lock();
        let both = match &*known {
            None => rows.data_type().clone(),
            Some(known) if known == rows.data_type() => return Ok(()),
            Some(known) => unite(known, rows.data_type()).ok_or_else(|| {
                let columns = rows.data_type();
                Reject::schema(format!("columns {columns} do not go with the topic's"))
            })?,
        };
        if width(&both) > COLUMNS_MAX {
            return Err(Reject::limit(format_args!("{COLUMNS_MAX} columns of a topic")));
        }
        if slot_bytes(&both) > ROW_BYTES_MAX {
            return Err(Reject::limit(format_args!("{ROW_BYTES_MAX} bytes of a row of a topic")));
        }
        *known = Some(both);
        Ok(())
    }
}

impl Decoder for IpcDecoder {
    fn decode(&mut self, values: &[Option<Value<'_>>], bad: &mut Vec<BadRow>) -> Result<ArrayRef> {
        let mut room = BatchRoom { rows: BATCH_ROWS_MAX, bytes: BATCH_BYTES_MAX };
        let mut streams: Vec<Option<ArrayRef>> = Vec::with_capacity(values.len());
        for (row, value) in values.iter().enumerate() {
            let rows = match value {
                None => Ok(None),
                Some(value) => self.rows(value.bytes).and_then(|rows| {
                    rows.as_ref().map_or(Ok(()), |rows| self.learn(rows))?;
                    // Its record has a key, headers and an offset all the same. A null alone would be a tombstone.
                    match rows.filter(|rows| !rows.is_empty()) {
                        None => Err(Reject::value("an Arrow stream without rows")),
                        rows => Ok(rows),
                    }
                }),
            };
            let rows = rows.unwrap_or_else(|reject| {
                bad.push(BadRow { row, reject });
                None
            });
            let rows = rows.map(|rows| Arc::new(rows) as ArrayRef);
            if let Some(rows) = &rows {
                // One record has limits of its own.
                room.take(rows.len(), bytes_of(rows)).or_else(|error| match values {
                    [_] => Ok(()),
                    _ => Err(error),
                })?;
            }
            streams.push(rows);
        }
        let known = self.shared.columns.lock().clone();
        let Some(target) = known.and_then(|columns| projected(&columns, &self.projection)) else {
            // No columns were seen in any stream yet.
            self.counts = streams.iter().map(|rows| rows.as_ref().map_or(1, Array::len)).collect();
            return Ok(new_null_array(&DataType::Binary, self.counts.iter().sum()));
        };
        // Columns that a stream has not are null in its rows, and nulls may take more than all that it has.
        let of_null = slot_bytes(&target);
        let mut room = BatchRoom { rows: BATCH_ROWS_MAX, bytes: BATCH_BYTES_MAX };
        for (row, rows) in streams.iter_mut().enumerate() {
            let bytes = rows.as_ref().map_or(of_null, |rows| adapted_bytes(rows, &target));
            if bytes <= BATCH_BYTES_MAX {
                let count = rows.as_ref().map_or(1, Array::len);
                room.take(count, bytes)?;
            } else {
                let what = format_args!("{BATCH_BYTES_MAX} bytes in the columns of the topic");
                bad.push(BadRow { row, reject: Reject::limit(what) });
                *rows = None;
                room.take(1, of_null)?;
            }
        }
        let null = new_null_array(&target, 1);
        self.counts.clear();
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(streams.len());
        for (row, rows) in streams.into_iter().enumerate() {
            let adapted = match rows {
                None => null.clone(),
                Some(rows) => guarded(|| adapt(&rows, &target)).unwrap_or_else(|reject| {
                    bad.push(BadRow { row, reject });
                    null.clone()
                }),
            };
            self.counts.push(adapted.len());
            arrays.push(adapted);
        }
        bad.sort_by_key(|bad| bad.row);
        let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
        if arrays.is_empty() {
            return Ok(new_empty_array(&target));
        }
        concat(&arrays).map_err(|error| Error::internal(error.to_string()))
    }

    fn take_counts(&mut self) -> Option<Vec<usize>> {
        Some(std::mem::take(&mut self.counts))
    }
}

/// What still fits into a batch.
struct BatchRoom {
    rows: usize,
    bytes: usize,
}

impl BatchRoom {
    /// Fewer records make a smaller batch, which is what [`ErrorKind::Exhausted`] asks for.
    fn take(&mut self, rows: usize, bytes: usize) -> Result<()> {
        match (self.rows.checked_sub(rows), self.bytes.checked_sub(bytes)) {
            (Some(rows), Some(bytes)) => {
                *self = Self { rows, bytes };
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::Exhausted, "Arrow payloads fill more than a batch")),
        }
    }
}

/// Reads a stream, after [`check_stream`].
///
/// # Errors
/// It is no valid stream, or asks for more than `limits`.
pub fn read_stream(stream: &[u8], limits: &RecordLimits) -> Result<Vec<RecordBatch>, Reject> {
    check_stream(stream, limits)?;
    guarded(|| {
        let reader = StreamReader::try_new(stream, None).map_err(malformed)?;
        // Before anything of a type is read that is refused anyway.
        plain_type(&DataType::Struct(reader.schema().fields().clone()))?;
        reader.map(|batch| batch.map_err(malformed)).collect()
    })
}

/// Runs `work` on what a stranger sent. Arrow's reader validates most of it, and asserts the rest: that a buffer's length
/// fits its type, for one. Such a panic is a bad stream, not the end of a connection.
///
/// # Errors
/// Those of `work`, and its panic.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, Reject>) -> Result<T, Reject> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Reject::malformed("an Arrow IPC stream whose buffers do not fit its schema"))
    })
}

/// Checks every length that a stream declares against its bytes and `limits`, so that reading it allocates no more.
///
/// # Errors
/// It is no stream, ends early or late, or asks for too much.
pub fn check_stream(stream: &[u8], limits: &RecordLimits) -> Result<(), Reject> {
    let mut meter = Meter::new(limits);
    // Bytes of each dictionary, and those that are still copied when a piece is added to one.
    let mut dictionaries: HashMap<i64, usize> = HashMap::new();
    let mut copies_left = limits.bytes_max.saturating_mul(DICTIONARY_COPIES_MAX);
    let mut rest = stream;
    let mut messages = 0;
    while !rest.is_empty() {
        if !rest.starts_with(&CONTINUATION) {
            return Err(no_stream(stream));
        }
        let prefix = rest.get(..8).ok_or_else(|| Reject::truncated("an Arrow IPC message"))?;
        let size = prefix.last_chunk::<4>().map_or(0, |size| i32::from_le_bytes(*size));
        rest = rest.get(8..).unwrap_or_default();
        if size == 0 {
            // The end of the stream.
            if rest.is_empty() && messages > 0 {
                return Ok(());
            }
            return Err(Reject::malformed("something behind the end of an Arrow IPC stream"));
        }
        let size = usize::try_from(size)
            .map_err(|_| Reject::malformed("a negative length in an Arrow IPC stream"))?;
        let (metadata, behind) =
            rest.split_at_checked(size).ok_or_else(|| Reject::truncated("an Arrow IPC message"))?;
        // Tables may be shared, and then a few bytes unfold into very many fields.
        let verifier = flatbuffers::VerifierOptions {
            max_tables: size / 8,
            max_apparent_size: size.saturating_mul(4),
            ..flatbuffers::VerifierOptions::default()
        };
        let message =
            arrow_ipc::root_as_message_with_opts(&verifier, metadata).map_err(malformed)?;
        let body_size = usize::try_from(message.bodyLength())
            .map_err(|_| Reject::malformed("a negative length in an Arrow IPC stream"))?;
        let (body, behind) = behind
            .split_at_checked(body_size)
            .ok_or_else(|| Reject::truncated("an Arrow IPC message"))?;
        meter.bytes(size)?;
        match message.header_type() {
            MessageHeader::Schema if messages == 0 => {}
            MessageHeader::RecordBatch if messages > 0 => {
                let batch = message.header_as_record_batch();
                check_batch(
                    batch.ok_or_else(|| Reject::malformed("a message without a batch"))?,
                    body,
                    &mut meter,
                )?;
            }
            MessageHeader::DictionaryBatch if messages > 0 => {
                let without = || Reject::malformed("a message without a dictionary");
                let dictionary = message.header_as_dictionary_batch().ok_or_else(without)?;
                let data = dictionary.data().ok_or_else(without)?;
                let added = check_batch(data, body, &mut meter)?;
                let size = dictionaries.entry(dictionary.id()).or_default();
                if dictionary.isDelta() {
                    *size = size.saturating_add(added);
                    copies_left = copies_left
                        .checked_sub(*size)
                        .ok_or_else(|| Reject::limit("the pieces its dictionaries may come in"))?;
                } else {
                    *size = added;
                }
            }
            _ => {
                return Err(Reject::malformed(
                    "an Arrow IPC stream that does not begin with its schema",
                ));
            }
        }
        messages += 1;
        rest = behind;
    }
    if messages == 0 {
        return Err(no_stream(stream));
    }
    // Without its end mark a stream is complete as well, if its messages are.
    Ok(())
}

/// Checks one batch; how many bytes it has.
fn check_batch(
    batch: arrow_ipc::RecordBatch<'_>,
    body: &[u8],
    meter: &mut Meter,
) -> Result<usize, Reject> {
    let length = |length: i64| {
        usize::try_from(length)
            .map_err(|_| Reject::malformed("a negative length in an Arrow IPC stream"))
    };
    meter.elements(length(batch.length())?)?;
    for node in batch.nodes().into_iter().flatten() {
        meter.elements(length(node.length())?)?;
    }
    let is_compressed = batch.compression().is_some();
    let mut bytes_in_all: usize = 0;
    for buffer in batch.buffers().into_iter().flatten() {
        let (start, size) = (length(buffer.offset())?, length(buffer.length())?);
        let end =
            start.checked_add(size).ok_or_else(|| Reject::malformed("a buffer without an end"))?;
        let bytes = body.get(start..end).ok_or_else(|| Reject::truncated("an Arrow IPC buffer"))?;
        let declared = match bytes.first_chunk::<8>() {
            // Compressed buffers begin with their size, -1 where they are not compressed after all.
            Some(declared) if is_compressed => match i64::from_le_bytes(*declared) {
                -1 => size,
                declared => length(declared)?,
            },
            _ => size,
        };
        meter.bytes(declared)?;
        bytes_in_all = bytes_in_all.saturating_add(declared);
    }
    Ok(bytes_in_all)
}

/// The type in which karrow hands out `data_type`: dictionaries, views and runs are spelled out; `None` for nulls.
fn plain_type(data_type: &DataType) -> Result<Option<DataType>, Reject> {
    Ok(Some(match data_type {
        DataType::Null => return Ok(None),
        // The inner one would be merged or copied for each piece of the outer one.
        DataType::Dictionary(_, value) if has_dictionary(value) => {
            return Err(Reject::value(format!("{data_type}, which karrow does not take")));
        }
        DataType::Dictionary(_, value) => return plain_type(value),
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Union(..)
        | DataType::RunEndEncoded(..)
        | DataType::ListView(_)
        | DataType::LargeListView(_) => {
            return Err(Reject::value(format!("{data_type}, which karrow does not take")));
        }
        DataType::FixedSizeBinary(size) if !(1..=FIXED_SIZE_MAX).contains(size) => {
            return Err(Reject::limit(format_args!("{FIXED_SIZE_MAX} bytes of a fixed size")));
        }
        DataType::FixedSizeList(item, size)
            if !(1..=FIXED_SIZE_MAX).contains(size) || item.data_type().is_nested() =>
        {
            return Err(Reject::value(format!("{data_type}, which karrow does not take")));
        }
        DataType::Decimal128(precision, scale)
            if !(1..=38).contains(precision) || scale.unsigned_abs() > *precision =>
        {
            return Err(Reject::malformed("a decimal without digits"));
        }
        DataType::Decimal256(precision, scale)
            if !(1..=76).contains(precision) || scale.unsigned_abs() > *precision =>
        {
            return Err(Reject::malformed("a decimal without digits"));
        }
        DataType::Struct(fields) => {
            let mut kept = Vec::new();
            let mut names = HashSet::new();
            for field in fields {
                if !names.insert(field.name()) {
                    let name = field.name().escape_debug();
                    return Err(Reject::malformed(format!("the field '{name}' is there twice")));
                }
                if let Some(data_type) = plain_type(field.data_type())? {
                    kept.push(Field::new(field.name(), data_type, true));
                }
            }
            DataType::Struct(Fields::from(kept))
        }
        DataType::List(item) => match plain_type(item.data_type())? {
            Some(item) => super::column::list_of(item),
            None => return Ok(None),
        },
        DataType::LargeList(item) => match plain_type(item.data_type())? {
            Some(item) => DataType::LargeList(Arc::new(Field::new_list_field(item, true))),
            None => return Ok(None),
        },
        DataType::FixedSizeList(item, size) => match plain_type(item.data_type())? {
            Some(item) => {
                DataType::FixedSizeList(Arc::new(Field::new_list_field(item, true)), *size)
            }
            None => return Ok(None),
        },
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) if pair.len() == 2 => {
                match (plain_type(pair[0].data_type())?, plain_type(pair[1].data_type())?) {
                    (Some(key), Some(value)) => super::column::map_of(key, value),
                    _ => return Ok(None),
                }
            }
            _ => return Err(Reject::malformed("a map without keys and values")),
        },
        other => other.clone(),
    }))
}

fn has_dictionary(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(..) => true,
        DataType::Struct(fields) => fields.iter().any(|field| has_dictionary(field.data_type())),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => has_dictionary(item.data_type()),
        _ => false,
    }
}

/// Spells out what must not leave karrow.
fn plain(array: &ArrayRef, meter: &mut Meter) -> Result<ArrayRef, Reject> {
    let target =
        plain_type(array.data_type())?.ok_or_else(|| Reject::value("nothing but nulls"))?;
    spelled_out(array, meter)?;
    adapt(array, &target)
}

/// Books what dictionaries and views become when they are spelled out: a few bytes may stand for many.
fn spelled_out(array: &ArrayRef, meter: &mut Meter) -> Result<(), Reject> {
    match array.data_type() {
        DataType::Dictionary(..) => {
            (0..array.len()).try_for_each(|slot| book(array, slot, meter))?;
            spelled_out(array.as_any_dictionary().values(), meter)
        }
        DataType::Utf8View | DataType::BinaryView => {
            (0..array.len()).try_for_each(|slot| book(array, slot, meter))
        }
        DataType::Struct(_) => {
            array.as_struct().columns().iter().try_for_each(|column| spelled_out(column, meter))
        }
        DataType::List(_) => spelled_out(array.as_list::<i32>().values(), meter),
        DataType::LargeList(_) => spelled_out(array.as_list::<i64>().values(), meter),
        DataType::FixedSizeList(..) => spelled_out(array.as_fixed_size_list().values(), meter),
        DataType::Map(..) => {
            let map = array.as_map();
            spelled_out(map.keys(), meter)?;
            spelled_out(map.values(), meter)
        }
        _ => Ok(()),
    }
}

/// Books what one slot becomes. A slot that is booked twice costs twice, so the meter bounds the time as well.
fn book(array: &dyn Array, slot: usize, meter: &mut Meter) -> Result<(), Reject> {
    match array.data_type() {
        DataType::Dictionary(_, value) => match key_at(array, slot) {
            Some(at) => book(array.as_any_dictionary().values().as_ref(), at, meter),
            None => meter.bytes(slot_bytes(value)),
        },
        DataType::Struct(_) => {
            meter.bytes(1)?;
            let mut columns = array.as_struct().columns().iter();
            columns.try_for_each(|column| book(column, slot, meter))
        }
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => {
            meter.bytes(size_of::<i64>())?;
            let items: &dyn Array = match array.data_type() {
                DataType::List(_) => array.as_list::<i32>().values(),
                DataType::LargeList(_) => array.as_list::<i64>().values(),
                _ => array.as_fixed_size_list().values(),
            };
            items_at(array, slot).try_for_each(|at| book(items, at, meter))
        }
        DataType::Map(..) => {
            meter.bytes(size_of::<i64>())?;
            let entries = array.as_map().entries();
            items_at(array, slot).try_for_each(|at| book(entries, at, meter))
        }
        data_type @ DataType::FixedSizeBinary(_) => meter.bytes(slot_bytes(data_type)),
        data_type => {
            let bytes = bytes_at(array, slot).map_or(0, <[u8]>::len);
            meter.bytes(slot_bytes(data_type).saturating_add(bytes))
        }
    }
}

/// Bytes that each slot takes, whatever is in it, when it is spelled out.
fn slot_bytes(data_type: &DataType) -> usize {
    // Whether it is null takes a bit.
    let bytes = match data_type {
        DataType::Null | DataType::Boolean => 0,
        DataType::FixedSizeBinary(size) => usize::try_from(*size).unwrap_or(0),
        DataType::FixedSizeList(item, size) => {
            slot_bytes(item.data_type()).saturating_mul(usize::try_from(*size).unwrap_or(0))
        }
        DataType::Struct(fields) => fields
            .iter()
            .fold(0, |sum: usize, field| sum.saturating_add(slot_bytes(field.data_type()))),
        DataType::Dictionary(_, value) => slot_bytes(value),
        DataType::LargeUtf8 | DataType::LargeBinary | DataType::LargeList(_) => size_of::<i64>(),
        other => other.primitive_width().unwrap_or(size_of::<i32>()),
    };
    bytes.saturating_add(1)
}

/// The bytes of a slot of text or bytes, those of a dictionary too; `None` for a null, and for other types.
pub(super) fn bytes_at(array: &dyn Array, slot: usize) -> Option<&[u8]> {
    if let DataType::Dictionary(..) = array.data_type() {
        let at = key_at(array, slot)?;
        return bytes_at(array.as_any_dictionary().values().as_ref(), at);
    }
    if array.is_null(slot) {
        return None;
    }
    Some(match array.data_type() {
        DataType::Binary => array.as_binary::<i32>().value(slot),
        DataType::LargeBinary => array.as_binary::<i64>().value(slot),
        DataType::BinaryView => array.as_binary_view().value(slot),
        DataType::FixedSizeBinary(_) => array.as_fixed_size_binary().value(slot),
        DataType::Utf8 => array.as_string::<i32>().value(slot).as_bytes(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(slot).as_bytes(),
        DataType::Utf8View => array.as_string_view().value(slot).as_bytes(),
        _ => return None,
    })
}

/// Which value of its dictionary a slot has; `None` for a null, and where there is no dictionary.
pub(super) fn key_at(array: &dyn Array, slot: usize) -> Option<usize> {
    downcast_dictionary_array!(array => array.key(slot), _ => None)
}

/// Which items a slot of a list or map has.
pub(super) fn items_at(array: &dyn Array, slot: usize) -> Range<usize> {
    fn between<O: OffsetSizeTrait>(offsets: &OffsetBuffer<O>, slot: usize) -> Range<usize> {
        let place = |slot: usize| offsets.get(slot).map_or(0, |offset| offset.as_usize());
        place(slot)..place(slot + 1)
    }
    match array.data_type() {
        DataType::List(_) => between(array.as_list::<i32>().offsets(), slot),
        DataType::LargeList(_) => between(array.as_list::<i64>().offsets(), slot),
        DataType::Map(..) => between(array.as_map().offsets(), slot),
        DataType::FixedSizeList(_, size) => {
            let size = usize::try_from(*size).unwrap_or(0);
            slot * size..(slot + 1) * size
        }
        _ => 0..0,
    }
}

/// `array` as `target`, field by field by name; what `target` has more is null.
fn adapt(array: &ArrayRef, target: &DataType) -> Result<ArrayRef, Reject> {
    if array.data_type() == target {
        return Ok(array.clone());
    }
    match (array.data_type(), target) {
        (DataType::Struct(_), DataType::Struct(fields)) => {
            let rows = array.as_struct();
            let columns = fields
                .iter()
                .map(|field| match rows.column_by_name(field.name()) {
                    Some(column) => adapt(column, field.data_type()).map_err(|reject| Reject {
                        message: format!("{}: {}", field.name(), reject.message),
                        ..reject
                    }),
                    None => Ok(new_null_array(field.data_type(), rows.len())),
                })
                .collect::<Result<Vec<_>, _>>()?;
            if columns.is_empty() {
                return Ok(Arc::new(StructArray::new_empty_fields(
                    rows.len(),
                    rows.nulls().cloned(),
                )));
            }
            let adapted = StructArray::try_new(fields.clone(), columns, rows.nulls().cloned());
            Ok(Arc::new(adapted.map_err(malformed)?))
        }
        (DataType::List(_), DataType::List(item)) => {
            let list = array.as_list::<i32>();
            let items = adapt(list.values(), item.data_type())?;
            let adapted = ListArray::try_new(
                item.clone(),
                list.offsets().clone(),
                items,
                list.nulls().cloned(),
            );
            Ok(Arc::new(adapted.map_err(malformed)?))
        }
        (DataType::Map(..), DataType::Map(entries, sorted)) => {
            let map = array.as_map();
            let DataType::Struct(pair) = entries.data_type() else {
                return Err(Reject::malformed("a map without entries"));
            };
            let columns = vec![
                adapt(map.keys(), pair[0].data_type())?,
                adapt(map.values(), pair[1].data_type())?,
            ];
            let pairs = StructArray::try_new(pair.clone(), columns, None).map_err(malformed)?;
            let adapted = MapArray::try_new(
                entries.clone(),
                map.offsets().clone(),
                pairs,
                map.nulls().cloned(),
                *sorted,
            );
            Ok(Arc::new(adapted.map_err(malformed)?))
        }
        _ => {
            // A value that does not fit is an error, not a null; one that would become another is an error, too.
            let options = CastOptions { safe: false, ..CastOptions::default() };
            let cast = |array: &ArrayRef, target: &DataType| {
                cast_with_options(array, target, &options)
                    .map_err(|error| Reject::value(error.to_string()))
            };
            let there = cast(array, target)?;
            let is_spelled_out = matches!(
                array.data_type(),
                DataType::Dictionary(..) | DataType::Utf8View | DataType::BinaryView
            );
            if !is_spelled_out && cast(&there, array.data_type())?.as_ref() != array.as_ref() {
                return Err(Reject::value(format!(
                    "a value of {} that {target} does not hold",
                    array.data_type()
                )));
            }
            Ok(there)
        }
    }
}

/// The bytes of `array` that its rows take.
fn bytes_of(array: &ArrayRef) -> usize {
    // Not those of whole buffers: the columns of a message share one.
    array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_buffer_memory_size())
}

/// The bytes of what [`adapt`] makes of `array`, at most.
fn adapted_bytes(array: &ArrayRef, target: &DataType) -> usize {
    if array.data_type() == target {
        return bytes_of(array);
    }
    let own = array.len().saturating_mul(size_of::<i32>() + 1);
    let below = match (array.data_type(), target) {
        (DataType::Struct(_), DataType::Struct(fields)) => {
            let rows = array.as_struct();
            let of_field = |field: &Arc<Field>| match rows.column_by_name(field.name()) {
                Some(column) => adapted_bytes(column, field.data_type()),
                None => rows.len().saturating_mul(slot_bytes(field.data_type())),
            };
            fields.iter().map(of_field).fold(0, usize::saturating_add)
        }
        (DataType::List(_), DataType::List(item)) => {
            adapted_bytes(array.as_list::<i32>().values(), item.data_type())
        }
        (DataType::Map(..), DataType::Map(entries, _)) => {
            let entries = entries.data_type();
            adapted_bytes(&(Arc::new(array.as_map().entries().clone()) as ArrayRef), entries)
        }
        _ => bytes_of(array).saturating_add(array.len().saturating_mul(slot_bytes(target))),
    };
    own.saturating_add(below)
}

/// How many columns there are, nested ones included.
fn width(data_type: &DataType) -> usize {
    match data_type {
        DataType::Struct(fields) => fields.iter().map(|field| 1 + width(field.data_type())).sum(),
        DataType::List(item) | DataType::LargeList(item) | DataType::Map(item, _) => {
            1 + width(item.data_type())
        }
        _ => 0,
    }
}

/// The wanted part of `columns`; `None` where nothing of it is.
fn projected(columns: &DataType, projection: &Projection) -> Option<DataType> {
    let DataType::Struct(fields) = columns else { return Some(columns.clone()) };
    let kept: Vec<Field> = fields
        .iter()
        .filter_map(|field| {
            let below = projection.field(field.name())?;
            Some(Field::new(field.name(), projected(field.data_type(), below)?, true))
        })
        .collect();
    (!kept.is_empty()).then(|| DataType::Struct(Fields::from(kept)))
}

fn no_stream(bytes: &[u8]) -> Reject {
    // What a file begins with, see "IPC File Format" in Arrow's columnar specification.
    if bytes.starts_with(b"ARROW1") {
        return Reject::malformed("an Arrow IPC file, not a stream");
    }
    Reject::malformed("no Arrow IPC stream")
}

fn malformed(error: impl std::fmt::Display) -> Reject {
    Reject::malformed(format!("Arrow IPC: {error}"))
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BooleanArray, FixedSizeBinaryArray, Float64Array, Int32Array, Int32DictionaryArray,
        Int64Array, StringArray, StringViewArray, TimestampMillisecondArray, TimestampSecondArray,
        new_empty_array,
    };
    use arrow::datatypes::{Schema, UnionFields, UnionMode};
    use arrow_ipc::writer::{DictionaryHandling, IpcWriteOptions, StreamWriter};

    use super::*;
    use crate::decode::column::list_of;

    fn stream(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
            .collect();
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("a batch");
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
        writer.write(&batch).expect("written");
        writer.into_inner().expect("finished")
    }

    fn decode(streams: &[Vec<u8>]) -> (ArrayRef, Vec<String>) {
        let limits = RecordLimits::default();
        let mut decoder = IpcDecoder::new(Arc::default(), Projection::All, limits);
        let values: Vec<_> = streams.iter().map(|stream| Some(Value::new(stream))).collect();
        let mut bad = Vec::new();
        let array = decoder.decode(&values, &mut bad).expect("no failure of ours");
        (array, bad.into_iter().map(|bad| bad.reject.message).collect())
    }

    #[test]
    fn what_is_spelled_out_is_counted_as_it_is() {
        let categories: Vec<String> =
            (0..1_000).map(|n| format!("category number {n:05}")).collect();
        let rows = (0..5_000).map(|row| categories[row % 1_000].as_str());
        let dictionary: Int32DictionaryArray = rows.clone().collect();
        let views: StringViewArray = rows.clone().map(Some).collect();
        let columns = vec![
            ("dictionary", Arc::new(dictionary) as ArrayRef),
            ("view", Arc::new(views) as ArrayRef),
        ];
        let (array, bad) = decode(&[stream(columns)]);
        assert!(bad.is_empty(), "{bad:?}");
        let plain = Arc::new(StringArray::from_iter_values(rows)) as ArrayRef;
        for column in array.as_struct().columns() {
            assert_eq!(column.as_ref(), plain.as_ref());
        }
        // Few bytes for many: 100,000 times the same 1 MB.
        let long = "x".repeat(1_000_000);
        let keys = Int32Array::from(vec![0; 100_000]);
        let dictionary = Int32DictionaryArray::new(keys, Arc::new(StringArray::from(vec![long])));
        let (_, bad) = decode(&[stream(vec![("a", Arc::new(dictionary))])]);
        assert_eq!(bad, ["more than the bytes one record may have"]);
    }

    #[test]
    fn batches_that_share_a_dictionary_are_counted_together() {
        let long = "x".repeat(1_000_000);
        let batch = |rows: usize| {
            let dictionary: Int32DictionaryArray = std::iter::repeat_n(&*long, rows).collect();
            RecordBatch::try_from_iter([("a", Arc::new(dictionary) as ArrayRef)]).expect("a batch")
        };
        let of = |batches: usize| {
            let batch = batch(10);
            let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
            (0..batches).for_each(|_| writer.write(&batch).expect("written"));
            writer.into_inner().expect("finished")
        };
        let (array, bad) = decode(&[of(6)]);
        assert_eq!((array.len(), bad.len()), (60, 0), "{bad:?}");
        assert_eq!(decode(&[of(7)]).1, ["more than the bytes one record may have"]);
    }

    #[test]
    fn dictionaries_do_not_come_in_very_many_pieces() {
        let options =
            IpcWriteOptions::default().with_dictionary_handling(DictionaryHandling::Delta);
        let of = |pieces: usize| {
            let long = "x".repeat(100_000);
            let values: Vec<String> = (0..pieces).map(|n| format!("{long}{n}")).collect();
            let batch = |known: usize| {
                let keys = Int32Array::from(vec![known as i32 - 1]);
                let values = StringArray::from_iter_values(&values[..known]);
                let dictionary = Int32DictionaryArray::new(keys, Arc::new(values));
                RecordBatch::try_from_iter([("a", Arc::new(dictionary) as ArrayRef)])
                    .expect("a batch")
            };
            let schema = batch(1).schema();
            let mut writer =
                StreamWriter::try_new_with_options(Vec::new(), &schema, options.clone())
                    .expect("a writer");
            (1..=pieces).for_each(|known| writer.write(&batch(known)).expect("written"));
            writer.into_inner().expect("finished")
        };
        let (array, bad) = decode(&[of(90)]);
        assert_eq!((array.len(), bad.len()), (90, 0), "{bad:?}");
        // 0.1 + 0.2 + … 11 MB.
        assert_eq!(decode(&[of(110)]).1, ["more than the pieces its dictionaries may come in"]);
    }

    #[test]
    fn no_value_becomes_another() {
        let floats = || Arc::new(Float64Array::from(vec![0.5])) as ArrayRef;
        let seconds = || Arc::new(TimestampSecondArray::from(vec![1])) as ArrayRef;
        let cases: Vec<(ArrayRef, ArrayRef)> = vec![
            (floats(), Arc::new(Int64Array::from(vec![9_007_199_254_740_993]))),
            (seconds(), Arc::new(TimestampMillisecondArray::from(vec![1_999]))),
        ];
        for (first, second) in cases {
            let (array, bad) = decode(&[stream(vec![("a", first)]), stream(vec![("a", second)])]);
            assert_eq!((array.len(), bad.len()), (2, 1), "{bad:?}");
        }
        let whole = Arc::new(Int64Array::from(vec![7])) as ArrayRef;
        let (_, bad) = decode(&[stream(vec![("a", floats())]), stream(vec![("a", whole)])]);
        assert!(bad.is_empty(), "{bad:?}");
    }

    #[test]
    fn a_stream_without_rows_is_a_bad_row() {
        let ints = |values: Vec<i64>| vec![("a", Arc::new(Int64Array::from(values)) as ArrayRef)];
        let schema = Schema::new(vec![Field::new("b", DataType::Utf8, true)]);
        let mut writer = StreamWriter::try_new(Vec::new(), &schema).expect("a writer");
        writer.finish().expect("finished");
        let without_batch = writer.into_inner().expect("finished");
        let why = "an Arrow stream without rows";
        // Also before any columns are known.
        let (array, bad) = decode(std::slice::from_ref(&without_batch));
        assert_eq!((array.len(), array.logical_null_count(), bad), (1, 1, vec![why.to_owned()]));
        let (array, bad) = decode(&[stream(ints(vec![])), stream(ints(vec![1, 2])), without_batch]);
        assert_eq!((array.len(), bad), (4, vec![why.to_owned(); 2]));
        let nulls: Vec<bool> = (0..4).map(|row| array.is_null(row)).collect();
        assert_eq!(nulls, [true, false, false, true]);
    }

    #[test]
    fn types_that_are_not_taken_are_bad_rows() {
        let ints = || Arc::new(Int64Array::from(vec![1])) as ArrayRef;
        let empty = |data_type: DataType| vec![("a", new_empty_array(&data_type))];
        let dictionary = |value| DataType::Dictionary(Box::new(DataType::Int8), Box::new(value));
        let union =
            UnionFields::try_new([0], [Field::new("x", DataType::Int64, true)]).expect("fields");
        for (columns, why) in [
            (vec![("a", ints()), ("a", ints())], "the field 'a' is there twice"),
            (empty(DataType::Union(union, UnionMode::Sparse)), "which karrow does not take"),
            (empty(DataType::FixedSizeBinary(1 << 30)), "more than 4096 bytes of a fixed size"),
            (empty(DataType::new_fixed_size_list(DataType::Int64, 1 << 28, true)), "does not take"),
            (empty(dictionary(list_of(dictionary(DataType::Utf8)))), "which karrow does not take"),
        ] {
            let (_, bad) = decode(&[stream(columns)]);
            assert!(bad.len() == 1 && bad[0].contains(why), "{bad:?} for {why}");
        }
        let wide: Vec<String> = (0..10_001).map(|n| format!("c{n}")).collect();
        let wide = wide.iter().map(|name| (name.as_str(), ints())).collect();
        let (_, bad) = decode(&[stream(wide)]);
        assert_eq!(bad, ["more than 10000 columns of a topic"]);
    }

    #[test]
    fn columns_that_others_bring_are_counted() {
        let fixed = |size| {
            Arc::new(FixedSizeBinaryArray::try_from_iter([vec![0; size]].into_iter()).expect("one"))
                as ArrayRef
        };
        let wide = |columns: usize| -> Vec<u8> {
            let names: Vec<String> = (0..columns).map(|n| format!("c{n}")).collect();
            stream(names.iter().map(|name| (name.as_str(), fixed(4_096))).collect())
        };
        let (wide, too_wide) = (wide(100), wide(1_100));
        let bools = |rows: usize| {
            stream(vec![("b", Arc::new(BooleanArray::from(vec![true; rows])) as ArrayRef)])
        };
        let (many, some, few) = (bools(20_000), bools(400), bools(2));
        let mut decoder = IpcDecoder::new(Arc::default(), Projection::All, RecordLimits::default());
        let mut decode = |streams: &[Option<&[u8]>]| {
            let values: Vec<_> = streams.iter().map(|stream| stream.map(Value::new)).collect();
            let mut bad = Vec::new();
            let array = decoder.decode(&values, &mut bad).map_err(|error| error.kind())?;
            let bad: Vec<String> = bad.into_iter().map(|bad| bad.reject.message).collect();
            Ok((array.len(), bad))
        };
        // Alone, no batch holds it; the others are not touched.
        let why = "more than 268435456 bytes in the columns of the topic".to_owned();
        assert_eq!(decode(&[Some(&wide), Some(&many)]), Ok((2, vec![why.clone()])));
        assert_eq!(decode(&[Some(&many)]), Ok((1, vec![why])));
        assert_eq!(decode(&[Some(&few), None]), Ok((3, vec![])));
        // Each of them has room, both together do not. Nulls take as much.
        assert_eq!(decode(&[Some(&some), Some(&some)]), Err(ErrorKind::Exhausted));
        assert_eq!(decode(&[Some(&some)]), Ok((400, vec![])));
        assert_eq!(decode(&[None; 700]), Err(ErrorKind::Exhausted));
        assert_eq!(decode(&[None; 350]), Ok((350, vec![])));
        let why = "more than 4194304 bytes of a row of a topic".to_owned();
        assert_eq!(decode(&[Some(&too_wide)]), Ok((1, vec![why])));
        // So it is in lists.
        let lists = |items: ArrayRef| {
            let field = Arc::new(Field::new_list_field(items.data_type().clone(), true));
            let offsets = OffsetBuffer::from_lengths([items.len()]);
            stream(vec![("l", Arc::new(ListArray::new(field, offsets, items, None)) as ArrayRef)])
        };
        let object = |name: &str, array: ArrayRef| {
            Arc::new(StructArray::try_from(vec![(name, array)]).expect("an object")) as ArrayRef
        };
        let wide = lists(object("x", fixed(4_096)));
        let many = lists(object("y", Arc::new(BooleanArray::from(vec![true; 100_000]))));
        let (array, bad) = self::decode(&[wide, many]);
        let why = "more than 268435456 bytes in the columns of the topic";
        assert_eq!((array.len(), bad), (2, vec![why.to_owned()]));
    }

    #[test]
    fn columns_of_one_message_are_counted_once() {
        let columns: Vec<String> = (0..300).map(|n| format!("c{n}")).collect();
        let ints = || Arc::new(Int64Array::from(vec![1; 1_000])) as ArrayRef;
        let wide = stream(columns.iter().map(|name| (name.as_str(), ints())).collect());
        // 10 times 2.4 MB.
        let (array, bad) = decode(&vec![wide; 10]);
        assert_eq!((array.len(), bad.len()), (10_000, 0), "{bad:?}");
    }

    #[test]
    fn batches_of_many_rows_are_to_be_cut() {
        let rows = stream(vec![("a", Arc::new(Int64Array::from(vec![1; 400_000])) as ArrayRef)]);
        let mut decoder = IpcDecoder::new(Arc::default(), Projection::All, RecordLimits::default());
        let values = [Some(Value::new(&rows)); 3];
        let error = decoder.decode(&values, &mut Vec::new()).expect_err("too many");
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        let array = decoder.decode(&values[..2], &mut Vec::new()).expect("not too many");
        assert_eq!(array.len(), 800_000);
    }
}
