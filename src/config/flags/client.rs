//! What is typed after `karrow client`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use chrono::{DateTime, NaiveDate, NaiveTime};
use clap::{Args, Subcommand, ValueEnum};

use super::check_brokers;
use crate::config::topic_is_legal;

const EXIT_CODES: &str = "\
Exit codes:
  0   done; also when the reader of stdout has gone, or ^C ended a follow
  1   failed: the server is not reached, a topic is not there, input is wrong, a bounded read was cut short
  64  the command line is wrong: a flag, the name of a topic, a column that is not there";

const ACTION_BODIES: &str = r#"Examples:
  karrow client actions health
  karrow client actions list-topics
  karrow client actions create-topic orders
  karrow client actions create-topic '{"topic": "orders", "partitions": 4, "replication_factor": 3}'
  karrow client actions ack '{"group": "readers", "name": "me", "acks": "orders:0:41,orders:1:7"}'
  karrow client actions add-stream '^orders-'
  karrow client actions drop-stream orders"#;

const SQL_EXAMPLES: &str = r#"Examples:
  karrow client sql 'select payload.city, count(*) from orders group by 1'
  karrow client sql --file orders.parquet 'select * from live.orders'
  karrow client sql - < question.sql"#;

/// A number below this, of milliseconds since 1970, is before 1973: it was meant as something else.
const MILLIS_MIN: i64 = 100_000_000_000;

/// `karrow client`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct ClientFlags {
    /// Where karrow serves Arrow Flight
    #[arg(
        long,
        value_name = "URL",
        env = "KARROW_SERVER",
        default_value = "http://127.0.0.1:8815",
        global = true
    )]
    pub server: ServerAddress,

    /// What to ask for.
    #[command(subcommand)]
    pub command: ClientCommand,
}

/// The subcommands of `karrow client`.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// List streams, and sessions of Redis clients
    #[command(after_help = EXIT_CODES)]
    List(ListFlags),
    /// Read a topic
    #[command(after_help = EXIT_CODES)]
    Get(Box<GetFlags>),
    /// Ask a question in SQL: a statement that reads, over topics as tables
    #[command(after_help = format!("{SQL_EXAMPLES}\n\n{EXIT_CODES}"))]
    Sql(SqlFlags),
    /// Produce messages from a file or stdin
    #[command(after_help = EXIT_CODES)]
    Put(PutFlags),
    /// List the server's actions, or do one
    #[command(after_help = format!("{ACTION_BODIES}\n\n{EXIT_CODES}"))]
    Actions(ActionsFlags),
}

/// `karrow client list`.
#[derive(Debug, Args)]
pub struct ListFlags {
    /// Only topics whose names match, as Redis's patterns do: `*`, `?`, `[a-z]`
    #[arg(value_name = "GLOB")]
    pub glob: Option<String>,

    /// Also topics that are no streams
    #[arg(long)]
    pub all: bool,

    /// How it is printed
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub output: ListOutput,
}

/// `karrow client get`.
#[derive(Debug, Args)]
pub struct GetFlags {
    /// The topic
    pub topic: LegalTopic,

    /// Go on with what is produced from now on, until ^C; a lost connection is made again
    #[arg(long, conflicts_with = "to")]
    pub follow: bool,

    /// Where to begin: earliest, latest or now, window (of a stream), a time (2024-05-01, RFC 3339, or milliseconds since
    /// 1970), or offsets by partition such as 0:42,1:7; partitions that are not named are read from their beginning
    /// [default: earliest; with --follow the window of a stream, else earliest]
    #[arg(long, value_name = "PLACE", value_parser = begin)]
    pub from: Option<PlaceFlag>,

    /// Where to end, exclusive: now, earliest, a time, or offsets by partition; nothing is read of partitions that are not
    /// named [default: now]
    #[arg(long, value_name = "PLACE", value_parser = end)]
    pub to: Option<PlaceFlag>,

    /// Most rows
    #[arg(long, value_name = "N", value_parser = limit, allow_negative_numbers = true)]
    pub limit: Option<u64>,

    /// Only these columns; dots lead into structs
    #[arg(long, value_name = "A,B.C", value_delimiter = ',', value_parser = column)]
    pub columns: Vec<String>,

    /// Whether the payload is one column or its fields are columns of their own, beside _topic, _offset and so on
    /// [default: flat for table and csv, else struct]
    #[arg(long, value_name = "LAYOUT")]
    pub layout: Option<LayoutFlag>,

    /// How and where to rows are written.
    #[command(flatten)]
    pub output: OutputFlags,
}

/// `karrow client sql`.
#[derive(Debug, Args)]
pub struct SqlFlags {
    /// The statement; `-` reads it from stdin
    pub statement: String,

    /// How and where to rows are written.
    #[command(flatten)]
    pub output: OutputFlags,
}

/// Where rows go, and how they look.
#[derive(Debug, Args)]
pub struct OutputFlags {
    /// How rows are written: table fits the terminal; json is an object a line, with bytes that are no UTF-8 in base64
    /// under <name>_base64, as csv has them; arrow is an IPC file if its name ends with .arrow or .feather, else a stream
    /// [default: what the name of the file ends with, else table]
    #[arg(long, value_name = "FORMAT")]
    pub output: Option<RowsOutput>,

