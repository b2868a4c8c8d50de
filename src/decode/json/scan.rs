//! [`Scanner`]: reads one JSON text (RFC 8259) from the left to the right, without a tree and without recursion.

use super::super::reject::{Meter, Reject};

/// A place in a JSON text that is known to be UTF-8.
pub struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

/// A number as it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number<'a> {
    /// Without fraction and exponent, and within 64 bits.
    Int(i64),
    /// Anything else that a double holds, rounded to the nearest one.
    Float(f64),
    /// An integer beyond 64 bits, or a number beyond a double's range.
    Big(&'a [u8]),
}

/// A string's content, if need be with its escapes still in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text<'a> {
    /// Just this.
    Plain(&'a [u8]),
    /// To be unescaped.
    Escaped(&'a [u8]),
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);

/// The bytes of `word` that end a plain run inside a string (`"`, `\`, control characters), as high bits. A set bit
/// may be wrong behind the first right one, never before it.
fn specials(word: u64) -> u64 {
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word;
    let quote = zeros(word ^ (ONES * u64::from(b'"')));
    let backslash = zeros(word ^ (ONES * u64::from(b'\\')));
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (quote | backslash | control) & HIGHS
}

impl<'a> Scanner<'a> {
    /// At the beginning of `text`, which the caller has checked to be UTF-8.
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// Where it is.
    pub fn at(&self) -> usize {
        self.at
    }

    /// What was passed since `start`.
    pub fn since(&self, start: usize) -> &'a [u8] {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// The next byte that is no white space, without passing it; 0 at the end.
    #[inline]
    pub fn peek(&mut self) -> u8 {
        while let Some(&byte) = self.text.get(self.at) {
            if byte > b' ' {
                return byte;
            }
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                // A control character: no token begins with it, so the caller will name it.
                return byte.max(1);
            }
            self.at += 1;
        }
        0
    }

    /// Passes the byte that [`peek`](Self::peek) has seen.
    #[inline]
    pub fn pass(&mut self) {
        self.at += 1;
    }

    /// Passes `byte`, which must come next.
    #[inline]
    pub fn expect(&mut self, byte: u8, inside: &'static str) -> Result<(), Reject> {
        if self.peek() == byte {
            self.at += 1;
            return Ok(());
        }
        Err(self.unexpected(inside))
    }

    /// Names what is here instead of what should be.
    #[cold]
    pub fn unexpected(&mut self, inside: &'static str) -> Reject {
        match self.peek() {
            0 => Reject::truncated(inside),
            byte => Reject::malformed(format!(
                "not JSON: '{}' at byte {} of {inside}",
                byte.escape_ascii(),
                self.at
            )),
        }
    }

    /// Nothing but white space may follow.
    pub fn end(&mut self) -> Result<(), Reject> {
        if self.at < self.text.len() && self.peek() != 0 {
            return Err(Reject::malformed(format!(
                "more than one JSON value: the first ends before byte {}",
                self.at
            )));
        }
        if self.at < self.text.len() {
            return Err(Reject::malformed(format!("not JSON: a NUL at byte {}", self.at)));
        }
        Ok(())
    }

    /// Passes `true`, `false` or `null`.
    #[inline]
    pub fn word(&mut self, word: &'static [u8]) -> Result<(), Reject> {
        if self.text.get(self.at..self.at + word.len()) == Some(word) {
            self.at += word.len();
            return Ok(());
        }
        Err(self.unexpected("a word"))
    }

    /// Passes `"name":` if exactly that comes next. Only for names that need no escapes.
    #[inline]
    pub fn key_is(&mut self, name: &[u8]) -> bool {
        let start = self.at + 1;
        let Some(rest) = self.text.get(start..) else { return false };
        if rest.len() <= name.len()
            || !rest.starts_with(name)
            || rest.get(name.len()) != Some(&b'"')
        {
            return false;
        }
        let end = start + name.len() + 1;
        if self.text.get(end) == Some(&b':') {
            self.at = end + 1;
            return true;
        }
        false
    }

    /// Passes a string, at whose opening quote it is.
    #[inline]
    pub fn string(&mut self) -> Result<Text<'a>, Reject> {
        let start = self.at + 1;
        let mut at = start;
        let mut escaped = false;
        loop {
            while let Some(chunk) = self.text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
                let found = specials(u64::from_le_bytes(*chunk));
                if found != 0 {
                    at += found.trailing_zeros() as usize / 8;
                    break;
                }
                at += 8;
            }
            match self.text.get(at) {
                Some(b'"') => {
                    let content = self.text.get(start..at).unwrap_or_default();
                    self.at = at + 1;
                    return Ok(if escaped { Text::Escaped(content) } else { Text::Plain(content) });
                }
                Some(b'\\') => {
                    escaped = true;
                    at = self.escape(at)?;
                }
                Some(0..0x20) => {
                    return Err(Reject::malformed(format!(
                        "not JSON: a control character in a string, at byte {at}"
                    )));
                }
                Some(_) => at += 1,
                None => return Err(Reject::truncated("a string")),
            }
        }
    }

    /// Checks the escape at `at` and returns where it ends.
    fn escape(&self, at: usize) -> Result<usize, Reject> {
        let bad = || Reject::malformed(format!("not JSON: a bad escape at byte {at}"));
        match self.text.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
            Some(b'u') => {
                let unit = self.unit(at).ok_or_else(bad)?;
                match unit {
                    0xD800..0xDC00 => {
                        let low = self.unit(at + 6).ok_or_else(bad)?;
                        if self.text.get(at + 6) == Some(&b'\\') && (0xDC00..0xE000).contains(&low)
                        {
                            Ok(at + 12)
                        } else {
                            Err(bad())
                        }
                    }
                    // Half of a pair is no character, and UTF-8 cannot hold it.
                    0xDC00..0xE000 => Err(bad()),
                    _ => Ok(at + 6),
                }
            }
            Some(_) => Err(bad()),
            None => Err(Reject::truncated("a string")),
        }
    }

    fn unit(&self, at: usize) -> Option<u32> {
        unit(self.text.get(at..at + 6)?)
    }

    /// Passes a number.
    #[inline]
    pub fn number(&mut self) -> Result<Number<'a>, Reject> {
        let start = self.at;
        let negative = self.text.get(self.at) == Some(&b'-');
        let first = start + usize::from(negative);
        let mut at = first;
        let mut value: u64 = 0;
        while let Some(digit) =
            self.text.get(at).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10)
        {
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
            at += 1;
        }
        let digits = at - first;
        if digits == 0 || (digits > 1 && self.text.get(first) == Some(&b'0')) {
            return Err(self.unexpected("a number"));
        }
        if !matches!(self.text.get(at), Some(b'.' | b'e' | b'E')) {
            self.at = at;
            if digits <= 18 {
                let value = value as i64; // At most 18 digits: far below 2^63.
                return Ok(Number::Int(if negative { -value } else { value }));
            }
            let text = self.since(start);
            let exact = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            return Ok(exact.map_or(Number::Big(text), Number::Int));
        }
        if self.text.get(at) == Some(&b'.') {
            at = self.digits(at + 1)?;
        }
        if matches!(self.text.get(at), Some(b'e' | b'E')) {
            at += 1;
            if matches!(self.text.get(at), Some(b'+' | b'-')) {
                at += 1;
            }
            at = self.digits(at)?;
        }
        self.at = at;
        let text = self.since(start);
        let value: f64 = std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(f64::INFINITY);
        // A number that is not 0 and would be: no double is near it.
        let mut mantissa = text.iter().take_while(|byte| !matches!(byte, b'e' | b'E'));
        let is_lost = value == 0.0 && mantissa.any(|byte| matches!(byte, b'1'..=b'9'));
        Ok(if value.is_finite() && !is_lost { Number::Float(value) } else { Number::Big(text) })
    }

    /// Passes one digit or more.
    fn digits(&mut self, start: usize) -> Result<usize, Reject> {
        let mut at = start;
        while self.text.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        if at == start {
            self.at = at;
            return Err(self.unexpected("a number"));
        }
        Ok(at)
    }

    /// Passes a value of any kind and checks its grammar; what is nested costs memory of one bit a level.
    pub fn skip(&mut self, meter: &mut Meter) -> Result<(), Reject> {
        let mut open = Nesting::default();
        loop {
            match self.peek() {
                b'"' => {
                    self.string()?;
                }
                b'{' => {
                    self.pass();
                    if self.peek() == b'}' {
                        self.pass();
                    } else {
                        open.push(true);
                        self.key()?;
                        continue;
                    }
                }
                b'[' => {
                    self.pass();
                    if self.peek() == b']' {
                        self.pass();
                    } else {
                        open.push(false);
                        continue;
                    }
                }
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                b'-' | b'0'..=b'9' => {
                    self.number()?;
                }
                _ => return Err(self.unexpected("a value")),
            }
            // A value has ended: go up, or on to the next one beside it.
            loop {
                let Some(is_object) = open.last() else { return Ok(()) };
                meter.elements(1)?;
                match (self.peek(), is_object) {
                    (b',', true) => {
                        self.pass();
                        self.key()?;
                        break;
                    }
                    (b',', false) => {
                        self.pass();
                        break;
                    }
                    (b'}', true) | (b']', false) => {
                        self.pass();
                        open.pop();
                    }
                    _ => {
                        return Err(self.unexpected(if is_object {
                            "an object"
                        } else {
                            "an array"
                        }));
                    }
                }
            }
        }
    }

    fn key(&mut self) -> Result<(), Reject> {
        if self.peek() != b'"' {
            return Err(self.unexpected("an object"));
        }
        self.string()?;
        self.expect(b':', "an object")
    }
}

