//! Schemas that values name by an id: what decoders ask for, and what answers them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::error::{Error, Result};

/// How long to wait before a registry is asked again.
const FETCH_BACKOFF_MIN: Duration = Duration::from_millis(100);

/// The longest such wait.
const FETCH_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Schemas that are fetched at a time for one batch.
const FETCHES_MAX: usize = 8;

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

    /// What is known of `key` once it was asked for; never [`Lookup::Unfetched`]. Without an own way, all is at hand.
    ///
    /// # Errors
    /// It cannot be found out now; trying again may help.
    fn fetch(&self, key: SchemaKey) -> BoxFuture<'_, Result<Lookup>> {
        Box::pin(std::future::ready(Ok(self.look_up(&key))))
    }
}

/// The schemas of one reader's batches. What was fetched for a batch stays known until that batch is decoded: elsewhere
/// it is forgotten after a while that there is no such schema, and a batch that names thousands of them would otherwise
/// wait for the last answers until the first ones are gone, for ever.
pub struct BatchSchemas {
    all: Arc<dyn Schemas>,
    answers: Mutex<HashMap<SchemaKey, Lookup>>,
}

impl BatchSchemas {
    /// Nothing was fetched for a batch yet; `all` knows what does not have to be.
    pub fn new(all: Arc<dyn Schemas>) -> Arc<Self> {
        Arc::new(Self { all, answers: Mutex::default() })
    }

    /// Fetches `keys` for the batch at hand, however long that takes: an unreachable registry is no error of the data.
    pub async fn fetch_all(self: Arc<Self>, keys: Vec<SchemaKey>) {
        let mut backoff = FETCH_BACKOFF_MIN;
        let attempt = || async {
            let (schemas, keys) = (self.clone(), keys.clone());
            // Goes on when the pop that waits for it gives up: a registry that is slower than a pop's timeout must still
            // be got past by the next one.
            let attempt = tokio::spawn(async move { schemas.attempt(&keys).await });
            attempt.await.unwrap_or_else(|error| Err(Error::internal(error.to_string())))
        };
        while let Err(error) = attempt().await {
            tracing::warn!(%error, "schemas cannot be fetched; trying again");
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(FETCH_BACKOFF_MAX);
        }
    }

    async fn attempt(&self, keys: &[SchemaKey]) -> Result<()> {
        for keys in keys.chunks(FETCHES_MAX) {
            let fetches = keys.iter().map(|key| async {
                if !self.answers.lock().contains_key(key) {
                    let answer = self.all.fetch(*key).await?;
                    self.answers.lock().insert(*key, answer);
                }
                Ok(())
            });
            // What the others got is kept, also if one of them fails.
            futures::future::join_all(fetches).await.into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    /// The batch is decoded: the next one asks for itself.
    pub fn forget(&self) {
        self.answers.lock().clear();
    }
}

impl Schemas for BatchSchemas {
    fn look_up(&self, key: &SchemaKey) -> Lookup {
        match self.all.look_up(key) {
            Lookup::Unfetched => self.answers.lock().get(key).cloned().unwrap_or(Lookup::Unfetched),
            known => known,
        }
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
