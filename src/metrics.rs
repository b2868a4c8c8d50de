//! The counters of the whole program, for Prometheus. Gauges that are a look at live state (sessions, lag) are
//! set when they are scraped, in `serve/http`.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use crate::error::{Error, ErrorKind, Result};

/// Seconds; a batch of a megabyte takes one to three milliseconds.
const DECODE_BUCKETS: [f64; 11] =
    [50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 250e-3, 1.0];

/// Every metric karrow has; each moves in a test.
pub struct Metrics {
    registry: Registry,
    /// Client connections that are open.
    pub connections: IntGauge,
    /// Client connections accepted since start.
    pub connections_accepted: IntCounter,
    /// Connections refused: too many, or protected mode.
    pub connections_refused: IntCounterVec,
    /// Commands by name and outcome (`ok`, `error`), counted once that is known.
    pub commands: IntCounterVec,
    /// Bytes read from clients.
    pub received_bytes: IntCounter,
    /// Bytes written to clients.
    pub sent_bytes: IntCounter,
    /// Messages delivered to clients, by topic.
    pub consumed_messages: IntCounterVec,
    /// Their payloads' bytes.
    pub consumed_bytes: IntCounterVec,
    /// Messages handed to the producer, by topic.
    pub produced_messages: IntCounterVec,
    /// Their payloads' bytes.
    pub produced_bytes: IntCounterVec,
    /// What became of produced messages, by topic and outcome (`stored`, `failed`); those to topics that did not exist
    /// have one label together.
    pub deliveries: IntCounterVec,
    /// Messages in the producer that are neither stored nor failed.
    pub unflushed: IntGauge,
    /// Acks by outcome (`moved`, `repeated`, `refused`).
    pub acks: IntCounterVec,
    /// Offset commits by outcome (`ok`, `error`).
    pub commits: IntCounterVec,
    /// Rebalances by kind (`assigned`, `revoked`, `lost`).
    pub rebalances: IntCounterVec,
    /// Consumer sessions by state (`live`, `dormant`).
    pub sessions: IntGaugeVec,
    /// Messages between a session's acked position and the end, by group, topic and partition.
    pub lag: IntGaugeVec,
    /// Sessions whose subscription names a topic that does not exist, by topic.
    pub missing_topics: IntGaugeVec,
    /// librdkafka clients in this process.
    pub kafka_clients: IntGauge,
    /// Calls of Arrow Flight, by name.
    pub flight_requests: IntCounterVec,
    /// Those that ended with an error, by name and code.
    pub flight_errors: IntCounterVec,
    /// Bytes of Arrow messages to and from Flight clients, by call.
    pub flight_bytes: IntCounterVec,
    /// Batches to Flight clients (`shared`, `encoded`).
    pub flight_batches: IntCounterVec,
    /// Topics kept as streams, by phase.
    pub streams: IntGaugeVec,
    /// Bytes in the window of a stream, by topic.
    pub stream_bytes: IntGaugeVec,
    /// Rows in the window of a stream, by topic.
    pub stream_rows: IntGaugeVec,
    /// Age of the oldest batch in the window of a stream, by topic.
    pub stream_age: IntGaugeVec,
    /// Records that a stream is behind, by topic.
    pub stream_lag: IntGaugeVec,
    /// Readers of a stream, by topic.
    pub stream_readers: IntGaugeVec,
    /// Partitions that nothing is taken from, because their window is full, by topic.
    pub stream_paused_partitions: IntGaugeVec,
    /// Readers of ranges that no window has (`reading`, `waiting`).
    pub range_readers: IntGaugeVec,
    /// Rows that left the window of a stream, by topic and reason (`full`, `old`, `broken`).
    pub stream_dropped_rows: IntCounterVec,
    /// Rows stored in tables, by topic.
    pub stored_rows: IntCounterVec,
    /// Tries to store rows that have failed, by topic.
    pub store_errors: IntCounterVec,
    /// Offsets that Kafka had deleted before they were stored, by topic.
    pub store_skipped: IntCounterVec,
    /// Records between what is stored of a topic and its end, as far as it is known, by topic.
    pub store_lag: IntGaugeVec,
    /// Bytes of DuckDB's file (`used`: of what is in it; `file`: on the disk, with the log behind it).
    pub store_bytes: IntGaugeVec,
    /// Stored rows that were too old or too many.
    pub store_expired: IntCounter,
    /// Stored columns that have become text because no other type holds all of their values, by topic.
    pub store_widened: IntCounterVec,
    /// SQL queries, by outcome (`ok`, or the kind of error).
    pub sql_queries: IntCounterVec,
    /// How long they took, from the question to the last row.
    pub sql_seconds: Histogram,
    /// SQL queries that run.
    pub sql_running: IntGauge,
    /// Questions by the name of a query, by name and what answered them (`cache`, `run`).
    pub named_queries: IntCounterVec,
    /// Rows of batches, by topic and format of the payload.
    pub decoded_rows: IntCounterVec,
    /// Bytes of the payloads they were decoded from, by topic and format.
    pub decoded_bytes: IntCounterVec,
    /// Time to decode a batch, by format.
    pub decode_seconds: HistogramVec,
    /// Reasons for rows with an `error`, by topic and reason.
    pub bad_rows: IntCounterVec,
    /// Records that could not be decoded, by their topic and whether `<topic>.dlq` has them (`stored`, `refused`).
    pub dead_letters: IntCounterVec,
    /// Values that became text because a limit left no column of their own, by topic.
    pub overflow_values: IntCounterVec,
    /// Questions for schemas of the registry by outcome (`hit`, `miss`).
    pub schema_cache: IntCounterVec,
    /// Requests to the schema registry by outcome (`ok`, `unknown`, `error`).
    pub schema_registry_requests: IntCounterVec,
    /// How long each of them took.
    pub schema_registry_seconds: Histogram,
}

