//! What clients say before they work, byte for byte, and what they need to hear.

use crate::support::{Karrow, Reply};

/// No command here asks Kafka anything.
fn karrow() -> Karrow {
    Karrow::at("127.0.0.1:1", &[], |_| {})
}

/// Runs a script on one connection; the connection's id reads `ID` in the replies.
#[track_caller]
fn check(karrow: &Karrow, what: &str, script: &[(&str, &str)]) {
    let mut client = karrow.connect();
    client.resp3();
    let mut replies: Vec<String> = Vec::new();
    for (command, _) in script {
        replies.push(client.say(command).to_string());
    }
    let id = client.say("CLIENT ID").to_string();
    for (reply, (command, expect)) in replies.iter().zip(script) {
        let reply = reply.replace(&format!("\"id\": {id}"), "\"id\": ID");
        let reply = reply.replace(&format!("\"id\", {id}"), "\"id\", ID");
        assert_eq!(reply, *expect, "{what}: {command}");
    }
}

const HELLO_3: &str = r#"{"id": ID, "mode": "standalone", "modules": [], "proto": :3, "role": "master", "server": "karrow", "version": "7.4.0"}"#;
const HELLO_2: &str = r#"["server", "karrow", "version", "7.4.0", "proto", :2, "id", ID, "mode", "standalone", "role", "master", "modules", []]"#;
const NO_MAINT: &str = "-ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.";
const OK: &str = "+OK";
/// As rafka answers SETNAME.
const NAMED: &str = "\"OK\"";

#[test]
fn every_client_gets_through_its_handshake() {
    let karrow = karrow();
    for (client, script) in [
        (
            "redis-py",
            &[
                ("HELLO 3", HELLO_3),
                ("CLIENT MAINT_NOTIFICATIONS ON moving-endpoint-type internal-ip", NO_MAINT),
                ("CLIENT SETNAME orders:py", NAMED),
                ("CLIENT SETINFO LIB-NAME redis-py", OK),
                ("CLIENT SETINFO LIB-VER 8.0.0", OK),
                ("SELECT 0", OK),
            ][..],
        ),
        (
            "Jedis",
            &[
                ("HELLO 3", HELLO_3),
                ("CLIENT SETNAME orders:jedis", NAMED),
                ("CLIENT SETINFO LIB-NAME jedis", OK),
                ("CLIENT SETINFO LIB-VER 8.0.0", OK),
            ],
        ),
        (
            "Lettuce",
            &[
                ("HELLO 3 SETNAME orders:lettuce", HELLO_3),
                ("CLIENT SETINFO lib-name Lettuce", OK),
                ("CLIENT SETINFO lib-ver 7.0.0/abc", OK),
                ("CLIENT MAINT_NOTIFICATIONS ON", NO_MAINT),
                ("CLIENT GETNAME", "\"orders:lettuce\""),
            ],
        ),
        (
            "go-redis",
            &[
                ("hello 3 setname orders:go", HELLO_3),
                ("client setname orders:go", NAMED),
                (
                    "client maint_notifications on",
                    "-ERR unknown subcommand 'maint_notifications'. Try CLIENT HELP.",
                ),
                ("client setinfo LIB-NAME go-redis(,go1.25)", OK),
                ("client setinfo LIB-VER 9.17.0", OK),
            ],
        ),
        (
            "node-redis",
            &[
                ("HELLO 3 SETNAME orders:node", HELLO_3),
                ("CLIENT SETINFO LIB-NAME node-redis", OK),
                ("CLIENT SETINFO LIB-VER 6.0.0", OK),
                ("CLIENT MAINT_NOTIFICATIONS ON moving-endpoint-type external-fqdn", NO_MAINT),
            ],
        ),
        (
            "redis-rs",
            &[("CLIENT SETINFO LIB-NAME redis-rs", OK), ("CLIENT SETINFO LIB-VER 1.0.0", OK)],
        ),
        (
            "StackExchange.Redis",
            &[
                ("AUTH default secret", OK),
                ("HELLO 3", HELLO_3),
                ("CLIENT SETNAME HOSTNAME(SE.Redis-v2.8)", NAMED),
                ("CLIENT SETINFO lib-name SE.Redis", OK),
                ("CLIENT SETINFO lib-ver 2.8.0", OK),
                ("CONFIG GET timeout", "{}"),
                (
                    "SENTINEL MASTERS",
                    "-ERR unknown command `SENTINEL`, with args beginning with: `MASTERS`, ",
                ),
                ("CLUSTER NODES", "-ERR This instance has cluster support disabled"),
                (
                    "GET __Booksleeve_TieBreak",
                    "-ERR unknown command `GET`, with args beginning with: `__Booksleeve_TieBreak`, ",
                ),
                ("ECHO tracer-1", "\"tracer-1\""),
            ],
        ),
        (
            "redis-rb",
            &[
                ("HELLO 3", HELLO_3),
                ("CLIENT SETINFO LIB-NAME redis-rb(redis-client)", OK),
                ("CLIENT SETINFO LIB-VER 0.26.0", OK),
                ("CLIENT SETNAME orders:rb", NAMED),
            ],
        ),
        (
            "Predis",
            &[
                ("HELLO 2 SETNAME predis", HELLO_2),
                ("CLIENT SETINFO LIB-NAME predis", OK),
                ("CLIENT SETINFO LIB-VER 3.0.0", OK),
            ],
        ),
        ("phpredis", &[("AUTH default secret", OK), ("SELECT 0", OK)]),
    ] {
        check(&karrow, client, script);
    }
}

