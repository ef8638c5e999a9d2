//! STAGE 2, per account-usage partition: align, origin, windows, runs, policies by account and
//! site, forward to owners and countries.
//!
//! Each step M: slices that the last judgement was the last to need leave; the directory's changes
//! take effect; sums tagged before M are applied; slices that end at M - lateness are judged. What
//! the step adds goes on to GROUP tagged M - epoch, so that GROUP's judgement of the same slice
//! end sees exactly what this one saw.

mod state;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::alert::{Alert, Episode, Firing};
use super::align::Align;
use super::changelog::{Reader, Writer, damaged};
use super::directory::{AccountRecord, Directory, Facts, Origin};
use super::event::Record;
use super::internal::{
    AccountSum, GroupKey, GroupPacker, GroupSum, Membership, pack_watermark, partition_of,
    unpack_usage,
};
use super::judge::{Behind, Description, Subject, may_meet};
use super::key_state::{KeyState, StateKey, check_stamp};
use super::keyed::Keyed;
use super::measure::Measure;
use super::names::{NameId, Names};
use super::outbox::{Outbox, Output};
use super::policy::{OriginMatch, Policies, Scope};
use super::rules::{Rules, TierRules};
use super::time::Timestamp;
use super::window::{Part, Place, Windows};
use super::{Stage, StageError, publish_alerts};

/// The scope byte of ACCOUNT's changelog keys.
const SCOPE: u8 = b'a';

#[derive(Debug)]
pub struct Account {
    rules: Arc<Rules>,
    policies: Arc<Policies>,
    partition: u32,
    /// Partitions of the downstream topic, as many as of our own.
    targets: u32,
    names: Names,
    directory: Directory,
    align: Align<AccountSum>,
    accounts: Keyed<NameId, AccountState>,
    /// The judged slice end by which slices were last made to leave.
    expired: Option<Timestamp>,
    /// The watermark last sent on.
    announced: Option<Timestamp>,
    /// Records of our own input that retention removed before they were read.
    gap: u64,
    /// State was restored: the directory does not know its facts yet, and owners and origins have
    /// not been compared with the rules.
    restored: Restored,
    /// The alignment changed since the last commit.
    align_changed: bool,
    /// At the end of all input: no later slice is judged.
    last_judged: Option<Timestamp>,
}

/// What is still to be done after a restore.
#[derive(Debug, Default)]
struct Restored {
    seed_directory: bool,
    compare_rules: bool,
}

#[derive(Debug)]
struct AccountState {
    sums: KeyState,
    facts: Facts,
    owner: NameId,
    /// The country of origin.
    country: NameId,
    /// Has a retained slice: its groups count it.
    member: bool,
    sites: BTreeMap<NameId, Vec<Episode>>,
}

/// What one step adds to the groups.
#[derive(Debug, Default)]
struct Step {
    sums: Vec<(AddedTo, Measure)>,
    /// Where a sum stands among `sums`.
    index: HashMap<AddedTo, u32, FixedState>,
    memberships: Vec<Membership>,
}

/// Group, tier, slice end and place.
type AddedTo = (GroupKey, Option<usize>, Timestamp, Place);

impl Account {
    pub fn new(rules: Arc<Rules>, policies: Arc<Policies>, partition: u32, targets: u32) -> Self {
        let align = Align::new(rules.time.epoch);
        Self {
            rules,
            policies,
            partition,
            targets,
            names: Names::default(),
            directory: Directory::default(),
            align,
            accounts: Keyed::default(),
            expired: None,
            announced: None,
            gap: 0,
            restored: Restored::default(),
            align_changed: false,
            last_judged: None,
        }
    }

