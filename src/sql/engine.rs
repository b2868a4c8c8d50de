//! [`Engine`]: queries over windows (and, once something is stored, over tables), each with limits of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, SchemaRef};
use futures::Stream;
use futures::stream::unfold;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::catalog::{Catalog, is_of_another_name};
use super::duck::{Connection, Database, Kind, Parameter, Prepared, class, located};
use super::forbidden::{Forbidden, not_reading};
use super::live::{LIVE, LiveScan, Seeing, TAIL};
use super::missing::{missing_table, said_of_missing};
use super::plain::{plain_batch, plain_schema};
use super::running::{Running, Stopper};
use super::store::{DATABASE, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::topics::TopicInfo;
use crate::metrics::Metrics;
use crate::stream::blocking;
use crate::stream::streams::Streams;

/// Batches of an answer that wait to be taken.
const ANSWER_BATCHES_MAX: usize = 4;

/// Rows and bytes of a batch of an answer, about; DuckDB's own have 2,048 rows at most.
const ROWS_MAX: usize = 8192;
const BYTES_MAX: usize = 4 << 20;

/// Answers that may be on their way for each query that may run: those whose clients take their time do not run.
const ANSWERS_PER_PLACE: usize = 8;

/// How much longer than a query may run its client may take for the answer.
const READ_TIMES: u32 = 10;

/// How long brokers may take to say whether a table that is not there is a topic.
const TOPICS_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// Nothing more comes.
    is_over: bool,
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
        if self.is_over {
            return None;
        }
        let said = self.said.recv().await;
        self.is_over = !matches!(said, Some(Ok(Said::Rows(_))));
        match said {
            Some(Ok(Said::Rows(rows))) => Some(Ok(rows)),
            Some(Ok(Said::End)) => None,
            Some(Err(error)) => Some(Err(error)),
            // What was sent is a beginning, and must not be taken for the whole.
            Some(Ok(Said::Columns(..))) | None => Some(Err(Error::internal("the query broke off"))),
        }
    }

    /// The batches to the end.
    pub fn into_stream(self) -> impl Stream<Item = Result<RecordBatch>> + Send + use<> {
        unfold(self, async |mut answer| Some((answer.next().await?, answer)))
    }
}

/// What a query has to say: its columns, then rows, then that it is over.
enum Said {
    Columns(SchemaRef, Origin),
    Rows(RecordBatch),
    End,
}

/// A query's place among those that run. Others have it while its client takes its time.
struct Place {
    places: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    fn leave(&mut self) {
        self.permit = None;
    }

    /// Waits until there is one again. Blocks.
    fn take(&mut self, runtime: &Handle) {
        // It fails only when the places are closed, which nobody does.
        self.permit = runtime.block_on(self.places.clone().acquire_owned()).ok();
    }
}

/// Counts as running as long as it is there.
struct Counted<'a>(&'a IntGauge);

