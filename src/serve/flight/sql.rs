//! Flight SQL beside Flight: statements that read, prepared ones with parameters, and what there is to be read.
//!
//! Its commands are protobuf messages where Flight has opaque bytes, so that both fit behind one port. Columns come from
//! one place, [`Sql::statement`], and every batch is brought into them.

mod catalog;
mod info;
pub mod named;
mod prepared;
mod question;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, Any, Command, DoPutPreparedStatementResult,
    ProstMessageExt, TicketStatementQuery,
};
use arrow_flight::{
    Action, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, IpcMessage, PutResult,
    SchemaAsIpc, Ticket,
};
use arrow_ipc::writer::IpcWriteOptions;
use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt, TryStreamExt, iter, once, try_unfold};
use prost::Message;

use super::pieces::Pieces;
use super::put::Incoming;
use super::read::schema_message;
use crate::error::{Error, Result};
use crate::sql::duck::Parameter;
use crate::sql::engine::{Described, Engine, Parameters};
use crate::sql::queries::{Held, Queries, Values, is_too_large};
use named::Asked;
use prepared::{Prepared, Statements, row_of};
use question::{Promise, Question};

const CREATE: &str = "CreatePreparedStatement";
const CLOSE: &str = "ClosePreparedStatement";

/// The actions of Flight SQL, and what they do.
pub const ACTIONS: [(&str, &str); 2] = [
    (
        CREATE,
        "Flight SQL: body: ActionCreatePreparedStatementRequest; answers its columns and parameters",
    ),
    (CLOSE, "Flight SQL: body: ActionClosePreparedStatementRequest"),
];

/// What all messages of Flight SQL are called by.
const TYPE_URL: &str = "type.googleapis.com/arrow.flight.protocol.sql.";

const READ_ONLY: &str = "karrow's SQL is read-only: rows come from Kafka, where RPUSH and DoPut \
    put them";

const NO_TRANSACTIONS: &str =
    "karrow's SQL is read-only and has no transactions: leave autocommit on";

const NO_SUBSTRAIT: &str = "karrow takes statements in SQL, no Substrait plans";

/// Messages on their way to a client.
pub type Messages = BoxStream<'static, Result<FlightData>>;

/// See the top of this file.
pub struct Sql {
    queries: Arc<Queries>,
    engine: Arc<Engine>,
    statements: Statements,
}

/// The command of Flight SQL that `bytes` are, if they are one.
///
/// # Errors
/// They are a damaged one, or one that nobody knows.
pub fn command(bytes: &[u8]) -> Result<Option<Command>> {
    // Whatever else a client may send there is JSON, which is no protobuf message.
    let Some(any) = Any::decode(bytes).ok().filter(|any| any.type_url.starts_with(TYPE_URL)) else {
        return Ok(None);
    };
    let name = any.type_url.trim_start_matches(TYPE_URL).to_owned();
    match Command::try_from(any) {
        Ok(Command::Unknown(_)) => Err(Error::invalid(format!("Flight SQL has no {name}"))),
        Ok(command) => Ok(Some(command)),
        Err(error) => Err(Error::invalid(format!("{name}: {error}"))),
    }
}

impl Sql {
    /// Asks the engine of `queries`.
    pub fn new(queries: Arc<Queries>) -> Self {
        let engine = queries.engine().clone();
        Self { queries, engine, statements: Statements::new() }
    }

    /// How to get the answer of a query with a name.
    ///
    /// # Errors
    /// There is none, or its parameters are others.
    pub async fn named(&self, descriptor: FlightDescriptor, asked: Asked) -> Result<FlightInfo> {
        let sql = self.queries.statement(&asked.name)?.to_owned();
        let row = asked.row.as_ref().map(prepared::encoded).transpose()?;
        let question = self.statement(sql, row).await?;
        let question = Question { name: Some(asked.name), ..question };
        info_of(descriptor, &question.schema, ticket_of(&question))
    }

    /// How to get what a command asks for.
    ///
    /// # Errors
    /// The statement is none that reads; there is no such prepared one; or the command asks for a change.
    pub async fn info(&self, descriptor: FlightDescriptor, command: Command) -> Result<FlightInfo> {
        let (schema, ticket) = match command {
            Command::CommandStatementQuery(query) => {
                let question = self.statement(query.query, None).await?;
                (question.schema.clone(), ticket_of(&question))
            }
            Command::CommandPreparedStatementQuery(query) => {
                let prepared = self.statements.get(&query.prepared_statement_handle)?;
                let question = self.statement(prepared.sql.clone(), prepared.row.clone()).await?;
                (question.schema.clone(), ticket_of(&question))
            }
            command => (catalog::schema(&command)?, command.into_any().encode_to_vec()),
        };
        info_of(descriptor, &schema, ticket)
    }

