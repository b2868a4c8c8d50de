//! [`Program`]: how values of one schema get into the columns of a topic, found out once for each schema.
//!
//! Without a schema of the user's, the topic's Arrow type is what all writers' types united to ([`compile`]). With
//! one, it is that schema's type, and Avro's rules of schema resolution say what goes where ([`resolve`]).
//!
//! [`compile`]: Program::compile
//! [`resolve`]: Program::resolve

use std::fmt;

use arrow::datatypes::{DataType, Field as ArrowField, Fields, i256};
use serde_json::Value as Json;

use super::super::column::row_size;
use super::default::encode;
use super::schema::{Field, Kind, Logical, NodeId, Only, Schema, SchemaError};

/// What to do with the bytes of a whole value.
#[derive(Debug)]
pub struct Program {
    /// Into the topic's struct.
    pub root: Record,
    /// The value is all there is, without the length that Avro puts in front of bytes.
    pub is_bare: bool,
}

/// What to do with the bytes of a value and the column it goes to.
#[derive(Debug)]
// With a byte that says which: it is looked at for each field of each record.
#[repr(u8)]
pub enum Op {
    /// Nothing to read; the column is null.
    Null,
    /// A boolean.
    Bool,
    /// An int, or what is counted in ints.
    Int,
    /// A long, or what is counted in longs.
    Long,
    /// A float.
    Float,
    /// A double.
    Double,
    /// An int into a column of 64 bits.
    IntToLong,
    /// An int into Float64, which holds all of them.
    IntToDouble,
    /// A long into Float64.
    LongToDouble,
    /// An int into Float32.
    IntToFloat,
    /// A long into Float32.
    LongToFloat,
    /// A float into Float64.
    FloatToDouble,
    /// Milliseconds of a day.
    TimeMillis,
    /// Microseconds of a day.
    TimeMicros,
    /// A length and bytes.
    Bytes,
    /// A length and UTF-8.
    Text,
    /// As many bytes into FixedSizeBinary.
    Fixed(usize),
    /// As many bytes into Binary.
    FixedBytes(usize),
    /// 16 bytes into text.
    UuidBytes,
    /// The position of a text; `None` for those that the user's schema does not have.
    Enum(Box<[Option<Box<str>>]>),
    /// Into Decimal128.
    Decimal128 {
        /// Bytes; `None` if there is a length in front.
        size: Option<usize>,
        /// The first number with too many digits.
        end: i128,
    },
    /// Into Decimal256.
    Decimal256 {
        /// Bytes; `None` if there is a length in front.
        size: Option<usize>,
        /// The first number with too many digits.
        end: i256,
    },
    /// 12 bytes: months, days, milliseconds.
    Duration,
    /// A union of null, which comes first or second, and something else.
    Nullable {
        /// The position of null: 0 or 1.
        null: usize,
        /// The other one.
        op: Box<Op>,
    },
    /// A union; all of its types go to the same column.
    Switch(Box<[Op]>),
    /// Into a field of a struct, the others of which become null. `None`: nobody wants that field.
    Into(Option<usize>, Box<Op>),
    /// A record.
    Record(Box<Record>),
    /// An array.
    List(Box<Items>),
    /// A map.
    Map(Box<Items>),
    /// Nobody wants it.
    Skip(Skip),
    /// It does not fit its column.
    Misfit(Box<Misfit>),
}

/// What to do with the fields of a record.
#[derive(Debug)]
pub struct Record {
    /// In the writer's order.
    pub fields: Vec<Place>,
    /// What the writer did not know.
    pub defaults: Vec<Default>,
}

/// Where a field goes.
#[derive(Debug)]
pub struct Place {
    /// Its name, for errors.
    pub name: Box<str>,
    /// The position of its column; anything beyond the last one if nobody wants it.
    pub column: usize,
    /// What to do with it.
    pub op: Op,
}

