//! librdkafka's mock cluster, in this process, with the topics that the service expects.
//!
//! The mock speaks enough of the protocol for the production service as it is: groups with static
//! members, transactions, fetches. It knows no `CreateTopics` and no `DescribeConfigs`, so topics
//! are made through its own interface and [`Layout`] is given rather than verified. It proves
//! nothing about exactness: it shows records of open and aborted transactions to everybody, and
//! drops the positions that a transaction carries. So nothing here may be restarted, and a worker
//! that had to restore would refuse to; the tests against a real Kafka are where that is shown.
//!
//! It keeps 5 MiB of a partition and holds an empty fetch for all of `fetch.wait.max.ms`, even
//! when a record comes: hence the bound on what is unread in `demo.rs`, and the settings below.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::Config;
use crate::error::Fatal;
use crate::kafka::client;
use crate::kafka::context::Consumer;
use crate::kafka::topology::{self, Layout};
use crate::metrics::Stage;

/// Of every topic but those that one reader must see in order.
pub(super) const PARTITIONS: u32 = 2;

pub(super) struct Cluster {
    pub(super) config: Arc<Config>,
    pub(super) layout: Layout,
    /// Lives as long as its clients.
    _mock: MockCluster<'static, DefaultProducerContext>,
}

impl Cluster {
    pub(super) fn start() -> Result<Self, Fatal> {
        let mock = MockCluster::new(1).map_err(failed)?;
        let config = Arc::new(config(&mock.bootstrap_servers())?);
        let topics = &config.topics;
        let mut wanted = vec![
            (topics.usage.clone(), PARTITIONS),
            (topics.account_usage.clone(), PARTITIONS),
            (topics.group_usage.clone(), PARTITIONS),
            (topics.accounts.clone(), 1),
            (topics.alerts.clone(), 1),
            (topics.shadow_alerts.clone(), 1),
            (topics.dead_letters.clone(), 1),
        ];
        wanted.extend(Stage::ALL.map(|stage| (topology::changelog(&config, stage), PARTITIONS)));
        for (name, partitions) in wanted {
            let partitions = i32::try_from(partitions).expect("a handful");
            mock.create_topic(&name, partitions, 1).map_err(failed)?;
        }
        let layout = Layout { usage: PARTITIONS, tasks: PARTITIONS };
        Ok(Self { config, layout, _mock: mock })
    }

    pub(super) fn alerts(&self) -> Result<Alerts, Fatal> {
        Alerts::open(&self.config)
    }
}

/// The defaults, but for the broker and for time that runs a hundred thousand times faster.
fn config(servers: &str) -> Result<Config, Fatal> {
    let text = format!(
        r#"
        [kafka]
        bootstrap_servers = "{servers}"
        instance = "demo"
        # a second worker would join the group after the first has started, and move its partitions
        workers = 1
        commit_interval = "5ms"
        [kafka.client]
        # the mock answers an empty fetch no sooner
        "fetch.wait.max.ms" = 5
        "linger.ms" = 0
        # a laptop that sleeps, or Ctrl-Z: the group would move on, and the mock keeps no positions
        # to restore from
        "session.timeout.ms" = 60000
        # what dashboards show of librdkafka
        "statistics.interval.ms" = 1000
        [time]
        # an hour passes in less time than a record takes to METER, ACCOUNT and back
        max_skew = "1d"
        "#
    );
    Config::from_text("the demo's configuration", &text)
}

/// A reader of the alerts topic, as any subscriber has one.
pub(super) struct Alerts {
    consumer: Consumer,
    topic: String,
    /// The next offset to read.
    position: i64,
}

impl Alerts {
    fn open(config: &Config) -> Result<Self, Fatal> {
        let consumer = client::reader(&config.kafka, "alerts")?;
        let topic = config.topics.alerts.clone();
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&topic, 0, Offset::Beginning).map_err(failed)?;
        consumer.assign(&assignment).map_err(failed)?;
        Ok(Self { consumer, topic, position: 0 })
    }

    /// The next alert's bytes, waiting for it up to `timeout`.
    pub(super) fn next(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>, Fatal> {
        match self.consumer.poll(timeout) {
            // its end is where a reader of alerts mostly is
            None | Some(Err(KafkaError::PartitionEOF(_))) => Ok(None),
            Some(Err(error)) => Err(failed(error)),
            Some(Ok(record)) => {
                self.position = record.offset() + 1;
                Ok(Some(record.payload().unwrap_or_default().to_vec()))
            }
        }
    }

    /// Whether everything that is in the topic now has been read.
    pub(super) fn is_at_end(&self) -> Result<bool, Fatal> {
        let timeout = Duration::from_secs(5);
        let (_, end) = self.consumer.fetch_watermarks(&self.topic, 0, timeout).map_err(failed)?;
        Ok(self.position >= end)
    }
}

fn failed(error: KafkaError) -> Fatal {
    Fatal::Broker(format!("the in-process mock of Kafka: {error}"))
}