impl Metrics {
    /// All of them, at zero.
    ///
    /// # Errors
    /// Two metrics have one name, which is a bug.
    pub fn new() -> Result<Self> {
        let registry = Registry::new();
        let make = Maker(&registry);
        let metrics = Self {
            connections: make.gauge("karrow_connections", "Client connections that are open.")?,
            connections_accepted: make
                .counter("karrow_connections_accepted_total", "Client connections accepted.")?,
            connections_refused: make.counters(
                "karrow_connections_refused_total",
                "Client connections refused, by reason.",
                &["reason"],
            )?,
            commands: make.counters(
                "karrow_commands_total",
                "Commands by name and outcome.",
                &["command", "outcome"],
            )?,
            received_bytes: make
                .counter("karrow_received_bytes_total", "Bytes read from Redis clients.")?,
            sent_bytes: make
                .counter("karrow_sent_bytes_total", "Bytes written to Redis clients.")?,
            consumed_messages: make.counters(
                "karrow_consumed_messages_total",
                "Messages delivered to clients.",
                &["topic"],
            )?,
            consumed_bytes: make.counters(
                "karrow_consumed_bytes_total",
                "Payload bytes delivered to clients.",
                &["topic"],
            )?,
            produced_messages: make.counters(
                "karrow_produced_messages_total",
                "Messages handed to the producer.",
                &["topic"],
            )?,
            produced_bytes: make.counters(
                "karrow_produced_bytes_total",
                "Payload bytes handed to the producer.",
                &["topic"],
            )?,
            deliveries: make.counters(
                "karrow_deliveries_total",
                "Produced messages by outcome: stored or failed.",
                &["topic", "outcome"],
            )?,
            unflushed: make.gauge(
                "karrow_producer_unflushed_messages",
                "Produced messages neither stored nor failed yet.",
            )?,
            acks: make.counters(
                "karrow_acks_total",
                "Acks by outcome: moved, repeated or refused.",
                &["outcome"],
            )?,
            commits: make.counters(
                "karrow_commits_total",
                "Offset commits by outcome.",
                &["outcome"],
            )?,
            rebalances: make.counters(
                "karrow_rebalances_total",
                "Rebalances by kind: assigned, revoked or lost.",
                &["kind"],
            )?,
            sessions: make.gauges("karrow_sessions", "Consumer sessions by state.", &["state"])?,
            lag: make.gauges(
                "karrow_consumer_lag_messages",
                "Messages between a session's position and the end of its partition.",
                &["group", "topic", "partition"],
            )?,
            missing_topics: make.gauges(
                "karrow_missing_topics",
                "Sessions that wait for a topic that does not exist.",
                &["topic"],
            )?,
            kafka_clients: make
                .gauge("karrow_kafka_clients", "librdkafka clients in this process.")?,
            decoded_rows: make.counters(
                "karrow_decoded_rows_total",
                "Rows of Arrow batches, by topic and format of the payload.",
                &["topic", "format"],
            )?,
            decoded_bytes: make.counters(
                "karrow_decoded_bytes_total",
                "Payload bytes decoded into Arrow batches.",
                &["topic", "format"],
            )?,
            decode_seconds: make.histograms(
                "karrow_decode_seconds",
                "Time to decode one batch.",
                &["format"],
                &DECODE_BUCKETS,
            )?,
            bad_rows: make.counters(
                "karrow_bad_rows_total",
                "Reasons for rows that could not be decoded.",
                &["topic", "reason"],
            )?,
            dead_letters: make.counters(
                "karrow_dead_letters_total",
                "Records that could not be decoded, on their way to the dead letters of their topic.",
                &["topic", "outcome"],
            )?,
            overflow_values: make.counters(
                "karrow_overflow_values_total",
                "Values that became text because a limit left no column of their own.",
                &["topic"],
            )?,
            schema_cache: make.counters(
                "karrow_schema_cache_total",
                "Look-ups of registry schemas by outcome: hit or miss.",
                &["outcome"],
            )?,
            schema_registry_requests: make.counters(
                "karrow_schema_registry_requests_total",
                "Requests to the schema registry by outcome: ok, unknown or error.",
                &["outcome"],
            )?,
            stored_rows: make.counters(
                "karrow_stored_rows_total",
                "Rows stored in tables.",
                &["topic"],
            )?,
            store_errors: make.counters(
                "karrow_store_errors_total",
                "Tries to store rows of a topic that have failed.",
                &["topic"],
            )?,
            store_skipped: make.counters(
                "karrow_store_skipped_offsets_total",
                "Offsets that Kafka had deleted before they were stored.",
                &["topic"],
            )?,
            store_lag: make.gauges(
                "karrow_store_lag_records",
                "Records between what is stored of a topic and its end, as far as it is known.",
                &["topic"],
            )?,
            store_bytes: make.gauges(
                "karrow_store_bytes",
                "Bytes of DuckDB's file: used, of what is in it; file, on the disk, with the log behind it.",
                &["state"],
            )?,
            store_expired: make.counter(
                "karrow_store_expired_rows_total",
                "Stored rows that were let go, because they were too old or too many.",
            )?,
            store_widened: make.counters(
                "karrow_store_columns_widened_total",
                "Stored columns and fields that have become text, because no other type holds all of their values.",
                &["topic"],
            )?,
            sql_queries: make.counters(
                "karrow_sql_queries_total",
                "SQL queries, by what became of them.",
                &["outcome"],
            )?,
            sql_seconds: make.histogram(
                "karrow_sql_seconds",
                "Duration of SQL queries, from the question to the last row.",
            )?,
            sql_running: make.gauge("karrow_sql_running", "SQL queries that run.")?,
            named_queries: make.counters(
                "karrow_named_queries_total",
                "Questions by the name of a query, by what answered them: the cache, or a run.",
                &["query", "source"],
            )?,
            schema_registry_seconds: make.histogram(
                "karrow_schema_registry_seconds",
                "Duration of requests to the schema registry.",
            )?,
            flight_requests: make.counters(
                "karrow_flight_requests_total",
                "Calls of Arrow Flight.",
                &["rpc"],
            )?,
            flight_errors: make.counters(
                "karrow_flight_errors_total",
                "Calls of Arrow Flight that ended with an error, by its code.",
                &["rpc", "code"],
            )?,
            flight_bytes: make.counters(
                "karrow_flight_bytes_total",
                "Bytes of Arrow messages to and from Flight clients.",
                &["rpc"],
            )?,
            flight_batches: make.counters(
                "karrow_flight_batches_total",
                "Batches to Flight clients: shared, as their window has them, or encoded for one reader.",
                &["encoding"],
            )?,
            streams: make.gauges("karrow_streams", "Topics kept as streams, by phase.", &["phase"])?,
            stream_bytes: make.gauges(
                "karrow_stream_window_bytes",
                "Bytes in the window of a stream.",
                &["topic"],
            )?,
            stream_rows: make.gauges(
                "karrow_stream_window_rows",
                "Rows in the window of a stream.",
                &["topic"],
            )?,
            stream_age: make.gauges(
                "karrow_stream_window_age_ms",
                "Age of the oldest batch in the window of a stream, in milliseconds.",
                &["topic"],
            )?,
            stream_lag: make.gauges(
                "karrow_stream_lag_messages",
                "Records between the end of a stream's window and that of its topic.",
                &["topic"],
            )?,
            stream_readers: make.gauges(
                "karrow_stream_readers",
                "Readers of a stream.",
                &["topic"],
            )?,
            stream_paused_partitions: make.gauges(
                "karrow_stream_paused_partitions",
                "Partitions of a stream that nothing is taken from, because its window is full.",
                &["topic"],
            )?,
            range_readers: make.gauges(
                "karrow_range_readers",
                "Readers of what no window has, with a Kafka client of their own or waiting for one.",
                &["state"],
            )?,
            stream_dropped_rows: make.counters(
                "karrow_stream_dropped_rows_total",
                "Rows that left the window of a stream: it was full, they were old, or the log went on elsewhere.",
                &["topic", "reason"],
            )?,
            registry: registry.clone(),
        };
        Ok(metrics)
    }

