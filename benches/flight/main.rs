//! Streams and Arrow Flight: reads of a window beside a bare arrow-flight server with the same batches, Arrow over Redis
//! beside DoGet, and what it costs to put a topic into a window. docs/benchmarks.md explains the method.

// A bench that meets the unexpected shall stop there; the modules are the gateway bench's, which uses more of them.
#![allow(clippy::expect_used, dead_code)]

mod bare;
#[path = "../drain/common.rs"]
mod common;
#[path = "../gateway/kafka.rs"]
mod kafka;
#[path = "../gateway/load.rs"]
mod load;
mod reader;
#[path = "../gateway/resp.rs"]
mod resp;
#[path = "../gateway/server.rs"]
mod server;
#[path = "../gateway/sys.rs"]
mod sys;
mod topic;

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;

use common::{argument, bare_loop, drain, fill, spread};
use kafka::Kafka;
use server::{Kind, Recipe};
use topic::{FIRST, JSON, JSON_MESSAGES, keeping, kept, number, symbol};

/// Failures are one sentence that names the thing.
pub type Result<T> = std::result::Result<T, String>;

const GIB: f64 = (1_u64 << 30) as f64;

/// Payloads of 1 KiB that make a window of 1 GiB.
const RAW: &str = "flight-raw";
const RAW_MESSAGES: usize = 1 << 20;
const RAW_BYTES: usize = 1 << 10;

fn main() -> ExitCode {
    let outcome = if let Some(addr) = argument(bare::ARGUMENT) {
        bare_server(&addr)
    } else if std::env::args().any(|arg| arg == "--bench") {
        run()
    } else {
        println!("flight bench: skipped, `cargo bench` runs it");
        Ok(())
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("flight bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn bare_server(addr: &str) -> Result<()> {
    let mut rest = std::env::args().skip_while(|arg| arg != addr).skip(1);
    let parsed = |text: &str| text.parse().map_err(|why| format!("{text}: {why}"));
    match (rest.next(), rest.next()) {
        (Some(karrow), Some(topic)) => bare::serve(parsed(addr)?, parsed(&karrow)?, &topic),
        _ => Err(format!("{} wants two addresses and a topic", bare::ARGUMENT)),
    }
}

fn run() -> Result<()> {
    sys::catch_signals();
    let rounds = argument("--rounds").and_then(|text| text.parse().ok()).unwrap_or(7);
    let dir = std::env::temp_dir().join(format!("karrow-flight-{}", std::process::id()));
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
    println!("{rounds} rounds after one to warm up; medians, and smallest to largest\n");
    let only = argument("--only");
    let is_asked = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if is_asked("ingest") {
        number(kafka.addr)?;
        ingest(&recipe, kafka.addr, rounds)?;
    }
    if is_asked("read") {
        fill(&recipe.start()?, RAW, &"x".repeat(RAW_BYTES), RAW_MESSAGES)?;
        read(&recipe, rounds)?;
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|why| why.to_string())
}

/// Reads of the whole window: karrow, the bare server, and the same topic over Redis and from Kafka.
fn read(recipe: &Recipe, rounds: usize) -> Result<()> {
    let karrow = keeping(recipe, RAW, "3GiB").start()?;
    kept(&karrow, RAW, RAW_MESSAGES)?;
    let (bare, bare_addr) = bare::start(&recipe.dir, karrow.ports.flight, RAW)?;
    let unkept = recipe.start()?;
    let runtime = runtime()?;
    let ticket = runtime.block_on(reader::ticket(karrow.ports.flight, RAW))?;
    let history = runtime.block_on(reader::ticket(unkept.ports.flight, RAW))?;
    let get = |of: &server::Process, addr: SocketAddr, ticket: &arrow_flight::Ticket| {
        of.await_quiet()?;
        let (cpu, began) = (of.cpu()?, Instant::now());
        let bytes = runtime.block_on(reader::bytes(addr, ticket.clone()))?;
        Ok::<_, String>(Cost::new(of.cpu()?.saturating_sub(cpu), began.elapsed(), bytes))
    };
    let (mut to_bare, mut to_redis) = (Ratios::default(), Ratios::default());
    let mut to_history = Ratios::default();
    for round in 0..=rounds {
        let ours = || get(&karrow.process, karrow.ports.flight, &ticket);
        let other = || get(&bare, bare_addr, &ticket);
        let (ours, other) = if round % 2 == 0 {
            let ours = ours()?;
            (ours, other()?)
        } else {
            let other = other()?;
            (ours()?, other)
        };
        let from_kafka = get(&unkept.process, unkept.ports.flight, &history)?;
        let redis = recipe.start()?;
        let began = Instant::now();
        let (cpu, _) = drain(&redis, RAW, "raw", RAW_MESSAGES)?;
        let redis = Cost::new(cpu, began.elapsed(), (RAW_MESSAGES * RAW_BYTES) as u64);
        eprintln!(
            "read {round}/{rounds}: window {ours}; bare server {other}; from Kafka {from_kafka}; Redis {redis}"
        );
        if round > 0 {
            to_bare.push(&ours, &other);
            to_redis.push(&redis, &ours);
            to_history.push(&redis, &from_kafka);
        }
    }
    println!("DoGet of a window ÷ a bare server: {}", to_bare.text());
    println!("Arrow over Redis ÷ DoGet of a window: {}", to_redis.text());
    println!("Arrow over Redis ÷ DoGet from Kafka: {}", to_history.text());
    Ok(())
}

/// What a read cost its server, and how fast it was.
struct Cost {
    /// Seconds of CPU time for each GiB.
    cpu: f64,
    /// GiB per second.
    rate: f64,
}

impl Cost {
    fn new(cpu: Duration, wall: Duration, bytes: u64) -> Self {
        let gib = bytes as f64 / GIB;
        Self { cpu: cpu.as_secs_f64() / gib, rate: gib / wall.as_secs_f64() }
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} GiB/s, {:.2} CPU s/GiB", self.rate, self.cpu)
    }
}

#[derive(Default)]
struct Ratios {
    rate: Vec<f64>,
    cpu: Vec<f64>,
}

impl Ratios {
    fn push(&mut self, ours: &Cost, other: &Cost) {
        self.rate.push(ours.rate / other.rate);
        self.cpu.push(ours.cpu / other.cpu);
    }

    fn text(&mut self) -> String {
        format!("rate {}, server CPU {}", spread(&mut self.rate, 2), spread(&mut self.cpu, 2))
    }
}

/// CPU time of putting a JSON topic into a window, beside a loop that only takes its messages.
fn ingest(recipe: &Recipe, brokers: SocketAddr, rounds: usize) -> Result<()> {
    let idle = idle(recipe)?;
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let bare = || bare_loop(brokers, JSON, JSON_MESSAGES);
        let ours = || take_in(recipe);
        let ((cpu, wall), bare) = if round % 2 == 0 {
            let ours = ours()?;
            (ours, bare()?)
        } else {
            let bare = bare()?;
            (ours()?, bare)
        };
        let cpu = cpu.saturating_sub(idle);
        eprintln!("ingest {round}/{rounds}: karrow {cpu:?}, bare loop {bare:?}, in {wall:?}");
        if round > 0 {
            ratios.push(cpu.as_secs_f64() / bare.as_secs_f64());
            rates.push(JSON_MESSAGES as f64 / wall.as_secs_f64());
        }
    }
    println!(
        "JSON of 60 B into a window: CPU ÷ bare loop's {}; {} messages/s; rows and their order are exact",
        spread(&mut ratios, 2),
        spread(&mut rates, 0)
    );
    Ok(())
}

