//! The three stages over a log of their own, commit by commit; made new, or restored.

use std::collections::BTreeMap;
use std::sync::Arc;

use flopwatch::detector::account::Account;
use flopwatch::detector::alert::Alert;
use flopwatch::detector::event::Record;
use flopwatch::detector::group::Group;
use flopwatch::detector::measure::Measure;
use flopwatch::detector::meter::Meter;
use flopwatch::detector::outbox::{Outbox, Output, Tally};
use flopwatch::detector::time::Timestamp;
use flopwatch::detector::{Stage, StageError};

use super::fixture::{Entry, Fixture};
use super::world::{self, Arrival};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    AccountUsage,
    GroupUsage,
    MeterState,
    AccountState,
    GroupState,
}

impl Topic {
    pub(crate) const ALL: [Self; 5] = [
        Self::AccountUsage,
        Self::GroupUsage,
        Self::MeterState,
        Self::AccountState,
        Self::GroupState,
    ];
    pub(crate) const CHANGELOGS: [Self; 3] =
        [Self::MeterState, Self::AccountState, Self::GroupState];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::AccountUsage => "account-usage",
            Self::GroupUsage => "group-usage",
            Self::MeterState => "meter-state",
            Self::AccountState => "account-state",
            Self::GroupState => "group-state",
        }
    }
}

/// The positions of both METERs, of ACCOUNT and of GROUP after a commit.
pub(crate) type Positions = [Option<u64>; 4];

pub(crate) struct Pipeline {
    meters: [Meter; 2],
    account: Account,
    group: Group,
    pub(crate) log: BTreeMap<Topic, Vec<Entry>>,
    /// With the commit that published each.
    pub(crate) alerts: Vec<(usize, Alert)>,
    /// After each commit since the start or the restore.
    pub(crate) positions: Vec<Positions>,
    /// The next to read.
    next: Positions,
    commits: usize,
}

impl Pipeline {
    pub(crate) fn new() -> Self {
        let (rules, policies) = (world::rules(), world::policies());
        Self {
            meters: [0, 1].map(|partition| Meter::new(Arc::clone(&rules), partition, 2, 1)),
            account: Account::new(Arc::clone(&rules), Arc::clone(&policies), 0, 1),
            group: Group::new(rules, policies),
            log: Topic::ALL.into_iter().map(|topic| (topic, Vec::new())).collect(),
            alerts: Vec::new(),
            positions: Vec::new(),
            next: [None; 4],
            commits: 0,
        }
    }

    /// From what `fixture` holds up to commit `cut`, and the directory that had been read by then.
    pub(crate) fn restored(fixture: &Fixture, cut: usize, arrivals: &[Arrival]) -> Self {
        let mut pipeline = Self { commits: cut, ..Self::new() };
        for topic in Topic::ALL {
            let upto = fixture.entries(topic).iter().filter(|entry| entry.commit <= cut);
            pipeline.log.insert(topic, upto.cloned().collect());
        }
        for topic in Topic::CHANGELOGS {
            for Entry { key, value, .. } in pipeline.log[&topic].clone() {
                pipeline.restore(topic, &key, value.as_deref()).expect("a format that we read");
            }
        }
        for record in arrivals[..cut].iter().flat_map(|arrival| &arrival.directory) {
            pipeline.account.directory(record);
        }
        pipeline.next = fixture.positions[cut - 1];
        pipeline.follow();
        pipeline
    }

    /// Takes one changelog record. Both METERs read the one changelog, as a worker's tasks do.
    pub(crate) fn restore(
        &mut self,
        topic: Topic,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), StageError> {
        match topic {
            Topic::MeterState => {
                self.meters.iter_mut().try_for_each(|meter| meter.restore(key, value))
            }
            Topic::AccountState => self.account.restore(key, value),
            Topic::GroupState => self.group.restore(key, value),
            Topic::AccountUsage | Topic::GroupUsage => unreachable!("no changelog"),
        }
    }

