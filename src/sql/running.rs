//! [`Running`]: a query while it runs: the time that it has used, and who still waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::duck::Interrupter;

/// Time between two tries to stop a query whose time is up.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// See the top of this file.
pub struct Running {
    /// `None` before it has a connection, and after that.
    interrupter: Mutex<Option<Interrupter>>,
    clock: Mutex<Clock>,
    /// Its client has gone.
    is_unwanted: AtomicBool,
    unwanted: Notify,
}

/// The time that a query has used. While its client takes rows it uses none.
struct Clock {
    spent: Duration,
    /// `None`, while it waits for its client.
    since: Option<Instant>,
    is_up: bool,
}

/// Stops a query that nobody waits for any more, when it is dropped.
pub struct Stopper(Arc<Running>);

impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.is_unwanted.store(true, Ordering::Release);
        self.0.unwanted.notify_one();
    }
}

impl Running {
    /// One that begins now, and what stops it when its client goes.
    pub fn begin() -> (Arc<Self>, Stopper) {
        let clock = Clock { spent: Duration::ZERO, since: Some(Instant::now()), is_up: false };
        let running = Arc::new(Self {
            interrupter: Mutex::default(),
            clock: Mutex::new(clock),
            is_unwanted: AtomicBool::new(false),
            unwanted: Notify::new(),
        });
        (running.clone(), Stopper(running))
    }

    /// Does what `interrupter` can stop.
    pub fn stoppable<T>(&self, interrupter: Interrupter, work: impl FnOnce() -> T) -> T {
        *self.interrupter.lock() = Some(interrupter);
        let done = work();
        // Nobody stops what the next one does with this connection.
        *self.interrupter.lock() = None;
        done
    }

    /// Does what costs no time of the query's.
    pub fn pause<T>(&self, wait: impl FnOnce() -> T) -> T {
        let spent = self.spent();
        {
            let mut clock = self.clock.lock();
            (clock.spent, clock.since) = (spent, None);
        }
        let waited = wait();
        self.clock.lock().since = Some(Instant::now());
        waited
    }

    /// Stops it when it has used so much time, or nobody waits for it.
    pub async fn watch(self: Arc<Self>, time_max: Duration) {
        loop {
            let left = time_max.saturating_sub(self.spent());
            if left.is_zero() {
                self.clock.lock().is_up = true;
            }
            if left.is_zero() || self.is_unwanted() {
                self.stop();
                // It may be between two statements, where there is nothing to stop.
                tokio::time::sleep(WATCH_INTERVAL).await;
                continue;
            }
            let _ = tokio::time::timeout(left, self.unwanted.notified()).await;
        }
    }

    /// Whether nobody waits for it.
    pub fn is_unwanted(&self) -> bool {
        self.is_unwanted.load(Ordering::Acquire)
    }

    /// Whether it was stopped because its time is up.
    pub fn is_up(&self) -> bool {
        self.clock.lock().is_up
    }

    fn stop(&self) {
        if let Some(interrupter) = &*self.interrupter.lock() {
            interrupter.interrupt();
        }
    }

    fn spent(&self) -> Duration {
        let clock = self.clock.lock();
        clock.spent + clock.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}
