//! Batch consume from librdkafka's queues, yielding borrowed records.
//!
//! Reading one record at a time costs half of what a consumer can do: a lock, a condition and an
//! event per record. `rd_kafka_consume_batch_queue` takes the lock once a batch. The binding does
//! not offer it, hence the only `unsafe` code of the project.
//!
//! Each assigned partition has a queue of its own, cut off from the consumer's main queue before
//! the assignment: a batch belongs to one task, a stage is read before another by reading its
//! queues first, and a partition pauses by not being read (librdkafka's own pause throws away what
//! it has fetched). The main queue then carries events alone and is polled by the binding.
//!
//! Invariants: a queue goes before its consumer, whose `Arc` it holds; a message is destroyed
//! exactly once, after the only reference to its bytes is gone, and before the call that took it
//! from its queue returns, however it returns: librdkafka waits for every message before it lets a
//! client go, so a single one forgotten hangs the thread that drops the consumer.
#![allow(unsafe_code, reason = "librdkafka's batch interface, which the binding lacks")]

use std::ffi::{CStr, CString};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::{RDKafkaMessage, RDKafkaQueue};

use super::context::Consumer;
use crate::detector::event::{Header, Record};
use crate::detector::time::Timestamp;

/// What a partition's queue gives.
#[derive(Debug)]
pub enum Polled<'a> {
    /// One or more, in order.
    Records(&'a [Record<'a>]),
    /// The reader stands at the end of what it may see: `offset` is the next to come.
    End {
        offset: u64,
    },
    Failed(RDKafkaErrorCode),
}

/// Messages handed out together: enough for a stage to look ahead, few enough to stay in the cache.
const GROUP: usize = 32;
/// How many messages ahead values are asked for; what describes them is twice as far ahead.
const AHEAD: usize = 16;

/// The queue of one partition of one consumer.
pub struct PartitionQueue {
    queue: NonNull<RDKafkaQueue>,
    /// The queue points into the client: it must not outlive it.
    consumer: Arc<Consumer>,
}

impl PartitionQueue {
    /// Cuts the partition's queue off the consumer's; to be called before it is assigned.
    pub(crate) fn new(consumer: &Arc<Consumer>, topic: &str, partition: u32) -> Self {
        let name = CString::new(topic).expect("topic names hold no NUL");
        let index = i32::try_from(partition).expect("Kafka numbers partitions with an i32");
        // SAFETY: the client lives as long as `consumer`; `name` outlives the call; librdkafka
        // creates the partition when it does not know it yet and adds a reference for us.
        let queue = unsafe {
            let client = consumer.client().native_ptr();
            bindings::rd_kafka_queue_get_partition(client, name.as_ptr(), index)
        };
        let queue = NonNull::new(queue).expect("a subscribed topic has a queue per partition");
        // SAFETY: `queue` is live; a null destination stops the forwarding to the main queue, and
        // marks it as the application's wish, so that `assign` leaves it alone.
        unsafe { bindings::rd_kafka_queue_forward(queue.as_ptr(), ptr::null_mut()) };
        Self { queue, consumer: Arc::clone(consumer) }
    }

    /// The end of the partition as of the last fetch; `None` before the first.
    pub(crate) fn end(&self, topic: &str, partition: u32) -> Option<u64> {
        let name = CString::new(topic).ok()?;
        let index = i32::try_from(partition).ok()?;
        let (mut low, mut high) = (-1, -1);
        // SAFETY: the client lives as long as `consumer`; name and results outlive the call, which
        // only copies what the client has in memory.
        let code = unsafe {
            bindings::rd_kafka_get_watermark_offsets(
                self.consumer.client().native_ptr(),
                name.as_ptr(),
                index,
                &raw mut low,
                &raw mut high,
            )
        };
        let known = RDKafkaErrorCode::from(code) == RDKafkaErrorCode::NoError;
        u64::try_from(high).ok().filter(|_| known)
    }
}

