//! [`Session`]: one member of a consumer group, bound to one client connection.
//!
//! The connection pops under the session's lock; a task of the session's own serves rebalances and errors, so
//! that the group is kept alive between pops. Whether the Kafka consumer behind it is the session's own is
//! known only to `kafka/`.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::sync::{Notify, watch};

use super::acks::{Ack, Position};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::Partition;
use crate::kafka::consumer::{CommitError, ConsumerEvent, Fetched, GroupConsumer, RecordQueue};
use crate::kafka::options::ConsumerOptions;
use crate::kafka::record::Record;
use crate::metrics::Metrics;

/// Deadline of one request while the start of a partition is looked up.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Deadline of the look whether a topic is still missing; the session serves nothing else meanwhile.
const MISSING_TIMEOUT: Duration = Duration::from_secs(2);

/// Deadline of one request for the partitions that are there, and the time between two of them. While they fail the
/// session does not join, and its name stays with it.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(5);
const KNOWN_INTERVAL: Duration = Duration::from_millis(200);

/// Longest name, in bytes. Kafka's strings have 16-bit lengths, which librdkafka does not check.
const NAME_BYTES_MAX: usize = 1024;

/// Failures of one session are logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How often an LPOP that waits asks again whether the end was reached.
const END_INTERVAL: Duration = Duration::from_millis(250);

/// Deadline of one request for ends.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a consumer that leaves tries to commit while its group rebalances.
const FAREWELL_TRIES: usize = 10;

/// Time between these tries.
const FAREWELL_INTERVAL: Duration = Duration::from_millis(100);

/// How long the start of a partition may stay unknown before the consumer is given up.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(60);

/// Records of other topics that wait in a session while one topic's fill a batch.
const OTHERS_MAX: usize = 1024;

/// Who a session is: `<group.id>:<name>` as the client said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionName {
    full: Arc<str>,
    group_len: usize,
}

impl SessionName {
    /// Splits at the first colon.
    ///
    /// # Errors
    /// rafka's texts: no colon, or no group in front of it.
    pub fn parse(full: &str) -> Result<Self> {
        let group_len = full.find(':').ok_or_else(|| Error::invalid("Cannot parse group.id"))?;
        if full.len() > NAME_BYTES_MAX {
            return Err(Error::invalid(format!(
                "Cannot parse group.id: the name has {} bytes, more than {NAME_BYTES_MAX}",
                full.len()
            )));
        }
        if group_len == 0 {
            return Err(Error::invalid(
                "Failed to register Consumer (attr: `group.id` is missing)",
            ));
        }
        Ok(Self { full: Arc::from(full), group_len })
    }

    /// The consumer group.
    pub fn group(&self) -> &str {
        &self.full[..self.group_len]
    }

    /// Group and name together.
    pub fn full(&self) -> &Arc<str> {
        &self.full
    }
}

/// The answer to a pop that did not wait.
pub enum Pop {
    /// A message; delivered from this moment on.
    Record(Record),
    /// Nothing is ready.
    Empty,
    /// No consumer is behind the session: [`Session::join`] first.
    Dormant,
    /// The last [`Session::join`] failed.
    Refused(Error),
    /// The session is over.
    Closed,
}

/// How much a batch may still take.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    records: usize,
    bytes: usize,
    is_empty: bool,
    is_full: bool,
    /// The session's, when something was taken last.
    generation: u64,
}

impl Room {
    /// For so many records, with so many bytes of keys and payloads.
    pub fn new(records: usize, bytes: usize) -> Self {
        Self { records, bytes, is_empty: true, is_full: records == 0, generation: 0 }
    }

    /// Whether a record did not fit, or none can.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Takes a record, if it fits; the first one always does.
    fn take(&mut self, record: &Record) -> bool {
        let size = record.payload().map_or(0, <[u8]>::len) + record.key().map_or(0, <[u8]>::len);
        if self.is_full || (size > self.bytes && !self.is_empty) {
            self.is_full = true;
            return false;
        }
        self.bytes = self.bytes.saturating_sub(size);
        self.records -= 1;
        self.is_full = self.records == 0;
        self.is_empty = false;
        true
    }
}

/// How far the records of a topic were moved.
enum Moved {
    All,
    /// There is no more room.
    Enough,
    /// An error lies between them.
    Failed(Error),
}

/// What a session looks like from outside.
#[derive(Clone, Debug)]
pub struct SessionView {
    /// Group and name.
    pub name: SessionName,
    /// The subscription.
    pub topics: Vec<Arc<str>>,
    /// Subscribed topics that do not exist (yet).
    pub missing: Vec<Arc<str>>,
    /// What the group gave us.
    pub partitions: Vec<PartitionView>,
    /// Whether a Kafka consumer is behind it at this moment.
    pub live: bool,
}

/// A partition of a [`SessionView`].
#[derive(Clone, Debug)]
pub struct PartitionView {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
    /// How far it got.
    pub position: Position,
    /// Messages that are not acked yet; `None` while that cannot be known, as before the first one is taken.
    pub lag: Option<i64>,
}