/// A value that is the same in each record.
#[derive(Debug)]
pub struct Default {
    /// The position of its column.
    pub column: usize,
    /// As it would be written.
    pub bytes: Vec<u8>,
    /// What to do with these bytes.
    pub op: Op,
}

/// What to do with the items of an array or the values of a map.
#[derive(Debug)]
pub struct Items {
    /// Each of them.
    pub op: Op,
    /// What each takes in memory at least, however few bytes it is written with.
    pub size: usize,
}

/// How to pass over a value.
#[derive(Debug)]
pub enum Skip {
    /// As many bytes.
    Fixed(usize),
    /// A varint.
    Varint,
    /// A length and bytes.
    Bytes,
    /// One after the other.
    All(Box<[Skip]>),
    /// A union.
    OneOf(Box<[Skip]>),
    /// An array.
    Items(Box<Skip>),
    /// A map.
    Pairs(Box<Skip>),
}

/// A value that its column cannot take.
#[derive(Debug)]
pub struct Misfit {
    /// How to pass over it.
    pub skip: Skip,
    /// What it is and where it would go.
    pub message: String,
}

/// Not the position of a column.
const NOWHERE: usize = usize::MAX;

impl Program {
    /// For values of `writer` into a struct column of type `columns`, which has a field for everything that is wanted
    /// of them.
    pub fn compile(writer: &Schema, columns: &Fields) -> Self {
        let compiler = Compiler { writer };
        let root = match &writer.node(writer.root).kind {
            Kind::Record { fields, .. } => compiler.record(fields, columns, None),
            _ => {
                let place = compiler.place("value", writer.root, columns, None);
                Record { fields: vec![place], defaults: Vec::new() }
            }
        };
        Self { root, is_bare: false }
    }

    /// The same where the user's schema `reader` says what `columns` are.
    ///
    /// # Errors
    /// A field of `reader` has no default, and `writer` does not have it.
    pub fn resolve(
        writer: &Schema,
        reader: &Schema,
        columns: &Fields,
    ) -> Result<Self, SchemaError> {
        let resolver = Resolver { writer, reader, compiler: Compiler { writer } };
        let (from, to) = (writer.node(writer.root), reader.node(reader.root));
        let root = match (&from.kind, &to.kind) {
            (Kind::Record { fields, .. }, Kind::Record { fields: wanted, .. }) => {
                resolver.record(fields, wanted, columns, None)?
            }
            (_, Kind::Record { .. }) => {
                return Err(SchemaError::new(format!(
                    "it is of type {}, and the configured schema a record",
                    from.kind.label()
                )));
            }
            _ => {
                let (column, op) = match column_of(columns, "value") {
                    Some((at, field)) => {
                        let path = Path { name: "value", above: None };
                        (at, resolver.op(writer.root, reader.root, field.data_type(), path)?)
                    }
                    None => (NOWHERE, Op::Skip(writer.skip(writer.root))),
                };
                let place = Place { name: "value".into(), column, op };
                Record { fields: vec![place], defaults: Vec::new() }
            }
        };
        Ok(Self { root, is_bare: false })
    }
}

impl Schema {
    /// How to pass over a value of the type `id`.
    pub fn skip(&self, id: NodeId) -> Skip {
        match &self.node(id).kind {
            Kind::Null => Skip::Fixed(0),
            Kind::Boolean => Skip::Fixed(1),
            Kind::Int | Kind::Long | Kind::Enum { .. } => Skip::Varint,
            Kind::Float => Skip::Fixed(4),
            Kind::Double => Skip::Fixed(8),
            Kind::Bytes | Kind::String => Skip::Bytes,
            Kind::Fixed { size, .. } => Skip::Fixed(*size),
            Kind::Array(item) => Skip::Items(Box::new(self.skip(*item))),
            Kind::Map(value) => Skip::Pairs(Box::new(self.skip(*value))),
            Kind::Union(branches) => {
                Skip::OneOf(branches.iter().map(|id| self.skip(*id)).collect())
            }
            Kind::Record { fields, .. } => {
                let mut all: Vec<Skip> = Vec::with_capacity(fields.len());
                for field in fields {
                    match (all.last_mut(), self.skip(field.node)) {
                        (Some(Skip::Fixed(size)), Skip::Fixed(more)) => {
                            *size = size.saturating_add(more);
                        }
                        (_, skip) => all.push(skip),
                    }
                }
                Skip::All(all.into())
            }
        }
    }

