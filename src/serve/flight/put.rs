//! DoPut: the rows of record batches as messages of a topic, by the rules of `RPUSH arrow:`.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::{FlightData, FlightDescriptor, PutResult};
use arrow_ipc::{DictionaryBatch, root_as_message};
use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt, try_unfold};
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::request::schema_of;
use super::status::status;
use crate::decode::rows::{Budget, STREAM_EXPANSION_MAX, append, rows_of};
use crate::error::{Error, Result};
use crate::kafka::producer::{
    Account, Lane, OwnedMessage, Producer, SendError, StoredOffsets, Ticket, check_topic_name,
};

/// Batches that are sent and not stored yet. The producer's caps bound their bytes.
const OPEN_BATCHES_MAX: usize = 64;

/// Results that wait to be read; those behind them become one.
const RESULTS_MAX: usize = 4096;

/// Every message begins so in an IPC stream.
const CONTINUATION: [u8; 4] = [0xFF; 4];

/// What a client sends.
pub type Incoming = BoxStream<'static, Result<FlightData, Status>>;

/// What was stored of a batch, or of several whose results nobody has read.
struct Stored {
    rows: usize,
    offsets: StoredOffsets,
}

impl Stored {
    fn add(&mut self, more: Self) {
        self.rows += more.rows;
        for (partition, (first, last)) in more.offsets {
            let range = self.offsets.entry(partition).or_insert((first, last));
            *range = (first.min(range.0), last.max(range.1));
        }
    }

    fn result(self) -> PutResult {
        let offsets: Map<String, Value> = self
            .offsets
            .into_iter()
            .map(|(partition, (first, last))| (partition.to_string(), json!([first, last])))
            .collect();
        let said = json!({"rows": self.rows, "offsets": offsets});
        PutResult { app_metadata: Bytes::from(said.to_string()) }
    }
}

/// What a put has to say: a result, `None` at its end, or why it has failed.
type Said = Result<Option<Stored>, Status>;

/// The state of a put.
struct Put {
    producer: Arc<Producer>,
    account: Arc<Account>,
    topic: String,
    request_bytes_max: usize,
    incoming: Incoming,
    /// As it begins an IPC stream.
    schema: Vec<u8>,
    /// Those in use, by id, as they follow it there: each with the pieces that were added to it.
    dictionaries: Vec<(i64, Vec<u8>)>,
    /// Rows so far, so that errors name rows as the client counts them.
    rows: usize,
    open: VecDeque<(Arc<Ticket>, usize)>,
    done: Arc<Notify>,
    /// Why no more is taken; said when all that was sent is settled.
    refused: Option<Status>,
    is_over: bool,
    results: mpsc::Sender<Said>,
    /// For which there was no place among the results.
    unread: Option<Stored>,
}

/// Stores what comes by `incoming`, whose first message is `first`; a result for each batch, when all of it is stored, or
/// for several where they are not read.
///
/// # Errors
/// No topic is named, or there is no schema.
pub fn put(
    producer: Arc<Producer>,
    first: &FlightData,
    incoming: Incoming,
    request_bytes_max: usize,
) -> Result<impl Stream<Item = Result<PutResult, Status>> + Send + use<>> {
    let topic = topic_of(first.flight_descriptor.as_ref())?;
    if first.data_header.is_empty() {
        return Err(Error::invalid("a put begins with a schema"));
    }
    let (results, said) = mpsc::channel(RESULTS_MAX);
    let put = Put {
        producer,
        account: Arc::default(),
        topic,
        request_bytes_max,
        incoming,
        schema: framed(first),
        dictionaries: Vec::new(),
        rows: 0,
        open: VecDeque::new(),
        done: Arc::new(Notify::new()),
        refused: None,
        is_over: false,
        results,
        unread: None,
    };
    // A schema that cannot be produced is refused before anything is sent.
    rows_of(&[&put.schema], 0, put.bytes_max())?;
    let schema = schema_of(&first.data_header).map_err(Error::invalid)?;
    append(&RecordBatch::new_empty(schema), 0, &mut Budget::new(usize::MAX), &mut Vec::new())?;
    // It goes on where nobody reads its results, and ends when the client goes.
    let task = AbortOnDropHandle::new(tokio::spawn(put.run()));
    Ok(try_unfold((said, task), |(mut said, task)| async move {
        let ended = || Err(Status::internal("the put has ended without an outcome"));
        let stored = said.recv().await.unwrap_or_else(ended)?;
        Ok(stored.map(|stored| (stored.result(), (said, task))))
    }))
}

