//! [`Producer`]: one idempotent librdkafka producer for all connections, with the books of who has what in
//! flight.
//!
//! Each message carries a pointer to its [`Lane`] (who sent it, where to, who waits for it). Delivery reports
//! come in batches as events and are settled per run of equal lanes, so the cost per message stays at a few
//! atomic operations.

mod books;
mod message;
mod options;
mod topic;

use std::collections::{HashMap, VecDeque};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use prometheus::IntCounter;
use rdkafka_sys as sys;
use tokio::sync::{Notify, Semaphore};

pub use books::{Account, Stats, StoredOffsets, Ticket};
use books::{MISSING_LABEL, settle_reports};
use message::hand_over;
pub use message::{Header, Message, OwnedMessage};
use options::message_timeout;
pub(super) use options::producer_options;
use topic::{
    CREATION_PATIENCE, Counting, Topic, TopicState, Waiting, judge, look_up, remember_missing,
    set_missing, settle_waiting,
};

use super::native::{ClientKind, Event, Handle, KafkaCode, Queue};
use super::topics::{self, TopicInfo};
use crate::config::{KafkaOptions, topic_is_legal};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;

/// How many topics are asked for at once; each takes a thread of the pool that sessions need too.
const LOOKUPS_MAX: usize = 8;

/// How many topics may wait for their verdict; who names another one waits. Clients invent names faster than brokers
/// judge them.
const UNJUDGED_MAX: usize = 256;

/// A scout that has asked for this many names is replaced: librdkafka never forgets a name it was asked about.
const SCOUT_NAMES_MAX: usize = 1000;

/// A scout that nobody has needed for this long ends.
const SCOUT_IDLE: Duration = Duration::from_secs(10);

/// Brokers that are away say so many times a second; it is logged at most this often.
const EVENT_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A topic that was missing is looked up again after this long.
const MISSING_RETRY: Duration = Duration::from_secs(1);

/// How long the number of a topic's partitions is believed.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// Deadline of metadata requests that a client waits for.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

/// One connection's way to one topic; messages in flight hold it.
pub struct Lane {
    account: Arc<Account>,
    topic: Arc<Topic>,
    ticket: Option<Arc<Ticket>>,
}

impl Lane {
    /// The same way, with somebody who waits for the outcome.
    pub fn with_ticket(&self, ticket: Arc<Ticket>) -> Arc<Self> {
        Arc::new(Self {
            account: self.account.clone(),
            topic: self.topic.clone(),
            ticket: Some(ticket),
        })
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic.name
    }

    /// A fatal error has replaced the producer this lane leads to, or its topic was forgotten: ask for a new one.
    pub fn is_stale(&self) -> bool {
        self.topic.client.dead.load(Ordering::Acquire)
            || self.topic.forgotten.load(Ordering::Acquire)
    }
}

/// Why a message was not taken.
#[derive(Debug)]
pub enum SendError {
    /// A cap is reached, or the topic's metadata is asked for: wait with [`Producer::room`], then try again.
    Wait(RoomMark),
    /// It cannot be produced.
    Failed(Error),
}

/// How much may be in flight, in bytes with an overhead per message.
#[derive(Clone, Copy, Debug)]
pub struct ProducerLimits {
    /// For one connection.
    pub connection_bytes_max: usize,
    /// For one topic, so that one without a leader leaves room for others.
    pub topic_bytes_max: usize,
    /// One message, without what it costs beside its bytes: `message.max.bytes`.
    pub message_bytes_max: usize,
}

/// The producer that all connections share. It starts at the first use and is replaced after a fatal error.
pub struct Producer {
    options: Arc<KafkaOptions>,
    limits: ProducerLimits,
    runtime: tokio::runtime::Handle,
    shared: Arc<Shared>,
    current: RwLock<Option<Arc<Client>>>,
}

