//! [`Catalog`]: what topics are called in SQL. Each has views: `live.<topic>` of its window, and `<topic>` of what is stored and
//! the live rows behind that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::Array;
use arrow::datatypes::{DataType, SchemaRef};
use parking_lot::Mutex;

use super::duck::Connection;
use super::growth::{Step, Values, grown, is_wide_in, selected};
use super::live::{LIVE, LiveTable, Seeing, Snapshot, TAIL, Tables};
use super::store::{Store, Table};
use super::tail::{Pending, tail};
use super::types::quoted;
use crate::error::{Error, ErrorKind, Result};
use crate::stream::encoded::EncodedBatch;
use crate::stream::streams::Streams;
use crate::stream::topic_stream::TopicStream;
use crate::stream::window::Positions;

/// Where the bare names are, and where DuckDB has the functions that were registered.
const VIEWS: &str = "memory.main";
const FUNCTIONS: &str = "system.main";

/// How often it is looked again because a table has changed meanwhile.
const LOOKS_MAX: usize = 20;

/// What is said of a topic that another one's name was taken for.
const OTHER_NAME: &str = "the topic";

/// Whether an error is that of [`Catalog::check_names`].
pub fn is_of_another_name(error: &Error) -> bool {
    error.message().starts_with(OTHER_NAME)
}

/// See the top of this file.
pub struct Catalog {
    streams: Arc<Streams>,
    /// Topics as tables, if they are stored.
    store: Option<Arc<Store>>,
    /// By topic.
    views: Mutex<BTreeMap<Arc<str>, Views>>,
    /// What was asked of tables, and after how many commits.
    answers: Mutex<HashMap<String, (u64, bool)>>,
}

/// The views of a topic.
#[derive(PartialEq)]
struct Views {
    /// The topic's, unless another one differs from it in upper and lower case only.
    name: String,
    /// What they are made for: the window's columns, and the table.
    window: Option<SchemaRef>,
    table: Option<Table>,
    /// Why they only say that something has failed.
    failure: Option<String>,
}

impl Catalog {
    /// Of these streams and tables.
    pub fn new(streams: Arc<Streams>, store: Option<Arc<Store>>) -> Self {
        Self { streams, store, views: Mutex::default(), answers: Mutex::default() }
    }

