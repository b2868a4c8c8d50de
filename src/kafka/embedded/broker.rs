//! tansu-broker over SQLite, with our own accept loop and four requests answered our own way.
//!
//! Its own loop cannot tell the port it got for 0 and waits for its clients when told to stop. The
//! four requests: Fetch (it sleeps up to half of the wait even when it has data, and never returns
//! a record larger than 5 MiB), Produce (wakes the fetches), InitProducerId (panics when a producer
//! renews its id) and Metadata (creates no topics). DeleteRecords and transactions panic or are
//! half there, so this broker does not offer them.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::select_all;
use parking_lot::Mutex;
use rama::layer::{MapErrLayer, MapStateLayer};
use rama::{Context, Layer as _, Service};
use tansu_broker::Error as BrokerError;
use tansu_broker::coordinator::group::administrator::Controller;
use tansu_broker::service::{coordinator, storage as routes};
use tansu_sans_io::create_topics_request::CreatableTopic;
use tansu_sans_io::fetch_request::{FetchPartition, FetchTopic};
use tansu_sans_io::fetch_response::{FetchableTopicResponse, PartitionData};
use tansu_sans_io::metadata_response::MetadataResponseTopic;
use tansu_sans_io::record::deflated::Frame;
use tansu_sans_io::{
    Body, ErrorCode, FetchRequest, FetchResponse, InitProducerIdRequest, InitProducerIdResponse,
    IsolationLevel, MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse,
};
use tansu_service::{
    BytesFrameLayer, FrameRequestLayer, FrameRouteBuilder, FrameRouteService, TcpBytesLayer,
    TcpContext,
};
use tansu_storage::{
    BrokerRegistrationRequest, Error as StorageError, FetchService, GroupDetail, GroupState,
    InitProducerIdService, MetadataService, ProduceService, Storage, StorageContainer, TopicId,
    Topition, UpdateError,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use url::Url;
use uuid::Uuid;

use crate::config::topic_is_legal;
use crate::error::Result;

use super::{dir_error, internal};

/// Keys every row of the database: changing it would hide all data. Also what Kafka clients see.
const CLUSTER_ID: &str = "karrow";
const NODE_ID: i32 = 1;
const DATABASE: &str = "broker.db";
/// How often records past their topic's `retention.ms` are deleted.
const MAINTENANCE: Duration = Duration::from_secs(600);
/// How long a stop waits for the storage to finish what it has accepted.
const DRAIN: Duration = Duration::from_secs(5);
/// What one fetch of tansu's reads at most, and where looking for a larger record starts.
const FETCH_BYTES: u32 = 5 << 20;
/// Kafka's lengths are signed 32-bit numbers; no record is larger.
const RECORD_BYTES_MAX: u32 = 1 << 30;

/// Opens the database in `dir` and gives the future that serves `listener` until `stop`.
pub(super) async fn start(
    dir: PathBuf,
    listener: std::net::TcpListener,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static> {
    let failed = |error: std::io::Error| internal(format!("embedded broker: {error}"));
    let listener = TcpListener::from_std(listener).map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    let storage = open(&dir, addr).await?;
    Ok(async move {
        serve(listener, storage.clone(), stop).await;
        // Connections were cut in the middle of a request: what the storage took from them is
        // finished before this answers.
        let _ = timeout(DRAIN, storage.ping()).await;
    })
}

async fn open(dir: &Path, addr: SocketAddr) -> Result<StorageContainer> {
    let file = dir.join(DATABASE);
    let broken = |error: StorageError| {
        dir_error(dir, &format!("{DATABASE} cannot be opened: {}", reason(&error)))
    };
    let listener = Url::parse(&format!("tcp://{addr}"))
        .map_err(|error| internal(format!("embedded broker: {addr}: {error}")))?;
    let storage = StorageContainer::builder()
        .cluster_id(CLUSTER_ID)
        .node_id(NODE_ID)
        .advertised_listener(listener)
        .storage(database_url(dir, &file)?)
        .silent(true)
        .build()
        .await
        .map_err(broken)?;
    storage
        .register_broker(BrokerRegistrationRequest {
            broker_id: NODE_ID,
            cluster_id: CLUSTER_ID.to_owned(),
            incarnation_id: Uuid::now_v7(),
            rack: None,
        })
        .await
        .map_err(broken)?;
    forget_members(&storage).await.map_err(broken)?;
    Ok(storage)
}

/// tansu joins the URL's path to the working directory as it is written, percent signs and all: so
/// only a path that a URL leaves alone can be said. Relative to the working directory it is
/// shorter, which lets most others through.
fn database_url(dir: &Path, file: &Path) -> Result<Url> {
    let relative = std::env::current_dir()
        .ok()
        .and_then(|cwd| file.strip_prefix(cwd).ok().map(Path::to_path_buf))
        .unwrap_or_else(|| file.to_path_buf());
    relative
        .to_str()
        .and_then(|path| {
            let url = Url::parse(&format!("sqlite:///{path}")).ok()?;
            (url.path().strip_prefix('/') == Some(path)).then_some(url)
        })
        .ok_or_else(|| {
            dir_error(dir, "its path has characters that the storage cannot take, use plain ones")
        })
}

/// The part of tansu's error that a user can act on: SQLite's own sentence, quoted inside of it.
fn reason(error: &StorageError) -> String {
    let text = error.to_string();
    match text.split('"').nth(1) {
        Some(sentence) => sentence.to_owned(),
        None => text,
    }
}

/// Clients that were members when the last process ended are not coming back under their old ids:
/// without them a new member need not wait for their session timeouts. Offsets stay.
async fn forget_members(storage: &StorageContainer) -> Result<(), StorageError> {
    for group in storage.list_groups(None).await? {
        let mut detail = GroupDetail::default();
        let mut version = None;
        // The first try only learns the version, unless the group never had a member.
        for _ in 0..2 {
            match storage.update_group(&group.group_id, detail.clone(), version.take()).await {
                Err(UpdateError::Outdated { current, version: found }) => {
                    detail = GroupDetail {
                        members: Default::default(),
                        state: GroupState::Forming {
                            protocol_type: None,
                            protocol_name: None,
                            leader: None,
                        },
                        ..*current
                    };
                    version = Some(found);
                }
                Err(UpdateError::Error(error)) => return Err(error),
                Ok(_) | Err(_) => break,
            }
        }
    }
    Ok(())
}

async fn serve(listener: TcpListener, storage: StorageContainer, stop: CancellationToken) {
    let groups = match Controller::with_storage(storage.clone()) {
        Ok(groups) => groups,
        Err(error) => return tracing::error!("embedded broker: {error}"),
    };
    let topics = Arc::new(Topics::default());
    let mut connections = JoinSet::new();
    let mut maintenance = interval(MAINTENANCE);
    maintenance.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(connection(
                        stream,
                        peer,
                        storage.clone(),
                        groups.clone(),
                        Arc::clone(&topics),
                    ));
                }
                Err(error) => {
                    // Out of descriptors, most likely: it gets better when somebody leaves.
                    tracing::warn!("embedded broker: cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = maintenance.tick() => {
                let storage = storage.clone();
                connections.spawn(async move {
                    if let Err(error) = storage.maintain(SystemTime::now()).await {
                        tracing::warn!("embedded broker: cleaning up failed: {}", reason(&error));
                    }
                });
            }
        }
    }
    connections.shutdown().await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    storage: StorageContainer,
    groups: Controller<StorageContainer>,
    topics: Arc<Topics>,
) {
    let _ = stream.set_nodelay(true);
    let router = match router(storage.clone(), groups, topics) {
        Ok(router) => router,
        Err(error) => return tracing::error!("embedded broker: {error}"),
    };
    let service = (TcpBytesLayer::<()>::default(), BytesFrameLayer::default()).into_layer(router);
    let context = TcpContext::default().cluster_id(Some(CLUSTER_ID.to_owned()));
    let Err(error) = service.serve(Context::with_state(context), stream).await else { return };
    if is_disconnect(&error) {
        return;
    }
    tracing::warn!("embedded broker: closed the connection of {peer}: {error}");
    if storage.ping().await.is_err() {
        tracing::error!("embedded broker: its storage has failed, restart karrow");
    }
}

