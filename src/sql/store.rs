//! [`Store`]: topics as tables in DuckDB's file. Rows and the offsets behind them are one transaction, so a row is there
//! exactly once, whatever is killed.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use arrow_ipc::convert::{IpcSchemaEncoder, try_fb_to_schema};
use arrow_ipc::root_as_schema;
use duckdb::{OptionalExt, params};
use parking_lot::{Mutex, RwLock};

use super::duck::{Connection, Database, failure};
use super::growth::{Step, Turned, Values, changes, fitted, grown, is_wide_in, turned, wide_rows};
use super::tail::Pending;
use super::types::{quoted, stored_batch, stored_schema, type_in_sql};
use crate::error::{Error, ErrorKind, Result};
use crate::stream::encoded::EncodedBatch;
use crate::stream::window::Positions;

/// The file's name among the databases of a query.
pub const DATABASE: &str = "stored";

/// What karrow has to know of its tables.
const TABLES: &str = "
    create schema if not exists stored._karrow;
    create table if not exists stored._karrow.topics (
        topic varchar primary key, table_name varchar not null, arrow_schema blob not null);
    create table if not exists stored._karrow.offsets (
        topic varchar, \"partition\" integer, next_offset bigint not null,
        primary key (topic, \"partition\"));
";

/// Rows whose space comes free together (DuckDB's row group). Fewer of them free nothing.
const GROUP_ROWS: u64 = 122_880;

/// See the top of this file.
pub struct Store {
    /// One writes at a time.
    writer: Mutex<duckdb::Connection>,
    database: Arc<Database>,
    tables: RwLock<Tables>,
    commits: AtomicU64,
    /// What sinks have read and not stored yet, by topic.
    pending: Mutex<HashMap<Arc<str>, Pending>>,
    /// Where each topic goes on, as `positions` asks it of the file.
    nexts: Mutex<Nexts>,
    /// Where the file is.
    path: PathBuf,
    /// Why the file is to be opened again: DuckDB gives it up when it cannot write its log into it, and what it holds of it in
    /// memory is wrong after a commit that found none.
    lost: Mutex<Option<Error>>,
}

/// By topic.
pub type Nexts = HashMap<Arc<str>, Positions>;

/// By topic.
pub type Tables = HashMap<Arc<str>, Table>;

/// A topic's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The topic's name, unless another one differs from it in upper and lower case only.
    pub name: String,
    /// As Arrow has them; the table's are [`stored_schema`] of these.
    pub columns: SchemaRef,
}

impl Table {
    /// SQL that finds a row of it with a value in `column`.
    pub fn values_of(&self, column: &str) -> String {
        let column = quoted(column);
        format!("select 1 from {} where {column} is not null limit 1", self.in_sql())
    }

    /// SQL that finds a row of it with an integer beyond ±2^53 at `path`, if it has integers there.
    pub fn wide_rows(&self, path: &[Step]) -> Option<String> {
        wide_rows(&self.in_sql(), &self.columns, path)
    }

    /// Its whole name.
    pub fn in_sql(&self) -> String {
        format!("{DATABASE}.main.{}", quoted(&self.name))
    }
}

impl Store {
    /// The tables of a database that is attached as [`DATABASE`].
    ///
    /// # Errors
    /// It cannot be written, or its tables are not ours.
    pub fn open(database: &Arc<Database>) -> Result<Self> {
        let connection = database.crate_connection()?;
        connection.execute_batch(TABLES).map_err(failed)?;
        let (tables, nexts) = noted(&connection)?;
        let sql = "select path from duckdb_databases() where database_name = 'stored'";
        let path = connection.query_row(sql, [], |row| row.get::<_, Option<String>>(0));
        Ok(Self {
            writer: Mutex::new(connection),
            database: database.clone(),
            tables: RwLock::new(tables),
            commits: AtomicU64::new(0),
            pending: Mutex::default(),
            nexts: Mutex::new(nexts),
            path: PathBuf::from(path.map_err(failed)?.unwrap_or_default()),
            lost: Mutex::default(),
        })
    }

    /// Why the file is not open at this moment; whoever writes next tries to open it again.
    pub fn lost(&self) -> Option<Error> {
        self.lost.lock().clone()
    }

    /// Does something with the connection that writes.
    fn write<T>(&self, work: impl FnOnce(&duckdb::Connection) -> Result<T>) -> Result<T> {
        let mut writer = self.writer.lock();
        if self.lost().is_some() {
            self.open_again(&mut writer)?;
        }
        let worked = work(&writer);
        if let Err(error) = &worked
            && is_invalidated(error)
        {
            self.give_up(error);
        }
        worked
    }

    /// Nothing more is written before the file is opened again.
    fn give_up(&self, why: &Error) {
        tracing::error!(error = %why, "what DuckDB holds of its file is no good, which is opened again");
        *self.lost.lock() = Some(why.clone());
    }

    /// DuckDB keeps a file that it has given up as it was after the last commit, and lets it be attached again, once nothing
    /// holds it any more: it makes sure of that itself.
    fn open_again(&self, writer: &mut duckdb::Connection) -> Result<()> {
        let (tables, nexts) = self.attach_again(writer).map_err(|error| {
            let what = match error.message().contains("must be restarted") {
                true => {
                    "DuckDB has failed for good, restart karrow; nothing that was stored is lost"
                }
                false => "DuckDB opens it again, once it has memory and no query holds it",
            };
            let why = format!("{}: {what}: {}", self.path.display(), error.message());
            let error = Error::new(ErrorKind::Unavailable, why);
            *self.lost.lock() = Some(error.clone());
            error
        })?;
        *self.tables.write() = tables;
        *self.nexts.lock() = nexts;
        self.commits.fetch_add(1, Ordering::Release);
        *self.lost.lock() = None;
        tracing::info!("DuckDB has opened its file again");
        Ok(())
    }

    fn attach_again(&self, writer: &mut duckdb::Connection) -> Result<(Tables, Nexts)> {
        // Statements that were prepared before hold what is to be closed.
        *writer = self.database.crate_connection()?;
        // It may be detached already, and queries still hold it.
        let _ = writer.execute_batch(&format!("detach {DATABASE}"));
        let path = self.path.display().to_string().replace('\'', "''");
        writer.execute_batch(&format!("attach '{path}' as {DATABASE}")).map_err(failed)?;
        noted(writer)
    }

    /// The tables, by topic.
    pub fn tables(&self) -> HashMap<Arc<str>, Table> {
        self.tables.read().clone()
    }

    /// How often anything was stored since it was opened.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Acquire)
    }

    /// What the sink of `topic` has read and not stored yet; `None` while it does not run.
    pub fn pending(&self, topic: &str) -> Option<Pending> {
        self.pending.lock().get(topic).cloned()
    }

    /// The sink of `topic` is at `at`, and has nothing that is not stored; with `None` it does not run.
    pub fn place(&self, topic: &Arc<str>, at: Option<Positions>) {
        let mut pending = self.pending.lock();
        match at {
            Some(ends) => pending.insert(topic.clone(), Pending { batches: Vec::new(), ends }),
            None => pending.remove(topic),
        };
    }

    /// The sink of `topic` has read a batch, after which it is at `ends`.
    pub fn hold(&self, topic: &str, batch: &Arc<EncodedBatch>, ends: &Positions) {
        if let Some(pending) = self.pending.lock().get_mut(topic) {
            pending.batches.push(batch.clone());
            pending.ends = ends.clone();
        }
    }

    /// The first `count` batches that the sink of `topic` has read are stored.
    pub fn release(&self, topic: &str, count: usize) {
        if let Some(pending) = self.pending.lock().get_mut(topic) {
            pending.batches.drain(..count.min(pending.batches.len()));
        }
    }

    /// Where each partition of `topic` goes on; `None` if nothing of it is stored.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn positions(&self, topic: &str) -> Result<Option<Positions>> {
        self.write(|writer| positions(writer, topic))
    }

    /// Where `topic` goes on, without asking the file; `None` if nothing of it is stored.
    pub fn next(&self, topic: &str) -> Option<Positions> {
        self.nexts.lock().get(topic).cloned()
    }

    /// Where each topic goes on, that anything is stored of, without asking the file.
    pub fn nexts(&self) -> Nexts {
        self.nexts.lock().clone()
    }

    fn goes_on_at(&self, topic: &Arc<str>, ends: &Positions) {
        let mut nexts = self.nexts.lock();
        let next = nexts.entry(topic.clone()).or_default();
        ends.iter().for_each(|(partition, offset)| next.set(partition, offset));
    }

    /// Whether a transaction that `connection` has begun sees these tables, and, where that counts, what they held after so many
    /// commits. From then on it does. Blocks.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn is_seen(
        &self,
        connection: &Connection,
        tables: &Tables,
        commits: Option<u64>,
    ) -> Result<bool> {
        let now = self.tables.read();
        if *now != *tables || commits.is_some_and(|commits| commits != self.commits()) {
            return Ok(false);
        }
        // What a transaction sees of a database is decided when it looks at that first.
        connection.execute("from stored._karrow.topics limit 0")?;
        Ok(true)
    }

    /// Makes the table of `topic` if it has none, and lets it go on at `starts`. Blocks.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn create(&self, topic: &Arc<str>, columns: &SchemaRef, starts: &Positions) -> Result<()> {
        self.change(|writer, tables| {
            let table = table(writer, tables, topic, columns)?;
            go_on_at(writer, topic, starts)?;
            Ok(Some((topic.clone(), table)))
        })?;
        self.goes_on_at(topic, starts);
        Ok(())
    }

    /// Stores rows of `topic`, after which it goes on at `ends`: all of it, or nothing; nothing, too, if it is there already.
    /// Returns what has become text for it. Blocks.
    ///
    /// # Errors
    /// DuckDB's, such as a full disk.
    pub fn append(
        &self,
        topic: &Arc<str>,
        batches: &[RecordBatch],
        ends: &Positions,
    ) -> Result<Vec<Turned>> {
        let mut turned = Vec::new();
        self.change(|writer, tables| {
            // DuckDB may have said that a transaction failed whose rows are there.
            let is_done = positions(writer, topic)?.is_some_and(|at| at.covers(ends));
            if is_done && !batches.is_empty() {
                return Ok(None);
            }
            go_on_at(writer, topic, ends)?;
            let Some(first) = batches.first() else { return Ok(None) };
            let mut table = table(writer, tables, topic, &first.schema())?;
            turned = widen(writer, topic, &mut table, batches)?;
            let stored = stored_schema(&table.columns);
            let names: Vec<&str> =
                stored.fields().iter().map(|field| field.name().as_str()).collect();
            let mut appender = writer
                .appender_with_columns_to_catalog_and_db(&table.name, DATABASE, "main", &names)
                .map_err(failed)?;
            for batch in batches {
                let batch = stored_batch(&fitted(batch, &table.columns)?, &stored)?;
                appender.append_record_batch(batch).map_err(failed)?;
            }
            appender.flush().map_err(failed)?;
            drop(appender);
            Ok(Some((topic.clone(), table)))
        })?;
        self.goes_on_at(topic, ends);
        Ok(turned)
    }

    /// Writes what is in the log behind the file into the file. Blocks.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn checkpoint(&self) -> Result<()> {
        self.write(|writer| writer.execute_batch("checkpoint stored").map_err(failed))
    }

    /// Lets rows go that are older than `age_max` by their timestamps, and while the file has more than `bytes_max` the oldest
    /// ones of the largest table, as many as free space together; the last of these stay. Returns how many rows have gone. Blocks.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn retain(&self, age_max: Option<Duration>, bytes_max: Option<usize>) -> Result<u64> {
        let mut gone = 0;
        if let Some(age_max) = age_max {
            let micros = i64::try_from(age_max.as_micros()).unwrap_or(i64::MAX);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let before = i64::try_from(now.as_micros()).unwrap_or(i64::MAX).saturating_sub(micros);
            gone +=
                self.delete(|_| format!("\"timestamp\" < make_timestamp({before})::timestamptz"))?;
        }
        let Some(bytes_max) = bytes_max else { return Ok(gone) };
        self.checkpoint()?;
        let mut bytes = self.bytes()?;
        while bytes > bytes_max as u64 {
            let Some((table, rows)) = self.largest()? else { break };
            if rows < 2 * GROUP_ROWS {
                break;
            }
            let name = quoted(&table.name);
            let oldest = format!(
                "delete from stored.main.{name} where rowid in \
                 (select rowid from stored.main.{name} order by rowid limit {GROUP_ROWS})"
            );
            gone += self.execute(&oldest)?;
            self.commits.fetch_add(1, Ordering::Release);
            // The first one makes blocks free, the second one counts them.
            self.checkpoint()?;
            self.checkpoint()?;
            let before = std::mem::replace(&mut bytes, self.bytes()?);
            if bytes >= before {
                // Somebody still sees those rows; deleting more of them frees nothing either.
                break;
            }
        }
        Ok(gone)
    }

    /// The table with the most rows.
    fn largest(&self) -> Result<Option<(Table, u64)>> {
        let mut largest: Option<(Table, u64)> = None;
        for table in self.tables().into_values() {
            let sql = format!("select count(*) from stored.main.{}", quoted(&table.name));
            let rows = self.write(|writer| {
                writer.query_row(&sql, [], |row| row.get::<_, u64>(0)).map_err(failed)
            });
            // A table that cannot be read keeps no other from being looked after.
            let Ok(rows) = rows else { continue };
            if largest.as_ref().is_none_or(|(_, most)| rows > *most) {
                largest = Some((table, rows));
            }
        }
        Ok(largest)
    }

    /// Lets go of the rows of each table that a condition holds for.
    fn delete(&self, condition: impl Fn(&str) -> String) -> Result<u64> {
        let (mut gone, mut failure) = (0, None);
        for table in self.tables().into_values() {
            let name = quoted(&table.name);
            let sql = format!("delete from stored.main.{name} where {}", condition(&name));
            // A table that cannot be written keeps no other from being looked after.
            match self.execute(&sql) {
                Ok(rows) => gone += rows,
                Err(error) => failure = Some(error),
            }
        }
        if gone > 0 {
            self.commits.fetch_add(1, Ordering::Release);
        }
        match failure {
            Some(error) if gone == 0 => Err(error),
            _ => Ok(gone),
        }
    }

    /// Runs a statement; returns how many rows it has changed.
    fn execute(&self, sql: &str) -> Result<u64> {
        self.write(|writer| {
            let changed = writer.execute(sql, []).map(|rows| rows as u64).map_err(failed);
            // It commits as well, see `change`.
            if let Err(error) = &changed
                && error.kind() == ErrorKind::Exhausted
            {
                self.give_up(error);
            }
            changed
        })
    }

    /// Bytes of the file that are in use.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn bytes(&self) -> Result<u64> {
        let sql = "select (used_blocks * block_size)::bigint from pragma_database_size() where database_name = 'stored'";
        let bytes = self
            .write(|writer| writer.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(failed));
        bytes.map(|bytes| u64::try_from(bytes).unwrap_or(0))
    }

    /// Bytes of the file, and of the log behind it, on the disk.
    pub fn bytes_on_disk(&self) -> u64 {
        let mut log = self.path.clone().into_os_string();
        log.push(".wal");
        let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        bytes(&self.path) + bytes(Path::new(&log))
    }

    /// Does something in a transaction, after which a table may be another one.
    fn change(
        &self,
        change: impl FnOnce(&duckdb::Connection, &Tables) -> Result<Option<(Arc<str>, Table)>>,
    ) -> Result<()> {
        self.write(|writer| {
            // Whatever has happened, it must not go on in a transaction.
            let _ = writer.execute_batch("rollback");
            writer.execute_batch("begin transaction").map_err(failed)?;
            let tables = self.tables.read().clone();
            let changed = change(writer, &tables).and_then(|table| {
                // With the lock, so that nobody who begins to read sees one of them without the other, see `is_seen`.
                let mut tables = self.tables.write();
                let committed = writer.execute_batch("commit").map_err(failed);
                if let Err(error) = &committed
                    && error.kind() == ErrorKind::Exhausted
                {
                    // DuckDB 2.0 takes the rows back, but not out of each of their columns, where they would stand in the
                    // place of the next ones. The file has none of it.
                    self.give_up(error);
                }
                committed?;
                tables.extend(table);
                self.commits.fetch_add(1, Ordering::Release);
                Ok(())
            });
            if changed.is_err() {
                // What was begun may have ended with its failure.
                let _ = writer.execute_batch("rollback");
            }
            changed
        })
    }
}

