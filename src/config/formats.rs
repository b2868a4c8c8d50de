//! What keys and payloads of topics are made of, as `[topic.<name>]` of karrow.toml says.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Deserialize;

use super::columns::Columns;

/// What a key or a payload is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Found out from the first records.
    Auto,
    /// Bytes.
    Raw,
    /// UTF-8.
    Text,
    /// JSON objects.
    Json,
    /// Avro, behind a schema registry's header or with a given schema.
    Avro,
    /// Protocol Buffers, behind a schema registry's header or with a given schema.
    Protobuf,
    /// Arrow IPC streams.
    Arrow,
    /// Lines of comma-separated values.
    Csv,
}

impl Format {
    /// As it is written, and as a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Raw => "raw",
            Self::Text => "text",
            Self::Json => "json",
            Self::Avro => "avro",
            Self::Protobuf => "protobuf",
            Self::Arrow => "arrow",
            Self::Csv => "csv",
        }
    }
}

/// What becomes of a record that cannot be decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadRecord {
    /// It is a row with its bytes and the reason in `error`.
    #[default]
    Column,
    /// It goes to `<topic>.dlq` as well, before it can be acked.
    DeadLetter,
    /// Nothing is handed out from there on.
    Fail,
}

/// One `[topic.<name>]` of karrow.toml; what is not given is the default of all topics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TopicSettings {
    /// What payloads are made of.
    pub payload: Option<Format>,
    /// What keys are made of.
    pub key: Option<Format>,
    /// File with the schema of payloads that do not name one: an Avro schema, a .proto, which may import what lies beside it,
    /// a JSON Schema, or an Arrow schema of JSON or CSV. A relative path begins where karrow.toml is.
    pub payload_schema: Option<PathBuf>,
    /// The same for keys.
    pub key_schema: Option<PathBuf>,
    /// Full name of the message of a .proto.
    pub payload_message: Option<String>,
    /// The same for keys.
    pub key_message: Option<String>,
    /// Names and Arrow types of JSON or CSV payloads, instead of a file.
    pub columns: Option<Columns>,
    /// What becomes of records that cannot be decoded.
    pub on_bad_record: Option<OnBadRecord>,
    /// JSON fields (dots lead into objects) whose RFC 3339 strings become timestamps.
    #[serde(default)]
    pub timestamps: Vec<String>,
    /// Names of the columns of CSV payloads, which then have no header line.
    pub csv_columns: Option<Vec<String>>,
    /// Between two CSV values.
    pub csv_delimiter: Option<char>,
}

impl TopicSettings {
    /// Checks what needs no other file, where payloads are made of `payload`.
    pub(super) fn check(&self, payload: Format) -> Result<(), String> {
        if let Some(delimiter) = self.csv_delimiter
            && (!delimiter.is_ascii() || matches!(delimiter, '"' | '\r' | '\n'))
        {
            return Err(format!(
                "csv-delimiter: '{}' is no ASCII character that can be between values",
                delimiter.escape_debug()
            ));
        }
        let mut names = HashSet::new();
        if let Some(name) = self.csv_columns.iter().flatten().find(|name| !names.insert(*name)) {
            return Err(format!("csv-columns: '{}' is there twice", name.escape_debug()));
        }
        let label = payload.label();
        for (setting, is_there) in [
            ("csv-columns", self.csv_columns.is_some()),
            ("csv-delimiter", self.csv_delimiter.is_some()),
        ] {
            if is_there && payload != Format::Csv {
                return Err(format!("{setting}: payload is \"{label}\", not \"csv\""));
            }
        }
        if !self.timestamps.is_empty() && !matches!(payload, Format::Json | Format::Auto) {
            return Err(format!("timestamps: payload is \"{label}\", not \"json\""));
        }
        Ok(())
    }

    /// Finds files that are named relative to `directory`.
    pub(super) fn beside(&mut self, directory: &Path) {
        for path in [&mut self.payload_schema, &mut self.key_schema].into_iter().flatten() {
            *path = directory.join(&*path);
        }
    }
}

/// How values are decoded, for all topics.
#[derive(Clone, Debug)]
pub struct FormatsConfig {
    /// What payloads are made of, unless the topic's table says otherwise.
    pub payload: Format,
    /// What keys are made of.
    pub key: Format,
    /// What becomes of records that cannot be decoded.
    pub on_bad_record: OnBadRecord,
    /// Inferred fields that get columns of their own, for one topic.
    pub fields_max: usize,
    /// Bytes of one record's values, decoded.
    pub record_bytes_max: usize,
    /// Items of one record's lists and maps, and fields of its objects.
    pub record_elements_max: usize,
    /// Nesting of one record.
    pub record_depth_max: usize,
    /// The `[topic.<name>]` tables.
    pub topics: BTreeMap<String, TopicSettings>,
    /// Where the schemas are that values name.
    pub registry: Option<SchemaRegistrySettings>,
}

impl Default for FormatsConfig {
    fn default() -> Self {
        Self {
            payload: Format::Auto,
            key: Format::Raw,
            on_bad_record: OnBadRecord::Column,
            fields_max: 1_000,
            record_bytes_max: 64 << 20,
            record_elements_max: 1_000_000,
            record_depth_max: 64,
            topics: BTreeMap::new(),
            registry: None,
        }
    }
}

/// Where the schemas are that values name by an id.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SchemaRegistrySettings {
    /// Its URL, or several with commas between them, which are tried in turn. A user and password may be in it.
    pub urls: String,
    /// For basic authentication, instead of what the URL has.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// For bearer authentication, instead of a user.
    pub token: Option<String>,
    /// Certificates (PEM) of authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

impl fmt::Debug for SchemaRegistrySettings {
    /// Without the secrets, and without the URLs, which may hold some.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchemaRegistrySettings")
            .field("user", &self.user)
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}