fn is_disconnect(error: &BrokerError) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error, BrokerError::Io(io) if matches!(
        io.kind(),
        UnexpectedEof | BrokenPipe | ConnectionReset | ConnectionAborted
    ))
}

type Router = FrameRouteService<(), BrokerError>;

/// Which requests this broker answers, and by what.
fn router(
    storage: StorageContainer,
    groups: Controller<StorageContainer>,
    topics: Arc<Topics>,
) -> Result<Router, BrokerError> {
    let mut builder = Router::builder();
    for route in [
        routes::create_topics,
        routes::delete_groups,
        routes::delete_topics,
        routes::describe_cluster,
        routes::describe_configs,
        routes::describe_topic_partitions,
        routes::find_coordinator,
        routes::incremental_alter_configs,
        routes::list_groups,
        routes::list_offsets,
    ] {
        builder = route(builder, storage.clone())?;
    }
    builder = coordinator::services(builder, groups)?;
    builder = route::<FetchRequest, _>(builder, &storage, LongFetch(Arc::clone(&topics)))?;
    builder = route::<ProduceRequest, _>(builder, &storage, WakingProduce(topics))?;
    builder = route::<InitProducerIdRequest, _>(builder, &storage, FreshProducerId)?;
    builder = route::<MetadataRequest, _>(builder, &storage, CreatingMetadata)?;
    Ok(builder.build()?)
}

