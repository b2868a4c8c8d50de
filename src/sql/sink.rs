//! [`Sinks`]: what brings the rows of topics from their streams into their tables, a task a topic.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::growth::Turned;
use super::store::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::topics::OffsetOf;
use crate::metrics::Metrics;
use crate::stream::blocking;
use crate::stream::cursor::Cursor;
use crate::stream::encoded::EncodedBatch;
use crate::stream::streams::Streams;
use crate::stream::topic_stream::{Phase, TopicStream};
use crate::stream::window::Positions;

/// Rows and bytes of a transaction, about.
const ROWS_MAX: usize = 100_000;
const BYTES_MAX: usize = 32 << 20;

/// How long rows may wait for others before they are stored.
const LINGER: Duration = Duration::from_secs(1);

/// Batches that are read while others are stored.
const AHEAD_MAX: usize = 4;

/// Time between two tries to store what could not be stored.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How long what windows have is stored when karrow stops; the rest is stored when it starts again.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Time between two looks for topics that are to be stored.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Time between two looks for rows that are too many.
const RETAIN_INTERVAL: Duration = Duration::from_secs(10);

/// What may stay in tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// How old a row may become, by its timestamp.
    pub age_max: Option<Duration>,
    /// How many bytes the file may have, about.
    pub bytes_max: Option<usize>,
}

/// See the top of this file.
pub struct Sinks {
    streams: Arc<Streams>,
    store: Arc<Store>,
    retention: Retention,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    /// When they were told to stop.
    stopped: OnceLock<Instant>,
    /// Why topics do not go on.
    trouble: Mutex<HashMap<Arc<str>, Trouble>>,
}

/// Why a topic does not go on.
struct Trouble {
    error: Error,
    /// It is not tried again: somebody has to look after it.
    is_final: bool,
}

/// What ends following a topic before its stream does.
enum Halt {
    /// It may work another time.
    Failed(Error),
    /// Offsets mean other records now, so that nothing more may be stored.
    MadeAnew(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Sinks {
    /// For the streams that stay; [`run`](Self::run) is the task.
    pub fn new(
        streams: Arc<Streams>,
        store: Arc<Store>,
        retention: Retention,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            streams,
            store,
            retention,
            metrics,
            stop,
            trouble: Mutex::default(),
            stopped: OnceLock::new(),
        })
    }

    /// What is not stored, and why; first of all what somebody has to look after.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock();
        let first =
            trouble.iter().min_by_key(|(topic, trouble)| (!trouble.is_final, (*topic).clone()));
        if let Some((topic, Trouble { error, is_final: true })) = first {
            return Some(format!("topic '{topic}' is not stored any more: {error}"));
        }
        if let Some(error) = self.store.lost() {
            return Some(format!("nothing is stored, trying again: {error}"));
        }
        first.map(|(topic, Trouble { error, .. })| {
            format!("topic '{topic}' is not stored, trying again: {error}")
        })
    }

    /// Sets the gauges that are a look at what is stored.
    pub fn observe(&self) {
        let lag = &self.metrics.store_lag;
        lag.reset();
        let nexts = self.store.nexts();
        for topic in self.streams.wanted() {
            let Some(stream) = self.streams.get(&topic) else { continue };
            let view = stream.view();
            // Of what nothing is stored of yet, all is wanted that comes from where the stream began.
            let next = nexts.get(&topic).unwrap_or(&view.begins);
            let behind = view
                .log_ends
                .iter()
                .map(|(partition, end)| (end - next.get(partition).max(0)).max(0));
            lag.with_label_values(&[&*topic]).set(behind.sum());
        }
        self.metrics
            .store_bytes
            .with_label_values(&["file"])
            .set(gauge(self.store.bytes_on_disk()));
    }

    /// Asks the file what is in it. Blocks.
    fn measure(&self) {
        if let Ok(bytes) = self.store.bytes() {
            self.metrics.store_bytes.with_label_values(&["used"]).set(gauge(bytes));
        }
    }

    /// Stores what comes of all topics, until it is stopped; then what it has.
    pub async fn run(self: Arc<Self>) {
        let mut running: HashMap<Arc<str>, JoinHandle<()>> = HashMap::new();
        let retaining = tokio::spawn(self.clone().retain());
        loop {
            running.retain(|_, sink| !sink.is_finished());
            for topic in self.streams.wanted() {
                running.entry(topic.clone()).or_insert_with(|| {
                    let sink = Sink { sinks: self.clone(), topic };
                    tokio::spawn(sink.run())
                });
            }
            let pause = tokio::time::sleep(LOOK_INTERVAL);
            if self.stop.run_until_cancelled(pause).await.is_none() {
                break;
            }
        }
        let _ = retaining.await;
        for (topic, sink) in running {
            if let Err(error) = sink.await {
                tracing::error!(%topic, %error, "storing a topic");
            }
        }
    }
}

