//! What an ACCOUNT task keeps for itself: its state on the changelog and back, and the names that
//! it refers to.

use std::collections::BTreeMap;

use super::super::StageError;
use super::super::changelog::{Reader, Writer};
use super::super::directory::{Country, Facts};
use super::super::key_state::{StateKey, log_alignment, read_episodes, write_episodes};
use super::super::names::{NameId, Names};
use super::super::outbox::Outbox;
use super::{Account, AccountState, SCOPE};

impl Account {
    pub(super) fn log(&mut self, outbox: &mut Outbox) {
        for slot in self.accounts.take_touched() {
            let Some((id, account)) = self.accounts.at(slot) else { continue };
            let key = self.names.text(id);
            let head_changed = account.sums.log_blocks(SCOPE, key, outbox);
            let over = account.is_over();
            if over || head_changed {
                let value = (!over).then(|| account.write_head(&self.names));
                outbox.change(StateKey::Head { scope: SCOPE, key }.bytes(), value);
            }
            if over {
                self.accounts.remove(id);
            }
        }
        if std::mem::take(&mut self.align_changed) {
            log_alignment(&self.rules, self.gap, &self.align, outbox);
        }
    }

    /// Names that neither state nor waiting sums refer to; nothing else outlives a commit.
    pub(super) fn free_names(&mut self) {
        let Self { names, accounts, align, .. } = self;
        let waiting = align.pending();
        let waiting = waiting.flat_map(|sum| [sum.account].into_iter().chain(sum.place.names()));
        let held = accounts.iter().flat_map(|(id, account)| {
            let sites = account.sites.keys().copied();
            let own = [id, account.owner, account.country];
            own.into_iter().chain(sites).chain(account.sums.windows.names())
        });
        names.keep(waiting.chain(held));
    }

    pub(super) fn restore_head(&mut self, key: &str, value: &[u8]) -> Result<(), StageError> {
        let id = self.names.intern(key);
        let mut reader = Reader::new(value)?;
        let facts = Facts::read(&mut reader)?;
        let owner = self.names.intern(reader.text()?);
        let country = Country::parse(reader.text()?).unwrap_or(Country::UNKNOWN);
        let country = self.names.intern(country.as_str());
        let member = reader.flag()?;
        let mut sites = BTreeMap::new();
        for _ in 0..reader.small()? {
            let fabric = self.names.intern(reader.text()?);
            sites.insert(fabric, read_episodes(&mut reader)?);
        }
        let slot = self.slot(id, Facts::Missing);
        let (_, account) = self.accounts.at(slot).expect("found or made just before");
        account.sums.read(&mut self.names, &mut reader)?;
        (account.facts, account.owner, account.country) = (facts, owner, country);
        (account.member, account.sites) = (member, sites);
        Ok(())
    }

    /// Once the whole state is restored: its facts are those in force.
    pub(super) fn seed_directory(&mut self) {
        if std::mem::take(&mut self.restored.seed_directory) {
            for (id, account) in self.accounts.iter() {
                self.directory.restore(self.names.text(id), &account.facts);
            }
        }
    }

    /// The state that a block belongs to; the head may come later.
    pub(super) fn restored(&mut self, id: NameId, create: bool) -> Option<&mut AccountState> {
        if create {
            self.slot(id, Facts::Missing);
        }
        self.accounts.get_mut(id)
    }

    /// The account's slot; a new one has nothing yet.
    pub(super) fn slot(&mut self, id: NameId, facts: Facts) -> u32 {
        self.accounts
            .slot_or_insert_with(id, || AccountState::new(&self.rules, &mut self.names, id, facts))
    }
}

impl AccountState {
    fn write_head(&mut self, names: &Names) -> Vec<u8> {
        let mut writer = Writer::default();
        self.facts.write(&mut writer);
        writer.text(names.text(self.owner));
        writer.text(names.text(self.country));
        writer.flag(self.member);
        writer.unsigned(self.sites.len() as u64);
        for (fabric, episodes) in &self.sites {
            writer.text(names.text(*fabric));
            write_episodes(episodes, &mut writer);
        }
        self.sums.write(names, &mut writer);
        writer.finish()
    }
}
