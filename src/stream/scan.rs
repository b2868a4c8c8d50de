//! [`Scan`]: a range of a topic read from Kafka itself, from positions up to positions.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::assembler::{Assembler, CutLimits};
use super::encoded::EncodedBatch;
use super::window::Positions;
use super::{blocking, is_passing};
use crate::decode::formats::Formats;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::Partition;
use crate::kafka::consumer::Fetched;
use crate::kafka::options::ConsumerOptions;
use crate::kafka::reader::{LogReader, Logged, Reading};
use crate::kafka::topics::OffsetOf;

use super::topic_stream::ASK_TIMEOUT;

/// How long a scan has a client to itself while others wait for one: its own reader may have stopped taking what it finds.
const TURN: Duration = Duration::from_secs(1);

/// Clients that scans take turns with: each costs threads, and reads for one scan at a time.
pub struct ReaderPool {
    options: ConsumerOptions,
    idle: Mutex<Vec<LogReader>>,
    places: Arc<Semaphore>,
    readers_max: usize,
    waiting: AtomicUsize,
    /// Where the clients are that are not idle.
    turns: Mutex<Vec<Weak<Turn>>>,
}

/// A client of a [`ReaderPool`], which gets it back.
struct Lent {
    pool: Arc<ReaderPool>,
    reader: Option<LogReader>,
    _place: OwnedSemaphorePermit,
}

/// What a scan reads with. The reading ends, which blocks, before its client goes back: a client reads a partition in one
/// place only.
struct Borrowed {
    reading: Reading,
    lent: Lent,
}

/// A scan's turn with a client. The pool ends it when others have waited long enough.
struct Turn {
    began: Instant,
    /// `None` when the turn is over.
    borrowed: Mutex<Option<Borrowed>>,
    /// Tells the scan that there is something to take, or that its turn is over.
    ready: Arc<Notify>,
}

/// Counts itself as long as it is there: who waits may be gone before it is their turn.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ReaderPool {
    /// At most `readers_max` clients with these options.
    pub fn new(options: ConsumerOptions, readers_max: usize) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(readers_max));
        Arc::new(Self {
            options,
            idle: Mutex::default(),
            places,
            readers_max,
            waiting: AtomicUsize::new(0),
            turns: Mutex::default(),
        })
    }

    /// How many scans have a client, and how many wait for one.
    pub fn users(&self) -> (usize, usize) {
        let has_one = self.readers_max - self.places.available_permits();
        (has_one, self.waiting.load(Ordering::Relaxed))
    }

    /// Waits until a client is free, for which the scan that has had one for longest may have to give its own.
    async fn lend(self: &Arc<Self>) -> Result<Lent> {
        let place = self.places.clone().acquire_owned();
        tokio::pin!(place);
        let _waiting = Waiting::new(&self.waiting);
        let place = loop {
            match tokio::time::timeout(TURN / 4, &mut place).await {
                Ok(place) => break place.map_err(|error| Error::internal(error.to_string()))?,
                Err(_) => self.end_a_turn(),
            }
        };
        let idle = self.idle.lock().pop();
        let reader = match idle {
            Some(reader) => reader,
            None => {
                let options = self.options.clone();
                blocking(move || LogReader::new(&options)).await?
            }
        };
        Ok(Lent { pool: self.clone(), reader: Some(reader), _place: place })
    }

    fn end_a_turn(&self) {
        let mut turns = self.turns.lock();
        let has_client = |turn: &Arc<Turn>| turn.borrowed.lock().is_some();
        turns.retain(|turn| turn.upgrade().is_some_and(|turn| has_client(&turn)));
        let longest = turns.first().and_then(Weak::upgrade);
        drop(turns);
        if let Some(turn) = longest.filter(|turn| turn.began.elapsed() >= TURN) {
            turn.end();
        }
    }

    fn begin_turn(&self, borrowed: Borrowed, ready: Arc<Notify>) -> Arc<Turn> {
        let borrowed = Mutex::new(Some(borrowed));
        let turn = Arc::new(Turn { began: Instant::now(), borrowed, ready });
        // The one that began first is found first.
        self.turns.lock().push(Arc::downgrade(&turn));
        turn
    }
}

