//! Processes that come and go over the log. A process owns whole partition numbers: METER, ACCOUNT
//! and GROUP of the same number, as the range assignor gives them out.

use std::collections::BTreeMap;
use std::sync::Arc;

use flopwatch::detector::Stage;
use flopwatch::detector::account::Account;
use flopwatch::detector::alert::Sum;
use flopwatch::detector::cloudevent;
use flopwatch::detector::event::Record;
use flopwatch::detector::group::Group;
use flopwatch::detector::meter::Meter;
use flopwatch::detector::outbox::{Outbox, Output};
use flopwatch::detector::time::Timestamp;
use flopwatch::replay::LedgerRow;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Result;
use super::log::{Log, Topic, TopicPartition, Transaction};
use super::world::World;

/// A mistake planted to prove that the suite sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    SkipChangelogWrite,
    CommitPositionsFirst,
    DropIdentitiesOnRestore,
    ForgetStateOnRestore,
}

impl Fault {
    pub(crate) const ALL: [Self; 4] = [
        Self::SkipChangelogWrite,
        Self::CommitPositionsFirst,
        Self::DropIdentitiesOnRestore,
        Self::ForgetStateOnRestore,
    ];
}

enum Machine {
    Meter(Box<Meter>),
    Account(Box<Account>),
    Group(Box<Group>),
}

impl Machine {
    fn stage(&mut self) -> &mut dyn Stage {
        match self {
            Self::Meter(meter) => meter.as_mut(),
            Self::Account(account) => account.as_mut(),
            Self::Group(group) => group.as_mut(),
        }
    }
}

/// One assigned partition of one stage.
struct Task {
    machine: Machine,
    input: TopicPartition,
    next: u64,
    outbox: Outbox,
}

struct Process {
    /// Raised by every rebalance of the group; a commit under an old one is fenced.
    generation: u64,
    tasks: Vec<Task>,
}

pub(crate) struct Cluster<'a> {
    world: &'a World,
    log: Log,
    generation: u64,
    processes: BTreeMap<u32, Process>,
    next_process: u32,
    /// Usage appended so far, by partition.
    appended: Vec<usize>,
    planted: Option<Fault>,
}

impl<'a> Cluster<'a> {
    pub(crate) fn new(world: &'a World, planted: Option<Fault>) -> Self {
        Self {
            world,
            log: Log::default(),
            generation: 0,
            processes: BTreeMap::new(),
            next_process: 0,
            appended: vec![0; world.usage.len()],
            planted,
        }
    }

    /// Faults at random until all usage is on the log and some steps after.
    pub(crate) fn run(&mut self, random: &mut ChaCha8Rng) {
        self.rebalance(random, 1);
        let mut rest = 40;
        while rest > 0 {
            if self.append_usage(random) {
                rest -= 1;
            }
            match random.random_range(0..100) {
                0..70 => self.poll(random),
                70..88 => self.commit(random),
                88..91 => self.crash(random),
                91..94 => {
                    let count = random.random_range(1..=3);
                    self.rebalance(random, count);
                }
                94..97 => self.compact(random),
                _ => self.abort(random),
            }
        }
    }

    /// Undisturbed to the end, then every watermark to infinity as in a replay.
    pub(crate) fn finish(mut self) -> Result {
        let mut random = <ChaCha8Rng as rand::SeedableRng>::seed_from_u64(0);
        while !self.append_usage(&mut random) {}
        self.generation += 1;
        self.processes.clear();
        let partitions = self.partitions();
        let tasks = (0..partitions).flat_map(|partition| self.restore(partition)).collect();
        let mut process = Process { generation: self.generation, tasks };
        self.drain(&mut process);
        let last = process.tasks.iter().filter_map(|task| match &task.machine {
            Machine::Meter(meter) => meter.stream_time(),
            Machine::Account(_) | Machine::Group(_) => None,
        });
        if let Some(last) = last.max() {
            self.close(&mut process, last);
        }
        self.result(&process)
    }

    /// ACCOUNT to its end, then GROUP over all that ACCOUNT sent.
    fn close(&mut self, process: &mut Process, last: Timestamp) {
        for task in &mut process.tasks {
            match &mut task.machine {
                Machine::Account(account) => account.finish(last, &mut task.outbox),
                Machine::Group(group) => group.end_at(last),
                Machine::Meter(_) => {}
            }
        }
        self.drain(process);
        for task in &mut process.tasks {
            if let Machine::Group(group) = &mut task.machine {
                group.finish(last, &mut task.outbox).expect("sound sums");
            }
        }
        self.publish(process);
    }

    /// Polls and commits until nothing is left to read.
    fn drain(&mut self, process: &mut Process) {
        loop {
            self.publish(process);
            let read: usize =
                process.tasks.iter_mut().map(|task| read(&self.log, task, usize::MAX)).sum();
            if read == 0 {
                break;
            }
        }
    }

