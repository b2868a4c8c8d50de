//! [`Catalog`]: what topics are called in SQL. Each has views: `live.<topic>` of its window, and `<topic>` of what is stored and
//! the live rows behind that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use parking_lot::Mutex;

use super::duck::Connection;
use super::growth::{grown, selected};
use super::live::{LIVE, LiveTable, Seeing, Snapshot, TAIL, Tables};
use super::store::{Store, Table};
use super::tail::tail;
use super::types::quoted;
use crate::error::{Error, Result};
use crate::stream::streams::Streams;
use crate::stream::topic_stream::TopicStream;

/// How often it is looked again because a table has changed meanwhile.
const LOOKS_MAX: usize = 5;

/// See the top of this file.
pub struct Catalog {
    streams: Arc<Streams>,
    /// Topics as tables, if they are stored.
    store: Option<Arc<Store>>,
    /// By topic.
    views: Mutex<BTreeMap<Arc<str>, Views>>,
}

/// The views of a topic.
#[derive(PartialEq)]
struct Views {
    /// The topic's, unless another one differs from it in upper and lower case only.
    name: String,
    /// What they are made for: the window's columns, and the table.
    window: Option<SchemaRef>,
    table: Option<Table>,
}

impl Catalog {
    /// Of these streams and tables.
    pub fn new(streams: Arc<Streams>, store: Option<Arc<Store>>) -> Self {
        Self { streams, store, views: Mutex::default() }
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

    /// Whether a table is there, and its topic's payload was seen.
    pub fn knows_columns_of(&self, name: &str) -> bool {
        let has_payload = |columns: &SchemaRef| {
            let payload = columns.field_with_name("payload");
            payload.is_ok_and(|payload| payload.data_type() != &DataType::Binary)
        };
        self.views.lock().values().any(|views| {
            let table = views.table.as_ref().map(|table| &table.columns);
            views.name.eq_ignore_ascii_case(name)
                && views.window.iter().chain(table).any(has_payload)
        })
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
        let names = connection.table_names(sql)?;
        let views = self.views.lock();
        let is_a_name = |name: &str| views.values().any(|views| views.name == name);
        let is_meant = |topic: &str| names.iter().any(|name| name == topic && !is_a_name(name));
        match views.iter().filter(is_other).find(|(topic, _)| is_meant(topic)) {
            None => Ok(()),
            Some((topic, Views { name, .. })) => Err(Error::invalid(format!(
                "the topic '{topic}' is called {} here, because SQL does not tell upper from lower case",
                quoted(name)
            ))),
        }
    }

    /// All windows as they are now, with the columns of their tables.
    ///
    /// # Errors
    /// A topic's formats cannot be had, or DuckDB's.
    pub fn snapshot(&self, connection: &Connection) -> Result<Arc<Snapshot>> {
        for _ in 0..LOOKS_MAX {
            let tables = self.tables();
            let wanted: BTreeSet<Arc<str>> = self.streams.wanted().into_iter().collect();
            let seen = |stream: Arc<TopicStream>| {
                let topic = stream.topic();
                let table = tables.get(topic);
                let tables = self.seen(&stream, table, wanted.contains(topic), connection)?;
                Ok((topic.clone(), tables))
            };
            let snapshot =
                self.streams.all().into_iter().map(seen).collect::<Result<Snapshot>>()?;
            // What a table had was asked of the table itself, which may have become another one since.
            if self.tables() == tables {
                return Ok(Arc::new(snapshot));
            }
        }
        Err(Error::internal("tables change without end"))
    }

    fn seen(
        &self,
        stream: &TopicStream,
        table: Option<&Table>,
        is_wanted: bool,
        connection: &Connection,
    ) -> Result<Tables> {
        // In this order: what the sink reads meanwhile is in the window as well.
        let pending = self.store.as_ref().and_then(|store| store.pending(stream.topic()));
        let window = stream.window();
        let schema = match window.schema {
            Some(schema) => schema,
            None => self.streams.unseen(stream.topic())?,
        };
        let Some(table) = table else {
            let live = Arc::new(LiveTable::new(schema, window.batches, window.version));
            return Ok(Tables { tail: live.clone(), live });
        };
        let is_empty = |column: &str| is_empty(connection, table, column);
        let comes = |column: &str| {
            let field = schema.field_with_name(column);
            field.is_ok_and(|field| field.data_type() != &DataType::Binary)
        };
        let columns = grown(&table.columns, &schema, is_empty, comes)?;
        let batches = match pending {
            Some(pending) => tail(&pending, &window.starts, &window.batches)?,
            // Its sink has not begun, so what comes next is not known.
            None if is_wanted => Vec::new(),
            None => window.batches.clone(),
        };
        let live = LiveTable::new(columns.clone(), window.batches, window.version);
        let tail = LiveTable::new(columns, batches, window.version);
        Ok(Tables { live: Arc::new(live), tail: Arc::new(tail) })
    }

    fn tables(&self) -> HashMap<Arc<str>, Table> {
        self.store.as_ref().map(|store| store.tables()).unwrap_or_default()
    }

    /// Makes the views of new topics and of those with new columns, and lets go of those of topics that are not there.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn look_after(&self, connection: &Connection, snapshot: &Arc<Snapshot>) -> Result<()> {
        let mut views = self.views.lock();
        let tables = self.tables();
        let topics: BTreeSet<&Arc<str>> = snapshot.keys().chain(tables.keys()).collect();
        let names = names(&topics, &tables, &views);
        let wanted = topics.iter().zip(names).map(|(topic, name)| {
            let window = snapshot.get(*topic).map(|tables| tables.live.columns().clone());
            ((*topic).clone(), Views { name, window, table: tables.get(*topic).cloned() })
        });
        let wanted: BTreeMap<Arc<str>, Views> = wanted.collect();
        if *views == wanted {
            return Ok(());
        }
        let _seeing = Seeing::begin(snapshot.clone());
        // Those whose names others may get go first.
        let mut gone = String::new();
        for (topic, before) in views.iter() {
            let name = quoted(&before.name);
            let after = wanted.get(topic).filter(|after| after.name == before.name);
            if before.window.is_some() && after.is_none_or(|after| after.window.is_none()) {
                gone.push_str(&format!("drop view if exists live.main.{name};"));
            }
            if after.is_none() {
                gone.push_str(&format!("drop view if exists main.{name};"));
            }
        }
        connection.execute(&gone)?;
        for (topic, after) in &wanted {
            if views.get(topic) != Some(after) {
                connection.execute(&after.making(topic)?)?;
            }
        }
        *views = wanted;
        Ok(())
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
    topics.iter().map(|topic| name_of(topic)).collect()
}

/// Whether a column of a table has no values.
fn is_empty(connection: &Connection, table: &Table, column: &str) -> Result<bool> {
    let (name, column) = (quoted(&table.name), quoted(column));
    let sql = format!("select 1 from stored.main.{name} where {column} is not null limit 1");
    let mut found = connection.prepare(&sql)?;
    let first = found.run()?.next().transpose()?;
    Ok(first.is_none_or(|rows| rows.num_rows() == 0))
}

impl Views {
    /// The statements that make them.
    fn making(&self, topic: &str) -> Result<String> {
        let name = quoted(&self.name);
        // A topic's name has no quotes: Kafka takes letters, digits, dots, underscores and hyphens.
        let live = format!("create or replace view live.main.{name} as from {LIVE}('{topic}')");
        let whole = format!("create or replace view main.{name} as");
        let stored = |table: &Table| format!("from stored.main.{}", quoted(&table.name));
        Ok(match (&self.window, &self.table) {
            (Some(_), None) => format!("{live}; {whole} from {LIVE}('{topic}')"),
            (Some(window), Some(table)) => format!(
                "{live}; {whole} select {} {} union all \
                 select tail.* from {TAIL}('{topic}') tail left join stored._karrow.offsets on \
                 (offsets.topic = '{topic}' and offsets.\"partition\" = tail.\"partition\") \
                 where next_offset is null or \"offset\" >= next_offset",
                selected(&table.columns, window)?,
                stored(table),
            ),
            (None, Some(table)) => format!("{whole} {}", stored(table)),
            (None, None) => String::new(),
        })
    }
}