    /// The text format of Prometheus.
    ///
    /// # Errors
    /// A metric cannot be written, which is a bug.
    pub fn text(&self) -> Result<String> {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).map_err(internal)
    }
}

struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        let metric = IntCounter::new(name, help).map_err(internal)?;
        self.0.register(Box::new(metric.clone())).map_err(internal)?;
        Ok(metric)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        let metric = IntCounterVec::new(Opts::new(name, help), labels).map_err(internal)?;
        self.0.register(Box::new(metric.clone())).map_err(internal)?;
        Ok(metric)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let metric = HistogramVec::new(options, labels).map_err(internal)?;
        self.0.register(Box::new(metric.clone())).map_err(internal)?;
        Ok(metric)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        let metric = IntGauge::new(name, help).map_err(internal)?;
        self.0.register(Box::new(metric.clone())).map_err(internal)?;
        Ok(metric)
    }

    fn histogram(&self, name: &str, help: &str) -> Result<Histogram> {
        let metric = Histogram::with_opts(HistogramOpts::new(name, help)).map_err(internal)?;
        self.0.register(Box::new(metric.clone())).map_err(internal)?;
        Ok(metric)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        let metric = IntGaugeVec::new(Opts::new(name, help), labels).map_err(internal)?;
        self.0.register(Box::new(metric.clone())).map_err(internal)?;
        Ok(metric)
    }
}

fn internal(error: prometheus::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("metrics: {error}"))
}
