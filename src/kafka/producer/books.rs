//! The books of the producer: who has how much in flight, who waits for what, and how reports settle both.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rdkafka_sys as sys;
use tokio::sync::Notify;

use super::topic::set_missing;
use super::{Lane, Shared, failure};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::native::{Event, KafkaCode};
use crate::kafka::record::headers_size;

/// What a message costs in librdkafka beside its bytes; counted into the caps.
pub(super) const MESSAGE_OVERHEAD_BYTES: usize = 128;

/// In place of a topic that did not exist, in `karrow_deliveries_total`: no legal name, and one for all, because
/// clients invent names without end.
pub(super) const MISSING_LABEL: &str = "(missing)";

/// What one connection has in flight.
#[derive(Debug, Default)]
pub struct Account {
    pub(super) messages: AtomicUsize,
    pub(super) bytes: AtomicUsize,
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
    pub(super) delivery_errors: AtomicUsize,
    pub(super) unknown_events: AtomicUsize,
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
    /// First and last offset by partition, if somebody wants to know.
    stored: Option<Mutex<StoredOffsets>>,
    done: Arc<Notify>,
}

/// First and last offset of what was stored, by partition.
pub type StoredOffsets = BTreeMap<i32, (i64, i64)>;

impl Ticket {
    /// For `total` messages; `done` is notified when the last one is settled.
    pub fn new(total: usize, done: Arc<Notify>) -> Arc<Self> {
        let (open, failed) = (AtomicUsize::new(total), Mutex::default());
        Arc::new(Self { total, open, failed, stored: None, done })
    }

    /// The same, which also notes where messages are stored.
    pub fn with_offsets(total: usize, done: Arc<Notify>) -> Arc<Self> {
        let (open, failed) = (AtomicUsize::new(total), Mutex::default());
        Arc::new(Self { total, open, failed, stored: Some(Mutex::default()), done })
    }

    /// Where messages were stored so far, by a ticket [with offsets](Self::with_offsets). Messages of others may lie between
    /// the first and the last one.
    pub fn offsets(&self) -> StoredOffsets {
        self.stored.as_ref().map(|stored| stored.lock().clone()).unwrap_or_default()
    }

    fn note(&self, partition: i32, offset: i64) {
        if let Some(stored) = &self.stored {
            let mut stored = stored.lock();
            let (first, last) = stored.entry(partition).or_insert((offset, offset));
            *first = offset.min(*first);
            *last = offset.max(*last);
        }
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

pub(super) fn settle_reports(shared: &Shared, event: &Event) {
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
                // SAFETY: each message carries one reference to its lane, until the run is settled.
                let lane = unsafe { &*lane };
                if run.code.is_ok()
                    && let Some(ticket) = &lane.ticket
                {
                    ticket.note(message.partition, message.offset);
                }
                // SAFETY: as above, and reports are served by one thread.
                let headers = unsafe { headers_size(message) };
                run.bytes += message.len + message.key_len + headers + MESSAGE_OVERHEAD_BYTES;
            }
        }
        if let Some(run) = run {
            run.settle(shared);
        }
    }
    shared.changed();
}

/// Reports of one lane with one outcome, next to each other.
pub(super) struct Run {
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
            if self.code.is_missing_topic() {
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

pub(super) fn settle(
    shared: &Shared,
    lane: &Lane,
    count: usize,
    bytes: usize,
    error: Option<Error>,
) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