impl Drop for PartitionQueue {
    fn drop(&mut self) {
        // SAFETY: the reference taken in `new`, given back once; the client is still alive.
        unsafe { bindings::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

/// One message, destroyed when it goes out of scope.
struct Message(NonNull<RDKafkaMessage>);

impl Message {
    /// Its key, value and headers point into librdkafka's buffers and live as long as `self`.
    fn read<'a>(&'a self, headers: &'a [Header<'a>]) -> Result<Record<'a>, Polled<'static>> {
        // SAFETY: a message from the queue is valid until it is destroyed, which is our drop.
        let raw = unsafe { self.0.as_ref() };
        let code = RDKafkaErrorCode::from(raw.err);
        if code == RDKafkaErrorCode::PartitionEOF {
            return Err(Polled::End { offset: offset(raw.offset) });
        }
        if code != RDKafkaErrorCode::NoError {
            return Err(Polled::Failed(code));
        }
        Ok(Record {
            offset: offset(raw.offset),
            timestamp: self.timestamp(),
            // SAFETY: pointer and length describe one buffer of the message, or null for none.
            key: unsafe { bytes(raw.key.cast(), raw.key_len) },
            // SAFETY: as above.
            value: unsafe { bytes(raw.payload.cast(), raw.len) },
            headers,
        })
    }

    fn timestamp(&self) -> Option<Timestamp> {
        let mut kind = bindings::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid and `kind` outlives the call.
        let milliseconds =
            unsafe { bindings::rd_kafka_message_timestamp(self.0.as_ptr(), &raw mut kind) };
        // -1: the record has none
        u64::try_from(milliseconds).ok()?.checked_mul(1_000_000).map(Timestamp)
    }

    /// Empty for most records: then nothing is allocated.
    fn headers(&self) -> Vec<Header<'_>> {
        let mut headers = Vec::new();
        let mut list = ptr::null_mut();
        // SAFETY: the message is valid; the list it gives belongs to it and lives as long. Errors
        // (never fetched) have none and say so.
        let code = unsafe { bindings::rd_kafka_message_headers(self.0.as_ptr(), &raw mut list) };
        if RDKafkaErrorCode::from(code) != RDKafkaErrorCode::NoError {
            return headers;
        }
        for index in 0.. {
            let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
            // SAFETY: the list is live, the three results outlive the call.
            let code = unsafe {
                bindings::rd_kafka_header_get_all(
                    list,
                    index,
                    &raw mut name,
                    &raw mut value,
                    &raw mut length,
                )
            };
            if RDKafkaErrorCode::from(code) != RDKafkaErrorCode::NoError {
                break;
            }
            // SAFETY: librdkafka ends names with a NUL; they live as long as the list.
            let name = unsafe { CStr::from_ptr(name) };
            headers.push(Header {
                // Kafka's own names are UTF-8; one that is not cannot be any we look for
                name: name.to_str().unwrap_or("\u{fffd}"),
                // SAFETY: pointer and length describe one value of the list, or null for none.
                value: unsafe { bytes(value.cast(), length) },
            });
        }
        headers
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: we own the message, and its borrows end before its owner does.
        unsafe { bindings::rd_kafka_message_destroy(self.0.as_ptr()) };
    }
}

/// Room for one batch, used again and again; it holds messages during `read` alone.
pub struct Batch {
    messages: Vec<*mut RDKafkaMessage>,
}

impl Batch {
    pub fn new(capacity: usize) -> Self {
        Self { messages: vec![ptr::null_mut(); capacity] }
    }

