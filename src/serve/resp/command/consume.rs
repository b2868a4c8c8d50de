//! BLPOP and LPOP: a connection's subscription, its session, and messages in the form the key asks for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::{Map, Value as Json, json};

use super::{Client, Outcome, Wait, integer, text};
use crate::error::{Error, ErrorKind};
use crate::kafka::record::Record;
use crate::serve::resp::reply::Output;
use crate::stream::acks::Ack;
use crate::stream::batch::encode;
use crate::stream::drain::{Drain, Drained};
use crate::stream::session::{Pop, SessionName};

/// In which form a message is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Representation {
    /// rafka's eight elements.
    Topics,
    /// The key and one JSON document.
    Json,
    /// The key and an Arrow IPC stream of one batch.
    Arrow,
}

/// What the keys of a pop say. The identity of a subscription is the ordered list of its topics.
pub struct Subscription {
    /// The arguments it was parsed from, to recognize the next pop.
    keys: Vec<Vec<u8>>,
    topics: Vec<Arc<str>>,
    /// For each topic the index of its key, and the form it asks for.
    forms: Vec<(usize, Representation)>,
    asked: Map<String, Json>,
}

impl Subscription {
    fn parse(keys: &[&[u8]]) -> Result<Self, String> {
        let mut parsed = Self {
            keys: keys.iter().map(|key| key.to_vec()).collect(),
            topics: Vec::new(),
            forms: Vec::new(),
            asked: Map::new(),
        };
        for (index, key) in keys.iter().enumerate() {
            parsed.add(index, key)?;
        }
        if parsed.is_arrow() && parsed.forms.iter().any(|(_, form)| *form != Representation::Arrow)
        {
            return Err(
                "CONS keys of one pop are either all `arrow:` or none of them is".to_owned()
            );
        }
        Ok(parsed)
    }

    fn add(&mut self, index: usize, key: &[u8]) -> Result<(), String> {
        let shown = text(key);
        let key = std::str::from_utf8(key)
            .map_err(|_| format!("CONS Cannot parse topics from `{shown}`"))?;
        let mut parts = key.splitn(3, ':');
        let form = match parts.next() {
            Some("topics") => Representation::Topics,
            Some("json") => Representation::Json,
            Some("arrow") => Representation::Arrow,
            _ => return Err(format!("CONS Cannot parse topics from `{shown}`")),
        };
        let topics =
            parts.next().ok_or_else(|| format!("CONS Cannot parse topics from `{shown}`"))?;
        if topics.is_empty() || topics.split(',').any(str::is_empty) {
            return Err(format!("CONS Not enough topics in `{shown}`"));
        }
        for topic in topics.split(',') {
            if !self.topics.iter().any(|known| **known == *topic) {
                self.topics.push(Arc::from(topic));
                self.forms.push((index, form));
            }
        }
        match parts.next().unwrap_or("").trim() {
            "" => {}
            config => match serde_json::from_str(config) {
                Ok(Json::Object(asked)) => self.asked.extend(asked),
                Ok(_) => {
                    return Err(format!(
                        "CONS Error parsing configuration from '{config}'; it is no JSON object"
                    ));
                }
                Err(why) => {
                    return Err(format!("CONS Error parsing configuration from '{config}'; {why}"));
                }
            },
        }
        Ok(())
    }

    /// Whether it asks for batches.
    fn is_arrow(&self) -> bool {
        self.forms.iter().any(|(_, form)| *form == Representation::Arrow)
    }

    fn is(&self, keys: &[&[u8]]) -> bool {
        self.keys.len() == keys.len() && self.keys.iter().zip(keys).all(|(known, key)| known == key)
    }

    /// The key that `topic` came by, and the form it asks for.
    fn form(&self, topic: &str) -> (usize, Representation) {
        match self.forms.as_slice() {
            [only] => *only,
            forms => self
                .topics
                .iter()
                .position(|known| **known == *topic)
                .and_then(|index| forms.get(index).copied())
                .unwrap_or((0, Representation::Topics)),
        }
    }
}

