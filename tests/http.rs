//! The HTTP edge: who may ask what, and what a bad client can hold.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::support::{Client, DEADLINE, Kafka, Karrow, Reply, eventually};

/// An address of this machine that is not loopback; nothing is sent.
fn own_address(port: u16) -> Option<SocketAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback()).then(|| SocketAddr::new(ip, port))
}

/// Waits until the other side has closed.
fn await_end(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
}

#[test]
fn readyz_says_whether_kafka_answers() {
    let kafka = Kafka::start();
    let karrow = Karrow::start(&kafka);
    assert_eq!(karrow.get("/readyz"), (200, "ok\n".to_owned()));
    assert_eq!(karrow.get("/nowhere").0, 404);
    kafka.set_up(false);
    let page = eventually("/readyz to notice", || {
        let (status, page) = karrow.get("/readyz");
        (status == 503).then_some(page)
    });
    assert!(page.starts_with("Kafka: "), "{page}");
}

#[test]
fn what_is_refused_is_said_in_json() {
    let karrow = Karrow::at("127.0.0.1:1", &[], |_| {});
    for (line, status, allow, why) in [
        ("GET /nowhere", 404, None, "nothing is at /nowhere; there are /metrics, /livez,"),
        ("GET /", 404, None, "nothing is at /; "),
        ("DELETE /v1/sql", 405, Some("GET,HEAD,POST"), "/v1/sql does not take DELETE; "),
        ("PUT /v1/queries/q", 405, Some("GET,HEAD,POST"), "/v1/queries/q does not take PUT; "),
        ("POST /metrics", 405, Some("GET,HEAD"), "/metrics does not take POST; "),
        ("GET /v1/queries/%ff", 400, None, "Invalid UTF-8 in `name`"),
        ("GET /v1/streams/%ff", 400, None, "Invalid UTF-8 in `topic`"),
        ("GET /v1/streams/nosuch", 404, None, "topic 'nosuch' is no stream"),
    ] {
        let mut stream = TcpStream::connect(karrow.http_addr()).expect("HTTP accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.write_all(format!("{line} HTTP/1.0\r\n\r\n").as_bytes()).expect("HTTP reads");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("HTTP answers");
        let (head, body) = page.split_once("\r\n\r\n").expect("a head and a body");
        let header = |name| head.lines().find_map(|line| line.strip_prefix(name));
        assert!(head.starts_with(&format!("HTTP/1.0 {status} ")), "{line}: {page}");
        assert_eq!(header("content-type: "), Some("application/json"), "{line}");
        assert_eq!(header("allow: "), allow, "{line}");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert!(body["error"].as_str().is_some_and(|text| text.contains(why)), "{line}: {body}");
    }
}

#[test]
fn protected_mode_tells_remote_clients_only_whether_it_runs() {
    let karrow = Karrow::at("127.0.0.1:1", &["--host", "0.0.0.0"], |_| {});
    assert_eq!(karrow.get("/metrics").0, 200, "from the same host");
    // A machine without a network has no remote clients either.
    let Some(remote) = own_address(karrow.http_addr().port()) else { return };
    for path in ["/metrics", "/", "/livez/x"] {
        let (status, page) = Karrow::get_at(remote, path);
        assert_eq!(status, 403, "{path}: {page}");
        assert!(page.starts_with("{\"error\":") && page.contains("--no-protected-mode"), "{page}");
    }
    assert_eq!(Karrow::get_at(remote, "/livez"), (200, "ok\n".to_owned()));
    assert_eq!(Karrow::get_at(remote, "/readyz"), (503, "not ready\n".to_owned()));
    // The same rule at the Redis port.
    let mut client = Client::connect(SocketAddr::new(remote.ip(), karrow.resp_addr().port()));
    let reply = client.try_reply();
    assert!(matches!(&reply, Some(Reply::Error(text)) if text.starts_with("DENIED ")), "{reply:?}");

    let open = Karrow::at("127.0.0.1:1", &["--host", "0.0.0.0", "--no-protected-mode"], |_| {});
    let remote = SocketAddr::new(remote.ip(), open.http_addr().port());
    assert_eq!(Karrow::get_at(remote, "/metrics").0, 200);
}

#[test]
fn a_request_that_does_not_end_is_cut() {
    let karrow = Karrow::at("127.0.0.1:1", &[], |config| {
        config.http.as_mut().expect("HTTP is on").request_time_max = Duration::from_millis(200);
    });
    for part in ["", "GET /livez HTT", "GET /livez HTTP/1.1\r\nHost: k\r\n"] {
        let mut stream = TcpStream::connect(karrow.http_addr()).expect("HTTP accepts");
        stream.write_all(part.as_bytes()).expect("HTTP reads");
        await_end(&stream);
    }
}

#[test]
fn connections_beyond_the_limit_are_closed() {
    let karrow = Karrow::at("127.0.0.1:1", &[], |config| {
        let http = config.http.as_mut().expect("HTTP is on");
        (http.connections_max, http.request_time_max) = (2, DEADLINE * 4);
    });
    let connect = || TcpStream::connect(karrow.http_addr()).expect("HTTP accepts");
    let held = [connect(), connect()];
    await_end(&connect());
    drop(held);
    eventually("a free place", || {
        let mut stream = connect();
        let _ = stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n");
        let mut page = String::new();
        let _ = stream.read_to_string(&mut page);
        page.ends_with("ok\n").then_some(())
    });
}
