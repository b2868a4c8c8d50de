//! How the messages of one writer go into a topic's columns: tables, made once, that each record only looks up.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Fields};
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind as FieldKind, MessageDescriptor, Value};

use super::reader::{BYTES, FIXED32, FIXED64, GROUP, VARINT};
use super::shape::{
    JsonRoot, Kind, Known, StructShape, duration_type, is_text_or_bytes, leaves, pair, scalar_type,
    timestamp_type, unite_leaves,
};
use crate::decode::projection::Projection;
use crate::decode::reject::Reject;

/// Field numbers below this are looked up in a table, others searched for.
const DENSE_MAX: usize = 1_024;

/// Not among the fields.
const NONE: u32 = u32::MAX;

/// How a message goes into a struct.
#[derive(Debug)]
pub struct MessagePlan {
    /// Its full name, for errors.
    pub name: Box<str>,
    fields: Vec<FieldPlan>,
    dense: Box<[u32]>,
    sparse: HashMap<u32, u32>,
    /// What columns get where a message leaves their field out.
    pub defaults: Vec<(usize, Absent)>,
    /// The columns of each oneof.
    pub oneofs: Vec<Vec<usize>>,
    /// Columns that one row of it fills.
    pub leaves: usize,
}

/// How a field goes into a column.
#[derive(Debug)]
pub struct FieldPlan {
    /// Its name, for errors.
    pub name: Box<str>,
    /// Its number and preferred wire type, as they are on the wire.
    pub tag: u32,
    /// The place of its column in the struct; too large if there is none.
    pub column: usize,
    /// What it is.
    pub how: How,
    /// Its bit among the first 64 of the message's defaults; 0 if it is not among them.
    pub default_bit: u64,
    /// Setting it clears the other fields of this oneof.
    pub oneof: Option<usize>,
}

/// What a field is.
#[derive(Debug)]
pub enum How {
    /// Nobody wants it.
    Skip,
    /// Its type is another one than its column's: the record's other fields are kept, and this is said of it.
    Misfit(Box<Reject>),
    /// At most one value.
    One(Item),
    /// At most one value, in a list: other writers have any number of them.
    Only(Item),
    /// Any number of them; those of a fixed size or varints may be packed.
    List(Item),
    /// A map.
    Map(Box<MapPlan>),
}

/// How a map goes into its column.
#[derive(Debug)]
pub struct MapPlan {
    /// Its keys.
    pub key: Scalar,
    /// A key that an entry leaves out.
    pub key_default: Absent,
    /// Its values.
    pub value: Item,
    /// A value that an entry leaves out, unless it is a message: then it is an empty one.
    pub value_default: Option<Absent>,
}

/// One value.
#[derive(Debug)]
pub enum Item {
    /// No message.
    Scalar(Scalar),
    /// A message with columns.
    Message(Box<MessagePlan>),
    /// A message without: its bytes.
    Opaque,
    /// A message without fields: that it is there.
    Present,
    /// `google.protobuf.Timestamp`.
    Timestamp,
    /// `google.protobuf.Duration`.
    Duration,
    /// A scalar in a message, and what it is where that is empty.
    Wrapper(Scalar, Absent),
    /// JSON text.
    Json(JsonRoot),
    /// A list of texts in a message.
    FieldMask,
}

/// A value on the wire.
#[derive(Clone, Debug)]
pub enum Scalar {
    /// `bool`.
    Bool,
    /// `int32`.
    Int32,
    /// `sint32`.
    SInt32,
    /// `sfixed32`.
    SFixed32,
    /// `int64`.
    Int64,
    /// `sint64`.
    SInt64,
    /// `sfixed64`.
    SFixed64,
    /// `uint32`.
    UInt32,
    /// `fixed32`.
    Fixed32,
    /// `uint64`.
    UInt64,
    /// `fixed64`.
    Fixed64,
    /// `float`.
    Float,
    /// `double`.
    Double,
    /// `string`.
    String,
    /// `bytes`.
    Bytes,
    /// An enum.
    Enum(Arc<EnumNames>),
}

/// A value that is not on the wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Absent {
    /// `bool`.
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    UInt(u64),
    /// `float`.
    Float(f32),
    /// `double`.
    Double(f64),
    /// Text or bytes.
    Bytes(Box<[u8]>),
    /// A list or a map.
    Empty,
    /// The only item of a list.
    Only(Box<Absent>),
}

