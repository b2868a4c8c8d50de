//! [`Column`]: an Arrow array in the making, which takes fields in any order and can forget its last rows.
//!
//! Every decoder appends to columns. A field that a record does not have costs nothing: the column is padded with
//! nulls when its next value comes, or at the end. A record that turns out bad in its middle is forgotten with
//! [`Column::truncate`], so its neighbours never notice.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, FixedSizeBinaryArray, ListArray, MapArray, PrimitiveArray,
    StringArray, StructArray,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Decimal256Type,
    DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType, DurationSecondType,
    Field, Fields, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, Time32MillisecondType,
    Time32SecondType, Time64MicrosecondType, Time64NanosecondType, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type, i256,
};

use super::envelope::BATCH_BYTES_MAX;
use super::reject::Reject;
use crate::error::{Error, ErrorKind, Result};

/// Levels of a column's type, the column itself among them: pyarrow opens no batch with more than 64, arrow-rs none with
/// more than 61.
pub const LEVELS_MAX: usize = 60;

/// The levels of a type.
pub fn levels(data_type: &DataType) -> usize {
    1 + match data_type {
        DataType::Struct(fields) => {
            fields.iter().map(|field| levels(field.data_type())).max().unwrap_or(0)
        }
        DataType::List(item) | DataType::Map(item, _) => levels(item.data_type()),
        _ => 0,
    }
}

/// What a row takes in memory, null or not, without what its lists and maps hold.
pub fn row_size(data_type: &DataType) -> usize {
    match data_type {
        DataType::Struct(fields) => {
            fields.iter().map(|field| row_size(field.data_type())).sum::<usize>().max(1)
        }
        DataType::FixedSizeBinary(size) => usize::try_from(*size).unwrap_or(0),
        DataType::Boolean => 1,
        // Else it is an offset.
        other => other.primitive_width().unwrap_or(4),
    }
}

/// Keeps batches from growing beyond all measure: a few bytes of a record may be a row of thousands of columns, or many
/// of them in a list.
#[derive(Debug)]
pub struct Room {
    rows: usize,
    /// What records asked for since the column was measured.
    asked: usize,
}

/// What records may ask for, in bytes and elements, until the column is measured again.
const ASKED_MAX: usize = 1 << 20;

impl Room {
    /// For a batch of `rows`.
    ///
    /// # Errors
    /// The rows alone fill more than a batch may, and fewer would not.
    pub fn new(column: Option<&Column>, rows: usize) -> Result<Self> {
        let row = column.map_or(0, |column| row_size(&column.data_type));
        let room = Self { rows, asked: 0 };
        room.check(row.saturating_mul(rows))?;
        Ok(room)
    }

    /// A record was appended to `column`, which had asked for this much.
    ///
    /// # Errors
    /// As those of [`new`](Self::new).
    #[inline]
    pub fn take(&mut self, asked: usize, column: Option<&Column>) -> Result<()> {
        self.asked = self.asked.saturating_add(asked);
        if self.asked <= ASKED_MAX {
            return Ok(());
        }
        self.asked = 0;
        self.check(column.map_or(0, |column| column.size(self.rows)))
    }

    fn check(&self, size: usize) -> Result<()> {
        if self.rows > 1 && size > BATCH_BYTES_MAX {
            return Err(Error::new(ErrorKind::Exhausted, "columns fill more than a batch"));
        }
        Ok(())
    }
}

/// The rows that are null: runs of them, in order and apart. A value costs nothing here, unlike in a bitmap.
#[derive(Debug, Default)]
pub struct Nulls {
    runs: Vec<(usize, usize)>,
}

