//! A row of Arrow as the parameters of a statement: each value with its own type, and none that would lose something.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, Decimal128Type, DurationMicrosecondType,
    DurationMillisecondType, DurationNanosecondType, DurationSecondType, FieldRef, Float64Type,
    Int64Type, IntervalDayTimeType, IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType,
    Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt64Type,
};
use arrow::util::display::array_value_to_string;

use super::duck::Parameter;
use super::engine::Parameters;
use crate::error::{Error, Result};

const MICROS_OF_A_DAY: i64 = 86_400_000_000;
const MILLIS_OF_A_DAY: i64 = 86_400_000;

/// The only row of `batch` with these `names` of parameters: its own where they are just these, else in their order.
///
/// # Errors
/// There is another number of rows or of columns, or a value that SQL has no type for.
pub fn named_row(batch: &RecordBatch, names: &[String]) -> Result<RecordBatch> {
    let columns = batch.num_columns();
    if columns != names.len() {
        let why = format!("the query has {} parameters, not {columns}", names.len());
        return Err(Error::invalid(why));
    }
    if names.iter().all(|name| batch.column_by_name(name).is_some()) {
        parameters_of(batch)?;
        return Ok(batch.clone());
    }
    let of_column = |(name, column): (&String, &ArrayRef)| (name.clone(), column.clone(), true);
    let columns = names.iter().zip(batch.columns()).map(of_column);
    let named = RecordBatch::try_from_iter_with_nullable(columns)
        .map_err(|error| Error::invalid(format!("parameters: {error}")))?;
    parameters_of(&named)?;
    Ok(named)
}

/// The only row of `batch` as parameters with the names of its columns.
///
/// # Errors
/// There is another number of rows, or a value that SQL has no type for.
pub fn parameters_of(batch: &RecordBatch) -> Result<Parameters> {
    let rows = batch.num_rows();
    if rows != 1 {
        return Err(Error::invalid(format!("one row of parameters is wanted, not {rows}")));
    }
    let schema = batch.schema_ref();
    let named = |(field, column): (&FieldRef, &ArrayRef)| {
        let name = field.name();
        let value = value(column);
        let value = value.map_err(|why| Error::invalid(format!("parameter '{name}': {why}")))?;
        Ok((name.clone(), value))
    };
    let values = schema.fields().iter().zip(batch.columns()).map(named);
    values.collect::<Result<_>>().map(Parameters::Named)
}

/// The first value of an array.
fn value(array: &ArrayRef) -> Result<Parameter, String> {
    use DataType::*;
    if array.is_null(0) || array.data_type() == &Null {
        return Ok(Parameter::Null);
    }
    let as_type = |wanted: DataType| cast(array, &wanted).map_err(|error| error.to_string());
    Ok(match array.data_type() {
        Boolean => Parameter::Boolean(array.as_boolean().value(0)),
        Int8 | Int16 | Int32 | Int64 => {
            Parameter::Integer(as_type(Int64)?.as_primitive::<Int64Type>().value(0))
        }
        UInt8 | UInt16 | UInt32 | UInt64 => {
            Parameter::Unsigned(as_type(UInt64)?.as_primitive::<UInt64Type>().value(0))
        }
        Float16 | Float32 | Float64 => {
            Parameter::Double(as_type(Float64)?.as_primitive::<Float64Type>().value(0))
        }
        Utf8 | LargeUtf8 | Utf8View => {
            Parameter::Text(as_type(Utf8)?.as_string::<i32>().value(0).to_owned())
        }
        Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => {
            Parameter::Blob(as_type(Binary)?.as_binary::<i32>().value(0).to_vec())
        }
        Decimal32(digits, scale) | Decimal64(digits, scale) | Decimal128(digits, scale) => {
            match decimal(array, *digits, *scale) {
                Some(value) => value,
                None => text(array)?,
            }
        }
        Decimal256(..) => text(array)?,
        Date32 => Parameter::Date(array.as_primitive::<Date32Type>().value(0)),
        Date64 => {
            let millis = array.as_primitive::<Date64Type>().value(0);
            match i32::try_from(millis / MILLIS_OF_A_DAY) {
                Ok(days) if millis % MILLIS_OF_A_DAY == 0 => Parameter::Date(days),
                _ => Parameter::Timestamp(micros(millis, 1_000)?),
            }
        }
        Time32(_) | Time64(_) => {
            let nanos = as_type(Time64(TimeUnit::Nanosecond))?;
            let nanos = nanos.as_primitive::<Time64NanosecondType>().value(0);
            let micros = whole_micros(nanos)?;
            if !(0..=MICROS_OF_A_DAY).contains(&micros) {
                return Err("no time of a day".to_owned());
            }
            Parameter::Time(micros)
        }
        Timestamp(unit, zone) => timestamp(array, *unit, zone.is_some())?,
        Duration(unit) => {
            Parameter::Interval { months: 0, days: 0, micros: duration(array, *unit)? }
        }
        Interval(unit) => interval(array, *unit)?,
        Dictionary(_, values) => return value(&as_type(values.as_ref().clone())?),
        other => return Err(format!("{other} is no type of a parameter")),
    })
}

