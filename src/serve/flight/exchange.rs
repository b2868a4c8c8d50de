//! DoExchange: a consumer session. Batches come down with the acks that cover them, acks go up.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_flight::{FlightData, FlightDescriptor};
use bytes::Bytes;
use futures::stream::{Stream, StreamExt, try_unfold};
use futures::{FutureExt, future::BoxFuture};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::pieces::Pieces;
use super::put::Incoming;
use super::read::{
    SCHEMA_CHANGED, begin_of_record, ends_record, message, places, promised, schema_message,
};
use super::request::not;
use super::service::Parts;
use super::status::status;
use crate::config::formats::Format;
use crate::decode::envelope::Layout;
use crate::decode::projection::Projection;
use crate::error::{Error, Result};
use crate::stream::acks::{Ack, parse_acks};
use crate::stream::batch::{BatchOptions, acks_text};
use crate::stream::drain::{Batch, Drain, Drained};
use crate::stream::encoded::BatchMessage;
use crate::stream::fit::Fit;
use crate::stream::registry::Lease;
use crate::stream::session::{Pop, SessionName};

/// Metadata of a client whose answers wait for the first batch; beyond this it is not read before.
const UNANSWERED_BYTES_MAX: usize = 64 << 10;

/// What a consumer asks for, in the command of its descriptor.
struct ExchangeRequest {
    name: SessionName,
    topics: Vec<Arc<str>>,
    /// Options of a subscription, as the JSON behind the key of a pop has them.
    options: Map<String, Value>,
}

impl ExchangeRequest {
    fn parse(descriptor: Option<&FlightDescriptor>) -> Result<Self> {
        let command = descriptor.map(|descriptor| &descriptor.cmd);
        let command = command.filter(|command| !command.is_empty()).ok_or_else(|| {
            Error::invalid("an exchange wants a command: {\"group\", \"name\", \"topics\"}")
        })?;
        let mut fields: Map<String, Value> = serde_json::from_slice(command)
            .map_err(|error| Error::invalid(format!("command: {error}")))?;
        let mut text = |name: &str| match fields.remove(name) {
            Some(Value::String(text)) if !text.is_empty() => Ok(text),
            Some(value) => Err(not(name, &value, "a text")),
            None => Err(Error::invalid(format!("{name} is missing"))),
        };
        let (group, name) = (text("group")?, text("name")?);
        if group.contains(':') {
            return Err(Error::invalid(format!("group: '{group}' has a colon")));
        }
        let name = SessionName::parse(&format!("{group}:{name}"))?;
        let topics = fields.remove("topics").unwrap_or_default();
        let topics: Option<Vec<Arc<str>>> = topics
            .as_array()
            .and_then(|topics| topics.iter().map(|topic| topic.as_str().map(Arc::from)).collect());
        let topics = topics.filter(|topics| !topics.is_empty());
        let topics = topics.ok_or_else(|| Error::invalid("topics: a list of names is wanted"))?;
        let mut seen = HashSet::new();
        if let Some(twice) = topics.iter().find(|topic| !seen.insert(*topic)) {
            return Err(Error::invalid(format!("topics: '{twice}' is there twice")));
        }
        let options = match fields.remove("options") {
            None => Map::new(),
            Some(Value::Object(options)) => options,
            Some(value) => return Err(not("options", &value, "an object")),
        };
        if let Some(unknown) = fields.keys().next() {
            return Err(Error::invalid(format!("{unknown}: no such field of an exchange")));
        }
        Ok(Self { name, topics, options })
    }
}

/// The state of an exchange between two messages.
struct Exchange {
    lease: Lease,
    drain: Drain,
    layout: Layout,
    projection: Projection,
    incoming: Incoming,
    stop: CancellationToken,
    /// Known from the first batch on.
    fit: Option<Fit>,
    ready: VecDeque<FlightData>,
    /// They have the first batch's columns, as all messages have.
    answers: Vec<Map<String, Value>>,
    /// Bytes of what they answer.
    unanswered_bytes: usize,
    is_over: bool,
}

/// What may come while nothing is ready.
enum Came {
    Message(Option<Result<FlightData, Status>>),
    /// The session may have something new to say.
    News,
    Stop,
}

/// Consumes as the command of `first` says.
///
/// # Errors
/// The command is wrong, or the name is taken.
pub fn exchange(
    parts: &Parts,
    first: &FlightData,
    incoming: Incoming,
) -> Result<impl Stream<Item = Result<FlightData, Status>> + Send + use<>> {
    let ExchangeRequest { name, topics, mut options } =
        ExchangeRequest::parse(first.flight_descriptor.as_ref())?;
    let asked = parts.batches.clone().with(&mut options)?;
    let (layout, projection) = (asked.layout, asked.projection.clone());
    // One stream has one schema, and topics have each their own.
    let format = if topics.len() > 1 { Some(Format::Raw) } else { asked.format };
    // What a reader wants of a batch is taken out of it when it has been compared with what it was promised.
    let whole =
        BatchOptions { layout: Layout::Struct, projection: Projection::All, format, ..asked };
    let runtime = tokio::runtime::Handle::current();
    let lease = parts.registry.claim(name, topics, &options, runtime)?;
    let (formats, producer) = (parts.formats.clone(), parts.producer.clone());
    let drain = Drain::new(formats, whole, producer, parts.metrics.clone());
    let exchange = Exchange {
        lease,
        drain,
        layout,
        projection,
        incoming,
        stop: parts.stop.clone(),
        fit: None,
        ready: VecDeque::new(),
        answers: Vec::new(),
        unanswered_bytes: 0,
        is_over: false,
    };
    Ok(try_unfold(exchange, |mut exchange| async move {
        let message = exchange.next().await?;
        Ok(message.map(|message| (message, exchange)))
    }))
}