impl Turn {
    /// Moves what was found to the end of `out`; `false`, if the turn is over.
    fn take(&self, out: &mut VecDeque<Logged>) -> bool {
        let mut borrowed = self.borrowed.lock();
        borrowed.as_mut().map(|borrowed| borrowed.reading.take(out)).is_some()
    }

    /// Gives the client back, which blocks a thread of those that may be blocked.
    fn end(&self) {
        if let Some(borrowed) = self.borrowed.lock().take() {
            tokio::task::spawn_blocking(move || drop(borrowed));
        }
        self.ready.notify_one();
    }
}

impl Lent {
    fn reader(&self) -> Result<&LogReader> {
        self.reader.as_ref().ok_or_else(|| Error::internal("a client that was given back"))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.idle.lock().extend(self.reader.take());
    }
}

/// The error for an offset that Kafka does not have (any more).
pub(super) fn not_there(topic: &str, partition: i32, offset: i64, first: Option<i64>) -> Error {
    let first = first.map_or_else(String::new, |first| format!(", the first one is {first}"));
    let why = format!("{topic}:{partition} does not have offset {offset} (any more){first}");
    Error::new(ErrorKind::OutOfRange, why)
}

/// See the top of this file.
pub struct Scan {
    pool: Arc<ReaderPool>,
    topic: Arc<str>,
    to: Positions,
    /// Up to where records were handed out.
    ends: Positions,
    /// Up to where they were taken from a client.
    taken: Positions,
    assembler: Assembler,
    /// Partitions whose bound was not reached.
    open: Vec<i32>,
    found: VecDeque<Logged>,
    turn: Option<Arc<Turn>>,
    /// What the next call answers.
    failed: Option<Error>,
}

impl Scan {
    /// Reads `topic` from `from` (inclusive) to `to` (exclusive), both of which exist. What comes before `from` in a partition
    /// that `to` does not name is not read.
    ///
    /// # Errors
    /// The topic's formats cannot be had.
    pub fn new(
        pool: &Arc<ReaderPool>,
        formats: &Arc<Formats>,
        topic: Arc<str>,
        from: Positions,
        to: Positions,
        cut: CutLimits,
    ) -> Result<Self> {
        let assembler = Assembler::new(topic.clone(), formats, cut)?;
        let is_open = |(partition, end): &(i32, i64)| from.get(*partition) < *end;
        let open = to.iter().filter(is_open).map(|(partition, _)| partition).collect();
        Ok(Self {
            pool: pool.clone(),
            topic,
            to,
            taken: from.clone(),
            ends: from,
            assembler,
            open,
            found: VecDeque::new(),
            turn: None,
            failed: None,
        })
    }

    /// Reads on with a client, from what was taken.
    async fn begin_turn(&mut self) -> Result<()> {
        let lent = self.pool.lend().await?;
        let ready = Arc::new(Notify::new());
        let wake = ready.clone();
        let starts: Vec<(i32, i64)> =
            self.open.iter().map(|partition| (*partition, self.taken.get(*partition))).collect();
        let topic = self.topic.clone();
        let borrowed = blocking(move || {
            let reading = lent.reader()?.reading(Box::new(move || wake.notify_one()))?;
            let mut borrowed = Borrowed { reading, lent };
            for (partition, offset) in starts {
                borrowed.reading.start(&topic, partition, offset)?;
            }
            Ok(borrowed)
        });
        self.turn = Some(self.pool.begin_turn(borrowed.await?, ready));
        Ok(())
    }

    /// Up to where records were handed out.
    pub fn ends(&self) -> &Positions {
        &self.ends
    }

