//! [`Fit`]: batches of a topic in the columns that a reader was promised, whatever the topic has become since.
//!
//! A value is never changed to make it fit: it is null, and the row's `error` says which field it was.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, ListArray, MapArray, RecordBatch, RecordBatchOptions,
    StringBuilder, StructArray, new_null_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{CastOptions, cast_with_options, nullif};
use arrow::datatypes::{DataType, Field, Fields, SchemaRef};
use arrow_json::writer::{EncoderOptions, make_encoder};

use crate::decode::envelope::{self, BATCH_BYTES_MAX, Layout};
use crate::decode::ipc::plain::slot_bytes;
use crate::decode::projection::Projection;
use crate::error::{Error, Result};

/// See the top of this file.
pub struct Fit {
    schema: SchemaRef,
    layout: Layout,
    /// What the reader asked for: a field that it did not name is no loss.
    projection: Projection,
}

/// A batch that fits.
#[derive(Debug)]
pub struct Fitted {
    /// With the columns that were promised.
    pub batch: RecordBatch,
    /// The first row of which something is missing.
    pub first_misfit: Option<usize>,
}

/// Why rows do not fit, by row; and how many bytes of nulls may still stand for what is not there.
struct Misfits {
    rows: Vec<Option<String>>,
    room: usize,
}

impl Misfits {
    /// A column that is not there. What was promised may be somebody else's word.
    fn nulls(&mut self, data_type: &DataType, len: usize) -> Result<ArrayRef> {
        let bytes = len.saturating_mul(slot_bytes(data_type));
        let Some(room) = self.room.checked_sub(bytes) else {
            let why = "columns that the topic does not have would fill more than a batch";
            return Err(Error::invalid(why));
        };
        self.room = room;
        Ok(new_null_array(data_type, len))
    }

    fn add(&mut self, row: usize, path: &str, what: &str) {
        let Some(why) = self.rows.get_mut(row) else { return };
        let text = format!("{path}: {what}");
        match why {
            None => *why = Some(text),
            Some(why) if why.contains(&text) => {}
            Some(why) => {
                why.push_str("; ");
                why.push_str(&text);
            }
        }
    }
}

/// An array on its way, and where its values belong: for those in lists, the rows around them.
struct Part<'a> {
    array: &'a ArrayRef,
    path: &'a str,
    rows: Option<&'a [usize]>,
}

impl Part<'_> {
    fn row(&self, index: usize) -> usize {
        self.rows.and_then(|rows| rows.get(index)).copied().unwrap_or(index)
    }
}

impl Fit {
    /// Into `schema`, which was promised to a reader who asked for `projection` in `layout`.
    pub fn new(schema: SchemaRef, layout: Layout, projection: Projection) -> Self {
        Self { schema, layout, projection }
    }

    /// The columns that were promised.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// `batch`, as a stream has it, in those columns.
    ///
    /// # Errors
    /// What was promised takes too much; or a failure of ours, not of the data.
    pub fn apply(&self, batch: &RecordBatch) -> Result<Fitted> {
        if batch.schema_ref() == &self.schema {
            return Ok(Fitted { batch: batch.clone(), first_misfit: None });
        }
        let flat;
        let source = match self.layout {
            Layout::Struct => batch,
            Layout::Flat => {
                flat = envelope::flat(batch)?;
                &flat
            }
        };
        let rows = batch.num_rows();
        let mut misfits = Misfits { rows: vec![None; rows], room: BATCH_BYTES_MAX };
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for field in self.schema.fields() {
            let below = self.projection.field(field.name());
            columns.push(match source.column_by_name(field.name()) {
                None => misfits.nulls(field.data_type(), rows)?,
                Some(array) => {
                    let part = Part { array, path: field.name(), rows: None };
                    fit(&part, field.data_type(), below.unwrap_or(&Projection::All), &mut misfits)?
                }
            });
        }
        for (field, array) in source.schema_ref().fields().iter().zip(source.columns()) {
            if self.schema.column_with_name(field.name()).is_none()
                && self.projection.field(field.name()).is_some()
            {
                lost(&Part { array, path: field.name(), rows: None }, &mut misfits);
            }
        }
        let first_misfit = misfits.rows.iter().position(Option::is_some);
        let error = envelope::envelope_name("error", self.layout);
        if first_misfit.is_some()
            && let Some((index, _)) = self.schema.column_with_name(&error)
            && let Some(column) = columns.get_mut(index)
        {
            *column = with_messages(column, &misfits.rows)?;
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options);
        Ok(Fitted { batch: batch.map_err(internal)?, first_misfit })
    }
}

