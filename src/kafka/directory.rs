//! The account directory: one reader for the process, one shared table, every worker told in order.
//!
//! The directory is an input of the tasks, not a lookup: the reader numbers every record, puts it
//! into the table and hands it to every worker through a bounded channel. A task that starts takes
//! from the table all records up to the last number its worker has taken from the channel, so that
//! each record reaches each task exactly once and an account's records come in the order read.
//!
//! The table keeps a bounded history per account: an entry has effect only at its time, so the one
//! in force may not be the last. The reader also counts the usage partitions now and then, the
//! other thing that the whole process wants to know. Records that cannot be decoded leave the
//! earlier entry in place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;

use super::batch::{Batch, PartitionQueue, Polled};
use super::client;
use super::context::Consumer;
use super::restore::{ASK, add, ends};
use super::task::{Shared, Trouble};
use super::topology;
use crate::detector::decode::decode_account;
use crate::detector::directory::AccountRecord;
use crate::detector::event::Record;
use crate::error::Fatal;
use crate::geoip::GeoIp;
use crate::http::health::Health;
use crate::metrics;

/// Entries kept per account. Compaction leaves one or a few; more within one process's life means
/// an account that changes all the time, whose oldest entries have long been superseded.
const HISTORY: usize = 16;

/// Records that may wait for a busy worker before the reader waits for it.
pub(crate) const WAITING: usize = 65_536;

/// Between two looks at how many partitions usage has.
const LOOK: Duration = Duration::from_secs(30);

/// Between two tries to open the topic while the broker is away.
const AGAIN: Duration = Duration::from_millis(500);

/// A directory record and its number in the order read.
#[derive(Debug, Clone)]
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) record: AccountRecord,
}

/// What a worker's channel carries.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    /// The directory was read to its end: all up to this number is in the table.
    Read {
        through: u64,
    },
    Record(Arc<Numbered>),
}

/// The table that all workers read and the reader alone writes.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    accounts: DashMap<String, Vec<Arc<Numbered>>>,
}

impl Directory {
    /// Every kept record numbered up to `through`; an account's in the order read.
    pub(crate) fn each(&self, through: u64, mut tell: impl FnMut(&AccountRecord)) {
        for account in &self.accounts {
            for numbered in account.value() {
                if numbered.number <= through {
                    tell(&numbered.record);
                }
            }
        }
    }

    fn add(&self, numbered: &Arc<Numbered>) {
        let mut history = self.accounts.entry(numbered.record.account_id.clone()).or_default();
        if history.len() == HISTORY {
            history.remove(0);
        }
        history.push(Arc::clone(numbered));
    }

    fn len(&self) -> usize {
        self.accounts.len()
    }
}

/// The thread that reads the topic.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    directory: Arc<Directory>,
    workers: Vec<SyncSender<Told>>,
    health: Arc<Health>,
    stop: Arc<AtomicBool>,
    geoip: Option<GeoIp>,
    /// Of the last record read; numbers start at 1.
    number: u64,
    /// The last look did not find a topic.
    was_missing: bool,
}

impl Reader {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        directory: &Arc<Directory>,
        workers: Vec<SyncSender<Told>>,
        health: &Arc<Health>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, Fatal> {
        Ok(Self {
            shared: Arc::clone(shared),
            directory: Arc::clone(directory),
            workers,
            health: Arc::clone(health),
            stop: Arc::clone(stop),
            geoip: shared.config.geoip.as_deref().map(GeoIp::open).transpose()?,
            number: 0,
            was_missing: false,
        })
    }

    /// Reads to the end, says so, and goes on until the process stops.
    pub(crate) fn run(&mut self) -> Result<(), Fatal> {
        let config = Arc::clone(&self.shared.config);
        let topic = config.topics.accounts.clone();
        let prober = client::prober(&config.kafka)?;
        let consumer = Arc::new(client::reader(&config.kafka, "directory")?);
        let Some(mut partitions) = self.await_open(&prober, &consumer, &topic)? else {
            return Ok(());
        };
        let mut batch = Batch::new(client::BATCH);
        let began = Instant::now();
        let mut looked = began;
        let mut complete = false;
        while !self.stop.load(Ordering::Acquire) {
            let mut idle = true;
            for partition in &mut partitions {
                batch.read(&partition.queue, Duration::ZERO, |polled| -> Result<(), Fatal> {
                    match polled {
                        Polled::Records(records) => {
                            idle = false;
                            records.iter().for_each(|record| self.take(record, complete));
                        }
                        Polled::End { offset } => {
                            partition.at_end |= offset >= partition.mark;
                        }
                        Polled::Failed(code) => failed(&topic, code)?,
                    }
                    Ok(())
                })?;
            }
            if !complete && partitions.iter().all(|partition| partition.at_end) {
                complete = true;
                self.complete(began.elapsed());
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.look(&prober)?;
            }
            if idle {
                // events, and the pause when nothing comes
                drop(consumer.poll(Duration::from_millis(10)));
            }
        }
        Ok(())
    }

    /// Tries until the broker answers; `None` when the process stops before.
    fn await_open(
        &self,
        prober: &Consumer,
        consumer: &Arc<Consumer>,
        topic: &str,
    ) -> Result<Option<Vec<Partition>>, Fatal> {
        while !self.stop.load(Ordering::Acquire) {
            match open(prober, consumer, topic) {
                Ok(partitions) => return Ok(Some(partitions)),
                Err(Trouble::Fatal(fatal)) => return Err(fatal),
                Err(
                    Trouble::Passing(detail)
                    | Trouble::Undecided(detail)
                    | Trouble::Aborted { detail, .. },
                ) => {
                    tracing::warn!(topic, detail, "the account directory cannot be read yet");
                    // events, and the pause before the next try
                    drop(consumer.poll(AGAIN));
                }
            }
        }
        Ok(None)
    }

