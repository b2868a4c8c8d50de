//! The JSON topic of the benches: how it is produced, and kept as a stream.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::Result;
use crate::server::{self, Recipe, Server, eventually};

/// JSON of 60 bytes.
pub const JSON: &str = "flight-json";
pub const JSON_MESSAGES: usize = 1_000_000;

/// How long a topic may take to be in its window.
pub const INGEST: Duration = Duration::from_secs(120);

/// Time between two looks: each is a request that the server has to answer.
pub const LOOK: Duration = Duration::from_millis(50);

/// A karrow that keeps `topic` from its beginning, as far as `limit` goes.
pub fn keeping(recipe: &Recipe, topic: &str, limit: &str) -> Recipe {
    let arguments = ["--topics", topic, "--start", "earliest", "--ttl", "1h"];
    let limits = ["--buffer-limit", limit, "--memory-limit", limit];
    let arguments = arguments.iter().chain(&limits).map(ToString::to_string).collect();
    Recipe { arguments, ..recipe.clone() }
}

/// Waits until all rows are in the window.
pub fn kept(server: &Server, topic: &str, rows: usize) -> Result<()> {
    eventually(&format!("{rows} rows in the window of {topic}"), INGEST, || {
        std::thread::sleep(LOOK);
        Ok((rows_kept(server, topic)? == rows as u64).then_some(()))
    })
}

/// Rows in the window, as HTTP lists them.
pub fn rows_kept(server: &Server, topic: &str) -> Result<u64> {
    let failed = |why: &dyn std::fmt::Display| format!("/v1/streams/{topic}: {why}");
    let mut stream = TcpStream::connect(server.ports.http).map_err(|why| failed(&why))?;
    let request = format!("GET /v1/streams/{topic} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|why| failed(&why))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|why| failed(&why))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let view: serde_json::Value = serde_json::from_str(body).map_err(|why| failed(&why))?;
    view["rows"].as_u64().ok_or_else(|| failed(&body))
}

/// Ids have eight digits, so that all messages are of one length.
pub const FIRST: i64 = 10_000_000;

pub fn symbol(number: i64) -> String {
    format!("SYM{}", 10 + number % 90)
}

/// Produces the JSON topic: 60 bytes a message, no two alike.
pub fn number(brokers: SocketAddr) -> Result<()> {
    let failed = |why: rdkafka::error::KafkaError| format!("producing {JSON}: {why}");
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers.to_string())
        .set("enable.idempotence", "true")
        .set("queue.buffering.max.messages", "0")
        .set("linger.ms", "50")
        .create()
        .map_err(failed)?;
    for number in 0..JSON_MESSAGES as i64 {
        let payload = format!(
            r#"{{"id":{},"symbol":"{}","price":4711.25,"open":true}}"#,
            FIRST + number,
            symbol(number)
        );
        assert_eq!(payload.len(), 60, "{payload}");
        let record = BaseRecord::<(), _>::to(JSON).payload(&payload);
        producer.send(record).map_err(|(why, _)| failed(why))?;
        if number % 1024 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(server::PATIENCE).map_err(failed)
}
