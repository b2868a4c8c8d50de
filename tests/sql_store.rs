//! Topics as tables of DuckDB's file: each record once, whatever its columns become.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use karrow::config::Config;
use karrow::sql::duck::Database;
use karrow::sql::store::Store;
use karrow::stream::window::Positions;
use serde_json::{Value, json};

use crate::support::{Kafka, Karrow, Reply, eventually};

/// A karrow that stores its streams in `file`.
fn storing(kafka: &Kafka, file: &Path, topics: &str, change: impl FnOnce(&mut Config)) -> Karrow {
    let path = file.to_str().expect("UTF-8");
    let flags = ["--topics", topics, "--start", "earliest", "--persist", "--db-path", path];
    Karrow::with(kafka, &flags, change)
}

/// The rows of an answer.
fn rows(karrow: &Karrow, sql: &str) -> Vec<Value> {
    let reply = karrow.connect().call(&["SQL", sql]);
    serde_json::from_slice(reply.bytes()).expect("JSON")
}

/// Waits until `sql`, which may not be understood yet, answers `expected`.
#[track_caller]
fn await_rows(karrow: &Karrow, sql: &str, expected: &[Value]) {
    let mut last = String::new();
    let ask = || {
        let reply = karrow.connect().call(&["SQL", sql]);
        last = format!("{reply:?}");
        let Reply::Bulk(bytes) = &reply else { return None };
        (serde_json::from_slice::<Vec<Value>>(bytes).ok()? == expected).then_some(())
    };
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| eventually(sql, ask)));
    assert!(found.is_ok(), "{sql}: {last}");
}

fn end(mut karrow: Karrow) {
    karrow.stop().join().expect("it stops");
}

