//! Dead letters: records that could not be decoded, kept in `<topic>.dlq` as they were.
//!
//! A letter that no broker would ever take, being too large with its headers or having no legal topic, must not stop its
//! topic for good: its row is handed out all the same, with the bytes in `error`, and the log says where it was.

use std::ops::Range;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::Notify;

use crate::decode::envelope::Bad;
use crate::error::{Error, ErrorKind, Result};
use crate::kafka::producer::{Account, Header, Message, Producer, SendError, Ticket};
use crate::kafka::record::RecordView;
use crate::metrics::Metrics;

/// What the name of a topic of dead letters ends with.
const SUFFIX: &str = ".dlq";

/// Most bytes of the reason that a letter carries.
const REASON_BYTES_MAX: usize = 4096;

/// A record on its way to the dead letters of its topic.
pub struct Letter {
    topic: String,
    partition: i32,
    offset: i64,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    headers: Vec<Header>,
}

/// Stores the letters of one batch after the other.
pub struct Letters {
    producer: Arc<Producer>,
    account: Arc<Account>,
    settled: Arc<Notify>,
    metrics: Arc<Metrics>,
    run: Option<Run>,
}

/// Letters that are sent together, of all that are to be stored.
struct Run {
    ticket: Arc<Ticket>,
    letters: Range<usize>,
    /// Up to where they were sent.
    sent: usize,
}

/// The letters of the bad records among `records`: their bytes and headers, and four headers more that say where each was
/// and what is wrong with it.
pub fn letters_of(topic: &str, bad: &[Bad], records: &[RecordView<'_>]) -> Vec<Letter> {
    bad.chunk_by(|a, b| a.record == b.record)
        .filter_map(|of_one| {
            let record = records.get(of_one.first()?.record)?;
            let why: Vec<String> = of_one.iter().map(|bad| bad.reject.to_string()).collect();
            let own = |name: &str, value: String| (name.to_owned(), Some(value.into_bytes()));
            let mut headers: Vec<Header> = record
                .headers
                .iter()
                .map(|(name, value)| {
                    // A name that is no UTF-8 is escaped, as in the column `headers`.
                    let name = match std::str::from_utf8(name) {
                        Ok(name) => name.to_owned(),
                        Err(_) => name.escape_ascii().to_string(),
                    };
                    (name, value.map(<[u8]>::to_vec))
                })
                .collect();
            headers.push(own("karrow.topic", topic.to_owned()));
            headers.push(own("karrow.partition", record.partition.to_string()));
            headers.push(own("karrow.offset", record.offset.to_string()));
            let mut why = why.join("; ");
            let end = (0..=REASON_BYTES_MAX).rev().find(|end| why.is_char_boundary(*end));
            why.truncate(end.unwrap_or(0));
            headers.push(own("karrow.error", why));
            Some(Letter {
                topic: format!("{topic}{SUFFIX}"),
                partition: record.partition,
                offset: record.offset,
                key: record.key.map(<[u8]>::to_vec),
                payload: record.payload.map(<[u8]>::to_vec),
                headers,
            })
        })
        .collect()
}

impl Letter {
    /// The topic of its record.
    fn of(&self) -> &str {
        self.topic.strip_suffix(SUFFIX).unwrap_or(&self.topic)
    }
}

impl Letters {
    /// Stores by `producer`.
    pub fn new(producer: Arc<Producer>, metrics: Arc<Metrics>) -> Self {
        let settled = Arc::new(Notify::new());
        Self { producer, account: Arc::default(), settled, metrics, run: None }
    }

    /// Stores `letters`: `None` once all of them are that can be. Until then, to be called again with the same ones after
    /// each change.
    ///
    /// # Errors
    /// Some were not stored; the next call sends all of them again, for one too many is better than one lost.
    pub fn store(&mut self, letters: &[Letter]) -> Result<Option<BoxFuture<'static, ()>>> {
        let mut run = match self.run.take() {
            Some(run) => run,
            None => self.run_of(0..letters.len()),
        };
        while let Some(first) = letters.get(run.letters.start) {
            while run.sent < run.letters.end
                && let Some(letter) = letters.get(run.sent)
            {
                match self.send(letter, &run.ticket) {
                    Ok(()) => {}
                    // As if a broker had said it, so that there is one way for both.
                    Err(SendError::Failed(error)) if error.kind() == ErrorKind::Invalid => {
                        run.ticket.settle(1, Some(error));
                    }
                    Err(SendError::Failed(error)) => return Err(failed(first, &error)),
                    Err(SendError::Wait(mark)) => {
                        self.run = Some(run);
                        let producer = self.producer.clone();
                        return Ok(Some(Box::pin(async move { producer.room(mark).await })));
                    }
                }
                run.sent += 1;
            }
            let outcome = run.ticket.outcome();
            if let Some(Ok(count)) = outcome {
                let topic = first.of();
                let stored = self.metrics.dead_letters.with_label_values(&[topic, "stored"]);
                stored.inc_by(count as u64);
            }
            let next = match outcome {
                None => {
                    self.run = Some(run);
                    let settled = self.settled.clone();
                    return Ok(Some(Box::pin(async move { settled.notified().await })));
                }
                Some(Ok(_)) if run.letters.len() == 1 => run.letters.end..run.letters.end + 1,
                Some(Ok(_)) => run.letters.end..letters.len(),
                Some(Err(error)) if error.kind() != ErrorKind::Invalid => {
                    return Err(failed(first, &error));
                }
                // One of them is refused for good, and nothing says which: from here on each goes alone.
                Some(Err(_)) if run.letters.len() > 1 => run.letters.start..run.letters.start + 1,
                Some(Err(error)) => {
                    self.give_up(first, &error);
                    run.letters.end..run.letters.end + 1
                }
            };
            run = self.run_of(next);
        }
        Ok(None)
    }

    fn run_of(&self, letters: Range<usize>) -> Run {
        let ticket = Ticket::new(letters.len(), self.settled.clone());
        Run { ticket, sent: letters.start, letters }
    }

    fn send(&self, letter: &Letter, ticket: &Arc<Ticket>) -> Result<(), SendError> {
        let message = Message {
            key: letter.key.as_deref(),
            payload: letter.payload.as_deref(),
            headers: &letter.headers,
            ..Message::default()
        };
        let lane = self.producer.lane(&self.account, &letter.topic)?;
        self.producer.send(&lane.with_ticket(ticket.clone()), &message)
    }

    fn give_up(&self, letter: &Letter, error: &Error) {
        let topic = letter.of();
        self.metrics.dead_letters.with_label_values(&[topic, "refused"]).inc();
        tracing::warn!(
            record = %format_args!("{topic}:{}:{}", letter.partition, letter.offset),
            %error,
            "a bad record cannot be a dead letter"
        );
    }
}

fn failed(letter: &Letter, error: &Error) -> Error {
    Error::new(error.kind(), format!("dead letters to {}: {}", letter.topic, error.message()))
}