/// CPU time of a karrow that starts and has nothing to do.
fn idle(recipe: &Recipe) -> Result<Duration> {
    let server = recipe.start()?;
    server.process.await_quiet()?;
    server.process.cpu()
}

/// From the start of karrow until all messages are in the window. Then reads and compares them.
fn take_in(recipe: &Recipe) -> Result<(Duration, Duration)> {
    let began = Instant::now();
    let server = keeping(recipe, JSON, "1GiB").start()?;
    kept(&server, JSON, JSON_MESSAGES)?;
    let (cpu, wall) = (server.process.cpu()?, began.elapsed());
    let batches = runtime()?.block_on(reader::batches(server.ports.flight, JSON))?;
    let mut next = 0;
    for batch in &batches {
        next = check(batch, next)?;
    }
    if next != JSON_MESSAGES as i64 {
        return Err(format!("the window has {next} rows of {JSON_MESSAGES}"));
    }
    Ok((cpu, wall))
}

/// Every row is the message that was produced at its offset.
fn check(batch: &RecordBatch, mut next: i64) -> Result<i64> {
    let column = |name: &str| {
        batch.column_by_name(name).ok_or_else(|| format!("a batch has no column {name}"))
    };
    let offsets = column("offset")?.as_primitive::<Int64Type>();
    let payload = column("payload")?.as_struct();
    let field = |name: &str| {
        payload.column_by_name(name).ok_or_else(|| format!("the payload has no field {name}"))
    };
    let ids = field("id")?.as_primitive::<Int64Type>();
    let symbols = field("symbol")?.as_string::<i32>();
    for row in 0..batch.num_rows() {
        let is_right = offsets.value(row) == next
            && ids.is_valid(row)
            && ids.value(row) == FIRST + next
            && symbols.value(row) == symbol(next);
        if !is_right {
            return Err(format!(
                "row {next} has offset {}, id {}",
                offsets.value(row),
                ids.value(row)
            ));
        }
        next += 1;
    }
    Ok(next)
}
