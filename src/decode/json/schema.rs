//! JSON Schemas, of drafts 4 to 2020-12, as what they say of the types of a topic's objects.
//!
//! Only what says types is read; the rest of a schema restricts values of a type, and checking that is not our part. What
//! it leaves open is found out from the values, as where there is no schema.

use arrow::datatypes::{DataType, TimeUnit};
use serde_json::{Map, Value as Json};

use super::leaf::{Hold, Leaf, Type};
use super::shape::{Kind, ListShape, SAID_MAX, Source, StructShape, column_depth_max};

/// Places of one schema that are looked at: definitions that use each other twice grow beyond any measure.
const PLACES_MAX: usize = 100_000;

/// Places around one place: each takes its part of the stack, whether it nests values or not.
const NESTING_MAX: usize = 256;

/// Places that are passed in search of names.
const PASSED_MAX: usize = 1_000_000;

/// Keywords that say something of types.
const KEYWORDS: [&str; 20] = [
    "$schema",
    "$id",
    "id",
    "$ref",
    "$defs",
    "definitions",
    "type",
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "items",
    "prefixItems",
    "allOf",
    "anyOf",
    "oneOf",
    "enum",
    "const",
    "title",
    "format",
];

/// What the schema of a user says of the objects.
///
/// # Errors
/// It is no JSON Schema of objects, or cannot be resolved.
pub fn of_user(text: &str, depth_max: usize) -> Result<StructShape, String> {
    let shape = Reader::new(text, [], Hold::Schema, depth_max)?.root()?;
    match count(&shape) {
        0..=SAID_MAX => Ok(shape),
        count => Err(format!("{count} fields are more than {SAID_MAX}")),
    }
}

/// What the schema of a writer says, with the `references` it may use: names and texts.
///
/// # Errors
/// It says nothing that can be used.
pub fn of_writer<'a>(
    text: &str,
    references: impl IntoIterator<Item = (&'a str, &'a str)>,
    depth_max: usize,
) -> Result<StructShape, String> {
    Reader::new(text, references, Hold::Writer, depth_max)?.root()
}

/// Whether a JSON document looks like a JSON Schema.
pub fn is_schema(document: &Json) -> bool {
    let Json::Object(schema) = document else { return false };
    // An Avro schema has a type and perhaps a title, but never these.
    match schema.get("type").and_then(Json::as_str) {
        Some("record" | "enum" | "array" | "map" | "fixed") if !schema.contains_key("$schema") => {
            false
        }
        _ => KEYWORDS.iter().any(|keyword| schema.contains_key(*keyword)),
    }
}

fn count(shape: &StructShape) -> usize {
    fn of(kind: &Kind) -> usize {
        match kind {
            Kind::Struct(shape) => count(shape),
            Kind::List(list) | Kind::Map(list) => of(&list.item),
            _ => 0,
        }
    }
    shape.fields.iter().map(|(_, kind)| 1 + of(kind)).sum()
}

struct Reader {
    /// The schema itself is the first; the others have the names they are referred to by.
    documents: Vec<(String, Json)>,
    hold: Hold,
    depth_max: usize,
}

/// A place in the schema: which document, and what is there.
#[derive(Clone, Copy)]
struct Place<'a> {
    document: usize,
    schema: &'a Json,
}

/// The way to a place.
struct Way {
    /// The references that led here; one that comes again has no end.
    references: Vec<(usize, String)>,
    /// How deep the value is.
    depth: usize,
    /// How deep the place is.
    nesting: usize,
    places: usize,
    passed: usize,
}

