//! What is right, where it comes from, and what is printed; what is wrong is in `refusals.rs`.

mod refusals;

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

#[test]
fn tiers_too_short_for_the_default_set_leave_that_policy_out_and_say_so() {
    let tier = "[[tier]]\nslice = \"1h\"\nkeep = \"8d\"\n";
    let all = Config::from_text("f.toml", "").expect("valid").policies.list.len();
    let config = Config::from_text("f.toml", tier).expect("valid");
    assert!(config.policies.list.len() < all && !config.policies.list.is_empty());
    assert!(config.effective().contains("# left out of the default set"));
    let message = refusal(&format!("policies = [\"preset:default\"]\n{tier}"));
    assert!(message.contains("preset:default:"), "{message}");
    assert!(message.contains("policy.window: found \"30d\", which no tier keeps"), "{message}");
}

fn variables(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn the_environment_overrides_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("f.toml");
    let text =
        "[kafka]\nworkers = 2\ngroup_id = \"a\"\n[kafka.client]\nsasl.password_file = \"/no/such\"";
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

/// The smallest MMDB file: one node that knows no address.
fn mmdb() -> Vec<u8> {
    fn text(text: &str) -> Vec<u8> {
        let length = u8::try_from(text.len()).expect("short");
        let control = if length < 29 { vec![0x40 | length] } else { vec![0x5d, length - 29] };
        [control, text.as_bytes().to_vec()].concat()
    }
    let mut file = vec![0, 0, 1, 0, 0, 1];
    file.extend([0; 16]);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    file.push(0xe0 | 9);
    for (name, value) in [
        ("node_count", vec![0xc1, 1]),
        ("record_size", vec![0xa1, 24]),
        ("ip_version", vec![0xa1, 4]),
        ("database_type", text("country")),
        ("languages", vec![0x00, 0x04]),
        ("binary_format_major_version", vec![0xa1, 2]),
        ("binary_format_minor_version", vec![0xa0]),
        ("build_epoch", vec![0x01, 0x02, 1]),
        ("description", vec![0xe0]),
    ] {
        file.extend(text(name));
        file.extend(value);
    }
    file
}

#[test]
fn a_geoip_file_makes_addresses_count_and_anything_else_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("f.toml");
    fs::write(directory.path().join("country.mmdb"), mmdb()).expect("written");
    for fields in ["", "foreign_if_any = [\"access_ips\", \"country\"]"] {
        fs::write(&file, format!("[origin]\ngeoip = \"country.mmdb\"\n{fields}")).expect("written");
        let config = Config::load_with(Some(&file), []).expect("valid");
        assert_eq!(config.geoip, Some(directory.path().join("country.mmdb")));
        let foreign_if_any = &config.rules.origin.foreign_if_any;
        assert_eq!(foreign_if_any.last(), Some(&OriginField::AccessIps));
        assert_eq!(foreign_if_any.len(), if fields.is_empty() { 5 } else { 2 });
        assert_eq!(config.rules.origin.basis.len(), 4);
        let again = Config::from_text("e.toml", &config.effective()).expect("valid");
        assert_eq!(again.effective(), config.effective());
    }
    fs::write(directory.path().join("country.mmdb"), "no database").expect("written");
    let message = Config::load_with(Some(&file), []).expect_err("no MMDB").to_string();
    assert!(message.contains("f.toml:2: origin.geoip: cannot use "), "{message}");
}

#[test]
fn catalogue_files_are_read_and_their_faults_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("f.toml");
    let rows = directory.path().join("ours.csv");
    fs::write(&file, "[catalogue]\nfiles = [\"ours.csv\"]\nunknown = \"our-chip\"\n")
        .expect("written");
    fs::write(&rows, "key,dense16_tflops,dense_max_tflops\nour-chip,500,1000\n").expect("written");
    let config = Config::load_with(Some(&file), []).expect("valid");
    assert_eq!(config.rules.catalogue.unknown_key(), "our-chip");
    fs::write(&rows, "key,dense16_tflops,dense_max_tflops\nour-chip,much,1000\n").expect("written");
    let message = Config::load_with(Some(&file), []).expect_err("refused").to_string();
    assert!(message.contains(&format!("{}:2: ", rows.display())), "{message}");
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
[input]
format = "mapped"
[input.fields]
id = "/id"
source = { constant = "theirs" }
account_id = "/customer"
quantity = { pointer = "/gpu_hours", unit = "h" }
end_time = "/at"
duration = { pointer = "/minutes", unit = "m" }
telemetry.utilization = { pointer = "/load", unit = "%" }
[time]
epoch = "1m"
[[tier]]
slice = "30m"
keep = "40d"
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
    assert_eq!(load_policies(&again.source).expect("valid"), *config.policies);
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
