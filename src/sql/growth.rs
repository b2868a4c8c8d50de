//! How the columns of a table grow when those of its topic do: nothing that was stored is lost, and what comes fits.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields, Int64Type, Schema, SchemaRef, UInt64Type};

use super::types::{quoted, stored_schema, type_in_sql};
use crate::decode::column::{list_of, map_of};
use crate::decode::envelope::Layout;
use crate::decode::projection::Projection;
use crate::decode::unite::{pair, unite};
use crate::error::{Error, Result};
use crate::stream::fit::Fit;

/// A double holds every integer up to here, above and below zero.
const EXACT_MAX: i64 = 1 << 53;

/// A step from a value to one in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A column, or a field of a struct.
    Field(String),
    /// Each item of a list.
    Item,
    /// Each value of a map.
    Value,
}

/// What has to be known of values, where types do not decide.
pub trait Values {
    /// Whether a column of the table has none; then it takes any other type.
    ///
    /// # Errors
    /// The table cannot be asked.
    fn is_empty(&mut self, column: &str) -> Result<bool>;

    /// Whether an integer in this place is beyond ±2^53, in the table or in what comes: no double takes it as it is.
    ///
    /// # Errors
    /// The table cannot be asked.
    fn is_wide(&mut self, path: &[Step]) -> Result<bool>;
}

/// Columns that hold what those of `known` and those of `new` hold.
///
/// `comes` says of a column of `new` that it has values; one without them changes nothing: of a topic whose values were not
/// seen yet, the columns mean nothing.
///
/// # Errors
/// Those of `values`.
pub fn grown(
    known: &SchemaRef,
    new: &SchemaRef,
    comes: impl Fn(&str) -> bool,
    values: &mut dyn Values,
) -> Result<SchemaRef> {
    if known == new {
        return Ok(known.clone());
    }
    let mut fields: Vec<Field> =
        known.fields().iter().map(|field| field.as_ref().clone()).collect();
    let mut holding = Holding { path: Vec::new(), values };
    for field in new.fields() {
        let Some(place) = fields.iter_mut().find(|known| known.name() == field.name()) else {
            fields.push(field.as_ref().clone().with_nullable(true));
            continue;
        };
        if place.data_type() == field.data_type() || !comes(field.name()) {
            continue;
        }
        let data_type = match (place.data_type(), field.data_type()) {
            (DataType::Binary, new) if holding.values.is_empty(field.name())? => new.clone(),
            (known, new) => holding.below(Step::Field(field.name().clone()), known, new)?,
        };
        place.set_data_type(data_type);
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// Finds types that hold the values of two.
struct Holding<'a> {
    /// Where these are.
    path: Vec<Step>,
    values: &'a mut dyn Values,
}

impl Holding<'_> {
    fn below(&mut self, step: Step, known: &DataType, new: &DataType) -> Result<DataType> {
        self.path.push(step);
        let both = self.both(known, new);
        self.path.pop();
        both
    }

    /// The wider one of numbers, text of all else, where nested values are JSON.
    fn both(&mut self, known: &DataType, new: &DataType) -> Result<DataType> {
        Ok(match (known, new) {
            (known, new) if known == new => known.clone(),
            (DataType::Struct(known), DataType::Struct(new)) => {
                DataType::Struct(self.fields(known, new)?)
            }
            (DataType::List(known), DataType::List(new)) => {
                list_of(self.below(Step::Item, known.data_type(), new.data_type())?)
            }
            (DataType::Map(known, _), DataType::Map(new, _)) => match (pair(known), pair(new)) {
                (Some((key, known)), Some((new_key, new))) if key == new_key => {
                    map_of(key.clone(), self.below(Step::Value, known, new)?)
                }
                _ => DataType::Utf8,
            },
            (DataType::Binary | DataType::FixedSizeBinary(_), _)
            | (_, DataType::Binary | DataType::FixedSizeBinary(_)) => DataType::Binary,
            (known, new) if is_long(known) && new.is_floating() && self.is_wide()? => {
                DataType::Utf8
            }
            (known, new) if known.is_floating() && is_long(new) && self.is_wide()? => {
                DataType::Utf8
            }
            (known, new) => unite(known, new).unwrap_or(DataType::Utf8),
        })
    }

    fn is_wide(&mut self) -> Result<bool> {
        self.values.is_wide(&self.path)
    }

    fn fields(&mut self, known: &Fields, new: &Fields) -> Result<Fields> {
        let mut fields: Vec<Field> = known.iter().map(|field| field.as_ref().clone()).collect();
        for field in new {
            match fields.iter_mut().find(|known| known.name() == field.name()) {
                Some(known) => {
                    let step = Step::Field(field.name().clone());
                    known.set_data_type(self.below(step, known.data_type(), field.data_type())?);
                    known.set_nullable(true);
                }
                None => fields.push(field.as_ref().clone().with_nullable(true)),
            }
        }
        Ok(fields.into())
    }
}

