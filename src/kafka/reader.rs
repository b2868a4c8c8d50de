//! [`LogReader`]: reads partitions from where it is told to, without a group and without commits.
//!
//! One librdkafka client serves many readings at once, each with a queue of its own; but a client reads a partition in one
//! place only, so whoever wants a second place takes a second client.

use std::collections::VecDeque;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use rdkafka_sys as sys;

use super::consumer::{Fetched, fetched};
use super::native::{ClientKind, Handle, KafkaCode, Partition, Queue, Wake, c_string};
use super::options::ConsumerOptions;
use super::topics::{self, OffsetOf, TopicRef};
use crate::error::{Error, Result};

/// Messages taken from librdkafka at once.
const TAKE_MAX: usize = 128;

/// A client that reads.
pub struct LogReader {
    handle: Arc<Handle>,
    /// Ends are those of the log, not stable ones.
    reads_uncommitted: bool,
}

/// Partitions that are read into one queue. Dropping it [stops](Self::stop) the reading, which blocks.
pub struct Reading {
    queue: Queue,
    handle: Arc<Handle>,
    partitions: Vec<(TopicRef, i32)>,
    is_stopped: bool,
}

/// What a [`Reading`] finds.
pub enum Logged {
    /// A record, or a partition that cannot be read.
    Fetched(Fetched),
    /// The end of what is stable in a partition, for now: the offset that comes next there.
    End {
        /// The partition's number.
        partition: i32,
        /// The offset of the next record.
        offset: i64,
    },
    /// What was asked for is no longer there, or not there yet.
    OutOfRange {
        /// The partition's number.
        partition: i32,
    },
}

impl Logged {
    /// Which partition it is of; `None` for a failure that is of none.
    pub fn partition(&self) -> Option<i32> {
        match self {
            Self::Fetched(Fetched::Record(record)) => Some(record.partition()),
            Self::Fetched(Fetched::Failed(_)) => None,
            Self::End { partition, .. } | Self::OutOfRange { partition } => Some(*partition),
        }
    }
}

impl LogReader {
    /// A client with the options of a consumer; its group is never joined.
    ///
    /// # Errors
    /// Options that librdkafka refuses, in its words.
    pub fn new(options: &ConsumerOptions) -> Result<Self> {
        let mut settings = options.options.clone();
        // Where the log begins or ends is this reader's business, and a bound may lie behind the last message.
        settings.insert("auto.offset.reset".to_owned(), "error".to_owned());
        settings.insert("enable.partition.eof".to_owned(), "true".to_owned());
        // Errors of the client as a whole are logged: nobody would take them from its queue.
        let handle = Handle::new(ClientKind::Consumer, &settings, 0)?;
        Ok(Self { handle, reads_uncommitted: options.reads_uncommitted })
    }

    /// A reading that has no partition yet. `on_record` is called on a thread of librdkafka's when there is something to
    /// [`take`](Reading::take).
    ///
    /// # Errors
    /// librdkafka has no queue to give.
    pub fn reading(&self, on_record: Wake) -> Result<Reading> {
        let mut queue = Queue::new(&self.handle)?;
        queue.on_non_empty(on_record);
        let partitions = Vec::new();
        Ok(Reading { queue, handle: self.handle.clone(), partitions, is_stopped: false })
    }

    /// How many partitions `topic` has; 0 where it does not exist. Blocks.
    ///
    /// # Errors
    /// No broker answered in time.
    pub fn partition_count(&self, topic: &str, timeout: Duration) -> Result<i32> {
        topics::partition_count(&self.handle, topic, timeout)
    }

    /// First and next offset of a partition as the last fetch had them; costs no request.
    pub fn cached_offsets(&self, topic: &str, partition: i32) -> Option<(i64, i64)> {
        topics::cached_offsets(&self.handle, topic, partition)
    }

    /// Every topic of the cluster, in the order of their names. Blocks.
    ///
    /// # Errors
    /// No broker answered in time.
    pub fn topics(&self, timeout: Duration) -> Result<Vec<topics::TopicInfo>> {
        topics::list(&self.handle, timeout)
    }

