//! The HTTP edge: `/metrics`, `/livez`, `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::error::{Error, ErrorKind, Result};
use crate::kafka::client_count;
use crate::kafka::embedded::BrokerHealth;
use crate::kafka::producer::Producer;
use crate::metrics::Metrics;
use crate::stream::registry::Registry;

/// Whoever asks whether we are ready gives up after a second, most often.
const READY_TIMEOUT: Duration = Duration::from_millis(800);

/// What the routes look at.
pub struct HttpState {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Sessions, for their lag.
    pub registry: Arc<Registry>,
    /// The producer, for what it has in flight.
    pub producer: Arc<Producer>,
    /// Whether the server is shutting down.
    pub stopping: AtomicBool,
    /// The embedded broker's health, where there is one.
    pub broker: Option<BrokerHealth>,
}

/// Binds the listener.
///
/// # Errors
/// The address cannot be bound; names it.
pub fn bind(addr: SocketAddr) -> Result<std::net::TcpListener> {
    let bound = std::net::TcpListener::bind(addr)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    bound.map_err(|error| {
        Error::new(ErrorKind::Unavailable, format!("cannot listen for HTTP on {addr}: {error}"))
    })
}

/// Serves until the process ends.
///
/// # Errors
/// The listener does not fit the runtime.
pub async fn serve(listener: std::net::TcpListener, state: Arc<HttpState>) -> Result<()> {
    let internal =
        |error: std::io::Error| Error::new(ErrorKind::Internal, format!("HTTP: {error}"));
    let listener = tokio::net::TcpListener::from_std(listener).map_err(internal)?;
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(state);
    axum::serve(listener, routes).await.map_err(internal)
}

async fn metrics(State(state): State<Arc<HttpState>>) -> Response {
    observe(&state);
    match state.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
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
    let answer = tokio::time::timeout(READY_TIMEOUT, state.producer.topics()).await;
    let late = || Err(Error::new(ErrorKind::Timeout, "no broker has answered in time"));
    match answer.unwrap_or_else(|_| late()) {
        Ok(_) => "ok\n".into_response(),
        Err(error) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("Kafka: {error}\n")).into_response()
        }
    }
}
