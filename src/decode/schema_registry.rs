//! [`SchemaRegistry`]: a client of Confluent's schema registry and those that speak like it, with its cache.
//!
//! A schema never changes once it has an id, so it is kept for good. That there is no such schema, or that the registry
//! does not give it (most answers of 4xx), is believed for half a minute: its producer may register it late, or the
//! registry may lag behind. Everything else that goes wrong is the registry's state and no fault of the data, so the
//! caller waits and tries again.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::schemas::{Lookup, Reference, RegisteredSchema, SchemaKey, SchemaKind, Schemas};
use crate::config::formats::SchemaRegistrySettings;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;

/// How long it is believed that there is no such schema.
const UNKNOWN_TTL: Duration = Duration::from_secs(30);

/// Schemas kept, and ids that are unknown: a garbled topic may name any number of them.
const KEPT_MAX: usize = 20_000;

/// Bytes of one answer.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Schemas that one schema may refer to, directly or not.
const REFERENCES_MAX: usize = 256;

/// Bytes of an answer that is no schema, which may say why.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// Characters of what the registry says that are passed on.
const SAID_CHARS_MAX: usize = 200;

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 3;

/// How long the registry may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until a connection stands.
    pub connect: Duration,
    /// Until an answer is there.
    pub request: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(3), request: Duration::from_secs(10) }
    }
}

/// See the top of this file.
pub struct SchemaRegistry {
    http: reqwest::Client,
    servers: Vec<Server>,
    credentials: Credentials,
    /// The server that answered last; the first one to ask.
    preferred: AtomicUsize,
    is_available: AtomicBool,
    cache: Mutex<HashMap<SchemaKey, Cached>>,
    /// Keys that are being fetched. Whoever needs one of them waits for the same answer.
    in_flight: Mutex<HashMap<SchemaKey, Arc<OnceCell<Result<Lookup>>>>>,
    metrics: Arc<Metrics>,
}

struct Server {
    url: Url,
    /// Host and port: what errors say, because a URL may hold a password.
    name: String,
    /// It has answered as a schema registry does.
    is_registry: AtomicBool,
}

/// What URLs do not say.
enum Credentials {
    Url,
    Basic { user: String, password: Option<String> },
    Bearer(String),
}

struct Cached {
    /// Never [`Lookup::Unfetched`].
    lookup: Lookup,
    since: Instant,
}

/// What the registry says of a schema.
#[derive(Deserialize)]
struct Answer {
    schema: String,
    #[serde(rename = "schemaType")]
    kind: Option<String>,
    references: Option<Vec<AnsweredReference>>,
}

#[derive(Deserialize)]
struct AnsweredReference {
    name: String,
    subject: String,
    version: i32,
}

/// What the registry says where it gives no schema.
#[derive(Deserialize)]
struct Complaint {
    #[serde(rename = "error_code")]
    _code: i64,
    message: Option<String>,
}

/// What a server says of a schema.
enum Reply {
    Schema(Answer),
    /// It does not give it.
    Refused {
        status: StatusCode,
        said: Option<String>,
    },
}

/// Why there is no answer.
enum Miss {
    /// There is no such schema, or it cannot be used.
    Unknown(String),
    /// Trying again may help.
    Unavailable(Error),
}

impl SchemaRegistry {
    /// A client of the registry that `settings` describe. Nothing is requested yet.
    ///
    /// # Errors
    /// The settings are wrong: a URL, the file with certificates.
    pub fn new(settings: &SchemaRegistrySettings, metrics: Arc<Metrics>) -> Result<Arc<Self>> {
        Self::with_timeouts(settings, metrics, Timeouts::default())
    }

    /// As [`new`](Self::new), with other timeouts.
    ///
    /// # Errors
    /// The settings are wrong: a URL, the file with certificates.
    pub fn with_timeouts(
        settings: &SchemaRegistrySettings,
        metrics: Arc<Metrics>,
        timeouts: Timeouts,
    ) -> Result<Arc<Self>> {
        let credentials = match (&settings.token, &settings.user) {
            (Some(token), _) => Credentials::Bearer(token.clone()),
            (None, Some(user)) => {
                Credentials::Basic { user: user.clone(), password: settings.password.clone() }
            }
            (None, None) => Credentials::Url,
        };
        let servers = settings
            .urls
            .split(',')
            .map(str::trim)
            .filter(|url| !url.is_empty())
            .map(|url| Server::new(url, &credentials))
            .collect::<Result<Vec<_>>>()?;
        if servers.is_empty() {
            return Err(Error::invalid("schema-registry: no URL"));
        }
        Ok(Arc::new(Self {
            http: client(settings, timeouts)?,
            servers,
            credentials,
            preferred: AtomicUsize::new(0),
            is_available: AtomicBool::new(true),
            cache: Mutex::new(HashMap::new()),
            in_flight: Mutex::new(HashMap::new()),
            metrics,
        }))
    }

