//! [`Cursor`]: reads Avro's binary encoding, and never beyond its end.

use super::super::reject::Reject;

/// Boxed, so that what can fail returns its value in a register.
pub type Fail = Box<Reject>;

/// The bytes of a value that are not read yet.
#[derive(Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

/// The head of a block of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its items.
    pub count: usize,
    /// Their bytes, if the writer says so.
    pub size: Option<usize>,
}

impl<'a> Cursor<'a> {
    /// At the start of `bytes`.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes there are still.
    #[inline]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// A zig-zag varint.
    #[inline(always)]
    pub fn long(&mut self) -> Result<i64, Fail> {
        match self.rest {
            [first, rest @ ..] if *first < 0x80 => {
                self.rest = rest;
                Ok(zigzag(u64::from(*first)))
            }
            [first, second, rest @ ..] if *second < 0x80 => {
                self.rest = rest;
                Ok(zigzag(u64::from(*first & 0x7f) | u64::from(*second) << 7))
            }
            _ => self.long_varint(),
        }
    }

    #[inline(never)]
    fn long_varint(&mut self) -> Result<i64, Fail> {
        let mut value = 0u64;
        for (at, byte) in self.rest.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            if at == 9 && bits > 1 {
                return Err(malformed("a number of more than 64 bits"));
            }
            value |= bits << (7 * at);
            if *byte < 0x80 {
                self.rest = self.rest.get(at + 1..).unwrap_or_default();
                return Ok(zigzag(value));
            }
        }
        Err(match self.rest.len() < 10 {
            true => truncated("a number"),
            false => malformed("a number of more than 10 bytes"),
        })
    }

    /// A zig-zag varint of 32 bits.
    #[inline(always)]
    pub fn int(&mut self) -> Result<i32, Fail> {
        i32::try_from(self.long()?).map_err(|_| malformed("an int of more than 32 bits"))
    }

    /// A byte that is 0 or 1.
    #[inline(always)]
    pub fn boolean(&mut self) -> Result<bool, Fail> {
        match self.rest {
            [byte @ (0 | 1), rest @ ..] => {
                self.rest = rest;
                Ok(*byte == 1)
            }
            [] => Err(truncated("a boolean")),
            _ => Err(malformed("a boolean that is neither 0 nor 1")),
        }
    }

    /// As many bytes.
    #[inline(always)]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Fail> {
        match self.rest.split_first_chunk::<N>() {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(*bytes)
            }
            None => Err(truncated("a value of fixed size")),
        }
    }

    /// As many bytes.
    #[inline(always)]
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Fail> {
        match self.rest.split_at_checked(count) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(truncated("bytes or a string")),
        }
    }

    /// A length and as many bytes.
    #[inline(always)]
    pub fn bytes(&mut self) -> Result<&'a [u8], Fail> {
        let length = self.long()?;
        match usize::try_from(length) {
            Ok(length) => self.take(length),
            Err(_) => Err(malformed("a negative length")),
        }
    }

    /// A length and as many bytes; also what follows them, beginning with them.
    #[inline(always)]
    pub fn bytes_and_rest(&mut self) -> Result<(&'a [u8], &'a [u8]), Fail> {
        let length = self.long()?;
        let both = self.rest;
        match usize::try_from(length) {
            Ok(length) => Ok((self.take(length)?, both)),
            Err(_) => Err(malformed("a negative length")),
        }
    }

    /// The position of a union's branch or an enum's symbol, below `count`.
    #[inline(always)]
    pub fn position(&mut self, count: usize, what: &str) -> Result<usize, Fail> {
        let position = self.long()?;
        match usize::try_from(position) {
            Ok(position) if position < count => Ok(position),
            _ => Err(malformed(format!("{what} {position} of {count}"))),
        }
    }

    /// The head of a block; one without items follows the last one.
    #[inline(always)]
    pub fn block(&mut self) -> Result<Block, Fail> {
        let count = self.long()?;
        match usize::try_from(count) {
            Ok(count) => Ok(Block { count, size: None }),
            Err(_) => self.sized_block(count),
        }
    }

    #[inline(never)]
    fn sized_block(&mut self, count: i64) -> Result<Block, Fail> {
        let count = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
        match usize::try_from(self.long()?) {
            Ok(size) if size > self.rest.len() => Err(truncated("a block of items")),
            Ok(size) => Ok(Block { count, size: Some(size) }),
            Err(_) => Err(malformed("a block of a negative size")),
        }
    }

    /// Checks the size of a block whose items began when `before` bytes were left.
    #[inline]
    pub fn end_block(&self, block: Block, before: usize) -> Result<(), Fail> {
        match block.size {
            Some(size) if before - self.rest.len() != size => Err(malformed(format!(
                "a block of {size} bytes whose items have {}",
                before - self.rest.len()
            ))),
            _ => Ok(()),
        }
    }
}

#[inline(always)]
fn zigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// The bytes are not what the schema says.
#[cold]
pub fn malformed(message: impl Into<String>) -> Fail {
    Box::new(Reject::malformed(message))
}

/// The bytes end too early.
#[cold]
pub fn truncated(what: &str) -> Fail {
    Box::new(Reject::truncated(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_at_most_64_bits() {
        let cases: [(&[u8], Result<i64, &str>); 10] = [
            (b"\0", Ok(0)),
            (b"\x01", Ok(-1)),
            (b"\x02", Ok(1)),
            (b"\x80\x01", Ok(64)),
            (b"\x80\x80\x01", Ok(8192)),
            (b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01", Ok(i64::MAX)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Ok(i64::MIN)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", Err("a number of more than 64 bits")),
            (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", Err("a number of more than 64 bits")),
            (b"\x80\x80\x80", Err("ends inside of a number")),
        ];
        for (bytes, wanted) in cases {
            let long = Cursor::new(bytes).long().map_err(|reject| reject.message);
            let is_long = bytes.len() == 11;
            match wanted {
                Err(_) if is_long => assert!(long.is_err()),
                wanted => assert_eq!(long, wanted.map_err(str::to_owned), "{bytes:?}"),
            }
        }
        assert!(Cursor::new(b"\xfe\xff\xff\xff\x0f").int().is_ok_and(|int| int == i32::MAX));
        assert!(Cursor::new(b"\xfe\xff\xff\xff\x1f").int().is_err());
    }
}
