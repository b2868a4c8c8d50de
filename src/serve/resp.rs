//! The Redis edge: accepts connections and runs each to its end.
//!
//! Connections are served by threads of their own, each with a single-threaded runtime, as Redis does with its
//! io-threads: a command touches no other thread, and one wait for the system serves every ready connection.

pub mod clients;
pub mod command;
mod connection;
pub mod frame;
pub mod reply;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use self::clients::Clients;
use self::command::CommandCounters;
use crate::config::RespConfig;
use crate::decode::formats::Formats;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::producer::Producer;
use crate::metrics::Metrics;
use crate::serve::listener::is_denied;
use crate::sql::queries::Queries;
use crate::stream::batch::BatchOptions;
use crate::stream::registry::Registry;

/// A silent peer is asked whether it lives after this long, and given up after three questions.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What the edge serves.
pub struct Services {
    /// Consumer sessions.
    pub registry: Arc<Registry>,
    /// The producer of all connections.
    pub producer: Arc<Producer>,
    /// What keys and payloads are made of.
    pub formats: Arc<Formats>,
    /// What batches are like, where a client asks for nothing else.
    pub batches: BatchOptions,
    /// SQL.
    pub queries: Arc<Queries>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where work runs that is not a connection's own: consumers, metadata.
    pub runtime: tokio::runtime::Handle,
}

/// What every connection shares.
pub struct Gateway {
    /// Limits of the edge.
    pub config: RespConfig,
    /// Consumer sessions.
    pub registry: Arc<Registry>,
    /// The producer of all connections.
    pub producer: Arc<Producer>,
    /// What keys and payloads are made of.
    pub formats: Arc<Formats>,
    /// What batches are like, where a client asks for nothing else.
    pub batches: BatchOptions,
    /// SQL.
    pub queries: Arc<Queries>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Connections.
    pub clients: Clients,
    /// Counters by command, looked up once.
    pub counters: CommandCounters,
    /// Where work runs that is not a connection's own: consumers, metadata.
    pub runtime: tokio::runtime::Handle,
    /// Where the edge listens, with the real port.
    pub addr: SocketAddr,
    /// When the edge started.
    pub started: Instant,
    /// Set by [`stop`](Self::stop).
    stopping: AtomicBool,
    stop_accepting: Notify,
}

impl Gateway {
    /// What connections to `server` share.
    pub fn new(config: RespConfig, server: &RespServer, services: Services) -> Arc<Self> {
        let Services { registry, producer, formats, batches, queries, metrics, runtime } = services;
        Arc::new(Self {
            config,
            registry,
            producer,
            formats,
            batches,
            queries,
            counters: CommandCounters::new(&metrics),
            metrics,
            clients: Clients::default(),
            runtime,
            addr: server.addr,
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            stop_accepting: Notify::new(),
        })
    }

    /// Whether the server is shutting down: nothing new is consumed.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Makes every connection finish: blocked pops answer `CONS Server shutdown`, replies are sent, then the
    /// connection closes.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.stop_accepting.notify_one();
        self.clients.wake_all();
    }
}

/// The Redis edge, bound but not serving yet.
pub struct RespServer {
    listener: std::net::TcpListener,
    addr: SocketAddr,
}

impl RespServer {
    /// Binds the listener of `config`.
    ///
    /// # Errors
    /// The address cannot be bound; names it.
    pub fn bind(config: &RespConfig) -> Result<Self> {
        let bind = || -> std::io::Result<Self> {
            let domain = socket2::Domain::for_address(config.addr);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&config.addr.into())?;
            socket.listen(511)?;
            socket.set_nonblocking(true)?;
            let listener: std::net::TcpListener = socket.into();
            let addr = listener.local_addr()?;
            Ok(Self { listener, addr })
        };
        bind().map_err(|error| Error::cannot_listen("Redis", config.addr, "--port", &error))
    }

    /// Where it listens, with the real port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Starts the threads that serve connections. They end with the process; [`Gateway::stop`] ends the
    /// connections.
    ///
    /// # Errors
    /// A thread or its runtime cannot be had.
    pub fn start(self, gateway: &Arc<Gateway>) -> Result<()> {
        let mut handles = Vec::new();
        for index in 0..gateway.config.io_threads.max(1) {
            handles.push(io_thread(index)?);
        }
        let Some(first) = handles.first().cloned() else { return Ok(()) };
        let gateway = gateway.clone();
        first.spawn(async move {
            match TcpListener::from_std(self.listener) {
                Ok(listener) => accept(listener, handles, gateway).await,
                Err(error) => tracing::error!(%error, "cannot serve Redis clients"),
            }
        });
        Ok(())
    }
}

fn io_thread(index: usize) -> Result<tokio::runtime::Handle> {
    let failed =
        |error: std::io::Error| Error::new(ErrorKind::Internal, format!("resp thread: {error}"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name(format!("resp-{index}"))
        .spawn(move || runtime.block_on(std::future::pending::<()>()))
        .map_err(failed)?;
    Ok(handle)
}

async fn accept(
    listener: TcpListener,
    threads: Vec<tokio::runtime::Handle>,
    gateway: Arc<Gateway>,
) {
    let mut next = 0;
    while !gateway.is_stopping() {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = gateway.stop_accepting.notified() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: those that are open go on, and free some.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Some((reason, text)) = refusal(&gateway, peer) {
            gateway.metrics.connections_refused.with_label_values(&[reason]).inc();
            refuse(&stream, text);
            continue;
        }
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, %peer, "connection");
        }
        gateway.metrics.connections_accepted.inc();
        // Counted here, before the next one is accepted: the limit holds for a burst, too.
        let local = stream.local_addr().unwrap_or(gateway.addr);
        let info = gateway.clients.add(peer, local);
        // A stream belongs to the runtime it was made in: hand over the plain socket.
        match (stream.into_std(), threads.get(next % threads.len())) {
            (Ok(stream), Some(thread)) => {
                let gateway = gateway.clone();
                thread.spawn(async move {
                    match TcpStream::from_std(stream) {
                        Ok(stream) => connection::run(stream, info, gateway).await,
                        Err(error) => {
                            tracing::warn!(%error, %peer, "connection");
                            gateway.clients.remove(&info);
                        }
                    }
                });
            }
            _ => gateway.clients.remove(&info),
        }
        next = next.wrapping_add(1);
    }
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 6).with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

fn refusal(gateway: &Gateway, peer: SocketAddr) -> Option<(&'static str, &'static str)> {
    if gateway.clients.len() >= gateway.config.clients_max {
        return Some(("clients_max", "-ERR max number of clients reached\r\n"));
    }
    is_denied(gateway.config.protected_mode, gateway.addr, peer).then_some((
        "protected_mode",
        "-DENIED karrow runs in protected mode: it listens beyond loopback and knows no users, so remote \
         clients are refused. Connect from the same host, let it listen on loopback (--host 127.0.0.1), or, if \
         the network is trusted, start it with --no-protected-mode.\r\n",
    ))
}

/// Says why, as far as the socket's buffer takes it, and closes.
fn refuse(stream: &TcpStream, text: &str) {
    let _ = stream.try_write(text.as_bytes());
}
