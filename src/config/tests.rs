//! Every way in which configuration can be wrong, with the line that says so; and what is right.

use std::fs;

use super::*;
use crate::detector::policy::Mode;
use crate::detector::rules::OriginField;

fn refusal(text: &str) -> String {
    match Config::from_text("f.toml", text) {
        Ok(_) => format!("nothing: it was accepted: {text}"),
        Err(Fatal::Config(message)) => message,
        Err(other) => panic!("not a configuration error: {other}"),
    }
}

/// (text, part of the message); the place comes first in every message.
const REFUSALS: &[(&str, &str)] = &[
    // TOML and keys
    ("\n[kafka\n", "f.toml:2: this is not TOML: "),
    ("a = 1\na = 2", "f.toml:2: this is not TOML: duplicate key"),
    (
        "[kafka]\n\ncomit_interval = \"1s\"",
        "f.toml:3: kafka.comit_interval: unknown key; did you mean \"commit_interval\"?",
    ),
    ("[kafak]", "f.toml:1: kafak: unknown key; did you mean \"kafka\"?"),
    ("group_id = \"x\"", "f.toml:1: group_id: unknown key; did you mean \"kafka.group_id\"?"),
    (
        "[http]\nsecret_sauce = 1",
        "f.toml:2: http.secret_sauce: unknown key; right would be one of \"listen\"",
    ),
    ("kafka = 3", "f.toml:1: kafka: found the integer 3; right would be a table: [kafka]"),
    (
        "[kafka]\nclient = \"x\"",
        "f.toml:2: kafka.client: found \"x\"; right would be a table: [kafka.client]",
    ),
    (
        "[kafka]\nworkers = 99999999999999999999",
        "f.toml:2: workers: found 99999999999999999999; integers have 64 bits",
    ),
    // types and units
    (
        "[kafka]\ncommit_interval = 200",
        "f.toml:2: kafka.commit_interval: found the integer 200; right would be a duration such as",
    ),
    (
        "[kafka]\ncommit_interval = \"200\"",
        "f.toml:2: kafka.commit_interval: \"200\" has no unit; right would be a duration",
    ),
    (
        "[time]\nepoch = \"5min\"",
        "f.toml:2: time.epoch: \"5min\" has the unknown unit \"min\"; right would be",
    ),
    ("[time]\ndedup_horizon = \"101y\"", "time.dedup_horizon: \"101y\" has the unknown unit"),
    (
        "[time]\ndedup_horizon = \"36526d\"",
        "time.dedup_horizon: \"36526d\" is longer than 100 years",
    ),
    (
        "[time]\nidle_timeout = \"0s\"",
        "f.toml:2: time.idle_timeout: found \"0s\"; right would be a duration above 0",
    ),
    (
        "[kafka]\nworkers = \"many\"",
        "f.toml:2: kafka.workers: found \"many\"; right would be a whole number from 0 to 1024",
    ),
    ("[kafka]\nworkers = -1", "kafka.workers: found the integer -1; right would be a whole number"),
    (
        "[origin]\nunknown_is_foreign = \"yes\"",
        "f.toml:2: origin.unknown_is_foreign: found \"yes\"; right would be true or false",
    ),
    ("[origin]\nhome = \"US\"", "f.toml:2: origin.home: found \"US\"; right would be a list"),
    (
        "[topics]\nusage = 1979-05-27",
        "topics.usage: found the date 1979-05-27; right would be a text",
    ),
    // kafka and topics
    (
        "[kafka]\nbootstrap_servers = \"\"",
        "kafka.bootstrap_servers: found \"\"; right would be a text that is not empty",
    ),
    (
        "[kafka]\nbootstrap_servers = \"a:9092,b:x\"",
        "kafka.bootstrap_servers: found \"a:9092,b:x\"; right would be \"host:port\"",
    ),
    (
        "[kafka]\ninstance = \"a b\"",
        "kafka.instance: found \"a b\"; right would be at most 249 printable",
    ),
    (
        "[topics]\nusage = \"a/b\"",
        "f.toml:2: topics.usage: found \"a/b\"; right would be at most 249",
    ),
    (
        "[topics]\nalerts = \"usage\"",
        "f.toml:2: topics.alerts: \"usage\" is topics.usage as well; right would be a topic of its own",
    ),
    (
        "[kafka.client]\n\"enable.auto.commit\" = true",
        "f.toml:2: kafka.client.enable.auto.commit: this setting is flopwatch's own; leave it out: positions are committed inside",
    ),
    (
        "[kafka.client]\nisolation.level = \"read_uncommitted\"",
        "f.toml:2: kafka.client.isolation.level: this setting is flopwatch's own",
    ),
    ("[kafka.client]\n\"group.id\" = \"x\"", "leave it out: set kafka.group_id"),
    ("[kafka.client]\n\"rebalance_cb\" = \"x\"", "a setting that is code cannot be set here"),
    (
        "[kafka.client]\n\"sasl.mechanizm\" = \"PLAIN\"",
        "f.toml:2: kafka.client.sasl.mechanizm: librdkafka refuses it: No such configuration property",
    ),
    (
        "[kafka.client]\n\"fetch.wait.max.ms\" = \"soon\"",
        "kafka.client.fetch.wait.max.ms: librdkafka refuses it: ",
    ),
    (
        "[kafka.client]\n\"sasl.password_file\" = \"/no/such\"",
        "f.toml:2: kafka.client.sasl.password_file: cannot read /no/such: No such file",
    ),
    (
        "[kafka.client]\n\"security.protocol\" = [\"ssl\"]",
        "kafka.client.security.protocol: not one value; right would be",
    ),
    // input, time, tiers, runs
    (
        "[input]\nformat = \"xml\"",
        "f.toml:2: input.format: found \"xml\"; right would be one of \"auto\", \"protobuf\"",
    ),
    (
        "[input]\nformat = \"mapped\"",
        "f.toml:2: input.format: found \"mapped\"; mapped needs [input.fields]",
    ),
    (
        "[time]\nlateness = \"7m\"",
        "f.toml:2: time.lateness: time.lateness 7m is not a multiple of time.epoch 5m; right would be a multiple",
    ),
    (
        "[time]\nepoch = \"7m\"",
        "f.toml:2: time.epoch: time.lateness 15m is not a multiple of time.epoch 7m; right would be a multiple",
    ),
    (
        "[time]\nmax_skew = \"1m\"",
        "f.toml:2: time.max_skew: time.max_skew 1m is shorter than time.epoch 5m; right would be at least",
    ),
    ("tier = []", "f.toml:1: tier: found no tier; right would be at least one [[tier]]"),
    ("[tier]\nslice = \"1h\"", "f.toml:1: tier: found a table; right would be tables: [[tier]]"),
    ("[[tier]]\nslice = \"1h\"", "f.toml:1: tier.keep: it is missing; right would be how long"),
    (
        "[[tier]]\nslice = \"1h\"\nkeep = \"8d\"\nkept = 1",
        "f.toml:4: tier.kept: unknown key; right would be one of \"slice\", \"keep\"",
    ),
    (
        "[[tier]]\nslice = \"7m\"\nkeep = \"7d\"",
        "f.toml:2: tier.slice: slice 7m is not a multiple of time.epoch 5m; right would be a multiple",
    ),
    (
        "[[tier]]\nslice = \"1h\"\nkeep = \"90m\"",
        "f.toml:3: tier.keep: found \"90m\"; right would be a multiple of slice 1h",
    ),
    (
        "[[tier]]\nslice = \"1d\"\nkeep = \"8d\"\n[[tier]]\nslice = \"1h\"\nkeep = \"8d\"",
        "f.toml:5: tier.slice: found \"1h\"; tiers go from the finest to the coarsest",
    ),
    (
        "[[tier]]\nslice = \"2h\"\nkeep = \"8d\"\n[[tier]]\nslice = \"3h\"\nkeep = \"9d\"",
        "f.toml:5: tier.slice: found \"3h\"; tiers go from",
    ),
    (
        "[[tier]]\nslice = \"1h\"\nkeep = \"4d\"",
        "f.toml:1: tier: run.max_gap 3d and a day do not fit into the finest tier's keep 4d; right would be",
    ),
    (
        "[run]\nmax_gap = \"30m\"",
        "f.toml:2: run.max_gap: run.max_gap 30m is shorter than the finest slice 1h; right would be",
    ),
    (
        "[run]\nmin_accelerators = 0",
        "f.toml:2: run.min_accelerators: found the integer 0; right would be a finite number above 0",
    ),
    (
        "[dead_letter]\nmax_consecutive = 0",
        "f.toml:2: dead_letter.max_consecutive: found the integer 0; right would be a whole number from 1",
    ),
    // origin, lists
    (
        "[origin]\nhome = []",
        "f.toml:2: origin.home: found an empty list; right would be at least one country code",
    ),
    (
        "[origin]\nhome = [\"US\", \"UK\"]",
        "f.toml:2: origin.home: found \"UK\"; did you mean \"GB\"?",
    ),
    (
        "[origin]\nhome = [\n\"US\",\n\"United States\"]",
        "f.toml:4: origin.home: found \"United States\"; right would be an ISO 3166-1 alpha-2",
    ),
    (
        "[origin]\nbasis = [\"contry\"]",
        "f.toml:2: origin.basis: found \"contry\"; did you mean \"country\"?",
    ),
    (
        "[origin]\nbasis = [\"access_ips\"]",
        "origin.basis: found \"access_ips\"; an address is never the basis",
    ),
    (
        "[origin]\nbasis = []",
        "origin.basis: found an empty list; right would be at least one field",
    ),
    ("[origin]\nbasis = [\"country\", \"country\"]", "origin.basis: \"country\" stands twice"),
    (
        "[origin]\nforeign_if_any = [\"access_ips\"]",
        "origin.foreign_if_any: found \"access_ips\"; origin.geoip must name an MMDB file",
    ),
    ("[origin]\ngeoip = \"/no/such.mmdb\"", "f.toml:2: origin.geoip: cannot use /no/such.mmdb: "),
    (
        "[lists]\nours = [\"CN\", \"X\"]",
        "f.toml:2: lists.ours: found \"X\"; right would be an ISO 3166-1",
    ),
    ("[lists]\n\"@ours\" = [\"CN\"]", "f.toml:2: lists.@ours: not a name for a list"),
    // the rest
    (
        "[utilization]\nlow = 0.4",
        "f.toml:2: utilization.low: low 0.4, central 0.33, high 0.5; right would be 0 < low <= central <= high <= 1",
    ),
    (
        "[utilization]\nhigh = 1.1",
        "f.toml:2: utilization.high: low 0.18, central 0.33, high 1.1; right would be 0 < low",
    ),
    (
        "[utilization]\nlow = nan",
        "f.toml:2: utilization.low: found the number NaN; right would be a finite number above 0",
    ),
    (
        "[catalogue]\nunknown = \"nvidia-h100-smx\"",
        "f.toml:2: catalogue.unknown: no accelerator is called \"nvidia-h100-smx\"; did you mean \"nvidia-h100-sxm\"?",
    ),
    ("[catalogue]\nunknown = \"vcpu\"", "f.toml:2: catalogue.unknown: "),
    (
        "[catalogue]\nunknown_count = -8",
        "f.toml:2: catalogue.unknown_count: found the integer -8; right would be a finite number above 0",
    ),
    (
        "[catalogue]\nfiles = [\"/no/such.csv\"]",
        "f.toml:2: catalogue.files: cannot read /no/such.csv: No such file",
    ),
    (
        "[alerts]\nformat = \"JSON\"",
        "f.toml:2: alerts.format: found \"JSON\"; right would be one of \"json\", \"protobuf\"",
    ),
    (
        "[http]\nlisten = \"localhost:9464\"",
        "f.toml:2: http.listen: found \"localhost:9464\"; right would be an address and a port",
    ),
    // the set of policies
    (
        "policies = [\"preset:defalt\"]",
        "f.toml:1: policies: no preset is named \"defalt\"; did you mean \"default\"?",
    ),
    (
        "policies = [\"/no/such/*.toml\"]",
        "f.toml:1: policies: \"/no/such/*.toml\" matches no file; looked in /no/such",
    ),
    ("policies = [\"[a.toml\"]", "f.toml:1: policies: \"[a.toml\" is not a glob: "),
    ("policies = \"a.toml\"", "f.toml:1: policies: found \"a.toml\"; right would be a list"),
    ("policy = [1]", "f.toml:1: policy: found the integer 1; right would be tables: [[policy]]"),
];

