//! Arrow IPC streams from strangers: checked before anything is allocated, then read.

use std::collections::HashMap;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use arrow_ipc::MessageHeader;
use arrow_ipc::reader::StreamReader;

use super::plain::plain_type;
use crate::decode::reject::{Meter, RecordLimits, Reject};

/// The mark in front of every message.
const CONTINUATION: [u8; 4] = [0xFF; 4];

/// How many times the bytes of a record the pieces of its dictionaries may make Arrow's reader copy: for each it copies
/// the whole dictionary.
const DICTIONARY_COPIES_MAX: usize = 8;

/// Reads a stream, after [`check_stream`].
///
/// # Errors
/// It is no valid stream, or asks for more than `limits`.
pub fn read_stream(stream: &[u8], limits: &RecordLimits) -> Result<Vec<RecordBatch>, Reject> {
    check_stream(stream, limits)?;
    guarded(|| {
        let reader = StreamReader::try_new(stream, None).map_err(malformed)?;
        // Before anything of a type is read that is refused anyway.
        plain_type(&DataType::Struct(reader.schema().fields().clone()))?;
        reader.map(|batch| batch.map_err(malformed)).collect()
    })
}

/// Runs `work` on what a stranger sent. Arrow's reader validates most of it, and asserts the rest: that a buffer's length
/// fits its type, for one. Such a panic is a bad stream, not the end of a connection.
///
/// # Errors
/// Those of `work`, and its panic.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, Reject>) -> Result<T, Reject> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Reject::malformed("an Arrow IPC stream whose buffers do not fit its schema"))
    })
}

/// Checks every length that a stream declares against its bytes and `limits`, so that reading it allocates no more.
///
/// # Errors
/// It is no stream, ends early or late, or asks for too much.
pub fn check_stream(stream: &[u8], limits: &RecordLimits) -> Result<(), Reject> {
    let mut meter = Meter::new(limits);
    // Bytes of each dictionary, and those that are still copied when a piece is added to one.
    let mut dictionaries: HashMap<i64, usize> = HashMap::new();
    let mut copies_left = limits.bytes_max.saturating_mul(DICTIONARY_COPIES_MAX);
    let mut rest = stream;
    let mut messages = 0;
    while !rest.is_empty() {
        if !rest.starts_with(&CONTINUATION) {
            return Err(no_stream(stream));
        }
        let prefix = rest.get(..8).ok_or_else(|| Reject::truncated("an Arrow IPC message"))?;
        let size = prefix.last_chunk::<4>().map_or(0, |size| i32::from_le_bytes(*size));
        rest = rest.get(8..).unwrap_or_default();
        if size == 0 {
            // The end of the stream.
            if rest.is_empty() && messages > 0 {
                return Ok(());
            }
            return Err(Reject::malformed("something behind the end of an Arrow IPC stream"));
        }
        let size = usize::try_from(size)
            .map_err(|_| Reject::malformed("a negative length in an Arrow IPC stream"))?;
        let (metadata, behind) =
            rest.split_at_checked(size).ok_or_else(|| Reject::truncated("an Arrow IPC message"))?;
        // Tables may be shared, and then a few bytes unfold into very many fields.
        let verifier = flatbuffers::VerifierOptions {
            max_tables: size / 8,
            max_apparent_size: size.saturating_mul(4),
            ..flatbuffers::VerifierOptions::default()
        };
        let message =
            arrow_ipc::root_as_message_with_opts(&verifier, metadata).map_err(malformed)?;
        let body_size = usize::try_from(message.bodyLength())
            .map_err(|_| Reject::malformed("a negative length in an Arrow IPC stream"))?;
        let (body, behind) = behind
            .split_at_checked(body_size)
            .ok_or_else(|| Reject::truncated("an Arrow IPC message"))?;
        meter.bytes(size)?;
        match message.header_type() {
            MessageHeader::Schema if messages == 0 => {}
            MessageHeader::RecordBatch if messages > 0 => {
                let batch = message.header_as_record_batch();
                check_batch(
                    batch.ok_or_else(|| Reject::malformed("a message without a batch"))?,
                    body,
                    &mut meter,
                )?;
            }
            MessageHeader::DictionaryBatch if messages > 0 => {
                let without = || Reject::malformed("a message without a dictionary");
                let dictionary = message.header_as_dictionary_batch().ok_or_else(without)?;
                let data = dictionary.data().ok_or_else(without)?;
                let added = check_batch(data, body, &mut meter)?;
                let size = dictionaries.entry(dictionary.id()).or_default();
                if dictionary.isDelta() {
                    *size = size.saturating_add(added);
                    copies_left = copies_left
                        .checked_sub(*size)
                        .ok_or_else(|| Reject::limit("the pieces its dictionaries may come in"))?;
                } else {
                    *size = added;
                }
            }
            _ => {
                return Err(Reject::malformed(
                    "an Arrow IPC stream that does not begin with its schema",
                ));
            }
        }
        messages += 1;
        rest = behind;
    }
    if messages == 0 {
        return Err(no_stream(stream));
    }
    // Without its end mark a stream is complete as well, if its messages are.
    Ok(())
}

/// Checks one batch; how many bytes it has.
fn check_batch(
    batch: arrow_ipc::RecordBatch<'_>,
    body: &[u8],
    meter: &mut Meter,
) -> Result<usize, Reject> {
    let length = |length: i64| {
        usize::try_from(length)
            .map_err(|_| Reject::malformed("a negative length in an Arrow IPC stream"))
    };
    meter.elements(length(batch.length())?)?;
    for node in batch.nodes().into_iter().flatten() {
        meter.elements(length(node.length())?)?;
    }
    let is_compressed = batch.compression().is_some();
    let mut bytes_in_all: usize = 0;
    for buffer in batch.buffers().into_iter().flatten() {
        let (start, size) = (length(buffer.offset())?, length(buffer.length())?);
        let end =
            start.checked_add(size).ok_or_else(|| Reject::malformed("a buffer without an end"))?;
        let bytes = body.get(start..end).ok_or_else(|| Reject::truncated("an Arrow IPC buffer"))?;
        let declared = match bytes.first_chunk::<8>() {
            // Compressed buffers begin with their size, -1 where they are not compressed after all.
            Some(declared) if is_compressed => match i64::from_le_bytes(*declared) {
                -1 => size,
                declared => length(declared)?,
            },
            _ => size,
        };
        meter.bytes(declared)?;
        bytes_in_all = bytes_in_all.saturating_add(declared);
    }
    Ok(bytes_in_all)
}

fn no_stream(bytes: &[u8]) -> Reject {
    // What a file begins with, see "IPC File Format" in Arrow's columnar specification.
    if bytes.starts_with(b"ARROW1") {
        return Reject::malformed("an Arrow IPC file, not a stream");
    }
    Reject::malformed("no Arrow IPC stream")
}

pub(super) fn malformed(error: impl std::fmt::Display) -> Reject {
    Reject::malformed(format!("Arrow IPC: {error}"))
}
