//! [`Records`]: the records of a partition, read from tansu's database over connections of our own.
//!
//! tansu 0.6 looks at all records from the offset to the end of the partition for each fetch, asks for the headers of each
//! one by itself, and never returns a record of the size that was asked for, or larger.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use libsql::{Connection, Database, Row, Value};
use parking_lot::Mutex;
use tansu_sans_io::record::header::Header;
use tansu_sans_io::record::{Record, deflated, inflated};
use tansu_storage::{Error as StorageError, Topition};

/// Connections that are kept for the next fetch.
const IDLE_MAX: usize = 4;

/// A record batch of a fetch is closed at this size, so that a client which decodes batch by batch has the first ones soon.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// What a record takes beside its key and its value, about.
const RECORD_OVERHEAD: usize = 16;

const PARTITION: &str = "select tp.id from topition tp join topic t on tp.topic = t.id \
     join cluster c on t.cluster = c.id where c.name = ?1 and t.name = ?2 and tp.partition = ?3";

const RECORDS: &str = "select offset_id, attributes, timestamp, k, v, producer_id, producer_epoch from record \
     where topition = ?1 and offset_id >= ?2 and offset_id < ?3 order by offset_id";

const HEADERS: &str = "select offset_id, k, v from header \
     where topition = ?1 and offset_id between ?2 and ?3 order by offset_id, rowid";

/// See the top of this file.
#[derive(Clone)]
pub(super) struct Records {
    database: Arc<Database>,
    idle: Arc<Mutex<Vec<Connection>>>,
    cluster: &'static str,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

impl Records {
    /// Of a database that tansu has set up.
    pub(super) async fn open(file: &Path, cluster: &'static str) -> Result<Self, StorageError> {
        let database = Arc::new(libsql::Builder::new_local(file).build().await?);
        Ok(Self { database, idle: Arc::default(), cluster })
    }

    /// Batches from `offset` up to `end` (exclusive), as many records as `bytes_max` bytes hold, but one at least; empty, if
    /// there is none.
    pub(super) async fn fetch(
        &self,
        partition: Topition,
        offset: i64,
        end: i64,
        bytes_max: usize,
    ) -> Result<Vec<deflated::Batch>, StorageError> {
        let records = self.clone();
        let read = move || {
            let idle = records.idle.lock().pop();
            let connection = idle.map_or_else(|| records.database.connect(), Ok)?;
            // A local database does its work in the call; there is nothing to wait for.
            let cluster = records.cluster;
            let found = block_on(read(&connection, cluster, &partition, offset, end, bytes_max));
            let mut idle = records.idle.lock();
            if found.is_ok() && idle.len() < IDLE_MAX {
                idle.push(connection);
            }
            found
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(found) => found,
            Err(error) => Err(StorageError::Message(error.to_string())),
        }
    }
}

async fn read(
    connection: &Connection,
    cluster: &str,
    partition: &Topition,
    offset: i64,
    end: i64,
    bytes_max: usize,
) -> Result<Vec<deflated::Batch>, StorageError> {
    // What is deleted meanwhile is whole or gone.
    let snapshot = connection.transaction().await?;
    let of = (cluster, partition.topic(), partition.partition());
    let Some(row) = snapshot.query(PARTITION, of).await?.next().await? else {
        return Ok(Vec::new());
    };
    let partition = row.get::<i64>(0)?;
    let mut rows = snapshot.query(RECORDS, (partition, offset, end)).await?;
    let mut found = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.next().await? {
        let stored = Stored::new(&row)?;
        bytes += stored.bytes();
        if bytes > bytes_max && !found.is_empty() {
            break;
        }
        found.push(stored);
    }
    drop(rows);
    let (Some(first), Some(last)) = (found.first(), found.last()) else {
        return Ok(Vec::new());
    };
    let mut headers = snapshot.query(HEADERS, (partition, first.offset, last.offset)).await?;
    let mut at = 0;
    while let Some(row) = headers.next().await? {
        let offset = row.get::<i64>(0)?;
        let header = Header { key: bytes_of(&row, 1)?, value: bytes_of(&row, 2)? };
        while found.get(at).is_some_and(|stored| stored.offset < offset) {
            at += 1;
        }
        if let Some(stored) = found.get_mut(at).filter(|stored| stored.offset == offset) {
            stored.headers.push(header);
        }
    }
    drop(headers);
    snapshot.commit().await?;
    batches(found)
}

/// A row of a record.
struct Stored {
    offset: i64,
    /// Of its batch: what producer wrote it, and how.
    origin: Origin,
    timestamp: i64,
    key: Option<Bytes>,
    value: Option<Bytes>,
    headers: Vec<Header>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Origin {
    attributes: i16,
    producer_id: i64,
    producer_epoch: i16,
}

impl Stored {
    fn new(row: &Row) -> Result<Self, StorageError> {
        let small = |index: i32, missing: i16| -> Result<i16, StorageError> {
            let number = row.get::<Option<i64>>(index)?;
            Ok(number.and_then(|number| i16::try_from(number).ok()).unwrap_or(missing))
        };
        Ok(Self {
            offset: row.get(0)?,
            origin: Origin {
                attributes: small(1, 0)?,
                producer_id: row.get::<Option<i64>>(5)?.unwrap_or(-1),
                producer_epoch: small(6, -1)?,
            },
            timestamp: row.get(2)?,
            key: bytes_of(row, 3)?,
            value: bytes_of(row, 4)?,
            headers: Vec::new(),
        })
    }

