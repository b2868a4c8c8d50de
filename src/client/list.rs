//! `karrow client list`: streams, sessions, and topics that are neither.

use arrow::datatypes::{DataType, Fields};
use arrow_flight::{Criteria, FlightInfo};
use futures::TryStreamExt;
use serde_json::{Map, Value, json};

use super::connection::Server;
use super::output::{print, terminal_width};
use super::read::schema_of;
use super::{Failure, table};
use crate::config::flags::client::{ListFlags, ListOutput};
use crate::encode::csv;

/// Names and types.
type Columns = Vec<(String, String)>;

/// One line of the list.
#[derive(Debug, PartialEq)]
enum Entry {
    Stream {
        topic: String,
        phase: String,
        /// Why it has failed.
        error: Option<String>,
        rows: i64,
        bytes: i64,
        columns: Columns,
    },
    /// A topic that is no stream.
    Topic(String),
    Session {
        group: String,
        name: String,
    },
}

/// Asks and prints.
///
/// # Errors
/// The server's.
pub async fn run(server: Server, flags: &ListFlags) -> Result<(), Failure> {
    let mut entries = Vec::new();
    let expression = criteria(flags.glob.as_deref(), flags.all).into();
    let flights = server.client().list_flights(Criteria { expression }).await;
    let mut flights = flights.map_err(|status| server.failure(&status))?.into_inner();
    while let Some(info) = flights.try_next().await.map_err(|status| server.failure(&status))? {
        entries.extend(entry(&server, &info)?);
    }
    entries.sort_by_cached_key(Entry::place);
    let text = match flags.output {
        ListOutput::Table => as_table(&entries, terminal_width()),
        ListOutput::Json => entries.iter().map(|entry| format!("{}\n", entry.json())).collect(),
        ListOutput::Csv => as_csv(&entries),
    };
    print(text.as_bytes())
}

/// What the server takes for a pattern, or for all topics.
fn criteria(glob: Option<&str>, all: bool) -> String {
    let glob = glob.unwrap_or("*");
    match (all, glob.strip_prefix("all")) {
        (true, _) => format!("all:{glob}"),
        (false, Some(rest)) => format!("[a]ll{rest}"),
        (false, None) => glob.to_owned(),
    }
}

fn entry(server: &Server, info: &FlightInfo) -> Result<Option<Entry>, Failure> {
    let path = info.flight_descriptor.as_ref().map(|descriptor| descriptor.path.as_slice());
    Ok(match path {
        // How much of it there is, is not known.
        Some([topic]) if info.total_records < 0 => Some(Entry::Topic(topic.clone())),
        Some([topic]) => {
            let said: Value = serde_json::from_slice(&info.app_metadata).unwrap_or_default();
            let text = |name: &str| said[name].as_str().map(str::to_owned);
            Some(Entry::Stream {
                topic: topic.clone(),
                phase: text("phase").unwrap_or_default(),
                error: text("error"),
                rows: info.total_records,
                bytes: info.total_bytes,
                columns: match info.schema.is_empty() {
                    // It cannot be read now.
                    true => Columns::new(),
                    false => columns(schema_of(server, info)?.fields()),
                },
            })
        }
        Some([sessions, group, name]) if sessions == "sessions" => {
            Some(Entry::Session { group: group.clone(), name: name.clone() })
        }
        _ => None,
    })
}

/// The columns that make this topic different from others: its payload's.
fn columns(fields: &Fields) -> Columns {
    let payload = fields.find("payload").map(|(_, field)| field.data_type());
    let of = |name: &str, data_type: &DataType| (name.to_owned(), data_type.to_string());
    match payload {
        Some(DataType::Struct(fields)) => {
            fields.iter().map(|field| of(field.name(), field.data_type())).collect()
        }
        Some(data_type) => vec![of("payload", data_type)],
        None => fields.iter().map(|field| of(field.name(), field.data_type())).collect(),
    }
}

impl Entry {
    /// Topics by name, then sessions by name.
    fn place(&self) -> (bool, String) {
        match self {
            Self::Stream { topic, .. } | Self::Topic(topic) => (false, topic.clone()),
            Self::Session { group, name } => (true, format!("{group}:{name}")),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Stream { topic, phase, error, rows, bytes, columns } => {
                let columns: Map<String, Value> = columns
                    .iter()
                    .map(|(name, data_type)| (name.clone(), data_type.as_str().into()))
                    .collect();
                json!({
                    "kind": "stream", "topic": topic, "phase": phase, "error": error, "rows": rows, "bytes": bytes,
                    "columns": columns,
                })
            }
            Self::Topic(topic) => json!({ "kind": "topic", "topic": topic }),
            Self::Session { group, name } => {
                json!({ "kind": "session", "group": group, "name": name })
            }
        }
    }
}

