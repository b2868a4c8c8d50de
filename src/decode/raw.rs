//! Bytes as they are: one Binary column.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, new_null_array};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::DataType;

use super::column::Nulls;
use super::decoder::{BadRow, Decoder, Value};
use super::projection::Projection;
use super::reject::Reject;
use crate::error::{Error, Result};

/// See the top of this file.
#[derive(Debug, Default)]
pub struct RawDecoder;

impl RawDecoder {
    /// It has no settings.
    pub fn new() -> Self {
        Self
    }
}

/// The values of a topic in which no column can be seen yet, as they are; null where `bad` names a row, or where a reader
/// wants certain columns only.
///
/// # Errors
/// As [`Decoder::decode`].
pub(super) fn unseen(
    values: &[Option<Value<'_>>],
    bad: &[BadRow],
    projection: &Projection,
) -> Result<ArrayRef> {
    if !projection.is_all() {
        return Ok(new_null_array(&DataType::Binary, values.len()));
    }
    let mut good = values.to_vec();
    for bad in bad {
        if let Some(value) = good.get_mut(bad.row) {
            *value = None;
        }
    }
    RawDecoder::new().decode(&good, &mut Vec::new())
}

impl Decoder for RawDecoder {
    fn decode(&mut self, values: &[Option<Value<'_>>], bad: &mut Vec<BadRow>) -> Result<ArrayRef> {
        let (offsets, data, nulls) = gather(values, bad, |_| Ok(()));
        let array = BinaryArray::try_new(offsets, data, nulls);
        Ok(Arc::new(array.map_err(|error| Error::internal(error.to_string()))?))
    }
}

/// The buffers of a column with those of `values` that `check` lets pass.
pub(super) fn gather(
    values: &[Option<Value<'_>>],
    bad: &mut Vec<BadRow>,
    check: impl Fn(&[u8]) -> Result<(), Reject>,
) -> (OffsetBuffer<i32>, Buffer, Option<NullBuffer>) {
    let size = values.iter().flatten().map(|value| value.bytes.len()).sum();
    let mut data: Vec<u8> = Vec::with_capacity(size);
    let mut offsets: Vec<i32> = Vec::with_capacity(values.len() + 1);
    offsets.push(0);
    let mut end = 0;
    let mut nulls = Nulls::default();
    for (row, value) in values.iter().enumerate() {
        let checked = value.map(|Value { bytes, .. }| {
            check(bytes)?;
            i32::try_from(data.len() + bytes.len())
                .map(|end| (bytes, end))
                .map_err(|_| Reject::limit("2 GiB in one column"))
        });
        match checked {
            Some(Ok((bytes, new_end))) => {
                data.extend_from_slice(bytes);
                end = new_end;
            }
            other => {
                nulls.add(row, row + 1);
                if let Some(Err(reject)) = other {
                    bad.push(BadRow { row, reject });
                }
            }
        }
        offsets.push(end);
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    (offsets, Buffer::from_vec(data), nulls.finish(values.len()))
}
