//! The topics: names, keys, partitions, cleanup and retention; created and verified.
//!
//! With n the number of usage partitions when the internal topics were made, all of these have n
//! partitions for ever: a sum's target is a hash of its account modulo n, and a changelog partition
//! belongs to the task of its number. Usage may grow beyond n: METER of usage partition p keeps its
//! state in partition p % n of its changelog, under keys that name p.
//!
//! | topic | partition by | cleanup |
//! | --- | --- | --- |
//! | usage | the producer | theirs, never compact |
//! | accounts | account id | compact |
//! | account-usage, group-usage | hash of account, of owner or country | delete, 7 d |
//! | alerts, shadow-alerts | scope/key/policy | none: kept for ever |
//! | findings of `notify`, if it writes any | scope/key/policy | none: kept for ever |
//! | dead-letters | original key | none: kept for ever |
//! | meter-state, account-state, group-state | p % n | compact |

use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client;
use super::context::{Complaint, Consumer};
use crate::config::Config;
use crate::error::Fatal;
use crate::metrics::Stage;

/// How long a broker may take to answer at start.
pub const REACH: Duration = Duration::from_secs(10);
/// Between two looks at what a broker that does not answer may have said.
const LOOK: Duration = Duration::from_millis(500);

/// Sums are consumed within seconds; 7 d are for an outage over a long weekend.
const INTERNAL_RETENTION_MS: &str = "604800000";

/// No batch that unpacks to more is read (`receive.message.max.bytes`); a record of `usage` that
/// its producer packed well may be larger as a dead letter than the topic it came from takes.
const UNPACKED_LIMIT: u64 = 100_000_000;

/// Dead letters carry the whole refused record and our headers.
const DEAD_LETTER_HEADROOM: u64 = 64 * 1024;

/// How many tasks of each stage there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Partitions of usage now: METER tasks.
    pub usage: u32,
    /// n: partitions of the internal topics and changelogs; ACCOUNT and GROUP tasks.
    pub tasks: u32,
}

/// What each topic was found or made to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub layout: Layout,
    pub topics: Vec<TopicReport>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicReport {
    pub name: String,
    pub partitions: u32,
    pub cleanup: &'static str,
    pub created: bool,
}

/// The changelog of a stage. The group's name leads, as it does in transactional ids, so that two
/// deployments on one cluster cannot mix their state.
pub fn changelog(config: &Config, stage: Stage) -> String {
    format!("{}.{}-state", config.kafka.group_id, stage.name())
}

/// The topic that a stage reads.
pub fn input(config: &Config, stage: Stage) -> &str {
    match stage {
        Stage::Meter => &config.topics.usage,
        Stage::Account => &config.topics.account_usage,
        Stage::Group => &config.topics.group_usage,
    }
}

/// What a topic is for: decides its partitions and how it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Usage,
    Accounts,
    Internal,
    Changelog,
    Output,
    DeadLetters,
}

impl Role {
    const fn cleanup(self) -> &'static str {
        match self {
            Self::Usage | Self::Internal | Self::Output | Self::DeadLetters => "delete",
            Self::Accounts | Self::Changelog => "compact",
        }
    }

    /// Its partition count is n, exactly.
    const fn is_fixed(self) -> bool {
        match self {
            Self::Internal | Self::Changelog => true,
            Self::Usage | Self::Accounts | Self::Output | Self::DeadLetters => false,
        }
    }

    fn settings(self) -> Vec<(&'static str, String)> {
        let pairs: &[(&str, &str)] = match self {
            Self::Usage => &[("retention.ms", INTERNAL_RETENTION_MS)],
            Self::Accounts => &[],
            Self::Internal => &[("retention.ms", INTERNAL_RETENTION_MS), ("retention.bytes", "-1")],
            Self::Changelog => &[
                // the active segment is never compacted: a small one keeps a restore close to
                // the size of the live state, and an hour bounds it on a quiet topic
                ("segment.bytes", "67108864"),
                ("segment.ms", "3600000"),
                // compacted when a tenth is stale, so that a restore reads little twice
                ("min.cleanable.dirty.ratio", "0.1"),
                // tombstones of left buckets: no restore takes an hour
                ("delete.retention.ms", "3600000"),
                // eight slices of a country on tens of thousands of fabrics are one record
                ("max.message.bytes", "16777216"),
            ],
            Self::Output | Self::DeadLetters => {
                &[("retention.ms", "-1"), ("retention.bytes", "-1")]
            }
        };
        let mut settings: Vec<_> =
            pairs.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        settings.push(("cleanup.policy", self.cleanup().to_owned()));
        settings
    }
}

