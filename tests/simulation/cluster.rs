//! Processes that come and go over the log. A process owns whole partition numbers: METER, ACCOUNT
//! and GROUP of the same number, as the range assignor gives them out.

use std::collections::BTreeMap;

use flopwatch::detector::alert::Sum;
use flopwatch::detector::directory::AccountRecord;
use flopwatch::detector::time::Timestamp;
use flopwatch::replay::LedgerRow;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Result;
use super::log::{Log, Topic, Transaction};
use super::process::{ACCOUNTS, Machine, Process, Restore, Table, Task, entry_of};
use super::world::{Reading, World};

/// A mistake planted to prove that the suite sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    SkipChangelogWrite,
    CommitPositionsFirst,
    DropIdentitiesOnRestore,
    ForgetStateOnRestore,
    /// A record that came while a task was restored reaches nobody.
    LoseDirectoryRecordOnRestore,
    /// Accounts that a compacted directory no longer names stay.
    KeepAccountsThatAreGone,
    /// What ACCOUNT moves between groups is lost now and then.
    DropMove,
    /// A restore ends at the last stable offset: what is decided and not yet told is left out.
    EndAtLastStableOffset,
}

impl Fault {
    pub(crate) const ALL: [Self; 8] = [
        Self::SkipChangelogWrite,
        Self::CommitPositionsFirst,
        Self::DropIdentitiesOnRestore,
        Self::ForgetStateOnRestore,
        Self::LoseDirectoryRecordOnRestore,
        Self::KeepAccountsThatAreGone,
        Self::DropMove,
        Self::EndAtLastStableOffset,
    ];
}

/// What a cluster came to: what it published and holds, and the world as it was in the end, with
/// what producers sent again.
pub(crate) struct Outcome {
    pub(crate) result: Result,
    pub(crate) world: World,
    pub(crate) log: Log,
}

pub(crate) struct Cluster {
    world: World,
    /// The directory's records by number.
    known: Vec<AccountRecord>,
    log: Log,
    generation: u64,
    processes: BTreeMap<u32, Process>,
    next_process: u32,
    /// The phase under way, and usage and directory appended of it so far.
    phase: usize,
    appended: Vec<usize>,
    announced: usize,
    /// Directory records appended in all.
    told: usize,
    planted: Option<Fault>,
}

impl Cluster {
    pub(crate) fn new(world: World, planted: Option<Fault>) -> Self {
        let known = world.directory();
        Self {
            appended: vec![0; world.phases[0].usage.len()],
            world,
            known,
            log: Log::default(),
            generation: 0,
            processes: BTreeMap::new(),
            next_process: 0,
            phase: 0,
            announced: 0,
            told: 0,
            planted,
        }
    }

    /// Faults at random in every phase until all of it is on the log and some steps after.
    pub(crate) fn run(mut self, random: &mut ChaCha8Rng) -> Outcome {
        for phase in 0..self.world.phases.len() {
            self.begin(phase, random);
            let last = phase + 1 == self.world.phases.len();
            let mut rest = if last { 40 } else { 5 };
            while rest > 0 {
                if self.append(random) {
                    rest -= 1;
                }
                self.act(random);
            }
            if !last {
                self.settle();
            }
        }
        self.finish()
    }

    /// One process that nothing happens to.
    pub(crate) fn run_undisturbed(mut self) -> Outcome {
        let mut random = <ChaCha8Rng as rand::SeedableRng>::seed_from_u64(0);
        for phase in 0..self.world.phases.len() {
            self.begin(phase, &mut random);
            while !self.append(&mut random) {}
            self.listen_all();
            self.settle();
        }
        self.finish()
    }