    /// Offsets of `partitions` as their leaders have them now; `None` where there is none. Ends are stable ends, unless
    /// `isolation.level` says otherwise. Blocks.
    ///
    /// # Errors
    /// A leader did not answer in time.
    pub fn offsets(
        &self,
        partitions: &[Partition],
        of: OffsetOf,
        timeout: Duration,
    ) -> Result<Vec<Partition>> {
        topics::offsets(&self.handle, partitions, of, self.reads_uncommitted, timeout)
    }
}

impl Reading {
    /// Starts reading a partition at `offset`.
    ///
    /// # Errors
    /// An illegal name, the client reads that partition already, or the reading was stopped.
    pub fn start(&mut self, topic: &str, partition: i32, offset: i64) -> Result<()> {
        if self.is_stopped {
            return Err(Error::internal("a reading that was stopped"));
        }
        let context = format_args!("reading {topic}:{partition}").to_string();
        c_string(topic)?;
        let named = TopicRef::new(&self.handle, topic).map_err(|code| code.into_error(&context))?;
        // SAFETY: topic and queue are alive, and stay so until `rd_kafka_consume_stop`.
        let code = unsafe {
            sys::rd_kafka_consume_start_queue(named.ptr(), partition, offset, self.queue.ptr())
        };
        if code != 0 {
            // SAFETY: the call before failed and set this.
            return Err(KafkaCode(unsafe { sys::rd_kafka_last_error() }).into_error(&context));
        }
        self.partitions.push((named, partition));
        Ok(())
    }

    /// Reads a partition that was started anew, from `offset`. Blocks while librdkafka stops.
    ///
    /// # Errors
    /// The partition is not read, or librdkafka refuses.
    pub fn restart(&mut self, partition: i32, offset: i64) -> Result<()> {
        let started = self.partitions.iter().find(|(_, number)| *number == partition);
        let Some((topic, _)) = started else {
            return Err(Error::internal(format!("partition {partition} is not read")));
        };
        // SAFETY: topic and queue are alive; the partition was started by `start`.
        let code = unsafe {
            sys::rd_kafka_consume_stop(topic.ptr(), partition);
            sys::rd_kafka_consume_start_queue(topic.ptr(), partition, offset, self.queue.ptr())
        };
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the call before failed and set this.
        Err(KafkaCode(unsafe { sys::rd_kafka_last_error() }).into_error("reading anew"))
    }

    /// Ends it for good. Blocks while librdkafka stops.
    pub fn stop(&mut self) {
        self.is_stopped = true;
        for (topic, partition) in self.partitions.drain(..) {
            // SAFETY: started by `start` and not stopped since. What is queued is dropped with the queue.
            unsafe { sys::rd_kafka_consume_stop(topic.ptr(), partition) };
        }
    }

    /// Moves up to a batch of what is there to the end of `out`; never blocks. `&mut` because librdkafka leaves concurrent
    /// batch calls undefined.
    pub fn take(&mut self, out: &mut VecDeque<Logged>) {
        use sys::rd_kafka_resp_err_t::*;
        let mut messages = [ptr::null_mut(); TAKE_MAX];
        // SAFETY: the array has TAKE_MAX places, and the queue is that of partitions only.
        let count = unsafe {
            sys::rd_kafka_consume_batch_queue(self.queue.ptr(), 0, messages.as_mut_ptr(), TAKE_MAX)
        };
        for message in messages.iter().take(usize::try_from(count).unwrap_or(0)) {
            let Some(message) = ptr::NonNull::new(*message) else { continue };
            // SAFETY: librdkafka returned the message to us, alive.
            let raw = unsafe { message.as_ref() };
            let (partition, offset) = (raw.partition, raw.offset);
            let found = match raw.err {
                RD_KAFKA_RESP_ERR__PARTITION_EOF => Logged::End { partition, offset },
                RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET | RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => {
                    Logged::OutOfRange { partition }
                }
                _ => {
                    out.push_back(Logged::Fetched(fetched(message, &self.handle)));
                    continue;
                }
            };
            // SAFETY: ours, and not used after this.
            unsafe { sys::rd_kafka_message_destroy(message.as_ptr()) };
            out.push_back(found);
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.stop();
    }
}
