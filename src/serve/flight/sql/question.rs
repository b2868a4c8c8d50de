//! [`Question`]: a ticket says all of it, so that it can be asked again, on any instance; and [`Promise`] keeps its answer in
//! the columns that it was promised in.

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::decode::envelope::Layout;
use crate::decode::ipc::plain::plain_type;
use crate::decode::ipc::{guarded, read_stream};
use crate::decode::projection::Projection;
use crate::decode::reject::{RecordLimits, Reject};
use crate::error::{Error, ErrorKind, Result};
use crate::serve::flight::read::schema_message;
use crate::serve::flight::request::schema_of;
use crate::sql::engine::Parameters;
use crate::sql::values;
use crate::stream::fit::Fit;

/// A statement, its parameters, and the columns of its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The statement.
    pub sql: String,
    /// The name of the query whose statement it is, if it is one.
    pub name: Option<String>,
    /// Its parameters, as an IPC stream of one row whose columns have their names.
    pub row: Option<Bytes>,
    /// The columns.
    pub schema: SchemaRef,
}

impl Question {
    /// As JSON.
    pub fn encode(&self) -> Bytes {
        let schema = STANDARD.encode(schema_message(&self.schema).data_header);
        let mut fields = json!({ "sql": self.sql, "schema": schema });
        if let Value::Object(fields) = &mut fields {
            let name = self.name.clone().map(|name| ("query".to_owned(), name.into()));
            let row = self.row.as_ref().map(|row| STANDARD.encode(row));
            fields.extend(
                name.into_iter().chain(row.map(|row| ("parameters".to_owned(), row.into()))),
            );
        }
        fields.to_string().into()
    }

    /// What [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// It is no ticket; names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let no_ticket = |why: String| Error::invalid(format!("no ticket: {why}"));
        let fields: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|error| no_ticket(error.to_string()))?;
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        let missing = |name: &str| no_ticket(format!("{name} is missing"));
        let binary = |name: &str, text: &str| {
            STANDARD.decode(text).map_err(|error| no_ticket(format!("{name}: {error}")))
        };
        let schema = binary("schema", text("schema").ok_or_else(|| missing("schema"))?)?;
        let schema = schema_of(&schema).map_err(|why| no_ticket(format!("schema: {why}")))?;
        // What the answer is brought into must be something that there is.
        let columns = DataType::Struct(schema.fields().clone());
        let checked = guarded(|| plain_type(&columns));
        checked.map_err(|reject| no_ticket(format!("schema: {}", reject.message)))?;
        let row = text("parameters").map(|row| binary("parameters", row)).transpose()?;
        Ok(Self {
            sql: text("sql").ok_or_else(|| missing("sql"))?.to_owned(),
            name: text("query").map(str::to_owned),
            row: row.map(Bytes::from),
            schema,
        })
    }
}

/// The parameters in an IPC stream of one row, by the names of its columns.
///
/// # Errors
/// It is no such stream.
pub fn parameters_of(stream: &[u8]) -> Result<Parameters> {
    let invalid = |reject: Reject| Error::invalid(format!("parameters: {}", reject.message));
    let batches = read_stream(stream, &RecordLimits::default()).map_err(invalid)?;
    let [row] = batches.as_slice() else {
        return Err(Error::invalid("parameters: one batch is wanted"));
    };
    guarded(|| Ok(values::parameters_of(row))).map_err(invalid)?
}

/// Columns that were promised. Those of topics may have changed since.
pub struct Promise {
    fit: Fit,
    /// There is a place for what does not fit.
    says_misfits: bool,
}

impl Promise {
    /// Of these columns.
    pub fn new(schema: SchemaRef) -> Self {
        let error = schema.field_with_name("error").map(|field| field.data_type());
        let says_misfits = matches!(error, Ok(DataType::Struct(fields))
            if fields.find("message").is_some_and(|(_, of)| of.data_type() == &DataType::Utf8));
        Self { fit: Fit::new(schema, Layout::Struct, Projection::All), says_misfits }
    }

    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        self.fit.schema()
    }

    /// A batch in these columns. What has no place in them is named in the column `error`.
    ///
    /// # Errors
    /// There is no such column, and something would be lost.
    pub fn keep(&self, batch: RecordBatch) -> Result<RecordBatch> {
        if batch.schema_ref() == self.schema() {
            return Ok(batch);
        }
        let changed = || {
            let why = "the columns of the answer have changed since the ticket was made: ask for another one";
            Error::new(ErrorKind::Conflict, why)
        };
        match self.fit.apply(&batch) {
            Ok(fitted) if fitted.first_misfit.is_none() || self.says_misfits => Ok(fitted.batch),
            Err(error) if self.says_misfits => Err(error),
            _ => Err(changed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;

    #[test]
    fn a_ticket_says_all_of_it() {
        let schema = Schema::new(vec![Field::new("a", DataType::Int64, true)]);
        let question = Question {
            sql: "select '\"é' as a".to_owned(),
            name: Some("q".to_owned()),
            row: Some(Bytes::from_static(&[0, 255])),
            schema: Arc::new(schema),
        };
        assert_eq!(Question::parse(&question.encode()).expect("a ticket"), question);
        let plain = Question { name: None, row: None, ..question };
        assert_eq!(Question::parse(&plain.encode()).expect("a ticket"), plain);
        for bad in ["", "{}", "[1]", r#"{"sql":"select 1"}"#, r#"{"sql":1,"schema":"AAAA"}"#] {
            assert!(Question::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_promised_comes_or_nothing() {
        let batch =
            |column: ArrayRef| RecordBatch::try_from_iter([("a", column)]).expect("a batch");
        let integers = batch(Arc::new(Int64Array::from(vec![7])));
        let promise =
            Promise::new(Arc::new(Schema::new(vec![Field::new("a", DataType::Float64, true)])));
        assert_eq!(promise.keep(integers).expect("kept").schema_ref(), promise.schema());
        let texts = batch(Arc::new(StringArray::from(vec!["x"])));
        let error = promise.keep(texts).expect_err("lost");
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
}
