//! [`Shape`]: what has been seen of a topic's JSON objects, and the Arrow type that follows from it. It only grows and
//! widens, and the order in which values were seen does not matter.

use std::collections::{HashMap, HashSet};

use arrow::datatypes::{DataType, Field, Fields};

use super::super::column::list_of;
use super::super::reject::{Meter, RecordLimits, Reject};
use super::scan::{Number, Scanner, Text};

/// A double holds every integer up to here.
pub const EXACT_MAX: u64 = 1 << 53;

/// Name of the column that takes, as the text of a JSON object, the fields beyond the limit.
const MORE: &str = "_more";

/// What was seen of a topic's objects.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The objects themselves.
    pub root: StructShape,
    /// How many fields are known, at every depth.
    count: usize,
    count_max: usize,
}

/// What was seen of the objects in one place.
#[derive(Clone, Debug, Default)]
pub struct StructShape {
    /// In the order in which they were seen first.
    pub fields: Vec<(Box<str>, Kind)>,
    index: HashMap<Box<str>, usize>,
    /// Fields were seen for which there was no room; see [`StructShape::more`].
    pub is_full: bool,
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
    List(Box<Kind>),
}

impl Shape {
    /// Nothing was seen yet; at most `count_max` fields will get columns.
    pub fn new(count_max: usize) -> Self {
        Self { root: StructShape::default(), count: 0, count_max }
    }

    /// Looks at one record, an object.
    ///
    /// # Errors
    /// A bad record; nothing of it is remembered then.
    pub fn learn(&mut self, text: &[u8], limits: &RecordLimits) -> Result<(), Reject> {
        let mut scanner = Scanner::new(text);
        let mut seen = Kind::Unknown;
        let mut learner = Learner { meter: Meter::new(limits), depth_max: limits.depth_max };
        learner.value(&mut scanner, &mut seen, 0)?;
        scanner.end()?;
        if let Kind::Struct(seen) = seen {
            let mut room = self.count_max.saturating_sub(self.count);
            let before = room;
            self.root.merge(seen, &mut room);
            self.count = (self.count + before).saturating_sub(room);
        }
        Ok(())
    }

    /// The type of a payload; `None` while there is no field to see.
    pub fn data_type(&self) -> Option<DataType> {
        self.root.data_type()
    }
}

impl StructShape {
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

