//! RPUSHX, RPUSH and DUMP: messages and acks.

use std::sync::Arc;
use std::time::Duration;

use super::{Client, Outcome, Wait, integer};
use crate::decode::rows::{STREAM_EXPANSION_MAX, rows_of};
use crate::error::Error;
use crate::kafka::producer::{Lane, Message, OwnedMessage, RoomMark, SendError, Ticket};
use crate::serve::resp::reply::{Output, Value};
use crate::stream::acks::parse_acks;

/// rafka's text for a produce key that is none.
const BAD_KEY: &str =
    "PROD First argument must be in the form of 'topics:<topic>' or 'topics:<topic>:<key>'";

/// Longest wait of DUMP, in milliseconds.
const DUMP_MILLIS_MAX: i64 = 3_600_000;

pub fn rpushx(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let &[_, key, message] = args else {
        out.error(&format!("PROD RPUSHX accepts 2 arguments, got {}", args.len() - 1));
        return Outcome::Done;
    };
    let Some((topic, key)) = split_key(key).filter(|_| !key.starts_with(b"arrow:")) else {
        out.error(BAD_KEY);
        return Outcome::Done;
    };
    let sent = lane(client, topic)
        .and_then(|lane| client.gateway.producer.send(&lane, &plain(key, message)));
    match sent {
        Ok(()) => out.int(1),
        Err(SendError::Wait(mark)) => return room(client, mark),
        Err(SendError::Failed(error)) => out.error(&format!("PROD {error}")),
    }
    Outcome::Done
}

pub fn rpush(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let [_, key, values @ ..] = args else { return Outcome::Done };
    match *key {
        b"acks" => ack(client, values, out),
        key if key.starts_with(b"topics:") || key.starts_with(b"topic:") => {
            produce(client, key, values, out)
        }
        key if key.starts_with(b"arrow:") => produce_rows(client, key, values, out),
        _ => {
            out.error("CONS You can only RPUSH to the 'acks' key");
            Outcome::Done
        }
    }
}

fn produce(client: &mut Client, key: &[u8], values: &[&[u8]], out: &mut Output) -> Outcome {
    let Some((topic, key)) = split_key(key) else {
        out.error(BAD_KEY);
        return Outcome::Done;
    };
    send_all(client, topic, values.len(), &|index| match values.get(index) {
        Some(value) => plain(key, value),
        None => Message::default(),
    })
}

/// `RPUSH arrow:<topic>`: one message for each row of its IPC streams. Nothing is sent unless all of them can be.
fn produce_rows(client: &mut Client, key: &[u8], values: &[&[u8]], out: &mut Output) -> Outcome {
    let Some((topic, None)) = split_key(key) else {
        out.error("PROD First argument must be in the form of 'arrow:<topic>'");
        return Outcome::Done;
    };
    let mut rows = client
        .resumed
        .as_mut()
        .map(|resumed| std::mem::take(&mut resumed.rows))
        .unwrap_or_default();
    if rows.is_empty() {
        let bytes_max = client.gateway.config.bulk_bytes_max.saturating_mul(STREAM_EXPANSION_MAX);
        match rows_of(values, 0, bytes_max) {
            Ok(of_streams) => rows = of_streams,
            Err(error) => {
                out.error(&format!("PROD {error}"));
                return Outcome::Done;
            }
        }
        if rows.is_empty() {
            out.int(0);
            return Outcome::Done;
        }
    }
    let is_begun = client.resumed.as_ref().is_some_and(|resumed| resumed.ticket.is_some());
    if !is_begun {
        match check(client, topic, &rows) {
            Ok(()) => {}
            Err(SendError::Wait(mark)) => {
                let outcome = room(client, mark);
                client.resumed.get_or_insert_default().rows = rows;
                return outcome;
            }
            Err(SendError::Failed(error)) => {
                out.error(&format!("PROD {error}"));
                return Outcome::Done;
            }
        }
    }
    let outcome = send_all(client, topic, rows.len(), &|index| {
        rows.get(index).map(OwnedMessage::borrowed).unwrap_or_default()
    });
    if let (Outcome::Wait(_), Some(resumed)) = (&outcome, &mut client.resumed) {
        resumed.rows = rows;
    }
    outcome
}

/// Whether all of them can be sent, as far as that can be told before the first one is.
fn check(client: &mut Client, topic: &str, rows: &[OwnedMessage]) -> Result<(), SendError> {
    let lane = lane(client, topic)?;
    let producer = &client.gateway.producer;
    rows.iter().enumerate().try_for_each(|(number, row)| {
        let message = row.borrowed();
        producer.check(&lane, message.partition, message.bytes()).map_err(|error| match error {
            SendError::Failed(error) => {
                SendError::Failed(Error::new(error.kind(), format!("row {number}: {error}")))
            }
            wait => wait,
        })
    })
}

