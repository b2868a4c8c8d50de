//! The process: flags, logging, signals, exit code. Everything else is in the library.

use std::process::ExitCode;

use clap::error::ErrorKind as UsageErrorKind;
use karrow::client;
use karrow::config::environment::{self, Mistake};
use karrow::config::flags::client::ClientFlags;
use karrow::config::flags::{Command, LogFormat, ServeFlags, TopicsFlags};
use karrow::config::{Config, KafkaConfig, LogConfig, Warning};
use karrow::error::{Error, ErrorKind, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// `EX_USAGE` of sysexits.h: the command line or a file it names is wrong.
const EXIT_USAGE: u8 = 64;

/// Something failed, or messages that clients were told are buffered were not stored when the grace of a stop ended.
const EXIT_FAILURE: u8 = 1;

/// Libraries that log each error before they return it: karrow reports it, once.
const QUIET: &str =
    "tansu_broker=off,tansu_storage=off,tansu_service=off,tansu_sans_io=off,rama=off";

/// Blocks up to this size come from the heap.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAP_BLOCK_BYTES_MAX: libc::c_int = 16 << 20;

/// Freed memory that the heap keeps.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAP_SPARE_BYTES_MAX: libc::c_int = 32 << 20;

/// Left to itself, glibc gives the memory of each batch back to the system, which clears it anew for the next one: that
/// cost a fifth to a quarter more CPU time for draining a topic of small messages (benches/drain).
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt changes two numbers of the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, HEAP_BLOCK_BYTES_MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, HEAP_SPARE_BYTES_MAX);
    }
}

fn main() -> ExitCode {
    keep_freed_memory();
    let args: Vec<_> = std::env::args_os().collect();
    let cli = match environment::parse(&args) {
        Ok(cli) => cli,
        Err(Mistake::Variable(error)) => return fail(&error, EXIT_USAGE),
        Err(Mistake::Flag(usage)) => {
            // Help and version are no errors; clap prints them to stdout, the rest to stderr.
            let _ = usage.print();
            return match usage.kind() {
                UsageErrorKind::DisplayHelp | UsageErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(EXIT_USAGE),
            };
        }
    };
    let outcome = match cli.command {
        Command::Serve(flags) => serve(*flags),
        Command::Topics(flags) => topics(flags).map(|()| ExitCode::SUCCESS),
        Command::Client(flags) => client(flags).map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(code) => code,
        Err(Failure::Usage(error)) => fail(&error, EXIT_USAGE),
        Err(Failure::Runtime(error)) => fail(&error, EXIT_FAILURE),
    }
}

enum Failure {
    Usage(Error),
    Runtime(Error),
}

fn fail(error: &Error, code: u8) -> ExitCode {
    eprintln!("karrow: {error}");
    ExitCode::from(code)
}

fn serve(flags: ServeFlags) -> Result<ExitCode, Failure> {
    let (config, warnings) = Config::load(flags).map_err(Failure::Usage)?;
    start_logging(&config.log, &warnings).map_err(Failure::Usage)?;
    karrow::kafka::options::check(&config.kafka).map_err(Failure::Usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.resp.io_threads)
        .enable_all()
        .build()
        .map_err(|error| internal("cannot start threads", &error))?;
    let lost = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        cancel_on_signal(shutdown.clone())
            .map_err(|error| internal("cannot watch signals", &error))?;
        karrow::app::serve(config, shutdown).await.map_err(|error| match error.kind() {
            // What only the start can check: files with schemas, a registry's URL.
            ErrorKind::Invalid => Failure::Usage(error),
            _ => Failure::Runtime(error),
        })
    });
    // Requests that still wait for a broker must not hold the process beyond its grace.
    runtime.shutdown_background();
    // They are in the log already.
    Ok(if lost? > 0 { ExitCode::from(EXIT_FAILURE) } else { ExitCode::SUCCESS })
}

fn topics(flags: TopicsFlags) -> Result<(), Failure> {
    let (kafka, warnings) =
        KafkaConfig::load(&flags.files, flags.brokers.clone()).map_err(Failure::Usage)?;
    for warning in warnings {
        eprintln!("karrow: warning: {warning}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| internal("cannot start", &error))?;
    runtime.block_on(karrow::cli::topics::run(flags, kafka)).map_err(Failure::Runtime)
}

fn client(flags: ClientFlags) -> Result<(), Failure> {
    // The connection lives while the output waits for its reader.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| internal("cannot start threads", &error))?;
    let done = runtime.block_on(async {
        let stop = CancellationToken::new();
        cancel_on_signal(stop.clone()).map_err(|error| internal("cannot watch signals", &error))?;
        match client::run(flags, stop).await {
            Ok(()) | Err(client::Failure::ReaderGone) => Ok(()),
            Err(client::Failure::Usage(error)) => Err(Failure::Usage(error)),
            Err(client::Failure::Failed(error)) => Err(Failure::Runtime(error)),
        }
    });
    // Nobody waits for who reads stdin.
    runtime.shutdown_background();
    done
}

fn internal(what: &str, error: &std::io::Error) -> Failure {
    Failure::Runtime(Error::new(ErrorKind::Internal, format!("{what}: {error}")))
}

/// The first SIGTERM or SIGINT stops gracefully, the second one at once.
fn cancel_on_signal(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let code = loop {
            let code = tokio::select! {
                _ = terminate.recv() => 128 + libc::SIGTERM,
                _ = interrupt.recv() => 128 + libc::SIGINT,
            };
            if shutdown.is_cancelled() {
                break code;
            }
            tracing::info!("stopping; once more to stop at once");
            shutdown.cancel();
        };
        std::process::exit(code);
    });
    Ok(())
}

fn start_logging(log: &LogConfig, warnings: &[Warning]) -> Result<()> {
    // A plain level quiets the libraries; whoever writes directives decides for himself.
    let directives = match log.level.contains(['=', ',']) {
        true => log.level.clone(),
        false => format!("{},{QUIET}", log.level),
    };
    let filter = EnvFilter::try_new(&directives)
        .map_err(|error| Error::invalid(format!("log-level: '{}': {error}", log.level)))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Its words on a log that nobody reads any more would go to the same place, and panic.
        .log_internal_errors(false);
    match log.format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(())
}
