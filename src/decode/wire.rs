//! How values name their schema: the frame that serializers of schema registries put around them.

use smallvec::{SmallVec, smallvec};

use super::decoder::Value;
use super::reject::Reject;
use super::schemas::SchemaKey;

/// In front of an id of the registry: 4 bytes, big-endian.
const MAGIC_ID: u8 = 0;

/// In front of a GUID: 16 bytes.
const MAGIC_GUID: u8 = 1;

/// Messages nest about this deep at most; Protobuf's own parsers stop at 100.
const INDEXES_MAX: usize = 100;

/// A value without its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framed<'a> {
    /// The schema it was written with.
    pub schema: SchemaKey,
    /// What follows the schema. For Protobuf the message indexes are in front of it, unless they are in the header.
    pub body: &'a [u8],
    /// The schema was in a header of the record, and this followed it there: for Protobuf the message indexes.
    pub header_rest: Option<&'a [u8]>,
}

/// Where a message is in its file: the index of the outermost one, then inside of that, and so on.
pub type MessageIndexes = SmallVec<[u32; 4]>;

/// Finds the schema of `value`. A header of the record wins, as it does in Confluent's deserializers, and then the
/// value has no prefix.
///
/// # Errors
/// It names no schema.
#[inline]
pub fn frame<'a>(value: &Value<'a>) -> Result<Framed<'a>, Reject> {
    match value.schema_header {
        Some(header) => {
            let (schema, rest) = split(header, "the header with the schema")?;
            Ok(Framed { schema, body: value.bytes, header_rest: Some(rest) })
        }
        None => {
            let (schema, body) = split(value.bytes, "the schema's prefix")?;
            Ok(Framed { schema, body, header_rest: None })
        }
    }
}

impl<'a> Framed<'a> {
    /// The message indexes of a Protobuf value, wherever they are, and the message itself.
    ///
    /// # Errors
    /// They are not there, or too many.
    pub fn message(&self) -> Result<(MessageIndexes, &'a [u8]), Reject> {
        match self.header_rest {
            Some(header) => Ok((message_indexes(header)?.0, self.body)),
            None => message_indexes(self.body),
        }
    }
}

#[inline]
fn split<'a>(bytes: &'a [u8], what: &str) -> Result<(SchemaKey, &'a [u8]), Reject> {
    match bytes {
        [MAGIC_ID, a, b, c, d, rest @ ..] => {
            Ok((SchemaKey::Id(u32::from_be_bytes([*a, *b, *c, *d])), rest))
        }
        [MAGIC_GUID, rest @ ..] => match rest.split_first_chunk::<16>() {
            Some((guid, rest)) => Ok((SchemaKey::Guid(*guid), rest)),
            None => Err(Reject::truncated(what)),
        },
        [] | [MAGIC_ID, ..] => Err(Reject::truncated(what)),
        [other, ..] => {
            Err(Reject::malformed(format!("no schema: {what} begins with byte 0x{other:02x}")))
        }
    }
}

/// Reads the message indexes that Confluent's serializers put behind the schema: a count and as many numbers, all
/// zig-zag varints. A count of 0 is short for the first message of the file. Also returns what follows them.
///
/// # Errors
/// They end too early, are negative, or too many.
pub fn message_indexes(body: &[u8]) -> Result<(MessageIndexes, &[u8]), Reject> {
    let (count, mut rest) = index(body)?;
    if count == 0 {
        return Ok((smallvec![0], rest));
    }
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > INDEXES_MAX {
        return Err(Reject::limit(format_args!("{INDEXES_MAX} message indexes")));
    }
    let mut indexes = MessageIndexes::new();
    for _ in 0..count {
        let (index, behind) = index(rest)?;
        indexes.push(index);
        rest = behind;
    }
    Ok((indexes, rest))
}

