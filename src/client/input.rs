//! [`read`]: a file or stdin as batches of messages.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::str::Utf8Error;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::error::ArrowError;
use arrow_ipc::reader::{FileReader, StreamReader};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::reader::ChunkReader;
use serde::de::IgnoredAny;
use tokio::sync::mpsc::Sender;

use super::Failure;
use crate::config::flags::client::{PutFlags, PutInput, time};

/// Messages of a batch.
const ROWS_MAX: usize = 1_000;

/// Bytes of a batch, unless it has one message only.
const BYTES_MAX: usize = 1 << 20;

/// Read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// How an Arrow IPC file begins; a stream does not.
const FILE_MAGIC: &[u8] = b"ARROW1";

/// How files begin that are taken for Arrow, and what is to be said of them.
const OTHER_MAGICS: [(&[u8], &str); 2] = [
    (b"PAR1", "it is a Parquet file, for --input parquet"),
    (b"FEA1", "it is a Feather file of version 1; version 2 is Arrow and can be read"),
];

const NO_UTF_8: &str = "it is no UTF-8; --input says what else it is: arrow or parquet";

/// What a cell is made of that has nothing in it, so that it differs from `""`; no text has this byte.
const NOTHING: u8 = 0xff;

/// Batches that wait to be sent; or why there are no more.
pub type Batches = Sender<Result<RecordBatch, Failure>>;

/// Reads the file, or stdin where that is `-`. What it has is handed out before it waits for more, and before it fails.
/// Blocks.
pub fn read(flags: &PutFlags, batches: &Batches) {
    let (name, file) = match flags.file == Path::new("-") {
        true => ("stdin".to_owned(), io::stdin().as_fd().try_clone_to_owned().map(File::from)),
        false => (flags.file.display().to_string(), File::open(&flags.file)),
    };
    let columns = flags.columns.as_slice();
    // If nobody takes it, nobody wants to know.
    let fail = |failure| drop(batches.blocking_send(Err(failure)));
    let send = |batch: RecordBatch| {
        if batch.num_rows() == 0 {
            return Sent::Taken;
        }
        match picked(batch, columns) {
            Ok(batch) => match batches.blocking_send(Ok(batch)) {
                Ok(()) => Sent::Taken,
                Err(_) => Sent::Unwanted,
            },
            Err(why) => {
                fail(Failure::usage(format!("--columns: {name} {why}")));
                Sent::Unwanted
            }
        }
    };
    let done = file.map_err(|error| error.to_string()).and_then(|file| {
        let source = BufReader::with_capacity(BUFFER_BYTES, file);
        match flags.input() {
            PutInput::Json => json(source, send),
            PutInput::Csv => csv(source, columns, send),
            PutInput::Arrow => arrow(source, send),
            PutInput::Parquet => parquet_file(source.into_inner(), send),
        }
    });
    if let Err(why) = done {
        fail(Failure::failed(format!("{name}: {why}")));
    }
}

/// The wanted columns, all if none is named.
fn picked(batch: RecordBatch, columns: &[String]) -> Result<RecordBatch, String> {
    if columns.is_empty() {
        return Ok(batch);
    }
    let fields = batch.schema_ref().fields();
    if let Some(missing) = columns.iter().find(|name| fields.find(name).is_none()) {
        let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
        return Err(format!("has no column '{missing}'; it has {}", names.join(", ")));
    }
    let wanted: Vec<usize> = (0..)
        .zip(fields)
        .filter(|(_, field)| columns.contains(field.name()))
        .map(|(nth, _)| nth)
        .collect();
    batch.project(&wanted).map_err(|error| error.to_string())
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq)]
enum Sent {
    Taken,
    /// Nobody wants more.
    Unwanted,
}

/// Each line is a message.
fn json<R: Read>(
    mut source: BufReader<R>,
    mut send: impl FnMut(RecordBatch) -> Sent,
) -> Result<(), String> {
    let mut rows: Vec<String> = Vec::new();
    let mut bytes = 0;
    let mut line = Vec::new();
    let mut number: u64 = 0;
    let done = loop {
        line.clear();
        number += 1;
        match source.read_until(b'\n', &mut line) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error.to_string()),
        }
        match message(&line) {
            Ok(None) => {}
            Ok(Some(text)) => {
                bytes += text.len();
                rows.push(text.to_owned());
            }
            Err(why) => break Err(format!("line {number}: {why}")),
        }
        if rows.len() >= ROWS_MAX || bytes >= BYTES_MAX || source.buffer().is_empty() {
            bytes = 0;
            if send(payloads(std::mem::take(&mut rows))?) == Sent::Unwanted {
                return Ok(());
            }
        }
    };
    send(payloads(rows)?);
    done
}

