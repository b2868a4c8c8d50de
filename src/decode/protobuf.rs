//! Protobuf messages into a struct column, straight from the wire.
//!
//! A schema becomes a table by field number ([`plan`]), and each record only looks up what its fields are ([`fill`]).
//! The columns are those of all schemas seen in a topic ([`shape`]), shared by all who read it: a new schema adds
//! columns and widens them; records of another one are null there.
//!
//! | Protobuf | Arrow |
//! |---|---|
//! | `int32 sint32 sfixed32`, `int64 …`, `uint32 fixed32`, `uint64 fixed64` | Int32, Int64, UInt32, UInt64 |
//! | `float double bool string bytes` | Float32, Float64, Boolean, Utf8, Binary |
//! | enums | Utf8: the name, or the digits of a number that has none |
//! | messages and groups | Struct; one without fields is a Boolean that is true where it is present |
//! | a message inside of itself, or one that is too deep or finds no room for its columns | Binary: its bytes |
//! | `repeated`, `map` | List, Map (the last entry of a key counts); never null, but empty |
//! | `Timestamp` | Timestamp(ns, UTC) |
//! | `Duration` | Duration(ns): pandas, polars and DuckDB read it as their own; an Arrow interval only DuckDB does |
//! | `Int32Value` and the like | the scalar, nullable |
//! | `Struct`, `Value`, `ListValue` | Utf8: JSON |
//! | `FieldMask` | List of Utf8 |
//! | `Any`, and all other messages | Struct of their fields |
//!
//! A field without presence that a message leaves out has its default value; so has one for which a schema of proto2
//! names a default. Other fields are null then. Unknown fields and extensions are ignored.
//!
//! One message type in a topic: its fields are the struct's. If the first batch has several, each gets a nullable
//! struct of its own, called by its full name; one that comes later gets such a struct beside the columns that are
//! there already. A name without a package gets a dot in front, so that it is no field's.
//!
//! Fields change as Protobuf's rules for updating a type allow, and columns only widen, whichever schema is seen first:
//! integers and floats to a type that holds both; `string` and `bytes` to Binary; single and `repeated` to a List, in which
//! a single value is the only item (also a default that is not on the wire: it is the writer's value), and what is null
//! otherwise stays null. A field whose type changed so that no Arrow type holds both keeps its first type. Records with the
//! new one have all other fields, null there, and say so among the bad rows.

mod fill;
mod json;
mod plan;
mod reader;
mod schema;
mod shape;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field};
use parking_lot::Mutex;
use prost_reflect::MessageDescriptor;

use self::fill::{Filler, Place, RootPlan};
use self::plan::MessagePlan;
use self::schema::Schema;
use self::shape::{Learner, StructShape};
use super::column::{Column, Room};
use super::decoder::{BadRow, Decoder, Value};
use super::projection::Projection;
use super::raw::unseen;
use super::reject::{RecordLimits, Reject};
use super::schemas::{Lookup, Reference, SchemaKey, SchemaKind, Schemas};
use super::wire::{MessageIndexes, frame};
use crate::error::{Error, Result};

/// Prefixes that are compared with a value's; beyond, the value's schema is read and looked up.
const PREFIXES_MAX: usize = 4;

/// What was learned of the messages of a topic, shared by all its decoders.
#[derive(Debug, Default)]
pub struct SharedMessages {
    topic: Mutex<TopicShape>,
    /// Grows with each change of the columns.
    epoch: AtomicU64,
    /// Compiled once for all decoders; why one cannot be used is kept too.
    schemas: Mutex<HashMap<SchemaKey, Result<Schema, Reject>>>,
}

/// The message types of a topic.
#[derive(Clone, Debug, Default)]
struct TopicShape {
    /// Full names and shapes, in the order in which they were seen.
    types: Vec<(Box<str>, StructShape)>,
    /// The first type has a struct of its own too, since it did not come alone.
    is_split: bool,
}

/// A message type that the configuration gives a topic.
#[derive(Clone, Debug)]
pub struct GivenMessage {
    label: String,
    descriptor: MessageDescriptor,
}