/// `None` for one that DuckDB's type has no place for.
fn decimal(array: &ArrayRef, digits: u8, scale: i8) -> Option<Parameter> {
    let wide = cast(array, &DataType::Decimal128(digits, scale)).ok()?;
    let value = wide.as_primitive::<Decimal128Type>().value(0);
    let scale = u8::try_from(scale).ok().filter(|scale| *scale <= digits)?;
    let fits = value.unsigned_abs() < 10_u128.checked_pow(u32::from(digits))?;
    fits.then_some(Parameter::Decimal { value, digits, scale })
}

/// As DuckDB reads it, digit by digit.
fn text(array: &ArrayRef) -> Result<Parameter, String> {
    array_value_to_string(array, 0).map(Parameter::Text).map_err(|error| error.to_string())
}

fn timestamp(array: &ArrayRef, unit: TimeUnit, is_utc: bool) -> Result<Parameter, String> {
    let micros = match unit {
        TimeUnit::Second => micros(array.as_primitive::<TimestampSecondType>().value(0), 1_000_000),
        TimeUnit::Millisecond => {
            micros(array.as_primitive::<TimestampMillisecondType>().value(0), 1_000)
        }
        TimeUnit::Microsecond => Ok(array.as_primitive::<TimestampMicrosecondType>().value(0)),
        TimeUnit::Nanosecond => {
            let nanos = array.as_primitive::<TimestampNanosecondType>().value(0);
            match whole_micros(nanos) {
                Err(_) if !is_utc => return Ok(Parameter::TimestampNs(nanos)),
                micros => micros,
            }
        }
    }?;
    Ok(if is_utc { Parameter::TimestampTz(micros) } else { Parameter::Timestamp(micros) })
}

fn duration(array: &ArrayRef, unit: TimeUnit) -> Result<i64, String> {
    match unit {
        TimeUnit::Second => micros(array.as_primitive::<DurationSecondType>().value(0), 1_000_000),
        TimeUnit::Millisecond => {
            micros(array.as_primitive::<DurationMillisecondType>().value(0), 1_000)
        }
        TimeUnit::Microsecond => Ok(array.as_primitive::<DurationMicrosecondType>().value(0)),
        TimeUnit::Nanosecond => {
            whole_micros(array.as_primitive::<DurationNanosecondType>().value(0))
        }
    }
}

fn interval(array: &ArrayRef, unit: IntervalUnit) -> Result<Parameter, String> {
    let (months, days, micros) = match unit {
        IntervalUnit::YearMonth => (array.as_primitive::<IntervalYearMonthType>().value(0), 0, 0),
        IntervalUnit::DayTime => {
            let value = array.as_primitive::<IntervalDayTimeType>().value(0);
            (0, value.days, i64::from(value.milliseconds) * 1_000)
        }
        IntervalUnit::MonthDayNano => {
            let value = array.as_primitive::<IntervalMonthDayNanoType>().value(0);
            (value.months, value.days, whole_micros(value.nanoseconds)?)
        }
    };
    Ok(Parameter::Interval { months, days, micros })
}

fn micros(value: i64, of_one: i64) -> Result<i64, String> {
    value.checked_mul(of_one).ok_or_else(|| "a time beyond the year 294246".to_owned())
}

