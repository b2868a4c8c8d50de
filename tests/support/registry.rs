//! A schema registry of the test's own: it knows what it is told, and can be away.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub struct Registry {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// What it answers, by path.
    answers: Mutex<HashMap<String, String>>,
    is_away: AtomicBool,
    requests: AtomicUsize,
}

impl Registry {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever hangs up early is no concern of the stub's.
                let _ = answer(&stream, &serving);
            }
        });
        Self { addr, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Registers a schema under an id.
    pub fn put(&self, id: u32, kind: &str, schema: &str) {
        let answer = serde_json::json!({"schemaType": kind, "schema": schema});
        self.answer(&format!("/schemas/ids/{id}"), &answer);
    }

    /// Answers a request for `path`.
    pub fn answer(&self, path: &str, answer: &serde_json::Value) {
        let mut answers = self.shared.answers.lock().expect("no poison");
        answers.insert(path.to_owned(), answer.to_string());
    }

    /// While it is away every answer is an error.
    pub fn set_away(&self, away: bool) {
        self.shared.is_away.store(away, Ordering::SeqCst);
    }

    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let path = request.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let found = shared.answers.lock().expect("no poison").get(path).cloned();
    let (status, body) = match found {
        _ if shared.is_away.load(Ordering::SeqCst) => ("503 Service Unavailable", String::new()),
        Some(body) => ("200 OK", body),
        None => {
            ("404 Not Found", r#"{"error_code":40403,"message":"Schema not found"}"#.to_owned())
        }
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