    /// Takes in one record of the directory, in the order read; records of accounts that belong
    /// to other tasks are passed over.
    pub fn directory(&mut self, record: &AccountRecord) {
        self.seed_directory();
        if partition_of(&record.account_id, self.targets) == self.partition {
            self.directory.read(record);
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

    /// The directory has been read to its end: an account that it no longer names is removed.
    pub fn directory_complete(&mut self) {
        self.seed_directory();
        self.directory.complete();
    }

    /// The alerts that fire.
    pub fn firing(&self) -> Firing {
        let mut firing = Firing::default();
        self.accounts.iter().for_each(|(_, account)| {
            firing.count(Scope::Account, &account.sums.episodes);
            account.sites.values().for_each(|episodes| firing.count(Scope::Site, episodes));
        });
        firing
    }

    /// Accounts with state.
    pub fn accounts(&self) -> usize {
        self.accounts.len()
    }

    /// The input has ended: applies every sum in order, and judges up to `stream_time`, the
    /// greatest of all partitions.
    pub fn finish(&mut self, stream_time: Timestamp, outbox: &mut Outbox) {
        let last = stream_time.floor(self.rules.finest().slice);
        self.last_judged = Some(last);
        let last_step = last.plus(self.rules.time.lateness);
        while let Some((step, sums)) = self.align.next_final_step(last_step) {
            self.step(step, sums, outbox);
        }
        self.expire(last, &mut Step::default());
    }

    /// Every retained slice of the finest tier, by account, with its sum.
    pub fn ledger(&self) -> impl Iterator<Item = (&str, Timestamp, Measure)> {
        self.accounts.iter().flat_map(move |(id, account)| {
            let slices = account.sums.windows.all_slices(0, &self.rules.finest());
            slices.into_iter().map(move |(end, measure)| (self.names.text(id), end, measure))
        })
    }
}

impl Stage for Account {
    fn process(&mut self, record: &Record<'_>, outbox: &mut Outbox) -> Result<(), StageError> {
        self.seed_directory();
        let value = record.value.ok_or_else(|| damaged("account usage"))?;
        let (announcement, sums) = unpack_usage(value, &mut self.names)?;
        self.align.read(record.offset, announcement, sums.into_iter().map(|sum| (sum.tag, sum)));
        self.align_changed = true;
        while let Some((step, sums)) = self.align.next_step() {
            self.step(step, sums, outbox);
        }
        Ok(())
    }

    fn seal(&mut self, outbox: &mut Outbox) {
        if let Some(step) = self.align.step()
            && self.announced != Some(step)
        {
            for partition in 0..self.targets {
                let value = pack_watermark(self.partition, self.targets, step, self.gaps());
                outbox.push(Output::Forward { partition, value });
            }
            self.announced = Some(step);
        }
        self.log(outbox);
        if self.names.is_crowded() {
            self.free_names();
        }
    }

    fn position(&self) -> Option<u64> {
        self.align.position()
    }

    fn restore(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StageError> {
        self.restored = Restored { seed_directory: true, compare_rules: true };
        match (StateKey::parse(key)?, value) {
            (StateKey::Align, Some(value)) => {
                let mut reader = Reader::new(value)?;
                check_stamp(&self.rules, &mut reader)?;
                self.gap = reader.number()?;
                self.align.restore(&mut reader)
            }
            (StateKey::Align, None) => Err(damaged("the alignment")),
            (StateKey::Head { key, .. }, Some(value)) => self.restore_head(key, value),
            (StateKey::Head { key, .. }, None) => {
                let id = self.names.intern(key);
                self.accounts.remove(id);
                Ok(())
            }
            (StateKey::Slices { block, key, .. }, value) => {
                let id = self.names.intern(key);
                let rules = Arc::clone(&self.rules);
                let Some(account) = self.restored(id, value.is_some()) else { return Ok(()) };
                account.sums.windows.restore(&rules.tiers, block, value)
            }
        }
    }

    fn is_urgent(&self) -> bool {
        self.align.step() != self.announced
    }
}

/// One step.
impl Account {
    /// Records lost before they were read, by METER and by us.
    fn gaps(&self) -> u64 {
        self.gap + self.align.gaps().sum::<u64>()
    }

    fn step(&mut self, step: Timestamp, sums: Vec<AccountSum>, outbox: &mut Outbox) {
        let mut added = Step::default();
        outbox.tally.steps += 1;
        outbox.tally.sums += sums.len() as u64;
        let judged = self.rules.judged(step.minus(self.rules.time.epoch));
        self.expire(judged, &mut added);
        self.move_changed(step, &mut added);
        self.apply(sums, judged, &mut added);
        self.judge(step, outbox);
        self.forward(step, added, outbox);
    }

    /// After the judgement of `judged`: slices that are no longer kept leave, and accounts that
    /// have none left leave their groups.
    fn expire(&mut self, judged: Timestamp, added: &mut Step) {
        if self.expired == Some(judged) {
            return;
        }
        self.expired = Some(judged);
        self.accounts.each_mut(|id, account| {
            account.sums.expire(&self.rules, judged);
            if account.member && account.sums.windows.is_empty() {
                account.member = false;
                account.sums.head_changed = true;
                added.membership(id, account, false);
            }
            account.sums.is_changed()
        });
    }

    /// Directory changes that take effect at `step` move what is retained between groups.
    fn move_changed(&mut self, step: Timestamp, added: &mut Step) {
        let mut changed: BTreeSet<NameId> = BTreeSet::new();
        for id in self.directory.advance(step) {
            changed.extend(self.names.find(&id));
        }
        if std::mem::take(&mut self.restored.compare_rules) {
            changed.extend(self.accounts.iter().map(|(id, _)| id));
        }
        for id in changed {
            let Some(slot) = self.accounts.slot(id) else { continue };
            let Some((_, account)) = self.accounts.at(slot) else { continue };
            let facts = self.directory.facts(self.names.text(id)).clone();
            let (owner, country) = groups_of(&self.rules, &mut self.names, id, &facts);
            if (&facts, owner, country) == (&account.facts, account.owner, account.country) {
                continue;
            }
            added.relocate(id, account, (facts, owner, country), &self.rules.tiers);
            account.sums.head_changed = true;
            self.accounts.touch(slot);
        }
    }

    fn apply(&mut self, mut sums: Vec<AccountSum>, judged: Timestamp, added: &mut Step) {
        // inputs are in order of account each; together, an account is looked up and summed once
        sums.sort_by_key(AccountSum::adds_to);
        for same in sums.chunk_by(|a, b| a.adds_to() == b.adds_to()) {
            let AccountSum { account: id, slice_end, place, .. } = same[0];
            let mut measure = Measure::ZERO;
            same.iter().for_each(|sum| measure += sum.measure);
            let slot = self.accounts.slot_or_insert_with(id, || {
                let facts = self.directory.facts(self.names.text(id)).clone();
                AccountState::new(&self.rules, &mut self.names, id, facts)
            });
            let (_, account) = self.accounts.at(slot).expect("found or made just before");
            let taken = account.sums.add(&self.rules, judged, slice_end, place, measure);
            if taken && !account.member {
                account.member = true;
                account.sums.head_changed = true;
                added.membership(id, account, true);
            }
            for group in account.groups() {
                added.sum(group, None, slice_end, place, measure);
            }
            self.accounts.touch(slot);
        }
    }

    fn judge(&mut self, step: Timestamp, outbox: &mut Outbox) {
        let Some(at) = self.rules.judged_at(step) else { return };
        if self.last_judged.is_some_and(|last| at > last) {
            return;
        }
        let mut alerts = Vec::new();
        let (rules, names, policies, gap) = (&self.rules, &self.names, &self.policies, self.gaps());
        let judging = Judging { rules, names, policies, at, gap };
        outbox.tally.judged += self.accounts.len() as u64;
        self.accounts.each_mut(|id, account| {
            let changed = judging.account(id, account, &mut alerts);
            let changed_sites = judging.sites(id, account, &mut alerts);
            account.sums.head_changed |= changed || changed_sites;
            changed || changed_sites
        });
        publish_alerts(alerts, outbox);
    }

    /// Packs what the step adds to the groups, per target partition.
    fn forward(&self, step: Timestamp, mut added: Step, outbox: &mut Outbox) {
        if added.sums.is_empty() && added.memberships.is_empty() {
            return;
        }
        let tag = step.minus(self.rules.time.epoch);
        let packer = || GroupPacker::new(self.partition, self.targets, tag, &self.names);
        let mut packers: BTreeMap<u32, GroupPacker<'_>> = BTreeMap::new();
        added.sums.sort_unstable_by_key(|(to, _)| *to);
        for of_group in added.sums.chunk_by(|((a, ..), _), ((b, ..), _)| a == b) {
            let ((group, ..), _) = of_group[0];
            let partition = group.partition(&self.names, self.targets);
            let packer = packers.entry(partition).or_insert_with(packer);
            for &((group, tier, slice_end, place), measure) in of_group {
                packer.add(&GroupSum { group, place, tier, slice_end, measure });
            }
        }
        for membership in &added.memberships {
            let partition = membership.group.partition(&self.names, self.targets);
            packers.entry(partition).or_insert_with(packer).add_membership(membership);
        }
        for (partition, packer) in packers {
            for value in packer.finish() {
                outbox.push(Output::Forward { partition, value });
            }
        }
    }
}

/// Accounts and sites at one slice end.
struct Judging<'a> {
    rules: &'a Rules,
    names: &'a Names,
    policies: &'a Policies,
    at: Timestamp,
    gap: u64,
}

impl Judging<'_> {
    fn account(&self, id: NameId, account: &mut AccountState, alerts: &mut Vec<Alert>) -> bool {
        let idle = account.sums.episodes.is_empty();
        if idle && !may_meet(self.policies, Scope::Account, self.rules, &account.sums) {
            return false;
        }
        let run = account.sums.run(self.rules, self.at);
        let mut episodes = std::mem::take(&mut account.sums.episodes);
        let behind = OneAccount { id: self.names.text(id), account, rules: self.rules, site: None };
        let windows = &account.sums.windows;
        let subject =
            Subject::new(Scope::Account, self.at, self.rules, self.names, windows, &behind)
                .with_gap(self.gap)
                .with_run(run);
        let changed = subject.judge(self.policies, &mut episodes, alerts);
        account.sums.episodes = episodes;
        changed
    }

    fn sites(&self, id: NameId, account: &mut AccountState, alerts: &mut Vec<Alert>) -> bool {
        // a site has no more than its account
        let idle = account.sites.is_empty();
        if idle && !may_meet(self.policies, Scope::Site, self.rules, &account.sums) {
            return false;
        }
        let mut sites = std::mem::take(&mut account.sites);
        let mut changed = false;
        for fabric in account.sums.windows.fabrics() {
            sites.entry(fabric).or_default();
        }
        sites.retain(|&fabric, episodes| {
            let site = Some(self.names.text(fabric));
            let behind = OneAccount { id: self.names.text(id), account, rules: self.rules, site };
            let windows = &account.sums.windows;
            let subject =
                Subject::new(Scope::Site, self.at, self.rules, self.names, windows, &behind)
                    .with_gap(self.gap)
                    .on_fabric(fabric);
            changed |= subject.judge(self.policies, episodes, alerts);
            !episodes.is_empty()
        });
        account.sites = sites;
        changed
    }
}

struct OneAccount<'a> {
    id: &'a str,
    account: &'a AccountState,
    rules: &'a Rules,
    site: Option<&'a str>,
}

