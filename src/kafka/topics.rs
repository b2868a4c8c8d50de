//! What a cluster has: topics, their partitions, their offsets. All of it blocks on a broker's answer.

use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use rdkafka_sys as sys;

use super::consumer::millis;
use super::native::{Handle, KafkaCode, Partition, PartitionList, Queue, c_string, text_of};
use crate::error::{ErrorKind, Result};

/// A topic as the cluster's metadata has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: i32,
}

/// A topic object that only serves to name the topic in a request.
pub(super) struct TopicRef(*mut sys::rd_kafka_topic_t);

// SAFETY: librdkafka's topic objects lock themselves.
unsafe impl Send for TopicRef {}
// SAFETY: as above.
unsafe impl Sync for TopicRef {}

impl TopicRef {
    pub(super) fn ptr(&self) -> *mut sys::rd_kafka_topic_t {
        self.0
    }

    pub(super) fn new(handle: &Handle, topic: &str) -> Result<Self, KafkaCode> {
        let invalid = KafkaCode(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__INVALID_ARG);
        let name = c_string(topic).map_err(|_| invalid)?;
        // SAFETY: the client is alive; a null configuration means the client's own.
        let rkt = unsafe { sys::rd_kafka_topic_new(handle.ptr(), name.as_ptr(), ptr::null_mut()) };
        if rkt.is_null() {
            // SAFETY: the call before failed and set this.
            return Err(KafkaCode(unsafe { sys::rd_kafka_last_error() }));
        }
        Ok(Self(rkt))
    }
}

impl Drop for TopicRef {
    fn drop(&mut self) {
        // SAFETY: owned.
        unsafe { sys::rd_kafka_topic_destroy(self.0) }
    }
}

/// Every topic of the cluster, in the order of their names.
pub(super) fn list(handle: &Arc<Handle>, timeout: Duration) -> Result<Vec<TopicInfo>> {
    let mut topics = metadata(handle, None, timeout)?;
    topics.retain(|(_, code)| code.is_ok());
    let mut topics: Vec<TopicInfo> = topics.into_iter().map(|(info, _)| info).collect();
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(topics)
}

/// What the brokers say about a topic.
#[derive(Clone, Copy, Debug)]
pub(super) enum Existence {
    /// It is there, with so many partitions, or its errors are librdkafka's to deal with.
    Exists(Option<i32>),
    /// There is none for us.
    Refused(KafkaCode),
    /// No broker has answered.
    Unknown,
}

impl Existence {
    /// Of a topic in an answer, and its code.
    fn of_topic(info: &TopicInfo, code: KafkaCode) -> Self {
        use sys::rd_kafka_resp_err_t::*;
        match code.0 {
            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION
            | RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => Self::Refused(code),
            _ => Self::Exists(code.is_ok().then_some(info.partitions)),
        }
    }

    /// Of the code of a request that failed.
    fn of_request(code: KafkaCode) -> Self {
        match code.kind() {
            ErrorKind::Timeout | ErrorKind::Unavailable => Self::Unknown,
            _ => Self::Exists(None),
        }
    }
}

/// Asks for `topic` as a producer does: a broker may create it. The client remembers the name for as long as it lives.
pub(super) fn ask_for(handle: &Arc<Handle>, topic: &str, timeout: Duration) -> Existence {
    match metadata_of(handle, Some(topic), timeout) {
        Ok(topics) => topics
            .into_iter()
            .find(|(info, _)| info.name == topic)
            .map_or(Existence::Unknown, |(info, code)| Existence::of_topic(&info, code)),
        Err(code) => Existence::of_request(code),
    }
}

/// How many partitions `topic` has; 0 where it does not exist.
pub(super) fn partition_count(handle: &Arc<Handle>, topic: &str, timeout: Duration) -> Result<i32> {
    use sys::rd_kafka_resp_err_t::*;
    for (info, code) in metadata(handle, Some(topic), timeout)? {
        if info.name == topic {
            return match code.0 {
                RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART => Ok(0),
                // It was created this moment; its partitions are known, their leaders follow.
                RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE => Ok(info.partitions.max(1)),
                _ => code.check(format_args!("topic '{topic}'")).map(|()| info.partitions),
            };
        }
    }
    Ok(0)
}

/// First and next offset of a partition as the last fetch had them; costs no request.
pub(super) fn cached_offsets(
    handle: &Arc<Handle>,
    topic: &str,
    partition: i32,
) -> Option<(i64, i64)> {
    let topic = c_string(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is alive, the places are writable.
    let code = unsafe {
        sys::rd_kafka_get_watermark_offsets(
            handle.ptr(),
            topic.as_ptr(),
            partition,
            &raw mut low,
            &raw mut high,
        )
    };
    (KafkaCode(code).is_ok() && high >= 0).then_some((low, high))
}

/// Which offset of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetOf {
    /// The first that is there.
    Beginning,
    /// The next one that will be there.
    End,
    /// The first whose timestamp is at least so many milliseconds since the epoch; none, if all are older.
    Time(i64),
}

