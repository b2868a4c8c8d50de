//! A named query over HTTP and RESP, and redis-server's GET of a value of the same size, at request rates that grow: requests
//! are sent when they are due, whether earlier ones are answered or not, and their latency counts from then.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::Result;
use crate::common::argument;
use crate::resp::encode;
use crate::server::{Kind, PATIENCE, Recipe, eventually};
use crate::topic::{JSON, keeping, rows_kept};

/// Requests per second.
const RATES: [u32; 4] = [1_000, 2_000, 5_000, 10_000];

/// The window that is asked: some 100,000 rows.
const WINDOW: &str = "8MiB";

/// How long each rate is kept.
const STEP: Duration = Duration::from_secs(5);

const CONNECTIONS: usize = 64;

/// Messages per second that are produced meanwhile.
const INGEST_RATE: u32 = 2_000;

/// Time between two sends of those.
const INGEST_TICK: Duration = Duration::from_millis(10);

const QUERY: &str = "select count(*) as n, max(payload.price) as price from live.\\\"flight-json\\\" where payload.symbol = $symbol";

pub fn measure(recipe: &Recipe, brokers: SocketAddr) -> Result<()> {
    let parameters = argument("--parameters").and_then(|text| text.parse().ok()).unwrap_or(10);
    let age = argument("--max-age").unwrap_or_else(|| "1s".to_owned());
    let file = recipe.dir.join("queries.toml");
    let text = format!("[queries.of]\nsql = \"{QUERY}\"\nmax-age = \"{age}\"\n");
    std::fs::write(&file, text).map_err(|why| format!("{}: {why}", file.display()))?;
    let mut recipe = keeping(recipe, JSON, WINDOW);
    recipe.arguments.extend(["-c".to_owned(), file.display().to_string()]);
    let karrow = recipe.start()?;
    let redis_recipe = Recipe {
        kind: Kind::Redis,
        name: "redis",
        program: "redis-server".into(),
        brokers: None,
        arguments: Vec::new(),
        ..recipe.clone()
    };
    let redis = redis_recipe.start()?;
    eventually("rows in the window", PATIENCE, || {
        Ok((rows_kept(&karrow, JSON)? > 0).then_some(()))
    })?;
    karrow.process.await_quiet()?;
    let rows = rows_kept(&karrow, JSON)?;
    let symbols: Vec<String> = (0..parameters).map(|n| format!("SYM{}", 10 + n % 90)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|why| why.to_string())?;

    let asked = |symbol: &String| command(&["SQL.CALL", "of", "symbol", symbol]);
    let over_resp = Target {
        addr: karrow.ports.redis,
        requests: symbols.iter().map(asked).collect(),
        is_http: false,
    };
    let asked = |symbol: &String| {
        format!("GET /v1/queries/of?symbol={symbol} HTTP/1.1\r\nHost: karrow\r\n\r\n").into_bytes()
    };
    let over_http = Target {
        addr: karrow.ports.http,
        requests: symbols.iter().map(asked).collect(),
        is_http: true,
    };
    // What Redis answers is as long as what karrow answers.
    let answer = runtime.block_on(over_resp.once())?;
    for symbol in &symbols {
        redis.client()?.call(&["SET", symbol, &"x".repeat(answer)])?;
    }
    let asked = |symbol: &String| command(&["GET", symbol]);
    let of_redis = Target {
        addr: redis.ports.redis,
        requests: symbols.iter().map(asked).collect(),
        is_http: false,
    };

    let is_over = Arc::new(AtomicBool::new(false));
    let producing = produce(brokers, is_over.clone())?;
    println!(
        "\nnamed query over {rows} rows, {INGEST_RATE} messages/s coming in, {parameters} values of its parameter, \
         max-age {age}, {CONNECTIONS} connections; p50 / p95 / p99 in ms, answered / asked"
    );
    println!("| requests/s | over RESP | over HTTP | Redis GET |\n|---|---|---|---|");
    for rate in RATES {
        let mut cells = Vec::new();
        for target in [&over_resp, &over_http, &of_redis] {
            cells.push(runtime.block_on(target.load(rate))?.to_string());
        }
        println!("| {rate} | {} |", cells.join(" | "));
    }
    is_over.store(true, Ordering::Release);
    producing.join().map_err(|_| "the producer panicked".to_owned())?
}

fn command(words: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(words, &mut out);
    out
}

