//! [`Server`]: the connection, and what its errors mean.

use std::error::Error as _;
use std::time::Duration;

use arrow_flight::flight_service_client::FlightServiceClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::Failure;
use crate::config::flags::client::ServerAddress;

/// Where karrow serves Flight, unless told.
pub const PORT: u16 = 8815;

/// How HTTP/2 begins: its preface, and settings that say nothing.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Deadline of an answer to that.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A server that is gone without a word is found out within twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Rows of a message are at most 3 MiB, except where a single one is larger.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// A Flight server.
#[derive(Clone, Debug)]
pub struct Server {
    address: String,
    client: FlightServiceClient<Channel>,
}

impl Server {
    /// Connects.
    ///
    /// # Errors
    /// There is none.
    pub async fn connect(address: &ServerAddress) -> Result<Self, Failure> {
        let address = address.0.clone();
        let endpoint = Endpoint::from_shared(address.clone())
            .map_err(|error| Failure::usage(format!("--server: '{address}': {error}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.map_err(|error| {
            Failure::failed(format!("cannot reach {address}: {}", innermost(&error)))
        })?;
        let client = FlightServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { address, client })
    }

    /// Its URL.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// To call it. It connects anew when the connection is lost.
    pub fn client(&self) -> FlightServiceClient<Channel> {
        self.client.clone()
    }

    /// Whether something else than HTTP/2 answers there, and so no Flight. It takes a connection of its own to find out:
    /// of another one's answers only the errors are known.
    pub async fn is_another(&self) -> bool {
        let address = self.address.trim_start_matches("http://");
        let greet = async {
            let mut stream = TcpStream::connect(address).await.ok()?;
            stream.write_all(GREETING).await.ok()?;
            let mut header = [0; 9];
            // Settings come first: length, type 4, flags, stream 0.
            Some(match stream.read_exact(&mut header).await {
                Ok(_) => matches!(header, [_, _, _, 4, _, 0, 0, 0, 0]),
                Err(_) => false,
            })
        };
        timeout(GREETING_TIMEOUT, greet).await == Ok(Some(false))
    }

    /// What an answer that is an error means for the command.
    pub fn failure(&self, status: &Status) -> Failure {
        if is_lost(status) {
            return Failure::failed(format!("{}: {}", self.address, reason(status)));
        }
        match status.code() {
            Code::InvalidArgument => Failure::usage(status.message()),
            Code::Unimplemented => {
                Failure::failed(format!("{} does not have this: {}", self.address, reason(status)))
            }
            _ => Failure::failed(reason(status)),
        }
    }
}

/// Whether it is the connection that failed, or the server for the moment, so that the same call may do later.
pub fn is_lost(status: &Status) -> bool {
    // What a server has answered has no source.
    status.source().is_some() || matches!(status.code(), Code::Unavailable | Code::Cancelled)
}

/// Why, in one line.
pub fn reason(status: &Status) -> String {
    let reason = match status.source() {
        Some(source) => innermost(source),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    };
    reason.replace(['\n', '\r'], " ")
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
