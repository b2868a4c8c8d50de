//! [`Writers`]: the JSON Schemas of a registry that values name, and what they say of a topic's columns.
//!
//! A schema is taken in with the first good record that names it: any bytes may look like an id. One that gives no types
//! is no fault of the data; its records are read as if they named none.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::decoder::Value;
use super::super::reject::RecordLimits;
use super::super::schemas::{Lookup, RegisteredSchema, SchemaKey, SchemaKind, Schemas};
use super::super::wire::frame;
use super::schema;
use super::shape::{Shape, StructShape};
use super::{SharedShape, text_of};

/// Schemas kept in mind for a topic; a writer may register one for each record.
const WRITERS_MAX: usize = 10_000;

/// A decoder's view of the schemas of its topic.
pub struct Writers {
    topic: Arc<str>,
    schemas: Arc<dyn Schemas>,
    /// They are part of the shape, or never will be.
    known: HashSet<SchemaKey>,
    last: Option<SchemaKey>,
}

/// The schemas of a topic that any of its decoders has dealt with.
#[derive(Debug, Default)]
pub struct WritersSeen {
    taken: Mutex<HashSet<SchemaKey>>,
    /// Those that the registry did not know, which was logged.
    unknown: Mutex<HashSet<SchemaKey>>,
}

/// Whether `key` is new among `keys`.
fn is_new(keys: &Mutex<HashSet<SchemaKey>>, key: SchemaKey) -> bool {
    let mut keys = keys.lock();
    if keys.len() >= WRITERS_MAX {
        keys.clear();
    }
    keys.insert(key)
}

impl Writers {
    /// Of the values of `topic`, in `schemas`.
    pub fn new(topic: Arc<str>, schemas: Arc<dyn Schemas>) -> Self {
        Self { topic, schemas, known: HashSet::new(), last: None }
    }

    /// Those that have to be fetched first.
    pub fn unfetched(&self, values: &[Option<Value<'_>>]) -> Vec<SchemaKey> {
        let mut keys: Vec<SchemaKey> = Vec::new();
        let mut last = self.last;
        for key in values.iter().flatten().filter_map(key_of) {
            if last == Some(key) {
                continue;
            }
            last = Some(key);
            if !self.known.contains(&key) && !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys.retain(|key| matches!(self.schemas.look_up(key), Lookup::Unfetched));
        keys
    }

    /// Takes into `shared` what the schemas of `values` say that are new.
    pub fn learn(
        &mut self,
        values: &[Option<Value<'_>>],
        shared: &SharedShape,
        limits: &RecordLimits,
    ) {
        // One that the registry does not know is asked for once a batch.
        let mut unknown = None;
        for value in values.iter().flatten() {
            let Some(key) = key_of(value).filter(|key| self.last != Some(*key)) else { continue };
            if unknown == Some(key) {
                continue;
            }
            if !self.known.contains(&key) {
                let is_good =
                    text_of(value.bytes, limits).and_then(|text| Shape::new(0).check(text, limits));
                if is_good.is_err() {
                    continue;
                }
                if !self.take(key, shared, limits) {
                    unknown = Some(key);
                    continue;
                }
                if self.known.len() >= WRITERS_MAX {
                    self.known.clear();
                }
                self.known.insert(key);
            }
            self.last = Some(key);
        }
    }

    /// Whether the schema is dealt with for good.
    fn take(&self, key: SchemaKey, shared: &SharedShape, limits: &RecordLimits) -> bool {
        let unusable = |why: &str| {
            tracing::warn!(topic = %self.topic, schema = %key, error = why,
                "no types from this schema; they follow from the values");
        };
        match self.schemas.look_up(&key) {
            Lookup::Known(registered) => {
                if is_new(&shared.writers.taken, key) {
                    match said(&registered, limits) {
                        Ok(said) => shared.seed(said),
                        Err(why) => unusable(&why),
                    }
                }
                true
            }
            // It may exist in a while.
            Lookup::Unknown(why) => {
                if is_new(&shared.writers.unknown, key) {
                    unusable(&why);
                }
                false
            }
            Lookup::Unfetched => false,
        }
    }
}

fn said(registered: &RegisteredSchema, limits: &RecordLimits) -> Result<StructShape, String> {
    if registered.kind != SchemaKind::Json {
        return Err("it is no JSON Schema".to_owned());
    }
    let references = registered.references.iter();
    let references = references.map(|reference| (reference.name.as_str(), reference.text.as_str()));
    schema::of_writer(&registered.text, references, limits.depth_max)
}

/// The schema that a value names.
fn key_of(value: &Value<'_>) -> Option<SchemaKey> {
    // Most values name none, and why they do not is of no interest.
    if value.schema_header.is_none() && !matches!(value.bytes.first(), Some(0 | 1)) {
        return None;
    }
    frame(value).ok().map(|framed| framed.schema)
}