/// See the top of this file.
pub struct Session {
    name: SessionName,
    topics: Vec<Arc<str>>,
    options: ConsumerOptions,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// How many partitions its topics had when it began, where that matters; `None` where nobody could say.
    known: OnceLock<Vec<Option<i32>>>,
    /// Something changed for a pop that waits.
    ready: Arc<Notify>,
    /// The consumer has events.
    events: Arc<Notify>,
    /// Popped or acked since the task last looked.
    touched: AtomicBool,
    /// Pops that wait at this moment; they count as alive.
    blocked: AtomicUsize,
    closing: watch::Sender<bool>,
    /// A consumer is joining, joined or leaving.
    running: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    phase: Phase,
    /// Counts the times that partitions went.
    generation: u64,
    consumer: Option<Arc<GroupConsumer>>,
    queue: Option<RecordQueue>,
    buffer: VecDeque<Fetched>,
    partitions: Vec<Assigned>,
    /// Index of the partition the last record came from; the next one is likely its neighbour.
    last: usize,
    /// When the oldest ack came that is not known to be committed.
    uncommitted_since: Option<Instant>,
    /// What a closing consumer has still to commit.
    farewell: Vec<Partition>,
    /// The group has said what is ours, and has not begun to say it anew.
    is_settled: bool,
    missing: BTreeSet<Arc<str>>,
    /// To be answered by the next pop.
    error: Option<Error>,
    /// When a failure was logged last; one that lasts comes many times a second.
    logged: Option<Instant>,
    /// Why the consumer could not be made.
    refused: Option<Error>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// No consumer; the next pop starts one.
    #[default]
    Dormant,
    /// The consumer is being made, or its predecessor has still to leave.
    Joining,
    /// The session's task runs.
    Live,
    /// For good.
    Closed,
}

struct Assigned {
    topic: Arc<str>,
    /// See [`Record::topic_id`]; known from the first message.
    topic_id: Option<usize>,
    /// The session's generation when it became ours.
    since: u64,
    partition: i32,
    position: Position,
    /// The position of the last commit that is known to have arrived.
    committed: Option<i64>,
    consumed: (IntCounter, IntCounter),
}