    /// A type, for people.
    fn describe(&self, id: NodeId) -> String {
        match (&self.node(id).kind, self.node(id).logical) {
            (Kind::Union(branches), _) => {
                let names: Vec<&str> = branches.iter().map(|id| self.short_name(*id)).collect();
                format!("a union of {}", names.join(", "))
            }
            (kind @ (Kind::Record { .. } | Kind::Enum { .. } | Kind::Fixed { .. }), _) => {
                format!("the {} {}", kind.label(), self.full_name(id))
            }
            (kind, Some(logical)) => format!("a {} ({logical:?})", kind.label()),
            (kind, None) => format!("a value of type {}", kind.label()),
        }
    }
}

/// Where in a value, for people.
#[derive(Clone, Copy)]
struct Path<'p> {
    name: &'p str,
    above: Option<&'p Path<'p>>,
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(above) = self.above {
            write!(f, "{above}.")?;
        }
        f.write_str(self.name)
    }
}

struct Compiler<'s> {
    writer: &'s Schema,
}

impl Compiler<'_> {
    fn record(&self, fields: &[Field], columns: &Fields, above: Option<&Path<'_>>) -> Record {
        let fields = fields
            .iter()
            .map(|field| self.place(&field.name, field.node, columns, above))
            .collect();
        Record { fields, defaults: Vec::new() }
    }

    /// A field that is not among the columns is one that nobody wants.
    fn place(&self, name: &str, id: NodeId, columns: &Fields, above: Option<&Path<'_>>) -> Place {
        let (column, op) = match column_of(columns, name) {
            Some((at, field)) => (at, self.op(id, field.data_type(), Path { name, above })),
            None => (NOWHERE, Op::Skip(self.writer.skip(id))),
        };
        Place { name: name.into(), column, op }
    }

    fn op(&self, id: NodeId, column: &DataType, path: Path<'_>) -> Op {
        let node = self.writer.node(id);
        if let Some(op) = leaf(&node.kind, node.logical, column) {
            return op;
        }
        let fits = match (&node.kind, column) {
            (Kind::Null, _) => Some(Op::Null),
            (Kind::Record { fields, .. }, DataType::Struct(columns)) => {
                Some(Op::Record(Box::new(self.record(fields, columns, Some(&path)))))
            }
            (Kind::Array(item), DataType::List(column)) => {
                items(self.op(*item, column.data_type(), path), column.data_type())
                    .map(|items| Op::List(Box::new(items)))
            }
            (Kind::Map(value), DataType::Map(entries, _)) => {
                let column = map_values(entries);
                column
                    .and_then(|column| items(self.op(*value, column, path), column))
                    .map(|items| Op::Map(Box::new(items)))
            }
            (Kind::Union(branches), column) => return self.union(branches, column, path),
            // What was one of several types is now the only one.
            (_, DataType::Struct(columns)) => {
                self.field_op(id, self.writer.short_name(id), columns, path)
            }
            _ => None,
        };
        fits.unwrap_or_else(|| self.misfit(id, column, path))
    }

    fn union(&self, branches: &[NodeId], column: &DataType, path: Path<'_>) -> Op {
        let several = self.writer.only_branch(branches) == Only::Several;
        let names = self.writer.branch_names(branches);
        let ops = branches.iter().zip(&names).map(|(id, name)| match column {
            DataType::Struct(columns) if several => match self.writer.node(*id).kind {
                Kind::Null => Op::Null,
                // Without a column: nobody wants this type, or there is nothing to see in it.
                _ => self
                    .field_op(*id, name, columns, path)
                    .unwrap_or_else(|| Op::Into(None, Box::new(Op::Skip(self.writer.skip(*id))))),
            },
            column => self.op(*id, column, path),
        });
        switch(ops.collect())
    }

    /// A type into the field that a union of several has for it.
    fn field_op(&self, id: NodeId, name: &str, columns: &Fields, path: Path<'_>) -> Option<Op> {
        let (at, field) = column_of(columns, name)?;
        Some(match self.op(id, field.data_type(), path) {
            misfit @ Op::Misfit(_) => misfit,
            op => Op::Into(Some(at), Box::new(op)),
        })
    }

    fn misfit(&self, id: NodeId, column: &DataType, path: Path<'_>) -> Op {
        Op::Misfit(Box::new(Misfit {
            skip: self.writer.skip(id),
            message: format!(
                "the field '{path}': {} does not fit {}",
                self.writer.describe(id),
                describe(column)
            ),
        }))
    }
}

