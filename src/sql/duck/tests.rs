//! What karrow relies on in DuckDB.

use arrow::array::{AsArray, Int32Array, RecordBatch};
use arrow::datatypes::{DataType, Int32Type, Int64Type};

use super::*;
use crate::error::ErrorKind;

fn connect() -> Connection {
    let database = Database::in_memory(&[("threads", "1")]).expect("a database");
    database.connect().expect("a connection")
}

#[test]
fn rows_come_in_batches_of_the_schema_that_was_known_before() {
    let connection = connect();
    let sql =
        "select (i % 7)::int as a, {'x': i, 'y': [i]} as s from range(5000) t(i) where i >= ?";
    let mut prepared = connection.prepare(sql).expect("prepared");
    assert_eq!((prepared.kind(), prepared.parameters()), (Kind::Reads, vec!["1".to_owned()]));
    let schema = prepared.schema().expect("types").expect("known");
    prepared.bind(1, &Parameter::Integer(1000)).expect("bound");
    let rows = prepared.run().expect("rows");
    assert_eq!(rows.schema(), &schema);
    let batches: Vec<RecordBatch> = rows.collect::<Result<_>>().expect("no error");
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 4000);
    assert!(batches.iter().all(|batch| batch.schema() == schema));
    let first = batches.first().expect("a batch");
    assert_eq!(first.column(0).as_primitive::<Int32Type>().value(0), 1000 % 7);
    let x = first.column(1).as_struct().column(0).as_primitive::<Int64Type>();
    assert_eq!(x.value(0), 1000);
}

#[test]
fn a_text_is_one_statement() {
    let connection = connect();
    for (sql, why) in [
        ("", "no statement"),
        (" -- nothing", "no statement"),
        ("create table t (i int); select 1", "one statement is wanted, not 2"),
        ("selec 1", "Parser Error: syntax error at or near \"selec\""),
        ("select nosuch", "Binder Error: Referenced column \"nosuch\""),
        ("select 1\0", "SQL has a zero byte"),
    ] {
        let error = connection.prepare(sql).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.message().starts_with(why), "{error}");
    }
    assert!(connection.prepare("select * from t").is_err(), "nothing ran");
    assert!(connection.prepare("select 1;").is_ok());
}

#[test]
fn errors_say_where() {
    let connection = connect();
    let long = format!("select {} nosuch", "1 + 1, ".repeat(40));
    for (sql, place) in [
        ("selec 1", "(line 1, column 1)"),
        ("select 1,\n  nosuch\nfrom range(1)", "(line 2, column 3)"),
        ("select 'ä', nosuch", "(line 1, column 13)"),
        ("-- first\n\nselect\n  nosuch", "(line 4, column 3)"),
        ("-- nosuch\nselect 1,\nnosuch", "(line 3, column 1)"),
        ("-- ;\n ; /* a\nb */ select nosuch", "(line 3, column 13)"),
        ("/* ä */ selec 1", "(line 1, column 9)"),
        ("-- c\n(select nosuch)", "(line 2, column 9)"),
        (&long, "(line 1, column 289)"),
    ] {
        let error = connection.prepare(sql).err().expect("refused");
        let first = error.message().lines().next().unwrap_or_default();
        assert!(first.contains(place), "{sql}: {error}");
    }
    // The caret stays where it belongs when the number of the line gets longer.
    let sql = format!("--{}\nselect 1, nosuch", "\n--".repeat(8));
    let error = connection.prepare(&sql).err().expect("refused");
    let shown: Vec<&str> = error.message().lines().rev().take(2).collect();
    assert_eq!(shown, ["                   ^^^^^^", "LINE 10: select 1, nosuch"]);
    // Comments in comments are DuckDB's.
    let nested = connection.prepare("/* /* */ select 1 */ select 2 as two").map(|one| one.kind());
    let plain = connection.prepare("/* x */ select 2 as two").map(|one| one.kind());
    assert_eq!((nested.ok(), plain.ok()), (Some(Kind::Reads), Some(Kind::Reads)));
}

#[test]
fn what_changes_something_is_told_apart() {
    let connection = connect();
    connection.execute("create table t (i int)").expect("created");
    for sql in [
        "insert into t values (1)",
        "drop table t",
        "copy t to 'x'",
        "set threads = 1",
        "call pragma_version()",
        "checkpoint",
        "begin",
        "vacuum",
        "attach ':memory:' as x",
        "load x",
        "create table x as select 1",
        "insert into t values (1) returning i",
        "use memory",
    ] {
        assert_eq!(connection.prepare(sql).map(|one| one.kind()).ok(), Some(Kind::Other), "{sql}");
    }
    for sql in [
        "select 1",
        "from t",
        "with a as (select 1) from a",
        "values (1)",
        "describe t",
        "show tables",
        "summarize t",
        "table t",
    ] {
        assert_eq!(connection.prepare(sql).map(|one| one.kind()).ok(), Some(Kind::Reads), "{sql}");
    }
}

#[test]
fn what_explains_is_told_apart() {
    let connection = connect();
    for sql in ["explain select 1", "explain analyze select 1"] {
        let kind = connection.prepare(sql).map(|one| one.kind());
        assert_eq!(kind.ok(), Some(Kind::Explains), "{sql}");
    }
}

