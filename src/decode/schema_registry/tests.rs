//! Against a stub that answers what each test says.

use std::io::ErrorKind as IoErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// What the stub does with a request.
enum Do {
    Answer(u16, String),
    Redirect(String),
    Hang,
    Close,
}

/// A registry on a port of its own; `answer` gets the path and the whole request.
struct Stub {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    async fn new(answer: impl Fn(&str, &str) -> Do + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (seen, answer) = (seen.clone(), answer.clone());
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    let mut part = [0; 1024];
                    while !request.ends_with(b"\r\n\r\n") {
                        match stream.read(&mut part).await {
                            Ok(0) | Err(_) => return,
                            Ok(count) => request.extend_from_slice(&part[..count]),
                        }
                    }
                    let request = String::from_utf8(request).expect("text");
                    let path = request.split(' ').nth(1).expect("a path").to_owned();
                    seen.lock().push(request.clone());
                    let text = match answer(&path, &request) {
                        Do::Answer(status, body) => format!(
                            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                            body.len()
                        ),
                        Do::Redirect(to) => format!(
                            "HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                        ),
                        Do::Hang => return std::future::pending().await,
                        Do::Close => return,
                    };
                    match stream.write_all(text.as_bytes()).await {
                        Err(error) if error.kind() != IoErrorKind::BrokenPipe => {}
                        _ => {
                            let _ = stream.shutdown().await;
                        }
                    }
                });
            }
        });
        Self { address, requests }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn paths(&self) -> Vec<String> {
        let path = |request: &String| request.split(' ').nth(1).unwrap_or_default().to_owned();
        self.requests.lock().iter().map(path).collect()
    }

    fn header(&self, name: &str) -> Option<String> {
        let requests = self.requests.lock();
        let request = requests.last()?;
        let line = request.lines().find(|line| line.to_lowercase().starts_with(name))?;
        Some(line.split_once(": ")?.1.to_owned())
    }
}

fn settings(urls: impl Into<String>) -> SchemaRegistrySettings {
    SchemaRegistrySettings { urls: urls.into(), ..SchemaRegistrySettings::default() }
}

fn registry(settings: &SchemaRegistrySettings) -> Arc<SchemaRegistry> {
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let timeouts =
        Timeouts { connect: Duration::from_millis(500), request: Duration::from_millis(500) };
    SchemaRegistry::with_timeouts(settings, metrics, timeouts).expect("a registry")
}

fn count(registry: &SchemaRegistry, name: &str) -> f64 {
    let text = registry.metrics.text().expect("text");
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

fn known(registry: &SchemaRegistry, key: SchemaKey) -> Arc<RegisteredSchema> {
    match registry.look_up(&key) {
        Lookup::Known(schema) => schema,
        other => panic!("{other:?}"),
    }
}

fn unknown(registry: &SchemaRegistry, id: u32) -> String {
    match registry.look_up(&SchemaKey::Id(id)) {
        Lookup::Unknown(why) => why,
        other => panic!("{other:?}"),
    }
}

/// What is known of `keys` in the end.
async fn fetch(registry: &SchemaRegistry, keys: &[SchemaKey]) -> Result<()> {
    let fetches = keys.iter().map(|key| registry.fetch_one(*key));
    futures::future::join_all(fetches).await.into_iter().try_for_each(|fetched| fetched.map(drop))
}

async fn refused(registry: &SchemaRegistry) -> String {
    let error = fetch(registry, &[SchemaKey::Id(1)]).await.expect_err("unavailable");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!registry.is_available());
    assert!(matches!(registry.look_up(&SchemaKey::Id(1)), Lookup::Unfetched));
    error.message().to_owned()
}

