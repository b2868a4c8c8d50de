//! [`Pieces`]: a batch in messages that clients take. gRPC refuses messages over 4 MB unless a client says otherwise.

use std::ops::Range;

use arrow::array::{Array, RecordBatch};
use arrow_ipc::CompressionType;

use crate::error::Result;
use crate::stream::encoded::BatchMessage;

/// Most bytes of a message's body, which leaves room for what is around it. A single row may be larger.
pub(super) const BODY_BYTES_MAX: usize = 3 << 20;

/// See the top of this file. At least one message, so that a batch without rows is one, too.
pub(super) struct Pieces {
    batch: RecordBatch,
    compression: Option<CompressionType>,
    /// Rows that are in no message yet; `None` when all messages are made.
    rest: Option<Range<usize>>,
    /// Rows of the next message, by what is known of their size.
    guess: usize,
}

impl Pieces {
    /// The first `rows` rows of `batch`.
    pub fn new(batch: RecordBatch, rows: usize, compression: Option<CompressionType>) -> Self {
        let size = |column: &dyn Array| column.to_data().get_slice_memory_size().unwrap_or(0);
        let bytes = batch.columns().iter().map(|column| size(column)).sum();
        let guess = rows_of_a_message(batch.num_rows(), bytes);
        Self { batch, compression, rest: Some(0..rows), guess }
    }

    /// The next message and its rows.
    ///
    /// # Errors
    /// As [`BatchMessage::new`].
    pub fn next(&mut self) -> Result<Option<(Range<usize>, BatchMessage)>> {
        let Some(rest) = self.rest.take() else { return Ok(None) };
        let mut rows = rest.len().min(self.guess);
        loop {
            let message = BatchMessage::new(&self.batch.slice(rest.start, rows), self.compression)?;
            let bytes = message.body.len();
            if bytes > BODY_BYTES_MAX && rows > 1 {
                rows /= 2;
                continue;
            }
            self.guess = rows_of_a_message(rows, bytes);
            let end = rest.start + rows;
            self.rest = Some(end..rest.end).filter(|rest| !rest.is_empty());
            return Ok(Some((rest.start..end, message)));
        }
    }
}

/// How many rows are a full message, if so many are so many bytes.
fn rows_of_a_message(rows: usize, bytes: usize) -> usize {
    let full = rows as u128 * BODY_BYTES_MAX as u128 / bytes.max(1) as u128;
    usize::try_from(full).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};

    use super::*;

    /// Rows and the largest body of the messages of texts with these lengths.
    fn pieces(lengths: &[usize], rows: usize) -> (Vec<Range<usize>>, usize) {
        let texts: Vec<String> = lengths.iter().map(|length| "x".repeat(*length)).collect();
        let column: ArrayRef = Arc::new(StringArray::from(texts));
        let batch = RecordBatch::try_from_iter([("text", column)]).expect("a batch");
        let mut pieces = Pieces::new(batch, rows, None);
        let (mut found, mut largest) = (Vec::new(), 0);
        while let Some((rows, message)) = pieces.next().expect("encoded") {
            largest = largest.max(message.body.len());
            found.push(rows);
        }
        (found, largest)
    }

    #[test]
    fn messages_are_as_large_as_they_may_be() {
        let (found, largest) = pieces(&[1 << 10; 10_000], 9_999);
        assert!(largest <= BODY_BYTES_MAX);
        assert_eq!(found.len(), (9_999 * 1_032_usize).div_ceil(BODY_BYTES_MAX), "{found:?}");
        let mut at = 0;
        for rows in found {
            assert_eq!(rows.start, at);
            at = rows.end;
        }
        assert_eq!(at, 9_999);
    }

    #[test]
    fn a_large_row_does_not_make_small_messages_of_the_others() {
        let mut lengths = vec![10; 5_000];
        lengths[0] = 4 << 20;
        let (found, _) = pieces(&lengths, 5_000);
        assert_eq!(found.first(), Some(&(0..1)));
        assert!(found.len() < 30, "{found:?}");
        assert_eq!(found.iter().map(|rows| rows.len()).sum::<usize>(), 5_000);
    }

    #[test]
    fn no_rows_are_one_message() {
        let one = vec![Range::default()];
        assert_eq!(pieces(&[], 0).0, one);
        assert_eq!(pieces(&[5, 5], 0).0, one);
    }
}
