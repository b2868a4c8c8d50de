//! [`Producer`]: one idempotent librdkafka producer for all connections, with the books of who has what in
//! flight.
//!
//! Each message carries a pointer to its [`Lane`] (who sent it, where to, who waits for it). Delivery reports
//! come in batches as events and are settled per run of equal lanes, so the cost per message stays at a few
//! atomic operations.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use prometheus::IntCounter;
use rdkafka_sys as sys;
use tokio::sync::{Notify, Semaphore};

use super::native::{ClientKind, Event, Handle, KafkaCode, Queue, c_string};
use super::topics::{self, Existence, TopicInfo};
use crate::config::{KafkaOptions, topic_is_legal};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;

/// What a message costs in librdkafka beside its bytes; counted into the caps.
const MESSAGE_OVERHEAD_BYTES: usize = 128;

/// `RD_KAFKA_PARTITION_UA`: the topic's partitioner chooses.
const PARTITION_UNASSIGNED: i32 = -1;

/// How long a broker that creates topics may take until it admits that there is one. The contract promises a verdict
/// on a missing topic within half a second.
const CREATION_PATIENCE: Duration = Duration::from_millis(350);

/// How often a topic is asked for that the broker may be creating.
const LOOKUP_INTERVAL: Duration = Duration::from_millis(50);

/// How many topics are asked for at once; each takes a thread of the pool that sessions need too.
const LOOKUPS_MAX: usize = 8;

/// How many topics may wait for their verdict; who names another one waits. Clients invent names faster than brokers
/// judge them.
const UNJUDGED_MAX: usize = 256;

/// How many missing topics are remembered, so that a second message to one is refused and not buffered.
const MISSING_MAX: usize = 256;

/// A scout that has asked for this many names is replaced: librdkafka never forgets a name it was asked about.
const SCOUT_NAMES_MAX: usize = 1000;

/// A scout that nobody has needed for this long ends.
const SCOUT_IDLE: Duration = Duration::from_secs(10);

/// Messages whose topic nobody can judge are looked at this often, whether their time is over.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);

/// `message.timeout.ms`, unless the options say otherwise.
const MESSAGE_TIMEOUT_MS: u64 = 300_000;

/// In place of a topic that did not exist, in `karrow_deliveries_total`: no legal name, and one for all, because
/// clients invent names without end.
const MISSING_LABEL: &str = "(missing)";

/// Failures of one topic are logged at most this often; the counters have them all.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Brokers that are away say so many times a second; it is logged at most this often.
const EVENT_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A topic that was missing is looked up again after this long.
const MISSING_RETRY: Duration = Duration::from_secs(1);

/// Deadline of metadata requests that a client waits for.
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

/// What one connection has in flight.
#[derive(Debug, Default)]
pub struct Account {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl Account {
    /// Messages handed over and neither stored nor failed yet.
    pub fn unflushed(&self) -> usize {
        self.messages.load(Ordering::Acquire)
    }
}

/// What rafka's `HGETALL stats` shows, over all connections since start or `DEL stats`.
#[derive(Debug, Default)]
pub struct Stats {
    delivery_errors: AtomicUsize,
    unknown_events: AtomicUsize,
}

impl Stats {
    /// Messages that were not stored.
    pub fn delivery_errors(&self) -> usize {
        self.delivery_errors.load(Ordering::Relaxed)
    }

    /// Events of librdkafka that nobody expected.
    pub fn unknown_events(&self) -> usize {
        self.unknown_events.load(Ordering::Relaxed)
    }

    /// Starts both at zero again.
    pub fn reset(&self) {
        self.delivery_errors.store(0, Ordering::Relaxed);
        self.unknown_events.store(0, Ordering::Relaxed);
    }
}

/// The outcome of an acknowledged produce command, complete when every message is stored or failed.
#[derive(Debug)]
pub struct Ticket {
    total: usize,
    open: AtomicUsize,
    failed: Mutex<(usize, Option<Error>)>,
    done: Arc<Notify>,
}

impl Ticket {
    /// For `total` messages; `done` is notified when the last one is settled.
    pub fn new(total: usize, done: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { total, open: AtomicUsize::new(total), failed: Mutex::default(), done })
    }