fn route<Q, S>(
    builder: FrameRouteBuilder<(), BrokerError>,
    storage: &StorageContainer,
    service: S,
) -> Result<FrameRouteBuilder<(), BrokerError>, BrokerError>
where
    Q: tansu_sans_io::Request,
    StorageError: From<<Q as TryFrom<Body>>::Error>,
    S: Service<StorageContainer, Q, Response = Q::Response, Error = StorageError>,
{
    let storage = storage.clone();
    let layers = (
        MapErrLayer::new(BrokerError::from),
        MapStateLayer::new(|_| storage),
        FrameRequestLayer::<Q>::new(),
    );
    Ok(builder.with_route(Q::KEY, layers.into_layer(service).boxed())?)
}

/// Who waits for records of which topic.
#[derive(Debug, Default)]
struct Topics(Mutex<HashMap<String, watch::Sender<()>>>);

impl Topics {
    fn watch(&self, topic: &str) -> watch::Receiver<()> {
        let mut topics = self.0.lock();
        topics.entry(topic.to_owned()).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    fn wake(&self, topic: &str) {
        if let Some(sender) = self.0.lock().get(topic) {
            sender.send_replace(());
        }
    }
}

/// Produce, then wake the fetches that wait for these topics.
#[derive(Debug)]
struct WakingProduce(Arc<Topics>);

impl Service<StorageContainer, ProduceRequest> for WakingProduce {
    type Response = ProduceResponse;
    type Error = StorageError;

    async fn serve(
        &self,
        ctx: Context<StorageContainer>,
        req: ProduceRequest,
    ) -> Result<ProduceResponse, StorageError> {
        let response = ProduceService.serve(ctx, req).await?;
        for topic in response.responses.iter().flatten() {
            self.0.wake(&topic.name);
        }
        Ok(response)
    }
}

/// A producer that renews its id, after an error it cannot resolve otherwise, gets a new one.
#[derive(Debug)]
struct FreshProducerId;

impl Service<StorageContainer, InitProducerIdRequest> for FreshProducerId {
    type Response = InitProducerIdResponse;
    type Error = StorageError;

    async fn serve(
        &self,
        ctx: Context<StorageContainer>,
        req: InitProducerIdRequest,
    ) -> Result<InitProducerIdResponse, StorageError> {
        if req.transactional_id.is_some() {
            return Ok(InitProducerIdResponse::default()
                .throttle_time_ms(0)
                .error_code(ErrorCode::TransactionalIdAuthorizationFailed.into())
                .producer_id(-1)
                .producer_epoch(-1));
        }
        let req = req.producer_id(Some(-1)).producer_epoch(Some(-1));
        InitProducerIdService.serve(ctx, req).await
    }
}

/// Metadata that creates what a producer asks for, as Kafka's `auto.create.topics.enable` does.
#[derive(Debug)]
struct CreatingMetadata;

impl Service<StorageContainer, MetadataRequest> for CreatingMetadata {
    type Response = MetadataResponse;
    type Error = StorageError;

