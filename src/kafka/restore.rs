//! From committed positions and changelogs to tasks that may run.
//!
//! The order is the proof. First the group's *stable* committed positions: the broker withholds
//! them while a transaction that moves them is undecided, so whatever the last owner managed to
//! commit is decided now. Then, and only then, the end of each changelog as `read_uncommitted`:
//! all that belongs to those positions lies before it. Then the changelog is read as
//! `read_committed` until its end is reported at or beyond that mark. Ending at the last stable
//! offset instead would lose a commit whenever another transaction is open below it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::batch::{Batch, PartitionQueue, Polled};
use super::client;
use super::context::{Consumer, TopicPartition};
use super::task::{Shared, Task, Trouble};
use super::topology::{self, code};
use super::undecided;
use crate::error::Fatal;
use crate::metrics::{self, Stage};

/// One request for positions: between two of them the worker hears what the group says.
const STEP: Duration = Duration::from_secs(2);

/// How long one request for an end of a log may take.
pub(crate) const ASK: Duration = Duration::from_secs(10);

/// Sets every task's start from the group's committed positions; the first start is the
/// beginning. Refuses to go on when retention removed what a position needs. `interrupted` is
/// asked while a transaction holds the positions back.
pub(crate) fn position(
    tasks: &mut [Task],
    consumer: &Consumer,
    prober: &Consumer,
    accept_gap: bool,
    interrupted: impl FnMut() -> bool,
) -> Result<Restored, Trouble> {
    if tasks.is_empty() {
        return Ok(Restored::Complete);
    }
    let wanted = inputs(tasks);
    let Some(committed) = committed(consumer, prober, &wanted, interrupted)? else {
        return Ok(Restored::Interrupted);
    };
    for task in tasks {
        let (low, high) = ends(prober, &task.topic, task.partition, ASK)?;
        let committed = position_of(&committed, task)?;
        let (start, gap) = start(task, committed, (low, high), accept_gap)?;
        task.position_at(start, committed, gap);
    }
    Ok(Restored::Complete)
}

/// The partitions that the tasks read, to ask for their positions.
fn inputs(tasks: &[Task]) -> TopicPartitionList {
    let mut inputs = TopicPartitionList::with_capacity(tasks.len());
    for task in tasks {
        inputs.add_partition(&task.topic, index(task.partition));
    }
    inputs
}

/// A task's position in an answer of the group; `None` where it has committed none.
fn position_of(committed: &TopicPartitionList, task: &Task) -> Result<Option<u64>, Trouble> {
    let found = committed
        .find_partition(&task.topic, index(task.partition))
        .expect("the answer has what was asked for");
    found
        .error()
        .map_err(|error| Trouble::Passing(format!("fetching committed positions: {error}")))?;
    Ok(match found.offset() {
        Offset::Offset(offset) => Some(unsigned(offset)),
        Offset::Beginning
        | Offset::End
        | Offset::Stored
        | Offset::Invalid
        | Offset::OffsetTail(_) => None,
    })
}

/// The group's stable positions; `None` when interrupted.
fn committed(
    consumer: &Consumer,
    prober: &Consumer,
    wanted: &TopicPartitionList,
    mut interrupted: impl FnMut() -> bool,
) -> Result<Option<TopicPartitionList>, Trouble> {
    let deadline = Instant::now() + undecided::STABLE;
    loop {
        let error = match consumer.committed_offsets(wanted.clone(), STEP) {
            Ok(found) => return Ok(Some(found)),
            Err(error) => error,
        };
        if interrupted() {
            return Ok(None);
        }
        if code(&error) != RDKafkaErrorCode::OperationTimedOut || Instant::now() >= deadline {
            return Err(if undecided::withheld(prober, wanted) {
                Trouble::Undecided("a transaction that is open holds the group's positions".into())
            } else {
                Trouble::Passing(format!("fetching committed positions: {error}"))
            });
        }
    }
}