/// The message of a line, as it is; `None` for an empty line.
fn message(line: &[u8]) -> Result<Option<&str>, String> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = std::str::from_utf8(line).map_err(|_| NO_UTF_8.to_owned())?;
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => Ok(Some(text)),
        Err(error) => {
            // Its own words end with a line of the text, which is always 1.
            let why = error.to_string();
            let why = why.split(" at line ").next().unwrap_or_default();
            Err(format!(
                "it is no JSON: {why} at character {}; --input takes csv, arrow and parquet, too",
                error.column()
            ))
        }
    }
}

fn payloads(rows: Vec<String>) -> Result<RecordBatch, String> {
    let column: ArrayRef = Arc::new(StringArray::from(rows));
    RecordBatch::try_from_iter([("payload", column)]).map_err(|error| error.to_string())
}

/// Each line but the first is a message; its columns are text, except those of which Kafka wants a number.
fn csv<R: Read>(
    source: BufReader<R>,
    columns: &[String],
    mut send: impl FnMut(RecordBatch) -> Sent,
) -> Result<(), String> {
    let source = Marked { source, at: At::Line, ready: VecDeque::new() };
    let mut reader = csv::ReaderBuilder::new().from_reader(source);
    let header = reader.byte_headers().map_err(|error| error.to_string())?;
    let mut names = Vec::new();
    for name in header {
        let name = text(name).map_err(|_| format!("line 1: {NO_UTF_8}"))?.unwrap_or_default();
        names.push(name.strip_prefix('\u{feff}').unwrap_or(name).to_owned());
    }
    let mut known = HashSet::new();
    if let Some(name) = names.iter().find(|name| !known.insert(name.as_str())) {
        return Err(format!("line 1: the column '{name}' is there twice"));
    }
    if names.is_empty() {
        return Ok(());
    }
    let is_wanted = |name: &str| columns.is_empty() || columns.iter().any(|column| column == name);
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut done = Ok(());
    for record in reader.into_byte_records() {
        let record = match record
            .map_err(|error| error.to_string())
            .and_then(|record| check(&names, &record, is_wanted).map(|()| record))
        {
            Ok(record) => record,
            Err(why) => {
                done = Err(why);
                break;
            }
        };
        bytes += record.as_slice().len();
        rows.push(record);
        if rows.len() >= ROWS_MAX || bytes >= BYTES_MAX {
            bytes = 0;
            if send(batch_of(&names, &std::mem::take(&mut rows))?) == Sent::Unwanted {
                return Ok(());
            }
        }
    }
    send(batch_of(&names, &rows)?);
    done
}

/// CSV with [`NOTHING`] in the cells that have nothing: the reader does not tell them from `""`.
struct Marked<R> {
    source: BufReader<R>,
    at: At,
    ready: VecDeque<u8>,
}

/// What comes before a byte of CSV.
#[derive(Clone, Copy, PartialEq)]
enum At {
    /// The end of a line, or nothing at all. An empty line has no cells.
    Line,
    /// A comma.
    Comma,
    /// A cell without quotes.
    Plain,
    /// What is in quotes.
    Quoted,
    /// A quote in what is in quotes: its end, or the first half of a quote.
    Quote,
}

impl<R: Read> Read for Marked<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() {
            let bytes = self.source.fill_buf()?;
            let len = bytes.len();
            for byte in bytes {
                let next = match (self.at, byte) {
                    (At::Quoted, b'"') => At::Quote,
                    (At::Quoted, _) | (At::Line | At::Comma | At::Quote, b'"') => At::Quoted,
                    (_, b',') => At::Comma,
                    (_, b'\n' | b'\r') => At::Line,
                    _ => At::Plain,
                };
                let is_nothing = match next {
                    At::Comma => matches!(self.at, At::Line | At::Comma),
                    At::Line => self.at == At::Comma,
                    _ => false,
                };
                // One that is there already is doubled, so that it stays what it is: no text.
                if is_nothing || *byte == NOTHING {
                    self.ready.push_back(NOTHING);
                }
                self.ready.push_back(*byte);
                self.at = next;
            }
            if len == 0 && std::mem::replace(&mut self.at, At::Line) == At::Comma {
                self.ready.push_back(NOTHING);
            }
            self.source.consume(len);
        }
        self.ready.read(out)
    }
}

/// What is in a cell, if there is anything.
fn text(cell: &[u8]) -> Result<Option<&str>, Utf8Error> {
    match cell {
        [NOTHING] => Ok(None),
        cell => std::str::from_utf8(cell).map(Some),
    }
}

