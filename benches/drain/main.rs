//! Draining a topic through karrow as Arrow batches: CPU time per message beside a bare loop over librdkafka, and rows per
//! second in a Python client beside confluent-kafka. docs/benchmarks.md explains the method.

// A bench that meets the unexpected shall stop there; the modules are the gateway bench's, which uses more of them.
#![allow(clippy::expect_used, dead_code)]

mod common;
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

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};

use common::{argument, bare_loop, drain, fill, spread};
use kafka::Kafka;
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
        arguments: Vec::new(),
    };
    let filler = recipe.start()?;
    fill(&filler, RAW, &"x".repeat(100), MESSAGES)?;
    let json = r#"{"id":123456789,"price":4711.25,"side":"buy","symbol":"SYM42","at":1700000123456,"open":true}"#;
    fill(&filler, JSON, json, MESSAGES)?;
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
            let bare = || bare_loop(kafka.addr, topic, MESSAGES);
            // Found out from the records, RAW would be text, and checked.
            let format = if topic == RAW { "raw" } else { "json" };
            let ours = || drain(&server, topic, format, MESSAGES);
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
        .args([server.ports.redis.port().to_string(), brokers.to_string(), JSON.to_owned()])
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