    /// Write to this file instead of stdout
    #[arg(short = 'o', long, value_name = "PATH")]
    pub file: Option<PathBuf>,
}

/// `karrow client put`.
#[derive(Debug, Args)]
pub struct PutFlags {
    /// The topic
    pub topic: LegalTopic,

    /// A file; `-` is stdin
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,

    /// What the input is: json has a message a line, sent as it is; csv names its columns in the first line and makes a
    /// JSON object of each other one; arrow is an IPC stream or file. Columns key, headers, timestamp and partition are
    /// used as such, payload is taken as it is [default: what the name of the file ends with, else json]
    #[arg(long, value_name = "FORMAT")]
    pub input: Option<PutInput>,

    /// Send only these columns of csv, arrow and parquet; without partition, the key decides where a message goes
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = column)]
    pub columns: Vec<String>,
}

/// `karrow client actions`.
#[derive(Debug, Args)]
pub struct ActionsFlags {
    /// The action to do; without it all are listed
    pub name: Option<String>,

    /// What the action is told
    pub body: Option<String>,

    /// How the list is printed
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub output: ListOutput,
}

/// How lists are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListOutput {
    /// For people.
    Table,
    /// One JSON object a line.
    Json,
    /// With a header.
    Csv,
}

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RowsOutput {
    /// For people.
    Table,
    /// One JSON object a line.
    Json,
    /// With a header.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

/// What `put` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PutInput {
    /// An Arrow IPC stream or file.
    Arrow,
    /// A JSON value a line.
    Json,
    /// With a header.
    Csv,
    /// A Parquet file.
    Parquet,
}

impl OutputFlags {
    /// How rows are written, said or not.
    pub fn format(&self) -> RowsOutput {
        self.output.or_else(|| self.output_of_file()).unwrap_or(RowsOutput::Table)
    }

    /// Whether nothing says how rows are written, because the name of the file ends with something unknown.
    pub fn is_output_unknown(&self) -> bool {
        self.output.is_none() && self.output_of_file().is_none()
    }

    fn output_of_file(&self) -> Option<RowsOutput> {
        match self.extension().as_str() {
            "" | "txt" => Some(RowsOutput::Table),
            "json" | "ndjson" | "jsonl" => Some(RowsOutput::Json),
            "csv" => Some(RowsOutput::Csv),
            "arrow" | "arrows" | "feather" => Some(RowsOutput::Arrow),
            "parquet" => Some(RowsOutput::Parquet),
            _ => None,
        }
    }

    /// Whether Arrow is written as an IPC file, which `.arrow` stands for, and not as a stream (`.arrows`).
    pub fn wants_arrow_file(&self) -> bool {
        matches!(self.extension().as_str(), "arrow" | "feather")
    }

    fn extension(&self) -> String {
        self.file.as_deref().map(extension).unwrap_or_default()
    }
}

impl PutFlags {
    /// What the input is, said or not.
    pub fn input(&self) -> PutInput {
        self.input.unwrap_or_else(|| match extension(&self.file).as_str() {
            "csv" => PutInput::Csv,
            "arrow" | "arrows" | "feather" => PutInput::Arrow,
            "parquet" => PutInput::Parquet,
            _ => PutInput::Json,
        })
    }
}

/// What the name of a file ends with.
fn extension(path: &Path) -> String {
    path.extension().and_then(|end| end.to_str()).unwrap_or_default().to_ascii_lowercase()
}

/// Where the fields of a payload go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LayoutFlag {
    /// To the top.
    Flat,
    /// Into one column.
    Struct,
}

/// The name of a topic that Kafka may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegalTopic(pub String);

impl FromStr for LegalTopic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match topic_is_legal(text) {
            true => Ok(Self(text.to_owned())),
            false => {
                Err(format!("'{text}' is no legal topic name (1 to 249 of a-z A-Z 0-9 . _ -)"))
            }
        }
    }
}

/// A Flight server's URL, beginning with `http://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress(pub String);

impl FromStr for ServerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, address) = text.split_once("://").unwrap_or(("http", text));
        if !["http", "grpc", "grpc+tcp"].contains(&scheme) {
            return Err(format!("'{text}': {scheme} is none of http, grpc and grpc+tcp"));
        }
        let address = address.trim_end_matches('/');
        if address.contains([',', '/']) {
            return Err(format!("'{text}' is no address, try http://127.0.0.1:8815"));
        }
        check_brokers(address).map_err(|_| format!("'{text}': expected http://host:port"))?;
        let has_port = address.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let port = if has_port { "" } else { ":8815" };
        Ok(Self(format!("http://{address}{port}")))
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a read begins or ends, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceFlag {
    /// At the first record that Kafka has.
    Earliest,
    /// At what comes next.
    Latest,
    /// Where the window of the topic's stream begins.
    Window,
    /// At so many milliseconds since the epoch.
    Time(i64),
    /// At these offsets, by partition.
    Positions(Vec<(i32, i64)>),
}

