//! What `karrow serve` prints on stdout once it serves: the addresses, and what to type next.

use std::fmt::Write;
use std::net::SocketAddr;

/// Where this process listens. Real addresses: a port 0 is resolved by now.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// The Redis edge.
    pub resp: SocketAddr,
    /// `/metrics`, `/v1/streams` and others; `None` when HTTP is off.
    pub http: Option<SocketAddr>,
    /// The Flight edge; `None` when it is off.
    pub flight: Option<SocketAddr>,
    /// Kafka's bootstrap servers.
    pub brokers: String,
    /// Whether the broker is inside this process.
    pub embedded: bool,
}

/// The banner, ending in a newline. `topic` is the one its examples use.
pub fn banner(at: &Addresses, topic: &str) -> String {
    let mut text = format!("karrow {} is ready\n\n", env!("CARGO_PKG_VERSION"));
    line(&mut text, "Redis", &at.resp.to_string());
    let kind = if at.embedded { " (embedded; ordinary Kafka clients may connect)" } else { "" };
    line(&mut text, "Kafka", &format!("{}{kind}", at.brokers));
    if let Some(flight) = at.flight {
        line(&mut text, "Flight", &format!("grpc://{flight}"));
    }
    if let Some(http) = at.http {
        line(&mut text, "HTTP", &format!("http://{http}/metrics  /v1/streams  /livez  /readyz"));
    }
    let cli = redis_cli(at.resp);
    let _ = write!(
        text,
        "
In a second terminal, produce a message:

  {cli} RPUSHX topics:{topic} hello

and consume it, as `me` of the group `readers`: name yourself, take a message, acknowledge it.

  printf '%s\\n' 'CLIENT SETNAME readers:me' 'BLPOP topics:{topic} 10' 'RPUSH acks last' | {cli}

Ctrl-C stops karrow.
"
    );
    text
}

fn line(text: &mut String, name: &str, what: &str) {
    let _ = writeln!(text, "  {name:<6} {what}");
}

fn redis_cli(addr: SocketAddr) -> String {
    if addr.ip().is_unspecified() || addr.ip().to_string() == "127.0.0.1" {
        format!("redis-cli -p {}", addr.port())
    } else {
        format!("redis-cli -h {} -p {}", addr.ip(), addr.port())
    }
}