    /// `None` while messages are open, then how many were stored, or why some were not.
    pub fn outcome(&self) -> Option<Result<usize>> {
        if self.open.load(Ordering::Acquire) > 0 {
            return None;
        }
        let failed = self.failed.lock();
        Some(match &*failed {
            (0, _) => Ok(self.total),
            (count, why) => {
                let kind = why.as_ref().map_or(ErrorKind::Internal, Error::kind);
                let why = why.as_ref().map_or("", Error::message);
                Err(Error::new(
                    kind,
                    format!("{why} ({count} of {} messages not stored)", self.total),
                ))
            }
        })
    }

    /// Settles messages that never reached librdkafka, or came back from it.
    pub fn settle(&self, count: usize, error: Option<Error>) {
        if count == 0 {
            return;
        }
        if let Some(error) = error {
            let mut failed = self.failed.lock();
            failed.0 += count;
            failed.1.get_or_insert(error);
        }
        if self.open.fetch_sub(count, Ordering::AcqRel) == count {
            self.done.notify_one();
        }
    }
}

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

struct Topic {
    name: Box<str>,
    /// Set once the topic is known to exist, or to be librdkafka's to judge. Not before: librdkafka never forgets a
    /// topic, and neither does Prometheus.
    known: OnceLock<Known>,
    /// It is among its client's missing ones.
    is_listed: AtomicBool,
    /// It did not exist, and is no longer in the table.
    forgotten: AtomicBool,
    /// The state is `Ready`; saves the lock.
    ready: AtomicBool,
    state: Mutex<TopicState>,
    bytes: AtomicUsize,
    /// When a failure was logged last.
    logged: Mutex<Option<Instant>>,
    client: Arc<Client>,
}

/// librdkafka's topic, and the counters, looked up once.
struct Known {
    rkt: NonNull<sys::rd_kafka_topic_t>,
    messages: IntCounter,
    bytes: IntCounter,
    stored: IntCounter,
    failed: IntCounter,
}

// SAFETY: rd_kafka_topic_t is documented as thread-safe.
unsafe impl Send for Known {}
// SAFETY: as above.
unsafe impl Sync for Known {}

enum TopicState {
    /// Its metadata is being asked for; what is sent meanwhile waits here, in order.
    Asking(Vec<Waiting>),
    /// It exists, or is librdkafka's to judge.
    Ready,
    /// The brokers said at this time that there is none for us, and why.
    Missing(Instant, KafkaCode),
    /// It was missing, and is asked for again; senders wait.
    AskingAgain,
}

/// A message that waits for its topic's metadata.
struct Waiting {
    since: Instant,
    lane: Arc<Lane>,
    message: OwnedMessage,
}

/// A message's header: its name and its value.
pub type Header = (String, Option<Vec<u8>>);

/// A message to be produced.
#[derive(Clone, Copy, Debug, Default)]
pub struct Message<'a> {
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// Its headers, in order; no name has a NUL.
    pub headers: &'a [Header],
    /// Milliseconds since the epoch, more than 0; now, if there is none.
    pub timestamp: Option<i64>,
    /// Where it goes; the topic's partitioner chooses, if there is none.
    pub partition: Option<i32>,
}

impl Message<'_> {
    /// What it counts for in the caps. Reports give back the same: they do not know headers.
    fn size(&self) -> usize {
        message_size(self.key, self.payload)
    }
}

/// A [`Message`] that waits.
struct OwnedMessage {
    key: Option<Box<[u8]>>,
    payload: Option<Box<[u8]>>,
    headers: Box<[Header]>,
    timestamp: Option<i64>,
    partition: Option<i32>,
}

