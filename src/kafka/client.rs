//! Every librdkafka option that we set, each with its reason.
//!
//! Three layers, the later wins: what may be tuned, what the operator put under `[kafka.client]`,
//! what exactness rests on (`config` refuses those names by name).
//!
//! # Why the classic group protocol
//! Both protocols refuse the positions of a stale member alike (`tests/faults/protocols.rs`), so
//! either would be exact. KIP-848 loses on time and fit, not on safety:
//!
//! * *The session is the broker's.* Under `group.protocol=consumer` librdkafka refuses
//!   `session.timeout.ms`, and a broker's default lets a member be silent for 45 s. Measured with
//!   static members on Kafka 4.3 over six partitions: a process that dies and stays away is
//!   replaced after 8 s (classic, 6 s session) against 50 s; one that comes back under its name has
//!   its partitions in 0.1 s either way; a new one has its share after 2 s against 5 s, for the old
//!   owner learns of it with a heartbeat whose interval is the broker's too.
//! * *It moves partitions one by one.* That suits a consumer whose partitions know nothing of each
//!   other. Ours share one transaction a worker, and after any change all of a worker's tasks are
//!   restored: a second round of revocations would be a second restore. The worker answers with
//!   `assign`; KIP-848 asks for `incremental_assign`, as does cooperative-sticky, whose positions
//!   were committed under the old generation in librdkafka more than once.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;

use super::context::{Consumer, ConsumerEvents, ProducerEvents};
use crate::config;
use crate::error::Fatal;

pub(crate) type Producer = BaseProducer<ProducerEvents>;

/// A member that has been silent for this long loses its partitions. A process killed and started
/// again within it, under its old `kafka.instance`, causes no rebalance at all.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(6);

/// The coordinator aborts a transaction that is open for this long. Ours take milliseconds, so
/// this only bounds how long a dead worker's last one holds up the readers of its partitions.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Records that one batch takes from a partition's queue: large enough that the queue's lock costs
/// nothing per record, small enough to stay in the caches.
pub const BATCH: usize = 1024;

type Options = &'static [(&'static str, &'static str)];

const COMMON: Options = &[
    // a connection that a firewall forgot is found by the kernel, not by a timeout of ours
    ("socket.keepalive.enable", "true"),
    // 10 s by default: a broker that is back is used within a second
    ("reconnect.backoff.max.ms", "1000"),
    // brokers close idle connections all the time; that is no event
    ("log.connection.close", "false"),
    // 5 min by default: a partition added to the usage topic is read within half a minute
    ("topic.metadata.refresh.interval.ms", "30000"),
];

const CONSUMER: Options = &[
    // 1 s by default, slept whenever a partition's queue is full: a reader slower than the fetcher
    // would starve
    ("fetch.queue.backoff.ms", "2"),
    // 500 by default: a partition left out of a fetch because its queue was full waits for that
    // fetch to return, which takes this long when the other partitions have nothing
    ("fetch.wait.max.ms", "100"),
    // per partition, 100 000 and 64 MiB by default: a deep queue is cold by the time it is read,
    // and memory is bounded by partitions x this
    ("queued.min.messages", "50000"),
    ("queued.max.messages.kbytes", "16384"),
];

const CONSUMER_EXACT: Options = &[
    // positions are committed by the transaction alone
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // a position outside the log is a gap: an error that stops us, never a silent jump
    ("auto.offset.reset", "error"),
    // what an aborted transaction wrote never was
    ("isolation.level", "read_committed"),
    // the end of a partition is an event: idleness, catching up and restores rest on it
    ("enable.partition.eof", "true"),
    // a topic that is missing is an error to report, not one to create with broker defaults
    ("allow.auto.create.topics", "false"),
];

const GROUP: Options = &[
    ("session.timeout.ms", "6000"),
    // three beats to a session
    ("heartbeat.interval.ms", "2000"),
    // restores poll between batches; a worker that has not polled for this long hangs
    ("max.poll.interval.ms", "120000"),
];

const GROUP_EXACT: Options = &[
    ("group.protocol", "classic"),
    // eager, and the same numbers of all three topics to one worker: METER of a partition sits
    // beside ACCOUNT of that number, and librdkafka's cooperative assignor with transactions has
    // known traps
    ("partition.assignment.strategy", "range"),
];