fn as_table(entries: &[Entry], width: Option<usize>) -> String {
    let (mut topics, mut sessions) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            Entry::Stream { topic, phase, error, rows, bytes, columns } => {
                let columns =
                    columns.iter().map(|(name, data_type)| format!("{name}: {data_type}"));
                let columns: Vec<String> = columns.collect();
                let about = error.clone().unwrap_or_else(|| columns.join(", "));
                let (rows, bytes) = (rows.to_string(), bytes.to_string());
                topics.push(vec![topic.clone(), phase.clone(), rows, bytes, about]);
            }
            Entry::Topic(topic) => {
                let mut line = vec![topic.clone()];
                line.resize(5, String::new());
                topics.push(line);
            }
            Entry::Session { group, name } => sessions.push(vec![group.clone(), name.clone()]),
        }
    }
    let mut text = table::simple(&["topic", "stream", "rows", "bytes", "columns"], &topics, width);
    if !sessions.is_empty() {
        text.push('\n');
        text.push_str(&table::simple(&["session of group", "name"], &sessions, width));
    }
    text
}

fn as_csv(entries: &[Entry]) -> String {
    let mut text = String::new();
    let mut line = |values: [Option<&str>; 8]| csv::write_line(values.into_iter(), &mut text);
    let header = ["kind", "topic", "phase", "error", "rows", "bytes", "columns", "session"];
    line(header.map(Some));
    for entry in entries {
        match entry {
            Entry::Stream { topic, phase, error, rows, bytes, columns } => {
                let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
                let (rows, bytes, names) = (rows.to_string(), bytes.to_string(), names.join(","));
                let error = error.as_deref();
                let (rows, bytes, names) = (Some(&*rows), Some(&*bytes), Some(&*names));
                line([Some("stream"), Some(topic), Some(phase), error, rows, bytes, names, None]);
            }
            Entry::Topic(topic) => {
                line([Some("topic"), Some(topic), None, None, None, None, None, None]);
            }
            Entry::Session { group, name } => {
                let session = format!("{group}:{name}");
                line([Some("session"), None, None, None, None, None, None, Some(&session)]);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_not_taken_for_all_topics() {
        for (glob, all, expected) in [
            (None, false, "*"),
            (None, true, "all:*"),
            (Some("o*"), true, "all:o*"),
            (Some("all"), false, "[a]ll"),
            (Some("all:x"), false, "[a]ll:x"),
        ] {
            assert_eq!(criteria(glob, all), expected);
        }
    }

    #[test]
    fn a_list_has_three_forms() {
        let columns =
            vec![("a".to_owned(), "Int64".to_owned()), ("b".to_owned(), "Utf8".to_owned())];
        let entries = [
            Entry::Stream {
                topic: "orders".to_owned(),
                phase: "live".to_owned(),
                error: None,
                rows: 3,
                bytes: 420,
                columns,
            },
            Entry::Stream {
                topic: "sad".to_owned(),
                phase: "failed".to_owned(),
                error: Some("why".to_owned()),
                rows: 0,
                bytes: 0,
                columns: Columns::new(),
            },
            Entry::Topic("quiet".to_owned()),
            Entry::Session { group: "g".to_owned(), name: "n".to_owned() },
        ];
        assert_eq!(
            as_csv(&entries),
            "kind,topic,phase,error,rows,bytes,columns,session\n\
             stream,orders,live,,3,420,\"a,b\",\n\
             stream,sad,failed,why,0,0,\"\",\n\
             topic,quiet,,,,,,\n\
             session,,,,,,,g:n\n"
        );
        let table = as_table(&entries, Some(40));
        assert!(table.contains("orders  live    3     420    a: Int"), "{table}");
        assert!(table.contains("sad     failed  0     0      why"), "{table}");
        assert!(table.lines().all(|line| line.chars().count() <= 40), "{table}");
        assert!(table.contains("session of group"), "{table}");
        assert_eq!(
            entries[0].json().to_string(),
            r#"{"kind":"stream","topic":"orders","phase":"live","error":null,"rows":3,"bytes":420,"columns":{"a":"Int64","b":"Utf8"}}"#
        );
    }
}
