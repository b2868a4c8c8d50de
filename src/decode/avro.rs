//! Avro into a struct column, straight from the bytes.
//!
//! A topic has many writers' schemas over time, often several in one batch. Their types are united into the topic's
//! columns ([`AvroShape`], shared by all who read it), and each schema is compiled once into a program that says where
//! the bytes of its values go. What does not fit a column is left out of its row, and the row says so.

mod cursor;
mod default;
mod program;
mod run;
pub mod schema;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, Fields};
use parking_lot::Mutex;

use self::program::Program;
use self::run::Run;
use self::schema::{Schema, SchemaError};
use super::column::{Column, Room, list_of, map_of};
use super::decoder::{BadRow, Decoder, Value};
use super::projection::Projection;
use super::raw::unseen;
use super::reject::{RecordLimits, Reject};
use super::schemas::{Lookup, RegisteredSchema, SchemaKey, SchemaKind, Schemas};
use super::unite::unite;
use super::wire::frame;
use crate::error::{Error, ErrorKind, Result};

/// Schemas kept for a topic. One with more has a writer that registers a schema for each record.
const WRITERS_MAX: usize = 10_000;

/// Columns of a topic, all that are nested included.
const COLUMNS_MAX: usize = 10_000;

/// What is known of a topic's columns, shared by all its decoders.
#[derive(Debug)]
pub struct AvroShape {
    state: Mutex<State>,
    /// Grows with each change of the columns.
    epoch: AtomicU64,
    /// The user's schema.
    given: Option<Arc<Schema>>,
}

#[derive(Debug)]
struct State {
    /// All that is known; `None` while there is nothing to see.
    data_type: Option<DataType>,
    writers: HashMap<SchemaKey, Writer>,
}

/// A schema that values name.
#[derive(Clone, Debug)]
enum Writer {
    /// No good record was seen that has it: the columns do not show it yet.
    New(Arc<Schema>),
    /// The columns show it.
    Known(Arc<Schema>),
    /// It cannot be used.
    Bad(String),
}

impl AvroShape {
    /// The columns follow from the schemas of records.
    pub fn new() -> Arc<Self> {
        Self::with(None, None)
    }

    /// The columns are those of the schema `text`, and records are read as Avro's rules of schema resolution say.
    /// `references` are schemas that define types it uses; what one of them uses comes before it.
    ///
    /// # Errors
    /// It is no schema, or one without an Arrow type.
    pub fn given<'a>(
        text: &str,
        references: impl IntoIterator<Item = &'a str>,
    ) -> Result<Arc<Self>> {
        let invalid = |error: SchemaError| Error::invalid(format!("the Avro schema: {error}"));
        let schema = Schema::parse(text, references).map_err(invalid)?;
        let data_type = schema.data_type(RecordLimits::default().depth_max).map_err(invalid)?;
        Ok(Self::with(data_type, Some(Arc::new(schema))))
    }

    fn with(data_type: Option<DataType>, given: Option<Arc<Schema>>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { data_type, writers: HashMap::new() }),
            epoch: AtomicU64::new(1),
            given,
        })
    }

    /// Changes whenever the topic's columns do.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The type of the topic's payloads; `None` while there is nothing to see.
    pub fn data_type(&self) -> Option<DataType> {
        self.state.lock().data_type.clone()
    }

    /// Takes note of a value that names the schema `key`: once it is a good one, its schema's columns are the topic's.
    /// Bad values teach nothing: otherwise any bytes that look like an id would bring columns with them.
    fn learn(
        &self,
        key: SchemaKey,
        body: &[u8],
        schemas: &dyn Schemas,
        limits: &RecordLimits,
    ) -> Result<(), Learn> {
        let mut state = self.state.lock();
        let schema = match state.writers.get(&key) {
            Some(Writer::Known(_)) => return Ok(()),
            Some(Writer::Bad(why)) => return Err(bad_schema(&key, why)),
            Some(Writer::New(schema)) => schema.clone(),
            None => match schemas.look_up(&key) {
                Lookup::Unfetched => return Err(Learn::Unfetched),
                // It may exist in a while: this is not remembered here.
                Lookup::Unknown(why) => return Err(bad_schema(&key, &why)),
                Lookup::Known(registered) => {
                    let parsed = usable(&registered, limits);
                    if state.writers.len() >= WRITERS_MAX {
                        state.writers.clear();
                    }
                    match parsed {
                        Ok(schema) => {
                            let schema = Arc::new(schema);
                            state.writers.insert(key, Writer::New(schema.clone()));
                            schema
                        }
                        Err(error) => {
                            let why = error.to_string();
                            state.writers.insert(key, Writer::Bad(why.clone()));
                            return Err(bad_schema(&key, &why));
                        }
                    }
                }
            },
        };
        let body = if schema.is_bytes() { &with_length(body) } else { body };
        Run::check(&schema.skip(schema.root), body, limits).map_err(Learn::Bad)?;
        if self.given.is_none()
            && let Ok(Some(new)) = schema.data_type(limits.depth_max)
        {
            let united = match &state.data_type {
                None => Some(new),
                Some(known) => unite(known, &new).filter(|united| united != known),
            };
            if let Some(united) = united {
                if columns(&united) > COLUMNS_MAX {
                    let why = format!("the topic would have more than {COLUMNS_MAX} columns");
                    state.writers.insert(key, Writer::Bad(why.clone()));
                    return Err(bad_schema(&key, &why));
                }
                state.data_type = Some(united);
                // Under the lock, so that the epoch is never older than the type.
                self.epoch.fetch_add(1, Ordering::AcqRel);
            }
        }
        state.writers.insert(key, Writer::Known(schema));
        Ok(())
    }

    /// The schema `key`, if the columns show it.
    fn writer(&self, key: &SchemaKey) -> Option<Arc<Schema>> {
        match self.state.lock().writers.get(key) {
            Some(Writer::Known(schema)) => Some(schema.clone()),
            _ => None,
        }
    }
}

