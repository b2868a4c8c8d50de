//! Safe owners of librdkafka's raw objects: client handle, queue, partition list, event. All `unsafe` that the
//! hot paths need is here and in `consumer.rs`, `producer.rs`, `topics.rs`.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rdkafka_sys as sys;

use super::spent::Spent;
use crate::config::KafkaOptions;
use crate::error::{Error, ErrorKind, Result};

/// A `rd_kafka_resp_err_t`, kept as the number that librdkafka's header documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KafkaCode(pub(super) sys::rd_kafka_resp_err_t);

impl KafkaCode {
    pub(super) fn is_ok(self) -> bool {
        self.0 == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
    }

    /// librdkafka's own sentence, e.g. `Broker: Unknown topic or partition`.
    pub fn text(self) -> &'static str {
        // SAFETY: rd_kafka_err2str returns a static, NUL-terminated ASCII string for every code.
        unsafe { CStr::from_ptr(sys::rd_kafka_err2str(self.0)) }.to_str().unwrap_or("unknown error")
    }

    /// The kind an edge translates.
    pub(super) fn kind(self) -> ErrorKind {
        use sys::rd_kafka_resp_err_t::*;
        match self.0 {
            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
            | RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION => ErrorKind::NotFound,
            RD_KAFKA_RESP_ERR__TIMED_OUT | RD_KAFKA_RESP_ERR__MSG_TIMED_OUT => ErrorKind::Timeout,
            RD_KAFKA_RESP_ERR__TRANSPORT
            | RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN
            | RD_KAFKA_RESP_ERR__RESOLVE
            | RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE
            | RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION => ErrorKind::Unavailable,
            RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
            | RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED
            | RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED
            | RD_KAFKA_RESP_ERR__AUTHENTICATION => ErrorKind::Unauthorized,
            RD_KAFKA_RESP_ERR__INVALID_ARG
            | RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION
            | RD_KAFKA_RESP_ERR_INVALID_RECORD
            | RD_KAFKA_RESP_ERR_POLICY_VIOLATION
            | RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE
            | RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE => ErrorKind::Invalid,
            RD_KAFKA_RESP_ERR__QUEUE_FULL => ErrorKind::Exhausted,
            _ => ErrorKind::Internal,
        }
    }

    /// Whether it says that a topic is not there; that one of its partitions is not there says less.
    pub(super) fn is_missing_topic(self) -> bool {
        use sys::rd_kafka_resp_err_t::*;
        matches!(self.0, RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC)
    }

    pub(super) fn into_error(self, context: impl std::fmt::Display) -> Error {
        Error::new(self.kind(), format!("{context}: {}", self.text()))
    }

    pub(super) fn check(self, context: impl std::fmt::Display) -> Result<()> {
        if self.is_ok() { Ok(()) } else { Err(self.into_error(context)) }
    }
}

/// Which of librdkafka's two clients a handle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientKind {
    Consumer,
    Producer,
}

static CLIENTS: AtomicUsize = AtomicUsize::new(0);

/// How many librdkafka clients this process runs; each costs three threads and one more for each broker.
pub fn client_count() -> usize {
    CLIENTS.load(Ordering::Relaxed)
}

/// A librdkafka client. Dropping the last reference destroys it on a thread of its own, because that joins
/// librdkafka's threads; a consumer must have been closed before, or it leaves its group by timeout only.
#[derive(Debug)]
pub(super) struct Handle {
    rk: NonNull<sys::rd_kafka_t>,
    /// Outlives the client, which knows where it is.
    spent: Arc<Spent>,
}

