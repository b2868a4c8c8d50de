//! Replies: values in, bytes out, in order, in the protocol version that the client negotiated.
//!
//! The encoder is our own because replies are the hot path and the shapes are few; RESP2 and RESP3 differ only
//! in nulls, maps, verbatim strings and pushes.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::kafka::producer::Ticket;

/// Bytes that were sent are removed from the front of the buffer when there are this many.
const COMPACT_BYTES: usize = 64 * 1024;

/// Parts of a bulk string of at least this many bytes are sent from where they are; smaller ones are cheaper to copy.
const SHARED_BYTES_MIN: usize = 4 * 1024;

/// What one reply that waits for Kafka is counted for, with its ticket and its place in the queue.
const PENDING_BYTES: usize = 256;

/// The protocol version of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// What every connection starts with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// A reply that is built away from the connection, by something that waits for Kafka.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `+OK` and the like.
    Simple(&'static str),
    /// The whole text, prefix included.
    Error(String),
    /// An integer.
    Int(i64),
    /// A bulk string.
    Bulk(Vec<u8>),
    /// A bulk string that others have, too.
    Shared(Bytes),
    /// An array.
    Array(Vec<Value>),
}

/// What a connection has to send: bytes that may go, then replies that wait for Kafka and whatever came after
/// them.
#[derive(Debug, Default)]
pub struct Output {
    protocol: Protocol,
    /// Bytes before `ready`: large parts of replies, which are not copied, and what came between them.
    queued: VecDeque<Bytes>,
    queued_bytes: usize,
    /// Bytes before `pending`, and how many of them the socket took.
    ready: Vec<u8>,
    written: usize,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    errors: u64,
}

#[derive(Debug)]
struct Pending {
    ticket: Arc<Ticket>,
    /// Index of its command, which is counted when the ticket is decided.
    command: usize,
    /// What follows that reply.
    after: Vec<u8>,
}

impl Output {
    /// Switches the protocol of what follows.
    pub fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// The protocol of what follows.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// How many error replies were written so far.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// Bytes that wait to be sent, with what a reply that waits for Kafka costs.
    pub fn len(&self) -> usize {
        self.sendable_len() + self.pending_bytes + self.pending.len() * PENDING_BYTES
    }

    /// Whether nothing waits: neither bytes nor replies.
    pub fn is_empty(&self) -> bool {
        self.sendable_len() == 0 && self.pending.is_empty()
    }

    /// Whether a reply waits for Kafka.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// How many bytes can be sent now.
    pub fn sendable_len(&self) -> usize {
        self.queued_bytes + self.ready.len() - self.written
    }

    /// All that can be sent now, where it is one run of bytes: nearly always.
    pub fn only(&self) -> Option<&[u8]> {
        self.ready.get(self.written..).filter(|_| self.queued.is_empty())
    }

