//! `flopwatch explain`: the numbers of one alert again, from the events, with the stages of
//! production; equal or not, line by line, in words.

mod doubts;
mod published;
mod rerun;
mod words;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde_json::json;
use serde_json::value::RawValue;

use self::doubts::Doubt;
use self::published::{Difference, Published};
use self::rerun::{Rerun, rerun};
use self::words::{Line, Told};
use super::replay::{FileSource, read_accounts};
use super::show::minute;
use crate::config::Config;
use crate::detector::alert::{Alert, PolicyRef};
use crate::detector::cloudevent;
use crate::detector::policy::{Mode, Policy};
use crate::error::Fatal;
use crate::replay::Source;

/// Run the numbers of one alert again, and say line by line whether they are equal.
///
/// Give the events, the directory and the configuration that the alert came from. Exit code 0: all
/// is equal. 1: something is not, or cannot be reproduced. 2: bad usage.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The alert as published, a CloudEvent in JSON; or a file of alerts, and --alert.
    #[arg(value_name = "ALERT")]
    alert_file: PathBuf,
    /// Which alert of the file: its number from 1, its alert_id, or alert_id/revision.
    #[arg(long, value_name = "N|ID")]
    alert: Option<String>,
    /// Configuration file; without one every setting has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Account directory; may be given more than once, read in order.
    #[arg(long, value_name = "FILE")]
    accounts: Vec<PathBuf>,
    /// Usage events: each file is one partition.
    #[arg(long, value_name = "FILE", required = true)]
    usage: Vec<PathBuf>,
    /// For machines.
    #[arg(long)]
    json: bool,
}

/// Differences printed; `--json` has all of them.
const MOST: usize = 20;

pub fn execute(args: &Args) -> Result<(), Fatal> {
    let published = Published::read(&args.alert_file, args.alert.as_deref())?;
    let config = Config::load(args.config.as_deref())?;
    let accounts = read_accounts(&args.accounts, &config)?;
    let explanation = match policy_of(&published, &config) {
        Err(why) => Explanation::impossible(&published, why),
        Ok(policy) => {
            let position = Arc::new(AtomicU64::new(0));
            let mut sources: Vec<Box<dyn Source>> = Vec::new();
            for path in &args.usage {
                sources.push(Box::new(FileSource::open(path, Arc::clone(&position))?));
            }
            let rerun = rerun(&published.head, policy, &config, &accounts, sources)?;
            Explanation::of(&published, policy, &rerun, &config)
        }
    };
    let text = if args.json { explanation.json(&published) } else { explanation.text(&published) };
    super::print(&text)?;
    match &explanation.impossible {
        Some(why) => Err(Fatal::Input(format!("the alert cannot be reproduced: {why}"))),
        None if explanation.is_equal() => Ok(()),
        None => Err(Fatal::Input(format!(
            "the events do not give this alert: {} of {} values differ",
            explanation.differences.len(),
            explanation.compared
        ))),
    }
}

/// The policy that the alert is of, or why there is none to judge by.
fn policy_of<'a>(published: &Published, config: &'a Config) -> Result<&'a Policy, String> {
    let head = &published.head;
    if head.reason.as_deref() == Some("withdrawn") {
        return Err(
            "it was resolved because its policy was withdrawn, and events know nothing of \
                    policies; the revision before it can be explained"
                .to_owned(),
        );
    }
    let id = &head.policy.id;
    let found = config.policies.list.iter().find(|policy| policy.id == *id).ok_or_else(|| {
        format!(
            "the configuration has no policy {id}: right would be the one of that time, by --config"
        )
    })?;
    if found.version != head.policy.version {
        return Err(format!(
            "the configuration has version {} of {id}, the alert is of version {}: right would be \
             the one of that time, by --config",
            found.version, head.policy.version
        ));
    }
    if found.mode == Mode::Off {
        return Err(format!("policy {id} is off in the configuration"));
    }
    Ok(found)
}

/// Everything that is said of an alert.
struct Explanation {
    impossible: Option<String>,
    /// The events do not give this very revision: what they give instead.
    missing: Option<String>,
    lines: Vec<Line>,
    differences: Vec<Difference>,
    compared: usize,
    doubts: Vec<Doubt>,
    counted: u64,
}

impl Explanation {
    fn impossible(published: &Published, why: String) -> Self {
        let head = &published.head;
        let text = format!("{}, revision {}, at {}", head.state, head.revision, minute(head.at));
        Self {
            impossible: Some(why),
            missing: None,
            lines: vec![Line { section: "alert", equal: None, text }],
            differences: Vec::new(),
            compared: 0,
            doubts: Vec::new(),
            counted: 0,
        }
    }

