//! SPEC 5 and 6: what the directory says of an account at a step, and what follows from it.

use std::collections::BTreeSet;

use super::Fault;
use super::input::{DirectoryLine, Field, Nanos, OriginMatch, Settings};

/// Members of `@d5` among the countries that scenarios use.
const D5: [&str; 2] = ["CN", "RU"];

/// An account as the judgement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) owner: String,
    pub(crate) country: String,
    pub(crate) decided_by: &'static str,
    pub(crate) foreign: bool,
    pub(crate) unknown: bool,
}

/// The line in force at step `step`: the first one from the beginning, each later one from the
/// first step at or after its `updated`; among those due, the one read last: what the directory says
/// last counts. A removal carries no `updated`: it is due at once.
fn entry_at<'a>(
    directory: &'a [DirectoryLine],
    account: &str,
    step: Nanos,
    fault: Fault,
) -> Option<&'a DirectoryLine> {
    let mut lines = directory.iter().filter(|line| line.account == account);
    let first = lines.next()?;
    let updated = |line: &DirectoryLine| if line.deleted { 0 } else { line.updated };
    let due = |line: &&DirectoryLine| {
        updated(line) < step || (updated(line) == step && fault != Fault::DirectoryOneStepLate)
    };
    Some(lines.rfind(due).unwrap_or(first)).filter(|line| !line.deleted)
}

/// An account without an owner is its own.
pub(crate) fn owner_at<'a>(
    directory: &'a [DirectoryLine],
    account: &'a str,
    step: Nanos,
    fault: Fault,
) -> &'a str {
    let owner = entry_at(directory, account, step, fault).map(|entry| entry.owner.as_str());
    owner.filter(|owner| !owner.is_empty()).unwrap_or(account)
}

/// Two letters of either case; `ZZ` is no known country.
fn known_country(text: &str) -> Option<String> {
    let text = text.trim();
    let code = text.to_ascii_uppercase();
    let letters = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_alphabetic());
    (letters && code != "ZZ").then_some(code)
}

pub(crate) fn standing(
    settings: &Settings,
    directory: &[DirectoryLine],
    account: &str,
    step: Nanos,
    fault: Fault,
) -> Standing {
    let entry = entry_at(directory, account, step, fault);
    let country_in = |field: Field| {
        let place = Field::ALL.iter().position(|other| *other == field).expect("one of all");
        known_country(entry?.countries[place])
    };
    let origin = settings.basis.iter().find_map(|field| Some((country_in(*field)?, field.name())));
    let abroad = |field: &Field| {
        country_in(*field).is_some_and(|country| !settings.home.contains(&country.as_str()))
    };
    let unknown = origin.is_none();
    let (country, decided_by) = origin.unwrap_or(("ZZ".to_owned(), "unknown"));
    let foreign =
        settings.foreign_if_any.iter().any(abroad) || (unknown && settings.unknown_is_foreign);
    Standing {
        owner: owner_at(directory, account, step, fault).to_owned(),
        country,
        decided_by,
        foreign,
        unknown,
    }
}

/// A country as a key is judged by itself.
pub(crate) fn country_standing(settings: &Settings, country: &str) -> Standing {
    let unknown = country == "ZZ";
    Standing {
        owner: String::new(),
        country: country.to_owned(),
        decided_by: "",
        foreign: if unknown {
            settings.unknown_is_foreign
        } else {
            !settings.home.contains(&country)
        },
        unknown,
    }
}

/// Whether one of the members is what the policy looks for.
pub(crate) fn matches(wanted: &OriginMatch, members: &[Standing]) -> bool {
    match wanted {
        OriginMatch::Any => true,
        OriginMatch::Home => members.iter().any(|one| !one.foreign && !one.unknown),
        OriginMatch::Foreign => members.iter().any(|one| one.foreign),
        OriginMatch::Unknown => members.iter().any(|one| one.unknown),
        OriginMatch::Countries(list) => {
            let resolved: BTreeSet<&str> = list
                .iter()
                .flat_map(|name| if *name == "@d5" { D5.to_vec() } else { vec![*name] })
                .collect();
            members.iter().any(|one| resolved.contains(one.country.as_str()))
        }
    }
}