impl OwnedMessage {
    fn new(message: &Message<'_>) -> Self {
        Self {
            key: message.key.map(Into::into),
            payload: message.payload.map(Into::into),
            headers: message.headers.into(),
            timestamp: message.timestamp,
            partition: message.partition,
        }
    }

    fn borrowed(&self) -> Message<'_> {
        Message {
            key: self.key.as_deref(),
            payload: self.payload.as_deref(),
            headers: &self.headers,
            timestamp: self.timestamp,
            partition: self.partition,
        }
    }
}

impl Topic {
    /// Makes the topic known to librdkafka.
    fn known(&self, metrics: &Metrics) -> Result<&Known, KafkaCode> {
        if let Some(known) = self.known.get() {
            return Ok(known);
        }
        let name: &str = &self.name;
        let invalid = KafkaCode(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__INVALID_ARG);
        let c_name = c_string(name).map_err(|_| invalid)?;
        // SAFETY: the client is alive; a null configuration means the client's own.
        let rkt = unsafe {
            sys::rd_kafka_topic_new(self.client.handle.ptr(), c_name.as_ptr(), ptr::null_mut())
        };
        let Some(rkt) = NonNull::new(rkt) else {
            // SAFETY: the call before failed and set this.
            return Err(KafkaCode(unsafe { sys::rd_kafka_last_error() }));
        };
        Ok(self.known.get_or_init(|| Known {
            rkt,
            messages: metrics.produced_messages.with_label_values(&[name]),
            bytes: metrics.produced_bytes.with_label_values(&[name]),
            stored: metrics.deliveries.with_label_values(&[name, "stored"]),
            failed: metrics.deliveries.with_label_values(&[name, "failed"]),
        }))
    }

    /// Logs that messages were not stored, at most once a second.
    fn log_failure(&self, code: KafkaCode, messages: usize) {
        let mut logged = self.logged.lock();
        if logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            *logged = Some(Instant::now());
            tracing::warn!(topic = %self.name, error = code.text(), messages, "not stored");
        }
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        if let Some(known) = self.known.get() {
            // SAFETY: owned; the client outlives it.
            unsafe { sys::rd_kafka_topic_destroy(known.rkt.as_ptr()) }
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
            if code.kind() == ErrorKind::NotFound {
                set_missing(topic);
            }
            SendError::Failed(failure(code, &topic.name))
        })
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

/// Lists a topic that was found missing, and forgets the oldest of too many.
fn remember_missing(topic: Arc<Topic>) {
    let client = topic.client.clone();
    let mut missing = client.missing.lock();
    if client.dead.load(Ordering::Acquire) || topic.is_listed.swap(true, Ordering::AcqRel) {
        return;
    }
    missing.push_back(topic);
    let oldest = if missing.len() > MISSING_MAX { missing.pop_front() } else { None };
    if let Some(oldest) = oldest {
        // Under the lock, so that a verdict that comes now lists it again.
        oldest.is_listed.store(false, Ordering::Release);
        drop(missing);
        forget_missing(&oldest);
    }
}

/// Takes a topic out of the table if it is still missing, so that names which clients invent do not stay.
fn forget_missing(topic: &Arc<Topic>) {
    let mut topics = topic.client.topics.write();
    let state = topic.state.lock();
    if !matches!(*state, TopicState::Missing(..)) || topic.known.get().is_some() {
        return;
    }
    topic.forgotten.store(true, Ordering::Release);
    if topics.get(&topic.name).is_some_and(|current| Arc::ptr_eq(current, topic)) {
        topics.remove(&topic.name);
    }
}