/// Whether a type has integers that no double holds.
fn is_long(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Int64 | DataType::UInt64)
}

/// SQL that finds a row of `table`, which has `columns`, with an integer beyond ±2^53 at `path`; `None`, if there are no
/// such integers by their type.
pub fn wide_rows(table: &str, columns: &SchemaRef, path: &[Step]) -> Option<String> {
    let (Step::Field(name), below) = path.split_first()? else { return None };
    let (at, field) = columns.column_with_name(name)?;
    let stored = stored_schema(columns);
    let stored = stored.fields().get(at)?;
    let types = (field.data_type(), stored.data_type());
    let condition = wide_condition(&quoted(stored.name()), types, below)?;
    Some(format!("select 1 from {table} where {condition} limit 1"))
}

/// Whether `value`, of a type that is stored as another one, has such an integer.
fn wide_condition(value: &str, of: (&DataType, &DataType), path: &[Step]) -> Option<String> {
    let Some((step, below)) = path.split_first() else {
        return is_long(of.0).then(|| format!("({value} > {EXACT_MAX} or {value} < -{EXACT_MAX})"));
    };
    let item = format!("item{}", path.len());
    let some = |list: &str, types| {
        let of_one = wide_condition(&item, types, below)?;
        Some(format!("len(list_filter({list}, lambda {item}: {of_one})) > 0"))
    };
    match (step, of) {
        (Step::Field(name), (DataType::Struct(fields), DataType::Struct(stored))) => {
            let at = fields.iter().position(|field| field.name() == name)?;
            let (field, stored) = (fields.get(at)?, stored.get(at)?);
            let value = format!("({value}).{}", quoted(stored.name()));
            wide_condition(&value, (field.data_type(), stored.data_type()), below)
        }
        (Step::Item, (DataType::List(item), DataType::List(stored))) => {
            some(value, (item.data_type(), stored.data_type()))
        }
        (Step::Value, (DataType::Map(entries, _), DataType::Map(stored, _))) => {
            let types = (pair(entries)?.1, pair(stored)?.1);
            some(&format!("map_values({value})"), types)
        }
        _ => None,
    }
}

/// Whether an integer of `batch` is beyond ±2^53 at `path`.
pub fn is_wide_in(batch: &RecordBatch, path: &[Step]) -> bool {
    let Some((Step::Field(name), below)) = path.split_first() else { return false };
    batch.column_by_name(name).is_some_and(|column| has_wide(column, None, below))
}

