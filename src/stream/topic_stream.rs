//! [`TopicStream`]: one topic as a window of recent batches, fed from Kafka without a group.
//!
//! Its task takes records out of librdkafka only when it has room for them, so a stream that must wait costs no more than
//! its window and librdkafka's prefetch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::assembler::{Assembler, CutLimits};
use super::encoded::EncodedBatch;
use super::streams::Clients;
use super::window::{Evicted, Memory, Positions, Window, WindowLimits};
use super::{blocking, is_passing};
use crate::config::streams::{Start, WhenFull};
use crate::decode::formats::Formats;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::Partition;
use crate::kafka::consumer::Fetched;
use crate::kafka::reader::{LogReader, Logged, Reading};
use crate::kafka::topics::OffsetOf;
use crate::metrics::Metrics;

/// Deadline of one request for partitions and offsets.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two looks for new partitions, and between tries to begin.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Looks that find a topic gone before its stream ends: a broker that has just started may not know it yet.
const MISSES_MAX: u32 = 2;

/// Time between two looks at the lag.
const LAG_INTERVAL: Duration = Duration::from_secs(1);

/// How a stream is made.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    /// Where it begins.
    pub start: Start,
    /// What its window may hold.
    pub window: WindowLimits,
    /// What happens when that is full.
    pub when_full: WhenFull,
    /// When batches are cut.
    pub cut: CutLimits,
}

/// What a stream is doing.
#[derive(Clone, Debug, Default)]
pub enum Phase {
    /// It finds out where to begin.
    #[default]
    Starting,
    /// It follows its topic.
    Live,
    /// Its window is full, see [`WhenFull::Pause`].
    Paused,
    /// It ended by itself: why.
    Failed(Error),
    /// It was told to end.
    Closed,
}

/// See the top of this file.
pub struct TopicStream {
    topic: Arc<str>,
    settings: StreamSettings,
    state: Mutex<State>,
    /// Counts the changes of `state` that readers wait for.
    changes: watch::Sender<u64>,
    stop: CancellationToken,
    readers: Mutex<Readers>,
    /// Its task has ended, and reads nothing any more.
    ended: CancellationToken,
    dropped_full: IntCounter,
    dropped_old: IntCounter,
    dropped_broken: IntCounter,
}

struct Readers {
    count: usize,
    /// When the last one went.
    since: Instant,
}

/// A stream with somebody who reads it: as long as it is there, the stream is not idle.
pub struct Attached(Arc<TopicStream>);

impl Attached {
    /// The stream alone.
    pub fn share(&self) -> Arc<TopicStream> {
        self.0.clone()
    }
}

impl std::ops::Deref for Attached {
    type Target = TopicStream;

    fn deref(&self) -> &TopicStream {
        &self.0
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut readers = self.0.readers.lock();
        readers.count -= 1;
        readers.since = Instant::now();
    }
}

struct State {
    phase: Phase,
    window: Window,
    /// Where its partitions began.
    begins: Positions,
    schema: Option<SchemaRef>,
    /// How many schemas there were.
    epoch: u64,
    dropped: Evicted,
    /// Where its partitions end, as far as Kafka has said.
    log_ends: Vec<(i32, i64)>,
}

/// What a stream looks like from outside.
#[derive(Clone, Debug)]
pub struct StreamView {
    /// What it is doing.
    pub phase: Phase,
    /// The columns of its newest batch.
    pub schema: Option<SchemaRef>,
    /// How many schemas it has had.
    pub epoch: u64,
    /// Where it began.
    pub begins: Positions,
    /// From where on its window has everything.
    pub starts: Positions,
    /// Up to where.
    pub ends: Positions,
    /// Rows in its window.
    pub rows: u64,
    /// Bytes in its window.
    pub bytes: usize,
    /// Rows that have left its window.
    pub dropped: Evicted,
    /// How old its oldest batch is.
    pub age: Option<Duration>,
    /// Records between its end and that of its partitions, as far as Kafka has said.
    pub lag: Option<i64>,
    /// Where its partitions end, as far as Kafka has said or it has read.
    pub log_ends: Positions,
    /// How many read it at this moment.
    pub readers: usize,
}

/// What a window holds at one moment.
pub struct Held {
    /// The columns of its newest batch.
    pub schema: Option<SchemaRef>,
    /// From where on it has everything.
    pub starts: Positions,
    /// Its batches.
    pub batches: Vec<Arc<EncodedBatch>>,
    /// How often what can be read of it had changed.
    pub version: u64,
}

