//! One line of comma-separated values (RFC 4180) a record, into a struct column.
//!
//! A line becomes a JSON object, and its types follow from its values as those of JSON do: a number is a number only if
//! JSON would write it so, which leaves `007` and `+49` the text that they are.

use std::sync::Arc;

use arrow::array::ArrayRef;

use super::decoder::{BadRow, Decoder, Value};
use super::json::scan::Scanner;
use super::json::{JsonDecoder, SharedShape};
use super::projection::Projection;
use super::reject::{RecordLimits, Reject};
use crate::error::Result;

/// See the top of this file.
pub struct CsvDecoder {
    columns: Option<Vec<String>>,
    delimiter: u8,
    json: JsonDecoder,
}

impl CsvDecoder {
    /// Lines of values between `delimiter`s, an ASCII character; `columns` are their names, without which they are called
    /// `c1`, `c2` and so on.
    pub fn new(
        columns: Option<Vec<String>>,
        delimiter: u8,
        shared: Arc<SharedShape>,
        projection: Projection,
        limits: RecordLimits,
    ) -> Self {
        Self { columns, delimiter, json: JsonDecoder::new(shared, projection, limits) }
    }

    fn to_json(&self, line: &[u8]) -> Result<Vec<u8>, Reject> {
        let line = std::str::from_utf8(line).map_err(|_| Reject::malformed("no UTF-8"))?;
        let mut json = Vec::with_capacity(line.len() * 2);
        json.push(b'{');
        let mut count = 0;
        let mut rest = Some(
            line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line)),
        );
        while let Some(line) = rest {
            let (value, is_quoted, after) = self.value(line)?;
            if count > 0 {
                json.push(b',');
            }
            let name = match &self.columns {
                None => format!("c{}", count + 1),
                Some(columns) => columns.get(count).cloned().ok_or_else(|| {
                    Reject::malformed(format!("more than {} values in a line", columns.len()))
                })?,
            };
            push_string(&mut json, &name);
            json.push(b':');
            match (is_quoted, value.as_ref()) {
                (false, "") => json.extend_from_slice(b"null"),
                (false, word @ ("true" | "false")) => json.extend_from_slice(word.as_bytes()),
                (false, number) if is_number(number) => json.extend_from_slice(number.as_bytes()),
                (_, text) => push_string(&mut json, text),
            }
            count += 1;
            rest = after;
        }
        if let Some(columns) = &self.columns
            && count < columns.len()
        {
            return Err(Reject::malformed(format!(
                "{count} values in a line of {}",
                columns.len()
            )));
        }
        json.push(b'}');
        Ok(json)
    }

    /// The first value of `line`, whether it is in quotes, and what comes behind its delimiter.
    fn value<'a>(
        &self,
        line: &'a str,
    ) -> Result<(std::borrow::Cow<'a, str>, bool, Option<&'a str>), Reject> {
        let delimiter = char::from(self.delimiter);
        let Some(quoted) = line.strip_prefix('"') else {
            let (value, after) = match line.split_once(delimiter) {
                Some((value, after)) => (value, Some(after)),
                None => (line, None),
            };
            if value.contains(['\n', '\r']) {
                return Err(Reject::malformed("more than one line"));
            }
            if value.contains('"') {
                return Err(Reject::malformed(
                    "a quote inside of a value that does not begin with one",
                ));
            }
            return Ok((value.into(), false, after));
        };
        let mut value = String::new();
        let mut rest = quoted;
        loop {
            let Some((part, after)) = rest.split_once('"') else {
                return Err(Reject::truncated("a quoted value"));
            };
            value.push_str(part);
            match after.strip_prefix('"') {
                Some(more) => {
                    value.push('"');
                    rest = more;
                }
                None if after.is_empty() => return Ok((value.into(), true, None)),
                None => match after.strip_prefix(delimiter) {
                    Some(after) => return Ok((value.into(), true, Some(after))),
                    None if after.starts_with(['\n', '\r']) => {
                        return Err(Reject::malformed("more than one line"));
                    }
                    None => {
                        return Err(Reject::malformed(
                            "something between a quote and the next delimiter",
                        ));
                    }
                },
            }
        }
    }
}