/// See the top of this file.
pub struct ProtobufDecoder {
    /// `None`: all values are of the first writer, without a frame.
    schemas: Option<Arc<dyn Schemas>>,
    shared: Arc<SharedMessages>,
    projection: Projection,
    limits: RecordLimits,
    epoch: u64,
    writers: Vec<Writer>,
    /// How many of them the shape knows.
    learned: usize,
    /// Places among the writers.
    places: HashMap<(SchemaKey, MessageIndexes), usize>,
    /// What is in front of the first writers' values, and the writers it means: looked through before all else.
    prefixes: Vec<(Box<[u8]>, usize)>,
    /// `None` while there is nothing to fill.
    column: Option<Column>,
}

/// A message type as one schema has it.
struct Writer {
    label: String,
    message: MessageDescriptor,
    /// How it goes into the columns of this epoch.
    plan: Option<RootPlan>,
}

/// What is to be done for a row.
enum Row<'a> {
    Null,
    Bad(Reject),
    Message { writer: usize, body: &'a [u8] },
}

impl SharedMessages {
    /// Nothing was seen yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Changes whenever the topic's columns do.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Adds the columns that `messages` need.
    fn learn<'m>(&self, messages: impl Iterator<Item = &'m MessageDescriptor> + Clone) {
        let mut topic = self.topic.lock();
        if topic.types.is_empty() {
            let names: HashSet<&str> = messages.clone().map(|it| it.full_name()).collect();
            topic.is_split = names.len() > 1;
        }
        let columns = topic.types.iter().map(|(_, shape)| shape.columns()).sum();
        let mut learner = Learner::new(columns);
        for message in messages {
            let known = topic.types.iter().position(|(name, _)| **name == *message.full_name());
            let at = known.unwrap_or_else(|| {
                learner.changed = true;
                topic.types.push((message.full_name().into(), StructShape::default()));
                topic.types.len() - 1
            });
            if let Some((_, shape)) = topic.types.get_mut(at) {
                learner.message(shape, message);
            }
        }
        if learner.changed {
            // Under the lock, so that the epoch is never older than the shape.
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn schema(
        &self,
        key: SchemaKey,
        text: &str,
        references: &[Reference],
    ) -> Result<Schema, Reject> {
        self.schemas
            .lock()
            .entry(key)
            .or_insert_with(|| Schema::compile(&format!("schema {key}"), text, references))
            .clone()
    }
}

impl TopicShape {
    /// The columns that `projection` wants.
    fn data_type(&self, projection: &Projection) -> Option<DataType> {
        let mut fields = Vec::new();
        for (at, (name, shape)) in self.types.iter().enumerate() {
            if self.is_top(at) {
                fields.extend(shape.arrow_fields(projection));
            } else if let Some(data_type) = struct_type(name, shape, projection) {
                fields.push(Field::new(struct_name(name), data_type, true));
            }
        }
        (!fields.is_empty()).then(|| DataType::Struct(fields.into()))
    }

    fn is_top(&self, at: usize) -> bool {
        at == 0 && !self.is_split
    }

    /// How `message` goes into a column of type `root`, which is of this shape.
    fn plan(
        &self,
        message: &MessageDescriptor,
        label: &str,
        projection: &Projection,
        root: Option<&DataType>,
    ) -> RootPlan {
        let found = self.types.iter().position(|(name, _)| **name == *message.full_name());
        let none = StructShape::default();
        let Some((at, (name, shape))) = found.and_then(|at| Some((at, self.types.get(at)?))) else {
            let message = MessagePlan::new(message, &none, projection, label);
            return RootPlan { message, place: Place::Nowhere };
        };
        if self.is_top(at) {
            let message = MessagePlan::new(message, shape, projection, label);
            return RootPlan { message, place: Place::Top };
        }
        let name = struct_name(name);
        let column = match root {
            Some(DataType::Struct(fields)) => fields.iter().position(|it| *it.name() == name),
            _ => None,
        };
        match (column, within(projection, &name)) {
            (Some(column), Some(below)) => RootPlan {
                message: MessagePlan::new(message, shape, below, label),
                place: Place::Field(column),
            },
            _ => RootPlan {
                message: MessagePlan::new(message, &none, projection, label),
                place: Place::Nowhere,
            },
        }
    }
}

/// What the struct of a message type is called among the fields of the first.
fn struct_name(full_name: &str) -> String {
    if full_name.contains('.') { full_name.to_owned() } else { format!(".{full_name}") }
}

/// The type of the struct of a message type.
fn struct_type(name: &str, shape: &StructShape, projection: &Projection) -> Option<DataType> {
    let below = within(projection, &struct_name(name))?;
    let fields = shape.arrow_fields(below);
    if shape.fields.is_empty() {
        return Some(DataType::Boolean);
    }
    (!fields.is_empty()).then(|| DataType::Struct(fields.into()))
}

/// What is wanted of a struct whose name has dots, which are also what leads into structs.
fn within<'p>(projection: &'p Projection, name: &str) -> Option<&'p Projection> {
    name.split('.').try_fold(projection, |projection, part| projection.field(part))
}

