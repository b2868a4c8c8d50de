//! [`Engine`]: queries over windows (and, once something is stored, over tables), each with limits of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, SchemaRef};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::catalog::Catalog;
use super::duck::{Connection, Database, Interrupter, Kind, Parameter, Prepared, class, located};
use super::forbidden::{Forbidden, not_reading};
use super::live::{LIVE, LiveScan, Seeing, TAIL};
use super::plain::{plain_batch, plain_schema};
use super::store::{DATABASE, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;
use crate::stream::blocking;
use crate::stream::streams::Streams;

/// Batches of an answer that wait to be taken.
const ANSWER_BATCHES_MAX: usize = 16;

/// Rows of a batch of an answer, about; DuckDB's own have 2,048 at most.
const ROWS_MAX: usize = 8192;

/// Time between two tries to stop a query whose time is up.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// How often a query is planned anew because the columns of a topic have changed meanwhile.
const PLANS_MAX: usize = 5;

/// What queries may use.
#[derive(Clone, Debug)]
pub struct SqlLimits {
    /// Bytes of memory, of all queries together.
    pub memory_bytes_max: usize,
    /// Threads of all queries together.
    pub threads: usize,
    /// How long one may run.
    pub time_max: Duration,
    /// How many run at once; others wait.
    pub queries_max: usize,
}

/// A query's parameters.
#[derive(Clone, Debug, Default)]
pub enum Parameters {
    /// None.
    #[default]
    None,
    /// Those of `?` and `$1`, in their order.
    Positional(Vec<Parameter>),
    /// Those of `$name`.
    Named(BTreeMap<String, Parameter>),
}

/// An answer on its way. Who drops it stops the query.
pub struct Answer {
    /// The columns.
    pub schema: SchemaRef,
    /// What it depends on.
    pub origin: Origin,
    said: mpsc::Receiver<Result<Said>>,
    _stopper: Stopper,
}

/// What an answer depends on: it is the same as long as this is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Versions of the windows that were looked at.
    windows: BTreeMap<Arc<str>, u64>,
    /// What was stored.
    commits: u64,
}

/// What is known of a statement before it runs.
#[derive(Clone, Debug)]
pub struct Described {
    /// Its columns; `None`, if they depend on parameters.
    pub schema: Option<SchemaRef>,
    /// The names of its parameters in their order; those of `?` are numbers.
    pub parameters: Vec<String>,
    /// Their types, as far as they are known.
    pub types: Vec<Option<DataType>>,
}

impl Answer {
    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// DuckDB's, or the query has run for too long.
    pub async fn next(&mut self) -> Option<Result<RecordBatch>> {
        match self.said.recv().await? {
            Ok(Said::Rows(rows)) => Some(Ok(rows)),
            Ok(Said::Columns(..)) => Some(Err(Error::internal("columns come first"))),
            Err(error) => Some(Err(error)),
        }
    }
}

/// Stops a query that nobody waits for any more.
struct Stopper(Arc<Running>);

impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.is_unwanted.store(true, Ordering::Release);
        self.0.unwanted.notify_one();
    }
}

/// What a query has to say: its columns, then rows.
enum Said {
    Columns(SchemaRef, Origin),
    Rows(RecordBatch),
}

/// A query that runs.
struct Running {
    /// `None` before it has a connection, and after that.
    interrupter: Mutex<Option<Interrupter>>,
    clock: Mutex<Clock>,
    /// Its client has gone.
    is_unwanted: AtomicBool,
    unwanted: Notify,
}

/// The time that a query has used. While its client takes rows it uses none.
struct Clock {
    spent: Duration,
    /// `None`, while it waits for its client.
    since: Option<Instant>,
    is_up: bool,
}

impl Running {
    fn new() -> Arc<Self> {
        let clock = Clock { spent: Duration::ZERO, since: Some(Instant::now()), is_up: false };
        Arc::new(Self {
            interrupter: Mutex::default(),
            clock: Mutex::new(clock),
            is_unwanted: AtomicBool::new(false),
            unwanted: Notify::new(),
        })
    }

    fn stop(&self) {
        if let Some(interrupter) = &*self.interrupter.lock() {
            interrupter.interrupt();
        }
    }