/// A topic as the broker has it.
#[derive(Debug)]
struct Found {
    partitions: u32,
    cleanup: String,
    retention_ms: i64,
    max_message_bytes: u64,
}

#[derive(Debug)]
struct Topic {
    role: Role,
    name: String,
    found: Option<Found>,
}

/// What may be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Making {
    Nothing,
    /// Outputs always; internal topics when there is none of them yet: a missing one beside others
    /// is lost state, not a first start.
    FirstStart,
    /// Everything, with this many usage partitions if usage is missing.
    All(Option<u32>),
}

/// Before `run`: usage and accounts must be there, the rest is made on a first start.
pub fn prepare(config: &Config) -> Result<Report, Fatal> {
    Topology::read(config, false)?.ensure(Making::FirstStart)
}

/// Reads and compares; changes nothing.
pub fn verify(config: &Config) -> Result<Report, Fatal> {
    Topology::read(config, true)?.ensure(Making::Nothing)
}

/// Whether a broker answers soon, for a verb that goes on without one.
pub fn reachable(config: &Config) -> Result<(), Fatal> {
    let prober = client::prober(&config.kafka)?;
    reach(&prober, &config.kafka.bootstrap_servers, Duration::from_secs(3))
}

/// Makes what is missing. `partitions` is for a usage topic that is not there.
pub fn create(config: &Config, partitions: Option<u32>) -> Result<Report, Fatal> {
    Topology::read(config, true)?.ensure(Making::All(partitions))
}

struct Topology {
    prober: Consumer,
    admin: AdminClient<DefaultClientContext>,
    runtime: tokio::runtime::Runtime,
    /// Usage, accounts, then ours.
    topics: Vec<Topic>,
    group: String,
}

