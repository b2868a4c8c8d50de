//! Draining a topic through karrow as Arrow batches: CPU time per message beside a bare loop over librdkafka, and rows per
//! second in a Python client beside confluent-kafka. docs/benchmarks.md explains the method.

// A bench that meets the unexpected shall stop there; the modules are the gateway bench's, which uses more of them.
#![allow(clippy::expect_used, dead_code)]

#[path = "../gateway/kafka.rs"]
mod kafka;
#[path = "../gateway/load.rs"]
mod load;
#[path = "../gateway/resp.rs"]
mod resp;
#[path = "../gateway/server.rs"]
mod server;
#[path = "../gateway/sys.rs"]
mod sys;

use std::ffi::CString;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::ptr;
use std::time::{Duration, Instant};

use arrow::ipc::reader::StreamReader;
use rdkafka_sys as librdkafka;

use kafka::Kafka;
use resp::{Reply, encode};
use server::{Kind, Recipe, Server};

/// Failures are one sentence that names the thing.
pub type Result<T> = std::result::Result<T, String>;

/// Messages of each topic.
const MESSAGES: usize = 1_000_000;

const RAW: &str = "drain-raw";
const JSON: &str = "drain-json";

fn main() -> ExitCode {
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("drain bench: skipped, `cargo bench` runs it");
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("drain bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

fn run() -> Result<()> {
    sys::catch_signals();
    let rounds = argument("--rounds").and_then(|text| text.parse().ok()).unwrap_or(5);
    let dir = std::env::temp_dir().join(format!("karrow-drain-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|why| format!("{}: {why}", dir.display()))?;
    let outcome = measure(&dir, rounds);
    std::fs::remove_dir_all(&dir).map_err(|why| format!("{}: {why}", dir.display()))?;
    outcome
}

fn measure(dir: &Path, rounds: usize) -> Result<()> {
    let kafka = Kafka::start(dir, &[RAW, JSON])?;
    let program =
        std::env::var_os("KARROW_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_karrow").into());
    let recipe = Recipe {
        kind: Kind::Karrow,
        name: "karrow",
        program: program.into(),
        brokers: Some(kafka.addr),
        cores: sys::cores().map_err(|why| format!("asking for the cores: {why}"))?,
        dir: dir.into(),
    };
    let filler = recipe.start()?;
    fill(&filler, RAW, &"x".repeat(100))?;
    let json = r#"{"id":123456789,"price":4711.25,"side":"buy","symbol":"SYM42","at":1700000123456,"open":true}"#;
    fill(&filler, JSON, json)?;
    drop(filler);

    println!(
        "{MESSAGES} messages, {rounds} rounds after one to warm up; medians, and smallest to largest\n"
    );
    let only = argument("--only");
    let is_asked = |name: &str| only.as_deref().is_none_or(|only| only == name);
    for (topic, what) in [(RAW, "raw, 100 B"), (JSON, "JSON, 6 fields, 97 B")] {
        if !is_asked(topic) {
            continue;
        }
        let mut ratios = Vec::new();
        let (mut rates, mut peak) = (Vec::new(), 0);
        for round in 0..=rounds {
            // Each round has a karrow of its own, so that its memory is that of one drain.
            let server = recipe.start()?;
            let bare = || bare_loop(kafka.addr, topic);
            let ours = || drain(&server, topic);
            let ((cpu, rate), bare) = if round % 2 == 0 {
                let ours = ours()?;
                (ours, bare()?)
            } else {
                let bare = bare()?;
                (ours()?, bare)
            };
            peak = peak.max(peak_kib(server.process.pid())?);
            eprintln!(
                "{what} {round}/{rounds}: karrow {cpu:?}, bare loop {bare:?}, {rate:.0} rows/s"
            );
            if round > 0 {
                ratios.push(cpu.as_secs_f64() / bare.as_secs_f64());
                rates.push(rate);
            }
        }
        println!(
            "{what}: CPU ÷ bare loop's {}; {} rows/s into a Rust client; peak memory {} MiB",
            spread(&mut ratios, 2),
            spread(&mut rates, 0),
            peak / 1024
        );
    }
    if is_asked("python") {
        println!("{}", python(&recipe.start()?, kafka.addr, rounds)?);
    }
    Ok(())
}

fn spread(values: &mut [f64], decimals: usize) -> String {
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(min), Some(median), Some(max)) => {
            format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$})")
        }
        _ => "-".to_owned(),
    }
}

fn fill(server: &Server, topic: &str, message: &str) -> Result<()> {
    let mut command = Vec::new();
    encode(&["RPUSHX", &format!("topics:{topic}"), message], &mut command);
    let streams = vec![server.client()?.into_stream()];
    load::drive(streams, &command, 64, MESSAGES)?;
    let mut control = server.client()?;
    server::eventually("every message to be stored", server::PATIENCE, || {
        let Reply::Array(fields) = control.call(&["HGETALL", "stats"])? else {
            return Err("HGETALL stats did not answer an array".to_owned());
        };
        let is_flushed = fields.chunks_exact(2).any(|pair| {
            matches!(pair, [Reply::Text(name), Reply::Text(value)]
                if name == "producer.unflushed.messages" && value == "0")
                || matches!(pair, [Reply::Text(name), Reply::Integer(0)]
                    if name == "producer.unflushed.messages")
        });
        Ok(is_flushed.then_some(()))
    })
}