/// Why a schema was not learned.
enum Learn {
    /// The value that names it, or the schema.
    Bad(Reject),
    Unfetched,
}

fn bad_schema(key: &SchemaKey, why: &str) -> Learn {
    Learn::Bad(Reject::schema(format!("schema {key}: {why}")))
}

fn usable(registered: &RegisteredSchema, limits: &RecordLimits) -> Result<Schema, SchemaError> {
    if registered.kind != SchemaKind::Avro {
        return Err(SchemaError::new(format!("it is of type {:?}, not Avro", registered.kind)));
    }
    let references = registered.references.iter().map(|reference| reference.text.as_str());
    let schema = Schema::parse(&registered.text, references)?;
    // What walks a schema relies on its depth and size being bounded.
    schema.data_type(limits.depth_max)?;
    Ok(schema)
}

/// `body` as Avro has it. Where the whole schema is `bytes`, Confluent's serializer for Java writes a value without the
/// length in front, and its deserializer takes all there is (`AbstractKafkaAvroSerializer`; libserdes does the same). The
/// frame is theirs, so that is what such a value means. The copy is for schemas that nobody needs.
fn with_length(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + 5);
    // Zig-zag.
    let mut length = 2 * body.len() as u64;
    while length >= 0x80 {
        bytes.push(length.to_le_bytes()[0] | 0x80);
        length >>= 7;
    }
    bytes.push(length.to_le_bytes()[0]);
    bytes.extend_from_slice(body);
    bytes
}

/// How records say what they were written with.
enum Framing {
    /// Each names a schema of the registry.
    Registry(Arc<dyn Schemas>),
    /// Not at all: with the user's schema.
    Plain,
}

/// See the top of this file.
pub struct AvroDecoder {
    shape: Arc<AvroShape>,
    framing: Framing,
    projection: Projection,
    limits: RecordLimits,
    epoch: u64,
    /// `None` while there is nothing to see.
    column: Option<Column>,
    /// The column's.
    fields: Fields,
    /// By schema, for the columns as they are.
    programs: HashMap<SchemaKey, usize>,
    compiled: Vec<Result<Program, Reject>>,
}

impl AvroDecoder {
    /// Decodes values that name a schema of `schemas`, in front of them or in a header.
    pub fn registered(
        shape: Arc<AvroShape>,
        schemas: Arc<dyn Schemas>,
        projection: Projection,
        limits: RecordLimits,
    ) -> Self {
        Self::with(shape, Framing::Registry(schemas), projection, limits)
    }

    /// Decodes values that are nothing but Avro, written with the schema that `shape` was [given](AvroShape::given).
    ///
    /// # Errors
    /// It was not given one.
    pub fn plain(
        shape: Arc<AvroShape>,
        projection: Projection,
        limits: RecordLimits,
    ) -> Result<Self> {
        match shape.given {
            Some(_) => Ok(Self::with(shape, Framing::Plain, projection, limits)),
            None => Err(Error::invalid("Avro values without a schema registry need a schema")),
        }
    }

    fn with(
        shape: Arc<AvroShape>,
        framing: Framing,
        projection: Projection,
        limits: RecordLimits,
    ) -> Self {
        Self {
            shape,
            framing,
            projection,
            limits,
            epoch: 0,
            column: None,
            fields: Fields::empty(),
            programs: HashMap::new(),
            compiled: Vec::new(),
        }
    }

