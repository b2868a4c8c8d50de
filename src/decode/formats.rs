//! [`Formats`]: what the keys and payloads of topics are made of. All who read a topic share what was found out about it,
//! so its columns only grow and widen.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arrow::array::ArrayRef;
use parking_lot::Mutex;

use super::avro::{AvroDecoder, AvroShape};
use super::csv::CsvDecoder;
use super::decoder::{BadRow, Decoder, Value};
use super::detect::{SAMPLES_MAX, detect, framed_keys};
use super::envelope::{Layout, RecordDecoder, Side};
use super::given::{Given, given};
use super::ipc::{IpcDecoder, SharedColumns};
use super::json::shape::StructShape;
use super::json::writers::Writers;
use super::json::{JsonDecoder, SharedShape};
use super::projection::Projection;
use super::protobuf::{ProtobufDecoder, SharedMessages};
use super::raw::RawDecoder;
use super::reject::RecordLimits;
use super::schemas::{BatchSchemas, Lookup, SchemaKey, Schemas};
use super::text::TextDecoder;
use crate::config::formats::{Format, FormatsConfig, OnBadRecord, TopicSettings};
use crate::error::{Error, Result};

/// The formats of all topics.
pub struct Formats {
    config: FormatsConfig,
    schemas: Option<Arc<dyn Schemas>>,
    topics: Mutex<HashMap<Arc<str>, Arc<TopicFormat>>>,
}

/// The formats of one topic.
pub struct TopicFormat {
    key: Arc<SideFormat>,
    payload: Arc<SideFormat>,
    schemas: Option<Arc<dyn Schemas>>,
    /// What becomes of records that cannot be decoded.
    pub on_bad_record: OnBadRecord,
}

/// The format of the keys, or of the payloads, of one topic, and what was learned of each format there.
struct SideFormat {
    topic: Arc<str>,
    side: Side,
    configured: Format,
    /// Found out, where the configuration leaves it open.
    found: OnceLock<Format>,
    settings: SideSettings,
    limits: RecordLimits,
    json: Arc<SharedShape>,
    csv: Arc<SharedShape>,
    columns: Arc<SharedColumns>,
    avro: Arc<AvroShape>,
    messages: Arc<SharedMessages>,
    given: Option<Given>,
}

/// What `[topic.<name>]` says about one side.
#[derive(Clone, Debug, Default)]
struct SideSettings {
    csv_columns: Option<Vec<String>>,
    csv_delimiter: Option<char>,
    timestamps: Vec<String>,
}

impl Formats {
    /// As `config` has them; `schemas` knows those that values name.
    ///
    /// # Errors
    /// A schema that `config` gives a topic cannot be read or used, or one is missing.
    pub fn new(config: FormatsConfig, schemas: Option<Arc<dyn Schemas>>) -> Result<Self> {
        let formats = Self { config, schemas, topics: Mutex::default() };
        for (topic, settings) in &formats.config.topics {
            let named = |error: Error| {
                Error::new(error.kind(), format!("topic.{topic}: {}", error.message()))
            };
            let format = formats.make(&Arc::from(topic.as_str()), settings).map_err(named)?;
            format.decoder(&Projection::All, Layout::Struct, None).map_err(named)?;
            formats.topics.lock().insert(Arc::from(topic.as_str()), Arc::new(format));
        }
        let plain = formats.make(&Arc::from(""), &TopicSettings::default())?;
        plain.decoder(&Projection::All, Layout::Struct, None)?;
        Ok(formats)
    }

    /// The formats of `topic`. What is not known is found out by the first who decodes.
    ///
    /// # Errors
    /// None for a topic that the configuration does not name.
    pub fn topic(&self, topic: &str) -> Result<Arc<TopicFormat>> {
        let mut topics = self.topics.lock();
        if let Some(known) = topics.get(topic) {
            return Ok(known.clone());
        }
        let name: Arc<str> = Arc::from(topic);
        let format = Arc::new(self.make(&name, &TopicSettings::default())?);
        topics.insert(name, format.clone());
        Ok(format)
    }

    fn make(&self, topic: &Arc<str>, settings: &TopicSettings) -> Result<TopicFormat> {
        Ok(TopicFormat {
            key: self.side(topic, Side::Key, settings)?,
            payload: self.side(topic, Side::Payload, settings)?,
            schemas: self.schemas.clone(),
            on_bad_record: settings.on_bad_record.unwrap_or(self.config.on_bad_record),
        })
    }