    /// The columns of what a command asks for.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn schema(&self, command: Command) -> Result<SchemaRef> {
        match command {
            Command::CommandStatementQuery(query) => {
                Ok(self.statement(query.query, None).await?.schema)
            }
            Command::CommandPreparedStatementQuery(query) => {
                let prepared = self.statements.get(&query.prepared_statement_handle)?;
                match &prepared.row {
                    None if !prepared.parameters.is_empty() => {
                        Ok(self.described(prepared.sql.clone()).await?.1)
                    }
                    row => Ok(self.statement(prepared.sql.clone(), row.clone()).await?.schema),
                }
            }
            command => catalog::schema(&command),
        }
    }

    /// A statement with its parameters, and the columns that it has now.
    async fn statement(&self, sql: String, row: Option<Bytes>) -> Result<Question> {
        prepared::check_length(&sql)?;
        let parameters = row.as_deref().map_or(Ok(Parameters::None), question::parameters_of)?;
        let schema = self.engine.columns(sql.clone(), parameters).await?;
        Ok(Question { sql, name: None, row, schema })
    }

    /// The rows that a ticket stands for.
    ///
    /// # Errors
    /// It is no ticket of ours; or as [`Engine::query`].
    pub async fn rows(&self, ticket: Command) -> Result<Messages> {
        match ticket {
            Command::TicketStatementQuery(ticket) => {
                let question = Question::parse(&ticket.statement_handle)?;
                let parameters = question
                    .row
                    .as_deref()
                    .map_or(Ok(Parameters::None), question::parameters_of)?;
                let promise = Promise::new(question.schema);
                if let Some(name) = &question.name
                    && let Some(held) = self.held(name, &question.sql, &parameters).await?
                {
                    let batches: Vec<_> = held.batches.iter().cloned().map(Ok).collect();
                    return Ok(streamed(iter(batches), promise));
                }
                let answer = self.engine.query(question.sql, parameters).await?;
                Ok(streamed(answer.into_stream(), promise))
            }
            command => {
                let batch = catalog::rows(&self.engine, command).await?;
                let schema = once(std::future::ready(Ok(schema_message(batch.schema_ref()))));
                Ok(schema.chain(pieces_of(batch)).boxed())
            }
        }
    }

    /// The answer of a query with a name, which all share who ask the same; `None`, if its statement is another one here than
    /// where it was planned, or the answer is too large to be held.
    async fn held(
        &self,
        name: &str,
        sql: &str,
        parameters: &Parameters,
    ) -> Result<Option<Arc<Held>>> {
        if self.queries.statement(name).ok() != Some(sql) {
            return Ok(None);
        }
        let values = match parameters {
            Parameters::None => Values::new(),
            Parameters::Named(values) => values.clone(),
            Parameters::Positional(_) => return Ok(None),
        };
        match self.queries.ask(name, &values).await {
            Err(error) if is_too_large(&error) => Ok(None),
            held => held.map(Some),
        }
    }

    /// Takes the parameters of a prepared statement.
    ///
    /// # Errors
    /// There is no such statement, or they are not its; or the client wants to change something.
    pub async fn put(
        &self,
        command: Command,
        first: &FlightData,
        incoming: Incoming,
    ) -> Result<PutResult> {
        let Command::CommandPreparedStatementQuery(query) = command else {
            return Err(Error::invalid(READ_ONLY));
        };
        let handle = query.prepared_statement_handle;
        let prepared = self.statements.get(&handle)?;
        let row = row_of(first, incoming, &prepared.parameters).await?;
        self.statements.keep(handle.clone(), Prepared { row: Some(row), ..(*prepared).clone() });
        let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) };
        Ok(PutResult { app_metadata: result.encode_to_vec().into() })
    }

    /// Does an action, if it is one of Flight SQL's.
    ///
    /// # Errors
    /// The statement is none that reads, or the action is nothing that karrow does.
    pub async fn act(&self, action: &Action) -> Option<Result<Vec<Bytes>>> {
        Some(match action.r#type.as_str() {
            CREATE => self.prepare(&action.body).await.map(|result| vec![result]),
            CLOSE => {
                // Closing what is not there is done already.
                if let Ok(request) = body_of::<ActionClosePreparedStatementRequest>(&action.body) {
                    self.statements.close(&request.prepared_statement_handle);
                }
                Ok(Vec::new())
            }
            "BeginTransaction" | "EndTransaction" | "BeginSavepoint" | "EndSavepoint" => {
                Err(Error::invalid(NO_TRANSACTIONS))
            }
            "CreatePreparedSubstraitPlan" => Err(Error::invalid(NO_SUBSTRAIT)),
            _ => return None,
        })
    }

    /// A statement before it has parameters, and its columns.
    async fn described(&self, sql: String) -> Result<(Described, SchemaRef)> {
        let mut described = self.engine.describe(sql.clone()).await?;
        let schema = match described.schema.take() {
            Some(schema) => schema,
            // They are those of nulls until there are parameters.
            None => {
                let null = |name: &String| (name.clone(), Parameter::Null);
                let nulls = described.parameters.iter().map(null).collect();
                self.engine.columns(sql, Parameters::Named(nulls)).await?
            }
        };
        Ok((described, schema))
    }

    async fn prepare(&self, body: &[u8]) -> Result<Bytes> {
        let sql = body_of::<ActionCreatePreparedStatementRequest>(body)?.query;
        prepared::check_length(&sql)?;
        let (described, schema) = self.described(sql.clone()).await?;
        let of_parameter = |(name, data_type): (&String, Option<DataType>)| {
            Field::new(name, parameter_type(data_type), true)
        };
        let fields = described.parameters.iter().zip(described.types).map(of_parameter);
        let parameters = Schema::new(fields.collect::<Vec<_>>());
        let result = ActionCreatePreparedStatementResult {
            dataset_schema: encapsulated(&schema)?,
            parameter_schema: encapsulated(&parameters)?,
            prepared_statement_handle: self.statements.handle(),
        };
        let handle = result.prepared_statement_handle.clone();
        let prepared = Prepared { sql, parameters: described.parameters, row: None };
        self.statements.keep(handle, prepared);
        Ok(result.as_any().encode_to_vec().into())
    }
}

