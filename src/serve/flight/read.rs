//! Reading: a plan answers every question of a request; a read follows a ticket.

use std::sync::Arc;

use arrow::array::{AsArray, Int32Array, Int64Array, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{
    DataType, Field, FieldRef, Fields, Int32Type, Int64Type, Schema, SchemaRef,
};
use arrow_flight::{FlightData, SchemaAsIpc};
use arrow_ipc::CompressionType;
use arrow_ipc::writer::IpcWriteOptions;
use bytes::Bytes;
use futures::Stream;
use futures::stream::try_unfold;
use prometheus::IntCounter;
use serde_json::{Map, Value};

use super::pieces::{BODY_BYTES_MAX, Pieces};
use super::request::{Place, ReadRequest, Ticket};
use crate::decode::envelope::{self, Layout};
use crate::decode::projection::Projection;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::topics::OffsetOf;
use crate::metrics::Metrics;
use crate::stream::cursor::Cursor;
use crate::stream::encoded::{BatchMessage, EncodedBatch};
use crate::stream::fit::Fit;
use crate::stream::streams::{Streams, united};
use crate::stream::topic_stream::StreamView;
use crate::stream::window::Positions;

/// Answers what a request leaves open.
///
/// # Errors
/// There is no such topic, or no window; no broker answers.
pub async fn plan(streams: &Arc<Streams>, request: &ReadRequest) -> Result<Vec<Ticket>> {
    let topic = &request.topic;
    // One that has ended holds nothing.
    let stream = streams.get(topic).filter(|stream| !stream.has_ended());
    let view = match &stream {
        Some(stream) => Some(stream.begun().await),
        None => None,
    };
    let from = match (&request.from, &view) {
        (Some(Place::Earliest), _) | (None, None) => {
            streams.offsets(topic, OffsetOf::Beginning).await?
        }
        (Some(Place::Window) | None, Some(view)) => view.starts.clone(),
        (Some(Place::Window), None) => {
            let missing = format!("topic '{topic}' is no stream, so it has no window");
            return Err(Error::new(ErrorKind::NotFound, missing));
        }
        (Some(place), _) => {
            let from = at(streams, topic, place).await?;
            match place {
                Place::Positions(_) => {
                    check_reached(topic, &from, &streams.offsets(topic, OffsetOf::End).await?)?;
                    from.or(&streams.offsets(topic, OffsetOf::Beginning).await?)
                }
                _ => from,
            }
        }
    };
    let to = match &request.to {
        // What is not there yet is for those who follow.
        Some(place @ Place::Positions(_)) => {
            let to = at(streams, topic, place).await?;
            Some(to.lower(&streams.offsets(topic, OffsetOf::End).await?))
        }
        Some(place) => Some(at(streams, topic, place).await?),
        None => None,
    };
    let seen = columns_seen(streams, topic, (&from, to.as_ref()), view.as_ref()).await?;
    let projection = request.projection();
    let schema = match &seen {
        Some(schema) => {
            let whole = in_layout(schema, request.layout)?;
            if let Some(unknown) = unknown(whole.fields(), &projection) {
                let why = format!("columns: topic '{topic}' has no column '{unknown}'");
                return Err(Error::invalid(why));
            }
            whole
        }
        // What columns it will have is not known yet.
        None => in_layout(&streams.unseen(topic)?, request.layout)?,
    };
    let schema = Arc::new(Schema::new(select(schema.fields(), &projection)));
    let ticket = Ticket {
        topic: topic.clone(),
        from,
        to,
        partition: None,
        columns: request.columns.clone(),
        layout: request.layout,
        limit: request.limit,
        compression: request.compression.clone(),
        schema,
    };
    if !request.split {
        return Ok(vec![ticket]);
    }
    let count = streams.offsets(topic, OffsetOf::End).await?.iter().count();
    let of = |partition| Ticket { partition: Some(partition), ..ticket.clone() };
    Ok((0..).take(count).map(of).collect())
}

/// The columns of what lies in a range, as far as that is known without reading all of it.
async fn columns_seen(
    streams: &Streams,
    topic: &str,
    (from, to): (&Positions, Option<&Positions>),
    view: Option<&StreamView>,
) -> Result<Option<SchemaRef>> {
    let window = view.and_then(|view| Some((view, view.schema.clone()?)));
    let Some((view, of_window)) = window else { return streams.sample(topic, from, to).await };
    let mut seen = None;
    // What is older than the window, and what is not in it yet, may have columns that it has not.
    if !from.covers(&view.starts) {
        seen = streams.sample(topic, from, Some(&view.starts)).await?;
    }
    let mut seen = seen.map_or(of_window.clone(), |older| united(&older, &of_window));
    if to.is_some_and(|to| !view.ends.covers(to)) {
        let newer = streams.sample(topic, &view.ends, to).await?;
        seen = newer.map_or(seen.clone(), |newer| united(&seen, &newer));
    }
    Ok(Some(seen))
}

async fn at(streams: &Streams, topic: &str, place: &Place) -> Result<Positions> {
    match place {
        Place::Earliest => streams.offsets(topic, OffsetOf::Beginning).await,
        Place::Latest => streams.offsets(topic, OffsetOf::End).await,
        Place::Time(millis) => streams.offsets(topic, OffsetOf::Time(*millis)).await,
        Place::Window => Err(Error::invalid("to: a window is where a read begins")),
        Place::Positions(positions) => {
            let ends = streams.offsets(topic, OffsetOf::End).await?;
            let (given, count) = (positions.iter().count(), ends.iter().count());
            if given > count {
                return Err(Error::invalid(format!(
                    "positions: topic '{topic}' has {count} partitions, none with the number {}",
                    given - 1
                )));
            }
            Ok(positions.clone())
        }
    }
}

/// The first of the wanted columns that is not there.
fn unknown(fields: &Fields, wanted: &Projection) -> Option<String> {
    let missing = |name: &str| {
        let (below, field) = (wanted.field(name)?, fields.find(name));
        match field.map(|(_, field)| field.data_type()) {
            _ if field.is_some() && below.is_all() => None,
            Some(DataType::Struct(fields)) => {
                unknown(fields, below).map(|rest| format!("{name}.{rest}"))
            }
            Some(_) => below.names().next().map(|rest| format!("{name}.{rest}")),
            None => Some(name.to_owned()),
        }
    };
    wanted.names().find_map(missing)
}

/// Whether a ticket is for a topic with so many partitions.
fn check_partitions(ticket: &Ticket, count: i64) -> Result<()> {
    let positions = |positions: &Positions| positions.iter().count() as i64;
    let named = [
        positions(&ticket.from),
        ticket.to.as_ref().map_or(0, positions),
        ticket.partition.map_or(0, |partition| i64::from(partition) + 1),
    ];
    match named.into_iter().max() {
        Some(most) if most > count => Err(Error::invalid(format!(
            "no ticket: topic '{}' has {count} partitions, none with the number {}",
            ticket.topic,
            most - 1
        ))),
        _ => Ok(()),
    }
}

/// Whether the topic reaches as far as `positions`.
fn check_reached(topic: &str, positions: &Positions, ends: &Positions) -> Result<()> {
    match positions.iter().find(|(partition, offset)| *offset > ends.get(*partition)) {
        None => Ok(()),
        Some((partition, offset)) => Err(Error::new(
            ErrorKind::OutOfRange,
            format!(
                "{topic}:{partition} does not have offset {offset} yet, the next one is {}",
                ends.get(partition)
            ),
        )),
    }
}

/// The columns of a read, of those that a stream has.
pub(super) fn promised(
    schema: &SchemaRef,
    layout: Layout,
    projection: &Projection,
) -> Result<SchemaRef> {
    let schema = in_layout(schema, layout)?;
    Ok(Arc::new(Schema::new(select(schema.fields(), projection))))
}

/// The columns that a stream has, in another layout.
fn in_layout(schema: &SchemaRef, layout: Layout) -> Result<SchemaRef> {
    match layout {
        Layout::Struct => Ok(schema.clone()),
        Layout::Flat => Ok(envelope::flat(&RecordBatch::new_empty(schema.clone()))?.schema()),
    }
}

fn select(fields: &Fields, projection: &Projection) -> Fields {
    let wanted = |field: &FieldRef| -> Option<FieldRef> {
        let below = projection.field(field.name())?;
        match field.data_type() {
            DataType::Struct(fields) if !below.is_all() => {
                let data_type = DataType::Struct(select(fields, below));
                let field = Field::new(field.name(), data_type, field.is_nullable());
                Some(Arc::new(field))
            }
            _ => Some(field.clone()),
        }
    };
    fields.iter().filter_map(wanted).collect()
}

/// The state of a read between two messages.
struct Read {
    cursor: Cursor,
    fit: Fit,
    /// The only partition that is wanted, and where the ticket begins: the others stay there.
    only: Option<(i32, Positions)>,
    compression: Option<CompressionType>,
    /// Counts batches as the window has them, and those that were encoded for this reader.
    shared: IntCounter,
    encoded: IntCounter,
    follows: bool,
    left: Option<u64>,
    /// What the last message said.
    said: Option<Positions>,
    /// The next message, if it is made already.
    ready: Option<FlightData>,
    /// What is not sent yet of the last batch.
    rest: Option<Rest>,
    is_over: bool,
}

/// A batch on its way, piece by piece.
struct Rest {
    pieces: Pieces,
    partitions: Int32Array,
    offsets: Int64Array,
    /// Rows that are sent, of all that there are.
    rows: usize,
    /// Where the reader is after what was sent.
    at: Positions,
    /// Where it is after the batch, if all of it is sent.
    ends: Option<Positions>,
    /// The next row does not fit.
    is_changed: bool,
}

impl Rest {
    /// The next message, where the reader is after it, and whether the next row does not fit.
    fn next(&mut self) -> Result<Option<(BatchMessage, Positions, bool)>> {
        let Some((rows, message)) = self.pieces.next()? else { return Ok(None) };
        let is_last = rows.end == self.rows;
        for row in rows {
            let is_behind = ends_record((&self.partitions, &self.offsets), row);
            let next = self.offsets.value(row) + i64::from(is_behind);
            self.at.set(self.partitions.value(row), next);
        }
        let at = self.ends.take_if(|_| is_last).unwrap_or_else(|| self.at.clone());
        Ok(Some((message, at, is_last && self.is_changed)))
    }
}

/// The messages of a read: the schema, then batches, each with the positions after it.
///
/// # Errors
/// There is nothing to follow, or no client to read with.
pub async fn read(
    streams: &Arc<Streams>,
    metrics: &Metrics,
    ticket: Ticket,
) -> Result<impl Stream<Item = Result<FlightData>> + Send + 'static> {
    let logged = streams.offsets(&ticket.topic, OffsetOf::End).await?;
    check_partitions(&ticket, logged.iter().count() as i64)?;
    // Of a topic that was made anew since, or of none.
    check_reached(&ticket.topic, &ticket.from, &logged)?;
    if let Some(to) = &ticket.to {
        check_reached(&ticket.topic, to, &logged)?;
    }
    let follows = ticket.to.is_none();
    let (mut from, to) = (ticket.from.clone(), ticket.to.clone());
    if let Some(partition) = ticket.partition {
        // The others are read from where they end.
        let ends = to.as_ref().unwrap_or(&logged);
        for (other, end) in ends.iter().filter(|(other, _)| *other != partition) {
            from.set(other, end);
        }
    }
    let cursor = match to {
        Some(to) => streams.cursor(&ticket.topic, from, to)?,
        None => streams.follow(&ticket.topic, from).await?,
    };
    let schema = schema_message(&ticket.schema);
    let fit = Fit::new(ticket.schema.clone(), ticket.layout, ticket.projection());
    let read = Read {
        cursor,
        fit,
        only: ticket.partition.map(|partition| (partition, ticket.from.clone())),
        compression: ticket.compression(),
        shared: metrics.flight_batches.with_label_values(&["shared"]),
        encoded: metrics.flight_batches.with_label_values(&["encoded"]),
        follows,
        left: ticket.limit,
        said: None,
        ready: Some(schema),
        rest: None,
        is_over: false,
    };
    Ok(try_unfold(read, |mut read| async move {
        let message = read.next().await?;
        Ok(message.map(|message| (message, read)))
    }))
}