    async fn serve(
        &self,
        ctx: Context<StorageContainer>,
        req: MetadataRequest,
    ) -> Result<MetadataResponse, StorageError> {
        let create = req.allow_auto_topic_creation.unwrap_or(false);
        let response = MetadataService.serve(ctx.clone(), req.clone()).await?;
        if !create {
            return Ok(response);
        }
        let mut created = false;
        for topic in response.topics.iter().flatten().filter(|topic| is_unknown(topic)) {
            let Some(name) = topic.name.as_deref().filter(|name| topic_is_legal(name)) else {
                continue;
            };
            let topic = CreatableTopic::default()
                .name(name.to_owned())
                .num_partitions(1)
                .replication_factor(1)
                .assignments(Some(Vec::new()))
                .configs(Some(Vec::new()));
            match ctx.state().create_topic(topic, false).await {
                Ok(_) => tracing::info!(topic = name, "embedded broker: created the topic"),
                // Somebody else was faster.
                Err(StorageError::Api(ErrorCode::TopicAlreadyExists)) => {}
                Err(error) => return Err(error),
            }
            created = true;
        }
        if created { MetadataService.serve(ctx, req).await } else { Ok(response) }
    }
}

fn is_unknown(topic: &MetadataResponseTopic) -> bool {
    topic.error_code == i16::from(ErrorCode::UnknownTopicOrPartition)
}

/// Fetch that answers as soon as there is a record, and waits without asking meanwhile.
#[derive(Debug)]
struct LongFetch(Arc<Topics>);

impl Service<StorageContainer, FetchRequest> for LongFetch {
    type Response = FetchResponse;
    type Error = StorageError;

