//! `karrow client get`: rows of a topic, in one form or another.

use arrow::datatypes::{DataType, Fields};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::connection::Server;
use super::progress::Progress;
use super::read::{Event, Read, plan, schema_of};
use super::sink::{Shown, Sink, check};
use super::table::RowsOf;
use super::{Failure, note, until};
use crate::config::flags::client::{GetFlags, LayoutFlag, PlaceFlag, RowsOutput};
use crate::decode::envelope::{ENVELOPE, Layout};
use crate::serve::flight::request::{Place, ReadRequest, Ticket};
use crate::stream::window::Positions;

/// Names that an error lists.
const NAMES_MAX: usize = 50;

/// Reads and writes, until the end or until `stop`.
///
/// # Errors
/// One line each.
pub async fn run(server: Server, flags: GetFlags, stop: CancellationToken) -> Result<(), Failure> {
    check(&flags.output)?;
    let request = request_of(&flags);
    let planned = until(&stop, Read::plan(server.clone(), request.clone())).await;
    if let Err(Failure::Usage(_)) = &planned {
        until(&stop, check_columns(&server, &request, &flags.columns)).await?;
    }
    let mut read = planned?;
    let mut progress = Progress::new(read.first_ticket(), flags.output.file.is_some());
    let of = if flags.columns.is_empty() { RowsOf::Topic } else { RowsOf::Columns };
    let shown = Shown { of, hint: "--columns picks others" };
    let mut sink = Sink::open(&flags.output, shown, read.schema())?;
    if let Some(text) = read.first_ticket().and_then(|ticket| remark(&flags, ticket)) {
        note(&text);
    }
    let copied = copy(&mut read, &mut sink, &mut progress, &stop).await;
    progress.end();
    let finished = sink.finish();
    let ended = copied?;
    finished?;
    let topic = &request.topic;
    if let Some(path) = &flags.output.file {
        let (rows, path) = (progress.rows(), path.display());
        match rows {
            1 => note(&format!("1 row of {topic} is in {path}")),
            _ => note(&format!("{rows} rows of {topic} are in {path}")),
        }
    }
    match ended {
        Ended::Interrupted if !flags.follow => {
            let why = Failure::failed(format!("interrupted, {topic} was not read to its end"));
            Err(going_on(why, read.positions()))
        }
        Ended::NewColumns => {
            let why = Failure::failed(format!(
                "{topic}: its columns have changed, which this output has no way to show; what was read so far is whole"
            ));
            Err(going_on(why, read.positions()))
        }
        Ended::Failed(why) => Err(going_on(why, read.positions())),
        Ended::AtEnd | Ended::Interrupted => {
            // Nobody looks through a million rows for one that says so.
            let bad = progress.bad_rows();
            if bad > 0 {
                let rows = if bad == 1 { "row was" } else { "rows were" };
                note(&format!("{topic}: {bad} {rows} not read as a whole, see the column error"));
            }
            Ok(())
        }
    }
}

/// The failure with the place where another read goes on, which is the end of what was written.
fn going_on(failure: Failure, positions: Option<&Positions>) -> Failure {
    match (failure, positions) {
        (Failure::Failed(error), Some(positions)) => {
            Failure::failed(format!("{error}; --from {} reads on", shown(positions)))
        }
        (failure, _) => failure,
    }
}

/// What the user may not expect of the bounds as the plan has them.
fn remark(flags: &GetFlags, ticket: &[u8]) -> Option<String> {
    let Ticket { topic, from, to: Some(to), .. } = Ticket::parse(ticket).ok()? else { return None };
    if let Some(PlaceFlag::Positions(wanted)) = &flags.to {
        let early: Vec<String> = wanted
            .iter()
            .filter(|(partition, offset)| to.get(*partition) < *offset)
            .map(|(partition, _)| format!("{partition}:{}", to.get(*partition)))
            .collect();
        if !early.is_empty() {
            return Some(format!("{topic} ends at {}, before --to", early.join(",")));
        }
    }
    // Whoever names one bound only may well ask for what is not there yet.
    let is_empty = flags.from.is_some() && flags.to.is_some() && from.covers(&to);
    is_empty.then(|| format!("{topic}: nothing lies between --from and --to"))
}

/// Why nothing more is read.
enum Ended {
    AtEnd,
    Interrupted,
    NewColumns,
    /// It cannot be read any further; what was read is written.
    Failed(Failure),
}

async fn copy(
    read: &mut Read,
    sink: &mut Sink,
    progress: &mut Progress,
    stop: &CancellationToken,
) -> Result<Ended, Failure> {
    loop {
        let event = tokio::select! {
            event = read.next() => event,
            () = stop.cancelled() => return Ok(Ended::Interrupted),
        };
        match event {
            Err(why) => return Ok(Ended::Failed(why)),
            Ok(None) => return Ok(Ended::AtEnd),
            Ok(Some(Event::Rows(batch))) => {
                sink.write(&batch)?;
                progress.add(&batch, read.positions());
            }
            Ok(Some(Event::Columns(schema))) => {
                if !sink.change_columns(&schema) {
                    return Ok(Ended::NewColumns);
                }
            }
        }
    }
}

