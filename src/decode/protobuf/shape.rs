//! The columns of a topic's messages: what all writers' schemas seen so far ask for. They only grow and widen.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use prost_reflect::{FieldDescriptor, Kind as FieldKind, MessageDescriptor};

use crate::decode::column::{LEVELS_MAX, list_of, map_of};
use crate::decode::projection::Projection;
use crate::decode::unite::unite;

/// The level of the deepest message that gets columns; what is deeper stays bytes. Below it are its fields, at most a map
/// of lists.
const MESSAGE_LEVEL_MAX: usize = LEVELS_MAX - 4;

/// The level of a topic's messages. Where there are several types, each is a struct in the struct of all.
const ROOT_LEVEL: usize = 2;

/// Levels from a message to one in it, which is in a list or may be later.
const MESSAGE_LEVELS: usize = 2;

/// The same where it is the value of a map.
const VALUE_LEVELS: usize = 3;

/// Columns of a topic, all levels together. Once there are as many, fields that are messages stay bytes.
const COLUMNS_MAX: usize = 4_096;

/// What a field becomes.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A type without any below it. Binary is also what messages become that cannot have columns.
    Leaf(DataType),
    /// A message. One without fields becomes a Boolean that is true where it is present.
    Struct(StructShape),
    /// A repeated field, or a field mask.
    List(Box<Kind>),
    /// A map: the type of its keys, and what its values become.
    Map(DataType, Box<Kind>),
}

/// The fields of a message, in the order in which they were seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StructShape {
    /// Name and kind.
    pub fields: Vec<(Box<str>, Kind)>,
    index: HashMap<Box<str>, usize>,
}

/// Messages that have an Arrow type of their own.
#[derive(Clone, Debug)]
pub enum Known {
    /// `google.protobuf.Timestamp`.
    Timestamp,
    /// `google.protobuf.Duration`.
    Duration,
    /// `google.protobuf.Int32Value` and the like, with the kind of the value.
    Wrapper(FieldKind),
    /// `google.protobuf.Struct`, `Value` and `ListValue`.
    Json(JsonRoot),
    /// `google.protobuf.FieldMask`.
    FieldMask,
}

/// Which message holds JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonRoot {
    /// `google.protobuf.Struct`.
    Object,
    /// `google.protobuf.Value`.
    Value,
    /// `google.protobuf.ListValue`.
    List,
}

impl Known {
    /// Whether `message` is one of them.
    pub fn of(message: &MessageDescriptor) -> Option<Self> {
        Some(match message.full_name().strip_prefix("google.protobuf.")? {
            "Timestamp" => Self::Timestamp,
            "Duration" => Self::Duration,
            "FieldMask" => Self::FieldMask,
            "Struct" => Self::Json(JsonRoot::Object),
            "Value" => Self::Json(JsonRoot::Value),
            "ListValue" => Self::Json(JsonRoot::List),
            "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value"
            | "UInt32Value" | "BoolValue" | "StringValue" | "BytesValue" => {
                Self::Wrapper(message.get_field(1)?.kind())
            }
            _ => return None,
        })
    }
}

/// What a scalar becomes; `None` for a message.
pub fn scalar_type(kind: &FieldKind) -> Option<DataType> {
    Some(match kind {
        FieldKind::Bool => DataType::Boolean,
        FieldKind::Int32 | FieldKind::Sint32 | FieldKind::Sfixed32 => DataType::Int32,
        FieldKind::Int64 | FieldKind::Sint64 | FieldKind::Sfixed64 => DataType::Int64,
        FieldKind::Uint32 | FieldKind::Fixed32 => DataType::UInt32,
        FieldKind::Uint64 | FieldKind::Fixed64 => DataType::UInt64,
        FieldKind::Float => DataType::Float32,
        FieldKind::Double => DataType::Float64,
        FieldKind::String | FieldKind::Enum(_) => DataType::Utf8,
        FieldKind::Bytes => DataType::Binary,
        FieldKind::Message(_) => return None,
    })
}

/// What timestamps become.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

/// What durations become.
pub fn duration_type() -> DataType {
    DataType::Duration(TimeUnit::Nanosecond)
}

/// The fields of a message as its text has them; the descriptor gives them by number.
pub fn declared(message: &MessageDescriptor) -> Vec<FieldDescriptor> {
    let mut fields: Vec<FieldDescriptor> = message.fields().collect();
    fields.sort_by_key(|field| field.path().last().copied());
    fields
}