/// Hands over, or fails, what waited for the verdict on its topic, and sets the topic's state; `false` if librdkafka's
/// queue is full before all is done.
fn settle_waiting(shared: &Shared, topic: &Arc<Topic>, verdict: Result<(), KafkaCode>) -> bool {
    // Under the lock all the time, so that what comes later stays behind what waited.
    let mut state = topic.state.lock();
    let mut waiting = match &mut *state {
        TopicState::Asking(waiting) => std::mem::take(waiting).into_iter(),
        _ => Vec::new().into_iter(),
    };
    let verdict = verdict.and_then(|()| topic.known(&shared.metrics).map(|_| ()));
    while let Some(message) = waiting.next() {
        let outcome =
            verdict.and_then(|()| hand_over(shared, &message.lane, &message.message.borrowed()));
        let Err(code) = outcome else { continue };
        if code.0 == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__QUEUE_FULL {
            *state = TopicState::Asking(std::iter::once(message).chain(waiting).collect());
            return false;
        }
        fail_waiting(shared, &message, code);
    }
    *state = match verdict {
        Ok(()) => TopicState::Ready,
        Err(why) => TopicState::Missing(Instant::now(), why),
    };
    topic.ready.store(verdict.is_ok(), Ordering::Release);
    true
}

fn fail_waiting(shared: &Shared, message: &Waiting, code: KafkaCode) {
    let size = message.message.borrowed().size();
    let topic = &message.lane.topic;
    topic.log_failure(code, 1);
    settle(shared, &message.lane, 1, size, Some(failure(code, &topic.name)));
}

/// For a topic that nobody can judge: fails what has waited for longer than `message.timeout.ms`, as librdkafka does with what it has.
fn expire_waiting(shared: &Shared, topic: &Topic) {
    let mut state = topic.state.lock();
    if matches!(*state, TopicState::AskingAgain) {
        // This takes longer than a sender should be held: let messages wait in its place.
        *state = TopicState::Asking(Vec::new());
        shared.changed();
        return;
    }
    let Some(timeout) = shared.message_timeout else { return };
    let TopicState::Asking(waiting) = &mut *state else { return };
    let late = waiting.iter().take_while(|message| message.since.elapsed() >= timeout).count();
    if late > 0 {
        let code = KafkaCode(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT);
        for message in waiting.drain(..late) {
            fail_waiting(shared, &message, code);
        }
        drop(state);
        shared.changed();
    }
}

/// Kafka's words first, as rafka's clients know them, then the object.
fn failure(code: KafkaCode, topic: &str) -> Error {
    Error::new(code.kind(), format!("{}: '{topic}'", code.text()))
}

/// Whether messages may go to the topic, or why not. While no broker answers this waits, and fails what has waited for
/// too long: names that nobody has judged stay out of librdkafka, which would keep them.
async fn judge(
    shared: &Arc<Shared>,
    topic: &Arc<Topic>,
    patience: Duration,
) -> Result<(), KafkaCode> {
    let judged = async {
        loop {
            match look_up(shared, topic, patience).await {
                Existence::Exists => return Ok(()),
                Existence::Refused(why) => return Err(why),
                Existence::Unknown => tokio::time::sleep(LOOKUP_INTERVAL).await,
            }
        }
    };
    let mut judged = std::pin::pin!(judged);
    loop {
        match tokio::time::timeout(EXPIRY_INTERVAL, &mut judged).await {
            Ok(verdict) => return verdict,
            Err(_) if topic.client.dead.load(Ordering::Acquire) => {
                let purged = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PURGE_QUEUE;
                return Err(KafkaCode(purged));
            }
            Err(_) => expire_waiting(shared, topic),
        }
    }
}

/// Asks the brokers. Where there is no such topic, one may be created for a producer that asks for it
/// (`auto.create.topics.enable`); it is unknown for some moments more then, so `patience` asks again.
async fn look_up(shared: &Shared, topic: &Arc<Topic>, patience: Duration) -> Existence {
    let scout = match topic.client.scout() {
        Ok(scout) => scout,
        Err(error) => {
            tracing::error!(%error, "no client to ask for a topic");
            return Existence::Unknown;
        }
    };
    let ask = async |permits: &Semaphore, patience: Duration| {
        // The semaphores are never closed.
        let _permit = permits.acquire().await;
        let began = Instant::now();
        loop {
            let (asked, scout) = (topic.clone(), scout.clone());
            let found = tokio::task::spawn_blocking(move || {
                topics::ask_for(&scout, &asked.name, METADATA_TIMEOUT)
            })
            .await
            .unwrap_or(Existence::Unknown);
            if !is_missing(&found) || began.elapsed() >= patience {
                return found;
            }
            tokio::time::sleep(LOOKUP_INTERVAL).await;
        }
    };
    let found = ask(&shared.lookups, Duration::ZERO).await;
    if is_missing(&found) && shared.may_create && !patience.is_zero() {
        // Apart from the rest, so that names which clients invent do not delay topics that exist.
        return ask(&shared.creations, patience).await;
    }
    found
}

