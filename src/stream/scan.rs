//! [`Scan`]: a range of a topic read from Kafka itself, from positions up to positions.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

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

/// Clients that scans take turns with: each costs threads, and reads for one scan at a time.
pub struct ReaderPool {
    options: ConsumerOptions,
    idle: Mutex<Vec<LogReader>>,
    places: Arc<Semaphore>,
}

/// A client of a [`ReaderPool`], which gets it back.
struct Lent {
    pool: Arc<ReaderPool>,
    reader: Option<LogReader>,
    _place: OwnedSemaphorePermit,
}

impl ReaderPool {
    /// At most `readers_max` clients with these options.
    pub fn new(options: ConsumerOptions, readers_max: usize) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(readers_max));
        Arc::new(Self { options, idle: Mutex::default(), places })
    }

    /// Waits until a client is free.
    async fn lend(self: &Arc<Self>) -> Result<Lent> {
        let place = self.places.clone().acquire_owned().await;
        let place = place.map_err(|error| Error::internal(error.to_string()))?;
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

/// See the top of this file.
pub struct Scan {
    topic: Arc<str>,
    to: Positions,
    /// Up to where records were handed out.
    ends: Positions,
    assembler: Assembler,
    ready: Arc<Notify>,
    /// Partitions whose bound was not reached.
    open: Vec<i32>,
    found: VecDeque<Logged>,
    /// In this order: the reading ends before its client goes back.
    reading: Option<Reading>,
    lent: Option<Lent>,
}

impl Scan {
    /// Reads `topic` from `from` (inclusive) to `to` (exclusive), both of which exist. What comes before `from` in a partition
    /// that `to` does not name is not read.
    ///
    /// # Errors
    /// No client can be had, or a partition cannot be read.
    pub async fn begin(
        pool: &Arc<ReaderPool>,
        formats: Arc<Formats>,
        topic: Arc<str>,
        from: Positions,
        to: Positions,
        cut: CutLimits,
    ) -> Result<Self> {
        let assembler = Assembler::new(topic.clone(), &formats, cut)?;
        let ready = Arc::new(Notify::new());
        let starts: Vec<(i32, i64)> = to
            .iter()
            .map(|(partition, end)| (partition, from.get(partition), end))
            .filter(|(_, start, end)| start < end)
            .map(|(partition, start, _)| (partition, start))
            .collect();
        let open = starts.iter().map(|(partition, _)| *partition).collect();
        let (mut reading, mut lent) = (None, None);
        if !starts.is_empty() {
            let client = pool.lend().await?;
            let wake = ready.clone();
            let mut begun = client.reader()?.reading(Box::new(move || wake.notify_one()))?;
            let named = topic.clone();
            reading = Some(
                blocking(move || {
                    for (partition, offset) in starts {
                        begun.start(&named, partition, offset)?;
                    }
                    Ok(begun)
                })
                .await?,
            );
            lent = Some(client);
        }
        Ok(Self {
            topic,
            to,
            ends: from,
            assembler,
            ready,
            open,
            found: VecDeque::new(),
            reading,
            lent,
        })
    }

    /// Up to where records were handed out.
    pub fn ends(&self) -> &Positions {
        &self.ends
    }

    /// The next batches; none, if the bounds are reached everywhere.
    ///
    /// # Errors
    /// Kafka no longer has what comes next ([`ErrorKind::OutOfRange`], with the first offset it has); or reading fails.
    pub async fn next(&mut self) -> Result<Vec<EncodedBatch>> {
        loop {
            let due = self.assembler.due();
            let is_over = self.open.is_empty() && self.found.is_empty();
            if !self.assembler.is_empty()
                && (is_over
                    || self.assembler.is_full()
                    || due.is_some_and(|due| due <= Instant::now()))
            {
                return self.assembler.cut(&mut self.ends).await;
            }
            if is_over {
                // Behind the last record there may be some that are for no reader.
                for (partition, end) in self.to.iter() {
                    self.ends.raise(partition, end);
                }
                self.end().await;
                return Ok(Vec::new());
            }
            if let Some(reading) = &mut self.reading {
                reading.take(&mut self.found);
            }
            if self.found.is_empty() {
                match due {
                    Some(due) => {
                        let _ = tokio::time::timeout_at(due.into(), self.ready.notified()).await;
                    }
                    None => self.ready.notified().await,
                }
                continue;
            }
            while !self.assembler.is_full()
                && let Some(found) = self.found.pop_front()
            {
                self.gather(found).await?;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn gather(&mut self, found: Logged) -> Result<()> {
        match found {
            Logged::Fetched(Fetched::Record(record)) => {
                let (partition, offset) = (record.partition(), record.offset());
                if offset < self.to.get(partition) {
                    self.assembler.push(record);
                }
                if offset + 1 >= self.to.get(partition) {
                    self.open.retain(|open| *open != partition);
                }
            }
            // Compacted, aborted and control records leave no other trace.
            Logged::End { partition, offset } if offset >= self.to.get(partition) => {
                self.open.retain(|open| *open != partition);
            }
            Logged::End { .. } => {}
            Logged::OutOfRange { partition } => return Err(self.out_of_range(partition).await),
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

    async fn out_of_range(&mut self, partition: i32) -> Error {
        let asked = Partition::new(self.topic.clone(), partition, None);
        let Some(lent) = self.lent.take() else {
            return Error::internal("a scan without a client");
        };
        let first =
            blocking(move || lent.reader()?.offsets(&[asked], OffsetOf::Beginning, ASK_TIMEOUT));
        let first = first.await.ok().and_then(|found| found.first()?.offset);
        let first = first.map_or_else(String::new, |first| format!(", the first one is {first}"));
        Error::new(
            ErrorKind::OutOfRange,
            format!(
                "{}:{partition} does not have offset {} (any more){first}",
                self.topic,
                self.ends.get(partition)
            ),
        )
    }

    /// Stops reading, which blocks.
    async fn end(&mut self) {
        let (reading, lent) = (self.reading.take(), self.lent.take());
        let _ = blocking(move || {
            drop(reading);
            drop(lent);
            Ok(())
        })
        .await;
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        let (reading, lent) = (self.reading.take(), self.lent.take());
        if reading.is_some() {
            // A reader that goes in the middle must not block the thread that serves it.
            tokio::task::spawn_blocking(move || {
                drop(reading);
                drop(lent);
            });
        }
    }
}
