//! Flags, environment, karrow.toml and librdkafka.json: what wins, and what each mistake is told.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use karrow::config::flags::{ServeFlags, Settings};
use karrow::config::formats::Format;
use karrow::config::{Config, KafkaConfig, Warning};
use karrow::error::ErrorKind;

/// Writes `text` under `name` into a directory of its own.
fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn load(files: &[&Path], settings: Settings) -> Result<(Config, Vec<Warning>), String> {
    let config = files.iter().map(|path| path.to_path_buf()).collect();
    Config::load(ServeFlags { config, settings }).map_err(|error| {
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(!error.message().contains('\n'), "one line: {error}");
        error.message().to_owned()
    })
}

fn toml(text: &str) -> Result<Config, String> {
    let (_dir, path) = file("karrow.toml", text);
    load(&[&path], Settings::default()).map(|(config, _)| config)
}

fn json(text: &str) -> Result<(Config, Vec<Warning>), String> {
    let (_dir, path) = file("librdkafka.json", text);
    load(&[&path], Settings::default())
}

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let (config, warnings) = load(&[], Settings::default()).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.resp.addr, "127.0.0.1:6380".parse::<SocketAddr>().unwrap());
    let http = config.http.unwrap();
    assert_eq!(http.addr, "127.0.0.1:8080".parse::<SocketAddr>().unwrap());
    assert!(http.protected_mode);
    assert_eq!(config.kafka.bootstrap_servers(), "localhost:9092");
    assert_eq!(config.kafka.consumer["bootstrap.servers"], "localhost:9092");
    assert!(config.embedded.is_none() && config.streams.topics.is_empty());
    assert!(config.resp.protected_mode);
    assert!(config.resp.io_threads >= 1);
    assert_eq!(config.resp.clients_max, 10_000);
    assert_eq!(config.resp.bulk_bytes_max, 32 << 20);
    assert_eq!(config.resp.request_bytes_max, 512 << 20);
    assert_eq!(config.resp.output_bytes_max, 1 << 20);
    assert_eq!(config.resp.lpop_wait, Duration::from_secs(5));
    assert_eq!(config.resp.connection_inflight_bytes_max, 16 << 20);
    assert_eq!(config.resp.topic_inflight_bytes_max, 64 << 20);
    assert_eq!(config.shutdown_grace, Duration::from_secs(30));
    assert_eq!(config.log.level, "info");
}

#[test]
fn the_sample_holds_every_setting_with_its_default() {
    let sample = std::fs::read_to_string(root("karrow.toml.sample")).unwrap();
    // A commented setting is "# name = value"; prose has no " = ".
    let settings: String = sample
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.split_once(" = ").is_some_and(|(name, _)| !name.contains(' ')))
        .map(|line| format!("{line}\n"))
        .collect();
    let from_sample = toml(&settings).unwrap();
    let (defaults, _) = load(&[], Settings::default()).unwrap();
    assert_eq!(format!("{from_sample:?}"), format!("{defaults:?}"));

    // The embedded broker's settings show only where it runs, those of the file where something is stored.
    let embedded = |text: &str| {
        let text = text.replace("embedded = false", "embedded = true");
        toml(&text.replace("persist = false", "persist = true"))
    };
    let from_sample = embedded(&settings.replace("brokers = ", "# brokers = ")).unwrap();
    let defaults = embedded("embedded = false\npersist = false").unwrap();
    assert_eq!(format!("{from_sample:?}"), format!("{defaults:?}"));

    let unknown = toml("nonsense = 1").unwrap_err();
    for name in unknown.split('`').skip(3).step_by(2) {
        let is_there = match name {
            "topic" => sample.contains("[topic.orders]"),
            "queries" => sample.contains("[queries.cheapest]"),
            // What has no default is indented there.
            name => {
                sample.contains(&format!("#   {name} = "))
                    || settings.contains(&format!("{name} = "))
            }
        };
        assert!(is_there, "the sample lacks {name}");
    }
    load(&[&root("karrow.toml.sample")], Settings::default()).unwrap();
}