impl Read {
    async fn next(&mut self) -> Result<Option<FlightData>> {
        loop {
            if let Some(message) = self.ready.take() {
                return Ok(Some(message));
            }
            if let Some(rest) = &mut self.rest {
                if let Some((message, at, is_changed)) = rest.next()? {
                    self.encoded.inc();
                    return Ok(Some(self.message(message, at, is_changed)));
                }
                self.rest = None;
            }
            if self.is_over {
                return Ok(None);
            }
            if self.left == Some(0) {
                self.is_over = true;
                if self.said.is_none() {
                    let ends = self.cursor.positions().clone();
                    self.push_empty(ends)?;
                }
                continue;
            }
            let before = self.cursor.positions().clone();
            match self.cursor.next().await? {
                Some(batch) => self.take(&batch, before)?,
                None => {
                    self.is_over = true;
                    // What lies behind the last record is done with as well.
                    let ends = self.cursor.positions().clone();
                    if self.said.as_ref() != Some(&self.done(&ends)) {
                        self.push_empty(ends)?;
                    }
                }
            }
        }
    }

    /// A message without rows, for its positions.
    fn push_empty(&mut self, ends: Positions) -> Result<()> {
        let empty = RecordBatch::new_empty(self.fit.schema().clone());
        let message = BatchMessage::new(&empty, self.compression)?;
        self.ready = Some(self.message(message, ends, false));
        Ok(())
    }

