//! Keeps from tansu what it would panic at: its storage is one task, and a panic ends it for all. And
//! what it would accept and not do: copies, and settings that nobody knows.
//!
//! What arrives from a client's stale metadata is answered as Kafka does; should the storage fail
//! all the same, [`BrokerHealth`](super::BrokerHealth) says so.

use std::collections::{HashMap, HashSet};

use rama::{Context, Service};
use tansu_sans_io::create_topics_request::CreatableTopic;
use tansu_sans_io::create_topics_response::CreatableTopicResult;
use tansu_sans_io::incremental_alter_configs_request::AlterConfigsResource;
use tansu_sans_io::incremental_alter_configs_response::AlterConfigsResourceResponse;
use tansu_sans_io::metadata_response::MetadataResponseTopic;
use tansu_sans_io::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use tansu_sans_io::{
    Body, CreateTopicsRequest, CreateTopicsResponse, ErrorCode, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse, ListOffsetsRequest, ListOffsetsResponse, NULL_TOPIC_ID,
    ProduceRequest,
};
use tansu_storage::{
    CreateTopicsService, Error as StorageError, IncrementalAlterConfigsService, ListOffsetsService,
    Storage, StorageContainer, TopicId,
};

use super::snappy;

/// The topic, where it exists.
pub(super) async fn find_topic(
    storage: &StorageContainer,
    id: TopicId,
) -> Result<Option<MetadataResponseTopic>, StorageError> {
    let metadata = storage.metadata(Some(&[id])).await?;
    let unknown = i16::from(ErrorCode::UnknownTopicOrPartition);
    let found = metadata.topics().first().filter(|found| found.error_code != unknown);
    Ok(found.cloned())
}

pub(super) fn partition_count(topic: &MetadataResponseTopic) -> i32 {
    let partitions = topic.partitions.as_ref().map_or(0, Vec::len);
    i32::try_from(partitions).unwrap_or(i32::MAX)
}

/// Takes out of a request what cannot be stored, with the answers for it.
pub(super) async fn split_produce(
    storage: &StorageContainer,
    mut req: ProduceRequest,
) -> Result<(ProduceRequest, Vec<TopicProduceResponse>), StorageError> {
    let mut kept = Vec::new();
    let mut answers = Vec::new();
    let mut counts = HashMap::new();
    for mut topic in req.topic_data.take().unwrap_or_default() {
        let partitions = match counts.get(&topic.name) {
            Some(&partitions) => partitions,
            None => {
                let found = find_topic(storage, TopicId::Name(topic.name.clone())).await?;
                let partitions = found.as_ref().map_or(0, partition_count);
                counts.insert(topic.name.clone(), partitions);
                partitions
            }
        };
        let mut good = Vec::new();
        let mut refused = Vec::new();
        for mut data in topic.partition_data.take().unwrap_or_default() {
            if !(0..partitions).contains(&data.index) {
                refused.push(refuse(data.index, ErrorCode::UnknownTopicOrPartition));
            } else if let Some(Err(code)) = data.records.as_mut().map(snappy::unpack) {
                refused.push(refuse(data.index, code));
            } else {
                good.push(data);
            }
        }
        if !refused.is_empty() {
            let answer = TopicProduceResponse::default().name(topic.name.clone());
            answers.push(answer.partition_responses(Some(refused)));
        }
        if !good.is_empty() {
            kept.push(topic.partition_data(Some(good)));
        }
    }
    Ok((req.topic_data(Some(kept)), answers))
}

fn refuse(index: i32, code: ErrorCode) -> PartitionProduceResponse {
    PartitionProduceResponse::default()
        .index(index)
        .error_code(code.into())
        .base_offset(-1)
        .log_append_time_ms(Some(-1))
        .log_start_offset(Some(-1))
        .record_errors(Some(Vec::new()))
        .error_message(None)
        .current_leader(None)
}