impl Nulls {
    /// Rows `start..end` are null; they lie behind all that were added before.
    #[inline]
    pub fn add(&mut self, start: usize, end: usize) {
        if start == end {
            return;
        }
        match self.runs.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => self.runs.push((start, end)),
        }
    }

    fn truncate(&mut self, len: usize) {
        while self.runs.last().is_some_and(|run| run.0 >= len) {
            self.runs.pop();
        }
        if let Some(last) = self.runs.last_mut() {
            last.1 = last.1.min(len);
        }
    }

    /// The bitmap for `len` rows, `None` where none is null; empty again.
    pub fn finish(&mut self, len: usize) -> Option<NullBuffer> {
        if self.runs.is_empty() {
            return None;
        }
        // A bit a row, whole words at a time; the lowest bit comes first.
        let mut words = vec![u64::MAX; len.div_ceil(64)];
        for (mut start, end) in self.runs.drain(..) {
            while start < end {
                let count = (64 - start % 64).min(end - start);
                let mask = (u64::MAX >> (64 - count)) << (start % 64);
                if let Some(word) = words.get_mut(start / 64) {
                    *word &= !mask.to_le();
                }
                start += count;
            }
        }
        Some(NullBuffer::new(BooleanBuffer::new(Buffer::from_vec(words), 0, len)))
    }
}

/// An array in the making: its type, which of its rows are null, and its values.
#[derive(Debug)]
pub struct Column {
    /// What it becomes.
    pub data_type: DataType,
    /// Its null rows.
    pub nulls: Nulls,
    /// Its values, with some value or other where a row is null.
    pub values: Values,
}

/// The values of a [`Column`] by their layout in memory.
#[derive(Debug)]
// With a byte that says which: it is looked at for each value.
#[repr(u8)]
pub enum Values {
    /// Booleans, packed at the end.
    Bool(Vec<bool>),
    /// Integers of up to 32 bits, dates, times of day in seconds and milliseconds.
    Int32(Vec<i32>),
    /// 64-bit integers, times, timestamps, durations.
    Int64(Vec<i64>),
    /// Unsigned integers of up to 32 bits.
    UInt32(Vec<u32>),
    /// Unsigned 64-bit integers.
    UInt64(Vec<u64>),
    /// 32-bit floating point.
    Float32(Vec<f32>),
    /// 64-bit floating point.
    Float64(Vec<f64>),
    /// Decimals of up to 38 digits.
    Decimal128(Vec<i128>),
    /// Decimals of up to 76 digits.
    Decimal256(Vec<i256>),
    /// Months, days and nanoseconds.
    Interval(Vec<IntervalMonthDayNano>),
    /// Text or bytes. Whoever appends to a Utf8 column appends UTF-8; it is checked again at the end.
    Bytes(Bytes),
    /// Values of a fixed size, one after the other.
    Fixed {
        /// Size of one, in bytes.
        size: usize,
        /// All of them.
        data: Vec<u8>,
    },
    /// Fields, and how many rows there are.
    Struct {
        /// Rows so far; a field may have fewer, and is null in the rest.
        len: usize,
        /// In the order of the type's fields.
        fields: Vec<Column>,
    },
    /// Lists: where each ends in `items`.
    List {
        /// 0, then the end of every row.
        offsets: Vec<i32>,
        /// The items of all rows.
        items: Box<Column>,
    },
    /// Maps: where each ends in `keys` and `values`, which are equally long.
    Map {
        /// 0, then the end of every row.
        offsets: Vec<i32>,
        /// Never null.
        keys: Box<Column>,
        /// The values of all rows.
        values: Box<Column>,
    },
}

/// Strings of bytes in one buffer.
#[derive(Debug)]
pub struct Bytes {
    /// 0, then the end of every row.
    pub offsets: Vec<i32>,
    /// All rows.
    pub data: Vec<u8>,
}

impl Bytes {
    /// Ends a row after what was appended to `data`.
    ///
    /// # Errors
    /// An Arrow array of this type cannot hold more than 2 GiB.
    #[inline(always)]
    pub fn end_row(&mut self) -> Result<(), Reject> {
        let end =
            i32::try_from(self.data.len()).map_err(|_| Reject::limit("2 GiB in one column"))?;
        self.offsets.push(end);
        Ok(())
    }

    /// Appends a row.
    ///
    /// # Errors
    /// As [`end_row`](Self::end_row).
    #[inline(always)]
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Reject> {
        self.data.extend_from_slice(bytes);
        self.end_row()
    }

    fn last(&self) -> i32 {
        self.offsets.last().copied().unwrap_or(0)
    }
}