/// A policy that is right, of which each case changes one line.
const POLICY: &str = "[[policy]]
id = \"p\"
severity = \"info\"
origin = \"any\"
scope = \"account\"
window = \"72h\"
[[policy.all]]
metric = \"flop\"
at_least = 1e20
";

/// (line of `POLICY`, what replaces it, part of the message)
const POLICY_REFUSALS: &[(&str, &str, &str)] = &[
    ("id = \"p\"", "", "f.toml:1: policy.id: it is missing; right would be a name"),
    (
        "id = \"p\"",
        "id = \"a/b\"",
        "f.toml:2: policy.id: found \"a/b\"; right would be at most 128 bytes without",
    ),
    (
        "id = \"p\"",
        "id = \"p\"\nversion = 0",
        "f.toml:3: policy.version: found the integer 0; right would be a whole number from 1",
    ),
    (
        "id = \"p\"",
        "id = \"p\"\nversion = \"1.0\"",
        "f.toml:3: policy.version: found \"1.0\"; right would be a whole number",
    ),
    (
        "id = \"p\"",
        "id = \"p\"\nseverety = \"info\"",
        "f.toml:3: policy.severety: unknown key; did you mean \"severity\"?",
    ),
    ("severity = \"info\"", "", "f.toml:1: policy.severity: it is missing; right would be one of"),
    (
        "severity = \"info\"",
        "severity = \"high\"",
        "f.toml:3: policy.severity: found \"high\"; right would be one of \"info\", \"warning\", \"critical\"",
    ),
    (
        "severity = \"info\"",
        "severity = \"info\"\nmode = \"dry\"",
        "f.toml:4: policy.mode: found \"dry\"; right would be one of \"live\", \"shadow\", \"off\"",
    ),
    (
        "severity = \"info\"",
        "severity = \"info\"\nhold = 6",
        "f.toml:4: policy.hold: found the integer 6; right would be a duration",
    ),
    (
        "severity = \"info\"",
        "severity = \"info\"\nreferences = \"x\"",
        "f.toml:4: policy.references: found \"x\"; right would be a list",
    ),
    (
        "origin = \"any\"",
        "origin = \"abroad\"",
        "f.toml:4: policy.origin: found \"abroad\"; right would be \"any\", \"home\", \"foreign\"",
    ),
    (
        "origin = \"any\"",
        "origin = []",
        "f.toml:4: policy.origin: found an empty list; right would be \"any\"",
    ),
    (
        "origin = \"any\"",
        "origin = [\"CN\", \"@d6\"]",
        "f.toml:4: policy.origin: no list is named \"@d6\"; did you mean \"@d5\"?",
    ),
    (
        "origin = \"any\"",
        "origin = [\"PRC\"]",
        "f.toml:4: policy.origin: found \"PRC\"; right would be an ISO 3166-1",
    ),
    (
        "scope = \"account\"",
        "scope = \"tenant\"",
        "f.toml:5: policy.scope: found \"tenant\"; right would be one of \"account\", \"site\", \"owner\", \"country\"",
    ),
    (
        "window = \"72h\"",
        "",
        "f.toml:6: policy.all.window: neither flop nor its policy has a window; right would be a multiple of 1h up to 8d, or a multiple of 1d up to 400d",
    ),
    (
        "window = \"72h\"",
        "window = \"9d1h\"",
        "f.toml:6: policy.window: found \"9d1h\", which no tier keeps; right would be a multiple of 1h up to 8d, or",
    ),
    (
        "window = \"72h\"",
        "window = \"401d\"",
        "f.toml:6: policy.window: found \"401d\", which no tier keeps",
    ),
    (
        "window = \"72h\"",
        "window = \"90m\"",
        "f.toml:6: policy.window: found \"90m\", which no tier keeps",
    ),
    (
        "window = \"72h\"",
        "window = \"0h\"",
        "f.toml:6: policy.window: found \"0h\"; right would be a duration above 0",
    ),
    (
        "metric = \"flop\"",
        "metric = \"flops\"",
        "f.toml:8: policy.all.metric: unknown metric \"flops\"; did you mean \"flop\"?",
    ),
    (
        "metric = \"flop\"",
        "metric = \"training_score\"",
        "f.toml:8: policy.all.metric: metric \"training_score\" is not available yet",
    ),
    (
        "metric = \"flop\"",
        "",
        "f.toml:7: policy.all.metric: it is missing; right would be one of \"accelerators\"",
    ),
    (
        "metric = \"flop\"",
        "metric = \"sustained\"",
        "f.toml:7: policy.all.accelerators: it is missing; right would be how many at once",
    ),
    (
        "metric = \"flop\"",
        "metric = \"sustained\"\naccelerators = 512",
        "f.toml:10: policy.all.at_least: found the number 1e20; sustained is a share",
    ),
    (
        "metric = \"flop\"",
        "metric = \"projected_run_flop\"",
        "f.toml:7: policy.all.horizon: it is missing; right would be how far ahead",
    ),
    (
        "metric = \"flop\"",
        "metric = \"flop\"\nhorizon = \"90d\"",
        "f.toml:9: policy.all.horizon: metric \"flop\" takes no horizon",
    ),
    (
        "metric = \"flop\"",
        "metric = \"flop\"\naccelerators = 1",
        "f.toml:9: policy.all.accelerators: metric \"flop\" takes no accelerators",
    ),
    (
        "metric = \"flop\"",
        "metric = \"flop\"\nwindow = \"25h5m\"",
        "f.toml:9: policy.all.window: found \"25h5m\", which no tier keeps",
    ),
    (
        "metric = \"flop\"",
        "metric = \"flop\"\nthreshold = 5",
        "f.toml:9: policy.all.threshold: unknown key; right would be one of \"metric\"",
    ),
    (
        "at_least = 1e20",
        "at_least = 0",
        "f.toml:9: policy.all.at_least: found the integer 0; right would be a finite number above 0",
    ),
    (
        "at_least = 1e20",
        "at_least = -1.5",
        "f.toml:9: policy.all.at_least: found the number -1.5; right would be",
    ),
    (
        "at_least = 1e20",
        "at_least = inf",
        "f.toml:9: policy.all.at_least: found the number inf; right would be",
    ),
    (
        "at_least = 1e20",
        "at_least = \"1e20\"",
        "f.toml:9: policy.all.at_least: found \"1e20\"; right would be a finite number",
    ),
    (
        "at_least = 1e20",
        "",
        "f.toml:7: policy.all.at_least: it is missing; right would be a threshold",
    ),
];

