//! All parts together: a simulated cloud, the service, `notify`, Alertmanager and a webhook.

use std::collections::{BTreeMap, BTreeSet};

use flopwatch::config::Config;
use flopwatch::simulate::KeyBy;
use serde_json::Value;

use crate::broker::{Broker, free_port};
use crate::parts::{Alertmanager, PATIENCE, Posted, Program, Webhook, eventually};
use crate::world::{World, config_text};

/// Resolves long after the test's last slice: what it fires for is live at the end.
const LASTING: &str = r#"
[[policy]]
id = "lasting"
version = 1
title = "Many accelerators, remembered"
severity = "critical"
scope = "account"
origin = "any"
window = "4h"
keep_firing = "30d"
[[policy.all]]
metric = "accelerators"
at_least = 24
"#;

/// What a target must have been told: the ids of each key's revisions in order, and what is live.
struct Told {
    revisions: BTreeMap<Vec<u8>, Vec<String>>,
    live: BTreeSet<String>,
}

impl Told {
    fn of(alerts: &BTreeMap<(String, Vec<u8>), Vec<String>>, topic: &str) -> Self {
        let mut told = Self { revisions: BTreeMap::new(), live: BTreeSet::new() };
        for ((_, key), values) in alerts.iter().filter(|((found, _), _)| found == topic) {
            for value in values {
                let event: Value = serde_json::from_str(value).expect("JSON");
                let id = event["id"].as_str().expect("an id").to_owned();
                let alert = event["data"]["alert_id"].as_str().expect("an id").to_owned();
                told.revisions.entry(key.clone()).or_default().push(id);
                if event["data"]["state"] == "resolved" {
                    told.live.remove(&alert);
                } else {
                    told.live.insert(alert);
                }
            }
        }
        told
    }
}

/// The ids by key, each where it came first.
fn first_times(posted: &[Posted]) -> BTreeMap<Vec<u8>, Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut ids: BTreeMap<Vec<u8>, Vec<String>> = BTreeMap::new();
    for posted in posted.iter().filter(|posted| seen.insert(posted.id().to_owned())) {
        let event: Value = serde_json::from_slice(&posted.body).expect("JSON");
        let (subject, policy) = (&event["subject"], &event["data"]["policy"]["id"]);
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let key = format!("{}/{}", text(subject), text(policy)).into_bytes();
        ids.entry(key).or_default().push(posted.id().to_owned());
    }
    ids
}

#[test]
fn a_cloud_s_alerts_arrive_in_order_whatever_is_killed_and_what_is_live_at_the_end_is_shown() {
    let (alertmanager, webhook) = (Alertmanager::start(), Webhook::start(Vec::new()));
    let directory = tempfile::tempdir().expect("a directory");
    let (secret, file) = (directory.path().join("secret"), directory.path().join("flopwatch.toml"));
    std::fs::write(&secret, "only this test knows it").expect("written");
    let listen = format!("127.0.0.1:{}", free_port());
    let text = format!(
        "{}{LASTING}[notify]\nlisten = \"{listen}\"\n[notify.alertmanager]\nurl = \"{}\"\n\
         resend_interval = \"1s\"\n[notify.webhook]\nurl = \"{}\"\nsecret_file = \"{}\"\n",
        config_text("whole", "a", 1, &Broker::shared().address),
        alertmanager.url(),
        webhook.url(),
        secret.display(),
    );
    std::fs::write(&file, text).expect("written");
    let config = Config::load_with(Some(&file), []).expect("a valid configuration");
    let world = World::new(7, KeyBy::Account, 2);
    let expected = world.replayed(&config);
    let told = Told::of(&expected.alerts, &config.topics.alerts);
    let count: usize = told.revisions.values().map(Vec::len).sum();
    assert!(count > 20 && !told.live.is_empty(), "{count} revisions, live {:?}", told.live);

    world.prepare(&config);
    let service = Program::start("run", &file, String::new());
    let mut notify = Program::start("notify", &file, listen.clone());
    world.send(&config, 0, 60);
    eventually("the first alerts", || (!webhook.posted().is_empty()).then_some(()));
    notify.kill();
    let alertmanager = alertmanager.replace();
    let notify = Program::start("notify", &file, listen);
    world.send(&config, 60, 100);
    world.await_outcome(&config, &expected, PATIENCE);

    eventually("every revision is posted", || {
        (first_times(&webhook.posted()) == told.revisions).then_some(())
    });
    eventually("what is live is shown", || {
        let shown: BTreeSet<String> = alertmanager
            .list()
            .iter()
            .map(|alert| alert["labels"]["alert_id"].as_str().unwrap_or_default().to_owned())
            .collect();
        (shown == told.live).then_some(())
    });
    // one death, one delivery whose answer nobody heard
    assert!(webhook.posted().len() <= count + 1, "{} for {count}", webhook.posted().len());
    for mut program in [service, notify] {
        program.terminate();
        assert_eq!(program.end().code(), Some(0), "{}", program.log());
    }
}
