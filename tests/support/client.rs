//! A Redis client of raw bytes, whose decoder is not karrow's.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use redis_protocol::resp2::decode::decode as decode2;
use redis_protocol::resp2::types::OwnedFrame as Frame2;
use redis_protocol::resp3::decode::complete::decode as decode3;
use redis_protocol::resp3::types::OwnedFrame as Frame3;

use super::DEADLINE;

/// A reply in whatever protocol it came.
#[derive(Clone, PartialEq)]
pub enum Reply {
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Verbatim(Vec<u8>),
    Null,
    Array(Vec<Reply>),
    Map(Vec<(Reply, Reply)>),
}

/// As the tables of expectations write it: `+OK`, `-ERR …`, `:1`, `"bulk"`, `="text"`, `nil`, `[a, b]`, `{k: v}`.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Simple(text) => write!(f, "+{text}"),
            Self::Error(text) => write!(f, "-{text}"),
            Self::Int(value) => write!(f, ":{value}"),
            Self::Bulk(bytes) => write!(f, "\"{}\"", shown(bytes)),
            Self::Verbatim(bytes) => write!(f, "=\"{}\"", shown(bytes)),
            Self::Null => f.write_str("nil"),
            Self::Array(values) => {
                f.write_str("[")?;
                for (index, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
            Self::Map(pairs) => {
                f.write_str("{")?;
                for (index, (key, value)) in pairs.iter().enumerate() {
                    write!(f, "{}{key}: {value}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str("}")
            }
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

impl Reply {
    /// A bulk string's bytes.
    #[track_caller]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bulk(bytes) | Self::Verbatim(bytes) => bytes,
            other => panic!("{other} is no bulk string"),
        }
    }

    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.bytes()).expect("UTF-8")
    }

    #[track_caller]
    pub fn int(&self) -> i64 {
        match self {
            Self::Int(value) => *value,
            other => panic!("{other} is no integer"),
        }
    }

    #[track_caller]
    pub fn array(&self) -> &[Reply] {
        match self {
            Self::Array(values) => values,
            other => panic!("{other} is no array"),
        }
    }

    #[track_caller]
    pub fn error(&self) -> &str {
        match self {
            Self::Error(text) => text,
            other => panic!("{other} is no error"),
        }
    }

    pub fn is_null(&self) -> bool {
        *self == Self::Null
    }

    /// A message in rafka's form, or `None` for a null.
    #[track_caller]
    pub fn message(&self) -> Option<Message> {
        if self.is_null() {
            return None;
        }
        let [name0, topic, name1, partition, name2, offset, name3, value] = self.array() else {
            panic!("{self} has not eight elements");
        };
        let names = [name0, name1, name2, name3].map(Reply::text);
        assert_eq!(names, ["topic", "partition", "offset", "value"]);
        Some(Message {
            topic: topic.text().to_owned(),
            partition: partition.int(),
            offset: offset.int(),
            value: (!value.is_null()).then(|| value.bytes().to_vec()),
        })
    }
}

/// A message in rafka's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub partition: i64,
    pub offset: i64,
    pub value: Option<Vec<u8>>,
}