    /// Whether the last request was answered. Before the first one it is taken for granted.
    pub fn is_available(&self) -> bool {
        self.is_available.load(Ordering::Relaxed)
    }

    async fn fetch_one(&self, key: SchemaKey) -> Result<Lookup> {
        if let Some(lookup) = self.cached(&key) {
            return Ok(lookup);
        }
        let flight = self.in_flight.lock().entry(key).or_default().clone();
        let outcome = flight
            .get_or_init(|| async {
                // It may have come in between.
                if let Some(lookup) = self.cached(&key) {
                    return Ok(lookup);
                }
                let lookup = match self.schema(key).await {
                    Ok(schema) => Lookup::Known(Arc::new(schema)),
                    Err(Miss::Unknown(why)) => Lookup::Unknown(why),
                    Err(Miss::Unavailable(error)) => return Err(error),
                };
                self.keep(key, lookup.clone());
                Ok(lookup)
            })
            .await
            .clone();
        let mut in_flight = self.in_flight.lock();
        if in_flight.get(&key).is_some_and(|other| Arc::ptr_eq(other, &flight)) {
            in_flight.remove(&key);
        }
        outcome
    }

    fn cached(&self, key: &SchemaKey) -> Option<Lookup> {
        let cache = self.cache.lock();
        let Cached { lookup, since } = cache.get(key)?;
        let is_believed = matches!(lookup, Lookup::Known(_)) || since.elapsed() < UNKNOWN_TTL;
        is_believed.then(|| lookup.clone())
    }

    fn keep(&self, key: SchemaKey, lookup: Lookup) {
        let mut cache = self.cache.lock();
        if cache.len() >= KEPT_MAX {
            // Those that exist are worth more.
            cache.retain(|_, cached| matches!(cached.lookup, Lookup::Known(_)));
            if cache.len() >= KEPT_MAX {
                cache.clear();
            }
        }
        cache.insert(key, Cached { lookup, since: Instant::now() });
    }

    async fn schema(&self, key: SchemaKey) -> Result<RegisteredSchema, Miss> {
        if let SchemaKey::Id(id) = key
            && i32::try_from(id).is_err()
        {
            // Garbled values name such ids, and registries answer them as they answer wrong paths.
            return Err(Miss::Unknown(format!("no registry has ids beyond {}", i32::MAX)));
        }
        let text = key.to_string();
        let path = match key {
            SchemaKey::Id(_) => ["schemas", "ids", &text],
            SchemaKey::Guid(_) => ["schemas", "guids", &text],
        };
        let answer = match self.ask(&path, false).await? {
            Reply::Schema(answer) => answer,
            Reply::Refused { status: StatusCode::NOT_FOUND, .. } => {
                return Err(Miss::Unknown("the registry does not know it".to_owned()));
            }
            Reply::Refused { status, said } => {
                return Err(Miss::Unknown(format!("the registry {}", refuses(status, said))));
            }
        };
        let kind = match answer.kind.as_deref() {
            None | Some("AVRO") => SchemaKind::Avro,
            Some("PROTOBUF") => SchemaKind::Protobuf,
            Some("JSON") => SchemaKind::Json,
            Some(other) => return Err(Miss::Unknown(format!("its type {other} is not supported"))),
        };
        let mut collected = Collected::default();
        self.collect(answer.references.unwrap_or_default(), &mut collected).await?;
        let references = collected.references;
        Ok(RegisteredSchema { key, kind, text: answer.schema, references })
    }

