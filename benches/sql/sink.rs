//! What karrow stores beside what DuckDB's appender does with the same batches: the same transactions, to the end of a
//! checkpoint, each into a file of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Float64Array, Int32Array, Int64Array, ListArray,
    RecordBatch, StringArray, StructArray, TimestampMillisecondArray, new_null_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use karrow::sql::duck::Database;
use karrow::sql::store::Store;
use karrow::sql::types::{stored_schema, type_in_sql};
use karrow::stream::window::Positions;

use crate::Result;
use crate::common::spread;

const TOPIC: &str = "bench";

/// Batches of a transaction, and transactions of a run.
const BATCHES: usize = 12;
const TRANSACTIONS: usize = 16;

/// Rows of a batch, as streams cut them by default.
const ROWS: usize = 8192;

pub fn measure(dir: &Path, rounds: usize) -> Result<()> {
    let transactions: Vec<Vec<RecordBatch>> = (0..TRANSACTIONS)
        .map(|nth| (0..BATCHES).map(|at| batch(nth * BATCHES + at)).collect())
        .collect();
    let rows = (TRANSACTIONS * BATCHES * ROWS) as f64;
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let ours = || timed(dir, |file| store(file, &transactions));
        let other = || timed(dir, |file| append(file, &transactions));
        let (ours, other) = if round % 2 == 0 {
            let ours = ours()?;
            (ours, other()?)
        } else {
            let other = other()?;
            (ours()?, other)
        };
        eprintln!("sink {round}/{rounds}: karrow {ours:?}, appender {other:?}");
        if round > 0 {
            ratios.push(other.as_secs_f64() / ours.as_secs_f64());
            rates.push(rows / ours.as_secs_f64());
        }
    }
    println!(
        "sink ÷ DuckDB's appender: rate {}; {} rows/s",
        spread(&mut ratios, 2),
        spread(&mut rates, 0)
    );
    Ok(())
}

fn timed(dir: &Path, run: impl FnOnce(&Path) -> Result<u64>) -> Result<Duration> {
    let file = dir.join("sink.duckdb");
    let began = Instant::now();
    let rows = run(&file)?;
    let took = began.elapsed();
    if rows != (TRANSACTIONS * BATCHES * ROWS) as u64 {
        return Err(format!("the table has {rows} rows"));
    }
    for name in ["sink.duckdb", "sink.duckdb.wal"] {
        let _ = std::fs::remove_file(dir.join(name));
    }
    Ok(took)
}

/// With karrow's offsets and look at the columns.
fn store(file: &Path, transactions: &[Vec<RecordBatch>]) -> Result<u64> {
    let failed = |why: karrow::error::Error| why.to_string();
    let database = Database::in_memory(&[]).map_err(failed)?;
    let connection = database.connect().map_err(failed)?;
    connection.execute(&format!("attach '{}' as stored", file.display())).map_err(failed)?;
    let store = Store::open(&database).map_err(failed)?;
    let topic: Arc<str> = TOPIC.into();
    for (nth, batches) in (1..).zip(transactions) {
        let ends = Positions::new(vec![nth * (BATCHES * ROWS) as i64]);
        store.append(&topic, batches, &ends).map_err(failed)?;
    }
    store.checkpoint().map_err(failed)?;
    let count = database.crate_connection().map_err(failed)?;
    count
        .query_row("select count(*) from stored.bench", [], |row| row.get(0))
        .map_err(|why| why.to_string())
}

/// With the appender alone.
fn append(file: &Path, transactions: &[Vec<RecordBatch>]) -> Result<u64> {
    let failed = |why: duckdb::Error| why.to_string();
    let connection = duckdb::Connection::open(file).map_err(failed)?;
    let schema = transactions[0][0].schema();
    let columns: Vec<String> = stored_schema(&schema)
        .fields()
        .iter()
        .map(|field| {
            let of = type_in_sql(field.data_type()).map_err(|why| why.to_string())?;
            Ok(format!("\"{}\" {of}", field.name()))
        })
        .collect::<Result<_>>()?;
    connection
        .execute_batch(&format!("create table bench ({})", columns.join(", ")))
        .map_err(failed)?;
    for batches in transactions {
        connection.execute_batch("begin transaction").map_err(failed)?;
        let mut appender = connection.appender(TOPIC).map_err(failed)?;
        for batch in batches {
            appender.append_record_batch(batch.clone()).map_err(failed)?;
        }
        appender.flush().map_err(failed)?;
        drop(appender);
        connection.execute_batch("commit").map_err(failed)?;
    }
    connection.execute_batch("checkpoint").map_err(failed)?;
    connection.query_row("select count(*) from bench", [], |row| row.get(0)).map_err(failed)
}

/// A batch as a topic of JSON has it.
fn batch(number: usize) -> RecordBatch {
    let first = (number * ROWS) as i64;
    let each = || first..first + ROWS as i64;
    let payload = StructArray::from(vec![
        (field("id", DataType::Int64), Arc::new(Int64Array::from_iter_values(each())) as ArrayRef),
        (
            field("symbol", DataType::Utf8),
            Arc::new(StringArray::from_iter_values(each().map(|n| format!("SYM{}", 10 + n % 90)))),
        ),
        (
            field("price", DataType::Float64),
            Arc::new(Float64Array::from_iter_values(each().map(|n| n as f64 / 8.0))),
        ),
        (
            field("open", DataType::Boolean),
            Arc::new(BooleanArray::from_iter(each().map(|n| Some(n % 2 == 0)))),
        ),
    ]);
    let header = Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Binary, true),
    ]);
    let item = Arc::new(Field::new("item", DataType::Struct(header), false));
    let none = new_null_array(item.data_type(), 0);
    let headers = ListArray::new(item, OffsetBuffer::from_repeated_length(0, ROWS), none, None);
    let error = DataType::Struct(Fields::from(vec![
        Field::new("message", DataType::Utf8, true),
        Field::new("key", DataType::Binary, true),
        Field::new("payload", DataType::Binary, true),
    ]));
    let times = TimestampMillisecondArray::from_iter_values(each().map(|n| 1_700_000_000_000 + n));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("topic", Arc::new(StringArray::from_iter_values(each().map(|_| TOPIC)))),
        ("partition", Arc::new(Int32Array::from(vec![0; ROWS]))),
        ("offset", Arc::new(Int64Array::from_iter_values(each()))),
        ("timestamp", Arc::new(times.with_timezone("UTC"))),
        ("key", Arc::new(BinaryArray::from_iter_values(each().map(|n| n.to_string())))),
        ("headers", Arc::new(headers)),
        ("payload", Arc::new(payload)),
        ("error", new_null_array(&error, ROWS)),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, column)| Field::new(*name, column.data_type().clone(), true))
        .collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a batch")
}

fn field(name: &str, data_type: DataType) -> Arc<Field> {
    Arc::new(Field::new(name, data_type, true))
}