/// Appends the value of `row`; the rows before it that have none are null.
#[inline(always)]
pub fn push<T: Clone + Default>(values: &mut Vec<T>, nulls: &mut Nulls, row: usize, value: T) {
    pad(values, nulls, row);
    values.push(value);
}

/// Makes `values` reach `row` with nulls.
#[inline(always)]
fn pad<T: Clone + Default>(values: &mut Vec<T>, nulls: &mut Nulls, row: usize) {
    if values.len() < row {
        fill(values, nulls, row);
    }
}

#[inline(never)]
fn fill<T: Clone + Default>(values: &mut Vec<T>, nulls: &mut Nulls, row: usize) {
    nulls.add(values.len(), row);
    values.resize(row, T::default());
}

/// Makes offsets (of which there is one more than rows) reach `row` with empty nulls.
#[inline(always)]
pub fn pad_offsets(offsets: &mut Vec<i32>, nulls: &mut Nulls, row: usize) {
    if offsets.len() <= row {
        fill_offsets(offsets, nulls, row);
    }
}

#[inline(never)]
fn fill_offsets(offsets: &mut Vec<i32>, nulls: &mut Nulls, row: usize) {
    nulls.add(offsets.len() - 1, row);
    offsets.resize(row + 1, offsets.last().copied().unwrap_or(0));
}