/// Whether DuckDB has given a database up, which is a matter of its texts alone.
fn is_invalidated(error: &Error) -> bool {
    error.message().contains("has been invalidated")
}

/// What a file says of its tables.
fn noted(connection: &duckdb::Connection) -> Result<(Tables, Nexts)> {
    let mut tables = HashMap::new();
    let sql = "select topic, table_name, arrow_schema from stored._karrow.topics";
    let mut known = connection.prepare(sql).map_err(failed)?;
    let mut rows = known.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let topic: String = row.get(0).map_err(failed)?;
        let name: String = row.get(1).map_err(failed)?;
        let schema: Vec<u8> = row.get(2).map_err(failed)?;
        let columns = schema_of(&schema).map_err(|why| {
            Error::invalid(format!("stored._karrow.topics: topic '{topic}': {why}"))
        })?;
        tables.insert(Arc::from(topic), Table { name, columns });
    }
    let mut nexts: HashMap<Arc<str>, BTreeMap<i32, i64>> = HashMap::new();
    let sql = "select topic, \"partition\", next_offset from stored._karrow.offsets";
    let mut known = connection.prepare(sql).map_err(failed)?;
    let mut rows = known.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let topic: String = row.get(0).map_err(failed)?;
        let (partition, next) = (row.get(1).map_err(failed)?, row.get(2).map_err(failed)?);
        nexts.entry(Arc::from(topic)).or_default().insert(partition, next);
    }
    let nexts = nexts.into_iter().map(|(topic, next)| (topic, Positions::named(&next)));
    Ok((tables, nexts.collect()))
}

