//! The table of commands, from which parsing, arity errors, `COMMAND`, metrics and docs/commands.md follow, and
//! the state of a connection that they work on.

mod consume;
mod introspect;
mod produce;
mod session;
mod sql;
mod transaction;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use prometheus::IntCounter;

use super::Gateway;
use super::clients::ClientInfo;
use super::reply::{Output, Protocol, Value};
use crate::error::Result;
use crate::kafka::producer::{Account, Lane, OwnedMessage, Ticket};
use crate::metrics::Metrics;
use crate::stream::acks::Ack;
use crate::stream::drain::Drain;
use crate::stream::registry::Lease;

/// A command: what clients are told about it, and what runs it.
pub struct Command {
    /// Lower case.
    pub name: &'static str,
    /// Number of arguments, the name included; negative: at least so many.
    pub arity: i32,
    /// Redis's group names, as far as they fit.
    pub group: &'static str,
    /// One sentence without a stop.
    pub summary: &'static str,
    /// The arguments, as Redis's documentation writes them.
    pub syntax: &'static str,
    /// What it answers.
    pub reply: &'static str,
    /// Takes messages from Kafka: does not run while many replies wait for a client that does not read.
    pub pops: bool,
    run: fn(&mut Client, &[&[u8]], &mut Output) -> Outcome,
}

/// Where a command's execution stands.
pub enum Outcome {
    /// The reply is written.
    Done,
    /// The reply is written, and the connection closes after it.
    Close,
    /// Nothing is written: the command runs again when the client has read what waits for it.
    Flush,
    /// The reply comes when this is decided; the commands behind it go on.
    Ticket(Arc<Ticket>),
    /// Nothing is written. When the future ends, or the deadline passes, the command runs again and finds
    /// [`Client::resumed`] set.
    Wait(Wait),
    /// The reply is this future's.
    Run(Pin<Box<dyn Future<Output = Value> + Send>>),
    /// The same, for what is stopped when the client goes.
    Ask(Pin<Box<dyn Future<Output = Value> + Send>>),
}

/// What a command waits for.
pub struct Wait {
    /// Ends when it is worth to run the command again.
    pub until: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// When the command gives up; `None` is never.
    pub deadline: Option<Instant>,
    /// It waits for a message, which nobody is to be given whose peer has gone.
    pub pops: bool,
}

/// What a command that waited finds when it runs again.
#[derive(Default)]
pub struct Resumed {
    /// When it gives up; `None` is never.
    pub deadline: Option<Instant>,
    /// It is to give up now.
    pub timed_out: bool,
    /// How much of its work was done before it waited, and who waits for that.
    pub progress: usize,
    /// Who waits for the messages that were taken before it waited.
    pub ticket: Option<Arc<Ticket>>,
    /// The messages of an Arrow stream, which are made once.
    pub rows: Vec<OwnedMessage>,
    /// The end of every assigned partition was reached.
    pub at_end: Arc<AtomicBool>,
}

/// The state of a connection.
pub struct Client {
    /// What all connections share.
    pub gateway: Arc<Gateway>,
    /// What others see of it.
    pub info: Arc<ClientInfo>,
    /// Its session, once it has popped.
    lease: Option<Lease>,
    /// The key of the last pop and what it says.
    subscription: Option<consume::Subscription>,
    /// What its session delivers as batches.
    drain: Option<Drain>,
    /// An error that the next pop has to answer.
    postponed: Option<String>,
    /// What the last reply delivered, for `RPUSH acks last`.
    last_delivered: Vec<Ack>,
    /// What it has in flight.
    pub account: Arc<Account>,
    /// The way to the topic it produced to last.
    lane: Option<Arc<Lane>>,
    /// Commands between MULTI and EXEC, and those that EXEC has left to run.
    transaction: transaction::Transaction,
    /// Set while a command runs again after it waited.
    pub resumed: Option<Resumed>,
}

impl Client {
    /// A connection that has said nothing yet.
    pub fn new(gateway: Arc<Gateway>, info: Arc<ClientInfo>) -> Self {
        Self {
            gateway,
            info,
            lease: None,
            subscription: None,
            drain: None,
            postponed: None,
            last_delivered: Vec::new(),
            account: Arc::default(),
            lane: None,
            transaction: transaction::Transaction::default(),
            resumed: None,
        }
    }

