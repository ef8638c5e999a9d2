//! One transaction per commit: begin, produce the outbox, send the positions, commit, in one go.
//!
//! Outputs have waited in the outbox until now, so a transaction is open for milliseconds and holds
//! up nobody's last stable offset. Errors are sorted in three: what the same call may try again is
//! tried again here, within a deadline; what asks for an abort is aborted; what says that another
//! producer has this name is a fence. After the last two the worker drops its tasks and restores.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _};

use super::client::{self, Producer};
use super::context::Undelivered;
use super::restore::index;
use super::task::{Shared, Task, Trouble};
use super::topology;
use crate::config::{AlertFormat, Config};
use crate::detector::alert::Alert;
use crate::detector::cloudevent::{self, Published};
use crate::detector::outbox::{DeadLetter, Output};
use crate::detector::policy::Mode;
use crate::error::Fatal;
use crate::metrics::{Abort, Stage};

/// How long one call, tried again, may take: the coordinator gives up no later.
const PATIENCE: Duration = client::TRANSACTION_TIMEOUT;

/// One call's share of that, between two looks at the delivery reports.
const STEP: Duration = Duration::from_millis(500);

/// How long the broker may take to say whether a topic is there: right after a failure.
const IS_THERE: Duration = Duration::from_secs(2);

/// The transactional producer of a worker.
pub(crate) struct Publisher {
    worker: usize,
    /// `None` between the end of a broken producer and the start of the next.
    producer: Option<Producer>,
}

impl Publisher {
    pub(crate) const fn new(worker: usize) -> Self {
        Self { worker, producer: None }
    }

    /// Makes the producer ready. A new one fences whoever had the name before and ends its open
    /// transaction, so that the positions it may have moved are decided at once.
    pub(crate) fn open(&mut self, config: &Config) -> Result<(), Trouble> {
        if self.producer.is_some() {
            return Ok(());
        }
        let producer = client::worker_producer(&config.kafka, self.worker)?;
        if let Err(error) = producer.init_transactions(PATIENCE) {
            let text = format!("starting transactions: {error}");
            let refused = matches!(
                topology::code(&error),
                RDKafkaErrorCode::TransactionalIdAuthorizationFailed
                    | RDKafkaErrorCode::ClusterAuthorizationFailed
                    | RDKafkaErrorCode::InvalidTransactionTimeout
                    | RDKafkaErrorCode::UnsupportedFeature
            );
            return Err(if refused {
                Trouble::Fatal(Fatal::Broker(text))
            } else {
                Trouble::Passing(text)
            });
        }
        self.producer = Some(producer);
        Ok(())
    }

    /// Publishes what the tasks have sealed, with their positions: all of it or nothing.
    pub(crate) fn commit(
        &mut self,
        tasks: &[Task],
        positions: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
        shared: &Shared,
    ) -> Result<(), Trouble> {
        let producer = self.producer.as_ref().expect("opened before tasks run");
        let transaction = Transaction { producer, shared };
        let Err(error) = transaction.run(tasks, positions, group) else { return Ok(()) };
        // the record that was refused says more than the transaction's own error
        let undelivered = producer.context().take_undelivered();
        if let Some(fatal) = undelivered.as_ref().and_then(|lost| hopeless(lost, producer)) {
            return Err(Trouble::Fatal(fatal));
        }
        if undelivered.is_none() && topology::code(&error) == RDKafkaErrorCode::MessageSizeTooLarge
        {
            let text = "an output is larger than message.max.bytes: raise it under [kafka.client], \
                        and the topic's max.message.bytes with it";
            return Err(Trouble::Fatal(Fatal::Broker(text.into())));
        }
        let cause = cause(&error);
        let detail = undelivered.map_or_else(
            || error.to_string(),
            |lost| format!("{error} (a record for {:?} got {})", lost.topic, lost.code),
        );
        if cause == Abort::Fenced || !transaction.abort() {
            self.producer = None;
        }
        Err(Trouble::Aborted { cause, detail })
    }
}

struct Transaction<'a> {
    producer: &'a Producer,
    shared: &'a Shared,
}

