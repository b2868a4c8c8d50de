//! [`Message`]: what is produced, and how it is handed to librdkafka.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdkafka_sys as sys;

use super::books::MESSAGE_OVERHEAD_BYTES;
use super::{Lane, Shared};
use crate::error::Result;
use crate::kafka::native::{KafkaCode, c_string};

/// `RD_KAFKA_PARTITION_UA`: the topic's partitioner chooses.
pub(super) const PARTITION_UNASSIGNED: i32 = -1;

/// A message's header: its name and its value.
pub type Header = (String, Option<Vec<u8>>);

/// A message to be produced.
#[derive(Clone, Copy, Debug, Default)]
pub struct Message<'a> {
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// Its headers, in order; no name has a NUL.
    pub headers: &'a [Header],
    /// Milliseconds since the epoch, more than 0; now, if there is none.
    pub timestamp: Option<i64>,
    /// Where it goes; the topic's partitioner chooses, if there is none.
    pub partition: Option<i32>,
}

impl Message<'_> {
    /// What it counts for in the caps. Its report gives back the same.
    pub(super) fn size(&self) -> usize {
        self.bytes() + MESSAGE_OVERHEAD_BYTES
    }

    /// Bytes of key, headers and payload.
    pub fn bytes(&self) -> usize {
        let len = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let header = |(name, value): &Header| name.len() + len(value.as_deref());
        let headers: usize = self.headers.iter().map(header).sum();
        len(self.key) + headers + len(self.payload)
    }
}

/// A [`Message`] that owns what it is made of; see there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the message's")]
pub struct OwnedMessage {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<Header>,
    pub timestamp: Option<i64>,
    pub partition: Option<i32>,
}

impl OwnedMessage {
    pub(super) fn new(message: &Message<'_>) -> Self {
        Self {
            key: message.key.map(Into::into),
            payload: message.payload.map(Into::into),
            headers: message.headers.into(),
            timestamp: message.timestamp,
            partition: message.partition,
        }
    }

    /// As the producer takes it.
    pub fn borrowed(&self) -> Message<'_> {
        Message {
            key: self.key.as_deref(),
            payload: self.payload.as_deref(),
            headers: &self.headers,
            timestamp: self.timestamp,
            partition: self.partition,
        }
    }
}

/// Gives a message to librdkafka with a reference to its lane, which comes back with its report.
pub(super) fn hand_over(
    shared: &Shared,
    lane: &Arc<Lane>,
    message: &Message<'_>,
) -> Result<(), KafkaCode> {
    let Message { key, payload, headers, timestamp, partition } = *message;
    let known = lane.topic.known(&shared.metrics)?;
    let opaque = Arc::into_raw(lane.clone());
    let code = if headers.is_empty() && timestamp.is_none() {
        let pointer = |bytes: Option<&[u8]>| bytes.map_or(ptr::null(), <[u8]>::as_ptr);
        // SAFETY: the topic is alive through the lane; F_COPY makes librdkafka copy key and payload.
        let result = unsafe {
            sys::rd_kafka_produce(
                known.rkt.as_ptr(),
                partition.unwrap_or(PARTITION_UNASSIGNED),
                sys::RD_KAFKA_MSG_F_COPY,
                pointer(payload).cast_mut().cast(),
                payload.map_or(0, <[u8]>::len),
                pointer(key).cast(),
                key.map_or(0, <[u8]>::len),
                opaque.cast_mut().cast::<c_void>(),
            )
        };
        // SAFETY: the call before set the error.
        let last = || KafkaCode(unsafe { sys::rd_kafka_last_error() });
        (result != 0).then(last)
    } else {
        let code = hand_over_all_of(lane, known.rkt, message, opaque.cast());
        (!code.is_ok()).then_some(code)
    };
    match code {
        None => {
            known.messages.inc();
            known.bytes.inc_by(payload.map_or(0, <[u8]>::len) as u64);
            Ok(())
        }
        Some(code) => {
            // SAFETY: librdkafka did not take the message, so the reference is ours again.
            drop(unsafe { Arc::from_raw(opaque) });
            Err(code)
        }
    }
}

/// The same for a message with headers or a timestamp, by a call that takes a list of its parts.
pub(super) fn hand_over_all_of(
    lane: &Lane,
    rkt: NonNull<sys::rd_kafka_topic_t>,
    message: &Message<'_>,
    opaque: *const c_void,
) -> KafkaCode {
    use sys::rd_kafka_vtype_t::*;
    use sys::rd_kafka_vu_s__bindgen_ty_1 as Part;
    let part = |vtype, u| sys::rd_kafka_vu_t { vtype, u };
    let memory = |bytes: Option<&[u8]>| Part {
        mem: sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
            ptr: bytes.map_or(ptr::null(), <[u8]>::as_ptr).cast_mut().cast(),
            size: bytes.map_or(0, <[u8]>::len),
        },
    };
    let names: Result<Vec<_>> = message.headers.iter().map(|(name, _)| c_string(name)).collect();
    let Ok(names) = names else {
        return KafkaCode(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__INVALID_ARG);
    };
    let partition = message.partition.unwrap_or(PARTITION_UNASSIGNED);
    let mut parts = vec![
        part(RD_KAFKA_VTYPE_RKT, Part { rkt: rkt.as_ptr() }),
        part(RD_KAFKA_VTYPE_PARTITION, Part { i32_: partition }),
        part(RD_KAFKA_VTYPE_MSGFLAGS, Part { i: sys::RD_KAFKA_MSG_F_COPY }),
        part(RD_KAFKA_VTYPE_KEY, memory(message.key)),
        part(RD_KAFKA_VTYPE_VALUE, memory(message.payload)),
        part(RD_KAFKA_VTYPE_OPAQUE, Part { ptr: opaque.cast_mut() }),
    ];
    if let Some(timestamp) = message.timestamp {
        parts.push(part(RD_KAFKA_VTYPE_TIMESTAMP, Part { i64_: timestamp }));
    }
    for (name, (_, value)) in names.iter().zip(message.headers) {
        let header = sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_2 {
            name: name.as_ptr(),
            val: value.as_ref().map_or(ptr::null(), |value| value.as_ptr()).cast(),
            size: value.as_ref().map_or(0, |value| value.len() as isize),
        };
        parts.push(part(RD_KAFKA_VTYPE_HEADER, Part { header }));
    }
    // SAFETY: client and topic are alive through the lane; every part points to what lives during the call, of which
    // F_COPY and the headers' own rule make librdkafka take copies.
    unsafe {
        let error =
            sys::rd_kafka_produceva(lane.topic.client.handle.ptr(), parts.as_ptr(), parts.len());
        if error.is_null() {
            return KafkaCode(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
        }
        let code = KafkaCode(sys::rd_kafka_error_code(error));
        sys::rd_kafka_error_destroy(error);
        code
    }
}
