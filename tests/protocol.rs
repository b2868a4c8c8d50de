//! Bytes that are no honest requests, and honest ones in awkward portions.

use std::time::Duration;

use crate::support::client::request;
use crate::support::{Client, Kafka, Karrow, Reply, eventually};

/// No command here asks Kafka anything.
fn karrow() -> Karrow {
    Karrow::at("127.0.0.1:1", &[], |_| {})
}

/// What `bytes` and the end of the connection's writing side are answered with.
#[track_caller]
fn answer(karrow: &Karrow, bytes: &[u8]) -> String {
    let mut client = karrow.connect();
    client.raw_unless_closed(bytes);
    client.end_writing();
    client.rest()
}

#[test]
fn lost_framing_is_named_and_ends_the_connection() {
    let karrow = karrow();
    let long = |start: &[u8]| [start, &vec![b'1'; 70_000][..]].concat();
    let cases: &[(&[u8], &str)] = &[
        (b"*x\r\n", "invalid multibulk length"),
        (b"*1048577\r\n", "invalid multibulk length"),
        (b"*9999999999999999\r\n", "invalid multibulk length"),
        (b"*99999999999999999999999999\r\n", "invalid multibulk length"),
        (b"*+1\r\n", "invalid multibulk length"),
        (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
        (b"*1\r\n*1\r\n", "expected '$', got '*'"),
        (b"*1\r\n:1\r\n", "expected '$', got ':'"),
        (b"*1\r\n\r\n", "expected '$', got '\\\\r'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$-9999999999999999\r\n", "invalid bulk length"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*1\r\n$33554433\r\n", "invalid bulk length"),
        (b"*1\r\n$9999999999999999\r\n", "invalid bulk length"),
        (b"*1\r\n$18446744073709551616\r\n", "invalid bulk length"),
        (b"*1\r\n$4\r\nPINGxx", "expected CRLF after a bulk string"),
        (b"*1\r\n$4\r\nPING\n\r", "expected CRLF after a bulk string"),
        (b"*1\rx", "expected LF after CR in mbulk count"),
        (b"*1\r\n$4\rx", "expected LF after CR in bulk count"),
        (b"ECHO \"open\r\n", "unbalanced quotes in request"),
        (b"ECHO 'open\r\n", "unbalanced quotes in request"),
        (&long(b"ECHO "), "too big inline request"),
        (&long(b"*"), "too big mbulk count string"),
        (&long(b"*1\r\n$"), "too big bulk count string"),
        (&b"*1\r\n".repeat(30_000), "expected '$', got '*'"),
        (&b"*1048576\r\n".repeat(100), "expected '$', got '*'"),
    ];
    for (bytes, why) in cases {
        let shown = bytes[..bytes.len().min(40)].escape_ascii();
        // What came before is answered, what comes after is not.
        let before = [b"PING\r\n", *bytes, b"\r\nPING\r\n"].concat();
        let expect = format!("+PONG\\r\\n-ERR Protocol error: {why}\\r\\n");
        assert_eq!(answer(&karrow, &before), expect, "{shown}");
    }
    assert_eq!(answer(&karrow, b"PING\r\n"), "+PONG\\r\\n", "others go on");
}

#[test]
fn odd_but_whole_requests_keep_the_connection() {
    let karrow = karrow();
    let zeros = [b"*1\r\n$4\r\nPING\r\n".as_slice(), &b"*0\r\n".repeat(1000)].concat();
    let cases: &[(&[u8], &str)] = &[
        (b"*0\r\n", ""),
        (b"*-1\r\n", ""),
        (b"*-9999999999999999\r\n", ""),
        (b"\r\n", ""),
        (b"\n\n\n", ""),
        (b"   \r\n", ""),
        (&zeros, "+PONG\\r\\n"),
        (b"PING\n", "+PONG\\r\\n"),
        (b"  ping\thello  \r\n", "$5\\r\\nhello\\r\\n"),
        (b"ECHO \"a\\r\\n\\x00b\"\r\n", "$5\\r\\na\\r\\n\\x00b\\r\\n"),
        (b"ECHO 'it\\'s'\r\n", "$4\\r\\nit's\\r\\n"),
        (b"ECHO \"\"\r\n", "$0\\r\\n\\r\\n"),
        (b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n", "$0\\r\\n\\r\\n"),
        (b"*2\r\n$4\r\nECHO\r\n$6\r\n\r\n*1\r\n\r\n", "$6\\r\\n\\r\\n*1\\r\\n\\r\\n"),
        (b"*1\r\n$0\r\n\r\n", "-ERR unknown command ``, with args beginning with: \\r\\n"),
        (b"*2\r\n$4\r\nECHO\r\n$3\r\n\xff\x00\xfe\r\n", "$3\\r\\n\\xff\\x00\\xfe\\r\\n"),
    ];
    for (bytes, expect) in cases {
        let all = [*bytes, b"PING\r\n"].concat();
        assert_eq!(
            answer(&karrow, &all),
            format!("{expect}+PONG\\r\\n"),
            "{}",
            bytes.escape_ascii()
        );
    }
    // Numbers near a power of ten, which one encoder is known to spoil.
    let mut client = karrow.connect();
    for number in
        ["9999999999999999", "99999999999999999", "999999999999999999", "9223372036854775807"]
    {
        assert_eq!(client.call(&["ECHO", number]).text(), number);
        assert_eq!(client.call(&["CLIENT", "KILL", "ID", number]).int(), 0);
        assert_eq!(client.call(&["DUMP", number]).int(), 0);
        assert_eq!(client.call(&["SELECT", number]).error(), "ERR DB index is out of range");
    }
}

/// Whatever a client says comes back inside one line of error, never as a reply of its own.
#[test]
fn nothing_said_can_split_a_reply() {
    let karrow = karrow();
    for hostile in
        [b"x\r\n+OK\r\n$-1".as_slice(), b"\n:1\n", b"\xff\xfe\r\n", b"a\0b\r", b"\x1b[2J"]
    {
        let with = |before: &[u8], after: &[u8]| [before, hostile, after].concat();
        let topics = with(b"topics:", b"");
        let config = with(b"topics:t:{", b"");
        let option = with(b"topics:t:{\"", b"\":1}")
            .iter()
            .map(|b| if *b < 32 { b'_' } else { *b })
            .collect::<Vec<_>>();
        let ack = with(b"t:0:", b"");
        let commands: &[&[&[u8]]] = &[
            &[hostile],
            &[b"NOSUCH", hostile, hostile],
            &[b"HELLO", hostile],
            &[b"HELLO", b"3", hostile],
            &[b"AUTH", hostile, hostile],
            &[b"SELECT", hostile],
            &[b"CLIENT", hostile],
            &[b"CLIENT", b"SETNAME", hostile],
            &[b"CLIENT", b"SETINFO", hostile, b"x"],
            &[b"CLIENT", b"SETINFO", b"lib-name", hostile],
            &[b"CLIENT", b"LIST", b"TYPE", hostile],
            &[b"CLIENT", b"KILL", hostile],
            &[b"COMMAND", hostile],
            &[b"CONFIG", hostile, hostile],
            &[b"BLPOP", hostile, b"1"],
            &[b"BLPOP", &topics, b"1"],
            &[b"BLPOP", &config, b"1"],
            &[b"BLPOP", &option, b"1"],
            &[b"BLPOP", b"topics:t", hostile],
            &[b"LPOP", &topics],
            &[b"LPOP", b"topics:t", hostile],
            &[b"RPUSH", b"acks", &ack],
            &[b"RPUSH", b"acks", hostile],
            &[b"RPUSH", hostile, b"x"],
            &[b"RPUSHX", hostile, b"x"],
            &[b"RPUSHX", &topics, b"x"],
            &[b"RPUSH", &topics, b"x", b"y"],
            &[b"DUMP", hostile],
            &[b"SCAN", hostile],
            &[b"SCAN", b"0", hostile],
            &[b"HGETALL", hostile],
            &[b"DEL", hostile],
            &[b"LLEN", hostile],
            &[b"LLEN", &topics],
        ];
        let mut client = karrow.named("g:hostile");
        for command in commands {
            let shown =
                command.iter().map(|arg| arg.escape_ascii().to_string()).collect::<Vec<_>>();
            let reply = client.call(command);
            let Reply::Error(text) = &reply else { panic!("{shown:?} answers {reply}") };
            assert!(!text.contains(['\r', '\n']), "{shown:?}: {text:?}");
            assert_eq!(client.say("PING").to_string(), "+PONG", "after {shown:?}");
        }
    }
}

#[test]
fn a_request_may_come_in_any_portions() {
    let karrow = karrow();
    let script = [
        request(&[b"ECHO".as_slice(), b"a\r\n$1\r\n"]),
        b"ECHO 'in line'\r\n".to_vec(),
        b"*0\r\n\r\n".to_vec(),
        request(&["ECHO", ""]),
        request(&["PING"]),
    ]
    .concat();
    let expect = "$7\\r\\na\\r\\n$1\\r\\n\\r\\n$7\\r\\nin line\\r\\n$0\\r\\n\\r\\n+PONG\\r\\n";
    let mut observer = karrow.connect();
    for split in 1..script.len() {
        let mut client = karrow.connect();
        let id = client.say("CLIENT ID").int().to_string();
        let said = request(&["CLIENT", "ID"]).len();
        client.raw(&script[..split]);
        // The second portion leaves when the first was read.
        let read = format!(" tot-net-in={} ", said + split);
        eventually("the first portion to be read", || {
            let line = observer.call(&["CLIENT", "LIST", "ID", &id]);
            line.text().contains(&read).then_some(())
        });
        client.raw(&script[split..]);
        client.end_writing();
        assert_eq!(client.rest(), expect, "split at {split}");
    }
    let mut client = karrow.connect();
    for byte in &script {
        client.raw(&[*byte]);
    }
    client.end_writing();
    assert_eq!(client.rest(), expect, "byte for byte");
}

#[test]
fn limits_hold_to_the_byte() {
    let limit = 2 << 20;
    let karrow = Karrow::at("127.0.0.1:1", &["--bulk-limit", "2MiB"], |config| {
        config.resp.request_bytes_max = 5 << 20;
    });
    let mut client = karrow.connect();
    let big = vec![b'x'; limit];
    assert_eq!(client.call(&[b"ECHO".as_slice(), &big]).bytes(), big);
    assert!(client.call(&[b"NOSUCH".as_slice(), &big]).error().len() < 300, "clipped");
    client.raw(format!("*2\r\n$4\r\nECHO\r\n${}\r\n", limit + 1).as_bytes());
    assert_eq!(client.reply().error(), "ERR Protocol error: invalid bulk length");
    assert!(client.is_closed());
    // Three arguments are within the whole request's limit of 5 MiB only twice.
    let mut client = karrow.connect();
    assert!(client.call(&[b"PING".as_slice(), &big, &big]).error().contains("wrong number"));
    client.send(&[b"PING".as_slice(), &big, &big]);
    client.reply();
    client.raw_unless_closed(&request(&[b"PING".as_slice(), &big, &big, &big]));
    assert_eq!(client.reply().error(), "ERR Protocol error: too big request");
}

#[test]
fn an_announced_length_costs_nothing_until_it_comes() {
    let karrow = karrow();
    // A thousand connections that announce 32 MiB each would be 32 GiB.
    let before = resident_bytes();
    let mut clients: Vec<_> = (0..200).map(|_| karrow.connect()).collect();
    for client in &mut clients {
        client.raw(b"*1048576\r\n$33554432\r\nx");
    }
    karrow.await_metric("karrow_received_bytes_total", |bytes| bytes >= 200.0 * 22.0);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 512 << 20, "{grown} bytes for 200 announcements");
    assert_eq!(karrow.connect().say("PING").to_string(), "+PONG");
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    pages * 4096
}

#[test]
fn replies_keep_their_order_in_a_long_pipeline() {
    let kafka = Kafka::with(&[("p", 1)]);
    let karrow = Karrow::start(&kafka);
    let mut client = karrow.connect();
    let mut script = Vec::new();
    for index in 0..10_000 {
        let number = index.to_string();
        match index % 10 {
            // The only one that waits for Kafka.
            3 => script.extend(request(&["RPUSH", "topics:p", &number])),
            5 => script.extend(request(&["RPUSHX", "topics:p", &number])),
            7 => script.extend(request(&["NOSUCH", &number])),
            _ => script.extend(request(&["ECHO", &number])),
        }
    }
    client.raw(&script);
    for index in 0..10_000 {
        let expect = match index % 10 {
            3 | 5 => ":1".to_owned(),
            7 => format!("-ERR unknown command `NOSUCH`, with args beginning with: `{index}`, "),
            _ => format!("\"{index}\""),
        };
        assert_eq!(client.reply().to_string(), expect, "{index}");
    }
    // RPUSHX's share may still be on its way.
    eventually("all to be stored", || (kafka.end("p", 0) == 2000).then_some(()));
    let expect: Vec<Vec<u8>> = (0..10_000)
        .filter(|index| matches!(index % 10, 3 | 5))
        .map(|index: i32| index.to_string().into_bytes())
        .collect();
    assert_eq!(kafka.values("p", 0), expect, "in the order of the pipeline");
}

#[test]
fn a_client_that_only_ended_its_writing_gets_its_replies() {
    let kafka = Kafka::with(&[("p", 1)]);
    kafka.delay(Duration::from_millis(200));
    let karrow = Karrow::start(&kafka);
    assert_eq!(
        answer(&karrow, b"RPUSH topics:p a b c\r\nPING\r\n"),
        ":3\\r\\n+PONG\\r\\n",
        "although Kafka answered long after the end"
    );
}

/// Others on its thread do not wait for the end of a long EXEC: somebody sees it half done.
#[test]
fn a_long_exec_lets_others_run() {
    let karrow = Karrow::at("127.0.0.1:1", &["--io-threads", "1"], |_| {});
    let (mut long, mut other) = (karrow.connect(), karrow.connect());
    let id = long.say("CLIENT ID").int();
    let count = 200_000;
    long.raw(&request(&["MULTI"]));
    long.raw(&request(&["PING"]).repeat(count));
    let commands = |other: &mut Client| -> usize {
        let line = other.say(&format!("CLIENT LIST ID {id}"));
        let (_, rest) = line.text().split_once(" tot-cmds=").expect("a count");
        rest.split(' ').next().and_then(|count| count.parse().ok()).expect("a number")
    };
    assert_eq!(long.reply().to_string(), "+OK");
    for _ in 0..count {
        assert_eq!(long.reply().to_string(), "+QUEUED");
    }
    let before = commands(&mut other);
    long.raw(&request(&["EXEC"]));
    let mut seen_half_done = false;
    eventually("the end of EXEC", || {
        let done = commands(&mut other) - before;
        seen_half_done |= (2..count).contains(&done);
        (done > count).then_some(())
    });
    assert!(seen_half_done);
    assert_eq!(long.reply().array().len(), count);
}

#[test]
fn bytes_of_http_are_refused() {
    let karrow = karrow();
    let reply = answer(&karrow, b"POST / HTTP/1.1\r\nHost: karrow\r\n\r\nFLUSHALL\r\n");
    assert!(reply.starts_with("-ERR unknown command `POST`"), "{reply}");
    assert!(!reply.contains("FLUSHALL"), "{reply}");
}
