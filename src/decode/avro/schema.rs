//! [`Schema`]: an Avro schema with its names resolved, and the Arrow type that follows from it.
//!
//! Avro 1.12. Types are nodes in one list; a type that is used in several places is one node. As a type cannot contain
//! itself here, the nodes form no circle, and everything that walks them ends.

use std::collections::HashMap;
use std::fmt;

use arrow::datatypes::{DataType, Field as ArrowField, IntervalUnit, TimeUnit};
use serde_json::{Map, Value as Json};

use super::super::column::{LEVELS_MAX, levels, list_of, map_of};

/// Columns of one schema at most, all that are nested included: named types can be used many times, so that a short
/// text describes more columns than there is memory for.
const COLUMNS_MAX: usize = 10_000;

/// A `fixed` beyond this size becomes Binary: in a FixedSizeBinary column each null costs as much as a value.
const FIXED_SIZE_MAX: usize = 4_096;

/// An Avro schema.
#[derive(Debug)]
pub struct Schema {
    nodes: Vec<Node>,
    /// The type of a whole value.
    pub root: NodeId,
}

/// One type of a [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(usize);

/// A type.
#[derive(Debug)]
pub struct Node {
    /// What its bytes are.
    pub kind: Kind,
    /// What they mean. One that is unknown or does not fit the type is ignored, as the specification says.
    pub logical: Option<Logical>,
}

/// Avro's types.
#[derive(Debug)]
pub enum Kind {
    /// Nothing.
    Null,
    /// One byte, 0 or 1.
    Boolean,
    /// A zig-zag varint of 32 bits.
    Int,
    /// A zig-zag varint of 64 bits.
    Long,
    /// 4 bytes.
    Float,
    /// 8 bytes.
    Double,
    /// A length and bytes.
    Bytes,
    /// A length and UTF-8.
    String,
    /// Its fields one after the other.
    Record {
        /// Its name.
        name: Name,
        /// In order.
        fields: Vec<Field>,
    },
    /// The position of a symbol.
    Enum {
        /// Its name.
        name: Name,
        /// In order.
        symbols: Vec<Box<str>>,
        /// For readers: what stands for symbols they do not know.
        default: Option<Box<str>>,
    },
    /// As many bytes.
    Fixed {
        /// Its name.
        name: Name,
        /// In bytes.
        size: usize,
    },
    /// Blocks of items.
    Array(NodeId),
    /// Blocks of keys and values.
    Map(NodeId),
    /// The position of a type, and a value of it.
    Union(Vec<NodeId>),
}

/// The name of a record, enum or fixed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// With its namespace.
    pub full: Box<str>,
    /// Other full names that it goes by.
    pub aliases: Vec<Box<str>>,
}

/// A field of a record.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: Box<str>,
    /// Other names that it goes by.
    pub aliases: Vec<Box<str>>,
    /// Its type.
    pub node: NodeId,
    /// For readers: its value where the writer did not know it.
    pub default: Option<Json>,
}

/// What a type means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logical {
    /// An unscaled integer in two's complement, big-endian.
    Decimal {
        /// Digits.
        precision: u8,
        /// Of them behind the point.
        scale: i8,
    },
    /// RFC 4122, as text or 16 bytes.
    Uuid,
    /// Days since 1970.
    Date,
    /// Milliseconds since midnight.
    TimeMillis,
    /// Microseconds since midnight.
    TimeMicros,
    /// Since 1970: in UTC, or on a clock without a zone.
    Timestamp {
        /// Of what.
        unit: TimeUnit,
        /// In UTC.
        is_utc: bool,
    },
    /// Months, days, milliseconds.
    Duration,
}

/// Why a text is no schema that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaError(String);

impl SchemaError {
    /// One sentence without a final stop.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for SchemaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Name {
    /// Without its namespace.
    pub fn short(&self) -> &str {
        self.full.rsplit('.').next().unwrap_or(&self.full)
    }
}

impl Schema {
    /// Parses a schema. `references` are the texts of schemas that define types it uses; what one of them uses comes
    /// before it.
    ///
    /// # Errors
    /// It is not a schema, or one that no Arrow type can show; the message names the type.
    pub fn parse<'a>(
        text: &str,
        references: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, SchemaError> {
        let mut parser = Parser::default();
        let mut seen: Vec<&str> = Vec::new();
        for reference in references {
            // Two schemas may refer to the same third one.
            if !seen.contains(&reference) {
                parser.text(reference)?;
                seen.push(reference);
            }
        }
        let root = parser.text(text)?;
        Ok(Self { nodes: parser.nodes, root })
    }

