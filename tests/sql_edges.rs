//! SQL as Redis and HTTP clients ask for it, and queries with names.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow_flight::{FlightClient, FlightDescriptor};
use futures::TryStreamExt;
use karrow::config::sql::QuerySettings;
use karrow::config::units::Span;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::support::{DEADLINE, Kafka, Karrow, Reply, eventually};

fn karrow(kafka: &Kafka, queries: &[(&str, &str, Option<Duration>)]) -> Karrow {
    let queries: BTreeMap<String, QuerySettings> = queries
        .iter()
        .map(|(name, sql, max_age)| {
            let settings = QuerySettings { sql: (*sql).to_owned(), max_age: max_age.map(Span) };
            ((*name).to_owned(), settings)
        })
        .collect();
    Karrow::with(kafka, &["--topics", "candy", "--start", "earliest"], |config| {
        config.sql.queries = queries;
        config.sql.time_max = Duration::from_secs(2);
        config.sql.result_bytes_max = 1 << 20;
    })
}

fn candy() -> Kafka {
    let kafka = Kafka::with(&[("candy", 1)]);
    let record = |n: usize| format!(r#"{{"id":{},"price":{}.5,"name":"n{n}"}}"#, n % 3, n + 1);
    kafka.put_all("candy", 0, (0..30).map(record));
    kafka
}

/// Waits until the window has so many rows.
fn await_candy(karrow: &Karrow, rows: f64) {
    karrow.await_metric("karrow_stream_window_rows{topic=\"candy\"}", |found| found == rows);
}

/// Status, content type and body of an answer; HTTP/1.0, whose bodies have no chunks.
fn ask(karrow: &Karrow, head: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(karrow.http_addr()).expect("HTTP accepts");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
    let headers: String = headers.lines().map(|line| format!("{line}\r\n")).collect();
    let length = body.len();
    let request = format!("{line} HTTP/1.0\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).expect("HTTP reads");
    let mut page = Vec::new();
    stream.read_to_end(&mut page).expect("HTTP answers");
    let page = String::from_utf8_lossy(&page).into_owned();
    let (head, body) = page.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let content = head.lines().find_map(|line| line.strip_prefix("content-type: "));
    (status, content.unwrap_or_default().to_owned(), body.to_owned())
}

#[test]
fn redis_clients_ask() {
    let kafka = candy();
    let karrow = karrow(
        &kafka,
        &[(
            "below",
            "select name from (select unnest(payload) from candy) where price < $p and id = $id order by name",
            None,
        )],
    );
    await_candy(&karrow, 30.0);
    let mut client = karrow.connect();
    let cheapest =
        "select payload.id, min(payload.price) as price from candy group by 1 order by 1";
    let json = r#"[{"id":0,"price":1.5},{"id":1,"price":2.5},{"id":2,"price":3.5}]"#;
    assert_eq!(client.call(&["SQL", cheapest]).text(), format!("{json}\n"));
    assert_eq!(client.call(&["sql", cheapest, "csv"]).text(), "id,price\n0,1.5\n1,2.5\n2,3.5\n");
    let lines = "{\"id\":0,\"price\":1.5}\n{\"id\":1,\"price\":2.5}\n{\"id\":2,\"price\":3.5}\n";
    assert_eq!(client.call(&["SQL", cheapest, "FORMAT", "ndjson"]).text(), lines);
    let reply = client.call(&["SQL", cheapest, "arrow"]);
    let reader = arrow_ipc::reader::StreamReader::try_new(reply.bytes(), None).expect("a stream");
    assert_eq!(reader.map(|batch| batch.expect("a batch").num_rows()).sum::<usize>(), 3);
    // A number as a text is compared as a number: "9" is less than "10".
    let below = client.call(&["SQL.CALL", "below", "p", "9", "id", "0"]);
    assert_eq!(below.text(), "[{\"name\":\"n0\"},{\"name\":\"n3\"},{\"name\":\"n6\"}]\n");
    let below = client.call(&["SQL.CALL", "below", "id", "1", "p", "9", "format", "csv"]);
    assert_eq!(below.text(), "name\nn1\nn4\nn7\n");
    for (words, why) in [
        (
            vec!["SQL", "selec 1"],
            "SQL Parser Error: syntax error at or near \"selec\" (line 1, column 1)",
        ),
        (vec!["SQL", "select 1", "xml"], "SQL 'xml' is no format"),
        (vec!["SQL", "select", "1", "json"], "SQL a query and a format are taken"),
        (
            vec!["SQL", "select * from cand"],
            "SQL Catalog Error: Table with name cand does not exist! (line 1, column 15) Did you mean \"candy\"?",
        ),
        (vec!["SQL", "select repeat('x', 2000000)"], "SQL the answer has more than 1048576 bytes"),
        (
            vec!["SQL", "select sum(a.i * b.i) from range(10000000) a(i), range(10000000) b(i)"],
            "SQL the query took more than 2 s",
        ),
        (vec!["SQL.CALL", "belo"], "SQL no query is called 'belo'; there are below"),
        (vec!["SQL.CALL", "below", "p", "1"], "SQL parameter 'id' is missing"),
        (
            vec!["SQL.CALL", "below", "p", "1", "id", "1", "x", "1"],
            "SQL the query has no parameter 'x'",
        ),
        (vec!["SQL.CALL", "below", "p"], "SQL parameter 'p' has no value"),
        (vec!["SQL.CALL", "below", "p", "1", "p", "2"], "SQL parameter 'p' is there twice"),
        (
            vec!["SQL.CALL", "below", "format", "csv", "FORMAT", "csv"],
            "SQL parameter 'FORMAT' is there twice",
        ),
        (vec!["SQL.CALL", "below", "format", "xml"], "SQL 'xml' is no format, try json, ndjson,"),
        (
            vec!["SQL.CALL", "below", "p", "'; drop table candy; --", "id", "1"],
            "SQL Conversion Error",
        ),
    ] {
        let reply = client.call(&words);
        assert!(
            matches!(&reply, Reply::Error(text) if text.starts_with(why)),
            "{words:?}: {reply:?}"
        );
    }
    assert_eq!(client.call(&["ECHO", "still there"]).text(), "still there");
}

#[test]
fn http_clients_ask() {
    let kafka = candy();
    let karrow = karrow(
        &kafka,
        &[(
            "one",
            "select payload.name from candy where payload.id = $id order by 1 limit 1",
            None,
        )],
    );
    await_candy(&karrow, 30.0);
    let json = "[{\"n\":30}]\n".to_owned();
    let get = "GET /v1/sql?q=select+count(*)+as+n+from+candy";
    assert_eq!(ask(&karrow, get, ""), (200, "application/json".to_owned(), json.clone()));
    let csv = (200, "text/csv; charset=utf-8".to_owned(), "n\n30\n".to_owned());
    assert_eq!(ask(&karrow, &format!("{get}&format=csv"), ""), csv);
    assert_eq!(ask(&karrow, &format!("{get}\nAccept: application/xml, text/csv;q=0.9"), ""), csv);
    assert_eq!(ask(&karrow, &format!("{get}\nAccept: text/*"), ""), csv);
    assert_eq!(ask(&karrow, &format!("{get}&format=csv\nAccept: application/xml"), ""), csv);
    for head in [get, "GET /v1/queries/one?id=2", "POST /v1/sql", "POST /v1/queries/one"] {
        let refused = ask(&karrow, &format!("{head}\nAccept: application/xml"), "");
        assert_eq!((refused.0, refused.1.as_str()), (406, "application/json"), "{head}");
        assert!(refused.2.contains("text/csv (csv)"), "{head}: {}", refused.2);
    }
    let lines = ask(&karrow, &format!("{get}\nAccept: application/x-ndjson"), "");
    assert_eq!((lines.1.as_str(), lines.2.as_str()), ("application/x-ndjson", "{\"n\":30}\n"));
    assert_eq!(
        ask(&karrow, &format!("{get}&format=arrow"), "").1,
        "application/vnd.apache.arrow.stream"
    );
    assert_eq!(ask(&karrow, "POST /v1/sql", "select count(*) as n from candy").2, json);
    let post = "POST /v1/sql\nContent-Type: application/json";
    let typed = r#"{"query":"select ? as a, ? as b, ? as c, ? as d, ? as e","params":[1,"x",null,0.5,18446744073709551615]}"#;
    let answer = ask(&karrow, post, typed);
    assert_eq!(
        answer.2,
        "[{\"a\":1,\"b\":\"x\",\"c\":null,\"d\":0.5,\"e\":18446744073709551615}]\n"
    );
    let named = r#"{"query":"select count(*) as n from candy where payload.price < $p","params":{"p":9},"format":"csv"}"#;
    assert_eq!(ask(&karrow, post, named).2, "n\n8\n");
    assert_eq!(ask(&karrow, "GET /v1/queries/one?id=2", "").2, "[{\"name\":\"n11\"}]\n");
    assert_eq!(ask(&karrow, "GET /v1/queries/one?id=2&format=csv", "").2, "name\nn11\n");
    let call = "POST /v1/queries/one";
    for (head, body) in [
        (call, r#"{"params":{"id":2},"format":"csv"}"#),
        ("POST /v1/queries/one?format=csv", r#"{"params":{"id":"2"}}"#),
        ("POST /v1/queries/one?id=2\nAccept: text/csv", ""),
    ] {
        assert_eq!(ask(&karrow, head, body).2, "name\nn11\n", "{head} {body}");
    }
    let all: Value = serde_json::from_str(&ask(&karrow, "GET /v1/queries", "").2).expect("JSON");
    assert_eq!(all[0]["name"], "one");
    for (head, body, status, why) in [
        ("GET /v1/sql", "", 400, "q is missing"),
        ("GET /v1/sql?q=select+1&format=xml", "", 400, "'xml' is no format"),
        ("GET /v1/sql?q=select+$a", "", 400, "parameter 'a' is missing"),
        ("POST /v1/sql", "", 400, "no statement"),
        ("POST /v1/sql", "drop view candy", 400, "only statements that read"),
        ("POST /v1/sql", "select error('x') from candy", 400, "Invalid Input Error: x"),
        (
            "POST /v1/sql",
            "select * from force_checkpoint('stored')",
            400,
            "the function force_checkpoint is not for queries",
        ),
        ("POST /v1/sql", "pragma version", 400, "only statements that read"),
        (post, "{", 400, "the body is no JSON object"),
        (post, "{}", 400, "the body has no text 'query'"),
        (post, r#"{"query":"select 1","parms":[]}"#, 400, "unknown field 'parms'"),
        (post, r#"{"query":"select ?","params":[[1]]}"#, 400, "is no single value"),
        ("GET /v1/queries/two", "", 404, "no query is called 'two'; there are one"),
        ("GET /v1/queries/one?id=1&id=2", "", 400, "parameter 'id' is there twice"),
        ("GET /v1/sql?q=select+1&format=csv&format=csv", "", 400, "'format' is there twice"),
        ("POST /v1/queries/two", "", 404, "no query is called 'two'"),
        (call, "id=2", 400, "the body is no JSON object"),
        (call, r#"{"query":"select 1"}"#, 400, "unknown field 'query'"),
        (call, r#"{"params":[2]}"#, 400, "the query has no parameter '1'"),
        (call, "", 400, "parameter 'id' is missing"),
        (
            "POST /v1/queries/one?id=2",
            r#"{"params":{"id":2}}"#,
            400,
            "params: the URL has parameters already",
        ),
    ] {
        let (found, _, body) = ask(&karrow, head, body);
        assert!(found == status && body.contains(why), "{head}: {found} {body}");
    }
    let large = "x".repeat((1 << 20) + 1);
    assert_eq!(ask(&karrow, "POST /v1/sql", &large).0, 400);
}

/// What has a zone says so, in whatever form it comes.
#[test]
fn times_are_told_without_doubt() {
    let karrow = Karrow::at("127.0.0.1:1", &[], |_| {});
    let sql = "select timestamptz '2024-02-29 12:00:00.123+02' as tz, timestamp '2024-02-29 12:00:00' as ts, \
               date '2024-02-29' as d, time '12:00:00.5' as t, interval '1 month -2 days 3 hours 1 second' as i, \
               timestamptz '2024-01-01 00:00:00Z' at time zone 'Europe/Berlin' as local";
    let values = [
        "2024-02-29T10:00:00.123Z",
        "2024-02-29T12:00:00",
        "2024-02-29",
        "12:00:00.500",
        "1 mons -2 days 3 hours 1.000000000 secs",
        "2024-01-01T01:00:00",
    ];
    let names = ["tz", "ts", "d", "t", "i", "local"];
    let object: serde_json::Map<String, Value> =
        names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), value.into())).collect();
    let csv = format!("{}\n{}\n", names.join(","), values.join(","));
    let mut client = karrow.connect();
    let over_redis = client.call(&["SQL", sql]).text().to_owned();
    for json in [over_redis, ask(&karrow, "POST /v1/sql", sql).2] {
        assert_eq!(serde_json::from_str::<Value>(&json).expect("JSON"), json!([object]));
    }
    assert_eq!(client.call(&["SQL", sql, "csv"]).text(), csv);
    assert_eq!(ask(&karrow, "POST /v1/sql?format=csv", sql).2, csv);
    // DuckDB reads an interval as it is shown.
    let again = format!(
        "select '{}'::interval = interval '1 month -2 days 3 hours 1 second' as same",
        values[4]
    );
    assert_eq!(ask(&karrow, "POST /v1/sql", &again).2, "[{\"same\":true}]\n");
    let refused = ask(&karrow, "POST /v1/sql", "set timezone = 'Europe/Berlin'");
    assert!(refused.0 == 400 && refused.2.contains("only statements that read"), "{refused:?}");
}

#[test]
fn who_goes_away_stops_the_query() {
    let kafka = candy();
    let karrow = Karrow::with(&kafka, &["--topics", "candy"], |config| config.sql.queries_max = 2);
    let endless = "select sum(a.i * b.i) from range(10000000) a(i), range(10000000) b(i)";
    let mut client = karrow.connect();
    client.send(&["SQL", endless]);
    let mut stream = TcpStream::connect(karrow.http_addr()).expect("HTTP accepts");
    let head =
        format!("POST /v1/sql HTTP/1.1\r\nHost: k\r\nContent-Length: {}\r\n\r\n", endless.len());
    stream.write_all(format!("{head}{endless}").as_bytes()).expect("HTTP reads");
    karrow.await_metric("karrow_sql_running", |running| running == 2.0);
    drop(client);
    karrow.await_metric("karrow_sql_running", |running| running == 1.0);
    drop(stream);
    karrow.await_metric("karrow_sql_running", |running| running == 0.0);
}

#[test]
fn one_run_answers_all_who_ask_the_same() {
    let kafka = candy();
    let karrow = karrow(
        &kafka,
        &[
            ("count", "select count(*)::int as n, 'never changes' as text from candy", None),
            ("aged", "select count(*)::int as n from candy", Some(Duration::from_secs(600))),
        ],
    );
    await_candy(&karrow, 30.0);
    let count = |name: &str| {
        let body = ask(&karrow, &format!("GET /v1/queries/{name}"), "").2;
        serde_json::from_str::<Value>(&body).expect("JSON")[0]["n"].clone()
    };
    assert_eq!((count("count"), count("aged")), (json!(30), json!(30)));
    // Whatever a client has seen in the window, the answer has, too.
    for n in 31..41 {
        kafka.put("candy", 0, r#"{"id":1,"price":1,"name":"more"}"#);
        await_candy(&karrow, f64::from(n));
        let answers = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| count("count"))).collect();
            asking.into_iter().map(|asked| asked.join().expect("an answer")).collect::<Vec<_>>()
        });
        assert_eq!(answers, vec![json!(n); 8]);
        assert_eq!(count("aged"), json!(30), "it need not be newer");
    }
    let of = |name: &str, source: &str| {
        karrow
            .metric(&format!("karrow_named_queries_total{{query=\"{name}\",source=\"{source}\"}}"))
    };
    assert_eq!((of("aged", "run"), of("aged", "cache")), (1.0, 10.0));
    assert!(of("count", "cache") >= 1.0 && of("count", "run") + of("count", "cache") == 81.0);
    // Nothing changes, and yet what is said of the time is not old.
    eventually("a run although nothing has changed", || {
        let before = of("count", "run");
        count("count");
        (of("count", "run") > before).then_some(())
    });
}

#[test]
fn queries_are_checked_at_the_start() {
    for (sql, why) in [
        ("selec 1", "queries.q: Parser Error: syntax error"),
        ("drop table x", "queries.q: only statements that read"),
        ("select 1; select 2", "queries.q: one statement is wanted, not 2"),
        ("select nosuch(1)", "queries.q: Catalog Error: Scalar Function with name nosuch"),
        ("select nosuch", "queries.q: Binder Error: Referenced column \"nosuch\" was not found"),
    ] {
        let error = Karrow::refused_with(&["--brokers", "127.0.0.1:1"], |config| {
            let settings = QuerySettings { sql: sql.to_owned(), max_age: None };
            config.sql.queries = [("q".to_owned(), settings)].into();
        });
        assert!(error.starts_with(why), "{sql}: {error}");
    }
    // What is not there yet may come.
    let kafka = candy();
    let karrow = karrow(
        &kafka,
        &[
            ("later", "select payload.x from candy join other using (partition)", None),
            ("of_texts", "select sum(payload.name) from candy where payload.id > $id", None),
        ],
    );
    assert_eq!(karrow.get("/v1/queries/later").0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn flight_clients_ask_by_name() {
    let kafka = candy();
    let sql =
        "select payload.name from candy where payload.id = $id and payload.price < $p order by 1";
    let karrow = karrow(&kafka, &[("below", sql, None)]);
    tokio::task::block_in_place(|| await_candy(&karrow, 30.0));
    let address = format!("http://{}", karrow.flight_addr());
    let channel = Channel::from_shared(address).expect("an address").connect().await;
    let mut client = FlightClient::new(channel.expect("a connection"));
    let mut plan = async |command: &str| {
        client.get_flight_info(FlightDescriptor::new_cmd(command.to_owned())).await
    };
    let info = plan(r#"{"query":"below","params":{"id":"0","p":8.5}}"#).await.expect("a plan");
    let schema = info.clone().try_decode_schema().expect("a schema");
    for (command, why) in [
        (r#"{"query":"belo"}"#, "no query is called 'belo'; there are below"),
        (r#"{"query":"below","params":{"id":1}}"#, "parameter 'p' is missing"),
        (r#"{"query":"below","params":{"id":1,"p":1},"topic":"candy"}"#, "topic: no such field"),
    ] {
        let error = plan(command).await.expect_err(command).to_string();
        assert!(error.contains(why), "{command}: {error}");
    }
    let ticket = info.endpoint[0].ticket.clone().expect("a ticket");
    for _ in 0..2 {
        let batches = client.do_get(ticket.clone()).await.expect("a stream");
        let batches: Vec<RecordBatch> = batches.try_collect().await.expect("rows");
        let names: Vec<&str> = batches
            .iter()
            .flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten())
            .collect();
        assert_eq!(names, ["n0", "n3", "n6"]);
        assert!(batches.iter().all(|batch| *batch.schema() == schema));
    }
    // Both got the same answer.
    let metric = "karrow_named_queries_total{query=\"below\",source=\"cache\"}";
    assert_eq!(tokio::task::block_in_place(|| karrow.metric(metric)), 1.0);
}

#[test]
fn who_asks_the_same_shares_its_failure() {
    let kafka = candy();
    let endless = "select sum(a.i * b.i) from range(10000000) a(i), range(10000000) b(i)";
    let karrow = karrow(&kafka, &[("endless", endless, None)]);
    std::thread::scope(|scope| {
        let ask = || {
            let error = format!("{:?}", karrow.connect().call(&["SQL.CALL", "endless"]));
            assert!(error.contains("the query took more than 2 s"), "{error}");
        };
        for _ in 0..10 {
            scope.spawn(ask);
        }
    });
    // Those that came a moment late had one of their own.
    let of = |source: &str| {
        karrow
            .metric(&format!("karrow_named_queries_total{{query=\"endless\",source=\"{source}\"}}"))
    };
    assert_eq!(of("run") + of("cache"), 10.0);
    assert!(of("run") <= 3.0, "{} runs", of("run"));
}
