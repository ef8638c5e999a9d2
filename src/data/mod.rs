//! What ships with flopwatch as data: facts with a source for each, which operators extend or
//! replace by configuration. Nothing is computed here.

/// Accelerators: key, dense peaks, names.
pub const ACCELERATORS: &str = include_str!("accelerators.csv");

/// Instance types: accelerator and count.
pub const INSTANCES: &str = include_str!("instances.csv");

/// Named country lists: a table for each `@name`, with `countries`, `title`, `source`, `date` and
/// `note`.
pub const LISTS: &str = include_str!("lists.toml");

/// The set that applies without any configured policy.
pub const DEFAULT_PRESET: &str = "default";

/// Shipped policy sets by name, as `preset:<name>` says it: each a `[preset]` table with `name`,
/// `status`, `date`, `source` and `note`, and `[[policy]]` tables.
pub const PRESETS: &[(&str, &str)] = &[
    (DEFAULT_PRESET, include_str!("policies/default.toml")),
    ("early_warning", include_str!("policies/early_warning.toml")),
    ("us_nprm_2024", include_str!("policies/us_nprm_2024.toml")),
    ("eo14110_strict", include_str!("policies/eo14110_strict.toml")),
    ("eo14110_ops_only", include_str!("policies/eo14110_ops_only.toml")),
    ("us_bis_702_2024", include_str!("policies/us_bis_702_2024.toml")),
    ("us_4E091", include_str!("policies/us_4E091.toml")),
    ("us_diffusion_caps", include_str!("policies/us_diffusion_caps.toml")),
    ("us_d5_training", include_str!("policies/us_d5_training.toml")),
    ("eu_art51", include_str!("policies/eu_art51.toml")),
    ("eu_gpai", include_str!("policies/eu_gpai.toml")),
    ("eu_one_third", include_str!("policies/eu_one_third.toml")),
    ("ca_sb53", include_str!("policies/ca_sb53.toml")),
    ("ny_raise", include_str!("policies/ny_raise.toml")),
    ("kr_ai_basic", include_str!("policies/kr_ai_basic.toml")),
    ("ca_sb1047", include_str!("policies/ca_sb1047.toml")),
    ("research_scher", include_str!("policies/research_scher.toml")),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use toml::{Table, Value};

    use super::*;
    use crate::detector::directory::Country;
    use crate::detector::policy::Metric;

    const STATUSES: [&str; 9] = [
        "proposed",
        "in force",
        "enacted",
        "rescinded",
        "vetoed",
        "unenforced",
        "guidance",
        "research",
        "not a law",
    ];
    const POLICY_KEYS: [&str; 13] = [
        "id",
        "version",
        "title",
        "severity",
        "scope",
        "origin",
        "window",
        "hold",
        "keep_firing",
        "renotify",
        "report_within",
        "references",
        "all",
    ];
    const CONDITION_KEYS: [&str; 5] = ["metric", "window", "at_least", "accelerators", "horizon"];

    fn parse(text: &str) -> Table {
        text.parse().expect("shipped TOML")
    }

    fn text<'a>(table: &'a Table, key: &str) -> &'a str {
        table.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn policies(preset: &Table) -> Vec<&Table> {
        let policies = preset["policy"].as_array().expect("[[policy]]");
        policies.iter().map(|policy| policy.as_table().expect("a table")).collect()
    }

    fn assert_keys(table: &Table, allowed: &[&str], place: &str) {
        for key in table.keys() {
            assert!(allowed.contains(&key.as_str()), "{place}: {key}");
        }
    }

    fn assert_condition(condition: &Table, policy: &Table, place: &str) {
        assert_keys(condition, &CONDITION_KEYS, place);
        let metric = text(condition, "metric");
        assert!(Metric::NAMES.contains(&metric), "{place}: {metric}");
        assert!(condition["at_least"].as_float().is_some_and(|value| value > 0.0), "{place}");
        let is_run = metric.starts_with("run_") || metric == "projected_run_flop";
        let has_window = condition.contains_key("window") || policy.contains_key("window");
        assert!(is_run || has_window, "{place}: {metric} has no window");
        let scope = text(policy, "scope");
        assert!(
            !is_run || scope == "owner" || scope == "account",
            "{place}: {metric} of a {scope}"
        );
        assert_eq!(condition.contains_key("accelerators"), metric == "sustained", "{place}");
        assert_eq!(condition.contains_key("horizon"), metric == "projected_run_flop", "{place}");
    }

    #[test]
    fn every_preset_states_its_name_status_date_source_and_note() {
        for (name, toml) in PRESETS {
            let preset = parse(toml);
            let header = preset["preset"].as_table().expect("[preset]");
            assert_keys(header, &["name", "status", "date", "source", "note"], name);
            assert_eq!(text(header, "name"), *name);
            assert!(STATUSES.contains(&text(header, "status")), "{name}");
            assert_eq!(text(header, "date").len(), "2024-01-29".len(), "{name}");
            assert!(!text(header, "source").is_empty() && !text(header, "note").is_empty());
        }
    }

    #[test]
    fn every_preset_is_listed_in_the_readme_beside_it() {
        let readme = include_str!("policies/README.md");
        for (name, _) in PRESETS {
            assert!(readme.contains(&format!("| `{name}` |")), "{name}");
        }
    }

    #[test]
    fn shipped_policies_use_known_words_and_no_two_share_an_id() {
        let mut ids = BTreeSet::new();
        for (name, toml) in PRESETS {
            let preset = parse(toml);
            for policy in policies(&preset) {
                let place = format!("{name}: {}", text(policy, "id"));
                assert_keys(policy, &POLICY_KEYS, &place);
                assert!(ids.insert(text(policy, "id").to_owned()), "{place} comes twice");
                assert_eq!(policy["version"].as_integer(), Some(1), "{place}");
                assert!(["info", "warning", "critical"].contains(&text(policy, "severity")));
                assert!(!policy["references"].as_array().expect("a list").is_empty(), "{place}");
                for condition in policy["all"].as_array().expect("[[policy.all]]") {
                    assert_condition(condition.as_table().expect("a table"), policy, &place);
                }
            }
        }
    }

    #[test]
    fn titles_of_proposed_and_lapsed_rules_say_so() {
        for (name, toml) in PRESETS {
            let preset = parse(toml);
            let status = text(preset["preset"].as_table().expect("[preset]"), "status").to_owned();
            if ["proposed", "rescinded", "vetoed", "unenforced"].contains(&status.as_str()) {
                for policy in policies(&preset) {
                    let title = text(policy, "title");
                    assert!(title.contains(&status), "{name}: {title}");
                }
            }
        }
    }

    #[test]
    fn country_lists_hold_sorted_codes_and_state_their_source() {
        let lists = parse(LISTS);
        for (name, list) in &lists {
            let list = list.as_table().expect("a table");
            assert!(!text(list, "source").is_empty() && !text(list, "date").is_empty(), "{name}");
            let countries = list["countries"].as_array().expect("a list");
            let codes: Vec<&str> = countries.iter().filter_map(Value::as_str).collect();
            assert!(codes.is_sorted() && codes.iter().all(|code| Country::parse(code).is_some()));
        }
        let d5 = lists["d5"]["countries"].as_array().expect("a list");
        assert_eq!(d5.len(), 23);
    }
}
