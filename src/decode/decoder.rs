//! [`Decoder`]: what every format does.

use arrow::array::ArrayRef;

use super::reject::Reject;
use super::schemas::SchemaKey;
use crate::error::Result;

/// The bytes of a key or a payload.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a> {
    /// As the producer wrote them.
    pub bytes: &'a [u8],
    /// What the record's header `__key_schema_id` or `__value_schema_id` holds: some serializers of schema registries
    /// put the schema there instead of in front of the value.
    pub schema_header: Option<&'a [u8]>,
}

impl<'a> Value<'a> {
    /// A value whose schema, if it has one, is in front of it.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, schema_header: None }
    }
}

/// A value that could not be decoded.
#[derive(Clone, Debug)]
pub struct BadRow {
    /// Which of the values.
    pub row: usize,
    /// Why.
    pub reject: Reject,
}

/// Turns the bytes of one topic's keys or payloads into one column.
pub trait Decoder: Send {
    /// Decodes `values` into an array of as many rows (but see [`take_counts`](Self::take_counts)). `None` becomes null, and so does what cannot be decoded, which is
    /// named in `bad`, in the order of the rows; its neighbours are exactly what they would be without it.
    ///
    /// # Errors
    /// A failure of ours, not of the data: nothing was decoded.
    fn decode(&mut self, values: &[Option<Value<'_>>], bad: &mut Vec<BadRow>) -> Result<ArrayRef>;

    /// Schemas that have to be fetched before these values can be decoded.
    fn unfetched(&self, _values: &[Option<Value<'_>>]) -> Vec<SchemaKey> {
        Vec::new()
    }

    /// Whether values may name their schema, in their first bytes or in a header.
    fn reads_schemas(&self) -> bool {
        false
    }

    /// How many rows each value of the last `decode` became, if not always one. A null and a bad value are one row.
    fn take_counts(&mut self) -> Option<Vec<usize>> {
        None
    }

    /// Values so far that became text because a limit left no column of their own.
    fn texts(&self) -> u64 {
        0
    }
}