/// Where to read from, and how many records before that are missing.
fn start(
    task: &Task,
    committed: Option<u64>,
    (low, high): (u64, u64),
    accept_gap: bool,
) -> Result<(u64, u64), Fatal> {
    let Task { topic, partition, .. } = task;
    let Some(committed) = committed else { return Ok((low, 0)) };
    if committed > high {
        return Err(Fatal::Broker(format!(
            "topic {topic:?}, partition {partition}: committed position {committed} lies beyond \
             its end {high}; was the topic made again, or did the broker lose records? restore \
             it, or reset the group and delete the state topics to start over"
        )));
    }
    let gap = gap(task.stage, committed, (low, high));
    if gap > 0 && !accept_gap {
        return Err(Fatal::State(format!(
            "topic {topic:?}, partition {partition}: retention removed offsets {committed} to \
             {low} before they were read ({gap} records): restore them, or start with \
             --accept-gap to go on without them"
        )));
    }
    Ok((committed.max(low), gap))
}

/// How many offsets before `low` may have held records that were never read.
fn gap(stage: Stage, committed: u64, (low, high): (u64, u64)) -> u64 {
    let removed = low.saturating_sub(committed);
    // an internal topic is written by transactions alone, so its last offset is a marker: all that
    // is missing if the process died between that commit and the next look at the end
    let is_internal = match stage {
        Stage::Meter => false,
        Stage::Account | Stage::Group => true,
    };
    if is_internal && low == high && removed == 1 { 0 } else { removed }
}

/// How long to wait for one changelog when none has had anything.
const PATIENCE: Duration = Duration::from_millis(2);

/// One changelog partition on its way to its end.
struct Reading {
    /// The tasks it restores: more than one METER once usage has grown.
    tasks: Vec<usize>,
    changelog: TopicPartition,
    queue: PartitionQueue,
    low: u64,
    mark: u64,
    /// The next offset that has not been read.
    reached: u64,
    records: u64,
}

/// Restores every task from its changelog. `interrupted` is asked between batches: a rebalance
/// makes the rest pointless.
pub(crate) fn restore(
    tasks: &mut [Task],
    shared: &Shared,
    consumer: &Consumer,
    prober: &Consumer,
    mut interrupted: impl FnMut(u32) -> bool,
) -> Result<Restored, Trouble> {
    if tasks.is_empty() {
        return Ok(Restored::Complete);
    }
    let began = Instant::now();
    let mut readings = open(tasks, shared, prober)?;
    let mut batch = Batch::new(client::BATCH);
    let mut reported = began;
    let mut patience = PATIENCE;
    let (mut moved, mut left) = (began, u64::MAX);
    while !readings.is_empty() {
        if interrupted(u32::try_from(readings.len()).unwrap_or(u32::MAX)) {
            return Ok(Restored::Interrupted);
        }
        let before = reached(&readings);
        let mut still = Vec::with_capacity(readings.len());
        for mut reading in readings {
            if advance(&mut reading, tasks, &mut batch, (patience, began))? {
                finish(&reading, tasks, began);
            } else {
                still.push(reading);
            }
        }
        // nobody waits for one changelog while another has something
        patience = if reached(&still) == before { PATIENCE } else { Duration::ZERO };
        readings = still;
        let remaining = readings.iter().map(|r| r.mark.saturating_sub(r.reached)).sum();
        if remaining < left {
            (moved, left) = (Instant::now(), remaining);
        } else if moved.elapsed() >= undecided::STABLE {
            return Err(stalled(&readings, consumer));
        }
        if reported.elapsed() >= Duration::from_secs(5) {
            reported = Instant::now();
            tracing::info!(tasks = readings.len(), offsets = remaining, "still restoring");
        }
    }
    if let Err(fatal) = tasks.iter().try_for_each(|task| task.check_restored(shared)) {
        return Err(mismatch(fatal, tasks, consumer));
    }
    Ok(Restored::Complete)
}