    fn result(&self, process: &Process) -> Result {
        let mut result = Result::default();
        for entry in self.log.all((Topic::Alerts, 0)) {
            let id = String::from_utf8(entry.key).expect("ids are text");
            let text = String::from_utf8(entry.value.expect("no tombstones")).expect("text");
            assert!(result.alerts.insert(id, text).is_none(), "an alert was published twice");
        }
        for partition in 0..self.partitions() {
            for entry in self.log.all((Topic::DeadLetters, partition)) {
                let offset = u64::from_be_bytes(entry.key.try_into().expect("an offset"));
                let value = entry.value.expect("no tombstones");
                let reason = flopwatch::detector::invalid::Reason::ALL
                    .into_iter()
                    .find(|reason| reason.name().as_bytes() == value);
                let reason = reason.expect("a reason").name();
                let known = result.dead_letters.insert((partition, offset), reason);
                assert!(known.is_none(), "a dead letter was written twice");
            }
        }
        for task in &process.tasks {
            match &task.machine {
                Machine::Meter(_) => {}
                Machine::Account(account) => {
                    for (key, end, sum) in account.ledger() {
                        result.ledger.push(row("account", key, end, Sum::of(&sum)));
                    }
                }
                Machine::Group(group) => {
                    for (scope, key, end, sum) in group.ledger() {
                        result.ledger.push(row(scope.name(), key, end, Sum::of(&sum)));
                    }
                }
            }
        }
        result.ledger.retain(|row| row.sum != Sum::default());
        result.ledger.sort_by(|a, b| (a.scope, &a.key, a.end).cmp(&(b.scope, &b.key, b.end)));
        result
    }

    fn partitions(&self) -> u32 {
        u32::try_from(self.world.usage.len()).expect("few partitions")
    }

    /// Some more usage arrives; true when none is left.
    fn append_usage(&mut self, random: &mut ChaCha8Rng) -> bool {
        let partition = random.random_range(0..self.world.usage.len());
        let from = self.appended[partition];
        let events = &self.world.usage[partition];
        let until = events.len().min(from + random.random_range(0..12));
        for event in &events[from..until] {
            let at = (Topic::Usage, u32::try_from(partition).expect("few partitions"));
            self.log.append(at, event.clone());
        }
        self.appended[partition] = until;
        self.appended.iter().zip(&self.world.usage).all(|(appended, all)| *appended == all.len())
    }

    fn poll(&mut self, random: &mut ChaCha8Rng) {
        let count = random.random_range(1..20);
        let Some(process) = self.some_process(random) else { return };
        if process.tasks.is_empty() {
            return;
        }
        let chosen = random.random_range(0..process.tasks.len());
        let mut process = self.take(process_id(&self.processes, random));
        let chosen = chosen % process.1.tasks.len().max(1);
        if let Some(task) = process.1.tasks.get_mut(chosen) {
            read(&self.log, task, count);
        }
        self.processes.insert(process.0, process.1);
    }

    fn commit(&mut self, random: &mut ChaCha8Rng) {
        let (id, mut process) = self.take(process_id(&self.processes, random));
        if process.generation == self.generation {
            self.publish(&mut process);
            self.processes.insert(id, process);
        } else {
            // a zombie: fenced, its tasks are gone
            let transaction = self.transaction(&mut process);
            self.log.abort(transaction);
        }
        if self.processes.is_empty() {
            self.rebalance(random, 1);
        }
    }

    /// The transaction fails: everything since the last commit is dropped, tasks are restored.
    fn abort(&mut self, random: &mut ChaCha8Rng) {
        let (_, mut process) = self.take(process_id(&self.processes, random));
        let transaction = self.transaction(&mut process);
        self.log.abort(transaction);
        self.rebalance(random, 1);
    }

    fn crash(&mut self, random: &mut ChaCha8Rng) {
        let (_, process) = self.take(process_id(&self.processes, random));
        drop(process);
        self.rebalance(random, 1);
    }

    fn compact(&mut self, random: &mut ChaCha8Rng) {
        for topic in [Topic::MeterState, Topic::AccountState, Topic::GroupState] {
            for partition in 0..self.partitions() {
                self.log.compact((topic, partition), random.random_bool(0.5));
            }
        }
    }

    /// A new generation of `count` processes; processes of the old one live on as zombies.
    fn rebalance(&mut self, random: &mut ChaCha8Rng, count: u32) {
        self.generation += 1;
        if random.random_bool(0.5) {
            self.processes.clear();
        }
        let first = self.next_process;
        self.next_process += count;
        for number in 0..count {
            let mine = (0..self.partitions()).filter(|partition| partition % count == number);
            let tasks = mine.flat_map(|partition| self.restore(partition)).collect();
            let process = Process { generation: self.generation, tasks };
            self.processes.insert(first + number, process);
        }
    }

    fn restore(&self, partition: u32) -> [Task; 3] {
        let world = self.world;
        let (rules, policies) = (&world.rules, &world.policies);
        let count = self.partitions();
        let meter = Meter::new(Arc::clone(rules), partition, count, count);
        let account = Account::new(Arc::clone(rules), Arc::clone(policies), partition, count);
        let group = Group::new(Arc::clone(rules), Arc::clone(policies));
        [
            (Machine::Group(Box::new(group)), Topic::GroupUsage),
            (Machine::Account(Box::new(account)), Topic::AccountUsage),
            (Machine::Meter(Box::new(meter)), Topic::Usage),
        ]
        .map(|(machine, topic)| self.restore_task(machine, (topic, partition)))
    }

