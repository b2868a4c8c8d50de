//! DoPut: the rows of record batches as messages of a topic, by the rules of `RPUSH arrow:`.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::{FlightData, FlightDescriptor, PutResult};
use arrow_ipc::{MessageHeader, root_as_message};
use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt, try_unfold};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tonic::Status;

use super::request::schema_of;
use super::status::status;
use crate::decode::rows::{Budget, STREAM_EXPANSION_MAX, append, rows_of};
use crate::error::{Error, Result};
use crate::kafka::producer::{
    Account, Lane, OwnedMessage, Producer, SendError, Ticket, check_topic_name,
};

/// Batches that are sent and not stored yet. The producer's caps bound their bytes.
const OPEN_BATCHES_MAX: usize = 64;

/// Every message begins so in an IPC stream.
const CONTINUATION: [u8; 4] = [0xFF; 4];

/// What a client sends.
pub type Incoming = BoxStream<'static, Result<FlightData, Status>>;

/// The state of a put between two results.
struct Put {
    producer: Arc<Producer>,
    account: Arc<Account>,
    topic: String,
    request_bytes_max: usize,
    incoming: Incoming,
    /// Schema and dictionaries, as they begin an IPC stream.
    prefix: Vec<u8>,
    /// Rows so far, so that errors name rows as the client counts them.
    rows: usize,
    open: VecDeque<(Arc<Ticket>, usize)>,
    done: Arc<Notify>,
    /// Why no more is taken; said when all that was sent is settled.
    refused: Option<Status>,
    is_over: bool,
}

/// Stores what comes by `incoming`, whose first message is `first`; a result for each batch, when all of it is stored.
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
    let put = Put {
        producer,
        account: Arc::default(),
        topic,
        request_bytes_max,
        incoming,
        prefix: framed(first),
        rows: 0,
        open: VecDeque::new(),
        done: Arc::new(Notify::new()),
        refused: None,
        is_over: false,
    };
    // A schema that cannot be produced is refused before anything is sent.
    rows_of(&[&put.prefix], 0, put.bytes_max())?;
    let schema = schema_of(&first.data_header).map_err(Error::invalid)?;
    append(&RecordBatch::new_empty(schema), 0, &mut Budget::new(usize::MAX), &mut Vec::new())?;
    Ok(try_unfold(put, |mut put| async move {
        let result = put.next().await?;
        Ok(result.map(|result| (result, put)))
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
fn framed(message: &FlightData) -> Vec<u8> {
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
    async fn next(&mut self) -> Result<Option<PutResult>, Status> {
        loop {
            if let Some(result) = self.stored()? {
                return Ok(Some(result));
            }
            if self.is_over || self.open.len() >= OPEN_BATCHES_MAX {
                if self.open.is_empty() {
                    return self.refused.take().map_or(Ok(None), Err);
                }
                self.done.notified().await;
                continue;
            }
            let done = self.done.clone();
            tokio::select! {
                biased;
                () = done.notified(), if !self.open.is_empty() => {}
                message = self.incoming.next() => match message {
                    Some(Ok(message)) => {
                        if let Err(error) = self.take(&message).await {
                            self.refused = Some(status(&error));
                            self.is_over = true;
                        }
                    }
                    Some(Err(error)) => {
                        self.refused = Some(error);
                        self.is_over = true;
                    }
                    None => self.is_over = true,
                },
            }
        }
    }

    /// The result of the oldest batch, once it is stored.
    fn stored(&mut self) -> Result<Option<PutResult>, Status> {
        let Some((ticket, before)) = self.open.front() else { return Ok(None) };
        let Some(outcome) = ticket.outcome() else { return Ok(None) };
        let stored = outcome.map_err(|error| {
            let error = Error::new(error.kind(), format!("rows from {before} on: {error}"));
            status(&error)
        })?;
        let offsets: Map<String, Value> = ticket
            .offsets()
            .into_iter()
            .map(|(partition, (first, last))| (partition.to_string(), json!([first, last])))
            .collect();
        self.open.pop_front();
        // There may be another one.
        self.done.notify_one();
        let said = json!({"rows": stored, "offsets": offsets});
        Ok(Some(PutResult { app_metadata: Bytes::from(said.to_string()) }))
    }

    async fn take(&mut self, message: &FlightData) -> Result<()> {
        if message.data_header.is_empty() {
            // Metadata of the client's own.
            return Ok(());
        }
        let header = root_as_message(&message.data_header)
            .map_err(|error| Error::invalid(format!("no Arrow IPC message: {error}")))?
            .header_type();
        if header == MessageHeader::DictionaryBatch {
            if self.prefix.len() + message.data_body.len() > self.request_bytes_max {
                let why = format!("dictionaries of more than {} bytes", self.request_bytes_max);
                return Err(Error::invalid(why));
            }
            self.prefix.extend(framed(message));
            return Ok(());
        }
        let mut stream = self.prefix.clone();
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
        if rows.is_empty() {
            self.done.notify_one();
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