/// What outlives a fatal error.
struct Shared {
    /// For asking whether topics exist.
    lookups: Semaphore,
    /// For waiting until a broker has created one.
    creations: Semaphore,
    /// How many topics wait for their verdict.
    unjudged: AtomicUsize,
    /// `message.timeout.ms`; `None` is never.
    message_timeout: Option<Duration>,
    /// `allow.auto.create.topics`.
    may_create: bool,
    metrics: Arc<Metrics>,
    /// Messages to topics that did not exist.
    failed_missing: IntCounter,
    stats: Stats,
    /// Over all connections.
    unflushed: AtomicUsize,
    /// Counts, and notifies of, the moments when something was settled or a topic's state became known.
    changes: AtomicU64,
    room: Notify,
}

impl Shared {
    fn mark(&self) -> RoomMark {
        RoomMark(self.changes.load(Ordering::Acquire))
    }

    /// Waits until something has changed since `mark`.
    async fn room(&self, mark: RoomMark) {
        let mut notified = std::pin::pin!(self.room.notified());
        notified.as_mut().enable();
        if self.changes.load(Ordering::Acquire) == mark.0 {
            notified.await;
        }
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.room.notify_waiters();
    }
}

/// The moment before an attempt to send, so that no change after it is missed.
#[derive(Clone, Copy, Debug)]
pub struct RoomMark(u64);

struct Client {
    handle: Arc<Handle>,
    options: Arc<KafkaOptions>,
    scout: Mutex<Option<Scout>>,
    topics: RwLock<HashMap<Box<str>, Arc<Topic>>>,
    /// Those of them that were found missing, the oldest first; they may be there by now.
    missing: Mutex<VecDeque<Arc<Topic>>>,
    dead: AtomicBool,
    /// Its event task has something to do.
    wake: Arc<Notify>,
}

/// A client that asks for topics, as a producer does, so that a broker may create them. It is not the producer itself
/// because librdkafka keeps every name for as long as its client lives, and asks for it again and again.
struct Scout {
    handle: Arc<Handle>,
    names: usize,
    used: Instant,
}

impl Client {
    /// The scout, which ends when it is idle.
    fn scout(self: &Arc<Self>) -> Result<Arc<Handle>> {
        let mut scout = self.scout.lock();
        let known = scout.take().filter(|scout| scout.names < SCOUT_NAMES_MAX);
        let mut next = match known {
            Some(scout) => scout,
            None => {
                let mut options = KafkaOptions::clone(&self.options);
                // The producer says the same of the same brokers.
                options.insert("log_level".into(), "2".into());
                let handle = Handle::new(ClientKind::Producer, &options, 0)?;
                tokio::spawn(end_idle_scout(self.clone(), Arc::downgrade(&handle)));
                Scout { handle, names: 0, used: Instant::now() }
            }
        };
        next.names += 1;
        next.used = Instant::now();
        let handle = next.handle.clone();
        *scout = Some(next);
        Ok(handle)
    }

    /// Fails what is in flight; the event task ends when that is settled.
    fn retire(&self) {
        self.dead.store(true, Ordering::Release);
        *self.scout.lock() = None;
        let flags = sys::RD_KAFKA_PURGE_F_QUEUE
            | sys::RD_KAFKA_PURGE_F_INFLIGHT
            | sys::RD_KAFKA_PURGE_F_NON_BLOCKING;
        // SAFETY: the client is alive.
        unsafe { sys::rd_kafka_purge(self.handle.ptr(), flags) };
        self.wake.notify_one();
    }
}

async fn end_idle_scout(client: Arc<Client>, of: Weak<Handle>) {
    loop {
        tokio::time::sleep(SCOUT_IDLE).await;
        let mut scout = client.scout.lock();
        match &*scout {
            Some(current) if ptr::eq(Arc::as_ptr(&current.handle), of.as_ptr()) => {
                if current.used.elapsed() >= SCOUT_IDLE || client.dead.load(Ordering::Acquire) {
                    *scout = None;
                    return;
                }
            }
            _ => return,
        }
    }
}

