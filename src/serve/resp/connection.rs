//! One connection: reads, runs commands in order, writes, and waits for whatever comes first.

use std::future::{Future, pending};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::Gateway;
use super::clients::ClientInfo;
use super::command::{Client, Outcome, Wait, execute};
use super::frame::{FrameLimits, Scanner};
use super::reply::{Output, Value};

/// Room made for one read.
const READ_BYTES: usize = 16 * 1024;

/// Replies are sent once they are this long, even if more commands are at hand.
const WRITE_BYTES: usize = 64 * 1024;

/// Parts of replies that are sent at once; an Arrow batch has two or three for each column.
const SLICES_MAX: usize = 64;

/// After so many commands the connection lets others on its thread run, however many are at hand: EXEC may have
/// millions.
const COMMANDS_AT_ONCE: usize = 1000;

/// While a pop waits, the commands behind it are read ahead up to here.
const READ_AHEAD_BYTES_MAX: usize = 1 << 20;

/// Replies to commands that take nothing from Kafka may grow this far beyond the limit for those that do: a
/// client that sends all of a pipeline before it reads must not stall.
const OUTPUT_FACTOR: usize = 64;

/// How long a connection that we close waits for its peer to close too, so that what the peer sent meanwhile
/// does not make the system reset the connection before the peer has read our last reply.
const LINGER: std::time::Duration = std::time::Duration::from_millis(500);

/// How often a connection whose read-ahead is full looks whether its peer has gone.
const HANG_UP_CHECK: std::time::Duration = std::time::Duration::from_secs(1);

/// Serves a connection, registered as `info`, to its end.
pub async fn run(stream: TcpStream, info: Arc<ClientInfo>, gateway: Arc<Gateway>) {
    let peer = info.addr;
    // Made first, so that it is dropped last: nobody sees that the connection is gone before its session has ended, not even
    // after a panic.
    let _registered = Registered::new(&info, &gateway);
    let limits = FrameLimits {
        bulk_bytes_max: gateway.config.bulk_bytes_max,
        request_bytes_max: gateway.config.request_bytes_max,
    };
    let mut connection = Connection {
        stream,
        input: BytesMut::new(),
        scanner: Scanner::new(limits),
        out: Output::default(),
        client: Client::new(gateway.clone(), info.clone()),
        info: info.clone(),
        gateway: gateway.clone(),
        ended: false,
    };
    if let Err(error) = connection.serve().await {
        tracing::debug!(%peer, %error, "connection");
    }
}

/// A connection that others can see.
struct Registered {
    info: Arc<ClientInfo>,
    gateway: Arc<Gateway>,
}

impl Registered {
    fn new(info: &Arc<ClientInfo>, gateway: &Arc<Gateway>) -> Self {
        gateway.metrics.connections.inc();
        Self { info: info.clone(), gateway: gateway.clone() }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.gateway.clients.remove(&self.info);
        self.gateway.metrics.connections.dec();
    }
}

struct Connection {
    stream: TcpStream,
    input: BytesMut,
    scanner: Scanner,
    out: Output,
    client: Client,
    info: Arc<ClientInfo>,
    gateway: Arc<Gateway>,
    /// The peer has closed its writing side.
    ended: bool,
}

/// Why the execution of commands paused.
enum Step {
    /// All that was read is done.
    Input,
    /// It is the turn of others.
    Yield,
    /// Too much waits to be sent.
    Flush,
    /// A command waits, see [`Outcome::Wait`].
    Wait(Wait),
    /// A command's reply is computed elsewhere.
    /// And whether it ends when the peer ends its side.
    Run(Pin<Box<dyn Future<Output = Value> + Send>>, bool),
    Close,
}

/// What ended a wait.
enum Woken<T> {
    Done(T),
    TimedOut,
    Stopping,
    /// The peer is gone, or the connection was killed.
    Gone,
}