/// The names of an enum's numbers.
#[derive(Debug)]
pub struct EnumNames {
    dense: Box<[Option<Box<str>>]>,
    sparse: HashMap<i32, Box<str>>,
}

impl EnumNames {
    fn new(descriptor: &EnumDescriptor) -> Self {
        let mut dense = Vec::new();
        let mut sparse = HashMap::new();
        for value in descriptor.values() {
            // The first of several names for a number is the one that serializers of JSON write.
            match usize::try_from(value.number()) {
                Ok(number) if number < DENSE_MAX => {
                    if dense.len() <= number {
                        dense.resize(number + 1, None);
                    }
                    if let Some(name @ None) = dense.get_mut(number) {
                        *name = Some(value.name().into());
                    }
                }
                _ => {
                    sparse.entry(value.number()).or_insert_with(|| value.name().into());
                }
            }
        }
        Self { dense: dense.into(), sparse }
    }

    /// The name of `number`.
    #[inline]
    pub fn get(&self, number: i32) -> Option<&str> {
        let dense = usize::try_from(number).ok().and_then(|number| self.dense.get(number));
        match dense {
            Some(name) => name.as_deref(),
            None => self.sparse.get(&number).map(|name| &**name),
        }
    }
}

impl Scalar {
    fn of(kind: &FieldKind) -> Option<Self> {
        Some(match kind {
            FieldKind::Bool => Self::Bool,
            FieldKind::Int32 => Self::Int32,
            FieldKind::Sint32 => Self::SInt32,
            FieldKind::Sfixed32 => Self::SFixed32,
            FieldKind::Int64 => Self::Int64,
            FieldKind::Sint64 => Self::SInt64,
            FieldKind::Sfixed64 => Self::SFixed64,
            FieldKind::Uint32 => Self::UInt32,
            FieldKind::Fixed32 => Self::Fixed32,
            FieldKind::Uint64 => Self::UInt64,
            FieldKind::Fixed64 => Self::Fixed64,
            FieldKind::Float => Self::Float,
            FieldKind::Double => Self::Double,
            FieldKind::String => Self::String,
            FieldKind::Bytes => Self::Bytes,
            FieldKind::Enum(descriptor) => Self::Enum(Arc::new(EnumNames::new(descriptor))),
            FieldKind::Message(_) => return None,
        })
    }

    /// Its wire type, where it is not packed.
    pub fn wire(&self) -> u32 {
        match self {
            Self::Double | Self::Fixed64 | Self::SFixed64 => FIXED64,
            Self::Float | Self::Fixed32 | Self::SFixed32 => FIXED32,
            Self::String | Self::Bytes => BYTES,
            _ => VARINT,
        }
    }

    fn default(&self, value: &Value) -> Absent {
        match (self, value) {
            (Self::Enum(names), Value::EnumNumber(number)) => {
                let name = names.get(*number).map(str::to_owned);
                Absent::Bytes(name.unwrap_or_else(|| number.to_string()).into_bytes().into())
            }
            (_, Value::Bool(value)) => Absent::Bool(*value),
            (_, Value::I32(value)) => Absent::Int(i64::from(*value)),
            (_, Value::I64(value)) => Absent::Int(*value),
            (_, Value::U32(value)) => Absent::UInt(u64::from(*value)),
            (_, Value::U64(value)) => Absent::UInt(*value),
            (_, Value::F32(value)) => Absent::Float(*value),
            (_, Value::F64(value)) => Absent::Double(*value),
            (_, Value::String(value)) => Absent::Bytes(value.as_bytes().into()),
            (_, Value::Bytes(value)) => Absent::Bytes(value.to_vec().into()),
            _ => Absent::Bytes(Box::default()),
        }
    }
}

impl Item {
    fn wire(&self) -> u32 {
        match self {
            Self::Scalar(scalar) => scalar.wire(),
            _ => BYTES,
        }
    }
}

impl MapPlan {
    /// The wire type of its values.
    #[inline]
    pub fn value_wire(&self) -> u32 {
        self.value.wire()
    }
}

