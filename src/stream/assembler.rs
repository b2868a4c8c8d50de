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
        Ok(Self { topic, format, decoder, limits, records, bytes: 0, since: None })
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
        self.records.len() >= self.limits.rows_max || self.bytes >= self.limits.bytes_max
    }

    /// When those that are there have waited long enough.
    pub fn due(&self) -> Option<Instant> {
        Some(self.since? + self.limits.linger)
    }

    /// Makes a batch, seldom several, of what is there. Rows of a partition lie together, in the order of the log. `ends` is
    /// where the topic was before, and then is behind them.
    ///
    /// # Errors
    /// A bad record, where the topic's policy is to fail; or a failure of ours.
    pub async fn cut(&mut self, ends: &mut Positions) -> Result<Vec<EncodedBatch>> {
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
        let mut batches = Vec::new();
        let mut rest = views.as_slice();
        while !rest.is_empty() {
            let mut covered = rest.len();
            let decoded = loop {
                match self.decoder.decode(rest.get(..covered).unwrap_or_default()) {
                    // A few bytes may stand for many rows.
                    Err(error) if error.kind() == ErrorKind::Exhausted && covered > 1 => {
                        covered /= 2;
                    }
                    decoded => break decoded?,
                }
            };
            if self.format.on_bad_record == OnBadRecord::Fail
                && let Some(bad) = decoded.bad.first()
                && let Some(record) = rest.get(bad.record)
            {
                return Err(Error::invalid(format!(
                    "bad record {}:{}:{}: {}",
                    self.topic, record.partition, record.offset, bad.reject
                )));
            }
            let (done, left) = rest.split_at(covered);
            let starts = ends.clone();
            for of_one in done.chunk_by(|a, b| a.partition == b.partition) {
                if let Some(last) = of_one.last() {
                    ends.set(last.partition, last.offset + 1);
                }
            }
            batches.push(EncodedBatch::new(&decoded.batch, starts, ends.clone())?);
            rest = left;
        }
        drop(views);
        self.decoder.done();
        self.records.clear();
        self.bytes = 0;
        self.since = None;
        Ok(batches)
    }
}