    fn spent(&self) -> Duration {
        let clock = self.clock.lock();
        clock.spent + clock.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Does what costs no time of the query's.
    fn pause<T>(&self, wait: impl FnOnce() -> T) -> T {
        let spent = self.spent();
        *self.clock.lock() = Clock { spent, since: None, is_up: false };
        let waited = wait();
        self.clock.lock().since = Some(Instant::now());
        waited
    }

    /// Stops it when it has used so much time, or nobody waits for it.
    async fn watch(self: Arc<Self>, time_max: Duration) {
        loop {
            let left = time_max.saturating_sub(self.spent());
            let is_unwanted = self.is_unwanted.load(Ordering::Acquire);
            if left.is_zero() {
                self.clock.lock().is_up = true;
            }
            if left.is_zero() || is_unwanted {
                self.stop();
                // It may be between two statements, where there is nothing to stop.
                tokio::time::sleep(WATCH_INTERVAL).await;
                continue;
            }
            let _ = tokio::time::timeout(left, self.unwanted.notified()).await;
        }
    }

    /// Nobody waits for it.
    fn is_unwanted(&self) -> bool {
        self.is_unwanted.load(Ordering::Acquire)
    }
}

/// See the top of this file.
pub struct Engine {
    database: Arc<Database>,
    catalog: Catalog,
    forbidden: Forbidden,
    idle: Mutex<Vec<Connection>>,
    places: Arc<Semaphore>,
    limits: SqlLimits,
    metrics: Arc<Metrics>,
    runtime: Handle,
}

impl Engine {
    /// A DuckDB of its own, which keeps what is stored in `file`.
    ///
    /// # Errors
    /// DuckDB does not open, or the file is none of its, or somebody else has it.
    pub fn open(
        streams: Arc<Streams>,
        file: Option<&Path>,
        limits: SqlLimits,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Result<Arc<Self>> {
        let memory = format!("{}B", limits.memory_bytes_max);
        let threads = limits.threads.to_string();
        let settings = [
            ("max_memory", memory.as_str()),
            ("threads", &threads),
            // What does not fit into the memory is an error, and nothing that fills a disk.
            ("temp_directory", ""),
            ("autoinstall_known_extensions", "false"),
            ("autoload_known_extensions", "false"),
        ];
        let database = Database::in_memory(&settings)?;
        let connection = database.connect()?;
        let forbidden = Forbidden::new(&connection)?;
        connection.execute("attach ':memory:' as live")?;
        // Times are shown as they are stored. A DuckDB without ICU has no other zone.
        let _ = connection.execute("set global TimeZone = 'UTC'");
        let functions = database.crate_connection()?;
        let registered = functions
            .register_table_function::<LiveScan<false>>(LIVE)
            .and_then(|()| functions.register_table_function::<LiveScan<true>>(TAIL));
        registered.map_err(|error| Error::internal(error.to_string()))?;
        drop(functions);
        let store = file.map(|file| attached(&database, &connection, file)).transpose()?;
        // From here on no query reaches files, or this.
        connection.execute("set enable_external_access = false")?;
        connection.execute("set lock_configuration = true")?;
        Ok(Arc::new(Self {
            database,
            catalog: Catalog::new(streams, store.map(Arc::new)),
            forbidden,
            idle: Mutex::new(vec![connection]),
            places: Arc::new(Semaphore::new(limits.queries_max)),
            limits,
            metrics,
            runtime,
        }))
    }

    /// What is stored, if anything is.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.catalog.store()
    }

    /// Whether an answer with this origin would be the same now.
    pub fn is_current(&self, origin: &Origin) -> bool {
        let is_seen = |(topic, seen): (&Arc<str>, &u64)| self.catalog.version(topic) == Some(*seen);
        origin.commits == self.catalog.commits() && origin.windows.iter().all(is_seen)
    }

    /// Checks a statement whose tables may not be there yet.
    ///
    /// # Errors
    /// It is none that reads, or its syntax is wrong.
    pub async fn check(self: &Arc<Self>, sql: String) -> Result<()> {
        match self.describe(sql.clone()).await {
            // Of a topic of which nothing was seen, neither the table nor its columns are known.
            Err(error) if is_of_a_table(&error) => {
                tracing::debug!(%error, "a query whose tables are not there yet");
                let engine = self.clone();
                blocking(move || engine.with_connection(|connection| is_a_select(connection, &sql)))
                    .await
            }
            described => described.map(|_| ()),
        }
    }

