//! SQL over windows: types, limits, and what it must not do.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use karrow::config::KafkaOptions;
use karrow::config::formats::FormatsConfig;
use karrow::config::streams::{Start, WhenFull};
use karrow::decode::formats::Formats;
use karrow::error::{ErrorKind, Result};
use karrow::metrics::Metrics;
use karrow::sql::duck::Parameter;
use karrow::sql::engine::{Engine, Parameters, SqlLimits};
use karrow::stream::assembler::CutLimits;
use karrow::stream::streams::Streams;
use karrow::stream::topic_stream::StreamSettings;
use karrow::stream::window::{Memory, WindowLimits};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::support::{DEADLINE, Kafka};

const SETTINGS: StreamSettings = StreamSettings {
    start: Start::Earliest,
    window: WindowLimits { bytes_max: 100 << 20, age_max: Duration::from_secs(600) },
    when_full: WhenFull::DropOldest,
    cut: CutLimits { rows_max: 1000, bytes_max: 1 << 20, linger: Duration::from_millis(5) },
};

const LIMITS: SqlLimits = SqlLimits {
    memory_bytes_max: 256 << 20,
    threads: 2,
    time_max: Duration::from_secs(30),
    queries_max: 4,
};

struct Sql {
    streams: Arc<Streams>,
    engine: Arc<Engine>,
}

impl Sql {
    fn start(kafka: &Kafka, limits: SqlLimits) -> Self {
        let options = KafkaOptions::from([("bootstrap.servers".to_owned(), kafka.servers())]);
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let formats = Arc::new(Formats::new(FormatsConfig::default(), None).expect("formats"));
        let (memory, runtime) = (Memory::new(usize::MAX), Handle::current());
        let streams =
            Streams::new(options, SETTINGS, memory, formats, metrics.clone(), runtime.clone());
        let streams = streams.expect("streams");
        let engine = Engine::open(streams.clone(), None, limits, metrics, runtime).expect("DuckDB");
        Self { streams, engine }
    }

    /// Makes a stream of `topic`, and waits until it has so many rows.
    async fn stream(&self, topic: &str, rows: u64) {
        let stream = self.streams.open(topic).await.expect("a stream");
        let mut changes = stream.changes();
        let filled = changes.wait_for(|_| stream.view().rows == rows);
        tokio::time::timeout(DEADLINE, filled).await.expect("in time").expect("it lives");
    }

    async fn batches(&self, sql: &str, parameters: Parameters) -> Result<Vec<RecordBatch>> {
        let asked = async {
            let mut answer = self.engine.query(sql.to_owned(), parameters).await?;
            let mut batches = vec![RecordBatch::new_empty(answer.schema.clone())];
            while let Some(batch) = answer.next().await {
                batches.push(batch?);
            }
            Ok(batches)
        };
        tokio::time::timeout(DEADLINE, asked).await.expect("an answer in time")
    }