impl Reader {
    fn new<'a>(
        text: &str,
        references: impl IntoIterator<Item = (&'a str, &'a str)>,
        hold: Hold,
        depth_max: usize,
    ) -> Result<Self, String> {
        let parse = |text: &str| {
            serde_json::from_str::<Json>(text).map_err(|error| format!("no JSON Schema: {error}"))
        };
        let mut documents = vec![(String::new(), parse(text)?)];
        for (name, text) in references {
            documents.push((name.to_owned(), parse(text)?));
        }
        Ok(Self { documents, hold, depth_max: column_depth_max(depth_max) })
    }

    fn root(&self) -> Result<StructShape, String> {
        let Some((_, schema)) = self.documents.first() else {
            return Err("no document".to_owned());
        };
        if !is_schema(schema) {
            return Err("no JSON Schema: it has no `type`, `properties` or the like".to_owned());
        }
        let references = vec![(0, String::new())];
        let mut way = Way { references, depth: 0, nesting: 0, places: 0, passed: 0 };
        match self.kind(Place { document: 0, schema }, &mut way)? {
            Some(Kind::Struct(shape)) => Ok(shape),
            _ => Err("it does not say that values are objects".to_owned()),
        }
    }

    /// `None`: only null.
    fn kind(&self, place: Place<'_>, way: &mut Way) -> Result<Option<Kind>, String> {
        way.places += 1;
        if way.places > PLACES_MAX {
            return Err(format!("it unfolds into more than {PLACES_MAX} places"));
        }
        way.nesting += 1;
        if way.nesting > NESTING_MAX {
            return Err(format!("its parts nest deeper than {NESTING_MAX}"));
        }
        let kind = self.kind_of(place, way);
        way.nesting -= 1;
        kind
    }

    fn kind_of(&self, place: Place<'_>, way: &mut Way) -> Result<Option<Kind>, String> {
        let schema = match place.schema {
            Json::Object(schema) => schema,
            Json::Bool(_) => return Ok(Some(Kind::Unknown)),
            _ => return Err("a schema that is neither an object nor a boolean".to_owned()),
        };
        let mut said = self.own_kind(place, schema, way)?;
        for part in self.parts(place, schema, way)? {
            said = match (said, part) {
                (Some(said), Some(part)) => Some(meet(said, part)),
                _ => None,
            };
        }
        Ok(said)
    }

    /// What `$ref`, `allOf`, `anyOf` and `oneOf` say beside the rest.
    fn parts(
        &self,
        place: Place<'_>,
        schema: &Map<String, Json>,
        way: &mut Way,
    ) -> Result<Vec<Option<Kind>>, String> {
        let mut parts = Vec::new();
        if let Some(reference) = schema.get("$ref").and_then(Json::as_str) {
            parts.push(self.referred(place.document, reference, way)?);
        }
        for schema in members(schema, "allOf")? {
            parts.push(self.kind(Place { schema, ..place }, way)?);
        }
        for keyword in ["anyOf", "oneOf"] {
            if schema.contains_key(keyword) {
                let kinds = members(schema, keyword)?
                    .iter()
                    .map(|schema| self.kind(Place { schema, ..place }, way))
                    .collect::<Result<Vec<_>, _>>()?;
                parts.push(any(kinds));
            }
        }
        Ok(parts)
    }

    /// What the keywords of one object say.
    fn own_kind(
        &self,
        place: Place<'_>,
        schema: &Map<String, Json>,
        way: &mut Way,
    ) -> Result<Option<Kind>, String> {
        let named = match schema.get("type") {
            None => return self.kind_without_type(place, schema, way),
            Some(Json::String(name)) => vec![name.as_str()],
            Some(Json::Array(names)) => {
                let names: Option<Vec<&str>> = names.iter().map(Json::as_str).collect();
                names.ok_or("a `type` that is no name")?
            }
            Some(_) => return Err("a `type` that is no name".to_owned()),
        };
        let kinds = named
            .into_iter()
            .map(|name| self.kind_of_type(name, place, schema, way))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(any(kinds))
    }

    fn kind_without_type(
        &self,
        place: Place<'_>,
        schema: &Map<String, Json>,
        way: &mut Way,
    ) -> Result<Option<Kind>, String> {
        if schema.contains_key("properties") {
            return self.object(place, schema, way).map(Some);
        }
        if schema.contains_key("items") {
            return self.array(place, schema, way).map(Some);
        }
        let values: Vec<&Json> = match (schema.get("const"), schema.get("enum")) {
            (Some(value), _) => vec![value],
            (None, Some(Json::Array(values))) => values.iter().collect(),
            (None, Some(_)) => return Err("an `enum` that is no array".to_owned()),
            (None, None) => return Ok(Some(Kind::Unknown)),
        };
        let kinds = values.into_iter().map(|value| match value {
            Json::Null => None,
            Json::Bool(_) => Some(self.leaf(Type::Arrow(DataType::Boolean))),
            Json::Number(number) if number.is_i64() => Some(self.leaf(Type::Integer)),
            Json::Number(_) => Some(self.leaf(Type::Number)),
            Json::String(_) => Some(self.leaf(Type::Arrow(DataType::Utf8))),
            Json::Array(_) | Json::Object(_) => Some(Kind::Unknown),
        });
        Ok(any(kinds.collect()))
    }

    fn kind_of_type(
        &self,
        name: &str,
        place: Place<'_>,
        schema: &Map<String, Json>,
        way: &mut Way,
    ) -> Result<Option<Kind>, String> {
        Ok(Some(match name {
            "null" => return Ok(None),
            "any" => Kind::Unknown,
            "boolean" => self.leaf(Type::Arrow(DataType::Boolean)),
            "integer" => self.leaf(Type::Integer),
            "number" => self.leaf(Type::Number),
            "string" => self.leaf(Type::Arrow(string(schema))),
            "array" => self.array(place, schema, way)?,
            "object" => self.object(place, schema, way)?,
            other => return Err(format!("there is no type '{other}'")),
        }))
    }

    /// A single value. A writer's plain types are those that values would show by themselves, and widen like them.
    fn leaf(&self, is: Type) -> Kind {
        match (self.hold, &is) {
            (Hold::Writer, Type::Integer) => Kind::Int { wide: false },
            (Hold::Writer, Type::Number) => Kind::Float,
            (Hold::Writer, Type::Arrow(DataType::Utf8)) => Kind::Text,
            (Hold::Writer, Type::Arrow(DataType::Boolean)) => Kind::Bool,
            (hold, _) => Kind::Leaf(Box::new(Leaf { is, hold })),
        }
    }

    fn is_firm(&self) -> bool {
        self.hold != Hold::Writer
    }

    fn array(
        &self,
        place: Place<'_>,
        schema: &Map<String, Json>,
        way: &mut Way,
    ) -> Result<Kind, String> {
        let item = match schema.get("items") {
            // Each item has a schema of its own, so together they have none.
            None | Some(Json::Array(_)) => Kind::Unknown,
            Some(_) if schema.contains_key("prefixItems") => Kind::Unknown,
            Some(items) => {
                let Some(item) = self.below(Place { schema: items, ..place }, way)? else {
                    return Ok(Kind::Text);
                };
                item
            }
        };
        Ok(Kind::List(ListShape { item: Box::new(item), is_firm: self.is_firm() }))
    }

    fn object(
        &self,
        place: Place<'_>,
        schema: &Map<String, Json>,
        way: &mut Way,
    ) -> Result<Kind, String> {
        let table = |keyword: &str| match schema.get(keyword) {
            None => Ok(None),
            Some(Json::Object(table)) => Ok(Some(table)),
            Some(_) => Err(format!("`{keyword}` that is no object")),
        };
        let patterns = table("patternProperties")?.filter(|patterns| !patterns.is_empty());
        let others = ["additionalProperties", "unevaluatedProperties"]
            .iter()
            .find_map(|keyword| schema.get(*keyword));
        let Some(properties) = table("properties")?.filter(|properties| !properties.is_empty())
        else {
            // Names that are not known and values that are: a map. The objects themselves are rows, never a map.
            let others = others.filter(|others| others.is_object());
            let values: Vec<&Json> =
                patterns.into_iter().flat_map(Map::values).chain(others).collect();
            if way.depth > 0 && !values.is_empty() {
                let mut kinds = Vec::new();
                for schema in values {
                    // What a map nests is a level deeper than its entries.
                    way.depth += 1;
                    let kind = self.below(Place { schema, ..place }, way);
                    way.depth -= 1;
                    let Some(kind) = kind? else { return Ok(Kind::Text) };
                    kinds.push(Some(kind));
                }
                if let Some(value) = any(kinds).filter(|value| value.data_type().is_some()) {
                    let map = ListShape { item: Box::new(value), is_firm: self.is_firm() };
                    return Ok(Kind::Map(map));
                }
            }
            return Ok(Kind::Struct(StructShape::said(self.is_firm(), false)));
        };
        let is_closed = patterns.is_none() && others == Some(&Json::Bool(false));
        let mut shape = StructShape::said(self.is_firm(), is_closed);
        for (name, schema) in properties {
            let Some(kind) = self.below(Place { schema, ..place }, way)? else {
                return Ok(Kind::Text);
            };
            if let Some(field) = shape.field_mut(name) {
                *field = kind;
            }
        }
        Ok(Kind::Struct(shape))
    }

    /// What is nested in a place; null alone has no type. `None`: it is too deep for columns.
    fn below(&self, place: Place<'_>, way: &mut Way) -> Result<Option<Kind>, String> {
        if way.depth >= self.depth_max {
            return Ok(None);
        }
        way.depth += 1;
        let kind = self.kind(place, way)?;
        way.depth -= 1;
        Ok(Some(kind.unwrap_or(Kind::Unknown)))
    }

    fn referred(
        &self,
        document: usize,
        reference: &str,
        way: &mut Way,
    ) -> Result<Option<Kind>, String> {
        let lost = || format!("it refers to '{}', which is not there", reference.escape_debug());
        let (name, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let document = self.document(document, name).ok_or_else(lost)?;
        let step = (document, fragment.to_owned());
        // What contains itself has no end, and no type: it is found out from the values how deep it goes.
        if way.references.contains(&step) {
            return Ok(Some(Kind::Unknown));
        }
        let schema = self.fragment(document, fragment, way).ok_or_else(lost)?;
        way.references.push(step);
        let kind = self.kind(Place { document, schema }, way);
        way.references.pop();
        kind
    }

    /// The document that `name` means in another one.
    fn document(&self, from: usize, name: &str) -> Option<usize> {
        if name.is_empty() {
            return Some(from);
        }
        let id = |document: &Json| -> Option<String> {
            let id = document.get("$id").or_else(|| document.get("id"))?.as_str()?;
            Some(id.trim_end_matches('#').to_owned())
        };
        // A relative one is beside the document that names it.
        let base = self.documents.get(from).and_then(|(_, document)| id(document));
        let beside = base.and_then(|base| Some(format!("{}/{name}", base.rsplit_once('/')?.0)));
        self.documents.iter().position(|(known, document)| {
            let is_it = |wanted: &str| known == wanted || id(document).as_deref() == Some(wanted);
            is_it(name) || beside.as_deref().is_some_and(is_it)
        })
    }

    /// What a fragment means in a document: a pointer (RFC 6901), or a name that a schema there has.
    fn fragment(&self, document: usize, fragment: &str, way: &mut Way) -> Option<&Json> {
        let (_, document) = self.documents.get(document)?;
        let fragment = unescaped(fragment)?;
        if fragment.is_empty() || fragment.starts_with('/') {
            return document.pointer(&fragment);
        }
        let id = format!("#{fragment}");
        let mut open = vec![document];
        while let Some(place) = open.pop() {
            way.passed += 1;
            if way.passed > PASSED_MAX {
                return None;
            }
            match place {
                Json::Object(schema) => {
                    let is = |keyword: &str, name: &str| {
                        schema.get(keyword).and_then(Json::as_str) == Some(name)
                    };
                    if is("$anchor", &fragment) || is("$id", &id) || is("id", &id) {
                        return Some(place);
                    }
                    open.extend(schema.values());
                }
                Json::Array(items) => open.extend(items),
                _ => {}
            }
        }
        None
    }
}