#[test]
fn tables_of_topics_are_checked() {
    let (config, _) = load(&[&root("karrow.toml.sample")], Settings::default()).unwrap();
    assert!(config.formats.topics.is_empty());
    let text = "[topic.orders]\npayload = \"csv\"\ncsv-columns = [\"a\"]\n[topic.clicks]\ntimestamps = [\"a\"]\n";
    let config = toml(text).unwrap();
    assert_eq!(config.formats.topics["orders"].payload, Some(Format::Csv));
    // Said for all topics.
    toml("payload-format = \"csv\"\n[topic.a]\ncsv-delimiter = \";\"").unwrap();
    let dotted =
        "[topic.\"my.orders\"]\npayload = \"json\"\n[topic.\"my.orders\".columns]\na = \"int8\"\n";
    assert!(toml(dotted).unwrap().formats.topics.contains_key("my.orders"));
    for (text, expected) in [
        ("[topic.orders]\npayload = \"xml\"", "karrow.toml:2:11: payload: unknown variant `xml`"),
        ("[topic.orders]\npayloads = \"json\"", "karrow.toml:2:1: unknown setting `payloads`"),
        ("[topic.\"a b\"]\npayload = \"json\"", "topic.a b: no legal topic name"),
        (
            "[topic.my.orders]\npayload = \"json\"",
            "names with dots need quotes: [topic.\"my.orders\"]",
        ),
        (
            "[topic.my.big.orders.columns]\nid = \"int64\"",
            "names with dots need quotes: [topic.\"my.big.orders\"]",
        ),
        ("[topic.my.key]\npayload = \"json\"", "names with dots need quotes: [topic.\"my.key\"]"),
        (
            "[topic.a]\npayload = \"csv\"\ncsv-columns = [\"a\", \"b\", \"a\"]",
            "topic.a: csv-columns: 'a' is there twice",
        ),
        (
            "[topic.a]\ncsv-columns = [\"a\"]",
            "topic.a: csv-columns: payload is \"auto\", not \"csv\"",
        ),
        (
            "[topic.a]\npayload = \"json\"\ncsv-delimiter = \";\"",
            "topic.a: csv-delimiter: payload is \"json\", not \"csv\"",
        ),
        (
            "payload-format = \"avro\"\n[topic.a]\ntimestamps = [\"at\"]",
            "topic.a: timestamps: payload is \"avro\", not \"json\"",
        ),
        (
            "[topic.a]\npayload = \"csv\"\ntimestamps = [\"at\"]",
            "topic.a: timestamps: payload is \"csv\", not \"json\"",
        ),
        (
            "[topic.a]\npayload = \"csv\"\ncsv-delimiter = \"ä\"",
            "topic.a: csv-delimiter: 'ä' is no ASCII character",
        ),
        ("[topic.a]\non-bad-record = \"drop\"", "on-bad-record: unknown variant `drop`"),
        (
            "[topic.a]\ncolumns = { id = \"int65\" }",
            "karrow.toml:2:18: columns: 'int65' is no type: there is no type 'int65'",
        ),
        (
            "[topic.a.columns]\nid = \"int64\"\nprice = \"decimal128(40, 2)\"",
            "karrow.toml:3:9: price: 'decimal128(40, 2)' is no type: it has from 1 to 38 digits",
        ),
        ("[topic.a]\ncolumns = {}", "karrow.toml:2:11: columns: no column is named"),
    ] {
        let error = toml(text).unwrap_err();
        assert!(error.contains(expected), "{text:?} gave {error:?}, not {expected:?}");
    }
}

#[test]
fn the_librdkafka_sample_is_taken_without_a_warning() {
    let (config, warnings) = load(&[&root("librdkafka.json.sample")], Settings::default()).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.kafka.producer["enable.idempotence"], "true");
    assert_eq!(config.kafka.consumer["auto.commit.interval.ms"], "1000");
}

