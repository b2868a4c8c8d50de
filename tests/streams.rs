//! Topic streams and cursors: every record once and in order, whether a window has it or Kafka.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array as _, ArrayRef, AsArray, BinaryArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow_ipc::CompressionType;
use karrow::config::KafkaOptions;
use karrow::config::formats::{Format, FormatsConfig};
use karrow::config::streams::{Start, WhenFull};
use karrow::decode::formats::Formats;
use karrow::error::ErrorKind;
use karrow::kafka::topics::OffsetOf;
use karrow::metrics::Metrics;
use karrow::stream::assembler::CutLimits;
use karrow::stream::cursor::Cursor;
use karrow::stream::streams::Streams;
use karrow::stream::topic_stream::StreamSettings;
use karrow::stream::window::{Memory, Positions, WindowLimits};
use regex::Regex;

use crate::support::{DEADLINE, Kafka, eventually, ipc_stream};

const SETTINGS: StreamSettings = StreamSettings {
    start: Start::Earliest,
    window: WindowLimits { bytes_max: 100 << 20, age_max: Duration::from_secs(600) },
    when_full: WhenFull::DropOldest,
    cut: CutLimits { rows_max: 100, bytes_max: 1 << 20, linger: Duration::from_millis(5) },
};

fn streams(kafka: &Kafka, settings: StreamSettings) -> Arc<Streams> {
    streams_of(kafka, settings, Format::Raw)
}

fn streams_of(kafka: &Kafka, settings: StreamSettings, payload: Format) -> Arc<Streams> {
    let options = KafkaOptions::from([("bootstrap.servers".to_owned(), kafka.servers())]);
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let config = FormatsConfig { payload, ..FormatsConfig::default() };
    let formats = Arc::new(Formats::new(config, None).expect("formats"));
    let memory = Memory::new(usize::MAX);
    let runtime = tokio::runtime::Handle::current();
    Streams::new(options, settings, memory, formats, metrics, runtime).expect("streams")
}

/// Offsets and payloads by partition, in the order in which they came.
#[derive(Default)]
struct Seen(BTreeMap<i32, Vec<(i64, String)>>);

impl Seen {
    fn add(&mut self, batch: &RecordBatch) {
        let partitions = batch.column_by_name("partition").unwrap().as_primitive::<Int32Type>();
        let offsets = batch.column_by_name("offset").unwrap().as_primitive::<Int64Type>();
        let payloads = batch.column_by_name("payload").unwrap().as_binary::<i32>();
        for row in 0..batch.num_rows() {
            let payload = String::from_utf8(payloads.value(row).to_vec()).unwrap();
            self.0.entry(partitions.value(row)).or_default().push((offsets.value(row), payload));
        }
    }

    fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Everything from `from` to `to` in each partition, once and in order.
    #[track_caller]
    fn check(&self, ranges: &[(i64, i64)]) {
        for (partition, (from, to)) in (0..).zip(ranges) {
            let expected: Vec<(i64, String)> =
                (*from..*to).map(|offset| (offset, format!("{partition}-{offset}"))).collect();
            let found = self.0.get(&partition).cloned().unwrap_or_default();
            assert!(
                found == expected,
                "partition {partition}: {} of {} rows, {found:?}",
                found.len(),
                expected.len()
            );
        }
    }
}

fn put(kafka: &Kafka, partition: i32, range: std::ops::Range<i64>) {
    kafka.put_all("t", partition, range.map(|offset| format!("{partition}-{offset}")));
}

async fn next(cursor: &mut Cursor) -> Option<RecordBatch> {
    let next = tokio::time::timeout(DEADLINE, cursor.next()).await.expect("something in time");
    next.expect("no error").map(|batch| batch.batch.clone())
}

