//! karrow beside redis-server: throughput, CPU time per operation, start and idle consumers, as ratios of paired runs.
//!
//! `sys` has the system calls, `resp` and `load` the generator, `server` and `kafka` the processes, `work` and `idle`
//! what is measured, `table` what is said about it. docs/benchmarks.md explains the method.

mod args;
mod idle;
mod kafka;
mod load;
mod resp;
mod server;
mod sys;
mod table;
mod work;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use args::{Args, Place};
use kafka::Kafka;
use server::{Kind, Recipe, Server};
use table::{Round, Row, Target};
use work::{Pop, Push, Sample};

/// Failures are one sentence that names the thing; nobody here decides by their kind.
pub type Result<T> = std::result::Result<T, String>;

const PUSH_P16_CPU: Target = Target {
    work: "RPUSHX, c50, 16 pipelined: CPU ÷ Redis RPUSH's",
    rafka: "6.9",
    must: 3.0,
    goal: 2.0,
    larger_is_better: false,
};
const PUSH_P1_CPU: Target = Target {
    work: "RPUSHX, c50, not pipelined: CPU ÷ Redis RPUSH's",
    rafka: "3.6",
    must: 1.6,
    goal: 1.2,
    larger_is_better: false,
};
const POP_P1_OPS: Target = Target {
    work: "BLPOP of prefetched messages, c1: ops/s ÷ Redis BLPOP's",
    rafka: "0.8–1.2",
    must: 0.85,
    goal: 1.05,
    larger_is_better: true,
};
const POP_P1_CPU: Target = Target {
    work: "BLPOP of prefetched messages, c1: CPU ÷ Redis BLPOP's",
    rafka: "1.4–1.8",
    must: 1.3,
    goal: 1.0,
    larger_is_better: false,
};
const POP_P16_OPS: Target = Target {
    work: "BLPOP of prefetched messages, c1, 16 pipelined: ops/s ÷ Redis BLPOP's",
    rafka: "0.5–0.8",
    must: 0.8,
    goal: 1.0,
    larger_is_better: true,
};
const POP_P16_CPU: Target = Target {
    work: "BLPOP of prefetched messages, c1, 16 pipelined: CPU ÷ Redis BLPOP's",
    rafka: "2.1–2.7",
    must: 1.5,
    goal: 1.0,
    larger_is_better: false,
};
const START: Target = Target {
    work: "exec → first PONG, time ÷ Redis's",
    rafka: "0.7",
    must: 1.5,
    goal: 0.6,
    larger_is_better: false,
};