#[tokio::test]
async fn schemas_are_fetched_once() {
    let stub = Stub::new(|path, _| match path {
        "/schemas/ids/7" => Do::Answer(200, r#"{"schema":"\"string\""}"#.into()),
        "/schemas/guids/30313233-3435-3637-3839-616263646566" => {
            Do::Answer(200, r#"{"schema":"x","schemaType":"PROTOBUF","references":[]}"#.into())
        }
        "/schemas/ids/8" => Do::Answer(200, r#"{"schema":"x","schemaType":"NEW"}"#.into()),
        _ => Do::Answer(404, r#"{"error_code":40403,"message":"Schema not found"}"#.into()),
    })
    .await;
    let registry = registry(&settings(stub.url()));
    let guid = SchemaKey::Guid(*b"0123456789abcdef");
    let keys = [SchemaKey::Id(7), guid, SchemaKey::Id(9), SchemaKey::Id(8)];
    assert!(matches!(registry.look_up(&guid), Lookup::Unfetched));
    fetch(&registry, &keys).await.expect("fetched");
    fetch(&registry, &keys).await.expect("at hand");
    assert_eq!(stub.paths().len(), 4);
    let schema = known(&registry, SchemaKey::Id(7));
    assert_eq!((schema.kind, schema.text.as_str()), (SchemaKind::Avro, "\"string\""));
    assert_eq!(known(&registry, guid).kind, SchemaKind::Protobuf);
    assert_eq!(unknown(&registry, 9), "the registry does not know it");
    assert_eq!(unknown(&registry, 8), "its type NEW is not supported");
    assert!(registry.is_available());
    assert_eq!(count(&registry, "karrow_schema_registry_requests_total{outcome=\"ok\"}"), 3.0);
    assert_eq!(count(&registry, "karrow_schema_registry_requests_total{outcome=\"unknown\"}"), 1.0);
    assert_eq!(count(&registry, "karrow_schema_registry_seconds_count"), 4.0);
    assert_eq!(count(&registry, "karrow_schema_cache_total{outcome=\"miss\"}"), 1.0);
    assert_eq!(count(&registry, "karrow_schema_cache_total{outcome=\"hit\"}"), 4.0);
}

#[tokio::test]
async fn what_is_wrong_with_the_registry_is_no_answer() {
    let stub = Stub::new(|_, _| Do::Answer(500, "{}".into())).await;
    let asked = registry(&settings(stub.url()));
    let prefix = format!("schema registry {}: ", stub.address);
    assert_eq!(refused(&asked).await, format!("{prefix}answers with status 500"));
    assert_eq!(count(&asked, "karrow_schema_registry_requests_total{outcome=\"error\"}"), 1.0);

    let stub = Stub::new(|_, _| Do::Answer(401, "{}".into())).await;
    let url = format!("http://me:secret@{}", stub.address);
    let error = refused(&registry(&settings(url))).await;
    assert_eq!(error, format!("schema registry {}: refuses the credentials (401)", stub.address));

    let stub = Stub::new(|_, _| Do::Answer(200, "<html>".into())).await;
    let error = refused(&registry(&settings(stub.url()))).await;
    assert!(error.contains("answers with what is no schema"), "{error}");

    let stub = Stub::new(|_, _| Do::Answer(200, " ".repeat(ANSWER_BYTES_MAX + 1))).await;
    let error = refused(&registry(&settings(stub.url()))).await;
    assert!(error.contains("more than 8388608 bytes"), "{error}");

    let stub = Stub::new(|_, _| Do::Hang).await;
    let error = refused(&registry(&settings(stub.url()))).await;
    assert!(error.ends_with("does not answer in time"), "{error}");

    let stub = Stub::new(|_, _| Do::Close).await;
    let url = format!("http://me:secret@{}", stub.address);
    let error = refused(&registry(&settings(url))).await;
    assert!(error.contains(&stub.address) && !error.contains("secret"), "{error}");

    let stub = Stub::new(|path, _| Do::Redirect(format!("{path}x"))).await;
    refused(&registry(&settings(stub.url()))).await;
    assert_eq!(stub.paths().len(), 1 + REDIRECTS_MAX);
}

#[tokio::test]
async fn a_refused_schema_is_an_unknown_one() {
    let stub = Stub::new(|path, _| {
        let (status, body) = match path.rsplit('/').next() {
            Some("1") => (422, r#"{"error_code":42202,"message":"The id is odd"}"#.to_owned()),
            Some("2") => (410, String::new()),
            Some("3") => (400, "<html>no</html>".to_owned()),
            Some("4") => (406, format!(r#"{{"error_code":1,"message":"{}"}}"#, "x".repeat(9_000))),
            Some("5") => (409, "x".repeat(REFUSAL_BYTES_MAX + 1)),
            Some("6") => {
                let gone =
                    r#"{"schema":"s","references":[{"name":"n","subject":"r","version":1}]}"#;
                (200, gone.to_owned())
            }
            Some("1?deleted=true") => (422, r#"{"error_code":1,"message":"no"}"#.to_owned()),
            _ => (200, r#"{"schema":"\"int\""}"#.to_owned()),
        };
        Do::Answer(status, body)
    })
    .await;
    let registry = registry(&settings(stub.url()));
    fetch(&registry, &[1, 2, 3, 4, 5, 6, 7].map(SchemaKey::Id)).await.expect("fetched");
    assert!(registry.is_available());
    assert_eq!(unknown(&registry, 1), "the registry refuses with status 422: The id is odd");
    assert_eq!(unknown(&registry, 2), "the registry refuses with status 410");
    assert_eq!(unknown(&registry, 3), "the registry refuses with status 400");
    let cut = format!("the registry refuses with status 406: {}", "x".repeat(SAID_CHARS_MAX));
    assert_eq!(unknown(&registry, 4), cut);
    assert_eq!(unknown(&registry, 5), "the registry refuses with status 409");
    assert_eq!(
        unknown(&registry, 6),
        "it refers to version 1 of the subject 'r', which the registry refuses with status 422: no"
    );
    known(&registry, SchemaKey::Id(7));
    // What says nothing of the schema.
    for status in [401, 403, 407, 408, 429, 500, 502, 503, 504] {
        let stub = Stub::new(move |_, _| Do::Answer(status, "{}".into())).await;
        let why = refused(&self::registry(&settings(stub.url()))).await;
        assert!(why.contains(&status.to_string()), "{why}");
        assert_eq!(why.contains("credentials"), matches!(status, 401 | 403 | 407), "{why}");
    }
}

/// As if the answers were older by so much.
fn age(registry: &SchemaRegistry, by: Duration) {
    for cached in registry.cache.lock().values_mut() {
        cached.since = cached.since.checked_sub(by).expect("a time before");
    }
}

#[tokio::test]
async fn what_was_unknown_is_asked_for_again() {
    let is_registered = Arc::new(AtomicBool::new(false));
    let registered = is_registered.clone();
    let stub = Stub::new(move |_, _| match registered.load(Ordering::SeqCst) {
        true => Do::Answer(200, r#"{"schema":"\"int\""}"#.into()),
        false => Do::Answer(404, r#"{"error_code":40403,"message":"Schema not found"}"#.into()),
    })
    .await;
    let registry = registry(&settings(stub.url()));
    let keys = [SchemaKey::Id(1)];
    fetch(&registry, &keys).await.expect("fetched");
    is_registered.store(true, Ordering::SeqCst);
    let second = Duration::from_secs(1);
    age(&registry, UNKNOWN_TTL - second);
    fetch(&registry, &keys).await.expect("at hand");
    assert_eq!(unknown(&registry, 1), "the registry does not know it");
    assert_eq!(stub.paths().len(), 1, "it is believed so long");
    age(&registry, second);
    assert!(matches!(registry.look_up(&keys[0]), Lookup::Unfetched));
    fetch(&registry, &keys).await.expect("fetched");
    known(&registry, keys[0]);
    age(&registry, UNKNOWN_TTL * 100);
    fetch(&registry, &keys).await.expect("at hand");
    known(&registry, keys[0]);
    assert_eq!(stub.paths().len(), 2, "what is known stays");
}

/// A registry of schemas "int" that speaks TLS, and the certificate of the authority it has its own from.
fn over_tls() -> (String, String) {
    use std::io::{Read, Write};
    let authority_key = rcgen::KeyPair::generate().expect("a key");
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = authority.self_signed(&authority_key).expect("a certificate").pem();
    let key = rcgen::KeyPair::generate().expect("a key");
    let own = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("an address");
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let own = own.signed_by(&key, &issuer).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![own.der().clone()], key)
        .expect("a certificate and its key");
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let session = rustls::ServerConnection::new(config.clone()).expect("a session");
            let mut stream = rustls::StreamOwned::new(session, stream);
            let (mut request, mut part) = (Vec::new(), [0; 1024]);
            // Who does not trust the certificate hangs up.
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => request.extend_from_slice(&part[..count]),
                }
            }
            let body = r#"{"schema":"\"int\""}"#;
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    (url, pem)
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_if_it_is_named() {
    let (url, authority) = over_tls();
    let (_, other) = over_tls();
    let folder = tempfile::tempdir().expect("a directory");
    let trusting = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).expect("written");
        SchemaRegistrySettings { ca_file: Some(path), ..settings(&url) }
    };
    for settings in
        [trusting("one.pem", &authority), trusting("two.pem", &format!("{other}{authority}"))]
    {
        let registry = registry(&settings);
        fetch(&registry, &[SchemaKey::Id(1)]).await.expect("fetched");
        known(&registry, SchemaKey::Id(1));
    }
    for settings in [settings(&url), trusting("other.pem", &other)] {
        let why = refused(&registry(&settings)).await;
        assert!(why.contains("certificate"), "{why}");
    }
}

#[tokio::test]
async fn a_page_that_is_not_found_is_no_registry() {
    let stub = Stub::new(|path, _| match path {
        "/schemas/ids/9" => Do::Answer(200, r#"{"schema":"\"int\""}"#.into()),
        "/schemas/ids/8" => Do::Answer(404, r#"{"error_code":404,"message":"no"}"#.into()),
        _ => Do::Answer(404, "<html>Not Found</html>".into()),
    })
    .await;
    for proof in [8, 9] {
        let registry = registry(&settings(stub.url()));
        let why = refused(&registry).await;
        assert!(why.ends_with("no schema registry's: is the path of its URL right?"), "{why}");
        // Older registries do not know GUIDs, and garbled values name any.
        let guid = SchemaKey::Guid([7; 16]);
        fetch(&registry, &[guid]).await.expect("fetched");
        assert!(matches!(registry.look_up(&guid), Lookup::Unknown(_)));
        refused(&registry).await;
        fetch(&registry, &[SchemaKey::Id(proof)]).await.expect("fetched");
        fetch(&registry, &[SchemaKey::Id(1)]).await.expect("it is one: the page says the same");
        assert_eq!(unknown(&registry, 1), "the registry does not know it");
        assert!(registry.is_available());
    }
    let requests = stub.paths().len();
    let registry = registry(&settings(stub.url()));
    fetch(&registry, &[SchemaKey::Id(1 << 31)]).await.expect("not asked for");
    assert_eq!(unknown(&registry, 1 << 31), "no registry has ids beyond 2147483647");
    assert_eq!(stub.paths().len(), requests);
}

#[tokio::test]
async fn servers_are_tried_in_turn() {
    let broken = Stub::new(|_, _| Do::Answer(503, String::new())).await;
    let good = Stub::new(|_, _| Do::Answer(200, r#"{"schema":"\"int\""}"#.into())).await;
    let registry = registry(&settings(format!("{} , {}/,", broken.url(), good.url())));
    fetch(&registry, &[SchemaKey::Id(1)]).await.expect("fetched");
    fetch(&registry, &[SchemaKey::Id(2)]).await.expect("fetched");
    assert_eq!((broken.paths().len(), good.paths().len()), (1, 2), "the good one stays");
    assert!(registry.is_available());
}

#[tokio::test]
async fn paths_redirects_and_credentials() {
    let answer = |path: &str, _: &str| match path {
        "/apis/v7/schemas/ids/1" => Do::Redirect("/elsewhere".into()),
        _ => Do::Answer(200, r#"{"schema":"\"int\""}"#.into()),
    };
    let stub = Stub::new(answer).await;
    let url = format!("http://us%40er:pass%3Aword@{}/apis/v7/", stub.address);
    fetch(&registry(&settings(url)), &[SchemaKey::Id(1)]).await.expect("fetched");
    assert_eq!(stub.paths(), ["/apis/v7/schemas/ids/1", "/elsewhere"]);
    // us@er:pass:word
    assert_eq!(stub.header("authorization").as_deref(), Some("Basic dXNAZXI6cGFzczp3b3Jk"));

    let user = SchemaRegistrySettings {
        urls: format!("http://other:one@{}", stub.address),
        user: Some("user".into()),
        password: Some("pw".into()),
        ..SchemaRegistrySettings::default()
    };
    fetch(&registry(&user), &[SchemaKey::Id(2)]).await.expect("fetched");
    assert_eq!(stub.header("authorization").as_deref(), Some("Basic dXNlcjpwdw=="));
    let token = SchemaRegistrySettings { token: Some("t0ken".into()), ..user };
    fetch(&registry(&token), &[SchemaKey::Id(2)]).await.expect("fetched");
    assert_eq!(stub.header("authorization").as_deref(), Some("Bearer t0ken"));
    let shown = format!("{token:?}");
    assert!(!["pw", "other", "t0ken"].iter().any(|secret| shown.contains(secret)), "{shown}");
}

#[tokio::test]
async fn references_come_before_what_needs_them() {
    let stub = Stub::new(|path, _| {
        let body = match path {
            "/schemas/ids/1" => {
                r#"{"schema":"root","references":[{"name":"a.A","subject":"s/a b","version":2},{"name":"b.B","subject":"b","version":1}]}"#
            }
            "/subjects/s%2Fa%20b/versions/2?deleted=true" => {
                r#"{"schema":"A","references":[{"name":"b.B","subject":"b","version":1}]}"#
            }
            "/subjects/b/versions/1?deleted=true" => r#"{"schema":"B"}"#,
            "/schemas/ids/2" => {
                r#"{"schema":"root","references":[{"name":"x","subject":"gone","version":1}]}"#
            }
            "/schemas/ids/3" => {
                r#"{"schema":"root","references":[{"name":"x","subject":"self","version":1}]}"#
            }
            "/subjects/self/versions/1?deleted=true" => {
                r#"{"schema":"S","references":[{"name":"x","subject":"self","version":1}]}"#
            }
            path if path.starts_with("/subjects/n") || path == "/schemas/ids/4" => {
                let next = path.trim_start_matches("/subjects/n").split('/').next().unwrap_or("0");
                let next = next.parse::<usize>().unwrap_or(0) + 1;
                return Do::Answer(
                    200,
                    format!(
                        r#"{{"schema":"N","references":[{{"name":"n","subject":"n{next}","version":1}}]}}"#
                    ),
                );
            }
            _ => return Do::Answer(404, "gone".into()),
        };
        Do::Answer(200, body.into())
    })
    .await;
    let registry = registry(&settings(stub.url()));
    fetch(&registry, &[1, 2, 3, 4].map(SchemaKey::Id)).await.expect("fetched");
    let names = |id| {
        let schema = known(&registry, SchemaKey::Id(id));
        let both = |reference: &Reference| format!("{}={}", reference.name, reference.text);
        schema.references.iter().map(both).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(1), "b.B=B a.A=A");
    assert_eq!(
        unknown(&registry, 2),
        "it refers to version 1 of the subject 'gone', which does not exist"
    );
    assert_eq!(names(3), "x=S");
    assert_eq!(unknown(&registry, 4), "it refers to more than 256 schemas");
}

#[tokio::test]
async fn one_request_serves_all_who_wait() {
    let (open, gate) = tokio::sync::watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = requests.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            seen.fetch_add(1, Ordering::SeqCst);
            let mut gate = gate.clone();
            tokio::spawn(async move {
                let mut part = [0; 4096];
                let _ = stream.read(&mut part).await;
                let _ = gate.wait_for(|open| *open).await;
                let body = r#"{"schema":"\"int\""}"#;
                let text =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(text.as_bytes()).await;
            });
        }
    });
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let registry = SchemaRegistry::new(&settings(url), metrics).expect("a registry");
    let fetches: Vec<_> = (0..20)
        .map(|_| {
            let registry = registry.clone();
            tokio::spawn(async move { fetch(&registry, &[SchemaKey::Id(5)]).await })
        })
        .collect();
    while requests.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    open.send(true).expect("a stub");
    for fetch in fetches {
        fetch.await.expect("no panic").expect("fetched");
    }
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    known(&registry, SchemaKey::Id(5));
    assert!(registry.in_flight.lock().is_empty());
}

#[test]
fn wrong_settings_are_refused() {
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let refuse = |settings: &SchemaRegistrySettings| {
        let error = SchemaRegistry::new(settings, metrics.clone()).expect_err("refused");
        error.message().to_owned()
    };
    assert_eq!(refuse(&settings(" , ")), "schema-registry: no URL");
    assert_eq!(refuse(&settings("ftp://x")), "schema-registry: not a URL of http or https");
    assert!(refuse(&settings("nothing")).starts_with("schema-registry: not a URL"));
    let mut with_file = settings("https://x");
    with_file.ca_file = Some("/nonexistent.pem".into());
    assert!(refuse(&with_file).contains("/nonexistent.pem"));
    with_file.ca_file = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into());
    assert!(refuse(&with_file).contains("certificate"));
}
