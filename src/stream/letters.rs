//! Dead letters: records that could not be decoded, kept in `<topic>.dlq` as they were.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::Notify;

use crate::decode::envelope::Bad;
use crate::error::{Error, Result};
use crate::kafka::producer::{Account, Header, Message, Producer, SendError, Ticket};
use crate::kafka::record::RecordView;

/// A record on its way to the dead letters of its topic.
pub struct Letter {
    topic: String,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    headers: Vec<Header>,
}

/// Stores the letters of one batch after the other.
pub struct Letters {
    producer: Arc<Producer>,
    account: Arc<Account>,
    settled: Arc<Notify>,
    /// Who waits for the letters that are under way, and how many were sent.
    under_way: Option<(Arc<Ticket>, usize)>,
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
            headers.push(own("karrow.error", why.join("; ")));
            Some(Letter {
                topic: format!("{topic}.dlq"),
                key: record.key.map(<[u8]>::to_vec),
                payload: record.payload.map(<[u8]>::to_vec),
                headers,
            })
        })
        .collect()
}

impl Letters {
    /// Stores by `producer`.
    pub fn new(producer: Arc<Producer>) -> Self {
        Self {
            producer,
            account: Arc::default(),
            settled: Arc::new(Notify::new()),
            under_way: None,
        }
    }

    /// Stores `letters`: `None` once all of them are. Until then, to be called again with the same ones after each change.
    ///
    /// # Errors
    /// Some were not stored; the next call sends all of them again, for one too many is better than one lost.
    pub fn store(&mut self, letters: &[Letter]) -> Result<Option<BoxFuture<'static, ()>>> {
        let Some(first) = letters.first() else { return Ok(None) };
        let (ticket, mut sent) = self
            .under_way
            .take()
            .unwrap_or_else(|| (Ticket::new(letters.len(), self.settled.clone()), 0));
        let failed = |error: Error| {
            Error::new(
                error.kind(),
                format!("dead letters to {}: {}", first.topic, error.message()),
            )
        };
        while let Some(letter) = letters.get(sent) {
            let message = Message {
                key: letter.key.as_deref(),
                payload: letter.payload.as_deref(),
                headers: &letter.headers,
                ..Message::default()
            };
            let lane = self.producer.lane(&self.account, &letter.topic);
            let outcome = lane
                .and_then(|lane| self.producer.send(&lane.with_ticket(ticket.clone()), &message));
            match outcome {
                Ok(()) => sent += 1,
                Err(SendError::Failed(error)) => return Err(failed(error)),
                Err(SendError::Wait(mark)) => {
                    self.under_way = Some((ticket, sent));
                    let producer = self.producer.clone();
                    return Ok(Some(Box::pin(async move { producer.room(mark).await })));
                }
            }
        }
        match ticket.outcome() {
            Some(Ok(_)) => Ok(None),
            Some(Err(error)) => Err(failed(error)),
            None => {
                self.under_way = Some((ticket, sent));
                let settled = self.settled.clone();
                Ok(Some(Box::pin(async move { settled.notified().await })))
            }
        }
    }
}