impl Phase {
    /// In one word.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Live => "live",
            Self::Paused => "paused",
            Self::Failed(_) => "failed",
            Self::Closed => "closed",
        }
    }

    /// Why it has ended by itself, if it has.
    pub fn failure(&self) -> Option<&Error> {
        match self {
            Self::Failed(error) => Some(error),
            _ => None,
        }
    }
}

impl TopicStream {
    /// A stream that has not begun; [`feed`](Self::feed) is its task.
    pub fn new(
        topic: Arc<str>,
        settings: StreamSettings,
        memory: Arc<Memory>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let window = Window::new(Positions::default(), settings.window, memory);
        let state = State {
            phase: Phase::Starting,
            window,
            begins: Positions::default(),
            schema: None,
            epoch: 0,
            dropped: Evicted::default(),
            log_ends: Vec::new(),
        };
        let dropped =
            |reason: &str| metrics.stream_dropped_rows.with_label_values(&[&*topic, reason]);
        let (dropped_full, dropped_old) = (dropped("full"), dropped("old"));
        let dropped_broken = dropped("broken");
        Arc::new(Self {
            topic,
            settings,
            state: Mutex::new(state),
            changes: watch::Sender::new(0),
            stop: CancellationToken::new(),
            readers: Mutex::new(Readers { count: 0, since: Instant::now() }),
            ended: CancellationToken::new(),
            dropped_full,
            dropped_old,
            dropped_broken,
        })
    }

    /// The topic's name.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// Tells of each change of what can be read, from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Ends its task, and tells readers.
    pub fn close(&self) {
        self.stop.cancel();
    }

    /// A snapshot, without side effects.
    pub fn view(&self) -> StreamView {
        let state = self.state.lock();
        let lag =
            |(partition, end): &(i32, i64)| (end - state.window.ends().get(*partition)).max(0);
        let mut log_ends = state.window.ends().clone();
        state.log_ends.iter().for_each(|(partition, end)| log_ends.raise(*partition, *end));
        StreamView {
            phase: state.phase.clone(),
            schema: state.schema.clone(),
            epoch: state.epoch,
            begins: state.begins.clone(),
            starts: state.window.starts().clone(),
            ends: state.window.ends().clone(),
            rows: state.window.rows(),
            bytes: state.window.bytes(),
            dropped: state.dropped,
            age: state.window.oldest_made().map(|made| made.elapsed()),
            lag: (!state.log_ends.is_empty()).then(|| state.log_ends.iter().map(lag).sum()),
            log_ends,
            readers: self.readers.lock().count,
        }
    }

    /// The same, once it knows where it begins, or after a few seconds in which it does not find out.
    pub async fn begun(&self) -> StreamView {
        let mut changes = self.changes();
        let begins = changes.wait_for(|_| !matches!(self.state.lock().phase, Phase::Starting));
        let _ = tokio::time::timeout(ASK_TIMEOUT, begins).await;
        self.view()
    }

    /// What its window holds.
    pub fn window(&self) -> Held {
        let version = self.version();
        let state = self.state.lock();
        Held {
            schema: state.schema.clone(),
            starts: state.window.starts().clone(),
            batches: state.window.batches().cloned().collect(),
            version,
        }
    }

    /// How often what can be read of it has changed.
    pub fn version(&self) -> u64 {
        *self.changes.borrow()
    }

    /// Somebody reads it.
    pub fn attach(self: &Arc<Self>) -> Attached {
        self.readers.lock().count += 1;
        Attached(self.clone())
    }

    /// How long nobody has read it; `None` while somebody does.
    pub fn idle(&self) -> Option<Duration> {
        let readers = self.readers.lock();
        (readers.count == 0).then(|| readers.since.elapsed())
    }

