//! `karrow client`: the program itself, against a karrow in this process.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow_ipc::reader::StreamReader;
use karrow::config::Config;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use crate::support::{DEADLINE, Kafka, Karrow, eventually};

/// What a run of the program has said.
struct Ran {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    /// What is on stdout, of a run that went well.
    #[track_caller]
    fn text(&self) -> &str {
        assert_eq!(self.code, 0, "{}", self.err);
        std::str::from_utf8(&self.out).unwrap()
    }

    #[track_caller]
    fn json(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The only line on stderr, of a run that failed.
    #[track_caller]
    fn error(&self, code: i32) -> &str {
        let line = self.err.trim_end();
        assert!(self.code == code && !line.contains('\n'), "{}: {}", self.code, self.err);
        line
    }
}

fn server(karrow: &Karrow) -> String {
    format!("http://{}", karrow.flight_addr())
}

/// The program without what the environment of the tests says.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karrow"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KARROW_") {
            command.env_remove(name);
        }
    }
    command.arg("client").args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(karrow: &Karrow, args: &[&str]) -> Ran {
    let server = server(karrow);
    finish(command(&[&["--server", server.as_str()], args].concat()).spawn().unwrap())
}

fn run_with(karrow: &Karrow, args: &[&str], input: &[u8]) -> Ran {
    let server = server(karrow);
    let mut command = command(&[&["--server", server.as_str()], args].concat());
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    finish(child)
}