impl Producer {
    /// A producer with `options` (the configuration's producer section); connects at the first use, on
    /// `runtime`. Where the options forbid idempotence this says so and goes without.
    pub fn new(
        options: &KafkaOptions,
        limits: ProducerLimits,
        runtime: tokio::runtime::Handle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let options = producer_options(options);
        Self {
            limits,
            runtime,
            shared: Arc::new(Shared {
                lookups: Semaphore::new(LOOKUPS_MAX),
                creations: Semaphore::new(LOOKUPS_MAX),
                unjudged: AtomicUsize::new(0),
                message_timeout: message_timeout(&options),
                may_create: options
                    .get("allow.auto.create.topics")
                    .is_none_or(|may| may != "false"),
                failed_missing: metrics.deliveries.with_label_values(&[MISSING_LABEL, "failed"]),
                metrics,
                stats: Stats::default(),
                unflushed: AtomicUsize::new(0),
                changes: AtomicU64::new(0),
                room: Notify::new(),
            }),
            options: Arc::new(options),
            current: RwLock::new(None),
        }
    }

    /// Failures so far.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// Messages of all connections in flight.
    pub fn unflushed(&self) -> usize {
        self.shared.unflushed.load(Ordering::Acquire)
    }

    /// How many topics it has in its table: those that exist, those that wait for their verdict, and the missing ones
    /// that it remembers.
    pub fn topic_count(&self) -> usize {
        self.current.read().as_ref().map_or(0, |client| client.topics.read().len())
    }

    /// The way of `account` to `topic`, to be kept for further messages.
    ///
    /// # Errors
    /// The producer cannot start, the topic's name is illegal, or too many topics wait for their verdict.
    pub fn lane(&self, account: &Arc<Account>, topic: &str) -> Result<Arc<Lane>, SendError> {
        let client = self.client().map_err(SendError::Failed)?;
        let known = client.topics.read().get(topic).cloned();
        let topic = match known {
            Some(topic) => topic,
            None => self.add_topic(&client, topic)?,
        };
        Ok(Arc::new(Lane { account: account.clone(), topic, ticket: None }))
    }

    fn add_topic(&self, client: &Arc<Client>, name: &str) -> Result<Arc<Topic>, SendError> {
        check_topic_name(name).map_err(SendError::Failed)?;
        let mark = self.mark();
        let mut topics = client.topics.write();
        if let Some(topic) = topics.get(name) {
            return Ok(topic.clone());
        }
        if self.shared.unjudged.load(Ordering::Acquire) >= UNJUDGED_MAX {
            return Err(SendError::Wait(mark));
        }
        let topic = Arc::new(Topic {
            name: name.into(),
            known: OnceLock::new(),
            is_listed: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            state: Mutex::new(TopicState::Asking(Vec::new())),
            bytes: AtomicUsize::new(0),
            partitions: AtomicI32::new(0),
            counting: Mutex::new(Counting::Since(None)),
            logged: Mutex::new(None),
            client: client.clone(),
        });
        topics.insert(name.into(), topic.clone());
        drop(topics);
        self.ask(&topic, CREATION_PATIENCE);
        Ok(topic)
    }

