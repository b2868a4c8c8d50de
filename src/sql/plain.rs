//! What DuckDB answers, in types that every Arrow client has, and with nothing beneath nulls, where DuckDB leaves what its
//! memory held before: dictionaries as their values, a union as a struct with a
//! nullable field for each of its branches, a null without a type as an integer. A second column `a` is `a_1`.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, ListArray, MapArray, RecordBatch,
    RecordBatchOptions, StructArray, make_array,
};
use arrow::buffer::{Buffer, NullBuffer};
use arrow::compute::{cast, nullif};
use arrow::datatypes::{DataType, Decimal128Type, FieldRef, Fields, Schema, SchemaRef};

use crate::error::{Error, Result};

/// The columns of an answer whose columns are `schema` in DuckDB.
pub fn plain_schema(schema: &Schema) -> SchemaRef {
    let mut taken = HashSet::new();
    let named = |field: FieldRef| {
        let numbered = (1..).map(|number| format!("{}_{number}", field.name()));
        let mut names = std::iter::once(field.name().clone()).chain(numbered);
        // An object of JSON has a name once.
        let name = names.find(|name| taken.insert(name.clone())).unwrap_or_default();
        Arc::new(field.as_ref().clone().with_name(name))
    };
    let fields = plain_fields(schema.fields());
    Arc::new(Schema::new(fields.iter().cloned().map(named).collect::<Fields>()))
}

/// Rows of an answer, in the columns of [`plain_schema`].
///
/// # Errors
/// A failure of ours, not of the data.
pub fn plain_batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| {
        plain_array(column, field.data_type()).and_then(|column| cleared(&column, None))
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).map_err(internal)
}

fn plain_fields(fields: &Fields) -> Fields {
    fields.iter().map(plain_field).collect()
}

fn plain_field(field: &FieldRef) -> FieldRef {
    Arc::new(field.as_ref().clone().with_data_type(plain_type(field.data_type())))
}

fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Null => DataType::Int32,
        DataType::Dictionary(_, values) => plain_type(values),
        DataType::Union(branches, _) => {
            let branch = |(_, field): (i8, &FieldRef)| {
                plain_field(field).as_ref().clone().with_nullable(true)
            };
            DataType::Struct(branches.iter().map(branch).collect())
        }
        DataType::List(item) => DataType::List(plain_field(item)),
        DataType::FixedSizeList(item, _) => DataType::List(plain_field(item)),
        DataType::Map(entries, sorted) => DataType::Map(plain_field(entries), *sorted),
        DataType::Struct(fields) => DataType::Struct(plain_fields(fields)),
        other => other.clone(),
    }
}

fn plain_array(array: &ArrayRef, plain: &DataType) -> Result<ArrayRef> {
    let from = array.data_type();
    if let DataType::Decimal128(digits, _) = from
        && array.as_primitive::<Decimal128Type>().validate_decimal_precision(*digits).is_err()
    {
        // HUGEINT goes a little further.
        let why = format!("a number has more than {digits} digits: cast its column to VARCHAR");
        return Err(Error::invalid(why));
    }
    if from == plain {
        return Ok(array.clone());
    }
    match (from, plain) {
        (DataType::Null, _) => Ok(Arc::new(Int32Array::new_null(array.len()))),
        (DataType::Union(branches, _), DataType::Struct(fields)) => {
            let union = array.as_union();
            let mut columns = Vec::with_capacity(fields.len());
            for ((id, _), field) in branches.iter().zip(fields) {
                let is_other: BooleanArray =
                    union.type_ids().iter().map(|of| Some(*of != id)).collect();
                let values = nullif(union.child(id), &is_other).map_err(internal)?;
                columns.push(plain_array(&values, field.data_type())?);
            }
            let array =
                StructArray::try_new_with_length(fields.clone(), columns, None, array.len());
            Ok(Arc::new(array.map_err(internal)?))
        }
        (DataType::Struct(_), DataType::Struct(fields)) => {
            Ok(Arc::new(plain_struct(array.as_struct(), fields)?))
        }
        (DataType::FixedSizeList(item, _), _) => {
            plain_array(&cast(array, &DataType::List(item.clone())).map_err(internal)?, plain)
        }
        (DataType::List(_), DataType::List(item)) => {
            let list = array.as_list::<i32>();
            let values = plain_array(list.values(), item.data_type())?;
            let (offsets, nulls) = (list.offsets().clone(), list.nulls().cloned());
            let list = ListArray::try_new(item.clone(), offsets, values, nulls);
            Ok(Arc::new(list.map_err(internal)?))
        }
        (DataType::Map(..), DataType::Map(entries, sorted)) => {
            let DataType::Struct(fields) = entries.data_type() else {
                return Err(Error::internal("a map without entries"));
            };
            let map = array.as_map();
            let pairs = plain_struct(map.entries(), fields)?;
            let (offsets, nulls) = (map.offsets().clone(), map.nulls().cloned());
            let map = MapArray::try_new(entries.clone(), offsets, pairs, nulls, *sorted);
            Ok(Arc::new(map.map_err(internal)?))
        }
        _ => cast(array, plain).map_err(internal),
    }
}