/// Rewrites what means the same to Kafka and is a panic to tansu.
pub(super) fn tame(body: &mut Body) {
    match body {
        // A partition asked for twice.
        Body::OffsetFetchRequest(req) => {
            let mut seen = HashSet::new();
            for topic in req.topics.iter_mut().flatten() {
                keep_first(&topic.name, &mut topic.partition_indexes, &mut seen);
            }
            for group in req.groups.iter_mut().flatten() {
                let mut seen = HashSet::new();
                for topic in group.topics.iter_mut().flatten() {
                    keep_first(&topic.name, &mut topic.partition_indexes, &mut seen);
                }
            }
        }
        // "As the broker likes": tansu would keep the -1, and describe a topic by it.
        Body::CreateTopicsRequest(req) => req.topics.iter_mut().flatten().for_each(set_defaults),
        _ => {}
    }
}

fn keep_first(topic: &str, partitions: &mut Option<Vec<i32>>, seen: &mut HashSet<(String, i32)>) {
    if let Some(partitions) = partitions {
        partitions.retain(|&partition| seen.insert((topic.to_owned(), partition)));
    }
}

fn set_defaults(topic: &mut CreatableTopic) {
    if topic.num_partitions < 0 {
        let assigned = topic.assignments.as_ref().map_or(0, Vec::len);
        topic.num_partitions = i32::try_from(assigned).unwrap_or(i32::MAX).max(1);
    }
    if topic.replication_factor < 0 {
        topic.replication_factor = 1;
    }
}

/// ListOffsets, which says that no record is as late as asked for, where tansu answers the offset 0.
#[derive(Debug)]
pub(super) struct FoundOffsets;

impl Service<StorageContainer, ListOffsetsRequest> for FoundOffsets {
    type Response = ListOffsetsResponse;
    type Error = StorageError;

    async fn serve(
        &self,
        ctx: Context<StorageContainer>,
        req: ListOffsetsRequest,
    ) -> Result<ListOffsetsResponse, StorageError> {
        let by_time: HashSet<(String, i32)> = req
            .topics
            .iter()
            .flatten()
            .flat_map(|topic| topic.partitions.iter().flatten().map(move |of| (topic, of)))
            // Negative ones stand for the beginning and the end.
            .filter(|(_, partition)| partition.timestamp >= 0)
            .map(|(topic, partition)| (topic.name.clone(), partition.partition_index))
            .collect();
        let mut response = ListOffsetsService.serve(ctx, req).await?;
        for topic in response.topics.iter_mut().flatten() {
            for partition in topic.partitions.iter_mut().flatten() {
                let asked = (topic.name.clone(), partition.partition_index);
                if by_time.contains(&asked) && partition.timestamp == Some(-1) {
                    partition.offset = Some(-1);
                }
            }
        }
        Ok(response)
    }
}

/// CreateTopics, which refuses what tansu would accept and not do.
#[derive(Debug)]
pub(super) struct CheckedTopics;

impl Service<StorageContainer, CreateTopicsRequest> for CheckedTopics {
    type Response = CreateTopicsResponse;
    type Error = StorageError;

    async fn serve(
        &self,
        ctx: Context<StorageContainer>,
        mut req: CreateTopicsRequest,
    ) -> Result<CreateTopicsResponse, StorageError> {
        let mut good = Vec::new();
        let mut refused = Vec::new();
        for topic in req.topics.take().unwrap_or_default() {
            match topic_error(&topic) {
                None => good.push(topic),
                Some((code, why)) => refused.push(
                    CreatableTopicResult::default()
                        .name(topic.name)
                        .topic_id(Some(NULL_TOPIC_ID))
                        .error_code(code.into())
                        .error_message(Some(why))
                        .topic_config_error_code(None)
                        .num_partitions(Some(-1))
                        .replication_factor(Some(-1))
                        .configs(Some(Vec::new())),
                ),
            }
        }
        let mut response = CreateTopicsService.serve(ctx, req.topics(Some(good))).await?;
        response.topics.get_or_insert_default().extend(refused);
        Ok(response)
    }
}

