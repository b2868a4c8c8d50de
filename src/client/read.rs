//! [`Read`]: a read over all that may happen to it. What is lost with a connection is read again, from where the last
//! message ended; so nothing is missed and nothing comes twice.

use std::collections::VecDeque;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_flight::{FlightDescriptor, FlightInfo, Ticket};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tonic::Status;

use super::connection::{Server, is_lost, reason};
use super::{Failure, note};
use crate::serve::flight::request::{Place, ReadRequest, rest_of, said};
use crate::stream::window::Positions;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Attempts without a row between them, before a read that has an end is given up: within half a minute.
const ATTEMPTS_MAX: u32 = 8;

/// Plans in a row without a row between them. A topic whose columns change that often is one that the server cannot read.
const PLANS_MAX: usize = 20;

/// What comes next.
#[derive(Debug)]
pub enum Event {
    /// Rows.
    Rows(RecordBatch),
    /// Rows of these columns follow.
    Columns(SchemaRef),
}

/// See the top of this file.
pub struct Read {
    server: Server,
    request: ReadRequest,
    /// Those that were not begun.
    tickets: VecDeque<Bytes>,
    /// The one that is read.
    ticket: Option<Bytes>,
    stream: Option<FlightDataDecoder>,
    schema: SchemaRef,
    /// After the last message.
    positions: Option<Positions>,
    /// Rows that may still come.
    left: Option<u64>,
    /// The columns change behind the last message.
    is_changed: bool,
    /// Plans since the last row.
    plans: usize,
    /// Attempts since the last rows.
    attempts: u32,
    /// The user was told that the connection is lost.
    is_lost: bool,
}

impl Read {
    /// Asks for a plan.
    ///
    /// # Errors
    /// As the server has it.
    pub async fn plan(server: Server, request: ReadRequest) -> Result<Self, Failure> {
        let info = plan(&server, &request).await.map_err(|status| server.failure(&status))?;
        let (schema, tickets) = parts(&server, &info)?;
        let left = request.limit;
        Ok(Self {
            server,
            request,
            tickets,
            ticket: None,
            stream: None,
            schema,
            positions: None,
            left,
            is_changed: false,
            plans: 0,
            attempts: 0,
            is_lost: false,
        })
    }

    /// The columns that come first.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Where it is, once a message has come.
    pub fn positions(&self) -> Option<&Positions> {
        self.positions.as_ref()
    }

    /// The first ticket.
    pub fn first_ticket(&self) -> Option<&[u8]> {
        self.tickets.front().map(AsRef::as_ref)
    }

    fn follows(&self) -> bool {
        self.request.to.is_none()
    }

