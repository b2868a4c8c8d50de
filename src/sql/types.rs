//! What DuckDB holds of Arrow's types: each as it is, or as another one that keeps every value.
//!
//! | Arrow | DuckDB |
//! |---|---|
//! | Float16 | FLOAT |
//! | decimals of more than 38 digits, or with a scale that is negative or beyond their digits | VARCHAR, digit by digit |
//! | Date64 | TIMESTAMP_MS |
//! | times of day | TIME; in nanoseconds BIGINT, since midnight |
//! | timestamps with a zone | TIMESTAMPTZ, in microseconds, NULL beyond the year 294246; in nanoseconds TIMESTAMP_NS, in UTC |
//! | durations | BIGINT, in their unit |
//! | intervals | INTEGER months, or a STRUCT of months, days and the rest |
//! | fixed-size binary and lists | BLOB, lists |
//! | a struct without fields | a STRUCT with one, `_`, which is null |
//!
//! DuckDB does not tell `id` from `ID`: of such fields the second is called `ID_1`.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, ListArray, MapArray,
    RecordBatch, RecordBatchOptions, StructArray, new_null_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::{CastOptions, cast_with_options, nullif};
use arrow::datatypes::{
    DataType, Field, FieldRef, Fields, IntervalDayTimeType, IntervalMonthDayNanoType, IntervalUnit,
    IntervalYearMonthType, Schema, SchemaRef, TimeUnit,
};
use arrow::util::display::FormatOptions;

use crate::error::{Error, Result};

/// The field of a struct that has none.
const NOTHING: &str = "_";

/// The zone of all times.
const UTC: &str = "UTC";

/// The columns of a table that holds batches of `schema`.
pub fn stored_schema(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new(stored_fields(schema.fields())))
}

/// A batch in the columns of [`stored_schema`].
///
/// # Errors
/// A value that does not fit, which the types rule out.
pub fn stored_batch(batch: &RecordBatch, stored: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch.columns().iter().zip(stored.fields());
    let columns = columns.map(|(column, field)| stored_array(column, field.data_type()));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(stored.clone(), columns, &options)
        .map_err(|error| Error::internal(error.to_string()))
}

