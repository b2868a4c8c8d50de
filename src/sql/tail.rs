//! What a topic has behind its table: batches that its sink has read and not stored yet, then those of its window. Together
//! with the table they leave no gap, whatever the window has let go.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, Int64Type};

use crate::error::{Error, Result};
use crate::stream::encoded::EncodedBatch;
use crate::stream::window::Positions;

/// What a sink has read and not stored yet.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    /// Its batches.
    pub batches: Vec<Arc<EncodedBatch>>,
    /// Where it is: behind them.
    pub ends: Positions,
}

/// The batches behind what is stored: those of the sink, and of a window that begins at `starts` what lies behind them. Where
/// the window begins later, records lie between that neither has, and nothing behind these counts yet.
///
/// # Errors
/// A batch that is none of a topic.
pub fn tail(
    pending: &Pending,
    starts: &Positions,
    window: &[Arc<EncodedBatch>],
) -> Result<Vec<Arc<EncodedBatch>>> {
    let mut batches = pending.batches.clone();
    let is_whole = pending.ends.covers(starts);
    for batch in window {
        if pending.ends.covers(&batch.ends) {
            continue;
        }
        if is_whole && batch.starts.covers(&pending.ends) {
            batches.push(batch.clone());
        } else if let Some(rest) = rest_of(batch, pending, starts)? {
            batches.push(Arc::new(rest));
        }
    }
    Ok(batches)
}

/// The rows of a batch that lie behind the sink, in partitions where nothing is missing between.
fn rest_of(
    batch: &EncodedBatch,
    pending: &Pending,
    starts: &Positions,
) -> Result<Option<EncodedBatch>> {
    let malformed = || Error::internal("a batch without partitions and offsets");
    let column = |name: &str| batch.batch.column_by_name(name).ok_or_else(malformed);
    let partitions = column("partition")?.as_primitive_opt::<Int32Type>().ok_or_else(malformed)?;
    let offsets = column("offset")?.as_primitive_opt::<Int64Type>().ok_or_else(malformed)?;
    let is_wanted = |(partition, offset): (&i32, &i64)| {
        let at = pending.ends.get(*partition);
        Some(starts.get(*partition) <= at && *offset >= at)
    };
    let wanted: BooleanArray =
        partitions.values().iter().zip(offsets.values()).map(is_wanted).collect();
    if wanted.true_count() == 0 {
        return Ok(None);
    }
    let rows = filter_record_batch(&batch.batch, &wanted)
        .map_err(|error| Error::internal(error.to_string()))?;
    EncodedBatch::new(&rows, batch.starts.clone(), batch.ends.clone()).map(Some)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch};

    use super::*;

    fn batch(starts: &[i64], rows: &[(i32, i64)], ends: &[i64]) -> Arc<EncodedBatch> {
        let partitions: ArrayRef = Arc::new(Int32Array::from_iter(rows.iter().map(|row| row.0)));
        let offsets: ArrayRef = Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.1)));
        let columns = [("partition", partitions), ("offset", offsets)];
        let rows = RecordBatch::try_from_iter(columns).expect("a batch");
        let positions = |offsets: &[i64]| Positions::new(offsets.to_vec());
        Arc::new(EncodedBatch::new(&rows, positions(starts), positions(ends)).expect("encoded"))
    }

    fn rows(batches: &[Arc<EncodedBatch>]) -> Vec<(i32, i64)> {
        let of = |batch: &Arc<EncodedBatch>| {
            let partitions = batch.batch.column(0).as_primitive::<Int32Type>().clone();
            let offsets = batch.batch.column(1).as_primitive::<Int64Type>().clone();
            (0..batch.batch.num_rows())
                .map(move |row| (partitions.value(row), offsets.value(row)))
                .collect::<Vec<_>>()
        };
        batches.iter().flat_map(of).collect()
    }

    #[test]
    fn nothing_is_there_twice_or_behind_a_gap() {
        let first = batch(&[0, 0], &[(0, 0), (0, 1), (1, 0)], &[2, 1]);
        let second = batch(&[2, 1], &[(0, 2), (1, 1)], &[3, 2]);
        let third = batch(&[3, 2], &[(0, 3), (1, 2)], &[4, 3]);
        let window = [first.clone(), second.clone(), third.clone()];
        let at = |batches: &[&Arc<EncodedBatch>], ends: &[i64]| Pending {
            batches: batches.iter().map(|batch| (*batch).clone()).collect(),
            ends: Positions::new(ends.to_vec()),
        };
        let start = Positions::new(vec![0, 0]);
        // The sink is where the window is, or within it.
        let found = tail(&at(&[], &[4, 3]), &start, &window).expect("a tail");
        assert_eq!(rows(&found), []);
        let found = tail(&at(&[&second], &[3, 2]), &start, &window).expect("a tail");
        assert_eq!(rows(&found), [(0, 2), (1, 1), (0, 3), (1, 2)]);
        assert!(Arc::ptr_eq(&found[1], &third), "shared");
        // It has read a part of a batch.
        let part = batch(&[0, 0], &[(0, 0)], &[1, 0]);
        let found = tail(&at(&[&part], &[1, 0]), &start, &window).expect("a tail");
        assert_eq!(rows(&found), [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (0, 3), (1, 2)]);
        // The window has let go of what it has not read, in one partition.
        let found = tail(&at(&[], &[1, 2]), &Positions::new(vec![3, 2]), &window[2..]);
        assert_eq!(rows(&found.expect("a tail")), [(1, 2)]);
        // The window has let go of what it has read.
        let found =
            tail(&at(&[&first, &second], &[3, 2]), &Positions::new(vec![3, 2]), &window[2..]);
        assert_eq!(rows(&found.expect("a tail")).len(), 7);
    }
}
