//! What ships with the program: presets and country lists.

use std::collections::BTreeMap;

use super::Result;
use super::field::Field;
use super::suggest;
use super::tree::{Node, parse_document};
use crate::data::{LISTS, PRESETS};
use crate::detector::directory::Country;

/// The preset `name`, parsed; it has been tested, so that a message about it is a bug's.
pub(super) fn preset(field: &Field<'_>, name: &str) -> Result<Node> {
    let Some((name, text)) = PRESETS.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
        return Err(field
            .wrong(&format!("no preset is named {name:?}"), &suggest::did_you_mean(name, &names)));
    };
    parse_document(&format!("preset:{name}"), text)
}

/// The shipped country lists.
pub(super) fn lists() -> Result<BTreeMap<String, Vec<Country>>> {
    let document = parse_document("lists.toml", LISTS)?;
    let list = |(name, node): (&String, &Node)| {
        let table = Field::new(name, node).table()?;
        let countries = table.required("countries", "right would be a list of codes")?;
        Ok((name.clone(), countries.countries()?))
    };
    document.entries().map(list).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn shipped_lists_are_valid() {
        assert!(lists().expect("valid").contains_key("d5"));
    }

    #[test]
    fn every_preset_is_valid_alone_and_with_all_others() {
        let names: Vec<String> =
            PRESETS.iter().map(|(name, _)| format!("\"preset:{name}\"")).collect();
        for name in &names {
            let text = format!("policies = [{name}]");
            let config = Config::from_text(name, &text).expect("a shipped preset is valid");
            assert!(!config.policies.list.is_empty(), "{name}");
        }
        let all = format!("policies = [{}]", names.join(", "));
        Config::from_text("all", &all).expect("no id stands in two presets");
    }
}
