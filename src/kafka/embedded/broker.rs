//! tansu-broker over SQLite, with our own accept loop and some requests answered our own way.
//!
//! Its own loop cannot tell the port it got for 0, and waits for its clients when told to stop. Our
//! own answers: Fetch (`fetch.rs`, `records.rs`), Produce (which wakes the fetches), DeleteTopics (`delete.rs`),
//! what else tansu would panic at, or accept and not do (`guard.rs`), InitProducerId (tansu panics when a producer renews
//! its id) and Metadata (it creates no topics).
//! DeleteRecords panics, describing groups fails and transactions cannot end in tansu 0.6, so this
//! broker does not offer them: clients learn that from ApiVersions.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rama::layer::{MapErrLayer, MapStateLayer};
use rama::{Context, Layer as _, Service};
use tansu_broker::Error as BrokerError;
use tansu_broker::coordinator::group::administrator::Controller;
use tansu_broker::service::{coordinator, storage as routes};
use tansu_sans_io::create_topics_request::CreatableTopic;
use tansu_sans_io::metadata_response::MetadataResponseTopic;
use tansu_sans_io::{
    Body, CreateTopicsRequest, DeleteTopicsRequest, ErrorCode, FetchRequest,
    IncrementalAlterConfigsRequest, InitProducerIdRequest, InitProducerIdResponse,
    ListOffsetsRequest, MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse,
};
use tansu_service::{
    BytesFrameLayer, FrameRequestLayer, FrameRouteBuilder, FrameRouteService, TcpBytesLayer,
    TcpContext,
};
use tansu_storage::{
    BrokerRegistrationRequest, Error as StorageError, GroupDetail, GroupState,
    InitProducerIdService, MetadataService, ProduceService, Storage, StorageContainer, UpdateError,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use url::Url;
use uuid::Uuid;

use crate::config::topic_is_legal;
use crate::error::Result;

use super::delete::{DeleteTopics, Gate, Gated};
use super::fetch::{LongFetch, Waiters};
use super::guard::{CheckedTopics, FoundOffsets, SetConfigs, split_produce};
use super::records::Records;
use super::{BrokerHealth, DRAIN, dir_error, internal};

/// Keys every row of the database: changing it would hide all data. Also what Kafka clients see.
const CLUSTER_ID: &str = "karrow";
const NODE_ID: i32 = 1;
const DATABASE: &str = "broker.db";
/// How often records past their topic's `retention.ms` are deleted.
const MAINTENANCE: Duration = Duration::from_secs(600);
/// Opens the database in `dir` and gives the future that serves `listener` until `stop`.
pub(super) async fn start(
    dir: PathBuf,
    listener: std::net::TcpListener,
    stop: CancellationToken,
    health: BrokerHealth,
) -> Result<impl Future<Output = ()> + Send + 'static> {
    let failed = |error: std::io::Error| internal(format!("embedded broker: {error}"));
    let listener = TcpListener::from_std(listener).map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    let (storage, own) = open(&dir, addr).await?;
    Ok(async move {
        serve(listener, storage.clone(), own, stop, &health).await;
        // Connections were cut in the middle of a request: what the storage took from them is
        // finished before this answers.
        let _ = timeout(DRAIN, storage.ping()).await;
    })
}

/// What reads and writes the database itself.
struct Own {
    deletes: DeleteTopics,
    records: Records,
}

