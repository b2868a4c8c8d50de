//! What the tests share: waiting for facts, a Kafka, a karrow, and a client.

pub mod client;
pub mod gateway;
pub mod kafka;
pub mod registry;

use std::time::{Duration, Instant};

pub use client::{Client, Reply};
pub use gateway::Karrow;
pub use kafka::Kafka;

/// Long enough for a busy machine; a test that meets it has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

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