/// `part` as `to`; what is not of that type becomes null, and a misfit.
fn fit(
    part: &Part<'_>,
    to: &DataType,
    projection: &Projection,
    misfits: &mut Misfits,
) -> Result<ArrayRef> {
    let array = part.array;
    match (array.data_type(), to) {
        (from, to) if from == to => Ok(array.clone()),
        (DataType::Struct(_), DataType::Struct(fields)) => {
            fit_struct(part, fields, projection, misfits)
        }
        (DataType::List(_), DataType::List(item)) => {
            let list = array.as_list::<i32>();
            let rows = rows_of_items(part, list.offsets());
            let path = format!("{}[]", part.path);
            let items = Part { array: list.values(), path: &path, rows: Some(&rows) };
            let values = fit(&items, item.data_type(), projection, misfits)?;
            let nulls = list.nulls().cloned();
            let list = ListArray::try_new(item.clone(), list.offsets().clone(), values, nulls);
            Ok(Arc::new(list.map_err(internal)?))
        }
        (DataType::Map(..), DataType::Map(entries, sorted)) => {
            let DataType::Struct(fields) = entries.data_type() else {
                return Err(Error::internal("a map without entries"));
            };
            let map = array.as_map();
            let rows = rows_of_items(part, map.offsets());
            let path = format!("{}[]", part.path);
            let pairs: ArrayRef = Arc::new(map.entries().clone());
            let pairs = Part { array: &pairs, path: &path, rows: Some(&rows) };
            let pairs = fit_struct(&pairs, fields, projection, misfits)?.as_struct().clone();
            let nulls = map.nulls().cloned();
            let offsets = map.offsets().clone();
            let map = MapArray::try_new(entries.clone(), offsets, pairs, nulls, *sorted);
            Ok(Arc::new(map.map_err(internal)?))
        }
        (from, DataType::Utf8) if from.is_nested() => json_of(array),
        (from, to) if from.is_nested() || to.is_nested() => {
            lost(part, misfits);
            misfits.nulls(to, array.len())
        }
        (from, to) => {
            let options = CastOptions { safe: true, ..CastOptions::default() };
            let both_ways = cast_with_options(array, to, &options)
                .and_then(|there| Ok((cast_with_options(&there, from, &options)?, there)));
            let Ok((back, there)) = both_ways else {
                lost(part, misfits);
                return misfits.nulls(to, array.len());
            };
            let is_same = not_distinct(&back, array).map_err(internal)?;
            let is_lost: BooleanArray =
                is_same.iter().map(|same| Some(same != Some(true))).collect();
            if is_lost.true_count() == 0 {
                return Ok(there);
            }
            for index in (0..array.len()).filter(|index| is_lost.value(*index)) {
                misfits.add(part.row(index), part.path, &format!("not {to} (any more)"));
            }
            nullif(&there, &is_lost).map_err(internal)
        }
    }
}