/// Produces to the topic at a steady rate until it is over.
fn produce(
    brokers: SocketAddr,
    is_over: Arc<AtomicBool>,
) -> Result<std::thread::JoinHandle<Result<()>>> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers.to_string())
        .create()
        .map_err(|why| why.to_string())?;
    Ok(std::thread::spawn(move || {
        let began = Instant::now();
        let mut sent = 0;
        while !is_over.load(Ordering::Acquire) {
            let due = (began.elapsed().as_secs_f64() * f64::from(INGEST_RATE)) as u32;
            while sent < due {
                let payload = format!(
                    r#"{{"id":{sent},"symbol":"SYM{}","price":1.5,"open":true}}"#,
                    10 + sent % 90
                );
                let record = BaseRecord::<(), _>::to(JSON).payload(&payload);
                producer.send(record).map_err(|(why, _)| why.to_string())?;
                sent += 1;
            }
            producer.poll(Duration::ZERO);
            std::thread::sleep(INGEST_TICK);
        }
        producer.flush(Duration::from_secs(10)).map_err(|why| why.to_string())
    }))
}

/// A server, and what it is asked in turn.
struct Target {
    addr: SocketAddr,
    requests: Vec<Vec<u8>>,
    is_http: bool,
}

impl Target {
    /// The length of an answer.
    async fn once(&self) -> Result<usize> {
        let mut client = Client::connect(self.addr, self.is_http).await?;
        let first = self.requests.first().ok_or("no requests")?;
        client.ask(first).await
    }

    /// Asks so many times a second.
    async fn load(&self, rate: u32) -> Result<Latencies> {
        let count = u64::from(rate) * STEP.as_secs();
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(Client::connect(self.addr, self.is_http).await?);
        }
        let (requests, local) = (Arc::new(self.requests.clone()), tokio::task::LocalSet::new());
        let began = tokio::time::Instant::now() + Duration::from_millis(100);
        let mut running = Vec::new();
        for (lane, mut client) in (0..).zip(clients) {
            let requests = requests.clone();
            running.push(local.spawn_local(async move {
                let mut taken = Vec::new();
                for number in (lane..count).step_by(CONNECTIONS) {
                    if began.elapsed() > STEP * 3 {
                        // It does not keep up; what was answered tells how far.
                        break;
                    }
                    let due = began + Duration::from_secs_f64(number as f64 / f64::from(rate));
                    tokio::time::sleep_until(due).await;
                    let request = &requests[number as usize % requests.len()];
                    client.ask(request).await?;
                    taken.push(due.elapsed());
                }
                Ok::<_, String>(taken)
            }));
        }
        local
            .run_until(async {
                let mut all = Vec::new();
                for lane in running {
                    all.extend(lane.await.map_err(|why| why.to_string())??);
                }
                all.sort_unstable();
                let wall = began.elapsed();
                Ok(Latencies { all, wall })
            })
            .await
    }
}

struct Client {
    stream: BufReader<TcpStream>,
    is_http: bool,
}

impl Client {
    async fn connect(addr: SocketAddr, is_http: bool) -> Result<Self> {
        let stream = TcpStream::connect(addr).await.map_err(|why| format!("{addr}: {why}"))?;
        stream.set_nodelay(true).map_err(|why| why.to_string())?;
        Ok(Self { stream: BufReader::new(stream), is_http })
    }

    /// Sends a request and takes its answer, which must be a good one; returns the length of its body.
    async fn ask(&mut self, request: &[u8]) -> Result<usize> {
        let failed = |why: std::io::Error| format!("asking: {why}");
        self.stream.get_mut().write_all(request).await.map_err(failed)?;
        let mut line = String::new();
        self.stream.read_line(&mut line).await.map_err(failed)?;
        let mut rest = 2;
        let length = if self.is_http {
            if !line.starts_with("HTTP/1.1 200") {
                return Err(format!("HTTP answered {line:?}"));
            }
            rest = 0;
            let mut headers = BTreeMap::new();
            loop {
                let mut header = String::new();
                self.stream.read_line(&mut header).await.map_err(failed)?;
                match header.trim_end().split_once(": ") {
                    Some((name, value)) => {
                        headers.insert(name.to_ascii_lowercase(), value.to_owned())
                    }
                    None => break,
                };
            }
            headers.get("content-length").and_then(|length| length.parse::<usize>().ok())
        } else {
            line.trim_end().strip_prefix('$').and_then(|length| length.parse::<usize>().ok())
        };
        let length = length.ok_or_else(|| format!("{line:?} has no length"))?;
        let mut body = vec![0; length + rest];
        self.stream.read_exact(&mut body).await.map_err(failed)?;
        Ok(length)
    }
}

struct Latencies {
    /// In their order.
    all: Vec<Duration>,
    wall: Duration,
}

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |part: f64| {
            let at = (self.all.len() as f64 * part) as usize;
            self.all.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
        };
        let rate = self.all.len() as f64 / self.wall.as_secs_f64();
        write!(f, "{:.1} / {:.1} / {:.1} ms, {rate:.0}/s", of(0.5), of(0.95), of(0.99))
    }
}
