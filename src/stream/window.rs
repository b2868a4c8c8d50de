//! [`Window`]: the recent batches of one topic, each encoded once for all who read it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::encoded::EncodedBatch;

/// What no offset is.
const NOWHERE: i64 = -1;

/// Offsets by partition: of the record that comes next in each. A partition beyond the end is at its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions(Vec<i64>);

impl Positions {
    /// From the offset of each partition, in their order.
    pub fn new(offsets: Vec<i64>) -> Self {
        Self(offsets)
    }

    /// Of some partitions; the others are nowhere until [`or`](Self::or) says where.
    pub fn named(offsets: &BTreeMap<i32, i64>) -> Self {
        let mut positions = Self::default();
        for (partition, offset) in offsets {
            while positions.0.len() < usize::try_from(*partition).unwrap_or(0) {
                positions.0.push(NOWHERE);
            }
            positions.set(*partition, *offset);
        }
        positions
    }

    /// The same, and where a partition is nowhere, or beyond the end, what `other` says.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let count = self.0.len().max(other.0.len());
        let of = |partition| match usize::try_from(partition).ok().and_then(|at| self.0.get(at)) {
            Some(offset) if *offset != NOWHERE => *offset,
            _ => other.get(partition),
        };
        Self((0..).take(count).map(of).collect())
    }

    /// The offset that comes next in `partition`.
    pub fn get(&self, partition: i32) -> i64 {
        usize::try_from(partition).ok().and_then(|index| self.0.get(index)).copied().unwrap_or(0)
    }

    /// Moves `partition` to `offset`. A negative partition, which Kafka does not have, is nowhere.
    pub fn set(&mut self, partition: i32, offset: i64) {
        let Ok(index) = usize::try_from(partition) else { return };
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        if let Some(place) = self.0.get_mut(index) {
            *place = offset;
        }
    }

    /// Moves `partition` to `offset`, unless it is there already or later.
    pub fn raise(&mut self, partition: i32, offset: i64) {
        if self.get(partition) < offset {
            self.set(partition, offset);
        }
    }

    /// Moves each partition to where it is in `other`, unless it is there already or later.
    pub fn raise_all(&mut self, other: &Self) {
        for (partition, offset) in other.iter() {
            self.raise(partition, offset);
        }
    }

    /// In each partition the earlier of both.
    #[must_use]
    pub fn lower(&self, other: &Self) -> Self {
        Self(self.iter().map(|(partition, offset)| offset.min(other.get(partition))).collect())
    }

    /// Each partition with the offset that comes next there.
    pub fn iter(&self) -> impl Iterator<Item = (i32, i64)> + '_ {
        (0..).zip(self.0.iter().copied())
    }

    /// `{"0": 42}`.
    pub fn to_json(&self) -> Value {
        let known = self.iter().filter(|(_, next)| *next != NOWHERE);
        Value::Object(known.map(|(number, next)| (number.to_string(), next.into())).collect())
    }

    /// Whether no partition comes later in `other`.
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|(partition, offset)| self.get(partition) >= offset)
    }
}

/// What all windows of the process together hold, and may hold.
#[derive(Debug)]
pub struct Memory {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Memory {
    /// For so many bytes.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), bytes_max })
    }

    /// Bytes in all windows.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn is_exceeded(&self) -> bool {
        self.used() > self.bytes_max
    }
}

/// What a window may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimits {
    /// Bytes of all its batches, as they lie in memory.
    pub bytes_max: usize,
    /// How old a batch may become.
    pub age_max: Duration,
}

/// Batches that left a window, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Rows that made room for new ones.
    pub full_rows: u64,
    /// Rows that became too old.
    pub old_rows: u64,
    /// Rows behind which the log of a partition broke off.
    pub broken_rows: u64,
}

