//! One line of comma-separated values (RFC 4180) a record, into a struct column.
//!
//! A line becomes a JSON object, and its types follow from its values as those of JSON do: a number is a number only if
//! JSON would write it so, which leaves `007` and `+49` the text that they are. Where the user says the types, a value is
//! written as its type wants it, in quotes or not.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Fields};

use super::decoder::{BadRow, Decoder, Value};
use super::json::scan::Scanner;
use super::json::{JsonDecoder, SharedShape};
use super::projection::Projection;
use super::reject::{RecordLimits, Reject};
use crate::error::Result;

/// Values of a line, where nobody says how many columns there are and no more get columns of their own.
const VALUES_MAX: usize = 1_000;

/// See the top of this file.
pub struct CsvDecoder {
    /// How many there are, where their names are given.
    columns: Option<usize>,
    /// Most values of a line.
    values_max: usize,
    /// The names as JSON writes them in front of values. Those that are not given are made when they are needed.
    names: Vec<Vec<u8>>,
    /// Of the columns, where they are given.
    types: Vec<DataType>,
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
        let values_max = match &columns {
            Some(columns) => columns.len(),
            None => shared.fields_max().max(VALUES_MAX),
        };
        let names = columns.iter().flatten().map(|name| quoted(name)).collect();
        let columns = columns.map(|columns| columns.len());
        let json = JsonDecoder::new(shared, projection, limits);
        Self { columns, values_max, names, types: Vec::new(), delimiter, json }
    }

    /// The same with names and types of the columns, which `shared` has as well; none of them nests.
    pub fn typed(
        columns: &Fields,
        delimiter: u8,
        shared: Arc<SharedShape>,
        projection: Projection,
        limits: RecordLimits,
    ) -> Self {
        let names = columns.iter().map(|column| column.name().clone()).collect();
        let types = columns.iter().map(|column| column.data_type().clone()).collect();
        Self { types, ..Self::new(Some(names), delimiter, shared, projection, limits) }
    }

    /// A line as a JSON object.
    fn object_of(&mut self, line: &[u8]) -> Result<Vec<u8>, Reject> {
        let line = std::str::from_utf8(line).map_err(|_| Reject::malformed("no UTF-8"))?;
        let mut json = Vec::with_capacity(line.len() * 2);
        json.push(b'{');
        let mut count = 0;
        let mut rest = Some(
            line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line)),
        );
        while let Some(line) = rest {
            if count == self.values_max {
                return Err(self.too_many());
            }
            let (value, is_quoted, after) = self.value(line)?;
            if count > 0 {
                json.push(b',');
            }
            if self.names.len() == count {
                self.names.push(quoted(&format!("c{}", count + 1)));
            }
            if let Some(name) = self.names.get(count) {
                json.extend_from_slice(name);
            }
            match (is_quoted, value.as_ref(), self.types.get(count)) {
                (false, "", _) => json.extend_from_slice(b"null"),
                // Some writers put everything in quotes, also what is not there.
                (true, "", Some(data_type)) if !is_text(data_type) => {
                    json.extend_from_slice(b"null");
                }
                (_, text, Some(data_type)) => push_typed(&mut json, text, data_type),
                (false, word @ ("true" | "false"), None) => {
                    json.extend_from_slice(word.as_bytes());
                }
                (false, number, None) if is_number(number) => {
                    json.extend_from_slice(number.as_bytes());
                }
                (_, text, None) => push_string(&mut json, text),
            }
            count += 1;
            rest = after;
        }
        if let Some(columns) = self.columns
            && count < columns
        {
            return Err(Reject::malformed(format!("{count} values in a line of {columns}")));
        }
        json.push(b'}');
        Ok(json)
    }

    #[cold]
    fn too_many(&self) -> Reject {
        let max = self.values_max;
        match self.columns {
            Some(_) => Reject::malformed(format!("more than {max} values in a line")),
            None => Reject::limit(format_args!("{max} values in a line without csv-columns")),
        }
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
            lines.push(match value.as_ref().map(|value| self.object_of(value.bytes)) {
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

/// A name as JSON writes it in front of a value.
fn quoted(name: &str) -> Vec<u8> {
    let mut json = Vec::new();
    push_string(&mut json, name);
    json.push(b':');
    json
}

fn push_string(json: &mut Vec<u8>, text: &str) {
    // Writing a string into memory cannot fail.
    let _ = serde_json::to_writer(json, text);
}

/// A value as JSON writes those of its type. One that is of another type is a string, which will not fit.
fn push_typed(json: &mut Vec<u8>, text: &str, data_type: &DataType) {
    match data_type {
        DataType::Boolean if text.eq_ignore_ascii_case("true") => json.extend_from_slice(b"true"),
        DataType::Boolean if text.eq_ignore_ascii_case("false") => json.extend_from_slice(b"false"),
        data_type if is_text(data_type) => push_string(json, text),
        _ => {
            let (sign, digits) = match text.strip_prefix('-') {
                Some(digits) => ("-", digits),
                None => ("", text.strip_prefix('+').unwrap_or(text)),
            };
            // JSON has no zeros in front.
            let bare = digits.trim_start_matches('0');
            let zero = if bare.starts_with(|c: char| c.is_ascii_digit()) { "" } else { "0" };
            let number = if digits.starts_with('0') {
                format!("{sign}{zero}{bare}")
            } else {
                format!("{sign}{digits}")
            };
            match is_number(&number) {
                true => json.extend_from_slice(number.as_bytes()),
                false => push_string(json, text),
            }
        }
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::Binary | DataType::FixedSizeBinary(_))
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
    fn given_types_read_every_spelling_and_lose_nothing() {
        // Type, text between delimiters, and how it is shown, or else why not.
        let cases: [(&str, &str, Result<&str, &str>); 24] = [
            ("int64", "007", Ok("7")),
            ("int64", "+49", Ok("49")),
            ("int64", "-0", Ok("0")),
            ("int64", "\"5\"", Ok("5")),
            ("int64", "1.0", Ok("1")),
            ("int64", "", Ok("-")),
            ("int64", "x", Err("v: a string that should be of type Int64")),
            ("int64", "\"\"", Ok("-")),
            ("int8", "300", Err("v: '300' is beyond Int8")),
            ("double", "0.50", Ok("0.5")),
            ("double", "007.5", Ok("7.5")),
            ("double", "1e3", Ok("1000.0")),
            ("string", "007", Ok("007")),
            ("string", "true", Ok("true")),
            ("string", "1.50", Ok("1.50")),
            ("string", "\"\"", Ok("")),
            ("bool", "True", Ok("true")),
            ("bool", "1", Err("v: a number that should be of type Boolean")),
            ("decimal128(6, 2)", "+0012.50", Ok("12.50")),
            (
                "decimal128(6, 2)",
                "12.505",
                Err("v: '12.505' has more than 6 digits, 2 of them decimals"),
            ),
            ("date32", "2024-02-29", Ok("2024-02-29")),
            ("timestamp[ms, UTC]", "2024-02-29T00:00:00Z", Ok("2024-02-29T00:00:00Z")),
            ("timestamp[ms, UTC]", "1709164800000", Ok("2024-02-29T00:00:00Z")),
            ("binary", "1234", Ok("d76df8")),
        ];
        for (data_type, text, wanted) in cases {
            let columns =
                crate::config::columns::parse(&format!("struct<k: string, v: {data_type}>"));
            let Ok(DataType::Struct(columns)) = columns else { panic!("{columns:?}") };
            let said = super::super::json::arrow_schema::shape(&columns, 64).expect("columns");
            let shared = SharedShape::said(100, said);
            let limits = RecordLimits::default();
            let mut decoder = CsvDecoder::typed(&columns, b',', shared, Projection::All, limits);
            let line = format!("a,{text}");
            let mut bad = Vec::new();
            let values = [Some(Value::new(line.as_bytes())), Some(Value::new(b"b,"))];
            let array = decoder.decode(&values, &mut bad).expect("no failure of ours");
            let bad: Vec<(usize, &str)> =
                bad.iter().map(|bad| (bad.row, bad.reject.message.as_str())).collect();
            assert_eq!(array.data_type(), &DataType::Struct(columns), "{data_type}");
            let options = arrow::util::display::FormatOptions::default().with_null("-");
            let shown = arrow::util::display::ArrayFormatter::try_new(&array, &options)
                .expect("a formatter");
            assert_eq!(shown.value(1).to_string(), "{k: b, v: -}");
            match wanted {
                Ok(wanted) => {
                    assert_eq!(bad, [], "{data_type} {text}");
                    let row = format!("{{k: a, v: {wanted}}}");
                    assert_eq!(shown.value(0).to_string(), row, "{data_type} {text}");
                }
                Err(why) => assert_eq!(bad, [(0, why)], "{data_type} {text}"),
            }
        }
    }

    #[test]
    fn lines_of_more_values_than_columns_are_bad_rows() {
        let line = |count: usize| vec!["1"; count].join(",");
        let (array, bad) = lines(None, &["1,2", &",".repeat(400_000), &line(1_001), &line(1_000)]);
        let why = "more than 1000 values in a line without csv-columns";
        assert_eq!(bad, [(1, why.to_owned()), (2, why.to_owned())]);
        // 100 of them have columns, the rest is text in one more.
        let DataType::Struct(fields) = array.data_type() else { panic!("{}", array.data_type()) };
        assert_eq!((fields.len(), fields[100].name().as_str()), (101, "_more"));
        assert!(!array.is_null(3));
        let shared = SharedShape::new(3_000);
        let limits = RecordLimits::default();
        let mut decoder = CsvDecoder::new(None, b',', shared, Projection::All, limits);
        let (good, bad) = (line(3_000), line(3_001));
        let values = [good, bad];
        let values: Vec<_> = values.iter().map(|line| Some(Value::new(line.as_bytes()))).collect();
        let mut bad = Vec::new();
        decoder.decode(&values, &mut bad).expect("no failure of ours");
        assert_eq!(bad.iter().map(|bad| bad.row).collect::<Vec<_>>(), [1]);
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
