//! What is true of a history: which owners ran what should be found, by the file that
//! `simulate --truth` writes or one of the same form.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::error::Fatal;

/// Scenarios of `simulate` that are foreign training runs. `--positive` takes others.
pub(super) const POSITIVE: [&str; 5] =
    ["steady-training", "split-accounts", "split-regions", "subsidiary", "below-threshold"];

/// Owners whose use should be found.
#[derive(Debug, Default)]
pub(super) struct Labels {
    pub(super) runs: Vec<Run>,
    pub(super) rows: usize,
}

/// One owner with its labelled accounts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) owner: String,
    pub(super) accounts: BTreeSet<String>,
    /// All that they used, in GFLOP.
    pub(super) flop_gflop: i128,
}

impl Run {
    /// Whether an alert on this key points at the run. A country's points at nobody.
    pub(super) fn is_meant(&self, scope: &str, key: &str) -> bool {
        match scope {
            "account" => self.accounts.contains(key),
            "site" => self.accounts.iter().any(|account| {
                key.strip_prefix(account.as_str()).is_some_and(|rest| rest.starts_with('@'))
            }),
            "owner" => self.owner == key || self.accounts.contains(key),
            _ => false,
        }
    }
}

impl Labels {
    pub(super) fn read(path: &Path, positive: &[String]) -> Result<Self, Fatal> {
        let refuse = |detail: &dyn std::fmt::Display| {
            Fatal::Input(format!("{}: these are no labels: {detail}", path.display()))
        };
        let text = fs::read(path).map_err(|error| refuse(&error))?;
        Self::parse(&text, positive).map_err(|detail| refuse(&detail))
    }

    /// Needs a column `account`, and `label` (true or false) or `scenario`; `owner`, `foreign` and
    /// `flop_gflop` are used where they are.
    fn parse(text: &[u8], positive: &[String]) -> Result<Self, String> {
        let mut reader = csv::Reader::from_reader(text);
        let header = reader.headers().map_err(|error| error.to_string())?.clone();
        let column = |name: &str| header.iter().position(|column| column == name);
        let account = column("account").ok_or("right would be a column account")?;
        let (label, scenario) = (column("label"), column("scenario"));
        if label.is_none() && scenario.is_none() {
            return Err("right would be a column label, or scenario".into());
        }
        let (owner, foreign, flop) = (column("owner"), column("foreign"), column("flop_gflop"));
        let mut runs: BTreeMap<String, Run> = BTreeMap::new();
        let mut rows = 0;
        for row in reader.records() {
            let row = row.map_err(|error| error.to_string())?;
            rows += 1;
            let line = row.position().map_or(0, csv::Position::line);
            let text = |column: usize| row.get(column).unwrap_or_default().trim();
            let is_positive = match (label, scenario) {
                (Some(label), _) => flag(text(label), line)?,
                (None, Some(scenario)) => {
                    let is_foreign =
                        foreign.map_or(Ok(true), |foreign| flag(text(foreign), line))?;
                    is_foreign && positive.iter().any(|name| name == text(scenario))
                }
                (None, None) => unreachable!("refused above"),
            };
            if !is_positive {
                continue;
            }
            let account = text(account).to_owned();
            let named = owner.map(text).filter(|owner| !owner.is_empty());
            let owner = named.unwrap_or(&account).to_owned();
            let run = runs.entry(owner.clone()).or_insert_with(|| Run { owner, ..Run::default() });
            run.accounts.insert(account);
            if let Some(flop) = flop {
                run.flop_gflop += text(flop)
                    .parse::<i128>()
                    .map_err(|_| format!("line {line}: {:?} is no integer", text(flop)))?;
            }
        }
        Ok(Self { runs: runs.into_values().collect(), rows })
    }
}

fn flag(text: &str, line: u64) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" | "" => Ok(false),
        _ => Err(format!("line {line}: {text:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positive() -> Vec<String> {
        POSITIVE.map(str::to_owned).to_vec()
    }

    #[test]
    fn accounts_of_one_owner_are_one_run_and_only_foreign_training_counts() {
        let text = "account,scenario,owner,foreign,flop_gflop\n\
                    a,split-accounts,o,true,5\nb,split-accounts,o,true,7\n\
                    c,steady-training,c,false,9\nd,inference,d,true,9\n";
        let labels = Labels::parse(text.as_bytes(), &positive()).expect("labels");
        assert_eq!(labels.rows, 4);
        let accounts = ["a", "b"].map(str::to_owned).into();
        assert_eq!(labels.runs, [Run { owner: "o".into(), accounts, flop_gflop: 12 }]);
        let run = &labels.runs[0];
        assert!(run.is_meant("account", "a") && run.is_meant("site", "b@x"));
        assert!(run.is_meant("owner", "o") && !run.is_meant("owner", "c"));
        assert!(!run.is_meant("country", "CN") && !run.is_meant("site", "ab@x"));
    }

    #[test]
    fn a_column_of_labels_needs_no_scenario() {
        let labels = Labels::parse(b"account,label\nx,yes\ny,no\n", &[]).expect("labels");
        assert_eq!(labels.runs.len(), 1);
        assert_eq!(labels.runs[0].owner, "x");
        assert!(Labels::parse(b"account\nx\n", &[]).is_err());
        assert!(Labels::parse(b"account,label\nx,perhaps\n", &[]).is_err());
    }
}