    /// The next batch; `None`, if the bounds are reached everywhere.
    ///
    /// # Errors
    /// Kafka no longer has what comes next ([`ErrorKind::OutOfRange`], with the first offset it has); or reading fails.
    pub async fn next(&mut self) -> Result<Option<EncodedBatch>> {
        if self.failed.is_some() && !self.assembler.is_empty() {
            // What was gathered before it comes first.
            return self.assembler.cut(&mut self.ends).await.map(Some);
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        loop {
            let due = self.assembler.due();
            let is_over = self.open.is_empty() && self.found.is_empty();
            if !self.assembler.is_empty()
                && (is_over
                    || self.assembler.is_full()
                    || due.is_some_and(|due| due <= Instant::now()))
            {
                return self.assembler.cut(&mut self.ends).await.map(Some);
            }
            if is_over {
                // Behind the last record there may be some that are for no reader.
                for (partition, end) in self.to.iter() {
                    self.ends.raise(partition, end);
                }
                self.end_turn();
                return Ok(None);
            }
            if self.found.is_empty() {
                let Some(turn) = &self.turn else {
                    self.begin_turn().await?;
                    continue;
                };
                if !turn.take(&mut self.found) {
                    self.turn = None;
                    continue;
                }
                if self.found.is_empty() {
                    let ready = turn.ready.notified();
                    match due {
                        Some(due) => {
                            let _ = tokio::time::timeout_at(due.into(), ready).await;
                        }
                        None => ready.await,
                    }
                    continue;
                }
            }
            while !self.assembler.is_full()
                && let Some(found) = self.found.pop_front()
            {
                if let Err(error) = self.gather(found).await {
                    if self.assembler.is_empty() {
                        return Err(error);
                    }
                    self.failed = Some(error);
                    return self.assembler.cut(&mut self.ends).await.map(Some);
                }
            }
            tokio::task::yield_now().await;
        }
    }

    async fn gather(&mut self, found: Logged) -> Result<()> {
        match found {
            Logged::Fetched(Fetched::Record(record)) => {
                let (partition, offset) = (record.partition(), record.offset());
                self.taken.raise(partition, offset + 1);
                if offset < self.to.get(partition) {
                    self.assembler.push(record);
                }
                if offset + 1 >= self.to.get(partition) {
                    self.open.retain(|open| *open != partition);
                }
            }
            // Compacted, aborted and control records leave no other trace.
            Logged::End { partition, offset } => {
                self.taken.raise(partition, offset);
                if offset >= self.to.get(partition) {
                    self.open.retain(|open| *open != partition);
                }
            }
            Logged::OutOfRange { partition } if self.open.contains(&partition) => {
                self.check_range(partition).await?;
            }
            Logged::OutOfRange { .. } => {}
            // Of a range that was there, a topic that is not there is gone.
            Logged::Fetched(Fetched::Failed(error))
                if is_passing(&error) && error.kind() != ErrorKind::NotFound =>
            {
                tracing::warn!(topic = %self.topic, %error, "reading a range");
            }
            Logged::Fetched(Fetched::Failed(error)) => return Err(error),
        }
        Ok(())
    }

    /// Whether what comes next is really not there. librdkafka may say so of what its client read before, in another turn;
    /// then another turn goes on.
    async fn check_range(&mut self, partition: i32) -> Result<()> {
        let Some(turn) = self.turn.take() else { return Ok(()) };
        let Some(Borrowed { reading, lent }) = turn.borrowed.lock().take() else { return Ok(()) };
        let asked = [Partition::new(self.topic.clone(), partition, None)];
        let range = blocking(move || {
            drop(reading);
            let ask = |of| -> Result<Option<i64>> {
                let found = lent.reader()?.offsets(&asked, of, ASK_TIMEOUT)?;
                Ok(found.first().and_then(|found| found.offset))
            };
            Ok((ask(OffsetOf::Beginning)?, ask(OffsetOf::End)?))
        });
        let (first, end) = range.await?;
        let offset = self.taken.get(partition);
        match (first, end) {
            (Some(first), Some(end)) if (first..=end).contains(&offset) => Ok(()),
            _ => Err(not_there(&self.topic, partition, offset, first)),
        }
    }

    fn end_turn(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.end();
        }
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.end_turn();
    }
}
