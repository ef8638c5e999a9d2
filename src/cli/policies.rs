//! `flopwatch policies diff`: what live and what shadow policies have alerted on, over a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::show::{self, minute};
use super::simulate::parse_time;
use crate::config::Config;
use crate::detector::time::Timestamp;
use crate::error::Fatal;
use crate::kafka::alerts;
use crate::record_file::RecordFile;

/// Compare what policies have said.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Which keys live and shadow policies both alerted on, or only one of them, and since when
    Diff(Diff),
}

/// Alerts come from two files, or from the alert topics of a configuration.
#[derive(Debug, clap::Args)]
struct Diff {
    /// Alerts of live policies, a CloudEvent in JSON a line.
    #[arg(long, value_name = "FILE", requires = "shadow", required_unless_present = "config")]
    live: Option<PathBuf>,
    /// Alerts of shadow policies.
    #[arg(long, value_name = "FILE", requires = "live")]
    shadow: Option<PathBuf>,
    /// Read both from the alert topics of this configuration.
    #[arg(long, value_name = "FILE", conflicts_with = "live")]
    config: Option<PathBuf>,
    /// Only policies of this id, live or shadow; may be given more than once.
    #[arg(long, value_name = "ID")]
    policy: Vec<String>,
    /// Alerts that were over by then do not count, RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Alerts that began then or later do not count.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// For machines.
    #[arg(long)]
    json: bool,
}

pub fn execute(args: &Args) -> Result<(), Fatal> {
    let Verb::Diff(args) = &args.verb;
    let (live, shadow) = match (&args.live, &args.shadow) {
        (Some(live), Some(shadow)) => (read_file(live, args)?, read_file(shadow, args)?),
        (_, _) => {
            let config = Config::load(args.config.as_deref())?;
            let topics = [&config.topics.alerts, &config.topics.shadow_alerts];
            let [live, shadow] = topics.map(|topic| read_topic(&config, topic, args));
            (live?, shadow?)
        }
    };
    let difference = Difference::of(&live.keys(args), &shadow.keys(args));
    let text = if args.json {
        serde_json::to_string(&difference).expect("our own values are JSON") + "\n"
    } else {
        difference.text()
    };
    super::print(&text)
}

fn read_file(path: &Path, args: &Diff) -> Result<Episodes, Fatal> {
    let mut episodes = Episodes::default();
    let mut file = RecordFile::open(path)?;
    while let Some(record) = file.next()? {
        let alert = show::read(record.value).map_err(|error| {
            let place = format!("{}:{}", path.display(), record.number);
            Fatal::Input(format!("{place}: this is no alert: {error}"))
        })?;
        episodes.add(alert, args);
    }
    Ok(episodes)
}

fn read_topic(config: &Config, topic: &str, args: &Diff) -> Result<Episodes, Fatal> {
    let mut episodes = Episodes::default();
    alerts::read(config, topic, |place, value| {
        let alert = show::read(value).map_err(|error| {
            Fatal::Input(format!(
                "{place}: this is no alert in JSON (alerts.format = \"protobuf\" is not read \
                 here): {error}"
            ))
        })?;
        episodes.add(alert, args);
        Ok(())
    })?;
    Ok(episodes)
}

/// Episodes by policy, key and start: from when to when.
#[derive(Default)]
struct Episodes(BTreeMap<(String, Key, Timestamp), Option<Timestamp>>);

/// Scope and key.
type Key = (String, String);

/// What one side has said of a key.
#[derive(Debug, Clone, Serialize)]
struct Said {
    first_at: Timestamp,
    alerts: usize,
    policies: BTreeSet<String>,
}

impl Episodes {
    fn add(&mut self, alert: show::Alert, args: &Diff) {
        let is_wanted = args.policy.is_empty() || args.policy.contains(&alert.policy.id);
        if !is_wanted {
            return;
        }
        let key = (alert.policy.id, (alert.scope, alert.key), alert.first_at);
        let over = self.0.entry(key).or_default();
        if alert.state == show::State::Resolved {
            *over = Some(alert.at);
        }
    }

    /// Keys with an alert that was on within the time asked for.
    fn keys(&self, args: &Diff) -> BTreeMap<Key, Said> {
        let mut keys: BTreeMap<Key, Said> = BTreeMap::new();
        for ((policy, key, first_at), over) in &self.0 {
            let began = args.until.is_none_or(|until| *first_at < until);
            let went_on = args.since.is_none_or(|since| over.is_none_or(|over| over > since));
            if !began || !went_on {
                continue;
            }
            let said = keys.entry(key.clone()).or_insert_with(|| Said {
                first_at: *first_at,
                alerts: 0,
                policies: BTreeSet::new(),
            });
            said.first_at = said.first_at.min(*first_at);
            said.alerts += 1;
            said.policies.insert(policy.clone());
        }
        keys
    }
}

#[derive(Debug, Default, Serialize)]
struct Difference {
    both: Vec<Line>,
    only_live: Vec<Line>,
    only_shadow: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    scope: String,
    key: String,
    live: Option<Said>,
    shadow: Option<Said>,
}

impl Difference {
    fn of(live: &BTreeMap<Key, Said>, shadow: &BTreeMap<Key, Said>) -> Self {
        let mut difference = Self::default();
        let keys: BTreeSet<&Key> = live.keys().chain(shadow.keys()).collect();
        for key in keys {
            let (scope, name) = key.clone();
            let (live, shadow) = (live.get(key).cloned(), shadow.get(key).cloned());
            let list = match (&live, &shadow) {
                (Some(_), Some(_)) => &mut difference.both,
                (Some(_), None) => &mut difference.only_live,
                (None, _) => &mut difference.only_shadow,
            };
            list.push(Line { scope, key: name, live, shadow });
        }
        difference
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (title, lines) in [
            ("live and shadow", &self.both),
            ("live alone", &self.only_live),
            ("shadow alone", &self.only_shadow),
        ] {
            text.write_fmt(format_args!("{title}: {} keys\n", lines.len()))
                .expect("writing to a string cannot fail");
            for line in lines {
                text.push_str("  ");
                text.push_str(&line.text());
                text.push('\n');
            }
        }
        text
    }
}

impl Line {
    /// `account c: live 2026-03-01 02:00, shadow 2026-03-01 01:00 (1 h earlier); p, q`
    fn text(&self) -> String {
        let Self { scope, key, live, shadow } = self;
        let when = |side: &str, said: &Option<Said>| {
            said.as_ref().map(|said| format!("{side} {}", minute(said.first_at)))
        };
        let times: Vec<String> =
            [when("live", live), when("shadow", shadow)].into_iter().flatten().collect();
        let lead = match (live, shadow) {
            (Some(live), Some(shadow)) if live.first_at != shadow.first_at => {
                let (a, b) = (live.first_at, shadow.first_at);
                let hours = a.since(b).as_seconds().max(b.since(a).as_seconds()) / 3600.0;
                format!(" ({hours:.0} h {})", if b < a { "earlier" } else { "later" })
            }
            (_, _) => String::new(),
        };
        let policies: BTreeSet<&str> = [live, shadow]
            .into_iter()
            .flatten()
            .flat_map(|said| &said.policies)
            .map(String::as_str)
            .collect();
        let policies: Vec<&str> = policies.into_iter().collect();
        format!("{scope} {key}: {}{lead}; {}", times.join(", "), policies.join(", "))
    }
}
