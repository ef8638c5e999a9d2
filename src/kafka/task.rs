//! One assigned partition of one stage and its state: Created -> Restoring -> Running -> Closed.
//!
//! A worker owns its tasks by value. A task is created without state, restored from its changelog
//! before its first record, fed records while it runs, and closed by being dropped: on revocation,
//! after a failed commit, at the end. There is no way back and no undo: what was not committed is
//! read again by the next task of that partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::batch::{Batch, PartitionQueue, Polled};
use super::context::{Consumer, TopicPartition};
use super::{restore, topology};
use crate::config::Config;
use crate::detector::account::Account;
use crate::detector::directory::AccountRecord;
use crate::detector::group::Group;
use crate::detector::meter::Meter;
use crate::detector::outbox::Outbox;
use crate::detector::policy::Policies;
use crate::detector::time::{Span, Timestamp};
use crate::detector::{Stage as _, StageError};
use crate::error::Fatal;
use crate::metrics::{Abort, PartitionSeries, Stage};
use rdkafka::error::RDKafkaErrorCode;

/// How long the broker may take to confirm a partition's end before it is declared idle.
const IS_IDLE: Duration = Duration::from_secs(2);

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
    Fatal(Fatal),
}

impl From<Fatal> for Trouble {
    fn from(fatal: Fatal) -> Self {
        Self::Fatal(fatal)
    }
}

pub(crate) struct Task {
    pub(crate) stage: Stage,
    pub(crate) partition: u32,
    pub(crate) topic: String,
    pub(crate) machine: Machine,
    pub(crate) outbox: Outbox,
    pub(crate) series: PartitionSeries,
    queue: PartitionQueue,
    /// Where reading started: what is committed while the stage has no position of its own, so
    /// that state never stands in a changelog without a position beside it.
    start: u64,
    /// What the group has committed for the partition.
    committed: Option<u64>,
    /// Where the partition ended when the reader last stood at its end; `None` away from it.
    end: Option<u64>,
    /// The last record, or the last reason not to count silence.
    heard: Instant,
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
        Self {
            stage,
            partition,
            topic: assigned.topic.clone(),
            machine: Machine::new(stage, partition, shared, policies),
            outbox: Outbox::default(),
            series: PartitionSeries::new(stage, partition),
            queue: PartitionQueue::new(consumer, &assigned.topic, partition),
            start: 0,
            committed: None,
            end: None,
            heard: Instant::now(),
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

    /// Positioned: once restored, it will read from `start`.
    pub(crate) fn position_at(&mut self, start: u64, committed: Option<u64>) {
        self.start = start;
        self.committed = committed;
    }

    /// Running: silence counts from here, not from before the restore.
    pub(crate) fn begin(&mut self) {
        self.heard = Instant::now();
    }

    /// The group has a position for it: it has run before.
    pub(crate) const fn has_committed(&self) -> bool {
        self.committed.is_some()
    }

    pub(crate) const fn start(&self) -> u64 {
        self.start
    }

    /// Reads one batch and processes it. Returns how many records it held and whether more wait.
    pub(crate) fn read(&mut self, batch: &mut Batch) -> Result<(usize, bool), Trouble> {
        let more = batch.fill(&self.queue, Duration::ZERO);
        let mut records = 0_usize;
        let mut failure = None;
        let Self { machine, outbox, end, .. } = self;
        let stage = machine.as_stage();
        batch
            .drain(|polled| -> Result<(), StageError> {
                match polled {
                    Polled::Record(record) => {
                        records += 1;
                        *end = None;
                        stage.process(&record, outbox)?;
                    }
                    Polled::End { offset } => *end = Some(offset),
                    Polled::Failed(code) => failure = Some(code),
                }
                Ok(())
            })
            .map_err(|error| self.refused(error))?;
        if records > 0 {
            self.heard = Instant::now();
            self.touched = true;
            if self.idle {
                self.idle = false;
                self.series.idle(false);
            }
        }
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
        let Self { topic, partition, .. } = self;
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

    /// METER: its end is reached, it is not paused, and nothing came for `timeout`.
    pub(crate) fn is_silent(&self, timeout: Duration) -> bool {
        matches!(self.machine, Machine::Meter(_))
            && !self.idle
            && !self.paused
            && self.end.is_some()
            && self.heard.elapsed() >= timeout
    }

    /// METER: declares the silent partition idle, if the broker says that its end is where we
    /// stand: an unreachable broker is silent as well.
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
            Ok(_) => self.heard = Instant::now(),
            Err(trouble) => {
                tracing::debug!(topic, partition, ?trouble, "whether it is idle is unknown");
                self.heard = Instant::now();
            }
        }
    }

    /// METER: whether it is too far ahead of `slowest`, the M of an ACCOUNT task beside it.
    pub(crate) fn hold_back(&mut self, slowest: Option<Timestamp>, max_skew: Span) {
        let Machine::Meter(meter) = &self.machine else { return };
        let paused = match (meter.watermark(), slowest) {
            (Some(watermark), Some(slowest)) => watermark > slowest.plus(max_skew),
            (None, _) | (_, None) => false,
        };
        if paused != self.paused {
            // silence while paused is ours, not the partition's
            self.heard = Instant::now();
            self.paused = paused;
            self.series.paused(paused);
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

    /// The position to commit, when it differs from the committed one or outputs need one.
    pub(crate) fn due_position(&self) -> Option<u64> {
        let position = self.machine.position().unwrap_or(self.start);
        let news = self.committed.is_some() || !self.outbox.is_empty() || position != self.start;
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
            self.series.lag(end.saturating_sub(self.machine.position().unwrap_or(self.start)));
        }
    }
}
