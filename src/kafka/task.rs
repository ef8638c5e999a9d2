//! One assigned partition of one stage and its state: Created -> Restoring -> Running -> Closed.
//!
//! A worker owns its tasks by value. A task is created without state, restored from its changelog
//! before its first record, fed records while it runs, and closed by being dropped: on revocation,
//! after a failed commit, at the end. There is no way back and no undo: what was not committed is
//! read again by the next task of that partition.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::batch::{Batch, PartitionQueue, Polled};
use super::context::{Consumer, TopicPartition};
use super::{restore, topology};
use crate::config::Config;
use crate::detector::account::Account;
use crate::detector::alert::Firing;
use crate::detector::directory::AccountRecord;
use crate::detector::group::Group;
use crate::detector::key_state::StateKey;
use crate::detector::meter::Meter;
use crate::detector::outbox::Outbox;
use crate::detector::policy::Policies;
use crate::detector::time::{Span, Timestamp};
use crate::detector::{Stage as _, StageError};
use crate::error::Fatal;
use crate::metrics::{self, Abort, FiringSeries, PartitionSeries, Stage};
use rdkafka::error::RDKafkaErrorCode;

/// How long the broker may take to confirm a partition's end before it is declared idle.
const IS_IDLE: Duration = Duration::from_secs(2);

/// Batches that may wait in a queue: more than its bound, so that the fetcher of the assignment
/// before, which may still be at work, cannot keep us.
const LEFTOVERS: usize = 64;

/// The state machine of a task.
pub(crate) enum Machine {
    Meter(Box<Meter>),
    Account(Box<Account>),
    Group(Box<Group>),
}

impl Machine {
    fn new(stage: Stage, partition: u32, shared: &Shared, policies: &Arc<Policies>) -> Self {
        let (rules, policies) = (Arc::clone(&shared.config.rules), Arc::clone(policies));
        let tasks = shared.tasks;
        match stage {
            Stage::Meter => {
                let partitions = shared.usage_partitions();
                Self::Meter(Box::new(Meter::new(rules, partition, partitions, tasks)))
            }
            Stage::Account => {
                Self::Account(Box::new(Account::new(rules, policies, partition, tasks)))
            }
            Stage::Group => Self::Group(Box::new(Group::new(rules, policies))),
        }
    }

    pub(crate) fn as_stage(&mut self) -> &mut dyn crate::detector::Stage {
        match self {
            Self::Meter(meter) => meter.as_mut(),
            Self::Account(account) => account.as_mut(),
            Self::Group(group) => group.as_mut(),
        }
    }

    /// The changelog key that every commit of a position has beside it or before it.
    fn head(&self, partition: u32) -> Vec<u8> {
        match self {
            // several usage partitions may share a changelog
            Self::Meter(_) => partition.to_be_bytes().to_vec(),
            Self::Account(_) | Self::Group(_) => StateKey::Align.bytes(),
        }
    }

    fn position(&self) -> Option<u64> {
        match self {
            Self::Meter(meter) => meter.position(),
            Self::Account(account) => account.position(),
            Self::Group(group) => group.position(),
        }
    }

    fn is_urgent(&self) -> bool {
        match self {
            Self::Meter(meter) => meter.is_urgent(),
            Self::Account(account) => account.is_urgent(),
            Self::Group(group) => group.is_urgent(),
        }
    }

    fn watermark(&self) -> Option<Timestamp> {
        match self {
            Self::Meter(meter) => meter.watermark(),
            Self::Account(account) => account.watermark(),
            Self::Group(group) => group.watermark(),
        }
    }
}

/// What every task of a process needs and none changes.
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    /// n: the partitions of the internal topics and changelogs.
    pub(crate) tasks: u32,
    /// Partitions of usage as far as known; grows.
    pub(crate) usage: AtomicU32,
}

impl Shared {
    pub(crate) fn usage_partitions(&self) -> u32 {
        self.usage.load(Ordering::Relaxed)
    }