#[test]
fn values_are_read_as_people_write_them() {
    for (text, bytes) in [
        ("\"64KiB\"", 65_536),
        ("\"64 kib\"", 65_536),
        ("\"1.5MiB\"", 1_572_864),
        ("\"2MB\"", 2_000_000),
        ("\"7b\"", 7),
        ("2000000", 2_000_000),
    ] {
        let config = toml(&format!("output-limit = {text}")).unwrap();
        assert_eq!(config.resp.output_bytes_max, bytes, "{text}");
    }
    for (text, millis) in
        [("250ms", 250), ("5s", 5_000), ("1.5s", 1_500), ("2m", 120_000), ("0s", 0)]
    {
        let config = toml(&format!("lpop-wait = \"{text}\"")).unwrap();
        assert_eq!(config.resp.lpop_wait, Duration::from_millis(millis), "{text}");
    }
    assert!(toml("http-port = \"off\"").unwrap().http.is_none());
    assert_eq!(
        toml("host = \"localhost\"\nport = 0").unwrap().resp.addr.to_string(),
        "127.0.0.1:0"
    );
    assert_eq!(toml("host = \"::\"").unwrap().resp.addr.to_string(), "[::]:6380");
    let topics =
        toml("embedded = true\ntopics = [\"a\", \" b\", \"a\", \"\"]").unwrap().streams.topics;
    assert_eq!(topics, ["a", "b"]);
}

#[test]
fn a_wrong_file_is_one_line_that_names_file_place_and_setting() {
    for (text, expected) in [
        (
            "port = 1\nbulk-limi = 3",
            "karrow.toml:2:1: unknown setting `bulk-limi`, expected one of",
        ),
        ("port = 1\nbulk-limit = \"3x\"", "karrow.toml:2:14: bulk-limit: '3x' is no size"),
        ("lpop-wait = 5", "karrow.toml:1:13: lpop-wait: '5' is no duration"),
        ("lpop-wait = \"-5s\"", "is no duration"),
        ("port = 99999", "karrow.toml:1:8: port: "),
        ("http-port = \"on\"", "neither a port (0 to 65535) nor `off`"),
        ("host = \"kafka.example\"", "'kafka.example' is no address"),
        ("port = ", "karrow.toml:1:"),
        ("[questions]", "karrow.toml:1:2: unknown setting `questions`"),
        ("[queries.a]", "karrow.toml:1:1: missing field `sql`"),
        ("[queries.\"a b\"]\nsql = \"select 1\"", "queries.a b: no legal name of a query"),
        ("topics = [\"a b\"]\nembedded = true", "topics: 'a b' is no legal topic name"),
        ("output-limit = 0", "output-limit: must be at least 1 byte"),
        ("max-clients = 0", "max-clients: '0' is no whole number from 1 to"),
        ("io-threads = 5000", "io-threads: '5000' is no whole number from 0 to 1024"),
        ("log-level = \"loud\"", "karrow.toml:1:13: log-level: 'loud' is no level, try error"),
        ("log-level = \"info,loud\"", "log-level: 'loud' is no level"),
        ("log-level = \"a=b=c\"", "log-level: 'a=b=c': error parsing level filter"),
        ("log-format = \"xml\"", "log-format: unknown variant `xml`"),
        ("brokers = \" , \"", "brokers: expected host:port[,host:port…], an entry is empty"),
        ("brokers = \"a:1,,b:2\"", "an entry is empty"),
        ("brokers = \"a:1, host:notaport\"", "'host:notaport' has no legal port"),
        ("brokers = \"a:\"", "'a:' has no legal port"),
        ("brokers = \"a:0\"", "'a:0' has no legal port"),
        ("brokers = \"a:65536\"", "'a:65536' has no legal port"),
        ("brokers = \":9092\"", "':9092' has no legal host"),
        ("brokers = \"::1:9092\"", "'::1:9092' has no legal host"),
        ("brokers = \"a b:1\"", "'a b:1' has no legal host"),
    ] {
        let error = toml(text).unwrap_err();
        assert!(error.contains(expected), "{text:?} gave {error:?}, not {expected:?}");
    }
    for (text, expected) in [
        ("{\"consumer\":\n{\"a\" 1}}", "librdkafka.json:2:6: expected `:`"),
        ("[]", "librdkafka.json: must hold a JSON object"),
        ("{\"consumer\": 1}", "consumer must be a JSON object"),
        (
            "{\"general\": {\"metadata.broker.list\": \"k:x\"}}",
            "librdkafka.json: general.bootstrap.servers: expected host:port[,host:port…], 'k:x' has no legal port",
        ),
        (
            "{\"consumers\": {}}",
            "unknown section 'consumers', expected general, consumer or producer",
        ),
        ("{\"consumer\": {\"foo.bar\": 1}}", "consumer.foo.bar: No such configuration property"),
        ("{\"general\": {\"acks\": \"some\"}}", "general.acks: Invalid value"),
        ("{\"producer\": {\"linger.ms\": -7}}", "producer.linger.ms: "),
        ("{\"producer\": {\"linger.ms\": null}}", "expected a string, a number or a boolean"),
        ("{\"producer\": {\"linger.ms\": {}}}", "expected a string, a number or a boolean"),
        ("{\"producer\": {\"a\\u0000b\": 1}}", "producer.a"),
    ] {
        let error = json(text).unwrap_err();
        assert!(error.contains(expected), "{text:?} gave {error:?}, not {expected:?}");
    }
    for (path, expected) in [
        ("no/such.json", "cannot read no/such.json: No such file"),
        ("no/such.toml", "cannot read no/such.toml: No such file"),
        ("no/such.yaml", "no/such.yaml: expected *.json"),
        ("Cargo", "Cargo: expected *.json"),
    ] {
        let error = load(&[Path::new(path)], Settings::default()).unwrap_err();
        assert!(error.contains(expected), "{path} gave {error:?}");
    }
    let (_dir, latin1) = file("karrow.toml", "");
    std::fs::write(&latin1, b"# caf\xe9\n").unwrap();
    assert!(load(&[&latin1], Settings::default()).unwrap_err().contains("is not UTF-8 text"));
    let error = load(&[&latin1, &latin1], Settings::default()).unwrap_err();
    assert!(error.contains("is not UTF-8 text"), "{error}");
    let (_dir, one) = file("karrow.toml", "");
    let error = load(&[&one, &one], Settings::default()).unwrap_err();
    assert!(error.contains("a second file of its kind"), "{error}");
}