/// What a client is told that a parameter is; any other type that becomes it will do.
fn parameter_type(data_type: Option<DataType>) -> DataType {
    match data_type {
        // DuckDB makes of texts what is wanted.
        None | Some(DataType::Null) => DataType::Utf8,
        // Arrow's JDBC driver fills in milliseconds, whatever the unit.
        Some(DataType::Timestamp(_, zone)) => DataType::Timestamp(TimeUnit::Millisecond, zone),
        Some(DataType::Time64(_)) => DataType::Time32(TimeUnit::Millisecond),
        Some(other) => other,
    }
}

/// A schema as an encapsulated IPC message.
pub(super) fn encapsulated(schema: &Schema) -> Result<Bytes> {
    let options = IpcWriteOptions::default();
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &options)
        .try_into()
        .map_err(|error: ArrowError| Error::internal(error.to_string()))?;
    Ok(bytes)
}

fn info_of(descriptor: FlightDescriptor, schema: &Schema, ticket: Vec<u8>) -> Result<FlightInfo> {
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket));
    let info = FlightInfo::new().try_with_schema(schema).map_err(internal)?;
    Ok(info.with_descriptor(descriptor).with_endpoint(endpoint))
}

fn ticket_of(question: &Question) -> Vec<u8> {
    TicketStatementQuery { statement_handle: question.encode() }.as_any().encode_to_vec()
}

fn body_of<M: ProstMessageExt>(body: &[u8]) -> Result<M> {
    let name = || M::type_url().trim_start_matches(TYPE_URL);
    let any = Any::decode(body).map_err(|error| Error::invalid(format!("{}: {error}", name())))?;
    let message = any.unpack::<M>().map_err(|error| Error::invalid(error.to_string()))?;
    message.ok_or_else(|| Error::invalid(format!("the action's body is no {}", name())))
}

/// Between two messages of an answer.
struct Streamed {
    batches: BoxStream<'static, Result<RecordBatch>>,
    promise: Promise,
    pieces: Option<Pieces>,
}

/// The schema, then rows in just that.
fn streamed(
    batches: impl Stream<Item = Result<RecordBatch>> + Send + 'static,
    promise: Promise,
) -> Messages {
    let schema = once(std::future::ready(Ok(schema_message(promise.schema()))));
    let streamed = Streamed { batches: batches.boxed(), promise, pieces: None };
    let rows = try_unfold(streamed, |mut streamed| async move {
        Ok(streamed.next().await?.map(|message| (message, streamed)))
    });
    schema.chain(rows).boxed()
}

impl Streamed {
    async fn next(&mut self) -> Result<Option<FlightData>> {
        loop {
            if let Some(pieces) = &mut self.pieces {
                if let Some(message) = next_of(pieces)? {
                    return Ok(Some(message));
                }
                self.pieces = None;
            }
            let Some(batch) = self.batches.try_next().await? else { return Ok(None) };
            let batch = self.promise.keep(batch)?;
            let rows = batch.num_rows();
            self.pieces = Some(Pieces::new(batch, rows, None));
        }
    }
}

fn next_of(pieces: &mut Pieces) -> Result<Option<FlightData>> {
    let message = pieces.next()?.map(|(_, message)| FlightData {
        data_header: message.header,
        data_body: message.body,
        ..FlightData::default()
    });
    Ok(message)
}

fn pieces_of(batch: RecordBatch) -> impl futures::Stream<Item = Result<FlightData>> + Send {
    let rows = batch.num_rows();
    let pieces = Pieces::new(batch, rows, None);
    try_unfold(pieces, |mut pieces| async move {
        Ok(next_of(&mut pieces)?.map(|message| (message, pieces)))
    })
    .into_stream()
}

fn internal(error: ArrowError) -> Error {
    Error::internal(error.to_string())
}
