//! Schemas that values name by an id: what decoders ask for, and what answers them.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::error::Result;

/// How a value names its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SchemaKey {
    /// An id of the registry.
    Id(u32),
    /// The id that is the same in every registry.
    Guid([u8; 16]),
}

/// The language of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaKind {
    /// Apache Avro.
    Avro,
    /// JSON Schema.
    Json,
    /// Protocol Buffers.
    Protobuf,
}

/// A schema of a registry with everything it refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredSchema {
    /// What values call it.
    pub key: SchemaKey,
    /// Its language.
    pub kind: SchemaKind,
    /// The schema itself.
    pub text: String,
    /// All it refers to, directly or not; what something refers to comes before it.
    pub references: Vec<Reference>,
}

/// A schema that another one refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// As it is called there: an Avro full name, a path to import.
    pub name: String,
    /// The schema itself.
    pub text: String,
}

/// The answer to a question for a schema.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// Here it is.
    Known(Arc<RegisteredSchema>),
    /// There is no such schema, or it cannot be used: why. Values that name it are bad rows.
    Unknown(String),
    /// It has to be fetched first.
    Unfetched,
}

/// Where schemas come from.
pub trait Schemas: Send + Sync {
    /// What is known of `key`; costs no request.
    fn look_up(&self, key: &SchemaKey) -> Lookup;

    /// Gets hold of `keys`, so that none of them is [`Lookup::Unfetched`] any more. Without an own way, all of them are at
    /// hand already.
    ///
    /// # Errors
    /// It cannot be found out now; trying again may help.
    fn fetch<'a>(&'a self, _keys: &'a [SchemaKey]) -> BoxFuture<'a, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

impl fmt::Display for SchemaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Guid(bytes) => {
                for (at, byte) in bytes.iter().enumerate() {
                    let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
                    write!(f, "{dash}{byte:02x}")?;
                }
                Ok(())
            }
        }
    }
}