    /// The tables, if topics are stored.
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.store.as_ref()
    }

    /// How often anything was stored.
    pub fn commits(&self) -> u64 {
        self.store.as_ref().map_or(0, |store| store.commits())
    }

    /// The version of a topic's window, if it has one.
    pub fn version(&self, topic: &str) -> Option<u64> {
        self.streams.get(topic).map(|stream| stream.version())
    }

    /// The streams.
    pub fn streams(&self) -> &Arc<Streams> {
        &self.streams
    }

    /// What topics are called.
    pub fn names(&self) -> Vec<String> {
        self.views.lock().values().map(|views| views.name.clone()).collect()
    }

    /// Refuses a statement that spells a topic which is called otherwise: it would read the one that differs from it in upper
    /// and lower case only.
    ///
    /// # Errors
    /// It does.
    pub fn check_names(&self, connection: &Connection, sql: &str) -> Result<()> {
        let is_other = |(topic, views): &(&Arc<str>, &Views)| views.name.as_str() != &***topic;
        if !self.views.lock().iter().any(|named| is_other(&named)) {
            return Ok(());
        }
        let names = connection.table_names(sql)?.unwrap_or_default();
        let views = self.views.lock();
        let is_a_name = |name: &str| views.values().any(|views| views.name == name);
        let is_meant = |topic: &str| names.iter().any(|name| name == topic && !is_a_name(name));
        match views.iter().filter(is_other).find(|(topic, _)| is_meant(topic)) {
            None => Ok(()),
            Some((topic, Views { name, .. })) => Err(Error::invalid(format!(
                "{OTHER_NAME} '{topic}' is called {} here, because SQL does not tell upper from lower case",
                quoted(name)
            ))),
        }
    }

    /// Begins a transaction that only reads, in which each topic is as it is now: the views are there, and of what a window had,
    /// those rows are stored that it does not have any more.
    ///
    /// # Errors
    /// DuckDB's. A topic that cannot be had fails only those queries that name it.
    pub fn begin(&self, connection: &Connection) -> Result<Seeing> {
        for _ in 0..LOOKS_MAX {
            let mut looked = self.look(connection)?;
            self.look_after(connection, &mut looked)?;
            connection.execute("begin transaction read only")?;
            // A table may have become another one since, whose values the views do not hold.
            let Looked { snapshot, tables, commits } = looked;
            let is_seen = match &self.store {
                Some(store) => store.is_seen(connection, &tables, commits),
                None => Ok(true),
            };
            // A file that cannot be had now fails those who ask for what is in it.
            let is_seen = of_one_topic(is_seen)?.map_err(|_| ());
            if is_seen != Ok(true) {
                let _ = connection.execute("rollback");
            }
            if is_seen == Err(()) {
                connection.execute("begin transaction read only")?;
            }
            if is_seen != Ok(false) {
                return Ok(Seeing::begin(connection.database(), Arc::new(snapshot)));
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "tables change all the time"))
    }

    /// All windows as they are now, with the columns of their tables.
    fn look(&self, connection: &Connection) -> Result<Looked> {
        let commits = self.commits();
        let tables = self.tables();
        let wanted: BTreeSet<Arc<str>> = self.streams.wanted().into_iter().collect();
        let (mut snapshot, mut is_conditional) = (Snapshot::new(), false);
        for stream in self.streams.all() {
            let topic = stream.topic();
            let asked = tables.get(topic).map(|table| Asked {
                catalog: self,
                connection,
                table,
                batches: Vec::new(),
                commits,
                has_missed: false,
            });
            let seen = self.seen(&stream, asked, wanted.contains(topic), &mut is_conditional);
            snapshot.insert(topic.clone(), of_one_topic(seen)?);
        }
        Ok(Looked { snapshot, tables, commits: is_conditional.then_some(commits) })
    }

    fn seen(
        &self,
        stream: &TopicStream,
        asked: Option<Asked<'_>>,
        is_wanted: bool,
        is_conditional: &mut bool,
    ) -> Result<Tables> {
        // In this order: what the sink reads meanwhile is in the window as well.
        let pending = self.store.as_ref().and_then(|store| store.pending(stream.topic()));
        let window = stream.window();
        let schema = match window.schema {
            Some(schema) => schema,
            None => self.streams.unseen(stream.topic())?,
        };
        let Some(mut asked) = asked else {
            let live = Arc::new(LiveTable::new(schema, window.batches, window.version));
            return Ok(Tables { tail: live.clone(), live });
        };
        let batches = match &pending {
            Some(pending) => tail(pending, &window.starts, &window.batches)?,
            // Its sink has not begun, so what comes next is not known.
            None if is_wanted => Vec::new(),
            None => {
                let stored = self.store.as_ref().and_then(|store| store.next(stream.topic()));
                let ends = stored.unwrap_or_default().or(&Positions::default());
                let stored = Pending { batches: Vec::new(), ends };
                tail(&stored, &window.starts, &window.batches)?
            }
        };
        asked.batches = batches.iter().chain(&window.batches).cloned().collect();
        let comes = |column: &str| {
            let field = schema.field_with_name(column);
            field.is_ok_and(|field| field.data_type() != &DataType::Binary)
        };
        let mut columns = grown(&asked.table.columns, &schema, comes, &mut asked)?;
        // What the sink has read from Kafka itself may have columns that the window has not seen.
        for batch in &batches {
            let batch = &batch.batch;
            let comes = |column: &str| {
                let values = batch.column_by_name(column);
                values.is_some_and(|values| values.null_count() < values.len())
            };
            if batch.schema_ref() != &schema {
                columns = grown(&columns, batch.schema_ref(), comes, &mut asked)?;
            }
        }
        *is_conditional |= asked.has_missed;
        let live = LiveTable::new(columns.clone(), window.batches, window.version);
        let tail = LiveTable::new(columns, batches, window.version);
        Ok(Tables { live: Arc::new(live), tail: Arc::new(tail) })
    }

    fn tables(&self) -> super::store::Tables {
        self.store.as_ref().map(|store| store.tables()).unwrap_or_default()
    }

    /// Makes the views of new topics and of those with new columns, and lets go of those of topics that are not there. A topic
    /// whose views cannot be made gets some that say why.
    fn look_after(&self, connection: &Connection, looked: &mut Looked) -> Result<()> {
        let mut views = self.views.lock();
        let Looked { snapshot, tables, .. } = looked;
        let topics: BTreeSet<&Arc<str>> = snapshot.keys().chain(tables.keys()).collect();
        let names = names(&topics, tables, &views);
        let wanted = topics.iter().zip(names).map(|(topic, name)| {
            let (window, failure) = match snapshot.get(*topic) {
                Some(Ok(tables)) => (Some(tables.live.columns().clone()), None),
                Some(Err(error)) => (None, Some(error.to_string())),
                None => (None, None),
            };
            let table = tables.get(*topic).cloned();
            ((*topic).clone(), Views { name, window, table, failure })
        });
        let mut wanted: BTreeMap<Arc<str>, Views> = wanted.collect();
        if *views == wanted {
            return Ok(());
        }
        let known = std::mem::take(&mut *views);
        let made = make(connection, snapshot, &known, &mut wanted);
        if made.is_err() {
            // Whichever of them there are now, all of them are made anew.
            wanted.extend(known);
            let unfinished = Some("it was not finished".to_owned());
            wanted.values_mut().for_each(|views| views.failure.clone_from(&unfinished));
        }
        *views = wanted;
        made
    }
}