#[test]
fn wrong_configuration_is_refused_with_place_and_remedy() {
    let failures: Vec<String> =
        REFUSALS.iter().filter_map(|(text, expected)| failure(text, expected)).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn failure(text: &str, expected: &str) -> Option<String> {
    let message = refusal(text);
    let is_right = message.contains(expected) && !message.contains('\n');
    (!is_right).then(|| format!("{text}\n    gave: {message}\n    not:  {expected}"))
}

#[test]
fn a_wrong_policy_is_refused_with_place_and_remedy() {
    Config::from_text("f.toml", POLICY).expect("the policy that each case changes is right");
    let failures: Vec<String> = POLICY_REFUSALS
        .iter()
        .filter_map(|(line, replacement, expected)| {
            let text = match *replacement {
                "" => POLICY.replace(&format!("{line}\n"), ""),
                replacement => POLICY.replace(line, replacement),
            };
            assert_ne!(text, POLICY, "{line}");
            failure(&text, expected)
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn run_metrics_are_refused_where_no_run_is_kept() {
    for (scope, is_kept) in
        [("account", true), ("owner", true), ("site", false), ("country", false)]
    {
        let text = POLICY
            .replace("\"account\"", &format!("{scope:?}"))
            .replace("\"flop\"", "\"run_flop\"");
        match Config::from_text("f.toml", &text) {
            Ok(_) => assert!(is_kept, "{scope}"),
            Err(error) => {
                assert!(!is_kept, "{error}");
                let found = format!("f.toml:8: policy.all.metric: run_flop at scope {scope:?}; ");
                assert!(error.to_string().contains(&found), "{error}");
            }
        }
    }
}

#[test]
fn a_policy_without_conditions_is_refused() {
    let head = POLICY.split("[[policy.all]]").next().expect("a head");
    assert!(refusal(head).contains("f.toml:1: policy.all: it is missing; right would be at least"));
    let empty = format!("{head}all = []\n");
    assert!(refusal(&empty).contains("f.toml:7: policy.all: found no condition; right would be"));
}

#[test]
fn an_id_stands_once_whatever_its_version() {
    let twice = format!("{POLICY}{}", POLICY.replace("id = \"p\"", "id = \"p\"\nversion = 2"));
    let message = refusal(&twice);
    assert!(
        message.contains("f.toml:11: policy.id: \"p\" stands at f.toml:2 already"),
        "{message}"
    );
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = Config::from_text("f.toml", "").expect("the defaults are valid");
    assert_eq!(config.kafka.bootstrap_servers, "127.0.0.1:9092");
    assert_eq!(config.kafka.commit_interval, Duration::from_millis(200));
    assert!(config.kafka.workers >= 1);
    assert!(!config.kafka.instance.is_empty());
    let other = Config::from_text("f.toml", "").expect("the defaults are valid");
    assert_ne!(config.kafka.instance, other.kafka.instance, "random");
    assert_eq!(config.topics.shadow_alerts, "flopwatch.shadow-alerts");
    let rules = &config.rules;
    assert_eq!(rules.time.epoch, Span::seconds(300));
    assert_eq!(rules.time.lateness, Span::seconds(900));
    assert_eq!(rules.time.dedup_horizon, Span::hours(2));
    assert_eq!(rules.time.max_interval, Span::days(31));
    assert_eq!(rules.tiers.len(), 2);
    assert_eq!((rules.tiers[1].slice, rules.tiers[1].keep), (Span::days(1), Span::days(400)));
    assert_eq!(rules.origin.foreign_if_any.len(), 4);
    assert_eq!(rules.origin.basis[0], OriginField::UltimateParentCountry);
    assert!(rules.origin.lists["d5"].len() > 20, "{:?}", rules.origin.lists);
    assert_eq!(rules.dead_letter_max_consecutive, 1000);
    assert_eq!(config.max_skew, Span::hours(1));
    assert_eq!(config.idle_timeout, Duration::from_secs(60));
    assert!(!config.policies.list.is_empty(), "the shipped default set applies");
}

#[test]
fn configured_policies_replace_the_default_set() {
    let config = Config::from_text("f.toml", POLICY).expect("valid");
    assert_eq!(config.policies.list.len(), 1);
    let both = format!("policies = [\"preset:default\"]\n{POLICY}");
    let config = Config::from_text("f.toml", &both).expect("valid");
    assert!(config.policies.list.len() > 1);
    assert_eq!(config.policies.list.last().map(|policy| policy.id.as_str()), Some("p"));
}

fn variables(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn the_environment_overrides_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("f.toml");
    let text = "[kafka]\nworkers = 2\ngroup_id = \"a\"\n[kafka.client]\n\"sasl.password_file\" = \"/no/such\"";
    fs::write(&file, text).expect("written");
    let environment = variables(&[
        ("PATH", "/bin"),
        ("FLOPWATCH_LOG", "json"),
        ("FLOPWATCH__KAFKA__BOOTSTRAP_SERVERS", "kafka-1:9092,kafka-2:9092"),
        ("FLOPWATCH__KAFKA__GROUP_ID", "123"),
        ("FLOPWATCH__KAFKA__WORKERS", "3"),
        ("FLOPWATCH__KAFKA__COMMIT_INTERVAL", "\"1s\""),
        ("FLOPWATCH__KAFKA__CLIENT__SASL_PASSWORD", "\"quoted\" = 5"),
        ("FLOPWATCH__KAFKA__CLIENT__SECURITY_PROTOCOL", "sasl_ssl"),
        ("FLOPWATCH__ORIGIN__HOME", "[\"US\", \"CA\"]"),
        ("FLOPWATCH__UTILIZATION__HIGH", "0.6"),
        ("FLOPWATCH__ORIGIN__UNKNOWN_IS_FOREIGN", "false"),
        ("FLOPWATCH__TIER", "[{ slice = \"1h\", keep = \"10d\" }]"),
        ("FLOPWATCH__LISTS__OURS", "[\"CN\"]"),
    ]);
    let config = Config::load_with(Some(&file), environment).expect("valid");
    assert_eq!(config.kafka.bootstrap_servers, "kafka-1:9092,kafka-2:9092");
    assert_eq!((config.kafka.group_id.as_str(), config.kafka.workers), ("123", 3));
    assert_eq!(config.kafka.commit_interval, Duration::from_secs(1));
    assert_eq!(config.kafka.client["sasl.password"], "\"quoted\" = 5");
    assert_eq!(config.kafka.client["security.protocol"], "sasl_ssl");
    assert_eq!(config.rules.origin.home.len(), 2);
    assert!((config.rules.utilization.high - 0.6).abs() < f64::EPSILON);
    assert!(!config.rules.origin.unknown_is_foreign);
    assert_eq!(config.rules.tiers.len(), 1);
    assert!(config.rules.origin.lists.contains_key("ours"));
}

#[test]
fn a_wrong_variable_is_refused_by_name() {
    for (name, value, expected) in [
        (
            "FLOPWATCH__KAFKA__BOOTSTRAP_SERVER",
            "x",
            "unknown variable; did you mean FLOPWATCH__KAFKA__BOOTSTRAP_SERVERS?",
        ),
        ("FLOPWATCH__kafka__workers", "1", "unknown variable"),
        (
            "FLOPWATCH__NOTHING_LIKE_IT_AT_ALL",
            "1",
            "unknown variable; right would be FLOPWATCH__SECTION__KEY",
        ),
        ("FLOPWATCH__KAFKA__CLIENT__", "1", "unknown variable"),
        (
            "FLOPWATCH__KAFKA__WORKERS",
            "many",
            "kafka.workers: found \"many\"; right would be a whole number",
        ),
        ("FLOPWATCH__KAFKA__COMMIT_INTERVAL", "200", "kafka.commit_interval: \"200\" has no unit"),
        (
            "FLOPWATCH__KAFKA__CLIENT__GROUP_ID",
            "x",
            "kafka.client.group.id: this setting is flopwatch's own",
        ),
        ("FLOPWATCH__ORIGIN__HOME", "US", "origin.home: found \"US\"; right would be a list"),
    ] {
        let error = Config::load_with(None, variables(&[(name, value)])).expect_err(name);
        let message = error.to_string();
        assert!(message.starts_with(&format!("configuration: {name}: ")), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn secrets_come_from_files_and_are_never_printed() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("secret"), "hunter2\n").expect("written");
    let file = directory.path().join("f.toml");
    let text =
        "[kafka.client]\nsasl.password_file = \"secret\"\n\"ssl.key.password\" = \"hunter3\"\n";
    fs::write(&file, text).expect("written");
    let config = Config::load_with(Some(&file), []).expect("valid");
    assert_eq!(config.kafka.client["sasl.password"], "hunter2");
    assert_eq!(config.kafka.client["ssl.key.password"], "hunter3");
    for printed in [config.effective(), format!("{config:?}")] {
        assert!(!printed.contains("hunter"), "{printed}");
    }
    assert!(config.effective().contains("\"ssl.key.password\" = \"<redacted>\""));
    let both =
        "[kafka.client]\n\"sasl.password\" = \"hunter2\"\n\"sasl.password_file\" = \"secret\"\n";
    fs::write(&file, both).expect("written");
    let message = Config::load_with(Some(&file), []).expect_err("twice").to_string();
    assert!(message.contains("sasl.password is given twice"), "{message}");
    assert!(!message.contains("hunter"), "{message}");
}

#[test]
fn a_refused_secret_is_not_in_the_message() {
    let text = "[kafka.client]\n\"sasl.passwordd\" = \"hunter2\"\n";
    let message = refusal(text);
    assert!(message.contains("f.toml:2: kafka.client.sasl.passwordd: librdkafka refuses it"));
    assert!(!message.contains("hunter2"), "{message}");
}

const EVERYTHING: &str = r#"
policies = ["preset:default", "policies/*.toml"]
[kafka]
instance = "pod-0"
workers = 2
[kafka.client]
security.protocol = "sasl_ssl"
"sasl.password_file" = "secret"
"fetch.wait.max.ms" = 50
[input.fields]
[time]
epoch = "1m"
[[tier]]
slice = "30m"
keep = "9d"
[catalogue]
files = []
[lists]
ours = ["CN", "RU"]
"odd name" = ["XK"]
[[policy]]
id = "inline"
severity = "warning"
title = "quotes \" and \\ and \n"
origin = ["@ours", "@odd name"]
window = "72h"
[[policy.all]]
metric = "flop_high"
at_least = 1e23
[[policy.all]]
metric = "sustained"
accelerators = 512
at_least = 0.9
"#;

fn whole_directory() -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix("a [odd] dir").tempdir().expect("a directory");
    fs::create_dir(directory.path().join("policies")).expect("created");
    let other = POLICY.replace("id = \"p\"", "id = \"other\"");
    fs::write(directory.path().join("policies/other.toml"), other).expect("written");
    fs::write(directory.path().join("secret"), "hunter2\n").expect("written");
    fs::write(directory.path().join("f.toml"), EVERYTHING).expect("written");
    directory
}

#[test]
fn the_effective_configuration_loads_to_itself() {
    let directory = whole_directory();
    let config = Config::load_with(Some(&directory.path().join("f.toml")), []).expect("valid");
    let effective = config.effective();
    let again = Config::from_text("effective.toml", &effective)
        .unwrap_or_else(|error| panic!("{error}\n{effective}"));
    assert_eq!(again.effective(), effective);
    assert_eq!(again.policies, config.policies);
    assert_eq!(again.kafka.client, config.kafka.client);
    assert!(effective.contains("# other 1 live "), "{effective}");
    let defaults = Config::from_text("f.toml", "").expect("valid").effective();
    for key in KEYS {
        let name = key.path.rsplit('.').next().expect("a name");
        assert!(defaults.contains(name) || key.path == "policy", "{}\n{defaults}", key.path);
    }
    let again = Config::from_text("effective.toml", &defaults).expect("valid");
    assert_eq!(again.effective(), defaults);
}

#[test]
fn a_running_process_takes_up_changed_policy_files() {
    let directory = whole_directory();
    let file = directory.path().join("f.toml");
    let config = Config::load_with(Some(&file), []).expect("valid");
    let source = &config.source;
    let policy = directory.path().join("policies/other.toml");
    assert_eq!(source.files(), [file.clone(), policy.clone()]);
    assert_eq!(source.directories(), [directory.path().join("policies")]);
    assert_eq!(load_policies(source).expect("valid"), *config.policies);

    let before = source.fingerprint();
    assert_eq!(source.fingerprint(), before);
    let text = fs::read_to_string(&policy).expect("read");
    fs::write(&policy, text.replace("\"info\"", "\"info\"\nmode = \"shadow\"")).expect("written");
    let changed = source.fingerprint();
    assert_ne!(changed, before);
    let policies = load_policies(source).expect("valid");
    let other = policies.list.iter().find(|policy| policy.id == "other").expect("it is there");
    assert_eq!(other.mode, Mode::Shadow);

    let third = POLICY.replace("id = \"p\"", "id = \"third\"");
    fs::write(directory.path().join("policies/third.toml"), third).expect("written");
    assert_ne!(source.fingerprint(), changed);
    assert_eq!(load_policies(source).expect("valid").list.len(), policies.list.len() + 1);

    fs::write(&policy, "[[policy]]\nid = 5\n").expect("written");
    let message = load_policies(source).expect_err("refused whole").to_string();
    let expected = format!("configuration: {}:2: policy.id: found the integer 5", policy.display());
    assert!(message.starts_with(&expected), "{message}");
}

#[test]
fn a_policy_file_may_have_a_header_and_nothing_else_unknown() {
    let directory = whole_directory();
    let file = directory.path().join("f.toml");
    let policy = directory.path().join("policies/other.toml");
    let text = fs::read_to_string(&policy).expect("read");
    fs::write(&policy, format!("[preset]\ntitle = \"ours\"\n{text}")).expect("written");
    Config::load_with(Some(&file), []).expect("a header is allowed");
    for (text, expected) in [
        ("[[polciy]]\nid = \"x\"", ":1: polciy: unknown key; did you mean \"policy\"?"),
        ("", ":1: policy: it is missing; right would be at least one [[policy]]"),
        ("x", ":1: this is not TOML"),
    ] {
        fs::write(&policy, text).expect("written");
        let message = Config::load_with(Some(&file), []).expect_err(text).to_string();
        assert!(message.contains(&format!("{}{expected}", policy.display())), "{message}");
    }
}

#[test]
fn windows_are_checked_against_the_configured_tiers() {
    let tiers = "[[tier]]\nslice = \"1d\"\nkeep = \"30d\"\n";
    let text = format!("{tiers}{}", POLICY.replace("72h", "30h"));
    let message = refusal(&text);
    assert!(
        message.contains("right would be a multiple of 1d up to 30d (see [[tier]])"),
        "{message}"
    );
    let weekly = "[[tier]]\nslice = \"2d\"\nkeep = \"28d\"\n";
    let text = POLICY.replace("window = \"72h\"\n", "").replace("\"flop\"", "\"run_flop\"");
    let message = refusal(&format!("{weekly}{text}"));
    assert!(message.contains("policy.window: it is missing, and the estimate's 24h"), "{message}");
}

#[test]
fn a_missing_configuration_file_is_named() {
    let message = Config::load_with(Some(Path::new("/no/such.toml")), []).expect_err("missing");
    let message = message.to_string();
    assert!(message.contains("/no/such.toml: cannot read the configuration file: No such file"));
}
