//! The bare consumer: what reading the bytes costs and nothing else. It takes batches with
//! `rd_kafka_consume_batch_queue` under the settings of flopwatch's own consumer, looks at each
//! message's length, and destroys it.
#![allow(unsafe_code, reason = "librdkafka's batch interface, which the binding lacks")]

use std::ptr;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use flopwatch::config::Config;
use flopwatch::kafka::client;
use rdkafka::bindings;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;

use crate::process::{cpu_seconds, peak_megabytes};

/// No record for so long: the broker is gone.
const SILENCE: Duration = Duration::from_secs(60);

struct Reading {
    records: u64,
    bytes: u64,
    ended: Instant,
}

/// Reads the topic from its beginning to its end with so many consumers, each in a thread of its
/// own; says `first` when the first batch is there, and at the end what it came to.
pub(crate) fn consume(servers: &str, topic: &str, threads: usize) {
    let started = Instant::now();
    let text = format!("[kafka]\nbootstrap_servers = {servers:?}\n");
    let config = Config::from_text("bench", &text).expect("a valid configuration");
    let probe: BaseConsumer = client::reader_options(&config.kafka, "bench-probe")
        .create()
        .expect("settings that librdkafka takes");
    let metadata = probe.fetch_metadata(Some(topic), SILENCE).expect("metadata");
    let count = i32::try_from(metadata.topics()[0].partitions().len()).expect("few partitions");
    drop(probe);
    let first: OnceLock<(Instant, f64)> = OnceLock::new();
    let readings: Vec<Reading> = thread::scope(|scope| {
        let share = |thread: usize| -> Vec<i32> {
            let threads = i32::try_from(threads).expect("few threads");
            let thread = i32::try_from(thread).expect("few threads");
            (0..count).filter(|partition| partition % threads == thread).collect()
        };
        let (config, first) = (&config, &first);
        let handles: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || read(config, topic, &share(thread), first)))
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("a reader ends")).collect()
    });
    let pid = std::process::id();
    let (began, cpu_before) = *first.get().expect("the topic holds records");
    let ended = readings.iter().map(|reading| reading.ended).max().expect("a thread");
    let said = json!({
        "events": readings.iter().map(|reading| reading.records).sum::<u64>(),
        "bytes": readings.iter().map(|reading| reading.bytes).sum::<u64>(),
        "seconds": (ended - began).as_secs_f64(),
        "start_up_seconds": (began - started).as_secs_f64(),
        "cpu_seconds": cpu_seconds(pid) - cpu_before,
        "peak_megabytes": peak_megabytes(pid),
    });
    println!("{said}");
}

fn read(
    config: &Config,
    topic: &str,
    partitions: &[i32],
    first: &OnceLock<(Instant, f64)>,
) -> Reading {
    let consumer: BaseConsumer = client::reader_options(&config.kafka, "bench-bare")
        .create()
        .expect("settings that librdkafka takes");
    let mut assignment = TopicPartitionList::new();
    for &partition in partitions {
        assignment
            .add_partition_offset(topic, partition, Offset::Beginning)
            .expect("a partition can be listed");
    }
    consumer.assign(&assignment).expect("an assignment");
    // SAFETY: the client lives until the end of this function, beyond the queue's last use.
    let queue = unsafe { bindings::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
    assert!(!queue.is_null(), "a consumer has a queue");
    let mut messages = vec![ptr::null_mut(); client::BATCH];
    let mut reading = Reading { records: 0, bytes: 0, ended: Instant::now() };
    let mut open = partitions.len();
    while open > 0 {
        // SAFETY: the queue is live and the buffer has room for as many pointers as we say.
        let count = unsafe {
            bindings::rd_kafka_consume_batch_queue(
                queue,
                100,
                messages.as_mut_ptr(),
                messages.len(),
            )
        };
        let count = usize::try_from(count).expect("an error on the queue itself");
        if count == 0 {
            assert!(reading.ended.elapsed() < SILENCE, "nothing more comes from the broker");
            continue;
        }
        if reading.records == 0 && first.get().is_none() {
            let now = (Instant::now(), cpu_seconds(std::process::id()));
            if first.set(now).is_ok() {
                println!("first");
            }
        }
        for &message in &messages[..count] {
            // SAFETY: the call has written `count` messages, each valid until it is destroyed.
            let (code, length) = unsafe { ((*message).err, (*message).len) };
            // SAFETY: destroyed once; nothing of it is used after.
            unsafe { bindings::rd_kafka_message_destroy(message) };
            let code = RDKafkaErrorCode::from(code);
            if code == RDKafkaErrorCode::NoError {
                reading.records += 1;
                reading.bytes += length as u64;
            } else {
                assert_eq!(code, RDKafkaErrorCode::PartitionEOF, "reading {topic}");
                open -= 1;
            }
        }
        reading.ended = Instant::now();
    }
    // SAFETY: the reference that we were given, back once; the client is still alive.
    unsafe { bindings::rd_kafka_queue_destroy(queue) };
    reading
}