impl<'a> Counted<'a> {
    fn new(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// See the top of this file.
pub struct Engine {
    database: Arc<Database>,
    catalog: Catalog,
    forbidden: Forbidden,
    idle: Mutex<Vec<Connection>>,
    /// Of queries that run.
    places: Arc<Semaphore>,
    /// Of answers that are on their way.
    answers: Arc<Semaphore>,
    /// Of plans in the making.
    plans: Arc<Semaphore>,
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
            answers: Arc::new(Semaphore::new(limits.queries_max * ANSWERS_PER_PLACE)),
            plans: Arc::new(Semaphore::new(limits.queries_max)),
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

    /// Checks a statement. Returns why it cannot be answered now, where its tables are the reason: topics and columns come and
    /// change with what is produced.
    ///
    /// # Errors
    /// It is none that reads, its syntax is wrong, or no topic could make it right.
    pub async fn check(self: &Arc<Self>, sql: String) -> Result<Option<Error>> {
        let error = match self.describe(sql.clone()).await {
            Err(error) if is_of_a_table(&error) => error,
            described => return described.map(|_| None),
        };
        let engine = self.clone();
        let names = blocking(move || engine.with_connection(|one| one.table_names(&sql))).await?;
        match names.ok_or_else(not_reading)?.is_empty() {
            true => Err(error),
            false => Ok(Some(error)),
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
        let place = self.place(&self.plans, "statements are looked at").await?;
        let (running, _stopper) = Running::begin();
        let watch = self.runtime.spawn(running.clone().watch(self.limits.time_max));
        let (engine, watch) = (self.clone(), AbortOnDropHandle::new(watch));
        let planned = move || {
            let _held = (place, watch);
            let planned = engine.with_connection(|connection| {
                // Planning computes what is constant, which may take its time.
                running.stoppable(connection.interrupter(), || plan(&engine, connection))
            });
            planned.map_err(|error| engine.explained(error, &running))
        };
        match blocking(planned).await {
            Err(error) => Err(self.named(error).await),
            planned => planned,
        }
    }

    /// A place, as long as it takes until there is one, but not longer than a query may run.
    async fn place(&self, places: &Arc<Semaphore>, doing: &str) -> Result<OwnedSemaphorePermit> {
        let place = places.clone().acquire_owned();
        match tokio::time::timeout(self.limits.time_max, place).await {
            Ok(place) => place.map_err(|error| Error::internal(error.to_string())),
            Err(_) => {
                let why = format!("as many {doing} already as --sql-concurrency allows");
                Err(Error::new(ErrorKind::Exhausted, why))
            }
        }
    }

    /// Of a table that is not there, says more than DuckDB knows.
    async fn named(&self, error: Error) -> Error {
        if let Some(lost) = self.store().and_then(|store| store.lost())
            && is_of_a_table(&error)
        {
            let why = format!("what is stored cannot be read at this moment: {}", lost.message());
            return Error::new(ErrorKind::Unavailable, why);
        }
        let Some(name) = missing_table(&error).map(str::to_owned) else { return error };
        let topics = self.catalog.streams().topics();
        let topics = tokio::time::timeout(TOPICS_TIMEOUT, topics).await;
        let is_topic = |topics: Vec<TopicInfo>| topics.iter().any(|topic| topic.name == name);
        let is_topic = topics.is_ok_and(|topics| topics.is_ok_and(is_topic));
        said_of_missing(&error, &name, &self.catalog.names(), is_topic)
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
        let held = self.place(&self.answers, "answers are on their way").await?;
        let permit = Some(self.place(&self.places, "queries run").await?);
        let place = Place { places: self.places.clone(), permit };
        let (running, stopper) = Running::begin();
        let watch = self.runtime.spawn(running.clone().watch(self.limits.time_max));
        let watch = AbortOnDropHandle::new(watch);
        let (say, mut said) = mpsc::channel(ANSWER_BATCHES_MAX);
        let engine = self.clone();
        self.runtime.spawn_blocking(move || {
            let _held = (held, watch);
            let metrics = &engine.metrics;
            let counted = Counted::new(&metrics.sql_running);
            let began = Instant::now();
            let mut client = Client { say, running, place, waited: Duration::ZERO };
            let outcome = engine.answer(&sql, &parameters, &mut client);
            let outcome = outcome.map_err(|error| engine.explained(error, &client.running));
            metrics.sql_seconds.observe(began.elapsed().as_secs_f64());
            let became = label(&outcome, &client.running);
            metrics.sql_queries.with_label_values(&[became]).inc();
            drop(counted);
            client.place.leave();
            // Who has gone does not want to know; whoever takes nothing misses the end, and knows by that.
            let last = client.say.send(outcome.map(|()| Said::End));
            let _ = engine.runtime.block_on(tokio::time::timeout(engine.limits.time_max, last));
        });
        match said.recv().await {
            Some(Ok(Said::Columns(schema, origin))) => {
                Ok(Answer { schema, origin, said, is_over: false, _stopper: stopper })
            }
            Some(Err(error)) => Err(self.named(error).await),
            Some(Ok(Said::Rows(_) | Said::End)) | None => {
                Err(Error::internal("the query broke off"))
            }
        }
    }

    /// Why a query was stopped, where it was.
    fn explained(&self, error: Error, running: &Running) -> Error {
        if error.kind() == ErrorKind::Timeout && running.is_up() {
            let seconds = self.limits.time_max.as_secs_f64();
            return Error::new(ErrorKind::Timeout, format!("the query took more than {seconds} s"));
        }
        error
    }

    /// Runs on a thread that may be blocked.
    fn answer(&self, sql: &str, parameters: &Parameters, client: &mut Client) -> Result<()> {
        self.with_connection(|connection| {
            if client.running.is_unwanted() {
                return Ok(());
            }
            let running = client.running.clone();
            let answer = || self.answer_once(connection, sql, parameters, client);
            running.stoppable(connection.interrupter(), answer)
        })
    }

    /// Does something with a connection, and again if another query has made views anew meanwhile.
    fn with_connection<T>(&self, mut work: impl FnMut(&Connection) -> Result<T>) -> Result<T> {
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
        if !connection.is_spoiled() {
            self.idle.lock().push(connection);
        }
        worked
    }

    /// A statement that reads.
    fn reading<'c>(&self, connection: &'c Connection, sql: &str) -> Result<Prepared<'c>> {
        self.forbidden.check(sql)?;
        self.catalog.check_names(connection, sql)?;
        let prepared = connection.prepare(sql)?;
        match prepared.kind() {
            Kind::Reads => Ok(prepared),
            Kind::Explains => {
                // With ANALYZE it runs what it explains, whatever that may do to the connection.
                connection.spoil();
                Ok(prepared)
            }
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
        client: &mut Client,
    ) -> Result<()> {
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
        if !client.is_told(self, Said::Columns(schema.clone(), origin))? {
            return Ok(());
        }
        let mut gathered = Gathered::default();
        loop {
            let batch = rows.next().transpose().map_err(|error| located(error, sql))?;
            let is_over = batch.is_none();
            if let Some(batch) = batch {
                gathered.push(plain_batch(&batch, &schema)?);
            }
            if gathered.is_full() || (is_over && gathered.rows > 0) {
                let whole = std::mem::take(&mut gathered).whole(&schema)?;
                if !client.is_told(self, Said::Rows(whole))? {
                    return Ok(());
                }
            }
            if is_over {
                return Ok(());
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

/// Who waits for an answer.
struct Client {
    say: mpsc::Sender<Result<Said>>,
    running: Arc<Running>,
    place: Place,
    /// How long the query has waited for it.
    waited: Duration,
}

impl Client {
    /// Waits until the client takes it; `false` if it has gone. Blocks.
    ///
    /// # Errors
    /// It has taken nothing for as long as a query may run, or takes [`READ_TIMES`] as long for all of it.
    fn is_told(&mut self, engine: &Engine, said: Said) -> Result<bool> {
        let said = match self.say.try_send(Ok(said)) {
            Ok(()) => return Ok(true),
            Err(TrySendError::Closed(_)) => return Ok(false),
            Err(TrySendError::Full(said)) => said,
        };
        // Whoever reads holds what it reads, such as a file that is to be opened again.
        let is_waited_for = engine.store().is_some_and(|store| store.lost().is_some());
        let once_max = engine.limits.time_max;
        let all_max = if is_waited_for { once_max } else { once_max * READ_TIMES };
        let wait_max = once_max.min(all_max.saturating_sub(self.waited));
        let sent = tokio::time::timeout(wait_max, self.say.send(said));
        let began = Instant::now();
        let sent = self.running.pause(|| {
            self.place.leave();
            let sent = engine.runtime.block_on(sent);
            if matches!(sent, Ok(Ok(()))) {
                self.place.take(&engine.runtime);
            }
            sent
        });
        self.waited += began.elapsed();
        match sent {
            Ok(sent) => Ok(sent.is_ok()),
            Err(_) => {
                let seconds = wait_max.as_secs_f64();
                let why = match wait_max == once_max {
                    true => format!("the client has taken nothing of the answer for {seconds} s"),
                    false => "the client takes too long for the answer".to_owned(),
                };
                Err(Error::new(ErrorKind::Exhausted, why))
            }
        }
    }
}

/// Rows that make a batch of an answer.
#[derive(Default)]
struct Gathered {
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

impl Gathered {
    fn push(&mut self, batch: RecordBatch) {
        self.rows += batch.num_rows();
        self.bytes += batch.get_array_memory_size();
        self.batches.push(batch);
    }

    fn is_full(&self) -> bool {
        self.rows >= ROWS_MAX || self.bytes >= BYTES_MAX
    }

    fn whole(self, schema: &SchemaRef) -> Result<RecordBatch> {
        match <[RecordBatch; 1]>::try_from(self.batches) {
            Ok([batch]) => Ok(batch),
            Err(batches) => {
                concat_batches(schema, &batches).map_err(|error| Error::internal(error.to_string()))
            }
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
fn label(outcome: &Result<()>, running: &Running) -> &'static str {
    if running.is_unwanted() {
        return "cancelled";
    }
    match outcome.as_ref().map_err(Error::kind) {
        Ok(()) => "ok",
        Err(ErrorKind::Invalid) => "invalid",
        Err(ErrorKind::Timeout) => "timeout",
        Err(ErrorKind::Exhausted) => "exhausted",
        Err(_) => "failed",
    }
}

/// Whether a table is not there, not by this name, or not with the columns that are wanted.
fn is_of_a_table(error: &Error) -> bool {
    class(error) == "Binder"
        || error.message().starts_with("Catalog Error: Table")
        || is_of_another_name(error)
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

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;

    use super::*;

    #[tokio::test]
    async fn an_answer_without_its_end_is_an_error() {
        let (say, said) = mpsc::channel(4);
        let schema: SchemaRef = Arc::new(Schema::empty());
        let rows = RecordBatch::new_empty(schema.clone());
        say.send(Ok(Said::Rows(rows.clone()))).await.expect("heard");
        drop(say);
        let (_, stopper) = Running::begin();
        let origin = Origin::default();
        let mut answer = Answer { schema, origin, said, is_over: false, _stopper: stopper };
        assert!(answer.next().await.is_some_and(|rows| rows.is_ok()));
        let broken = answer.next().await.and_then(Result::err).expect("an error");
        assert_eq!(broken.kind(), ErrorKind::Internal);
        assert!(answer.next().await.is_none());
    }
}
