//! The handshake, and what a connection says about itself: HELLO, CLIENT, QUIT and their like.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Client, Outcome, integer, text};
use crate::serve::resp::clients::ClientInfo;
use crate::serve::resp::reply::{Output, Protocol};

/// The Redis whose commands and habits clients may expect; they read features from it.
pub const REDIS_VERSION: &str = "7.4.0";

pub fn ping(_: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    match args {
        [_] => out.simple("PONG"),
        [_, message] => out.bulk(message),
        _ => out.error("ERR wrong number of arguments for 'ping' command"),
    }
    Outcome::Done
}

pub fn echo(_: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    out.bulk(args.get(1).copied().unwrap_or_default());
    Outcome::Done
}

pub fn hello(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let mut protocol = out.protocol();
    let mut name = None;
    let mut rest = args.iter().skip(1);
    if let Some(version) = rest.next() {
        protocol = match integer(version) {
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => {
                out.error("NOPROTO unsupported protocol version");
                return Outcome::Done;
            }
            None => {
                out.error("ERR Protocol version is not an integer or out of range");
                return Outcome::Done;
            }
        };
    }
    // Everything is checked before anything changes.
    while let Some(option) = rest.next() {
        if option.eq_ignore_ascii_case(b"AUTH")
            && let (Some(user), Some(_)) = (rest.next(), rest.next())
        {
            if let Err(why) = authenticate(Some(user)) {
                out.error(why);
                return Outcome::Done;
            }
        } else if option.eq_ignore_ascii_case(b"SETNAME")
            && let Some(wanted) = rest.next()
        {
            name = Some(*wanted);
        } else {
            out.error(&format!("ERR Syntax error in HELLO option '{}'", text(option)));
            return Outcome::Done;
        }
    }
    if let Some(name) = name
        && let Err(why) = set_name(client, name)
    {
        out.error(&why);
        return Outcome::Done;
    }
    out.set_protocol(protocol);
    client.info.protocol.store(protocol.number(), Ordering::Relaxed);
    out.map(7);
    out.bulk("server");
    out.bulk("karrow");
    out.bulk("version");
    out.bulk(REDIS_VERSION);
    out.bulk("proto");
    out.int(protocol.number().into());
    out.bulk("id");
    out.int(i64::try_from(client.info.id).unwrap_or(i64::MAX));
    out.bulk("mode");
    out.bulk("standalone");
    out.bulk("role");
    out.bulk("master");
    out.bulk("modules");
    out.array(0);
    Outcome::Done
}

pub fn auth(_: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let user = match args {
        [_, _] => None,
        [_, user, _] => Some(*user),
        _ => {
            out.error("ERR syntax error");
            return Outcome::Done;
        }
    };
    match authenticate(user) {
        Ok(()) => out.simple("OK"),
        Err(why) => out.error(why),
    }
    Outcome::Done
}

/// Redis's answers where no user has a password.
fn authenticate(user: Option<&[u8]>) -> Result<(), &'static str> {
    match user {
        Some(b"default") => Ok(()),
        Some(_) => Err("WRONGPASS invalid username-password pair or user is disabled."),
        None => Err(
            "ERR AUTH <password> called without any password configured for the default user. Are you \
                     sure your configuration is correct?",
        ),
    }
}

pub fn select(_: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    match args.get(1).and_then(|index| integer(index)) {
        Some(0) => out.simple("OK"),
        Some(_) => out.error("ERR DB index is out of range"),
        None => out.error("ERR value is not an integer or out of range"),
    }
    Outcome::Done
}

pub fn quit(client: &mut Client, _: &[&[u8]], out: &mut Output) -> Outcome {
    // The name is free before the answer goes out.
    client.end_session();
    out.simple("OK");
    Outcome::Close
}

