//! Records from the wire into columns, by their writer's plan.
//!
//! Fields come in any order and any number of times: the last of a single scalar wins, messages merge, and a field of a
//! oneof clears the others. So a column that already has this row's value has it replaced or added to.

use std::collections::{HashMap, HashSet};

use super::json::JsonMessage;
use super::plan::{Absent, EnumNames, FieldPlan, How, Item, MapPlan, MessagePlan, Scalar};
use super::reader::{BYTES, FIXED32, FIXED64, Fault, GROUP, GROUP_END, Reader};
use super::shape::JsonRoot;
use crate::decode::column::{Bytes, Column, Nulls, Values, pad_offsets, push};
use crate::decode::reject::{Meter, RecordLimits, Reject};

const NANOS: i128 = 1_000_000_000;

/// Integers up to here are exact as Float64.
const EXACT_MAX: u64 = 1 << 53;

/// Up to so many entries of maps are compared with one another, more are hashed.
const COMPARED_MAX: usize = 8;

/// Where a writer's messages go.
#[derive(Debug)]
pub struct RootPlan {
    /// How.
    pub message: MessagePlan,
    /// Into which struct.
    pub place: Place,
}

/// The struct of a message in the column of its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The column itself.
    Top,
    /// A field of it.
    Field(usize),
    /// Nobody wants it.
    Nowhere,
}

/// Appends records; what it keeps is of the record at hand only.
pub struct Filler<'a> {
    limits: RecordLimits,
    meter: Meter,
    /// Messages that became JSON text: a later occurrence is merged with them.
    pieces: Vec<Piece<'a>>,
    /// Entries of maps: a later one with the same key takes the place of an earlier one.
    entries: Vec<Entry<'a>>,
    /// Where those are that have lost their place.
    lost: HashSet<*const u8>,
    misfit: Option<Reject>,
}

/// A row of a column, within one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Spot {
    column: *const Column,
    row: usize,
}

#[derive(Debug)]
struct Piece<'a> {
    spot: Spot,
    bytes: &'a [u8],
    is_first: bool,
}

#[derive(Debug)]
struct Entry<'a> {
    spot: Spot,
    key: Key<'a>,
    /// Where it is in the record: that tells it from all others.
    at: *const u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key<'a> {
    Number(u64),
    Text(&'a [u8]),
}

impl<'a> Filler<'a> {
    /// Every record may ask for `limits`.
    pub fn new(limits: RecordLimits) -> Self {
        Self {
            limits,
            meter: Meter::new(&limits),
            pieces: Vec::new(),
            entries: Vec::new(),
            lost: HashSet::new(),
            misfit: None,
        }
    }

    /// Appends a record as `row` of `column`. It may have a field that fits no column: then the row has the others, and
    /// that is told.
    ///
    /// # Errors
    /// The record is bad; `column` has to be truncated to `row`.
    pub fn record(
        &mut self,
        plan: &RootPlan,
        mut column: Option<&mut Column>,
        row: usize,
        bytes: &'a [u8],
    ) -> Result<Option<Reject>, Reject> {
        if bytes.len() > self.limits.bytes_max {
            return Err(Reject::limit(format_args!("{} bytes", self.limits.bytes_max)));
        }
        self.append(plan, column.as_deref_mut(), row, bytes)?;
        if self.entries.len() > 1 && self.find_lost() {
            // Rare enough to simply do it again without them.
            if let Some(column) = column.as_deref_mut() {
                column.truncate(row);
            }
            let appended = self.append(plan, column, row, bytes);
            self.lost.clear();
            appended?;
        }
        Ok(self.misfit.take())
    }

    /// What the last record [asked](Meter::asked) for.
    pub fn asked(&self) -> usize {
        self.meter.asked()
    }

