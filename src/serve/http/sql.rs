//! `/v1/sql` and `/v1/queries`: SQL over HTTP, with rows in the form that the client asks for.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Map, Value, json};

use super::HttpState;
use super::accept::{accepted, content_type};
use super::problem::Problem;
use crate::encode::writer::{RowsFormat, RowsWriter};
use crate::error::{Error, ErrorKind, Result};
use crate::sql::duck::Parameter;
use crate::sql::engine::{Answer, Parameters};
use crate::sql::queries::Values;

/// Largest body of a request.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Batches of an answer that are made before its first byte is sent.
const BATCHES_AHEAD: usize = 2;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The parameter of a URL, and the field of a body, that says the format.
const FORMAT: &str = "format";

type Pairs = Query<Vec<(String, String)>>;

/// The name of a query in a path.
type Named = std::result::Result<Path<String>, PathRejection>;

type Answered = std::result::Result<Response, Problem>;

/// `GET /v1/sql?q=…`.
pub(super) async fn get(
    State(state): State<Arc<HttpState>>,
    headers: HeaderMap,
    Query(mut pairs): Pairs,
) -> Answered {
    let Some(at) = pairs.iter().position(|(name, _)| name == "q") else {
        return Err(Error::invalid("q is missing, as in /v1/sql?q=select+1").into());
    };
    let (_, sql) = pairs.remove(at);
    run(&state, sql, Asked::of_url(pairs)?, &headers).await
}

/// `POST /v1/sql`, with SQL or a JSON object as the body.
pub(super) async fn post(
    State(state): State<Arc<HttpState>>,
    Query(pairs): Pairs,
    request: Request,
) -> Answered {
    let (headers, body) = body_of(request).await?;
    let asked = Asked::of_url(pairs)?;
    if !is_json(&headers) {
        return run(&state, body, asked, &headers).await;
    }
    let mut object = object_of(&body)?;
    let Some(Value::String(sql)) = object.remove("query") else {
        return Err(Error::invalid("the body has no text 'query'").into());
    };
    run(&state, sql, asked.and(object)?, &headers).await
}

/// `GET /v1/queries`: their names and statements.
pub(super) async fn all(State(state): State<Arc<HttpState>>) -> Response {
    let shown = |(name, sql): (&str, &str)| json!({"name": name, "sql": sql});
    Json(Value::Array(state.queries.all().map(shown).collect())).into_response()
}

/// `GET /v1/queries/<name>?p=…`.
pub(super) async fn call(
    State(state): State<Arc<HttpState>>,
    name: Named,
    headers: HeaderMap,
    Query(pairs): Pairs,
) -> Answered {
    let Path(name) = name?;
    ask(&state, &name, Asked::of_url(pairs)?, &headers).await
}

/// `POST /v1/queries/<name>`, with a JSON object as the body, or without one.
pub(super) async fn call_with_body(
    State(state): State<Arc<HttpState>>,
    name: Named,
    Query(pairs): Pairs,
    request: Request,
) -> Answered {
    let Path(name) = name?;
    let (headers, body) = body_of(request).await?;
    let mut asked = Asked::of_url(pairs)?;
    // Nothing else can be meant, whatever type the client says: curl says that it is a form.
    if !body.trim().is_empty() {
        asked = asked.and(object_of(&body)?)?;
    }
    ask(&state, &name, asked, &headers).await
}

/// What a client says beside the statement.
struct Asked {
    parameters: Parameters,
    /// `None`, if `Accept` decides.
    format: Option<RowsFormat>,
}

impl Asked {
    /// What a URL says.
    fn of_url(pairs: Vec<(String, String)>) -> Result<Self> {
        let (mut format, mut values) = (None, Values::new());
        for (name, value) in pairs {
            let is_twice = match name.as_str() {
                FORMAT => format.replace(value.parse()?).is_some(),
                _ => values.insert(name.clone(), Parameter::Text(value)).is_some(),
            };
            if is_twice {
                return Err(Error::invalid(format!("parameter '{name}' is there twice")));
            }
        }
        let parameters = match values.is_empty() {
            true => Parameters::None,
            false => Parameters::Named(values),
        };
        Ok(Self { parameters, format })
    }