    /// Takes what waits in the queue, or what comes within `timeout`, and hands it out in order;
    /// says whether there may be more. After an error, or a panic, in `each` the rest of the batch
    /// is destroyed unseen.
    pub fn read<E>(
        &mut self,
        queue: &PartitionQueue,
        timeout: Duration,
        mut each: impl FnMut(Polled<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        let milliseconds = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is live and the buffer has room for as many pointers as we say.
        let count = unsafe {
            bindings::rd_kafka_consume_batch_queue(
                queue.queue.as_ptr(),
                milliseconds,
                self.messages.as_mut_ptr(),
                self.messages.len(),
            )
        };
        let filled = usize::try_from(count).unwrap_or(0);
        let mut taken = Taken(&self.messages[..filled]);
        while !taken.0.is_empty() {
            hand_out(&taken.group(), &mut each)?;
        }
        Ok(filled == self.messages.len())
    }
}

/// Hands out a group of messages, which are destroyed right after: their lines are still in the
/// cache then.
fn hand_out<E>(
    group: &[Message],
    each: &mut impl FnMut(Polled<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let headers: Vec<Vec<Header<'_>>> = group.iter().map(Message::headers).collect();
    let mut records = Vec::with_capacity(group.len());
    for (message, headers) in group.iter().zip(&headers) {
        match message.read(headers) {
            Ok(record) => records.push(record),
            Err(other) => {
                if !records.is_empty() {
                    each(Polled::Records(&records))?;
                    records.clear();
                }
                each(other)?;
            }
        }
    }
    if records.is_empty() { Ok(()) } else { each(Polled::Records(&records)) }
}

/// Messages not yet handed out, destroyed when it goes out of scope.
struct Taken<'a>(&'a [*mut RDKafkaMessage]);

impl Taken<'_> {
    /// The next few. What the processor needs of those after them is asked for while these are
    /// read: another core wrote it, and waiting for one at a time would cost more than all else.
    fn group(&mut self) -> Vec<Message> {
        let mut group = Vec::with_capacity(GROUP);
        while group.len() < GROUP
            && let Some((message, rest)) = self.0.split_first()
        {
            if let Some(later) = rest.get(2 * AHEAD) {
                prefetch(later.cast());
            }
            if let Some(later) = rest.get(AHEAD) {
                // SAFETY: a message is valid until it is destroyed, and this one is not yet taken.
                let value = unsafe { (**later).payload };
                prefetch(value.cast());
                prefetch(value.cast::<u8>().wrapping_add(64));
                prefetch(value.cast::<u8>().wrapping_add(128));
            }
            self.0 = rest;
            group.push(Message(NonNull::new(*message).expect("librdkafka fills what it counts")));
        }
        group
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        while !self.0.is_empty() {
            drop(self.group());
        }
    }
}

/// Asks for the line of memory at an address, which need not be valid.
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint to the processor, which reads nothing that the program could see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

fn offset(raw: i64) -> u64 {
    u64::try_from(raw).expect("what was fetched has an offset")
}

