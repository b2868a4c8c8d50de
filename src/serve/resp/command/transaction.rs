//! MULTI, EXEC and DISCARD: many clients send every pipeline inside them. The commands run one after another,
//! not atomically.

use super::{Client, Outcome, Queued};
use crate::serve::resp::reply::Output;

/// Commands that a transaction may hold; more is a client that forgot EXEC.
const QUEUE_MAX: usize = 1 << 20;

/// What a connection has between MULTI and EXEC, and during EXEC.
#[derive(Default)]
pub struct Transaction {
    queued: Option<Queued>,
    spoilt: bool,
    running: Queued,
    is_running: bool,
}

impl Transaction {
    /// Whether `command` is to be queued now.
    pub fn queues(&self, command: &str) -> bool {
        self.queued.is_some() && !matches!(command, "multi" | "exec" | "discard" | "reset" | "quit")
    }

    /// Queues a command.
    pub fn queue(&mut self, args: &[&[u8]]) {
        if let Some(queued) = &mut self.queued {
            if queued.len() >= QUEUE_MAX {
                self.spoilt = true;
            } else {
                queued.push_back(args.iter().map(|arg| arg.to_vec()).collect());
            }
        }
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