impl FieldPlan {
    /// Whether `wire` is a wire type that its values may have.
    #[inline(always)]
    pub fn allows(&self, wire: u32) -> bool {
        wire == self.tag & 7
            || wire == BYTES
                && matches!(&self.how, How::List(Item::Scalar(scalar)) if scalar.wire() != BYTES)
    }
}

impl MessagePlan {
    /// The field of this number; the search begins at `guess`, which is then behind it.
    #[inline(always)]
    pub fn field(&self, number: u32, guess: &mut usize) -> Option<&FieldPlan> {
        if let Some(field) = self.fields.get(*guess)
            && field.tag >> 3 == number
        {
            *guess += 1;
            return Some(field);
        }
        let at = match usize::try_from(number).ok().and_then(|number| self.dense.get(number)) {
            Some(at) => *at,
            None => *self.sparse.get(&number)?,
        };
        let at = usize::try_from(at).ok()?;
        let field = self.fields.get(at)?;
        *guess = at + 1;
        Some(field)
    }

    /// The plan for `message`, whose columns have the shape of `shape` as far as `projection` wants them. `label` is
    /// what errors call its schema.
    pub fn new(
        message: &MessageDescriptor,
        shape: &StructShape,
        projection: &Projection,
        label: &str,
    ) -> Self {
        let arrow_fields = Fields::from(shape.arrow_fields(projection));
        let places: HashMap<&str, usize> =
            arrow_fields.iter().enumerate().map(|(at, it)| (it.name().as_str(), at)).collect();
        let mut plan = Self {
            name: message.full_name().into(),
            fields: Vec::new(),
            dense: Box::default(),
            sparse: HashMap::new(),
            defaults: Vec::new(),
            oneofs: Vec::new(),
            leaves: leaves(&arrow_fields),
        };
        let mut oneofs: HashMap<String, usize> = HashMap::new();
        let mut dense = Vec::new();
        // By number, the order in which serializers write them.
        for field in message.fields() {
            let (how, column) = match (places.get(field.name()), shape.get(field.name())) {
                (Some(column), Some(kind)) => {
                    let below = projection.field(field.name()).unwrap_or(&Projection::All);
                    match how(&field, kind, below, label) {
                        Some(how) => (how, *column),
                        None => (How::Misfit(Box::new(misfit(&field, kind, label))), usize::MAX),
                    }
                }
                _ => (How::Skip, usize::MAX),
            };
            let wire = match &how {
                _ if field.is_group() => GROUP,
                How::One(item) | How::Only(item) | How::List(item) => item.wire(),
                How::Map(_) => BYTES,
                How::Skip | How::Misfit(_) => {
                    Scalar::of(&field.kind()).map_or(BYTES, |scalar| scalar.wire())
                }
            };
            let default = match &how {
                How::Skip | How::Misfit(_) => None,
                how => default(&field, how),
            };
            let mut default_bit = 0;
            if let Some(default) = default {
                let at = u32::try_from(plan.defaults.len()).unwrap_or(u32::MAX);
                default_bit = 1_u64.checked_shl(at).unwrap_or(0);
                plan.defaults.push((column, default));
            }
            // An `optional` field of proto3 is a oneof with nothing else in it.
            let oneof = field.containing_oneof().filter(|oneof| oneof.fields().len() > 1);
            let oneof = oneof.map(|oneof| {
                *oneofs.entry(oneof.name().to_owned()).or_insert_with(|| {
                    plan.oneofs.push(Vec::new());
                    plan.oneofs.len() - 1
                })
            });
            if let Some(columns) = oneof.and_then(|oneof| plan.oneofs.get_mut(oneof))
                && column != usize::MAX
            {
                columns.push(column);
            }
            let at = u32::try_from(plan.fields.len()).unwrap_or(NONE);
            match usize::try_from(field.number()) {
                Ok(number) if number < DENSE_MAX => {
                    if dense.len() <= number {
                        dense.resize(number + 1, NONE);
                    }
                    if let Some(place) = dense.get_mut(number) {
                        *place = at;
                    }
                }
                _ => {
                    plan.sparse.insert(field.number(), at);
                }
            }
            plan.fields.push(FieldPlan {
                name: field.name().into(),
                tag: field.number() << 3 | wire,
                column,
                how,
                default_bit,
                oneof,
            });
        }
        plan.dense = dense.into();
        plan
    }
}

