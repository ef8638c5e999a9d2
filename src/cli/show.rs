//! Alerts for people: who, from where, how much and how sure, since when, why.
//!
//! They are read as a subscriber of the topic gets them: whatever an alert should say to a person
//! must be in its record.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::detector::time::{SECOND_NS, Timestamp};

/// The data of an alert's CloudEvent, as far as it is shown.
#[derive(Debug, Clone, Deserialize)]
pub struct Alert {
    pub state: State,
    #[serde(deserialize_with = "instant")]
    pub at: Timestamp,
    pub reason: Option<String>,
    pub policy: Policy,
    pub scope: String,
    pub key: String,
    pub accounts: Vec<String>,
    pub accounts_total: u64,
    pub origin: Origin,
    pub conditions: Vec<Condition>,
    pub estimate: Estimate,
    pub run: Option<Run>,
    pub projection: Option<Projection>,
    pub evidence: Evidence,
    #[serde(deserialize_with = "instant")]
    pub first_at: Timestamp,
    #[serde(deserialize_with = "instant_or_null")]
    pub report_due: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Firing,
    Updated,
    Resolved,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Policy {
    pub id: String,
    pub title: String,
    pub severity: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Origin {
    pub country: String,
    pub foreign: bool,
    pub decided_by: String,
    pub facts: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Condition {
    pub metric: String,
    pub window: Option<String>,
    pub observed: f64,
    pub at_least: f64,
    pub unit: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Estimate {
    pub flop_low: f64,
    pub flop: f64,
    pub flop_high: f64,
    pub accelerators: f64,
    pub accelerator_hours: f64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Run {
    #[serde(deserialize_with = "instant")]
    pub start: Timestamp,
    pub hours: f64,
    pub flop_low: f64,
    pub flop: f64,
    pub flop_high: f64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Projection {
    pub threshold: f64,
    #[serde(deserialize_with = "instant_or_null")]
    pub reached_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Evidence {
    pub unknown_accelerator: bool,
}

/// The value of a record of the alerts topic, in its JSON form.
pub fn read(value: &[u8]) -> Result<Alert, serde_json::Error> {
    #[derive(Deserialize)]
    struct Event {
        data: Alert,
    }
    serde_json::from_slice::<Event>(value).map(|event| event.data)
}

pub(super) fn instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    let instant: jiff::Timestamp = text.parse().map_err(D::Error::custom)?;
    u64::try_from(instant.as_nanosecond()).map(Timestamp).map_err(D::Error::custom)
}

fn instant_or_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Timestamp>, D::Error> {
    #[derive(Deserialize)]
    struct Instant(#[serde(deserialize_with = "instant")] Timestamp);
    Ok(Option::<Instant>::deserialize(deserializer)?.map(|instant| instant.0))
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

/// A line of its own above others.
pub fn title(text: &str, style: Style) -> String {
    style.paint(BOLD, text)
}

/// An alert in full when it fires, in a line when it only goes on or ends.
pub fn alert(alert: &Alert, names: &Names, style: Style) -> String {
    if is_in_full(alert) { in_full(alert, names, style) } else { in_a_line(alert, names, style) }
}

/// Whether it takes several lines.
pub fn is_in_full(alert: &Alert) -> bool {
    match alert.state {
        State::Firing => alert.policy.severity != "info",
        State::Updated | State::Resolved => false,
    }
}

fn in_full(alert: &Alert, names: &Names, style: Style) -> String {
    let mut text = String::new();
    let severity = format!("{:<8}", alert.policy.severity.to_uppercase());
    let severity = style.paint(severity_colour(alert), &severity);
    let title = style.paint(BOLD, &alert.policy.title);
    line(&mut text, format_args!("{}  {severity}  {title}", minute(alert.at)));
    let mut row = |name: &str, value: String| {
        line(&mut text, format_args!("    {}  {value}", style.paint(DIM, &format!("{name:<9}"))));
    };
    row("who", style.paint(BOLD, &who(alert, names)));
    row("from", origin(&alert.origin));
    row("how much", estimate(alert));
    if let Some(run) = alert.run {
        let band = band(run.flop_low, run.flop, run.flop_high);
        row("run", format!("{band} in {}", hours(run.hours)));
    }
    row("since", minute(since(alert)));
    for (index, condition) in alert.conditions.iter().enumerate() {
        row(if index == 0 { "why" } else { "and" }, why(condition));
    }
    if let Some(projection) = alert.projection
        && let Some(reached_at) = projection.reached_at
    {
        let threshold = projection.threshold;
        row("on pace", format!("{threshold:.0e} FLOP reached on {}", minute(reached_at)));
    }
    if alert.evidence.unknown_accelerator {
        row("note", "part of it is an accelerator that the catalogue does not know".to_owned());
    }
    if let Some(due) = alert.report_due {
        row("report by", minute(due));
    }
    text
}

fn in_a_line(alert: &Alert, names: &Names, style: Style) -> String {
    let (state, colour) = match alert.state {
        State::Firing => ("firing", severity_colour(alert)),
        State::Updated => ("goes on", DIM),
        State::Resolved => ("resolved", GREEN),
    };
    let reason = alert.reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
    let rest = format!("{}: {}, {}{reason}", alert.policy.id, who(alert, names), in_short(alert));
    // what goes on steps back behind what is new
    let rest = if alert.state == State::Updated { style.paint(DIM, &rest) } else { rest };
    format!("{}  {}  {rest}\n", minute(alert.at), style.paint(colour, &format!("{state:<8}")))
}

fn severity_colour(alert: &Alert) -> &'static str {
    match alert.policy.severity.as_str() {
        "critical" => RED,
        "warning" => YELLOW,
        _ => CYAN,
    }
}

/// `Falcon Ridge Models FZ (account acct-000001)`.
pub(super) fn who(alert: &Alert, names: &Names) -> String {
    let account = alert.accounts.first().unwrap_or(&alert.key);
    let name = names.get(&alert.key).or_else(|| names.get(account));
    let key = format!("{} {}", alert.scope, alert.key);
    let more = match alert.accounts_total {
        0 | 1 => String::new(),
        total => format!(", {total} accounts"),
    };
    match (alert.scope.as_str(), name) {
        ("country", _) => format!("{key}{more}"),
        // an owner has no name of its own in the directory
        ("owner", Some(name)) if alert.accounts_total > 1 => format!("{key}{more}, such as {name}"),
        (_, Some(name)) => format!("{name} ({key}{more})"),
        (_, None) => format!("{key}{more}"),
    }
}

/// `CN by ultimate parent, foreign; country, incorporation and payment say US`.
pub(super) fn origin(origin: &Origin) -> String {
    let place = if origin.foreign { "foreign" } else { "at home" };
    if origin.decided_by == "unknown" {
        return format!("unknown, taken for {place}: the directory does not say");
    }
    let decided = origin.decided_by.as_str();
    let mut text = format!("{} by {}, {place}", origin.country, field(decided));
    let mut others: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in &origin.facts {
        if name != decided && value.len() == 2 {
            others.entry(value).or_default().push(field(name));
        }
    }
    for (country, fields) in others {
        let verb = if fields.len() == 1 { "says" } else { "say" };
        let same = if country == origin.country { "so too" } else { country };
        push(&mut text, format_args!("; {} {verb} {same}", listed(&fields)));
    }
    text
}

/// `ultimate parent` of `ultimate_parent_country`.
pub(super) fn field(name: &str) -> String {
    name.strip_suffix("_country").unwrap_or(name).replace('_', " ")
}

/// `a, b and c`.
pub(super) fn listed(words: &[String]) -> String {
    match words {
        [head @ .., last] if !head.is_empty() => format!("{} and {last}", head.join(", ")),
        [] | [..] => words.concat(),
    }
}

fn estimate(alert: &Alert) -> String {
    let estimate = alert.estimate;
    let band = band(estimate.flop_low, estimate.flop, estimate.flop_high);
    format!("{band}{}", extent(estimate))
}

fn in_short(alert: &Alert) -> String {
    format!("{:.1e} FLOP{}", alert.estimate.flop, extent(alert.estimate))
}

/// ` in 72 h, 924 accelerators on average`; less of it when there are hardly any.
fn extent(estimate: Estimate) -> String {
    let Estimate { accelerators, accelerator_hours, .. } = estimate;
    if accelerators <= 0.0 {
        return String::new();
    }
    let window = hours(accelerator_hours / accelerators);
    if accelerators < 1.0 {
        return format!(" in {window}");
    }
    format!(" in {window}, {} accelerators on average", grouped(accelerators))
}

/// The estimate, and the band that the rented hardware allows at usual utilisation.
pub(super) fn band(low: f64, central: f64, high: f64) -> String {
    format!("{central:.1e} FLOP (band {low:.1e} to {high:.1e})")
}

pub(super) fn why(condition: &Condition) -> String {
    let Condition { metric, window, observed, at_least, unit } = condition;
    let window = window.as_ref().map(|window| format!(" over {window}")).unwrap_or_default();
    let (observed, at_least) = (amount(*observed, unit), amount(*at_least, unit));
    format!("{metric}{window} is {observed}, the policy asks for at least {at_least}")
}

pub(super) fn amount(value: f64, unit: &str) -> String {
    if unit == "ratio" {
        return format!("{:.1} %", value * 100.0);
    }
    let number = if value.abs() >= 1e6 {
        format!("{value:.2e}")
    } else if value.fract() == 0.0 {
        grouped(value)
    } else {
        format!("{value:.2}")
    };
    format!("{number} {unit}")
}

/// The start of the run, or of the window that the estimate covers.
fn since(alert: &Alert) -> Timestamp {
    let estimate = alert.estimate;
    match alert.run {
        Some(run) => run.start,
        None if estimate.accelerators > 0.0 => {
            let seconds = (estimate.accelerator_hours / estimate.accelerators * 3600.0).round();
            #[expect(clippy::cast_possible_truncation, reason = "a window is below 2^63 seconds")]
            #[expect(clippy::cast_sign_loss, reason = "both are positive")]
            let seconds = seconds as u64;
            Timestamp(alert.at.0.saturating_sub(seconds.saturating_mul(SECOND_NS)))
        }
        None => alert.first_at,
    }
}

/// `12,345`.
pub(super) fn grouped(value: f64) -> String {
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

pub(super) fn hours(hours: f64) -> String {
    if hours >= 96.0 { format!("{:.0} d", hours / 24.0) } else { format!("{hours:.0} h") }
}

/// `2026-01-08 01:00`, UTC.
pub(super) fn minute(instant: Timestamp) -> String {
    let text = instant.to_string();
    match (text.get(..10), text.get(11..16)) {
        (Some(day), Some(time)) => format!("{day} {time}"),
        (_, _) => text,
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

    fn event(state: &str) -> Alert {
        let text = r#"{"specversion": "1.0", "data": {
            "alert_id": "a", "revision": 1, "state": "STATE", "at": "2026-01-08T03:00:00Z",
            "policy": {"id": "foreign-512-for-72h", "version": 1,
                "title": "512 accelerators for 72 hours", "severity": "warning"},
            "scope": "account", "key": "acct-1", "accounts": ["acct-1"], "accounts_total": 1,
            "origin": {"country": "CN", "foreign": true, "decided_by": "ultimate_parent_country",
                "facts": {"country": "US", "payment_country": "US", "incorporation_country": "CN",
                    "ultimate_parent_country": "CN", "access_ips": "192.0.2.1"}},
            "conditions": [{"metric": "sustained", "window": "72h", "observed": 0.972,
                "at_least": 0.9, "unit": "ratio", "met": true}],
            "estimate": {"flop_low": 4.6e22, "flop": 9.84e22, "flop_high": 1.28e23,
                "flop_allocated": 2.56e23, "accelerators": 1024, "accelerator_hours": 73728},
            "run": {"start": "2026-01-05T00:00:00Z", "hours": 75, "flop_low": 4.7e22,
                "flop": 1.02e23, "flop_high": 1.31e23},
            "projection": null, "evidence": {"unknown_accelerator": false},
            "first_at": "2026-01-08T03:00:00Z", "report_due": "2026-01-23T03:00:00Z"}}"#;
        read(text.replace("STATE", state).as_bytes()).expect("an alert")
    }

    #[test]
    fn an_alert_says_who_from_where_how_much_since_when_and_why() {
        let names = [("acct-1".to_owned(), "Silverpine".to_owned())].into();
        let text = alert(&event("firing"), &names, Style::Plain);
        let expected = "\
2026-01-08 03:00  WARNING   512 accelerators for 72 hours
    who        Silverpine (account acct-1)
    from       CN by ultimate parent, foreign; incorporation says so too; country and payment say US
    how much   9.8e22 FLOP (band 4.6e22 to 1.3e23) in 72 h, 1,024 accelerators on average
    run        1.0e23 FLOP (band 4.7e22 to 1.3e23) in 75 h
    since      2026-01-05 00:00
    why        sustained over 72h is 97.2 %, the policy asks for at least 90.0 %
    report by  2026-01-23 03:00
";
        assert_eq!(text, expected);
    }

    #[test]
    fn plain_style_has_no_escape_sequences() {
        let fired = event("firing");
        assert!(!alert(&fired, &Names::new(), Style::Plain).contains('\x1b'));
        assert!(alert(&fired, &Names::new(), Style::Colours).contains("\x1b[1;33m"));
    }

    #[test]
    fn what_goes_on_or_ends_is_one_line() {
        for (state, word) in [("updated", "goes on"), ("resolved", "resolved")] {
            let text = alert(&event(state), &Names::new(), Style::Plain);
            assert_eq!(text.lines().count(), 1);
            let expected = format!("{word:<8}  foreign-512-for-72h: account acct-1");
            assert!(text.contains(&expected), "{text}");
            assert!(
                text.ends_with(", 9.8e22 FLOP in 72 h, 1,024 accelerators on average\n"),
                "{text}"
            );
        }
    }
}
