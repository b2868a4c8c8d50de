//! What the tests share: waiting for facts, a Kafka, a karrow, and a client.

pub mod client;
pub mod gateway;
pub mod kafka;
pub mod registry;

use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};

pub use client::{Client, Reply};
pub use gateway::Karrow;
pub use kafka::Kafka;

/// Long enough for a busy machine; a test that meets it has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// An Arrow IPC stream of one batch.
pub fn ipc_stream(batch: &RecordBatch, compression: Option<CompressionType>) -> Vec<u8> {
    let options = IpcWriteOptions::default().try_with_compression(compression).expect("options");
    let mut writer =
        StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options).expect("a writer");
    writer.write(batch).expect("written");
    writer.into_inner().expect("finished")
}

/// Asks until there is an answer; panics naming `what` after [`DEADLINE`].
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