impl Kind {
    /// The type of the part that `projection` wants; `None`: nothing of it.
    pub fn data_type(&self, projection: &Projection) -> Option<DataType> {
        match self {
            Self::Leaf(data_type) => Some(data_type.clone()),
            Self::Struct(shape) if shape.fields.is_empty() => Some(DataType::Boolean),
            Self::Struct(shape) => {
                let fields = shape.arrow_fields(projection);
                (!fields.is_empty()).then(|| DataType::Struct(fields.into()))
            }
            Self::List(item) => item.data_type(projection).map(list_of),
            // A projection names fields, and a map has none: all of it, or nothing.
            Self::Map(key, value) => Some(map_of(key.clone(), value.data_type(&Projection::All)?)),
        }
    }

    fn columns(&self) -> usize {
        match self {
            Self::Leaf(_) => 1,
            Self::Struct(shape) => 1 + shape.columns(),
            Self::List(item) | Self::Map(_, item) => 1 + item.columns(),
        }
    }
}

impl StructShape {
    /// The fields that `projection` wants.
    pub fn arrow_fields(&self, projection: &Projection) -> Vec<Field> {
        self.fields
            .iter()
            .filter_map(|(name, kind)| {
                let data_type = kind.data_type(projection.field(name)?)?;
                Some(Field::new(&**name, data_type, true))
            })
            .collect()
    }

    /// The kind of the field `name`.
    pub fn get(&self, name: &str) -> Option<&Kind> {
        self.index.get(name).and_then(|at| self.fields.get(*at)).map(|(_, kind)| kind)
    }

    /// Columns on all levels.
    pub fn columns(&self) -> usize {
        self.fields.iter().map(|(_, kind)| kind.columns()).sum()
    }

    fn push(&mut self, name: &str, kind: Kind) {
        self.index.insert(name.into(), self.fields.len());
        self.fields.push((name.into(), kind));
    }
}

/// Columns beneath a struct that a null in it fills too.
pub fn leaves(fields: &Fields) -> usize {
    fields
        .iter()
        .map(|field| match field.data_type() {
            DataType::Struct(fields) => 1 + leaves(fields),
            _ => 1,
        })
        .sum()
}

/// Adds to the shape of a topic what a writer's message needs.
pub struct Learner {
    /// Full names of the messages around the one at hand.
    around: Vec<String>,
    /// The level of the one at hand.
    level: usize,
    /// Columns that may still be added.
    room: usize,
    /// Whether anything was added or widened.
    pub changed: bool,
}

impl Learner {
    /// For a topic that has so many columns.
    pub fn new(columns: usize) -> Self {
        Self {
            around: Vec::new(),
            level: ROOT_LEVEL,
            room: COLUMNS_MAX.saturating_sub(columns),
            changed: false,
        }
    }

    /// Adds what `message` needs.
    pub fn message(&mut self, shape: &mut StructShape, message: &MessageDescriptor) {
        self.around.push(message.full_name().to_owned());
        for field in declared(message) {
            let known = shape.index.get(field.name()).and_then(|at| shape.fields.get_mut(*at));
            match known {
                Some((_, kind)) => self.widen(kind, &field),
                None => {
                    let kind = self.kind(&field);
                    shape.push(field.name(), kind);
                    self.changed = true;
                }
            }
        }
        self.around.pop();
    }

    fn kind(&mut self, field: &FieldDescriptor) -> Kind {
        self.room = self.room.saturating_sub(1);
        match pair(field) {
            Some((key, value)) => {
                let key = scalar_type(&key.kind()).unwrap_or(DataType::Utf8);
                Kind::Map(key, Box::new(self.item(&value.kind(), VALUE_LEVELS)))
            }
            None if field.is_list() => {
                Kind::List(Box::new(self.item(&field.kind(), MESSAGE_LEVELS)))
            }
            None => self.item(&field.kind(), MESSAGE_LEVELS),
        }
    }

    /// What a single value becomes, so many `levels` below the message at hand.
    fn item(&mut self, kind: &FieldKind, levels: usize) -> Kind {
        let FieldKind::Message(message) = kind else {
            return Kind::Leaf(scalar_type(kind).unwrap_or(DataType::Binary));
        };
        match Known::of(message) {
            Some(Known::Timestamp) => Kind::Leaf(timestamp_type()),
            Some(Known::Duration) => Kind::Leaf(duration_type()),
            Some(Known::Wrapper(kind)) => self.item(&kind, levels),
            Some(Known::Json(_)) => Kind::Leaf(DataType::Utf8),
            Some(Known::FieldMask) => Kind::List(Box::new(Kind::Leaf(DataType::Utf8))),
            None if self.room == 0
                || self.level + levels > MESSAGE_LEVEL_MAX
                || self.around.iter().any(|around| around == message.full_name()) =>
            {
                Kind::Leaf(DataType::Binary)
            }
            None => {
                let mut shape = StructShape::default();
                self.level += levels;
                self.message(&mut shape, message);
                self.level -= levels;
                Kind::Struct(shape)
            }
        }
    }