    /// Learns the schemas of `values`, before any of them is decoded, so that the columns stay as they are meanwhile.
    fn learn(&self, values: &[Option<Value<'_>>]) -> Result<()> {
        let Framing::Registry(schemas) = &self.framing else { return Ok(()) };
        let mut last = None;
        let mut recent = Recent::default();
        for value in values.iter().flatten() {
            if recent.of(value).is_some() {
                continue;
            }
            let Ok(framed) = frame(value) else { continue };
            if last == Some(framed.schema) {
                continue;
            }
            if self.programs.contains_key(&framed.schema) {
                last = Some(framed.schema);
                recent = Recent::new(value, 0);
                continue;
            }
            match self.shape.learn(framed.schema, framed.body, schemas.as_ref(), &self.limits) {
                Ok(()) => last = Some(framed.schema),
                // Decoding it will say the same.
                Err(Learn::Bad(_)) => {}
                Err(Learn::Unfetched) => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        format!("schema {} is not fetched", framed.schema),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Takes over what others have learned.
    fn refresh(&mut self) -> Result<()> {
        let epoch = self.shape.epoch();
        if epoch == self.epoch {
            return Ok(());
        }
        let all = self.shape.data_type();
        self.epoch = epoch;
        let wanted = all.and_then(|all| project(&all, &self.projection));
        if wanted.as_ref() == self.column.as_ref().map(|column| &column.data_type) {
            return Ok(());
        }
        self.programs.clear();
        self.compiled.clear();
        self.fields = match &wanted {
            Some(DataType::Struct(fields)) => fields.clone(),
            _ => Fields::empty(),
        };
        self.column = wanted.map(|wanted| Column::new(&wanted)).transpose()?;
        Ok(())
    }

    /// The position of the program for values of the schema `key`.
    fn program(
        &mut self,
        key: SchemaKey,
        body: &[u8],
        schemas: &dyn Schemas,
    ) -> Result<usize, Reject> {
        if let Some(at) = self.programs.get(&key) {
            return Ok(*at);
        }
        let Some(writer) = self.shape.writer(&key) else {
            return Err(match self.shape.learn(key, body, schemas, &self.limits) {
                Err(Learn::Bad(reject)) => reject,
                // The schema was forgotten between two looks at it.
                _ => Reject::schema(format!("schema {key} is not at hand")),
            });
        };
        let mut program = match &self.shape.given {
            Some(reader) => Program::resolve(&writer, reader, &self.fields)
                .map_err(|error| Reject::schema(format!("schema {key}: {error}"))),
            None => Ok(Program::compile(&writer, &self.fields)),
        };
        if let Ok(program) = &mut program {
            program.is_bare = writer.is_bytes();
        }
        Ok(self.remember(key, program))
    }

    fn remember(&mut self, key: SchemaKey, program: Result<Program, Reject>) -> usize {
        self.compiled.push(program);
        self.programs.insert(key, self.compiled.len() - 1);
        self.compiled.len() - 1
    }

    fn append_all(&mut self, values: &[Option<Value<'_>>], bad: &mut Vec<BadRow>) -> Result<()> {
        let mut room = Room::new(self.column.as_ref(), values.len())?;
        let mut column = self.column.take();
        let appended = self.append_to(column.as_mut(), values, &mut room, bad);
        if let (Err(_), Some(column)) = (&appended, &mut column) {
            column.clear()?;
        }
        self.column = column;
        appended
    }

    fn append_to(
        &mut self,
        column: Option<&mut Column>,
        values: &[Option<Value<'_>>],
        room: &mut Room,
        bad: &mut Vec<BadRow>,
    ) -> Result<()> {
        // Where there is nothing to see, values are checked all the same.
        let mut nothing = Column {
            data_type: DataType::Struct(Fields::empty()),
            nulls: super::column::Nulls::default(),
            values: super::column::Values::Struct { len: 0, fields: Vec::new() },
        };
        let target = column.unwrap_or(&mut nothing);
        let schemas = match &self.framing {
            Framing::Registry(schemas) => Some(schemas.clone()),
            Framing::Plain => None,
        };
        let mut recent = Recent::default();
        for (row, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let done = match &schemas {
                None => self.plain_program().map(|at| (at, value.bytes)),
                Some(schemas) => match recent.of(value) {
                    Some(recent) => Ok(recent),
                    None => frame(value).and_then(|framed| {
                        let at = self.program(framed.schema, framed.body, schemas.as_ref())?;
                        recent = Recent::new(value, at);
                        Ok((at, framed.body))
                    }),
                },
            };
            let done = done.and_then(|(at, body)| match self.compiled.get(at) {
                Some(Ok(program)) => {
                    let body = if program.is_bare { &with_length(body) } else { body };
                    Run::append(&program.root, body, target, row, &self.limits)
                        .inspect_err(|_| target.truncate(row))
                }
                Some(Err(reject)) => Err(reject.clone()),
                None => Ok((None, 0)),
            });
            match done {
                Ok((misfit, asked)) => {
                    // The rest of the row stays.
                    if let Some(misfit) = misfit {
                        bad.push(BadRow { row, reject: Reject::value(misfit) });
                    }
                    room.take(asked, Some(target))?;
                }
                Err(reject) => bad.push(BadRow { row, reject }),
            }
        }
        Ok(())
    }

    /// The program for values of the user's schema.
    fn plain_program(&mut self) -> Result<usize, Reject> {
        if self.compiled.is_empty()
            && let Some(given) = self.shape.given.clone()
        {
            let program = Program::compile(&given, &self.fields);
            self.compiled.push(Ok(program));
        }
        Ok(0)
    }
}

/// The schema of the value before: most often it is this one's too, and equal bytes are found out at once.
#[derive(Default)]
struct Recent<'a> {
    prefix: Option<&'a [u8; 5]>,
    program: usize,
}

impl<'a> Recent<'a> {
    /// `value` was framed, and has the schema of `program`.
    fn new(value: &Value<'a>, program: usize) -> Self {
        match (value.schema_header, value.bytes.first_chunk::<5>()) {
            // Not a GUID's: its prefix is longer.
            (None, Some(prefix)) if prefix.first() == Some(&0) => {
                Self { prefix: Some(prefix), program }
            }
            _ => Self::default(),
        }
    }

    /// The program and the body of `value`, if it has the same prefix.
    #[inline(always)]
    fn of<'b>(&self, value: &Value<'b>) -> Option<(usize, &'b [u8])> {
        match (self.prefix, value.schema_header, value.bytes.split_first_chunk()) {
            (Some(known), None, Some((prefix, body))) if known == prefix => {
                Some((self.program, body))
            }
            _ => None,
        }
    }
}

impl Decoder for AvroDecoder {
    fn reads_schemas(&self) -> bool {
        true
    }

    fn decode(&mut self, values: &[Option<Value<'_>>], bad: &mut Vec<BadRow>) -> Result<ArrayRef> {
        let bad_before = bad.len();
        self.learn(values)?;
        self.refresh()?;
        self.append_all(values, bad)?;
        match &mut self.column {
            Some(column) => column.finish(values.len()),
            None => unseen(values, bad.get(bad_before..).unwrap_or_default(), &self.projection),
        }
    }

    fn unfetched(&self, values: &[Option<Value<'_>>]) -> Vec<SchemaKey> {
        let Framing::Registry(schemas) = &self.framing else { return Vec::new() };
        let mut unfetched = Vec::new();
        let mut last = None;
        let mut recent = Recent::default();
        for value in values.iter().flatten() {
            if recent.of(value).is_some() {
                continue;
            }
            let Ok(framed) = frame(value) else { continue };
            recent = Recent::new(value, 0);
            let key = framed.schema;
            if last.replace(key) == Some(key)
                || self.programs.contains_key(&key)
                || unfetched.contains(&key)
                || self.shape.state.lock().writers.contains_key(&key)
            {
                continue;
            }
            if matches!(schemas.look_up(&key), Lookup::Unfetched) {
                unfetched.push(key);
            }
        }
        unfetched
    }
}

/// The wanted part of a type; `None` if there is none. Lists and maps have their items' fields.
fn project(data_type: &DataType, projection: &Projection) -> Option<DataType> {
    if projection.is_all() {
        return Some(data_type.clone());
    }
    match data_type {
        DataType::Struct(fields) => {
            let wanted: Vec<Field> = fields
                .iter()
                .filter_map(|field| {
                    let below = projection.field(field.name())?;
                    let data_type = project(field.data_type(), below)?;
                    Some(field.as_ref().clone().with_data_type(data_type))
                })
                .collect();
            (!wanted.is_empty()).then(|| DataType::Struct(wanted.into()))
        }
        DataType::List(item) => project(item.data_type(), projection).map(list_of),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) => match pair.as_ref() {
                [key, value] => project(value.data_type(), projection)
                    .map(|value| map_of(key.data_type().clone(), value)),
                _ => None,
            },
            _ => None,
        },
        other => Some(other.clone()),
    }
}

/// How many columns a type has, all that are nested included.
fn columns(data_type: &DataType) -> usize {
    1 + match data_type {
        DataType::Struct(fields) => fields.iter().map(|field| columns(field.data_type())).sum(),
        DataType::List(item) | DataType::Map(item, _) => columns(item.data_type()),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
