//! [`Assembler`]: records of one topic into batches, when there are enough of them or they have waited long enough.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;

use super::encoded::EncodedBatch;
use super::window::Positions;
use crate::config::formats::OnBadRecord;
use crate::decode::envelope::{Layout, RecordDecoder};
use crate::decode::formats::{Formats, TopicFormat};
use crate::decode::projection::Projection;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::record::{Record, RecordView};

/// When a batch is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutLimits {
    /// Most records.
    pub rows_max: usize,
    /// Most bytes of keys, headers and payloads; one record may be larger.
    pub bytes_max: usize,
    /// How long a record may wait for others.
    pub linger: Duration,
}

/// See the top of this file.
pub struct Assembler {
    topic: Arc<str>,
    format: Arc<TopicFormat>,
    decoder: RecordDecoder,
    limits: CutLimits,
    records: Vec<Record>,
    bytes: usize,
    /// When the first of `records` came.
    since: Option<Instant>,
    /// Most records of the next batch, where those that are there are more than one; then no others come in between.
    part: Option<usize>,
}

impl Assembler {
    /// For the records of `topic`.
    ///
    /// # Errors
    /// Its format's schema cannot be used.
    pub fn new(topic: Arc<str>, formats: &Formats, limits: CutLimits) -> Result<Self> {
        let format = formats.topic(&topic)?;
        let decoder = format.decoder(&Projection::All, Layout::Struct, None)?;
        let records = Vec::new();
        Ok(Self { topic, format, decoder, limits, records, bytes: 0, since: None, part: None })
    }

    /// The columns of a batch without rows: those that were seen so far.
    ///
    /// # Errors
    /// A failure of ours.
    pub fn schema(&mut self) -> Result<SchemaRef> {
        Ok(self.decoder.decode(&[])?.batch.schema())
    }

    /// Takes a record.
    pub fn push(&mut self, mut record: Record) {
        self.bytes += record.size();
        self.since.get_or_insert_with(Instant::now);
        self.records.push(record);
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether there are enough for a batch.
    pub fn is_full(&self) -> bool {
        self.part.is_some()
            || self.records.len() >= self.limits.rows_max
            || self.bytes >= self.limits.bytes_max
    }

    /// When those that are there have waited long enough.
    pub fn due(&self) -> Option<Instant> {
        Some(self.since? + self.limits.linger)
    }

    /// Makes a batch of what is there; seldom, where a few bytes stand for many, of a part of it, and is full until the rest
    /// is cut as well. Rows of a partition lie together, in the order of the log. `ends` is where the topic was before, and
    /// then is behind them.
    ///
    /// # Errors
    /// A bad record, where the topic's policy is to fail ([`ErrorKind::Conflict`]); or a failure of ours.
    pub async fn cut(&mut self, ends: &mut Positions) -> Result<EncodedBatch> {
        self.records.sort_by_key(Record::partition);
        let with_headers = self.decoder.wants_headers();
        let views: Vec<RecordView<'_>> =
            self.records.iter_mut().map(|record| record.view(&self.topic, with_headers)).collect();
        loop {
            let unfetched = self.decoder.unfetched(&views);
            if unfetched.is_empty() {
                break;
            }
            self.decoder.fetch(unfetched).await;
        }
        let mut covered = self.part.unwrap_or(views.len()).min(views.len());
        let decoded = loop {
            let decoded = match self.decoder.decode(views.get(..covered).unwrap_or_default()) {
                Err(error) if error.kind() == ErrorKind::Exhausted && covered > 1 => {
                    covered /= 2;
                    continue;
                }
                decoded => decoded?,
            };
            let first_bad = decoded.bad.iter().min_by_key(|bad| bad.record);
            match first_bad.filter(|_| self.format.on_bad_record == OnBadRecord::Fail) {
                None => break decoded,
                Some(bad) if bad.record == 0 => {
                    return Err(bad_record(&self.topic, views.first(), &bad.reject));
                }
                // What comes before it comes first.
                Some(bad) => covered = bad.record,
            }
        };
        let done = views.get(..covered).unwrap_or_default();
        let starts = ends.clone();
        for of_one in done.chunk_by(|a, b| a.partition == b.partition) {
            if let Some(last) = of_one.last() {
                ends.set(last.partition, last.offset + 1);
            }
        }
        drop(views);
        self.decoder.done();
        self.records.drain(..covered);
        self.part = (!self.records.is_empty()).then_some(covered * 2);
        if self.records.is_empty() {
            self.bytes = 0;
            self.since = None;
        }
        EncodedBatch::new(&decoded.batch, starts, ends.clone())
    }
}

fn bad_record(topic: &str, record: Option<&RecordView<'_>>, why: &impl std::fmt::Display) -> Error {
    let (partition, offset) = record.map_or((-1, -1), |record| (record.partition, record.offset));
    Error::new(ErrorKind::Conflict, format!("bad record {topic}:{partition}:{offset}: {why}"))
}
