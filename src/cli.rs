//! The subcommands that are no server.

pub mod topics;