// SAFETY: librdkafka documents every function taking rd_kafka_t as thread-safe.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// Creates a client from `options`; `events` is a mask of `RD_KAFKA_EVENT_*` to be delivered as events.
    ///
    /// # Errors
    /// Names the option that librdkafka refuses, with its own reason.
    pub(super) fn new(kind: ClientKind, options: &KafkaOptions, events: i32) -> Result<Arc<Self>> {
        let conf = Conf::new();
        for (name, value) in options {
            conf.set(name, value)?;
        }
        // SAFETY: conf is valid until rd_kafka_new takes it; the log callback has the signature asked for.
        unsafe {
            sys::rd_kafka_conf_set_events(conf.0, events);
            sys::rd_kafka_conf_set_log_cb(conf.0, Some(log));
        }
        let native_kind = match kind {
            ClientKind::Consumer => sys::rd_kafka_type_t::RD_KAFKA_CONSUMER,
            ClientKind::Producer => sys::rd_kafka_type_t::RD_KAFKA_PRODUCER,
        };
        let spent = Arc::new(Spent::default());
        if kind == ClientKind::Consumer {
            // SAFETY: the handle keeps it until the client is destroyed.
            unsafe { spent.install(conf.0) };
        }
        let mut why = [0 as c_char; 512];
        // SAFETY: `why` is writable for its length. On success librdkafka owns the configuration.
        let rk = unsafe { sys::rd_kafka_new(native_kind, conf.0, why.as_mut_ptr(), why.len()) };
        match NonNull::new(rk) {
            Some(rk) => {
                std::mem::forget(conf);
                CLIENTS.fetch_add(1, Ordering::Relaxed);
                Ok(Arc::new(Self { rk, spent }))
            }
            None => Err(Error::invalid(text_of(why.as_ptr()))),
        }
    }

    pub(super) fn ptr(&self) -> *mut sys::rd_kafka_t {
        self.rk.as_ptr()
    }

    /// Where its messages go when they are done with.
    pub(super) fn spent(&self) -> &Spent {
        &self.spent
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        struct Address(*mut sys::rd_kafka_t);
        // SAFETY: this was the last reference, and librdkafka allows destruction from any thread.
        unsafe impl Send for Address {}
        let address = Address(self.rk.as_ptr());
        let spent = self.spent.clone();
        let destroy = move || {
            let address = address;
            spent.release();
            // SAFETY: nothing refers to the client any more; closing was the owner's business, see above.
            unsafe {
                sys::rd_kafka_destroy_flags(
                    address.0,
                    sys::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE as c_int,
                );
            }
            drop(spent);
            CLIENTS.fetch_sub(1, Ordering::Relaxed);
        };
        // Where no thread can be had the client leaks, which is better than blocking the network thread.
        if let Err(error) = std::thread::Builder::new().name("kafka-destroy".into()).spawn(destroy)
        {
            tracing::error!(%error, "no thread to destroy a Kafka client");
        }
    }
}

/// An owned configuration, before a client takes it.
struct Conf(*mut sys::rd_kafka_conf_t);

impl Conf {
    fn new() -> Self {
        // SAFETY: no preconditions.
        Self(unsafe { sys::rd_kafka_conf_new() })
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        let (c_name, c_value) = (c_string(name)?, c_string(value)?);
        let mut why = [0 as c_char; 512];
        // SAFETY: all pointers are valid for the call.
        let result = unsafe {
            sys::rd_kafka_conf_set(
                self.0,
                c_name.as_ptr(),
                c_value.as_ptr(),
                why.as_mut_ptr(),
                why.len(),
            )
        };
        if result == sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
            Ok(())
        } else {
            Err(Error::invalid(text_of(why.as_ptr())))
        }
    }
}

impl Drop for Conf {
    fn drop(&mut self) {
        // SAFETY: not handed to a client, which would have made us forget it.
        unsafe { sys::rd_kafka_conf_destroy(self.0) }
    }
}

/// What a [`Queue`] calls, on a thread of librdkafka's, when it is no longer empty.
pub(super) type Wake = Box<dyn Fn() + Send + Sync>;

/// A librdkafka queue; keeps its client alive.
pub(super) struct Queue {
    queue: NonNull<sys::rd_kafka_queue_t>,
    // Boxed twice because the callback gets a thin pointer.
    wake: Option<Box<Wake>>,
    /// Outlives the queue.
    handle: Arc<Handle>,
}

// SAFETY: librdkafka's queues lock themselves.
unsafe impl Send for Queue {}
// SAFETY: as above; what must not run concurrently (batch consumption) takes &mut self.
unsafe impl Sync for Queue {}

impl Queue {
    /// A new queue of our own, to forward others to.
    pub(super) fn new(handle: &Arc<Handle>) -> Result<Self> {
        // SAFETY: the client is alive.
        Self::own(handle, unsafe { sys::rd_kafka_queue_new(handle.ptr()) })
    }

    /// The consumer's queue: rebalances, errors, commit results.
    pub(super) fn of_consumer(handle: &Arc<Handle>) -> Result<Self> {
        // SAFETY: the client is alive.
        Self::own(handle, unsafe { sys::rd_kafka_queue_get_consumer(handle.ptr()) })
    }

    /// The main queue: delivery reports, errors.
    pub(super) fn of_main(handle: &Arc<Handle>) -> Result<Self> {
        // SAFETY: the client is alive.
        Self::own(handle, unsafe { sys::rd_kafka_queue_get_main(handle.ptr()) })
    }