    /// What is known of a statement before it runs.
    ///
    /// # Errors
    /// It is none that reads, or none at all.
    pub async fn describe(self: &Arc<Self>, sql: String) -> Result<Described> {
        self.planned(move |engine, connection| engine.described(connection, &sql)).await
    }

    fn described(&self, connection: &Connection, sql: &str) -> Result<Described> {
        let _seeing = self.begin(connection)?;
        let prepared = self.reading(connection, sql)?;
        let schema = prepared.schema()?.map(|schema| plain_schema(&schema));
        let (parameters, types) = (prepared.parameters(), prepared.parameter_types()?);
        Ok(Described { schema, parameters, types })
    }

    /// The columns that a statement has with these parameters.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn columns(
        self: &Arc<Self>,
        sql: String,
        parameters: Parameters,
    ) -> Result<SchemaRef> {
        self.planned(move |engine, connection| engine.columns_of(connection, &sql, &parameters))
            .await
    }

    /// Does what only plans, for as long as a query may run.
    async fn planned<T: Send + 'static>(
        self: &Arc<Self>,
        plan: impl Fn(&Self, &Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let running = Running::new();
        let watch = self.runtime.spawn(running.clone().watch(self.limits.time_max));
        let _stopper = Stopper(running.clone());
        let (engine, watch) = (self.clone(), AbortOnDropHandle::new(watch));
        let planned = move || {
            let _held = watch;
            let planned = engine.with_connection(|connection| {
                // Planning computes what is constant, which may take its time.
                *running.interrupter.lock() = Some(connection.interrupter());
                let planned = plan(&engine, connection);
                *running.interrupter.lock() = None;
                planned
            });
            planned.map_err(|error| engine.explained(error, &running))
        };
        blocking(planned).await
    }

    fn columns_of(
        &self,
        connection: &Connection,
        sql: &str,
        parameters: &Parameters,
    ) -> Result<SchemaRef> {
        let _seeing = self.begin(connection)?;
        let prepared = self.reading(connection, sql)?;
        let names = prepared.parameters();
        let values = parameters.of(&names)?;
        if names.is_empty() {
            let schema = prepared.schema()?;
            let schema = schema.ok_or_else(|| Error::internal("a plan without columns"))?;
            return Ok(plain_schema(&schema));
        }
        // Types of columns may depend on those of parameters, which DuckDB looks at only when a statement runs. This one
        // has nothing to do.
        let ends = |c: char| c == ';' || c.is_whitespace();
        let nothing = format!("(\n{}\n) limit 0", sql.trim_end_matches(ends));
        let mut prepared = self.reading(connection, &nothing).unwrap_or(prepared);
        for (at, value) in (1..).zip(values) {
            prepared.bind(at, value)?;
        }
        Ok(plain_schema(prepared.run()?.schema()))
    }

    /// Asks a question: one statement that reads.
    ///
    /// # Errors
    /// It is none; DuckDB's; or it takes too long until the first row.
    pub async fn query(self: &Arc<Self>, sql: String, parameters: Parameters) -> Result<Answer> {
        let time_max = self.limits.time_max;
        let place = tokio::time::timeout(time_max, self.places.clone().acquire_owned()).await;
        let Ok(place) = place else {
            let why = format!("{} queries run already", self.limits.queries_max);
            return Err(Error::new(ErrorKind::Exhausted, why));
        };
        let place = place.map_err(|error| Error::internal(error.to_string()))?;
        let running = Running::new();
        let watch = AbortOnDropHandle::new(self.runtime.spawn(running.clone().watch(time_max)));
        let (say, mut said) = mpsc::channel(ANSWER_BATCHES_MAX);
        let (engine, of_query) = (self.clone(), running.clone());
        let stopper = Stopper(running);
        self.runtime.spawn_blocking(move || {
            let _held = (place, watch);
            let metrics = &engine.metrics;
            metrics.sql_running.inc();
            let began = Instant::now();
            let outcome = engine.answer(&sql, &parameters, &of_query, &say);
            let outcome = outcome.map_err(|error| engine.explained(error, &of_query));
            metrics.sql_running.dec();
            metrics.sql_seconds.observe(began.elapsed().as_secs_f64());
            metrics.sql_queries.with_label_values(&[label(&outcome)]).inc();
            if let Err(error) = outcome {
                // Who has gone does not want to know.
                let _ = say.blocking_send(Err(error));
            }
        });
        match said.recv().await {
            Some(Ok(Said::Columns(schema, origin))) => {
                Ok(Answer { schema, origin, said, _stopper: stopper })
            }
            Some(Err(error)) => Err(error),
            Some(Ok(Said::Rows(_))) | None => Err(Error::internal("a query without an answer")),
        }
    }

