//! Requests: bytes in, arguments out, with limits.
//!
//! The [`Scanner`] remembers how far it got, so a large request that arrives in many reads is looked at once.
//! It accepts what Redis clients send, and nothing else: arrays of bulk strings, and inline commands.

use std::ops::Range;

use smallvec::SmallVec;

/// Longest inline command, and longest line that announces a length (Redis's PROTO_INLINE_MAX_SIZE).
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Most arguments of one request (Redis's own limit).
const ARGS_MAX: i64 = 1024 * 1024;

/// What a request may cost.
#[derive(Clone, Copy, Debug)]
pub struct FrameLimits {
    /// Bytes of one argument.
    pub bulk_bytes_max: usize,
    /// Bytes of the whole request, framing included.
    pub request_bytes_max: usize,
}

/// Bytes that are no request; the connection cannot go on after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameError(pub String);

/// The arguments of a request, the command's name first.
pub type Args<'a> = SmallVec<[&'a [u8]; 8]>;

/// Finds requests at the beginning of a buffer.
#[derive(Debug)]
pub struct Scanner {
    limits: FrameLimits,
    /// Where scanning goes on.
    at: usize,
    /// Arguments still to come; `None` before the array's header.
    open: Option<i64>,
    /// Where the arguments are: in the buffer, or for inline commands in `inline`.
    args: Vec<Range<usize>>,
    inline: Option<Vec<u8>>,
}

impl Scanner {
    /// A scanner at the beginning of a buffer.
    pub fn new(limits: FrameLimits) -> Self {
        Self { limits, at: 0, open: None, args: Vec::new(), inline: None }
    }

    /// Looks for a request at the beginning of `buffer`, which may have grown since the last call: its length
    /// when it is complete, `None` when more bytes are needed. A complete request may have no arguments (an
    /// empty line or array) and is then to be skipped.
    ///
    /// # Errors
    /// Redis's texts for malformed framing, and for what exceeds the limits.
    pub fn scan(&mut self, buffer: &[u8]) -> Result<Option<usize>, FrameError> {
        if self.open.is_none() {
            match buffer.first() {
                None => return Ok(None),
                Some(b'*') => match self.line(buffer, "mbulk count")? {
                    None => return Ok(None),
                    Some(line) => {
                        let count = integer(&buffer[line.start + 1..line.end])
                            .filter(|count| *count <= ARGS_MAX)
                            .ok_or_else(|| error("invalid multibulk length"))?;
                        self.open = Some(count.max(0));
                    }
                },
                Some(_) => return self.inline(buffer),
            }
        }
        while self.open.is_some_and(|open| open > 0) {
            // An argument whose header was read has no end yet.
            let start = match self.args.last() {
                Some(last) if last.end > self.at => last.start,
                _ => {
                    let Some(line) = self.line(buffer, "bulk count")? else { return Ok(None) };
                    let header = &buffer[line.clone()];
                    if header.first() != Some(&b'$') {
                        let got = header.first().copied().unwrap_or(b'\r');
                        return Err(error(&format!("expected '$', got '{}'", got.escape_ascii())));
                    }
                    let len = integer(&header[1..])
                        .and_then(|len| usize::try_from(len).ok())
                        .filter(|len| *len <= self.limits.bulk_bytes_max)
                        .ok_or_else(|| error("invalid bulk length"))?;
                    let start = self.at;
                    if start + len + 2 > self.limits.request_bytes_max {
                        return Err(error("too big request"));
                    }
                    self.args.push(start..start + len);
                    // The end lies beyond `at`, which is how an argument is known to be open, even an empty one.
                    self.at = start.saturating_sub(1);
                    start
                }
            };
            let end = self.args.last().map_or(start, |last| last.end);
            match buffer.get(end..end + 2) {
                None => return Ok(None),
                Some(b"\r\n") => {}
                Some(_) => return Err(error("expected CRLF after a bulk string")),
            }
            self.at = end + 2;
            self.open = self.open.map(|open| open - 1);
        }
        Ok(Some(self.at))
    }

    /// How many bytes the buffer must hold before another [`scan`](Self::scan) can find more, if that is known.
    pub fn wanted(&self) -> Option<usize> {
        self.args.last().filter(|last| last.end > self.at).map(|last| last.end + 2)
    }

    /// The arguments of the request that [`scan`](Self::scan) found complete in `buffer`.
    pub fn args<'a>(&'a self, buffer: &'a [u8]) -> Args<'a> {
        let bytes = self.inline.as_deref().unwrap_or(buffer);
        self.args.iter().filter_map(|range| bytes.get(range.clone())).collect()
    }

