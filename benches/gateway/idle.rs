//! What consumers cost that wait for messages which do not come: memory, threads, descriptors, CPU time.

use std::time::{Duration, Instant};

use crate::Result;
use crate::resp::{Client, Reply};
use crate::server::{Footprint, Kind, Server, eventually};
use crate::sys;

pub const TOPIC: &str = "bench-idle";

/// How long to let the server settle before each sample, and how long to sample.
#[derive(Clone, Copy)]
pub struct Plan {
    pub settle: Duration,
    pub window: Duration,
}

/// What a server holds while `consumers` of them wait.
#[derive(Clone, Copy)]
pub struct Sample {
    pub consumers: usize,
    pub footprint: Footprint,
    /// CPU time as a share of one core.
    pub cpu_share: f64,
}

/// Samples `server` with each number of `counts` consumers, growing; it should be freshly started.
pub fn measure(server: &Server, counts: &[usize], plan: Plan) -> Result<Vec<Sample>> {
    let mut waiting = Vec::new();
    let mut samples = Vec::new();
    for &consumers in counts {
        while waiting.len() < consumers {
            waiting.push(consumer(server, waiting.len())?);
        }
        pause(plan.settle)?;
        let cpu_before = server.process.cpu()?;
        let began = Instant::now();
        pause(plan.window)?;
        let cpu = server.process.cpu()?.saturating_sub(cpu_before);
        let cpu_share = cpu.as_secs_f64() / began.elapsed().as_secs_f64();
        let footprint = server.process.footprint()?;
        samples.push(Sample { consumers, footprint, cpu_share });
    }
    Ok(samples)
}

/// The topic's one message; each consumer gets it, which proves that it has joined its group and owns the partition.
pub fn prepare(server: &Server) -> Result<()> {
    let mut client = server.client()?;
    client.call(&["RPUSHX", &format!("topics:{TOPIC}"), "the only one"])?;
    match client.call(&["DUMP", "20000"])? {
        Reply::Integer(0) => Ok(()),
        other => Err(format!("DUMP answered {other:?} after one message")),
    }
}

/// A connection in a group of its own that has popped the topic's one message and blocks in the next BLPOP.
fn consumer(server: &Server, number: usize) -> Result<Client> {
    let mut client = server.client()?;
    let key = match server.kind {
        Kind::Karrow => {
            let key = format!("topics:{TOPIC}");
            client.call(&["CLIENT", "SETNAME", &format!("bench-idle-{number}:bench")])?;
            client.call(&["BLPOP", &key, "0"])?;
            key
        }
        Kind::Redis => TOPIC.to_owned(),
    };
    client.send(&["BLPOP", &key, "0"])?;
    Ok(client)
}

/// Lets time pass, for here time itself is measured; ends early when interrupted.
fn pause(duration: Duration) -> Result<()> {
    let began = Instant::now();
    eventually("the sampling window to end", duration + Duration::from_secs(1), || {
        std::thread::sleep(Duration::from_millis(50));
        match sys::interrupted() {
            true => Err("interrupted".to_owned()),
            false => Ok((began.elapsed() >= duration).then_some(())),
        }
    })
}
