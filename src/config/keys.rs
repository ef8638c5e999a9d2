//! Every configuration key with its default and meaning: what loads, what `check` prints, and what
//! an unknown key is compared with are this one table.

use super::tree::{Node, Place, parse_value};

#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted, as in the environment variable's name.
    pub path: &'static str,
    pub kind: Kind,
    /// As TOML.
    pub default: &'static str,
    pub meaning: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Text with a unit: `5m`.
    Duration,
    Integer,
    Number,
    Boolean,
    /// Of texts.
    List,
    /// Of tables with names of their own: `[[tier]]`.
    Tables,
    /// With entries that the operator names: `[lists]`.
    Table,
}

/// In the order in which `check` prints them.
pub const KEYS: &[Key] = &[
    key(
        "policies",
        Kind::List,
        "[]",
        "globs of policy files, and preset:NAME; none at all = preset:default",
    ),
    key(
        "kafka.bootstrap_servers",
        Kind::Text,
        "\"127.0.0.1:9092\"",
        "host:port, separated by commas",
    ),
    key(
        "kafka.group_id",
        Kind::Text,
        "\"flopwatch\"",
        "consumer group; also prefixes the transactional ids",
    ),
    key("kafka.workers", Kind::Integer, "0", "threads; 0 = one per core"),
    key("kafka.instance", Kind::Text, "\"\"", "stable name of this process; \"\" = random"),
    key(
        "kafka.commit_interval",
        Kind::Duration,
        "\"200ms\"",
        "longest time between commits; 1 s while catching up",
    ),
    key(
        "kafka.client",
        Kind::Table,
        "{}",
        "librdkafka settings, verbatim; NAME_file reads the value from a file",
    ),
    key("topics.usage", Kind::Text, "\"usage\"", "usage events, any key"),
    key(
        "topics.accounts",
        Kind::Text,
        "\"accounts\"",
        "account directory, compacted, keyed by account_id",
    ),
    key(
        "topics.account_usage",
        Kind::Text,
        "\"flopwatch.account-usage\"",
        "internal: METER to ACCOUNT",
    ),
    key(
        "topics.group_usage",
        Kind::Text,
        "\"flopwatch.group-usage\"",
        "internal: ACCOUNT to GROUP",
    ),
    key("topics.alerts", Kind::Text, "\"flopwatch.alerts\"", "alerts of live policies"),
    key(
        "topics.shadow_alerts",
        Kind::Text,
        "\"flopwatch.shadow-alerts\"",
        "alerts of shadow policies",
    ),
    key("topics.dead_letters", Kind::Text, "\"flopwatch.dead-letters\"", "refused usage records"),
    key(
        "input.format",
        Kind::Text,
        "\"auto\"",
        "auto | protobuf | json | cloudevents | openmeter | mapped",
    ),
    key(
        "input.fields",
        Kind::Table,
        "{}",
        "for mapped: usage field = \"/json/pointer\" or { pointer, constant, unit }",
    ),
    key(
        "time.epoch",
        Kind::Duration,
        "\"5m\"",
        "step of event time; slices and lateness are multiples of it",
    ),
    key(
        "time.lateness",
        Kind::Duration,
        "\"15m\"",
        "how long a slice waits for its events before it is judged",
    ),
    key("time.dedup_horizon", Kind::Duration, "\"2h\"", "how far back identities are remembered"),
    key("time.max_future", Kind::Duration, "\"10m\"", "how far clocks may run ahead"),
    key("time.max_interval", Kind::Duration, "\"31d\"", "longest interval of one event"),
    key(
        "time.idle_timeout",
        Kind::Duration,
        "\"1m\"",
        "wall-clock silence after which a partition holds nobody back",
    ),
    key("time.max_skew", Kind::Duration, "\"1h\"", "how far METER may run ahead of ACCOUNT"),
    key(
        "tier",
        Kind::Tables,
        "[{ slice = \"1h\", keep = \"8d\" }, { slice = \"1d\", keep = \"400d\" }]",
        "slices and how long they are kept, finest first",
    ),
    key("origin.home", Kind::List, "[\"US\"]", "countries that are not foreign"),
    key(
        "origin.basis",
        Kind::List,
        "[\"ultimate_parent_country\", \"country\", \"incorporation_country\", \"payment_country\"]",
        "the first known one is the country of origin",
    ),
    key(
        "origin.foreign_if_any",
        Kind::List,
        "[\"ultimate_parent_country\", \"country\", \"incorporation_country\", \"payment_country\"]",
        "foreign if one of them is known and not home",
    ),
    key(
        "origin.unknown_is_foreign",
        Kind::Boolean,
        "true",
        "an account of which nothing is known counts as foreign",
    ),
    key(
        "origin.geoip",
        Kind::Text,
        "\"\"",
        "MMDB file that gives access_ips a country; \"\" = none",
    ),
    key(
        "utilization.low",
        Kind::Number,
        "0.18",
        "of the 16-bit peak, for flop_low: p10 of published runs",
    ),
    key("utilization.central", Kind::Number, "0.33", "for flop, when there is no telemetry"),
    key("utilization.high", Kind::Number, "0.50", "for flop_high: p90 of published runs"),
    key(
        "catalogue.unknown",
        Kind::Text,
        "\"nvidia-h100-sxm\"",
        "what an unknown accelerator counts as",
    ),
    key("catalogue.unknown_count", Kind::Number, "8", "accelerators in an unknown instance type"),
    key(
        "catalogue.files",
        Kind::List,
        "[]",
        "more accelerators and instance types, over the shipped ones",
    ),
    key(
        "run.min_accelerators",
        Kind::Number,
        "64",
        "accelerators at once that make a slice part of a run",
    ),
    key("run.max_gap", Kind::Duration, "\"72h\"", "longest pause within a run"),
    key("alerts.format", Kind::Text, "\"json\"", "json | protobuf"),
    key(
        "dead_letter.max_consecutive",
        Kind::Integer,
        "1000",
        "invalid records in a row on one partition that stop the process",
    ),
    key("http.listen", Kind::Text, "\"127.0.0.1:9464\"", "address of /metrics and /healthz"),
    key(
        "notify.listen",
        Kind::Text,
        "\"127.0.0.1:9465\"",
        "address of /metrics and /healthz of `flopwatch notify`",
    ),
    key("notify.shadow", Kind::Boolean, "false", "notify alerts of shadow policies as well"),
    key(
        "notify.alertmanager.url",
        Kind::Text,
        "\"\"",
        "where Alertmanager listens: alerts go to its API v2; \"\" = off",
    ),
    key(
        "notify.alertmanager.resend_interval",
        Kind::Duration,
        "\"1m\"",
        "live alerts are sent again this often; one that is not resolves after 4 of these",
    ),
    key(
        "notify.alertmanager.runbook_url",
        Kind::Text,
        "\"\"",
        "annotation runbook_url; {policy} in it is the policy's id; \"\" = none",
    ),
    key("notify.webhook.url", Kind::Text, "\"\"", "where alerts are posted; \"\" = off"),
    key(
        "notify.webhook.secret_file",
        Kind::Text,
        "\"\"",
        "file with the secret that signs what is posted",
    ),
    key("notify.webhook.timeout", Kind::Duration, "\"10s\"", "longest wait for an answer"),
    key("notify.ocsf.topic", Kind::Text, "\"\"", "topic for OCSF Detection Findings; \"\" = off"),
    key("lists", Kind::Table, "{}", "country lists for policies: NAME = [\"CN\"] is @NAME"),
    key("policy", Kind::Tables, "[]", "policies that stand in this file"),
];