fn stored_fields(fields: &Fields) -> Fields {
    let mut taken = HashSet::new();
    let mut name_of = |name: &str| {
        // C strings end there.
        let name = name.replace('\0', "\u{fffd}");
        let name = if name.is_empty() { NOTHING.to_owned() } else { name };
        let numbered = (1..).map(|number| format!("{name}_{number}"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        names.find(|name| taken.insert(name.to_ascii_lowercase())).unwrap_or(name)
    };
    let stored = |field: &FieldRef| {
        let name = name_of(field.name());
        Field::new(name, stored_type(field.data_type()), field.is_nullable())
    };
    fields.iter().map(stored).collect()
}

/// The type of a column that holds values of `data_type`.
fn stored_type(data_type: &DataType) -> DataType {
    use DataType::*;
    let number = |name: &str, data_type| Field::new(name, data_type, true);
    match data_type {
        Float16 => Float32,
        Decimal32(digits, scale)
        | Decimal64(digits, scale)
        | Decimal128(digits, scale)
        | Decimal256(digits, scale) => {
            match u8::try_from(*scale).is_ok_and(|scale| scale <= *digits) && *digits <= 38 {
                true => Decimal128(*digits, *scale),
                false => Utf8,
            }
        }
        Date64 => Timestamp(TimeUnit::Millisecond, None),
        Time32(_) | Time64(TimeUnit::Microsecond) => Time64(TimeUnit::Microsecond),
        Time64(_) | Duration(_) => Int64,
        Timestamp(TimeUnit::Nanosecond, Some(_)) => Timestamp(TimeUnit::Nanosecond, None),
        Timestamp(_, Some(_)) => Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
        Interval(IntervalUnit::YearMonth) => Int32,
        Interval(IntervalUnit::DayTime) => {
            Struct(Fields::from(vec![number("days", Int32), number("milliseconds", Int32)]))
        }
        Interval(IntervalUnit::MonthDayNano) => Struct(Fields::from(vec![
            number("months", Int32),
            number("days", Int32),
            number("nanoseconds", Int64),
        ])),
        FixedSizeBinary(_) => Binary,
        List(item) | LargeList(item) | FixedSizeList(item, _) => {
            List(Arc::new(Field::new_list_field(stored_type(item.data_type()), true)))
        }
        Map(entries, sorted) => Map(stored_entries(entries), *sorted),
        Struct(fields) if fields.is_empty() => {
            Struct(Fields::from(vec![Field::new(NOTHING, Boolean, true)]))
        }
        // Beneath a struct that is null each of them is.
        Struct(fields) => {
            let nullable = |field: &FieldRef| field.as_ref().clone().with_nullable(true);
            Struct(stored_fields(fields).iter().map(nullable).collect())
        }
        other => other.clone(),
    }
}

fn stored_entries(entries: &FieldRef) -> FieldRef {
    let DataType::Struct(pair) = entries.data_type() else { return entries.clone() };
    let stored =
        |field: &FieldRef| field.as_ref().clone().with_data_type(stored_type(field.data_type()));
    let pair: Fields = pair.iter().map(stored).collect();
    Arc::new(entries.as_ref().clone().with_data_type(DataType::Struct(pair)))
}

/// A column as one of type `stored`, which [`stored_schema`] has for it.
///
/// # Errors
/// A value that does not fit, which the types rule out.
pub fn stored_array(array: &ArrayRef, stored: &DataType) -> Result<ArrayRef> {
    let from = array.data_type();
    if from == stored && !from.is_nested() {
        return Ok(array.clone());
    }
    let internal = |error: arrow::error::ArrowError| Error::internal(error.to_string());
    match (from, stored) {
        (DataType::Struct(_), DataType::Struct(fields)) => {
            let array = array.as_struct();
            let columns: Vec<ArrayRef> = match array.num_columns() {
                0 => vec![Arc::new(BooleanArray::new_null(array.len()))],
                _ => {
                    let stored = |(column, field): (&ArrayRef, &FieldRef)| {
                        stored_array(&beneath(array.nulls(), column)?, field.data_type())
                    };
                    array.columns().iter().zip(fields).map(stored).collect::<Result<_>>()?
                }
            };
            let built = StructArray::try_new_with_length(
                fields.clone(),
                columns,
                array.nulls().cloned(),
                array.len(),
            );
            Ok(Arc::new(built.map_err(internal)?))
        }
        (DataType::FixedSizeList(item, _), DataType::List(_)) => {
            let list = cast(array, &DataType::List(item.clone()))?;
            stored_array(&list, stored)
        }
        (DataType::LargeList(item), DataType::List(_)) => {
            let list = cast(array, &DataType::List(item.clone()))?;
            stored_array(&list, stored)
        }
        (DataType::List(_), DataType::List(item)) => {
            let list = array.as_list::<i32>();
            let values = stored_array(list.values(), item.data_type())?;
            let (offsets, nulls) = (list.offsets().clone(), list.nulls().cloned());
            let built = ListArray::try_new(item.clone(), offsets, values, nulls);
            Ok(Arc::new(built.map_err(internal)?))
        }
        (DataType::Map(_, _), DataType::Map(entries, sorted)) => {
            let map = array.as_map();
            let pairs: ArrayRef = Arc::new(map.entries().clone());
            let pairs = stored_array(&pairs, entries.data_type())?.as_struct().clone();
            let (offsets, nulls) = (map.offsets().clone(), map.nulls().cloned());
            let built = MapArray::try_new(entries.clone(), offsets, pairs, nulls, *sorted);
            Ok(Arc::new(built.map_err(internal)?))
        }
        (DataType::Interval(unit), _) => Ok(interval(array, unit, stored)),
        _ => cast(array, stored),
    }
}

/// A field of structs, null where they are: Arrow does not care what it has there, DuckDB shows it.
fn beneath(nulls: Option<&NullBuffer>, column: &ArrayRef) -> Result<ArrayRef> {
    match nulls.filter(|nulls| nulls.null_count() > 0) {
        None => Ok(column.clone()),
        Some(nulls) => nullif(column, &BooleanArray::new(!nulls.inner(), None))
            .map_err(|error| Error::internal(error.to_string())),
    }
}

/// Intervals as their parts.
fn interval(array: &ArrayRef, unit: &IntervalUnit, stored: &DataType) -> ArrayRef {
    let nulls = array.nulls().cloned();
    let columns: Vec<ArrayRef> = match unit {
        IntervalUnit::YearMonth => {
            let months = array.as_primitive::<IntervalYearMonthType>().values();
            return Arc::new(Int32Array::new(months.clone(), nulls));
        }
        IntervalUnit::DayTime => {
            let values = array.as_primitive::<IntervalDayTimeType>().values();
            vec![
                Arc::new(Int32Array::from_iter_values(values.iter().map(|it| it.days))),
                Arc::new(Int32Array::from_iter_values(values.iter().map(|it| it.milliseconds))),
            ]
        }
        IntervalUnit::MonthDayNano => {
            let values = array.as_primitive::<IntervalMonthDayNanoType>().values();
            vec![
                Arc::new(Int32Array::from_iter_values(values.iter().map(|it| it.months))),
                Arc::new(Int32Array::from_iter_values(values.iter().map(|it| it.days))),
                Arc::new(Int64Array::from_iter_values(values.iter().map(|it| it.nanoseconds))),
            ]
        }
    };
    match stored {
        DataType::Struct(fields) => {
            Arc::new(StructArray::new(fields.clone(), columns, nulls)) as ArrayRef
        }
        _ => new_null_array(stored, array.len()),
    }
}

fn cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    // A time that does not fit is null, as the table above says; anything else fits.
    let safe = matches!(to, DataType::Timestamp(_, _));
    let options = CastOptions { safe, format_options: FormatOptions::default() };
    cast_with_options(array, to, &options).map_err(|error| Error::internal(error.to_string()))
}

/// A name in SQL, whatever it holds.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A stored type in SQL.
///
/// # Errors
/// It is none that is stored.
pub fn type_in_sql(data_type: &DataType) -> Result<String> {
    use DataType::*;
    Ok(match data_type {
        Boolean => "BOOLEAN".to_owned(),
        Int8 => "TINYINT".to_owned(),
        Int16 => "SMALLINT".to_owned(),
        Int32 => "INTEGER".to_owned(),
        Int64 => "BIGINT".to_owned(),
        UInt8 => "UTINYINT".to_owned(),
        UInt16 => "USMALLINT".to_owned(),
        UInt32 => "UINTEGER".to_owned(),
        UInt64 => "UBIGINT".to_owned(),
        Float32 => "FLOAT".to_owned(),
        Float64 => "DOUBLE".to_owned(),
        Decimal128(digits, scale) => format!("DECIMAL({digits},{scale})"),
        Utf8 | LargeUtf8 => "VARCHAR".to_owned(),
        Binary | LargeBinary => "BLOB".to_owned(),
        Date32 => "DATE".to_owned(),
        Time64(_) => "TIME".to_owned(),
        Timestamp(_, Some(_)) => "TIMESTAMPTZ".to_owned(),
        Timestamp(TimeUnit::Second, None) => "TIMESTAMP_S".to_owned(),
        Timestamp(TimeUnit::Millisecond, None) => "TIMESTAMP_MS".to_owned(),
        Timestamp(TimeUnit::Microsecond, None) => "TIMESTAMP".to_owned(),
        Timestamp(TimeUnit::Nanosecond, None) => "TIMESTAMP_NS".to_owned(),
        List(item) => format!("{}[]", type_in_sql(item.data_type())?),
        Map(entries, _) => match entries.data_type() {
            Struct(pair) => match pair.as_ref() {
                [key, value] => format!(
                    "MAP({}, {})",
                    type_in_sql(key.data_type())?,
                    type_in_sql(value.data_type())?
                ),
                _ => return Err(unknown(data_type)),
            },
            _ => return Err(unknown(data_type)),
        },
        Struct(fields) => {
            let mut text = "STRUCT(".to_owned();
            for (at, field) in fields.iter().enumerate() {
                let comma = if at == 0 { "" } else { ", " };
                let of = type_in_sql(field.data_type())?;
                let _ = write!(text, "{comma}{} {of}", quoted(field.name()));
            }
            text + ")"
        }
        other => return Err(unknown(other)),
    })
}

fn unknown(data_type: &DataType) -> Error {
    Error::internal(format!("{data_type} is no type of a table"))
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Date32Array, Date64Array, Decimal128Array, Decimal256Array, DurationSecondArray,
        FixedSizeBinaryArray, Float16Array, Float64Array, Int64Array, IntervalDayTimeArray,
        IntervalMonthDayNanoArray, IntervalYearMonthArray, ListArray, StringArray,
        Time32SecondArray, Time64NanosecondArray, TimestampMillisecondArray,
        TimestampNanosecondArray, TimestampSecondArray, UInt64Array,
    };
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::{Int32Type, IntervalDayTime, IntervalMonthDayNano, i256};
    use half::f16;

    use super::*;
    use crate::sql::duck::Database;

    /// The text of each value of `array`, after it was in a table; and the type that it had there.
    fn through_a_table(array: ArrayRef) -> (String, Vec<Option<String>>) {
        let field = Field::new("x", array.data_type().clone(), true);
        let schema = Schema::new(vec![field]);
        let batch = RecordBatch::try_new(Arc::new(schema.clone()), vec![array]).expect("a batch");
        let stored = stored_schema(&schema);
        let batch = stored_batch(&batch, &stored).expect("it fits");
        let of = type_in_sql(stored.field(0).data_type()).expect("a type");
        let database = Database::in_memory(&[("threads", "1")]).expect("a database");
        let connection = database.connect().expect("a connection");
        connection.execute(&format!("create table t (x {of})")).expect("a table");
        let rows = database.crate_connection().expect("a connection");
        let mut appender = rows.appender("t").expect("an appender");
        appender.append_record_batch(batch).expect("appended");
        appender.flush().expect("flushed");
        drop(appender);
        drop(rows);
        let mut prepared = connection.prepare("select x::varchar from t").expect("prepared");
        let mut texts = Vec::new();
        for batch in prepared.run().expect("rows") {
            let batch = batch.expect("rows");
            texts.extend(batch.column(0).as_string::<i32>().iter().map(|it| it.map(str::to_owned)));
        }
        (of, texts)
    }

    #[test]
    fn every_type_keeps_its_values() {
        let check = |array: ArrayRef, of: &str, texts: &[Option<&str>]| {
            let name = array.data_type().to_string();
            let (stored, found) = through_a_table(array);
            let found: Vec<Option<&str>> = found.iter().map(Option::as_deref).collect();
            assert_eq!((stored.as_str(), found.as_slice()), (of, texts), "{name}");
        };
        let max = i64::MAX;
        check(
            Arc::new(UInt64Array::from(vec![Some(u64::MAX), None])),
            "UBIGINT",
            &[Some("18446744073709551615"), None],
        );
        check(
            Arc::new(Float16Array::from(vec![Some(f16::from_f32(0.5)), None])),
            "FLOAT",
            &[Some("0.5"), None],
        );
        let digits = "12345678901234567890123456789012345678";
        let value: i128 = digits.parse().expect("a number");
        let decimal = Decimal128Array::from(vec![Some(value), None]);
        let with =
            |digits, scale| decimal.clone().with_precision_and_scale(digits, scale).expect("legal");
        check(Arc::new(with(38, 0)), "DECIMAL(38,0)", &[Some(digits), None]);
        check(
            Arc::new(with(38, 20)),
            "DECIMAL(38,20)",
            &[Some(&format!("{}.{}", &digits[..18], &digits[18..])), None],
        );
        check(Arc::new(with(38, -2)), "VARCHAR", &[Some(&format!("{digits}00")), None]);
        let wide = Decimal256Array::from(vec![Some(i256::from_i128(value)), None]);
        let wide = wide.with_precision_and_scale(76, 2).expect("legal");
        let text = format!("{}.{}", &digits[..36], &digits[36..]);
        check(Arc::new(wide), "VARCHAR", &[Some(&text), None]);
        check(
            Arc::new(Date32Array::from(vec![Some(-1), None])),
            "DATE",
            &[Some("1969-12-31"), None],
        );
        check(
            Arc::new(Date64Array::from(vec![Some(86_400_000), None])),
            "TIMESTAMP_MS",
            &[Some("1970-01-02 00:00:00"), None],
        );
        check(
            Arc::new(Time32SecondArray::from(vec![Some(3661), None])),
            "TIME",
            &[Some("01:01:01"), None],
        );
        check(
            Arc::new(Time64NanosecondArray::from(vec![Some(1), None])),
            "BIGINT",
            &[Some("1"), None],
        );
        let seconds = TimestampSecondArray::from(vec![Some(1), None]);
        check(Arc::new(seconds), "TIMESTAMP_S", &[Some("1970-01-01 00:00:01"), None]);
        let zoned = TimestampMillisecondArray::from(vec![Some(1_001), Some(max), None]);
        check(
            Arc::new(zoned.with_timezone("+02:00")),
            "TIMESTAMPTZ",
            &[Some("1970-01-01 00:00:01.001+00"), None, None],
        );
        let nanos = TimestampNanosecondArray::from(vec![Some(1), Some(max), None]);
        check(
            Arc::new(nanos.with_timezone("UTC")),
            "TIMESTAMP_NS",
            &[Some("1970-01-01 00:00:00.000000001"), Some("infinity"), None],
        );
        check(
            Arc::new(DurationSecondArray::from(vec![Some(max), None])),
            "BIGINT",
            &[Some("9223372036854775807"), None],
        );
        check(
            Arc::new(IntervalYearMonthArray::from(vec![Some(-5), None])),
            "INTEGER",
            &[Some("-5"), None],
        );
        check(
            Arc::new(IntervalDayTimeArray::from(vec![Some(IntervalDayTime::new(1, -2)), None])),
            "STRUCT(\"days\" INTEGER, \"milliseconds\" INTEGER)",
            &[Some("{'days': 1, 'milliseconds': -2}"), None],
        );
        check(
            Arc::new(IntervalMonthDayNanoArray::from(vec![
                Some(IntervalMonthDayNano::new(1, 2, max)),
                None,
            ])),
            "STRUCT(\"months\" INTEGER, \"days\" INTEGER, \"nanoseconds\" BIGINT)",
            &[Some("{'months': 1, 'days': 2, 'nanoseconds': 9223372036854775807}"), None],
        );
        let bytes = FixedSizeBinaryArray::try_from_sparse_iter_with_size(
            [Some([1, 255]), None].into_iter(),
            2,
        );
        check(Arc::new(bytes.expect("bytes")), "BLOB", &[Some("\\x01\\xFF"), None]);
        let lists = arrow::array::FixedSizeListArray::from_iter_primitive::<Int32Type, _, _>(
            [Some(vec![Some(1), None]), None],
            2,
        );
        check(Arc::new(lists), "INTEGER[]", &[Some("[1, NULL]"), None]);
        let empty = StructArray::new_empty_fields(2, Some(vec![true, false].into()));
        check(Arc::new(empty), "STRUCT(\"_\" BOOLEAN)", &[Some("{'_': NULL}"), None]);
        check(
            Arc::new(Float64Array::from(vec![f64::NAN, f64::INFINITY])),
            "DOUBLE",
            &[Some("nan"), Some("inf")],
        );
    }

    #[test]
    fn structs_in_lists_keep_their_values() {
        let fields = Fields::from(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("ID", DataType::Utf8, true),
            Field::new("", DataType::Duration(TimeUnit::Second), true),
            Field::new("a\"b'\0;", DataType::Utf8, true),
        ]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![1, 2, 3])),
            Arc::new(StringArray::from(vec![Some("x"), None, Some("z")])),
            Arc::new(DurationSecondArray::from(vec![7, 8, 9])),
            Arc::new(StringArray::from(vec!["'; drop table t", "\"", ""])),
        ];
        let rows = StructArray::new(fields.clone(), columns, None);
        let item = Arc::new(Field::new_list_field(DataType::Struct(fields), true));
        let offsets = OffsetBuffer::from_lengths([2, 0, 0, 1]);
        let nulls = vec![true, false, true, true].into();
        let lists = ListArray::new(item, offsets, Arc::new(rows), Some(nulls));
        let (of, texts) = through_a_table(Arc::new(lists));
        assert_eq!(
            of,
            "STRUCT(\"id\" BIGINT, \"ID_1\" VARCHAR, \"_\" BIGINT, \"a\"\"b'\u{fffd};\" VARCHAR)[]"
        );
        let texts: Vec<Option<&str>> = texts.iter().map(Option::as_deref).collect();
        assert_eq!(texts.len(), 4);
        assert!(
            texts[0].is_some_and(|text| text.contains("drop table t") && text.contains("'_': 7")),
            "{texts:?}"
        );
        assert_eq!((texts[1], texts[2]), (None, Some("[]")));
    }
}