    /// Hands a message to librdkafka, which copies it. Success means buffered, not stored.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was taken then.
    pub fn send(&self, lane: &Arc<Lane>, message: &Message<'_>) -> Result<(), SendError> {
        let mark = self.mark();
        let size = message.size();
        let topic = &lane.topic;
        let full = |now: usize, max: usize| now > 0 && now + size > max;
        if full(lane.account.bytes.load(Ordering::Relaxed), self.limits.connection_bytes_max)
            || full(topic.bytes.load(Ordering::Relaxed), self.limits.topic_bytes_max)
        {
            return Err(SendError::Wait(mark));
        }
        if !topic.ready.load(Ordering::Acquire) {
            let mut state = topic.state.lock();
            match &mut *state {
                TopicState::Ready => {}
                TopicState::Asking(waiting) => {
                    self.book(lane, size);
                    waiting.push(Waiting {
                        since: Instant::now(),
                        lane: lane.clone(),
                        message: OwnedMessage::new(message),
                    });
                    return Ok(());
                }
                TopicState::AskingAgain => return Err(SendError::Wait(mark)),
                TopicState::Missing(since, why) if since.elapsed() < MISSING_RETRY => {
                    return Err(SendError::Failed(failure(*why, &topic.name)));
                }
                TopicState::Missing(..) => {
                    *state = TopicState::AskingAgain;
                    drop(state);
                    self.ask(topic, Duration::ZERO);
                    return Err(SendError::Wait(mark));
                }
            }
        }
        self.book(lane, size);
        hand_over(&self.shared, lane, message).map_err(|code| {
            self.unbook(lane, size);
            if code.0 == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__QUEUE_FULL {
                return SendError::Wait(mark);
            }
            if code.is_missing_topic() {
                set_missing(topic);
            }
            SendError::Failed(failure(code, &topic.name))
        })
    }

