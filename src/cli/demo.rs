//! `flopwatch demo`: a simulated cloud at high speed, alerts as they fire, and at the end what was
//! found against what was true.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::{Duration, Instant};

use super::print;
use super::show::{self, Names, Style};
use crate::config::Config;
use crate::detector::alert::{Alert, State};
use crate::detector::decode::decode_account;
use crate::detector::directory::AccountRecord;
use crate::detector::outbox::{DeadLetter, Tally};
use crate::detector::time::{Span, Timestamp};
use crate::error::Fatal;
use crate::record_file::Format;
use crate::replay::{Sink, Source, replay};
use crate::simulate::encode::{encode_account, encode_event};
use crate::simulate::scenario::Tenant;
use crate::simulate::truth::{self, Used};
use crate::simulate::{Cloud, KeyBy, Plan, Scenario, Sent};

/// 2026-01-05T00:00:00Z, a Monday.
const START: Timestamp = Timestamp(1_767_571_200_000_000_000);
/// Accounts of no interest among those that matter.
const BACKGROUND: u32 = 60;

/// Watch a simulated cloud: no broker, no configuration.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Simulated hours a second.
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    speed: u32,
    /// Simulated days.
    #[arg(long, value_name = "DAYS", default_value_t = 35, value_parser = clap::value_parser!(u32).range(1..=400))]
    days: u32,
    /// The same seed gives the same cloud.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The demo's cloud: every scenario, metered hourly.
pub fn plan(args: &Args, partitions: u32) -> Plan {
    Plan {
        seed: args.seed,
        start: START,
        span: Span::days(u64::from(args.days)),
        interval: Span::hours(1),
        partitions,
        key: KeyBy::Account,
        accounts: BACKGROUND,
        resources: BACKGROUND * 4,
        scenarios: Scenario::ALL.to_vec(),
        constant: false,
        duplicates_per_million: 10_000,
        disorder: Span::seconds(120),
    }
}

/// Simulated time against the clock.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    started: Instant,
    hours_per_second: u32,
}

impl Pace {
    pub fn start(hours_per_second: u32) -> Self {
        Self { started: Instant::now(), hours_per_second: hours_per_second.max(1) }
    }

    /// How long a record must wait that is written at this instant.
    pub fn until(&self, written: Timestamp) -> Duration {
        let simulated = written.since(START).0;
        let due = Duration::from_nanos(simulated / 3600 / u64::from(self.hours_per_second));
        due.saturating_sub(self.started.elapsed())
    }
}

/// The directory's entries as protobuf, by account, for those that are listed.
pub fn directory(cloud: &Cloud) -> Vec<(String, Vec<u8>)> {
    let listed = cloud.tenants().iter().filter(|tenant| !tenant.unlisted);
    listed
        .map(|tenant| {
            let mut bytes = Vec::new();
            encode_account(&tenant.entry, Format::Delimited, &mut bytes);
            (tenant.entry.account_id.clone(), bytes)
        })
        .collect()
}

/// Prints alerts as they come and remembers them for the summary.
#[derive(Debug)]
pub struct Printer {
    names: Names,
    style: Style,
    /// Policies that fired, by scope and key.
    fired: BTreeMap<(String, String), BTreeSet<String>>,
    firing: u64,
    updated: u64,
    resolved: u64,
}

impl Printer {
    pub fn new(tenants: &[Tenant], style: Style) -> Self {
        let names = tenants
            .iter()
            .map(|tenant| (tenant.entry.account_id.clone(), tenant.entry.legal_name.clone()));
        let names = names.collect();
        Self { names, style, fired: BTreeMap::new(), firing: 0, updated: 0, resolved: 0 }
    }

    pub fn print(&mut self, alert: &Alert) -> Result<(), Fatal> {
        match alert.state {
            State::Firing => {
                self.firing += 1;
                let key = (alert.scope.to_owned(), alert.key.clone());
                self.fired.entry(key).or_default().insert(alert.policy.id.clone());
            }
            State::Updated => self.updated += 1,
            State::Resolved => self.resolved += 1,
        }
        // running totals grow all the time
        if alert.state == State::Updated && alert.policy.severity == "info" {
            return Ok(());
        }
        print(&show::alert(alert, &self.names, self.style))
    }

    /// What was found of each scenario, beside what was true.
    pub fn summary(&self, tenants: &[Tenant], used: &[Used], tally: &Tally) -> String {
        let mut text = String::from("\nWhat was simulated, and what was said about it\n");
        for scenario in truth::scenarios(tenants) {
            let mut seen = Seen::default();
            for (tenant, used) in tenants.iter().zip(used) {
                if tenant.scenario == scenario {
                    seen.add(tenant, used, &self.fired);
                }
            }
            push(&mut text, &seen.row(scenario));
        }
        push(
            &mut text,
            &format!(
                "\n{} events read = {} counted + {} duplicates + {} dead letters; {} late, counted all \
             the same\n{} alerts fired, {} updates, {} resolved\n",
                tally.read,
                tally.counted,
                tally.duplicate,
                tally.dead_letter_total(),
                tally.late,
                self.firing,
                self.updated,
                self.resolved
            ),
        );
        text
    }
}

