//! What is typed after `karrow client`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use chrono::DateTime;
use clap::{Args, Subcommand, ValueEnum};

use super::check_brokers;
use crate::config::topic_is_legal;

const EXIT_CODES: &str = "\
Exit codes:
  0   done; also when the reader of stdout has gone, or ^C ended a follow
  1   failed: the server is not reached, a topic is not there, input is wrong, a bounded read was cut short
  64  the command line is wrong: a flag, the name of a topic, a column that is not there";

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
    /// Produce messages from a file or stdin
    #[command(after_help = EXIT_CODES)]
    Put(PutFlags),
    /// List the server's actions, or do one
    #[command(after_help = EXIT_CODES)]
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

    /// Where to begin: earliest, latest, window, a time (RFC 3339 or milliseconds since 1970), or offsets by partition
    /// such as 0:42,1:7 [default: the window of a stream, else earliest]
    #[arg(long, value_name = "PLACE")]
    pub from: Option<PlaceFlag>,

    /// Where to end, exclusive: the same, or now [default: now]
    #[arg(long, value_name = "PLACE", value_parser = end)]
    pub to: Option<PlaceFlag>,

    /// Most rows
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,

    /// Only these columns; dots lead into structs
    #[arg(long, value_name = "A,B.C", value_delimiter = ',')]
    pub columns: Vec<String>,

    /// Whether the payload is one column or its fields are columns of their own, beside _topic, _offset and so on
    /// [default: flat for table and csv, else struct]
    #[arg(long, value_name = "LAYOUT")]
    pub layout: Option<LayoutFlag>,

    /// How rows are written: table fits the terminal; json is an object a line, with bytes that are no UTF-8 in base64
    /// under <name>_base64, as csv has them; arrow is an IPC stream
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub output: GetOutput,

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
    /// used as such, payload is taken as it is
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    pub input: PutInput,
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
pub enum GetOutput {
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

impl FromStr for PlaceFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" | "now" => return Ok(Self::Latest),
            "window" => return Ok(Self::Window),
            _ => {}
        }
        if let Ok(millis) = text.parse::<u64>()
            && let Ok(millis) = i64::try_from(millis)
        {
            return Ok(Self::Time(millis));
        }
        if let Ok(time) = DateTime::parse_from_rfc3339(text) {
            return match time.timestamp_millis() {
                millis @ 0.. => Ok(Self::Time(millis)),
                _ => Err(format!("'{text}' is before 1970")),
            };
        }
        positions(text).map(Self::Positions).ok_or_else(|| {
            format!(
                "'{text}' is none of earliest, latest, window, a time (2024-05-01T00:00:00Z, or milliseconds) and offsets (0:42,1:7)"
            )
        })
    }
}

fn end(text: &str) -> Result<PlaceFlag, String> {
    match text.parse()? {
        PlaceFlag::Window => Err("a window is where a read begins".to_owned()),
        place => Ok(place),
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
            ("1700000000000", PlaceFlag::Time(1_700_000_000_000)),
            ("2023-11-14T22:13:20Z", PlaceFlag::Time(1_700_000_000_000)),
            ("2023-11-14T23:13:20.5+01:00", PlaceFlag::Time(1_700_000_000_500)),
            ("0:42,1:7", PlaceFlag::Positions(vec![(0, 42), (1, 7)])),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "yesterday", "0:1,0:2", "-1:3", "0:", "1.5", "-5", "1969-01-01T00:00:00Z"]
        {
            assert!(text.parse::<PlaceFlag>().is_err(), "{text}");
        }
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
