//! [`Service`]: the calls of Arrow Flight.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket as FlightTicket,
};
use futures::future::ready;
use futures::stream::{BoxStream, Stream, StreamExt, TryStreamExt, iter, once};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

use super::actions::{self, act};
use super::exchange::exchange;
use super::put::{Incoming, put};
use super::read::{plan, read};
use super::request::{ReadRequest, Ticket};
use super::sql::{self, Sql};
use super::status::{code_name, status};
use crate::config::KafkaOptions;
use crate::decode::formats::Formats;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::producer::Producer;
use crate::metrics::Metrics;
use crate::serve::glob;
use crate::sql::queries::Queries;
use crate::stream::batch::BatchOptions;
use crate::stream::registry::Registry;
use crate::stream::streams::Streams;
use crate::stream::topic_stream::TopicStream;

/// Streams whose ends and columns are asked for at once.
const PLANS_MAX: usize = 8;

/// What the edge looks at.
pub struct Parts {
    /// Topics as windows.
    pub streams: Arc<Streams>,
    /// Consumer sessions.
    pub registry: Arc<Registry>,
    /// SQL.
    pub queries: Arc<Queries>,
    /// The producer of all connections.
    pub producer: Arc<Producer>,
    /// What topics are created with.
    pub producer_options: KafkaOptions,
    /// What keys and payloads are made of.
    pub formats: Arc<Formats>,
    /// What batches of sessions are like, where a client asks for nothing else.
    pub batches: BatchOptions,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Largest message of a client, in bytes.
    pub request_bytes_max: usize,
    /// Ends what has no end of its own.
    pub stop: CancellationToken,
}

/// See the top of this file.
#[derive(Clone)]
pub struct Service {
    parts: Arc<Parts>,
    sql: Arc<Sql>,
}

type Answer<T> = Result<Response<T>, Status>;
type Messages<T> = BoxStream<'static, Result<T, Status>>;

impl Service {
    /// Serves what `parts` have.
    pub fn new(parts: Parts) -> Self {
        let sql = Arc::new(Sql::new(parts.queries.clone()));
        Self { parts: Arc::new(parts), sql }
    }

    async fn info(&self, descriptor: FlightDescriptor) -> Result<FlightInfo> {
        if let Some(command) = sql::command(&descriptor.cmd)? {
            return self.sql.info(descriptor, command).await;
        }
        if let Some(asked) = sql::named::asked(&descriptor.cmd)? {
            return self.sql.named(descriptor, asked).await;
        }
        let request = request_of(&descriptor)?;
        let tickets = plan(&self.parts.streams, &request).await?;
        info_of(descriptor, &tickets)
    }

    async fn schema(&self, descriptor: &FlightDescriptor) -> Result<SchemaRef> {
        if let Some(command) = sql::command(&descriptor.cmd)? {
            return self.sql.schema(command).await;
        }
        if let Some(asked) = sql::named::asked(&descriptor.cmd)? {
            let info = self.sql.named(descriptor.clone(), asked).await?;
            let schema = info.try_decode_schema();
            return schema.map(Arc::new).map_err(|error| Error::internal(error.to_string()));
        }
        let tickets = plan(&self.parts.streams, &request_of(descriptor)?).await?;
        let ticket = tickets.into_iter().next();
        Ok(ticket.ok_or_else(|| Error::internal("a plan without a ticket"))?.schema)
    }

    /// What a ticket stands for.
    async fn rows(&self, ticket: &[u8]) -> Result<sql::Messages> {
        if let Some(command) = sql::command(ticket)? {
            return self.sql.rows(command).await;
        }
        let messages = read(&self.parts.streams, &self.parts.metrics, Ticket::parse(ticket)?);
        Ok(messages.await?.boxed())
    }

