//! What ACCOUNT and GROUP cost: METER's sums from memory through both stages, changelog included.
//! CPU time of this thread, not wall time, so that a busy machine does not show.
//!
//! `cargo bench --bench stages -- [NAME=VALUE ...]`; names and defaults are in `Options`. By
//! default: 23,000 resources of 100,000 accounts (Zipf), metered every five minutes for three days.

#![expect(clippy::print_stdout, reason = "what a bench is for")]

use std::collections::BTreeMap;

use flopwatch::config::Config;
use flopwatch::detector::Stage;
use flopwatch::detector::account::Account;
use flopwatch::detector::directory::{AccountRecord, Country, Entry};
use flopwatch::detector::event::Record;
use flopwatch::detector::group::Group;
use flopwatch::detector::internal::{AccountSum, UsagePacker};
use flopwatch::detector::measure::Measure;
use flopwatch::detector::names::{NameId, Names};
use flopwatch::detector::outbox::{Outbox, Output};
use flopwatch::detector::time::{Span, Timestamp};
use flopwatch::detector::window::Place;

const START: Timestamp = Timestamp(1_767_225_600_000_000_000);
const EPOCH: Span = Span::seconds(300);
const HOUR: Span = Span::hours(1);
const INPUTS: u32 = 4;

struct Options {
    accounts: u64,
    resources: u64,
    hours: u64,
    /// Epochs between two commits: many while catching up, one otherwise.
    epochs: u64,
    /// Accelerators of a resource.
    accelerators: u64,
    /// Of every hundred hours, how many a resource is in use.
    busy: u64,
    /// Policies over `window` hours in place of the default set; 0 keeps that.
    policies: u64,
    window: u64,
    /// 1: an account has one resource; 0: Zipf.
    even: u64,
    /// Only one epoch in so many has usage.
    every: u64,
    /// 0: no changelog, as in a replay.
    changelog: u64,
    /// 0: ACCOUNT alone.
    group: u64,
}

impl Options {
    fn read() -> Self {
        let given: BTreeMap<String, u64> = std::env::args()
            .filter_map(|text| {
                let (name, value) = text.split_once('=')?;
                Some((name.to_owned(), value.parse().expect("a number")))
            })
            .collect();
        let option = |name: &str, default| given.get(name).copied().unwrap_or(default);
        Self {
            accounts: option("accounts", 100_000),
            resources: option("resources", 23_000),
            hours: option("hours", 72),
            epochs: option("epochs", 12),
            accelerators: option("accelerators", 1),
            busy: option("busy", 100),
            policies: option("policies", 0),
            window: option("window", 24),
            even: option("even", 0),
            every: option("every", 1),
            changelog: option("changelog", 1),
            group: option("group", 1),
        }
    }

    fn policies_text(&self) -> String {
        let mut text = String::new();
        let scopes = ["account", "owner", "account", "site", "country"];
        for (number, scope) in (0..self.policies).zip(scopes.iter().cycle()) {
            let metric = ["flop_high", "accelerator_hours"][usize::from(number % 2 == 0)];
            let least = if number % 2 == 0 { 1e9 } else { 1e30 };
            text += &format!(
                "[[policy]]\nid = \"p{number}\"\nversion = 1\ntitle = \"t\"\nseverity = \"info\"\n\
                 scope = \"{scope}\"\norigin = \"foreign\"\nwindow = \"{}h\"\n\
                 [[policy.all]]\nmetric = \"{metric}\"\nat_least = {least:e}\n",
                self.window
            );
        }
        text
    }
}

fn main() {
    let options = Options::read();
    let before = resident();
    let mut cloud = Cloud::new(&options);
    let mut stages = Stages::new(&options, &cloud);
    let made = resident();
    for commit in 0..options.hours * 12 / options.epochs {
        let records = cloud.commit(&options, commit * options.epochs);
        stages.run(&records);
    }
    stages.report();
    println!(
        "memory: {} MB, of which {} MB the bench's cloud and the directory; {} bytes an account \
         and, if GROUP ran, owner",
        resident() / 1_000_000,
        (made - before) / 1_000_000,
        (resident() - made) / (stages.account.accounts() as u64).max(1),
    );
}

