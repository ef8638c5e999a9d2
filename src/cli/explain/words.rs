//! The explanation, line by line: what the rerun gives, in words, and whether it was published so.

use super::super::show::{self, amount, grouped, minute};
use super::published::{Difference, Published};
use super::rerun::Rerun;
use crate::config::Config;
use crate::data::PRESETS;
use crate::detector::alert::{Alert, Sum};
use crate::detector::cloudevent;
use crate::detector::policy::{Condition, Metric, Policy, Scope};
use crate::detector::window::window_end;

/// Shares named; the alert has more.
const SHARES: usize = 10;

#[derive(Debug, Clone, serde::Serialize)]
pub(super) struct Line {
    pub(super) section: &'static str,
    /// `None`: nothing of it was published.
    pub(super) equal: Option<bool>,
    pub(super) text: String,
}

/// What the lines are made from.
pub(super) struct Told<'a> {
    pub(super) published: &'a Published,
    pub(super) policy: &'a Policy,
    pub(super) rerun: &'a Rerun,
    /// The revision that the events give, or what they give at its slice end.
    pub(super) alert: &'a Alert,
    pub(super) differences: &'a [Difference],
    pub(super) config: &'a Config,
}

impl Told<'_> {
    pub(super) fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        self.alert(&mut lines);
        self.rule(&mut lines);
        self.conditions(&mut lines);
        self.numbers(&mut lines);
        self.slices(&mut lines);
        self.resources(&mut lines);
        lines
    }

    /// Whether everything under these paths of the alert is equal.
    fn equal(&self, paths: &[&[&str]]) -> Option<bool> {
        let differs = self.differences.iter().any(|difference| {
            paths.iter().any(|path| difference.is_under(&[&["data"], *path].concat()))
        });
        Some(!differs)
    }

    /// The alert as a reader of the topic has it.
    fn shown(&self) -> show::Alert {
        let published = cloudevent::structured(self.alert);
        show::read(&published.value).expect("an alert of ours can be shown")
    }

    fn alert(&self, lines: &mut Vec<Line>) {
        let shown = self.shown();
        let head = &self.published.head;
        let mut line = |equal, text| lines.push(Line { section: "alert", equal, text });
        let at = minute(self.alert.at);
        let paths: [&[&str]; 5] = [&["alert_id"], &["revision"], &["state"], &["at"], &["reason"]];
        line(
            // what the events give instead has no identity to compare
            self.equal(&paths).map(|equal| equal && self.rerun.alert.is_some()),
            format!(
                "{}, revision {}, of the slice that ends at {at} UTC",
                head.state, head.revision
            ),
        );
        if self.rerun.alert.is_some() {
            let due =
                self.alert.report_due.map(|due| format!("; to be reported by {}", minute(due)));
            line(
                self.equal(&[&["first_at"], &["report_due"]]),
                format!(
                    "first fired at {}{}",
                    minute(self.alert.first_at),
                    due.unwrap_or_default()
                ),
            );
        }
        line(
            self.equal(&[&["scope"], &["key"], &["accounts"], &["accounts_total"]]),
            show::who(&shown, &show::Names::new()),
        );
        line(self.equal(&[&["origin"]]), format!("origin: {}", show::origin(&shown.origin)));
    }

    fn rule(&self, lines: &mut Vec<Line>) {
        let policy = self.policy;
        let mut line = |equal, text| lines.push(Line { section: "rule", equal, text });
        let paths: [&[&str]; 5] = [
            &["policy", "id"],
            &["policy", "version"],
            &["policy", "title"],
            &["policy", "severity"],
            &["policy", "mode"],
        ];
        line(
            self.equal(&paths),
            format!(
                "{}, version {}: {} ({}, {})",
                policy.id,
                policy.version,
                policy.title,
                policy.severity.name(),
                policy.mode.name()
            ),
        );
        let hash = self.equal(&[&["policy", "hash"]]);
        line(
            hash,
            match hash {
                Some(false) => {
                    "its wording is not the configuration's, though its version is".into()
                }
                Some(true) | None => format!("its wording is the configuration's: {}", policy.hash),
            },
        );
        let references = self.equal(&[&["policy", "references"]]);
        if policy.references.is_empty() {
            line(references, "it names no source".to_owned());
        }
        for reference in &policy.references {
            line(references, format!("source: {reference}"));
        }
        for text in shipped_as(policy) {
            line(None, text);
        }
    }

    fn conditions(&self, lines: &mut Vec<Line>) {
        let shown = self.shown();
        for (index, condition) in self.policy.conditions.iter().enumerate() {
            let Some(observed) = self.alert.conditions.get(index) else { continue };
            let place = (index + 1).to_string();
            let met = if observed.met { "met" } else { "not met" };
            let why = show::why(&shown.conditions[index]);
            let equal = self.equal(&[&["conditions", &place]]);
            let text = format!("{place}. {why}: {met}");
            lines.push(Line { section: "conditions", equal, text });
            if let Some(text) = self.window(index, condition) {
                lines.push(Line { section: "conditions", equal: None, text });
            }
        }
    }

    /// The slices that a condition has seen.
    fn window(&self, index: usize, condition: &Condition) -> Option<String> {
        let seen = self.rerun.windows.get(index)?.as_ref()?;
        let rules = &self.config.rules;
        let Some(window) = condition.length() else {
            let run = seen.run?;
            return Some(format!("   the run since {} ({:.0} h)", minute(run.start), run.hours));
        };
        let tier = rules.tiers[rules.tier_of(window)?];
        let until = window_end(&tier, seen.at);
        let slice_ms = tier.slice.as_seconds() * 1e3;
        let levels = seen.evidence.slices.iter().map(|slice| to_f64(slice.sum.accelerator_ms));
        let most = levels.fold(0.0, f64::max) / slice_ms;
        let asked = match condition.metric {
            Metric::Sustained { accelerators } => {
                format!("; one counts with at least {}", grouped(accelerators))
            }
            Metric::Accelerators
            | Metric::AcceleratorHours
            | Metric::Flop
            | Metric::FlopLow
            | Metric::FlopHigh
            | Metric::FlopAllocated
            | Metric::FlopTheoretical
            | Metric::FlopRate
            | Metric::FlopRateTheoretical
            | Metric::RunFlop
            | Metric::RunFlopLow
            | Metric::RunFlopHigh
            | Metric::RunHours
            | Metric::ProjectedRunFlop { .. } => String::new(),
        };
        Some(format!(
            "   from {} to {}: {} slices of {} with usage, at most {} accelerators at once{asked}",
            minute(until.minus(window)),
            minute(until),
            seen.evidence.slices.len(),
            tier.slice,
            grouped(most)
        ))
    }

    fn numbers(&self, lines: &mut Vec<Line>) {
        let utilization = &self.config.rules.utilization;
        let estimate = &self.alert.estimate;
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let mut line = |equal, text| lines.push(Line { section: "numbers", equal, text });
        let flop = |value: f64| amount(value, "FLOP");
        line(
            self.equal(&[&["estimate", "accelerators"], &["estimate", "accelerator_hours"]]),
            format!(
                "{} accelerators on average, {} accelerator-hours",
                grouped(estimate.accelerators),
                grouped(estimate.accelerator_hours)
            ),
        );
        line(
            self.equal(&[&["estimate", "flop_allocated"]]),
            format!(
                "at most {} at 16 bit: what was rented, at its peak",
                flop(estimate.flop_allocated)
            ),
        );
        let used = match estimate.flop_allocated > 0.0 {
            true => percent(estimate.flop / estimate.flop_allocated),
            false => "nothing".to_owned(),
        };
        line(
            self.equal(&[&["estimate", "flop"]]),
            format!(
                "central estimate {}: {used} of that, from telemetry where there is any, else {} \
                 (utilization.central)",
                flop(estimate.flop),
                percent(utilization.central)
            ),
        );
        line(
            self.equal(&[&["estimate", "flop_low"], &["estimate", "flop_high"]]),
            format!(
                "band {} to {}: {} to {} of it (utilization.low and .high: published runs lie there)",
                flop(estimate.flop_low),
                flop(estimate.flop_high),
                percent(utilization.low),
                percent(utilization.high)
            ),
        );
        let run = self.equal(&[&["run"]]);
        match self.alert.run {
            Some(seen) => line(
                run,
                format!(
                    "run since {}: {} (band {} to {}) in {:.0} h",
                    minute(seen.start),
                    flop(seen.flop),
                    flop(seen.flop_low),
                    flop(seen.flop_high),
                    seen.hours
                ),
            ),
            None => line(run, "no run goes on".to_owned()),
        }
        if let (Some(projection), Some(_)) = (self.alert.projection, &self.rerun.alert) {
            let threshold = flop(projection.threshold);
            let text = match projection.reached_at {
                Some(at) => {
                    format!("at its present rate the run has {threshold} on {}", minute(at))
                }
                None => format!("at its present rate the run never has {threshold}"),
            };
            line(self.equal(&[&["projection"]]), text);
        }
    }

    fn slices(&self, lines: &mut Vec<Line>) {
        let evidence = &self.alert.evidence;
        let slices = &evidence.slices;
        let mut line = |equal, text| lines.push(Line { section: "slices", equal, text });
        let equal = self.equal(&[&["evidence", "slices"]]);
        match (slices.first(), slices.last()) {
            (Some(first), Some(last)) => line(
                equal,
                format!(
                    "{} with usage, ending from {} to {}: {} accelerator-hours",
                    slices.len(),
                    minute(first.end),
                    minute(last.end),
                    hours(slices.iter().map(|slice| slice.sum.accelerator_ms).sum())
                ),
            ),
            (_, _) => line(equal, "none with usage".to_owned()),
        }
        let gap = self.equal(&[&["evidence", "gap_records"]]);
        if gap == Some(false) {
            line(
                gap,
                "records were lost to retention before they were read: sums are too low".into(),
            );
        }
    }

    fn resources(&self, lines: &mut Vec<Line>) {
        let evidence = &self.alert.evidence;
        for (field, what, shares) in [
            ("by_accelerator", "accelerator", &evidence.by_accelerator),
            ("by_region", "region", &evidence.by_region),
            ("by_fabric", "fabric", &evidence.by_fabric),
        ] {
            let total: f64 = shares.values().map(|sum| to_f64(sum.flop_allocated_gflop)).sum();
            let mut largest: Vec<(&String, &Sum)> = shares.iter().collect();
            largest.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.flop_allocated_gflop));
            for (name, sum) in largest.iter().take(SHARES) {
                let share = to_f64(sum.flop_allocated_gflop) / total * 100.0;
                let shown = if name.is_empty() { "not known" } else { name };
                let text = format!(
                    "{what} {shown}: {} accelerator-hours, {share:.1} % of the FLOP",
                    hours(sum.accelerator_ms)
                );
                let equal = self.equal(&[&["evidence", field, name]]);
                lines.push(Line { section: "resources", equal, text });
            }
            if let Some(more) = largest.len().checked_sub(SHARES + 1) {
                let text = format!("{what}: {} more", more + 1);
                let equal = self.equal(&[&["evidence", field]]);
                lines.push(Line { section: "resources", equal, text });
            }
        }
        let equal = self.equal(&[&["evidence", "unknown_accelerator"]]);
        let text = match evidence.unknown_accelerator {
            true => format!(
                "part of it is not in the catalogue and counts as {}",
                self.config.rules.catalogue.unknown_key()
            ),
            false => "every accelerator is in the catalogue".to_owned(),
        };
        lines.push(Line { section: "resources", equal, text });
        self.members(lines);
    }

    /// An owner's accounts by size.
    fn members(&self, lines: &mut Vec<Line>) {
        if self.policy.scope != Scope::Owner {
            return;
        }
        let Some(first) = self.alert.evidence.slices.first() else { return };
        let mut members: Vec<(&String, i128)> = Vec::new();
        for (account, slices) in &self.rerun.slices {
            let within = slices.iter().filter(|(end, _)| **end >= first.end);
            members.push((account, within.map(|(_, sum)| sum.accelerator_ms).sum()));
        }
        members.sort_by_key(|(account, sum)| (std::cmp::Reverse(*sum), *account));
        for (account, sum) in members.iter().filter(|(_, sum)| *sum != 0).take(SHARES) {
            let text = format!("account {account}: {} accelerator-hours", hours(*sum));
            lines.push(Line { section: "resources", equal: None, text });
        }
    }
}

