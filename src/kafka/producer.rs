//! [`Producer`]: one idempotent librdkafka producer for all connections, with the books of who has what in
//! flight.
//!
//! Each message carries a pointer to its [`Lane`] (who sent it, where to, who waits for it). Delivery reports
//! come in batches as events and are settled per run of equal lanes, so the cost per message stays at a few
//! atomic operations.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use prometheus::IntCounter;
use rdkafka_sys as sys;
use tokio::sync::{Notify, Semaphore};

use super::native::{ClientKind, Event, Handle, KafkaCode, Queue, c_string};
use super::topics::{self, TopicInfo};
use crate::config::{KafkaOptions, topic_is_legal};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;

/// What a message costs in librdkafka beside its bytes; counted into the caps.
const MESSAGE_OVERHEAD_BYTES: usize = 128;

/// `RD_KAFKA_PARTITION_UA`: the topic's partitioner chooses.
const PARTITION_UNASSIGNED: i32 = -1;

/// How long a topic's metadata may take before its messages are left to librdkafka, which queues them until
/// `message.timeout.ms`. The contract promises a verdict on a missing topic within half a second.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(350);

/// How often a topic is asked for that the broker may be creating.
const LOOKUP_INTERVAL: Duration = Duration::from_millis(50);

/// How many topics are asked for at once; each takes a thread of the pool that sessions need too.
const LOOKUPS_MAX: usize = 8;

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

    /// A fatal error has replaced the producer this lane leads to: ask for a new one.
    pub fn is_stale(&self) -> bool {
        self.topic.client.dead.load(Ordering::Acquire)
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
    options: KafkaOptions,
    limits: ProducerLimits,
    runtime: tokio::runtime::Handle,
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
    current: RwLock<Option<Arc<Client>>>,
}

/// What outlives a fatal error.
struct Shared {
    /// For asking for topics.
    lookups: Semaphore,
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
    topics: RwLock<HashMap<Box<str>, Arc<Topic>>>,
    dead: AtomicBool,
    /// Its event task has something to do.
    wake: Arc<Notify>,
}

impl Client {
    /// Fails what is in flight; the event task ends when that is settled.
    fn retire(&self) {
        self.dead.store(true, Ordering::Release);
        let flags = sys::RD_KAFKA_PURGE_F_QUEUE
            | sys::RD_KAFKA_PURGE_F_INFLIGHT
            | sys::RD_KAFKA_PURGE_F_NON_BLOCKING;
        // SAFETY: the client is alive.
        unsafe { sys::rd_kafka_purge(self.handle.ptr(), flags) };
        self.wake.notify_one();
    }
}

struct Topic {
    name: Box<str>,
    rkt: NonNull<sys::rd_kafka_topic_t>,
    /// The state is `Ready`; saves the lock.
    ready: AtomicBool,
    state: Mutex<TopicState>,
    bytes: AtomicUsize,
    counters: TopicCounters,
    /// When a failure was logged last.
    logged: Mutex<Option<Instant>>,
    client: Arc<Client>,
}

/// A topic's counters, looked up once.
struct TopicCounters {
    messages: IntCounter,
    bytes: IntCounter,
    stored: IntCounter,
    failed: IntCounter,
}

// SAFETY: rd_kafka_topic_t is documented as thread-safe.
unsafe impl Send for Topic {}
// SAFETY: as above.
unsafe impl Sync for Topic {}

enum TopicState {
    /// Its metadata is being asked for; what is sent meanwhile waits here, in order.
    Asking(Vec<Waiting>),
    /// It exists, or nobody could say that it does not.
    Ready,
    /// It did not exist at this time.
    Missing(Instant),
    /// It did not exist, and is asked for again; senders wait.
    AskingAgain,
}

/// A message that waits for its topic's metadata.
struct Waiting {
    lane: Arc<Lane>,
    key: Option<Box<[u8]>>,
    payload: Option<Box<[u8]>>,
}