    /// Whether its values are bytes, whatever these mean.
    pub fn is_bytes(&self) -> bool {
        matches!(self.node(self.root).kind, Kind::Bytes)
    }

    /// A type.
    pub fn node(&self, id: NodeId) -> &Node {
        // There is no other way to an id than a node of this list.
        static NULL: Node = Node { kind: Kind::Null, logical: None };
        self.nodes.get(id.0).unwrap_or(&NULL)
    }

    /// The type of a column with all values; a root that is no record is the field `value` of one. `None` if there is
    /// nothing to see in them: a record without fields, or only with nulls.
    ///
    /// # Errors
    /// Deeper than `depth_max`, or too many columns.
    pub fn data_type(&self, depth_max: usize) -> Result<Option<DataType>, SchemaError> {
        let mut columns = 0;
        let data_type = self.type_of(self.root, depth_max, &mut columns)?;
        let data_type = match self.node(self.root).kind {
            Kind::Record { .. } => data_type,
            _ => data_type.map(|data_type| {
                DataType::Struct(vec![ArrowField::new("value", data_type, true)].into())
            }),
        };
        match data_type.as_ref().map_or(0, levels) {
            0..=LEVELS_MAX => Ok(data_type),
            _ => Err(SchemaError::new("types nest too deeply")),
        }
    }

    fn type_of(
        &self,
        id: NodeId,
        depth_left: usize,
        columns: &mut usize,
    ) -> Result<Option<DataType>, SchemaError> {
        let Some(depth_left) = depth_left.checked_sub(1) else {
            return Err(SchemaError::new("types nest too deeply"));
        };
        *columns += 1;
        if *columns > COLUMNS_MAX {
            return Err(SchemaError::new(format!("more than {COLUMNS_MAX} columns")));
        }
        let node = self.node(id);
        let mut below = |id| self.type_of(id, depth_left, columns);
        if let Some(data_type) = node.logical.and_then(Logical::data_type) {
            return Ok(Some(data_type));
        }
        Ok(Some(match &node.kind {
            Kind::Null => return Ok(None),
            Kind::Boolean => DataType::Boolean,
            Kind::Int => DataType::Int32,
            Kind::Long => DataType::Int64,
            Kind::Float => DataType::Float32,
            Kind::Double => DataType::Float64,
            Kind::Bytes => DataType::Binary,
            Kind::String | Kind::Enum { .. } => DataType::Utf8,
            Kind::Fixed { size, .. } => match i32::try_from(*size) {
                // Arrow cannot count the rows of a column of empty values.
                Ok(width) if (1..=FIXED_SIZE_MAX).contains(size) => {
                    DataType::FixedSizeBinary(width)
                }
                _ => DataType::Binary,
            },
            Kind::Array(item) => match below(*item)? {
                Some(item) => list_of(item),
                None => return Ok(None),
            },
            Kind::Map(value) => match below(*value)? {
                Some(value) => map_of(DataType::Utf8, value),
                None => return Ok(None),
            },
            Kind::Record { fields, .. } => {
                let mut arrow = Vec::new();
                for field in fields {
                    if let Some(data_type) = below(field.node)? {
                        arrow.push(ArrowField::new(&*field.name, data_type, true));
                    }
                }
                if arrow.is_empty() {
                    return Ok(None);
                }
                DataType::Struct(arrow.into())
            }
            Kind::Union(branches) => match self.only_branch(branches) {
                Only::Nothing => return Ok(None),
                Only::One(branch) => return below(branch),
                Only::Several => {
                    let mut arrow = Vec::new();
                    for (branch, name) in branches.iter().zip(self.branch_names(branches)) {
                        if let Some(data_type) = below(*branch)? {
                            arrow.push(ArrowField::new(name, data_type, true));
                        }
                    }
                    if arrow.is_empty() {
                        return Ok(None);
                    }
                    DataType::Struct(arrow.into())
                }
            },
        }))
    }

    /// Whether a union is a nullable type or more than that.
    pub fn only_branch(&self, branches: &[NodeId]) -> Only {
        let mut other = branches.iter().filter(|id| !matches!(self.node(**id).kind, Kind::Null));
        match (other.next(), other.next()) {
            (None, _) => Only::Nothing,
            (Some(branch), None) => Only::One(*branch),
            _ => Only::Several,
        }
    }