struct Resolver<'s> {
    writer: &'s Schema,
    reader: &'s Schema,
    compiler: Compiler<'s>,
}

impl Resolver<'_> {
    fn record(
        &self,
        fields: &[Field],
        wanted: &[Field],
        columns: &Fields,
        above: Option<&Path<'_>>,
    ) -> Result<Record, SchemaError> {
        let mut is_there = vec![false; wanted.len()];
        let mut places = Vec::with_capacity(fields.len());
        for field in fields {
            let is_same = |wanted: &&Field| wanted.name == field.name;
            let goes_by = |wanted: &&Field| wanted.aliases.contains(&field.name);
            let at = wanted
                .iter()
                .position(|wanted| is_same(&wanted))
                .or_else(|| wanted.iter().position(|wanted| goes_by(&wanted)))
                .filter(|at| is_there.get(*at) == Some(&false));
            let target = at.and_then(|at| Some((at, wanted.get(at)?)));
            if let Some((at, _)) = target
                && let Some(there) = is_there.get_mut(at)
            {
                *there = true;
            }
            let column = target.and_then(|(_, wanted)| {
                column_of(columns, &wanted.name).map(|(at, column)| (at, column, wanted))
            });
            let (column, op) = match column {
                Some((at, column, wanted)) => {
                    let path = Path { name: &wanted.name, above };
                    (at, self.op(field.node, wanted.node, column.data_type(), path)?)
                }
                None => (NOWHERE, Op::Skip(self.writer.skip(field.node))),
            };
            places.push(Place { name: field.name.clone(), column, op });
        }
        let mut defaults = Vec::new();
        for (wanted, _) in wanted.iter().zip(&is_there).filter(|(_, is_there)| !**is_there) {
            let Some(default) = &wanted.default else {
                return Err(SchemaError::new(format!(
                    "it does not have the field '{}', for which the configured schema has no default",
                    wanted.name
                )));
            };
            if let Some((column, field)) = column_of(columns, &wanted.name)
                && let Some(default) = self.default(default, wanted, column, field)?
            {
                defaults.push(default);
            }
        }
        Ok(Record { fields: places, defaults })
    }

    fn default(
        &self,
        value: &Json,
        wanted: &Field,
        column: usize,
        field: &ArrowField,
    ) -> Result<Option<Default>, SchemaError> {
        let mut bytes = Vec::new();
        if !encode(self.reader, wanted.node, value, &mut bytes) {
            return Err(SchemaError::new(format!(
                "the default {value} of the configured schema's field '{}' is not of its type",
                wanted.name
            )));
        }
        // As if it had been written with the reader's own schema.
        let same = Compiler { writer: self.reader };
        Ok(
            match same.op(wanted.node, field.data_type(), Path { name: &wanted.name, above: None })
            {
                Op::Null => None,
                op => Some(Default { column, bytes, op }),
            },
        )
    }

    fn op(
        &self,
        from: NodeId,
        to: NodeId,
        column: &DataType,
        path: Path<'_>,
    ) -> Result<Op, SchemaError> {
        let (writer, reader) = (self.writer.node(from), self.reader.node(to));
        let misfit = || self.compiler.misfit(from, column, path);
        Ok(match (&writer.kind, &reader.kind) {
            (Kind::Union(branches), _) => {
                let ops = branches.iter().map(|id| self.op(*id, to, column, path));
                switch(ops.collect::<Result<_, _>>()?)
            }
            (_, Kind::Union(branches)) => self.branch_op(from, branches, column, path)?,
            (Kind::Null, Kind::Null) => Op::Null,
            (Kind::Record { fields, .. }, Kind::Record { fields: wanted, .. }) => match column {
                DataType::Struct(columns) => {
                    Op::Record(Box::new(self.record(fields, wanted, columns, Some(&path))?))
                }
                _ => misfit(),
            },
            (Kind::Array(item), Kind::Array(wanted)) => match column {
                DataType::List(column) => {
                    let op = self.op(*item, *wanted, column.data_type(), path)?;
                    items(op, column.data_type())
                        .map_or_else(misfit, |items| Op::List(Box::new(items)))
                }
                _ => misfit(),
            },
            (Kind::Map(value), Kind::Map(wanted)) => match column {
                DataType::Map(entries, _) => match map_values(entries) {
                    Some(column) => items(self.op(*value, *wanted, column, path)?, column)
                        .map_or_else(misfit, |items| Op::Map(Box::new(items))),
                    None => misfit(),
                },
                _ => misfit(),
            },
            (Kind::Enum { symbols, .. }, Kind::Enum { symbols: wanted, default, .. }) => Op::Enum(
                symbols
                    .iter()
                    .map(|symbol| match wanted.contains(symbol) {
                        true => Some(symbol.clone()),
                        false => default.clone(),
                    })
                    .collect(),
            ),
            (kind, wanted) if is_promoted(kind, wanted) => {
                // Meanings are not converted: milliseconds are no microseconds.
                let logical = match (writer.logical, reader.logical) {
                    (Some(from), Some(to)) if !is_within(from, to) => return Ok(misfit()),
                    (None, Some(Logical::Decimal { .. } | Logical::Duration)) => {
                        return Ok(misfit());
                    }
                    (Some(from), Some(_)) => Some(from),
                    (None, to) => to.filter(|to| match (kind, to) {
                        (Kind::Long, _) => true,
                        (Kind::Int, to) => matches!(to, Logical::Date | Logical::TimeMillis),
                        (Kind::Fixed { size: 16, .. }, Logical::Uuid) => true,
                        _ => false,
                    }),
                    (Some(_), None) => None,
                };
                leaf(kind, logical, column)
                    .or_else(|| promoted(kind, column))
                    .unwrap_or_else(misfit)
            }
            _ => misfit(),
        })
    }

    /// A value goes to the first branch that is of its type, else to the first that it can be promoted to.
    fn branch_op(
        &self,
        from: NodeId,
        branches: &[NodeId],
        column: &DataType,
        path: Path<'_>,
    ) -> Result<Op, SchemaError> {
        let several = self.reader.only_branch(branches) == Only::Several;
        if matches!(self.writer.node(from).kind, Kind::Null) {
            let has_null =
                branches.iter().any(|id| matches!(self.reader.node(*id).kind, Kind::Null));
            return Ok(if has_null { Op::Null } else { self.compiler.misfit(from, column, path) });
        }
        let names = self.reader.branch_names(branches);
        let matching = |rank: usize| {
            branches.iter().zip(&names).filter(move |(id, _)| self.rank(from, **id) == Some(rank))
        };
        for (id, name) in matching(0).chain(matching(1)).chain(matching(2)) {
            let op = match column {
                DataType::Struct(columns) if several => match column_of(columns, name) {
                    Some((at, field)) => match self.op(from, *id, field.data_type(), path)? {
                        op @ Op::Misfit(_) => op,
                        op => Op::Into(Some(at), Box::new(op)),
                    },
                    None => Op::Into(None, Box::new(Op::Skip(self.writer.skip(from)))),
                },
                column => self.op(from, *id, column, path)?,
            };
            if !matches!(op, Op::Misfit(_)) {
                return Ok(op);
            }
        }
        Ok(self.compiler.misfit(from, column, path))
    }

    /// How well a writer's type matches a branch: 0 is of the same type and name, 1 the same type, 2 promoted.
    fn rank(&self, from: NodeId, to: NodeId) -> Option<usize> {
        let (writer, reader) = (&self.writer.node(from).kind, &self.reader.node(to).kind);
        match (writer, reader) {
            (Kind::Record { name, .. }, Kind::Record { name: wanted, .. })
            | (Kind::Enum { name, .. }, Kind::Enum { name: wanted, .. })
            | (Kind::Fixed { name, .. }, Kind::Fixed { name: wanted, .. }) => {
                let is_same = name.full == wanted.full
                    || name.short() == wanted.short()
                    || wanted.aliases.contains(&name.full);
                Some(usize::from(!is_same))
            }
            (writer, reader) if writer.label() == reader.label() => Some(0),
            (writer, reader) => is_promoted(writer, reader).then_some(2),
        }
    }
}

