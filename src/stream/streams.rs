//! [`Streams`]: which topics are streams, and the clients that all of them share.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use parking_lot::Mutex;
use regex::Regex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::assembler::{Assembler, CutLimits};
use super::blocking;
use super::cursor::{Cursor, Sources};
use super::scan::ReaderPool;
use super::topic_stream::{ASK_TIMEOUT, Attached, StreamSettings, TopicStream};
use super::window::{Memory, Positions};
use crate::config::KafkaOptions;
use crate::config::streams::Start;
use crate::decode::formats::Formats;
use crate::decode::unite::unite;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::Partition;
use crate::kafka::options::ConsumerOptions;
use crate::kafka::producer::check_topic_name;
use crate::kafka::reader::LogReader;
use crate::kafka::topics::{OffsetOf, TopicInfo};
use crate::metrics::Metrics;

/// The name that brokers see, and the group that is never joined.
const CLIENT_ID: &str = "karrow-streams";

/// Records of each partition that show what columns a topic has.
const SAMPLES_MAX: i64 = 100;

/// Time between two looks for streams that nobody reads, and for topics that are to be streams.
const TEND_INTERVAL: Duration = Duration::from_millis(500);
const PATTERN_INTERVAL: Duration = Duration::from_secs(5);

/// Time between two questions to a partition that has no leader yet.
const LEADER_INTERVAL: Duration = Duration::from_millis(100);

/// How long a broker may wait for more records of a range that is there, in milliseconds.
const SCAN_WAIT_MS: u32 = 10;

/// Most regular expressions for topics that are to be streams.
const PATTERNS_MAX: usize = 1000;

/// Clients that read what no window has, at most.
const SCANS_MAX: usize = 8;

/// See the top of this file.
pub struct Streams {
    consumer: KafkaOptions,
    settings: StreamSettings,
    formats: Arc<Formats>,
    metrics: Arc<Metrics>,
    memory: Arc<Memory>,
    pool: Arc<ReaderPool>,
    /// Made when the first one is needed.
    clients: OnceLock<Arc<Clients>>,
    streams: Mutex<BTreeMap<Arc<str>, Entry>>,
    patterns: Mutex<Vec<Pattern>>,
    /// Tells of each topic that was a stream when its last one has ended.
    ended: Mutex<HashMap<Arc<str>, CancellationToken>>,
    stop: CancellationToken,
    runtime: Handle,
}

/// The clients of all streams. A broker serves the requests of a connection one after the other, and makes a fetch wait for
/// records, so questions have a client of their own.
pub(super) struct Clients {
    /// Reads the streams.
    pub(super) log: Arc<LogReader>,
    /// Is asked for topics and offsets.
    pub(super) asker: Arc<LogReader>,
}

struct Entry {
    stream: Arc<TopicStream>,
    /// Somebody has asked for it, so it stays without readers.
    stays: bool,
}

/// Topics whose names match are to be streams.
struct Pattern {
    names: Regex,
    /// Those that were there when they were looked for last; `None` before that.
    seen: Option<HashSet<String>>,
}

impl Pattern {
    /// Topics that are to be streams now, of all that there are, and where they begin: what comes to be later is wanted as
    /// a whole.
    fn look(&mut self, topics: &[TopicInfo], start: Start) -> Vec<(String, Start)> {
        let names = topics.iter().map(|topic| &topic.name);
        let there: HashSet<String> =
            names.filter(|name| self.names.is_match(name)).cloned().collect();
        let (before, start) = match self.seen.take() {
            Some(before) => (before, Start::Earliest),
            None => (HashSet::new(), start),
        };
        let new = there.difference(&before).map(|name| (name.clone(), start)).collect();
        self.seen = Some(there);
        new
    }
}