    /// The queue of one partition.
    pub(super) fn of_partition(handle: &Arc<Handle>, topic: &CStr, partition: i32) -> Result<Self> {
        // SAFETY: the client is alive, the name is NUL-terminated.
        Self::own(handle, unsafe {
            sys::rd_kafka_queue_get_partition(handle.ptr(), topic.as_ptr(), partition)
        })
    }

    fn own(handle: &Arc<Handle>, queue: *mut sys::rd_kafka_queue_t) -> Result<Self> {
        let queue = NonNull::new(queue)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "librdkafka has no such queue"))?;
        Ok(Self { queue, wake: None, handle: handle.clone() })
    }

    /// Calls `wake` whenever the queue stops being empty, and once now: what came before does so no more. It must be
    /// quick and must not call librdkafka.
    pub(super) fn on_non_empty(&mut self, wake: Wake) {
        let boxed = Box::new(wake);
        // SAFETY: the box lives as long as the callback is installed: it is removed in drop.
        unsafe {
            sys::rd_kafka_queue_cb_event_enable(
                self.queue.as_ptr(),
                Some(non_empty),
                (&raw const *boxed).cast_mut().cast::<c_void>(),
            );
        }
        boxed();
        self.wake = Some(boxed);
    }

    /// Sends what arrives here to `to` instead.
    pub(super) fn forward(&self, to: &Queue) {
        // SAFETY: both queues are alive.
        unsafe { sys::rd_kafka_queue_forward(self.queue.as_ptr(), to.queue.as_ptr()) }
    }

    /// The next event, if there is one within `timeout_ms`.
    pub(super) fn poll(&self, timeout_ms: i32) -> Option<Event> {
        // SAFETY: the queue is alive.
        NonNull::new(unsafe { sys::rd_kafka_queue_poll(self.queue.as_ptr(), timeout_ms) })
            .map(Event)
    }

    /// The client whose queue it is.
    pub(super) fn client(&self) -> &Arc<Handle> {
        &self.handle
    }

    pub(super) fn ptr(&self) -> *mut sys::rd_kafka_queue_t {
        self.queue.as_ptr()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the callback is removed (librdkafka takes the queue's lock for it) before its closure goes.
        unsafe {
            if self.wake.is_some() {
                sys::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, ptr::null_mut());
            }
            sys::rd_kafka_queue_destroy(self.queue.as_ptr());
        }
    }
}

unsafe extern "C" fn non_empty(_: *mut sys::rd_kafka_t, opaque: *mut c_void) {
    // SAFETY: `on_non_empty` passed a `Wake` that outlives the callback.
    let wake = unsafe { &*opaque.cast::<Wake>() };
    wake();
}

/// An event taken from a [`Queue`].
pub(super) struct Event(NonNull<sys::rd_kafka_event_t>);

impl Event {
    pub(super) fn kind(&self) -> i32 {
        // SAFETY: the event is alive.
        unsafe { sys::rd_kafka_event_type(self.ptr()) }
    }

    pub(super) fn code(&self) -> KafkaCode {
        // SAFETY: the event is alive.
        KafkaCode(unsafe { sys::rd_kafka_event_error(self.ptr()) })
    }

    /// The error as a sentence of librdkafka's.
    pub(super) fn error_text(&self) -> String {
        // SAFETY: the event is alive; the string belongs to it and is copied.
        text_of(unsafe { sys::rd_kafka_event_error_string(self.ptr()) })
    }

    pub(super) fn is_fatal(&self) -> bool {
        // SAFETY: the event is alive.
        unsafe { sys::rd_kafka_event_error_is_fatal(self.ptr()) != 0 }
    }

    /// The partitions of a rebalance or commit event.
    pub(super) fn partitions(&self) -> Vec<Partition> {
        // SAFETY: the list belongs to the event and is copied.
        unsafe { copy_list(sys::rd_kafka_event_topic_partition_list(self.ptr())) }
    }

    pub(super) fn ptr(&self) -> *mut sys::rd_kafka_event_t {
        self.0.as_ptr()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: owned.
        unsafe { sys::rd_kafka_event_destroy(self.ptr()) }
    }
}

/// A partition with an offset and librdkafka's verdict on it, as its lists have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
    /// An absolute offset; `None` where librdkafka has no number (nothing committed, logical offsets).
    pub offset: Option<i64>,
    /// What a request said of this partition.
    pub code: KafkaCode,
}