    /// Adds what `references` name, after what that refers to.
    fn collect<'a>(
        &'a self,
        references: Vec<AnsweredReference>,
        collected: &'a mut Collected,
    ) -> Pin<Box<dyn Future<Output = Result<(), Miss>> + Send + 'a>> {
        Box::pin(async move {
            for AnsweredReference { name, subject, version } in references {
                let place = (subject, version);
                // One that is being added at this moment is a circle; whoever reads the schemas will notice.
                if collected.places.contains(&(name.clone(), place.clone())) {
                    continue;
                }
                if collected.places.len() >= REFERENCES_MAX {
                    return Err(Miss::Unknown(format!(
                        "it refers to more than {REFERENCES_MAX} schemas"
                    )));
                }
                collected.places.push((name.clone(), place.clone()));
                let (subject, version) = (place.0, place.1.to_string());
                let path = ["subjects", &subject, "versions", &version];
                let refused = |why: &dyn fmt::Display| {
                    Miss::Unknown(format!(
                        "it refers to version {version} of the subject '{subject}', which {why}"
                    ))
                };
                let answer = match self.ask(&path, true).await? {
                    Reply::Schema(answer) => answer,
                    Reply::Refused { status: StatusCode::NOT_FOUND, .. } => {
                        return Err(refused(&"does not exist"));
                    }
                    Reply::Refused { status, said } => {
                        let why = refuses(status, said);
                        return Err(refused(&format_args!("the registry {why}")));
                    }
                };
                self.collect(answer.references.unwrap_or_default(), collected).await?;
                collected.references.push(Reference { name, text: answer.schema });
            }
            Ok(())
        })
    }

    /// Asks one server after the other, until one can say.
    async fn ask(&self, path: &[&str], with_deleted: bool) -> Result<Reply, Miss> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = None;
        for turn in 0..self.servers.len() {
            let at = (first + turn) % self.servers.len();
            let Some(server) = self.servers.get(at) else { continue };
            let began = Instant::now();
            let answer = self.ask_server(server, path, with_deleted).await;
            self.metrics.schema_registry_seconds.observe(began.elapsed().as_secs_f64());
            let outcome = match &answer {
                Ok(Reply::Schema(_)) => "ok",
                Ok(Reply::Refused { .. }) => "unknown",
                Err(_) => "error",
            };
            self.metrics.schema_registry_requests.with_label_values(&[outcome]).inc();
            match answer {
                Ok(answer) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    self.is_available.store(true, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(why) => last = Some(format!("schema registry {}: {why}", server.name)),
            }
        }
        self.is_available.store(false, Ordering::Relaxed);
        let why = last.unwrap_or_else(|| "no schema registry".to_owned());
        Err(Miss::Unavailable(Error::new(ErrorKind::Unavailable, why)))
    }

    async fn ask_server(
        &self,
        server: &Server,
        path: &[&str],
        with_deleted: bool,
    ) -> Result<Reply, String> {
        let mut url = server.url.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(path),
            Err(()) => return Err("the URL has no path".to_owned()),
        };
        if with_deleted {
            // Somebody may have deleted a subject that others still refer to.
            url.set_query(Some("deleted=true"));
        }
        let mut request = self.http.get(url).header(
            reqwest::header::ACCEPT,
            "application/vnd.schemaregistry.v1+json, application/json; q=0.9",
        );
        request = match &self.credentials {
            Credentials::Url => request,
            Credentials::Basic { user, password } => request.basic_auth(user, password.as_ref()),
            Credentials::Bearer(token) => request.bearer_auth(token),
        };
        let response = request.send().await.map_err(chain)?;
        let status = response.status();
        match status {
            StatusCode::OK => {
                let Some(body) = body(response, ANSWER_BYTES_MAX).await? else {
                    return Err(format!("answers with more than {ANSWER_BYTES_MAX} bytes"));
                };
                let answer = serde_json::from_slice(&body)
                    .map_err(|error| format!("answers with what is no schema: {error}"))?;
                server.is_registry.store(true, Ordering::Relaxed);
                Ok(Reply::Schema(answer))
            }
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                Err(format!("refuses the credentials ({})", status.as_u16()))
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Err(format!("answers with status {}", status.as_u16()))
            }
            status if status.is_client_error() => {
                let body = body(response, REFUSAL_BYTES_MAX).await?.unwrap_or_default();
                let complaint: Option<Complaint> = serde_json::from_slice(&body).ok();
                if complaint.is_some() {
                    server.is_registry.store(true, Ordering::Relaxed);
                }
                // A URL that leads elsewhere answers 404 to everything. If that were believed, all rows would be bad and
                // soon acked: whoever mistyped it wants to see on /readyz that nothing is read, and to lose nothing. So a
                // page that is no registry's counts as the registry being away, until that server has answered as one:
                // then it is a proxy's page for the same news. The path of GUIDs proves nothing, as older registries do
                // not have it; nor may one garbled value that seems to name a GUID stop its topic.
                if status == StatusCode::NOT_FOUND
                    && path.get(1) != Some(&"guids")
                    && !server.is_registry.load(Ordering::Relaxed)
                {
                    return Err("answers 404 with what is no schema registry's: is the path of its URL right?"
                        .to_owned());
                }
                let said = complaint.and_then(|complaint| complaint.message);
                let said = said.map(|said| said.chars().take(SAID_CHARS_MAX).collect());
                Ok(Reply::Refused { status, said })
            }
            status => Err(format!("answers with status {}", status.as_u16())),
        }
    }
}