/// Turns the views that are `known` into the ones that are wanted; those that cannot be made say why.
fn make(
    connection: &Connection,
    snapshot: &mut Snapshot,
    known: &BTreeMap<Arc<str>, Views>,
    wanted: &mut BTreeMap<Arc<str>, Views>,
) -> Result<()> {
    // Those whose names others may get go first.
    let mut gone = String::new();
    for (topic, before) in known {
        let name = quoted(&before.name);
        let after = wanted.get(topic).filter(|after| after.name == before.name);
        if before.has_live() && after.is_none_or(|after| !after.has_live()) {
            gone.push_str(&format!("drop view if exists live.main.{name};"));
        }
        if after.is_none() {
            gone.push_str(&format!("drop view if exists {VIEWS}.{name};"));
        }
    }
    connection.execute(&gone)?;
    let of_all = Arc::new(std::mem::take(snapshot));
    let mut failed = Vec::new();
    for (topic, after) in wanted.iter_mut() {
        let before = known.get(topic);
        if before == Some(after) {
            continue;
        }
        let making = Seeing::making(connection.database(), of_all.clone());
        let made = after.making(topic).and_then(|sql| connection.execute(&sql));
        drop(making);
        if let Err(error) = of_one_topic(made)? {
            after.failure = Some(error.to_string());
            failed.push((topic.clone(), error));
            let _making = Seeing::making(connection.database(), of_all.clone());
            connection.execute(&after.making(topic)?)?;
        }
        let is_known = before.is_some_and(|before| before.failure == after.failure);
        if let Some(why) = after.failure.as_ref().filter(|_| !is_known) {
            tracing::error!(%topic, %why, "a topic cannot be asked with SQL");
        }
    }
    *snapshot = Arc::into_inner(of_all).unwrap_or_default();
    snapshot.extend(failed.into_iter().map(|(topic, error)| (topic, Err(error))));
    Ok(())
}

/// What is there at one moment.
struct Looked {
    snapshot: Snapshot,
    tables: super::store::Tables,
    /// How often something was stored, if what the tables held has decided about columns.
    commits: Option<u64>,
}

/// What failed for one topic, or for what is stored, is an error for those who name it; what concerns the query is one for
/// the query.
fn of_one_topic<T>(done: Result<T>) -> Result<Result<T>> {
    match done {
        Err(error) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Exhausted) => {
            Err(error)
        }
        done => Ok(done),
    }
}

/// What a table says of its values, and the batches say of theirs that lie behind it.
struct Asked<'a> {
    catalog: &'a Catalog,
    connection: &'a Connection,
    table: &'a Table,
    batches: Vec<Arc<EncodedBatch>>,
    commits: u64,
    /// There was no such row, which the next one that is stored may change.
    has_missed: bool,
}