fn positions(writer: &duckdb::Connection, topic: &str) -> Result<Option<Positions>> {
    let sql = "select \"partition\", next_offset from stored._karrow.offsets where topic = ?";
    let mut stored = writer.prepare_cached(sql).map_err(failed)?;
    let mut rows = stored.query(params![topic]).map_err(failed)?;
    let mut positions = BTreeMap::new();
    while let Some(row) = rows.next().map_err(failed)? {
        positions.insert(row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
    }
    Ok((!positions.is_empty()).then(|| Positions::named(&positions)))
}

fn go_on_at(writer: &duckdb::Connection, topic: &str, ends: &Positions) -> Result<()> {
    let sql = "insert or replace into stored._karrow.offsets values (?, ?, ?)";
    let mut next = writer.prepare_cached(sql).map_err(failed)?;
    for (partition, offset) in ends.iter() {
        next.execute(params![topic, partition, offset]).map_err(failed)?;
    }
    Ok(())
}

/// The table of `topic`, which is made if there is none.
fn table(
    writer: &duckdb::Connection,
    tables: &Tables,
    topic: &str,
    columns: &SchemaRef,
) -> Result<Table> {
    if let Some(table) = tables.get(topic) {
        return Ok(table.clone());
    }
    let numbered = (1..).map(|number| format!("{topic}_{number}"));
    let mut names = std::iter::once(topic.to_owned()).chain(numbered);
    let is_free =
        |name: &String| tables.values().all(|table| !table.name.eq_ignore_ascii_case(name));
    let name = names.find(is_free).unwrap_or_else(|| topic.to_owned());
    let table = Table { name, columns: columns.clone() };
    let definition = |field: &Arc<arrow::datatypes::Field>| {
        Ok(format!("{} {}", quoted(field.name()), type_in_sql(field.data_type())?))
    };
    let stored = stored_schema(&table.columns);
    let definitions: Vec<String> = stored.fields().iter().map(definition).collect::<Result<_>>()?;
    let (name, definitions) = (quoted(&table.name), definitions.join(", "));
    writer
        .execute_batch(&format!("create table stored.main.{name} ({definitions})"))
        .map_err(failed)?;
    note(writer, topic, &table)?;
    Ok(table)
}

/// What the table says of its values, and the batches say of theirs that are about to be in it.
struct Stored<'a> {
    writer: &'a duckdb::Connection,
    table: &'a Table,
    batches: &'a [RecordBatch],
}

