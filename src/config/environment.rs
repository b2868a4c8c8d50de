//! The `KARROW_…` variables beside the command line: which ones there are, and what a wrong one is told.

use std::error::Error as _;
use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Command, CommandFactory, FromArgMatches};

use crate::error::{Error, Result};

use super::flags::Cli;

const PREFIX: &str = "KARROW_";
/// Names the program for its tests and benchmarks, whose environment it inherits.
const NO_SETTINGS: [&str; 1] = ["KARROW_BIN"];

/// Why the process cannot start as it was asked to.
#[derive(Debug)]
pub enum Mistake {
    /// On the command line; or no mistake, but a wish for help. clap has the words.
    Flag(clap::Error),
    /// In the environment: one line.
    Variable(Error),
}

/// Reads `args`, the program's name first, and the environment of this process.
pub fn parse(args: &[OsString]) -> Result<Cli, Mistake> {
    let given: Vec<(OsString, OsString)> = std::env::vars_os()
        .filter(|(name, _)| name.to_string_lossy().starts_with(PREFIX))
        .collect();
    let foreign = |name: &OsStr| {
        given.iter().any(|(known, value)| known == name && is_service_link(known, value))
    };
    let command = without_variables(Cli::command(), &foreign);
    let read = |command: Command| {
        command.try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches))
    };
    let cli = match read(command.clone()) {
        Ok(cli) => cli,
        // Right without its variables: then it is one of them.
        Err(error) => match read(without_variables(command.clone(), &|_| true)) {
            Ok(_) => return Err(Mistake::Variable(wrong_value(&command, &error))),
            Err(error) => return Err(Mistake::Flag(error)),
        },
    };
    let mut known = Vec::new();
    collect_variables(&command, &mut known);
    let unknown: Vec<_> = given
        .iter()
        .filter(|(name, value)| {
            !known.iter().any(|(_, variable)| variable == name) && !is_service_link(name, value)
        })
        .map(|(name, _)| name.to_string_lossy())
        .filter(|name| !NO_SETTINGS.contains(&name.as_ref()))
        .collect();
    match unknown.as_slice() {
        [] => Ok(cli),
        names => Err(Mistake::Variable(Error::invalid(format!(
            "{}: unknown setting in the environment, `karrow serve --help` lists all",
            names.join(", ")
        )))),
    }
}

/// What Kubernetes sets in every container for a service that is called `karrow` or `karrow-…`:
/// `KARROW_PORT=tcp://10.0.0.1:6380`, `KARROW_SERVICE_HOST`, `KARROW_PORT_6380_TCP_ADDR`.
fn is_service_link(name: &OsStr, value: &OsStr) -> bool {
    let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
    let numbered = name
        .match_indices("_PORT_")
        .any(|(at, word)| name[at + word.len()..].starts_with(|c: char| c.is_ascii_digit()));
    let address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    numbered
        || name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && address)
}

fn without_variables(command: Command, is_out: &dyn Fn(&OsStr) -> bool) -> Command {
    let strip = |arg: Arg| match arg.get_env().is_some_and(is_out) {
        true => arg.env(None::<&'static str>),
        false => arg,
    };
    let names: Vec<String> =
        command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names.into_iter().fold(command.mut_args(strip), |command, name| {
        command.mut_subcommand(name, |command| without_variables(command, is_out))
    })
}

/// Flag and variable of each setting.
fn collect_variables(command: &Command, found: &mut Vec<(String, OsString)>) {
    for arg in command.get_arguments() {
        if let Some(variable) = arg.get_env() {
            found.push((arg.get_long().unwrap_or("config").to_owned(), variable.to_owned()));
        }
    }
    command.get_subcommands().for_each(|command| collect_variables(command, found));
}

/// clap's error about a value that came from a variable, in one line that names the variable.
fn wrong_value(command: &Command, error: &clap::Error) -> Error {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    // "--lpop-wait <DURATION>", "--embedded[=<BOOL>]"
    let arg = context(ContextKind::InvalidArg);
    let flag = arg.trim_start_matches('-').split([' ', '[', '=']).next().unwrap_or_default();
    let mut known = Vec::new();
    collect_variables(command, &mut known);
    let variable = known
        .iter()
        .find(|(long, _)| long == flag)
        .map_or_else(|| arg.clone().into(), |(_, variable)| variable.to_string_lossy());
    let value = context(ContextKind::InvalidValue);
    let reason = match (error.source().map(ToString::to_string), value.as_str()) {
        (_, "") => "must not be empty".to_owned(),
        (Some(reason), value) if reason.contains(value) => reason,
        (Some(reason), value) => format!("'{value}': {reason}"),
        (None, value) => {
            format!("'{value}' is none of {}", context(ContextKind::ValidValue))
        }
    };
    Error::invalid(format!("{variable}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_may_have_a_service_of_our_name() {
        for (name, value, expected) in [
            ("KARROW_PORT", "tcp://10.0.0.1:6380", true),
            ("KARROW_HTTP_PORT", "tcp://10.0.0.1:80", true),
            ("KARROW_PORT_6380_TCP", "tcp://10.0.0.1:6380", true),
            ("KARROW_PORT_6380_TCP_PROTO", "tcp", true),
            ("KARROW_SERVICE_HOST", "10.0.0.1", true),
            ("KARROW_SERVICE_PORT_RESP", "6380", true),
            ("KARROW_A_B_SERVICE_PORT", "6380", true),
            ("KARROW_PORT", "6380", false),
            ("KARROW_PORTS", "tcp://10.0.0.1:6380", false),
            ("KARROW_PORT_RESP", "6380", false),
        ] {
            let found = is_service_link(OsStr::new(name), OsStr::new(value));
            assert_eq!(found, expected, "{name}={value}");
        }
    }
}
