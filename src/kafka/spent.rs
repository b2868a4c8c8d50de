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

/// Messages that may wait.
const MESSAGES_MAX: usize = 16_384;

/// Bytes of an average message from which the lock does not matter, and the memory does.
const BIG_BYTES: usize = 4096;

/// `Fetch` of Kafka's protocol.
const API_KEY_FETCH: i16 = 1;

const NAME: &std::ffi::CStr = c"karrow";

/// See the top of this file.
#[derive(Debug, Default)]
pub(super) struct Spent(Mutex<Vec<Message>>);

/// A consumed message that nobody looks at any more.
#[derive(Debug)]
pub(super) struct Message(NonNull<sys::rd_kafka_message_t>);

// SAFETY: a message is plain memory with atomic reference counts behind it.
unsafe impl Send for Message {}

impl Message {
    /// # Safety
    /// The message is ours to destroy, and its client lives longer than what is returned here.
    pub(super) unsafe fn own(message: NonNull<sys::rd_kafka_message_t>) -> Self {
        Self(message)
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: owned, and its client is alive, by the promise of `own`.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

impl Spent {
    /// Lets `messages`, with so many bytes, wait for the next fetch, or frees them now.
    pub(super) fn add(&self, messages: Vec<Message>, bytes: usize) {
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
