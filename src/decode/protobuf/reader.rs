//! Protobuf's wire format: tags, varints and lengths, one after the other.

use std::fmt::Display;

use smallvec::{SmallVec, smallvec};

use crate::decode::reject::{Reason, Reject};

/// Wire type of integers of any length.
pub const VARINT: u32 = 0;
/// Wire type of 8 bytes.
pub const FIXED64: u32 = 1;
/// Wire type of a length and as many bytes.
pub const BYTES: u32 = 2;
/// Wire type of what lasts until [`GROUP_END`].
pub const GROUP: u32 = 3;
/// Wire type of the end of a group.
pub const GROUP_END: u32 = 4;
/// Wire type of 4 bytes.
pub const FIXED32: u32 = 5;

/// How deep groups that nobody knows may nest.
const GROUPS_MAX: usize = 64;

/// What is wrong, before it is known where.
#[derive(Debug)]
pub enum Fault {
    /// The bytes end too early.
    Truncated,
    /// A varint has more than 64 bits.
    Varint,
    /// A field number or wire type that does not exist.
    Tag,
    /// A group ends that did not begin, or does not end where it should.
    Group,
    /// Another wire type than the field's.
    Wire(u32),
    /// Text that is no UTF-8.
    Utf8,
    /// A value beyond what this type can hold.
    Range(&'static str),
    /// With its place.
    Told(Box<Reject>),
}

impl From<Reject> for Fault {
    #[cold]
    fn from(reject: Reject) -> Self {
        Self::Told(Box::new(reject))
    }
}

impl Fault {
    /// As a bad row's reason; `place` says where it is.
    #[cold]
    pub fn reject(self, place: impl Display) -> Reject {
        match self {
            Self::Truncated => Reject::truncated(place),
            Self::Varint => Reject::malformed(format!("a varint of more than 64 bits in {place}")),
            Self::Tag => Reject::malformed(format!("a field that cannot be in {place}")),
            Self::Group => Reject::malformed(format!("a group that ends wrongly in {place}")),
            Self::Wire(wire) => Reject::malformed(format!("wire type {wire} in {place}")),
            Self::Utf8 => Reject::malformed(format!("no UTF-8 in {place}")),
            Self::Range(what) => {
                Reject::new(Reason::Value, format!("a value beyond {what} in {place}"))
            }
            Self::Told(reject) => *reject,
        }
    }

    /// The same, with its place.
    #[cold]
    pub fn at(self, place: impl Display) -> Self {
        match self {
            Self::Told(_) => self,
            fault => Self::Told(Box::new(fault.reject(place))),
        }
    }
}

/// Reads a message from its beginning to its end.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of all of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether everything was read.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// A field's number and wire type, as they are on the wire: 8 × number + wire type. The number is not 0.
    ///
    /// # Errors
    /// There is none.
    #[inline(always)]
    pub fn tag(&mut self) -> Result<u32, Fault> {
        let tag = self.varint()?;
        match u32::try_from(tag) {
            Ok(tag) if tag >= 8 && tag & 7 <= FIXED32 => Ok(tag),
            _ => Err(Fault::Tag),
        }
    }

