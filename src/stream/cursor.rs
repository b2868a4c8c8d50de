//! [`Cursor`]: one reader's place in a topic. It shares the batches of the topic's stream where they reach, and reads Kafka
//! itself for what is older: nothing is ever skipped in silence.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, Int64Type};
use tokio::sync::watch;

use super::assembler::CutLimits;
use super::encoded::EncodedBatch;
use super::scan::{ReaderPool, Scan, not_there};
use super::topic_stream::{Attached, Phase};
use super::window::{Positions, Window};
use crate::decode::formats::Formats;
use crate::error::{Error, Result};

/// What a cursor reads from.
#[derive(Clone)]
pub struct Sources {
    /// The topic's name.
    pub topic: Arc<str>,
    /// For what no window has.
    pub pool: Arc<ReaderPool>,
    /// How its values are decoded.
    pub formats: Arc<Formats>,
    /// When batches of what no window has are cut.
    pub cut: CutLimits,
}

/// See the top of this file.
pub struct Cursor {
    sources: Sources,
    /// The topic's stream, if it has one.
    stream: Option<Attached>,
    /// What was handed out, and what lies before where it began.
    positions: Positions,
    /// Where it ends; it follows, if there is none.
    until: Option<Positions>,
    /// The batch of the window that comes next, once that is known.
    number: Option<u64>,
    /// Breaks of the window that it knows of.
    breaks: Option<usize>,
    changes: Option<watch::Receiver<u64>>,
    scan: Option<Scan>,
    is_shared: bool,
}

/// What a window has for a cursor.
enum Found {
    Batch(Arc<EncodedBatch>),
    /// Nothing yet.
    Nothing,
    /// What is wanted before these positions is not there.
    Behind(Positions),
    /// A partition goes on there, which is earlier.
    Broken {
        partition: i32,
        first: i64,
    },
}

impl Cursor {
    /// A cursor at `from`, up to `until`, where that is given.
    ///
    /// # Errors
    /// It has no end, and there is no stream to follow.
    pub fn new(
        sources: Sources,
        stream: Option<Attached>,
        from: Positions,
        until: Option<Positions>,
    ) -> Result<Self> {
        if until.is_none() && stream.is_none() {
            return Err(Error::internal("a topic without a stream cannot be followed"));
        }
        let changes = stream.as_ref().map(|stream| stream.changes());
        Ok(Self {
            sources,
            stream,
            positions: from,
            until,
            number: None,
            breaks: None,
            changes,
            scan: None,
            is_shared: false,
        })
    }

    /// Where it is: behind all that it has handed out.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Whether the last batch is the window's own, which other readers get as well.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// The next batch; `None` when its end is reached, or the stream that it follows is closed.
    ///
    /// # Errors
    /// The stream that it follows has failed, or Kafka cannot be read.
    pub async fn next(&mut self) -> Result<Option<Arc<EncodedBatch>>> {
        loop {
            if let Some(scan) = &mut self.scan {
                let scanned = scan.next().await?;
                self.positions.raise_all(scan.ends());
                if let Some(batch) = scanned {
                    self.is_shared = false;
                    return Ok(Some(Arc::new(batch)));
                }
                self.scan = None;
                continue;
            }
            if self.until.as_ref().is_some_and(|until| self.positions.covers(until)) {
                return Ok(None);
            }
            let Some(stream) = self.stream.as_ref().map(|stream| stream.share()) else {
                let until = self.until.clone().unwrap_or_default();
                self.scan_to(until)?;
                continue;
            };
            if let Some(changes) = &mut self.changes {
                changes.mark_unchanged();
            }
            let (found, phase) = stream.look(|window| self.find(window));
            match found {
                Found::Batch(batch) => {
                    if let Some(batch) = self.part_of(batch)? {
                        return Ok(Some(batch));
                    }
                }
                Found::Behind(starts) => self.scan_to(starts)?,
                Found::Broken { partition, first } => {
                    let offset = self.positions.get(partition);
                    return Err(not_there(&self.sources.topic, partition, offset, Some(first)));
                }
                Found::Nothing => {
                    match (phase, &self.until) {
                        (Phase::Starting | Phase::Live, _) | (Phase::Paused, None) => {}
                        // Nothing new comes from the stream, so the rest comes from Kafka.
                        (_, Some(until)) => {
                            let until = until.clone();
                            self.scan_to(until)?;
                            continue;
                        }
                        (Phase::Failed(error), None) => return Err(error),
                        (Phase::Closed, None) => return Ok(None),
                    }
                    if let Some(changes) = &mut self.changes {
                        let _ = changes.changed().await;
                    }
                }
            }
        }
    }

    fn scan_to(&mut self, to: Positions) -> Result<()> {
        let Sources { topic, pool, formats, cut, .. } = self.sources.clone();
        self.number = None;
        let from = self.positions.clone();
        self.scan = Some(Scan::new(&pool, &formats, topic, from, to, cut)?);
        Ok(())
    }