impl Column {
    /// An empty column of `data_type`.
    ///
    /// # Errors
    /// No decoder makes this type.
    pub fn new(data_type: &DataType) -> Result<Self> {
        let values = match data_type {
            DataType::Boolean => Values::Bool(Vec::new()),
            DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Date32
            | DataType::Time32(TimeUnit::Second | TimeUnit::Millisecond) => {
                Values::Int32(Vec::new())
            }
            DataType::Int64
            | DataType::Timestamp(..)
            | DataType::Duration(_)
            | DataType::Time64(TimeUnit::Microsecond | TimeUnit::Nanosecond) => {
                Values::Int64(Vec::new())
            }
            DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => Values::UInt32(Vec::new()),
            DataType::UInt64 => Values::UInt64(Vec::new()),
            DataType::Float32 => Values::Float32(Vec::new()),
            DataType::Float64 => Values::Float64(Vec::new()),
            DataType::Decimal128(..) => Values::Decimal128(Vec::new()),
            DataType::Decimal256(..) => Values::Decimal256(Vec::new()),
            DataType::Interval(IntervalUnit::MonthDayNano) => Values::Interval(Vec::new()),
            DataType::Utf8 | DataType::Binary => {
                Values::Bytes(Bytes { offsets: vec![0], data: Vec::new() })
            }
            DataType::FixedSizeBinary(size) => {
                Values::Fixed { size: usize::try_from(*size).unwrap_or(0), data: Vec::new() }
            }
            DataType::Struct(fields) => Values::Struct {
                len: 0,
                fields: fields
                    .iter()
                    .map(|field| Self::new(field.data_type()))
                    .collect::<Result<_>>()?,
            },
            DataType::List(item) => {
                Values::List { offsets: vec![0], items: Box::new(Self::new(item.data_type())?) }
            }
            DataType::Map(entries, false) => match entries.data_type() {
                DataType::Struct(pair) if pair.len() == 2 => Values::Map {
                    offsets: vec![0],
                    keys: Box::new(Self::new(pair[0].data_type())?),
                    values: Box::new(Self::new(pair[1].data_type())?),
                },
                other => return Err(Error::internal(format!("a map of {other}"))),
            },
            other => {
                return Err(Error::invalid(format!("columns of type {other} are not supported")));
            }
        };
        Ok(Self { data_type: data_type.clone(), nulls: Nulls::default(), values })
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        match &self.values {
            Values::Bool(values) => values.len(),
            Values::Int32(values) => values.len(),
            Values::Int64(values) => values.len(),
            Values::UInt32(values) => values.len(),
            Values::UInt64(values) => values.len(),
            Values::Float32(values) => values.len(),
            Values::Float64(values) => values.len(),
            Values::Decimal128(values) => values.len(),
            Values::Decimal256(values) => values.len(),
            Values::Interval(values) => values.len(),
            Values::Bytes(bytes) => bytes.offsets.len() - 1,
            Values::Fixed { size, data } => data.len().checked_div(*size).unwrap_or(0),
            Values::Struct { len, .. } => *len,
            Values::List { offsets, .. } | Values::Map { offsets, .. } => offsets.len() - 1,
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it takes in memory once it has so many rows.
    fn size(&self, rows: usize) -> usize {
        match &self.values {
            Values::Struct { fields, .. } => fields.iter().map(|field| field.size(rows)).sum(),
            Values::List { offsets, items } => 4 * rows + items.size(end_of(offsets)),
            Values::Map { offsets, keys, values } => {
                let end = end_of(offsets);
                4 * rows + keys.size(end) + values.size(end)
            }
            Values::Bytes(bytes) => 4 * rows + bytes.data.len(),
            _ => rows.saturating_mul(row_size(&self.data_type)),
        }
    }

    /// Makes the column reach `row` with nulls. It must be called before a value is appended as that row.
    pub fn pad_to(&mut self, row: usize) {
        let nulls = &mut self.nulls;
        match &mut self.values {
            Values::Bool(values) => pad(values, nulls, row),
            Values::Int32(values) => pad(values, nulls, row),
            Values::Int64(values) => pad(values, nulls, row),
            Values::UInt32(values) => pad(values, nulls, row),
            Values::UInt64(values) => pad(values, nulls, row),
            Values::Float32(values) => pad(values, nulls, row),
            Values::Float64(values) => pad(values, nulls, row),
            Values::Decimal128(values) => pad(values, nulls, row),
            Values::Decimal256(values) => pad(values, nulls, row),
            Values::Interval(values) => pad(values, nulls, row),
            Values::Bytes(bytes) => pad_offsets(&mut bytes.offsets, nulls, row),
            Values::Fixed { size, data } => {
                let len = data.len().checked_div(*size).unwrap_or(0);
                if len < row {
                    nulls.add(len, row);
                    data.resize(row * *size, 0);
                }
            }
            Values::Struct { len, .. } => {
                if *len < row {
                    nulls.add(*len, row);
                    *len = row;
                }
            }
            Values::List { offsets, .. } | Values::Map { offsets, .. } => {
                pad_offsets(offsets, nulls, row)
            }
        }
    }

    /// Forgets everything, and gives its memory back.
    ///
    /// # Errors
    /// As those of [`new`](Self::new): none.
    pub fn clear(&mut self) -> Result<()> {
        *self = Self::new(&self.data_type)?;
        Ok(())
    }

    /// Forgets all rows from `len` on.
    pub fn truncate(&mut self, len: usize) {
        if self.len() <= len {
            // A struct that failed in its first field has fields that are longer than itself.
            if let Values::Struct { fields, .. } = &mut self.values {
                fields.iter_mut().for_each(|field| field.truncate(len));
            }
            match &mut self.values {
                Values::Bytes(bytes) => bytes.data.truncate(index(bytes.last())),
                Values::List { offsets, items } => items.truncate(end_of(offsets)),
                Values::Map { offsets, keys, values } => {
                    keys.truncate(end_of(offsets));
                    values.truncate(end_of(offsets));
                }
                _ => {}
            }
            return;
        }
        self.nulls.truncate(len);
        match &mut self.values {
            Values::Bool(values) => values.truncate(len),
            Values::Int32(values) => values.truncate(len),
            Values::Int64(values) => values.truncate(len),
            Values::UInt32(values) => values.truncate(len),
            Values::UInt64(values) => values.truncate(len),
            Values::Float32(values) => values.truncate(len),
            Values::Float64(values) => values.truncate(len),
            Values::Decimal128(values) => values.truncate(len),
            Values::Decimal256(values) => values.truncate(len),
            Values::Interval(values) => values.truncate(len),
            Values::Bytes(bytes) => {
                bytes.offsets.truncate(len + 1);
                bytes.data.truncate(index(bytes.last()));
            }
            Values::Fixed { size, data } => data.truncate(len * *size),
            Values::Struct { len: rows, fields } => {
                *rows = len;
                fields.iter_mut().for_each(|field| field.truncate(len));
            }
            Values::List { offsets, items } => {
                offsets.truncate(len + 1);
                items.truncate(end_of(offsets));
            }
            Values::Map { offsets, keys, values } => {
                offsets.truncate(len + 1);
                keys.truncate(end_of(offsets));
                values.truncate(end_of(offsets));
            }
        }
    }

    /// The array of the first `len` rows, nulls where there were fewer; the column is empty again.
    ///
    /// # Errors
    /// What was appended is not what the type says: a decoder's mistake.
    pub fn finish(&mut self, len: usize) -> Result<ArrayRef> {
        self.pad_to(len);
        self.truncate(len);
        let nulls = self.nulls.finish(len);
        let data_type = &self.data_type;
        Ok(match &mut self.values {
            Values::Bool(values) => {
                let bits = BooleanBuffer::from(values.as_slice());
                values.clear();
                Arc::new(BooleanArray::new(bits, nulls))
            }
            Values::Int32(values) => match data_type {
                DataType::Int8 => primitive::<Int8Type>(narrow(values)?, nulls, data_type),
                DataType::Int16 => primitive::<Int16Type>(narrow(values)?, nulls, data_type),
                DataType::Date32 => primitive::<Date32Type>(take(values), nulls, data_type),
                DataType::Time32(TimeUnit::Second) => {
                    primitive::<Time32SecondType>(take(values), nulls, data_type)
                }
                DataType::Time32(_) => {
                    primitive::<Time32MillisecondType>(take(values), nulls, data_type)
                }
                _ => primitive::<Int32Type>(take(values), nulls, data_type),
            },
            Values::Int64(values) => {
                let values = take(values);
                match data_type {
                    DataType::Timestamp(TimeUnit::Second, _) => {
                        primitive::<TimestampSecondType>(values, nulls, data_type)
                    }
                    DataType::Timestamp(TimeUnit::Millisecond, _) => {
                        primitive::<TimestampMillisecondType>(values, nulls, data_type)
                    }
                    DataType::Timestamp(TimeUnit::Microsecond, _) => {
                        primitive::<TimestampMicrosecondType>(values, nulls, data_type)
                    }
                    DataType::Timestamp(TimeUnit::Nanosecond, _) => {
                        primitive::<TimestampNanosecondType>(values, nulls, data_type)
                    }
                    DataType::Duration(TimeUnit::Second) => {
                        primitive::<DurationSecondType>(values, nulls, data_type)
                    }
                    DataType::Duration(TimeUnit::Millisecond) => {
                        primitive::<DurationMillisecondType>(values, nulls, data_type)
                    }
                    DataType::Duration(TimeUnit::Microsecond) => {
                        primitive::<DurationMicrosecondType>(values, nulls, data_type)
                    }
                    DataType::Duration(_) => {
                        primitive::<DurationNanosecondType>(values, nulls, data_type)
                    }
                    DataType::Time64(TimeUnit::Microsecond) => {
                        primitive::<Time64MicrosecondType>(values, nulls, data_type)
                    }
                    DataType::Time64(_) => {
                        primitive::<Time64NanosecondType>(values, nulls, data_type)
                    }
                    _ => primitive::<Int64Type>(values, nulls, data_type),
                }
            }
            Values::UInt32(values) => match data_type {
                DataType::UInt8 => primitive::<UInt8Type>(narrow(values)?, nulls, data_type),
                DataType::UInt16 => primitive::<UInt16Type>(narrow(values)?, nulls, data_type),
                _ => primitive::<UInt32Type>(take(values), nulls, data_type),
            },
            Values::UInt64(values) => primitive::<UInt64Type>(take(values), nulls, data_type),
            Values::Float32(values) => primitive::<Float32Type>(take(values), nulls, data_type),
            Values::Float64(values) => primitive::<Float64Type>(take(values), nulls, data_type),
            Values::Decimal128(values) => {
                primitive::<Decimal128Type>(take(values), nulls, data_type)
            }
            Values::Decimal256(values) => {
                primitive::<Decimal256Type>(take(values), nulls, data_type)
            }
            Values::Interval(values) => {
                primitive::<IntervalMonthDayNanoType>(take(values), nulls, data_type)
            }
            Values::Bytes(bytes) => {
                let offsets = take_offsets(&mut bytes.offsets);
                let data = Buffer::from_vec(take(&mut bytes.data));
                match data_type {
                    DataType::Utf8 => {
                        Arc::new(StringArray::try_new(offsets, data, nulls).map_err(internal)?)
                    }
                    _ => Arc::new(BinaryArray::try_new(offsets, data, nulls).map_err(internal)?),
                }
            }
            Values::Fixed { size, data } => {
                let size = i32::try_from(*size).map_err(internal)?;
                let data = Buffer::from_vec(take(data));
                Arc::new(FixedSizeBinaryArray::try_new(size, data, nulls).map_err(internal)?)
            }
            Values::Struct { len: rows, fields } => {
                *rows = 0;
                let arrays =
                    fields.iter_mut().map(|field| field.finish(len)).collect::<Result<Vec<_>>>()?;
                let DataType::Struct(names) = data_type else {
                    return Err(Error::internal("a struct of another type"));
                };
                Arc::new(struct_array(names, arrays, nulls, len)?)
            }
            Values::List { offsets, items } => {
                let offsets = take_offsets(offsets);
                let items = items.finish(index(offsets.last()))?;
                let DataType::List(item) = data_type else {
                    return Err(Error::internal("a list of another type"));
                };
                Arc::new(ListArray::try_new(item.clone(), offsets, items, nulls).map_err(internal)?)
            }
            Values::Map { offsets, keys, values } => {
                let offsets = take_offsets(offsets);
                let count = index(offsets.last());
                let pair = vec![keys.finish(count)?, values.finish(count)?];
                let DataType::Map(entries, _) = data_type else {
                    return Err(Error::internal("a map of another type"));
                };
                let DataType::Struct(names) = entries.data_type() else {
                    return Err(Error::internal("a map without entries"));
                };
                let pairs = struct_array(names, pair, None, count)?;
                Arc::new(
                    MapArray::try_new(entries.clone(), offsets, pairs, nulls, false)
                        .map_err(internal)?,
                )
            }
        })
    }
}

fn struct_array(
    names: &Fields,
    arrays: Vec<ArrayRef>,
    nulls: Option<NullBuffer>,
    len: usize,
) -> Result<StructArray> {
    if arrays.is_empty() {
        return Ok(StructArray::new_empty_fields(len, nulls));
    }
    StructArray::try_new(names.clone(), arrays, nulls).map_err(internal)
}

/// The type of lists of `item`, as every decoder names them.
pub fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

/// The type of maps from `key` to `value`, as every decoder names them.
pub fn map_of(key: DataType, value: DataType) -> DataType {
    let pair = Fields::from(vec![Field::new("key", key, false), Field::new("value", value, true)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(pair), false)), false)
}

fn primitive<T: ArrowPrimitiveType>(
    values: Vec<T::Native>,
    nulls: Option<NullBuffer>,
    data_type: &DataType,
) -> ArrayRef {
    let array = PrimitiveArray::<T>::new(ScalarBuffer::from(values), nulls);
    Arc::new(array.with_data_type(data_type.clone()))
}

/// The next batch likely needs as much room again.
fn take<T>(values: &mut Vec<T>) -> Vec<T> {
    let room = values.len();
    std::mem::replace(values, Vec::with_capacity(room))
}

/// Whoever appends keeps to the range of the type.
fn narrow<T: Copy, N: TryFrom<T>>(values: &mut Vec<T>) -> Result<Vec<N>> {
    let wrong = |_| Error::internal("a value beyond the type of its column");
    values.drain(..).map(|value| N::try_from(value).map_err(wrong)).collect()
}

fn take_offsets(offsets: &mut Vec<i32>) -> OffsetBuffer<i32> {
    let taken = take(offsets);
    offsets.push(0);
    // They only grow: each was the length of what it points into.
    OffsetBuffer::new(ScalarBuffer::from(taken))
}

fn end_of(offsets: &[i32]) -> usize {
    index(offsets.last().copied().unwrap_or(0))
}

fn index(offset: i32) -> usize {
    usize::try_from(offset).unwrap_or(0)
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::internal(error.to_string())
}
