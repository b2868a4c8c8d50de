//! The connections that are open: for `CLIENT LIST`, `CLIENT KILL`, `MONITOR` and shutdown.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Lines a monitoring client may lag behind before it is disconnected.
const MONITOR_BYTES_MAX: usize = 4 << 20;

/// Bytes of one argument that MONITOR shows.
const MONITOR_ARG_BYTES_MAX: usize = 1024;

/// All open connections by their id.
#[derive(Default)]
pub struct Clients {
    next_id: AtomicU64,
    open: Mutex<BTreeMap<u64, Arc<ClientInfo>>>,
    count: AtomicUsize,
    monitors: AtomicUsize,
    gone: Notify,
}

/// What others may know of, and do to, a connection.
#[derive(Debug)]
pub struct ClientInfo {
    /// Unique since start, ascending.
    pub id: u64,
    /// The peer's address.
    pub addr: SocketAddr,
    /// Our address.
    pub local_addr: SocketAddr,
    /// When it was accepted.
    pub since: Instant,
    /// Wakes the connection's task: look at `killed`, at the gateway's state, at replies that are decided.
    pub attention: Arc<Notify>,
    /// To be closed.
    pub killed: AtomicBool,
    /// Negotiated protocol, 2 or 3.
    pub protocol: AtomicU8,
    /// Commands executed.
    pub commands: AtomicU64,
    /// Bytes read.
    pub received_bytes: AtomicU64,
    /// Milliseconds after `since` when it last sent something.
    pub active_ms: AtomicU64,
    /// Whether a pop waits at this moment.
    pub blocked: AtomicBool,
    /// What the client said about itself.
    pub said: Mutex<ClientSaid>,
    monitor: Mutex<Option<Vec<u8>>>,
}

/// What a client said about itself.
#[derive(Clone, Debug, Default)]
pub struct ClientSaid {
    /// `CLIENT SETNAME`.
    pub name: Option<Arc<str>>,
    /// `CLIENT SETINFO lib-name`.
    pub lib_name: String,
    /// `CLIENT SETINFO lib-ver`.
    pub lib_version: String,
    /// The last command.
    pub last_command: &'static str,
}

impl Clients {
    /// Registers a connection.
    pub fn add(&self, addr: SocketAddr, local_addr: SocketAddr) -> Arc<ClientInfo> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let info = Arc::new(ClientInfo {
            id,
            addr,
            local_addr,
            since: Instant::now(),
            attention: Arc::new(Notify::new()),
            killed: AtomicBool::new(false),
            protocol: AtomicU8::new(2),
            commands: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            active_ms: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            said: Mutex::default(),
            monitor: Mutex::new(None),
        });
        self.open.lock().insert(id, info.clone());
        self.count.fetch_add(1, Ordering::Relaxed);
        info
    }

    /// Forgets a connection.
    pub fn remove(&self, info: &ClientInfo) {
        if self.open.lock().remove(&info.id).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        if info.monitor.lock().take().is_some() {
            self.monitors.fetch_sub(1, Ordering::Relaxed);
        }
        self.gone.notify_waiters();
    }

    /// Waits until no connection is open.
    pub async fn none_left(&self) {
        loop {
            let mut gone = std::pin::pin!(self.gone.notified());
            gone.as_mut().enable();
            if self.is_empty() {
                return;
            }
            gone.await;
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Vec<Arc<ClientInfo>> {
        self.open.lock().values().cloned().collect()
    }

    /// Makes every connection look around.
    pub fn wake_all(&self) {
        for client in self.open.lock().values() {
            client.attention.notify_one();
        }
    }

    /// Closes every connection, whatever it still owes.
    pub fn kill_all(&self) {
        for client in self.open.lock().values() {
            client.kill();
        }
    }

    /// Makes `info` see all commands from now on.
    pub fn monitor(&self, info: &ClientInfo) {
        if info.monitor.lock().replace(Vec::new()).is_none() {
            self.monitors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends [`monitor`](Self::monitor).
    pub fn unmonitor(&self, info: &ClientInfo) {
        if info.monitor.lock().take().is_some() {
            self.monitors.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether anybody watches; asked before a line is made.
    pub fn is_monitored(&self) -> bool {
        self.monitors.load(Ordering::Relaxed) > 0
    }

    /// Shows a command to those who watch. One that does not read is disconnected.
    pub fn show(&self, from: &ClientInfo, args: &[&[u8]]) {
        let line = monitor_line(from, args);
        for client in self.open.lock().values() {
            let mut feed = client.monitor.lock();
            let Some(lines) = &mut *feed else { continue };
            if lines.len() + line.len() > MONITOR_BYTES_MAX {
                client.killed.store(true, Ordering::Release);
            } else {
                lines.extend_from_slice(line.as_bytes());
            }
            client.attention.notify_one();
        }
    }
}

impl ClientInfo {
    /// What a monitoring connection has to send.
    pub fn monitored(&self) -> Vec<u8> {
        self.monitor.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Closes the connection.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.attention.notify_one();
    }

    /// The name that was set, if one was.
    pub fn name(&self) -> Option<Arc<str>> {
        self.said.lock().name.clone()
    }

    /// The line of `CLIENT LIST`, with `missing` (topics of its session that do not exist).
    pub fn line(&self, session: Option<&str>, missing: &[Arc<str>]) -> String {
        let said = self.said.lock().clone();
        let age = self.since.elapsed();
        let idle_ms =
            (age.as_millis() as u64).saturating_sub(self.active_ms.load(Ordering::Relaxed));
        let flags = match (self.blocked.load(Ordering::Relaxed), self.monitor.lock().is_some()) {
            (true, _) => "b",
            (_, true) => "O",
            _ => "N",
        };
        let mut line = String::new();
        let _ = write!(
            line,
            "id={} addr={} laddr={} name={} age={} idle={} flags={flags} db=0 tot-net-in={} tot-cmds={} cmd={} \
             user=default lib-name={} lib-ver={} resp={}",
            self.id,
            self.addr,
            self.local_addr,
            said.name.as_deref().unwrap_or(""),
            age.as_secs(),
            idle_ms / 1000,
            self.received_bytes.load(Ordering::Relaxed),
            self.commands.load(Ordering::Relaxed),
            if said.last_command.is_empty() { "NULL" } else { said.last_command },
            said.lib_name,
            said.lib_version,
            self.protocol.load(Ordering::Relaxed),
        );
        if let Some(topics) = session {
            let _ = write!(line, " topics={topics} missing-topics={}", missing.join(","));
        }
        line
    }
}

/// A line as Redis's MONITOR writes it; arguments that may be secrets are hidden.
fn monitor_line(from: &ClientInfo, args: &[&[u8]]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = format!("+{}.{:06} [0 {}]", now.as_secs(), now.subsec_micros(), from.addr);
    let mut hidden = 0;
    for (index, arg) in args.iter().enumerate() {
        let hide = if hidden > 0 {
            hidden -= 1;
            true
        } else {
            let is_auth = arg.eq_ignore_ascii_case(b"AUTH");
            if index == 0 && is_auth {
                hidden = usize::MAX;
            } else if is_auth
                && args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"HELLO"))
            {
                hidden = 2;
            }
            false
        };
        let shown = arg.get(..MONITOR_ARG_BYTES_MAX).unwrap_or(arg);
        if hide {
            line.push_str(" \"(redacted)\"");
        } else {
            let _ = write!(line, " \"{}\"", shown.escape_ascii());
        }
        if shown.len() < arg.len() {
            let _ = write!(line, "... ({} more bytes)", arg.len() - shown.len());
        }
    }
    line.push_str("\r\n");
    line
}
