//! The account directory: who owns an account and which countries are known of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use foldhash::fast::FixedState;

use super::StageError;
use super::changelog::{Reader, Writer, damaged};
use super::policy::OriginMatch;
use super::rules::{OriginField, OriginRules};
use super::time::Timestamp;

/// An ISO 3166-1 alpha-2 code, upper case. User-assigned and withdrawn codes are kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

impl Country {
    /// The origin of an account of which no country is known.
    pub const UNKNOWN: Self = Self(*b"ZZ");

    /// Two ASCII letters of either case; anything else, `ZZ` included, is no known country.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 2] = text.trim().as_bytes().try_into().ok()?;
        let country = Self(bytes.map(|byte| byte.to_ascii_uppercase()));
        let letters = country.0.iter().all(u8::is_ascii_uppercase);
        (letters && country != Self::UNKNOWN).then_some(country)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("two ASCII letters")
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Country {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What the directory says of one account, as far as the detector needs it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// Empty: the account is its own owner.
    pub owner_id: String,
    pub country: Option<Country>,
    pub incorporation_country: Option<Country>,
    pub ultimate_parent_country: Option<Country>,
    pub payment_country: Option<Country>,
    /// Addresses used for access, as given.
    pub access_ips: Vec<String>,
    /// Countries of `access_ips` by GeoIP, sorted, without repeats; the shell looks them up.
    pub access_countries: Vec<Country>,
    pub updated: Timestamp,
}

/// One record of the directory: an entry, or `None` for a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRecord {
    pub account_id: String,
    pub entry: Option<Entry>,
}

impl Entry {
    /// The country of one origin field; access addresses have several.
    fn field(&self, field: OriginField) -> &[Country] {
        match field {
            OriginField::UltimateParentCountry => self.ultimate_parent_country.as_slice(),
            OriginField::Country => self.country.as_slice(),
            OriginField::IncorporationCountry => self.incorporation_country.as_slice(),
            OriginField::PaymentCountry => self.payment_country.as_slice(),
            OriginField::AccessIps => &self.access_countries,
        }
    }
}

/// What is known of an account: the entry in force, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Facts {
    /// The directory has never named the account.
    #[default]
    Missing,
    Removed,
    Known(Entry),
}

impl Facts {
    fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Known(entry) => Some(entry),
            Self::Missing | Self::Removed => None,
        }
    }

    /// The owner's key: an account without an owner is its own.
    pub fn owner<'a>(&'a self, account_id: &'a str) -> &'a str {
        match self.entry() {
            Some(entry) if !entry.owner_id.is_empty() => &entry.owner_id,
            Some(_) | None => account_id,
        }
    }

    /// The account's origin under the rules.
    pub fn origin(&self, rules: &OriginRules) -> Origin {
        let known = |field: &OriginField| {
            let entry = self.entry()?;
            entry.field(*field).first().map(|country| (*country, *field))
        };
        let decided = rules.basis.iter().find_map(known);
        let outside = |field: &&OriginField| {
            let countries = self.entry().map_or(&[][..], |entry| entry.field(**field));
            countries.iter().any(|country| !rules.home.contains(country))
        };
        let foreign_by: Vec<OriginField> =
            rules.foreign_if_any.iter().filter(outside).copied().collect();
        let unknown = decided.is_none();
        Origin {
            country: decided.map_or(Country::UNKNOWN, |(country, _)| country),
            foreign: !foreign_by.is_empty() || (unknown && rules.unknown_is_foreign),
            decided_by: decided.map(|(_, field)| field),
            foreign_by,
        }
    }

    /// Every known field by name, for the alert.
    pub fn named(&self) -> BTreeMap<&'static str, String> {
        let mut named = BTreeMap::new();
        let Some(entry) = self.entry() else { return named };
        for field in OriginField::ALL {
            let countries: Vec<&str> = entry.field(field).iter().map(Country::as_str).collect();
            if !countries.is_empty() {
                named.insert(field.name(), countries.join(","));
            }
        }
        if !entry.owner_id.is_empty() {
            named.insert("owner_id", entry.owner_id.clone());
        }
        named
    }

    pub fn write(&self, writer: &mut Writer) {
        let (kind, entry) = match self {
            Self::Missing => (0u32, None),
            Self::Removed => (1, None),
            Self::Known(entry) => (2, Some(entry)),
        };
        writer.unsigned(kind);
        let Some(entry) = entry else { return };
        writer.text(&entry.owner_id);
        for country in [
            entry.country,
            entry.incorporation_country,
            entry.ultimate_parent_country,
            entry.payment_country,
        ] {
            writer.text(country.as_ref().map_or("", Country::as_str));
        }
        writer.unsigned(entry.access_countries.len() as u64);
        for country in &entry.access_countries {
            writer.text(country.as_str());
        }
        writer.time(entry.updated);
    }

    /// Addresses are not state: their countries are.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, StageError> {
        match reader.small()? {
            0 => return Ok(Self::Missing),
            1 => return Ok(Self::Removed),
            2 => {}
            _ => return Err(damaged("facts")),
        }
        let mut entry = Entry { owner_id: reader.text()?.to_owned(), ..Entry::default() };
        entry.country = Country::parse(reader.text()?);
        entry.incorporation_country = Country::parse(reader.text()?);
        entry.ultimate_parent_country = Country::parse(reader.text()?);
        entry.payment_country = Country::parse(reader.text()?);
        for _ in 0..reader.small()? {
            let country = Country::parse(reader.text()?).ok_or_else(|| damaged("a country"))?;
            entry.access_countries.push(country);
        }
        entry.updated = reader.any_time()?;
        Ok(Self::Known(entry))
    }
}