    /// There are at least this many.
    pub(crate) fn saw_usage_partitions(&self, partitions: u32) {
        self.usage.fetch_max(partitions, Ordering::Relaxed);
    }
}

/// Why a task cannot go on.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The broker may mend it: drop every task, wait, restore.
    Passing(String),
    /// A commit did not happen; no `read_committed` reader will ever see any of it.
    Aborted {
        cause: Abort,
        detail: String,
    },
    /// A transaction stands open that nobody ends any more: as `Passing`, for a while.
    Undecided(String),
    Fatal(Fatal),
}

impl From<Fatal> for Trouble {
    fn from(fatal: Fatal) -> Self {
        Self::Fatal(fatal)
    }
}

/// How long a partition has had nothing to say while it was listened to: reads that follow each
/// other closely and find nothing.
struct Silence {
    since: Instant,
    read: Instant,
}

impl Silence {
    /// Between two reads that follow each other; a process that did anything else for longer
    /// (restored, committed to a slow broker, stood still) has not listened.
    const GAP: Duration = Duration::from_secs(1);

    const fn new(now: Instant) -> Self {
        Self { since: now, read: now }
    }

    fn read(&mut self, now: Instant, records: usize) {
        if records > 0 || now.duration_since(self.read) > Self::GAP {
            self.since = now;
        }
        self.read = now;
    }

    fn length(&self) -> Duration {
        self.read.duration_since(self.since)
    }
}

pub(crate) struct Task {
    pub(crate) stage: Stage,
    pub(crate) partition: u32,
    pub(crate) topic: String,
    pub(crate) machine: Machine,
    pub(crate) outbox: Outbox,
    pub(crate) series: PartitionSeries,
    firing: FiringSeries,
    queue: PartitionQueue,
    /// Where reading started: what is committed while the stage has no position of its own, so
    /// that state never stands in a changelog without a position beside it.
    start: u64,
    /// The offset after the last record read, `start` before the first.
    next: u64,
    /// Records before `start` that retention removed unread.
    gap: u64,
    /// What the group has committed for the partition.
    committed: Option<u64>,
    /// The changelog key of its head.
    head: Vec<u8>,
    /// The restore has met its head.
    has_head: bool,
    /// Where the partition ended when the reader last stood at its end; `None` away from it.
    end: Option<u64>,
    silence: Silence,
    /// METER: its first watermark since the start.
    first: Option<Timestamp>,
    idle: bool,
    paused: bool,
    /// Something has changed since the last commit.
    touched: bool,
}

impl Task {
    /// Created: its queue exists, its state is empty.
    pub(crate) fn new(
        assigned: &TopicPartition,
        stage: Stage,
        consumer: &Arc<Consumer>,
        shared: &Shared,
        policies: &Arc<Policies>,
    ) -> Self {
        let partition = assigned.partition;
        let machine = Machine::new(stage, partition, shared, policies);
        Self {
            stage,
            partition,
            topic: assigned.topic.clone(),
            head: machine.head(partition),
            has_head: false,
            machine,
            outbox: Outbox::default(),
            series: PartitionSeries::new(stage, partition),
            firing: FiringSeries::default(),
            queue: PartitionQueue::new(consumer, &assigned.topic, partition),
            start: 0,
            next: 0,
            gap: 0,
            committed: None,
            end: None,
            silence: Silence::new(Instant::now()),
            first: None,
            idle: false,
            paused: false,
            touched: false,
        }
    }

    /// The changelog topic and partition that hold its state.
    pub(crate) fn changelog(&self, shared: &Shared) -> TopicPartition {
        TopicPartition {
            topic: topology::changelog(&shared.config, self.stage),
            partition: self.partition % shared.tasks,
        }
    }

    /// Positioned: once restored, it will read from `start`, `gap` records after what was
    /// committed.
    pub(crate) fn position_at(&mut self, start: u64, committed: Option<u64>, gap: u64) {
        self.start = start;
        self.next = start;
        self.committed = committed;
        self.gap = gap;
    }