/// The same values, with zeros beneath nulls; `above` are the nulls of what is around it.
fn cleared(array: &ArrayRef, above: Option<&NullBuffer>) -> Result<ArrayRef> {
    let nulls = NullBuffer::union(array.nulls(), above);
    let Some(nulls) = nulls.filter(|nulls| nulls.null_count() > 0) else {
        return match array.data_type() {
            DataType::Struct(_) | DataType::List(_) | DataType::Map(..) => nested(array, None),
            _ => Ok(array.clone()),
        };
    };
    let data_type = array.data_type();
    if data_type.is_nested() {
        return nested(array, Some(&nulls));
    }
    let data = array.to_data();
    let mut buffers = data.buffers().to_vec();
    if let Some(width) = data_type.primitive_width() {
        let values = buffers.first().map(Buffer::as_slice).unwrap_or_default();
        let start = data.offset() * width;
        let values = values.get(start..start + data.len() * width).unwrap_or_default();
        let mut clean = values.to_vec();
        for (slot, value) in clean.chunks_exact_mut(width).enumerate() {
            if nulls.is_null(slot) {
                value.fill(0);
            }
        }
        buffers = vec![Buffer::from_vec(clean)];
    } else if data_type == &DataType::Boolean {
        let values = array.as_boolean().values() & nulls.inner();
        return Ok(Arc::new(BooleanArray::new(values, Some(nulls))));
    } else {
        // Texts and bytes have nothing beneath nulls that is not theirs to show: their lengths are zero.
        return Ok(array.clone());
    }
    let clean = data.into_builder().offset(0).buffers(buffers).nulls(Some(nulls)).build();
    clean.map(make_array).map_err(internal)
}

fn nested(array: &ArrayRef, nulls: Option<&NullBuffer>) -> Result<ArrayRef> {
    match array.data_type() {
        DataType::Struct(fields) => {
            let source = array.as_struct();
            let columns = source.columns().iter().map(|column| cleared(column, nulls));
            let columns = columns.collect::<Result<Vec<_>>>()?;
            let cleared = StructArray::try_new_with_length(
                fields.clone(),
                columns,
                nulls.cloned(),
                source.len(),
            );
            Ok(Arc::new(cleared.map_err(internal)?))
        }
        DataType::List(item) => {
            let list = array.as_list::<i32>();
            let above = nulls.map(|nulls| beneath(list.offsets(), nulls, list.values().len()));
            let values = cleared(list.values(), above.as_ref())?;
            let list =
                ListArray::try_new(item.clone(), list.offsets().clone(), values, nulls.cloned());
            Ok(Arc::new(list.map_err(internal)?))
        }
        // A null map has no entries.
        DataType::Map(entries, sorted) => {
            let map = array.as_map();
            let pairs: ArrayRef = Arc::new(map.entries().clone());
            let pairs = cleared(&pairs, None)?.as_struct().clone();
            let (offsets, nulls) = (map.offsets().clone(), nulls.cloned());
            let map = MapArray::try_new(entries.clone(), offsets, pairs, nulls, *sorted);
            Ok(Arc::new(map.map_err(internal)?))
        }
        _ => Ok(array.clone()),
    }
}