/// A stream that is added begins with what comes next, and so does its table, which keeps that beginning.
#[test]
fn a_table_keeps_its_beginning() {
    let kafka = Kafka::with(&[("t", 1)]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("k.duckdb");
    kafka.put("t", 0, r#"{"n":0}"#);
    let flags = ["--persist", "--db-path", file.to_str().expect("UTF-8")];
    let karrow = Karrow::with(&kafka, &flags, |_| {});
    let server = format!("http://{}", karrow.flight_addr());
    let action = ["client", "--server", &server, "actions", "add-stream", "t"];
    let added = Command::new(env!("CARGO_BIN_EXE_karrow")).args(action).status();
    assert!(added.expect("it runs").success());
    let count = |of: &str| format!("select count(*)::int as n from {of}");
    await_rows(&karrow, &count("stored.t"), &[json!({"n": 0})]);
    kafka.put("t", 0, r#"{"n":1}"#);
    await_rows(&karrow, "select payload.n from stored.t", &[json!({"n": 1})]);
    end(karrow);
    let karrow = storing(&kafka, &file, "t", |_| {});
    await_rows(&karrow, &count("live.t"), &[json!({"n": 2})]);
    for table in ["t", "stored.t"] {
        assert_eq!(rows(&karrow, &format!("select payload.n from {table}")), [json!({"n": 1})]);
    }
}

#[test]
fn rows_are_stored_once_and_go_on_after_a_stop() {
    let kafka = Kafka::with(&[("t", 2), ("T", 1)]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("k.duckdb");
    let records = |from: usize, to: usize| (from..to).map(|n| format!(r#"{{"n":{n}}}"#));
    kafka.put_all("t", 0, records(0, 3000));
    kafka.put_all("t", 1, records(3000, 5000));
    kafka.put("T", 0, r#"{"other":1}"#);
    let karrow = storing(&kafka, &file, "t,T", |_| {});
    let distinct = "select count(*)::int as n, count(distinct (partition, \"offset\"))::int as d, \
                    sum(payload.n)::bigint as s from";
    let all = |count: i64| json!({"n": count, "d": count, "s": (0..count).sum::<i64>()});
    await_rows(&karrow, "select count(*) as n from stored._karrow.topics", &[json!({"n": 2})]);
    // Names that differ in case only are two tables, whichever came first, and each is called the same everywhere.
    let name = |topic: &str| {
        let sql = format!("select table_name from stored._karrow.topics where topic = '{topic}'");
        rows(&karrow, &sql)[0]["table_name"].as_str().expect("a name").to_owned()
    };
    let (t, other) = (name("t"), name("T"));
    assert!([("t", "T_1"), ("t_1", "T")].contains(&(t.as_str(), other.as_str())), "{t}, {other}");
    for table in [format!("stored.\"{t}\""), format!("live.\"{t}\""), format!("\"{t}\"")] {
        await_rows(&karrow, &format!("{distinct} {table}"), &[all(5000)]);
    }
    end(karrow);
    assert!(!folder.path().join("k.duckdb.wal").exists(), "all is in the file");

    kafka.put_all("t", 0, records(5000, 6000));
    // What it has missed comes from Kafka, wherever its window begins.
    let path = file.to_str().expect("UTF-8");
    let karrow = Karrow::with(&kafka, &["--topics", "t", "--persist", "--db-path", path], |_| {});
    let (stored, whole) = (format!("{distinct} stored.\"{t}\""), format!("{distinct} \"{t}\""));
    await_rows(&karrow, &stored, &[all(6000)]);
    kafka.put_all("t", 1, records(6000, 6500));
    await_rows(&karrow, &whole, &[all(6500)]);
    await_rows(&karrow, &stored, &[all(6500)]);
    assert_eq!(rows(&karrow, &whole), [all(6500)]);
    // What is no stream any more is still there.
    let others = format!("select payload.other from \"{other}\"");
    assert_eq!(rows(&karrow, &others), [json!({"other": 1})]);
    assert!(karrow.metric("karrow_stored_rows_total{topic=\"t\"}") >= 1500.0);
}

#[test]
fn columns_grow_and_nothing_is_lost() {
    let kafka = Kafka::with(&[("t", 1)]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("k.duckdb");
    let karrow = storing(&kafka, &file, "t", |_| {});
    // Before anything was seen there is a table already.
    await_rows(&karrow, "select count(*) as n from stored.t", &[json!({"n": 0})]);
    let steps: &[(&str, &str)] = &[
        (r#"{"a":1,"o":{"x":1},"l":[{"i":1}],"v":1}"#, "{'a': 1"),
        (r#"{"a":2.5,"b":"new","o":{"x":2,"y":true},"l":[{"i":2,"j":"k"}],"v":2}"#, "{'a': 2.5"),
        (r#"{"a":3,"v":{"deep":[1,null]}}"#, "{'a': 3"),
    ];
    for (nth, (record, _)) in steps.iter().enumerate() {
        kafka.put("t", 0, record);
        let count = json!({"n": nth + 1});
        await_rows(&karrow, "select count(*) as n from stored.t", &[count]);
    }
    let question = |table: &str| {
        format!(
            "select payload.a, payload.b, payload.o.x as x, payload.o.y as y, payload.l[1].i as i, payload.l[1].j as j, \
             payload.v from {table} order by \"offset\""
        )
    };
    let expected = [
        json!({"a": 1.0, "b": null, "x": 1, "y": null, "i": 1, "j": null, "v": "1"}),
        json!({"a": 2.5, "b": "new", "x": 2, "y": true, "i": 2, "j": "k", "v": "2"}),
        json!({"a": 3.0, "b": null, "x": null, "y": null, "i": null, "j": null, "v": "{\"deep\":[1,null]}"}),
    ];
    for table in ["stored.t", "live.t", "t"] {
        assert_eq!(rows(&karrow, &question(table)), expected, "{table}");
    }
    end(karrow);

    // Another process sees other types first.
    kafka.put("t", 0, r#"{"a":"four","b":5,"o":"text","l":[],"\"; drop table t; --":6}"#);
    let path = file.to_str().expect("UTF-8");
    let karrow = Karrow::with(&kafka, &["--topics", "t", "--persist", "--db-path", path], |_| {});
    let question = |table: &str| {
        format!(
            "select payload.a, payload.b, payload.o, payload.\"\"\"; drop table t; --\" as q from {table} order by \"offset\""
        )
    };
    let expected = [
        json!({"a": "1.0", "b": null, "o": "{\"x\":1,\"y\":null}", "q": null}),
        json!({"a": "2.5", "b": "new", "o": "{\"x\":2,\"y\":true}", "q": null}),
        json!({"a": "3.0", "b": null, "o": null, "q": null}),
        json!({"a": "four", "b": "5", "o": "text", "q": 6}),
    ];
    await_rows(&karrow, &question("stored.t"), &expected);
    assert_eq!(rows(&karrow, &question("t")), expected);
    let errors = rows(&karrow, "select count(error) as n from stored.t");
    assert_eq!(errors, [json!({"n": 0})]);
    // A tombstone changes no column, also where nothing else was seen.
    end(karrow);
    kafka.put_full("t", Some(b"k"), None, &[], 1_700_000_000_000);
    let karrow = Karrow::with(&kafka, &["--topics", "t", "--persist", "--db-path", path], |_| {});
    await_rows(&karrow, "select count(*) as n from stored.t", &[json!({"n": 5})]);
    let tombstone =
        "select key::varchar as key, payload is null as gone from t where \"offset\" = 4";
    assert_eq!(rows(&karrow, tombstone), [json!({"key": "k", "gone": true})]);
    assert_eq!(rows(&karrow, &question("stored.t where \"offset\" < 4")), expected);
}

/// The texts of a topic's numbers, in every place that they have.
const TEXTS: &str =
    "select payload.n::varchar as n, payload.l[1]::varchar as l, payload.s[1].x::varchar as x from";

fn texts_of(text: &str) -> Value {
    json!({"n": text, "l": text, "x": text})
}

#[test]
fn integers_that_no_double_holds_keep_their_digits() {
    let wide = "-9007199254740993";
    for (first, then, shown) in
        [(wide, "0.5", [wide, "0.5"]), ("0.5", wide, ["0.5", wide]), ("3", "0.5", ["3.0", "0.5"])]
    {
        let kafka = Kafka::with(&[("t", 1)]);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("k.duckdb");
        let record =
            |number: &str| format!(r#"{{"n":{number},"l":[{number}],"s":[{{"x":{number}}}]}}"#);
        let ordered = |table: &str| format!("{TEXTS} {table} order by \"offset\"");
        kafka.put("t", 0, record(first));
        let karrow = storing(&kafka, &file, "t", |_| {});
        await_rows(&karrow, &ordered("stored.t"), &[texts_of(first)]);
        end(karrow);

        // Another process does not know what was seen before.
        let path = file.to_str().expect("UTF-8");
        let flags = ["--topics", "t", "--persist", "--db-path", path];
        let karrow = Karrow::with(&kafka, &flags, |_| {});
        await_rows(&karrow, &ordered("t"), &[texts_of(first)]);
        kafka.put("t", 0, record(then));
        // Before the table has become another one, and after that.
        eventually("both numbers", || {
            let found = rows(&karrow, &ordered("t"));
            if found.len() == 1 {
                // Its columns may be known before it is there.
                assert!([first, shown[0]].map(texts_of).contains(&found[0]), "{found:?}");
                return None;
            }
            assert_eq!(found, shown.map(texts_of));
            Some(())
        });
        await_rows(&karrow, &ordered("stored.t"), &shown.map(texts_of));
        assert_eq!(rows(&karrow, &ordered("t")), shown.map(texts_of));
        assert_eq!(rows(&karrow, "select count(error) as n from t"), [json!({"n": 0})]);
    }
}

#[test]
fn rows_leave_when_they_are_too_old() {
    let kafka = Kafka::with(&[("t", 1)]);
    let folder = tempfile::tempdir().expect("a folder");
    let old = folder.path().join("old.duckdb");
    kafka.put("t", 0, r#"{"n":1}"#);
    let karrow = storing(&kafka, &old, "t", |config| {
        config.sql.stored_age_max = Some(Duration::from_secs(2));
    });
    await_rows(&karrow, "select count(*) as n from stored.t", &[json!({"n": 1})]);
    // The window still has it, so it is not gone before that is.
    await_rows(&karrow, "select count(*) as n from stored.t", &[json!({"n": 0})]);
    let offsets = rows(&karrow, "select next_offset from stored._karrow.offsets");
    assert_eq!(offsets, [json!({"next_offset": 1})], "what was stored is not stored again");
    end(karrow);
}

#[test]
fn the_oldest_rows_of_the_largest_table_leave_a_file_that_is_too_large() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = Database::in_memory(&[("threads", "1")]).expect("a database");
    let connection = database.connect().expect("a connection");
    let file = folder.path().join("k.duckdb");
    connection.execute(&format!("attach '{}' as stored", file.display())).expect("attached");
    let store = Store::open(&database).expect("a store");
    let noise = |n: i64| format!("{:016x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64));
    let batch = |rows: std::ops::Range<i64>| {
        let offsets: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.clone()));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(rows.map(noise)));
        RecordBatch::try_from_iter([("offset", offsets), ("text", texts)]).expect("a batch")
    };
    let (large, small): (Arc<str>, Arc<str>) = ("large".into(), "small".into());
    for part in 0..10 {
        let rows = batch(part * 50_000..(part + 1) * 50_000);
        let ends = Positions::new(vec![(part + 1) * 50_000]);
        store.append(&large, &[rows], &ends).expect("stored");
    }
    store.append(&small, &[batch(0..100)], &Positions::new(vec![100])).expect("stored");
    let counts = || {
        let of = |table: &str| {
            let rows = database.crate_connection().expect("a connection");
            let sql = format!("select count(*), max(\"offset\") from stored.{table}");
            rows.query_row(&sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
                .expect("counts")
        };
        (of("large"), of("small"))
    };
    store.checkpoint().expect("written");
    let bytes = store.bytes().expect("a size");
    let keeps = |bytes_max: u64| store.retain(None, usize::try_from(bytes_max).ok());
    assert_eq!(keeps(bytes).expect("retained"), 0, "it is not too large");
    let gone = keeps(bytes * 3 / 4).expect("retained") as i64;
    assert!(gone > 0 && gone % 122_880 == 0, "{gone}");
    assert_eq!(counts(), ((500_000 - gone, 499_999), (100, 99)));
    assert!(store.bytes().expect("a size") <= bytes * 3 / 4);
    // However small the limit is, the newest stay, and small tables.
    keeps(1).expect("retained");
    let ((rows, last), kept) = counts();
    assert!((122_880..2 * 122_880).contains(&rows), "{rows}");
    assert_eq!((last, kept), (499_999, (100, 99)));
    assert_eq!(keeps(1).expect("retained"), 0);
}

#[test]
fn a_file_of_somebody_else_refuses_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("no.duckdb");
    std::fs::write(&file, "this is no database, but long enough to be read as one ".repeat(100))
        .expect("written");
    let error = Karrow::refused(&[
        "--brokers",
        "127.0.0.1:1",
        "--persist",
        "--db-path",
        file.to_str().expect("UTF-8"),
    ]);
    assert!(error.contains("no.duckdb") && error.contains("not a valid DuckDB"), "{error}");
    let error = Karrow::refused(&[
        "--brokers",
        "127.0.0.1:1",
        "--persist",
        "--db-path",
        "/nowhere/at/all.duckdb",
    ]);
    assert!(error.contains("/nowhere/at/all.duckdb"), "{error}");
}

#[test]
fn a_bad_record_that_ends_a_stream_does_not_end_storing() {
    let kafka = Kafka::with(&[("t", 1)]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("k.duckdb");
    kafka.put_all("t", 0, [r#"{"n":1}"#, "bad"]);
    let path = file.to_str().expect("UTF-8");
    let mut flags = vec!["--topics", "t", "--start", "earliest", "--persist", "--db-path", path];
    flags.extend(["--payload-format", "json", "--on-bad-record", "fail"]);
    let karrow = Karrow::with(&kafka, &flags, |_| {});
    await_rows(&karrow, "select payload.n from stored.t", &[json!({"n": 1})]);
    let why = eventually("the trouble", || {
        let (status, text) = karrow.get("/readyz");
        (status == 503).then_some(text)
    });
    assert!(why.contains("topic 't' is not stored, trying again: bad record t:0:1"), "{why}");
    // The mock cluster keeps five megabytes, so it lets go of the bad record.
    let filling = "x".repeat(100_000);
    kafka.put_all("t", 0, (0..80).map(|n| format!(r#"{{"n":{n},"x":"{filling}"}}"#)));
    await_rows(&karrow, "select max(payload.n) as n from stored.t", &[json!({"n": 79})]);
    eventually("it is well", || (karrow.get("/readyz").0 == 200).then_some(()));
}

#[test]
fn a_topic_that_was_made_anew_is_not_stored_any_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("k.duckdb");
    let first = Kafka::with(&[("t", 1)]);
    first.put_all("t", 0, [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#]);
    let karrow = storing(&first, &file, "t", |_| {});
    await_rows(&karrow, "select count(*) as n from stored.t", &[json!({"n": 3})]);
    end(karrow);
    let second = Kafka::with(&[("t", 1), ("u", 1)]);
    second.put("t", 0, r#"{"n":4}"#);
    let karrow = storing(&second, &file, "t,u", |_| {});
    let why = eventually("the trouble", || {
        let (status, text) = karrow.get("/readyz");
        (status == 503).then_some(text)
    });
    let expected =
        "topic 't' is not stored any more: partition 0 is stored up to offset 3 but ends at 1";
    assert!(
        why.starts_with(expected) && why.contains("To store the new one, stop karrow"),
        "{why}"
    );
    assert!(!why.contains("again"), "{why}");
    // What was stored stays as it was, and other topics are stored.
    second.put_all("t", 0, [r#"{"n":5}"#, r#"{"n":6}"#, r#"{"n":7}"#]);
    second.put("u", 0, r#"{"n":1}"#);
    await_rows(&karrow, "select count(*) as n from stored.u", &[json!({"n": 1})]);
    let sums = "select sum(payload.n)::int as n from stored.t";
    assert_eq!(rows(&karrow, sums), [json!({"n": 6})]);
    assert_eq!(karrow.get("/readyz").0, 503);
}

/// Does something with DuckDB's file while no karrow has it.
fn with_file(file: &Path, sql: &str) {
    let database = Database::in_memory(&[("threads", "1")]).expect("a database");
    let connection = database.connect().expect("a connection");
    connection.execute(&format!("attach '{}' as stored", file.display())).expect("attached");
    connection.execute(sql).expect(sql);
    connection.execute("detach stored").expect("closed");
}

#[test]
fn a_topic_that_fails_fails_only_those_who_ask_for_it() {
    let kafka = Kafka::with(&[("bad", 1), ("good", 1), ("late", 1)]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("k.duckdb");
    for topic in ["bad", "good"] {
        kafka.put(topic, 0, r#"{"n":1}"#);
    }
    let karrow = storing(&kafka, &file, "bad,good", |_| {});
    for topic in ["bad", "good"] {
        let sql = format!("select count(*) as n from stored.{topic}");
        await_rows(&karrow, &sql, &[json!({"n": 1})]);
    }
    end(karrow);
    // Somebody has taken its table away.
    with_file(&file, "drop table stored.main.bad");
    kafka.put("bad", 0, r#"{"n":2.5}"#);
    let karrow = storing(&kafka, &file, "bad,good,late", |_| {});
    await_rows(&karrow, "select count(*) as n from good", &[json!({"n": 1})]);
    kafka.put("good", 0, r#"{"n":2}"#);
    kafka.put("late", 0, r#"{"n":3}"#);
    await_rows(&karrow, "select count(*) as n from stored.good", &[json!({"n": 2})]);
    await_rows(
        &karrow,
        "select sum(n)::int as n from (select payload.n from good union all select payload.n from late)",
        &[json!({"n": 6})],
    );
    for table in ["bad", "live.bad"] {
        let reply = karrow.connect().call(&["SQL", &format!("select * from {table}")]);
        let error = reply.error();
        assert!(error.contains("topic 'bad'") && error.contains("does not exist"), "{error}");
    }
    eventually("/readyz to name it", || {
        let (status, why) = karrow.get("/readyz");
        (status == 503 && why.contains("topic 'bad'")).then_some(())
    });
}

#[test]
fn topics_may_be_called_as_catalogs_and_schemas_are() {
    let names = [
        "main",
        "live",
        "stored",
        "memory",
        "temp",
        "system",
        "pg_catalog",
        "information_schema",
        "_karrow",
        "a.b",
        "stored.t",
        "live.t",
        "stored.main.t",
        "t",
        "topic",
        "partition",
        "offset",
        "payload",
        "offsets",
        "tail",
        "select",
        "live_scan",
        "topics",
        "1-2",
    ];
    let topics: Vec<(&str, i32)> = names.iter().map(|name| (*name, 1)).collect();
    let kafka = Kafka::with(&topics);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("k.duckdb");
    for (n, topic) in names.iter().enumerate() {
        kafka.put(topic, 0, format!(r#"{{"n":{n}}}"#));
    }
    for start in ["once", "and again"] {
        let karrow = storing(&kafka, &file, &names.join(","), |_| {});
        for (n, topic) in names.iter().enumerate() {
            for place in ["", "memory.main.", "stored.", "stored.main.", "live.", "live.main."] {
                let sql = format!("select topic, payload.n from {place}\"{topic}\"");
                await_rows(&karrow, &sql, &[json!({"topic": topic, "n": n})]);
            }
        }
        let known = "select count(*) as n from stored._karrow.topics";
        assert_eq!(rows(&karrow, known), [json!({"n": names.len()})], "{start}");
        end(karrow);
    }
}

/// A store in `file`, where DuckDB has so much memory.
fn store_with(file: &Path, memory: &str) -> (Arc<Database>, Store) {
    let settings = [("threads", "1"), ("max_memory", memory), ("temp_directory", "")];
    let database = Database::in_memory(&settings).expect("a database");
    let connection = database.connect().expect("a connection");
    connection.execute(&format!("attach '{}' as stored", file.display())).expect("attached");
    // As queries have it.
    connection.execute("set enable_external_access = false").expect("set");
    connection.execute("set lock_configuration = true").expect("set");
    let store = Store::open(&database).expect("a store");
    (database, store)
}

/// Rows with so many offsets, of about 300 bytes each.
fn numbered(rows: std::ops::Range<i64>) -> RecordBatch {
    let offsets: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.clone()));
    let noise = |n: i64| format!("{:016x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64));
    let texts = rows.map(|n| (0..18).map(|m| noise(n * 18 + m)).collect::<String>());
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
    RecordBatch::try_from_iter([("offset", offsets), ("text", texts)]).expect("a batch")
}

/// How many rows a table has, and how many offsets.
fn counted(database: &Database, table: &str) -> (i64, i64) {
    let rows = database.crate_connection().expect("a connection");
    let sql = format!("select count(*), count(distinct \"offset\") from stored.{table}");
    rows.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("counts")
}

#[test]
fn a_file_that_duckdb_has_given_up_is_opened_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("k.duckdb");
    let topic: Arc<str> = "t".into();
    let (database, store) = store_with(&file, "64MiB");
    let append = |part: i64| {
        let rows = numbered(part * 5000..(part + 1) * 5000);
        store.append(&topic, &[rows], &Positions::new(vec![(part + 1) * 5000]))
    };
    (0..3).for_each(|part| drop(append(part).expect("stored")));
    // Queries have all of the memory, so what is in the log cannot be written into the file.
    let greedy = database.connect().expect("a connection");
    greedy
        .execute("create temp table hog as select md5(i::varchar) h from range(1000) t(i)")
        .expect("made");
    while greedy.execute("insert into hog select md5(i::varchar) from range(10000) t(i)").is_ok() {}
    while greedy.execute("insert into hog values (md5('1'))").is_ok() {}
    let error = store.checkpoint().expect_err("no memory");
    assert!(error.to_string().contains("has been invalidated"), "{error}");
    assert!(store.lost().is_some());
    // A query that began before holds the file.
    greedy.execute("drop table hog").expect("dropped");
    let reader = database.connect().expect("a connection");
    reader.execute("begin transaction read only").expect("begun");
    let _ = reader.execute("from stored._karrow.topics limit 0");
    let held = append(3);
    reader.execute("rollback").expect("ended");
    if let Err(error) = held {
        assert!(error.to_string().contains("once it has memory and no query holds it"), "{error}");
        assert!(store.lost().is_some());
        append(3).expect("stored");
    }
    assert!(store.lost().is_none());
    append(4).expect("stored");
    store.checkpoint().expect("written");
    assert_eq!(counted(&database, "t"), (25_000, 25_000));
    assert_eq!(store.positions("t").expect("known"), Some(Positions::new(vec![25_000])));
    drop((greedy, reader, store, database));
    let (database, store) = store_with(&file, "64MiB");
    assert_eq!(counted(&database, "t"), (25_000, 25_000));
    assert_eq!(store.positions("t").expect("known"), Some(Positions::new(vec![25_000])));
}

/// A commit that finds no memory leaves values of its rows in some columns of DuckDB's: none of them may be there instead of
/// those that come next.
#[test]
fn whatever_queries_take_each_row_is_stored_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("k.duckdb");
    let topic: Arc<str> = "t".into();
    let (database, store) = store_with(&file, "64MiB");
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let rounds = 60;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let greedy = database.connect().expect("a connection");
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let sql = "create or replace temp table hog as \
                               select list(repeat('y', 100) || i order by i desc) from range(1000000) t(i)";
                    let _ = greedy.execute(sql);
                    let _ = greedy.execute("rollback");
                }
            });
        }
        for part in 0..rounds {
            let ends = Positions::new(vec![(part + 1) * 2000]);
            let rows = numbered(part * 2000..(part + 1) * 2000);
            eventually("the rows", || {
                store.append(&topic, std::slice::from_ref(&rows), &ends).ok()
            });
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let all = rounds * 2000;
    eventually("the file", || store.checkpoint().ok());
    assert_eq!(counted(&database, "t"), (all, all));
    drop((store, database));
    let (database, _store) = store_with(&file, "64MiB");
    assert_eq!(counted(&database, "t"), (all, all));
}

#[test]
fn what_is_stored_is_not_stored_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (database, store) = store_with(&folder.path().join("k.duckdb"), "64MiB");
    let topic: Arc<str> = "t".into();
    for _ in 0..2 {
        // DuckDB may call a transaction failed of which the rows are there.
        store.append(&topic, &[numbered(0..10)], &Positions::new(vec![10])).expect("stored");
    }
    assert_eq!(counted(&database, "t"), (10, 10));
}
