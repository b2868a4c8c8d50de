//! [`GroupConsumer`]: one member of a consumer group, woken by librdkafka, never by a thread of ours.
//!
//! librdkafka puts a partition's messages into a queue of that partition. All of them are forwarded to one
//! queue of our own before the partition is assigned, which makes the forwarding stick, so:
//!
//! - messages never mix with rebalance events, and can be taken in batches at a quarter of the cost of polling;
//! - the prefetch limits count that one queue, so they are a budget of the whole consumer;
//! - what a revoked partition had queued is dropped by librdkafka's version barrier.
//!
//! The barrier rises when fetching starts, and not every message that waits behind it is from before the last one: a
//! partition that goes while librdkafka looks for its beginning is fetched from there all the same once the answer is
//! here, for nobody (`rd_kafka_toppar_handle_Offset` tries again where the answer came too late). What was fetched waits
//! in the partition's queue, and comes when that is forwarded again. So partitions should start at a number: then
//! librdkafka looks for nothing, and fetching starts before [`assign`](GroupConsumer::assign) returns.

use std::collections::VecDeque;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka_sys as sys;

use super::native::{
    ClientKind, Event, Handle, KafkaCode, Partition, PartitionList, Queue, Wake, c_string,
    check_error,
};
use super::options::ConsumerOptions;
use super::record::{Record, topic_of};
use super::topics;
use crate::error::{Error, ErrorKind, Result};

/// Messages taken from librdkafka at once: enough to make the call's cost vanish, few enough that what is
/// taken but not delivered stays small beside the prefetch budget.
const TAKE_MAX: usize = 128;

/// What a consumer's own queue holds besides messages.
pub enum Fetched {
    /// A message.
    Record(Record),
    /// The partition cannot be read; librdkafka goes on trying where that makes sense.
    Failed(Error),
}

/// What happens to a consumer, in order.
#[derive(Debug)]
pub enum ConsumerEvent {
    /// The group gives us these partitions; nothing comes from them before [`GroupConsumer::assign`].
    Assigned(Vec<Partition>),
    /// The group takes these away; [`GroupConsumer::unassign`] commits what is stored, unless they are lost.
    Revoked {
        /// What goes: under eager protocols everything there is.
        partitions: Vec<Partition>,
        /// The group has given them to others already.
        lost: bool,
    },
    /// A commit came back: up to where.
    Committed(Result<Vec<Partition>>),
    /// A subscribed topic does not exist (yet).
    TopicMissing(String),
    /// Something went wrong; librdkafka recovers by itself.
    Failed(Error),
    /// The consumer is dead.
    Fatal(Error),
}

/// How an interrupted commit has to be read, see [`GroupConsumer::commit`].
#[derive(Debug)]
pub enum CommitError {
    /// The group has moved on: a rebalance that will say what is ours is on its way.
    GroupMovedOn,
    /// Anything else; trying again may help.
    Failed(Error),
}

/// A member of a consumer group.
pub struct GroupConsumer {
    handle: Arc<Handle>,
    events: Queue,
    records: Arc<Queue>,
    reads_uncommitted: bool,
}

/// What a [`GroupConsumer`] has prefetched.
pub struct RecordQueue {
    queue: Arc<Queue>,
}

impl RecordQueue {
    /// Moves up to a batch of what is prefetched to the end of `out`; never blocks. `&mut` because librdkafka
    /// leaves concurrent batch calls undefined.
    pub fn take(&mut self, out: &mut VecDeque<Fetched>) {
        let mut messages = [ptr::null_mut(); TAKE_MAX];
        // SAFETY: the array has TAKE_MAX places. No rebalance event can be in this queue, see the file's top.
        let count = unsafe {
            sys::rd_kafka_consume_batch_queue(self.queue.ptr(), 0, messages.as_mut_ptr(), TAKE_MAX)
        };
        let count = usize::try_from(count).unwrap_or(0);
        out.extend(
            messages
                .iter()
                .take(count)
                .filter_map(|message| NonNull::new(*message))
                .map(|message| fetched(message, self.queue.client())),
        );
    }
}

