//! librdkafka's statistics as series, under the names of its STATISTICS.md.
//!
//! Off until `kafka.client` sets `statistics.interval.ms`. Each worker's consumer and producer then
//! hand over a JSON text at that interval, on the thread that polls: some 2 kB a partition and
//! broker, of which what is named below is read. In the demo: 12 and 20 kB, 0.3 ms each in a debug
//! build. Totals are librdkafka's since the client was made; they enter our counters by difference,
//! for a producer may be replaced.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::table::{self, Series};
use super::{as_f64, count, set};

/// Which of a worker's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Consumer,
    Producer,
}

impl Client {
    const fn name(self) -> &'static str {
        match self {
            Self::Consumer => "consumer",
            Self::Producer => "producer",
        }
    }
}

/// One client's statistics, and what of them has been counted.
#[derive(Debug)]
pub struct Bridge {
    client: Client,
    worker: usize,
    counted: BTreeMap<(&'static str, String), u64>,
    /// Partitions with a queue of ours at the last call.
    held: BTreeSet<(String, i32)>,
}

#[derive(Debug, Deserialize)]
struct Statistics {
    tx: u64,
    tx_bytes: u64,
    rx: u64,
    rx_bytes: u64,
    txmsgs: u64,
    rxmsgs: u64,
    #[serde(default)]
    brokers: BTreeMap<String, Broker>,
    #[serde(default)]
    topics: BTreeMap<String, Topic>,
}

#[derive(Debug, Deserialize)]
struct Broker {
    nodeid: i32,
    source: String,
    req_timeouts: u64,
    #[serde(default)]
    disconnects: u64,
    rtt: Option<Window>,
}

/// In microseconds.
#[derive(Debug, Deserialize)]
struct Window {
    avg: u64,
    p99: u64,
    cnt: u64,
}

#[derive(Debug, Deserialize)]
struct Topic {
    #[serde(default)]
    partitions: BTreeMap<String, Partition>,
}

#[derive(Debug, Deserialize)]
struct Partition {
    partition: i32,
    fetch_state: String,
    fetchq_cnt: u64,
    fetchq_size: u64,
    app_offset: i64,
    ls_offset: i64,
}

impl Bridge {
    pub const fn new(client: Client, worker: usize) -> Self {
        Self { client, worker, counted: BTreeMap::new(), held: BTreeSet::new() }
    }

    /// Takes one JSON text of librdkafka's; false when it is not as documented.
    pub fn record(&mut self, json: &[u8]) -> bool {
        let Ok(statistics) = serde_json::from_slice::<Statistics>(json) else { return false };
        let labels = || [self.client.name().into(), self.worker.to_string().into()];
        for (series, total) in [
            (&table::RDKAFKA_TX, statistics.tx),
            (&table::RDKAFKA_TX_BYTES, statistics.tx_bytes),
            (&table::RDKAFKA_RX, statistics.rx),
            (&table::RDKAFKA_RX_BYTES, statistics.rx_bytes),
            (&table::RDKAFKA_TXMSGS, statistics.txmsgs),
            (&table::RDKAFKA_RXMSGS, statistics.rxmsgs),
        ] {
            let news = news(&mut self.counted, series, "", total);
            count(series, labels(), news);
        }
        for (name, broker) in &statistics.brokers {
            self.broker(name, broker);
        }
        if self.client == Client::Consumer {
            self.partitions(&statistics.topics);
        }
        true
    }

    fn broker(&mut self, name: &str, broker: &Broker) {
        // bootstrap addresses have no number, and are replaced by those that do; a coordinator is
        // a connection of its own beside its broker's
        let label = match (broker.source.as_str(), broker.nodeid) {
            ("logical", _) => name.to_owned(),
            (_, 0..) => broker.nodeid.to_string(),
            (_, ..0) => return,
        };
        let (client, worker) = (self.client.name(), self.worker.to_string());
        let labels = || [client.into(), worker.clone().into(), label.clone().into()];
        for (series, total) in [
            (&table::RDKAFKA_REQ_TIMEOUTS, broker.req_timeouts),
            (&table::RDKAFKA_DISCONNECTS, broker.disconnects),
        ] {
            count(series, labels(), news(&mut self.counted, series, &label, total));
        }
        // nothing was asked of it in this interval: the last figure stands
        if let Some(rtt) = broker.rtt.as_ref().filter(|rtt| rtt.cnt > 0) {
            set(&table::RDKAFKA_RTT_AVG, labels(), as_f64(rtt.avg) / 1e6);
            set(&table::RDKAFKA_RTT_P99, labels(), as_f64(rtt.p99) / 1e6);
        }
    }

