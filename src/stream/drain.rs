//! [`Drain`]: what a session delivers, as batches of one topic each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use futures::future::BoxFuture;

use super::acks::Ack;
use super::batch::BatchOptions;
use super::letters::{Letter, Letters, letters_of};
use super::session::{Pop, Room, Session};
use crate::config::formats::{Format, OnBadRecord};
use crate::decode::envelope::{Decoded, RecordDecoder};
use crate::decode::formats::{Formats, TopicFormat};
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::producer::Producer;
use crate::kafka::record::{Record, RecordView};
use crate::metrics::Metrics;

/// See the top of this file.
pub struct Drain {
    formats: Arc<Formats>,
    options: BatchOptions,
    metrics: Arc<Metrics>,
    topics: HashMap<Arc<str>, Topic>,
    /// Delivered by the session, and not handed out yet.
    gathered: Option<Gathered>,
    /// A batch that waits for its dead letters to be stored.
    held: Option<Held>,
    letters: Letters,
    /// The topic of the last batch: another one has the next turn.
    last: Option<Arc<str>>,
}

struct Held {
    batch: Batch,
    letters: Vec<Letter>,
}

/// Records of one topic; what it covers is not acked yet.
pub struct Batch {
    /// The topic of its records.
    pub topic: Arc<str>,
    /// The last record of each partition.
    pub acks: Vec<Ack>,
    /// Their rows.
    pub rows: RecordBatch,
}

struct Topic {
    format: Arc<TopicFormat>,
    decoder: RecordDecoder,
    /// How many values the decoder has said to be text for want of a column.
    texts: u64,
}

struct Gathered {
    topic: Arc<str>,
    records: Vec<Record>,
    room: Room,
    since: Instant,
}

