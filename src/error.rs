//! The error every layer returns: a kind that an edge can translate, and a sentence that names the object.

use std::fmt;
use std::io;
use std::net::SocketAddr;

/// What kind of failure this is; each edge (RESP, HTTP) translates it in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller's input is wrong; the same call will fail again.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// The caller may not do this.
    Unauthorized,
    /// The named thing exists already, or belongs to somebody else.
    Conflict,
    /// A deadline passed before the answer came.
    Timeout,
    /// Something this depends on (Kafka, most often) cannot be reached; trying again may help.
    Unavailable,
    /// A limit is reached.
    Exhausted,
    /// A place in a log that is not there any more, or not yet.
    OutOfRange,
    /// A bug, or the operating system refusing something that should work.
    Internal,
}

/// A failure: its kind, and one line that names what failed and why.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `message` is one sentence without a final stop that names the object.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Shorthand for [`ErrorKind::Invalid`], the most frequent kind.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Shorthand for [`ErrorKind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// A listener that cannot be had: says where, and which flag chooses another port.
    pub fn cannot_listen(what: &str, addr: SocketAddr, port: &str, why: &io::Error) -> Self {
        let hint = match why.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => {
                format!("; choose another port with {port}")
            }
            io::ErrorKind::AddrNotAvailable => "; --host says which address".to_owned(),
            _ => String::new(),
        };
        let message = format!("{what}: cannot listen on {addr}: {why}{hint}");
        Self::new(ErrorKind::Unavailable, message)
    }

    /// What an edge translates.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence, for the user.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
