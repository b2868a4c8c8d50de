//! [`RowsWriter`]: batches in one of several forms, piece by piece.

use std::str::FromStr;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_ipc::writer::StreamWriter;

use super::csv::{write_header, write_rows};
use super::json::write_lines;
use crate::error::{Error, Result};

/// A form of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowsFormat {
    /// A JSON array of objects.
    Json,
    /// JSON objects, a line each.
    NdJson,
    /// CSV with a header (RFC 4180).
    Csv,
    /// An Arrow IPC stream.
    Arrow,
}

impl RowsFormat {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Json, Self::NdJson, Self::Csv, Self::Arrow];

    /// What users call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::NdJson => "ndjson",
            Self::Csv => "csv",
            Self::Arrow => "arrow",
        }
    }
}

impl FromStr for RowsFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|format| name.eq_ignore_ascii_case(format.name()));
        found.ok_or_else(|| {
            Error::invalid(format!("'{name}' is no format, try json, ndjson, csv or arrow"))
        })
    }
}

/// See the top of this file.
pub struct RowsWriter {
    form: Form,
}

enum Form {
    Json { is_first: bool },
    NdJson,
    Csv,
    Arrow(Box<StreamWriter<Vec<u8>>>),
}

impl RowsWriter {
    /// For rows of `schema`, and what comes before them.
    ///
    /// # Errors
    /// A type that the format does not have.
    pub fn begin(format: RowsFormat, schema: &SchemaRef) -> Result<(Self, Vec<u8>)> {
        let mut out = Vec::new();
        let form = match format {
            RowsFormat::Json => {
                out.push(b'[');
                Form::Json { is_first: true }
            }
            RowsFormat::NdJson => Form::NdJson,
            RowsFormat::Csv => {
                let mut text = String::new();
                write_header(&RecordBatch::new_empty(schema.clone()), &mut text);
                out = text.into_bytes();
                Form::Csv
            }
            RowsFormat::Arrow => {
                let mut writer = StreamWriter::try_new(Vec::new(), schema).map_err(cannot)?;
                out = std::mem::take(writer.get_mut());
                Form::Arrow(Box::new(writer))
            }
        };
        Ok((Self { form }, out))
    }

    /// Some rows.
    ///
    /// # Errors
    /// A type that the format does not have.
    pub fn write(&mut self, rows: &RecordBatch) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        match &mut self.form {
            Form::Json { is_first } => {
                let mut lines = Vec::new();
                write_lines(rows, &mut lines)?;
                // A line's end is the only one: in a text it is escaped.
                for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    if !std::mem::take(is_first) {
                        out.push(b',');
                    }
                    out.extend_from_slice(line);
                }
            }
            Form::NdJson => write_lines(rows, &mut out)?,
            Form::Csv => {
                let mut text = String::new();
                write_rows(rows, &mut text)?;
                out = text.into_bytes();
            }
            Form::Arrow(writer) => {
                writer.write(rows).map_err(cannot)?;
                out = std::mem::take(writer.get_mut());
            }
        }
        Ok(out)
    }

    /// What comes after the last rows.
    ///
    /// # Errors
    /// A failure of ours.
    pub fn end(mut self) -> Result<Vec<u8>> {
        Ok(match &mut self.form {
            Form::Json { .. } => b"]\n".to_vec(),
            Form::NdJson | Form::Csv => Vec::new(),
            Form::Arrow(writer) => {
                writer.finish().map_err(cannot)?;
                std::mem::take(writer.get_mut())
            }
        })
    }
}

fn cannot(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("Arrow IPC: {error}"))
}