impl GivenMessage {
    /// The message `full_name` of the file `path`, whose text is `text`. It may import files of Google's, and those that
    /// lie beside it.
    ///
    /// # Errors
    /// The text cannot be used, imports what is not there, or has no such message.
    pub fn new(path: &Path, text: &str, full_name: &str) -> Result<Self> {
        let invalid = |reject: Reject| Error::invalid(reject.message);
        let schema = Schema::of_file(path, text).map_err(invalid)?;
        let descriptor = schema.message_named(full_name).map_err(invalid)?;
        Ok(Self { label: schema.label().to_owned(), descriptor })
    }
}

impl ProtobufDecoder {
    /// Decodes values that name their schema, which `schemas` knows, into the columns that `projection` wants.
    pub fn with_registry(
        shared: Arc<SharedMessages>,
        schemas: Arc<dyn Schemas>,
        projection: Projection,
        limits: RecordLimits,
    ) -> Self {
        Self {
            schemas: Some(schemas),
            shared,
            projection,
            limits,
            epoch: 0,
            writers: Vec::new(),
            learned: 0,
            places: HashMap::new(),
            prefixes: Vec::new(),
            column: None,
        }
    }

    /// Decodes values that are all of one type and name no schema.
    pub fn with_message(
        shared: Arc<SharedMessages>,
        message: GivenMessage,
        projection: Projection,
        limits: RecordLimits,
    ) -> Self {
        let GivenMessage { label, descriptor } = message;
        Self {
            schemas: None,
            shared,
            projection,
            limits,
            epoch: 0,
            writers: vec![Writer { label, message: descriptor, plan: None }],
            learned: 0,
            places: HashMap::new(),
            prefixes: Vec::new(),
            column: None,
        }
    }

    /// Finds the writer and the message of each value.
    fn assign<'a>(&mut self, values: &[Option<Value<'a>>]) -> Vec<Row<'a>> {
        values
            .iter()
            .map(|value| match value {
                None => Row::Null,
                Some(value) => match self.assign_one(value) {
                    Ok((writer, body)) => Row::Message { writer, body },
                    Err(reject) => Row::Bad(reject),
                },
            })
            .collect()
    }

    #[inline]
    fn assign_one<'a>(&mut self, value: &Value<'a>) -> Result<(usize, &'a [u8]), Reject> {
        if self.schemas.is_none() {
            return Ok((0, value.bytes));
        }
        if value.schema_header.is_none() {
            for (prefix, writer) in &self.prefixes {
                if let Some(body) = value.bytes.strip_prefix(&**prefix) {
                    return Ok((*writer, body));
                }
            }
        }
        let framed = frame(value)?;
        let (indexes, body) = framed.message()?;
        let writer = self.writer(framed.schema, indexes)?;
        if value.schema_header.is_none() && self.prefixes.len() < PREFIXES_MAX {
            let prefix = value.bytes.get(..value.bytes.len() - body.len()).unwrap_or_default();
            self.prefixes.push((prefix.into(), writer));
        }
        Ok((writer, body))
    }

    /// The place of the writer of this message type.
    fn writer(&mut self, key: SchemaKey, indexes: MessageIndexes) -> Result<usize, Reject> {
        let place = (key, indexes);
        if let Some(at) = self.places.get(&place) {
            return Ok(*at);
        }
        let lookup = self.schemas.as_ref().map_or(Lookup::Unfetched, |all| all.look_up(&key));
        let registered = match lookup {
            Lookup::Known(registered) => registered,
            Lookup::Unknown(why) => return Err(Reject::schema(format!("schema {key}: {why}"))),
            Lookup::Unfetched => {
                return Err(Reject::schema(format!("schema {key} was not fetched")));
            }
        };
        if registered.kind != SchemaKind::Protobuf {
            let kind = registered.kind;
            return Err(Reject::schema(format!("schema {key} is {kind:?}, not Protobuf")));
        }
        let schema = self.shared.schema(key, &registered.text, &registered.references)?;
        let message = schema.message_at(&place.1)?;
        let at = self.writers.len();
        self.writers.push(Writer { label: schema.label().to_owned(), message, plan: None });
        self.places.insert(place, at);
        Ok(at)
    }

    /// Teaches the shape new writers, and takes over what others have taught it.
    fn refresh(&mut self) -> Result<()> {
        if let Some(new) = self.writers.get(self.learned..).filter(|new| !new.is_empty()) {
            self.shared.learn(new.iter().map(|writer| &writer.message));
        }
        let epoch = self.shared.epoch();
        if epoch == self.epoch && self.learned == self.writers.len() {
            return Ok(());
        }
        let topic = self.shared.topic.lock();
        // Under the lock they belong together.
        let epoch = self.shared.epoch();
        let data_type = topic.data_type(&self.projection);
        if epoch != self.epoch {
            self.column = data_type.as_ref().map(Column::new).transpose()?;
        }
        for (at, writer) in self.writers.iter_mut().enumerate() {
            if epoch != self.epoch || at >= self.learned {
                let root = data_type.as_ref();
                let plan = topic.plan(&writer.message, &writer.label, &self.projection, root);
                writer.plan = Some(plan);
            }
        }
        drop(topic);
        self.epoch = epoch;
        self.learned = self.writers.len();
        Ok(())
    }
}

