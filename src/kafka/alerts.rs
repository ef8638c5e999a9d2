//! Reads a topic of alerts from its beginning to the end that it has now, for people's questions:
//! outside every group, as a `read_committed` reader has it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;

use super::batch::{Batch, PartitionQueue, Polled};
use super::client;
use super::restore::{ASK, add, ends};
use super::task::Trouble;
use super::topology;
use crate::config::Config;
use crate::error::Fatal;

/// Nothing may come for this long: longer than a transaction may stay open.
const SILENCE: Duration = Duration::from_secs(30);

/// How long to wait for one partition.
const PATIENCE: Duration = Duration::from_millis(20);

/// Every record's place, for a person, and its value.
pub fn read(
    config: &Config,
    topic: &str,
    mut each: impl FnMut(&str, &[u8]) -> Result<(), Fatal>,
) -> Result<(), Fatal> {
    topology::reachable(config)?;
    let prober = client::prober(&config.kafka)?;
    let consumer = Arc::new(client::reader(&config.kafka, "alerts")?);
    let missing = || Fatal::Broker(format!("topic {topic:?} is not there: see `flopwatch topics`"));
    let count = topology::partitions(&prober, topic)?.ok_or_else(missing)?;
    let mut assignment = TopicPartitionList::new();
    let mut open = Vec::new();
    for partition in 0..count {
        let (low, mark) = ends(&prober, topic, partition, ASK).map_err(fatal)?;
        if low < mark {
            add(&mut assignment, topic, partition, low)?;
            open.push((partition, mark, PartitionQueue::new(&consumer, topic, partition)));
        }
    }
    consumer
        .assign(&assignment)
        .map_err(|error| Fatal::Broker(format!("assigning {topic:?}: {error}")))?;
    let mut batch = Batch::new(client::BATCH);
    let mut moved = Instant::now();
    while !open.is_empty() {
        let mut still = Vec::new();
        for (partition, mark, queue) in open {
            let mut at_end = false;
            batch.read(&queue, PATIENCE, |polled| -> Result<(), Fatal> {
                match polled {
                    Polled::Records(records) => {
                        moved = Instant::now();
                        for record in records {
                            let place = format!("{topic}/{partition}/{}", record.offset);
                            each(&place, record.value.unwrap_or_default())?;
                        }
                    }
                    Polled::End { offset } => at_end |= offset >= mark,
                    Polled::Failed(code) => {
                        tracing::warn!(topic, partition, %code, "alerts cannot be fetched");
                    }
                }
                Ok(())
            })?;
            if !at_end {
                still.push((partition, mark, queue));
            }
        }
        open = still;
        if moved.elapsed() >= SILENCE {
            return Err(Fatal::Broker(format!("topic {topic:?}: alerts do not come")));
        }
        // events, which are nobody's here
        drop(consumer.poll(Duration::ZERO));
    }
    Ok(())
}

fn fatal(trouble: Trouble) -> Fatal {
    match trouble {
        Trouble::Fatal(fatal) => fatal,
        Trouble::Passing(detail) | Trouble::Undecided(detail) | Trouble::Aborted { detail, .. } => {
            Fatal::Broker(detail)
        }
    }
}