#[test]
fn rafkas_file_is_taken_as_it_is() {
    // Values as strings, numbers and booleans; Go's options; sections merged.
    let (config, warnings) = json(
        r#"{
            "general": {"bootstrap.servers": "k1,k2", "session.timeout.ms": 6000, "client.id": "me"},
            "consumer": {
                "go.events.channel.enable": false, "session.timeout.ms": "7000",
                "enable.auto.commit": true, "enable.auto.offset.store": "false",
                "enable.partition.eof": true, "group.id": "g", "auto.commit.interval.ms": 1e4
            },
            "producer": {"go.delivery.reports": true, "linger.ms": 0.5}
        }"#,
    )
    .unwrap();
    let KafkaConfig { consumer, producer } = &config.kafka;
    let pairs = |options: &karrow::config::KafkaOptions| {
        options.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    assert_eq!(
        pairs(consumer),
        ["auto.commit.interval.ms=10000", "bootstrap.servers=k1,k2", "session.timeout.ms=7000"]
    );
    assert_eq!(
        pairs(producer),
        ["bootstrap.servers=k1,k2", "client.id=me", "linger.ms=0.5", "session.timeout.ms=6000"]
    );
    let warnings: Vec<_> = warnings.iter().map(Warning::to_string).collect();
    for expected in [
        "consumer.go.events.channel.enable is ignored",
        "producer.go.delivery.reports is ignored",
        "client.id=me is ignored for consumers",
        "enable.partition.eof=true is ignored",
        "group.id=g is ignored",
    ] {
        let of_it = warnings.iter().filter(|warning| warning.contains(expected)).count();
        assert_eq!(of_it, 1, "{expected}: {warnings:?}");
    }
    assert_eq!(warnings.len(), 5, "{warnings:?}");
}