/// Offsets read so far; it changes as well when one is done.
fn reached(readings: &[Reading]) -> (usize, u64) {
    (readings.len(), readings.iter().map(|reading| reading.reached).sum())
}

/// Why positions and state do not belong together. A process that stood still between the two
/// answers for longer than its session has positions from before and a changelog that another has
/// written since: the group has given its partitions away, and it joins again.
fn mismatch(fatal: Fatal, tasks: &[Task], consumer: &Consumer) -> Trouble {
    let committed = match consumer.committed_offsets(inputs(tasks), undecided::STABLE) {
        Ok(committed) => committed,
        Err(error) => {
            return Trouble::Passing(format!("fetching committed positions again: {error}"));
        }
    };
    for task in tasks {
        match position_of(&committed, task) {
            Ok(position) if position == task.committed_position() => {}
            Ok(_) => {
                let Task { topic, partition, .. } = task;
                let text = format!(
                    "topic {topic:?}, partition {partition}: another worker has committed \
                     positions while this one restored"
                );
                return Trouble::Passing(text);
            }
            Err(trouble) => return trouble,
        }
    }
    Trouble::Fatal(fatal)
}

/// Why nothing has come for long although marks have not been reached.
fn stalled(readings: &[Reading], consumer: &Consumer) -> Trouble {
    let marks = readings.iter().map(|reading| {
        let TopicPartition { topic, partition } = &reading.changelog;
        (topic.as_str(), *partition, reading.mark)
    });
    let marks = match undecided::Marks::given(marks) {
        Ok(marks) => marks,
        Err(fatal) => return Trouble::Fatal(fatal),
    };
    match marks.open(consumer) {
        Ok(Some(open)) => Trouble::Undecided(open),
        Ok(None) => Trouble::Passing("changelogs do not come".into()),
        Err(trouble) => trouble,
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Restored {
    Complete,
    Interrupted,
}

/// Takes the marks and starts reading all changelogs at once.
fn open(tasks: &mut [Task], shared: &Shared, prober: &Consumer) -> Result<Vec<Reading>, Trouble> {
    let reader = Arc::new(client::reader(&shared.config.kafka, "restore")?);
    let mut readings: Vec<Reading> = Vec::new();
    let mut assignment = TopicPartitionList::new();
    for (number, task) in tasks.iter_mut().enumerate() {
        let changelog = task.changelog(shared);
        if let Some(shared) = readings.iter_mut().find(|reading| reading.changelog == changelog) {
            shared.tasks.push(number);
            continue;
        }
        let (low, mark) = ends(prober, &changelog.topic, changelog.partition, ASK)?;
        if low == mark {
            task.series.restored(Duration::ZERO);
            continue;
        }
        let queue = PartitionQueue::new(&reader, &changelog.topic, changelog.partition);
        add(&mut assignment, &changelog.topic, changelog.partition, low)?;
        let tasks = vec![number];
        readings.push(Reading { tasks, changelog, queue, low, mark, reached: low, records: 0 });
    }
    reader
        .assign(&assignment)
        .map_err(|error| Trouble::Passing(format!("assigning changelogs: {error}")))?;
    Ok(readings)
}

/// Applies one batch; true when the end was reported at or beyond the mark.
fn advance(
    reading: &mut Reading,
    tasks: &mut [Task],
    batch: &mut Batch,
    (patience, began): (Duration, Instant),
) -> Result<bool, Trouble> {
    let mut complete = false;
    let mut bytes = 0_u64;
    let Reading { tasks: restored, changelog, queue, low, mark, reached, records } = reading;
    let TopicPartition { topic, partition } = &*changelog;
    let unreadable = |detail: &dyn std::fmt::Display| {
        Trouble::Fatal(Fatal::State(format!(
            "changelog {topic:?}, partition {partition}: {detail}"
        )))
    };
    batch.read(queue, patience, |polled| {
        match polled {
            Polled::Records(group) => {
                for record in group {
                    let key = record.key.ok_or_else(|| unreadable(&"a record without a key"))?;
                    for &number in &*restored {
                        let restored = tasks[number].restore(key, record.value);
                        restored.map_err(|error| unreadable(&error))?;
                    }
                    *reached = record.offset + 1;
                    *records += 1;
                    bytes += length(Some(key)) + length(record.value);
                }
            }
            Polled::End { offset } => {
                *reached = offset.max(*reached);
                complete = offset >= *mark;
            }
            Polled::Failed(RDKafkaErrorCode::AutoOffsetReset) => {
                return Err(Trouble::Passing(format!("changelog {topic:?} moved while read")));
            }
            Polled::Failed(code) => {
                tracing::warn!(topic, partition, %code, "changelog fetch failed");
            }
        }
        Ok(())
    })?;
    let first = restored[0];
    metrics::restore_read(tasks[first].stage, bytes);
    for &number in &*restored {
        tasks[number].series.restoring(*reached - *low, *mark - *low, began.elapsed());
    }
    Ok(complete)
}

fn finish(reading: &Reading, tasks: &[Task], began: Instant) {
    let took = began.elapsed();
    for &number in &reading.tasks {
        let task = &tasks[number];
        task.series.restored(took);
        tracing::info!(
            stage = task.stage.name(),
            partition = task.partition,
            records = reading.records,
            milliseconds = took.as_millis(),
            "task restored"
        );
    }
}

/// Low and high watermark as `read_uncommitted`.
pub(crate) fn ends(
    prober: &Consumer,
    topic: &str,
    partition: u32,
    patience: Duration,
) -> Result<(u64, u64), Trouble> {
    let (low, high) =
        prober.fetch_watermarks(topic, index(partition), patience).map_err(|error| {
            let text = format!("asking for the end of {topic:?}, partition {partition}: {error}");
            let code = code(&error);
            let is_unknown = matches!(
                code,
                RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownPartition
            );
            if code == RDKafkaErrorCode::TopicAuthorizationFailed {
                Trouble::Fatal(Fatal::Broker(text))
            } else if is_unknown && matches!(topology::partitions(prober, topic), Ok(None)) {
                Trouble::Fatal(Fatal::Broker(format!(
                    "topic {topic:?} is gone: restore it, or see `flopwatch topics`"
                )))
            } else {
                Trouble::Passing(text)
            }
        })?;
    Ok((unsigned(low), unsigned(high)))
}

/// Adds a partition to be read from `start`. A number where `Beginning` would do as well:
/// librdkafka asks for that before it knows the leader, and asks again half a second later.
pub(crate) fn add(
    assignment: &mut TopicPartitionList,
    topic: &str,
    partition: u32,
    start: u64,
) -> Result<(), Fatal> {
    let start = i64::try_from(start).expect("Kafka's offsets are i64");
    assignment
        .add_partition_offset(topic, index(partition), Offset::Offset(start))
        .map_err(|error| Fatal::Internal(format!("listing {topic:?}, {partition}: {error}")))
}

pub(crate) fn index(partition: u32) -> i32 {
    i32::try_from(partition).expect("Kafka numbers partitions with an i32")
}

fn unsigned(offset: i64) -> u64 {
    u64::try_from(offset).expect("offsets of a log are not negative")
}

fn length(bytes: Option<&[u8]>) -> u64 {
    bytes.map_or(0, |bytes| bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_marker_that_ends_an_internal_topic_is_no_gap() {
        assert_eq!(gap(Stage::Account, 40, (40, 50)), 0);
        assert_eq!(gap(Stage::Group, 41, (40, 41)), 0);
        assert_eq!(gap(Stage::Account, 40, (41, 41)), 0, "the last marker");
        assert_eq!(gap(Stage::Account, 40, (42, 42)), 2, "a record and its marker");
        assert_eq!(gap(Stage::Group, 40, (41, 42)), 1, "the first record of the next");
        assert_eq!(gap(Stage::Meter, 40, (41, 41)), 1, "usage need not be transactional");
    }
}
