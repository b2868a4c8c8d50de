//! [`Session`]: one member of a consumer group, bound to one client connection.
//!
//! The connection pops under the session's lock; a task of the session's own serves rebalances and errors, so
//! that the group is kept alive between pops. Whether the Kafka consumer behind it is the session's own is
//! known only to `kafka/`.

mod name;
mod state;
mod task;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

pub use name::SessionName;
pub use state::Room;
use state::{Delivered, Moved, Phase, State};

use super::acks::{Ack, Position};
use super::owed::OwedCommits;
use super::registry::Registry;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::Partition;
use crate::kafka::consumer::{Fetched, GroupConsumer};
use crate::kafka::options::ConsumerOptions;
use crate::kafka::record::Record;
use crate::metrics::Metrics;

/// Deadline of one request for the partitions that are there, and the time between two of them. While they fail the
/// session does not join, and its name stays with it.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(5);
const KNOWN_INTERVAL: Duration = Duration::from_millis(200);

/// How often an LPOP that waits asks again whether the end was reached.
const END_INTERVAL: Duration = Duration::from_millis(250);

/// Deadline of one request for ends.
const END_TIMEOUT: Duration = Duration::from_secs(5);

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
    owed: Arc<OwedCommits>,
    metrics: Arc<Metrics>,
    /// Where its fellow members in this process are.
    registry: Weak<Registry>,
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
    /// Partitions of it went to a fellow member, which it was not told: its consumer has to start over.
    is_stale: AtomicBool,
    closing: watch::Sender<bool>,
    /// A consumer is joining, joined or leaving.
    running: watch::Sender<bool>,
}

impl Session {
    /// A session that has not joined its group yet.
    pub fn new(
        name: SessionName,
        topics: Vec<Arc<str>>,
        options: ConsumerOptions,
        registry: &Arc<Registry>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            topics,
            options,
            owed: registry.owed().clone(),
            metrics: registry.metrics().clone(),
            registry: Arc::downgrade(registry),
            state: Mutex::default(),
            known: OnceLock::new(),
            ready: Arc::new(Notify::new()),
            events: Arc::new(Notify::new()),
            touched: AtomicBool::new(true),
            blocked: AtomicUsize::new(0),
            is_stale: AtomicBool::new(false),
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

    /// The group has given `partitions` to a fellow member. Any of them that are still here went unheard: what was
    /// acked of them is owed, the others come again there, and this session joins anew. Returns whether there were any.
    pub(super) fn dispossess(&self, partitions: &[Partition]) -> bool {
        let mut state = self.state.lock();
        if !partitions.iter().any(|given| state.find(&given.topic, given.partition).is_some()) {
            return false;
        }
        tracing::debug!(name = %self.name.full(), ?partitions, "dispossessed");
        let debts = state.revoke(partitions);
        let gone: Vec<Partition> = debts.iter().map(|debt| debt.partition.clone()).collect();
        if let Some(consumer) = &state.consumer
            && let Err(error) = consumer.unstore(&gone)
        {
            tracing::debug!(name = %self.name.full(), %error, "stored offsets");
        }
        self.owed.owe(self.name.group(), debts);
        self.is_stale.store(true, Ordering::Relaxed);
        self.events.notify_one();
        true
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
                        let mut delivered = Delivered::default();
                        delivered.add(&record);
                        state.count(&mut delivered);
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
        if state.has_room() {
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
            if !state.has_room() || state.take() == 0 {
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
                    tracing::debug!(name = %self.name.full(), %error, "cannot tell the ends");
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
                            ack.topic,
                            ack.partition,
                            self.name.full()
                        ),
                    ));
                }
                Some(assigned) if !assigned.position.covers(ack.offset) => {
                    return Err(Error::invalid(format!(
                        "{}:{}:{} was not delivered to {} since the partition was assigned to it",
                        ack.topic,
                        ack.partition,
                        ack.offset,
                        self.name.full()
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
            // Said here, because the task may be busy, and whoever gets the partitions looks for it from now on.
            self.owed.owe(self.name.group(), state.farewell.clone());
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
}
