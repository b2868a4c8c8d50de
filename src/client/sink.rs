//! [`Sink`]: what rows are written as.

use std::collections::HashSet;
use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_ipc::writer::{FileWriter, StreamWriter};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::output::{Broken, Output, terminal_width};
use super::table::{RowsOf, Table, is_plan, plans};
use super::{Failure, note};
use crate::config::flags::client::{OutputFlags, RowsOutput};
use crate::encode::flatten::leaves;
use crate::encode::{csv, json};
use crate::error::Error;

/// What a row group may take before it is written.
const ROW_GROUP_BYTES_MAX: usize = 64 << 20;

/// See the top of this file.
pub struct Sink {
    form: Form,
    broken: Broken,
    schema: SchemaRef,
}

/// What a table shows of its columns.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// What the rows are of.
    pub of: RowsOf,
    /// How to get those for which there is no room.
    pub hint: &'static str,
}

enum Form {
    Table(Table, &'static str, Output),
    /// A table of plans: each is a drawing of its own, for a terminal of this width.
    Plans(Option<usize>, Output),
    Json(Output),
    Csv(Output),
    Arrow(Box<StreamWriter<Output>>),
    ArrowFile(Box<FileWriter<Output>>),
    Parquet(Box<ArrowWriter<Output>>),
}

impl Sink {
    /// For rows of `schema`.
    ///
    /// # Errors
    /// The file cannot be made, or the format has no such columns; then no file is made.
    pub fn open(flags: &OutputFlags, shown: Shown, schema: &SchemaRef) -> Result<Self, Failure> {
        if flags.format() == RowsOutput::Parquet {
            check_parquet(flags, schema)?;
        }
        let output = match &flags.file {
            Some(path) => Output::create(path)?,
            None => Output::stdout(),
        };
        let broken = output.broken();
        let schema = schema.clone();
        let width = if flags.file.is_none() { terminal_width() } else { None };
        let form = match flags.format() {
            RowsOutput::Table if shown.of == RowsOf::Statement && is_plan(&schema) => {
                Form::Plans(width, output)
            }
            RowsOutput::Table => Form::Table(Table::new(width, shown.of), shown.hint, output),
            RowsOutput::Json => Form::Json(output),
            RowsOutput::Csv => {
                let mut sink = Self { form: Form::Csv(output), broken, schema };
                let mut text = String::new();
                csv::write_header(&RecordBatch::new_empty(sink.schema.clone()), &mut text);
                sink.write_text(text.as_bytes())?;
                return Ok(sink);
            }
            RowsOutput::Arrow if flags.wants_arrow_file() => {
                let writer = FileWriter::try_new(output, &schema);
                Form::ArrowFile(Box::new(writer.map_err(|error| broken.failure(&error))?))
            }
            RowsOutput::Arrow => {
                let writer = StreamWriter::try_new(output, &schema);
                Form::Arrow(Box::new(writer.map_err(|error| broken.failure(&error))?))
            }
            RowsOutput::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .build();
                let writer = ArrowWriter::try_new(output, schema.clone(), Some(properties));
                Form::Parquet(Box::new(writer.map_err(|error| broken.failure(&error))?))
            }
        };
        Ok(Self { form, broken, schema })
    }

    /// Goes on with rows of another schema; `false` where a format has no way to do so.
    pub fn change_columns(&mut self, schema: &SchemaRef) -> bool {
        let can = matches!(self.form, Form::Table(..) | Form::Json(_));
        if can {
            self.schema = schema.clone();
        }
        can
    }