#[test]
fn ioredis_and_redis_cli_find_what_they_look_for() {
    let karrow = karrow();
    let mut client = karrow.connect();
    let info = client.say("INFO").text().to_owned();
    for line in [
        "loading:0",
        "redis_version:7.4.0",
        "redis_mode:standalone",
        "role:master",
        "cluster_enabled:0",
    ] {
        assert!(info.lines().any(|found| found == line), "{line} in {info}");
    }
    assert!(!info.contains("loading:1"), "ioredis would wait");
    let server = client.say("INFO SERVER").text().to_owned();
    assert!(server.contains("redis_version") && !server.contains("role:"), "{server}");
    let replication = client.say("INFO replication").text().to_owned();
    assert!(replication.contains("role:master") && !replication.contains("redis_version"));
    assert_eq!(client.say("INFO nothing-of-the-kind"), Reply::Bulk(Vec::new()));
    // redis-cli builds its completion from these.
    let docs = client.say("COMMAND DOCS");
    let [name, properties, ..] = docs.array() else { panic!("{docs}") };
    assert_eq!(name.text(), "rpushx");
    let names: Vec<&str> = properties.array().iter().step_by(2).map(Reply::text).collect();
    assert_eq!(names, ["summary", "since", "group", "arguments"]);
    let count = client.say("COMMAND COUNT").int();
    assert_eq!(docs.array().len() as i64, count * 2);
    assert_eq!(client.say("COMMAND").array().len() as i64, count);
    assert_eq!(client.say("COMMAND LIST").array().len() as i64, count);
    assert_eq!(
        client.say("COMMAND INFO ping nope").to_string(),
        r#"[["ping", :-1, [], :0, :0, :0], nil]"#
    );
    assert_eq!(client.say("COMMAND DOCS nope").to_string(), "[]");
    // In RESP3 texts are verbatim, and pairs are maps.
    client.resp3();
    client.say("HELLO 3");
    assert!(matches!(client.say("INFO"), Reply::Verbatim(_)));
    assert!(matches!(client.say("CLIENT LIST"), Reply::Verbatim(_)));
    assert!(matches!(client.say("HGETALL stats"), Reply::Map(_)));
    let Reply::Map(docs) = client.say("COMMAND DOCS blpop") else { panic!("no map") };
    assert!(matches!(&docs[..], [(_, Reply::Map(properties))] if properties.len() == 4));
}

#[test]
fn hello_changes_all_or_nothing() {
    let karrow = karrow();
    check(
        &karrow,
        "variants",
        &[
            ("HELLO", HELLO_2),
            ("HELLO 1", "-NOPROTO unsupported protocol version"),
            ("HELLO 4", "-NOPROTO unsupported protocol version"),
            ("HELLO 9999999999999999", "-NOPROTO unsupported protocol version"),
            ("HELLO three", "-ERR Protocol version is not an integer or out of range"),
            (
                "HELLO 3 AUTH bob secret",
                "-WRONGPASS invalid username-password pair or user is disabled.",
            ),
            ("HELLO 3 SETNAME", "-ERR Syntax error in HELLO option 'SETNAME'"),
            ("HELLO 3 AUTH default", "-ERR Syntax error in HELLO option 'AUTH'"),
            ("HELLO 3 NOSUCH thing", "-ERR Syntax error in HELLO option 'NOSUCH'"),
            // None of these has changed the protocol.
            ("CONFIG GET maxmemory", "[]"),
            ("HELLO 3 AUTH default secret SETNAME g:one", HELLO_3),
            ("HELLO 2 SETNAME g:two", "-CONS Client ID is already set to g:one"),
            ("HELLO", HELLO_3),
            ("CONFIG GET maxmemory", "{}"),
            ("HELLO 2", HELLO_2),
            ("CONFIG GET maxmemory", "[]"),
            ("CLIENT GETNAME", "\"g:one\""),
        ],
    );
    // Nulls follow the protocol.
    let mut client = karrow.connect();
    client.raw(b"COMMAND INFO nope\r\nHELLO 3\r\n");
    assert_eq!(client.bytes(9), "*1\\r\\n*-1\\r\\n");
    let hello = client.bytes(4);
    assert_eq!(hello, "%7\\r\\n");
    let mut client = karrow.connect();
    client.resp3();
    client.say("HELLO 3");
    assert_eq!(client.say("COMMAND INFO nope").to_string(), "[nil]");
}