impl Topic {
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
        // SAFETY: owned; the client outlives it.
        unsafe { sys::rd_kafka_topic_destroy(self.rkt.as_ptr()) }
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
        Self {
            options: producer_options(options),
            limits,
            runtime,
            metrics,
            shared: Arc::new(Shared {
                lookups: Semaphore::new(LOOKUPS_MAX),
                stats: Stats::default(),
                unflushed: AtomicUsize::new(0),
                changes: AtomicU64::new(0),
                room: Notify::new(),
            }),
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

    /// The way of `account` to `topic`, to be kept for further messages.
    ///
    /// # Errors
    /// The producer cannot start, or the topic's name is illegal.
    pub fn lane(&self, account: &Arc<Account>, topic: &str) -> Result<Arc<Lane>> {
        let client = self.client()?;
        let known = client.topics.read().get(topic).cloned();
        let topic = match known {
            Some(topic) => topic,
            None => self.add_topic(&client, topic)?,
        };
        Ok(Arc::new(Lane { account: account.clone(), topic, ticket: None }))
    }

    fn add_topic(&self, client: &Arc<Client>, name: &str) -> Result<Arc<Topic>> {
        check_topic_name(name)?;
        let mut topics = client.topics.write();
        if let Some(topic) = topics.get(name) {
            return Ok(topic.clone());
        }
        let c_name = c_string(name)?;
        // SAFETY: the client is alive; a null configuration means the client's own.
        let rkt = unsafe {
            sys::rd_kafka_topic_new(client.handle.ptr(), c_name.as_ptr(), ptr::null_mut())
        };
        let Some(rkt) = NonNull::new(rkt) else {
            // SAFETY: the call before failed and set this.
            let code = KafkaCode(unsafe { sys::rd_kafka_last_error() });
            return Err(code.into_error(format_args!("topic '{name}'")));
        };
        let topic = Arc::new(Topic {
            name: name.into(),
            rkt,
            ready: AtomicBool::new(false),
            state: Mutex::new(TopicState::Asking(Vec::new())),
            bytes: AtomicUsize::new(0),
            counters: TopicCounters {
                messages: self.metrics.produced_messages.with_label_values(&[name]),
                bytes: self.metrics.produced_bytes.with_label_values(&[name]),
                stored: self.metrics.deliveries.with_label_values(&[name, "stored"]),
                failed: self.metrics.deliveries.with_label_values(&[name, "failed"]),
            },
            logged: Mutex::new(None),
            client: client.clone(),
        });
        topics.insert(name.into(), topic.clone());
        drop(topics);
        self.ask(&topic, LOOKUP_TIMEOUT);
        Ok(topic)
    }

    /// Hands a message to librdkafka, which copies it. Success means buffered, not stored.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was taken then.
    pub fn send(
        &self,
        lane: &Arc<Lane>,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
    ) -> Result<(), SendError> {
        let mark = self.mark();
        let size = message_size(key, payload);
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
                        lane: lane.clone(),
                        key: key.map(Into::into),
                        payload: payload.map(Into::into),
                    });
                    return Ok(());
                }
                TopicState::AskingAgain => return Err(SendError::Wait(mark)),
                TopicState::Missing(since) if since.elapsed() < MISSING_RETRY => {
                    return Err(SendError::Failed(missing(&topic.name)));
                }
                TopicState::Missing(_) => {
                    *state = TopicState::AskingAgain;
                    drop(state);
                    self.ask(topic, Duration::ZERO);
                    return Err(SendError::Wait(mark));
                }
            }
        }
        self.book(lane, size);
        hand_over(lane, key, payload).map_err(|code| {
            self.unbook(lane, size);
            if code.0 == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__QUEUE_FULL {
                return SendError::Wait(mark);
            }
            if code.kind() == ErrorKind::NotFound {
                set_missing(topic);
                return SendError::Failed(missing(&topic.name));
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
            // All topics, because a broker may create one that a producer asks for by name.
            let topics = topics::list(&handle, METADATA_TIMEOUT)?;
            let partitions =
                topics.iter().find(|info| info.name == topic).map_or(0, |info| info.partitions);
            let mut total = 0;
            for partition in 0..partitions {
                let (first, next) =
                    topics::watermarks(&handle, &topic, partition, METADATA_TIMEOUT)?;
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
        let client = Arc::new(Client { handle, topics: RwLock::default(), dead, wake });
        self.runtime.spawn(serve_events(client.clone(), events, self.shared.clone()));
        *current = Some(client.clone());
        Ok(client)
    }

    /// Asks for a topic's metadata, again until `patience` is over, and sets its state by the answer.
    fn ask(&self, topic: &Arc<Topic>, patience: Duration) {
        let (topic, shared) = (topic.clone(), self.shared.clone());
        self.runtime.spawn(async move {
            let found = {
                // The semaphore is never closed.
                let _permit = shared.lookups.acquire().await;
                look_up(&topic, patience).await
            };
            loop {
                let mark = shared.mark();
                if settle_waiting(&shared, &topic, found) {
                    break;
                }
                shared.room(mark).await;
            }
            shared.changed();
        });
    }
}

/// Hands over, or fails, what waited for the topic's metadata, and sets its state; `false` if librdkafka's queue is
/// full before all is done.
fn settle_waiting(shared: &Shared, topic: &Arc<Topic>, found: bool) -> bool {
    // Under the lock all the time, so that what comes later stays behind what waited.
    let mut state = topic.state.lock();
    let mut waiting = match &mut *state {
        TopicState::Asking(waiting) => std::mem::take(waiting).into_iter(),
        _ => Vec::new().into_iter(),
    };
    while let Some(message) = waiting.next() {
        let outcome = if found {
            hand_over(&message.lane, message.key.as_deref(), message.payload.as_deref())
        } else {
            Err(KafkaCode(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART))
        };
        let Err(code) = outcome else { continue };
        if code.0 == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__QUEUE_FULL {
            *state = TopicState::Asking(std::iter::once(message).chain(waiting).collect());
            return false;
        }
        let size = message_size(message.key.as_deref(), message.payload.as_deref());
        settle(shared, &message.lane, 1, size, Some(failure(code, &topic.name)));
    }
    *state = if found { TopicState::Ready } else { TopicState::Missing(Instant::now()) };
    topic.ready.store(found, Ordering::Release);
    true
}

/// Kafka's words first, as rafka's clients know them, then the object.
fn failure(code: KafkaCode, topic: &str) -> Error {
    Error::new(code.kind(), format!("{}: '{topic}'", code.text()))
}

/// Whether the topic exists, or may exist. A broker may create it when a producer asks for it
/// (`auto.create.topics.enable`); it is unknown for some moments more then, so `patience` asks again.
async fn look_up(topic: &Arc<Topic>, patience: Duration) -> bool {
    let began = Instant::now();
    loop {
        let asked = topic.clone();
        let count = tokio::task::spawn_blocking(move || {
            topics::partition_count(&asked.client.handle, &asked.name, LOOKUP_TIMEOUT)
        });
        match count.await {
            Ok(Ok(0)) if began.elapsed() >= patience => return false,
            Ok(Ok(0)) => tokio::time::sleep(LOOKUP_INTERVAL).await,
            // It exists, or no broker could say: librdkafka waits for one until message.timeout.ms.
            _ => return true,
        }
    }
}

/// Gives a message to librdkafka with a reference to its lane, which comes back with its report.
fn hand_over(
    lane: &Arc<Lane>,
    key: Option<&[u8]>,
    payload: Option<&[u8]>,
) -> Result<(), KafkaCode> {
    let pointer = |bytes: Option<&[u8]>| bytes.map_or(ptr::null(), <[u8]>::as_ptr);
    let opaque = Arc::into_raw(lane.clone());
    // SAFETY: the topic is alive through the lane; F_COPY makes librdkafka copy key and payload.
    let result = unsafe {
        sys::rd_kafka_produce(
            lane.topic.rkt.as_ptr(),
            PARTITION_UNASSIGNED,
            sys::RD_KAFKA_MSG_F_COPY,
            pointer(payload).cast_mut().cast(),
            payload.map_or(0, <[u8]>::len),
            pointer(key).cast(),
            key.map_or(0, <[u8]>::len),
            opaque.cast_mut().cast::<c_void>(),
        )
    };
    if result == 0 {
        lane.topic.counters.messages.inc();
        lane.topic.counters.bytes.inc_by(payload.map_or(0, <[u8]>::len) as u64);
        return Ok(());
    }
    // SAFETY: librdkafka did not take the message, so the reference is ours again; the call set the error.
    unsafe {
        drop(Arc::from_raw(opaque));
        Err(KafkaCode(sys::rd_kafka_last_error()))
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
    match &error {
        None => lane.topic.counters.stored.inc_by(count as u64),
        Some(_) => {
            lane.topic.counters.failed.inc_by(count as u64);
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
        *state = TopicState::Missing(Instant::now());
    }
}

fn missing(topic: &str) -> Error {
    failure(KafkaCode(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART), topic)
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
