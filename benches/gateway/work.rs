//! The works that are measured, each once per call: produce, pop, start.

use std::net::TcpStream;

use crate::Result;
use crate::load::{Outcome, drive};
use crate::resp::{Client, Reply, encode};
use crate::server::{Kind, PATIENCE, Server, eventually};

pub const PUSH_TOPIC: &str = "bench-push";
pub const POP_TOPIC: &str = "bench-pop";

/// What one run of a work came to.
#[derive(Clone, Copy)]
pub struct Sample {
    pub ops_per_second: f64,
    /// CPU time of the server process per operation, in microseconds.
    pub cpu_micros: f64,
    /// CPU time of the load generator as a share of one core.
    pub generator_share: f64,
}

/// How to produce: RPUSHX into a topic, or RPUSH onto Redis's list.
#[derive(Clone, Copy)]
pub struct Push {
    pub connections: usize,
    pub pipeline: usize,
    pub requests: usize,
    pub message_bytes: usize,
}

impl Push {
    /// One run. karrow's CPU time counts until the broker has stored every message.
    pub fn measure(&self, server: &Server) -> Result<Sample> {
        let mut control = server.client()?;
        if server.kind == Kind::Redis {
            // Its allocator gives freed pages back after some seconds: without this, how long ago the list was
            // deleted decides whether Redis pays for page faults (up to a tenth of its CPU time).
            fill_list(server, PUSH_TOPIC, self.message_bytes, self.requests)?;
            control.call(&["DEL", PUSH_TOPIC])?;
            server.process.await_quiet()?;
        }
        let cpu_before = server.process.cpu()?;
        let outcome = self.drive(server, PUSH_TOPIC, &mut control)?;
        let cpu = server.process.cpu()?.saturating_sub(cpu_before);
        if server.kind == Kind::Redis {
            control.call(&["DEL", PUSH_TOPIC])?;
        }
        Ok(Sample::of(&outcome, cpu.as_secs_f64()))
    }

    fn drive(&self, server: &Server, topic: &str, control: &mut Client) -> Result<Outcome> {
        let errors_before = delivery_errors(server, control)?;
        let streams = (0..self.connections)
            .map(|_| server.client().map(Client::into_stream))
            .collect::<Result<Vec<TcpStream>>>()?;
        let message = "x".repeat(self.message_bytes);
        let mut command = Vec::new();
        match server.kind {
            Kind::Karrow => encode(&["RPUSHX", &format!("topics:{topic}"), &message], &mut command),
            Kind::Redis => encode(&["RPUSH", topic, &message], &mut command),
        }
        let (outcome, _streams) = drive(streams, &command, self.pipeline, self.requests)?;
        if server.kind == Kind::Karrow {
            await_delivery(control)?;
        }
        match delivery_errors(server, control)? - errors_before {
            0 => Ok(outcome),
            lost => Err(format!("{lost} of {} messages were not delivered", outcome.requests)),
        }
    }
}

/// Pushes at least `count` messages onto Redis's list.
fn fill_list(server: &Server, list: &str, message_bytes: usize, count: usize) -> Result<()> {
    let mut command = Vec::new();
    encode(&["RPUSH", list, &"x".repeat(message_bytes)], &mut command);
    drive(vec![server.client()?.into_stream()], &command, 64, count).map(|_| ())
}

fn await_delivery(control: &mut Client) -> Result<()> {
    eventually("every produced message to be delivered", PATIENCE, || {
        Ok((stat(control, "producer.unflushed.messages")? == 0).then_some(()))
    })
}

fn delivery_errors(server: &Server, control: &mut Client) -> Result<i64> {
    match server.kind {
        Kind::Karrow => stat(control, "producer.delivery.errors"),
        Kind::Redis => Ok(0),
    }
}