    fn side(
        &self,
        topic: &Arc<str>,
        side: Side,
        settings: &TopicSettings,
    ) -> Result<Arc<SideFormat>> {
        let configured = match side {
            Side::Key => settings.key.unwrap_or(self.config.key),
            Side::Payload => settings.payload.unwrap_or(self.config.payload),
        };
        let (configured, given) = given(side, configured, settings, self.config.record_depth_max)?;
        let side_settings = match side {
            Side::Key => SideSettings::default(),
            Side::Payload => SideSettings {
                csv_columns: settings.csv_columns.clone(),
                csv_delimiter: settings.csv_delimiter,
                timestamps: settings.timestamps.clone(),
            },
        };
        let fields_max = self.config.fields_max;
        let shape = |said: Option<&StructShape>| match said {
            Some(said) => SharedShape::said(fields_max, said.clone()),
            None => SharedShape::new(fields_max),
        };
        let json = shape(match &given {
            Some(Given::Json(said) | Given::Columns(_, said)) => Some(said),
            _ => None,
        });
        let csv = shape(match &given {
            Some(Given::Columns(_, said)) if configured == Format::Csv => Some(said),
            _ => None,
        });
        Ok(Arc::new(SideFormat {
            topic: topic.clone(),
            side,
            configured,
            given,
            found: OnceLock::new(),
            settings: side_settings,
            limits: RecordLimits {
                bytes_max: self.config.record_bytes_max,
                elements_max: self.config.record_elements_max,
                depth_max: self.config.record_depth_max,
            },
            json,
            csv,
            columns: Arc::default(),
            avro: AvroShape::new(),
            messages: SharedMessages::new(),
        }))
    }
}

impl TopicFormat {
    /// A reader's own decoder, for the columns that `projection` names. `payload` takes the place of the topic's payload
    /// format.
    ///
    /// # Errors
    /// A schema that was given for the topic cannot be used.
    pub fn decoder(
        &self,
        projection: &Projection,
        layout: Layout,
        payload: Option<Format>,
    ) -> Result<RecordDecoder> {
        // What is not wanted is still decoded if errors are: as little of it as possible.
        let part = |side| {
            RecordDecoder::side(projection, layout, side).unwrap_or_else(Projection::nothing)
        };
        let schemas = self.schemas.clone().map(BatchSchemas::new);
        let key = self.key.decoder(self.key.configured, part(Side::Key), &schemas)?;
        let payload = payload.unwrap_or(self.payload.configured);
        let payload = self.payload.decoder(payload, part(Side::Payload), &schemas)?;
        Ok(RecordDecoder::new(key, payload, layout, projection.clone(), schemas))
    }

    /// What payloads were found to be made of, or are said to be.
    pub fn payload_format(&self) -> Format {
        match self.payload.configured {
            Format::Auto => self.payload.found.get().copied().unwrap_or(Format::Auto),
            format => format,
        }
    }
}

impl SideFormat {
    fn decoder(
        self: &Arc<Self>,
        format: Format,
        projection: Projection,
        schemas: &Option<Arc<BatchSchemas>>,
    ) -> Result<Box<dyn Decoder>> {
        Ok(match format {
            Format::Auto => match self.found.get() {
                Some(found) => return self.decoder(*found, projection, schemas),
                None => Box::new(AutoDecoder {
                    side: self.clone(),
                    projection,
                    schemas: schemas.clone(),
                    decoder: None,
                }),
            },
            Format::Raw => Box::new(RawDecoder::new()),
            Format::Text => Box::new(TextDecoder::new()),
            Format::Json => {
                let mut decoder = JsonDecoder::new(self.json.clone(), projection, self.limits);
                let times = &self.settings.timestamps;
                if !times.is_empty() {
                    let times = Projection::new(times.iter().map(String::as_str));
                    decoder = decoder.with_timestamps(times);
                }
                if let (None, Some(schemas)) = (&self.given, schemas) {
                    let writers = Writers::new(self.topic.clone(), schemas.clone());
                    decoder = decoder.with_writers(writers);
                }
                Box::new(decoder)
            }
            Format::Arrow => {
                Box::new(IpcDecoder::new(self.columns.clone(), projection, self.limits))
            }
            Format::Csv => {
                let delimiter =
                    u8::try_from(self.settings.csv_delimiter.unwrap_or(',')).unwrap_or(b',');
                let (shared, limits) = (self.csv.clone(), self.limits);
                Box::new(match &self.given {
                    Some(Given::Columns(columns, _)) if self.configured == Format::Csv => {
                        CsvDecoder::typed(columns, delimiter, shared, projection, limits)
                    }
                    _ => {
                        let columns = self.settings.csv_columns.clone();
                        CsvDecoder::new(columns, delimiter, shared, projection, limits)
                    }
                })
            }
            Format::Avro => Box::new(match (&self.given, schemas) {
                (Some(Given::Avro(shape)), _) => {
                    AvroDecoder::plain(shape.clone(), projection, self.limits)?
                }
                (_, Some(schemas)) => AvroDecoder::registered(
                    self.avro.clone(),
                    schemas.clone(),
                    projection,
                    self.limits,
                ),
                (_, None) => return Err(no_schema("avro")),
            }),
            Format::Protobuf => Box::new(match (&self.given, schemas) {
                (Some(Given::Protobuf(message)), _) => ProtobufDecoder::with_message(
                    self.messages.clone(),
                    message.clone(),
                    projection,
                    self.limits,
                ),
                (_, Some(schemas)) => ProtobufDecoder::with_registry(
                    self.messages.clone(),
                    schemas.clone(),
                    projection,
                    self.limits,
                ),
                (_, None) => return Err(no_schema("protobuf")),
            }),
        })
    }
}

