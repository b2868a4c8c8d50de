//! JSON objects into a struct column, in one pass over the bytes.
//!
//! The types follow from the values ([`shape`]) and are shared by all who read a topic. A record that fits what is
//! known goes straight into the columns, its fields found by guessing that they come in the order of the record
//! before. One that does not fit widens the shape, and the batch is decoded once more: rare after the first batch.
//!
//! Schemas say types beforehand: one that the user gives ([`arrow_schema`], [`schema`]), or those that values name in a
//! registry ([`writers`]). They are part of the shape.

pub mod arrow_schema;
pub mod leaf;
mod learn;
pub mod literal;
pub mod node;
pub mod scan;
pub mod schema;
pub mod shape;
pub mod writers;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::ArrayRef;
use parking_lot::Mutex;

use self::leaf::{Leaf, Token, double, micros};
use self::node::{Items, Node, StructNode};
use self::scan::{Number, Scanner, Text};
use self::shape::{
    EXACT_MAX, Shape, StructShape, column_depth_max, duplicate, name_of, not_an_object,
};
use self::writers::{Writers, WritersSeen};
use super::column::{Column, Room, Values, pad_offsets, push};
use super::decoder::{BadRow, Decoder, Value};
use super::projection::Projection;
use super::raw::unseen;
use super::reject::{Meter, RecordLimits, Reject};
use super::schemas::SchemaKey;
use crate::error::Result;

/// How many times a batch is begun anew because its records widened the shape. More than two happen only while
/// others widen it too; the records that still do not fit are bad rows then.
const ATTEMPTS_MAX: usize = 4;

/// A topic's shape, shared by all its decoders.
#[derive(Debug)]
pub struct SharedShape {
    shape: Mutex<Shape>,
    /// Grows with each change of the shape.
    epoch: AtomicU64,
    writers: WritersSeen,
}

impl SharedShape {
    /// Nothing was seen yet; at most `fields_max` fields will get columns.
    pub fn new(fields_max: usize) -> Arc<Self> {
        Self::with(Shape::new(fields_max))
    }

    /// The same where the user has said what records are.
    pub fn said(fields_max: usize, said: StructShape) -> Arc<Self> {
        let mut shape = Shape::new(fields_max);
        shape.seed(said);
        Self::with(shape)
    }

    fn with(shape: Shape) -> Arc<Self> {
        Arc::new(Self {
            shape: Mutex::new(shape),
            epoch: AtomicU64::new(1),
            writers: WritersSeen::default(),
        })
    }

    /// How many inferred fields get columns.
    pub fn fields_max(&self) -> usize {
        self.shape.lock().count_max
    }

    /// Takes in what the schema of a writer says.
    fn seed(&self, said: StructShape) {
        let mut shape = self.shape.lock();
        shape.seed(said);
        // Under the lock, so that the epoch is never older than the shape.
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes whenever the topic's columns do.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }
}

/// See the top of this file.
pub struct JsonDecoder {
    shared: Arc<SharedShape>,
    projection: Projection,
    /// The fields whose strings are times.
    timestamps: Projection,
    limits: RecordLimits,
    /// Where the schemas are that values name.
    writers: Option<Writers>,
    epoch: u64,
    root: Node,
    /// `None` while no field was seen.
    column: Option<Column>,
    texts: u64,
}

/// Why a record was not appended.
enum Stop {
    Bad(Reject),
    /// The shape has to be widened first.
    Widen,
}

impl From<Reject> for Stop {
    fn from(reject: Reject) -> Self {
        Self::Bad(reject)
    }
}

impl JsonDecoder {
    /// Decodes into the columns that `projection` names, of the shape that `shared` has.
    pub fn new(shared: Arc<SharedShape>, projection: Projection, limits: RecordLimits) -> Self {
        Self {
            shared,
            projection,
            timestamps: Projection::nothing(),
            limits,
            writers: None,
            epoch: 0,
            root: Node::Unknown,
            column: None,
            texts: 0,
        }
    }

    /// The same, with RFC 3339 strings of the fields that `timestamps` names as timestamps in microseconds.
    pub fn with_timestamps(mut self, timestamps: Projection) -> Self {
        self.timestamps = timestamps;
        self
    }

