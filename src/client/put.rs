//! `karrow client put`: messages from a file or stdin.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, FlightDescriptor};
use futures::stream::{self, Stream, StreamExt};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::connection::{Server, reason};
use super::output::print;
use super::{Failure, input};
use crate::config::flags::client::{PutFlags, PutInput};

/// Batches that were read and not sent.
const BATCHES_MAX: usize = 2;

/// Why the messages ended too early; the first reason counts.
#[derive(Clone, Default)]
struct Cause(Arc<Mutex<Option<Failure>>>);

impl Cause {
    fn set(&self, failure: Failure) {
        if let Ok(mut cause) = self.0.lock() {
            cause.get_or_insert(failure);
        }
    }

    fn take(&self) -> Option<Failure> {
        self.0.lock().ok().and_then(|mut cause| cause.take())
    }
}

/// Sends all that there is, or until `stop`, and prints how much of it is stored.
///
/// # Errors
/// The input's or the server's; how many messages are stored is said as well.
pub async fn run(server: Server, flags: PutFlags, stop: CancellationToken) -> Result<(), Failure> {
    if flags.input() == PutInput::Json && !flags.columns.is_empty() {
        return Err(Failure::usage(
            "--columns: a line of JSON is sent as it is, it has no columns",
        ));
    }
    let topic = flags.topic.0.clone();
    let (sender, mut batches) = mpsc::channel(BATCHES_MAX);
    // A thread of its own, because nothing can wake it from reading stdin.
    std::thread::spawn(move || input::read(&flags, &sender));

    let first = tokio::select! {
        first = batches.recv() => first,
        () = stop.cancelled() => None,
    };
    let cause = Cause::default();
    let first = match first {
        Some(Ok(first)) => first,
        // Without a row there is no message to send.
        Some(Err(failure)) => return Err(stored_before(failure, 0, &topic)),
        None => return said(0, &topic),
    };
    let input_cause = cause.clone();
    let schema = first.schema();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    let rest = stream::unfold((batches, stop), move |(mut batches, stop)| {
        let cause = input_cause.clone();
        async move {
            let next = tokio::select! {
                next = batches.recv() => next?,
                () = stop.cancelled() => return None,
            };
            match next {
                Ok(batch) => Some((Ok(batch), (batches, stop))),
                Err(failure) => {
                    cause.set(failure);
                    None
                }
            }
        }
    });
    let messages = FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_flight_descriptor(Some(FlightDescriptor::new_path(vec![topic.clone()])))
        .build(stream::iter([Ok(first)]).chain(rest).inspect(move |batch| {
            let rows = batch.as_ref().map_or(0, RecordBatch::num_rows);
            counted.fetch_add(rows as u64, Ordering::Relaxed);
        }));
    let messages = until_error(messages, cause.clone());

    let mut stored = 0;
    let failed = match server.client().do_put(messages).await {
        Err(status) => Some(status),
        Ok(answer) => {
            let mut results = answer.into_inner();
            loop {
                match results.message().await {
                    Ok(Some(result)) => stored += rows_of(&result.app_metadata),
                    Ok(None) => break None,
                    Err(status) => break Some(status),
                }
            }
        }
    };
    if failed.is_none() {
        // The server's word for all of it, whatever its results have said of the parts.
        stored = sent.load(Ordering::Relaxed);
    }
    match (failed, cause.take()) {
        (None, None) => said(stored, &topic),
        (None, Some(failure)) => Err(stored_before(failure, stored, &topic)),
        // What is wrong with messages is no fault of the command line.
        (Some(status), _) if status.code() == Code::InvalidArgument => {
            Err(stored_before(Failure::failed(reason(&status)), stored, &topic))
        }
        (Some(status), _) => Err(stored_before(server.failure(&status), stored, &topic)),
    }
}

/// The messages before the first error, which is remembered.
fn until_error<S>(messages: S, cause: Cause) -> impl Stream<Item = FlightData> + Send + 'static
where
    S: Stream<Item = Result<FlightData, FlightError>> + Send + 'static,
{
    messages
        .map(move |message| {
            message.map_err(|error| cause.set(Failure::failed(format!("cannot send it: {error}"))))
        })
        .take_while(|message| std::future::ready(message.is_ok()))
        .filter_map(|message| std::future::ready(message.ok()))
}

/// How many messages a result is about, if it says so.
fn rows_of(app_metadata: &[u8]) -> u64 {
    let said: Option<Value> = serde_json::from_slice(app_metadata).ok();
    said.and_then(|said| said.get("rows")?.as_u64()).unwrap_or(0)
}

fn count(stored: u64) -> String {
    match stored {
        1 => "1 message is".to_owned(),
        stored => format!("{stored} messages are"),
    }
}

fn said(stored: u64, topic: &str) -> Result<(), Failure> {
    print(format!("{} stored in {topic}\n", count(stored)).as_bytes())
}

fn stored_before(failure: Failure, stored: u64, topic: &str) -> Failure {
    let and = |error: crate::error::Error| {
        let message = format!("{error}; {} stored in {topic}", count(stored));
        crate::error::Error::new(error.kind(), message)
    };
    match failure {
        Failure::Usage(error) => Failure::Usage(and(error)),
        Failure::Failed(error) => Failure::Failed(and(error)),
        Failure::ReaderGone => Failure::ReaderGone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_leniently() {
        for (text, rows) in [
            (r#"{"offsets":{"0":[12,40]},"rows":28}"#, 28),
            (r#"{"offsets":{"0":[12,40]}}"#, 0),
            (r#"{"rows":"28"}"#, 0),
            ("", 0),
            ("[]", 0),
        ] {
            assert_eq!(rows_of(text.as_bytes()), rows, "{text}");
        }
    }
}
