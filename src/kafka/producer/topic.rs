//! [`Topic`]: what the producer knows of a topic, and the messages that wait until it is known whether it exists.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntCounter;
use rdkafka_sys as sys;
use tokio::sync::Semaphore;

use super::books::settle;
use super::message::{OwnedMessage, hand_over};
use super::{Client, Lane, METADATA_TIMEOUT, Shared, failure};
use crate::error::{ErrorKind, Result};
use crate::kafka::native::{KafkaCode, c_string};
use crate::kafka::topics::{self, Existence};
use crate::metrics::Metrics;

/// How long a broker that creates topics may take until it admits that there is one. The contract promises a verdict
/// on a missing topic within half a second.
pub(super) const CREATION_PATIENCE: Duration = Duration::from_millis(350);

/// How often a topic is asked for that the broker may be creating.
pub(super) const LOOKUP_INTERVAL: Duration = Duration::from_millis(50);

/// How many missing topics are remembered, so that a second message to one is refused and not buffered.
pub(super) const MISSING_MAX: usize = 256;

/// Messages whose topic nobody can judge are looked at this often, whether their time is over.
pub(super) const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);

/// Failures of one topic are logged at most this often; the counters have them all.
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct Topic {
    pub(super) name: Box<str>,
    /// Set once the topic is known to exist, or to be librdkafka's to judge. Not before: librdkafka never forgets a
    /// topic, and neither does Prometheus.
    pub(super) known: OnceLock<Known>,
    /// It is among its client's missing ones.
    pub(super) is_listed: AtomicBool,
    /// It did not exist, and is no longer in the table.
    pub(super) forgotten: AtomicBool,
    /// The state is `Ready`; saves the lock.
    pub(super) ready: AtomicBool,
    pub(super) state: Mutex<TopicState>,
    pub(super) bytes: AtomicUsize,
    /// How many partitions it had when that was asked last; 0 until somebody has said it.
    pub(super) partitions: AtomicI32,
    pub(super) counting: Mutex<Counting>,
    /// When a failure was logged last.
    pub(super) logged: Mutex<Option<Instant>>,
    pub(super) client: Arc<Client>,
}

/// librdkafka's topic, and the counters, looked up once.
pub(super) struct Known {
    pub(super) rkt: NonNull<sys::rd_kafka_topic_t>,
    pub(super) messages: IntCounter,
    pub(super) bytes: IntCounter,
    pub(super) stored: IntCounter,
    pub(super) failed: IntCounter,
}

// SAFETY: rd_kafka_topic_t is documented as thread-safe.
unsafe impl Send for Known {}
// SAFETY: as above.
unsafe impl Sync for Known {}

pub(super) enum TopicState {
    /// Its metadata is being asked for; what is sent meanwhile waits here, in order.
    Asking(Vec<Waiting>),
    /// It exists, or is librdkafka's to judge.
    Ready,
    /// The brokers said at this time that there is none for us, and why.
    Missing(Instant, KafkaCode),
    /// It was missing, and is asked for again; senders wait.
    AskingAgain,
}

/// Whether the partitions of a topic are being counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counting {
    UnderWay,
    /// Not since then.
    Since(Option<Instant>),
}

/// A message that waits for its topic's metadata.
pub(super) struct Waiting {
    pub(super) since: Instant,
    pub(super) lane: Arc<Lane>,
    pub(super) message: OwnedMessage,
}

impl Topic {
    /// Makes the topic known to librdkafka.
    pub(super) fn known(&self, metrics: &Metrics) -> Result<&Known, KafkaCode> {
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
    pub(super) fn log_failure(&self, code: KafkaCode, messages: usize) {
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

/// Lists a topic that was found missing, and forgets the oldest of too many.
pub(super) fn remember_missing(topic: Arc<Topic>) {
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
pub(super) fn forget_missing(topic: &Arc<Topic>) {
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
pub(super) fn settle_waiting(
    shared: &Shared,
    topic: &Arc<Topic>,
    verdict: Result<(), KafkaCode>,
) -> bool {
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

pub(super) fn fail_waiting(shared: &Shared, message: &Waiting, code: KafkaCode) {
    let size = message.message.borrowed().size();
    let topic = &message.lane.topic;
    topic.log_failure(code, 1);
    settle(shared, &message.lane, 1, size, Some(failure(code, &topic.name)));
}

/// For a topic that nobody can judge: fails what has waited for longer than `message.timeout.ms`, as librdkafka does with what it has.
pub(super) fn expire_waiting(shared: &Shared, topic: &Topic) {
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

/// Whether messages may go to the topic, or why not. While no broker answers this waits, and fails what has waited for
/// too long: names that nobody has judged stay out of librdkafka, which would keep them.
pub(super) async fn judge(
    shared: &Arc<Shared>,
    topic: &Arc<Topic>,
    patience: Duration,
) -> Result<(), KafkaCode> {
    let judged = async {
        loop {
            match look_up(shared, topic, patience).await {
                Existence::Exists(_) => return Ok(()),
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
pub(super) async fn look_up(shared: &Shared, topic: &Arc<Topic>, patience: Duration) -> Existence {
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
    if let Existence::Exists(Some(partitions)) = found {
        topic.partitions.store(partitions, Ordering::Release);
    }
    if is_missing(&found) && shared.may_create && !patience.is_zero() {
        // Apart from the rest, so that names which clients invent do not delay topics that exist.
        return ask(&shared.creations, patience).await;
    }
    found
}

pub(super) fn is_missing(found: &Existence) -> bool {
    matches!(found, Existence::Refused(why) if why.kind() == ErrorKind::NotFound)
}

pub(super) fn set_missing(topic: &Topic) {
    let mut state = topic.state.lock();
    if matches!(*state, TopicState::Ready) {
        topic.ready.store(false, Ordering::Release);
        let missing = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
        *state = TopicState::Missing(Instant::now(), KafkaCode(missing));
    }
}
