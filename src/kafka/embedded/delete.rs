//! DeleteTopics: tansu 0.6 deletes the rows of *all* topics with the one that is named, so this
//! deletes by itself, over a connection of its own to the same file.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use libsql::{Connection, TransactionBehavior};
use rama::{Context, Service};
use tansu_broker::Error as BrokerError;
use tansu_sans_io::delete_topics_response::DeletableTopicResult;
use tansu_sans_io::{
    ApiKey as _, Body, DeleteTopicsRequest, DeleteTopicsResponse, ErrorCode, FetchRequest, Frame,
    JoinGroupRequest,
};
use tansu_storage::{Error as StorageError, StorageContainer};
use tokio::sync::{Mutex, RwLock};

use super::guard::tame;

/// How long a deletion waits for a write of tansu's, which takes milliseconds.
const BUSY: Duration = Duration::from_secs(5);
/// How many it remembers; past it, it starts over.
const ADOPTED_MAX: usize = 10_000;

/// All that belongs to a topic, children first. `?1` is the topic's row.
const DELETE: [&str; 8] = [
    "delete from header where topition in (select id from topition where topic = ?1)",
    "delete from record where topition in (select id from topition where topic = ?1)",
    "delete from watermark where topition in (select id from topition where topic = ?1)",
    "delete from consumer_offset where topition in (select id from topition where topic = ?1)",
    "delete from producer_detail where topition in (select id from topition where topic = ?1)",
    "delete from topic_configuration where topic = ?1",
    "delete from topition where topic = ?1",
    "delete from topic where id = ?1",
];

/// Answers DeleteTopics.
#[derive(Clone)]
pub(super) struct DeleteTopics {
    connection: Arc<Mutex<Connection>>,
    /// What `adopt` need not look at again; a deletion forgets it.
    adopted: Arc<parking_lot::Mutex<HashSet<Who>>>,
    cluster: &'static str,
}

impl DeleteTopics {
    /// Opens a second connection to a database that tansu has set up.
    pub(super) async fn open(file: &Path, cluster: &'static str) -> Result<Self, StorageError> {
        let connection = libsql::Builder::new_local(file).build().await?.connect()?;
        connection.busy_timeout(BUSY)?;
        // With foreign keys SQLite would look for children of each record, without an index.
        connection.execute_batch("pragma foreign_keys = off").await?;
        // tansu reads each record's headers: without this, all headers for each record.
        connection
            .execute_batch(
                "create index if not exists karrow_header on header (topition, offset_id)",
            )
            .await?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), adopted: Arc::default(), cluster })
    }

    /// Deletes the topic with this name, or else with this id; gives its name.
    async fn delete(
        &self,
        name: Option<&str>,
        id: Option<&str>,
    ) -> Result<Option<String>, StorageError> {
        let connection = self.connection.lock().await;
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).await?;
        let mut rows = tx
            .query(
                "select t.id, t.name from topic t join cluster c on t.cluster = c.id \
                 where c.name = ?1 and (t.name = ?2 or t.uuid = ?3)",
                (self.cluster, name, id),
            )
            .await?;
        let Some(row) = rows.next().await? else { return Ok(None) };
        let (row, name) = (row.get::<i64>(0)?, row.get::<String>(1)?);
        drop(rows);
        for sql in DELETE {
            tx.execute(sql, [row]).await?;
        }
        tx.commit().await?;
        self.adopted.lock().clear();
        Ok(Some(name))
    }

    /// What of a Produce tansu has to be told first: an epoch a producer has raised by itself, and
    /// the sequence a producer has reached where the topic, made again, knows nothing of it.
    /// Kafka accepts both; tansu panics at the one, and to the other its answer ends the producer.
    fn unadopted(&self, body: &Body) -> Vec<Adoption> {
        let Body::ProduceRequest(req) = body else { return Vec::new() };
        let mut wanted = Vec::new();
        for topic in req.topic_data.iter().flatten() {
            for data in topic.partition_data.iter().flatten() {
                let batch = data.records.iter().flat_map(|records| &records.batches).next();
                let Some(batch) = batch.filter(|batch| batch.producer_id >= 0) else { continue };
                if batch.producer_epoch == 0 && batch.base_sequence <= 0 {
                    continue;
                }
                let who = (batch.producer_id, batch.producer_epoch, topic.name.clone(), data.index);
                if !self.adopted.lock().contains(&who) {
                    wanted.push(Adoption { who, sequence: batch.base_sequence });
                }
            }
        }
        wanted
    }

    async fn adopt(&self, adoptions: Vec<Adoption>) -> Result<(), StorageError> {
        let connection = self.connection.lock().await;
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).await?;
        let mut there = Vec::new();
        for Adoption { who, sequence } in adoptions {
            let (producer, epoch, topic, partition) = &who;
            let epoch = i64::from(*epoch);
            tx.execute(
                "insert or ignore into producer_epoch (producer, epoch) \
                 select id, ?2 from producer where id = ?1",
                (*producer, epoch),
            )
            .await?;
            tx.execute(
                "insert or ignore into producer_detail (producer_epoch, topition, sequence) \
                 select pe.id, tp.id, ?5 from producer_epoch pe \
                 join topic t on t.name = ?3 \
                 join topition tp on tp.topic = t.id and tp.partition = ?4 \
                 where pe.producer = ?1 and pe.epoch = ?2 and not exists \
                 (select 1 from producer_detail d join producer_epoch e on e.id = d.producer_epoch \
                 where e.producer = ?1 and d.topition = tp.id)",
                (*producer, epoch, topic.as_str(), *partition, sequence),
            )
            .await?;
            let mut rows = tx
                .query(
                    "select 1 from topic t join topition tp on tp.topic = t.id \
                     where t.name = ?1 and tp.partition = ?2",
                    (topic.as_str(), *partition),
                )
                .await?;
            // A topic that does not exist yet has nothing to keep a sequence in.
            if rows.next().await?.is_some() {
                there.push(who);
            }
        }
        tx.commit().await?;
        let mut adopted = self.adopted.lock();
        if adopted.len() > ADOPTED_MAX {
            adopted.clear();
        }
        adopted.extend(there);
        Ok(())
    }
}