/// See the top of this file.
#[derive(Debug)]
pub struct Window {
    batches: VecDeque<Arc<EncodedBatch>>,
    /// How many batches have left: the number of the first one that is there.
    first: u64,
    /// From where on it has everything.
    starts: Positions,
    /// Up to where it has everything.
    ends: Positions,
    bytes: usize,
    rows: u64,
    limits: WindowLimits,
    memory: Arc<Memory>,
    /// Where partitions began anew, in their order; the last ones.
    breaks: VecDeque<(i32, i64)>,
    /// Breaks before those.
    breaks_forgotten: usize,
}

/// Breaks that a window remembers. A reader that was away for more is told by Kafka.
const BREAKS_MAX: usize = 1000;

impl Window {
    /// An empty window at `starts`.
    pub fn new(starts: Positions, limits: WindowLimits, memory: Arc<Memory>) -> Self {
        let ends = starts.clone();
        Self {
            batches: VecDeque::new(),
            first: 0,
            starts,
            ends,
            bytes: 0,
            rows: 0,
            limits,
            memory,
            breaks: VecDeque::new(),
            breaks_forgotten: 0,
        }
    }

    /// From where on it has everything.
    pub fn starts(&self) -> &Positions {
        &self.starts
    }

    /// Up to where it has everything.
    pub fn ends(&self) -> &Positions {
        &self.ends
    }

    /// Bytes of its batches.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Rows of its batches.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The number that the next batch will have.
    pub fn next_number(&self) -> u64 {
        self.first + self.batches.len() as u64
    }

    /// The number of the first batch that is there, or of the next one.
    pub fn first_number(&self) -> u64 {
        self.first
    }