    /// Whether it will never have anything new.
    pub fn has_ended(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Failed(_) | Phase::Closed)
    }

    /// Why it has ended by itself.
    pub fn failure(&self) -> Option<Error> {
        self.state.lock().phase.failure().cloned()
    }

    fn count(&self, state: &mut State, evicted: Evicted) {
        state.dropped.full_rows += evicted.full_rows;
        state.dropped.old_rows += evicted.old_rows;
        state.dropped.broken_rows += evicted.broken_rows;
        self.dropped_full.inc_by(evicted.full_rows);
        self.dropped_old.inc_by(evicted.old_rows);
        self.dropped_broken.inc_by(evicted.broken_rows);
    }

    /// Cancelled when its task has ended.
    pub(super) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Follows its topic until it is closed or fails, once `before` has ended, which read the topic with the same client.
    pub(super) async fn feed(
        self: Arc<Self>,
        clients: Arc<Clients>,
        formats: Arc<Formats>,
        before: Option<CancellationToken>,
    ) {
        if let Some(before) = before {
            before.cancelled().await;
        }
        let ended = match self.run(&clients, formats).await {
            Ok(()) => Phase::Closed,
            Err(error) => {
                tracing::error!(topic = %self.topic, %error, "a stream has ended");
                Phase::Failed(error)
            }
        };
        let mut state = self.state.lock();
        state.phase = ended;
        // Who still wants what was there gets it from Kafka.
        state.window.clear();
        drop(state);
        self.changed();
        self.ended.cancel();
    }

    async fn run(&self, clients: &Clients, formats: Arc<Formats>) -> Result<()> {
        let ready = Arc::new(Notify::new());
        let wake = ready.clone();
        let reading = clients.log.reading(Box::new(move || wake.notify_one()))?;
        let mut feed = Feed {
            stream: self,
            assembler: Assembler::new(self.topic.clone(), &formats, self.settings.cut)?,
            reading: Arc::new(Mutex::new(reading)),
            ready,
            found: VecDeque::new(),
            partitions: 0,
            was_missing: false,
            misses: 0,
            ends: Vec::new(),
            looked: Instant::now(),
        };
        let ended = tokio::select! {
            () = self.stop.cancelled() => Ok(()),
            ended = feed.follow(clients) => ended,
        };
        let reading = feed.reading.clone();
        blocking(move || {
            reading.lock().stop();
            Ok(())
        })
        .await?;
        ended
    }

    /// Shows `look` the window; returns what the stream is doing, too.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Window) -> T) -> (T, Phase) {
        let state = self.state.lock();
        (look(&state.window), state.phase.clone())
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// Where to begin reading each of `partitions`. Blocks.
fn starts_of(reader: &LogReader, partitions: &[Partition], start: Start) -> Result<Vec<Partition>> {
    let ask = |of| reader.offsets(partitions, of, ASK_TIMEOUT);
    let end_of = |ends: &[Partition], partition: i32| {
        ends.iter().find(|end| end.partition == partition).and_then(|end| end.offset)
    };
    match start {
        Start::Earliest => ask(OffsetOf::Beginning),
        Start::Latest => ask(OffsetOf::End),
        Start::Time(millis) => {
            let mut found = ask(OffsetOf::Time(millis))?;
            if found.iter().any(|found| found.offset.is_none()) {
                let ends = ask(OffsetOf::End)?;
                for found in found.iter_mut().filter(|found| found.offset.is_none()) {
                    found.offset = end_of(&ends, found.partition);
                }
            }
            Ok(found)
        }
        Start::Offset(offset) => {
            let (mut found, ends) = (ask(OffsetOf::Beginning)?, ask(OffsetOf::End)?);
            for found in &mut found {
                let end = end_of(&ends, found.partition).unwrap_or(offset);
                found.offset = found.offset.map(|first| offset.min(end).max(first));
            }
            Ok(found)
        }
    }
}

/// What the task of a stream knows.
struct Feed<'a> {
    stream: &'a TopicStream,
    assembler: Assembler,
    /// Locked for longer only by what may block, and that is waited for.
    reading: Arc<Mutex<Reading>>,
    /// There is something to be taken.
    ready: Arc<Notify>,
    /// What was taken, and is not in the assembler yet.
    found: VecDeque<Logged>,
    /// How many partitions are read.
    partitions: i32,
    /// Its topic did not exist when it was looked for.
    was_missing: bool,
    /// Looks in a row that found it gone, or with fewer partitions than are read.
    misses: u32,
    /// Ends that were reached behind what is in the assembler.
    ends: Vec<(i32, i64)>,
    /// When the ends of its partitions were looked at last.
    looked: Instant,
}