    /// What can be sent now, or as much of its beginning as `slices` hold; returns how many of those are used.
    pub fn sendable<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let last = self.ready.get(self.written..).filter(|last| !last.is_empty());
        let parts = self.queued.iter().map(|part| &part[..]).chain(last);
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        count
    }

    /// The socket took this many bytes.
    pub fn sent(&mut self, mut count: usize) {
        while let Some(front) = self.queued.front_mut().filter(|_| count > 0) {
            let part = count.min(front.len());
            front.advance(part);
            self.queued_bytes -= part;
            count -= part;
            if front.is_empty() {
                self.queued.pop_front();
            }
        }
        self.written += count;
        if self.written >= self.ready.len() {
            self.ready.clear();
            self.written = 0;
            // One big reply must not hold its memory for as long as the client stays.
            if self.ready.capacity() > 256 * 1024 {
                self.ready = Vec::new();
            }
        } else if self.written > COMPACT_BYTES && self.written > self.ready.len() / 2 {
            // A reader that never catches up must not make the buffer keep all that it has read.
            self.ready.drain(..self.written);
            self.written = 0;
        }
    }

    /// The reply of a command that `ticket` will decide: the number of messages stored, or an error.
    pub fn pending(&mut self, ticket: Arc<Ticket>, command: usize) {
        self.pending.push_back(Pending { ticket, command, after: Vec::new() });
    }

    /// Turns replies that have been decided into bytes, as far as the order allows; `decided` hears of each command,
    /// and whether it went well.
    pub fn resolve(&mut self, decided: impl Fn(usize, bool)) {
        while let Some(outcome) = self.pending.front().and_then(|front| front.ticket.outcome()) {
            let Some(front) = self.pending.pop_front() else { return };
            self.pending_bytes -= front.after.len();
            let later = std::mem::take(&mut self.pending);
            decided(front.command, outcome.is_ok());
            match outcome {
                Ok(count) => self.int(i64::try_from(count).unwrap_or(i64::MAX)),
                Err(error) => self.error(&format!("PROD {error}")),
            }
            self.pending = later;
            self.ready.extend_from_slice(&front.after);
        }
    }

    /// Where the next byte goes.
    fn tail(&mut self) -> &mut Vec<u8> {
        match self.pending.back_mut() {
            Some(last) => &mut last.after,
            None => &mut self.ready,
        }
    }

    fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        match self.pending.back_mut() {
            None => write(&mut self.ready),
            Some(last) => {
                let before = last.after.len();
                write(&mut last.after);
                self.pending_bytes += last.after.len() - before;
            }
        }
    }

    /// `+text`; the text is ours and has no line break.
    pub fn simple(&mut self, text: &'static str) {
        self.write(|out| {
            out.push(b'+');
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"\r\n");
        });
    }

    /// An error, prefix included. Line breaks in it become spaces: they would end the reply early.
    pub fn error(&mut self, text: &str) {
        self.errors += 1;
        self.write(|out| {
            out.push(b'-');
            out.extend(
                text.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }),
            );
            out.extend_from_slice(b"\r\n");
        });
    }

    /// An integer.
    pub fn int(&mut self, value: i64) {
        self.write(|out| header(out, b':', value));
    }

    /// A bulk string.
    pub fn bulk(&mut self, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        self.write(|out| {
            header(out, b'$', value.len() as i64);
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        });
    }

    /// A bulk string of several parts; large ones are not copied.
    pub fn bulk_of(&mut self, parts: Vec<Bytes>) {
        let len: usize = parts.iter().map(Bytes::len).sum();
        self.write(|out| header(out, b'$', len as i64));
        for part in parts {
            // Behind a reply that waits for Kafka everything is one buffer.
            if part.len() < SHARED_BYTES_MIN || self.has_pending() {
                self.write(|out| out.extend_from_slice(&part));
                continue;
            }
            if self.written < self.ready.len() {
                let mut before = Bytes::from(std::mem::take(&mut self.ready));
                before.advance(self.written);
                self.queued_bytes += before.len();
                self.queued.push_back(before);
            } else {
                self.ready.clear();
            }
            self.written = 0;
            self.queued_bytes += part.len();
            self.queued.push_back(part);
        }
        self.write(|out| out.extend_from_slice(b"\r\n"));
    }

    /// Text for people: a verbatim string in RESP3, a bulk string before.
    pub fn text(&mut self, value: &str) {
        if self.protocol == Protocol::Resp2 {
            return self.bulk(value);
        }
        self.write(|out| {
            header(out, b'=', value.len() as i64 + 4);
            out.extend_from_slice(b"txt:");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        });
    }

    /// The null in place of a bulk string.
    pub fn null(&mut self) {
        let null: &[u8] = if self.protocol == Protocol::Resp2 { b"$-1\r\n" } else { b"_\r\n" };
        self.tail_extend(null);
    }

    /// The null in place of an array: what a blocking pop answers after its timeout.
    pub fn null_array(&mut self) {
        let null: &[u8] = if self.protocol == Protocol::Resp2 { b"*-1\r\n" } else { b"_\r\n" };
        self.tail_extend(null);
    }

    fn tail_extend(&mut self, bytes: &[u8]) {
        self.write(|out| out.extend_from_slice(bytes));
    }

    /// The header of an array of `count` values, which follow.
    pub fn array(&mut self, count: usize) {
        self.write(|out| header(out, b'*', count as i64));
    }

    /// The header of a map of `count` pairs, which follow; flat in RESP2.
    pub fn map(&mut self, count: usize) {
        match self.protocol {
            Protocol::Resp2 => self.array(count * 2),
            Protocol::Resp3 => self.write(|out| header(out, b'%', count as i64)),
        }
    }

    /// Bytes that are encoded already.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.tail_extend(bytes);
    }

    /// Makes room for a reply of about this many bytes.
    pub fn reserve(&mut self, bytes: usize) {
        self.tail().reserve(bytes);
    }

    /// A reply that was built elsewhere.
    pub fn value(&mut self, value: &Value) {
        match value {
            Value::Simple(text) => self.simple(text),
            Value::Error(text) => self.error(text),
            Value::Int(value) => self.int(*value),
            Value::Bulk(value) => self.bulk(value),
            Value::Shared(value) => self.bulk_of(vec![value.clone()]),
            Value::Array(values) => {
                self.array(values.len());
                for value in values {
                    self.value(value);
                }
            }
        }
    }
}

