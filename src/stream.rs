//! Consumer sessions, the registry that names them, and batches; knows no protocol.

pub mod acks;
pub mod assembler;
pub mod batch;
pub mod cursor;
pub mod drain;
pub mod encoded;
pub mod fit;
pub mod letters;
pub mod owed;
pub mod registry;
pub mod scan;
pub mod session;
pub mod streams;
pub mod topic_stream;
pub mod window;

use crate::error::{Error, ErrorKind, Result};

/// Whether waiting may help.
fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::NotFound)
}

/// Does what blocks on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::internal(error.to_string())))
}
