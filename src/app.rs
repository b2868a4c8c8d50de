//! The one place that joins the modules: starts what the configuration asks for, stops it in order.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::banner::{Addresses, banner};
use crate::config::Config;
use crate::decode::formats::Formats;
use crate::decode::schema_registry::SchemaRegistry;
use crate::decode::schemas::Schemas;
use crate::error::Result;
use crate::kafka::admin::ensure_topics;
use crate::kafka::embedded::EmbeddedBroker;
use crate::kafka::producer::{Producer, ProducerLimits};
use crate::metrics::Metrics;
use crate::serve::flight::{FlightServer, Parts};
use crate::serve::http::{HttpServer, HttpState};
use crate::serve::resp::{Gateway, RespServer, Services};
use crate::sql::engine::{Engine, SqlLimits};
use crate::sql::queries::Queries;
use crate::sql::sink::{Retention, Sinks};
use crate::stream::assembler::CutLimits;
use crate::stream::batch::BatchOptions;
use crate::stream::blocking;
use crate::stream::registry::Registry;
use crate::stream::streams::Streams;
use crate::stream::topic_stream::StreamSettings;
use crate::stream::window::{Memory, WindowLimits};

/// How long creating `--topics` may take; the embedded broker needs some milliseconds.
const TOPICS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long Flight's calls may take to end when everything else has.
const FLIGHT_GRACE: Duration = Duration::from_secs(1);

/// Serves until `shutdown` is cancelled, then stops gracefully; returns how many messages that were taken from clients
/// were not stored.
///
/// # Errors
/// As [`start`].
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<usize> {
    let topic = config.streams.topics.first().cloned().unwrap_or_else(|| "greetings".to_owned());
    let running = start(config).await?;
    // Nobody reading stdout is no reason not to serve.
    let _ = std::io::stdout().write_all(banner(running.addresses(), &topic).as_bytes());
    shutdown.cancelled().await;
    Ok(running.stop().await)
}

/// Everything that `karrow serve` runs.
pub struct Running {
    at: Addresses,
    gateway: Arc<Gateway>,
    registry: Arc<Registry>,
    producer: Arc<Producer>,
    streams: Arc<Streams>,
    engine: Arc<Engine>,
    storing: Option<Storing>,
    flight: Option<JoinHandle<()>>,
    flight_stop: CancellationToken,
    http: Arc<HttpState>,
    broker: Option<EmbeddedBroker>,
    grace: Duration,
}

/// What stores topics.
struct Storing {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Starts what `config` asks for and returns once it serves.
///
/// # Errors
/// An address that cannot be bound, or an embedded broker that cannot start: one line each.
pub async fn start(mut config: Config) -> Result<Running> {
    let metrics = Arc::new(Metrics::new()?);
    let settings = config.formats.registry.as_ref();
    let schemas =
        settings.map(|settings| SchemaRegistry::new(settings, metrics.clone())).transpose()?;
    let known = schemas.clone().map(|schemas| schemas as Arc<dyn Schemas>);
    let formats = Arc::new(Formats::new(config.formats.clone(), known)?);
    let resp = RespServer::bind(&config.resp)?;
    let http_server = config.http.as_ref().map(HttpServer::bind).transpose()?;
    let flight_server =
        config.flight.as_ref().map(|flight| FlightServer::bind(flight.addr)).transpose()?;
    let broker = match &config.embedded {
        None => None,
        Some(embedded) => {
            let broker = EmbeddedBroker::start(embedded).await?;
            config.kafka.set_bootstrap_servers(&broker.addr().to_string());
            ensure_topics(&config.kafka.producer, &config.streams.topics, TOPICS_TIMEOUT).await?;
            Some(broker)
        }
    };
    let at = Addresses {
        resp: resp.addr(),
        http: http_server.as_ref().map(HttpServer::addr),
        flight: flight_server.as_ref().map(FlightServer::addr),
        brokers: config.kafka.bootstrap_servers().to_owned(),
        embedded: broker.is_some(),
    };

    let producer = Arc::new(Producer::new(
        &config.kafka.producer,
        ProducerLimits {
            connection_bytes_max: config.resp.connection_inflight_bytes_max,
            topic_bytes_max: config.resp.topic_inflight_bytes_max,
            message_bytes_max: config.kafka.message_bytes_max(),
        },
        Handle::current(),
        metrics.clone(),
    ));
    let registry = Registry::new(config.kafka.consumer.clone(), metrics.clone());
    let streams = streams(&config, formats.clone(), metrics.clone())?;
    let engine = engine(&config, streams.clone(), metrics.clone()).await?;
    let named = Queries::new(
        engine.clone(),
        config.sql.queries.clone(),
        config.sql.result_bytes_max,
        &metrics,
    );
    let queries = Arc::new(named.await?);
    let batches = BatchOptions {
        rows_max: config.batches.rows_max,
        bytes_max: config.batches.bytes_max,
        ..BatchOptions::default()
    };
    let flight_stop = CancellationToken::new();
    let flight = flight_server.zip(config.flight.as_ref()).map(|(server, flight)| {
        let parts = Parts {
            streams: streams.clone(),
            registry: registry.clone(),
            queries: queries.clone(),
            producer: producer.clone(),
            producer_options: config.kafka.producer.clone(),
            formats: formats.clone(),
            batches: batches.clone(),
            metrics: metrics.clone(),
            request_bytes_max: flight.request_bytes_max,
            stop: flight_stop.clone(),
        };
        server.start(parts, flight.protected_mode)
    });
    let services = Services {
        registry: registry.clone(),
        producer: producer.clone(),
        formats,
        batches,
        queries: queries.clone(),
        metrics: metrics.clone(),
        runtime: Handle::current(),
    };
    let gateway = Gateway::new(config.resp.clone(), &resp, services);
    resp.start(&gateway)?;
    let stop = CancellationToken::new();
    let retention =
        Retention { age_max: config.sql.stored_age_max, bytes_max: config.sql.stored_bytes_max };
    let sinks = engine.store().map(|store| {
        Sinks::new(streams.clone(), store.clone(), retention, metrics.clone(), stop.clone())
    });
    let http = Arc::new(HttpState {
        schemas,
        metrics,
        sinks: sinks.clone(),
        queries,
        registry: registry.clone(),
        streams: streams.clone(),
        producer: producer.clone(),
        stopping: AtomicBool::new(false),
        broker: broker.as_ref().map(EmbeddedBroker::health),
    });
    if let Some(server) = http_server {
        server.start(http.clone())?;
    }
    for topic in config.streams.topics {
        streams.open(&topic).await?;
    }
    config.streams.patterns.into_iter().try_for_each(|names| streams.add_pattern(names))?;
    tokio::spawn(streams.clone().tend());
    let storing = sinks.map(|sinks| Storing { stop, task: tokio::spawn(sinks.run()) });
    Ok(Running {
        at,
        gateway,
        registry,
        producer,
        streams,
        engine,
        storing,
        flight,
        flight_stop,
        http,
        broker,
        grace: config.shutdown_grace,
    })
}

/// DuckDB, which opens its file on a thread that may be blocked.
async fn engine(
    config: &Config,
    streams: Arc<Streams>,
    metrics: Arc<Metrics>,
) -> Result<Arc<Engine>> {
    let (file, runtime) = (config.sql.file.clone(), Handle::current());
    let limits = SqlLimits {
        memory_bytes_max: config.sql.memory_bytes_max,
        threads: config.sql.threads,
        time_max: config.sql.time_max,
        queries_max: config.sql.queries_max,
    };
    blocking(move || Engine::open(streams, file.as_deref(), limits, metrics, runtime)).await
}

fn streams(config: &Config, formats: Arc<Formats>, metrics: Arc<Metrics>) -> Result<Arc<Streams>> {
    let wanted = &config.streams;
    let settings = StreamSettings {
        start: wanted.start,
        window: WindowLimits { bytes_max: wanted.window_bytes_max, age_max: wanted.age_max },
        when_full: wanted.when_full,
        cut: CutLimits {
            rows_max: wanted.rows_max,
            bytes_max: wanted.bytes_max,
            linger: wanted.linger,
        },
    };
    let memory = Memory::new(wanted.memory_bytes_max);
    let consumer = config.kafka.consumer.clone();
    Streams::new(consumer, settings, memory, formats, metrics, Handle::current())
}

impl Running {
    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.at
    }