/// What the specification lets a reader take for a writer's type that has no parts.
fn is_promoted(writer: &Kind, reader: &Kind) -> bool {
    use Kind::{Boolean, Bytes, Double, Fixed, Float, Int, Long, String};
    match (writer, reader) {
        (Fixed { size, .. }, Fixed { size: wanted, .. }) => size == wanted,
        _ => matches!(
            (writer, reader),
            (Boolean, Boolean)
                | (Int, Int | Long | Float | Double)
                | (Long, Long | Float | Double)
                | (Float, Float | Double)
                | (Double, Double)
                | (Bytes | String, Bytes | String)
        ),
    }
}

/// Whether every value that means `from` also means `to`.
fn is_within(from: Logical, to: Logical) -> bool {
    match (from, to) {
        (
            Logical::Decimal { precision, scale },
            Logical::Decimal { precision: wanted, scale: wanted_scale },
        ) => scale == wanted_scale && precision <= wanted,
        (from, to) => from == to,
    }
}

/// A type without parts into a column that holds all that it means.
fn leaf(kind: &Kind, logical: Option<Logical>, column: &DataType) -> Option<Op> {
    if let Some(logical) = logical {
        return meaning(kind, logical, column);
    }
    Some(match (kind, column) {
        (Kind::Boolean, DataType::Boolean) => Op::Bool,
        (Kind::Int, DataType::Int32) => Op::Int,
        (Kind::Int, DataType::Int64) => Op::IntToLong,
        (Kind::Int, DataType::Float64) => Op::IntToDouble,
        (Kind::Long, DataType::Int64) => Op::Long,
        (Kind::Long, DataType::Float64) => Op::LongToDouble,
        (Kind::Float, DataType::Float32) => Op::Float,
        (Kind::Float, DataType::Float64) => Op::FloatToDouble,
        (Kind::Double, DataType::Float64) => Op::Double,
        (Kind::Bytes, DataType::Binary) => Op::Bytes,
        (Kind::String, DataType::Utf8) => Op::Text,
        (Kind::Enum { symbols, .. }, DataType::Utf8) => {
            Op::Enum(symbols.iter().map(|symbol| Some(symbol.clone())).collect())
        }
        (Kind::Fixed { size, .. }, DataType::FixedSizeBinary(width))
            if usize::try_from(*width) == Ok(*size) =>
        {
            Op::Fixed(*size)
        }
        (Kind::Fixed { size, .. }, DataType::Binary) => Op::FixedBytes(*size),
        _ => return None,
    })
}

