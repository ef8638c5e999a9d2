//! STAGE 3, per group-usage partition: align, windows, runs, policies by owner and country.
//!
//! GROUP knows of accounts only what ACCOUNT says: which are members of a group, and for owners
//! what the directory says of each.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::alert::Firing;
use super::align::Align;
use super::changelog::{Reader, Writer, damaged};
use super::directory::{Country, Facts, Origin};
use super::event::Record;
use super::internal::{
    GroupKey, GroupSum, GroupUsage, Membership, partition_of, unpack_group_usage,
};
use super::judge::{Behind, Description, Subject, may_meet};
use super::key_state::{KeyState, StateKey, check_stamp, log_alignment};
use super::keyed::Keyed;
use super::measure::Measure;
use super::names::{NameId, Names};
use super::outbox::Outbox;
use super::policy::{OriginMatch, Policies, Scope};
use super::rules::Rules;
use super::time::Timestamp;
use super::{Stage, StageError, publish_alerts};

/// Accounts that an owner's alert names.
const ACCOUNTS_NAMED: usize = 100;

#[derive(Debug)]
pub struct Group {
    rules: Arc<Rules>,
    policies: Arc<Policies>,
    names: Names,
    align: Align<Entry>,
    groups: Keyed<GroupKey, GroupState>,
    expired: Option<Timestamp>,
    /// The watermark at the last commit.
    committed: Option<Timestamp>,
    /// Records of our own input that retention removed before they were read.
    gap: u64,
    align_changed: bool,
    last_judged: Option<Timestamp>,
}

#[derive(Debug)]
enum Entry {
    Sum(GroupSum),
    Membership(Membership),
}

#[derive(Debug)]
struct GroupState {
    sums: KeyState,
    /// An owner's accounts with a retained slice; a country only counts them. Boxed, since a map of
    /// one entry takes the room of eleven.
    accounts: BTreeMap<Box<str>, Box<Facts>>,
    members: u64,
}

impl Group {
    pub fn new(rules: Arc<Rules>, policies: Arc<Policies>) -> Self {
        let align = Align::new(rules.time.epoch);
        Self {
            rules,
            policies,
            names: Names::default(),
            align,
            groups: Keyed::default(),
            expired: None,
            committed: None,
            gap: 0,
            align_changed: false,
            last_judged: None,
        }
    }

    /// Takes effect at the next judgement.
    pub fn set_policies(&mut self, policies: Arc<Policies>) {
        self.policies = policies;
    }

    /// The last step taken.
    pub fn watermark(&self) -> Option<Timestamp> {
        self.align.step()
    }

    /// Retention removed this many records of the input before they were read.
    pub fn accept_gap(&mut self, records: u64) {
        self.gap += records;
        self.align_changed = true;
    }

    /// The alerts that fire.
    pub fn firing(&self) -> Firing {
        let mut firing = Firing::default();
        self.groups.iter().for_each(|(key, group)| firing.count(key.scope, &group.sums.episodes));
        firing
    }

    /// Owners and countries with state.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The usage has ended at `stream_time`: no later slice end is judged, though ACCOUNT's last
    /// steps, which are yet to come, may lie behind it.
    pub fn end_at(&mut self, stream_time: Timestamp) {
        self.last_judged = Some(stream_time.floor(self.rules.finest().slice));
    }

    /// ACCOUNT has finished: applies every sum in order, and judges up to `stream_time`.
    pub fn finish(
        &mut self,
        stream_time: Timestamp,
        outbox: &mut Outbox,
    ) -> Result<(), StageError> {
        self.end_at(stream_time);
        let last = stream_time.floor(self.rules.finest().slice);
        let last_step = last.plus(self.rules.time.lateness);
        while let Some((step, entries)) = self.align.next_final_step(last_step) {
            self.step(step, entries, outbox)?;
        }
        self.expire(last);
        Ok(())
    }