/// CPU time of karrow for a whole topic, and rows per second at the client.
fn drain(server: &Server, topic: &str) -> Result<(Duration, f64)> {
    let io = |why: std::io::Error| format!("draining {topic}: {why}");
    let mut stream = TcpStream::connect(server.addr).map_err(io)?;
    stream.set_read_timeout(Some(server::PATIENCE)).map_err(io)?;
    let mut reader = BufReader::with_capacity(1 << 20, stream.try_clone().map_err(io)?);
    let mut command = Vec::new();
    encode(
        &["CLIENT", "SETNAME", &format!("drain-{}-{topic}:one", server.process.pid())],
        &mut command,
    );
    stream.write_all(&command).map_err(io)?;
    bulk(&mut reader).map_err(io)?;
    command.clear();
    // Found out from the records, RAW would be text, and checked.
    let format = if topic == RAW { "raw" } else { "json" };
    let key = format!(r#"arrow:{topic}:{{"karrow.format":"{format}"}}"#);
    encode(&["BLPOP", &key, "60"], &mut command);
    let (cpu, began) = (server.process.cpu()?, Instant::now());
    let mut rows = 0;
    while rows < MESSAGES {
        stream.write_all(&command).map_err(io)?;
        let mut line = String::new();
        reader.read_line(&mut line).map_err(io)?;
        if line.trim_end() != "*2" {
            return Err(format!("draining {topic}: after {rows} rows karrow answered {line:?}"));
        }
        bulk(&mut reader).map_err(io)?;
        let batch = bulk(&mut reader).map_err(io)?;
        let batches =
            StreamReader::try_new(batch.as_slice(), None).map_err(|why| why.to_string())?;
        for batch in batches {
            rows += batch.map_err(|why| why.to_string())?.num_rows();
        }
    }
    let rate = rows as f64 / began.elapsed().as_secs_f64();
    Ok((server.process.cpu()?.saturating_sub(cpu), rate))
}

fn bulk(reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let len: usize = line
        .trim_end()
        .strip_prefix('$')
        .and_then(|len| len.parse().ok())
        .ok_or_else(|| std::io::Error::other(format!("{line:?} is no bulk string")))?;
    let mut value = vec![0; len + 2];
    reader.read_exact(&mut value)?;
    value.truncate(len);
    Ok(value)
}

/// CPU time of a loop that takes every message of the topic from librdkafka in batches and looks at its length.
fn bare_loop(brokers: SocketAddr, topic: &str) -> Result<Duration> {
    let before = sys::cpu_of_self();
    let text = |text: &str| CString::new(text).expect("no NUL");
    let mut errors = [0; 512];
    // SAFETY: every object is checked when it is made, used while it lives and destroyed once, in this function.
    unsafe {
        let conf = librdkafka::rd_kafka_conf_new();
        for (name, value) in [
            ("bootstrap.servers", brokers.to_string()),
            ("group.id", "bare".to_owned()),
            ("fetch.queue.backoff.ms", "10".to_owned()),
        ] {
            librdkafka::rd_kafka_conf_set(
                conf,
                text(name).as_ptr(),
                text(&value).as_ptr(),
                errors.as_mut_ptr(),
                errors.len(),
            );
        }
        let kind = librdkafka::rd_kafka_type_t::RD_KAFKA_CONSUMER;
        let client = librdkafka::rd_kafka_new(kind, conf, errors.as_mut_ptr(), errors.len());
        if client.is_null() {
            return Err("the bare loop has no client".to_owned());
        }
        let list = librdkafka::rd_kafka_topic_partition_list_new(1);
        let one = librdkafka::rd_kafka_topic_partition_list_add(list, text(topic).as_ptr(), 0);
        (*one).offset = 0;
        librdkafka::rd_kafka_assign(client, list);
        librdkafka::rd_kafka_topic_partition_list_destroy(list);
        let queue = librdkafka::rd_kafka_queue_get_partition(client, text(topic).as_ptr(), 0);
        librdkafka::rd_kafka_queue_forward(queue, ptr::null_mut());
        let mut messages = [ptr::null_mut::<librdkafka::rd_kafka_message_t>(); 1024];
        let (mut count, mut bytes) = (0, 0);
        let deadline = Instant::now() + server::PATIENCE;
        while count < MESSAGES && Instant::now() < deadline {
            let taken = librdkafka::rd_kafka_consume_batch_queue(
                queue,
                100,
                messages.as_mut_ptr(),
                messages.len(),
            );
            for message in messages.iter().take(usize::try_from(taken).unwrap_or(0)) {
                bytes += (**message).len;
                count += 1;
                librdkafka::rd_kafka_message_destroy(*message);
            }
        }
        librdkafka::rd_kafka_queue_destroy(queue);
        librdkafka::rd_kafka_destroy(client);
        if count < MESSAGES || bytes == 0 {
            return Err(format!("the bare loop got {count} of {MESSAGES} messages"));
        }
    }
    Ok(sys::cpu_of_self().saturating_sub(before))
}

/// The most memory a process has had, in KiB.
fn peak_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|why| format!("{path}: {why}"))?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    peak.ok_or_else(|| format!("{path} has no VmHWM"))
}

/// What a Python program gets: redis-py beside confluent-kafka, both into a pyarrow table.
fn python(server: &Server, brokers: SocketAddr, rounds: usize) -> Result<String> {
    let program = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/drain/clients.py");
    let output = Command::new(&program)
        .arg(script)
        .args([server.addr.port().to_string(), brokers.to_string(), JSON.to_owned()])
        .args([MESSAGES.to_string(), rounds.to_string()])
        .output()
        .map_err(|why| format!("{}: {why}", program.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Ok(format!(
        "Python clients: not measured, PYTHON must have pyarrow, redis and confluent-kafka ({})",
        why.lines().last().unwrap_or_default()
    ))
}