fn meaning(kind: &Kind, logical: Logical, column: &DataType) -> Option<Op> {
    Some(match (logical, column) {
        (Logical::Decimal { precision, scale }, DataType::Decimal128(digits, column_scale))
            if scale == *column_scale && precision <= *digits =>
        {
            let end = 10i128.checked_pow(u32::from(precision))?;
            Op::Decimal128 { size: size_of(kind), end }
        }
        (Logical::Decimal { precision, scale }, DataType::Decimal256(digits, column_scale))
            if scale == *column_scale && precision <= *digits =>
        {
            let end = i256::from_i128(10).checked_pow(u32::from(precision))?;
            Op::Decimal256 { size: size_of(kind), end }
        }
        (Logical::Uuid, DataType::Utf8) => match kind {
            Kind::String => Op::Text,
            _ => Op::UuidBytes,
        },
        (Logical::Date, DataType::Date32) => Op::Int,
        (Logical::TimeMillis, DataType::Time32(_)) => Op::TimeMillis,
        (Logical::TimeMicros, DataType::Time64(_)) => Op::TimeMicros,
        (Logical::Timestamp { unit, is_utc }, DataType::Timestamp(column, zone))
            if unit == *column && is_utc == zone.is_some() =>
        {
            Op::Long
        }
        (Logical::Duration, DataType::Interval(_)) => Op::Duration,
        _ => return None,
    })
}