fn stat(control: &mut Client, name: &str) -> Result<i64> {
    let Reply::Array(fields) = control.call(&["HGETALL", "stats"])? else {
        return Err("HGETALL stats did not answer an array".to_owned());
    };
    let value = fields.chunks_exact(2).find_map(|pair| match pair {
        [Reply::Text(field), Reply::Text(value)] if field == name => value.parse().ok(),
        [Reply::Text(field), Reply::Integer(value)] if field == name => Some(*value),
        _ => None,
    });
    value.ok_or_else(|| format!("HGETALL stats has no number {name}"))
}

/// How to consume: BLPOP on one connection, from a topic or a list that holds more than is popped.
#[derive(Clone, Copy)]
pub struct Pop {
    pub pipeline: usize,
    pub requests: usize,
    pub message_bytes: usize,
}

impl Pop {
    /// Fills the topic that every later pop reads from its beginning, each in a group of its own: twice what a run
    /// pops, so that prefetching never meets the end.
    pub fn prefill_topic(&self, server: &Server) -> Result<()> {
        let fill = Push {
            connections: 4,
            pipeline: 64,
            requests: 2 * self.requests,
            message_bytes: self.message_bytes,
        };
        fill.drive(server, POP_TOPIC, &mut server.client()?).map(|_| ())
    }

    /// One run in a consumer group called `group`; Redis's list is filled first.
    ///
    /// The first message is popped before the clock starts. A server that is quiet then has nothing left to
    /// prefetch, and one that is quiet at the end has fetched again what was popped: what is counted in between is
    /// the whole cost of as many messages as were popped.
    pub fn measure(&self, server: &Server, group: &str) -> Result<Sample> {
        let key = match server.kind {
            Kind::Karrow => format!("topics:{POP_TOPIC}"),
            Kind::Redis => POP_TOPIC.to_owned(),
        };
        let mut client = server.client()?;
        match server.kind {
            Kind::Karrow => {
                client.call(&["CLIENT", "SETNAME", &format!("{group}:bench")]).map(|_| ())?
            }
            Kind::Redis => {
                fill_list(server, POP_TOPIC, self.message_bytes, self.requests + self.pipeline + 1)?
            }
        }
        let first = client.call(&["BLPOP", &key, "0"])?;
        self.check(server.kind, &first)?;
        server.process.await_quiet()?;

        let mut command = Vec::new();
        encode(&["BLPOP", &key, "0"], &mut command);
        let cpu_before = server.process.cpu()?;
        let (outcome, streams) =
            drive(vec![client.into_stream()], &command, self.pipeline, self.requests)?;
        server.process.await_quiet()?;
        let cpu = server.process.cpu()?.saturating_sub(cpu_before);

        for stream in streams {
            Client::over(stream).quit()?;
        }
        if server.kind == Kind::Redis {
            server.client()?.call(&["DEL", POP_TOPIC])?;
        }
        server.process.await_quiet()?;
        Ok(Sample::of(&outcome, cpu.as_secs_f64()))
    }

    /// Both servers must hand out the same payload, or the comparison is void.
    fn check(&self, kind: Kind, reply: &Reply) -> Result<()> {
        let elements = match kind {
            Kind::Karrow => 8,
            Kind::Redis => 2,
        };
        match reply {
            Reply::Array(fields) if fields.len() == elements => match fields.last() {
                Some(Reply::Text(value)) if value.len() == self.message_bytes => Ok(()),
                value => Err(format!("BLPOP answered the value {value:?}")),
            },
            other => Err(format!("BLPOP answered {other:?}, not {elements} elements")),
        }
    }
}

impl Sample {
    fn of(outcome: &Outcome, cpu_seconds: f64) -> Self {
        let (requests, wall) = (outcome.requests as f64, outcome.wall.as_secs_f64());
        Self {
            ops_per_second: requests / wall,
            cpu_micros: cpu_seconds * 1e6 / requests,
            generator_share: outcome.generator_cpu.as_secs_f64() / wall,
        }
    }
}
