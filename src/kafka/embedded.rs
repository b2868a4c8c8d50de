//! The broker inside the process: its data directory, its listener, its threads.
//!
//! It runs on a runtime of its own, because its storage (SQLite) works on the thread that polls it
//! and must never delay a Redis client. What it speaks is in `embedded/broker.rs`.

#[cfg(feature = "embedded-broker")]
mod broker;
#[cfg(feature = "embedded-broker")]
mod delete;
#[cfg(feature = "embedded-broker")]
mod fetch;
#[cfg(feature = "embedded-broker")]
mod guard;
#[cfg(feature = "embedded-broker")]
mod records;
#[cfg(feature = "embedded-broker")]
mod snappy;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::EmbeddedConfig;
use crate::error::{Error, ErrorKind, Result};

/// One thread serves connections while the other waits for the disk.
#[cfg_attr(not(feature = "embedded-broker"), allow(dead_code))]
const THREADS: usize = 2;

/// How long a stop waits for the storage to finish what it has accepted.
const DRAIN: Duration = Duration::from_secs(5);

/// Whether the broker's storage still works; clones tell the same. Once failed, it stays so.
#[derive(Clone, Debug, Default)]
pub struct BrokerHealth(Arc<AtomicBool>);

impl BrokerHealth {
    /// Whether the storage has never failed.
    pub fn is_healthy(&self) -> bool {
        !self.0.load(Ordering::Acquire)
    }

    /// Whether this is the first failure.
    #[cfg_attr(not(feature = "embedded-broker"), allow(dead_code))]
    pub(crate) fn fail(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// A running broker. Dropping it stops it without waiting; [`shutdown`](Self::shutdown) waits.
#[derive(Debug)]
pub struct EmbeddedBroker {
    addr: SocketAddr,
    health: BrokerHealth,
    stop: CancellationToken,
    serving: Option<JoinHandle<()>>,
    runtime: Option<Runtime>,
    /// Held, not read: the system releases the lock with it.
    _lock: File,
}

impl EmbeddedBroker {
    /// Starts the broker over the data directory, which is created where it is missing, and returns
    /// once it accepts connections.
    ///
    /// Each error is one line naming the directory or the address: the directory cannot be created
    /// or written, another process uses it, its data is no database, the address is taken.
    #[cfg(feature = "embedded-broker")]
    pub async fn start(config: &EmbeddedConfig) -> Result<Self> {
        let dir = create_dir(&config.data_dir)?;
        let lock = lock_dir(&dir)?;
        let listener = listen(config.kafka_addr)?;
        let addr =
            listener.local_addr().map_err(|error| cannot_listen(config.kafka_addr, &error))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("karrow-broker")
            .enable_all()
            .build()
            .map_err(|error| internal(format!("embedded broker: cannot start threads: {error}")))?;
        let stop = CancellationToken::new();
        let health = BrokerHealth::default();
        let start = runtime.spawn(broker::start(dir, listener, stop.clone(), health.clone()));
        // From here on a failure drops `this`, and with it the runtime, without blocking.
        let mut this =
            Self { addr, health, stop, serving: None, runtime: Some(runtime), _lock: lock };
        let serve =
            start.await.map_err(|error| internal(format!("embedded broker: {error}")))??;
        this.serving = this.runtime.as_ref().map(|runtime| runtime.spawn(serve));
        Ok(this)
    }

    /// This build has no broker inside.
    #[cfg(not(feature = "embedded-broker"))]
    pub async fn start(_: &EmbeddedConfig) -> Result<Self> {
        Err(Error::invalid(
            "--embedded: this build has no broker inside (it was built without the cargo feature embedded-broker)",
        ))
    }

    /// Where it listens; never port 0.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Tells whether its storage still works, also after it is gone.
    pub fn health(&self) -> BrokerHealth {
        self.health.clone()
    }

    /// Stops accepting, closes all connections, and returns once what was accepted is stored.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if let Some(serving) = self.serving.take() {
            // An error is its panic, and it is gone either way.
            let _ = serving.await;
        }
        if let Some(runtime) = self.runtime.take() {
            // Only when its threads are gone is the database closed, and the directory free.
            let stop = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(DRAIN));
            let _ = stop.await;
        }
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping a runtime waits, which is forbidden on another runtime's thread.
            runtime.shutdown_background();
        }
    }
}

/// Creates the directory and gives its absolute path.
#[cfg_attr(not(feature = "embedded-broker"), allow(dead_code))]
fn create_dir(dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir)
        .and_then(|()| dir.canonicalize())
        .map_err(|error| dir_error(dir, &format!("cannot be created: {error}")))
}

/// Takes the directory for this process, so that two brokers never write the same file.
#[cfg_attr(not(feature = "embedded-broker"), allow(dead_code))]
fn lock_dir(dir: &Path) -> Result<File> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(dir.join("lock"))
        .map_err(|error| dir_error(dir, &format!("is not writable: {error}")))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "data directory {}: another karrow uses it (process {})",
                    dir.display(),
                    owner.trim()
                ),
            ));
        }
        Err(TryLockError::Error(error)) => {
            return Err(dir_error(dir, &format!("cannot be locked: {error}")));
        }
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| dir_error(dir, &format!("is not writable: {error}")))?;
    Ok(file)
}

#[cfg_attr(not(feature = "embedded-broker"), allow(dead_code))]
fn listen(addr: SocketAddr) -> Result<TcpListener> {
    // std sets SO_REUSEADDR here, so a quick restart does not meet its own old connections.
    let listener = TcpListener::bind(addr).map_err(|error| cannot_listen(addr, &error))?;
    listener.set_nonblocking(true).map_err(|error| cannot_listen(addr, &error))?;
    Ok(listener)
}

#[cfg_attr(not(feature = "embedded-broker"), allow(dead_code))]
fn cannot_listen(addr: SocketAddr, error: &std::io::Error) -> Error {
    Error::cannot_listen("embedded broker", addr, "--kafka-port", error)
}

#[cfg_attr(not(feature = "embedded-broker"), allow(dead_code))]
fn dir_error(dir: &Path, reason: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("data directory {}: {reason}", dir.display()))
}

#[cfg_attr(not(feature = "embedded-broker"), allow(dead_code))]
fn internal(message: String) -> Error {
    Error::new(ErrorKind::Internal, message)
}
