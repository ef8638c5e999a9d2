//! One thread: one consumer, one transactional producer, and the tasks of its partitions, by value.
//!
//! A round polls the group's events, takes what the process was told (directory, policies), reads
//! one batch from each task, GROUP before ACCOUNT before METER, and commits when it is due. What
//! happens to the assignment or to a commit drops every task and restores: there is no undo.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::batch::Batch;
use super::client;
use super::context::{Consumer, ConsumerEvents, RebalanceEvent, TopicPartition};
use super::directory::{Directory, Told};
use super::restore::{self, Restored};
use super::task::{Shared, Task, Trouble};
use super::topology;
use super::transaction::Publisher;
use super::undecided::{self, Marks};
use crate::detector::alert::State;
use crate::detector::outbox::Output;
use crate::detector::policy::Policies;
use crate::error::Fatal;
use crate::http::health::{Health, Phase};
use crate::metrics::{self, Abort, Rebalance, Stage};

/// How long a round waits for an event when no partition had a record: bounds the latency that
/// waiting adds to each of the three stages.
const PAUSE: Duration = Duration::from_millis(5);

/// The commit interval while catching up: a commit costs milliseconds, whatever it holds.
const CATCH_UP_INTERVAL: Duration = Duration::from_secs(1);

/// Outputs that force a commit, so that a flood of dead letters has a bound.
const OUTBOX_LIMIT: usize = 100_000;

/// Waits between two tries of a broken world double from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long leaving the group may take.
const LEAVE: Duration = Duration::from_secs(5);

/// librdkafka sends its farewell once the fetchers have stopped, and not when it is being closed
/// already: it is given this long.
const FAREWELL: Duration = Duration::from_millis(300);

/// Everything a worker is given.
pub(crate) struct Inlets {
    pub(crate) shared: Arc<Shared>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) new_policies: Receiver<Arc<Policies>>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) told: Receiver<Told>,
    pub(crate) health: Arc<Health>,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) accept_gap: bool,
}

pub(crate) struct Worker {
    number: usize,
    inlets: Inlets,
    consumer: Arc<Consumer>,
    rebalances: Receiver<RebalanceEvent>,
    /// Rebalances not yet acted upon.
    events: VecDeque<RebalanceEvent>,
    prober: Consumer,
    publisher: Publisher,
    batch: Batch,
    /// The directory record last taken from the channel.
    through: u64,
    known_partitions: u32,
    /// What the group gave; `None` while it has given nothing.
    assigned: Option<Vec<TopicPartition>>,
    /// GROUP before ACCOUNT before METER. Empty while `assigned` waits to be restored.
    tasks: Vec<Task>,
    running: bool,
    last_commit: Instant,
    /// A full batch was read since the last commit.
    catching_up: bool,
    failures: u32,
    /// Since when a transaction that nobody ends has kept it from running.
    undecided: Option<Instant>,
    /// Where our topics ended at the last look, which it took then.
    looked: (Instant, Option<Marks>),
}

impl Worker {
    pub(crate) fn new(number: usize, inlets: Inlets) -> Result<Self, Fatal> {
        let (events, rebalances) = ConsumerEvents::of_worker(number);
        let kafka = &inlets.shared.config.kafka;
        Ok(Self {
            number,
            consumer: Arc::new(client::worker_consumer(kafka, number, events)?),
            prober: client::prober(kafka)?,
            publisher: Publisher::new(number),
            known_partitions: inlets.shared.usage_partitions(),
            inlets,
            rebalances,
            events: VecDeque::new(),
            batch: Batch::new(client::BATCH),
            through: 0,
            assigned: None,
            tasks: Vec::new(),
            running: false,
            last_commit: Instant::now(),
            catching_up: false,
            failures: 0,
            undecided: None,
            looked: (Instant::now(), None),
        })
    }

    /// Works until told to stop; then drains, commits and leaves the group.
    pub(crate) fn run(&mut self) -> Result<(), Fatal> {
        // no partition is held before the directory is known: no task could step
        if !self.await_directory()? {
            return Ok(());
        }
        let config = Arc::clone(&self.inlets.shared.config);
        let topics = Stage::ALL.map(|stage| topology::input(&config, stage));
        self.consumer
            .subscribe(&topics)
            .map_err(|error| Fatal::Broker(format!("subscribing to {topics:?}: {error}")))?;
        let mut pause = Duration::ZERO;
        while !self.is_stopping() {
            match self.round(pause) {
                Ok(0) => pause = PAUSE,
                Ok(_) => pause = Duration::ZERO,
                Err(trouble) => self.recover(trouble)?,
            }
        }
        self.leave();
        Ok(())
    }