impl Asked<'_> {
    /// Whether a query of ours finds a row. It is asked once, as long as nothing else is stored.
    fn has(&mut self, sql: String) -> Result<bool> {
        let known = self.catalog.answers.lock().get(&sql).copied();
        if let Some((_, has)) = known.filter(|(commits, _)| *commits == self.commits) {
            self.has_missed |= !has;
            return Ok(has);
        }
        let mut found = self.connection.prepare(&sql)?;
        let first = found.run()?.next().transpose()?;
        let has = first.is_some_and(|rows| rows.num_rows() > 0);
        self.has_missed |= !has;
        let mut answers = self.catalog.answers.lock();
        answers.retain(|_, (commits, _)| *commits >= self.commits);
        answers.insert(sql, (self.commits, has));
        Ok(has)
    }
}

impl Values for Asked<'_> {
    fn is_empty(&mut self, column: &str) -> Result<bool> {
        Ok(!self.has(self.table.values_of(column))?)
    }

    fn is_wide(&mut self, path: &[Step]) -> Result<bool> {
        if self.batches.iter().any(|batch| is_wide_in(&batch.batch, path)) {
            return Ok(true);
        }
        let rows = self.table.wide_rows(path);
        rows.map_or(Ok(false), |sql| self.has(sql))
    }
}

/// Names of topics in SQL, which does not tell `orders` from `Orders`: those of their tables, where they have some; else those
/// that they have already, where no table has them.
fn names(
    topics: &BTreeSet<&Arc<str>>,
    tables: &HashMap<Arc<str>, Table>,
    views: &BTreeMap<Arc<str>, Views>,
) -> Vec<String> {
    let lower = |name: &str| name.to_ascii_lowercase();
    let mut taken: BTreeSet<String> = tables.values().map(|table| lower(&table.name)).collect();
    let known = topics.iter().filter(|topic| !tables.contains_key(**topic));
    let known = known.filter_map(|topic| Some((*topic, &views.get(*topic)?.name)));
    let kept: BTreeMap<&Arc<str>, &String> =
        known.filter(|(_, name)| taken.insert(lower(name))).collect();
    let mut name_of = |topic: &Arc<str>| {
        if let Some(table) = tables.get(topic) {
            return table.name.clone();
        }
        if let Some(name) = kept.get(topic) {
            return (*name).clone();
        }
        let numbered = (1..).map(|number| format!("{topic}_{number}"));
        let mut names = std::iter::once(topic.to_string()).chain(numbered);
        let free = names.find(|name| taken.insert(lower(name)));
        free.unwrap_or_default()
    };
    // `orders` before `Orders`, whoever comes first.
    let mut in_order: Vec<&Arc<str>> = topics.iter().copied().collect();
    in_order.sort_by_key(|topic| (lower(topic), std::cmp::Reverse(*topic)));
    let mut named: BTreeMap<&Arc<str>, String> =
        in_order.into_iter().map(|topic| (topic, name_of(topic))).collect();
    topics.iter().map(|topic| named.remove(*topic).unwrap_or_default()).collect()
}

impl Views {
    /// Whether there is one of the window.
    fn has_live(&self) -> bool {
        self.window.is_some() || self.failure.is_some()
    }

    /// The statements that make them. Each name is a whole one: topics may be called as catalogs and schemas are.
    fn making(&self, topic: &str) -> Result<String> {
        let name = quoted(&self.name);
        // A topic's name has no quotes: Kafka takes letters, digits, dots, underscores and hyphens.
        let scan = format!("from {FUNCTIONS}.{LIVE}('{topic}')");
        let live = format!("create or replace view live.main.{name} as {scan}");
        let whole = format!("create or replace view {VIEWS}.{name} as");
        if self.failure.is_some() {
            return Ok(format!("{live}; {whole} {scan}"));
        }
        Ok(match (&self.window, &self.table) {
            (Some(_), None) => format!("{live}; {whole} {scan}"),
            (Some(window), Some(table)) => format!(
                "{live}; {whole} select {} from {} union all \
                 select tail.* from {FUNCTIONS}.{TAIL}('{topic}') tail left join stored._karrow.offsets on \
                 (offsets.topic = '{topic}' and offsets.\"partition\" = tail.\"partition\") \
                 where next_offset is null or \"offset\" >= next_offset",
                selected(&table.columns, window)?,
                table.in_sql(),
            ),
            (None, Some(table)) => format!("{whole} from {}", table.in_sql()),
            (None, None) => String::new(),
        })
    }
}