impl Transaction<'_> {
    fn run(
        &self,
        tasks: &[Task],
        positions: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
    ) -> KafkaResult<()> {
        let producer = self.producer;
        self.persist(|_| producer.begin_transaction())?;
        for task in tasks {
            for output in &task.outbox.outputs {
                self.produce(task, output)?;
            }
        }
        self.persist(|left| producer.send_offsets_to_transaction(positions, group, left))?;
        self.persist(|left| producer.commit_transaction(left))
    }

    /// Makes a call again as long as its error says that this may help.
    fn persist(&self, call: impl Fn(Duration) -> KafkaResult<()>) -> KafkaResult<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Err(error) = call(left) else { return Ok(()) };
            if left.is_zero() || !is_retriable(&error) {
                return Err(error);
            }
            tracing::debug!(%error, "trying again");
            // serves delivery reports, and is the pause between two tries
            self.producer.poll(Duration::from_millis(20));
        }
    }

    /// Ends the transaction without effect; false when the producer cannot go on.
    fn abort(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // in steps: an abort waits for the delivery reports of what it purges, and `poll` is
            // what serves them
            let Err(error) = self.producer.abort_transaction(STEP) else { return true };
            let timed_out = topology::code(&error) == RDKafkaErrorCode::OperationTimedOut;
            if !(timed_out || is_retriable(&error)) || Instant::now() >= deadline {
                tracing::warn!(%error, "abort failed: a new producer will end the transaction");
                return false;
            }
            self.producer.poll(Duration::from_millis(20));
        }
    }

    fn produce(&self, task: &Task, output: &Output) -> KafkaResult<()> {
        let config = &self.shared.config;
        match output {
            Output::Forward { partition, value } => {
                let topic = match task.stage {
                    Stage::Meter => &config.topics.account_usage,
                    Stage::Account => &config.topics.group_usage,
                    Stage::Group => unreachable!("GROUP is the last stage and forwards nothing"),
                };
                let record = BaseRecord::<[u8], [u8]>::to(topic).partition(index(*partition));
                self.send(record.payload(value))
            }
            Output::Change { key, value } => {
                let changelog = task.changelog(self.shared);
                let record = BaseRecord::<[u8], [u8]>::to(&changelog.topic)
                    .partition(index(changelog.partition))
                    .key(key);
                self.send(match value {
                    Some(value) => record.payload(value),
                    None => record,
                })
            }
            Output::Alert(alert) => {
                let (topic, published) = (alert_topic(config, alert), render(config, alert));
                let headers = published.headers.iter().fold(
                    OwnedHeaders::new_with_capacity(published.headers.len()),
                    |headers, (key, value)| headers.insert(Header { key, value: Some(value) }),
                );
                self.send(
                    BaseRecord::<[u8], [u8]>::to(topic)
                        .key(published.key.as_bytes())
                        .payload(&published.value)
                        .headers(headers),
                )
            }
            Output::DeadLetter(letter) => {
                let mut record = BaseRecord::<[u8], [u8]>::to(&config.topics.dead_letters)
                    .headers(dead_letter_headers(task, letter));
                if let Some(key) = &letter.key {
                    record = record.key(key);
                }
                if let Some(value) = &letter.value {
                    record = record.payload(value);
                }
                self.send(record)
            }
        }
    }

    fn send(&self, mut record: BaseRecord<'_, [u8], [u8]>) -> KafkaResult<()> {
        loop {
            let Err((error, refused)) = self.producer.send(record) else { return Ok(()) };
            let code = topology::code(&error);
            if code != RDKafkaErrorCode::QueueFull {
                // refused before it was sent: by name, like one that comes back
                let bytes = refused.payload.map_or(0, <[u8]>::len);
                let topic = refused.topic.to_owned();
                self.producer.context().keep(Undelivered { topic, bytes, code });
                return Err(error);
            }
            // the queue is bounded in bytes; what is in it leaves by itself
            self.producer.poll(Duration::from_millis(10));
            record = refused;
        }
    }
}

/// Where an alert goes. A policy that was switched off resolves its alerts where shadows go.
fn alert_topic<'a>(config: &'a Config, alert: &Alert) -> &'a str {
    match alert.policy.mode {
        Mode::Live => &config.topics.alerts,
        Mode::Shadow | Mode::Off => &config.topics.shadow_alerts,
    }
}

fn render(config: &Config, alert: &Alert) -> Published {
    match config.alerts_format {
        AlertFormat::Json => cloudevent::structured(alert),
        AlertFormat::Protobuf => cloudevent::binary(alert),
    }
}

fn dead_letter_headers(task: &Task, letter: &DeadLetter) -> OwnedHeaders {
    let published = letter.published_headers(&task.topic, task.partition);
    let headers = OwnedHeaders::new_with_capacity(published.len());
    published.iter().fold(headers, |headers, (key, value)| {
        headers.insert(Header { key, value: value.as_deref() })
    })
}

fn is_retriable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Transaction(native)
        if native.is_retriable() && !native.txn_requires_abort() && !native.is_fatal())
}

/// What a failed commit means for this worker.
fn cause(error: &KafkaError) -> Abort {
    let code = topology::code(error);
    if matches!(
        code,
        RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::InvalidProducerEpoch
            | RDKafkaErrorCode::FencedInstanceId
    ) {
        return Abort::Fenced;
    }
    if matches!(
        code,
        RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::RebalanceInProgress
    ) {
        return Abort::LostAssignment;
    }
    Abort::Failed
}

/// Whether the broker has the topic after all, or does not say: one that is just coming back may
/// not have known it yet.
fn is_there(producer: &Producer, topic: &str) -> bool {
    let Ok(metadata) = producer.client().fetch_metadata(Some(topic), IS_THERE) else { return true };
    metadata.topics().iter().all(|found| {
        let code = found.error().map(RDKafkaErrorCode::from);
        !matches!(
            code,
            Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition)
        )
    })
}

/// A record that the broker will refuse whenever it is tried.
fn hopeless(undelivered: &Undelivered, producer: &Producer) -> Option<Fatal> {
    let Undelivered { topic, bytes, code } = undelivered;
    let remedy = if matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize
    ) {
        format!("raise the topic's max.message.bytes above {bytes}")
    } else if matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed
    ) {
        "allow the principal to write there".to_owned()
    } else if matches!(
        code,
        RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
            // what librdkafka says first of a topic that was deleted: nobody leads it any more
            | RDKafkaErrorCode::MessageTimedOut
    ) {
        if *code != RDKafkaErrorCode::UnknownPartition && is_there(producer, topic) {
            return None;
        }
        "the topic or a partition of it is gone: restore it, or see `flopwatch topics`".to_owned()
    } else if matches!(code, RDKafkaErrorCode::PolicyViolation | RDKafkaErrorCode::InvalidRecord) {
        "see `flopwatch topics` for how it should be".to_owned()
    } else {
        return None;
    };
    Some(Fatal::Broker(format!(
        "topic {topic:?} refuses a record of {bytes} bytes ({code}): {remedy}"
    )))
}
