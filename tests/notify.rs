//! `flopwatch notify` on a real Kafka with a real Alertmanager, a webhook and a topic of findings.

#[path = "support/broker.rs"]
mod broker;
#[path = "notify/parts.rs"]
mod parts;
#[path = "notify/whole.rs"]
mod whole;
#[path = "support/world.rs"]
mod world;

use broker::Broker;
use flopwatch::detector::alert::{Alert, State};
use flopwatch::detector::cloudevent;
use flopwatch::detector::event::Record;
use flopwatch::notify::notice::Notice;
use flopwatch::notify::ocsf::finding;
use flopwatch::notify::webhook::Secret;
use parts::{Act, Alertmanager, Deployment, PATIENCE, Posted, Webhook, alert, eventually, hold};
use serde_json::Value;

const SECRET: &str = "a secret of the webhook and of nobody else";

fn id(alert: &Alert) -> String {
    format!("{}/{}", alert.alert_id, alert.revision)
}

fn webhook_settings(deployment: &Deployment, url: &str) -> String {
    let secret = deployment.secret_file(SECRET);
    format!(
        "[notify.webhook]\nurl = \"{url}\"\nsecret_file = \"{}\"\ntimeout = \"20s\"\n",
        secret.display()
    )
}

fn alertmanager_settings(alertmanager: &Alertmanager) -> String {
    format!(
        "[notify.alertmanager]\nurl = \"{}\"\nresend_interval = \"1s\"\n\
         runbook_url = \"https://example.org/{{policy}}\"\n",
        alertmanager.url()
    )
}

/// The signature is that of the body, the id and the time of the try; the body is the alert's.
fn assert_signed(posted: &Posted, alert: &Alert) {
    assert_eq!(posted.id(), id(alert));
    let seconds = posted.headers["webhook-timestamp"].parse().expect("seconds");
    let secret = Secret::new(SECRET).expect("a secret");
    let expected = secret.sign(posted.id(), seconds, &posted.body);
    assert_eq!(posted.headers["webhook-signature"], expected);
    assert_ne!(secret.sign(posted.id(), seconds + 1, &posted.body), expected);
    assert_eq!(posted.body, cloudevent::structured(alert).value);
    assert!(posted.headers["content-type"].starts_with("application/cloudevents+json"));
}

#[test]
fn alertmanager_sees_an_alert_fire_change_and_resolve_and_is_told_again_when_it_forgets() {
    let deployment = Deployment::new("am", 2);
    let alertmanager = Alertmanager::start();
    // long over when notify starts: never shown
    deployment.publish(&alert("over", 1, State::Firing));
    deployment.publish(&alert("over", 2, State::Resolved));
    deployment.publish(&alert("acme", 1, State::Firing));
    deployment.publish(&alert("beta", 1, State::Firing));
    let mut notify = deployment.start(&alertmanager_settings(&alertmanager));
    notify.await_ready();
    alertmanager.await_alerts(&[("acme", "1"), ("beta", "1")]);
    let shown = alertmanager.alerts()["acme"].clone();
    assert_eq!(shown["labels"]["policy"], "watched");
    assert_eq!(shown["labels"]["severity"], "warning");
    assert_eq!(shown["annotations"]["runbook_url"], "https://example.org/watched");

    deployment.publish(&alert("acme", 2, State::Updated));
    alertmanager.await_alerts(&[("acme", "2"), ("beta", "1")]);
    assert_eq!(alertmanager.alerts()["acme"]["fingerprint"], shown["fingerprint"], "one alert");

    // Alertmanager starts anew and knows nothing
    let alertmanager = alertmanager.replace();
    alertmanager.await_alerts(&[("acme", "2"), ("beta", "1")]);

    // both start anew, and no record tells of the live ones
    eventually("all is committed", || deployment.is_told("alertmanager").then_some(()));
    notify.kill();
    let alertmanager = alertmanager.replace();
    assert!(alertmanager.alerts().is_empty());
    let mut notify = deployment.start(&alertmanager_settings(&alertmanager));
    alertmanager.await_alerts(&[("acme", "2"), ("beta", "1")]);
    assert_eq!(notify.metric("flopwatch_notify_kept_alerts"), Some(3.0), "and one resolved");

    // it is resolved while nobody listens
    notify.kill();
    deployment.publish(&alert("acme", 3, State::Resolved));
    let _notify = deployment.start(&alertmanager_settings(&alertmanager));
    alertmanager.await_alerts(&[("beta", "1")]);
    eventually("all is committed", || deployment.is_told("alertmanager").then_some(()));
}

#[test]
fn a_webhook_gets_each_revision_signed_and_again_after_an_error_a_broken_line_and_a_kill() {
    let deployment = Deployment::new("hook", 1);
    let revisions = [
        alert("acme", 1, State::Firing),
        alert("acme", 2, State::Updated),
        alert("acme", 3, State::Resolved),
    ];
    let (held, is_held, release) = hold();
    let webhook = Webhook::start(vec![Act::Answer(500), Act::Close, Act::Answer(204), held]);
    let settings = webhook_settings(&deployment, &webhook.url());
    let mut notify = deployment.start(&settings);
    revisions.iter().for_each(|alert| deployment.publish(alert));
    is_held.recv_timeout(PATIENCE).expect("the second revision is posted");
    // it has the second revision, and notify dies before it hears so
    notify.kill();
    drop(release);
    let mut notify = deployment.start(&settings);
    let order = [0, 0, 0, 1, 1, 2].map(|number| &revisions[number]);
    let posted = webhook.await_ids(&order.map(id));
    for (posted, alert) in posted.iter().zip(order) {
        assert_signed(posted, alert);
    }
    eventually("all is committed", || deployment.is_told("webhook").then_some(()));
    eventually("there is no lag", || {
        (notify.metric("flopwatch_notify_lag_records{target=\"webhook\"}")? == 0.0).then_some(())
    });
    notify.terminate();
    assert_eq!(notify.end().code(), Some(0), "SIGTERM drains: {}", notify.log());
    assert_eq!(webhook.posted().len(), order.len(), "nothing is posted without need");
    assert!(!notify.log().contains(SECRET), "the secret is never shown");
}