impl Partition {
    /// A partition without an error.
    pub fn new(topic: Arc<str>, partition: i32, offset: Option<i64>) -> Self {
        let code = KafkaCode(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
        Self { topic, partition, offset, code }
    }
}

/// An owned `rd_kafka_topic_partition_list_t`.
pub(super) struct PartitionList(*mut sys::rd_kafka_topic_partition_list_t);

impl PartitionList {
    /// A list in which partitions without an offset say `RD_KAFKA_OFFSET_INVALID`: for an assignment that
    /// means "the committed one, or auto.offset.reset".
    pub(super) fn new(partitions: &[Partition]) -> Result<Self> {
        // SAFETY: no preconditions; the size is only a hint.
        let list =
            Self(unsafe { sys::rd_kafka_topic_partition_list_new(partitions.len() as c_int) });
        for partition in partitions {
            let topic = c_string(&partition.topic)?;
            // SAFETY: the list is alive; librdkafka copies the name and returns an element of the list.
            unsafe {
                let element = sys::rd_kafka_topic_partition_list_add(
                    list.0,
                    topic.as_ptr(),
                    partition.partition,
                );
                (*element).offset = partition.offset.unwrap_or(sys::RD_KAFKA_OFFSET_INVALID.into());
            }
        }
        Ok(list)
    }

    /// # Safety
    /// `list` is valid and becomes ours.
    pub(super) unsafe fn from_raw(list: *mut sys::rd_kafka_topic_partition_list_t) -> Self {
        Self(list)
    }

    pub(super) fn ptr(&self) -> *mut sys::rd_kafka_topic_partition_list_t {
        self.0
    }

    pub(super) fn to_vec(&self) -> Vec<Partition> {
        // SAFETY: owned and alive.
        unsafe { copy_list(self.0) }
    }
}

impl Drop for PartitionList {
    fn drop(&mut self) {
        // SAFETY: owned.
        unsafe { sys::rd_kafka_topic_partition_list_destroy(self.0) }
    }
}

/// # Safety
/// `list` is null or a valid list.
unsafe fn copy_list(list: *const sys::rd_kafka_topic_partition_list_t) -> Vec<Partition> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: a valid list has `cnt` elements; an empty one may have a null array.
    let elements = unsafe {
        match (*list).cnt {
            ..=0 => &[],
            count => std::slice::from_raw_parts((*list).elems, count as usize),
        }
    };
    elements
        .iter()
        .map(|element| Partition {
            topic: Arc::from(text_of(element.topic)),
            partition: element.partition,
            offset: (element.offset >= 0).then_some(element.offset),
            code: KafkaCode(element.err),
        })
        .collect()
}

/// Takes an error object that librdkafka returned, null being success.
pub(super) fn check_error(error: *mut sys::rd_kafka_error_t, context: &str) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: not null, so it is an error that we own.
    let (code, text) = unsafe {
        let code = KafkaCode(sys::rd_kafka_error_code(error));
        let text = text_of(sys::rd_kafka_error_string(error));
        sys::rd_kafka_error_destroy(error);
        (code, text)
    };
    Err(Error::new(code.kind(), format!("{context}: {text}")))
}

/// A string for librdkafka.
///
/// # Errors
/// NUL bytes, which no name or value of Kafka's has.
pub(super) fn c_string(text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| Error::invalid(format!("'{}' holds a NUL byte", text.escape_debug())))
}

/// Copies a C string, null being the empty one.
pub(super) fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: librdkafka's strings are NUL-terminated and live during the call.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// librdkafka's log lines, by syslog level, become ours.
unsafe extern "C" fn log(
    rk: *const sys::rd_kafka_t,
    level: c_int,
    facility: *const c_char,
    line: *const c_char,
) {
    // librdkafka passes a live client, or null early on, and strings that live during the call.
    let mut client = String::new();
    if !rk.is_null() {
        // SAFETY: as above; the name lives as long as the client.
        client = text_of(unsafe { sys::rd_kafka_name(rk) });
    }
    let (facility, line) = (text_of(facility), text_of(line));
    match level {
        ..=3 => tracing::error!(target: "librdkafka", client, facility, "{line}"),
        4 => tracing::warn!(target: "librdkafka", client, facility, "{line}"),
        5 | 6 => tracing::info!(target: "librdkafka", client, facility, "{line}"),
        _ => tracing::debug!(target: "librdkafka", client, facility, "{line}"),
    }
}
