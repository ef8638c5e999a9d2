//! Callbacks of librdkafka, turned into events.
//!
//! They run inside `poll`, on the thread that polls, and neither wait nor decide: the worker takes
//! the events from its channel and acts between two batches, so tasks keep one owner and one order.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaRespErr;

use crate::metrics::librdkafka::{Bridge, Client};

/// Every consumer of ours.
pub(crate) type Consumer = BaseConsumer<ConsumerEvents>;

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    pub topic: String,
    pub partition: u32,
}

/// What the group tells a worker.
#[derive(Debug, PartialEq, Eq)]
pub enum RebalanceEvent {
    /// These are the worker's from now on; it answers with `assign`.
    Assigned(Vec<TopicPartition>),
    /// Everything must be given up; it answers with `unassign`. When `lost`, somebody else may
    /// already have it and a commit will be refused.
    Revoked { lost: bool },
    /// The assignment could not be made; it answers with `unassign`.
    Failed(RDKafkaErrorCode),
}

/// An error that librdkafka reports beside its calls.
#[derive(Debug, Clone)]
pub struct Complaint {
    pub code: RDKafkaErrorCode,
    pub reason: String,
}

/// The context of every consumer; only a worker's sees rebalances.
#[derive(Debug)]
pub struct ConsumerEvents {
    rebalances: Sender<RebalanceEvent>,
    /// The worker is gone and the consumer is being dropped: nobody else will answer.
    closing: AtomicBool,
    // locks of the shell: a callback runs on the thread that polls, but the trait wants Sync
    last_error: Mutex<Option<Complaint>>,
    /// A worker's alone: the others' statistics would be under the same names.
    statistics: Option<Mutex<Bridge>>,
}

impl ConsumerEvents {
    pub fn new() -> (Self, Receiver<RebalanceEvent>) {
        let (rebalances, received) = channel();
        let closing = AtomicBool::new(false);
        (Self { rebalances, closing, last_error: Mutex::default(), statistics: None }, received)
    }

    /// Of the consumer of this worker.
    pub fn of_worker(worker: usize) -> (Self, Receiver<RebalanceEvent>) {
        let (events, received) = Self::new();
        let statistics = Some(Mutex::new(Bridge::new(Client::Consumer, worker)));
        (Self { statistics, ..events }, received)
    }

    /// What librdkafka last complained of, for the text of an error.
    pub fn last_error(&self) -> Option<Complaint> {
        self.last_error.lock().expect("nothing panics while it holds this lock").clone()
    }

    /// From now on a revocation is answered here, so that closing the consumer ends.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }
}

impl ClientContext for ConsumerEvents {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log_line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(client = "consumer", %error, reason, "librdkafka");
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        let mut last = self.last_error.lock().expect("nothing panics while it holds this lock");
        // follows every refusal, whose own words say more
        if code != RDKafkaErrorCode::AllBrokersDown || last.is_none() {
            *last = Some(Complaint { code, reason: reason.to_owned() });
        }
    }

    fn stats_raw(&self, json: &[u8]) {
        self.statistics.as_ref().into_iter().for_each(|bridge| take_statistics(bridge, json));
    }
}

impl ConsumerContext for ConsumerEvents {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        code: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let event = if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            RebalanceEvent::Assigned(named(partitions))
        } else if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS {
            RebalanceEvent::Revoked { lost: consumer.assignment_lost() }
        } else {
            RebalanceEvent::Failed(code.into())
        };
        let unheard = self.rebalances.send(event).is_err();
        if (unheard || self.closing.load(Ordering::Acquire))
            && let Err(error) = consumer.unassign()
        {
            tracing::warn!(%error, "giving up partitions while closing");
        }
    }
}

fn named(partitions: &TopicPartitionList) -> Vec<TopicPartition> {
    partitions
        .elements()
        .iter()
        .map(|element| TopicPartition {
            topic: element.topic().to_owned(),
            partition: u32::try_from(element.partition()).expect("assigned partitions are known"),
        })
        .collect()
}

fn take_statistics(bridge: &Mutex<Bridge>, json: &[u8]) {
    if !bridge.lock().expect("nothing panics while it holds this lock").record(json) {
        tracing::debug!("librdkafka's statistics are not as documented");
    }
}

/// The context of a worker's producer: keeps the first record that could not be delivered, which
/// says more than the transaction's own error.
#[derive(Debug, Default)]
pub struct ProducerEvents {
    undelivered: Mutex<Option<Undelivered>>,
    /// A worker's alone.
    statistics: Option<Mutex<Bridge>>,
}

/// A record that the broker refused or never acknowledged.
#[derive(Debug, Clone)]
pub struct Undelivered {
    pub topic: String,
    pub bytes: usize,
    pub code: RDKafkaErrorCode,
}

impl ProducerEvents {
    pub fn of_worker(worker: usize) -> Self {
        let statistics = Some(Mutex::new(Bridge::new(Client::Producer, worker)));
        Self { statistics, ..Self::default() }
    }

    /// Keeps it if it is the first.
    pub(crate) fn keep(&self, undelivered: Undelivered) {
        self.undelivered
            .lock()
            .expect("nothing panics while it holds this lock")
            .get_or_insert(undelivered);
    }

    /// The first failure since the last call.
    pub fn take_undelivered(&self) -> Option<Undelivered> {
        self.undelivered.lock().expect("nothing panics while it holds this lock").take()
    }
}

impl ClientContext for ProducerEvents {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log_line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(client = "producer", %error, reason, "librdkafka");
    }

    fn stats_raw(&self, json: &[u8]) {
        self.statistics.as_ref().into_iter().for_each(|bridge| take_statistics(bridge, json));
    }
}

impl ProducerContext for ProducerEvents {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): Self::DeliveryOpaque) {
        let Err((error, record)) = result else { return };
        // a purge is our own abort, not a cause
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        if matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) {
            return;
        }
        self.keep(Undelivered {
            topic: record.topic().to_owned(),
            bytes: record.payload().map_or(0, <[u8]>::len),
            code,
        });
    }
}

/// librdkafka reports every lost connection and mends it itself: what matters to a person comes
/// back as the error of a call, so its own lines are for whoever asks for them.
fn log_line(level: RDKafkaLogLevel, facility: &str, text: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(facility, text, "librdkafka");
        }
        RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning
        | RDKafkaLogLevel::Notice
        | RDKafkaLogLevel::Info
        | RDKafkaLogLevel::Debug => tracing::debug!(facility, text, "librdkafka"),
    }
}
