//! The HTTP edge: `/metrics`, `/livez`, `/readyz`, `/v1/streams`, `/v1/sql`, `/v1/queries`.

mod accept;
mod problem;
mod sql;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use crate::config::HttpConfig;
use crate::decode::schema_registry::SchemaRegistry;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::client_count;
use crate::kafka::embedded::BrokerHealth;
use crate::kafka::producer::Producer;
use crate::metrics::Metrics;
use crate::serve::listener::is_denied;
use crate::sql::queries::Queries;
use crate::sql::sink::Sinks;
use crate::stream::registry::Registry;
use crate::stream::streams::Streams;
use problem::{Problem, no_such_method, no_such_path};

/// Whoever asks whether we are ready gives up after a second, most often.
const READY_TIMEOUT: Duration = Duration::from_millis(800);

const PROTECTED: &str = "karrow runs in protected mode: it listens beyond loopback and knows no users, so remote clients \
     see only /livez and /readyz. Ask from the same host or, if the network is trusted, start it with \
     --no-protected-mode.";

/// What the routes look at.
pub struct HttpState {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Sessions, for their lag.
    pub registry: Arc<Registry>,
    /// Topics as windows.
    pub streams: Arc<Streams>,
    /// SQL.
    pub queries: Arc<Queries>,
    /// What stores topics, where they are stored.
    pub sinks: Option<Arc<Sinks>>,
    /// The producer, for what it has in flight.
    pub producer: Arc<Producer>,
    /// The schema registry, where there is one.
    pub schemas: Option<Arc<SchemaRegistry>>,
    /// Whether the server is shutting down.
    pub stopping: AtomicBool,
    /// The embedded broker's health, where there is one.
    pub broker: Option<BrokerHealth>,
}

/// The HTTP edge, bound but not serving yet.
pub struct HttpServer {
    listener: std::net::TcpListener,
    addr: SocketAddr,
    config: HttpConfig,
}

impl HttpServer {
    /// Binds the listener of `config`.
    ///
    /// # Errors
    /// The address cannot be bound; names it.
    pub fn bind(config: &HttpConfig) -> Result<Self> {
        let bind = || -> std::io::Result<Self> {
            let listener = std::net::TcpListener::bind(config.addr)?;
            listener.set_nonblocking(true)?;
            let addr = listener.local_addr()?;
            Ok(Self { listener, addr, config: config.clone() })
        };
        bind().map_err(|error| Error::cannot_listen("HTTP", config.addr, "--http-port", &error))
    }

    /// Where it listens, with the real port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until the runtime of the caller ends.
    ///
    /// # Errors
    /// The listener does not fit the runtime.
    pub fn start(self, state: Arc<HttpState>) -> Result<()> {
        let listener = TcpListener::from_std(self.listener)
            .map_err(|error| Error::new(ErrorKind::Internal, format!("HTTP: {error}")))?;
        tokio::spawn(accept(listener, self.addr, self.config, state));
        Ok(())
    }
}

async fn accept(
    listener: TcpListener,
    addr: SocketAddr,
    config: HttpConfig,
    state: Arc<HttpState>,
) {
    let all = all_routes(state.clone());
    let remote = remote_routes(state);
    let slots = Arc::new(Semaphore::new(config.connections_max));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: it gets better when somebody leaves.
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Closed, not queued: the slots are in the hands of those who are slow.
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let denied = is_denied(config.protected_mode, addr, peer);
        let routes = if denied { remote.clone() } else { all.clone() };
        let time_max = config.request_time_max;
        tokio::spawn(async move {
            // A clock each for the head of a request, also for the one that does not come, and for a reader that does not
            // read; what works on an answer has its own.
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(time_max));
            let serve = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(time_max)
                .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(routes));
            let _ = serve.await;
            drop(slot);
        });
    }
}

fn all_routes(state: Arc<HttpState>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/v1/streams", get(streams::all))
        .route("/v1/streams/{topic}", get(streams::one))
        .route("/v1/sql", get(sql::get).post(sql::post))
        .route("/v1/queries", get(sql::all))
        .route("/v1/queries/{name}", get(sql::call).post(sql::call_with_body))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(state)
}

/// What a remote client sees in protected mode: what an orchestrator asks, and no names of brokers.
fn remote_routes(state: Arc<HttpState>) -> Router {
    let readiness = |state: State<Arc<HttpState>>| async {
        let status = ready(state).await.status();
        (status, if status.is_success() { "ok\n" } else { "not ready\n" })
    };
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .fallback(|| async { Problem::new(StatusCode::FORBIDDEN, PROTECTED) })
        .method_not_allowed_fallback(no_such_method)
        .with_state(state)
}

async fn metrics(State(state): State<Arc<HttpState>>) -> Response {
    observe(&state);
    match state.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
            .into_response(),
        Err(error) => Problem::from(error).into_response(),
    }
}

