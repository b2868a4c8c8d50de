//! Arrays of other people in the types that karrow hands out: dictionaries, views and runs are spelled out, which is booked
//! before it is done, for a few bytes may stand for many.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, OffsetSizeTrait};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use arrow::downcast_dictionary_array;

use super::adapt;
use crate::decode::column::{list_of, map_of};
use crate::decode::reject::{Meter, Reject};

/// Size of a value of a fixed size, in bytes or items.
const FIXED_SIZE_MAX: i32 = 4_096;

/// The type in which karrow hands out `data_type`: dictionaries, views and runs are spelled out; `None` for nulls.
pub(crate) fn plain_type(data_type: &DataType) -> Result<Option<DataType>, Reject> {
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
            Some(item) => list_of(item),
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
                    (Some(key), Some(value)) => map_of(key, value),
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
pub(super) fn plain(array: &ArrayRef, meter: &mut Meter) -> Result<ArrayRef, Reject> {
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
pub(crate) fn slot_bytes(data_type: &DataType) -> usize {
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
pub(crate) fn bytes_at(array: &dyn Array, slot: usize) -> Option<&[u8]> {
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
pub(in crate::decode) fn key_at(array: &dyn Array, slot: usize) -> Option<usize> {
    downcast_dictionary_array!(array => array.key(slot), _ => None)
}

/// Which items a slot of a list or map has.
pub(crate) fn items_at(array: &dyn Array, slot: usize) -> Range<usize> {
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
