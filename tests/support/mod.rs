//! What the tests share: waiting for facts.

use std::time::{Duration, Instant};

/// Long enough for a busy machine; a test that meets it has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks until there is an answer; panics naming `what` after [`DEADLINE`].
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