    /// Why a query was stopped, where it was.
    fn explained(&self, error: Error, running: &Running) -> Error {
        if error.kind() == ErrorKind::Timeout && running.clock.lock().is_up {
            let seconds = self.limits.time_max.as_secs_f64();
            return Error::new(ErrorKind::Timeout, format!("the query took more than {seconds} s"));
        }
        error
    }

    /// Runs on a thread that may be blocked.
    fn answer(
        &self,
        sql: &str,
        parameters: &Parameters,
        running: &Running,
        say: &mpsc::Sender<Result<Said>>,
    ) -> Result<()> {
        self.with_connection(|connection| {
            *running.interrupter.lock() = Some(connection.interrupter());
            let answered = match running.is_unwanted() {
                true => Ok(false),
                false => self.answer_once(connection, sql, parameters, running, say),
            };
            // Nobody stops what the next one does with this connection.
            *running.interrupter.lock() = None;
            answered
        })
        .map(|_| ())
    }

    /// Does something with a connection, and again if another query has made views anew meanwhile.
    fn with_connection<T>(&self, work: impl Fn(&Connection) -> Result<T>) -> Result<T> {
        let connection = self.connection()?;
        let mut worked = work(&connection);
        for _ in 1..PLANS_MAX {
            // Whatever has happened, it must not go on in a transaction.
            let _ = connection.execute("rollback");
            match &worked {
                Err(error) if is_outdated(error) => worked = work(&connection),
                _ => break,
            }
        }
        let _ = connection.execute("rollback");
        self.idle.lock().push(connection);
        worked
    }

    /// A statement that reads.
    fn reading<'c>(&self, connection: &'c Connection, sql: &str) -> Result<Prepared<'c>> {
        self.forbidden.check(sql)?;
        let prepared = connection.prepare(sql)?;
        match prepared.kind() {
            Kind::Reads => Ok(prepared),
            Kind::Other => Err(not_reading()),
        }
    }

    /// Begins a transaction that sees what is there now.
    fn begin(&self, connection: &Connection) -> Result<Seeing> {
        self.catalog.begin(connection)
    }

    fn answer_once(
        &self,
        connection: &Connection,
        sql: &str,
        parameters: &Parameters,
        running: &Running,
        say: &mpsc::Sender<Result<Said>>,
    ) -> Result<bool> {
        let commits = self.catalog.commits();
        let seeing = self.begin(connection)?;
        let mut prepared = self.reading(connection, sql)?;
        let names = prepared.parameters();
        for (at, value) in (1..).zip(parameters.of(&names)?) {
            prepared.bind(at, value)?;
        }
        let mut rows = prepared.run().map_err(|error| located(error, sql))?;
        let schema = plain_schema(rows.schema());
        let origin = Origin { windows: seeing.versions(), commits };
        if say.blocking_send(Ok(Said::Columns(schema.clone(), origin))).is_err() {
            return Ok(false);
        }
        let (mut gathered, mut count) = (Vec::new(), 0);
        loop {
            let batch = rows.next().transpose().map_err(|error| located(error, sql))?;
            let batch = batch.map(|batch| plain_batch(&batch, &schema)).transpose()?;
            let is_over = batch.is_none();
            count += batch.as_ref().map_or(0, RecordBatch::num_rows);
            gathered.extend(batch);
            if count >= ROWS_MAX || (is_over && count > 0) {
                let whole = concat_batches(&schema, &gathered);
                let whole = whole.map_err(|error| Error::internal(error.to_string()))?;
                gathered.clear();
                count = 0;
                if !self.send(whole, running, say)? {
                    return Ok(false);
                }
            }
            if is_over {
                return Ok(true);
            }
        }
    }

    /// Waits until the client takes it; `false` if it has gone.
    fn send(
        &self,
        rows: RecordBatch,
        running: &Running,
        say: &mpsc::Sender<Result<Said>>,
    ) -> Result<bool> {
        let rows = match say.try_send(Ok(Said::Rows(rows))) {
            Ok(()) => return Ok(true),
            Err(TrySendError::Closed(_)) => return Ok(false),
            Err(TrySendError::Full(rows)) => rows,
        };
        let sent = tokio::time::timeout(self.limits.time_max, say.send(rows));
        match running.pause(|| self.runtime.block_on(sent)) {
            Ok(sent) => Ok(sent.is_ok()),
            Err(_) => {
                let seconds = self.limits.time_max.as_secs_f64();
                let why = format!("the client has taken nothing of the answer for {seconds} s");
                Err(Error::new(ErrorKind::Exhausted, why))
            }
        }
    }

    fn connection(&self) -> Result<Connection> {
        match self.idle.lock().pop() {
            Some(connection) => Ok(connection),
            None => self.database.connect(),
        }
    }
}