fn whole_micros(nanos: i64) -> Result<i64, String> {
    match nanos % 1_000 {
        0 => Ok(nanos / 1_000),
        _ => Err("parts of microseconds, which SQL has no such type for".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        Date64Array, Decimal128Array, Decimal256Array, DictionaryArray, DurationNanosecondArray,
        FixedSizeBinaryArray, Float32Array, Int8Array, ListArray, NullArray, StringArray,
        StringViewArray, Time32SecondArray, Time64NanosecondArray, TimestampNanosecondArray,
        TimestampSecondArray, UInt64Array,
    };
    use arrow::datatypes::{Int32Type, i256};

    use super::*;

    #[test]
    fn values_keep_their_types() {
        let decimal = |value: Decimal128Array, digits, scale| {
            Arc::new(value.with_precision_and_scale(digits, scale).expect("a decimal")) as ArrayRef
        };
        let wide = Decimal256Array::from(vec![i256::from_i128(-105)]);
        let text = |text: &str| Parameter::Text(text.to_owned());
        let cases: Vec<(ArrayRef, Parameter)> = vec![
            (Arc::new(Int8Array::from(vec![-7])), Parameter::Integer(-7)),
            (Arc::new(UInt64Array::from(vec![u64::MAX])), Parameter::Unsigned(u64::MAX)),
            (Arc::new(Float32Array::from(vec![0.5])), Parameter::Double(0.5)),
            (Arc::new(StringViewArray::from(vec!["a'b"])), text("a'b")),
            (Arc::new(StringArray::from(vec![None::<&str>])), Parameter::Null),
            (Arc::new(NullArray::new(1)), Parameter::Null),
            (Arc::new(DictionaryArray::<Int32Type>::from_iter(["x"])), text("x")),
            (
                Arc::new(FixedSizeBinaryArray::try_from_iter([[0_u8, 255]].iter()).expect("bytes")),
                Parameter::Blob(vec![0, 255]),
            ),
            (
                decimal(Decimal128Array::from(vec![-12_345]), 10, 2),
                Parameter::Decimal { value: -12_345, digits: 10, scale: 2 },
            ),
            (decimal(Decimal128Array::from(vec![5]), 3, -2), text("500")),
            (Arc::new(wide.with_precision_and_scale(50, 2).expect("a decimal")), text("-1.05")),
            (Arc::new(Date64Array::from(vec![86_400_000])), Parameter::Date(1)),
            (Arc::new(Date64Array::from(vec![1])), Parameter::Timestamp(1_000)),
            (Arc::new(Time32SecondArray::from(vec![60])), Parameter::Time(60_000_000)),
            (Arc::new(TimestampSecondArray::from(vec![1])), Parameter::Timestamp(1_000_000)),
            (
                Arc::new(TimestampSecondArray::from(vec![1]).with_timezone("Europe/Berlin")),
                Parameter::TimestampTz(1_000_000),
            ),
            (Arc::new(TimestampNanosecondArray::from(vec![1])), Parameter::TimestampNs(1)),
            (
                Arc::new(DurationNanosecondArray::from(vec![2_000])),
                Parameter::Interval { months: 0, days: 0, micros: 2 },
            ),
        ];
        for (array, expected) in cases {
            assert_eq!(value(&array), Ok(expected), "{array:?}");
        }
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]);
        let refused: Vec<(ArrayRef, &str)> = vec![
            (Arc::new(TimestampSecondArray::from(vec![i64::MAX])), "beyond the year"),
            (Arc::new(Time64NanosecondArray::from(vec![1])), "parts of microseconds"),
            (Arc::new(Time64NanosecondArray::from(vec![-1_000])), "no time of a day"),
            (Arc::new(list), "is no type of a parameter"),
        ];
        for (array, why) in refused {
            let error = value(&array).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn parameters_have_one_row() {
        let names = ["b".to_owned(), "a".to_owned()];
        let batch = |names: [&str; 2], rows: i8| {
            let column: ArrayRef = Arc::new(Int8Array::from_iter_values(0..rows));
            RecordBatch::try_from_iter(names.map(|name| (name, column.clone()))).expect("a batch")
        };
        for given in [["a", "b"], ["0", "1"]] {
            let row = named_row(&batch(given, 1), &names).expect("a row");
            let Ok(Parameters::Named(values)) = parameters_of(&row) else { panic!("{row:?}") };
            assert_eq!(values.into_keys().collect::<Vec<_>>(), ["a", "b"]);
        }
        for (batch, why) in [
            (batch(["a", "b"], 2), "one row of parameters is wanted, not 2"),
            (batch(["a", "b"], 0), "one row of parameters is wanted, not 0"),
            (
                batch(["a", "b"], 1).project(&[0]).expect("a column"),
                "the query has 2 parameters, not 1",
            ),
        ] {
            assert_eq!(named_row(&batch, &names).expect_err(why).message(), why);
        }
    }
}