pub fn reset(client: &mut Client, _: &[&[u8]], out: &mut Output) -> Outcome {
    client.gateway.clients.unmonitor(&client.info);
    *client = Client {
        account: client.account.clone(),
        ..Client::new(client.gateway.clone(), client.info.clone())
    };
    client.info.said.lock().name = None;
    client.info.protocol.store(2, Ordering::Relaxed);
    out.set_protocol(Protocol::Resp2);
    out.simple("RESET");
    Outcome::Done
}

pub fn client(client: &mut Client, args: &[&[u8]], out: &mut Output) -> Outcome {
    let subcommand = args.get(1).map(|name| name.to_ascii_lowercase()).unwrap_or_default();
    match (subcommand.as_slice(), args.get(2..).unwrap_or_default()) {
        (b"setname", [name]) => match set_name(client, name) {
            // A bulk string, as rafka answers; Redis's clients take either.
            Ok(()) => out.bulk("OK"),
            Err(why) => out.error(&why),
        },
        (b"getname", []) => match client.info.name() {
            Some(name) => out.bulk(name.as_bytes()),
            None => out.bulk(client.info.addr.to_string()),
        },
        (b"id", []) => out.int(i64::try_from(client.info.id).unwrap_or(i64::MAX)),
        (b"info", []) => {
            let line = line(client, &client.info) + "\n";
            out.text(&line);
        }
        (b"list", filters) => list(client, filters, out),
        (b"kill", filters) => return kill(client, filters, out),
        (b"setinfo", [what, value]) => match set_info(&client.info, what, value) {
            Ok(()) => out.simple("OK"),
            Err(why) => out.error(&why),
        },
        (b"no-evict" | b"no-touch", [flag]) => {
            if flag.eq_ignore_ascii_case(b"on") || flag.eq_ignore_ascii_case(b"off") {
                out.simple("OK");
            } else {
                out.error("ERR syntax error");
            }
        }
        (b"setname" | b"getname" | b"id" | b"info" | b"setinfo" | b"no-evict" | b"no-touch", _) => {
            out.error(&format!(
                "ERR wrong number of arguments for 'client|{}' command",
                text(&subcommand)
            ));
        }
        _ => {
            let name = args.get(1).copied().unwrap_or_default();
            out.error(&format!("ERR unknown subcommand '{}'. Try CLIENT HELP.", text(name)));
        }
    }
    Outcome::Done
}

/// Any name is taken; what it means is found out when the connection pops or acks. One with a colon stays.
fn set_name(client: &mut Client, name: &[u8]) -> Result<(), String> {
    if !name.iter().all(u8::is_ascii_graphic) {
        return Err(
            "ERR Client names cannot contain spaces, newlines or special characters.".to_owned()
        );
    }
    let name = text(name);
    let mut said = client.info.said.lock();
    if let Some(before) = &said.name
        && before.contains(':')
        && **before != *name
    {
        return Err(format!("CONS Client ID is already set to {before}"));
    }
    said.name = (!name.is_empty()).then(|| Arc::from(name));
    Ok(())
}

fn set_info(info: &ClientInfo, what: &[u8], value: &[u8]) -> Result<(), String> {
    if !value.iter().all(u8::is_ascii_graphic) {
        return Err(format!(
            "ERR {} cannot contain spaces, newlines or special characters.",
            text(what)
        ));
    }
    let mut said = info.said.lock();
    if what.eq_ignore_ascii_case(b"lib-name") {
        said.lib_name = text(value);
    } else if what.eq_ignore_ascii_case(b"lib-ver") {
        said.lib_version = text(value);
    } else {
        return Err(format!("ERR Unrecognized option '{}'", text(what)));
    }
    Ok(())
}

fn line(client: &Client, info: &ClientInfo) -> String {
    let session = info.name().and_then(|name| client.gateway.registry.session(&name));
    match session {
        Some(session) => info.line(Some(&session.topics().join(",")), &session.missing()),
        None => info.line(None, &[]),
    }
}

