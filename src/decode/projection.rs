//! [`Projection`]: which columns a reader wants.

use std::collections::HashMap;

/// The wanted part of a struct, or of what it nests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Projection {
    /// All of it.
    #[default]
    All,
    /// Only these fields, each with the part of it that is wanted.
    Fields(HashMap<Box<str>, Projection>),
}

impl Projection {
    /// From names as a user writes them: dots lead into structs, and a name without them means all of a column. No names
    /// mean everything.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self::of_paths(names.into_iter().map(|name| name.split('.').collect()))
    }

    /// The same from the names on the way to each field, which may have dots.
    pub fn of_paths<'a>(paths: impl IntoIterator<Item = Vec<&'a str>>) -> Self {
        let mut projection = Self::Fields(HashMap::new());
        for path in paths {
            projection.add(&path);
        }
        match projection {
            Self::Fields(fields) if fields.is_empty() => Self::All,
            projection => projection,
        }
    }

    fn add(&mut self, path: &[&str]) {
        let Self::Fields(fields) = self else { return };
        match path {
            [] => {}
            [name] => {
                fields.insert((*name).into(), Self::All);
            }
            [first, rest @ ..] => {
                fields
                    .entry((*first).into())
                    .or_insert_with(|| Self::Fields(HashMap::new()))
                    .add(rest);
            }
        }
    }

    /// No field at all.
    pub fn nothing() -> Self {
        Self::Fields(HashMap::new())
    }

    /// The names of the wanted fields; none, where all are.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let fields = match self {
            Self::All => None,
            Self::Fields(fields) => Some(fields),
        };
        fields.into_iter().flat_map(HashMap::keys).map(AsRef::as_ref)
    }

    /// Whether it wants no field.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Fields(fields) if fields.is_empty())
    }

    /// The same with other names, or none, for its fields.
    pub fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Self {
        match self {
            Self::All => Self::All,
            Self::Fields(fields) => Self::Fields(
                fields
                    .iter()
                    .filter_map(|(name, below)| Some((rename(name)?.into(), below.clone())))
                    .collect(),
            ),
        }
    }

    /// Nothing is left out.
    pub fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }

    /// What is wanted of the field `name`; `None`: nothing.
    pub fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Self::All => Some(self),
            Self::Fields(fields) => fields.get(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_into_structs() {
        let wanted =
            Projection::new(["offset", "payload.price", "payload.who.name", "key", "key.part"]);
        let payload = wanted.field("payload").expect("wanted");
        assert!(
            wanted.field("offset").expect("wanted").is_all() && wanted.field("timestamp").is_none()
        );
        assert!(
            payload.field("price").expect("wanted").is_all() && payload.field("name").is_none()
        );
        assert!(payload.field("who").expect("wanted").field("name").is_some());
        assert!(wanted.field("key").expect("wanted").is_all(), "all of a column stays all of it");
        assert!(Projection::new([]).field("anything").is_some());
        let dotted = Projection::of_paths([vec!["payload", "a.b"]]);
        assert!(dotted.field("payload").expect("wanted").field("a.b").is_some());
    }
}