    /// A partition that has left shows 0; another worker may show it from then on.
    fn partitions(&mut self, topics: &BTreeMap<String, Topic>) {
        let mut held = BTreeSet::new();
        for (topic, Topic { partitions }) in topics {
            for partition in partitions.values().filter(|found| found.fetch_state == "active") {
                let lag = partition.ls_offset.saturating_sub(partition.app_offset);
                let known = partition.ls_offset >= 0 && partition.app_offset >= 0;
                let lag = if known { u64::try_from(lag).unwrap_or(0) } else { 0 };
                show(
                    topic,
                    partition.partition,
                    [partition.fetchq_cnt, partition.fetchq_size, lag],
                );
                held.insert((topic.clone(), partition.partition));
            }
        }
        for (topic, partition) in self.held.difference(&held) {
            show(topic, *partition, [0; 3]);
        }
        self.held = held;
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        for (topic, partition) in &self.held {
            show(topic, *partition, [0; 3]);
        }
    }
}

fn show(topic: &str, partition: i32, [records, bytes, lag]: [u64; 3]) {
    let labels = || [topic.to_owned().into(), partition.to_string().into()];
    set(&table::RDKAFKA_FETCHQ_CNT, labels(), as_f64(records));
    set(&table::RDKAFKA_FETCHQ_SIZE, labels(), as_f64(bytes));
    set(&table::RDKAFKA_CONSUMER_LAG, labels(), as_f64(lag));
}

/// What a total has grown by since it was last asked for.
fn news(
    counted: &mut BTreeMap<(&'static str, String), u64>,
    series: &'static Series,
    of: &str,
    total: u64,
) -> u64 {
    let before = counted.insert((series.name, of.to_owned()), total).unwrap_or_default();
    total.saturating_sub(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What librdkafka 2.x says, shortened to a few of its keys.
    fn statistics(tx: u64, active: &str) -> String {
        format!(
            r#"{{"name":"c#consumer-1","type":"consumer","replyq":0,"msg_cnt":0,"tx":{tx},
            "tx_bytes":900,"rx":4,"rx_bytes":700,"txmsgs":0,"rxmsgs":12,
            "brokers":{{"127.0.0.1:1/bootstrap":{{"nodeid":-1,"source":"configured",
              "req_timeouts":0,"disconnects":1,"rtt":{{"avg":5,"p99":9,"cnt":1}}}},
            "127.0.0.1:1/3":{{"nodeid":3,"source":"learned","req_timeouts":2,"disconnects":1,
              "rtt":{{"avg":1500,"p99":20000,"cnt":7}}}},
            "GroupCoordinator":{{"nodeid":3,"source":"logical","req_timeouts":0,"disconnects":0,
              "rtt":{{"avg":0,"p99":0,"cnt":0}}}}}},
            "topics":{{"usage":{{"topic":"usage","partitions":{{
              "0":{{"partition":0,"fetch_state":"{active}","fetchq_cnt":5,"fetchq_size":600,
                "app_offset":100,"ls_offset":130}},
              "-1":{{"partition":-1,"fetch_state":"none","fetchq_cnt":0,"fetchq_size":0,
                "app_offset":-1001,"ls_offset":-1001}}}}}}}}}}"#
        )
    }

    fn value(text: &str, series: &str) -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }

    #[test]
    fn totals_are_counted_by_difference_over_clients_and_what_has_left_shows_nothing() {
        let recorder = crate::metrics::recorder().expect("the buckets are not empty");
        metrics::with_local_recorder(&recorder, || {
            let mut bridge = Bridge::new(Client::Consumer, 1);
            assert!(bridge.record(statistics(10, "active").as_bytes()));
            let text = recorder.handle().render();
            let client = "{client=\"consumer\",worker=\"1\"";
            let found = |series: &str| value(&text, series);
            assert_eq!(found(&format!("librdkafka_tx_total{client}}}")), Some(10.0));
            let broker = format!("{client},broker=\"3\"}}");
            assert_eq!(found(&format!("librdkafka_broker_rtt_avg_seconds{broker}")), Some(0.0015));
            assert_eq!(found(&format!("librdkafka_broker_req_timeouts_total{broker}")), Some(2.0));
            assert!(!text.contains("broker=\"-1\""), "{text}");
            assert!(!text.contains("rtt_avg_seconds{client=\"consumer\",worker=\"1\",broker=\"G"));
            let usage = "{topic=\"usage\",partition=\"0\"}";
            assert_eq!(found(&format!("librdkafka_consumer_lag{usage}")), Some(30.0));
            assert_eq!(found(&format!("librdkafka_fetchq_cnt{usage}")), Some(5.0));
            assert!(!text.contains("partition=\"-1\""), "{text}");

            assert!(bridge.record(statistics(25, "none").as_bytes()));
            let text = recorder.handle().render();
            assert_eq!(value(&text, &format!("librdkafka_tx_total{client}}}")), Some(25.0));
            assert_eq!(value(&text, &format!("librdkafka_fetchq_cnt{usage}")), Some(0.0));
            // a producer that is replaced begins at 0
            let mut next = Bridge::new(Client::Consumer, 1);
            assert!(next.record(statistics(3, "active").as_bytes()));
            let text = recorder.handle().render();
            assert_eq!(value(&text, &format!("librdkafka_tx_total{client}}}")), Some(28.0));
            drop(next);
            let text = recorder.handle().render();
            assert_eq!(value(&text, &format!("librdkafka_consumer_lag{usage}")), Some(0.0));
        });
    }

    #[test]
    fn a_text_that_is_not_librdkafkas_is_refused() {
        let mut bridge = Bridge::new(Client::Producer, 0);
        assert!(!bridge.record(b"{}"));
        assert!(!bridge.record(b"\xff"));
    }
}