    /// Every retained slice of the finest tier, by scope and key, with its sum.
    pub fn ledger(&self) -> impl Iterator<Item = (Scope, &str, Timestamp, Measure)> {
        self.groups.iter().flat_map(|(key, group)| {
            let slices = group.sums.windows.all_slices(0, &self.rules.finest());
            let name = self.names.text(key.name);
            slices.into_iter().map(move |(end, measure)| (key.scope, name, end, measure))
        })
    }

    /// How many accounts each owner and country has with a retained slice, by scope and key.
    pub fn members(&self) -> impl Iterator<Item = (Scope, &str, u64)> {
        self.groups.iter().map(|(key, group)| {
            let accounts = group.accounts.len() as u64;
            (key.scope, self.names.text(key.name), group.members.max(accounts))
        })
    }
}

impl GroupKey {
    /// The partition of a group among `partitions`.
    pub fn partition(self, names: &Names, partitions: u32) -> u32 {
        partition_of(&format!("{}/{}", self.scope.name(), names.text(self.name)), partitions)
    }

    /// The scope byte of GROUP's changelog keys.
    fn scope_byte(self) -> u8 {
        if self.scope == Scope::Country { b'c' } else { b'o' }
    }
}

impl Stage for Group {
    fn process(&mut self, record: &Record<'_>, outbox: &mut Outbox) -> Result<(), StageError> {
        let value = record.value.ok_or_else(|| damaged("group usage"))?;
        let usage: GroupUsage = unpack_group_usage(value, &mut self.names)?;
        let tag = usage.tag;
        let memberships = usage.memberships.into_iter().map(Entry::Membership);
        let entries = memberships.chain(usage.sums.into_iter().map(Entry::Sum));
        self.align.read(record.offset, usage.announcement, entries.map(|entry| (tag, entry)));
        self.align_changed = true;
        while let Some((step, entries)) = self.align.next_step() {
            self.step(step, entries, outbox)?;
        }
        Ok(())
    }

    fn seal(&mut self, outbox: &mut Outbox) {
        self.committed = self.align.step();
        self.log(outbox);
        if self.names.is_crowded() {
            self.free_names();
        }
    }

    fn position(&self) -> Option<u64> {
        self.align.position()
    }

    fn restore(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StageError> {
        let group = |scope: u8, key: &str, names: &mut Names| {
            let scope = if scope == b'c' { Scope::Country } else { Scope::Owner };
            GroupKey { scope, name: names.intern(key) }
        };
        match (StateKey::parse(key)?, value) {
            (StateKey::Align, Some(value)) => {
                let mut reader = Reader::new(value)?;
                check_stamp(&self.rules, &mut reader)?;
                self.gap = reader.number()?;
                self.align.restore(&mut reader)
            }
            (StateKey::Align, None) => Err(damaged("the alignment")),
            (StateKey::Head { scope, key }, Some(value)) => {
                let key = group(scope, key, &mut self.names);
                let slot = self.slot(key);
                let (_, state) = self.groups.at(slot).expect("found or made just before");
                state.read_head(&mut self.names, value)
            }
            (StateKey::Head { scope, key }, None) => {
                self.groups.remove(group(scope, key, &mut self.names));
                Ok(())
            }
            (StateKey::Slices { scope, block, key }, value) => {
                let key = group(scope, key, &mut self.names);
                if value.is_some() {
                    self.slot(key);
                }
                let Some(state) = self.groups.get_mut(key) else { return Ok(()) };
                state.sums.windows.restore(&self.rules.tiers, block, value)
            }
        }
    }

    fn is_urgent(&self) -> bool {
        self.align.step() != self.committed
    }
}

/// One step.
impl Group {
    fn step(
        &mut self,
        step: Timestamp,
        entries: Vec<Entry>,
        outbox: &mut Outbox,
    ) -> Result<(), StageError> {
        let judged = self.rules.judged(step.minus(self.rules.time.epoch));
        self.expire(judged);
        for entry in entries {
            self.tally(&entry, outbox);
            self.apply(entry, judged)?;
        }
        self.judge(step, outbox);
        outbox.tally.steps += 1;
        Ok(())
    }

