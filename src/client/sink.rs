//! [`Sink`]: what rows are written as.

use std::io::Write as _;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_ipc::writer::{FileWriter, StreamWriter};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::output::{Broken, Output, terminal_width};
use super::table::Table;
use super::{Failure, csv, json, note};
use crate::config::flags::client::{GetFlags, GetOutput};
use crate::error::Error;

/// What a row group may take before it is written.
const ROW_GROUP_BYTES_MAX: usize = 64 << 20;

/// See the top of this file.
pub struct Sink {
    form: Form,
    broken: Broken,
    schema: SchemaRef,
}

enum Form {
    Table(Table, Output),
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
    /// The file cannot be made, or the format has no such columns.
    pub fn open(flags: &GetFlags, schema: &SchemaRef) -> Result<Self, Failure> {
        let output = match &flags.file {
            Some(path) => Output::create(path)?,
            None => Output::stdout(),
        };
        let broken = output.broken();
        let schema = schema.clone();
        let form = match flags.output() {
            GetOutput::Table => {
                let width = if flags.file.is_none() { terminal_width() } else { None };
                Form::Table(Table::new(width, !flags.columns.is_empty()), output)
            }
            GetOutput::Json => Form::Json(output),
            GetOutput::Csv => {
                let mut sink = Self { form: Form::Csv(output), broken, schema };
                let mut text = String::new();
                csv::write_header(&RecordBatch::new_empty(sink.schema.clone()), &mut text);
                sink.write_text(text.as_bytes())?;
                return Ok(sink);
            }
            GetOutput::Arrow if flags.wants_arrow_file() => {
                let writer = FileWriter::try_new(output, &schema);
                Form::ArrowFile(Box::new(writer.map_err(|error| broken.failure(&error))?))
            }
            GetOutput::Arrow => {
                let writer = StreamWriter::try_new(output, &schema);
                Form::Arrow(Box::new(writer.map_err(|error| broken.failure(&error))?))
            }
            GetOutput::Parquet => {
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
            Form::Table(table, _) => {
                let printed = table.print(batch).map_err(cannot)?;
                self.write_text(printed.text.as_bytes())?;
                if let Some(names) = printed.left_out {
                    note(&format!("no room for {}; --columns picks others", names.join(", ")));
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
            Form::Table(table, _) if table.is_new() => {
                let empty = RecordBatch::new_empty(self.schema.clone());
                let printed = table.print(&empty).map_err(cannot)?;
                self.write_text(printed.text.as_bytes())
            }
            Form::Table(_, output) | Form::Json(output) | Form::Csv(output) => {
                output.flush().map_err(|error| broken.failure(&error))
            }
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
        let (Form::Table(_, output) | Form::Json(output) | Form::Csv(output)) = &mut self.form
        else {
            return Ok(());
        };
        let written = output.write_all(text).and_then(|()| output.flush());
        written.map_err(|error| self.broken.failure(&error))
    }
}

fn cannot(error: Error) -> Failure {
    Failure::failed(format!("cannot write the rows: {error}"))
}