    fn act(&mut self, random: &mut ChaCha8Rng) {
        match random.random_range(0..100) {
            0..65 => self.poll(random),
            65..70 => self.listen(random),
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

    /// The directory of the phase is there, unless it comes at any time; what usage has grown by
    /// is heard of before the others go on.
    fn begin(&mut self, phase: usize, random: &mut ChaCha8Rng) {
        let before = self.usage_partitions();
        self.phase = phase;
        self.appended = vec![0; self.world.phases[phase].usage.len()];
        self.announced = 0;
        if self.world.reading != Reading::AnyTime {
            while self.announce() {}
        }
        if phase == 0 || self.usage_partitions() > before {
            self.rebalance(random, 1);
        }
        if self.world.reading != Reading::AnyTime {
            self.listen_all();
        }
        for partition in before..self.usage_partitions() {
            self.append_usage(partition as usize, 1);
            self.settle();
        }
    }

    /// Undisturbed to the end, then every watermark to infinity as in a replay.
    fn finish(mut self) -> Outcome {
        self.generation += 1;
        self.processes.clear();
        let mut process = self.process(Table::default(), |_| true);
        process.listen(&self.log, &self.known);
        self.drain(&mut process);
        let last = process.tasks.iter().filter_map(|task| match &task.machine {
            Machine::Meter(meter) => meter.stream_time(),
            Machine::Account(_) | Machine::Group(_) => None,
        });
        if let Some(last) = last.max() {
            self.close(&mut process, last);
        }
        let result = self.result(&process);
        Outcome { result, world: self.world, log: self.log }
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
                process.tasks.iter_mut().map(|task| task.read(&self.log, usize::MAX)).sum();
            if read == 0 {
                break;
            }
        }
    }

    /// The processes of the present generation until nothing waits; zombies stay as they are.
    fn settle(&mut self) {
        loop {
            let mut read = 0;
            for (id, mut process) in std::mem::take(&mut self.processes) {
                if process.generation == self.generation {
                    self.publish(&mut process);
                    let tasks = process.tasks.iter_mut();
                    read += tasks.map(|task| task.read(&self.log, usize::MAX)).sum::<usize>();
                }
                self.processes.insert(id, process);
            }
            if read == 0 {
                return;
            }
        }
    }

    fn usage_partitions(&self) -> u32 {
        u32::try_from(self.appended.len()).expect("few partitions")
    }

    /// Some more of the phase arrives; true when nothing is left of it.
    fn append(&mut self, random: &mut ChaCha8Rng) -> bool {
        let partition = random.random_range(0..self.appended.len());
        self.append_usage(partition, random.random_range(0..12));
        let mut all_told = self.announced == self.world.phases[self.phase].directory.len();
        if !all_told && random.random_bool(0.3) {
            all_told = !self.announce();
        }
        let usage = &self.world.phases[self.phase].usage;
        let all_sent = self.appended.iter().zip(usage).all(|(sent, all)| *sent == all.len());
        all_sent && all_told
    }

    fn append_usage(&mut self, partition: usize, count: usize) {
        let from = self.appended[partition];
        let events = &self.world.phases[self.phase].usage[partition];
        let until = events.len().min(from + count);
        for event in &events[from..until] {
            let at = (Topic::Usage, u32::try_from(partition).expect("few partitions"));
            self.log.append(at, Vec::new(), Some(event.clone()));
        }
        self.appended[partition] = until;
    }

    /// The next record of the phase's directory is written; false when there was none.
    fn announce(&mut self) -> bool {
        let Some(record) = self.world.phases[self.phase].directory.get(self.announced) else {
            return false;
        };
        let (key, value) = entry_of(self.told, record);
        self.log.append(ACCOUNTS, key, value);
        self.announced += 1;
        self.told += 1;
        true
    }

    /// A producer that saw no answer sends its last records again.
    fn send_again(&mut self, random: &mut ChaCha8Rng) {
        let partition = random.random_range(0..self.appended.len());
        let at = self.appended[partition];
        let events = &mut self.world.phases[self.phase].usage[partition];
        // a partition that has ended may have been declared idle: it does not return
        if at < events.len() {
            let again = events[at.saturating_sub(random.random_range(1..6))..at].to_vec();
            events.splice(at..at, again);
        }
    }

    fn poll(&mut self, random: &mut ChaCha8Rng) {
        let count = random.random_range(1..20);
        let (id, mut process) = self.take(random);
        let chosen = random.random_range(0..process.tasks.len().max(1));
        if let Some(task) = process.tasks.get_mut(chosen) {
            let lags = task.input.1 == self.world.lagging && random.random_bool(0.8);
            let read = if lags { 1 } else { task.read(&self.log, count) };
            if read == 0
                && self.has_ended(task.input.1)
                && random.random_bool(0.3)
                && let Machine::Meter(meter) = &mut task.machine
            {
                meter.go_idle();
            }
        }
        self.processes.insert(id, process);
    }

    /// No usage will ever come there again.
    fn has_ended(&self, partition: u32) -> bool {
        let last = self.phase + 1 == self.world.phases.len();
        let usage = &self.world.phases[self.phase].usage;
        let partition = partition as usize;
        last && self.appended.get(partition) == usage.get(partition).map(Vec::len).as_ref()
    }

    /// A process takes in what the directory has had since.
    fn listen(&mut self, random: &mut ChaCha8Rng) {
        let (id, mut process) = self.take(random);
        process.listen(&self.log, &self.known);
        self.processes.insert(id, process);
    }

    fn listen_all(&mut self) {
        for process in self.processes.values_mut() {
            process.listen(&self.log, &self.known);
        }
    }

    fn commit(&mut self, random: &mut ChaCha8Rng) {
        let (id, mut process) = self.take(random);
        if process.generation == self.generation {
            self.publish(&mut process);
            self.processes.insert(id, process);
        } else {
            // a zombie: fenced, its tasks are gone
            let transaction = process.transaction(self.world.partitions);
            self.log.abort(transaction);
        }
        if self.processes.is_empty() {
            self.rebalance(random, 1);
        }
    }

    /// The transaction fails: everything since the last commit is dropped, tasks are restored.
    fn abort(&mut self, random: &mut ChaCha8Rng) {
        let (_, mut process) = self.take(random);
        let transaction = process.transaction(self.world.partitions);
        self.log.abort(transaction);
        self.rebalance(random, 1);
    }

    fn crash(&mut self, random: &mut ChaCha8Rng) {
        let (_, mut process) = self.take(random);
        if process.generation == self.generation && random.random_bool(0.4) {
            // its last commit is decided, and it does not live to hear so
            let transaction = process.transaction(self.world.partitions);
            self.log.commit_in_flight(transaction);
        }
        drop(process);
        if random.random_bool(0.5) {
            self.send_again(random);
        }
        self.rebalance(random, 1);
    }

    fn compact(&mut self, random: &mut ChaCha8Rng) {
        self.log.await_ends();
        for topic in [Topic::MeterState, Topic::AccountState, Topic::GroupState] {
            for partition in 0..self.world.partitions {
                self.log.compact((topic, partition), random.random_bool(0.5));
            }
        }
        if self.world.reading == Reading::AnyTime {
            self.log.compact(ACCOUNTS, random.random_bool(0.5));
        }
    }

    /// A new generation of `count` processes; processes of the old one live on as zombies. One
    /// that lost its tasks and joins again knows the directory as far as it had read it.
    fn rebalance(&mut self, random: &mut ChaCha8Rng, count: u32) {
        self.generation += 1;
        let tables: Vec<Table> =
            self.processes.values().map(|process| process.table.clone()).collect();
        if random.random_bool(0.5) {
            self.processes.clear();
        }
        let first = self.next_process;
        self.next_process += count;
        for number in 0..count {
            let is_old = !tables.is_empty() && random.random_bool(0.5);
            let table = if is_old {
                tables[random.random_range(0..tables.len())].clone()
            } else {
                Table::default()
            };
            let process = self.process(table, |partition| partition % count == number);
            self.processes.insert(first + number, process);
        }
    }

    /// A process of the present generation; a new one has read the directory to its end.
    fn process(&mut self, mut table: Table, mine: impl Fn(u32) -> bool) -> Process {
        // the positions are known by now: a restore reads to the end as `read_uncommitted` has it
        if self.planted != Some(Fault::EndAtLastStableOffset) {
            self.log.await_ends();
        }
        if table.is_new() {
            table.read(&self.log, &self.known);
        }
        let Self { world, log, .. } = &*self;
        let restore = Restore { world, log, usage: self.usage_partitions(), planted: self.planted };
        let mine = (0..self.usage_partitions()).filter(|partition| mine(*partition));
        let tasks = mine.flat_map(|partition| restore.tasks(partition, &table)).collect();
        Process { generation: self.generation, tasks, table }
    }

    fn publish(&mut self, process: &mut Process) {
        self.log.await_ends();
        let mut transaction = process.transaction(self.world.partitions);
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
            Some(Fault::DropMove) => transaction.records.retain(|(at, _, value)| {
                let is_move = value.as_deref().is_some_and(moves);
                at.0 != Topic::GroupUsage || !is_move
            }),
            Some(
                Fault::DropIdentitiesOnRestore
                | Fault::ForgetStateOnRestore
                | Fault::LoseDirectoryRecordOnRestore
                | Fault::KeepAccountsThatAreGone
                | Fault::EndAtLastStableOffset,
            )
            | None => {}
        }
        self.log.commit(transaction);
    }

