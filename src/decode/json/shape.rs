//! [`Shape`]: what has been seen of a topic's JSON objects, or is said of them by schemas, and the Arrow type that follows
//! from it. It only grows and widens, and the order in which values were seen does not matter.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field, Fields};

use super::super::column::{LEVELS_MAX, list_of, map_of};
use super::super::reject::{Meter, RecordLimits, Reject};
use super::leaf::{Leaf, Type};
use super::learn;
use super::scan::{Scanner, Text};

/// A double holds every integer up to here.
pub const EXACT_MAX: u64 = 1 << 53;

/// Name of the column that takes, as the text of a JSON object, the fields beyond the limit.
const MORE: &str = "_more";

/// Fields that schemas say, at every depth. Those that are inferred have a limit of their own.
pub const SAID_MAX: usize = 10_000;

/// How deep values may be in objects for columns, where records may nest `depth_max` levels: all who read Arrow open what
/// comes of it. A map is two levels.
pub fn column_depth_max(depth_max: usize) -> usize {
    // The objects are a level, too.
    depth_max.min(LEVELS_MAX - 1)
}

/// What was seen of a topic's objects.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The objects themselves.
    pub root: StructShape,
    /// How many fields were inferred, at every depth.
    count: usize,
    /// How many of them get columns.
    pub count_max: usize,
    /// How many fields schemas have added.
    said: usize,
}

/// What was seen of the objects in one place.
#[derive(Clone, Debug, Default)]
pub struct StructShape {
    /// In the order in which they were seen first.
    pub fields: Vec<(Box<str>, Kind)>,
    index: HashMap<Box<str>, usize>,
    /// Fields were seen that have no column of their own; see [`StructShape::more`].
    pub is_full: bool,
    /// A schema says what the fields are.
    is_said: bool,
    /// That schema has no others: they get no columns of their own.
    pub is_closed: bool,
    /// What is no object makes a bad row.
    pub is_firm: bool,
}

/// What was seen in one place.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Nothing but null.
    Unknown,
    /// Booleans.
    Bool,
    /// Integers of 64 bits.
    Int {
        /// One of them is beyond ±2^53, so a double cannot take their place.
        wide: bool,
    },
    /// Numbers.
    Float,
    /// Strings, numbers that no other type holds, and mixtures.
    Text,
    /// Objects.
    Struct(StructShape),
    /// Arrays.
    List(ListShape),
    /// Objects whose names are no fields, which only a schema can say: the kind of their values.
    Map(ListShape),
    /// As a schema says.
    Leaf(Box<Leaf>),
}

/// What was seen of the items in one place.
#[derive(Clone, Debug)]
pub struct ListShape {
    /// Each of them.
    pub item: Box<Kind>,
    /// What is no array, or no object where it is a map, makes a bad row.
    pub is_firm: bool,
}

/// Where what is taken into a shape comes from, and how many more fields it may bring.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// A schema, not a record.
    pub is_schema: bool,
    /// Fields that still get a column.
    pub room: usize,
}

impl Shape {
    /// Nothing was seen yet; at most `count_max` fields will get columns.
    pub fn new(count_max: usize) -> Self {
        Self { root: StructShape::default(), count: 0, count_max, said: 0 }
    }

    /// Looks at one record, an object.
    ///
    /// # Errors
    /// A bad record; nothing of it is remembered then.
    pub fn learn(&mut self, text: &[u8], limits: &RecordLimits) -> Result<(), Reject> {
        let seen = learn::look(text, Some(&self.root), limits)?;
        let room = self.count_max.saturating_sub(self.count);
        let mut source = Source { is_schema: false, room };
        self.root.merge(seen, &mut source);
        self.count += room.saturating_sub(source.room);
        Ok(())
    }

    /// Whether a record is a good one.
    ///
    /// # Errors
    /// Why it is a bad one.
    pub fn check(&self, text: &[u8], limits: &RecordLimits) -> Result<(), Reject> {
        learn::look(text, Some(&self.root), limits).map(|_| ())
    }

    /// Takes in what a schema says of the objects.
    pub fn seed(&mut self, said: StructShape) {
        let room = SAID_MAX.saturating_sub(self.said);
        let mut source = Source { is_schema: true, room };
        self.root.merge(said, &mut source);
        self.said += room.saturating_sub(source.room);
    }