/// Usage of every resource, summed as METER does.
struct Cloud {
    names: Names,
    resources: Vec<(NameId, Place)>,
    ids: Vec<String>,
}

impl Cloud {
    fn new(options: &Options) -> Self {
        let mut names = Names::default();
        let ids: Vec<String> =
            (0..options.accounts).map(|number| format!("acct-{number:09}")).collect();
        let accounts: Vec<NameId> = ids.iter().map(|id| names.intern(id)).collect();
        let weights: Vec<f64> = (1..=options.accounts).map(|rank| 1.0 / to_f64(rank)).collect();
        let total: f64 = weights.iter().sum();
        let (mut rank, mut below) = (0, weights[0]);
        let resources = (0..options.resources).map(|number| {
            while below * to_f64(options.resources) < to_f64(number) * total
                && rank + 1 < weights.len()
            {
                rank += 1;
                below += weights[rank];
            }
            let account =
                if options.even == 1 { usize_of(number % options.accounts) } else { rank };
            let place = Place {
                region: names.intern(["eu-west-1", "us-east-1"][account % 2]),
                fabric: names.intern(&format!("pod-{}", account % 50)),
                accelerator: names.intern("nvidia-h100-sxm"),
            };
            (accounts[account], place)
        });
        let resources = resources.collect();
        Self { names, resources, ids }
    }

    fn directory(&self) -> impl Iterator<Item = AccountRecord> {
        const COUNTRIES: [&str; 10] = ["US", "US", "US", "DE", "CN", "FR", "US", "JP", "US", "AE"];
        self.ids.iter().zip(COUNTRIES.iter().cycle()).map(|(id, country)| AccountRecord {
            account_id: id.clone(),
            entry: Some(Entry { country: Country::parse(country), ..Entry::default() }),
        })
    }

    /// METER's records of some epochs, by input.
    fn commit(&mut self, options: &Options, first: u64) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let mut sums: BTreeMap<(NameId, Timestamp, Timestamp, Place), Measure> = BTreeMap::new();
        let watermark = START.plus(Span(EPOCH.0 * (first + options.epochs)));
        for input in 0..INPUTS {
            sums.clear();
            let epochs = (first..first + options.epochs).filter(|e| e % options.every == 0);
            for epoch in epochs {
                self.epoch(options, input, epoch, &mut sums);
            }
            let mut packer = UsagePacker::new(input, INPUTS, 0);
            for (&(account, tag, slice_end, place), &measure) in &sums {
                packer.add(&self.names, &AccountSum { account, tag, slice_end, place, measure });
            }
            records.extend(packer.finish(Some(watermark), false));
        }
        records
    }

    fn epoch(
        &self,
        options: &Options,
        input: u32,
        epoch: u64,
        sums: &mut BTreeMap<(NameId, Timestamp, Timestamp, Place), Measure>,
    ) {
        let tag = START.plus(Span(EPOCH.0 * epoch));
        for (number, &(account, place)) in (0u64..).zip(&self.resources) {
            let dice = (number * 7 + epoch / 12 * 31) % 100;
            if number % u64::from(INPUTS) != u64::from(input) || dice >= options.busy {
                continue;
            }
            // an event ends somewhere in the epoch, and some began before the hour
            let end = tag.plus(Span(number * 7919 % 300_000 * 1_000_000));
            let boundary = end.floor(HOUR);
            let before = boundary.since(end.minus(EPOCH)).0.min(EPOCH.0) / 1_000_000;
            let parts = [(boundary, before), (boundary.plus(HOUR), 300_000 - before)];
            for (slice_end, ms) in parts.into_iter().filter(|(_, ms)| *ms > 0) {
                let used = i128::from(ms * options.accelerators);
                *sums.entry((account, tag, slice_end, place)).or_default() += Measure {
                    accelerator_ms: used,
                    flop: used * 326_370 + i128::from(number % 1000),
                    flop_allocated: used * 989_000,
                    flop_theoretical: used * 1_979_000,
                };
            }
        }
    }
}