    /// METER names in its records how many usage partitions there are. A topic that is gone at two
    /// looks stops the process: librdkafka may take its partitions away without a word.
    fn look(&mut self, prober: &Consumer) -> Result<(), Fatal> {
        let config = Arc::clone(&self.shared.config);
        let mut missing = None;
        for topic in [&config.topics.usage, &config.topics.accounts] {
            match topology::partitions(prober, topic) {
                Ok(Some(partitions)) if *topic == config.topics.usage => {
                    self.shared.saw_usage_partitions(partitions);
                }
                Ok(Some(_)) => {}
                Ok(None) => missing = Some(topic),
                Err(error) => tracing::warn!(%error, "looking at topics"),
            }
        }
        if let Some(topic) = missing {
            if self.was_missing {
                return Err(Fatal::Broker(format!(
                    "topic {topic:?} is gone: restore it, or see `flopwatch topics`"
                )));
            }
            tracing::warn!(topic, "a topic is not there");
        }
        self.was_missing = missing.is_some();
        Ok(())
    }

    fn complete(&self, took: Duration) {
        let (accounts, milliseconds) = (self.directory.len(), took.as_millis());
        tracing::info!(accounts, milliseconds, "account directory read");
        metrics::directory_read(accounts);
        for worker in &self.workers {
            // a worker that is gone has said why
            worker.send(Told::Read { through: self.number }).unwrap_or_default();
        }
        self.health.directory_read();
    }

    fn take(&mut self, record: &Record<'_>, complete: bool) {
        let mut account = match decode_account(record.key, record.value) {
            Ok(account) => account,
            Err(invalid) => {
                metrics::directory_invalid();
                tracing::warn!(
                    offset = record.offset,
                    reason = invalid.reason.name(),
                    detail = invalid.detail,
                    "unreadable account record: the earlier entry stays"
                );
                return;
            }
        };
        if let Some(geoip) = &self.geoip {
            geoip.locate(&mut account);
        }
        self.number += 1;
        let numbered = Arc::new(Numbered { number: self.number, record: account });
        self.directory.add(&numbered);
        if complete {
            metrics::directory_read(self.directory.len());
            for worker in &self.workers {
                worker.send(Told::Record(Arc::clone(&numbered))).unwrap_or_default();
            }
        }
    }
}

/// An error in place of a record: a topic that is gone stops the process, since nobody's facts
/// would change any more.
fn failed(topic: &str, code: RDKafkaErrorCode) -> Result<(), Fatal> {
    if code == RDKafkaErrorCode::AutoOffsetReset {
        let text = format!("topic {topic:?} lost its beginning while it was read: start again");
        return Err(Fatal::Broker(text));
    }
    if matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
            // fetched again and again, it would stay so
            | RDKafkaErrorCode::BadCompression
            | RDKafkaErrorCode::BadMessage
    ) {
        let text = format!("reading the account directory {topic:?}: {code}");
        return Err(Fatal::Broker(text));
    }
    tracing::warn!(topic, %code, "directory fetch failed");
    Ok(())
}

struct Partition {
    queue: PartitionQueue,
    /// The end when reading began.
    mark: u64,
    at_end: bool,
}

fn open(
    prober: &Consumer,
    consumer: &Arc<Consumer>,
    topic: &str,
) -> Result<Vec<Partition>, Trouble> {
    // it was there and readable at the start: by now the broker is away, or not quite back
    let count = topology::partitions(prober, topic)
        .map_err(|error| Trouble::Passing(error.to_string()))?
        .ok_or_else(|| Trouble::Passing("the topic is not there".into()))?;
    let mut marks = Vec::new();
    for number in 0..count {
        marks.push(ends(prober, topic, number, ASK)?);
    }
    let mut assignment = TopicPartitionList::new();
    let mut partitions = Vec::new();
    for (number, (low, mark)) in (0..).zip(marks) {
        let queue = PartitionQueue::new(consumer, topic, number);
        add(&mut assignment, topic, number, low)?;
        partitions.push(Partition { queue, mark, at_end: low == mark });
    }
    consumer
        .assign(&assignment)
        .map_err(|error| Trouble::Passing(format!("assigning the directory: {error}")))?;
    Ok(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::directory::Entry;
    use crate::detector::time::Timestamp;

    fn record(number: u64, account: &str) -> Arc<Numbered> {
        let entry = Entry { updated: Timestamp(number), ..Entry::default() };
        let record = AccountRecord { account_id: account.to_owned(), entry: Some(entry) };
        Arc::new(Numbered { number, record })
    }

    fn told(directory: &Directory, through: u64) -> Vec<u64> {
        let mut told = Vec::new();
        directory.each(through, |record| {
            told.push(record.entry.as_ref().expect("an entry").updated.0);
        });
        told
    }

    #[test]
    fn a_new_task_is_told_what_its_worker_has_taken_and_nothing_beyond() {
        let directory = Directory::default();
        for number in 1..=5 {
            directory.add(&record(number, "a"));
        }
        assert_eq!(told(&directory, 3), [1, 2, 3]);
        assert_eq!(told(&directory, 9), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn the_history_of_an_account_is_bounded_and_keeps_the_latest() {
        let directory = Directory::default();
        for number in 1..=(HISTORY as u64 + 4) {
            directory.add(&record(number, "a"));
        }
        let kept = told(&directory, u64::MAX);
        assert_eq!(kept, (5..=(HISTORY as u64 + 4)).collect::<Vec<_>>());
    }
}