impl Feed<'_> {
    async fn follow(&mut self, clients: &Clients) -> Result<()> {
        let mut look = Instant::now();
        loop {
            if look <= Instant::now() {
                look = Instant::now() + self.read_new_partitions(&clients.asker).await?;
            }
            self.look_at_ends(&clients.log);
            self.expire();
            if let Some(until) = self.wait_for_room()? {
                let next_look = Instant::now() + LAG_INTERVAL;
                tokio::time::sleep_until(until.min(look).min(next_look).into()).await;
                continue;
            }
            let due = self.assembler.due();
            if self.assembler.is_full() || due.is_some_and(|due| due <= Instant::now()) {
                self.cut().await?;
                continue;
            }
            if self.found.is_empty() {
                self.reading.lock().take(&mut self.found);
            }
            if self.found.is_empty() {
                let mut until = due.unwrap_or(look).min(look);
                if let Some(old) = self.stream.state.lock().window.oldest_until() {
                    until = until.min(old);
                }
                tokio::select! {
                    () = self.ready.notified() => {}
                    () = tokio::time::sleep_until(until.into()) => {}
                }
                continue;
            }
            while !self.assembler.is_full()
                && let Some(found) = self.found.pop_front()
            {
                self.gather(found, &clients.asker).await?;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Begins reading partitions that are not read yet; returns when to look again.
    async fn read_new_partitions(&mut self, asker: &Arc<LogReader>) -> Result<Duration> {
        let (topic, known) = (self.stream.topic.clone(), self.partitions);
        let is_first = known == 0;
        // All that is in a partition that comes later is new.
        let is_new = !is_first || self.was_missing;
        let start = if is_new { Start::Earliest } else { self.stream.settings.start };
        let (asked, asking) = (asker.clone(), topic.clone());
        let ask = move || {
            let count = asked.partition_count(&asking, ASK_TIMEOUT)?;
            let new: Vec<Partition> = (known..count)
                .map(|partition| Partition::new(asking.clone(), partition, None))
                .collect();
            let starts = if new.is_empty() { new } else { starts_of(&asked, &new, start)? };
            Ok((count, starts))
        };
        let asked = blocking(ask).await;
        let is_gone = matches!(&asked, Ok((count, _)) if *count < known);
        self.misses = if is_gone { self.misses + 1 } else { 0 };
        if self.misses >= MISSES_MAX {
            let why = format!("topic '{topic}' was deleted, or made anew with fewer partitions");
            return Err(Error::new(ErrorKind::NotFound, why));
        }
        let starts = match asked.map(|(_, starts)| starts) {
            Ok(starts) if starts.is_empty() && is_first => {
                self.was_missing = true;
                return Ok(RETRY_INTERVAL);
            }
            Ok(starts) => starts,
            Err(error) if is_passing(&error) => {
                tracing::warn!(%topic, %error, "cannot tell where to begin");
                return Ok(RETRY_INTERVAL);
            }
            Err(error) => return Err(error),
        };
        if !starts.is_empty() {
            let (reading, begin) = (self.reading.clone(), starts.clone());
            blocking(move || {
                let mut reading = reading.lock();
                begin.iter().try_for_each(|start| {
                    reading.start(&start.topic, start.partition, start.offset.unwrap_or(0))
                })
            })
            .await?;
            self.partitions += starts.len() as i32;
            let mut state = self.stream.state.lock();
            for start in &starts {
                let offset = start.offset.unwrap_or(0);
                state.window.begin(start.partition, offset);
                state.begins.set(start.partition, offset);
            }
            if is_first {
                state.phase = Phase::Live;
            }
            drop(state);
            self.stream.changed();
        }
        Ok(LOOK_INTERVAL)
    }

    /// Notes what Kafka has said of its partitions' ends.
    fn look_at_ends(&mut self, reader: &LogReader) {
        if self.looked.elapsed() < LAG_INTERVAL {
            return;
        }
        self.looked = Instant::now();
        let topic = &self.stream.topic;
        let cached = (0..self.partitions).filter_map(|partition| {
            let (_, end) = reader.cached_offsets(topic, partition)?;
            Some((partition, end))
        });
        let ends: Vec<(i32, i64)> = cached.collect();
        self.stream.state.lock().log_ends = ends;
    }

    /// Lets go of what is too old.
    fn expire(&self) {
        let mut state = self.stream.state.lock();
        let evicted = state.window.expire(Instant::now());
        self.stream.count(&mut state, evicted);
    }

    /// Where there is none, until when that lasts at most.
    fn wait_for_room(&self) -> Result<Option<Instant>> {
        let mut state = self.stream.state.lock();
        let is_full = state.window.is_full();
        let until = match self.stream.settings.when_full {
            WhenFull::Pause if is_full => state.window.oldest_until(),
            WhenFull::Error if is_full => {
                return Err(Error::new(
                    ErrorKind::Exhausted,
                    format!("the window of '{}' is full", self.stream.topic),
                ));
            }
            WhenFull::DropOldest | WhenFull::Pause | WhenFull::Error => None,
        };
        let phase = match (&state.phase, until) {
            (Phase::Live, Some(_)) => Phase::Paused,
            (Phase::Paused, None) => Phase::Live,
            _ => return Ok(until),
        };
        state.phase = phase;
        drop(state);
        // Who waits for the rest of a range gets it from Kafka.
        self.stream.changed();
        Ok(until)
    }

    async fn gather(&mut self, found: Logged, asker: &Arc<LogReader>) -> Result<()> {
        match found {
            Logged::Fetched(Fetched::Record(record)) => self.assembler.push(record),
            Logged::Fetched(Fetched::Failed(error)) if is_passing(&error) => {
                tracing::warn!(topic = %self.stream.topic, %error, "reading");
            }
            Logged::Fetched(Fetched::Failed(error)) => return Err(error),
            Logged::End { partition, offset } if self.assembler.is_empty() => {
                self.stream.state.lock().window.advance(partition, offset);
                self.stream.changed();
            }
            Logged::End { partition, offset } => self.ends.push((partition, offset)),
            Logged::OutOfRange { partition } => self.begin_anew(partition, asker).await?,
        }
        Ok(())
    }

    /// Goes on where a partition begins now: retention, or somebody, has deleted what comes next.
    async fn begin_anew(&mut self, partition: i32, asker: &Arc<LogReader>) -> Result<()> {
        while !self.assembler.is_empty() {
            self.cut().await?;
        }
        let topic = self.stream.topic.clone();
        let asked = Partition::new(topic.clone(), partition, None);
        let (first, end) = loop {
            let (asker, asked) = (asker.clone(), [asked.clone()]);
            let ask = move || {
                let ask = |of| -> Result<i64> {
                    let found = asker.offsets(&asked, of, ASK_TIMEOUT)?;
                    Ok(found.first().and_then(|found| found.offset).unwrap_or(0))
                };
                Ok((ask(OffsetOf::Beginning)?, ask(OffsetOf::End)?))
            };
            match blocking(ask).await {
                Ok(range) => break range,
                Err(error) if is_passing(&error) => {
                    tracing::warn!(%topic, partition, %error, "cannot tell where to go on");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        };
        let ended = self.stream.state.lock().window.ends().get(partition);
        // librdkafka may say it of what its client has read before.
        let is_there = (first..=end).contains(&ended);
        let offset = if is_there { ended } else { first };
        let reading = self.reading.clone();
        blocking(move || reading.lock().restart(partition, offset)).await?;
        // What was taken behind it comes again.
        self.found.retain(|found| found.partition() != Some(partition));
        if is_there {
            return Ok(());
        }
        let mut state = self.stream.state.lock();
        let evicted = state.window.break_off(partition, offset);
        self.stream.count(&mut state, evicted);
        drop(state);
        self.stream.changed();
        tracing::warn!(%topic, partition, ended, offset, "the log goes on elsewhere");
        Ok(())
    }

    /// Makes a batch of what is gathered.
    async fn cut(&mut self) -> Result<()> {
        let mut ends = self.stream.state.lock().window.ends().clone();
        let batch = self.assembler.cut(&mut ends).await?;
        let evicts = self.stream.settings.when_full == WhenFull::DropOldest;
        let mut state = self.stream.state.lock();
        if state.schema.as_ref() != Some(batch.batch.schema_ref()) {
            state.schema = Some(batch.batch.schema());
            state.epoch += 1;
        }
        let evicted = state.window.push(Arc::new(batch), evicts);
        self.stream.count(&mut state, evicted);
        if self.assembler.is_empty() {
            for (partition, offset) in self.ends.drain(..) {
                state.window.advance(partition, offset);
            }
        }
        drop(state);
        self.stream.changed();
        Ok(())
    }
}