    /// Restoring: takes one record of its changelog.
    pub(crate) fn restore(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StageError> {
        self.has_head |= key == self.head;
        self.machine.as_stage().restore(key, value)
    }

    /// Restored: whether its position and its state, which are committed together, are both
    /// there.
    pub(crate) fn check_restored(&self, shared: &Shared) -> Result<(), Fatal> {
        let Self { topic, partition, .. } = self;
        let (group, changelog) = (&shared.config.kafka.group_id, self.changelog(shared));
        let changelog = format!("{:?}, partition {}", changelog.topic, changelog.partition);
        match (self.committed, self.has_head) {
            (None, false) | (Some(_), true) => Ok(()),
            (None, true) => Err(Fatal::State(format!(
                "group {group:?} has no position in topic {topic:?}, partition {partition}, but \
                 changelog {changelog}, holds its state, so everything would be counted again: the \
                 group was deleted, reset, or idle beyond offsets.retention.minutes; set its \
                 offsets back, or delete the state topics to start over"
            ))),
            (Some(position), false) => Err(Fatal::State(format!(
                "group {group:?} has position {position} in topic {topic:?}, partition \
                 {partition}, but changelog {changelog}, holds no state for it, so what was \
                 counted before would be missing: was the topic emptied or made again? restore \
                 it, or start afresh under a new kafka.group_id with new internal topics"
            ))),
        }
    }

    /// Before it is assigned: takes what an earlier assignment has left in the queue. librdkafka
    /// outdates records itself, but not the error that a position is not in the log: each that
    /// stayed would cost one more restore.
    pub(crate) fn forget(&mut self, batch: &mut Batch) {
        for _ in 0..LEFTOVERS {
            let mut is_empty = true;
            let seen = |_: Polled<'_>| -> Result<(), Infallible> {
                is_empty = false;
                Ok(())
            };
            let Ok(_) = batch.read(&self.queue, Duration::ZERO, seen);
            if is_empty {
                return;
            }
        }
    }

    /// What the group had committed for it when it was asked last.
    pub(crate) const fn committed_position(&self) -> Option<u64> {
        self.committed
    }

    /// Running: silence counts from here, not from before the restore.
    pub(crate) fn begin(&mut self) {
        self.silence = Silence::new(Instant::now());
        self.show_firing();
        if self.gap > 0 {
            let records = self.gap;
            self.accept_gap(records);
        }
    }

    /// Goes on without records that retention removed: counted here, once the state is restored.
    fn accept_gap(&mut self, records: u64) {
        let Self { topic, partition, .. } = self;
        tracing::warn!(topic, partition, records, "going on without what retention removed");
        metrics::gap_accepted(self.stage, records);
        match &mut self.machine {
            Machine::Meter(meter) => meter.accept_gap(records),
            Machine::Account(account) => account.accept_gap(records),
            Machine::Group(group) => group.accept_gap(records),
        }
        // committed soon: the next start must not meet the same gap
        self.touched = true;
    }

    /// Restored, or committed with alerts that began or ceased to fire.
    pub(crate) fn show_firing(&mut self) {
        self.firing.show(match &self.machine {
            Machine::Meter(_) => Firing::default(),
            Machine::Account(account) => account.firing(),
            Machine::Group(group) => group.firing(),
        });
    }

    pub(crate) const fn start(&self) -> u64 {
        self.start
    }

    /// Reads one batch and processes it. Returns how many records it held and whether more wait.
    pub(crate) fn read(&mut self, batch: &mut Batch) -> Result<(usize, bool), Trouble> {
        let mut records = 0_usize;
        let mut failure = None;
        let Self { machine, outbox, queue, next, end, .. } = self;
        let stage = machine.as_stage();
        let more = batch
            .read(queue, Duration::ZERO, |polled| -> Result<(), StageError> {
                match polled {
                    Polled::Records(group) => {
                        records += group.len();
                        *end = None;
                        stage.process_all(group, outbox)?;
                        *next = group.last().map_or(*next, |last| last.offset + 1);
                    }
                    Polled::End { offset } => *end = Some(offset),
                    Polled::Failed(code) => failure = Some(code),
                }
                Ok(())
            })
            .map_err(|error| self.refused(error))?;
        self.silence.read(Instant::now(), records);
        if records > 0 {
            self.touched = true;
            if self.idle {
                self.idle = false;
                self.series.idle(false);
            }
        }
        // the markers after the last record are read as well
        self.touched |= self.committed.is_some() && self.due_position().is_some();
        match failure {
            None => Ok((records, more)),
            Some(code) => self.failed(code).map(|()| (records, more)),
        }
    }