    /// Forgets the request, whose bytes have left the buffer.
    pub fn reset(&mut self) {
        self.at = 0;
        self.open = None;
        self.inline = None;
        // A request of a million arguments must not hold its table for ever.
        if self.args.capacity() > 1024 {
            self.args = Vec::new();
        }
        self.args.clear();
    }

    /// The next line without its CRLF, and moves behind it.
    fn line(&mut self, buffer: &[u8], what: &str) -> Result<Option<Range<usize>>, FrameError> {
        let start = self.at;
        let rest = buffer.get(start..).unwrap_or_default();
        // A header is short: scanning it again after a partial read costs nothing.
        let Some(end) = memchr::memchr(b'\r', &rest[..rest.len().min(LINE_BYTES_MAX + 1)]) else {
            if rest.len() > LINE_BYTES_MAX {
                return Err(error(&format!("too big {what} string")));
            }
            return Ok(None);
        };
        match rest.get(end + 1) {
            None => Ok(None),
            Some(b'\n') => {
                self.at = start + end + 2;
                Ok(Some(start..start + end))
            }
            Some(_) => Err(error(&format!("expected LF after CR in {what}"))),
        }
    }

    fn inline(&mut self, buffer: &[u8]) -> Result<Option<usize>, FrameError> {
        let window = &buffer[..buffer.len().min(LINE_BYTES_MAX + 1)];
        let Some(end) = memchr::memchr(b'\n', window) else {
            if buffer.len() > LINE_BYTES_MAX {
                return Err(error("too big inline request"));
            }
            return Ok(None);
        };
        let line = &buffer[..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let (bytes, args) =
            split_inline(line).ok_or_else(|| error("unbalanced quotes in request"))?;
        self.inline = Some(bytes);
        self.args = args;
        Ok(Some(end + 1))
    }
}

fn error(what: &str) -> FrameError {
    FrameError(format!("ERR Protocol error: {what}"))
}

/// A decimal number as RESP has it: an optional minus, digits, nothing else.
fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0i64, |value, digit| value * 10 + i64::from(digit - b'0'));
    Some(if digits.len() < text.len() { -value } else { value })
}

/// Splits as redis-cli's lines are split: at white space, with `"…"` (escapes `\n \r \t \b \a \xHH`) and `'…'`.
fn split_inline(line: &[u8]) -> Option<(Vec<u8>, Vec<Range<usize>>)> {
    let (mut bytes, mut args) = (Vec::with_capacity(line.len()), Vec::new());
    let mut at = 0;
    loop {
        while line.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        if at >= line.len() {
            return Some((bytes, args));
        }
        let start = bytes.len();
        while let Some(&byte) = line.get(at) {
            match byte {
                b'"' | b'\'' => {
                    at = quoted(line, at, &mut bytes)?;
                    // Nothing but a space may follow a closing quote.
                    if line.get(at).is_some_and(|byte| !byte.is_ascii_whitespace()) {
                        return None;
                    }
                }
                byte if byte.is_ascii_whitespace() => break,
                byte => {
                    bytes.push(byte);
                    at += 1;
                }
            }
        }
        args.push(start..bytes.len());
    }
}

/// Copies the string that opens at `at`; returns the place behind its closing quote.
fn quoted(line: &[u8], at: usize, bytes: &mut Vec<u8>) -> Option<usize> {
    let quote = *line.get(at)?;
    let mut at = at + 1;
    loop {
        match (*line.get(at)?, line.get(at + 1)) {
            (byte, _) if byte == quote => return Some(at + 1),
            (b'\\', Some(b'x')) if quote == b'"' && hex(line, at + 2).is_some() => {
                bytes.push(hex(line, at + 2)?);
                at += 4;
            }
            (b'\\', Some(&escaped)) if quote == b'"' => {
                bytes.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => other,
                });
                at += 2;
            }
            (b'\\', Some(b'\'')) => {
                bytes.push(b'\'');
                at += 2;
            }
            (byte, _) => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
}