/// Whether this type is `normal`, the only one that clients have here.
fn client_type(name: &[u8]) -> Result<bool, String> {
    match name.to_ascii_lowercase().as_slice() {
        b"normal" => Ok(true),
        b"master" | b"replica" | b"slave" | b"pubsub" => Ok(false),
        _ => Err(format!("ERR Unknown client type '{}'", text(name))),
    }
}

fn list(client: &Client, filters: &[&[u8]], out: &mut Output) {
    let wanted: Option<Vec<u64>> = match filters {
        [] => None,
        [option, kind] if option.eq_ignore_ascii_case(b"TYPE") => match client_type(kind) {
            Ok(true) => None,
            Ok(false) => Some(Vec::new()),
            Err(why) => {
                out.error(&why);
                return;
            }
        },
        [option, ids @ ..] if option.eq_ignore_ascii_case(b"ID") && !ids.is_empty() => {
            match ids.iter().map(|id| integer(id).and_then(|id| u64::try_from(id).ok())).collect() {
                Some(ids) => Some(ids),
                None => {
                    out.error("ERR Invalid client ID");
                    return;
                }
            }
        }
        _ => {
            out.error("ERR syntax error");
            return;
        }
    };
    let mut lines = String::new();
    for info in client.gateway.clients.all() {
        if wanted.as_ref().is_none_or(|wanted| wanted.contains(&info.id)) {
            lines.push_str(&line(client, &info));
            lines.push('\n');
        }
    }
    out.text(&lines);
}

/// `CLIENT KILL addr`, which answers OK, or with filters, which answers a count. Unlike the old form, filters
/// spare the caller unless `SKIPME no` is said.
fn kill(client: &mut Client, filters: &[&[u8]], out: &mut Output) -> Outcome {
    let everybody = client.gateway.clients.all();
    if let [addr] = filters {
        let addr = text(addr);
        match everybody.iter().find(|info| info.addr.to_string() == addr) {
            Some(info) => {
                out.simple("OK");
                if info.id == client.info.id {
                    return Outcome::Close;
                }
                info.kill();
            }
            None => out.error("ERR No such client"),
        }
        return Outcome::Done;
    }
    let mut victims = everybody;
    let mut skip_me = true;
    if filters.is_empty() {
        out.error("ERR wrong number of arguments for 'client|kill' command");
        return Outcome::Done;
    }
    if !filters.len().is_multiple_of(2) {
        out.error("ERR syntax error");
        return Outcome::Done;
    }
    for pair in filters.chunks_exact(2) {
        let (option, value) = (pair[0].to_ascii_uppercase(), text(pair[1]));
        match option.as_slice() {
            b"ID" => match integer(pair[1]).and_then(|id| u64::try_from(id).ok()) {
                Some(id) if id > 0 => victims.retain(|info| info.id == id),
                _ => {
                    out.error("ERR client-id should be greater than 0");
                    return Outcome::Done;
                }
            },
            b"ADDR" => victims.retain(|info| info.addr.to_string() == value),
            b"LADDR" => victims.retain(|info| info.local_addr.to_string() == value),
            b"USER" if value == "default" => {}
            b"USER" => {
                out.error(&format!("ERR No such user '{value}'"));
                return Outcome::Done;
            }
            b"TYPE" => match client_type(pair[1]) {
                Ok(normal) => victims.retain(|_| normal),
                Err(why) => {
                    out.error(&why);
                    return Outcome::Done;
                }
            },
            b"SKIPME" if value.eq_ignore_ascii_case("yes") => skip_me = true,
            b"SKIPME" if value.eq_ignore_ascii_case("no") => skip_me = false,
            _ => {
                out.error("ERR syntax error");
                return Outcome::Done;
            }
        }
    }
    victims.retain(|info| !skip_me || info.id != client.info.id);
    out.int(victims.len() as i64);
    let mut outcome = Outcome::Done;
    for info in victims {
        if info.id == client.info.id {
            outcome = Outcome::Close;
        } else {
            info.kill();
        }
    }
    outcome
}
