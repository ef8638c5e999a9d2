//! State as a changelog holds it after compaction: that of a few accounts is made by the stages
//! themselves, the others are copies under other names.

#![allow(dead_code, reason = "each bench uses a part")]

use std::collections::BTreeMap;

use flopwatch::config::Config;
use flopwatch::detector::Stage;
use flopwatch::detector::account::Account;
use flopwatch::detector::dedup::{Dedup, Identity};
use flopwatch::detector::event::Record;
use flopwatch::detector::group::Group;
use flopwatch::detector::internal::{AccountSum, UsagePacker};
use flopwatch::detector::measure::Measure;
use flopwatch::detector::names::Names;
use flopwatch::detector::outbox::{Outbox, Output};
use flopwatch::detector::time::{Span, Timestamp};
use flopwatch::detector::window::Place;

pub(crate) const START: Timestamp = Timestamp(1_767_225_600_000_000_000);

/// The account that is copied.
const NAME: &str = "acct-000000000";

pub(crate) type Changes = Vec<(Vec<u8>, Vec<u8>)>;

/// Accounts that differ: copies of one lie further apart than lz4 looks back.
const VARIANTS: u64 = 64;

/// Records of accounts, and of the owners that they are to themselves.
pub(crate) struct Templates(Vec<Template>);

struct Template {
    account: Changes,
    owner: Changes,
}

pub(crate) fn name(number: u64) -> String {
    format!("acct-{number:09}")
}

pub(crate) fn stage() -> Account {
    let config = Config::from_text("bench", "").expect("the defaults are valid");
    Account::new(config.rules, config.policies, 0, 1)
}

impl Templates {
    /// Accounts that used about 64 H100s all the time, on one region, fabric and accelerator.
    pub(crate) fn new(days: u64) -> Self {
        Self((0..VARIANTS).map(|variant| Template::new(days, variant)).collect())
    }

    /// The records of account `number` on ACCOUNT's changelog.
    pub(crate) fn account(&self, number: u64) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        copies(&self.of(number).account, number)
    }

    /// And those of its owner on GROUP's.
    pub(crate) fn owner(&self, number: u64) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        copies(&self.of(number).owner, number)
    }

    fn of(&self, number: u64) -> &Template {
        let variant = usize::try_from(number % VARIANTS).expect("few variants");
        &self.0[variant]
    }
}

impl Template {
    fn new(days: u64, variant: u64) -> Self {
        let config = Config::from_text("bench", "").expect("the defaults are valid");
        let mut account = stage();
        let mut group = Group::new(config.rules, config.policies);
        let mut names = Names::default();
        let place = Place {
            region: names.intern("eu-west-1"),
            fabric: names.intern("pod-17"),
            accelerator: names.intern("nvidia-h100-sxm"),
        };
        let id = names.intern(NAME);
        let (mut accounts, mut groups) = (Kept::default(), Kept::default());
        let mut forwarded = 0;
        for hour in 0..days * 24 {
            let tag = START.plus(Span::hours(hour));
            let slice_end = tag.plus(Span::hours(1));
            let measure = measure(hour * VARIANTS + variant);
            let mut packer = UsagePacker::new(0, 1, 0);
            packer.add(&names, &AccountSum { account: id, tag, slice_end, place, measure });
            let value = packer.finish(Some(slice_end), false).pop().expect("one record");
            for value in accounts.feed(&mut account, hour, &value) {
                groups.feed(&mut group, forwarded, &value);
                forwarded += 1;
            }
        }
        Self { account: accounts.named(), owner: groups.named() }
    }
}

/// An hour of about 64 accelerators: no two hours are alike.
fn measure(number: u64) -> Measure {
    let noise = i128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40);
    let accelerator_ms = 64 * 3_600_000 - noise / 10;
    Measure {
        accelerator_ms,
        flop: accelerator_ms * 326_470 + noise,
        flop_allocated: accelerator_ms * 989_400,
        flop_theoretical: accelerator_ms * 1_978_900,
    }
}

/// What compaction leaves.
#[derive(Default)]
struct Kept(BTreeMap<Vec<u8>, Option<Vec<u8>>>);

impl Kept {
    /// One record, committed at once; what it sends on.
    fn feed(&mut self, stage: &mut dyn Stage, offset: u64, value: &[u8]) -> Vec<Vec<u8>> {
        let value = Some(value);
        let record = Record { offset, timestamp: None, key: None, value, headers: &[] };
        let mut outbox = Outbox::default();
        stage.process(&record, &mut outbox).expect("own record");
        stage.seal(&mut outbox);
        let mut forwarded = Vec::new();
        for output in outbox.outputs {
            match output {
                Output::Change { key, value } => drop(self.0.insert(key, value)),
                Output::Forward { value, .. } => forwarded.push(value),
                Output::Alert(_) | Output::DeadLetter(_) => {}
            }
        }
        forwarded
    }

    /// The records of the account that is copied, without the alignment and its country.
    fn named(self) -> Changes {
        let kept = self.0.into_iter().filter_map(|(key, value)| Some((key, value?)));
        kept.filter(|(key, _)| key.ends_with(NAME.as_bytes())).collect()
    }
}

/// Names are of one length: they are written over in keys and values.
fn copies(template: &Changes, number: u64) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let name = name(number);
    template.iter().map(move |(key, value)| {
        let mut copy = (key.clone(), value.clone());
        rename(&mut copy.0, &name);
        rename(&mut copy.1, &name);
        copy
    })
}

fn rename(bytes: &mut [u8], name: &str) {
    let mut at = 0;
    while let Some(found) = bytes.get(at..at + NAME.len()) {
        if found == NAME.as_bytes() {
            bytes[at..at + NAME.len()].copy_from_slice(name.as_bytes());
            at += NAME.len();
        } else {
            at += 1;
        }
    }
}

/// Identities of the horizon before `end`, as the changelog holds them after compaction, by
/// bucket and block.
pub(crate) fn identities(count: u64, end: Timestamp) -> BTreeMap<(u64, u32), Vec<u8>> {
    let horizon = Span::hours(2);
    let mut live = Dedup::new(horizon);
    let mut kept = BTreeMap::new();
    let step = horizon.0 / count;
    let start = end.minus(horizon);
    for number in 0..count {
        let time = start.plus(Span(number * step));
        live.insert(Identity::new("meter", number.to_string()), time);
        if number % 20_000 == 0 {
            live.log(time, |change| {
                kept.insert((change.bucket, change.block), change.value);
            });
        }
    }
    kept.into_iter().filter_map(|(block, value)| Some((block, value?))).collect()
}