/// Sets the gauges that are a look at live state.
fn observe(state: &HttpState) {
    let metrics = &state.metrics;
    metrics.kafka_clients.set(client_count() as i64);
    metrics.unflushed.set(state.producer.unflushed() as i64);
    metrics.lag.reset();
    metrics.missing_topics.reset();
    let (mut live, mut dormant) = (0, 0);
    for session in state.registry.sessions() {
        if session.live {
            live += 1;
        } else {
            dormant += 1;
        }
        for topic in &session.missing {
            metrics.missing_topics.with_label_values(&[&**topic]).inc();
        }
        for partition in &session.partitions {
            if let Some(lag) = partition.lag {
                let number = partition.partition.to_string();
                metrics
                    .lag
                    .with_label_values(&[session.name.group(), &*partition.topic, &number])
                    .set(lag);
            }
        }
    }
    streams::observe(&state.streams, metrics);
    if let Some(sinks) = &state.sinks {
        sinks.observe();
    }
    metrics.sessions.with_label_values(&["live"]).set(live);
    metrics.sessions.with_label_values(&["dormant"]).set(dormant);
}

/// Ready while Kafka answers and nothing is shutting down.
async fn ready(State(state): State<Arc<HttpState>>) -> Response {
    if state.stopping.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response();
    }
    if state.broker.as_ref().is_some_and(|broker| !broker.is_healthy()) {
        let text = "the embedded broker's storage has failed, restart karrow\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    if state.schemas.as_ref().is_some_and(|schemas| !schemas.is_available()) {
        let text = "the schema registry does not answer\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    if let Some(trouble) = state.sinks.as_ref().and_then(|sinks| sinks.trouble()) {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")).into_response();
    }
    let answer = tokio::time::timeout(READY_TIMEOUT, state.producer.topics()).await;
    let late = || Err(Error::new(ErrorKind::Timeout, "no broker has answered in time"));
    match answer.unwrap_or_else(|_| late()) {
        Ok(_) => "ok\n".into_response(),
        Err(error) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("Kafka: {error}\n")).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::config::KafkaOptions;
    use crate::config::formats::FormatsConfig;
    use crate::config::streams::{Start, WhenFull};
    use crate::decode::formats::Formats;
    use crate::kafka::producer::ProducerLimits;
    use crate::sql::engine::{Engine, SqlLimits};
    use crate::stream::assembler::CutLimits;
    use crate::stream::topic_stream::StreamSettings;
    use crate::stream::window::{Memory, WindowLimits};

    const WAIT: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_broker_whose_storage_has_failed_is_not_ready() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let health = BrokerHealth::default();
        let options: KafkaOptions =
            [("bootstrap.servers".to_owned(), "127.0.0.1:1".to_owned())].into();
        let limits =
            ProducerLimits { connection_bytes_max: 1, topic_bytes_max: 1, message_bytes_max: 1 };
        let runtime = tokio::runtime::Handle::current();
        let memory = Memory::new(0);
        let settings = StreamSettings {
            start: Start::Latest,
            window: WindowLimits { bytes_max: 0, age_max: Duration::ZERO },
            when_full: WhenFull::DropOldest,
            cut: CutLimits { rows_max: 1, bytes_max: 1, linger: Duration::ZERO },
        };
        let formats = Arc::new(Formats::new(FormatsConfig::default(), None).unwrap());
        let streams = Streams::new(
            options.clone(),
            settings,
            memory,
            formats,
            metrics.clone(),
            runtime.clone(),
        );
        let streams = streams.unwrap();
        let sql_limits =
            SqlLimits { memory_bytes_max: 64 << 20, threads: 2, time_max: WAIT, queries_max: 1 };
        let engine =
            Engine::open(streams.clone(), None, sql_limits, metrics.clone(), runtime.clone())
                .unwrap();
        let queries = Queries::new(engine, Default::default(), 1, &metrics).await.unwrap();
        let state = Arc::new(HttpState {
            schemas: None,
            sinks: None,
            queries: Arc::new(queries),
            streams,
            registry: Registry::new(Default::default(), metrics.clone()),
            producer: Arc::new(Producer::new(&options, limits, runtime, metrics.clone())),
            metrics,
            stopping: AtomicBool::new(false),
            broker: Some(health.clone()),
        });
        let server = HttpServer::bind(&HttpConfig {
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            protected_mode: true,
            connections_max: 8,
            request_time_max: WAIT,
        })
        .unwrap();
        let addr = server.addr();
        server.start(state).unwrap();
        let get = async |path: &str| {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            let request = format!("GET {path} HTTP/1.0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut page = String::new();
            stream.read_to_string(&mut page).await.unwrap();
            page
        };
        assert!(get("/readyz").await.contains("\r\n\r\nKafka: "), "that is another reason");
        health.fail();
        let page = get("/readyz").await;
        assert!(page.starts_with("HTTP/1.0 503 "), "{page}");
        assert!(page.contains("storage has failed, restart karrow"), "{page}");
        assert!(get("/livez").await.starts_with("HTTP/1.0 200 "), "it lives");
    }
}