    fn append(
        &mut self,
        plan: &RootPlan,
        column: Option<&mut Column>,
        row: usize,
        bytes: &'a [u8],
    ) -> Result<(), Reject> {
        self.meter = Meter::new(&self.limits);
        self.pieces.clear();
        self.entries.clear();
        self.misfit = None;
        let mut columns: &mut [Column] = &mut [];
        if let Some(column) = column
            && let Some((_, fields)) = open_struct(column, row)
        {
            columns = match plan.place {
                Place::Top => fields,
                Place::Nowhere => &mut [],
                Place::Field(at) => match fields.get_mut(at) {
                    // A message type without fields.
                    Some(Column { nulls, values: Values::Bool(values), .. }) => {
                        put(values, nulls, row, true);
                        &mut []
                    }
                    Some(field) => open_struct(field, row).map_or(&mut [], |(_, fields)| fields),
                    None => &mut [],
                },
            };
        }
        self.meter.elements(plan.message.leaves)?;
        let mut reader = Reader::new(bytes);
        self.message(&plan.message, columns, row, &mut reader, None)
            .map_err(|fault| fault.reject(&plan.message.name))
    }

    /// Appends a message up to the end of `reader`, or of the group it is.
    fn message(
        &mut self,
        plan: &MessagePlan,
        columns: &mut [Column],
        row: usize,
        reader: &mut Reader<'a>,
        group: Option<u32>,
    ) -> Result<(), Fault> {
        let mut met = 0;
        let mut guess = 0;
        loop {
            if reader.is_empty() {
                if group.is_some() {
                    return Err(Fault::Truncated.at(&plan.name));
                }
                break;
            }
            let tag = match reader.tag() {
                Ok(tag) => tag,
                Err(fault) => return Err(fault.at(&plan.name)),
            };
            if tag & 7 == GROUP_END {
                if group == Some(tag >> 3) {
                    break;
                }
                return Err(Fault::Group.at(&plan.name));
            }
            let Some(field) = plan.field(tag >> 3, &mut guess) else {
                if let Err(fault) = reader.skip(tag) {
                    return Err(fault.at(format_args!(
                        "unknown field {} of {}",
                        tag >> 3,
                        plan.name
                    )));
                }
                continue;
            };
            match self.field(plan, field, tag, columns, row, reader) {
                Ok(()) => met |= field.default_bit,
                Err(fault) => {
                    let place = format_args!("field '{}' of {}", field.name, plan.name);
                    return Err(fault.at(place));
                }
            }
        }
        let mut at = 0;
        while let Some((column, absent)) = plan.defaults.get(at) {
            // Those that were met are passed without a look.
            let passed = (met >> at.min(63)).trailing_ones();
            if passed > 0 && at < 64 {
                at += passed as usize;
                continue;
            }
            at += 1;
            if let Some(column) = columns.get_mut(*column)
                && column.len() <= row
            {
                self.absent(absent, column, row)?;
            }
        }
        Ok(())
    }

    /// Appends an occurrence of a field.
    #[inline(always)]
    fn field(
        &mut self,
        plan: &MessagePlan,
        field: &FieldPlan,
        tag: u32,
        columns: &mut [Column],
        row: usize,
        reader: &mut Reader<'a>,
    ) -> Result<(), Fault> {
        if let Some(oneof) = field.oneof {
            self.clear_others(plan, oneof, field.column, columns, row)?;
        }
        let Some(column) = columns.get_mut(field.column) else {
            if let How::Misfit(reject) = &field.how
                && self.misfit.is_none()
            {
                self.misfit = Some(reject.as_ref().clone());
            }
            return reader.skip(tag);
        };
        if !field.allows(tag & 7) {
            return Err(Fault::Wire(tag & 7));
        }
        match &field.how {
            How::One(Item::Scalar(scalar)) => self.scalar(scalar, reader, column, row),
            How::One(item) => self.item(item, tag, reader, column, row),
            How::Only(item) => self.only(item, tag, reader, column, row),
            How::List(item) => self.list(item, tag, reader, column, row),
            How::Map(map) => self.entry(map, reader, column, row),
            How::Skip | How::Misfit(_) => reader.skip(tag),
        }
    }