/// Where an account comes from, and which field says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The first known country of the basis, else `ZZ`.
    pub country: Country,
    pub foreign: bool,
    /// `None`: unknown.
    pub decided_by: Option<OriginField>,
    pub foreign_by: Vec<OriginField>,
}

impl Origin {
    /// The origin of a country as a whole.
    pub fn of_country(country: Country, rules: &OriginRules) -> Self {
        let unknown = country == Country::UNKNOWN;
        Self {
            country,
            foreign: if unknown {
                rules.unknown_is_foreign
            } else {
                !rules.home.contains(&country)
            },
            decided_by: (!unknown).then_some(OriginField::Country),
            foreign_by: Vec::new(),
        }
    }

    pub fn matches(&self, wanted: &OriginMatch) -> bool {
        let unknown = self.country == Country::UNKNOWN;
        match wanted {
            OriginMatch::Any => true,
            OriginMatch::Home => !self.foreign && !unknown,
            OriginMatch::Foreign => self.foreign,
            OriginMatch::Unknown => unknown,
            OriginMatch::Countries(countries) => countries.contains(&self.country),
        }
    }
}

/// One task's view of the directory: every account's facts in force, and those to come.
///
/// The first entry known for an account has effect at once; a later one at the first step at or
/// after its `updated`, in the order read. An entry read after one that is still to come, and not
/// updated later than it, replaces it: the directory's last word is what counts.
#[derive(Debug, Default)]
pub struct Directory {
    accounts: HashMap<Box<str>, Known, FixedState>,
    /// Accounts with something to come, by the time it comes.
    coming: BTreeSet<(Timestamp, Box<str>)>,
    /// Accounts that had no facts before.
    fresh: BTreeSet<Box<str>>,
    /// Accounts known from state that the directory has not named since.
    unconfirmed: BTreeSet<Box<str>>,
}

#[derive(Debug)]
struct Known {
    facts: Facts,
    /// In order of time.
    coming: Vec<(Timestamp, Facts)>,
}

impl Directory {
    /// The facts in force when they were last written with an account's state.
    pub fn restore(&mut self, account_id: &str, facts: &Facts) {
        if *facts != Facts::Missing {
            let known = Known { facts: facts.clone(), coming: Vec::new() };
            self.accounts.insert(account_id.into(), known);
            self.unconfirmed.insert(account_id.into());
        }
    }

    /// The directory has been read to its end: compaction may have taken both an account and its
    /// removal, so that an account which it does not name is removed.
    pub fn complete(&mut self) {
        for account_id in std::mem::take(&mut self.unconfirmed) {
            self.read(&AccountRecord { account_id: account_id.into(), entry: None });
        }
    }

    /// Takes in one record of the directory, in the order read.
    pub fn read(&mut self, record: &AccountRecord) {
        let (updated, facts) = match &record.entry {
            Some(entry) => {
                // addresses are looked up by now, and are not state
                let entry = Entry { access_ips: Vec::new(), ..entry.clone() };
                (entry.updated, Facts::Known(entry))
            }
            None => (Timestamp::default(), Facts::Removed),
        };
        let id: &str = &record.account_id;
        self.unconfirmed.remove(id);
        let Some(known) = self.accounts.get_mut(id) else {
            self.accounts.insert(id.into(), Known { facts, coming: Vec::new() });
            self.fresh.insert(id.into());
            return;
        };
        while known.coming.last().is_some_and(|(later, _)| *later >= updated) {
            let replaced = known.coming.pop().expect("not empty");
            self.coming.remove(&(replaced.0, id.into()));
        }
        known.coming.push((updated, facts));
        self.coming.insert((updated, id.into()));
    }

