//! The server processes: started on free ports, awaited with a deadline, watched through /proc, always stopped.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::resp::Client;
use crate::sys;

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(10);
/// How long a reply outside the measurements may take: the first consumer group of a fresh broker waits for the
/// broker to create its offsets topic.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `fact` gives a value; `what` names it when the deadline passes.
pub fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut fact: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(value) = fact()? {
            return Ok(value);
        }
        if sys::interrupted() {
            return Err(format!("interrupted while waiting for {what}"));
        }
        if began.elapsed() > deadline {
            return Err(format!("{what}: not within {} s", deadline.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A loopback address nobody listens on at this moment.
pub fn free_addr() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|why| format!("looking for a free port: {why}"))
}

/// A child process with its log; stopped when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints goes to `<dir>/<name>.log`.
    pub fn spawn(name: &str, dir: &Path, mut command: Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = fs::File::create(&log).map_err(|why| format!("{}: {why}", log.display()))?;
        let err = out.try_clone().map_err(|why| format!("{}: {why}", log.display()))?;
        sys::bind_to_parent(&mut command);
        let child =
            command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().map_err(|why| {
                format!("starting {name} ({}): {why}", command.get_program().display())
            })?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the log has a line with `text`.
    pub fn await_log(&mut self, text: &str) -> Result<()> {
        let log = self.log.clone();
        self.await_ready(|| {
            fs::read(&log).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
        })
    }

    fn await_ready(&mut self, ready: impl Fn() -> bool) -> Result<()> {
        let what = format!("{} to be ready", self.name);
        eventually(&what, START, || match self.child.try_wait() {
            Ok(None) => Ok(ready().then_some(())),
            Ok(Some(status)) => Err(format!("{} ended with {status}", self.name)),
            Err(why) => Err(format!("waiting for {}: {why}", self.name)),
        })
        .map_err(|why| {
            if sys::interrupted() {
                why
            } else {
                format!("{why}; it last said:\n{}", self.last_words())
            }
        })
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// CPU time used so far.
    pub fn cpu(&self) -> Result<Duration> {
        sys::cpu_of(self.pid()).map_err(|why| format!("CPU clock of {}: {why}", self.name))
    }

    /// Waits until the process has stopped working: 100 ms in which it used less than 3 % of a core.
    pub fn await_quiet(&self) -> Result<()> {
        let window = Duration::from_millis(100);
        eventually(&format!("{} to become quiet", self.name), PATIENCE, || {
            let before = self.cpu()?;
            std::thread::sleep(window);
            Ok((self.cpu()?.saturating_sub(before) < window * 3 / 100).then_some(()))
        })
    }

    /// What the process holds now.
    pub fn footprint(&self) -> Result<Footprint> {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).map_err(|why| format!("{path}: {why}"))?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| {
                    line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok()
                })
                .ok_or_else(|| format!("{path} has no {name}"))
        };
        let fds = format!("/proc/{}/fd", self.pid());
        let descriptors = fs::read_dir(&fds).map_err(|why| format!("{fds}: {why}"))?.count() as u64;
        Ok(Footprint { rss_kib: field("VmRSS:")?, threads: field("Threads:")?, descriptors })
    }

    /// Ends the process at once, for those that have nothing to lose.
    pub fn kill(mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    fn ended_within(&mut self, deadline: Duration) -> bool {
        let began = Instant::now();
        while began.elapsed() < deadline {
            if !self.is_running() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        sys::terminate(self.pid());
        if !self.ended_within(STOP) {
            eprintln!(
                "gateway bench: {} ignored SIGTERM for {} s and is killed",
                self.name,
                STOP.as_secs()
            );
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Memory, threads and descriptors of a process.
#[derive(Clone, Copy)]
pub struct Footprint {
    pub rss_kib: u64,
    pub threads: u64,
    pub descriptors: u64,
}

/// Which program answers on the Redis port, and so what its commands are called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Karrow,
    Redis,
}

/// How to start a server that speaks Redis's protocol.
#[derive(Clone)]
pub struct Recipe {
    pub kind: Kind,
    pub name: &'static str,
    pub program: PathBuf,
    /// karrow's broker; Redis has none.
    pub brokers: Option<SocketAddr>,
    /// Cores the server may use.
    pub cores: Vec<usize>,
    pub dir: PathBuf,
    /// More arguments of karrow.
    pub arguments: Vec<String>,
}

impl Recipe {
    fn command(&self, ports: Ports) -> Result<Command> {
        let mut command = Command::new(&self.program);
        let port = ports.redis.port().to_string();
        command.current_dir(&self.dir);
        match self.kind {
            Kind::Redis => command.args([
                "--port",
                &port,
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ]),
            Kind::Karrow => {
                let brokers =
                    self.brokers.ok_or("karrow is measured with a broker, and none was started")?;
                let http = ports.http.port().to_string();
                let flight = ports.flight.port().to_string();
                command.args([
                    "serve",
                    "--host",
                    "127.0.0.1",
                    "-p",
                    &port,
                    "--http-port",
                    &http,
                    "--flight-port",
                    &flight,
                    "--brokers",
                ]);
                command.arg(brokers.to_string()).args(&self.arguments)
            }
        };
        sys::keep_on(&mut command, self.cores.clone());
        Ok(command)
    }

    /// Starts the server and waits until it answers.
    pub fn start(&self) -> Result<Server> {
        let ports = Ports::free()?;
        let mut process = Process::spawn(self.name, &self.dir, self.command(ports)?)?;
        process.await_ready(|| {
            Client::connect(ports.redis, PATIENCE)
                .and_then(|mut client| client.call(&["PING"]))
                .is_ok()
        })?;
        Ok(Server { kind: self.kind, process, ports })
    }

    /// From before fork to the first PONG; the server is killed afterwards.
    pub fn time_to_first_pong(&self) -> Result<Duration> {
        let ports = Ports::free()?;
        let command = self.command(ports)?;
        let began = Instant::now();
        let mut process = Process::spawn(&format!("{}-start", self.name), &self.dir, command)?;
        let elapsed = loop {
            if ping(ports.redis).is_ok() {
                break began.elapsed();
            }
            if !process.is_running() || began.elapsed() > START || sys::interrupted() {
                return Err(format!(
                    "{}: no PONG; it last said:\n{}",
                    self.name,
                    process.last_words()
                ));
            }
            std::thread::sleep(Duration::from_micros(50));
        };
        process.kill();
        Ok(elapsed)
    }
}

fn ping(addr: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    if &answer == b"+PONG\r\n" { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// A server that speaks Redis's protocol and answers.
pub struct Server {
    pub kind: Kind,
    pub process: Process,
    /// Where karrow listens; of Redis's only the first means something.
    pub ports: Ports,
}

/// Addresses of one server.
#[derive(Clone, Copy)]
pub struct Ports {
    pub redis: SocketAddr,
    pub http: SocketAddr,
    pub flight: SocketAddr,
}

impl Ports {
    fn free() -> Result<Self> {
        Ok(Self { redis: free_addr()?, http: free_addr()?, flight: free_addr()? })
    }
}

impl Server {
    /// A connection for set-up.
    pub fn client(&self) -> Result<Client> {
        Client::connect(self.ports.redis, PATIENCE)
    }
}