fn is_missing(found: &Existence) -> bool {
    matches!(found, Existence::Refused(why) if why.kind() == ErrorKind::NotFound)
}

/// Gives a message to librdkafka with a reference to its lane, which comes back with its report.
fn hand_over(shared: &Shared, lane: &Arc<Lane>, message: &Message<'_>) -> Result<(), KafkaCode> {
    let Message { key, payload, headers, timestamp, partition } = *message;
    let known = lane.topic.known(&shared.metrics)?;
    let opaque = Arc::into_raw(lane.clone());
    let code = if headers.is_empty() && timestamp.is_none() {
        let pointer = |bytes: Option<&[u8]>| bytes.map_or(ptr::null(), <[u8]>::as_ptr);
        // SAFETY: the topic is alive through the lane; F_COPY makes librdkafka copy key and payload.
        let result = unsafe {
            sys::rd_kafka_produce(
                known.rkt.as_ptr(),
                partition.unwrap_or(PARTITION_UNASSIGNED),
                sys::RD_KAFKA_MSG_F_COPY,
                pointer(payload).cast_mut().cast(),
                payload.map_or(0, <[u8]>::len),
                pointer(key).cast(),
                key.map_or(0, <[u8]>::len),
                opaque.cast_mut().cast::<c_void>(),
            )
        };
        // SAFETY: the call before set the error.
        let last = || KafkaCode(unsafe { sys::rd_kafka_last_error() });
        (result != 0).then(last)
    } else {
        let code = hand_over_all_of(lane, known.rkt, message, opaque.cast());
        (!code.is_ok()).then_some(code)
    };
    match code {
        None => {
            known.messages.inc();
            known.bytes.inc_by(payload.map_or(0, <[u8]>::len) as u64);
            Ok(())
        }
        Some(code) => {
            // SAFETY: librdkafka did not take the message, so the reference is ours again.
            drop(unsafe { Arc::from_raw(opaque) });
            Err(code)
        }
    }
}