    /// The type of a payload; `None` while there is no field to see.
    pub fn data_type(&self) -> Option<DataType> {
        self.root.data_type()
    }
}

impl StructShape {
    /// What a schema says of objects, without any field yet.
    pub fn said(is_firm: bool, is_closed: bool) -> Self {
        Self { is_said: true, is_firm, is_closed, ..Self::default() }
    }

    /// The columns: of the fields that have one, and for the fields that found no room.
    fn data_type(&self) -> Option<DataType> {
        let mut fields: Vec<Field> = self
            .fields
            .iter()
            .filter_map(|(name, kind)| Some(Field::new(&**name, kind.data_type()?, true)))
            .collect();
        if let Some(name) = self.more() {
            fields.push(Field::new(name, DataType::Utf8, true));
        }
        (!fields.is_empty()).then(|| DataType::Struct(Fields::from(fields)))
    }

    /// The name of the column for what found no room, if there is such a thing.
    pub fn more(&self) -> Option<String> {
        let mut name = MORE.to_owned();
        while self.index.contains_key(name.as_str()) {
            name.insert(0, '_');
        }
        self.is_full.then_some(name)
    }

    /// The kind of a field.
    pub fn field(&self, name: &str) -> Option<&Kind> {
        self.index.get(name).and_then(|at| self.fields.get(*at)).map(|(_, kind)| kind)
    }

    /// The kind of a field, which is added where it is not there.
    pub fn field_mut(&mut self, name: &str) -> Option<&mut Kind> {
        let at = match self.index.get(name) {
            Some(at) => *at,
            None => {
                self.index.insert(name.into(), self.fields.len());
                self.fields.push((name.into(), Kind::Unknown));
                self.fields.len() - 1
            }
        };
        self.fields.get_mut(at).map(|(_, kind)| kind)
    }

    /// The same without any field.
    fn without_fields(&self) -> Self {
        Self {
            fields: Vec::new(),
            index: HashMap::new(),
            is_full: false,
            is_said: self.is_said,
            is_closed: self.is_closed,
            is_firm: self.is_firm,
        }
    }

    /// Takes `seen` in.
    pub fn merge(&mut self, seen: Self, source: &mut Source) {
        if source.is_schema {
            // What one schema does not know another one may, or records that no schema told of.
            let is_first = !self.is_said && self.fields.is_empty();
            self.is_closed = seen.is_closed && (self.is_closed || is_first);
            self.is_said |= seen.is_said;
        }
        self.is_full |= seen.is_full;
        let reserved = self.more();
        for (name, kind) in seen.fields {
            match self.index.get(&name).copied() {
                Some(at) => {
                    if let Some((_, known)) = self.fields.get_mut(at) {
                        known.merge(kind, source);
                    }
                }
                None if source.room == 0
                    || (self.is_closed && !source.is_schema)
                    // The name of a column that is there already stays that column's.
                    || reserved.as_deref() == Some(&*name) =>
                {
                    self.is_full = true;
                }
                None => {
                    source.room -= 1;
                    let mut known = Kind::Unknown;
                    known.merge(kind, source);
                    self.index.insert(name.clone(), self.fields.len());
                    self.fields.push((name, known));
                }
            }
        }
    }
}

impl Kind {
    /// The type of its column; `None` while it has none.
    pub fn data_type(&self) -> Option<DataType> {
        match self {
            Self::Unknown => None,
            Self::Bool => Some(DataType::Boolean),
            Self::Int { .. } => Some(DataType::Int64),
            Self::Float => Some(DataType::Float64),
            Self::Text => Some(DataType::Utf8),
            Self::Struct(shape) => shape.data_type(),
            Self::List(list) => list.item.data_type().map(list_of),
            Self::Map(map) => map.item.data_type().map(|value| map_of(DataType::Utf8, value)),
            Self::Leaf(leaf) => Some(leaf.data_type()),
        }
    }

    /// A list of `item`s that only records tell of.
    pub fn list_of(item: Self) -> Self {
        Self::List(ListShape { item: Box::new(item), is_firm: false })
    }

    /// Whether its values are strings, or anything.
    pub fn is_text(&self) -> bool {
        match self {
            Self::Text => true,
            Self::Leaf(leaf) => leaf.is == Type::Arrow(DataType::Utf8),
            _ => false,
        }
    }

