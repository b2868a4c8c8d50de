//! librdkafka's mock cluster, one for each test, and an ordinary client beside karrow to look at it.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka_sys as sys;

use super::DEADLINE;

pub use rdkafka_sys::rd_kafka_resp_err_t as Code;

/// Numbers of Kafka's requests.
pub const PRODUCE: i16 = 0;
pub const METADATA: i16 = 3;
pub const OFFSET_COMMIT: i16 = 8;
pub const HEARTBEAT: i16 = 12;

/// A mock cluster of one broker, or another Kafka. rdkafka's own wrapper lacks the group's delay and the list of
/// requests.
pub struct Kafka {
    /// Null for another Kafka.
    cluster: *mut sys::rd_kafka_mock_cluster_t,
    /// The cluster lives in it.
    _host: Option<BaseProducer>,
    producer: BaseProducer,
    servers: String,
}

// SAFETY: librdkafka hands each call to the cluster's own thread.
unsafe impl Send for Kafka {}
// SAFETY: as above.
unsafe impl Sync for Kafka {}

impl Kafka {
    pub fn start() -> Self {
        let host: BaseProducer =
            ClientConfig::new().set("log_level", "0").create().expect("a client");
        // SAFETY: the client outlives the cluster, see `drop`.
        let (cluster, servers) = unsafe {
            let cluster = sys::rd_kafka_mock_cluster_new(host.client().native_ptr(), 1);
            assert!(!cluster.is_null());
            // Members that join together need not wait for each other longer than this.
            sys::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 100);
            sys::rd_kafka_mock_set_group_consumer_heartbeat_interval_ms(cluster, 100);
            let servers = sys::rd_kafka_mock_cluster_bootstraps(cluster);
            (cluster, std::ffi::CStr::from_ptr(servers).to_str().expect("ASCII").to_owned())
        };
        let mut kafka = Self::at(&servers);
        (kafka.cluster, kafka._host) = (cluster, Some(host));
        kafka
    }

    /// The Kafka at `servers`, to store and to look only.
    pub fn at(servers: &str) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", servers)
            .set("linger.ms", "0")
            .set("log_level", "0")
            .create()
            .expect("a producer");
        Self { cluster: std::ptr::null_mut(), _host: None, producer, servers: servers.to_owned() }
    }

    /// With topics, of so many partitions each.
    pub fn with(topics: &[(&str, i32)]) -> Self {
        let kafka = Self::start();
        for (topic, partitions) in topics {
            kafka.create(topic, *partitions);
        }
        kafka
    }

    pub fn servers(&self) -> String {
        self.servers.clone()
    }

    #[track_caller]
    pub fn create(&self, topic: &str, partitions: i32) {
        let name = std::ffi::CString::new(topic).expect("no NUL");
        // SAFETY: the cluster is alive.
        let code =
            unsafe { sys::rd_kafka_mock_topic_create(self.cluster, name.as_ptr(), partitions, 1) };
        assert_eq!(code, Code::RD_KAFKA_RESP_ERR_NO_ERROR, "{topic}");
    }

    /// What metadata says about `topic` from now on; `NO_ERROR` ends it.
    pub fn set_topic_error(&self, topic: &str, code: Code) {
        let name = std::ffi::CString::new(topic).expect("no NUL");
        // SAFETY: the cluster is alive.
        unsafe { sys::rd_kafka_mock_topic_set_error(self.cluster, name.as_ptr(), code) };
    }

    /// Who leads a partition: broker 1, or nobody.
    #[track_caller]
    pub fn set_leader(&self, topic: &str, partition: i32, broker: Option<i32>) {
        let name = std::ffi::CString::new(topic).expect("no NUL");
        let broker = broker.unwrap_or(-1);
        // SAFETY: the cluster is alive.
        let code = unsafe {
            sys::rd_kafka_mock_partition_set_leader(self.cluster, name.as_ptr(), partition, broker)
        };
        assert_eq!(code, Code::RD_KAFKA_RESP_ERR_NO_ERROR, "{topic}");
    }

    /// The next requests of this kind fail with these codes, one each.
    pub fn fail(&self, request: i16, codes: &[Code]) {
        // SAFETY: the cluster is alive; the codes are copied.
        unsafe {
            sys::rd_kafka_mock_push_request_errors_array(
                self.cluster,
                request,
                codes.len(),
                codes.as_ptr(),
            );
        }
    }

    /// Ends [`fail`](Self::fail).
    pub fn heal(&self, request: i16) {
        // SAFETY: the cluster is alive.
        unsafe { sys::rd_kafka_mock_clear_request_errors(self.cluster, request) };
    }

    /// Every answer takes at least so long.
    pub fn delay(&self, delay: Duration) {
        let millis = i32::try_from(delay.as_millis()).expect("a short delay");
        // SAFETY: the cluster is alive; -1 means all brokers.
        unsafe { sys::rd_kafka_mock_broker_set_rtt(self.cluster, -1, millis) };
    }

    /// Stops or starts the broker.
    pub fn set_up(&self, up: bool) {
        // SAFETY: the cluster is alive; -1 means all brokers.
        unsafe {
            if up {
                sys::rd_kafka_mock_broker_set_up(self.cluster, -1);
            } else {
                sys::rd_kafka_mock_broker_set_down(self.cluster, -1);
            }
        }
    }

    /// Counts requests from now on.
    pub fn track(&self) {
        // SAFETY: the cluster is alive.
        unsafe {
            sys::rd_kafka_mock_start_request_tracking(self.cluster);
            sys::rd_kafka_mock_clear_requests(self.cluster);
        }
    }

    /// How many requests of this kind the cluster has seen since [`track`](Self::track).
    pub fn count(&self, request: i16) -> usize {
        let mut count = 0;
        // SAFETY: the cluster is alive; the array is ours.
        unsafe {
            let requests = sys::rd_kafka_mock_get_requests(self.cluster, &raw mut count);
            let kinds = (0..count)
                .filter(|index| {
                    sys::rd_kafka_mock_request_api_key(*requests.add(*index)) == request
                })
                .count();
            sys::rd_kafka_mock_request_destroy_array(requests, count);
            kinds
        }
    }

    /// Stores a message.
    pub fn put(&self, topic: &str, partition: i32, value: impl AsRef<[u8]>) {
        self.put_all(topic, partition, [value]);
    }

    /// Stores messages, in order.
    #[track_caller]
    pub fn put_all<V: AsRef<[u8]>>(
        &self,
        topic: &str,
        partition: i32,
        values: impl IntoIterator<Item = V>,
    ) {
        for value in values {
            let value = value.as_ref();
            let record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition).payload(value);
            self.put_record(record);
        }
        self.flush();
    }

    /// Stores a message with everything a message can have.
    #[track_caller]
    pub fn put_full(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
        timestamp: i64,
    ) {
        let mut list = OwnedHeaders::new();
        for (key, value) in headers {
            // SAFETY: the name is only copied, byte for byte; Kafka takes any.
            let key = unsafe { std::str::from_utf8_unchecked(key) };
            list = list.insert(Header { key, value: *value });
        }
        let mut record =
            BaseRecord::<[u8], [u8]>::to(topic).partition(0).headers(list).timestamp(timestamp);
        record.key = key;
        record.payload = value;
        self.put_record(record);
        self.flush();
    }

    fn put_record(&self, mut record: BaseRecord<'_, [u8], [u8]>) {
        while let Err((error, back)) = self.producer.send(record) {
            assert!(error.to_string().contains("QueueFull"), "{error}");
            self.producer.poll(Duration::from_millis(10));
            record = back;
        }
    }

    #[track_caller]
    fn flush(&self) {
        self.producer.flush(DEADLINE).expect("stored");
    }

    /// What the group has committed; `None` where there is nothing.
    #[track_caller]
    pub fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        committed(&self.servers, group, topic, partition)
    }

    /// The offset after the last message of a partition.
    #[track_caller]
    pub fn end(&self, topic: &str, partition: i32) -> i64 {
        let watermarks = self.producer.client().fetch_watermarks(topic, partition, DEADLINE);
        watermarks.expect("watermarks").1
    }

    /// Everything that a partition holds.
    pub fn values(&self, topic: &str, partition: i32) -> Vec<Vec<u8>> {
        self.records(topic, partition)
            .into_iter()
            .map(|(_, value)| value.unwrap_or_default())
            .collect()
    }

    /// Keys and values of everything that a partition holds.
    #[track_caller]
    pub fn records(&self, topic: &str, partition: i32) -> Vec<KeyAndValue> {
        use rdkafka::message::Message;
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.servers)
            .set("group.id", "looks")
            .set("enable.auto.commit", "false")
            .set("log_level", "0")
            .create()
            .expect("a consumer");
        let (_, end) = consumer.fetch_watermarks(topic, partition, DEADLINE).expect("watermarks");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("legal");
        consumer.assign(&list).expect("assigned");
        let mut found = Vec::new();
        while (found.len() as i64) < end {
            let message = consumer.poll(DEADLINE).expect("a message").expect("no error");
            found.push((message.key().map(<[u8]>::to_vec), message.payload().map(<[u8]>::to_vec)));
        }
        found
    }
}

/// Of a message.
pub type KeyAndValue = (Option<Vec<u8>>, Option<Vec<u8>>);

/// What `group` has committed at the Kafka at `servers`.
#[track_caller]
pub fn committed(servers: &str, group: &str, topic: &str, partition: i32) -> Option<i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", group)
        .set("log_level", "0")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    let found = consumer.committed_offsets(list, DEADLINE).expect("offsets");
    match found.find_partition(topic, partition).expect("asked for").offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if !self.cluster.is_null() {
            // SAFETY: made by us, destroyed once, before its client.
            unsafe { sys::rd_kafka_mock_cluster_destroy(self.cluster) };
        }
    }
}