/// The shipped sets that have the policy word for word, with their status.
fn shipped_as(policy: &Policy) -> Vec<String> {
    let mut said = Vec::new();
    let id = format!("\"{}\"", policy.id);
    for (name, text) in PRESETS.iter().filter(|(_, text)| text.contains(&id)) {
        let config = Config::from_text(name, &format!("policies = [\"preset:{name}\"]"));
        let same = |other: &Policy| other.hash == policy.hash;
        if !config.is_ok_and(|config| config.policies.list.iter().any(same)) {
            continue;
        }
        let table: toml::Table = text.parse().expect("shipped sets are valid");
        let of = |key: &str| table["preset"].get(key).and_then(toml::Value::as_str).unwrap_or("");
        said.push(format!(
            "shipped in preset:{name}: {}, {}; {}",
            of("status"),
            of("date"),
            of("source")
        ));
    }
    said
}

/// What the events have more or less of than was published, and where.
pub(super) fn surplus(differences: &[Difference]) -> Option<String> {
    let of = |path: &[&str]| {
        let found = differences.iter().filter(|difference| {
            difference.is_under(path)
                && difference.path.last().is_some_and(|n| n == "accelerator_ms")
        });
        found
            .filter_map(|found| Some((found.path[3].clone(), found.surplus()?)))
            .collect::<Vec<_>>()
    };
    let slices = of(&["data", "evidence", "slices"]);
    let (first, last) = (slices.first()?, slices.last()?);
    let surplus: i128 = slices.iter().map(|(_, surplus)| surplus).sum();
    let mut text = format!(
        "the events have {} accelerator-hours {} than was published; slices that differ: {}, ending \
         from {} to {}",
        hours(surplus.abs()),
        if surplus < 0 { "less" } else { "more" },
        slices.len(),
        first.0,
        last.0
    );
    for (field, what) in
        [("by_accelerator", "accelerator"), ("by_region", "region"), ("by_fabric", "fabric")]
    {
        for (name, surplus) in of(&["data", "evidence", field]) {
            let sign = if surplus < 0 { "less" } else { "more" };
            let name = if name.is_empty() { "not known" } else { &name };
            text += &format!("; {what} {name}: {} {sign}", hours(surplus.abs()));
        }
    }
    Some(text)
}

fn hours(accelerator_ms: i128) -> String {
    let hours = to_f64(accelerator_ms) / 3_600_000.0;
    if hours.abs() < 1000.0 && hours.fract() != 0.0 {
        format!("{hours:.2}")
    } else {
        grouped(hours)
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn to_f64(sum: i128) -> f64 {
    sum as f64
}