    /// The rows as JSON objects.
    async fn rows(&self, sql: &str) -> Result<Vec<Value>> {
        let batches = self.batches(sql, Parameters::None).await?;
        let mut writer = arrow_json::LineDelimitedWriter::new(Vec::new());
        writer.write_batches(&batches.iter().collect::<Vec<_>>()).expect("JSON");
        writer.finish().expect("JSON");
        let text = String::from_utf8(writer.into_inner()).expect("UTF-8");
        Ok(text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_tables() {
    let kafka = Kafka::with(&[("candy", 2), ("empty", 1), ("Candy", 1)]);
    let candy = |id: usize, price: f64| format!(r#"{{"candy_id":{id},"price":{price}}}"#);
    for partition in 0..2 {
        kafka.put_all("candy", partition, (0..5000).map(|n| candy(n % 3, 1.5 + n as f64)));
    }
    kafka.put("Candy", 0, r#"{"other":1}"#);
    let sql = Sql::start(&kafka, LIMITS);
    sql.stream("candy", 10_000).await;
    let cheapest =
        "select payload.candy_id, min(payload.price) as price from candy group by 1 order by 1";
    let rows = sql.rows(cheapest).await.expect("rows");
    assert_eq!(
        rows,
        [0, 1, 2].map(|id| json!({"candy_id": id, "price": 1.5 + f64::from(id)})).to_vec()
    );
    for (question, answer) in [
        ("select count(*) as n from candy", json!({"n": 10_000})),
        (
            "select count(*) as n from live.candy where partition = 1 and \"offset\" < 10",
            json!({"n": 10}),
        ),
        (
            "select count(*) as n from candy a join candy b using (partition, \"offset\")",
            json!({"n": 10_000}),
        ),
        (
            "select sum(\"offset\")::bigint as n from candy",
            json!({"n": 2 * (0..5000).sum::<i64>()}),
        ),
        ("select 1 as n from candy limit 1", json!({"n": 1})),
        (
            "select topic, error, key, headers, payload from candy where partition = 0 and \"offset\" = 4",
            json!({"topic": "candy", "headers": [], "payload": {"candy_id": 1, "price": 5.5}}),
        ),
    ] {
        assert_eq!(sql.rows(question).await.expect(question), [answer], "{question}");
    }
    // Topics come, and their columns grow.
    sql.stream("empty", 0).await;
    sql.stream("Candy", 1).await;
    assert_eq!(sql.rows("select * from empty").await.expect("rows"), Vec::<Value>::new());
    let other = sql.rows("select payload.other from \"Candy_1\"").await.expect("rows");
    assert_eq!(other, [json!({"other": 1})]);
    // By its own name it would be the other topic.
    for question in ["select * from \"Candy\"", "select * from live.Candy"] {
        let error = sql.rows(question).await.expect_err(question);
        let why = "the topic 'Candy' is called \"Candy_1\" here";
        assert!(error.message().starts_with(why), "{error}");
    }
    kafka.put("candy", 0, r#"{"candy_id":7,"price":2,"sugar":{"kind":"cane"}}"#);
    sql.stream("candy", 10_001).await;
    let sugar = "select payload.sugar.kind, count(*) as n from candy group by 1 order by 1";
    let rows = sql.rows(sugar).await.expect("rows");
    assert_eq!(rows, [json!({"kind": "cane", "n": 1}), json!({"n": 10_000})]);
    assert!(sql.streams.close("candy"));
    let error = sql.rows("select * from candy").await.expect_err("it is gone");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_do_not_change_or_reach_anything() {
    let kafka = Kafka::with(&[("t", 1), ("later", 1)]);
    kafka.put("t", 0, r#"{"a":1}"#);
    let sql = Sql::start(&kafka, LIMITS);
    sql.stream("t", 1).await;
    for (question, why) in [
        ("create table x (i int)", "only statements that read"),
        ("drop view t", "only statements that read"),
        ("set threads = 1", "only statements that read"),
        ("attach 'x.duckdb' as x", "only statements that read"),
        ("copy (select 1) to 'x.csv'", "only statements that read"),
        ("begin", "only statements that read"),
        ("call force_checkpoint()", "only statements that read"),
        ("select 1; select 2", "one statement is wanted, not 2"),
        ("", "no statement"),
        ("select * from read_csv('/etc/passwd')", "the function read_csv is not for queries"),
        ("select * from '/etc/passwd'", ""),
        ("from read_text('/etc/passwd')", "the function read_text is not for queries"),
        ("from glob('/*')", "the function glob is not for queries"),
        ("select * from read_parquet('http://127.0.0.1:1/x')", ""),
        ("selec 1", "Parser Error: syntax error at or near \"selec\""),
        ("select nosuch from t", "Binder Error: Referenced column \"nosuch\" not found"),
        (
            "select * from tt",
            "Catalog Error: Table with name tt does not exist! (line 1, column 15)\nDid you mean \"t\"?\n\nLINE 1",
        ),
        (
            "select * from later",
            "Catalog Error: Table with name later does not exist! (line 1, column 15)\n'later' is a topic, and no stream",
        ),
        ("select * from stored.t", "Catalog Error: Table with name \"stored.t\" does not exist"),
        ("select ?", "parameter '1' is missing"),
    ] {
        let error = sql.rows(question).await.map(|rows| panic!("{question}: {rows:?}"));
        let error = error.expect_err("refused");
        assert_ne!(error.kind(), ErrorKind::Internal, "{question}: {error}");
        assert!(error.message().starts_with(why), "{question}: {error}");
    }
    assert_eq!(sql.rows("select payload.a from t").await.expect("rows"), [json!({"a": 1})]);
    let named = [("a".to_owned(), Parameter::Text("1".to_owned()))].into();
    let found = sql.batches("select * from t where payload.a = $a", Parameters::Named(named)).await;
    assert_eq!(found.expect("rows").iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_have_limits() {
    let kafka = Kafka::with(&[("t", 1)]);
    let limits = SqlLimits { time_max: Duration::from_millis(500), queries_max: 1, ..LIMITS };
    let sql = Sql::start(&kafka, limits);
    let endless = "select sum(a.i * b.i) from range(10000000) a(i), range(10000000) b(i)";
    let error = sql.rows(endless).await.expect_err("it takes too long");
    assert_eq!(
        (error.kind(), error.message()),
        (ErrorKind::Timeout, "the query took more than 0.5 s")
    );
    let large = "select list(i::varchar || repeat('x', 1000)) from range(100000000) t(i)";
    let error = sql.rows(large).await.expect_err("it takes too much");
    assert!(matches!(error.kind(), ErrorKind::Exhausted | ErrorKind::Timeout), "{error}");
    // Who reads slowly leaves the place to others, and who does not read on at all is stopped.
    let many = "select i from range(1000000000) t(i)";
    let mut slow = Vec::new();
    for _ in 0..8 {
        slow.push(sql.engine.query(many.to_owned(), Parameters::None).await.expect("rows"));
    }
    let reading = tokio::spawn(async move {
        loop {
            for answer in &mut slow {
                answer.next().await.expect("it goes on").expect("rows");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let error = sql.engine.query("select 1".to_owned(), Parameters::None).await.map(|_| ());
    let error = error.expect_err("there are enough of them");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert!(error.message().starts_with("as many answers are on their way"), "{error}");
    reading.abort();
    assert!(reading.await.is_err_and(|error| error.is_cancelled()), "all of them were read on");
    let mut stalled = sql.engine.query(many.to_owned(), Parameters::None).await.expect("rows");
    let rows = sql.rows("select 1 as one").await.expect("the place is free");
    assert_eq!(rows, [json!({"one": 1})]);
    let mut last = Ok(());
    while let Some(batch) = stalled.next().await {
        last = batch.map(|_| ());
        tokio::time::sleep(Duration::from_millis(1)).await;
        if last.is_err() {
            break;
        }
    }
    assert!(last.is_err(), "it is not read to its end in half a second");
    drop(sql.engine.query(many.to_owned(), Parameters::None).await.expect("rows"));
    let rows = sql.rows("select 1 as one").await.expect("free again");
    assert_eq!(rows, [json!({"one": 1})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn beneath_a_null_everything_is_null() {
    let kafka = Kafka::with(&[("t", 1)]);
    for record in [r#"{"v":2,"o":{"x":1}}"#, "bad", r#"{"v":3,"o":null}"#] {
        kafka.put("t", 0, record);
    }
    let sql = Sql::start(&kafka, LIMITS);
    sql.stream("t", 3).await;
    let question = "select \"offset\" as n, error is null as good, error.message is null as silent, \
                    error.payload is null as whole, payload.v, payload.o.x is null as none from t order by 1";
    let row = |n: i64, is_good: bool, v: Value, is_none: bool| json!({"n": n, "good": is_good, "silent": is_good, "whole": is_good, "v": v, "none": is_none});
    let expected = [
        row(0, true, json!(2), false),
        row(1, false, Value::Null, true),
        row(2, true, json!(3), true),
    ];
    // JSON leaves nulls out here.
    let without_nulls = |row: &Value| {
        let row = row.as_object().expect("a row").clone();
        Value::Object(row.into_iter().filter(|(_, value)| !value.is_null()).collect())
    };
    let rows = sql.rows(question).await.expect("rows");
    assert_eq!(
        rows.iter().map(without_nulls).collect::<Vec<_>>(),
        expected.iter().map(without_nulls).collect::<Vec<_>>()
    );
}

/// What a scan allocates fails with an exception of DuckDB's, which must not reach Rust: the process would end.
#[tokio::test(flavor = "multi_thread")]
async fn scans_that_find_no_memory_are_errors() {
    let kafka = Kafka::with(&[("wide", 1)]);
    let record = |n: usize| format!(r#"{{"n":{n},"pad":"{}"}}"#, "x".repeat(200 + n % 100));
    kafka.put_all("wide", 0, (0..10_000).map(record));
    let limits = SqlLimits { memory_bytes_max: 64 << 20, ..LIMITS };
    let sql = Arc::new(Sql::start(&kafka, limits));
    sql.stream("wide", 10_000).await;
    let scan = "select count(*) as n, max(payload.pad) is not null as has from live.wide";
    let hungry =
        "select count(*) as n from (select distinct i, md5(i::varchar) from range(2000000) t(i))";
    let hogs: Vec<_> = (0..2)
        .map(|_| {
            let sql = sql.clone();
            tokio::spawn(async move {
                let mut failed = 0;
                while failed < 10 {
                    failed += usize::from(sql.rows(hungry).await.is_err());
                }
            })
        })
        .collect();
    while hogs.iter().any(|hog| !hog.is_finished()) {
        match sql.rows(scan).await {
            Ok(rows) => assert_eq!(rows, [json!({"n": 10_000, "has": true})]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}"),
        }
    }
    assert_eq!(sql.rows(scan).await.expect("there is memory again").len(), 1);
}
