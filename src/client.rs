//! `karrow client`: topics of a running karrow, read and written over Arrow Flight.

mod actions;
mod connection;
mod get;
mod input;
mod list;
mod output;
mod progress;
mod put;
mod read;
mod sink;
mod sql;
mod table;

use tokio_util::sync::CancellationToken;

use crate::config::flags::client::{ClientCommand, ClientFlags};
use crate::error::{Error, ErrorKind};
use connection::{PORT, Server};

/// Why a command did not do all of what it was asked for.
#[derive(Debug)]
pub enum Failure {
    /// The command line asks for what cannot be.
    Usage(Error),
    /// Something else was in the way.
    Failed(Error),
    /// Nobody reads the output any more, which is an end as good as any.
    ReaderGone,
}

impl Failure {
    fn usage(message: impl Into<String>) -> Self {
        Self::Usage(Error::invalid(message))
    }

    fn failed(message: impl Into<String>) -> Self {
        Self::Failed(Error::new(ErrorKind::Unavailable, message))
    }
}

/// Runs the command, until it is done or `stop` is cancelled.
///
/// # Errors
/// One line each, which names the topic, the file or the server.
pub async fn run(flags: ClientFlags, stop: CancellationToken) -> Result<(), Failure> {
    let server = until(&stop, Server::connect(&flags.server)).await?;
    let done = match flags.command {
        ClientCommand::List(flags) => until(&stop, list::run(server.clone(), &flags)).await,
        ClientCommand::Get(flags) => get::run(server.clone(), *flags, stop.clone()).await,
        ClientCommand::Sql(flags) => sql::run(server.clone(), flags, stop.clone()).await,
        ClientCommand::Put(flags) => put::run(server.clone(), flags, stop.clone()).await,
        ClientCommand::Actions(flags) => until(&stop, actions::run(server.clone(), flags)).await,
    };
    match done {
        // What another server makes of Flight's messages explains nothing.
        Err(Failure::Failed(error)) if !stop.is_cancelled() && server.is_another().await => {
            Err(Failure::failed(format!(
                "{error}; {} is not Arrow Flight; karrow's port for it is {PORT}",
                server.address()
            )))
        }
        done => done,
    }
}

/// What `work` has to say, if `stop` does not come first.
async fn until<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        done = work => done,
        () = stop.cancelled() => Err(Failure::failed("interrupted")),
    }
}

/// A line for the user, beside the output.
fn note(text: &str) {
    use std::io::Write as _;
    // Nobody reading it is no reason to end.
    let _ = writeln!(std::io::stderr(), "karrow: {text}");
}
