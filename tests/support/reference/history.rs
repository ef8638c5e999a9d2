//! SPEC 5 and 7: what can be seen at the judgement of a slice end: slices of every tier, who is in
//! which group, windows and runs. Nothing is carried from one judgement to the next.

use std::collections::{BTreeMap, BTreeSet};

use super::input::{DAY, HOUR, Nanos, Scenario, Scope, Settings, Tier, ceil_to};
use super::metering::{Amount, Metered, Part, to_f64};
use super::origin::{Standing, country_standing, owner_at, standing};
use super::{Fault, LedgerKey};

/// All parts of a case, and the facts that say when each is visible.
pub(crate) struct History<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) metered: &'a Metered,
    pub(crate) fault: Fault,
}

/// The judgement of one slice end.
pub(crate) struct Judgement<'a> {
    pub(crate) history: &'a History<'a>,
    pub(crate) end: Nanos,
    /// Parts that their tags let through, whether or not a tier still keeps them.
    visible: Vec<&'a Part>,
    /// Account and fabric of the parts whose slice some tier still keeps.
    retained: BTreeSet<(&'a str, &'a str)>,
    /// Accounts of the visible parts, as they stand at this step.
    standings: BTreeMap<&'a str, Standing>,
}

/// A window's slices that exist, and its sum.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Window<'a> {
    pub(crate) length: Nanos,
    pub(crate) slice: Nanos,
    pub(crate) slices: BTreeMap<Nanos, Amount>,
    pub(crate) sum: Amount,
    pub(crate) parts: Vec<&'a Part>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Run {
    pub(crate) start: Nanos,
    pub(crate) hours: f64,
    pub(crate) sum: Amount,
    /// Its last min(24 h, run_hours), and how long that is.
    pub(crate) recent: Amount,
    pub(crate) recent_length: Nanos,
}