#[test]
fn a_delivery_under_way_is_finished_and_committed_at_sigterm() {
    let deployment = Deployment::new("drain", 1);
    let (held, is_held, release) = hold();
    let webhook = Webhook::start(vec![held]);
    let settings = webhook_settings(&deployment, &webhook.url());
    let mut notify = deployment.start(&settings);
    let first = alert("acme", 1, State::Firing);
    deployment.publish(&first);
    is_held.recv_timeout(PATIENCE).expect("it is posted");
    notify.terminate();
    eventually("it drains", || notify.log().contains("draining").then_some(()));
    release.send(()).expect("the webhook waits");
    assert_eq!(notify.end().code(), Some(0));
    assert!(deployment.is_told("webhook"), "what was answered is committed");
    // the next process goes on behind it
    let second = alert("acme", 2, State::Updated);
    deployment.publish(&second);
    let _notify = deployment.start(&settings);
    webhook.await_ids(&[id(&first), id(&second)]);
}

#[test]
fn a_target_that_is_down_holds_up_itself_alone() {
    let deployment = Deployment::new("down", 2);
    let alertmanager = Alertmanager::start();
    // a port where nobody listens yet
    let port = broker::free_port();
    let settings = format!(
        "{}{}[notify.ocsf]\ntopic = \"{}\"\n",
        alertmanager_settings(&alertmanager),
        webhook_settings(&deployment, &format!("http://127.0.0.1:{port}/in")),
        deployment.findings(),
    );
    let mut notify = deployment.start(&settings);
    let alerts = [alert("acme", 1, State::Firing), alert("acme", 2, State::Updated)];
    alerts.iter().for_each(|alert| deployment.publish(alert));
    alertmanager.await_alerts(&[("acme", "2")]);
    eventually("OCSF is told", || deployment.is_told("ocsf").then_some(()));
    eventually("the webhook fails", || {
        let series = "flopwatch_notify_failures_total{target=\"webhook\",cause=\"again\"}";
        notify.metric(series).filter(|failures| *failures >= 1.0)
    });
    assert!(!deployment.is_told("webhook"));
    let webhook = Webhook::start_at(port, Vec::new());
    webhook.await_ids(&alerts.each_ref().map(id));
    eventually("the webhook is told", || deployment.is_told("webhook").then_some(()));
    notify.terminate();
    assert_eq!(notify.end().code(), Some(0));

    let found = Broker::shared().read(&deployment.findings(), "read_committed");
    assert_eq!(found.len(), 2);
    for (record, alert) in found.iter().zip(&alerts) {
        let published = cloudevent::structured(alert);
        assert_eq!(record.key.as_deref(), Some(published.key.as_bytes()));
        let record_of = Record {
            offset: 0,
            timestamp: None,
            key: None,
            value: Some(&published.value),
            headers: &[],
        };
        let (notice, _) = Notice::read(&record_of).expect("an alert");
        let value: Value =
            serde_json::from_slice(record.value.as_deref().expect("a value")).expect("JSON");
        assert_eq!(value, finding(&notice));
    }
}

#[test]
fn shadow_alerts_and_records_that_are_no_alerts_are_passed_over_and_both_forms_are_posted() {
    let deployment = Deployment::new("forms", 1);
    let webhook = Webhook::start(vec![Act::Answer(422)]);
    let settings = webhook_settings(&deployment, &webhook.url());
    let mut garbage = cloudevent::structured(&alert("x", 1, State::Firing));
    garbage.value = b"no alert".to_vec();
    let refused = alert("bad", 1, State::Firing);
    let binary = alert("acme-gro\u{df}e", 1, State::Firing);
    let shadow = alert("5ade", 1, State::Firing);
    deployment.publish_to(&deployment.shadow(), &cloudevent::structured(&shadow));
    deployment.publish_to(&deployment.alerts(), &garbage);
    deployment.publish(&refused);
    deployment.publish_to(&deployment.alerts(), &cloudevent::binary(&binary));
    let mut notify = deployment.start(&settings);
    let posted = webhook.await_ids(&[id(&refused), id(&binary)]);
    assert_eq!(posted[1].headers["content-type"], "application/protobuf");
    assert_eq!(posted[1].headers["ce-subject"], "account/acme-gro%C3%9Fe");
    assert_eq!(posted[1].body, cloudevent::binary(&binary).value);
    eventually("all is committed", || deployment.is_told("webhook").then_some(()));
    for cause in ["refused", "unreadable"] {
        let series =
            format!("flopwatch_notify_failures_total{{target=\"webhook\",cause=\"{cause}\"}}");
        assert_eq!(notify.metric(&series), Some(1.0), "{cause}");
    }
    notify.terminate();
    assert_eq!(notify.end().code(), Some(0));

    let settings = format!("shadow = true\n{settings}");
    let _notify = deployment.start(&settings);
    webhook.await_ids(&[id(&refused), id(&binary), id(&shadow)]);
}
