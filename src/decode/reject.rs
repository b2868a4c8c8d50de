//! Why a record could not be decoded, and how much one record may ask for.

use std::fmt::{Display, Formatter};

/// Characters that are kept of what is said about a schema: errors may quote it, and it may have megabytes.
const SCHEMA_CHARS_MAX: usize = 500;

/// Why a value became a bad row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// For metrics: one of a few words.
    pub reason: Reason,
    /// For people: what and where.
    pub message: String,
}

/// The kinds of bad rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The bytes are not of the format.
    Malformed,
    /// They are, but end too early or too late.
    Truncated,
    /// A value that the column's type cannot hold, or the schema does not allow.
    Value,
    /// One record asks for more than the limits.
    Limit,
    /// The schema it names is unknown or cannot be used.
    Schema,
}

impl Reason {
    /// As a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Truncated => "truncated",
            Self::Value => "value",
            Self::Limit => "limit",
            Self::Schema => "schema",
        }
    }
}

impl Reject {
    /// A bad row.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// The bytes are not of the format.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(Reason::Malformed, message)
    }

    /// The bytes end before the value does.
    pub fn truncated(what: impl Display) -> Self {
        Self::new(Reason::Truncated, format!("ends inside of {what}"))
    }

    /// A value that its column cannot hold.
    pub fn value(message: impl Into<String>) -> Self {
        Self::new(Reason::Value, message)
    }

    /// More than `what`.
    pub fn limit(what: impl Display) -> Self {
        Self::new(Reason::Limit, format!("more than {what}"))
    }

    /// The schema is unknown or cannot be used. A long message is cut.
    pub fn schema(message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(SCHEMA_CHARS_MAX) {
            message.truncate(end);
            message.push('…');
        }
        Self::new(Reason::Schema, message)
    }
}

impl Display for Reject {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

/// What one record may ask for; beyond it is a bad row.
#[derive(Clone, Copy, Debug)]
pub struct RecordLimits {
    /// Bytes of its decoded values.
    pub bytes_max: usize,
    /// Items of all its lists and maps, and fields of all its objects.
    pub elements_max: usize,
    /// Nesting.
    pub depth_max: usize,
}

impl Default for RecordLimits {
    fn default() -> Self {
        Self { bytes_max: 64 << 20, elements_max: 1_000_000, depth_max: 64 }
    }
}

/// Counts what one record has asked for.
#[derive(Debug)]
pub struct Meter {
    bytes_left: usize,
    elements_left: usize,
    /// Of both, before anything was counted.
    max: usize,
}

impl Meter {
    /// For one record.
    #[inline]
    pub fn new(limits: &RecordLimits) -> Self {
        Self {
            bytes_left: limits.bytes_max,
            elements_left: limits.elements_max,
            max: limits.bytes_max.saturating_add(limits.elements_max),
        }
    }

    /// Bytes and elements so far.
    #[inline]
    pub fn asked(&self) -> usize {
        self.max.saturating_sub(self.bytes_left).saturating_sub(self.elements_left)
    }

    /// `count` more bytes.
    ///
    /// # Errors
    /// Beyond the limit.
    #[inline]
    pub fn bytes(&mut self, count: usize) -> Result<(), Reject> {
        match self.bytes_left.checked_sub(count) {
            Some(left) => {
                self.bytes_left = left;
                Ok(())
            }
            None => Err(Reject::limit("the bytes one record may have")),
        }
    }

    /// `count` more elements.
    ///
    /// # Errors
    /// Beyond the limit.
    #[inline]
    pub fn elements(&mut self, count: usize) -> Result<(), Reject> {
        match self.elements_left.checked_sub(count) {
            Some(left) => {
                self.elements_left = left;
                Ok(())
            }
            None => Err(Reject::limit("the elements one record may have")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_schemas_is_short() {
        assert_eq!(Reject::schema("schema 7: gone").message, "schema 7: gone");
        assert_eq!(Reject::schema("ä".repeat(500)).message, "ä".repeat(500));
        assert_eq!(Reject::schema("ä".repeat(9_000)).message, "ä".repeat(500) + "…");
    }
}