/// Which of the open values are objects.
#[derive(Default)]
struct Nesting {
    bits: Vec<u64>,
    depth: usize,
}

impl Nesting {
    fn push(&mut self, is_object: bool) {
        let (word, bit) = (self.depth / 64, self.depth % 64);
        if word == self.bits.len() {
            self.bits.push(0);
        }
        if let Some(word) = self.bits.get_mut(word) {
            *word = (*word & !(1 << bit)) | (u64::from(is_object) << bit);
        }
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    fn last(&self) -> Option<bool> {
        let depth = self.depth.checked_sub(1)?;
        self.bits.get(depth / 64).map(|word| word >> (depth % 64) & 1 == 1)
    }
}

impl Text<'_> {
    /// Appends the content, unescaped.
    #[inline(always)]
    pub fn append_to(self, out: &mut Vec<u8>) {
        match self {
            Self::Plain(content) => out.extend_from_slice(content),
            Self::Escaped(content) => unescape(content, out),
        }
    }
}

/// `\uXXXX` as a UTF-16 unit.
fn unit(escape: &[u8]) -> Option<u32> {
    let digits = escape.get(2..6)?;
    let mut unit = 0;
    for digit in digits {
        unit = unit * 16 + char::from(*digit).to_digit(16)?;
    }
    Some(unit)
}

