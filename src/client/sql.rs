//! `karrow client sql`: an answer in SQL, over Flight SQL, in one form or another.

use std::io::Read as _;

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::sql::{CommandStatementQuery, ProstMessageExt};
use arrow_flight::{FlightDescriptor, FlightInfo};
use futures::TryStreamExt;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::connection::{Server, is_lost};
use super::read::schema_of;
use super::sink::{Shown, Sink, check};
use super::table::RowsOf;
use super::{Failure, note, until};
use crate::config::flags::client::SqlFlags;

/// Asks, and writes what comes until its end or until `stop`.
///
/// # Errors
/// The server's; what DuckDB says of a statement has lines.
pub async fn run(server: Server, flags: SqlFlags, stop: CancellationToken) -> Result<(), Failure> {
    check(&flags.output)?;
    let query = until(&stop, statement(flags.statement)).await?;
    let command = CommandStatementQuery { query, transaction_id: None }.as_any().encode_to_vec();
    let asked = async {
        let info = server.client().get_flight_info(FlightDescriptor::new_cmd(command)).await;
        info.map_err(|status| failure(&server, &status))
    };
    let info: FlightInfo = until(&stop, asked).await?.into_inner();
    let hint = "a statement with fewer columns has them";
    let shown = Shown { of: RowsOf::Statement, hint };
    let mut sink = Sink::open(&flags.output, shown, &schema_of(&server, &info)?)?;
    let mut count = 0;
    let copied = until(&stop, async {
        for ticket in info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket) {
            let messages = server.client().do_get(ticket).await;
            let messages = messages.map_err(|status| failure(&server, &status))?.into_inner();
            let messages = messages.map_err(FlightError::from);
            let mut batches = FlightRecordBatchStream::new_from_flight_data(messages);
            while let Some(batch) = batches.try_next().await.map_err(|error| match error {
                FlightError::Tonic(status) => failure(&server, &status),
                error => Failure::failed(format!("{}: {error}", server.address())),
            })? {
                count += batch.num_rows();
                sink.write(&batch)?;
            }
        }
        Ok(())
    })
    .await;
    let finished = sink.finish();
    copied?;
    finished?;
    if let Some(path) = &flags.output.file {
        let rows = if count == 1 { "row is" } else { "rows are" };
        note(&format!("{count} {rows} in {}", path.display()));
    }
    Ok(())
}

/// As typed, or from stdin.
async fn statement(typed: String) -> Result<String, Failure> {
    if typed != "-" {
        return Ok(typed);
    }
    let read = tokio::task::spawn_blocking(|| {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    });
    match read.await {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(Failure::failed(format!("stdin: {error}"))),
        Err(error) => Err(Failure::failed(format!("stdin: {error}"))),
    }
}

/// What the server has against the statement is shown as it is, with the place in the text.
fn failure(server: &Server, status: &Status) -> Failure {
    match status.code() {
        Code::InvalidArgument | Code::Unimplemented => server.failure(status),
        _ if is_lost(status) => server.failure(status),
        _ => Failure::failed(status.message()),
    }
}