    /// Stops gracefully, within the grace period of its configuration; returns how many messages that were taken from
    /// clients were not stored.
    pub async fn stop(self) -> usize {
        self.http.stopping.store(true, Ordering::Release);
        self.flight_stop.cancel();
        if let Some(storing) = &self.storing {
            storing.stop.cancel();
        }
        self.streams.close_all();
        let lost = stop(&self.gateway, &self.registry, &self.producer, self.grace).await;
        if let Some(flight) = self.flight {
            // Clients that do not read to the end of what they asked for must not hold the stop.
            let _ = tokio::time::timeout(FLIGHT_GRACE, flight).await;
        }
        if let Some(Storing { task, .. }) = self.storing {
            close_store(task, self.engine, self.grace).await;
        }
        self.producer.close();
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
        lost
    }
}

/// Waits until what was gathered is stored, and leaves nothing but the file.
async fn close_store(task: JoinHandle<()>, engine: Arc<Engine>, grace: Duration) {
    let closed = async {
        let _ = task.await;
        match engine.store().cloned() {
            Some(store) => blocking(move || store.checkpoint()).await,
            None => Ok(()),
        }
    };
    match tokio::time::timeout(grace, closed).await {
        Ok(Ok(())) => {}
        // Nothing is lost: it is read from Kafka again, or from the log behind the file.
        Ok(Err(error)) => tracing::warn!(%error, "closing DuckDB's file"),
        Err(_) => tracing::warn!("DuckDB's file was not closed in time"),
    }
}

/// Connections answer what they owe and close, sessions commit and leave, the producer flushes: in this order,
/// together within `grace`. Returns how many messages were not stored.
async fn stop(
    gateway: &Gateway,
    registry: &Registry,
    producer: &Producer,
    grace: Duration,
) -> usize {
    let until = Instant::now() + grace;
    let left = || until.saturating_duration_since(Instant::now());
    gateway.stop();
    let clients = async {
        // A client that does not read its replies must not take the time that sessions need for their commits.
        if tokio::time::timeout(grace / 3, gateway.clients.none_left()).await.is_err() {
            tracing::warn!(connections = gateway.clients.len(), "connections did not end in time");
            gateway.clients.kill_all();
        }
        match registry.drained(left()).await {
            0 => {}
            consumers => tracing::warn!(consumers, "consumers did not leave their groups in time"),
        }
    };
    // At once, because replies of RPUSH wait for it: it ends the lingering.
    tokio::join!(clients, producer.flush(left()));
    // What clients have produced since.
    let messages = producer.flush(left()).await;
    if messages > 0 {
        tracing::error!(messages, "messages were not stored before the shutdown's grace ended");
    }
    messages
}