async fn read_to_end(cursor: &mut Cursor) -> Seen {
    let mut seen = Seen::default();
    while let Some(batch) = next(cursor).await {
        seen.add(&batch);
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_cursor_reads_each_record_once() {
    let kafka = Kafka::with(&[("t", 3)]);
    for partition in 0..3 {
        put(&kafka, partition, 0..500);
    }
    let streams = streams(&kafka, SETTINGS);
    let to = streams.offsets("t", OffsetOf::End).await.expect("ends");
    assert_eq!(to, Positions::new(vec![500; 3]));
    // Without a stream, from Kafka.
    let mut cursor = streams.cursor("t", Positions::default(), to.clone()).expect("a cursor");
    read_to_end(&mut cursor).await.check(&[(0, 500); 3]);
    assert_eq!(cursor.positions(), &to);
    // With one, from its window.
    streams.open("t").await.expect("a stream");
    for (from, to) in [
        (vec![0, 0, 0], vec![500, 500, 500]),
        (vec![17, 499, 500], vec![333, 500, 500]),
        (vec![120, 3, 7], vec![121, 4, 8]),
        (vec![5, 5, 5], vec![5, 4, 0]),
    ] {
        let ranges: Vec<(i64, i64)> = from.iter().copied().zip(to.iter().copied()).collect();
        // Where it ends before it begins, it stays.
        let ends = ranges.iter().map(|(from, to)| *from.max(to)).collect();
        let (from, to) = (Positions::new(from), Positions::new(to));
        let mut cursor = streams.cursor("t", from, to).expect("a cursor");
        read_to_end(&mut cursor).await.check(&ranges);
        assert_eq!(cursor.positions(), &Positions::new(ends));
    }
}

/// Streams of `t`, whose first records came before its window.
async fn with_late_window(kafka: &Kafka, before: [i64; 2], after: [i64; 2]) -> Arc<Streams> {
    let streams = streams(kafka, StreamSettings { start: Start::Latest, ..SETTINGS });
    for (partition, count) in (0..).zip(before) {
        put(kafka, partition, 0..count);
    }
    let stream = streams.open("t").await.expect("a stream");
    assert_eq!(stream.begun().await.starts, Positions::new(before.to_vec()));
    for (partition, (from, to)) in (0..).zip(before.into_iter().zip(after)) {
        put(kafka, partition, from..to);
    }
    let ends = Positions::new(after.to_vec());
    let mut changes = stream.changes();
    let filled = changes.wait_for(|_| stream.view().ends == ends);
    tokio::time::timeout(DEADLINE, filled).await.expect("in time").expect("it lives");
    streams
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_may_end_before_the_window_begins() {
    let kafka = Kafka::with(&[("t", 2)]);
    let streams = with_late_window(&kafka, [10, 10], [20, 20]).await;
    for (from, to, ends) in [
        // In one partition within the window, in the other one not at all, before it, or at its beginning.
        (vec![], vec![15], [15, 0]),
        (vec![3, 5], vec![15, 7], [15, 7]),
        (vec![3, 5], vec![15, 10], [15, 10]),
        (vec![12, 5], vec![20, 7], [20, 7]),
        // Where it has been already.
        (vec![10, 16], vec![12], [12, 16]),
        (vec![14, 14], vec![12, 16], [14, 16]),
        (vec![2, 14], vec![12, 3], [12, 14]),
    ] {
        let at = |offsets: &[i64], partition: usize| offsets.get(partition).copied().unwrap_or(0);
        let ranges = [0, 1].map(|partition| (at(&from, partition), at(&to, partition)));
        let (from, to) = (Positions::new(from), Positions::new(to));
        let mut cursor = streams.cursor("t", from, to).expect("a cursor");
        read_to_end(&mut cursor).await.check(&ranges);
        assert_eq!(
            cursor.positions().or(&Positions::new(vec![0; 2])),
            Positions::new(ends.to_vec())
        );
    }
}

/// A window that takes nothing more does not hold up who wants what comes next.
#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_cursor_does_not_wait_for_room() {
    let kafka = Kafka::with(&[("t", 1)]);
    let mut settings = StreamSettings { when_full: WhenFull::Pause, ..SETTINGS };
    settings.window.bytes_max = 10_000;
    let streams = streams(&kafka, settings);
    let stream = streams.open("t").await.expect("a stream");
    assert_eq!(stream.begun().await.phase.label(), "live");
    let to = Positions::new(vec![2000]);
    let mut cursors: Vec<Cursor> = Vec::new();
    for _ in 0..4 {
        cursors.push(streams.cursor("t", Positions::default(), to.clone()).expect("a cursor"));
    }
    let readers: Vec<_> = cursors
        .into_iter()
        .map(|mut cursor| tokio::spawn(async move { read_to_end(&mut cursor).await }))
        .collect();
    put(&kafka, 0, 0..2000);
    for reader in readers {
        reader.await.expect("read").check(&[(0, 2000)]);
    }
    assert_eq!(stream.view().phase.label(), "paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_fell_behind_goes_on_from_kafka() {
    let kafka = Kafka::with(&[("t", 2)]);
    let mut settings = SETTINGS;
    settings.window.bytes_max = 20_000;
    let streams = streams(&kafka, settings);
    let stream = streams.open("t").await.expect("a stream");
    let mut fast = streams.follow("t", Positions::default()).await.expect("a cursor");
    let mut slow = streams.follow("t", Positions::default()).await.expect("a cursor");
    put(&kafka, 0, 0..10);
    let (mut of_fast, mut of_slow) = (Seen::default(), Seen::default());
    while of_slow.len() < 10 {
        of_slow.add(&next(&mut slow).await.expect("a batch"));
    }
    for round in 0..20 {
        put(&kafka, 0, 10 + round * 100..10 + round * 100 + 100);
        put(&kafka, 1, round * 100..round * 100 + 100);
        while of_fast.len() < 10 + (round as usize + 1) * 200 {
            of_fast.add(&next(&mut fast).await.expect("a batch"));
        }
    }
    of_fast.check(&[(0, 2010), (0, 2000)]);
    let view = stream.view();
    assert!(view.bytes <= 20_000 && view.dropped.full_rows > 0, "{view:?}");
    while of_slow.len() < 4010 {
        of_slow.add(&next(&mut slow).await.expect("a batch"));
    }
    of_slow.check(&[(0, 2010), (0, 2000)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_share_one_batch() {
    let kafka = Kafka::with(&[("t", 1)]);
    let streams = streams(&kafka, SETTINGS);
    streams.open("t").await.expect("a stream");
    let mut cursors: Vec<Cursor> = Vec::new();
    for _ in 0..2 {
        cursors.push(streams.follow("t", Positions::default()).await.expect("a cursor"));
    }
    put(&kafka, 0, 0..5);
    let mut batches = Vec::new();
    for cursor in &mut cursors {
        let next = tokio::time::timeout(DEADLINE, cursor.next()).await.expect("in time");
        batches.push(next.expect("no error").expect("a batch"));
    }
    assert!(Arc::ptr_eq(&batches[0], &batches[1]));
}

/// Kafka is read by few clients, which readers that do not read on must not keep.
#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stop_in_the_middle_hold_up_nobody() {
    let kafka = Kafka::with(&[("t", 2)]);
    for partition in 0..2 {
        put(&kafka, partition, 0..1000);
    }
    let streams = streams(&kafka, SETTINGS);
    let to = Positions::new(vec![1000, 1000]);
    let mut stalled = Vec::new();
    for _ in 0..10 {
        let mut cursor = streams.cursor("t", Positions::default(), to.clone()).expect("a cursor");
        let mut seen = Seen::default();
        seen.add(&next(&mut cursor).await.expect("a batch"));
        stalled.push((cursor, seen));
    }
    let mut cursor = streams.cursor("t", Positions::default(), to.clone()).expect("a cursor");
    read_to_end(&mut cursor).await.check(&[(0, 1000); 2]);
    assert!(streams.sample("t", &Positions::default(), None).await.expect("a schema").is_some());
    // What they had is theirs, and they go on where they were.
    for (mut cursor, mut seen) in stalled {
        while let Some(batch) = next(&mut cursor).await {
            seen.add(&batch);
        }
        seen.check(&[(0, 1000); 2]);
    }
}

/// A client reads a partition in one place only, so that it goes to another reader when the first has let go of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_asks_for_what_is_gone_disturbs_nobody() {
    let kafka = Kafka::with(&[("t", 2)]);
    for partition in 0..2 {
        put(&kafka, partition, 0..200);
    }
    let streams = streams(&kafka, SETTINGS);
    let wrong = tokio::spawn({
        let streams = streams.clone();
        async move {
            for _ in 0..100 {
                let (from, to) = (vec![1_000_000; 2], vec![1_000_005; 2]);
                let cursor = streams.cursor("t", Positions::new(from), Positions::new(to));
                let mut cursor = cursor.expect("a cursor");
                let found = tokio::time::timeout(DEADLINE, cursor.next()).await.expect("in time");
                let error = found.map(|_| ()).expect_err("there is no such offset");
                assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
                assert!(error.message().ends_with("the first one is 0"), "{error}");
            }
        }
    });
    let good = (0..2).map(|_| {
        let streams = streams.clone();
        tokio::spawn(async move {
            for _ in 0..100 {
                let to = Positions::new(vec![200; 2]);
                let mut cursor = streams.cursor("t", Positions::default(), to).expect("a cursor");
                read_to_end(&mut cursor).await.check(&[(0, 200); 2]);
            }
        })
    });
    let good: Vec<_> = good.collect();
    wrong.await.expect("told each time");
    for reader in good {
        reader.await.expect("everything each time");
    }
}

/// A stream that follows another one of its topic reads with the same client, which must have let go of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_when_the_one_before_has_ended() {
    let kafka = Kafka::with(&[("t", 2)]);
    let streams = streams(&kafka, SETTINGS);
    for round in 0..50 {
        put(&kafka, 0, round * 10..round * 10 + 10);
        let mut cursor = streams.follow("t", Positions::default()).await.expect("a cursor");
        let mut seen = Seen::default();
        while seen.len() < (round as usize + 1) * 10 {
            seen.add(&next(&mut cursor).await.expect("a batch"));
        }
        seen.check(&[(0, round * 10 + 10), (0, 0)]);
        assert!(streams.close("t"));
    }
}

/// What a failed stream had is Kafka's to give.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_stream_holds_nothing() {
    let kafka = Kafka::with(&[("t", 1)]);
    let mut settings = SETTINGS;
    settings.when_full = WhenFull::Error;
    settings.window.bytes_max = 10_000;
    let streams = streams(&kafka, settings);
    let mut cursor = streams.follow("t", Positions::default()).await.expect("a cursor");
    put(&kafka, 0, 0..2000);
    let mut seen = Seen::default();
    let error = loop {
        match tokio::time::timeout(DEADLINE, cursor.next()).await.expect("in time") {
            Ok(Some(batch)) => seen.add(&batch.batch),
            Ok(None) => panic!("it ended without a word"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    let end = cursor.positions().get(0);
    seen.check(&[(0, end)]);
    let stream = streams.get("t").expect("it is there, and failed");
    assert_eq!((stream.view().bytes, stream.view().rows, streams.bytes()), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_said() {
    let kafka = Kafka::with(&[("t", 1)]);
    let streams = streams(&kafka, SETTINGS);
    let error = streams.offsets("nosuch", OffsetOf::End).await.expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("'nosuch'"), "{error}");
    put(&kafka, 0, 0..3);
    let beyond = Positions::new(vec![10]);
    let mut cursor = streams.cursor("t", beyond, Positions::new(vec![20])).expect("a cursor");
    let error = tokio::time::timeout(DEADLINE, cursor.next()).await.expect("in time");
    let error = error.expect_err("there is no such offset");
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    assert!(error.message().starts_with("t:0 does not have offset 10"), "{error}");
}

/// All that is in a topic which comes to be while karrow runs is new.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_be_later_is_streamed_from_its_beginning() {
    let kafka = Kafka::with(&[("t", 1), ("other", 1)]);
    put(&kafka, 0, 0..10);
    let streams = streams(&kafka, StreamSettings { start: Start::Latest, ..SETTINGS });
    let begun = |topic: &str, start: i64| {
        let starts = || streams.get(topic).map(|stream| stream.view().starts);
        let is_there = || (starts()? == Positions::new(vec![start])).then_some(());
        tokio::task::block_in_place(|| eventually(&format!("{topic} from {start} on"), is_there));
    };
    streams.open("awaited").await.expect("a stream");
    let patterns = ["^t", "^t.*", "^awa", "^t"].map(|names| Regex::new(names).expect("legal"));
    patterns.into_iter().for_each(|names| streams.add_pattern(names).expect("added"));
    tokio::spawn(streams.clone().tend());
    begun("t", 10);
    for topic in ["awaited", "t2"] {
        kafka.create(topic, 1);
        kafka.put_all(topic, 0, ["a", "b"]);
    }
    begun("awaited", 0);
    begun("t2", 0);
    // Whoever follows it first does not change that.
    kafka.create("t4", 1);
    kafka.put("t4", 0, "a");
    let mut first = streams.follow("t4", Positions::default()).await.expect("a cursor");
    assert!(next(&mut first).await.is_some() && first.is_shared());
    drop(first);
    // One that was dropped does not come again by itself.
    assert!(streams.close("t2"));
    assert!(streams.remove_pattern("^t") && !streams.remove_pattern("^t"));
    kafka.create("t3", 1);
    begun("t3", 0);
    let names: Vec<String> =
        streams.all().iter().map(|stream| stream.topic().to_string()).collect();
    assert_eq!(names, ["awaited", "t", "t3", "t4"]);
    streams.close_all();
}

/// A value of a few kilobytes that stands for 60 MiB.
fn bomb() -> Vec<u8> {
    let zeros = vec![0; 60 << 20];
    let column: ArrayRef = Arc::new(BinaryArray::from_vec(vec![&zeros]));
    let batch = RecordBatch::try_from_iter([("zeros", column)]).expect("a batch");
    ipc_stream(&batch, Some(CompressionType::ZSTD))
}

/// Few bytes in Kafka may be many as columns: no more of them are made than a reader takes.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_grow_come_in_several_batches() {
    let kafka = Kafka::with(&[("t", 1)]);
    let value = bomb();
    assert!(value.len() < 100_000);
    kafka.put_all("t", 0, std::iter::repeat_n(value, 5));
    let streams = streams_of(&kafka, SETTINGS, Format::Arrow);
    let to = Positions::new(vec![5]);
    let mut cursor = streams.cursor("t", Positions::default(), to).expect("a cursor");
    let mut ends = Vec::new();
    while let Some(batch) = next(&mut cursor).await {
        let column = batch.column_by_name("payload").expect("a column").as_struct().column(0);
        assert!(column.is_valid(0) && batch.num_rows() * (60 << 20) <= 256 << 20);
        ends.push(cursor.positions().get(0));
    }
    assert!(ends.len() > 1 && ends.last() == Some(&5), "{ends:?}");
}