/// Escapes that were checked by [`Scanner::string`].
fn unescape(content: &[u8], out: &mut Vec<u8>) {
    let mut at = 0;
    while let Some(run) = content.get(at..) {
        let Some(plain) = memchr::memchr(b'\\', run) else {
            out.extend_from_slice(run);
            return;
        };
        out.extend_from_slice(run.get(..plain).unwrap_or_default());
        at += plain;
        let escape = content.get(at..).unwrap_or_default();
        at += 2;
        let byte = match escape.get(1) {
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                let high = unit(escape).unwrap_or(0xFFFD);
                at += 4;
                let code = if (0xD800..0xDC00).contains(&high) {
                    let low = escape.get(6..).and_then(unit).unwrap_or(0xDC00);
                    at += 6;
                    0x1_0000 + ((high - 0xD800) << 10) + (low.wrapping_sub(0xDC00) & 0x3FF)
                } else {
                    high
                };
                let mut utf8 = [0; 4];
                let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes());
                continue;
            }
            Some(byte) => *byte,
            None => return,
        };
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::reject::RecordLimits;
    use super::*;

    fn skips(text: &str) -> Result<(), Reject> {
        let mut scanner = Scanner::new(text.as_bytes());
        scanner.skip(&mut Meter::new(&RecordLimits::default()))?;
        scanner.end()
    }

    #[test]
    fn the_grammar_is_that_of_serde_json() {
        let texts = [
            "1",
            "-0",
            "01",
            "1.",
            ".5",
            "1.5e3",
            "1e",
            "1e+",
            "-",
            "+1",
            "0x1",
            "1e400",
            "tru",
            "true",
            "null",
            "nul",
            "\"\"",
            "\"a",
            "\"\\u00e9\"",
            "\"\\ud83d\\ude00\"",
            "\"\\udc00\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\x\"",
            "\"\t\"",
            "\"a\u{7f}\"",
            "[]",
            "[",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1]]",
            "{}",
            "{",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1",
            "{\"a\":1,",
            "{\"a\":1,}",
            "{a:1}",
            "{1:1}",
            "{\"a\":1 \"b\":2}",
            "{\"a\":{\"b\":[1,{\"c\":null}]}}",
            "[{]}",
            "1 1",
            " \t\r\n1 ",
            "\u{b}1",
            "1\0",
            "\0",
            "",
            " ",
            "NaN",
            "Infinity",
            "[[],[],{}]",
            "\"\\",
            "\"\\u12\"",
            "{\"a\":1}{\"a\":2}",
            "\u{feff}1",
            "\"12345678\\\"90\"",
            "\"1234567\u{1}\"",
            "\"éééééééé\"",
        ];
        for text in texts {
            // serde_json refuses numbers beyond a double; JSON does not.
            let expected =
                text == "1e400" || serde_json::from_str::<serde_json::Value>(text).is_ok();
            assert_eq!(skips(text).is_ok(), expected, "{text:?}: {:?}", skips(text));
        }
    }

    #[test]
    fn nesting_costs_no_stack() {
        let deep = format!("{}{}", "[{\"a\":".repeat(100_000), "0");
        assert!(skips(&deep).is_err());
        let closed = format!("{}0{}", "[".repeat(200_000), "]".repeat(200_000));
        assert!(skips(&closed).is_ok());
    }

    #[test]
    fn numbers_keep_every_digit() {
        let number = |text: &'static str| Scanner::new(text.as_bytes()).number().expect("a number");
        assert_eq!(number("9223372036854775807"), Number::Int(i64::MAX));
        assert_eq!(number("-9223372036854775808"), Number::Int(i64::MIN));
        assert_eq!(number("9223372036854775808"), Number::Big(b"9223372036854775808"));
        assert_eq!(number("999999999999999999"), Number::Int(999_999_999_999_999_999));
        assert_eq!(number("-0.5"), Number::Float(-0.5));
        assert_eq!(number("1e-400"), Number::Big(b"1e-400"));
        assert_eq!(number("0.000e5"), Number::Float(0.0));
    }

    proptest::proptest! {
        #[test]
        fn strings_are_unescaped_as_by_serde_json(content: String, ascii: bool) {
            let mut quoted = serde_json::to_string(&content).expect("a string");
            if ascii {
                quoted = quoted.chars().flat_map(|c| {
                    let mut units = [0; 2];
                    let escape = |unit: &u16| format!("\\u{unit:04x}");
                    if c.is_ascii() { c.to_string() } else { c.encode_utf16(&mut units).iter().map(escape).collect() }
                        .chars().collect::<Vec<_>>()
                }).collect();
            }
            let mut out = Vec::new();
            Scanner::new(quoted.as_bytes()).string().expect("a string").append_to(&mut out);
            proptest::prop_assert_eq!(out, content.as_bytes());
        }
    }
}