impl OneAccount<'_> {
    fn origin(&self) -> Origin {
        self.account.facts.origin(&self.rules.origin)
    }
}

impl Behind for OneAccount<'_> {
    fn matches(&self, wanted: &OriginMatch) -> bool {
        *wanted == OriginMatch::Any || self.origin().matches(wanted)
    }

    fn describe(&self, _wanted: &OriginMatch) -> Description {
        let key = match self.site {
            Some(fabric) => format!("{}@{fabric}", self.id),
            None => self.id.to_owned(),
        };
        Description {
            key,
            accounts: vec![self.id.to_owned()],
            accounts_total: 1,
            origin: self.origin(),
            facts: self.account.facts.clone(),
        }
    }
}

/// Owner and country of origin of an account.
fn groups_of(rules: &Rules, names: &mut Names, id: NameId, facts: &Facts) -> (NameId, NameId) {
    let owner = facts.owner(names.text(id)).to_owned();
    let country = facts.origin(&rules.origin).country;
    (names.intern(&owner), names.intern(country.as_str()))
}

impl AccountState {
    fn new(rules: &Rules, names: &mut Names, id: NameId, facts: Facts) -> Self {
        let (owner, country) = groups_of(rules, names, id, &facts);
        let sums = KeyState::new(rules);
        Self { sums, facts, owner, country, member: false, sites: BTreeMap::new() }
    }