/// Which items belong to lists that are null.
fn beneath(offsets: &[i32], nulls: &NullBuffer, items: usize) -> NullBuffer {
    let mut is_there = vec![true; items];
    let lists = offsets.windows(2).enumerate();
    for (_, bounds) in lists.filter(|(slot, _)| nulls.is_null(*slot)) {
        let at = |bound: Option<&i32>| bound.and_then(|at| usize::try_from(*at).ok()).unwrap_or(0);
        let range = at(bounds.first())..at(bounds.last());
        is_there.get_mut(range).into_iter().flatten().for_each(|there| *there = false);
    }
    NullBuffer::from(is_there)
}

fn plain_struct(array: &StructArray, fields: &Fields) -> Result<StructArray> {
    let columns = array.columns().iter().zip(fields);
    let columns = columns.map(|(column, field)| plain_array(column, field.data_type()));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let (nulls, len) = (array.nulls().cloned(), array.len());
    StructArray::try_new_with_length(fields.clone(), columns, nulls, len).map_err(internal)
}

fn internal(error: arrow::error::ArrowError) -> Error {
    Error::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int64Array};
    use arrow::buffer::ScalarBuffer;
    use arrow::datatypes::{Field, Int64Type};

    use super::*;

    /// A number that must not be seen.
    const SECRET: i64 = 0x5ec2_e7ab_cdef_0123;

    fn shows_it(array: &dyn Array) -> bool {
        let data = array.to_data();
        let bytes = SECRET.to_le_bytes();
        let has = |buffer: &Buffer| buffer.windows(8).any(|window| window == bytes);
        data.buffers().iter().any(has)
            || data.child_data().iter().any(|child| shows_it(make_array(child.clone()).as_ref()))
    }

    #[test]
    fn nothing_is_beneath_nulls() {
        let hidden = |nulls: Vec<bool>| {
            let values = ScalarBuffer::from(vec![1, SECRET, 3, SECRET]);
            Arc::new(Int64Array::new(values, Some(NullBuffer::from(nulls)))) as ArrayRef
        };
        let below = NullBuffer::from(vec![true, false, true, false]);
        let fields = Fields::from(vec![Field::new("a", DataType::Int64, true)]);
        let whole = hidden(vec![true; 4]);
        let item = Arc::new(Field::new_list_field(DataType::Int64, true));
        let offsets = arrow::buffer::OffsetBuffer::new(vec![0, 1, 2, 3, 4].into());
        let arrays: Vec<ArrayRef> = vec![
            hidden(vec![true, false, true, false]),
            hidden(vec![true, false, true, false]).slice(1, 3),
            Arc::new(StructArray::new(fields, vec![whole.clone()], Some(below.clone()))),
            Arc::new(ListArray::new(item, offsets, whole, Some(below))),
        ];
        for array in arrays {
            assert!(shows_it(array.as_ref()));
            let field = Field::new("x", array.data_type().clone(), true);
            let schema = Arc::new(Schema::new(vec![field]));
            let batch = RecordBatch::try_new(schema.clone(), vec![array.clone()]).expect("a batch");
            let plain = plain_batch(&batch, &schema).expect("plain");
            assert!(!shows_it(plain.column(0).as_ref()), "{array:?}");
            assert_eq!(plain.column(0), &array, "the values are the same");
        }
        let numbers: ArrayRef = Arc::new(Float64Array::from(vec![1.5, 2.5]));
        let kept = cleared(&numbers, None).expect("kept");
        assert_eq!(&kept, &numbers);
        let sliced = hidden(vec![true, false, true, false]).slice(1, 2);
        let kept = cleared(&sliced, None).expect("kept");
        assert_eq!(kept.as_primitive::<Int64Type>().value(1), 3);
    }
}
