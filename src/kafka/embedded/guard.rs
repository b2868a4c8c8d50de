//! Keeps from tansu what it would panic at: its storage is one task, and a panic ends it for all.
//!
//! What arrives from a client's stale metadata is answered as Kafka does; should the storage fail
//! all the same, [`BrokerHealth`](super::BrokerHealth) says so.

use std::collections::{HashMap, HashSet};

use rama::{Context, Service};
use tansu_sans_io::create_topics_request::CreatableTopic;
use tansu_sans_io::incremental_alter_configs_request::AlterConfigsResource;
use tansu_sans_io::incremental_alter_configs_response::AlterConfigsResourceResponse;
use tansu_sans_io::metadata_response::MetadataResponseTopic;
use tansu_sans_io::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use tansu_sans_io::{
    Body, ErrorCode, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
    ProduceRequest,
};
use tansu_storage::{
    Error as StorageError, IncrementalAlterConfigsService, Storage, StorageContainer, TopicId,
};

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
        for data in topic.partition_data.take().unwrap_or_default() {
            if !(0..partitions).contains(&data.index) {
                refused.push(refuse(data.index, ErrorCode::UnknownTopicOrPartition));
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