const fn key(path: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Key {
    Key { path, kind, default, meaning }
}

pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The names that may stand in the table `section` ("" = the top).
pub(super) fn children(section: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = KEYS
        .iter()
        .filter_map(|key| match section {
            "" => Some(key.path),
            section => key.path.strip_prefix(section)?.strip_prefix('.'),
        })
        .map(|rest| rest.split_once('.').map_or(rest, |(name, _)| name))
        .collect();
    names.dedup();
    names
}

/// The lowest layer: every key at its default.
pub(super) fn defaults() -> Node {
    let mut tree = Node::table(Place::Default);
    for key in KEYS {
        let node = parse_value(&Place::Default, key.default).expect("defaults are TOML");
        tree.insert(key.path, node);
    }
    tree
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_default_and_a_meaning_and_stands_once() {
        let tree = defaults();
        for key in KEYS {
            assert!(tree.find(key.path).is_some(), "{}", key.path);
            assert!(!key.meaning.is_empty(), "{}", key.path);
            let same = KEYS.iter().filter(|other| other.path == key.path).count();
            assert_eq!(same, 1, "{}", key.path);
        }
    }

    #[test]
    fn children_of_a_section_are_its_keys() {
        assert_eq!(children("http"), ["listen"]);
        assert!(children("").contains(&"kafka"));
        assert!(children("kafka").contains(&"client"));
    }
}
