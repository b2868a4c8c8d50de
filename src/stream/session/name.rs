//! [`SessionName`]: who a session is.

use std::sync::Arc;

use crate::error::{Error, Result};

/// Longest name, in bytes. Kafka's strings have 16-bit lengths, which librdkafka does not check.
const NAME_BYTES_MAX: usize = 1024;

/// Who a session is: `<group.id>:<name>` as the client said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionName {
    full: Arc<str>,
    group_len: usize,
}

impl SessionName {
    /// Splits at the first colon.
    ///
    /// # Errors
    /// rafka's texts: no colon, or no group in front of it.
    pub fn parse(full: &str) -> Result<Self> {
        let group_len = full.find(':').ok_or_else(|| Error::invalid("Cannot parse group.id"))?;
        if full.len() > NAME_BYTES_MAX {
            return Err(Error::invalid(format!(
                "Cannot parse group.id: the name has {} bytes, more than {NAME_BYTES_MAX}",
                full.len()
            )));
        }
        if group_len == 0 {
            return Err(Error::invalid(
                "Failed to register Consumer (attr: `group.id` is missing)",
            ));
        }
        Ok(Self { full: Arc::from(full), group_len })
    }

    /// The consumer group.
    pub fn group(&self) -> &str {
        &self.full[..self.group_len]
    }

    /// Group and name together.
    pub fn full(&self) -> &Arc<str> {
        &self.full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_the_first_colon() {
        let name = SessionName::parse("orders:worker:1").expect("a name");
        assert_eq!((name.group(), &**name.full()), ("orders", "orders:worker:1"));
        assert_eq!(
            SessionName::parse("worker").expect_err("no colon").message(),
            "Cannot parse group.id"
        );
        assert!(
            SessionName::parse(":worker")
                .expect_err("no group")
                .message()
                .contains("`group.id` is missing")
        );
    }
}
