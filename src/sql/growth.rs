//! How the columns of a table grow when those of its topic do: nothing that was stored is lost, and what comes fits.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};

use super::types::{quoted, stored_schema, type_in_sql};
use crate::decode::column::{list_of, map_of};
use crate::decode::envelope::Layout;
use crate::decode::projection::Projection;
use crate::decode::unite::{pair, unite};
use crate::error::{Error, Result};
use crate::stream::fit::Fit;

/// Columns that hold what those of `known` and those of `new` hold.
///
/// `is_empty` says of a column of `known` that it has no values; then it takes any other type. `comes` says of a column of
/// `new` that it has values; one without them changes nothing: of a topic whose values were not seen yet, the columns mean
/// nothing.
///
/// # Errors
/// Those of `is_empty`.
pub fn grown(
    known: &SchemaRef,
    new: &SchemaRef,
    mut is_empty: impl FnMut(&str) -> Result<bool>,
    comes: impl Fn(&str) -> bool,
) -> Result<SchemaRef> {
    if known == new {
        return Ok(known.clone());
    }
    let mut fields: Vec<Field> =
        known.fields().iter().map(|field| field.as_ref().clone()).collect();
    for field in new.fields() {
        let Some(place) = fields.iter_mut().find(|known| known.name() == field.name()) else {
            fields.push(field.as_ref().clone().with_nullable(true));
            continue;
        };
        if place.data_type() == field.data_type() || !comes(field.name()) {
            continue;
        }
        let data_type = match (place.data_type(), field.data_type()) {
            (DataType::Binary, new) if is_empty(field.name())? => new.clone(),
            (known, new) => holding(known, new),
        };
        place.set_data_type(data_type);
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// A type that holds the values of both: the wider one of numbers, text of all else, where nested values are JSON.
fn holding(known: &DataType, new: &DataType) -> DataType {
    match (known, new) {
        (known, new) if known == new => known.clone(),
        (DataType::Struct(known), DataType::Struct(new)) => DataType::Struct(fields(known, new)),
        (DataType::List(known), DataType::List(new)) => {
            list_of(holding(known.data_type(), new.data_type()))
        }
        (DataType::Map(known, _), DataType::Map(new, _)) => match (pair(known), pair(new)) {
            (Some((key, known)), Some((new_key, new))) if key == new_key => {
                map_of(key.clone(), holding(known, new))
            }
            _ => DataType::Utf8,
        },
        (DataType::Binary | DataType::FixedSizeBinary(_), _)
        | (_, DataType::Binary | DataType::FixedSizeBinary(_)) => DataType::Binary,
        (known, new) => unite(known, new).unwrap_or(DataType::Utf8),
    }
}

fn fields(known: &Fields, new: &Fields) -> Fields {
    let mut fields: Vec<Field> = known.iter().map(|field| field.as_ref().clone()).collect();
    for field in new {
        match fields.iter_mut().find(|known| known.name() == field.name()) {
            Some(known) => {
                known.set_data_type(holding(known.data_type(), field.data_type()));
                known.set_nullable(true);
            }
            None => fields.push(field.as_ref().clone().with_nullable(true)),
        }
    }
    fields.into()
}

/// A batch in columns that have [grown](grown).
///
/// # Errors
/// A failure of ours, not of the data.
pub fn fitted(batch: &RecordBatch, columns: &SchemaRef) -> Result<RecordBatch> {
    if batch.schema_ref() == columns {
        return Ok(batch.clone());
    }
    // What is no bytes becomes bytes by way of text.
    let text = |field: &Arc<Field>| {
        let source = batch.schema_ref().field_with_name(field.name());
        let is_other = source.is_ok_and(|source| source.data_type() != field.data_type());
        match field.data_type() {
            DataType::Binary if is_other => field.as_ref().clone().with_data_type(DataType::Utf8),
            _ => field.as_ref().clone(),
        }
    };
    let texts: Fields = columns.fields().iter().map(text).collect();
    let fit = Fit::new(Arc::new(Schema::new(texts)), Layout::Struct, Projection::All);
    let batch = fit.apply(batch)?.batch;
    let typed = batch.columns().iter().zip(columns.fields());
    let typed = typed.map(|(column, field)| match column.data_type() == field.data_type() {
        true => Ok(column.clone()),
        false => cast(column, field.data_type()),
    });
    let internal = |error: arrow::error::ArrowError| Error::internal(error.to_string());
    let typed = typed.collect::<Result<Vec<_>, _>>().map_err(internal)?;
    RecordBatch::try_new(columns.clone(), typed).map_err(internal)
}

/// What `ALTER TABLE` has to do so that the columns of `before` are those of `after`.
///
/// # Errors
/// A type that is none of a table.
pub fn changes(before: &SchemaRef, after: &SchemaRef) -> Result<Vec<String>> {
    let (before, after) = (stored_schema(before), stored_schema(after));
    let mut changes = Vec::new();
    for field in after.fields() {
        let (column, data_type) = (quoted(field.name()), type_in_sql(field.data_type())?);
        match before.field_with_name(field.name()) {
            Err(_) => changes.push(format!("add column {column} {data_type}")),
            Ok(known) if known.data_type() == field.data_type() => {}
            Ok(known) => {
                let value = converted(&column, known.data_type(), field.data_type(), 0)?;
                changes
                    .push(format!("alter column {column} set data type {data_type} using {value}"));
            }
        }
    }
    Ok(changes)
}

/// The columns of a table with those of `before`, as those of `after`.
///
/// # Errors
/// A type that is none of a table.
pub fn selected(before: &SchemaRef, after: &SchemaRef) -> Result<String> {
    let (before, after) = (stored_schema(before), stored_schema(after));
    let column = |field: &Arc<Field>| {
        let name = quoted(field.name());
        match before.field_with_name(field.name()) {
            Err(_) => Ok(format!("null::{} as {name}", type_in_sql(field.data_type())?)),
            Ok(known) if known.data_type() == field.data_type() => Ok(name),
            Ok(known) => {
                let value = converted(&name, known.data_type(), field.data_type(), 0)?;
                Ok(format!("{value} as {name}"))
            }
        }
    };
    Ok(after.fields().iter().map(column).collect::<Result<Vec<_>>>()?.join(", "))
}

/// An SQL expression: `value`, which is of type `from`, as one of type `to`. `depth` tells lambdas in lambdas apart.
fn converted(value: &str, from: &DataType, to: &DataType, depth: usize) -> Result<String> {
    if from == to {
        return Ok(value.to_owned());
    }
    let item = format!("item{depth}");
    Ok(match (from, to) {
        (DataType::Struct(before), DataType::Struct(after)) => {
            let mut text = format!("case when {value} is null then null else {{");
            for (at, field) in after.iter().enumerate() {
                let (comma, name) = (if at == 0 { "" } else { ", " }, quoted(field.name()));
                let _ = write!(text, "{comma}{name}: ");
                match before.iter().find(|known| known.name() == field.name()) {
                    None => {
                        let _ = write!(text, "null::{}", type_in_sql(field.data_type())?);
                    }
                    Some(known) => {
                        let value = format!("({value}).{name}");
                        let (known, new) = (known.data_type(), field.data_type());
                        text.push_str(&converted(&value, known, new, depth)?);
                    }
                }
            }
            text + "} end"
        }
        (DataType::List(before), DataType::List(after)) => {
            let of = converted(&item, before.data_type(), after.data_type(), depth + 1)?;
            format!("list_transform({value}, lambda {item}: {of})")
        }
        (DataType::Map(before, _), DataType::Map(after, _)) => match (pair(before), pair(after)) {
            (Some((_, before)), Some((_, after))) => {
                let of = converted(&format!("{item}.value"), before, after, depth + 1)?;
                format!(
                    "map_from_entries(list_transform(map_entries({value}), \
                     lambda {item}: {{'key': {item}.key, 'value': {of}}}))"
                )
            }
            _ => format!("to_json({value})::varchar"),
        },
        (from, DataType::Utf8) if from.is_nested() => format!("to_json({value})::varchar"),
        (from, DataType::Binary) if from.is_nested() => {
            format!("encode(to_json({value})::varchar)")
        }
        (_, DataType::Binary) => format!("encode(({value})::varchar)"),
        // Of nothing, anything.
        (DataType::Binary, to) => format!("null::{}", type_in_sql(to)?),
        (_, to) => format!("({value})::{}", type_in_sql(to)?),
    })
}