/// All of a body; `None` if it has more than `bytes_max`.
async fn body(
    mut response: reqwest::Response,
    bytes_max: usize,
) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(chain)? {
        if body.len() + chunk.len() > bytes_max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// What a registry does that gives no schema.
fn refuses(status: StatusCode, said: Option<String>) -> String {
    match said {
        Some(said) => format!("refuses with status {}: {said}", status.as_u16()),
        None => format!("refuses with status {}", status.as_u16()),
    }
}

/// What a schema refers to, while it is being collected.
#[derive(Default)]
struct Collected {
    references: Vec<Reference>,
    places: Vec<(String, (String, i32))>,
}

impl Schemas for SchemaRegistry {
    fn look_up(&self, key: &SchemaKey) -> Lookup {
        let cached = self.cached(key);
        let outcome = if cached.is_some() { "hit" } else { "miss" };
        self.metrics.schema_cache.with_label_values(&[outcome]).inc();
        cached.unwrap_or(Lookup::Unfetched)
    }

    fn fetch(&self, key: SchemaKey) -> BoxFuture<'_, Result<Lookup>> {
        Box::pin(self.fetch_one(key))
    }
}

impl fmt::Debug for SchemaRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.servers.iter().map(|server| server.name.as_str()).collect();
        f.debug_struct("SchemaRegistry").field("servers", &names).finish_non_exhaustive()
    }
}

impl Server {
    fn new(text: &str, credentials: &Credentials) -> Result<Self> {
        // The text is not repeated in errors: it may hold a password.
        let mut url = Url::parse(text)
            .map_err(|error| Error::invalid(format!("schema-registry: not a URL: {error}")))?;
        let Some(host) = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https")) else {
            return Err(Error::invalid("schema-registry: not a URL of http or https"));
        };
        let name = match url.port_or_known_default() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        if !matches!(credentials, Credentials::Url) {
            // They cannot fail: there is a host.
            let _ = url.set_username("");
            let _ = url.set_password(None);
        }
        url.set_query(None);
        url.set_fragment(None);
        Ok(Self { url, name, is_registry: AtomicBool::new(false) })
    }
}

fn client(settings: &SchemaRegistrySettings, timeouts: Timeouts) -> Result<reqwest::Client> {
    // There are two providers among the dependencies, so rustls would not choose one. It is an error only if somebody
    // has chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut authorities = Vec::new();
    if let Some(path) = &settings.ca_file {
        let wrong = |error: &dyn fmt::Display| {
            Error::invalid(format!("the schema registry's ca-file {}: {error}", path.display()))
        };
        let pem = std::fs::read(path).map_err(|error| wrong(&error))?;
        authorities = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| wrong(&error))?;
        if authorities.is_empty() {
            return Err(wrong(&"it has no certificate"));
        }
    }
    let builder = || {
        reqwest::Client::builder()
            .connect_timeout(timeouts.connect)
            .timeout(timeouts.request)
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
            .user_agent(concat!("karrow/", env!("CARGO_PKG_VERSION")))
    };
    builder()
        .tls_certs_merge(authorities.iter().cloned())
        .build()
        // A system without certificates of its own: small images have none, and plain HTTP needs none.
        .or_else(|_| builder().tls_certs_only(authorities).build())
        .map_err(|error| Error::internal(format!("schema registry: {}", chain(error))))
}

/// An error with its causes, without the URL.
fn chain(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "does not answer in time".to_owned();
    }
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