#[test]
fn names_may_be_anything_until_they_have_a_colon() {
    let karrow = karrow();
    let special = "-ERR Client names cannot contain spaces, newlines or special characters.";
    check(
        &karrow,
        "names",
        &[
            ("CLIENT SETNAME predis", NAMED),
            ("CLIENT SETNAME other", NAMED),
            ("CLIENT GETNAME", "\"other\""),
            ("CLIENT SETNAME g:me", NAMED),
            ("CLIENT SETNAME g:me", NAMED),
            ("CLIENT SETNAME g:you", "-CONS Client ID is already set to g:me"),
            ("CLIENT SETNAME predis", "-CONS Client ID is already set to g:me"),
            ("CLIENT SETNAME a\nb", special),
            ("CLIENT SETNAME a\r\nb", special),
            ("CLIENT SETNAME \u{e4}:b", special),
            ("CLIENT SETNAME", "-ERR wrong number of arguments for 'client|setname' command"),
            ("CLIENT GETNAME", "\"g:me\""),
            ("RESET", "+RESET"),
            ("CLIENT SETNAME g:you", NAMED),
        ],
    );
    // Several connections may carry one name; before there is any, rafka shows the address.
    let (mut first, mut second) = (karrow.named("g:same"), karrow.named("g:same"));
    assert_eq!(first.say("CLIENT GETNAME").text(), "g:same");
    assert_eq!(second.say("CLIENT GETNAME").text(), "g:same");
    let mut nameless = karrow.connect();
    let addr = nameless.local_addr().to_string();
    assert_eq!(nameless.say("CLIENT GETNAME").text(), addr);
}

#[test]
fn plain_commands_answer_as_rediss_do() {
    check(
        &karrow(),
        "plain",
        &[
            ("PING", "+PONG"),
            ("ping hello", "\"hello\""),
            ("PING a b", "-ERR wrong number of arguments for 'ping' command"),
            ("ECHO hello", "\"hello\""),
            ("ECHO", "-ERR wrong number of arguments for 'echo' command"),
            ("BLPOP topics:t", "-ERR wrong number of arguments for 'blpop' command"),
            ("LPOP", "-ERR wrong number of arguments for 'lpop' command"),
            ("LPOP a 1 2", "-ERR wrong number of arguments for 'lpop' command"),
            ("RPUSH acks", "-ERR wrong number of arguments for 'rpush' command"),
            ("RPUSHX topics:t", "-ERR wrong number of arguments for 'rpushx' command"),
            ("KEYS", "-ERR wrong number of arguments for 'keys' command"),
            ("NOSUCH", "-ERR unknown command `NOSUCH`, with args beginning with: "),
            ("NoSuch a b", "-ERR unknown command `NoSuch`, with args beginning with: `a`, `b`, "),
            ("SELECT 0", OK),
            ("SELECT 1", "-ERR DB index is out of range"),
            ("SELECT x", "-ERR value is not an integer or out of range"),
            (
                "AUTH secret",
                "-ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
            ),
            ("AUTH bob secret", "-WRONGPASS invalid username-password pair or user is disabled."),
            ("AUTH default any", OK),
            ("AUTH a b c", "-ERR syntax error"),
            ("CLIENT NO-EVICT ON", OK),
            ("CLIENT NO-EVICT maybe", "-ERR syntax error"),
            ("CLIENT NO-TOUCH off", OK),
            ("CLIENT SETINFO lib-other x", "-ERR Unrecognized option 'lib-other'"),
            (
                "CLIENT SETINFO lib-name a\nb",
                "-ERR lib-name cannot contain spaces, newlines or special characters.",
            ),
            (
                "CLIENT SETINFO lib-name",
                "-ERR wrong number of arguments for 'client|setinfo' command",
            ),
            ("CLIENT NOSUCH", "-ERR unknown subcommand 'NOSUCH'. Try CLIENT HELP."),
            (
                "CONFIG SET a b",
                "-ERR unknown subcommand 'SET': karrow is configured by its flags and files",
            ),
            ("COMMAND NOSUCH", "-ERR unknown subcommand 'nosuch'. Try COMMAND HELP."),
            ("MONITOR now", "-ERR command 'monitor' does not accept any extra arguments"),
        ],
    );
}