impl Streams {
    /// No streams yet; those to come take `settings`.
    ///
    /// # Errors
    /// librdkafka's options are illegal.
    pub fn new(
        consumer: KafkaOptions,
        settings: StreamSettings,
        memory: Arc<Memory>,
        formats: Arc<Formats>,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Result<Arc<Self>> {
        let mut options = options(&consumer)?;
        // The request that an earlier scan has left behind must not hold up the next one.
        options.options.insert("fetch.wait.max.ms".to_owned(), SCAN_WAIT_MS.to_string());
        let pool = ReaderPool::new(options, SCANS_MAX);
        Ok(Arc::new(Self {
            consumer,
            settings,
            formats,
            metrics,
            memory,
            pool,
            clients: OnceLock::new(),
            streams: Mutex::default(),
            patterns: Mutex::default(),
            ended: Mutex::default(),
            stop: CancellationToken::new(),
            runtime,
        }))
    }

    /// The stream of `topic`, if it has one.
    pub fn get(&self, topic: &str) -> Option<Arc<TopicStream>> {
        self.streams.lock().get(topic).map(|entry| entry.stream.clone())
    }

    /// All streams, in the order of their topics.
    pub fn all(&self) -> Vec<Arc<TopicStream>> {
        self.streams.lock().values().map(|entry| entry.stream.clone()).collect()
    }

    /// Topics that somebody wants as streams, read or not, in their order.
    pub fn wanted(&self) -> Vec<Arc<str>> {
        let streams = self.streams.lock();
        streams.iter().filter(|(_, entry)| entry.stays).map(|(topic, _)| topic.clone()).collect()
    }

    /// How many readers read ranges that no window has, and how many wait until they may.
    pub fn range_readers(&self) -> (usize, usize) {
        self.pool.users()
    }

    /// Bytes in all windows.
    pub fn bytes(&self) -> usize {
        self.memory.used()
    }

    /// The stream of `topic`, which begins now if it has none, or if the one it had has ended. It stays, whether it is read or
    /// not.
    ///
    /// # Errors
    /// An illegal name, or librdkafka's options are.
    pub async fn open(&self, topic: &str) -> Result<Arc<TopicStream>> {
        Ok(self.attach(topic, true, self.start_of(topic)).await?.share())
    }

    /// Where a stream begins that somebody asks for: at its beginning, if a pattern is about to find out that it is new.
    fn start_of(&self, topic: &str) -> Start {
        let is_new = |pattern: &Pattern| {
            let is_unseen = pattern.seen.as_ref().is_some_and(|seen| !seen.contains(topic));
            is_unseen && pattern.names.is_match(topic)
        };
        match self.patterns.lock().iter().any(is_new) {
            true => Start::Earliest,
            false => self.settings.start,
        }
    }

    /// Makes streams of the topics whose names match now, as [`add_pattern`](Self::add_pattern) does of those to come.
    ///
    /// # Errors
    /// There are too many patterns, or no broker answers.
    pub async fn open_pattern(&self, names: Regex) -> Result<()> {
        let topics = self.topics().await?;
        self.add_pattern(names.clone())?;
        self.open_matching(&topics).await;
        Ok(())
    }

    /// Makes streams of the topics whose names match, of each as soon as it exists; those that come after the first look
    /// from their beginning on.
    ///
    /// # Errors
    /// There are too many patterns.
    pub fn add_pattern(&self, names: Regex) -> Result<()> {
        let mut patterns = self.patterns.lock();
        if patterns.iter().any(|known| known.names.as_str() == names.as_str()) {
            return Ok(());
        }
        if patterns.len() >= PATTERNS_MAX {
            let why = format!("there are {PATTERNS_MAX} regular expressions for streams already");
            return Err(Error::new(ErrorKind::Exhausted, why));
        }
        patterns.push(Pattern { names, seen: None });
        Ok(())
    }

    /// Makes no more streams of topics that match this; those that it has made stay. Returns whether it was there.
    pub fn remove_pattern(&self, names: &str) -> bool {
        let mut patterns = self.patterns.lock();
        let count = patterns.len();
        patterns.retain(|pattern| pattern.names.as_str() != names);
        patterns.len() < count
    }

    async fn attach(&self, topic: &str, stays: bool, start: Start) -> Result<Attached> {
        check_topic_name(topic)?;
        let clients = self.clients().await?;
        let mut streams = self.streams.lock();
        if self.stop.is_cancelled() {
            return Err(Error::new(ErrorKind::Unavailable, "karrow is shutting down"));
        }
        let stays = stays || streams.get(topic).is_some_and(|known| known.stays);
        if let Some(known) = streams.get_mut(topic)
            && !known.stream.has_ended()
        {
            known.stays = stays;
            return Ok(known.stream.attach());
        }
        let topic: Arc<str> = Arc::from(topic);
        let settings = StreamSettings { start, ..self.settings.clone() };
        let memory = self.memory.clone();
        let stream = TopicStream::new(topic.clone(), settings, memory, &self.metrics);
        let attached = stream.attach();
        streams.insert(topic.clone(), Entry { stream: stream.clone(), stays });
        let mut ended = self.ended.lock();
        ended.retain(|_, ended| !ended.is_cancelled());
        let before = ended.insert(topic, stream.ended());
        self.runtime.spawn(stream.feed(clients, self.formats.clone(), before));
        Ok(attached)
    }

    /// Ends the stream of `topic`; returns whether there was one.
    pub fn close(&self, topic: &str) -> bool {
        // With the lock, because another stream of the topic counts with the same labels.
        let mut streams = self.streams.lock();
        streams.remove(topic).inspect(|entry| self.end(entry)).is_some()
    }

    /// Ends all of them, and takes no new ones.
    pub fn close_all(&self) {
        self.stop.cancel();
        let mut streams = self.streams.lock();
        std::mem::take(&mut *streams).values().for_each(|entry| self.end(entry));
    }

    fn end(&self, entry: &Entry) {
        entry.stream.close();
        for reason in ["full", "old", "broken"] {
            let labels = [&**entry.stream.topic(), reason];
            let _ = self.metrics.stream_dropped_rows.remove_label_values(&labels);
        }
    }

    /// Ends streams that nobody reads and nobody asked for, and opens those that match a pattern, until
    /// [all are closed](Self::close_all).
    pub async fn tend(self: Arc<Self>) {
        let mut looked: Option<Instant> = None;
        while self.stop.run_until_cancelled(tokio::time::sleep(TEND_INTERVAL)).await.is_some() {
            self.close_idle();
            let is_new = |pattern: &Pattern| pattern.seen.is_none();
            let is_due = looked.is_none_or(|looked| looked.elapsed() >= PATTERN_INTERVAL);
            if !is_due && !self.patterns.lock().iter().any(is_new) {
                continue;
            }
            looked = Some(Instant::now());
            for (topic, start) in self.failed() {
                if let Err(error) = self.attach(&topic, true, start).await {
                    tracing::warn!(%topic, %error, "opening a stream again");
                }
            }
            if self.patterns.lock().is_empty() {
                continue;
            }
            match self.topics().await {
                Ok(topics) => self.open_matching(&topics).await,
                Err(error) => tracing::warn!(%error, "looking for topics that are to be streams"),
            }
        }
    }

    fn close_idle(&self) {
        let idle_max = self.settings.window.age_max;
        self.streams.lock().retain(|topic, entry| {
            let is_idle = !entry.stays && entry.stream.idle().is_some_and(|idle| idle >= idle_max);
            if is_idle {
                tracing::info!(%topic, "nobody reads this stream: closed");
                self.end(entry);
            }
            !is_idle
        });
    }

    /// Topics that are wanted as streams, and whose streams have failed, with where they are to begin; not because of a full
    /// window, which stays so until somebody looks after it.
    fn failed(&self) -> Vec<(Arc<str>, Start)> {
        let start = |entry: &Entry| match entry.stream.failure()?.kind() {
            ErrorKind::Exhausted => None,
            // It was made anew, or will be.
            ErrorKind::NotFound => Some(Start::Earliest),
            _ => Some(self.settings.start),
        };
        let streams = self.streams.lock();
        let wanted = streams.iter().filter(|(_, entry)| entry.stays);
        wanted.filter_map(|(topic, entry)| Some((topic.clone(), start(entry)?))).collect()
    }

    async fn open_matching(&self, topics: &[TopicInfo]) {
        let start = self.settings.start;
        let look = |pattern: &mut Pattern| pattern.look(topics, start);
        let wanted: Vec<_> = self.patterns.lock().iter_mut().flat_map(look).collect();
        for (topic, start) in wanted {
            if let Err(error) = self.attach(&topic, true, start).await {
                tracing::warn!(%topic, %error, "opening a stream");
                for pattern in self.patterns.lock().iter_mut() {
                    pattern.seen.as_mut().map(|seen| seen.remove(&topic));
                }
            }
        }
    }

    /// A cursor on `topic` from `from` to `until`.
    ///
    /// # Errors
    /// As [`Cursor::new`].
    pub fn cursor(&self, topic: &str, from: Positions, until: Positions) -> Result<Cursor> {
        let stream = self.get(topic).map(|stream| stream.attach());
        Cursor::new(self.sources(topic), stream, from, Some(until))
    }

    /// A cursor on `topic` that follows it from `from` on; its stream begins now if it has none.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn follow(&self, topic: &str, from: Positions) -> Result<Cursor> {
        let stream = self.attach(topic, false, self.start_of(topic)).await?;
        Cursor::new(self.sources(topic), Some(stream), from, None)
    }

