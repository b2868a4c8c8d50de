//! [`State`]: what a session knows under its lock. Partitions that are ours, what was fetched for them, and how far each
//! was delivered, acked and committed.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use prometheus::IntCounter;

use crate::error::Error;
use crate::kafka::Partition;
use crate::kafka::consumer::{Fetched, GroupConsumer, RecordQueue};
use crate::kafka::record::Record;
use crate::stream::acks::Position;
use crate::stream::owed::Debt;

/// Records of other topics that wait in a session while one topic's fill a batch, and their bytes: no more than what is
/// prefetched by default.
const OTHERS_MAX: usize = 1024;
const OTHERS_BYTES_MAX: usize = 8 << 20;

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
    /// For so many records, with so many bytes of keys, headers and payloads.
    pub fn new(records: usize, bytes: usize) -> Self {
        Self { records, bytes, is_empty: true, is_full: records == 0, generation: 0 }
    }

    /// Whether a record did not fit, or none can.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Takes a record, if it fits; the first one always does.
    fn take(&mut self, record: &mut Record) -> bool {
        let size = record.size();
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

/// What was delivered from one partition; counters are told of many records at once.
#[derive(Default)]
pub(super) struct Delivered {
    messages: u64,
    bytes: u64,
}

impl Delivered {
    pub(super) fn add(&mut self, record: &Record) {
        self.messages += 1;
        self.bytes += record.payload().map_or(0, <[u8]>::len) as u64;
    }
}

/// How far the records of a topic were moved.
pub(super) enum Moved {
    All,
    /// There is no more room.
    Enough,
    /// An error lies between them.
    Failed(Error),
}

#[derive(Default)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// Counts the times that partitions went.
    pub(super) generation: u64,
    pub(super) consumer: Option<Arc<GroupConsumer>>,
    pub(super) queue: Option<RecordQueue>,
    pub(super) buffer: VecDeque<Fetched>,
    pub(super) partitions: Vec<Assigned>,
    /// Index of the partition the last record came from; the next one is likely its neighbour.
    pub(super) last: usize,
    /// When the oldest ack came that is not known to be committed.
    pub(super) uncommitted_since: Option<Instant>,
    /// What a closing consumer has still to commit.
    pub(super) farewell: Vec<Debt>,
    /// The group has said what is ours, and has not begun to say it anew.
    pub(super) is_settled: bool,
    pub(super) missing: BTreeSet<Arc<str>>,
    /// To be answered by the next pop.
    pub(super) error: Option<Error>,
    /// When a failure was logged last; one that lasts comes many times a second.
    pub(super) logged: Option<Instant>,
    /// Why the consumer could not be made.
    pub(super) refused: Option<Error>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
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

pub(super) struct Assigned {
    pub(super) topic: Arc<str>,
    /// See [`Record::topic_id`]; known from the first message.
    pub(super) topic_id: Option<usize>,
    /// The session's generation when it became ours.
    pub(super) since: u64,
    pub(super) partition: i32,
    pub(super) position: Position,
    /// The position of the last commit that is known to have arrived.
    pub(super) committed: Option<i64>,
    pub(super) consumed: (IntCounter, IntCounter),
}

impl State {
    /// Moves a batch from librdkafka into the buffer and notes where partitions begin.
    pub(super) fn take(&mut self) -> usize {
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

    /// Whether more records may be taken although others wait.
    pub(super) fn has_room(&self) -> bool {
        let bytes = |fetched: &Fetched| match fetched {
            Fetched::Record(record) => record.payload().map_or(0, <[u8]>::len),
            Fetched::Failed(_) => 0,
        };
        self.buffer.len() < OTHERS_MAX
            && self.buffer.iter().map(bytes).sum::<usize>() < OTHERS_BYTES_MAX
    }

    /// See [`Session::purge`].
    pub(super) fn purge(&mut self, room: &mut Room, out: &mut Vec<Record>) {
        let then = std::mem::replace(&mut room.generation, self.generation);
        if then != self.generation && !out.is_empty() {
            out.retain(|record| {
                self.find_of(record).is_some_and(|assigned| assigned.since <= then)
            });
        }
    }

    /// The topic whose turn it is: that of the first record in the buffer, unless it is `last` and others are there.
    pub(super) fn next_topic(&self, last: Option<&str>) -> Option<String> {
        let mut topics = self.buffer.iter().filter_map(|fetched| match fetched {
            Fetched::Record(record) => Some(record.topic()),
            Fetched::Failed(_) => None,
        });
        let first = topics.clone().next()?;
        let other = topics.find(|topic| Some(*topic) != last);
        Some(other.unwrap_or(first).to_owned())
    }

    /// Delivers the records of `topic` in the buffer as far as `room` goes; the others keep their order.
    pub(super) fn move_to(
        &mut self,
        out: &mut Vec<Record>,
        topic: Option<&str>,
        room: &mut Room,
    ) -> Moved {
        let mut others = VecDeque::new();
        let mut moved = Moved::All;
        let (mut delivered, mut partition) = (Delivered::default(), None);
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
                Fetched::Record(mut record) => {
                    if !room.take(&mut record) {
                        self.buffer.push_front(Fetched::Record(record));
                        moved = Moved::Enough;
                        break;
                    }
                    if partition != Some(record.partition()) {
                        self.count(&mut delivered);
                        partition = Some(record.partition());
                    }
                    if self.deliver(&record) {
                        delivered.add(&record);
                        out.push(record);
                    }
                }
            }
        }
        self.count(&mut delivered);
        while let Some(fetched) = others.pop_back() {
            self.buffer.push_front(fetched);
        }
        moved
    }

    pub(super) fn find(&mut self, topic: &str, partition: i32) -> Option<usize> {
        let found = find(&self.partitions, self.last, topic, partition)?;
        self.last = found;
        Some(found)
    }

    /// The partition of a record.
    pub(super) fn find_of(&mut self, record: &Record) -> Option<&mut Assigned> {
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
    pub(super) fn deliver(&mut self, record: &Record) -> bool {
        let Some(assigned) = self.find_of(record) else { return false };
        let next = record.offset() + 1;
        if assigned.position.delivered.is_some_and(|delivered| next < delivered) {
            // Offsets began anew: the topic was made again under the same name.
            assigned.position = Position { start: Some(record.offset()), ..Position::default() };
            assigned.committed = None;
        }
        assigned.position.delivered = Some(next);
        true
    }

    /// Tells the metrics what was delivered from the partition of the last record, and forgets it.
    pub(super) fn count(&self, delivered: &mut Delivered) {
        let Delivered { messages, bytes } = std::mem::take(delivered);
        if let Some(assigned) = self.partitions.get(self.last)
            && messages > 0
        {
            assigned.consumed.0.inc_by(messages);
            assigned.consumed.1.inc_by(bytes);
        }
    }

    /// Forgets `partitions`; returns those whose acks are not known to be committed.
    pub(super) fn revoke(&mut self, partitions: &[Partition]) -> Vec<Debt> {
        self.generation += 1;
        let before = self.debts();
        let gone = |topic: &str, number: i32| {
            partitions.iter().any(|gone| gone.partition == number && *gone.topic == *topic)
        };
        self.partitions.retain(|assigned| !gone(&assigned.topic, assigned.partition));
        self.buffer.retain(|fetched| match fetched {
            Fetched::Record(record) => !gone(record.topic(), record.partition()),
            Fetched::Failed(_) => true,
        });
        let is_gone = |debt: &Debt| gone(&debt.partition.topic, debt.partition.partition);
        before.into_iter().filter(is_gone).collect()
    }

    /// Positions that were acked and are not known to be committed.
    pub(super) fn uncommitted(&self) -> Vec<Partition> {
        self.debts().into_iter().map(|debt| debt.partition).collect()
    }

    fn debts(&self) -> Vec<Debt> {
        let debt = |assigned: &Assigned| Debt {
            partition: Partition::new(
                assigned.topic.clone(),
                assigned.partition,
                assigned.position.acked,
            ),
            committed: assigned.committed,
        };
        let is_owed = |assigned: &&Assigned| assigned.position.acked > assigned.committed;
        self.partitions.iter().filter(is_owed).map(debt).collect()
    }

    /// Drops every record, before the consumer goes; only what is left to commit stays.
    pub(super) fn clear(&mut self) {
        self.generation += 1;
        self.farewell.extend(self.debts());
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
    pub(super) fn lag(&self, consumer: &GroupConsumer) -> Option<i64> {
        let (first, next) = consumer.cached_offsets(&self.topic, self.partition)?;
        let done = self.position.acked.or(self.position.start);
        // Where nothing was taken yet its start is known only if there is nothing to be taken.
        done.map(|done| (next - done).max(0)).or((first == next).then_some(0))
    }
}
