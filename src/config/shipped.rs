//! What ships with the program: presets and country lists.

use std::collections::BTreeMap;

use super::Result;
use super::field::Field;
use super::suggest;
use super::tree::{Node, parse_document};
use crate::data::LISTS;
use crate::detector::directory::Country;

/// Stand-ins until the shipped data is merged: `crate::data::{LISTS, PRESETS}` has these types.
const PRESETS: &[(&str, &str)] = &[(
    "default",
    r#"
[preset]
title = "stand-in"
[[policy]]
id = "foreign-large-training"
version = 1
title = "Foreign account at the scale of a large training run"
severity = "critical"
scope = "account"
origin = "foreign"
window = "72h"
[[policy.all]]
metric = "sustained"
accelerators = 512
at_least = 1.0
"#,
)];
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

    #[test]
    fn shipped_lists_are_valid() {
        assert!(lists().expect("valid").contains_key("d5"));
    }
}