#[test]
fn brokers_are_written_as_librdkafka_reads_them() {
    for brokers in ["k", "k:1", "k1:1, k2:2", "[::1]:9092", "[::1]", "SSL://k:9093", "10.0.0.1:1"] {
        let config = toml(&format!("brokers = \"{brokers}\"")).unwrap();
        assert_eq!(config.kafka.bootstrap_servers(), brokers);
    }
}

#[test]
fn brokers_come_from_the_nearest_place() {
    let (_dir, kafka) = file("k.json", r#"{"general": {"metadata.broker.list": "json:1"}}"#);
    let (_dir2, own) = file("k.toml", r#"brokers = "toml:1""#);
    let typed = || Settings { brokers: "flag:1".parse().ok(), ..Settings::default() };
    for (files, settings, expected, warned) in [
        (vec![], Settings::default(), "localhost:9092", false),
        (vec![&*kafka], Settings::default(), "json:1", false),
        (vec![&*kafka, &*own], Settings::default(), "toml:1", true),
        (vec![&*own, &*kafka], typed(), "flag:1", false),
    ] {
        let (config, warnings) = load(&files, settings).unwrap();
        assert_eq!(config.kafka.bootstrap_servers(), expected);
        assert_eq!(config.kafka.consumer["bootstrap.servers"], expected);
        assert!(!config.kafka.consumer.contains_key("metadata.broker.list"));
        assert_eq!(!warnings.is_empty(), warned, "{warnings:?}");
    }
}

#[test]
fn the_embedded_broker_replaces_the_others() {
    let embedded = || Settings { embedded: Some(true), ..Settings::default() };
    let (_dir, kafka) = file(
        "k.json",
        r#"{"general": {"bootstrap.servers": "json:1", "security.protocol": "ssl"}}"#,
    );
    let (config, warnings) = load(&[&kafka], embedded()).unwrap();
    assert_eq!(config.kafka.bootstrap_servers(), "127.0.0.1:9092");
    assert!(!config.kafka.consumer.contains_key("security.protocol"));
    assert!(
        warnings.iter().any(|warning| warning.0.contains("json:1 is not used")),
        "{warnings:?}"
    );

    let typed = Settings { brokers: "flag:1".parse().ok(), ..embedded() };
    let error = load(&[], typed).unwrap_err();
    assert!(error.contains("--brokers and --embedded exclude each other"), "{error}");
}

#[test]
fn limits_never_fall_below_the_largest_message() {
    for (producer, limit, expected, warned) in [
        (r#"{"message.max.bytes": 50000000}"#, None, 50_000_000, false),
        (r#"{"message.max.bytes": 50000000}"#, Some("1MiB"), 50_000_000, true),
        ("{}", Some("64KiB"), 1_000_000, true),
        ("{}", Some("2MiB"), 2 << 20, false),
    ] {
        let (_dir, path) = file("k.json", &format!(r#"{{"producer": {producer}}}"#));
        let bulk_limit = limit.map(|limit| limit.parse().unwrap());
        let settings = Settings { bulk_limit, ..Settings::default() };
        let (config, warnings) = load(&[&path], settings).unwrap();
        assert_eq!(config.resp.bulk_bytes_max, expected);
        assert!(config.resp.request_bytes_max > expected);
        assert_eq!(!warnings.is_empty(), warned, "{warnings:?}");
    }
}

/// Runs the binary; gives its exit code and stderr.
fn karrow(args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_karrow"))
        .args(args)
        .envs(env.iter().copied())
        .output()
        .unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_mistake_ends_the_process_with_64() {
    let (_dir, good) = file("karrow.toml", "log-level = \"info\"");
    let good = good.to_str().unwrap();
    for (args, env, expected) in [
        (vec!["serve", "-c", "no.json"], vec![], "cannot read no.json"),
        (vec!["serve", "--port", "x"], vec![], "--port"),
        (vec!["serve", "--bulk-limit", "3x"], vec![], "--bulk-limit"),
        (vec!["serve", "--nonsense"], vec![], "--nonsense"),
        (vec!["serve", "--log-level", "a=b=c"], vec![], "--log-level"),
        (vec!["serve", "--log-level", "loud"], vec![], "'loud' is no level"),
        // A wrong flag is said first, and as a flag.
        (vec!["serve", "--port", "x"], vec![("KARROW_LPOP_WAIT", "5")], "--port"),
        (vec!["serve"], vec![("KARROW_CONFIG", "a.json,b.toml")], "cannot read a.json"),
        // A flag beats its variable, the variable beats the file: the last of them is wrong here.
        (vec!["serve", "-c", good], vec![("KARROW_LOG_LEVEL", "x=y=z")], "LOG_LEVEL: 'x=y=z'"),
        (
            vec!["serve", "-c", good, "--log-level", "f=l=g"],
            vec![("KARROW_LOG_LEVEL", "x=y=z")],
            "'f=l=g'",
        ),
        (vec!["serve", "--embedded", "--brokers", "k:1"], vec![], "exclude each other"),
        (
            vec!["serve", "--persist", "--sql-memory", "63MiB"],
            vec![],
            "sql-memory: storing (--persist) takes at least 64MiB",
        ),
        (vec!["serve", "--payload-format", "avro"], vec![], "avro: needs --schema-registry"),
        (
            vec!["serve", "--schema-registry", "ftp://x"],
            vec![],
            "schema-registry: not a URL of http",
        ),
        (vec!["serve", "--brokers", "k:1,k:notaport"], vec![], "'k:notaport' has no legal port"),
        (vec!["topics", "list", "--brokers", "k:x"], vec![], "'k:x' has no legal port"),
        (vec!["topics", "create"], vec![], "TOPIC"),
        (vec!["topics", "create", "a", "--partitions", "0"], vec![], "--partitions"),
        (vec!["topics", "create", "a", "--config", "k"], vec![], "KEY=VALUE"),
        (vec!["topics", "list", "-c", "no.json"], vec![], "cannot read no.json"),
        (vec![], vec![], "Usage"),
    ] {
        let (code, text) = karrow(&args, &env);
        assert_eq!(code, 64, "{args:?}: {text}");
        assert!(text.contains(expected), "{args:?} gave {text:?}");
    }
}

#[test]
fn help_names_what_http_serves() {
    let output = Command::new(env!("CARGO_BIN_EXE_karrow")).args(["serve", "--help"]).output();
    let help = String::from_utf8(output.unwrap().stdout).unwrap();
    let of_port = help.split("--http-port").nth(1).and_then(|rest| rest.split("--").next());
    let words: Vec<&str> = of_port.unwrap().split([' ', ',', ';', '\n']).collect();
    for path in ["/metrics", "/livez", "/readyz", "/v1/streams", "/v1/sql", "/v1/queries"] {
        assert!(words.contains(&path), "{path}: {words:?}");
    }
}

#[test]
fn a_schema_that_cannot_be_used_is_told_at_the_start() {
    let (dir, path) = file("order.proto", "syntax = 'proto3'; import 'item.proto';");
    let config = format!(
        "[topic.t]\npayload = 'protobuf'\npayload-schema = '{}'\npayload-message = 'Order'\n",
        path.display()
    );
    let toml = dir.path().join("karrow.toml");
    std::fs::write(&toml, config).unwrap();
    let start = || karrow(&["serve", "-c", toml.to_str().unwrap()], &[]);
    let said = format!("topic.t: payload-schema: {}: order.proto cannot be used: ", path.display());
    let (code, text) = start();
    assert_eq!(code, 64, "{text}");
    assert!(text.contains(&format!("{said}import 'item.proto' not found")), "{text}");
    std::fs::write(dir.path().join("item.proto"), "import 'order.proto';").unwrap();
    let (code, text) = start();
    assert_eq!(code, 64, "{text}");
    let circle = "import cycle detected: order.proto -> item.proto -> order.proto";
    assert!(text.contains(&format!("{said}{circle}")), "{text}");
}

#[test]
fn a_schema_that_cannot_be_used_ends_the_process_with_64() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = file("good.json", br#"{"type":"object","properties":{"a":{"type":"integer"}}}"#);
    let text = file("text.json", b"hello");
    let avsc = file(
        "good.avsc",
        br#"{"type":"record","name":"R","fields":[{"name":"at","type":"string"}]}"#,
    );
    let other = file("other.json", br#"{"type":"string"}"#);
    let bytes = file("schema.arrow", b"\xff\xff\xff\xff\x10\0\0\0rest");
    let missing = dir.path().join("missing.json").to_str().unwrap().to_owned();
    let cases = [
        (
            format!("payload = \"json\"\npayload-schema = \"{missing}\""),
            format!("payload-schema: cannot read {missing}: No such file"),
        ),
        (
            format!("payload = \"json\"\npayload-schema = \"{text}\""),
            format!("payload-schema: {text}: no JSON Schema: expected value"),
        ),
        (
            format!("payload-schema = \"{other}\""),
            format!("payload-schema: {other}: it does not say that values are objects"),
        ),
        (
            format!("key = \"json\"\nkey-schema = \"{bytes}\""),
            format!("key-schema: {bytes}: no Arrow schema"),
        ),
        (
            format!("payload = \"csv\"\npayload-schema = \"{good}\""),
            format!("payload-schema: {good}: no Arrow schema, which is what \"csv\" takes"),
        ),
        (
            format!("payload = \"text\"\npayload-schema = \"{good}\""),
            "payload-schema: payload = \"text\" has no schema".to_owned(),
        ),
        (format!("key-schema = \"{good}\""), "key-schema: key = \"raw\" has no schema".to_owned()),
        (
            format!("payload = \"json\"\npayload-schema = \"{good}\"\npayload-message = \"M\""),
            "payload-schema: json has none".replace("schema", "message"),
        ),
        (
            "payload = \"avro\"\ncolumns = { a = \"int64\" }".to_owned(),
            "columns: payload = \"avro\" takes none, \"json\" and \"csv\" do".to_owned(),
        ),
        (
            "payload = \"csv\"\ncolumns = { a = \"list<int64>\" }".to_owned(),
            "columns: a: List(Int64) is not a single value".to_owned(),
        ),
        (
            "payload = \"csv\"\ncsv-columns = [\"a\"]\ncolumns = { a = \"int64\" }".to_owned(),
            "csv-columns: the schema has the names of the columns".to_owned(),
        ),
        (
            format!("payload-schema = \"{avsc}\"\ntimestamps = [\"at\"]"),
            "timestamps: payload is \"avro\", not \"json\"".to_owned(),
        ),
        (
            "payload = \"json\"\npayload-schema = \"beside.json\"".to_owned(),
            format!(
                "payload-schema: cannot read {}: No such",
                dir.path().join("beside.json").display()
            ),
        ),
        (
            "key = \"json\"\nkey-schema = \"text.json\"".to_owned(),
            format!("key-schema: {text}: no JSON Schema: expected value"),
        ),
        (
            format!("payload-schema = \"{good}\"\ncolumns = {{ a = \"int64\" }}"),
            "columns: payload-schema is given as well".to_owned(),
        ),
    ];
    for (table, expected) in cases {
        let toml = file("karrow.toml", format!("[topic.orders]\n{table}\n").as_bytes());
        let (code, text) =
            karrow(&["serve", "--port", "0", "--http-port", "off", "-c", &toml], &[]);
        let expected = format!("karrow: topic.orders: {expected}");
        assert!(text.starts_with(&expected), "{table}: {text:?} is not {expected:?}");
        assert_eq!((code, text.lines().count()), (64, 1), "{table}: {text}");
    }
}

#[test]
fn a_wrong_variable_is_one_line_that_names_it() {
    for (name, value, expected) in [
        ("KARROW_LPOP_WAIT", "5", "'5' is no duration, try 250ms, 5s or 1m"),
        ("KARROW_BULK_LIMIT", "3x", "'3x' is no size, try 64KiB or 32MiB"),
        ("KARROW_OUTPUT_LIMIT", "0", "'0': must be at least 1 byte"),
        ("KARROW_PORT", "99999", "99999 is not in 0..=65535"),
        ("KARROW_PORT", "x", "'x': invalid digit found in string"),
        ("KARROW_PORT", "", "must not be empty"),
        ("KARROW_HTTP_PORT", "on", "'on' is neither a port (0 to 65535) nor `off`"),
        ("KARROW_EMBEDDED", "perhaps", "'perhaps': value was not a boolean"),
        ("KARROW_LOG_FORMAT", "xml", "'xml' is none of text, json"),
        ("KARROW_LOG_LEVEL", "loud", "'loud' is no level, try error, warn, info, debug or trace"),
        ("KARROW_MAX_CLIENTS", "0", "'0' is no whole number from 1 to 16777216"),
        ("KARROW_BROKERS", ",", "expected host:port[,host:port…], an entry is empty"),
        ("KARROW_TOPICS", "a,b c", "'b c' is no legal topic name (1 to 249 of a-z A-Z 0-9 . _ -)"),
        (
            "KARROW_BULK_LIMI",
            "1MiB",
            "unknown setting in the environment, `karrow serve --help` lists all",
        ),
    ] {
        let (code, text) = karrow(&["serve"], &[(name, value)]);
        assert_eq!((code, text), (64, format!("karrow: {name}: {expected}\n")), "{name}={value}");
    }
    // What is no setting of ours.
    let kafka = ["topics", "list", "--brokers", "127.0.0.1:1", "--timeout", "1ms"];
    for (name, value) in [
        ("KARROW_BIN", "/somewhere"),
        ("KARROW_PORT_6380_TCP_ADDR", "10.0.0.1"),
        ("KARROW_PORT", "tcp://10.0.0.1:6380"),
    ] {
        let (code, text) = karrow(&kafka, &[(name, value)]);
        assert_eq!(code, 1, "{name}={value}: {text}");
    }
    assert_eq!(karrow(&["--version"], &[("KARROW_BULK_LIMI", "1")]).0, 0);
}

#[test]
fn a_setting_that_nothing_uses_is_a_warning() {
    for (text, expected) in
        [("data-dir = \"d\"", "data-dir is not used"), ("kafka-port = 1", "kafka-port is not used")]
    {
        let (_dir, path) = file("karrow.toml", text);
        let (_, warnings) = load(&[&path], Settings::default()).unwrap();
        assert!(matches!(&*warnings, [only] if only.0.contains(expected)), "{warnings:?}");
        let embedded = Settings { embedded: Some(true), ..Settings::default() };
        assert_eq!(load(&[&path], embedded).unwrap().1, [], "{text}");
    }
}

#[cfg(feature = "embedded-broker")]
#[test]
fn a_port_that_is_taken_is_named_with_its_flag() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let port = addr.port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let ports = ["--port", "--http-port", "--flight-port", "--kafka-port"];
    for flag in ports {
        let mut args = vec!["serve", "--embedded", "--data-dir", dir];
        for other in ports {
            args.extend([other, if other == flag { &port } else { "0" }]);
        }
        let (code, text) = karrow(&args, &[]);
        assert_eq!(code, 1, "{text}");
        let line = text.lines().last().unwrap_or_default();
        assert!(
            line.contains(&format!("cannot listen on {addr}: Address already in use")),
            "{text}"
        );
        assert!(line.ends_with(&format!("; choose another port with {flag}")), "{text}");
    }
}

#[test]
fn a_kafka_that_is_away_ends_topics_with_1() {
    let (code, text) =
        karrow(&["topics", "list", "--brokers", "127.0.0.1:1", "--timeout", "200ms"], &[]);
    assert_eq!(code, 1);
    assert_eq!(text.trim(), "karrow: Kafka: no broker answered within 200ms (127.0.0.1:1)");
}