    fn clear_others(
        &mut self,
        plan: &MessagePlan,
        oneof: usize,
        column: usize,
        columns: &mut [Column],
        row: usize,
    ) -> Result<(), Fault> {
        for other in plan.oneofs.get(oneof).into_iter().flatten() {
            if *other != column
                && let Some(other) = columns.get_mut(*other)
                && other.len() > row
            {
                self.meter.elements(1)?;
                other.truncate(row);
            }
        }
        Ok(())
    }

    /// What a field is that a message leaves out.
    fn absent(&mut self, absent: &Absent, column: &mut Column, row: usize) -> Result<(), Fault> {
        let Column { nulls, values, .. } = column;
        match (absent, values) {
            (Absent::Bool(value), Values::Bool(values)) => put(values, nulls, row, *value),
            (Absent::Bytes(value), Values::Bytes(bytes)) => {
                self.meter.bytes(value.len())?;
                put_bytes(bytes, nulls, row, value)?;
            }
            (Absent::Float(value), Values::Float32(values)) => put(values, nulls, row, *value),
            (Absent::Float(value), Values::Float64(values)) => {
                put(values, nulls, row, f64::from(*value));
            }
            (Absent::Double(value), Values::Float64(values)) => put(values, nulls, row, *value),
            (Absent::Empty, Values::List { offsets, .. } | Values::Map { offsets, .. }) => {
                open_offsets(offsets, nulls, row);
            }
            (Absent::Only(value), Values::List { offsets, items }) => {
                let at = open_offsets(offsets, nulls, row);
                self.absent(value, items, at)?;
                end_offsets(offsets, at + 1)?;
            }
            (Absent::Int(value), values) => {
                put_integer(i128::from(*value), values, nulls, row)?;
            }
            (Absent::UInt(value), values) => {
                put_integer(i128::from(*value), values, nulls, row)?;
            }
            _ => return Err(mistake()),
        }
        Ok(())
    }

    /// Appends a value that is no message.
    #[inline(always)]
    fn scalar(
        &mut self,
        scalar: &Scalar,
        reader: &mut Reader<'a>,
        column: &mut Column,
        row: usize,
    ) -> Result<(), Fault> {
        let Column { nulls, values, .. } = column;
        match (scalar, values) {
            (Scalar::Bool, Values::Bool(values)) => put(values, nulls, row, reader.varint()? != 0),
            (Scalar::Int32, Values::Int32(values)) => put(values, nulls, row, reader.int32()?),
            (Scalar::SInt32, Values::Int32(values)) => put(values, nulls, row, reader.sint32()?),
            (Scalar::SFixed32, Values::Int32(values)) => {
                put(values, nulls, row, i32::from_le_bytes(reader.fixed()?))
            }
            (Scalar::Int64, Values::Int64(values)) => {
                put(values, nulls, row, reader.varint()?.cast_signed())
            }
            (Scalar::SInt64, Values::Int64(values)) => put(values, nulls, row, reader.sint64()?),
            (Scalar::SFixed64, Values::Int64(values)) => {
                put(values, nulls, row, i64::from_le_bytes(reader.fixed()?))
            }
            (Scalar::UInt32, Values::UInt32(values)) => put(values, nulls, row, reader.uint32()?),
            (Scalar::Fixed32, Values::UInt32(values)) => {
                put(values, nulls, row, u32::from_le_bytes(reader.fixed()?))
            }
            (Scalar::UInt64, Values::UInt64(values)) => put(values, nulls, row, reader.varint()?),
            (Scalar::Fixed64, Values::UInt64(values)) => {
                put(values, nulls, row, u64::from_le_bytes(reader.fixed()?))
            }
            (Scalar::Float, Values::Float32(values)) => {
                put(values, nulls, row, f32::from_le_bytes(reader.fixed()?))
            }
            (Scalar::Double, Values::Float64(values)) => {
                put(values, nulls, row, f64::from_le_bytes(reader.fixed()?))
            }
            (Scalar::String, Values::Bytes(bytes)) => put_bytes(bytes, nulls, row, reader.text()?)?,
            (Scalar::Bytes, Values::Bytes(bytes)) => put_bytes(bytes, nulls, row, reader.bytes()?)?,
            (Scalar::Enum(names), Values::Bytes(bytes)) => {
                let number = reader.int32()?;
                self.enum_name(names, number, bytes, nulls, row)?;
            }
            (scalar, values) => widened(scalar, reader, values, nulls, row)?,
        }
        Ok(())
    }

