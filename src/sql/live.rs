//! Windows as tables: the table functions `live_scan('<topic>')` and `tail_scan('<topic>')`, and the snapshot that all of a
//! query's scans share.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use duckdb::core::{DataChunkHandle, LogicalTypeHandle, LogicalTypeId};
use duckdb::vtab::{BindInfo, InitInfo, TableFunctionInfo, VTab, to_duckdb_logical_type};

use super::duck::{Database, Feed};
use super::growth::fitted;
use super::types::{stored_batch, stored_schema};
use crate::error::{Error, Result};
use crate::stream::encoded::EncodedBatch;

/// The name of the function for windows.
pub const LIVE: &str = "live_scan";
/// The name of the one for what lies behind tables.
pub const TAIL: &str = "tail_scan";

/// Rows of a chunk, DuckDB's vector size.
const CHUNK_ROWS: usize = 2048;

/// Threads that one scan may occupy.
const THREADS_MAX: u64 = 4;

/// A window at one moment.
pub struct LiveTable {
    /// The columns that its batches are given.
    schema: SchemaRef,
    /// Those of the table.
    stored: SchemaRef,
    batches: Vec<Arc<EncodedBatch>>,
    /// The window's, see [`TopicStream::version`](crate::stream::topic_stream::TopicStream::version).
    version: u64,
}

impl LiveTable {
    /// `batches` in columns that hold theirs.
    pub fn new(schema: SchemaRef, batches: Vec<Arc<EncodedBatch>>, version: u64) -> Self {
        let stored = stored_schema(&schema);
        Self { schema, stored, batches, version }
    }

    /// Stands for one that cannot be had.
    fn unknown() -> Self {
        let schema = Arc::new(Schema::new(vec![Field::new("error", DataType::Utf8, true)]));
        Self::new(schema, Vec::new(), 0)
    }

    /// Its columns, as Arrow has them; the table's are [`stored_schema`] of these.
    pub fn columns(&self) -> &SchemaRef {
        &self.schema
    }

    /// The window's, when it was looked at, see [`TopicStream::version`](crate::stream::topic_stream::TopicStream::version).
    pub fn version(&self) -> u64 {
        self.version
    }

    fn rows(&self) -> usize {
        self.batches.iter().map(|batch| batch.batch.num_rows()).sum()
    }

    /// Some of its columns.
    fn fields(&self, columns: &[Option<usize>]) -> SchemaRef {
        let field =
            |column: &Option<usize>| match column.and_then(|at| self.stored.fields().get(at)) {
                Some(field) => field.clone(),
                // A row's number, which DuckDB asks for when it wants no column.
                None => Arc::new(Field::new("rowid", DataType::Int64, false)),
            };
        Arc::new(Schema::new(columns.iter().map(field).collect::<Fields>()))
    }

    /// Some rows of a batch, and of them the columns of `schema`, which are [`fields`](Self::fields) of `columns`.
    fn chunk(
        &self,
        piece: &Piece,
        columns: &[Option<usize>],
        schema: &SchemaRef,
    ) -> Result<RecordBatch> {
        let internal = |error: arrow::error::ArrowError| Error::internal(error.to_string());
        let of = self.batches.get(piece.batch).ok_or_else(|| Error::internal("no such batch"))?;
        let source = of.derived(&self.stored, || {
            stored_batch(&fitted(&of.batch, &self.schema)?, &self.stored)
        })?;
        let array = |column: &Option<usize>| match column.and_then(|at| source.columns().get(at)) {
            Some(array) => array.slice(piece.at, piece.rows),
            None => Arc::new(Int64Array::from(vec![0; piece.rows])) as ArrayRef,
        };
        let arrays = columns.iter().map(array).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(piece.rows));
        RecordBatch::try_new_with_options(schema.clone(), arrays, &options).map_err(internal)
    }

    fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (batch, of) in self.batches.iter().enumerate() {
            let rows = of.batch.num_rows();
            let starts = (0..rows).step_by(CHUNK_ROWS);
            pieces.extend(starts.map(|at| Piece { batch, at, rows: CHUNK_ROWS.min(rows - at) }));
        }
        pieces
    }
}

/// What is seen of a topic.
pub struct Tables {
    /// Its window.
    pub live: Arc<LiveTable>,
    /// What lies behind its table, if it has one; else the window.
    pub tail: Arc<LiveTable>,
}

/// All windows at one moment, by topic; or why one cannot be had.
pub type Snapshot = BTreeMap<Arc<str>, Result<Tables>>;

thread_local! {
    /// What the query of this thread sees. DuckDB binds on the thread that prepares and runs a statement.
    static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) };
}

struct Seen {
    snapshot: Arc<Snapshot>,
    /// Of the windows that were looked at.
    versions: BTreeMap<Arc<str>, u64>,
    /// Views are made, also of what cannot be had.
    is_making: bool,
    database: Arc<Database>,
}