impl Decoder for CsvDecoder {
    fn decode(&mut self, values: &[Option<Value<'_>>], bad: &mut Vec<BadRow>) -> Result<ArrayRef> {
        let mut lines: Vec<Option<Vec<u8>>> = Vec::with_capacity(values.len());
        let before = bad.len();
        for (row, value) in values.iter().enumerate() {
            lines.push(match value.map(|value| self.to_json(value.bytes)) {
                None => None,
                Some(Ok(json)) => Some(json),
                Some(Err(reject)) => {
                    bad.push(BadRow { row, reject });
                    None
                }
            });
        }
        let objects: Vec<Option<Value<'_>>> =
            lines.iter().map(|line| line.as_deref().map(Value::new)).collect();
        let array = self.json.decode(&objects, bad)?;
        if let Some(new) = bad.get_mut(before..) {
            new.sort_by_key(|bad| bad.row);
        }
        Ok(array)
    }

    fn texts(&self) -> u64 {
        self.json.texts()
    }
}

fn push_string(json: &mut Vec<u8>, text: &str) {
    // Writing a string into memory cannot fail.
    let _ = serde_json::to_writer(json, text);
}

fn is_number(text: &str) -> bool {
    let mut scanner = Scanner::new(text.as_bytes());
    matches!(text.as_bytes().first(), Some(b'-' | b'0'..=b'9'))
        && scanner.number().is_ok()
        && scanner.at() == text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::DataType;

    fn lines(columns: Option<&[&str]>, lines: &[&str]) -> (ArrayRef, Vec<(usize, String)>) {
        let columns = columns.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let mut decoder = CsvDecoder::new(
            columns,
            b',',
            SharedShape::new(100),
            Projection::All,
            RecordLimits::default(),
        );
        let values: Vec<_> = lines.iter().map(|line| Some(Value::new(line.as_bytes()))).collect();
        let mut bad = Vec::new();
        let array = decoder.decode(&values, &mut bad).expect("no failure of ours");
        (array, bad.into_iter().map(|bad| (bad.row, bad.reject.message)).collect())
    }

    #[test]
    fn types_follow_from_the_values() {
        let (array, bad) = lines(
            Some(&["id", "price", "name", "zip", "open"]),
            &["1,2.5,\"a, \"\"b\"\"\",007,true\r\n", "2,3,,08,false\n", "3,,\"\",09,"],
        );
        assert_eq!(bad, []);
        let types: Vec<DataType> = match array.data_type() {
            DataType::Struct(fields) => {
                fields.iter().map(|field| field.data_type().clone()).collect()
            }
            other => panic!("{other}"),
        };
        let wanted =
            [DataType::Int64, DataType::Float64, DataType::Utf8, DataType::Utf8, DataType::Boolean];
        assert_eq!(types, wanted);
        let mut text = Vec::new();
        let options = arrow::util::display::FormatOptions::default().with_null("-");
        let shown =
            arrow::util::display::ArrayFormatter::try_new(&array, &options).expect("a formatter");
        for row in 0..3 {
            text.push(shown.value(row).to_string());
        }
        assert_eq!(
            text,
            [
                "{id: 1, price: 2.5, name: a, \"b\", zip: 007, open: true}",
                "{id: 2, price: 3.0, name: -, zip: 08, open: false}",
                "{id: 3, price: -, name: , zip: 09, open: -}",
            ]
        );
    }

    #[test]
    fn lines_that_are_none_are_bad_rows() {
        let cases = [
            ("1", "1 values in a line of 2"),
            ("1,2,3", "more than 2 values in a line"),
            ("\"1,2", "ends inside of a quoted value"),
            ("1,2\n3,4", "more than one line"),
            ("\"1\"x,2", "something between a quote and the next delimiter"),
            ("1\",2", "a quote inside of a value that does not begin with one"),
        ];
        for (line, why) in cases {
            let (array, bad) = lines(Some(&["a", "b"]), &["1,2", line, "3,4"]);
            assert_eq!(bad, [(1, why.to_owned())], "{line}");
            assert_eq!((array.is_null(1), array.is_null(2)), (true, false), "{line}");
        }
    }
}