/// Sends `count` messages and leaves a reply that says how many of them were stored. While there is no room the command
/// waits, and goes on from there.
fn send_all<'a>(
    client: &mut Client,
    topic: &str,
    count: usize,
    message: &dyn Fn(usize) -> Message<'a>,
) -> Outcome {
    let resumed = client.resumed.take().unwrap_or_default();
    let ticket =
        resumed.ticket.unwrap_or_else(|| Ticket::new(count, client.info.attention.clone()));
    let way = match lane(client, topic) {
        Ok(lane) => Ok(lane.with_ticket(ticket.clone())),
        Err(SendError::Failed(error)) => Err(error),
        Err(SendError::Wait(mark)) => {
            let resumed_again = client.resumed.get_or_insert_default();
            resumed_again.progress = resumed.progress;
            resumed_again.ticket = Some(ticket);
            return room(client, mark);
        }
    };
    for index in resumed.progress..count {
        let sent = match &way {
            Ok(way) => client.gateway.producer.send(way, &message(index)),
            Err(error) => Err(SendError::Failed(error.clone())),
        };
        match sent {
            Ok(()) => {}
            Err(SendError::Failed(error)) => ticket.settle(1, Some(error)),
            Err(SendError::Wait(mark)) => {
                let resumed = client.resumed.get_or_insert_default();
                resumed.progress = index;
                resumed.ticket = Some(ticket);
                return room(client, mark);
            }
        }
    }
    Outcome::Ticket(ticket)
}

fn plain<'a>(key: Option<&'a [u8]>, message: &'a [u8]) -> Message<'a> {
    Message { key, payload: Some(message), ..Message::default() }
}

/// `<anything>:<topic>[:<key>]`; the key may contain colons, an empty one is none.
fn split_key(key: &[u8]) -> Option<(&str, Option<&[u8]>)> {
    let mut parts = key.splitn(3, |byte| *byte == b':');
    parts.next()?;
    let topic = std::str::from_utf8(parts.next()?).ok()?;
    let key = parts.next().filter(|key| !key.is_empty());
    (!topic.is_empty()).then_some((topic, key))
}

/// The connection's way to `topic`; most clients stay with one.
fn lane(client: &mut Client, topic: &str) -> Result<Arc<Lane>, SendError> {
    if let Some(lane) = &client.lane
        && lane.topic() == topic
        && !lane.is_stale()
    {
        return Ok(lane.clone());
    }
    let lane = client.gateway.producer.lane(&client.account, topic)?;
    client.lane = Some(lane.clone());
    Ok(lane)
}

/// Runs the command again when there is room for its message.
fn room(client: &mut Client, mark: RoomMark) -> Outcome {
    client.resumed.get_or_insert_default();
    let producer = client.gateway.producer.clone();
    let until = Box::pin(async move { producer.room(mark).await });
    Outcome::Wait(Wait { until, deadline: None, pops: false })
}

fn ack(client: &mut Client, values: &[&[u8]], out: &mut Output) -> Outcome {
    let acks = if values == [b"last".as_slice()] {
        Ok(client.last_delivered.clone())
    } else {
        parse_acks(values.iter().copied())
    };
    let counted = acks.map_err(|error| error.to_string()).and_then(|acks| {
        let own = client.lease.as_ref().map(|lease| lease.session().clone());
        let name = client.info.name();
        let session = own
            .or_else(|| name.as_deref().and_then(|name| client.gateway.registry.session(name)))
            .ok_or_else(|| {
                let id = name.map_or_else(|| client.info.addr.to_string(), |name| name.to_string());
                format!("No consumer registered for Client {id}")
            })?;
        let moved = session.ack(&acks).map_err(|error| error.to_string())?;
        Ok((moved, acks.len()))
    });
    let count = |outcome: &str, by: usize| {
        client.gateway.metrics.acks.with_label_values(&[outcome]).inc_by(by as u64);
    };
    match counted {
        Ok((moved, all)) => {
            count("moved", moved);
            count("repeated", all - moved);
            out.int(moved as i64);
        }
        Err(why) => {
            count("refused", 1);
            out.error(&format!("CONS {why}"));
        }
    }
    Outcome::Done
}

pub fn dump(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let Some(millis) = args.get(1).and_then(|millis| integer(millis)) else {
        out.error("PROD NaN");
        return Outcome::Done;
    };
    if client.account.unflushed() == 0 {
        out.int(0);
        return Outcome::Done;
    }
    let timeout = Duration::from_millis(millis.clamp(0, DUMP_MILLIS_MAX).unsigned_abs());
    let (producer, account) = (client.gateway.producer.clone(), client.account.clone());
    Outcome::Run(Box::pin(
        async move { Value::Int(producer.drain(&account, timeout).await as i64) },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_split_at_most_three_ways() {
        type Split = Option<(&'static str, Option<&'static str>)>;
        let cases: &[(&str, Split)] = &[
            ("topics:t", Some(("t", None))),
            ("topic:t", Some(("t", None))),
            ("topics:t:", Some(("t", None))),
            ("topics:t:k", Some(("t", Some("k")))),
            ("topics:t:k:with:colons", Some(("t", Some("k:with:colons")))),
            ("topics", None),
            ("topics:", None),
            ("topics::k", None),
            ("", None),
        ];
        for (key, expect) in cases {
            let expect = expect.map(|(topic, key)| (topic, key.map(str::as_bytes)));
            assert_eq!(split_key(key.as_bytes()), expect, "{key}");
        }
        assert_eq!(split_key(b"topics:\xff"), None);
        assert_eq!(split_key(b"topics:t:\xff"), Some(("t", Some(b"\xff".as_slice()))));
    }
}