fn begin(text: &str) -> Result<PlaceFlag, String> {
    place(text, "earliest, latest, now, window")
}

fn end(text: &str) -> Result<PlaceFlag, String> {
    match text {
        "follow" => Err("to go on with what comes, say --follow".to_owned()),
        "window" => Err("a window is where a read begins".to_owned()),
        _ => place(text, "now, latest, earliest"),
    }
}

fn place(text: &str, words: &str) -> Result<PlaceFlag, String> {
    match text {
        "earliest" => return Ok(PlaceFlag::Earliest),
        "latest" | "now" => return Ok(PlaceFlag::Latest),
        "window" => return Ok(PlaceFlag::Window),
        _ => {}
    }
    if let Ok(number) = text.parse::<u64>()
        && let Ok(number) = i64::try_from(number)
    {
        return match number {
            MILLIS_MIN.. => Ok(PlaceFlag::Time(number)),
            _ => Err(format!(
                "'{text}' would be a time before 1973; an offset has its partition in front, 0:{text}"
            )),
        };
    }
    if let Some(millis) = time(text) {
        return match millis {
            0.. => Ok(PlaceFlag::Time(millis)),
            _ => Err(format!("'{text}' is before 1970")),
        };
    }
    positions(text).map(PlaceFlag::Positions).ok_or_else(|| {
        format!(
            "'{text}' is none of {words}, a time (2024-05-01, 2024-05-01T12:00:00Z, or milliseconds) and offsets (0:42,1:7)"
        )
    })
}

/// A time, or a date for its beginning in UTC, in milliseconds since 1970.
pub fn time(text: &str) -> Option<i64> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp_millis());
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    Some(date.and_time(NaiveTime::MIN).and_utc().timestamp_millis())
}

fn limit(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("'{text}' is no number of rows, such as 10"))
}

fn column(name: &str) -> Result<String, String> {
    match name {
        "" => Err("the name of a column is missing".to_owned()),
        name => Ok(name.to_owned()),
    }
}

fn positions(text: &str) -> Option<Vec<(i32, i64)>> {
    let pair = |pair: &str| -> Option<(i32, i64)> {
        let (partition, offset) = pair.split_once(':')?;
        let partition = partition.trim().parse::<u16>().ok()?;
        let offset = i64::try_from(offset.trim().parse::<u64>().ok()?).ok()?;
        Some((partition.into(), offset))
    };
    let pairs: Vec<(i32, i64)> = text.split(',').map(pair).collect::<Option<_>>()?;
    let mut named: Vec<i32> = pairs.iter().map(|(partition, _)| *partition).collect();
    named.sort_unstable();
    named.dedup();
    (named.len() == pairs.len()).then_some(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_words_times_and_offsets() {
        for (text, expected) in [
            ("earliest", PlaceFlag::Earliest),
            ("now", PlaceFlag::Latest),
            ("window", PlaceFlag::Window),
            ("100000000000", PlaceFlag::Time(100_000_000_000)),
            ("1700000000000", PlaceFlag::Time(1_700_000_000_000)),
            ("2023-11-14", PlaceFlag::Time(1_699_920_000_000)),
            ("1970-01-01", PlaceFlag::Time(0)),
            ("2023-11-14T22:13:20Z", PlaceFlag::Time(1_700_000_000_000)),
            ("2023-11-14T23:13:20.5+01:00", PlaceFlag::Time(1_700_000_000_500)),
            ("0:42,1:7", PlaceFlag::Positions(vec![(0, 42), (1, 7)])),
        ] {
            assert_eq!(begin(text), Ok(expected), "{text}");
        }
        for (text, why) in [
            ("42", "0:42"),
            ("99999999999", "before 1973"),
            ("1969-12-31", "before 1970"),
            ("1969-01-01T00:00:00Z", "before 1970"),
            ("yesterday", "earliest, latest, now, window, a time (2024-05-01, "),
            ("2024-05-32", "is none of"),
            ("follow", "is none of"),
        ] {
            let error = begin(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
        for text in ["", "0:1,0:2", "-1:3", "0:", "1.5", "-5"] {
            assert!(begin(text).is_err() && end(text).is_err(), "{text}");
        }
        for (text, why) in [
            ("window", "begins"),
            ("follow", "--follow"),
            ("then", "now, latest, earliest, a time"),
        ] {
            let error = end(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(end("now"), Ok(PlaceFlag::Latest));
    }

    #[test]
    fn servers_are_urls() {
        for (text, expected) in [
            ("http://127.0.0.1:8815", "http://127.0.0.1:8815"),
            ("grpc://karrow:99/", "http://karrow:99"),
            ("karrow", "http://karrow:8815"),
            ("[::1]", "http://[::1]:8815"),
            ("[::1]:7", "http://[::1]:7"),
        ] {
            assert_eq!(text.parse(), Ok(ServerAddress(expected.to_owned())), "{text}");
        }
        for text in ["", "https://a:1", "http://", "a:b", "a/b", "a:1,b:2"] {
            assert!(text.parse::<ServerAddress>().is_err(), "{text}");
        }
    }
}