/// The file, as tables.
fn attached(database: &Arc<Database>, connection: &Connection, file: &Path) -> Result<Store> {
    let cannot =
        |why: &str| Error::new(ErrorKind::Unavailable, format!("{}: {why}", file.display()));
    let path = file.to_str().ok_or_else(|| cannot("its path is no UTF-8"))?;
    let path = path.replace('\'', "''");
    let attached = connection.execute(&format!("attach '{path}' as {DATABASE}"));
    attached.and_then(|()| Store::open(database)).map_err(|error| cannot(error.message()))
}

/// What became of a query, in a word.
fn label(outcome: &Result<()>) -> &'static str {
    match outcome.as_ref().map_err(Error::kind) {
        Ok(()) => "ok",
        Err(ErrorKind::Invalid) => "invalid",
        Err(ErrorKind::Timeout) => "timeout",
        Err(ErrorKind::Exhausted) => "exhausted",
        Err(_) => "failed",
    }
}

/// Checks what a statement is whose tables need not be there.
fn is_a_select(connection: &Connection, sql: &str) -> Result<()> {
    let mut parsed = connection.prepare("select json_serialize_sql(?::varchar)::varchar")?;
    parsed.bind(1, &Parameter::Text(sql.to_owned()))?;
    let rows = parsed.run()?.next().transpose()?;
    let text = rows.as_ref().map(|rows| rows.column(0).as_string::<i32>().value(0));
    match text.is_some_and(|text| text.starts_with(r#"{"error":false"#)) {
        true => Ok(()),
        false => Err(not_reading()),
    }
}

/// Whether a table is not there, or not with the columns that are wanted.
fn is_of_a_table(error: &Error) -> bool {
    class(error) == "Binder" || error.message().starts_with("Catalog Error: Table")
}

/// Whether another query has made the views anew since they were looked after.
fn is_outdated(error: &Error) -> bool {
    error.message().contains("Contents of view were altered")
}

impl Parameters {
    /// The values of parameters with these names.
    fn of(&self, names: &[String]) -> Result<Vec<&Parameter>> {
        if let Self::Positional(values) = self {
            let (wanted, given) = (names.len(), values.len());
            if wanted != given {
                let why = format!("the query has {wanted} parameters, not {given}");
                return Err(Error::invalid(why));
            }
            return Ok(values.iter().collect());
        }
        let values = if let Self::Named(values) = self { Some(values) } else { None };
        let mut given = values.into_iter().flat_map(BTreeMap::keys);
        if let Some(unknown) = given.find(|name| !names.contains(name)) {
            return Err(Error::invalid(format!("the query has no parameter '{unknown}'")));
        }
        let value = |name: &String| {
            let missing = || Error::invalid(format!("parameter '{name}' is missing"));
            values.and_then(|values| values.get(name)).ok_or_else(missing)
        };
        names.iter().map(value).collect()
    }
}
