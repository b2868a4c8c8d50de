//! [`read`]: a file or stdin as batches of messages.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_ipc::reader::{FileReader, StreamReader};
use serde::de::IgnoredAny;
use tokio::sync::mpsc::Sender;

use super::Failure;
use crate::config::flags::client::{PlaceFlag, PutInput};

/// Messages of a batch.
const ROWS_MAX: usize = 1_000;

/// Bytes of a batch, unless it has one message only.
const BYTES_MAX: usize = 1 << 20;

/// Read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// How an Arrow IPC file begins; a stream does not.
const FILE_MAGIC: &[u8] = b"ARROW1";

/// Batches that wait to be sent; or why there are no more.
pub type Batches = Sender<Result<RecordBatch, Failure>>;

/// Reads `path`, or stdin where it is `-`. What it has is handed out before it waits for more, and before it fails.
/// Blocks.
pub fn read(input: PutInput, path: &Path, batches: &Batches) {
    let (name, source): (String, io::Result<Box<dyn Read>>) = match path == Path::new("-") {
        true => ("stdin".to_owned(), Ok(Box::new(io::stdin()))),
        false => {
            let file = File::open(path).map(|file| Box::new(file) as Box<dyn Read>);
            (path.display().to_string(), file)
        }
    };
    let send = |batch: RecordBatch| match batch.num_rows() {
        0 => Sent::Taken,
        _ if batches.blocking_send(Ok(batch)).is_ok() => Sent::Taken,
        _ => Sent::Unwanted,
    };
    let done = source.map_err(|error| error.to_string()).and_then(|source| {
        let source = BufReader::with_capacity(BUFFER_BYTES, source);
        match input {
            PutInput::Json => json(source, send),
            PutInput::Csv => csv(source, send),
            PutInput::Arrow => arrow(source, send),
        }
    });
    if let Err(why) = done {
        // If nobody takes it, nobody wants to know.
        let _ = batches.blocking_send(Err(Failure::failed(format!("{name}: {why}"))));
    }
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
    let text = std::str::from_utf8(line).map_err(|_| "it is no UTF-8".to_owned())?;
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => Ok(Some(text)),
        Err(error) => {
            // Its own words end with a line of the text, which is always 1.
            let why = error.to_string();
            let why = why.split(" at line ").next().unwrap_or_default();
            Err(format!("it is no JSON: {why} at character {}", error.column()))
        }
    }
}

fn payloads(rows: Vec<String>) -> Result<RecordBatch, String> {
    let column: ArrayRef = Arc::new(StringArray::from(rows));
    RecordBatch::try_from_iter([("payload", column)]).map_err(|error| error.to_string())
}

/// Each line but the first is a message; its columns are text, except those of which Kafka wants a number.
fn csv<R: Read>(source: R, mut send: impl FnMut(RecordBatch) -> Sent) -> Result<(), String> {
    let mut reader = csv::ReaderBuilder::new().from_reader(source);
    let header = reader.headers().map_err(|error| error.to_string())?;
    let names: Vec<String> = header
        .iter()
        .map(|name| name.strip_prefix('\u{feff}').unwrap_or(name).to_owned())
        .collect();
    let mut known = HashSet::new();
    if let Some(name) = names.iter().find(|name| !known.insert(name.as_str())) {
        return Err(format!("line 1: the column '{name}' is there twice"));
    }
    if names.is_empty() {
        return Ok(());
    }
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut done = Ok(());
    for record in reader.into_records() {
        let record = match record
            .map_err(|error| error.to_string())
            .and_then(|record| check_numbers(&names, &record).map(|()| record))
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
            if send(columns(&names, &std::mem::take(&mut rows))?) == Sent::Unwanted {
                return Ok(());
            }
        }
    }
    send(columns(&names, &rows)?);
    done
}

fn check_numbers(names: &[String], record: &csv::StringRecord) -> Result<(), String> {
    for (name, value) in names.iter().zip(record) {
        let is_right = match name.as_str() {
            "partition" => partition(value).is_some(),
            "timestamp" => timestamp(value).is_some(),
            _ => true,
        };
        if !is_right {
            let line = record.position().map_or(0, csv::Position::line);
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
    match (value, value.parse()) {
        ("", _) => Some(None),
        (_, Ok(PlaceFlag::Time(millis))) => Some(Some(millis)),
        _ => None,
    }
}

fn columns(names: &[String], rows: &[csv::StringRecord]) -> Result<RecordBatch, String> {
    let column = |(nth, name): (usize, &String)| -> (String, ArrayRef) {
        let values = rows.iter().map(|row| row.get(nth).unwrap_or_default());
        let array: ArrayRef = match name.as_str() {
            "partition" => Arc::new(values.map(|value| partition(value)?).collect::<Int32Array>()),
            "timestamp" => Arc::new(values.map(|value| timestamp(value)?).collect::<Int64Array>()),
            _ => Arc::new(StringArray::from_iter_values(values)),
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
    let is_file = source.fill_buf().map_err(|error| error.to_string())?.starts_with(FILE_MAGIC);
    let mut send_all = |batches: &mut dyn Iterator<Item = Result<RecordBatch, _>>| {
        for (nth, batch) in batches.enumerate() {
            let batch =
                batch.map_err(|error: arrow::error::ArrowError| format!("batch {nth}: {error}"))?;
            if send(batch) == Sent::Unwanted {
                break;
            }
        }
        Ok(())
    };
    match is_file {
        true => {
            // It is read from its end.
            let mut bytes = Vec::new();
            source.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
            let reader = FileReader::try_new(Cursor::new(bytes), None);
            send_all(&mut reader.map_err(|error| format!("no Arrow file: {error}"))?)
        }
        false => {
            let reader = StreamReader::try_new(source, None);
            send_all(&mut reader.map_err(|error| format!("no Arrow stream: {error}"))?)
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Int32Type, Int64Type};
    use arrow_ipc::writer::{FileWriter, StreamWriter};

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
                "line 3: it is no JSON: expected value at character 6",
            ),
            (b"{} {}\n", 0, "line 1: it is no JSON: trailing characters at character 4"),
            (b"1\n\xff\n", 1, "line 2: it is no UTF-8"),
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
        let (found, done) = batches(|send| csv(text.as_bytes(), send));
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
            let (found, done) = batches(|send| csv(text.as_bytes(), send));
            let found = found.iter().map(RecordBatch::num_rows).sum::<usize>();
            assert_eq!((found, done), (rows, Err(why.to_owned())));
        }
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