/// A producer's id, its epoch, the topic and the partition.
type Who = (i64, i16, String, i32);

struct Adoption {
    who: Who,
    sequence: i32,
}

impl Service<StorageContainer, DeleteTopicsRequest> for DeleteTopics {
    type Response = DeleteTopicsResponse;
    type Error = StorageError;

    async fn serve(
        &self,
        _: Context<StorageContainer>,
        req: DeleteTopicsRequest,
    ) -> Result<DeleteTopicsResponse, StorageError> {
        // Up to version 5 by name; from 6 on by name or, where that is null, by id.
        let by_name = req.topic_names.into_iter().flatten().map(|name| (Some(name), None));
        let by_either = req.topics.into_iter().flatten().map(|topic| {
            let id = topic.name.is_none().then(|| uuid::Uuid::from_bytes(topic.topic_id));
            (topic.name, id)
        });
        let mut responses = Vec::new();
        for (name, id) in by_name.chain(by_either) {
            let uuid = id.map(|id| id.to_string());
            let (name, code) = match self.delete(name.as_deref(), uuid.as_deref()).await? {
                Some(deleted) => (Some(deleted), ErrorCode::None),
                None if id.is_some() => (name, ErrorCode::UnknownTopicId),
                None => (name, ErrorCode::UnknownTopicOrPartition),
            };
            responses.push(
                DeletableTopicResult::default()
                    .name(name)
                    .topic_id(Some(id.unwrap_or_default().into_bytes()))
                    .error_code(code.into())
                    .error_message(None),
            );
        }
        Ok(DeleteTopicsResponse::default().throttle_time_ms(Some(0)).responses(Some(responses)))
    }
}

/// Held for reading by what may write, for writing by a deletion.
pub(super) type Gate = Arc<RwLock<()>>;

/// Keeps a deletion alone: tansu's connections do not wait for another writer, they fail.
#[derive(Clone)]
pub(super) struct Gated<S> {
    pub(super) inner: S,
    pub(super) gate: Gate,
    pub(super) deletes: DeleteTopics,
}

impl<S> Service<(), Frame> for Gated<S>
where
    S: Service<(), Frame, Response = Frame, Error = BrokerError>,
{
    type Response = Frame;
    type Error = BrokerError;

    async fn serve(&self, ctx: Context<()>, mut req: Frame) -> Result<Frame, BrokerError> {
        tame(&mut req.body);
        let adoptions = self.deletes.unadopted(&req.body);
        if !adoptions.is_empty() {
            let _alone = self.gate.write().await;
            self.deletes.adopt(adoptions).await?;
        }
        match req.api_key()? {
            DeleteTopicsRequest::KEY => {
                let _alone = self.gate.write().await;
                self.inner.serve(ctx, req).await
            }
            // Fetch takes the gate for each look, and waits without it. JoinGroup waits for other members with the gate in its hand; one
            // that meets a deletion fails and is repeated by its client.
            FetchRequest::KEY | JoinGroupRequest::KEY => self.inner.serve(ctx, req).await,
            _ => {
                let _shared = self.gate.read().await;
                self.inner.serve(ctx, req).await
            }
        }
    }
}