async fn open(dir: &Path, addr: SocketAddr) -> Result<(StorageContainer, Own)> {
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
    let deletes = DeleteTopics::open(&file, CLUSTER_ID).await.map_err(broken)?;
    let records = Records::open(&file, CLUSTER_ID).await.map_err(broken)?;
    Ok((storage, Own { deletes, records }))
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

async fn serve(
    listener: TcpListener,
    storage: StorageContainer,
    own: Own,
    stop: CancellationToken,
    health: &BrokerHealth,
) {
    let groups = match Controller::with_storage(storage.clone()) {
        Ok(groups) => groups,
        Err(error) => return tracing::error!("embedded broker: {error}"),
    };
    let router = match router(&storage, groups, own, health) {
        Ok(router) => router,
        Err(error) => return tracing::error!("embedded broker: {error}"),
    };
    let mut connections = JoinSet::new();
    let mut maintenance = interval(MAINTENANCE);
    maintenance.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let health = health.clone();
                    connections.spawn(connection(
                        stream, peer, router.clone(), storage.clone(), health,
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
    router: Gated<Router>,
    storage: StorageContainer,
    health: BrokerHealth,
) {
    let _ = stream.set_nodelay(true);
    let service = (TcpBytesLayer::<()>::default(), BytesFrameLayer::default()).into_layer(router);
    let context = TcpContext::default().cluster_id(Some(CLUSTER_ID.to_owned()));
    let Err(error) = service.serve(Context::with_state(context), stream).await else { return };
    // Once said, not again for each client that tries.
    if is_disconnect(&error) || !health.is_healthy() {
        return;
    }
    tracing::warn!("embedded broker: closed the connection of {peer}: {error}");
    check(&storage, &health).await;
}

/// Asked after each unexpected error: whether the storage still answers.
async fn check(storage: &StorageContainer, health: &BrokerHealth) {
    if storage.ping().await.is_err() && health.fail() {
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
    storage: &StorageContainer,
    groups: Controller<StorageContainer>,
    own: Own,
    health: &BrokerHealth,
) -> Result<Gated<Router>, BrokerError> {
    let mut builder = Router::builder();
    for route in [
        routes::delete_groups,
        routes::describe_cluster,
        routes::describe_configs,
        routes::describe_topic_partitions,
        routes::find_coordinator,
        routes::list_groups,
    ] {
        builder = route(builder, storage.clone())?;
    }
    builder = coordinator::services(builder, groups)?;
    let gate = Gate::default();
    let waiters = Arc::new(Waiters::default());
    let fetch =
        LongFetch { waiters: Arc::clone(&waiters), gate: Arc::clone(&gate), records: own.records };
    builder = route::<FetchRequest, _>(builder, storage, fetch)?;
    let produce = WakingProduce { waiters, health: health.clone() };
    builder = route::<ProduceRequest, _>(builder, storage, produce)?;
    builder = route::<CreateTopicsRequest, _>(builder, storage, CheckedTopics)?;
    builder = route::<ListOffsetsRequest, _>(builder, storage, FoundOffsets)?;
    builder = route::<IncrementalAlterConfigsRequest, _>(builder, storage, SetConfigs)?;
    builder = route::<InitProducerIdRequest, _>(builder, storage, FreshProducerId)?;
    builder = route::<MetadataRequest, _>(builder, storage, CreatingMetadata)?;
    builder = route::<DeleteTopicsRequest, _>(builder, storage, own.deletes.clone())?;
    Ok(Gated { inner: builder.build()?, gate, deletes: own.deletes })
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

/// Produce to what exists, then wake the fetches that wait for these topics.
#[derive(Debug)]
struct WakingProduce {
    waiters: Arc<Waiters>,
    health: BrokerHealth,
}

impl Service<StorageContainer, ProduceRequest> for WakingProduce {
    type Response = ProduceResponse;
    type Error = StorageError;

    async fn serve(
        &self,
        ctx: Context<StorageContainer>,
        req: ProduceRequest,
    ) -> Result<ProduceResponse, StorageError> {
        let (req, refused) = split_produce(ctx.state(), req).await?;
        let mut response = ProduceService.serve(ctx.clone(), req).await?;
        let mut failed = false;
        for topic in response.responses.iter().flatten() {
            self.waiters.wake(&topic.name);
            let partitions = topic.partition_responses.iter().flatten();
            let unexpected = i16::from(ErrorCode::UnknownServerError);
            failed |= partitions.into_iter().any(|answer| answer.error_code == unexpected);
        }
        if failed {
            check(ctx.state(), &self.health).await;
        }
        response.responses.get_or_insert_default().extend(refused);
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

#[cfg(test)]
mod tests {
    use tansu_storage::Topition;

    use super::*;

    #[tokio::test]
    async fn a_storage_that_panics_is_noticed_and_one_that_refuses_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], 9092));
        let (storage, _own) = open(dir.path(), addr).await.unwrap();
        let health = BrokerHealth::default();
        check(&storage, &health).await;
        assert!(health.is_healthy());
        // No route lets this through.
        storage.offset_stage(&Topition::new("nowhere", 0)).await.unwrap_err();
        check(&storage, &health).await;
        assert!(!health.is_healthy());
        assert!(!health.fail(), "it is said once");
    }
}
