//! `/v1/streams`: what the windows of topics hold, as JSON, and as gauges.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::HttpState;
use super::problem::Problem;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::stream::streams::Streams;
use crate::stream::topic_stream::{Phase, TopicStream};

pub(super) async fn all(State(state): State<Arc<HttpState>>) -> Response {
    let streams: Vec<Value> = state.streams.all().iter().map(|stream| shown(stream)).collect();
    Json(Value::Array(streams)).into_response()
}

pub(super) async fn one(
    State(state): State<Arc<HttpState>>,
    topic: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(topic) = topic?;
    let stream = state.streams.get(&topic).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, format!("topic '{topic}' is no stream"))
    })?;
    Ok(Json(shown(&stream)).into_response())
}

fn shown(stream: &TopicStream) -> Value {
    let view = stream.view();
    json!({
        "topic": &**stream.topic(),
        "phase": view.phase.label(),
        "error": view.phase.failure().map(Error::message),
        "rows": view.rows,
        "bytes": view.bytes,
        "age_ms": view.age.map(|age| age.as_millis() as u64),
        "lag": view.lag,
        "readers": view.readers,
        "starts": view.starts.to_json(),
        "ends": view.ends.to_json(),
        "dropped": {"full": view.dropped.full_rows, "old": view.dropped.old_rows, "broken": view.dropped.broken_rows},
        "epoch": view.epoch,
        "columns": view.schema.as_ref().map(columns),
    })
}

fn columns(schema: &SchemaRef) -> Vec<Value> {
    let column = |field: &arrow::datatypes::FieldRef| {
        json!({
            "name": field.name(),
            "type": field.data_type().to_string(),
            "nullable": field.is_nullable(),
        })
    };
    schema.fields().iter().map(column).collect()
}

/// Sets the gauges of streams.
pub(super) fn observe(streams: &Streams, metrics: &Metrics) {
    let gauges = [
        &metrics.streams,
        &metrics.stream_bytes,
        &metrics.stream_rows,
        &metrics.stream_age,
        &metrics.stream_lag,
        &metrics.stream_readers,
        &metrics.stream_paused_partitions,
    ];
    for gauge in gauges {
        gauge.reset();
    }
    let (reading, waiting) = streams.range_readers();
    metrics.range_readers.with_label_values(&["reading"]).set(reading as i64);
    metrics.range_readers.with_label_values(&["waiting"]).set(waiting as i64);
    for stream in streams.all() {
        let (view, topic) = (stream.view(), [&**stream.topic()]);
        metrics.streams.with_label_values(&[view.phase.label()]).inc();
        metrics.stream_bytes.with_label_values(&topic).set(view.bytes as i64);
        metrics.stream_rows.with_label_values(&topic).set(view.rows as i64);
        metrics.stream_readers.with_label_values(&topic).set(view.readers as i64);
        let is_paused = matches!(view.phase, Phase::Paused);
        let paused = if is_paused { view.ends.iter().count() } else { 0 };
        metrics.stream_paused_partitions.with_label_values(&topic).set(paused as i64);
        if let Some(age) = view.age {
            metrics.stream_age.with_label_values(&topic).set(age.as_millis() as i64);
        }
        if let Some(lag) = view.lag {
            metrics.stream_lag.with_label_values(&topic).set(lag);
        }
    }
}