    fn is_firm(&self) -> bool {
        match self {
            Self::Struct(shape) => shape.is_firm,
            Self::List(shape) | Self::Map(shape) => shape.is_firm,
            _ => false,
        }
    }

    /// Takes `seen` in.
    pub fn merge(&mut self, seen: Self, source: &mut Source) {
        let known = std::mem::replace(self, Self::Unknown);
        *self = match (known, seen) {
            (known, Self::Unknown) => known,
            (Self::Unknown, Self::Struct(seen)) => {
                let mut fresh = seen.without_fields();
                fresh.merge(seen, source);
                Self::Struct(fresh)
            }
            (Self::Unknown, Self::List(seen)) => Self::List(seen.fresh(source)),
            (Self::Unknown, Self::Map(seen)) => Self::Map(seen.fresh(source)),
            (Self::Unknown, seen) => seen,
            (Self::Bool, Self::Bool) => Self::Bool,
            (Self::Int { wide: a }, Self::Int { wide: b }) => Self::Int { wide: a | b },
            (Self::Int { wide: false } | Self::Float, Self::Float)
            | (Self::Float, Self::Int { wide: false }) => Self::Float,
            (Self::Struct(mut known), Self::Struct(seen)) => {
                known.merge(seen, source);
                Self::Struct(known)
            }
            (Self::List(mut known), Self::List(seen)) => {
                known.item.merge(*seen.item, source);
                Self::List(known)
            }
            (Self::Map(mut known), Self::Map(seen)) => {
                known.item.merge(*seen.item, source);
                Self::Map(known)
            }
            (Self::Leaf(known), Self::Leaf(seen)) => known.or(*seen),
            // A record has shown what does not fit.
            (Self::Leaf(known), _) if !source.is_schema => known.wider(),
            // It made a bad row.
            (known, _) if known.is_firm() && !source.is_schema => known,
            _ => Self::Text,
        };
    }
}

impl ListShape {
    fn fresh(self, source: &mut Source) -> Self {
        let mut item = Kind::Unknown;
        item.merge(*self.item, source);
        Self { item: Box::new(item), is_firm: self.is_firm }
    }
}

impl Leaf {
    /// What holds the values of both, which schemas say.
    fn or(self, other: Self) -> Kind {
        match (&self.is, &other.is) {
            (a, b) if a == b => Kind::Leaf(Box::new(self)),
            (Type::Number, Type::Integer) => Kind::Leaf(Box::new(self)),
            (Type::Integer, Type::Number) => Kind::Leaf(Box::new(other)),
            _ => Kind::Text,
        }
    }

    fn wider(&self) -> Kind {
        self.widened().map_or(Kind::Text, |leaf| Kind::Leaf(Box::new(leaf)))
    }
}

/// A field's name, unescaped.
pub fn name_of(text: Text<'_>) -> Box<str> {
    let mut name = Vec::new();
    text.append_to(&mut name);
    // The scanner reads checked UTF-8, and unescaping keeps it so.
    String::from_utf8(name).unwrap_or_default().into()
}

/// The same name twice in an object: which value counts differs from reader to reader (RFC 8259, section 4), so none
/// does. What is passed or kept as text is not looked at, which would cost as much as decoding it, unless its record has
/// something new.
pub fn duplicate(name: &str) -> Reject {
    Reject::malformed(format!("the field '{}' is there twice", name.escape_debug()))
}