    fn groups(&self) -> [GroupKey; 2] {
        [
            GroupKey { scope: Scope::Owner, name: self.owner },
            GroupKey { scope: Scope::Country, name: self.country },
        ]
    }

    fn is_over(&self) -> bool {
        self.sums.is_over() && self.sites.is_empty()
    }
}

impl Step {
    fn sum(
        &mut self,
        group: GroupKey,
        tier: Option<usize>,
        slice_end: Timestamp,
        place: Place,
        measure: Measure,
    ) {
        let to = (group, tier, slice_end, place);
        let at = *self.index.entry(to).or_insert_with(|| {
            self.sums.push((to, Measure::ZERO));
            u32::try_from(self.sums.len() - 1).expect("fewer than 2^32 sums a step")
        });
        self.sums[at as usize].1 += measure;
    }

    /// The account joins or leaves its two groups.
    fn membership(&mut self, account: NameId, state: &AccountState, member: bool) {
        for group in state.groups() {
            self.group_membership(account, state, group, member);
        }
    }

    fn group_membership(
        &mut self,
        account: NameId,
        state: &AccountState,
        group: GroupKey,
        member: bool,
    ) {
        let facts = if group.scope == Scope::Owner && member {
            let mut writer = Writer::default();
            state.facts.write(&mut writer);
            writer.finish()
        } else {
            Vec::new()
        };
        self.memberships.push(Membership { group, account, member, facts });
    }

    /// New facts: what is retained moves from the old groups to the new, tier by tier.
    fn relocate(
        &mut self,
        id: NameId,
        account: &mut AccountState,
        (facts, owner, country): (Facts, NameId, NameId),
        tiers: &[TierRules],
    ) {
        let old = account.groups();
        (account.facts, account.owner, account.country) = (facts, owner, country);
        let new = account.groups();
        if !account.member {
            return;
        }
        for (from, to) in old.into_iter().zip(new) {
            if from == to {
                if to.scope == Scope::Owner {
                    self.group_membership(id, account, to, true);
                }
                continue;
            }
            self.group_membership(id, account, from, false);
            self.group_membership(id, account, to, true);
            for (tier, rules) in tiers.iter().enumerate() {
                let windows = &account.sums.windows;
                windows.each_cell(tier, rules, Windows::EVER, Part::All, |end, place, measure| {
                    self.sum(from, Some(tier), end, place, -measure);
                    self.sum(to, Some(tier), end, place, measure);
                });
            }
        }
    }
}