fn topic_error(topic: &CreatableTopic) -> Option<(ErrorCode, String)> {
    // -1 was resolved by `tame`.
    let copies = topic.replication_factor;
    if copies != 1 {
        let why = format!("replication factor {copies}: there is one broker");
        return Some((ErrorCode::InvalidReplicationFactor, why));
    }
    if topic.num_partitions < 1 {
        let why = "the number of partitions must be at least 1".to_owned();
        return Some((ErrorCode::InvalidPartitions, why));
    }
    let mut configs = topic.configs.iter().flatten();
    let why = configs.find_map(|config| config_error(&config.name, config.value.as_deref()))?;
    Some((ErrorCode::InvalidConfig, why))
}

/// What is wrong with a topic's setting. All of Kafka's are taken; this broker acts on few of them.
fn config_error(name: &str, value: Option<&str>) -> Option<String> {
    if !TOPIC_CONFIGS.contains(&name) {
        return Some(format!("unknown topic config {name}"));
    }
    let value = value?;
    let is_wrong = if name.ends_with(".ms") || name.ends_with(".bytes") {
        !value.trim().parse::<i64>().is_ok_and(|number| number >= -1)
    } else {
        name == "cleanup.policy"
            && !value.split(',').all(|word| matches!(word.trim(), "compact" | "delete" | ""))
    };
    is_wrong.then(|| format!("invalid value {value} of {name}"))
}

/// The settings of topics in Kafka 4, and those of Kafka 3 that tools still send.
const TOPIC_CONFIGS: [&str; 36] = [
    "cleanup.policy",
    "compression.gzip.level",
    "compression.lz4.level",
    "compression.type",
    "compression.zstd.level",
    "delete.retention.ms",
    "file.delete.delay.ms",
    "flush.messages",
    "flush.ms",
    "follower.replication.throttled.replicas",
    "index.interval.bytes",
    "leader.replication.throttled.replicas",
    "local.retention.bytes",
    "local.retention.ms",
    "max.compaction.lag.ms",
    "max.message.bytes",
    "message.downconversion.enable",
    "message.format.version",
    "message.timestamp.after.max.ms",
    "message.timestamp.before.max.ms",
    "message.timestamp.difference.max.ms",
    "message.timestamp.type",
    "min.cleanable.dirty.ratio",
    "min.compaction.lag.ms",
    "min.insync.replicas",
    "preallocate",
    "remote.log.copy.disable",
    "remote.log.delete.on.disable",
    "remote.storage.enable",
    "retention.bytes",
    "retention.ms",
    "segment.bytes",
    "segment.index.bytes",
    "segment.jitter.ms",
    "segment.ms",
    "unclean.leader.election.enable",
];

/// IncrementalAlterConfigs, which can set and delete, but neither append nor subtract.
#[derive(Debug)]
pub(super) struct SetConfigs;

impl Service<StorageContainer, IncrementalAlterConfigsRequest> for SetConfigs {
    type Response = IncrementalAlterConfigsResponse;
    type Error = StorageError;

    async fn serve(
        &self,
        ctx: Context<StorageContainer>,
        mut req: IncrementalAlterConfigsRequest,
    ) -> Result<IncrementalAlterConfigsResponse, StorageError> {
        let resources = req.resources.take().unwrap_or_default();
        let (good, bad): (Vec<_>, Vec<_>) = resources.into_iter().partition(sets_and_deletes);
        let mut response =
            IncrementalAlterConfigsService.serve(ctx, req.resources(Some(good))).await?;
        response.responses.get_or_insert_default().extend(bad.into_iter().map(|resource| {
            AlterConfigsResourceResponse::default()
                .error_code(ErrorCode::InvalidConfig.into())
                .error_message(Some("values can only be set and deleted here".to_owned()))
                .resource_type(resource.resource_type)
                .resource_name(resource.resource_name)
        }));
        Ok(response)
    }
}

fn sets_and_deletes(resource: &AlterConfigsResource) -> bool {
    resource.configs.iter().flatten().all(|config| matches!(config.config_operation, 0 | 1))
}
