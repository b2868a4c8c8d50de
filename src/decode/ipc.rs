//! Arrow IPC streams as payloads: each row of a stream becomes a row, with the envelope of its record, and one without rows
//! becomes a bad row; streams of different schemas share the columns of both.

pub(crate) mod plain;
mod stream;

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, MapArray, RecordBatch, StructArray, new_empty_array,
    new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options, concat};
use arrow::datatypes::{DataType, Field, Fields};
use parking_lot::Mutex;

use plain::{plain, slot_bytes};
use stream::malformed;
pub use stream::{guarded, read_stream};

use super::decoder::{BadRow, Decoder, Value};
use super::envelope::BATCH_BYTES_MAX;
use super::projection::Projection;
use super::reject::{Meter, RecordLimits, Reject};
use super::unite::unite;
use crate::error::{Error, ErrorKind, Result};

/// The columns of a topic's streams, shared by all its decoders.
#[derive(Debug, Default)]
pub struct SharedColumns {
    columns: Mutex<Option<DataType>>,
}

/// Columns of a topic, all that are nested included.
const COLUMNS_MAX: usize = 10_000;

/// What a row of a topic may take in all its columns, where all of them are null: a record that has a column brings it
/// to all others. Far below what a batch may hold, so that each batch has many rows.
pub(super) const ROW_BYTES_MAX: usize = 4 << 20;

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

#[cfg(test)]
mod tests;