    /// What comes next in `window`.
    fn find(&mut self, window: &Window) -> Found {
        if window.starts().iter().next().is_none() {
            // It does not know yet where it begins.
            return Found::Nothing;
        }
        let known = *self.breaks.get_or_insert(window.breaks());
        if let Some((partition, first)) = window.break_behind(known, &self.positions) {
            return Found::Broken { partition, first };
        }
        self.breaks = Some(window.breaks());
        if !self.positions.covers(window.starts()) {
            // Where this cursor ends before the window begins, nothing more is wanted of that.
            let starts = match &self.until {
                Some(until) => window.starts().lower(until),
                None => window.starts().clone(),
            };
            if !self.positions.covers(&starts) {
                return Found::Behind(starts);
            }
        }
        let known = self.number.filter(|number| *number >= window.first_number());
        let number = known.unwrap_or(window.first_number());
        self.number = Some(number);
        let Some(batch) = window.batch(number) else {
            // Records that are for no reader may lie behind the last batch.
            self.positions.raise_all(window.ends());
            return Found::Nothing;
        };
        self.number = Some(number + 1);
        Found::Batch(batch.clone())
    }

    /// The rows of `batch` that were not handed out and lie before the end; `None` if there are none.
    fn part_of(&mut self, batch: Arc<EncodedBatch>) -> Result<Option<Arc<EncodedBatch>>> {
        let is_new = batch.starts.covers(&self.positions);
        let is_within = self.until.as_ref().is_none_or(|until| until.covers(&batch.ends));
        self.is_shared = is_new && is_within;
        if self.is_shared {
            self.positions.raise_all(&batch.ends);
            return Ok(Some(batch));
        }
        let malformed = || Error::internal("a batch without partitions and offsets");
        let column = |name: &str| batch.batch.column_by_name(name).ok_or_else(malformed);
        let partitions = column("partition")?.as_primitive_opt::<Int32Type>();
        let offsets = column("offset")?.as_primitive_opt::<Int64Type>();
        let (Some(partitions), Some(offsets)) = (partitions, offsets) else {
            return Err(malformed());
        };
        let is_wanted = |(partition, offset): (&i32, &i64)| {
            *offset >= self.positions.get(*partition)
                && self.until.as_ref().is_none_or(|until| *offset < until.get(*partition))
        };
        let wanted: BooleanArray =
            partitions.values().iter().zip(offsets.values()).map(is_wanted).map(Some).collect();
        let starts = self.positions.clone();
        let mut ends = starts.clone();
        ends.raise_all(&match &self.until {
            Some(until) => batch.ends.lower(until),
            None => batch.ends.clone(),
        });
        self.positions = ends.clone();
        if wanted.true_count() == 0 {
            return Ok(None);
        }
        let part = filter_record_batch(&batch.batch, &wanted)
            .map_err(|error| Error::internal(error.to_string()))?;
        Ok(Some(Arc::new(EncodedBatch::new(&part, starts, ends)?)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch};

    use super::*;
    use crate::config::KafkaOptions;
    use crate::config::formats::FormatsConfig;
    use crate::kafka::options::ConsumerOptions;
    use crate::stream::window::{Memory, WindowLimits};

    fn batch(starts: &[i64], rows: &[(i32, i64)], ends: &[i64]) -> Arc<EncodedBatch> {
        let partitions: ArrayRef = Arc::new(Int32Array::from_iter(rows.iter().map(|row| row.0)));
        let offsets: ArrayRef = Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.1)));
        let columns = [("partition", partitions), ("offset", offsets)];
        let rows = RecordBatch::try_from_iter(columns).expect("a batch");
        let positions = |offsets: &[i64]| Positions::new(offsets.to_vec());
        Arc::new(EncodedBatch::new(&rows, positions(starts), positions(ends)).expect("encoded"))
    }

    #[test]
    fn a_batch_behind_what_is_no_record_is_shared() {
        let (none, names) = (serde_json::Map::new(), KafkaOptions::new());
        let options = ConsumerOptions::new(&names, &none, "c", "c").expect("options");
        let cut = CutLimits { rows_max: 1, bytes_max: 1, linger: Duration::ZERO };
        let formats = Formats::new(FormatsConfig::default(), None).expect("formats");
        let pool = ReaderPool::new(options, 1);
        let sources = Sources { topic: "t".into(), pool, formats: Arc::new(formats), cut };
        let until = Positions::new(vec![100, 100]);
        let mut cursor =
            Cursor::new(sources, None, Positions::default(), Some(until)).expect("a cursor");
        let limits = WindowLimits { bytes_max: usize::MAX, age_max: Duration::from_secs(60) };
        let memory = Memory::new(usize::MAX);
        let mut window = Window::new(Positions::new(vec![0, 0]), limits, memory);
        let mut next = |window: &Window| match cursor.find(window) {
            Found::Batch(batch) => cursor.part_of(batch).expect("a batch"),
            _ => None,
        };
        let first = batch(&[0, 0], &[(0, 0), (0, 1)], &[2, 0]);
        window.push(first.clone(), true);
        assert!(next(&window).is_some_and(|batch| Arc::ptr_eq(&batch, &first)));
        // The marker at the end of a transaction has an offset, too.
        window.advance(0, 3);
        assert!(next(&window).is_none());
        let second = batch(&[3, 0], &[(0, 3), (1, 0)], &[4, 1]);
        window.push(second.clone(), true);
        assert!(next(&window).is_some_and(|batch| Arc::ptr_eq(&batch, &second)));
        assert_eq!(cursor.positions(), &Positions::new(vec![4, 1]));
    }
}