    /// The names of a union's fields: those of its types, without the namespace where that is unique.
    pub fn branch_names(&self, branches: &[NodeId]) -> Vec<String> {
        let short: Vec<&str> = branches.iter().map(|id| self.short_name(*id)).collect();
        branches
            .iter()
            .zip(&short)
            .map(|(id, name)| match short.iter().filter(|other| *other == name).count() {
                1 => (*name).to_owned(),
                _ => self.full_name(*id).to_owned(),
            })
            .collect()
    }

    /// The name of a type without its namespace.
    pub fn short_name(&self, id: NodeId) -> &str {
        match &self.node(id).kind {
            Kind::Record { name, .. } | Kind::Enum { name, .. } | Kind::Fixed { name, .. } => {
                name.short()
            }
            kind => kind.label(),
        }
    }

    /// The name of a type.
    pub fn full_name(&self, id: NodeId) -> &str {
        match &self.node(id).kind {
            Kind::Record { name, .. } | Kind::Enum { name, .. } | Kind::Fixed { name, .. } => {
                &name.full
            }
            kind => kind.label(),
        }
    }
}

/// What a union has besides null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// Nothing.
    Nothing,
    /// One type.
    One(NodeId),
    /// Several types.
    Several,
}

impl Kind {
    /// As schemas call it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "boolean",
            Self::Int => "int",
            Self::Long => "long",
            Self::Float => "float",
            Self::Double => "double",
            Self::Bytes => "bytes",
            Self::String => "string",
            Self::Record { .. } => "record",
            Self::Enum { .. } => "enum",
            Self::Fixed { .. } => "fixed",
            Self::Array(_) => "array",
            Self::Map(_) => "map",
            Self::Union(_) => "union",
        }
    }
}

impl Logical {
    /// The type of its column.
    fn data_type(self) -> Option<DataType> {
        Some(match self {
            Self::Decimal { precision, scale } if precision <= 38 => {
                DataType::Decimal128(precision, scale)
            }
            Self::Decimal { precision, scale } => DataType::Decimal256(precision, scale),
            // Text, also for those of 16 bytes: both ways of writing them then share a column, join with the
            // same ids in JSON and Protobuf, and are readable where FixedSizeBinary is a blob.
            Self::Uuid => DataType::Utf8,
            Self::Date => DataType::Date32,
            Self::TimeMillis => DataType::Time32(TimeUnit::Millisecond),
            Self::TimeMicros => DataType::Time64(TimeUnit::Microsecond),
            Self::Timestamp { unit, is_utc } => {
                DataType::Timestamp(unit, is_utc.then(|| "UTC".into()))
            }
            Self::Duration => DataType::Interval(IntervalUnit::MonthDayNano),
        })
    }

    /// The logical type of an object, if it is known and fits `kind`.
    fn of(object: &Map<String, Json>, kind: &Kind) -> Result<Option<Self>, SchemaError> {
        let Some(name) = object.get("logicalType").and_then(Json::as_str) else { return Ok(None) };
        let timestamp = |unit, is_utc| Some(Self::Timestamp { unit, is_utc });
        Ok(match (name, kind) {
            ("decimal", Kind::Bytes) => Self::decimal(object, None)?,
            ("decimal", Kind::Fixed { size, .. }) => Self::decimal(object, Some(*size))?,
            ("uuid", Kind::String | Kind::Fixed { size: 16, .. }) => Some(Self::Uuid),
            ("date", Kind::Int) => Some(Self::Date),
            ("time-millis", Kind::Int) => Some(Self::TimeMillis),
            ("time-micros", Kind::Long) => Some(Self::TimeMicros),
            ("timestamp-millis", Kind::Long) => timestamp(TimeUnit::Millisecond, true),
            ("timestamp-micros", Kind::Long) => timestamp(TimeUnit::Microsecond, true),
            ("timestamp-nanos", Kind::Long) => timestamp(TimeUnit::Nanosecond, true),
            ("local-timestamp-millis", Kind::Long) => timestamp(TimeUnit::Millisecond, false),
            ("local-timestamp-micros", Kind::Long) => timestamp(TimeUnit::Microsecond, false),
            ("local-timestamp-nanos", Kind::Long) => timestamp(TimeUnit::Nanosecond, false),
            ("duration", Kind::Fixed { size: 12, .. }) => Some(Self::Duration),
            _ => None,
        })
    }

