//! [`Given`]: the schemas that karrow.toml gives a topic, for values that name none.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::Fields;

use super::avro::AvroShape;
use super::envelope::Side;
use super::json::shape::StructShape;
use super::json::{arrow_schema, schema};
use super::protobuf::GivenMessage;
use crate::config::formats::{Format, TopicSettings};
use crate::error::{Error, Result};

/// A schema, read and checked.
#[derive(Clone)]
pub enum Given {
    /// An Avro schema.
    Avro(Arc<AvroShape>),
    /// A message of a .proto.
    Protobuf(GivenMessage),
    /// A JSON Schema, as what it says of objects.
    Json(StructShape),
    /// An Arrow schema of JSON or CSV: the columns, and the same as what they say of objects.
    Columns(Fields, StructShape),
}

/// What `settings` give for `side`, and its format: that of the schema, if the format was to be found out.
///
/// # Errors
/// A file that cannot be read or used, or something that does not go together: the setting is named, and the file.
pub fn given(
    side: Side,
    format: Format,
    settings: &TopicSettings,
    depth_max: usize,
) -> Result<(Format, Option<Given>)> {
    let (name, schema, message) = match side {
        Side::Key => ("key", &settings.key_schema, &settings.key_message),
        Side::Payload => ("payload", &settings.payload_schema, &settings.payload_message),
    };
    let columns = settings.columns.as_ref().filter(|_| side == Side::Payload);
    let (format, given) = match (schema, columns) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid("columns: payload-schema is given as well"));
        }
        (None, _) if message.is_some() => {
            return Err(Error::invalid(format!("{name}-message: without {name}-schema")));
        }
        (None, None) => (format, None),
        (None, Some(columns)) => {
            let format = if format == Format::Auto { Format::Json } else { format };
            if !matches!(format, Format::Json | Format::Csv) {
                return Err(Error::invalid(format!(
                    "columns: payload = \"{}\" takes none, \"json\" and \"csv\" do",
                    format.label()
                )));
            }
            let given = of_columns(&columns.0, format, depth_max)
                .map_err(|why| Error::invalid(format!("columns: {why}")))?;
            (format, Some(given))
        }
        (Some(path), None) => {
            let file = std::fs::read(path).map_err(|error| {
                let path = path.display();
                Error::invalid(format!("{name}-schema: cannot read {path}: {error}"))
            })?;
            let format = match format {
                Format::Auto => format_of(&file, message.is_some()),
                format => format,
            };
            let given = of_file(path, &file, name, format, message.as_deref(), depth_max)?;
            (format, Some(given))
        }
    };
    // What the format is was found out by the schema.
    if side == Side::Payload && !settings.timestamps.is_empty() && given.is_some() {
        match format {
            Format::Json => {}
            format => {
                return Err(Error::invalid(format!(
                    "timestamps: payload is \"{}\", not \"json\"",
                    format.label()
                )));
            }
        }
    }
    if matches!(given, Some(Given::Columns(..)))
        && format == Format::Csv
        && settings.csv_columns.is_some()
    {
        return Err(Error::invalid("csv-columns: the schema has the names of the columns"));
    }
    Ok((format, given))
}

/// What a schema is for, where nobody says it.
fn format_of(file: &[u8], has_message: bool) -> Format {
    let is_avro = || {
        serde_json::from_slice::<serde_json::Value>(file)
            .is_ok_and(|document| !schema::is_schema(&document))
    };
    if has_message {
        Format::Protobuf
    } else if !arrow_schema::is_ipc(file) && is_avro() {
        Format::Avro
    } else {
        Format::Json
    }
}

fn of_file(
    path: &Path,
    file: &[u8],
    side: &str,
    format: Format,
    message: Option<&str>,
    depth_max: usize,
) -> Result<Given> {
    let wrong = |why: &str| Error::invalid(format!("{side}-schema: {}: {why}", path.display()));
    let message = match (format, message) {
        (Format::Protobuf, None) => {
            return Err(Error::invalid(format!(
                "{side}-message: which message of {} it is",
                path.display()
            )));
        }
        (Format::Protobuf, message) | (_, message @ None) => message.unwrap_or_default(),
        (format, Some(_)) => {
            return Err(Error::invalid(format!("{side}-message: {} has none", format.label())));
        }
    };
    if matches!(format, Format::Json | Format::Csv) && arrow_schema::is_ipc(file) {
        let columns = arrow_schema::read(file).map_err(|why| wrong(&why))?;
        return of_columns(&columns, format, depth_max).map_err(|why| wrong(&why));
    }
    let text = || std::str::from_utf8(file).map_err(|_| wrong("it is not UTF-8 text"));
    match format {
        Format::Json => {
            schema::of_user(text()?, depth_max).map(Given::Json).map_err(|why| wrong(&why))
        }
        Format::Csv => Err(wrong("no Arrow schema, which is what \"csv\" takes")),
        Format::Avro => {
            AvroShape::given(text()?, []).map(Given::Avro).map_err(|error| wrong(error.message()))
        }
        Format::Protobuf => GivenMessage::new(path, text()?, message)
            .map(Given::Protobuf)
            .map_err(|error| wrong(error.message())),
        Format::Auto | Format::Raw | Format::Text | Format::Arrow => Err(Error::invalid(format!(
            "{side}-schema: {side} = \"{}\" has no schema; \"json\", \"csv\", \"avro\" and \"protobuf\" do",
            format.label()
        ))),
    }
}

fn of_columns(columns: &Fields, format: Format, depth_max: usize) -> Result<Given, String> {
    if format == Format::Csv {
        arrow_schema::flat(columns)?;
    }
    let said = arrow_schema::shape(columns, depth_max)?;
    Ok(Given::Columns(columns.clone(), said))
}