    /// Takes what fits of a batch; `before` is where the cursor was before it.
    fn take(&mut self, batch: &Arc<EncodedBatch>, before: Positions) -> Result<()> {
        let part = self.part_of(batch)?;
        if part.as_ref().is_some_and(|part| part.num_rows() == 0) {
            return Ok(());
        }
        let source = part.as_ref().unwrap_or(&batch.batch);
        let fitted = self.fit.apply(source)?;
        let (partitions, offsets) = places(source)?;
        let mut rows = source.num_rows();
        let mut is_changed = false;
        if let Some(misfit) = fitted.first_misfit.filter(|_| self.follows) {
            (rows, is_changed) = (begin_of_record((partitions, offsets), misfit), true);
        }
        if let Some(left) = &mut self.left {
            if let Ok(max) = usize::try_from(*left)
                && max < rows
            {
                (rows, is_changed) = (max, false);
            }
            *left = left.saturating_sub(rows as u64);
        }
        let is_whole = rows == source.num_rows();
        if is_whole
            && part.is_none()
            && self.compression.is_none()
            && batch.batch.schema_ref() == self.fit.schema()
            && batch.body.len() <= BODY_BYTES_MAX
        {
            let counter = if self.cursor.is_shared() { &self.shared } else { &self.encoded };
            counter.inc();
            let (header, body) = (batch.header.clone(), batch.body.clone());
            let message = self.message(BatchMessage { header, body }, batch.ends.clone(), false);
            self.ready = Some(message);
            return Ok(());
        }
        self.rest = Some(Rest {
            pieces: Pieces::new(fitted.batch, rows, self.compression),
            partitions: partitions.clone(),
            offsets: offsets.clone(),
            rows,
            at: before,
            ends: is_whole.then(|| batch.ends.clone()),
            is_changed,
        });
        self.is_over |= is_changed;
        Ok(())
    }