    fn decimal(
        object: &Map<String, Json>,
        size: Option<usize>,
    ) -> Result<Option<Self>, SchemaError> {
        let scale = match object.get("scale") {
            None => Some(0),
            Some(scale) => scale.as_u64(),
        };
        let (Some(precision), Some(scale)) =
            (object.get("precision").and_then(Json::as_u64), scale)
        else {
            return Ok(None);
        };
        // The digits that so many bytes hold: floor(log10(2^(8n-1) - 1)).
        let digits_max =
            size.map_or(f64::MAX, |size| ((size as f64 * 8.0 - 1.0) * 2f64.log10()).floor());
        if precision == 0 || scale > precision || precision as f64 > digits_max {
            return Ok(None);
        }
        match (u8::try_from(precision), i8::try_from(scale)) {
            (Ok(precision @ ..=76), Ok(scale)) => Ok(Some(Self::Decimal { precision, scale })),
            _ => Err(SchemaError::new(format!(
                "a decimal of {precision} digits; there are columns of up to 76"
            ))),
        }
    }
}

#[derive(Default)]
struct Parser {
    nodes: Vec<Node>,
    /// The types that have a name; `None` while their definition is read.
    names: HashMap<Box<str>, Option<NodeId>>,
}

impl Parser {
    fn text(&mut self, text: &str) -> Result<NodeId, SchemaError> {
        let json: Json = serde_json::from_str(text)
            .map_err(|error| SchemaError::new(format!("the schema is not JSON: {error}")))?;
        self.schema(&json, "")
    }

    fn add(&mut self, kind: Kind, logical: Option<Logical>) -> NodeId {
        self.nodes.push(Node { kind, logical });
        NodeId(self.nodes.len() - 1)
    }

    /// A schema inside of `namespace`. As deep as JSON may nest, which its parser bounds.
    fn schema(&mut self, json: &Json, namespace: &str) -> Result<NodeId, SchemaError> {
        match json {
            Json::String(name) => self.named(name, namespace, &Map::new()),
            Json::Array(branches) => self.union(branches, namespace),
            Json::Object(object) => match object.get("type") {
                Some(Json::String(name)) => self.object(name, object, namespace),
                // Some tools wrap a schema once more.
                Some(inner @ (Json::Object(_) | Json::Array(_))) => self.schema(inner, namespace),
                _ => Err(SchemaError::new("a schema without a type")),
            },
            other => Err(SchemaError::new(format!("{other} is no type"))),
        }
    }

    /// A type that is called by its name.
    fn named(
        &mut self,
        name: &str,
        namespace: &str,
        object: &Map<String, Json>,
    ) -> Result<NodeId, SchemaError> {
        let kind = match name {
            "null" => Kind::Null,
            "boolean" => Kind::Boolean,
            "int" => Kind::Int,
            "long" => Kind::Long,
            "float" => Kind::Float,
            "double" => Kind::Double,
            "bytes" => Kind::Bytes,
            "string" => Kind::String,
            _ => {
                let full = full_name(name, namespace);
                // A name that its namespace does not have may be one without a namespace.
                let known =
                    self.names.get_key_value(&*full).or_else(|| self.names.get_key_value(name));
                return match known {
                    Some((_, Some(id))) => Ok(*id),
                    Some((name, None)) => Err(SchemaError::new(format!(
                        "the type '{name}' contains itself; no Arrow type is recursive"
                    ))),
                    None => Err(SchemaError::new(format!("the type '{full}' is not defined"))),
                };
            }
        };
        let logical = Logical::of(object, &kind)?;
        Ok(self.add(kind, logical))
    }

    fn object(
        &mut self,
        type_name: &str,
        object: &Map<String, Json>,
        namespace: &str,
    ) -> Result<NodeId, SchemaError> {
        let part = |key: &str| {
            object
                .get(key)
                .ok_or_else(|| SchemaError::new(format!("a type '{type_name}' without {key}")))
        };
        match type_name {
            "array" => {
                let item = self.schema(part("items")?, namespace)?;
                Ok(self.add(Kind::Array(item), None))
            }
            "map" => {
                let value = self.schema(part("values")?, namespace)?;
                Ok(self.add(Kind::Map(value), None))
            }
            "record" | "error" | "enum" | "fixed" => {
                let (name, namespace) = definition_name(type_name, object, namespace)?;
                if self.names.insert(name.full.clone(), None).is_some() {
                    return Err(SchemaError::new(format!(
                        "the type '{}' is defined twice",
                        name.full
                    )));
                }
                let full = name.full.clone();
                let kind = match type_name {
                    "enum" => enumeration(name, object)?,
                    "fixed" => fixed(name, object)?,
                    _ => self.record(name, object, &namespace)?,
                };
                let logical = Logical::of(object, &kind)?;
                let id = self.add(kind, logical);
                self.names.insert(full, Some(id));
                Ok(id)
            }
            name => self.named(name, namespace, object),
        }
    }

