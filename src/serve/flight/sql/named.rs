//! Named queries as a descriptor's command: `{"query": "cheapest", "params": {"id": 1}}`.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, NullArray, RecordBatch, StringArray,
};
use arrow::datatypes::{Field, Schema};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What a client asks for.
#[derive(Debug, PartialEq)]
pub struct Asked {
    /// The query's name.
    pub name: String,
    /// Its parameters: a row whose columns have their names; `None` if there are none.
    pub row: Option<RecordBatch>,
}

/// The question that a command is, if it names a query.
///
/// # Errors
/// Names the field that is wrong.
pub fn asked(command: &[u8]) -> Result<Option<Asked>> {
    let Ok(mut fields) = serde_json::from_slice::<Map<String, Value>>(command) else {
        return Ok(None);
    };
    let name = match fields.remove("query") {
        None => return Ok(None),
        Some(Value::String(name)) => name,
        Some(_) => return Err(Error::invalid("query: the name of a query is needed")),
    };
    let row = match fields.remove("params") {
        None => None,
        Some(Value::Object(values)) if values.is_empty() => None,
        Some(Value::Object(values)) => Some(row_of(values)?),
        Some(_) => return Err(Error::invalid("params: an object of names and values is needed")),
    };
    match fields.keys().next() {
        Some(name) => Err(Error::invalid(format!("{name}: no such field of a named query"))),
        None => Ok(Some(Asked { name, row })),
    }
}

fn row_of(values: Map<String, Value>) -> Result<RecordBatch> {
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (name, value) in values {
        let column: ArrayRef = match value {
            Value::Null => Arc::new(NullArray::new(1)),
            Value::Bool(value) => Arc::new(BooleanArray::from(vec![value])),
            Value::String(text) => Arc::new(StringArray::from(vec![text])),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => Arc::new(Int64Array::from(vec![integer])),
                (None, Some(double)) if number.is_f64() => {
                    Arc::new(Float64Array::from(vec![double]))
                }
                // Beyond 64 bits with a sign, digit by digit.
                _ => Arc::new(StringArray::from(vec![number.to_string()])),
            },
            nested => {
                return Err(Error::invalid(format!("params: {name}: {nested} is no single value")));
            }
        };
        fields.push(Field::new(name, column.data_type().clone(), true));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
        .map_err(|error| Error::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_a_query_or_is_another_one() {
        for command in ["", "{", "[]", r#"{"topic":"t"}"#] {
            assert_eq!(asked(command.as_bytes()).expect("another one"), None, "{command}");
        }
        let found = asked(br#"{"query":"q","params":{"a":1,"b":"x","c":null,"d":0.5,"e":true}}"#);
        let found = found.expect("legal").expect("a query");
        let row = found.row.expect("parameters");
        let types: Vec<String> =
            row.columns().iter().map(|column| column.data_type().to_string()).collect();
        assert_eq!((found.name.as_str(), row.num_rows()), ("q", 1));
        assert_eq!(types, ["Int64", "Utf8", "Null", "Float64", "Boolean"]);
        assert_eq!(asked(br#"{"query":"q","params":{}}"#).expect("legal").expect("one").row, None);
        for (command, why) in [
            (r#"{"query":1}"#, "query: the name"),
            (r#"{"query":"q","params":[1]}"#, "params: an object"),
            (r#"{"query":"q","params":{"a":[1]}}"#, "params: a: [1] is no single value"),
            (r#"{"query":"q","topic":"t"}"#, "topic: no such field of a named query"),
        ] {
            let error = asked(command.as_bytes()).expect_err(command);
            assert!(error.message().starts_with(why), "{error}");
        }
    }
}