    fn refused(&self, error: StageError) -> Trouble {
        let Self { topic, partition, .. } = self;
        Trouble::Fatal(match error {
            StageError::TooManyInvalid { .. } => {
                Fatal::Input(format!("topic {topic:?}, partition {partition}: {error}"))
            }
            StageError::State(_) => {
                Fatal::State(format!("topic {topic:?}, partition {partition}: {error}"))
            }
        })
    }

    /// An error in place of a record.
    fn failed(&self, code: RDKafkaErrorCode) -> Result<(), Trouble> {
        let Self { topic, partition, next, .. } = self;
        if matches!(code, RDKafkaErrorCode::BadCompression | RDKafkaErrorCode::BadMessage) {
            // it would be fetched again and again, and nobody can say what it holds
            return Err(Trouble::Fatal(Fatal::Input(format!(
                "topic {topic:?}, partition {partition}: a batch of records at or after offset \
                 {next} cannot be unpacked ({code}): raise receive.message.max.bytes under \
                 [kafka.client] above its unpacked size, or, if it is damaged, delete the records \
                 up to its end and start with --accept-gap"
            ))));
        }
        if code == RDKafkaErrorCode::AutoOffsetReset {
            // retention may have overtaken us, but librdkafka says the same when a broker comes
            // back and does not know the epoch of a position: the next restore compares positions
            // with what is there, and tells which
            return Err(Trouble::Passing(format!(
                "topic {topic:?}, partition {partition}: the position is not in the log"
            )));
        }
        if matches!(
            code,
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
        ) {
            return Err(Trouble::Fatal(Fatal::Broker(format!(
                "reading topic {topic:?}, partition {partition}: {code}"
            ))));
        }
        // librdkafka goes on by itself
        tracing::warn!(topic, partition, %code, "fetch failed");
        Ok(())
    }

    /// METER: the usage partitions now known.
    pub(crate) fn set_partitions(&mut self, partitions: u32) {
        if let Machine::Meter(meter) = &mut self.machine {
            meter.set_partitions(partitions);
            self.touched = true;
        }
    }

    /// METER, right after an empty read: nothing came for `timeout`, and the end is reached.
    pub(crate) fn is_silent(&self, timeout: Duration) -> bool {
        matches!(self.machine, Machine::Meter(_))
            && !self.idle
            && self.end.is_some()
            && self.silence.length() >= timeout
    }

    /// A round has gone by without reading it.
    pub(crate) fn pass_over(&mut self) {
        self.silence = Silence::new(Instant::now());
    }

    /// METER: declares the silent partition idle, if the broker says that its end is where we
    /// stand: an unreachable broker is silent as well, and so is one whose records have not come
    /// since the process was stopped.
    pub(crate) fn rest(&mut self, prober: &Consumer) {
        let Machine::Meter(meter) = &mut self.machine else { return };
        let Self { topic, partition, .. } = self;
        match restore::ends(prober, topic, *partition, IS_IDLE) {
            Ok((_, high)) if self.end.is_some_and(|end| high <= end) => {
                meter.go_idle();
                self.idle = true;
                self.touched = true;
                self.series.idle(true);
                tracing::info!(topic, partition, "partition is idle");
            }
            Ok(_) => self.pass_over(),
            Err(trouble) => {
                tracing::debug!(topic, partition, ?trouble, "whether it is idle is unknown");
                self.pass_over();
            }
        }
    }