/// Lets queries of this thread see a snapshot, until it is dropped.
pub struct Seeing(());

impl Seeing {
    /// From now on.
    pub fn begin(database: &Arc<Database>, snapshot: Arc<Snapshot>) -> Self {
        Self::of(database, snapshot, false)
    }

    /// From now on, to make views: of what cannot be had, too, which says so when it is asked.
    pub fn making(database: &Arc<Database>, snapshot: Arc<Snapshot>) -> Self {
        Self::of(database, snapshot, true)
    }

    fn of(database: &Arc<Database>, snapshot: Arc<Snapshot>, is_making: bool) -> Self {
        let (versions, database) = (BTreeMap::new(), database.clone());
        SEEN.set(Some(Seen { snapshot, versions, is_making, database }));
        Self(())
    }

    /// The windows that were looked at since, and their versions.
    pub fn versions(&self) -> BTreeMap<Arc<str>, u64> {
        SEEN.with_borrow(|seen| seen.as_ref().map(|seen| seen.versions.clone()).unwrap_or_default())
    }
}

impl Drop for Seeing {
    fn drop(&mut self) {
        SEEN.set(None);
    }
}

/// Rows that make a chunk.
struct Piece {
    batch: usize,
    at: usize,
    rows: usize,
}

/// See the top of this file. There is one for windows, and one for what lies behind tables.
pub struct LiveScan<const IS_TAIL: bool>;

/// What is scanned, and by which instance.
pub struct Bound(Arc<LiveTable>, Arc<Database>);

/// How far it is scanned.
pub struct Scanned {
    /// Of the table, in the order of the chunk; `None` is the row's number.
    columns: Vec<Option<usize>>,
    schema: SchemaRef,
    feed: Feed,
    pieces: Vec<Piece>,
    next: AtomicUsize,
}

impl<const IS_TAIL: bool> VTab for LiveScan<IS_TAIL> {
    type BindData = Bound;
    type InitData = Scanned;

    fn bind(bind: &BindInfo) -> Result<Bound, Box<dyn std::error::Error>> {
        let topic = bind.get_parameter(0).to_string();
        let (table, database) = SEEN.with_borrow_mut(|seen| {
            let seen = seen.as_mut().ok_or("live_scan outside of a query")?;
            let database = seen.database.clone();
            let found = seen.snapshot.get_key_value(topic.as_str());
            let (topic, tables) = match found {
                Some((topic, Ok(tables))) => (topic, tables),
                _ if seen.is_making => return Ok((Arc::new(LiveTable::unknown()), database)),
                Some((topic, Err(error))) => return Err(format!("topic '{topic}': {error}")),
                None => return Err(format!("topic '{topic}' is no stream")),
            };
            seen.versions.insert(topic.clone(), tables.live.version());
            let table = if IS_TAIL { &tables.tail } else { &tables.live };
            Ok::<_, String>((table.clone(), database))
        })?;
        for field in table.stored.fields() {
            bind.add_result_column(field.name(), to_duckdb_logical_type(field.data_type())?);
        }
        bind.set_cardinality(table.rows() as u64, true);
        Ok(Bound(table, database))
    }

    fn init(init: &InitInfo) -> Result<Scanned, Box<dyn std::error::Error>> {
        let bound = init.get_bind_data::<Bound>();
        // SAFETY: DuckDB keeps what bind gave it for as long as the scan lives, and nobody changes it.
        let Bound(table, database) = unsafe { &*bound };
        let known = table.stored.fields().len();
        let column = |at: u64| usize::try_from(at).ok().filter(|at| *at < known);
        let columns: Vec<_> = init.get_column_indices().into_iter().map(column).collect();
        let schema = table.fields(&columns);
        let feed = Feed::new(database, &schema)?;
        let pieces = table.pieces();
        init.set_max_threads((pieces.len() as u64).clamp(1, THREADS_MAX));
        Ok(Scanned { columns, schema, feed, pieces, next: AtomicUsize::new(0) })
    }

    fn func(
        func: &TableFunctionInfo<Self>,
        output: &mut DataChunkHandle,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let (table, scanned) = (&func.get_bind_data().0, func.get_init_data());
        let next = scanned.next.fetch_add(1, Ordering::Relaxed);
        let Some(piece) = scanned.pieces.get(next) else {
            output.set_len(0);
            return Ok(());
        };
        let chunk = table.chunk(piece, &scanned.columns, &scanned.schema)?;
        Ok(scanned.feed.fill(&chunk, output)?)
    }

    fn supports_pushdown() -> bool {
        true
    }

    fn parameters() -> Option<Vec<LogicalTypeHandle>> {
        Some(vec![LogicalTypeHandle::from(LogicalTypeId::Varchar)])
    }
}
