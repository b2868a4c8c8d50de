//! [`Queries`]: queries with names. All who ask one with the same parameters get the same answer, as long as nothing has
//! changed that it was made of.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use moka::sync::Cache;
use parking_lot::Mutex as PlainMutex;
use prometheus::IntCounter;
use tokio::sync::Mutex;

use super::duck::Parameter;
use super::engine::{Answer, Engine, Origin, Parameters};
use crate::config::sql::QuerySettings;
use crate::config::units::Span;
use crate::encode::writer::{RowsFormat, RowsWriter};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;

/// How long an answer is good at most: what it says of the present time must not be older.
const AGE_MAX: Duration = Duration::from_secs(1);

/// What an answer counts for in the cache beside its bytes.
const ENTRY_BYTES: usize = 1024;

/// What is said of an answer that cannot be held.
const TOO_LARGE: &str = "the answer has more than";

/// Names that an error lists.
const NAMES_MAX: usize = 20;

/// Values of parameters, by name.
pub type Values = BTreeMap<String, Parameter>;

/// See the top of this file.
pub struct Queries {
    engine: Arc<Engine>,
    by_name: BTreeMap<String, Named>,
    answers: Cache<Key, Arc<Entry>>,
    result_bytes_max: usize,
}

struct Named {
    settings: QuerySettings,
    from_cache: IntCounter,
    from_run: IntCounter,
}

/// A question: the name of a query, and its parameters as text that tells them apart.
type Key = (String, String);

/// What is known of a question.
#[derive(Default)]
struct Entry {
    last: PlainMutex<Option<Arc<Held>>>,
    /// The last run's failure, and when that began: whoever asked before gets it.
    failure: PlainMutex<Option<(Instant, Error)>>,
    /// Who has it runs the query; the others wait.
    turn: Mutex<()>,
}

/// An answer as a whole.
pub struct Held {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
    origin: Origin,
    /// When it was asked for.
    began: Instant,
    /// Of the rows, and of what was made of them.
    bytes: AtomicUsize,
    /// By format, once somebody wants it.
    encoded: [OnceLock<Bytes>; RowsFormat::ALL.len()],
}

impl Held {
    /// All of an answer.
    ///
    /// # Errors
    /// The query's; or it is larger than `bytes_max`.
    pub async fn gather(mut answer: Answer, began: Instant, bytes_max: usize) -> Result<Self> {
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = answer.next().await {
            let batch = batch?;
            bytes += batch.get_array_memory_size();
            if bytes > bytes_max {
                return Err(too_large(bytes_max));
            }
            batches.push(batch);
        }
        let (schema, origin) = (answer.schema.clone(), answer.origin.clone());
        let (bytes, encoded) = (AtomicUsize::new(bytes), Default::default());
        Ok(Self { schema, batches, origin, began, bytes, encoded })
    }

    /// The whole answer in a format, made once.
    ///
    /// # Errors
    /// A type that the format does not have; or it is larger than `bytes_max`.
    pub fn encoded(&self, format: RowsFormat, bytes_max: usize) -> Result<Bytes> {
        let place = self.encoded.get(format as usize);
        if let Some(made) = place.and_then(OnceLock::get) {
            return Ok(made.clone());
        }
        let (mut writer, mut out) = RowsWriter::begin(format, &self.schema)?;
        for batch in &self.batches {
            out.extend(writer.write(batch)?);
            if out.len() > bytes_max {
                return Err(too_large(bytes_max));
            }
        }
        out.extend(writer.end()?);
        let made = Bytes::from(out);
        let held = || {
            self.bytes.fetch_add(made.len(), Ordering::Relaxed);
            made.clone()
        };
        Ok(place.map_or(made.clone(), |place| place.get_or_init(held).clone()))
    }
}

fn key_of(name: &str, values: &Values) -> Key {
    (name.to_owned(), format!("{values:?}"))
}

/// Whether an error is [`too_large`].
pub fn is_too_large(error: &Error) -> bool {
    error.kind() == ErrorKind::Exhausted && error.message().starts_with(TOO_LARGE)
}

/// The error for an answer that is larger than `bytes_max`.
pub fn too_large(bytes_max: usize) -> Error {
    let why = format!("{TOO_LARGE} {bytes_max} bytes: ask for less, or see sql-result-limit");
    Error::new(ErrorKind::Exhausted, why)
}

