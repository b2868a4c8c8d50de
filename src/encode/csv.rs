//! [`Csv`]: rows as CSV (RFC 4180). A null is nothing, an empty text is `""`.

use std::fmt::Write as _;

use arrow::array::RecordBatch;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::flatten::{Leaf, leaves};
use crate::error::Result;

/// Appends the names of the columns of `batch` as a line. A column of bytes has a second one beside it, for those that
/// are no UTF-8.
pub fn write_header(batch: &RecordBatch, out: &mut String) {
    let mut names = Vec::new();
    for leaf in leaves(batch) {
        names.push(leaf.name.clone());
        if leaf.is_bytes() {
            names.push(format!("{}_base64", leaf.name));
        }
    }
    write_line(names.iter().map(|name| Some(name.as_str())), out);
}

/// Appends the rows of `batch`, a line each.
///
/// # Errors
/// A type that cannot be written.
pub fn write_rows(batch: &RecordBatch, out: &mut String) -> Result<()> {
    let leaves = leaves(batch);
    let mut columns =
        leaves.iter().map(|leaf| Ok((leaf, leaf.cells()?))).collect::<Result<Vec<_>>>()?;
    let mut values: Vec<Option<String>> = Vec::new();
    for row in 0..batch.num_rows() {
        values.clear();
        for (leaf, cells) in &mut columns {
            let leaf: &Leaf = leaf;
            let (text, bytes) = match leaf.is_null(row) {
                true => (None, None),
                false => match cells.text(row) {
                    Ok(text) => (Some(text), None),
                    Err(bytes) => (None, Some(BASE64_STANDARD.encode(bytes))),
                },
            };
            values.push(text);
            if leaf.is_bytes() {
                values.push(bytes);
            }
        }
        write_line(values.iter().map(Option::as_deref), out);
    }
    Ok(())
}

/// Appends a line.
pub fn write_line<'a>(values: impl Iterator<Item = Option<&'a str>>, out: &mut String) {
    for (nth, value) in values.enumerate() {
        if nth > 0 {
            out.push(',');
        }
        match value {
            None => {}
            Some(text) if text.is_empty() || text.contains([',', '"', '\n', '\r']) => {
                let _ = write!(out, "\"{}\"", text.replace('"', "\"\""));
            }
            Some(text) => out.push_str(text),
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, BinaryArray, Int64Array, ListBuilder, StringArray, StringBuilder,
    };

    use super::*;

    #[test]
    fn rows_are_rfc_4180() {
        let text: ArrayRef =
            Arc::new(StringArray::from(vec![Some("a,\"b\"\nc"), None, Some(""), Some(" d")]));
        let bytes: Vec<Option<&[u8]>> = vec![Some(b"k"), Some(b"\xff"), None, Some(b"")];
        let bytes: ArrayRef = Arc::new(BinaryArray::from(bytes));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(3), Some(4)]));
        let mut list = ListBuilder::new(StringBuilder::new());
        list.append_value([Some("x"), None]);
        (0..3).for_each(|_| list.append_null());
        let list: ArrayRef = Arc::new(list.finish());
        let batch =
            RecordBatch::try_from_iter([("t", text), ("b", bytes), ("n", numbers), ("l", list)])
                .expect("a batch");
        let mut out = String::new();
        write_header(&batch, &mut out);
        write_rows(&batch, &mut out).expect("all types are known");
        let expected = "t,b,b_base64,n,l\n\"a,\"\"b\"\"\nc\",k,,1,\"[\"\"x\"\",null]\"\n,,/w==,,\n\"\",,,3,\n d,\"\",,4,\n";
        assert_eq!(out, expected);
    }
}