    fn expire(&mut self, judged: Timestamp) {
        if self.expired == Some(judged) {
            return;
        }
        self.expired = Some(judged);
        self.groups.each_mut(|_, group| {
            group.sums.expire(&self.rules, judged);
            group.sums.is_changed()
        });
    }

    /// The group's slot; a new one has nothing yet.
    fn slot(&mut self, key: GroupKey) -> u32 {
        self.groups.slot_or_insert_with(key, || GroupState::new(&self.rules))
    }

    /// Counts compute where it is first known by country: what moves between groups is not new.
    fn tally(&self, entry: &Entry, outbox: &mut Outbox) {
        if let Entry::Sum(GroupSum { group, tier: None, measure, .. }) = entry
            && group.scope == Scope::Country
        {
            let country = Country::parse(self.names.text(group.name)).unwrap_or(Country::UNKNOWN);
            outbox.tally.compute_of(country, &self.rules.origin.home, measure);
        }
    }

    fn apply(&mut self, entry: Entry, judged: Timestamp) -> Result<(), StageError> {
        let key = match &entry {
            Entry::Sum(sum) => sum.group,
            Entry::Membership(membership) => membership.group,
        };
        let slot = self.slot(key);
        let (_, group) = self.groups.at(slot).expect("found or made just before");
        match entry {
            Entry::Sum(sum) => match sum.tier {
                None => {
                    group.sums.add(&self.rules, judged, sum.slice_end, sum.place, sum.measure);
                }
                Some(tier) => group.sums.add_moved(
                    &self.rules,
                    judged,
                    tier,
                    sum.slice_end,
                    sum.place,
                    sum.measure,
                ),
            },
            Entry::Membership(membership) => {
                group.apply_membership(&membership, self.names.text(membership.account))?;
            }
        }
        self.groups.touch(slot);
        Ok(())
    }

    fn judge(&mut self, step: Timestamp, outbox: &mut Outbox) {
        let Some(at) = self.rules.judged_at(step) else { return };
        if self.last_judged.is_some_and(|last| at > last) {
            return;
        }
        let mut alerts = Vec::new();
        // every ACCOUNT partition has heard of the same METER partitions
        let gap = self.gap + self.align.gaps().max().unwrap_or_default();
        let (rules, names, policies) = (&self.rules, &self.names, &self.policies);
        outbox.tally.judged += self.groups.len() as u64;
        self.groups.each_mut(|key, group| {
            let idle = group.sums.episodes.is_empty();
            if idle && !may_meet(policies, key.scope, rules, &group.sums) {
                return false;
            }
            let has_runs = key.scope == Scope::Owner;
            let run = if has_runs { group.sums.run(rules, at) } else { None };
            let mut episodes = std::mem::take(&mut group.sums.episodes);
            let behind = OneGroup { scope: key.scope, name: names.text(key.name), group, rules };
            let changed = Subject::new(key.scope, at, rules, names, &group.sums.windows, &behind)
                .with_gap(gap)
                .with_run(run)
                .judge(policies, &mut episodes, &mut alerts);
            group.sums.episodes = episodes;
            group.sums.head_changed |= changed;
            changed
        });
        publish_alerts(alerts, outbox);
    }

    fn log(&mut self, outbox: &mut Outbox) {
        for slot in self.groups.take_touched() {
            let Some((key, group)) = self.groups.at(slot) else { continue };
            let (scope, name) = (key.scope_byte(), self.names.text(key.name));
            let head_changed = group.sums.log_blocks(scope, name, outbox);
            let over = group.is_over();
            if over || head_changed {
                let value = (!over).then(|| group.write_head(&self.names));
                outbox.change(StateKey::Head { scope, key: name }.bytes(), value);
            }
            if over {
                self.groups.remove(key);
            }
        }
        if std::mem::take(&mut self.align_changed) {
            log_alignment(&self.rules, self.gap, &self.align, outbox);
        }
    }
}

impl Group {
    /// Names that neither state nor waiting entries refer to; nothing else outlives a commit.
    fn free_names(&mut self) {
        let Self { names, groups, align, .. } = self;
        let waiting = align.pending().flat_map(|entry| {
            let (group, names) = match entry {
                Entry::Sum(sum) => (sum.group, sum.place.names()),
                Entry::Membership(membership) => {
                    (membership.group, [membership.account, NameId::EMPTY, NameId::EMPTY])
                }
            };
            [group.name].into_iter().chain(names)
        });
        let held = groups
            .iter()
            .flat_map(|(key, group)| [key.name].into_iter().chain(group.sums.windows.names()));
        names.keep(waiting.chain(held));
    }
}

impl GroupState {
    fn new(rules: &Rules) -> Self {
        Self { sums: KeyState::new(rules), accounts: BTreeMap::new(), members: 0 }
    }

