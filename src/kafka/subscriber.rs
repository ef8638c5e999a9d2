//! A consumer of the alert topics for one target of `notify`: a member of the target's own group.
//!
//! At least once: a position is committed after what lies before it has been delivered, never
//! before, and by nobody else. Beside each position stands a note of the target (Kafka keeps up to
//! 4 KiB), so that what it must see again after a restart is known without reading a whole topic.
//!
//! As in a worker, each partition has a queue of its own: one that is not read waits, and the group
//! is told nothing of it.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::batch::{Batch, PartitionQueue, Polled};
use super::client;
use super::context::{Consumer, ConsumerEvents, RebalanceEvent, TopicPartition};
use super::restore::{ASK, add, ends, index};
use super::task::Trouble;
use super::topology;
use crate::config;
use crate::error::Fatal;
use crate::metrics::{self, Rebalance};

/// Records taken from a partition at a time: alerts are large and targets slow.
const BATCH: usize = 64;

/// Where a group stands in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    /// The next offset to deliver.
    pub(crate) offset: u64,
    pub(crate) note: String,
}

/// A partition that the group has given, before it is read.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) partition: TopicPartition,
    /// `None` when the group has never committed here.
    pub(crate) committed: Option<Position>,
    /// The first record that there is.
    pub(crate) low: u64,
}

/// What the group has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// There is an assignment to `open`.
    Given,
    /// All that was open is gone.
    Taken,
}

pub(crate) struct Subscriber {
    group: String,
    topics: Vec<String>,
    consumer: Arc<Consumer>,
    rebalances: Receiver<RebalanceEvent>,
    prober: Consumer,
    assigned: Option<Vec<TopicPartition>>,
    /// The group counts us in, if only with no partition.
    is_member: bool,
    open: Vec<(TopicPartition, PartitionQueue)>,
    batch: Batch,
}

impl Subscriber {
    pub(crate) fn new(
        kafka: &config::Kafka,
        group: String,
        topics: Vec<String>,
    ) -> Result<Self, Fatal> {
        let (events, rebalances) = ConsumerEvents::new();
        let consumer = Arc::new(client::subscriber(kafka, &group, events)?);
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer
            .subscribe(&names)
            .map_err(|error| Fatal::Broker(format!("subscribing to {names:?}: {error}")))?;
        Ok(Self {
            consumer,
            rebalances,
            prober: client::prober(kafka)?,
            assigned: None,
            is_member: false,
            open: Vec::new(),
            batch: Batch::new(BATCH),
            group,
            topics,
        })
    }

    /// Lets librdkafka call back for as long as `pause`, and says what the group has changed.
    pub(crate) fn serve(&mut self, pause: Duration) -> Result<Option<Change>, Fatal> {
        if let Some(Err(error)) = self.consumer.poll(pause) {
            self.client_error(&error)?;
        }
        let Ok(event) = self.rebalances.try_recv() else { return Ok(None) };
        self.open.clear();
        let change = match event {
            RebalanceEvent::Assigned(partitions) => {
                tracing::info!(self.group, partitions = partitions.len(), "assigned");
                metrics::rebalanced(Rebalance::Assigned);
                self.assigned = Some(partitions);
                self.is_member = true;
                return Ok(Some(Change::Given));
            }
            RebalanceEvent::Revoked { lost } => {
                tracing::info!(self.group, lost, "revoked");
                metrics::rebalanced(if lost { Rebalance::Lost } else { Rebalance::Revoked });
                Change::Taken
            }
            RebalanceEvent::Failed(code) => {
                tracing::warn!(self.group, %code, "rebalance failed");
                Change::Taken
            }
        };
        self.assigned = None;
        self.is_member = false;
        if let Err(error) = self.consumer.unassign() {
            tracing::warn!(self.group, %error, "giving partitions back");
        }
        Ok(Some(change))
    }

    fn client_error(&self, error: &KafkaError) -> Result<(), Fatal> {
        let group = &self.group;
        if let Some((_, reason)) = self.consumer.client().fatal_error() {
            return Err(Fatal::Broker(format!("group {group:?}: {reason}")));
        }
        let code = topology::code(error);
        if matches!(
            code,
            RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::InvalidSessionTimeout
                | RDKafkaErrorCode::InconsistentGroupProtocol
        ) {
            return Err(Fatal::Broker(format!("group {group:?}: {error}")));
        }
        if matches!(
            code,
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic
        ) {
            let is_gone =
                |topic: &&String| matches!(topology::partitions(&self.prober, topic), Ok(None));
            if let Some(topic) = self.topics.iter().find(is_gone) {
                return Err(Fatal::Broker(format!(
                    "topic {topic:?} is not there: set [topics] to where alerts are published"
                )));
            }
        }
        // connections come and go; librdkafka mends them
        tracing::warn!(group, %error, "consumer");
        Ok(())
    }