    /// The batch with this number, if it is there.
    pub fn batch(&self, number: u64) -> Option<&Arc<EncodedBatch>> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.batches.get(index)
    }

    /// All that are there, from the oldest to the newest.
    pub fn batches(&self) -> impl Iterator<Item = &Arc<EncodedBatch>> {
        self.batches.iter()
    }

    /// Whether another batch would make older ones leave.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.limits.bytes_max || self.memory.is_exceeded()
    }

    /// When the oldest batch was made.
    pub fn oldest_made(&self) -> Option<Instant> {
        self.batches.front().map(|batch| batch.made)
    }

    /// When the oldest batch becomes too old.
    pub fn oldest_until(&self) -> Option<Instant> {
        Some(self.batches.front()?.made + self.limits.age_max)
    }

    /// Appends a batch. What does not fit any more leaves, if it may; the newest one always stays.
    pub fn push(&mut self, batch: Arc<EncodedBatch>, evicts: bool) -> Evicted {
        self.bytes += batch.bytes();
        self.rows += batch.rows();
        self.memory.used.fetch_add(batch.bytes(), Ordering::Relaxed);
        self.ends = batch.ends.clone();
        self.batches.push_back(batch);
        let mut evicted = Evicted::default();
        while evicts
            && self.batches.len() > 1
            && (self.bytes > self.limits.bytes_max || self.memory.is_exceeded())
        {
            evicted.full_rows += self.pop();
        }
        evicted
    }

    /// A partition that joins, at `offset`.
    pub fn begin(&mut self, partition: i32, offset: i64) {
        self.starts.set(partition, offset);
        self.ends.set(partition, offset);
    }

    /// A partition goes on at `offset`, and not where it ended: retention was faster, or the topic was made anew. A window
    /// has no gaps, so all batches leave.
    pub fn break_off(&mut self, partition: i32, offset: i64) -> Evicted {
        let evicted = Evicted { broken_rows: self.clear(), ..Evicted::default() };
        self.begin(partition, offset);
        if self.breaks.len() == BREAKS_MAX {
            self.breaks.pop_front();
            self.breaks_forgotten += 1;
        }
        self.breaks.push_back((partition, offset));
        evicted
    }

    /// How many breaks there were.
    pub fn breaks(&self) -> usize {
        self.breaks_forgotten + self.breaks.len()
    }

    /// The first break after the first `known` ones that a reader at `positions` cannot read over: the partition, and where
    /// it goes on.
    pub fn break_behind(&self, known: usize, positions: &Positions) -> Option<(i32, i64)> {
        let breaks = self.breaks.iter().skip(known.saturating_sub(self.breaks_forgotten));
        breaks.copied().find(|(partition, offset)| positions.get(*partition) > *offset)
    }

    /// Lets all batches go; returns their rows.
    pub fn clear(&mut self) -> u64 {
        let mut rows = 0;
        while !self.batches.is_empty() {
            rows += self.pop();
        }
        self.starts = self.ends.clone();
        rows
    }

    /// Nothing but positions: what lay there was no record for readers.
    pub fn advance(&mut self, partition: i32, offset: i64) {
        self.ends.raise(partition, offset);
    }

    /// Lets go of what has become too old at `now`.
    pub fn expire(&mut self, now: Instant) -> Evicted {
        let mut evicted = Evicted::default();
        while self.oldest_until().is_some_and(|until| until <= now) {
            evicted.old_rows += self.pop();
        }
        evicted
    }

    /// Lets the oldest batch go; returns its rows.
    fn pop(&mut self) -> u64 {
        let Some(batch) = self.batches.pop_front() else { return 0 };
        self.first += 1;
        self.bytes -= batch.bytes();
        self.rows -= batch.rows();
        self.memory.used.fetch_sub(batch.bytes(), Ordering::Relaxed);
        self.starts = batch.ends.clone();
        batch.rows()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int32Array, RecordBatch};

    use super::*;

    fn window(starts: &[i64]) -> Window {
        let limits = WindowLimits { bytes_max: usize::MAX, age_max: Duration::from_secs(60) };
        Window::new(Positions::new(starts.to_vec()), limits, Memory::new(usize::MAX))
    }

    fn push(window: &mut Window, ends: &[i64]) {
        let column: ArrayRef = Arc::new(Int32Array::from(vec![1, 2]));
        let rows = RecordBatch::try_from_iter([("n", column)]).expect("a batch");
        let ends = Positions::new(ends.to_vec());
        let batch = EncodedBatch::new(&rows, window.ends().clone(), ends).expect("encoded");
        window.push(Arc::new(batch), true);
    }

    #[test]
    fn partitions_that_are_not_named_are_where_others_say() {
        let named = Positions::named(&BTreeMap::from([(1, 7), (3, 0)]));
        assert_eq!(named.to_json().to_string(), r#"{"1":7,"3":0}"#);
        let rest = Positions::new(vec![10, 11, 12, 13, 14]);
        assert_eq!(named.or(&rest), Positions::new(vec![10, 7, 12, 0, 14]));
        assert_eq!(named.or(&Positions::default()), Positions::new(vec![0, 7, 0, 0]));
        assert_eq!(Positions::named(&BTreeMap::new()).or(&rest), rest);
    }

    #[test]
    fn a_break_leaves_no_gap_and_is_remembered() {
        let mut window = window(&[0, 0]);
        push(&mut window, &[2, 0]);
        push(&mut window, &[2, 2]);
        let evicted = window.break_off(0, 50);
        assert_eq!(evicted, Evicted { broken_rows: 4, ..Evicted::default() });
        assert_eq!((window.rows(), window.bytes(), window.first_number()), (0, 0, 2));
        let at = Positions::new(vec![50, 2]);
        assert_eq!((window.starts(), window.ends()), (&at, &at));

        // Only who is further than where a partition goes on has missed something.
        window.break_off(1, 1);
        assert_eq!(window.breaks(), 2);
        assert_eq!(window.break_behind(0, &Positions::new(vec![2, 2])), Some((1, 1)));
        assert_eq!(window.break_behind(2, &Positions::new(vec![2, 2])), None);
        assert_eq!(window.break_behind(0, &Positions::new(vec![51, 0])), Some((0, 50)));
        assert_eq!(window.break_behind(0, &Positions::new(vec![50, 1])), None);
    }
}
