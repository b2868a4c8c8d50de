//! [`EncodedBatch`]: a batch of a stream, held once, as the IPC message that readers get.

use std::collections::HashMap;
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow_ipc::reader::read_record_batch;
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_ipc::{CompressionType, MetadataVersion, root_as_message};
use bytes::Bytes;
use parking_lot::Mutex;

use super::window::Positions;
use crate::error::{Error, Result};

/// The IPC message of a batch.
#[derive(Clone, Debug)]
pub struct BatchMessage {
    /// Its metadata, a flatbuffer.
    pub header: Bytes,
    /// Its body.
    pub body: Bytes,
}

impl BatchMessage {
    /// Encodes `batch`.
    ///
    /// # Errors
    /// A type that IPC cannot carry, which no decoder makes.
    pub fn new(batch: &RecordBatch, compression: Option<CompressionType>) -> Result<Self> {
        let options =
            IpcWriteOptions::default().try_with_compression(compression).map_err(internal)?;
        let (_, encoded) = IpcDataGenerator::default()
            .encode(
                batch,
                &mut DictionaryTracker::new(false),
                &options,
                &mut IpcWriteContext::default(),
            )
            .map_err(internal)?;
        let (header, body) = (Bytes::from(encoded.ipc_message), Bytes::from(encoded.arrow_data));
        Ok(Self { header, body })
    }
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("Arrow IPC: {error}"))
}

/// A batch whose columns lie in the body of its IPC message: nothing is held twice, and all readers share it.
#[derive(Debug)]
pub struct EncodedBatch {
    /// The columns.
    pub batch: RecordBatch,
    /// The IPC message's metadata, a flatbuffer.
    pub header: Bytes,
    /// Its body.
    pub body: Bytes,
    /// Where its topic was before it: everything that lies there was handed out by other batches.
    pub starts: Positions,
    /// Where its topic is after it.
    pub ends: Positions,
    /// When it was made.
    pub made: Instant,
    /// See [`derived`](Self::derived).
    derived: Mutex<Option<(SchemaRef, RecordBatch)>>,
}

impl EncodedBatch {
    /// Encodes `batch`, which takes its topic from `starts` to `ends`.
    ///
    /// # Errors
    /// A type that IPC cannot carry, which no decoder makes.
    pub fn new(batch: &RecordBatch, starts: Positions, ends: Positions) -> Result<Self> {
        let BatchMessage { header, body } = BatchMessage::new(batch, None)?;
        let message = root_as_message(&header).map_err(internal)?;
        let described = message
            .header_as_record_batch()
            .ok_or_else(|| Error::internal("Arrow IPC: a batch without its description"))?;
        let batch = read_record_batch(
            &Buffer::from(body.clone()),
            described,
            batch.schema(),
            &HashMap::new(),
            None,
            &MetadataVersion::V5,
        )
        .map_err(internal)?;
        let (made, derived) = (Instant::now(), Mutex::default());
        Ok(Self { batch, header, body, starts, ends, made, derived })
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        self.header.len() + self.body.len()
    }

    /// Its rows in the columns of `schema`, which are made once, as long as nobody wants other ones. They live as long as
    /// the batch does.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn derived(
        &self,
        schema: &SchemaRef,
        make: impl FnOnce() -> Result<RecordBatch>,
    ) -> Result<RecordBatch> {
        let mut derived = self.derived.lock();
        match &*derived {
            Some((known, rows)) if known == schema => Ok(rows.clone()),
            _ => {
                let rows = make()?;
                *derived = Some((schema.clone(), rows.clone()));
                Ok(rows)
            }
        }
    }

    /// Its rows.
    pub fn rows(&self) -> u64 {
        self.batch.num_rows() as u64
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, ArrayRef, Int64Array, ListArray, StringArray, StructArray};
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Int64Type};

    use super::*;

    #[test]
    fn columns_lie_in_the_body() {
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>([
            Some(vec![Some(1), None]),
            None,
            Some(vec![]),
        ]);
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("c")]));
        let nested =
            StructArray::from(vec![(Arc::new(Field::new("text", DataType::Utf8, true)), texts)]);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("id", Arc::new(Int64Array::from(vec![1, 2, 3]))),
            ("lists", Arc::new(lists)),
            ("nested", Arc::new(nested)),
        ];
        let batch = RecordBatch::try_from_iter(columns).expect("a batch");
        let nowhere = Positions::default();
        let encoded = EncodedBatch::new(&batch, nowhere.clone(), nowhere).expect("encoded");
        assert_eq!(encoded.batch, batch);
        let body = encoded.body.as_ptr_range();
        for column in encoded.batch.columns() {
            for buffer in column.to_data().buffers() {
                assert!(body.contains(&buffer.as_ptr()), "{:?} was copied", column.data_type());
            }
        }
    }
}
