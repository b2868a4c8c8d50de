//! The client of both servers: a plan, and a read that counts bytes or keeps the batches.

use std::net::SocketAddr;

use arrow::array::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightDescriptor, Ticket};
use futures::stream::{StreamExt, TryStreamExt};
use tonic::transport::{Channel, Endpoint};

use crate::Result;

/// Larger than any message of either server.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

async fn connect(addr: SocketAddr) -> Result<FlightServiceClient<Channel>> {
    let failed = |why: tonic::transport::Error| format!("connecting to {addr}: {why}");
    // As pyarrow has it: the default of 64 KiB would measure how often a window is moved on.
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(failed)?
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20);
    let channel = endpoint.connect().await.map_err(failed)?;
    Ok(FlightServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// The ticket of karrow for `topic`.
pub async fn ticket(karrow: SocketAddr, topic: &str) -> Result<Ticket> {
    let descriptor = FlightDescriptor::new_path(vec![topic.to_owned()]);
    let info = connect(karrow).await?.get_flight_info(descriptor).await;
    let info = info.map_err(|why| format!("planning {topic}: {why}"))?.into_inner();
    let ticket = info.endpoint.into_iter().next().and_then(|endpoint| endpoint.ticket);
    ticket.ok_or_else(|| format!("the plan of {topic} has no ticket"))
}

/// Bytes of everything behind a ticket. They are not decoded: that is the same work whoever sent them.
pub async fn bytes(addr: SocketAddr, ticket: Ticket) -> Result<u64> {
    let failed = |why: tonic::Status| format!("reading from {addr}: {why}");
    let answer = connect(addr).await?.do_get(ticket).await.map_err(failed)?;
    let mut all = answer.into_inner();
    let mut bytes = 0;
    while let Some(message) = all.next().await {
        let message = message.map_err(failed)?;
        bytes += (message.data_body.len() + message.data_header.len()) as u64;
    }
    Ok(bytes)
}

/// All batches of a topic.
pub async fn batches(karrow: SocketAddr, topic: &str) -> Result<Vec<RecordBatch>> {
    let failed = |why: String| format!("reading {topic}: {why}");
    let ticket = ticket(karrow, topic).await?;
    let answer =
        connect(karrow).await?.do_get(ticket).await.map_err(|why| failed(why.to_string()))?;
    let data = answer.into_inner().map_err(Into::into);
    let batches = FlightRecordBatchStream::new_from_flight_data(data).try_collect().await;
    batches.map_err(|why| failed(why.to_string()))
}
