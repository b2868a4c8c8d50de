//! SQL and SQL.CALL: questions over topics as tables.

use super::{Client, Outcome, reply_from, text};
use crate::encode::writer::RowsFormat;
use crate::error::{Error, Result};
use crate::serve::resp::reply::{Output, Value};
use crate::sql::duck::Parameter;
use crate::sql::engine::Parameters;
use crate::sql::queries::Values;

const PREFIX: &str = "SQL";

pub fn sql(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let format = match args.get(2..).unwrap_or_default() {
        [] => Ok(RowsFormat::Json),
        [name] => text(name).parse(),
        [word, name] if word.eq_ignore_ascii_case(b"FORMAT") => text(name).parse(),
        _ => Err(Error::invalid("a query and a format are taken; quote a query with spaces")),
    };
    let asked = utf8(args.get(1)).and_then(|query| Ok((query, format?)));
    let (query, format) = match asked {
        Ok(asked) => asked,
        Err(error) => return refused(&error, out),
    };
    let queries = client.gateway.queries.clone();
    answered(async move {
        let held = queries.run(query, Parameters::None).await?;
        held.encoded(format, queries.result_bytes_max()).map(Value::Shared)
    })
}

pub fn call(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let (name, values, format) = match named(args) {
        Ok(asked) => asked,
        Err(error) => return refused(&error, out),
    };
    let queries = client.gateway.queries.clone();
    answered(async move { queries.answer(&name, &values, format).await.map(Value::Shared) })
}

/// The name of a query, its parameters, and the format of the answer.
fn named(args: &[&[u8]]) -> Result<(String, Values, RowsFormat)> {
    let name = utf8(args.get(1))?;
    let (mut values, mut format) = (Values::new(), None);
    for pair in args.get(2..).unwrap_or_default().chunks(2) {
        let parameter = utf8(pair.first())?;
        let Some(value) = pair.get(1) else {
            return Err(Error::invalid(format!("parameter '{parameter}' has no value")));
        };
        let is_twice = match parameter.eq_ignore_ascii_case("FORMAT") {
            true => format.replace(text(value).parse()?).is_some(),
            false => {
                let value = Parameter::Text(utf8(Some(value))?);
                values.insert(parameter.clone(), value).is_some()
            }
        };
        if is_twice {
            return Err(Error::invalid(format!("parameter '{parameter}' is there twice")));
        }
    }
    Ok((name, values, format.unwrap_or(RowsFormat::Json)))
}

fn utf8(argument: Option<&&[u8]>) -> Result<String> {
    let bytes = argument.copied().unwrap_or_default();
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned).map_err(|_| Error::invalid("SQL and its values are UTF-8"))
}

/// Runs a query, as long as its client is there.
fn answered(work: impl Future<Output = Result<Value>> + Send + 'static) -> Outcome {
    match reply_from(work, PREFIX) {
        Outcome::Run(reply) => Outcome::Ask(reply),
        other => other,
    }
}

fn refused(error: &Error, out: &mut Output) -> Outcome {
    out.error(&format!("{PREFIX} {error}"));
    Outcome::Done
}
