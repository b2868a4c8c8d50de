//! As much RESP2 as a benchmark needs: requests, a blocking client for set-up, and a counter that skips replies.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::Result;

/// Appends one request.
pub fn encode<A: AsRef<[u8]>>(arguments: &[A], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", arguments.len()).as_bytes());
    for argument in arguments {
        let argument = argument.as_ref();
        out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
}

/// A reply; error replies are `Err` of [`Client::call`].
#[derive(Debug)]
pub enum Reply {
    Text(String),
    Integer(i64),
    Null,
    Array(Vec<Reply>),
}

/// One request, one reply: for what is not measured.
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects; every reply must then come within `patience`.
    pub fn connect(addr: SocketAddr, patience: Duration) -> Result<Self> {
        let stream = TcpStream::connect(addr).map_err(|why| format!("connect {addr}: {why}"))?;
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(patience)))
            .map_err(|why| format!("socket options of {addr}: {why}"))?;
        Ok(Self::over(stream))
    }

    /// Takes over a connection on which no reply is outstanding.
    pub fn over(stream: TcpStream) -> Self {
        Self { reader: BufReader::new(stream) }
    }

    /// Sends one command and returns its reply.
    pub fn call(&mut self, arguments: &[&str]) -> Result<Reply> {
        self.send(arguments)?;
        self.receive().map_err(|why| format!("{}: {why}", arguments.join(" ")))
    }

    /// Sends one command and leaves its reply to be read, or not.
    pub fn send(&mut self, arguments: &[&str]) -> Result<()> {
        let mut request = Vec::new();
        encode(arguments, &mut request);
        self.reader
            .get_mut()
            .write_all(&request)
            .map_err(|why| format!("{}: {why}", arguments.join(" ")))
    }

    /// Sends QUIT and waits for the server to close, so that whatever the session held is free.
    pub fn quit(mut self) -> Result<()> {
        self.send(&["QUIT"])?;
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).map_err(|why| format!("QUIT: {why}"))?;
        Ok(())
    }

    /// The socket; nothing is buffered once every reply was read.
    pub fn into_stream(self) -> TcpStream {
        self.reader.into_inner()
    }

    fn receive(&mut self) -> Result<Reply> {
        let mut line = String::new();
        let count = self.reader.read_line(&mut line).map_err(|why| why.to_string())?;
        if count == 0 {
            return Err("the server closed the connection".to_owned());
        }
        let line = line.trim_end();
        let (kind, rest) = line.split_at(line.len().min(1));
        match kind {
            "+" => Ok(Reply::Text(rest.to_owned())),
            "-" => Err(rest.to_owned()),
            ":" => number(rest).map(Reply::Integer),
            "$" => match number(rest)? {
                ..0 => Ok(Reply::Null),
                length => self.bulk(length as usize),
            },
            "*" => match number(rest)? {
                ..0 => Ok(Reply::Null),
                count => {
                    (0..count).map(|_| self.receive()).collect::<Result<_>>().map(Reply::Array)
                }
            },
            _ => Err(format!("not a reply: {line:?}")),
        }
    }

    fn bulk(&mut self, length: usize) -> Result<Reply> {
        let mut bytes = vec![0; length + 2];
        self.reader.read_exact(&mut bytes).map_err(|why| why.to_string())?;
        bytes.truncate(length);
        Ok(Reply::Text(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

fn number(digits: &str) -> Result<i64> {
    digits.parse().map_err(|_| format!("not a number: {digits:?}"))
}

/// Counts the replies in a stream of bytes without keeping them; replies may be split anywhere.
#[derive(Default)]
pub struct ReplyCounter {
    /// Elements still missing from the reply that has begun; 0 between replies. Nesting needs no stack: an array
    /// of n elements is one element fewer and n more.
    missing: i64,
    /// Bytes of a bulk string, with its CRLF, still to come.
    skip: usize,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
}

impl ReplyCounter {
    /// How many replies end in `bytes`. An error reply and a null reply (an empty list, a timeout) are `Err`: the
    /// works measured here expect neither.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<usize> {
        let mut replies = 0;
        while !bytes.is_empty() {
            if self.skip > 0 {
                let taken = self.skip.min(bytes.len());
                self.skip -= taken;
                bytes = &bytes[taken..];
                if self.skip == 0 {
                    replies += self.element();
                }
                continue;
            }
            let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
                self.line.extend_from_slice(bytes);
                break;
            };
            let (head, rest) = bytes.split_at(end + 1);
            bytes = rest;
            if self.line.is_empty() {
                replies += self.header(head)?;
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(head);
                replies += self.header(&line)?;
            }
        }
        Ok(replies)
    }

    fn header(&mut self, line: &[u8]) -> Result<usize> {
        let body = line.get(1..line.len().saturating_sub(2)).unwrap_or_default();
        match line[0] {
            b'+' | b':' => Ok(self.element()),
            b'-' => Err(format!("the server answered {:?}", String::from_utf8_lossy(body))),
            b'$' => match length(body)? {
                ..0 if self.missing == 0 => Err("the server answered null".to_owned()),
                ..0 => Ok(self.element()),
                length => {
                    self.skip = length as usize + 2;
                    Ok(0)
                }
            },
            b'*' => match length(body)? {
                ..0 if self.missing == 0 => Err("the server answered the null array".to_owned()),
                ..1 => Ok(self.element()),
                count => {
                    self.missing = (self.missing - 1).max(0) + count;
                    Ok(0)
                }
            },
            _ => Err(format!("not a reply: {:?}", String::from_utf8_lossy(line))),
        }
    }

    /// One element has ended; did it end the reply?
    fn element(&mut self) -> usize {
        self.missing = (self.missing - 1).max(0);
        usize::from(self.missing == 0)
    }
}

fn length(digits: &[u8]) -> Result<i64> {
    match digits {
        // Short and without a sign, as nearly all are: no need to check for UTF-8 first.
        [first @ b'0'..=b'9', rest @ ..]
            if rest.len() < 18 && rest.iter().all(u8::is_ascii_digit) =>
        {
            Ok(rest
                .iter()
                .fold(i64::from(first - b'0'), |sum, digit| sum * 10 + i64::from(digit - b'0')))
        }
        _ => number(&String::from_utf8_lossy(digits)),
    }
}

/// Checks [`ReplyCounter`] against replies cut at every byte; a counter that miscounts would make every figure a lie.
pub fn self_check() -> Result<()> {
    let replies = b":1\r\n+OK\r\n$3\r\na\nb\r\n*0\r\n*2\r\n$1\r\nk\r\n$0\r\n\r\n\
        *4\r\n:7\r\n*2\r\n+x\r\n*0\r\n$-1\r\n*1\r\n*1\r\n:0\r\n:1000\r\n";
    for cut in 0..=replies.len() {
        let mut counter = ReplyCounter::default();
        let count = counter.feed(&replies[..cut])? + counter.feed(&replies[cut..])?;
        if count != 7 {
            return Err(format!(
                "the reply counter counted {count} of 7 replies, cut at byte {cut}"
            ));
        }
    }
    for refused in ["-ERR no\r\n", "*-1\r\n", "$-1\r\n", "?\r\n"] {
        if ReplyCounter::default().feed(refused.as_bytes()).is_ok() {
            return Err(format!("the reply counter accepted {refused:?}"));
        }
    }
    Ok(())
}