    fn record(
        &mut self,
        name: Name,
        object: &Map<String, Json>,
        namespace: &str,
    ) -> Result<Kind, SchemaError> {
        let Some(Json::Array(list)) = object.get("fields") else {
            return Err(SchemaError::new(format!("the record '{}' has no fields", name.full)));
        };
        let mut fields: Vec<Field> = Vec::with_capacity(list.len());
        let mut names = std::collections::HashSet::new();
        for field in list {
            let Some(field_name) =
                field.get("name").and_then(Json::as_str).filter(|n| !n.is_empty())
            else {
                return Err(SchemaError::new(format!(
                    "'{}' has a field without a name",
                    name.full
                )));
            };
            if !names.insert(field_name) {
                return Err(SchemaError::new(format!(
                    "'{}' has two fields '{field_name}'",
                    name.full
                )));
            }
            let Some(json) = field.get("type") else {
                return Err(SchemaError::new(format!(
                    "the field '{field_name}' of '{}' has no type",
                    name.full
                )));
            };
            // Some write a logical type beside the type; it is not one there, as the specification says.
            fields.push(Field {
                name: field_name.into(),
                aliases: texts(field.get("aliases")).map(Box::from).collect(),
                node: self.schema(json, namespace)?,
                default: field.get("default").cloned(),
            });
        }
        Ok(Kind::Record { name, fields })
    }

    fn union(&mut self, branches: &[Json], namespace: &str) -> Result<NodeId, SchemaError> {
        let mut ids = Vec::with_capacity(branches.len());
        let mut names = std::collections::HashSet::new();
        for branch in branches {
            let id = self.schema(branch, namespace)?;
            let (name, is_union) = match self.nodes.get(id.0).map(|node| &node.kind) {
                Some(
                    Kind::Record { name, .. } | Kind::Enum { name, .. } | Kind::Fixed { name, .. },
                ) => (name.full.clone(), false),
                Some(kind) => (kind.label().into(), matches!(kind, Kind::Union(_))),
                None => ("".into(), false),
            };
            if is_union {
                return Err(SchemaError::new("a union directly inside of a union"));
            }
            if !names.insert(name.clone()) {
                return Err(SchemaError::new(format!("a union with two branches of '{name}'")));
            }
            ids.push(id);
        }
        Ok(self.add(Kind::Union(ids), None))
    }
}

fn enumeration(name: Name, object: &Map<String, Json>) -> Result<Kind, SchemaError> {
    let Some(Json::Array(list)) = object.get("symbols") else {
        return Err(SchemaError::new(format!("the enum '{}' has no symbols", name.full)));
    };
    let symbols: Vec<Box<str>> = texts(object.get("symbols")).map(Box::from).collect();
    if symbols.len() != list.len() {
        return Err(SchemaError::new(format!(
            "the enum '{}' has a symbol that is no text",
            name.full
        )));
    }
    let default = object.get("default").and_then(Json::as_str).map(Box::from);
    Ok(Kind::Enum { name, symbols, default })
}

fn fixed(name: Name, object: &Map<String, Json>) -> Result<Kind, SchemaError> {
    let size =
        object.get("size").and_then(Json::as_u64).and_then(|size| usize::try_from(size).ok());
    match size {
        Some(size) => Ok(Kind::Fixed { name, size }),
        None => Err(SchemaError::new(format!("the fixed '{}' has no size", name.full))),
    }
}

