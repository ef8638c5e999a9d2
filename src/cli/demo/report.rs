//! What the demo prints: each alert as it comes, and the summary at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use super::counters::Counts;
use crate::cli::print;
use crate::cli::show::{self, Names, State, Style};
use crate::error::Fatal;
use crate::record_file::RecordWriter;
use crate::simulate::Scenario;
use crate::simulate::scenario::Tenant;
use crate::simulate::truth::{self, Used};

/// Prints alerts as they come and remembers them for the summary.
pub(super) struct Report {
    names: Names,
    style: Style,
    file: Option<RecordWriter>,
    /// Policies that fired, by scope and key.
    fired: BTreeMap<(String, String), BTreeSet<String>>,
    /// The last alert took several lines: it stands apart from what follows.
    stands_apart: bool,
    firing: u64,
    updated: u64,
    resolved: u64,
}

impl Report {
    pub(super) fn new(
        tenants: &[Tenant],
        style: Style,
        file: Option<&Path>,
    ) -> Result<Self, Fatal> {
        let names = tenants
            .iter()
            .filter(|tenant| !tenant.unlisted)
            .map(|tenant| (tenant.entry.account_id.clone(), tenant.entry.legal_name.clone()));
        Ok(Self {
            names: names.collect(),
            style,
            file: file.map(RecordWriter::create).transpose()?,
            fired: BTreeMap::new(),
            stands_apart: false,
            firing: 0,
            updated: 0,
            resolved: 0,
        })
    }

    /// `bytes` are the record's value, a CloudEvent.
    pub(super) fn alert(&mut self, bytes: &[u8]) -> Result<(), Fatal> {
        if let Some(file) = &mut self.file {
            file.write(bytes)?;
        }
        let alert = show::read(bytes)
            .map_err(|error| Fatal::Internal(format!("an own alert is unreadable: {error}")))?;
        match alert.state {
            State::Firing => {
                self.firing += 1;
                let key = (alert.scope.clone(), alert.key.clone());
                self.fired.entry(key).or_default().insert(alert.policy.id.clone());
            }
            State::Updated => self.updated += 1,
            State::Resolved => self.resolved += 1,
        }
        // running totals grow all the time
        if alert.state == State::Updated && alert.policy.severity == "info" {
            return Ok(());
        }
        let in_full = show::is_in_full(&alert);
        let gap = if in_full || self.stands_apart { "\n" } else { "" };
        self.stands_apart = in_full;
        print(&format!("{gap}{}", show::alert(&alert, &self.names, self.style)))
    }

    /// Prints the summary.
    pub(super) fn finish(
        mut self,
        tenants: &[Tenant],
        used: &[Used],
        counts: &Counts,
    ) -> Result<(), Fatal> {
        if let Some(file) = self.file.take() {
            file.finish()?;
        }
        print(&self.summary(tenants, used, counts))
    }

    /// What was found of each scenario, beside what was true.
    fn summary(&self, tenants: &[Tenant], used: &[Used], counts: &Counts) -> String {
        let title = "What was simulated, and what the alerts said of it";
        let mut text = format!("\n{}\n", show::title(title, self.style));
        push(
            &mut text,
            format_args!(
                "  {:<16} {:>8} {:>8} {:>9} {:>13}  policies that fired\n",
                "scenario", "accounts", "foreign", "FLOP", "accelerators"
            ),
        );
        for scenario in truth::scenarios(tenants) {
            let mut seen = Seen::default();
            for (tenant, used) in tenants.iter().zip(used) {
                if tenant.scenario == scenario {
                    seen.add(tenant, used, &self.fired);
                }
            }
            seen.row(scenario, &mut text);
        }
        let Counts { read, counted, duplicate, dead_letter, late, .. } = counts;
        push(
            &mut text,
            format_args!(
                "\n{read} events read = {counted} counted + {duplicate} duplicates + {dead_letter} \
                 dead letters; {late} late, counted all the same\n{} alerts fired, {} updates, {} \
                 resolved\n",
                self.firing, self.updated, self.resolved
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

    fn row(&self, scenario: Scenario, text: &mut String) {
        let policies: Vec<&str> = self.policies.iter().map(String::as_str).collect();
        let said = if policies.is_empty() { "none".to_owned() } else { policies.join(", ") };
        let Self { accounts, foreign, flop, peak, .. } = self;
        push(
            text,
            format_args!(
                "  {:<16} {accounts:>8} {foreign:>8} {flop:>9.1e} {peak:>13.0}  {said}\n",
                scenario.name(),
            ),
        );
    }
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to a string cannot fail");
}
