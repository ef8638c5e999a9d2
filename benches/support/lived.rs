//! Stages with the state of many accounts, in memory: one account's state is made by the stages
//! themselves, hour by hour; the others are restored from copies of its changelog under other
//! names, which a property says is equal to having lived it.

#![allow(dead_code, reason = "each bench uses a part")]

use std::collections::BTreeMap;
use std::ops::Range;

use flopwatch::config::Config;
use flopwatch::detector::Stage;
use flopwatch::detector::account::Account;
use flopwatch::detector::alert::Alert;
use flopwatch::detector::event::Record;
use flopwatch::detector::group::Group;
use flopwatch::detector::internal::{AccountSum, UsagePacker};
use flopwatch::detector::measure::Measure;
use flopwatch::detector::names::Names;
use flopwatch::detector::outbox::{Outbox, Output};
use flopwatch::detector::time::{Span, Timestamp};
use flopwatch::detector::window::Place;

pub(crate) const START: Timestamp = Timestamp(1_767_225_600_000_000_000);
/// Sums in one pack of records.
const PACK: usize = 10_000;

/// Changelog records.
pub(crate) type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// ACCOUNT and the GROUP behind it.
pub(crate) struct Stages {
    pub(crate) account: Account,
    pub(crate) group: Group,
    offsets: [u64; 2],
}

/// What the stages said.
#[derive(Default)]
pub(crate) struct Said {
    /// Of ACCOUNT and of GROUP.
    pub(crate) changes: [Changes; 2],
    pub(crate) alerts: Vec<Alert>,
}

pub(crate) fn name(number: u64) -> String {
    format!("acct-{number:09}")
}

/// What both stages log of an account that is active in these of so many hours, compacted.
pub(crate) fn template(
    configuration: &str,
    hours: u64,
    is_active: impl Fn(u64) -> bool,
) -> [Changes; 2] {
    let mut stages = Stages::new(configuration);
    let mut kept = [BTreeMap::new(), BTreeMap::new()];
    for hour in 0..hours {
        let end = START.plus(Span::hours(hour + 1));
        let mut said = Said::default();
        if is_active(hour) {
            stages.feed(START.plus(Span::hours(hour)), end, 0..1, &mut said);
        }
        stages.advance(end, &mut said);
        for (kept, changes) in kept.iter_mut().zip(said.changes) {
            kept.extend(changes);
        }
    }
    let of_account = name(0).into_bytes();
    let templates = kept.map(|changes| {
        let live = changes.into_iter().filter(|(_, value)| value.is_some());
        live.filter(|(key, _)| key.ends_with(&of_account)).collect::<Changes>()
    });
    assert!(templates.iter().all(|changes| !changes.is_empty()), "both stages keep an account");
    templates
}

/// The same bytes about another account: names have the same length, so they may be replaced.
fn renamed(bytes: &[u8], number: u64) -> Vec<u8> {
    let (from, to) = (name(0).into_bytes(), name(number).into_bytes());
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, &from).collect();
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(&to);
    }
    bytes
}

/// Restores these accounts from a template.
pub(crate) fn restore(stage: &mut impl Stage, changes: &Changes, numbers: Range<u64>) {
    for number in numbers {
        for (key, value) in changes {
            let value = value.as_ref().map(|value| renamed(value, number));
            stage.restore(&renamed(key, number), value.as_deref()).expect("own state");
        }
    }
}

/// Packed sums of these accounts: one each, of 64 H100s for an hour.
pub(crate) fn packed(tag: Timestamp, slice_end: Timestamp, numbers: Range<u64>) -> Vec<Vec<u8>> {
    let numbers: Vec<u64> = numbers.collect();
    let mut packed = Vec::new();
    for pack in numbers.chunks(PACK) {
        let mut names = Names::default();
        let place = Place {
            region: names.intern("eu-west-1"),
            fabric: names.intern("pod-17"),
            accelerator: names.intern("nvidia-h100-sxm"),
        };
        let accounts: Vec<_> = pack.iter().map(|number| names.intern(&name(*number))).collect();
        let measure = Measure {
            accelerator_ms: 64 * 3_600_123,
            flop: 75_226_060_871,
            flop_allocated: 227_957_760_123,
            flop_theoretical: 455_938_560_321,
        };
        let mut packer = UsagePacker::new(0, 1, 0);
        for account in accounts {
            packer.add(&names, &AccountSum { account, tag, slice_end, place, measure });
        }
        packed.extend(packer.finish(Some(tag), false));
    }
    packed
}

impl Stages {
    pub(crate) fn new(configuration: &str) -> Self {
        let config = Config::from_text("bench", configuration).expect("a valid configuration");
        let (rules, policies) = (config.rules, config.policies);
        Self {
            account: Account::new(rules.clone(), policies.clone(), 0, 1),
            group: Group::new(rules, policies),
            offsets: [0, 0],
        }
    }

    /// Sums of these accounts in one slice, tagged with an epoch.
    pub(crate) fn feed(
        &mut self,
        tag: Timestamp,
        slice_end: Timestamp,
        numbers: Range<u64>,
        said: &mut Said,
    ) {
        for value in packed(tag, slice_end, numbers) {
            self.read(&value, said);
        }
    }

    /// The watermark moves on.
    pub(crate) fn advance(&mut self, watermark: Timestamp, said: &mut Said) {
        for value in UsagePacker::new(0, 1, 0).finish(Some(watermark), false) {
            self.read(&value, said);
        }
    }

    /// One record of METER's, through ACCOUNT and GROUP.
    pub(crate) fn read(&mut self, value: &[u8], said: &mut Said) {
        for forwarded in self.read_account(value, said) {
            let mut outbox = Outbox::default();
            let record = record(self.offsets[1], &forwarded);
            self.group.process(&record, &mut outbox).expect("own record");
            self.group.seal(&mut outbox);
            self.offsets[1] += 1;
            take(outbox, 1, said);
        }
    }

    /// One record of METER's through ACCOUNT alone; what it forwards is returned.
    pub(crate) fn read_account(&mut self, value: &[u8], said: &mut Said) -> Vec<Vec<u8>> {
        let mut outbox = Outbox::default();
        self.account.process(&record(self.offsets[0], value), &mut outbox).expect("own record");
        self.account.seal(&mut outbox);
        self.offsets[0] += 1;
        take(outbox, 0, said)
    }
}

fn take(outbox: Outbox, stage: usize, said: &mut Said) -> Vec<Vec<u8>> {
    let mut forwarded = Vec::new();
    for output in outbox.outputs {
        match output {
            Output::Forward { value, .. } => forwarded.push(value),
            Output::Change { key, value } => said.changes[stage].push((key, value)),
            Output::Alert(alert) => said.alerts.push(*alert),
            Output::DeadLetter(_) => {}
        }
    }
    forwarded
}

fn record(offset: u64, value: &[u8]) -> Record<'_> {
    Record { offset, timestamp: None, key: None, value: Some(value), headers: &[] }
}