/// For clients that are not a worker's: their statistics would stand under the same names.
const SILENT: Options = &[("statistics.interval.ms", "0")];

const PRODUCER: Options = &[
    // sums and changelogs compress about threefold, at memory speed
    ("compression.type", "lz4"),
    // a whole commit is produced in one go and flushed: these bound nothing but its batches
    ("linger.ms", "5"),
    // 1 MB by default: the broker's and the topic's own limit decides
    ("message.max.bytes", "104857600"),
    ("queue.buffering.max.messages", "0"),
    ("queue.buffering.max.kbytes", "1048576"),
    // the partition of a key is the one that Kafka's own clients choose
    ("partitioner", "murmur2_random"),
    ("transaction.timeout.ms", "10000"),
];

const PRODUCER_EXACT: Options = &[
    ("enable.idempotence", "true"),
    // all in-sync replicas: an acknowledged commit survives the leader
    ("acks", "all"),
    ("allow.auto.create.topics", "false"),
    // successes are known from the commit; reports would be one event per record
    ("delivery.report.only.error", "true"),
];

/// The name of one worker of one process: its static membership and its transactions.
pub fn worker_name(kafka: &config::Kafka, worker: usize) -> String {
    format!("{}-{}-{worker}", kafka.group_id, kafka.instance)
}

/// The consumer of a worker.
pub(crate) fn worker_consumer(
    kafka: &config::Kafka,
    worker: usize,
    events: ConsumerEvents,
) -> Result<Consumer, Fatal> {
    let name = worker_name(kafka, worker);
    let exact = [CONSUMER_EXACT, GROUP_EXACT];
    let mut options = layered(kafka, &[CONSUMER, GROUP], &exact);
    options
        .set("client.id", &name)
        .set("group.id", &kafka.group_id)
        // static: a restart under the same name takes its partitions back without a rebalance
        .set("group.instance.id", &name);
    options.create_with_context(events).map_err(refused)
}

/// The transactional producer of a worker.
pub(crate) fn worker_producer(kafka: &config::Kafka, worker: usize) -> Result<Producer, Fatal> {
    let name = worker_name(kafka, worker);
    let mut options = layered(kafka, &[PRODUCER], &[PRODUCER_EXACT]);
    options
        .set("client.id", &name)
        // a new producer of this name fences the old one and ends its open transaction
        .set("transactional.id", &name);
    options.create_with_context(ProducerEvents::of_worker(worker)).map_err(refused)
}

/// A consumer outside the group's assignment, read from the beginning: changelogs, the directory.
pub(crate) fn reader(kafka: &config::Kafka, purpose: &str) -> Result<Consumer, Fatal> {
    reader_options(kafka, purpose).create_with_context(ConsumerEvents::new().0).map_err(refused)
}

/// The options of such a consumer; what a bench reads with beside us.
pub fn reader_options(kafka: &config::Kafka, purpose: &str) -> ClientConfig {
    let mut options = layered(kafka, &[CONSUMER], &[CONSUMER_EXACT, SILENT]);
    options
        .set("client.id", format!("{}-{}-{purpose}", kafka.group_id, kafka.instance))
        // librdkafka assigns only to members of a group; this one never joins or commits
        .set("group.id", &kafka.group_id);
    options
}

/// A client that asks for metadata and for ends of logs as `read_uncommitted`: the end that a
/// restore must reach lies beyond the last stable offset that every other consumer of ours sees.
pub(crate) fn prober(kafka: &config::Kafka) -> Result<Consumer, Fatal> {
    let mut options = layered(kafka, &[], &[SILENT]);
    options
        .set("client.id", format!("{}-{}-probe", kafka.group_id, kafka.instance))
        // for positions that a transaction holds back; it never joins or commits
        .set("group.id", &kafka.group_id)
        .set("isolation.level", "read_uncommitted")
        .set("allow.auto.create.topics", "false");
    options.create_with_context(ConsumerEvents::new().0).map_err(refused)
}