impl Sinks {
    /// Lets rows go that are too many, and looks how large the file is.
    async fn retain(self: Arc<Self>) {
        let Retention { age_max, bytes_max } = self.retention;
        loop {
            let sinks = self.clone();
            let retained = blocking(move || {
                let retained = sinks.store.retain(age_max, bytes_max);
                sinks.measure();
                retained
            });
            match retained.await {
                Ok(0) => {}
                Ok(rows) => {
                    self.metrics.store_expired.inc_by(rows);
                    tracing::info!(rows, "stored rows were too old or too many");
                }
                Err(error) => tracing::error!(%error, "letting stored rows go"),
            }
            let pause = tokio::time::sleep(RETAIN_INTERVAL);
            if self.stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }
}

fn gauge(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Stores one topic.
struct Sink {
    sinks: Arc<Sinks>,
    topic: Arc<str>,
}

/// A batch, and where its topic is after it.
type Read = (Arc<EncodedBatch>, Positions);

/// What is stored next.
struct Gathered {
    /// Each with where its topic is after it.
    batches: Vec<(RecordBatch, Positions)>,
    rows: usize,
    bytes: usize,
    since: Option<Instant>,
    ends: Positions,
}

impl Gathered {
    fn new(ends: Positions) -> Self {
        Self { batches: Vec::new(), rows: 0, bytes: 0, since: None, ends }
    }

    fn push(&mut self, (batch, ends): Read) {
        self.rows += batch.batch.num_rows();
        self.bytes += batch.bytes();
        self.batches.push((batch.batch.clone(), ends.clone()));
        self.since.get_or_insert_with(Instant::now);
        self.ends = ends;
    }

    fn is_full(&self) -> bool {
        self.rows >= ROWS_MAX || self.bytes >= BYTES_MAX
    }

    /// When it is stored, full or not.
    fn due(&self) -> Option<Instant> {
        Some(self.since? + LINGER)
    }
}

impl Sink {
    async fn run(self) {
        let mut wait = RETRY_MIN;
        while let Some(stream) = self.stream() {
            match self.follow(&stream).await {
                Ok(()) => wait = RETRY_MIN,
                Err(Halt::MadeAnew(error)) => {
                    tracing::error!(topic = %self.topic, %error, "storing a topic has ended");
                    self.is_in_trouble(error, true);
                    while self.stream().is_some() {
                        let pause = tokio::time::sleep(LOOK_INTERVAL);
                        self.sinks.stop.run_until_cancelled(pause).await;
                    }
                    break;
                }
                Err(Halt::Failed(error)) => {
                    tracing::error!(topic = %self.topic, %error, "storing a topic, trying again");
                    self.is_in_trouble(error, false);
                }
            }
            self.sinks.stop.run_until_cancelled(tokio::time::sleep(wait)).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
        self.is_well();
    }

    /// Its stream, as long as it is wanted.
    fn stream(&self) -> Option<Arc<TopicStream>> {
        let is_wanted =
            !self.sinks.stop.is_cancelled() && self.sinks.streams.wanted().contains(&self.topic);
        is_wanted.then(|| self.sinks.streams.get(&self.topic)).flatten()
    }

    fn is_in_trouble(&self, error: Error, is_final: bool) {
        self.sinks.metrics.store_errors.with_label_values(&[&*self.topic]).inc();
        self.sinks.trouble.lock().insert(self.topic.clone(), Trouble { error, is_final });
    }

    fn is_well(&self) {
        self.sinks.trouble.lock().remove(&self.topic);
    }

    /// From where the table ends, until the stream ends.
    async fn follow(&self, stream: &TopicStream) -> Result<(), Halt> {
        let Some(from) = self.begin(stream).await? else { return Ok(()) };
        let cursor = self.sinks.streams.follow(&self.topic, from.clone()).await?;
        let store = self.sinks.store.clone();
        let _placed = Placed::at(&store, &self.topic, &from);
        // What is read is read to its end, which a select would not do.
        let (read, mut ahead) = mpsc::channel(AHEAD_MAX);
        let reading = forward(cursor, store.clone(), self.topic.clone(), read);
        let _reading = AbortOnDropHandle::new(tokio::spawn(reading));
        let mut gathered = Gathered::new(from);
        loop {
            let outcome = self.gather(&mut ahead, &mut gathered).await;
            self.keep(&mut gathered).await?;
            match outcome {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::OutOfRange => {
                    return self.jump(gathered.ends, error).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where it goes on: behind what is stored, or where the stream begins; `None` when it is told to stop.
    async fn begin(&self, stream: &TopicStream) -> Result<Option<Positions>, Halt> {
        let (store, topic) = (self.sinks.store.clone(), self.topic.clone());
        if let Some(stored) = blocking(move || store.positions(&topic)).await? {
            let ends = self.sinks.streams.offsets(&self.topic, OffsetOf::End).await?;
            is_the_same(&stored, &ends)?;
            // A partition of which nothing is stored is newer than the table, so it is wanted as a whole.
            return Ok(Some(stored.or(&Positions::default())));
        }
        let mut changes = stream.changes();
        let begins = changes.wait_for(|_| !matches!(stream.view().phase, Phase::Starting));
        let Some(_) = self.sinks.stop.run_until_cancelled(begins).await else { return Ok(None) };
        let view = stream.view();
        if let Some(error) = view.phase.failure() {
            return Err(error.clone().into());
        }
        let columns = match view.schema {
            Some(columns) => columns,
            None => self.sinks.streams.unseen(&self.topic)?,
        };
        // At once, so that what comes next is not passed over, whatever happens.
        let (store, topic, starts) =
            (self.sinks.store.clone(), self.topic.clone(), view.begins.clone());
        blocking(move || store.create(&topic, &columns, &starts)).await?;
        Ok(Some(view.begins))
    }

    /// Takes what comes, until it is to be stored; `false`, if nothing comes any more.
    async fn gather(
        &self,
        ahead: &mut mpsc::Receiver<Result<Read>>,
        gathered: &mut Gathered,
    ) -> Result<bool> {
        while !gathered.is_full() {
            let due = gathered.due();
            let late = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.sinks.stop.cancelled() => return self.drain(ahead, gathered).await,
                () = late => return Ok(true),
                read = ahead.recv() => match read.transpose()? {
                    Some(read) => gathered.push(read),
                    None => return Ok(false),
                },
            }
        }
        Ok(true)
    }

    /// Takes what the window still has when it is told to stop: the streams are closed then, and end. `true`, if there is more.
    async fn drain(
        &self,
        ahead: &mut mpsc::Receiver<Result<Read>>,
        gathered: &mut Gathered,
    ) -> Result<bool> {
        let until = *self.sinks.stopped.get_or_init(Instant::now) + DRAIN_MAX;
        while !gathered.is_full() {
            match tokio::time::timeout_at(until.into(), ahead.recv()).await {
                Ok(Some(read)) => gathered.push(read?),
                Ok(None) | Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Stores what was gathered, as often as it takes: nothing else is taken meanwhile.
    async fn keep(&self, gathered: &mut Gathered) -> Result<()> {
        if gathered.batches.is_empty() {
            return Ok(());
        }
        let ends = gathered.ends.clone();
        let Gathered { batches: mut left, .. } = std::mem::replace(gathered, Gathered::new(ends));
        let (mut at_once, mut wait) = (left.len(), RETRY_MIN);
        while !left.is_empty() {
            let part: Vec<RecordBatch> =
                left.iter().take(at_once).map(|(batch, _)| batch.clone()).collect();
            let (count, rows) = (part.len(), part.iter().map(RecordBatch::num_rows).sum::<usize>());
            let Some((_, ends)) = left.get(count.saturating_sub(1)).cloned() else { break };
            let (store, topic) = (self.sinks.store.clone(), self.topic.clone());
            match blocking(move || store.append(&topic, &part, &ends)).await {
                Ok(turned) => {
                    // Now that the table has them.
                    self.sinks.store.release(&self.topic, count);
                    left.drain(..count);
                    self.say(&turned);
                    let topic = [&*self.topic];
                    self.sinks.metrics.stored_rows.with_label_values(&topic).inc_by(rows as u64);
                    self.is_well();
                    wait = RETRY_MIN;
                    continue;
                }
                Err(error) if self.sinks.stop.is_cancelled() => return Err(error),
                // Queries have the memory, or there is little: fewer rows take less of it.
                Err(error) if error.kind() == ErrorKind::Exhausted && count > 1 => {
                    tracing::debug!(topic = %self.topic, %error, count, "storing fewer batches at once");
                    at_once = count / 2;
                    continue;
                }
                Err(error) => {
                    tracing::error!(topic = %self.topic, %error, "cannot store rows, trying again");
                    self.is_in_trouble(error, false);
                }
            }
            self.sinks.stop.run_until_cancelled(tokio::time::sleep(wait)).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
        Ok(())
    }

    /// One record of another type does that to all of a column, so somebody should know.
    fn say(&self, turned: &[Turned]) {
        let widened = &self.sinks.metrics.store_widened;
        for Turned { column, from, came } in turned {
            widened.with_label_values(&[&*self.topic]).inc();
            tracing::warn!(topic = %self.topic, column, from, came, "a stored column has become text: its values have several types");
        }
    }

    /// Goes on behind what Kafka does not have any more, if that is what is wrong.
    async fn jump(&self, at: Positions, why: Error) -> Result<(), Halt> {
        let streams = &self.sinks.streams;
        let firsts = streams.offsets(&self.topic, OffsetOf::Beginning).await?;
        let ends = streams.offsets(&self.topic, OffsetOf::End).await?;
        is_the_same(&at, &ends)?;
        let mut from = at.clone();
        from.raise_all(&firsts);
        let skipped: i64 = from.iter().map(|(partition, next)| next - at.get(partition)).sum();
        let metric = &self.sinks.metrics.store_skipped;
        metric.with_label_values(&[&*self.topic]).inc_by(u64::try_from(skipped).unwrap_or(0));
        tracing::error!(skipped, topic = %self.topic, %why, "records were deleted before they were stored");
        let (store, topic) = (self.sinks.store.clone(), self.topic.clone());
        blocking(move || store.append(&topic, &[], &from)).await?;
        Ok(())
    }
}

/// Refuses a topic that ends before what is stored of it: it is another one of the same name.
fn is_the_same(stored: &Positions, ends: &Positions) -> Result<(), Halt> {
    let Some((partition, offset)) = stored.iter().find(|(at, next)| *next > ends.get(*at)) else {
        return Ok(());
    };
    let end = ends.get(partition);
    let why = format!(
        "partition {partition} is stored up to offset {offset} but ends at {end}: the topic was made anew. To store the \
         new one, stop karrow, rename the table and delete the topic from _karrow.topics and _karrow.offsets with DuckDB"
    );
    Err(Halt::MadeAnew(Error::new(ErrorKind::Conflict, why)))
}

/// As long as it is there, queries know where the sink is.
struct Placed<'a>(&'a Store, &'a Arc<str>);

impl<'a> Placed<'a> {
    fn at(store: &'a Store, topic: &'a Arc<str>, from: &Positions) -> Self {
        store.place(topic, Some(from.clone()));
        Self(store, topic)
    }
}

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        self.0.place(self.1, None);
    }
}

/// Reads until nobody wants more.
async fn forward(
    mut cursor: Cursor,
    store: Arc<Store>,
    topic: Arc<str>,
    to: mpsc::Sender<Result<Read>>,
) {
    loop {
        let read = match cursor.next().await {
            Ok(Some(batch)) => {
                let ends = cursor.positions().clone();
                store.hold(&topic, &batch, &ends);
                Ok((batch, ends))
            }
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let is_over = read.is_err();
        if to.send(read).await.is_err() || is_over {
            return;
        }
    }
}