    fn is_stopping(&self) -> bool {
        self.inlets.stop.load(Ordering::Acquire)
    }

    /// False when the process stops before the directory is read.
    fn await_directory(&mut self) -> Result<bool, Fatal> {
        while !self.is_stopping() {
            match self.inlets.told.recv_timeout(Duration::from_millis(100)) {
                Ok(Told::Read { through }) => {
                    self.through = through;
                    return Ok(true);
                }
                Ok(Told::Record(_)) => {
                    return Err(Fatal::Internal("a directory record before its end".into()));
                }
                Err(RecvTimeoutError::Timeout) => {}
                // the reader has failed and says why
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// One round; returns how many records it read.
    fn round(&mut self, pause: Duration) -> Result<usize, Trouble> {
        self.serve(pause)?;
        while let Some(event) = self.events.pop_front() {
            self.rebalance(event)?;
        }
        if self.assigned.is_some() && !self.running {
            self.open()?;
        }
        if !self.running {
            return Ok(0);
        }
        self.look()?;
        self.listen();
        let records = self.read()?;
        if self.is_commit_due(records) {
            self.commit()?;
        }
        Ok(records)
    }

    /// Lets librdkafka call back, and takes what it said.
    fn serve(&mut self, pause: Duration) -> Result<(), Trouble> {
        match self.consumer.poll(pause) {
            None => {}
            Some(Err(error)) => self.client_error(&error)?,
            Some(Ok(_record)) => {
                let text = "a record on the main queue: every partition has a queue of its own";
                return Err(Trouble::Fatal(Fatal::Internal(text.into())));
            }
        }
        self.events.extend(self.rebalances.try_iter());
        Ok(())
    }

    fn client_error(&self, error: &KafkaError) -> Result<(), Trouble> {
        if let Some((code, reason)) = self.consumer.client().fatal_error() {
            let name = client::worker_name(&self.inlets.shared.config.kafka, self.number);
            return Err(Trouble::Fatal(if code == RDKafkaErrorCode::FencedInstanceId {
                Fatal::Fenced(format!(
                    "the group has given the name {name:?} to another member: two processes must \
                     not share a kafka.instance; if there is no other, an answer of the broker was \
                     lost on its way and the next start mends it"
                ))
            } else {
                Fatal::Broker(format!("the consumer {name:?} cannot go on: {reason}"))
            }));
        }
        let code = topology::code(error);
        if matches!(
            code,
            RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::InvalidSessionTimeout
                | RDKafkaErrorCode::InconsistentGroupProtocol
        ) {
            let group = &self.inlets.shared.config.kafka.group_id;
            return Err(Trouble::Fatal(Fatal::Broker(format!("group {group:?}: {error}"))));
        }
        if matches!(
            code,
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic
        ) && let Some(topic) = self.missing_input()
        {
            return Err(Trouble::Fatal(Fatal::Broker(format!(
                "topic {topic:?} is gone: restore it, or see `flopwatch topics`"
            ))));
        }
        // connections come and go; librdkafka mends them
        tracing::warn!(worker = self.number, %error, "consumer");
        Ok(())
    }

    /// A topic that we read and that the broker does not know: the error does not name it, and a
    /// broker that is just coming back may have said so too early.
    fn missing_input(&self) -> Option<String> {
        let config = &self.inlets.shared.config;
        let mut inputs = Stage::ALL.into_iter().map(|stage| topology::input(config, stage));
        let is_gone = |topic: &&str| matches!(topology::partitions(&self.prober, topic), Ok(None));
        inputs.find(is_gone).map(str::to_owned)
    }

    fn rebalance(&mut self, event: RebalanceEvent) -> Result<(), Trouble> {
        match event {
            RebalanceEvent::Assigned(partitions) => {
                tracing::info!(worker = self.number, partitions = partitions.len(), "assigned");
                metrics::rebalanced(Rebalance::Assigned);
                self.drop_tasks();
                self.assigned = Some(partitions);
                return Ok(());
            }
            RebalanceEvent::Revoked { lost } => {
                tracing::info!(worker = self.number, lost, "revoked");
                metrics::rebalanced(if lost { Rebalance::Lost } else { Rebalance::Revoked });
                // the group still counts us in: what was read need not be read again
                if self.running
                    && !lost
                    && let Err(trouble) = self.commit()
                {
                    self.note(&trouble);
                }
            }
            RebalanceEvent::Failed(code) => {
                tracing::warn!(worker = self.number, %code, "rebalance failed");
            }
        }
        self.drop_tasks();
        self.assigned = None;
        self.inlets.health.worker(self.number, Phase::Joining);
        self.consumer
            .unassign()
            .map_err(|error| Trouble::Passing(format!("giving partitions back: {error}")))
    }

    fn drop_tasks(&mut self) {
        self.tasks.clear();
        self.running = false;
        self.catching_up = false;
    }

    /// From an assignment to running tasks.
    fn open(&mut self) -> Result<(), Trouble> {
        let shared = Arc::clone(&self.inlets.shared);
        self.publisher.open(&shared.config)?;
        if self.failures > 0 && !self.settle()? {
            return Ok(());
        }
        self.take_told();
        self.take_policies();
        let mut tasks = self.create(&shared)?;
        let (consumer, prober) = (&self.consumer, &self.prober);
        let (events, rebalances) = (&mut self.events, &self.rebalances);
        let (health, stop, number) = (&self.inlets.health, &self.inlets.stop, self.number);
        let mut interrupted = || {
            // an error here comes back in the next round
            drop(consumer.poll(Duration::ZERO));
            events.extend(rebalances.try_iter());
            !events.is_empty() || stop.load(Ordering::Acquire)
        };
        let accept_gap = self.inlets.accept_gap;
        let mut restored =
            restore::position(&mut tasks, consumer, prober, accept_gap, &mut interrupted)?;
        if restored == Restored::Complete {
            restored = restore::restore(&mut tasks, &shared, consumer, prober, |remaining| {
                health.worker(number, Phase::Restoring { remaining });
                interrupted()
            })?;
        }
        if restored == Restored::Interrupted {
            return Ok(());
        }
        let mut assignment = TopicPartitionList::with_capacity(tasks.len());
        for task in &mut tasks {
            task.forget(&mut self.batch);
            restore::add(&mut assignment, &task.topic, task.partition, task.start())?;
        }
        self.consumer
            .assign(&assignment)
            .map_err(|error| Trouble::Passing(format!("taking partitions: {error}")))?;
        self.known_partitions = shared.usage_partitions();
        for task in &mut tasks {
            task.begin();
            task.set_partitions(self.known_partitions);
            self.inlets.directory.each(self.through, |record| task.directory(record));
            task.directory_complete();
        }
        self.tasks = tasks;
        self.running = true;
        self.undecided = None;
        self.last_commit = Instant::now();
        self.inlets.health.worker(self.number, Phase::Running);
        tracing::info!(worker = self.number, tasks = self.tasks.len(), "running");
        Ok(())
    }

    /// After trouble: waits until all that stands in our topics is decided, ours by the producer
    /// just opened. False when there is something else to do.
    fn settle(&mut self) -> Result<bool, Trouble> {
        let marks = Marks::take(&self.prober, &self.inlets.shared)?;
        let until = Instant::now() + undecided::STABLE;
        while let Some(open) = marks.open(&self.consumer)? {
            if Instant::now() >= until {
                return Err(Trouble::Undecided(open));
            }
            self.serve(Duration::from_millis(50))?;
            if !self.events.is_empty() || self.is_stopping() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Now and then while running: whether what our topics held at the last look is decided.
    fn look(&mut self) -> Result<(), Trouble> {
        if self.looked.0.elapsed() < undecided::LOOK {
            return Ok(());
        }
        let before = self.looked.1.take();
        let open = before.map_or(Ok(None), |marks| marks.open(&self.consumer));
        self.looked = (Instant::now(), None);
        match open {
            Ok(Some(open)) => return Err(Trouble::Undecided(open)),
            Ok(None) => self.looked.1 = Marks::take(&self.prober, &self.inlets.shared).ok(),
            // a broker that does not answer shows elsewhere
            Err(trouble) => tracing::debug!(worker = self.number, ?trouble, "no look"),
        }
        Ok(())
    }

    fn create(&self, shared: &Shared) -> Result<Vec<Task>, Fatal> {
        let assigned = self.assigned.as_deref().expect("opened after an assignment");
        let mut tasks = Vec::with_capacity(assigned.len());
        for partition in assigned {
            let stage = Stage::ALL
                .into_iter()
                .find(|&stage| topology::input(&shared.config, stage) == partition.topic)
                .ok_or_else(|| {
                    Fatal::Internal(format!("assigned {:?}, which nobody reads", partition.topic))
                })?;
            if stage == Stage::Meter {
                shared.saw_usage_partitions(partition.partition + 1);
            }
            let policies = &self.inlets.policies;
            tasks.push(Task::new(partition, stage, &self.consumer, shared, policies));
        }
        tasks.sort_by_key(|task| (Reverse(task.stage), task.partition));
        Ok(tasks)
    }

    /// Takes what the process was told since the last round.
    fn listen(&mut self) {
        self.take_told();
        self.take_policies();
        let partitions = self.inlets.shared.usage_partitions();
        if partitions != self.known_partitions {
            self.known_partitions = partitions;
            self.tasks.iter_mut().for_each(|task| task.set_partitions(partitions));
        }
    }

    fn take_told(&mut self) {
        for told in self.inlets.told.try_iter() {
            match told {
                Told::Read { through } => self.through = through,
                Told::Record(numbered) => {
                    self.through = numbered.number;
                    for task in &mut self.tasks {
                        task.directory(&numbered.record);
                    }
                }
            }
        }
    }

    fn take_policies(&mut self) {
        let Some(policies) = self.inlets.new_policies.try_iter().last() else { return };
        self.tasks.iter_mut().for_each(|task| task.set_policies(&policies));
        self.inlets.policies = policies;
    }

    /// One batch from each task, a stage only when those after it have none waiting.
    fn read(&mut self) -> Result<usize, Trouble> {
        let accounts = self.tasks.iter().filter(|task| task.stage == Stage::Account);
        let slowest = accounts.map(Task::watermark).min();
        let max_skew = self.inlets.shared.config.max_skew;
        let timeout = self.inlets.shared.config.idle_timeout;
        let mut records = 0;
        let mut waiting = None;
        for task in &mut self.tasks {
            task.hold_back(slowest, max_skew);
            if task.is_paused() || waiting.is_some_and(|stage| stage != task.stage) {
                // whatever waits there is not silence
                task.pass_over();
                continue;
            }
            let (read, more) = task.read(&mut self.batch)?;
            records += read;
            if more {
                waiting = Some(task.stage);
                self.catching_up = true;
            }
            if task.is_silent(timeout) {
                task.rest(&self.prober);
            }
        }
        Ok(records)
    }

    /// At once when subscribers wait for it, else by time; while catching up by a longer time, but
    /// at once when METER stands still until ACCOUNT has seen what this commit holds.
    fn is_commit_due(&self, records: usize) -> bool {
        if !self.tasks.iter().any(Task::is_touched) {
            return false;
        }
        let interval = self.inlets.shared.config.kafka.commit_interval;
        let since = self.last_commit.elapsed();
        let outputs: usize = self.tasks.iter().map(|task| task.outbox.outputs.len()).sum();
        if outputs >= OUTBOX_LIMIT {
            return true;
        }
        if self.catching_up {
            let held_back = records == 0 && self.tasks.iter().any(Task::is_paused);
            return held_back || since >= interval.max(CATCH_UP_INTERVAL);
        }
        since >= interval || self.tasks.iter().any(Task::is_urgent)
    }

    /// Everything since the last commit, in one transaction.
    fn commit(&mut self) -> Result<(), Trouble> {
        let began = Instant::now();
        let mut positions = TopicPartitionList::new();
        let mut outputs = 0;
        for task in &mut self.tasks {
            task.seal();
            outputs += task.outbox.outputs.len();
            if let Some(position) = task.due_position() {
                restore::add(&mut positions, &task.topic, task.partition, position)?;
            }
        }
        if outputs > 0 || positions.count() > 0 {
            let group = self.consumer.group_metadata().expect("the consumer has a group");
            self.publisher.commit(&self.tasks, &positions, &group, &self.inlets.shared)?;
            metrics::committed(self.number, began.elapsed());
        }
        for task in &mut self.tasks {
            metrics::record(&std::mem::take(&mut task.outbox.tally));
            let mut moved = false;
            for output in &task.outbox.outputs {
                if let Output::Alert(alert) = output {
                    metrics::alert_published(alert);
                    moved |= alert.state != State::Updated;
                }
            }
            if moved {
                task.show_firing();
            }
            task.committed();
        }
        self.failures = 0;
        self.catching_up = false;
        self.last_commit = Instant::now();
        Ok(())
    }

    fn note(&self, trouble: &Trouble) {
        match trouble {
            Trouble::Passing(detail) => tracing::warn!(worker = self.number, detail, "trouble"),
            Trouble::Undecided(detail) => {
                let seconds = self.undecided.map_or(0, |since| since.elapsed().as_secs());
                let worker = self.number;
                tracing::error!(worker, detail, seconds, "a transaction does not end");
            }
            Trouble::Aborted { cause, detail } => {
                metrics::aborted(*cause);
                tracing::warn!(worker = self.number, cause = cause.name(), detail, "aborted");
            }
            Trouble::Fatal(fatal) => tracing::error!(worker = self.number, %fatal, "fatal"),
        }
    }

    /// Drops every task; the next round restores them, after a growing pause.
    fn recover(&mut self, trouble: Trouble) -> Result<(), Fatal> {
        if let Trouble::Fatal(fatal) = trouble {
            return Err(fatal);
        }
        if let Trouble::Undecided(detail) = &trouble {
            let since = *self.undecided.get_or_insert_with(Instant::now);
            if since.elapsed() >= undecided::LIMIT {
                return Err(undecided::fatal(detail));
            }
        }
        self.note(&trouble);
        self.drop_tasks();
        self.inlets.health.worker(self.number, Phase::Joining);
        // whoever has our transactional id joins the group under our name as well: the coordinator
        // tells us within a session, and we must not fence them back before
        let fenced = matches!(trouble, Trouble::Aborted { cause: Abort::Fenced, .. });
        let doubled = BACKOFF.0 * 2_u32.saturating_pow(self.failures.min(10));
        let wait = if fenced { client::SESSION_TIMEOUT } else { doubled.min(BACKOFF.1) };
        self.failures = self.failures.saturating_add(1);
        let until = Instant::now() + wait;
        while Instant::now() < until && self.events.is_empty() && !self.is_stopping() {
            match self.serve(Duration::from_millis(50)) {
                Ok(()) => {}
                Err(Trouble::Fatal(fatal)) => return Err(fatal),
                Err(again) => self.note(&again),
            }
        }
        Ok(())
    }

    /// Commits what is read and leaves the group, so that the others take over at once. Closing
    /// alone would not do: a static member that closes keeps its partitions for a session, which
    /// is what a crash does.
    fn leave(&mut self) {
        if self.running
            && let Err(trouble) = self.commit()
        {
            self.note(&trouble);
        }
        self.drop_tasks();
        self.consumer.unsubscribe();
        let mut until = Instant::now() + LEAVE;
        let mut left = self.assigned.take().is_none();
        if left {
            until = Instant::now() + FAREWELL;
        }
        while Instant::now() < until {
            if let Err(trouble) = self.serve(Duration::from_millis(20)) {
                self.note(&trouble);
            }
            // whatever the group says now, the answer is the same
            while self.events.pop_front().is_some() {
                if let Err(error) = self.consumer.unassign() {
                    tracing::warn!(worker = self.number, %error, "giving partitions back");
                }
                if !left {
                    left = true;
                    until = Instant::now() + FAREWELL;
                }
            }
        }
        tracing::info!(worker = self.number, "left the group");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // queues hold the consumer: tasks go first, and nobody is left to answer the group
        self.tasks.clear();
        self.consumer.context().close();
        if let Err(error) = self.consumer.unassign() {
            tracing::debug!(worker = self.number, %error, "giving partitions back");
        }
    }
}
