//! [`Record`]: one consumed Kafka message, still in librdkafka's memory.

use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdkafka_sys as sys;

use super::native::Handle;

/// A record as decoders and replies see it: borrowed, whatever it is made of.
#[derive(Clone, Debug)]
pub struct RecordView<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The partition's number.
    pub partition: i32,
    /// The offset inside the partition.
    pub offset: i64,
    /// Milliseconds since the epoch.
    pub timestamp: Option<i64>,
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    /// Names and values in order; names may be any bytes, although Kafka means UTF-8.
    pub headers: Vec<(&'a [u8], Option<&'a [u8]>)>,
    /// The value; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
}

/// A consumed message. Its bytes stay where librdkafka received them until it is dropped.
pub struct Record {
    message: NonNull<sys::rd_kafka_message_t>,
    /// Outlives the message, which refers to it: a record may be on its way to a client when its consumer is closed.
    _client: Arc<Handle>,
}

// SAFETY: a message is plain memory with atomic reference counts behind it; nothing else writes to it.
unsafe impl Send for Record {}
// SAFETY: as above; the lazily parsed headers are only reached through `headers`, see there.
unsafe impl Sync for Record {}

impl Record {
    /// # Safety
    /// `message` was returned by `client` to be destroyed by us, and has no error.
    pub(super) unsafe fn own(
        message: NonNull<sys::rd_kafka_message_t>,
        client: &Arc<Handle>,
    ) -> Self {
        Self { message, _client: client.clone() }
    }

    fn raw(&self) -> &sys::rd_kafka_message_t {
        // SAFETY: owned and alive.
        unsafe { self.message.as_ref() }
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        topic_of(self.raw())
    }

    /// The partition's number.
    pub fn partition(&self) -> i32 {
        self.raw().partition
    }

    /// The offset inside the partition.
    pub fn offset(&self) -> i64 {
        self.raw().offset
    }

    /// The value; `None` is a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        // SAFETY: librdkafka's pointer and length describe memory of the message.
        unsafe { bytes_of(self.raw().payload, self.raw().len) }
    }

    /// The key, if the message has one.
    pub fn key(&self) -> Option<&[u8]> {
        // SAFETY: as for the payload.
        unsafe { bytes_of(self.raw().key, self.raw().key_len) }
    }

    /// Milliseconds since the epoch, of creation or append as the topic is configured; `None` for messages
    /// written in the format of before 0.10.
    pub fn timestamp(&self) -> Option<i64> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive, `kind` is writable.
        let millis =
            unsafe { sys::rd_kafka_message_timestamp(self.message.as_ptr(), &raw mut kind) };
        (kind != sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && millis >= 0)
            .then_some(millis)
    }

    /// Tells topics apart without a look at their names, as long as the partition of this message is assigned: until then
    /// librdkafka keeps its object.
    pub fn topic_id(&self) -> usize {
        self.raw().rkt.addr()
    }

    /// All of it at once, with the headers if wanted; its topic is `topic`. Both cost some time to read, for each message.
    pub fn view<'a>(&'a mut self, topic: &'a str, with_headers: bool) -> RecordView<'a> {
        // SAFETY: exclusively ours during the call.
        let headers = if with_headers { unsafe { self.parse_headers() } } else { Vec::new() };
        RecordView {
            topic,
            partition: self.partition(),
            offset: self.offset(),
            timestamp: self.timestamp(),
            key: self.key(),
            headers,
            payload: self.payload(),
        }
    }

    /// The headers in order: name (any bytes, although Kafka means UTF-8) and value. Takes `&mut self`
    /// because librdkafka parses them at the first call, into the message.
    pub fn headers(&mut self) -> Vec<(&[u8], Option<&[u8]>)> {
        // SAFETY: exclusively ours during the call.
        unsafe { self.parse_headers() }
    }

    /// Bytes of key, headers and payload. Takes `&mut self` as [`headers`](Self::headers) does.
    pub fn size(&mut self) -> usize {
        // SAFETY: exclusively ours during the call.
        let headers = unsafe { headers_size(self.message.as_ptr()) };
        headers + self.key().map_or(0, <[u8]>::len) + self.payload().map_or(0, <[u8]>::len)
    }

    /// # Safety
    /// Nobody else uses the record during the call.
    unsafe fn parse_headers(&self) -> Vec<(&[u8], Option<&[u8]>)> {
        let mut headers = Vec::new();
        // SAFETY: the message is alive as long as `self`, and exclusively ours during the call.
        unsafe { each_header(self.message.as_ptr(), |name, value| headers.push((name, value))) };
        headers
    }
}

/// Bytes of the names and values of a message's headers.
///
/// # Safety
/// The message is alive, and nobody else uses it during the call.
pub(super) unsafe fn headers_size(message: *const sys::rd_kafka_message_t) -> usize {
    let mut size = 0;
    // SAFETY: the caller's promise.
    unsafe {
        each_header(message, |name, value| size += name.len() + value.map_or(0, <[u8]>::len));
    }
    size
}

/// Shows `look` each header in order.
///
/// # Safety
/// The message lives as long as `'a`, and nobody else uses it during the call, in which librdkafka parses its headers.
unsafe fn each_header<'a>(
    message: *const sys::rd_kafka_message_t,
    mut look: impl FnMut(&'a [u8], Option<&'a [u8]>),
) {
    let mut list = ptr::null_mut();
    // SAFETY: the caller's promise.
    let code = unsafe { sys::rd_kafka_message_headers(message, &raw mut list) };
    if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return;
    }
    let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
    // SAFETY: names and values live as long as the message; the index ends at the first error.
    unsafe {
        let mut index = 0;
        while sys::rd_kafka_header_get_all(
            list,
            index,
            &raw mut name,
            &raw mut value,
            &raw mut size,
        ) == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
        {
            look(CStr::from_ptr(name).to_bytes(), bytes_of(value, size));
            index += 1;
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // SAFETY: owned.
        unsafe { sys::rd_kafka_message_destroy(self.message.as_ptr()) }
    }
}

/// The topic of a message of librdkafka's; empty where it names none.
pub(super) fn topic_of(message: &sys::rd_kafka_message_t) -> &str {
    if message.rkt.is_null() {
        return "";
    }
    // SAFETY: the topic object lives as long as the message and its name is NUL-terminated.
    let name = unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(message.rkt)) };
    // Kafka's topic names are ASCII; brokers refuse any other.
    name.to_str().unwrap_or("")
}

/// # Safety
/// A pointer that is not null has `len` readable bytes that live as long as `'a`.
unsafe fn bytes_of<'a>(pointer: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!pointer.is_null()).then(|| unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), len) })
}