fn topic_of(descriptor: Option<&FlightDescriptor>) -> Result<String> {
    let wanted = || Error::invalid("a put wants the path [topic] in its first message");
    let descriptor = descriptor.ok_or_else(wanted)?;
    match (descriptor.r#type(), descriptor.path.as_slice()) {
        (DescriptorType::Path, [topic]) => {
            check_topic_name(topic)?;
            Ok(topic.clone())
        }
        _ => Err(wanted()),
    }
}

/// A message as it lies in an IPC stream.
pub(super) fn framed(message: &FlightData) -> Vec<u8> {
    let padding = message.data_header.len().next_multiple_of(8) - message.data_header.len();
    let size = message.data_header.len() + padding;
    let mut framed = Vec::with_capacity(8 + size + message.data_body.len());
    framed.extend(CONTINUATION);
    // A message is limited to far less than this by the decoder.
    framed.extend(u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    framed.extend(&message.data_header);
    framed.resize(framed.len() + padding, 0);
    framed.extend(&message.data_body);
    framed
}

impl Put {
    async fn run(mut self) {
        let outcome = self.store().await;
        let unread = self.unread.take().map(|stored| Ok(Some(stored)));
        let say = async {
            for said in unread.into_iter().chain([outcome.map(|()| None)]) {
                // Who does not listen any more has gone.
                let _ = self.results.send(said).await;
            }
        };
        // A client that reads nothing before it has sent everything gets to know why the rest was not taken.
        let ignore = async { while let Some(Ok(_)) = self.incoming.next().await {} };
        tokio::join!(say, ignore);
    }

    /// Stores all that comes.
    async fn store(&mut self) -> Result<(), Status> {
        let (done, results) = (self.done.clone(), self.results.clone());
        loop {
            while let Some(stored) = self.stored()? {
                self.say(stored);
            }
            if self.is_over && self.open.is_empty() {
                return self.refused.take().map_or(Ok(()), Err);
            }
            let may_take = !self.is_over && self.open.len() < OPEN_BATCHES_MAX;
            tokio::select! {
                biased;
                () = done.notified(), if !self.open.is_empty() => {}
                Ok(place) = results.reserve(), if self.unread.is_some() => {
                    place.send(Ok(self.unread.take()));
                }
                message = self.incoming.next(), if may_take => match message {
                    Some(Ok(message)) => {
                        if let Err(error) = self.take(&message).await {
                            self.refused = Some(status(&error));
                            self.is_over = true;
                        }
                    }
                    Some(Err(error)) => {
                        let why = format!("topic '{}': {}", self.topic, error.message());
                        self.refused = Some(Status::new(error.code(), why));
                        self.is_over = true;
                    }
                    None => self.is_over = true,
                },
            }
        }
    }

    /// Hands out a result, or keeps it as long as others wait to be read.
    fn say(&mut self, stored: Stored) {
        match &mut self.unread {
            Some(unread) => unread.add(stored),
            None => match self.results.try_reserve() {
                Ok(place) => place.send(Ok(Some(stored))),
                Err(_) => self.unread = Some(stored),
            },
        }
    }

    /// What the oldest batch has become, once it is stored.
    fn stored(&mut self) -> Result<Option<Stored>, Status> {
        let Some((ticket, before)) = self.open.front() else { return Ok(None) };
        let Some(outcome) = ticket.outcome() else { return Ok(None) };
        let rows = outcome.map_err(|error| {
            let error = Error::new(error.kind(), format!("rows from {before} on: {error}"));
            status(&error)
        })?;
        let offsets = ticket.offsets();
        self.open.pop_front();
        Ok(Some(Stored { rows, offsets }))
    }

    async fn take(&mut self, message: &FlightData) -> Result<()> {
        if message.data_header.is_empty() {
            // Metadata of the client's own.
            return Ok(());
        }
        let header = root_as_message(&message.data_header)
            .map_err(|error| Error::invalid(format!("no Arrow IPC message: {error}")))?;
        if let Some(dictionary) = header.header_as_dictionary_batch() {
            return self.keep(dictionary, framed(message));
        }
        let mut stream = self.schema.clone();
        self.dictionaries.iter().for_each(|(_, pieces)| stream.extend(pieces));
        stream.extend(framed(message));
        let rows = rows_of(&[&stream], self.rows, self.bytes_max())?;
        drop(stream);
        let before = self.rows;
        self.rows += rows.len();
        let numbered = |number: usize, error: &Error| {
            Error::new(error.kind(), format!("row {}: {error}", before + number))
        };
        let ticket = Ticket::with_offsets(rows.len(), self.done.clone());
        let lane = self.checked(&rows, &numbered).await?.with_ticket(ticket.clone());
        self.open.push_back((ticket.clone(), before));
        for row in &rows {
            match retry(&self.producer, || self.producer.send(&lane, &row.borrowed())).await {
                Ok(()) => {}
                Err(error) => ticket.settle(1, Some(error)),
            }
        }
        Ok(())
    }

    /// Keeps a dictionary for the batches behind it, in the place of what it replaces or behind what it adds to.
    fn keep(&mut self, dictionary: DictionaryBatch<'_>, framed: Vec<u8>) -> Result<()> {
        let id = dictionary.id();
        match self.dictionaries.iter_mut().find(|(of, _)| *of == id) {
            Some((_, pieces)) if dictionary.isDelta() => pieces.extend(framed),
            Some((_, pieces)) => *pieces = framed,
            None => self.dictionaries.push((id, framed)),
        }
        let bytes: usize = self.dictionaries.iter().map(|(_, pieces)| pieces.len()).sum();
        if bytes > self.request_bytes_max {
            let why = format!("dictionaries of more than {} bytes", self.request_bytes_max);
            return Err(Error::invalid(why));
        }
        Ok(())
    }

    /// The way to the topic, when all rows can be sent as far as that can be told before the first one is.
    async fn checked(
        &mut self,
        rows: &[OwnedMessage],
        numbered: &(dyn Fn(usize, &Error) -> Error + Sync),
    ) -> Result<Arc<Lane>> {
        let lane = retry(&self.producer, || self.producer.lane(&self.account, &self.topic)).await?;
        for (number, row) in rows.iter().enumerate() {
            let message = row.borrowed();
            let check = || self.producer.check(&lane, message.partition, message.bytes());
            retry(&self.producer, check).await.map_err(|error| numbered(number, &error))?;
        }
        Ok(lane)
    }

    fn bytes_max(&self) -> usize {
        self.request_bytes_max.saturating_mul(STREAM_EXPANSION_MAX)
    }
}

/// Tries again whenever there may be room.
async fn retry<T>(
    producer: &Producer,
    mut attempt: impl FnMut() -> Result<T, SendError>,
) -> Result<T> {
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(SendError::Failed(error)) => return Err(error),
            Err(SendError::Wait(mark)) => producer.room(mark).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arrow::datatypes::{DataType, Field, Schema};
    use arrow_flight::SchemaAsIpc;
    use arrow_ipc::writer::IpcWriteOptions;
    use futures::stream::poll_fn;

    use super::*;
    use crate::config::KafkaOptions;
    use crate::kafka::producer::ProducerLimits;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn a_put_ends_when_its_client_goes() {
        let limits =
            ProducerLimits { connection_bytes_max: 1, topic_bytes_max: 1, message_bytes_max: 1 };
        let runtime = tokio::runtime::Handle::current();
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let producer = Producer::new(&KafkaOptions::new(), limits, runtime, metrics);
        let schema = Schema::new(vec![Field::new("payload", DataType::Utf8, true)]);
        let first = FlightData::from(SchemaAsIpc::new(&schema, &IpcWriteOptions::default()))
            .with_descriptor(FlightDescriptor::new_path(vec!["t".to_owned()]));
        let (client, mut sent) = mpsc::channel(1);
        let incoming = poll_fn(move |context| sent.poll_recv(context)).boxed();
        let results = put(Arc::new(producer), &first, incoming, 1 << 20).expect("a put");
        drop(results);
        let ended = tokio::time::timeout(Duration::from_secs(30), client.closed());
        ended.await.expect("nobody waits for more");
    }
}