struct Stages {
    account: Account,
    group: Group,
    cost: [f64; 2],
    offsets: [u64; 2],
    changes: [u64; 2],
    bytes: [u64; 2],
    sums: u64,
    judged: u64,
    alerts: u64,
    changelog: bool,
    with_group: bool,
}

impl Stages {
    fn new(options: &Options, cloud: &Cloud) -> Self {
        let config = Config::from_text("bench", &options.policies_text()).expect("valid");
        let mut account = Account::new(config.rules.clone(), config.policies.clone(), 0, 1);
        cloud.directory().for_each(|record| account.directory(&record));
        Self {
            account,
            group: Group::new(config.rules, config.policies),
            cost: [0.0; 2],
            offsets: [0; 2],
            changes: [0; 2],
            bytes: [0; 2],
            sums: 0,
            judged: 0,
            alerts: 0,
            changelog: options.changelog == 1,
            with_group: options.group == 1,
        }
    }

    fn outbox(&self) -> Outbox {
        if self.changelog { Outbox::default() } else { Outbox::without_changes() }
    }

    fn run(&mut self, records: &[Vec<u8>]) {
        let mut outbox = self.outbox();
        let began = cpu_seconds();
        for value in records {
            feed(&mut self.account, &mut self.offsets[0], value, &mut outbox);
        }
        self.account.seal(&mut outbox);
        self.cost[0] += cpu_seconds() - began;
        self.sums += outbox.tally.sums;
        let forwards = self.count(0, outbox);
        if !self.with_group {
            return;
        }
        let mut outbox = self.outbox();
        let began = cpu_seconds();
        for value in &forwards {
            feed(&mut self.group, &mut self.offsets[1], value, &mut outbox);
        }
        self.group.seal(&mut outbox);
        self.cost[1] += cpu_seconds() - began;
        self.count(1, outbox);
    }

    fn count(&mut self, stage: usize, outbox: Outbox) -> Vec<Vec<u8>> {
        self.judged += outbox.tally.judged;
        let mut forwards = Vec::new();
        for output in outbox.outputs {
            match output {
                Output::Forward { value, .. } => forwards.push(value),
                Output::Change { key, value } => {
                    self.changes[stage] += 1;
                    self.bytes[stage] += (key.len() + value.map_or(0, |value| value.len())) as u64;
                }
                Output::Alert(_) => self.alerts += 1,
                Output::DeadLetter(_) => {}
            }
        }
        forwards
    }

    fn report(&self) {
        let sums = to_f64(self.sums);
        println!(
            "{} sums of {} accounts, {} owners and countries; {} judged, {} alerts",
            self.sums,
            self.account.accounts(),
            self.group.groups(),
            self.judged,
            self.alerts
        );
        for (stage, name) in ["ACCOUNT", "GROUP"].into_iter().enumerate() {
            println!(
                "{name}: {:.0} ns of CPU a sum ({:.2} s); {:.2} changes and {:.0} bytes a sum",
                self.cost[stage] / sums * 1e9,
                self.cost[stage],
                to_f64(self.changes[stage]) / sums,
                to_f64(self.bytes[stage]) / sums,
            );
        }
    }
}

fn feed(stage: &mut dyn Stage, offset: &mut u64, value: &[u8], outbox: &mut Outbox) {
    let record =
        Record { offset: *offset, timestamp: None, key: None, value: Some(value), headers: &[] };
    stage.process(&record, outbox).expect("own record");
    *offset += 1;
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).expect("64 bits")
}

/// Seconds that this thread has run.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("a number");
    to_f64(nanos) / 1e9
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}
