//! The load generator: one thread, non-blocking sockets, requests formatted beforehand, replies only counted.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::Result;
use crate::resp::ReplyCounter;
use crate::sys;

/// A run that makes no progress for this long has failed.
const STALL: Duration = Duration::from_secs(20);

/// What the generator saw.
pub struct Outcome {
    /// Requests answered.
    pub requests: usize,
    /// From the first request to the last reply.
    pub wall: Duration,
    /// CPU time of the generator itself: were it near `wall`, the generator would be what is measured.
    pub generator_cpu: Duration,
}

/// Sends `command` over and over on all `streams`, `pipeline` in each write, the next write of a connection when all
/// of its replies are there, until at least `requests` are answered. Returns the streams, still open.
pub fn drive(
    streams: Vec<TcpStream>,
    command: &[u8],
    pipeline: usize,
    requests: usize,
) -> Result<(Outcome, Vec<TcpStream>)> {
    let connections = streams.len();
    let mut run = Run {
        epoll: sys::Epoll::new(connections).map_err(|why| format!("epoll: {why}"))?,
        batch: command.repeat(pipeline),
        pipeline,
        unsent_batches: requests.div_ceil(pipeline),
        missing: requests.div_ceil(pipeline) * pipeline,
        buffer: vec![0; 256 * 1024],
        lanes: streams.into_iter().map(Lane::new).collect(),
    };
    let requests = run.missing;
    for token in 0..connections {
        let stream = &run.lanes[token].stream;
        stream
            .set_nonblocking(true)
            .and_then(|()| run.epoll.add(stream, token))
            .map_err(|why| format!("preparing connection {token}: {why}"))?;
    }
    let (began, cpu_before) = (Instant::now(), sys::cpu_of_self());
    run.finish()?;
    let outcome = Outcome {
        requests,
        wall: began.elapsed(),
        generator_cpu: sys::cpu_of_self().saturating_sub(cpu_before),
    };
    let streams: Vec<_> = run.lanes.into_iter().map(|lane| lane.stream).collect();
    for stream in &streams {
        stream.set_nonblocking(false).map_err(|why| format!("blocking mode: {why}"))?;
    }
    Ok((outcome, streams))
}

struct Run {
    epoll: sys::Epoll,
    batch: Vec<u8>,
    pipeline: usize,
    unsent_batches: usize,
    missing: usize,
    buffer: Vec<u8>,
    lanes: Vec<Lane>,
}

/// One connection.
struct Lane {
    stream: TcpStream,
    replies: ReplyCounter,
    /// Replies to the batch in flight that have not come yet.
    awaited: usize,
    /// Bytes of that batch the socket has taken; the whole length when all are out.
    sent: usize,
    /// The socket was full: epoll reports when it can be written again.
    blocked: bool,
}

impl Lane {
    fn new(stream: TcpStream) -> Self {
        Self { stream, replies: ReplyCounter::default(), awaited: 0, sent: 0, blocked: false }
    }
}

impl Run {
    fn finish(&mut self) -> Result<()> {
        for token in 0..self.lanes.len() {
            self.next_batch(token)?;
        }
        let mut ready = Vec::with_capacity(self.lanes.len());
        let mut last_reply = Instant::now();
        while self.missing > 0 {
            self.epoll
                .wait(Duration::from_millis(500), &mut ready)
                .map_err(|why| format!("epoll: {why}"))?;
            if sys::interrupted() {
                return Err("interrupted".to_owned());
            }
            if !ready.is_empty() {
                last_reply = Instant::now();
            } else if last_reply.elapsed() > STALL {
                return Err(format!(
                    "{} replies still missing, none for {} s",
                    self.missing,
                    STALL.as_secs()
                ));
            }
            for &token in &ready {
                self.serve(token)?;
            }
        }
        Ok(())
    }

    fn serve(&mut self, token: usize) -> Result<()> {
        if self.lanes[token].blocked {
            self.flush(token)?;
        }
        let lane = &mut self.lanes[token];
        match lane.stream.read(&mut self.buffer) {
            Ok(0) => {
                Err(format!("connection {token} was closed with {} replies missing", self.missing))
            }
            Ok(count) => {
                let replies = lane.replies.feed(&self.buffer[..count])?;
                lane.awaited = lane.awaited.checked_sub(replies).ok_or_else(|| {
                    format!("connection {token} got more replies than it sent requests")
                })?;
                self.missing -= replies;
                if lane.awaited == 0 && lane.sent == self.batch.len() {
                    self.next_batch(token)
                } else {
                    Ok(())
                }
            }
            Err(why) if again(&why) => Ok(()),
            Err(why) => Err(format!("reading connection {token}: {why}")),
        }
    }

    fn next_batch(&mut self, token: usize) -> Result<()> {
        if self.unsent_batches == 0 {
            return Ok(());
        }
        self.unsent_batches -= 1;
        self.lanes[token].awaited = self.pipeline;
        self.lanes[token].sent = 0;
        self.flush(token)
    }

    fn flush(&mut self, token: usize) -> Result<()> {
        let lane = &mut self.lanes[token];
        while lane.sent < self.batch.len() {
            match lane.stream.write(&self.batch[lane.sent..]) {
                Ok(count) => lane.sent += count,
                Err(why) if again(&why) => break,
                Err(why) => return Err(format!("writing connection {token}: {why}")),
            }
        }
        let blocked = lane.sent < self.batch.len();
        if blocked != lane.blocked {
            lane.blocked = blocked;
            self.epoll
                .modify(&lane.stream, token, blocked)
                .map_err(|why| format!("epoll: {why}"))?;
        }
        Ok(())
    }
}

fn again(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