impl GroupConsumer {
    /// A consumer that has not joined its group yet. `on_record` and `on_event` are called on a thread of
    /// librdkafka's when there is something to [`take`](RecordQueue::take), or a
    /// [`next_event`](Self::next_event).
    ///
    /// # Errors
    /// Options that librdkafka refuses, in its words.
    pub fn new(
        options: &ConsumerOptions,
        on_record: Wake,
        on_event: Wake,
    ) -> Result<(Self, RecordQueue)> {
        let mask = sys::RD_KAFKA_EVENT_REBALANCE
            | sys::RD_KAFKA_EVENT_OFFSET_COMMIT
            | sys::RD_KAFKA_EVENT_ERROR
            | sys::RD_KAFKA_EVENT_FETCH;
        let handle = Handle::new(ClientKind::Consumer, &options.options, mask)?;
        // SAFETY: the client is alive; this lets one queue carry everything.
        KafkaCode(unsafe { sys::rd_kafka_poll_set_consumer(handle.ptr()) })
            .check("consumer queue")?;
        let mut events = Queue::of_consumer(&handle)?;
        let mut records = Queue::new(&handle)?;
        records.on_non_empty(on_record);
        events.on_non_empty(on_event);
        let records = Arc::new(records);
        let queue = RecordQueue { queue: records.clone() };
        let reads_uncommitted = options.reads_uncommitted;
        Ok((Self { handle, events, records, reads_uncommitted }, queue))
    }

    /// Joins the group and subscribes to `topics`.
    ///
    /// # Errors
    /// librdkafka refuses, in its words.
    pub fn subscribe(&self, topics: &[Arc<str>]) -> Result<()> {
        let wanted: Vec<Partition> =
            topics.iter().map(|topic| Partition::new(topic.clone(), -1, None)).collect();
        let list = PartitionList::new(&wanted)?;
        // SAFETY: client and list are alive.
        KafkaCode(unsafe { sys::rd_kafka_subscribe(self.handle.ptr(), list.ptr()) })
            .check("subscribe")
    }

    /// The next event, if there is one; also tells librdkafka that the application lives
    /// (`max.poll.interval.ms`).
    pub fn next_event(&self) -> Option<ConsumerEvent> {
        while let Some(event) = self.events.poll(0) {
            if let Some(event) = self.translate(&event) {
                return Some(event);
            }
        }
        None
    }