    /// The next command of an EXEC that runs, if one does.
    pub fn next_of_exec(&mut self) -> Option<Vec<Vec<u8>>> {
        self.transaction.next()
    }

    /// Puts a command back that has to run again.
    pub fn repeat_of_exec(&mut self, args: Vec<Vec<u8>>) {
        self.transaction.put_back(args);
    }

    /// Frees the name; the consumer commits and leaves its group in the background.
    pub fn end_session(&mut self) {
        self.lease = None;
        self.drain = None;
    }

    fn deadline_of(&self) -> Option<Instant> {
        self.resumed.as_ref().and_then(|resumed| resumed.deadline)
    }

    fn at_end(&self) -> bool {
        self.resumed.as_ref().is_some_and(|resumed| resumed.at_end.load(Ordering::Acquire))
    }

    fn timed_out(&self) -> bool {
        self.resumed.as_ref().is_some_and(|resumed| resumed.timed_out)
    }
}

/// Runs one command: looks it up, checks its arity, counts it.
pub fn execute(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let Some(name) = args.first() else { return Outcome::Done };
    let Some((index, command)) = look_up(name) else {
        out.error(&unknown(name, &args[1..]));
        client.transaction.spoil();
        client.gateway.counters.unknown.inc();
        // Bytes of another protocol whose sender can be tricked into talking to us (as Redis does).
        let is_http = name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:");
        return if is_http { Outcome::Close } else { Outcome::Done };
    };
    let count = i32::try_from(args.len()).unwrap_or(i32::MAX);
    if (command.arity >= 0 && count != command.arity) || count < -command.arity {
        out.error(&format!("ERR wrong number of arguments for '{}' command", command.name));
        client.transaction.spoil();
        client.gateway.counters.count(index, false);
        return Outcome::Done;
    }
    if command.pops && out.len() > client.gateway.config.output_bytes_max {
        return Outcome::Flush;
    }
    if client.transaction.queues(command.name) {
        match client.transaction.queue(args, client.gateway.config.request_bytes_max) {
            Ok(()) => out.simple("QUEUED"),
            Err(why) => out.error(&why),
        }
        return Outcome::Done;
    }
    if client.resumed.is_none() {
        client.info.commands.fetch_add(1, Ordering::Relaxed);
        client.info.said.lock().last_command = command.name;
        if client.gateway.clients.is_monitored() {
            client.gateway.clients.show(&client.info, args);
        }
    }
    let errors = out.errors();
    let outcome = (command.run)(client, args, out);
    if !matches!(outcome, Outcome::Wait(..) | Outcome::Flush) {
        client.resumed = None;
    }
    // Counted when it is decided; never, if the connection ends before.
    match outcome {
        Outcome::Wait(..) | Outcome::Flush => outcome,
        Outcome::Ticket(ticket) => {
            out.pending(ticket, index);
            client.gateway.counters.resolve(out);
            Outcome::Done
        }
        Outcome::Run(reply) => Outcome::Run(counted(client, index, reply)),
        Outcome::Ask(reply) => Outcome::Ask(counted(client, index, reply)),
        Outcome::Done | Outcome::Close => {
            client.gateway.counters.count(index, out.errors() == errors);
            outcome
        }
    }
}

/// Counts the command when its reply is there.
fn counted(
    client: &Client,
    index: usize,
    reply: Pin<Box<dyn Future<Output = Value> + Send>>,
) -> Pin<Box<dyn Future<Output = Value> + Send>> {
    let gateway = client.gateway.clone();
    Box::pin(async move {
        let value = reply.await;
        gateway.counters.count(index, !matches!(value, Value::Error(_)));
        value
    })
}

fn look_up(name: &[u8]) -> Option<(usize, &'static Command)> {
    COMMANDS
        .iter()
        .enumerate()
        .find(|(_, command)| name.eq_ignore_ascii_case(command.name.as_bytes()))
}

/// Redis's text, on which clients rely to tell what a server lacks.
fn unknown(name: &[u8], args: &[&[u8]]) -> String {
    let clip = |arg: &[u8]| String::from_utf8_lossy(arg.get(..128).unwrap_or(arg)).into_owned();
    let mut text = format!("ERR unknown command `{}`, with args beginning with: ", clip(name));
    for arg in args {
        if text.len() > 256 {
            break;
        }
        text.push_str(&format!("`{}`, ", clip(arg)));
    }
    text
}

