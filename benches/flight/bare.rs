//! The other side: a server made of arrow-flight alone, which has the same batches in memory.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::Result;
use crate::reader;
use crate::server::{Process, free_addr};

/// The argument that makes this program the bare server: where to listen, where karrow is, the topic.
pub const ARGUMENT: &str = "--bare-server";

const READY: &str = "the bare server is ready";

/// Starts the bare server over what karrow answers for `topic`.
pub fn start(dir: &Path, karrow: SocketAddr, topic: &str) -> Result<(Process, SocketAddr)> {
    let addr = free_addr()?;
    let program = std::env::current_exe().map_err(|why| format!("this program: {why}"))?;
    let mut command = Command::new(program);
    command.args([ARGUMENT, &addr.to_string(), &karrow.to_string(), topic]);
    let mut process = Process::spawn("bare-server", dir, command)?;
    process.await_log(READY)?;
    Ok((process, addr))
}

/// Serves until it is stopped.
pub fn serve(addr: SocketAddr, karrow: SocketAddr, topic: &str) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().map_err(|why| why.to_string())?;
    runtime.block_on(async {
        let batches = reader::batches(karrow, topic).await?;
        let serving = tonic::transport::Server::builder()
            .add_service(FlightServiceServer::new(Bare { batches: batches.into() }))
            .serve(addr);
        println!("{READY}");
        serving.await.map_err(|why| why.to_string())
    })
}

struct Bare {
    batches: Arc<[RecordBatch]>,
}

type Answer<T> = Pin<Box<dyn Stream<Item = std::result::Result<T, Status>> + Send>>;

fn unused<T>() -> std::result::Result<Response<T>, Status> {
    Err(Status::unimplemented("the bench reads, nothing else"))
}

#[tonic::async_trait]
impl FlightService for Bare {
    type HandshakeStream = Answer<HandshakeResponse>;
    type ListFlightsStream = Answer<FlightInfo>;
    type DoGetStream = Answer<FlightData>;
    type DoPutStream = Answer<PutResult>;
    type DoExchangeStream = Answer<FlightData>;
    type DoActionStream = Answer<arrow_flight::Result>;
    type ListActionsStream = Answer<ActionType>;

    async fn do_get(
        &self,
        _: Request<Ticket>,
    ) -> std::result::Result<Response<Self::DoGetStream>, Status> {
        let Some(first) = self.batches.first() else { return unused() };
        let schema = first.schema();
        let batches = self.batches.clone();
        let all = (0..batches.len()).map(move |index| Ok::<_, FlightError>(batches[index].clone()));
        let data = FlightDataEncoderBuilder::new().with_schema(schema).build(stream::iter(all));
        Ok(Response::new(data.map_err(Status::from).boxed()))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> std::result::Result<Response<Self::HandshakeStream>, Status> {
        unused()
    }

    async fn list_flights(
        &self,
        _: Request<Criteria>,
    ) -> std::result::Result<Response<Self::ListFlightsStream>, Status> {
        unused()
    }

    async fn get_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> std::result::Result<Response<FlightInfo>, Status> {
        unused()
    }

    async fn poll_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> std::result::Result<Response<PollInfo>, Status> {
        unused()
    }

    async fn get_schema(
        &self,
        _: Request<FlightDescriptor>,
    ) -> std::result::Result<Response<SchemaResult>, Status> {
        unused()
    }

    async fn do_put(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> std::result::Result<Response<Self::DoPutStream>, Status> {
        unused()
    }

    async fn do_exchange(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> std::result::Result<Response<Self::DoExchangeStream>, Status> {
        unused()
    }

    async fn do_action(
        &self,
        _: Request<Action>,
    ) -> std::result::Result<Response<Self::DoActionStream>, Status> {
        unused()
    }

    async fn list_actions(
        &self,
        _: Request<Empty>,
    ) -> std::result::Result<Response<Self::ListActionsStream>, Status> {
        unused()
    }
}