fn index(bytes: &[u8]) -> Result<(u32, &[u8]), Reject> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            // Zig-zag: odd ones are negative.
            return match u32::try_from(value >> 1) {
                Ok(index) if value & 1 == 0 => Ok((index, bytes.get(at + 1..).unwrap_or_default())),
                _ => Err(Reject::malformed("a message index that is no small number")),
            };
        }
    }
    Err(match bytes.len() < 5 {
        true => Reject::truncated("the message indexes"),
        false => Reject::malformed("a message index of more than 5 bytes"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUID: [u8; 16] = *b"0123456789abcdef";

    fn framed<'a>(bytes: &'a [u8], header: Option<&'a [u8]>) -> Result<Framed<'a>, String> {
        frame(&Value { bytes, schema_header: header }).map_err(|reject| reject.message)
    }

    #[test]
    fn schemas_are_in_front_or_in_a_header() {
        let guid = [b"\x01".as_slice(), &GUID].concat();
        let guid_body = [guid.as_slice(), b"body"].concat();
        let id = framed(b"\0\0\0\x01\x02body", None).expect("framed");
        assert_eq!((id.schema, id.body, id.header_rest), (SchemaKey::Id(258), &b"body"[..], None));
        let id = framed(b"\0\xff\xff\xff\xff", None).expect("framed");
        assert_eq!((id.schema, id.body), (SchemaKey::Id(u32::MAX), &b""[..]));
        let prefix = framed(&guid_body, None).expect("framed");
        assert_eq!((prefix.schema, prefix.body), (SchemaKey::Guid(GUID), &b"body"[..]));
        let header = framed(b"\0body", Some(&guid)).expect("framed");
        assert_eq!((header.schema, header.body), (SchemaKey::Guid(GUID), &b"\0body"[..]));
        let header = framed(b"body", Some(b"\0\0\0\0\x07")).expect("framed");
        assert_eq!((header.schema, header.body), (SchemaKey::Id(7), &b"body"[..]));
    }

    /// The value, its header, what is said of them.
    type Refused<'a> = (&'a [u8], Option<&'a [u8]>, &'a str);

    #[test]
    fn what_names_no_schema_is_refused() {
        let cases: [Refused<'_>; 6] = [
            (b"", None, "ends inside of the schema's prefix"),
            (b"\0\0\0\0", None, "ends inside of the schema's prefix"),
            (b"\x01\0\0\0\0", None, "ends inside of the schema's prefix"),
            (b"{}", None, "no schema: the schema's prefix begins with byte 0x7b"),
            (b"\0\0\0\0\x01", Some(b""), "ends inside of the header with the schema"),
            (
                b"\0\0\0\0\x01",
                Some(b"7"),
                "no schema: the header with the schema begins with byte 0x37",
            ),
        ];
        for (bytes, header, error) in cases {
            assert_eq!(framed(bytes, header), Err(error.to_owned()));
        }
    }

    #[test]
    fn message_indexes_are_where_the_schema_is() {
        let cases: [(&[u8], &[u32]); 4] = [
            (b"\0rest", &[0]),
            (b"\x02\0rest", &[0]),
            (b"\x04\x02\x06rest", &[1, 3]),
            (b"\x02\x80\x02rest", &[128]),
        ];
        for (bytes, wanted) in cases {
            let (indexes, rest) = message_indexes(bytes).expect("indexes");
            assert_eq!((indexes.as_slice(), rest), (wanted, &b"rest"[..]));
        }
        let prefix = framed(b"\0\0\0\0\x01\x02\x04body", None).expect("framed");
        assert_eq!(prefix.message().expect("indexes"), (smallvec![2], &b"body"[..]));
        // confluent-kafka-python's SchemaId.guid_to_bytes puts them behind the GUID.
        let header = [b"\x01".as_slice(), &GUID, b"\x02\x04"].concat();
        let header = framed(b"body", Some(&header)).expect("framed");
        assert_eq!(header.message().expect("indexes"), (smallvec![2], &b"body"[..]));

        let bad: [&[u8]; 6] = [
            b"",
            b"\x02",
            b"\x01",
            b"\x02\x03",
            b"\xff\xff\xff\xff\x0f",
            b"\x80\x80\x80\x80\x80\x01",
        ];
        for bytes in bad {
            message_indexes(bytes).expect_err("bad");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes: Vec<u8>, header: Option<Vec<u8>>) {
            if let Ok(framed) = framed(&bytes, header.as_deref()) {
                let _ = framed.message();
            }
        }
    }
}