    /// The rows of the only partition that is wanted; `None`, if all of them are.
    fn part_of(&self, batch: &EncodedBatch) -> Result<Option<RecordBatch>> {
        let Some((partition, _)) = self.only else { return Ok(None) };
        let (partitions, _) = places(&batch.batch)?;
        let wanted = partitions.iter().map(|of| Some(of == Some(partition))).collect();
        let part = filter_record_batch(&batch.batch, &wanted);
        part.map(Some).map_err(|error| Error::internal(error.to_string()))
    }

    /// What this reader has, where the cursor is at `ends`.
    fn done(&self, ends: &Positions) -> Positions {
        let Some((partition, from)) = &self.only else { return ends.clone() };
        let mut done = from.clone();
        done.set(*partition, ends.get(*partition));
        done
    }

    fn message(&mut self, batch: BatchMessage, ends: Positions, is_changed: bool) -> FlightData {
        let ends = self.done(&ends);
        let mut said = Map::from_iter([("positions".to_owned(), ends.to_json())]);
        if is_changed {
            said.insert(SCHEMA_CHANGED.to_owned(), Value::Bool(true));
        }
        self.said = Some(ends);
        message(batch, said)
    }
}

/// Says that rows follow which do not fit the columns that were promised.
pub(super) const SCHEMA_CHANGED: &str = "schema_changed";

/// A message of a batch and what is said beside it.
pub(super) fn message(batch: BatchMessage, said: Map<String, Value>) -> FlightData {
    FlightData {
        flight_descriptor: None,
        data_header: batch.header,
        app_metadata: Bytes::from(Value::Object(said).to_string()),
        data_body: batch.body,
    }
}

/// The first message of a stream.
pub(super) fn schema_message(schema: &Schema) -> FlightData {
    FlightData::from(SchemaAsIpc::new(schema, &IpcWriteOptions::default()))
}

pub(super) type Places<'a> = (&'a Int32Array, &'a Int64Array);

/// Partition and offset of each row, in the struct layout.
pub(super) fn places(batch: &RecordBatch) -> Result<Places<'_>> {
    let malformed = || Error::internal("a batch without partitions and offsets");
    let column = |name: &str| batch.column_by_name(name).ok_or_else(malformed);
    let partitions = column("partition")?.as_primitive_opt::<Int32Type>();
    let offsets = column("offset")?.as_primitive_opt::<Int64Type>();
    partitions.zip(offsets).ok_or_else(malformed)
}

/// Whether a row is the last one of its record, which may be several. A reader is before all of them or behind.
pub(super) fn ends_record((partitions, offsets): Places<'_>, row: usize) -> bool {
    let place = |row| (partitions.value(row), offsets.value(row));
    row + 1 == offsets.len() || place(row) != place(row + 1)
}

/// The first row of the record that a row belongs to.
pub(super) fn begin_of_record(places: Places<'_>, row: usize) -> usize {
    (0..row).rev().find(|before| ends_record(places, *before)).map_or(0, |before| before + 1)
}