/// `<kind><number>\r\n`.
fn header(out: &mut Vec<u8>, kind: u8, value: i64) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use redis_protocol::resp2::decode::decode as decode2;
    use redis_protocol::resp2::types::OwnedFrame as Frame2;
    use redis_protocol::resp3::decode::complete::decode as decode3;
    use redis_protocol::resp3::types::OwnedFrame as Frame3;
    use tokio::sync::Notify;

    use super::*;

    fn bytes(output: &Output) -> Vec<u8> {
        let mut slices = [IoSlice::new(b""); 8];
        let count = output.sendable(&mut slices);
        slices[..count].iter().flat_map(|slice| slice.to_vec()).collect()
    }

    fn check(write: impl Fn(&mut Output), resp2: &str, resp3: &str) {
        for (protocol, expect) in [(Protocol::Resp2, resp2), (Protocol::Resp3, resp3)] {
            let mut output = Output::default();
            output.set_protocol(protocol);
            write(&mut output);
            assert_eq!(
                bytes(&output).escape_ascii().to_string(),
                expect.as_bytes().escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn shapes_follow_the_protocol() {
        check(|out| out.null(), "$-1\r\n", "_\r\n");
        check(|out| out.null_array(), "*-1\r\n", "_\r\n");
        check(|out| out.map(2), "*4\r\n", "%2\r\n");
        check(|out| out.text("hi"), "$2\r\nhi\r\n", "=6\r\ntxt:hi\r\n");
        check(|out| out.error("ERR a\r\n+OK\r\n"), "-ERR a  +OK  \r\n", "-ERR a  +OK  \r\n");
    }

    #[test]
    fn integers_are_whole_at_every_size() {
        for exponent in 0..19 {
            for value in [10i64.pow(exponent), 10i64.pow(exponent) - 1, -(10i64.pow(exponent))] {
                check(|out| out.int(value), &format!(":{value}\r\n"), &format!(":{value}\r\n"));
            }
        }
        check(|out| out.int(i64::MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n");
    }

    #[test]
    fn an_independent_decoder_reads_them() {
        let mut output = Output::default();
        output.array(3);
        output.bulk(b"a\r\nb\xff");
        output.int(7);
        output.null();
        let (frame, _) = decode2(&bytes(&output)).expect("legal").expect("complete");
        let expect = Frame2::Array(vec![
            Frame2::BulkString(b"a\r\nb\xff".to_vec()),
            Frame2::Integer(7),
            Frame2::Null,
        ]);
        assert_eq!(frame, expect);

        let mut output = Output::default();
        output.set_protocol(Protocol::Resp3);
        output.map(1);
        output.bulk("k");
        output.null();
        let (frame, _) = decode3(&bytes(&output)).expect("legal").expect("complete");
        assert!(matches!(frame, Frame3::Map { data, .. } if data.len() == 1));
    }

    #[test]
    fn replies_keep_their_order_behind_one_that_waits() {
        let ticket = Ticket::new(1, Arc::new(Notify::new()));
        let mut output = Output::default();
        output.simple("OK");
        let decided = std::cell::Cell::new(None);
        let resolve = |output: &mut Output| {
            output.resolve(|command, ok| decided.set(Some((command, ok))));
        };
        output.pending(ticket.clone(), 5);
        output.int(2);
        resolve(&mut output);
        assert_eq!(decided.get(), None);
        assert_eq!(bytes(&output), b"+OK\r\n");
        ticket.settle(1, None);
        resolve(&mut output);
        assert_eq!(decided.get(), Some((5, true)));
        assert_eq!(bytes(&output), b"+OK\r\n:1\r\n:2\r\n");
        output.sent(13);
        assert!(output.is_empty());
    }

    #[test]
    fn large_parts_are_sent_in_their_place() {
        let part = |byte: u8, len: usize| Bytes::from(vec![byte; len]);
        for behind_a_ticket in [false, true] {
            let ticket = Ticket::new(1, Arc::new(Notify::new()));
            let mut output = Output::default();
            output.simple("OK");
            if behind_a_ticket {
                output.pending(ticket.clone(), 0);
            }
            output.bulk_of(vec![
                part(b'a', 3),
                part(b'b', 5_000),
                part(b'c', 6_000),
                part(b'd', 2),
            ]);
            output.int(1);
            ticket.settle(1, None);
            output.resolve(|_, _| {});
            let mut expect = b"+OK\r\n".to_vec();
            if behind_a_ticket {
                expect.extend_from_slice(b":1\r\n");
            }
            expect.extend_from_slice(b"$11005\r\naaa");
            expect.extend_from_slice(&[b'b'; 5_000]);
            expect.extend_from_slice(&[b'c'; 6_000]);
            expect.extend_from_slice(b"dd\r\n:1\r\n");
            // However much the socket takes at a time.
            let mut sent = Vec::new();
            while !output.is_empty() {
                assert_eq!(output.len(), expect.len() - sent.len());
                let next: Vec<u8> = bytes(&output).into_iter().take(777).collect();
                output.sent(next.len());
                sent.extend(next);
            }
            assert!(sent == expect, "behind a ticket: {behind_a_ticket}");
        }
    }
}