    fn of(published: &Published, policy: &Policy, rerun: &Rerun, config: &Config) -> Self {
        let Some(alert) = rerun.alert.as_ref().or(rerun.judged.as_ref()) else {
            let head = &published.head;
            let why = format!(
                "{} {} has no usage in these events that is judged at {}",
                head.scope,
                head.key,
                minute(head.at)
            );
            return Self { counted: rerun.tally.counted, ..Self::impossible(published, why) };
        };
        let alert = &Alert { policy: PolicyRef::of(policy), ..alert.clone() };
        let event = String::from_utf8(cloudevent::structured(alert).value).expect("JSON is text");
        let event = RawValue::from_string(event).expect("our own values are JSON");
        let (mut differences, compared) = published::compare(&published.event, &event);
        let missing = rerun.alert.is_none().then(|| missing(policy, rerun, alert));
        if missing.is_some() {
            differences.retain(|difference| !is_of_the_episode(difference));
        }
        let told = Told { published, policy, rerun, alert, differences: &differences, config };
        Self {
            impossible: None,
            missing,
            lines: told.lines(),
            doubts: doubts::doubts(policy, rerun, config),
            differences,
            compared,
            counted: rerun.tally.counted,
        }
    }

    fn is_equal(&self) -> bool {
        self.impossible.is_none() && self.missing.is_none() && self.differences.is_empty()
    }

    fn text(&self, published: &Published) -> String {
        let mut text = String::new();
        let mut line = |args: std::fmt::Arguments<'_>| {
            text.write_fmt(args).expect("writing to a string cannot fail");
            text.push('\n');
        };
        let head = &published.head;
        line(format_args!("alert {}/{} ({})", head.alert_id, head.revision, published.place));
        let mut section = "";
        for told in &self.lines {
            if told.section != section {
                section = told.section;
                line(format_args!("\n{section}"));
            }
            let mark = match told.equal {
                Some(true) => "equal",
                Some(false) => "DIFFERS",
                None => "",
            };
            line(format_args!("  {mark:<8} {}", told.text));
        }
        if let Some(missing) = &self.missing {
            line(format_args!("\nnot there\n  {missing}"));
        }
        if !self.differences.is_empty() {
            line(format_args!("\nwhat differs"));
            if let Some(surplus) = words::surplus(&self.differences) {
                line(format_args!("  {surplus}"));
            }
            for difference in self.differences.iter().take(MOST) {
                line(format_args!("  {}", said(difference)));
            }
            if self.differences.len() > MOST {
                line(format_args!("  and {} more: see --json", self.differences.len() - MOST));
            }
        }
        if !self.doubts.is_empty() {
            line(format_args!("\nthe alert is wrong if one of these is true"));
            for doubt in &self.doubts {
                let of = doubt.condition.map(|place| format!("{place}. ")).unwrap_or_default();
                line(format_args!("  {of}{}", doubt.text));
            }
        }
        match &self.impossible {
            Some(why) => line(format_args!("\nnot reproducible: {why}")),
            None if self.is_equal() => line(format_args!(
                "\nequal: all {} values, from {} events",
                self.compared, self.counted
            )),
            None => line(format_args!(
                "\nnot equal: {} of {} values differ, from {} events",
                self.differences.len(),
                self.compared,
                self.counted
            )),
        }
        text
    }

    fn json(&self, published: &Published) -> String {
        let head = &published.head;
        let verdict = match &self.impossible {
            Some(_) => "not reproducible",
            None if self.is_equal() => "equal",
            None => "not equal",
        };
        let value = json!({
            "alert_id": head.alert_id,
            "revision": head.revision,
            "verdict": verdict,
            "reason": self.impossible.as_ref().or(self.missing.as_ref()),
            "compared": self.compared,
            "events": self.counted,
            "lines": self.lines,
            "differences": self.differences,
            "wrong_if": self.doubts,
        });
        value.to_string() + "\n"
    }
}

/// What only an episode has: when it began, what it is called.
fn is_of_the_episode(difference: &Difference) -> bool {
    let fields =
        ["alert_id", "revision", "state", "first_at", "report_due", "projection", "reason"];
    difference.is_under(&["id"]) || fields.iter().any(|field| difference.is_under(&["data", field]))
}

/// Why the events do not give the revision, as far as they say.
fn missing(policy: &Policy, rerun: &Rerun, judged: &Alert) -> String {
    let mut text = "the events give no such revision: ".to_owned();
    let unmet: Vec<String> = (1..)
        .zip(&judged.conditions)
        .filter(|(_, observed)| !observed.met)
        .map(|(place, _)| place.to_string())
        .collect();
    if rerun.other_origin {
        text += "the directory's origin is none that the policy looks at";
    } else if unmet.is_empty() {
        text += "its conditions are met, but its episode begins, goes on or ends at other times";
    } else {
        text += &format!("condition {} is not met", super::show::listed(&unmet));
    }
    let mut others: Vec<String> = rerun
        .others
        .iter()
        .take(5)
        .map(|other| format!("{} at {}", other.state.name(), minute(other.at)))
        .collect();
    if others.is_empty() {
        others.push("none".to_owned());
    }
    text + &format!("; alerts of {} on this key here: {}", policy.id, others.join(", "))
}

fn said(difference: &Difference) -> String {
    let path = difference.path.iter().map(String::as_str).skip_while(|part| *part == "data");
    let path: Vec<&str> = path.collect();
    let or_nothing = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
    format!(
        "{}: published {}, the events give {}",
        path.join(" "),
        or_nothing(&difference.published),
        or_nothing(&difference.rerun)
    )
}