    fn take(&mut self, random: &mut ChaCha8Rng) -> (u32, Process) {
        let chosen = random.random_range(0..self.processes.len());
        let id = *self.processes.keys().nth(chosen).expect("chosen among the live");
        (id, self.processes.remove(&id).expect("a live process was chosen"))
    }
}

/// Whether a group-usage record moves slices from one group to another.
fn moves(value: &[u8]) -> bool {
    let record = <flopwatch::proto::GroupUsage as prost::Message>::decode(value);
    record.expect("own record").sums.iter().any(|sum| sum.tier > 0)
}

/// What is published and what is held in the end.
impl Cluster {
    fn result(&self, process: &Process) -> Result {
        let mut result = Result::default();
        for entry in self.log.all((Topic::Alerts, 0)) {
            let id = String::from_utf8(entry.key).expect("ids are text");
            let text = String::from_utf8(entry.value.expect("no tombstones")).expect("text");
            assert!(result.alerts.insert(id, text).is_none(), "an alert was published twice");
        }
        for partition in 0..self.usage_partitions() {
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
        process.tasks.iter().for_each(|task| hold(task, &mut result));
        result.ledger.retain(|row| row.sum != Sum::default());
        result.ledger.sort_by(|a, b| (a.scope, &a.key, a.end).cmp(&(b.scope, &b.key, b.end)));
        result
    }
}

/// Adds the slices and members that a task holds.
fn hold(task: &Task, result: &mut Result) {
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
            for (scope, key, members) in group.members().filter(|(_, _, members)| *members > 0) {
                result.members.insert((scope.name(), key.to_owned()), members);
            }
        }
    }
}

fn row(scope: &'static str, key: &str, end: Timestamp, sum: Sum) -> LedgerRow {
    LedgerRow { scope, key: key.to_owned(), end, sum }
}