impl Queries {
    /// The queries of a configuration.
    ///
    /// # Errors
    /// One of them is no statement that reads: names it.
    pub async fn new(
        engine: Arc<Engine>,
        settings: BTreeMap<String, QuerySettings>,
        result_bytes_max: usize,
        metrics: &Metrics,
    ) -> Result<Self> {
        let mut by_name = BTreeMap::new();
        for (name, settings) in settings {
            let checked = engine.check(settings.sql.clone()).await;
            let checked = checked
                .map_err(|error| Error::invalid(format!("queries.{name}: {}", error.message())))?;
            if let Some(error) = checked {
                let why = error.message().lines().next().unwrap_or_default();
                tracing::warn!(query = %name, %why, "a query that cannot be answered now");
            }
            let counter = |source| metrics.named_queries.with_label_values(&[&*name, source]);
            let (from_cache, from_run) = (counter("cache"), counter("run"));
            by_name.insert(name, Named { settings, from_cache, from_run });
        }
        let weight = |(name, values): &Key, entry: &Arc<Entry>| {
            let bytes =
                entry.last.lock().as_ref().map_or(0, |held| held.bytes.load(Ordering::Relaxed));
            u32::try_from(bytes + name.len() + values.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
        };
        let ages = by_name.values().filter_map(|query| query.settings.max_age);
        let idle = ages.map(|Span(age)| age).max().unwrap_or_default().max(AGE_MAX * 10);
        let answers = Cache::builder()
            .weigher(weight)
            .max_capacity(result_bytes_max as u64)
            .time_to_idle(idle)
            .build();
        Ok(Self { engine, by_name, answers, result_bytes_max })
    }

    /// Bytes of the largest answer.
    pub fn result_bytes_max(&self) -> usize {
        self.result_bytes_max
    }

    /// The engine that answers all other questions.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Their names and statements.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_name.iter().map(|(name, query)| (name.as_str(), query.settings.sql.as_str()))
    }

    /// The statement of a query.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn statement(&self, name: &str) -> Result<&str> {
        let query = self.by_name.get(name).ok_or_else(|| self.unknown(name))?;
        Ok(&query.settings.sql)
    }

    /// Runs `sql`, and holds the whole answer.
    ///
    /// # Errors
    /// The query's; or the answer is too large.
    pub async fn run(&self, sql: String, parameters: Parameters) -> Result<Held> {
        let began = Instant::now();
        let answer = self.engine.query(sql, parameters).await?;
        Held::gather(answer, began, self.result_bytes_max).await
    }

    /// The answer of the query `name` with these parameters in a format, see [`ask`](Self::ask).
    ///
    /// # Errors
    /// As [`ask`](Self::ask), and those of [`Held::encoded`].
    pub async fn answer(&self, name: &str, values: &Values, format: RowsFormat) -> Result<Bytes> {
        let held = self.ask(name, values).await?;
        let before = held.bytes.load(Ordering::Relaxed);
        let body = held.encoded(format, self.result_bytes_max)?;
        let key = key_of(name, values);
        if held.bytes.load(Ordering::Relaxed) != before
            && let Some(entry) = self.answers.get(&key)
        {
            // So that it is weighed with that.
            self.answers.insert(key, entry);
        }
        Ok(body)
    }

    /// The answer of the query `name` with these parameters, as it is now; where the query has a maximal age, as it was at
    /// most that long ago.
    ///
    /// # Errors
    /// There is no such query; the query's; or the answer is too large.
    pub async fn ask(&self, name: &str, values: &Values) -> Result<Arc<Held>> {
        let Some(query) = self.by_name.get(name) else { return Err(self.unknown(name)) };
        let asked = Instant::now();
        let age_max = query.settings.max_age.map_or(Duration::ZERO, |Span(age)| age);
        let key = key_of(name, values);
        let entry = self.answers.get_with_by_ref(&key, Arc::default);
        let good = || {
            let held = entry.last.lock().clone()?;
            let age = held.began.elapsed();
            let is_good = held.began >= asked
                || age <= age_max
                || (age <= AGE_MAX && self.engine.is_current(&held.origin));
            is_good.then_some(held)
        };
        if let Some(held) = good() {
            query.from_cache.inc();
            return Ok(held);
        }
        let _turn = entry.turn.lock().await;
        if let Some(held) = good() {
            query.from_cache.inc();
            return Ok(held);
        }
        // A run that began after the question has answered it, also by failing.
        let failed = entry.failure.lock().clone().filter(|(began, _)| *began >= asked);
        if let Some((_, error)) = failed {
            query.from_cache.inc();
            return Err(error);
        }
        query.from_run.inc();
        let parameters = match values.is_empty() {
            true => Parameters::None,
            false => Parameters::Named(values.clone()),
        };
        let began = Instant::now();
        let held = self.run(query.settings.sql.clone(), parameters).await;
        *entry.failure.lock() = held.as_ref().err().map(|error| (began, error.clone()));
        let held = Arc::new(held?);
        *entry.last.lock() = Some(held.clone());
        // So that it is weighed.
        self.answers.insert(key, entry.clone());
        Ok(held)
    }

    fn unknown(&self, name: &str) -> Error {
        let names: Vec<&str> = self.by_name.keys().take(NAMES_MAX).map(String::as_str).collect();
        let known = match names.as_slice() {
            [] => "karrow.toml has none".to_owned(),
            names => format!("there are {}", names.join(", ")),
        };
        Error::new(ErrorKind::NotFound, format!("no query is called '{name}'; {known}"))
    }
}
