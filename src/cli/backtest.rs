//! `flopwatch backtest`: candidate policies against the current ones on a history, in one pass.

mod history;
mod labels;
mod plot;
mod report;
mod score;
mod sweep;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use self::history::History;
use self::labels::{Labels, POSITIVE};
use self::report::{Report, SweepReport};
use self::sweep::{Step, Sweep};
use super::replay::{FileSource, read_accounts};
use crate::config::{Config, load_candidate};
use crate::detector::policy::Policy;
use crate::error::Fatal;
use crate::replay::{Source, replay};

/// Judge a history by candidate policies and by the current ones, in one pass.
///
/// Policies of the same id are compared: new, lost and changed alerts by key. With labels, also how
/// many alerts are true, how many runs are found, and how early.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Candidate: a policy file, or preset:NAME; may be given more than once.
    #[arg(long, value_name = "FILE", required = true)]
    policies: Vec<String>,
    /// Configuration file with the current policies; without one every setting has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Account directory; may be given more than once, read in order.
    #[arg(long, value_name = "FILE")]
    accounts: Vec<PathBuf>,
    /// Usage events: each file is one partition.
    #[arg(long, value_name = "FILE", required = true)]
    usage: Vec<PathBuf>,
    /// What is true: the file that `simulate --truth` writes, or a CSV with account and label.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// A scenario of the labels that should be found; may be given more than once [default: the
    /// foreign training runs of `simulate`].
    #[arg(long, value_name = "NAME", requires = "labels")]
    positive: Vec<String>,
    /// One threshold over a range: policy.condition=from..to/steps; the condition by its metric or
    /// its place from 1.
    #[arg(long, value_name = "RANGE", value_parser = sweep::parse)]
    sweep: Option<Sweep>,
    /// The sweep as an SVG picture.
    #[arg(long, value_name = "FILE", requires = "sweep")]
    plot: Option<PathBuf>,
    /// For machines.
    #[arg(long)]
    json: bool,
}

pub fn execute(args: &Args) -> Result<(), Fatal> {
    let config = Config::load(args.config.as_deref())?;
    let candidate = load_candidate(&config.source, &args.policies)?;
    let mut sets = vec![config.policies.list.clone(), candidate.list];
    if let Some(sweep) = &args.sweep {
        // the candidate's wording where it has the policy, else the current one
        let preferred = [sets[1].clone(), sets[0].clone()];
        let swept = sweep.policies(&preferred).map_err(Fatal::Config)?;
        sets.extend(swept.into_iter().map(|policy| vec![policy]));
    }
    let positive = if args.positive.is_empty() {
        POSITIVE.map(str::to_owned).to_vec()
    } else {
        args.positive.clone()
    };
    let labels = args.labels.as_deref().map(|path| Labels::read(path, &positive)).transpose()?;
    let accounts = read_accounts(&args.accounts, &config)?;
    let position = Arc::new(AtomicU64::new(0));
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    for path in &args.usage {
        sources.push(Box::new(FileSource::open(path, Arc::clone(&position))?));
    }
    let mut history = History::new(sets.len(), labels.as_ref(), config.rules.finest().slice);
    let policies = Arc::new(history::all(&sets));
    let outcome = replay(&config.rules, &policies, &accounts, sources, &mut history)?;
    let tally = (outcome.tally.read, outcome.tally.counted);
    let report = report(args, &sets, labels.as_ref(), &history, tally);
    if let (Some(path), Some(sweep), Some(swept)) = (&args.plot, &args.sweep, &report.sweep) {
        let (in_force, logarithmic) = (swept.in_force, sweep.is_logarithmic());
        let picture = plot::svg(&swept.of, &swept.steps, in_force, logarithmic);
        fs::write(path, picture).map_err(|error| {
            Fatal::Input(format!("{}: cannot be written: {error}", path.display()))
        })?;
    }
    let text = if args.json {
        serde_json::to_string(&report).expect("our own values are JSON") + "\n"
    } else {
        report.text()
    };
    super::print(&text)
}

fn report(
    args: &Args,
    sets: &[Vec<Policy>],
    labels: Option<&Labels>,
    history: &History,
    (read, counted): (u64, u64),
) -> Report {
    let (current, candidate) = (&sets[0], &sets[1]);
    let is_alone = |policy: &&Policy| !candidate.iter().any(|other| other.id == policy.id);
    let alone = current.iter().filter(is_alone);
    let revisions = history.sets.iter().flat_map(|set| set.values()).flat_map(|keys| keys.values());
    let last = revisions.flat_map(|told| &told.revisions).map(|(_, at)| *at).max();
    Report {
        read,
        counted,
        from: history.from(),
        until: last,
        labels: labels.map(|labels| report::labelled(labels, history)),
        policies: report::compare(current, candidate, labels, history),
        only_current: alone
            .map(|policy| report::counted(policy, &history.sets[0], labels, history))
            .collect(),
        sweep: args.sweep.as_ref().map(|sweep| swept(sweep, sets, labels, history)),
    }
}

fn swept(
    sweep: &Sweep,
    sets: &[Vec<Policy>],
    labels: Option<&Labels>,
    history: &History,
) -> SweepReport {
    let thresholds = sweep.thresholds();
    let step = |(number, at_least): (usize, &f64)| {
        // the sets of the sweep stand behind current and candidate, with one policy each
        let (policy, alerts) = (&sets[number + 2][0], &history.sets[number + 2]);
        let counted = report::counted(policy, alerts, labels, history);
        Step {
            at_least: *at_least,
            keys: counted.keys,
            alerts: counted.alerts,
            score: counted.score,
        }
    };
    SweepReport {
        of: sweep.title(),
        in_force: sweep.in_force(&sets[0]),
        steps: thresholds.iter().enumerate().map(step).collect(),
    }
}
