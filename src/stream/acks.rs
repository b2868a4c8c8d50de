//! What an ack says, and what it means for the position of a partition.

use crate::error::{Error, Result};

/// `<topic>:<partition>:<offset>`: the message at `offset` and everything before it is done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The topic's name.
    pub topic: String,
    /// The partition's number.
    pub partition: i32,
    /// The offset of the last message that is done with.
    pub offset: i64,
}

/// Parses the values of `RPUSH acks`: each one ack, or several separated by commas.
///
/// # Errors
/// rafka's texts, naming the ack.
pub fn parse_acks<'a>(values: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Ack>> {
    let mut acks = Vec::new();
    for value in values {
        for ack in value.split(|byte| *byte == b',') {
            acks.push(parse_ack(ack)?);
        }
    }
    Ok(acks)
}

fn parse_ack(ack: &[u8]) -> Result<Ack> {
    let unparsable =
        || Error::invalid(format!("Cannot parse ack: '{}'", String::from_utf8_lossy(ack)));
    let text = std::str::from_utf8(ack).map_err(|_| unparsable())?;
    let mut parts = text.trim().split(':');
    let (Some(topic), Some(partition), Some(offset), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(unparsable());
    };
    let partition: i32 = partition.parse().map_err(|_| unparsable())?;
    let offset: i64 = offset.parse().map_err(|_| unparsable())?;
    if offset < 0 {
        return Err(Error::invalid(format!("offset cannot be negative, got {offset}")));
    }
    if topic.is_empty() || partition < 0 || offset == i64::MAX {
        return Err(unparsable());
    }
    Ok(Ack { topic: topic.to_owned(), partition, offset })
}

/// How far a partition got since it became ours. All offsets are those of the next message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Where reading began, once the first message was fetched.
    pub start: Option<i64>,
    /// After the last message that a client got.
    pub delivered: Option<i64>,
    /// After the last message that was acked.
    pub acked: Option<i64>,
}

impl Position {
    /// Whether an ack of `offset` is about messages that were delivered, hence legal.
    pub fn covers(&self, offset: i64) -> bool {
        self.delivered.is_some_and(|delivered| offset < delivered)
    }

    /// Where an ack of `offset` moves the position, if it does: late and repeated acks never rewind it.
    pub fn advance(&self, offset: i64) -> Option<i64> {
        let next = offset + 1;
        (self.acked.or(self.start).is_none_or(|before| next > before)).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<Vec<Ack>> {
        parse_acks([value.as_bytes()].into_iter())
    }

    #[test]
    fn acks_parse() {
        let ack = |topic: &str, partition, offset| Ack { topic: topic.into(), partition, offset };
        assert_eq!(parse("t:0:41").unwrap(), [ack("t", 0, 41)]);
        assert_eq!(parse("t:0:41,a.b-c:12:0").unwrap(), [ack("t", 0, 41), ack("a.b-c", 12, 0)]);
        for (bad, why) in [
            ("", "Cannot parse ack: ''"),
            ("t", "Cannot parse ack: 't'"),
            ("t:0", "Cannot parse ack: 't:0'"),
            ("t:0:1:2", "Cannot parse ack: 't:0:1:2'"),
            ("t:x:1", "Cannot parse ack: 't:x:1'"),
            ("t:0:1x", "Cannot parse ack: 't:0:1x'"),
            ("t:0:-1", "offset cannot be negative, got -1"),
            (":0:1", "Cannot parse ack: ':0:1'"),
            ("t:0:9223372036854775807", "Cannot parse ack: 't:0:9223372036854775807'"),
            ("t:0:9223372036854775808", "Cannot parse ack: 't:0:9223372036854775808'"),
            ("t:0:1,", "Cannot parse ack: ''"),
        ] {
            assert_eq!(parse(bad).expect_err(bad).message(), why);
        }
        assert!(parse_acks([b"t:0:\xff".as_slice()].into_iter()).is_err());
    }

    #[test]
    fn positions_only_advance() {
        let mut position = Position { start: Some(10), delivered: Some(15), acked: None };
        assert!(position.covers(14) && !position.covers(15));
        assert_eq!(position.advance(9), None, "before what was read here");
        assert_eq!(position.advance(12), Some(13));
        position.acked = Some(13);
        assert_eq!(position.advance(12), None);
        assert_eq!(position.advance(11), None);
        assert_eq!(position.advance(14), Some(15));
        assert!(!Position::default().covers(0));
    }
}