/// The same for a message with headers or a timestamp, by a call that takes a list of its parts.
fn hand_over_all_of(
    lane: &Lane,
    rkt: NonNull<sys::rd_kafka_topic_t>,
    message: &Message<'_>,
    opaque: *const c_void,
) -> KafkaCode {
    use sys::rd_kafka_vtype_t::*;
    use sys::rd_kafka_vu_s__bindgen_ty_1 as Part;
    let part = |vtype, u| sys::rd_kafka_vu_t { vtype, u };
    let memory = |bytes: Option<&[u8]>| Part {
        mem: sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
            ptr: bytes.map_or(ptr::null(), <[u8]>::as_ptr).cast_mut().cast(),
            size: bytes.map_or(0, <[u8]>::len),
        },
    };
    let names: Result<Vec<_>> = message.headers.iter().map(|(name, _)| c_string(name)).collect();
    let Ok(names) = names else {
        return KafkaCode(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__INVALID_ARG);
    };
    let partition = message.partition.unwrap_or(PARTITION_UNASSIGNED);
    let mut parts = vec![
        part(RD_KAFKA_VTYPE_RKT, Part { rkt: rkt.as_ptr() }),
        part(RD_KAFKA_VTYPE_PARTITION, Part { i32_: partition }),
        part(RD_KAFKA_VTYPE_MSGFLAGS, Part { i: sys::RD_KAFKA_MSG_F_COPY }),
        part(RD_KAFKA_VTYPE_KEY, memory(message.key)),
        part(RD_KAFKA_VTYPE_VALUE, memory(message.payload)),
        part(RD_KAFKA_VTYPE_OPAQUE, Part { ptr: opaque.cast_mut() }),
    ];
    if let Some(timestamp) = message.timestamp {
        parts.push(part(RD_KAFKA_VTYPE_TIMESTAMP, Part { i64_: timestamp }));
    }
    for (name, (_, value)) in names.iter().zip(message.headers) {
        let header = sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_2 {
            name: name.as_ptr(),
            val: value.as_ref().map_or(ptr::null(), |value| value.as_ptr()).cast(),
            size: value.as_ref().map_or(0, |value| value.len() as isize),
        };
        parts.push(part(RD_KAFKA_VTYPE_HEADER, Part { header }));
    }
    // SAFETY: client and topic are alive through the lane; every part points to what lives during the call, of which
    // F_COPY and the headers' own rule make librdkafka take copies.
    unsafe {
        let error =
            sys::rd_kafka_produceva(lane.topic.client.handle.ptr(), parts.as_ptr(), parts.len());
        if error.is_null() {
            return KafkaCode(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
        }
        let code = KafkaCode(sys::rd_kafka_error_code(error));
        sys::rd_kafka_error_destroy(error);
        code
    }
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

fn settle_reports(shared: &Shared, event: &Event) {
    let mut messages = [ptr::null::<sys::rd_kafka_message_t>(); 256];
    loop {
        // SAFETY: the event is alive and the array has this many places.
        let count = unsafe {
            sys::rd_kafka_event_message_array(event.ptr(), messages.as_mut_ptr(), messages.len())
        };
        if count == 0 {
            break;
        }
        let mut run: Option<Run> = None;
        for message in messages.iter().take(count) {
            // SAFETY: the array was filled up to `count` with messages that live as long as the event.
            let message = unsafe { &**message };
            let lane = message._private.cast_const().cast::<Lane>();
            if run.as_ref().is_none_or(|run| run.lane != lane || run.code.0 != message.err) {
                if let Some(run) = run.take() {
                    run.settle(shared);
                }
                run = Some(Run { lane, code: KafkaCode(message.err), count: 0, bytes: 0 });
            }
            if let Some(run) = &mut run {
                run.count += 1;
                run.bytes += message.len + message.key_len + MESSAGE_OVERHEAD_BYTES;
            }
        }
        if let Some(run) = run {
            run.settle(shared);
        }
    }
    shared.changed();
}

/// Reports of one lane with one outcome, next to each other.
struct Run {
    lane: *const Lane,
    code: KafkaCode,
    count: usize,
    bytes: usize,
}

impl Run {
    fn settle(self, shared: &Shared) {
        // SAFETY: each message carried one reference, made by Arc::into_raw in `hand_over`.
        let lane = unsafe { Arc::from_raw(self.lane) };
        let error = (!self.code.is_ok()).then(|| {
            lane.topic.log_failure(self.code, self.count);
            if self.code.kind() == ErrorKind::NotFound {
                set_missing(&lane.topic);
            }
            failure(self.code, &lane.topic.name)
        });
        settle(shared, &lane, self.count, self.bytes, error);
        for _ in 1..self.count {
            // SAFETY: as above, for the other messages of the run.
            unsafe { Arc::decrement_strong_count(self.lane) };
        }
    }
}

fn settle(shared: &Shared, lane: &Lane, count: usize, bytes: usize, error: Option<Error>) {
    let known = lane.topic.known.get();
    match &error {
        // What was stored was handed over, so its topic is known.
        None => known.into_iter().for_each(|known| known.stored.inc_by(count as u64)),
        Some(_) => {
            known.map_or(&shared.failed_missing, |known| &known.failed).inc_by(count as u64);
            shared.stats.delivery_errors.fetch_add(count, Ordering::Relaxed);
        }
    }
    lane.topic.bytes.fetch_sub(bytes, Ordering::Relaxed);
    lane.account.bytes.fetch_sub(bytes, Ordering::Relaxed);
    shared.unflushed.fetch_sub(count, Ordering::AcqRel);
    lane.account.messages.fetch_sub(count, Ordering::AcqRel);
    if let Some(ticket) = &lane.ticket {
        ticket.settle(count, error);
    }
}

fn set_missing(topic: &Topic) {
    let mut state = topic.state.lock();
    if matches!(*state, TopicState::Ready) {
        topic.ready.store(false, Ordering::Release);
        let missing = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
        *state = TopicState::Missing(Instant::now(), KafkaCode(missing));
    }
}

fn message_size(key: Option<&[u8]>, payload: Option<&[u8]>) -> usize {
    key.map_or(0, <[u8]>::len) + payload.map_or(0, <[u8]>::len) + MESSAGE_OVERHEAD_BYTES
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

/// karrow's defaults under the file's options, with what the books rest on above both.
pub(super) fn producer_options(file: &KafkaOptions) -> KafkaOptions {
    let mut options = KafkaOptions::new();
    // The caps count bytes per connection and topic; librdkafka's count of messages would fail those first.
    options.insert("queue.buffering.max.messages".into(), "0".into());
    options.insert("enable.metrics.push".into(), "false".into());
    options.insert("log.connection.close".into(), "false".into());
    if let Some((name, value)) = forbids_idempotence(file) {
        tracing::warn!("the producer is not idempotent: `{name}={value}` forbids it");
    } else {
        options.insert("enable.idempotence".into(), "true".into());
    }
    options.extend(file.clone());
    // Without reports nothing would ever leave the books.
    options.insert("delivery.report.only.error".into(), "false".into());
    options
}

/// `None` is never.
fn message_timeout(options: &KafkaOptions) -> Option<Duration> {
    let said = ["message.timeout.ms", "delivery.timeout.ms"]
        .iter()
        .find_map(|name| options.get(*name)?.parse().ok());
    Some(said.unwrap_or(MESSAGE_TIMEOUT_MS)).filter(|millis| *millis > 0).map(Duration::from_millis)
}

/// The first option of the file that librdkafka refuses beside `enable.idempotence` (KIP-98).
fn forbids_idempotence(file: &KafkaOptions) -> Option<(&str, &str)> {
    file.iter().map(|(name, value)| (name.as_str(), value.as_str())).find(|(name, value)| {
        match *name {
            "enable.idempotence" => *value == "false",
            "acks" | "request.required.acks" => *value != "all" && *value != "-1",
            "max.in.flight" | "max.in.flight.requests.per.connection" => {
                value.parse::<u64>().is_ok_and(|count| count > 5)
            }
            "retries" | "message.send.max.retries" => {
                value.parse::<u64>().is_ok_and(|count| count < 1)
            }
            "queuing.strategy" => *value != "fifo",
            _ => false,
        }
    })
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

    #[test]
    fn idempotence_gives_way_to_the_file() {
        let with = |name: &str, value: &str| {
            producer_options(&[(name.to_owned(), value.to_owned())].into())
                .get("enable.idempotence")
                .is_some_and(|value| value == "true")
        };
        assert!(with("linger.ms", "1") && with("acks", "all") && with("retries", "3"));
        assert!(!with("acks", "1") && !with("max.in.flight", "6") && !with("retries", "0"));
        assert!(!with("enable.idempotence", "false"));
    }

    #[test]
    fn a_ticket_is_done_when_all_of_it_is() {
        let ticket = Ticket::new(3, Arc::new(Notify::new()));
        ticket.settle(2, None);
        assert!(ticket.outcome().is_none());
        ticket.settle(1, Some(Error::new(ErrorKind::NotFound, "gone")));
        let error = ticket.outcome().expect("complete").expect_err("one failed");
        assert_eq!(error.message(), "gone (1 of 3 messages not stored)");
    }
}