/// The stable end (or, with `read_uncommitted`, the end) of each of `partitions`, see [`offsets`].
pub(super) fn ends(
    handle: &Arc<Handle>,
    partitions: &[Partition],
    uncommitted: bool,
    timeout: Duration,
) -> Result<Vec<Partition>> {
    offsets(handle, partitions, OffsetOf::End, uncommitted, timeout)
}

/// An offset of each of `partitions` as their leaders have it now, in one request a leader; with `uncommitted` the end is
/// not the stable one.
pub(super) fn offsets(
    handle: &Arc<Handle>,
    partitions: &[Partition],
    of: OffsetOf,
    uncommitted: bool,
    timeout: Duration,
) -> Result<Vec<Partition>> {
    let list = PartitionList::new(partitions)?;
    let queue = Queue::new(handle)?;
    let isolation = if uncommitted {
        sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED
    } else {
        sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED
    };
    let asked = match of {
        OffsetOf::Beginning => sys::RD_KAFKA_OFFSET_BEGINNING.into(),
        OffsetOf::End => sys::RD_KAFKA_OFFSET_END.into(),
        OffsetOf::Time(millis) => millis,
    };
    let mut why = [0; 256];
    // SAFETY: client, list and queue are alive; librdkafka copies list and options before the call returns.
    unsafe {
        for index in 0..partitions.len() {
            (*(*list.ptr()).elems.add(index)).offset = asked;
        }
        let options = sys::rd_kafka_AdminOptions_new(
            handle.ptr(),
            sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS,
        );
        sys::rd_kafka_AdminOptions_set_isolation_level(options, isolation);
        sys::rd_kafka_AdminOptions_set_request_timeout(
            options,
            millis(timeout),
            why.as_mut_ptr(),
            why.len(),
        );
        sys::rd_kafka_ListOffsets(handle.ptr(), list.ptr(), options, queue.ptr());
        sys::rd_kafka_AdminOptions_destroy(options);
    }
    // The request has its own deadline; this one only guards against its loss.
    let Some(event) = queue.poll(millis(timeout * 2)) else {
        return Err(
            KafkaCode(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TIMED_OUT).into_error("offsets")
        );
    };
    event.code().check("offsets")?;
    let mut found_all = Vec::new();
    // SAFETY: the event is alive and owns its result; `count` elements are valid and copied.
    unsafe {
        let result = sys::rd_kafka_event_ListOffsets_result(event.ptr());
        let mut count = 0;
        let infos = sys::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
        for index in 0..count {
            let found = sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(index));
            let topic = text_of((*found).topic);
            let code = KafkaCode((*found).err);
            code.check(format_args!("offset of {topic}:{}", (*found).partition))?;
            let offset = Some((*found).offset).filter(|offset| *offset >= 0);
            found_all.push(Partition::new(Arc::from(topic), (*found).partition, offset));
        }
    }
    Ok(found_all)
}

/// First and next offset of a partition; see [`super::consumer::GroupConsumer::offsets`].
pub(super) fn watermarks(
    handle: &Arc<Handle>,
    topic: &str,
    partition: i32,
    timeout: Duration,
) -> Result<(i64, i64)> {
    let name = c_string(topic)?;
    let (mut low, mut high) = (0, 0);
    // SAFETY: the client is alive, the places are writable.
    let code = unsafe {
        sys::rd_kafka_query_watermark_offsets(
            handle.ptr(),
            name.as_ptr(),
            partition,
            &raw mut low,
            &raw mut high,
            millis(timeout),
        )
    };
    KafkaCode(code).check(format_args!("offsets of {topic}:{partition}"))?;
    Ok((low, high))
}

fn metadata(
    handle: &Arc<Handle>,
    topic: Option<&str>,
    timeout: Duration,
) -> Result<Vec<(TopicInfo, KafkaCode)>> {
    metadata_of(handle, topic, timeout).map_err(|code| code.into_error("metadata"))
}

fn metadata_of(
    handle: &Arc<Handle>,
    topic: Option<&str>,
    timeout: Duration,
) -> Result<Vec<(TopicInfo, KafkaCode)>, KafkaCode> {
    let named = topic.map(|topic| TopicRef::new(handle, topic)).transpose()?;
    let only = named.as_ref().map_or(ptr::null_mut(), |topic| topic.0);
    let mut found = ptr::null();
    // SAFETY: the client and the topic are alive; on success the metadata is ours.
    let code = unsafe {
        sys::rd_kafka_metadata(
            handle.ptr(),
            i32::from(topic.is_none()),
            only,
            &raw mut found,
            millis(timeout),
        )
    };
    if !KafkaCode(code).is_ok() {
        return Err(KafkaCode(code));
    }
    // SAFETY: librdkafka filled in `topic_cnt` topics; they are copied before the metadata is destroyed.
    unsafe {
        let topics = match (*found).topic_cnt {
            ..=0 => &[],
            count => std::slice::from_raw_parts((*found).topics, count as usize),
        };
        let copied = topics
            .iter()
            .map(|topic| {
                let info =
                    TopicInfo { name: text_of(topic.topic), partitions: topic.partition_cnt };
                (info, KafkaCode(topic.err))
            })
            .collect();
        sys::rd_kafka_metadata_destroy(found);
        Ok(copied)
    }
}