/// What only a schema of the user's asks for.
fn promoted(kind: &Kind, column: &DataType) -> Option<Op> {
    Some(match (kind, column) {
        (Kind::Int, DataType::Float32) => Op::IntToFloat,
        (Kind::Long, DataType::Float32) => Op::LongToFloat,
        (Kind::Int, DataType::Timestamp(..)) => Op::IntToLong,
        (Kind::Bytes, DataType::Utf8) => Op::Text,
        (Kind::String, DataType::Binary) => Op::Bytes,
        _ => return None,
    })
}

fn size_of(kind: &Kind) -> Option<usize> {
    match kind {
        Kind::Fixed { size, .. } => Some(*size),
        _ => None,
    }
}

fn column_of<'c>(columns: &'c Fields, name: &str) -> Option<(usize, &'c ArrowField)> {
    columns.find(name).map(|(at, field)| (at, field.as_ref()))
}

fn map_values(entries: &ArrowField) -> Option<&DataType> {
    match entries.data_type() {
        DataType::Struct(pair) => pair.get(1).map(|field| field.data_type()),
        _ => None,
    }
}

/// A list whose items do not fit does not fit as a whole: nulls in their place would be invented.
fn items(op: Op, column: &DataType) -> Option<Items> {
    (!is_misfit(&op)).then(|| Items { op, size: row_size(column) })
}

fn is_misfit(op: &Op) -> bool {
    match op {
        Op::Misfit(_) => true,
        Op::Nullable { op, .. } => is_misfit(op),
        Op::Switch(ops) => ops.iter().any(is_misfit),
        _ => false,
    }
}

fn switch(mut ops: Vec<Op>) -> Op {
    let null = match ops.as_slice() {
        [Op::Null, _] => 0,
        [_, Op::Null] => 1,
        _ => return Op::Switch(ops.into()),
    };
    Op::Nullable { null, op: Box::new(ops.swap_remove(1 - null)) }
}

/// A type, for people.
fn describe(column: &DataType) -> String {
    match column {
        DataType::Struct(_) => "a struct column".to_owned(),
        DataType::List(_) => "a column of lists".to_owned(),
        DataType::Map(..) => "a column of maps".to_owned(),
        other => format!("a column of type {other}"),
    }
}
