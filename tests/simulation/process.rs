//! A process: the tasks of some partition numbers, and the directory as far as it has read it.

use std::sync::Arc;

use flopwatch::detector::Stage;
use flopwatch::detector::account::Account;
use flopwatch::detector::cloudevent;
use flopwatch::detector::directory::AccountRecord;
use flopwatch::detector::event::Record;
use flopwatch::detector::group::Group;
use flopwatch::detector::meter::Meter;
use flopwatch::detector::outbox::{Outbox, Output};

use super::cluster::Fault;
use super::log::{Log, Topic, TopicPartition, Transaction};
use super::world::World;

/// Where the directory lies.
pub(crate) const ACCOUNTS: TopicPartition = (Topic::Accounts, 0);

pub(crate) enum Machine {
    Meter(Box<Meter>),
    Account(Box<Account>),
    Group(Box<Group>),
}

impl Machine {
    pub(crate) fn stage(&mut self) -> &mut dyn Stage {
        match self {
            Self::Meter(meter) => meter.as_mut(),
            Self::Account(account) => account.as_mut(),
            Self::Group(group) => group.as_mut(),
        }
    }
}

/// One assigned partition of one stage.
pub(crate) struct Task {
    pub(crate) machine: Machine,
    pub(crate) input: TopicPartition,
    next: u64,
    pub(crate) outbox: Outbox,
}

impl Task {
    /// Feeds up to `count` records; how many there were.
    pub(crate) fn read(&mut self, log: &Log, count: usize) -> usize {
        let entries = log.read(self.input, self.next, count);
        for entry in &entries {
            let record = Record {
                offset: entry.offset,
                timestamp: None,
                key: None,
                value: entry.value.as_deref(),
                headers: &[],
            };
            self.machine.stage().process(&record, &mut self.outbox).expect("own records");
            self.next = entry.offset + 1;
            let tally = &self.outbox.tally;
            // I-1, after every record
            assert_eq!(tally.read, tally.counted + tally.duplicate + tally.dead_letter_total());
        }
        entries.len()
    }

    fn directory(&mut self, record: &AccountRecord) {
        if let Machine::Account(account) = &mut self.machine {
            account.directory(record);
        }
    }
}

/// The directory as one process knows it: every record that it has read, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    records: Vec<AccountRecord>,
    next: u64,
}

impl Table {
    pub(crate) fn is_new(&self) -> bool {
        self.next == 0
    }

    /// Reads on to the end; what was new.
    pub(crate) fn read(&mut self, log: &Log, known: &[AccountRecord]) -> &[AccountRecord] {
        let from = self.records.len();
        for entry in log.read(ACCOUNTS, self.next, usize::MAX) {
            self.records.push(record_of(&entry.key, entry.value.as_deref(), known));
            self.next = entry.offset + 1;
        }
        &self.records[from..]
    }
}

/// A directory record as the log holds it: the value is its number.
pub(crate) fn entry_of(number: usize, record: &AccountRecord) -> (Vec<u8>, Option<Vec<u8>>) {
    let value = record.entry.is_some().then(|| number.to_be_bytes().to_vec());
    (record.account_id.as_bytes().to_vec(), value)
}

fn record_of(key: &[u8], value: Option<&[u8]>, known: &[AccountRecord]) -> AccountRecord {
    match value {
        Some(value) => known[usize::from_be_bytes(value.try_into().expect("a number"))].clone(),
        None => {
            let account_id = String::from_utf8(key.to_vec()).expect("ids are text");
            AccountRecord { account_id, entry: None }
        }
    }
}

pub(crate) struct Process {
    /// Raised by every rebalance of the group; a commit under an old one is fenced.
    pub(crate) generation: u64,
    pub(crate) tasks: Vec<Task>,
    pub(crate) table: Table,
}

impl Process {
    /// Takes in what the directory has had since.
    pub(crate) fn listen(&mut self, log: &Log, known: &[AccountRecord]) {
        for record in self.table.read(log, known) {
            self.tasks.iter_mut().for_each(|task| task.directory(record));
        }
    }

