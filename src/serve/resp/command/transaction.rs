//! MULTI, EXEC and DISCARD: many clients send every pipeline inside them. The commands run one after another,
//! not atomically.

use super::{Client, Outcome, Queued};
use crate::serve::resp::reply::Output;

/// What a queued argument costs beside its bytes.
const ARG_OVERHEAD_BYTES: usize = 48;

/// What a connection has between MULTI and EXEC, and during EXEC.
#[derive(Default)]
pub struct Transaction {
    queued: Option<Queued>,
    queued_bytes: usize,
    spoilt: bool,
    running: Queued,
    is_running: bool,
}

impl Transaction {
    /// Whether `command` is to be queued now.
    pub fn queues(&self, command: &str) -> bool {
        self.queued.is_some() && !matches!(command, "multi" | "exec" | "discard" | "reset" | "quit")
    }

    /// Queues a command, unless the transaction then holds more than `bytes_max`: it is forgotten then, and EXEC will
    /// refuse.
    ///
    /// # Errors
    /// Names the limit.
    pub fn queue(&mut self, args: &[&[u8]], bytes_max: usize) -> Result<(), String> {
        let Some(queued) = &mut self.queued else { return Ok(()) };
        let bytes: usize = args.iter().map(|arg| arg.len() + ARG_OVERHEAD_BYTES).sum();
        self.queued_bytes += bytes;
        if self.queued_bytes > bytes_max {
            queued.clear();
            self.spoilt = true;
            return Err(format!("ERR transaction of more than {bytes_max} bytes"));
        }
        queued.push_back(args.iter().map(|arg| arg.to_vec()).collect());
        Ok(())
    }

    /// A command could not be queued: EXEC will refuse.
    pub fn spoil(&mut self) {
        self.spoilt |= self.queued.is_some();
    }

    /// Whether EXEC runs its commands now; pops do not wait then.
    pub fn is_running(&self) -> bool {
        self.is_running
    }

    /// The next command to run.
    pub fn next(&mut self) -> Option<Vec<Vec<u8>>> {
        let next = self.running.pop_front();
        self.is_running = next.is_some();
        next
    }

    /// A command has to run again.
    pub fn put_back(&mut self, args: Vec<Vec<u8>>) {
        self.running.push_front(args);
    }
}

pub fn multi(client: &mut Client, _: &[&[u8]], out: &mut Output) -> Outcome {
    if client.transaction.queued.is_some() || client.transaction.is_running {
        out.error("ERR MULTI calls can not be nested");
    } else {
        client.transaction.queued = Some(Queued::new());
        client.transaction.queued_bytes = 0;
        client.transaction.spoilt = false;
        out.simple("OK");
    }
    Outcome::Done
}

pub fn exec(client: &mut Client, _: &[&[u8]], out: &mut Output) -> Outcome {
    match client.transaction.queued.take() {
        None => out.error("ERR EXEC without MULTI"),
        Some(_) if client.transaction.spoilt => {
            out.error("EXECABORT Transaction discarded because of previous errors.");
        }
        Some(queued) => {
            out.array(queued.len());
            client.transaction.running = queued;
        }
    }
    Outcome::Done
}

pub fn discard(client: &mut Client, _: &[&[u8]], out: &mut Output) -> Outcome {
    match client.transaction.queued.take() {
        None => out.error("ERR DISCARD without MULTI"),
        Some(_) => out.simple("OK"),
    }
    Outcome::Done
}
