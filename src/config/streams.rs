//! How topics are kept as streams.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Deserializer};

use super::units::from_text;

/// Where a stream begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At what comes after it began.
    #[default]
    Latest,
    /// At the first record that Kafka has.
    Earliest,
    /// At the first record whose timestamp is at least so many milliseconds since the epoch.
    Time(i64),
    /// At this offset of each partition, or at the nearest that is there.
    Offset(i64),
}

impl FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|number| *number >= 0);
        let start = match text.split_once(':') {
            None if text == "latest" => Some(Self::Latest),
            None if text == "earliest" => Some(Self::Earliest),
            Some(("timestamp", millis)) => number(millis).map(Self::Time),
            Some(("offset", offset)) => number(offset).map(Self::Offset),
            _ => None,
        };
        start.ok_or_else(|| {
            format!("'{text}' is not latest, earliest, timestamp:<milliseconds> or offset:<n>")
        })
    }
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        from_text(input)
    }
}

/// What happens when the window of a stream is full of batches that are not old yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// The oldest ones leave; readers that want them read Kafka.
    #[default]
    DropOldest,
    /// Nothing more is taken from Kafka until the oldest one is too old.
    Pause,
    /// The stream ends with an error.
    Error,
}

/// Most bytes of a compiled regular expression: who may add one must not fill the memory with it.
const PATTERN_BYTES_MAX: usize = 1 << 18;

/// The regular expression of topics that are to be streams.
///
/// # Errors
/// It is none, or too large.
pub fn topic_pattern(text: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build();
    built.map_err(|error| format!("'{text}': {error}"))
}

/// How topics are kept as streams.
#[derive(Clone, Debug)]
pub struct StreamsConfig {
    /// Topics that are streams from the start.
    pub topics: Vec<String>,
    /// Topics whose names match are streams, too, once they exist.
    pub patterns: Vec<Regex>,
    /// Where they begin.
    pub start: Start,
    /// Most records of a batch.
    pub rows_max: usize,
    /// Most bytes of keys, headers and payloads in a batch.
    pub bytes_max: usize,
    /// How long a batch may wait to fill up.
    pub linger: Duration,
    /// How old a batch of a window may become, and how long a stream that nobody asked for in the configuration lives
    /// without readers.
    pub age_max: Duration,
    /// Bytes of one window.
    pub window_bytes_max: usize,
    /// Bytes of all windows.
    pub memory_bytes_max: usize,
    /// What happens when a window is full.
    pub when_full: WhenFull,
}