    /// What comes next; `None` at the end.
    ///
    /// # Errors
    /// As the server has it. A lost connection is none: a follow has patience for ever, a read that has an end for a while.
    pub async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            let Some(stream) = &mut self.stream else {
                if !self.begin().await? {
                    return Ok(None);
                }
                continue;
            };
            let message = match stream.next().await {
                Some(Ok(message)) => message,
                Some(Err(FlightError::Tonic(status))) => {
                    self.lost(&status).await?;
                    continue;
                }
                Some(Err(error)) => {
                    let topic = &self.request.topic;
                    return Err(Failure::failed(format!("{topic}: {error}")));
                }
                None => {
                    self.stream = None;
                    if !self.follows() {
                        self.ticket = None;
                    } else if !self.is_changed && self.left != Some(0) {
                        self.lost(&Status::unavailable("it has ended the read")).await?;
                    }
                    continue;
                }
            };
            if std::mem::take(&mut self.is_lost) {
                note(&format!("{}: goes on with {}", self.server.address(), self.request.topic));
            }
            if !message.inner.app_metadata.is_empty() {
                let (positions, is_changed) = said(&message.inner.app_metadata)
                    .map_err(|error| Failure::failed(error.to_string()))?;
                (self.positions, self.is_changed) = (Some(positions), is_changed);
            }
            match message.payload {
                DecodedPayload::Schema(schema) if schema != self.schema => {
                    self.schema = schema.clone();
                    return Ok(Some(Event::Columns(schema)));
                }
                DecodedPayload::RecordBatch(batch) => {
                    let rows = batch.num_rows() as u64;
                    self.left = self.left.map(|left| left.saturating_sub(rows));
                    self.attempts = 0;
                    if rows > 0 {
                        self.plans = 0;
                    }
                    return Ok(Some(Event::Rows(batch)));
                }
                _ => {}
            }
        }
    }

    /// Begins the next stream; `false` when there is none.
    async fn begin(&mut self) -> Result<bool, Failure> {
        if self.left == Some(0) {
            return Ok(false);
        }
        if self.is_changed {
            return self.plan_anew().await.map(|()| true);
        }
        // One that was lost goes on first.
        let begun = self.ticket.take();
        let goes_on = self.follows() || begun.is_some();
        let Some(ticket) = begun.or_else(|| self.tickets.pop_front()) else {
            return Ok(false);
        };
        let rest = match &self.positions {
            Some(positions) if goes_on => rest_of(&ticket, positions, self.left)
                .map(Bytes::from)
                .map_err(|error| Failure::failed(error.to_string()))?,
            _ => ticket.clone(),
        };
        self.ticket = Some(ticket);
        match self.server.client().do_get(Ticket { ticket: rest }).await {
            Ok(answer) => {
                let messages = answer.into_inner().map_err(FlightError::from);
                self.stream = Some(FlightDataDecoder::new(messages));
            }
            Err(status) => self.lost(&status).await?,
        }
        Ok(true)
    }

    /// The columns have changed, so the rest is another read.
    async fn plan_anew(&mut self) -> Result<(), Failure> {
        self.plans += 1;
        let topic = &self.request.topic;
        if self.plans > PLANS_MAX {
            return Err(Failure::failed(format!("{topic}: its columns change without end")));
        }
        let mut request = ReadRequest { limit: self.left, ..self.request.clone() };
        if let Some(positions) = &self.positions {
            request.from = Some(Place::Positions(positions.clone()));
        }
        match plan(&self.server, &request).await {
            Ok(info) => {
                let (_, tickets) = parts(&self.server, &info)?;
                (self.tickets, self.ticket, self.is_changed) = (tickets, None, false);
                Ok(())
            }
            Err(status) => self.lost(&status).await,
        }
    }

    /// Waits before the next attempt.
    async fn lost(&mut self, status: &Status) -> Result<(), Failure> {
        self.stream = None;
        let has_begun = self.positions.is_some() && self.attempts < ATTEMPTS_MAX;
        if !is_lost(status) || !(self.follows() || has_begun) {
            return Err(self.server.failure(status));
        }
        let topic = &self.request.topic;
        if !std::mem::replace(&mut self.is_lost, true) {
            let (address, why) = (self.server.address(), reason(status));
            note(&format!("{address}: lost {topic}: {why}; trying again"));
        }
        let wait = BACKOFF_MIN.saturating_mul(1 << self.attempts.min(10)).min(BACKOFF_MAX);
        self.attempts += 1;
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Asks for a plan.
pub async fn plan(server: &Server, request: &ReadRequest) -> Result<FlightInfo, Status> {
    let descriptor = FlightDescriptor::new_cmd(request.encode());
    Ok(server.client().get_flight_info(descriptor).await?.into_inner())
}

fn parts(server: &Server, info: &FlightInfo) -> Result<(SchemaRef, VecDeque<Bytes>), Failure> {
    let schema = schema_of(server, info)?;
    let tickets = info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref());
    Ok((schema, tickets.map(|ticket| ticket.ticket.clone()).collect()))
}

/// The columns of a plan.
pub fn schema_of(server: &Server, info: &FlightInfo) -> Result<SchemaRef, Failure> {
    let schema = info.clone().try_decode_schema();
    schema
        .map(Into::into)
        .map_err(|error| Failure::failed(format!("{}: its schema: {error}", server.address())))
}
