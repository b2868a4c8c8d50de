//! Arrow schemas that the user gives: read from files, and as what is said of a topic's objects.

use arrow::datatypes::{DataType, Field, Fields};
use arrow_ipc::reader::{FileReader, StreamReader};

use super::super::ipc::guarded;
use super::super::reject::Reject;
use super::leaf::{Hold, Leaf, Type};
use super::shape::{Kind, ListShape, StructShape, column_depth_max};

/// Whether a file is an Arrow IPC file, stream or schema, by how it begins.
pub fn is_ipc(file: &[u8]) -> bool {
    is_ipc_file(file) || file.starts_with(&[0xFF; 4])
}

fn is_ipc_file(file: &[u8]) -> bool {
    file.starts_with(b"ARROW1")
}

/// The columns of an Arrow IPC file, a stream, or what begins one: a schema alone, as pyarrow's `Schema.serialize()`.
///
/// # Errors
/// It cannot be read.
pub fn read(file: &[u8]) -> Result<Fields, String> {
    let schema = guarded(|| {
        let read = match is_ipc_file(file) {
            true => {
                FileReader::try_new(std::io::Cursor::new(file), None).map(|reader| reader.schema())
            }
            false => StreamReader::try_new(file, None).map(|reader| reader.schema()),
        };
        read.map_err(|error| Reject::malformed(error.to_string()))
    });
    schema.map(|schema| schema.fields().clone()).map_err(|_| "no Arrow schema".to_owned())
}

/// What `columns` say of a topic's objects.
///
/// # Errors
/// A type that JSON's values are not read as, or one that nests deeper than `depth_max`.
pub fn shape(columns: &Fields, depth_max: usize) -> Result<StructShape, String> {
    if columns.is_empty() {
        return Err("it has no column".to_owned());
    }
    let mut path = Vec::new();
    fields(columns, column_depth_max(depth_max), &mut path).map_err(|why| {
        match path.join(".").as_str() {
            "" => why,
            path => format!("{path}: {why}"),
        }
    })
}

/// Each column alone, for formats without nesting.
///
/// # Errors
/// A column's type is not that of a single value.
pub fn flat(columns: &Fields) -> Result<(), String> {
    match columns.iter().find(|field| field.data_type().is_nested()) {
        Some(field) => {
            Err(format!("{}: {} is not a single value", field.name(), field.data_type()))
        }
        None => Ok(()),
    }
}

fn fields(
    columns: &Fields,
    depth_left: usize,
    path: &mut Vec<String>,
) -> Result<StructShape, String> {
    let mut shape = StructShape::said(true, true);
    for column in columns {
        path.push(column.name().clone());
        if shape.field(column.name()).is_some() {
            return Err("it is there twice".to_owned());
        }
        let kind = kind(column, depth_left, path)?;
        if let Some(place) = shape.field_mut(column.name()) {
            *place = kind;
        }
        path.pop();
    }
    Ok(shape)
}

fn kind(field: &Field, depth_left: usize, path: &mut Vec<String>) -> Result<Kind, String> {
    let Some(depth_left) = depth_left.checked_sub(1) else {
        return Err("it nests too deeply".to_owned());
    };
    let list = |item: Kind| ListShape { item: Box::new(item), is_firm: true };
    Ok(match field.data_type() {
        DataType::Struct(below) if below.is_empty() => return Err("it has no field".to_owned()),
        DataType::Struct(below) => Kind::Struct(fields(below, depth_left, path)?),
        DataType::List(item) => Kind::List(list(kind(item, depth_left, path)?)),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) => match pair.as_ref() {
                [key, value] if *key.data_type() == DataType::Utf8 => {
                    // The entries are a level, too.
                    Kind::Map(list(kind(value, depth_left.saturating_sub(1), path)?))
                }
                _ => return Err("the keys of a map are of type Utf8".to_owned()),
            },
            other => return Err(format!("a map of {other}")),
        },
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float32
        | DataType::Float64
        | DataType::Decimal128(..)
        | DataType::Decimal256(..)
        | DataType::Utf8
        | DataType::Binary
        | DataType::FixedSizeBinary(1..)
        | DataType::Date32
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Timestamp(..)
        | DataType::Duration(_) => Kind::Leaf(Box::new(Leaf {
            is: Type::Arrow(field.data_type().clone()),
            hold: Hold::Arrow,
        })),
        other => {
            let instead = match other {
                DataType::LargeUtf8 | DataType::Utf8View => "; Utf8 (pyarrow's string) is",
                DataType::LargeBinary | DataType::BinaryView => "; Binary is",
                DataType::LargeList(_)
                | DataType::FixedSizeList(..)
                | DataType::ListView(_)
                | DataType::LargeListView(_) => "; List is",
                DataType::Dictionary(..) | DataType::RunEndEncoded(..) => {
                    "; the type of its values is"
                }
                DataType::Date64 => "; Date32 is",
                DataType::Float16 => "; Float32 is",
                _ => "",
            };
            return Err(format!("columns of type {other} are not supported{instead}"));
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::RecordBatch;
    use arrow::datatypes::{Schema, TimeUnit};
    use arrow::ipc::writer::{FileWriter, StreamWriter};

    use super::*;

    fn fields() -> Fields {
        Fields::from(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        ])
    }

    #[test]
    fn schemas_are_read_from_every_kind_of_file() {
        let schema = Arc::new(Schema::new(fields()));
        let batch = RecordBatch::new_empty(schema.clone());
        let mut stream = StreamWriter::try_new(Vec::new(), &schema).expect("a writer");
        let alone = stream.get_ref().clone();
        stream.write(&batch).expect("written");
        let stream = stream.into_inner().expect("finished");
        let mut file = FileWriter::try_new(Vec::new(), &schema).expect("a writer");
        file.write(&batch).expect("written");
        let file = file.into_inner().expect("finished");
        for (name, bytes) in [("alone", alone), ("stream", stream), ("file", file)] {
            assert!(is_ipc(&bytes), "{name}");
            assert_eq!(read(&bytes), Ok(fields()), "{name}");
            for end in 0..bytes.len().min(100) {
                read(&bytes[..end]).expect_err(name);
            }
        }
        assert!(!is_ipc(b"{}"));
        read(b"\xff\xff\xff\xff\xff\xff\xff\x7f").expect_err("nothing follows");
    }

    #[test]
    fn types_that_are_not_read_are_named() {
        let list = |item| DataType::List(Arc::new(Field::new_list_field(item, true)));
        let cases = [
            (
                DataType::LargeUtf8,
                "a.item: columns of type LargeUtf8 are not supported; Utf8 (pyarrow's string) is",
            ),
            (DataType::Null, "a.item: columns of type Null are not supported"),
            (DataType::Struct(Fields::empty()), "a.item: it has no field"),
        ];
        for (data_type, why) in cases {
            let inner = Fields::from(vec![Field::new("item", data_type, true)]);
            let columns = Fields::from(vec![Field::new("a", list(DataType::Struct(inner)), true)]);
            assert_eq!(shape(&columns, 64).map(|_| ()), Err(why.to_owned()));
        }
        let deep = (0..70).fold(DataType::Int64, |inner, _| list(inner));
        let columns = Fields::from(vec![Field::new("a", deep, true)]);
        assert_eq!(shape(&columns, 64).map(|_| ()), Err("a: it nests too deeply".to_owned()));
        assert_eq!(shape(&Fields::empty(), 64).map(|_| ()), Err("it has no column".to_owned()));
        flat(&columns).expect_err("it nests");
        flat(&fields()).expect("single values");
    }
}
