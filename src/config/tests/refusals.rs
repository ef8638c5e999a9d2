//! Every way in which configuration can be wrong, with the line that says so.

use super::{POLICY, refusal};
use crate::config::Config;

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
    ("[time]\ndedup_horizon = \"9132d\"", "time.dedup_horizon: \"9132d\" is longer than 25 years"),
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
        "kafka.instance: found \"a b\"; right would be at most 200 printable",
    ),
    (
        "[topics]\nusage = \"a/b\"",
        "f.toml:2: topics.usage: found \"a/b\"; right would be at most 200",
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
    (
        "[kafka]\ngroup_id = \"a/b\"",
        "f.toml:2: kafka.group_id: found \"a/b\"; right would be at most 200 of",
    ),
    // input, time, tiers, runs
    (
        "[input.fields]\nid = 5",
        "f.toml:2: input.fields.id: found the integer 5; right would be \"/json/pointer\"",
    ),
    (
        "[input.fields]\nid = { pinter = \"/id\" }",
        "f.toml:2: input.fields.id.pinter: unknown key; did you mean \"pointer\"?",
    ),
    ("[input.fields]\nsource = \"/s\"\nid = \"id\"", "f.toml:3: input.fields.id: "),
    (
        "[input.fields]\nid = \"/id\"",
        "f.toml:1: input.fields lacks source: give it a pointer or a constant",
    ),
    (
        "[input.fields]\ntelemetry.load = \"/l\"",
        "f.toml:2: input.fields.telemetry.load: unknown field",
    ),
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