/// A topic to be made.
struct New {
    name: String,
    partitions: u32,
    settings: Vec<(&'static str, String)>,
}

impl Topology {
    /// With what `notify` writes, which is nothing that `run` must wait for.
    fn read(config: &Config, with_notify: bool) -> Result<Self, Fatal> {
        let names = &config.topics;
        let mut wanted = vec![
            (Role::Usage, names.usage.clone()),
            (Role::Accounts, names.accounts.clone()),
            (Role::Internal, names.account_usage.clone()),
            (Role::Internal, names.group_usage.clone()),
            (Role::Output, names.alerts.clone()),
            (Role::Output, names.shadow_alerts.clone()),
            (Role::DeadLetters, names.dead_letters.clone()),
        ];
        let findings = config.notify.ocsf.iter().filter(|_| with_notify);
        wanted.extend(findings.map(|topic| (Role::Output, topic.clone())));
        wanted.extend(Stage::ALL.map(|stage| (Role::Changelog, changelog(config, stage))));
        let prober = client::prober(&config.kafka)?;
        reach(&prober, &config.kafka.bootstrap_servers, REACH)?;
        let admin = client::admin(&config.kafka).create().map_err(|error| {
            Fatal::Broker(format!("starting an administrative client: {error}"))
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .map_err(|error| Fatal::Internal(format!("starting a runtime: {error}")))?;
        let topics = wanted.into_iter().map(|(role, name)| Topic { role, name, found: None });
        let group = config.kafka.group_id.clone();
        let mut topology = Self { prober, admin, runtime, topics: topics.collect(), group };
        topology.look()?;
        Ok(topology)
    }

    /// Fills in what the broker has.
    fn look(&mut self) -> Result<(), Fatal> {
        for topic in &mut self.topics {
            topic.found = partitions(&self.prober, &topic.name)?.map(|partitions| Found {
                partitions,
                cleanup: String::new(),
                retention_ms: -1,
                max_message_bytes: 0,
            });
        }
        let specifiers: Vec<_> = self
            .topics
            .iter()
            .filter(|topic| topic.found.is_some())
            .map(|topic| ResourceSpecifier::Topic(&topic.name))
            .collect();
        if specifiers.is_empty() {
            return Ok(());
        }
        let failed = |error: &dyn std::fmt::Display| {
            Fatal::Broker(format!(
                "reading topic settings: {error}; the principal needs DescribeConfigs on its topics"
            ))
        };
        let described = self
            .runtime
            .block_on(self.admin.describe_configs(&specifiers, &options()))
            .map_err(|error| failed(&error))?;
        let present = self.topics.iter_mut().filter_map(|topic| topic.found.as_mut());
        for (found, resource) in present.zip(described) {
            let resource = resource.map_err(|code| failed(&code))?;
            found.cleanup = setting(&resource, "cleanup.policy").unwrap_or_default();
            let number = |name| setting(&resource, name).and_then(|value| value.parse().ok());
            found.retention_ms = number("retention.ms").unwrap_or(-1);
            found.max_message_bytes =
                number("max.message.bytes").and_then(|n| u64::try_from(n).ok()).unwrap_or(u64::MAX);
        }
        Ok(())
    }

    fn ensure(mut self, making: Making) -> Result<Report, Fatal> {
        let missing: Vec<bool> = self.topics.iter().map(|topic| topic.found.is_none()).collect();
        self.make(making)?;
        let problems = self.problems();
        if !problems.is_empty() {
            return Err(Fatal::Broker(problems.join("\n")));
        }
        let partitions = |topic: &Topic| topic.found.as_ref().map_or(0, |found| found.partitions);
        let tasks = self.fixed().expect("internal topics exist and agree");
        let usage = partitions(&self.topics[0]);
        let topics = self.topics.iter().zip(missing).map(|(topic, created)| TopicReport {
            name: topic.name.clone(),
            partitions: partitions(topic),
            cleanup: topic.role.cleanup(),
            created,
        });
        Ok(Report { layout: Layout { usage, tasks }, topics: topics.collect() })
    }

    /// n, as the first internal topic that exists has it.
    fn fixed(&self) -> Option<u32> {
        let mut fixed = self.topics.iter().filter(|topic| topic.role.is_fixed());
        fixed.find_map(|topic| Some(topic.found.as_ref()?.partitions))
    }

    fn make(&mut self, making: Making) -> Result<(), Fatal> {
        let usage = self.topics[0].found.as_ref();
        if making == Making::FirstStart && self.topics[1].found.is_none() {
            return Ok(());
        }
        let usage_partitions = match (usage, making) {
            (_, Making::Nothing) | (None, Making::FirstStart) => return Ok(()),
            (Some(found), Making::FirstStart | Making::All(_)) => found.partitions,
            (None, Making::All(Some(partitions))) => partitions,
            (None, Making::All(None)) => {
                return Err(Fatal::Broker(format!(
                    "topic {:?} is missing: say how many partitions it shall have, as in \
                     `flopwatch topics --create --partitions 12`",
                    self.topics[0].name
                )));
            }
        };
        let all = making != Making::FirstStart;
        let first_start = self.fixed().is_none();
        let tasks = self.fixed().unwrap_or(usage_partitions);
        let usage_limit = usage.map_or(0, |found| found.max_message_bytes);
        let new: Vec<New> = self
            .topics
            .iter()
            .filter(|topic| topic.found.is_none())
            .filter(|topic| match topic.role {
                Role::Usage | Role::Accounts => all,
                Role::Internal | Role::Changelog => all || first_start,
                Role::Output | Role::DeadLetters => true,
            })
            .map(|topic| {
                let partitions = if topic.role.is_fixed() { tasks } else { usage_partitions };
                let mut settings = topic.role.settings();
                if topic.role == Role::DeadLetters {
                    let largest = usage_limit.max(UNPACKED_LIMIT);
                    let limit = largest.saturating_add(DEAD_LETTER_HEADROOM);
                    // Kafka's own bound
                    let limit = limit.min(i32::MAX.unsigned_abs().into());
                    settings.push(("max.message.bytes", limit.to_string()));
                }
                New { name: topic.name.clone(), partitions, settings }
            })
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        self.create(&new)?;
        self.settle()
    }

    fn create(&self, new: &[New]) -> Result<(), Fatal> {
        let mut requests = Vec::new();
        for New { name, partitions, settings } in new {
            let count = i32::try_from(*partitions)
                .map_err(|_| Fatal::Config(format!("{partitions} partitions are too many")))?;
            // -1: the cluster's default.replication.factor
            let mut request = NewTopic::new(name, count, TopicReplication::Fixed(-1));
            for (key, value) in settings {
                request = request.set(key, value);
            }
            requests.push(request);
        }
        let made = self
            .runtime
            .block_on(self.admin.create_topics(&requests, &options()))
            .map_err(|error| Fatal::Broker(format!("creating topics: {error}")))?;
        for (result, New { name, partitions, .. }) in made.into_iter().zip(new) {
            match result {
                Ok(_) => tracing::info!(topic = name, partitions, "topic created"),
                // another process of ours was faster
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => {
                    return Err(Fatal::Broker(format!("creating topic {name:?}: {code}")));
                }
            }
        }
        Ok(())
    }

    /// A new topic takes a moment to be known and led everywhere.
    fn settle(&mut self) -> Result<(), Fatal> {
        let deadline = std::time::Instant::now() + REACH;
        loop {
            self.look()?;
            let all = self.topics.iter().all(|topic| topic.found.is_some());
            if all || std::time::Instant::now() >= deadline {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// One line for each thing that is wrong, with its remedy.
    fn problems(&self) -> Vec<String> {
        let tasks = self.fixed();
        let usage_limit = self.topics[0].found.as_ref().map_or(0, |found| found.max_message_bytes);
        let usage = self.topics[0].found.as_ref().map(|found| found.partitions);
        let mut problems = self.missing();
        for topic in &self.topics {
            let name = &topic.name;
            let Some(found) = &topic.found else { continue };
            if topic.role.is_fixed() && Some(found.partitions) != tasks {
                problems.push(format!(
                    "topic {name:?} has {} partitions, but {:?} has {}: the internal topics must \
                     agree; make it again with as many (its contents are lost)",
                    found.partitions,
                    self.topics[2].name,
                    tasks.unwrap_or_default(),
                ));
            }
            if topic.role == Role::DeadLetters && found.max_message_bytes < usage_limit {
                problems.push(format!(
                    "topic {name:?} takes records of {} bytes, usage has up to {usage_limit}: a \
                     large refused record could not be kept; set its max.message.bytes to {} or \
                     more",
                    found.max_message_bytes,
                    usage_limit.saturating_add(DEAD_LETTER_HEADROOM),
                ));
            }
            problems.extend(cleanup_problem(topic, found));
        }
        if let (Some(usage), Some(tasks)) = (usage, tasks)
            && usage < tasks
        {
            problems.push(format!(
                "topic {:?} has {usage} partitions, fewer than the {tasks} it had when the \
                 internal topics were made: was it made again? give it {tasks} or more",
                self.topics[0].name
            ));
        }
        problems
    }

    /// What is theirs comes first: without it, what is ours cannot be made.
    fn missing(&self) -> Vec<String> {
        let missing = |topic: &&Topic| topic.found.is_none();
        let (theirs, ours) = self.topics.split_at(2);
        let mut problems: Vec<String> = theirs
            .iter()
            .filter(missing)
            .map(|Topic { role, name, .. }| {
                if *role == Role::Usage {
                    format!(
                        "topic {name:?} is missing: set topics.usage to the topic of the metering \
                         pipeline, or run `flopwatch topics --create --partitions 12`"
                    )
                } else {
                    format!(
                        "topic {name:?} is missing: set topics.accounts to the account directory, \
                         or run `flopwatch topics --create`"
                    )
                }
            })
            .collect();
        if problems.is_empty() {
            let started = self.fixed().is_some();
            let (lost, new): (Vec<&Topic>, Vec<&Topic>) =
                ours.iter().filter(missing).partition(|topic| started && topic.role.is_fixed());
            if !lost.is_empty() {
                problems.push(format!(
                    "topics {} are missing while others of their kind exist, so part of the state \
                     is lost: restore them, or delete all of their kind and the group {} to start \
                     over (`flopwatch topics --create` makes them, empty)",
                    names(&lost),
                    self.group
                ));
            }
            if !new.is_empty() {
                problems.push(format!(
                    "topics {} are missing: run `flopwatch topics --create`",
                    names(&new)
                ));
            }
        }
        problems
    }
}

fn names(topics: &[&Topic]) -> String {
    let names: Vec<String> = topics.iter().map(|topic| format!("{:?}", topic.name)).collect();
    names.join(", ")
}

/// Whether the broker would forget what must be kept.
fn cleanup_problem(topic: &Topic, found: &Found) -> Option<String> {
    let name = &topic.name;
    let compacts = found.cleanup.contains("compact");
    let deletes = found.cleanup.contains("delete");
    match topic.role {
        Role::Usage | Role::Internal | Role::Output | Role::DeadLetters if compacts => {
            Some(format!(
                "topic {name:?} has cleanup.policy={}: compaction drops records with equal keys; \
                 set cleanup.policy=delete",
                found.cleanup
            ))
        }
        Role::Changelog if !compacts || deletes => Some(format!(
            "topic {name:?} has cleanup.policy={}: state would be forgotten by age; set \
             cleanup.policy=compact",
            found.cleanup
        )),
        // an operator may keep every version of the directory, for ever
        Role::Accounts if deletes && found.retention_ms >= 0 => Some(format!(
            "topic {name:?} has cleanup.policy={} and retention.ms={}: accounts would be \
             forgotten by age and count as unknown; set cleanup.policy=compact",
            found.cleanup, found.retention_ms
        )),
        Role::Usage
        | Role::Internal
        | Role::Output
        | Role::DeadLetters
        | Role::Changelog
        | Role::Accounts => None,
    }
}

/// Fails with one clear line when no broker answers.
fn reach(prober: &Consumer, servers: &str, patience: Duration) -> Result<(), Fatal> {
    let deadline = std::time::Instant::now() + patience;
    while std::time::Instant::now() < deadline {
        if prober.client().fetch_cluster_id(LOOK).is_some() {
            return Ok(());
        }
        if let Some(refusal) = complaint(prober).and_then(|complaint| refusal(servers, &complaint))
        {
            return Err(refusal);
        }
    }
    // a mock cluster has no id
    let Err(error) = prober.fetch_metadata(None, Duration::from_secs(1)) else { return Ok(()) };
    let cause = complaint(prober).map_or_else(|| error.to_string(), |complaint| complaint.reason);
    Err(Fatal::Broker(format!(
        "no broker answers at kafka.bootstrap_servers = {servers:?} ({cause}): start Kafka, or set \
         kafka.bootstrap_servers to where it listens and kafka.client (security.protocol, sasl.*, \
         ssl.*) to how"
    )))
}

/// Serves the events that say why nothing answers.
fn complaint(prober: &Consumer) -> Option<Complaint> {
    while prober.poll(Duration::ZERO).is_some() {}
    prober.context().last_error()
}

/// A broker that answered with no: waiting helps nobody.
fn refusal(servers: &str, complaint: &Complaint) -> Option<Fatal> {
    let reason = &complaint.reason;
    let text = if complaint.code == RDKafkaErrorCode::Authentication {
        format!(
            "the broker at kafka.bootstrap_servers = {servers:?} refuses the login ({reason}): set \
             sasl.mechanism, sasl.username and sasl.password_file under [kafka.client] to what it \
             knows"
        )
    } else if complaint.code == RDKafkaErrorCode::SSL {
        format!(
            "no TLS with the broker at kafka.bootstrap_servers = {servers:?} ({reason}): set \
             ssl.ca.location under [kafka.client] to the authority that signed its certificate, \
             and the servers by the names that it holds"
        )
    } else {
        return None;
    };
    Some(Fatal::Broker(text))
}

/// How many partitions the topic has; `None` when it is missing.
pub(crate) fn partitions(prober: &Consumer, topic: &str) -> Result<Option<u32>, Fatal> {
    let failed = |error: &dyn std::fmt::Display| {
        Fatal::Broker(format!("asking for topic {topic:?}: {error}"))
    };
    let metadata = prober.fetch_metadata(Some(topic), REACH).map_err(|error| failed(&error))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(None);
    };
    match found.error().map(RDKafkaErrorCode::from) {
        None => {}
        Some(
            RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::LeaderNotAvailable,
        ) => return Ok(None),
        Some(code) => return Err(failed(&code)),
    }
    Ok(u32::try_from(found.partitions().len()).ok().filter(|&count| count > 0))
}

fn setting(resource: &ConfigResource, name: &str) -> Option<String> {
    resource.get(name).and_then(|entry| entry.value.clone())
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REACH)).operation_timeout(Some(REACH))
}

/// The code behind an error of a call, if it has one.
pub(crate) fn code(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(role: Role, cleanup: &str, retention_ms: i64) -> Option<String> {
        let topic = Topic { role, name: "t".into(), found: None };
        let cleanup = cleanup.to_owned();
        cleanup_problem(
            &topic,
            &Found { partitions: 1, cleanup, retention_ms, max_message_bytes: 0 },
        )
    }

    #[test]
    fn a_topic_that_would_forget_what_must_be_kept_is_refused() {
        let week = 604_800_000;
        for (role, cleanup, retention_ms, sound) in [
            (Role::Usage, "delete", week, true),
            (Role::Usage, "compact", -1, false),
            (Role::Internal, "delete", week, true),
            (Role::Internal, "compact,delete", week, false),
            (Role::Output, "delete", -1, true),
            (Role::Output, "compact", -1, false),
            (Role::DeadLetters, "compact,delete", -1, false),
            (Role::Changelog, "compact", week, true),
            (Role::Changelog, "delete", -1, false),
            (Role::Changelog, "compact,delete", week, false),
            (Role::Accounts, "compact", week, true),
            (Role::Accounts, "delete", -1, true),
            (Role::Accounts, "delete", week, false),
        ] {
            let found = problem(role, cleanup, retention_ms);
            assert_eq!(found.is_none(), sound, "{role:?} {cleanup} {retention_ms}: {found:?}");
        }
    }

    #[test]
    fn what_is_created_passes_its_own_check() {
        for role in [
            Role::Usage,
            Role::Accounts,
            Role::Internal,
            Role::Changelog,
            Role::Output,
            Role::DeadLetters,
        ] {
            let settings = role.settings();
            let value = |name| settings.iter().find(|(key, _)| *key == name).map(|(_, v)| v);
            let cleanup = value("cleanup.policy").expect("every role sets it");
            let retention = value("retention.ms").map_or(-1, |ms| ms.parse().expect("a number"));
            assert_eq!(problem(role, cleanup, retention), None);
        }
    }
}