#[test]
fn transactions_queue_and_run() {
    let karrow = karrow();
    let abort = "-EXECABORT Transaction discarded because of previous errors.";
    for script in [
        &[
            ("MULTI", OK),
            ("PING", "+QUEUED"),
            ("ECHO hello", "+QUEUED"),
            ("SELECT 9", "+QUEUED"),
            ("CLIENT SETNAME g:in", "+QUEUED"),
            ("EXEC", r#"[+PONG, "hello", -ERR DB index is out of range, "OK"]"#),
            ("CLIENT GETNAME", "\"g:in\""),
        ][..],
        &[("MULTI", OK), ("EXEC", "[]"), ("EXEC", "-ERR EXEC without MULTI")],
        &[
            ("MULTI", OK),
            ("MULTI", "-ERR MULTI calls can not be nested"),
            ("PING", "+QUEUED"),
            ("EXEC", "[+PONG]"),
        ],
        &[
            ("MULTI", OK),
            ("PING", "+QUEUED"),
            ("NOSUCH", "-ERR unknown command `NOSUCH`, with args beginning with: "),
            ("EXEC", abort),
            ("EXEC", "-ERR EXEC without MULTI"),
            ("MULTI", OK),
            ("PING", "+QUEUED"),
            ("EXEC", "[+PONG]"),
        ],
        &[
            ("MULTI", OK),
            ("ECHO", "-ERR wrong number of arguments for 'echo' command"),
            ("EXEC", abort),
        ],
        &[
            ("DISCARD", "-ERR DISCARD without MULTI"),
            ("MULTI", OK),
            ("SELECT 0", "+QUEUED"),
            ("DISCARD", OK),
            ("PING", "+PONG"),
            ("EXEC", "-ERR EXEC without MULTI"),
        ],
        &[
            ("MULTI", OK),
            ("PING", "+QUEUED"),
            ("RESET", "+RESET"),
            ("PING", "+PONG"),
            ("EXEC", "-ERR EXEC without MULTI"),
        ],
        &[
            ("MULTI", OK),
            ("MULTI extra", "-ERR wrong number of arguments for 'multi' command"),
            ("EXEC", abort),
        ],
        &[
            ("MULTI", OK),
            ("RPUSH acks t:0:1", "+QUEUED"),
            ("BLPOP topics:t 0", "+QUEUED"),
            (
                "EXEC",
                &format!(
                    "[-CONS No consumer registered for Client {{addr}}, {}]",
                    "-CONS Connection not ready. Identify yourself using `CLIENT SETNAME` first"
                ),
            ),
        ],
    ] {
        let mut client = karrow.connect();
        let addr = client.local_addr().to_string();
        for (command, expect) in script {
            assert_eq!(
                client.say(command).to_string(),
                expect.replace("{addr}", &addr),
                "{command} of {script:?}"
            );
        }
    }
    // QUIT is never queued.
    let mut client = karrow.connect();
    client.say("MULTI");
    assert_eq!(client.say("QUIT").to_string(), OK);
    assert!(client.is_closed());
}

#[test]
fn reset_begins_again() {
    let karrow = karrow();
    let mut client = karrow.connect();
    client.resp3();
    client.say("HELLO 3 SETNAME g:r");
    let id = client.say("CLIENT ID");
    assert_eq!(client.say("RESET").to_string(), "+RESET");
    assert_eq!(client.say("CLIENT ID"), id);
    // RESP2 again, and no name.
    assert_eq!(client.say("CONFIG GET x").to_string(), "[]");
    let addr = client.local_addr().to_string();
    assert_eq!(client.say("CLIENT GETNAME").text(), addr);
}

#[test]
fn connections_are_listed_and_killed() {
    let karrow = karrow();
    let (mut one, mut two) = (karrow.named("g:one"), karrow.connect());
    two.say("HELLO 2 SETNAME plain");
    one.say("CLIENT SETINFO lib-name lib");
    one.say("CLIENT SETINFO lib-ver 1.2");
    let id = one.say("CLIENT ID").int();
    let list = karrow.clients();
    let line = list.iter().find(|line| line.contains(" name=g:one ")).expect("listed");
    let (addr, laddr) = (one.local_addr(), karrow.resp_addr());
    for part in [
        &format!("id={id} addr={addr} laddr={laddr} "),
        " flags=N ",
        " db=0 ",
        " cmd=client ",
        " lib-name=lib ",
        " lib-ver=1.2 ",
        " resp=2",
        " user=default ",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(list.iter().any(|line| line.contains(" name=plain ")));
    let info = one.say("CLIENT INFO").text().to_owned();
    assert!(info.starts_with(&format!("id={id} ")) && info.ends_with('\n'), "{info}");
    let (a, b) = (id.to_string(), two.say("CLIENT ID").int().to_string());
    assert_eq!(one.call(&["CLIENT", "LIST", "ID", &a, &b]).text().lines().count(), 2);
    assert_eq!(one.call(&["CLIENT", "LIST", "ID", &a]).text().lines().count(), 1);
    for (command, expect) in [
        ("CLIENT LIST TYPE pubsub", "\"\""),
        ("CLIENT LIST TYPE nonsense", "-ERR Unknown client type 'nonsense'"),
        ("CLIENT LIST ID x", "-ERR Invalid client ID"),
        ("CLIENT LIST nonsense", "-ERR syntax error"),
        ("CLIENT KILL 127.0.0.1:1", "-ERR No such client"),
        ("CLIENT KILL ID 9999999999999999", ":0"),
        ("CLIENT KILL ID x", "-ERR client-id should be greater than 0"),
        ("CLIENT KILL ID", "-ERR No such client"),
        ("CLIENT KILL ID 1 NOSUCH 1", "-ERR syntax error"),
        ("CLIENT KILL ID 1 TYPE", "-ERR syntax error"),
        ("CLIENT KILL ID 0", "-ERR client-id should be greater than 0"),
        ("CLIENT KILL ID -1", "-ERR client-id should be greater than 0"),
        ("CLIENT KILL", "-ERR wrong number of arguments for 'client|kill' command"),
        ("CLIENT KILL nonsense 1", "-ERR syntax error"),
        ("CLIENT KILL TYPE Foo", "-ERR Unknown client type 'Foo'"),
        ("CLIENT KILL TYPE replica", ":0"),
        ("CLIENT KILL SKIPME maybe", "-ERR syntax error"),
        ("CLIENT KILL USER nobody", "-ERR No such user 'nobody'"),
    ] {
        assert_eq!(one.say(command).to_string(), expect, "{command}");
    }
    // By address, the old form; by id; oneself only when that is asked for.
    let addr = two.local_addr().to_string();
    assert_eq!(one.call(&["CLIENT", "KILL", &addr]).to_string(), OK);
    assert!(two.is_closed());
    let mut three = karrow.connect();
    let id = three.say("CLIENT ID").int().to_string();
    assert_eq!(one.call(&["CLIENT", "KILL", "ID", &id]).to_string(), ":1");
    assert!(three.is_closed());
    assert_eq!(one.call(&["CLIENT", "KILL", "ID", &a]).to_string(), ":0");
    assert_eq!(one.call(&["CLIENT", "KILL", "ID", &a, "SKIPME", "no"]).to_string(), ":1");
    assert!(one.is_closed());
}

#[test]
fn quit_answers_and_closes() {
    let karrow = karrow();
    let mut client = karrow.connect();
    client.raw(b"PING\r\nQUIT\r\nPING\r\n");
    assert_eq!(client.rest(), "+PONG\\r\\n+OK\\r\\n");
}

#[test]
fn more_connections_than_allowed_are_told_so() {
    let karrow = Karrow::at("127.0.0.1:1", &["--max-clients", "2"], |_| {});
    let (mut one, mut two) = (karrow.connect(), karrow.connect());
    one.say("PING");
    two.say("PING");
    assert_eq!(karrow.connect().rest(), "-ERR max number of clients reached\\r\\n");
    assert_eq!(karrow.metric("karrow_connections_refused_total{reason=\"clients_max\"}"), 1.0);
    assert_eq!(one.say("PING").to_string(), "+PONG");
}