/// Counters of commands by outcome, in the order of the table.
pub struct CommandCounters {
    by_command: Vec<[IntCounter; 2]>,
    unknown: IntCounter,
}

impl CommandCounters {
    /// Looks them up once, so that counting is an addition.
    pub fn new(metrics: &Metrics) -> Self {
        let counter =
            |name: &str, outcome: &str| metrics.commands.with_label_values(&[name, outcome]);
        Self {
            by_command: COMMANDS
                .iter()
                .map(|command| [counter(command.name, "error"), counter(command.name, "ok")])
                .collect(),
            unknown: counter("unknown", "error"),
        }
    }

    fn count(&self, index: usize, ok: bool) {
        if let Some(counters) = self.by_command.get(index) {
            counters[usize::from(ok)].inc();
        }
    }

    /// Turns the replies of `out` that have been decided into bytes, and counts their commands.
    pub fn resolve(&self, out: &mut Output) {
        out.resolve(|command, ok| self.count(command, ok));
    }

    /// All commands so far.
    pub fn total(&self) -> u64 {
        self.by_command.iter().flatten().chain([&self.unknown]).map(IntCounter::get).sum()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An integer as Redis takes it.
fn integer(bytes: &[u8]) -> Option<i64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// docs/commands.md.
pub fn documentation() -> String {
    let mut page = String::from(
        "# Commands\n\nMade from the table of commands in the source; a test keeps it true.\n\n\
         | command | what it does | reply |\n|---|---|---|\n",
    );
    for command in COMMANDS {
        let syntax = format!("{} {}", command.name.to_uppercase(), command.syntax);
        page.push_str(&format!(
            "| `{}` | {} | {} |\n",
            syntax.trim().replace('|', "\\|"),
            command.summary,
            command.reply
        ));
    }
    page
}

macro_rules! commands {
    ($( $name:literal $arity:literal $group:literal $run:path, $syntax:literal, $summary:literal, $reply:literal $(, $pops:ident)?; )*) => {
        /// Every command, the frequent ones first.
        pub const COMMANDS: &[Command] = &[
            $( Command {
                name: $name, arity: $arity, group: $group, run: $run, syntax: $syntax, summary: $summary,
                reply: $reply, pops: commands!(@pops $($pops)?),
            }, )*
        ];
    };
    (@pops) => { false };
    (@pops pops) => { true };
}

commands! {
    "rpushx" -3 "list" produce::rpushx, "topics:<topic>[:<key>] <message>",
        "Hand a message to the producer without waiting for the broker", "1";
    "blpop" -3 "list" consume::blpop, "topics:<topic>[,<topic> ...][:<json>] [key ...] <timeout>",
        "Wait for the next message of a subscription, for so many seconds (0: for ever)",
        "the message in the form that the key's prefix asks for (`topics:`, `json:`; `arrow:` for a batch), or a null array", pops;
    "rpush" -3 "list" produce::rpush, "acks <topic>:<partition>:<offset> [...] or topics:<topic>[:<key>] <message> [...] or arrow:<topic> <IPC stream> [...]",
        "Ack messages (`acks last`: all of the last reply), or produce, also the rows of Arrow streams, and wait until the brokers have stored them",
        "how many acks moved a position forward, or how many messages were stored";
    "lpop" -2 "list" consume::lpop, "<key> [count]",
        "Take messages that are ready, without blocking",
        "a message (a batch for `arrow:`) or an array of them; null when the end of every assigned partition was reached", pops;
    "ping" -1 "connection" session::ping, "[message]", "Answer", "PONG, or the message";
    "echo" 2 "connection" session::echo, "<message>", "Answer the message", "the message";
    "hello" -1 "connection" session::hello, "[2|3] [AUTH <user> <password>] [SETNAME <name>]",
        "Choose the protocol version", "a map of the server's properties";
    "auth" -2 "connection" session::auth, "[user] <password>", "Authenticate", "OK";
    "select" 2 "connection" session::select, "0", "Choose the database; there is one", "OK";
    "client" -2 "connection" session::client, "SETNAME <group>:<name> or GETNAME, ID, INFO, LIST, KILL, SETINFO, NO-EVICT, NO-TOUCH",
        "Name the connection, which makes it a member of a consumer group, and look at connections",
        "by subcommand";
    "quit" -1 "connection" session::quit, "", "Commit what was acked, leave the group and close", "OK";
    "reset" 1 "connection" session::reset, "", "Start over: no name, no session, RESP2", "RESET";
    "multi" 1 "transactions" transaction::multi, "", "Queue the commands that follow", "OK";
    "exec" 1 "transactions" transaction::exec, "", "Run the queued commands, not atomically; pops do not wait", "an array of their replies";
    "discard" 1 "transactions" transaction::discard, "", "Forget the queued commands", "OK";
    "dump" 2 "generic" produce::dump, "<milliseconds>",
        "Wait until the messages of this connection are stored, at most so long",
        "how many of them are not stored yet";
    "keys" 2 "generic" introspect::keys, "<pattern>", "List topics (`topics:` lists all)", "an array of `topics:<topic>`";
    "scan" -2 "generic" introspect::scan, "<cursor> [MATCH pattern] [COUNT n] [TYPE list]", "List topics, in one step",
        "cursor 0 and an array of `topics:<topic>`";
    "exists" -2 "generic" introspect::exists, "<key> [key ...]", "Count which of the topics exist", "an integer";
    "type" 2 "generic" introspect::kind, "<key>", "Say whether a topic exists", "`list` or `none`";
    "llen" 2 "list" introspect::llen, "topics:<topic>",
        "Count the messages of a topic, from its beginning to its stable end; compacted ones count",
        "an integer";
    "sql" -2 "search" sql::sql, "<query> [[FORMAT] json|ndjson|csv|arrow]",
        "Answer an SQL statement that reads, over topics as tables", "the rows as one bulk string, a JSON array of objects unless told";
    "sql.call" -2 "search" sql::call, "<query name> [<parameter> <value> ...] [FORMAT json|ndjson|csv|arrow]",
        "Answer a query of the configuration; who asks the same gets the same answer while nothing has changed",
        "the rows as one bulk string, a JSON array of objects unless told";
    "hgetall" 2 "hash" introspect::hgetall, "stats", "Show what the producer did", "a map";
    "del" -2 "generic" introspect::del, "stats", "Start the counters of `stats` at zero", "1";
    "info" -1 "server" introspect::info, "[section ...]", "Describe the server", "text";
    "monitor" -1 "server" introspect::monitor, "", "Show every command as it comes", "OK, then a line for each command";
    "command" -1 "server" introspect::command, "[COUNT or DOCS, INFO, LIST [name ...]]", "Describe the commands", "by subcommand";
    "config" -2 "server" introspect::config, "GET <pattern> [pattern ...]", "Answer an empty map: karrow is configured by its files", "a map";
    "cluster" -2 "cluster" introspect::cluster, "<subcommand>", "Say that this is no cluster", "an error";
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Resp2 => 2,
            Self::Resp3 => 3,
        }
    }
}

/// Runs `work` away from the connection and answers its result.
fn reply_from(
    work: impl Future<Output = Result<Value>> + Send + 'static,
    prefix: &'static str,
) -> Outcome {
    Outcome::Run(Box::pin(async move {
        work.await.unwrap_or_else(|error| Value::Error(format!("{prefix} {error}")))
    }))
}

/// Commands as a queue keeps them.
type Queued = VecDeque<Vec<Vec<u8>>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_and_unique() {
        let mut names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
        assert!(names.iter().all(|name| *name == name.to_lowercase()));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), COMMANDS.len());
    }

    #[test]
    fn the_documentation_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/commands.md");
        let current = documentation();
        if std::fs::read_to_string(path).unwrap_or_default() != current {
            std::fs::write(path, current).expect("docs/commands.md is writable");
            panic!("docs/commands.md was stale and has been rewritten: commit it");
        }
    }

    #[test]
    fn unknown_commands_are_named_in_backticks() {
        assert_eq!(
            unknown(b"FOO", &[b"a", b"b\xff"]),
            "ERR unknown command `FOO`, with args beginning with: `a`, `b\u{fffd}`, "
        );
    }
}