    fn bytes(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        len(&self.key) + len(&self.value) + RECORD_OVERHEAD
    }
}

fn bytes_of(row: &Row, index: i32) -> Result<Option<Bytes>, StorageError> {
    Ok(match row.get_value(index)? {
        Value::Blob(bytes) => Some(bytes.into()),
        Value::Text(text) => Some(text.into_bytes().into()),
        Value::Null | Value::Integer(_) | Value::Real(_) => None,
    })
}

/// Records of one origin that follow one another are a batch.
fn batches(found: Vec<Stored>) -> Result<Vec<deflated::Batch>, StorageError> {
    let mut batches = Vec::new();
    let mut open: Option<(Origin, usize, inflated::Batch)> = None;
    for stored in found {
        let bytes = stored.bytes();
        let is_next = |(origin, size, batch): &(Origin, usize, inflated::Batch)| {
            *origin == stored.origin
                && size + bytes <= BATCH_BYTES_MAX
                && i32::try_from(stored.offset - batch.base_offset).is_ok()
        };
        if !open.as_ref().is_some_and(is_next) {
            if let Some((_, _, batch)) = open.take() {
                batches.push(batch.try_into()?);
            }
            open = Some((stored.origin, 0, begin(&stored)));
        }
        if let Some((_, size, batch)) = &mut open {
            *size += bytes;
            add(batch, stored)?;
        }
    }
    if let Some((_, _, batch)) = open {
        batches.push(batch.try_into()?);
    }
    Ok(batches)
}

fn begin(first: &Stored) -> inflated::Batch {
    inflated::Batch {
        base_offset: first.offset,
        partition_leader_epoch: -1,
        magic: 2,
        attributes: first.origin.attributes,
        base_timestamp: first.timestamp,
        max_timestamp: first.timestamp,
        producer_id: first.origin.producer_id,
        producer_epoch: first.origin.producer_epoch,
        base_sequence: 0,
        ..inflated::Batch::default()
    }
}

fn add(batch: &mut inflated::Batch, stored: Stored) -> Result<(), StorageError> {
    let delta = i32::try_from(stored.offset - batch.base_offset)?;
    let mut record = Record::builder()
        .offset_delta(delta)
        .timestamp_delta(stored.timestamp - batch.base_timestamp)
        .key(stored.key)
        .value(stored.value);
    for header in stored.headers {
        record = record.header(header.into());
    }
    batch.records.push(record.try_into()?);
    batch.last_offset_delta = delta;
    batch.max_timestamp = batch.max_timestamp.max(stored.timestamp);
    Ok(())
}