    /// What the group has given and nobody has opened yet.
    pub(crate) const fn is_waiting(&self) -> bool {
        self.assigned.is_some() && self.open.is_empty()
    }

    pub(crate) const fn is_member(&self) -> bool {
        self.is_member
    }

    /// Begins to read what the group has given, each partition where `begin` says. The partitions
    /// are numbered in the order of the calls.
    pub(crate) fn open(&mut self, mut begin: impl FnMut(&Given) -> u64) -> Result<(), Trouble> {
        let assigned = self.assigned.clone().unwrap_or_default();
        let committed = self.committed(&assigned)?;
        let mut given = Vec::with_capacity(assigned.len());
        for (partition, committed) in assigned.into_iter().zip(committed) {
            let (low, high) = ends(&self.prober, &partition.topic, partition.partition, ASK)?;
            let is_beyond = |position: &Position| position.offset > high;
            if committed.as_ref().is_some_and(is_beyond) {
                let TopicPartition { topic, partition } = &partition;
                tracing::error!(topic, partition, high, "made again: read from its beginning");
            }
            let committed = committed.filter(|position| !is_beyond(position));
            given.push(Given { partition, committed, low });
        }
        let mut list = TopicPartitionList::with_capacity(given.len());
        let mut open = Vec::with_capacity(given.len());
        for given in given {
            let start = begin(&given).max(given.low);
            let TopicPartition { topic, partition } = &given.partition;
            let queue = PartitionQueue::new(&self.consumer, topic, *partition);
            add(&mut list, topic, *partition, start)?;
            open.push((given.partition, queue));
        }
        self.consumer
            .assign(&list)
            .map_err(|error| Trouble::Passing(format!("taking partitions: {error}")))?;
        self.open = open;
        if self.open.is_empty() {
            // nothing for this member: there is nothing to open again
            self.assigned = None;
        }
        Ok(())
    }

    fn committed(&self, wanted: &[TopicPartition]) -> Result<Vec<Option<Position>>, Trouble> {
        let mut list = TopicPartitionList::with_capacity(wanted.len());
        for TopicPartition { topic, partition } in wanted {
            list.add_partition(topic, index(*partition));
        }
        let found = self
            .consumer
            .committed_offsets(list, ASK)
            .map_err(|error| Trouble::Passing(format!("asking for positions: {error}")))?;
        let mut positions = Vec::with_capacity(wanted.len());
        for TopicPartition { topic, partition } in wanted {
            let element = found.find_partition(topic, index(*partition));
            let element = element.ok_or_else(|| {
                Trouble::Passing(format!("no position for {topic:?}, partition {partition}"))
            })?;
            element.error().map_err(|error| {
                Trouble::Passing(format!("the position of {topic:?}, {partition}: {error}"))
            })?;
            positions.push(if let Offset::Offset(offset) = element.offset() {
                let offset = u64::try_from(offset).expect("offsets of a log are not negative");
                Some(Position { offset, note: element.metadata().to_owned() })
            } else {
                None
            });
        }
        Ok(positions)
    }

    /// Hands out what waits, partition by partition; says how much.
    pub(crate) fn read(
        &mut self,
        mut each: impl FnMut(usize, Polled<'_>) -> Result<(), Trouble>,
    ) -> Result<usize, Trouble> {
        let mut records = 0;
        for (number, (_, queue)) in self.open.iter().enumerate() {
            self.batch.read(queue, Duration::ZERO, |polled| {
                if let Polled::Records(batch) = &polled {
                    records += batch.len();
                }
                each(number, polled)
            })?;
        }
        Ok(records)
    }

    /// Commits positions of open partitions, by their numbers.
    pub(crate) fn commit(&self, positions: &[(usize, Position)]) -> Result<(), Trouble> {
        let failed = |error: KafkaError| Trouble::Passing(format!("committing positions: {error}"));
        let mut list = TopicPartitionList::with_capacity(positions.len());
        for (number, Position { offset, note }) in positions {
            let TopicPartition { topic, partition } = &self.open[*number].0;
            let mut element = list.add_partition(topic, index(*partition));
            let offset = i64::try_from(*offset).expect("Kafka's offsets are i64");
            element.set_offset(Offset::Offset(offset)).map_err(failed)?;
            element.set_metadata(note);
        }
        self.consumer.commit(&list, CommitMode::Sync).map_err(failed)
    }

    /// The end of an open partition, as far as it is known.
    pub(crate) fn end(&self, number: usize) -> Option<u64> {
        let (TopicPartition { topic, partition }, queue) = &self.open[number];
        queue.end(topic, *partition)
    }

    /// Reads all open partitions anew, from their committed positions.
    pub(crate) fn close(&mut self) {
        self.open.clear();
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.open.clear();
        // nobody will answer the group's last word but the context itself
        self.consumer.context().close();
    }
}
