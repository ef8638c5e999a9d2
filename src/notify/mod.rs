//! `flopwatch notify`: alerts from their topics to whoever must hear of them.
//!
//! Each target has a thread, a consumer and a group of its own, `<group_id>-notify-<target>`: one
//! that does not answer holds up itself alone. Delivery is at least once: a position is committed
//! after the target has answered. It is idempotent by alert and revision: labels (Alertmanager),
//! `webhook-id` (webhook), `metadata.uid` (OCSF) are the same whenever a revision is delivered
//! again. A group begins at the beginning of the topics. Several processes share the partitions of
//! a target; a key is on one partition, so its order is kept.
//!
//! | file | what |
//! | --- | --- |
//! | `courier` | a target's thread: read, deliver, commit; retries |
//! | `notice` | a revision read back from its record |
//! | `alertmanager` | what is live, sent again and again |
//! | `log` | every revision in order: `webhook`, `ocsf` |
//! | `http` | one POST and what its answer means |
//!
//! It decides nothing about usage, and `run` knows nothing of it.

pub mod alertmanager;
mod courier;
mod http;
mod log;
pub mod notice;
pub mod ocsf;
pub mod webhook;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::config::Config;
use crate::error::Fatal;
use crate::http::health::Health;
use crate::kafka::subscriber::Subscriber;
use crate::kafka::{Reports, Service, client, topology};
use crate::metrics::Target;
use courier::{Courier, Desk};
use log::{Addressee, Log};

/// The targets that are configured.
pub fn targets(config: &Config) -> Vec<Target> {
    let notify = &config.notify;
    let on = |target: &Target| match target {
        Target::Alertmanager => notify.alertmanager.is_some(),
        Target::Webhook => notify.webhook.is_some(),
        Target::Ocsf => notify.ocsf.is_some(),
    };
    Target::ALL.into_iter().filter(on).collect()
}

/// A target's consumer group.
pub fn group(config: &Config, target: Target) -> String {
    format!("{}-notify-{}", config.kafka.group_id, target.name())
}

/// Starts a thread for each target. `health` has a place for each.
pub fn start(config: &Arc<Config>, health: &Arc<Health>) -> Result<Service, Fatal> {
    let targets = targets(config);
    if targets.is_empty() {
        return Err(Fatal::Config(
            "[notify]: no target is on: set notify.alertmanager.url, notify.webhook.url or \
             notify.ocsf.topic"
                .into(),
        ));
    }
    topics_are_there(config)?;
    // nothing here needs the directory
    health.directory_read();
    let stop = Arc::new(AtomicBool::new(false));
    let (mut service, reports) = Service::new(&stop, health);
    for (number, target) in targets.into_iter().enumerate() {
        let seat = Seat {
            number,
            target,
            config: Arc::clone(config),
            health: Arc::clone(health),
            stop: Arc::clone(&stop),
        };
        let notify = &config.notify;
        match target {
            Target::Alertmanager => {
                let target = notify.alertmanager.as_ref().expect("it is on");
                let desk = alertmanager::Alertmanager::new(target);
                seat.spawn(&mut service, &reports, desk)?;
            }
            Target::Webhook => {
                let webhook = webhook::Webhook::new(notify.webhook.as_ref().expect("it is on"))?;
                seat.spawn(&mut service, &reports, Log::new(Addressee::Webhook(webhook)))?;
            }
            Target::Ocsf => {
                let topic = notify.ocsf.as_ref().expect("it is on");
                let ocsf = ocsf::Ocsf::new(&config.kafka, topic)?;
                seat.spawn(&mut service, &reports, Log::new(Addressee::Ocsf(ocsf)))?;
            }
        }
    }
    Ok(service)
}

/// What a courier needs beside its desk.
struct Seat {
    number: usize,
    target: Target,
    config: Arc<Config>,
    health: Arc<Health>,
    stop: Arc<AtomicBool>,
}

impl Seat {
    fn spawn<D: Desk + Send + 'static>(
        self,
        service: &mut Service,
        reports: &Reports,
        desk: D,
    ) -> Result<(), Fatal> {
        let name = format!("notify-{}", self.target.name());
        // made in its thread, whose callbacks it serves
        let make = move || {
            let Self { number, target, config, health, stop } = self;
            let group = group(&config, target);
            let subscriber = Subscriber::new(&config.kafka, group, alert_topics(&config))?;
            Ok(Courier::new(number, desk, subscriber, health, stop))
        };
        service.spawn(name, reports, make, Courier::run)
    }
}

fn alert_topics(config: &Config) -> Vec<String> {
    let mut topics = vec![config.topics.alerts.clone()];
    if config.notify.shadow {
        topics.push(config.topics.shadow_alerts.clone());
    }
    topics
}

/// One clear line now is better than a warning every second.
fn topics_are_there(config: &Config) -> Result<(), Fatal> {
    topology::reachable(config)?;
    let prober = client::prober(&config.kafka)?;
    let mut topics = alert_topics(config);
    topics.extend(config.notify.ocsf.clone());
    for topic in topics {
        if topology::partitions(&prober, &topic)?.is_none() {
            return Err(Fatal::Broker(format!(
                "topic {topic:?} is missing: `flopwatch topics` makes it"
            )));
        }
    }
    Ok(())
}
