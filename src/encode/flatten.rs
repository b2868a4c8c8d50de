//! [`Leaf`]: the columns of a batch that has no structs, as tables and CSV want it, and the text of their cells.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::json::Json;
use crate::decode::ipc::plain::bytes_at;
use crate::error::{Error, Result};

/// A column that is no struct.
pub struct Leaf {
    /// The names on the way to it, with dots between them.
    pub name: String,
    /// Its values; where a struct around it is null there may be any.
    pub array: ArrayRef,
    nulls: Option<NullBuffer>,
}

/// The text of the cells of a [`Leaf`].
pub enum Cells<'a> {
    /// Bytes, which may be text.
    Bytes(&'a dyn Array),
    /// Text.
    Text(&'a dyn Array),
    /// Lists and maps, as JSON.
    Nested(Json<'a>),
    /// All else, as Arrow writes it: times in RFC 3339.
    Plain(ArrayFormatter<'a>, &'a dyn Array),
}

/// The columns of `batch` without structs.
pub fn leaves(batch: &RecordBatch) -> Vec<Leaf> {
    let mut found = Vec::new();
    for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        collect(field.name().clone(), array, None, &mut found);
    }
    found
}

fn collect(name: String, array: &ArrayRef, above: Option<&NullBuffer>, found: &mut Vec<Leaf>) {
    let nulls = NullBuffer::union(above, array.logical_nulls().as_ref());
    match array.data_type() {
        DataType::Struct(fields) if !fields.is_empty() => {
            for (field, array) in fields.iter().zip(array.as_struct().columns()) {
                collect(format!("{name}.{}", field.name()), array, nulls.as_ref(), found);
            }
        }
        _ => found.push(Leaf { name, array: array.clone(), nulls }),
    }
}

impl Leaf {
    /// Whether a cell is null.
    pub fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// Whether all cells are null, or lists and maps that hold nothing.
    pub fn is_empty(&self) -> bool {
        (0..self.array.len()).all(|row| {
            self.is_null(row)
                || (self.array.data_type().is_nested()
                    && crate::decode::ipc::plain::items_at(self.array.as_ref(), row).is_empty())
        })
    }

    /// Whether its cells are bytes.
    pub fn is_bytes(&self) -> bool {
        is_bytes(self.array.data_type())
    }

    /// Its cells.
    ///
    /// # Errors
    /// A type that cannot be written.
    pub fn cells(&self) -> Result<Cells<'_>> {
        let array = self.array.as_ref();
        Ok(match array.data_type() {
            data_type if is_bytes(data_type) => Cells::Bytes(array),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Cells::Text(array),
            data_type if data_type.is_nested() => Cells::Nested(Json::new(array)?),
            _ => {
                let formatter = ArrayFormatter::try_new(array, &OPTIONS)
                    .map_err(|error| Error::internal(error.to_string()))?;
                Cells::Plain(formatter, array)
            }
        })
    }
}

const OPTIONS: FormatOptions<'static> = FormatOptions::new().with_display_error(false);

/// Types of bytes.
pub fn is_bytes(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_)
    )
}

impl Cells<'_> {
    /// A cell that is not null; `Err` for bytes that are no UTF-8.
    pub fn text(&mut self, row: usize) -> Result<String, Vec<u8>> {
        match self {
            Self::Bytes(array) | Self::Text(array) => {
                let bytes = bytes_at(*array, row).unwrap_or_default();
                String::from_utf8(bytes.to_vec()).map_err(|error| error.into_bytes())
            }
            Self::Nested(json) => {
                let mut text = Vec::new();
                json.write(row, &mut text);
                String::from_utf8(text).map_err(|error| error.into_bytes())
            }
            Self::Plain(formatter, array) => Ok(formatter
                .value(row)
                .try_to_string()
                .unwrap_or_else(|_| super::json::number_of_time(*array, row))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray, StructArray};
    use arrow::datatypes::{Field, Fields};

    use super::*;

    #[test]
    fn a_null_struct_has_null_fields() {
        let inner = StructArray::new(
            Fields::from(vec![Field::new("b", DataType::Int64, true)]),
            vec![Arc::new(Int64Array::from(vec![1, 2, 3]))],
            Some(vec![true, true, false].into()),
        );
        let outer = StructArray::new(
            Fields::from(vec![Field::new("a", inner.data_type().clone(), true)]),
            vec![Arc::new(inner)],
            Some(vec![true, false, true].into()),
        );
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x", "y", "z"]));
        let outer: ArrayRef = Arc::new(outer);
        let batch = RecordBatch::try_from_iter([("payload", outer), ("t", text)]).expect("a batch");
        let found = leaves(&batch);
        let names: Vec<&str> = found.iter().map(|leaf| leaf.name.as_str()).collect();
        assert_eq!(names, ["payload.a.b", "t"]);
        let nulls: Vec<bool> = (0..3).map(|row| found[0].is_null(row)).collect();
        assert_eq!(nulls, [false, true, true]);
        assert_eq!(found[0].cells().expect("cells").text(0), Ok("1".to_owned()));
    }
}