/// The same of `array`, apart from what is null in it or above it.
fn has_wide(array: &ArrayRef, above: Option<&NullBuffer>, path: &[Step]) -> bool {
    let nulls = NullBuffer::union(above, array.nulls());
    let is_valid = |row: &usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(*row));
    let mut rows = (0..array.len()).filter(is_valid);
    match (path.split_first(), array.data_type()) {
        (None, DataType::Int64) => {
            let values = array.as_primitive::<Int64Type>();
            rows.any(|row| values.value(row).unsigned_abs() > EXACT_MAX.unsigned_abs())
        }
        (None, DataType::UInt64) => {
            let values = array.as_primitive::<UInt64Type>();
            rows.any(|row| values.value(row) > EXACT_MAX.unsigned_abs())
        }
        (Some((Step::Field(name), below)), DataType::Struct(_)) => {
            let field = array.as_struct().column_by_name(name);
            field.is_some_and(|field| has_wide(field, nulls.as_ref(), below))
        }
        (Some((Step::Item, below)), DataType::List(_)) => {
            let lists = array.as_list::<i32>();
            rows.any(|row| has_wide(&lists.value(row), None, below))
        }
        (Some((Step::Value, below)), DataType::Map(..)) => {
            let maps = array.as_map();
            rows.any(|row| has_wide(maps.value(row).column(1), None, below))
        }
        _ => false,
    }
}

/// A place of a table whose values have become text, because no other type holds all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turned {
    /// The column, or the path of a field.
    pub column: String,
    /// What it was.
    pub from: String,
    /// What came.
    pub came: String,
}

/// The places that were something else in `before`, and are text in `after`, since `new` came.
pub fn turned(before: &SchemaRef, new: &SchemaRef, after: &SchemaRef) -> Vec<Turned> {
    let mut found = Vec::new();
    turned_fields("", before.fields(), Some(new.fields()), after.fields(), &mut found);
    found
}

fn turned_fields(
    path: &str,
    before: &Fields,
    new: Option<&Fields>,
    after: &Fields,
    found: &mut Vec<Turned>,
) {
    let of = |fields: &Fields, name: &str| {
        fields.iter().find(|field| field.name() == name).map(|field| field.data_type().clone())
    };
    for field in after {
        let name = field.name();
        let Some(before) = of(before, name) else { continue };
        let new = new.and_then(|new| of(new, name));
        let dot = if path.is_empty() { "" } else { "." };
        turned_type(&format!("{path}{dot}{name}"), &before, new.as_ref(), field.data_type(), found);
    }
}

fn turned_type(
    path: &str,
    before: &DataType,
    new: Option<&DataType>,
    after: &DataType,
    found: &mut Vec<Turned>,
) {
    let is_text = |data_type: &DataType| matches!(data_type, DataType::Utf8 | DataType::Binary);
    let items = format!("{path}[]");
    match (before, after) {
        (before, after) if before == after => {}
        (DataType::Struct(before), DataType::Struct(after)) => {
            let new = match new {
                Some(DataType::Struct(new)) => Some(new),
                _ => None,
            };
            turned_fields(path, before, new, after, found);
        }
        (DataType::List(before), DataType::List(after)) => {
            let new = match new {
                Some(DataType::List(new)) => Some(new.data_type()),
                _ => None,
            };
            turned_type(&items, before.data_type(), new, after.data_type(), found);
        }
        (DataType::Map(before, _), DataType::Map(after, _)) => {
            let new = match new {
                Some(DataType::Map(new, _)) => pair(new).map(|(_, value)| value),
                _ => None,
            };
            if let (Some((_, before)), Some((_, after))) = (pair(before), pair(after)) {
                turned_type(&items, before, new, after, found);
            }
        }
        (before, after) if is_text(after) && !is_text(before) => found.push(Turned {
            column: path.to_owned(),
            from: short(before),
            came: new.map(short).unwrap_or_default(),
        }),
        _ => {}
    }
}

/// A type's name, without those of what is in it.
fn short(data_type: &DataType) -> String {
    match data_type {
        DataType::Struct(_) => "Struct".to_owned(),
        DataType::List(_) => "List".to_owned(),
        DataType::Map(..) => "Map".to_owned(),
        other => other.to_string(),
    }
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

#[cfg(test)]
mod tests;