/// A record that is JSON, but no object; or that is no JSON.
pub fn not_an_object(scanner: &mut Scanner<'_>, meter: &mut Meter) -> Reject {
    let what = match scanner.peek() {
        b'[' => "an array",
        b'"' => "a string",
        b't' | b'f' => "a boolean",
        b'n' => "null",
        b'-' | b'0'..=b'9' => "a number",
        _ => return scanner.unexpected("a JSON object"),
    };
    if let Err(reject) = scanner.skip(meter) {
        return reject;
    }
    match scanner.peek() {
        0 => Reject::value(format!("{what}, not a JSON object")),
        byte => Reject::malformed(format!(
            "not JSON: '{}' at byte {} behind {what}",
            byte.escape_ascii(),
            scanner.at()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_of(records: &[&str]) -> String {
        let mut shape = Shape::new(1000);
        for record in records {
            shape.learn(record.as_bytes(), &RecordLimits::default()).expect("a good record");
        }
        show(shape.data_type().as_ref())
    }

    fn show(data_type: Option<&DataType>) -> String {
        match data_type {
            None => "-".to_owned(),
            Some(DataType::Struct(fields)) => {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|field| format!("{}:{}", field.name(), show(Some(field.data_type()))))
                    .collect();
                format!("{{{}}}", fields.join(","))
            }
            Some(DataType::List(item)) => format!("[{}]", show(Some(item.data_type()))),
            Some(other) => other.to_string(),
        }
    }

    #[test]
    fn types_follow_from_what_was_seen_in_whatever_order() {
        let cases: &[(&[&str], &str)] = &[
            (&[r#"{"a":1}"#, r#"{"a":-9007199254740993}"#], "{a:Int64}"),
            (&[r#"{"a":1}"#, r#"{"a":1.5}"#], "{a:Float64}"),
            (&[r#"{"a":9007199254740992}"#, r#"{"a":1.5}"#], "{a:Float64}"),
            (&[r#"{"a":9007199254740993}"#, r#"{"a":1.5}"#], "{a:Utf8}"),
            (&[r#"{"a":1}"#, r#"{"a":9223372036854775808}"#], "{a:Utf8}"),
            (&[r#"{"a":1e400}"#], "{a:Utf8}"),
            (&[r#"{"a":true}"#, r#"{"a":1}"#], "{a:Utf8}"),
            (&[r#"{"a":"x"}"#, r#"{"a":{"b":1}}"#], "{a:Utf8}"),
            (&[r#"{"a":[1]}"#, r#"{"a":{"b":1}}"#], "{a:Utf8}"),
            (&[r#"{"a":null}"#], "-"),
            (&[r#"{"a":{}}"#, r#"{"a":{"b":null}}"#], "-"),
            (&[r#"{"a":[]}"#, r#"{"a":[null,[]]}"#], "-"),
            (&[r#"{"a":[]}"#, r#"{"a":[1,2.5]}"#], "{a:[Float64]}"),
            (&[r#"{"a":[{"b":1},{"c":"x"}]}"#], "{a:[{b:Int64,c:Utf8}]}"),
            (&[r#"{"a":{"b":1}}"#, r#"{"a":{"c":[true]}}"#], "{a:{b:Int64,c:[Boolean]}}"),
            (&["{}"], "-"),
        ];
        for (records, expected) in cases {
            assert_eq!(type_of(records), *expected, "{records:?}");
            let mut backwards: Vec<&str> = records.to_vec();
            backwards.reverse();
            let sorted = |shape: String| {
                let mut letters: Vec<char> = shape.chars().collect();
                letters.sort_unstable();
                letters
            };
            assert_eq!(
                sorted(type_of(&backwards)),
                sorted((*expected).to_owned()),
                "{records:?} backwards"
            );
        }
    }

    #[test]
    fn fields_beyond_the_limit_share_a_column() {
        let mut shape = Shape::new(3);
        for key in 0..10 {
            let record = format!(r#"{{"key{key}":1,"nested":{{"key{key}":1}}}}"#);
            shape.learn(record.as_bytes(), &RecordLimits::default()).expect("a good record");
        }
        assert_eq!(
            show(shape.data_type().as_ref()),
            "{key0:Int64,nested:{key0:Int64,_more:Utf8},_more:Utf8}"
        );
    }

    #[test]
    fn a_bad_record_teaches_nothing() {
        let mut shape = Shape::new(10);
        for record in [
            r#"{"a":1,"b":}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":1}{"b":2}"#,
            "[1]",
            "3",
            "",
            r#"{"x":[{"y":2,"y":3}]}"#,
        ] {
            assert!(shape.learn(record.as_bytes(), &RecordLimits::default()).is_err(), "{record}");
        }
        assert_eq!(show(shape.data_type().as_ref()), "-");
    }

    #[test]
    fn what_is_nested_too_deeply_is_text() {
        let limits = RecordLimits { depth_max: 2, ..RecordLimits::default() };
        let mut shape = Shape::new(10);
        shape.learn(br#"{"a":{"b":{"c":1}},"d":[[1]]}"#, &limits).expect("a good record");
        assert_eq!(show(shape.data_type().as_ref()), "{a:{b:Utf8},d:[Utf8]}");
    }
}