/// A batch as clients get it.
struct Stream {
    topic: Arc<str>,
    acks: Vec<Ack>,
    /// An IPC stream, in parts.
    ipc: Vec<Bytes>,
}

/// What an LPOP found first.
enum First {
    Record(Record),
    Batch(Stream),
    Nothing,
}

/// What a pop found.
enum Next {
    Record(Record),
    Batch(Stream),
    /// A batch that may fill up until then.
    Filling(Instant),
    /// Schemas have to be fetched first. A registry that is away is no error of the data: the pop goes on waiting.
    Unfetched(BoxFuture<'static, ()>),
    /// Dead letters have to be stored first.
    Storing(BoxFuture<'static, ()>),
    /// Nothing yet.
    Nothing,
    Error(String),
}

pub fn blpop(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let [_, keys @ .., timeout] = args else { return Outcome::Done };
    let timeout = match seconds(timeout) {
        Ok(timeout) => timeout,
        Err(why) => {
            out.error(why);
            return Outcome::Done;
        }
    };
    let deadline = match &client.resumed {
        Some(_) => client.deadline_of(),
        None => timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
    };
    match next(client, keys) {
        Next::Record(mut record) => {
            client.last_delivered.clear();
            deliver(client, &mut record, out, Some(keys));
        }
        Next::Batch(batch) => {
            client.last_delivered.clear();
            deliver_batch(client, batch, out, Some(keys));
        }
        Next::Error(why) => out.error(&why),
        Next::Filling(until) => return wait_to_fill(client, deadline, until),
        Next::Unfetched(change) | Next::Storing(change)
            if !client.timed_out() && !client.transaction.is_running() =>
        {
            return wait_for(client, deadline, change);
        }
        Next::Nothing if !client.timed_out() && !client.transaction.is_running() => {
            return wait(client, deadline);
        }
        Next::Nothing | Next::Unfetched(_) | Next::Storing(_) => {
            client.last_delivered.clear();
            out.null_array();
        }
    }
    Outcome::Done
}

pub fn lpop(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let (key, count) = match args {
        [_, key] => (*key, None),
        [_, key, count] => match integer(count).and_then(|count| usize::try_from(count).ok()) {
            // Nothing is asked for, so nothing is taken, as in Redis.
            Some(0) => {
                out.array(0);
                return Outcome::Done;
            }
            Some(count) => (*key, Some(count)),
            None => {
                out.error("ERR value is out of range, must be positive");
                return Outcome::Done;
            }
        },
        _ => {
            out.error("ERR wrong number of arguments for 'lpop' command");
            return Outcome::Done;
        }
    };
    let deadline = match &client.resumed {
        Some(_) => client.deadline_of(),
        None => Instant::now().checked_add(client.gateway.config.lpop_wait),
    };
    let keys = [key];
    let is_over = client.timed_out() || client.transaction.is_running();
    let first = match next(client, &keys) {
        Next::Record(record) => First::Record(record),
        Next::Batch(batch) => First::Batch(batch),
        Next::Error(why) => {
            out.error(&why);
            return Outcome::Done;
        }
        Next::Filling(until) => return wait_to_fill(client, deadline, until),
        Next::Unfetched(change) | Next::Storing(change) if !is_over => {
            return wait_for(client, deadline, change);
        }
        Next::Nothing if !is_over && !client.at_end() => return wait_or_end(client, deadline),
        Next::Nothing | Next::Unfetched(_) | Next::Storing(_) => First::Nothing,
    };
    client.last_delivered.clear();
    match (first, count) {
        (First::Nothing, None) => out.null(),
        (First::Nothing, Some(_)) => out.null_array(),
        (First::Record(mut record), None) => deliver(client, &mut record, out, None),
        (First::Batch(batch), None) => deliver_batch(client, batch, out, None),
        (First::Batch(batch), Some(count)) => {
            let mut bytes = batch.ipc.iter().map(Bytes::len).sum::<usize>();
            let mut batches = vec![batch];
            while batches.len() < count && bytes < client.gateway.config.output_bytes_max {
                match next(client, &keys) {
                    Next::Batch(batch) => {
                        bytes += batch.ipc.iter().map(Bytes::len).sum::<usize>();
                        batches.push(batch);
                    }
                    Next::Error(why) => {
                        client.postponed = Some(why);
                        break;
                    }
                    // One key has one form.
                    Next::Record(_)
                    | Next::Filling(_)
                    | Next::Unfetched(_)
                    | Next::Storing(_)
                    | Next::Nothing => break,
                }
            }
            out.array(batches.len());
            for batch in batches {
                deliver_batch(client, batch, out, None);
            }
        }
        (First::Record(record), Some(count)) => {
            let size = |record: &Record| {
                record.payload().map_or(0, <[u8]>::len) + record.key().map_or(0, <[u8]>::len) + 64
            };
            let mut bytes = size(&record);
            let mut records = vec![record];
            // What is ready, up to what one reply may hold.
            while records.len() < count && bytes < client.gateway.config.output_bytes_max {
                let record = match next(client, &keys) {
                    Next::Record(record) => record,
                    // One key has one form.
                    Next::Nothing
                    | Next::Batch(_)
                    | Next::Filling(_)
                    | Next::Unfetched(_)
                    | Next::Storing(_) => break,
                    Next::Error(why) => {
                        // What was taken is answered first.
                        client.postponed = Some(why);
                        break;
                    }
                };
                bytes += size(&record);
                records.push(record);
            }
            out.array(records.len());
            for record in &mut records {
                deliver(client, record, out, None);
            }
        }
    }
    Outcome::Done
}

/// The next message of the subscription that `keys` name, which the first pop registers.
fn next(client: &mut Client, keys: &[&[u8]]) -> Next {
    if client.subscription.as_ref().is_none_or(|subscription| !subscription.is(keys)) {
        match Subscription::parse(keys) {
            Ok(parsed) => {
                if let Some(other) = conflict(client, &parsed) {
                    return Next::Error(other);
                }
                client.subscription = Some(parsed);
            }
            Err(why) => return Next::Error(why),
        }
    }
    if let Some(why) = client.postponed.take() {
        return Next::Error(why);
    }
    if client.gateway.is_stopping() {
        return Next::Error("CONS Server shutdown".to_owned());
    }
    if client.lease.is_none()
        && let Err(why) = register(client)
    {
        return Next::Error(why);
    }
    // As many batches as a wait would fill must be handed out before anything ends.
    let hurry = client.timed_out() || client.transaction.is_running() || client.at_end();
    let Some(lease) = &client.lease else { return Next::Nothing };
    let session = lease.session();
    let popped = match (&client.subscription, &mut client.drain) {
        (Some(subscription), Some(drain)) if subscription.is_arrow() => {
            match drain.next(session, hurry) {
                Ok(Drained::Batch(batch)) => {
                    let compression = drain.options().compression;
                    return match encode(batch.rows, &batch.acks, compression) {
                        Ok(ipc) => {
                            Next::Batch(Stream { topic: batch.topic, acks: batch.acks, ipc })
                        }
                        Err(error) => Next::Error(format!("CONS Poll {error}")),
                    };
                }
                Ok(Drained::Storing(change)) => return Next::Storing(change),
                Ok(Drained::Filling(until)) => return Next::Filling(until),
                Ok(Drained::Unfetched(change)) => return Next::Unfetched(change),
                Ok(Drained::Nothing(pop)) => Ok(pop),
                Err(error) => Err(error),
            }
        }
        (_, Some(drain)) if drain.is_holding() => {
            return Next::Error(
                "CONS a batch waits for its dead letters to be stored: pop `arrow:` again"
                    .to_owned(),
            );
        }
        // What an earlier pop has left in the drain comes first.
        (_, Some(drain)) => match drain.take_record(session) {
            Some(record) => return Next::Record(record),
            None => session.pop(),
        },
        _ => session.pop(),
    };
    match popped {
        Ok(Pop::Record(record)) => Next::Record(record),
        Ok(Pop::Empty) => Next::Nothing,
        Ok(Pop::Dormant) => {
            lease.join();
            Next::Nothing
        }
        Ok(Pop::Refused(error)) => Next::Error(registration_failed(client, &error)),
        Ok(Pop::Closed) => Next::Error("CONS Server shutdown".to_owned()),
        Err(error) => Next::Error(format!("CONS Poll {error}")),
    }
}

/// rafka's answer to other topics than those of the session.
fn conflict(client: &Client, asked: &Subscription) -> Option<String> {
    let session = client.lease.as_ref()?.session();
    (session.topics() != asked.topics).then(|| {
        let id = session.name().full();
        format!(
            "CONS Client '{id}' has Consumer '{id}|{}' registered (new consID: '{id}|{}')",
            session.topics().join(","),
            asked.topics.join(",")
        )
    })
}

/// Takes the client's name for a session.
fn register(client: &mut Client) -> Result<(), String> {
    let Some(name) = client.info.name() else {
        return Err(
            "CONS Connection not ready. Identify yourself using `CLIENT SETNAME` first".to_owned()
        );
    };
    let Some(subscription) = &client.subscription else { return Err("CONS no topics".to_owned()) };
    let name = SessionName::parse(&name).map_err(|error| format!("CONS {error}"))?;
    let gateway = client.gateway.clone();
    let mut asked = subscription.asked.clone();
    let topics = subscription.topics.clone();
    let claimed = gateway.batches.clone().with(&mut asked).and_then(|options| {
        let lease = gateway.registry.claim(name, topics, &asked, gateway.runtime.clone())?;
        Ok((lease, options))
    });
    match claimed {
        Ok((lease, options)) => {
            client.lease = Some(lease);
            let (formats, metrics) = (gateway.formats.clone(), gateway.metrics.clone());
            let producer = gateway.producer.clone();
            client.drain = Some(Drain::new(formats, options, producer, metrics));
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::Conflict => Err(format!("CONS {error}")),
        Err(error) => Err(registration_failed(client, &error)),
    }
}

fn registration_failed(client: &mut Client, why: &Error) -> String {
    client.lease = None;
    client.drain = None;
    let id = client.info.name().unwrap_or_default();
    let topics =
        client.subscription.take().map(|parsed| parsed.topics.join(",")).unwrap_or_default();
    format!("CONS Failed to register Consumer '{id}|{topics}' for Client '{id}': {why}")
}

/// Waits until the session may have a message.
fn wait(client: &mut Client, deadline: Option<Instant>) -> Outcome {
    let Some(lease) = &client.lease else { return Outcome::Done };
    let session = lease.session().clone();
    client.resumed.get_or_insert_default().deadline = deadline;
    let until = Box::pin(async move { session.wait().await });
    Outcome::Wait(Wait { until, deadline, pops: true })
}

/// Waits until the session may have a message, or the end of all its partitions is reached.
fn wait_or_end(client: &mut Client, deadline: Option<Instant>) -> Outcome {
    let Some(lease) = &client.lease else { return Outcome::Done };
    let session = lease.session().clone();
    let resumed = client.resumed.get_or_insert_default();
    resumed.deadline = deadline;
    let at_end = resumed.at_end.clone();
    let until = Box::pin(async move {
        at_end.store(session.wait_or_end().await, Ordering::Release);
    });
    Outcome::Wait(Wait { until, deadline, pops: true })
}

/// Waits until a batch is full, or may be handed out as it is.
fn wait_to_fill(client: &mut Client, deadline: Option<Instant>, until: Instant) -> Outcome {
    let Some(lease) = &client.lease else { return Outcome::Done };
    let session = lease.session().clone();
    client.resumed.get_or_insert_default().deadline = deadline;
    let wait = Box::pin(async move { session.wait().await });
    let until = deadline.map_or(until, |deadline| deadline.min(until));
    Outcome::Wait(Wait { until: wait, deadline: Some(until), pops: true })
}

/// Waits until `change` ends, then pops again.
fn wait_for(
    client: &mut Client,
    deadline: Option<Instant>,
    change: BoxFuture<'static, ()>,
) -> Outcome {
    client.resumed.get_or_insert_default().deadline = deadline;
    Outcome::Wait(Wait { until: change, deadline, pops: true })
}

/// Writes a batch, and remembers what it covers for `RPUSH acks last`.
fn deliver_batch(client: &mut Client, batch: Stream, out: &mut Output, keys: Option<&[&[u8]]>) {
    if let Some(keys) = keys {
        let form = client.subscription.as_ref().map_or(0, |parsed| parsed.form(&batch.topic).0);
        out.array(2);
        out.bulk(keys.get(form).copied().unwrap_or_default());
    }
    client.last_delivered.extend(batch.acks);
    out.bulk_of(batch.ipc);
}

/// Writes a message, and remembers it for `RPUSH acks last`. `keys` are those of a BLPOP, whose replies name
/// the key.
fn deliver(client: &mut Client, record: &mut Record, out: &mut Output, keys: Option<&[&[u8]]>) {
    let topic = record.topic();
    let form = client
        .subscription
        .as_ref()
        .map_or((0, Representation::Topics), |parsed| parsed.form(topic));
    client.last_delivered.push(Ack {
        topic: topic.to_owned(),
        partition: record.partition(),
        offset: record.offset(),
    });
    match form {
        (_, Representation::Topics) => topics_form(record, out),
        // Only a pop whose keys are of several forms gives records one by one; it has none of this one.
        (index, Representation::Json | Representation::Arrow) => {
            if let Some(keys) = keys {
                out.array(2);
                out.bulk(keys.get(index).copied().unwrap_or_default());
            }
            out.bulk(json_form(record));
        }
    }
}

/// rafka's form: `topic, <t>, partition, <int>, offset, <int>, value, <bytes>`.
fn topics_form(record: &Record, out: &mut Output) {
    let payload = record.payload();
    out.reserve(payload.map_or(0, <[u8]>::len) + 160);
    out.raw(b"*8\r\n$5\r\ntopic\r\n");
    out.bulk(record.topic());
    out.raw(b"$9\r\npartition\r\n");
    out.int(record.partition().into());
    out.raw(b"$6\r\noffset\r\n");
    out.int(record.offset());
    out.raw(b"$5\r\nvalue\r\n");
    match payload {
        Some(payload) => out.bulk(payload),
        None => out.null(),
    }
}

/// A message as one JSON document. Bytes that are no UTF-8 come in base64 under another name, so that nothing
/// is replaced in silence.
fn json_form(record: &mut Record) -> Vec<u8> {
    let mut document = Map::new();
    document.insert("topic".into(), record.topic().into());
    document.insert("partition".into(), record.partition().into());
    document.insert("offset".into(), record.offset().into());
    document.insert("timestamp".into(), record.timestamp().into());
    put_bytes(&mut document, "key", record.key());
    let headers = record.headers();
    let headers = headers.into_iter().map(|(name, value)| {
        let mut header = Map::new();
        put_bytes(&mut header, "key", Some(name));
        put_bytes(&mut header, "value", value);
        Json::Object(header)
    });
    document.insert("headers".into(), headers.collect());
    put_bytes(&mut document, "value", record.payload());
    json!(document).to_string().into_bytes()
}

fn put_bytes(document: &mut Map<String, Json>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(std::str::from_utf8) {
        None => document.insert(name.into(), Json::Null),
        Some(Ok(text)) => document.insert(name.into(), text.into()),
        Some(Err(_)) => document.insert(
            format!("{name}_base64"),
            BASE64_STANDARD.encode(bytes.unwrap_or_default()).into(),
        ),
    };
}

/// A timeout as BLPOP takes it: seconds with fractions, 0 is for ever.
fn seconds(bytes: &[u8]) -> Result<Option<Duration>, &'static str> {
    let out_of_range = "ERR timeout is not a float or out of range";
    let value: f64 =
        std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).ok_or(out_of_range)?;
    if value < 0.0 {
        return Err("ERR timeout is negative");
    }
    if value == 0.0 {
        return Ok(None);
    }
    Duration::try_from_secs_f64(value).map(Some).map_err(|_| out_of_range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(keys: &[&str]) -> Result<(Vec<String>, String), String> {
        let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
        let parsed = Subscription::parse(&keys)?;
        let topics = parsed.topics.iter().map(|topic| topic.to_string()).collect();
        Ok((topics, Json::Object(parsed.asked).to_string()))
    }

    #[test]
    fn keys_name_topics_and_options() {
        let cases: &[(&[&str], &[&str], &str)] = &[
            (&["topics:a"], &["a"], "{}"),
            (&["topics:a:"], &["a"], "{}"),
            (&["topics:b,a"], &["b", "a"], "{}"),
            (&["topics:a", "json:b,a"], &["a", "b"], "{}"),
            (
                &[r#"topics:a:{"auto.offset.reset":"latest"}"#],
                &["a"],
                r#"{"auto.offset.reset":"latest"}"#,
            ),
            (&[r#"json:a:{"x":"y:z"}"#], &["a"], r#"{"x":"y:z"}"#),
        ];
        for (keys, topics, asked) in cases {
            let (parsed, options) = parse(keys).expect("legal");
            assert_eq!(
                (parsed.as_slice(), options.as_str()),
                (topics.map_strings().as_slice(), *asked)
            );
        }
    }

    trait MapStrings {
        fn map_strings(&self) -> Vec<String>;
    }

    impl MapStrings for &[&str] {
        fn map_strings(&self) -> Vec<String> {
            self.iter().map(|text| text.to_string()).collect()
        }
    }

    #[test]
    fn malformed_keys_get_rafkas_texts() {
        for (key, expect) in [
            ("topics", "CONS Cannot parse topics from `topics`"),
            ("topic:a", "CONS Cannot parse topics from `topic:a`"),
            ("a", "CONS Cannot parse topics from `a`"),
            ("topics:", "CONS Not enough topics in `topics:`"),
            ("arrow:", "CONS Not enough topics in `arrow:`"),
            ("topics:a,,b", "CONS Not enough topics in `topics:a,,b`"),
            ("topics:a:[1]", "CONS Error parsing configuration from '[1]'; it is no JSON object"),
        ] {
            assert_eq!(parse(&[key]).expect_err(key), expect);
        }
        let error = parse(&["topics:a:{x"]).expect_err("no JSON");
        assert!(error.starts_with("CONS Error parsing configuration from '{x'; "), "{error}");
        assert!(Subscription::parse(&[b"topics:\xff"]).is_err());
    }

    #[test]
    fn timeouts_are_redis_seconds() {
        assert_eq!(seconds(b"0"), Ok(None));
        assert_eq!(seconds(b"0.0"), Ok(None));
        assert_eq!(seconds(b"1"), Ok(Some(Duration::from_secs(1))));
        assert_eq!(seconds(b"0.25"), Ok(Some(Duration::from_millis(250))));
        for bad in ["", "x", "nan", "inf", "1e40", "\u{e4}"] {
            assert_eq!(
                seconds(bad.as_bytes()),
                Err("ERR timeout is not a float or out of range"),
                "{bad}"
            );
        }
        assert_eq!(seconds(b"-1"), Err("ERR timeout is negative"));
    }
}