/// The schemas of `allOf` and the like.
fn members<'a>(schema: &'a Map<String, Json>, keyword: &str) -> Result<&'a [Json], String> {
    match schema.get(keyword) {
        None => Ok(&[]),
        Some(Json::Array(members)) => Ok(members),
        Some(_) => Err(format!("`{keyword}` that is no array")),
    }
}

/// The type of a string's column. A time of day has an offset in RFC 3339, and none in Arrow: it stays text.
fn string(schema: &Map<String, Json>) -> DataType {
    let is = |keyword: &str, value: &str| schema.get(keyword).and_then(Json::as_str) == Some(value);
    if is("format", "date-time") {
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
    } else if is("format", "date") {
        DataType::Date32
    } else if is("contentEncoding", "base64") {
        DataType::Binary
    } else {
        DataType::Utf8
    }
}

/// What holds the values of each of `kinds`; `None`: only null.
fn any(kinds: Vec<Option<Kind>>) -> Option<Kind> {
    let mut kinds = kinds.into_iter().flatten();
    let mut all = kinds.next()?;
    for kind in kinds {
        // What one of them leaves open is open.
        if matches!(all, Kind::Unknown) || matches!(kind, Kind::Unknown) {
            all = Kind::Unknown;
        } else {
            all.merge(kind, &mut Source { is_schema: true, room: usize::MAX });
        }
    }
    Some(all)
}

/// What holds the values that fit both.
fn meet(one: Kind, other: Kind) -> Kind {
    match (one, other) {
        (Kind::Unknown, kind) | (kind, Kind::Unknown) => kind,
        (Kind::Struct(mut one), Kind::Struct(other)) => {
            one.is_closed |= other.is_closed;
            for (name, kind) in other.fields {
                if let Some(known) = one.field_mut(&name) {
                    *known = meet(std::mem::replace(known, Kind::Unknown), kind);
                }
            }
            Kind::Struct(one)
        }
        (Kind::List(one), Kind::List(other)) => Kind::List(ListShape {
            item: Box::new(meet(*one.item, *other.item)),
            is_firm: one.is_firm,
        }),
        (Kind::Struct(one), Kind::Map(_)) if !one.fields.is_empty() => Kind::Struct(one),
        (Kind::Struct(_), map @ Kind::Map(_)) => map,
        (Kind::Float, kind @ Kind::Int { .. }) => kind,
        (Kind::Leaf(one), Kind::Leaf(other))
            if one.is == Type::Number && other.is == Type::Integer =>
        {
            Kind::Leaf(other)
        }
        (one, _) => one,
    }
}

/// A fragment without percent signs; `None` if they are wrong.
fn unescaped(fragment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