    async fn serve(
        &self,
        ctx: Context<StorageContainer>,
        req: FetchRequest,
    ) -> Result<FetchResponse, StorageError> {
        let wait = Duration::from_millis(u64::try_from(req.max_wait_ms).unwrap_or(0));
        let deadline = Instant::now() + wait;
        let (req, refused) = self.split(&ctx, req).await?;
        let mut watches: Vec<_> = refused.known.iter().map(|topic| self.0.watch(topic)).collect();
        loop {
            for watch in &mut watches {
                watch.mark_unchanged();
            }
            let mut response = fetch_now(&ctx, &req).await?;
            let answered = has_answer(&response) || !refused.responses.is_empty();
            if answered || watches.is_empty() || Instant::now() >= deadline {
                response.responses.get_or_insert_default().extend(refused.responses);
                return Ok(response);
            }
            let changed = select_all(watches.iter_mut().map(|watch| Box::pin(watch.changed())));
            // Past the deadline the loop asks once more, and answers with what is there.
            let _ = tokio::time::timeout_at(deadline, changed).await;
        }
    }
}

/// What [`LongFetch::split`] found.
struct Split {
    /// Names of the topics that exist.
    known: Vec<String>,
    /// Answers for topics and partitions that do not: tansu would drop the connection.
    responses: Vec<FetchableTopicResponse>,
}

impl LongFetch {
    async fn split(
        &self,
        ctx: &Context<StorageContainer>,
        mut req: FetchRequest,
    ) -> Result<(FetchRequest, Split), StorageError> {
        let mut split = Split { known: Vec::new(), responses: Vec::new() };
        let mut kept = Vec::new();
        for mut topic in req.topics.take().unwrap_or_default() {
            let asked: TopicId = (&topic).into();
            let metadata = ctx.state().metadata(Some(&[asked])).await?;
            let found = metadata.topics().first().filter(|found| !is_unknown(found));
            let partitions = found
                .and_then(|found| found.partitions.as_ref())
                .map_or(0, |partitions| i32::try_from(partitions.len()).unwrap_or(i32::MAX));
            let (there, missing): (Vec<_>, Vec<_>) = topic
                .partitions
                .take()
                .unwrap_or_default()
                .into_iter()
                .partition(|asked| (0..partitions).contains(&asked.partition));
            if !missing.is_empty() {
                let code = match (&topic.topic, found) {
                    (None, None) => ErrorCode::UnknownTopicId,
                    _ => ErrorCode::UnknownTopicOrPartition,
                };
                split.responses.push(refuse(&topic, &missing, code));
            }
            if let Some(name) = found.and_then(|found| found.name.clone()) {
                split.known.push(name);
            }
            if !there.is_empty() {
                kept.push(topic.partitions(Some(there)));
            }
        }
        Ok((req.topics(Some(kept)), split))
    }
}

fn refuse(
    topic: &FetchTopic,
    partitions: &[FetchPartition],
    code: ErrorCode,
) -> FetchableTopicResponse {
    let partitions =
        partitions.iter().map(|asked| empty(asked.partition, code)).collect::<Vec<_>>();
    FetchableTopicResponse::default()
        .topic(topic.topic.clone())
        .topic_id(Some(topic.topic_id.unwrap_or_default()))
        .partitions(Some(partitions))
}

fn empty(partition: i32, code: ErrorCode) -> PartitionData {
    PartitionData::default()
        .partition_index(partition)
        .error_code(code.into())
        .high_watermark(-1)
        .last_stable_offset(Some(-1))
        .log_start_offset(Some(-1))
        .aborted_transactions(Some(Vec::new()))
        .preferred_read_replica(Some(-1))
        .records(None)
}

/// One fetch without a wait, plus what tansu leaves out: records larger than its limit, and the
/// error for an offset behind the end, without which a client would wait there for ever.
async fn fetch_now(
    ctx: &Context<StorageContainer>,
    req: &FetchRequest,
) -> Result<FetchResponse, StorageError> {
    let mut response = FetchService.serve(ctx.clone(), req.clone().max_wait_ms(0)).await?;
    let isolation = match req.isolation_level {
        Some(1) => IsolationLevel::ReadCommitted,
        _ => IsolationLevel::ReadUncommitted,
    };
    let found_any = response
        .responses
        .iter()
        .flatten()
        .flat_map(|topic| topic.partitions.iter().flatten())
        .any(|partition| partition.records.is_some());
    let topics = req.topics.iter().flatten();
    for (asked, answer) in topics.zip(response.responses.iter_mut().flatten()) {
        let asked_partitions = asked.partitions.iter().flatten();
        for (asked, data) in asked_partitions.zip(answer.partitions.iter_mut().flatten()) {
            if asked.fetch_offset > data.high_watermark {
                data.error_code = ErrorCode::OffsetOutOfRange.into();
            } else if !found_any && asked.fetch_offset < data.high_watermark {
                let Some(topic) = topic_name(ctx, answer.topic.as_deref(), answer.topic_id).await?
                else {
                    continue;
                };
                let topition = Topition::new(topic, asked.partition);
                data.records = fetch_large(ctx, &topition, asked.fetch_offset, isolation).await?;
            }
        }
    }
    Ok(response)
}

async fn topic_name(
    ctx: &Context<StorageContainer>,
    name: Option<&str>,
    id: Option<[u8; 16]>,
) -> Result<Option<String>, StorageError> {
    let id = match (name, id) {
        (Some(name), _) => return Ok(Some(name.to_owned())),
        (None, Some(id)) => TopicId::from(id),
        (None, None) => return Ok(None),
    };
    let metadata = ctx.state().metadata(Some(&[id])).await?;
    Ok(metadata.topics().first().and_then(|topic| topic.name.clone()))
}

/// tansu returns records while their sum is below the limit: a record at or above it never comes.
async fn fetch_large(
    ctx: &Context<StorageContainer>,
    topition: &Topition,
    offset: i64,
    isolation: IsolationLevel,
) -> Result<Option<Frame>, StorageError> {
    let mut bytes_max = FETCH_BYTES;
    while bytes_max < RECORD_BYTES_MAX {
        bytes_max *= 2;
        let batches = ctx.state().fetch(topition, offset, 0, bytes_max, isolation).await?;
        if batches.first().is_some_and(|batch| batch.record_count > 0) {
            return Ok(Some(Frame { batches }));
        }
    }
    Ok(None)
}

fn has_answer(response: &FetchResponse) -> bool {
    response
        .responses
        .iter()
        .flatten()
        .flat_map(|topic| topic.partitions.iter().flatten())
        .any(|partition| partition.records.is_some() || partition.error_code != 0)
}