    /// Whether a message could be taken at all, to be asked before the first of several is sent that belong together:
    /// `partition` has to exist, and `bytes` of key, headers and payload are not more than `message.max.bytes`.
    ///
    /// # Errors
    /// See [`SendError`]. Waiting, where the topic's partitions have to be counted first.
    pub fn check(
        &self,
        lane: &Lane,
        partition: Option<i32>,
        bytes: usize,
    ) -> Result<(), SendError> {
        let bytes_max = self.limits.message_bytes_max;
        if bytes > bytes_max {
            return Err(SendError::Failed(Error::invalid(format!(
                "{bytes} bytes are more than message.max.bytes, {bytes_max}"
            ))));
        }
        let Some(partition) = partition else { return Ok(()) };
        let (mark, topic) = (self.mark(), &lane.topic);
        match &*topic.state.lock() {
            TopicState::Ready => {}
            TopicState::Asking(_) | TopicState::AskingAgain => return Err(SendError::Wait(mark)),
            // Sending says it.
            TopicState::Missing(..) => return Ok(()),
        }
        let count = topic.partitions.load(Ordering::Acquire);
        if partition < count {
            return Ok(());
        }
        let mut counting = topic.counting.lock();
        match *counting {
            Counting::UnderWay => return Err(SendError::Wait(mark)),
            Counting::Since(Some(at)) if at.elapsed() < COUNT_INTERVAL => {
                if count == 0 {
                    // Nobody knows; librdkafka will.
                    return Ok(());
                }
                let partitions = if count == 1 { "partition" } else { "partitions" };
                return Err(SendError::Failed(Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "topic '{}' has {count} {partitions}, none with the number {partition}",
                        topic.name
                    ),
                )));
            }
            // It may have grown.
            Counting::Since(_) => *counting = Counting::UnderWay,
        }
        let (topic, shared) = (topic.clone(), self.shared.clone());
        self.runtime.spawn(async move {
            look_up(&shared, &topic, Duration::ZERO).await;
            *topic.counting.lock() = Counting::Since(Some(Instant::now()));
            shared.changed();
        });
        Err(SendError::Wait(mark))
    }

    /// Waits until something has changed since `mark`, so that a send may be tried again.
    pub async fn room(&self, mark: RoomMark) {
        self.shared.room(mark).await;
    }

    fn mark(&self) -> RoomMark {
        self.shared.mark()
    }

    /// Waits until `account` has nothing in flight, at most for `timeout`; returns what is left.
    pub async fn drain(&self, account: &Account, timeout: Duration) -> usize {
        let _ = tokio::time::timeout(timeout, async {
            loop {
                let mark = self.mark();
                if account.unflushed() == 0 {
                    return;
                }
                self.room(mark).await;
            }
        })
        .await;
        account.unflushed()
    }

    /// Sends everything without lingering and waits until it is settled, at most for `timeout`; returns how
    /// many messages are left.
    pub async fn flush(&self, timeout: Duration) -> usize {
        let until = Instant::now() + timeout;
        loop {
            let mark = self.mark();
            let left = until.saturating_duration_since(Instant::now());
            let client = self.current.read().clone();
            let Some(client) = client.filter(|_| self.unflushed() > 0 && !left.is_zero()) else {
                return self.unflushed();
            };
            let flushed = tokio::task::spawn_blocking(move || {
                // SAFETY: the client is alive; reports are served by its own task meanwhile.
                unsafe { sys::rd_kafka_flush(client.handle.ptr(), super::consumer::millis(left)) }
            });
            let _ = tokio::time::timeout(left, flushed).await;
            // librdkafka knows nothing of messages that wait for their topic's metadata.
            if self.unflushed() > 0 {
                let left = until.saturating_duration_since(Instant::now());
                let _ = tokio::time::timeout(left, self.room(mark)).await;
            }
        }
    }

    /// Ends the client; what is still in flight is lost. For after [`flush`](Self::flush).
    pub fn close(&self) {
        if let Some(client) = self.current.write().take() {
            client.retire();
        }
    }

    /// Every topic of the cluster, in the order of their names.
    ///
    /// # Errors
    /// No broker answered.
    pub async fn topics(&self) -> Result<Vec<TopicInfo>> {
        self.blocking(|handle| topics::list(&handle, METADATA_TIMEOUT)).await
    }

    /// The sum over its partitions of stable end − beginning; 0 where the topic does not exist. An upper
    /// bound of the messages: compacted and control records count.
    ///
    /// # Errors
    /// No broker answered, or the name is illegal.
    pub async fn len(&self, topic: &str) -> Result<i64> {
        check_topic_name(topic)?;
        let topic = topic.to_owned();
        self.blocking(move |handle| {
            let until = Instant::now() + METADATA_TIMEOUT;
            let left = || until.saturating_duration_since(Instant::now());
            // All topics, because a broker may create one that a producer asks for by name.
            let topics = topics::list(&handle, left())?;
            let partitions =
                topics.iter().find(|info| info.name == topic).map_or(0, |info| info.partitions);
            let mut total = 0;
            for partition in 0..partitions {
                let (first, next) = topics::watermarks(&handle, &topic, partition, left())?;
                total += next - first;
            }
            Ok(total)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Handle>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let handle = self.client()?.handle.clone();
        self.runtime
            .spawn_blocking(move || work(handle))
            .await
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?
    }

    fn book(&self, lane: &Lane, size: usize) {
        lane.account.messages.fetch_add(1, Ordering::AcqRel);
        lane.account.bytes.fetch_add(size, Ordering::Relaxed);
        lane.topic.bytes.fetch_add(size, Ordering::Relaxed);
        self.shared.unflushed.fetch_add(1, Ordering::AcqRel);
    }

    fn unbook(&self, lane: &Lane, size: usize) {
        lane.account.bytes.fetch_sub(size, Ordering::Relaxed);
        lane.topic.bytes.fetch_sub(size, Ordering::Relaxed);
        self.shared.unflushed.fetch_sub(1, Ordering::AcqRel);
        lane.account.messages.fetch_sub(1, Ordering::AcqRel);
    }

    fn client(&self) -> Result<Arc<Client>> {
        if let Some(client) = &*self.current.read()
            && !client.dead.load(Ordering::Acquire)
        {
            return Ok(client.clone());
        }
        let mut current = self.current.write();
        if let Some(client) = &*current
            && !client.dead.load(Ordering::Acquire)
        {
            return Ok(client.clone());
        }
        let handle = Handle::new(
            ClientKind::Producer,
            &self.options,
            sys::RD_KAFKA_EVENT_DR | sys::RD_KAFKA_EVENT_ERROR,
        )?;
        let mut events = Queue::of_main(&handle)?;
        let wake = Arc::new(Notify::new());
        let woken = wake.clone();
        events.on_non_empty(Box::new(move || woken.notify_one()));
        let dead = AtomicBool::new(false);
        let client = Arc::new(Client {
            handle,
            options: self.options.clone(),
            scout: Mutex::default(),
            topics: RwLock::default(),
            missing: Mutex::default(),
            dead,
            wake,
        });
        self.runtime.spawn(serve_events(client.clone(), events, self.shared.clone()));
        *current = Some(client.clone());
        Ok(client)
    }

    /// Asks whether a topic exists, or may be created within `patience`, and sets its state by the answer.
    fn ask(&self, topic: &Arc<Topic>, patience: Duration) {
        let (topic, shared) = (topic.clone(), self.shared.clone());
        shared.unjudged.fetch_add(1, Ordering::AcqRel);
        self.runtime.spawn(async move {
            let verdict = judge(&shared, &topic, patience).await;
            loop {
                let mark = shared.mark();
                if settle_waiting(&shared, &topic, verdict) {
                    break;
                }
                shared.room(mark).await;
            }
            shared.unjudged.fetch_sub(1, Ordering::AcqRel);
            shared.changed();
            if verdict.is_err() {
                remember_missing(topic);
            }
        });
    }
}

/// Kafka's words first, as rafka's clients know them, then the object.
fn failure(code: KafkaCode, topic: &str) -> Error {
    Error::new(code.kind(), format!("{}: '{topic}'", code.text()))
}

/// Serves a client's events until it is replaced and empty.
async fn serve_events(client: Arc<Client>, events: Queue, shared: Arc<Shared>) {
    let mut logged = None;
    loop {
        client.wake.notified().await;
        while let Some(event) = events.poll(0) {
            match event.kind() {
                sys::RD_KAFKA_EVENT_DR => settle_reports(&shared, &event),
                sys::RD_KAFKA_EVENT_ERROR if event.is_fatal() => replace(&client, &event),
                sys::RD_KAFKA_EVENT_ERROR => {
                    if logged.is_none_or(|at: Instant| at.elapsed() >= EVENT_LOG_INTERVAL) {
                        logged = Some(Instant::now());
                        tracing::warn!(error = event.error_text(), "Kafka producer");
                    }
                }
                _ => {
                    shared.stats.unknown_events.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        // SAFETY: the client is alive.
        let is_empty = unsafe { sys::rd_kafka_outq_len(client.handle.ptr()) } == 0;
        if is_empty && client.dead.load(Ordering::Acquire) {
            // The topics refer to the client: break the circle.
            client.topics.write().clear();
            client.missing.lock().clear();
            return;
        }
    }
}

/// After a fatal error (an idempotent producer that lost its sequence, KIP-98) the next sender gets a new
/// client; what is in flight here fails.
fn replace(client: &Client, event: &Event) {
    tracing::error!(error = event.error_text(), "Kafka producer failed; a new one takes over");
    client.retire();
}

/// Kafka's rule for topic names: 1 to 249 of `[a-zA-Z0-9._-]`, and neither `.` nor `..`.
///
/// # Errors
/// Names the topic and the rule.
pub fn check_topic_name(name: &str) -> Result<()> {
    if !topic_is_legal(name) {
        return Err(Error::invalid(format!(
            "illegal topic name '{}': 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'",
            name.escape_debug()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_follow_kafkas_rule() {
        for name in ["a", "a.b_c-9", &"x".repeat(249)] {
            assert!(check_topic_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a b", "a:b", "ä", "^a", "a\0", &"x".repeat(250)] {
            assert!(check_topic_name(name).is_err(), "{name:?}");
        }
    }
}
