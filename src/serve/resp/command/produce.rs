//! RPUSHX, RPUSH and DUMP: messages and acks.

use std::sync::Arc;
use std::time::Duration;

use super::{Client, Outcome, Wait, integer};
use crate::decode::ipc::{guarded, read_stream};
use crate::decode::reject::RecordLimits;
use crate::decode::rows::{Budget, append};
use crate::error::Error;
use crate::kafka::producer::{Lane, Message, OwnedMessage, RoomMark, SendError, Ticket};
use crate::serve::resp::reply::{Output, Value};
use crate::stream::acks::parse_acks;

/// rafka's text for a produce key that is none.
const BAD_KEY: &str =
    "PROD First argument must be in the form of 'topics:<topic>' or 'topics:<topic>:<key>'";

/// How much larger than the largest argument an Arrow stream may become without its compression, and the rows of all
/// streams of a command.
const STREAM_EXPANSION_MAX: usize = 8;

/// Rows, values and list items in all the columns of one Arrow stream.
const STREAM_ELEMENTS_MAX: usize = 16_000_000;

/// Rows of all the Arrow streams of one command.
const ROWS_MAX: usize = 1_000_000;

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
        match rows_of(values, bytes_max) {
            Ok(of_streams) => rows = of_streams,
            Err(why) => {
                out.error(&format!("PROD {why}"));
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

/// The messages of the IPC streams of one command, of `bytes_max` in all.
fn rows_of(streams: &[&[u8]], bytes_max: usize) -> Result<Vec<OwnedMessage>, String> {
    let limits =
        RecordLimits { bytes_max, elements_max: STREAM_ELEMENTS_MAX, ..RecordLimits::default() };
    let mut budget = Budget::new(bytes_max);
    let mut rows = Vec::new();
    for stream in streams {
        for batch in read_stream(stream, &limits).map_err(|reject| reject.message)? {
            if rows.len() + batch.num_rows() > ROWS_MAX {
                return Err(format!("more than {ROWS_MAX} rows in one command"));
            }
            guarded(|| Ok(append(&batch, &mut budget, &mut rows)))
                .map_err(|reject| reject.message)?
                .map_err(|error| error.to_string())?;
        }
    }
    Ok(rows)
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
    use arrow::array::{
        Array, ArrayData, ArrayRef, BinaryViewBuilder, Date32Array, Date64Array, DictionaryArray,
        FixedSizeListArray, Float16Array, Float32Array, Float64Array, Int8Array, ListArray,
        MapArray, RecordBatch, StringArray, StructArray, Time32SecondArray, Time64NanosecondArray,
        TimestampSecondArray, make_array,
    };

    use arrow::buffer::{NullBuffer, OffsetBuffer};
    use arrow::datatypes::{
        ArrowPrimitiveType, DataType, Field, Fields, Float16Type, Int8Type, Schema,
    };
    use arrow_ipc::CompressionType;
    use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};

    use super::*;

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
            .collect();
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("a batch")
    }

    fn stream(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
        let batch = batch(columns);
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
        writer.write(&batch).expect("written");
        writer.into_inner().expect("finished")
    }

    /// `count` times the value that has a place in `values`.
    fn dictionary(values: Vec<Option<&str>>, place: i8, count: usize) -> ArrayRef {
        let keys = Int8Array::from(vec![place; count]);
        let values = Arc::new(StringArray::from(values));
        Arc::new(DictionaryArray::<Int8Type>::try_new(keys, values).expect("a dictionary"))
    }

    /// Those that are text.
    fn payloads(rows: &[OwnedMessage]) -> Vec<Option<&str>> {
        rows.iter()
            .map(|row| row.payload.as_deref().and_then(|bytes| str::from_utf8(bytes).ok()))
            .collect()
    }

    #[test]
    fn few_bytes_are_no_way_to_many_rows() {
        const MAX: usize = 8 << 20;
        let long = "x".repeat(1_000_000);
        let many = |count: usize| dictionary(vec![Some(&long)], 0, count);
        let few = |count: usize| dictionary(vec![Some("v")], 0, count);
        let views = || {
            let mut views = BinaryViewBuilder::new().with_deduplicate_strings();
            (0..1_000).for_each(|_| views.append_value(&long));
            Arc::new(views.finish()) as ArrayRef
        };
        let list = |items: ArrayRef, rows: usize| {
            let field = Arc::new(Field::new_list_field(items.data_type().clone(), true));
            let offsets = OffsetBuffer::from_lengths(vec![items.len() / rows; rows]);
            Arc::new(ListArray::new(field, offsets, items, None)) as ArrayRef
        };
        let headers = |names: ArrayRef, values: ArrayRef| {
            let pairs = StructArray::try_from(vec![("key", names), ("value", values)]);
            list(Arc::new(pairs.expect("pairs")), 10)
        };
        let cases = [
            (vec![("payload", many(100_000))], "payload: row 8: "),
            (vec![("payload", views())], "payload: row 8: "),
            (vec![("a", many(100_000))], "payload.a: row 8: "),
            (vec![("a", list(many(1_000), 1))], "payload.a: row 0: "),
            (vec![(long.as_str(), few(3_000))], "payload: row 7: "),
            (vec![("payload", few(100)), ("key", many(100))], "key: row 8: "),
            (vec![("payload", few(10)), ("headers", headers(few(100), many(100)))], "row 0: "),
            (vec![("payload", few(10)), ("headers", headers(many(100), few(100)))], "row 0: "),
        ];
        for (columns, place) in cases {
            let why = rows_of(&[&stream(columns)], MAX).expect_err(place);
            let wanted = format!("{place}the rows of one command are more than {MAX} bytes");
            assert_eq!(why, wanted);
        }
        // All streams of a command are counted together.
        let half = stream(vec![("payload", many(5))]);
        assert_eq!(rows_of(&[&half], MAX).expect("rows").len(), 5);
        let why = rows_of(&[&half, &half], MAX).expect_err("too much");
        assert!(why.starts_with("payload: row 8: the rows of one command"), "{why}");
        // Text that is escaped is counted as it is written.
        let escaped = "\u{1}".repeat(MAX / 5);
        let escaped = stream(vec![("a", Arc::new(StringArray::from(vec![escaped])) as ArrayRef)]);
        rows_of(&[&escaped], MAX).expect_err("too much");
        let plain = "é".repeat(MAX / 3);
        let plain = stream(vec![("a", Arc::new(StringArray::from(vec![plain])) as ArrayRef)]);
        assert_eq!(rows_of(&[&plain], MAX).expect("a row").len(), 1);
    }

    #[test]
    fn dictionaries_are_looked_up() {
        let of = |place| dictionary(vec![Some("v"), None], place, 2);
        let columns = || vec![("a", of(0)), ("b", of(1))];
        let rows = rows_of(&[&stream(columns())], 1 << 20).expect("rows");
        assert_eq!(payloads(&rows), [Some(r#"{"a":"v"}"#); 2]);
        let rows = rows_of(&[&stream(vec![("payload", of(0)), ("key", of(1))])], 1 << 20);
        let rows = rows.expect("rows");
        assert_eq!((payloads(&rows), rows[0].key.as_ref()), (vec![Some("v"); 2], None));
        let rows = rows_of(&[&stream(vec![("payload", of(1)), ("key", of(0))])], 1 << 20);
        let rows = rows.expect("rows");
        assert_eq!((payloads(&rows), rows[0].key.as_deref()), (vec![None; 2], Some(&b"v"[..])));
    }

    #[test]
    fn json_has_every_key_once() {
        let maps = |keys: [&str; 4], ends: [i32; 4]| {
            let keys = StringArray::from(keys.to_vec());
            let values = Int8Array::from(vec![Some(1), None, Some(3), Some(4)]);
            let pair = [("keys", DataType::Utf8, false), ("values", DataType::Int8, true)];
            let pair: Fields = pair
                .into_iter()
                .map(|(name, of, nullable)| Field::new(name, of, nullable))
                .collect();
            let entries =
                StructArray::new(pair.clone(), vec![Arc::new(keys), Arc::new(values)], None);
            let field = Arc::new(Field::new("entries", DataType::Struct(pair), false));
            let offsets = OffsetBuffer::new(ends.to_vec().into());
            let nulls = NullBuffer::from(vec![true, false, true]);
            let maps = MapArray::new(field, offsets, entries, Some(nulls), false);
            stream(vec![("m", Arc::new(maps) as ArrayRef)])
        };
        let rows = rows_of(&[&maps(["a", "b", "a", "b"], [0, 2, 2, 4])], 1 << 20).expect("rows");
        assert_eq!(
            payloads(&rows),
            [Some(r#"{"m":{"a":1}}"#), Some("{}"), Some(r#"{"m":{"a":3,"b":4}}"#)]
        );
        for keys in [["a", "b", "c", "c"], ["a", "c", "c", "c"]] {
            let why = rows_of(&[&maps(keys, [0, 2, 2, 4])], 1 << 20).expect_err("twice");
            assert_eq!(why, "payload.m: row 2: the key 'c' is there twice");
        }
        // What a null covers is not written, and not looked at.
        let rows = rows_of(&[&maps(["a", "b", "b", "c"], [0, 1, 3, 4])], 1 << 20).expect("rows");
        assert_eq!(payloads(&rows)[1], Some("{}"));
    }

    #[test]
    fn what_is_not_written_may_be_anything() {
        let floats = || Arc::new(Float64Array::from(vec![f64::NAN, 0.5])) as ArrayRef;
        let nulls = || Some(NullBuffer::from(vec![false, true]));
        let field = |name: &str| Field::new(name, DataType::Float64, true);
        let objects = StructArray::new(vec![field("x")].into(), vec![floats()], nulls());
        let offsets = OffsetBuffer::from_lengths([1, 1]);
        let lists = ListArray::new(Arc::new(field("item")), offsets, floats(), nulls());
        let fixed = FixedSizeListArray::new(Arc::new(field("item")), 1, floats(), nulls());
        let named = DictionaryArray::<Int8Type>::new(Int8Array::from(vec![1, 1]), floats());
        let columns = || {
            vec![
                ("s", Arc::new(objects.clone()) as ArrayRef),
                ("l", Arc::new(lists.clone())),
                ("f", Arc::new(fixed.clone())),
            ]
        };
        let all = [columns(), vec![("d", Arc::new(named) as ArrayRef)]].concat();
        let rows = rows_of(&[&stream(all)], 1 << 20).expect("rows");
        assert_eq!(
            payloads(&rows),
            [Some(r#"{"d":0.5}"#), Some(r#"{"s":{"x":0.5},"l":[0.5],"f":[0.5],"d":0.5}"#)]
        );
        // It is looked at where it is written, and the row is named that does.
        let bare = |array: ArrayRef| array.to_data().into_builder().nulls(None);
        for (name, array) in columns() {
            let array = make_array(bare(array).build().expect("an array"));
            let why = rows_of(&[&stream(vec![(name, array)])], 1 << 20).expect_err("a NaN");
            let path = if name == "s" { "s.x" } else { name };
            assert_eq!(why, format!("payload.{path}: row 0: JSON has neither NaN nor infinities"));
        }
        type Half = <Float16Type as ArrowPrimitiveType>::Native;
        let halves = [Half::from_bits(0), Half::from_bits(0x7E00)];
        let later: Vec<(&str, ArrayRef)> = vec![
            ("a", Arc::new(Float32Array::from(vec![0.0, f32::INFINITY]))),
            ("a", Arc::new(Float16Array::from_iter_values(halves))),
            ("a", Arc::new(Date32Array::from(vec![0, i32::MAX]))),
            ("a", Arc::new(Date64Array::from(vec![0, i64::MAX]))),
            ("a", Arc::new(Time32SecondArray::from(vec![0, -1]))),
            ("a", Arc::new(Time64NanosecondArray::from(vec![0, i64::MAX]))),
            ("a", Arc::new(TimestampSecondArray::from(vec![0, i64::MAX]).with_timezone("UTC"))),
        ];
        for column in later {
            let what = column.1.data_type().to_string();
            let why = rows_of(&[&stream(vec![column])], 1 << 20).expect_err(&what);
            assert!(why.starts_with("payload.a: row 1: "), "{why} for {what}");
        }
    }

    /// Streams with all that a stream may have.
    fn streams() -> Vec<Vec<u8>> {
        let text = |values: &[&str]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
        let list = |items: ArrayRef| {
            let field = Arc::new(Field::new_list_field(items.data_type().clone(), true));
            let offsets = OffsetBuffer::from_lengths([1, 2]);
            Arc::new(ListArray::new(field, offsets, items, None)) as ArrayRef
        };
        let pairs = || {
            let pairs = [("key", text(&["a", "b", "c"])), ("value", text(&["x", "y", "z"]))];
            StructArray::try_from(pairs.to_vec()).expect("pairs")
        };
        let map = {
            let pair = ["key", "value"].map(|name| Field::new(name, DataType::Utf8, false));
            let pair = Fields::from(pair.to_vec());
            let entries = StructArray::new(pair.clone(), pairs().columns().to_vec(), None);
            let field = Arc::new(Field::new("entries", DataType::Struct(pair), false));
            MapArray::new(field, OffsetBuffer::from_lengths([1, 2]), entries, None, false)
        };
        let mut views = BinaryViewBuilder::new();
        views.append_value(b"short");
        views.append_value(b"more than twelve bytes");
        let message = vec![
            ("key", dictionary(vec![Some("k"), None], 0, 2)),
            ("headers", list(Arc::new(pairs()))),
            ("timestamp", Arc::new(TimestampSecondArray::from(vec![1, 2])) as ArrayRef),
            ("partition", Arc::new(Int8Array::from(vec![Some(0), None]))),
            ("payload", Arc::new(views.finish())),
        ];
        let object = vec![
            ("map", Arc::new(map) as ArrayRef),
            ("list", list(dictionary(vec![Some("v")], 0, 3))),
            ("float", Arc::new(Float32Array::from(vec![0.5, 1e30]))),
            ("half", Arc::new(Float16Array::from_iter_values([Default::default(); 2]))),
            ("date", Arc::new(Date32Array::from(vec![1, 2]))),
            ("object", Arc::new(pairs().slice(0, 2))),
            ("fixed", make_array(ArrayData::new_null(&DataType::FixedSizeBinary(3), 2))),
            ("nulls", make_array(ArrayData::new_null(&DataType::Null, 2))),
        ];
        let mut streams = vec![stream(message.clone()), stream(object.clone())];
        for compression in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
            let options = IpcWriteOptions::default().try_with_compression(Some(compression));
            let batch = batch(object.clone());
            let mut writer = StreamWriter::try_new_with_options(
                Vec::new(),
                &batch.schema(),
                options.expect("options"),
            )
            .expect("a writer");
            writer.write(&batch).expect("written");
            writer.write(&batch).expect("written");
            streams.push(writer.into_inner().expect("finished"));
        }
        streams
    }

    #[test]
    fn changed_streams_are_harmless() {
        const BYTES_MAX: usize = 1 << 20;
        const CHANGED: usize = 40_000;
        let streams = streams();
        for stream in &streams {
            rows_of(&[stream], BYTES_MAX).expect("rows");
        }
        let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below.max(1) as u64) as usize
        };
        // Most panics of Arrow's reader are the same few, and caught.
        let began = std::time::Instant::now();
        let mut taken = 0;
        for _ in 0..CHANGED {
            let mut changed = streams[random(streams.len())].clone();
            for _ in 0..=random(4) {
                let at = random(changed.len());
                match random(6) {
                    0 => changed[at] ^= 1 << random(8),
                    1 => changed[at] = random(256) as u8,
                    2 => changed[at] = [0, 1, 0x7F, 0x80, 0xFF][random(5)],
                    3 => {
                        let number = [u32::MAX, 1 << 30, 1 << 20, 1_000, 0][random(5)];
                        let end = changed.len().min(at + 4);
                        changed[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
                    }
                    4 => {
                        let from = random(changed.len());
                        let len = random(64).min(changed.len() - from.max(at));
                        changed.copy_within(from..from + len, at);
                    }
                    _ if random(8) == 0 => changed.truncate(at.max(1)),
                    _ => {}
                }
            }
            if let Ok(rows) = rows_of(&[&changed], BYTES_MAX) {
                taken += 1;
                let bytes: usize = rows.iter().map(|row| row.borrowed().bytes()).sum();
                assert!(bytes <= BYTES_MAX && rows.len() <= ROWS_MAX, "{bytes}");
                // Others are the bytes of a column.
                for text in payloads(&rows).into_iter().flatten().filter(|it| it.starts_with("{\""))
                {
                    let object = serde_json::from_str::<serde_json::Value>(text);
                    object.unwrap_or_else(|error| panic!("{text}: {error}"));
                }
            }
        }
        assert!(taken > CHANGED / 20, "{taken} were taken");
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    }

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
