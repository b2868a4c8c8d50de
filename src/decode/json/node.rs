//! [`Node`]: where the values of records go, made anew from the shape whenever that changes.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field, TimeUnit};

use super::super::column::{list_of, map_of, row_size};
use super::super::projection::Projection;
use super::leaf::Leaf;
use super::shape::{Kind, StructShape};

/// Where a value goes. Beside each node that has a column is its `Column`; one without has seen only nulls and empty
/// containers.
#[derive(Debug)]
pub enum Node {
    /// Only null fits.
    Unknown,
    /// Nobody wants it.
    Skip,
    /// Booleans.
    Bool,
    /// Integers of 64 bits.
    Int {
        /// One beyond ±2^53 was seen.
        wide: bool,
    },
    /// Numbers.
    Float,
    /// Anything.
    Text {
        /// What is deeper has no columns.
        is_deepest: bool,
    },
    /// Strings that are times, as karrow.toml says.
    Timestamp,
    /// Objects.
    Struct(Box<StructNode>),
    /// Arrays.
    List(Items),
    /// As a schema says.
    Leaf(Box<Leaf>),
    /// Objects whose names are no fields.
    Map(Items),
}

/// Where the items of an array go, or the values of a map.
#[derive(Debug)]
pub struct Items {
    /// Each of them.
    pub node: Box<Node>,
    /// What each takes in memory at least, however few bytes it is written with.
    pub size: usize,
}

impl Items {
    fn new(node: Node, data_type: Option<&DataType>) -> Self {
        Self { node: Box::new(node), size: data_type.map_or(0, row_size) }
    }
}

/// Where the fields of an object go.
#[derive(Debug, Default)]
pub struct StructNode {
    /// The known ones.
    pub fields: Vec<FieldNode>,
    /// Their places.
    pub index: HashMap<Box<str>, usize>,
    /// The column for fields that found no room.
    pub more: Option<usize>,
    /// There are such fields.
    pub is_full: bool,
    /// Counts objects, to notice a field that comes twice in one.
    pub objects: u64,
}

/// Where a field goes.
#[derive(Debug)]
pub struct FieldNode {
    /// What it is called.
    pub name: Box<str>,
    /// Its name needs no escapes, so it can be compared as it is written.
    pub is_plain: bool,
    /// Its place among the columns, if it has one.
    pub column: Option<usize>,
    /// Where its values go.
    pub node: Node,
    /// The object it was seen in last.
    pub object: u64,
}

impl Node {
    /// `times` are the fields below that are timestamps; everything, where this one is. Columns may nest `depth_left` levels
    /// below.
    fn of(
        kind: &Kind,
        projection: &Projection,
        times: Option<&Projection>,
        depth_left: usize,
    ) -> (Self, Option<DataType>) {
        match kind {
            Kind::Unknown => (Self::Unknown, None),
            Kind::Bool => (Self::Bool, kind.data_type()),
            Kind::Int { wide } => (Self::Int { wide: *wide }, kind.data_type()),
            Kind::Float => (Self::Float, kind.data_type()),
            kind if times.is_some_and(Projection::is_all) && kind.is_text() => (
                Self::Timestamp,
                Some(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
            ),
            Kind::Text => (Self::Text { is_deepest: depth_left == 0 }, kind.data_type()),
            Kind::Struct(shape) => Self::of_struct(shape, projection, times, depth_left),
            Kind::List(list) => {
                let (node, item) =
                    Self::of(&list.item, projection, times, depth_left.saturating_sub(1));
                (Self::List(Items::new(node, item.as_ref())), item.map(list_of))
            }
            Kind::Map(map) => {
                // What is wanted of a map is all of it: its names are values.
                let below = depth_left.saturating_sub(2);
                let (node, value) = Self::of(&map.item, &Projection::All, None, below);
                let values = Items::new(node, value.as_ref());
                (Self::Map(values), value.map(|value| map_of(DataType::Utf8, value)))
            }
            Kind::Leaf(leaf) => (Self::Leaf(leaf.clone()), kind.data_type()),
        }
    }

    /// The same for an object's fields.
    pub fn of_struct(
        shape: &StructShape,
        projection: &Projection,
        times: Option<&Projection>,
        depth_left: usize,
    ) -> (Self, Option<DataType>) {
        let mut struct_node = StructNode { is_full: shape.is_full, ..StructNode::default() };
        let mut fields = Vec::new();
        for (name, kind) in &shape.fields {
            let (node, data_type) = match projection.field(name) {
                Some(below) => {
                    let times = times.and_then(|times| times.field(name));
                    Self::of(kind, below, times, depth_left.saturating_sub(1))
                }
                None => (Self::Skip, None),
            };
            let column = data_type.map(|data_type| {
                fields.push(Field::new(&**name, data_type, true));
                fields.len() - 1
            });
            struct_node.index.insert(name.clone(), struct_node.fields.len());
            struct_node.fields.push(FieldNode {
                name: name.clone(),
                is_plain: !name.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\'),
                column,
                node,
                object: 0,
            });
        }
        if let Some(name) = shape.more().filter(|name| projection.field(name).is_some()) {
            fields.push(Field::new(name, DataType::Utf8, true));
            struct_node.more = Some(fields.len() - 1);
        }
        let data_type = (!fields.is_empty()).then(|| DataType::Struct(fields.into()));
        (Self::Struct(Box::new(struct_node)), data_type)
    }
}