    /// The same, with the types that the JSON Schemas say which values name.
    pub fn with_writers(mut self, writers: Writers) -> Self {
        self.writers = Some(writers);
        self
    }

    /// Takes over what others have seen.
    fn refresh(&mut self) -> Result<()> {
        let epoch = self.shared.epoch();
        if epoch == self.epoch {
            return Ok(());
        }
        let shape = self.shared.shape.lock().clone();
        self.epoch = epoch;
        let depth_max = column_depth_max(self.limits.depth_max);
        let (root, data_type) =
            Node::of_struct(&shape.root, &self.projection, Some(&self.timestamps), depth_max);
        self.root = root;
        self.column = data_type.map(|data_type| Column::new(&data_type)).transpose()?;
        Ok(())
    }

    /// Widens the shape by `records`; bad ones teach nothing.
    fn learn(&mut self, records: &[Option<Value<'_>>]) {
        let mut shape = self.shared.shape.lock();
        for record in records.iter().flatten() {
            if let Ok(text) = text_of(record.bytes, &self.limits) {
                let _ = shape.learn(text, &self.limits);
            }
        }
        // Under the lock, so that the epoch is never older than the shape.
        self.shared.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether a value is a good record, also one that the shape does not show yet.
    fn check(&self, value: &[u8]) -> Result<(), Reject> {
        let text = text_of(value, &self.limits)?;
        self.shared.shape.lock().check(text, &self.limits)
    }

    /// Returns what the record [asked](Meter::asked) for.
    fn append(&mut self, value: &[u8], row: usize) -> Result<usize, Stop> {
        let text = text_of(value, &self.limits)?;
        let mut scanner = Scanner::new(text);
        let mut filler = Filler { meter: Meter::new(&self.limits), lists: 0, texts: 0 };
        if scanner.peek() != b'{' {
            return Err(not_an_object(&mut scanner, &mut filler.meter).into());
        }
        match &mut self.root {
            Node::Struct(root) => filler.object(&mut scanner, root, self.column.as_mut(), row)?,
            _ => return Err(Stop::Widen),
        }
        scanner.end()?;
        self.texts += filler.texts;
        Ok(filler.meter.asked())
    }

    /// Appends all of `values`; `false` if one did not fit and the shape was widened instead.
    fn append_all(
        &mut self,
        values: &[Option<Value<'_>>],
        bad: &mut Vec<BadRow>,
        may_learn: bool,
    ) -> Result<bool> {
        let mut room = Room::new(self.column.as_ref(), values.len())?;
        for (row, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let reject = match self.append(value.bytes, row) {
                Ok(asked) => {
                    room.take(asked, self.column.as_ref())?;
                    continue;
                }
                Err(Stop::Bad(reject)) => reject,
                Err(Stop::Widen) => match self.check(value.bytes) {
                    // It would have turned out bad further on.
                    Err(reject) => reject,
                    Ok(()) if may_learn => {
                        self.learn(values.get(row..).unwrap_or_default());
                        return Ok(false);
                    }
                    Ok(()) => Reject::value("does not fit the columns of the topic"),
                },
            };
            if let Some(column) = &mut self.column {
                column.truncate(row);
            }
            bad.push(BadRow { row, reject });
        }
        Ok(true)
    }

    fn decode_all(&mut self, values: &[Option<Value<'_>>], bad: &mut Vec<BadRow>) -> Result<()> {
        let (bad_before, texts_before) = (bad.len(), self.texts);
        for attempt in 1..=ATTEMPTS_MAX {
            self.refresh()?;
            self.texts = texts_before;
            if self.append_all(values, bad, attempt < ATTEMPTS_MAX)? {
                break;
            }
            bad.truncate(bad_before);
            if let Some(column) = &mut self.column {
                column.truncate(0);
            }
        }
        Ok(())
    }
}

impl Decoder for JsonDecoder {
    fn decode(&mut self, values: &[Option<Value<'_>>], bad: &mut Vec<BadRow>) -> Result<ArrayRef> {
        if let Some(writers) = &mut self.writers {
            writers.learn(values, &self.shared, &self.limits);
        }
        let (bad_before, texts_before) = (bad.len(), self.texts);
        if let Err(error) = self.decode_all(values, bad) {
            // The same records come again, fewer at a time.
            self.texts = texts_before;
            if let Some(column) = &mut self.column {
                column.clear()?;
            }
            return Err(error);
        }
        match &mut self.column {
            Some(column) => column.finish(values.len()),
            None => unseen(values, bad.get(bad_before..).unwrap_or_default(), &self.projection),
        }
    }

    fn unfetched(&self, values: &[Option<Value<'_>>]) -> Vec<SchemaKey> {
        self.writers.as_ref().map_or_else(Vec::new, |writers| writers.unfetched(values))
    }

    fn reads_schemas(&self) -> bool {
        self.writers.is_some()
    }

    fn texts(&self) -> u64 {
        self.texts
    }
}

/// The JSON text of a value: behind a registry's header, if it has one. No JSON text begins as those do.
fn text_of<'a>(value: &'a [u8], limits: &RecordLimits) -> Result<&'a [u8], Reject> {
    let header = match value.first() {
        Some(0) => 5,
        Some(1) => 17,
        _ => 0,
    };
    let text = value.get(header..).ok_or_else(|| Reject::truncated("a registry's header"))?;
    if text.len() > limits.bytes_max {
        return Err(Reject::limit(format_args!("{} bytes", limits.bytes_max)));
    }
    simdutf8::basic::from_utf8(text).map_err(|_| Reject::malformed("no UTF-8"))?;
    Ok(text)
}

/// Appends the values of one record.
struct Filler {
    meter: Meter,
    /// How many lists are around the value.
    lists: usize,
    /// Values that became text because a limit, of fields or of depth, leaves no columns for them.
    texts: u64,
}

impl Filler {
    /// Appends a value as `row` of `column`. Depth is bounded by the shape's.
    fn value(
        &mut self,
        scanner: &mut Scanner<'_>,
        node: &mut Node,
        column: Option<&mut Column>,
        row: usize,
    ) -> Result<(), Stop> {
        let next = scanner.peek();
        if next == b'n' {
            scanner.word(b"null")?;
            return Ok(());
        }
        match node {
            Node::Skip => return Ok(scanner.skip(&mut self.meter)?),
            Node::Struct(node) if next == b'{' => return self.object(scanner, node, column, row),
            Node::List(items) if next == b'[' => return self.array(scanner, items, column, row),
            Node::Leaf(leaf) => return self.leaf(scanner, leaf, column, row),
            Node::Map(values) if next == b'{' => return self.map(scanner, values, column, row),
            _ => {}
        }
        let Some(Column { nulls, values, .. }) = column else {
            return self.misfit(scanner);
        };
        match (node, values) {
            (Node::Int { wide }, Values::Int64(values)) if matches!(next, b'-' | b'0'..=b'9') => {
                let Number::Int(value) = scanner.number()? else { return Err(Stop::Widen) };
                if value.unsigned_abs() > EXACT_MAX && !*wide {
                    return Err(Stop::Widen);
                }
                push(values, nulls, row, value);
            }
            (Node::Float, Values::Float64(values)) if matches!(next, b'-' | b'0'..=b'9') => {
                let value = match scanner.number()? {
                    Number::Float(value) => value,
                    Number::Int(value) if value.unsigned_abs() <= EXACT_MAX => {
                        double(value, next == b'-')
                    }
                    _ => return Err(Stop::Widen),
                };
                push(values, nulls, row, value);
            }
            (Node::Bool, Values::Bool(values)) if matches!(next, b't' | b'f') => {
                scanner.word(if next == b't' { b"true" } else { b"false" })?;
                push(values, nulls, row, next == b't');
            }
            (Node::Text { is_deepest }, Values::Bytes(bytes)) => {
                pad_offsets(&mut bytes.offsets, nulls, row);
                if next == b'"' {
                    scanner.string()?.append_to(&mut bytes.data);
                } else {
                    if *is_deepest && matches!(next, b'{' | b'[') {
                        self.texts += 1;
                    }
                    let start = scanner.at();
                    scanner.skip(&mut self.meter)?;
                    bytes.data.extend_from_slice(scanner.since(start));
                }
                bytes.end_row()?;
            }
            (Node::Timestamp, Values::Int64(values)) if next == b'"' => {
                let time = micros(scanner.string()?)?;
                push(values, nulls, row, time);
            }
            (Node::Timestamp, _) => {
                return Err(Reject::value("a time that is not in a string").into());
            }
            _ => return self.misfit(scanner),
        }
        Ok(())
    }

    /// Appends a value whose type a schema says. One that does not fit goes the thorough way, which widens the shape or
    /// says why not.
    // Apart, as is `map`: what values without a schema go through stays small.
    #[inline(never)]
    fn leaf(
        &mut self,
        scanner: &mut Scanner<'_>,
        leaf: &Leaf,
        column: Option<&mut Column>,
        row: usize,
    ) -> Result<(), Stop> {
        let Some(token) = Token::scan(scanner, &mut self.meter)? else { return Ok(()) };
        match (leaf.read(token), column) {
            (Ok(value), Some(column)) => Ok(value.append_to(column, row)?),
            _ => Err(Stop::Widen),
        }
    }

    /// The value has no place; it widens the shape, unless it is no value at all.
    #[cold]
    fn misfit(&mut self, scanner: &mut Scanner<'_>) -> Result<(), Stop> {
        scanner.skip(&mut self.meter)?;
        Err(Stop::Widen)
    }

    fn object(
        &mut self,
        scanner: &mut Scanner<'_>,
        node: &mut StructNode,
        column: Option<&mut Column>,
        row: usize,
    ) -> Result<(), Stop> {
        let mut fields: &mut [Column] = &mut [];
        if let Some(Column { nulls, values: Values::Struct { len, fields: columns }, .. }) = column
        {
            if *len < row {
                nulls.add(*len, row);
            }
            *len = row + 1;
            if self.lists > 0 {
                // Each item has a place in every column, also an empty one.
                self.meter.elements(columns.len())?;
            }
            fields = columns;
        }
        scanner.pass();
        if scanner.peek() == b'}' {
            scanner.pass();
            return Ok(());
        }
        node.objects += 1;
        let object = node.objects;
        let mut guess = 0;
        let mut more = More::default();
        loop {
            if scanner.peek() != b'"' {
                return Err(scanner.unexpected("an object").into());
            }
            self.meter.elements(1)?;
            let at = match node.fields.get(guess) {
                Some(field) if field.is_plain && scanner.key_is(field.name.as_bytes()) => {
                    Some(guess)
                }
                _ => {
                    let start = scanner.at();
                    let key = scanner.string()?;
                    let quoted = scanner.since(start);
                    scanner.expect(b':', "an object")?;
                    let at = match key {
                        Text::Plain(name) => std::str::from_utf8(name)
                            .ok()
                            .and_then(|name| node.index.get(name))
                            .copied(),
                        Text::Escaped(_) => node.index.get(&name_of(key)).copied(),
                    };
                    if at.is_none() {
                        if !node.is_full {
                            return self.misfit(scanner);
                        }
                        self.texts += 1;
                        more.take(scanner, key, quoted, &mut self.meter)?;
                    }
                    at
                }
            };
            if let Some(at) = at
                && let Some(field) = node.fields.get_mut(at)
            {
                if field.object == object {
                    return Err(duplicate(&field.name).into());
                }
                field.object = object;
                guess = at + 1;
                let column = field.column.and_then(|column| fields.get_mut(column));
                self.value(scanner, &mut field.node, column, row)?;
            }
            match scanner.peek() {
                b',' => scanner.pass(),
                b'}' => {
                    scanner.pass();
                    break;
                }
                _ => return Err(scanner.unexpected("an object").into()),
            }
        }
        if let Some(column) = node.more.and_then(|column| fields.get_mut(column)) {
            more.append_to(column, row)?;
        }
        Ok(())
    }

    fn array(
        &mut self,
        scanner: &mut Scanner<'_>,
        node: &mut Items,
        column: Option<&mut Column>,
        row: usize,
    ) -> Result<(), Stop> {
        let mut place = match column {
            Some(Column { nulls, values: Values::List { offsets, items }, .. }) => {
                pad_offsets(offsets, nulls, row);
                Some((offsets, items))
            }
            _ => None,
        };
        let mut end = place.as_ref().and_then(|(offsets, _)| offsets.last().copied()).unwrap_or(0);
        scanner.pass();
        if scanner.peek() == b']' {
            scanner.pass();
        } else {
            self.lists += 1;
            loop {
                self.meter.elements(1)?;
                self.meter.bytes(node.size)?;
                let items = place.as_mut().map(|(_, items)| items.as_mut());
                // An offset is never negative.
                self.value(scanner, &mut node.node, items, usize::try_from(end).unwrap_or(0))?;
                end = end
                    .checked_add(1)
                    .ok_or_else(|| Reject::limit("2^31 list items in one batch"))?;
                match scanner.peek() {
                    b',' => scanner.pass(),
                    b']' => {
                        scanner.pass();
                        break;
                    }
                    _ => return Err(scanner.unexpected("an array").into()),
                }
            }
            self.lists -= 1;
        }
        if let Some((offsets, _)) = place {
            offsets.push(end);
        }
        Ok(())
    }

    #[inline(never)]
    fn map(
        &mut self,
        scanner: &mut Scanner<'_>,
        node: &mut Items,
        column: Option<&mut Column>,
        row: usize,
    ) -> Result<(), Stop> {
        let mut place = match column {
            Some(Column { nulls, values: Values::Map { offsets, keys, values }, .. }) => {
                pad_offsets(offsets, nulls, row);
                Some((offsets, keys, values))
            }
            _ => None,
        };
        let mut end = place.as_ref().and_then(|(offsets, ..)| offsets.last().copied()).unwrap_or(0);
        let mut seen = HashSet::new();
        scanner.pass();
        self.lists += 1;
        let mut is_open = scanner.peek() != b'}';
        if !is_open {
            scanner.pass();
        }
        while is_open {
            if scanner.peek() != b'"' {
                return Err(scanner.unexpected("an object").into());
            }
            self.meter.elements(1)?;
            self.meter.bytes(node.size)?;
            let name = name_of(scanner.string()?);
            scanner.expect(b':', "an object")?;
            if seen.contains(&name) {
                return Err(duplicate(&name).into());
            }
            let values = match &mut place {
                Some((_, keys, values)) => {
                    if let Values::Bytes(keys) = &mut keys.values {
                        keys.push(name.as_bytes())?;
                    }
                    Some(values.as_mut())
                }
                None => None,
            };
            seen.insert(name);
            // An offset is never negative.
            self.value(scanner, &mut node.node, values, usize::try_from(end).unwrap_or(0))?;
            end = end
                .checked_add(1)
                .ok_or_else(|| Reject::limit("2^31 entries of maps in one batch"))?;
            match scanner.peek() {
                b',' => scanner.pass(),
                b'}' => {
                    scanner.pass();
                    is_open = false;
                }
                _ => return Err(scanner.unexpected("an object").into()),
            }
        }
        self.lists -= 1;
        if let Some((offsets, ..)) = place {
            offsets.push(end);
        }
        Ok(())
    }
}

/// The fields of one object that have no column of their own, as they were written.
#[derive(Default)]
struct More {
    text: Vec<u8>,
    names: HashSet<Box<str>>,
}

impl More {
    fn take(
        &mut self,
        scanner: &mut Scanner<'_>,
        key: Text<'_>,
        quoted: &[u8],
        meter: &mut Meter,
    ) -> Result<(), Reject> {
        let name = name_of(key);
        if self.names.contains(&name) {
            return Err(duplicate(&name));
        }
        self.names.insert(name);
        scanner.peek();
        let start = scanner.at();
        scanner.skip(meter)?;
        self.text.push(if self.text.is_empty() { b'{' } else { b',' });
        self.text.extend_from_slice(quoted);
        self.text.push(b':');
        self.text.extend_from_slice(scanner.since(start));
        Ok(())
    }

    fn append_to(self, column: &mut Column, row: usize) -> Result<(), Reject> {
        let Column { nulls, values: Values::Bytes(bytes), .. } = column else { return Ok(()) };
        if self.text.is_empty() {
            return Ok(());
        }
        pad_offsets(&mut bytes.offsets, nulls, row);
        bytes.data.extend_from_slice(&self.text);
        bytes.data.push(b'}');
        bytes.end_row()
    }
}

#[cfg(test)]
mod said_tests;
#[cfg(test)]
mod tests;