    fn apply_membership(
        &mut self,
        membership: &Membership,
        account: &str,
    ) -> Result<(), StageError> {
        self.sums.head_changed = true;
        if membership.group.scope == Scope::Country {
            let members = match membership.member {
                true => self.members.checked_add(1),
                // only members leave, unless retention took the record by which one joined
                false => Some(self.members.saturating_sub(1)),
            };
            self.members = members.ok_or_else(|| damaged("a count of members"))?;
        } else if membership.member {
            let facts = Facts::read(&mut Reader::new(&membership.facts)?)?;
            self.accounts.insert(account.into(), facts.into());
        } else {
            self.accounts.remove(account);
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.sums.is_over() && self.accounts.is_empty() && self.members == 0
    }

    fn write_head(&mut self, names: &Names) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.unsigned(self.members);
        writer.unsigned(self.accounts.len() as u64);
        for (account, facts) in &self.accounts {
            writer.text(account);
            facts.write(&mut writer);
        }
        self.sums.write(names, &mut writer);
        writer.finish()
    }

    fn read_head(&mut self, names: &mut Names, value: &[u8]) -> Result<(), StageError> {
        let mut reader = Reader::new(value)?;
        self.members = reader.number()?;
        self.accounts.clear();
        for _ in 0..reader.small()? {
            let account = reader.text()?.into();
            self.accounts.insert(account, Facts::read(&mut reader)?.into());
        }
        self.sums.read(names, &mut reader)
    }
}

struct OneGroup<'a> {
    scope: Scope,
    name: &'a str,
    group: &'a GroupState,
    rules: &'a Rules,
}

impl OneGroup<'_> {
    fn country(&self) -> Origin {
        let country = Country::parse(self.name).unwrap_or(Country::UNKNOWN);
        Origin::of_country(country, &self.rules.origin)
    }

    /// The first account that `wanted` matches.
    fn matching(&self, wanted: &OriginMatch) -> Option<(Origin, &Facts)> {
        self.group.accounts.values().find_map(|facts| {
            let origin = facts.origin(&self.rules.origin);
            origin.matches(wanted).then_some((origin, &**facts))
        })
    }
}

impl Behind for OneGroup<'_> {
    fn matches(&self, wanted: &OriginMatch) -> bool {
        if self.scope == Scope::Country {
            return self.country().matches(wanted);
        }
        *wanted == OriginMatch::Any || self.matching(wanted).is_some()
    }

    /// An owner's origin is that of the first account that made the policy look.
    fn describe(&self, wanted: &OriginMatch) -> Description {
        let key = self.name.to_owned();
        if self.scope == Scope::Country {
            return Description {
                key,
                accounts: Vec::new(),
                accounts_total: self.group.members,
                origin: self.country(),
                facts: Facts::Missing,
            };
        }
        let matching = self.matching(wanted).or_else(|| self.matching(&OriginMatch::Any));
        let (origin, facts) = matching.map_or_else(
            || (Facts::Missing.origin(&self.rules.origin), Facts::Missing),
            |(origin, facts)| (origin, facts.clone()),
        );
        let named = self.group.accounts.keys().take(ACCOUNTS_NAMED);
        Description {
            key,
            accounts: named.map(ToString::to_string).collect(),
            accounts_total: self.group.accounts.len() as u64,
            origin,
            facts,
        }
    }
}