    /// Writes rows; they are seen at once, except those of a Parquet file.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let broken = self.broken.clone();
        match &mut self.form {
            Form::Table(table, hint, _) => {
                let printed = table.print(batch).map_err(cannot)?;
                let hint = *hint;
                self.write_text(printed.text.as_bytes())?;
                if let Some(names) = printed.left_out {
                    note(&format!("no room for {}; {hint}", names.join(", ")));
                }
            }
            Form::Plans(width, _) => {
                let (text, is_cut) = plans(batch, *width);
                self.write_text(text.as_bytes())?;
                if is_cut {
                    note("the plan is wider than the terminal; `| less -S` shows all of it");
                }
            }
            Form::Json(_) => {
                let mut text = Vec::new();
                json::write_lines(batch, &mut text).map_err(cannot)?;
                self.write_text(&text)?;
            }
            Form::Csv(_) => {
                let mut text = String::new();
                csv::write_rows(batch, &mut text).map_err(cannot)?;
                self.write_text(text.as_bytes())?;
            }
            Form::Arrow(writer) => writer
                .write(batch)
                .and_then(|()| writer.flush())
                .map_err(|error| broken.failure(&error))?,
            Form::ArrowFile(writer) => {
                writer.write(batch).map_err(|error| broken.failure(&error))?;
            }
            Form::Parquet(writer) => {
                let mut written = writer.write(batch);
                if writer.in_progress_size() > ROW_GROUP_BYTES_MAX {
                    written = written.and_then(|()| writer.flush());
                }
                written.map_err(|error| broken.failure(&error))?;
            }
        }
        Ok(())
    }

    /// Ends the output, so that it is whole whatever happened before.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> Result<(), Failure> {
        let broken = self.broken.clone();
        match &mut self.form {
            Form::Table(table, ..) if table.is_new() => {
                let empty = RecordBatch::new_empty(self.schema.clone());
                let printed = table.print(&empty).map_err(cannot)?;
                self.write_text(printed.text.as_bytes())
            }
            Form::Table(_, _, output)
            | Form::Plans(_, output)
            | Form::Json(output)
            | Form::Csv(output) => output.flush().map_err(|error| broken.failure(&error)),
            Form::Arrow(writer) => writer
                .finish()
                .and_then(|()| writer.flush())
                .map_err(|error| broken.failure(&error)),
            Form::ArrowFile(writer) => writer
                .finish()
                .and_then(|()| writer.flush())
                .map_err(|error| broken.failure(&error)),
            Form::Parquet(writer) => {
                writer.finish().map(|_| ()).map_err(|error| broken.failure(&error))
            }
        }
    }

    fn write_text(&mut self, text: &[u8]) -> Result<(), Failure> {
        let (Form::Table(_, _, output)
        | Form::Plans(_, output)
        | Form::Json(output)
        | Form::Csv(output)) = &mut self.form
        else {
            return Ok(());
        };
        let written = output.write_all(text).and_then(|()| output.flush());
        written.map_err(|error| self.broken.failure(&error))
    }
}

/// Refuses what cannot be, before anything is asked.
///
/// # Errors
/// Says what to do.
pub fn check(flags: &OutputFlags) -> Result<(), Failure> {
    if let Some(file) = flags.file.as_deref().filter(|_| flags.is_output_unknown()) {
        let file = file.display();
        return Err(Failure::usage(format!("{file}: its name says no format, --output does")));
    }
    match flags.format() {
        RowsOutput::Parquet if flags.file.is_none() => {
            Err(Failure::usage("--output parquet needs a file, --file says which"))
        }
        RowsOutput::Arrow if flags.file.is_none() && std::io::stdout().is_terminal() => {
            Err(Failure::usage("--output arrow is not for a terminal, --file names a file"))
        }
        _ => Ok(()),
    }
}

/// Refuses columns of types that Parquet does not have. Its writer finds them out when it writes them.
fn check_parquet(flags: &OutputFlags, schema: &SchemaRef) -> Result<(), Failure> {
    let mut held = HashSet::new();
    for leaf in leaves(&RecordBatch::new_empty(schema.clone())) {
        let data_type = leaf.array.data_type();
        if held.insert(data_type.clone()) && !parquet_has(data_type) {
            let name = flags.file.as_deref().map(|file| format!("{}: ", file.display()));
            return Err(Failure::usage(format!(
                "{}column '{}' is {data_type}, which Parquet cannot hold: leave it out, cast it to another type, or take \
                 another --output",
                name.unwrap_or_default(),
                leaf.name
            )));
        }
    }
    Ok(())
}

fn parquet_has(data_type: &DataType) -> bool {
    let written = || -> parquet::errors::Result<()> {
        let schema = Arc::new(Schema::new(vec![Field::new("value", data_type.clone(), true)]));
        let row = RecordBatch::try_new(schema.clone(), vec![new_null_array(data_type, 1)])?;
        let mut writer = ArrowWriter::try_new(std::io::sink(), schema, None)?;
        writer.write(&row)?;
        writer.close().map(|_| ())
    };
    written().is_ok()
}

fn cannot(error: Error) -> Failure {
    Failure::failed(format!("cannot write the rows: {error}"))
}
