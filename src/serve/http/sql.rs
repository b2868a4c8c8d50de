//! `/v1/sql` and `/v1/queries`: SQL over HTTP, with rows in the form that the client asks for.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Map, Value, json};

use super::HttpState;
use crate::encode::writer::{RowsFormat, RowsWriter};
use crate::error::{Error, ErrorKind, Result};
use crate::sql::duck::Parameter;
use crate::sql::engine::{Answer, Parameters};
use crate::sql::queries::Values;

/// Largest question.
const QUESTION_BYTES_MAX: usize = 1 << 20;

/// Batches of an answer that are made before its first byte is sent.
const BATCHES_AHEAD: usize = 2;

/// How long a client may take to send it.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The parameter of a URL that says the format.
const FORMAT: &str = "format";

type Pairs = Query<Vec<(String, String)>>;

/// `GET /v1/sql?q=…`.
pub(super) async fn get(
    State(state): State<Arc<HttpState>>,
    headers: HeaderMap,
    Query(pairs): Pairs,
) -> Response {
    let question = || {
        let (format, mut values) = asked(&headers, pairs)?;
        let sql = match values.remove("q") {
            Some(Parameter::Text(sql)) => sql,
            _ => return Err(Error::invalid("q is missing, as in /v1/sql?q=select+1")),
        };
        Ok(Question { sql, parameters: named(values), format })
    };
    answered(state, question()).await
}

/// `POST /v1/sql`, with SQL or a JSON object as the body.
pub(super) async fn post(
    State(state): State<Arc<HttpState>>,
    Query(pairs): Pairs,
    request: Request,
) -> Response {
    let headers = request.headers().clone();
    let body = to_bytes(request.into_body(), QUESTION_BYTES_MAX);
    let question = match tokio::time::timeout(QUESTION_TIMEOUT, body).await {
        Ok(Ok(body)) => posted(&headers, pairs, &body),
        Ok(Err(_)) => {
            let why = format!("the body has more than {QUESTION_BYTES_MAX} bytes, or was cut off");
            Err(Error::invalid(why))
        }
        Err(_) => Err(Error::new(ErrorKind::Timeout, "the body did not come in time")),
    };
    answered(state, question).await
}

/// `GET /v1/queries`: their names and statements.
pub(super) async fn all(State(state): State<Arc<HttpState>>) -> Response {
    let shown = |(name, sql): (&str, &str)| json!({"name": name, "sql": sql});
    Json(Value::Array(state.queries.all().map(shown).collect())).into_response()
}

/// `GET /v1/queries/<name>?p=…`.
pub(super) async fn call(
    State(state): State<Arc<HttpState>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Query(pairs): Pairs,
) -> Response {
    let asking = async {
        let (format, values) = asked(&headers, pairs)?;
        let held = state.queries.ask(&name, &values).await?;
        let body = held.encoded(format, state.queries.result_bytes_max())?;
        Ok(([(header::CONTENT_TYPE, media_type(format))], body).into_response())
    };
    asking.await.unwrap_or_else(|error| problem(&error))
}

struct Question {
    sql: String,
    parameters: Parameters,
    format: RowsFormat,
}

/// The format, and the other parameters of a URL.
fn asked(headers: &HeaderMap, pairs: Vec<(String, String)>) -> Result<(RowsFormat, Values)> {
    let (mut format, mut values) = (None, Values::new());
    for (name, value) in pairs {
        if name == FORMAT {
            format = Some(value.parse()?);
        } else if values.insert(name.clone(), Parameter::Text(value)).is_some() {
            return Err(Error::invalid(format!("parameter '{name}' is there twice")));
        }
    }
    Ok((format.unwrap_or_else(|| accepted(headers)), values))
}

/// The format that the client accepts; JSON, if it does not say.
fn accepted(headers: &HeaderMap) -> RowsFormat {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let types = accepts.unwrap_or_default().split(',');
    let mut types = types.map(|of| of.split(';').next().unwrap_or_default().trim());
    let format = |of: &str| {
        RowsFormat::ALL.into_iter().find(|format| {
            media_type(*format)
                .split(';')
                .next()
                .is_some_and(|known| known.eq_ignore_ascii_case(of))
        })
    };
    types.find_map(format).unwrap_or(RowsFormat::Json)
}

fn media_type(format: RowsFormat) -> &'static str {
    match format {
        RowsFormat::Json => "application/json",
        RowsFormat::NdJson => "application/x-ndjson",
        RowsFormat::Csv => "text/csv; charset=utf-8",
        RowsFormat::Arrow => "application/vnd.apache.arrow.stream",
    }
}