    #[inline]
    fn enum_name(
        &mut self,
        names: &EnumNames,
        number: i32,
        bytes: &mut Bytes,
        nulls: &mut Nulls,
        row: usize,
    ) -> Result<(), Fault> {
        match names.get(number) {
            Some(name) => {
                self.meter.bytes(name.len())?;
                put_bytes(bytes, nulls, row, name.as_bytes())
            }
            None => {
                let mut digits = itoa::Buffer::new();
                put_bytes(bytes, nulls, row, digits.format(number).as_bytes())
            }
        }
    }

    /// Appends a value that may be a message.
    fn item(
        &mut self,
        item: &Item,
        tag: u32,
        reader: &mut Reader<'a>,
        column: &mut Column,
        row: usize,
    ) -> Result<(), Fault> {
        match item {
            Item::Scalar(scalar) => self.scalar(scalar, reader, column, row),
            Item::Message(plan) if tag & 7 == GROUP => {
                let Some((is_first, columns)) = open_struct(column, row) else {
                    return Err(mistake());
                };
                self.count_merge(plan, is_first)?;
                self.message(plan, columns, row, reader, Some(tag >> 3))
            }
            item if tag & 7 == GROUP => {
                let bytes = reader.group(tag >> 3)?;
                self.sub_message(item, bytes, column, row)
            }
            item => {
                let bytes = reader.bytes()?;
                self.sub_message(item, bytes, column, row)
            }
        }
    }

    /// Merging costs time without bytes, if what is merged is empty.
    fn count_merge(&mut self, plan: &MessagePlan, is_first: bool) -> Result<(), Fault> {
        if !is_first {
            self.meter.elements(1 + plan.leaves)?;
        }
        Ok(())
    }

