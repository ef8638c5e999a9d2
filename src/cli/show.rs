//! Alerts for people: who, from where, how much and how sure, since when, why.
//!
//! Works on what was published, so that it serves any reader of the alert topic.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

/// What of a published alert is shown: its names are the wire's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Alert {
    pub state: State,
    pub at: String,
    pub reason: Option<String>,
    pub policy: Policy,
    pub scope: String,
    pub key: String,
    accounts: Vec<String>,
    accounts_total: u64,
    origin: Origin,
    conditions: Vec<Observed>,
    estimate: Estimate,
    run: Option<Run>,
    projection: Option<Projection>,
    evidence: Evidence,
    first_at: String,
    report_due: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Firing,
    Updated,
    Resolved,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Policy {
    pub id: String,
    pub title: String,
    pub severity: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Origin {
    country: String,
    foreign: bool,
    decided_by: String,
    #[serde(default)]
    foreign_by: Vec<String>,
    facts: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Observed {
    metric: String,
    window: Option<String>,
    observed: f64,
    at_least: f64,
    unit: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct Estimate {
    flop_low: f64,
    flop: f64,
    flop_high: f64,
    accelerators: f64,
    accelerator_hours: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Run {
    start: String,
    hours: f64,
    flop_low: f64,
    flop: f64,
    flop_high: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Projection {
    threshold: f64,
    reached_at: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct Evidence {
    unknown_accelerator: bool,
}

impl Alert {
    /// Reads a CloudEvent in structured JSON, as it stands on the alert topic.
    pub fn read(event: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Event {
            data: Alert,
        }
        let event: Event = serde_json::from_slice(event).map_err(|error| error.to_string())?;
        Ok(event.data)
    }
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Updated => "updated",
            Self::Resolved => "resolved",
        }
    }
}

/// Whether to use colours: only on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Colours,
}

const RED: &str = "1;31";
const YELLOW: &str = "1;33";
const GREEN: &str = "1;32";
const CYAN: &str = "36";
const BOLD: &str = "1";
const DIM: &str = "2";

impl Style {
    /// Colours if standard output is a terminal and `NO_COLOR` is not set.
    pub fn of_stdout() -> Self {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if terminal && !refused { Self::Colours } else { Self::Plain }
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Colours => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

/// Names of accounts and owners, as far as they are known.
pub type Names = BTreeMap<String, String>;

/// An alert in full when it fires or resolves, in a line when it only goes on.
pub fn alert(alert: &Alert, names: &Names, style: Style) -> String {
    match alert.state {
        State::Firing if alert.policy.severity != "info" => in_full(alert, names, style),
        State::Firing | State::Updated | State::Resolved => in_a_line(alert, names, style),
    }
}

fn in_full(alert: &Alert, names: &Names, style: Style) -> String {
    let mut text = String::new();
    let severity = format!("{:<8}", alert.policy.severity.to_uppercase());
    let severity = style.paint(severity_colour(alert), &severity);
    line(
        &mut text,
        format_args!(
            "{}  {severity}  {}",
            minute(&alert.at),
            style.paint(BOLD, &alert.policy.title)
        ),
    );
    let mut row = |name: &str, value: String| {
        line(&mut text, format_args!("    {}  {value}", style.paint(DIM, &format!("{name:<9}"))));
    };
    row("who", style.paint(BOLD, &who(alert, names)));
    row("from", origin(alert));
    row("how much", estimate(alert));
    if let Some(run) = &alert.run {
        let length = hours(run.hours);
        let band = band(run.flop_low, run.flop, run.flop_high);
        row("run", format!("{band} in {length}, since {}", minute(&run.start)));
    }
    row("since", minute(&since(alert)));
    for (index, observed) in alert.conditions.iter().enumerate() {
        row(if index == 0 { "why" } else { "and" }, condition(observed));
    }
    if let Some(projection) = &alert.projection
        && let Some(reached_at) = &projection.reached_at
    {
        let threshold = projection.threshold;
        row("on pace", format!("{threshold:.0e} FLOP reached on {}", minute(reached_at)));
    }
    if alert.evidence.unknown_accelerator {
        row("note", "part of it is an accelerator that the catalogue does not know".to_owned());
    }
    if let Some(due) = &alert.report_due {
        row("report by", minute(due));
    }
    text
}

fn in_a_line(alert: &Alert, names: &Names, style: Style) -> String {
    let colour = match alert.state {
        State::Resolved => GREEN,
        State::Firing | State::Updated => severity_colour(alert),
    };
    let state = style.paint(colour, &format!("{:<8}", alert.state.name()));
    let reason = alert.reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
    format!(
        "{}  {state}  {}: {}, {}{reason}\n",
        minute(&alert.at),
        alert.policy.id,
        who(alert, names),
        estimate(alert)
    )
}

fn severity_colour(alert: &Alert) -> &'static str {
    match alert.policy.severity.as_str() {
        "critical" => RED,
        "warning" => YELLOW,
        _ => CYAN,
    }
}

/// `Falcon Ridge Models FZ (account acct-000001)`.
fn who(alert: &Alert, names: &Names) -> String {
    let account = alert.accounts.first().map_or(alert.key.as_str(), String::as_str);
    let name = names.get(&alert.key).or_else(|| names.get(account));
    let key = format!("{} {}", alert.scope, alert.key);
    let more = match alert.accounts_total {
        0 | 1 => String::new(),
        total => format!(", {total} accounts"),
    };
    match (alert.scope.as_str(), name) {
        ("country", _) => format!("{key}{more}"),
        (_, Some(name)) => format!("{name} ({key}{more})"),
        (_, None) => format!("{key}{more}"),
    }
}

fn origin(alert: &Alert) -> String {
    let origin = &alert.origin;
    let mut text = origin.country.clone();
    match (origin.foreign, origin.decided_by.as_str()) {
        (_, "unknown") => text.push_str(", nothing is known of it"),
        (true, field) => {
            let fields = origin.foreign_by.join(", ");
            let by = if fields.is_empty() { field } else { &fields };
            push(&mut text, format_args!(", foreign by {by}"));
        }
        (false, field) => push(&mut text, format_args!(", at home by {field}")),
    }
    let countries = origin.facts.iter().filter(|(_, value)| value.len() == 2);
    let differ = countries.clone().any(|(_, value)| **value != origin.country);
    let facts: Vec<String> = countries.map(|(field, value)| format!("{field} {value}")).collect();
    if differ {
        push(&mut text, format_args!(" ({})", facts.join(", ")));
    }
    text
}

fn estimate(alert: &Alert) -> String {
    let estimate = alert.estimate;
    let band = band(estimate.flop_low, estimate.flop, estimate.flop_high);
    if estimate.accelerators <= 0.0 {
        return band;
    }
    let window = hours(estimate.accelerator_hours / estimate.accelerators);
    let few = estimate.accelerators < 10.0;
    let accelerators = estimate.accelerators;
    let accelerators = if few { format!("{accelerators:.1}") } else { grouped(accelerators) };
    format!("{band} in {window}, {accelerators} accelerators at once")
}

fn band(low: f64, central: f64, high: f64) -> String {
    format!("{central:.1e} FLOP ({low:.1e} to {high:.1e})")
}

fn condition(observed: &Observed) -> String {
    let window = observed.window.as_ref().map(|window| format!(" over {window}"));
    format!(
        "{}{} is {}, at least {} {} is asked for",
        observed.metric,
        window.unwrap_or_default(),
        amount(observed.observed),
        amount(observed.at_least),
        observed.unit
    )
}

fn amount(value: f64) -> String {
    if value.abs() >= 1e6 {
        format!("{value:.2e}")
    } else if value.fract() == 0.0 {
        grouped(value)
    } else {
        format!("{value:.2}")
    }
}

/// The start of the run, or of the window that the estimate covers.
fn since(alert: &Alert) -> String {
    if let Some(run) = &alert.run {
        return run.start.clone();
    }
    let estimate = alert.estimate;
    let hours = estimate.accelerator_hours / estimate.accelerators;
    let start = || {
        let length = jiff::SignedDuration::try_from_secs_f64((hours * 3600.0).round()).ok()?;
        let at: jiff::Timestamp = alert.at.parse().ok()?;
        at.checked_sub(length).ok()
    };
    start().map_or_else(|| alert.first_at.clone(), |start| start.to_string())
}

/// `12,345`.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", &*digits), |rest| ("-", rest));
    let mut text = String::from(sign);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn hours(hours: f64) -> String {
    if hours >= 96.0 { format!("{:.0} d", hours / 24.0) } else { format!("{hours:.0} h") }
}

/// `2026-01-08 01:00`, UTC.
fn minute(instant: &str) -> String {
    match (instant.get(..10), instant.get(11..16)) {
        (Some(day), Some(time)) => format!("{day} {time}"),
        (_, _) => instant.to_owned(),
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    push(text, arguments);
    text.push('\n');
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::alert::{self, PolicyRef};
    use crate::detector::cloudevent;
    use crate::detector::directory::Country;
    use crate::detector::policy::Mode;
    use crate::detector::time::{SECOND_NS, Timestamp};

    fn fired() -> Alert {
        Alert::read(&cloudevent::structured(&published()).value).expect("what we publish")
    }

    fn published() -> alert::Alert {
        let country = Country::parse("CN").expect("two letters");
        alert::Alert {
            alert_id: "a".to_owned(),
            revision: 1,
            state: alert::State::Firing,
            at: Timestamp(1_767_841_200 * SECOND_NS),
            reason: None,
            policy: PolicyRef {
                id: "foreign-512-for-72h".to_owned(),
                version: 1,
                title: "512 accelerators for 72 hours".to_owned(),
                severity: "warning",
                mode: Mode::Live,
                hash: String::new(),
                references: Vec::new(),
            },
            scope: "account",
            key: "acct-1".to_owned(),
            accounts: vec!["acct-1".to_owned()],
            accounts_total: 1,
            origin: alert::Origin {
                country,
                foreign: true,
                decided_by: "ultimate_parent_country",
                foreign_by: vec!["ultimate_parent_country"],
                facts: [("country", "US".to_owned())].into(),
            },
            conditions: vec![alert::Observed {
                metric: "sustained",
                window: Some("72h".to_owned()),
                observed: 0.97,
                at_least: 0.9,
                unit: "ratio",
                met: true,
            }],
            estimate: alert::Estimate {
                flop_low: 4.6e22,
                flop: 9.84e22,
                flop_high: 1.28e23,
                flop_allocated: 2.56e23,
                accelerators: 1024.0,
                accelerator_hours: 73_728.0,
            },
            run: Some(alert::Run {
                start: Timestamp(1_767_571_200 * SECOND_NS),
                hours: 75.0,
                flop_low: 4.7e22,
                flop: 1.02e23,
                flop_high: 1.31e23,
            }),
            projection: None,
            evidence: alert::Evidence::default(),
            first_at: Timestamp(1_767_841_200 * SECOND_NS),
            report_due: None,
        }
    }

    #[test]
    fn an_alert_says_who_from_where_how_much_since_when_and_why() {
        let names = [("acct-1".to_owned(), "Silverpine".to_owned())].into();
        let text = alert(&fired(), &names, Style::Plain);
        let expected = "\
2026-01-08 03:00  WARNING   512 accelerators for 72 hours
    who        Silverpine (account acct-1)
    from       CN, foreign by ultimate_parent_country (country US)
    how much   9.8e22 FLOP (4.6e22 to 1.3e23) in 72 h, 1,024 accelerators at once
    run        1.0e23 FLOP (4.7e22 to 1.3e23) in 75 h, since 2026-01-05 00:00
    since      2026-01-05 00:00
    why        sustained over 72h is 0.97, at least 0.90 ratio is asked for
";
        assert_eq!(text, expected);
    }

    #[test]
    fn plain_style_has_no_escape_sequences() {
        let plain = alert(&fired(), &Names::new(), Style::Plain);
        assert!(!plain.contains('\x1b'));
        assert!(alert(&fired(), &Names::new(), Style::Colours).contains("\x1b[1;33m"));
    }

    #[test]
    fn an_update_is_one_line() {
        let updated = Alert { state: State::Updated, ..fired() };
        let text = alert(&updated, &Names::new(), Style::Plain);
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("updated   foreign-512-for-72h: account acct-1"), "{text}");
    }
}
