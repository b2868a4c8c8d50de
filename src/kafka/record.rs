//! [`Record`]: one consumed Kafka message, still in librdkafka's memory.

use std::ffi::{CStr, c_int, c_void};
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::sync::{Arc, LazyLock};

use rdkafka_sys as sys;

use super::native::Handle;
use super::spent::SpentMessage;

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

/// The version of librdkafka whose [`ConsumedMessage`] is known, in its hexadecimal form.
const KNOWN_VERSION: c_int = 0x020c_01ff;

static KNOWS_MESSAGES: LazyLock<bool> = LazyLock::new(|| {
    // SAFETY: returns a constant.
    unsafe { sys::rd_kafka_version() == KNOWN_VERSION }
});

/// `rd_kafka_msg_t` of librdkafka's rdkafka_msg.h, as far as it matters here. No public function tells as cheaply whether a
/// message has headers; other versions are asked by the public ones.
#[repr(C)]
struct ConsumedMessage {
    _message: sys::rd_kafka_message_t,
    _link: [*const c_void; 2],
    _flags: c_int,
    _timestamp_type: sys::rd_kafka_timestamp_type_t,
    _timestamp: i64,
    _headers: *const c_void,
    _status: c_int,
    _broker: i32,
    headers_len: i32,
    headers_bytes: *const u8,
}

/// A consumed message. Its bytes stay where librdkafka received them until it is dropped.
pub struct Record {
    message: NonNull<sys::rd_kafka_message_t>,
    /// Outlives the message, which refers to it: a record may be on its way to a client when its consumer is closed.
    client: Arc<Handle>,
    /// Found out at once, while the message is in the processor's cache.
    may_have_headers: bool,
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
        // SAFETY: alive, and a consumed message of librdkafka's.
        let may_have_headers = unsafe { may_have_headers(message) };
        Self { message, client: client.clone(), may_have_headers }
    }

    #[cfg(test)]
    pub(super) fn client(&self) -> &Arc<Handle> {
        &self.client
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
        let headers = if self.may_have_headers {
            // SAFETY: exclusively ours during the call.
            unsafe { headers_size(self.message.as_ptr()) }
        } else {
            0
        };
        headers + self.key().map_or(0, <[u8]>::len) + self.payload().map_or(0, <[u8]>::len)
    }

    /// Is done with `records`, which have so many bytes of keys and payloads. For many at once this costs less than to drop
    /// each.
    pub fn give_back(records: impl ExactSizeIterator<Item = Self>, bytes: usize) {
        let mut messages = Vec::with_capacity(records.len());
        let mut client: Option<Arc<Handle>> = None;
        for record in records {
            let client = client.get_or_insert_with(|| record.client.clone());
            // Those of an earlier consumer are dropped.
            if Arc::ptr_eq(client, &record.client) {
                messages.push(record.into_message());
            }
        }
        if let Some(client) = client {
            client.spent().add(messages, bytes);
        }
    }

    /// Its message, without what keeps the client alive.
    fn into_message(self) -> SpentMessage {
        let mut record = ManuallyDrop::new(self);
        // SAFETY: the record is not used again. `give_back` keeps the client, whose handle frees what is spent first.
        unsafe {
            ptr::drop_in_place(&raw mut record.client);
            SpentMessage::own(record.message)
        }
    }

    /// # Safety
    /// Nobody else uses the record during the call.
    unsafe fn parse_headers(&self) -> Vec<(&[u8], Option<&[u8]>)> {
        let mut headers = Vec::new();
        if !self.may_have_headers {
            return headers;
        }
        // SAFETY: the message is alive as long as `self`, and exclusively ours during the call.
        unsafe { each_header(self.message.as_ptr(), |name, value| headers.push((name, value))) };
        headers
    }
}

/// Whether it is worth asking librdkafka for headers: the answer that there are none costs it several allocations, more than
/// all else that is done with a small message.
///
/// # Safety
/// A consumed message without an error, as librdkafka returned it, alive.
unsafe fn may_have_headers(message: NonNull<sys::rd_kafka_message_t>) -> bool {
    if !*KNOWS_MESSAGES {
        return true;
    }
    // SAFETY: it is the first field of this structure, in the version that was checked.
    let inside = unsafe { message.cast::<ConsumedMessage>().as_ref() };
    // As on the wire: a varint that counts the headers, then those. Formats before v2 have not even that.
    match inside.headers_len {
        0 => false,
        // SAFETY: the bytes lie in the buffer that the message keeps alive.
        1 => unsafe { inside.headers_bytes.as_ref() }.is_none_or(|count| *count != 0),
        _ => true,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the structure says is tested by every test that reads headers; here, that it is used.
    #[test]
    fn the_linked_librdkafka_is_the_known_one() {
        assert!(*KNOWS_MESSAGES, "compare ConsumedMessage with the new rdkafka_msg.h");
    }
}
