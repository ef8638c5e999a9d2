//! Transactions that stay open longer than any of ours may: found, told, and never gone around.
//!
//! Whoever reads committed records or stable positions waits for the first open transaction in the
//! way. Such a wait is short: a new producer of the same name ends its predecessor's transaction,
//! and the coordinator ends one that is open beyond [`client::TRANSACTION_TIMEOUT`]. But an end may
//! be decided and never written. Kafka 4.2 and 4.3 take a partition without a leader for a deleted
//! one and leave out its part (KAFKA-20734); when a broker that has no replicas beside it comes
//! back, its partitions have no leader for a moment.
//!
//! No client is told which end had been decided, and the next transaction of the same producer
//! would decide it anew, for some partitions and not for others. So nobody goes around it: the
//! worker stops, says what stands open and where, and looks again; after [`LIMIT`] the process
//! ends. What was written there has not been seen by any `read_committed` reader.

use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::client;
use super::context::Consumer;
use super::restore::{add, index};
use super::task::{Shared, Trouble};
use super::topology::{self, code};
use crate::error::Fatal;
use crate::metrics::Stage;

/// Longer than a transaction of ours can stay open: until its owner is found dead and its timeout
/// has passed.
pub(crate) const STABLE: Duration =
    Duration::from_secs(client::TRANSACTION_TIMEOUT.as_secs() + client::SESSION_TIMEOUT.as_secs());

/// How long a worker looks at one that stays open before the process ends. A broker looks for
/// transactions beyond their timeout every 10 s, and may be slow after its own start.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Between two looks of a worker that runs.
pub(crate) const LOOK: Duration = Duration::from_secs(30);

/// How long a broker may take to say where partitions end.
const ASK: Duration = Duration::from_secs(5);

/// How the process ends.
pub(crate) fn fatal(detail: &str) -> Fatal {
    Fatal::Broker(format!(
        "{detail}: for {} s no one has ended the transaction, so the broker has lost its end; see \
         \"Transactions that never end\" in the README for how to end it, then start again",
        LIMIT.as_secs()
    ))
}

/// Where the topics that we alone write ended at some moment, open transactions included.
pub(crate) struct Marks(TopicPartitionList);

impl Marks {
    pub(crate) fn take(prober: &Consumer, shared: &Shared) -> Result<Self, Trouble> {
        let config = &shared.config;
        let topics = &config.topics;
        let changelogs = Stage::ALL.map(|stage| topology::changelog(config, stage));
        let outputs =
            [&topics.account_usage, &topics.group_usage, &topics.alerts, &topics.shadow_alerts];
        let mut list = TopicPartitionList::new();
        for topic in outputs.into_iter().chain([&topics.dead_letters]).chain(&changelogs) {
            // one that is missing is found by whoever needs it
            let partitions = topology::partitions(prober, topic)
                .map_err(|error| Trouble::Passing(error.to_string()))?;
            for partition in 0..partitions.unwrap_or(0) {
                list.add_partition(topic, index(partition));
            }
        }
        Ok(Self(ends(prober, list)?))
    }

    /// These.
    pub(crate) fn given<'a>(
        marks: impl Iterator<Item = (&'a str, u32, u64)>,
    ) -> Result<Self, Fatal> {
        let mut list = TopicPartitionList::new();
        for (topic, partition, mark) in marks {
            add(&mut list, topic, partition, mark)?;
        }
        Ok(Self(list))
    }

    /// The first partition whose records up to the mark are not all decided, in words. `consumer`
    /// reads what is committed.
    pub(crate) fn open(&self, consumer: &Consumer) -> Result<Option<String>, Trouble> {
        let stable = ends(consumer, self.0.clone())?;
        let open = self.0.elements().into_iter().find_map(|mark| {
            let (topic, partition) = (mark.topic(), mark.partition());
            let stable = stable.find_partition(topic, partition)?.offset().to_raw()?;
            let end = mark.offset().to_raw()?;
            // a partition that could not be asked has a negative one
            (stable >= 0 && stable < end).then(|| {
                format!(
                    "topic {topic:?}, partition {partition}: a transaction is open from offset \
                     {stable}, before its end {end}"
                )
            })
        });
        Ok(open)
    }
}

/// Whether the group's positions could be had if a transaction did not hold them back: tells a
/// decision that does not come from a coordinator that does not answer.
pub(crate) fn withheld(prober: &Consumer, wanted: &TopicPartitionList) -> bool {
    prober.committed_offsets(wanted.clone(), ASK).is_ok()
}

/// Where each partition ends for the client: the last stable offset for one that reads what is
/// committed.
fn ends(client: &Consumer, mut list: TopicPartitionList) -> Result<TopicPartitionList, Trouble> {
    if list.count() == 0 {
        return Ok(list);
    }
    list.set_all_offsets(Offset::End).expect("an end can be asked for");
    match client.offsets_for_times(list, ASK) {
        Ok(found) => Ok(found),
        Err(error) => {
            let text = format!("asking where our topics end: {error}");
            Err(if code(&error) == RDKafkaErrorCode::TopicAuthorizationFailed {
                Trouble::Fatal(Fatal::Broker(text))
            } else {
                Trouble::Passing(text)
            })
        }
    }
}