impl<'a> History<'a> {
    fn settings(&self) -> &'a Settings {
        &self.scenario.settings
    }

    pub(crate) fn finest(&self) -> Tier {
        self.settings().tiers[0]
    }

    /// A sum is applied at the first step above its tag.
    fn step_of(&self, part: &Part) -> Nanos {
        part.tag + self.settings().epoch
    }

    /// The step that judges the slice end.
    fn step_judging(&self, end: Nanos) -> Nanos {
        end + self.settings().lateness
    }

    /// Whether a slice has not left its tier before the judgement of `end`: what ended at or before
    /// `judged - keep` left after each earlier judgement.
    fn is_kept(&self, tier: Tier, slice_end: Nanos, end: Nanos) -> bool {
        let last_to_leave = end - self.finest().slice - tier.keep;
        slice_end > last_to_leave
            || (slice_end == last_to_leave && self.fault == Fault::KeepsASliceTooLong)
    }

    fn is_kept_somewhere(&self, part: &Part, end: Nanos) -> bool {
        let mut tiers = self.settings().tiers.iter().zip(&part.tier_ends);
        tiers.any(|(tier, slice_end)| self.is_kept(*tier, *slice_end, end))
    }

    pub(crate) fn judge(&'a self, end: Nanos) -> Judgement<'a> {
        let step = self.step_judging(end);
        let visible: Vec<&Part> =
            self.metered.parts.iter().filter(|part| self.step_of(part) <= step).collect();
        let accounts: BTreeSet<&str> = visible.iter().map(|part| part.account.as_str()).collect();
        let standings =
            accounts.into_iter().map(|account| (account, self.standing(account, step))).collect();
        let retained = visible
            .iter()
            .filter(|part| self.is_kept_somewhere(part, end))
            .map(|part| (part.account.as_str(), part.fabric.as_str()))
            .collect();
        Judgement { history: self, end, visible, retained, standings }
    }

    pub(crate) fn standing(&self, account: &str, step: Nanos) -> Standing {
        standing(self.settings(), &self.scenario.directory, account, step, self.fault)
    }

    fn owner_at(&self, account: &'a str, step: Nanos) -> &'a str {
        owner_at(&self.scenario.directory, account, step, self.fault)
    }

    /// Slice ends of the finest tier that can differ from silence, up to the last one judged.
    pub(crate) fn ends(&self) -> Vec<Nanos> {
        let slice = self.finest().slice;
        let Some(greatest) = self.metered.greatest else { return Vec::new() };
        let first = self.metered.parts.iter().map(|part| part.slice_end).min().unwrap_or(greatest);
        let mut ends = Vec::new();
        let mut end = ceil_to(first, slice);
        while end <= greatest {
            ends.push(end);
            end += slice;
        }
        ends
    }

    /// What `--ledger` lists: slices of the finest tier kept when all has been applied and judged.
    pub(crate) fn ledger(&self) -> BTreeMap<LedgerKey, Amount> {
        let mut ledger = BTreeMap::new();
        let Some(greatest) = self.metered.greatest else { return ledger };
        let finest = self.finest();
        let last_end = greatest.div_euclid(finest.slice) * finest.slice;
        let last_applied = self.metered.parts.iter().map(|part| self.step_of(part)).max();
        let last_step = self.step_judging(last_end).max(last_applied.unwrap_or(0));
        for part in &self.metered.parts {
            if part.slice_end <= last_end - finest.keep {
                continue;
            }
            let standing = self.standing(&part.account, last_step);
            let keys = [
                ("account", part.account.clone()),
                ("owner", standing.owner),
                ("country", standing.country),
            ];
            for (scope, key) in keys {
                let sum: &mut Amount =
                    ledger.entry((scope.to_owned(), key, part.slice_end)).or_default();
                *sum = sum.plus(part.amount);
            }
        }
        ledger.retain(|_, sum| *sum != Amount::default());
        ledger
    }
}

impl<'a> Judgement<'a> {
    fn settings(&self) -> &'a Settings {
        &self.history.scenario.settings
    }

    pub(crate) fn step(&self) -> Nanos {
        self.history.step_judging(self.end)
    }

    fn key_of(&self, scope: Scope, account: &str, fabric: &str) -> Option<String> {
        match scope {
            Scope::Account => Some(account.to_owned()),
            Scope::Site => (!fabric.is_empty()).then(|| format!("{account}@{fabric}")),
            Scope::Owner => Some(self.standings[account].owner.clone()),
            Scope::Country => Some(self.standings[account].country.clone()),
        }
    }

    /// As `key_of`, without building the key.
    fn is_of(&self, scope: Scope, key: &str, account: &str, fabric: &str) -> bool {
        match scope {
            Scope::Account => account == key,
            Scope::Site => {
                let rest = key.strip_prefix(account).and_then(|rest| rest.strip_prefix('@'));
                !fabric.is_empty() && rest == Some(fabric)
            }
            Scope::Owner => self.standings[account].owner == key,
            Scope::Country => self.standings[account].country == key,
        }
    }

    /// Keys that have a retained slice in any tier.
    pub(crate) fn keys(&self, scope: Scope) -> BTreeSet<String> {
        let retained = self.retained.iter();
        retained.filter_map(|(account, fabric)| self.key_of(scope, account, fabric)).collect()
    }

    /// The accounts of a key with a retained slice, in order of id, as they stand.
    pub(crate) fn members(&self, scope: Scope, key: &str) -> Vec<(String, Standing)> {
        let accounts: BTreeSet<&str> = self
            .retained
            .iter()
            .filter(|(account, fabric)| self.is_of(scope, key, account, fabric))
            .map(|(account, _)| *account)
            .collect();
        accounts
            .into_iter()
            .map(|account| (account.to_owned(), self.standings[account].clone()))
            .collect()
    }

    /// The standings that a policy's `origin` is matched against.
    pub(crate) fn origins(&self, scope: Scope, key: &str) -> Vec<Standing> {
        match scope {
            // An account and its sites have an origin also while they have no slices.
            Scope::Account | Scope::Site => {
                vec![self.history.standing(self.account_of(scope, key), self.step())]
            }
            Scope::Owner => self.members(scope, key).into_iter().map(|member| member.1).collect(),
            Scope::Country => vec![country_standing(self.settings(), key)],
        }
    }

    pub(crate) fn account_of<'b>(&self, scope: Scope, key: &'b str) -> &'b str {
        match scope {
            Scope::Site => key.split_once('@').expect("a site's key has a fabric").0,
            Scope::Account | Scope::Owner | Scope::Country => key,
        }
    }

    /// The finest tier that keeps `length` and divides it, up to its last boundary <= E.
    pub(crate) fn window(&self, scope: Scope, key: &str, length: Nanos) -> Window<'a> {
        let tiers = &self.settings().tiers;
        let place = tiers
            .iter()
            .position(|tier| tier.keep >= length && length % tier.slice == 0)
            .expect("scenarios use windows that a tier keeps");
        let tier = tiers[place];
        let last = self.end.div_euclid(tier.slice) * tier.slice;
        let first = last - length;
        let mut window = Window {
            length,
            slice: tier.slice,
            slices: BTreeMap::new(),
            sum: Amount::default(),
            parts: Vec::new(),
        };
        for part in &self.visible {
            let slice_end = part.tier_ends[place];
            let inside = first < slice_end && slice_end <= last;
            if inside && self.is_of(scope, key, &part.account, &part.fabric) {
                let slice = window.slices.entry(slice_end).or_default();
                *slice = slice.plus(part.amount);
                window.sum = window.sum.plus(part.amount);
                window.parts.push(part);
            }
        }
        window
    }

    /// The run that is not over at E, of an account or owner.
    pub(crate) fn run(&self, scope: Scope, key: &str) -> Option<Run> {
        let slice = self.history.finest().slice;
        let max_gap = self.settings().max_gap;
        let minimum = self.settings().min_accelerators * to_f64(slice) / 1e6;
        let slices = self.run_slices(scope, key);
        let active: Vec<Nanos> = slices
            .iter()
            .filter(|(_, (fixed, _))| to_f64(fixed.accelerator_ms) >= minimum)
            .map(|(end, _)| *end)
            .collect();
        let last = *active.last()?;
        let over = if self.history.fault == Fault::RunsOverAtTheGap {
            self.end - last >= max_gap
        } else {
            self.end - last > max_gap
        };
        if over {
            return None;
        }
        let mut first = last;
        for end in active.iter().rev() {
            if first - end <= max_gap {
                first = *end;
            } else {
                break;
            }
        }
        let start = first - slice;
        let recent_length = (self.end - start).min(DAY);
        let since = |after: Nanos| {
            Amount::sum(slices.iter().filter(|(end, _)| **end > after).map(|(_, (_, all))| *all))
        };
        Some(Run {
            start,
            hours: to_f64(self.end - start) / to_f64(HOUR),
            sum: since(start),
            recent: since(self.end - recent_length),
            recent_length,
        })
    }

    /// For each slice of the finest tier up to E that ever held a part of this key: the amount that
    /// decides activity, and the amount that adds FLOP.
    ///
    /// A slice in its tier belongs to the groups its accounts are in now. One that has left belongs
    /// to those they were in then, as it was then; what came later went to the group of its step.
    fn run_slices(&self, scope: Scope, key: &str) -> BTreeMap<Nanos, (Amount, Amount)> {
        let finest = self.history.finest();
        let belongs = |part: &'a Part, step: Nanos| match scope {
            Scope::Account => part.account == key,
            Scope::Owner if step == self.step() => {
                self.is_of(scope, key, &part.account, &part.fabric)
            }
            Scope::Owner => self.history.owner_at(&part.account, step) == key,
            Scope::Site | Scope::Country => false,
        };
        let mut slices: BTreeMap<Nanos, (Amount, Amount)> = BTreeMap::new();
        for &part in self.visible.iter().filter(|part| part.slice_end <= self.end) {
            let kept = self.history.is_kept(finest, part.slice_end, self.end);
            let left_after = ceil_to(part.slice_end + finest.keep, finest.slice);
            let decided = if kept { self.step() } else { self.history.step_judging(left_after) };
            let applied = self.history.step_of(part);
            let fault = self.history.fault;
            let in_time = applied <= decided || fault == Fault::NeverFixesActivity;
            let owned = match (fault, in_time) {
                (Fault::MovesRunsWithTheirOwner, _) => self.step(),
                (_, true) => decided,
                (_, false) => applied,
            };
            if !in_time && fault == Fault::LosesLateSumsOfARun {
                continue;
            }
            if belongs(part, owned) {
                let (fixed, all) = slices.entry(part.slice_end).or_default();
                if in_time {
                    *fixed = fixed.plus(part.amount);
                }
                *all = all.plus(part.amount);
            }
        }
        slices
    }
}