/// What a drain has to hand out.
pub enum Drained {
    /// A batch.
    Batch(Batch),
    /// Nothing is ready, or the session has something else to say.
    Nothing(Pop),
    /// There is a batch, which may fill up until then.
    Filling(Instant),
    /// Schemas have to be fetched first; this ends when they are.
    Unfetched(BoxFuture<'static, ()>),
    /// Dead letters have to be stored first; this ends when there is something new to know of them.
    Storing(BoxFuture<'static, ()>),
}

impl Drain {
    /// A drain that has taken nothing yet.
    pub fn new(
        formats: Arc<Formats>,
        options: BatchOptions,
        producer: Arc<Producer>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let letters = Letters::new(producer, metrics.clone());
        let topics = HashMap::new();
        Self { formats, options, metrics, topics, gathered: None, held: None, letters, last: None }
    }

    /// The next batch of `session`, if one is ready; with `hurry` one that could still fill up is.
    ///
    /// # Errors
    /// What went wrong since the last pop, or the record that cannot be decoded where the topic's policy is to fail.
    pub fn next(&mut self, session: &Session, hurry: bool) -> Result<Drained> {
        if let Some(held) = self.held.take() {
            return self.hand_out(held);
        }
        let pop = self.gather(session)?;
        if self.gathered.as_ref().is_some_and(|gathered| gathered.records.is_empty()) {
            self.gathered = None;
        }
        let Some(gathered) = &mut self.gathered else { return Ok(Drained::Nothing(pop)) };
        let until = gathered.since + self.options.wait;
        let is_full = gathered.room.is_full();
        if !hurry && !is_full && Instant::now() < until {
            return Ok(Drained::Filling(until));
        }
        let topic = match self.topics.get_mut(&gathered.topic) {
            Some(topic) => topic,
            None => {
                let format = self.formats.topic(&gathered.topic)?;
                let decoder = format.decoder(
                    &self.options.projection,
                    self.options.layout,
                    self.options.format,
                )?;
                self.topics.entry(gathered.topic.clone()).or_insert(Topic {
                    format,
                    decoder,
                    texts: 0,
                })
            }
        };
        if topic.format.on_bad_record == OnBadRecord::Fail {
            // A bad record that was acked all the same is passed over.
            gathered.records.retain(|record| {
                session.acked(record.topic(), record.partition()) <= Some(record.offset())
            });
            if gathered.records.is_empty() {
                self.gathered = None;
                return Ok(Drained::Nothing(Pop::Empty));
            }
        }
        let with_headers =
            topic.decoder.wants_headers() || topic.format.on_bad_record == OnBadRecord::DeadLetter;
        // Rows of a partition lie together, in the order of the log.
        if !gathered.records.is_sorted_by_key(Record::partition) {
            gathered.records.sort_by_key(Record::partition);
        }
        let name: &str = &gathered.topic;
        let views: Vec<RecordView<'_>> =
            gathered.records.iter_mut().map(|record| record.view(name, with_headers)).collect();
        let unfetched = topic.decoder.unfetched(&views);
        if !unfetched.is_empty() {
            return Ok(Drained::Unfetched(topic.decoder.fetch(unfetched)));
        }
        let began = Instant::now();
        let mut covered = views.len();
        // A few bytes may stand for many rows: then the batch gets fewer records.
        let mut decoded = loop {
            match topic.decoder.decode(views.get(..covered).unwrap_or_default()) {
                Err(error) if error.kind() == ErrorKind::Exhausted && covered > 1 => covered /= 2,
                decoded => break decoded?,
            }
        };
        if topic.format.on_bad_record == OnBadRecord::Fail
            && let Some(bad) = decoded.bad.first()
        {
            // What comes before it is good; from there on nothing is handed out.
            covered = bad.record;
            if covered == 0 {
                let record = &views[0];
                self.metrics
                    .bad_rows
                    .with_label_values(&[record.topic, bad.reject.reason.label()])
                    .inc();
                return Err(Error::invalid(format!(
                    "bad record {}:{}:{}: {}",
                    record.topic, record.partition, record.offset, bad.reject
                )));
            }
            decoded = topic.decoder.decode(views.get(..covered).unwrap_or_default())?;
        }
        topic.decoder.done();
        let asked = self.options.format.filter(|format| *format != Format::Auto);
        let format = asked.unwrap_or_else(|| topic.format.payload_format());
        let done = views.get(..covered).unwrap_or_default();
        topic.book(&self.metrics, format, &decoded, done, began);
        let acks = last_of_partitions(done);
        let len = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let bytes = done.iter().map(|record| len(record.key) + len(record.payload)).sum();
        let letters = match topic.format.on_bad_record {
            OnBadRecord::DeadLetter => letters_of(&gathered.topic, &decoded.bad, &views),
            OnBadRecord::Column | OnBadRecord::Fail => Vec::new(),
        };
        drop(views);
        let topic = gathered.topic.clone();
        self.last = Some(topic.clone());
        Record::give_back(gathered.records.drain(..covered), bytes);
        gathered.since = Instant::now();
        if gathered.records.is_empty() {
            self.gathered = None;
        }
        self.hand_out(Held { batch: Batch { topic, acks, rows: decoded.batch }, letters })
    }

    /// Hands out a batch once its dead letters are stored: what a client has seen, it may ack.
    fn hand_out(&mut self, held: Held) -> Result<Drained> {
        let stored = self.letters.store(&held.letters);
        match stored {
            Ok(None) => Ok(Drained::Batch(held.batch)),
            Ok(Some(change)) => {
                self.held = Some(held);
                Ok(Drained::Storing(change))
            }
            Err(error) => {
                // The next pop tries again.
                self.held = Some(held);
                Err(error)
            }
        }
    }

    /// What was asked of its batches.
    pub fn options(&self) -> &BatchOptions {
        &self.options
    }

    /// Whether a batch waits for its dead letters.
    pub fn is_holding(&self) -> bool {
        self.held.is_some()
    }

    /// A record that was gathered for a batch which then could not be made; pops of other forms get it instead.
    pub fn take_record(&mut self, session: &Session) -> Option<Record> {
        let gathered = self.gathered.as_mut()?;
        session.purge(&mut gathered.room, &mut gathered.records);
        let record = (!gathered.records.is_empty()).then(|| gathered.records.remove(0));
        if gathered.records.is_empty() {
            self.gathered = None;
        }
        record
    }

    /// Takes from the session what is ready and fits into the batch.
    fn gather(&mut self, session: &Session) -> Result<Pop> {
        let mut fresh = None;
        let gathered = match &mut self.gathered {
            Some(gathered) => gathered,
            None => fresh.insert(Gathered {
                topic: Arc::from(""),
                records: Vec::new(),
                room: Room::new(self.options.rows_max, self.options.bytes_max),
                since: Instant::now(),
            }),
        };
        let wanted = (!gathered.records.is_empty()).then(|| gathered.topic.clone());
        let popped = session.pop_batch(
            wanted.as_deref(),
            self.last.as_deref(),
            &mut gathered.room,
            &mut gathered.records,
        );
        if let Some(mut gathered) = fresh
            && let Some(first) = gathered.records.first()
        {
            gathered.topic = Arc::from(first.topic());
            self.gathered = Some(gathered);
        }
        match popped {
            Err(error) if self.gathered.is_none() => Err(error),
            // What is there is handed out first.
            Err(error) => {
                session.put_back(error);
                Ok(Pop::Empty)
            }
            Ok(pop) => Ok(pop),
        }
    }
}

impl Topic {
    fn book(
        &mut self,
        metrics: &Metrics,
        format: Format,
        decoded: &Decoded,
        views: &[RecordView<'_>],
        began: Instant,
    ) {
        let Some(topic) = views.first().map(|record| record.topic) else { return };
        let format = format.label();
        let bytes: usize = views.iter().filter_map(|record| record.payload).map(<[u8]>::len).sum();
        metrics
            .decoded_rows
            .with_label_values(&[topic, format])
            .inc_by(decoded.batch.num_rows() as u64);
        metrics.decoded_bytes.with_label_values(&[topic, format]).inc_by(bytes as u64);
        metrics.decode_seconds.with_label_values(&[format]).observe(began.elapsed().as_secs_f64());
        for bad in &decoded.bad {
            metrics.bad_rows.with_label_values(&[topic, bad.reject.reason.label()]).inc();
        }
        let texts = self.decoder.texts();
        metrics.overflow_values.with_label_values(&[topic]).inc_by(texts - self.texts);
        self.texts = texts;
    }
}

/// The last record of each partition, of records that are sorted by partition.
fn last_of_partitions(records: &[RecordView<'_>]) -> Vec<Ack> {
    records
        .chunk_by(|a, b| a.partition == b.partition)
        .filter_map(|of_one| of_one.last())
        .map(|last| Ack {
            topic: last.topic.to_owned(),
            partition: last.partition,
            offset: last.offset,
        })
        .collect()
}
