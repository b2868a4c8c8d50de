//! Fetch: answers as soon as there is a record, and waits without asking meanwhile.
//!
//! tansu sleeps up to half of the wait even when it has records, drops the connection for a partition that does not exist,
//! and says nothing about an offset behind the end. It is asked for watermarks only; the records come from `records.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::select_all;
use parking_lot::Mutex;
use rama::{Context, Service};
use tansu_sans_io::fetch_request::{FetchPartition, FetchTopic};
use tansu_sans_io::fetch_response::{FetchableTopicResponse, PartitionData};
use tansu_sans_io::record::deflated::Frame;
use tansu_sans_io::{ErrorCode, FetchRequest, FetchResponse};
use tansu_storage::{
    Error as StorageError, FetchService, Storage, StorageContainer, TopicId, Topition,
};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::delete::Gate;
use super::guard::{find_topic, partition_count};
use super::records::Records;

/// What an answer has at most, unless its first record is larger: clients ask for 50 MiB, which would take a second.
const FETCH_BYTES: i32 = 5 << 20;

/// Who waits for records of which topic.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<HashMap<String, watch::Sender<()>>>);

impl Waiters {
    fn watch(&self, topic: &str) -> watch::Receiver<()> {
        let mut topics = self.0.lock();
        topics.entry(topic.to_owned()).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    pub(super) fn wake(&self, topic: &str) {
        if let Some(sender) = self.0.lock().get(topic) {
            sender.send_replace(());
        }
    }
}

/// Fetch that answers as soon as there is a record, and waits without asking meanwhile.
#[derive(Debug)]
pub(super) struct LongFetch {
    pub(super) waiters: Arc<Waiters>,
    pub(super) gate: Gate,
    pub(super) records: Records,
}

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
        loop {
            // A topic that went between the look and the read would end tansu's storage.
            let shared = self.gate.read().await;
            // Again in each round: a topic may go, or come, while this waits.
            let (known, missing) = split(&ctx, req.clone()).await?;
            let mut watches: Vec<_> =
                known.names.iter().map(|topic| self.waiters.watch(topic)).collect();
            let mut response = fetch_now(&ctx, &self.records, &known.req).await?;
            drop(shared);
            let answered = has_answer(&response) || !missing.is_empty();
            if answered || watches.is_empty() || Instant::now() >= deadline {
                response.responses.get_or_insert_default().extend(missing);
                return Ok(response);
            }
            let changed = select_all(watches.iter_mut().map(|watch| Box::pin(watch.changed())));
            // Past the deadline the loop asks once more, and answers with what is there.
            let _ = timeout_at(deadline, changed).await;
        }
    }
}

/// The part of a request that can be answered from the storage.
struct Known {
    req: FetchRequest,
    names: Vec<String>,
}

/// Takes out of a request what does not exist, with the answers for it.
async fn split(
    ctx: &Context<StorageContainer>,
    mut req: FetchRequest,
) -> Result<(Known, Vec<FetchableTopicResponse>), StorageError> {
    let mut names = Vec::new();
    let mut kept = Vec::new();
    let mut answers = Vec::new();
    for mut topic in req.topics.take().unwrap_or_default() {
        let found = find_topic(ctx.state(), TopicId::from(&topic)).await?;
        let partitions = found.as_ref().map_or(0, partition_count);
        let (there, missing): (Vec<_>, Vec<_>) = topic
            .partitions
            .take()
            .unwrap_or_default()
            .into_iter()
            .partition(|asked| (0..partitions).contains(&asked.partition));
        if !missing.is_empty() {
            let code = match (&topic.topic, &found) {
                (None, None) => ErrorCode::UnknownTopicId,
                _ => ErrorCode::UnknownTopicOrPartition,
            };
            answers.push(refuse(&topic, &missing, code));
        }
        if let Some(name) = found.and_then(|found| found.name) {
            names.push(name);
        }
        if !there.is_empty() {
            kept.push(topic.partitions(Some(there)));
        }
    }
    Ok((Known { req: req.topics(Some(kept)), names }, answers))
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

/// One fetch without a wait: tansu's watermarks, our records, and the error for an offset behind the end, without which a
/// client would wait there for ever.
async fn fetch_now(
    ctx: &Context<StorageContainer>,
    records: &Records,
    req: &FetchRequest,
) -> Result<FetchResponse, StorageError> {
    let marks = req.clone().max_wait_ms(0).max_bytes(Some(0));
    let mut response = FetchService.serve(ctx.clone(), marks).await?;
    let is_committed = req.isolation_level == Some(1);
    let mut left = req.max_bytes.map_or(FETCH_BYTES, |bytes| bytes.min(FETCH_BYTES));
    let mut found_any = false;
    let topics = req.topics.iter().flatten();
    for (asked, answer) in topics.zip(response.responses.iter_mut().flatten()) {
        // A topic deleted since `split` comes back without its id but with a "current leader":
        // librdkafka then looks for a topic without a name, and crashes.
        answer.topic_id = asked.topic_id.or(answer.topic_id);
        let Some(topic) = topic_name(ctx, answer.topic.as_deref(), answer.topic_id).await? else {
            continue;
        };
        let asked_partitions = asked.partitions.iter().flatten();
        for (asked, data) in asked_partitions.zip(answer.partitions.iter_mut().flatten()) {
            data.current_leader = None;
            data.diverging_epoch = None;
            data.snapshot_id = None;
            if data.error_code != 0 {
                continue;
            }
            if asked.fetch_offset > data.high_watermark {
                data.error_code = ErrorCode::OffsetOutOfRange.into();
                continue;
            }
            // The first record comes however large it is (KIP-74).
            if found_any && left <= 0 {
                continue;
            }
            let end = match data.last_stable_offset {
                Some(stable) if is_committed => stable,
                _ => data.high_watermark,
            };
            let bytes_max = usize::try_from(left.min(asked.partition_max_bytes)).unwrap_or(0);
            let partition = Topition::new(topic.clone(), asked.partition);
            let found = records.fetch(partition, asked.fetch_offset, end, bytes_max).await?;
            if !found.is_empty() {
                found_any = true;
                let bytes: i32 = found.iter().map(|batch| batch.batch_length).sum();
                left = left.saturating_sub(bytes);
                data.records = Some(Frame { batches: found });
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

fn has_answer(response: &FetchResponse) -> bool {
    response
        .responses
        .iter()
        .flatten()
        .flat_map(|topic| topic.partitions.iter().flatten())
        .any(|partition| partition.records.is_some() || partition.error_code != 0)
}