fn check(
    names: &[String],
    record: &csv::ByteRecord,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<(), String> {
    let line = record.position().map_or(0, csv::Position::line);
    for (name, cell) in names.iter().zip(record).filter(|(name, _)| is_wanted(name)) {
        let value =
            text(cell).map_err(|_| format!("line {line}: {name}: {NO_UTF_8}"))?.unwrap_or_default();
        let is_right = match name.as_str() {
            "partition" => partition(value).is_some(),
            "timestamp" => timestamp(value).is_some(),
            _ => true,
        };
        if !is_right {
            return Err(format!("line {line}: {name}: '{value}' is no {name}"));
        }
    }
    Ok(())
}

/// `Some(None)` where the producer chooses one.
fn partition(value: &str) -> Option<Option<i32>> {
    match value {
        "" => Some(None),
        value => value.parse().ok().filter(|partition| *partition >= 0).map(Some),
    }
}

/// `Some(None)` where it is the time of the producer.
fn timestamp(value: &str) -> Option<Option<i64>> {
    match value {
        "" => Some(None),
        value => value.parse().ok().or_else(|| time(value)).filter(|millis| *millis >= 0).map(Some),
    }
}

fn batch_of(names: &[String], rows: &[csv::ByteRecord]) -> Result<RecordBatch, String> {
    let column = |(nth, name): (usize, &String)| -> (String, ArrayRef) {
        let values = rows.iter().map(|row| text(row.get(nth)?).ok()?);
        let array: ArrayRef = match name.as_str() {
            "partition" => Arc::new(values.map(|value| partition(value?)?).collect::<Int32Array>()),
            "timestamp" => Arc::new(values.map(|value| timestamp(value?)?).collect::<Int64Array>()),
            _ => Arc::new(values.collect::<StringArray>()),
        };
        (name.clone(), array)
    };
    RecordBatch::try_from_iter_with_nullable(
        names.iter().enumerate().map(column).map(|(name, array)| (name, array, true)),
    )
    .map_err(|error| error.to_string())
}

/// A stream or a file.
fn arrow<R: Read>(
    mut source: BufReader<R>,
    mut send: impl FnMut(RecordBatch) -> Sent,
) -> Result<(), String> {
    let begin = source.fill_buf().map_err(|error| error.to_string())?;
    if let Some((_, what)) = OTHER_MAGICS.iter().find(|(magic, _)| begin.starts_with(magic)) {
        return Err((*what).to_owned());
    }
    match begin.starts_with(FILE_MAGIC) {
        true => {
            // It is read from its end.
            let mut bytes = Vec::new();
            source.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
            let reader = FileReader::try_new(Cursor::new(bytes), None);
            send_all(reader.map_err(|error| format!("no Arrow file: {error}"))?, &mut send)
        }
        false => {
            let reader = StreamReader::try_new(source, None);
            send_all(reader.map_err(|error| format!("no Arrow stream: {error}"))?, &mut send)
        }
    }
}

fn send_all(
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
    send: &mut impl FnMut(RecordBatch) -> Sent,
) -> Result<(), String> {
    for (nth, batch) in batches.enumerate() {
        let batch = batch.map_err(|error| format!("batch {nth}: {error}"))?;
        if send(batch) == Sent::Unwanted {
            break;
        }
    }
    Ok(())
}

/// It is read from its end, so what cannot be read twice is read into memory.
fn parquet_file(mut file: File, send: impl FnMut(RecordBatch) -> Sent) -> Result<(), String> {
    if file.metadata().is_ok_and(|about| about.is_file()) {
        return parquet(file, send);
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    parquet(Bytes::from(bytes), send)
}

/// Rows as they are read, page by page.
fn parquet(
    source: impl ChunkReader + 'static,
    mut send: impl FnMut(RecordBatch) -> Sent,
) -> Result<(), String> {
    let wrong = |error: &dyn std::fmt::Display| format!("no Parquet file: {error}");
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(source).map_err(|error| wrong(&error))?;
    // Said before anything is sent.
    let groups = builder.metadata().row_groups();
    let mut compressions =
        groups.iter().flat_map(|group| group.columns()).map(|it| it.compression());
    if compressions.any(|it| it == Compression::LZO) {
        return Err("its columns are compressed with LZO, which cannot be read".to_owned());
    }
    let reader = builder.with_batch_size(ROWS_MAX).build().map_err(|error| wrong(&error))?;
    send_all(reader, &mut send)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Int32Type, Int64Type};
    use arrow_ipc::writer::{FileWriter, StreamWriter};
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::WriterProperties;

    use super::*;

    fn batches(
        read: impl FnOnce(&mut dyn FnMut(RecordBatch) -> Sent) -> Result<(), String>,
    ) -> (Vec<RecordBatch>, Result<(), String>) {
        let mut found = Vec::new();
        let done = read(&mut |batch| {
            found.push(batch);
            Sent::Taken
        });
        found.retain(|batch| batch.num_rows() > 0);
        (found, done)
    }

    fn texts(batches: &[RecordBatch]) -> Vec<String> {
        let columns = batches.iter().flat_map(|batch| batch.column(0).as_string::<i32>());
        columns.map(|text| text.expect("no null").to_owned()).collect()
    }

    #[test]
    fn json_lines_are_sent_as_they_are() {
        let text = b"{\"a\": 1.50}\r\n\n[1,2]\n \"x\"\n12345678901234567890";
        let (found, done) = batches(|send| json(BufReader::new(&text[..]), send));
        assert_eq!(done, Ok(()));
        assert_eq!(texts(&found), ["{\"a\": 1.50}", "[1,2]", " \"x\"", "12345678901234567890"]);
    }

    #[test]
    fn a_line_that_is_no_json_is_named_and_those_before_it_are_sent() {
        for (text, rows, why) in [
            (
                &b"{}\n{}\n{\"a\":}\n{}\n"[..],
                2,
                "line 3: it is no JSON: expected value at character 6; --input takes csv, arrow and parquet, too",
            ),
            (
                b"{} {}\n",
                0,
                "line 1: it is no JSON: trailing characters at character 4; --input takes csv, arrow and parquet, too",
            ),
            (
                b"1\n\xff\n",
                1,
                "line 2: it is no UTF-8; --input says what else it is: arrow or parquet",
            ),
        ] {
            let (found, done) = batches(|send| json(BufReader::new(text), send));
            assert_eq!((texts(&found).len(), done), (rows, Err(why.to_owned())));
        }
    }

    #[test]
    fn many_lines_are_many_batches() {
        let text = "{}\n".repeat(2 * ROWS_MAX + 1);
        let (found, done) = batches(|send| json(BufReader::new(text.as_bytes()), send));
        let sizes: Vec<usize> = found.iter().map(RecordBatch::num_rows).collect();
        assert_eq!(done, Ok(()));
        assert!(sizes.iter().sum::<usize>() == 2 * ROWS_MAX + 1 && sizes.len() > 2, "{sizes:?}");
        let mut calls = 0;
        let done = json(BufReader::new(text.as_bytes()), |_| {
            calls += 1;
            Sent::Unwanted
        });
        assert_eq!((done, calls), (Ok(()), 1));
    }

    #[test]
    fn csv_has_text_and_what_kafka_wants() {
        let text = "\u{feff}key,a,partition,timestamp\nk,\"x\n,y\",1,2023-11-14T22:13:20Z\n,,,5\n";
        let (found, done) = batches(|send| csv(BufReader::new(text.as_bytes()), &[], send));
        assert_eq!(done, Ok(()));
        let [batch] = found.as_slice() else { panic!("one batch: {found:?}") };
        assert_eq!(batch.column_by_name("key").expect("a key").as_string::<i32>().value(0), "k");
        assert_eq!(batch.column(1).as_string::<i32>().value(0), "x\n,y");
        let partitions = batch.column(2).as_primitive::<Int32Type>();
        assert!(partitions.value(0) == 1 && partitions.is_null(1));
        let times = batch.column(3).as_primitive::<Int64Type>();
        assert_eq!(times.values(), &[1_700_000_000_000, 5]);
        for (text, rows, why) in [
            (
                "a,b\n1,2\n3\n",
                1,
                "CSV error: record 2 (line: 3, byte: 8): found record with 1 fields, but the previous record has 2 fields",
            ),
            ("a,a\n1,2\n", 0, "line 1: the column 'a' is there twice"),
            ("partition\n-1\n", 0, "line 2: partition: '-1' is no partition"),
        ] {
            let (found, done) = batches(|send| csv(BufReader::new(text.as_bytes()), &[], send));
            let found = found.iter().map(RecordBatch::num_rows).sum::<usize>();
            assert_eq!((found, done), (rows, Err(why.to_owned())));
        }
    }

    #[test]
    fn an_empty_cell_is_nothing_and_quotes_are_an_empty_text() {
        for (text, expected) in [
            ("a,b\n,\"\"\n\"\",\n,", "-|.  .|-  -|-"),
            ("a,b\r\n\r\n,x\r\nx,\r\n", "-|x  x|-"),
            ("a,b\r,x\r\"\",\"\"", "-|x  .|."),
            // Commas and ends of lines in quotes are no cells, and quotes are text elsewhere.
            ("a,b\n\",,\n\n\",\"\"\"\"\nx\",\",\"\"\"\n", ",,\n\n|\"  x\"|,\""),
            ("a\n\"\"\n\nx\n", ".  x"),
        ] {
            let (found, done) = batches(|send| csv(BufReader::new(text.as_bytes()), &[], send));
            assert_eq!(done, Ok(()), "{text}");
            let shown = |value: Option<&str>| match value {
                None => "-".to_owned(),
                Some("") => ".".to_owned(),
                Some(text) => text.to_owned(),
            };
            let rows: Vec<String> = (0..found[0].num_rows())
                .map(|row| {
                    let cells = found[0].columns().iter().map(|column| {
                        let column = column.as_string::<i32>();
                        shown(column.is_valid(row).then(|| column.value(row)))
                    });
                    cells.collect::<Vec<_>>().join("|")
                })
                .collect();
            assert_eq!(rows.join("  "), expected, "{text}");
        }
        for text in [&b"a,b\n1,\xff\n"[..], b"a,b\n\xff,1\n", b"a\n\xe4\n"] {
            let (_, done) = batches(|send| csv(BufReader::new(text), &[], send));
            assert!(done.is_err_and(|why| why.contains("it is no UTF-8")), "{text:?}");
        }
    }

    #[test]
    fn columns_are_picked_in_their_order() {
        let text = "a,partition,b\n1,x,2\n";
        let names = ["b", "a"].map(str::to_owned);
        let (found, done) = batches(|send| csv(BufReader::new(text.as_bytes()), &names, send));
        assert_eq!(done, Ok(()), "a partition that is not wanted may be anything");
        let batch = picked(found[0].clone(), &names).expect("both are there");
        let found: Vec<&String> = batch.schema_ref().fields().iter().map(|it| it.name()).collect();
        assert_eq!(found, ["a", "b"]);
        let why = picked(batch, &["c".to_owned()]).expect_err("no such column");
        assert_eq!(why, "has no column 'c'; it has a, b");
    }

    #[test]
    fn parquet_is_read_in_batches() {
        let rows = 2 * ROWS_MAX + 1;
        let batch = payloads(vec!["a".to_owned(); rows]).expect("a batch");
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::BROTLI(Default::default()),
            Compression::LZ4,
            Compression::LZ4_RAW,
            Compression::ZSTD(Default::default()),
        ] {
            let properties = WriterProperties::builder().set_compression(compression).build();
            let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))
                .expect("a writer");
            writer.write(&batch).expect("written");
            let bytes = Bytes::from(writer.into_inner().expect("bytes"));
            let (found, done) = batches(|send| parquet(bytes.clone(), send));
            let sizes: Vec<usize> = found.iter().map(RecordBatch::num_rows).collect();
            assert_eq!((sizes, done), (vec![ROWS_MAX, ROWS_MAX, 1], Ok(())));
            let (_, done) = batches(|send| arrow(BufReader::new(&bytes[..]), send));
            assert_eq!(done, Err("it is a Parquet file, for --input parquet".to_owned()));
        }
        let (_, done) = batches(|send| parquet(Bytes::from_static(b"{}\n"), send));
        assert!(done.is_err_and(|why| why.starts_with("no Parquet file: ")));
        let (_, done) = batches(|send| arrow(BufReader::new(&b"FEA1...."[..]), send));
        assert!(done.is_err_and(|why| why.contains("Feather file of version 1")));
    }

    #[test]
    fn arrow_is_a_stream_or_a_file() {
        let batch = payloads(vec!["a".to_owned(), "b".to_owned()]).expect("a batch");
        let mut stream = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a stream");
        let mut file = FileWriter::try_new(Vec::new(), &batch.schema()).expect("a file");
        for _ in 0..2 {
            stream.write(&batch).expect("written");
            file.write(&batch).expect("written");
        }
        for bytes in [stream.into_inner().expect("bytes"), file.into_inner().expect("bytes")] {
            let (found, done) = batches(|send| arrow(BufReader::new(&bytes[..]), send));
            assert_eq!((found.len(), done), (2, Ok(())));
        }
        let (_, done) = batches(|send| arrow(BufReader::new(&b"{}\n"[..]), send));
        assert!(done.is_err_and(|why| why.starts_with("no Arrow stream: ")));
    }
}