fn no_schema(format: &str) -> Error {
    Error::invalid(format!("{format}: needs --schema-registry, or a schema in karrow.toml"))
}

/// Gives values as bytes until some have come that show what they are made of.
struct AutoDecoder {
    side: Arc<SideFormat>,
    projection: Projection,
    schemas: Option<Arc<BatchSchemas>>,
    decoder: Option<Box<dyn Decoder>>,
}

impl AutoDecoder {
    /// The format of most of `samples`, unless another reader of the topic has found out.
    fn format(&self, samples: &[Value<'_>]) -> Format {
        let schemas = self.schemas.as_deref().map(|schemas| schemas as &dyn Schemas);
        self.side.found.get().copied().unwrap_or_else(|| detect(samples, schemas))
    }
}

fn samples<'a>(values: &[Option<Value<'a>>]) -> Vec<Value<'a>> {
    values.iter().flatten().take(SAMPLES_MAX).copied().collect()
}

impl Decoder for AutoDecoder {
    fn reads_schemas(&self) -> bool {
        match &self.decoder {
            Some(decoder) => decoder.reads_schemas(),
            None => self.schemas.is_some(),
        }
    }

    fn decode(&mut self, values: &[Option<Value<'_>>], bad: &mut Vec<BadRow>) -> Result<ArrayRef> {
        if self.decoder.is_none() {
            let samples = samples(values);
            if samples.is_empty() {
                return RawDecoder::new().decode(values, bad);
            }
            let found = *self.side.found.get_or_init(|| {
                let found = self.format(&samples);
                tracing::info!(topic = %self.side.topic, side = ?self.side.side, format = ?found, "format found");
                found
            });
            self.decoder =
                Some(self.side.decoder(found, self.projection.clone(), &self.schemas)?);
        }
        match &mut self.decoder {
            Some(decoder) => decoder.decode(values, bad),
            None => Err(Error::internal("no decoder")),
        }
    }

    fn unfetched(&self, values: &[Option<Value<'_>>]) -> Vec<SchemaKey> {
        match (&self.decoder, &self.schemas) {
            (Some(decoder), _) => decoder.unfetched(values),
            (None, Some(schemas)) => {
                let samples = samples(values);
                let mut keys = framed_keys(&samples);
                keys.retain(|key| matches!(schemas.look_up(key), Lookup::Unfetched));
                if !keys.is_empty() || samples.is_empty() {
                    return keys;
                }
                // The values behind the samples may name other schemas.
                let format = self.format(&samples);
                let decoder = self.side.decoder(format, Projection::nothing(), &self.schemas);
                decoder.map_or(Vec::new(), |decoder| decoder.unfetched(values))
            }
            (None, None) => Vec::new(),
        }
    }

    fn take_counts(&mut self) -> Option<Vec<usize>> {
        self.decoder.as_mut().and_then(|decoder| decoder.take_counts())
    }

    fn texts(&self) -> u64 {
        self.decoder.as_ref().map_or(0, |decoder| decoder.texts())
    }
}

#[cfg(test)]
mod tests;