    /// Appends a message whose bytes were found.
    fn sub_message(
        &mut self,
        item: &Item,
        bytes: &'a [u8],
        column: &mut Column,
        row: usize,
    ) -> Result<(), Fault> {
        let spot = Spot { column: std::ptr::from_ref(column), row };
        if let Item::Message(plan) = item {
            let Some((is_first, columns)) = open_struct(column, row) else {
                return Err(mistake());
            };
            self.count_merge(plan, is_first)?;
            return self.message(plan, columns, row, &mut Reader::new(bytes), None);
        }
        let is_first = column.len() <= row;
        if let Item::Wrapper(scalar, default) = item {
            let mut reader = Reader::new(bytes);
            while !reader.is_empty() {
                let tag = reader.tag()?;
                match (tag >> 3, tag & 7) {
                    (1, wire) if wire == scalar.wire() => {
                        self.scalar(scalar, &mut reader, column, row)?;
                    }
                    (1, wire) => return Err(Fault::Wire(wire)),
                    _ => reader.skip(tag)?,
                }
            }
            if column.len() <= row {
                self.absent(default, column, row)?;
            }
            return Ok(());
        }
        let Column { nulls, values, .. } = column;
        match (item, values) {
            (Item::Opaque, Values::Bytes(column)) => {
                if is_first {
                    return put_bytes(column, nulls, row, bytes);
                }
                // The bytes of messages one after the other are those of the merged one.
                column.offsets.pop();
                column.push(bytes)?;
            }
            (Item::Present, Values::Bool(values)) => {
                Reader::new(bytes).skip_all()?;
                put(values, nulls, row, true);
            }
            (Item::Timestamp, Values::Int64(values)) => {
                let before = i128::from(values.get(row).copied().unwrap_or(0));
                let mut time = (before.div_euclid(NANOS), before.rem_euclid(NANOS));
                seconds_and_nanos(bytes, &mut time)?;
                if !(0..NANOS).contains(&time.1) {
                    return Err(Fault::Range("the nanoseconds of a second"));
                }
                let value = i64::try_from(time.0 * NANOS + time.1)
                    .map_err(|_| Fault::Range("the years 1678 to 2261"))?;
                put(values, nulls, row, value);
            }
            (Item::Duration, Values::Int64(values)) => {
                let before = i128::from(values.get(row).copied().unwrap_or(0));
                let mut time = (before / NANOS, before % NANOS);
                seconds_and_nanos(bytes, &mut time)?;
                if time.1.abs() >= NANOS || time.0.signum() * time.1.signum() < 0 {
                    return Err(Fault::Range("the nanoseconds of a second"));
                }
                let value = i64::try_from(time.0 * NANOS + time.1)
                    .map_err(|_| Fault::Range("292 years"))?;
                put(values, nulls, row, value);
            }
            (Item::Json(root), Values::Bytes(column)) => {
                self.json(*root, bytes, spot, is_first, column, nulls)?;
            }
            (Item::FieldMask, Values::List { offsets, items }) => {
                open_offsets(offsets, nulls, row);
                let Values::Bytes(paths) = &mut items.values else { return Err(mistake()) };
                let mut reader = Reader::new(bytes);
                while !reader.is_empty() {
                    let tag = reader.tag()?;
                    match (tag >> 3, tag & 7) {
                        (1, BYTES) => {
                            self.meter.elements(1)?;
                            paths.push(reader.text()?)?;
                        }
                        (1, wire) => return Err(Fault::Wire(wire)),
                        _ => reader.skip(tag)?,
                    }
                }
                end_offsets(offsets, paths.offsets.len() - 1)?;
            }
            _ => return Err(mistake()),
        }
        Ok(())
    }

    fn json(
        &mut self,
        root: JsonRoot,
        bytes: &'a [u8],
        spot: Spot,
        is_first: bool,
        column: &mut Bytes,
        nulls: &mut Nulls,
    ) -> Result<(), Fault> {
        let merged;
        let mut all = bytes;
        if !is_first {
            let mut pieces = vec![bytes];
            self.meter.elements(self.pieces.len())?;
            for piece in self.pieces.iter().rev().filter(|piece| piece.spot == spot) {
                self.meter.bytes(piece.bytes.len())?;
                pieces.push(piece.bytes);
                if piece.is_first {
                    break;
                }
            }
            pieces.reverse();
            merged = pieces.concat();
            all = &merged;
        }
        self.pieces.push(Piece { spot, bytes, is_first });
        let text = JsonMessage::new(&mut self.meter, self.limits.depth_max).text(root, all)?;
        put_bytes(column, nulls, spot.row, text.as_bytes())
    }

    /// Puts a value where it is the only item of a list: one that comes again takes its place, or is merged with it.
    fn only(
        &mut self,
        item: &Item,
        tag: u32,
        reader: &mut Reader<'a>,
        column: &mut Column,
        row: usize,
    ) -> Result<(), Fault> {
        let Column { nulls, values: Values::List { offsets, items }, .. } = column else {
            return Err(mistake());
        };
        open_offsets(offsets, nulls, row);
        // Where the row begins, whether or not it has its item already.
        let at = offsets.get(row).and_then(|at| usize::try_from(*at).ok()).ok_or_else(mistake)?;
        self.meter.elements(match item {
            Item::Message(plan) => 1 + plan.leaves,
            _ => 1,
        })?;
        self.item(item, tag, reader, items, at)?;
        Ok(end_offsets(offsets, at + 1)?)
    }

