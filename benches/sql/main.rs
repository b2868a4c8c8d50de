//! SQL: the sink beside DuckDB's own appender, ingest while queries run beside ingest alone, and named queries at rates that
//! grow, beside redis-server's GET. docs/benchmarks.md explains the method.

// A bench that meets the unexpected shall stop there; the modules are other benches', which use more of them.
#![allow(clippy::expect_used, dead_code)]

#[path = "../drain/common.rs"]
mod common;
#[path = "../gateway/kafka.rs"]
mod kafka;
#[path = "../gateway/load.rs"]
mod load;
mod ramp;
#[path = "../gateway/resp.rs"]
mod resp;
#[path = "../gateway/server.rs"]
mod server;
mod sink;
#[path = "../gateway/sys.rs"]
mod sys;
#[path = "../flight/topic.rs"]
mod topic;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{argument, spread};
use kafka::Kafka;
use server::{Kind, Recipe, Server};
use topic::{JSON, JSON_MESSAGES, keeping, kept, number};

/// Failures are one sentence that names the thing.
pub type Result<T> = std::result::Result<T, String>;

/// What runs all the time beside the ingest.
const GROUP_BY: &str =
    "select payload.symbol, count(*), avg(payload.price) from live.\"flight-json\" group by 1";

fn main() -> ExitCode {
    let outcome = if std::env::args().any(|arg| arg == "--bench") {
        run()
    } else {
        println!("sql bench: skipped, `cargo bench` runs it");
        Ok(())
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("sql bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    sys::catch_signals();
    let dir = std::env::temp_dir().join(format!("karrow-sql-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|why| format!("{}: {why}", dir.display()))?;
    let outcome = measure(&dir);
    std::fs::remove_dir_all(&dir).map_err(|why| format!("{}: {why}", dir.display()))?;
    outcome
}

fn measure(dir: &Path) -> Result<()> {
    let rounds = argument("--rounds").and_then(|text| text.parse().ok()).unwrap_or(7);
    let only = argument("--only");
    let is_asked = |name: &str| only.as_deref().is_none_or(|only| only == name);
    println!("{rounds} rounds after one to warm up; medians, and smallest to largest\n");
    if is_asked("sink") {
        sink::measure(dir, rounds)?;
    }
    if !is_asked("ingest") && !is_asked("queries") {
        return Ok(());
    }
    let kafka = Kafka::start(dir, &[JSON])?;
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
    number(kafka.addr)?;
    if is_asked("ingest") {
        ingest(&recipe, rounds)?;
    }
    if is_asked("queries") {
        ramp::measure(&recipe, kafka.addr)?;
    }
    Ok(())
}

/// How fast a topic comes into its window, with queries all the time and without.
fn ingest(recipe: &Recipe, rounds: usize) -> Result<()> {
    let (mut ratios, mut per_second) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (alone, (beside, queries)) = if round % 2 == 0 {
            let alone = take_in(recipe, false)?.0;
            (alone, take_in(recipe, true)?)
        } else {
            let beside = take_in(recipe, true)?;
            (take_in(recipe, false)?.0, beside)
        };
        let rate = queries as f64 / beside.as_secs_f64();
        eprintln!(
            "ingest {round}/{rounds}: alone {alone:?}, beside {rate:.1} queries/s {beside:?}"
        );
        if round > 0 {
            ratios.push(alone.as_secs_f64() / beside.as_secs_f64());
            per_second.push(rate);
        }
    }
    println!(
        "ingest beside GROUP BY ÷ ingest alone: rate {}; {} queries/s over up to {JSON_MESSAGES} rows",
        spread(&mut ratios, 2),
        spread(&mut per_second, 1)
    );
    Ok(())
}

/// From the start of the server until all messages are in the window, and how many queries were answered meanwhile.
fn take_in(recipe: &Recipe, with_queries: bool) -> Result<(Duration, u64)> {
    let began = Instant::now();
    let server = keeping(recipe, JSON, "1GiB").start()?;
    let asking = with_queries.then(|| Asking::begin(&server)).transpose()?;
    kept(&server, JSON, JSON_MESSAGES)?;
    let wall = began.elapsed();
    Ok((wall, asking.map_or(Ok(0), Asking::end)?))
}

/// A client that asks the same again as soon as it has an answer.
struct Asking {
    is_over: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Asking {
    fn begin(server: &Server) -> Result<Self> {
        let mut client = server.client()?;
        let (is_over, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, counted) = (is_over.clone(), answers.clone());
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Acquire) {
                match client.call(&["SQL", GROUP_BY, "arrow"]) {
                    Ok(_) => _ = counted.fetch_add(1, Ordering::Relaxed),
                    // Before the first record there is no such table, or it has no such columns.
                    Err(why) if why.contains("Binder Error") || why.contains("Catalog Error") => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    Err(why) => return Err(why),
                }
            }
            Ok(())
        });
        Ok(Self { is_over, answers, thread })
    }

    fn end(self) -> Result<u64> {
        self.is_over.store(true, Ordering::Release);
        self.thread.join().map_err(|_| "the asking thread panicked".to_owned())??;
        Ok(self.answers.load(Ordering::Relaxed))
    }
}