impl Connection {
    async fn serve(&mut self) -> io::Result<()> {
        loop {
            match self.execute() {
                Step::Input => {
                    self.write()?;
                    if !self.read_more().await? {
                        return Ok(());
                    }
                }
                Step::Yield => {
                    self.write()?;
                    tokio::task::yield_now().await;
                    if self.is_over() {
                        return Ok(());
                    }
                }
                Step::Flush => {
                    if !self.flush(self.gateway.config.output_bytes_max / 2).await? {
                        return Ok(());
                    }
                }
                Step::Close => return self.close().await,
                Step::Wait(Wait { until, deadline, pops }) => {
                    match self.wait(until, deadline, pops).await? {
                        Woken::Done(()) | Woken::Stopping => {}
                        Woken::TimedOut => {
                            // A batch that has waited long enough to fill up is no end of the pop.
                            if let Some(resumed) = &mut self.client.resumed {
                                resumed.timed_out =
                                    resumed.deadline.is_some_and(|end| end <= Instant::now());
                            }
                        }
                        Woken::Gone => return Ok(()),
                    }
                }
                Step::Run(mut future, ends_with_peer) => loop {
                    match self.wait(&mut future, None, ends_with_peer).await? {
                        Woken::Done(value) => {
                            self.out.value(&value);
                            break;
                        }
                        Woken::Stopping | Woken::TimedOut => {}
                        Woken::Gone => return Ok(()),
                    }
                },
            }
        }
    }

    /// Runs commands until something has to be waited for.
    fn execute(&mut self) -> Step {
        for _ in 0..COMMANDS_AT_ONCE {
            if self.out.len() > self.gateway.config.output_bytes_max.saturating_mul(OUTPUT_FACTOR) {
                return Step::Flush;
            }
            if self.out.sendable_len() > WRITE_BYTES
                && let Err(error) = self.write()
            {
                tracing::debug!(%error, "connection");
                return Step::Close;
            }
            if let Some(args) = self.client.next_of_exec() {
                let borrowed: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
                let outcome = execute(&mut self.client, &borrowed, &mut self.out);
                let step = self.after(outcome);
                if matches!(step, Some(Step::Wait(_) | Step::Flush)) {
                    self.client.repeat_of_exec(args);
                }
                match step {
                    None => continue,
                    Some(step) => return step,
                }
            }
            let len = match self.scanner.scan(&self.input) {
                Ok(Some(len)) => len,
                Ok(None) => return Step::Input,
                Err(error) => {
                    self.out.error(&error.0);
                    return Step::Close;
                }
            };
            let outcome = execute(&mut self.client, &self.scanner.args(&self.input), &mut self.out);
            let step = self.after(outcome);
            if !matches!(step, Some(Step::Wait(..) | Step::Flush)) {
                self.input.advance(len);
                self.scanner.reset();
            }
            if let Some(step) = step {
                return step;
            }
        }
        Step::Yield
    }

    fn after(&mut self, outcome: Outcome) -> Option<Step> {
        match outcome {
            Outcome::Done => None,
            // Its place in the output is taken.
            Outcome::Ticket(_) => None,
            Outcome::Close => Some(Step::Close),
            Outcome::Flush => Some(Step::Flush),
            Outcome::Wait(wait) => Some(Step::Wait(wait)),
            Outcome::Run(future) => Some(Step::Run(future, false)),
            Outcome::Ask(future) => Some(Step::Run(future, true)),
        }
    }