    /// Appends one or more items.
    fn list(
        &mut self,
        item: &Item,
        tag: u32,
        reader: &mut Reader<'a>,
        column: &mut Column,
        row: usize,
    ) -> Result<(), Fault> {
        let Column { nulls, values: Values::List { offsets, items }, .. } = column else {
            return Err(mistake());
        };
        let mut end = open_offsets(offsets, nulls, row);
        match item {
            Item::Scalar(scalar) if tag & 7 == BYTES && scalar.wire() != BYTES => {
                end += self.packed(scalar, reader.bytes()?, items, end)?;
            }
            item => loop {
                let cost = match item {
                    Item::Message(plan) => 1 + plan.leaves,
                    _ => 1,
                };
                self.meter.elements(cost)?;
                self.item(item, tag, reader, items, end)?;
                end += 1;
                // Most often they come one after the other.
                if !reader.takes(tag) {
                    break;
                }
            },
        }
        Ok(end_offsets(offsets, end)?)
    }

    /// Appends items that are in one field; how many.
    fn packed(
        &mut self,
        scalar: &Scalar,
        bytes: &'a [u8],
        items: &mut Column,
        end: usize,
    ) -> Result<usize, Fault> {
        let count = match scalar.wire() {
            FIXED32 => bytes.len() / 4,
            FIXED64 => bytes.len() / 8,
            // Each varint has one byte that says it is its last.
            _ => bytes.iter().filter(|byte| **byte < 0x80).count(),
        };
        self.meter.elements(count)?;
        let mut reader = Reader::new(bytes);
        match (scalar, &mut items.values) {
            (Scalar::Double, Values::Float64(values)) => {
                let (chunks, rest) = bytes.as_chunks::<8>();
                values.extend(chunks.iter().map(|chunk| f64::from_le_bytes(*chunk)));
                reader = Reader::new(rest);
            }
            (Scalar::Float, Values::Float32(values)) => {
                let (chunks, rest) = bytes.as_chunks::<4>();
                values.extend(chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)));
                reader = Reader::new(rest);
            }
            (Scalar::Int64, Values::Int64(values)) => {
                values.reserve(count);
                while !reader.is_empty() {
                    values.push(reader.varint()?.cast_signed());
                }
            }
            (Scalar::Int32, Values::Int32(values)) => {
                values.reserve(count);
                while !reader.is_empty() {
                    values.push(reader.int32()?);
                }
            }
            _ => {
                let mut at = end;
                while !reader.is_empty() {
                    self.scalar(scalar, &mut reader, items, at)?;
                    at += 1;
                }
            }
        }
        if reader.is_empty() { Ok(count) } else { Err(Fault::Truncated) }
    }

    /// Appends an entry of a map.
    fn entry(
        &mut self,
        map: &MapPlan,
        reader: &mut Reader<'a>,
        column: &mut Column,
        row: usize,
    ) -> Result<(), Fault> {
        let spot = Spot { column: std::ptr::from_ref(column), row };
        let bytes = reader.bytes()?;
        let Column { nulls, values: Values::Map { offsets, keys, values }, .. } = column else {
            return Err(mistake());
        };
        let end = open_offsets(offsets, nulls, row);
        if self.lost.contains(&bytes.as_ptr()) {
            return Ok(());
        }
        let cost = match &map.value {
            Item::Message(plan) => 1 + plan.leaves,
            _ => 1,
        };
        self.meter.elements(cost)?;
        let mut key = match &map.key_default {
            Absent::Bytes(_) => Key::Text(&[]),
            _ => Key::Number(0),
        };
        let mut entry = Reader::new(bytes);
        while !entry.is_empty() {
            let tag = entry.tag()?;
            match (tag >> 3, tag & 7) {
                (1, wire) if wire == map.key.wire() => {
                    if wire == BYTES {
                        key = Key::Text(entry.clone().bytes()?);
                    }
                    self.scalar(&map.key, &mut entry, keys, end)?;
                }
                (2, wire) if wire == map.value_wire() => {
                    self.item(&map.value, tag, &mut entry, values, end)?;
                }
                (1 | 2, wire) => return Err(Fault::Wire(wire)),
                _ => entry.skip(tag)?,
            }
        }
        if keys.len() <= end {
            self.absent(&map.key_default, keys, end)?;
        }
        if values.len() <= end {
            match &map.value_default {
                Some(default) => self.absent(default, values, end)?,
                None => self.sub_message(&map.value, &[], values, end)?,
            }
        }
        if let Key::Number(number) = &mut key {
            *number = match &keys.values {
                Values::Bool(keys) => u64::from(keys.get(end).copied().unwrap_or_default()),
                Values::Int32(keys) => last_as_u64(keys, end, |key| i64::from(key).cast_unsigned()),
                Values::Int64(keys) => last_as_u64(keys, end, i64::cast_unsigned),
                Values::UInt32(keys) => last_as_u64(keys, end, u64::from),
                Values::UInt64(keys) => last_as_u64(keys, end, |key| key),
                _ => return Err(mistake()),
            };
        }
        self.entries.push(Entry { spot, key, at: bytes.as_ptr() });
        Ok(end_offsets(offsets, end + 1)?)
    }

    /// Finds the entries whose key comes again later in the same map; whether there are any.
    fn find_lost(&mut self) -> bool {
        let Self { entries, lost, .. } = self;
        if entries.len() <= COMPARED_MAX {
            for (at, entry) in entries.iter().enumerate() {
                let mut later = entries.iter().skip(at + 1);
                if later.any(|later| later.key == entry.key && later.spot == entry.spot) {
                    lost.insert(entry.at);
                }
            }
        } else {
            let mut last = HashMap::with_capacity(entries.len());
            for entry in entries {
                lost.extend(last.insert((entry.spot, entry.key), entry.at));
            }
        }
        !lost.is_empty()
    }
}