    /// Goes behind `tag` if it comes next.
    #[inline(always)]
    pub fn takes(&mut self, tag: u32) -> bool {
        match self.rest {
            [byte, rest @ ..] if u32::from(*byte) == tag && tag < 0x80 => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// An integer of up to 64 bits.
    ///
    /// # Errors
    /// It ends too early or too late.
    #[inline(always)]
    pub fn varint(&mut self) -> Result<u64, Fault> {
        match self.rest {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            [low, high, rest @ ..] if *high < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*low & 0x7f) | u64::from(*high) << 7)
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Fault> {
        if let Some((word, _)) = self.rest.split_first_chunk::<8>() {
            let word = u64::from_le_bytes(*word);
            let ends = !word & 0x8080_8080_8080_8080;
            if ends != 0 {
                let len = ends.trailing_zeros() / 8 + 1;
                self.rest = self.rest.get(len as usize..).unwrap_or_default();
                // The 7 bits of each byte move together: first two bytes, then four, then eight.
                let bits = word & (u64::MAX >> (64 - 8 * len)) & 0x7f7f_7f7f_7f7f_7f7f;
                let bits = bits & 0x007f_007f_007f_007f | (bits & 0x7f00_7f00_7f00_7f00) >> 1;
                let bits = bits & 0x0000_3fff_0000_3fff | (bits & 0x3fff_0000_3fff_0000) >> 2;
                return Ok(bits & 0x0fff_ffff | (bits & 0x0fff_ffff_0000_0000) >> 4);
            }
        }
        let mut value = 0;
        for (at, byte) in self.rest.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if *byte < 0x80 {
                if at == 9 && *byte > 1 {
                    return Err(Fault::Varint);
                }
                self.rest = self.rest.get(at + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 { Fault::Truncated } else { Fault::Varint })
    }

    /// An `int32`. Negative ones come in 10 bytes, from some serializers in 5.
    ///
    /// # Errors
    /// As [`varint`](Self::varint), or it is beyond 32 bits.
    #[inline(always)]
    pub fn int32(&mut self) -> Result<i32, Fault> {
        let value = self.varint()?;
        match (i32::try_from(value.cast_signed()), u32::try_from(value)) {
            (Ok(value), _) => Ok(value),
            (_, Ok(value)) => Ok(value.cast_signed()),
            _ => Err(Fault::Range("32 bits")),
        }
    }

    /// A `uint32`.
    ///
    /// # Errors
    /// As [`varint`](Self::varint), or it is beyond 32 bits.
    #[inline(always)]
    pub fn uint32(&mut self) -> Result<u32, Fault> {
        match u32::try_from(self.varint()?) {
            Ok(value) => Ok(value),
            Err(_) => Err(Fault::Range("32 bits")),
        }
    }

    /// A `sint32`.
    ///
    /// # Errors
    /// As [`uint32`](Self::uint32).
    #[inline(always)]
    pub fn sint32(&mut self) -> Result<i32, Fault> {
        let value = self.uint32()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// A `sint64`.
    ///
    /// # Errors
    /// As [`varint`](Self::varint).
    #[inline(always)]
    pub fn sint64(&mut self) -> Result<i64, Fault> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// `N` bytes.
    ///
    /// # Errors
    /// There are fewer.
    #[inline(always)]
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(Fault::Truncated);
        };
        self.rest = rest;
        Ok(*bytes)
    }

    /// A length and as many bytes.
    ///
    /// # Errors
    /// There are fewer.
    #[inline(always)]
    pub fn bytes(&mut self) -> Result<&'a [u8], Fault> {
        let len = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        let Some((bytes, rest)) = self.rest.split_at_checked(len) else {
            return Err(Fault::Truncated);
        };
        self.rest = rest;
        Ok(bytes)
    }

    /// The same, of UTF-8.
    ///
    /// # Errors
    /// There are fewer, or they are something else.
    #[inline(always)]
    pub fn text(&mut self) -> Result<&'a [u8], Fault> {
        let text = self.bytes()?;
        if is_ascii(text) || simdutf8::basic::from_utf8(text).is_ok() {
            Ok(text)
        } else {
            Err(Fault::Utf8)
        }
    }

    /// What is inside of group `number`, whose beginning was read.
    ///
    /// # Errors
    /// It does not end, or what is inside is malformed.
    pub fn group(&mut self, number: u32) -> Result<&'a [u8], Fault> {
        let all = self.rest;
        let mut open: SmallVec<[u32; 8]> = smallvec![number];
        while let Some(inner) = open.last().copied() {
            let inside = all.len() - self.rest.len();
            let tag = self.tag()?;
            match tag & 7 {
                GROUP if open.len() == GROUPS_MAX => {
                    return Err(Reject::limit(format_args!("{GROUPS_MAX} nested groups")).into());
                }
                GROUP => open.push(tag >> 3),
                GROUP_END if tag >> 3 != inner => return Err(Fault::Group),
                GROUP_END => {
                    open.pop();
                    if open.is_empty() {
                        return Ok(all.get(..inside).unwrap_or_default());
                    }
                }
                _ => self.skip(tag)?,
            }
        }
        Err(Fault::Group)
    }

    /// Goes behind the field whose `tag` was read.
    ///
    /// # Errors
    /// It is malformed or ends too early.
    pub fn skip(&mut self, tag: u32) -> Result<(), Fault> {
        match tag & 7 {
            VARINT => self.varint().map(drop),
            FIXED64 => self.fixed::<8>().map(drop),
            BYTES => self.bytes().map(drop),
            GROUP => self.group(tag >> 3).map(drop),
            GROUP_END => Err(Fault::Group),
            _ => self.fixed::<4>().map(drop),
        }
    }

    /// Goes to the end.
    ///
    /// # Errors
    /// As [`skip`](Self::skip).
    pub fn skip_all(&mut self) -> Result<(), Fault> {
        while !self.is_empty() {
            let tag = self.tag()?;
            self.skip(tag)?;
        }
        Ok(())
    }
}