impl Exchange {
    async fn next(&mut self) -> Result<Option<FlightData>, Status> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(Some(message));
            }
            // Acks first, so that a client which is always behind gets its answers.
            while !self.is_over
                && self.has_room()
                && let Some(message) = self.incoming.next().now_or_never()
            {
                self.take(message)?;
            }
            if !self.ready.is_empty() {
                continue;
            }
            if self.is_over || self.stop.is_cancelled() {
                return Ok(None);
            }
            let session = self.lease.session().clone();
            let drained = self.drain.next(&session, false).map_err(|error| status(&error))?;
            let wait: BoxFuture<'static, ()> = match drained {
                Drained::Batch(batch) => {
                    self.hand_out(batch).map_err(|error| status(&error))?;
                    continue;
                }
                Drained::Nothing(Pop::Closed) => return Ok(None),
                Drained::Nothing(Pop::Refused(error)) => return Err(status(&error)),
                Drained::Nothing(pop) => {
                    if matches!(pop, Pop::Dormant) {
                        self.lease.join();
                    }
                    Box::pin(async move { session.wait().await })
                }
                Drained::Filling(until) => Box::pin(async move {
                    let _ = tokio::time::timeout_at(until.into(), session.wait()).await;
                }),
                Drained::Unfetched(change) | Drained::Storing(change) => change,
            };
            let came = tokio::select! {
                () = self.stop.cancelled() => Came::Stop,
                message = self.incoming.next(), if self.has_room() => Came::Message(message),
                () = wait => Came::News,
            };
            match came {
                Came::Message(message) => self.take(message)?,
                Came::News => {}
                Came::Stop => return Ok(None),
            }
        }
    }

    /// A message of the client: acks, as text beside or instead of a batch.
    fn take(&mut self, came: Option<Result<FlightData, Status>>) -> Result<(), Status> {
        let Some(came) = came.transpose()? else {
            // It has no more to say, so it is done consuming.
            self.is_over = true;
            return Ok(());
        };
        if came.app_metadata.is_empty() {
            return Ok(());
        }
        self.unanswered_bytes += came.app_metadata.len();
        self.answers.push(match self.ack(&came.app_metadata) {
            Ok(count) => Map::from_iter([("acked".to_owned(), json!(count))]),
            Err(error) => Map::from_iter([("error".to_owned(), json!(error.message()))]),
        });
        self.answer().map_err(|error| status(&error))
    }

    /// Whether there is room for an answer.
    fn has_room(&self) -> bool {
        self.ready.is_empty() && self.unanswered_bytes < UNANSWERED_BYTES_MAX
    }

    /// Makes messages of the answers, as soon as that can be done.
    fn answer(&mut self) -> Result<()> {
        let Some(fit) = &self.fit else { return Ok(()) };
        for said in self.answers.drain(..) {
            let empty = RecordBatch::new_empty(fit.schema().clone());
            self.ready.push_back(message(BatchMessage::new(&empty, None)?, said));
        }
        self.unanswered_bytes = 0;
        Ok(())
    }

    fn ack(&self, text: &Bytes) -> Result<usize> {
        if *text == "last" {
            // RPUSH acks has it. Here what was sent may be unread, and an ack covers everything before it.
            return Err(Error::invalid(
                "last: an exchange takes the acks that came with a message",
            ));
        }
        self.lease.session().ack(&parse_acks([&**text].into_iter())?)
    }

    /// Makes messages of a batch, each with the acks that cover it.
    fn hand_out(&mut self, batch: Batch) -> Result<()> {
        let Batch { topic, rows, .. } = batch;
        if self.fit.is_none() {
            let schema = promised(&rows.schema(), self.layout, &self.projection)?;
            self.ready.push_back(schema_message(&schema));
            self.fit = Some(Fit::new(schema, self.layout, self.projection.clone()));
            self.answer()?;
        }
        let Some(fit) = &self.fit else { return Ok(()) };
        let fitted = fit.apply(&rows)?;
        let (partitions, offsets) = places(&rows)?;
        let places = (partitions, offsets);
        // What does not fit comes again, as a whole record.
        let fitting = match fitted.first_misfit {
            Some(misfit) => begin_of_record(places, misfit),
            None => rows.num_rows(),
        };
        let mut pieces = Pieces::new(fitted.batch, fitting, self.drain.options().compression);
        while let Some((sent, part)) = pieces.next()? {
            let is_last = sent.end == fitting;
            let mut covered: Vec<Ack> = Vec::new();
            // The ack of a record is with its last row.
            for row in sent.filter(|row| ends_record(places, *row)) {
                let (partition, offset) = (partitions.value(row), offsets.value(row));
                match covered.last_mut().filter(|ack| ack.partition == partition) {
                    Some(ack) => ack.offset = offset,
                    None => covered.push(Ack { topic: topic.to_string(), partition, offset }),
                }
            }
            let mut said = Map::from_iter([("acks".to_owned(), json!(acks_text(&covered)))]);
            if is_last && fitted.first_misfit.is_some() {
                said.insert(SCHEMA_CHANGED.to_owned(), Value::Bool(true));
            }
            self.ready.push_back(message(part, said));
        }
        self.is_over |= fitted.first_misfit.is_some();
        Ok(())
    }
}