impl Stored<'_> {
    fn has(&self, sql: &str) -> Result<bool> {
        let found = self.writer.query_row(sql, [], |row| row.get::<_, i32>(0)).optional();
        Ok(found.map_err(failed)?.is_some())
    }
}

impl Values for Stored<'_> {
    fn is_empty(&mut self, column: &str) -> Result<bool> {
        Ok(!self.has(&self.table.values_of(column))?)
    }

    fn is_wide(&mut self, path: &[Step]) -> Result<bool> {
        if self.batches.iter().any(|batch| is_wide_in(batch, path)) {
            return Ok(true);
        }
        let rows = self.table.wide_rows(path);
        rows.map_or(Ok(false), |sql| self.has(&sql))
    }
}

/// Gives the table the columns of the batches, too; returns what has become text.
fn widen(
    writer: &duckdb::Connection,
    topic: &str,
    table: &mut Table,
    batches: &[RecordBatch],
) -> Result<Vec<Turned>> {
    let name = quoted(&table.name);
    let mut all_turned = Vec::new();
    for batch in batches {
        let comes = |column: &str| {
            batch.column_by_name(column).is_some_and(|values| values.null_count() < values.len())
        };
        let mut values = Stored { writer, table, batches };
        let columns = grown(&table.columns, batch.schema_ref(), comes, &mut values)?;
        if columns == table.columns {
            continue;
        }
        for change in changes(&table.columns, &columns)? {
            writer
                .execute_batch(&format!("alter table stored.main.{name} {change}"))
                .map_err(failed)?;
        }
        all_turned.extend(turned(&table.columns, batch.schema_ref(), &columns));
        table.columns = columns;
        note(writer, topic, table)?;
    }
    Ok(all_turned)
}

fn note(writer: &duckdb::Connection, topic: &str, table: &Table) -> Result<()> {
    let schema = IpcSchemaEncoder::new().schema_to_fb(&table.columns);
    let sql = "insert or replace into stored._karrow.topics values (?, ?, ?)";
    writer
        .execute(sql, params![topic, table.name, schema.finished_data()])
        .map(|_| ())
        .map_err(failed)
}

fn schema_of(bytes: &[u8]) -> Result<SchemaRef> {
    let wrong = |error: &dyn std::fmt::Display| Error::invalid(format!("no Arrow schema: {error}"));
    let schema = root_as_schema(bytes).map_err(|error| wrong(&error))?;
    let schema: Schema = try_fb_to_schema(schema).map_err(|error| wrong(&error))?;
    Ok(Arc::new(schema))
}

fn failed(error: duckdb::Error) -> Error {
    match error {
        duckdb::Error::DuckDBFailure(_, why) => failure(why),
        other => failure(Some(other.to_string())),
    }
}