fn how(field: &FieldDescriptor, kind: &Kind, projection: &Projection, label: &str) -> Option<How> {
    match (pair(field), kind) {
        (Some((key, value)), Kind::Map(key_type, value_kind)) => {
            if scalar_type(&key.kind())? != *key_type {
                return None;
            }
            let key_scalar = Scalar::of(&key.kind())?;
            Some(How::Map(Box::new(MapPlan {
                key_default: key_scalar.default(&key.default_value()),
                key: key_scalar,
                value_default: Scalar::of(&value.kind())
                    .map(|scalar| scalar.default(&value.default_value())),
                value: item(&value.kind(), value_kind, &Projection::All, label)?,
            })))
        }
        (None, Kind::List(kind)) if field.is_list() => {
            item(&field.kind(), kind, projection, label).map(How::List)
        }
        (None, kind) if !field.is_list() => {
            match (item(&field.kind(), kind, projection, label), kind) {
                (Some(item), _) => Some(How::One(item)),
                (None, Kind::List(kind)) => {
                    item(&field.kind(), kind, projection, label).map(How::Only)
                }
                (None, _) => None,
            }
        }
        _ => None,
    }
}

fn item(kind: &FieldKind, column: &Kind, projection: &Projection, label: &str) -> Option<Item> {
    let scalar = |kind: &FieldKind| {
        let Kind::Leaf(data_type) = column else { return None };
        let united = unite_leaves(data_type, &scalar_type(kind)?)?;
        (united == *data_type).then(|| Scalar::of(kind)).flatten()
    };
    let FieldKind::Message(message) = kind else {
        return scalar(kind).map(Item::Scalar);
    };
    match (Known::of(message), column) {
        (Some(Known::Timestamp), Kind::Leaf(it)) if *it == timestamp_type() => {
            Some(Item::Timestamp)
        }
        (Some(Known::Duration), Kind::Leaf(it)) if *it == duration_type() => Some(Item::Duration),
        (Some(Known::Wrapper(kind)), _) => {
            let scalar = scalar(&kind)?;
            let default = scalar.default(&kind.default_value());
            Some(Item::Wrapper(scalar, default))
        }
        (Some(Known::Json(root)), Kind::Leaf(it)) if is_text_or_bytes(it) => Some(Item::Json(root)),
        (Some(Known::FieldMask), Kind::List(it)) if **it == Kind::Leaf(DataType::Utf8) => {
            Some(Item::FieldMask)
        }
        (None, Kind::Leaf(DataType::Binary)) => Some(Item::Opaque),
        (None, Kind::Struct(shape)) if shape.fields.is_empty() => Some(Item::Present),
        (None, Kind::Struct(shape)) => {
            Some(Item::Message(Box::new(MessagePlan::new(message, shape, projection, label))))
        }
        _ => None,
    }
}

/// What the field is where a message leaves it out, unless that is null.
fn default(field: &FieldDescriptor, how: &How) -> Option<Absent> {
    let scalar = match how {
        How::List(_) | How::Map(_) => return Some(Absent::Empty),
        How::One(Item::Scalar(scalar)) | How::Only(Item::Scalar(scalar)) => scalar,
        _ => return None,
    };
    let is_explicit = field.field_descriptor_proto().default_value.is_some();
    let is_alone = field.containing_oneof().is_none();
    if !is_alone || (!is_explicit && field.supports_presence()) {
        return None;
    }
    let default = scalar.default(&field.default_value());
    Some(match how {
        How::Only(_) => Absent::Only(Box::new(default)),
        _ => default,
    })
}

fn misfit(field: &FieldDescriptor, kind: &Kind, label: &str) -> Reject {
    let cardinality = if field.is_map() {
        "a map"
    } else if field.is_list() {
        "repeated"
    } else {
        "single"
    };
    let column = kind.data_type(&Projection::All).map_or_else(String::new, |it| it.to_string());
    Reject::schema(format!(
        "field '{}' of {} is {cardinality} {:?} in {label}, which does not fit its column of type {column}",
        field.name(),
        field.parent_message().full_name(),
        field.kind(),
    ))
}
