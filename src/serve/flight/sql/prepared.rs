//! [`Statements`]: prepared statements, as long as somebody uses them, and the parameters that clients send for them.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow_flight::FlightData;
use arrow_ipc::writer::StreamWriter;
use bytes::Bytes;
use futures::StreamExt;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::decode::ipc::{guarded, read_stream};
use crate::decode::reject::{RecordLimits, Reject};
use crate::error::{Error, ErrorKind, Result};
use crate::serve::flight::put::{Incoming, framed};
use crate::sql::values::named_row;

/// Bytes of a statement. It comes back in the answer to GetFlightInfo, which most clients limit to 4 MB.
const SQL_BYTES_MAX: usize = 1 << 20;

/// Bytes of a statement's parameters, for the same reason.
const ROW_BYTES_MAX: usize = 1 << 20;

/// Bytes of all statements together.
const HELD_BYTES_MAX: u64 = 64 << 20;

/// What a statement counts for at least, which bounds their number to 1,024.
const HELD_BYTES_MIN: u32 = 64 << 10;

/// Time after which a statement that nobody has used is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(3600);

/// What is known of a prepared statement.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Its text.
    pub sql: String,
    /// The names of its parameters, in their order.
    pub parameters: Vec<String>,
    /// Its parameters, as an IPC stream of one row.
    pub row: Option<Bytes>,
}

/// See the top of this file. Those that nobody has used for the longest time make room for others.
pub struct Statements {
    held: Cache<Bytes, Arc<Prepared>>,
    /// Handles are told by nobody but their owners.
    secrets: [RandomState; 2],
    count: AtomicU64,
}

impl Statements {
    /// None.
    pub fn new() -> Self {
        let size = |_: &Bytes, prepared: &Arc<Prepared>| {
            let row = prepared.row.as_ref().map_or(0, Bytes::len);
            let names = prepared.parameters.iter().map(|name| size_of::<String>() + name.len());
            let size = prepared.sql.len() + row + names.sum::<usize>();
            u32::try_from(size).unwrap_or(u32::MAX).max(HELD_BYTES_MIN)
        };
        let held = Cache::builder()
            .max_capacity(HELD_BYTES_MAX)
            .weigher(size)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(IDLE_MAX)
            .build();
        Self { held, secrets: Default::default(), count: AtomicU64::new(0) }
    }

    /// A handle that nobody has.
    pub fn handle(&self) -> Bytes {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let parts = self.secrets.each_ref().map(|secret| secret.hash_one(number));
        Bytes::from(parts.map(|part| format!("{part:016x}")).concat())
    }

    /// The statement of a handle.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, handle: &[u8]) -> Result<Arc<Prepared>> {
        self.held.get(handle).ok_or_else(|| {
            let why = "no prepared statement with this handle: it was closed, not used for a while, or is another \
                       server's; prepare it again";
            Error::new(ErrorKind::NotFound, why)
        })
    }

    /// Keeps a statement by a handle.
    pub fn keep(&self, handle: Bytes, prepared: Prepared) {
        self.held.insert(handle, Arc::new(prepared));
    }

    /// Forgets a statement, if it is there.
    pub fn close(&self, handle: &[u8]) {
        self.held.invalidate(handle);
    }
}

/// Refuses what is too long for a statement.
///
/// # Errors
/// Says how long it may be.
pub fn check_length(sql: &str) -> Result<()> {
    match sql.len() <= SQL_BYTES_MAX {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Exhausted,
            format!("a statement of {} bytes, more than {SQL_BYTES_MAX}", sql.len()),
        )),
    }
}

/// The row of parameters that a client sends, with the `names` of the statement, as an IPC stream.
///
/// # Errors
/// What comes is damaged, too large, or no row that fits.
pub async fn row_of(first: &FlightData, mut incoming: Incoming, names: &[String]) -> Result<Bytes> {
    if first.data_header.is_empty() {
        return Err(Error::invalid("parameters begin with a schema"));
    }
    let mut stream = framed(first);
    while let Some(message) = incoming.next().await {
        let message = message.map_err(|status| Error::invalid(status.message()))?;
        // Metadata of the client's own has no header.
        if !message.data_header.is_empty() {
            stream.extend(framed(&message));
        }
        if stream.len() > ROW_BYTES_MAX {
            let why = format!("parameters of more than {ROW_BYTES_MAX} bytes");
            return Err(Error::new(ErrorKind::Exhausted, why));
        }
    }
    let invalid = |reject: Reject| Error::invalid(format!("parameters: {}", reject.message));
    let limits = RecordLimits { bytes_max: 4 * ROW_BYTES_MAX, ..RecordLimits::default() };
    let batches = read_stream(&stream, &limits).map_err(invalid)?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let row = batches.into_iter().find(|batch| batch.num_rows() > 0);
    let row = row.filter(|_| rows == 1).ok_or_else(|| {
        let why = format!(
            "one row of parameters is wanted, not {rows}; run the statement for each of them"
        );
        Error::invalid(why)
    })?;
    guarded(|| Ok(named_row(&row, names).and_then(|row| encoded(&row)))).map_err(invalid)?
}

/// A batch as an IPC stream.
///
/// # Errors
/// A failure of ours.
pub fn encoded(batch: &RecordBatch) -> Result<Bytes> {
    let internal = |error: arrow::error::ArrowError| Error::internal(error.to_string());
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).map_err(internal)?;
    writer.write(batch).map_err(internal)?;
    writer.into_inner().map(Bytes::from).map_err(internal)
}