#[test]
fn parameters_have_names_and_values() {
    let connection = connect();
    let sql = "select $a::int as a, $b as b, $c::blob as c, $d::bool as d, $e::date as e";
    let mut prepared = connection.prepare(sql).expect("prepared");
    assert_eq!(prepared.parameters(), ["a", "b", "c", "d", "e"]);
    let values = [
        Parameter::Text("7".to_owned()),
        Parameter::Double(0.5),
        Parameter::Blob(vec![0, 255]),
        Parameter::Boolean(true),
        Parameter::Null,
    ];
    for (at, value) in (1..).zip(&values) {
        prepared.bind(at, value).expect("bound");
    }
    let batch = prepared.run().expect("rows").next().expect("a batch").expect("no error");
    assert_eq!(batch.column(0).as_primitive::<Int32Type>(), &Int32Array::from(vec![7]));
    assert_eq!(batch.schema().field(1).data_type(), &DataType::Float64);
    assert_eq!(batch.column(2).as_binary::<i32>().value(0), [0, 255]);
    assert!(prepared.bind(6, &Parameter::Null).is_err());
}

#[test]
fn what_depends_on_parameters_is_not_known() {
    let connection = connect();
    for (sql, is_known, wanted) in [
        ("select ? as a", false, vec![None]),
        ("select ? + ? as a", false, vec![None, None]),
        ("select i from range(3) t(i) where i = ?", true, vec![Some(DataType::Int64)]),
        ("select ?::int as a", true, vec![Some(DataType::Int32)]),
    ] {
        let prepared = connection.prepare(sql).expect("prepared");
        assert_eq!(prepared.schema().expect("types").is_some(), is_known, "{sql}");
        assert_eq!(prepared.parameter_types().expect("types"), wanted, "{sql}");
    }
}

#[test]
fn parameters_keep_their_types() {
    let connection = connect();
    let (value, digits, scale) = (-123_456_789_012_345_678_901_234_567_890, 38, 9);
    for (value, name, shown) in [
        (Parameter::Unsigned(u64::MAX), "UBIGINT", "18446744073709551615"),
        (Parameter::Integer(i64::MIN), "BIGINT", "-9223372036854775808"),
        (
            Parameter::Decimal { value, digits, scale },
            "DECIMAL(38,9)",
            "-123456789012345678901.234567890",
        ),
        (Parameter::Date(-1), "DATE", "1969-12-31"),
        (Parameter::Time(86_399_999_999), "TIME", "23:59:59.999999"),
        (Parameter::Timestamp(1), "TIMESTAMP", "1970-01-01 00:00:00.000001"),
        (Parameter::TimestampNs(1), "TIMESTAMP_NS", "1970-01-01 00:00:00.000000001"),
        (
            Parameter::Interval { months: 14, days: 3, micros: 1_000_000 },
            "INTERVAL",
            "1 year 2 months 3 days 00:00:01",
        ),
    ] {
        let mut prepared = connection.prepare("select typeof($1), $1::varchar").expect("prepared");
        prepared.bind(1, &value).expect("bound");
        let batch = prepared.run().expect("rows").next().expect("a batch").expect("no error");
        let text = |at| batch.column(at).as_string::<i32>().value(0).to_owned();
        assert_eq!((text(0).as_str(), text(1).as_str()), (name, shown));
    }
    // Whatever comes from outside, DuckDB must live.
    for value in [
        Parameter::Date(i32::MIN),
        Parameter::Date(i32::MAX),
        Parameter::Timestamp(i64::MIN),
        Parameter::Timestamp(i64::MAX),
        Parameter::TimestampTz(i64::MIN),
        Parameter::TimestampNs(i64::MIN),
        Parameter::Interval { months: i32::MIN, days: i32::MIN, micros: i64::MIN },
    ] {
        let mut prepared = connection.prepare("select $1::varchar, hash($1)").expect("prepared");
        prepared.bind(1, &value).expect("bound");
        if let Ok(rows) = prepared.run() {
            rows.for_each(drop);
        }
    }
}

#[test]
fn what_runs_can_be_stopped() {
    let connection = connect();
    let interrupter = connection.interrupter();
    let (began, has_begun) = std::sync::mpsc::channel();
    let stopper = std::thread::spawn(move || {
        has_begun.recv().expect("it begins");
        // Before it has begun there is nothing to stop, so until it has an effect.
        for _ in 0..1000 {
            interrupter.interrupt();
            std::thread::sleep(std::time::Duration::from_millis(10));
            if has_begun.try_recv().is_ok() {
                return;
            }
        }
    });
    let sql = "select sum(a.i * b.i) from range(1000000) a(i), range(1000000) b(i)";
    let mut prepared = connection.prepare(sql).expect("prepared");
    began.send(()).expect("heard");
    let error = match prepared.run() {
        Err(error) => error,
        Ok(mut rows) => rows.find_map(Result::err).expect("stopped"),
    };
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    drop(prepared);
    began.send(()).expect("heard");
    stopper.join().expect("it ends");
    let left = connection.interrupter();
    drop(connection);
    left.interrupt();
}

#[test]
fn tables_are_named_as_they_are_written() {
    let connection = connect();
    connection.execute("create view candy as from range(3)").expect("created");
    for (sql, names) in [
        ("select * from candy", Some(vec!["candy"])),
        (
            "-- x\nfrom \"Candy\" join live.\"a.b\" using (x) where y = $y",
            Some(vec!["Candy", "a.b"]),
        ),
        ("select (select max(x) from a), ? union all select 1, 2", Some(vec!["a"])),
        ("select 1", Some(vec![])),
        ("drop table x", None),
        ("selec 1", None),
    ] {
        let found = connection.table_names(sql).expect(sql);
        let names = names.map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(found, names, "{sql}");
    }
}