fn last_as_u64<T: Copy>(keys: &[T], at: usize, convert: fn(T) -> u64) -> u64 {
    keys.get(at).copied().map_or(0, convert)
}

/// The fields of a struct that is not null in `row`, and whether it was not there before.
#[inline(always)]
fn open_struct(column: &mut Column, row: usize) -> Option<(bool, &mut [Column])> {
    let Column { nulls, values: Values::Struct { len, fields }, .. } = column else { return None };
    let is_first = *len <= row;
    if is_first {
        if *len < row {
            nulls.add(*len, row);
        }
        *len = row + 1;
    }
    Some((is_first, fields))
}

/// Makes `row` of a list or map there, empty at first; where it ends.
#[inline(always)]
fn open_offsets(offsets: &mut Vec<i32>, nulls: &mut Nulls, row: usize) -> usize {
    let is_first = offsets.len() <= row + 1;
    if is_first {
        pad_offsets(offsets, nulls, row);
    }
    let end = offsets.last().copied().unwrap_or(0);
    if is_first {
        offsets.push(end);
    }
    // An offset is never negative.
    usize::try_from(end).unwrap_or(0)
}

#[inline(always)]
fn end_offsets(offsets: &mut [i32], end: usize) -> Result<(), Reject> {
    match (i32::try_from(end), offsets.last_mut()) {
        (Ok(end), Some(last)) => *last = end,
        _ => return Err(Reject::limit("2^31 list items in one batch")),
    }
    Ok(())
}

/// Puts `value` into `row`.
#[inline(always)]
fn put<T: Clone + Default>(values: &mut Vec<T>, nulls: &mut Nulls, row: usize, value: T) {
    match values.get_mut(row) {
        None => {
            push(values, nulls, row, value);
        }
        Some(before) => *before = value,
    }
}

