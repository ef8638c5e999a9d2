//! Short stories through the stages, each told once.

use std::sync::Arc;

use flopwatch::config::Config;
use flopwatch::detector::Stage;
use flopwatch::detector::account::Account;
use flopwatch::detector::alert::Alert;
use flopwatch::detector::changelog::{Reader, Writer};
use flopwatch::detector::directory::{AccountRecord, Country, Entry};
use flopwatch::detector::event::Record;
use flopwatch::detector::key_state::{check_stamp, write_stamp};
use flopwatch::detector::meter::Meter;
use flopwatch::detector::outbox::{Outbox, Output};

const POLICY: &str = r#"
[[policy]]
id = "any-use"
version = 1
title = "Any use"
severity = "info"
scope = "account"
window = "3h"
[[policy.all]]
metric = "accelerators"
at_least = 1
"#;

struct Pipeline {
    meter: Meter,
    account: Account,
    offset: u64,
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Pipeline {
    fn new(config: &Config) -> Self {
        let (rules, policies) = (&config.rules, &config.policies);
        Self {
            meter: Meter::new(Arc::clone(rules), 0, 1, 1),
            account: Account::new(Arc::clone(rules), Arc::clone(policies), 0, 1),
            offset: 0,
            changes: Vec::new(),
        }
    }

    /// Eight H100s of one account for the hour that ends at `hour`; the alerts that follow.
    fn hour(&mut self, hour: u32) -> Vec<Alert> {
        let event = format!(
            r#"{{"id":"{hour}","source":"m","account_id":"a","accelerator":"nvidia-h100-sxm","quantity":8,
            "start_time":"2026-03-01T{:02}:00:00Z","end_time":"2026-03-01T{hour:02}:00:00Z",
            "time":"2026-03-01T{hour:02}:20:00Z"}}"#,
            hour - 1
        );
        let mut outbox = Outbox::default();
        let record = record(u64::from(hour), event.as_bytes());
        self.meter.process(&record, &mut outbox).expect("usage");
        self.meter.seal(&mut outbox);
        let mut alerts = Vec::new();
        for output in outbox.outputs {
            let Output::Forward { value, .. } = output else { continue };
            let mut outbox = Outbox::default();
            self.account.process(&record_at(&mut self.offset, &value), &mut outbox).expect("sums");
            self.account.seal(&mut outbox);
            for output in outbox.outputs {
                match output {
                    Output::Alert(alert) => alerts.push(*alert),
                    Output::Change { key, value } => self.changes.push((key, value)),
                    Output::Forward { .. } | Output::DeadLetter(_) => {}
                }
            }
        }
        alerts
    }
}

fn record(offset: u64, value: &[u8]) -> Record<'_> {
    Record { offset, timestamp: None, key: None, value: Some(value), headers: &[] }
}

fn record_at<'a>(offset: &mut u64, value: &'a [u8]) -> Record<'a> {
    *offset += 1;
    record(*offset - 1, value)
}

fn config() -> Config {
    Config::from_text("scenario", POLICY).expect("a valid configuration")
}

#[test]
fn alerts_after_an_accepted_gap_say_how_many_records_it_took() {
    let mut pipeline = Pipeline::new(&config());
    pipeline.hour(1);
    pipeline.meter.accept_gap(7);
    let alerts: Vec<Alert> = (2..5).flat_map(|hour| pipeline.hour(hour)).collect();
    let gaps: Vec<u64> = alerts.iter().map(|alert| alert.evidence.gap_records).collect();
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| *gap == 7), "{gaps:?}");
}

#[test]
fn an_account_that_the_directory_no_longer_names_after_a_restart_is_removed() {
    let config = config();
    let mut before = Pipeline::new(&config);
    let entry = Entry { country: Country::parse("FR"), ..Entry::default() };
    before.account.directory(&AccountRecord { account_id: "a".into(), entry: Some(entry) });
    let alerts: Vec<Alert> = (1..3).flat_map(|hour| before.hour(hour)).collect();
    assert_eq!(alerts[0].origin.country, Country::parse("FR").expect("a country"));

    let mut after = Pipeline::new(&config);
    for (key, value) in &before.changes {
        after.account.restore(key, value.as_deref()).expect("own state");
    }
    after.account.directory_complete();
    (after.meter, after.offset) = (before.meter, before.offset);
    after.hour(3);
    let mut told = Outbox::default();
    after.account.seal(&mut told);
    let mut facts = after.changes.iter().filter(|(key, _)| key.starts_with(b"h"));
    let head = facts.next_back().and_then(|(_, value)| value.clone()).expect("the account's head");
    let text = String::from_utf8_lossy(&head);
    assert!(text.contains("ZZ") && !text.contains("FR"), "{text}");
}

#[test]
fn state_under_another_epoch_lateness_or_tier_is_refused_by_name() {
    let rules = |text: &str| Config::from_text("rules", text).expect("valid").rules;
    let mut writer = Writer::default();
    write_stamp(&rules(""), &mut writer);
    let stamp = writer.finish();
    let check = |text: &str| check_stamp(&rules(text), &mut Reader::new(&stamp).expect("ours"));
    let day = "[[tier]]\nslice = \"1d\"\nkeep = \"400d\"\n";
    let hour = |keep: &str| format!("[[tier]]\nslice = \"1h\"\nkeep = \"{keep}\"\n");
    assert_eq!(check(&(hour("8d") + day)), Ok(()), "the defaults spelled out");
    for (text, what) in [
        ("[time]\nepoch = \"15m\"\n".to_owned(), "time.epoch"),
        ("[time]\nlateness = \"30m\"\n".to_owned(), "time.lateness"),
        (hour("9d") + day, "tier (slice or keep)"),
        (hour("8d") + &day.replace("1d", "2d"), "tier (slice or keep)"),
        (hour("400d"), "number of tiers"),
    ] {
        let error = check(&text).expect_err(what).to_string();
        assert!(error.contains(&format!("built under another {what}: ")), "{error}");
    }
}