    fn translate(&self, event: &Event) -> Option<ConsumerEvent> {
        use sys::rd_kafka_resp_err_t::*;
        let code = event.code();
        Some(match event.kind() {
            sys::RD_KAFKA_EVENT_REBALANCE => match code.0 {
                RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => ConsumerEvent::Assigned(event.partitions()),
                RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                    // SAFETY: the client is alive.
                    let lost = unsafe { sys::rd_kafka_assignment_lost(self.handle.ptr()) != 0 };
                    ConsumerEvent::Revoked { partitions: event.partitions(), lost }
                }
                // The protocol failed: everything is lost.
                _ => ConsumerEvent::Revoked { partitions: self.assignment(), lost: true },
            },
            // Without an offset nothing was acked since the last commit.
            sys::RD_KAFKA_EVENT_OFFSET_COMMIT if code.0 == RD_KAFKA_RESP_ERR__NO_OFFSET => {
                return None;
            }
            sys::RD_KAFKA_EVENT_OFFSET_COMMIT => {
                ConsumerEvent::Committed(committed(code, event.partitions()))
            }
            sys::RD_KAFKA_EVENT_ERROR => self.failure(code, event.is_fatal(), event.error_text()),
            // Impossible while the forwarding sticks. Passing the message over would lose it with the next
            // ack, so give up this consumer: its successor starts at the commit.
            sys::RD_KAFKA_EVENT_FETCH => ConsumerEvent::Fatal(Error::new(
                ErrorKind::Internal,
                "a message came by the event queue of the consumer",
            )),
            _ => return None,
        })
    }

    fn failure(&self, code: KafkaCode, fatal: bool, text: String) -> ConsumerEvent {
        use sys::rd_kafka_resp_err_t::*;
        if fatal || code.0 == RD_KAFKA_RESP_ERR__FATAL {
            return ConsumerEvent::Fatal(Error::new(code.kind(), text));
        }
        match code.0 {
            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC => {
                ConsumerEvent::TopicMissing(text)
            }
            _ => ConsumerEvent::Failed(Error::new(code.kind(), text)),
        }
    }

    /// Starts reading `partitions`, each at its offset, or where that is `None` at its commit or by
    /// `auto.offset.reset`; see the top of this file for why it should be a number.
    ///
    /// # Errors
    /// The group has moved on, and a new rebalance comes.
    pub fn assign(&self, partitions: &[Partition]) -> Result<()> {
        for partition in partitions {
            let topic = c_string(&partition.topic)?;
            Queue::of_partition(&self.handle, &topic, partition.partition)?.forward(&self.records);
        }
        let list = PartitionList::new(partitions)?;
        if self.is_cooperative() {
            // SAFETY: client and list are alive.
            let error = unsafe { sys::rd_kafka_incremental_assign(self.handle.ptr(), list.ptr()) };
            check_error(error, "assign")
        } else {
            // SAFETY: client and list are alive.
            KafkaCode(unsafe { sys::rd_kafka_assign(self.handle.ptr(), list.ptr()) })
                .check("assign")
        }
    }

    /// Gives `partitions` back (all of them under an eager protocol); librdkafka commits their stored offsets.
    ///
    /// # Errors
    /// As for [`assign`](Self::assign).
    pub fn unassign(&self, partitions: &[Partition]) -> Result<()> {
        if self.is_cooperative() {
            let list = PartitionList::new(partitions)?;
            // SAFETY: client and list are alive.
            let error =
                unsafe { sys::rd_kafka_incremental_unassign(self.handle.ptr(), list.ptr()) };
            check_error(error, "unassign")
        } else {
            // SAFETY: the client is alive; null means no partitions.
            KafkaCode(unsafe { sys::rd_kafka_assign(self.handle.ptr(), ptr::null()) })
                .check("unassign")
        }
    }

    /// Whether assignments change by differences (KIP-429, KIP-848).
    pub fn is_cooperative(&self) -> bool {
        // SAFETY: the client is alive; the string is static, and null once the group was left.
        unsafe {
            let protocol = sys::rd_kafka_rebalance_protocol(self.handle.ptr());
            !protocol.is_null() && std::ffi::CStr::from_ptr(protocol).to_bytes() == b"COOPERATIVE"
        }
    }

    fn assignment(&self) -> Vec<Partition> {
        let mut list = ptr::null_mut();
        // SAFETY: the client is alive; on success the list is ours.
        unsafe {
            if KafkaCode(sys::rd_kafka_assignment(self.handle.ptr(), &raw mut list)).is_ok()
                && !list.is_null()
            {
                PartitionList::from_raw(list).to_vec()
            } else {
                Vec::new()
            }
        }
    }

    /// Marks `next` (the offset after the last acked message) to be committed within
    /// `auto.commit.interval.ms`, or before the partition or the consumer goes.
    ///
    /// # Errors
    /// The partition is not ours any more.
    pub fn store(&self, positions: &[Partition]) -> Result<()> {
        let list = PartitionList::new(positions)?;
        // SAFETY: client and list are alive.
        let code = KafkaCode(unsafe { sys::rd_kafka_offsets_store(self.handle.ptr(), list.ptr()) });
        match list.to_vec().into_iter().find(|partition| !partition.code.is_ok()) {
            Some(failed) => Err(failed.code.into_error(format_args!(
                "cannot store the offset of {}:{}",
                failed.topic, failed.partition
            ))),
            None => code.check("cannot store offsets"),
        }
    }

    /// Nothing that was [stored](Self::store) of `partitions` is committed any more: they are somebody else's, and not every
    /// coordinator refuses the commit of a member it has forgotten.
    ///
    /// # Errors
    /// The partition is not ours any more.
    pub fn unstore(&self, partitions: &[Partition]) -> Result<()> {
        let nothing: Vec<Partition> = partitions
            .iter()
            .map(|partition| Partition::new(partition.topic.clone(), partition.partition, None))
            .collect();
        self.store(&nothing)
    }

    /// The group's commits for `partitions`; `None` where there is none. Blocks.
    ///
    /// # Errors
    /// The coordinator did not answer in time, or refused.
    pub fn committed(&self, partitions: &[Partition], timeout: Duration) -> Result<Vec<Partition>> {
        let list = PartitionList::new(partitions)?;
        // SAFETY: client and list are alive.
        KafkaCode(unsafe {
            sys::rd_kafka_committed(self.handle.ptr(), list.ptr(), millis(timeout))
        })
        .check("committed offsets")?;
        let found = list.to_vec();
        match found.iter().find(|partition| !partition.code.is_ok()) {
            Some(failed) => Err(failed.code.into_error(format_args!(
                "committed offset of {}:{}",
                failed.topic, failed.partition
            ))),
            None => Ok(found),
        }
    }

    /// First and next offset of a partition as the broker has them now, up to the last stable offset unless
    /// `isolation.level` says otherwise. Blocks.
    ///
    /// # Errors
    /// The leader did not answer in time.
    pub fn offsets(&self, topic: &str, partition: i32, timeout: Duration) -> Result<(i64, i64)> {
        topics::watermarks(&self.handle, topic, partition, timeout)
    }

    /// The first offsets of `partitions`, as brokers have them now; `None` where they do not say. Blocks.
    ///
    /// # Errors
    /// A leader did not answer in time.
    pub fn beginnings(
        &self,
        partitions: &[Partition],
        timeout: Duration,
    ) -> Result<Vec<Partition>> {
        let of = topics::OffsetOf::Beginning;
        topics::offsets(&self.handle, partitions, of, self.reads_uncommitted, timeout)
    }

    /// The stable ends of `partitions` (with `isolation.level=read_uncommitted` the ends), as brokers have them now.
    /// Blocks.
    ///
    /// # Errors
    /// A leader did not answer in time.
    pub fn ends(&self, partitions: &[Partition], timeout: Duration) -> Result<Vec<Partition>> {
        topics::ends(&self.handle, partitions, self.reads_uncommitted, timeout)
    }

    /// Where `partitions` stand: after the last message (or control record) that was taken; `None` where nothing was
    /// taken since the assignment. Costs no request.
    ///
    /// # Errors
    /// An illegal name.
    pub fn positions(&self, partitions: &[Partition]) -> Result<Vec<Partition>> {
        let list = PartitionList::new(partitions)?;
        // SAFETY: client and list are alive.
        KafkaCode(unsafe { sys::rd_kafka_position(self.handle.ptr(), list.ptr()) })
            .check("positions")?;
        Ok(list.to_vec())
    }

    /// How many partitions `topic` has; 0 where it does not exist. Blocks.
    ///
    /// # Errors
    /// No broker answered in time.
    pub fn partition_count(&self, topic: &str, timeout: Duration) -> Result<i32> {
        topics::partition_count(&self.handle, topic, timeout)
    }

    /// Commits the offsets of `partitions` at once. Blocks until the coordinator has answered.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn commit(&self, partitions: &[Partition]) -> Result<(), CommitError> {
        use sys::rd_kafka_resp_err_t::*;
        let list = PartitionList::new(partitions).map_err(CommitError::Failed)?;
        // SAFETY: client and list are alive; 0 means synchronously.
        let code = KafkaCode(unsafe { sys::rd_kafka_commit(self.handle.ptr(), list.ptr(), 0) });
        let failed =
            list.to_vec().into_iter().map(|partition| partition.code).find(|code| !code.is_ok());
        match failed.unwrap_or(code) {
            code if code.is_ok() => Ok(()),
            KafkaCode(
                RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION
                | RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID
                | RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS
                | RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH
                | RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID,
            ) => Err(CommitError::GroupMovedOn),
            code => Err(CommitError::Failed(code.into_error("cannot commit offsets"))),
        }
    }

    /// Sends a commit of `partitions`, whatever the state of the group is; the answer comes as an event. librdkafka's
    /// own timer pauses while the group rebalances, which may take longer than acks may stay uncommitted.
    ///
    /// # Errors
    /// There is nothing to commit to: the member has no coordinator.
    pub fn send_commit(&self, partitions: &[Partition]) -> Result<()> {
        let list = PartitionList::new(partitions)?;
        // SAFETY: client and list are alive; 1 means asynchronously.
        KafkaCode(unsafe { sys::rd_kafka_commit(self.handle.ptr(), list.ptr(), 1) }).check("commit")
    }

    /// First and next offset of a partition as the last fetch had them; costs no request.
    pub fn cached_offsets(&self, topic: &str, partition: i32) -> Option<(i64, i64)> {
        topics::cached_offsets(&self.handle, topic, partition)
    }

    /// Commits what is stored and leaves the group; gives up waiting after `deadline`. Blocks. Returns how its last commits went.
    pub fn close(&self, deadline: Duration) -> Vec<Result<Vec<Partition>>> {
        let until = Instant::now() + deadline;
        let mut commits = Vec::new();
        // SAFETY: the client is alive, the queue is its own.
        let error =
            unsafe { sys::rd_kafka_consumer_close_queue(self.handle.ptr(), self.events.ptr()) };
        if let Err(error) = check_error(error, "close") {
            tracing::warn!(%error, "cannot close a consumer in order");
            return commits;
        }
        loop {
            // SAFETY: the client is alive.
            let closed = unsafe { sys::rd_kafka_consumer_closed(self.handle.ptr()) } != 0;
            let patience = if closed { 0 } else { 50 };
            match self.events.poll(patience).map(|event| self.translate(&event)) {
                Some(Some(ConsumerEvent::Committed(result))) => commits.push(result),
                Some(Some(
                    ConsumerEvent::Revoked { partitions, .. } | ConsumerEvent::Assigned(partitions),
                )) => {
                    if let Err(error) = self.unassign(&partitions) {
                        tracing::debug!(%error, "closing");
                    }
                }
                Some(_) => {}
                None if closed => return commits,
                None if Instant::now() > until => {
                    tracing::warn!(
                        "a consumer did not leave its group in time; the broker will remove it"
                    );
                    return commits;
                }
                None => {}
            }
        }
    }
}