    /// What `criteria` name: streams and sessions that match a glob, `all` topics, or `all:` and a glob.
    async fn flights(&self, criteria: &[u8]) -> Result<Vec<FlightInfo>> {
        let (pattern, all) = match criteria {
            b"" => (b"*".as_slice(), false),
            b"all" => (b"*".as_slice(), true),
            // A topic's name has no colon.
            other => match other.strip_prefix(b"all:") {
                Some(pattern) => (pattern, true),
                None => (other, false),
            },
        };
        let streams = &self.parts.streams;
        let mut wanted = streams.all();
        wanted.retain(|stream| glob::matches(pattern, stream.topic().as_bytes()));
        let infos: Vec<_> =
            wanted.into_iter().map(|stream| flight(streams.clone(), stream)).collect();
        let mut found: Vec<FlightInfo> = iter(infos).buffered(PLANS_MAX).try_collect().await?;
        if all {
            for topic in streams.topics().await? {
                let is_wanted = glob::matches(pattern, topic.name.as_bytes());
                if is_wanted && streams.get(&topic.name).is_none() {
                    let descriptor = FlightDescriptor::new_path(vec![topic.name.clone()]);
                    // Its schema and its ends cost requests; GetFlightInfo makes them.
                    let info = FlightInfo::new().with_descriptor(descriptor);
                    found.push(info.with_total_records(-1).with_total_bytes(-1));
                }
            }
        }
        for session in self.parts.registry.sessions() {
            let full = session.name.full();
            if !glob::matches(pattern, full.as_bytes()) {
                continue;
            }
            let group = session.name.group();
            let name = full.get(group.len() + 1..).unwrap_or_default();
            let path = vec!["sessions".to_owned(), group.to_owned(), name.to_owned()];
            found.push(FlightInfo::new().with_descriptor(FlightDescriptor::new_path(path)));
        }
        Ok(found)
    }

    /// Counts a call and what goes wrong with it at once.
    fn counted<T>(&self, rpc: &str, answer: Result<T>) -> Answer<T> {
        self.count_request(rpc);
        answer.map(Response::new).map_err(|error| {
            let status = status(&error);
            self.count_error(rpc, &status);
            status
        })
    }

    fn count_request(&self, rpc: &str) {
        self.parts.metrics.flight_requests.with_label_values(&[rpc]).inc();
    }

    fn count_error(&self, rpc: &str, status: &Status) {
        let code = code_name(status.code());
        self.parts.metrics.flight_errors.with_label_values(&[rpc, code]).inc();
    }

    /// Counts what a call is answered with, and what goes wrong with it then.
    fn watched<T: Send + 'static>(
        &self,
        rpc: &'static str,
        messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
        size: fn(&T) -> usize,
    ) -> Messages<T> {
        let service = self.clone();
        let count = move |status: &Status| service.count_error(rpc, status);
        self.sized(rpc, messages, size).inspect_err(count).boxed()
    }

    /// Counts the bytes of what goes through a stream.
    fn sized<T, S: Stream<Item = Result<T, Status>>>(
        &self,
        rpc: &str,
        messages: S,
        size: fn(&T) -> usize,
    ) -> impl Stream<Item = Result<T, Status>> + use<T, S> {
        let bytes = self.parts.metrics.flight_bytes.with_label_values(&[rpc]);
        messages.inspect_ok(move |message| bytes.inc_by(size(message) as u64))
    }
}

/// What there is to know of a stream.
async fn flight(streams: Arc<Streams>, stream: Arc<TopicStream>) -> Result<FlightInfo> {
    let descriptor = FlightDescriptor::new_path(vec![stream.topic().to_string()]);
    let tickets = plan(&streams, &ReadRequest::of_topic(stream.topic())).await;
    let info = match tickets {
        Ok(tickets) => info_of(descriptor, &tickets)?,
        // One that cannot be read now is there all the same.
        Err(error) => {
            tracing::debug!(topic = %stream.topic(), %error, "listing");
            FlightInfo::new().with_descriptor(descriptor)
        }
    };
    let view = stream.view();
    let mut said = Map::from_iter([("phase".to_owned(), view.phase.label().into())]);
    if let Some(error) = view.phase.failure() {
        said.insert("error".to_owned(), error.message().into());
    }
    Ok(info
        .with_total_records(view.rows as i64)
        .with_total_bytes(view.bytes as i64)
        .with_app_metadata(Value::Object(said).to_string()))
}

fn data_size(data: &FlightData) -> usize {
    data.data_header.len() + data.app_metadata.len() + data.data_body.len()
}

/// The first message of a client, and those behind it.
async fn opened(
    request: Request<Streaming<FlightData>>,
    bytes_max: usize,
) -> Result<(FlightData, Incoming)> {
    let mut incoming = request.into_inner().map_err(move |status| match status.code() {
        // What tonic says of a message over the limit, and of nothing else.
        Code::OutOfRange => {
            Status::resource_exhausted(format!("a message of more than {bytes_max} bytes"))
        }
        _ => status,
    });
    match incoming.next().await {
        Some(Ok(first)) => Ok((first, incoming.boxed())),
        Some(Err(status)) if status.code() == Code::ResourceExhausted => {
            Err(Error::new(ErrorKind::Exhausted, status.message()))
        }
        Some(Err(status)) => Err(Error::invalid(status.message())),
        None => Err(Error::invalid("the client has sent nothing")),
    }
}