fn named(values: Values) -> Parameters {
    if values.is_empty() { Parameters::None } else { Parameters::Named(values) }
}

/// A body that is a JSON object says `query`, and maybe `params` and `format`; any other one is SQL.
fn posted(headers: &HeaderMap, pairs: Vec<(String, String)>, body: &Bytes) -> Result<Question> {
    let (format, values) = asked(headers, pairs)?;
    let text = std::str::from_utf8(body).map_err(|_| Error::invalid("the body is no UTF-8"))?;
    let content = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = content.is_some_and(|content| content.starts_with("application/json"));
    if !is_json {
        return Ok(Question { sql: text.to_owned(), parameters: named(values), format });
    }
    let mut object: Map<String, Value> = serde_json::from_str(text)
        .map_err(|error| Error::invalid(format!("the body is no JSON object: {error}")))?;
    let Some(Value::String(sql)) = object.remove("query") else {
        return Err(Error::invalid("the body has no text 'query'"));
    };
    let format = match object.remove(FORMAT) {
        None => format,
        Some(Value::String(name)) => name.parse()?,
        Some(other) => return Err(Error::invalid(format!("format: {other} is no text"))),
    };
    let parameters = match object.remove("params") {
        None => named(values),
        Some(Value::Array(values)) => {
            Parameters::Positional(values.into_iter().map(parameter).collect::<Result<_>>()?)
        }
        Some(Value::Object(values)) => {
            let value = |(name, value)| Ok((name, parameter(value)?));
            named(values.into_iter().map(value).collect::<Result<_>>()?)
        }
        Some(other) => {
            return Err(Error::invalid(format!(
                "params: {other} is neither an array nor an object"
            )));
        }
    };
    match object.keys().next() {
        Some(name) => Err(Error::invalid(format!("the body has an unknown field '{name}'"))),
        None => Ok(Question { sql, parameters, format }),
    }
}

fn parameter(value: Value) -> Result<Parameter> {
    Ok(match value {
        Value::Null => Parameter::Null,
        Value::Bool(value) => Parameter::Boolean(value),
        Value::String(text) => Parameter::Text(text),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Parameter::Integer(integer),
            // Beyond 64 bits with a sign, digit by digit.
            (None, _) if number.is_u64() => Parameter::Text(number.to_string()),
            (None, Some(double)) => Parameter::Double(double),
            (None, None) => Parameter::Text(number.to_string()),
        },
        nested => return Err(Error::invalid(format!("params: {nested} is no single value"))),
    })
}

async fn answered(state: Arc<HttpState>, question: Result<Question>) -> Response {
    let answering = async {
        let Question { sql, parameters, format } = question?;
        let mut answer = state.queries.engine().query(sql, parameters).await?;
        let (mut writer, mut head) = RowsWriter::begin(format, &answer.schema)?;
        // A small answer is whole before it begins, so an error in it is an error, and not the end of a good beginning.
        let content = [(header::CONTENT_TYPE, media_type(format))];
        for _ in 0..BATCHES_AHEAD {
            match answer.next().await.transpose()? {
                Some(rows) => head.extend(writer.write(&rows)?),
                None => {
                    head.extend(writer.end()?);
                    return Ok((content, Body::from(head)));
                }
            }
        }
        Ok((content, streamed(answer, writer, head)))
    };
    match answering.await {
        Ok((head, body)) => (head, body).into_response(),
        Err(error) => problem(&error),
    }
}

/// The other rows as they come. An error among them cuts the body off, which clients find out: its last chunk is missing.
fn streamed(answer: Answer, writer: RowsWriter, head: Vec<u8>) -> Body {
    let pieces = stream::try_unfold(Some((answer, writer, head)), async |state| {
        let Some((mut answer, mut writer, mut piece)) = state else { return Ok(None) };
        match answer.next().await.transpose().inspect_err(|error| {
            tracing::warn!(%error, "an answer to HTTP was cut off");
        })? {
            Some(rows) => {
                piece.extend(writer.write(&rows)?);
                Ok::<_, Error>(Some((piece, Some((answer, writer, Vec::new())))))
            }
            None => {
                piece.extend(writer.end()?);
                Ok(Some((piece, None)))
            }
        }
    });
    Body::from_stream(pieces)
}

/// An error, as JSON.
pub(super) fn problem(error: &Error) -> Response {
    let status = match error.kind() {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound | ErrorKind::OutOfRange => StatusCode::NOT_FOUND,
        ErrorKind::Unauthorized => StatusCode::FORBIDDEN,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Timeout => StatusCode::REQUEST_TIMEOUT,
        ErrorKind::Exhausted => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, Json(json!({"error": error.message()}))).into_response()
}