pub(super) fn fetched(message: NonNull<sys::rd_kafka_message_t>, client: &Arc<Handle>) -> Fetched {
    // SAFETY: librdkafka returned the message to us, alive.
    let raw = unsafe { message.as_ref() };
    if KafkaCode(raw.err).is_ok() {
        // SAFETY: ours, without an error.
        return Fetched::Record(unsafe { Record::own(message, client) });
    }
    let code = KafkaCode(raw.err);
    // SAFETY: the message is alive; its error text is copied.
    let text = super::native::text_of(unsafe { sys::rd_kafka_message_errstr(raw) });
    let text = if text.is_empty() { code.text().to_owned() } else { text };
    let text = format!("{}:{}: {text}", topic_of(raw), raw.partition);
    let fetched = Fetched::Failed(Error::new(code.kind(), text));
    // SAFETY: ours, and not used after this.
    unsafe { sys::rd_kafka_message_destroy(message.as_ptr()) };
    fetched
}

fn committed(code: KafkaCode, partitions: Vec<Partition>) -> Result<Vec<Partition>> {
    code.check("commit")?;
    match partitions.iter().find(|partition| !partition.code.is_ok()) {
        Some(failed) => Err(failed
            .code
            .into_error(format_args!("commit of {}:{}", failed.topic, failed.partition))),
        None => Ok(partitions),
    }
}

pub(super) fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KafkaOptions;

    /// A rebalance may come while a consumer closes, and be served when it has.
    #[test]
    fn a_closed_consumer_is_in_no_group() {
        let file = KafkaOptions::from([("bootstrap.servers".to_owned(), "127.0.0.1:1".to_owned())]);
        let options = ConsumerOptions::new(&file, &serde_json::Map::new(), "g", "g:n");
        let options = options.expect("options");
        let (consumer, _queue) =
            GroupConsumer::new(&options, Box::new(|| {}), Box::new(|| {})).expect("a consumer");
        consumer.subscribe(&["t".into()]).expect("a subscription");
        consumer.close(Duration::from_secs(10));
        assert!(!consumer.is_cooperative());
        let _ = consumer.unassign(&[]);
    }
}