impl Message {
    /// As `RPUSH acks` takes it.
    pub fn ack(&self) -> String {
        format!("{}:{}:{}", self.topic, self.partition, self.offset)
    }

    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.value.as_deref().expect("a value")).expect("UTF-8")
    }
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    at: usize,
    resp3: bool,
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("karrow accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self { stream, input: Vec::new(), at: 0, resp3: false }
    }

    /// Decodes RESP3 from now on.
    pub fn resp3(&mut self) {
        self.resp3 = true;
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr().expect("an address")
    }

    /// Writes bytes as they are.
    #[track_caller]
    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("karrow reads");
    }

    /// Writes what the socket takes, for bytes that karrow may refuse to read.
    pub fn raw_unless_closed(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    #[track_caller]
    pub fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        self.raw(&request(args));
    }

    #[track_caller]
    pub fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Reply {
        self.send(args);
        self.reply()
    }

    /// A command whose arguments have no spaces.
    #[track_caller]
    pub fn say(&mut self, command: &str) -> Reply {
        self.call(&command.split(' ').collect::<Vec<_>>())
    }

    /// Sends without waiting for the reply.
    #[track_caller]
    pub fn start(&mut self, command: &str) {
        self.send(&command.split(' ').collect::<Vec<_>>());
    }

    /// The next reply.
    #[track_caller]
    pub fn reply(&mut self) -> Reply {
        self.try_reply().expect("a reply, not the connection's end")
    }

    /// The next reply; `None` when karrow has closed the connection.
    #[track_caller]
    pub fn try_reply(&mut self) -> Option<Reply> {
        loop {
            let input = &self.input[self.at..];
            let decoded = if input.is_empty() {
                None
            } else if self.resp3 {
                decode3(input).expect("legal RESP3").map(|(frame, len)| (from3(frame), len))
            } else {
                decode2(input).expect("legal RESP2").map(|(frame, len)| (from2(frame), len))
            };
            if let Some((reply, len)) = decoded {
                self.at += len;
                if self.at == self.input.len() {
                    self.input.clear();
                    self.at = 0;
                }
                return Some(reply);
            }
            if !self.read() {
                assert!(self.at == self.input.len(), "the connection ended inside a reply");
                return None;
            }
        }
    }

    /// The next `len` bytes as they came, escaped where they are not printable.
    #[track_caller]
    pub fn bytes(&mut self, len: usize) -> String {
        while self.input.len() - self.at < len && self.read() {}
        let end = self.input.len().min(self.at + len);
        let bytes = self.input[self.at..end].escape_ascii().to_string();
        let bytes = bytes.replace("\\'", "'").replace("\\\"", "\"");
        self.at = end;
        bytes
    }

    /// Everything up to the connection's end.
    #[track_caller]
    pub fn rest(&mut self) -> String {
        while self.read() {}
        self.bytes(usize::MAX / 2)
    }

    /// Whether karrow closes the connection, with nothing more to read.
    #[track_caller]
    pub fn is_closed(&mut self) -> bool {
        self.try_reply().is_none()
    }

    /// Whether nothing comes for a moment; only for what must stay silent.
    pub fn is_silent_for(&mut self, moment: Duration) -> bool {
        if self.at < self.input.len() {
            return false;
        }
        self.stream.set_read_timeout(Some(moment)).expect("a timeout");
        let mut byte = [0];
        let peeked = self.stream.peek(&mut byte);
        self.stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Tells karrow that nothing more will be sent.
    pub fn end_writing(&self) {
        self.stream.shutdown(Shutdown::Write).expect("a shutdown");
    }

    #[track_caller]
    fn read(&mut self) -> bool {
        if self.at > 0 && self.at * 2 > self.input.len() {
            self.input.drain(..self.at);
            self.at = 0;
        }
        let start = Instant::now();
        let mut chunk = vec![0; 256 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(count) => {
                    self.input.extend_from_slice(&chunk[..count]);
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return false,
                Err(error) => {
                    panic!("waited {:?} for a reply: {error}", start.elapsed())
                }
            }
        }
    }
}

/// A request as every Redis client sends it.
pub fn request<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        let arg = arg.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn from2(frame: Frame2) -> Reply {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    match frame {
        Frame2::SimpleString(bytes) => Reply::Simple(text(bytes)),
        Frame2::Error(text) => Reply::Error(text),
        Frame2::Integer(value) => Reply::Int(value),
        Frame2::BulkString(bytes) => Reply::Bulk(bytes),
        Frame2::Array(values) => Reply::Array(values.into_iter().map(from2).collect()),
        Frame2::Null => Reply::Null,
    }
}

fn from3(frame: Frame3) -> Reply {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    match frame {
        Frame3::SimpleString { data, .. } => Reply::Simple(text(data)),
        Frame3::SimpleError { data, .. } => Reply::Error(data),
        Frame3::Number { data, .. } => Reply::Int(data),
        Frame3::BlobString { data, .. } => Reply::Bulk(data),
        Frame3::VerbatimString { data, .. } => Reply::Verbatim(data),
        Frame3::Array { data, .. } => Reply::Array(data.into_iter().map(from3).collect()),
        Frame3::Map { data, .. } => {
            // The decoder loses their order.
            let mut pairs: Vec<_> =
                data.into_iter().map(|(key, value)| (from3(key), from3(value))).collect();
            pairs.sort_by_key(|(key, _)| key.to_string());
            Reply::Map(pairs)
        }
        Frame3::Null => Reply::Null,
        other => panic!("karrow sends no {other:?}"),
    }
}
