//! Snappy batches, unpacked before they are stored: tansu keeps their compression in mind and then cannot write them for a
//! fetch, and of the framed form it reads the first block only.

use tansu_sans_io::ErrorCode;
use tansu_sans_io::record::deflated::Frame;

/// Bits of a batch's attributes that say how its records are compressed, and what they are for Snappy (KIP-98's message
/// format).
const COMPRESSION_MASK: i16 = 0b111;
const SNAPPY: i16 = 2;

/// What Java's library writes in front of its blocks: a mark, and two versions of four bytes each.
const FRAMED_MARK: &[u8] = b"\x82SNAPPY\0";
const FRAMED_HEADER_BYTES: usize = 16;

/// Records of one request, unpacked.
const BYTES_MAX: usize = 64 << 20;

/// Unpacks the batches of `frame` that are compressed by Snappy.
///
/// # Errors
/// What the producer is to be told: they are no Snappy, or unfold into too much.
pub(super) fn unpack(frame: &mut Frame) -> Result<(), ErrorCode> {
    let mut left = BYTES_MAX;
    for batch in &mut frame.batches {
        if batch.attributes & COMPRESSION_MASK != SNAPPY {
            continue;
        }
        let records = unpacked(&batch.record_data, &mut left)?;
        let grown = i64::try_from(records.len()).unwrap_or(i64::MAX)
            - i64::try_from(batch.record_data.len()).unwrap_or(i64::MAX);
        batch.batch_length = i32::try_from(i64::from(batch.batch_length) + grown)
            .map_err(|_| ErrorCode::MessageTooLarge)?;
        batch.attributes &= !COMPRESSION_MASK;
        batch.record_data = records.into();
    }
    Ok(())
}

fn unpacked(packed: &[u8], left: &mut usize) -> Result<Vec<u8>, ErrorCode> {
    let Some(framed) = packed.strip_prefix(FRAMED_MARK) else { return block(packed, left) };
    let mut rest =
        framed.get(FRAMED_HEADER_BYTES - FRAMED_MARK.len()..).ok_or(ErrorCode::CorruptMessage)?;
    let mut records = Vec::new();
    while let Some((size, blocks)) = rest.split_first_chunk::<4>() {
        let size = usize::try_from(i32::from_be_bytes(*size));
        let size = size.map_err(|_| ErrorCode::CorruptMessage)?;
        let (packed, behind) = blocks.split_at_checked(size).ok_or(ErrorCode::CorruptMessage)?;
        records.extend(block(packed, left)?);
        rest = behind;
    }
    if rest.is_empty() { Ok(records) } else { Err(ErrorCode::CorruptMessage) }
}

fn block(packed: &[u8], left: &mut usize) -> Result<Vec<u8>, ErrorCode> {
    // The size is declared in front, and would be allocated.
    let size = snap::raw::decompress_len(packed).map_err(|_| ErrorCode::CorruptMessage)?;
    *left = left.checked_sub(size).ok_or(ErrorCode::MessageTooLarge)?;
    snap::raw::Decoder::new().decompress_vec(packed).map_err(|_| ErrorCode::CorruptMessage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tansu_sans_io::record::deflated::Batch;

    fn pack(text: &[u8]) -> Vec<u8> {
        snap::raw::Encoder::new().compress_vec(text).expect("packed")
    }

    fn framed(blocks: &[&[u8]]) -> Vec<u8> {
        let mut packed = [FRAMED_MARK, &[0, 0, 0, 1, 0, 0, 0, 1]].concat();
        for block in blocks {
            let block = pack(block);
            packed.extend(i32::try_from(block.len()).expect("small").to_be_bytes());
            packed.extend(block);
        }
        packed
    }

    fn frame(attributes: i16, record_data: Vec<u8>) -> Frame {
        let batch_length = 49 + i32::try_from(record_data.len()).expect("small");
        let record_data = record_data.into();
        Frame { batches: vec![Batch { attributes, batch_length, record_data, ..Batch::default() }] }
    }

    #[test]
    fn both_forms_become_plain_batches() {
        let text = "records ".repeat(100);
        let (first, second) = text.as_bytes().split_at(300);
        for packed in [pack(text.as_bytes()), framed(&[first, second]), framed(&[text.as_bytes()])]
        {
            let mut frame = frame(SNAPPY | 0b10000, packed);
            unpack(&mut frame).expect("unpacked");
            let batch = &frame.batches[0];
            assert_eq!((&batch.record_data[..], batch.attributes), (text.as_bytes(), 0b10000));
            assert_eq!(batch.batch_length, 849);
        }
        let mut other = frame(3, b"lz4".to_vec());
        unpack(&mut other).expect("left alone");
        assert_eq!(other, frame(3, b"lz4".to_vec()));
    }

    #[test]
    fn what_is_no_snappy_is_refused() {
        let cut = framed(&[b"records"]);
        let huge = [0xFF, 0xFF, 0xFF, 0xFF, 0x0F];
        for (packed, code) in [
            (b"\xff\xff\xff\xff\xff\xff".to_vec(), ErrorCode::CorruptMessage),
            (cut[..cut.len() - 1].to_vec(), ErrorCode::CorruptMessage),
            (cut[..cut.len() - 10].to_vec(), ErrorCode::CorruptMessage),
            (cut[..10].to_vec(), ErrorCode::CorruptMessage),
            (huge.to_vec(), ErrorCode::MessageTooLarge),
        ] {
            assert_eq!(unpack(&mut frame(SNAPPY, packed)), Err(code));
        }
    }
}