    /// Brings into force what has come by `step`; the accounts whose facts may differ now.
    pub fn advance(&mut self, step: Timestamp) -> BTreeSet<Box<str>> {
        let mut changed = std::mem::take(&mut self.fresh);
        while let Some((updated, _)) = self.coming.first()
            && *updated <= step
        {
            let (_, id) = self.coming.pop_first().expect("not empty");
            let known = self.accounts.get_mut(&id).expect("what is to come has an account");
            let due = known.coming.partition_point(|(updated, _)| *updated <= step);
            if let Some((_, facts)) = known.coming.drain(..due).next_back() {
                known.facts = facts;
                changed.insert(id);
            }
        }
        changed
    }

    pub fn facts(&self, account_id: &str) -> &Facts {
        self.accounts.get(account_id).map_or(&Facts::Missing, |known| &known.facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn country(code: &str) -> Country {
        Country::parse(code).expect("a country")
    }

    fn rules() -> OriginRules {
        let fields = OriginField::ALL[..4].to_vec();
        OriginRules {
            home: vec![country("US")],
            basis: fields.clone(),
            foreign_if_any: fields,
            unknown_is_foreign: true,
            lists: BTreeMap::new(),
        }
    }

    fn entry(code: &str, updated: u64) -> Entry {
        Entry { country: Country::parse(code), updated: Timestamp(updated), ..Entry::default() }
    }

    fn record(entry: Option<Entry>) -> AccountRecord {
        AccountRecord { account_id: "a".into(), entry }
    }

    #[test]
    fn a_subsidiary_with_a_home_address_takes_its_parents_origin() {
        let entry = Entry { ultimate_parent_country: Country::parse("cn"), ..entry("US", 0) };
        let origin = Facts::Known(entry).origin(&rules());
        assert_eq!(origin.country, country("CN"));
        assert_eq!(origin.decided_by, Some(OriginField::UltimateParentCountry));
        assert!(origin.foreign);
    }

    #[test]
    fn a_home_account_that_pays_from_abroad_is_foreign_with_a_home_origin() {
        let entry = Entry { payment_country: Country::parse("DE"), ..entry("US", 0) };
        let origin = Facts::Known(entry).origin(&rules());
        assert_eq!((origin.country, origin.foreign), (country("US"), true));
        assert_eq!(origin.foreign_by, [OriginField::PaymentCountry]);
        assert!(!origin.matches(&OriginMatch::Home));
    }

    #[test]
    fn an_unknown_account_is_foreign_unless_configured_otherwise() {
        let mut rules = rules();
        let origin = Facts::Missing.origin(&rules);
        assert!(origin.matches(&OriginMatch::Foreign) && origin.matches(&OriginMatch::Unknown));
        rules.unknown_is_foreign = false;
        let origin = Facts::Missing.origin(&rules);
        assert!(!origin.matches(&OriginMatch::Foreign) && !origin.matches(&OriginMatch::Home));
    }

    #[test]
    fn the_first_entry_counts_at_once_and_a_later_one_at_its_time() {
        let mut directory = Directory::default();
        directory.read(&record(Some(entry("CN", 50))));
        directory.read(&record(Some(entry("US", 90))));
        assert_eq!(directory.advance(Timestamp(10)).len(), 1);
        assert_eq!(*directory.facts("a"), Facts::Known(entry("CN", 50)));
        assert!(directory.advance(Timestamp(89)).is_empty());
        assert_eq!(directory.advance(Timestamp(90)).len(), 1);
        assert_eq!(*directory.facts("a"), Facts::Known(entry("US", 90)));
    }

    #[test]
    fn a_removal_counts_at_the_next_step_and_cancels_what_was_to_come() {
        let mut directory = Directory::default();
        directory.read(&record(Some(entry("CN", 0))));
        directory.read(&record(Some(entry("US", 90))));
        directory.read(&record(None));
        directory.advance(Timestamp(10));
        assert_eq!(*directory.facts("a"), Facts::Removed);
        assert!(directory.advance(Timestamp(99)).is_empty());
    }

    #[test]
    fn facts_survive_the_changelog() {
        let entry = Entry {
            owner_id: "o".into(),
            access_countries: vec![country("DE"), country("FR")],
            ..entry("CN", 7)
        };
        for facts in [Facts::Missing, Facts::Removed, Facts::Known(entry)] {
            let mut writer = Writer::default();
            facts.write(&mut writer);
            let bytes = writer.finish();
            assert_eq!(Facts::read(&mut Reader::new(&bytes).expect("own version")), Ok(facts));
        }
    }
}
