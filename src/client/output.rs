//! [`Output`]: where bytes go, a file or stdout, and why they do not.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::Failure;

/// See the top of this file. What writes through it may lose the kind of an error, so it is kept here.
pub struct Output {
    to: BufWriter<Box<dyn Write + Send>>,
    broken: Broken,
}

/// What went wrong with an [`Output`].
#[derive(Clone, Debug)]
pub struct Broken {
    name: Arc<str>,
    error: Arc<OnceLock<(io::ErrorKind, String)>>,
}

impl Output {
    /// To stdout.
    pub fn stdout() -> Self {
        Self::new("stdout", Box::new(io::stdout()))
    }

    /// To a file that is made anew.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let file = File::create(path)
            .map_err(|error| Failure::failed(format!("{name}: cannot create it: {error}")))?;
        Ok(Self::new(&name, Box::new(file)))
    }

    fn new(name: &str, to: Box<dyn Write + Send>) -> Self {
        let broken = Broken { name: name.into(), error: Arc::default() };
        Self { to: BufWriter::new(to), broken }
    }

    /// To ask afterwards.
    pub fn broken(&self) -> Broken {
        self.broken.clone()
    }
}

impl Broken {
    /// What `error`, of something that wrote there, means for the command.
    pub fn failure(&self, error: &dyn std::fmt::Display) -> Failure {
        match self.error.get() {
            Some((io::ErrorKind::BrokenPipe, _)) => Failure::ReaderGone,
            Some((_, why)) => Failure::failed(format!("{}: cannot write: {why}", self.name)),
            None => Failure::failed(format!("{}: cannot write: {error}", self.name)),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes);
        self.note(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.to.flush();
        self.note(flushed)
    }
}

impl Output {
    fn note<T>(&self, done: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &done {
            // The first one tells.
            let _ = self.broken.error.set((error.kind(), error.to_string()));
        }
        done
    }
}

/// Writes all of `text` to stdout.
///
/// # Errors
/// Nobody reads it, or it cannot be written.
pub fn print(text: &[u8]) -> Result<(), Failure> {
    let mut output = Output::stdout();
    let broken = output.broken();
    output.write_all(text).and_then(|()| output.flush()).map_err(|error| broken.failure(&error))
}

/// Columns of the terminal that stdout is, if it is one.
pub fn terminal_width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let width = terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0);
    Some(usize::from(width.unwrap_or(80)))
}