    /// METER: whether it is too far ahead of the ACCOUNT tasks beside it, whose slowest M is
    /// `slowest`: none without such a task, and none in it before that task's first step.
    pub(crate) fn hold_back(&mut self, slowest: Option<Option<Timestamp>>, max_skew: Span) {
        let Machine::Meter(meter) = &self.machine else { return };
        let paused = meter.watermark().is_some_and(|watermark| {
            let first = *self.first.get_or_insert(watermark);
            // a backlog beside a partition that has yet to be heard of would pile up as a whole
            slowest.is_some_and(|m| watermark > m.unwrap_or(first).plus(max_skew))
        });
        if paused != self.paused {
            self.paused = paused;
            self.series.paused(paused);
        }
    }

    /// The directory has been told to its end: what it no longer names is gone.
    pub(crate) fn directory_complete(&mut self) {
        if let Machine::Account(account) = &mut self.machine {
            account.directory_complete();
        }
    }

    pub(crate) fn directory(&mut self, record: &AccountRecord) {
        if let Machine::Account(account) = &mut self.machine {
            account.directory(record);
            self.touched = true;
        }
    }

    pub(crate) fn set_policies(&mut self, policies: &Arc<Policies>) {
        match &mut self.machine {
            Machine::Meter(_) => {}
            Machine::Account(account) => account.set_policies(Arc::clone(policies)),
            Machine::Group(group) => group.set_policies(Arc::clone(policies)),
        }
    }

    pub(crate) fn watermark(&self) -> Option<Timestamp> {
        self.machine.watermark()
    }

    pub(crate) const fn is_paused(&self) -> bool {
        self.paused
    }

    pub(crate) const fn is_touched(&self) -> bool {
        self.touched
    }

    pub(crate) fn is_urgent(&self) -> bool {
        self.machine.is_urgent()
    }

    /// Before a commit: everything that it publishes is in the outbox afterwards.
    pub(crate) fn seal(&mut self) {
        let Self { machine, outbox, .. } = self;
        machine.as_stage().seal(outbox);
    }

    /// Where a restart would go on reading: the stage's own position, and when that is after the
    /// last record, beyond what follows it that is no record (the markers of transactions, what
    /// an aborted one wrote). Retention would take those for records that were never read.
    fn position(&self) -> u64 {
        let own = self.machine.position().unwrap_or(self.start);
        self.end.filter(|&end| own == self.next && end > own).unwrap_or(own)
    }

    /// The position to commit, when it differs from the committed one or outputs need one.
    pub(crate) fn due_position(&self) -> Option<u64> {
        // no position without state beside it
        let has_state = self.machine.position().is_some() || !self.outbox.is_empty();
        let position = self.position();
        let news = self.committed.is_some() || has_state;
        (news && self.committed != Some(position)).then_some(position)
    }

    /// The transaction stands.
    pub(crate) fn committed(&mut self) {
        if let Some(position) = self.due_position() {
            self.committed = Some(position);
        }
        self.outbox.outputs.clear();
        self.touched = false;
        if let Some(watermark) = self.machine.watermark() {
            self.series.watermark(watermark);
        }
        if let Some(end) = self.queue.end(&self.topic, self.partition) {
            self.series.lag(end.saturating_sub(self.position()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn silence_is_as_long_as_reads_find_nothing() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        silence.read(after(start, 900), 0);
        silence.read(after(start, 1800), 0);
        assert_eq!(silence.length(), Duration::from_millis(1800));
        silence.read(after(start, 2000), 1);
        assert_eq!(silence.length(), Duration::ZERO);
        silence.read(after(start, 2500), 0);
        assert_eq!(silence.length(), Duration::from_millis(500));
    }

    #[test]
    fn what_was_not_listened_to_is_not_silence() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        silence.read(after(start, 500), 0);
        // stopped for a minute: a record of that time may not have come yet
        silence.read(after(start, 60_500), 0);
        assert_eq!(silence.length(), Duration::ZERO);
        silence.read(after(start, 61_000), 0);
        assert_eq!(silence.length(), Duration::from_millis(500));
    }
}