/// A buffer of a message; `None` where Kafka has null.
///
/// # Safety
/// `data` is null or points to `length` bytes that outlive `'a`.
unsafe fn bytes<'a>(data: *const u8, length: usize) -> Option<&'a [u8]> {
    if data.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { std::slice::from_raw_parts(data, length) })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Instant;

    use rdkafka::message::OwnedHeaders;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
    use rdkafka::{ClientConfig, Offset, TopicPartitionList};

    use super::*;
    use crate::config::Config;
    use crate::kafka::client;

    type Owned =
        (u64, Option<u64>, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

    fn owned(record: &Record<'_>) -> Owned {
        let headers = record.headers.iter();
        (
            record.offset,
            record.timestamp.map(|timestamp| timestamp.0),
            record.key.map(<[u8]>::to_vec),
            record.value.map(<[u8]>::to_vec),
            headers.map(|h| (h.name.to_owned(), h.value.map(<[u8]>::to_vec))).collect(),
        )
    }

    #[test]
    fn a_batch_gives_exact_bytes_headers_timestamps_and_tombstones_then_the_end() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 2, 1).expect("a topic");
        let servers = cluster.bootstrap_servers();
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", &servers).create().expect("a producer");
        let header = |key, value| rdkafka::message::Header { key, value };
        let to = || BaseRecord::<[u8], [u8]>::to("t").partition(1).timestamp(1_700_000_000_123);
        let headers = OwnedHeaders::new()
            .insert(header("ce_id", Some("7")))
            .insert(header("empty", Some("")))
            .insert(header("ce_id", None));
        let records = [
            to().key(b"k\0\xff").payload(b"\0\x01\xfe").headers(headers),
            to().key(b"gone"),
            to().payload(b""),
            to(),
        ];
        for record in records {
            producer.send(record).map_err(|(error, _)| error).expect("a record is queued");
        }
        producer.flush(Duration::from_secs(20)).expect("records are written");

        let text = format!("[kafka]\nbootstrap_servers = {servers:?}");
        let config = Config::from_text("test", &text).expect("a valid configuration");
        let consumer = Arc::new(client::reader(&config.kafka, "test").expect("a consumer"));
        let queue = PartitionQueue::new(&consumer, "t", 1);
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset("t", 1, Offset::Beginning).expect("a partition");
        consumer.assign(&assignment).expect("an assignment");

        // smaller than what waits: one batch must not lose what the next one gives
        let mut batch = Batch::new(3);
        let (mut found, mut end) = (Vec::new(), None);
        let deadline = Instant::now() + Duration::from_secs(20);
        while end.is_none() && Instant::now() < deadline {
            let each = |polled: Polled<'_>| -> Result<(), Infallible> {
                match polled {
                    Polled::Records(records) => found.extend(records.iter().map(owned)),
                    Polled::End { offset } => end = Some(offset),
                    Polled::Failed(code) => panic!("{code}"),
                }
                Ok(())
            };
            batch.read(&queue, Duration::from_millis(100), each).expect("infallible");
        }
        let at = Some(1_700_000_000_123_000_000);
        let bytes = |bytes: &[u8]| Some(bytes.to_vec());
        let headers = vec![
            ("ce_id".to_owned(), bytes(b"7")),
            ("empty".to_owned(), bytes(b"")),
            ("ce_id".to_owned(), None),
        ];
        assert_eq!(found[0], (0, at, bytes(b"k\0\xff"), bytes(b"\0\x01\xfe"), headers));
        assert_eq!(found[1], (1, at, bytes(b"gone"), None, vec![]));
        assert_eq!(found[2], (2, at, None, bytes(b""), vec![]));
        assert_eq!(found[3], (3, at, None, None, vec![]));
        assert_eq!((found.len(), end), (4, Some(4)));
        assert_eq!(queue.end("t", 1), Some(4));
    }

    #[test]
    fn after_an_error_or_a_panic_nothing_keeps_the_client_from_ending() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("t", 1, 1).expect("a topic");
        let servers = cluster.bootstrap_servers();
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", &servers).create().expect("a producer");
        for _ in 0..20 {
            let record = BaseRecord::<[u8], [u8]>::to("t").payload(b"v");
            producer.send(record).map_err(|(error, _)| error).expect("a record is queued");
        }
        producer.flush(Duration::from_secs(20)).expect("records are written");
        let text = format!("[kafka]\nbootstrap_servers = {servers:?}");
        let config = Config::from_text("test", &text).expect("a valid configuration");
        let consumer = Arc::new(client::reader(&config.kafka, "test").expect("a consumer"));
        let queue = PartitionQueue::new(&consumer, "t", 0);
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset("t", 0, Offset::Offset(0)).expect("a partition");
        consumer.assign(&assignment).expect("an assignment");
        let mut batch = Batch::new(10);
        let wait = Duration::from_secs(20);
        let result = batch.read(&queue, wait, |_| Err("stop"));
        assert_eq!(result, Err("stop"));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            batch.read(&queue, wait, |_| -> Result<(), Infallible> { panic!("on purpose") })
        }));
        assert!(panicked.is_err(), "the second batch was handed out");
        // the batch lives on, as it does where a worker's fields are dropped in another order
        drop(queue);
        let (gone, is_gone) = channel();
        thread::spawn(move || {
            drop(consumer);
            gone.send(()).expect("the test waits");
        });
        is_gone.recv_timeout(wait).expect("the client ends");
        drop(batch);
    }
}
