//! The Flight edge: topics as Arrow over gRPC, and SQL over them.

mod actions;
mod exchange;
mod pieces;
mod put;
mod read;
pub mod request;
mod service;
mod sql;
mod status;

use std::net::SocketAddr;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Status};

pub use service::{Parts, Service};

use crate::error::{Error, Result};
use crate::serve::listener::is_denied;

/// Time after which a connection without traffic is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(60);

const PROTECTED: &str = "karrow runs in protected mode: it listens beyond loopback and knows no users, so remote clients \
     are refused. Connect from the same host or, if the network is trusted, start it with --no-protected-mode";

/// The Flight edge, bound but not serving yet.
pub struct FlightServer {
    incoming: TcpIncoming,
    addr: SocketAddr,
}

impl FlightServer {
    /// Binds its listener.
    ///
    /// # Errors
    /// The address cannot be bound; names it.
    pub fn bind(addr: SocketAddr) -> Result<Self> {
        let cannot =
            |error: &std::io::Error| Error::cannot_listen("Flight", addr, "--flight-port", error);
        let incoming = TcpIncoming::bind(addr).map_err(|error| cannot(&error))?;
        let addr = incoming.local_addr().map_err(|error| cannot(&error))?;
        Ok(Self { incoming: incoming.with_nodelay(Some(true)), addr })
    }

    /// Where it listens, with the real port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until its parts say stop; what this returns ends when all calls have.
    pub fn start(self, parts: Parts, protected_mode: bool) -> JoinHandle<()> {
        let (stop, local) = (parts.stop.clone(), self.addr);
        let request_bytes_max = parts.request_bytes_max;
        let service = FlightServiceServer::new(Service::new(parts))
            .max_decoding_message_size(request_bytes_max)
            .max_encoding_message_size(usize::MAX);
        let guard = move |request: Request<()>| match request.remote_addr() {
            Some(peer) if is_denied(protected_mode, local, peer) => {
                Err(Status::permission_denied(PROTECTED))
            }
            _ => Ok(request),
        };
        tokio::spawn(async move {
            let serving = Server::builder()
                .http2_keepalive_interval(Some(KEEPALIVE))
                .add_service(InterceptedService::new(service, guard))
                .serve_with_incoming_shutdown(self.incoming, stop.cancelled_owned());
            if let Err(error) = serving.await {
                tracing::error!(%error, "Flight");
            }
        })
    }
}
