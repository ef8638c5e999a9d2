//! Simulated records to Kafka: the one place here that talks to a broker.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::detector::time::Timestamp;
use crate::error::Fatal;

type Outgoing<'a> = BaseRecord<'a, [u8], [u8]>;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A producer to the usage and accounts topics, with a bounded queue.
pub struct Publisher {
    producer: BaseProducer,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

impl Publisher {
    /// `client` holds verbatim librdkafka settings, which win.
    pub fn new(bootstrap: &str, client: &BTreeMap<String, String>) -> Result<Self, Fatal> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", bootstrap)
            // the measure of PERFORMANCE: what a cloud's pipeline would send
            .set("compression.type", "lz4")
            .set("linger.ms", "20")
            .set("batch.size", "1000000")
            // retries neither reorder nor repeat: the only duplicates are the simulated ones
            .set("enable.idempotence", "true")
            // the bound on memory; `send` waits for room
            .set("queue.buffering.max.messages", "500000")
            .set("queue.buffering.max.kbytes", "262144");
        for (name, value) in client {
            config.set(name, value);
        }
        let producer = config
            .create()
            .map_err(|error| Fatal::Broker(format!("no producer for {bootstrap}: {error}")))?;
        Ok(Self { producer })
    }

    /// Partitions of a topic that must exist.
    pub fn partitions(&self, topic: &str) -> Result<u32, Fatal> {
        let refuse = |detail: String| {
            Fatal::Broker(format!("{topic}: {detail}; `flopwatch topics` creates the topics"))
        };
        // of all topics: a broker may make the one that is asked for, with any number
        let metadata = self
            .producer
            .client()
            .fetch_metadata(None, TIMEOUT)
            .map_err(|error| refuse(format!("its partitions cannot be asked for: {error}")))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let found = found.map_or(0, |topic| topic.partitions().len());
        match u32::try_from(found) {
            Ok(count) if count > 0 => Ok(count),
            Ok(_) | Err(_) => Err(refuse("there is no such topic".to_owned())),
        }
    }

    /// Queues a record; without a partition, the key decides.
    pub fn send(
        &self,
        topic: &str,
        partition: Option<u32>,
        key: Option<&[u8]>,
        value: &[u8],
    ) -> Result<(), Fatal> {
        self.enqueue(record(topic, partition, key, value), topic)
    }

    /// `send` with the record's own timestamp: for a log that ages in simulated time.
    pub fn send_at(
        &self,
        topic: &str,
        partition: u32,
        key: &[u8],
        value: &[u8],
        written: Timestamp,
    ) -> Result<(), Fatal> {
        let milliseconds =
            i64::try_from(written.0 / 1_000_000).expect("2^64 nanoseconds in milliseconds");
        let record = record(topic, Some(partition), Some(key), value).timestamp(milliseconds);
        self.enqueue(record, topic)
    }

    fn enqueue(&self, mut record: Outgoing<'_>, topic: &str) -> Result<(), Fatal> {
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                    record = refused;
                    self.producer.poll(Duration::from_millis(50));
                }
                Err((error, _)) => {
                    return Err(Fatal::Broker(format!("{topic}: cannot be written: {error}")));
                }
            }
        }
        self.producer.poll(Duration::ZERO);
        self.fatal(topic)
    }

    /// Waits until the broker has everything.
    pub fn finish(&self, topic: &str) -> Result<(), Fatal> {
        let sent = self.producer.flush(Duration::from_secs(120));
        sent.map_err(|error| Fatal::Broker(format!("{topic}: not all was written: {error}")))?;
        self.fatal(topic)
    }

    fn fatal(&self, topic: &str) -> Result<(), Fatal> {
        match self.producer.client().fatal_error() {
            None => Ok(()),
            Some((_, detail)) => {
                Err(Fatal::Broker(format!("{topic}: cannot be written: {detail}")))
            }
        }
    }
}

fn record<'a>(
    topic: &'a str,
    partition: Option<u32>,
    key: Option<&'a [u8]>,
    value: &'a [u8],
) -> Outgoing<'a> {
    let mut record = Outgoing::to(topic).payload(value);
    if let Some(key) = key {
        record = record.key(key);
    }
    if let Some(partition) = partition {
        record = record.partition(i32::try_from(partition).expect("a partition's number"));
    }
    record
}
