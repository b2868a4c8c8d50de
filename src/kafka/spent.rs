//! [`Spent`]: consumed messages on their way back to the thread of librdkafka's that allocates them.
//!
//! That thread allocates several hundred bytes for each message. Where another one frees them at the same time, both sleep and
//! wake each other for the allocator's lock of that memory, again and again: for small messages this cost more than decoding
//! them (benches/drain). So a batch's messages wait here until the next answer to a fetch, which that thread tells us of
//! before it reads it, and are freed there.

use std::ffi::{c_char, c_void};
use std::ptr::NonNull;

use parking_lot::Mutex;
use rdkafka_sys as sys;

/// SpentMessages that may wait.
const MESSAGES_MAX: usize = 16_384;

/// Bytes of an average message from which the lock does not matter, and the memory does.
const BIG_BYTES: usize = 4096;

/// `Fetch` of Kafka's protocol.
const API_KEY_FETCH: i16 = 1;

const NAME: &std::ffi::CStr = c"karrow";

/// See the top of this file.
#[derive(Debug, Default)]
pub(super) struct Spent(Mutex<Vec<SpentMessage>>);

/// A consumed message that nobody looks at any more.
#[derive(Debug)]
pub(super) struct SpentMessage(NonNull<sys::rd_kafka_message_t>);

// SAFETY: a message is plain memory with atomic reference counts behind it.
unsafe impl Send for SpentMessage {}

impl SpentMessage {
    /// # Safety
    /// The message is ours to destroy, and its client lives longer than what is returned here.
    pub(super) unsafe fn own(message: NonNull<sys::rd_kafka_message_t>) -> Self {
        Self(message)
    }
}

impl Drop for SpentMessage {
    fn drop(&mut self) {
        // SAFETY: owned, and its client is alive, by the promise of `own`.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

impl Spent {
    /// Lets `messages`, with so many bytes, wait for the next fetch, or frees them now.
    pub(super) fn add(&self, messages: Vec<SpentMessage>, bytes: usize) {
        let mut spent = self.0.lock();
        if spent.len() + messages.len() <= MESSAGES_MAX && bytes <= messages.len() * BIG_BYTES {
            spent.extend(messages);
        } else {
            drop(spent);
            drop(messages);
        }
    }

    /// Frees all of them.
    pub(super) fn release(&self) {
        // Not under the lock, which a connection's thread may want.
        let spent = std::mem::take(&mut *self.0.lock());
        drop(spent);
    }

    /// Lets a client made of `conf` say when fetched messages come.
    ///
    /// # Safety
    /// `self` stays where it is for as long as that client lives, its destruction included.
    pub(super) unsafe fn install(&self, conf: *mut sys::rd_kafka_conf_t) {
        // SAFETY: `conf` is alive; the caller's promise covers the pointer.
        unsafe {
            sys::rd_kafka_conf_interceptor_add_on_new(
                conf,
                NAME.as_ptr(),
                Some(on_new),
                std::ptr::from_ref(self).cast_mut().cast(),
            );
        }
    }
}

unsafe extern "C" fn on_new(
    rk: *mut sys::rd_kafka_t,
    _conf: *const sys::rd_kafka_conf_t,
    spent: *mut c_void,
    _why: *mut c_char,
    _why_size: usize,
) -> sys::rd_kafka_resp_err_t {
    // SAFETY: librdkafka passes the new client.
    unsafe {
        sys::rd_kafka_interceptor_add_on_response_received(
            rk,
            NAME.as_ptr(),
            Some(on_response_received),
            spent,
        )
    }
}

unsafe extern "C" fn on_response_received(
    _rk: *mut sys::rd_kafka_t,
    _socket: std::ffi::c_int,
    _broker: *const c_char,
    _broker_id: i32,
    api_key: i16,
    _api_version: i16,
    _correlation_id: i32,
    _size: usize,
    _rtt_us: i64,
    _error: sys::rd_kafka_resp_err_t,
    spent: *mut c_void,
) -> sys::rd_kafka_resp_err_t {
    if api_key == API_KEY_FETCH {
        // SAFETY: what `install` was given, which lives as long as the client.
        unsafe { &*spent.cast::<Spent>() }.release();
    }
    sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use rdkafka::ClientConfig;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    use serde_json::Map;

    use super::*;
    use crate::config::KafkaOptions;
    use crate::kafka::consumer::{ConsumerEvent, Fetched, GroupConsumer, RecordQueue};
    use crate::kafka::options::ConsumerOptions;
    use crate::kafka::record::Record;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn put(producer: &BaseProducer, count: usize) {
        for _ in 0..count {
            let record = BaseRecord::<(), _>::to("t").partition(0).payload("x");
            producer.send(record).expect("taken");
        }
        producer.flush(DEADLINE).expect("stored");
    }

    fn take(consumer: &GroupConsumer, queue: &mut RecordQueue, count: usize) -> Vec<Record> {
        let until = Instant::now() + DEADLINE;
        let (mut found, mut records) = (VecDeque::new(), Vec::new());
        while records.len() < count {
            assert!(Instant::now() < until, "{} of {count} records came", records.len());
            while let Some(event) = consumer.next_event() {
                if let ConsumerEvent::Assigned(partitions) = event {
                    consumer.assign(&partitions).expect("assigned");
                }
            }
            queue.take(&mut found);
            for fetched in found.drain(..) {
                match fetched {
                    Fetched::Record(record) => records.push(record),
                    Fetched::Failed(error) => panic!("{error}"),
                }
            }
            std::thread::yield_now();
        }
        records
    }

    #[test]
    fn small_messages_wait_for_the_next_fetch_and_large_ones_do_not() {
        let cluster = MockCluster::new(1).expect("a cluster");
        cluster.create_topic("t", 1, 1).expect("a topic");
        let servers = cluster.bootstrap_servers();
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", &servers).create().expect("a producer");
        let file = KafkaOptions::from([("bootstrap.servers".to_owned(), servers)]);
        let options = ConsumerOptions::new(&file, &Map::new(), "g", "g:n").expect("options");
        let quiet = || Box::new(|| ());
        let (consumer, mut queue) =
            GroupConsumer::new(&options, quiet(), quiet()).expect("a consumer");
        consumer.subscribe(&["t".into()]).expect("subscribed");
        put(&producer, 10);
        let mut records = take(&consumer, &mut queue, 10);
        let client = records[0].client().clone();
        let waiting = |client: &Arc<crate::kafka::native::Handle>| client.spent().0.lock().len();

        Record::give_back(records.drain(..2), 2 * BIG_BYTES + 1);
        assert_eq!(waiting(&client), 0, "large ones");
        // An answer without records frees them as well, and may come at any moment.
        let until = Instant::now() + DEADLINE;
        loop {
            Record::give_back(records.drain(..), 8);
            match waiting(&client) {
                8 => break,
                left => assert!(left == 0 && Instant::now() < until, "{left} wait"),
            }
            put(&producer, 8);
            records = take(&consumer, &mut queue, 8);
        }
        put(&producer, 1);
        drop(take(&consumer, &mut queue, 1));
        assert_eq!(waiting(&client), 0, "they went when the last record came");
    }
}