    /// What does not unite stays as it is: the plan of the writer says so then.
    fn widen(&mut self, known: &mut Kind, field: &FieldDescriptor) {
        let kind = field.kind();
        match (known, pair(field)) {
            (Kind::Map(_, known), Some((_, value))) => {
                self.widen_item(known, &value.kind(), VALUE_LEVELS);
            }
            (_, Some(_)) => {}
            (Kind::List(known), None) if field.is_list() => {
                self.widen_item(known, &kind, MESSAGE_LEVELS)
            }
            (known, None) if field.is_list() => {
                if unites(known, &kind) {
                    let mut item = std::mem::replace(known, Kind::Leaf(DataType::Binary));
                    self.widen_item(&mut item, &kind, MESSAGE_LEVELS);
                    *known = Kind::List(Box::new(item));
                    self.room = self.room.saturating_sub(1);
                    self.changed = true;
                }
            }
            (Kind::List(known), None) if !is_field_mask(&kind) => {
                self.widen_item(known, &kind, MESSAGE_LEVELS)
            }
            (known, None) => self.widen_item(known, &kind, MESSAGE_LEVELS),
        }
    }

    fn widen_item(&mut self, known: &mut Kind, kind: &FieldKind, levels: usize) {
        let wrapped = match kind {
            FieldKind::Message(message) => Known::of(message),
            _ => None,
        };
        match (known, wrapped, kind) {
            (known, Some(Known::Wrapper(kind)), _) => self.widen_item(known, &kind, levels),
            (Kind::Struct(shape), None, FieldKind::Message(message)) => {
                self.level += levels;
                self.message(shape, message);
                self.level -= levels;
            }
            (Kind::Leaf(known), None, kind) => {
                let united = scalar_type(kind).and_then(|new| unite_leaves(known, &new));
                if let Some(united) = united.filter(|united| united != known) {
                    *known = united;
                    self.changed = true;
                }
            }
            _ => {}
        }
    }
}

/// The type that holds all values of two that have no types below them; `None` if there is none.
pub fn unite_leaves(known: &DataType, new: &DataType) -> Option<DataType> {
    match (known, new) {
        // On the wire they are the same; all text is bytes, but not all bytes are text.
        (DataType::Utf8, DataType::Binary) | (DataType::Binary, DataType::Utf8) => {
            Some(DataType::Binary)
        }
        (known, new) => unite(known, new),
    }
}

/// Whether single values of `kind` can be in a column of what single values became so far.
fn unites(known: &Kind, kind: &FieldKind) -> bool {
    let FieldKind::Message(message) = kind else {
        let Kind::Leaf(known) = known else { return false };
        return scalar_type(kind).and_then(|new| unite_leaves(known, &new)).is_some();
    };
    match (Known::of(message), known) {
        (Some(Known::Timestamp), known) => *known == Kind::Leaf(timestamp_type()),
        (Some(Known::Duration), known) => *known == Kind::Leaf(duration_type()),
        (Some(Known::Wrapper(kind)), known) => unites(known, &kind),
        (Some(Known::Json(_)), Kind::Leaf(known)) => is_text_or_bytes(known),
        (None, Kind::Leaf(known)) => *known == DataType::Binary,
        (None, Kind::Struct(_)) => true,
        _ => false,
    }
}

/// Whether JSON text can be in a column of this type.
pub fn is_text_or_bytes(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::Binary)
}

/// A single one is a list already.
fn is_field_mask(kind: &FieldKind) -> bool {
    match kind {
        FieldKind::Message(message) => matches!(Known::of(message), Some(Known::FieldMask)),
        _ => false,
    }
}

/// The key and value of a map.
pub fn pair(field: &FieldDescriptor) -> Option<(FieldDescriptor, FieldDescriptor)> {
    match field.kind() {
        FieldKind::Message(entry) if field.is_map() => {
            Some((entry.get_field(1)?, entry.get_field(2)?))
        }
        _ => None,
    }
}