impl Decoder for ProtobufDecoder {
    fn reads_schemas(&self) -> bool {
        true
    }

    fn decode(&mut self, values: &[Option<Value<'_>>], bad: &mut Vec<BadRow>) -> Result<ArrayRef> {
        let bad_before = bad.len();
        let rows = self.assign(values);
        self.refresh()?;
        if let Some(column) = &mut self.column {
            // What is left of a batch that failed.
            column.truncate(0);
        }
        let mut room = Room::new(self.column.as_ref(), values.len())?;
        let mut filler = Filler::new(self.limits);
        for (row, assigned) in rows.into_iter().enumerate() {
            let reject = match assigned {
                Row::Null => continue,
                Row::Bad(reject) => reject,
                Row::Message { writer, body } => {
                    let plan = self.writers.get(writer).and_then(|writer| writer.plan.as_ref());
                    let plan = plan.ok_or_else(|| Error::internal("a writer without a plan"))?;
                    match filler.record(plan, self.column.as_mut(), row, body) {
                        Ok(misfit) => {
                            bad.extend(misfit.map(|reject| BadRow { row, reject }));
                            let taken = room.take(filler.asked(), self.column.as_ref());
                            if let (Err(_), Some(column)) = (&taken, &mut self.column) {
                                column.clear()?;
                            }
                            taken?;
                            continue;
                        }
                        Err(reject) => {
                            if let Some(column) = &mut self.column {
                                column.truncate(row);
                            }
                            reject
                        }
                    }
                }
            };
            bad.push(BadRow { row, reject });
        }
        match &mut self.column {
            Some(column) => column.finish(values.len()),
            None => unseen(values, bad.get(bad_before..).unwrap_or_default(), &self.projection),
        }
    }

    fn unfetched(&self, values: &[Option<Value<'_>>]) -> Vec<SchemaKey> {
        let Some(schemas) = &self.schemas else { return Vec::new() };
        let mut missing: Vec<SchemaKey> = Vec::new();
        let mut before = None;
        for value in values.iter().flatten() {
            let mut prefixes = self.prefixes.iter();
            if value.schema_header.is_none()
                && prefixes.any(|(prefix, _)| value.bytes.starts_with(prefix))
            {
                continue;
            }
            let Ok(framed) = frame(value) else { continue };
            if before.replace(framed.schema) != Some(framed.schema)
                && !missing.contains(&framed.schema)
                && matches!(schemas.look_up(&framed.schema), Lookup::Unfetched)
            {
                missing.push(framed.schema);
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests;