/// Texts are mostly short: no call.
#[inline(always)]
fn is_ascii(text: &[u8]) -> bool {
    let (chunks, rest) = text.as_chunks::<8>();
    let mut all = chunks.iter().fold(0, |all, chunk| all | u64::from_ne_bytes(*chunk));
    all = rest.iter().fold(all, |all, byte| all | u64::from(*byte));
    all & 0x8080_8080_8080_8080 == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    #[test]
    fn varints_have_at_most_64_bits() {
        for value in (0..64).flat_map(|bit| [1 << bit, (1 << bit) - 1]).chain([u64::MAX]) {
            for behind in [&b""[..], b"x", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
                let bytes = [varint(value), behind.to_vec()].concat();
                let mut reader = Reader::new(&bytes);
                assert_eq!(reader.varint().expect("a varint"), value);
                assert_eq!(reader.rest, behind);
            }
            let bytes = varint(value);
            for end in 0..bytes.len() {
                assert!(matches!(Reader::new(&bytes[..end]).varint(), Err(Fault::Truncated)));
            }
        }
        let over = [0xff; 9];
        for last in [&b"\x02"[..], b"\x7f", b"\x80\x01", b"\xff"] {
            let bytes = [&over[..], last].concat();
            assert!(matches!(Reader::new(&bytes).varint(), Err(Fault::Varint)), "{bytes:x?}");
        }
        // More bytes than needed are allowed.
        assert_eq!(Reader::new(b"\x81\x80\x80\x00").varint().expect("a varint"), 1);
    }

    #[test]
    fn small_integers_stay_in_their_range() {
        for value in [0, 1, -1, i32::MAX, i32::MIN, 77, -300] {
            let long = varint(i64::from(value).cast_unsigned());
            assert_eq!(Reader::new(&long).int32().expect("in range"), value);
            let short = varint(u64::from(value.cast_unsigned()));
            assert_eq!(Reader::new(&short).int32().expect("in range"), value);
            let zigzag = varint(u64::from(((value << 1) ^ (value >> 31)).cast_unsigned()));
            assert_eq!(Reader::new(&zigzag).sint32().expect("in range"), value);
        }
        for value in [1 << 32, i64::MAX.cast_unsigned(), (-(1_i64 << 31) - 1).cast_unsigned()] {
            assert!(matches!(Reader::new(&varint(value)).int32(), Err(Fault::Range(_))));
            assert!(matches!(Reader::new(&varint(value)).uint32(), Err(Fault::Range(_))));
            assert!(matches!(Reader::new(&varint(value)).sint32(), Err(Fault::Range(_))));
        }
    }

    #[test]
    fn groups_end_where_they_began() {
        // 3 { 1: 5, 4 { 2: "a" } }, then 1: 7.
        let bytes = b"\x1b\x08\x05\x23\x12\x01a\x24\x1c\x08\x07";
        let mut reader = Reader::new(bytes);
        let tag = reader.tag().expect("a tag");
        assert_eq!(reader.group(tag >> 3).expect("a group"), &bytes[1..8]);
        assert_eq!(reader.rest, b"\x08\x07");
        for (bytes, what) in [
            (&b"\x1b\x24"[..], "wrongly"),
            (b"\x1b\x23\x1c\x24", "wrongly"),
            (b"\x1c", "wrongly"),
            (b"\x1b\x08", "inside"),
            (&b"\x1b".repeat(100), "64"),
        ] {
            let mut reader = Reader::new(bytes);
            let reject = reader.skip_all().expect_err("bad").reject("it");
            assert!(reject.message.contains(what), "{reject}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes: Vec<u8>) {
            let _ = Reader::new(&bytes).skip_all();
            let _ = Reader::new(&bytes).group(1);
            let _ = Reader::new(&bytes).text();
        }
    }
}