fn main() -> ExitCode {
    let outcome = Args::parse(std::env::args().skip(1)).and_then(|args| {
        if args.help {
            print!("{}", args::HELP);
            return Ok(());
        }
        if !args.bench {
            println!("gateway bench: skipped, `cargo bench` runs it");
            return Ok(());
        }
        run(&args)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("gateway bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    resp::self_check()?;
    sys::catch_signals();
    let dir = std::env::temp_dir().join(format!("karrow-bench-{}", std::process::id()));
    fs::create_dir_all(&dir).map_err(|why| format!("{}: {why}", dir.display()))?;
    let outcome = measure(args, &dir);
    // The brokers' data is large and says nothing; the logs of a failed run do.
    let leftover = if outcome.is_ok() { dir.clone() } else { dir.join("kafka") };
    if leftover.exists() {
        fs::remove_dir_all(&leftover).map_err(|why| format!("{}: {why}", leftover.display()))?;
    }
    outcome.map_err(|why| format!("{why}\nthe servers' logs are in {}", dir.display()))
}

fn measure(args: &Args, dir: &Path) -> Result<()> {
    let kafka = Kafka::start(dir, &[work::PUSH_TOPIC, work::POP_TOPIC, idle::TOPIC])?;
    let cores = place(args.place)?;
    let redis = |name| Recipe {
        kind: Kind::Redis,
        name,
        program: "redis-server".into(),
        brokers: None,
        cores: cores.clone(),
        dir: dir.into(),
        arguments: Vec::new(),
    };
    let karrow = Recipe {
        kind: Kind::Karrow,
        name: "karrow",
        program: args.karrow.clone(),
        brokers: Some(kafka.addr),
        cores: cores.clone(),
        dir: dir.into(),
        arguments: Vec::new(),
    };
    let recipes = Round {
        subject: if args.self_test { redis("redis-as-karrow") } else { karrow },
        reference: redis("redis"),
        noise: redis("redis-again"),
    };
    let loads = measure_loads(args, &recipes)?;
    let mut rows = loads.rows;
    if args.wants("start") {
        rows.extend(measure_starts(args, &recipes)?);
    }
    let idle = if args.wants("idle") { measure_idle(args, &recipes)? } else { String::new() };

    println!("{}; Apache Kafka {}", machine(&recipes), kafka.version);
    println!(
        "{} rounds, messages of {} bytes, placement {:?}\n",
        args.pairs, args.message_bytes, args.place
    );
    for text in [table::ratios(&rows), loads.absolute, idle].iter().filter(|text| !text.is_empty())
    {
        println!("{text}");
    }
    Ok(())
}

/// Puts this program where it belongs and says which cores the servers get; Kafka, started before, may use all.
fn place(place: Place) -> Result<Vec<usize>> {
    let cores = sys::cores().map_err(|why| format!("asking for the cores: {why}"))?;
    let (own, servers) = match (place, cores.as_slice()) {
        (Place::Free, all) => (all, all),
        (Place::Apart, [first, others @ ..]) if !others.is_empty() => {
            (std::slice::from_ref(first), others)
        }
        (Place::Together, [first, ..]) => {
            (std::slice::from_ref(first), std::slice::from_ref(first))
        }
        _ => return Err("--place apart needs two cores".to_owned()),
    };
    sys::stay_on(own).map_err(|why| format!("staying on cores {own:?}: {why}"))?;
    Ok(servers.to_vec())
}

fn machine(recipes: &Round<Recipe>) -> String {
    let program = |recipe: &Recipe| (recipe.name, recipe.program.clone());
    table::machine(&[program(&recipes.subject), program(&recipes.reference)])
}

/// What the works under load came to.
#[derive(Default)]
struct Loads {
    rows: Vec<Row>,
    absolute: String,
}

fn measure_loads(args: &Args, recipes: &Round<Recipe>) -> Result<Loads> {
    let push = |pipeline, requests| Push {
        connections: 50,
        pipeline,
        requests,
        message_bytes: args.message_bytes,
    };
    let pop = |pipeline, requests| Pop { pipeline, requests, message_bytes: args.message_bytes };
    let pushes = [
        ("rpushx-p16", &PUSH_P16_CPU, push(16, args.rpushx_p16_requests)),
        ("rpushx-p1", &PUSH_P1_CPU, push(1, args.rpushx_p1_requests)),
    ];
    let pops = [
        ("blpop-p1", &POP_P1_OPS, &POP_P1_CPU, pop(1, args.blpop_p1_requests)),
        ("blpop-p16", &POP_P16_OPS, &POP_P16_CPU, pop(16, args.blpop_p16_requests)),
    ];
    let names = pushes.iter().map(|work| work.0).chain(pops.iter().map(|work| work.0));
    if !names.into_iter().any(|name| args.wants(name)) {
        return Ok(Loads::default());
    }
    let mut loads = Loads { rows: Vec::new(), absolute: table::ABSOLUTE_HEADING.to_owned() };
    let servers = Round {
        subject: recipes.subject.start()?,
        reference: recipes.reference.start()?,
        noise: recipes.noise.start()?,
    };
    for (name, cpu, push) in pushes.iter().filter(|work| args.wants(work.0)) {
        let rounds = rounds(name, args.pairs, &servers, |server, _| push.measure(server))?;
        loads.rows.extend(Row::new(cpu, &rounds, |sample| sample.cpu_micros));
        loads.absolute += &table::absolute(name, &rounds);
    }
    let pops: Vec<_> = pops.iter().filter(|work| args.wants(work.0)).collect();
    if let Some((.., largest)) = pops.iter().max_by_key(|work| work.3.requests)
        && servers.subject.kind == Kind::Karrow
    {
        largest.prefill_topic(&servers.subject)?;
    }
    for (name, ops, cpu, pop) in pops {
        let rounds = rounds(name, args.pairs, &servers, |server, round| {
            pop.measure(server, &format!("{name}-{round}"))
        })?;
        loads.rows.extend(Row::new(ops, &rounds, |sample| sample.ops_per_second));
        loads.rows.extend(Row::new(cpu, &rounds, |sample| sample.cpu_micros));
        loads.absolute += &table::absolute(name, &rounds);
    }
    Ok(loads)
}

/// One round to warm up, then `count` that count; every other round runs its arms in the opposite order, so that a
/// drift of the machine falls on both sides.
fn rounds(
    name: &str,
    count: usize,
    servers: &Round<Server>,
    measure: impl Fn(&Server, usize) -> Result<Sample>,
) -> Result<Vec<Round<Sample>>> {
    let mut rounds = Vec::new();
    for number in 0..=count {
        let one = |arm: &str, server| {
            measure(server, number).map_err(|why| format!("{name}, {arm}: {why}"))
        };
        let round = in_turn(
            number,
            || one("karrow", &servers.subject),
            || one("redis", &servers.reference),
            || one("redis again", &servers.noise),
        )?;
        let say = |sample: Sample| {
            format!("{}/s {:.2} µs", table::thousands(sample.ops_per_second), sample.cpu_micros)
        };
        eprintln!(
            "{name} {number}/{count}: karrow {} · redis {} · again {}",
            say(round.subject),
            say(round.reference),
            say(round.noise)
        );
        if number > 0 {
            rounds.push(round);
        }
    }
    Ok(rounds)
}

fn in_turn<T>(
    number: usize,
    subject: impl FnOnce() -> Result<T>,
    reference: impl FnOnce() -> Result<T>,
    noise: impl FnOnce() -> Result<T>,
) -> Result<Round<T>> {
    if number % 2 == 1 {
        let (subject, reference, noise) = (subject()?, reference()?, noise()?);
        Ok(Round { subject, reference, noise })
    } else {
        let (noise, reference, subject) = (noise()?, reference()?, subject()?);
        Ok(Round { subject, reference, noise })
    }
}

fn measure_starts(args: &Args, recipes: &Round<Recipe>) -> Result<Option<Row>> {
    let rounds = (0..args.starts)
        .map(|number| {
            in_turn(
                number,
                || recipes.subject.time_to_first_pong(),
                || recipes.reference.time_to_first_pong(),
                || recipes.noise.time_to_first_pong(),
            )
        })
        .collect::<Result<Vec<_>>>()?;
    let millis = |of: fn(&Round<std::time::Duration>) -> std::time::Duration| {
        table::Spread::of(rounds.iter().map(|round| of(round).as_secs_f64() * 1e3))
            .map_or(0.0, |spread| spread.median)
    };
    eprintln!(
        "start: karrow {:.1} ms · redis {:.1} ms",
        millis(|round| round.subject),
        millis(|round| round.reference)
    );
    Ok(Row::new(&START, &rounds, |elapsed| elapsed.as_secs_f64()))
}

fn measure_idle(args: &Args, recipes: &Round<Recipe>) -> Result<String> {
    let mut servers = Vec::new();
    for (name, recipe) in [("karrow", &recipes.subject), ("redis-server", &recipes.reference)] {
        if recipe.kind == Kind::Karrow {
            // By another process, so that the one measured has no producer.
            idle::prepare(&recipe.start()?)?;
        }
        let samples = idle::measure(&recipe.start()?, &args.idle_counts, args.idle);
        servers.push((name, samples.map_err(|why| format!("idle consumers of {name}: {why}"))?));
    }
    Ok(table::idle(&servers))
}