    /// The columns of a topic of which nothing was seen.
    ///
    /// # Errors
    /// Its formats cannot be had.
    pub fn unseen(&self, topic: &str) -> Result<SchemaRef> {
        Assembler::new(topic.into(), &self.formats, self.settings.cut)?.schema()
    }

    /// The columns of some records from `from` up to `to`, or up to where the topic ends: the first and the last ones of each
    /// partition. Nothing is made or kept for it.
    ///
    /// # Errors
    /// The topic does not exist, or cannot be read.
    pub async fn sample(
        &self,
        topic: &str,
        from: &Positions,
        to: Option<&Positions>,
    ) -> Result<Option<SchemaRef>> {
        let ends = self.offsets(topic, OffsetOf::End).await?;
        let to = to.map_or(ends.clone(), |to| ends.lower(to));
        let mut from = from.clone();
        from.raise_all(&self.offsets(topic, OffsetOf::Beginning).await?);
        let (mut head, mut tail) = (to.clone(), from.clone());
        for (partition, end) in to.iter() {
            head.set(partition, end.min(from.get(partition) + SAMPLES_MAX));
            tail.raise(partition, (end - SAMPLES_MAX).max(head.get(partition)));
        }
        // The second range knows the columns of the first.
        let mut schema = None;
        for (from, to) in [(from, head), (tail, to)] {
            let mut cursor = Cursor::new(self.sources(topic), None, from, Some(to))?;
            loop {
                match cursor.next().await {
                    Ok(Some(batch)) => {
                        let new = batch.batch.schema();
                        schema = Some(schema.map_or(new.clone(), |known| united(&known, &new)));
                    }
                    Ok(None) => break,
                    // A bad record, which the topic does not allow, is for those who read as far as that.
                    Err(error) if error.kind() == ErrorKind::Conflict => return Ok(schema),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(schema)
    }

    fn sources(&self, topic: &str) -> Sources {
        Sources {
            topic: Arc::from(topic),
            pool: self.pool.clone(),
            formats: self.formats.clone(),
            cut: CutLimits { linger: Duration::ZERO, ..self.settings.cut },
        }
    }

    /// Every topic of the cluster, in the order of their names.
    ///
    /// # Errors
    /// No broker answered in time.
    pub async fn topics(&self) -> Result<Vec<TopicInfo>> {
        let reader = self.clients().await?.asker.clone();
        blocking(move || reader.topics(ASK_TIMEOUT)).await
    }

    /// How many partitions `topic` has.
    ///
    /// # Errors
    /// The topic does not exist ([`ErrorKind::NotFound`]), or no broker answers.
    pub async fn partition_count(&self, topic: &str) -> Result<i32> {
        check_topic_name(topic)?;
        let reader = self.clients().await?.asker.clone();
        let topic = topic.to_owned();
        blocking(move || count(&reader, &topic)).await
    }

    /// An offset of every partition of `topic`, as its leaders have it now; where there is none, as for a time that lies behind
    /// all records, the end.
    ///
    /// # Errors
    /// The topic does not exist ([`ErrorKind::NotFound`]), or its leaders do not answer.
    pub async fn offsets(&self, topic: &str, of: OffsetOf) -> Result<Positions> {
        check_topic_name(topic)?;
        let reader = self.clients().await?.asker.clone();
        let topic: Arc<str> = Arc::from(topic);
        blocking(move || {
            let partitions: Vec<Partition> = (0..count(&reader, &topic)?)
                .map(|partition| Partition::new(topic.clone(), partition, None))
                .collect();
            let ask = |of| -> Result<Positions> {
                let mut positions = Positions::new(vec![-1; partitions.len()]);
                for found in settled(|| reader.offsets(&partitions, of, ASK_TIMEOUT))? {
                    positions.set(found.partition, found.offset.unwrap_or(-1));
                }
                Ok(positions)
            };
            let mut found = ask(of)?;
            if found.iter().any(|(_, offset)| offset < 0) {
                for (partition, end) in ask(OffsetOf::End)?.iter() {
                    if found.get(partition) < 0 {
                        found.set(partition, end.max(0));
                    }
                }
            }
            Ok(found)
        })
        .await
    }

    async fn clients(&self) -> Result<Arc<Clients>> {
        if let Some(clients) = self.clients.get() {
            return Ok(clients.clone());
        }
        let options = options(&self.consumer)?;
        let made = blocking(move || {
            let (log, asker) = (LogReader::new(&options)?, LogReader::new(&options)?);
            Ok(Clients { log: Arc::new(log), asker: Arc::new(asker) })
        });
        let made = Arc::new(made.await?);
        Ok(self.clients.get_or_init(|| made).clone())
    }
}

/// The columns of both, those of `known` first; what contradicts them is left out.
pub fn united(known: &SchemaRef, new: &SchemaRef) -> SchemaRef {
    let [known_type, new_type] = [known, new].map(|schema| DataType::Struct(schema.fields.clone()));
    let Some(DataType::Struct(fields)) = unite(&known_type, &new_type) else {
        return known.clone();
    };
    let as_known = |field: &FieldRef| {
        let known = known.field_with_name(field.name());
        let is_nullable = known.map_or(true, Field::is_nullable);
        Arc::new(field.as_ref().clone().with_nullable(is_nullable))
    };
    Arc::new(Schema::new(fields.iter().map(as_known).collect::<Fields>()))
}

fn count(reader: &LogReader, topic: &str) -> Result<i32> {
    match reader.partition_count(topic, ASK_TIMEOUT)? {
        0 => {
            let missing = format!("topic '{topic}' does not exist");
            Err(Error::new(ErrorKind::NotFound, missing))
        }
        count => Ok(count),
    }
}

/// Asks again while a partition has no leader, as in the moment after its topic was made. Blocks.
fn settled<T>(ask: impl Fn() -> Result<T>) -> Result<T> {
    let until = Instant::now() + ASK_TIMEOUT;
    loop {
        match ask() {
            Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < until => {
                std::thread::sleep(LEADER_INTERVAL);
            }
            asked => return asked,
        }
    }
}

fn options(consumer: &KafkaOptions) -> Result<ConsumerOptions> {
    ConsumerOptions::new(consumer, &serde_json::Map::new(), CLIENT_ID, CLIENT_ID)
}