    /// Everything that arrived goes through METER, ACCOUNT and GROUP, and each commits.
    pub(crate) fn commit(&mut self, arrival: &Arrival) {
        self.commits += 1;
        for record in &arrival.directory {
            self.account.directory(record);
        }
        for target in 0..self.meters.len() {
            let mut outbox = Outbox::default();
            for (_, value) in arrival.records().filter(|(partition, _)| *partition == target) {
                self.meter(target, value, &mut outbox);
            }
            if target == 1 && arrival.second_is_idle {
                self.meters[target].go_idle();
            }
            self.meters[target].seal(&mut outbox);
            self.publish(outbox, Topic::AccountUsage, Topic::MeterState);
        }
        self.follow();
        let committed = [
            self.next[0],
            self.next[1],
            self.account.position().or(self.next[2]),
            self.group.position().or(self.next[3]),
        ];
        self.positions.push(committed);
    }

    /// ACCOUNT and GROUP read what waits for them.
    fn follow(&mut self) {
        let mut outbox = Outbox::default();
        let waiting = self.waiting(Topic::AccountUsage, 2);
        for (offset, value) in waiting {
            self.account.process(&record(offset, &value), &mut outbox).expect("own records");
        }
        self.account.seal(&mut outbox);
        self.publish(outbox, Topic::GroupUsage, Topic::AccountState);

        let mut outbox = Outbox::default();
        let waiting = self.waiting(Topic::GroupUsage, 3);
        for (offset, value) in waiting {
            self.group.process(&record(offset, &value), &mut outbox).expect("own records");
        }
        self.group.seal(&mut outbox);
        // GROUP forwards nothing: its topic of outputs is never used
        self.publish(outbox, Topic::GroupUsage, Topic::GroupState);
    }

    fn waiting(&mut self, topic: Topic, reader: usize) -> Vec<(u64, Vec<u8>)> {
        let from = self.next[reader].unwrap_or_default();
        let records = (0..).zip(&self.log[&topic]).skip_while(|(offset, _)| *offset < from);
        let value = |entry: &Entry| entry.value.clone().expect("internal records have values");
        let waiting: Vec<_> = records.map(|(offset, entry)| (offset, value(entry))).collect();
        self.next[reader] = Some(self.log[&topic].len() as u64);
        waiting
    }

    fn publish(&mut self, outbox: Outbox, forward: Topic, changelog: Topic) {
        let commit = self.commits;
        let mut append = |topic: Topic, key, value| {
            self.log.entry(topic).or_default().push(Entry { commit, key, value });
        };
        for output in outbox.outputs {
            match output {
                Output::Forward { value, .. } => append(forward, Vec::new(), Some(value)),
                Output::Change { key, value } => append(changelog, key, value),
                Output::Alert(alert) => self.alerts.push((commit, *alert)),
                Output::DeadLetter(_) => {}
            }
        }
    }

    /// Every retained slice of the finest tier.
    pub(crate) fn ledger(&self) -> BTreeMap<(&str, &str, Timestamp), Measure> {
        let accounts = self.account.ledger().map(|(key, end, sum)| (("account", key, end), sum));
        let groups =
            self.group.ledger().map(|(scope, key, end, sum)| ((scope.name(), key, end), sum));
        accounts.chain(groups).collect()
    }

    pub(crate) fn watermarks(&self) -> [Option<Timestamp>; 4] {
        let [first, second] = &self.meters;
        [first.watermark(), second.watermark(), self.account.watermark(), self.group.watermark()]
    }

    /// The producers send everything once more: what METER makes of it.
    pub(crate) fn send_again(&mut self, arrivals: &[Arrival]) -> Tally {
        let mut outbox = Outbox::default();
        for arrival in arrivals {
            for (partition, value) in arrival.records() {
                self.meter(partition, value, &mut outbox);
            }
        }
        outbox.tally
    }

    fn meter(&mut self, partition: usize, value: &[u8], outbox: &mut Outbox) {
        let offset = self.next[partition].unwrap_or_default();
        self.meters[partition].process(&record(offset, value), outbox).expect("no flood");
        self.next[partition] = Some(offset + 1);
    }
}

fn record(offset: u64, value: &[u8]) -> Record<'_> {
    Record { offset, timestamp: None, key: None, value: Some(value), headers: &[] }
}