/// One scenario's accounts together.
#[derive(Default)]
struct Seen {
    accounts: u32,
    foreign: u32,
    flop: f64,
    peak: f64,
    policies: BTreeSet<String>,
}

impl Seen {
    fn add(
        &mut self,
        tenant: &Tenant,
        used: &Used,
        fired: &BTreeMap<(String, String), BTreeSet<String>>,
    ) {
        self.accounts += 1;
        self.foreign += u32::from(truth::is_foreign(tenant));
        #[expect(clippy::cast_precision_loss, reason = "for people to read")]
        let flop = used.measure.flop as f64 * 1e9;
        self.flop += flop;
        self.peak += used.peak_accelerators;
        let account = &tenant.entry.account_id;
        let owner = &tenant.entry.owner_id;
        for ((scope, key), policies) in fired {
            let concerned = match scope.as_str() {
                "account" => key == account,
                "site" => key.split('@').next() == Some(account),
                "owner" => key == account || (!owner.is_empty() && key == owner),
                _ => false,
            };
            if concerned {
                self.policies.extend(policies.iter().cloned());
            }
        }
    }

    fn row(&self, scenario: Scenario) -> String {
        let policies: Vec<&str> = self.policies.iter().map(String::as_str).collect();
        let said = if policies.is_empty() { "nothing".to_owned() } else { policies.join(", ") };
        format!(
            "  {:<16} {:>3} accounts, {:>3} foreign  {:>8.1e} FLOP  up to {:>5.0} accelerators  {said}\n",
            scenario.name(),
            self.accounts,
            self.foreign,
            self.flop,
            self.peak
        )
    }
}

fn push(text: &mut String, more: &str) {
    text.write_str(more).expect("writing to a string cannot fail");
}

pub fn execute(args: Args) -> Result<(), Fatal> {
    let config = Config::from_text("the demo's configuration", "")?;
    let cloud = Cloud::new(plan(&args, 1)).map_err(Fatal::Internal)?;
    print(&format!(
        "{} accounts on {} nodes, {} simulated days at {} hours a second, the shipped policies\n\n",
        cloud.tenants().len(),
        cloud.resources(),
        args.days,
        args.speed
    ))?;
    let accounts = records(&cloud)?;
    let tenants = cloud.tenants().to_vec();
    let mut printer = Printer::new(&tenants, Style::of_stdout());
    let mut used = Vec::new();
    let paced = Paced {
        cloud,
        pace: Pace::start(args.speed),
        number: 0,
        bytes: Vec::new(),
        used: &mut used,
    };
    let sources: Vec<Box<dyn Source + '_>> = vec![Box::new(paced)];
    let outcome = replay(&config.rules, &config.policies, &accounts, sources, &mut printer)?;
    print(&printer.summary(&tenants, &used, &outcome.tally))
}

fn records(cloud: &Cloud) -> Result<Vec<AccountRecord>, Fatal> {
    directory(cloud)
        .iter()
        .map(|(_, bytes)| {
            decode_account(None, Some(bytes))
                .map_err(|invalid| Fatal::Internal(format!("an own account: {}", invalid.detail)))
        })
        .collect()
}

impl Sink for Printer {
    fn alert(&mut self, alert: &Alert) -> Result<(), Fatal> {
        self.print(alert)
    }

    fn dead_letter(&mut self, _source: usize, letter: &DeadLetter) -> Result<(), Fatal> {
        let (reason, detail) = (letter.invalid.reason.name(), &letter.invalid.detail);
        print(&format!("dead letter: {reason}: {detail}\n"))
    }
}

/// The cloud's records, each when its simulated time has come.
struct Paced<'a> {
    cloud: Cloud,
    pace: Pace,
    number: u64,
    bytes: Vec<u8>,
    /// Left here at the end: the stages own the source.
    used: &'a mut Vec<Used>,
}

impl Source for Paced<'_> {
    fn next(&mut self) -> Result<Option<(u64, &[u8])>, Fatal> {
        let Some(Sent { written, event, .. }) = self.cloud.next() else {
            self.used.clear();
            self.used.extend_from_slice(self.cloud.used());
            return Ok(None);
        };
        encode_event(&event, Format::Delimited, &mut self.bytes);
        let wait = self.pace.until(written);
        if wait > Duration::from_millis(5) {
            std::thread::sleep(wait);
        }
        self.number += 1;
        Ok(Some((self.number, &self.bytes)))
    }
}