    /// Everything that it wants to publish.
    pub(crate) fn transaction(&mut self, partitions: u32) -> Transaction {
        let mut transaction = Transaction::default();
        for task in &mut self.tasks {
            task.machine.stage().seal(&mut task.outbox);
            let outputs = std::mem::take(&mut task.outbox.outputs);
            transaction
                .records
                .extend(outputs.into_iter().map(|output| addressed(output, task, partitions)));
            if let Some(position) = task.machine.stage().position() {
                transaction.positions.push((task.input, position));
            }
        }
        transaction
    }
}

/// Where an output goes, under which key.
fn addressed(
    output: Output,
    task: &Task,
    partitions: u32,
) -> (TopicPartition, Vec<u8>, Option<Vec<u8>>) {
    let (topic, partition) = task.input;
    match output {
        Output::Forward { partition, value } => {
            let first = topic == Topic::Usage;
            let downstream = if first { Topic::AccountUsage } else { Topic::GroupUsage };
            ((downstream, partition), Vec::new(), Some(value))
        }
        Output::Change { key, value } => ((state_of(topic), partition % partitions), key, value),
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
    }
}

/// Restores tasks from the log, as a process does after an assignment.
pub(crate) struct Restore<'a> {
    pub(crate) world: &'a World,
    pub(crate) log: &'a Log,
    /// Usage partitions that exist.
    pub(crate) usage: u32,
    pub(crate) planted: Option<Fault>,
}

impl Restore<'_> {
    /// METER, ACCOUNT and GROUP of the same number, the last two as far as there are any.
    pub(crate) fn tasks(&self, partition: u32, table: &Table) -> Vec<Task> {
        let world = self.world;
        let (rules, policies) = (&world.rules, &world.policies);
        let targets = world.partitions;
        let mut tasks = Vec::new();
        if partition < targets {
            let group = Group::new(Arc::clone(rules), Arc::clone(policies));
            let account = Account::new(Arc::clone(rules), Arc::clone(policies), partition, targets);
            tasks.push((Machine::Group(Box::new(group)), Topic::GroupUsage));
            tasks.push((Machine::Account(Box::new(account)), Topic::AccountUsage));
        }
        let meter = Meter::new(Arc::clone(rules), partition, self.usage, targets);
        tasks.push((Machine::Meter(Box::new(meter)), Topic::Usage));
        let task = |(machine, topic)| self.task(machine, (topic, partition), table);
        tasks.into_iter().map(task).collect()
    }

    fn task(&self, mut machine: Machine, input: TopicPartition, table: &Table) -> Task {
        let next = self.log.position(input);
        let changelog = (state_of(input.0), input.1 % self.world.partitions);
        let forget = self.planted == Some(Fault::ForgetStateOnRestore);
        for entry in self.log.all(changelog) {
            // a METER key of more than the partition holds identities
            let identities = input.0 == Topic::Usage && entry.key.len() > 4;
            let drop = identities && self.planted == Some(Fault::DropIdentitiesOnRestore);
            let forgotten = forget && input.0 == Topic::AccountUsage;
            if !(drop || forgotten) {
                let value = entry.value.as_deref();
                machine.stage().restore(&entry.key, value).expect("own state");
            }
        }
        let mut task = Task { machine, input, next, outbox: Outbox::default() };
        let lost = usize::from(self.planted == Some(Fault::LoseDirectoryRecordOnRestore));
        let told = table.records.len().saturating_sub(lost);
        table.records[..told].iter().for_each(|record| task.directory(record));
        if let Machine::Account(account) = &mut task.machine
            && self.planted != Some(Fault::KeepAccountsThatAreGone)
        {
            account.directory_complete();
        }
        task
    }
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
        | Topic::GroupState
        | Topic::Accounts => unreachable!("no stage reads {topic:?}"),
    }
}
