//! [`unite`]: the Arrow type that holds the values of two, as the schemas of one topic change over time.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field, Fields};

use super::column::{list_of, map_of};

/// The type that holds all values of `known` and of `new`; `None` if there is none.
///
/// Structs always unite: fields that only one of them has are added behind the known ones. A field whose types do
/// not unite keeps the known one; whoever fills it has to say which values do not fit.
///
/// An integer of 64 bits beside a float becomes Float64, which holds those up to ±2^53: whoever fills it has to
/// refuse the others. Every integer beside a Float32 becomes Float64, because a Float32 holds few of them exactly.
pub fn unite(known: &DataType, new: &DataType) -> Option<DataType> {
    use DataType::{Decimal128, Decimal256, Float32, Float64, Int32, Int64, UInt32, UInt64};
    if known == new {
        return Some(known.clone());
    }
    Some(match (known, new) {
        (DataType::Struct(known), DataType::Struct(new)) => DataType::Struct(fields(known, new)),
        (DataType::List(known), DataType::List(new)) => {
            list_of(unite(known.data_type(), new.data_type())?)
        }
        (DataType::Map(known, _), DataType::Map(new, _)) => {
            let ((key, known), (new_key, new)) = (pair(known)?, pair(new)?);
            if key != new_key {
                return None;
            }
            map_of(key.clone(), unite(known, new)?)
        }
        (Int32 | UInt32 | Int64, Int32 | UInt32 | Int64) => Int64,
        (UInt32 | UInt64, UInt32 | UInt64) => UInt64,
        (Int32 | UInt32 | Int64 | UInt64 | Float32 | Float64, Float32 | Float64)
        | (Float32 | Float64, Int32 | UInt32 | Int64 | UInt64) => Float64,
        (
            Decimal128(digits, scale) | Decimal256(digits, scale),
            Decimal128(new_digits, new_scale) | Decimal256(new_digits, new_scale),
        ) if scale == new_scale => match (*digits).max(*new_digits) {
            digits @ ..=38 => Decimal128(digits, *scale),
            digits => Decimal256(digits, *scale),
        },
        _ => return None,
    })
}

fn fields(known: &Fields, new: &Fields) -> Fields {
    let mut fields: Vec<Field> = known.iter().map(|field| field.as_ref().clone()).collect();
    let places: HashMap<&str, usize> =
        known.iter().enumerate().map(|(at, field)| (field.name().as_str(), at)).collect();
    for field in new {
        match places.get(field.name().as_str()).and_then(|at| fields.get_mut(*at)) {
            Some(known) => {
                if let Some(united) = unite(known.data_type(), field.data_type()) {
                    known.set_data_type(united);
                }
                known.set_nullable(true);
            }
            None => fields.push(field.as_ref().clone().with_nullable(true)),
        }
    }
    fields.into()
}

/// The types of a map's keys and values.
pub fn pair(entries: &Field) -> Option<(&DataType, &DataType)> {
    match entries.data_type() {
        DataType::Struct(pair) => match pair.as_ref() {
            [key, value] => Some((key.data_type(), value.data_type())),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;

    use super::*;

    fn of(fields: &[(&str, DataType)]) -> DataType {
        let field =
            |(name, data_type): &(&str, DataType)| Field::new(*name, data_type.clone(), true);
        DataType::Struct(fields.iter().map(field).collect())
    }

    #[test]
    fn types_widen_or_do_not_unite() {
        use DataType::*;
        let millis = Timestamp(TimeUnit::Millisecond, None);
        let cases = [
            (Int32, Int32, Some(Int32)),
            (Int32, Int64, Some(Int64)),
            (UInt32, Int32, Some(Int64)),
            (UInt32, UInt64, Some(UInt64)),
            (UInt64, Int64, None),
            (Int32, Float32, Some(Float64)),
            (Int64, Float64, Some(Float64)),
            (Float32, Float64, Some(Float64)),
            (Decimal128(10, 2), Decimal128(12, 2), Some(Decimal128(12, 2))),
            (Decimal128(10, 2), Decimal256(50, 2), Some(Decimal256(50, 2))),
            (Decimal128(10, 2), Decimal128(10, 3), None),
            (Utf8, Binary, None),
            (Int32, Utf8, None),
            (Int64, millis, None),
            (FixedSizeBinary(2), FixedSizeBinary(3), None),
            (list_of(Int32), list_of(Int64), Some(list_of(Int64))),
            (list_of(Int32), list_of(Utf8), None),
            (list_of(Int32), Int32, None),
            (map_of(Utf8, Int32), map_of(Utf8, Float64), Some(map_of(Utf8, Float64))),
            (map_of(Utf8, Int32), map_of(Int32, Int32), None),
        ];
        for (left, right, wanted) in cases {
            assert_eq!(unite(&left, &right), wanted, "{left} {right}");
            assert_eq!(unite(&right, &left), wanted, "{right} {left}");
        }
    }

    #[test]
    fn structs_always_unite() {
        use DataType::*;
        let known = of(&[("a", Int32), ("b", Utf8), ("c", of(&[("x", Int32)]))]);
        let new = of(&[("c", of(&[("y", Utf8), ("x", Int64)])), ("b", Int32), ("d", Boolean)]);
        let united = of(&[
            ("a", Int32),
            ("b", Utf8),
            ("c", of(&[("x", Int64), ("y", Utf8)])),
            ("d", Boolean),
        ]);
        assert_eq!(unite(&known, &new), Some(united));
        assert_eq!(unite(&known, &Int32), None);
    }
}