/// A consumer that shares the alert topics with its group and commits its positions itself, once
/// what it has read is delivered.
pub(crate) fn subscriber(
    kafka: &config::Kafka,
    group: &str,
    events: ConsumerEvents,
) -> Result<Consumer, Fatal> {
    let exact = [CONSUMER_EXACT, GROUP_EXACT, SILENT];
    let mut options = layered(kafka, &[CONSUMER, GROUP], &exact);
    options
        .set("client.id", format!("{group}-{}", kafka.instance))
        // not static: a member that comes back under its name keeps its old assignment, and would
        // not be given a topic that its configuration has added
        .set("group.id", group);
    options.create_with_context(events).map_err(refused)
}

/// A producer without transactions, whose records are known by their own ids when they come twice.
pub(crate) fn plain_producer(kafka: &config::Kafka, purpose: &str) -> Result<Producer, Fatal> {
    let mut options = layered(kafka, &[PRODUCER], &[PRODUCER_EXACT, SILENT]);
    options.set("client.id", format!("{}-{}-{purpose}", kafka.group_id, kafka.instance));
    options.create_with_context(ProducerEvents::default()).map_err(refused)
}

/// The options of an administrative client.
pub(crate) fn admin(kafka: &config::Kafka) -> ClientConfig {
    layered(kafka, &[], &[SILENT])
}

fn layered(kafka: &config::Kafka, tunable: &[Options], exact: &[Options]) -> ClientConfig {
    let mut options = ClientConfig::new();
    for (name, value) in [COMMON].iter().chain(tunable).copied().flatten() {
        options.set(*name, *value);
    }
    for (name, value) in &kafka.client {
        options.set(name, value);
    }
    for (name, value) in exact.iter().copied().flatten() {
        options.set(*name, *value);
    }
    options.set("bootstrap.servers", &kafka.bootstrap_servers);
    options
}

/// librdkafka refuses an option: only `[kafka.client]` can bring a wrong one.
fn refused(error: KafkaError) -> Fatal {
    let detail = if let KafkaError::ClientConfig(_, reason, name, value) = &error {
        match config::is_secret(name) {
            true => name.clone(),
            false => format!("{name} = {value:?}: {reason}"),
        }
    } else {
        error.to_string()
    };
    Fatal::Config(format!("kafka.client: librdkafka refuses {detail}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_operator_tunes_but_does_not_touch_what_exactness_rests_on() {
        let text = "[kafka.client]\n\"queued.min.messages\" = 7\n\"linger.ms\" = 1\n";
        let mut config = Config::from_text("test", text).expect("a valid configuration");
        // past the check of the configuration, as an oversight there would be
        config.kafka.client.insert("isolation.level".into(), "read_uncommitted".into());
        let options = layered(&config.kafka, &[CONSUMER], &[CONSUMER_EXACT]);
        assert_eq!(options.get("queued.min.messages"), Some("7"));
        assert_eq!(options.get("isolation.level"), Some("read_committed"));
        assert_eq!(options.get("enable.auto.commit"), Some("false"));
    }

    #[test]
    fn every_option_that_exactness_rests_on_is_refused_or_wins() {
        let refused: Vec<&str> = config::REFUSED.iter().map(|(name, _)| *name).collect();
        for (name, _) in [CONSUMER_EXACT, GROUP_EXACT, PRODUCER_EXACT].into_iter().flatten() {
            let ours = refused.contains(name) || *name == "delivery.report.only.error";
            assert!(ours, "{name} is set here but not refused under [kafka.client]");
        }
    }

    #[test]
    fn the_waits_of_the_code_are_those_of_the_options() {
        let options: std::collections::BTreeMap<_, _> =
            [GROUP, PRODUCER].into_iter().flatten().copied().collect();
        let milliseconds = |wait: Duration| wait.as_millis().to_string();
        assert_eq!(options["session.timeout.ms"], milliseconds(SESSION_TIMEOUT));
        assert_eq!(options["transaction.timeout.ms"], milliseconds(TRANSACTION_TIMEOUT));
    }

    #[test]
    fn a_worker_has_one_name_for_its_membership_and_its_transactions() {
        let text = "[kafka]\ngroup_id = \"g\"\ninstance = \"pod-3\"\n";
        let config = Config::from_text("test", text).expect("a valid configuration");
        assert_eq!(worker_name(&config.kafka, 1), "g-pod-3-1");
    }
}