fn fit_struct(
    part: &Part<'_>,
    fields: &Fields,
    projection: &Projection,
    misfits: &mut Misfits,
) -> Result<ArrayRef> {
    let source = part.array.as_struct();
    let mut columns = Vec::with_capacity(fields.len());
    for field in fields {
        columns.push(match source.column_by_name(field.name()) {
            None => misfits.nulls(field.data_type(), source.len())?,
            Some(array) => {
                let path = format!("{}.{}", part.path, field.name());
                let below = projection.field(field.name()).unwrap_or(&Projection::All);
                let part = Part { array, path: &path, rows: part.rows };
                fit(&part, field.data_type(), below, misfits)?
            }
        });
    }
    for (field, array) in source.fields().iter().zip(source.columns()) {
        let is_promised = fields.iter().any(|promised| promised.name() == field.name());
        if !is_promised && projection.field(field.name()).is_some() {
            let path = format!("{}.{}", part.path, field.name());
            lost(&Part { array, path: &path, rows: part.rows }, misfits);
        }
    }
    let nulls = source.nulls().cloned();
    let array = if columns.is_empty() {
        StructArray::new_empty_fields(source.len(), nulls)
    } else {
        StructArray::try_new(fields.clone(), columns, nulls).map_err(internal)?
    };
    Ok(Arc::new(array))
}

/// Each value of `part` is a misfit.
fn lost(part: &Part<'_>, misfits: &mut Misfits) {
    for index in (0..part.array.len()).filter(|index| part.array.is_valid(*index)) {
        misfits.add(part.row(index), part.path, "not among the columns of this read");
    }
}

/// Which rows the items of lists belong to.
fn rows_of_items(part: &Part<'_>, offsets: &[i32]) -> Vec<usize> {
    let place = |offset: Option<&i32>| offset.and_then(|at| usize::try_from(*at).ok()).unwrap_or(0);
    let mut rows = vec![0; place(offsets.last())];
    for (index, bounds) in offsets.windows(2).enumerate() {
        let row = part.row(index);
        for item in place(bounds.first())..place(bounds.last()) {
            if let Some(place) = rows.get_mut(item) {
                *place = row;
            }
        }
    }
    rows
}

/// Nested values as JSON text, as a field becomes it whose values are of several kinds.
fn json_of(array: &ArrayRef) -> Result<ArrayRef> {
    let field = Arc::new(Field::new("", array.data_type().clone(), true));
    let options = EncoderOptions::default();
    let mut encoder = make_encoder(&field, array, &options).map_err(internal)?;
    let mut texts = StringBuilder::new();
    let mut text = Vec::new();
    for row in 0..array.len() {
        if encoder.is_null(row) {
            texts.append_null();
            continue;
        }
        text.clear();
        encoder.encode(row, &mut text);
        texts.append_value(String::from_utf8_lossy(&text));
    }
    Ok(Arc::new(texts.finish()))
}

/// `errors` with these messages besides their own.
fn with_messages(errors: &ArrayRef, messages: &[Option<String>]) -> Result<ArrayRef> {
    let malformed = || Error::internal("an error column of another type");
    let source = errors.as_struct_opt().ok_or_else(malformed)?;
    let old = source.column_by_name("message").and_then(|column| column.as_string_opt::<i32>());
    let old = old.ok_or_else(malformed)?;
    let mut texts = StringBuilder::new();
    let mut is_bad = Vec::with_capacity(messages.len());
    for (row, message) in messages.iter().enumerate() {
        let before = (source.is_valid(row) && old.is_valid(row)).then(|| old.value(row));
        is_bad.push(before.is_some() || message.is_some());
        match (before, message) {
            (Some(before), Some(message)) => texts.append_value(format!("{before}; {message}")),
            (Some(text), None) => texts.append_value(text),
            (None, Some(message)) => texts.append_value(message),
            (None, None) => texts.append_value(""),
        }
    }
    let columns = source
        .fields()
        .iter()
        .zip(source.columns())
        .map(|(field, column)| match field.name().as_str() {
            "message" => Ok(Arc::new(texts.finish()) as ArrayRef),
            // Where there was no error before, what lies below it means nothing.
            _ => nullif(
                column,
                &BooleanArray::from_iter((0..source.len()).map(|row| Some(source.is_null(row)))),
            ),
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(internal)?;
    let errors =
        StructArray::try_new(source.fields().clone(), columns, Some(NullBuffer::from(is_bad)));
    Ok(Arc::new(errors.map_err(internal)?))
}

fn internal(error: arrow::error::ArrowError) -> Error {
    Error::internal(error.to_string())
}