    /// With what is in a body, too: `params` and `format`.
    fn and(mut self, mut object: Map<String, Value>) -> Result<Self> {
        self.format = match object.remove(FORMAT) {
            None => self.format,
            Some(Value::String(name)) => Some(name.parse()?),
            Some(other) => return Err(Error::invalid(format!("format: {other} is no text"))),
        };
        if let Some(values) = object.remove("params") {
            if !matches!(self.parameters, Parameters::None) {
                return Err(Error::invalid("params: the URL has parameters already"));
            }
            self.parameters = parameters_of(values)?;
        }
        match object.keys().next() {
            Some(name) => Err(Error::invalid(format!("the body has an unknown field '{name}'"))),
            None => Ok(self),
        }
    }

    fn format(&self, headers: &HeaderMap) -> std::result::Result<RowsFormat, Problem> {
        self.format.map_or_else(|| accepted(headers), Ok)
    }
}

/// The headers of a request, and its body.
async fn body_of(request: Request) -> Result<(HeaderMap, String)> {
    let (head, body) = request.into_parts();
    let body = match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let why = format!("the body has more than {BODY_BYTES_MAX} bytes, or was cut off");
            return Err(Error::invalid(why));
        }
        Err(_) => return Err(Error::new(ErrorKind::Timeout, "the body did not come in time")),
    };
    let text = String::from_utf8(body.into());
    Ok((head.headers, text.map_err(|_| Error::invalid("the body is no UTF-8"))?))
}

fn is_json(headers: &HeaderMap) -> bool {
    let content = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content.and_then(|content| content.split(';').next());
    media_type.is_some_and(|of| of.trim().eq_ignore_ascii_case("application/json"))
}

fn object_of(body: &str) -> Result<Map<String, Value>> {
    let object = serde_json::from_str(body);
    object.map_err(|error| Error::invalid(format!("the body is no JSON object: {error}")))
}

fn parameters_of(values: Value) -> Result<Parameters> {
    Ok(match values {
        Value::Array(values) => {
            Parameters::Positional(values.into_iter().map(parameter).collect::<Result<_>>()?)
        }
        Value::Object(values) => {
            let value = |(name, value)| Ok((name, parameter(value)?));
            Parameters::Named(values.into_iter().map(value).collect::<Result<_>>()?)
        }
        other => {
            let why = format!("params: {other} is neither an array nor an object");
            return Err(Error::invalid(why));
        }
    })
}

fn parameter(value: Value) -> Result<Parameter> {
    Ok(match value {
        Value::Null => Parameter::Null,
        Value::Bool(value) => Parameter::Boolean(value),
        Value::String(text) => Parameter::Text(text),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), ..) => Parameter::Integer(integer),
            (_, Some(integer), _) => Parameter::Unsigned(integer),
            (.., Some(double)) => Parameter::Double(double),
            (.., None) => Parameter::Text(number.to_string()),
        },
        nested => return Err(Error::invalid(format!("params: {nested} is no single value"))),
    })
}

/// Answers a query with a name, as all who ask the same are answered.
async fn ask(state: &HttpState, name: &str, asked: Asked, headers: &HeaderMap) -> Answered {
    let format = asked.format(headers)?;
    let values = match asked.parameters {
        Parameters::None => Values::new(),
        Parameters::Named(values) => values,
        // DuckDB calls those of `?` by their numbers.
        Parameters::Positional(values) => {
            (1..).map(|at: usize| at.to_string()).zip(values).collect()
        }
    };
    let body = state.queries.answer(name, &values, format).await?;
    Ok(([(header::CONTENT_TYPE, content_type(format))], body).into_response())
}

/// Answers a statement.
async fn run(state: &HttpState, sql: String, asked: Asked, headers: &HeaderMap) -> Answered {
    let format = asked.format(headers)?;
    let mut answer = state.queries.engine().query(sql, asked.parameters).await?;
    let (mut writer, mut head) = RowsWriter::begin(format, &answer.schema)?;
    // A small answer is whole before it begins, so an error in it is an error, and not the end of a good beginning.
    let content = [(header::CONTENT_TYPE, content_type(format))];
    for _ in 0..BATCHES_AHEAD {
        match answer.next().await.transpose()? {
            Some(rows) => head.extend(writer.write(&rows)?),
            None => {
                head.extend(writer.end()?);
                return Ok((content, head).into_response());
            }
        }
    }
    Ok((content, streamed(answer, writer, head)).into_response())
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
