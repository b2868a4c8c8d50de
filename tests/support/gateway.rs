//! A karrow of the test's own, in this process.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clap::Parser;
use karrow::app::{self, Running};
use karrow::config::Config;
#[cfg(feature = "embedded-broker")]
use karrow::config::KafkaOptions;
use karrow::config::flags::{Cli, Command};
#[cfg(feature = "embedded-broker")]
use karrow::kafka::admin::Admin;
use tokio::runtime::Runtime;

use super::{Client, DEADLINE, Kafka, Reply, eventually};

/// A running gateway; stops without ceremony when it is dropped.
pub struct Karrow {
    runtime: Option<Runtime>,
    running: Option<Running>,
    resp: SocketAddr,
    http: SocketAddr,
    flight: SocketAddr,
    /// Kafka's bootstrap servers.
    #[cfg(feature = "embedded-broker")]
    pub brokers: String,
    _dir: Option<tempfile::TempDir>,
}

/// What a karrow of a test starts with.
fn configured(flags: &[&str], change: impl FnOnce(&mut Config)) -> (Runtime, Config) {
    let any_port = ["karrow", "serve", "--port", "0", "--http-port", "0", "--flight-port", "0"];
    let line = any_port.iter().chain(flags);
    let Command::Serve(flags) = Cli::try_parse_from(line).expect("flags").command else {
        panic!("serve was asked for");
    };
    let (mut config, _) = Config::load(*flags).expect("a configuration");
    for (name, value) in [
        ("session.timeout.ms", "6000"),
        ("heartbeat.interval.ms", "100"),
        ("max.poll.interval.ms", "60000"),
        ("auto.commit.interval.ms", "100"),
        ("fetch.wait.max.ms", "20"),
        ("reconnect.backoff.ms", "10"),
        ("reconnect.backoff.max.ms", "200"),
    ] {
        config.kafka.consumer.insert(name.to_owned(), value.to_owned());
    }
    for (name, value) in [("reconnect.backoff.ms", "10"), ("reconnect.backoff.max.ms", "200")] {
        config.kafka.producer.insert(name.to_owned(), value.to_owned());
    }
    change(&mut config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    (runtime, config)
}

impl Karrow {
    /// In front of `kafka`, with settings that make tests quick.
    pub fn start(kafka: &Kafka) -> Self {
        Self::with(kafka, &[], |_| {})
    }

    /// The same with more flags of `serve`, and a configuration to be changed.
    pub fn with(kafka: &Kafka, flags: &[&str], change: impl FnOnce(&mut Config)) -> Self {
        Self::at(&kafka.servers(), flags, change)
    }

    /// In front of the Kafka at `servers`.
    pub fn at(servers: &str, flags: &[&str], change: impl FnOnce(&mut Config)) -> Self {
        let flags = [&["--brokers", servers], flags].concat();
        Self::run(&flags, None, change)
    }

    /// With its own broker.
    #[cfg(feature = "embedded-broker")]
    pub fn embedded(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().to_str().expect("UTF-8").to_owned();
        let flags = [&["--embedded", "--kafka-port", "0", "--data-dir", &path], flags].concat();
        Self::run(&flags, Some(dir), |_| {})
    }

    fn run(
        flags: &[&str],
        dir: Option<tempfile::TempDir>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let (runtime, config) = configured(flags, change);
        // A test may be asynchronous itself.
        let running = tokio::task::block_in_place(|| runtime.block_on(app::start(config)));
        let running = running.expect("karrow starts");
        let at = running.addresses().clone();
        Self {
            runtime: Some(runtime),
            running: Some(running),
            resp: at.resp,
            http: at.http.expect("HTTP is on"),
            flight: at.flight.expect("Flight is on"),
            #[cfg(feature = "embedded-broker")]
            brokers: at.brokers,
            _dir: dir,
        }
    }

    /// Why it does not start with these flags.
    pub fn refused(flags: &[&str]) -> String {
        Self::refused_with(flags, |_| {})
    }

    /// Why it does not start with these flags, and a configuration to be changed.
    pub fn refused_with(flags: &[&str], change: impl FnOnce(&mut Config)) -> String {
        let (runtime, config) = configured(flags, change);
        match runtime.block_on(app::start(config)) {
            Ok(_) => panic!("it has started"),
            Err(error) => error.to_string(),
        }
    }

    pub fn resp_addr(&self) -> SocketAddr {
        self.resp
    }

    pub fn flight_addr(&self) -> SocketAddr {
        self.flight
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.resp)
    }

    /// A connection with a name.
    pub fn named(&self, name: &str) -> Client {
        let mut client = self.connect();
        assert_eq!(client.call(&["CLIENT", "SETNAME", name]), Reply::Bulk(b"OK".to_vec()));
        client
    }

    /// Begins a graceful stop on another thread; joining it waits for the end.
    pub fn stop(&mut self) -> std::thread::JoinHandle<()> {
        let (runtime, running) = (self.runtime.take(), self.running.take());
        std::thread::spawn(move || {
            let runtime = runtime.expect("it runs");
            runtime.block_on(running.expect("it runs").stop());
            runtime.shutdown_background();
        })
    }

    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Status and body of a page.
    pub fn get(&self, path: &str) -> (u16, String) {
        Self::get_at(self.http, path)
    }

    /// The same, by one address of several.
    pub fn get_at(http: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(http).expect("HTTP accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let request = format!("GET {path} HTTP/1.1\r\nHost: karrow\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("HTTP reads");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("HTTP answers");
        let (head, body) = page.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// Every sample of `/metrics`, with its labels in its name.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let (status, page) = self.get("/metrics");
        assert_eq!(status, 200, "{page}");
        page.lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').expect("a name and a value");
                (name.to_owned(), value.parse().expect("a number"))
            })
            .collect()
    }

    /// To create and delete topics, in its Kafka.
    #[cfg(feature = "embedded-broker")]
    pub fn admin(&self) -> Admin {
        let servers = ("bootstrap.servers".to_owned(), self.brokers.clone());
        Admin::new(&KafkaOptions::from([servers]), DEADLINE).expect("a client")
    }

    /// One sample; 0 while it does not exist.
    pub fn metric(&self, name: &str) -> f64 {
        self.metrics().get(name).copied().unwrap_or(0.0)
    }

    /// Waits until a sample has a value.
    #[track_caller]
    pub fn await_metric(&self, name: &str, is: impl Fn(f64) -> bool) {
        let mut last = 0.0;
        eventually(&format!("{name} (see the value in the panic before)"), || {
            last = self.metric(name);
            is(last).then_some(())
        });
    }

    /// The lines of `CLIENT LIST`, seen from a connection of its own.
    pub fn clients(&self) -> Vec<String> {
        let list = self.connect().say("CLIENT LIST");
        list.text().lines().map(str::to_owned).collect()
    }

    /// Waits until the client called `name` is blocked in a pop.
    #[track_caller]
    pub fn await_blocked(&self, name: &str) {
        eventually(&format!("{name} to block"), || {
            self.clients()
                .iter()
                .any(|line| line.contains(&format!(" name={name} ")) && line.contains(" flags=b "))
                .then_some(())
        });
    }
}

impl Drop for Karrow {
    fn drop(&mut self) {
        if let (Some(runtime), Some(running)) = (self.runtime.take(), self.running.take()) {
            // Connections end, so that consumers do not outlive the test's Kafka for long.
            let _ = tokio::task::block_in_place(|| {
                runtime.block_on(async {
                    tokio::time::timeout(Duration::from_secs(10), running.stop()).await
                })
            });
            runtime.shutdown_background();
        }
    }
}
