//! Text: one Utf8 column.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};

use super::decoder::{BadRow, Decoder, Value};
use super::raw::gather;
use super::reject::Reject;
use crate::error::{Error, Result};

/// See the top of this file.
#[derive(Debug, Default)]
pub struct TextDecoder;

impl TextDecoder {
    /// It has no settings.
    pub fn new() -> Self {
        Self
    }
}

impl Decoder for TextDecoder {
    fn decode(&mut self, values: &[Option<Value<'_>>], bad: &mut Vec<BadRow>) -> Result<ArrayRef> {
        let (offsets, data, nulls) = gather(values, bad, |value| {
            simdutf8::basic::from_utf8(value).map(|_| ()).map_err(|_| {
                let at =
                    std::str::from_utf8(value).map_or_else(|error| error.valid_up_to(), str::len);
                Reject::malformed(format!("no UTF-8 at byte {at}"))
            })
        });
        let array = StringArray::try_new(offsets, data, nulls);
        Ok(Arc::new(array.map_err(|error| Error::internal(error.to_string()))?))
    }
}