fn hex(line: &[u8], at: usize) -> Option<u8> {
    let digits = std::str::from_utf8(line.get(at..at + 2)?).ok()?;
    digits
        .bytes()
        .all(|digit| digit.is_ascii_hexdigit())
        .then(|| u8::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits = FrameLimits { bulk_bytes_max: 1 << 20, request_bytes_max: 1 << 22 };

    /// Every request of `input`, scanned with the buffer growing by `step` bytes at a time.
    fn scan_all(input: &[u8], step: usize) -> Result<Vec<Vec<Vec<u8>>>, FrameError> {
        let mut scanner = Scanner::new(LIMITS);
        let (mut buffer, mut requests) = (Vec::new(), Vec::new());
        for chunk in input.chunks(step) {
            buffer.extend_from_slice(chunk);
            while let Some(len) = scanner.scan(&buffer)? {
                let args: Vec<Vec<u8>> =
                    scanner.args(&buffer).iter().map(|arg| arg.to_vec()).collect();
                if !args.is_empty() {
                    requests.push(args);
                }
                buffer.drain(..len);
                scanner.reset();
            }
        }
        Ok(requests)
    }

    fn check(input: &[u8], expect: &[&[&[u8]]]) {
        let expect: Vec<Vec<Vec<u8>>> =
            expect.iter().map(|args| args.iter().map(|arg| arg.to_vec()).collect()).collect();
        for step in 1..=input.len().max(1) {
            assert_eq!(scan_all(input, step).expect("legal"), expect, "in steps of {step}");
        }
    }

    fn check_error(input: &[u8], expect: &str) {
        for step in [1, input.len()] {
            let error = scan_all(input, step).expect_err("illegal");
            assert_eq!(
                error.0,
                format!("ERR Protocol error: {expect}"),
                "{}",
                input.escape_ascii()
            );
        }
    }

    #[test]
    fn requests_are_found_wherever_reads_are_cut() {
        check(b"*1\r\n$4\r\nPING\r\n", &[&[b"PING"]]);
        check(
            b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n*1\r\n$4\r\nPING\r\n",
            &[&[b"ECHO", b""], &[b"PING"]],
        );
        check(b"*2\r\n$4\r\nECHO\r\n$4\r\n\r\n\r\n\r\n", &[&[b"ECHO", b"\r\n\r\n"]]);
        check(b"*3\r\n$0\r\n\r\n$0\r\n\r\n$1\r\nx\r\n", &[&[b"", b"", b"x"]]);
        check(b"*0\r\n*-1\r\n\r\nPING\r\n", &[&[b"PING"]]);
        check(b"  PING  \n", &[&[b"PING"]]);
        check(b"SET \"a b\\x41\\n\" 'it\\'s'\r\n", &[&[b"SET", b"a bA\n", b"it's"]]);
        check(b"ECHO \"\"\r\n", &[&[b"ECHO", b""]]);
    }

    #[test]
    fn what_is_no_request_is_named() {
        check_error(b"*x\r\n", "invalid multibulk length");
        check_error(b"*1048577\r\n", "invalid multibulk length");
        check_error(b"*99999999999999999999\r\n", "invalid multibulk length");
        check_error(b"*1\r\n*1\r\n", "expected '$', got '*'");
        check_error(b"*1\r\n:1\r\n", "expected '$', got ':'");
        check_error(b"*1\r\n\r\n", "expected '$', got '\\r'");
        check_error(b"*1\r\n$-1\r\n", "invalid bulk length");
        check_error(b"*1\r\n$1048577\r\n", "invalid bulk length");
        check_error(b"*1\r\n$4\r\nPINGxx", "expected CRLF after a bulk string");
        check_error(b"*1\rx", "expected LF after CR in mbulk count");
        check_error(b"ECHO \"a\r\n", "unbalanced quotes in request");
        check_error(b"ECHO \"a\"b\r\n", "unbalanced quotes in request");
        let long = vec![b'x'; LINE_BYTES_MAX + 2];
        assert_eq!(
            scan_all(&long, 4096).expect_err("long").0,
            "ERR Protocol error: too big inline request"
        );
        let mut long = vec![b'1'; LINE_BYTES_MAX + 2];
        long[0] = b'*';
        assert_eq!(
            scan_all(&long, 4096).expect_err("long").0,
            "ERR Protocol error: too big mbulk count string"
        );
    }

    #[test]
    fn the_whole_request_has_a_limit() {
        let mut input = b"*5\r\n".to_vec();
        for _ in 0..5 {
            input.extend_from_slice(b"$1048576\r\n");
            input.resize(input.len() + (1 << 20), b'x');
            input.extend_from_slice(b"\r\n");
        }
        assert_eq!(
            scan_all(&input, 65536).expect_err("too big").0,
            "ERR Protocol error: too big request"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(input in proptest::collection::vec(proptest::num::u8::ANY, 0..200), step in 1usize..50) {
            let _ = scan_all(&input, step);
        }

        #[test]
        fn protocol_like_bytes_neither(input in "[*$\r\n0-9\\-a\"' ]{0,60}", step in 1usize..10) {
            let _ = scan_all(input.as_bytes(), step);
        }

        #[test]
        fn an_independent_encoder_is_understood(
            args in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..50), 1..10),
            step in 1usize..40,
        ) {
            let mut command = redis::Cmd::new();
            for arg in &args {
                command.arg(arg.as_slice());
            }
            assert_eq!(scan_all(&command.get_packed_command(), step).expect("legal"), [args]);
        }
    }
}