#[inline(always)]
fn put_bytes(bytes: &mut Bytes, nulls: &mut Nulls, row: usize, value: &[u8]) -> Result<(), Fault> {
    if bytes.offsets.len() <= row + 1 {
        pad_offsets(&mut bytes.offsets, nulls, row);
    } else {
        bytes.offsets.pop();
        let end = bytes.offsets.last().copied().unwrap_or(0);
        bytes.data.truncate(usize::try_from(end).unwrap_or(0));
    }
    Ok(bytes.push(value)?)
}

/// Puts an integer into a column for integers or floats that holds it exactly.
fn put_integer(
    value: i128,
    values: &mut Values,
    nulls: &mut Nulls,
    row: usize,
) -> Result<(), Fault> {
    let range = |_| Fault::Range("the integers of its column");
    match values {
        Values::Int32(values) => put(values, nulls, row, i32::try_from(value).map_err(range)?),
        Values::Int64(values) => put(values, nulls, row, i64::try_from(value).map_err(range)?),
        Values::UInt32(values) => put(values, nulls, row, u32::try_from(value).map_err(range)?),
        Values::UInt64(values) => put(values, nulls, row, u64::try_from(value).map_err(range)?),
        Values::Float64(values) if value.unsigned_abs() <= u128::from(EXACT_MAX) => {
            put(values, nulls, row, value as f64)
        }
        Values::Float64(_) => return Err(Fault::Range("the integers that a Float64 holds")),
        _ => return Err(mistake()),
    }
    Ok(())
}

/// Puts a value into a column that was made wider for another writer.
fn widened(
    scalar: &Scalar,
    reader: &mut Reader<'_>,
    values: &mut Values,
    nulls: &mut Nulls,
    row: usize,
) -> Result<(), Fault> {
    let integer = match scalar {
        Scalar::Int32 => i128::from(reader.int32()?),
        Scalar::SInt32 => i128::from(reader.sint32()?),
        Scalar::SFixed32 => i128::from(i32::from_le_bytes(reader.fixed()?)),
        Scalar::Int64 => i128::from(reader.varint()?.cast_signed()),
        Scalar::SInt64 => i128::from(reader.sint64()?),
        Scalar::SFixed64 => i128::from(i64::from_le_bytes(reader.fixed()?)),
        Scalar::UInt32 => i128::from(reader.uint32()?),
        Scalar::Fixed32 => i128::from(u32::from_le_bytes(reader.fixed()?)),
        Scalar::UInt64 => i128::from(reader.varint()?),
        Scalar::Fixed64 => i128::from(u64::from_le_bytes(reader.fixed()?)),
        Scalar::Float => {
            let Values::Float64(values) = values else { return Err(mistake()) };
            let value = f64::from(f32::from_le_bytes(reader.fixed()?));
            put(values, nulls, row, value);
            return Ok(());
        }
        _ => return Err(mistake()),
    };
    put_integer(integer, values, nulls, row)
}

/// Reads a timestamp or duration over what was there before.
fn seconds_and_nanos(bytes: &[u8], time: &mut (i128, i128)) -> Result<(), Fault> {
    let mut reader = Reader::new(bytes);
    while !reader.is_empty() {
        let tag = reader.tag()?;
        match (tag >> 3, tag & 7) {
            (1, 0) => time.0 = i128::from(reader.varint()?.cast_signed()),
            (2, 0) => time.1 = i128::from(reader.int32()?),
            (1 | 2, wire) => return Err(Fault::Wire(wire)),
            _ => reader.skip(tag)?,
        }
    }
    Ok(())
}

/// The plan and the column were made from the same shape, so they fit.
#[cold]
fn mistake() -> Fault {
    Reject::schema("a column of another type than its plan's").into()
}