fn request_of(descriptor: &FlightDescriptor) -> Result<ReadRequest> {
    match descriptor.r#type() {
        DescriptorType::Path => match descriptor.path.as_slice() {
            [topic] => Ok(ReadRequest::of_topic(topic)),
            [first, ..] if first == "sessions" => {
                Err(Error::invalid("a session of a Redis client cannot be read by others"))
            }
            path => Err(Error::invalid(format!("path {path:?}: the name of a topic is wanted"))),
        },
        DescriptorType::Cmd => ReadRequest::parse(&descriptor.cmd),
        DescriptorType::Unknown => {
            Err(Error::invalid("the descriptor has neither a path nor a command"))
        }
    }
}

fn info_of(descriptor: FlightDescriptor, tickets: &[Ticket]) -> Result<FlightInfo> {
    let Some(first) = tickets.first() else {
        return Err(Error::internal("a plan without a ticket"));
    };
    let mut info = FlightInfo::new()
        .try_with_schema(&first.schema)
        .map_err(|error| Error::internal(error.to_string()))?
        .with_descriptor(descriptor);
    for ticket in tickets {
        let ticket = FlightTicket::new(ticket.encode());
        info = info.with_endpoint(FlightEndpoint::new().with_ticket(ticket));
    }
    Ok(info)
}

#[tonic::async_trait]
impl FlightService for Service {
    type HandshakeStream = Messages<HandshakeResponse>;
    type ListFlightsStream = Messages<FlightInfo>;
    type DoGetStream = Messages<FlightData>;
    type DoPutStream = Messages<PutResult>;
    type DoActionStream = Messages<arrow_flight::Result>;
    type ListActionsStream = Messages<ActionType>;
    type DoExchangeStream = Messages<FlightData>;

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Answer<Self::HandshakeStream> {
        let status =
            Status::unimplemented("karrow knows no users: connect without a user and a password");
        self.count_request("Handshake");
        self.count_error("Handshake", &status);
        Err(status)
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        let flights = self.flights(&request.into_inner().expression).await;
        self.counted(
            "ListFlights",
            flights.map(|flights| iter(flights.into_iter().map(Ok)).boxed()),
        )
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        self.counted("GetFlightInfo", self.info(request.into_inner()).await)
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Answer<PollInfo> {
        let info = self.info(request.into_inner()).await;
        self.counted("PollFlightInfo", info.map(|info| PollInfo::new().with_info(info)))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        let described = async {
            let schema = self.schema(&request.into_inner()).await?;
            Ok(SchemaResult { schema: sql::encapsulated(&schema)? })
        };
        self.counted("GetSchema", described.await)
    }

    async fn do_get(&self, request: Request<FlightTicket>) -> Answer<Self::DoGetStream> {
        let messages = self.rows(&request.into_inner().ticket).await.map(|messages| {
            let messages = messages.map_err(|error| status(&error));
            self.watched("DoGet", messages, data_size)
        });
        self.counted("DoGet", messages)
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        let putting = async {
            let bytes_max = self.parts.request_bytes_max;
            let (first, incoming) = opened(request, bytes_max).await?;
            // What breaks it is among the results.
            let incoming = self.sized("DoPut", incoming, data_size).boxed();
            let descriptor = first.flight_descriptor.as_ref();
            if let Some(command) = descriptor.map_or(Ok(None), |it| sql::command(&it.cmd))? {
                let result = self.sql.put(command, &first, incoming).await?;
                return Ok(once(ready(Ok(result))).boxed());
            }
            let results = put(self.parts.producer.clone(), &first, incoming, bytes_max)?;
            Ok(results.boxed())
        };
        let results = putting.await.map(|results| self.watched("DoPut", results, |_| 0));
        self.counted("DoPut", results)
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Answer<Self::DoExchangeStream> {
        let exchanging = async {
            let (first, incoming) = opened(request, self.parts.request_bytes_max).await?;
            exchange(&self.parts, &first, incoming)
        };
        let messages =
            exchanging.await.map(|messages| self.watched("DoExchange", messages, data_size));
        self.counted("DoExchange", messages)
    }

    async fn do_action(&self, request: Request<Action>) -> Answer<Self::DoActionStream> {
        let action = request.into_inner();
        let answers = match self.sql.act(&action).await {
            Some(answers) => answers,
            None => act(&self.parts, &action).await,
        };
        let answers = answers.map(|answers| {
            let answers = answers.into_iter().map(|body| Ok(arrow_flight::Result { body }));
            iter(answers).boxed()
        });
        self.counted("DoAction", answers)
    }

    async fn list_actions(&self, _: Request<Empty>) -> Answer<Self::ListActionsStream> {
        let actions = iter(actions::list().into_iter().map(Ok)).boxed();
        self.counted("ListActions", Ok(actions))
    }
}