    /// Sends what the socket takes now.
    fn write(&mut self) -> io::Result<()> {
        if self.out.has_pending() {
            self.gateway.counters.resolve(&mut self.out);
        }
        while self.out.sendable_len() > 0 {
            let written = match self.out.only() {
                Some(bytes) => self.stream.try_write(bytes),
                None => {
                    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                    let count = self.out.sendable(&mut slices);
                    self.stream.try_write_vectored(slices.get(..count).unwrap_or_default())
                }
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.out.sent(count);
                    self.gateway.metrics.sent_bytes.inc_by(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes room for a read. Of a large argument that was announced, room is made as it really comes.
    fn make_room(&mut self) {
        let announced = self.scanner.wanted().unwrap_or(0).saturating_sub(self.input.len());
        self.input.reserve(announced.min(self.input.len()).max(READ_BYTES));
    }

    /// Books what a read brought.
    fn received(&self, count: usize) {
        self.gateway.metrics.received_bytes.inc_by(count as u64);
        self.info.received_bytes.fetch_add(count as u64, Ordering::Relaxed);
        let active = self.info.since.elapsed().as_millis() as u64;
        self.info.active_ms.store(active, Ordering::Relaxed);
    }

    /// Waits for more commands, sending meanwhile; `false` when the connection is over.
    async fn read_more(&mut self) -> io::Result<bool> {
        if self.input.is_empty() && self.input.capacity() > 4 * READ_AHEAD_BYTES_MAX {
            self.input = BytesMut::new();
        }
        loop {
            if self.is_over() {
                return Ok(false);
            }
            if self.ended {
                // A peer that only closed its writing side still gets its replies.
                self.flush(0).await?;
                return Ok(false);
            }
            if self.gateway.is_stopping() {
                self.close().await?;
                return Ok(false);
            }
            self.make_room();
            let sending = self.out.sendable_len() > 0;
            let (mut reader, writer) = self.stream.split();
            tokio::select! {
                biased;
                // Unlike readable() and try_read(), this knows after a short read that the socket is empty, and
                // saves the system call that would say so.
                count = reader.read_buf(&mut self.input) => {
                    let count = count?;
                    self.received(count);
                    if count > 0 {
                        return Ok(true);
                    }
                    self.ended = true;
                }
                () = self.info.attention.notified() => self.look_around()?,
                writable = writer.writable(), if sending => {
                    writable?;
                    self.write()?;
                }
            }
        }
    }

    /// Waits until at most `rest` bytes wait to be sent, and for 0 until every reply is decided; `false` when
    /// the connection is over.
    async fn flush(&mut self, rest: usize) -> io::Result<bool> {
        loop {
            if self.gateway.is_stopping() {
                // The session commits and leaves while the peer may still be reading.
                self.client.end_session();
            }
            self.write()?;
            if self.out.is_empty() || (rest > 0 && self.out.len() <= rest) {
                return Ok(true);
            }
            if self.is_over() {
                return Ok(false);
            }
            let sending = self.out.sendable_len() > 0;
            tokio::select! {
                writable = self.stream.writable(), if sending => writable?,
                () = self.info.attention.notified() => self.look_around()?,
            }
        }
    }

    /// Sends every reply, ends the session, and closes.
    async fn close(&mut self) -> io::Result<()> {
        if !self.flush(0).await? {
            return Ok(());
        }
        self.client.end_session();
        SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write)?;
        let rest = async {
            loop {
                self.input.clear();
                self.make_room();
                if self.stream.read_buf(&mut self.input).await? == 0 {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(LINGER, rest).await.unwrap_or(Ok(()))
    }

    /// Waits for `future`, sending replies and watching the peer meanwhile. A pop ends when the peer ends its side, as
    /// in Redis; anything else still gets its reply.
    async fn wait<T>(
        &mut self,
        mut future: impl Future<Output = T> + Unpin,
        deadline: Option<Instant>,
        pops: bool,
    ) -> io::Result<Woken<T>> {
        let mut timeout = std::pin::pin!(async move {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => pending().await,
            }
        });
        let was_stopping = self.gateway.is_stopping();
        self.info.blocked.store(pops, Ordering::Relaxed);
        let woken = loop {
            self.write()?;
            if self.is_over() {
                break Woken::Gone;
            }
            if !was_stopping && self.gateway.is_stopping() {
                break Woken::Stopping;
            }
            let sending = self.out.sendable_len() > 0;
            let ahead = self.input.len() < READ_AHEAD_BYTES_MAX;
            self.make_room();
            let (mut reader, writer) = self.stream.split();
            tokio::select! {
                biased;
                done = &mut future => break Woken::Done(done),
                () = self.info.attention.notified() => self.look_around()?,
                () = &mut timeout => break Woken::TimedOut,
                count = reader.read_buf(&mut self.input), if ahead && !self.ended => {
                    let count = count?;
                    self.received(count);
                    if count == 0 {
                        self.ended = true;
                        if pops {
                            break Woken::Gone;
                        }
                    }
                }
                () = tokio::time::sleep(HANG_UP_CHECK), if !ahead && pops => {
                    if has_hung_up(&self.stream) {
                        break Woken::Gone;
                    }
                }
                writable = writer.writable(), if sending => writable?,
            }
        };
        self.info.blocked.store(false, Ordering::Relaxed);
        Ok(woken)
    }

    /// Something was notified: replies are decided, lines of MONITOR came, or the gateway's state changed.
    fn look_around(&mut self) -> io::Result<()> {
        // The feed has a limit, beyond which a client that does not read is disconnected: do not empty it into a
        // buffer that has none.
        if self.out.len() <= self.gateway.config.output_bytes_max {
            let lines = self.info.monitored();
            if !lines.is_empty() {
                self.out.raw(&lines);
            }
        }
        self.write()
    }

    fn is_over(&self) -> bool {
        self.info.killed.load(Ordering::Acquire)
    }
}

/// Whether the peer has closed its side, seen without reading what it sent before.
fn has_hung_up(stream: &TcpStream) -> bool {
    use std::os::fd::AsRawFd;
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one valid pollfd; a timeout of 0 never blocks.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}