    fn restore_task(&self, mut machine: Machine, input: TopicPartition) -> Task {
        let next = self.log.position(input);
        let entries = self.log.all((state_of(input.0), input.1));
        let forget = self.planted == Some(Fault::ForgetStateOnRestore);
        for entry in entries {
            // a METER key of more than the partition holds identities
            let identities = input.0 == Topic::Usage && entry.key.len() > 4;
            let drop = identities && self.planted == Some(Fault::DropIdentitiesOnRestore);
            let forgotten = forget && input.0 == Topic::AccountUsage;
            if !(drop || forgotten) {
                let value = entry.value.as_deref();
                machine.stage().restore(&entry.key, value).expect("own state");
            }
        }
        if let Machine::Account(account) = &mut machine {
            for record in &self.world.directory {
                account.directory(record);
            }
            account.directory_complete();
        }
        Task { machine, input, next, outbox: Outbox::default() }
    }

    fn publish(&mut self, process: &mut Process) {
        let mut transaction = self.transaction(process);
        match self.planted {
            Some(Fault::SkipChangelogWrite) => {
                let first =
                    transaction.records.iter().position(|(at, _, _)| at.0 == Topic::AccountState);
                first.map(|index| transaction.records.remove(index));
            }
            Some(Fault::CommitPositionsFirst) => {
                let positions = std::mem::take(&mut transaction.positions);
                self.log.commit(Transaction { positions, ..Transaction::default() });
                if transaction.records.len() % 5 == 4 {
                    // the crash that a commit outside the transaction does not survive
                    self.log.abort(transaction);
                    return;
                }
            }
            Some(Fault::DropIdentitiesOnRestore | Fault::ForgetStateOnRestore) | None => {}
        }
        self.log.commit(transaction);
    }

    /// Everything that a process wants to publish.
    fn transaction(&self, process: &mut Process) -> Transaction {
        let mut transaction = Transaction::default();
        for task in &mut process.tasks {
            task.machine.stage().seal(&mut task.outbox);
            let (topic, partition) = task.input;
            for output in std::mem::take(&mut task.outbox.outputs) {
                let (at, key, value) = match output {
                    Output::Forward { partition, value } => {
                        let first = topic == Topic::Usage;
                        let downstream =
                            if first { Topic::AccountUsage } else { Topic::GroupUsage };
                        ((downstream, partition), Vec::new(), Some(value))
                    }
                    Output::Change { key, value } => ((state_of(topic), partition), key, value),
                    Output::Alert(alert) => {
                        let id = format!("{}/{}", alert.alert_id, alert.revision);
                        let value = cloudevent::structured(&alert).value;
                        ((Topic::Alerts, 0), id.into_bytes(), Some(value))
                    }
                    Output::DeadLetter(letter) => {
                        let reason = letter.invalid.reason.name().as_bytes().to_vec();
                        let key = letter.offset.to_be_bytes().to_vec();
                        ((Topic::DeadLetters, partition), key, Some(reason))
                    }
                };
                transaction.records.push((at, key, value));
            }
            if let Some(position) = task.machine.stage().position() {
                transaction.positions.push((task.input, position));
            }
        }
        transaction
    }

    fn some_process(&self, random: &mut ChaCha8Rng) -> Option<&Process> {
        self.processes.get(&process_id(&self.processes, random))
    }

    fn take(&mut self, id: u32) -> (u32, Process) {
        (id, self.processes.remove(&id).expect("a live process was chosen"))
    }
}

fn process_id(processes: &BTreeMap<u32, Process>, random: &mut ChaCha8Rng) -> u32 {
    let chosen = random.random_range(0..processes.len());
    *processes.keys().nth(chosen).expect("chosen among the live")
}

/// Feeds a task up to `count` records; how many there were.
fn read(log: &Log, task: &mut Task, count: usize) -> usize {
    let entries = log.read(task.input, task.next, count);
    for entry in &entries {
        let record = Record {
            offset: entry.offset,
            timestamp: None,
            key: None,
            value: entry.value.as_deref(),
            headers: &[],
        };
        task.machine.stage().process(&record, &mut task.outbox).expect("own records");
        task.next = entry.offset + 1;
    }
    entries.len()
}

fn state_of(topic: Topic) -> Topic {
    match topic {
        Topic::Usage => Topic::MeterState,
        Topic::AccountUsage => Topic::AccountState,
        Topic::GroupUsage => Topic::GroupState,
        Topic::Alerts
        | Topic::DeadLetters
        | Topic::MeterState
        | Topic::AccountState
        | Topic::GroupState => unreachable!("no stage reads {topic:?}"),
    }
}

fn row(scope: &'static str, key: &str, end: Timestamp, sum: Sum) -> LedgerRow {
    LedgerRow { scope, key: key.to_owned(), end, sum }
}