fn request_of(flags: &GetFlags) -> ReadRequest {
    let layout = flags.layout.unwrap_or(match flags.output.format() {
        RowsOutput::Table | RowsOutput::Csv => LayoutFlag::Flat,
        RowsOutput::Json | RowsOutput::Arrow | RowsOutput::Parquet => LayoutFlag::Struct,
    });
    let to = match (&flags.to, flags.follow) {
        (_, true) => None,
        (Some(place), false) => Some(place_of(place)),
        (None, false) => Some(Place::Latest),
    };
    let from = match (&flags.from, flags.follow) {
        (Some(place), _) => Some(place_of(place)),
        // The window of a stream, where there is one.
        (None, true) => None,
        // The same, whoever else reads the topic.
        (None, false) => Some(Place::Earliest),
    };
    ReadRequest {
        from,
        to,
        columns: (!flags.columns.is_empty()).then(|| json!(flags.columns)),
        layout: match layout {
            LayoutFlag::Flat => Layout::Flat,
            LayoutFlag::Struct => Layout::Struct,
        },
        limit: flags.limit,
        ..ReadRequest::of_topic(&flags.topic.0)
    }
}

fn place_of(place: &PlaceFlag) -> Place {
    match place {
        PlaceFlag::Earliest => Place::Earliest,
        PlaceFlag::Latest => Place::Latest,
        PlaceFlag::Window => Place::Window,
        PlaceFlag::Time(millis) => Place::Time(*millis),
        PlaceFlag::Positions(pairs) => {
            Place::Positions(Positions::named(&pairs.iter().copied().collect()))
        }
    }
}

/// Positions as `--from` takes them.
fn shown(positions: &Positions) -> String {
    let pairs = positions.iter().map(|(partition, offset)| format!("{partition}:{offset}"));
    pairs.collect::<Vec<_>>().join(",")
}

/// Refuses columns that the topic does not have, as the server did, but names those that it has.
async fn check_columns(
    server: &Server,
    request: &ReadRequest,
    columns: &[String],
) -> Result<(), Failure> {
    let whole = ReadRequest { columns: None, ..request.clone() };
    let info = plan(server, &whole).await.map_err(|status| server.failure(&status))?;
    let schema = schema_of(server, &info)?;
    let Some(missing) = columns.iter().find(|name| !has(schema.fields(), name)) else {
        return Ok(());
    };
    let mut names = Vec::new();
    collect(schema.fields(), "", &mut names);
    let more = if names.len() > NAMES_MAX { ", …" } else { "" };
    names.truncate(NAMES_MAX);
    Err(Failure::usage(format!(
        "--columns: {} has no column '{missing}'; it has {}{more}{}",
        request.topic,
        names.join(", "),
        hint(&request.topic, schema.fields())
    )))
}

/// Why the fields of a payload are missing, where it has none.
fn hint(topic: &str, fields: &Fields) -> String {
    match fields.find("payload").map(|(_, field)| field.data_type()) {
        // In the flat layout a field may have this name, too; then there are more columns.
        Some(data_type) if !data_type.is_nested() && fields.len() == ENVELOPE.len() => {
            // A bare dot would be a table in a table.
            let key = if topic.contains('.') { format!("\"{topic}\"") } else { topic.to_owned() };
            format!(
                "; its payload was found to be {data_type}, [topic.{key}] payload = \"json\" in karrow.toml says otherwise"
            )
        }
        _ => String::new(),
    }
}

fn has(fields: &Fields, name: &str) -> bool {
    let (first, rest) =
        name.split_once('.').map_or((name, None), |(first, rest)| (first, Some(rest)));
    let Some((_, field)) = fields.find(first) else { return false };
    match (rest, field.data_type()) {
        (None, _) => true,
        (Some(rest), DataType::Struct(fields)) => has(fields, rest),
        (Some(_), _) => false,
    }
}

fn collect(fields: &Fields, above: &str, names: &mut Vec<String>) {
    for field in fields {
        let name = format!("{above}{}", field.name());
        match field.data_type() {
            DataType::Struct(fields) => collect(fields, &format!("{name}."), names),
            _ => names.push(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Field;

    use super::*;

    #[test]
    fn columns_are_found_in_structs() {
        let inner = Fields::from(vec![Field::new("price", DataType::Float64, true)]);
        let fields = Fields::from(vec![
            Arc::new(Field::new("offset", DataType::Int64, false)),
            Arc::new(Field::new("payload", DataType::Struct(inner), true)),
        ]);
        for (name, expected) in [
            ("offset", true),
            ("payload", true),
            ("payload.price", true),
            ("payload.prize", false),
            ("price", false),
            ("offset.x", false),
        ] {
            assert_eq!(has(&fields, name), expected, "{name}");
        }
        let mut names = Vec::new();
        collect(&fields, "", &mut names);
        assert_eq!(names, ["offset", "payload.price"]);
        assert_eq!(hint("t", &fields), "");
        let text: Fields =
            ENVELOPE.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect();
        assert_eq!(
            hint("my.t", &text),
            "; its payload was found to be Utf8, [topic.\"my.t\"] payload = \"json\" in karrow.toml says otherwise"
        );
    }
}