    fn merge(&mut self, seen: Self, room: &mut usize) {
        self.is_full |= seen.is_full;
        let reserved = self.more();
        for (name, kind) in seen.fields {
            match self.index.get(&name).copied() {
                Some(at) => {
                    if let Some((_, known)) = self.fields.get_mut(at) {
                        known.merge(kind, room);
                    }
                }
                // The name of a column that is there already stays that column's.
                None if *room == 0 || reserved.as_deref() == Some(&*name) => self.is_full = true,
                None => {
                    *room -= 1;
                    let mut known = Kind::Unknown;
                    known.merge(kind, room);
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
            Self::List(item) => item.data_type().map(list_of),
        }
    }

    /// Takes `seen` in, which may need `room` for fields.
    fn merge(&mut self, seen: Self, room: &mut usize) {
        let known = std::mem::replace(self, Self::Unknown);
        *self = match (known, seen) {
            (known, Self::Unknown) => known,
            (Self::Unknown, Self::Struct(seen)) => {
                let mut fresh = StructShape::default();
                fresh.merge(seen, room);
                Self::Struct(fresh)
            }
            (Self::Unknown, Self::List(seen)) => {
                let mut item = Self::Unknown;
                item.merge(*seen, room);
                Self::List(Box::new(item))
            }
            (Self::Unknown, seen) => seen,
            (Self::Bool, Self::Bool) => Self::Bool,
            (Self::Int { wide: a }, Self::Int { wide: b }) => Self::Int { wide: a | b },
            (Self::Int { wide: false } | Self::Float, Self::Float)
            | (Self::Float, Self::Int { wide: false }) => Self::Float,
            (Self::Struct(mut known), Self::Struct(seen)) => {
                known.merge(seen, room);
                Self::Struct(known)
            }
            (Self::List(mut known), Self::List(seen)) => {
                known.merge(*seen, room);
                Self::List(known)
            }
            _ => Self::Text,
        };
    }
}

/// Looks at the values of one record.
struct Learner {
    meter: Meter,
    depth_max: usize,
}

impl Learner {
    fn value(
        &mut self,
        scanner: &mut Scanner<'_>,
        kind: &mut Kind,
        depth: usize,
    ) -> Result<(), Reject> {
        let seen = match scanner.peek() {
            b'{' if depth == 0
                || (depth < self.depth_max && matches!(kind, Kind::Unknown | Kind::Struct(_))) =>
            {
                if matches!(kind, Kind::Unknown) {
                    *kind = Kind::Struct(StructShape::default());
                }
                let Kind::Struct(shape) = kind else { return Ok(()) };
                return self.object(scanner, shape, depth);
            }
            _ if depth == 0 => return Err(not_an_object(scanner)),
            b'[' if depth < self.depth_max && matches!(kind, Kind::Unknown | Kind::List(_)) => {
                if matches!(kind, Kind::Unknown) {
                    *kind = Kind::List(Box::new(Kind::Unknown));
                }
                let Kind::List(item) = kind else { return Ok(()) };
                return self.array(scanner, item, depth);
            }
            b'{' | b'[' => {
                scanner.skip(&mut self.meter)?;
                Kind::Text
            }
            b'"' => {
                scanner.string()?;
                Kind::Text
            }
            b't' => {
                scanner.word(b"true")?;
                Kind::Bool
            }
            b'f' => {
                scanner.word(b"false")?;
                Kind::Bool
            }
            b'n' => {
                scanner.word(b"null")?;
                Kind::Unknown
            }
            b'-' | b'0'..=b'9' => match scanner.number()? {
                Number::Int(value) => Kind::Int { wide: value.unsigned_abs() > EXACT_MAX },
                Number::Float(_) => Kind::Float,
                Number::Big(_) => Kind::Text,
            },
            _ => return Err(scanner.unexpected("a value")),
        };
        // Only scalars come here; fields need no room.
        kind.merge(seen, &mut 0);
        Ok(())
    }

    fn object(
        &mut self,
        scanner: &mut Scanner<'_>,
        shape: &mut StructShape,
        depth: usize,
    ) -> Result<(), Reject> {
        scanner.pass();
        let mut names = HashSet::new();
        if scanner.peek() == b'}' {
            scanner.pass();
            return Ok(());
        }
        loop {
            if scanner.peek() != b'"' {
                return Err(scanner.unexpected("an object"));
            }
            let name = name_of(scanner.string()?);
            scanner.expect(b':', "an object")?;
            self.meter.elements(1)?;
            if !names.insert(name.clone()) {
                return Err(duplicate(&name));
            }
            let at = *shape.index.entry(name.clone()).or_insert_with(|| {
                shape.fields.push((name, Kind::Unknown));
                shape.fields.len() - 1
            });
            let Some((_, kind)) = shape.fields.get_mut(at) else { return Ok(()) };
            self.value(scanner, kind, depth + 1)?;
            match scanner.peek() {
                b',' => scanner.pass(),
                b'}' => {
                    scanner.pass();
                    return Ok(());
                }
                _ => return Err(scanner.unexpected("an object")),
            }
        }
    }

    fn array(
        &mut self,
        scanner: &mut Scanner<'_>,
        item: &mut Kind,
        depth: usize,
    ) -> Result<(), Reject> {
        scanner.pass();
        if scanner.peek() == b']' {
            scanner.pass();
            return Ok(());
        }
        loop {
            self.meter.elements(1)?;
            self.value(scanner, item, depth + 1)?;
            match scanner.peek() {
                b',' => scanner.pass(),
                b']' => {
                    scanner.pass();
                    return Ok(());
                }
                _ => return Err(scanner.unexpected("an array")),
            }
        }
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
/// does.
pub fn duplicate(name: &str) -> Reject {
    Reject::malformed(format!("the field '{}' is there twice", name.escape_debug()))
}

/// A record that is JSON, but no object.
pub fn not_an_object(scanner: &mut Scanner<'_>) -> Reject {
    let what = match scanner.peek() {
        b'[' => "an array",
        b'"' => "a string",
        b't' | b'f' => "a boolean",
        b'n' => "null",
        b'-' | b'0'..=b'9' => "a number",
        _ => return scanner.unexpected("a JSON object"),
    };
    Reject::value(format!("{what}, not a JSON object"))
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