impl Session {
    /// A session that has not joined its group yet.
    pub fn new(
        name: SessionName,
        topics: Vec<Arc<str>>,
        options: ConsumerOptions,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            topics,
            options,
            metrics,
            state: Mutex::default(),
            known: OnceLock::new(),
            ready: Arc::new(Notify::new()),
            events: Arc::new(Notify::new()),
            touched: AtomicBool::new(true),
            blocked: AtomicUsize::new(0),
            closing: watch::Sender::new(false),
            running: watch::Sender::new(false),
        })
    }

    /// Who it is.
    pub fn name(&self) -> &SessionName {
        &self.name
    }

    /// The subscription.
    pub fn topics(&self) -> &[Arc<str>] {
        &self.topics
    }

    /// How long the name's next owner may have to wait for this one to leave.
    pub fn session_timeout(&self) -> Duration {
        self.options.session_timeout
    }

    /// Starts joining the group on `runtime`, after `predecessor` (the consumer that had this name before) has
    /// left it. Pops find nothing until that is done, or [`Pop::Refused`].
    pub fn join(
        self: &Arc<Self>,
        predecessor: Option<watch::Receiver<bool>>,
        runtime: &tokio::runtime::Handle,
    ) {
        {
            let mut state = self.state.lock();
            if state.phase != Phase::Dormant {
                return;
            }
            let generation = state.generation;
            *state = State { phase: Phase::Joining, generation, ..State::default() };
            self.running.send_replace(true);
        }
        let session = self.clone();
        runtime.spawn(async move {
            if let Some(mut left) = predecessor {
                let patience = session.options.session_timeout;
                let _ = tokio::time::timeout(patience, left.wait_for(|left| *left)).await;
            }
            let starting = session.clone();
            let started = tokio::task::spawn_blocking(move || starting.start())
                .await
                .unwrap_or_else(|error| Err(Error::new(ErrorKind::Internal, error.to_string())));
            match started {
                Ok(Some(consumer)) => session.serve(consumer).await,
                Ok(None) => {
                    session.running.send_replace(false);
                }
                Err(error) => {
                    let mut state = session.state.lock();
                    if state.phase == Phase::Joining {
                        state.phase = Phase::Dormant;
                        state.refused = Some(error);
                    }
                    session.running.send_replace(false);
                }
            }
            session.ready.notify_one();
        });
    }

    /// Waits until no consumer is behind the session any more.
    pub async fn left(&self) {
        // The sender is ours, so waiting cannot fail.
        let _ = self.running.subscribe().wait_for(|running| !*running).await;
    }

    /// `None` if the session was closed meanwhile.
    fn start(&self) -> Result<Option<Arc<GroupConsumer>>> {
        if self.is_closed() {
            return Ok(None);
        }
        let (ready, events) = (self.ready.clone(), self.events.clone());
        let (consumer, queue) = GroupConsumer::new(
            &self.options,
            Box::new(move || ready.notify_one()),
            Box::new(move || events.notify_one()),
        )?;
        let consumer = Arc::new(consumer);
        // Partitions that appear later start at their beginning, whatever `auto.offset.reset` says; those that are here
        // now do not. Asked before the group can give us any, so that none falls in between.
        if self.options.starts_at_end && self.known.get().is_none() {
            match self.known_partitions(&consumer) {
                Some(known) => self.known.get_or_init(|| known),
                None => return Ok(None),
            };
        }
        consumer.subscribe(&self.topics)?;
        let mut state = self.state.lock();
        if state.phase == Phase::Closed {
            drop(state);
            drop(queue);
            consumer.close(self.options.session_timeout);
            return Ok(None);
        }
        state.phase = Phase::Live;
        state.consumer = Some(consumer.clone());
        state.queue = Some(queue);
        drop(state);
        self.touched.store(true, Ordering::Relaxed);
        Ok(Some(consumer))
    }

    fn is_closed(&self) -> bool {
        self.state.lock().phase == Phase::Closed
    }

    /// How many partitions each topic has; asks until the brokers answer, or the session is closed (`None`). Blocks.
    fn known_partitions(&self, consumer: &GroupConsumer) -> Option<Vec<Option<i32>>> {
        let ask = |topic: &Arc<str>| -> Option<Option<i32>> {
            loop {
                if self.is_closed() {
                    return None;
                }
                let error = match consumer.partition_count(topic, KNOWN_TIMEOUT) {
                    Ok(count) => return Some(Some(count)),
                    Err(error) => error,
                };
                self.log_once("cannot tell old partitions from new ones", &error);
                // Anything else is an answer, which asking again does not change.
                if !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) {
                    return Some(None);
                }
                std::thread::sleep(KNOWN_INTERVAL);
            }
        };
        self.topics.iter().map(ask).collect()
    }

    /// The next message, if one is ready. Never blocks, and never fetches ahead of the prefetch budget.
    ///
    /// # Errors
    /// What went wrong since the last pop, once.
    pub fn pop(&self) -> Result<Pop> {
        self.touched.store(true, Ordering::Relaxed);
        let mut state = self.state.lock();
        loop {
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            if state.buffer.is_empty() {
                state.take();
            }
            match state.buffer.pop_front() {
                Some(Fetched::Record(record)) => {
                    if state.deliver(&record) {
                        return Ok(Pop::Record(record));
                    }
                }
                Some(Fetched::Failed(error)) => return Err(error),
                None if state.phase == Phase::Closed => return Ok(Pop::Closed),
                None if state.phase == Phase::Dormant => {
                    return Ok(state.refused.take().map_or(Pop::Dormant, Pop::Refused));
                }
                None => return Ok(Pop::Empty),
            }
        }
    }

    /// Moves messages of one topic that are ready to the end of `out`, as long as they fit into `room`: those of `topic`, or
    /// else of any, but of another one than `last` if others have some too. The first one fits always. What it returns is
    /// never a record.
    ///
    /// # Errors
    /// What went wrong since the last pop, once; nothing was moved then.
    pub fn pop_batch(
        &self,
        topic: Option<&str>,
        last: Option<&str>,
        room: &mut Room,
        out: &mut Vec<Record>,
    ) -> Result<Pop> {
        self.touched.store(true, Ordering::Relaxed);
        let mut state = self.state.lock();
        state.purge(room, out);
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        let mut topic = topic.map(str::to_owned);
        let before = out.len();
        if state.buffer.len() < OTHERS_MAX {
            // Else one topic's records could keep the others out for as long as there are some.
            state.take();
        }
        loop {
            if topic.is_none() {
                topic = state.next_topic(last);
            }
            match state.move_to(out, topic.as_deref(), room) {
                Moved::All => {}
                Moved::Enough => break,
                Moved::Failed(error) if out.len() == before => return Err(error),
                Moved::Failed(error) => {
                    // What was moved is handed out first.
                    state.error = Some(error);
                    break;
                }
            }
            if state.buffer.len() >= OTHERS_MAX || state.take() == 0 {
                break;
            }
        }
        Ok(match state.phase {
            _ if out.len() > before => Pop::Empty,
            Phase::Closed => Pop::Closed,
            Phase::Dormant => state.refused.take().map_or(Pop::Dormant, Pop::Refused),
            _ => Pop::Empty,
        })
    }

    /// An error that was taken too early: the next pop answers it.
    pub fn put_back(&self, error: Error) {
        self.state.lock().error.get_or_insert(error);
    }

    /// Drops those of `out` whose partition has gone since they were moved there, also if it has come back: they come again.
    pub fn purge(&self, room: &mut Room, out: &mut Vec<Record>) {
        self.state.lock().purge(room, out);
    }

    /// Waits until a pop may have something new to say. The session counts as alive meanwhile.
    pub async fn wait(&self) {
        struct Blocked<'a>(&'a Session);
        impl Drop for Blocked<'_> {
            fn drop(&mut self) {
                self.0.blocked.fetch_sub(1, Ordering::Relaxed);
                self.0.touched.store(true, Ordering::Relaxed);
            }
        }
        self.blocked.fetch_add(1, Ordering::Relaxed);
        let _blocked = Blocked(self);
        self.ready.notified().await;
    }

    /// Waits until a pop may have something to say (`false`), or the end of every assigned partition was reached
    /// (`true`).
    pub async fn wait_or_end(self: &Arc<Self>) -> bool {
        loop {
            let session = self.clone();
            let reached = tokio::task::spawn_blocking(move || session.is_at_end()).await;
            match reached {
                Ok(Ok(true)) => return true,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::debug!(name = %self.name.full, %error, "cannot tell the ends");
                }
                Err(error) => tracing::error!(%error, "ends"),
            }
            if tokio::time::timeout(END_INTERVAL, self.wait()).await.is_ok() {
                return false;
            }
        }
    }

    /// Whether nothing is left to be popped, as the brokers see it now. Blocks.
    fn is_at_end(&self) -> Result<bool> {
        let (consumer, partitions) = {
            let state = self.state.lock();
            let Some(consumer) = &state.consumer else { return Ok(false) };
            if !state.buffer.is_empty() {
                return Ok(false);
            }
            let nothing_exists = state.missing.len() == self.topics.len();
            if !state.is_settled || state.partitions.is_empty() {
                return Ok(state.is_settled || nothing_exists);
            }
            let partitions: Vec<Partition> = state
                .partitions
                .iter()
                .map(|assigned| Partition::new(assigned.topic.clone(), assigned.partition, None))
                .collect();
            (consumer.clone(), partitions)
        };
        let ends = consumer.ends(&partitions, END_TIMEOUT)?;
        let mut positions = consumer.positions(&partitions)?;
        let untouched: Vec<Partition> =
            positions.iter().filter(|partition| partition.offset.is_none()).cloned().collect();
        if !untouched.is_empty() {
            positions.retain(|partition| partition.offset.is_some());
            for mut partition in consumer.committed(&untouched, END_TIMEOUT)? {
                if partition.offset.is_none() {
                    let (first, _) =
                        consumer.offsets(&partition.topic, partition.partition, END_TIMEOUT)?;
                    partition.offset = Some(first);
                }
                positions.push(partition);
            }
        }
        let is_done = |end: &Partition| {
            let mut of_it = positions.iter().filter(|position| {
                position.partition == end.partition && position.topic == end.topic
            });
            of_it.next().is_some_and(|position| position.offset >= end.offset)
        };
        // What was fetched while the brokers were asked is not popped yet.
        Ok(ends.iter().all(is_done) && self.state.lock().buffer.is_empty())
    }

    /// Checks all of `acks`, then applies them: returns how many moved a position forward.
    ///
    /// # Errors
    /// A partition that is not ours (any more), or an offset that was not delivered since it became ours;
    /// nothing is applied then.
    pub fn ack(&self, acks: &[Ack]) -> Result<usize> {
        self.touched.store(true, Ordering::Relaxed);
        let mut state = self.state.lock();
        for ack in acks {
            let covered =
                state.find(&ack.topic, ack.partition).and_then(|index| state.partitions.get(index));
            match covered {
                None => {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!(
                            "{}:{} is not assigned to {}",
                            ack.topic, ack.partition, self.name.full
                        ),
                    ));
                }
                Some(assigned) if !assigned.position.covers(ack.offset) => {
                    return Err(Error::invalid(format!(
                        "{}:{}:{} was not delivered to {} since the partition was assigned to it",
                        ack.topic, ack.partition, ack.offset, self.name.full
                    )));
                }
                Some(_) => {}
            }
        }
        // Several acks of one partition are one after the other, so each counts that moves what was moved before.
        let mut moved: Vec<(usize, i64)> = Vec::new();
        for ack in acks {
            let Some(index) = state.find(&ack.topic, ack.partition) else { continue };
            let Some(assigned) = state.partitions.get(index) else { continue };
            let mut position = assigned.position;
            let before = moved.iter().rev().find(|(of, _)| *of == index);
            position.acked = before.map(|(_, next)| *next).or(position.acked);
            if let Some(next) = position.advance(ack.offset) {
                moved.push((index, next));
            }
        }
        let positions = moved.iter().filter_map(|(index, next)| {
            let assigned = state.partitions.get(*index)?;
            Some(Partition::new(assigned.topic.clone(), assigned.partition, Some(*next)))
        });
        let positions: Vec<Partition> = positions.collect();
        if let Some(consumer) = &state.consumer
            && !positions.is_empty()
        {
            consumer.store(&positions)?;
        }
        for (index, next) in &moved {
            if let Some(assigned) = state.partitions.get_mut(*index) {
                assigned.position.acked = Some(*next);
            }
        }
        if !moved.is_empty() && state.uncommitted_since.is_none() {
            state.uncommitted_since = Some(Instant::now());
            // The task watches over the commit from now on.
            self.events.notify_one();
        }
        Ok(moved.len())
    }

    /// After the last acked message of a partition that is ours.
    pub fn acked(&self, topic: &str, partition: i32) -> Option<i64> {
        let mut state = self.state.lock();
        let index = state.find(topic, partition)?;
        state.partitions.get(index)?.position.acked
    }

    /// Starts closing: pops answer [`Pop::Closed`]; what was acked is committed, and the group is left.
    pub fn close(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Live {
            // The task has the rest.
            self.closing.send_replace(true);
            state.clear();
        }
        state.phase = Phase::Closed;
        drop(state);
        self.ready.notify_one();
    }

    /// Subscribed topics that do not exist (yet).
    pub fn missing(&self) -> Vec<Arc<str>> {
        self.state.lock().missing.iter().cloned().collect()
    }

    /// A snapshot, without side effects; `lag` costs no request.
    pub fn view(&self) -> SessionView {
        let state = self.state.lock();
        let partitions = state
            .partitions
            .iter()
            .map(|assigned| PartitionView {
                topic: assigned.topic.clone(),
                partition: assigned.partition,
                position: assigned.position,
                lag: state.consumer.as_ref().and_then(|consumer| assigned.lag(consumer)),
            })
            .collect();
        SessionView {
            name: self.name.clone(),
            topics: self.topics.clone(),
            missing: state.missing.iter().cloned().collect(),
            partitions,
            live: state.phase == Phase::Live,
        }
    }

    /// The session's task: serves the consumer until the session closes, its client falls silent, or the
    /// consumer dies.
    async fn serve(&self, consumer: Arc<GroupConsumer>) {
        let mut closing = self.closing.subscribe();
        let max_poll = self.options.max_poll_interval;
        let tick = (max_poll / 8).clamp(Duration::from_millis(20), Duration::from_secs(30));
        let mut last_seen = Instant::now();
        let end = loop {
            let mut end = None;
            while end.is_none()
                && let Some(event) = consumer.next_event()
            {
                end = self.handle(&consumer, event).await;
            }
            if let Some(end) = end {
                break end;
            }
            let patience = self.watch_commit(&consumer).map_or(tick, |due| due.min(tick));
            tokio::select! {
                () = self.events.notified() => {}
                _ = closing.wait_for(|closing| *closing) => break End::Closed,
                () = tokio::time::sleep(patience) => {}
            }
            if self.touched.swap(false, Ordering::Relaxed)
                || self.blocked.load(Ordering::Relaxed) > 0
            {
                last_seen = Instant::now();
            } else if last_seen.elapsed() >= max_poll {
                break End::Silent;
            }
        };
        self.leave(&consumer, end).await;
    }

    async fn leave(&self, consumer: &Arc<GroupConsumer>, end: End) {
        let farewell = {
            let mut state = self.state.lock();
            state.clear();
            std::mem::take(&mut state.farewell)
        };
        let (closed, deadline) = (consumer.clone(), self.options.session_timeout);
        let closing = tokio::task::spawn_blocking(move || {
            let mut commits = commit_before_leaving(&closed, farewell);
            commits.extend(closed.close(deadline));
            commits
        });
        for committed in closing.await.unwrap_or_default() {
            self.committed(committed);
        }
        let mut state = self.state.lock();
        if state.phase == Phase::Live {
            state.phase = Phase::Dormant;
        }
        match end {
            End::Closed | End::Rejoin => {}
            End::Silent => {
                tracing::info!(name = %self.name.full, "a silent client has left its group");
            }
            End::Fatal(error) => {
                tracing::error!(name = %self.name.full, %error, "consumer failed");
                state.error = Some(error);
            }
        }
        state.consumer = None;
        // Under the lock: whoever finds the session dormant may let it join again, which sets this anew.
        self.running.send_replace(false);
    }

    /// Returns why the consumer is of no use any more, if so.
    async fn handle(&self, consumer: &Arc<GroupConsumer>, event: ConsumerEvent) -> Option<End> {
        let name = &self.name.full;
        match event {
            ConsumerEvent::Assigned(partitions) => {
                self.metrics.rebalances.with_label_values(&["assigned"]).inc();
                let partitions = match self.known.get() {
                    None => partitions,
                    Some(known) => match self.with_starts(consumer, known, partitions).await {
                        Ok(Some(partitions)) => partitions,
                        Ok(None) => return Some(End::Rejoin),
                        Err(error) => return Some(End::Fatal(error)),
                    },
                };
                tracing::debug!(%name, ?partitions, "assigned");
                if let Err(error) = self.assign(consumer, &partitions) {
                    tracing::warn!(%name, %error, "assign");
                    return Some(End::Rejoin);
                }
                self.find_missing(consumer).await;
            }
            ConsumerEvent::Revoked { partitions, lost } => {
                let kind = if lost { "lost" } else { "revoked" };
                self.metrics.rebalances.with_label_values(&[kind]).inc();
                tracing::debug!(%name, ?partitions, lost, "revoked");
                let mut state = self.state.lock();
                state.revoke(&partitions);
                // Eager protocols take all away before they give; the others say what changes.
                state.is_settled &= consumer.is_cooperative();
                if let Err(error) = consumer.unassign(&partitions) {
                    tracing::warn!(%name, %error, "unassign");
                }
            }
            ConsumerEvent::Committed(result) => self.committed(result),
            ConsumerEvent::TopicMissing(text) => {
                let mut state = self.state.lock();
                for topic in &self.topics {
                    if text.contains(&format!(" {topic}:")) && state.missing.insert(topic.clone()) {
                        tracing::warn!(%name, %topic, "a subscribed topic does not exist");
                    }
                }
                drop(state);
                self.ready.notify_one();
            }
            ConsumerEvent::Failed(error) => {
                self.log_once("consumer", &error);
                // A broker that is away is librdkafka's business: it comes back, or the pop times out.
                if error.kind() != ErrorKind::Unavailable {
                    self.state.lock().error = Some(error);
                    self.ready.notify_one();
                }
            }
            ConsumerEvent::Fatal(error) => return Some(End::Fatal(error)),
        }
        None
    }

    /// Looks whether topics that were missing are there by now: their partitions may have gone to other members. The
    /// group divides anew when one appears, so that this is the moment.
    async fn find_missing(&self, consumer: &Arc<GroupConsumer>) {
        let missing = self.missing();
        if missing.is_empty() {
            return;
        }
        let consumer = consumer.clone();
        let look = move || -> Result<Vec<Arc<str>>> {
            let mut found = Vec::new();
            for topic in missing {
                if consumer.partition_count(&topic, MISSING_TIMEOUT)? > 0 {
                    found.push(topic);
                }
            }
            Ok(found)
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok(found)) => {
                let mut state = self.state.lock();
                state.missing.retain(|topic| !found.contains(topic));
            }
            Ok(Err(error)) => tracing::debug!(name = %self.name.full, %error, "missing topics"),
            Err(error) => tracing::error!(%error, "missing topics"),
        }
    }

    /// Commits what librdkafka has left uncommitted for too long; returns when to look again.
    fn watch_commit(&self, consumer: &GroupConsumer) -> Option<Duration> {
        let allowed = self.options.commit_interval * 3 / 2;
        let mut state = self.state.lock();
        let waited = state.uncommitted_since?.elapsed();
        if waited < allowed {
            return Some(allowed - waited);
        }
        let late = state.uncommitted();
        if late.is_empty() {
            state.uncommitted_since = None;
            return None;
        }
        if let Err(error) = consumer.send_commit(&late) {
            tracing::debug!(name = %self.name.full, %error, "commit");
        }
        state.uncommitted_since = Some(Instant::now());
        Some(allowed)
    }

    fn committed(&self, result: Result<Vec<Partition>>) {
        let outcome = if result.is_ok() { "ok" } else { "error" };
        self.metrics.commits.with_label_values(&[outcome]).inc();
        let partitions = match result {
            Ok(partitions) => partitions,
            Err(error) => return self.log_once("commit", &error),
        };
        let mut state = self.state.lock();
        for partition in &partitions {
            if let Some(index) = state.find(&partition.topic, partition.partition)
                && let Some(assigned) = state.partitions.get_mut(index)
            {
                assigned.committed = assigned.committed.max(partition.offset);
            }
        }
        let is_done = |assigned: &Assigned| assigned.position.acked <= assigned.committed;
        let done = state.partitions.iter().all(is_done);
        // What was acked while the commit was under way has its own interval.
        state.uncommitted_since = (!done).then(Instant::now);
    }

    /// Logs a failure, at most once in a while.
    fn log_once(&self, what: &str, error: &Error) {
        let mut state = self.state.lock();
        if state.logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            tracing::warn!(name = %self.name.full, %error, "{what}");
            state.logged = Some(Instant::now());
        }
    }

    fn assign(&self, consumer: &GroupConsumer, partitions: &[Partition]) -> Result<()> {
        let mut state = self.state.lock();
        if state.queue.is_none() {
            return Ok(()); // Closing; the task is told next.
        }
        let since = state.generation;
        for partition in partitions {
            let topic = &*partition.topic;
            state.missing.remove(topic);
            state.partitions.push(Assigned {
                topic: partition.topic.clone(),
                topic_id: None,
                since,
                partition: partition.partition,
                position: Position::default(),
                committed: None,
                consumed: (
                    self.metrics.consumed_messages.with_label_values(&[topic]),
                    self.metrics.consumed_bytes.with_label_values(&[topic]),
                ),
            });
        }
        state.is_settled = true;
        // Under the lock, so that no message comes from a partition that is not in the table.
        consumer.assign(partitions)?;
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Gives each of `partitions` that the group has no commit for a start, and commits it: with
    /// `auto.offset.reset=latest` a restart before the first ack would else pass over what came meanwhile. `None` if
    /// the group has moved on: these partitions may not be offered again, so the consumer has to start over.
    async fn with_starts(
        &self,
        consumer: &Arc<GroupConsumer>,
        known: &[Option<i32>],
        partitions: Vec<Partition>,
    ) -> Result<Option<Vec<Partition>>> {
        if partitions.is_empty() {
            return Ok(Some(partitions));
        }
        let began = Instant::now();
        loop {
            let known: Vec<(Arc<str>, Option<i32>)> =
                self.topics.iter().cloned().zip(known.iter().copied()).collect();
            let (consumer, wanted) = (consumer.clone(), partitions.clone());
            let resolved = tokio::task::spawn_blocking(move || resolve(&consumer, &known, wanted))
                .await
                .unwrap_or_else(|error| {
                    Err(CommitError::Failed(Error::new(ErrorKind::Internal, error.to_string())))
                });
            match resolved {
                Ok(partitions) => return Ok(Some(partitions)),
                Err(CommitError::GroupMovedOn) => return Ok(None),
                Err(CommitError::Failed(error)) => {
                    tracing::warn!(name = %self.name.full, %error, "cannot tell where to start");
                    if *self.closing.borrow() || began.elapsed() > RESOLVE_PATIENCE {
                        return Err(error);
                    }
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }
}

enum End {
    Closed,
    Silent,
    /// The next pop, or the one that waits, starts a new consumer.
    Rejoin,
    Fatal(Error),
}

/// Commits what closing would commit as well, but once only: a coordinator refuses commits for a moment while it
/// completes a rebalance, and the acks would be lost.
fn commit_before_leaving(
    consumer: &GroupConsumer,
    positions: Vec<Partition>,
) -> Vec<Result<Vec<Partition>>> {
    if positions.is_empty() {
        return Vec::new();
    }
    for _ in 0..FAREWELL_TRIES {
        match consumer.commit(&positions) {
            Ok(()) => return vec![Ok(positions)],
            Err(CommitError::GroupMovedOn) => std::thread::sleep(FAREWELL_INTERVAL),
            Err(CommitError::Failed(error)) => return vec![Err(error)],
        }
    }
    Vec::new()
}

fn resolve(
    consumer: &GroupConsumer,
    known: &[(Arc<str>, Option<i32>)],
    wanted: Vec<Partition>,
) -> Result<Vec<Partition>, CommitError> {
    let mut found = consumer.committed(&wanted, RESOLVE_TIMEOUT).map_err(CommitError::Failed)?;
    let mut starts = Vec::new();
    for partition in found.iter_mut().filter(|partition| partition.offset.is_none()) {
        let (first, next) = consumer
            .offsets(&partition.topic, partition.partition, RESOLVE_TIMEOUT)
            .map_err(CommitError::Failed)?;
        let count =
            known.iter().find(|(topic, _)| *topic == partition.topic).and_then(|(_, count)| *count);
        let is_new = count.is_some_and(|count| partition.partition >= count);
        partition.offset = Some(if is_new { first } else { next });
        starts.push(partition.clone());
    }
    if !starts.is_empty() {
        consumer.commit(&starts)?;
    }
    Ok(found)
}

impl State {
    /// Moves a batch from librdkafka into the buffer and notes where partitions begin.
    fn take(&mut self) -> usize {
        let Some(queue) = &mut self.queue else { return 0 };
        let before = self.buffer.len();
        queue.take(&mut self.buffer);
        let taken: VecDeque<Fetched> = std::mem::take(&mut self.buffer);
        for fetched in taken.iter().skip(before) {
            if let Fetched::Record(record) = fetched
                && let Some(assigned) = self.find_of(record)
            {
                assigned.position.start.get_or_insert(record.offset());
            }
        }
        self.buffer = taken;
        self.buffer.len() - before
    }

    /// See [`Session::purge`].
    fn purge(&mut self, room: &mut Room, out: &mut Vec<Record>) {
        let then = std::mem::replace(&mut room.generation, self.generation);
        if then != self.generation && !out.is_empty() {
            out.retain(|record| {
                self.find_of(record).is_some_and(|assigned| assigned.since <= then)
            });
        }
    }

    /// The topic whose turn it is: that of the first record in the buffer, unless it is `last` and others are there.
    fn next_topic(&self, last: Option<&str>) -> Option<String> {
        let mut topics = self.buffer.iter().filter_map(|fetched| match fetched {
            Fetched::Record(record) => Some(record.topic()),
            Fetched::Failed(_) => None,
        });
        let first = topics.clone().next()?;
        let other = topics.find(|topic| Some(*topic) != last);
        Some(other.unwrap_or(first).to_owned())
    }

    /// Delivers the records of `topic` in the buffer as far as `room` goes; the others keep their order.
    fn move_to(&mut self, out: &mut Vec<Record>, topic: Option<&str>, room: &mut Room) -> Moved {
        let mut others = VecDeque::new();
        let mut moved = Moved::All;
        // Of the last record that was of `topic`.
        let mut known = None;
        let mut is_other = |record: &Record| {
            let id = Some(record.topic_id());
            if id != known {
                if Some(record.topic()) != topic {
                    return true;
                }
                known = id;
            }
            false
        };
        while let Some(fetched) = self.buffer.pop_front() {
            match fetched {
                Fetched::Failed(error) => {
                    moved = Moved::Failed(error);
                    break;
                }
                Fetched::Record(record) if is_other(&record) => {
                    others.push_back(Fetched::Record(record));
                }
                Fetched::Record(record) if !room.take(&record) => {
                    self.buffer.push_front(Fetched::Record(record));
                    moved = Moved::Enough;
                    break;
                }
                Fetched::Record(record) => {
                    if self.deliver(&record) {
                        out.push(record);
                    }
                }
            }
        }
        while let Some(fetched) = others.pop_back() {
            self.buffer.push_front(fetched);
        }
        moved
    }

    fn find(&mut self, topic: &str, partition: i32) -> Option<usize> {
        let found = find(&self.partitions, self.last, topic, partition)?;
        self.last = found;
        Some(found)
    }

    /// The partition of a record.
    fn find_of(&mut self, record: &Record) -> Option<&mut Assigned> {
        let is_its = |assigned: &Assigned| {
            assigned.topic_id == Some(record.topic_id()) && assigned.partition == record.partition()
        };
        if !self.partitions.get(self.last).is_some_and(is_its) {
            let found = self.find(record.topic(), record.partition())?;
            if let Some(assigned) = self.partitions.get_mut(found) {
                assigned.topic_id = Some(record.topic_id());
            }
        }
        self.partitions.get_mut(self.last)
    }

    /// Books a record as delivered; `false` where its partition is not ours any more.
    fn deliver(&mut self, record: &Record) -> bool {
        let Some(assigned) = self.find_of(record) else { return false };
        let next = record.offset() + 1;
        if assigned.position.delivered.is_some_and(|delivered| next < delivered) {
            // Offsets began anew: the topic was made again under the same name.
            assigned.position = Position { start: Some(record.offset()), ..Position::default() };
            assigned.committed = None;
        }
        assigned.position.delivered = Some(next);
        assigned.consumed.0.inc();
        assigned.consumed.1.inc_by(record.payload().map_or(0, <[u8]>::len) as u64);
        true
    }

    fn revoke(&mut self, partitions: &[Partition]) {
        self.generation += 1;
        let gone = |topic: &str, number: i32| {
            partitions.iter().any(|gone| gone.partition == number && *gone.topic == *topic)
        };
        self.partitions.retain(|assigned| !gone(&assigned.topic, assigned.partition));
        self.buffer.retain(|fetched| match fetched {
            Fetched::Record(record) => !gone(record.topic(), record.partition()),
            Fetched::Failed(_) => true,
        });
    }

    /// Positions that were acked and are not known to be committed.
    fn uncommitted(&self) -> Vec<Partition> {
        self.partitions
            .iter()
            .filter(|assigned| assigned.position.acked > assigned.committed)
            .map(|assigned| {
                Partition::new(assigned.topic.clone(), assigned.partition, assigned.position.acked)
            })
            .collect()
    }

    /// Drops every record, before the consumer goes; only what is left to commit stays.
    fn clear(&mut self) {
        self.generation += 1;
        self.farewell.extend(self.uncommitted());
        self.buffer.clear();
        self.partitions.clear();
        self.queue = None;
    }
}

fn find(partitions: &[Assigned], hint: usize, topic: &str, partition: i32) -> Option<usize> {
    let is_it = |assigned: &Assigned| assigned.partition == partition && *assigned.topic == *topic;
    if partitions.get(hint).is_some_and(is_it) {
        return Some(hint);
    }
    partitions.iter().position(is_it)
}

impl Assigned {
    fn lag(&self, consumer: &GroupConsumer) -> Option<i64> {
        let (first, next) = consumer.cached_offsets(&self.topic, self.partition)?;
        let done = self.position.acked.or(self.position.start);
        // Where nothing was taken yet its start is known only if there is nothing to be taken.
        done.map(|done| (next - done).max(0)).or((first == next).then_some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_the_first_colon() {
        let name = SessionName::parse("orders:worker:1").expect("a name");
        assert_eq!((name.group(), &**name.full()), ("orders", "orders:worker:1"));
        assert_eq!(
            SessionName::parse("worker").expect_err("no colon").message(),
            "Cannot parse group.id"
        );
        assert!(
            SessionName::parse(":worker")
                .expect_err("no group")
                .message()
                .contains("`group.id` is missing")
        );
    }
}