#[track_caller]
fn finish(child: Child) -> Ran {
    let id = child.id().to_string();
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    let Ok(output) = receiver.recv_timeout(DEADLINE) else {
        Command::new("kill").arg(id).status().unwrap();
        panic!("it does not end: {:?}", receiver.recv().unwrap());
    };
    Ran {
        code: output.status.code().unwrap(),
        out: output.stdout,
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A run that goes on; it is ended when the test ends.
struct Running {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Running {
    fn start(karrow: &Karrow, args: &[&str]) -> Self {
        let server = server(karrow);
        let mut child = command(&[&["--server", server.as_str()], args].concat()).spawn().unwrap();
        let out = lines(child.stdout.take().unwrap());
        let err = lines(child.stderr.take().unwrap());
        Self { child, out, err }
    }

    #[track_caller]
    fn line(&self) -> String {
        let line = self.out.recv_timeout(DEADLINE);
        line.unwrap_or_else(|_| panic!("no line; {:?}", self.err.try_iter().collect::<Vec<_>>()))
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// Waits for a line on stderr.
    #[track_caller]
    fn note(&self, part: &str) {
        loop {
            let line = self.err.recv_timeout(DEADLINE).expect(part);
            if line.contains(part) {
                return;
            }
        }
    }

    #[track_caller]
    fn interrupt(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    }

    #[track_caller]
    fn code(&mut self) -> i32 {
        let status = eventually("the program to end", || self.child.try_wait().unwrap());
        status.code().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            if line.is_err() || sender.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A topic `orders` with three messages.
fn orders() -> (Kafka, Karrow) {
    let kafka = Kafka::with(&[("orders", 1)]);
    let headers: &[(&[u8], Option<&[u8]>)] = &[(b"trace", Some(b"7f")), (b"raw", Some(b"\xff"))];
    kafka.put_full(
        "orders",
        Some(b"k0"),
        Some(br#"{"id":9007199254740993,"who":{"name":"a,b"}}"#),
        headers,
        1_700_000_000_123,
    );
    kafka.put_full("orders", Some(b"\xfe"), Some(br#"{"id":2}"#), &[], 1_700_000_001_000);
    kafka.put_full("orders", None, Some(br#"{"id":3,"who":{}}"#), &[], 1_700_000_002_000);
    let karrow = Karrow::start(&kafka);
    (kafka, karrow)
}

#[test]
fn rows_have_many_forms() {
    let (_kafka, karrow) = orders();
    let get = |args: &[&str]| run(&karrow, &[&["get", "orders"], args].concat());
    let rows = get(&["--output", "json"]).json();
    assert_eq!(
        rows[0],
        json!({
            "topic": "orders", "partition": 0, "offset": 0, "timestamp": "2023-11-14T22:13:20.123Z",
            "key": "k0",
            "headers": [{"key": "trace", "value": "7f"}, {"key": "raw", "value_base64": "/w=="}],
            "payload": {"id": 9_007_199_254_740_993_i64, "who": {"name": "a,b"}},
            "error": null,
        })
    );
    assert_eq!((rows.len(), &rows[1]["key_base64"]), (3, &json!("/g==")));
    assert_eq!(rows[2]["key"], Value::Null);

    let csv = get(&["--output", "csv", "--columns", "_offset,_key,who,id"]);
    assert_eq!(
        csv.text(),
        "_offset,_key,_key_base64,id,who.name\n0,k0,,9007199254740993,\"a,b\"\n1,,/g==,2,\n2,,,3,\n"
    );

    let table = get(&[]);
    let lines: Vec<&str> = table.text().lines().collect();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert!(lines[0].starts_with("_partition  _offset  _timestamp"), "{lines:?}");
    assert!(!lines[0].contains("_topic") && !lines[0].contains("_error"), "{lines:?}");
    assert!(lines[2].contains("2023-11-14T22:13:20.123Z") && lines[2].contains("a,b"), "{lines:?}");
    assert!(lines[3].contains("0xfe"), "{lines:?}");

    let arrow = get(&["--output", "arrow"]);
    assert_eq!(arrow.code, 0, "{}", arrow.err);
    check_ids(
        &StreamReader::try_new(&arrow.out[..], None)
            .unwrap()
            .map(Result::unwrap)
            .collect::<Vec<_>>(),
    );

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.parquet");
    let parquet = get(&["--output", "parquet", "-o", path.to_str().unwrap()]);
    assert_eq!(parquet.text(), "");
    assert!(parquet.err.contains("3 rows of orders are in "), "{}", parquet.err);
    check_ids(&parquet_rows(&path));
}

fn check_ids(batches: &[RecordBatch]) {
    let of = |batch: &RecordBatch| -> Vec<i64> {
        let payload = batch.column_by_name("payload").unwrap().as_struct();
        payload.column_by_name("id").unwrap().as_primitive::<Int64Type>().values().to_vec()
    };
    assert_eq!(batches.iter().flat_map(of).collect::<Vec<_>>(), [9_007_199_254_740_993, 2, 3]);
}

fn parquet_rows(path: &Path) -> Vec<RecordBatch> {
    let file = std::fs::File::open(path).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    reader.map(Result::unwrap).collect()
}

#[test]
fn a_read_has_bounds() {
    let (_kafka, karrow) = orders();
    let offsets = |args: &[&str]| -> Vec<i64> {
        let line = [&["get", "orders", "--output", "json", "--columns", "offset"], args].concat();
        let rows = run(&karrow, &line).json();
        rows.iter().map(|row| row["offset"].as_i64().unwrap()).collect()
    };
    for (args, expected) in [
        (&["--from", "0:1"][..], &[1, 2][..]),
        (&["--from", "earliest", "--to", "0:2"], &[0, 1]),
        (&["--from", "0:2", "--to", "now"], &[2]),
        (&["--from", "latest"], &[]),
        (&["--limit", "2"], &[0, 1]),
        (&["--follow", "--from", "earliest", "--limit", "3"], &[0, 1, 2]),
    ] {
        assert_eq!(offsets(args), expected, "{args:?}");
    }
}

#[test]
fn what_a_read_begins_with_is_no_matter_of_others() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, (0..3).map(|n| n.to_string()));
    let karrow = Karrow::with(&kafka, &["--topics", "t"], |_| {});
    karrow.await_metric("karrow_streams{phase=\"live\"}", |count| count == 1.0);
    let rows = |args: &[&str]| {
        let line = [&["get", "t", "--output", "json"], args].concat();
        run(&karrow, &line).json().len()
    };
    assert_eq!(rows(&[]), 3);
    assert_eq!(rows(&["--from", "window"]), 0, "the stream has begun behind them");
    let follow = Running::start(&karrow, &["get", "t", "--follow", "--output", "json"]);
    kafka.put("t", 0, "3");
    assert_eq!(follow.json()["offset"], json!(3));
}

#[test]
fn bounds_that_hold_nothing_are_said() {
    let (_kafka, karrow) = orders();
    for (args, rows, said) in [
        (&["--to", "0:100"][..], 3, "karrow: orders ends at 0:3, before --to\n"),
        (&["--to", "0:3"], 3, ""),
        (
            &["--from", "0:2", "--to", "0:1"],
            0,
            "karrow: orders: nothing lies between --from and --to\n",
        ),
        (&["--from", "latest"], 0, ""),
    ] {
        let line = [&["get", "orders", "--output", "json"], args].concat();
        let ran = run(&karrow, &line);
        assert_eq!((ran.json().len(), ran.err.as_str()), (rows, said), "{args:?}");
    }
}

#[test]
fn a_read_that_fails_says_where_another_goes_on() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put("t", 0, "0");
    let karrow = Karrow::with(&kafka, &["--when-full", "error", "--buffer-limit", "1"], |_| {});
    let mut follow = Running::start(
        &karrow,
        &["get", "t", "--follow", "--from", "earliest", "--output", "json"],
    );
    assert_eq!(follow.json()["offset"], json!(0));
    kafka.put("t", 0, "1");
    follow.note("the window of 't' is full; --from 0:");
    assert_eq!(follow.code(), 1);
}

#[cfg(feature = "embedded-broker")]
#[test]
fn topics_are_created() {
    let karrow = Karrow::embedded(&[]);
    for (body, said) in [
        ("a", "karrow: topic a is created\n"),
        (r#"{"topic": "b", "partitions": 2}"#, "karrow: topic b is created\n"),
    ] {
        let ran = run(&karrow, &["actions", "create-topic", body]);
        assert_eq!((ran.text(), ran.err.as_str()), ("", said));
    }
}

#[cfg(feature = "embedded-broker")]
#[test]
fn a_read_begins_at_a_time() {
    let karrow = Karrow::embedded(&["--topics", "t"]);
    let input = b"timestamp,a\n2023-11-14T22:13:20Z,1\n1700000001000,2\n1700000002000,3\n";
    let done = run_with(&karrow, &["put", "t", "--input", "csv"], input);
    assert_eq!(done.text(), "3 messages are stored in t\n");
    for (place, expected) in [
        ("2023-11-14T22:13:21Z", 2),
        ("1700000001001", 1),
        ("1700000002001", 0),
        ("earliest", 3),
        ("2023-11-14", 3),
        ("2023-11-15", 0),
    ] {
        let rows = run(&karrow, &["get", "t", "--from", place, "--output", "json"]).json();
        assert_eq!(rows.len(), expected, "{place}: {rows:?}");
    }
}

#[test]
fn what_is_wrong_is_said_in_a_line() {
    let (kafka, karrow) = orders();
    let error = |args: &[&str], code: i32| run(&karrow, args).error(code).to_owned();
    assert_eq!(
        error(&["get", "orders", "--columns", "offset,payload.prize", "--output", "json"], 64),
        "karrow: --columns: orders has no column 'payload.prize'; it has topic, partition, offset, timestamp, key, headers, payload.id, payload.who.name, error.message, error.key, error.payload"
    );
    let price = ["get", "texts", "--columns", "payload.price", "--output", "json"];
    kafka.create("texts", 1);
    kafka.put("texts", 0, "text");
    assert_eq!(
        error(&price, 64),
        "karrow: --columns: texts has no column 'payload.price'; it has topic, partition, offset, timestamp, key, headers, payload, error.message, error.key, error.payload; its payload was found to be Utf8, [topic.texts] payload = \"json\" in karrow.toml says otherwise"
    );
    assert!(error(&["get", "texts", "--columns", "price"], 64).contains("found to be Utf8"));
    assert!(error(&["get", "nosuch"], 1).contains("'nosuch'"));
    assert!(error(&["get", "orders", "--from", "5:1"], 64).contains("has 1 partitions"));
    assert!(error(&["get", "orders", "--output", "parquet"], 64).contains("--file"));
    let file = error(&["get", "orders", "-o", "/nosuch/file"], 1);
    assert!(file.starts_with("karrow: /nosuch/file: cannot create it: "), "{file}");
    assert!(error(&["actions", "nosuch"], 1).contains("nosuch"));
    for (args, why) in [
        (&["get", "a b"][..], "no legal topic name"),
        (&["get", "orders", "--from", "monday"], "none of earliest, latest, now, window"),
        (&["get", "orders", "--from", "42"], "0:42"),
        (&["get", "orders", "--to", "follow"], "--follow"),
        (&["get", "orders", "--limit", "-1"], "'-1' is no number of rows"),
        (&["get", "orders", "--columns", ""], "the name of a column is missing"),
        (&["put", "orders", "--columns", "key,,payload"], "the name of a column is missing"),
        (&["get"], "TOPIC"),
    ] {
        let ran = run(&karrow, args);
        assert!(ran.code == 64 && ran.err.contains(why), "{args:?}: {}", ran.err);
    }
    for address in [karrow.http_addr(), karrow.resp_addr()] {
        let other = command(&["list", "--server", &address.to_string()]).spawn().unwrap();
        let other = finish(other);
        let said = format!("; http://{address} is not Arrow Flight; karrow's port for it is 8815");
        assert!(other.error(1).ends_with(&said), "{}", other.err);
    }
    let unreached = finish(command(&["list", "--server", "127.0.0.1:1"]).spawn().unwrap());
    let unreached = unreached.error(1);
    assert!(unreached.starts_with("karrow: cannot reach http://127.0.0.1:1: "), "{unreached}");
    let mut variable = command(&["list"]);
    variable.env("KARROW_SERVER", "https://a");
    assert!(finish(variable.spawn().unwrap()).error(64).starts_with("karrow: KARROW_SERVER: "));
    variable.env("KARROW_SERVER", server(&karrow));
    assert_eq!(finish(variable.spawn().unwrap()).code, 0);
}

#[test]
fn streams_sessions_and_actions_are_listed() {
    let (kafka, karrow) = orders();
    kafka.create("quiet", 1);
    // Reading it to a limit makes it a stream.
    let follow = ["get", "orders", "--follow", "--from", "earliest", "--limit", "3"];
    assert_eq!(run(&karrow, &follow).code, 0);
    let mut session = karrow.named("g:n");
    session.call(&["LPOP", "topics:quiet"]);
    let list = |args: &[&str]| run(&karrow, &[&["list", "--output", "json"], args].concat()).json();
    let found = list(&["--all"]);
    let kinds: Vec<(&Value, &Value)> =
        found.iter().map(|entry| (&entry["kind"], &entry["topic"])).collect();
    assert!(kinds.contains(&(&json!("stream"), &json!("orders"))), "{found:?}");
    assert!(kinds.contains(&(&json!("topic"), &json!("quiet"))), "{found:?}");
    assert_eq!(found.last().unwrap(), &json!({"kind": "session", "group": "g", "name": "n"}));
    assert_eq!(found[0]["columns"]["id"], json!("Int64"), "{found:?}");
    let found = list(&["o*"]);
    assert_eq!((found.len(), &found[0]["topic"]), (1, &json!("orders")));
    let table = run(&karrow, &["list", "--all"]);
    assert!(table.text().starts_with("topic "), "{}", table.text());

    assert_eq!(run(&karrow, &["actions", "health"]).text(), "ok\n");
    assert!(run(&karrow, &["actions"]).text().contains("list-topics"));
    let topics = run(&karrow, &["actions", "list-topics"]);
    assert!(topics.text().lines().any(|name| name == "quiet"), "{}", topics.text());
    assert_eq!(run(&karrow, &["actions", "drop-stream", "orders"]).text(), "");
}

#[test]
fn messages_are_put() {
    let kafka = Kafka::with(&[("a", 1), ("b", 1), ("c", 2)]);
    let karrow = Karrow::start(&kafka);
    let put = |args: &[&str], input: &[u8]| run_with(&karrow, &[&["put"], args].concat(), input);
    let done = put(&["a"], b"{\"x\": 1.50}\n\n[2]\n");
    assert_eq!(done.text(), "2 messages are stored in a\n");
    assert_eq!(kafka.values("a", 0), [&b"{\"x\": 1.50}"[..], b"[2]"]);

    let done = put(&["a", "--input", "json"], b"{\"x\":3}\n{\"x\":\n{\"x\":5}\n");
    assert_eq!(
        done.error(1),
        "karrow: stdin: line 2: it is no JSON: EOF while parsing a value at character 5; --input takes csv, arrow and parquet, too; 1 message is stored in a"
    );
    assert_eq!(kafka.values("a", 0).len(), 3);

    let done = put(&["c", "--input", "csv"], b"key,partition,name\nk,1,x\n,0,y\n");
    assert_eq!(done.text(), "2 messages are stored in c\n");
    assert_eq!(kafka.records("c", 1), [(Some(b"k".to_vec()), Some(br#"{"name":"x"}"#.to_vec()))]);
    assert_eq!(kafka.values("c", 0), [br#"{"name":"y"}"#]);

    // What was read can be put.
    let (orders, other) = orders();
    let rows = run(
        &other,
        &["get", "orders", "--output", "arrow", "--columns", "key,headers,timestamp,payload"],
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("orders.arrows");
    std::fs::write(&file, &rows.out).unwrap();
    let done = put(&["b", "--input", "arrow", file.to_str().unwrap()], b"");
    assert_eq!(done.text(), "3 messages are stored in b\n");
    let keys = |kafka: &Kafka, topic| -> Vec<Option<Vec<u8>>> {
        kafka.records(topic, 0).into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys(&kafka, "b"), keys(&orders, "orders"));

    assert_eq!(put(&["a"], b"").text(), "0 messages are stored in a\n");
    let error = put(&["a", "--input", "arrow"], b"no arrow at all");
    assert!(error.error(1).starts_with("karrow: stdin: no Arrow stream: "));
    let error = put(&["c", "--input", "csv"], b"partition,name\n7,x\n");
    assert_eq!(
        error.error(1),
        "karrow: row 0: topic 'c' has 2 partitions, none with the number 7; 0 messages are stored in c"
    );
}

#[test]
fn nothing_in_csv_is_null() {
    let kafka = Kafka::with(&[("a", 1), ("b", 1)]);
    let karrow = Karrow::start(&kafka);
    let put = |topic: &str, input: &[u8]| {
        run_with(&karrow, &["put", topic, "--input", "csv"], input).text().to_owned()
    };
    assert_eq!(put("a", b"key,x,y\n,,\"\"\n\"\",1,\n"), "2 messages are stored in a\n");
    assert_eq!(
        kafka.records("a", 0),
        [(None, Some(br#"{"y":""}"#.to_vec())), (Some(Vec::new()), Some(br#"{"x":"1"}"#.to_vec())),]
    );
    put("b", b"key,payload\nk,\nk,\"\"\n");
    let key = Some(b"k".to_vec());
    assert_eq!(kafka.records("b", 0), [(key.clone(), None), (key, Some(Vec::new()))]);
}

#[test]
fn the_name_of_a_file_says_what_it_holds() {
    let (orders, karrow) = orders();
    orders.create("wide", 2);
    orders.create("narrow", 1);
    for name in ["csv", "parquet", "arrow", "NDJSON", "txt"] {
        orders.create(&format!("copy-{name}"), 1);
    }
    for (partition, value) in [(0, r#"{"a":1}"#), (1, r#"{"a":2}"#)] {
        orders.put("wide", partition, value);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let begin = |name: &str| std::fs::read(path(name)).unwrap()[..4].to_vec();
    for name in ["wide.parquet", "wide.arrow", "wide.csv", "wide.NDJSON", "wide.txt"] {
        let done = run(&karrow, &["get", "wide", "-o", &path(name)]);
        assert_eq!(done.text(), "", "{name}");
    }
    assert_eq!(begin("wide.parquet"), b"PAR1");
    assert_eq!(begin("wide.arrow"), b"ARRO", "a file, as `.arrows` is a stream");
    let unknown = run(&karrow, &["get", "wide", "-o", &path("wide.xlsx")]);
    assert!(unknown.error(64).ends_with("wide.xlsx: its name says no format, --output does"));
    assert!(!std::path::Path::new(&path("wide.xlsx")).exists());
    assert_eq!(begin("wide.csv"), b"_top");
    assert_eq!(begin("wide.NDJSON"), b"{\"to");
    assert_eq!(begin("wide.txt"), b"_par");
    run(&karrow, &["get", "wide", "--output", "json", "-o", &path("json.csv")]).text();
    assert_eq!(begin("json.csv"), b"{\"to", "what is said counts");

    let put = |args: &[&str]| run(&karrow, &[&["put"], args].concat());
    for name in ["parquet", "arrow"] {
        let (topic, file) = (format!("copy-{name}"), path(&format!("wide.{name}")));
        // What comes before the batch of the wrong row is stored.
        let error = put(&["narrow", &file]);
        let why = ": topic 'narrow' has 1 partition, none with the number 1; ";
        assert!(error.error(1).contains(why), "{}", error.err);
        let done = put(&[&topic, &file, "--columns", "payload,key"]);
        assert_eq!(done.text(), format!("2 messages are stored in {topic}\n"));
        let mut values = orders.values(&topic, 0);
        values.sort_unstable();
        assert_eq!(values, [br#"{"a":1}"#, br#"{"a":2}"#]);
    }
    let done = put(&["copy-csv", &path("wide.csv"), "--columns", "a"]);
    assert_eq!(done.text(), "2 messages are stored in copy-csv\n");
    assert_eq!(orders.end("copy-csv", 0), 2);
    assert!(orders.values("copy-csv", 0).contains(&br#"{"a":"2"}"#.to_vec()));
    let done = put(&["copy-NDJSON", &path("wide.NDJSON")]);
    assert_eq!(done.text(), "2 messages are stored in copy-NDJSON\n");

    // From a pipe as well.
    let bytes = std::fs::read(path("wide.parquet")).unwrap();
    let args = ["put", "copy-txt", "--input", "parquet", "--columns", "payload"];
    assert_eq!(run_with(&karrow, &args, &bytes).text(), "2 messages are stored in copy-txt\n");

    for (args, code, why) in [
        (&["wide.parquet", "--input", "arrow"][..], 1, "it is a Parquet file, for --input parquet"),
        (&["wide.txt"], 1, "--input takes csv, arrow and parquet, too"),
        (&["wide.arrow", "--columns", "key,x"], 64, "wide.arrow has no column 'x'; it has topic, "),
        (&["wide.NDJSON", "--columns", "a"], 64, "--columns: a line of JSON is sent as it is"),
    ] {
        let error = put(&[&["copy-txt", &path(args[0])], &args[1..]].concat());
        assert!(error.error(code).contains(why), "{args:?}: {}", error.err);
    }
}

#[test]
fn lines_are_put_while_more_is_to_come() {
    let kafka = Kafka::with(&[("a", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut command = command(&["put", "a", "--server", &server(&karrow)]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.as_mut().unwrap();
    for number in 0..3 {
        writeln!(stdin, "{number}").unwrap();
        eventually("the line to be stored", || (kafka.end("a", 0) > number).then_some(()));
    }
    assert_eq!(finish(child).text(), "3 messages are stored in a\n");
}

#[test]
fn a_follow_goes_on_over_new_columns() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put("t", 0, r#"{"a":1}"#);
    let karrow = Karrow::start(&kafka);
    let follow = |output: &str| {
        let from = ["get", "t", "--follow", "--from", "earliest", "--output", output];
        Running::start(&karrow, &from)
    };
    let (json, table, mut csv) = (follow("json"), follow("table"), follow("csv"));
    assert_eq!(json.json()["payload"], json!({"a": 1}));
    assert!(table.line().ends_with(" a"));
    assert!(table.line().starts_with('─'));
    assert!(table.line().ends_with(" 1"));
    assert!(csv.line().contains(",a,"));
    assert!(csv.line().contains(",1,"));
    kafka.put("t", 0, r#"{"a":2,"b":"x"}"#);
    assert_eq!(json.json()["payload"], json!({"a": 2, "b": "x"}));
    assert_eq!(table.line(), "");
    assert!(table.line().contains(" a  b"));
    assert!(table.line().starts_with('─'));
    assert!(table.line().ends_with(" 2  x"));
    csv.note("t: its columns have changed");
    assert_eq!(csv.code(), 1);
    for offset in 2..20 {
        kafka.put("t", 0, r#"{"a":3}"#);
        assert_eq!(json.json()["offset"], json!(offset));
    }
}

#[test]
fn a_lost_connection_is_made_again() {
    let kafka = Kafka::with(&[("t", 2)]);
    kafka.put("t", 0, r#"{"a":1}"#);
    let mut karrow = Karrow::start(&kafka);
    let port = karrow.flight_addr().port();
    let args = ["get", "t", "--follow", "--from", "earliest", "--output", "json"];
    let mut follow = Running::start(&karrow, &args);
    let arrow = tempfile::tempdir().unwrap();
    let path = arrow.path().join("t.parquet");
    let args = ["get", "t", "--follow", "--from", "earliest", "--output", "parquet", "-o"];
    let mut file = Running::start(&karrow, &[&args[..], &[path.to_str().unwrap()]].concat());
    assert_eq!(follow.json()["offset"], json!(0));
    for round in 1..4 {
        karrow.stop().join().unwrap();
        follow.note("lost t");
        // While nobody serves.
        kafka.put("t", 0, format!(r#"{{"a":{round}}}"#));
        kafka.put("t", 1, format!(r#"{{"a":{round}}}"#));
        karrow = Karrow::with(&kafka, &[], |config: &mut Config| {
            config.flight.as_mut().unwrap().addr.set_port(port);
        });
        follow.note("goes on with t");
        file.note("goes on with t");
        let mut places: Vec<(i64, i64)> = (0..2)
            .map(|_| follow.json())
            .map(|row| (row["partition"].as_i64().unwrap(), row["offset"].as_i64().unwrap()))
            .collect();
        places.sort_unstable();
        assert_eq!(places, [(0, round), (1, round - 1)]);
    }
    follow.interrupt();
    assert_eq!(follow.code(), 0);
    file.interrupt();
    assert_eq!(file.code(), 0);
    let mut seen = [0, 0];
    for batch in parquet_rows(&path) {
        let partitions = batch.column_by_name("partition").unwrap().as_primitive::<Int32Type>();
        let offsets = batch.column_by_name("offset").unwrap().as_primitive::<Int64Type>();
        for (partition, offset) in partitions.values().iter().zip(offsets.values()) {
            let next = &mut seen[*partition as usize];
            assert_eq!(*offset, *next, "nothing is missing and nothing is there twice");
            *next += 1;
        }
    }
    assert!(seen[0] > 0, "{seen:?}");
}

/// A read that has an end as well, where it was when the connection was lost.
#[test]
fn a_lost_read_goes_on() {
    const ROWS: i64 = 8_000; // 4 MB, more than one message
    let kafka = Kafka::with(&[("t", 1)]);
    let text = "x".repeat(500);
    kafka.put_all("t", 0, (0..ROWS).map(|n| format!(r#"{{"n":{n},"text":"{text}"}}"#)));
    let mut karrow = Karrow::start(&kafka);
    let port = karrow.flight_addr().port();
    let mut child =
        command(&["get", "t", "--output", "json", "--server", &server(&karrow)]).spawn().unwrap();
    // It cannot write on, so that the server has most of the rows when it stops.
    let mut rows = BufReader::new(child.stdout.take().unwrap()).lines();
    let offset = |line: std::io::Result<String>| {
        let row: Value = serde_json::from_str(&line.unwrap()).unwrap();
        row["offset"].as_i64().unwrap()
    };
    assert_eq!(rows.next().map(offset), Some(0));
    karrow.stop().join().unwrap();
    let _karrow = Karrow::with(&kafka, &[], |config: &mut Config| {
        config.flight.as_mut().unwrap().addr.set_port(port);
    });
    let rest: Vec<i64> = rows.map(offset).collect();
    assert!(rest.into_iter().eq(1..ROWS), "nothing is missing and nothing is there twice");
    let ran = finish(child);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("lost t") && ran.err.contains("goes on with t"), "{}", ran.err);
}

#[test]
fn a_reader_that_goes_ends_it() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put("t", 0, r#"{"a":1}"#);
    let karrow = Karrow::start(&kafka);
    let args = ["get", "t", "--follow", "--from", "earliest", "--server", &server(&karrow)];
    let mut child = command(&args).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let status = eventually("it to end", || {
        kafka.put("t", 0, r#"{"a":2}"#);
        child.try_wait().unwrap()
    });
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((status.code(), err.as_str()), (Some(0), ""));
}

/// A row that was not read as a whole is easily missed among many.
#[test]
fn rows_with_errors_are_counted() {
    let kafka = Kafka::with(&[("t", 1)]);
    kafka.put_all("t", 0, [r#"{"a":1}"#, r#"{"a":"#, r#"{"a":2,"error":{"message":"mine"}}"#]);
    let karrow = Karrow::start(&kafka);
    let note = "karrow: t: 1 row was not read as a whole, see the column error\n";
    for output in ["table", "csv", "json"] {
        let read = run(&karrow, &["get", "t", "--output", output]);
        assert_eq!((read.code, read.err.as_str()), (0, note), "{output}");
    }
    let read = run(&karrow, &["get", "t", "--columns", "error"]);
    assert_eq!((read.code, read.err.as_str()), (0, ""));
}

#[test]
fn questions_are_answered_in_many_forms() {
    let kafka = Kafka::with(&[("candy", 1)]);
    let candy = |id: u8| format!(r#"{{"id":{id},"name":"n{id}"}}"#);
    kafka.put_all("candy", 0, (0..3).map(candy));
    let karrow = Karrow::with(&kafka, &["--topics", "candy", "--start", "earliest"], |_| {});
    karrow.await_metric("karrow_stream_window_rows{topic=\"candy\"}", |rows| rows == 3.0);
    let sql = "select \"offset\", payload.name, payload from candy order by 1";
    let rows = run(&karrow, &["sql", "--output", "json", sql]).json();
    let row = |id: u8| json!({"offset": id, "name": format!("n{id}"), "payload": {"id": id, "name": format!("n{id}")}});
    assert_eq!(rows, [row(0), row(1), row(2)]);
    let piped = run_with(&karrow, &["sql", "-", "--output", "json"], sql.as_bytes());
    assert_eq!(piped.json(), rows);
    let table = run(&karrow, &["sql", sql]);
    let header =
        table.text().lines().next().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(header.unwrap(), ["offset", "name", "payload.id", "payload.name"]);
    let csv = run(&karrow, &["sql", "--output", "csv", "select 1 as a, 'x,y' as b from candy"]);
    assert_eq!(csv.text(), "a,b\n1,\"x,y\"\n1,\"x,y\"\n1,\"x,y\"\n");
    let none = run(&karrow, &["sql", "--output", "csv", "select 1 as a from candy where false"]);
    assert_eq!(none.text(), "a\n");
    let arrow = run(&karrow, &["sql", "--output", "arrow", "select \"offset\" from candy"]);
    let batches = StreamReader::try_new(arrow.out.as_slice(), None).unwrap();
    assert_eq!(batches.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 3);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("candy.parquet");
    let file = path.to_str().unwrap();
    let stored = run(&karrow, &["sql", sql, "-o", file]);
    assert_eq!((stored.code, stored.err), (0, format!("karrow: 3 rows are in {file}\n")));
    assert_eq!(parquet_rows(&path).iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
    // A topic's columns are left out of tables while they are empty, and of nothing else.
    let names = |output: &str| -> Vec<String> {
        let ran = run(&karrow, &["sql", "--output", output, "select * from candy"]);
        let line = ran.text().lines().next().unwrap();
        line.split([' ', ',']).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let shown = ["topic", "partition", "offset", "timestamp", "payload.id", "payload.name"];
    assert_eq!(names("table"), shown);
    let all = names("csv");
    assert!(["key", "headers", "error.message"].iter().all(|name| all.iter().any(|of| of == name)));
    let lines = run(&karrow, &["sql", "select 'a\nb' as t, 1 as n"]);
    assert_eq!(lines.text(), "t  n\n──────\na  1\nb\n");
    let plan = run(&karrow, &["sql", "explain select count(*) from candy"]);
    assert!(plan.text().starts_with('╭') && plan.text().lines().count() > 3, "{}", plan.text());
    let plan = run(&karrow, &["sql", "--output", "json", "explain select 1"]).json();
    assert_eq!(plan[0]["explain_key"], json!("physical_plan"));
    // Of what Parquet does not have, no file is begun.
    for (sql, why) in [
        ("select 1 as a, interval 1 day as i", "column 'i' is Interval("),
        ("select {'a': [interval 1 day]} as s", "column 's.a' is List(Interval("),
    ] {
        let path = dir.path().join("interval.parquet");
        let ran = run(&karrow, &["sql", sql, "-o", path.to_str().unwrap()]);
        assert!(ran.error(64).contains(why) && ran.err.contains("Parquet cannot hold"));
        assert!(!path.exists());
    }
    // DuckDB shows the place.
    let wrong = run(&karrow, &["sql", "select nosuch from candy"]);
    assert_eq!((wrong.code, wrong.out.len()), (64, 0), "{}", wrong.err);
    assert!(wrong.err.contains("\nLINE 1: select nosuch from candy\n"), "{}", wrong.err);
    let denied = run(&karrow, &["sql", "drop view candy"]);
    assert!(denied.error(64).contains("only statements that read are taken"), "{}", denied.err);
    let unclear = run(&karrow, &["sql", sql, "-o", "rows.xyz"]);
    assert!(unclear.error(64).contains("--output does"), "{}", unclear.err);
}