/// The name that an object gives to its type, and the namespace for what it contains.
fn definition_name(
    type_name: &str,
    object: &Map<String, Json>,
    namespace: &str,
) -> Result<(Name, String), SchemaError> {
    let Some(name) = object.get("name").and_then(Json::as_str).filter(|name| !name.is_empty())
    else {
        return Err(SchemaError::new(format!("a type '{type_name}' without a name")));
    };
    let namespace = object.get("namespace").and_then(Json::as_str).unwrap_or(namespace);
    let full = full_name(name, namespace);
    let namespace = full.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
    let aliases = texts(object.get("aliases"))
        .map(|alias| full_name(alias, &namespace).into_boxed_str())
        .collect();
    Ok((Name { full: full.into(), aliases }, namespace))
}

/// A name with dots has its namespace already; a dot in front means that there is none.
fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() {
        name.strip_prefix('.').unwrap_or(name).to_owned()
    } else {
        format!("{namespace}.{name}")
    }
}

fn texts(list: Option<&Json>) -> impl Iterator<Item = &str> {
    list.and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_type(text: &str) -> Result<String, String> {
        let schema = Schema::parse(text, []).map_err(|error| error.to_string())?;
        let data_type = schema.data_type(64).map_err(|error| error.to_string())?;
        Ok(data_type.map_or("nothing".to_owned(), |data_type| match &data_type {
            DataType::Struct(fields) => fields
                .iter()
                .map(|field| format!("{}: {}", field.name(), field.data_type()))
                .collect::<Vec<_>>()
                .join(", "),
            other => other.to_string(),
        }))
    }

    #[test]
    fn types_follow_from_schemas() {
        let cases = [
            (r#""string""#, "value: Utf8"),
            (r#"{"type":"string"}"#, "value: Utf8"),
            (
                r#"{"type":{"type":"long","logicalType":"timestamp-micros"}}"#,
                "value: Timestamp(µs, \"UTC\")",
            ),
            (r#""null""#, "nothing"),
            (r#"["null","int"]"#, "value: Int32"),
            (r#"["null"]"#, "nothing"),
            (r#"{"type":"array","items":"null"}"#, "nothing"),
            (r#"{"type":"int","logicalType":"date"}"#, "value: Date32"),
            (r#"{"type":"long","logicalType":"date"}"#, "value: Int64"),
            (r#"{"type":"int","logicalType":"time-millis"}"#, "value: Time32(ms)"),
            (r#"{"type":"long","logicalType":"time-micros"}"#, "value: Time64(µs)"),
            (r#"{"type":"long","logicalType":"local-timestamp-nanos"}"#, "value: Timestamp(ns)"),
            (r#"{"type":"string","logicalType":"uuid"}"#, "value: Utf8"),
            (r#"{"type":"fixed","name":"u","size":16,"logicalType":"uuid"}"#, "value: Utf8"),
            (
                r#"{"type":"fixed","name":"u","size":15,"logicalType":"uuid"}"#,
                "value: FixedSizeBinary(15)",
            ),
            (
                r#"{"type":"fixed","name":"u","size":12,"logicalType":"duration"}"#,
                "value: Interval(MonthDayNano)",
            ),
            (r#"{"type":"fixed","name":"u","size":0}"#, "value: Binary"),
            (
                r#"{"type":"bytes","logicalType":"decimal","precision":10,"scale":2}"#,
                "value: Decimal128(10, 2)",
            ),
            (
                r#"{"type":"bytes","logicalType":"decimal","precision":39}"#,
                "value: Decimal256(39, 0)",
            ),
            (
                r#"{"type":"bytes","logicalType":"decimal","precision":2,"scale":3}"#,
                "value: Binary",
            ),
            (r#"{"type":"bytes","logicalType":"decimal","precision":0}"#, "value: Binary"),
            (r#"{"type":"bytes","logicalType":"unheard-of"}"#, "value: Binary"),
            (
                r#"{"type":"fixed","name":"f","size":4,"logicalType":"decimal","precision":9}"#,
                "value: Decimal128(9, 0)",
            ),
            (
                r#"{"type":"fixed","name":"f","size":4,"logicalType":"decimal","precision":10}"#,
                "value: FixedSizeBinary(4)",
            ),
            (
                r#"{"type":"record","name":"R","fields":[{"name":"a","type":["null","long"]},{"name":"b","type":"null"},{"name":"c","type":{"type":"enum","name":"E","symbols":["X"]}}]}"#,
                "a: Int64, c: Utf8",
            ),
            (r#"{"type":"record","name":"R","fields":[]}"#, "nothing"),
        ];
        for (schema, wanted) in cases {
            assert_eq!(data_type(schema), Ok(wanted.to_owned()), "{schema}");
        }
        let map = data_type(r#"{"type":"map","values":["int","string","null"]}"#).expect("a type");
        assert!(map.contains("Map") && map.contains("int") && map.contains("string"), "{map}");
    }

    #[test]
    fn names_are_resolved_in_their_namespaces() {
        let schema = r#"{"type":"record","name":"R","namespace":"a.b","fields":[
            {"name":"x","type":{"type":"fixed","name":"F","size":2}},
            {"name":"y","type":"F"},
            {"name":"z","type":"a.b.F"},
            {"name":"u","type":["a.b.F",{"type":"fixed","name":"F","namespace":"c","size":3},{"type":"fixed","name":"d.G","size":4}]},
            {"name":"v","type":"c.F"}]}"#;
        let wanted = "a.b.F";
        let text = data_type(schema).expect("a type");
        assert!(text.contains(wanted) && text.contains("c.F") && text.contains("\"G\""), "{text}");
        let references =
            [r#"{"type":"record","name":"k.Key","fields":[{"name":"id","type":"int"}]}"#; 2];
        let schema =
            Schema::parse(r#"{"type":"array","items":"k.Key"}"#, references).expect("a schema");
        assert_eq!(schema.short_name(schema.root), "array");
    }

    #[test]
    fn what_is_no_schema_says_why() {
        let cases = [
            ("{", "the schema is not JSON: EOF while parsing an object at line 1 column 1"),
            ("7", "7 is no type"),
            ("{}", "a schema without a type"),
            (r#""a.B""#, "the type 'a.B' is not defined"),
            (r#"{"type":"array"}"#, "a type 'array' without items"),
            (r#"{"type":"record","name":"R"}"#, "the record 'R' has no fields"),
            (r#"{"type":"record","fields":[]}"#, "a type 'record' without a name"),
            (r#"{"type":"fixed","name":"F","size":-1}"#, "the fixed 'F' has no size"),
            (
                r#"{"type":"enum","name":"E","symbols":[1]}"#,
                "the enum 'E' has a symbol that is no text",
            ),
            (r#"["int",["null"]]"#, "a union directly inside of a union"),
            (r#"["int","int"]"#, "a union with two branches of 'int'"),
            (
                r#"{"type":"record","name":"n.Node","fields":[{"name":"next","type":["null","Node"]}]}"#,
                "the type 'n.Node' contains itself; no Arrow type is recursive",
            ),
            (
                r#"{"type":"bytes","logicalType":"decimal","precision":77}"#,
                "a decimal of 77 digits; there are columns of up to 76",
            ),
            (
                r#"{"type":"record","name":"R","fields":[{"name":"a","type":"int"},{"name":"a","type":"int"}]}"#,
                "'R' has two fields 'a'",
            ),
        ];
        for (schema, error) in cases {
            assert_eq!(data_type(schema), Err(error.to_owned()), "{schema}");
        }
    }

    #[test]
    fn short_texts_do_not_become_huge_types() {
        let mut references = vec![
            r#"{"type":"record","name":"R0","fields":[{"name":"a","type":"int"}]}"#.to_owned(),
        ];
        for level in 1..40 {
            references.push(format!(
                r#"{{"type":"record","name":"R{level}","fields":[{{"name":"a","type":"R{0}"}},{{"name":"b","type":"R{0}"}}]}}"#,
                level - 1
            ));
        }
        let schema =
            Schema::parse(r#""R39""#, references.iter().map(String::as_str)).expect("a schema");
        let error = schema.data_type(64).expect_err("too many");
        assert_eq!(error.to_string(), "more than 10000 columns");
        let error = schema.data_type(30).expect_err("too deep");
        assert_eq!(error.to_string(), "types nest too deeply");
    }

    #[test]
    fn types_never_nest_too_deeply_for_readers() {
        // A map is two levels of Arrow's, what may be null is none.
        let maps = |count: usize| {
            (0..count).fold(r#""int""#.to_owned(), |inner, _| {
                format!(r#"["null",{{"type":"map","values":{inner}}}]"#)
            })
        };
        let data_type = |count| {
            let schema = Schema::parse(&maps(count), []).expect("a schema");
            schema.data_type(64).map(|data_type| data_type.as_ref().map_or(0, levels))
        };
        assert_eq!(data_type(29).expect("a type"), 60);
        let error = data_type(30).expect_err("too deep");
        assert_eq!(error.to_string(), "types nest too deeply");
    }
}
